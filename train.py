"""Train the network of model.py on MNIST, evaluate it, plot the history, save the model.

python train.py             MNIST, downloaded to data/ the first time; 99.6% of the test set
python train.py --sample    the 5,000 bundled digits, in seconds
"""

import argparse
import copy
import dataclasses
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from filelock import FileLock
from tqdm import tqdm

from model import NUM_CLASSES, MNISTClassifier, normalize
from reading.checkpoint import save_checkpoint
from reading.devices import choose_device, computes_in_bfloat16, keep_freed_memory, speed_up
from reading.files import exit_code, write_atomically
from training import runs
from training.data import PROJECT_DIR, Digits, fading, load_data, shuffled_batches
from training.distributed import from_first, joined, rank, sum_up, world_size
from training.lines import add_drawings
from training.plots import plot_confusion_matrix, plot_history, plot_mistakes, save_figure
from training.synthetic import NON_DIGIT

# ---- Settings ----------------------------------------------------------------------------


def option(default: float | bool | str, about: str, *bounds: float) -> dataclasses.Field:
    """A setting of a run, and an option of the command line; bounds are those of a number."""
    return dataclasses.field(default=default, metadata={"help": about, "bounds": bounds})


@dataclasses.dataclass
class Settings:
    """The settings of a run. Raises ValueError for one out of range."""

    # Misses of 10,000 test digits: 3 epochs 64, 25 epochs 44, 60 epochs 40. All such figures are
    # from benchmarks/accuracy.md.
    epochs: int = option(25, "times to show every training digit", 1, 10**6)
    # 256 at rate 0.1 misses 66, 128 at 0.05 takes twice the steps and misses 65.
    batch_size: int = option(0, "digits a step; 0: 256, or fewer in a short run", 0, 10**6)
    learning_rate: float = option(0, "the highest; 0: 0.1 for batches of 256, or less", 0, 10**6)
    # The usual value (Sutskever, Martens, Dahl and Hinton 2013).
    momentum: float = option(0.9, "Nesterov's, unless it is 0", 0, 0.9999)
    weight_decay: float = option(1e-4, "of weights; biases have none", 0, 1)  # 5e-4: 57 for 50
    # Of 2,400 continental digits, a share of 0.1 misses 52, 0.2 misses 38, and 0.3 misses 44: of
    # drawings alone. With 0.1 more cut out of lines, 362 of 500 amounts are right, 352 without.
    handwriting: float = option(0.3, "digits drawn as MNIST lacks them, or cut, a share", 0, 1)
    # AUROC of letters and scribbles: 0.985, 0.984 with a share of 0.1; 0.987, 0.987 with 0.15.
    non_digits: float = option(0.25, "non-digits, drawn or cut, to be unsure of, a share", 0, 1)
    seed: int = option(0, "same seed, machine and threads: same weights, bit for bit", 0, 2**63 - 1)
    device: str = option("auto", "auto, cpu, cuda, mps or xpu; auto prefers an accelerator")
    precision: str = option("auto", "float32 or bfloat16; auto: bfloat16 where it is native")
    # Distortion that fades misses 58 where steady distortion misses 65.
    augment: bool = option(True, "distort the digits at random, less and less over the run")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name.replace("_", " "), getattr(self, field.name)
            low, high = field.metadata["bounds"] or (value, value)
            if not low <= value <= high:
                raise ValueError(f"{name} must be in {low}..{high}, not {value!r}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision must be auto, float32 or bfloat16, not {self.precision!r}")
        self.device = choose_device(self.device)
        if self.precision == "auto":  # where bfloat16 is only emulated, it is slower
            native = computes_in_bfloat16(self.device)
            self.precision = "bfloat16" if native else "float32"


# ---- Training ----------------------------------------------------------------------------

