"""Scenes: pictures of digits on all kinds of paper, made by code, and the ink of the digits.

    hands = load_hands(digits.images)
    scene = draw_scene(hands, seed=0, index=7)
    scene.kind, scene.image, scene.ink  # "ruled", twice uint8 (192, 192)

A scene is drawn as a person would make it. Digits are written with a pen, among other things that
are drawn or printed, on a paper; light falls on it, and a camera takes a picture. What the strokes
of digits cover is known exactly: `training/train_ink.py` teaches a network to find it. In one
scene of six there is no digit, and nothing to find.
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

from training.forms import oval
from training.papers import SIZE, Random, clouds, coverage, filled, lit, log_uniform, photo, texture
from training.strokes import (
    SIGNS,
    Segments,
    digit_strokes,
    drawn,
    drawn_digit,
    segments,
    unit,
    with_ruler,
)

FAT = 6  # pixels of a scene for each of its picture: strokes are one pixel or two
DASHES = 100  # points of a line that may be dashed
NO_LABEL = -1  # of a digit that nobody asks for, and of a stroke that joins two
FEW_CELLS = 20  # digits; more are in no comb
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Scene(NamedTuple):
    """A picture and what is to be found in it."""

    kind: str
    image: np.ndarray  # uint8 (192, 192), gray
    ink: np.ndarray  # uint8 (192, 192): how much of each pixel the strokes of digits cover


class Hands(NamedTuple):
    """What scenes are made from."""

    digits: list[Segments]  # of MNIST's training digits, 1 high or wide
    photos: list[np.ndarray]  # uint8 (H, W)
    labels: list[int]  # of the digits, or NO_LABEL


def load_hands(
    images: torch.Tensor, count: int = 6000, labels: torch.Tensor | None = None
) -> Hands:
    """Take the strokes of some digits, uint8 (N, 28, 28), and get scikit-learn's two photos.

    Whoever wants to know which digits are written gives their labels, and no image without ink.
    """
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    try:
        from sklearn.datasets import load_sample_images  # a development dependency

        photos = [photo.mean(axis=2).astype(np.uint8) for photo in load_sample_images().images]
    except ImportError:
        photos = []
    digits = digit_strokes(images[chosen])
    known = [NO_LABEL] * len(digits) if labels is None else labels[chosen].tolist()
    if len(known) != len(digits):
        raise ValueError("an image has no ink, so that labels don't fit")
    return Hands(digits, photos, known)


# ---- A sheet that is written on ----------------------------------------------------------


class Sheet:
    """What is drawn on a sheet before there is a picture: segments in pixels, with their widths.

    `pixel` is how large the pixels of the picture will be, as a camera or a screen may have fewer
    than the scene: no pen is much thinner. `digits` are to be found, `other` is drawn with the
    same pen or printed, `faint` is paler.
    """

    def __init__(self, hands: Hands, rng: Random, pixel: float = 1.0) -> None:
        self.hands, self.rng, self.pixel = hands, rng, pixel
        self.slant, self.stretch = rng.normal(0, 0.12), rng.normal(0, 0.2)  # of the hand
        self.unevenness = rng.choice([0, 0, 0.15, 0.35])  # of the pen's width
        self.digits: list[tuple[Segments, np.ndarray]] = []
        self.labels: list[int] = []  # of each of these
        self.other: list[tuple[Segments, np.ndarray]] = []
        self.faint: list[tuple[Segments, np.ndarray]] = []
        self.boxes: list[Box] = []  # of digits and words
        self.printed = Image.new("L", (SIZE, SIZE))
        self.choose_pen(log_uniform(rng, 16, 84))

    def choose_pen(self, height: float) -> None:
        """Take a pen from hairline to marker for digits so many pixels high."""
        self.height = max(height, 8 * self.pixel)
        width = self.height * log_uniform(self.rng, 0.015, 0.22)
        self.pen = max(width, self.pixel * self.rng.uniform(0.9, 2 if self.pixel > FAT else 1.3))

    def write(self, drawing: Segments, scale: float, x: float, y: float, onto: list) -> float:
        """Draw unit segments with the pen at a place; return their width."""
        waves = np.sin(drawing.mean(axis=1) @ self.rng.uniform(-6, 6, 2))
        placed = drawing * scale + (x, y)
        onto.append((placed, self.pen * (1 + self.unevenness * waves)))
        self.boxes.append((*placed.min(axis=(0, 1)), *placed.max(axis=(0, 1))))
        return np.ptp(placed[..., 0])

    def write_digit(self, scale: float, x: float, y: float) -> float:
        """Write a digit in this hand into a square at (x, y); return its width."""
        rng, hands = self.rng, self.hands
        source = rng.choice(3, p=[0.7, 0.22, 0.08])
        at = rng.integers(len(hands.digits))
        digit, label = hands.digits[at], hands.labels[at]
        if source:
            digit, label = drawn_digit(rng) if source == 1 else with_ruler(rng)
        self.labels.append(label)
        turn, stretch = math.radians(rng.normal(0, 5)), math.exp(rng.normal(self.stretch, 0.12))
        matrix = np.array([[stretch, 0], [-self.slant, 1]])
        matrix = matrix @ [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
        digit = unit(digit @ matrix)
        y += (1 - digit[..., 1].max()) / 2 * scale
        return self.write(digit, scale, x, y, self.digits)

    def write_sign(self, name: str, scale: float, x: float, y: float) -> float:
        """Write a sign beside digits that are `scale` pixels high; return its width."""
        sign = SIGNS[name] * self.rng.uniform(0.75, 1.25, 2)
        return self.write(sign, scale, x, y, self.other)

    def ruler(
        self,
        points: list | np.ndarray,
        width: float,
        onto: list | None = None,
        dashed: bool = False,
    ) -> None:
        """Draw lines with a ruler, or a curve, from point to point, or every other one of them."""
        drawing = segments([np.asarray(points, float)])[:: 1 + dashed]
        (self.other if onto is None else onto).append((drawing, np.full(len(drawing), width)))
        if onto is self.digits:
            self.labels.append(NO_LABEL)

    def bounds(self) -> Box:
        """Return the box around all that is written, or one in the middle where nothing is."""
        boxes = np.array(self.boxes or [(0.3 * SIZE, 0.3 * SIZE, 0.7 * SIZE, 0.7 * SIZE)])
        return (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0))

    def is_free(self, box: Box) -> bool:
        """Whether nothing is written near a place."""
        return all(
            box[2] + 6 < left or box[0] - 6 > right or box[3] + 6 < top or box[1] - 6 > bottom
            for left, top, right, bottom in self.boxes
        )


# ---- What is written ---------------------------------------------------------------------


def one_digit(sheet: Sheet) -> None:
    """One digit, from small to as large as the sheet, in the middle, anywhere or cut by an edge."""
    rng = sheet.rng
    sheet.choose_pen(log_uniform(rng, min(max(16, 9 * sheet.pixel), 0.8 * SIZE), 0.98 * SIZE))
    sheet.height = min(sheet.height, SIZE - sheet.pen)
    free = SIZE - sheet.height - sheet.pen
    shift = free * rng.uniform(-0.5, 0.5, 2) if rng.random() < 0.5 else rng.normal(0, 10, 2)
    shift[0] += rng.choice([-1, 1]) * (rng.random() < 0.06) * 0.6 * SIZE
    x, y = (free + sheet.pen) / 2 + shift
    width = sheet.write_digit(sheet.height, x, y)
    if width < 0.8 * sheet.height and rng.random() < 0.6:  # in the middle, however narrow
        drawing, widths = sheet.digits.pop()
        moved = (sheet.height - width) / 2, 0
        sheet.digits.append((drawing + moved, widths))
        sheet.boxes = [(x + moved[0], y, x + moved[0] + width, y + sheet.height)]


def lines(
    sheet: Sheet,
    heights: tuple[float, float] = (11, 84),
    signs: str = "",
    share: float = 0.4,
    max_lines: int = 20,
) -> None:
    """Lines of digits, some of which touch or are joined; up to a share of them may be signs."""
    rng = sheet.rng
    sheet.choose_pen(log_uniform(rng, *heights))
    height, tilt, gap = sheet.height, rng.normal(0, 0.04), rng.uniform(-0.1, 0.35)
    if rng.random() < 0.2:  # as in a table
        gap = log_uniform(rng, 0.35, 2.5)
    share = rng.uniform(0, share) if signs else 0
    y = rng.uniform(0, max(2, min(SIZE - 1.1 * height, 2 * height)))
    for _ in range(rng.integers(1, max_lines + 1)):
        x, stop = rng.uniform(-0.02, 0.3) * SIZE, rng.uniform(0.4, 1.05) * SIZE
        while x < stop:
            scale = height * rng.uniform(0.7, 1.15)
            top = y + tilt * x + height - scale * rng.uniform(0.9, 1.05)
            if rng.random() < share:
                x += sheet.write_sign(rng.choice(list(signs)), height, x, y + tilt * x)
            else:
                x += sheet.write_digit(scale, x, top)
            if gap < 0.1 and rng.random() < 0.2:  # a stroke that joins it to the next
                ends = rng.uniform((-0.2, 0), (0.2, 1), (2, 2)) * height
                join = np.sort(ends, axis=0) + np.array([x, top])
                sheet.ruler(join, sheet.pen, sheet.digits)
            x += sheet.pen + height * max(-0.2, gap + rng.normal(0, 0.1))
        y += height * rng.uniform(1.2, 2)
        if y + height > SIZE:
            break


def digits(sheet: Sheet) -> None:
    """One digit or lines."""
    one_digit(sheet) if sheet.rng.random() < 0.65 or sheet.pixel > 9 else lines(sheet)


def outline(sheet: Sheet) -> None:
    """A large digit, of which only the outline will be drawn; the inside is its ink as well."""
    one_digit(sheet) if sheet.rng.random() < 0.8 else lines(sheet, (48, 84))
    sheet.pen = max(sheet.height * sheet.rng.uniform(0.1, 0.2), 6)
    sheet.digits = [(drawing, np.full(len(drawing), sheet.pen)) for drawing, _ in sheet.digits]


def by_hand(sheet: Sheet, kinds: tuple[str, ...] = ("word", "glyph", "doodle")) -> None:
    """Words, letters or doodles where nothing is."""
    rng = sheet.rng
    for _ in range(rng.integers(1, 7)):
        drawing = drawn(rng.choice(kinds), rng)
        scale = log_uniform(rng, 12, 84) / max(drawing[..., 1].max(), 0.3)
        x, y = rng.uniform(-10, SIZE - 20, 2)
        if sheet.is_free((x, y, *(drawing.max(axis=(0, 1)) * scale + (x, y)))):
            sheet.write(drawing, scale, x, y, sheet.other)


def words(sheet: Sheet) -> None:
    """Words, letters and some signs by hand."""
    by_hand(sheet, ("word", "word", "glyph"))
    for name in sheet.rng.choice(list("+-=x)%*€$"), sheet.rng.integers(0, 4)):
        sheet.write_sign(
            name, log_uniform(sheet.rng, 24, 110), *sheet.rng.uniform(0, 0.8 * SIZE, 2)
        )


def drawing(sheet: Sheet) -> None:
    """Doodles and scribbles."""
    for _ in range(sheet.rng.integers(1, 4)):
        picture = drawn(sheet.rng.choice(["doodle", "doodle", "scribble"]), sheet.rng)
        place = sheet.rng.uniform(-0.1, 0.4, 2) * SIZE
        sheet.write(picture, log_uniform(sheet.rng, 45, 180), *place, sheet.other)


def nothing(sheet: Sheet) -> None:
    """Write nothing."""


# ---- What is around it -------------------------------------------------------------------


def form(sheet: Sheet) -> None:
    """A box, a comb or a table, a ring, a bar, a line below by hand, or boxes elsewhere."""
    rng = sheet.rng
    left, top, right, bottom = sheet.bounds()
    gap = rng.uniform(-0.05, 0.4) * sheet.height + sheet.pen
    rise = rng.normal(0, 0.03) * (right - left)
    width = max(sheet.pixel, log_uniform(rng, 0.01, 0.12) * sheet.height)
    shape = rng.integers(10)
    if shape <= 2:
        box = [(left - gap, top - gap), (right + gap, top - gap + rise)]
        box += [(right + gap - rise, bottom + gap), (left - gap, bottom + gap - rise)]
        sheet.ruler([*box, box[0]], width)
    if shape == 1 and len(sheet.boxes) < FEW_CELLS:  # cells
        start = top - gap if rng.random() < 0.7 else bottom - 0.2 * sheet.height
        for x in (box[2] + gap / 3 for box in sheet.boxes):
            sheet.ruler([(x, start), (x, bottom + gap)], width)
    elif shape in (3, 4, 5):  # a ring
        wide, high = rng.uniform(0.02, 0.35) * sheet.height + gap, 0.15 * sheet.height + gap
        box = (left - wide, top - high, right - left + 2 * wide, bottom - top + 2 * high)
        ring = oval(*box, rng.uniform(0, 360), rng.uniform(290, 390))
        sheet.ruler(ring, rng.choice([width, sheet.pen]))
    elif shape == 6:  # a bar beside or below
        x, y = right + gap + 3 * width, bottom + gap + 3 * width
        upright = rng.random() < 0.5
        sheet.ruler([(x, 0), (x, SIZE)] if upright else [(0, y), (SIZE, y)], 4 * width)
    elif shape in (7, 8):  # underlined
        for y in bottom + gap * rng.uniform(0.8, 3, rng.integers(1, 3)):
            ends = [
                (left - gap * rng.uniform(-1, 2), y),
                (right + gap * rng.uniform(-1, 2), y + rise),
            ]
            sheet.ruler(ends, rng.choice([width, sheet.pen]))
    else:
        for x, y in rng.uniform(-20, SIZE, (rng.integers(1, 6), 2)):
            w, h = rng.uniform(8, 90, 2)
            if sheet.is_free((x, y, x + w, y + h)):
                sheet.ruler([(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)], width / 2)


def printed_lines(sheet: Sheet) -> None:
    """Level lines below and above that may touch the digits, as on cheques."""
    rng, (left, top, right, bottom) = sheet.rng, sheet.bounds()
    width, dashed = max(sheet.pixel, log_uniform(rng, 0.5, 4)), rng.random() < 0.15
    left, right = (0, SIZE) if rng.random() < 0.6 else (left - 20, right + 20)
    below, above = bottom + rng.normal(0, 0.15) * sheet.height, top - rng.uniform(-5, 20)
    for y, chance in ((below, 0.9), (above, 0.3)):
        if rng.random() < chance:
            points = np.linspace((left, y), (right, y + rng.normal(0, 4)), DASHES)
            sheet.ruler(points, width, dashed=dashed)


def print_words(sheet: Sheet) -> None:
    """Words in print, where nothing is."""
    rng, draw = sheet.rng, ImageDraw.Draw(sheet.printed)
    letters = list("aabcdeeefghiijklmnnoprrsttuvwxyzABCDEFGHIJKLMNOPRSTUVWXYZ")
    font = print_font(round(log_uniform(rng, 8, 30)))
    for _ in range(round(log_uniform(rng, 1, 20))):
        words = [
            "".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(rng.integers(1, 5))
        ]
        place = rng.uniform(-10, SIZE - 20), rng.uniform(-5, SIZE - 10)
        box = draw.textbbox(place, " ".join(words), font=font)
        if sheet.is_free(box):
            draw.text(place, " ".join(words), 255, font)
            sheet.boxes.append(box)


@functools.cache
def print_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that comes with Pillow: there may be no other."""
    return ImageFont.load_default(size)


