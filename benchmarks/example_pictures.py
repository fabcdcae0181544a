"""Make docs/digit.jpg and docs/page.jpg, on which the README's first examples run.

    python benchmarks/example_pictures.py

Digits of the bundled sample that no network of ours was tested on, as a phone might see them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

import photographs  # noqa: E402
from whole_numbers import on_shadow, write_page  # noqa: E402

from training.data import load_sample  # noqa: E402

DIGIT = 4  # the number of the digit in the sample's test part that docs/digit.jpg shows


def main(argv: list[str] | None = None) -> int:
    """Write both pictures; return the exit code."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    digits = load_sample(train=False)
    images, labels = digits.images.numpy(), digits.labels.numpy()
    rng = np.random.default_rng(0)
    photo = photographs.phone_photo(images[DIGIT], rng)
    (PROJECT_DIR / "docs" / "digit.jpg").write_bytes(photo)
    ink, _ = write_page(images, labels, rng, lines=(4, 4), length=(6, 9), height=(90, 91))
    on_shadow(ink, rng).save(PROJECT_DIR / "docs" / "page.jpg", quality=85)
    return 0


if __name__ == "__main__":
    sys.exit(main())
