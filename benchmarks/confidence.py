"""How far the confidence of `inference.py` can be trusted, on digits and on non-digits.

    python benchmarks/confidence.py [--data-dir data]
    python benchmarks/confidence.py --calibrate weights/mnist_cnn.pt

Calibration: on MNIST's test set, how far the confidence is from the share of right answers,
as the expected calibration error (ECE, 15 bins of equal width). Detection: how well the
confidence tells test digits from letters and noise, as the area under the ROC curve (AUROC):
the chance that a digit gets a higher confidence than a non-digit. What is below the minimum
confidence of the checkpoint would be left out by `MNISTPredictor.read`. Digits, letters and
noise are drawn alike, dark on white, 200x200, and so go through the same preparation. The letters
are printed, in the fonts that Matplotlib brings along, A-Z and a-z but for O o I l i Z z S s B b q
g, which look like digits. A blank image counts as confidence 0.

With --calibrate, it finds the temperature T by which the logits would have to be divided (Guo et
al. 2017, arXiv:1706.04599), and prints what that changes. It trains a network with the settings of
the checkpoint on 50,000 of the 60,000 training digits, and takes the T of the lowest cross-entropy
on the others. The test set has no part in it.
"""

import argparse
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT_DIR), str(PROJECT_DIR / "benchmarks")]

from accuracy import hold_out  # noqa: E402

from inference import MNISTPredictor  # noqa: E402
from reading.checkpoint import load_checkpoint  # noqa: E402
from train import Settings, evaluate, train  # noqa: E402
from training.data import Digits, load_mnist  # noqa: E402

BINS = 15
CANVAS = 200  # pixels, both ways
FONT_SIZE = 120  # pixels
LETTERS = [letter for letter in string.ascii_letters if letter not in "OoIliZzSsBbqg"]
FONTS = ("DejaVu*", "STIXGeneral*", "cm*")
FONTS_WITHOUT_LETTERS = ("DejaVuSansDisplay", "DejaVuSerifDisplay", "cmex10", "cmsy10")
NOISE_IMAGES = 300  # of each kind


# ---- Measures ----------------------------------------------------------------------------


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error of confidences, 0..1, given which answers are right.

    Over bins of equal width: |mean confidence - share of right answers|, weighted by the
    number of answers in the bin.
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(bins, weights=confidence - right, minlength=BINS)  # sums, not means
    return float(np.abs(gap).sum() / len(confidence))


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the chance that a positive scores above a negative; a tie counts one half.

    By Mann and Whitney's rank sum.
    """
    _, inverse, counts = np.unique(
        np.concatenate([positives, negatives]), return_inverse=True, return_counts=True
    )
    ranks = (counts.cumsum() - (counts - 1) / 2)[inverse]  # from 1; ties share their mean rank
    n, m = len(positives), len(negatives)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


# ---- The temperature ---------------------------------------------------------------------


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the T for which softmax(logits / T) has the least cross-entropy."""
    logits = logits.double()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_temperature.exp().item()


def calibrate(path: Path, data_dir: Path, writers: Path | None) -> None:
    """Fit the temperature of a network trained as that of a checkpoint was, and print it."""
    metadata = load_checkpoint(path)[1]
    rest, held_out = hold_out(load_mnist(data_dir, train=True), writers)
    settings = metadata["settings"] | {"device": "cpu", "precision": "auto"}
    second, _ = train(rest, held_out, Settings(**settings))
    probabilities = evaluate(second, held_out).probabilities
    logits = probabilities.clamp_min(1e-30).log()  # but for a constant, which changes nothing
    temperature = fit_temperature(logits, held_out.labels)
    print(f"fitted on {len(held_out):,} held-out digits\n")
    print("| T | ECE | cross-entropy |")
    print("| --- | --- | --- |")
    for t in (1.0, temperature):
        confidence, read = (logits / t).softmax(dim=1).max(dim=1)
        error = calibration_error(confidence.numpy(), (read == held_out.labels).numpy())
        loss = F.cross_entropy(logits / t, held_out.labels).item()
        print(f"| {t:.3f} | {error:.3%} | {loss:.5f} |")


# ---- Images ------------------------------------------------------------------------------


def draw_digits(images: torch.Tensor) -> Iterator[Image.Image]:
    """Enlarge MNIST's digits, uint8 (N, 28, 28), and make them dark on white."""
    for image in images.numpy():
        yield Image.fromarray(255 - image).resize((CANVAS, CANVAS), Image.BICUBIC)


