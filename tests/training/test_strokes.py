"""training/strokes.py: the middle of the strokes of digits, and which digits have one."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.photographs import depth
from training.data import load_sample
from training.strokes import are_strokes, digit_strokes


def draw_eight(filled: bool) -> np.ndarray:
    """Draw an 8 whose lower loop may be filled in, uint8 (28, 28)."""
    image = Image.new("L", (280, 280))
    pen = ImageDraw.Draw(image)
    pen.ellipse((90, 50, 190, 140), outline=255, width=22)
    pen.ellipse((90, 130, 190, 230), 255 if filled else 0, 255, 22)
    return np.array(image.resize((28, 28), Image.BOX))


def test_a_digit_whose_loop_is_filled_in_is_not_its_strokes():
    eights = torch.from_numpy(np.stack([draw_eight(False), draw_eight(True)]))
    assert are_strokes(eights).tolist() == [True, False]


def test_a_filled_loop_keeps_its_pen_in_a_picture():
    empty, filled = draw_eight(False), draw_eight(True)
    assert (depth(filled, 0.06) == depth(filled)).all()
    assert (depth(empty, 0.06) > 0).sum() < 0.8 * (depth(empty) > 0).sum()


def test_most_digits_are_their_strokes_and_a_dot_or_nothing_is_not():
    images = load_sample(False).images[::10]
    assert are_strokes(images).float().mean() > 0.7
    dot = torch.zeros(2, 28, 28, dtype=torch.uint8)
    dot[1, 14, 14] = 255
    assert not are_strokes(dot).any()
    kept = images[are_strokes(images)]
    assert len(digit_strokes(kept)) == len(kept)
