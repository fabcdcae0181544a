"""Ink: a small network tells which pixels of a picture are the strokes of digits.

    ink = find_ink(gray)  # gray values 0..1, (H, W), to (H, W) in 0..1

The network, a U-Net (Ronneberger, Fischer, Brox 2015, arXiv:1505.04597), has learned it from
`training/scenes.py`: lines, boxes, letters, shadows and whatever else a picture shows are no ink.
"""

import functools
from pathlib import Path

import numpy as np
import scipy
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

from reading.checkpoint import load_network

INK_FORMAT = "mnist-ink"
INK_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "ink.pt"
CHANNELS = (16, 32, 64, 64, 64)  # of each level, from half size down
SIDE_MULTIPLE = 2 ** len(CHANNELS)  # the sides of an image are multiples of this
CONTRAST_CELL = 8  # pixels; local contrast is measured against cells of this size,
CONTRAST_CELLS = 5  # so many of them a side
CONTRAST_FLOOR = 0.02  # of the gray range, so that a paper's grain is not made large
MAX_CONTRAST = 4.0  # standard deviations
MIN_RANGE = 0.06  # of gray values; an image that has no more is blank
NOISE_PERCENTILES = (0.1, 99.9)  # what is darker or lighter is noise
SHADE = 0.15  # of the size of an image: what changes more slowly is light
MIN_FRAME_CONTRAST = 0.75  # of the gray range, between a frame of one pixel and what it is around
PART_COST = 0.1  # of each connected component, as a share of the gray range of the border
NEIGHBOURS = np.ones((3, 3))  # for scipy: a pixel is connected with all eight around it


