"""Pictures of a training and of what came of it: Matplotlib figures, and the files they become."""

import io
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model import NUM_CLASSES
from reading.files import write_atomically
from training.data import Digits


def plot_history(history: dict) -> Figure:
    """Draw loss and accuracy over the epochs of `train`'s history."""
    epochs = history["rows"]
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