def ruling(sheet: Sheet) -> None:
    """Ruled or squared paper, in perspective or curved, perhaps with a margin."""
    rng = sheet.rng
    turn = rng.normal(0, 0.05) if rng.random() < 0.75 else rng.uniform(-0.5, 0.5)
    lean, bow = rng.normal(0, rng.choice([0, 0.1, 0.3]), 2), rng.normal(0, rng.choice([0, 0.03]))
    step = log_uniform(rng, 8, 68)
    width, levels = max(0.5, step * rng.uniform(0.02, 0.1)), np.arange(-1.6, 1.6, 2 * step / SIZE)
    dashed = rng.random() < 0.15
    t = np.linspace(-1.6, 1.6, DASHES if dashed else 9 if bow else 2)
    flat = [np.stack([t, np.full_like(t, level)], axis=1) for level in levels + rng.uniform(0, 0.2)]
    upright = [points[:, ::-1] for points in flat]
    margin = [upright[rng.integers(len(upright))]]
    for points in flat + (upright if rng.random() < 0.4 else margin if rng.random() < 0.3 else []):
        x, y = (points + bow * points[:, ::-1] ** 2).T
        x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
        depth = (1 + lean[0] * x + lean[1] * y).clip(0.3)
        sheet.ruler((np.stack([x, y]) / depth).T * SIZE / 2 + SIZE / 2, width, sheet.faint, dashed)


