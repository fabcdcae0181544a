"""Plots of a training and its results, as Matplotlib figures, and how they are saved."""

import io
import math
from pathlib import Path

import torch
import torch.nn as nn
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model import IMAGE_SIZE, NUM_CLASSES, normalize
from reading.files import write_atomically
from training.data import Digits

SQUARE, STEP = 4, 2  # pixels of the squares of ink that occlusion erases, and between them


def plot_history(history: dict) -> Figure:
    """Draw loss and accuracy over the epochs of a training, given its history.

    Each of `history["rows"]` holds epoch, train_loss, test_loss, test_accuracy and misses.
    """
    rows = history["rows"]
    epochs, last = [row["epoch"] for row in rows], rows[-1]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = {
        "train_loss": "training digits (distorted, with dropout)",
        "test_loss": "test digits",
    }
    for name, label in labels.items():
        left.plot(epochs, [row[name] for row in rows], "o-", label=label)
    left.set(title="Loss", ylabel="mean cross-entropy (nats)", yscale="log")
    left.legend()
    accuracies = [100 * row["test_accuracy"] for row in rows]
    right.plot(epochs, accuracies, "o-", color="C1", label="test digits")
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
    mistakes = counts.clone().fill_diagonal_(0)  # the diagonal would outshine all else
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
    """Draw images, uint8 (N, 28, 28), in rows of eight, each with a title above it."""
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
    """Draw up to 40 digits that were misread, the most confident first.

    Takes the digits and the probabilities that the network gave them, float (N, 10).
    """
    worst, confidence, read = find_mistakes(digits, probabilities)
    titles = [f"{digits.labels[i]} → {read[i]} ({confidence[i]:.1%})" for i in worst[:40]]
    heading = f"The most confident of {len(worst)} misses: true digit → read as (confidence)"
    return plot_digits(digits.images[worst[:40]], titles, heading)


def find_mistakes(digits: Digits, probabilities: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return which digits were misread, the most confident first, and all confidences and answers.

    Takes the probabilities that the network gave the digits, float (N, 10).
    """
    confidence, read = probabilities.max(dim=1)
    misses = (read != digits.labels).nonzero().flatten()
    return misses[confidence[misses].argsort(descending=True)], confidence, read


def plot_reasons(model: nn.Module, digits: Digits, probabilities: torch.Tensor) -> Figure:
    """Draw which ink spoke for the wrong digit, and for the true one, in four confident mistakes.

    Takes the network on the CPU, the digits, and the probabilities it gave them, float (N, 10).
    """
    worst, confidence, read = find_mistakes(digits, probabilities)
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    figure.suptitle("Blue ink spoke for the digit, red ink against it")
    rows = figure.subplots(2, 4)
    for axes in rows.flat:
        axes.axis("off")
    for i, columns in zip(worst[:4].tolist(), rows.T, strict=False):
        spoke = occlude(model, digits.images[i])
        true, wrong = int(digits.labels[i]), int(read[i])
        titles = f"read as {wrong} ({confidence[i]:.1%})", f"in truth a {true}"
        for axes, digit, title in zip(columns, (wrong, true), titles, strict=True):
            limit = float(spoke[digit].abs().max())
            axes.imshow(digits.images[i], cmap="Greys", alpha=0.4)
            strength = (spoke[digit].abs() / limit).numpy()
            axes.imshow(spoke[digit], cmap="RdBu", vmin=-limit, vmax=limit, alpha=strength)
            axes.set_title(title)
    return figure


@torch.inference_mode()
def occlude(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Return how much each pixel spoke for each of the ten digits: float (10, 28, 28).

    This is occlusion (Zeiler and Fergus 2014). Squares of the image, uint8 (28, 28), are erased in
    turn. A pixel counts by its ink, and by how far the log-odds of the digit fall without the
    squares around it, on average. Where they rise, the pixel spoke against the digit.
    """
    starts = range(0, IMAGE_SIZE - SQUARE + 1, STEP)
    squares = torch.zeros(len(starts), len(starts), IMAGE_SIZE, IMAGE_SIZE)
    for row, top in enumerate(starts):
        for column, left in enumerate(starts):
            squares[row, column, top : top + SQUARE, left : left + SQUARE] = 1
    squares = squares.flatten(0, 1)  # (169, 28, 28)
    logits = model(normalize(torch.cat([image[None], image * (1 - squares)])))  # (170, 10)
    itself = torch.eye(NUM_CLASSES, dtype=torch.bool)
    others = logits[:, None].masked_fill(itself, -math.inf).logsumexp(dim=2)  # (170, 10)
    odds = logits - others
    drops = odds[0] - odds[1:]  # (169, 10)
    spoke = torch.einsum("sd,shw->dhw", drops, squares) / squares.sum(dim=0)
    return spoke * (image / 255)


def save_figure(path: Path, figure: Figure, data_name: str) -> None:
    """Write a figure as PNG, atomically, with the name of the data below it."""
    figure.supxlabel(f"data: {data_name}", fontsize=8, color="0.4")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)  # with Agg, which needs no display
    write_atomically(path, buffer.getvalue())
