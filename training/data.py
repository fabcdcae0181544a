"""MNIST, the sample of it that is bundled, and their digits in random, distorted batches.

The whole set is 47 MB, so it lives on the device as one tensor: an epoch is a random permutation
cut into batches, each distorted and normalized in one go. There are no worker processes.
"""

import dataclasses
import functools
import gzip
import hashlib
import math
import numbers
import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from model import IMAGE_SIZE, normalize
from reading.preprocessing import SOFT

PROJECT_DIR = Path(__file__).resolve().parent.parent

DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte

# SHA-256 of the extracted files. torchvision checks digests only while it downloads: a file
# that was cut short later would load as garbage.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
SAMPLE_NAME = "bundled sample of MNIST"
SAMPLE_SHA256 = {
    "train-images-idx3-ubyte": "74422b12132c7d8b0957cdb994d971a505f77a57ddac808ef1ea84f4bb9e7a2e",
    "train-labels-idx1-ubyte": "5dbd7686910cb66a8a6303f16940c2fae43896243c187897cd3976aab00f4817",
    "t10k-images-idx3-ubyte": "39a5f23fe7320d50d2b650bd96c756db7999a84cb13541d939296ed59f1e0663",
    "t10k-labels-idx1-ubyte": "66e4c6deb5f2a061f7d8cd5ec53025fdb9dabb08265e449acb8cf64b8cd36cac",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Digits(torch.utils.data.Dataset):
    """Images of digits, their labels, and the name of these data."""

    images: torch.Tensor  # uint8 (N, 28, 28), ink 255 on background 0
    labels: torch.Tensor  # int64 (N,), 0..9
    name: str = ""  # every file that is made from them repeats it

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: int | slice | torch.Tensor) -> "tuple[torch.Tensor, int] | Digits":
        """Return an image, (28, 28), and its label; or Digits, by a slice, indices or a mask."""
        if isinstance(rows, numbers.Integral):
            return self.images[rows], int(self.labels[rows])
        return Digits(self.images[rows], self.labels[rows], self.name)

    def to(self, device: str | torch.device) -> "Digits":
        """Return them on a device."""
        return Digits(self.images.to(device), self.labels.to(device), self.name)

    def named(self, name: str) -> "Digits":
        """Return them under another name."""
        return Digits(self.images, self.labels, name)


def load_data(data_dir: str | os.PathLike, sample: bool) -> tuple[Digits, Digits]:
    """Return the training digits and the test digits: MNIST's, or those of the bundled sample.

    Where MNIST can't be had, the sample stands in for it, with a warning, and its name says so.
    """
    if not sample:
        try:
            return load_mnist(data_dir, train=True), load_mnist(data_dir, train=False)
        except FileNotFoundError as error:
            print(
                f"WARNING: {error}\nWARNING: training on the 5,000 bundled digits instead of "
                "MNIST's 70,000; expect a lower accuracy",
                file=sys.stderr,
            )
    name = SAMPLE_NAME if sample else f"{SAMPLE_NAME}, since MNIST could not be downloaded"
    return load_sample(train=True).named(name), load_sample(train=False).named(name)


def load_mnist(data_dir: str | os.PathLike, train: bool, download: bool = True) -> Digits:
    """Load the 60,000 training or the 10,000 test digits of MNIST, and verify them.

    The files are in MNIST/raw/ of the folder, extracted or .gz, in torchvision's layout. Raises
    FileNotFoundError if one is missing and was not downloaded, and ValueError if one is damaged:
    it is named, and left as it is.
    """
    raw_dir = Path(data_dir) / "MNIST" / "raw"
    remedy = "python train.py downloads MNIST, and so does load_mnist with download=True"
    try:
        return read_digits("MNIST", raw_dir, train, MNIST_SHA256, remedy)
    except FileNotFoundError:
        if not download:
            raise
    download_mnist(raw_dir)
    return load_mnist(data_dir, train, download=False)