def guilloche(sheet: Sheet) -> None:
    """The fine curves of a cheque or a ticket: ovals, waves side by side, or both."""
    rng, step = sheet.rng, log_uniform(sheet.rng, 4, 12)
    shape, width = rng.integers(3), step * rng.uniform(0.1, 0.3)
    if shape != 1:
        middle = rng.uniform(-0.5, 1.5, 2) * SIZE
        for size in np.arange(20, 1.5 * SIZE, 2 * step):
            x, y = middle + rng.normal(0, 0.3, 2)
            sheet.ruler(oval(x - size / 2, y - size, size, 2 * size), width, sheet.faint)
    if shape != 0:
        x = np.linspace(-0.2 * SIZE, 1.2 * SIZE, 25)
        wave = rng.uniform(0, 2) * step * np.sin(x * rng.uniform(0.5, 8) / SIZE * math.pi)
        rise = rng.normal(0, 0.3) * x
        for y in np.arange(-0.5 * SIZE, 1.5 * SIZE, step):
            sheet.ruler(np.stack([x, y + rise + wave], axis=1), width, sheet.faint)


def show_through(sheet: Sheet) -> None:
    """What is written on the other side."""
    behind = Sheet(sheet.hands, sheet.rng)
    lines(behind, max_lines=3)
    mirrored = ((drawing * (-1, 1) + (SIZE, 0), widths) for drawing, widths in behind.digits)
    sheet.faint += mirrored


