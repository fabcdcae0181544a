"""Checkpoints: the weights of the network, and what is known about them, in one file.

A file is what torch.save makes of tensors and plain values. It is read with weights_only=True:
nothing in it is executed. The archive's own checksums (CRC-32) find accidents, such as a cut
download or a flipped bit; torch.load itself compares none of them.
"""

import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable

import torch
import torch.nn as nn

from model import MNISTClassifier
from reading.devices import choose_device
from reading.files import open_regular, write_atomically

CHECKPOINT_FORMAT = "mnist-classifier"
FORMAT_VERSION = 2
MAX_FILE_SIZE = 100_000_000  # bytes; ours have under 10 million


class CheckpointError(ValueError):
    """The file is damaged, no checkpoint, or not one of this network."""


def save_checkpoint(path: str | os.PathLike, model: nn.Module, history: dict) -> None:
    """Write the weights, and the history of how they came about, to one file.

    Of the history's "rows", the last result is kept, and nothing that differs between equal runs,
    which so give the same bytes. The rest are plain values. Raises OSError if the file can't be
    written; what was there before is then still there.
    """
    weights = {
        name: tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in plain_names(model.state_dict()).items()
    }
    metadata = {name: value for name, value in history.items() if name != "rows"}
    if rows := history.get("rows"):
        result = ("train_loss", "test_loss", "test_accuracy", "misses")
        metadata["result"] = {name: rows[-1][name] for name in result}
        metadata["epochs_finished"] = len(rows)
    metadata = json.loads(json.dumps(metadata))  # a string held twice would be written once
    save_content(path, CHECKPOINT_FORMAT, {"metadata": metadata, "weights": weights})


def load_checkpoint(
    path: str | os.PathLike, device: str | torch.device = "cpu"
) -> tuple[MNISTClassifier, dict]:
    """Read a checkpoint: the network, in evaluation mode, and the metadata.

    A state dict of this network that was saved by itself, torch.save(model.state_dict(), path),
    is one without metadata.

    Raises:
        FileNotFoundError: there is no such file (OSError: it can't be read).
        CheckpointError: (a ValueError) the file is damaged, of another network, or no checkpoint.
        ValueError: the device can't be used.
    """
    remedy = "python train.py makes a new one"
    try:
        content = read_content(path)
        if "format" in content:
            check_format(path, content, CHECKPOINT_FORMAT)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such checkpoint; python train.py makes one") from None
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {remedy}") from error.__cause__
    weights = content.get("weights") if "format" in content else plain_names(content)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
        model = MNISTClassifier()
    try:
        model.load_state_dict(weights)
        metadata = dict(content.get("metadata", {}))
    except Exception as error:  # other names or shapes, or no tensors at all
        reason = str(error).splitlines()[-1].strip()[:200]
        raise CheckpointError(f"{path}: not for this network ({reason}); {remedy}") from error
    if not all(tensor.isfinite().all() for tensor in model.parameters()):
        raise CheckpointError(f"{path}: some of its weights are not finite; {remedy}")
    return model.to(choose_device(str(device))).eval(), metadata


def plain_names(weights: dict) -> dict:
    """Return weights by the names that they have outside DataParallel and torch.compile."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(name)): weights[name] for name in weights}


def save_content(path: str | os.PathLike, format: str, content: dict) -> None:
    """Write tensors and plain values to a file that torch.load reads."""
    buffer = io.BytesIO()
    torch.save({"format": format, "version": FORMAT_VERSION, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_content(path: str | os.PathLike, format: str) -> dict:
    """Read what `save_content` wrote; CheckpointError if it is damaged or of another format."""
    content = read_content(path)
    check_format(path, content, format)
    return content


def load_network(make: Callable[[], nn.Module], path: str | os.PathLike, format: str) -> nn.Module:
    """Return a network, in evaluation mode, with the weights that `save_content` wrote.

    Raises FileNotFoundError, or CheckpointError if the file has none for it.
    """
    weights = load_content(path, format).get("weights")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
        network = make().eval()
    try:
        network.load_state_dict(weights)
    except Exception as error:  # other names or shapes, or no tensors at all
        reason = str(error).splitlines()[-1].strip()[:200]
        raise CheckpointError(f"{path}: not for this network ({reason})") from error
    return network.to(memory_format=torch.channels_last)


def read_content(path: str | os.PathLike) -> dict:
    """Read a dict of tensors and plain values; CheckpointError where the file holds none."""
    with open_regular(path) as file:
        data = file.read(MAX_FILE_SIZE)  # a longer one is cut, and then damaged
    try:
        verified = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(verified, "w") as copy:
            # What PyTorch writes is not compressed: more than there is would be a zip bomb.
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise ValueError("its entries are larger than the file")
            # PyTorch gets what was verified, since it may find another content in a damaged file.
            for entry in archive.infolist():
                copy.writestr(entry.filename, archive.read(entry))  # read compares the CRC-32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the one line below says it all
            verified.seek(0)
            content = torch.load(verified, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError("it holds no dict")
        return content
    except Exception as error:  # half a dozen types, depending on what the file is instead
        reason = "damaged, or no PyTorch file of weights (torch.save(model.state_dict(), path))"
        raise CheckpointError(f"{path}: {reason}") from error


def check_format(path: str | os.PathLike, content: dict, format: str) -> None:
    """Raise CheckpointError if content is of another format or version."""
    found = content.get("format"), content.get("version")
    if found != (format, FORMAT_VERSION):
        expected = f"{format!r}, version {FORMAT_VERSION}"
        raise CheckpointError(f"{path}: it holds {found[0]!r}, version {found[1]}, not {expected}")
