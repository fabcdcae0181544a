"""How well `MNISTPredictor.read` reads pictures of several digits.

    python benchmarks/whole_numbers.py FOLDER [--annotated outputs/numbers]
    python benchmarks/whole_numbers.py --made 30 [--data-dir data] [--seed 0]

A folder of pictures comes with a table of the same name, FOLDER.tsv, beside it or in it, with a
header and the columns file, answer and kind, parted by tabs; in the answer, the lines are joined
by "|". --made writes digits of MNIST's test set in lines on papers of some kinds, so many pictures
of each. "digits" is 1 - edit distance / length, all digits together, "wholly right" the share of
pictures of which every digit and every line is right. Where Tesseract or RapidOCR is installed
(pip install rapidocr onnxruntime), its answers are counted beside ours; of RapidOCR's, those of
its recognizer alone as well, which takes each picture for one line. The time is that of one
thread, without opening the file.
"""

import argparse
import functools
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT_DIR), str(PROJECT_DIR / "benchmarks")]

import photographs as paper  # noqa: E402
from strangers import rows_of_table  # noqa: E402

from inference import FoundDigit, MNISTPredictor, annotate  # noqa: E402
from training.data import load_mnist  # noqa: E402


class Picture(NamedTuple):
    """One labelled picture."""

    name: str
    kind: str
    answer: str  # lines joined by "|"
    image: Image.Image


# ---- Pictures made of MNIST's digits -----------------------------------------------------


