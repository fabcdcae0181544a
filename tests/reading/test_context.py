"""context.py: which segments of a line are digits, and what the network sees of them."""

import numpy as np
import pytest
import torch

from reading import context
from reading.checkpoint import CheckpointError, save_content
from reading.context import (
    CONTEXT_FORMAT,
    HEIGHT,
    WINDOW,
    draw_windows,
    load_context_network,
    see_segments,
)
from reading.ink import INK_WEIGHTS
from reading.segmentation import Page, Part
from training.data import load_sample
from training.train_context import Lines, stack


def make_part(top, left, height, width) -> Part:
    return Part(np.ones((height, width), bool), top, left)


def test_a_window_shows_the_segment_alone_and_in_its_line():
    ink = np.zeros((60, 200), np.float32)
    parts = [make_part(10, left, 2 * HEIGHT, HEIGHT) for left in (20, 60, 100)]
    for part in parts:
        ink[part.top : part.bottom, part.left : part.right] = 1
    windows = draw_windows(ink, 2 * HEIGHT, parts)
    assert windows.shape == (3, 2, *WINDOW) and windows.dtype == np.float32
    for alone, line in windows:
        assert alone.sum() == pytest.approx(HEIGHT * HEIGHT / 2, rel=0.1)
        rows, columns = np.nonzero(alone > 0.5)
        assert abs(rows.mean() + 0.5 - WINDOW[0] / 2) <= 1
        assert abs(columns.mean() + 0.5 - WINDOW[1] / 2) <= 1
        assert (line[alone > 0.5] > 0.5).all() and line.sum() > 1.5 * alone.sum()


def test_a_segment_larger_than_its_window_or_at_an_edge_is_cut():
    ink = np.ones((100, 300), np.float32)
    for part in (make_part(0, 0, 100, 300), make_part(0, 0, 3, 3), make_part(97, 297, 3, 3)):
        windows = draw_windows(ink, 20, [part])
        assert 0 < windows.max() <= 1 and windows.min() >= 0


def test_the_network_tells_digits_from_pieces_on_lines_that_it_has_not_seen():
    lines = Lines(load_sample(False), 7, 60)
    windows, wholeness, labels = stack([lines[i] for i in range(len(lines))])
    whole = wholeness == 1
    assert (wholeness == 0).mean() > 0.5 and whole.mean() > 0.05
    with torch.inference_mode():
        logits = load_context_network()(torch.from_numpy(windows).float() / 255).numpy()
    found = logits[:, 0] > 0
    assert found[whole].mean() > 0.85 and found[wholeness == 0].mean() < 0.05
    assert (logits[whole, 1:].argmax(axis=1) == labels[whole]).mean() > 0.9


def test_a_comma_is_no_digit_and_a_digit_beside_it_is():
    sample = load_sample(False)
    ink = np.zeros((80, 240), np.float32)
    digits = [sample.images[sample.labels == n][0].numpy()[4:24, 4:24] for n in (2, 3, 5)]
    for left, digit in zip((20, 80, 170), digits, strict=True):
        ink[10:50, left : left + 40] = np.kron(digit, np.ones((2, 2))) / 255
    ink[42:58, 145:151] = 1  # behind the second digit
    parts = sorted(Page(ink, 1.0).parts, key=lambda part: part.left)
    logits, digits = see_segments(ink, 40, parts)
    assert len(parts) == 4 and logits[[0, 1, 3]].min() > 0 > logits[2]
    assert digits[[0, 1, 3]].argmax(axis=1).tolist() == [2, 3, 5]
    np.testing.assert_allclose(np.exp(digits).sum(axis=1), 1, atol=1e-5)


def test_without_weights_it_can_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(context, "CONTEXT_WEIGHTS", tmp_path / "none.pt")
    for parts in ([make_part(0, 0, 20, 10)], []):
        logits, digits = see_segments(np.ones((20, 20), np.float32), 20, parts)
        assert logits.shape == (0,) and digits.shape == (0, 10)


def test_weights_of_another_kind_are_refused_in_words():
    with pytest.raises(CheckpointError, match="mnist-context"):
        load_context_network(INK_WEIGHTS)


def test_weights_of_another_shape_are_refused_in_words(tmp_path):
    path = tmp_path / "context.pt"
    save_content(path, CONTEXT_FORMAT, {"weights": {"hidden.weight": torch.zeros(2, 2)}})
    with pytest.raises(CheckpointError, match="not for this network"):
        load_context_network(path)