def load_sample(train: bool) -> Digits:
    """Load digits of MNIST's training set: 4,000 to train on, or 1,000 others to test on."""
    raw_dir = PROJECT_DIR / "sample" / "MNIST" / "raw"
    remedy = "get the project's sample folder again"
    return read_digits(SAMPLE_NAME, raw_dir, train, SAMPLE_SHA256, remedy)


def download_mnist(raw_dir: Path) -> None:
    """Fetch MNIST beside `raw_dir`, and move it there when it is complete and verified."""
    from torchvision.datasets import MNIST  # here, because it takes a second to import

    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none: it would wait forever
    try:
        raw_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=raw_dir.parent) as folder:
            MNIST(folder, download=True)
            for file in Path(folder, "MNIST", "raw").iterdir():
                if not (raw_dir / file.name).exists():
                    os.replace(file, raw_dir / file.name)
    except Exception as error:  # networks fail in a dozen types, RuntimeError among them
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"MNIST could not be downloaded to {raw_dir}: {reason}"
        raise FileNotFoundError(message) from error
    finally:
        socket.setdefaulttimeout(previous_timeout)


def read_digits(
    name: str, raw_dir: Path, train: bool, sha256: dict[str, str], remedy: str
) -> Digits:
    """Read and verify one split; `remedy` says where a bad file is to be had."""
    split = "train" if train else "t10k"
    files = (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte")
    images, labels = (read_verified(raw_dir / file, sha256[file], remedy) for file in files)
    # The headers hold the sizes: four bytes for each dimension, after four that count them.
    return Digits(images[16:].view(-1, IMAGE_SIZE, IMAGE_SIZE), labels[8:].long(), name)


def read_verified(path: Path, sha256: str, remedy: str) -> torch.Tensor:
    """Return the bytes of an IDX file or of its .gz, uint8 (n,), once they are verified."""
    if not path.exists():
        path = path.with_name(path.name + ".gz")
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; {remedy}")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            content = b""  # fails the check below, like any other damage
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path}: damaged or altered (wrong SHA-256): delete it; {remedy}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


# ---- Batches ------------------------------------------------------------------------


