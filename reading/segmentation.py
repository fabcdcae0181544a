"""Find the digits of a whole picture: its lines from top to bottom, the digits from left to right.

Ink falls into pieces. A digit may be several of them, as a 5 and its hat are, and several digits
that touch are one. So pieces are cut where they are thin, and the network itself says which parts
make a digit: heuristic over-segmentation (LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based
learning applied to document recognition", section V).
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch

from model import normalize
from reading.ink import (
    LEAST_CONTRAST,
    SMALL,
    WEAK,
    erode,
    find_contrast,
    remove_rules,
    resize,
    resize_to,
    sharpen,
)
from reading.preprocessing import BOX_SIZE, draw_pieces

PAGE_SIZES = (256, 1024)  # pixels of the longer side of a picture in which ink is looked for
WIDEST = 0.12  # of a stroke, as a share of that side
LEAST_EXTENT = 0.006  # of a piece, as a share of that side: what is smaller is dust
BLUR = 0.0005  # of such a share
SURE = 0.9  # the confidence from which a piece is one digit
HEIGHTS = (0.4, 2.5)  # of digits, in units of what is typical of the picture
STRENGTHS = (0.35, 3.0)  # of strokes, in units of what is typical of the picture
MOST_PARTS = 5  # of one digit
ASIDE = 0.1  # what a step to the side costs a cut, in pixels of ink
CUT = (0.1, 2.0)  # nats that a cut costs, and that it costs for each height of ink it goes through
MOST_CUTS = 2.5  # of a part as wide as it is high
LEAST_INK = 0.05  # between two cuts, in units of the square of the height
SKIP = 3.0  # nats that it costs to leave out a part as high as a digit
WIDE = 1.0  # nats for each height that a digit is wider than high: it may be two
LOW = (0.9, 3.0)  # of the height: what was cut out and is lower costs nats for each that it lacks
MOST_PIECES = 2000  # of a picture: the largest are looked at
AT_ONCE = 32  # pieces that the network reads, before it is asked whether the rest is dust

Box = tuple[float, float, float, float]  # left, top, right, bottom
# What the network says of N images, (N, 1, 28, 28): each has a digit and a confidence.
Classify = Callable[[torch.Tensor], list[Any]]


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of ink, or a part of one, or several: a mask, bool (h, w), and where it is."""

    mask: np.ndarray
    top: int
    left: int

    @property
    def height(self) -> int:
        return self.mask.shape[0]

    @property
    def width(self) -> int:
        return self.mask.shape[1]

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def middle(self) -> tuple[float, float]:
        """Where its box has its middle, (y, x)."""
        return self.top + self.height / 2, self.left + self.width / 2


class Page:
    """A picture as parts of ink: its contrast and its ink, (H, W), `zoom` times smaller."""

    def __init__(self, gray: np.ndarray) -> None:
        work = resize_to(gray, int(np.clip(max(gray.shape), *PAGE_SIZES)))
        self.zoom = max(gray.shape) / max(work.shape)
        self.contrast, level, noise = find_contrast(work, max(gray.shape) <= SMALL, WIDEST, BLUR)
        # Where ink is fainter than elsewhere, it is measured by what is near.
        least = max(LEAST_CONTRAST, 6 * noise, 0.3 * level)
        self.ink = sharpen(self.contrast / np.maximum(highest_around(self.contrast), least))

    def find_parts(self) -> list[Part]:
        """Return the connected pieces of ink, without rules and dust."""
        mask = remove_rules(self.ink > WEAK, shortest=0.025)
        labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        strong = np.bincount(labels[mask & (self.ink > 0.5)], minlength=count + 1) > 0
        least = max(3, LEAST_EXTENT * max(mask.shape))
        boxes = scipy.ndimage.find_objects(labels)
        extents = np.array([max(side.stop - side.start for side in box) for box in boxes])
        chosen = np.flatnonzero(strong[1:] & (extents >= least)) if boxes else []
        chosen = sorted(chosen, key=lambda i: -extents[i])[:MOST_PIECES]
        return [
            Part(labels[boxes[i]] == i + 1, boxes[i][0].start, boxes[i][1].start) for i in chosen
        ]

    def draw(self, part: Part) -> np.ndarray:
        """Draw a part as MNIST draws a digit: (28, 28) in 0..1, without its neighbours."""
        room = 6  # pixels; no soft edge is wider
        top, left = max(0, part.top - room), max(0, part.left - room)
        ink = self.ink[top : part.bottom + room, left : part.right + room].copy()
        mask = np.zeros(ink.shape, bool)
        y, x = part.top - top, part.left - left
        mask[y : y + part.height, x : x + part.width] = part.mask
        ink[(ink > WEAK) & ~mask] = 0
        return draw_pieces(ink, mask, self.zoom * max(part.mask.shape) < 1.2 * BOX_SIZE)

    def strength(self, part: Part) -> float:
        """Return how much ink the pen left on its way: the contrast times the width of strokes."""
        inner = erode(np.pad(part.mask, 1), 3, 3)[1:-1, 1:-1]
        edge = (part.mask & ~inner).sum()
        contrast = self.contrast[part.top : part.bottom, part.left : part.right][part.mask]
        return float(np.median(contrast)) * 2 * part.mask.sum() / edge

    def box(self, part: Part) -> Box:
        """Return where a part is: left, top, right and bottom, in parts of the picture."""
        height, width = self.ink.shape
        return part.left / width, part.top / height, part.right / width, part.bottom / height

    def touches_edge(self, part: Part) -> bool:
        """Whether a part goes on beyond the picture, perhaps."""
        return min(self.box(part)) == 0 or max(self.box(part)) == 1