MIN_BATCH, MAX_BATCH = 32, 256  # digits a step, unless the settings say how many
MIN_STEPS = 1000  # of a run that chooses its batches
MAX_RATE = 0.1  # for batches of MAX_BATCH
WARMUP = 0.15  # share of all steps; no other was tried
AVERAGE_DECAY = 0.999  # of the moving average of the weights, a step; 0.9995 misses as many
# The probabilities that the network is to give a digit, and a non-digit: outlier exposure
# (Hendrycks, Mazeika and Dietterich 2019, arXiv:1812.04606).
TARGETS = torch.cat([torch.eye(NUM_CLASSES), torch.full((1, NUM_CLASSES), 1 / NUM_CLASSES)])
# What each counts in the loss. Non-digits at a quarter cost no digits; at a half they cost some.
WEIGHTS = torch.tensor([1.0] * NUM_CLASSES + [0.25])
MAX_SLICE = 1024  # images of a batch that go through the network at once: it takes less memory


def train(
    train_digits: Digits, test_digits: Digits, settings: Settings | None = None
) -> tuple[MNISTClassifier, dict]:
    """Train a new network, print how it goes, and return the network and its history."""
    run = Trainer(train_digits, settings)
    run.fit(test_digits)
    return run.average, run.history


class Trainer:
    """One training run: the network, its average, the optimizer and the history.

    The network to use is `average`, in evaluation mode: a moving average of the weights of
    `model`, which reads better than those of any step. `history` is a dict of plain values, whose
    "rows" has one for each epoch. The same settings, machine and number of threads give the same
    weights, bit for bit. PyTorch's global generator is seeded, since dropout draws there.
    """

    def __init__(self, digits: Digits, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        drawn = add_drawings(digits, settings.handwriting, settings.non_digits, settings.seed)
        self.settings = settings = fit_to_length(settings, settings.epochs * len(drawn))
        self.digits = drawn.to(settings.device)
        self.targets, self.weights = TARGETS.to(settings.device), WEIGHTS.to(settings.device)
        keep_freed_memory()
        torch.backends.cudnn.deterministic = True  # the same seed, the same weights: on a GPU too
        torch.manual_seed(settings.seed)
        self.model = speed_up(MNISTClassifier().to(settings.device))
        self.average = copy.deepcopy(self.model).eval()
        decayed = {"params": [p for p in self.model.parameters() if p.dim() > 1]}
        biases = {"params": [p for p in self.model.parameters() if p.dim() == 1]}
        self.optimizer = torch.optim.SGD(
            [decayed, biases | {"weight_decay": 0.0}],
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
            fused=True,  # one pass over the weights, not one an operation
        )
        self.history = {
            "data": digits.name,
            "train_digits": len(digits),
            "test_digits": 0,  # so far
            "settings": dataclasses.asdict(settings),
            "processes": world_size(),
            "threads": torch.get_num_threads(),
            "versions": runs.versions(),
            "rows": [],
        }

    def fit(self, test_digits: Digits, after_epoch: Callable[[], None] | None = None) -> None:
        """Go through the run and print it; ValueError if the loss is no longer finite."""
        print_settings(self, test_digits)
        for row in self.iter_epochs(test_digits):
            print_epoch(row, self.settings.epochs)
            if after_epoch:
                after_epoch()

    def iter_epochs(self, test_digits: Digits) -> Iterator[dict]:
        """Train, evaluate after each epoch (it influences nothing), and yield the history's row."""
        self.history["test_digits"] = len(test_digits)
        test_digits = test_digits.to(self.settings.device)
        while (epoch := len(self.history["rows"]) + 1) <= self.settings.epochs:
            started = time.perf_counter()
            row = {"epoch": epoch} | self.train_epoch(epoch)
            result = evaluate(self.average, test_digits)
            row |= {"test_loss": result.loss, "test_accuracy": result.accuracy}
            row |= {"misses": result.misses, "seconds": time.perf_counter() - started}
            self.history["rows"].append(row)
            yield row
        known = self.digits[: self.history["train_digits"]]
        self.history["min_confidence"] = min_confidence(self.average, known)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch, counted from 1: show the network every digit, in random order.

        Returns the last learning rate, the mean cross-entropy of the digits (distorted, with
        dropout; without non-digits) and the images per second.
        """
        started, settings, digits = time.perf_counter(), self.settings, self.digits
        n_batches = -(-len(digits) // settings.batch_size)
        steps = range((epoch - 1) * n_batches, epoch * n_batches)
        # The share of the run that is done, in the middle of each step: the first learns, too.
        progress = [(step + 0.5) / (settings.epochs * n_batches) for step in steps]
        strengths = [fading(p, settings.epochs) if settings.augment else 0.0 for p in progress]
        # Each epoch has a seed of its own: nothing of a generator need be kept between them.
        seed = random.Random(f"{settings.seed} {epoch}").getrandbits(62)
        torch.manual_seed(seed + rank())  # dropout draws there
        part = slice(rank(), None, world_size())
        batches = shuffled_batches(digits, settings.batch_size, strengths, seed, part)
        batches = tqdm(batches, total=n_batches, unit="batch", leave=False, disable=None)
        self.model.train()
        total_loss = torch.zeros((), device=settings.device)
        for step, done, (images, labels, batch_size) in zip(steps, progress, batches, strict=True):
            rate = settings.learning_rate * schedule(done)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            # No .item() here: it would wait for a GPU.
            total_loss += self.train_step(images, labels, batch_size)
            update_average(self.average, self.model, step)
        sum_up([total_loss])
        loss = total_loss.item() / int((digits.labels != NON_DIGIT).sum())
        if not math.isfinite(loss):
            raise ValueError(f"the loss became {loss} in epoch {epoch}; lower the learning rate")
        speed = len(digits) / (time.perf_counter() - started)
        return {"learning_rate": rate, "train_loss": loss, "images_per_second": speed}

    def train_step(self, images: torch.Tensor, labels: torch.Tensor, n: int) -> torch.Tensor:
        """Take one step down the gradient of the mean loss of a batch of n images.

        Takes this process's part of it, normalized (N, 1, 28, 28), with labels (N,); returns the
        sum of the cross-entropies of its digits.
        """
        mixed = self.settings.precision == "bfloat16"
        self.optimizer.zero_grad()
        total_loss = torch.zeros((), device=images.device)
        for x, y in zip(images.split(MAX_SLICE), labels.split(MAX_SLICE), strict=True):
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=mixed):
                logits = self.model(x)  # (n, 10)
            losses = F.cross_entropy(logits.float(), self.targets[y], reduction="none")  # (n,)
            ((self.weights[y] * losses).sum() / n).backward()
            total_loss += losses.detach()[y != NON_DIGIT].sum()
        sum_up([parameter.grad for parameter in self.model.parameters()])
        self.optimizer.step()
        return total_loss

    def state_dict(self) -> dict:
        """Return all that the run needs to go on: a copy, of tensors and plain values."""
        parts = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        state = {name: part.state_dict() for name, part in parts.items()}
        return copy.deepcopy(state | {"history": self.history})

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken, to the very same weights.

        Raises ValueError, and changes nothing, if that was a run with other settings.
        """
        runs.check_same(state["history"], self.history)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history["rows"] = list(state["history"]["rows"])


def fit_to_length(settings: Settings, n: int) -> Settings:
    """Choose the batch size and the learning rate, where that is asked, for n digits shown in all.

    A few hundred steps lead nowhere, so a short run takes smaller batches. Their gradients are
    noisier, by the square root of the size, and so is the rate lower (Krizhevsky 2014,
    arXiv:1404.5997).
    """
    size = settings.batch_size or min(MAX_BATCH, max(MIN_BATCH, n // MIN_STEPS))
    rate = settings.learning_rate or MAX_RATE * math.sqrt(size / MAX_BATCH)
    return dataclasses.replace(settings, batch_size=size, learning_rate=rate)


def schedule(progress: float) -> float:
    """Return the share of the highest learning rate, given the share of the run that is done.

    A linear warm-up, then a cosine down to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983).
    """
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the average towards the weights after step 0, 1, ...

    It forgets faster at first, because the random initial weights would dominate a short run.
    """
    decay = min(AVERAGE_DECAY, (step + 1) / (step + 11))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


# ---- Evaluation --------------------------------------------------------------------------

EVALUATION_BATCH = 250  # images; small enough for the processor's cache
DIGITS_KEPT = 0.998  # of the digits that it has learned; of other writers, 99.5% (accuracy.md)


class Evaluation(NamedTuple):
    """How a network does on labelled digits."""

    loss: float  # mean cross-entropy, in nats
    accuracy: float  # 0..1
    misses: int
    probabilities: torch.Tensor  # float32 (N, 10), on the CPU


@torch.inference_mode()
def evaluate(model: nn.Module, digits: Digits) -> Evaluation:
    """Read labelled digits in float32, without dropout, and compare. It takes no random numbers."""
    if not len(digits):
        raise ValueError("there are no digits to evaluate on")
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    batches = digits.images.split(EVALUATION_BATCH)
    logits = torch.cat([model(normalize(batch.to(device))).cpu() for batch in batches])  # (N, 10)
    model.train(was_training)
    labels = digits.labels.cpu()
    misses = int((logits.argmax(dim=1) != labels).sum())
    loss = F.cross_entropy(logits, labels).item()
    return Evaluation(loss, 1 - misses / len(digits), misses, logits.softmax(dim=1))


def min_confidence(model: nn.Module, digits: Digits) -> float:
    """Return the confidence that nearly all of the digits reach."""
    confidences = evaluate(model, digits).probabilities.amax(dim=1)
    return round(confidences.quantile(1 - DIGITS_KEPT).item(), 4)


# ---- What a run says and leaves ----------------------------------------------------------


def print_settings(run: Trainer, test_digits: Digits) -> None:
    """Print what the run trains on, its settings, and the head of the table."""
    history, labels = run.history, run.digits.labels
    n, none = history["train_digits"], int((labels == NON_DIGIT).sum())
    settings = [f"{name.replace('_', ' ')} {value}" for name, value in history["settings"].items()]
    print(
        f"data        {history['data']}\n"
        f"digits      {n:,} to train on, {len(test_digits):,} to test on\n"
        f"drawings    {len(labels) - n - none:,} of ways of writing that MNIST lacks, "
        f"{none:,} of non-digits\n"
        f"parameters  {sum(parameter.numel() for parameter in run.model.parameters()):,}\n"
        f"processes   {history['processes']}, with {history['threads']} threads each\n"
        f"settings    {', '.join(settings)}\n\n"
        "  epoch  learning rate  train loss  test loss  accuracy  misses  images/s  seconds"
    )


def print_epoch(row: dict, epochs: int) -> None:
    """Print one line of the table, at once."""
    print(
        f"{row['epoch']:3}/{epochs:<3}  {row['learning_rate']:13.5f}  {row['train_loss']:10.4f}  "
        f"{row['test_loss']:9.4f}  {row['test_accuracy']:8.2%}  {row['misses']:6}  "
        f"{row['images_per_second']:8,.0f}  {row['seconds']:7.1f}",
        flush=True,
    )


def save_results(output_dir: Path, run: Trainer, test_digits: Digits) -> None:
    """Write the history, the plots and the checkpoint."""
    write_atomically(output_dir / "history.json", json.dumps(run.history, indent=1).encode())
    probabilities, data = evaluate(run.average, test_digits).probabilities, test_digits.name
    save_figure(output_dir / "history.png", plot_history(run.history), data)
    confusion = plot_confusion_matrix(test_digits.labels, probabilities.argmax(dim=1))
    save_figure(output_dir / "confusion_matrix.png", confusion, data)
    save_figure(output_dir / "mistakes.png", plot_mistakes(test_digits, probabilities), data)
    # The model comes last: when it is there, all is.
    save_checkpoint(output_dir / "mnist_cnn.pt", run.average, run.history)


def print_results(history: dict, output_dir: Path, seconds: float) -> None:
    """Say how well the network reads, where everything is, and how to use it."""
    last, checkpoint = history["rows"][-1], str(output_dir / "mnist_cnn.pt")
    print(
        f"\n{last['test_accuracy']:.2%} of the test digits of {history['data']} read correctly "
        f"({last['misses']} misses of {history['test_digits']:,}) after {seconds:.0f} s\n"
        f"model, history and plots are in {output_dir}; to read a digit:\n\n"
        "    from inference import MNISTPredictor\n"
        f"    print(MNISTPredictor({checkpoint!r}).predict('digit.png'))"
    )


# ---- Command line ------------------------------------------------------------------------

DRY_RUN_BATCHES, DRY_RUN_EPOCHS = 3, 2


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, Settings]:
    """Read the command line; what is out of range is refused with one line, exit code 2."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # an error is one line
        description="Train the digit classifier, evaluate it, plot the history, save the model.",
        argument_default=argparse.SUPPRESS,  # they are those of Settings
        allow_abbrev=False,
    )
    add, options = parser.add_argument, dataclasses.fields(Settings)
    for field in options:
        flag = field.type is bool
        kind = {"action": argparse.BooleanOptionalAction} if flag else {"type": field.type}
        about = f"{field.metadata['help']} [{field.default}]"
        add(f"--{field.name.replace('_', '-')}", help=about, **kind)
    place = {"type": runs.folder, "metavar": "DIR"}
    add("--data-dir", **place, default=PROJECT_DIR / "data", help="where MNIST goes [data]")
    add("--output-dir", **place, default=PROJECT_DIR / "outputs", help="for results [outputs]")
    switch = {"action": "store_true", "default": False}
    add("--sample", **switch, help="use the 5,000 bundled digits instead of MNIST")
    add("--resume", **switch, help="go on after the last finished epoch")
    add("--dry-run", **switch, help="a few batches of everything; writes all files")
    arguments = parser.parse_args(argv)
    given = vars(arguments).keys() & {field.name for field in options}
    try:
        return arguments, Settings(**{name: getattr(arguments, name) for name in given})
    except ValueError as error:
        parser.error(str(error))


def run_command(arguments: argparse.Namespace, settings: Settings) -> int:
    """Keep others out of the output folder while it is written; return the exit code."""
    lock = FileLock(arguments.output_dir / ".lock")
    try:
        from_first(lambda: runs.claim_folder(lock))
        make_results(arguments, from_first(lambda: settings))
    finally:
        lock.release()
    return 0


def make_results(arguments: argparse.Namespace, settings: Settings) -> None:
    """Load, train, evaluate, plot and save."""
    started, output_dir = time.perf_counter(), arguments.output_dir
    train_digits, test_digits = from_first(lambda: load_data(arguments.data_dir, arguments.sample))
    flags = ["--sample"] * arguments.sample + ["--dry-run"] * arguments.dry_run
    command = runs.command_line(settings, Settings(), flags)
    if arguments.dry_run:
        settings = dataclasses.replace(settings, epochs=min(settings.epochs, DRY_RUN_EPOCHS))
        name = f"dry run on a few digits of: {train_digits.name}"
        n = DRY_RUN_BATCHES * (settings.batch_size or MAX_BATCH)
        train_digits = train_digits[:n].named(name)
        test_digits = test_digits[:EVALUATION_BATCH].named(name)
    if not arguments.sample:
        from_first(lambda: runs.keep_model_of_mnist(output_dir, train_digits.name))
    run = Trainer(train_digits, settings)
    run.history = {"command": command} | run.history
    if arguments.resume:
        runs.resume(run, output_dir)
    runs.save_state(run, output_dir)  # before training: it shows whether it can write there
    run.fit(test_digits, after_epoch=lambda: runs.save_state(run, output_dir))
    from_first(lambda: save_results(output_dir, run, test_digits))
    print_results(run.history, output_dir, time.perf_counter() - started)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""

    def command() -> int:
        with joined():
            return run_command(*parse_arguments(argv))

    goes_on = "; if a run had begun, the same command with --resume goes on after its last epoch"
    return exit_code("train.py", command, goes_on)


if __name__ == "__main__":
    sys.exit(main())
