"""scenes.py: a scene of each kind with its mask, and the same one for the same numbers."""

import numpy as np
import pytest

from training.data import load_sample
from training.scenes import KINDS, draw_scene, load_hands

WITHOUT_DIGITS = ("drawing", "words", "print", "texture", "photo", "empty")


@pytest.fixture(scope="module")
def hands():
    return load_hands(load_sample(False).images, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_of_each_kind_and_its_ink(hands, kind):
    scenes = [draw_scene(hands, 1, i, kind) for i in range(4)]
    for scene in scenes:
        assert scene.image.shape == scene.ink.shape == (192, 192)
        assert scene.image.dtype == scene.ink.dtype == np.uint8
        assert (scene.ink.max() == 0) == (kind in WITHOUT_DIGITS)
        if kind == "plain":  # the ink differs from the paper
            gray, ink = scene.image.astype(int), scene.ink > 127
            assert abs(np.median(gray[ink]) - np.median(gray[scene.ink == 0])) > 10


def test_the_same_numbers_give_the_same_scene(hands):
    first, again, other = (draw_scene(hands, 5, i) for i in (3, 3, 4))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.ink, again.ink)
    assert not np.array_equal(first.image, other.image)
