"""Lines of digits, cut as `read` cuts them: digits with what is left of others, and pieces.

    images, labels = cut_lines(digits, n_digits=6000, n_pieces=3000, seed=0)

`read` cuts a line of ink into more parts than it has digits, and the network says which of them
are digits (reading/segmentation.py). A digit then has a piece of its neighbour on it or lacks one
of its own, and a piece of a 0 looks like a 1 to a network that has seen nothing but whole digits.
So it is shown what comes out of lines whose digits are known: it learns to recognize and to
reject segments, as LeCun, Bottou, Bengio and Haffner (1998, section VI) train it to.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from model import IMAGE_SIZE
from reading.preprocessing import BOX_SIZE
from reading.segmentation import HEIGHTS, Lattice, Page, Part, find_lines
from training.data import Digits
from training.forms import FORMS, Random, segments
from training.synthetic import NON_DIGIT, cut_margins, draw_handwriting, draw_non_digits

CUT = 0.4  # of the drawings are cut out of lines
# Pairs are the minimum and the maximum; lengths are shares of a digit's height.
HEIGHT = 32  # pixels of a digit; `read` enlarges smaller ones
LENGTHS = (2, 6)  # digits
MONEY = 0.4  # of the lines end in zeros, that are
SMALL_ZEROS = (0.4, 1.0)  # as high,
ZERO_GAPS = (-0.15, 0.1)  # and linked
GAPS = (-0.15, 0.25)  # between the boxes of other digits of a hand
PENS = (0.05, 0.12)
BOLD = 0.25  # of the hands write bolder than MNIST's
TALL = 0.1  # of the lines begin with a digit that is
TALLER = (1.1, 1.7)
JOINED = 0.2  # of the digits have a stroke to the one before
SIGNED = 0.12  # have a sign behind them,
LAST_SIGNED = 0.3  # and of the last ones
SIGNS = [f for f in FORMS["sign"] + FORMS["beside"] if f.name in ".,:;-=/()*€$"]
RULED = 0.1  # of the lines stand on what is left of a ruled line

NOBODY = -1  # the owner of ink that is of no digit
# A part is a digit if it has so much of its ink, and little else. It is none if it has less of
# all digits, or more than so much of a second one. Others are neither.
MIN_COVER, MIN_PURE = 0.88, 0.8
MAX_COVER, MAX_SECOND = 0.7, 0.35


class Line:
    """Digits side by side: their ink, and which of them each pixel belongs to."""

    signed = SIGNED

    def __init__(self, n: int, rng: Random) -> None:
        shape = round(2.6 * HEIGHT), round((1.7 * n + 2) * HEIGHT)
        self.rng, self.labels = rng, []
        self.ink, self.owner = np.zeros(shape, np.float32), np.full(shape, NOBODY)
        self.baseline, self.x = 1.9 * HEIGHT, 0.3 * HEIGHT
        self.slant, self.stretch = rng.normal(0, 0.1), math.exp(rng.normal(0, 0.15))
        self.pen, self.bold = HEIGHT * rng.uniform(*PENS), rng.random() < BOLD
        self.last = None

    def write(self, image: np.ndarray, label: int, size: float, stretch: float = 1.0) -> None:
        """Write a digit like MNIST's, uint8 (28, 28), `size` times as high as others."""
        rng = self.rng
        ink = cut_margins(image)
        scale = HEIGHT / BOX_SIZE * size * rng.uniform(0.85, 1.1)
        stretch *= self.stretch * math.exp(rng.normal(0, 0.1))
        ink = self.warp(ink, scale, stretch)
        height, width = ink.shape
        if self.x + width > self.ink.shape[1]:
            return  # no room
        top = self.baseline - height + rng.normal(0, 0.05) * HEIGHT
        if size < 1 and rng.random() < 0.5:
            top -= rng.uniform(0, 0.5) * max(0, HEIGHT - height)  # raised
        top, left = round(np.clip(top, 0, len(self.ink) - height)), int(self.x)
        place = np.s_[top : top + height, left : left + width]
        mine = self.ink[place]
        self.owner[place][(ink > mine) & (ink > 0.5)] = len(self.labels)
        np.maximum(mine, ink, out=mine)
        self.labels.append(label)
        box = left, top, left + width, top + height
        if self.last and rng.random() < JOINED:
            start = rng.uniform(((self.last[0] + self.last[2]) / 2, self.last[1]), self.last[2:])
            stop = rng.uniform(box[:2], ((box[0] + box[2]) / 2, box[3]))
            self.draw(np.array([[start, stop]]))
        self.last, self.x = box, left + width

    def warp(self, image: np.ndarray, scale: float, stretch: float) -> np.ndarray:
        """Enlarge, stretch and slant a digit in this hand."""
        height, width = (round(scale * side) for side in image.shape)
        width = max(2, round(width * stretch))
        margin = math.ceil(abs(self.slant) * height / 2)
        across = image.shape[1] / width
        matrix = (across, across * self.slant, -across * (margin + self.slant * height / 2))
        matrix += (0, image.shape[0] / height, 0)
        size = width + 2 * margin, height
        warped = Image.fromarray(image).transform(size, Image.AFFINE, matrix, Image.BILINEAR)
        ink = cut_margins(np.asarray(warped, np.float32) / 255)
        return ink.clip(0, 0.5) * 2 if self.bold else ink

    def draw(self, strokes: np.ndarray) -> None:
        """Draw segments with the pen, (S, 2 ends, 2); they belong to no digit."""
        canvas = Image.new("L", self.ink.shape[::-1])
        for start, stop in strokes:
            ends = [tuple(start), tuple(stop)]
            ImageDraw.Draw(canvas).line(ends, 255, max(1, round(self.pen)))
        np.maximum(self.ink, np.asarray(canvas, np.float32) / 255, out=self.ink)

    def write_sign(self) -> None:
        """Write a sign behind the last digit."""
        rng, form = self.rng, SIGNS[self.rng.integers(len(SIGNS))]
        strokes = segments(form.write(rng)) * HEIGHT * rng.uniform(0.7, 1.2)
        strokes += (self.x - strokes[..., 0].min(), self.baseline - HEIGHT)
        self.draw(strokes + rng.normal(0, 0.08, 2) * HEIGHT)
        self.x = max(self.x, strokes[..., 0].max())

    def rule(self) -> None:
        """Draw what is left of a ruled line."""
        y = self.baseline + self.rng.normal(0, 0.15) * HEIGHT
        left, right = np.sort(self.rng.uniform(0, self.x, 2))
        self.draw(np.array([[(left, y), (right, y)]]))


