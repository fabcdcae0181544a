"""Train the network that tells which segments of a line are digits, on lines made by code.

    python -m training.train_context

Worker processes write lines with MNIST's digits and with drawn ones, draw half as many scenes, and
find and cut the ink as `read` does (`fields.py`). The same seed gives the same fields, however many
workers there are; on a CPU, with the same number of threads, it gives the same weights.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from reading.checkpoint import save_content
from reading.context import CONTEXT_FORMAT, CONTEXT_WEIGHTS, ContextNetwork, draw_windows
from reading.files import exit_code
from reading.segmentation import Part
from training.data import PROJECT_DIR, Digits, load_data
from training.fields import cut_field, write_field
from training.scenes import load_hands
from training.strokes import are_strokes
from training.synthetic import draw_handwriting
from training.train_ink import autocast, sharing_cores

LINES_A_STEP = 8
REPORT_EVERY = 500  # steps, where there is no terminal
SEGMENTS = 32  # of each line: all steps are alike
LEARNING_RATE = 3e-3  # the highest; one cycle (Smith and Topin 2018)
WEIGHT_DECAY = 1e-2
DRAWN = 1 / 3  # digits drawn by code, for each of MNIST's
N_STROKES = 16_000  # the first digits; those that are their strokes are written in scenes
HELD_OUT = 1_000_003  # the seed of the lines to evaluate on


class Lines(Dataset):
    """The lines of one seed: the windows of each, how much they are digits, and which."""

    def __init__(self, digits: Digits, seed: int, count: int) -> None:
        drawn, labels = draw_handwriting(round(DRAWN * len(digits)), seed)
        self.images = torch.cat([digits.images, drawn]).numpy()
        self.labels = torch.cat([digits.labels, labels]).numpy()
        clear = digits[:N_STROKES]
        clear = clear[are_strokes(clear.images)]
        self.hands = load_hands(clear.images, len(clear), clear.labels)
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return windows of a line's segments, uint8 (S, 2, 40, 56), their wholeness and labels."""
        if index >= len(self):
            raise IndexError(index)
        rng = np.random.Generator(np.random.PCG64([self.seed, index]))
        parts: list[Part] = []
        while not parts:
            if field := write_field(self.images, self.labels, self.hands, rng):
                parts, wholeness, labels, height = cut_field(field, rng)
        chosen = rng.choice(len(parts), SEGMENTS, replace=len(parts) < SEGMENTS)
        windows = draw_windows(field.ink, height, [parts[i] for i in chosen])
        return (255 * windows).round().astype(np.uint8), wholeness[chosen], labels[chosen]


def stack(items: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Collate the segments of several lines into one batch."""
    return tuple(np.concatenate(part) for part in zip(*items, strict=True))


def batches(lines: Lines, workers: int) -> DataLoader:
    """Return an iterable of batches of windows, wholeness and labels; workers draw them."""
    # As NumPy arrays they come through pipes: some machines have little shared memory.
    return DataLoader(lines, LINES_A_STEP, num_workers=workers, collate_fn=stack)


def context_loss(
    logits: torch.Tensor, wholeness: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return how far logits, (N, 11), are from what segments are; of a piece, no digit is asked."""
    whole = F.binary_cross_entropy_with_logits(logits[:, 0], wholeness)
    digit = F.cross_entropy(logits[:, 1:], labels, reduction="none")
    return whole + (wholeness * digit).sum() / wholeness.sum().clamp(min=1)


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
    for step, (windows, wholeness, labels) in enumerate(bar, start=1):
        with autocast("cpu"):
            logits = network(torch.from_numpy(windows).float() / 255)
        loss = context_loss(logits.float(), torch.from_numpy(wholeness), torch.from_numpy(labels))
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
    n = n_wrong = n_whole = n_misread = 0
    for windows, wholeness, labels in batches(lines, workers):
        logits = network(torch.from_numpy(windows).float() / 255).numpy()
        whole = wholeness > 0.5
        n, n_wrong = n + len(whole), n_wrong + ((logits[:, 0] > 0) != whole).sum()
        misread = logits[whole, 1:].argmax(axis=1) != labels[whole]
        n_whole, n_misread = n_whole + len(misread), n_misread + misread.sum()
    return (
        f"{len(lines):,} other lines: {n_wrong / n:.2%} of {n:,} segments taken wrongly for digits "
        f"or pieces, {n_misread / max(1, n_whole):.2%} of {n_whole:,} digits misread"
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments; SystemExit with code 2 where they make no sense."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # an error is one line
        description="Train the network that tells digits from pieces of a line.",
    )
    add = parser.add_argument
    add("--lines", type=int, default=160_000, help="how many to train on [%(default)s]")
    add("--seed", type=int, default=0, help="of the lines and of the first weights [0]")
    add("--workers", type=int, default=os.cpu_count() or 1, help="that draw [one a core]")
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
