"""checkpoint.py: the checkpoint of the network, and files that are damaged or another's."""

import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import torch.nn as nn

from model import MNISTClassifier
from reading.checkpoint import (
    FORMAT_VERSION,
    CheckpointError,
    load_checkpoint,
    load_content,
    save_checkpoint,
    save_content,
)
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


OURS = {"format": "mnist-classifier", "version": FORMAT_VERSION, "metadata": {}}


def with_weights(**changes) -> bytes:
    return saved(OURS | {"weights": MNISTClassifier().state_dict() | changes})


def zip_bomb() -> bytes:
    """A checkpoint whose weights are 200 MB of zeros, deflated to 200 kB."""
    source = io.BytesIO(saved(OURS | {"weights": {"fc2.bias": torch.zeros(10)}}))
    bomb = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = bytes(200_000_000) if "/data/" in entry.filename else old.read(entry)
            new.writestr(entry.filename, data)
    return bomb.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, or no PyTorch file"),
        (b"hello", "damaged, or no PyTorch file"),
        (saved([1, 2]), "damaged, or no PyTorch file"),
        (saved(nn.Linear(2, 2)), "damaged, or no PyTorch file"),  # a whole module, pickled
        (saved(OURS | {"version": 99}), "version 99, not"),
        (saved(OURS | {"format": "another"}), "it holds 'another'"),
        (saved(OURS), "not for this network"),
        (saved(nn.Linear(784, 10).state_dict()), "not for this network"),
        (with_weights(**{"fc2.weight": torch.zeros(11, 128)}), "fc2.weight"),
        (with_weights(**{"fc3.weight": torch.zeros(1)}), "fc3.weight"),
        (with_weights(**{"fc1.bias": "text"}), "not for this network"),
        (with_weights(**{"fc1.bias": torch.full((128,), torch.nan)}), "are not finite"),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_plain_state_dict_is_a_checkpoint(tmp_path, dtype):
    """torch.save(model.state_dict(), path), as every tutorial saves a network."""
    model = MNISTClassifier().to(dtype)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    loaded, metadata = load_checkpoint(tmp_path / "plain.pt")
    assert metadata == {}
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].float())


def test_a_wrapped_network_is_saved_and_loaded_by_its_own_names(tmp_path):
    model = MNISTClassifier()
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        save_checkpoint(tmp_path / "a.pt", wrapped, {})
        torch.save(wrapped.state_dict(), tmp_path / "plain.pt")
        for name in ("a.pt", "plain.pt"):
            loaded, _ = load_checkpoint(tmp_path / name)
            assert torch.equal(loaded.fc1.weight, model.fc1.weight)


def test_an_older_checkpoint_loads():
    """The weights that ship were written with a SHA-256 as the archive's comment."""
    model, metadata = load_checkpoint(PROJECT_DIR / "weights" / "mnist_cnn.pt")
    assert metadata["data"] == "MNIST"
    assert not model.training


def test_a_checkpoint_truncated_anywhere_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pt", MNISTClassifier(), {})
    content = (tmp_path / "a.pt").read_bytes()
    for size in [*range(0, len(content), 65536), len(content) - 1]:
        (tmp_path / "a.pt").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(tmp_path / "a.pt")


def test_a_file_altered_at_any_byte_is_refused_or_loads_the_same(tmp_path, capfd):
    """Every byte of a small file, in two ways: what the checksums leave out changes nothing."""
    path, content = tmp_path / "a.pt", {"numbers": torch.arange(20.0), "text": "abc", "n": [1, 2.5]}
    save_content(path, "a format", content)
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        for bits in (1, 0xFF):
            altered = bytearray(whole)
            altered[place] ^= bits
            path.write_bytes(altered)
            try:
                found = load_content(path, "a format")
            except CheckpointError:
                refused += 1
                continue
            assert torch.equal(found.pop("numbers"), content["numbers"])
            assert found == {"format": "a format", "version": FORMAT_VERSION, "text": "abc"} | {
                "n": [1, 2.5]
            }
    assert refused > len(whole)


def test_a_large_checkpoint_altered_anywhere_is_refused_or_loads_the_same(tmp_path):
    model = MNISTClassifier()
    save_checkpoint(tmp_path / "a.pt", model, {"a": "b"})
    content = (tmp_path / "a.pt").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for place in random.integers(0, len(content), 100):
        altered = bytearray(content)
        altered[place] ^= random.integers(1, 256)
        (tmp_path / "a.pt").write_bytes(altered)
        try:
            loaded, metadata = load_checkpoint(tmp_path / "a.pt")
        except CheckpointError:
            refused += 1
            continue
        assert metadata == {"a": "b"}
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name])
    assert refused > 90


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    (tmp_path / "bomb.pt").write_bytes(zip_bomb())
    code = (
        "import sys; from reading import checkpoint\n"
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


@pytest.mark.parametrize("write", [pickle.dumps, saved])
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
