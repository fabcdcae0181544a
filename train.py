"""Train the network of model.py on MNIST, evaluate it, plot the history, save the model.

    python train.py             MNIST, downloaded to data/ the first time; 99.6% of the test set
    python train.py --sample    the 5,000 bundled digits, in seconds

The whole set is 47 MB, so it lives on the device as one tensor: an epoch is a random
permutation cut into batches, each augmented and normalized in one go. No worker processes,
no transforms of single images.
"""

import argparse
import contextlib
import copy
import ctypes
import dataclasses
import gzip
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import socket
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from model import (
    IMAGE_SIZE,
    NUM_CLASSES,
    MNISTClassifier,
    load_checkpoint,
    normalize,
    save_checkpoint,
    save_sealed,
    unseal,
    write_atomically,
)

PROJECT_DIR = Path(__file__).resolve().parent

# ---- Data --------------------------------------------------------------------------------

DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte

# SHA-256 of the extracted files. torchvision checks digests only while it downloads: a file
# that was cut short later would load as garbage.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
SAMPLE_SHA256 = {
    "train-images-idx3-ubyte": "74422b12132c7d8b0957cdb994d971a505f77a57ddac808ef1ea84f4bb9e7a2e",
    "train-labels-idx1-ubyte": "5dbd7686910cb66a8a6303f16940c2fae43896243c187897cd3976aab00f4817",
    "t10k-images-idx3-ubyte": "39a5f23fe7320d50d2b650bd96c756db7999a84cb13541d939296ed59f1e0663",
    "t10k-labels-idx1-ubyte": "66e4c6deb5f2a061f7d8cd5ec53025fdb9dabb08265e449acb8cf64b8cd36cac",
}


class Digits(NamedTuple):
    """Images, uint8 (N, 28, 28), ink 255 on background 0, and labels, int64 (N,), 0..9."""

    images: torch.Tensor
    labels: torch.Tensor


class MNISTUnavailable(FileNotFoundError):
    """MNIST is not in the data folder and was not, or could not be, downloaded."""


def load_mnist(data_dir: str | os.PathLike, train: bool, download: bool = True) -> Digits:
    """Load the 60,000 training or the 10,000 test digits of MNIST, and verify them.

    Args:
        data_dir: the folder of MNIST/raw/, in torchvision's layout, files extracted or .gz.
        train: the training set, or the test set.
        download: fetch missing files through torchvision.

    Raises:
        MNISTUnavailable: (a FileNotFoundError) a file is missing and was not downloaded.
        ValueError: a file is damaged. It is named, and left as it is.
    """
    raw_dir = Path(data_dir) / "MNIST" / "raw"
    remedy = "python train.py downloads MNIST, and so does load_mnist with download=True"
    try:
        return read_digits(raw_dir, train, MNIST_SHA256, remedy)
    except FileNotFoundError as error:
        if not download:
            raise MNISTUnavailable(*error.args) from None
    download_mnist(raw_dir)
    return read_digits(raw_dir, train, MNIST_SHA256, remedy)


def load_sample(train: bool) -> Digits:
    """Load the bundled digits: 4,000 to train on, or 1,000 others to test on, in equal classes.

    All are from MNIST's training set. Raises FileNotFoundError or ValueError for a bad file.
    """
    raw_dir = PROJECT_DIR / "sample" / "MNIST" / "raw"
    return read_digits(raw_dir, train, SAMPLE_SHA256, "get the project's sample folder again")


def download_mnist(raw_dir: Path) -> None:
    """Fetch MNIST beside `raw_dir`, and move it there when it is complete and verified."""
    from torchvision.datasets import MNIST  # here, because it takes a second to import

    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none: it would wait forever
    try:
        raw_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=raw_dir.parent) as folder:
            MNIST(folder, download=True)
            for file in Path(folder, "MNIST", "raw").iterdir():
                if not (raw_dir / file.name).exists():
                    os.replace(file, raw_dir / file.name)
    except Exception as error:  # networks fail in a dozen types, RuntimeError among them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MNISTUnavailable(f"MNIST could not be downloaded to {raw_dir}: {reason}") from error
    finally:
        socket.setdefaulttimeout(previous_timeout)


