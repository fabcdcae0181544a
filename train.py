"""Train the network of model.py on MNIST, evaluate it, plot the history, save the model.

python train.py             MNIST, downloaded to data/ the first time; 99.6% of the test set
python train.py --sample    the 5,000 bundled digits, in seconds
"""

import argparse
import contextlib
import copy
import dataclasses
import importlib.metadata
import math
import platform
import random
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from filelock import FileLock
from tqdm import tqdm

from evaluation import EVALUATION_BATCH, evaluate, least_confidence
from model import NUM_CLASSES, MNISTClassifier
from reading.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_with_checksum,
    save_with_checksum,
)
from reading.devices import computes_in_bfloat16, keep_freed_memory
from reading.files import claim_folder, prepare_streams
from results import print_epoch, print_results, save_results
from training.data import PROJECT_DIR, Digits, fading, load_data, shuffled_batches
from training.distributed import from_first, joined, launcher, rank, sum_up, world_size
from training.synthetic import NO_DIGIT, draw_handwriting, draw_non_digits

# ---- Settings ----------------------------------------------------------------------------


def option(default: int | float | bool | str, about: str) -> dataclasses.Field:
    """A setting of a run, and an option of the command line."""
    return dataclasses.field(default=default, metadata={"help": about})


@dataclasses.dataclass
class Settings:
    """The settings of a run; "auto" is resolved. Raises ValueError for one out of range."""

    epochs: int = option(25, "times to show every training digit")
    batch_size: int = option(256, "digits a step, of all processes together")
    learning_rate: float = option(0.1, "the highest: a warm-up, then a cosine down to 0")
    momentum: float = option(0.9, "Nesterov's, unless it is 0")
    weight_decay: float = option(1e-4, "of weights; biases have none")
    handwriting: float = option(0.1, "share of drawings of ways of writing that MNIST lacks")
    non_digits: float = option(0.1, "share of drawings of no digit, to be unsure of")
    seed: int = option(0, "same seed, machine and number of threads: same weights, bit for bit")
    device: str = option("auto", "auto, cpu, cuda, mps or xpu; auto prefers an accelerator")
    precision: str = option("auto", "float32 or bfloat16; auto: bfloat16 where it is native")
    augment: bool = option(True, "distort the digits at random, less and less over the run")

    def __post_init__(self) -> None:
        precisions = ("auto", "float32", "bfloat16")
        for name, holds, rule in (
            ("epochs", 1 <= self.epochs <= 10**6, "in 1..1000000"),
            ("batch_size", 1 <= self.batch_size <= 10**6, "in 1..1000000"),
            ("learning_rate", 0 < self.learning_rate <= 1e6, "above 0, at most 1000000"),
            ("momentum", 0 <= self.momentum < 1, "in 0..1, below 1"),
            ("weight_decay", 0 <= self.weight_decay <= 1, "in 0..1"),
            ("handwriting", 0 <= self.handwriting <= 1, "in 0..1"),
            ("non_digits", 0 <= self.non_digits <= 1, "in 0..1"),
            ("seed", 0 <= self.seed < 2**63, "in 0..2**63-1"),
            ("precision", self.precision in precisions, "auto, float32 or bfloat16"),
        ):
            if not holds:
                value = getattr(self, name)
                raise ValueError(f"{name.replace('_', ' ')} must be {rule}, not {value!r}")
        self.device = choose_device(self.device)
        if self.precision == "auto":  # where bfloat16 is only emulated, it is slower
            native = computes_in_bfloat16(self.device)
            self.precision = "bfloat16" if native else "float32"


def choose_device(name: str) -> str:
    """Return the name of a device that this machine has; "auto" prefers an accelerator."""
    if name == "auto":
        available = torch.accelerator.is_available()
        name = torch.accelerator.current_accelerator().type if available else "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the one line below says it all
            torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {name!r} here; use auto or cpu") from None
    return name


# ---- Training ----------------------------------------------------------------------------

WARMUP = 0.15  # share of all steps
AVERAGE_DECAY = 0.999  # of the moving average of the weights, a step
# What the network is to say of a digit, and of what is none, which counts less: outlier exposure
# (Hendrycks, Mazeika and Dietterich 2019, arXiv:1812.04606). A quarter costs no digits.
TARGETS = torch.cat([torch.eye(NUM_CLASSES), torch.full((1, NUM_CLASSES), 1 / NUM_CLASSES)])
WEIGHTS = torch.tensor([1.0] * NUM_CLASSES + [0.25])
PARTS = ("model", "average", "optimizer")  # of a run that have a state of their own
LARGEST_SLICE = 1024  # images that go through the network at once while it trains


