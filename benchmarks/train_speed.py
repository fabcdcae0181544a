"""How fast `train.py` trains, side by side with the usual MNIST script.

    python benchmarks/train_speed.py [--data-dir data] [--rounds 5] [--images 12800]

The usual script is written out below: a DataLoader over torchvision's data set with ToTensor
and Normalize for each image, batches of 64, the same network, float32, SGD with momentum.
Ours runs at its defaults, augmentation on: batches of 128, in bfloat16 where the device
computes in it, and again in float32. The rows take turns, round after round, so that a busy
machine slows them alike; the medians count. Training only: no evaluation, no start-up. The
peak of memory is that of one whole `python train.py --epochs 1`, in a process of its own.
"""

import argparse
import copy
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision import datasets, transforms

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

from model import PIXEL_MEAN, PIXEL_STD, MNISTClassifier  # noqa: E402
from train import (  # noqa: E402
    Digits,
    Settings,
    keep_freed_memory,
    load_mnist,
    make_optimizer,
    train_one_epoch,
)


def usual_script(data_dir: Path, n_images: int) -> float:
    """Train on `n_images` as most tutorials do; return images per second."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((PIXEL_MEAN,), (PIXEL_STD,))]
    )
    dataset = datasets.MNIST(data_dir, train=True, download=True, transform=transform)
    dataset = torch.utils.data.Subset(dataset, range(n_images))
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)
    model = MNISTClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    started = time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return n_images / (time.perf_counter() - started)


def ours(digits: Digits, settings: Settings) -> float:
    """Train for one epoch with train.py's own function; return images per second."""
    model = MNISTClassifier().to(settings.device, memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    optimizer = make_optimizer(model, settings)
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    row = train_one_epoch(
        model, average, optimizer, digits, settings, epoch=1, generator=generator, quiet=True
    )
    return row["images_per_second"]


def peak_memory(data_dir: Path) -> float:
    """Return the highest resident memory of `python train.py --epochs 1`, in MB."""
    with tempfile.TemporaryDirectory() as output_dir:
        command = [sys.executable, "train.py", "--epochs", "1"]
        command += ["--data-dir", str(data_dir.resolve()), "--output-dir", output_dir]
        subprocess.run(command, cwd=PROJECT_DIR, check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def machine() -> str:
    """Return the processor, the threads and the versions that the figures are from."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    return f"{name}, {threads}, torch {torch.__version__}, Python {platform.python_version()}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=PROJECT_DIR / "data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=12800, help="a round")
    arguments = parser.parse_args(argv)

    n = arguments.images
    digits = Digits(*(tensor[:n] for tensor in load_mnist(arguments.data_dir, train=True)))
    default = Settings(device="cpu")
    keep_freed_memory()  # as train() does; the usual script is not slower for it
    rows = {
        "usual script, float32": lambda: usual_script(arguments.data_dir, n),
        "train.py, float32": lambda: ours(digits, Settings(device="cpu", precision="float32")),
        f"train.py, {default.precision} (its default here)": lambda: ours(digits, default),
    }
    speeds = {name: [] for name in rows}
    for _ in range(arguments.rounds):
        for name, measure in rows.items():
            speeds[name].append(measure())

    print(f"{machine()}; medians of {arguments.rounds} rounds of {n:,} images\n")
    print("| training | images/s | lowest–highest | seconds an epoch | ratio |")
    print("| --- | --- | --- | --- | --- |")
    baseline = statistics.median(speeds["usual script, float32"])
    for name, values in speeds.items():
        speed = statistics.median(values)
        spread = f"{min(values):,.0f}–{max(values):,.0f}"
        ratio = f"{speed / baseline:.2f}×"
        print(f"| {name} | {speed:,.0f} | {spread} | {60000 / speed:.1f} | {ratio} |")
    print(f"\npeak memory of python train.py --epochs 1: {peak_memory(arguments.data_dir):,.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
