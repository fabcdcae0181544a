"""Context: a small network tells from a line of ink which of its segments are one digit each.

    logits = find_digits(ink, height, parts)

The network of model.py sees a segment alone, enlarged: to it a comma is a 1, and half of a 0 may
be a 5. This one sees where in its line a segment is, how large, and what is beside it. It has
learned it from lines of training digits (`training/train_context.py`).
"""

import functools
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from reading.checkpoint import load_content
from reading.ink import resize

CONTEXT_FORMAT = "mnist-context"
CONTEXT_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "context.pt"
HEIGHT = 16  # pixels of a digit in a window
WINDOW = (32, 48)  # pixels, rows and columns: the digits beside it are seen as well
CHANNELS = (16, 32, 64)
HIDDEN = 64
DROPOUT = 0.3
BATCH_SIZE = 256  # windows in one forward pass


class Segment(Protocol):
    """Connected ink, or several pieces of it: a mask, bool (H, W), and where it is in pixels."""

    mask: np.ndarray
    top: int
    left: int


class ContextNetwork(nn.Module):
    """Three convolutions and two linear layers: 122,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (2, *CHANNELS[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in zip(inputs, CHANNELS, strict=True)
        )
        n_places = (WINDOW[0] >> len(CHANNELS)) * (WINDOW[1] >> len(CHANNELS))
        self.hidden = nn.Linear(CHANNELS[-1] * n_places, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits that segments are one digit, (N,), of windows, (N, 2, 32, 48)."""
        x = windows
        for convolution in self.convolutions:
            x = F.max_pool2d(F.relu(convolution(x)), 2)  # at last (N, 64, 4, 6)
        x = F.dropout(F.relu(self.hidden(x.flatten(1))), DROPOUT, self.training)
        return self.out(x).squeeze(1)


@functools.cache
def load_context_network(path: Path = CONTEXT_WEIGHTS) -> ContextNetwork:
    """Read the weights that ship, or others, once."""
    weights = load_content(path, CONTEXT_FORMAT)["weights"]
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
        network = ContextNetwork().eval()
    network.load_state_dict(weights)
    return network


def draw_windows(ink: np.ndarray, height: float, segments: list[Segment]) -> np.ndarray:
    """Draw each segment of ink, (H, W) in 0..1, and what is around it: float32 (N, 2, 32, 48).

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
def find_digits(ink: np.ndarray, height: float, segments: list[Segment]) -> np.ndarray:
    """Return the logit that each segment of a line of ink is one digit, (N,): see `draw_windows`.

    Without the network's weights, as in a notebook alone, all are 0: it can't tell.
    """
    if not segments or not CONTEXT_WEIGHTS.exists():
        return np.zeros(len(segments), np.float32)
    windows = torch.from_numpy(draw_windows(ink, height, segments))
    network = load_context_network()
    return torch.cat([network(batch) for batch in windows.split(BATCH_SIZE)]).numpy()
