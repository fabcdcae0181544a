"""The network as ONNX, for ONNX Runtime and others: pixels in, probabilities out."""

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn as nn

from model import IMAGE_SIZE, MNISTClassifier, normalize
from reading.files import write_atomically
from training.data import load_sample

MOST_APART = 1e-4  # of probabilities: what another order of the same additions may come to


class PixelsToProbabilities(nn.Module):
    """The network, with what is done before and after it."""

    def __init__(self, model: MNISTClassifier, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (N, 28, 28), white on black, to probabilities, float32 (N, 10)."""
        return (self.model(normalize(pixels)) / self.temperature).softmax(dim=1)


def to_onnx(model: MNISTClassifier, temperature: float) -> bytes:
    """Return the network as the content of an ONNX file; it takes onnx and onnxscript.

    Its input is `pixels`, uint8 (N, 28, 28), white on black, as MNIST has them, and its output
    `probabilities`, float32 (N, 10), for any N.
    """
    program = torch.onnx.export(
        PixelsToProbabilities(model, temperature).eval(),
        (torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8),),
        dynamo=True,
        verbose=False,
        input_names=["pixels"],
        output_names=["probabilities"],
        dynamic_shapes=({0: "N"},),
    )
    return program.model_proto.SerializeToString()


def write_onnx(
    path: str | os.PathLike,
    model: MNISTClassifier,
    temperature: float,
    predict_batch: Callable[[Sequence[np.ndarray]], list[tuple]],
) -> float:
    """Write the network as `to_onnx` makes it, once ONNX Runtime reads the sample as it does.

    Takes `MNISTPredictor.predict_batch`, or a function like it. Returns how far the
    probabilities are apart at most. Raises ValueError if a package is missing or the answers
    are others, and OSError if the file can't be written: nothing is written then.
    """
    try:
        import onnx  # noqa: F401  (PyTorch's exporter takes this, and onnxscript)
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        remedy = "pip install onnx onnxscript onnxruntime"
        raise ValueError(f"{path}: ONNX takes packages that are not here: {remedy}") from error
    content = to_onnx(model, temperature)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    pixels = load_sample(train=False).images.numpy()
    [found] = session.run(["probabilities"], {"pixels": pixels})
    expected = np.array([probabilities for _, _, probabilities in predict_batch(pixels)])
    apart = float(np.abs(found - expected).max())
    if not apart <= MOST_APART or (found.argmax(axis=1) != expected.argmax(axis=1)).any():
        raise ValueError(f"{path}: not written: ONNX Runtime answers otherwise than PyTorch here")
    write_atomically(path, content)
    return apart
