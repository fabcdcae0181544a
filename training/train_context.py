"""Train the network that tells which segments of a line are digits, on lines made by code.

    python -m training.train_context

Worker processes write lines with MNIST's digits and with drawn ones (`lines.py`), and cut them as
`read` does. How much of one digit a segment has, and of nothing else, is known. The same seed
gives the same lines, however many workers there are; on a CPU, with the same number of threads, it
gives the same weights.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from reading.checkpoint import save_content
from reading.context import CONTEXT_FORMAT, CONTEXT_WEIGHTS, ContextNetwork, draw_windows
from reading.files import exit_code
from reading.segmentation import Page, Part
from training.data import PROJECT_DIR, Digits, load_data
from training.forms import Random, segments
from training.lines import HEIGHT, NOBODY, SIGNS, Line, lattices_of, write_line
from training.papers import log_uniform
from training.synthetic import draw_handwriting
from training.train_ink import autocast, sharing_cores

LINES_A_STEP = 8
REPORT_EVERY = 500  # steps, where there is no terminal
SEGMENTS = 32  # of each line: all steps are alike
LEARNING_RATE = 3e-3  # the highest; one cycle (Smith and Topin 2018)
WEIGHT_DECAY = 1e-2
DRAWN = 1 / 3  # digits drawn by code, for each of MNIST's
HELD_OUT = 1_000_003  # the seed of the lines to evaluate on

# Hands, papers and pens vary more than where the network of model.py learns digits: here only
# the place, the size and the wholeness count.
SLANT, STRETCH = 0.2, 0.3  # standard deviations, of the latter's logarithm
POINTS = [form for form in SIGNS if form.name in ".,"]
POINTED = 0.7  # of the signs
SIGN_SIZES = (0.7, 3.2)  # times as large as in forms.txt
SIGNED = 0.4  # of the digits have a sign behind them
SPACED, MAX_SPACE = 0.35, 1.2  # of the lines; more between their digits, in heights
SLOPING, SLOPE = 0.4, 0.06  # of the lines, and the standard deviation
SPECKED, MAX_SPECKS, MAX_SPECK = 0.3, 11, 3  # of the lines; pixels a side
BROKEN, CELL, THINNEST = 0.25, 6, (1.3, 2.5)  # of the lines; clouds in pixels, and their limits
HEIGHT_ERROR = 0.1  # of the height that `read` measures: its logarithm's standard deviation
# The overlap of a segment and a digit (intersection over union) from which it may be one, and is.
MIN_OVERLAP, FULL_OVERLAP = 0.6, 0.9


class FreeLine(Line):
    """A line of a hand that may be wide, narrow or slanting, and leave much space."""

    signed = SIGNED

    def __init__(self, n: int, rng: Random) -> None:
        super().__init__(n, rng)
        self.slant, self.stretch = rng.normal(0.05, SLANT), math.exp(rng.normal(0, STRETCH))
        self.space = HEIGHT * rng.uniform(0, MAX_SPACE) if rng.random() < SPACED else 0.0
        width = round((1.7 * n * max(1, self.stretch) + 2) * HEIGHT + 2 * n * self.space)
        shape = len(self.ink), width
        self.ink, self.owner = np.zeros(shape, np.float32), np.full(shape, NOBODY)

    def write(self, image: np.ndarray, label: int, size: float, stretch: float = 1.0) -> None:
        """Write a digit like MNIST's, uint8 (28, 28), `size` times as high as others."""
        self.x += self.space * self.rng.uniform(0.5, 1)
        super().write(image, label, size, stretch)

    def write_sign(self) -> None:
        """Write a sign behind the last digit, small or large, and most often a point or a comma."""
        rng = self.rng
        self.x += self.space * rng.uniform(0, 0.7)
        signs = POINTS if rng.random() < POINTED else SIGNS
        strokes = HEIGHT * segments(signs[rng.integers(len(signs))].write(rng))
        low, high = strokes.min(axis=(0, 1)), strokes.max(axis=(0, 1))
        strokes = (strokes - (low + high) / 2) * log_uniform(rng, *SIGN_SIZES)
        # A large one may stand on the line or hang as low as a small one.
        rise = rng.uniform(0, 0.5) * max(0, np.ptp(strokes[..., 1]) - (high - low)[1])
        middle = self.baseline - HEIGHT + (low[1] + high[1]) / 2 - rise
        strokes += self.x - strokes[..., 0].min(), middle + rng.normal(0, 0.1) * HEIGHT
        self.draw(strokes)
        self.x += np.ptp(strokes[..., 0])


