"""Scenes: pictures of digits on all kinds of paper, made by code, and the ink of the digits.

    hands = load_hands(digits.images)
    scene = draw_scene(hands, seed=0, index=7)
    scene.kind, scene.image, scene.ink, scene.core  # "ruled", three times uint8 (256, 256)

A scene is drawn as a person would make it. Strokes are written with a pen, among other things
that are drawn or printed, on a paper; light falls on it, and a camera takes a picture. What the
strokes of digits cover is known exactly: it is what `training/train_ink.py` teaches a network to
find. In a quarter of the scenes there is no digit, and nothing to find.
"""

import functools
import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from training import synthetic
from training.synthetic import Strokes, curve, line, oval

SIZE = 256  # pixels a side
FINE = 4  # a pen draws on a canvas that is so many times as large
TURN = 2 * math.pi
Width = float | np.ndarray  # of a pen, in pixels: all along a stroke, or at each of its points
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Scene(NamedTuple):
    """A picture and what is to be found in it."""

    kind: str
    image: np.ndarray  # uint8 (256, 256), gray
    ink: np.ndarray  # uint8 (256, 256): how much of each pixel the strokes of digits cover
    core: np.ndarray  # uint8 (256, 256): the middle of the strokes, about a pixel wide


class Hands(NamedTuple):
    """What scenes are made from."""

    digits: list[Strokes]  # of MNIST's training digits, 1 high or wide
    photos: list[np.ndarray]  # uint8 (H, W)


# ---- Strokes -----------------------------------------------------------------------------

GRID = 3  # digits are thinned on a grid so many times as fine as their pixels
SKIP = 3  # every so many points of the grid, a stroke has one


