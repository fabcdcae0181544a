"""Read handwritten digits from images with the trained network.

python inference.py digit.png

from inference import MNISTPredictor
digit, confidence, probabilities = MNISTPredictor().predict("digit.png")
"""

import argparse
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from model import IMAGE_SIZE, load_checkpoint, normalize

SHIPPED_WEIGHTS = Path(__file__).resolve().parent / "weights" / "mnist_cnn.pt"
BATCH_SIZE = 500  # images in one forward pass
LEAST_CONTRAST = 16  # of 255; below it there is no ink to be seen

ImageLike = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor


class Prediction(NamedTuple):
    """What the network makes of one image."""

    digit: int  # 0..9
    confidence: float  # 0..1, the probability of that digit
    probabilities: tuple[float, ...]  # of the ten digits; they sum to 1


class MNISTPredictor:
    """Reads digits from images of any kind and size.

    An image is a path, the bytes of an image file, a binary file object, a PIL image, a NumPy
    array or a tensor. Arrays and tensors hold integers 0..255, or floats 0..1, in shape
    (H, W), (1, H, W), (H, W, 1), (H, W, 3: RGB) or (H, W, 4: RGBA). Ink may be dark on light
    or light on dark; transparent parts are white.

    Args:
        checkpoint: a file that train.py wrote; by default the weights that ship.
        device: where the network runs, such as "cpu", "cuda" or "mps".

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint can't be used (`CheckpointError`), or there is no such device.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike = SHIPPED_WEIGHTS,
        device: str | torch.device = "cpu",
    ) -> None:
        model, self.metadata = load_checkpoint(checkpoint, device)
        self.model = model.to(memory_format=torch.channels_last)
        self.device = torch.device(device)

    def predict(self, image: ImageLike) -> Prediction:
        """Read the digit in one image.

        Raises:
            ValueError: it is no image, damaged, blank, or of a wrong shape, type or range.
            OSError: the file can't be read; FileNotFoundError if there is none.
        """
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Iterable[ImageLike]) -> list[Prediction]:
        """Read the digit in each image; the same answers as `predict`, in less time.

        Raises:
            ValueError, OSError: as `predict`, for the first image that can't be read.
        """
        images = iter(images)
        predictions = []
        while batch := [self.preprocess(image) for image in itertools.islice(images, BATCH_SIZE)]:
            probabilities = self._probabilities(torch.stack(batch))  # (N, 10)
            confidences, digits = probabilities.max(dim=1)
            rows = zip(digits.tolist(), confidences.tolist(), probabilities.tolist(), strict=True)
            predictions += [Prediction(digit, top, tuple(row)) for digit, top, row in rows]
        return predictions

    def preprocess(self, image: ImageLike) -> torch.Tensor:
        """Turn one image into what the network reads: float32, (1, 28, 28), normalized.

        Raises:
            ValueError, OSError: as `predict`.
        """
        try:
            pixels = to_mnist(to_grayscale(image))
        except ValueError as error:
            if isinstance(image, str | os.PathLike):
                raise ValueError(f"{os.fspath(image)}: {error}") from error
            raise
        return normalize(torch.from_numpy(pixels).unsqueeze(0))[0]  # (1, 28, 28)

    @torch.inference_mode()
    def _probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalized images (N, 1, 28, 28) to probabilities (N, 10), on the CPU."""
        return self.model(images.to(self.device)).softmax(dim=1).cpu()


def to_grayscale(image: ImageLike) -> np.ndarray:
    """Decode an image of any kind to gray values, uint8 (H, W), upright, on white."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        image = array_to_image(image)
    if isinstance(image, Image.Image):
        return flatten(image)
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return flatten(opened)
    except Exception as error:  # Pillow's decoders raise nearly every type there is
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no such file, a folder, no permission: the system's own words
        raise ValueError(f"not an image that can be read ({error})") from error


def array_to_image(array: np.ndarray) -> Image.Image:
    """Check an array's shape, type and range, and make it a PIL image."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(
            f"an image array must have shape (H, W), (1, H, W), (H, W, 1), (H, W, 3) or "
            f"(H, W, 4), not {array.shape}"
        )
    if array.size == 0:
        raise ValueError(f"the image has no pixels: its shape is {array.shape}")
    if array.dtype.kind == "f" or array.dtype == bool:
        array = array * 255.0
    elif array.dtype.kind not in "iu":
        raise ValueError(f"an image array must hold numbers, not {array.dtype}")
    if not (array.min() >= 0 and array.max() <= 255):  # NaN fails this too
        raise ValueError("pixel values must be integers in 0..255 or floats in 0..1")
    return Image.fromarray(array.round().astype(np.uint8))


def flatten(image: Image.Image) -> np.ndarray:
    """Turn a PIL image upright, lay it over white, and return its gray values, uint8 (H, W)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip it to 255, not scale it
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L"))


def to_mnist(gray: np.ndarray) -> np.ndarray:
    """Make gray values of any size an image like MNIST's: uint8 (28, 28), white ink on black.

    An image that is like that already is returned as it is.
    """
    if int(gray.max()) - int(gray.min()) < LEAST_CONTRAST:
        raise ValueError("the image is blank: no ink found")
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    if np.median(border) > 127:  # dark ink on a light ground
        gray = 255 - gray
    if gray.shape == (IMAGE_SIZE, IMAGE_SIZE):
        return np.array(gray)
    return np.array(ImageOps.pad(Image.fromarray(gray), (IMAGE_SIZE, IMAGE_SIZE), Image.LANCZOS))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Read the handwritten digit in each image.")
    # argparse would print the whole usage first.
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    parser.add_argument("--checkpoint", default=SHIPPED_WEIGHTS, help="weights, as train.py saves")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    arguments = parser.parse_args(argv)
    try:
        predictor = MNISTPredictor(arguments.checkpoint)
    except (OSError, ValueError) as error:
        print(f"inference.py: error: {error}", file=sys.stderr)
        return 1
    failures = 0
    for path in arguments.images:
        try:
            prediction = predictor.predict(path)
        except (OSError, ValueError) as error:
            failures += 1
            print(f"inference.py: error: {error}", file=sys.stderr)
            continue
        if arguments.json:
            print(json.dumps({"file": path} | prediction._asdict()), flush=True)
        else:
            print(f"{path}: {prediction.digit} ({prediction.confidence:.1%})", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
