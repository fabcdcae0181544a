"""What the network can reach, and what was tried to get it there; the table is accuracy.md.

    python benchmarks/accuracy.py --held-out NAME...      try ideas on the training set alone
    python benchmarks/accuracy.py --test default record   the test set, for what was decided
    python benchmarks/accuracy.py --list

An idea is a name and what it changes: settings of train.py, or functions and constants of it that
are replaced for that run. It is tried on 50,000 of the 60,000 training digits and judged by its
misses on the other 10,000, always the same ones; nothing is chosen on the test set. What is
decided is then trained on all 60,000 and its misses on the test set are reported, five seeds of it.
Each run is a process of its own (--jobs at a time, sharing the cores). Its result goes to
accuracy.jsonl, from which accuracy.md is written; a run that is in there is not repeated.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.nn as nn
import torch.nn.functional as F

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

import train  # noqa: E402
from model import NUM_CLASSES, MNISTClassifier  # noqa: E402
from train import Digits, Settings  # noqa: E402

RESULTS = Path(__file__).with_suffix(".jsonl")
TABLE = Path(__file__).with_suffix(".md")
HELD_OUT = 10_000  # of the training digits
SPLIT_SEED = 2026

# ---- Ideas -------------------------------------------------------------------------------


def distortion(first: float, last: float) -> dict:
    """Distort `first` times as much as ±10°, ±2 px, ±10%, ±5°, going linearly to `last` times."""
    usual = {"MAX_ROTATION": 10, "MAX_SHIFT": 2, "MAX_SCALE": 0.1, "MAX_SHEAR": 5}
    names = {name: first * amount for name, amount in usual.items()}
    return names | {"LAST_STRENGTH": last / first}


STEADY, FADING, MORE = distortion(1, 1), distortion(1.5, 0.5), distortion(2, 0.3)


@dataclasses.dataclass
class Idea:
    """What a run changes: settings of train.py, names in it, and hooks that make more names."""

    about: str
    settings: dict
    names: dict = dataclasses.field(default_factory=lambda: STEADY)
    hooks: tuple[Callable, ...] = ()  # each makes a dict of names, of settings and digits


def elastic(first: float, cells: int, last: float | None = None) -> Callable:
    """Displace the pixels by a smooth random field (Simard et al. 2003).

    Bicubic between `cells` x `cells` normal values of `first` pixels, going linearly to `last`.
    """

    def hook(settings: Settings, n: int) -> dict:
        original, progress = train.random_grid, count_steps(settings, n)

        def random_grid(n: int, generator: torch.Generator, strength: float) -> torch.Tensor:
            field = torch.empty(n, 2, cells, cells).normal_(generator=generator)
            field = F.interpolate(field, size=(28, 28), mode="bicubic", align_corners=True)
            pixels = first + ((first if last is None else last) - first) * next(progress)
            return original(n, generator, strength) + pixels / 14 * field.permute(0, 2, 3, 1)

        return {"random_grid": random_grid}

    return hook


def count_steps(settings: Settings, n: int) -> Iterator[float]:
    """Yield the share of the run that is done before each step."""
    steps = settings.epochs * math.ceil(n / settings.batch_size)
    yield from (step / steps for step in range(steps))


def erasing(size: int, share: float = 0.5) -> Callable:
    """Blank a square of `size` pixels in a `share` of the images (DeVries and Taylor 2017)."""

    def hook(settings: Settings, n: int) -> dict:
        original = train.augment

        def augment(images: torch.Tensor, generator: torch.Generator, strength: float):
            images = original(images, generator, strength)
            n = len(images)
            corner = torch.randint(0, 28 - size + 1, (2, n, 1), generator=generator)
            hit = torch.rand(n, 1, generator=generator) < share
            inside = [(torch.arange(28) >= c) & (torch.arange(28) < c + size) for c in corner]
            square = inside[0][:, :, None] & inside[1][:, None, :] & hit[:, :, None]
            return images.masked_fill(square.unsqueeze(1), 0)

        return {"augment": augment}

    return hook


def step(smoothing: float = 0, mixup: float = 0, sam: float = 0, teacher: float = 0) -> Callable:
    """A training step with label smoothing, mixup, sharpness-aware steps, or a teacher.

    Mixup: Zhang et al. 2018. Sharpness-aware: Foret et al. 2021. The teacher is the moving
    average of the weights; its probabilities, of the same images, are mixed into the labels.
    """

    def hook(settings: Settings, n: int) -> dict:
        averages = []
        update, progress = train.update_average, count_steps(settings, n)

        def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
            averages[:] = [average]
            update(average, model, step)

        def training_step(model, optimizer, images, labels, precision, batch_size):
            targets = F.one_hot(labels, NUM_CLASSES).float()
            targets = targets * (1 - smoothing) + smoothing / NUM_CLASSES
            mixed = precision == "bfloat16"
            autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed)
            if teacher and next(progress) > 0.3:
                with torch.no_grad(), autocast:
                    soft = averages[0](images).float().softmax(dim=1)
                targets = targets.lerp(soft, teacher)
            if mixup:
                share = torch._sample_dirichlet(torch.tensor([[mixup, mixup]])).max()
                order = torch.randperm(len(images))
                images = torch.lerp(images[order], images, share)
                targets = torch.lerp(targets[order], targets, share)

            def backward() -> torch.Tensor:
                optimizer.zero_grad()
                with autocast:
                    logits = model(images)
                loss = F.cross_entropy(logits.float(), targets)
                loss.backward()
                return loss.detach() * len(images)

            loss = backward()
            if sam:
                parameters = list(model.parameters())
                norm = torch.stack([p.grad.norm() for p in parameters]).norm()
                shifts = [p.grad * (sam / norm) for p in parameters]
                with torch.no_grad():
                    torch._foreach_add_(parameters, shifts)
                backward()
                with torch.no_grad():
                    torch._foreach_sub_(parameters, shifts)
            optimizer.step()
            return loss

        return {"training_step": training_step, "update_average": update_average}

    return hook


def kaiming(settings: Settings, n: int) -> dict:
    """Start from He et al.'s (2015) normal weights and no bias."""

    def network() -> MNISTClassifier:
        model = MNISTClassifier()
        for layer in (model.conv1, model.conv2, model.fc1, model.fc2):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        return model

    return {"MNISTClassifier": network}


