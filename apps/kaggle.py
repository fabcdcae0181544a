"""Read the digits in a table, such as Kaggle's Digit Recognizer has, and write a submission.

    python -m apps.kaggle test.csv submission.csv

https://www.kaggle.com/competitions/digit-recognizer
"""

import argparse
import codecs
import itertools
import os
import sys
from typing import NamedTuple

import numpy as np

from inference import SHIPPED_WEIGHTS, MNISTPredictor
from model import IMAGE_SIZE, NUM_CLASSES
from reading.files import exit_code, open_regular, prepare_streams, printable, write_atomically

MAX_TABLE_SIZE = 500_000_000  # bytes; Kaggle's train.csv has 77 million, mnist_train.csv 109
N_PIXELS = IMAGE_SIZE**2
SIDE = range(1, IMAGE_SIZE + 1)
HEADERS = (  # as the pixels are called in the tables in which MNIST is passed around
    [f"pixel{i}" for i in range(N_PIXELS)],
    [f"pixel{i}" for i in range(1, N_PIXELS + 1)],
    [f"{row}x{column}" for row in SIDE for column in SIDE],
    [str(i) for i in range(N_PIXELS)],
)
LABEL_NAMES = {"label", "class"}
INDEX_NAMES = {"", "id", "index", "imageid", "unnamed: 0"}


def read_kaggle(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a table of digits: 784 pixels in each line, perhaps with a label or an index.

    The header, if there is one, calls the pixels pixel0 to pixel783, pixel1 to pixel784, 1x1 to
    28x28 or 0 to 783. Without a header the pixels stand last; a column before them is an index if
    it numbers the lines, and else the label. Returns the images, uint8 (N, 28, 28), and the
    labels, uint8 (N,), or None if the table has none.

    Raises:
        ValueError: names the first line that does not hold what it should, or the file if it
            is too large.
        OSError: the file can't be read; FileNotFoundError if there is none.
    """
    images, labels, _ = read_table(path)
    return images, labels


class Columns(NamedTuple):
    """What stands where in each line of a table."""

    count: int
    pixels: slice
    label: int | None


def read_table(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Read a table as `read_kaggle` does; return also the number of the first digit's line."""
    pixels, labels, empty = bytearray(), [], None
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_TABLE_SIZE:
            raise ValueError(f"{path}: too large: over {MAX_TABLE_SIZE:,} bytes")
        first = file.readline().removeprefix(codecs.BOM_UTF8)
        columns, lines, start = find_columns(first), enumerate(file, start=2), 2
        if columns is None and (columns := guess_columns(first)):
            lines, start = itertools.chain([(1, first)], lines), 1
        if columns is None:
            expected = "the 784 pixels of a digit, or a header: pixel0 to pixel783, 1x1 to 28x28"
            raise ValueError(f"{path}: line 1: not {expected}")
        for number, line in lines:
            if not line.strip():
                empty = empty or number
                continue
            if empty:
                raise ValueError(f"{path}: line {empty}: it is empty")
            values = line.split(b",")
            if len(values) != columns.count:
                raise ValueError(
                    f"{path}: line {number}: {len(values)} values, not {columns.count}"
                )
            try:
                pixels += bytes(map(int, values[columns.pixels]))
                if columns.label is not None:
                    labels.append(int(values[columns.label]))
            except ValueError:
                rule = "every value must be a whole number in 0..255"
                raise ValueError(f"{path}: line {number}: {rule}") from None
    if not pixels:
        raise ValueError(f"{path}: line {start}: no digits below the header")
    images = np.frombuffer(pixels, np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
    if not labels or (start == 1 and is_index(labels)):
        return images, None, start
    for number, label in enumerate(labels, start):
        if not 0 <= label < NUM_CLASSES:
            raise ValueError(f"{path}: line {number}: the label must be a digit, not {label}")
    return images, np.array(labels, np.uint8), start


def find_columns(header: bytes) -> Columns | None:
    """Find the columns by their names; None if this is no header of a table of digits."""
    names = [
        name.strip(' "').lower() for name in header.decode("utf-8", "replace").strip().split(",")
    ]
    for pixel_names in HEADERS:
        start = names.index(pixel_names[0]) if pixel_names[0] in names else 0
        pixels = slice(start, start + N_PIXELS)
        others = {name: i for i, name in enumerate(names) if not start <= i < start + N_PIXELS}
        if names[pixels] == pixel_names and others.keys() <= LABEL_NAMES | INDEX_NAMES:
            label = [i for name, i in others.items() if name in LABEL_NAMES]
            return Columns(len(names), pixels, label[0] if label else None)
    return None


def guess_columns(line: bytes) -> Columns | None:
    """Tell the columns of a table without a header by their number: the pixels are the last."""
    values = line.split(b",")
    others = len(values) - N_PIXELS
    if others not in (0, 1, 2) or not all(value.strip().isdigit() for value in values):
        return None
    return Columns(len(values), slice(others, None), others - 1 if others else None)


def is_index(column: list[int]) -> bool:
    """Whether a column numbers the lines, beyond what labels may be."""
    return max(column) >= NUM_CLASSES and column == list(range(column[0], column[0] + len(column)))


def write_submission(
    predictor: MNISTPredictor, table: str | os.PathLike, path: str | os.PathLike
) -> str:
    """Read the digits in a table, write them as ImageId,Label; return what was done in words.

    Raises ValueError or OSError if there is no answer for one of them: nothing is written then.
    """
    images, labels, start = read_table(table)
    try:
        predictions = predictor.predict_batch(images)
    except ValueError:
        for number, image in enumerate(images, start):  # which line was it?
            try:
                predictor.preprocess(image)
            except ValueError as error:
                raise ValueError(f"{table}: line {number}: {error}") from error
        raise
    digits = [prediction.digit for prediction in predictions]
    rows = [f"{i},{digit}\n" for i, digit in enumerate(digits, start=1)]
    write_atomically(path, "".join(["ImageId,Label\n", *rows]).encode())
    if labels is None:
        return f"{len(digits):,} digits, ready to submit"
    return f"{len(digits):,} digits, {(labels == digits).sum():,} of them as labelled in the table"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    prepare_streams()
    parser = argparse.ArgumentParser(
        prog="kaggle.py",
        usage=argparse.SUPPRESS,  # an error is one line
        description="Read the digits in a table, and write a submission to Kaggle.",
    )
    parser.add_argument("table", metavar="test.csv", help="784 pixels a line, as Kaggle has them")
    parser.add_argument("submission", metavar="submission.csv", help="where the answers go")
    parser.add_argument("--checkpoint", default=SHIPPED_WEIGHTS, help="weights of train.py")
    arguments = parser.parse_args(argv)

    def command() -> int:
        predictor = MNISTPredictor(arguments.checkpoint)
        done = write_submission(predictor, arguments.table, arguments.submission)
        print(f"{printable(arguments.submission)}: {done}")
        return 0

    return exit_code("kaggle.py", command)


if __name__ == "__main__":
    sys.exit(main())
