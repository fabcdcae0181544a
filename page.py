"""Find the digits of a whole picture: its lines from top to bottom, the digits from left to right.

Ink falls into pieces. A digit may be several of them, as a 5 and its hat are, and several digits
that touch are one. So pieces are cut where they are thin, and the network itself says which parts
make a digit: heuristic over-segmentation (LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based
learning applied to document recognition", section V).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch

from model import normalize
from preprocessing import (
    BOX_SIZE,
    LEAST_CONTRAST,
    SMALL,
    WEAK,
    dilate,
    draw_pieces,
    erode,
    find_contrast,
    remove_rules,
    resize,
    resize_to,
    sharpen,
)

PAGE_SIZES = (256, 1024)  # pixels of the longer side of a picture in which ink is looked for
WIDEST = 0.12  # of a stroke, as a share of that side
LEAST_EXTENT = 0.006  # of a piece, as a share of that side: what is smaller is dust
SURE = 0.9  # the confidence from which a piece is one digit
HEIGHTS = (0.4, 2.5)  # of digits, in units of what is typical of the picture
STRENGTHS = (0.35, 3.0)  # of strokes, in units of what is typical of the picture
MOST_PARTS = 5  # of one digit
SLANTS = (-0.5, -0.25, 0.0, 0.25, 0.5)
CUT = (0.5, 4.0)
SKIP = 3.0  # nats that it costs to leave out a part as high as a digit

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
        self.contrast, level, noise = find_contrast(work, max(gray.shape) <= SMALL, WIDEST)
        # Where ink is fainter than elsewhere, it is measured by what is near.
        least = max(LEAST_CONTRAST, 6 * noise, 0.3 * level)
        self.ink = sharpen(self.contrast / np.maximum(highest_around(self.contrast), least))

    def find_parts(self) -> list[Part]:
        """Return the connected pieces of ink, without rules and dust."""
        mask = remove_rules(self.ink > WEAK, shortest=0.025)
        labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        strong = np.bincount(labels[mask & (self.ink > 0.5)], minlength=count + 1) > 0
        least = max(3, LEAST_EXTENT * max(mask.shape))
        return [
            Part(labels[box] == i, box[0].start, box[1].start)
            for i, box in enumerate(scipy.ndimage.find_objects(labels), start=1)
            if strong[i] and max(side.stop - side.start for side in box) >= least
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
        mask = np.pad(part.mask, 1)
        edge = (mask & ~erode(mask, 3, 3)).sum()
        box = self.contrast[part.top : part.bottom, part.left : part.right]
        return float(np.median(box[part.mask])) * 2 * part.mask.sum() / edge

    def touches_edge(self, part: Part) -> bool:
        """Whether a part goes on beyond the picture, perhaps."""
        height, width = self.ink.shape
        return min(part.top, part.left) == 0 or part.bottom == height or part.right == width


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
    slopes = []
    for part in parts:
        after = [p for p in parts if p.left > part.right and overlap(part, p) > 0.3]
        if after:
            other = min(after, key=lambda p: p.left)
            (y, x), (other_y, other_x) = part.middle, other.middle
            slopes.append((other_y - y) / (other_x - x))
    return float(np.median(slopes)) if len(slopes) > 2 else 0.0


def stacked(a: Part, b: Part, height: float) -> bool:
    """Whether one of two parts stands on the other, and both may be halves of a digit."""
    shared = min(a.right, b.right) - max(a.left, b.left)
    gap = max(a.top, b.top) - min(a.bottom, b.bottom)
    whole = max(a.bottom, b.bottom) - min(a.top, b.top)
    return (
        shared > 0.5 * min(a.width, b.width) and gap < 0.25 * height and whole < 1.4 * height
    )


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
    return sorted(lines, key=lambda line: np.mean([p.middle[0] - slope * p.middle[1] for p in line]))


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


def cut(part: Part, height: float) -> tuple[list[Part], list[float]]:
    """Cut a part from top to bottom where it is thin.

    Returns what is left, from left to right, and what each but the first costs: more, the more
    ink the cut before it went through.
    """
    rows, columns = np.nonzero(part.mask)
    offsets = rows - part.height / 2
    least = max(2, round(0.12 * height))
    profiles = []
    for slant in SLANTS:
        places = np.rint(columns + slant * offsets).astype(int).clip(0, part.width - 1)
        profile = np.bincount(places, minlength=part.width) / height
        profiles.append(scipy.ndimage.gaussian_filter1d(profile, 0.02 * height))
    profiles = np.stack(profiles)  # (slants, width)
    best = profiles.argmin(axis=0)
    thickness = profiles.min(axis=0)
    cuts = []
    for x in np.argsort(thickness[least:-least]) + least:
        if all(abs(x - other) >= least for other in cuts):
            cuts.append(int(x))
        if len(cuts) > 2.5 * part.width / height:
            break
    cuts.sort()
    region = np.zeros(part.mask.shape, int)
    y, x = np.indices(part.mask.shape)
    for place in cuts:
        region += x + SLANTS[best[place]] * (y - part.height / 2) >= place
    parts, costs = [], []
    for i, box in enumerate(scipy.ndimage.find_objects(np.where(part.mask, region + 1, 0))):
        if box is not None:
            parts.append(Part((region[box] == i) & part.mask[box], part.top + box[0].start, part.left + box[1].start))
            costs.append(CUT[0] + CUT[1] * thickness[cuts[i - 1]] if i else 0.0)
    return parts, costs


def typical(values: list[float], weights: list[float]) -> float:
    """Return the weighted median of some values."""
    order = np.argsort(values)
    sums = np.cumsum(np.array(weights)[order])
    return float(np.array(values)[order][np.searchsorted(sums, sums[-1] / 2)])


class Line:
    """The parts of a line from left to right, and what runs of them may be one digit."""

    def __init__(self, parts, height, readings):
        self.height = height
        self.parts, self.costs = [], []
        for part in sorted(parts, key=lambda part: part.left):
            wide = part.width > 0.5 * height and part.height > 0.6 * height
            if part.width > 1.1 * height or (wide and readings[part].confidence < 0.95):
                pieces, costs = cut(part, height)
            else:
                pieces, costs = [part], [0.0]
            self.parts += pieces
            self.costs += costs
        self.runs = {}
        n = len(self.parts)
        for i in range(n):
            for j in range(i + 1, min(i + MOST_PARTS, n) + 1):
                run = self.parts[i:j]
                whole = join(run)
                settled = [p in readings and readings[p].confidence > SURE and p.height > 0.6 * height for p in run]
                gaps = [b.left - a.right for a, b in zip(run, run[1:], strict=False)]
                if whole.height < HEIGHTS[0] * height:
                    continue
                if len(run) > 1 and (
                    all(settled)
                    or max(gaps) > 0.25 * height
                    or whole.height > 1.8 * height
                    or whole.width > 1.5 * height + 2
                ):
                    continue
                self.runs[i, j] = whole

    def best_path(self, readings):
        """Viterbi."""
        best = [(0.0, [])]
        for j, part in enumerate(self.parts, start=1):
            cost = SKIP * min(1, max(part.mask.shape) / self.height) ** 2
            options = [(best[-1][0] - cost - self.costs[j - 1], best[-1][1])]
            for i in range(max(0, j - MOST_PARTS), j):
                if whole := self.runs.get((i, j)):
                    reading = readings[whole]
                    options.append((best[i][0] - self.costs[i] + math.log(reading.confidence), best[i][1] + [(whole, reading)]))
            best.append(max(options, key=lambda option: option[0]))
        return best[-1][1]


def read_page(gray, classify):
    page = Page(gray)
    readings = {}

    def read(parts):
        parts = [p for p in parts if p not in readings]
        if parts:
            pixels = np.stack([page.draw(part) for part in parts])
            answers = classify(normalize(torch.from_numpy(255 * pixels)))
            readings.update(zip(parts, answers, strict=True))

    parts = page.find_parts()
    read(parts)
    sure = [p for p in parts if readings[p].confidence > SURE]
    sure = [p for p in sure if not page.touches_edge(p)] or sure or parts
    strengths = {p: page.strength(p) for p in parts}
    weights = [math.sqrt(p.mask.sum() * strengths[p]) for p in sure]
    height = typical([p.height for p in sure], weights)
    strength = typical([strengths[p] for p in sure], weights)
    parts = [p for p in parts if STRENGTHS[0] < strengths[p] / strength < STRENGTHS[1]]
    large = [p for p in parts if HEIGHTS[0] < p.height / height < HEIGHTS[1]]
    small = [p for p in parts if p.height <= HEIGHTS[0] * height]
    lines = []
    for line in find_lines(large, height):
        known = [p for p in line if readings[p].confidence > SURE] or line
        h = typical([p.height for p in known], [1] * len(known))
        near = [
            p
            for p in small
            if any(
                max(p.left - q.right, q.left - p.right) < 0.3 * h and max(p.top - q.bottom, q.top - p.bottom) < 0.3 * h
                for q in line
            )
        ]
        lines.append(Line(line + near, h, readings))
    read([p for line in lines for p in line.runs.values()])
    found = [line.best_path(readings) for line in lines]
    inner = [any(not page.touches_edge(p) for p, _ in line) for line in found]
    found = [line for line, i in zip(found, inner) if i or not any(inner)]
    return found, page.zoom
