"""Train the network of model.py on MNIST, evaluate it, plot the history, save the model.

    python train.py             MNIST, downloaded to data/ the first time; 99.6% of the test set
    python train.py --sample    the 5,000 bundled digits, in seconds

From Python, `train` does the same, and `Trainer` is a run that one can hold in the hand:

    run = Trainer(load_mnist("data", train=True), Settings(epochs=3))
    for row in run.epochs(load_mnist("data", train=False)):
        print(row["test_accuracy"])
"""

import argparse
import copy
import dataclasses
import importlib.metadata
import json
import math
import platform
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from filelock import FileLock, Timeout
from tqdm import tqdm

from checkpoint import load_with_checksum, save_checkpoint, save_with_checksum, write_atomically
from data import LAST_STRENGTH, PROJECT_DIR, Digits, augment, load_data
from distributed import from_first, joined, rank, sum_up, world_size
from layers import keep_freed_memory
from model import MNISTClassifier, normalize
from plots import plot_confusion_matrix, plot_history, plot_mistakes, save_figure

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
    seed: int = option(0, "same seed, machine and number of threads: same weights, bit for bit")
    device: str = option("auto", "auto, cpu, cuda, mps or xpu; auto prefers an accelerator")
    precision: str = option("auto", "float32 or bfloat16; auto: bfloat16 where it is native")
    augment: bool = option(True, "distort the digits at random, less and less over the run")

    def __post_init__(self) -> None:
        def require(holds: bool, rule: str) -> None:
            if not holds:
                raise ValueError(rule)

        require(self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}")
        require(self.batch_size >= 1, f"batch size must be at least 1, not {self.batch_size}")
        rate, decay = self.learning_rate, self.weight_decay
        require(0 < rate < math.inf, f"learning rate must be above 0 and finite, not {rate}")
        require(0 <= self.momentum < 1, f"momentum must be in 0..1, below 1, not {self.momentum}")
        require(0 <= decay < math.inf, f"weight decay must be at least 0 and finite, not {decay}")
        require(0 <= self.seed < 2**63, f"seed must be in 0..2**63-1, not {self.seed}")
        self.device = choose_device(self.device)
        self.precision = choose_precision(self.precision, self.device)


def choose_device(name: str) -> str:
    """Return the name of a device that this machine has; "auto" prefers an accelerator."""
    if name == "auto":
        available = torch.accelerator.is_available()
        name = torch.accelerator.current_accelerator().type if available else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {name!r} here; use auto or cpu") from None
    return name


def choose_precision(name: str, device: str) -> str:
    """Return "float32" or "bfloat16"; "auto" means bfloat16 where the device computes in it.

    Where bfloat16 is only emulated, it is slower than float32.
    """
    if name not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision must be auto, float32 or bfloat16, not {name!r}")
    if name != "auto":
        return name
    native = False
    if device == "cpu" and torch.backends.mkldnn.is_available():
        # An older PyTorch can't tell: float32 is always right, only slower.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        native = any(capabilities.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    elif device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.startswith("xpu"):
        native = torch.xpu.is_bf16_supported()
    return "bfloat16" if native else "float32"


# ---- Training ----------------------------------------------------------------------------

WARMUP = 0.15  # share of all steps
AVERAGE_DECAY = 0.999  # of the moving average of the weights, a step
LARGEST_SLICE = 1024  # images that go through the network at once while it trains


def train(
    train_digits: Digits, test_digits: Digits, settings: Settings | None = None
) -> tuple[MNISTClassifier, dict]:
    """Train a new network, print how it goes, and return it with its history.

    The same as to go through `Trainer(train_digits, settings).epochs(test_digits)`.

    Returns:
        The network, in evaluation mode, on the device of the settings, and the history: a dict
        of plain values, where "epochs" has a dict for each epoch.

    Raises:
        ValueError: the loss is no longer finite.
    """
    run = Trainer(train_digits, settings)
    print_settings(run, test_digits)
    for row in run.epochs(test_digits):
        print_epoch(row, run.settings.epochs)
    return run.average, run.history