def rates(convolutions: float) -> Callable:
    """Multiply the learning rate of the convolutions."""

    def hook(settings: Settings, n: int) -> dict:
        original = train.make_optimizer

        def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.SGD:
            optimizer = original(model, settings)
            layers = [*model.conv1.parameters(), *model.conv2.parameters()]
            for parameter in layers:  # the gradient scaled is the rate scaled, but for decay
                parameter.register_hook(lambda gradient: gradient * convolutions)
            return optimizer

        return {"make_optimizer": make_optimizer}

    return hook


BASE = {"epochs": 20, "batch_size": 128, "learning_rate": 0.05, "weight_decay": 5e-4}
B256 = {"batch_size": 256, "learning_rate": 0.1}
LONG = B256 | {"epochs": 40, "weight_decay": 2e-4}
B512 = {"batch_size": 512, "learning_rate": 0.2}
D4 = {"weight_decay": 1e-4}
FAST = LONG | B512 | D4
SHORT = {"epochs": 3, "batch_size": 128, "learning_rate": 0.05, "weight_decay": 1e-4}
IDEAS = {
    "base": Idea("steady distortion, weight decay 5e-4, average 0.999", BASE),
    "batch 256": Idea("", BASE | B256),
    "rate 0.1": Idea("", BASE | {"learning_rate": 0.1}),
    "decay 2e-4": Idea("weight decay 2e-4", BASE | {"weight_decay": 2e-4}),
    "decay 1e-3": Idea("weight decay 1e-3", BASE | {"weight_decay": 1e-3}),
    "smoothing 0.1": Idea("label smoothing 0.1", BASE, hooks=(step(smoothing=0.1),)),
    "mixup 0.2": Idea("mixup, Beta(0.2, 0.2)", BASE, hooks=(step(mixup=0.2),)),
    "sam 0.05": Idea("sharpness-aware, radius 0.05; twice the work", BASE, hooks=(step(sam=0.05),)),
    "teacher 0.5": Idea("half of each label from the average", BASE, hooks=(step(teacher=0.5),)),
    "strong": Idea("±15°, ±3 px, ±15%, ±10° shear", BASE, distortion(1.5, 1.5) | {"MAX_SHEAR": 10}),
    "strong to weak": Idea("distortion ×1.5, in the end ×0.5", BASE, FADING),
    "elastic 0.8": Idea("elastic, 0.8 px, 6×6 cells", BASE, hooks=(elastic(0.8, 6),)),
    "erasing 8": Idea("an 8×8 square blank in half of them", BASE, hooks=(erasing(8),)),
    "average 0.9995": Idea("", BASE, STEADY | {"EMA_DECAY": 0.9995}),
    "warm-up 0.3": Idea("warm-up over 30% of the steps", BASE, STEADY | {"WARMUP": 0.3}),
    "kaiming": Idea("He's initialization", BASE, hooks=(kaiming,)),
    "slow convolutions": Idea("gradients of the convolutions ×0.5", BASE, hooks=(rates(0.5),)),
    "float32": Idea("float32 throughout", BASE | {"precision": "float32"}),
    "40 epochs": Idea("decay 2e-4", LONG),
    "40, fading": Idea("distortion ×1.5 to ×0.5, decay 2e-4", LONG, FADING),
    "40, fading more": Idea("distortion ×2 to ×0.3, decay 2e-4", LONG, MORE),
    "40, fading, elastic": Idea(
        "the same, elastic 1 px to 0.3 px, 6×6 cells", LONG, FADING, hooks=(elastic(1, 6, 0.3),)
    ),
    "40, fading, decay 1e-4": Idea("decay 1e-4", LONG | {"weight_decay": 1e-4}, FADING),
    "40, fading, decay 5e-4": Idea("decay 5e-4", LONG | {"weight_decay": 5e-4}, FADING),
    "40, fading more, 1e-4": Idea("×2 to ×0.3, decay 1e-4", LONG | D4, MORE),
    "40, fading most, 1e-4": Idea("×2.5 to ×0.3, decay 1e-4", LONG | D4, distortion(2.5, 0.3)),
    "40, fading to nothing, 1e-4": Idea("×2 to ×0.05, decay 1e-4", LONG | D4, distortion(2, 0.05)),
    "40, more, elastic, 1e-4": Idea(
        "×2 to ×0.3, elastic 1 px to 0.3 px, 6×6", LONG | D4, MORE, (elastic(1, 6, 0.3),)
    ),
    "60, fading more, 1e-4": Idea("×2 to ×0.3, decay 1e-4", LONG | D4 | {"epochs": 60}, MORE),
    "20, fading more, 1e-4": Idea("×2 to ×0.3, decay 1e-4", LONG | D4 | {"epochs": 20}, MORE),
    "20, fading, 1e-4": Idea("×1.5 to ×0.5, decay 1e-4", LONG | D4 | {"epochs": 20}, FADING),
    "40, batch 512": Idea("×2 to ×0.3, decay 1e-4", FAST, MORE),
    "40, batch 512, fading less": Idea("×1.5 to ×0.5, decay 1e-4", FAST, FADING),
    "40, batch 512, sam 0.05": Idea(
        "×2 to ×0.3, sharpness-aware, radius 0.05", FAST, MORE, (step(sam=0.05),)
    ),
    "40, batch 512, smoothing": Idea(
        "×2 to ×0.3, label smoothing 0.05", FAST, MORE, (step(smoothing=0.05),)
    ),
    "80, batch 512": Idea("×2 to ×0.3, decay 1e-4", FAST | {"epochs": 80}, MORE),
    "20, batch 512": Idea("×2 to ×0.3, decay 1e-4", FAST | {"epochs": 20}, MORE),
    "20, fading": Idea("decay 2e-4", LONG | {"epochs": 20}, FADING),
    "20, fading, batch 512": Idea("decay 2e-4", LONG | B512 | {"epochs": 20}, FADING),
    "3 epochs": Idea("×2 to ×0.3", SHORT, MORE),
    "3, rate 0.1": Idea("×2 to ×0.3", SHORT | {"learning_rate": 0.1}, MORE),
    "3, batch 256, 0.1": Idea("×2 to ×0.3", SHORT | B256, MORE),
    "3, less": Idea("×1.5 to ×0.5", SHORT, FADING),
    "3, light": Idea("distortion ×0.7 to ×0.2", SHORT, distortion(0.7, 0.2)),
    "3, light, rate 0.1": Idea("the same", SHORT | {"learning_rate": 0.1}, distortion(0.7, 0.2)),
}

