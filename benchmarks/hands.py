"""How well networks read digits that others wrote: checkpoints side by side, on several sets.

    python benchmarks/hands.py outputs/mnist_cnn.pt weights/mnist_cnn.pt
    python benchmarks/hands.py --writers train-writers.tsv.gz --pictures FOLDER CHECKPOINT ...

What is tuned on one set of digits rises on that set, and hardly elsewhere. So there are several,
and each has a part to choose by and a part for one last look (--last-look):

- MNIST: with --writers, the training digits of the writers that `accuracy.py --held-out` holds
  out, which the checkpoint must not have been trained on; the last look is at the test set.
- load_digits: the 1,797 digits that come with scikit-learn.
- --pictures names a folder of folders: digits/ (see strangers.py), parted by who collected them;
  continental/ (one sheet a label, 25 tiles a row, about one writer a row), parted by writers; and
  amounts/ (numbers, whose table has a box for each digit), parted by numbers.
- Letters, parted by fonts, and scribbles (see confidence.py): the area under the ROC curve of the
  confidence in MNIST's digits of the same part against it. "kept" is the share of those digits
  that reach the minimum confidence of the checkpoint.

A picture that is refused counts as misread. What the network sees of the pictures is kept in
outputs/hands/: delete it to preprocess them anew.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT_DIR), str(PROJECT_DIR / "benchmarks")]

from accuracy import hold_out  # noqa: E402
from confidence import LETTERS, auroc, draw_letters, draw_scribble  # noqa: E402
from strangers import digits_of_scikit_learn, pictures_in, rows_of_table  # noqa: E402

from inference import MNISTPredictor  # noqa: E402
from model import IMAGE_SIZE  # noqa: E402
from reading.ink import bounding_box, find_ink, resize_to  # noqa: E402
from reading.preprocessing import draw_as_mnist, preprocess, to_image  # noqa: E402
from train import evaluate  # noqa: E402
from training.data import Digits, load_mnist  # noqa: E402

CACHE = PROJECT_DIR / "outputs" / "hands"
UNKNOWN = -100  # the label of a non-digit and of what is refused; PyTorch leaves it out of a loss
TILE, TILES_A_ROW = 96, 25  # of the sheets in continental/
CHOSEN_ROWS = 12  # of the 23 of each sheet
CHOSEN_AMOUNTS = 500  # of the 1,080 pictures
ENLARGED = 2  # times, so that digits are as high as the network that finds ink wants them
SCRIBBLES = 300  # of each part
NON_DIGITS = ("letters", "scribbles")

Seen = Iterator[tuple[np.ndarray | None, int]]  # uint8 (28, 28) or None where refused; the label


# ---- The sets: what the network sees of them, and the labels -----------------------------


def see(pictures: Iterable[tuple[Image.Image, int]]) -> Seen:
    """Preprocess labelled pictures."""
    for picture, label in pictures:
        try:
            yield np.array(to_image(preprocess(picture))), label
        except ValueError:  # blank
            yield None, label


def load_digits(last: bool) -> Seen:
    """In these, the digits of a writer follow one another."""
    digits = [(picture.image, picture.answer) for picture in digits_of_scikit_learn()]
    middle = len(digits) // 2
    return see(digits[middle:] if last else digits[:middle])


def strangers(folder: Path, last: bool) -> Seen:
    """The pictures of every other collection, or those of the rest."""
    source_of = {row["file"]: row["source"] for row in rows_of_table(folder)}
    sources = sorted(set(source_of.values()))[last::2]
    pictures = ((p.image, p.answer) for p in pictures_in(folder) if source_of[p.name] in sources)
    return see(pictures)


def continental(folder: Path, last: bool) -> Seen:
    """The first rows of each sheet, or the others."""
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as sheet:
            rows = range(0, sheet.height, TILE)
            rows = rows[CHOSEN_ROWS:] if last else rows[:CHOSEN_ROWS]
            for top, left in itertools.product(rows, range(0, TILES_A_ROW * TILE, TILE)):
                tile = sheet.crop((left, top, left + TILE, top + TILE))
                if tile.getextrema()[0] < 255:  # an empty tile is white
                    yield from see([(tile, int(path.stem))])


def amounts(folder: Path, last: bool) -> Seen:
    """Cut the ink of each number by the boxes: neighbours that reach into a box stay there."""
    numbers = list(rows_of_table(folder))
    for row in numbers[CHOSEN_AMOUNTS:] if last else numbers[:CHOSEN_AMOUNTS]:
        with Image.open(folder / row["file"]) as image:
            gray = np.asarray(image.convert("L"), np.float32) / 255
        ink = find_ink(resize_to(gray, ENLARGED * max(gray.shape)))
        for digit, box in zip(row["answer"], row["boxes"].split(), strict=True):
            x, y, width, height = (ENLARGED * int(side) for side in box.split(","))
            part = ink[y : y + height, x : x + width]
            found = (part > 0.5).any()
            drawn = draw_as_mnist(part[bounding_box(part > 0.5)], small=False) if found else None
            yield None if drawn is None else (255 * drawn).round().astype(np.uint8), int(digit)


def letters(last: bool) -> Seen:
    """The letters of every other font, or those of the rest."""
    drawn = enumerate(draw_letters())  # font by font
    return see((letter, UNKNOWN) for i, letter in drawn if i // len(LETTERS) % 2 == last)


def scribbles(last: bool) -> Seen:
    rng = np.random.default_rng(int(last))
    return see((draw_scribble(rng), UNKNOWN) for _ in range(SCRIBBLES))


def cached(name: str, last: bool, look: Callable[[bool], Seen]) -> Digits:
    """Return a part of a set, from the cache if it is there."""
    path = CACHE / f"{name}-{'last' if last else 'choose'}.pt"
    if not path.exists():
        blank = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8), UNKNOWN
        images, labels = zip(
            *(blank if seen[0] is None else seen for seen in look(last)), strict=True
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save([torch.from_numpy(np.stack(images)), torch.tensor(labels)], path)
    return Digits(*torch.load(path, weights_only=True), name)


def load_sets(
    last: bool, data_dir: Path, writers: Path | None, pictures: Path | None
) -> dict[str, Digits]:
    """Return the sets that there are, MNIST's first: those to choose by, or for the last look."""
    if last or not writers:
        sets = {"MNIST": load_mnist(data_dir, train=False)}
    else:
        sets = {"MNIST": hold_out(load_mnist(data_dir, train=True), writers)[1]}
    looks = {"load_digits": load_digits}
    if pictures:
        looks["digits"] = partial(strangers, pictures / "digits")
        looks["continental"] = partial(continental, pictures / "continental")
        looks["amounts"] = partial(amounts, pictures / "amounts")
    looks |= {"letters": letters, "scribbles": scribbles}
    return sets | {name: cached(name, last, look) for name, look in looks.items()}


