"""train_ink.py: a short training makes weights that load, and goes on after an interruption."""

import numpy as np
import pytest
import torch

from reading.checkpoint import load_content
from reading.ink import INK_FORMAT, InkNetwork, load_ink_network
from training.train_ink import fold_batch_norm, main, state_path

ARGUMENTS = ["--sample", "--scenes", "64", "--evaluate", "8", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights from two steps."""
    path = tmp_path_factory.mktemp("ink") / "ink.pt"
    assert main([*ARGUMENTS, "--output", str(path)]) == 0
    return path


def test_a_short_training_makes_weights(trained, capsys):
    content = load_content(trained, INK_FORMAT)
    assert content["metadata"]["command"].startswith("python -m training.train_ink --sample")
    assert not state_path(trained).exists()
    gray = torch.from_numpy(np.random.default_rng(0).random((1, 1, 64, 96), np.float32))
    with torch.inference_mode():
        assert load_ink_network(trained)(gray).shape == gray.shape


def test_the_same_seed_gives_the_same_weights(trained, tmp_path):
    assert main([*ARGUMENTS, "--output", str(tmp_path / "ink.pt")]) == 0
    first, again = (
        load_content(path, INK_FORMAT)["weights"] for path in (trained, tmp_path / "ink.pt")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_batch_normalization_is_folded():
    torch.manual_seed(0)
    network = InkNetwork(batch_norm=True)
    gray = torch.rand(2, 1, 64, 64)
    network(gray)  # moves the running statistics
    with torch.inference_mode():
        folded, expected = fold_batch_norm(network)(gray), network.eval()(gray)
    torch.testing.assert_close(folded, expected, atol=1e-4, rtol=1e-4)


def test_nothing_to_resume_is_said_in_one_line(tmp_path, capsys):
    assert main([*ARGUMENTS, "--resume", "--output", str(tmp_path / "ink.pt")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
