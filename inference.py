"""Read handwritten digits from images with the trained network.

python inference.py digit.png
python inference.py --number photo.jpg

from inference import MNISTPredictor
digit, confidence, probabilities = MNISTPredictor().predict("digit.png")
lines = MNISTPredictor().read("photo.jpg")
"""

import argparse
import functools
import io
import itertools
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageOps

from model import IMAGE_SIZE
from reading.checkpoint import load_checkpoint
from reading.devices import speed_up
from reading.files import exit_code, printable
from reading.image_io import (
    ImageLike,
    flatten_transparency,
    naming,
    set_up_pillow,
    to_bands,
    to_grayscale,
    write_png,
)
from reading.loading import (
    explaining_dead_workers,
    find_images,
    join_queue_threads,
    preprocess_batches,
    survive_forks,
    work_ahead,
)
from reading.preprocessing import preprocess, to_image
from reading.segmentation import Box, Candidate, read_page

SHIPPED_WEIGHTS = Path(__file__).resolve().parent / "weights" / "mnist_cnn.pt"
BATCH_SIZE = 64  # images in one forward pass; more are too many for the processor's cache
MIN_SHARE = 0.5  # of a line's digits; if it is sure of fewer, it must be sure of each.
MIN_LIKELIHOOD = 0.65  # of ink, the mean confidence in what it is; else it is a drawing
SURE_POWER = 0.5  # A digit of a picture must reach min_confidence**0.5: parts of anything are read.
LINE_POWER = 3.0  # In a line of which half are sure, the others must reach min_confidence**3.
MAX_PHOTO_PIXELS = 250_000_000  # phones take photos of 200 megapixels


class Prediction(NamedTuple):
    """The network's answer for one image."""

    digit: int  # 0..9
    confidence: float  # 0..1, the probability of that digit
    probabilities: tuple[float, ...]  # of the ten digits; they sum to 1


class FoundDigit(NamedTuple):
    """A digit in a picture: the network's answer, and where the digit is."""

    digit: int  # 0..9
    confidence: float  # 0..1, the probability of that digit
    probabilities: tuple[float, ...]  # of the ten digits; they sum to 1
    box: tuple[int, int, int, int]  # left, top, right, bottom: pixels of the upright original
    number: int  # which number of its line it belongs to, from 0; gaps and signs part them


