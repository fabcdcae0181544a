"""Preprocessing: find the digit in any image, and draw it as MNIST draws digits, 28x28 pixels.

The network knows only MNIST's digits. So the ink of a photograph, a scan or a drawing is found
and drawn in MNIST's geometry.
"""

from typing import NamedTuple

import numpy as np
import scipy
import torch
from PIL import Image

from model import IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD, normalize
from reading.image_io import WHITE, ImageLike, naming, tensor_to_array, to_grayscale, to_uint8
from reading.ink import (
    NEIGHBOURS,
    bounding_box,
    depth,
    find_ink,
    flat_ink,
    resize,
    resize_to,
    stretch,
    threshold_ink,
)

SHAPE = (IMAGE_SIZE, IMAGE_SIZE)
BOX_SIZE = 20  # pixels of the longer side of a digit of MNIST (LeCun et al. 1998)
SPANS = (17, 21)  # pixels of an image like MNIST's, from the first to the last that is inked
FAINT, INKED = 0.1, 0.25  # from where a pixel is inked: at the ends of a digit, and in a stroke
MIN_THICK = 0.04  # of its ink, in squares of two by two pixels
STROKE_WIDTHS = (2.0, 3.6)  # pixels, minimum and maximum of most of MNIST
MAX_SMALL_WIDTH = 4.2  # pixels of the strokes of a small digit, which may be blurred,
LENIENT = 0.2  # and which are drawn anew only where they miss the limits by such a share
MIN_GROWTH = 0.05  # pixels, from where strokes are drawn anew
TYPICAL_WIDTH = 0.75  # of a digit, as a share of its height: the median of MNIST
MAX_STRETCHED_WIDTH = 0.25  # of a stroke, as a share of the height; a wider one was stretched
SMALL_DIGIT = 24  # pixels of the longer side; a smaller digit is shape in gray
FEW_PIXELS = 32  # of the longer side; an image that has no more needs no network,
FEWER_SIZE = 48  # and one that has no more needs no large copy, but one
SMALL_SIZE = 128  # pixels large,
LOOK_SIZE = 192  # where others have one of this size, the size of the scenes in training
MAX_LOOKS = 2  # at a digit, the second closer
CLOSE = 3  # a look is close if the image is at most so many times as large as the digit
MIN_SHEET_AREA = 0.4  # of its box; a digit covers less of it, or is narrow,
MIN_SHEET_WIDTH = 0.6  # of its height
SHEET_EDGE = 1 / 16  # of its size, which is left out of the next look
MIN_STRENGTH = 0.85  # how likely ink is in a digit, on average
MIN_PART_MASS = 0.03  # of a part, as a share of that of the digit's largest
MAX_GAP = 0.15  # between parts of a digit, as a share of its size
EDGE = 2  # pixels; what is as near to the border may go on beyond it
OFF_COST, EDGE_COST = 0.4, 0.5  # how much less a component in a corner counts, and at the border
MIN_INNER = 0.25  # of the size of what is around a component, and how much
MIN_AROUND = 0.75  # of all directions it is in
MAX_FILLED = 0.35  # of the ink where nothing is drawn; a digit has more if only its outline is
FINE = 5  # strokes are drawn at so many times the resolution of MNIST
SOFT = (1 / 6, 2 / 3, 1 / 6)  # what a pixel takes of those beside it, and of itself
PLACES = np.indices(SHAPE).reshape(2, -1) - 14.0  # from MNIST's middle
MOMENTS = np.stack([np.ones(IMAGE_SIZE**2), *PLACES], axis=1).astype(np.float32)  # (784, 3)


def preprocess(image: ImageLike) -> torch.Tensor:
    """Turn one image into what the network reads: float32, (1, 28, 28), normalized.

    Raises ValueError if the image is blank, and whatever `to_grayscale` raises.
    """
    with naming(image):
        pixels = torch.from_numpy(WHITE * to_mnist(to_grayscale(image)[0]))  # (28, 28)
    return normalize(pixels.unsqueeze(0))[0]


