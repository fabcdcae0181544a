"""Context: a small network reads the segments of a line where they are, and tells which are digits.

    wholeness, digits = see_segments(ink, height, parts)

The network of model.py sees a segment alone, enlarged: to it a comma is a 1, and half of a 0 may
be a 5. This one sees where in its line a segment is, how large, and what is beside it. It has
learned it from lines of training digits and from scenes (`training/train_context.py`).
"""

import functools
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from model import NUM_CLASSES
from reading.checkpoint import load_network
from reading.ink import resize

CONTEXT_FORMAT = "mnist-context"
CONTEXT_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "context.pt"
HEIGHT = 20  # pixels of a digit in a window: as in MNIST
WINDOW = (40, 56)  # pixels, rows and columns: the digits beside it are seen as well
CHANNELS = (32, 64, 128)
HIDDEN = 128
DROPOUT = 0.3
BATCH_SIZE = 256  # windows in one forward pass


class Segment(Protocol):
    """Connected ink, or several pieces of it: a mask, bool (H, W), and where it is in pixels."""

    mask: np.ndarray
    top: int
    left: int


class ContextNetwork(nn.Module):
    """Three convolutions and two linear layers: 670,000 parameters.

    Its first step folds 2x2 pixels into channels, so that nothing is computed at full size.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = (2 * 4, *CHANNELS[:-1])  # the segment and its line, 2x2 pixels of each
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in zip(inputs, CHANNELS, strict=True)
        )
        n_places = (WINDOW[0] // 8) * (WINDOW[1] // 8)
        self.hidden = nn.Linear(CHANNELS[-1] * n_places, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1 + NUM_CLASSES)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return logits, (N, 11), of windows, (N, 2, 40, 56): one digit or not, and of each."""
        first, second, third = self.convolutions
        x = F.pixel_unshuffle(windows, 2)  # (N, 8, 20, 28)
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu(F.max_pool2d(first(x), 2))  # (N, 32, 10, 14)
        x = F.relu(second(x))
        x = F.relu(F.max_pool2d(third(x), 2))  # (N, 128, 5, 7)
        x = F.dropout(F.relu(self.hidden(x.flatten(1))), DROPOUT, self.training)
        return self.out(x)


@functools.cache
def load_context_network(path: Path = CONTEXT_WEIGHTS) -> ContextNetwork:
    """Read the weights that ship, or others, once."""
    return load_network(ContextNetwork, path, CONTEXT_FORMAT)


def draw_windows(ink: np.ndarray, height: float, segments: list[Segment]) -> np.ndarray:
    """Draw each segment of ink, (H, W) in 0..1, and what is around it: float32 (N, 2, 40, 56).

    The segment is in the middle. It is in the first channel alone, and in the second with all
    other ink. Digits are `height` pixels high in the ink, and `HEIGHT` in a window.
    """
    scale = HEIGHT / height
    rows, columns = WINDOW
    line = resize(ink, scale * ink.shape[0], scale * ink.shape[1]).clip(0, 1)
    line = np.pad(line, ((rows, rows), (columns, columns)))
    windows = np.zeros((len(segments), 2, rows, columns), np.float32)
    for window, segment in zip(windows, segments, strict=True):
        size = np.array(segment.mask.shape)
        start = np.array([segment.top, segment.left])
        top, left = np.round((start + size / 2) * scale - np.array(WINDOW) / 2).astype(int)
        window[1] = line[top + rows : top + 2 * rows, left + columns : left + 2 * columns]
        alone = resize(segment.mask, *(scale * size)).clip(0, 1)
        y, x = np.round(start * scale).astype(int) - (top, left)
        alone = alone[max(0, -y) :, max(0, -x) :]  # what is larger than the window is cut
        place = window[0, max(0, y) :, max(0, x) :]
        height_there, width_there = np.minimum(alone.shape, place.shape)
        place[:height_there, :width_there] = alone[:height_there, :width_there]
    return windows


@torch.inference_mode()
def see_segments(
    ink: np.ndarray, height: float, segments: list[Segment]
) -> tuple[np.ndarray, np.ndarray]:
    """Read segments of a line of ink, (H, W) in 0..1, whose digits are `height` pixels high.

    Returns the logit that each is one digit, (N,), and the logarithm of the probability of each
    digit if it is, (N, 10). Without the network's weights, as in a notebook alone, it can't tell:
    it returns two arrays without a row.
    """
    if not segments or not CONTEXT_WEIGHTS.exists():
        return np.zeros(0, np.float32), np.zeros((0, NUM_CLASSES), np.float32)
    windows = torch.from_numpy(draw_windows(ink, height, segments))
    network = load_context_network()
    logits = torch.cat([network(batch) for batch in windows.split(BATCH_SIZE)])  # (N, 11)
    return logits[:, 0].numpy(), logits[:, 1:].log_softmax(dim=1).numpy()