def read_digits(raw_dir: Path, train: bool, sha256: dict[str, str], remedy: str) -> Digits:
    """Read and verify one split; `remedy` says where a bad file is to be had."""
    split = "train" if train else "t10k"
    names = (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte")
    images, labels = (read_idx(raw_dir / name, sha256[name], remedy) for name in names)
    return Digits(images, labels.long())


def read_idx(path: Path, sha256: str, remedy: str) -> torch.Tensor:
    """Read a uint8 IDX file or its .gz: 0, 0, 8, how many dimensions, their sizes, the values."""
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; {remedy}")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            content = b""  # fails the check below, like any other damage
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path}: damaged or altered (wrong SHA-256): delete it; {remedy}")
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}I", content, offset=4)
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * dimensions)
    return values.view(shape)


# ---- Augmentation ------------------------------------------------------------------------

# At the start of a run; from there it fades to LAST_STRENGTH of that. Strong distortion keeps
# the network from learning digits by heart; in the end it sees them nearly as they are.
MAX_ROTATION = 15.0  # degrees
MAX_SHIFT = 3.0  # pixels
MAX_SCALE = 0.15  # of the size
MAX_SHEAR = 7.5  # degrees
LAST_STRENGTH = 1 / 3


def augment(
    images: torch.Tensor, generator: torch.Generator, strength: float = 1.0
) -> torch.Tensor:
    """Rotate, scale, shear and shift each image by random amounts of its own, as one batch.

    Takes pixel values 0..255 of any dtype, shape (N, 28, 28), a generator on the same device,
    and the share of the greatest amounts; returns float32 pixel values 0..255, shape
    (N, 1, 28, 28).
    """
    grid = random_grid(len(images), generator, strength)
    return F.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False)


def random_grid(n: int, generator: torch.Generator, strength: float) -> torch.Tensor:
    """Return where each pixel of n distorted images is in the original: float (n, 28, 28, 2).

    As x and y; the image runs from -1 to 1.
    """
    random = torch.empty(5, n, device=generator.device).uniform_(-1, 1, generator=generator)
    random *= strength
    angle = math.radians(MAX_ROTATION) * random[0]
    scale = 1 + MAX_SCALE * random[1]
    shear = (math.radians(MAX_SHEAR) * random[2]).tan()
    shift = MAX_SHIFT / (IMAGE_SIZE / 2) * random[3:]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # Rotation and scale after shear, then shift.
    matrix = torch.stack([cos, cos * shear - sin, shift[0], sin, sin * shear + cos, shift[1]], 1)
    # One product for the whole batch, four times faster than F.affine_grid's one an image.
    center = (torch.arange(IMAGE_SIZE, device=generator.device) + 0.5) / (IMAGE_SIZE / 2) - 1
    x, y = center.repeat(IMAGE_SIZE), center.repeat_interleave(IMAGE_SIZE)
    grid = matrix.view(2 * n, 3) @ torch.stack([x, y, torch.ones_like(x)])  # (2n, 784)
    return grid.view(n, 2, IMAGE_SIZE, IMAGE_SIZE).permute(0, 2, 3, 1)


# ---- Training and evaluation -------------------------------------------------------------

WARMUP = 0.15  # share of all steps
EMA_DECAY = 0.999
TEMPERATURE = 1.413  # of the probabilities; from benchmarks/confidence.py --fit --epochs 60
LARGEST_SLICE = 1024  # images that go through the network at once while it trains
EVALUATION_BATCH = 250  # images; small enough for the processor's cache


@dataclasses.dataclass
class Settings:
    """The settings of a run; "auto" is resolved. Raises ValueError for one out of range."""

    epochs: int = 25
    batch_size: int = 256
    learning_rate: float = 0.1  # the highest of the schedule
    momentum: float = 0.9  # Nesterov's, unless it is 0
    weight_decay: float = 1e-4  # of weights; biases have none
    seed: int = 0
    device: str = "auto"  # or cpu, cuda, cuda:1, mps, xpu
    precision: str = "auto"  # or float32, bfloat16
    augment: bool = True

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
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: a process for each GPU
        name = f"cuda:{os.environ['LOCAL_RANK']}"
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


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory, up to 1 GB, for the next step of training.

    It would hand blocks as large as our activations back to the system after each step, and
    get them again page by page, zeroed: up to a sixth of the time of training in float32.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt:
            mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
            mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, at its greatest


