"""The network that finds the ink of digits: a small U-Net.

    network = InkNetwork()
    logits = network(gray)  # (N, 1, H, W), gray values 0..1, to (N, 1, H, W)

Ronneberger, Fischer, Brox 2015 (arXiv:1505.04597). It tells for each pixel whether a digit's
stroke covers it; lines, boxes, letters, shadows and whatever else a picture shows are no ink. Its
first step folds 2x2 pixels into channels, so that nothing is computed at full size.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

CHANNELS = (16, 32, 64, 64, 64)  # of each level, from half size down
SIDE_MULTIPLE = 2 ** len(CHANNELS)  # the sides of an image are multiples of this
CONTRAST_CELL = 8  # pixels; local contrast is measured against cells of this size,
CONTRAST_CELLS = 5  # so many of them a side
CONTRAST_FLOOR = 0.02  # of the gray range, so that a paper's grain is not made large
MAX_CONTRAST = 4.0  # standard deviations


class InkNetwork(nn.Module):
    """A U-Net of 490,000 parameters, with batch normalization to train or without it to use."""

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
        x = F.pixel_unshuffle(x, 2).contiguous(
            memory_format=torch.channels_last
        )  # (N, 8, H/2, W/2)
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


def fold_batch_norm(network: InkNetwork) -> InkNetwork:
    """Return the same function, in evaluation mode, without batch normalization."""
    folded = InkNetwork().eval()
    of_type = lambda net, kind: [m for m in net.modules() if isinstance(m, kind)]  # noqa: E731
    norms = of_type(network.eval(), nn.BatchNorm2d)
    *convolutions, last = of_type(network, nn.Conv2d)
    *targets, out = of_type(folded, nn.Conv2d)
    for convolution, norm, target in zip(convolutions, norms, targets, strict=True):
        fused = nn.utils.fusion.fuse_conv_bn_eval(convolution, norm)
        target.load_state_dict(fused.state_dict())
    out.load_state_dict(last.state_dict())
    return folded