def preprocess_batch(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Turn an array or a tensor of N images into (N, 1, 28, 28), as `preprocess` does for each.

    In shape (N, 28, 28) or (N, 1, 28, 28), those that are like MNIST's are found all at once.
    """
    if torch.is_tensor(images):
        images = tensor_to_array(images)
    if images.shape[1:] not in (SHAPE, (1, *SHAPE)):
        return torch.stack([preprocess(image) for image in images])
    pixels = to_uint8(images).reshape(-1, *SHAPE).copy()
    batch = normalize(torch.from_numpy(pixels))  # (N, 1, 28, 28)
    for i in np.flatnonzero(~is_mnist_like(pixels.astype(np.float32) / WHITE)):
        batch[i] = preprocess(pixels[i])
    return batch


def to_image(preprocessed: torch.Tensor) -> Image.Image:
    """Turn what `preprocess` returned back into an image: 28x28, ink white."""
    pixels = WHITE * (preprocessed[0] * PIXEL_STD + PIXEL_MEAN)
    return Image.fromarray(pixels.round().clamp(0, WHITE).byte().numpy())


# ---- From gray values to a digit --------------------------------------------------------


def is_mnist_like(gray: np.ndarray) -> np.ndarray:
    """Return whether images already have MNIST's size, polarity and geometry.

    In each of the 60,000 training images the ink spans 19 or 20 px and has its centre of mass
    within a pixel of (14, 14), counted from 0. At least 5% of it is in squares of two by two
    pixels. Takes gray values in 0..1, (..., H, W), and returns a bool for each image.
    """
    if gray.shape[-2:] != SHAPE:
        return np.zeros(gray.shape[:-2], bool)
    flat = gray.reshape(*gray.shape[:-2], -1)
    total, *offsets = np.moveaxis(flat @ MOMENTS, -1, 0)
    alike = (flat.max(axis=-1) >= 0.5) & (total < 0.5 * IMAGE_SIZE**2)
    alike &= np.abs(offsets).max(axis=0) <= 1.0001 * total  # for rounding
    inked, longest = gray > FAINT, 0
    for axis in (-2, -1):
        lines = inked.any(axis=axis)  # (..., 28)
        span = IMAGE_SIZE - lines.argmax(axis=-1) - lines[..., ::-1].argmax(axis=-1)
        longest = np.maximum(longest, span)
    inked = gray > INKED
    pairs = inked[..., 1:, :] & inked[..., :-1, :]
    squares = pairs[..., 1:] & pairs[..., :-1]
    thick = squares.sum(axis=(-2, -1)) > MIN_THICK * inked.sum(axis=(-2, -1))
    return alike & (longest >= SPANS[0]) & (longest <= SPANS[1]) & thick


def to_mnist(gray: np.ndarray) -> np.ndarray:
    """Turn gray values, (H, W) in 0..1, into an image like MNIST's: (28, 28) in 0..1, ink 1.

    An image that is like MNIST's already is returned as it is. Raises ValueError if there is no
    ink.
    """
    if is_mnist_like(gray):
        return gray
    if max(gray.shape) <= FEW_PIXELS:
        ink = threshold_ink(gray)
        return draw_as_mnist(unstretch(ink[bounding_box(ink > 0.5)], ink.shape), small=True)
    return draw_as_mnist(*find_digit(gray))


def find_digit(gray: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the ink of the digit, cropped to (H, W), and whether it is small in the image.

    Takes gray values, (H, W) in 0..1. A digit that is small in the image is looked at again in a
    part of it, closer. So is the inside of a sheet or of a frame that was taken for a digit: it is
    broad, and not likely ink. Raises ValueError if there is no ink.
    """
    for look in range(1, MAX_LOOKS + 1):
        work = resize_to(gray, LOOK_SIZE if max(gray.shape) > FEWER_SIZE else SMALL_SIZE)
        zoom = max(gray.shape) / max(work.shape)
        ink = find_ink(work)
        ink = open_rings(ink, work)
        digit = choose_digit(ink)
        box = bounding_box(digit)
        sides = [side.stop - side.start for side in bounding_box(digit, margin=0)]
        extent = max(sides)
        broad = digit[box].mean() > MIN_SHEET_AREA and min(sides) > MIN_SHEET_WIDTH * extent
        sheet = broad and ink[digit].mean() < MIN_STRENGTH
        small = extent * zoom < SMALL_DIGIT
        close = small or extent * CLOSE >= max(work.shape)
        if look == MAX_LOOKS or (close and not sheet):
            break
        margin = -SHEET_EDGE * extent if sheet else extent / 2
        ends = [(max(0, side.start - margin), side.stop + margin) for side in box]
        gray = gray[tuple(slice(int(start * zoom), int(stop * zoom) + 1) for start, stop in ends)]
    ink[~scipy.ndimage.binary_dilation(digit, iterations=2)] = 0
    return ink[box], small


class Components(NamedTuple):
    """The connected components of ink."""

    labels: np.ndarray  # (H, W), from 1
    masses: np.ndarray  # (N,)
    middles: np.ndarray  # (N, 2: row, column), as are
    starts: np.ndarray
    stops: np.ndarray


def find_components(ink: np.ndarray) -> Components:
    """Return the connected components of ink, (H, W)."""
    labels, count = scipy.ndimage.label(ink > 0.5, NEIGHBOURS)
    numbers = np.arange(1, count + 1)
    masses = scipy.ndimage.sum_labels(ink, labels, numbers)
    middles = np.array(scipy.ndimage.center_of_mass(ink, labels, numbers)).reshape(count, 2)
    boxes = np.array([[(s.start, s.stop) for s in b] for b in scipy.ndimage.find_objects(labels)])
    boxes = boxes.reshape(count, 2, 2)
    return Components(labels, masses, middles, boxes[:, :, 0], boxes[:, :, 1])


def open_rings(ink: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """Return ink, (H, W), without what the network fills in between a ring and the digit in it.

    It fills the strokes of outlined digits, and all of them. A ring is filled here and there.
    """
    strokes = np.where(flat_ink(stretch(gray)) > 0.5, ink, 0)
    n_ink, n_strokes = (ink > 0.5).sum(), (strokes > 0.5).sum()
    if not 0 < n_ink - n_strokes < MAX_FILLED * n_ink:
        return ink
    return strokes if find_surroundings(find_components(strokes)).any() else ink


def choose_digit(ink: np.ndarray) -> np.ndarray:
    """Return the mask, (H, W), of the strokes that make the digit.

    Of several digits or stains, the largest near the middle is chosen. Components that are close
    to it for its size belong to it: broken strokes, or a 5 and its hat.
    """
    components = labels, masses, middles, starts, stops = find_components(ink)
    if not masses.size:
        raise ValueError("the image is blank: no ink found")
    at_edge = np.minimum(starts, ink.shape - stops).min(axis=1) <= EDGE
    off = np.hypot(*(2 * middles / ink.shape - 1).T).clip(0, 1)
    around = find_surroundings(components)
    scores = masses * (1 - OFF_COST * off) * np.where(at_edge, 1 - EDGE_COST, 1) * ~around
    chosen = np.arange(len(scores)) == scores.argmax()
    eligible = ~around & (at_edge <= at_edge[chosen])
    eligible &= masses > MIN_PART_MASS * masses[chosen]
    while True:
        start, stop = starts[chosen].min(axis=0), stops[chosen].max(axis=0)
        gaps = np.maximum(starts - stop, start - stops).max(axis=1)
        reach = np.maximum((stop - start).max(), (stops - starts).max(axis=1))
        near = chosen | (eligible & (gaps < MAX_GAP * reach))
        if (near == chosen).all():
            return np.concatenate([[False], chosen])[labels]
        chosen = near


def find_surroundings(components: Components) -> np.ndarray:
    """Return which components lie around another large one: rings, boxes and frames."""
    labels, _, middles, starts, stops = components
    extents = (stops - starts).max(axis=1)
    around = np.zeros(len(extents), bool)
    for i, extent in enumerate(extents):
        within = (starts > starts[i]).all(axis=1) & (stops < stops[i]).all(axis=1)
        within &= extents > MIN_INNER * extent
        if within.any():
            inner = np.argmax(np.where(within, extents, 0))
            angles = np.arctan2(*(np.argwhere(labels == i + 1) - middles[inner]).T)
            directions = np.histogram(angles, 32, (-np.pi, np.pi))[0] > 0
            around[i] = directions.mean() > MIN_AROUND
    return around


# ---- From ink to MNIST's geometry --------------------------------------------------------


def draw_as_mnist(ink: np.ndarray, small: bool) -> np.ndarray:
    """Draw cropped ink, (H, W), as MNIST does, but softer: (28, 28) in 0..1.

    The edges of pens and of cameras differ, and tell no digit.
    """
    image = draw_sharply(ink, small)
    for axis in (0, 1):
        image = scipy.ndimage.correlate1d(image, SOFT, axis, mode="constant")
    return image


def draw_sharply(ink: np.ndarray, small: bool) -> np.ndarray:
    """Draw cropped ink, (H, W), as MNIST does: (28, 28) in 0..1.

    The aspect is kept, the longer side is 20 px, and the centre of mass is in the middle (LeCun et
    al. 1998). Strokes much thinner or fatter than MNIST's are drawn anew, nearer to its 2.5 px:
    at five times the size, by the distance to the edge of the stroke. That would tear a small
    digit, which is shape in gray. Of its strokes only hairlines and blocks are drawn anew.
    """
    scale = FINE * BOX_SIZE / max(ink.shape)
    fine = resize(ink, ink.shape[0] * scale, ink.shape[1] * scale)
    width = float(np.median(stroke_widths(fine > 0.5))) / FINE
    min_width, max_width = STROKE_WIDTHS
    grow = (np.clip(width, min_width, MAX_SMALL_WIDTH if small else max_width) - width) / 2
    if small and (1 - LENIENT) * min_width < width < (1 + LENIENT) * MAX_SMALL_WIDTH:
        grow = 0.0
    if grow:
        scale = FINE * (BOX_SIZE - 2 * grow) / max(ink.shape)
        fine = resize(ink, ink.shape[0] * scale, ink.shape[1] * scale)
    fine = np.pad(fine, 2 * FINE)
    if abs(grow) > MIN_GROWTH:
        inside = fine > 0.5
        edge = scipy.ndimage.distance_transform_edt(~inside)
        edge -= scipy.ndimage.distance_transform_edt(inside)
        fine = 0.5 + (grow * FINE - edge) / FINE
    fine = np.clip(fine, 0, 1)
    return center(fine[bounding_box(fine > 0.2, margin=0)])


def unstretch(ink: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """Narrow the ink of a square picture, cropped to (H, W), that it fills.

    Some data sets stretch each digit to fill a square: a 1, whose stroke is wide then, most of all.
    """
    height, width = ink.shape
    inked = np.pad(ink > 0.5, ((0, 0), (1, 1)))
    runs = np.diff(np.nonzero(np.diff(inked.astype(np.int8)))[1])[::2]  # along the rows
    if (height, width) != picture or height != width or height < 12 or not runs.size:
        return ink
    return resize(
        ink, height, width * min(TYPICAL_WIDTH, MAX_STRETCHED_WIDTH * height / np.median(runs))
    )


def stroke_widths(mask: np.ndarray) -> np.ndarray:
    """Return the widths of the strokes of a mask, along their ridges: twice the depth."""
    deep = depth(mask)
    ridge = deep[(deep == scipy.ndimage.maximum_filter(deep, 5)) & mask]
    return 2 * ridge if ridge.size else np.ones(1)


def center(fine: np.ndarray) -> np.ndarray:
    """Average fine ink down to (28, 28), with its centre of mass at (14, 14)."""
    side = FINE * IMAGE_SIZE
    canvas = np.zeros((side, side), np.float32)
    total = max(fine.sum(), 1e-6)
    place = []
    for axis, length in enumerate(fine.shape):
        mean = fine.sum(axis=1 - axis) @ (np.arange(length) + 0.5) / total
        start = int(np.clip(round(FINE * 14.5 - mean), 0, side - length))
        place.append(slice(start, start + length))
    canvas[tuple(place)] = fine
    return canvas.reshape(IMAGE_SIZE, FINE, IMAGE_SIZE, FINE).mean(axis=(1, 3))
