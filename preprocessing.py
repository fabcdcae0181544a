"""Make any image look like one of MNIST's: gray values, then ink, then 28x28 pixels.

The network knows MNIST's digits only. So a photograph, a scan or a drawing is decoded, its ink
is found, and drawn anew in MNIST's geometry.
"""

import io
import os
from typing import BinaryIO

import numpy as np
import scipy
import torch
from PIL import Image, ImageOps

from model import IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD, normalize

MAX_PIXELS = 100_000_000  # of an image; more is refused before it is decoded
PAPER_SIZE = 64  # pixels of the longer side of an image in which paper is looked for
WORK_SIZE = 320  # pixels of the longer side of an image in which ink is looked for
LEAST_CONTRAST = 0.06  # between ink and paper, of the whole range
BOX_SIZE = 20  # pixels of the longer side of a digit of MNIST
STROKE_WIDTHS = (2.0, 3.6)  # pixels; what most of MNIST is within
FINE = 5  # times the resolution of MNIST at which strokes are drawn

# A path, the bytes of an image file, a binary file object, a PIL image, an array or a tensor.
# Arrays and tensors hold integers 0..255, or floats 0..1, in shape (H, W), (1, H, W), (H, W, 1),
# (H, W, 3: RGB) or (H, W, 4: RGBA).
ImageLike = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor


def preprocess(image: ImageLike) -> torch.Tensor:
    """Turn one image into what the network reads: float32, (1, 28, 28), normalized.

    Raises:
        ValueError: it is no image, damaged, blank, or of a wrong shape, type or range.
        OSError: the file can't be read; FileNotFoundError if there is none.
    """
    try:
        pixels = to_mnist(to_grayscale(image))
    except ValueError as error:
        if isinstance(image, str | os.PathLike):
            raise ValueError(f"{os.fspath(image)}: {error}") from error
        raise
    return normalize(torch.from_numpy(255 * pixels).unsqueeze(0))[0]  # (1, 28, 28)


def preprocess_batch(images: list[ImageLike]) -> torch.Tensor:
    """Turn N images into (N, 1, 28, 28), as `preprocess` does; those like MNIST's all at once."""
    if all(
        isinstance(image, np.ndarray | torch.Tensor)
        and image.shape == (IMAGE_SIZE, IMAGE_SIZE)
        and image.dtype in (np.uint8, torch.uint8)
        for image in images
    ):
        pixels = np.stack([image.cpu() if torch.is_tensor(image) else image for image in images])
        if is_mnist_like(pixels.astype(np.float32) / 255).all():
            return normalize(torch.from_numpy(pixels))
    return torch.stack([preprocess(image) for image in images])


def to_image(preprocessed: torch.Tensor) -> Image.Image:
    """Turn what `preprocess` returned back into an image: 28x28, ink white."""
    pixels = preprocessed[0] * (255 * PIXEL_STD) + 255 * PIXEL_MEAN
    return Image.fromarray(pixels.round().clamp(0, 255).byte().numpy())


# ---- From any image to gray values -------------------------------------------------------


def to_grayscale(image: ImageLike) -> np.ndarray:
    """Decode an image of any kind to gray values, float32 (H, W) in 0..1, upright."""
    if isinstance(image, torch.Tensor):
        image = tensor_to_array(image)
    if isinstance(image, np.ndarray):
        image = array_to_image(image)
    if isinstance(image, Image.Image):
        return flatten(image)
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            check_size(*opened.size)
            opened.draft("RGB", (2 * WORK_SIZE, 2 * WORK_SIZE))  # a JPEG is decoded small, fast
            return flatten(opened)
    except Exception as error:  # Pillow's decoders raise nearly every type there is
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no such file, a folder, no permission: the system's own words
        raise ValueError(f"not an image that can be read ({error})") from error


def tensor_to_array(tensor: torch.Tensor) -> np.ndarray:
    """Bring a tensor of any device and dtype to NumPy, which has no bfloat16, say."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def array_to_image(array: np.ndarray) -> Image.Image:
    """Check an array's shape, type and range, and make it a PIL image."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(
            "an image array must have shape (H, W), (1, H, W), (H, W, 1), (H, W, 3) or "
            f"(H, W, 4), not {array.shape}"
        )
    check_size(array.shape[1], array.shape[0])
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if array.dtype.kind == "f" or array.dtype == bool:
        array = array * 255.0
    elif array.dtype.kind not in "iu":
        raise ValueError(f"an image array must hold numbers, not {array.dtype}")
    if not (array.min() >= 0 and array.max() <= 255):  # NaN fails this too
        raise ValueError("pixel values must be integers in 0..255 or floats in 0..1")
    return Image.fromarray(array.round().astype(np.uint8))


