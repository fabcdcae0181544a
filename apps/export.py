"""Write the network as ONNX, for ONNX Runtime and others: pixels in, probabilities out.

python -m apps.export mnist.onnx
"""

import argparse
import os
import sys

import numpy as np
import torch
import torch.nn as nn

from inference import SHIPPED_WEIGHTS, MNISTPredictor
from model import IMAGE_SIZE, MNISTClassifier, normalize
from reading.files import exit_code, printable, write_atomically
from training.data import load_sample

MAX_APART = 1e-4  # of probabilities: what another order of the same additions may come to


class PixelsToProbabilities(nn.Module):
    """The network, with what is done before and after it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (N, 28, 28), white on black, to probabilities, float32 (N, 10)."""
        return self.model(normalize(pixels)).softmax(dim=1)


def to_onnx(model: nn.Module) -> bytes:
    """Return a network, as model.py has it, as the content of an ONNX file.

    Its input is `pixels`, uint8 (N, 28, 28), white on black, as MNIST has them, and its output
    `probabilities`, float32 (N, 10), for any N.
    """
    stock = MNISTClassifier()
    stock.load_state_dict(model.state_dict())
    program = torch.onnx.export(
        PixelsToProbabilities(stock).eval(),
        (torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8),),
        dynamo=True,
        verbose=False,
        input_names=["pixels"],
        output_names=["probabilities"],
        dynamic_shapes=({0: "N"},),
    )
    return program.model_proto.SerializeToString()


def write_onnx(path: str | os.PathLike, predictor: MNISTPredictor) -> float:
    """Write the network as ONNX, if ONNX Runtime reads the bundled digits as we do.

    Returns the largest difference of the probabilities. Raises ValueError if a package is missing
    or the answers are others: nothing is written then.
    """
    try:
        import onnx  # noqa: F401  (PyTorch's exporter takes this, and onnxscript)
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        remedy = "pip install onnx onnxscript onnxruntime"
        raise ValueError(f"{path}: ONNX takes packages that are not here: {remedy}") from error
    content = to_onnx(predictor.model)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    pixels = load_sample(train=False).images.numpy()
    [found] = session.run(["probabilities"], {"pixels": pixels})
    expected = np.array([probabilities for _, _, probabilities in predictor.predict_batch(pixels)])
    apart = float(np.abs(found - expected).max())
    if not apart <= MAX_APART or (found.argmax(axis=1) != expected.argmax(axis=1)).any():
        raise ValueError(f"{path}: not written: ONNX Runtime answers otherwise than PyTorch here")
    write_atomically(path, content)
    return apart


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="export.py",
        usage=argparse.SUPPRESS,  # an error is one line
        description="Write the network as ONNX.",
    )
    parser.add_argument("path", metavar="mnist.onnx", help="the file to write")
    parser.add_argument("--checkpoint", default=SHIPPED_WEIGHTS, help="weights of train.py")

    def command() -> int:
        arguments = parser.parse_args(argv)
        write_onnx(arguments.path, MNISTPredictor(arguments.checkpoint))
        print(f"{printable(arguments.path)}: ONNX, reads the bundled digits alike")
        return 0

    return exit_code("export.py", command)


if __name__ == "__main__":
    sys.exit(main())