def specks(sheet: Sheet) -> None:
    """Dust that is smaller than a pen's dot."""
    places = sheet.rng.uniform(0, SIZE, (sheet.rng.integers(3, 50), 1, 2)).repeat(2, axis=1)
    size = min(3, 0.8 * sheet.pen)
    sheet.other.append((places, sheet.rng.uniform(0.2, 1, len(places)) * size))


class Kind(NamedTuple):
    """A kind of scene: how frequent it is, what is written, and how likely what is around it."""

    share: int
    write: Callable[[Sheet], None]
    around: dict[Callable[[Sheet], None], float]
    coarse: float = 0.2  # how often it has few pixels
    screen: float = 0.0  # how often it is drawn with a program
    table: float = 0.25  # how often the edges of the paper are seen


PAPER = {specks: 0.15, show_through: 0.06, guilloche: 0.04, ruling: 0.1}
CHEQUE = {printed_lines: 0.85, guilloche: 0.5, print_words: 0.2, specks: 0.1}
amount = functools.partial(lines, heights=(20, 120), signs="..,,-=/_$€*(:", max_lines=2)
page = functools.partial(lines, heights=(11, 32), signs="+-=x/().,:%", share=0.1)
calculation = functools.partial(lines, heights=(14, 84), signs="".join(SIGNS), share=0.5)
KINDS = {
    "plain": Kind(36, digits, {}, 0.45, 0.5, table=0),
    "sheet": Kind(7, digits, {}, 0.3, 0.3, table=1),
    "ruled": Kind(12, digits, PAPER | {ruling: 1, print_words: 0.1}),
    "form": Kind(15, digits, PAPER | {form: 1, printed_lines: 0.1, print_words: 0.3}, 0.2, 0.1),
    "amount": Kind(22, amount, CHEQUE, 0.5),
    "calculation": Kind(6, calculation, PAPER, 0.2, 0.2),
    "page": Kind(6, page, PAPER | {print_words: 0.4, by_hand: 0.4, form: 0.1}, 0.0, 0.15),
    "outlined": Kind(5, outline, {}, 0.1, 0.3),
    # without a digit
    "drawing": Kind(6, drawing, PAPER, 0.2, 0.3),
    "words": Kind(5, words, PAPER | {print_words: 0.1}, 0.2, 0.2),
    "print": Kind(3, nothing, PAPER | {print_words: 1, form: 0.3}, 0.2, 0.2),
    "texture": Kind(2, nothing, {}, 0.1),
    "photo": Kind(3, nothing, {}, 0.1),
    "empty": Kind(2, nothing, PAPER | {printed_lines: 0.3}),
}