class Trainer:
    """A run: all that changes while a network trains, and one epoch after the other of it.

    The network to use is `average`, in evaluation mode: it holds a moving average of the
    weights over the steps (an exponential one: each step moves it a thousandth of the way to
    the weights of `model`), which reads better than the weights of any step. `history` is a
    dict of plain values, where "epochs" has a dict for each epoch.

    The same settings, machine and number of threads give the same weights, bit for bit.
    PyTorch's global generator is seeded, since dropout draws there.

    Args:
        digits: to train on, on any device.
        settings: by default, `Settings()`.
    """

    def __init__(self, digits: Digits, settings: Settings | None = None) -> None:
        self.settings = settings = settings or Settings()
        self.digits = digits.to(settings.device)
        if settings.device == "cpu":
            keep_freed_memory()
        torch.backends.cudnn.deterministic = True  # the same seed, the same weights: on a GPU too
        torch.manual_seed(settings.seed)
        self.model = MNISTClassifier().to(settings.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).eval()
        self.optimizer = make_optimizer(self.model, settings)
        self.history = {
            "data": digits.name,
            "train_digits": len(digits),
            "test_digits": 0,  # until there are some
            "settings": dataclasses.asdict(settings),
            "processes": world_size(),
            "threads": torch.get_num_threads(),
            "versions": versions(),
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

    def train_epoch(self) -> dict[str, float]:
        """Show the network every digit once, in random order.

        Returns the last learning rate, the mean loss and the images per second; raises
        ValueError if the loss is no longer finite.
        """
        started, settings = time.perf_counter(), self.settings
        epoch, n = 1 + len(self.history["epochs"]), len(self.digits)
        self.model.train()
        # Each epoch has seeds of its own: nothing of a generator is to be kept between them.
        order = torch.randperm(
            n, generator=torch.Generator().manual_seed(self.seed("order", epoch))
        )
        torch.manual_seed(self.seed("dropout", epoch, rank()))  # draws from the global generator
        generator = torch.Generator(settings.device)
        generator.manual_seed(self.seed("distortion", epoch, rank()))
        batches = order.to(settings.device).split(settings.batch_size)
        total_loss = torch.zeros((), device=settings.device)
        bar = tqdm(batches, unit="batch", leave=False, disable=None)  # on a terminal only
        for step, batch in enumerate(bar, start=1 + (epoch - 1) * len(batches)):
            # The middle of the step: the first learns already, and the last still does.
            progress = (step - 0.5) / (settings.epochs * len(batches))
            rate = settings.learning_rate * schedule(progress)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            part = self.digits[batch[rank() :: world_size()]]  # that of this process
            images = part.images  # (n, 28, 28), as few as 0
            if settings.augment:
                images = augment(images, generator, 1 - (1 - LAST_STRENGTH) * progress)
            # No .item() here: it would wait for a GPU.
            total_loss += self.train_step(normalize(images), part.labels, len(batch))
            update_average(self.average, self.model, step)
        sum_up([total_loss])
        mean_loss = total_loss.item() / n
        if not math.isfinite(mean_loss):
            reason = f"the loss became {mean_loss} in epoch {epoch}"
            raise ValueError(f"{reason}; lower the learning rate")
        speed = n / (time.perf_counter() - started)
        return {"learning_rate": rate, "train_loss": mean_loss, "images_per_second": speed}

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
            loss = F.cross_entropy(logits.float(), y, reduction="sum")
            (loss / batch_size).backward()
            total_loss += loss.detach()
        sum_up([parameter.grad for parameter in self.model.parameters()])
        self.optimizer.step()
        return total_loss

    def state_dict(self) -> dict:
        """Return all that the run needs to go on from here: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken, to the very same weights.

        Raises ValueError, and changes nothing, if that was a run with other settings.
        """
        there = state["history"]
        if others := differences(what_counts(there), what_counts(self.history)):
            remedy = "give the same settings, or leave out --resume to start afresh"
            raise ValueError(f"of a run with other settings: {others}; {remedy}")
        others = differences(
            {"threads": there["threads"], **there["versions"]},
            {"threads": self.history["threads"], **self.history["versions"]},
        )
        if others:
            print(f"WARNING: the last bits of the weights may differ: {others}", file=sys.stderr)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history["epochs"] = list(there["epochs"])

    def seed(self, *purpose: str | int) -> int:
        """Return a seed for a purpose, made from the seed of the settings."""
        return random.Random(f"{self.settings.seed} {purpose}").getrandbits(63)


def what_counts(history: dict) -> dict:
    """Return of a history what must be the same for a run to go on."""
    return {"data": history["data"], **history["settings"], "processes": history["processes"]}


def differences(there: dict, here: dict) -> str:
    """Name the values that differ between a state that was saved and this run."""
    names = [name for name in here if there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)} in the state, {here[name]} here" for name in names)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.SGD:
    """SGD with momentum, which decays the weights and leaves the biases alone."""
    parameters = list(model.parameters())
    weights = {"params": [p for p in parameters if p.dim() > 1]}
    biases = {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}
    return torch.optim.SGD(
        [weights, biases],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
        fused=True,  # one pass over the weights, not one an operation
    )


