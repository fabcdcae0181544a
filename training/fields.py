"""Fields: lines of digits and scenes with digits, as `read` finds and cuts them.

    field = write_field(images, labels, hands, rng)
    segments, wholeness, labels, height = cut_field(field, rng)

Two of three fields are lines that are written with digits like MNIST's (lines.py). The others are
scenes of `scenes.py`, digits among lines, letters and textures, in which the network of
`reading/ink.py` finds ink, and some that is none. How much of one digit a segment has, and of
nothing else, is known.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from reading.ink import find_ink, resize_to
from reading.segmentation import DIGIT_SIZES, Lattice, Page, Part, by_size, find_lines, near
from training.forms import FORMS, Random, segments
from training.lines import HEIGHT, NOBODY, Line, write_line
from training.papers import SIZE, coverage, log_uniform
from training.scenes import NO_LABEL, Hands, Scene, Sheet, draw_sheet

# Hands, papers and pens vary more than where the network of model.py learns digits: here only
# the place, the size and the wholeness count.
SLANT, STRETCH = 0.2, 0.3  # standard deviations, of the latter's logarithm
SIGNS = FORMS["sign"] + FORMS["beside"]
POINTS = [form for form in SIGNS if form.name in ".,"]
POINTED = 0.6  # of the signs
POINT_SIZES, SIGN_SIZES = (0.7, 3.2), (0.7, 1.4)  # times as large as in forms.txt
SIGNED = 0.4  # of the digits have a sign behind them,
FIRST_SIGNED = 0.2  # and of the lines have one before them
SPACED, MAX_SPACE = 0.35, 1.2  # of the lines; more between their digits, in heights
SLOPING, SLOPE = 0.4, 0.06  # of the lines, and the standard deviation
SPECKED, MAX_SPECKS, MAX_SPECK = 0.3, 11, 3  # of the lines; pixels a side
BROKEN, CELL, THINNEST = 0.25, 6, (1.3, 2.5)  # of the lines; clouds in pixels, and their limits
HEIGHT_ERROR = 0.1  # of the height that `read` measures: its logarithm's standard deviation
# The overlap of a segment and a digit (intersection over union) from which it may be one, and is.
MIN_OVERLAP, FULL_OVERLAP = 0.6, 0.9

SCENES = 0.35  # of the fields; a line is drawn five times as fast
KINDS = {  # how frequent each kind of scene is: what makes lines, and some without a digit
    "amount": 30,
    "calculation": 12,
    "page": 12,
    "ruled": 12,
    "form": 12,
    "plain": 8,
    "sheet": 4,
    "words": 4,
    "drawing": 3,
    "print": 2,
}
COVERED = 0.3  # of a pixel, so that it is of a digit
SEEN = 0.25  # of a pixel that is in the picture: the edge of a paper may cut a digit
PAPER = -2  # the owner of what is no ink
SPREAD = 4  # pixels; ink that is found so near to a digit is the digit's


class Field(NamedTuple):
    """A line of ink, and whose it is."""

    ink: np.ndarray  # float (H, W): how likely each pixel is ink
    owner: np.ndarray  # int (H, W): which digit a pixel is of, or NOBODY
    sizes: np.ndarray  # int (digits,): pixels of each digit
    labels: np.ndarray  # int (digits,)
    height: float  # pixels of a digit


class FreeLine(Line):
    """A line of a hand that may be wide, narrow or slanting, and leave much space."""

    signed = SIGNED

    def __init__(self, n: int, rng: Random) -> None:
        super().__init__(n, rng)
        self.slant, self.stretch = rng.normal(0.05, SLANT), math.exp(rng.normal(0, STRETCH))
        self.space = HEIGHT * rng.uniform(0, MAX_SPACE) if rng.random() < SPACED else 0.0
        width = round((1.7 * n * max(1, self.stretch) + 2) * HEIGHT + 2 * n * self.space)
        shape = len(self.ink), width
        self.ink, self.owner = np.zeros(shape, np.float32), np.full(shape, NOBODY)
        if rng.random() < FIRST_SIGNED:
            self.write_sign()

    def write(self, image: np.ndarray, label: int, size: float, stretch: float = 1.0) -> None:
        """Write a digit like MNIST's, uint8 (28, 28), `size` times as high as others."""
        self.x += self.space * self.rng.uniform(0.5, 1)
        super().write(image, label, size, stretch)

    def write_sign(self) -> None:
        """Write a sign behind what is there, most often a point or a comma, small or large."""
        rng = self.rng
        self.x += self.space * rng.uniform(0, 0.7)
        points = rng.random() < POINTED
        signs, sizes = (POINTS, POINT_SIZES) if points else (SIGNS, SIGN_SIZES)
        strokes = HEIGHT * segments(signs[rng.integers(len(signs))].write(rng))
        low, high = strokes.min(axis=(0, 1)), strokes.max(axis=(0, 1))
        strokes = (strokes - (low + high) / 2) * log_uniform(rng, *sizes)
        # A large one may stand on the line or hang as low as a small one.
        rise = rng.uniform(0, 0.5) * max(0, np.ptp(strokes[..., 1]) - (high - low)[1])
        middle = self.baseline - HEIGHT + (low[1] + high[1]) / 2 - rise
        strokes += self.x - strokes[..., 0].min(), middle + rng.normal(0, 0.1) * HEIGHT
        self.draw(strokes)
        self.x += np.ptp(strokes[..., 0])