class InkNetwork(nn.Module):
    """A U-Net of 490,000 parameters, with batch normalization to train or without it to use.

    Its first step folds 2x2 pixels into channels, so that nothing is computed at full size.
    """

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__()
        inputs = (2 * 4, *CHANNELS[:-1])  # the gray values and their contrast, 2x2 pixels of each
        self.down = nn.ModuleList(
            block(i, o, batch_norm) for i, o in zip(inputs, CHANNELS, strict=True)
        )
        above, below = CHANNELS[-2::-1], CHANNELS[:0:-1]
        self.up = nn.ModuleList(
            block(a + b, a, batch_norm) for a, b in zip(above, below, strict=True)
        )
        self.out = nn.Conv2d(CHANNELS[0], 4, 1)

    def forward(self, gray: torch.Tensor) -> torch.Tensor:
        """Return logits, (N, 1, H, W), of gray values 0..1, (N, 1, H, W)."""
        x = torch.cat([2 * gray - 1, local_contrast(gray)], dim=1)
        x = F.pixel_unshuffle(x, 2)  # (N, 8, H/2, W/2)
        x = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for level, layers in enumerate(self.down):
            x = layers(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for layers, skip in zip(self.up, skips[-2::-1], strict=True):
            x = layers(torch.cat([skip, F.interpolate(x, scale_factor=2.0)], dim=1))
        return F.pixel_shuffle(self.out(x), 2)


def block(n_inputs: int, n_outputs: int, batch_norm: bool) -> nn.Sequential:
    """Return two 3x3 convolutions with what follows them."""
    layers = []
    for n in (n_inputs, n_outputs):
        layers.append(nn.Conv2d(n, n_outputs, 3, padding=1, bias=not batch_norm))
        layers += [nn.BatchNorm2d(n_outputs)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def local_contrast(gray: torch.Tensor) -> torch.Tensor:
    """Return how far each pixel is from its surroundings, in their standard deviations.

    A faint stroke, or one in a shadow, is as far from its paper as a bold one in full light.
    """
    cells = F.avg_pool2d(torch.cat([gray, gray**2], dim=1), CONTRAST_CELL)
    margin = CONTRAST_CELLS // 2
    cells = F.avg_pool2d(cells, CONTRAST_CELLS, 1, margin, count_include_pad=False)
    mean, square = F.interpolate(cells, gray.shape[2:], mode="bilinear").chunk(2, dim=1)
    deviation = (square - mean**2).clamp(min=0).sqrt() + CONTRAST_FLOOR
    return ((gray - mean) / deviation).clamp(-MAX_CONTRAST, MAX_CONTRAST) / 2


@functools.cache
def load_ink_network(path: Path = INK_WEIGHTS) -> InkNetwork:
    """Read the weights that ship, or others, once."""
    return load_network(InkNetwork, path, INK_FORMAT)


def find_ink(gray: np.ndarray) -> np.ndarray:
    """Return how likely each pixel is ink of a digit: gray values, (H, W) in 0..1, to the same.

    The digits should be 20 to 200 px high. Above 0.5 is ink. Without the network's weights, as in
    a notebook alone, a threshold finds what is not like the paper around it. Raises ValueError if
    the image is blank.
    """
    if not INK_WEIGHTS.exists():
        return flat_ink(gray)
    gray = stretch(gray)
    height, width = gray.shape
    margins = (0, -height % SIDE_MULTIPLE), (0, -width % SIDE_MULTIPLE)
    padded = torch.from_numpy(np.pad(gray, margins, mode="edge"))
    with torch.inference_mode():
        logits = load_ink_network()(padded[None, None])  # (1, 1, H, W)
    return logits.sigmoid()[0, 0, :height, :width].numpy()


def threshold_ink(gray: np.ndarray) -> np.ndarray:
    """Return the ink of a clean image or of one of few pixels: gray values, (H, W), to the same.

    Ink may fill half of a crop. Even there the border is mostly paper, and ink has fewer parts.
    Raises ValueError if the image is blank.
    """
    gray = stretch(gray)
    inner = gray[1:-1, 1:-1]
    if inner.size and abs(border(gray).mean() - border(inner).mean()) > MIN_FRAME_CONTRAST:
        gray = inner  # without its frame
    n_dark, n_light = (
        scipy.ndimage.label(side, NEIGHBOURS)[1] for side in (gray <= 0.5, gray > 0.5)
    )
    ink_is_light = 1 - 2 * border(gray).mean() + PART_COST * (n_dark - n_light) > 0
    return gray if ink_is_light else 1 - gray


def flat_ink(gray: np.ndarray) -> np.ndarray:
    """Return the ink that a threshold finds once the light, which changes slowly, is taken out."""
    return threshold_ink(gray - scipy.ndimage.gaussian_filter(gray, SHADE * max(gray.shape)))


def stretch(gray: np.ndarray) -> np.ndarray:
    """Stretch gray values to 0..1; ValueError if the image is blank. A few pixels may be noise."""
    if np.ptp(gray) < MIN_RANGE:
        raise ValueError("the image is blank: no ink found")
    dark, light = np.percentile(gray, NOISE_PERCENTILES)
    return ((gray - dark) / max(light - dark, MIN_RANGE)).clip(0, 1).astype(np.float32)


def border(values: np.ndarray) -> np.ndarray:
    """Return the pixels along the four sides."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


# ---- Images ------------------------------------------------------------------------------


def resize(ink: np.ndarray, height: float, width: float) -> np.ndarray:
    """Scale ink, (H, W), anti-aliased, to at least 1 px each way."""
    size = (max(1, round(width)), max(1, round(height)))
    image = Image.fromarray(np.asarray(ink, np.float32))
    return np.asarray(image.resize(size, Image.BICUBIC, reducing_gap=1.5))


def resize_to(gray: np.ndarray, size: int) -> np.ndarray:
    """Scale gray values so that the longer side is `size`."""
    scale = size / max(gray.shape)
    if abs(scale - 1) < 0.1:
        return gray
    return resize(gray, gray.shape[0] * scale, gray.shape[1] * scale).clip(0, 1)


def bounding_box(mask: np.ndarray, margin: int = 1) -> tuple[slice, slice]:
    """Return the rows and columns that a mask occupies, with a margin in pixels."""
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(max(0, span[0] - margin), span[-1] + 1 + margin) for span in spans)


def depth(mask: np.ndarray) -> np.ndarray:
    """Return how far inside a mask, (H, W), each pixel is: the distance to its edge."""
    return scipy.ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