class Evaluation(NamedTuple):
    """How a network does on labelled digits."""

    loss: float  # mean cross-entropy, in nats
    accuracy: float  # 0..1
    misses: int
    probabilities: torch.Tensor  # float32 (N, 10), on the CPU


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C while training. Has `.model` and `.history`, as `train` would return them."""

    def __init__(self, model: MNISTClassifier, history: dict) -> None:
        super().__init__()
        self.model, self.history = model, history


def train(
    train_digits: Digits,
    test_digits: Digits,
    settings: Settings | None = None,
    quiet: bool = False,
    watch: Callable[[int, int, list[dict]], None] | None = None,
    save: Callable[[dict], None] | None = None,
    state: dict | None = None,
) -> tuple[MNISTClassifier, dict]:
    """Train a new network, and evaluate it on the test digits after each epoch.

    The test digits decide nothing: the network returned holds the moving average of the
    weights after the last epoch. The same settings, machine and number of threads give the
    same weights, bit for bit. PyTorch's global generator is seeded, since dropout draws there.

    Args:
        train_digits, test_digits: on any device.
        settings: by default, `Settings()`.
        quiet: print nothing.
        watch: called after each step and each epoch with the number of steps done, the number
            of all steps, and the history's rows so far, to show the run as it goes.
        save: called after each epoch with all that is needed to continue from there: a dict of
            tensors and plain values.
        state: such a dict. The run continues from there, to the very same weights.

    Returns:
        The network, in evaluation mode, and the history, a dict of plain values, where
        "epochs" has a dict for each epoch.

    Raises:
        ValueError: the loss is no longer finite.
        TrainingInterrupted: (a KeyboardInterrupt) holds what there is so far.
    """
    settings = settings or Settings()
    if settings.device == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.deterministic = True  # the same seed, the same weights: on a GPU too
    rank, n_processes = process_rank()
    seed = settings.seed + rank
    torch.manual_seed(seed)  # for the initial weights and dropout
    generator = torch.Generator(settings.device).manual_seed(seed)  # for all the rest
    model = MNISTClassifier().to(settings.device, memory_format=torch.channels_last)
    # Gives every process the weights of the first, and averages the gradients.
    network = DistributedDataParallel(model) if n_processes > 1 else model
    average = copy.deepcopy(model).eval()
    optimizer = make_optimizer(model, settings)
    train_digits = Digits(*(tensor.to(settings.device) for tensor in train_digits))
    test_digits = Digits(*(tensor.to(settings.device) for tensor in test_digits))

    history = {
        "train_digits": len(train_digits.labels),
        "test_digits": len(test_digits.labels),
        "settings": dataclasses.asdict(settings),
        "processes": n_processes,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "epochs": [],
    }
    if state:
        restore(state, model, average, optimizer, generator)
        history["epochs"] += state["history"]["epochs"]
    if not quiet:
        print_settings(settings, history, model)
    steps = settings.epochs * math.ceil(len(train_digits.labels) / settings.batch_size)

    def on_step(step: int) -> None:
        if watch:
            watch(step, steps, history["epochs"])

    try:
        for epoch in range(len(history["epochs"]) + 1, settings.epochs + 1):
            started = time.perf_counter()
            row = {"epoch": epoch} | train_one_epoch(
                network,
                average,
                optimizer,
                train_digits,
                settings,
                epoch,
                generator,
                quiet,
                on_step,
            )
            loss, accuracy, misses = evaluate_together(average, test_digits)
            row |= {"test_loss": loss, "test_accuracy": accuracy, "misses": misses}
            row["seconds"] = time.perf_counter() - started
            history["epochs"].append(row)
            if not quiet:
                print_epoch(row, settings.epochs)
            on_step(epoch * steps // settings.epochs)
            if save:
                save(snapshot(model, average, optimizer, generator, history))
    except KeyboardInterrupt:
        raise TrainingInterrupted(average, history) from None
    return average, history


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


def train_one_epoch(
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    digits: Digits,
    settings: Settings,
    epoch: int,
    generator: torch.Generator,
    quiet: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Show the network every digit once, in random order, as epoch 1, 2, ... of the settings.

    Everything is on the device of the settings. Calls `on_step` with the number of the step,
    counted over all epochs. Returns the last learning rate, the mean loss and the images per
    second; raises ValueError if the loss is no longer finite.
    """
    started = time.perf_counter()
    model.train()
    n, device = len(digits.labels), digits.labels.device
    order = torch.randperm(n, generator=generator, device=device)
    rank, n_processes = process_rank()
    if n_processes > 1:
        dist.broadcast(order, src=0)
    batches = order.split(settings.batch_size)
    total_loss = torch.zeros((), device=device)
    # None shows the bar on a terminal only.
    bar = tqdm(batches, unit="batch", leave=False, disable=True if quiet else None)
    for step, batch in enumerate(bar, start=1 + (epoch - 1) * len(batches)):
        progress = step / (settings.epochs * len(batches))
        rate = settings.learning_rate * schedule(progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        mine = batch[rank::n_processes]  # this process's share of the batch
        images, labels = digits.images[mine], digits.labels[mine]
        if settings.augment:
            images = augment(images, generator, 1 - (1 - LAST_STRENGTH) * progress)
        total_loss += training_step(  # no .item() here: it would wait for a GPU
            model, optimizer, normalize(images), labels, settings.precision, len(batch)
        )
        update_average(average, model, step)
        if on_step:
            on_step(step)
    if n_processes > 1:
        dist.all_reduce(total_loss)
    mean_loss = total_loss.item() / n
    if not math.isfinite(mean_loss):
        raise ValueError(f"the loss became {mean_loss} in epoch {epoch}; lower the learning rate")
    speed = n / (time.perf_counter() - started)
    return {"learning_rate": rate, "train_loss": mean_loss, "images_per_second": speed}


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,  # (N, 1, 28, 28), normalized
    labels: torch.Tensor,  # (N,)
    precision: str,
    batch_size: int,
) -> torch.Tensor:
    """Take one step down the gradient of the mean loss of a batch; return its total loss.

    Of several processes each has a share of the batch, which may be empty. A large batch goes
    through the network in slices, which take less memory and are as fast.
    """
    mixed, n_processes = precision == "bfloat16", process_rank()[1]
    n_slices = math.ceil(batch_size / (n_processes * LARGEST_SLICE))  # the same in each process
    optimizer.zero_grad()
    total_loss = torch.zeros((), device=images.device)
    for x, y in zip(images.tensor_split(n_slices), labels.tensor_split(n_slices), strict=True):
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=mixed):
            logits = model(x)  # (n, 10)
        loss = F.cross_entropy(logits.float(), y, reduction="sum")
        # DistributedDataParallel takes the mean over the processes, where the sum is wanted.
        (loss * (n_processes / batch_size)).backward()
        total_loss += loss.detach()
    optimizer.step()
    return total_loss


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the average towards the weights after step 1, 2, ...

    It forgets faster at first, or a short run would still remember its random start.
    """
    decay = min(EMA_DECAY, step / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


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
        accuracy=1 - misses / len(labels),
        misses=misses,
        probabilities=logits.softmax(dim=1).cpu(),
    )


def evaluate_together(model: nn.Module, digits: Digits) -> tuple[float, float, int]:
    """Return loss, accuracy and misses as `evaluate` does, each process reading its share.

    The shares are made of the same slices, so that every digit gets the same answer.
    """
    rank, n_processes = process_rank()
    if n_processes == 1:
        return evaluate(model, digits)[:3]
    n, device = len(digits.labels), digits.labels.device
    slices = torch.arange(n, device=device).split(EVALUATION_BATCH)[rank::n_processes]
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the losses, and of misses
    if slices:
        share = torch.cat(slices)
        mine = evaluate(model, Digits(digits.images[share], digits.labels[share]))
        sums += torch.tensor([mine.loss * len(share), mine.misses], device=device)
    dist.all_reduce(sums)
    loss, misses = sums.tolist()
    return loss / n, 1 - round(misses) / n, round(misses)


def snapshot(
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    history: dict,
) -> dict:
    """Return all that a run needs to continue from here, in all its processes."""
    device = next(model.parameters()).device
    ours = [generator.get_state(), random_module(device).get_rng_state()]
    states = []  # of each generator, a row for each process
    for state in ours:
        rows = [state.to(device, copy=True) for _ in range(process_rank()[1])]
        if len(rows) > 1:
            dist.all_gather(rows, state.to(device))
        states.append(torch.stack(rows).cpu())
    return {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": states,
        "history": copy.deepcopy(history),
    }


def restore(
    state: dict,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Put everything back as `snapshot` found it."""
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    ours, default = (rows[process_rank()[0]].clone() for rows in state["generators"])
    generator.set_state(ours)
    random_module(next(model.parameters()).device).set_rng_state(default)