def train(
    train_digits: Digits, test_digits: Digits, settings: Settings | None = None
) -> tuple[MNISTClassifier, dict]:
    """Go through a run of `Trainer`, print how it goes, and return its average and its history.

    Raises ValueError if the loss is no longer finite.
    """
    run = Trainer(train_digits, settings)
    print_settings(run, test_digits)
    for row in run.epochs(test_digits):
        print_epoch(row, run.settings.epochs)
    return run.average, run.history


class Trainer:
    """A run: all that changes while a new network trains on some digits.

    The network to use is `average`, in evaluation mode: it holds a moving average of the
    weights of `model` (each step moves it a thousandth of the way to them), which reads better
    than the weights of any step. `history` is a dict of plain values, where "epochs" has a row
    for each epoch. The same settings, machine and number of threads give the same weights, bit
    for bit. PyTorch's global generator is seeded, since dropout draws there.
    """

    def __init__(self, digits: Digits, settings: Settings | None = None) -> None:
        self.settings = settings = settings or Settings()
        self.digits = add_drawings(digits, settings).to(settings.device)
        self.targets, self.weights = TARGETS.to(settings.device), WEIGHTS.to(settings.device)
        if settings.device == "cpu":
            keep_freed_memory()
        torch.backends.cudnn.deterministic = True  # the same seed, the same weights: on a GPU too
        torch.manual_seed(settings.seed)
        self.model = MNISTClassifier().to(settings.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).eval()
        self.optimizer = make_optimizer(self.model, settings)
        libraries = ("torch", "torchvision", "numpy", "matplotlib")
        versions = {name: importlib.metadata.version(name) for name in libraries}
        self.history = {
            "data": digits.name,
            "train_digits": len(digits),
            "test_digits": 0,  # so far
            "settings": dataclasses.asdict(settings),
            "processes": world_size(),
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), **versions},
            "epochs": [],
        }

    def epochs(self, test_digits: Digits) -> Iterator[dict]:
        """Train, and evaluate after each epoch; yield a row of the history for each.

        The test digits decide nothing. Raises ValueError if the loss is no longer finite.
        """
        self.history["test_digits"] = len(test_digits)
        test_digits = test_digits.to(self.settings.device)
        rows = self.history["epochs"]
        while len(rows) < self.settings.epochs:
            started = time.perf_counter()
            row = {"epoch": len(rows) + 1} | self.train_epoch()
            result = evaluate(self.average, test_digits)
            row |= {"test_loss": result.loss, "test_accuracy": result.accuracy}
            row |= {"misses": result.misses, "seconds": time.perf_counter() - started}
            rows.append(row)
            yield row
        known = self.digits[: self.history["train_digits"]]
        self.history["least_confidence"] = least_confidence(self.average, known)

    def train_epoch(self) -> dict[str, float]:
        """Show the network every digit once, in random order.

        Returns the last learning rate, the mean loss and the images per second; raises
        ValueError if the loss is no longer finite.
        """
        started, settings, digits = time.perf_counter(), self.settings, self.digits
        epoch, n_batches = 1 + len(self.history["epochs"]), -(-len(digits) // settings.batch_size)
        # How much of the run is done in the middle of each step: the first learns already, and
        # the last still does.
        steps = range((epoch - 1) * n_batches, epoch * n_batches)
        progress = [(step + 0.5) / (settings.epochs * n_batches) for step in steps]
        strengths = [fading(p) if settings.augment else 0.0 for p in progress]
        # Each epoch has a seed of its own: nothing of a generator need be kept between them.
        seed = random.Random(f"{settings.seed} {epoch}").getrandbits(62)
        torch.manual_seed(seed + rank())  # dropout draws there
        batches = shuffled_batches(
            digits, settings.batch_size, strengths, seed, slice(rank(), None, world_size())
        )
        bar = tqdm(batches, total=n_batches, unit="batch", leave=False, disable=None)
        self.model.train()
        total_loss = torch.zeros((), device=settings.device)
        for step, done, (images, labels, batch_size) in zip(steps, progress, bar, strict=True):
            rate = settings.learning_rate * schedule(done)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            # No .item() here: it would wait for a GPU.
            total_loss += self.train_step(images, labels, batch_size)
            update_average(self.average, self.model, step)
        sum_up([total_loss])
        loss = total_loss.item() / len(digits)
        if not math.isfinite(loss):
            raise ValueError(f"the loss became {loss} in epoch {epoch}; lower the learning rate")
        speed = len(digits) / (time.perf_counter() - started)
        return {"learning_rate": rate, "train_loss": loss, "images_per_second": speed}

    def train_step(
        self, images: torch.Tensor, labels: torch.Tensor, batch_size: int
    ) -> torch.Tensor:
        """Take one step down the gradient of the mean loss of a batch.

        Takes this process's part of it, normalized (N, 1, 28, 28), with labels (N,), and the
        size of the whole; returns the total loss of the part. A large one goes through the
        network in slices, which take less memory and are as fast.
        """
        mixed = self.settings.precision == "bfloat16"
        self.optimizer.zero_grad()
        total_loss = torch.zeros((), device=images.device)
        for x, y in zip(images.split(LARGEST_SLICE), labels.split(LARGEST_SLICE), strict=True):
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=mixed):
                logits = self.model(x)  # (n, 10)
            log_probabilities = logits.float().log_softmax(dim=1)
            losses = F.kl_div(log_probabilities, self.targets[y], reduction="none").sum(dim=1)
            loss = (self.weights[y] * losses).sum()
            (loss / batch_size).backward()
            total_loss += loss.detach()
        sum_up([parameter.grad for parameter in self.model.parameters()])
        self.optimizer.step()
        return total_loss

    def state_dict(self) -> dict:
        """Return a copy of all that the run needs to go on: tensors and plain values."""
        state = {name: getattr(self, name).state_dict() for name in PARTS}
        return copy.deepcopy(state | {"history": self.history})

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken, to the very same weights.

        Raises ValueError, and changes nothing, if that was a run with other settings.
        """
        there, here = state["history"], self.history
        if others := differences(there, here, "data", *here["settings"], "processes"):
            raise ValueError(f"of a run with other settings: {others}")
        if others := differences(there, here, "threads", "torch"):
            print(f"WARNING: the last bits of the weights may differ: {others}", file=sys.stderr)
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.history["epochs"] = list(there["epochs"])


def add_drawings(digits: Digits, settings: Settings) -> Digits:
    """Return the digits, then drawings of ways of writing that MNIST lacks, then of no digit."""
    n, n_none = (round(s * len(digits)) for s in (settings.handwriting, settings.non_digits))
    drawn, labels = draw_handwriting(n, settings.seed)
    none = draw_non_digits(n_none, settings.seed, digits.images)
    images = torch.cat([digits.images, drawn, none])
    labels = torch.cat([digits.labels, labels, torch.full([n_none], NO_DIGIT)])
    return Digits(images, labels, digits.name)


def differences(there: dict, here: dict, *names: str) -> str:
    """Name what differs between the history of a state and that of this run."""
    there, here = ({**row, **row["versions"], **row["settings"]} for row in (there, here))
    others = [name for name in names if there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)} in the state, {here[name]} here" for name in others)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.SGD:
    """SGD with momentum, which decays the weights and leaves the biases alone."""
    weights = {"params": [p for p in model.parameters() if p.dim() > 1]}
    biases = {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay
    nesterov = {"momentum": momentum, "nesterov": momentum > 0}
    # Fused: one pass over the weights, not one an operation.
    return torch.optim.SGD([weights, biases], rate, weight_decay=decay, fused=True, **nesterov)


def schedule(progress: float) -> float:
    """Return the share of the highest learning rate, given that of the run that is done.

    A linear warm-up, then a cosine down to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983).
    """
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the average towards the weights after step 0, 1, ...

    It forgets faster at first, or a short run would still remember its random start.
    """
    decay = min(AVERAGE_DECAY, (step + 1) / (step + 11))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def print_settings(run: Trainer, test_digits: Digits) -> None:
    """Say in plain words what is about to happen, and begin its table."""
    settings, processes = dict(run.history["settings"]), run.history["processes"]
    device, precision = settings.pop("device"), settings.pop("precision")
    device += f", {run.history['threads']} threads" if device == "cpu" else ""
    device += f", {processes} processes" if processes > 1 else ""
    precision += " (mixed: weights stay float32)" if precision == "bfloat16" else ""
    words = [f"{name.replace('_', ' ')} {value}" for name, value in settings.items()]
    n, none = run.history["train_digits"], int((run.digits.labels == NO_DIGIT).sum())
    print(
        f"data        {run.digits.name}\n"
        f"digits      {n:,} to train on, {len(test_digits):,} to test on\n"
        f"drawings    {len(run.digits) - n - none:,} of ways of writing that MNIST lacks, "
        f"{none:,} of no digit\n"
        f"device      {device}\n"
        f"precision   {precision}\n"
        f"parameters  {sum(parameter.numel() for parameter in run.model.parameters()):,}\n"
        f"settings    {', '.join(words)}\n\n"
        "  epoch  learning rate  train loss  test loss  accuracy  misses  images/s  seconds",
        flush=True,
    )


