"""Fit the costs of reading/segmentation.py: how a line of ink is best parted into digits.

    python benchmarks/fit_costs.py --amounts FOLDER 500 [--made 20] [--data-dir data]

reads the lattices of pictures once, and then looks for the costs with which most are read right:
of benchmarks/whole_numbers.py, made of MNIST's training digits, and the first so many of a folder
of amounts (FOLDER.tsv beside it: file, answer, and boxes, x,y,width,height of each digit). There
it counts too whether the digits are found where they are, whatever they are read as: the costs
shall not make up for what the network misreads. Each cost in turn is made larger and smaller by a
step, which grows where that helps and shrinks where it doesn't (coordinate search). The costs
are fitted on every other picture, and both halves are shown; then they are fitted on all.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT_DIR), str(PROJECT_DIR / "benchmarks")]

from strangers import rows_of_table  # noqa: E402
from whole_numbers import KINDS, edit_distance, made_pictures  # noqa: E402

from inference import MNISTPredictor  # noqa: E402
from reading.image_io import to_grayscale  # noqa: E402
from reading.segmentation import COSTS, Costs, Lattice, read_lattices  # noqa: E402
from training.data import load_mnist  # noqa: E402

FITTED_KINDS = [kind for kind in KINDS if kind != "page"]  # whose lines are like the others'
MIN_SHARED = 0.6  # of the union of two boxes, if both are of one digit
FIRST_STEP = 0.25  # of a cost, as a share of it
MIN_STEP = 0.02
SKIP = Costs._fields.index("skip")


class Edge(NamedTuple):
    """A run of parts that may be a digit, or a part that is none."""

    start: int
    stop: int
    likely: float  # the logarithm of the confidence; 0 where it is no digit
    features: Costs
    digit: str
    box: int  # the true digit that is there, or -1


class Example(NamedTuple):
    """A picture: its answer, and the edges of each lattice, ordered by where they stop."""

    kind: str
    answer: str
    n_boxes: int
    lattices: list[list[Edge]]


def find_box(part: tuple, boxes: np.ndarray) -> int:
    """Return which of the true boxes, (N, 4: left, top, right, bottom), is a part's, or -1."""
    if not len(boxes):
        return -1
    part = np.array(part, float)
    sides = np.minimum(part[2:], boxes[:, 2:]) - np.maximum(part[:2], boxes[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    union = (part[2:] - part[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - shared
    return int(shared.argmax()) if (shared > MIN_SHARED * union).any() else -1


def edges_of(lattice: Lattice, boxes: np.ndarray) -> list[Edge]:
    """Return all edges of a lattice; boxes are shares of the picture."""
    edges = []
    for i in range(len(lattice.parts)):
        zero = Costs(*[0.0] * len(COSTS))._replace(skip=lattice.skipped(i))
        edges.append(Edge(i, i + 1, 0.0, zero, "", -1))
    for (i, j), part in lattice.runs.items():
        reading, box = lattice.page.verdict(part), find_box(lattice.page.box(part), boxes)
        likely, features = math.log(reading.confidence), lattice.features(i, j)
        edges.append(Edge(i, j, likely, features, str(reading.digit), box))
    return sorted(edges, key=lambda edge: edge.stop)


def to_example(kind: str, answer: str, image: object, boxes: list, predictor: MNISTPredictor):
    """Find the lattices of a picture; boxes are those of its digits, in pixels."""
    gray, (width, height) = to_grayscale(image)
    shares = np.array(boxes, float).reshape(-1, 4) / (width, height, width, height)
    lattices = read_lattices(gray, predictor.classify)
    return Example(kind, answer, len(boxes), [edges_of(lattice, shares) for lattice in lattices])


def amounts(folder: Path, count: int) -> Iterator[tuple[str, str, Path, list]]:
    """Yield the kind, the answer, the file and the boxes of the digits of some amounts."""
    for row in itertools.islice(rows_of_table(folder), count):
        boxes = [[int(n) for n in box.split(",")] for box in row["boxes"].split()]
        yield (
            "amounts",
            row["answer"],
            folder / row["file"],
            [(x, y, x + width, y + height) for x, y, width, height in boxes],
        )


class Examples:
    """Pictures, with the edges of all their lattices in arrays, to be read with other costs."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples
        edges = [edge for e in examples for lattice in e.lattices for edge in lattice]
        self.likely = np.array([edge.likely for edge in edges])
        self.features = np.array([edge.features for edge in edges])  # (N, costs)

    def read(self, costs: np.ndarray) -> Iterator[tuple[Example, str, list[int]]]:
        """Yield each picture with what is read, and which of its true boxes were found."""
        scores = iter((self.likely - self.features @ costs).tolist())
        for example in self.examples:
            texts, boxes = [], []
            for lattice in example.lattices:
                best: dict[int, tuple[float, tuple]] = {0: (0.0, ())}
                for edge in lattice:
                    score, path = best[edge.start]
                    score += next(scores)
                    if edge.stop not in best or score > best[edge.stop][0]:
                        best[edge.stop] = score, (path, edge)
                path, found = best[max(best)][1], []
                while path:
                    path, edge = path
                    found += [edge] if edge.digit else []
                texts.append("".join(edge.digit for edge in reversed(found)))
                boxes += [edge.box for edge in reversed(found)]
            yield example, "|".join(filter(None, texts)), boxes

    def score(self, costs: np.ndarray) -> dict[str, np.ndarray]:
        """Return for each kind: its weight, digits, pictures right, places right; shares."""
        counts: dict[str, np.ndarray] = {}
        for example, text, boxes in self.read(costs):
            edits = min(edit_distance(text, example.answer), len(example.answer))
            row = counts.setdefault(example.kind, np.zeros(5))
            placed = example.n_boxes > 0 and boxes == list(range(example.n_boxes))
            row += 1, len(example.answer), edits, text == example.answer, placed
        return {
            kind: np.array([1 - edits / length, right / n, placed / n])
            for kind, (n, length, edits, right, placed) in counts.items()
        }

    def quality(self, costs: np.ndarray) -> float:
        """Return what is to be large. Amounts count as much as all made kinds together."""
        scores = self.score(costs)
        weights = {kind: len(scores) - 1 if kind == "amounts" else 1 for kind in scores}
        return sum(weights[kind] * float(scores[kind].sum()) for kind in scores)

    def fit(self, costs: np.ndarray) -> np.ndarray:
        """Return the costs with which most is read right, from given ones on."""
        costs, best = costs.copy(), self.quality(costs)
        steps = np.full(len(costs), FIRST_STEP)
        while steps.max() > MIN_STEP:
            for i in range(len(costs)):
                for sign in (1, -1):
                    tried = costs.copy()
                    tried[i] *= 1 + sign * steps[i]
                    if (quality := self.quality(tried)) > best:
                        costs, best = tried, quality
                        steps[i] *= 1.5
                        break
                else:
                    steps[i] /= 2
        return costs

    def show(self, name: str, costs: np.ndarray) -> None:
        """Print a row of the table for each kind."""
        for kind, (digits, right, placed) in self.score(costs).items():
            found = f"{placed:.1%}" if placed else "-"
            print(f"| {name} | {kind} | {digits:.1%} | {right:.1%} | {found} |", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--amounts", nargs=2, metavar=("FOLDER", "N"), help="the first N pictures of a folder")
    add("--made", type=int, default=20, metavar="N", help="N pictures of each kind [20]")
    add("--data-dir", type=Path, default=PROJECT_DIR / "data", help="where MNIST is")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    predictor, examples = MNISTPredictor(), []
    if arguments.amounts:
        folder, count = arguments.amounts
        rows = amounts(Path(folder).resolve(), int(count))
        examples += [to_example(*row, predictor) for row in rows]
    digits = load_mnist(arguments.data_dir, train=True)
    images, labels = digits.images.numpy(), digits.labels.numpy()
    for p in made_pictures(arguments.made, images, labels, 1, FITTED_KINDS):
        examples.append(to_example(p.kind, p.answer, p.image, [], predictor))
    print("| costs | kind | digits | wholly right | found in their places |")
    print("| --- | --- | --- | --- | --- |")
    even, odd, every = (Examples(part) for part in (examples[::2], examples[1::2], examples))
    fitted = even.fit(np.array(COSTS))
    even.show("fitted on these", fitted)
    odd.show("before, on others", np.array(COSTS))
    odd.show("fitted, on others", fitted)
    every.show("before, on all", np.array(COSTS))
    fitted = every.fit(fitted)
    every.show("fitted on all", fitted)
    costs = ", ".join(f"{n}={c:.2g}" for n, c in zip(Costs._fields, fitted, strict=True))
    print(f"\nCOSTS = Costs({costs})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