def schedule(progress: float) -> float:
    """Return the share of the highest learning rate, given the share of all steps done.

    A linear warm-up, then a cosine down to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983).
    """
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the average towards the weights after step 1, 2, ...

    It forgets faster at first, or a short run would still remember its random start.
    """
    decay = min(AVERAGE_DECAY, step / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    libraries = ("torch", "torchvision", "numpy", "matplotlib")
    found = {name: importlib.metadata.version(name) for name in libraries}
    return {"python": platform.python_version(), **found}


# ---- Evaluation --------------------------------------------------------------------------

EVALUATION_BATCH = 250  # images; small enough for the processor's cache


class Evaluation(NamedTuple):
    """How a network does on labelled digits."""

    loss: float  # mean cross-entropy, in nats
    accuracy: float  # 0..1
    misses: int
    probabilities: torch.Tensor  # float32 (N, 10), on the CPU


@torch.inference_mode()
def evaluate(model: nn.Module, digits: Digits) -> Evaluation:
    """Read the digits in float32, with dropout off; random numbers are left alone."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    slices = digits.images.split(EVALUATION_BATCH)
    logits = torch.cat([model(normalize(images.to(device))) for images in slices])  # (N, 10)
    model.train(was_training)
    labels = digits.labels.to(device)
    misses = int((logits.argmax(dim=1) != labels).sum())
    return Evaluation(
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=1 - misses / len(digits),
        misses=misses,
        probabilities=logits.softmax(dim=1).cpu(),
    )


# ---- Words -------------------------------------------------------------------------------


def print_settings(run: Trainer, test_digits: Digits) -> None:
    """Say in plain words what is about to happen."""
    settings, processes = run.settings, world_size()
    threads = f", {run.history['threads']} threads" if settings.device == "cpu" else ""
    threads += f", {processes} processes" if processes > 1 else ""
    mixed = " (mixed: weights stay float32)" if settings.precision == "bfloat16" else ""
    print(
        f"data        {run.digits.name}\n"
        f"digits      {len(run.digits):,} to train on, {len(test_digits):,} to test on\n"
        f"device      {settings.device}{threads}\n"
        f"precision   {settings.precision}{mixed}\n"
        f"parameters  {sum(parameter.numel() for parameter in run.model.parameters()):,}\n"
        f"settings    {settings.epochs} epochs, batch size {settings.batch_size}, "
        f"learning rate {settings.learning_rate:g}, momentum {settings.momentum:g}, "
        f"weight decay {settings.weight_decay:g}, seed {settings.seed}, "
        f"augmentation {'on' if settings.augment else 'off'}\n",
        flush=True,
    )


