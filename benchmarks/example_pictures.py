"""Make docs/digit.jpg and docs/page.jpg, which the README reads first, and docs/ink.png.

    python benchmarks/example_pictures.py

Digits of the bundled sample that no network of ours was tested on, as a phone might see them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

import photographs  # noqa: E402
from whole_numbers import on_shadow, write_page  # noqa: E402

from reading.image_io import to_grayscale  # noqa: E402
from reading.ink import find_ink, resize_to  # noqa: E402
from reading.preprocessing import to_mnist  # noqa: E402
from training.data import load_sample  # noqa: E402

DIGIT = 4  # the number of the digit in the sample's test part that docs/digit.jpg shows
INK_DIGIT = 250  # and of that in docs/ink.png
SIDE, GAP = 320, 10  # pixels of each of the three pictures of docs/ink.png, and between them


def show_ink(digit: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Draw a digit on squared paper in bad light, the ink that is found, and the 28x28 pixels."""
    squares = photographs.on_lines(photographs.page(digit, rng), True, rng)
    photo = photographs.to_image(squares * photographs.light(squares.shape[:2], 0.35, rng))
    gray, _ = to_grayscale(photo)
    found = find_ink(resize_to(gray, SIDE)), to_mnist(gray)
    pictures = [photo, *(Image.fromarray((255 * values).astype(np.uint8)) for values in found)]
    sheet = Image.new("RGB", (3 * SIDE + 2 * GAP, SIDE), "white")
    for i, picture in enumerate(pictures):
        square = ImageOps.pad(picture.convert("RGB"), (SIDE, SIDE), Image.NEAREST)
        sheet.paste(square, (i * (SIDE + GAP), 0))
    return sheet


def main(argv: list[str] | None = None) -> int:
    """Write the pictures; return the exit code."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    digits = load_sample(train=False)
    images, labels = digits.images.numpy(), digits.labels.numpy()
    rng = np.random.default_rng(0)
    photo = photographs.phone_photo(images[DIGIT], rng)
    (PROJECT_DIR / "docs" / "digit.jpg").write_bytes(photo)
    ink, _ = write_page(images, labels, rng, lines=(4, 4), length=(6, 9), height=(90, 91))
    on_shadow(ink, rng).save(PROJECT_DIR / "docs" / "page.jpg", quality=85)
    show_ink(images[INK_DIGIT], rng).save(PROJECT_DIR / "docs" / "ink.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
