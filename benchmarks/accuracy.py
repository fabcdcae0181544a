"""How many digits of MNIST's test set `train.py` misses, with several seeds.

    python benchmarks/accuracy.py default record short
    python benchmarks/accuracy.py --held-out default --writers train-writers.tsv.gz

Each run is a process of its own, which appends its result to accuracy.jsonl; a run that is in
there is not repeated. What was tried before, and what came of it, is told in accuracy.md.

With --held-out nothing is learned about the test set: 50,000 of the training digits are trained on,
and the others are missed or not. Which they are is up to chance, or, better, to who wrote them:
--writers names a table of the series and the number of the writer of each training digit (from
QMNIST's label files, Yadav and Bottou 2019), and then no writer is in both parts. MNIST's test
set has other writers than its training set, too, so such a split shows what a random one hides.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

from train import Trainer, evaluate, parse_arguments  # noqa: E402
from training.data import Digits, load_mnist  # noqa: E402

RESULTS = Path(__file__).with_suffix(".jsonl")
HELD_OUT = 10_000  # of the training digits
RUNS = {  # arguments of train.py
    "default": [],
    "record": ["--epochs", "60"],
    "short": ["--epochs", "3"],
}


def hold_out(digits: Digits, writers: Path | None = None) -> tuple[Digits, Digits]:
    """Part the training digits into those to train on and about 10,000 that are held out.

    By chance, or, given the table of writers, so that no writer is in both parts.
    """
    generator = torch.Generator().manual_seed(2026)
    if writers is None:
        held_out = torch.zeros(len(digits), dtype=torch.bool)
        held_out[torch.randperm(len(digits), generator=generator)[:HELD_OUT]] = True
    else:
        table = np.loadtxt(writers, np.int64, skiprows=1, usecols=(0, 1))
        _, who = np.unique(table, axis=0, return_inverse=True)
        counts = torch.bincount(torch.from_numpy(who))
        order = torch.randperm(len(counts), generator=generator)
        chosen = order[counts[order].cumsum(0) <= HELD_OUT]
        held_out = torch.isin(torch.from_numpy(who), chosen)
    return digits[~held_out], digits[held_out]


def run_held_out(name: str, seed: int, data_dir: Path, writers: Path | None) -> dict:
    """Train on a part of the training digits; return a row of accuracy.jsonl."""
    _, settings = parse_arguments([*RUNS[name], "--seed", str(seed)])
    rest, held_out = hold_out(load_mnist(data_dir, train=True), writers)
    started, run = time.perf_counter(), Trainer(rest, settings)
    run.fit(held_out[:100])  # the last epoch alone counts
    misses = evaluate(run.average, held_out).misses
    kind = "held out by writer" if writers else "held out"
    return result(name, kind, misses, time.perf_counter() - started, run.history)


def run_test(name: str, seed: int, data_dir: Path) -> dict:
    """Run train.py itself, as a user would; return a row of accuracy.jsonl."""
    output_dir = PROJECT_DIR / "outputs" / "accuracy" / f"{name}-{seed}"
    command = [sys.executable, "train.py", *RUNS[name], "--seed", str(seed)]
    command += ["--data-dir", str(data_dir.resolve()), "--output-dir", str(output_dir)]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=PROJECT_DIR)
    seconds = time.perf_counter() - started
    history = json.loads((output_dir / "history.json").read_text())
    return result(name, "test", history["rows"][-1]["misses"], seconds, history)


def result(name: str, which: str, misses: int, seconds: float, history: dict) -> dict:
    """Return the row of accuracy.jsonl for a run that has left this history."""
    return {
        "name": name,
        "set": which,
        "seed": history["settings"]["seed"],
        "misses": misses,
        "seconds": round(seconds),
        "threads": history["threads"],
        "settings": history["settings"],
        "torch": history["versions"]["torch"],
        "cores": os.cpu_count(),
    }


def print_table(rows: list[dict], which: str, names: list[str]) -> None:
    """Print the misses of each run, from seed 0 on, and their mean."""
    print("| command | mean ± std | misses by seed | seconds |\n| --- | --- | --- | --- |")
    for name in names:
        found = sorted(
            (row for row in rows if (row["name"], row["set"]) == (name, which)),
            key=lambda row: row["seed"],
        )
        misses = [row["misses"] for row in found]
        spread = f" ± {statistics.stdev(misses):.1f}" if len(misses) > 1 else ""
        seconds = statistics.median(row["seconds"] for row in found)
        command = " ".join(["python train.py", *RUNS[name]])
        mean = f"{statistics.mean(misses):.1f}{spread} misses"
        print(f"| `{command}` | {mean} | {', '.join(map(str, misses))} | {seconds:.0f} |")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", choices=RUNS)
    parser.add_argument("--held-out", action="store_true", help="judge by training digits")
    parser.add_argument("--writers", type=Path, help="the table of who wrote each training digit")
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, ... [5]")
    parser.add_argument("--data-dir", type=Path, default=PROJECT_DIR / "data")
    arguments = parser.parse_args(argv)
    which = "test"
    if arguments.held_out:
        which = "held out by writer" if arguments.writers else "held out"
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    done = {(row["name"], row["set"], row["seed"]) for row in rows}
    for seed in range(arguments.seeds):
        for name in arguments.runs:
            if (name, which, seed) in done:
                continue
            if arguments.held_out:
                row = run_held_out(name, seed, arguments.data_dir, arguments.writers)
            else:
                row = run_test(name, seed, arguments.data_dir)
            rows.append(row)
            with open(RESULTS, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{name}, seed {seed}: {row['misses']} misses, {row['seconds']} s", flush=True)
    print_table(rows, which, arguments.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