def shuffled_batches(
    digits: Digits, size: int, strengths: list[float], seed: int, part: slice = slice(None)
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Yield every digit once, in random order, in batches for the network.

    Each batch is images, normalized (n, 1, 28, 28), their labels, (n,), and its whole size; the
    last may be smaller. For each there is a strength of the distortion (see `augment`), or 0 for
    none. Of several processes, each takes its part of each batch. Their distortions differ, their
    order does not, and the same seed gives the same batches.
    """
    device = digits.labels.device
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator(device).manual_seed(seed + 1 + (part.start or 0))
    for rows, strength in zip(order.to(device).split(size), strengths, strict=True):
        wanted = digits[rows[part]]
        images = augment(wanted.images, generator, strength) if strength else wanted.images
        yield normalize(images), wanted.labels, len(rows)


# At the start of a run; from there it fades to LAST_STRENGTH of that. Strong distortion keeps
# the network from learning digits by heart; in the end it sees them nearly as they are.
MAX_ROTATION = 15.0  # degrees
MAX_SHIFT = 3.0  # pixels
MAX_SCALE = 0.15  # of the size
MAX_SHEAR = 7.5  # degrees
LAST_STRENGTH = 1 / 3

# What is around a digit on paper, and what pens and scanners do to it: the shares of the images
# that get each of them, likewise at the start.
NEIGHBOURS = 0.12  # a piece of another digit at one side
RULED = 0.08  # what is left of a ruled or printed line
JOINS = 0.08  # a stroke that goes on to the next digit
BREAKS = 0.08  # a gap in the strokes
FILLED = 0.04  # small loops full of ink
PENS = 0.2  # thinner or thicker strokes
NEIGHBOUR_SHIFTS = (14, 20)  # pixels to the side; MNIST's digits are at most 20 px wide
MAX_THINNER = 0.6  # of a pixel on each side, so that hairlines stay
MAX_DROP = 4  # pixels that a neighbour is higher or lower
CENTER = (torch.arange(IMAGE_SIZE) + 0.5) / (IMAGE_SIZE / 2) - 1  # of pixels, from -1 to 1


def fading(progress: float, epochs: int) -> float:
    """Return the strength of the distortion, given the share of a run of some epochs that is done.

    In one epoch no digit is shown twice, and none can be learned by heart: half is enough there.
    """
    return min(1, math.sqrt(epochs) / 2) * (1 - (1 - LAST_STRENGTH) * progress)


def augment(
    images: torch.Tensor, generator: torch.Generator, strength: float = 1.0
) -> torch.Tensor:
    """Change a batch as other hands, pens and surroundings would, each image in its own way.

    Takes pixel values 0..255, (N, 28, 28), in random order, a generator on the same device, and
    how strongly, 0..1, where 1 means by the greatest amounts. Returns float32 pixel values 0..255,
    (N, 1, 28, 28).
    """
    images = add_context(images.unsqueeze(1).float(), generator, strength)
    return soften(distort(images, generator, strength), generator)


def distort(images: torch.Tensor, generator: torch.Generator, strength: float) -> torch.Tensor:
    """Rotate, scale, shear and shift each image, (N, 1, 28, 28), at random."""
    n, device = len(images), generator.device
    random = torch.empty(5, n, device=device).uniform_(-1, 1, generator=generator)
    random *= strength
    angle = math.radians(MAX_ROTATION) * random[0]
    scale = 1 + MAX_SCALE * random[1]
    shear = (math.radians(MAX_SHEAR) * random[2]).tan()
    shift = MAX_SHIFT / (IMAGE_SIZE / 2) * random[3:]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # Rotation and scale after shear, then shift.
    matrix = torch.stack([cos, cos * shear - sin, shift[0], sin, sin * shear + cos, shift[1]], 1)
    # One product for the whole batch, four times faster than F.affine_grid's one an image.
    center = CENTER.to(device)
    x, y = center.repeat(IMAGE_SIZE), center.repeat_interleave(IMAGE_SIZE)
    grid = matrix.view(2 * n, 3) @ torch.stack([x, y, torch.ones_like(x)])  # (2n, 784)
    grid = grid.view(n, 2, IMAGE_SIZE, IMAGE_SIZE)
    # Where each pixel was: x and y, which run from -1 to 1 across the image, (n, 28, 28, 2).
    grid = grid.permute(0, 2, 3, 1)
    # Bilinear interpolation would blur every image, and no network would know sharp ones.
    return F.grid_sample(images, grid, mode="bicubic", align_corners=False).clamp(0, 255)


def soften(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Soften each image, (N, 1, 28, 28), as reading does, or less, or not at all."""
    weights = torch.tensor(SOFT).to(images)
    softened = F.conv2d(images, weights.outer(weights).view(1, 1, 3, 3), padding=1)
    return images.lerp(softened, uniform(len(images), 0, 1, generator).view(-1, 1, 1, 1))


def add_context(images: torch.Tensor, generator: torch.Generator, strength: float) -> torch.Tensor:
    """Give some of the images, (N, 1, 28, 28), what is around digits on paper, and other pens.

    Each kind gets rows of its own: they are in random order as they are.
    """
    shares = {
        add_neighbours: NEIGHBOURS,
        add_ruled_lines: RULED,
        add_joins: JOINS,
        add_breaks: BREAKS,
        fill_loops: FILLED,
        change_pens: PENS,
    }
    changed, start = images.clone(), 0
    for change, share in shares.items():
        stop = start + round(share * strength * len(images))
        if stop > start:
            changed[start:stop] = change(images[start:stop], generator)
        start = stop
    return changed


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Return n random numbers."""
    return torch.empty(n, device=generator.device).uniform_(low, high, generator=generator)


def add_neighbours(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Put another digit of the batch at one side of each image, where it is cut off."""
    n = len(images)
    sides = uniform(n, -1, 1, generator).sign()
    x = sides * uniform(n, *NEIGHBOUR_SHIFTS, generator)
    y = uniform(n, -MAX_DROP, MAX_DROP, generator)
    places = torch.arange(IMAGE_SIZE, device=images.device)
    others = F.pad(images.roll(1, 0), [IMAGE_SIZE] * 4)[:, 0]  # (n, 84, 84), black around
    rows = places + IMAGE_SIZE - y.round().long()[:, None]  # (n, 28)
    columns = places + IMAGE_SIZE - x.round().long()[:, None]
    at = torch.arange(n, device=images.device)[:, None, None]
    return images.maximum(others[at, rows[:, :, None], columns[:, None, :]].unsqueeze(1))


def add_ruled_lines(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a line below each digit or through it, of any darkness, from side to side or less."""
    n = len(images)
    height = uniform(n, -0.5, 1, generator)
    start = torch.stack([uniform(n, -1.5, 0, generator), height])
    stop = torch.stack([uniform(n, 0, 1.5, generator), height])
    ink = uniform(n, 0.3, 1, generator).view(n, 1, 1, 1)
    return images.maximum(255 * ink * segments(start, stop, uniform(n, 0.5, 2, generator)))


def add_joins(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a stroke from the middle of each digit to one side, where the next digit would be."""
    n = len(images)
    side = uniform(n, -1, 1, generator).sign()
    start = torch.stack([side * uniform(n, 0.1, 0.4, generator), uniform(n, -0.7, 0.7, generator)])
    stop = torch.stack([side * uniform(n, 0.6, 1, generator), uniform(n, -0.7, 0.7, generator)])
    return images.maximum(255 * segments(start, stop, uniform(n, 1.5, 3, generator)))


def add_breaks(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cut a gap into each digit, as pens and thresholds leave them."""
    n = len(images)
    start, stop = uniform(4 * n, -0.6, 0.6, generator).view(2, 2, n)
    return images * (1 - segments(start, stop, uniform(n, 0.5, 2, generator)))


def fill_loops(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Close holes up to 4 px wide."""
    return -thicken(-thicken(images, 2), 2)


def change_pens(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Make the strokes thinner or thicker."""
    amount = uniform(len(images), -MAX_THINNER, 1, generator).view(-1, 1, 1, 1)
    thick, thin = thicken(images, 1), -thicken(-images, 1)
    return images.lerp(torch.where(amount > 0, thick, thin), amount.abs())


def thicken(images: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the maximum within some pixels of each: F.max_pool2d, but ten times as fast."""
    for margins, axis in (([0, 0, reach, reach], 2), ([reach, reach], 3)):
        padded = F.pad(images, margins, value=-255.0)
        views = [padded.narrow(axis, i, IMAGE_SIZE) for i in range(2 * reach + 1)]
        images = functools.reduce(torch.maximum, views)
    return images


def segments(start: torch.Tensor, stop: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Draw a stroke for each image: 0..1, (n, 1, 28, 28).

    Takes the ends, x and y from -1 to 1, (2, n), and the widths in pixels, (n,).
    """
    center = CENTER.to(start.device)
    along = stop - start
    x = center[None, None, :] - start[0][:, None, None]  # (n, 1, 28)
    y = center[None, :, None] - start[1][:, None, None]  # (n, 28, 1)
    dx, dy = along[:, :, None, None]  # (n, 1, 1)
    share = ((x * dx + y * dy) / (dx**2 + dy**2 + 1e-6)).clamp(0, 1)  # (n, 28, 28)
    distance = IMAGE_SIZE / 2 * torch.hypot(x - share * dx, y - share * dy)  # in pixels
    return (0.5 + width[:, None, None] / 2 - distance).clamp(0, 1).unsqueeze(1)
