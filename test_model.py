"""Check the whole project in about twenty seconds: train, save, load, predict, draw.

    python test_model.py

Trains on the 4,000 bundled training digits, reads the 1,000 others through MNISTPredictor, and
exits with 1 if it reads fewer than 96% of them correctly. Needs no download and no network.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from inference import MNISTPredictor
from reading.checkpoint import save_checkpoint
from reading.files import exit_code
from train import Settings, train
from training.data import PROJECT_DIR, load_sample
from training.plots import plot_digits, save_figure

EPOCHS = 12
MIN_ACCURACY = 0.96


def main(argv: list[str] | None = None) -> int:
    """Run the check; return the exit code."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # an error is one line
        description=__doc__.splitlines()[0],
    )
    output_dir = PROJECT_DIR / "outputs" / "test_model"
    parser.add_argument("--output-dir", type=Path, default=output_dir, help="where results go")
    return exit_code("test_model.py", lambda: check(parser.parse_args(argv).output_dir))


def check(output_dir: Path) -> int:
    """Train, save, load, predict and draw; return 1 if too few digits were read correctly."""
    output_dir.mkdir(parents=True, exist_ok=True)
    checkpoint, picture = output_dir / "mnist_cnn.pt", output_dir / "predictions.png"
    started = time.perf_counter()
    training, digits = load_sample(train=True), load_sample(train=False)
    model, history = train(training, digits, Settings(epochs=EPOCHS))
    save_checkpoint(checkpoint, model, {"command": "python test_model.py"} | history)

    predictions = MNISTPredictor(checkpoint).predict_batch(digits.images)
    read = torch.tensor([prediction.digit for prediction in predictions])
    correct = int((read == digits.labels).sum())
    accuracy = correct / len(read)

    # All that were read wrongly, up to half of the picture, then the first that were right.
    wrong = (read != digits.labels).nonzero().flatten()[:20]
    right = (read == digits.labels).nonzero().flatten()[: 40 - len(wrong)]
    shown = torch.cat([wrong, right])
    titles = [
        f"{'✓' if read[i] == digits.labels[i] else '✗'} {digits.labels[i]} → {read[i]} "
        f"({predictions[i].confidence:.0%})"
        for i in shown
    ]
    heading = f"{correct} of {len(read)} read correctly: true digit → read as (confidence)"
    save_figure(picture, plot_digits(digits.images[shown], titles, heading), digits.name)

    passed = accuracy >= MIN_ACCURACY
    print(
        f"\n{'PASSED' if passed else 'FAILED'}: {accuracy:.2%} of {len(read):,} held-out digits "
        f"read correctly, {MIN_ACCURACY:.0%} expected, in {time.perf_counter() - started:.0f} s\n"
        f"model    {checkpoint}\npicture  {picture}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
