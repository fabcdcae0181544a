"""MNIST digits made into images as people have them: photographs, scans, drawings, cut-outs.

Each kind is a function of one digit, uint8 (28, 28), white ink on black, and of a random
generator. It draws the digit anew at any size, with smooth edges, cut to its ink, and puts it on
paper of some kind. The result is a PIL image, or the bytes of an image file where the format
matters. A person reads all of them easily: a reader of digits should too.

    images = photographs("ruled paper", digits, seed=0)
"""

import io
import itertools
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from training.strokes import MIN_LIKENESS, likeness, thinned

ImageLike = Image.Image | bytes

GRID = 8  # pixels of the drawing grid for each pixel of MNIST
GRAY = np.array([0.299, 0.587, 0.114])  # the luminance of red, green and blue


# ---- The digit ---------------------------------------------------------------------------


def outline(digit: np.ndarray) -> np.ndarray:
    """Return the shape of the ink on the drawing grid: bool, smooth, without stray dots."""
    padded = Image.fromarray(np.pad(digit, 6).astype(np.float32))
    smooth = np.asarray(padded.resize((40 * GRID, 40 * GRID), Image.BICUBIC))
    smooth = ndimage.gaussian_filter(smooth, 0.3 * GRID)
    nearby = ndimage.maximum_filter(smooth, 4 * GRID)  # so that faint strokes are kept too
    ink = smooth > np.maximum(0.5 * nearby, 0.2 * smooth.max())
    parts, n_parts = ndimage.label(ink)
    sizes = ndimage.sum_labels(parts > 0, parts, range(1, n_parts + 1))
    return np.isin(parts, 1 + np.flatnonzero(sizes > 0.04 * sizes.max()))


def rows_of(shape: np.ndarray) -> int:
    """Return the height of the ink in a shape."""
    return int(np.ptp(np.flatnonzero(shape.any(axis=1)))) + 1


def holes(shape: np.ndarray, least: float) -> int:
    """Count the holes of a shape that have an area of at least `least`."""
    parts, n_parts = ndimage.label(~shape)
    sizes = ndimage.sum_labels(parts > 0, parts, range(1, n_parts + 1))
    return int((sizes >= least).sum())


def depth(digit: np.ndarray, width: float | None = None) -> np.ndarray:
    """Return how deep in the ink each point of the drawing grid is, negative outside.

    `width` is that of the pen as a part of the digit's height; None keeps the digit's own. A
    pen that would close a loop, or make one, is taken thinner. A digit that is not its strokes
    keeps its own: where a loop is filled in, they would be those of another digit.
    """
    shape = outline(digit)
    inside, outside = (ndimage.distance_transform_edt(part) for part in (shape, ~shape))
    own = ndimage.gaussian_filter(inside - outside, 1.5)
    if width is None:
        return own
    distance = ndimage.distance_transform_edt(~thinned(shape[None])[0])
    if likeness(inside, distance) < MIN_LIKENESS:
        return own
    height = rows_of(shape)
    distance = ndimage.gaussian_filter(distance, 1.5) - 0.6  # smoothing lifts the valley's floor
    wanted = holes(shape, 0.004 * height**2)
    for part in np.linspace(width, min(width, 0.1), 8):
        drawn = part * height / 2 - distance
        if holes(drawn > 0, 0.002 * height**2) == wanted:
            break
    return drawn


def draw(deep: np.ndarray, height: int) -> np.ndarray:
    """Draw a digit cut to its ink, `height` pixels high: how much ink covers each, 0..1."""
    rows, columns = (np.flatnonzero((deep > 0).any(axis=axis)) for axis in (1, 0))
    box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    fine = max(height, 200) / (box[3] - box[1])  # the drawing's pixels for one of the grid
    size = [max(1, round(fine * (box[i + 2] - box[i]))) for i in (0, 1)]
    image = Image.fromarray(deep.astype(np.float32)).resize(size, Image.BICUBIC, box=box)
    ink = np.clip(np.asarray(image) * fine + 0.5, 0, 1)
    if height < 200:
        size = max(1, round(size[0] * height / size[1])), height
        ink = np.clip(np.asarray(Image.fromarray(ink).resize(size, Image.BOX)), 0, 1)
    return ink


def margins(
    ink: np.ndarray, rng: np.random.Generator, least: float = 0.12, most: float = 0.6
) -> np.ndarray:
    """Leave empty paper on the four sides, each a random part of the ink's height."""
    room = np.round(rng.uniform(least, most, 4) * ink.shape[0]).astype(int)
    return np.pad(ink, (room[:2], room[2:]))


