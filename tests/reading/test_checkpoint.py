"""checkpoint.py: files written whole or not at all, and the checkpoint of the network."""

import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import torch.nn as nn

import train
from model import MNISTClassifier
from reading.checkpoint import (
    CHECKSUM_SIZE,
    FORMAT_VERSION,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from reading.files import write_atomically
from training.data import PROJECT_DIR


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    model = MNISTClassifier().to(memory_format=torch.channels_last)
    metadata = {"data": "none", "numbers": [1, 2.5, None, True], "nested": {"a": "b"}}
    save_checkpoint(tmp_path / "a.pt", model, metadata)
    state = torch.get_rng_state()
    loaded, loaded_metadata = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(torch.get_rng_state(), state)  # loading takes no random numbers
    assert loaded_metadata == metadata
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_equal_weights_and_metadata_give_equal_bytes(tmp_path):
    model = MNISTClassifier()
    text = "a text"
    save_checkpoint(tmp_path / "a.pt", model, {"x": text, "y": text})
    other = {"x": "".join(text), "y": " ".join(["a", "text"])}  # equal, but other objects
    model.to(memory_format=torch.channels_last)  # as training holds them
    save_checkpoint(tmp_path / "another name.pt", model, other)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another name.pt").read_bytes()


class RunsCode:
    """Unpickling this creates a file."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return open, (str(self.proof), "w")


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def checked(content) -> bytes:
    """Return what save_with_checksum writes, for contents that it would never be given."""
    archive = saved(content)[:-2] + struct.pack("<H", CHECKSUM_SIZE)
    return archive + hashlib.sha256(archive).hexdigest().encode()


OURS = {"format": "mnist-classifier", "version": FORMAT_VERSION, "metadata": {}}


def with_weights(**changes) -> bytes:
    return checked(OURS | {"weights": MNISTClassifier().state_dict() | changes})


def zip_bomb() -> bytes:
    """A checkpoint whose weights are 200 MB of zeros, deflated to 200 kB."""
    source = io.BytesIO(saved(OURS | {"weights": {"fc2.bias": torch.zeros(10)}}))
    bomb = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = bytes(200_000_000) if "/data/" in entry.filename else old.read(entry)
            new.writestr(entry.filename, data)
    archive = bomb.getvalue()[:-2] + struct.pack("<H", CHECKSUM_SIZE)
    return archive + hashlib.sha256(archive).hexdigest().encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, or not a file of this project"),
        (b"hello", "damaged, or not a file of this project"),
        (saved(nn.Linear(2, 2).state_dict()), "damaged, or not a file of this project"),
        (checked([1, 2]), "damaged, or not a file of this project"),
        (checked(OURS | {"version": 99}), "version 99, not"),
        (checked(OURS | {"format": "another"}), "it holds 'another'"),
        (
            checked(OURS | {"weights": nn.Linear(784, 10).state_dict()}),
            "are not those of this network",
        ),
        (with_weights(**{"fc2.weight": torch.zeros(11, 128)}), "are not those of this network"),
        (with_weights(**{"fc1.bias": torch.full((128,), torch.nan)}), "are not finite"),
        (with_weights(**{"fc2.bias": torch.full((10,), torch.inf)}), "are not finite"),
    ],
)
def test_what_is_no_checkpoint_of_ours_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert "train.py" in text
    assert "\n" not in text


def test_a_checkpoint_truncated_anywhere_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pt", MNISTClassifier(), {})
    content = (tmp_path / "a.pt").read_bytes()
    for size in [*range(0, len(content), 4096), len(content) - 1]:
        (tmp_path / "a.pt").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(tmp_path / "a.pt")


def test_a_checkpoint_with_any_byte_altered_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pt", MNISTClassifier(), {"a": "b"})
    content = (tmp_path / "a.pt").read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, len(content), 300):
        altered = bytearray(content)
        altered[place] ^= random.integers(1, 256)
        (tmp_path / "a.pt").write_bytes(altered)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(tmp_path / "a.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    (tmp_path / "bomb.pt").write_bytes(zip_bomb())
    code = (
        "import sys, checkpoint\n"
        "def highest():\n"
        "    [line] = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "    return int(line.split()[1])\n"
        "before = highest()\n"
        "try:\n    checkpoint.load_checkpoint(sys.argv[1])\n"
        "except checkpoint.CheckpointError:\n    print((highest() - before) // 1000)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.pt")]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True)
    assert int(done.stdout) < 100, done.stderr  # MB


@pytest.mark.parametrize("write", [pickle.dumps, saved, checked])
def test_code_in_a_checkpoint_never_runs(tmp_path, write):
    proof = tmp_path / "the code ran"
    (tmp_path / "bad.pt").write_bytes(write(OURS | {"metadata": RunsCode(proof)}))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "bad.pt")
    assert not proof.exists()


def test_a_missing_checkpoint_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such checkpoint.*train\.py"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(OSError, match=str(tmp_path)):
        load_checkpoint(tmp_path)


def test_a_device_that_is_not_there_is_a_value_error(checkpoint):
    missing = "cuda:77"
    with pytest.raises(ValueError, match="cuda:77"):
        load_checkpoint(checkpoint, missing)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, full_disk):
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")
    with full_disk(1000), pytest.raises(OSError, match=r"a\.pt"):
        write_atomically(path, bytes(2000))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_a_link_stays_a_link_and_pipes_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "inner").mkdir()
    link, target, pipe = tmp_path / "link", tmp_path / "inner" / "target", tmp_path / "pipe"
    link.symlink_to(target)
    for content in (b"new", b"newer"):  # there is no target at first
        write_atomically(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()
    (tmp_path / "null").symlink_to(os.devnull)  # the device itself is not put at risk
    write_atomically(tmp_path / "null", b"nowhere")
    assert (tmp_path / "null").is_char_device()
    with pytest.raises(OSError, match="/dev/full"):
        write_atomically("/dev/full", b"nowhere")


def test_a_folder_where_an_output_goes_is_said_before_training(tmp_path, capsys):
    for name in train.OUTPUTS:
        (tmp_path / name).mkdir()
        assert train.main(["--sample", "--output-dir", str(tmp_path)]) == 1
        (tmp_path / name).rmdir()
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert f"{tmp_path / name}: a folder, where a file goes" in err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
