"""Strokes that scenes are drawn with: of MNIST's digits, of drawn ways of writing, and of signs.

    digits = digit_strokes(images)  # one for each of MNIST's digits

What is drawn is segments, float (S, 2, 2): lines from point to point, x to the right and y down.
"""

import numpy as np
import torch
from scipy import ndimage

from training import synthetic
from training.forms import FORMS, segments

GRID = 3  # digits are thinned on a grid so many times as fine as their pixels
LONGEST = 4  # grid steps; of a segment of a digit's stroke
# What a digit and its strokes, drawn with one pen, have in common, at least (intersection over
# union). Of 3,000 digits that photographs.py redrew, 53 were misread (7 as they are): 16 of the
# 2,380 that reach it here, and 37 of the others. On the finer grid there, 89% reach it.
MIN_LIKENESS = 0.8
Segments = np.ndarray  # float (S, 2, 2)


def digit_strokes(images: torch.Tensor) -> list[Segments]:
    """Return the middle of the strokes of digits, uint8 (N, 28, 28), each 1 high or wide."""
    digits = []
    for some in images.split(250):
        lines = thinned(shapes(some.numpy()))
        digits += [unit(linked(thin)) for thin in lines if has_strokes(thin)]
    return digits


def are_strokes(images: torch.Tensor) -> torch.Tensor:
    """Return which digits, uint8 (N, 28, 28), stay what they are when their strokes are drawn.

    One whose loop is filled in does not: the loop becomes a line, and an 8 becomes a 9 or a Y.
    """
    alike = []
    for some in images.split(250):
        inks = shapes(some.numpy())
        for ink, thin in zip(inks, thinned(inks), strict=True):
            deep, far = (ndimage.distance_transform_edt(part) for part in (ink, ~thin))
            alike.append(has_strokes(thin) and likeness(deep, far) > MIN_LIKENESS)
    return torch.tensor(alike, dtype=torch.bool)


def likeness(deep: np.ndarray, far: np.ndarray) -> float:
    """Return what ink and its thin lines, drawn with one pen, have in common, 0..1.

    Takes how deep in the ink each pixel is, 0 outside, and how far from the lines, both (H, W).
    """
    ink, drawn = deep > 0, far < np.median(deep[far == 0])
    return (ink & drawn).sum() / (ink | drawn).sum()


def has_strokes(thin: np.ndarray) -> bool:
    """Return whether thin lines are more than a dot."""
    return bool(thin.sum() > 2 * GRID)


def shapes(images: np.ndarray) -> np.ndarray:
    """Return where images, uint8 (N, 28, 28), have ink on a finer grid: bool (N, 96, 96)."""
    fine = ndimage.zoom(np.pad(images, ((0, 0), (2, 2), (2, 2))), (1, GRID, GRID), order=1)
    fine = ndimage.gaussian_filter(fine.astype(np.float32), (0, GRID / 2, GRID / 2))
    return fine > 0.5 * fine.max(axis=(1, 2), keepdims=True)


def thinned(ink: np.ndarray) -> np.ndarray:
    """Thin the ink of images, bool (N, H, W), to lines of one pixel (Zhang and Suen 1984)."""
    ink = ink.copy()
    ink[:, [0, -1]] = ink[:, :, [0, -1]] = False
    width = ink.shape[2]
    # The neighbours of a pixel, clockwise from the one above, as a number of eight bits.
    steps = (-width, 1 - width, 1, width + 1, width, width - 1, -1, -width - 1)
    codes = np.arange(256)[:, None] >> np.arange(8) & 1  # (256, 8)
    n_ink, rises = codes.sum(1), ((codes == 0) & (np.roll(codes, -1, 1) == 1)).sum(1)
    edge = (n_ink >= 2) & (n_ink <= 6) & (rises == 1)
    n, e, s, w = codes[:, ::2].T
    removable = (
        edge & (n * e * s == 0) & (e * s * w == 0),
        edge & (n * e * w == 0) & (n * s * w == 0),
    )
    flat, before = ink.reshape(-1), None
    while (places := np.flatnonzero(flat)).size != before:
        before = places.size
        for table in removable:
            code = sum(flat[places + step].astype(np.uint8) << i for i, step in enumerate(steps))
            flat[places[table[code]]] = False
            places = np.flatnonzero(flat)
    return ink


def linked(thin: np.ndarray) -> Segments:
    """Link the pixels of thin lines, bool (H, W), to smooth segments."""
    points = np.argwhere(thin)[:, ::-1]
    apart = np.abs(points[:, None] - points).sum(axis=2)  # (P, P)
    beside = apart == 1
    corner = (apart == 2) & (points[:, None] != points).all(axis=2)
    around_it = beside.astype(np.float32) @ beside.astype(np.float32) > 0
    near = beside | (corner & ~around_it)  # no corner is cut
    weights = near / np.maximum(near.sum(axis=1, keepdims=True), 1)
    inner = near.sum(axis=1) >= 2  # ends stay where they are
    places = points.astype(float)
    for _ in range(3 * GRID):
        places[inner] = (places[inner] + weights[inner] @ places) / 2
    links = {i: set(np.flatnonzero(row).tolist()) for i, row in enumerate(near)}
    for i in list(links):  # fewer points draw the same line
        if len(links[i]) == 2:
            a, b = links[i]
            if np.abs(points[a] - points[b]).max() <= LONGEST and b not in links[a]:
                links[a] ^= {i, b}
                links[b] ^= {i, a}
                del links[i]
    return np.array([(places[i], places[j]) for i in links for j in links[i] if i < j])


def unit(drawing: Segments) -> Segments:
    """Move segments to the origin, 1 high or wide."""
    low, high = drawing.min(axis=(0, 1)), drawing.max(axis=(0, 1))
    return (drawing - low) / max((high - low).max(), 1e-6)


def drawn(kind: str, rng: np.random.Generator) -> Segments:
    """Return what `synthetic` draws: a "glyph", "word", "scribble" or "doodle"."""
    strokes = getattr(synthetic, kind)(rng)
    return unit(segments(synthetic.vary(strokes, rng)))


# Digits of straight strokes, whose bars are no ruled lines.
STRAIGHT = [form for form in FORMS["digit"] if not any(form.marks)]


def drawn_digit(rng: np.random.Generator) -> tuple[Segments, int]:
    """Return a digit that `synthetic` draws, and which it is."""
    form = FORMS["digit"][rng.integers(len(FORMS["digit"]))]
    return unit(segments(synthetic.vary(form.write(rng), rng))), int(form.name[0])


def with_ruler(rng: np.random.Generator) -> tuple[Segments, int]:
    """Return a digit that is drawn with a ruler, and which it is."""
    form = STRAIGHT[rng.integers(len(STRAIGHT))]
    return unit(segments(form.trace(form.mix(rng), roundness=0.0))), int(form.name[0])


# Signs beside digits, at their place and of their size where a digit is 1 high.
SIGNS = {
    form.name: segments(form.trace(form.points.mean(axis=0), roundness=0.0))
    for form in FORMS["sign"] + FORMS["beside"]
}