# ---- Command line ------------------------------------------------------------------------

DRY_RUN_BATCHES = 3
STATE_FORMAT = "mnist-classifier state of a run"
OUTPUTS = ("training_state.pt", "history.json", "history.png", "confusion_matrix.png")
OUTPUTS += ("mistakes.png", "mnist_cnn.pt")


def folder(name: str) -> Path:
    """Return the path of a folder; an empty name, of a variable that is not set, is none."""
    if not name:
        raise argparse.ArgumentTypeError("the name of a folder must not be empty")
    return Path(name)


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
        default = ("off", "on")[field.default] if flag else field.default
        about = f"{field.metadata['help']} [{default}]"
        add(f"--{field.name.replace('_', '-')}", help=about, **kind)
    data_dir, output_dir = PROJECT_DIR / "data", PROJECT_DIR / "outputs"
    add("--data-dir", type=folder, default=data_dir, help="where MNIST is, or goes [data]")
    add("--output-dir", type=folder, default=output_dir, help="where the results go [outputs]")
    for name, about in (
        ("sample", "use the 5,000 bundled digits instead of MNIST"),
        ("resume", "go on after the last finished epoch"),
        ("dry-run", "a few batches of everything; writes all files"),
    ):
        add(f"--{name}", action="store_true", default=False, help=about)
    arguments = parser.parse_args(argv)
    given = {o.name: getattr(arguments, o.name) for o in options if hasattr(arguments, o.name)}
    try:
        return arguments, Settings(**given)
    except ValueError as error:
        parser.error(str(error))


