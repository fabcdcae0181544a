"""Synthetic training images: digits in ways of writing that MNIST lacks, and non-digits.

    images, labels = draw_handwriting(6000, seed=0)
    images = draw_non_digits(6000, seed=0)

Half of the world writes a 1 with an upstroke, a 7 with a bar, a 4 as a bolt of lightning or a 9
with a curled tail; MNIST's American writers seldom did. forms.txt is a table of such forms. Their
strokes are mixed, shaken, bent, slanted and stretched at random, and drawn in MNIST's geometry. A
network that has seen nothing but digits takes a letter for one with great confidence. So it is
shown letters, signs, shapes, print, scribbles and textures as well; lines.py has pieces of digits.
"""

import functools

import numpy as np
import scipy
import torch
from PIL import Image, ImageDraw, ImageFont

from model import IMAGE_SIZE
from reading.ink import bounding_box
from reading.preprocessing import BOX_SIZE, MAX_SMALL_WIDTH, STROKE_WIDTHS, draw_sharply
from training.forms import FORMS, Random, Strokes, curve, line, oval, segments

# Pairs are the minimum and the maximum.
SERIFS, SERIF_LENGTH = 0.25, 0.26  # how many letters have them, and as a share of their height
SLANTS = (-0.2, 0.45)  # to the right, as a share of the height; more hands lean right
STRETCHES = (0.8, 1.5)  # factors for the width; some scanners fill a square
BEND = 0.08  # standard deviation of each quadratic term
PEN_WIDTHS = (1.2, 4.2)  # pixels, of a digit 20 px high; a thin one is widened, as in reading
EDGE_WIDTHS = (1.0, 3.0)  # pixels from no ink to full ink: as sharp as MNIST, or scaled up
FAINT = 0.25  # of the strongest ink: at the edges, what is not above it is cropped


# ---- From strokes to pixels --------------------------------------------------------------


