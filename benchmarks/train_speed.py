"""How fast `train.py` trains, side by side with the usual MNIST script and with bare matmuls.

    python benchmarks/train_speed.py [--data-dir data] [--rounds 5] [--images 12800]
    python benchmarks/train_speed.py --plot docs/batch_size.png

The usual script is written out below: a DataLoader over torchvision's data set with ToTensor
and Normalize for each image, batches of 64, float32, SGD with momentum. It trains the network as
tutorials write it, and the one of model.py, which the ratios refer to. The next row has train.py's
batches in place of the DataLoader. Then comes train.py at its defaults, augmentation on, in float32
and in bfloat16. The floor is the same number of multiply-adds done by plain products of large
square matrices: nothing but the multiply-adds, in the shape that suits the machine best.

The rows take turns, round after round, so that a busy machine slows them alike; the medians
count. Training only: no evaluation, no start-up. The peak of memory is that of a process that
does nothing but this row. With --plot: images per second and memory over the batch size, on one
thread and on all, each point a process of its own, in turns as well.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.figure import Figure
from torchvision import datasets, transforms

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

from model import PIXEL_MEAN, PIXEL_STD, MNISTClassifier  # noqa: E402
from reading.devices import keep_freed_memory  # noqa: E402
from train import Settings, Trainer  # noqa: E402
from training.data import Digits, load_mnist, shuffled_batches  # noqa: E402

# Multiply-adds for one image: forward, and twice that backward, but for the gradient of the
# pixels, which nobody needs.
LAYERS = (28 * 28 * 9 * 32, 14 * 14 * 9 * 32 * 64, 64 * 7 * 7 * 128, 128 * 10)
MULTIPLY_ADDS = 3 * sum(LAYERS) - LAYERS[0]
MATRIX = 1024  # rows and columns of the matrices of the floor
BASELINE = "usual script, our network, float32"
BATCH_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)

# ---- Rows --------------------------------------------------------------------------------


class UsualNetwork(nn.Sequential):
    """The network of the README as tutorials write it."""

    def __init__(self) -> None:
        convolutions = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        super().__init__(
            *(convolutions[0], nn.ReLU(), nn.MaxPool2d(2)),
            *(convolutions[1], nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.25), nn.Linear(64 * 7 * 7, 128), nn.ReLU()),
            *(nn.Dropout(0.5), nn.Linear(128, 10)),
        )


def usual_batches(data_dir: Path, n_images: int) -> torch.utils.data.DataLoader:
    """Return the batches of most tutorials: read, converted and normalized image by image."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((PIXEL_MEAN,), (PIXEL_STD,))]
    )
    dataset = datasets.MNIST(data_dir, train=True, download=True, transform=transform)
    dataset = torch.utils.data.Subset(dataset, range(n_images))
    return torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)


def our_batches(digits: Digits) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches as train.py makes them, distorted, but 64 at a time."""
    strengths = [1.0] * -(-len(digits) // 64)
    for images, labels, _ in shuffled_batches(digits, 64, strengths, seed=0):
        yield images, labels


def usual_loop(batches, network: Callable[[], nn.Module], device: str) -> float:
    """Train as most tutorials do; return images per second."""
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    n_images, started = 0, time.perf_counter()
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        n_images += len(images)
    loss.item()  # waits for a GPU
    return n_images / (time.perf_counter() - started)


def ours(digits: Digits, settings: Settings) -> float:
    """Train for an epoch as train.py does; return images per second."""
    return Trainer(digits, settings).train_epoch(1)["images_per_second"]


def floor(n_images: int, dtype: torch.dtype, device: str) -> float:
    """Do the multiply-adds of training and nothing else; return images per second."""
    a, b, out = (torch.randn(3, MATRIX, MATRIX, device=device) / MATRIX**0.5).to(dtype)
    products = max(1, round(n_images * MULTIPLY_ADDS / MATRIX**3))
    started = time.perf_counter()
    for _ in range(products):
        torch.mm(a, b, out=out)
    out[0, 0].item()  # waits for a GPU
    return products * MATRIX**3 / MULTIPLY_ADDS / (time.perf_counter() - started)


def make_rows(data_dir: Path, n: int, device: str) -> dict[str, Callable[[], float]]:
    """Return what is measured, by name; each call trains on n images."""
    digits = load_mnist(data_dir, train=True)[:n].to(device)
    default = Settings(device=device)
    settings = [Settings(device=device, precision=name) for name in ("float32", "bfloat16")]
    rows = {
        "usual script, network as in tutorials": lambda: usual_loop(
            usual_batches(data_dir, n), UsualNetwork, device
        ),
        BASELINE: lambda: usual_loop(usual_batches(data_dir, n), MNISTClassifier, device),
        "the same, with train.py's batches": lambda: usual_loop(
            our_batches(digits), MNISTClassifier, device
        ),
    }
    for each in settings:
        note = " (its default here)" if each.precision == default.precision else ""
        dtype = getattr(torch, each.precision)
        rows[f"train.py, {each.precision}{note}"] = lambda each=each: ours(digits, each)
        rows[f"floor, {each.precision}"] = lambda dtype=dtype: floor(n, dtype, device)
    return rows


# ---- Table and plot ----------------------------------------------------------------------


def run_alone(*arguments: str, **environment: str) -> dict:
    """Run this script in a process of its own; return what `report_alone` printed there."""
    process = subprocess.run(
        [sys.executable, __file__, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    return json.loads(process.stdout)


def report_alone(images_per_second: float) -> None:
    """Print a speed and this process's peak of memory, for `run_alone` to read."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with contextlib.suppress(OSError):  # on Linux, ru_maxrss may be that of the parent
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    print(json.dumps({"images_per_second": images_per_second, "peak_mb": peak}))