def print_epoch(row: dict, epochs: int) -> None:
    """Print one aligned line, and before the first one the heads of the columns."""
    if row["epoch"] == 1:
        print("  epoch  learning rate  train loss  test loss  accuracy  misses  images/s  seconds")
    print(
        f"{row['epoch']:3}/{epochs:<3}  {row['learning_rate']:13.5f}  {row['train_loss']:10.4f}  "
        f"{row['test_loss']:9.4f}  {row['test_accuracy']:8.2%}  {row['misses']:6}  "
        f"{row['images_per_second']:8,.0f}  {row['seconds']:7.1f}",
        flush=True,
    )


# ---- Results -----------------------------------------------------------------------------

TEMPERATURE = 1.413  # of the probabilities; from benchmarks/confidence.py --fit --epochs 60


def save_results(output_dir: Path, run: Trainer, test_digits: Digits, command: str) -> None:
    """Write the history, the plots and the checkpoint."""
    history = {"command": command, **run.history}
    write_atomically(output_dir / "history.json", json.dumps(history, indent=1).encode())
    probabilities = evaluate(run.average, test_digits).probabilities
    figures = {
        "history": plot_history(history["epochs"]),
        "confusion_matrix": plot_confusion_matrix(test_digits.labels, probabilities.argmax(dim=1)),
        "mistakes": plot_mistakes(test_digits, probabilities),
    }
    for name, figure in figures.items():
        save_figure(output_dir / f"{name}.png", figure, test_digits.name)
    # The model comes last: when it is there, all is.
    save_checkpoint(output_dir / "mnist_cnn.pt", run.average, describe(run.history, command))


def describe(history: dict, command: str) -> dict:
    """Return what a checkpoint says of itself: nothing that differs between equal runs."""
    metadata = {"command": command, **history, "temperature": TEMPERATURE}
    epochs = metadata.pop("epochs")
    metadata["epochs_finished"] = len(epochs)
    if len(epochs) == history["settings"]["epochs"]:  # else no test has seen these weights
        result = ("train_loss", "test_loss", "test_accuracy", "misses")
        metadata["result"] = {name: epochs[-1][name] for name in result}
    return metadata


# ---- Command line ------------------------------------------------------------------------