def spoil(line: Line, rng: Random) -> None:
    """Let a line slope, put specks around it, and break its strokes."""
    if rng.random() < SLOPING:
        places = np.arange(line.ink.shape[1]) - line.x / 2
        drop = np.round(rng.normal(0, SLOPE) * places).astype(int)
        margin = ((np.abs(drop).max(),) * 2, (0, 0))
        line.ink = np.pad(line.ink, margin)
        line.owner = np.pad(line.owner, margin, constant_values=NOBODY)
        rows = (np.arange(len(line.ink))[:, None] - drop) % len(line.ink)
        line.ink, line.owner = (np.take_along_axis(a, rows, 0) for a in (line.ink, line.owner))
    if rng.random() < SPECKED:
        for _ in range(rng.integers(1, MAX_SPECKS + 1)):
            y, x = rng.integers(line.ink.shape)
            size = rng.integers(1, MAX_SPECK + 1)
            spot = line.ink[y : y + size, x : x + size]
            np.maximum(spot, rng.uniform(0.3, 1), out=spot)
    if rng.random() < BROKEN:
        few = [side // CELL + 2 for side in line.ink.shape]
        clouds = ndimage.zoom(rng.normal(size=few), CELL, order=1)
        there = clouds[: line.ink.shape[0], : line.ink.shape[1]] < rng.uniform(*THINNEST)
        line.ink = line.ink * there


def overlaps(line: Line, segments: list[Part]) -> np.ndarray:
    """Return how much of one digit each segment is (intersection over union), (N,) in 0..1."""
    sizes = np.bincount(
        line.owner[(line.owner >= 0) & (line.ink > 0.5)], minlength=len(line.labels)
    )
    found = np.zeros(len(segments), np.float32)
    for i, part in enumerate(segments):
        owners = line.owner[part.top : part.bottom, part.left : part.right][part.mask]
        shared = np.bincount(owners[owners >= 0], minlength=len(sizes))
        found[i] = (shared / (sizes + part.mask.sum() - shared)).max()
    return found


class Lines(Dataset):
    """The lines of one seed: the windows of each, and how much they are digits."""

    def __init__(self, digits: Digits, seed: int, count: int) -> None:
        drawn, labels = draw_handwriting(round(DRAWN * len(digits)), seed)
        self.images = torch.cat([digits.images, drawn]).numpy()
        self.labels = torch.cat([digits.labels, labels]).numpy()
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return windows of a line's segments, uint8 (S, 2, 32, 48), and how much each is a digit.

        The line is cut as `read` does, where it takes digits to be about as high as they are.
        """
        if index >= len(self):
            raise IndexError(index)
        rng = np.random.Generator(np.random.PCG64([self.seed, index]))
        segments: list[Part] = []
        while not segments:
            line = write_line(self.images, self.labels, rng, FreeLine)
            spoil(line, rng)
            height = HEIGHT * math.exp(rng.normal(0, HEIGHT_ERROR))
            lattices = lattices_of(Page(line.ink, 1.0), height)
            segments = [run for lattice in lattices for run in lattice.runs.values()]
        chosen = rng.choice(len(segments), SEGMENTS, replace=len(segments) < SEGMENTS)
        segments = [segments[i] for i in chosen]
        targets = (overlaps(line, segments) - MIN_OVERLAP) / (FULL_OVERLAP - MIN_OVERLAP)
        windows = draw_windows(line.ink, height, segments)
        return (255 * windows).round().astype(np.uint8), targets.clip(0, 1)


def stack(items: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Collate the segments of several lines into one batch."""
    return tuple(np.concatenate(part) for part in zip(*items, strict=True))


def batches(lines: Lines, workers: int) -> DataLoader:
    """Return an iterable of batches of windows and targets; workers draw them."""
    # As NumPy arrays they come through pipes: some machines have little shared memory.
    return DataLoader(lines, LINES_A_STEP, num_workers=workers, collate_fn=stack)


def train(lines: Lines, arguments: argparse.Namespace) -> ContextNetwork:
    """Train a new network on lines, each of which it sees once."""
    torch.manual_seed(arguments.seed)
    network = ContextNetwork().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    n_steps = -(-len(lines) // LINES_A_STEP)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=n_steps + 1, pct_start=0.1
    )
    bar = tqdm(batches(lines, arguments.workers), unit="step", disable=None)
    for step, (windows, targets) in enumerate(bar, start=1):
        with autocast("cpu"):
            logits = network(torch.from_numpy(windows).float() / 255)
        loss = F.binary_cross_entropy_with_logits(logits.float(), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if bar.disable and step % REPORT_EVERY == 0:
            print(f"{step:,} of {n_steps:,} steps, loss {loss:.3f}", flush=True)
    return network.eval()


@torch.inference_mode()
def evaluate(network: ContextNetwork, lines: Lines, workers: int) -> str:
    """Say how often the network is right on other lines."""
    n = n_wrong = 0
    for windows, targets in batches(lines, workers):
        found = network(torch.from_numpy(windows).float() / 255).numpy() > 0
        n, n_wrong = n + len(targets), n_wrong + (found != (targets > 0.5)).sum()
    return f"{n:,} segments of {len(lines):,} other lines: {n_wrong / n:.2%} wrong"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments; SystemExit with code 2 where they make no sense."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # an error is one line
        description="Train the network that tells digits from pieces of a line.",
    )
    add = parser.add_argument
    add("--lines", type=int, default=40_000, help="how many to train on [%(default)s]")
    add("--seed", type=int, default=0, help="of the lines and of the first weights [0]")
    add("--workers", type=int, default=1, help="processes that draw [1]")
    add("--output", type=Path, default=CONTEXT_WEIGHTS, help="where weights go")
    add("--data-dir", default=PROJECT_DIR / "data", help="the folder of MNIST")
    add("--evaluate", type=int, default=500, help="lines of another seed to evaluate on [500]")
    add("--sample", action="store_true", help="use the bundled digits, for tests")
    arguments = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    arguments.command = " ".join(["python -m training.train_context", *given])
    if min(arguments.lines, arguments.evaluate) < 1 or arguments.workers < 0:
        parser.error("--lines and --evaluate must be at least 1, --workers 0")
    return arguments


def run_command(arguments: argparse.Namespace) -> int:
    """Train, save and evaluate; return the exit code."""
    began = time.monotonic()
    digits, _ = load_data(arguments.data_dir, arguments.sample)
    with sharing_cores("cpu"):
        network = train(Lines(digits, arguments.seed, arguments.lines), arguments)
    weights = {name: t.half().contiguous() for name, t in network.state_dict().items()}
    metadata = {"command": arguments.command, "lines": arguments.lines}
    save_content(arguments.output, CONTEXT_FORMAT, {"metadata": metadata, "weights": weights})
    held_out = Lines(digits, HELD_OUT, arguments.evaluate)
    print(evaluate(network, held_out, arguments.workers), flush=True)
    print(f"{arguments.output}: {time.monotonic() - began:.0f} s")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = parse_arguments(argv)
    return exit_code("train_context.py", lambda: run_command(arguments), "; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