# ---- From a sheet to a picture -----------------------------------------------------------


def draw_scene(hands: Hands, seed: int, index: int, kind: str = "") -> Scene:
    """Draw a scene of some kind, by default a random one; the same numbers give the same bytes."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    shares = np.array([kind.share for kind in KINDS.values()], float)
    name = kind or str(rng.choice(list(KINDS), p=shares / shares.sum()))
    return draw_sheet(hands, name, rng)[0]


def draw_sheet(hands: Hands, name: str, rng: Random) -> tuple[Scene, Sheet]:
    """Draw a scene of a kind; return what was drawn, too."""
    kind = KINDS[name]
    coarse, on_screen = rng.random() < kind.coarse, rng.random() < kind.screen
    pixel = SIZE / log_uniform(rng, 8 if name == "plain" else 64, 0.8 * SIZE) if coarse else 1.0
    sheet = Sheet(hands, rng, pixel)
    kind.write(sheet)
    for add, chance in kind.around.items():
        if rng.random() < chance:
            add(sheet)
    ink = coverage(sheet.digits)
    laid = ink
    if name == "outlined":
        rim = max(1.5 * pixel, sheet.pen * rng.uniform(0.1, 0.2))
        laid = ink - coverage([(drawing, widths - 2 * rim) for drawing, widths in sheet.digits])
    image, ink = take_picture(sheet, name, laid, ink, on_screen)
    return Scene(name, image, (255 * ink.clip(0, 1)).round().astype(np.uint8)), sheet


def take_picture(
    sheet: Sheet, name: str, laid: np.ndarray, ink: np.ndarray, on_screen: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Lay ink on a sheet of some kind, and take a picture: uint8 (192, 192), and its ink."""
    rng, kind = sheet.rng, KINDS[name]
    other = np.maximum(coverage(sheet.other), np.asarray(sheet.printed, np.float32) / 255)
    if on_screen:  # clean, and most often black on white
        ground, tone = rng.choice([1, 1, rng.uniform(0.7, 1)]), rng.choice([0, 0, 0.4])
        image = ground + (tone - ground) * np.maximum(laid, other)
        if rng.random() < kind.table:
            image, ink = on_table(sheet, image, ink)
        if rng.random() < 0.15:  # the bar of a window
            image[: rng.integers(2, 18)] = rng.uniform(0, 1)
    else:
        on_a_table = rng.random() < kind.table
        image, ink = on_paper(sheet, name, laid, ink, other, on_a_table)
    if sheet.pixel > 1:
        image, ink = fewer_pixels(sheet, on_screen, image, ink)
    if rng.random() < 0.35:
        image = 1 - image
    image = (255 * image.clip(0, 1)).round().astype(np.uint8)
    return (as_jpeg(image, rng) if rng.random() < 0.3 else image), ink