def check_size(width: int, height: int) -> None:
    """Refuse, before it is decoded, an image of no pixels, or of more than memory is good for."""
    if not width or not height:
        raise ValueError(f"the image has no pixels: its size is {width} x {height}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"the image is too large: {width} x {height} pixels, over 100 million")


def flatten(image: Image.Image) -> np.ndarray:
    """Turn a PIL image upright, and make it gray: float32 (H, W) in 0..1, not too large."""
    check_size(*image.size)
    factor = max(image.size) // (2 * WORK_SIZE)
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip them to 255, not scale them
        values = np.asarray(image)
        values = values >> 8 if values.max() > 255 else values
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode in ("1", "P", "PA"):  # can't be averaged as they are
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if factor > 1 and min(image.size) >= factor:
        image = image.reduce(factor)
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = flatten_transparency(image.convert("RGBA"))
    if image.mode == "L":
        return np.asarray(image, np.float32) / 255
    return most_contrast(image.convert("RGB"))


def flatten_transparency(image: Image.Image) -> Image.Image:
    """Lay an RGBA image over a colour that keeps its ink visible, whatever colour that is.

    If the opaque part has one colour, its shape is the ink: it is laid over white if it is dark,
    over black if it is light. Otherwise it is a picture of its own, such as a card, and the
    transparent part takes on the tone along its edge.
    """
    pixels = np.asarray(image)
    alpha = pixels[:, :, 3]
    if alpha.min() == 255:
        return image.convert("RGB")
    gray = np.asarray(image.convert("RGB").convert("L"))
    opaque = alpha > 127
    inner = scipy.ndimage.binary_erosion(opaque, iterations=3, border_value=1)
    tones = gray[inner if inner.any() else opaque]  # edges may hold what was there before
    if tones.size in (0, gray.size):
        ground = 255
    elif np.subtract(*np.percentile(tones, (99.9, 0.1))) < 64:
        ground = 0 if np.median(tones) > 127 else 255
    else:
        ground = int(np.median(gray[opaque & ~inner])) if (opaque & ~inner).any() else 255
    base = Image.new("RGBA", image.size, (ground, ground, ground, 255))
    return Image.alpha_composite(base, image).convert("RGB")


def most_contrast(image: Image.Image) -> np.ndarray:
    """Return the gray values, in 0..1, that set coloured ink off best from coloured paper.

    That is the luminance as a rule, and one of red, green and blue where it shows twice the
    contrast: red ink on green paper may have no contrast in luminance at all.
    """
    gray = np.asarray(image.convert("L"), np.float32) / 255
    small = image.resize([min(side, 64) for side in image.size], Image.BOX)
    bands = [small.convert("L"), *small.split()]
    spreads = [np.subtract(*np.percentile(np.asarray(band, np.float32), (99, 1))) for band in bands]
    best = int(np.argmax(spreads))
    if best and spreads[best] > 2 * spreads[0]:
        return np.asarray(image.getchannel(best - 1), np.float32) / 255
    return gray


# ---- From gray values to ink -------------------------------------------------------------


def is_mnist_like(gray: np.ndarray) -> np.ndarray:
    """Whether images already have MNIST's size, polarity and geometry.

    In each of the 60,000 training images the ink spans 19 or 20 px and has its centre of mass
    within a pixel of (14, 14), counted from 0. Takes gray values in 0..1, (..., H, W), and
    returns a bool for each image.
    """
    if gray.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        return np.zeros(gray.shape[:-2], bool)
    total = gray.sum(axis=(-2, -1))
    places = np.arange(IMAGE_SIZE) - 14
    alike = (gray.max(axis=(-2, -1)) >= 0.5) & (total < 0.5 * IMAGE_SIZE**2)
    longest = 0
    for axis in (-2, -1):
        offset = gray.sum(axis=axis) @ places
        alike &= abs(offset) <= total
        inked = gray.max(axis=axis) > 0.1  # (..., 28)
        span = IMAGE_SIZE - inked.argmax(axis=-1) - inked[..., ::-1].argmax(axis=-1)
        longest = np.maximum(longest, span)
    return alike & (longest >= 17) & (longest <= 21)


def find_ink(gray: np.ndarray) -> np.ndarray:
    """Return how much ink each pixel holds: float32 (H, W), 0 for paper, above 0.5 for ink.

    Raises ValueError if there is none.
    """
    light = gray if ink_is_light(gray) else 1 - gray  # ink is light from here on
    size = max(light.shape)
    light = scipy.ndimage.gaussian_filter(light, 0.002 * size)
    ink = subtract_paper(light)
    below = ink[ink < 0]  # where paper strays to, and ink never does
    noise = np.sqrt((below**2).mean()) if below.size else 0.0
    few = max(8, int(0.0005 * ink.size))
    level = np.partition(ink.ravel(), -few)[-few]
    if level < max(LEAST_CONTRAST, 5 * noise):
        raise ValueError("the image is blank: no ink found")
    ink = (ink / level).clip(0, 1)
    return ink / (2 * min(max(otsu(ink), 0.25), 0.45))


def otsu(values: np.ndarray) -> float:
    """Return the threshold that parts values in 0..1 into two classes best (Otsu 1979)."""
    counts, edges = np.histogram(values, 64, (0, 1))
    centers = (edges[1:] + edges[:-1]) / 2
    below = counts.cumsum()
    sums = (counts * centers).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / below, (sums[-1] - sums) / (below[-1] - below)
    between = below * (below[-1] - below) * (means[0] - means[1]) ** 2.0
    return float(edges[1 + np.nanargmax(between[:-1])]) if np.isfinite(between[:-1]).any() else 0.5


def ink_is_light(gray: np.ndarray) -> bool:
    """Whether the ink is lighter than the paper. Ink covers less: it is where values are skewed to.

    Shading is taken out first. Where strokes are so fat that neither side is rare, the border
    decides: it is mostly paper.
    """
    gray = resize_to(gray, PAPER_SIZE)
    detail = gray - scipy.ndimage.gaussian_filter(gray, 0.15 * max(gray.shape))
    skew = (detail**3).mean() / max((detail**2).mean(), 1e-12) ** 1.5
    if abs(skew) > 0.5:
        return skew > 0
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    return np.median(border) + np.median(gray) < gray.min() + gray.max()


def subtract_paper(light: np.ndarray) -> np.ndarray:
    """Return how far each pixel is from the paper around it, 0 for none, 1 for white on black.

    The paper's tone is the local mean of what is not ink, so it follows shade and shadows.
    Dividing by what is left of the range makes ink in the shade as strong as ink in the light.
    """
    small = resize_to(light, PAPER_SIZE)  # paper is smooth: this is where the time would go
    slope = fit_plane(small)
    small = small - slope
    # To begin with, the darker quarter of a neighbourhood half as wide as the image is paper.
    tiny = resize_to(small, PAPER_SIZE // 2)
    paper = resize(scipy.ndimage.percentile_filter(tiny, 25, size=PAPER_SIZE // 4), *small.shape)
    few = max(4, small.size // 500)
    for sigma in (0.16, 0.12, 0.1):
        ink = (small - paper) / np.maximum(1 - paper - slope, 0.1)
        mask = (ink < 0.35 * np.partition(ink.ravel(), -few)[-few]).astype(np.float32)
        mean = (small * mask).sum() / max(mask.sum(), 1)  # stands in far from all paper
        sigma *= max(small.shape)
        weight = scipy.ndimage.gaussian_filter(mask, sigma) + 1e-3
        paper = (scipy.ndimage.gaussian_filter(small * mask, sigma) + 1e-3 * mean) / weight
    paper = resize(paper + slope, *light.shape)
    return (light - paper) / np.maximum(1 - paper, 0.1)


def fit_plane(values: np.ndarray) -> np.ndarray:
    """Return the plane, float32 (H, W), that most of the values lie near: light from one side.

    Least absolute deviations, by reweighted least squares: ink is no more than an outlier.
    """
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]]
    terms = np.stack([np.ones(values.size), rows.ravel(), columns.ravel()], axis=1)
    target, weights = values.ravel().astype(np.float64), np.ones(values.size)
    for _ in range(6):
        scaled = terms * weights[:, None]
        plane = terms @ np.linalg.lstsq(scaled, target * weights, rcond=None)[0]
        weights = 1 / np.sqrt(np.abs(target - plane) + 0.01)
    return plane.reshape(values.shape).astype(np.float32)


def remove_rules(mask: np.ndarray) -> np.ndarray:
    """Take the lines of ruled or squared paper out of a mask of ink, (H, W).

    A line is thin and runs across at least 80% of the image, straight but perhaps a little
    askew. Where a stroke crosses one, the gap is closed again.
    """
    for axis in (0, 1):
        across = mask if axis == 0 else mask.T
        height, width = across.shape
        thick = max(3, height // 40)
        near = scipy.ndimage.binary_dilation(across, np.ones((3, 1)))
        runs = opening_along_rows(near, max(9, width // 8))
        labels, _ = scipy.ndimage.label(runs, np.ones((3, 3)))
        lines = np.zeros_like(across)
        for i, (rows, columns) in enumerate(scipy.ndimage.find_objects(labels), start=1):
            run = labels[rows, columns] == i
            wide = columns.stop - columns.start
            if wide > 0.8 * width and np.median(run.sum(axis=0)) <= thick + 2:
                lines[rows, columns] |= run
        if lines.any():
            kept = across & ~lines
            bridge = scipy.ndimage.binary_closing(kept, np.ones((2 * thick + 3, 1)))
            kept |= bridge & lines
            mask = kept if axis == 0 else kept.T
    return mask


def opening_along_rows(mask: np.ndarray, length: int) -> np.ndarray:
    """Keep the horizontal runs of at least so many pixels: a morphological opening.

    The same as scipy.ndimage.binary_opening with a structure of (1, length), in a tenth of the
    time: a sliding minimum costs the same for every length.
    """
    sliding = {"axis": 1, "mode": "constant"}
    eroded = scipy.ndimage.minimum_filter1d(mask.view(np.uint8), length, **sliding)
    back = length % 2 - 1  # the middle of an even length lies between two pixels
    return scipy.ndimage.maximum_filter1d(eroded, length, origin=back, **sliding).view(bool)


def choose_digit(ink: np.ndarray) -> np.ndarray:
    """Return the mask, (H, W), of the strokes that make the digit.

    Of several digits or stains the largest near the middle wins. Pieces that lie close by, for
    its size, belong to it: broken strokes, a 5 and its hat. Specks go, and so do the rules of
    the paper and the dark edges of a photograph.
    """
    dark = ink > 0.5
    strong = remove_rules(dark)
    if not strong.any():
        strong = dark
    # Weaker ink counts right beside it; no further, or faint rules would come along.
    mask = strong | (~dark & (ink > 0.33) & scipy.ndimage.binary_dilation(strong, iterations=8))
    labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    weights, numbers = ink.clip(0, 1), np.arange(1, count + 1)
    masses = scipy.ndimage.sum_labels(weights, labels, numbers)
    middles = np.array(scipy.ndimage.center_of_mass(weights, labels, numbers))
    boxes = [[y.start, x.start, y.stop, x.stop] for y, x in scipy.ndimage.find_objects(labels)]
    starts, stops = np.array(boxes, float)[:, :2], np.array(boxes, float)[:, 2:]

    # What touches the edge of the image and lies off its middle is seldom the digit.
    sides = (starts == 0).sum(axis=1) + (stops == ink.shape).sum(axis=1)
    off = np.hypot(*(2 * middles / ink.shape - 1).T).clip(0, 1)
    off_middle, in_middle = np.array([[1, 0.3, 0.1, 0.1, 0.1], [1, 1, 1, 0.5, 0.1]])[:, sides]
    penalty = np.where(off > 0.35, off_middle, in_middle)
    scores = masses * penalty * (1 - 0.4 * off)
    chosen = numbers == 1 + scores.argmax()
    large = (stops - starts)[chosen].max() > 0.6 * max(ink.shape)  # then it may lie in pieces there
    fits = (masses > 0.04 * masses[chosen]) & (large | (sides <= sides[chosen]))
    while True:
        start, stop = starts[chosen].min(axis=0), stops[chosen].max(axis=0)
        gaps = np.maximum(starts - stop, start - stops).max(axis=1)
        near = chosen | (fits & (gaps < 0.15 * (stop - start).max()))
        if (near == chosen).all():
            return np.isin(labels, numbers[chosen])
        chosen = near


def is_sheet(mask: np.ndarray) -> bool:
    """Whether a mask, (H, W), is a sheet of paper on a table, with a thin stroke as its hole."""
    rows, columns = box = bounding_box(mask)
    inside = rows.start and columns.start and rows.stop < len(mask) and columns.stop < len(mask[0])
    filled = scipy.ndimage.binary_fill_holes(mask[box])
    labels, count = scipy.ndimage.label(filled & ~mask[box], np.ones((3, 3)))
    if not inside or filled.mean() < 0.7 or not count:
        return False
    hole = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    hole = hole[bounding_box(hole)]
    width = 2 * scipy.ndimage.distance_transform_edt(np.pad(hole, 1)).max()
    return bool(width < 0.25 * max(hole.shape) and max(hole.shape) > 0.15 * max(filled.shape))


# ---- From ink to MNIST's geometry --------------------------------------------------------


def resize(ink: np.ndarray, height: float, width: float) -> np.ndarray:
    """Scale ink, (H, W), anti-aliased, to at least 1 px each way."""
    size = (max(1, round(width)), max(1, round(height)))
    return np.asarray(Image.fromarray(ink.astype(np.float32)).resize(size, Image.BICUBIC))


def fit(ink: np.ndarray) -> np.ndarray:
    """Draw cropped ink, (H, W), as MNIST does: (28, 28) in 0..1.

    The aspect is kept, the longer side is 20 px, the centre of mass is in the middle (LeCun et
    al. 1998). Strokes much thinner or fatter than MNIST's are drawn anew, nearer to its 2.5 px:
    at five times the size, by the distance to the edge of the stroke.
    """
    scale = FINE * BOX_SIZE / max(ink.shape)
    fine = resize(ink, ink.shape[0] * scale, ink.shape[1] * scale)
    width = stroke_width(fine > 0.5) / FINE
    grow = (np.clip(width, *STROKE_WIDTHS) - width) / 2
    scale = FINE * (BOX_SIZE - 2 * grow) / max(ink.shape)
    fine = np.pad(resize(ink, ink.shape[0] * scale, ink.shape[1] * scale), 2 * FINE)
    if abs(grow) > 0.05:
        inside = fine > 0.5
        edge = scipy.ndimage.distance_transform_edt(~inside)
        edge -= scipy.ndimage.distance_transform_edt(inside)
        fine = np.clip(0.5 + (grow * FINE - edge) / FINE, 0, 1)
    fine = np.clip(fine, 0, 1)
    rows, columns = (np.flatnonzero(fine.max(axis=axis) > 0.2) for axis in (1, 0))
    fine = fine[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return center(fine)


def stroke_width(mask: np.ndarray) -> float:
    """Return the usual width of the strokes in a mask: twice the distance from ridge to edge."""
    depth = scipy.ndimage.distance_transform_edt(np.pad(mask, 1))
    ridge = depth[(depth == scipy.ndimage.maximum_filter(depth, 5)) & (depth > 0)]
    return 2 * float(np.median(ridge)) if ridge.size else 1.0


def center(fine: np.ndarray) -> np.ndarray:
    """Average fine ink down to (28, 28), with its centre of mass at (14, 14)."""
    side = FINE * IMAGE_SIZE
    canvas = np.zeros((side, side), np.float32)
    total = max(fine.sum(), 1e-6)
    offsets = []
    for axis, length in enumerate(fine.shape):
        mean = fine.sum(axis=1 - axis) @ (np.arange(length) + 0.5) / total
        offset = round(FINE * 14.5 - mean)
        offsets.append(int(np.clip(offset, 0, side - length)))
    top, left = offsets
    canvas[top : top + fine.shape[0], left : left + fine.shape[1]] = fine
    return canvas.reshape(IMAGE_SIZE, FINE, IMAGE_SIZE, FINE).mean(axis=(1, 3))


def to_mnist(gray: np.ndarray) -> np.ndarray:
    """Turn gray values, (H, W) in 0..1, into an image like MNIST's: (28, 28) in 0..1, ink 1.

    One that is like that already is returned as it is. Raises ValueError if there is no ink.
    """
    if is_mnist_like(gray):
        return gray
    for _ in range(3):
        small = resize_to(gray, WORK_SIZE)
        if small.max() - small.min() < LEAST_CONTRAST:
            raise ValueError("the image is blank: no ink found")
        ink = find_ink(small)
        digit = choose_digit(ink)
        box = bounding_box(digit)
        extent = max(side.stop - side.start for side in box)
        if is_sheet(digit):
            margin = -0.08 * extent  # look again, inside
        elif extent * 3 < max(small.shape):
            margin = 0.4 * extent  # look again, closer
        else:
            break
        zoom = max(gray.shape) / max(small.shape)
        ends = [(max(0, side.start - margin), side.stop + margin) for side in box]
        gray = gray[tuple(slice(int(start * zoom), int(stop * zoom) + 1) for start, stop in ends)]
    soft = np.clip((ink - 0.2) / 0.6, 0, 1)
    soft[~scipy.ndimage.binary_dilation(digit, iterations=2)] = 0
    return fit(soft[box])


def resize_to(gray: np.ndarray, size: int) -> np.ndarray:
    """Scale gray values so that the longer side is `size`."""
    scale = size / max(gray.shape)
    if abs(scale - 1) < 0.1:
        return gray
    return resize(gray, gray.shape[0] * scale, gray.shape[1] * scale)


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns that hold a mask, with a pixel to spare."""
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(max(0, span[0] - 1), span[-1] + 2) for span in spans)