def page(digit: np.ndarray, rng: np.random.Generator, width: float | None = None) -> np.ndarray:
    """Draw a digit 80 to 350 pixels high, with margins."""
    return margins(draw(depth(digit, width), int(rng.integers(80, 350))), rng)


def in_frame(digit: np.ndarray, rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw a digit as large as just fits in an image whose longer side is `side`."""
    ink = draw(depth(digit), 200)
    height = rng.uniform(0.75, 0.95) * side * min(1, ink.shape[0] / ink.shape[1])
    ink = draw(depth(digit), round(height))
    shape = [int(rng.integers(min(side, round(1.3 * n)), side + 1)) for n in ink.shape]
    shape[int(np.argmax(ink.shape))] = side
    return anywhere(ink, shape[0], shape[1], rng)


def anywhere(ink: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Put the ink at a random place on an empty sheet."""
    top, left = (
        int(rng.integers(0, n - k + 1)) for n, k in zip((height, width), ink.shape, strict=True)
    )
    sheet = np.zeros((height, width), np.float32)
    sheet[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return sheet


# ---- Paper, pens, light ------------------------------------------------------------------


def white_paper(rng: np.random.Generator) -> np.ndarray:
    """Return the colour of a paper that people call white."""
    return rng.uniform(228, 253) - np.array([0, 1, 3]) * rng.uniform(0, 4)


def pen(rng: np.random.Generator) -> np.ndarray:
    """Return a dark colour, that of a usual pen."""
    pens = [(35, 35, 38), (25, 25, 28), (30, 45, 130), (20, 35, 95), (150, 30, 35), (25, 95, 55)]
    return np.array(pens[rng.choice(6, p=[0.3, 0.2, 0.2, 0.15, 0.1, 0.05])], float)


def paint(ink: np.ndarray, paper: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Lay ink of a colour over paper: float (H, W, 3), 0..255."""
    ink = ink[:, :, None]
    return (np.asarray(paper) * (1 - ink) + np.asarray(colour) * ink).astype(np.float32)


def to_image(pixels: np.ndarray) -> Image.Image:
    """Round float pixels to a PIL image."""
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def to_file(image: Image.Image, file_format: str, **options: object) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def written(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write with a usual pen on white paper."""
    return paint(ink, white_paper(rng), pen(rng))


def clouds(shape: tuple[int, int], size: float, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise, about -2..2, whose spots are some `size` pixels wide."""
    height, width = (int(n / size) + 3 for n in shape)
    noise = Image.fromarray(rng.standard_normal((height, width), np.float32))
    return np.asarray(noise.resize((shape[1], shape[0]), Image.BICUBIC))


def across(shape: tuple[int, int], angle: float) -> np.ndarray:
    """Return how far along a direction each pixel is, in pixels from the middle."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return np.cos(angle) * (x - shape[1] / 2) + np.sin(angle) * (y - shape[0] / 2)


def light(shape: tuple[int, int], darkest: float, rng: np.random.Generator) -> np.ndarray:
    """Return light that falls from 1 to `darkest` across the sheet."""
    along = across(shape, rng.uniform(0, 2 * np.pi))
    along = (along - along.min()) / max(1.0, float(np.ptp(along)))
    return (1 - (1 - darkest) * along ** rng.uniform(0.8, 1.6))[:, :, None]


def grain(shape: tuple[int, int], strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return the shades of a rough paper, around 1."""
    octaves = [(0.4, 1.5), (0.35, 4), (0.25, 15)]
    spots = sum(part * clouds(shape, size, rng) for part, size in octaves)
    return (1 + strength * spots)[:, :, None]


def rules(shape: tuple[int, int], angle: float, gap: float, width: float, start: float):
    """Return straight lines over a sheet, `gap` pixels apart: 0..1."""
    along = (across(shape, angle) + start) % gap
    return np.clip(width / 2 + 0.5 - np.minimum(along, gap - along), 0, min(1, width))


# ---- Size and place ----------------------------------------------------------------------


def tiny(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """An icon: the whole image is 12 to 27 pixels."""
    return to_image(written(in_frame(digit, rng, int(rng.integers(12, 28))), rng))


def small(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A small image of 28 to 60 pixels."""
    return to_image(written(in_frame(digit, rng, int(rng.integers(28, 61))), rng))


def large(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """An image of 500 to 2,000 pixels that the digit fills."""
    return to_image(written(in_frame(digit, rng, int(rng.integers(500, 2001))), rng))


def dark_on_light(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """MNIST's own pixels, the ink dark and the ground light."""
    return to_image(255 - digit.astype(float))


def off_centre(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """28x28 pixels, the digit of any size and not in the middle; half are white on black."""
    deep = depth(digit)
    wide = draw(deep, 200).shape[1] / 200
    ink = anywhere(draw(deep, round(rng.uniform(11, 20) / max(1, wide))), 26, 26, rng)
    ink = np.pad(ink, 1) * 255
    return to_image(ink if rng.random() < 0.5 else 255 - ink)


def large_sheet(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A digit somewhere on an empty sheet that is 3 to 12 times as high."""
    height, width = (int(n) for n in rng.integers(500, 1200, 2))
    most = 0.8 * width / (draw(depth(digit), 200).shape[1] / 200)
    ink = draw(depth(digit), round(min(most, rng.uniform(0.08, 0.3) * height)))
    return to_image(written(anywhere(ink, height, width, rng), rng))


def touching(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A tight crop: ink runs into the border, or is cut by a hair, on one side or on all."""
    ink = draw(depth(digit), int(rng.integers(80, 350)))
    height = ink.shape[0]
    tight = rng.random(4) < 0.6
    tight[rng.integers(4)] = True
    cut = np.round(rng.uniform(0, 0.025, 4) * height).astype(int) * tight
    ink = ink[cut[0] : height - cut[1], cut[2] : ink.shape[1] - cut[3]]
    room = np.round(rng.uniform(0.05, 0.4, 4) * height).astype(int) * ~tight
    if ink.mean() > 0.4:  # an upright 1, which would be all ink
        room[2:] = np.round(rng.uniform(0.2, 0.4, 2) * height).astype(int)
        if tight[2:].all() or not tight[:2].any():
            room[0] = 0
    return to_image(written(np.pad(ink, (room[:2], room[2:])), rng))


# ---- Pens and inks -----------------------------------------------------------------------


def thin_pen(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A hairline, 1/25 of the digit's height."""
    return to_image(written(page(digit, rng, 1 / 25), rng))


def thick_marker(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A fat stroke, 1/4.5 of the digit's height, thinner where loops would close."""
    return to_image(written(page(digit, rng, 1 / 4.5), rng))


def chalk(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Chalk on a blackboard, crumbly, with wiped dust around it."""
    ink = page(digit, rng)
    boards = [(32, 34, 36), (38, 66, 54), (36, 48, 66)]
    board = np.array(boards[rng.integers(3)]) + rng.uniform(-10, 15)
    crumbs = np.clip(0.95 + 0.35 * clouds(ink.shape, ink.shape[0] / 120, rng), 0.35, 1)
    dust = 6 * clouds(ink.shape, ink.shape[0] / 5, rng)[:, :, None]
    return to_image(paint(ink * crumbs, board, [235, 235, 228]) + dust)


def coloured(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Coloured ink on coloured paper; in a third of the images both are nearly as bright."""
    alike = rng.random() < 1 / 3
    while True:
        paper, colour = rng.uniform(0, 255, (2, 3))
        spread = [np.ptp(colour), np.ptp(paper)]
        brighter = abs(float(GRAY @ (paper - colour)))
        apart = float(np.linalg.norm(paper - colour))
        bright_enough = brighter < 25 if alike else brighter > 70
        if bright_enough and min(spread) > 70 and apart > (190 if alike else 130):
            return to_image(paint(page(digit, rng), paper, colour))


def faint_pencil(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Pencil that is only 10 to 20% of the range darker than its paper, with grain and noise."""
    ink = page(digit, rng)
    paper = rng.uniform(205, 245)
    lead = np.clip(0.9 + 0.2 * clouds(ink.shape, 2, rng), 0.4, 1)
    pixels = paper - 255 * rng.uniform(0.1, 0.2) * ink * lead
    return to_image(pixels + rng.uniform(1, 3) * rng.standard_normal(ink.shape))


def broken_strokes(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A dry pen: two to four small gaps across the strokes."""
    deep = depth(digit)
    height = rows_of(deep > 0)
    lines = np.argwhere(thinned((deep > 0)[None])[0])
    y, x = np.mgrid[: deep.shape[0], : deep.shape[1]]
    whole = deep
    for middle in lines[rng.choice(len(lines), int(rng.integers(2, 5)))]:
        near = lines[np.linalg.norm(lines - middle, axis=1) < 0.08 * height] - middle
        along = np.linalg.svd(near - near.mean(axis=0))[2][0]  # the direction of the stroke
        offset = np.stack([y - middle[0], x - middle[1]], axis=-1)
        gap = np.abs(offset @ along) - height * rng.uniform(0.01, 0.025)
        local = np.linalg.norm(offset, axis=-1) - 1.4 * whole[tuple(middle)] - 4
        deep = np.minimum(deep, np.maximum(gap, local))
    return to_image(written(margins(draw(deep, int(rng.integers(80, 350))), rng), rng))


# ---- Light and paper ---------------------------------------------------------------------


def uneven_light(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Light that falls off across the sheet to a third or so."""
    ink = page(digit, rng)
    return to_image(written(ink, rng) * light(ink.shape, rng.uniform(0.25, 0.45), rng))


def shadow_edge(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """The straight, softish edge of a shadow, 30 to 50% dark, across the sheet."""
    ink = page(digit, rng)
    side = min(ink.shape)
    along = across(ink.shape, rng.uniform(0, 2 * np.pi)) + side * rng.uniform(-0.25, 0.25)
    shadow = 1 / (1 + np.exp(-along / (side * rng.uniform(0.004, 0.02))).clip(max=1e6))
    return to_image(written(ink, rng) * (1 - rng.uniform(0.3, 0.5) * shadow)[:, :, None])


def paper_texture(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Rough or recycled paper."""
    ink = page(digit, rng)
    paper = rng.uniform(175, 235) * np.array([1, 0.98, rng.uniform(0.82, 0.97)])
    return to_image(paint(ink, paper, pen(rng)) * grain(ink.shape, rng.uniform(0.04, 0.09), rng))


def on_lines(ink: np.ndarray, both: bool, rng: np.random.Generator) -> np.ndarray:
    """Write on ruled or, with lines in both directions, on squared paper."""
    height = np.ptp(np.flatnonzero(ink.any(axis=1)))
    gap = height * (rng.uniform(0.22, 0.6) if both else rng.uniform(0.4, 1.1))
    width = max(1.0, min(height / rng.uniform(45, 90), 4.0))
    angle = np.pi / 2 + (np.radians(rng.uniform(-3, 3)) if rng.random() < 0.6 else 0)
    lines = rules(ink.shape, angle, gap, width, rng.uniform(0, gap))
    if both:
        lines = np.maximum(
            lines, rules(ink.shape, angle - np.pi / 2, gap, width, rng.uniform(0, gap))
        )
    blue_grey = np.array([155, 180, 212]) + rng.uniform(-15, 20)
    return paint(ink, paint(lines, white_paper(rng), blue_grey), pen(rng))


def ruled(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Paper with blue-grey lines, straight or a little turned, paler than the ink."""
    return to_image(on_lines(page(digit, rng), False, rng))


def squared(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Paper with squares, paler than the ink."""
    return to_image(on_lines(page(digit, rng), True, rng))


def specks(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Dust and specks of a dirty scanner, as dark as the ink."""
    ink = page(digit, rng)
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]]
    height = np.ptp(np.flatnonzero(ink.any(axis=1)))
    dirt = np.zeros_like(ink)
    for _ in range(rng.integers(8, 40)):
        radius = height * rng.uniform(0.004, 0.018)
        far = np.hypot(y - rng.uniform(0, ink.shape[0]), x - rng.uniform(0, ink.shape[1]))
        dirt = np.maximum(dirt, rng.uniform(0.5, 1) * np.clip(radius + 0.5 - far, 0, 1))
    return to_image(written(np.maximum(ink, dirt), rng))


# ---- Cameras -----------------------------------------------------------------------------


def blurred(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Out of focus, or moved."""
    ink = margins(draw(depth(digit), int(rng.integers(80, 350))), rng, least=0.2)
    height = np.ptp(np.flatnonzero(ink.any(axis=1)))
    if rng.random() < 0.5:
        return to_image(
            written(ndimage.gaussian_filter(ink, height * rng.uniform(0.02, 0.04)), rng)
        )
    length, angle = height * rng.uniform(0.07, 0.13), rng.uniform(0, np.pi)
    way = length * np.array([np.sin(angle), np.cos(angle)])
    steps = np.linspace(-0.5, 0.5, int(length) + 2)
    moved = np.mean([ndimage.shift(ink, step * way, order=1) for step in steps], axis=0)
    return to_image(written(moved, rng))


def bad_jpeg(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A JPEG of quality 10 to 25."""
    return to_file(
        to_image(written(page(digit, rng), rng)), "JPEG", quality=int(rng.integers(10, 26))
    )


def noise(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A photograph in dim light: dark, and grainy in all three colours."""
    ink = page(digit, rng)
    pixels = written(ink, rng) * rng.uniform(0.4, 0.6) + 8
    bright = clouds(ink.shape, 1, rng)[:, :, None] + clouds(ink.shape, 2.5, rng)[:, :, None]
    colour = np.stack([clouds(ink.shape, 2, rng) for _ in range(3)], axis=-1)
    return to_image(pixels + rng.uniform(7, 16) * (bright + 0.6 * colour))


def phone_photo(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A JPEG from a phone: a little turned, unevenly lit, rough, unsharp and noisy."""
    long_side = int(rng.integers(800, 1601))
    sizes = [long_side, round(long_side * rng.choice([0.75, 0.5625, 1]))]
    height, width = sizes if rng.random() < 0.5 else sizes[::-1]
    deep = depth(digit)
    wide = draw(deep, 200).shape[1] / 200
    tall = min(rng.uniform(0.25, 0.6) * height, 0.8 * width / wide)
    turned = Image.fromarray(draw(deep, round(tall))).rotate(
        rng.uniform(-5, 5), Image.BICUBIC, expand=True
    )
    ink = anywhere(np.clip(np.asarray(turned), 0, 1), height, width, rng)
    ink = ndimage.gaussian_filter(ink, tall * rng.uniform(0.002, 0.01))
    pixels = written(ink, rng) * np.array([1, rng.uniform(0.95, 1), rng.uniform(0.8, 1)])
    pixels *= light(ink.shape, rng.uniform(0.55, 0.85), rng)
    pixels *= grain(ink.shape, rng.uniform(0.01, 0.03), rng)
    pixels += rng.uniform(1, 4) * clouds(ink.shape, 1.5, rng)[:, :, None]
    return to_file(to_image(pixels), "JPEG", quality=int(rng.integers(60, 93)))


# ---- Files -------------------------------------------------------------------------------


def exif_rotated(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A JPEG that lies on its side or mirrored, and says so: orientations 2 to 8."""
    undo = {  # what makes the stored image of the upright one
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    orientation = int(rng.integers(2, 9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = to_image(written(page(digit, rng), rng)).transpose(undo[orientation])
    return to_file(stored, "JPEG", quality=90, exif=exif)


def transparent(ink: np.ndarray, colour: np.ndarray) -> Image.Image:
    """Return an image that is transparent but for its ink."""
    pixels = np.empty((*ink.shape, 4), np.float32)
    pixels[:, :, :3] = colour * (ink[:, :, None] > 0)  # drawing programs leave black behind
    pixels[:, :, 3] = 255 * ink
    return to_image(pixels)


def transparent_dark(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A drawing with a transparent ground, in dark ink."""
    return transparent(page(digit, rng), pen(rng))


def transparent_light(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A drawing with a transparent ground, in white or nearly white ink."""
    return transparent(page(digit, rng), rng.uniform(225, 255, 3))


def transparent_border(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """An opaque card with a dark digit, and transparent margins around the card."""
    card = to_image(written(page(digit, rng), rng)).convert("RGBA")
    room = np.round(rng.uniform(0.05, 0.3, 4) * card.height).astype(int)
    size = card.width + int(room[:2].sum()), card.height + int(room[2:].sum())
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste(card, (int(room[0]), int(room[2])))
    return image


def deep_png(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A gray PNG of 16 bits, as scanners and microscopes write."""
    gray = (written(page(digit, rng), rng) @ GRAY) * 257
    return to_file(Image.fromarray(np.round(gray).astype(np.uint16)), "PNG")


def palette_png(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A PNG of 4 to 32 colours; half have a transparent ground."""
    ink = page(digit, rng)
    image = to_image(written(ink, rng)).quantize(int(rng.integers(4, 33)))
    if rng.random() < 0.5:
        return to_file(image, "PNG")
    return to_file(image, "PNG", transparency=image.getpixel((0, 0)))


# ---- What is around the digit ------------------------------------------------------------


def box_lines(shape: tuple[int, int], width: float, edges: np.ndarray) -> np.ndarray:
    """Return the lines of a rectangle, `width` thick, its four sides at `edges`."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    top, bottom, left, right = edges
    outside = np.maximum.reduce([top - y, y - bottom, left - x, x - right])
    return np.clip(width / 2 + 0.5 - np.abs(outside), 0, 1)


def ringed(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A ring around the digit, as pupils circle an answer; half of them do not close."""
    ink = draw(depth(digit), int(rng.integers(80, 250)))
    height, width = ink.shape
    ink = np.pad(ink, round(0.8 * height))
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]].astype(np.float32)
    angle = np.arctan2(y - ink.shape[0] / 2, x - ink.shape[1] / 2) + np.pi
    radii = 0.5 * np.array([height, max(width, 0.6 * height)]) * np.sqrt(2)
    radii += height * rng.uniform(0.06, 0.22)  # clear of the digit
    far = np.hypot((y - ink.shape[0] / 2) / radii[0], (x - ink.shape[1] / 2) / radii[1])
    wobble = 1 + 0.04 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.01 * angle * rng.uniform(-1, 1)
    ring = np.clip(0.04 * height + 0.5 - np.abs(far - wobble) * radii.mean(), 0, 1)
    if rng.random() < 0.5:
        start = rng.uniform(0, 6)
        ring[(angle - start) % (2 * np.pi) < rng.uniform(0.1, 0.3)] = 0
    ink = np.maximum(ink, ring)
    rows, columns = (np.flatnonzero((ink > 0).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return to_image(written(margins(ink, rng, 0.04, 0.3), rng))


def boxed(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """The printed box of a form, close around the digit, perhaps a little askew."""
    ink = draw(depth(digit), int(rng.integers(80, 300)))
    height, width = ink.shape
    room = height * rng.uniform(0.06, 0.25, 4)  # above, below, left, right
    if width < 0.5 * height:
        room[2:] += 0.25 * height
    around = int(height * 0.5)
    ink = np.pad(ink, around)
    edges = around + np.array([-room[0], height + room[1], -room[2], width + room[3]])
    lines = box_lines(ink.shape, height * rng.uniform(0.01, 0.04), edges)
    turned = Image.fromarray(np.maximum(ink, lines)).rotate(rng.uniform(-2, 2), Image.BICUBIC)
    outer = round(height * rng.uniform(0.03, 0.2))
    top, left = (max(0, int(edges[i]) - outer) for i in (0, 2))
    bottom, right = (int(edges[i]) + outer for i in (1, 3))
    return to_image(written(np.clip(np.asarray(turned), 0, 1)[top:bottom, left:right], rng))


def hairline_frame(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """MNIST's own pixels, a frame of 1 px round them that contrasts; half are dark on light."""
    pixels = digit.copy()
    pixels[[0, -1]] = pixels[:, [0, -1]] = 255
    return Image.fromarray(pixels if rng.random() < 0.5 else 255 - pixels)


def wide_frame(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A black frame of 20 px at the edge of the picture."""
    pixels = np.pad(written(page(digit, rng), rng), ((20, 20), (20, 20), (0, 0)))
    return to_image(pixels + rng.uniform(0, 25))


def bars(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Black bars beside a white sheet, left and right or above and below."""
    pixels = written(page(digit, rng), rng)
    sides = np.round(pixels.shape[0] * rng.uniform(0.05, 0.5, 2)).astype(int)
    room = [sides, (0, 0), (0, 0)] if rng.random() < 0.3 else [(0, 0), sides, (0, 0)]
    return to_image(np.pad(pixels, room) + rng.uniform(0, 15))


def half_shaded(
    digit: np.ndarray, rng: np.random.Generator, darkest: float, edge: float
) -> ImageLike:
    """Half of the sheet in shadow, `darkest` of the light left, across the digit."""
    ink = page(digit, rng)
    side = min(ink.shape)
    along = across(ink.shape, rng.uniform(0, 2 * np.pi)) + side * rng.uniform(-0.15, 0.15)
    shadow = 1 / (1 + np.exp((-along / (side * edge)).clip(-50, 50)))
    pixels = written(ink, rng) * (1 - (1 - darkest) * shadow)[:, :, None]
    return to_image(pixels + 1.5 * rng.standard_normal((*ink.shape, 1)))


def deep_shadow(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Half of the sheet in deep shadow with a hard edge, 20 to 40% of the light left."""
    return half_shaded(digit, rng, rng.uniform(0.2, 0.4), rng.uniform(0.002, 0.01))


def soft_shadow(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Half of the sheet in shadow with a soft edge, 20 to 50% of the light left."""
    return half_shaded(digit, rng, rng.uniform(0.2, 0.5), rng.uniform(0.02, 0.08))


def on_table(written_on: np.ndarray, table: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A sheet, a little turned, on a table that shows on all sides."""
    sheet = to_image(written_on).convert("RGBA")
    sheet = sheet.rotate(rng.uniform(-12, 12), Image.BICUBIC, expand=True)
    room = np.round(sheet.height * rng.uniform(0.05, 0.5, 4)).astype(int)
    shape = sheet.height + room[0] + room[1], sheet.width + room[2] + room[3]
    wood = 1 + 0.04 * clouds(shape, max(shape) / 15, rng)[:, :, None]
    picture = to_image(table * wood + 2 * clouds(shape, 1.5, rng)[:, :, None])
    picture.paste(sheet, (int(room[2]), int(room[0])), sheet)
    return picture


def darker_table(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A white sheet on a darker table, of wood, black or gray."""
    tables = [(120, 85, 55), (45, 40, 38), (160, 160, 165), (175, 140, 100)]
    table = np.array(tables[rng.integers(4)]) + rng.uniform(-15, 15)
    return on_table(written(page(digit, rng), rng) * 0.95, table, rng)


def lighter_table(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A coloured or gray sheet on a white table."""
    sheet = paint(page(digit, rng), rng.uniform(140, 205, 3), pen(rng) * 0.8)
    return on_table(sheet, white_paper(rng), rng)


def savefig(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A white margin around a black square with a white digit, as Matplotlib saves a figure."""
    scale = rng.uniform(2, 14)
    size = round(digit.shape[0] * scale)
    how = Image.NEAREST if rng.random() < 0.5 else Image.BICUBIC
    square = np.asarray(Image.fromarray(digit).resize((size, size), how))
    room = np.round(size * rng.uniform(0.03, 0.35, 4)).astype(int)
    return Image.fromarray(np.pad(square, (room[:2], room[2:]), constant_values=255))


def turned(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A picture turned by about 10 degrees, black in the corners."""
    picture = to_image(written(page(digit, rng), rng))
    angle = rng.uniform(8, 12) * rng.choice([-1, 1])
    return picture.rotate(angle, Image.BICUBIC, expand=rng.random() < 0.5)


def dark_rules(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Ruled paper, the lines as dark as the ink."""
    ink = page(digit, rng)
    height = rows_of(ink > 0)
    gap = height * rng.uniform(0.4, 1.1)
    angle = np.pi / 2 + (np.radians(rng.uniform(-3, 3)) if rng.random() < 0.6 else 0)
    width = max(1.0, min(height / rng.uniform(45, 90), 4.0))
    return to_image(
        written(np.maximum(ink, rules(ink.shape, angle, gap, width, rng.uniform(0, gap))), rng)
    )


def outlined(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """Only the outline of the digit is drawn."""
    deep = depth(digit)
    height = rows_of(deep > 0)
    contour = height * rng.uniform(0.01, 0.025) - np.abs(deep)
    return to_image(written(margins(draw(contour, int(rng.integers(120, 400))), rng), rng))


def underlined(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A digit that is underlined with the same pen."""
    ink = draw(depth(digit), int(rng.integers(80, 300)))
    height, width = ink.shape
    ink = np.pad(ink, ((0, height // 2), (height // 2, height // 2)))
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]].astype(np.float32)
    line = height * (1.04 + rng.uniform(0.06, 0.2)) + np.tan(np.radians(rng.uniform(-4, 4))) * (
        x - ink.shape[1] / 2
    )
    half = max(width, 0.4 * height) * rng.uniform(0.5, 0.7)
    beyond = np.hypot(np.maximum(np.abs(x - ink.shape[1] / 2) - half, 0), y - line)
    ink = np.maximum(ink, np.clip(height * rng.uniform(0.03, 0.05) + 0.5 - beyond, 0, 1))
    return to_image(written(margins(ink, rng, 0.1, 0.4), rng))


def twelve_megapixels(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """A small digit, 60 to 180 pixels high, on a photo of 4,000 x 3,000."""
    paper = white_paper(rng) * rng.uniform(0.75, 1)
    shade = light((150, 200), rng.uniform(0.6, 0.95), rng)
    photo = to_image(paper * shade).resize((4000, 3000), Image.BICUBIC)
    ink = Image.fromarray(np.uint8(255 * draw(depth(digit), int(rng.integers(60, 181)))))
    ink = ink.rotate(rng.uniform(-4, 4), Image.BICUBIC, expand=True)
    place = [int(rng.uniform(0.2, 0.8) * side) for side in photo.size]
    photo.paste(tuple(int(value) for value in pen(rng)), tuple(place), ink)
    return to_file(photo, "JPEG", quality=88)


# ---- Straight strokes --------------------------------------------------------------------

STRAIGHT = {  # digit: its polylines, in a box of height 1
    1: [[(0.35, 0), (0.35, 1)]],
    4: [[(0.35, 0), (0, 0.62), (0.7, 0.62)], [(0.48, 0), (0.48, 1)]],
    7: [[(0, 0), (0.65, 0), (0.25, 1)]],
}


def straight_strokes(digit: int, rng: np.random.Generator) -> Image.Image:
    """A plain 1, 4 or 7 of straight strokes that fills a picture of 100 to 1,500 pixels.

    The pen is 1% to 8% of the side wide, the margin 3% to 12%.
    """
    side = int(rng.integers(100, 1501))
    width, margin = side * rng.uniform(0.01, 0.08), side * rng.uniform(0.03, 0.12)
    lean = rng.uniform(-0.1, 0.1) if rng.random() < 0.5 else 0
    height = side - 2 * margin - width
    y, x = np.mgrid[:side, :side].astype(np.float32)
    far = np.full((side, side), np.inf, np.float32)
    for line in STRAIGHT[digit]:
        points = np.array(line) @ np.array([[1, 0], [-lean, 1]]) * height
        points += (side - height) / 2 + height * np.array([0.15, 0])
        for (ax, ay), (bx, by) in itertools.pairwise(points):
            dx, dy = bx - ax, by - ay
            along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx**2 + dy**2), 0, 1)
            far = np.minimum(far, np.hypot(x - ax - along * dx, y - ay - along * dy))
    return to_image(written(np.clip(width / 2 + 0.5 - far, 0, 1), rng))


# ---- Tight crops -------------------------------------------------------------------------


def tight_crop(digit: np.ndarray, rng: np.random.Generator) -> ImageLike:
    """16x16 pixels, cut to the ink: gray or of one bit, stretched or not, of either polarity."""
    rows, columns = (np.flatnonzero((digit > 60).any(axis=axis)) for axis in (1, 0))
    image = Image.fromarray(digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    width = 16
    if rng.random() < 0.5 or image.width < 0.4 * image.height:  # a stretched 1 is all ink
        width = max(1, round(16 * min(1, image.width / image.height)))
    pixels = np.asarray(image.resize((width, 16), Image.BICUBIC))
    left = (16 - width) // 2
    pixels = np.pad(pixels, ((0, 0), (left, 16 - width - left)))
    if rng.random() < 0.5:
        pixels = np.uint8(255 * (pixels > 110))
    return Image.fromarray(pixels if rng.random() < 0.5 else 255 - pixels)


# ---- All of them -------------------------------------------------------------------------

KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], ImageLike]] = {
    "tiny (12-27 px)": tiny,
    "small (28-60 px)": small,
    "large (500-2,000 px)": large,
    "28x28 dark on light": dark_on_light,
    "28x28 off-centre": off_centre,
    "anywhere on a large empty sheet": large_sheet,
    "touching the border": touching,
    "thin pen": thin_pen,
    "thick marker": thick_marker,
    "light on dark (chalk)": chalk,
    "coloured ink on coloured paper": coloured,
    "faint pencil": faint_pencil,
    "uneven light": uneven_light,
    "shadow edge": shadow_edge,
    "paper texture": paper_texture,
    "ruled paper": ruled,
    "squared paper": squared,
    "specks and dust": specks,
    "broken strokes": broken_strokes,
    "blurred": blurred,
    "JPEG quality 10-25": bad_jpeg,
    "noise (dim light)": noise,
    "EXIF rotated": exif_rotated,
    "transparent, dark ink": transparent_dark,
    "transparent, light ink": transparent_light,
    "transparent border around a card": transparent_border,
    "16-bit PNG": deep_png,
    "palette PNG": palette_png,
    "phone photo": phone_photo,
    "ring around the digit": ringed,
    "tight box of a form": boxed,
    "28x28 with a frame of 1 px": hairline_frame,
    "black frame of 20 px": wide_frame,
    "black bars beside the sheet": bars,
    "half in deep shadow": deep_shadow,
    "half in soft shadow": soft_shadow,
    "sheet on a darker table": darker_table,
    "sheet on a lighter table": lighter_table,
    "margin around a black square": savefig,
    "turned, with black corners": turned,
    "rules as dark as the ink": dark_rules,
    "outlined digit": outlined,
    "underlined": underlined,
    "small on 12 megapixels": twelve_megapixels,
    "16x16 tight crop": tight_crop,
}


def photograph(kind: str, digit: np.ndarray, seed: int, number: int = 0) -> ImageLike:
    """Make one image; the same kind, digit, seed and number give the same image."""
    return KINDS[kind](digit, np.random.default_rng([seed, zlib.crc32(kind.encode()), number]))


def photographs(kind: str, digits: Sequence[np.ndarray], seed: int) -> list[ImageLike]:
    """Make one image of each digit, uint8 (28, 28)."""
    return [photograph(kind, digit, seed, number) for number, digit in enumerate(digits)]
