"""A convolutional network that reads one handwritten digit: 421,642 parameters.

It takes 28x28 grayscale images, white ink on black, as MNIST stores them:

    conv 1->32 3x3, ReLU, 2x2 max pool
    conv 32->64 3x3, ReLU, 2x2 max pool
    dropout 25%
    fully connected 64*7*7->128, ReLU
    dropout 50%
    fully connected 128->10
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

IMAGE_SIZE = 28  # pixels, both ways
NUM_CLASSES = 10
PIXEL_MEAN = 0.1307  # of the 60,000 training images, with pixel values scaled to 0..1
PIXEL_STD = 0.3081


class MNISTClassifier(nn.Module):
    """Two convolutions and two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, NUM_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalized images, float (N, 1, 28, 28), to logits, float (N, 10)."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)  # (N, 32, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (N, 64, 7, 7)
        x = self.dropout1(x.flatten(1))  # (N, 3136)
        x = F.relu(self.fc1(x))  # (N, 128)
        return self.fc2(self.dropout2(x))  # (N, 10)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Normalize pixel values 0..255 to mean 0 and standard deviation 1, as the network reads them.

    Takes uint8, or float in the same range (a digit that was rotated or resized), of shape
    (N, 28, 28) or (N, 1, 28, 28); returns float32, (N, 1, 28, 28). Raises ValueError for
    another shape or dtype.
    """
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"pixels must be uint8 or float in 0..255, not {images.dtype}")
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if images.dim() != 4 or images.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
        shape = tuple(images.shape)
        raise ValueError(f"images must have shape (N, 28, 28) or (N, 1, 28, 28), not {shape}")
    return images.float().sub(255 * PIXEL_MEAN).div_(255 * PIXEL_STD)
