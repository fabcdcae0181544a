"""Make any image look like one of MNIST's: gray values, then ink, then 28x28 pixels.

The network knows MNIST's digits only. So a photograph, a scan or a drawing is decoded, its ink
is found, and drawn anew in MNIST's geometry.
"""

import contextlib
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import scipy
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from checkpoint import open_regular
from model import IMAGE_SIZE, PIXEL_MEAN, PIXEL_STD, normalize

MAX_PIXELS = 100_000_000  # of an image as Pillow holds it, in up to 4 bytes each
MAX_SIDE = 65_535  # pixels; no camera or scanner makes more, and JPEG can't
LARGE = 100_000_000  # bytes of a decoded image, of which there is only one at a time
ONE_AT_A_TIME = threading.RLock()
STRIP = 2**22  # pixels that are converted at once
BY_ROWS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "PPM", "TIFF", "TGA")  # are decoded so
PAPER_SIZE = 64  # pixels of the longer side of an image in which paper is looked for
WORK_SIZE = 256  # pixels of the longer side of an image in which ink is looked for
WEAK = 0.3  # how much ink, in units of twice the threshold, still hangs on to more
LEAST_CONTRAST = 0.06  # between ink and paper, of the whole range
SMALL = 32  # pixels of the longer side of an image that is shape in gray, not strokes
BOX_SIZE = 20  # pixels of the longer side of a digit of MNIST
STROKE_WIDTHS = (2.0, 3.6)  # pixels; what most of MNIST is within
FATTEST = 4.2  # pixels; of the strokes of a small digit
PLACES = np.indices((IMAGE_SIZE, IMAGE_SIZE)).reshape(2, -1) - 14.0  # from MNIST's middle
MOMENTS = np.stack([np.ones(IMAGE_SIZE**2), *PLACES], axis=1).astype(np.float32)  # (784, 3)
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
    with naming(image):
        pixels = to_mnist(to_grayscale(image)[0])
    return normalize(torch.from_numpy(255 * pixels).unsqueeze(0))[0]  # (1, 28, 28)


@contextlib.contextmanager
def naming(image: ImageLike) -> Iterator[None]:
    """Name the file, if it is one, where something is wrong with an image."""
    try:
        yield
    except ValueError as error:
        if isinstance(image, str | os.PathLike):
            raise ValueError(f"{os.fspath(image)}: {error}") from error
        raise


def preprocess_batch(images: list[ImageLike]) -> torch.Tensor:
    """Turn N images into (N, 1, 28, 28), as `preprocess` does; those like MNIST's all at once."""
    images = [tensor_to_array(image) if torch.is_tensor(image) else image for image in images]
    if all(
        isinstance(image, np.ndarray)
        and image.shape == (IMAGE_SIZE, IMAGE_SIZE)
        and image.dtype == np.uint8
        for image in images
    ):
        pixels = np.stack(images)
        if is_mnist_like(pixels.astype(np.float32) / 255).all():
            return normalize(torch.from_numpy(pixels))
    return torch.stack([preprocess(image) for image in images])


def to_image(preprocessed: torch.Tensor) -> Image.Image:
    """Turn what `preprocess` returned back into an image: 28x28, ink white."""
    pixels = preprocessed[0] * (255 * PIXEL_STD) + 255 * PIXEL_MEAN
    return Image.fromarray(pixels.round().clamp(0, 255).byte().numpy())


# ---- From any image to gray values -------------------------------------------------------


