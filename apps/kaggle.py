"""Read the digits in a table, such as Kaggle's Digit Recognizer has, and write a submission.

    python -m apps.kaggle test.csv submission.csv

https://www.kaggle.com/competitions/digit-recognizer
"""

import argparse
import codecs
import os
import sys

import numpy as np

from inference import SHIPPED_WEIGHTS, MNISTPredictor
from model import IMAGE_SIZE, NUM_CLASSES
from reading.files import exit_code, open_regular, printable, write_atomically

MAX_TABLE_SIZE = 500_000_000  # bytes; Kaggle's train.csv has 77 million, mnist_train.csv 109
N_PIXELS = IMAGE_SIZE**2
# What the columns beside the pixels are called, in the tables in which MNIST is passed around.
LABEL_NAMES = {"label", "class"}
INDEX_NAMES = {"", "id", "index", "imageid", "unnamed: 0"}


def read_kaggle(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Read a table of digits: the 784 pixels of one in each line, perhaps a label and an index.

    A header names the label and the index; all other columns are pixels. Without a header, the
    pixels stand last, and what is left of them is an index if it numbers the lines, else the
    label. Returns the images, uint8 (N, 28, 28), the labels, uint8 (N,), or None if there are
    none, and the number of the first digit's line, 1 or 2.

    Raises:
        ValueError: names the first line that does not hold what it should, or the file if it
            is too large.
        OSError: the file can't be read; FileNotFoundError if there is none.
    """
    with open_regular(path) as file:
        content = file.read(MAX_TABLE_SIZE + 1)
    if len(content) > MAX_TABLE_SIZE:
        raise ValueError(f"{path}: too large: over {MAX_TABLE_SIZE:,} bytes")
    content = content.removeprefix(codecs.BOM_UTF8).replace(b'"', b"")  # values may be quoted, too
    lines = content.rstrip().split(b"\n")
    names = [name.strip().lower() for name in lines[0].decode(errors="replace").split(",")]
    has_header = not all(name.isdecimal() for name in names)
    n_columns, start = len(names), 1 + has_header
    if has_header:
        pixels = [i for i, name in enumerate(names) if name not in LABEL_NAMES | INDEX_NAMES]
        label = next((i for i, name in enumerate(names) if name in LABEL_NAMES), None)
    else:
        pixels = list(range(max(0, n_columns - N_PIXELS), n_columns))
        label = pixels[0] - 1 if pixels[0] else None
        ends = [(line.partition(b",")[0], line.rpartition(b",")[2].strip()) for line in lines]
        first, last = ({end[side] == b"0" for end in ends} for side in (0, 1))
        if label == 0 and first == {True} and last != {True}:  # a corner of MNIST has no ink
            pixels, label = list(range(N_PIXELS)), N_PIXELS
    in_a_row = pixels == list(range(pixels[0], pixels[0] + N_PIXELS)) if pixels else False
    if not in_a_row or n_columns > N_PIXELS + 2 or (has_header and len(set(names)) < n_columns):
        raise ValueError(f"{path}: line 1: not the 784 pixels of a digit, or a header for them")
    values, labels = bytearray(), []
    for number, line in enumerate(lines[has_header:], start):
        row = line.split(b",")
        if len(row) != n_columns:
            raise ValueError(f"{path}: line {number}: {len(row)} values, not {n_columns}")
        try:
            values += bytes(map(int, row[pixels[0] : pixels[-1] + 1]))
            labels += [] if label is None else [int(row[label])]
        except ValueError:
            reason = "every value must be a whole number in 0..255"
            raise ValueError(f"{path}: line {number}: {reason}") from None
    if not values:
        raise ValueError(f"{path}: line {start}: no digits below the header")
    images = np.frombuffer(values, np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
    numbered = bool(labels) and labels == list(range(labels[0], labels[0] + len(labels)))
    if label is None or (numbered and not has_header and max(labels) >= NUM_CLASSES):
        return images, None, start
    for number, value in enumerate(labels, start):
        if not 0 <= value < NUM_CLASSES:
            raise ValueError(f"{path}: line {number}: the label must be a digit, not {value}")
    return images, np.array(labels, np.uint8), start


def write_submission(
    predictor: MNISTPredictor, table: str | os.PathLike, path: str | os.PathLike
) -> str:
    """Read the digits in a table, write them as ImageId,Label; return what was done in words.

    Raises ValueError or OSError if there is no answer for one of them: nothing is written then.
    """
    images, labels, start = read_kaggle(table)
    try:
        digits = [prediction.digit for prediction in predictor.predict_batch(images)]
    except ValueError:
        for number, image in enumerate(images, start):  # which line was it?
            try:
                predictor.preprocess(image)
            except ValueError as error:
                raise ValueError(f"{table}: line {number}: {error}") from error
        raise
    rows = [f"{i},{digit}\n" for i, digit in enumerate(digits, start=1)]
    write_atomically(path, "".join(["ImageId,Label\n", *rows]).encode())
    if labels is None:
        return f"{len(digits):,} digits, ready to submit"
    return f"{len(digits):,} digits, {(labels == digits).sum():,} of them as labelled in the table"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="kaggle.py",
        usage=argparse.SUPPRESS,  # an error is one line
        description="Read the digits in a table, and write a submission to Kaggle.",
    )
    parser.add_argument("table", metavar="test.csv", help="784 pixels a line, as Kaggle has them")
    parser.add_argument("submission", metavar="submission.csv", help="where the answers go")
    parser.add_argument("--checkpoint", default=SHIPPED_WEIGHTS, help="weights of train.py")

    def command() -> int:
        arguments = parser.parse_args(argv)
        predictor = MNISTPredictor(arguments.checkpoint)
        done = write_submission(predictor, arguments.table, arguments.submission)
        print(f"{printable(arguments.submission)}: {done}")
        return 0

    return exit_code("kaggle.py", command)


if __name__ == "__main__":
    sys.exit(main())
