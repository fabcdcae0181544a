"""Decode any image to gray values: a file, an array or a tensor, of any kind, depth and size.

How many pixels a file may have is Pillow's limit, `PIL.Image.MAX_IMAGE_PIXELS`.
"""

import contextlib
import ctypes
import io
import math
import os
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import scipy
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from model import IMAGE_SIZE
from reading.files import open_regular, write_atomically

MAX_SIDE = 1280  # pixels; an image twice as large or larger is reduced towards it
WHITE = 255  # of uint8 pixels
ON_ITS_SIDE = (5, 6, 7, 8)  # orientations of EXIF
# The brands of ISO 23008-12 (HEIC, as iPhones write it, HEIF) and of AVIF, and where they stand.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
HEIF_KINDS, HEIF_KIND = [b"ftyp" + brand for brand in HEIF_BRANDS], slice(4, 12)
HEIF_SUFFIXES = {".heic", ".heif", ".avif"}  # are named even where Pillow does not know them

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
    """Decode an image of any kind, and turn it upright.

    Returns gray values, float32 (H, W) in 0..1, and the width and height of the whole image,
    which may be several times as large. Warns (UserWarning) of a TIFF that has several pages: the
    first is read.

    Raises:
        ValueError: it is no image, damaged, too large, or of a wrong shape, type or range.
        OSError: the file can't be read; FileNotFoundError if there is none.
        MemoryError: there is not enough memory to decode it.
    """
    if isinstance(image, torch.Tensor):
        image = tensor_to_array(image)
    if isinstance(image, np.ndarray):
        image = array_to_image(image)
    if not (isinstance(image, str | os.PathLike | bytes | Image.Image) or hasattr(image, "read")):
        taken = "a path, bytes, a binary file, a PIL image, an array or a tensor"
        raise ValueError(f"an image is {taken}, not {type(image).__name__}")
    pages = 1
    try:
        if isinstance(image, Image.Image):
            return flatten(image), upright_size(image, image.size)
        path = isinstance(image, str | os.PathLike)
        file = io.BytesIO(image) if isinstance(image, bytes) else contextlib.nullcontext(image)
        with open_regular(image) if path else file as binary, open_image(binary) as opened:
            pages = opened.n_frames if opened.format == "TIFF" else 1
            size = opened.size
            opened.draft("RGB", (MAX_SIDE, MAX_SIDE))  # decodes a large JPEG at a fraction of it
            upright = upright_size(opened, size)  # after the draft, since this decodes a PNG
            gray = flatten(opened)
    except Image.DecompressionBombError as error:  # "Image size (N pixels) exceeds limit of ..."
        reason = f"{str(error).split(',')[0]}, PIL.Image.MAX_IMAGE_PIXELS; scale it down"
        raise ValueError(f"the image is too large: {reason}") from error
    except Exception as error:  # Pillow's decoders raise nearly every type there is
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # no such file, a folder, no permission: the system's own words
        unknown = isinstance(error, UnidentifiedImageError)  # its own words name an object
        reason = "its format is not known" if unknown else error
        raise ValueError(f"not an image that can be read ({reason})") from error
    if pages > 1:
        name = f"{os.fspath(image)}: " if isinstance(image, str | os.PathLike) else ""
        warnings.warn(f"{name}a TIFF of {pages} pages; only the first is read", stacklevel=1)
    return gray, upright


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image with Pillow, and with pillow-heif where that is needed and installed."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(HEIF_KIND.stop)[HEIF_KIND] not in HEIF_KINDS:
            raise
    try:
        import pillow_heif
    except ImportError:
        remedy = "pip install pillow-heif, or export it as JPEG"
        raise ValueError(f"HEIC or AVIF, which Pillow does not know here: {remedy}") from None
    pillow_heif.register_heif_opener()
    file.seek(0)
    return Image.open(file)


def upright_size(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """Return the width and height that an image has when its EXIF orientation is heeded."""
    on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) in ON_ITS_SIDE
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
    if array.size == IMAGE_SIZE**2 and array.size in array.shape:
        raise ValueError(f"an image array of shape {array.shape}: give it as reshape(28, 28)")
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(
            "an image array must have shape (H, W), (1, H, W), (H, W, 1), (H, W, 3) or "
            f"(H, W, 4), not {array.shape}"
        )
    if not array.size:
        raise ValueError(f"the image has no pixels: its shape is {array.shape}")
    return Image.fromarray(to_uint8(array))


