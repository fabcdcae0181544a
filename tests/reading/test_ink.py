"""ink.py: the ink of digits with any pen, nothing where there is none, images of any size."""

import contextlib
import os

import numpy as np
import pytest
import torch
from scipy import ndimage

from inference import MNISTPredictor
from reading.checkpoint import CheckpointError
from reading.ink import INK_WEIGHTS, InkNetwork, find_ink, load_ink_network
from training.data import load_sample
from training.papers import SIZE, coverage
from training.scenes import draw_scene, load_hands
from training.strokes import digit_strokes

N_DIGITS = 500 if os.environ.get("SLOW") else 60


@pytest.fixture(scope="module")
def strokes() -> list[np.ndarray]:
    """The strokes of some digits, each 1 high or wide."""
    return digit_strokes(load_sample(False).images[:N_DIGITS])


def n_pieces(mask: np.ndarray) -> int:
    """The number of connected components of a mask but for specks."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return int((np.bincount(labels.ravel())[1:] > 0.02 * mask.sum()).sum())


def test_the_ink_of_a_plain_digit_is_all_found_in_one_piece(strokes):
    """With pens of 1 to 8 px of 300."""
    shares, broken = [], 0
    for i, drawing in enumerate(strokes):
        width = (1 + 7 * i / len(strokes)) * SIZE / 300
        drawn = coverage([(drawing * 0.6 * SIZE + 0.2 * SIZE, np.full(len(drawing), width))])
        ink = find_ink((1 - 0.9 * drawn).astype(np.float32)) > 0.5
        near = ndimage.binary_dilation(ink)  # how soft an edge is differs from pen to pen
        shares.append(near[drawn > 0.5].mean())
        n_found, n_drawn = (n_pieces(mask) for mask in (ink, drawn > 0.5))
        broken += n_found > n_drawn
    assert np.mean(shares) >= 0.98
    assert broken <= 0.1 * len(strokes)


def test_little_ink_is_found_where_there_is_no_digit():
    hands = load_hands(load_sample(False).images, 50)
    kinds = ["empty", "texture", "photo", "print"] * 5
    scenes = [draw_scene(hands, 9, i, kind).image for i, kind in enumerate(kinds)]
    shares = []
    for image in scenes:
        with contextlib.suppress(ValueError):  # it is blank
            shares.append((find_ink(image / np.float32(255)) > 0.5).mean())
    assert np.mean(np.array(shares) < 0.005) >= 0.6


def test_without_the_networks_weights_a_threshold_finds_ink_on_shaded_paper(monkeypatch, tmp_path):
    monkeypatch.setattr("reading.ink.INK_WEIGHTS", tmp_path / "none.pt")
    monkeypatch.setattr("reading.ink.load_ink_network", None)
    sample = load_sample(False)
    right = 0
    for digit, label in zip(sample.images[:20].numpy(), sample.labels[:20].tolist(), strict=True):
        page = np.pad(255 - digit, 14, constant_values=255).repeat(5, 0).repeat(5, 1)
        shaded = page * np.linspace(0.5, 1, page.shape[1])
        right += MNISTPredictor().predict(shaded.astype(np.uint8)).digit == label
    assert right >= 18


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (2, 3000), (31, 33), (1000, 1000)])
def test_images_of_any_size_end_in_answers_or_errors_that_are_promised(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    predictor = MNISTPredictor()
    for read in (predictor.predict, predictor.read):
        try:
            read(noise)
        except ValueError as error:
            assert "blank" in str(error)


def test_an_image_like_mnists_needs_no_ink_network(monkeypatch):
    monkeypatch.setattr("reading.ink.load_ink_network", None)
    assert MNISTPredictor().predict(load_sample(False).images[0].numpy()).confidence > 0.5


def test_the_weights_are_small_and_loading_them_uses_no_random_numbers():
    assert INK_WEIGHTS.stat().st_size < 2_000_000
    assert sum(p.numel() for p in InkNetwork().parameters()) < 500_000
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_ink_network.cache_clear()
    load_ink_network()
    assert torch.equal(torch.rand(1), expected)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        load_ink_network(path)
