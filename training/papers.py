"""What scenes are made of, as images, float (192, 192): ink, textures, photos and light."""

import math

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from training.forms import oval
from training.strokes import Segments

SIZE = 192  # pixels a side
FINE = 4  # a pen draws on a canvas that is so many times as large
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float32) / SIZE - 0.5
Random = np.random.Generator


def log_uniform(rng: Random, low: float, high: float) -> float:
    """Draw a number between two, the small ones as likely as the large ones."""
    return math.exp(rng.uniform(math.log(low), math.log(max(low, high))))


def coverage(marks: list[tuple[Segments, np.ndarray]], fine: int = FINE) -> np.ndarray:
    """Draw segments with round pens: how much of each pixel they cover, float (192, 192)."""
    canvas = Image.new("L", (SIZE * fine, SIZE * fine))
    draw = ImageDraw.Draw(canvas)
    for drawing, widths in marks:
        ends = (drawing.reshape(-1, 4) * fine).tolist()
        for (x, y, x2, y2), width in zip(ends, (widths * fine).tolist(), strict=True):
            draw.line((x, y, x2, y2), 255, max(1, round(width)))
            if width > FINE / 2:
                r = width / 2 - 0.5
                draw.ellipse((x - r, y - r, x + r, y + r), 255)
                draw.ellipse((x2 - r, y2 - r, x2 + r, y2 + r), 255)
    return np.asarray(canvas.reduce(fine), np.float32) / 255


def clouds(rng: Random, cells: int) -> np.ndarray:
    """Return smooth noise, of standard deviation 1, with so many spots a side."""
    values = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(values.resize((SIZE, SIZE), Image.BICUBIC))


def across(rng: Random) -> np.ndarray:
    """Return how far each pixel is from the middle in some direction, -0.7..0.7."""
    angle = rng.uniform(0, 2 * math.pi)
    return COLUMNS * math.cos(angle) + ROWS * math.sin(angle)


def texture(rng: Random) -> np.ndarray:
    """Wood, cloth, blots, checks, planks, stripes or noise: float (192, 192), about 0..1."""
    bend = clouds(rng, 5) * rng.choice([0, 0.01, 0.04])
    u, v = ((across(rng) + bend) * log_uniform(rng, 2, 80) * 2 * math.pi for _ in range(2))
    kind = rng.integers(5)
    if kind == 0:
        values = np.sin(u) * np.sin(v)
    elif kind == 1:
        values = np.sin(u) + rng.choice([0, 0.5]) * np.sin(v)
    elif kind == 2:
        values = sum(clouds(rng, cells) * 3 / cells for cells in (4, 9, 21, 50, 120))
    elif kind == 3:  # planks, tiles, the slits between them
        values = np.sin(np.floor(u) * 99) * 0.3 - 4.0 * (u % 1 < rng.uniform(0.02, 0.2))
    else:
        values = rng.standard_normal((SIZE, SIZE), np.float32) + 2 * clouds(rng, 12)
    values = values / (values.std() + 1e-6) * rng.choice([0.1, 0.2, 1, 8])
    return (0.5 + 0.5 * values).clip(-0.1, 1.1) * rng.uniform(0.4, 1) + rng.uniform(0, 0.3)


def photo(photos: list[np.ndarray], rng: Random) -> np.ndarray:
    """A piece of a natural photo, turned and scaled: float (192, 192), 0..1."""
    if not photos or rng.random() < 0.4:
        return things(rng)
    whole = Image.fromarray(photos[rng.integers(len(photos))])
    side = log_uniform(rng, 50, min(whole.size))
    x, y = rng.uniform(0, whole.width - side), rng.uniform(0, whole.height - side)
    piece = whole.resize((SIZE, SIZE), Image.BILINEAR, (x, y, x + side, y + side))
    values = np.rot90(np.asarray(piece, np.float32) / 255, rng.integers(4))
    return values[:, :: rng.choice([-1, 1])] ** rng.uniform(0.5, 2)


def things(rng: Random) -> np.ndarray:
    """Hands, faces and other things, as shaded shapes: float (192, 192), about 0..1."""
    values = texture(rng) if rng.random() < 0.3 else rng.uniform(0, 1) + clouds(rng, 4) * 0.1
    size, place, tone = (
        log_uniform(rng, 15, 80),
        rng.uniform(0.15, 0.85, 2) * SIZE,
        rng.uniform(0, 1),
    )
    for i in range(rng.integers(1, 9)):
        if i and rng.random() < 0.4:  # a finger, a leg, an edge
            limb = np.stack([place, place + rng.normal(0, 1.3, 2) * size])
            shape = coverage([(limb[None], np.full(1, rng.uniform(0.15, 0.5) * size))], fine=1)
        else:
            box = (*(place - size * rng.uniform(0.2, 1, 2)), *(size * rng.uniform(0.3, 2, 2)))
            shape = filled(oval(*box)[:: rng.integers(1, 6)])
        tone = rng.choice([tone, rng.uniform(0, 1)])
        values = values * (1 - shape) + shape * (tone + rng.uniform(0, 0.9) * across(rng))
    return ndimage.gaussian_filter(values, rng.uniform(0.3, 3))


def filled(corners: np.ndarray) -> np.ndarray:
    """Return a polygon as an image: float (192, 192), 1 inside."""
    canvas = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners.tolist()], 255)
    return np.asarray(canvas, np.float32) / 255


def lit(image: np.ndarray, rng: Random, easy: bool) -> np.ndarray:
    """Let light fall: from a side, the edges of shadows, creases, a vignette or a glare."""
    for _ in range(0 if easy and rng.random() < 0.6 else rng.choice([0, 0, 1, 2])):
        softness = log_uniform(rng, 0.003, 0.5)
        edge = (across(rng) - rng.uniform(-0.4, 0.4)) / softness
        image = image * (1 - rng.uniform(0.05, 0.8) / (1 + np.exp(-edge.clip(-30, 30))))
    if not easy and rng.random() < 0.2:
        x, y = rng.uniform(-0.3, 0.3, 2)
        far = (COLUMNS - x) ** 2 + (ROWS - y) ** 2
        if rng.random() < 0.7:
            image = image * (1 - far * rng.uniform(0.3, 1.2)).clip(0.1)
        else:
            image = image + (1 - image) * np.exp(-far / 0.03) * rng.uniform(0.2, 0.7)
    return image * rng.uniform(0.6, 1)
