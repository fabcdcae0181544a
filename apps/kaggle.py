"""The tables of Kaggle's Digit Recognizer: read its digits, write a submission.

https://www.kaggle.com/competitions/digit-recognizer
"""

import os
from collections.abc import Callable, Sequence

import numpy as np

from model import IMAGE_SIZE, NUM_CLASSES
from reading.files import open_regular, write_atomically

MAX_TABLE_SIZE = 500_000_000  # bytes; Kaggle's train.csv has 77 million


def read_kaggle(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a table of Kaggle's Digit Recognizer: test.csv, or train.csv, which has labels.

    The header is pixel0,...,pixel783, after label in train.csv. Returns the images, uint8
    (N, 28, 28), and the labels, uint8 (N,), or None if the table has none.

    Raises:
        ValueError: names the first line that does not hold what it should, or the file if it
            is too large.
        OSError: the file can't be read; FileNotFoundError if there is none.
    """
    pixels = [f"pixel{i}" for i in range(IMAGE_SIZE**2)]
    with open_regular(path) as file:
        content = file.read(MAX_TABLE_SIZE + 1)
    if len(content) > MAX_TABLE_SIZE:
        raise ValueError(f"{path}: too large: over {MAX_TABLE_SIZE:,} bytes")
    header, *lines = content.rstrip().split(b"\n")
    names = [name.strip(' "') for name in header.decode("utf-8-sig", "replace").strip().split(",")]
    labelled = names[0] == "label"
    if names[labelled:] != pixels:
        raise ValueError(
            f"{path}: line 1: not the header of Kaggle's Digit Recognizer, pixel0 to pixel783"
        )
    if not lines:
        raise ValueError(f"{path}: line 2: no digits below the header")
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            row = bytes(map(int, line.split(b",")))
        except ValueError:
            rule = "every value must be a whole number in 0..255"
            raise ValueError(f"{path}: line {number}: {rule}") from None
        if len(row) != len(names):
            raise ValueError(f"{path}: line {number}: {len(row)} values, not {len(names)}")
        if labelled and row[0] >= NUM_CLASSES:
            raise ValueError(f"{path}: line {number}: the label must be a digit, not {row[0]}")
        rows.append(row)
    table = np.frombuffer(bytearray().join(rows), np.uint8).reshape(len(rows), -1)
    images = table[:, int(labelled) :].reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
    return images, table[:, 0] if labelled else None


def write_submission(
    predict_batch: Callable[[Sequence[np.ndarray]], list[tuple]],
    table: str | os.PathLike,
    path: str | os.PathLike,
) -> int:
    """Read the digits of Kaggle's test.csv, write them as ImageId,Label; return how many.

    Takes `MNISTPredictor.predict_batch`, or a function like it: images, uint8 (28, 28), to
    predictions, whose first element is the digit. Raises ValueError or OSError if there is no
    answer for one of them: nothing is written then.
    """
    images, labels = read_kaggle(table)
    if labels is not None:
        raise ValueError(f"{table}: line 1: has a label column, like train.csv; give test.csv")
    try:
        predictions = predict_batch(images)
    except ValueError:
        for number, image in enumerate(images, start=2):  # which line was it?
            try:
                predict_batch([image])
            except ValueError as error:
                raise ValueError(f"{table}: line {number}: {error}") from error
        raise
    rows = [f"{i},{digit}\n" for i, (digit, *_) in enumerate(predictions, start=1)]
    write_atomically(path, "".join(["ImageId,Label\n", *rows]).encode())
    return len(rows)
