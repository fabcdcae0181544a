"""Files that are written whole or not at all, with a checksum; and the checkpoint of the network.

The checksum finds accidents: a cut download, a flipped bit. Against a file that was made to do
harm there is another rule: tensors and plain values are read, and nothing is executed.
"""

import hashlib
import io
import json
import os
import struct
import warnings
import zipfile

import torch
import torch.nn as nn

from model import MNISTClassifier
from reading.files import open_regular, write_atomically

CHECKPOINT_FORMAT = "mnist-classifier"
FORMAT_VERSION = 2
CHECKSUM_SIZE = 64  # bytes of a SHA-256 in hexadecimal
MAX_FILE_SIZE = 100_000_000  # bytes; ours have under 10 million


class CheckpointError(ValueError):
    """The file is not one that this project wrote, or not for this network."""


def save_checkpoint(path: str | os.PathLike, model: nn.Module, metadata: dict) -> None:
    """Write the weights, and what is known about them, to one file in an existing folder.

    The same weights and metadata give the same bytes, whatever the file is called. Metadata are
    plain values (str, int, float, bool, None, list, dict): the file loads without executing
    anything. Raises OSError if it can't be written; what was there before is then still there.
    """
    weights = {
        name: tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    metadata = json.loads(json.dumps(metadata))  # a string held twice would be written once
    save_with_checksum(path, CHECKPOINT_FORMAT, {"metadata": metadata, "weights": weights})


def load_checkpoint(
    path: str | os.PathLike, device: str | torch.device = "cpu"
) -> tuple[MNISTClassifier, dict]:
    """Read what `save_checkpoint` wrote: the network, in evaluation mode, and the metadata.

    Raises:
        FileNotFoundError: there is no such file (OSError: it can't be read).
        CheckpointError: (a ValueError) the file is damaged, of another network, or no checkpoint.
        ValueError: there is no such device.
    """
    remedy = "python train.py makes a new one"
    try:
        content = load_with_checksum(path, CHECKPOINT_FORMAT)
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
        raise CheckpointError(
            f"{path}: its weights are not those of this network; {remedy}"
        ) from error
    if not all(tensor.isfinite().all() for tensor in model.parameters()):
        raise CheckpointError(f"{path}: some of its weights are not finite; {remedy}")
    try:
        return model.to(device).eval(), metadata
    except (RuntimeError, AssertionError):
        raise ValueError(f"there is no device {str(device)!r} here; use cpu") from None


def save_with_checksum(path: str | os.PathLike, format: str, content: dict) -> None:
    """Write tensors and plain values to a file that torch.load reads, with its SHA-256.

    torch.load checks none: a flipped bit would load as another weight. The checksum is the
    comment of the zip archive that a PyTorch file is. Raises OSError if it can't be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": format, "version": FORMAT_VERSION, **content}, buffer)
    archive = buffer.getvalue()[:-2] + struct.pack("<H", CHECKSUM_SIZE)  # the comment's length
    write_atomically(path, archive + hashlib.sha256(archive).hexdigest().encode())


def load_with_checksum(path: str | os.PathLike, format: str) -> dict:
    """Read the content of a file that `save_with_checksum` wrote.

    Raises CheckpointError, with its path, if it is damaged, carries code, or is of another
    format or version; OSError if it can't be read.
    """
    with open_regular(path) as file:
        data = file.read(MAX_FILE_SIZE + 1)
    archive, checksum = data[:-CHECKSUM_SIZE], data[-CHECKSUM_SIZE:]
    if len(data) > MAX_FILE_SIZE or hashlib.sha256(archive).hexdigest().encode() != checksum:
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