def to_grayscale(image: ImageLike) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image of any kind, upright.

    Returns gray values, float32 (H, W) in 0..1, and the width and height of the whole image,
    which may be several times as large.
    """
    # An opened image or file may be in use by another thread, too.
    shared = not isinstance(image, str | os.PathLike | bytes | np.ndarray | torch.Tensor)
    if isinstance(image, torch.Tensor):
        image = tensor_to_array(image)
    if isinstance(image, np.ndarray):
        image = array_to_image(image)
    # Pillow's, about oddities of a file that it can read. Not by catch_warnings: threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    is_path = isinstance(image, str | os.PathLike)
    try:
        with ONE_AT_A_TIME if shared else contextlib.nullcontext():
            if isinstance(image, Image.Image):
                return flatten(image), upright_size(image, image.size)
            source = open_regular(image) if is_path else contextlib.nullcontext(image)
            with (
                source as file,
                Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened,
            ):
                size = opened.size
                opened.draft("RGB", (5 * WORK_SIZE, 5 * WORK_SIZE))  # a JPEG: small, and fast
                memory = decoded_bytes(opened, size)
                check_size(*size, memory)
                with ONE_AT_A_TIME if memory > LARGE else contextlib.nullcontext():
                    upright = upright_size(opened, size)  # not before: a PNG is decoded for it
                    return flatten(opened), upright
    except Exception as error:  # Pillow's decoders raise nearly every type there is
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no such file, a folder, no permission: the system's own words
        unknown = isinstance(error, UnidentifiedImageError)  # its own words name an object
        reason = "its format is not known" if unknown else error
        raise ValueError(f"not an image that can be read ({reason})") from error


def upright_size(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """Return the width and height that an image has when its EXIF orientation is heeded."""
    on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return size[::-1] if on_its_side else size


def tensor_to_array(tensor: torch.Tensor) -> np.ndarray:
    """Bring a tensor of any device and dtype to NumPy, which has no bfloat16, say."""
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except (RuntimeError, TypeError) as error:
        kinds = "sparse, quantized, nested, complex or meta"
        raise ValueError(f"an image tensor must be dense, not {kinds}") from error


def array_to_image(array: np.ndarray) -> Image.Image:
    """Check an array's shape, type and range, and make it a PIL image."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(
            "an image array must have shape (H, W), (1, H, W), (H, W, 1), (H, W, 3) or "
            f"(H, W, 4), not {array.shape}"
        )
    height, width = array.shape[:2]
    check_size(width, height)
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"an image array must hold numbers, not {array.dtype}")
    most = 1 if array.dtype.kind in "fb" else 255
    pixels = np.empty(array.shape, np.uint8)
    for rows in strips(height, max(1, STRIP // width)):
        part = array[rows]
        if not (part.min() >= 0 and part.max() <= most):  # NaN fails this too
            raise ValueError("pixel values must be integers in 0..255 or floats in 0..1")
        pixels[rows] = (part * np.float32(255 / most)).round()
    return Image.fromarray(pixels)


def decoded_bytes(opened: Image.Image, size: tuple[int, int]) -> int:
    """Return what decoding an opened file takes at most; `size` is that before any draft."""
    width, height = opened.size
    memory = 4 * width * height
    if opened.format not in BY_ROWS:  # WebP, say: measured
        return 4 * memory
    if "progressive" in opened.info:  # a JPEG's coefficients, all of them
        return memory + 6 * size[0] * size[1]
    if opened.format == "TIFF" and opened.info.get("compression") != "raw":  # a strip or tile
        tags = opened.tag_v2
        tiled = TiffImagePlugin.TILEWIDTH in tags or TiffImagePlugin.TILELENGTH in tags
        rows = tags.get(TiffImagePlugin.ROWSPERSTRIP, 1 if tiled else height)
        rows = max(tags.get(TiffImagePlugin.TILELENGTH, 0), rows if tiled else min(rows, height))
        columns = max(tags.get(TiffImagePlugin.TILEWIDTH, 0), width)
        bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        return memory + rows * columns * bits * samples // 8
    return memory


def check_size(width: int, height: int, memory: int | None = None) -> None:
    """Refuse, before it is decoded, an image of no pixels, or of more than memory is good for."""
    memory = 4 * width * height if memory is None else memory
    if not width or not height:
        raise ValueError(f"the image has no pixels: its size is {width} x {height}")
    if max(width, height) > MAX_SIDE or memory > 4 * MAX_PIXELS:
        raise ValueError(f"the image is too large: {width} x {height} pixels; scale it down")


def strips(height: int, rows: int) -> Iterator[slice]:
    """Part the rows of a large image: what is made of all of it at once would be too much."""
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def flatten(image: Image.Image) -> np.ndarray:
    """Turn a PIL image upright, and make it gray: float32 (H, W) in 0..1, not too large."""
    check_size(*image.size)
    image.load()
    width, height = image.size
    factor = max(1, max(image.size) // (5 * WORK_SIZE))
    factor = factor if min(image.size) >= factor else 1
    rows = factor * max(1, STRIP // (factor * width))
    parts = [(0, part.start, width, part.stop) for part in strips(height, rows)]
    highest = 255
    if image.mode[0] in "IF":  # of 10 bits, 12, 16 or any other number, or floats
        highest = max(float(np.asarray(image.crop(part)).max()) for part in parts)
    if not math.isfinite(highest):
        raise ValueError("its pixel values are not finite")
    white = next(most for most in (1, 255, 2 ** math.frexp(highest)[1] - 1) if highest <= most)
    if len(parts) == 1:
        small = to_bands(image, white)
        small = small.reduce(factor) if factor > 1 else small  # by 1 it would be copied
    else:
        small = None
        for part in parts:
            reduced = to_bands(image.crop(part), white).reduce(factor)
            small = small or Image.new(reduced.mode, (-(-width // factor), -(-height // factor)))
            small.paste(reduced, (0, part[1] // factor))
    orientation = ExifTags.Base.Orientation
    if (turn := image.getexif().get(orientation, 1)) != 1:
        small.getexif()[orientation] = turn
        small = ImageOps.exif_transpose(small)
    if small.mode == "RGBA":
        small = flatten_transparency(small)
    return np.asarray(small, np.float32) / 255 if small.mode == "L" else most_contrast(small)


def to_bands(image: Image.Image, white: float) -> Image.Image:
    """Bring an image to a mode that can be averaged: L, RGB or RGBA."""
    if image.mode[0] in "IF":  # Pillow would clip them to 255, not scale them
        values = np.asarray(image, np.float32) * (255 / white)
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


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
    small = image.resize([min(side, 64) for side in image.size], Image.BOX, reducing_gap=2)
    bands = [small.convert("L"), *small.split()]
    spreads = [np.subtract(*np.percentile(np.asarray(band, np.float32), (99, 1))) for band in bands]
    best = int(np.argmax(spreads))
    if best and spreads[best] > 2 * spreads[0]:
        return np.asarray(image.getchannel(best - 1), np.float32) / 255
    return gray


# ---- From gray values to ink -------------------------------------------------------------


def is_mnist_like(gray: np.ndarray) -> np.ndarray:
    """Whether images already have MNIST's size, polarity and geometry.

    In each of the 60,000 training images the ink spans 19 or 20 px, has its centre of mass
    within a pixel of (14, 14), counted from 0, and is somewhere two pixels wide: at least 5% of
    it is in squares of two by two. Takes gray values in 0..1, (..., H, W), and returns a bool
    for each image.
    """
    if gray.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        return np.zeros(gray.shape[:-2], bool)
    flat = gray.reshape(*gray.shape[:-2], -1)
    total, *offsets = np.moveaxis(flat @ MOMENTS, -1, 0)
    alike = (flat.max(axis=-1) >= 0.5) & (total < 0.5 * IMAGE_SIZE**2)
    alike &= np.abs(offsets).max(axis=0) <= 1.0001 * total  # additions round
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


def inside_frame(gray: np.ndarray) -> np.ndarray | None:
    """Return what is inside the frames, bars or margins of an image: a part of gray, (H, W).

    A frame has one tone and leaves a rectangle of another, which holds more than one tone. None
    if there is nothing but frames.
    """
    step = max(1, max(gray.shape) // WORK_SIZE)
    small = gray[::step, ::step]
    corners = small[[0, 0, -1, -1], [0, -1, 0, -1]]
    if small.max() - small.min() < 2 * LEAST_CONTRAST:
        return None
    differs = np.abs(small - np.median(corners)) > 0.25
    spans = [np.flatnonzero(differs.mean(axis=axis) > 0.15) for axis in (1, 0)]
    if np.ptp(corners) > 0.2 or min(span.size for span in spans) < max(12, min(small.shape) // 4):
        return gray
    edge = min(small.shape) // 64  # it may be blurred
    ends = [
        (span[0] + edge * (span[0] > 0), span[-1] + 1 - edge * (span[-1] + 1 < side))
        for span, side in zip(spans, small.shape, strict=True)
    ]
    box = tuple(slice(*end) for end in ends)
    inner = differs[box]
    lines = inner[[0, 0, -1, -1], [0, -1, 0, -1]], inner[0], inner[-1], inner[:, 0], inner[:, -1]
    outlined = inner.mean() < 0.5  # a box around the digit, drawn on the same sheet
    if inner.shape == small.shape or outlined or min(line.mean() for line in lines) < 0.75:
        return gray
    inside = inside_frame(gray[tuple(slice(start * step, stop * step) for start, stop in ends)])
    return gray if inside is None else inside


def find_ink(gray: np.ndarray, small: bool) -> np.ndarray:
    """Return how much ink each pixel holds: float32 (H, W), 0 for paper, above 0.5 for ink.

    Raises ValueError if there is none.
    """
    ink, level, _ = find_contrast(gray, small)
    return sharpen(ink / level)


def find_contrast(
    gray: np.ndarray, small: bool, widest: float = 0.36, blur: float = 0.002
) -> tuple[np.ndarray, float, float]:
    """Return how far each pixel is from the paper, (H, W), and the level of ink and of noise.

    No stroke is wider than `widest`, a share of the longer side, and details below `blur`, such a
    share too, are lost. Raises ValueError if there is no ink.
    """
    is_light = small_ink_is_light if small else ink_is_light
    light = gray if is_light(gray) else 1 - gray  # ink is light from here on
    light = scipy.ndimage.gaussian_filter(light, blur * max(light.shape))
    ink = subtract_paper(light if small else subtract_wide(light, widest))
    below = ink[ink < 0]  # where paper strays to, and ink never does
    noise = np.sqrt((below**2).mean()) if below.size else 0.0
    few = max(8, int(0.0005 * ink.size))
    highest = np.partition(ink.ravel(), -few)[-few:]
    level = highest[0]
    if level < max(LEAST_CONTRAST, 5 * noise):  # what is very small is looked at once more
        level = np.partition(highest, -3)[-3]
        if level < max(LEAST_CONTRAST, 12 * noise):
            raise ValueError("the image is blank: no ink found")
    return ink, level, noise


def sharpen(ink: np.ndarray) -> np.ndarray:
    """Scale ink, of which most of what is written has 1, so that what is above 0.5 is ink."""
    ink = ink.clip(0, 1)
    return ink / (2 * min(max(otsu(ink), 0.25), 0.45))


def clean_ink(gray: np.ndarray) -> np.ndarray | None:
    """Return the ink of a small image, (H, W) in 0..1, whose paper has one tone; else None."""
    spread = np.ptp(gray)
    if spread < LEAST_CONTRAST:
        return None
    ink = (gray - gray.min()) / spread
    ink = ink if small_ink_is_light(gray) else 1 - ink
    return ink if (ink < 0.05).mean() > 0.25 else None


def otsu(values: np.ndarray) -> float:
    """Return the threshold that parts values in 0..1 into two classes best (Otsu 1979)."""
    counts = np.bincount((values * 64).astype(np.uint8).clip(0, 63).ravel(), minlength=64)
    edges = np.linspace(0, 1, 65)
    centers = (edges[1:] + edges[:-1]) / 2
    below = counts.cumsum()
    sums = (counts * centers).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / below, (sums[-1] - sums) / (below[-1] - below)
    between = below * (below[-1] - below) * (means[0] - means[1]) ** 2.0
    return float(edges[1 + np.nanargmax(between[:-1])]) if np.isfinite(between[:-1]).any() else 0.5


def ink_is_light(gray: np.ndarray) -> bool:
    """Whether the ink is lighter than the paper, by three signs, weighed.

    Ink covers less: it is where values are skewed to. What is taken for ink is less if it is
    ink. And the border is mostly paper.
    """
    gray = resize_to(gray, PAPER_SIZE)
    skews = []
    for sigma in (0.06, 0.12):
        detail = gray - scipy.ndimage.gaussian_filter(gray, sigma * max(gray.shape))
        skews.append((detail**3).mean() / max((detail**2).mean(), 1e-12) ** 1.5)
    paper = np.median(border(gray)) + np.median(gray) < gray.min() + gray.max()
    dark, light = (subtract_wide(side).clip(1e-3, 1).mean() for side in (1 - gray, gray))
    less = np.clip(np.log(dark / light), -1.5, 1.5)
    return bool(np.clip(np.mean(skews), -1, 1) + 0.3 * less + (0.25 if paper else -0.25) > 0)


def small_ink_is_light(gray: np.ndarray) -> bool:
    """Whether the ink is lighter in a small image, where there is nothing but paper and ink.

    Ink may cover half of a tight crop. But the border is mostly paper even there, and ink is in
    fewer pieces.
    """
    middle, spread = (gray.min() + gray.max()) / 2, max(np.ptp(gray), 1e-6)
    light = gray > middle
    dark_pieces, light_pieces = (
        scipy.ndimage.label(side, np.ones((3, 3)))[1] for side in (~light, light)
    )
    return bool(
        2 * (middle - border(gray).mean()) / spread + 0.1 * (dark_pieces - light_pieces) > 0
    )


def border(gray: np.ndarray) -> np.ndarray:
    """Return the pixels along the four sides."""
    return np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])


def subtract_wide(light: np.ndarray, widest: float = 0.36) -> np.ndarray:
    """Return how much lighter each pixel is than what is wide there, as a part of what is left.

    Shadows, tables and sheets are wider than any stroke: a morphological opening by a square
    that no stroke holds finds their tones, edges and all. Dividing by what is left of the range
    makes ink in the shade as strong as ink in the light.
    """
    side = round(widest * max(light.shape)) | 1
    # Outside, shade goes on as at the edge, and ink does not.
    slope = resize(fit_plane(resize_to(light, PAPER_SIZE // 2)), *light.shape)
    above = light - slope
    if (np.abs(above) > 0.03).mean() > 0.5:  # a shadow is no slope
        slope, above = np.zeros_like(light), light
    inked = (above > max(0.4 * above.max(), 0.15)) & (light > 0.88 * light.max())
    ground = np.pad(np.where(inked, above.min(), above), side - 1, mode="edge")
    ground[side - 1 : 1 - side, side - 1 : 1 - side] = above
    wide = slope + slide(slide(ground, side, side, np.minimum), side, side, np.maximum)
    return (light - wide) / np.maximum(1 - wide, 0.1)


def subtract_paper(light: np.ndarray) -> np.ndarray:
    """Return how far each pixel is from the paper around it, 0 for none, 1 for white on black.

    The paper's tone is the local mean of what is not ink, so it follows shade and stains.
    """
    small = resize_to(light, PAPER_SIZE)  # paper is smooth: this is where the time would go
    paper = np.percentile(small, 25)  # to begin with: wide shade is gone already
    few = max(4, small.size // 500)
    for sigma in (0.16, 0.12, 0.1):
        ink = (small - paper) / np.maximum(1 - paper, 0.1)
        mask = (ink < 0.35 * np.partition(ink.ravel(), -few)[-few]).astype(np.float32)
        mean = (small * mask).sum() / max(mask.sum(), 1)  # stands in far from all paper
        sigma *= max(small.shape)
        weight = scipy.ndimage.gaussian_filter(mask, sigma) + 1e-3
        paper = (scipy.ndimage.gaussian_filter(small * mask, sigma) + 1e-3 * mean) / weight
    paper = resize(paper, *light.shape)
    return (light - paper) / np.maximum(1 - paper, 0.1)


def fit_plane(values: np.ndarray) -> np.ndarray:
    """Return the plane, float32 (H, W), that most of the values lie near: light from one side.

    Least absolute deviations, by reweighted least squares: ink is no more than an outlier.
    """
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]]
    terms = np.stack([np.ones(values.size), rows.ravel(), columns.ravel()], axis=1)
    target, weights = values.ravel().astype(np.float64), np.ones(values.size)
    for _ in range(6):
        scaled = (terms * weights[:, None]).T  # the normal equations are but three
        least = 1e-9 * np.eye(3)  # a line of pixels fixes no plane
        plane = terms @ np.linalg.solve(scaled @ terms + least, scaled @ target)
        weights = 1 / (np.abs(target - plane) + 0.01)
    return plane.reshape(values.shape).astype(np.float32)


def remove_rules(mask: np.ndarray, shortest: float = 0.1) -> np.ndarray:
    """Take the lines of ruled or squared paper out of a mask of ink, (H, W).

    A rule is thin and runs from one end of the image to the other, straight but perhaps a little
    askew. A single one must be thinner than the strokes, or it may be one of them. Where a stroke
    crosses a rule, the gap is closed again.
    """
    flat, n_flat = find_rules(mask, shortest)
    upright, n_upright = find_rules(mask.T, shortest)
    rest = mask & ~flat & ~upright.T
    if n_flat + n_upright == 1 and rest.any():
        thickness, of_strokes = (depth(part).max() for part in (mask & ~rest, rest))
        if of_strokes < 1.8 * thickness:
            return mask
    if not rest.any():
        return mask
    for lines, count in ((flat, n_flat), (upright.T, n_upright)):
        if count:
            thick = lines.sum() / (count * max(lines.shape)) + 2
            kept = mask & ~lines
            shape = [(int(2 * thick) | 1, 1), (1, int(2 * thick) | 1)][lines is not flat]
            mask = kept | (scipy.ndimage.binary_closing(kept, np.ones(shape)) & lines & mask)
    return mask


def find_rules(mask: np.ndarray, shortest: float) -> tuple[np.ndarray, int]:
    """Return the mask of the thin lines along the rows that run through it, and their number.

    They are parallel: the slope is that under which the pixels of thin runs add up best.
    """
    height, width = mask.shape
    near = dilate(mask, 3, 1)
    thin = near & ~opening(near, max(3, height // 40) + 3, 1)
    rows, columns = np.nonzero(opening(thin, 1, max(9, int(shortest * width))))

    def level(rows: np.ndarray, columns: np.ndarray, slope: float) -> np.ndarray:
        """Return the rows in which the pixels would be if lines of this slope were flat."""
        return np.rint(rows - slope * (columns - width / 2)).astype(int).clip(0, height - 1)

    slopes = np.linspace(-0.07, 0.07, 15)
    profiles = [np.bincount(level(rows, columns, slope), minlength=height) for slope in slopes]
    best = int(np.argmax([(profile.astype(float) ** 2).sum() for profile in profiles]))
    inked = profiles[best] / width  # how much of each line there is
    groups, n_groups = scipy.ndimage.label(inked > 0.2)
    rows, columns = np.nonzero(near)
    groups_of_pixels = groups[level(rows, columns, slopes[best])]
    lines, count, edge = np.zeros_like(mask), 0, 1 + width // 50
    for i in range(1, n_groups + 1):
        on_line = groups_of_pixels == i
        through = np.bincount(columns[on_line], minlength=width) > 0
        least = 0.3 if through.mean() > 0.95 else 0.55  # the digit may hide the rest of it
        if inked[groups == i].max() > least and through[:edge].any() and through[-edge:].any():
            lines[rows[on_line], columns[on_line]] = True
            count += 1
    return lines, count


def slide(values: np.ndarray, height: int, width: int, combine: np.ufunc) -> np.ndarray:
    """Combine values, (H, W), over each rectangle of a size that lies within them.

    Returns (H - height + 1, W - width + 1). It takes twice as many with each step: a dozen times
    as fast as scipy.ndimage's morphology.
    """
    for axis, size in enumerate((height, width)):
        values, done = values.swapaxes(0, axis), 1
        while done < size:
            step = min(done, size - done)
            values, done = combine(values[:-step], values[step:]), done + step
        values = values.swapaxes(0, axis)
    return values


def dilate(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Grow a mask, (H, W), by a rectangle."""
    room = [((size - 1) // 2, size // 2) for size in (height, width)]
    return slide(np.pad(mask, room), height, width, np.logical_or)


def erode(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrink a mask, (H, W), by a rectangle."""
    room = [(size // 2, (size - 1) // 2) for size in (height, width)]
    return slide(np.pad(mask, room), height, width, np.logical_and)


def opening(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Keep of a mask, (H, W), what a rectangle of so many pixels fits into."""
    return dilate(erode(mask, height, width), height, width)


class Pieces:
    """The connected pieces of a mask of ink, (H, W): N labels, masses, middles and boxes."""

    def __init__(self, mask: np.ndarray, ink: np.ndarray) -> None:
        self.labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        self.numbers = np.arange(1, count + 1)
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

    def mask(self, chosen: np.ndarray) -> np.ndarray:
        """Return the mask, (H, W), of some of the pieces, a bool for each."""
        return np.concatenate([[False], chosen])[self.labels]

    def surrounds(self, i: int, point: np.ndarray) -> bool:
        """Whether piece i lies around a point, in three of four directions at least."""
        rows, columns = np.nonzero(self.labels[self.slices[i]] == i + 1)
        y, x = self.starts[i] - point
        angles = np.arctan2(rows + y, columns + x)
        return (np.histogram(angles, 32, (-np.pi, np.pi))[0] > 0).mean() > 0.75


def find_around(pieces: Pieces) -> np.ndarray:
    """Tell which pieces are around the digit or below it: rings, boxes, frames, underlines."""
    around = np.zeros(len(pieces.numbers), bool)
    for i in np.argsort(-pieces.extents):
        start, stop, extent = pieces.starts[i], pieces.stops[i], pieces.extents[i]
        within = (pieces.starts > start).all(axis=1) & (pieces.stops < stop).all(axis=1)
        within &= pieces.extents > 0.25 * extent
        if within.any():
            largest = np.argmax(np.where(within, pieces.masses, 0))
            around[i] = pieces.surrounds(i, pieces.middles[largest])
        height, width = stop - start
        if height < 0.25 * width:
            above = pieces.stops[:, 0] < start[0]
            overlap = np.minimum(pieces.stops[:, 1], stop[1])
            overlap -= np.maximum(pieces.starts[:, 1], start[1])
            wide = pieces.stops[:, 1] - pieces.starts[:, 1]
            above &= (overlap > 0.6 * wide) & (pieces.extents > 0.4 * width)
            above &= (wide < width) | (start[0] - pieces.stops[:, 0] > 0.06 * pieces.extents)
            around[i] |= above.any()
    return around


def choose_digit(ink: np.ndarray) -> np.ndarray:
    """Return the mask, (H, W), of the strokes that make the digit.

    What is around it goes, the rules of the paper too. Of several digits or stains the largest
    near the middle wins. Pieces that lie close by, for its size, belong to it: broken strokes, a
    5 and its hat.
    """
    mask = remove_rules(ink > WEAK)
    # Far from strong ink, light ink counts where it is as wide as a stroke: faint rules are not.
    mask &= opening(mask, 5, 5) | dilate(mask & (ink > 0.5), 15, 15)
    mask = fill_outlines(mask)
    pieces = Pieces(mask, ink)
    around = find_around(pieces)
    starts, stops, masses = pieces.starts, pieces.stops, pieces.masses

    # What touches the edge of the image and lies off its middle is seldom the digit.
    sides = (starts == 0).sum(axis=1) + (stops == ink.shape).sum(axis=1)
    off = np.hypot(*(2 * pieces.middles / ink.shape - 1).T).clip(0, 1)
    penalty = np.array([1, 0.3, 0.1, 0.1, 0.1])[sides]
    scores = masses * penalty * (1 - 0.4 * off) * ~around
    chosen = np.arange(len(scores)) == scores.argmax()
    eligible = (masses > 0.04 * masses[chosen]) & (sides <= sides[chosen]) & ~around
    eligible &= pieces.strengths > 0.7 * pieces.strengths[chosen]  # the edges of a sheet are weaker
    while True:
        start, stop = starts[chosen].min(axis=0), stops[chosen].max(axis=0)
        gaps = np.maximum(starts - stop, start - stops)
        reach = np.maximum((stop - start).max(), pieces.extents)
        close = gaps.max(axis=1) < 0.15 * reach
        # A hat far above its 5, or the 5 below its hat.
        overlaps = np.minimum(stops, stop)[:, 1] - np.maximum(starts, start)[:, 1]
        narrower = np.minimum(stops - starts, stop - start)[:, 1]
        stacked = (gaps[:, 0] < 0.45 * reach) & (overlaps > 0.6 * narrower)
        stacked &= masses > 0.15 * masses[chosen].sum()
        near = chosen | (eligible & (close | stacked))
        if (near == chosen).all():
            return pieces.mask(chosen)
        chosen = near


def is_sheet(mask: np.ndarray) -> bool:
    """Whether a mask, (H, W), is a sheet of paper on a table, with a digit as its hole.

    A sheet fills a rectangle, perhaps a little turned, as no digit does.
    """
    if mask[bounding_box(mask)].mean() < 0.4:  # most digits need no closer look
        return False
    filled = fill_holes(mask)
    labels, count = scipy.ndimage.label(filled & ~mask, np.ones((3, 3)))
    inner = np.pad(filled, 1)
    inner = inner[2:, 1:-1] & inner[:-2, 1:-1] & inner[1:-1, 2:] & inner[1:-1, :-2]
    points = np.argwhere(filled & ~inner)
    if not count or points.min() == 0 or (points.max(axis=0) == np.array(mask.shape) - 1).any():
        return False
    hole = scipy.ndimage.find_objects(labels)[np.bincount(labels.ravel())[1:].argmax()]
    angles = np.radians(np.arange(-15, 16, 3))
    along = points @ np.array([np.cos(angles), np.sin(angles)])
    upward = points @ np.array([-np.sin(angles), np.cos(angles)])
    area = (np.ptp(along, axis=0) * np.ptp(upward, axis=0)).min()
    extent = max(side.stop - side.start for side in hole)
    return bool(filled.sum() > 0.9 * area and extent > 0.15 * np.ptp(points, axis=0).max())


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Add to a mask, (H, W), what it lies around: scipy.ndimage takes five times as long."""
    labels, count = scipy.ndimage.label(~mask)
    outside = np.zeros(count + 1, bool)
    outside[border(labels)] = True
    outside[0] = False  # the mask itself
    return ~outside[labels]


def fill_outlines(mask: np.ndarray) -> np.ndarray:
    """Fill the strokes of a digit of which only the outline is drawn, in a mask, (H, W).

    What lies between the two sides of an outline is a stroke itself: long for its width, and slim
    everywhere. What a ring or a box leaves around a digit is long as well, but fills an ellipse
    with the digit, and is wide in places.
    """
    labels, _ = scipy.ndimage.label(~mask)
    outside = np.unique(border(labels))
    for i, box in enumerate(scipy.ndimage.find_objects(labels), start=1):
        stroke = labels[box] == i
        extent = max(stroke.shape)
        if i in outside or extent < 0.2 * max(mask.shape):
            continue
        widths = stroke_widths(stroke)
        width, widest = np.median(widths), widths.max()
        if stroke.sum() < 5.5 * width**2 or widest > 0.275 * extent:
            continue
        full = fill_holes(stroke).mean()
        around = full > (0.8 if widest < 0.2 * extent else 0.7)
        if not around and np.median(stroke_widths(mask)) < 1.2 * width:
            mask = mask.copy()
            mask[box] |= stroke
    return mask


# ---- From ink to MNIST's geometry --------------------------------------------------------


def resize(ink: np.ndarray, height: float, width: float) -> np.ndarray:
    """Scale ink, (H, W), anti-aliased, to at least 1 px each way."""
    size = (max(1, round(width)), max(1, round(height)))
    image = Image.fromarray(np.asarray(ink, np.float32))
    return np.asarray(image.resize(size, Image.BICUBIC, reducing_gap=1.5))


def draw_as_mnist(ink: np.ndarray, small: bool) -> np.ndarray:
    """Draw cropped ink, (H, W), as MNIST does: (28, 28) in 0..1.

    The aspect is kept, the longer side is 20 px, the centre of mass is in the middle (LeCun et
    al. 1998). Strokes much thinner or fatter than MNIST's are drawn anew, nearer to its 2.5 px:
    at five times the size, by the distance to the edge of the stroke. A small digit is shape in
    gray, which that would tear: of its strokes only hairlines and blocks are drawn anew.
    """
    scale = FINE * BOX_SIZE / max(ink.shape)
    fine = resize(ink, ink.shape[0] * scale, ink.shape[1] * scale)
    width = float(np.median(stroke_widths(fine > 0.5))) / FINE
    least, most = STROKE_WIDTHS
    grow = (np.clip(width, least, FATTEST if small else most) - width) / 2
    if small and 0.8 * least < width < 1.2 * FATTEST:
        grow = 0.0
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


def depth(mask: np.ndarray) -> np.ndarray:
    """Return how far inside a mask, (H, W), each pixel is: the distance to its edge."""
    return scipy.ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def stroke_widths(mask: np.ndarray) -> np.ndarray:
    """Return the widths of the strokes in a mask, along their ridge: twice its depth."""
    deep = depth(mask)
    ridge = deep[(deep == scipy.ndimage.maximum_filter(deep, 5)) & mask]
    return 2 * ridge if ridge.size else np.ones(1)


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
    framed = inside_frame(gray)
    gray = gray if framed is None else framed
    if max(gray.shape) <= SMALL and (ink := clean_ink(gray)) is not None:
        return draw_as_mnist(ink[bounding_box(ink > WEAK)], small=True)
    for _ in range(3):
        work = resize_to(gray, WORK_SIZE)
        if work.max() - work.min() < LEAST_CONTRAST:
            raise ValueError("the image is blank: no ink found")
        ink = find_ink(work, small=max(gray.shape) <= SMALL)
        digit = choose_digit(ink)
        box = bounding_box(digit)
        extent = max(side.stop - side.start for side in box)
        if is_sheet(digit):
            margin = -0.03 * extent  # look again, inside
        elif extent * 3 < max(work.shape):
            margin = 0.4 * extent  # look again, closer
        else:
            break
        zoom = max(gray.shape) / max(work.shape)
        ends = [(max(0, side.start - margin), side.stop + margin) for side in box]
        gray = gray[tuple(slice(int(start * zoom), int(stop * zoom) + 1) for start, stop in ends)]
    # A small digit is shape in gray: its strokes are left alone, and thresholds would tear them.
    small = extent * max(gray.shape) < 1.2 * BOX_SIZE * max(work.shape)
    return draw_pieces(ink, digit, small)


def draw_pieces(ink: np.ndarray, mask: np.ndarray, small: bool) -> np.ndarray:
    """Draw what a mask, (H, W), holds of the ink as MNIST does: (28, 28) in 0..1."""
    box = bounding_box(mask)
    ink, mask = ink[box], mask[box]
    if small:
        soft = ink / ink.max()
    else:  # where a stroke is lighter, its own edge counts
        strength = scipy.ndimage.maximum_filter(ink, max(3, int(0.08 * max(ink.shape))))
        soft = np.clip((ink / strength.clip(0.5, 1) - 0.2) / 0.6, 0, 1)
    soft[mask & (ink < WEAK)] = 1  # what was filled
    soft[~dilate(mask, *((13, 13) if small else (5, 5)))] = 0
    return draw_as_mnist(soft, small)


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
