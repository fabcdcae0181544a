"""Preprocessing: find the digit in any image, and draw it as MNIST draws digits, 28x28 pixels.

The network knows only MNIST's digits. So the ink of a photograph, a scan or a drawing is found
and drawn in MNIST's geometry.
"""

import numpy as np
import scipy
import torch
from PIL import Image

from model import IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD, normalize
from reading.image_io import WORK_SIZE, ImageLike, naming, tensor_to_array, to_grayscale, to_uint8
from reading.ink import (
    MIN_CONTRAST,
    NEIGHBOURS,
    SMALL,
    WEAK,
    border,
    bounding_box,
    clean_ink,
    depth,
    dilate,
    erode,
    find_ink,
    opening,
    otsu,
    remove_ruled_lines,
    resize,
    resize_to,
)

SHAPE = (IMAGE_SIZE, IMAGE_SIZE)
BOX_SIZE = 20  # pixels of the longer side of a digit of MNIST (LeCun et al. 1998)
STROKE_WIDTHS = (2.0, 3.6)  # pixels, minimum and maximum of most of MNIST
MAX_SMALL_WIDTH = 4.2  # pixels of the strokes of a small digit, which may be blurred
MAX_STRETCHED_WIDTH = 0.25  # of a stroke, as a share of the height; a wider one was stretched
SHEET_SIZE = 128  # pixels of the longer side, or more, of the image in which a sheet is looked for
MAX_SHEETS = 2  # a frame may be around a frame
MAX_LOOKS = 3  # at a digit, each closer than the one before
CLOSE = 3  # a look is close if the image is at most so many times as large as the digit
FINE = 5  # strokes are drawn at so many times the resolution of MNIST
PLACES = np.indices(SHAPE).reshape(2, -1) - 14.0  # from MNIST's middle
MOMENTS = np.stack([np.ones(IMAGE_SIZE**2), *PLACES], axis=1).astype(np.float32)  # (784, 3)


def preprocess(image: ImageLike) -> torch.Tensor:
    """Turn one image into what the network reads: float32, (1, 28, 28), normalized.

    Raises ValueError if it is blank, and whatever `to_grayscale` raises.
    """
    with naming(image):
        pixels = to_mnist(to_grayscale(image)[0])
    return normalize(torch.from_numpy(255 * pixels).unsqueeze(0))[0]  # (1, 28, 28)


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
    for i in np.flatnonzero(~is_mnist_like(pixels.astype(np.float32) / 255)):
        batch[i] = preprocess(pixels[i])
    return batch


def to_image(preprocessed: torch.Tensor) -> Image.Image:
    """Turn what `preprocess` returned back into an image: 28x28, ink white."""
    pixels = preprocessed[0] * (255 * PIXEL_STD) + 255 * PIXEL_MEAN
    return Image.fromarray(pixels.round().clamp(0, 255).byte().numpy())


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
    inked, longest = gray > 0.1, 0
    for axis in (-2, -1):
        lines = inked.any(axis=axis)  # (..., 28)
        span = IMAGE_SIZE - lines.argmax(axis=-1) - lines[..., ::-1].argmax(axis=-1)
        longest = np.maximum(longest, span)
    inked = gray > 0.25
    pairs = inked[..., 1:, :] & inked[..., :-1, :]
    squares = pairs[..., 1:] & pairs[..., :-1]
    thick = squares.sum(axis=(-2, -1)) > 0.04 * inked.sum(axis=(-2, -1))
    return alike & (longest >= 17) & (longest <= 21) & thick