def highest_around(contrast: np.ndarray) -> np.ndarray:
    """Return the contrast of ink near each pixel, (H, W): the highest but a few."""
    side = max(8, max(contrast.shape) // 16)
    height, width = contrast.shape
    blocks = np.pad(contrast, ((0, -height % side), (0, -width % side)))
    rows, columns = blocks.shape[0] // side, blocks.shape[1] // side
    blocks = blocks.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows, columns, -1)
    few = max(3, side * side // 200)
    highest = scipy.ndimage.maximum_filter(np.partition(blocks, -few)[..., -few], 3)
    return resize(highest, rows * side, columns * side)[:height, :width]


# ---- Lines -------------------------------------------------------------------------------


def overlap(a: Part, b: Part, slope: float = 0.0) -> float:
    """Return how much of the height of the lower of two parts they share, on a slanting line."""
    shift = slope * (b.middle[1] - a.middle[1])
    shared = min(a.bottom + shift, b.bottom) - max(a.top + shift, b.top)
    return shared / min(a.height, b.height)


def find_slope(parts: list[Part]) -> float:
    """Return the slope of the lines: the median of those from each part to the next one."""
    ordered, slopes = sorted(parts, key=lambda part: part.left), []
    for i, part in enumerate(ordered):
        beside = (p for p in ordered[i:] if p.left > part.right and overlap(part, p) > 0.3)
        if following := next(beside, None):
            down, right = np.subtract(following.middle, part.middle)
            slopes.append(down / right)
    return float(np.median(slopes)) if len(slopes) > 2 else 0.0


def gap(a: Part, b: Part) -> int:
    """Return how far two parts are apart, in the direction in which they are further apart."""
    beside = max(a.left, b.left) - min(a.right, b.right)
    return max(beside, max(a.top, b.top) - min(a.bottom, b.bottom))


def stacked(a: Part, b: Part, height: float) -> bool:
    """Whether one of two parts stands on the other, and they may be halves of a digit."""
    shared = min(a.right, b.right) - max(a.left, b.left)
    whole = max(a.bottom, b.bottom) - min(a.top, b.top)
    over = shared > 0.5 * min(a.width, b.width)
    return over and gap(a, b) < 0.25 * height and whole < 1.4 * height


def find_lines(parts: list[Part], height: float) -> list[list[Part]]:
    """Group parts to lines, from top to bottom, each from left to right."""
    slope = find_slope(parts)
    lines: list[list[Part]] = []
    for part in sorted(parts, key=lambda part: part.left):
        shares = [max(overlap(p, part, slope) for p in line[-2:]) for line in lines]
        if shares and max(shares) > 0.4:
            lines[int(np.argmax(shares))].append(part)
        elif below := [line for line in lines if any(stacked(p, part, height) for p in line[-2:])]:
            below[0].append(part)
        else:
            lines.append([part])
    return sorted(
        lines, key=lambda line: np.mean([p.middle[0] - slope * p.middle[1] for p in line])
    )


# ---- Digits ------------------------------------------------------------------------------


def join(parts: list[Part]) -> Part:
    """Make several parts one."""
    if len(parts) == 1:
        return parts[0]
    top, left = min(part.top for part in parts), min(part.left for part in parts)
    bottom, right = max(part.bottom for part in parts), max(part.right for part in parts)
    mask = np.zeros((bottom - top, right - left), bool)
    for part in parts:
        y, x = part.top - top, part.left - left
        mask[y : y + part.height, x : x + part.width] |= part.mask
    return Part(mask, top, left)


def cheapest_ways(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the way from the top of some ink, (H, W), to each place at its bottom that cuts least.

    Returns what each costs, (W,), and the column in which it is in each row, (H, W).
    """
    places = np.arange(ink.shape[1])
    cost, steps = ink[0].astype(float), []
    for row in ink[1:]:
        left = np.concatenate([[np.inf], cost[:-1]]) + ASIDE
        right = np.concatenate([cost[1:], [np.inf]]) + ASIDE
        options = np.stack([left, cost, right])
        best = options.argmin(axis=0)
        cost = row + options[best, places]
        steps.append(best - 1)
    columns = [places]
    for step in reversed(steps):
        columns.append(columns[-1] + step[columns[-1]])
    return cost, np.stack(columns[::-1])


def cut(part: Part, height: float) -> tuple[list[Part], list[float]]:
    """Cut a part from top to bottom where it is thin.

    Returns what is left, from left to right, and what each but the first costs: more, the more
    ink the cut before it went through.
    """
    middle = part.height // 2
    above, upper = cheapest_ways(part.mask[: middle + 1])
    below, lower = cheapest_ways(part.mask[: middle - 1 : -1] if middle else part.mask[::-1])
    thickness = (above + below - part.mask[middle]) / height  # (width,)
    columns = np.concatenate([upper, lower[-2::-1]])  # (height, width)
    before = np.pad(part.mask.cumsum(axis=1), ((0, 0), (1, 0)))  # ink before a place in a row
    before = np.take_along_axis(before, columns, axis=1)  # and before each cut, (height, width)
    cuts: list[int] = []
    for x in np.argsort(thickness[1:], kind="stable") + 1:
        between = np.abs(before[:, [x]] - before[:, [0, *cuts]]).sum(axis=0)
        if min(between.min(), part.mask.sum() - before[:, x].sum()) > LEAST_INK * height**2:
            cuts.append(int(x))
        if len(cuts) > MOST_CUTS * part.width / height:
            break
    cuts.sort()
    labels = part.mask.astype(int)  # 1 before the first cut, one more after each
    for place in cuts:
        labels += part.mask & (np.arange(part.width) >= columns[:, place, None])
    parts, costs = [], []
    for label, box in enumerate(scipy.ndimage.find_objects(labels), start=1):
        if box is not None:
            top, left = part.top + box[0].start, part.left + box[1].start
            parts.append(Part(labels[box] == label, top, left))
            costs.append(CUT[0] + CUT[1] * float(thickness[cuts[label - 2]]) if label > 1 else 0.0)
    return parts, costs


def typical(values: list[float], weights: list[float]) -> float:
    """Return the weighted median of some values."""
    order = np.argsort(values)
    sums = np.cumsum(np.array(weights)[order])
    return float(np.array(values)[order][np.searchsorted(sums, sums[-1] / 2)])


class Lattice:
    """The parts of a line from left to right, and the runs of them that may be one digit.

    A part that the network is sure of, as high as the others, is a digit; another one may be cut.
    """

    def __init__(self, line: list[Part], height: float, readings: dict[Part, Any]) -> None:
        self.height = height
        self.settled = {
            p
            for p in line
            if p.height > 0.6 * height and p in readings and readings[p].confidence > SURE
        }
        self.parts: list[Part] = []
        self.costs: list[float] = []  # of what is between a part and the one before it
        for part in sorted(line, key=lambda part: part.left):
            wide = part.width > (1.1 if part in self.settled else 0.5) * height
            whole = not wide or part.height < 0.6 * height
            parts, costs = ([part], [0.0]) if whole else cut(part, height)
            self.parts += parts
            self.costs += costs
        self.runs: dict[tuple[int, int], Part] = {}
        for i, j in itertools.combinations(range(len(self.parts) + 1), 2):
            if j - i <= MOST_PARTS and self.fit(run := self.parts[i:j]):
                self.runs[i, j] = join(run)

    def fit(self, run: list[Part]) -> bool:
        """Whether parts side by side may be one digit."""
        height = max(part.bottom for part in run) - min(part.top for part in run)
        width = max(part.right for part in run) - min(part.left for part in run)
        if height < HEIGHTS[0] * self.height:
            return False
        if len(run) == 1:
            return True
        gap = max(b.left - a.right for a, b in itertools.pairwise(run))
        small = height < 1.8 * self.height and width < 1.5 * self.height + 2
        return gap <= 0.25 * self.height and small and not self.settled.issuperset(run)

    def is_cut(self, i: int, j: int) -> bool:
        """Whether a run of parts was cut out of other ink."""
        return self.costs[i] > 0 or (j < len(self.costs) and self.costs[j] > 0)

    def score(self, i: int, j: int, confidence: float) -> float:
        """Return how likely it is, in nats, that a run is a digit, by its looks and its shape."""
        whole = self.runs[i, j]
        wide = WIDE * max(0.0, whole.width / whole.height - 1)
        low = LOW[1] * max(0.0, LOW[0] - whole.height / self.height) * self.is_cut(i, j)
        return math.log(confidence) - self.costs[i] - wide - low

    def best_path(self, readings: dict[Part, Any]) -> list[tuple[Part, bool]]:
        """Return the digits that are likeliest together (Viterbi): some parts may be left out.

        With each is whether it was cut out of other ink.
        """
        paths: list[tuple[float, list[tuple[Part, bool]]]] = [(0.0, [])]
        for j, part in enumerate(self.parts, start=1):
            size = min(1, max(part.mask.shape) / self.height)
            score, digits = paths[-1]
            options = [(score - self.costs[j - 1] - SKIP * size**2, digits)]
            for i in range(max(0, j - MOST_PARTS), j):
                if whole := self.runs.get((i, j)):
                    score = paths[i][0] + self.score(i, j, readings[whole].confidence)
                    options.append((score, [*paths[i][1], (whole, self.is_cut(i, j))]))
            paths.append(max(options, key=lambda option: option[0]))
        return paths[-1][1]


def typical_digit(
    page: Page, strengths: dict[Part, float], readings: dict[Part, Any]
) -> tuple[float, float]:
    """Return how high and how strong digits are: those tell that the network is sure of."""
    sure = [part for part in readings if readings[part].confidence > SURE]
    sure = [part for part in sure if not page.touches_edge(part)] or sure or list(readings)
    weights = [math.sqrt(part.mask.sum() * strengths[part]) for part in sure]
    height = typical([part.height for part in sure], weights)
    return height, typical([strengths[part] for part in sure], weights)


def find_lattices(
    page: Page, strengths: dict[Part, float], readings: dict[Part, Any]
) -> list[Lattice]:
    """Group what may be digits to lines; what is far too large, small, pale or strong is none."""
    height, strength = typical_digit(page, strengths, readings)
    parts = [p for p in strengths if STRENGTHS[0] < strengths[p] / strength < STRENGTHS[1]]
    large = [part for part in parts if HEIGHTS[0] < part.height / height < HEIGHTS[1]]
    small = [part for part in parts if part.height <= HEIGHTS[0] * height]
    lines = find_lines(large, height)
    # What is at the edge goes on beyond it, and is a digit only beside others.
    inner = [line for line in lines if not all(map(page.touches_edge, line))]
    lattices = []
    for line in inner or lines:
        known = [part for part in line if readings[part].confidence > SURE] or line
        middle = typical([part.height for part in known], [1.0] * len(known))
        near = [part for part in small if any(gap(part, p) < 0.3 * middle for p in line)]
        lattices.append(Lattice(line + near, middle, readings))
    return lattices


def read_page(gray: np.ndarray, classify: Classify) -> list[list[tuple[Any, Box, bool]]]:
    """Find the digits of a picture, gray values (H, W) in 0..1.

    Returns lines from top to bottom, each with its digits from left to right: what the network
    says of a digit, its box (left, top, right, bottom), in parts of the width and the height, and
    whether it was cut out of other ink. What the network is unsure of is there, too. Raises
    ValueError if there is no ink.
    """
    page = Page(gray)
    readings: dict[Part, Any] = {}

    def read(parts: Iterable[Part]) -> None:
        if parts := [part for part in parts if part not in readings]:
            pixels = np.stack([page.draw(part) for part in parts])
            answers = classify(normalize(torch.from_numpy(255 * pixels)))
            readings.update(zip(parts, answers, strict=True))

    parts = page.find_parts()
    if not parts:
        return []
    strengths = {part: page.strength(part) for part in parts}
    for start in range(0, len(parts), AT_ONCE):  # from the largest on, until the rest is dust
        read(parts[start : start + AT_ONCE])
        height, _ = typical_digit(page, strengths, readings)
        rest = parts[start + AT_ONCE :]
        if rest and max(rest[0].mask.shape) <= HEIGHTS[0] * height:
            break
    lattices = find_lattices(page, strengths, readings)
    read(whole for lattice in lattices for whole in lattice.runs.values())
    lines = [lattice.best_path(readings) for lattice in lattices]
    return [[(readings[part], page.box(part), is_cut) for part, is_cut in line] for line in lines]