def on_paper(
    sheet: Sheet,
    name: str,
    laid: np.ndarray,
    ink: np.ndarray,
    other: np.ndarray,
    on_a_table: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Lay ink on a paper, perhaps on a table, in some light; return a photo of it, and the ink."""
    rng, easy, width = sheet.rng, name == "plain", sheet.pen / sheet.pixel
    paper = rng.uniform(0.5, 1)
    # Ink that is thin or in a coarse picture must be dark to be seen.
    contrast = paper * rng.uniform(min(0.2 + 0.3 / max(1, width), 0.8), 0.95)
    if name in ("texture", "photo"):
        image = texture(rng) if name == "texture" else photo(sheet.hands.photos, rng)
    else:
        image = np.full((SIZE, SIZE), paper, np.float32)
        image += clouds(rng, rng.integers(2, 8)) * 0.15 * rng.random() ** 2 * contrast
        if not easy and rng.random() < 0.12:
            image += (texture(rng) - 0.5) * rng.uniform(0, 0.25) * contrast
        if sheet.faint:
            pale = rng.uniform(0.1, 0.7) if rng.random() < 0.7 else 1
            image -= coverage(sheet.faint, fine=2) * pale * contrast
        tone = paper - contrast
        image += other * (tone + rng.choice([0, 0, 0.4]) * contrast - image)
        dry = 1 - rng.choice([0, rng.uniform(0, 0.35)]) * clouds(rng, rng.choice([20, 60, 128]))
        image += laid * dry.clip(0.3, 1) * (tone - image)
        if on_a_table:
            image, ink = on_table(sheet, image, ink)
    image = lit(image, rng, easy)
    if rng.random() < 0.6:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, max(0.6, min(0.45 * sheet.pen, 3))))
    if rng.random() < 0.6:
        dim = rng.random() < 0.2  # as in dim light, where only broad strokes are seen
        noise = np.ptp(image) * rng.uniform(0, 0.25 * min(1, width / 8) if dim else 0.06)
        grain = rng.standard_normal((SIZE, SIZE), np.float32) * noise * min(1, width / 2)
        image = image + ndimage.gaussian_filter(grain, rng.choice([0, rng.uniform(0, 1)]))
    if rng.random() < 0.4:
        low, high = np.percentile(image, [0.1, 99.9])
        image = (image - low) / max(high - low, 0.05)
    return image, ink


def on_table(sheet: Sheet, image: np.ndarray, ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut the paper out and lay it on something else: its edges are at random places."""
    rng = sheet.rng
    box, whole = np.array(sheet.bounds()), np.array([0, 0, SIZE, SIZE])
    margin = (0.1 * sheet.height + sheet.pen) * np.array([-1, -1, 1, 1])
    edges = whole + (box + margin - whole) * rng.uniform(-0.3 if rng.random() < 0.5 else 0, 1, 4)
    corners = edges[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)
    corners += rng.normal(0, rng.choice([0, 3]), (4, 2))
    turn, middle = rng.normal(0, rng.choice([0, 0, 0.2])), corners.mean(axis=0)
    spin = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    corners = (corners - middle) @ spin + middle
    mask = ndimage.gaussian_filter(filled(corners), rng.uniform(0.3, 1.5))
    plain = rng.choice([0, 1, rng.uniform(0, 1)]) + clouds(rng, 4) * rng.uniform(0, 0.1)
    table = (plain, texture(rng), photo(sheet.hands.photos, rng))[rng.choice(3, p=[0.4, 0.3, 0.3])]
    return image * mask + table * (1 - mask), ink * (mask > 0.5)


def fewer_pixels(
    sheet: Sheet, on_screen: bool, image: np.ndarray, ink: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take a picture with few pixels, and enlarge it; a screen may show no gray between."""
    rng, side = sheet.rng, round(SIZE / sheet.pixel)
    size = side, side
    small = [Image.fromarray(np.float32(a)).resize(size, Image.BOX) for a in (image, ink)]
    small = [np.asarray(a) for a in small]
    if on_screen and side >= 16 and rng.random() < 0.6:
        middle = (small[0].min() + small[0].max()) / 2
        hard = small[0] > middle + rng.uniform(-0.1, 0.1)
        small[0] = np.where(hard, small[0].max(), small[0].min())
    elif rng.random() < 0.3:
        small[0] = as_jpeg((255 * small[0].clip(0, 1)).astype(np.uint8), rng) / np.float32(255)
    way = Image.NEAREST if rng.random() < 0.3 else Image.BICUBIC
    return tuple(np.asarray(Image.fromarray(a).resize((SIZE, SIZE), way)) for a in small)


def as_jpeg(image: np.ndarray, rng: Random) -> np.ndarray:
    """Save and open gray values, uint8 (H, W), as a JPEG of some quality."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=int(rng.integers(15, 92)))
    return np.asarray(Image.open(file))
