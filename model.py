"""The network, the pixel values it expects, and the file its weights live in.

A convolutional network of 421,642 parameters that reads one handwritten digit from a
28x28 grayscale image, white ink on black, as MNIST stores it:

    conv 1->32 3x3, ReLU, 2x2 max pool
    conv 32->64 3x3, ReLU, 2x2 max pool
    dropout 25%
    fully connected 64*7*7->128, ReLU
    dropout 50%
    fully connected 128->10

Training and inference agree on what stands in this file, and on nothing else.
"""

import hashlib
import io
import json
import os
import platform
import secrets
import struct
import warnings
import zipfile
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

IMAGE_SIZE = 28  # pixels, both ways
NUM_CLASSES = 10
PIXEL_MEAN = 0.1307  # of the 60,000 training images, with pixel values scaled to 0..1
PIXEL_STD = 0.3081

CHECKPOINT_FORMAT = "mnist-classifier"
FORMAT_VERSION = 2
SEAL_SIZE = 64  # bytes of a SHA-256 in hexadecimal
MAX_FILE_SIZE = 100_000_000  # bytes; ours have under 10 million


class CheckpointError(ValueError):
    """The file is not a checkpoint that this project wrote for this network."""


class Conv2d(nn.Conv2d):
    """nn.Conv2d, which while it trains on a CPU hands on its output in oneDNN's own layout.

    There max pooling and its gradient are three times as fast: oneDNN keeps a byte for each
    maximum, where PyTorch's own pooling keeps an int64. `to_dense` brings a tensor back.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if not (self.training and x.device.type == "cpu" and trains_in_onednn(dtype)):
            return super().forward(x)
        if not x.is_mkldnn:
            x = x.to_mkldnn(dtype)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        # What nn.Conv2d comes to, but for its check that refuses bfloat16 in this layout.
        return torch.mkldnn_convolution(
            x, weight, bias, self.padding, self.stride, self.dilation, self.groups
        )


def trains_in_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels of its own for training in this dtype on this processor."""
    if torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
        return False
    if platform.machine() not in ("x86_64", "AMD64"):  # elsewhere its pooling may be a slow one
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def to_dense(x: torch.Tensor) -> torch.Tensor:
    """Bring a tensor back from oneDNN's layout, if it is in that."""
    return x.to_dense() if x.is_mkldnn else x


class Dropout(nn.Dropout):
    """nn.Dropout (Srivastava et al. 2014), which on a CPU draws a random byte for each value.

    nn.Dropout draws a double there, which takes a sixth of this network's training step. A
    byte is exact for a probability in 256ths.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape).ge_(round(256 * self.p))
        return x * (keep.to(x.dtype) / (1 - self.p))  # ge_ gives bytes: no slow bool


class MNISTClassifier(nn.Module):
    """Two convolutions and two fully connected layers: 421,642 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv2d(1, 32, kernel_size=3, padding=1)
        self.conv2 = Conv2d(32, 64, kernel_size=3, padding=1)
        self.dropout1 = Dropout(0.25)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.dropout2 = Dropout(0.5)
        self.fc2 = nn.Linear(128, NUM_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalized images, float (N, 1, 28, 28), to logits, float (N, 10)."""
        # ReLU and max pooling commute, since ReLU never changes which value is the largest.
        # Pooling first gives the same function with a quarter of the ReLU work. The stride is
        # written out, since in oneDNN's layout the gradient fails without it (torch 2.14).
        x = F.relu(F.max_pool2d(self.conv1(images), 2, 2))  # (N, 32, 14, 14)
        x = F.relu(F.max_pool2d(self.conv2(x), 2, 2))  # (N, 64, 7, 7)
        x = self.dropout1(to_dense(x).flatten(1))  # (N, 3136)
        x = F.relu(self.fc1(x))  # (N, 128)
        return self.fc2(self.dropout2(x))  # (N, 10)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Turn pixel values 0..255 into what the network reads: mean 0, standard deviation 1.

    Takes uint8, or float in the same range (a digit that was rotated or resized), of shape
    (N, 28, 28) or (N, 1, 28, 28); returns float32, (N, 1, 28, 28). Raises ValueError for
    another shape or dtype.
    """
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"pixels must be uint8 or float in 0..255, not {images.dtype}")
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if images.dim() != 4 or images.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
        shape = tuple(images.shape)
        raise ValueError(f"images must have shape (N, 28, 28) or (N, 1, 28, 28), not {shape}")
    return images.float().sub(255 * PIXEL_MEAN).div_(255 * PIXEL_STD)


