"""Read handwritten digits from images with the trained network.

    python inference.py digit.png

    python inference.py --number photo.jpg

    from inference import MNISTPredictor
    digit, confidence, probabilities = MNISTPredictor().predict("digit.png")
    lines = MNISTPredictor().read("photo.jpg")

Any image will do: preprocessing.py makes it look like one of MNIST's.
"""

import argparse
import glob
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageOps

from apps.kaggle import write_submission
from model import IMAGE_SIZE
from reading.checkpoint import MAX_FILE_SIZE, load_checkpoint
from reading.files import naming_file, prepare_streams, write_atomically
from reading.image_io import ImageLike, naming, silence_libtiff, to_grayscale
from reading.jobs import survive_forks, work_ahead
from reading.preprocessing import preprocess, preprocess_batch, to_image
from reading.segmentation import read_page

SHIPPED_WEIGHTS = Path(__file__).resolve().parent / "weights" / "mnist_cnn.pt"
LEAST_SHARE = 0.5  # of what may be digits: where no more are sure, the picture holds none
CUT_POWER = 0.2  # of the least confidence: that of a digit that was cut out of other ink
LINE_POWER = 7.0  # of the least confidence: that of a digit in a line of which most are sure
FEW = 4  # images that a thread takes at once
BATCH_SIZE = 64  # images in one forward pass; more are too many for the processor's cache


class Prediction(NamedTuple):
    """What the network makes of one image."""

    digit: int  # 0..9
    confidence: float  # 0..1, the probability of that digit
    probabilities: tuple[float, ...]  # of the ten digits; they sum to 1


class FoundDigit(NamedTuple):
    """A digit in a picture, what the network makes of it, and where it is."""

    digit: int  # 0..9
    confidence: float  # 0..1, the probability of that digit
    probabilities: tuple[float, ...]  # of the ten digits; they sum to 1
    box: tuple[int, int, int, int]  # left, top, right, bottom: pixels of the upright original