def command_line(arguments: argparse.Namespace, settings: Settings) -> str:
    """Return the command that gives these weights, without what goes without saying here."""
    words, default = [launcher(), "train.py"], Settings()
    for name, value in dataclasses.asdict(settings).items():
        if value != getattr(default, name):
            flag = name.replace("_", "-")
            words += [f"--no-{flag}"] if value is False else [f"--{flag} {value}"]
    words += ["--sample"] * arguments.sample + ["--dry-run"] * arguments.dry_run
    return " ".join(words)


def read_data(arguments: argparse.Namespace) -> list[dict]:
    """Return the training and the test digits, each as a dict, which `from_first` can hand on.

    Raises ValueError where the sample would stand in for MNIST, and its model replace MNIST's.
    """
    digits = load_data(arguments.data_dir, arguments.sample)
    checkpoint = arguments.output_dir / "mnist_cnn.pt"
    if not arguments.sample and digits[0].name != "MNIST":
        with contextlib.suppress(OSError, CheckpointError):  # none there, or no good
            if load_checkpoint(checkpoint)[1].get("data") == "MNIST":
                remedy = "choose another --output-dir to train on the sample"
                raise ValueError(f"{checkpoint}: was trained on MNIST, and is kept; {remedy}")
    return [vars(part) for part in digits]


def resume(run: Trainer, path: Path) -> None:
    """Let a run go on where its state says, if there is one."""
    try:
        state = from_first(lambda: path.exists() and load_with_checksum(path, STATE_FORMAT))
        if not state:
            return print(f"nothing to resume: no {path}; starting afresh")
        run.load_state_dict(state)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: {reason}; leave out --resume to start afresh") from error
    print(f"resuming after epoch {len(run.history['epochs'])} of {run.settings.epochs}")


def run_command(arguments: argparse.Namespace, settings: Settings) -> int:
    """Load, train, evaluate, plot and save; return the exit code."""
    started, output_dir = time.perf_counter(), arguments.output_dir
    settings = Settings(**from_first(lambda: dataclasses.asdict(settings)))
    command = command_line(arguments, settings)
    lock = FileLock(output_dir / ".lock")
    from_first(lambda: claim_folder(lock, OUTPUTS))
    train_digits, test_digits = (Digits(**x) for x in from_first(lambda: read_data(arguments)))
    if arguments.dry_run:
        settings = dataclasses.replace(settings, epochs=min(settings.epochs, 2))
        name = f"dry run on a few digits of: {train_digits.name}"
        train_digits = train_digits[: DRY_RUN_BATCHES * settings.batch_size].named(name)
        test_digits = test_digits[:EVALUATION_BATCH].named(name)
    run, state_path = Trainer(train_digits, settings), output_dir / "training_state.pt"
    if arguments.resume:
        resume(run, state_path)

    def save_state() -> None:
        from_first(lambda: save_with_checksum(state_path, STATE_FORMAT, run.state_dict()))

    save_state()  # before training, since it shows whether the folder can be written to
    print_settings(run, test_digits)
    for row in run.epochs(test_digits):
        print_epoch(row, settings.epochs)
        save_state()
    from_first(lambda: save_results(output_dir, run.average, run.history, test_digits, command))
    lock.release()
    print_results(run.history, output_dir, time.perf_counter() - started)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    prepare_streams()
    try:
        with joined():
            return run_command(*parse_arguments(argv))
    except KeyboardInterrupt:
        goes_on = "if a run had begun, the same command with --resume goes on"
        print(f"\ntrain.py: interrupted; {goes_on} after its last finished epoch", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