DECIDED = {  # arguments of train.py
    "default": [],
    "record": ["--epochs", "60"],
    "short": ["--epochs", "3"],
}
INTRODUCTION = [
    "Written by `benchmarks/accuracy.py`, from `accuracy.jsonl`. Misses are those of each seed,",
    "from 0 on; ± is the standard deviation over the seeds. An AMD EPYC, 2 cores, AVX-512 with",
    "native bfloat16; torch 2.14.1. Where a run had one thread, another ran beside it, and the",
    "seconds are those of a busy machine.",
    "",
    "What the held-out digits show, the test set shows only in part: MNIST's training set and test",
    "set are by different writers, while the held-out digits are by those of the other training",
    "digits. A difference of five misses between two seeds of one idea is nothing unusual.",
]
HEADINGS = {
    "test": "Decided: trained on all 60,000 digits, judged by the 10,000 of the test set",
    "held out": "Tried: trained on 50,000 of the training digits, judged by the other 10,000",
}
COLUMNS = ["name", "what", "epochs", "batch", "rate", "decay", "misses", "accuracy", "seconds"]
COLUMNS += ["threads"]

# ---- One run -----------------------------------------------------------------------------


def split_training_set(data_dir: Path) -> tuple[Digits, Digits]:
    """Return the 50,000 training digits that ideas are trained on, and the 10,000 held out."""
    digits = train.load_mnist(data_dir, train=True)
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out, rest = order[:HELD_OUT], order[HELD_OUT:]
    return tuple(Digits(*(tensor[rows] for tensor in digits)) for rows in (rest, held_out))


