"""training/lines.py: digits and pieces of digits, as `read` cuts them out of lines."""

import numpy as np
import pytest
import torch

from inference import MNISTPredictor
from reading.preprocessing import BOX_SIZE
from train import evaluate
from training.data import Digits, load_sample
from training.lines import HEIGHT, Line, add_drawings, cut_line, cut_lines
from training.synthetic import NON_DIGIT


@pytest.fixture(scope="module")
def cut():
    """Digits and pieces out of lines of digits that the shipped weights weren't trained on."""
    return cut_lines(load_sample(False), 300, 200, seed=1)


def write_apart(gap: float) -> Line:
    """Write a 2, a 0 and a 7, so many heights apart."""
    sample = load_sample(False)
    line = Line(3, np.random.default_rng(0))
    for label in (2, 0, 7):
        line.write(sample.images[sample.labels == label][0].numpy(), label, 1.0)
        line.x += gap * HEIGHT
        line.last = None  # so that no stroke joins them
    return line


def test_so_many_of_each_and_the_same_seed_gives_the_same_bytes(cut):
    images, labels = cut
    assert images.dtype == torch.uint8 and images.shape == (500, 28, 28)
    assert labels.dtype == torch.int64 and (labels == NON_DIGIT).sum() == 200
    assert set(labels.tolist()) == set(range(NON_DIGIT + 1))
    again, others = (cut_lines(load_sample(False), 300, 200, seed)[0] for seed in (1, 2))
    assert torch.equal(again, images) and not torch.equal(others, images)
    assert cut_lines(load_sample(False), 0, 0, seed=1)[0].shape == (0, 28, 28)


def test_they_are_drawn_as_read_draws_them(cut):
    inked = cut[0] > 64  # softened
    longest = torch.maximum(inked.any(dim=1).sum(dim=1), inked.any(dim=2).sum(dim=1))
    assert (longest <= BOX_SIZE + 1).all() and (longest > BOX_SIZE - 5).float().mean() > 0.9


def test_the_network_reads_the_digits_and_is_unsure_of_the_pieces(cut):
    images, labels = cut
    whole, model = labels != NON_DIGIT, MNISTPredictor().model
    assert evaluate(model, Digits(images[whole], labels[whole])).accuracy > 0.93
    pieces = evaluate(model, Digits(images[~whole], labels[~whole] * 0))
    assert pieces.probabilities.amax(dim=1).mean() < 0.4


def test_digits_that_stand_apart_are_left_out_and_joined_ones_are_labelled():
    assert all(label == NON_DIGIT for *_, label in cut_line(write_apart(0.3)))
    labels = {label for *_, label in cut_line(write_apart(-0.1))}
    assert {NON_DIGIT} < labels <= {2, 0, 7, NON_DIGIT}


def test_any_digits_can_be_written():
    sample = load_sample(False)
    some = sample.labels == 1  # no zero among them
    _, labels = cut_lines(Digits(sample.images[some], sample.labels[some]), 10, 10, seed=0)
    assert set(labels.tolist()) == {1, NON_DIGIT}


def test_digits_without_ink_are_left_out_and_refused_if_there_are_no_others():
    sample = load_sample(False)
    blank = torch.zeros_like(sample.images)
    blank[::2] = sample.images[::2]
    images, _ = cut_lines(Digits(blank, sample.labels), 10, 10, seed=0)
    assert (images.amax(dim=(1, 2)) > 100).all()
    for pale in (sample.images * 0, sample.images // 4):
        with pytest.raises(ValueError, match="no digit has ink"):
            cut_lines(Digits(pale, sample.labels), 0, 1, seed=0)


def test_drawings_join_the_digits_and_non_digits_come_last():
    some = load_sample(True)[:240]
    labels = add_drawings(some, 0.1, 0.1, seed=0).labels
    assert torch.equal(labels[:240], some.labels)
    assert (labels[240:264] < NON_DIGIT).all() and (labels[264:] == NON_DIGIT).all()
    assert len(labels) == 288