def find_sheet(gray: np.ndarray) -> np.ndarray | None:
    """Cut the inside of a frame, of bars or margins, or a sheet on a table out of an image, (H, W).

    The surroundings have one tone. A sheet fills a rectangle, perhaps a little turned, as no
    digit does, and something is on it. Returns it without its edge, its own tone around it, or
    None if there is no sheet.
    """
    corners = gray[[0, 0, -1, -1], [0, -1, 0, -1]]
    if np.ptp(corners) > 0.2:
        return None
    step = max(1, max(gray.shape) // SHEET_SIZE)
    whole, gray = gray, gray[::step, ::step]
    far = np.abs(gray - np.median(corners))
    mask = largest_component(far > otsu(far))
    if mask.mean() < 0.05:
        return None
    inner = mask[bounding_box(mask)]
    extent = max(inner.shape)
    if min(inner.shape) < 0.3 * extent or inner.mean() < 0.4:  # a digit, or the outline of a box
        return None
    gap = extent // 6 | 1  # what is written on it may run over its edge
    filled = scipy.ndimage.binary_fill_holes(mask | erode(dilate(mask, gap, gap), gap, gap))
    sheet = erode(filled, 3, 3)
    points = np.argwhere(filled & ~sheet)
    angles = np.radians(np.arange(-15, 16, 3))
    along = points @ np.array([np.cos(angles), np.sin(angles)])
    upward = points @ np.array([-np.sin(angles), np.cos(angles)])
    area = ((np.ptp(along, axis=0) + 1) * (np.ptp(upward, axis=0) + 1)).min()
    if filled.sum() < 0.9 * area or not sheet.any():
        return None
    far = np.where(sheet, np.abs(gray - np.median(gray[sheet])), 0)
    on_it = largest_component(far > max(otsu(far), MIN_CONTRAST))
    extents = [np.ptp(places) for places in np.nonzero(on_it) if places.size]
    if max(extents, default=0) <= 0.15 * extent:
        return None
    box = bounding_box(sheet)
    cut = whole[tuple(slice(step * side.start, step * side.stop) for side in box)]
    inside = resize(sheet[box], *cut.shape) > 0.5
    return np.where(inside, cut, np.median(cut[inside]))


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the mask of the largest connected component of a mask, (H, W)."""
    labels, _ = scipy.ndimage.label(mask, NEIGHBOURS)
    sizes = np.bincount(labels[mask], minlength=1)
    return mask & (labels == sizes.argmax())


class Components:
    """The connected components of a mask of ink, (H, W): N labels, masses, middles and boxes."""

    def __init__(self, mask: np.ndarray, ink: np.ndarray) -> None:
        self.labels, count = scipy.ndimage.label(mask, NEIGHBOURS)
        places = np.nonzero(mask)
        labels, weights = self.labels[places], ink[places].clip(0, 1)
        self.masses = np.bincount(labels, weights, count + 1)[1:]
        moments = [np.bincount(labels, weights * place, count + 1)[1:] for place in places]
        self.middles = np.stack(moments, axis=1) / self.masses[:, None]
        self.slices = scipy.ndimage.find_objects(self.labels)
        self.strengths = np.array([ink[box].max() for box in self.slices])
        boxes = [[y.start, x.start, y.stop, x.stop] for y, x in self.slices]
        boxes = np.array(boxes, float).reshape(-1, 4)
        self.starts, self.stops = boxes[:, :2], boxes[:, 2:]
        self.extents = (self.stops - self.starts).max(axis=1)


def find_surroundings(parts: Components) -> np.ndarray:
    """Return which components surround the digit or underline it: rings, boxes, frames."""
    around = np.zeros(len(parts.masses), bool)
    for i in np.argsort(-parts.extents):
        start, stop, extent = parts.starts[i], parts.stops[i], parts.extents[i]
        within = (parts.starts > start).all(axis=1) & (parts.stops < stop).all(axis=1)
        within &= parts.extents > 0.25 * extent
        if within.any():
            largest = np.argmax(np.where(within, parts.masses, 0))
            rows, columns = np.nonzero(parts.labels[parts.slices[i]] == i + 1)
            y, x = start - parts.middles[largest]
            angles = np.arctan2(rows + y, columns + x)
            # What surrounds the largest within lies in at least three of four directions from it.
            around[i] = (np.histogram(angles, 32, (-np.pi, np.pi))[0] > 0).mean() > 0.75
        height, width = stop - start
        if height < 0.25 * width:
            above = parts.stops[:, 0] < start[0]
            overlap = np.minimum(parts.stops[:, 1], stop[1])
            overlap -= np.maximum(parts.starts[:, 1], start[1])
            wide = parts.stops[:, 1] - parts.starts[:, 1]
            above &= (overlap > 0.6 * wide) & (parts.extents > 0.4 * width)
            above &= (wide < width) | (start[0] - parts.stops[:, 0] > 0.06 * parts.extents)
            around[i] |= above.any()
    return around


def choose_digit(ink: np.ndarray) -> np.ndarray:
    """Return the mask, (H, W), of the strokes that make the digit.

    Surroundings and ruled lines are removed. The largest component near the middle is chosen. What
    is close to it for its size belongs to it: broken strokes, or a 5 and its hat.
    """
    mask = remove_ruled_lines(ink > WEAK)
    # Far from strong ink, weak ink counts only where it is as wide as a stroke, unlike ruled lines.
    mask &= opening(mask, 5, 5) | dilate(mask & (ink > 0.5), 15, 15)
    if not mask.any():
        raise ValueError("the image is blank: no ink found")
    parts = Components(fill_outlines(mask), ink)
    around = find_surroundings(parts)
    starts, stops, masses = parts.starts, parts.stops, parts.masses

    # A component that touches the edge of the image or lies off its middle is seldom the digit.
    sides = (starts == 0).sum(axis=1) + (stops == ink.shape).sum(axis=1)
    off = np.hypot(*(2 * parts.middles / ink.shape - 1).T).clip(0, 1)
    penalty = np.array([1, 0.3, 0.1, 0.1, 0.1])[sides]
    scores = masses * penalty * (1 - 0.4 * off) * ~around
    chosen = np.arange(len(scores)) == scores.argmax()
    eligible = (masses > 0.04 * masses[chosen]) & (sides <= sides[chosen]) & ~around
    eligible &= parts.strengths > 0.7 * parts.strengths[chosen]  # the edge of a sheet is weaker
    while True:
        start, stop = starts[chosen].min(axis=0), stops[chosen].max(axis=0)
        gaps = np.maximum(starts - stop, start - stops)
        reach = np.maximum((stop - start).max(), parts.extents)
        close = gaps.max(axis=1) < 0.15 * reach
        # One may be a hat far above its 5, or the 5 below its hat.
        overlaps = np.minimum(stops, stop)[:, 1] - np.maximum(starts, start)[:, 1]
        narrower = np.minimum(stops - starts, stop - start)[:, 1]
        stacked = (gaps[:, 0] < 0.45 * reach) & (overlaps > 0.6 * narrower)
        stacked &= masses > 0.15 * masses[chosen].sum()
        near = chosen | (eligible & (close | stacked))
        if (near == chosen).all():
            return np.concatenate([[False], chosen])[parts.labels]
        chosen = near


def fill_outlines(mask: np.ndarray) -> np.ndarray:
    """Fill the strokes of a digit that is drawn as an outline, in a mask, (H, W).

    The space between the two sides of an outline is a stroke itself: long for its width, and slim
    everywhere. The space between a ring or a box and the digit in it is long as well. But it fills
    an ellipse together with the digit, and is wide in places.
    """
    labels, _ = scipy.ndimage.label(~mask)
    outside = np.unique(border(labels))
    for i, box in enumerate(scipy.ndimage.find_objects(labels), start=1):
        stroke = labels[box] == i
        extent = max(stroke.shape)
        if i in outside or extent < 0.2 * max(mask.shape):
            continue
        widths = stroke_widths(stroke)
        width, max_width = np.median(widths), widths.max()
        if stroke.sum() < 5.5 * width**2 or max_width > 0.275 * extent:
            continue
        full = scipy.ndimage.binary_fill_holes(stroke).mean()
        around = full > (0.8 if max_width < 0.2 * extent else 0.7)
        if not around and np.median(stroke_widths(mask)) < 1.2 * width:
            mask = mask.copy()
            mask[box] |= stroke
    return mask


# ---- From ink to MNIST's geometry --------------------------------------------------------


def draw_as_mnist(ink: np.ndarray, small: bool) -> np.ndarray:
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
    if small and 0.8 * min_width < width < 1.2 * MAX_SMALL_WIDTH:
        grow = 0.0
    if grow:
        scale = FINE * (BOX_SIZE - 2 * grow) / max(ink.shape)
        fine = resize(ink, ink.shape[0] * scale, ink.shape[1] * scale)
    fine = np.pad(fine, 2 * FINE)
    if abs(grow) > 0.05:
        inside = fine > 0.5
        edge = scipy.ndimage.distance_transform_edt(~inside)
        edge -= scipy.ndimage.distance_transform_edt(inside)
        fine = 0.5 + (grow * FINE - edge) / FINE
    fine = np.clip(fine, 0, 1)
    return center(fine[bounding_box(fine > 0.2, margin=0)])


def unstretch(ink: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """Narrow the ink of a square picture, cropped to (H, W), if its strokes are too wide.

    Some data sets stretch each digit to fill a square, which makes a 1 as wide as any other.
    """
    height, width = ink.shape
    inked = np.pad(ink > 0.5, ((0, 0), (1, 1)))
    runs = np.diff(np.nonzero(np.diff(inked.astype(np.int8)))[1])[::2]  # along the rows
    if (height, width) != picture or height != width or height < 12 or not runs.size:
        return ink
    return resize(ink, height, width * min(1, MAX_STRETCHED_WIDTH * height / np.median(runs)))


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


def to_mnist(gray: np.ndarray) -> np.ndarray:
    """Turn gray values, (H, W) in 0..1, into an image like MNIST's: (28, 28) in 0..1, ink 1.

    An image that is like MNIST's already is returned as it is.
    """
    if is_mnist_like(gray):
        return gray
    for _ in range(MAX_SHEETS):
        if (sheet := find_sheet(gray)) is None:
            break
        gray = sheet
    if max(gray.shape) <= SMALL and (ink := clean_ink(gray)) is not None:
        return draw_as_mnist(unstretch(ink[bounding_box(ink > WEAK)], ink.shape), small=True)
    for look in range(1, MAX_LOOKS + 1):
        work = resize_to(gray, WORK_SIZE)
        zoom = max(gray.shape) / max(work.shape)
        if work.max() - work.min() < MIN_CONTRAST:
            raise ValueError("the image is blank: no ink found")
        ink = find_ink(work, small=max(gray.shape) <= SMALL)
        digit = choose_digit(ink)
        box = bounding_box(digit)
        extent = max(side.stop - side.start for side in box)
        if look == MAX_LOOKS or extent * CLOSE >= max(work.shape):
            break
        margin = 0.4 * extent
        ends = [(max(0, side.start - margin), side.stop + margin) for side in box]
        gray = gray[tuple(slice(int(start * zoom), int(stop * zoom) + 1) for start, stop in ends)]
    # A small digit is shape in gray. Its strokes are left alone, as thresholds would tear them.
    small = extent * max(gray.shape) < 1.2 * BOX_SIZE * max(work.shape)
    return draw_component(ink, digit, small)


def draw_component(ink: np.ndarray, mask: np.ndarray, small: bool) -> np.ndarray:
    """Draw the ink in a mask, (H, W), as MNIST does: (28, 28) in 0..1."""
    box = bounding_box(mask)
    ink, mask = ink[box], mask[box]
    if small:
        soft = ink / ink.max()
    else:  # a weak stroke is measured by its own ink
        strength = scipy.ndimage.maximum_filter(ink, max(3, int(0.08 * max(ink.shape))))
        soft = np.clip((ink / strength.clip(0.5, 1) - 0.2) / 0.6, 0, 1)
    soft[mask & (ink < WEAK)] = 1  # the insides of outlines
    soft[~dilate(mask, *((13, 13) if small else (5, 5)))] = 0
    return draw_as_mnist(soft, small)