# ---- The table ---------------------------------------------------------------------------


def judge(predictor: MNISTPredictor, sets: dict[str, Digits]) -> dict[str, str]:
    """Return a row of the table: how a network does on each of the sets."""
    results = {name: evaluate(predictor.model, digits) for name, digits in sets.items()}
    row = {name: f"{result.accuracy:.2%}" for name, result in results.items()}
    confidence = {name: result.probabilities.amax(1).numpy() for name, result in results.items()}
    for name in NON_DIGITS:
        row[name] = f"{auroc(confidence['MNIST'], confidence[name]):.3f}"
    kept = (confidence["MNIST"] >= predictor.min_confidence).mean()
    return row | {"kept": f"{kept:.2%}"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--writers", type=Path, help="the table of who wrote each training digit")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="digits/ and others in it")
    parser.add_argument("--last-look", action="store_true", help="not the parts to choose by")
    parser.add_argument("--data-dir", type=Path, default=PROJECT_DIR / "data")
    arguments = parser.parse_args(argv)
    data_dir, writers, pictures = arguments.data_dir, arguments.writers, arguments.pictures
    sets = load_sets(arguments.last_look, data_dir, writers, pictures)
    heads = [f"{name} ({len(digits):,})" for name, digits in sets.items()]
    print(f"| checkpoint | {' | '.join(heads)} | kept |\n|{' --- |' * (len(heads) + 2)}")
    for path in arguments.checkpoints:
        row = judge(MNISTPredictor(path), sets)
        print(f"| {path} | {' | '.join(row.values())} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
