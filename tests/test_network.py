"""model.py: the network, the pixel contract, and the checkpoint file."""

import hashlib
import io
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import model as model_module
from model import (
    FORMAT_VERSION,
    SEAL_SIZE,
    CheckpointError,
    MNISTClassifier,
    load_checkpoint,
    normalize,
    save_checkpoint,
    write_atomically,
)
from train import PROJECT_DIR


def test_the_architecture_is_exact():
    shapes = {name: tuple(tensor.shape) for name, tensor in MNISTClassifier().named_parameters()}
    assert shapes == {
        "conv1.weight": (32, 1, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "fc1.weight": (128, 64 * 7 * 7),
        "fc1.bias": (128,),
        "fc2.weight": (10, 128),
        "fc2.bias": (10,),
    }
    assert sum(parameter.numel() for parameter in MNISTClassifier().parameters()) == 421_642


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_network_computes_the_layers_in_the_order_of_the_readme(memory_format):
    torch.manual_seed(0)
    model = MNISTClassifier().eval().to(memory_format=memory_format)
    images = torch.randn(3, 1, 28, 28)
    x = F.max_pool2d(F.relu(F.conv2d(images, model.conv1.weight, model.conv1.bias, padding=1)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, model.conv2.weight, model.conv2.bias, padding=1)), 2)
    x = F.relu(F.linear(x.reshape(3, -1), model.fc1.weight, model.fc1.bias))
    expected = F.linear(x, model.fc2.weight, model.fc2.bias)
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("n", [5, 0])  # torchrun may leave a process no digits of a batch
def test_in_training_it_computes_the_same_layers_and_their_gradients(dtype, tolerance, n):
    torch.manual_seed(0)
    model = MNISTClassifier().train().to(memory_format=torch.channels_last)
    model.dropout1.p = model.dropout2.p = 0.0
    images = torch.randn(n, 1, 28, 28, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(images)
    logits.float().square().sum().backward()
    found = [logits.float(), images.grad, *(parameter.grad for parameter in model.parameters())]

    plain, images = MNISTClassifier(), images.detach().clone().requires_grad_()
    plain.load_state_dict(model.state_dict())
    x = F.max_pool2d(F.relu(F.conv2d(images, plain.conv1.weight, plain.conv1.bias, padding=1)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, plain.conv2.weight, plain.conv2.bias, padding=1)), 2)
    logits = plain.fc2(F.relu(plain.fc1(x.reshape(n, 64 * 7 * 7))))
    logits.square().sum().backward()
    expected = [logits, images.grad, *(parameter.grad for parameter in plain.parameters())]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_trains_in_other_dtypes_and_compiled(dtype):
    model = MNISTClassifier().train().to(dtype)
    model(torch.randn(2, 1, 28, 28, dtype=dtype)).sum().backward()
    assert model.conv1.weight.grad.dtype == dtype
    # backend="eager" traces the network as any compilation would, and needs no compiler.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert compiled(torch.randn(2, 1, 28, 28, dtype=dtype)).shape == (2, 10)


def test_dropout_is_25_percent_before_and_50_percent_after_the_first_linear_layer():
    model = MNISTClassifier().train()
    seen = {}
    for name in ("fc1", "fc2"):
        layer = getattr(model, name)
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
    nn.init.zeros_(model.conv2.weight)
    nn.init.ones_(model.conv2.bias)  # every value ahead of the first dropout is 1
    nn.init.zeros_(model.fc1.weight)
    nn.init.ones_(model.fc1.bias)  # and ahead of the second
    model(torch.randn(200, 1, 28, 28))
    for name, dropped in (("fc1", 0.25), ("fc2", 0.5)):
        values = seen[name]
        assert (values == 0).float().mean().item() == pytest.approx(dropped, abs=0.015)
        kept = values[values != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - dropped)))


def test_dropout_is_seeded_differs_between_steps_and_is_off_in_evaluation():
    dropout = model_module.Dropout(0.25)
    x = torch.ones(7, 13)  # 91 values: no multiple of 8
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    dropout.eval()
    assert dropout(x) is x


def test_normalize_gives_the_training_set_mean_0_and_standard_deviation_1(mnist_dir):
    from train import load_mnist

    pixels = normalize(load_mnist(mnist_dir, train=True, download=False).images)
    assert pixels.mean().item() == pytest.approx(0, abs=1e-3)
    assert pixels.std().item() == pytest.approx(1, abs=1e-3)


def test_normalize_takes_both_shapes_and_keeps_its_input():
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    before = images.clone()
    result = normalize(images)
    assert result.shape == (5, 1, 28, 28)
    assert result.dtype == torch.float32
    assert torch.equal(normalize(images.unsqueeze(1)), result)
    assert torch.equal(normalize(images.float()), result)
    assert torch.equal(images, before)
    black, white = normalize(
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1).repeat(1, 28, 28)
    )
    assert black[0, 0, 0].item() == pytest.approx(-0.1307 / 0.3081, abs=1e-5)
    assert white[0, 0, 0].item() == pytest.approx((1 - 0.1307) / 0.3081, abs=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(28, 28, dtype=torch.uint8),
        torch.zeros(2, 3, 28, 28, dtype=torch.uint8),
        torch.zeros(2, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 28, 28, dtype=torch.int64),
    ],
)
def test_normalize_refuses_other_shapes_and_dtypes(images):
    with pytest.raises(ValueError, match=r"\(N, 28, 28\)|uint8"):
        normalize(images)


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


def sealed(content) -> bytes:
    """Return what save_sealed writes, for contents that it would never be given."""
    archive = saved(content)[:-2] + struct.pack("<H", SEAL_SIZE)
    return archive + hashlib.sha256(archive).hexdigest().encode()


OURS = {"format": "mnist-classifier", "version": FORMAT_VERSION, "metadata": {}}


def with_weights(**changes) -> bytes:
    return sealed(OURS | {"weights": MNISTClassifier().state_dict() | changes})


def zip_bomb() -> bytes:
    """A checkpoint whose weights are 200 MB of zeros, deflated to 200 kB."""
    source = io.BytesIO(saved(OURS | {"weights": {"fc2.bias": torch.zeros(10)}}))
    bomb = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = bytes(200_000_000) if "/data/" in entry.filename else old.read(entry)
            new.writestr(entry.filename, data)
    archive = bomb.getvalue()[:-2] + struct.pack("<H", SEAL_SIZE)
    return archive + hashlib.sha256(archive).hexdigest().encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, or not a file of this project"),
        (b"hello", "damaged, or not a file of this project"),
        (saved(nn.Linear(2, 2).state_dict()), "damaged, or not a file of this project"),
        (sealed([1, 2]), "damaged, or not a file of this project"),
        (sealed(OURS | {"version": 99}), "version 99, not"),
        (sealed(OURS | {"format": "another"}), "it holds 'another'"),
        (sealed(OURS | {"weights": nn.Linear(784, 10).state_dict()}), "do not fit this network"),
        (with_weights(**{"fc2.weight": torch.zeros(11, 128)}), "do not fit this network"),
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
        "import sys, model\n"
        "def highest():\n"
        "    [line] = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "    return int(line.split()[1])\n"
        "before = highest()\n"
        "try:\n    model.load_checkpoint(sys.argv[1])\n"
        "except model.CheckpointError:\n    print((highest() - before) // 1000)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.pt")]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True)
    assert int(done.stdout) < 100, done.stderr  # MB


@pytest.mark.parametrize("write", [pickle.dumps, saved, sealed])
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
