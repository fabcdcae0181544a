"""How many digits `MNISTPredictor` reads in images as people have them, kind by kind.

    python benchmarks/inference_accuracy.py [--each 100] [--seed 0] [--data-dir data]

The images are made of MNIST's digits by `photographs.py`. "naive resize" is what the usual
script does to an image: make it gray, resize it to 28x28, invert it if it is light, normalize;
the network is the same. An image that is refused (ValueError) counts as a miss.

The digits are those of MNIST's test set if --data-dir or the variable MNIST_DIR names a folder
that has MNIST/raw/; else the bundled ones, on which the shipped weights were trained.
"""

import argparse
import io
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT_DIR), str(PROJECT_DIR / "benchmarks")]

from photographs import KINDS, STRAIGHT, ImageLike, photograph, straight_strokes  # noqa: E402

from inference import MNISTPredictor  # noqa: E402
from model import PIXEL_MEAN, PIXEL_STD, normalize  # noqa: E402
from training.data import Digits, load_mnist, load_sample  # noqa: E402

THUMBNAIL = 160  # pixels, of an example on the contact sheet


class Example(NamedTuple):
    """One image for the contact sheet."""

    kind: str
    image: Image.Image  # a thumbnail, upright, RGBA
    seen: np.ndarray | None  # what the network saw, (28, 28), 0..255; None if it was refused
    label: int
    read: int | None  # the answer; None if the image was refused


def choose_digits(digits: Digits, each: int, seed: int) -> Digits:
    """Take `each` digits at random, equally many of each class, the classes in turns."""
    rng = np.random.default_rng(seed)
    classes = [
        rng.permutation((digits.labels == label).nonzero().flatten().numpy())[: each // 10]
        for label in range(10)
    ]
    chosen = torch.from_numpy(np.stack(classes, axis=1).flatten())
    return digits[chosen]


def opened(image: ImageLike) -> Image.Image:
    """Return a PIL image of what may be the bytes of a file."""
    return Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image


@torch.inference_mode()
def naive_resize(predictor: MNISTPredictor, image: ImageLike) -> int:
    """Read an image as most tutorials do."""
    pixels = np.asarray(opened(image).convert("L").resize((28, 28)))
    if pixels.mean() > 127:
        pixels = 255 - pixels
    images = normalize(torch.from_numpy(np.array(pixels)).unsqueeze(0))
    return int(predictor.model(images.to(predictor.device)).argmax())


def ours(predictor: MNISTPredictor, image: ImageLike) -> tuple[int | None, float]:
    """Read an image with `MNISTPredictor`, and say how sure it is; None if it is refused."""
    try:
        return predictor.predict(image)[:2]
    except ValueError:
        return None, 0.0


def example(
    predictor: MNISTPredictor, kind: str, image: ImageLike, label: int, read: int | None
) -> Example:
    """Keep a thumbnail of an image, and what the network saw of it."""
    seen = None
    if read is not None:
        tensor = predictor.preprocess(image)[0]  # (28, 28)
        seen = ((tensor * PIXEL_STD + PIXEL_MEAN) * 255).numpy()
    thumbnail = ImageOps.exif_transpose(opened(image))
    if thumbnail.mode.startswith("I"):
        thumbnail = Image.fromarray((np.asarray(thumbnail) // 257).astype(np.uint8))
    thumbnail = thumbnail.convert("RGBA")
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return Example(kind, thumbnail, seen, label, read)


def two_of(examples: list[Example]) -> list[Example]:
    """Choose two: one that was read rightly, and the first miss; two of a sort if need be."""
    right = [item for item in examples if item.read == item.label]
    missed = [item for item in examples if item.read != item.label]
    return (right[:1] + missed[:1] + right[1:] + missed[1:])[:2]


def contact_sheet(examples: list[Example]) -> Figure:
    """Draw each example beside what the network saw of it; misses are in red."""
    across = 4  # examples in a row, two of a kind
    rows = -(-len(examples) // across)
    figure = Figure(figsize=(3 * across, 1.75 * rows + 0.8), layout="constrained")
    figure.suptitle("Image, and what the network saw of it: true digit → read as", fontsize=12)
    axes = figure.subplots(rows, 2 * across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for item, (left, right) in zip(examples, axes.reshape(-1, 2), strict=False):
        left.set_facecolor("0.75")  # shows through what is transparent
        left.axis("on")
        left.set(xticks=[], yticks=[])
        left.imshow(item.image)
        left.set_title(item.kind.replace(" (", "\n("), fontsize=7, wrap=True)
        answer = "refused" if item.read is None else item.read
        right_or_wrong = "black" if item.read == item.label else "red"
        right.set_title(f"{item.label} → {answer}", fontsize=9, color=right_or_wrong)
        if item.seen is not None:
            right.imshow(item.seen, cmap="gray", vmin=0, vmax=255)
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=100, help="images of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MNIST_DIR"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="OUT.png",
        help="draw two of each kind, one of them a miss if there is any",
    )
    arguments = parser.parse_args(argv)
    if arguments.data_dir:
        name = "MNIST's test set"
        digits = load_mnist(arguments.data_dir, train=False, download=False)
    else:
        name = "bundled digits, which the shipped weights were trained on"
        digits = load_sample(train=False)
    most = 10 * int(digits.labels.bincount().min())
    if not 10 <= arguments.each <= most or arguments.each % 10:
        parser.error(f"--each must be a multiple of 10, from 10 to {most}")
    digits = choose_digits(digits, arguments.each, arguments.seed)
    labels = digits.labels.tolist()
    predictor = MNISTPredictor()

    print(f"{name}; {arguments.each} images of each kind, seed {arguments.seed}\n")
    print("| kind | naive resize | ours |")
    print("| --- | --- | --- |")
    n_naive, n_ours, n_sure, examples = 0, 0, 0, []
    for row, kind in enumerate(arguments.kinds):
        shown = [2 * row % arguments.each, (2 * row + 1) % arguments.each]  # other digits each time
        naive_right, ours_right, kept = 0, 0, []
        for i, (digit, label) in enumerate(zip(digits.images.numpy(), labels, strict=True)):
            image = photograph(kind, digit, arguments.seed, i)
            read, confidence = ours(predictor, image)
            ours_right += read == label
            n_sure += read != label and confidence > 0.9
            naive_right += naive_resize(predictor, image) == label
            if arguments.contact_sheet and (i in shown or read != label):
                kept.append(example(predictor, kind, image, label, read))
        n = arguments.each
        print(f"| {kind} | {naive_right / n:.1%} | {ours_right / n:.1%} |", flush=True)
        n_naive, n_ours, examples = (
            n_naive + naive_right,
            n_ours + ours_right,
            examples + two_of(kept),
        )
    n = arguments.each * len(arguments.kinds)
    straight = list(STRAIGHT) * (arguments.each // len(STRAIGHT))
    rng = np.random.default_rng(arguments.seed)
    right = sum(ours(predictor, straight_strokes(digit, rng))[0] == digit for digit in straight)
    print(f"| plain 1, 4 and 7 of straight strokes | | {right / len(straight):.1%} |")
    print(f"| all {n:,} images | {n_naive / n:.1%} | {n_ours / n:.1%} |")
    print(f"\n{n_sure} of them were read wrongly with more than 90% confidence")
    if arguments.contact_sheet:
        contact_sheet(examples).savefig(arguments.contact_sheet, dpi=120)  # by Agg: no display
    return 0


if __name__ == "__main__":
    sys.exit(main())