def write_line(
    images: np.ndarray, labels: np.ndarray, rng: Random, hand: type[Line] = Line
) -> Line:
    """Write some of the digits, uint8 (N, 28, 28), as a number or as a sum of money."""
    n = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
    line, n_first = hand(n, rng), n
    zeros = np.flatnonzero(labels == 0)
    if len(zeros) and rng.random() < MONEY:
        n_first = int(rng.integers(1, n))
    small, wide = rng.uniform(*SMALL_ZEROS), math.exp(rng.normal(0.1, 0.25))
    gap, zero_gap = rng.uniform(*GAPS), rng.uniform(*ZERO_GAPS)
    chosen = rng.integers(len(images), size=n)
    if n_first < n:
        chosen[n_first:] = rng.choice(zeros, n - n_first if rng.random() < 0.5 else 1)
    for i, at in enumerate(chosen):
        tall = rng.uniform(*TALLER) if i == 0 and rng.random() < TALL else 1.0
        size, stretch = (tall, 1.0) if i < n_first else (small, wide)
        line.write(images[at], int(labels[at]), size, stretch)
        if rng.random() < (LAST_SIGNED if i == n - 1 else line.signed):
            line.write_sign()
        line.x += HEIGHT * max(-0.2, (gap if i < n_first else zero_gap) + rng.normal(0, 0.07))
    if rng.random() < RULED:
        line.rule()
    return line


def lattices_of(page: Page, height: float) -> list[Lattice]:
    """Return the lattices of a page whose digits are so many pixels high."""
    large = [part for part in page.parts if part.height > HEIGHTS[0] * height]
    small = [part for part in page.parts if part.height <= HEIGHTS[0] * height]
    return [Lattice(row + small, height, page) for row in find_lines(large, height)]


