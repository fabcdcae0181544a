"""How fast `inference.py` is: to start, on one image, on many, on a folder; and ONNX Runtime.

    python benchmarks/inference_speed.py [--rounds 5]

Start-up is the whole of `python inference.py digit.png`, against `python -c "import torch"`, each
in a new process. ONNX Runtime gets what `python -m apps.export` writes, and nothing but
the least work around it: the probabilities stay in an array. It is for this comparison only;
without it, its rows say so. The rows take turns, round after round, so that a busy machine slows
them alike; the medians count. The images come from the bundled sample.
"""

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

import photographs  # noqa: E402
from train_speed import machine  # noqa: E402

import inference  # noqa: E402
from apps.export import to_onnx  # noqa: E402
from inference import MNISTPredictor  # noqa: E402
from training.data import load_sample  # noqa: E402

SINGLE_CALLS = 2000  # in all rounds
PHOTO_CALLS = 200
FOLDER_PHOTOS = 60
BATCH_IMAGES = 10_000
ONNX_BATCH = 256
NOT_INSTALLED = "ONNX Runtime not installed: pip install -r requirements-dev.txt"


class OnnxPredictor:
    """Reads ready 28x28 digits, white on black, with ONNX Runtime."""

    def __init__(self, model: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(model, options, providers=providers)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 (N, 28, 28) to probabilities, float32 (N, 10)."""
        return self.session.run(None, {"pixels": pixels})[0]

    def predict(self, image: Image.Image) -> tuple[int, float]:
        """Read one image; return the digit and its probability."""
        probabilities = self.probabilities(np.asarray(image)[np.newaxis])[0]
        digit = int(probabilities.argmax())
        return digit, float(probabilities[digit])

    def predict_batch(self, images: np.ndarray) -> np.ndarray:
        """Read many images, uint8 (N, 28, 28); return their probabilities, (N, 10)."""
        starts = range(0, len(images), ONNX_BATCH)
        batches = [self.probabilities(images[i : i + ONNX_BATCH]) for i in starts]
        return np.concatenate(batches)


def photograph(digit: np.ndarray) -> Image.Image:
    """Make a digit of MNIST, uint8 (28, 28), a photo: RGB, 1000x800, dark on uneven, noisy gray."""
    width, height, size = 1000, 800, 500
    ink = np.zeros((height, width))
    top, left = (height - size) // 2, (width - size) // 2
    enlarged = Image.fromarray(digit).resize((size, size), Image.BICUBIC)
    ink[top : top + size, left : left + size] = np.asarray(enlarged) / 255
    light = np.linspace(215, 165, width) + np.linspace(15, -15, height)[:, np.newaxis]
    gray = light * (1 - 0.75 * ink) + np.random.default_rng(0).normal(0, 4, (height, width))
    tinted = gray[:, :, np.newaxis] * np.array([1.0, 0.97, 0.9])
    return Image.fromarray(tinted.clip(0, 255).astype(np.uint8))


def page(digits: np.ndarray, across: int, size: tuple[int, int]) -> bytes:
    """Write digits, uint8 (N, 28, 28), in rows on a sheet: a JPEG, dark on light, with noise."""
    rows = [np.concatenate(list(row), axis=1) for row in digits.reshape(-1, across, 28, 28)]
    ink = Image.fromarray(np.pad(np.concatenate(rows), 14)).resize(size, Image.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 3, (*size[::-1], 1))
    pixels = (220 - 0.7 * np.asarray(ink, np.float32)[:, :, None] + noise) * [1.0, 0.97, 0.9]
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def time_process(*arguments: str) -> float:
    """Return the seconds that `python` takes with these arguments, from start to exit."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], cwd=PROJECT_DIR, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def time_calls(predict: Callable, image: Image.Image, calls: int) -> list[float]:
    """Return the milliseconds of each call, after a few to warm up."""
    times = []
    for _ in range(calls + 10):
        started = time.perf_counter()
        predict(image)
        times.append(1000 * (time.perf_counter() - started))
    return times[10:]


def time_batch(predict_batch: Callable, images: np.ndarray) -> float:
    """Return images per second, after a few to warm up."""
    predict_batch(images[:500])
    started = time.perf_counter()
    predict_batch(images)
    return len(images) / (time.perf_counter() - started)


def measure_startup(rounds: int, digit: np.ndarray) -> None:
    """Print the time of the command line."""
    times = {"import torch": [], "inference.py": []}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "digit.png")
        Image.fromarray(digit).save(path)
        for _ in range(rounds):
            times["import torch"].append(time_process("-c", "import torch"))
            times["inference.py"].append(time_process("inference.py", path))
    baseline = statistics.median(times["import torch"])
    seconds = statistics.median(times["inference.py"])
    print("| start-up | seconds | ratio | goal |")
    print("| --- | --- | --- | --- |")
    print(f'| `python -c "import torch"` | {baseline:.2f} | 1.00× | |')
    print(f"| `python inference.py digit.png` | {seconds:.2f} | {seconds / baseline:.2f}× | 1.3× |")


