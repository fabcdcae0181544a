"""Write the page on which one draws digits and sees the network read them, with no Python behind.

    python -m apps.page                                     docs/draw.html, from the shipped weights
    python -m apps.page --checkpoint outputs/mnist_cnn.pt --output mine.html

The page is one file, which opens by a double click. It holds the weights (float16 in base64) and
the network in JavaScript: network.js is model.py, mnist.js brings a drawing to MNIST's geometry,
page.js shows the network at work, and the canvas is the notebook's canvas.js.
"""

import argparse
import base64
import hashlib
import html
import os
import sys
from pathlib import Path

import numpy as np
import torch

from apps.canvas import hash_source, read_sources
from inference import SHIPPED_WEIGHTS
from reading.checkpoint import load_checkpoint
from reading.files import exit_code, printable, write_atomically

PAGE = Path(__file__).resolve().parent.parent / "docs" / "draw.html"
COMMAND = "python -m apps.page"


def build_page(checkpoint: str | os.PathLike) -> str:
    """Return the page, with the weights of a checkpoint and what is known about them.

    Raises what `load_checkpoint` raises, and ValueError if a weight is too large for float16.
    """
    model, metadata = load_checkpoint(checkpoint)
    weights = torch.cat([tensor.flatten() for tensor in model.state_dict().values()])
    numbers = weights.half().numpy()
    if not np.isfinite(numbers).all():
        raise ValueError(f"{checkpoint}: a weight is too large for the page, which holds float16")
    data = numbers.astype("<f2").tobytes()
    functions = read_sources("mnist.js", "network.js")
    script = read_sources("canvas.js", "page.js")
    return read_sources("page.html").format(
        hashes=" ".join(hash_source(source) for source in (functions, script)),
        style=read_sources("canvas.css", "page.css"),
        min_confidence=metadata.get("min_confidence", 0),
        parameters=len(numbers),
        weights=html.escape(describe_weights(metadata, data)),
        numbers=base64.b64encode(data).decode(),
        functions=functions,
        script=script,
    )


def describe_weights(metadata: dict, numbers: bytes) -> str:
    """Say in a few sentences which weights these are: how they were trained, and how they read."""
    said = "The checkpoint does not say how these weights were trained."
    if "command" in metadata:
        said = f"These weights are what {metadata['command']} gave"
        if "data" in metadata:
            said += f" on {metadata['data']}"
        said += "."
    if result := metadata.get("result"):
        misses, accuracy = result["misses"], result["test_accuracy"]
        said += f" Of {metadata['test_digits']:,} test digits they read {accuracy:.2%} correctly"
        said += f" and {misses:,} wrongly."
    return f"{said} SHA-256 of the numbers: {hashlib.sha256(numbers).hexdigest()}"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(COMMAND, argparse.SUPPRESS, "Write the page to draw on.")
    parser.add_argument("--checkpoint", default=SHIPPED_WEIGHTS, help="weights, as train.py saves")
    parser.add_argument("--output", default=PAGE, type=Path, help="the page [docs/draw.html]")
    arguments = parser.parse_args(argv)

    def command() -> int:
        write_atomically(arguments.output, build_page(arguments.checkpoint).encode())
        print(f"{printable(str(arguments.output))}: written")
        return 0

    return exit_code(COMMAND, command)


if __name__ == "__main__":
    sys.exit(main())