def random_module(device: torch.device) -> ModuleType:
    """Return the module that has the state of the generator that dropout draws from."""
    return torch if device.type == "cpu" else torch.get_device_module(device)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes, if torchrun started this one as one of several."""
    env = os.environ
    if int(env.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    meeting = {}
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and env["GROUP_WORLD_SIZE"] == "1":
        # On one machine torchrun keeps its store over a restart, and in it the addresses of
        # processes that are dead.
        store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
        store = dist.PrefixStore(env["TORCHELASTIC_RESTART_COUNT"], store)
        meeting = {"store": store, "rank": int(env["RANK"]), "world_size": int(env["WORLD_SIZE"])}
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", **meeting)
    try:
        yield
    finally:
        dist.destroy_process_group()


def broadcast(content: bytes, device: str) -> bytes:
    """Return the bytes that the first process has."""
    size = torch.tensor(len(content), device=device)
    dist.broadcast(size, src=0)
    buffer = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if content:
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device)
    if size:
        dist.broadcast(buffer, src=0)
    return buffer.cpu().numpy().tobytes()


def speaks() -> bool:
    """Whether this process is the one, of those that torchrun started, that says what is wrong."""
    return os.environ.get("RANK", "0") == "0"


def process_rank() -> tuple[int, int]:
    """Return which process this is, and of how many: 0 of 1, unless torchrun started it."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    libraries = ("torch", "torchvision", "numpy", "matplotlib")
    found = {name: importlib.metadata.version(name) for name in libraries}
    return {"python": platform.python_version(), **found}