DRY_RUN_BATCHES = 3
STATE_FORMAT = "mnist-classifier state of a run"


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, Settings]:
    """Read the command line; what is out of range is refused with one line, exit code 2."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # an error is one line
        description="Train the digit classifier, evaluate it, plot the history, save the model.",
        allow_abbrev=False,
    )
    options = dataclasses.fields(Settings)
    for field in options:
        flag = field.type is bool
        kind = {"action": argparse.BooleanOptionalAction} if flag else {"type": field.type}
        default = ("on" if field.default else "off") if flag else field.default
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=field.default,
            help=f"{field.metadata['help']} [{default}]",
            **kind,
        )
    add = parser.add_argument
    data_dir, output_dir = PROJECT_DIR / "data", PROJECT_DIR / "outputs"
    add("--data-dir", type=Path, default=data_dir, help="where MNIST is, or goes [data]")
    add("--sample", action="store_true", help="use the 5,000 bundled digits instead of MNIST")
    add("--output-dir", type=Path, default=output_dir, help="where the results go [outputs]")
    add("--resume", action="store_true", help="go on after the last finished epoch")
    add("--dry-run", action="store_true", help="a few batches of everything; writes all files")
    arguments = parser.parse_args(argv)
    try:
        return arguments, Settings(**{o.name: getattr(arguments, o.name) for o in options})
    except ValueError as error:
        parser.error(str(error))


def command_line(arguments: argparse.Namespace, settings: Settings) -> str:
    """Return the command that gives these weights, without what goes without saying here."""
    words, default = ["python train.py"], Settings()
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if field.name == "augment":
            words += [] if value else ["--no-augment"]
        elif value != getattr(default, field.name):
            words.append(f"--{field.name.replace('_', '-')} {value}")
    words += ["--sample"] * arguments.sample + ["--dry-run"] * arguments.dry_run
    return " ".join(words)


def lock_output_dir(lock: FileLock) -> None:
    """Make the folder, keep other runs out until this one ends, and clear up after dead ones."""
    output_dir = Path(lock.lock_file).parent
    remedy = "choose another --output-dir"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        reason = f"another train.py writes there; wait for it, or {remedy}"
        raise BlockingIOError(f"{output_dir}: {reason}") from None
    except OSError as error:
        raise OSError(f"{output_dir}: can't write there ({error.strerror}); {remedy}") from error
    for unfinished in output_dir.glob(f".{'[0-9a-f]' * 16}.tmp"):
        unfinished.unlink(missing_ok=True)


def resume(run: Trainer, path: Path) -> None:
    """Let a run go on where its state says, if there is one."""
    state = from_first(lambda: load_with_checksum(path, STATE_FORMAT) if path.exists() else None)
    if state is None:
        print(f"nothing to resume: no {path}; starting afresh")
        return
    try:
        run.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    print(f"resuming after epoch {len(run.history['epochs'])} of {run.settings.epochs}")


def run_command(arguments: argparse.Namespace, settings: Settings) -> int:
    """Load, train, evaluate, plot and save; return the exit code."""
    started = time.perf_counter()
    command, output_dir = command_line(arguments, settings), arguments.output_dir
    lock = FileLock(output_dir / ".lock")
    from_first(lambda: lock_output_dir(lock))
    loaded = from_first(lambda: [vars(d) for d in load_data(arguments.data_dir, arguments.sample)])
    digits = [Digits(**part) for part in loaded]
    if arguments.dry_run:
        settings = dataclasses.replace(settings, epochs=min(settings.epochs, 2))
        sizes = (DRY_RUN_BATCHES * settings.batch_size, EVALUATION_BATCH)
        few = [part[:n] for part, n in zip(digits, sizes, strict=True)]
        digits = [part.named(f"dry run on a few digits of: {part.name}") for part in few]
    train_digits, test_digits = digits
    run, state_path = Trainer(train_digits, settings), output_dir / "training_state.pt"
    if arguments.resume:
        resume(run, state_path)
    print_settings(run, test_digits)

    def save_state() -> None:
        state = run.state_dict()
        from_first(lambda: save_with_checksum(state_path, STATE_FORMAT, state))

    save_state()  # now, not after an epoch, is it to be seen that the folder can be written to
    try:
        for row in run.epochs(test_digits):
            print_epoch(row, settings.epochs)
            save_state()
        from_first(lambda: save_results(output_dir, run, test_digits, command))
    except KeyboardInterrupt:
        goes_on = "the same command with --resume goes on after the last finished epoch"
        print(f"\ntrain.py: interrupted; {goes_on}", file=sys.stderr)
        return 130
    finally:
        lock.release()
    print_results(run, output_dir, time.perf_counter() - started)
    return 0


def print_results(run: Trainer, output_dir: Path, seconds: float) -> None:
    """Say how well it reads, where everything is, and how to use it."""
    last = run.history["epochs"][-1]
    print(
        f"\n{last['test_accuracy']:.2%} of {run.history['test_digits']:,} test digits read "
        f"correctly ({last['misses']} misses) after {seconds:.0f} s\n"
        f"data: {run.digits.name}\n"
        f"model, history and plots are in {output_dir}; to read a digit:\n\n"
        f"    from inference import MNISTPredictor\n"
        f"    print(MNISTPredictor({str(output_dir / 'mnist_cnn.pt')!r}).predict('digit.png'))"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # a folder may have a name that is not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    with joined():
        try:
            return run_command(*parse_arguments(argv))
        except KeyboardInterrupt:
            print("\ntrain.py: interrupted; nothing was written", file=sys.stderr)
            return 130
        except (OSError, ValueError) as error:
            print(f"train.py: error: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