def cut_line(line: Line) -> Iterator[tuple[Page, Part, int]]:
    """Yield what may be a digit, and its label; without what is neither a digit nor a piece."""
    if len(line.labels) < 2:
        return
    page = Page(line.ink, 1.0)
    apart = {page.box(part) for part in page.parts}
    sizes = np.bincount(line.owner[line.owner >= 0], minlength=len(line.labels)).clip(1)
    for part in (part for lattice in lattices_of(page, HEIGHT) for part in lattice.runs.values()):
        owners = line.owner[part.top : part.bottom, part.left : part.right][part.mask]
        counts = np.bincount(owners[owners >= 0], minlength=len(sizes))
        covers = counts / sizes
        digit, pure = covers.argmax(), counts.max() / part.mask.sum()
        *_, second, cover = np.sort(covers)
        if cover < MAX_COVER or second > MAX_SECOND:
            yield page, part, NON_DIGIT
        elif cover > MIN_COVER and pure > MIN_PURE and page.box(part) not in apart:
            yield page, part, line.labels[digit]


def cut_lines(
    digits: Digits, n_digits: int, n_pieces: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write lines of the digits and cut them, until there are so many digits and so many pieces.

    Returns images like MNIST's, uint8 (n, 28, 28), and their labels, int64 (n,), 0..9 or
    `NON_DIGIT`. A digit that stands apart is left out: it looks as it does in MNIST. The same
    digits, numbers and seed give the same bytes. Raises ValueError if no digit has ink.
    """
    rng = np.random.Generator(np.random.PCG64([seed, NON_DIGIT + 1]))
    images, labels = digits.images.numpy(), digits.labels.numpy()
    dark = images.max(axis=(1, 2), initial=0) > 127  # `read` finds no ink in others
    images, labels = images[dark], labels[dark]
    if n_digits + n_pieces and not len(images):
        raise ValueError("no digit has ink; without drawings: handwriting=0, non_digits=0")
    left = {False: n_digits, True: n_pieces}  # by whether they are pieces
    drawn, names = [], []
    bar = tqdm(total=n_digits + n_pieces, desc="cutting", leave=False, disable=None)
    while any(left.values()):
        line = write_line(images, labels, rng)
        parts = list(cut_line(line))
        taken = dict.fromkeys(left, 0)
        for at in rng.permutation(len(parts)):
            page, part, label = parts[at]
            piece = label == NON_DIGIT
            if left[piece] and taken[piece] < len(line.labels):
                left[piece] -= 1
                taken[piece] += 1
                drawn.append((255 * page.draw(part)).round().astype(np.uint8))
                names.append(label)
        bar.update(sum(taken.values()))
    bar.close()
    pixels = np.stack(drawn) if drawn else np.zeros((0, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    return torch.from_numpy(pixels), torch.tensor(names, dtype=torch.int64)


def add_drawings(digits: Digits, handwriting: float, non_digits: float, seed: int) -> Digits:
    """Return digits on any device, then drawn and cut digits, then non-digits, all on the CPU.

    The numbers are given as shares of the digits. Non-digits are labelled `NON_DIGIT`.
    """
    digits, n = digits.to("cpu"), len(digits)
    n_digits, n_others = round(handwriting * n), round(non_digits * n)
    n_cut, n_pieces = round(CUT * n_digits), round(CUT * n_others)
    drawn, labels = draw_handwriting(n_digits - n_cut, seed)
    known = Digits(torch.cat([digits.images, drawn]), torch.cat([digits.labels, labels]))
    cut, cut_labels = cut_lines(known, n_cut, n_pieces, seed)
    whole = cut_labels != NON_DIGIT
    others = torch.cat([draw_non_digits(n_others - n_pieces, seed), cut[~whole]])
    images = torch.cat([known.images, cut[whole], others])
    labels = torch.cat([known.labels, cut_labels[whole], torch.full([n_others], NON_DIGIT)])
    return Digits(images, labels, digits.name)