def print_settings(settings: Settings, history: dict, model: nn.Module) -> None:
    """Say in plain words what is about to happen."""
    threads = f", {history['threads']} threads" if settings.device == "cpu" else ""
    threads += f", {history['processes']} processes" if history["processes"] > 1 else ""
    mixed = " (mixed: weights stay float32)" if settings.precision == "bfloat16" else ""
    n_train, n_test = history["train_digits"], history["test_digits"]
    print(
        f"digits      {n_train:,} to train on, {n_test:,} to test on\n"
        f"device      {settings.device}{threads}\n"
        f"precision   {settings.precision}{mixed}\n"
        f"parameters  {sum(parameter.numel() for parameter in model.parameters()):,}\n"
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


# ---- Plots -------------------------------------------------------------------------------


def plot_history(epochs: list[dict]) -> Figure:
    """Draw loss and accuracy over the epochs of `train`'s history."""
    x = [row["epoch"] for row in epochs]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(
        x, [row["train_loss"] for row in epochs], "o-", label="training (distorted, with dropout)"
    )
    left.plot(x, [row["test_loss"] for row in epochs], "o-", label="test")
    left.set(title="Loss", ylabel="mean cross-entropy", yscale="log")
    left.legend()
    right.plot(x, [100 * row["test_accuracy"] for row in epochs], "o-", color="C1", label="test")
    last = epochs[-1]
    right.set(title=f"Accuracy: {last['test_accuracy']:.2%} at the end, {last['misses']} misses")
    right.set_ylabel("digits read correctly (%)")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, which="both")
    return figure


def plot_confusion_matrix(labels: torch.Tensor, predictions: torch.Tensor) -> Figure:
    """Draw how often each true digit (rows) was read as each digit (columns); int64 (N,)."""
    counts = (labels * NUM_CLASSES + predictions).bincount(minlength=NUM_CLASSES**2)
    counts = counts.view(NUM_CLASSES, NUM_CLASSES)
    mistakes = counts.clone().fill_diagonal_(0)  # the correct ones would drown them in colour
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mistakes.numpy(), cmap="Reds", vmax=max(4, 2 * int(mistakes.max())))
    for true in range(NUM_CLASSES):
        for read in range(NUM_CLASSES):
            axes.text(read, true, int(counts[true, read]) or "", ha="center", va="center")
    axes.set(xticks=range(NUM_CLASSES), yticks=range(NUM_CLASSES))
    axes.set(xlabel="read as", ylabel="true digit")
    axes.set_title(f"{int(mistakes.sum())} misses of {len(labels):,} test digits")
    return figure


