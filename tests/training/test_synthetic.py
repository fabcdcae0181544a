"""training/synthetic.py: digits in styles that MNIST lacks, and non-digits."""

import ast

import numpy as np
import pytest
import torch

from inference import MNISTPredictor
from reading.ink import resize
from reading.preprocessing import BOX_SIZE, FINE, is_mnist_like, stroke_widths
from train import evaluate
from training import synthetic
from training.data import Digits, load_sample
from training.synthetic import (
    NON_DIGIT_KINDS,
    PEN_WIDTHS,
    STYLES,
    VARIANTS,
    draw_handwriting,
    draw_non_digits,
)

EACH = 20  # drawings of each style


@pytest.fixture(scope="module")
def drawn():
    """Drawings of another seed than that of the shipped weights."""
    return draw_handwriting(EACH * len(STYLES), seed=1)


def by_style(drawn):
    """The digit and the name of each style, and its drawings."""
    for first, (digit, name, _) in enumerate(STYLES):
        yield digit, name, Digits(*(tensor[first :: len(STYLES)] for tensor in drawn))


def test_the_same_seed_gives_the_same_bytes(drawn):
    images, labels = draw_handwriting(100, seed=1)
    assert torch.equal(images, drawn[0][:100]) and torch.equal(labels, drawn[1][:100])
    others, other_labels = draw_handwriting(100, seed=0)
    assert not (others == images).flatten(1).all(dim=1).any()
    assert torch.equal(other_labels, labels)


def test_the_documented_calls_run(monkeypatch):
    images = load_sample(True).images
    calls = [row for row in synthetic.__doc__.splitlines() if " = draw_" in row]
    assert len(calls) == 2
    for row in calls:
        [call] = [node for node in ast.walk(ast.parse(row.strip())) if isinstance(node, ast.Call)]
        function = getattr(synthetic, call.func.id)
        arguments = {keyword.arg: 0 for keyword in call.keywords}
        arguments |= {"images": images} if "images" in arguments else {}
        function(5, **arguments)


def test_shapes_and_types(drawn):
    images, labels = drawn
    assert images.dtype == torch.uint8 and images.shape == (len(labels), 28, 28)
    assert labels.dtype == torch.int64
    images, labels = draw_handwriting(0, seed=0)
    assert images.shape == (0, 28, 28) and labels.shape == (0,)


def test_every_digit_has_a_style_and_every_drawing_differs(drawn):
    assert drawn[1].unique().tolist() == list(range(10))
    assert len(drawn[0].unique(dim=0)) == len(drawn[0])


def test_each_style_has_its_label_and_the_geometry_of_mnist(drawn):
    for digit, name, digits in by_style(drawn):
        assert (digits.labels == digit).all(), name
    images = drawn[0]
    pixels = images.numpy().astype(np.float32) / 255
    assert is_mnist_like(pixels).all()
    assert (images.amax(dim=(1, 2)) > 200).all() and (images.amin(dim=(1, 2)) == 0).all()
    places = np.arange(28) - 14
    for axis in (1, 2):
        profile = pixels.sum(axis=axis)
        assert (abs(profile @ places / profile.sum(axis=1)) <= 0.51).all()
        spans = [np.ptp(np.flatnonzero(row)) + 1 for row in profile]
        assert max(spans) <= BOX_SIZE + 1  # it may lie between pixels


def test_the_pens_are_those_of_mnist(drawn):
    minimum, maximum = PEN_WIDTHS
    for digit, name, digits in by_style(drawn):
        if (digit, name) == (1, "broad"):
            continue
        fine = [resize(i.float().numpy() / 255, 28 * FINE, 28 * FINE) > 0.5 for i in digits.images]
        widths = [np.median(stroke_widths(mask)) / FINE for mask in fine]
        assert minimum - 0.5 < min(widths) and np.median(widths) < maximum, (digit, name)


def test_the_network_reads_each_style_as_its_label(drawn):
    model = MNISTPredictor().model
    for digit, name, digits in by_style(drawn):
        assert evaluate(model, digits).accuracy >= 0.9, (digit, name)


def test_non_digits_have_the_geometry_of_mnist_and_the_same_seed_gives_the_same_bytes():
    digits = load_sample(True)
    n = 20 * len(NON_DIGIT_KINDS)
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


def test_every_letter_and_sign_fills_the_grid():
    assert len(VARIANTS) > 60
    for variant in VARIANTS:
        points = np.array([list(map(int, p)) for p in variant.replace("~", "").split() if p != "|"])
        assert points.min() == 0 and 5 < np.ptp(points, axis=0).max() <= 9