@contextlib.contextmanager
def applied(idea: Idea, settings: Settings, n: int) -> Iterator[None]:
    """Replace the names of train.py that the idea replaces, for a while."""
    with contextlib.ExitStack() as stack:
        for hook in (lambda *_: idea.names, *idea.hooks):
            for name, replacement in hook(settings, n).items():
                stack.enter_context(mock.patch.object(train, name, replacement))
        yield


def try_idea(name: str, seed: int, data_dir: Path) -> dict:
    """Train by an idea on a part of the training set; return its row of accuracy.jsonl."""
    idea = IDEAS[name]
    settings = Settings(**idea.settings, seed=seed, device="cpu")
    digits, held_out = split_training_set(data_dir)
    few = Digits(held_out.images[:100], held_out.labels[:100])  # the last epoch alone counts
    started = time.perf_counter()
    with applied(idea, settings, len(digits.labels)):
        model, history = train.train(digits, few, settings, quiet=True)
    misses = train.evaluate(model, held_out).misses
    return result(name, "held out", misses, time.perf_counter() - started, history)


def decided_command(name: str) -> list[str]:
    """Return the arguments of Python that run what was decided."""
    return ["train.py", *DECIDED[name]]


def run_decided(name: str, seed: int, data_dir: Path) -> dict:
    """Run train.py itself, as a user would; return its row of accuracy.jsonl."""
    output_dir = PROJECT_DIR / "outputs" / "accuracy" / f"{name}-{seed}"
    command = [sys.executable, *decided_command(name), "--seed", str(seed)]
    command += ["--data-dir", str(data_dir.resolve()), "--output-dir", str(output_dir)]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=PROJECT_DIR)
    seconds = time.perf_counter() - started
    history = json.loads((output_dir / "history.json").read_text())
    return result(name, "test", history["epochs"][-1]["misses"], seconds, history)


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
    }


