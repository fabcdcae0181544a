"""Decode any image to gray values: a file, an array or a tensor, of any kind, depth and size.

What no camera makes is refused, so that no image takes more than 1 GB.
"""

import contextlib
import ctypes
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

from reading.files import open_regular
from reading.jobs import large_work

MAX_PIXELS = 100_000_000  # of an image as Pillow holds it, in up to 4 bytes each
MAX_SIDE = 65_535  # pixels; no camera or scanner makes more, and JPEG can't
LARGE = 100_000_000  # bytes of a decoded image, of which there is only one at a time
SHARED_IMAGES = threading.Lock()
STRIP = 2**22  # pixels that are converted at once
BY_ROWS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "PPM", "TIFF", "TGA")  # are decoded so
WORK_SIZE = 256  # pixels of the longer side of an image in which ink is looked for

# A path, the bytes of an image file, a binary file object, a PIL image, an array or a tensor.
# Arrays and tensors hold integers 0..255, or floats 0..1, in shape (H, W), (1, H, W), (H, W, 1),
# (H, W, 3: RGB) or (H, W, 4: RGBA).
ImageLike = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor


@contextlib.contextmanager
def naming(image: ImageLike) -> Iterator[None]:
    """Name the file, if it is one, where something is wrong with an image."""
    try:
        yield
    except ValueError as error:
        if isinstance(image, str | os.PathLike):
            raise ValueError(f"{os.fspath(image)}: {error}") from error
        raise


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
        with SHARED_IMAGES if shared else contextlib.nullcontext():
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
                with large_work() if memory > LARGE else contextlib.nullcontext():
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
    gray = small if small.mode == "L" else most_contrast(small)
    return np.divide(gray, 255, dtype=np.float32)


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


def most_contrast(image: Image.Image) -> Image.Image:
    """Return the gray image that sets coloured ink off best from coloured paper.

    That is the luminance as a rule, and one of red, green and blue where it shows twice the
    contrast: red ink on green paper may have no contrast in luminance at all.
    """
    small = image.resize([min(side, 256) for side in image.size], Image.NEAREST)
    small = small.resize([min(side, 64) for side in image.size], Image.BOX)
    bands = np.dstack([small.convert("L"), small])  # (H, W, 4)
    spreads = np.subtract(*np.percentile(bands, (99, 1), axis=(0, 1)))  # (4,)
    best = int(spreads.argmax())
    coloured = best and spreads[best] > 2 * spreads[0]
    return image.getchannel(best - 1) if coloured else image.convert("L")


def silence_libtiff() -> None:
    """Keep libtiff from writing to stderr itself: of a damaged TIFF, Pillow's error says enough."""
    with contextlib.suppress(AttributeError, OSError):  # Pillow may have it built in, out of reach
        pillow = ctypes.CDLL(Image.core.__file__)
        pillow.TIFFSetErrorHandler(None)
        pillow.TIFFSetWarningHandler(None)