def to_uint8(array: np.ndarray) -> np.ndarray:
    """Bring pixel values, integers 0..255 or floats 0..1, to uint8; ValueError for others."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "fiub":
        raise ValueError(f"an image array must hold numbers, not {array.dtype}")
    highest = 1 if array.dtype.kind in "fb" else WHITE
    if not (array.min() >= 0 and array.max() <= highest):  # NaN fails this too
        raise ValueError("pixel values must be integers in 0..255 or floats in 0..1")
    return (array * np.float32(WHITE / highest)).round().astype(np.uint8)


def flatten(image: Image.Image) -> np.ndarray:
    """Turn a PIL image upright, and make it gray: float32 (H, W) in 0..1, not too large."""
    if 0 in image.size:
        raise ValueError("the image has no pixels: its size is {} x {}".format(*image.size))
    image.load()
    small = to_bands(image)
    factor = max(image.size) // MAX_SIDE
    if 1 < factor <= min(image.size):
        small = small.reduce(factor)
    orientation = ExifTags.Base.Orientation
    if (turn := image.getexif().get(orientation, 1)) != 1:
        small.getexif()[orientation] = turn
        small = ImageOps.exif_transpose(small)
    if small.mode == "RGBA":
        small = flatten_transparency(small)
    gray = small if small.mode == "L" else most_contrast(small)
    return np.divide(gray, WHITE, dtype=np.float32)


def to_bands(image: Image.Image) -> Image.Image:
    """Bring an image to a mode that can be averaged: L, RGB or RGBA."""
    if image.mode[0] in "IF":  # of 10 bits, 12, 16 or others, or floats: Pillow would clip them
        values = np.asarray(image, np.float32)
        highest = float(values.max())
        if not math.isfinite(highest):
            raise ValueError("its pixel values are not finite")
        white = next(w for w in (1, WHITE, 2 ** math.frexp(highest)[1] - 1) if highest <= w)
        return Image.fromarray((values * (WHITE / white)).round().clip(0, WHITE).astype(np.uint8))
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
    if alpha.min() == WHITE:
        return image.convert("RGB")
    gray = np.asarray(image.convert("RGB").convert("L"))
    opaque = alpha > WHITE / 2
    inner = scipy.ndimage.binary_erosion(opaque, iterations=3, border_value=1)
    tones = gray[inner if inner.any() else opaque]  # edges may hold what was there before
    if tones.size in (0, gray.size):
        ground = WHITE
    elif np.subtract(*np.percentile(tones, (99.9, 0.1))) < 64:
        ground = 0 if np.median(tones) > WHITE / 2 else WHITE
    else:
        ground = int(np.median(gray[opaque & ~inner])) if (opaque & ~inner).any() else WHITE
    base = Image.new("RGBA", image.size, (ground, ground, ground, WHITE))
    return Image.alpha_composite(base, image).convert("RGB")


def most_contrast(image: Image.Image) -> Image.Image:
    """Return the gray image that sets coloured ink off best from coloured paper.

    That is usually the luminance, and one of red, green and blue where it shows twice the
    contrast: red ink on green paper may have no contrast in luminance at all.
    """
    small = image.resize([min(side, 256) for side in image.size], Image.NEAREST)
    small = small.resize([min(side, 64) for side in image.size], Image.BOX)
    bands = np.dstack([small.convert("L"), small])  # (H, W, 4)
    spreads = np.subtract(*np.percentile(bands, (99, 1), axis=(0, 1)))  # (4,)
    best = int(spreads.argmax())
    coloured = best and spreads[best] > 2 * spreads[0]
    return image.getchannel(best - 1) if coloured else image.convert("L")


def write_png(path: str | os.PathLike, image: Image.Image) -> None:
    """Write an image as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def set_up_pillow(max_pixels: int | None) -> None:
    """Limit how many pixels an image may have, for a whole process, and silence libtiff.

    Pillow warns above the limit, and refuses more than twice as many. libtiff would write to stderr
    itself: of a damaged TIFF, Pillow's error says enough.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels
    with contextlib.suppress(AttributeError, OSError):  # Pillow may have it built in, out of reach
        pillow = ctypes.CDLL(Image.core.__file__)
        pillow.TIFFSetErrorHandler(None)
        pillow.TIFFSetWarningHandler(None)