def plot_digits(images: torch.Tensor, titles: list[str], heading: str) -> Figure:
    """Draw images, uint8 (N, 28, 28), in rows of eight, each below its title."""
    rows = max(1, math.ceil(len(images) / 8))
    figure = Figure(figsize=(10, 1.5 * rows + 0.7), layout="constrained")
    figure.suptitle(heading)
    for i, axes in enumerate(figure.subplots(rows, 8, squeeze=False).flat):
        axes.axis("off")
        if i < len(images):
            axes.imshow(images[i].numpy(), cmap="gray_r", vmin=0, vmax=255)
            axes.set_title(titles[i], fontsize=9)
    return figure


def plot_mistakes(digits: Digits, probabilities: torch.Tensor) -> Figure:
    """Draw up to 40 digits that were read wrongly, the most confident first.

    Takes the digits, and the float (N, 10) probabilities they were given.
    """
    confidence, read = probabilities.max(dim=1)
    misses = (read != digits.labels).nonzero().flatten()
    worst = misses[confidence[misses].argsort(descending=True)][:40]
    titles = [f"{digits.labels[i]} → {read[i]} ({confidence[i]:.1%})" for i in worst]
    heading = f"The most confident of {len(misses)} misses: true digit → read as (confidence)"
    return plot_digits(digits.images[worst], titles, heading)


def save_figure(path: Path, figure: Figure, data_name: str) -> None:
    """Write a figure as PNG, atomically, with the name of the data below it."""
    figure.supxlabel(f"data: {data_name}", fontsize=8, color="0.4")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)  # by Agg: no display is needed
    write_atomically(path, buffer.getvalue())


# ---- Command line ------------------------------------------------------------------------

