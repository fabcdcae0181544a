"""training/fields.py: lines and scenes, what `read` finds of them, and what its segments are."""

import numpy as np
import pytest
import torch

from inference import MNISTPredictor
from model import normalize
from reading.image_io import WHITE
from reading.segmentation import Page
from training import fields
from training.data import load_sample
from training.fields import cut_field, write_field
from training.lines import NOBODY
from training.scenes import load_hands


@pytest.fixture(scope="module")
def hands():
    sample = load_sample(False)
    return load_hands(sample.images, 60, sample.labels)


def draw_fields(hands, monkeypatch, scenes: float, count: int) -> list:
    """Return fields of the bundled digits, and the generator that drew each."""
    monkeypatch.setattr(fields, "SCENES", scenes)
    sample = load_sample(False)
    images, labels = sample.images.numpy(), sample.labels.numpy()
    drawn = (np.random.default_rng([count, i]) for i in range(count))
    return [(write_field(images, labels, hands, rng), rng) for rng in drawn]


@pytest.mark.parametrize("scenes", [0.0, 1.0])
def test_what_is_whole_is_the_digit_that_it_is_said_to_be(hands, monkeypatch, scenes):
    predictor, n, n_right, heights = MNISTPredictor(), 0, 0, []
    for field, rng in draw_fields(hands, monkeypatch, scenes, 60):
        if field is None:
            continue
        assert field.ink.shape == field.owner.shape and field.owner.max() < len(field.labels)
        parts, wholeness, labels, height = cut_field(field, rng)
        assert len(parts) == len(wholeness) == len(labels) and height == pytest.approx(
            field.height, rel=0.5
        )
        page = Page(field.ink, 1.0)
        whole = [i for i in range(len(parts)) if wholeness[i] == 1]
        if whole:
            pixels = np.stack([page.draw(parts[i]) for i in whole])
            answers = predictor.classify(normalize(torch.from_numpy(WHITE * pixels)))
            n += len(whole)
            n_right += sum(a.digit == labels[i] for a, i in zip(answers, whole, strict=True))
            heights += [parts[i].height / field.height for i in whole]
    assert n > 120 and n_right > 0.88 * n, (n_right, n)
    assert np.median(heights) == pytest.approx(0.9, abs=0.2)


def test_the_same_numbers_make_the_same_field(hands, monkeypatch):
    first, again = (draw_fields(hands, monkeypatch, 0.5, 8) for _ in range(2))
    for (a, _), (b, _) in zip(first, again, strict=True):
        assert (a is None) == (b is None)
        assert a is None or all(map(np.array_equal, a, b))


def test_a_piece_of_a_digit_is_not_whole(hands, monkeypatch):
    [(field, rng)] = [
        (f, r) for f, r in draw_fields(hands, monkeypatch, 0.0, 9) if f and len(f.labels) > 3
    ][:1]
    parts, wholeness, _, _ = cut_field(field, rng)
    for part, share in zip(parts, wholeness, strict=True):
        owners = field.owner[part.top : part.bottom, part.left : part.right][part.mask]
        covers = np.bincount(owners[owners >= 0], minlength=len(field.sizes)) / field.sizes
        if share == 1:
            assert covers.max() >= 0.9 and np.sort(covers)[-2] < 0.2
        if covers.max() < 0.6:
            assert share == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_sign_may_stand_before_the_digits_and_is_of_none(hands, monkeypatch, share):
    monkeypatch.setattr(fields, "FIRST_SIGNED", share)
    monkeypatch.setattr(fields, "SPECKED", 0.0)
    first = []
    for field, _ in draw_fields(hands, monkeypatch, 0.0, 40):
        column = (field.ink > 0.5).any(axis=0).argmax()
        first.append((field.owner[:, column : column + 3] == NOBODY).all())
    assert np.mean(first) == pytest.approx(share, abs=0.2)