def letter_fonts() -> list[Path]:
    """Return the fonts with letters that come with Matplotlib."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    found = {path for pattern in FONTS for path in folder.glob(f"{pattern}.ttf")}
    return sorted(path for path in found if path.stem not in FONTS_WITHOUT_LETTERS)


def draw_letters() -> Iterator[Image.Image]:
    """Draw each letter in each font."""
    for path in letter_fonts():
        font = ImageFont.truetype(str(path), FONT_SIZE)
        for letter in LETTERS:
            image = Image.new("L", (CANVAS, CANVAS), "white")
            center = (CANVAS / 2, CANVAS / 2)
            ImageDraw.Draw(image).text(center, letter, fill=0, font=font, anchor="mm")
            yield image


def draw_uniform(rng: np.random.Generator) -> Image.Image:
    """Draw each pixel at random."""
    return Image.fromarray(rng.integers(0, 256, (CANVAS, CANVAS), dtype=np.uint8))


def draw_blobs(rng: np.random.Generator) -> Image.Image:
    """Draw one to eight Gaussian blobs, dark on white, anywhere in the middle."""
    y, x = np.mgrid[:CANVAS, :CANVAS]
    ink = np.zeros((CANVAS, CANVAS))
    for _ in range(rng.integers(1, 9)):
        center_x, center_y = rng.uniform(0.2 * CANVAS, 0.8 * CANVAS, 2)
        width = rng.uniform(5, 25)
        ink += np.exp(-((x - center_x) ** 2 + (y - center_y) ** 2) / (2 * width**2))
    return Image.fromarray((255 * (1 - ink.clip(0, 1))).astype(np.uint8))


def draw_scribble(rng: np.random.Generator) -> Image.Image:
    """Draw three to twelve lines, each from the end of the last, as thick as a pen's."""
    image = Image.new("L", (CANVAS, CANVAS), "white")
    points = rng.uniform(0.15 * CANVAS, 0.85 * CANVAS, (rng.integers(4, 14), 2))
    width = int(rng.integers(5, 16))
    ImageDraw.Draw(image).line(points.flatten().tolist(), fill=0, width=width, joint="curve")
    return image


# ---- Report ------------------------------------------------------------------------------


def confidences(predictor: MNISTPredictor, images: Iterator[Image.Image]) -> np.ndarray:
    """Return the confidence in each image; 0 where the predictor finds no digit to read."""
    values = []
    for image in images:
        try:
            values.append(predictor.predict(image).confidence)
        except ValueError:  # blank
            values.append(0.0)
    return np.array(values)


def report_calibration(predictor: MNISTPredictor, digits: Digits) -> None:
    """Print accuracy and calibration error on the test digits."""
    labels = digits.labels.numpy()
    predictions = predictor.predict_batch(list(digits.images.numpy()))
    confidence = np.array([prediction.confidence for prediction in predictions])
    right = np.array([prediction.digit for prediction in predictions]) == labels
    error = calibration_error(confidence, right)
    print(f"| {len(labels):,} test digits | accuracy | mean confidence | ECE |")
    print("| --- | --- | --- | --- |")
    print(f"| MNISTPredictor | {right.mean():.2%} | {confidence.mean():.2%} | {error:.3%} |")


def report_detection(predictor: MNISTPredictor, digits: Digits) -> None:
    """Print how well the confidence tells digits from non-digits."""
    rng = np.random.default_rng(0)
    known = confidences(predictor, draw_digits(digits.images[::10]))
    others = {f"letters, {len(letter_fonts())} fonts": confidences(predictor, draw_letters())}
    noise = {
        "uniform noise": draw_uniform,
        "Gaussian blobs": draw_blobs,
        "scribbles": draw_scribble,
    }
    for name, draw in noise.items():
        others[name] = confidences(predictor, (draw(rng) for _ in range(NOISE_IMAGES)))
    others["all noise"] = np.concatenate([others[name] for name in noise])
    minimum = predictor.min_confidence
    heads = ("images, 200×200", "how many", "mean confidence", "above 90%", f"below {minimum:.1%}")
    print(f"| {' | '.join(heads)} |", end="")
    print(" AUROC, digits against it |\n| --- | --- | --- | --- | --- | --- |")
    for name, values in ({"test digits": known} | others).items():
        area = "" if values is known else f"{auroc(known, values):.3f}"
        shares = (values.mean(), (values > 0.9).mean(), (values < minimum).mean())
        print(f"| {name} | {len(values):,} | {' | '.join(f'{x:.1%}' for x in shares)} | {area} |")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=PROJECT_DIR / "data")
    parser.add_argument("--calibrate", type=Path, metavar="CHECKPOINT", help="takes minutes")
    parser.add_argument("--writers", type=Path, help="with --calibrate: hold out whole writers")
    arguments = parser.parse_args(argv)
    if arguments.calibrate:
        calibrate(arguments.calibrate, arguments.data_dir, arguments.writers)
        return 0
    digits = load_mnist(arguments.data_dir, train=False)
    predictor = MNISTPredictor()
    report_calibration(predictor, digits)
    print()
    report_detection(predictor, digits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
