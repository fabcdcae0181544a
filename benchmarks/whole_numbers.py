"""How well `MNISTPredictor.read` reads pictures of several digits.

    python benchmarks/whole_numbers.py FOLDER [--annotated outputs/numbers]
    python benchmarks/whole_numbers.py --made 30 [--data-dir data] [--seed 0]

A folder of pictures comes with a table of the same name, FOLDER.tsv, beside it or in it, with a
header and the columns file, answer and kind, parted by tabs; in the answer, the lines are joined
by "|". --made writes digits of MNIST's test set in lines on papers of some kinds, so many pictures
of each. "digits" is 1 - edit distance / length, all digits together, "wholly right" the share of
pictures of which every digit and every line is right. Where Tesseract is installed, its answers
are counted beside ours. The time is that of one thread, without decoding the file.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT_DIR), str(PROJECT_DIR / "benchmarks")]

import photographs as paper  # noqa: E402

from data import load_mnist  # noqa: E402
from inference import MNISTPredictor, annotate  # noqa: E402


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
    width = rng.uniform(0.06, 0.12)  # of the pen: one for all
    inks = []
    for digit in digits:
        ink = paper.draw(paper.depth(digit, width), round(height * rng.uniform(0.85, 1.15)))
        inks.append(ink)
    gaps = [round(height * rng.uniform(*gap)) for _ in inks]
    line = np.zeros((round(1.5 * height), sum(ink.shape[1] for ink in inks) + sum(map(abs, gaps)) + 8))
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


def write_page(digits, labels, rng, lines=(1, 1), length=(2, 9), gap=(0.1, 0.5), height=(40, 120)):
    """Return the ink of a page, (H, W), and what it says."""
    height, slope = int(rng.integers(*height)), rng.uniform(-0.06, 0.06)
    inks, words = [], []
    start = 0
    for _ in range(rng.integers(lines[0], lines[1] + 1)):
        n = int(rng.integers(length[0], length[1] + 1))
        rows = range(start, start + n)
        start += n
        inks.append(slanted(write_line([digits[i % len(digits)] for i in rows], height, gap, rng), slope))
        words.append("".join(str(labels[i % len(labels)]) for i in rows))
    width = max(ink.shape[1] for ink in inks)
    rooms = [round(height * rng.uniform(0.05, 0.5)) for _ in inks]
    inks = [np.pad(ink, ((0, room), (0, width - ink.shape[1]))) for ink, room in zip(inks, rooms, strict=True)]
    return paper.margins(np.concatenate(inks)[:, :], rng, 0.05 / len(inks), 0.6 / len(inks)), "|".join(words)


def on_white(ink, rng):
    return paper.to_image(paper.written(ink, rng))


def on_shadow(ink, rng):
    along = paper.across(ink.shape, rng.uniform(0, 2 * np.pi))
    along += min(ink.shape) * rng.uniform(-0.3, 0.3)
    edge = min(ink.shape) * rng.choice([0.005, 0.05])
    shadow = 1 / (1 + np.exp((-along / edge).clip(-50, 50)))
    pixels = paper.written(ink, rng) * (1 - rng.uniform(0.3, 0.7) * shadow)[:, :, None]
    return paper.to_image(pixels + 1.5 * rng.standard_normal((*ink.shape, 1)))


def on_pencil(ink, rng):
    sheet = paper.white_paper(rng) * rng.uniform(0.6, 0.95)
    pixels = paper.paint(ink, sheet, sheet - rng.uniform(35, 80)) * paper.light(ink.shape, 0.6, rng)
    return paper.to_image(pixels + 2 * rng.standard_normal((*ink.shape, 1)))


def on_black(ink, rng):
    return paper.to_image(paper.paint(ink, rng.uniform(0, 60, 3), rng.uniform(190, 255)))


def on_rules(ink, rng):
    return paper.to_image(paper.on_lines(ink, False, rng))


def on_squares(ink, rng):
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


def made_pictures(n: int, digits: np.ndarray, labels: np.ndarray, seed: int) -> Iterator[Picture]:
    """Yield n pictures of each kind."""
    for number, (kind, (how, papers)) in enumerate(KINDS.items()):
        for i in range(n):
            rng = np.random.default_rng([seed, number, i])
            order = rng.permutation(len(labels))[:150]
            ink, answer = write_page(digits[order], labels[order], rng, **how)
            yield Picture(f"{kind} {i}", kind, answer, papers[i % len(papers)](ink, rng))
