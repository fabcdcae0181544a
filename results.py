"""What a run tells and leaves: a line for each epoch, the history, the plots, the model."""

import json
from pathlib import Path

import torch.nn as nn

from evaluation import evaluate
from reading.checkpoint import save_checkpoint
from reading.files import write_atomically
from training.data import Digits
from training.plots import plot_confusion_matrix, plot_history, plot_mistakes, save_figure


def print_epoch(row: dict, epochs: int) -> None:
    """Print one aligned line, below the heads of `print_settings`."""
    print(
        f"{row['epoch']:3}/{epochs:<3}  {row['learning_rate']:13.5f}  {row['train_loss']:10.4f}  "
        f"{row['test_loss']:9.4f}  {row['test_accuracy']:8.2%}  {row['misses']:6}  "
        f"{row['images_per_second']:8,.0f}  {row['seconds']:7.1f}",
        flush=True,
    )


def save_results(
    output_dir: Path, model: nn.Module, history: dict, test_digits: Digits, command: str
) -> None:
    """Write the history, the plots and the checkpoint."""
    told = json.dumps({"command": command, **history}, indent=1)
    write_atomically(output_dir / "history.json", told.encode())
    probabilities = evaluate(model, test_digits).probabilities
    figures = {
        "history": plot_history(history["epochs"]),
        "confusion_matrix": plot_confusion_matrix(test_digits.labels, probabilities.argmax(dim=1)),
        "mistakes": plot_mistakes(test_digits, probabilities),
    }
    for name, figure in figures.items():
        save_figure(output_dir / f"{name}.png", figure, test_digits.name)
    # The model comes last: when it is there, all is.
    save_checkpoint(output_dir / "mnist_cnn.pt", model, describe(history, command))


def describe(history: dict, command: str) -> dict:
    """Return what a checkpoint says of itself: nothing that differs between equal runs."""
    metadata = {"command": command, **history}
    epochs = metadata.pop("epochs")
    result = ("train_loss", "test_loss", "test_accuracy", "misses")
    metadata["result"] = {name: epochs[-1][name] for name in result}
    return metadata | {"epochs_finished": len(epochs)}


def print_results(history: dict, output_dir: Path, seconds: float) -> None:
    """Say how well it reads, where everything is, and how to use it."""
    last = history["epochs"][-1]
    print(
        f"\n{last['test_accuracy']:.2%} of {history['test_digits']:,} test digits read "
        f"correctly ({last['misses']} misses) after {seconds:.0f} s\n"
        f"data: {history['data']}\n"
        f"model, history and plots are in {output_dir}; to read a digit:\n\n"
        f"    from inference import MNISTPredictor\n"
        f"    print(MNISTPredictor({str(output_dir / 'mnist_cnn.pt')!r}).predict('digit.png'))"
    )