def save_checkpoint(path: str | os.PathLike, model: nn.Module, metadata: dict) -> None:
    """Write the weights, and what is known about them, to one file in an existing folder.

    The same weights and metadata give the same bytes, whatever the file is called. The
    metadata holds plain values only (str, int, float, bool, None, list, dict), so that the
    file loads without executing anything. Raises OSError if the file can't be written; one
    that was there before is then still there.
    """
    weights = {
        name: tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    metadata = json.loads(json.dumps(metadata))  # a string held twice would be written once
    save_sealed(path, CHECKPOINT_FORMAT, {"metadata": metadata, "weights": weights})


def load_checkpoint(
    path: str | os.PathLike, device: str | torch.device = "cpu"
) -> tuple[MNISTClassifier, dict]:
    """Read what `save_checkpoint` wrote: the network, in evaluation mode, and the metadata.

    Only tensors and plain values are read: a file that carries code is refused, and the code
    never runs.

    Raises:
        FileNotFoundError: there is no such file (OSError: it can't be read).
        CheckpointError: (a ValueError) the file is damaged, of another network, or no checkpoint.
        ValueError: there is no such device.
    """
    remedy = "python train.py makes a new one"
    try:
        with open(path, "rb") as file:
            content = unseal(file.read(MAX_FILE_SIZE + 1), path, CHECKPOINT_FORMAT)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such checkpoint; python train.py makes one") from None
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {remedy}") from error.__cause__
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
        model = MNISTClassifier()
    try:
        model.load_state_dict(content["weights"])
        metadata = dict(content["metadata"])
    except Exception as error:  # other names, other shapes, no dict at all
        raise CheckpointError(f"{path}: its weights do not fit this network; {remedy}") from error
    if not all(tensor.isfinite().all() for tensor in model.parameters()):
        raise CheckpointError(f"{path}: some of its weights are not finite; {remedy}")
    try:
        return model.to(device).eval(), metadata
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {str(device)!r} here; use cpu") from None


def save_sealed(path: str | os.PathLike, format: str, content: dict) -> None:
    """Write tensors and plain values to a file that torch.load reads, sealed with its SHA-256.

    torch.load checks no digest: a flipped bit would load as another weight. The digest is the
    comment of the zip archive that a PyTorch file is. Raises OSError if it can't be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": format, "version": FORMAT_VERSION, **content}, buffer)
    archive = buffer.getvalue()[:-2] + struct.pack("<H", SEAL_SIZE)  # the comment's length
    write_atomically(path, archive + hashlib.sha256(archive).hexdigest().encode())


def unseal(data: bytes, path: str | os.PathLike, format: str) -> dict:
    """Read the content of a file that `save_sealed` wrote.

    Raises CheckpointError, with its path, if it is damaged, carries code, or is of another
    format or version.
    """
    archive, seal = data[:-SEAL_SIZE], data[-SEAL_SIZE:]
    if len(data) > MAX_FILE_SIZE or hashlib.sha256(archive).hexdigest().encode() != seal:
        raise CheckpointError(f"{path}: damaged, or not a file of this project")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as entries:
            # What PyTorch writes is not compressed: more than there is would be a zip bomb.
            if sum(entry.file_size for entry in entries.infolist()) > len(data):
                raise zipfile.BadZipFile("its entries are larger than the file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the one line below says it all
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found = content["format"], content["version"]
    except Exception as error:  # half a dozen types, depending on what the file is instead
        raise CheckpointError(f"{path}: damaged, or not a file of this project") from error
    if found != (format, FORMAT_VERSION):
        expected = f"{format!r}, version {FORMAT_VERSION}"
        raise CheckpointError(f"{path}: it holds {found[0]!r}, version {found[1]}, not {expected}")
    return content


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a file so that, whatever goes wrong, its path holds the old content or the new.

    Raises OSError, with that path, if the file can't be written; no stray file stays behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the bytes are on the disk before the name points to them
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