def measure_single(
    rounds: int, predictor: MNISTPredictor, onnx_model: bytes | None, digits: np.ndarray
) -> None:
    """Print the time of one image, on one thread."""
    digit = digits[0]
    line = np.zeros((12, 24, 28, 28), np.uint8)
    line[6, 9:15] = digits[:6]
    ready, photo = Image.fromarray(digit), photograph(digit)
    sheet = photographs.photograph("small on 12 megapixels", digit, seed=0)
    rows = {
        "28×28, MNISTPredictor": (predictor.predict, ready, SINGLE_CALLS, "p50 0.5"),
        "28×28, ONNX Runtime": (None, ready, SINGLE_CALLS, ""),
        "photo 1000×800, MNISTPredictor": (predictor.predict, photo, PHOTO_CALLS, "10"),
        "JPEG of 12 megapixels, MNISTPredictor": (predictor.predict, sheet, PHOTO_CALLS // 2, "60"),
        "a page of 100 digits, read": (
            predictor.read,
            page(digits[:100], 10, (1600, 1600)),
            20,
            "500",
        ),
        "a line in 12 megapixels, read": (
            predictor.read,
            page(line.reshape(-1, 28, 28), 24, (4032, 3024)),
            20,
            "300",
        ),
    }
    times = {name: [] for name in rows}
    torch.set_num_threads(1)
    for _ in range(rounds):
        for name, (predict, image, calls, _) in rows.items():
            if predict is None:
                if onnx_model is None:
                    continue
                predict = OnnxPredictor(onnx_model, threads=1).predict
            times[name] += time_calls(predict, image, -(-calls // rounds))
    print("| one image, one thread | p50, ms | p99, ms | goal |")
    print("| --- | --- | --- | --- |")
    for name, (_, _, _, goal) in rows.items():
        if times[name]:
            p50, p99 = np.percentile(times[name], [50, 99])
            print(f"| {name} | {p50:.2f} | {p99:.2f} | {goal} |")
        else:
            print(f"| {name} | {NOT_INSTALLED} | | {goal} |")


def measure_batch(
    rounds: int,
    predictor: MNISTPredictor,
    onnx_model: bytes | None,
    images: np.ndarray,
    threads: int,
) -> None:
    """Print the speed on many ready images, on one thread and on all."""
    choices = sorted({1, threads})
    speeds = {(name, n): [] for n in choices for name in ("ours", "ONNX Runtime")}
    for _ in range(rounds):
        for n in choices:
            torch.set_num_threads(n)
            speeds["ours", n].append(time_batch(predictor.predict_batch, images))
            if onnx_model is not None:
                # A new one each time: its idle threads spin, and would slow the other rows.
                onnx_predictor = OnnxPredictor(onnx_model, n)
                speeds["ONNX Runtime", n].append(time_batch(onnx_predictor.predict_batch, images))
                del onnx_predictor
    print(f"| {len(images):,} images of 28×28, uint8 | threads | images/s | ratio | goal |")
    print("| --- | --- | --- | --- | --- |")
    for n in choices:
        ours = statistics.median(speeds["ours", n])
        ratio, line = "", f"| ONNX Runtime, batches of {ONNX_BATCH} | {n} | {NOT_INSTALLED} | | |"
        if onnx_model is not None:
            theirs = statistics.median(speeds["ONNX Runtime", n])
            ratio = f"{ours / theirs:.2f}×"
            line = f"| ONNX Runtime, batches of {ONNX_BATCH} | {n} | {theirs:,.0f} | 1.00× | |"
        print(f"| MNISTPredictor.predict_batch | {n} | {ours:,.0f} | {ratio} | 0.8× |")
        print(line)


def measure_folder(rounds: int, digits: np.ndarray, threads: int) -> None:
    """Print the speed of the command line on a folder of photos, one at once and several."""
    seconds: dict[int, list[float]] = {n: [] for n in sorted({1, threads})}
    with tempfile.TemporaryDirectory() as folder:
        for i, digit in enumerate(digits[:FOLDER_PHOTOS]):
            photograph(digit).save(os.path.join(folder, f"{i}.jpg"), quality=90)
        for _ in range(rounds):
            for n in seconds:
                torch.set_num_threads(n)
                started = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):
                    inference.main([folder, "--jobs", str(n)])
                seconds[n].append(time.perf_counter() - started)
    print("| a folder of JPEGs, 1000×800 | images/s | ratio | goal |")
    print("| --- | --- | --- | --- |")
    alone = statistics.median(seconds[1])
    for n, times in seconds.items():
        median = statistics.median(times)
        goal = "1.7×" if n == 2 else ""
        print(
            f"| `inference.py FOLDER --jobs {n}` | {FOLDER_PHOTOS / median:.0f} "
            f"| {alone / median:.2f}× | {goal} |"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)

    threads = torch.get_num_threads()
    sample = load_sample(train=False).images.numpy()
    images = np.stack([sample[i % len(sample)] for i in range(BATCH_IMAGES)])
    predictor = MNISTPredictor()
    onnx_model, with_onnx = None, ""
    with contextlib.suppress(ImportError):
        import onnxruntime

        with_onnx = f", ONNX Runtime {onnxruntime.__version__}"
        onnx_model = to_onnx(predictor.model)
    if onnx_model is not None:
        ours = np.array([prediction.digit for prediction in predictor.predict_batch(images[:1000])])
        theirs = OnnxPredictor(onnx_model, threads).predict_batch(images[:1000]).argmax(axis=1)
        if (ours != theirs).any():
            raise ValueError(f"ONNX Runtime reads {(ours != theirs).sum()} of 1,000 otherwise")

    print(f"{machine('cpu')}{with_onnx}; medians of {arguments.rounds} rounds\n")
    measure_startup(arguments.rounds, sample[0])
    print()
    measure_single(arguments.rounds, predictor, onnx_model, sample)
    print()
    measure_batch(arguments.rounds, predictor, onnx_model, images, threads)
    print()
    measure_folder(arguments.rounds, sample, threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
