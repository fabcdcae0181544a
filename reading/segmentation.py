"""Segmentation: find the digits of a whole picture, line by line, each from left to right.

Ink falls into connected components. A digit may be several of them, as a 5 and its hat are, and
digits that touch are one. So components are cut where they are thin, and the network itself says
which of the parts make a digit; another one sees them in their line (context.py). This is heuristic
over-segmentation (LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to
document recognition", section V).
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch

from model import normalize
from reading.context import see_segments
from reading.image_io import WHITE
from reading.ink import NEIGHBOURS, find_ink, resize_to
from reading.preprocessing import SMALL_DIGIT, draw_as_mnist

# Chosen on pictures of numbers and pages (benchmarks/whole_numbers.py). Pairs are the minimum and
# the maximum. Costs are in nats: they are compared with the logarithm of the confidence.
MIN_EXTENT = 0.006  # of a component, as a share of the longer side; a smaller one is dust
FIRST_SIZES = (128, 384)  # pixels of the longer side of the copy in which ink is looked for first
DIGIT_SIZES = (32, 96)  # pixels of the height of digits in the second,
MAX_SIZE = 1024  # pixels of its longer side
FITTING = (0.8, 1.4)  # times as large as the first: then there is no second
SURE = 0.9  # the confidence from which a component is one digit
HEIGHTS = (0.4, 2.5)  # of digits, as a share of the typical height
NEAR = 0.3  # likewise, of the distance from a digit to a small part of it or of the next one
FULL_HEIGHT = 0.6  # likewise, of a part that is as high as a digit
WIDE, SURELY_WIDE = 0.5, 0.9  # likewise, the width from which a part is cut, and a sure one
MAX_GAP = 0.25  # likewise, between parts of one digit
MAX_DIGIT = (1.8, 1.5)  # likewise, the height and the width of several parts that are one digit
MAX_STACKED = 1.4  # likewise, their height if one stands on the other
STACKED = 0.5  # of the narrower one's width: a part that shares more with another stands on it
BESIDE, SAME_LINE = 0.3, 0.4  # of the lower one's height, shared by neighbours, and in one line
MIN_STRENGTH = 0.5  # of ink, as a share of the typical strength
USUAL_INK = 0.88  # how likely the ink of digits is ink, in half of amounts and numbers or more
INK_POWER = 3  # how much less what is less likely ink is trusted
MAX_READINGS = 1100  # of parts of a picture, the largest first; they take two seconds
MANY = 96  # components, of which too few are digits: print, or a pattern,
MIN_SURE = 0.5  # if the network is sure of a smaller share
BATCH_SIZE = 32  # components that the network reads before it is asked whether the rest is dust
MAX_PARTS = 5  # of one digit
MAX_CUTS = 2.5  # of a part that is as wide as it is high
NUMBER_GAP = 0.6  # between numbers of a line, in heights, more than the usual gap of its digits,
MAX_USUAL_GAP = 1.0  # which is larger only where the digits are numbers of their own
MIN_SIGN = 0.3  # of a part that is no digit, in heights; a smaller one is a point, a comma or dust
CONTEXT_SHARE = 0.4  # of what a segment is: the network that sees it in its line has so much say
MIN_PROBABILITY = 1e-7  # as fine as float32
LOGITS = (-8.0, 4.0)  # of a digit in its line; beyond them they tell no more
MIN_INK = 0.05  # between two cuts, as a share of the square of the height
STEP_COST = 0.1  # of a cut's step to the side, in pixels of ink

Box = tuple[float, float, float, float]  # left, top, right, bottom
# Maps images, (N, 1, 28, 28), to N readings, each with a digit and a confidence.
Classify = Callable[[torch.Tensor], list[Any]]


class Candidate(NamedTuple):
    """What is likely a digit."""

    reading: Any  # what `classify` says of it, and the network that sees it in its line
    confidence: float  # that of the reading, less where it is not likely ink
    alone: float  # likewise, of what `classify` says alone: it has learned what non-digits are
    box: Box  # shares of the picture's width and height
    starts_number: bool  # a gap or a sign is before it, or nothing
    ink: int  # pixels


class Line(NamedTuple):
    """A line of a picture."""

    digits: list[Candidate]  # from left to right; of some the network may be unsure
    ink: int  # pixels, with what is no digit


class Costs(NamedTuple):
    """What a way to read a line costs, in nats: compared with the logarithm of probabilities."""

    cut: float  # through as much ink as a digit is high
    skip: float  # a part as high as a digit, where it is surely one in its line
    wide: float  # a digit twice as wide as high, which may be two
    low: float  # a 1 whose height is 1/e of the typical height: a comma, or a piece of a digit
    join: float  # each component of a digit but the first
    context: float  # each nat of the logit by which it is no digit in its line


COSTS = Costs(cut=1.02, skip=2.96, wide=0.92, low=1.5, join=0.8, context=0.2)


class Part:
    """A connected component of ink, a piece of one, or several: its mask and where it is."""

    def __init__(self, mask: np.ndarray, top: int, left: int, thickness: float = 0.0) -> None:
        self.mask, self.top, self.left = mask, top, left  # bool (height, width)
        self.height, self.width = mask.shape
        self.bottom, self.right = top + self.height, left + self.width
        self.middle = (top + self.height / 2, left + self.width / 2)
        self.thickness = thickness  # of the ink that was cut on its left; 0 where none was


class Page:
    """The ink of a picture, (H, W), its parts, and what the network reads in them."""

    def __init__(self, ink: np.ndarray, zoom: float, classify: Classify | None = None) -> None:
        self.ink, self.zoom = ink, zoom  # it is so many times smaller than the picture
        self.parts = self.find_parts()
        self.classify, self.readings = classify, {}
        self.verdicts: dict[Part, Any] = {}  # what the network of context.py has a say in

    def find_parts(self) -> list[Part]:
        """Return the connected components of ink but for dust, the largest first."""
        labels, _ = scipy.ndimage.label(self.ink > 0.5, NEIGHBOURS)
        min_extent = max(3, MIN_EXTENT * max(labels.shape))
        parts = [
            Part(labels[box] == label, box[0].start, box[1].start)
            for label, box in enumerate(scipy.ndimage.find_objects(labels), start=1)
            if max(side.stop - side.start for side in box) >= min_extent
        ]
        return sorted(parts, key=lambda part: -max(part.mask.shape))[:MAX_READINGS]

    def read(self, parts: Iterable[Part]) -> None:
        """Let the network read parts, those that it has not read yet."""
        if parts := [part for part in parts if part not in self.readings]:
            pixels = np.stack([self.draw(part) for part in parts])
            answers = self.classify(normalize(torch.from_numpy(WHITE * pixels)))
            self.readings.update(zip(parts, answers, strict=True))

    def hear(self, parts: list[Part], digits: np.ndarray) -> None:
        """Let a second network have its say in what parts are: log-probabilities, (N, 10).

        The two are averaged as experts are (Hinton 2002): a digit must be likely to both.
        """
        own = np.array([self.readings[part].probabilities for part in parts])
        both = (1 - CONTEXT_SHARE) * np.log(own.clip(MIN_PROBABILITY)) + CONTEXT_SHARE * digits
        for part, row in zip(parts, scipy.special.softmax(both, axis=1).tolist(), strict=True):
            confidence = max(row)
            self.verdicts[part] = self.readings[part]._replace(
                digit=row.index(confidence), confidence=confidence, probabilities=tuple(row)
            )

    def verdict(self, part: Part) -> Any:
        """Return what digit a part is, by all that was heard."""
        return self.verdicts.get(part, self.readings[part])

    def is_sure(self, part: Part) -> bool:
        """Return whether the network has read a part, and is sure of it."""
        return part in self.readings and self.readings[part].confidence > SURE

    def draw(self, part: Part) -> np.ndarray:
        """Draw a part as the network reads it, without its neighbours: (28, 28) in 0..1."""
        margin = 2  # pixels; no soft edge is wider
        top, left = max(0, part.top - margin), max(0, part.left - margin)
        ink = self.ink[top : part.bottom + margin, left : part.right + margin]
        mask = paste([part], top, left, ink.shape)
        near = scipy.ndimage.binary_dilation(mask, iterations=margin)
        ink = np.where(near & ((ink <= 0.5) | mask), ink, 0)
        return draw_as_mnist(ink, self.zoom * max(part.mask.shape) < SMALL_DIGIT)

    def likelihood(self, part: Part) -> float:
        """Return how likely a part is ink, 0..1."""
        return float(self.ink[part.top : part.bottom, part.left : part.right][part.mask].mean())

    def strength(self, part: Part) -> float:
        """Return how likely a part is ink, times the width of its strokes."""
        edge = part.mask & ~scipy.ndimage.binary_erosion(part.mask, NEIGHBOURS)
        return self.likelihood(part) * 2 * part.mask.sum() / edge.sum()

    def trust(self, part: Part) -> float:
        """Return how far what is read in a part is trusted: less where it is not likely ink."""
        return min(1, self.likelihood(part) / USUAL_INK) ** INK_POWER

    def box(self, part: Part) -> Box:
        """Return where a part is, as shares of the picture's width and height."""
        height, width = self.ink.shape
        return part.left / width, part.top / height, part.right / width, part.bottom / height

    def touches_edge(self, part: Part) -> bool:
        """Return whether a part may go on beyond the picture."""
        return min(self.box(part)) == 0 or max(self.box(part)) == 1