class MNISTPredictor:
    """Reads digits from images of any kind and size.

    An image is a path, the bytes of an image file, a binary file object, a PIL image, a NumPy
    array or a tensor. Arrays and tensors hold integers 0..255, or floats 0..1, in shape
    (H, W), (1, H, W), (H, W, 1), (H, W, 3: RGB) or (H, W, 4: RGBA). Ink may be dark on light
    or light on dark, or stand alone on a transparent ground.

    Args:
        checkpoint: a file that train.py wrote; by default the weights that ship.
        device: where the network runs, such as "cpu", "cuda" or "mps".
        least_confidence: 0..1; what is below it is no digit for `read`. By default that of the
            checkpoint, which 99.5% of the training digits reach.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint can't be used (`CheckpointError`), or there is no such device.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike = SHIPPED_WEIGHTS,
        device: str | torch.device = "cpu",
        least_confidence: float | None = None,
    ) -> None:
        survive_forks()
        model, self.metadata = load_checkpoint(checkpoint, device)
        self.model = model.to(memory_format=torch.channels_last)
        self.device = torch.device(device)
        self.temperature = float(self.metadata.get("temperature", 1))
        if least_confidence is None:
            least_confidence = float(self.metadata.get("least_confidence", 0))
        if not 0 <= least_confidence <= 1:
            raise ValueError(f"least_confidence must be in 0..1, not {least_confidence!r}")
        self.least_confidence = least_confidence

    def predict(self, image: ImageLike) -> Prediction:
        """Read the digit in one image.

        Raises:
            ValueError: it is no image, damaged, blank, or of a wrong shape, type or range.
            OSError: the file can't be read; FileNotFoundError if there is none.
        """
        return self.predict_batch([image])[0]

    def predict_batch(
        self, images: Iterable[ImageLike], jobs: int | None = None
    ) -> list[Prediction]:
        """Read the digit in each image; the same answers as `predict`, in less time.

        So many threads as `jobs` share the work; by default, as many as PyTorch computes with.

        Raises:
            ValueError, OSError: as `predict`, for the first image that can't be read.
        """
        if not isinstance(images, Iterable) or isinstance(images, str | bytes):
            raise ValueError(f"predict_batch takes several images, not {type(images).__name__}")

        def work(batch: list[ImageLike]) -> list[Prediction]:
            return self.classify(preprocess_batch(batch))

        predictions = []
        for _, answer, error in work_ahead(work, batches(images), jobs or torch.get_num_threads()):
            if error:
                raise error
            predictions += answer
        return predictions

    def read(self, image: ImageLike) -> list[list[FoundDigit]]:
        """Find and read all the digits in one image, such as a number or a page of them.

        Returns its lines from top to bottom, each with its digits from left to right, without
        what the network is less sure of than `least_confidence`, though it may be a good deal less
        sure of a digit among sure ones; [] if there is ink, but no digit, or if most of what might
        be some is unsure.

        Raises:
            ValueError, OSError: as `predict`.
        """
        with naming(image):
            gray, (width, height) = to_grayscale(image)
            lines = read_page(gray, self.classify)

        def in_pixels(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
            left, top, right, bottom = box
            least = math.floor(left * width), math.floor(top * height)
            return *least, math.ceil(right * width), math.ceil(bottom * height)

        # Of the pieces of anything, some look like digits: what was cut must be surer. Where most
        # are unsure, it is a drawing; where most are sure, the others are digits of the same hand.
        least = self.least_confidence, self.least_confidence**CUT_POWER
        sure = [[found.confidence >= least[cut] for found, _, cut in line] for line in lines]
        if sum(map(sum, sure)) <= LEAST_SHARE * sum(map(len, lines)):
            return []
        least_in_line = self.least_confidence**LINE_POWER
        digits = []
        for line, is_sure in zip(lines, sure, strict=True):
            most = sum(is_sure) > LEAST_SHARE * len(line)
            digits.append(
                [
                    FoundDigit(*found, in_pixels(box))
                    for (found, box, _), certain in zip(line, is_sure, strict=True)
                    if certain or (most and found.confidence >= least_in_line)
                ]
            )
        return [line for line in digits if line]

    @torch.inference_mode()
    def classify(self, images: torch.Tensor) -> list[Prediction]:
        """Read what `preprocess` returned, once or N times: (1, 28, 28) or (N, 1, 28, 28).

        The checkpoint's temperature makes the probabilities calibrated (Guo et al. 2017,
        arXiv:1706.04599).
        """
        batches = images.view(-1, 1, IMAGE_SIZE, IMAGE_SIZE).split(BATCH_SIZE)
        logits = torch.cat(
            [self.model(batch.to(self.device)).cpu() for batch in batches]
        )  # (N, 10)
        probabilities = (logits / self.temperature).softmax(dim=1)
        confidences, digits = probabilities.max(dim=1)
        rows = zip(digits.tolist(), confidences.tolist(), probabilities.tolist(), strict=True)
        return [Prediction(digit, top, tuple(row)) for digit, top, row in rows]

    def preprocess(self, image: ImageLike) -> torch.Tensor:
        """Turn one image into what the network reads: float32, (1, 28, 28), normalized."""
        return preprocess(image)


def batches(images: Iterable[ImageLike]) -> Iterator[list[ImageLike]]:
    """Part images into lists: of many ready digits, or of a few that are work and may be large."""
    images = iter(images)
    for image in images:
        size = image.numel() if torch.is_tensor(image) else getattr(image, "size", None)
        count = BATCH_SIZE if size == IMAGE_SIZE**2 else FEW
        yield [image, *itertools.islice(images, count - 1)]


# ---- Command line ------------------------------------------------------------------------


def find_images(arguments: Iterable[str]) -> Iterator[str]:
    """Yield images one by one: files, those that match patterns, and those in folders."""
    for argument in arguments:
        if os.path.isdir(argument):
            found = images_below(argument)
        elif not os.path.exists(argument) and glob.has_magic(argument):
            found = iter(sorted(glob.glob(argument, recursive=True)))
        else:
            found = iter(())
        yield next(found, argument)  # where nothing is found, reading it says why
        yield from found


def images_below(folder: str) -> Iterator[str]:
    """Yield the images in a folder and its folders, in an order that is always the same."""
    known = Image.registered_extensions()
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in known:
                yield os.path.join(parent, name)


def read_list(path: str) -> Iterator[str]:
    """Yield the paths in a file that has one in each line."""
    with naming_file(path), open(path, "rb") as file:
        for line in file:
            if name := line.rstrip(b"\r\n"):
                yield os.fsdecode(name)


def printable(text: str) -> str:
    """Return a text as one line that does nothing to a terminal, whatever a file is called."""
    return text if text.isprintable() else repr(text)[1:-1]


def annotate(image: Image.Image, lines: list[list[FoundDigit]]) -> Image.Image:
    """Return an image, upright, with a box around each digit that `read` found, and its name."""
    upright = ImageOps.exif_transpose(image).convert("RGBA").convert("RGB")
    draw = ImageDraw.Draw(upright)
    width = max(1, max(upright.size) // 400)
    for found in itertools.chain.from_iterable(lines):
        left, top, right, bottom = found.box
        size = max(12, (bottom - top) // 3)
        draw.rectangle((left, top, right - 1, bottom - 1), outline="red", width=width)
        draw.text((left, max(0, top - size)), str(found.digit), "red", font_size=size)
    return upright


def save_png(path: str, image: Image.Image) -> None:
    """Write an image as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments; SystemExit with code 2 where they make no sense."""
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
    add("--kaggle", metavar="test.csv", help="read the table of Kaggle's Digit Recognizer instead")
    add("--submission", metavar="OUT.csv", help="where the answers for --kaggle go")
    add("--export", metavar="OUT.onnx", help="write the network as ONNX, and read nothing")
    arguments = parser.parse_args(argv)
    from_images = bool(arguments.images or arguments.files_from)
    for_images = ("jobs", "json", "guess", "number", "annotated", "save_preprocessed")
    given = [name for name in for_images if getattr(arguments, name) not in (None, False)]
    if "" in vars(arguments).values():
        parser.error("the name of a file must not be empty")
    if bool(arguments.kaggle) != bool(arguments.submission):
        parser.error("--kaggle test.csv and --submission submission.csv go together")
    if from_images + bool(arguments.kaggle) + bool(arguments.export) != 1:
        parser.error("give images, or --kaggle test.csv --submission submission.csv, or --export")
    if given and not from_images:
        parser.error(f"--{given[0].replace('_', '-')} is for images, not for --kaggle or --export")
    if arguments.number and (arguments.save_preprocessed or arguments.guess):
        parser.error("--save-preprocessed and --guess are for one digit, not for --number")
    if arguments.annotated and not arguments.number:
        parser.error("--annotated goes with --number")
    if arguments.jobs is not None and arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {arguments.jobs}")
    arguments.paths = find_images(arguments.images)
    if arguments.files_from:
        arguments.paths = itertools.chain(arguments.paths, read_list(arguments.files_from))
    if arguments.save_preprocessed or arguments.annotated:
        arguments.paths = list(itertools.islice(arguments.paths, 2))
        if len(arguments.paths) > 1:
            option = "--annotated" if arguments.annotated else "--save-preprocessed"
            parser.error(f"{option} takes one image, not several")
    return arguments


def run_command(arguments: argparse.Namespace) -> int:
    """Read what the arguments say; return the exit code."""
    predictor = MNISTPredictor(arguments.checkpoint)
    if arguments.kaggle:
        count = write_submission(predictor.predict_batch, arguments.kaggle, arguments.submission)
        print(f"{printable(arguments.submission)}: {count:,} digits, ready to submit")
        return 0
    if arguments.export:
        from apps.export import write_onnx  # here, because reading digits needs nothing of it

        write_onnx(
            arguments.export, predictor.model, predictor.temperature, predictor.predict_batch
        )
        print(f"{printable(arguments.export)}: ONNX, reads the bundled digits alike")
        return 0
    return read_images(predictor, arguments)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    prepare_streams()
    silence_libtiff()
    try:
        return run_command(parse_arguments(argv))
    except KeyboardInterrupt:
        print("inference.py: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"inference.py: error: {printable(str(error))}", file=sys.stderr)
        return 1


def read_images(predictor: MNISTPredictor, arguments: argparse.Namespace) -> int:
    """Print a line for each image as it is read; return 1 if one could not be read."""
    paths = arguments.paths
    if sys.stderr.isatty():
        from tqdm import tqdm  # here, because a single image must not wait for it

        paths = tqdm(paths, unit="image", leave=False, delay=1)
    read = read_number if arguments.number else read_digit

    def work(path: str) -> tuple[str, dict]:
        if path != "-":
            return read(path, predictor, arguments)
        with open(0, "rb", closefd=False) as stdin:
            return read(stdin.read(MAX_FILE_SIZE), predictor, arguments)

    failures, jobs = 0, arguments.jobs or torch.get_num_threads()
    for path, answer, error in work_ahead(work, paths, jobs, forked=True):
        if isinstance(error, OSError | ValueError):
            failures += 1
            reason = f"-: {error}" if path == "-" else str(error)
            print(f"inference.py: error: {printable(reason)}", file=sys.stderr)
        elif error:
            raise error
        elif arguments.json:
            print(json.dumps({"file": path} | answer[1]), flush=True)
        else:
            print(f"{printable(path)}: {answer[0]}", flush=True)
    return 1 if failures else 0


def read_digit(
    image: str | bytes, predictor: MNISTPredictor, arguments: argparse.Namespace
) -> tuple[str, dict]:
    """Read the digit of an image; return it in words, and all that JSON tells of it."""
    seen = predictor.preprocess(image)
    if arguments.save_preprocessed:  # ten times as large, to be looked at
        size = (10 * IMAGE_SIZE, 10 * IMAGE_SIZE)
        save_png(arguments.save_preprocessed, to_image(seen).resize(size, Image.NEAREST))
    [prediction] = predictor.classify(seen)
    if prediction.confidence < predictor.least_confidence and not arguments.guess:
        return "no digit", prediction._asdict()
    return f"{prediction.digit} ({prediction.confidence:.1%})", prediction._asdict()


def read_number(
    image: str | bytes, predictor: MNISTPredictor, arguments: argparse.Namespace
) -> tuple[str, dict]:
    """Read all the digits of an image; return them in words, and all that JSON tells of them."""
    lines = predictor.read(image)
    if arguments.annotated:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            save_png(arguments.annotated, annotate(opened, lines))
    number = " ".join("".join(str(digit.digit) for digit in line) for line in lines)
    details = [[digit._asdict() for digit in line] for line in lines]
    return number or "no digit", {"number": number, "lines": details}


if __name__ == "__main__":
    sys.exit(main())
