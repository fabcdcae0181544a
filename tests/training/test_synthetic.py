"""training/synthetic.py: digits in ways of writing that MNIST lacks, and non-digits."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import MNISTPredictor
from reading.ink import bounding_box, resize
from reading.preprocessing import (
    BOX_SIZE,
    FINE,
    STROKE_WIDTHS,
    draw_sharply,
    is_mnist_like,
    stroke_widths,
)
from train import evaluate
from training import forms, synthetic
from training.data import Digits, load_sample
from training.forms import FORMS, read_forms
from training.strokes import SIGNS
from training.synthetic import (
    INKS,
    NON_DIGIT_KINDS,
    PEN_WIDTHS,
    STROKES,
    draw,
    draw_handwriting,
    draw_non_digits,
)

EACH = 20  # drawings of each form
DIGIT_FORMS = FORMS["digit"]


@pytest.fixture(scope="module")
def drawn():
    """Drawings of another seed than that of the shipped weights."""
    return draw_handwriting(EACH * len(DIGIT_FORMS), seed=1)


def by_form(drawn):
    """Each form and its drawings."""
    for first, form in enumerate(DIGIT_FORMS):
        yield form, Digits(*(tensor[first :: len(DIGIT_FORMS)] for tensor in drawn))


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


def test_every_row_of_the_table_is_read_and_drawn():
    table = Path(forms.__file__).with_name("forms.txt").read_text(encoding="utf-8")
    rows = [row for row in table.splitlines() if row and row[0] != "#"]
    every_form = [form for kind in FORMS.values() for form in kind]
    assert sum(len(form.points) for form in every_form) == len(rows) > 250
    assert set(FORMS) == {"digit", "letter", "foreign", "sign", "shape", "beside"}
    assert not {form.name for form in FORMS["sign"]} & {form.name for form in FORMS["beside"]}
    for form in every_form:
        assert len(form.marks) == len(form.ends) and form.ends[-1] == form.points.shape[1]
        rng = np.random.default_rng(0)
        assert draw(form.write(rng), rng).max() > 150, form.name
        low, high = form.points.min(axis=(0, 1)), form.points.max(axis=(0, 1))
        assert (high - low < 1.8).all(), form.name
        if form.kind == "digit":  # as high as each other, since a pen's width is a share of it
            assert -0.15 < low[1] < 0.1 and 0.9 < high[1] < 1.15, form.name


def test_a_row_is_a_form_and_rows_alike_are_mixed():
    table = (
        "# a comment\n\n7 bar: 0,0 60,0 20,100 | 10,50 50,50\n1 a: 0,0 0,100\n1 a: 50,0 50,100\n"
    )
    read = read_forms(table + "sign :: ~ 0,0 5,5 9,0 | o 0,0 10,10\n1 a: 0,0 0,50 0,100")
    assert [(form.name, len(form.points)) for form in read["digit"]] == [
        *(("7 bar", 1), ("1 a", 2), ("1 a", 1))
    ]
    assert [(form.name, form.marks) for form in read["sign"]] == [(":", ("~", "o"))]
    rng = np.random.default_rng(0)
    places = [read["digit"][1].write(rng)[0][:, 0].mean() for _ in range(200)]
    assert min(places) < 0.1 and max(places) > 0.4  # anywhere between 0 and 0.5
    assert 0.2 < np.mean(places) < 0.3


def test_every_digit_has_a_form_and_every_drawing_differs(drawn):
    assert drawn[1].unique().tolist() == list(range(10))
    assert len(drawn[0].unique(dim=0)) == len(drawn[0])


def test_each_form_has_its_label_and_the_geometry_of_mnist(drawn):
    for form, digits in by_form(drawn):
        assert (digits.labels == int(form.name[0])).all(), form.name
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
    minimum, maximum = STROKE_WIDTHS[0], PEN_WIDTHS[1]
    for form, digits in by_form(drawn):
        fine = [resize(i.float().numpy() / 255, 28 * FINE, 28 * FINE) > 0.5 for i in digits.images]
        widths = [np.median(stroke_widths(mask)) / FINE for mask in fine]
        assert minimum - 0.5 < min(widths) and np.median(widths) < maximum, form.name


def test_the_network_reads_each_form_as_its_label(drawn):
    model = MNISTPredictor().model
    for form, digits in by_form(drawn):
        assert evaluate(model, digits).accuracy >= 0.9, form.name


def test_non_digits_have_the_geometry_of_mnist_and_the_same_seed_gives_the_same_bytes():
    n = 20 * len(NON_DIGIT_KINDS)
    images = draw_non_digits(n, 0)
    assert images.dtype == torch.uint8 and images.shape == (n, 28, 28)
    assert torch.equal(draw_non_digits(50, 0), images[:50])
    assert len(images.unique(dim=0)) == n
    assert draw_non_digits(0, 0).shape == (0, 28, 28)
    other = draw_non_digits(n, 1)
    assert not (other == images).flatten(1).all(dim=1).any()
    inked = images > 64
    longest = torch.maximum(inked.any(dim=1).sum(dim=1), inked.any(dim=2).sum(dim=1))
    assert (images.amax(dim=(1, 2)) > 150).all() and (longest <= 21).all()
    assert (longest >= 17).float().mean() > 0.8  # what is in pieces may have gaps


def test_letters_and_signs_are_the_most_frequent_non_digits():
    assert set(NON_DIGIT_KINDS) == {*STROKES, *INKS}
    assert min(NON_DIGIT_KINDS.count(kind) for kind in ("letters", "signs")) >= 4


def test_a_small_mark_is_drawn_as_the_reading_path_draws_it():
    """A pen's bar is enlarged to 20 px: a dot fills the box, and a long bar becomes a line."""
    rng, pen, fine = np.random.default_rng(0), 0.15, 200  # of the height of a digit; its pixels
    for length in (0.0, 0.1, 0.3, 1.0):
        drawn = [draw([np.array([[0, 0], [length, 0]])], rng) > 64 for _ in range(200)]
        y, x = np.mgrid[:fine, : 2 * fine] / fine - 0.5
        distance = np.hypot(np.maximum(abs(x - length / 2) - length / 2, 0), y)
        ink = ((pen / 2 - distance) * fine + 0.5).clip(0, 1).astype(np.float32)
        seen = draw_sharply(ink[bounding_box(ink > 0.5, margin=0)], small=True) > 0.5
        for axis in (0, 1):
            extent = np.mean([mask.any(axis=axis).sum() for mask in drawn])
            assert abs(extent - seen.any(axis=axis).sum()) < 3, length


def test_signs_beside_digits_are_in_their_place():
    assert {*"+-=x/().,:%*€$_"} <= set(SIGNS)
    assert {len(name) for name in SIGNS} == {1}  # scenes take them from strings
    for name, (low, high) in {".": (0.9, 1.05), "-": (0.4, 0.6), "=": (0.3, 0.7)}.items():
        heights = SIGNS[name][..., 1]
        assert low < heights.min() and heights.max() < high