def print_table(arguments: argparse.Namespace) -> None:
    """Measure the rows in turns, and print them as a table."""
    n, data_dir = arguments.images, arguments.data_dir
    rows = make_rows(data_dir, n, arguments.device)
    speeds = {name: [] for name in rows}
    for _ in range(arguments.rounds):
        for name, measure in rows.items():
            speeds[name].append(measure())
    print(f"{machine(arguments.device)}; medians of {arguments.rounds} rounds of {n:,} images\n")
    print("| training | images/s | lowest–highest | seconds an epoch | ratio | of the floor | MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, values in speeds.items():
        speed = medians[name]
        spread = f"{min(values):,.0f}–{max(values):,.0f}"
        ratio = f"{speed / medians[BASELINE]:.2f}×"
        precision = "bfloat16" if "bfloat16" in name else "float32"
        of_floor = f"{speed / medians[f'floor, {precision}']:.0%}"
        alone = ("--row", name, "--data-dir", str(data_dir), "--device", arguments.device)
        memory = f"{run_alone(*alone)['peak_mb']:,.0f}"
        print(
            f"| {name} | {speed:,.0f} | {spread} | {60000 / speed:.1f} | {ratio} | {of_floor} "
            f"| {memory} |",
            flush=True,
        )


def plot_batch_sizes(arguments: argparse.Namespace) -> None:
    """Measure batch sizes and threads in turns, print them, and draw them to a file."""
    all_threads = torch.get_num_threads()
    points = [(size, threads) for threads in sorted({1, all_threads}) for size in BATCH_SIZES]
    found = {point: [] for point in points}
    for _ in range(arguments.rounds):
        for size, threads in points:
            alone = ("--batch-size", str(size), "--data-dir", str(arguments.data_dir))
            found[size, threads].append(run_alone(*alone, OMP_NUM_THREADS=str(threads)))
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    print(f"{machine('cpu')}; medians of {arguments.rounds} rounds\n")
    print("| batch size | threads | images/s | MB |\n| --- | --- | --- | --- |")
    for threads in sorted({1, all_threads}):
        speeds, memory = (
            [statistics.median(run[key] for run in found[size, threads]) for size in BATCH_SIZES]
            for key in ("images_per_second", "peak_mb")
        )
        label = f"{threads} thread{'s' if threads > 1 else ''}"
        left.plot(BATCH_SIZES, speeds, "o-", label=label)
        right.plot(BATCH_SIZES, memory, "o-", label=label)
        for size, speed, peak in zip(BATCH_SIZES, speeds, memory, strict=True):
            print(f"| {size:,} | {threads} | {speed:,.0f} | {peak:,.0f} |")
    left.set(title="Speed of training", ylabel="images per second")
    right.set(title="Memory", ylabel="peak of the process (MB)")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(BATCH_SIZES, [f"{size:,}" for size in BATCH_SIZES])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("batch size")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.supxlabel(machine("cpu", threads=False), fontsize=8, color="0.4")
    figure.savefig(arguments.plot, dpi=120)


def machine(device: str, threads: bool = True) -> str:
    """Return the processor, the threads and the versions that the figures are from."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    if device != "cpu":
        name = f"{torch.get_device_module(device).get_device_name()}, {name}"
    name += f", {torch.get_num_threads()} threads" if threads else ""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{name} on {os.cpu_count()} cores, {versions}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=PROJECT_DIR / "data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=12800, help="a round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", type=Path, help="draw speed and memory over the batch size")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # one row in a process of its own
    parser.add_argument("--batch-size", type=int, help=argparse.SUPPRESS)  # one point, likewise
    arguments = parser.parse_args(argv)
    keep_freed_memory()  # as Trainer does; the usual script is not slower for it
    if arguments.row:
        rows = make_rows(arguments.data_dir, arguments.images, arguments.device)
        report_alone(rows[arguments.row]())
    elif arguments.batch_size:
        digits = load_mnist(arguments.data_dir, train=True)
        settings = Settings(batch_size=arguments.batch_size, device="cpu")
        ours(digits[: 3 * arguments.batch_size], settings)  # the first steps pay for the memory
        n = max(arguments.images, 4 * arguments.batch_size)
        report_alone(ours(digits[:n], settings))
    elif arguments.plot:
        plot_batch_sizes(arguments)
    else:
        print_table(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