def draw_handwriting(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw n digits, one of each form in turn.

    Returns images like MNIST's, uint8 (n, 28, 28), ink 255 on background 0, and their labels,
    int64 (n,), 0..9. The same seed gives the same bytes, and a smaller n gives the first of them.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    images = np.zeros((n, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    labels = np.zeros(n, np.int64)
    for i in range(n):
        form = FORMS["digit"][i % len(FORMS["digit"])]
        labels[i], images[i] = int(form.name[0]), draw(form.write(rng), rng)
    return torch.from_numpy(images), torch.from_numpy(labels)


def draw(strokes: Strokes, rng: Random) -> np.ndarray:
    """Draw strokes in MNIST's geometry, in a random hand and with a random pen: uint8 (28, 28).

    The longer side is 20 px, and the centre of mass lies within half a pixel of the middle.
    """
    lines = segments(vary(strokes, rng))
    low, high = lines.min(axis=(0, 1)), lines.max(axis=(0, 1))
    size = max((high - low).max(), 1e-6)  # a dot has none
    pen = enlarged_pen(rng.uniform(*PEN_WIDTHS), size)
    edge = min(pen, rng.uniform(*EDGE_WIDTHS))  # a wider edge would leave no pixel full
    pen = min(pen, BOX_SIZE - edge)
    scale = (BOX_SIZE - pen - edge) / size
    distance = distance_to_segments((lines - (low + high) / 2) * scale + IMAGE_SIZE / 2)
    ink = (0.5 + (pen / 2 - distance) / edge).clip(0, 1)
    # Shift by whole pixels, as MNIST does. Its middle is half a pixel off, in pixel (14, 14).
    places = np.arange(IMAGE_SIZE) - IMAGE_SIZE // 2
    offset = [ink.sum(axis=axis) @ places / ink.sum() for axis in (1, 0)]
    ink = np.roll(ink, [-round(o) for o in offset], axis=(0, 1))
    return (255 * ink).round().astype(np.uint8)


def enlarged_pen(pen: float, size: float) -> float:
    """Return how wide the strokes are of something `size` times as high or wide as a digit.

    Takes the pen's width at a digit, 20 px high. What is smaller is enlarged to 20 px with its
    strokes, and what is larger becomes small. Then they are thinned, or widened, as
    `draw_sharply` does it. So a dot fills the box, and a minus sign is a bar.
    """
    width = pen * BOX_SIZE / (size * (BOX_SIZE - pen) + pen)
    grow = (np.clip(width, STROKE_WIDTHS[0], MAX_SMALL_WIDTH) - width) / 2
    return width * (BOX_SIZE - 2 * grow) / BOX_SIZE + 2 * grow


def vary(strokes: Strokes, rng: Random) -> Strokes:
    """Slant, stretch and bend strokes at random, as another hand would write them."""
    slant, stretch = rng.uniform(*SLANTS), rng.uniform(*STRETCHES)
    bend = rng.normal(0, BEND, (3, 2))
    points = np.concatenate(strokes)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    varied = []
    for stroke in strokes:
        x, y = (stroke - middle).T
        bent = np.stack([x * x, x * y, y * y], axis=1) @ bend
        varied.append(np.stack([stretch * x - slant * y, y], axis=1) + bent)
    return varied


def distance_to_segments(segments: np.ndarray) -> np.ndarray:
    """Return how far each pixel is from the nearest segment: (S, 2 ends, 2) to (28, 28)."""
    segments = segments.astype(np.float32)
    start, along = segments[:, 0], segments[:, 1] - segments[:, 0]  # (S, 2)
    pixels = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    x, y = pixels - start[:, :1], pixels - start[:, 1:]  # (S, 28)
    dot = (y * along[:, 1:])[:, :, None] + (x * along[:, :1])[:, None, :]  # (S, 28, 28)
    square = (along**2).sum(axis=1)[:, None, None] + 1e-6  # a dot has no length
    share = (dot / square).clip(0, 1)  # of the segment that lies before its nearest point
    squares = (y**2)[:, :, None] + (x**2)[:, None, :] - share * (2 * dot - share * square)
    return np.sqrt(squares.min(axis=0).clip(0))


# ---- Non-digits --------------------------------------------------------------------------

NON_DIGIT = 10  # the label of a non-digit among training digits
# What is printed, alone or in words: characters that nobody reads as digits.
PRINTED = list("ACDEFGHJKLMNPQRTUVWXYacdefhjkmnprtuvwxy+-=*[].,:;%#?!&<>@$")
PRINT_SIZE = 40  # pixels


def written(rng: Random, kind: str) -> Strokes:
    """Return a form of some kind in a shaky hand; a letter may have serifs."""
    strokes = FORMS[kind][rng.integers(len(FORMS[kind]))].write(rng)
    if kind == "letter" and rng.random() < SERIFS:
        ends = np.concatenate([stroke[[0, -1]] for stroke in strokes])
        strokes += [end + np.array([[-0.5, 0], [0.5, 0]]) * SERIF_LENGTH for end in ends]
    return strokes


digit = functools.partial(written, kind="digit")
glyph = functools.partial(written, kind="letter")


def word(rng: Random) -> Strokes:
    """Return two to four letters in a row."""
    strokes, right = [], 0.0
    for _ in range(rng.integers(2, 5)):
        letter = glyph(rng)
        strokes += [stroke + np.array([right, 0]) for stroke in letter]
        right = max(stroke[:, 0].max() for stroke in strokes) + rng.uniform(0, 0.3)
    return strokes


def script(rng: Random) -> Strokes:
    """Return a piece of a word in joined-up writing: loops or arches of several heights."""
    n = rng.integers(2, 7)
    turns = np.linspace(0, n, 14 * n)
    heights = np.repeat(rng.choice([0.4, 0.5, 1.0], n), 14)
    x = rng.uniform(0.25, 0.5) * turns - rng.uniform(-0.1, 0.15) * np.sin(2 * np.pi * turns)
    y = -heights * (1 - np.cos(2 * np.pi * turns)) / 2
    return [np.stack([x, y], axis=1)]


def ruled_lines(rng: Random) -> Strokes:
    """Return what is left of ruled lines, and of strokes that stood on them."""
    gap, left, right = rng.uniform(0.3, 1), rng.uniform(-0.5, 0.5), rng.uniform(1.5, 3)
    strokes = [
        line((left + rng.normal(0, 0.3), y), (right + rng.normal(0, 0.3), y + rng.normal(0, 0.05)))
        for y in gap * np.arange(rng.integers(1, 4))
    ]
    for x in rng.uniform(left, right, rng.integers(0, 5)):
        top, bottom = rng.uniform(-0.4, 0.4, 2)
        strokes.append(curve((x, top), (x + rng.normal(0, 0.2), 0), (x, bottom)))
    return strokes


def scribble(rng: Random) -> Strokes:
    """Return one long stroke that wanders about, with corners or without."""
    points = rng.uniform(0, 1, (rng.integers(5, 15), 2))
    return [line(*points) if rng.random() < 0.5 else curve(*points)]


def doodle(rng: Random) -> Strokes:
    """Return lines, curves and ovals at random places."""
    strokes = []
    for _ in range(rng.integers(4, 9)):
        points = rng.uniform(0, 1, 2) + rng.normal(0, 0.3, (rng.integers(2, 5), 2))
        sides, angles = rng.uniform(0.1, 0.7, 2), (rng.uniform(0, 360), rng.uniform(90, 360))
        shapes = line(*points), curve(*points), oval(*points[0], *sides, *angles)
        strokes.append(shapes[rng.integers(3)])
    return strokes


def character(rng: Random) -> Strokes:
    """Return strokes like those of a Chinese or Korean character: level, upright, boxes, rings."""
    strokes = []
    for _ in range(rng.integers(3, 9)):
        x, y, wide, high = rng.uniform((0, 0, 0.3, 0.3), (0.7, 0.7, 0.9, 0.9))
        across, down = line((x, y), (x + wide, y - 0.05)), line((x, y), (x, y + high))
        box = line((x, y), (x + wide, y), (x + wide, y + high), (x, y + high), (x, y))
        sweep = curve((x + wide, y), (x + 0.7 * wide, y + 0.6 * high), (x, y + high))
        ring = oval(x, y, 0.7 * wide, 0.7 * high)
        shapes = across, across, down, down, sweep, box, ring
        strokes.append(shapes[rng.integers(len(shapes))])
    return strokes


def printed(rng: Random) -> np.ndarray:
    """Return up to five printed characters in a row, light to bold: ink, (H, W) in 0..1."""
    text = "".join(rng.choice(PRINTED, max(1, rng.integers(-1, 6))))
    font, bold = ImageFont.load_default(PRINT_SIZE), rng.integers(0, 4)  # Pillow brings it along
    left, top, right, bottom = font.getbbox(text, stroke_width=bold)
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), text, 255, font, stroke_width=bold)
    image = image.rotate(rng.normal(0, 5), Image.BICUBIC, expand=True)
    width = round(image.width * rng.uniform(0.8, 1.2))
    return np.asarray(image.resize((width, image.height))) / 255


def texture(rng: Random) -> np.ndarray:
    """Return blots, stripes or a grid, within a square or an ellipse: ink, (40, 40) in 0..1."""
    places = np.linspace(-1, 1, 40)
    x, y = places[None], places[:, None]
    angle, waves = rng.uniform(0, np.pi), rng.uniform(4, 20)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    stripes = np.sin(waves * along + rng.uniform(0, 6))
    grid = np.maximum(stripes, np.sin(waves * across))
    blots = scipy.ndimage.gaussian_filter(rng.normal(size=(40, 40)), rng.uniform(1, 7))
    values = (blots, blots, stripes, grid)[rng.integers(4)]
    values = (values - np.quantile(values, rng.uniform(0.4, 0.9))) / values.std()
    ellipse = np.hypot(x, y * rng.uniform(1, 1.6)) < 1
    return (0.5 + 3 * values).clip(0, 1) * (ellipse | (rng.random() < 0.4))


def spots(rng: Random) -> np.ndarray:
    """Return one to six spots, round or long, sharp or blurred: ink, (40, 40) in 0..1."""
    y, x = np.mgrid[:40, :40]
    ink = np.zeros((40, 40))
    for _ in range(max(1, rng.integers(-1, 7))):
        (left, top), (wide, high) = rng.uniform(8, 32, 2), rng.uniform(4, 8, 2)
        ink = np.maximum(ink, np.exp(-((((x - left) / wide) ** 2 + ((y - top) / high) ** 2) / 2)))
    return (0.5 + rng.uniform(1, 5) * (ink - 0.4)).clip(0, 1)


def cut_margins(ink: np.ndarray) -> np.ndarray:
    """Cut away the rows and columns at the edges that hold no ink, or faint ink only."""
    return ink[bounding_box(ink > FAINT * ink.max(), margin=0)]


STROKES = {
    "letters": glyph,
    "foreign letters": functools.partial(written, kind="foreign"),
    "characters": character,
    "signs": functools.partial(written, kind="sign"),
    "shapes": functools.partial(written, kind="shape"),
    "words": word,
    "script": script,
    "ruled lines": ruled_lines,
    "scribbles": scribble,
    "doodles": doodle,
}
INKS = {"print": printed, "textures": texture, "spots": spots}
RARE_KINDS = (
    *("spots", "textures", "doodles", "words", "foreign letters"),
    *("characters", "script", "doodles", "ruled lines", "foreign letters"),
)
# Letters and signs are the most frequent: they are where digits are read, and most like them.
NON_DIGIT_KINDS = [
    kind
    for rare in RARE_KINDS
    for kind in ("letters", "signs", "shapes", "letters", "signs", "print", "scribbles", rare)
]


def draw_non_digits(n: int, seed: int) -> torch.Tensor:
    """Draw n non-digits, one of each of `NON_DIGIT_KINDS` in turn.

    Returns images like MNIST's, uint8 (n, 28, 28). The same seed gives the same bytes.
    """
    rng = np.random.Generator(np.random.PCG64([seed, NON_DIGIT]))
    drawn = np.zeros((n, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for i in range(n):
        kind = NON_DIGIT_KINDS[i % len(NON_DIGIT_KINDS)]
        if kind in STROKES:
            drawn[i] = draw(STROKES[kind](rng), rng)
        else:
            ink = cut_margins(INKS[kind](rng)).astype(np.float32)
            # Half of them are drawn as small pictures are, whose shape is in gray.
            drawn[i] = (255 * draw_sharply(ink, small=rng.random() < 0.5)).round()
    return torch.from_numpy(drawn)