DRY_RUN_BATCHES = 3
STATE_FORMAT = "mnist-classifier training state"


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, Settings]:
    """Read the command line; what is out of range is refused with one line, exit code 2."""
    parser = argparse.ArgumentParser(
        description="Train the digit classifier, evaluate it, plot the history, save the model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    # argparse would print the whole usage first.
    prefix = f"{parser.prog}: error:"
    parser.error = lambda message: parser.exit(2, f"{prefix} {message}\n" if speaks() else None)
    data_dir, output_dir = PROJECT_DIR / "data", PROJECT_DIR / "outputs"
    add, default = parser.add_argument, Settings
    add("--epochs", type=int, default=default.epochs, help="times to show every training digit")
    add("--batch-size", type=int, default=default.batch_size, help="digits a step")
    add(
        "--learning-rate", type=float, default=default.learning_rate, help="highest of the schedule"
    )
    add("--momentum", type=float, default=default.momentum, help="Nesterov momentum")
    add("--weight-decay", type=float, default=default.weight_decay, help="of weights, not biases")
    add("--seed", type=int, default=default.seed, help="same seed, same weights")
    add("--data-dir", type=Path, default=data_dir, help="where MNIST is, or goes")
    add("--sample", action="store_true", help="use the 5,000 bundled digits instead of MNIST")
    add("--output-dir", type=Path, default=output_dir, help="where the results go")
    add("--device", default=default.device, help="auto, cpu, cuda, cuda:1, mps or xpu")
    add("--precision", default=default.precision, help="auto, float32 or bfloat16")
    add("--no-augment", dest="augment", action="store_false", help="show the digits undistorted")
    add("--resume", action="store_true", help="go on after the last finished epoch")
    add("--dry-run", action="store_true", help="a few batches of everything; writes all files")
    arguments = parser.parse_args(argv)
    try:
        names = [field.name for field in dataclasses.fields(Settings)]
        return arguments, Settings(**{name: getattr(arguments, name) for name in names})
    except ValueError as error:
        parser.error(str(error))


def check_output_dir(output_dir: Path) -> None:
    """Make the folder, and find out now, not after training, whether the results fit in."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / ".probe"
        write_atomically(probe, bytes(16 << 20))  # more than a run writes
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"{output_dir}: can't write there ({error.strerror}); choose another --output-dir"
        ) from error


def lock_output_dir(output_dir: Path) -> FileLock:
    """Keep other runs out of the folder until this process ends, and clear up after dead ones."""
    lock = FileLock(output_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        remedy = "wait for it, or choose another --output-dir"
        raise BlockingIOError(f"{output_dir}: another train.py writes there; {remedy}") from None
    for unfinished in output_dir.glob(f".{'[0-9a-f]' * 16}.tmp"):
        unfinished.unlink(missing_ok=True)
    return lock


def load_data(data_dir: Path, sample: bool, device: str) -> tuple[str, Digits, Digits]:
    """Return the name of the data, the training digits and the test digits.

    Of several processes the first decides what the data are, and the first on each other
    machine downloads them there.
    """
    rank, n_processes = process_rank()
    if n_processes == 1:
        return load_data_alone(data_dir, sample)
    digits = load_data_alone(data_dir, sample) if rank == 0 else ("", None, None)
    name = broadcast(digits[0].encode(), device).decode()
    downloads = os.environ["LOCAL_RANK"] == "0"
    for turn in (True, False):  # the others on a machine wait for the one that downloads
        if rank > 0 and turn == downloads:
            splits = (True, False)
            if name == "MNIST":
                digits = name, *(load_mnist(data_dir, train, turn) for train in splits)
            else:
                digits = name, *(load_sample(train) for train in splits)
        dist.barrier()
    return digits


def load_data_alone(data_dir: Path, sample: bool) -> tuple[str, Digits, Digits]:
    """Load the data as the only, or the first, process.

    Where MNIST can't be had, the bundled sample stands in for it, with a warning.
    """
    name = "bundled sample of MNIST"
    if not sample:
        try:
            return "MNIST", load_mnist(data_dir, train=True), load_mnist(data_dir, train=False)
        except MNISTUnavailable as error:
            name += ", since MNIST could not be downloaded"
            print(
                f"WARNING: {error}\nWARNING: training on the 5,000 bundled digits instead of "
                "MNIST's 70,000; expect a lower accuracy",
                file=sys.stderr,
            )
    return name, load_sample(train=True), load_sample(train=False)


def save_results(
    output_dir: Path,
    data_name: str,
    model: MNISTClassifier,
    history: dict,
    test_digits: Digits,
    command: str,
) -> None:
    """Write the checkpoint, the history and the plots."""
    metadata = describe(data_name, history, command)
    history = {"command": command, "data": data_name, **history}
    write_atomically(output_dir / "history.json", json.dumps(history, indent=1).encode())
    probabilities = evaluate(model, test_digits).probabilities
    confusion_matrix = plot_confusion_matrix(test_digits.labels, probabilities.argmax(dim=1))
    save_figure(output_dir / "history.png", plot_history(history["epochs"]), data_name)
    save_figure(output_dir / "confusion_matrix.png", confusion_matrix, data_name)
    save_figure(output_dir / "mistakes.png", plot_mistakes(test_digits, probabilities), data_name)
    save_checkpoint(output_dir / "mnist_cnn.pt", model, metadata)  # last: then all is written


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


def describe(data_name: str, history: dict, command: str) -> dict:
    """Return what a checkpoint says of itself: nothing that differs between equal runs."""
    metadata = {"command": command, "data": data_name, **history, "temperature": TEMPERATURE}
    epochs = metadata.pop("epochs")
    metadata["epochs_finished"] = len(epochs)
    if len(epochs) == history["settings"]["epochs"]:  # else no test has seen these weights
        result = ("train_loss", "test_loss", "test_accuracy", "misses")
        metadata["result"] = {name: epochs[-1][name] for name in result}
    return metadata


def load_state(path: Path, data_name: str, settings: Settings) -> dict | None:
    """Read the state that a run left, or None; of several processes the first reads it for all.

    Raises ValueError if it is damaged, or of a run with other settings.
    """
    first = process_rank()[0] == 0
    # With a byte in front, since a file that is there but empty is damaged, not absent.
    content = b"+" + path.read_bytes() if first and path.exists() else b""
    if process_rank()[1] > 1:
        content = broadcast(content, settings.device)
    if not content:
        return None
    state = unseal(content[1:], path, STATE_FORMAT)
    history = state["history"]
    there = {"data": state["data"], **history["settings"], "processes": history["processes"]}
    here = {"data": data_name, **dataclasses.asdict(settings), "processes": process_rank()[1]}
    if others := differences(there, here):
        remedy = "give the same settings, or leave out --resume to start afresh"
        raise ValueError(f"{path}: of a run with other settings: {others}; {remedy}")
    there = {"threads": history["threads"], **history["versions"]}
    others = differences(there, {"threads": torch.get_num_threads(), **versions()})
    if first and others:
        print(f"WARNING: the last bits of the weights may differ: {others}", file=sys.stderr)
    return state


def differences(there: dict, here: dict) -> str:
    """Name the values that differ between a state that was saved and this run."""
    names = [name for name in here if there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)} in the state, {here[name]} here" for name in names)


def is_saved(checkpoint: Path, metadata: dict) -> bool:
    """Whether a checkpoint is there already, and says the same of itself."""
    try:
        return load_checkpoint(checkpoint)[1] == metadata
    except (OSError, ValueError):
        return False


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Load, train, evaluate, plot and save; return the exit code."""
    started = time.perf_counter()
    first = process_rank()[0] == 0  # of several processes, the one that writes and speaks
    output_dir, command = arguments.output_dir, command_line(arguments, settings)
    checkpoint, state_path = output_dir / "mnist_cnn.pt", output_dir / "training_state.pt"
    lock = None
    if first:
        check_output_dir(output_dir)
        lock = lock_output_dir(output_dir)
    data_name, *digits = load_data(arguments.data_dir, arguments.sample, settings.device)
    if arguments.dry_run:
        data_name = f"dry run on a few digits of: {data_name}"
        settings.epochs = min(settings.epochs, 2)
        sizes = (DRY_RUN_BATCHES * settings.batch_size, EVALUATION_BATCH)
        digits = [Digits(*(x[:n] for x in split)) for split, n in zip(digits, sizes, strict=True)]
    train_digits, test_digits = digits
    if first:
        print(f"data        {data_name}")
    state = load_state(state_path, data_name, settings) if arguments.resume else None
    n_finished = len(state["history"]["epochs"]) if state else 0
    if n_finished == settings.epochs and is_saved(
        checkpoint, describe(data_name, state["history"], command)
    ):
        if first:
            print(f"finished already: model, history and plots are in {output_dir}")
        return 0
    if first and arguments.resume:
        absent = f"nothing to resume: no {state_path}; starting afresh"
        print(f"resuming after epoch {n_finished} of {settings.epochs}" if state else absent)

    def save(state: dict) -> None:
        if first:
            save_sealed(state_path, STATE_FORMAT, {"data": data_name, **state})

    try:
        model, history = train(
            train_digits, test_digits, settings, quiet=not first, save=save, state=state
        )
    except TrainingInterrupted as interrupted:
        if first:
            save_interrupted(checkpoint, data_name, interrupted, command)
        return 130
    if first:
        save_results(output_dir, data_name, model, history, test_digits, command)
        last = history["epochs"][-1]
        print(
            f"\n{last['test_accuracy']:.2%} of {len(test_digits.labels):,} test digits read "
            f"correctly ({last['misses']} misses) after {time.perf_counter() - started:.0f} s\n"
            f"data: {data_name}\n"
            f"model, history and plots are in {output_dir}; to read a digit:\n\n"
            f"    from inference import MNISTPredictor\n"
            f"    print(MNISTPredictor({str(checkpoint)!r}).predict('digit.png'))"
        )
        lock.release()
    return 0


def save_interrupted(
    checkpoint: Path, data_name: str, interrupted: TrainingInterrupted, command: str
) -> None:
    """Write the weights so far, and say where; half a training does not replace a whole one."""
    if checkpoint.exists():
        checkpoint = checkpoint.with_stem("mnist_cnn_interrupted")
    metadata = describe(data_name, interrupted.history, command)
    save_checkpoint(checkpoint, interrupted.model, metadata)
    print(
        f"\ninterrupted: the weights so far are in {checkpoint}; the same command with --resume "
        f"goes on after epoch {len(interrupted.history['epochs'])}",
        file=sys.stderr,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # a folder may have a name that is not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments, settings = parse_arguments(argv)
    try:
        with process_group(settings.device):
            return run(arguments, settings)
    except KeyboardInterrupt:
        code, message = 130, "\ntrain.py: interrupted; nothing was written"
    except (OSError, ValueError) as error:
        code, message = 1, f"train.py: error: {error}"
    except RuntimeError as error:
        if "RANK" not in os.environ:
            raise
        reason = str(error).splitlines()[0][:200]
        message = f"train.py: error: the processes lost each other; --resume goes on ({reason})"
        code = 1
    if speaks():
        print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