class MNISTPredictor:
    """Reads digits from images of any kind and size.

    An image is a path, the bytes of an image file, a binary file object, a PIL image, a NumPy
    array or a tensor. Arrays and tensors hold integers 0..255, or floats 0..1, in shape
    (H, W), (1, H, W), (H, W, 1), (H, W, 3: RGB) or (H, W, 4: RGBA). Ink may be dark on light
    or light on dark, or stand alone on a transparent ground.

    Args:
        checkpoint: a file that train.py wrote; by default the weights that ship.
        device: where the network runs, such as "cpu", "cuda" or "mps".
        min_confidence: 0..1; `read` leaves out what the network is less sure of than its square
            root. By default the checkpoint's own, which 99.5% of digits like MNIST's reach.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint can't be used (`CheckpointError`), or there is no such device.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike = SHIPPED_WEIGHTS,
        device: str | torch.device = "cpu",
        min_confidence: float | None = None,
    ) -> None:
        survive_forks()
        model, self.metadata = load_checkpoint(checkpoint, device)
        self.model = speed_up(model)
        self.device = next(self.model.parameters()).device
        if min_confidence is None:
            min_confidence = float(self.metadata.get("min_confidence", 0))
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence must be in 0..1, not {min_confidence!r}")
        self.min_confidence = min_confidence

    def predict(self, image: ImageLike) -> Prediction:
        """Read the digit in one image.

        Raises:
            ValueError: it is no image, damaged, blank, or of a wrong shape, type or range.
            OSError: the file can't be read; FileNotFoundError if there is none.
        """
        return self.classify(self.preprocess(image))[0]

    def predict_batch(self, images: Iterable[ImageLike], jobs: int = 0) -> list[Prediction]:
        """Read the digit in each image; the same answers as `predict`, in less time.

        Images may also be one array or tensor, (N, 28, 28) or (N, 1, 28, 28). `jobs` worker
        processes preprocess them, or none: a script that asks for some needs
        `if __name__ == "__main__":` on Windows and macOS.

        Raises:
            ValueError, OSError: as `predict`, for the first image that can't be read.
        """
        if not isinstance(images, Iterable) or isinstance(images, str | bytes):
            raise ValueError(f"predict_batch takes several images, not {type(images).__name__}")
        if jobs < 0:
            raise ValueError(f"jobs must be at least 0, not {jobs}")
        predictions = []
        with explaining_dead_workers():
            for batch in preprocess_batches(images, BATCH_SIZE, jobs):  # (n, 1, 28, 28)
                predictions += self.classify(batch)
        return predictions

    def read(self, image: ImageLike) -> list[list[FoundDigit]]:
        """Find and read all the digits in one image, such as a number or a page of them.

        Returns its lines from top to bottom, each with its digits from left to right. Left out is
        what the network is less sure of than the square root of `min_confidence`. In a line where
        it is sure of half or more, it accepts the others at a lower confidence. Returns [] if
        most of the ink is likely that of no digit. Raises ValueError and OSError as `predict` does.
        """
        with naming(image):
            gray, size = to_grayscale(image)
            lines = read_page(gray, self.classify)
        every = [candidate for line in lines for candidate in line.digits]
        likely = sum(candidate.ink * candidate.alone for candidate in every)
        sure = self.min_confidence**SURE_POWER
        # A picture need be no surer than a digit.
        if likely < min(MIN_LIKELIHOOD, sure) * sum(line.ink for line in lines):
            return []
        found = [self.accept(line.digits, size, sure) for line in lines]
        return [line for line in found if line]

    def accept(
        self, line: list[Candidate], size: tuple[int, int], limit: float
    ) -> list[FoundDigit]:
        """Return those digits of a line whose confidence reaches the limit.

        Where half of a line do, the others are digits of the same hand: theirs is a lower one.
        """
        n_sure = sum(candidate.confidence >= limit for candidate in line)
        if n_sure >= MIN_SHARE * len(line):
            limit = self.min_confidence**LINE_POWER
        found: list[FoundDigit] = []
        parted = False  # what is left out parts two numbers as well
        for candidate in line:
            parted |= candidate.starts_number
            if candidate.confidence >= limit:
                number = found[-1].number + parted if found else 0
                found.append(FoundDigit(*candidate.reading, in_pixels(candidate.box, size), number))
                parted = False
            else:
                parted = True
        return found

    @torch.inference_mode()
    def classify(self, images: torch.Tensor) -> list[Prediction]:
        """Classify a preprocessed image, (1, 28, 28), or N, (N, 1, 28, 28); else ValueError."""
        if images.shape[-3:] != (1, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"preprocessed images are (N, 1, 28, 28), not {tuple(images.shape)}")
        batches = images.view(-1, 1, IMAGE_SIZE, IMAGE_SIZE).split(BATCH_SIZE)
        logits = torch.cat([self.model(batch.to(self.device)) for batch in batches])  # (N, 10)
        probabilities = logits.softmax(dim=1).cpu()
        confidences, digits = probabilities.max(dim=1)
        rows = zip(digits.tolist(), confidences.tolist(), probabilities.tolist(), strict=True)
        return [Prediction(digit, top, tuple(row)) for digit, top, row in rows]

    def preprocess(self, image: ImageLike) -> torch.Tensor:
        """Turn one image into what the network reads: float32, (1, 28, 28), normalized."""
        return preprocess(image)


def in_pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the pixels of an image, (width, height), that a box of shares of it touches."""
    (left, top, right, bottom), (width, height) = box, size
    first = math.floor(left * width), math.floor(top * height)
    return *first, math.ceil(right * width), math.ceil(bottom * height)


# ---- Command line ------------------------------------------------------------------------