# ---- All of them -------------------------------------------------------------------------


def read_results() -> list[dict]:
    """Return the rows of accuracy.jsonl."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [json.loads(line) for line in lines]


def write_table() -> None:
    """Write accuracy.md from accuracy.jsonl, the best first."""
    text = ["# Accuracy: what was tried", "", *INTRODUCTION]
    for which, heading in HEADINGS.items():
        groups = {}
        for row in sorted(read_results(), key=lambda row: row["seed"]):
            if row["set"] == which:
                groups.setdefault(row["name"], []).append(row)
        text += [
            "",
            f"## {heading}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "| --- " * len(COLUMNS) + "|",
        ]
        lines = [(statistics.mean(row["misses"] for row in rows), rows) for rows in groups.values()]
        text += [table_line(rows) for _, rows in sorted(lines, key=lambda line: line[0])]
    TABLE.write_text("\n".join(text) + "\n")


def table_line(rows: list[dict]) -> str:
    """Return a line of the table, for the runs of one idea."""
    name, settings = rows[0]["name"], rows[0]["settings"]
    misses = [row["misses"] for row in rows]
    accuracy = f"{100 - statistics.mean(misses) / 100:.3f}%"
    if len(misses) > 1:
        accuracy += f" ± {statistics.stdev(misses) / 100:.3f}"
    about = IDEAS[name].about if name in IDEAS else f"`python {' '.join(decided_command(name))}`"
    cells = [name, about, settings["epochs"], settings["batch_size"], settings["learning_rate"]]
    cells += [settings["weight_decay"], ", ".join(map(str, misses)), accuracy]
    cells += [round(statistics.median(row["seconds"] for row in rows)), rows[0]["threads"]]
    return f"| {' | '.join(map(str, cells))} |"


def run_all(which: str, names: list[str], arguments: argparse.Namespace) -> None:
    """Run what is not in the results yet, `--jobs` at a time, and add it to them."""
    done = {(row["name"], row["set"], row["seed"]) for row in read_results()}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    todo = [(name, seed) for seed in seeds for name in names if (name, which, seed) not in done]
    threads = str(max(1, (os.cpu_count() or 1) // arguments.jobs))

    def one(name: str, seed: int) -> None:
        again = [sys.executable, __file__, "--one", which, name, str(seed)]
        again += ["--data-dir", str(arguments.data_dir)]
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        line = subprocess.run(
            again, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
        with open(RESULTS, "a") as file:
            file.write(line)
        row = json.loads(line)
        print(f"{name:26} seed {seed} {row['misses']:5} misses {row['seconds']:5} s", flush=True)

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for future in [pool.submit(one, *each) for each in todo]:
            future.result()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--held-out", nargs="*", metavar="NAME", default=[], choices=IDEAS)
    parser.add_argument("--test", nargs="*", metavar="NAME", default=[], choices=DECIDED)
    parser.add_argument("--list", action="store_true", help="name the ideas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--data-dir", type=Path, default=PROJECT_DIR / "data")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.list:
        print("\n".join(f"{name:26} {idea.about}" for name, idea in IDEAS.items()))
    elif arguments.one:
        which, name, seed = arguments.one
        run = {"held out": try_idea, "test": run_decided}[which]
        print(json.dumps(run(name, int(seed), arguments.data_dir)))
    else:
        run_all("held out", arguments.held_out, arguments)
        run_all("test", arguments.test, arguments)
        write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
