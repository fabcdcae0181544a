"""handwriting.py: ways of writing that MNIST lacks."""

import numpy as np
import pytest
import torch

from evaluation import evaluate
from inference import MNISTPredictor
from reading.ink import resize
from reading.preprocessing import BOX_SIZE, FINE, is_mnist_like, stroke_widths
from training.data import Digits, load_sample
from training.synthetic import ALPHABET, KINDS, NON_DIGITS, PENS, draw_handwriting, draw_non_digits

EACH = 40  # drawings of each kind


@pytest.fixture(scope="module")
def drawn():
    return draw_handwriting(EACH * len(KINDS), seed=0)


def of_kind(drawn, name):
    """The drawings of one kind, and their labels."""
    first = list(KINDS).index(name)
    return Digits(*(tensor[first :: len(KINDS)] for tensor in drawn))


def test_the_same_seed_gives_the_same_bytes(drawn):
    images, labels = draw_handwriting(100, seed=0)
    assert torch.equal(images, drawn[0][:100]) and torch.equal(labels, drawn[1][:100])
    others, other_labels = draw_handwriting(100, seed=1)
    assert not (others == images).flatten(1).all(dim=1).any()
    assert torch.equal(other_labels, labels)


def test_shapes_and_types(drawn):
    images, labels = drawn
    assert images.dtype == torch.uint8 and images.shape == (len(labels), 28, 28)
    assert labels.dtype == torch.int64
    images, labels = draw_handwriting(0, seed=0)
    assert images.shape == (0, 28, 28) and labels.shape == (0,)


def test_every_digit_has_a_kind_and_every_drawing_differs(drawn):
    assert drawn[1].unique().tolist() == list(range(10))
    assert len(drawn[0].unique(dim=0)) == len(drawn[0])


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_labelled_and_drawn_as_mnist_is(drawn, name):
    digits = of_kind(drawn, name)
    images, labels = digits.images, digits.labels
    assert len(labels) == EACH and (labels == int(name[0])).all()

    pixels = images.numpy().astype(np.float32) / 255
    assert is_mnist_like(pixels).all()
    assert (images.amax(dim=(1, 2)) > 200).all() and (images.amin(dim=(1, 2)) == 0).all()
    places = np.arange(28) - 14
    for axis in (1, 2):
        profile = pixels.sum(axis=axis)
        assert (abs(profile @ places / profile.sum(axis=1)) <= 0.51).all()
        spans = [np.ptp(np.flatnonzero(row)) + 1 for row in profile]
        assert max(spans) <= BOX_SIZE + 1  # it may lie between pixels


@pytest.mark.parametrize("name", [name for name in KINDS if name != "1 broad"])
def test_the_pens_are_those_of_mnist(drawn, name):
    images = of_kind(drawn, name).images
    fine = [resize(image.float().numpy() / 255, 28 * FINE, 28 * FINE) > 0.5 for image in images]
    widths = [np.median(stroke_widths(mask)) / FINE for mask in fine]
    least, most = PENS
    assert least - 0.5 < min(widths) and np.median(widths) < most


@pytest.fixture(scope="module")
def unseen():
    """Drawings of another seed than that of the shipped weights."""
    return draw_handwriting(EACH * len(KINDS), seed=1)


@pytest.mark.parametrize("name", KINDS)
def test_the_network_reads_what_it_says_it_is(unseen, name):
    assert evaluate(MNISTPredictor().model, of_kind(unseen, name)).accuracy >= 0.9


# ---- What is no digit ---------------------------------------------------------------------


def test_what_is_no_digit_is_drawn_as_mnist_is_and_the_same_for_the_same_seed():
    digits = load_sample(True)
    n = 20 * len(NON_DIGITS)
    images = draw_non_digits(n, 0, digits.images)
    assert images.dtype == torch.uint8 and images.shape == (n, 28, 28)
    assert torch.equal(draw_non_digits(50, 0, digits.images), images[:50])
    assert len(images.unique(dim=0)) == n
    assert draw_non_digits(0, 0, digits.images).shape == (0, 28, 28)
    other = draw_non_digits(n, 1, digits.images)
    assert not (other == images).flatten(1).all(dim=1).any()
    inked = images > 64
    longest = torch.maximum(inked.any(dim=1).sum(dim=1), inked.any(dim=2).sum(dim=1))
    assert (images.amax(dim=(1, 2)) > 150).all() and (longest <= 21).all()
    assert (longest >= 17).float().mean() > 0.8  # what is in pieces may have gaps


def test_every_letter_and_sign_has_strokes_on_the_grid():
    assert len(ALPHABET) > 60
    for strokes in ALPHABET:
        points = np.concatenate([points for _, points in strokes])
        assert points.min() == 0 and 0.6 < np.ptp(points, axis=0).max() <= 1