def find_page_ink(gray: np.ndarray) -> np.ndarray:
    """Return how likely each pixel of a picture is ink, on a copy that suits its digits."""
    size = int(np.clip(2 * max(gray.shape), *FIRST_SIZES))
    ink = find_ink(resize_to(gray, size))
    labels, _ = scipy.ndimage.label(ink > 0.5, NEIGHBOURS)
    heights = [box[0].stop - box[0].start for box in scipy.ndimage.find_objects(labels)]
    if heights:
        height = weighted_median(heights, np.bincount(labels.ravel())[1:])
        size *= np.clip(height, *DIGIT_SIZES) / height
    else:
        size = MAX_SIZE
    if not FITTING[0] < size / max(ink.shape) < FITTING[1]:
        ink = find_ink(resize_to(gray, min(int(size), MAX_SIZE, 2 * max(gray.shape))))
    return ink


def paste(parts: list[Part], top: int, left: int, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of some parts within a rectangle of a shape at a place."""
    mask = np.zeros(shape, bool)
    for part in parts:
        y, x = part.top - top, part.left - left
        mask[y : y + part.height, x : x + part.width] |= part.mask
    return mask


def join(parts: list[Part]) -> Part:
    """Return several parts as one."""
    if len(parts) == 1:
        return parts[0]
    top, left = min(part.top for part in parts), min(part.left for part in parts)
    bottom, right = max(part.bottom for part in parts), max(part.right for part in parts)
    return Part(paste(parts, top, left, (bottom - top, right - left)), top, left)


# ---- Lines -------------------------------------------------------------------------------


def overlap(a: Part, b: Part, slope: float = 0.0) -> float:
    """Return the height that two parts on a slanting line share, as a share of the lower one's."""
    shift = slope * (b.middle[1] - a.middle[1])
    shared = min(a.bottom + shift, b.bottom) - max(a.top + shift, b.top)
    return shared / min(a.height, b.height)


def find_slope(parts: list[Part]) -> float:
    """Return the slope of the lines: the median of the slopes from each part to the next one."""
    ordered, slopes = sorted(parts, key=lambda part: part.left), []
    for i, part in enumerate(ordered):
        beside = (p for p in ordered[i:] if p.left > part.right and overlap(part, p) > BESIDE)
        if following := next(beside, None):
            down, right = np.subtract(following.middle, part.middle)
            slopes.append(down / right)
    return float(np.median(slopes)) if len(slopes) > 2 else 0.0


def distance(a: Part, b: Part) -> int:
    """Return how far two boxes are apart, in the direction in which they are further apart."""
    beside = max(a.left, b.left) - min(a.right, b.right)
    return max(beside, max(a.top, b.top) - min(a.bottom, b.bottom))


def are_stacked(a: Part, b: Part, height: float) -> bool:
    """Return whether one part stands on the other, so that they may be halves of a digit."""
    shared = min(a.right, b.right) - max(a.left, b.left)
    whole = max(a.bottom, b.bottom) - min(a.top, b.top)
    above = shared > STACKED * min(a.width, b.width)
    return above and distance(a, b) < MAX_GAP * height and whole < MAX_STACKED * height


def find_lines(parts: list[Part], height: float) -> list[list[Part]]:
    """Group parts into lines, from top to bottom, each from left to right."""
    slope = find_slope(parts)
    lines: list[list[Part]] = []
    for part in sorted(parts, key=lambda part: part.left):
        shares = [max(overlap(p, part, slope) for p in line[-2:]) for line in lines]
        stacked = (line for line in lines if any(are_stacked(p, part, height) for p in line[-2:]))
        if shares and max(shares) > SAME_LINE:
            lines[int(np.argmax(shares))].append(part)
        elif line := next(stacked, None):
            line.append(part)
        else:
            lines.append([part])
    lines.sort(key=lambda line: np.mean([p.middle[0] - slope * p.middle[1] for p in line]))
    return lines


# ---- Digits ------------------------------------------------------------------------------


def cheapest_paths(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the paths from the top of a mask, (H, W), to each place at its bottom that cut least.

    Returns the cost of each path, (W,), and its column in each row, (H, W).
    """
    places = np.arange(ink.shape[1])
    cost, steps = ink[0].astype(float), []
    for row in ink[1:]:
        aside = np.concatenate([[np.inf], cost, [np.inf]]) + STEP_COST
        options = np.stack([aside[:-2], cost, aside[2:]])
        best = options.argmin(axis=0)
        cost = row + options[best, places]
        steps.append(best - 1)
    columns = [places]
    for step in reversed(steps):
        columns.append(columns[-1] + step[columns[-1]])
    return cost, np.stack(columns[::-1])


def cut(part: Part, height: float) -> list[Part]:
    """Cut a part from top to bottom where it is thin; return the pieces from left to right."""
    middle = part.height // 2
    above, upper = cheapest_paths(part.mask[: middle + 1])
    below, lower = cheapest_paths(part.mask[: middle - 1 : -1] if middle else part.mask[::-1])
    thickness = above + below - part.mask[middle]  # (width,)
    columns = np.concatenate([upper, lower[-2::-1]])  # (height, width)
    before = np.pad(part.mask.cumsum(axis=1), ((0, 0), (1, 0)))  # ink before a place in a row
    ink = np.take_along_axis(before, columns, axis=1).sum(axis=0)  # before each cut, (width,)
    cuts, total = [], part.mask.sum()
    for x in np.argsort(thickness[1:], kind="stable") + 1:
        if np.abs(ink[x] - [0, total, *ink[cuts]]).min() > MIN_INK * height**2:
            cuts.append(int(x))
        if len(cuts) > MAX_CUTS * part.width / height:
            break
    cuts.sort()
    labels = part.mask.astype(int)  # 1 before the first cut, one more after each
    for place in cuts:
        labels += part.mask & (np.arange(part.width) >= columns[:, place, None])
    on_the_left = [part.thickness, *(float(thickness[place]) for place in cuts)]
    pieces = []
    for label, box in enumerate(scipy.ndimage.find_objects(labels), start=1):
        if box is not None:
            top, left = part.top + box[0].start, part.left + box[1].start
            pieces.append(Part(labels[box] == label, top, left, on_the_left[label - 1]))
    return pieces


def weighted_median(values: list[float], weights: list[float] | np.ndarray) -> float:
    """Return the median of values that count by their weights."""
    order = np.argsort(values)
    sums = np.cumsum(np.array(weights)[order])
    return float(np.array(values)[order][np.searchsorted(sums, sums[-1] / 2)])


class Lattice:
    """The parts of a line from left to right, and the runs of them that may be one digit.

    A part is settled if the network is sure of it and it is as high as the others. Parts that are
    wide are cut. If there is no time for that, each component is one part and may be one digit.
    """

    def __init__(self, line: list[Part], height: float, page: Page, hasty: bool = False) -> None:
        self.height, self.page = height, page
        self.settled = {p for p in line if p.height > FULL_HEIGHT * height and page.is_sure(p)}
        self.parts: list[Part] = []
        for part in sorted(line, key=lambda part: part.middle[1]):
            wide = part.width > (SURELY_WIDE if part in self.settled else WIDE) * height
            whole = hasty or not wide or part.height < HEIGHTS[0] * height
            self.parts += [part] if whole else cut(part, height)
        self.runs: dict[tuple[int, int], Part] = {}  # from a part to before another
        max_parts = 1 if hasty else MAX_PARTS
        for i in range(len(self.parts)):
            for j in range(i + 1, min(i + max_parts, len(self.parts)) + 1):
                if self.may_be_digit(run := self.parts[i:j]):
                    self.runs[i, j] = join(run)
        self.logits = dict.fromkeys(self.runs, 0.0)  # that they are digits, in their line

    def see_context(self) -> None:
        """Read each run once more, where it is and with what is around it."""
        runs = list(self.runs.values())
        logits, digits = see_segments(self.page.ink, self.height, runs)
        if len(logits):
            self.logits = dict(zip(self.runs, logits.clip(*LOGITS).tolist(), strict=True))
            self.page.hear(runs, digits)

    def may_be_digit(self, run: list[Part]) -> bool:
        """Return whether parts side by side may be one digit."""
        height = max(part.bottom for part in run) - min(part.top for part in run)
        width = max(part.right for part in run) - min(part.left for part in run)
        if height < HEIGHTS[0] * self.height:
            return False
        if len(run) == 1:
            return True
        gap = max(b.left - a.right for a, b in itertools.pairwise(run))
        high, wide = (share * self.height for share in MAX_DIGIT)
        small = height < high and width < wide + 2  # pixels, for soft edges
        return gap <= MAX_GAP * self.height and small and not self.settled.issuperset(run)

    def features(self, i: int, j: int) -> Costs:
        """Return how much of each cost a run has if it is read as a digit."""
        whole = self.runs[i, j]
        is_one = self.page.verdict(whole).digit == 1
        return Costs(
            cut=self.parts[i].thickness / self.height,
            skip=0.0,
            wide=max(0.0, whole.width / whole.height - 1),
            low=is_one * max(0.0, math.log(self.height / whole.height)),
            join=sum(not part.thickness for part in self.parts[i + 1 : j]),
            context=-self.logits[i, j],
        )

    def size(self, part: Part) -> float:
        """Return how large a part is, as a share of a digit's height."""
        return min(1.0, max(part.mask.shape) / self.height)

    def skipped(self, k: int) -> float:
        """Return how much is lost if a part is none of a digit: its size, where it may be one."""
        low, high = LOGITS
        logits = (logit for (i, j), logit in self.logits.items() if i <= k < j)
        return self.size(self.parts[k]) * (max(logits, default=low) - low) / (high - low)

    def score(self, i: int, j: int) -> float:
        """Return how likely it is, in nats, that a run is a digit, by its looks and its shape."""
        whole = self.runs[i, j]
        confidence = self.page.verdict(whole).confidence * self.page.trust(whole)
        return math.log(confidence) - float(np.dot(COSTS, self.features(i, j)))

    def best_path(self) -> list[tuple[int, int]]:
        """Return the likeliest digits of the line, as keys of `runs` (Viterbi)."""
        paths: list[tuple[float, list[tuple[int, int]]]] = [(0.0, [])]
        for j in range(1, len(self.parts) + 1):
            score, path = paths[-1]
            options = [(score - COSTS.skip * self.skipped(j - 1), path)]
            for i in range(max(0, j - MAX_PARTS), j):
                if (i, j) in self.runs:
                    score, path = paths[i]
                    options.append((score + self.score(i, j), [*path, (i, j)]))
            paths.append(max(options, key=lambda option: option[0]))
        return paths[-1][1]

    def digits(self) -> list[Candidate]:
        """Return the digits of the line, from left to right."""
        path = self.best_path()
        wholes = [self.runs[key] for key in path]
        gaps = [(b.left - a.right) / self.height for a, b in itertools.pairwise(wholes)]
        usual = float(np.clip(np.median(gaps), 0, MAX_USUAL_GAP)) if gaps else 0.0
        digits, end = [], 0
        for (i, j), whole, gap in zip(path, wholes, [0.0, *gaps], strict=False):  # may be none
            signs = (self.size(p) > MIN_SIGN and not p.thickness for p in self.parts[end:i])
            starts = not digits or gap > usual + NUMBER_GAP or any(signs)
            page, trust = self.page, self.page.trust(whole)
            verdict, alone = page.verdict(whole), page.readings[whole].confidence
            found = verdict, trust * verdict.confidence, trust * alone, page.box(whole)
            digits.append(Candidate(*found, starts, int(whole.mask.sum())))
            end = j
        return digits


def typical(parts: list[Part], values: list[float], page: Page) -> float:
    """Return the median of a value of parts, which count by their ink and by their confidence.

    Of a large stain the network is unsure: its ink counts less than a digit's. Dust has little ink.
    """
    weights = [part.mask.sum() * page.readings[part].confidence for part in parts]
    return weighted_median(values, weights)


def by_size(parts: list[Part], height: float) -> tuple[list[Part], list[Part]]:
    """Return the parts as high as digits may be, and those that are less high."""
    large = [part for part in parts if HEIGHTS[0] < part.height / height < HEIGHTS[1]]
    return large, [part for part in parts if part.height <= HEIGHTS[0] * height]


def near(line: list[Part], small: list[Part], height: float) -> list[Part]:
    """Return the small parts that are near one of a line's."""
    return [part for part in small if any(distance(part, p) < NEAR * height for p in line)]


def find_lattices(page: Page) -> list[Lattice]:
    """Group what may be digits into lines, without what is far too large, small or unlikely."""
    known = list(page.readings)
    height = typical(known, [part.height for part in known], page)
    strength = typical(known, [page.strength(part) for part in known], page)
    parts = [part for part in page.parts if page.strength(part) > MIN_STRENGTH * strength]
    large, small = by_size(parts, height)
    lines = find_lines(large, height)
    # A part at the edge may go on beyond it. It counts as a digit only beside others.
    inner = [line for line in lines if not all(map(page.touches_edge, line))]
    rows = []
    for line in inner or lines:
        middle = typical(line, [part.height for part in line], page)
        rows.append((line + near(line, small, middle), middle, page))
    lattices = [Lattice(*row) for row in rows]
    n_new = sum(
        whole not in page.readings for lattice in lattices for whole in lattice.runs.values()
    )
    if n_new + len(page.readings) > MAX_READINGS:
        lattices = [Lattice(*row, hasty=True) for row in rows]
    return lattices


def read_parts(page: Page) -> bool:
    """Let the network read the parts, from the largest on; return whether there may be digits."""
    parts = page.parts
    for start in range(0, len(parts), BATCH_SIZE):
        page.read(parts[start : start + BATCH_SIZE])
        n_sure = sum(map(page.is_sure, page.readings))
        if start >= MANY and n_sure < MIN_SURE * len(page.readings):
            return False
        known, rest = list(page.readings), parts[start + BATCH_SIZE :]
        height = typical(known, [part.height for part in known], page)
        if rest and max(rest[0].mask.shape) <= HEIGHTS[0] * height:
            break  # the rest is dust
    return bool(parts)


def read_lattices(gray: np.ndarray, classify: Classify) -> list[Lattice]:
    """Find the lines of a picture, gray values (H, W) in 0..1, with all their runs read."""
    ink = find_page_ink(gray)
    page = Page(ink, max(gray.shape) / max(ink.shape), classify)
    lattices = find_lattices(page) if read_parts(page) else []
    page.read(whole for lattice in lattices for whole in lattice.runs.values())
    for lattice in lattices:
        lattice.see_context()
    return lattices


def read_page(gray: np.ndarray, classify: Classify) -> list[Line]:
    """Find the lines of a picture, gray values (H, W) in 0..1, from top to bottom."""
    lattices = read_lattices(gray, classify)
    inks = [sum(int(part.mask.sum()) for part in lattice.parts) for lattice in lattices]
    return [Line(lattice.digits(), ink) for lattice, ink in zip(lattices, inks, strict=True)]
