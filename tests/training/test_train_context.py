"""train_context.py: a short training makes weights that load, the same ones for the same seed."""

import numpy as np
import pytest
import torch

from reading.checkpoint import load_content
from reading.context import CONTEXT_FORMAT, WINDOW, load_context_network
from training.data import load_sample
from training.strokes import are_strokes
from training.train_context import Lines, main

ARGUMENTS = ["--sample", "--lines", "24", "--evaluate", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights from three steps."""
    path = tmp_path_factory.mktemp("context") / "context.pt"
    assert main([*ARGUMENTS, "--workers", "0", "--output", str(path)]) == 0
    return path


def test_a_short_training_makes_weights(trained):
    content = load_content(trained, CONTEXT_FORMAT)
    assert content["metadata"]["command"].startswith("python -m training.train_context --sample")
    with torch.inference_mode():
        assert load_context_network(trained)(torch.zeros(3, 2, *WINDOW)).shape == (3, 11)


def test_the_same_seed_gives_the_same_weights_with_another_number_of_workers(trained, tmp_path):
    assert main([*ARGUMENTS, "--workers", "1", "--output", str(tmp_path / "context.pt")]) == 0
    first, again = (
        load_content(path, CONTEXT_FORMAT)["weights"] for path in (trained, tmp_path / "context.pt")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_lines_are_digits_and_pieces():
    lines = Lines(load_sample(False), 0, 30)
    for windows, wholeness, labels in map(lines.__getitem__, range(len(lines))):
        assert windows.dtype == np.uint8 and windows.shape == (len(labels), 2, *WINDOW)
        assert ((wholeness >= 0) & (wholeness <= 1)).all()
        assert ((labels >= 0) & (labels <= 9)).all()
    assert sum((lines[i][1] == 1).any() for i in range(len(lines))) > 20
    with pytest.raises(IndexError):
        lines[len(lines)]


def test_scenes_are_written_with_digits_that_are_their_strokes():
    digits = load_sample(False)
    n_clear = int(are_strokes(digits.images).sum())
    assert len(Lines(digits, 0, 1).hands.digits) == n_clear < len(digits)


def test_nonsense_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as refused:
        main([*ARGUMENTS, "--lines", "0"])
    assert refused.value.code == 2 and capsys.readouterr().err.count("\n") == 1