def write_line(
    digits: list[np.ndarray], height: int, gap: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Write digits side by side, (28, 28) each: ink, 0..1, (H, W). Gaps in units of the height."""
    pen = rng.uniform(0.06, 0.12)  # the width of its strokes: one for all
    heights = [round(height * rng.uniform(0.85, 1.15)) for _ in digits]
    inks = [paper.draw(paper.depth(d, pen), n) for d, n in zip(digits, heights, strict=True)]
    gaps = [round(height * rng.uniform(*gap)) for _ in inks]
    line = np.zeros(
        (round(1.5 * height), sum(ink.shape[1] for ink in inks) + sum(map(abs, gaps)) + 8)
    )
    x = 0
    for ink, after in zip(inks, gaps, strict=True):
        top = round((line.shape[0] - ink.shape[0]) / 2 + height * rng.uniform(-0.08, 0.08))
        place = line[top : top + ink.shape[0], max(0, x) : max(0, x) + ink.shape[1]]
        np.maximum(place, ink, out=place)
        x = max(0, x) + ink.shape[1] + after
    columns = np.flatnonzero(line.any(axis=0))
    return line[:, : columns[-1] + 1]


def slanted(ink: np.ndarray, slope: float) -> np.ndarray:
    """Move ink down the further to the right it is."""
    shifts = np.round(slope * np.arange(ink.shape[1])).astype(int)
    shifts -= shifts.min()
    out = np.zeros((ink.shape[0] + shifts.max(), ink.shape[1]))
    rows = np.arange(ink.shape[0])[:, None] + shifts
    out[rows, np.arange(ink.shape[1])] = ink
    return out


def write_page(
    digits: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    lines: tuple[int, int] = (1, 1),
    length: tuple[int, int] = (2, 9),
    gap: tuple[float, float] = (0.1, 0.5),
    height: tuple[int, int] = (40, 120),
) -> tuple[np.ndarray, str]:
    """Write some of the digits in lines: the ink of a page, 0..1, (H, W), and what it says."""
    tall, slope = int(rng.integers(*height)), rng.uniform(-0.06, 0.06)
    inks, words, start = [], [], 0
    for _ in range(rng.integers(lines[0], lines[1] + 1)):
        stop = start + int(rng.integers(length[0], length[1] + 1))
        inks.append(slanted(write_line(list(digits[start:stop]), tall, gap, rng), slope))
        words.append("".join(map(str, labels[start:stop])))
        start = stop
    width = max(ink.shape[1] for ink in inks)
    rows = [
        np.pad(ink, ((0, round(tall * rng.uniform(0.05, 0.5))), (0, width - ink.shape[1])))
        for ink in inks
    ]
    page = paper.margins(np.concatenate(rows), rng, 0.05 / len(rows), 0.6 / len(rows))
    return page, "|".join(words)


def on_white(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Written with a usual pen on white paper."""
    return paper.to_image(paper.written(ink, rng))


def on_shadow(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """With the edge of a shadow, hard or soft."""
    along = paper.across(ink.shape, rng.uniform(0, 2 * np.pi))
    along += min(ink.shape) * rng.uniform(-0.3, 0.3)
    edge = min(ink.shape) * rng.choice([0.005, 0.05])
    shadow = 1 / (1 + np.exp((-along / edge).clip(-50, 50)))
    pixels = paper.written(ink, rng) * (1 - rng.uniform(0.3, 0.7) * shadow)[:, :, None]
    return paper.to_image(pixels + 1.5 * rng.standard_normal((*ink.shape, 1)))


def on_pencil(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A pencil on gray paper, in light from one side."""
    sheet = paper.white_paper(rng) * rng.uniform(0.6, 0.95)
    pixels = paper.paint(ink, sheet, sheet - rng.uniform(35, 80)) * paper.light(ink.shape, 0.6, rng)
    return paper.to_image(pixels + 2 * rng.standard_normal((*ink.shape, 1)))


def on_black(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Light on dark."""
    return paper.to_image(paper.paint(ink, rng.uniform(0, 60, 3), rng.uniform(190, 255)))


def on_rules(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """On ruled paper."""
    return paper.to_image(paper.on_lines(ink, False, rng))


def on_squares(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """On squared paper."""
    return paper.to_image(paper.on_lines(ink, True, rng))


PAPERS = [on_white, on_shadow, on_pencil, on_black]
KINDS = {
    "one line": ({}, PAPERS),
    "touching digits": ({"gap": (-0.12, 0.1), "length": (2, 6)}, PAPERS),
    "small crop": ({"height": (16, 30), "length": (2, 7)}, [on_white, on_black]),
    "ruled paper": ({"lines": (1, 3)}, [on_rules]),
    "squared paper": ({"lines": (1, 3)}, [on_squares]),
    "page": ({"lines": (4, 9), "length": (5, 12), "height": (40, 80)}, PAPERS),
}


def made_pictures(
    n: int, digits: np.ndarray, labels: np.ndarray, seed: int, kinds: Iterable[str] = KINDS
) -> Iterator[Picture]:
    """Yield n pictures of each kind."""
    for kind in kinds:
        number, (how, papers) = list(KINDS).index(kind), KINDS[kind]
        for i in range(n):
            # the same picture whatever n is
            rng = np.random.default_rng([seed, number, i])
            order = rng.permutation(len(labels))[:150]
            ink, answer = write_page(digits[order], labels[order], rng, **how)
            yield Picture(f"{kind} {i}", kind, answer, papers[i % len(papers)](ink, rng))


# ---- Pictures of other people ------------------------------------------------------------


def pictures_in(folder: Path) -> Iterator[Picture]:
    """Yield the pictures of a folder that its table names."""
    for row in rows_of_table(folder):
        with Image.open(folder / row["file"]) as image:
            image.load()
            yield Picture(row["file"], row["kind"], row["answer"], image)


def edit_distance(a: str, b: str) -> int:
    """Return how many signs must be put in, left out or changed to make one of two texts."""
    costs = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, costs[0] = costs[0], i
        for j, y in enumerate(b, start=1):
            before, costs[j] = costs[j], min(costs[j] + 1, costs[j - 1] + 1, before + (x != y))
    return costs[-1]


def read(predictor: MNISTPredictor, image: Image.Image) -> list[list[FoundDigit]]:
    """Read a picture; one that is refused has no lines."""
    try:
        return predictor.read(image)
    except ValueError:
        return []


Reader = Callable[[Image.Image], str]


def read_by_tesseract(image: Image.Image) -> str:
    """Return what Tesseract makes of a picture, when it is told that there are only digits."""
    buffer = io.BytesIO()
    ImageOps.exif_transpose(image).convert("RGB").save(buffer, "png")
    command = ["tesseract", "-", "-", "--psm", "6", "-c", "tessedit_char_whitelist=0123456789"]
    done = subprocess.run(command, input=buffer.getvalue(), capture_output=True, check=False)
    lines = ("".join(line.split()) for line in done.stdout.decode().splitlines())
    return "|".join(line for line in lines if line)


def rapid_readers() -> dict[str, Reader]:
    """Return what reads a picture with RapidOCR, and with its recognizer alone, if there is one."""
    try:
        from rapidocr import RapidOCR
    except ImportError:
        return {}
    engine = RapidOCR(params={"Global.log_level": "error"})

    def read_with(image: Image.Image, **how: bool) -> str:
        result = engine(np.asarray(ImageOps.exif_transpose(image).convert("RGB")), **how)
        lines = ("".join(filter(str.isdecimal, text)) for text in result.txts or ())
        return "|".join(line for line in lines if line)

    alone = functools.partial(read_with, use_det=False, use_cls=False, use_rec=True)
    return {"RapidOCR": read_with, "RapidOCR's recognizer": alone}


class Score:
    """How many pictures and digits a reader got right."""

    def __init__(self) -> None:
        self.pictures = self.right = self.length = self.edits = 0

    def count(self, answer: str, text: str) -> None:
        self.pictures += 1
        self.right += text == answer
        self.length += len(answer)
        self.edits += edit_distance(text, answer)

    def __str__(self) -> str:
        digits = 1 - self.edits / max(self.length, 1)
        return f"{digits:.1%} | {self.right / max(self.pictures, 1):.1%}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, nargs="?", help="pictures, with a table FOLDER.tsv")
    add("--made", type=int, metavar="N", help="N pictures of each kind, made of test digits")
    add("--data-dir", type=Path, default=PROJECT_DIR / "data", help="where MNIST is")
    add("--seed", type=int, default=0)
    add("--annotated", type=Path, metavar="FOLDER", help="write each picture with what was found")
    arguments = parser.parse_args(argv)
    if bool(arguments.folder) == bool(arguments.made):
        parser.error("give a folder of pictures, or --made N")
    torch.set_num_threads(1)
    predictor, others = MNISTPredictor(), rapid_readers()
    if shutil.which("tesseract"):
        others["Tesseract"] = read_by_tesseract
    if arguments.made:
        digits = load_mnist(arguments.data_dir, train=False)
        images, labels = digits.images.numpy(), digits.labels.numpy()
        pictures = made_pictures(arguments.made, images, labels, arguments.seed)
    else:
        pictures = pictures_in(arguments.folder.resolve())
    if arguments.annotated:
        arguments.annotated.mkdir(parents=True, exist_ok=True)

    scores: dict[str, Score] = {}
    other_scores = {name: Score() for name in others}
    milliseconds = []
    for picture in pictures:
        started = time.perf_counter()
        lines = read(predictor, picture.image)
        milliseconds.append(1000 * (time.perf_counter() - started))
        text = "|".join("".join(str(found.digit) for found in line) for line in lines)
        for kind in (picture.kind, "all"):
            scores.setdefault(kind, Score()).count(picture.answer, text)
        for name, read_by_other in others.items():
            other_scores[name].count(picture.answer, read_by_other(picture.image))
        if text != picture.answer:
            print(f"{picture.name}: {picture.answer} read as {text}")
        if arguments.annotated:
            upright = annotate(picture.image, lines)
            upright.save(arguments.annotated / f"{Path(picture.name).stem}.png")
    print("\n| kind | pictures | digits | wholly right |\n| --- | --- | --- | --- |")
    for kind in sorted(scores, key=lambda kind: kind == "all"):
        print(f"| {kind} | {scores[kind].pictures} | {scores[kind]} |")
    for name, score in other_scores.items():
        print(f"| all, by {name} | {score.pictures} | {score} |")
    print(f"\n{np.median(milliseconds):.0f} ms a picture (median), {max(milliseconds):.0f} at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