def spoil(line: Line, rng: Random) -> None:
    """Let a line slope, put specks around it, and break its strokes."""
    if rng.random() < SLOPING:
        places = np.arange(line.ink.shape[1]) - line.x / 2
        drop = np.round(rng.normal(0, SLOPE) * places).astype(int)
        margin = ((np.abs(drop).max(),) * 2, (0, 0))
        line.ink = np.pad(line.ink, margin)
        line.owner = np.pad(line.owner, margin, constant_values=NOBODY)
        rows = (np.arange(len(line.ink))[:, None] - drop) % len(line.ink)
        line.ink, line.owner = (np.take_along_axis(a, rows, 0) for a in (line.ink, line.owner))
    if rng.random() < SPECKED:
        for _ in range(rng.integers(1, MAX_SPECKS + 1)):
            y, x = rng.integers(line.ink.shape)
            size = rng.integers(1, MAX_SPECK + 1)
            spot = line.ink[y : y + size, x : x + size]
            np.maximum(spot, rng.uniform(0.3, 1), out=spot)
    if rng.random() < BROKEN:
        few = [side // CELL + 2 for side in line.ink.shape]
        clouds = ndimage.zoom(rng.normal(size=few), CELL, order=1)
        there = clouds[: line.ink.shape[0], : line.ink.shape[1]] < rng.uniform(*THINNEST)
        line.ink = line.ink * there


def write_field(images: np.ndarray, labels: np.ndarray, hands: Hands, rng: Random) -> Field | None:
    """Write a line of some digits, uint8 (N, 28, 28), or draw a scene; None if it is blank."""
    if rng.random() < SCENES:
        shares = np.array(list(KINDS.values()))
        kind = str(rng.choice(list(KINDS), p=shares / shares.sum()))
        return find_in_scene(*draw_sheet(hands, kind, rng))
    line = write_line(images, labels, rng, FreeLine)
    spoil(line, rng)
    return make_field(line.ink, np.where(line.ink > 0.5, line.owner, NOBODY), line.labels, HEIGHT)


def make_field(ink: np.ndarray, owner: np.ndarray, labels: list[int], height: float) -> Field:
    """Return a field whose digits are as large as their ink; where there is none, one of size 1."""
    sizes = np.bincount(owner[owner >= 0], minlength=max(1, len(labels))).clip(1)
    return Field(ink, owner, sizes, np.array(labels or [0]), height)


def find_in_scene(scene: Scene, sheet: Sheet) -> Field | None:
    """Find the ink of a scene as `read` does, and whose it is; None if the scene is blank."""
    owner, labels = owners(scene, sheet)
    written = zip(sheet.digits, sheet.labels, strict=True)
    sides = [np.ptp(d[..., 1]) + sheet.pen for (d, _), label in written if label != NO_LABEL]
    height = float(np.median(sides)) if sides else sheet.height
    zoom = min(float(np.clip(height, *DIGIT_SIZES)) / height, 2)
    try:
        ink = find_ink(resize_to(scene.image / np.float32(255), zoom * SIZE))
    except ValueError:
        return None
    owner = np.asarray(Image.fromarray(owner).resize(ink.shape[::-1], Image.NEAREST))
    height *= len(ink) / SIZE
    true = make_field(ink, owner, labels, height)
    if (owner != PAPER).any():  # ink that is found is whose ink is nearest
        far, places = ndimage.distance_transform_edt(owner == PAPER, return_indices=True)
        owner = np.where((far < SPREAD) & (ink > 0.5), owner[tuple(places)], NOBODY).clip(NOBODY)
    found = make_field(ink, owner, labels, height)
    return found._replace(sizes=np.maximum(true.sizes, found.sizes))


def owners(scene: Scene, sheet: Sheet) -> tuple[np.ndarray, list[int]]:
    """Return whose each pixel of a scene is, int32 (192, 192), and the labels of its digits."""
    marks = list(zip(sheet.digits, sheet.labels, strict=True))
    joins = [mark for mark, label in marks if label == NO_LABEL]
    printed = np.asarray(sheet.printed, np.float32) / 255
    most = np.maximum(coverage(sheet.other + joins, fine=2), printed)
    owner = np.where(most > COVERED, NOBODY, PAPER).astype(np.int32)
    most, labels = most.clip(COVERED), []
    for mark, label in marks:
        if label != NO_LABEL:
            covered = coverage([mark], fine=2)
            owner[covered >= most] = len(labels)
            most = np.maximum(most, covered)
            labels.append(label)
    owner[(owner >= 0) & (scene.ink < 255 * SEEN)] = PAPER
    return owner, labels


def cut_field(field: Field, rng: Random) -> tuple[list[Part], np.ndarray, np.ndarray, float]:
    """Cut a field as `read` does, where it takes digits to be about as high as they are.

    Returns segments, how much each is one digit, (N,) in 0..1, which one, and the height.
    """
    height = field.height * math.exp(rng.normal(0, HEIGHT_ERROR))
    page = Page(field.ink, 1.0)
    large, small = by_size(page.parts, height)
    lines = find_lines(large, height) if large else []
    lattices = [Lattice(line + near(line, small, height), height, page) for line in lines]
    parts = [run for lattice in lattices for run in lattice.runs.values()]
    wholeness, digits = np.zeros(len(parts), np.float32), np.zeros(len(parts), np.int64)
    for i, part in enumerate(parts):
        owners = field.owner[part.top : part.bottom, part.left : part.right][part.mask]
        shared = np.bincount(owners[owners >= 0], minlength=len(field.sizes))
        overlaps = shared / (field.sizes + part.mask.sum() - shared)
        digits[i] = overlaps.argmax()
        wholeness[i] = (overlaps.max() - MIN_OVERLAP) / (FULL_OVERLAP - MIN_OVERLAP)
    return parts, wholeness.clip(0, 1), field.labels[digits], height