def annotate(image: Image.Image, lines: list[list[FoundDigit]]) -> Image.Image:
    """Return an image, upright, with a box around each digit that was found, named above it."""
    upright = flatten_transparency(to_bands(ImageOps.exif_transpose(image)).convert("RGBA"))
    draw = ImageDraw.Draw(upright)
    width = max(1, max(upright.size) // 400)
    for found in itertools.chain.from_iterable(lines):
        left, top, right, bottom = found.box
        size = max(12, (bottom - top) // 3)
        draw.rectangle((left, top, right - 1, bottom - 1), outline="red", width=width)
        draw.text((left, max(0, top - size)), str(found.digit), "red", font_size=size)
    return upright


def read_digit(
    image: str | bytes, predictor: MNISTPredictor, arguments: argparse.Namespace
) -> tuple[str, dict]:
    """Read the digit of an image; return it in words, and all that JSON tells of it."""
    seen = predictor.preprocess(image)
    if arguments.save_preprocessed:  # ten times as large, to be looked at
        size = (10 * IMAGE_SIZE, 10 * IMAGE_SIZE)
        write_png(arguments.save_preprocessed, to_image(seen).resize(size, Image.NEAREST))
    [prediction] = predictor.classify(seen)
    if prediction.confidence < predictor.min_confidence and not arguments.guess:
        return "no digit", prediction._asdict()
    return f"{prediction.digit} ({prediction.confidence:.1%})", prediction._asdict()


def read_number(
    image: str | bytes, predictor: MNISTPredictor, arguments: argparse.Namespace
) -> tuple[str, dict]:
    """Read all the digits of an image; return them in words, and all that JSON tells of them."""
    lines = predictor.read(image)
    if arguments.annotated:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            write_png(arguments.annotated, annotate(opened, lines))
    numbers = [split_numbers(line) for line in lines]
    rows = [" ".join(line) for line in numbers]
    details = {
        "number": " ".join(rows),
        "numbers": numbers,
        "lines": [[digit._asdict() for digit in line] for line in lines],
    }
    return "\n".join(rows) or "no digit", details


def split_numbers(line: list[FoundDigit]) -> list[str]:
    """Return the numbers of a line."""
    groups = itertools.groupby(line, key=lambda found: found.number)
    return ["".join(str(found.digit) for found in group) for _, group in groups]


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, Iterable[tuple]]:
    """Return the arguments and the images; raises SystemExit(2) for invalid arguments."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # an error is one line
        description="Read the handwritten digit in each image.",
    )
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="a file, a folder, a pattern, or - for stdin")
    add("--files-from", metavar="LIST", help="read the images that a file names, one a line")
    add("--checkpoint", default=SHIPPED_WEIGHTS, help="weights, as train.py saves them")
    add("--jobs", type=int, metavar="N", help="read N images at once [as many as there are cores]")
    add("--json", action="store_true", help="print one JSON object a line")
    add("--guess", action="store_true", help="name the best digit even where it is no digit")
    add("--number", action="store_true", help="read all the digits of each image, line by line")
    add("--annotated", metavar="OUT.png", help="with --number: write the image and what was found")
    add("--save-preprocessed", metavar="OUT.png", help="write what the network sees of the image")
    arguments = parser.parse_args(argv)
    if "" in vars(arguments).values():
        parser.error("the name of a file must not be empty")
    if not arguments.images and not arguments.files_from:
        parser.error("give images, or --files-from LIST")
    if arguments.number and (arguments.save_preprocessed or arguments.guess):
        parser.error("--save-preprocessed and --guess are for one digit, not for --number")
    if arguments.annotated and not arguments.number:
        parser.error("--annotated goes with --number")
    if arguments.jobs is not None and arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {arguments.jobs}")
    items = find_images(arguments.images, arguments.files_from)
    first = list(itertools.islice(items, 2))
    jobs = arguments.jobs or torch.get_num_threads()
    arguments.jobs = jobs if jobs > 1 and len(first) > 1 else 0  # worker processes
    if len(first) > 1 and (arguments.annotated or arguments.save_preprocessed):
        option = "--annotated" if arguments.annotated else "--save-preprocessed"
        parser.error(f"{option} takes one image, not several")
    items = itertools.chain(first, items)
    if sys.stderr.isatty():
        from tqdm import tqdm  # here, because a single image must not wait for it

        items = tqdm(items, unit="image", leave=False, delay=1)
    return arguments, items


def read_images(arguments: argparse.Namespace, items: Iterable[tuple]) -> int:
    """Print a line for each image as it is read; return 1 if one could not be read."""
    set_up_pillow(MAX_PHOTO_PIXELS // 2)
    read = functools.partial(read_item, MNISTPredictor(arguments.checkpoint), arguments)
    failures = 0
    with explaining_dead_workers(), warnings.catch_warnings():
        # More processes than cores are what the user asked for.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        for path, answer, remarks in work_ahead(read, items, arguments.jobs):
            for remark in remarks:
                print(f"inference.py: warning: {printable(remark)}", file=sys.stderr)
            if isinstance(answer, Exception):
                failures += 1
                print(f"inference.py: error: {printable(str(answer))}", file=sys.stderr)
            elif arguments.json:
                print(json.dumps({"file": path} | answer[1]), flush=True)
            else:
                separator = "\n" if "\n" in answer[0] else " "  # lines stand below the name
                print(f"{printable(path)}:{separator}{answer[0]}", flush=True)
    return 1 if failures else 0


def read_item(
    predictor: MNISTPredictor, arguments: argparse.Namespace, item: tuple
) -> tuple[str, tuple[str, dict] | Exception, list[str]]:
    """Read an image; return its path, an answer or an error as a value, and warnings."""
    path, image = item
    read = read_number if arguments.number else read_digit
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")  # Pillow's, about oddities of a file that it can read
        warnings.filterwarnings("always", category=UserWarning, module="reading")
        try:
            if isinstance(image, Exception):
                raise image
            answer = read(image, predictor, arguments)
        except (OSError, ValueError) as error:
            answer = ValueError(f"-: {error}") if path == "-" else error
        except MemoryError:
            answer = ValueError(f"{path}: there is not enough memory to read it")
    return path, answer, [str(warning.message) for warning in caught]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    code = exit_code("inference.py", lambda: read_images(*parse_arguments(argv)))
    join_queue_threads()
    return code


if __name__ == "__main__":
    sys.exit(main())