def load_hands(images: torch.Tensor, count: int = 10000) -> Hands:
    """Take the strokes from digits, uint8 (N, 28, 28), and get scikit-learn's two photos."""
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    digits = []
    for some in np.array_split(images.numpy()[chosen], max(1, count // 250)):
        digits += [strokes for thin in thinned(some) if (strokes := traced(thin))]
    try:
        from sklearn.datasets import load_sample_images  # a development dependency

        photos = [photo.mean(axis=2).astype(np.uint8) for photo in load_sample_images().images]
    except ImportError:
        photos = []
    return Hands(digits, photos)


def thinned(images: np.ndarray) -> np.ndarray:
    """Thin the ink of images, uint8 (N, 28, 28), to lines on a finer grid (Zhang, Suen 1984)."""
    fine = ndimage.zoom(np.pad(images, ((0, 0), (2, 2), (2, 2))), (1, GRID, GRID), order=1)
    fine = ndimage.gaussian_filter(fine.astype(np.float32), (0, GRID / 2, GRID / 2))
    ink = fine > 0.5 * fine.max(axis=(1, 2), keepdims=True)
    ink[:, [0, -1]] = ink[:, :, [0, -1]] = False
    width = ink.shape[2]
    # The neighbours of a pixel, clockwise from the one above, as a number of eight bits.
    steps = (-width, 1 - width, 1, width + 1, width, width - 1, -1, -width - 1)
    codes = np.arange(256)[:, None] >> np.arange(8) & 1  # (256, 8)
    n_ink, rises = codes.sum(1), ((codes == 0) & (np.roll(codes, -1, 1) == 1)).sum(1)
    edge = (n_ink >= 2) & (n_ink <= 6) & (rises == 1)
    n, e, s, w = codes[:, ::2].T
    removable = (
        edge & (n * e * s == 0) & (e * s * w == 0),
        edge & (n * e * w == 0) & (n * s * w == 0),
    )
    flat, before = ink.reshape(-1), None
    while (places := np.flatnonzero(flat)).size != before:
        before = places.size
        for table in removable:
            code = sum(flat[places + step].astype(np.uint8) << i for i, step in enumerate(steps))
            flat[places[table[code]]] = False
            places = np.flatnonzero(flat)
    return ink


def traced(thin: np.ndarray) -> Strokes:
    """Follow thin lines, bool (H, W), from fork to fork; return smooth strokes, 1 high or wide."""
    left = {(int(x), int(y)) for y, x in np.argwhere(thin)}
    sides = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    corners = [(1, 1), (1, -1), (-1, 1), (-1, -1)]

    def neighbours(x: int, y: int) -> list[tuple[int, int]]:
        near = [(x + i, y + j) for i, j in sides if (x + i, y + j) in left]
        for i, j in corners:  # a corner that a side already leads to is no way of its own
            if (x + i, y + j) in left and (x + i, y) not in left and (x, y + j) not in left:
                near.append((x + i, y + j))
        return near

    links = {point: set(neighbours(*point)) for point in left}
    starts = sorted(links, key=lambda point: (len(links[point]) == 2, point))  # loops come last
    strokes = []
    for start in starts:
        while links[start]:
            path, here = [start], start
            while links[here]:
                following = min(links[here])
                links[here].discard(following)
                links[following].discard(here)
                here = following
                path.append(here)
                if len(neighbours(*here)) != 2:
                    break
            strokes.append(smoothed(np.array(path, float)))
    return unit(strokes)[0] if strokes else []


def smoothed(path: np.ndarray) -> np.ndarray:
    """Smooth a path on the grid, (P, 2), whose ends stay, and leave out most of its points."""
    for _ in range(GRID * 3):
        path[1:-1] = (path[:-2] + 2 * path[1:-1] + path[2:]) / 4
    return np.concatenate([path[:-1:SKIP], path[-1:]])


def unit(strokes: Strokes) -> tuple[Strokes, float, float]:
    """Move strokes to the origin, 1 high or wide; return them, their width and their height."""
    points = np.concatenate(strokes)
    low, size = points.min(axis=0), np.ptp(points, axis=0)
    scale = 1 / max(size.max(), 1e-6)
    return [(stroke - low) * scale for stroke in strokes], size[0] * scale, size[1] * scale


def drawn(kind: str, rng: np.random.Generator) -> Strokes:
    """Return what `synthetic` draws: a "digit", "letter", "word", "scribble" or "doodle"."""
    if kind == "digit":
        kinds = list(synthetic.KINDS.values())
        strokes = [np.zeros((1, 2))] * 9
        while len(strokes) > 6:  # a 1 of a broad pen is many strokes
            strokes = kinds[rng.integers(len(kinds))](rng.uniform)
    else:
        named = {"letter": "glyph"}.get(kind, kind)
        strokes = getattr(synthetic, named)(rng)
    return synthetic.vary(strokes, rng)


# Signs beside digits: the points of straight strokes, x and y on a grid where a digit is 9 high.
SIGN_TABLE = """
+  04 64 | 31 37
-  04 54
_  06 96
=  03 63 | 06 66
x  03 47 | 43 07
/  50 41 08 09
(  30 12 04 05 17 39
)  00 22 34 35 27 09
.  08 09
,  18 19 09
:  03 04 | 08 09
%  70 19 | 01 10 21 12 01 | 67 76 87 78 67
*  20 24 | 01 43 | 41 03
€  71 50 31 13 16 38 59 78 | 04 54 | 05 55
$  62 41 12 03 34 55 66 58 28 07 | 30 39
"""
SIGNS = {
    row[0]: [
        np.array([[int(x), int(y)] for x, y in stroke.split()]) / 9 for stroke in row[1:].split("|")
    ]
    for row in SIGN_TABLE.strip().splitlines()
}


# ---- A sheet that is written on ----------------------------------------------------------


class Sheet:
    """What is drawn on a sheet, before there is paper: strokes in pixels of the scene.

    `pixel` is how large the pixels of the picture will be, as the camera or the screen has fewer
    than the scene: no pen is much thinner.
    """

    def __init__(self, hands: Hands, rng: np.random.Generator) -> None:
        self.hands, self.rng = hands, rng
        self.pixel = 1.0
        self.pen = 3.0  # width in pixels
        self.height = 60.0  # of a digit
        self.slant = rng.normal(0, 0.12)
        self.unevenness = rng.choice([0, 0, 0.15, 0.35])  # of the pen's width
        self.digits: list[tuple[np.ndarray, Width]] = []  # strokes with their widths
        self.other: list[tuple[np.ndarray, Width]] = []
        self.boxes: list[Box] = []  # of the digits
        self.taken: list[Box] = []  # by words
        self.printed = np.zeros((SIZE, SIZE), np.float32)

    def choose_pen(self, height: float) -> None:
        """Take a pen from hairline to marker for digits so many pixels high."""
        self.height = height
        width = height * log_uniform(self.rng, 0.015, 0.22)
        self.pen = max(width, self.pixel * self.rng.uniform(0.9, 1.3))

    def digit(self) -> tuple[Strokes, float, float]:
        """Return the strokes of a digit in this hand, 1 high or wide, and their size."""
        rng = self.rng
        if rng.random() < 0.75:
            strokes = self.hands.digits[rng.integers(len(self.hands.digits))]
        else:
            strokes = drawn("digit", rng)
        turn, stretch = math.radians(rng.normal(0, 5)), math.exp(rng.normal(0, 0.15))
        matrix = np.array([[stretch, 0], [-self.slant, 1]])
        matrix = matrix @ [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
        return unit([stroke @ matrix for stroke in strokes])

    def write(self, strokes: Strokes, scale: float, x: float, y: float, digit: bool) -> None:
        """Write strokes at a place, as a digit or as something else."""
        onto = self.digits if digit else self.other
        for stroke in strokes:
            onto.append((stroke * scale + (x, y), self.pen * self.pressure(len(stroke))))

    def pressure(self, n_points: int) -> np.ndarray:
        """Return how wide a pen is along a stroke, as a share of its width, float (n_points,)."""
        waves = np.sin(np.linspace(0, self.rng.uniform(1, 8), n_points) + self.rng.uniform(0, TURN))
        return 1 + self.unevenness * waves

    def write_digit(self, scale: float, x: float, y: float) -> float:
        """Write a digit whose upper left corner is at (x, y); return its width."""
        strokes, width, height = self.digit()
        y += (1 - height) / 2 * scale
        self.write(strokes, scale, x, y, digit=True)
        self.boxes.append((x, y, x + width * scale, y + height * scale))
        return width * scale

    def write_sign(self, name: str, scale: float, x: float, y: float) -> float:
        """Write a sign, as digits are written that are `scale` pixels high; return its width."""
        stretch = self.rng.uniform(0.75, 1.25, 2)
        sign = [stroke * stretch + self.rng.normal(0, 0.02, stroke.shape) for stroke in SIGNS[name]]
        self.write(sign, scale, x, y, digit=False)
        return np.ptp(np.concatenate(sign)[:, 0]) * scale

    def one_digit(self) -> None:
        """Write one digit, from small to as large as the sheet, in the middle or anywhere."""
        rng = self.rng
        self.choose_pen(log_uniform(rng, min(max(18, 9 * self.pixel), 230), 245))
        free = SIZE - self.height - self.pen
        x, y = free / 2 + (
            rng.normal(0, 10, 2) if rng.random() < 0.5 else free * rng.uniform(-0.5, 0.5, 2)
        )
        self.write_digit(self.height, x + self.pen / 2, y + self.pen / 2)
        if rng.random() < 0.06:  # cut by the edge
            left, top, right, bottom = self.bounds()
            hidden = rng.uniform(0, 0.5) * (right - left)
            shift = np.array([-left - hidden if rng.random() < 0.5 else SIZE - right + hidden, 0])
            self.digits = [(stroke + shift, width) for stroke, width in self.digits]
            self.boxes = [(left + shift[0], top, right + shift[0], bottom)]

    def lines(self, signs: float = 0.0, min_height: float = 12, max_lines: int = 30) -> None:
        """Write lines of digits, some of which touch; `signs` is how frequent signs are."""
        rng = self.rng
        self.choose_pen(log_uniform(rng, max(min_height, 9 * self.pixel), 110))
        height, tilt = self.height, rng.normal(0, 0.04)
        gap, step = rng.uniform(-0.05, 0.35), rng.uniform(1.2, 2.2)
        y = rng.uniform(0, max(2, min(SIZE - 1.1 * height, 2 * height)))
        for _ in range(max_lines):
            x, stop = rng.uniform(2, 0.3 * SIZE), rng.uniform(0.4, 1.05) * SIZE
            while x < stop:
                scale = height * rng.uniform(0.8, 1.15)
                top = y + tilt * x + rng.normal(0, 0.05) * height
                if rng.random() < signs:
                    width = self.write_sign(rng.choice(list(SIGNS)), scale, x, top)
                else:
                    width = self.write_digit(scale, x, top)
                x += width + self.pen + height * max(-0.12, gap + rng.normal(0, 0.1))
            y += height * step
            if y + height > SIZE or rng.random() < 0.15:
                break

    def words(self, count: int, kinds: tuple[str, ...] = ("word", "letter")) -> None:
        """Write words by hand where no digit is."""
        rng = self.rng
        for _ in range(count):
            strokes, width, height = unit(drawn(rng.choice(kinds), rng))
            scale = log_uniform(rng, 14, 110) / max(height, 0.3)
            x, y = rng.uniform(0, SIZE - 20), rng.uniform(0, SIZE - 20)
            box = (x, y, x + width * scale, y + height * scale)
            if self.is_free(box):
                self.write(strokes, scale, x, y, digit=False)
                self.taken.append(box)

    def is_free(self, box: Box) -> bool:
        """Whether no digit and no word is near a place."""
        return all(
            box[2] + 6 < left or box[0] - 6 > right or box[3] + 6 < top or box[1] - 6 > bottom
            for left, top, right, bottom in self.boxes + self.taken
        )

    def bounds(self) -> Box:
        """Return the box around all digits, or one in the middle where there is none."""
        boxes = np.array(self.boxes or [(80, 80, 170, 170)])
        return (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0))

    def rectangle(self, box: Box, width: float, tilt: float = 0.0) -> None:
        """Draw a box with a ruler."""
        left, top, right, bottom = box
        d = tilt * (right - left)
        corners = [(left, top), (right, top + d), (right - d, bottom + d), (left - d, bottom)]
        self.other.append((line(*corners, corners[0]), width))

    def print_words(self, count: int) -> None:
        """Print words in a font, where no digit is."""
        rng = self.rng
        letters = list("aabcdeeefghiijklmnnoprrsttuvwxyzABCDEFGHIJKLMNOPRSTUVWXYZ")
        page, size = Image.new("L", (SIZE, SIZE)), log_uniform(rng, 8, 40)
        font, bold = print_font(round(size)), int(rng.random() < 0.2 and size > 14)
        draw = ImageDraw.Draw(page)
        for _ in range(count):
            text = " ".join(
                "".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(rng.integers(1, 5))
            )
            place = rng.uniform(-10, SIZE - 20), rng.uniform(-5, SIZE - 10)
            box = draw.textbbox(place, text, font=font)
            if self.is_free(box):
                draw.text(place, text, 255, font, stroke_width=bold)
                self.taken.append(box)
        self.printed = np.maximum(self.printed, np.asarray(page, np.float32) / 255)


@functools.cache
def print_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that comes with Pillow: there may be no other."""
    return ImageFont.load_default(size)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between two, the small ones as likely as the large ones."""
    return math.exp(rng.uniform(math.log(low), math.log(max(low, high))))


def coverage(strokes: list[tuple[np.ndarray, Width]], fine: int = FINE) -> np.ndarray:
    """Draw strokes with round pens: how much of each pixel they cover, float (256, 256)."""
    canvas = Image.new("L", (SIZE * fine, SIZE * fine))
    draw = ImageDraw.Draw(canvas)
    for stroke, width in strokes:
        widths = np.broadcast_to(width, len(stroke)) * fine
        points = [tuple(point) for point in (stroke * fine).tolist()]
        if widths.min() == widths.max():
            draw.line(points, 255, max(1, round(widths[0])))
        else:
            for start, stop, wide in zip(points, points[1:], widths[1:].tolist(), strict=False):
                draw.line((start, stop), 255, max(1, round(wide)))
        for (x, y), wide in zip(points, widths.tolist(), strict=True):
            if wide > 2:
                radius = wide / 2 - 0.5
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    return np.asarray(canvas.reduce(fine), np.float32) / 255


# ---- Papers and textures -----------------------------------------------------------------

ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float32) / SIZE - 0.5


def clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Return smooth noise, of standard deviation 1, with so many spots a side."""
    values = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(values.resize((SIZE, SIZE), Image.BICUBIC))


def grain(rng: np.random.Generator) -> np.ndarray:
    """Return noise of single pixels, of standard deviation 1."""
    return rng.standard_normal((SIZE, SIZE), np.float32)


def along(rng: np.random.Generator, angle: float, perspective: float, bow: float) -> np.ndarray:
    """Return how far each pixel is along a direction, on a paper seen aslant and curved."""
    x = COLUMNS * math.cos(angle) + ROWS * math.sin(angle)
    y = ROWS * math.cos(angle) - COLUMNS * math.sin(angle)
    depth = 1 + rng.normal(0, perspective) * x + rng.normal(0, perspective) * y
    curved = rng.normal(0, bow) * x * x + rng.normal(0, bow) * x * x * x
    return SIZE * (y + curved) / depth.clip(0.3)


def stripes(places: np.ndarray, step: float, width: float, start: float) -> np.ndarray:
    """Return lines, `step` pixels apart and `width` wide: how much they cover of each pixel."""
    offset = (places - start) / step
    distance = np.abs(offset - np.round(offset)) * step
    return (width / 2 - distance + 0.5).clip(0, min(1, width))


def ruled_lines(sheet: Sheet) -> np.ndarray:
    """Ruled or squared paper, in perspective or curved, with a margin or without."""
    rng = sheet.rng
    angle = rng.normal(0, 0.05) if rng.random() < 0.75 else rng.uniform(-0.5, 0.5)
    perspective, bow = rng.choice([0, 0.15, 0.5]), rng.choice([0, 0.03, 0.12])
    step = log_uniform(rng, 8, 90)
    width = max(0.5, step * rng.uniform(0.02, 0.1))
    places = along(rng, angle, perspective, bow)
    lines = stripes(places, step, width, rng.uniform(0, step))
    if rng.random() < 0.4:
        across = along(rng, angle + TURN / 4, perspective, bow)
        lines = np.maximum(lines, stripes(across, step, width, rng.uniform(0, step)))
    if rng.random() < 0.25:  # a margin
        across = along(rng, angle + TURN / 4, perspective, bow)
        lines = np.maximum(lines, stripes(across, 4 * SIZE, width * 1.4, rng.uniform(-100, 100)))
    return lines


def guilloche(rng: np.random.Generator) -> np.ndarray:
    """The fine waves of a cheque or a ticket."""
    pattern = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(rng.integers(1, 3)):
        places = along(rng, rng.uniform(0, TURN), 0.3, 0.3)
        waves = np.sin(TURN * (rng.uniform(1, 8) * COLUMNS + rng.uniform(-2, 2) * ROWS))
        step = log_uniform(rng, 4, 16)
        lines = stripes(places + waves * rng.uniform(0, 8), step, step * rng.uniform(0.1, 0.4), 0)
        pattern = np.maximum(pattern, lines)
    return pattern


def texture(rng: np.random.Generator) -> np.ndarray:
    """Wood, cloth, blots, checks, halftones, stripes or noise: float (256, 256), about 0..1."""
    u = along(rng, rng.uniform(0, TURN), 0.5, 0.5) + clouds(rng, 5) * rng.choice([0, 2, 10])
    v = along(rng, rng.uniform(0, TURN), 0.5, 0.5)
    wave = np.sin(u * TURN / log_uniform(rng, 3, 120))
    kind = rng.integers(5)
    if kind == 0:
        values = wave * np.sin(v * TURN / log_uniform(rng, 3, 120))
    elif kind == 1:
        values = wave + 0.5 * np.sin(v / rng.uniform(1, 20))
    elif kind == 2:
        values = clouds(rng, int(log_uniform(rng, 3, 100)))
    elif kind == 3:
        values = sum(clouds(rng, cells) * 3 / cells for cells in (4, 9, 21, 50, 120))
    else:
        values = grain(rng) if rng.random() < 0.3 else clouds(rng, 12) + wave
    values = values / (values.std() + 1e-6) * rng.choice([0.1, 0.2, 1, 8])
    return (0.5 + 0.5 * values).clip(-0.1, 1.1) * rng.uniform(0.4, 1) + rng.uniform(0, 0.3)


def photo(hands: Hands, rng: np.random.Generator) -> np.ndarray:
    """A piece of a natural photo, turned and scaled: float (256, 256), 0..1."""
    if not hands.photos:
        return texture(rng)
    whole = Image.fromarray(hands.photos[rng.integers(len(hands.photos))])
    side = log_uniform(rng, 50, min(whole.size))
    x, y = rng.uniform(0, whole.width - side), rng.uniform(0, whole.height - side)
    piece = whole.resize((SIZE, SIZE), Image.BILINEAR, (x, y, x + side, y + side))
    values = np.rot90(np.asarray(piece, np.float32) / 255, rng.integers(4))
    return values[:, :: rng.choice([-1, 1])] ** rng.uniform(0.5, 2)


def things(rng: np.random.Generator) -> np.ndarray:
    """Faces, hands and other things, as shaded shapes: float (256, 256), about 0..1."""
    values = rng.uniform(0, 1) + clouds(rng, 4) * rng.uniform(0, 0.15)
    for points, width, tone in thing(rng) + (thing(rng) if rng.random() < 0.5 else []):
        shape = coverage([(points, width)], fine=1) if width else filled(points)
        slope = COLUMNS * rng.uniform(-1, 1) + ROWS * rng.uniform(-1, 1)
        values = values * (1 - shape) + shape * (tone + 0.6 * slope)
    return ndimage.gaussian_filter(values, rng.uniform(0.3, 3)) + grain(rng) * rng.uniform(0, 0.04)


def thing(rng: np.random.Generator) -> list[tuple[np.ndarray, float, float]]:
    """Return the shapes of a hand, a face or something: points, the width or 0, the gray value."""
    kind, size, tone = rng.integers(3), log_uniform(rng, 20, 110), rng.uniform(0, 1)

    def ellipse(x: float, y: float, width: float, height: float, *arc: float) -> np.ndarray:
        return oval(x - width / 2, y - height / 2, width, height, *arc)

    if kind == 0:
        fan, bend = rng.uniform(0, TURN), rng.uniform(0.3, 0.5)
        shapes = [(ellipse(0, 0, 1, 1.1), 0, tone)]
        for angle in fan + bend * np.arange(-2, 3):
            tip = rng.uniform(1, 1.5) * np.array([math.cos(angle), math.sin(angle)])
            shapes.append((np.array([(0, 0), tip]), 0.27 * size, tone))
    elif kind == 1:
        shapes = [(ellipse(0, 0, 2, 2.4), 0, 1 - tone), (ellipse(0, 0.05, 1.6, 2), 0, tone)]
        eye = rng.uniform(0, 1)
        shapes += [(ellipse(x, -0.3, 0.25, 0.15), 0, eye) for x in (-0.35, 0.35)]
        shapes.append((ellipse(0, 0.4, 0.6, 0.4, 20, 140), 0.08 * size, tone / 2))
    else:
        outline = ellipse(0, 0, 2, rng.uniform(0.5, 3))[:: rng.integers(1, 6)]
        shapes = [(outline, 0, tone), (rng.normal(0, 1, (2, 2)), 0.8 * size, rng.uniform(0, 1))]
    place = rng.uniform(40, SIZE - 40, 2)
    return [(points * size + place, width, shade) for points, width, shade in shapes]


def filled(corners: np.ndarray) -> np.ndarray:
    """Return a polygon as an image: float (256, 256), 1 inside."""
    canvas = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners.tolist()], 255)
    return np.asarray(canvas, np.float32) / 255


# ---- Kinds of scenes ---------------------------------------------------------------------


def plain(sheet: Sheet) -> None:
    """A digit or a few lines on plain paper, or drawn on a screen."""
    few_pixels = sheet.pixel > 12
    sheet.one_digit() if few_pixels or sheet.rng.random() < 0.75 else sheet.lines()


def ruled(sheet: Sheet) -> None:
    """On ruled paper; the lines are added with the paper."""
    sheet.one_digit() if sheet.rng.random() < 0.6 else sheet.lines()


def form(sheet: Sheet) -> None:
    """In boxes, combs, rings and tables, between bars, above or on printed lines."""
    rng = sheet.rng
    sheet.one_digit() if rng.random() < 0.6 else sheet.lines(max_lines=rng.integers(1, 4))
    left, top, right, bottom = sheet.bounds()
    height, shape = sheet.height, rng.integers(6)
    gap, rise = rng.uniform(-0.05, 0.4) * height + sheet.pen, rng.normal(0, 0.03) * (right - left)
    width = max(sheet.pixel, log_uniform(rng, 0.01, 0.12) * height)
    around = (left - gap, top - gap, right + gap, bottom + gap * rng.uniform(0.6, 1.4))
    if shape <= 1:
        sheet.rectangle(around, width, rise if shape else 0)
    if shape == 0 and len(sheet.boxes) < 20:  # a comb, or a table whose cells hold the digits
        start = top - gap if rng.random() < 0.7 else bottom - 0.2 * height
        for x in (box[2] + gap / 3 for box in sheet.boxes):
            sheet.other.append((line((x, start), (x, bottom + gap)), width))
    elif shape == 2:  # a ring
        wide, high = 0.2 * height + gap, 0.15 * height + gap
        box = (left - wide, top - high, right - left + 2 * wide, bottom - top + 2 * high)
        ring = oval(*box, rng.uniform(0, 360), rng.uniform(320, 380))
        sheet.other.append((ring, max(width, sheet.pen / 2)))
    elif shape == 3:  # printed or drawn lines, that may touch
        levels = bottom + rng.uniform(-0.1, 0.3) * height, top - rng.uniform(-0.05, 0.3) * height
        for y in levels[: 1 + (rng.random() < 0.3)]:
            sheet.other.append((line((left - 2 * gap, y), (right + 2 * gap, y + rise)), width))
    elif shape == 4:  # a bar beside or below
        x, y = right + gap + 3 * width, bottom + gap + 3 * width
        bar = line((x, 0), (x, SIZE)) if rng.random() < 0.5 else line((0, y), (SIZE, y))
        sheet.other.append((bar, 4 * width))
    elif shape == 5:  # printed boxes elsewhere
        for x, y in rng.uniform(-20, SIZE, (rng.integers(1, 6), 2)):
            box = (x, y, x + rng.uniform(10, 120), y + rng.uniform(10, 60))
            if sheet.is_free(box):
                sheet.rectangle(box, max(1, width / 2))
    if rng.random() < 0.4:
        sheet.print_words(rng.integers(1, 6))


def amount(sheet: Sheet) -> None:
    """An amount of money: large digits that join, signs, printed lines that touch them."""
    rng = sheet.rng
    sheet.choose_pen(log_uniform(rng, 26, 90))
    height, tilt, gap = sheet.height, rng.normal(0, 0.04), rng.uniform(-0.1, 0.25)
    x, y = rng.uniform(-0.1, 0.25) * SIZE, rng.uniform(0.1, 0.9) * (SIZE - height) - tilt * SIZE / 2
    if rng.random() < 0.3:
        x += sheet.write_sign(rng.choice(list("$€=*(")), height, x, y) + 0.2 * height
    for _ in range(rng.integers(2, 10)):
        scale = height * rng.uniform(0.65, 1.15)
        top = y + tilt * x + height - scale * rng.uniform(0.9, 1.05)
        x += sheet.write_digit(scale, x, top)
        if rng.random() < 0.15:  # a stroke that joins it to the next
            ends = top + scale * rng.uniform(0, 1, 2)
            join = curve(
                (x - 0.1 * scale, ends[0]), (x, top + 0.4 * scale), (x + 0.2 * height, ends[1])
            )
            sheet.digits.append((join, sheet.pen))
        x += sheet.pen + height * max(-0.2, gap + rng.normal(0, 0.08))
        if rng.random() < 0.2:
            x += sheet.write_sign(rng.choice(list("..,-/")), height, x, y + tilt * x) + sheet.pen
        if x > SIZE:
            break
    if rng.random() < 0.5:  # what fills the field
        sheet.write_sign(rng.choice(list("_=-")), height, x + 0.1 * height, y + tilt * x)
    width = max(sheet.pixel, rng.uniform(0.6, 3))
    below, above = y + height * rng.uniform(0.85, 1.3), y - height * rng.uniform(-0.1, 0.4)
    for level, chance in ((below, 0.7), (above, 0.35)):
        if rng.random() < chance:
            sheet.other.append((line((-5, level), (SIZE + 5, level + rng.normal(0, 4))), width))
    if rng.random() < 0.2:
        sheet.rectangle((rng.uniform(-9, 20), above, SIZE - rng.uniform(-9, 20), below), width)
    if rng.random() < 0.3:
        sheet.print_words(rng.integers(1, 4))


def calculation(sheet: Sheet) -> None:
    """Digits and signs in lines."""
    sheet.lines(signs=sheet.rng.uniform(0.15, 0.5), max_lines=6)


def page(sheet: Sheet) -> None:
    """Small digits, with words by hand or in print around them."""
    rng = sheet.rng
    sheet.lines(signs=0.05, min_height=10)
    if rng.random() < 0.5:
        sheet.print_words(rng.integers(1, 12))
    if rng.random() < 0.5:
        sheet.words(rng.integers(1, 6))


def outlined(sheet: Sheet) -> None:
    """Digits of which only the outline is drawn; their inside is ink as well."""
    sheet.choose_pen(sheet.rng.uniform(70, 220))
    sheet.one_digit() if sheet.rng.random() < 0.8 else sheet.lines(min_height=60)
    sheet.pen = max(sheet.height * sheet.rng.uniform(0.1, 0.2), 8)
    sheet.digits = [(stroke, sheet.pen) for stroke, _ in sheet.digits]


def drawing(sheet: Sheet) -> None:
    """Doodles and scribbles."""
    rng = sheet.rng
    sheet.choose_pen(150)
    for _ in range(rng.integers(1, 4)):
        strokes, _, _ = unit(drawn(rng.choice(["doodle", "doodle", "scribble"]), rng))
        place = rng.uniform(-0.1, 0.4, 2) * SIZE
        sheet.write(strokes, log_uniform(rng, 60, 240), *place, digit=False)


def words(sheet: Sheet) -> None:
    """Words, letters and signs, in print or by hand."""
    rng = sheet.rng
    sheet.choose_pen(log_uniform(rng, 20, 100))
    if rng.random() < 0.5:
        sheet.print_words(rng.integers(1, 30))
    else:
        sheet.words(rng.integers(1, 9), ("word", "word", "letter"))
    for _ in range(rng.integers(0, 4)):
        name = rng.choice(list("+-=x)%*€$"))  # no slash: alone it is a 1
        sheet.write_sign(name, log_uniform(rng, 30, 150), *rng.uniform(0, 200, 2))


def empty(sheet: Sheet) -> None:
    """A paper, perhaps ruled, with a shadow, a box or a few lines, and nothing on it."""
    rng = sheet.rng
    if rng.random() < 0.4:
        corner, size = rng.uniform(0, 150, 2), rng.uniform(20, 200, 2)
        sheet.rectangle((*corner, *(corner + size)), rng.uniform(1, 8))
    for _ in range(rng.integers(0, 3)):
        ends = rng.uniform(0, SIZE, (2, 2))
        ends[1, 1] = ends[0, 1] + rng.normal(0, 10)  # level: upright, it would be a 1
        sheet.other.append((ends, rng.uniform(1, 12)))


# Name: how frequent, what is drawn. The last five have no digit.
KINDS: dict[str, tuple[int, Callable[[Sheet], None]]] = {
    "plain": (33, plain),
    "ruled": (9, ruled),
    "form": (10, form),
    "amount": (9, amount),
    "calculation": (4, calculation),
    "page": (6, page),
    "outlined": (2, outlined),
    "drawing": (6, drawing),
    "words": (8, words),
    "texture": (5, empty),
    "photo": (5, empty),
    "empty": (3, empty),
}


# How often a scene is drawn with a program; else with a pen on paper.
ON_SCREEN = {"plain": 0.5, "drawing": 0.3, "words": 0.2, "calculation": 0.2, "page": 0.15}


# ---- From a sheet to a picture -----------------------------------------------------------


def draw_scene(hands: Hands, seed: int, index: int, kind: str = "") -> Scene:
    """Draw a scene of some kind, by default a random one; the same numbers give the same bytes."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    shares = np.array([share for share, _ in KINDS.values()], float)
    kind = kind or rng.choice(list(KINDS), p=shares / shares.sum())
    sheet = Sheet(hands, rng)
    if rng.random() < (0.4 if kind == "plain" else 0.2):
        sheet.pixel = SIZE / log_uniform(rng, 8 if kind == "plain" else 64, 200)
    KINDS[kind][1](sheet)
    strokes = sheet.digits
    ink = coverage(strokes)
    core = np.minimum(coverage([(stroke, 1.0) for stroke, _ in strokes], fine=2), ink)
    other = np.maximum(coverage(sheet.other), sheet.printed)
    if rng.random() < ON_SCREEN.get(kind, 0):
        image, ink = on_screen(sheet, ink, other)
    else:
        image, ink = on_paper(sheet, kind, ink, other)
        image = camera(sheet, image, rng)
        if sheet.pixel > 1:
            image, ink = fewer_pixels(sheet, image, ink)
    if rng.random() < 0.3:
        image = 1 - image
    image = (255 * image.clip(0, 1)).round().astype(np.uint8)
    if rng.random() < 0.3:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=int(rng.integers(15, 92)))
        image = np.asarray(Image.open(file))
    ink = (255 * ink.clip(0, 1)).round().astype(np.uint8)
    core = (255 * np.minimum(2 * core, 1)).astype(np.uint8)
    return Scene(kind, image, ink, np.minimum(core, ink))


