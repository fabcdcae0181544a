"""How many digits `MNISTPredictor` reads in pictures that other people made.

    python benchmarks/strangers.py FOLDER [--contact-sheet outputs/misread.png]
    python benchmarks/strangers.py --load-digits

A folder of pictures comes with a table of the same name, FOLDER.tsv, beside it or in it, with a
header and the columns file, answer, kind and source, parted by tabs. --load-digits reads the
1,797 digits, 8x8 pixels, that come with scikit-learn (Alpaydin and Kaynak 1998).

"naive resize" is what the usual script does to a picture, see `inference_accuracy.py`. A picture
that is refused (ValueError) counts as misread. The contact sheet shows each misread picture
beside what the network saw of it, with the true digit, the answer and its confidence.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT_DIR), str(PROJECT_DIR / "benchmarks")]

from inference_accuracy import Example, contact_sheet, example, naive_resize  # noqa: E402

from inference import MNISTPredictor, Prediction  # noqa: E402

SHEET = PROJECT_DIR / "outputs" / "misread.png"
SURE = 0.9  # the confidence from which a wrong answer is counted as sure


class Picture(NamedTuple):
    """One labelled picture."""

    name: str
    kind: str
    answer: int
    image: Image.Image


def rows_of_table(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of the table of a folder: FOLDER.tsv, in it or beside it."""
    tables = [folder / f"{folder.name}.tsv", folder.with_suffix(".tsv")]
    table = next((path for path in tables if path.exists()), None)
    if table is None:
        raise FileNotFoundError(f"no table {folder.name}.tsv in {folder} or beside it")
    with open(table, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file, delimiter="\t")


def pictures_in(folder: Path) -> Iterator[Picture]:
    """Yield the pictures of a folder that its table names."""
    for row in rows_of_table(folder):
        with Image.open(folder / row["file"]) as image:
            yield Picture(row["file"], row["kind"], int(row["answer"]), image)


def digits_of_scikit_learn() -> Iterator[Picture]:
    """Yield the pictures of `sklearn.datasets.load_digits`, white on black."""
    from sklearn.datasets import load_digits  # a development dependency, needed for this only

    digits = load_digits()
    for number, (pixels, answer) in enumerate(zip(digits.images, digits.target, strict=True)):
        image = Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8))
        yield Picture(f"load_digits {number}", "8x8", int(answer), image)


def read(predictor: MNISTPredictor, image: Image.Image) -> Prediction | None:
    """Read a picture; None if it is refused."""
    try:
        return predictor.predict(image)
    except ValueError:
        return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="pictures, with a table FOLDER.tsv")
    parser.add_argument("--load-digits", action="store_true", help="scikit-learn's digits instead")
    parser.add_argument("--contact-sheet", type=Path, metavar="OUT.png", default=SHEET)
    arguments = parser.parse_args(argv)
    if bool(arguments.folder) == arguments.load_digits:
        parser.error("give a folder of pictures, or --load-digits")
    predictor = MNISTPredictor()
    if arguments.load_digits:
        pictures = digits_of_scikit_learn()
    else:
        pictures = pictures_in(arguments.folder.resolve())

    counts: dict[str, np.ndarray] = {}  # kind: pictures, right by naive resize, by ours, sure miss
    misread: list[Example] = []
    for picture in pictures:
        prediction = read(predictor, picture.image)
        digit, confidence = prediction[:2] if prediction else (None, 0.0)
        wrong = digit != picture.answer
        naive = naive_resize(predictor, picture.image) == picture.answer
        count = counts.setdefault(picture.kind, np.zeros(4, int))
        count += [1, naive, not wrong, wrong and confidence > SURE]
        if wrong:
            title = f"{picture.name} ({confidence:.0%})"
            misread.append(example(predictor, title, picture.image, picture.answer, digit))
            print(f"{picture.name}: {picture.answer} read as {digit} ({confidence:.1%})")

    print("\n| kind | pictures | naive resize | ours | wrong, over 90% sure |")
    print("| --- | --- | --- | --- | --- |")
    for kind, (n, naive, right, sure) in [*counts.items(), ("all", sum(counts.values()))]:
        print(f"| {kind} | {n:,} | {naive / n:.1%} | {right / n:.1%} | {sure} |")
    if misread:
        arguments.contact_sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(misread).savefig(arguments.contact_sheet, dpi=120)  # by Agg: no display
    return 0


if __name__ == "__main__":
    sys.exit(main())