def on_screen(sheet: Sheet, ink: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw as programs do: clean, with smooth edges or, of few pixels, without."""
    rng = sheet.rng
    ground = 1 - rng.choice([0, 0, 0, rng.uniform(0, 0.3)])
    tone = rng.choice([0, 0, rng.uniform(0, 0.5)])
    if sheet.pixel > 1:
        side = round(SIZE / sheet.pixel)
        smooth = side < 16 or rng.random() < 0.4
        way = rng.choice([Image.NEAREST, Image.NEAREST, Image.BILINEAR, Image.BICUBIC])

        def coarse(values: np.ndarray) -> np.ndarray:
            small = np.asarray(Image.fromarray(values).resize((side, side), Image.BOX))
            small = small if smooth else (small > 0.4).astype(np.float32)
            return np.asarray(Image.fromarray(small).resize((SIZE, SIZE), way)).clip(0, 1)

        ink, other = coarse(ink), coarse(other)
    image = ground + (tone - ground) * np.maximum(ink, other)
    if rng.random() < 0.15:  # the bars of a window
        edge, shade = int(rng.uniform(2, 24)), rng.uniform(0, 1)
        for rows in (slice(0, edge), slice(SIZE - edge, SIZE)):
            if rng.random() < 0.7:
                image[rows], ink[rows] = shade, 0
    return image, ink


def on_paper(
    sheet: Sheet, kind: str, ink: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lay the ink on a paper with all that is on it, perhaps on a table, in some light."""
    rng = sheet.rng
    easy = kind == "plain"
    paper = rng.uniform(0.5, 1)
    # Ink that is thin or in a coarse picture must be dark to be seen.
    least = 0.12 + 0.3 / max(1, sheet.pen / sheet.pixel)
    contrast = paper * rng.uniform(min(least, 0.8), 0.95)
    tone = paper - contrast
    image = np.full((SIZE, SIZE), paper, np.float32)
    if rng.random() < 0.6:
        image += clouds(rng, rng.integers(2, 8)) * 0.15 * rng.random() ** 2 * contrast
    if rng.random() < 0.5:
        image += grain(rng) * rng.uniform(0, 0.12) * contrast
    if kind == "texture":
        image = texture(rng)
    elif kind == "photo":
        image = photo(sheet.hands, rng) if rng.random() < 0.65 else things(rng)
    elif not easy:
        image -= ground_pattern(sheet, kind) * contrast
    if kind not in ("texture", "photo"):
        dry = rng.uniform(0, 0.35) if rng.random() < 0.4 else 0
        pressed = 1 - dry * clouds(rng, rng.choice([20, 60, 128])).clip(0, 1)
        shade = tone + (paper - tone) * rng.uniform(0, 0.6) if rng.random() < 0.6 else tone
        image += other * (shade - image)
        laid = ink
        if kind == "outlined":
            rim = max(1.5 * sheet.pixel, sheet.pen * rng.uniform(0.1, 0.2))
            inside = coverage([(stroke, sheet.pen - 2 * rim) for stroke, _ in sheet.digits])
            laid = ink - inside
        image += laid * pressed * (tone - image)
    if not easy and rng.random() < 0.2:
        add_specks(sheet, image, contrast)
    if not easy and kind != "photo" and rng.random() < 0.25:
        image, ink = on_table(sheet, image, ink)
    return lit(image, rng, easy), ink


def ground_pattern(sheet: Sheet, kind: str) -> np.ndarray:
    """Return what is printed on a paper or shows through it, as a share of the ink's contrast."""
    rng = sheet.rng
    pattern = np.zeros((SIZE, SIZE), np.float32)
    if kind == "ruled" or rng.random() < 0.15:
        pattern += ruled_lines(sheet) * (rng.uniform(0.1, 0.7) if rng.random() < 0.85 else 1)
    if kind == "amount" or rng.random() < 0.05:
        pattern += guilloche(rng) * rng.uniform(0, 0.45)
    if rng.random() < 0.1:  # what is written on the other side
        behind = Sheet(sheet.hands, rng)
        behind.lines(max_lines=3)
        shadow = ndimage.gaussian_filter(coverage(behind.digits, fine=1)[:, ::-1], 1)
        pattern += shadow * rng.uniform(0, 0.25)
    if rng.random() < 0.1:  # creases, brighter on one side
        crease = np.tanh((along(rng, rng.uniform(0, TURN), 0, 0.1) - rng.uniform(-90, 90)) / 3)
        pattern += rng.uniform(0.05, 0.3) * (crease**2 < 0.5) * np.sign(crease)
        pattern += rng.uniform(0, 0.15) * crease
    if rng.random() < 0.12:
        pattern += (texture(rng) - 0.5) * rng.uniform(0, 0.25)
    return pattern


def add_specks(sheet: Sheet, image: np.ndarray, contrast: float) -> None:
    """Sprinkle dust that is smaller than a pen's dot."""
    rng = sheet.rng
    for _ in range(rng.integers(3, 50)):
        side = max(1, round(min(5, rng.uniform(0.2, 0.8) * sheet.pen)))
        x, y = rng.integers(SIZE, size=2)
        image[y : y + side, x : x + side] -= contrast * rng.uniform(0.2, 1)


def on_table(sheet: Sheet, image: np.ndarray, ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut the paper out and lay it on something else: its edges are at random places."""
    rng = sheet.rng
    left, top, right, bottom = sheet.bounds()
    room = np.array([left, top, SIZE - right, SIZE - bottom]) - 0.1 * sheet.height - sheet.pen
    left, top, right, bottom = rng.uniform(-0.3, 1, 4) * room.clip(0) * [1, 1, -1, -1] + [
        0,
        0,
        SIZE,
        SIZE,
    ]
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    corners += rng.normal(0, rng.choice([0, 3]), (4, 2))
    mask = ndimage.gaussian_filter(filled(corners), rng.uniform(0.3, 1.5))
    kind = rng.random()
    if kind < 0.4:
        table = rng.choice([0, 1, rng.uniform(0, 1)]) + clouds(rng, 4) * rng.uniform(0, 0.1)
    else:
        table = (
            texture(rng) if kind < 0.7 else photo(sheet.hands, rng) if kind < 0.85 else things(rng)
        )
    return image * mask + table * (1 - mask), ink * (mask > 0.5)


def lit(image: np.ndarray, rng: np.random.Generator, easy: bool) -> np.ndarray:
    """Let light fall on a paper: even, from a side, with a shadow's edge, a vignette or a glare."""
    kind = rng.random() + (0.35 if easy else 0)
    across = along(rng, rng.uniform(0, TURN), 0, 0.3) / SIZE
    if kind < 0.2:
        image = image * (1 - rng.uniform(0.1, 0.75) * (across + 0.5).clip(0, 1))
    elif kind < 0.4:
        edge = (across - rng.uniform(-0.35, 0.35)) / log_uniform(rng, 0.003, 0.15)
        image = image * (1 - rng.uniform(0.15, 0.75) / (1 + np.exp(-edge.clip(-30, 30))))
    elif kind < 0.5:
        image = image * (1 + clouds(rng, 4) * 0.2).clip(0.2, 1.5)
    elif kind < 0.6:
        image = image * (1 - (ROWS**2 + COLUMNS**2) * rng.uniform(0.3, 1.4))
    elif kind < 0.65:
        x, y = rng.uniform(-0.5, 0.5, 2)
        spot = np.exp(-((COLUMNS - x) ** 2 + (ROWS - y) ** 2) / rng.uniform(0.01, 0.1))
        image = image + (1 - image) * spot * rng.uniform(0.2, 0.7)
    return image * rng.uniform(0.6, 1)


def camera(sheet: Sheet, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take the picture: not quite sharp, noisy, the tones stretched or not."""
    if rng.random() < 0.6:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, max(0.6, min(0.45 * sheet.pen, 3))))
    if rng.random() < 0.5:
        spread = image.max() - image.min()
        visible = 0.05 * min(1, sheet.pen / sheet.pixel / 2)
        image = image + grain(rng) * spread * rng.uniform(0, visible)
    if rng.random() < 0.4:
        low, high = np.percentile(image, [0.1, 99.9])
        image = (image - low) / max(high - low, 0.05)
    return image


def fewer_pixels(sheet: Sheet, image: np.ndarray, ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take the picture with few pixels, and enlarge it."""
    side = round(SIZE / sheet.pixel)
    way = sheet.rng.choice([Image.NEAREST, Image.BILINEAR, Image.BICUBIC])
    small = [
        Image.fromarray(a.astype(np.float32)).resize((side, side), Image.BOX) for a in (image, ink)
    ]
    image, ink = (np.asarray(picture.resize((SIZE, SIZE), way)) for picture in small)
    return image, ink
