"""Synthetic training images: digits in handwriting styles that MNIST lacks, and non-digits.

    images, labels = draw_handwriting(6000, seed=0)
    images = draw_non_digits(6000, seed=0, images=digits.images)

Half of the world writes a 1 with an upstroke, a 7 with a bar, a 4 as a bolt of lightning or a 9
with a curled tail; MNIST's American writers seldom did. A function for each style returns strokes
of random proportions, which are bent, slanted and stretched, and drawn in MNIST's geometry. A
network that has seen nothing but digits takes a letter for one with great confidence. So it is
shown letters, signs, scribbles, textures and pieces of digits as well.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import scipy
import torch

from model import IMAGE_SIZE
from reading.ink import bounding_box
from reading.preprocessing import BOX_SIZE, draw_as_mnist
from training.data import Digits

# A stroke is float (P, 2): points, x to the right and y down. Most digits are 1 high, from y = 0.
Strokes = list[np.ndarray]
Uniform = Callable[[float, float], float]  # returns a random number between two

# Pairs are the minimum and the maximum.
MAX_SLANT = 0.2  # to either side, as a share of the height
STRETCHES = (0.8, 1.5)  # factors for the width; some scanners fill a square
BEND = 0.08  # standard deviation of each quadratic term
PEN_WIDTHS = (2.0, 4.2)  # pixels; nearly all of MNIST is within
EDGE_WIDTHS = (1.0, 3.0)  # pixels from no ink to full ink: as sharp as MNIST, or scaled up
FAINT = 0.25  # of the strongest ink: at the edges, what is not above it is cropped
SHAKE = 0.03  # standard deviation of each point of a letter, as a share of its height


# ---- Strokes -----------------------------------------------------------------------------


def line(*points: tuple[float, float], roundness: float = 0.0) -> np.ndarray:
    """Return straight lines from point to point; a roundness of 0..1 rounds the corners."""
    path = np.array(points)
    if not roundness or len(path) < 3:
        return path
    before, corner, after = path[:-2], path[1:-1], path[2:]
    start = corner + 0.5 * roundness * (before - corner)
    stop = corner + 0.5 * roundness * (after - corner)
    t = np.linspace(0, 1, 6)[:, None]
    weights = np.hstack([(1 - t) ** 2, 2 * t * (1 - t), t**2])  # a quadratic Bézier curve
    bows = np.einsum("tk,knd->ntd", weights, np.stack([start, corner, stop]))
    return np.concatenate([path[:1], bows.reshape(-1, 2), path[-1:]])


def curve(*points: tuple[float, float]) -> np.ndarray:
    """Return a smooth curve through the points: a Catmull-Rom spline."""
    path = np.array(points)
    path = np.concatenate([2 * path[:1] - path[1:2], path, 2 * path[-1:] - path[-2:-1]])
    t = np.linspace(0, 1, 5, endpoint=False)[:, None]
    inner = [2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3]
    weights = 0.5 * np.hstack([-t + 2 * t**2 - t**3, *inner, t**3 - t**2])
    spans = np.stack([path[:-3], path[1:-2], path[2:-1], path[3:]])
    bows = np.einsum("tk,knd->ntd", weights, spans)
    return np.concatenate([bows.reshape(-1, 2), path[-2:-1]])


def oval(
    left: float, top: float, width: float, height: float, start: float = 0.0, sweep: float = 360.0
) -> np.ndarray:
    """Return an ellipse or an arc of it. The angles are degrees, clockwise from the right."""
    angle = np.radians(np.linspace(start, start + sweep, 4 + round(abs(sweep) / 20)))
    x, y = left + width / 2 * (1 + np.cos(angle)), top + height / 2 * (1 + np.sin(angle))
    return np.stack([x, y], axis=1)


# ---- Styles of handwriting (docs/handwriting.png shows them all) -------------------------


def zero(u: Uniform, dot: bool = False) -> Strokes:
    width = u(0.55, 0.8)
    if dot:
        y = u(0.43, 0.57)
        mark = line((width / 2, y), (width / 2 + u(-0.03, 0.03), y + u(0, 0.12)))
    else:
        x, y = u(0.12, 0.38), u(0.25, 0.58)
        mark = line((width / 2 - x, 0.5 + y), (width / 2 + x, 0.5 - y))
    return [oval(0, 0, width, 1, u(-120, -60), u(350, 370)), mark]


def one_upstroke(u: Uniform, leans: tuple = (-0.12, 0.08), max_slope: float = 1.2) -> Strokes:
    lean, y = u(*leans), u(0.15, 0.65)
    x = (lean - u(0.35, max_slope)) * y  # with a flatter upstroke it would be a 7
    return [line((x, y), (0, 0), (lean, 1), roundness=u(0, 0.3))]


def one_wide(u: Uniform) -> Strokes:
    left, y, lean = u(0.35, 0.6), u(0.4, 0.65), u(-0.15, 0.08)
    return [line((-left, y), (0, 0), (lean, 1), roundness=u(0, 0.15))]


def one_foot(u: Uniform, printed: bool = False) -> Strokes:
    """The upstroke is as most fonts print it, or no more than a hint."""
    if printed:
        lean, left, right, y = u(-0.1, 0.05), u(0.12, 0.35), u(0.12, 0.3), u(0.15, 0.65)
        x = (lean - u(0.35, 1.2)) * y
    else:
        lean, left, right = u(-0.05, 0.05), u(0.1, 0.3), u(0.12, 0.3)
        x, y = -u(0, 0.1), u(0.05, 0.15)
    return [line((x, y), (0, 0), (lean, 1)), line((lean - left, 1), (lean + right, 1))]


def one_loop(u: Uniform) -> Strokes:
    loop, foot = u(-0.02, 0.1), u(-0.15, 0.05)
    top = [(0.5 * loop - 0.03, 0.18), (0.5 * loop, 0.04), (0, 0), (-0.5 * loop, 0.08)]
    start = (u(-0.45, -0.2), u(0.4, 0.75))
    return [curve(start, *top, (0.5 * foot - 0.2 * loop, 0.5), (foot, 1))]


def one_broad(u: Uniform) -> Strokes:
    broad, bow, lean = u(0, 0.26), u(-0.08, 0.08), u(-0.1, 0.1)
    across = np.linspace(-broad / 2, broad / 2, 11)  # near enough to leave no stripes
    stem = [curve((x + lean, 0), (x + bow, 0.5), (x - lean, 1)) for x in across]
    left, y = lean - broad / 2, u(0.25, 0.45)
    return [*stem, line((left, 0.05), (left - u(0.2, 0.35), y))] if u(0, 1) < 0.4 else stem


def two_loop(u: Uniform) -> Strokes:
    width, low = u(0.5, 0.7), u(0.85, 0.95)
    top = [(0, u(0.12, 0.3)), (width / 2, 0), (width, 0.25), (0.5 * width, 0.7)]
    loop = [(0.05, low + 0.03), (-0.03, low - 0.1), (0.15, low - 0.13)]
    return [curve(*top, *loop, (0.6 * width, 0.95), (width + u(0.05, 0.25), u(0.85, 0.98)))]


def two_plain(u: Uniform) -> Strokes:
    width, neck = u(0.35, 0.7), u(0.15, 0.35)
    start = (u(-0.05, 0.1), u(0.08, 0.3))
    top = curve(start, (width / 2, 0), (width, neck), (0.65 * width, 0.6), (0, 1))
    return [top, line((0, 1), (width + u(-0.05, 0.2), 1 + u(-0.06, 0.02)))]


def two_narrow(u: Uniform) -> Strokes:
    width, neck, left = u(0.25, 0.45), u(0.15, 0.4), u(0, 0.15)
    hook = [(u(-0.05, 0.05), u(0.1, 0.25)), (0.5 * width, 0), (width, neck)]
    right = left + u(0.35, 0.55)
    foot = curve((left, 0.97), ((left + right) / 2, u(0.9, 0.97)), (right, 0.97))
    return [curve(*hook, ((left + 2 * width) / 3, 0.65), (left, 0.97)), foot]


def two_curled(u: Uniform) -> Strokes:
    width, curl = u(0.45, 0.65), u(0.05, 0.1)
    hook = [(2.4 * curl, 0.16 + curl), (0, 0.24), (0.5 * width, 0), (width, 0.26)]
    wave = [(0.3 * width, 1 - u(0.02, 0.1)), (0.75 * width, 1), (width + 0.05, 1 - u(0.02, 0.15))]
    return [curve(*hook, (0.55 * width, 0.62), (0, 1)), curve((0, 1), *wave)]


def three_flat(u: Uniform) -> Strokes:
    width, neck = u(0.45, 0.65), (u(0.1, 0.35), u(0.35, 0.48))
    top = line((u(-0.05, 0.1), u(-0.03, 0.05)), (width, 0), neck)
    belly = [(width + 0.03, 0.7), (0.6 * width, 1), (-0.03, u(0.82, 0.96))]
    return [top, curve(neck, (0.8 * width, neck[1] + 0.05), *belly)]


def three_curled(u: Uniform) -> Strokes:
    width, middle, curl = u(0.45, 0.65), u(0.4, 0.5), u(0.03, 0.08)
    upper = [(2.2 * curl, 0.15 + curl), (0.4 * curl, 0.17), (0.5 * width, 0), (width, 0.22)]
    lower = [(0.45 * width, middle), (width + 0.04, 0.73), (0.5 * width, 1), (-0.02, 0.86)]
    return [curve(*upper, *lower, (2 * curl, 0.86 - u(0, 1.2) * curl))]


def four_open(u: Uniform) -> Strokes:
    """One stroke goes down and to the right, and a second one crosses it."""
    bar, x = u(0.5, 0.72), u(0.4, 0.6)
    slope = [(u(0.2, 0.5), 0), (u(-0.05, 0.05), bar), (x + u(0.08, 0.3), bar + u(-0.08, 0.03))]
    return [line(*slope, roundness=u(0, 0.4)), line((x, u(0.1, 0.45)), (x + u(-0.12, 0.03), 1))]


def four_low(u: Uniform) -> Strokes:
    """The slope is long, the bar is low, and a short stroke just crosses it."""
    bar, x = u(0.6, 0.8), u(0.35, 0.6)
    slope = [(u(0.3, 0.65), 0), (0, bar), (x + u(0.1, 0.3), bar + u(-0.1, 0.02))]
    across = line((x + u(0, 0.2), u(0.3, bar - 0.1)), (x - u(0, 0.1), 1))
    return [line(*slope, roundness=u(0, 0.8)), across]


def four_stub(u: Uniform) -> Strokes:
    bar, x = u(0.6, 0.78), u(0.4, 0.6)
    slope = [(u(0.3, 0.65), 0), (u(0, 0.08), bar), (x + u(0.1, 0.25), bar + u(-0.12, 0.02))]
    stub = line((x + u(0, 0.05), bar - u(0, 0.15)), (x - u(0, 0.08), 1))
    return [line(*slope, roundness=u(0.2, 0.9)), stub]


def four_bolt(u: Uniform) -> Strokes:
    """A bolt of lightning, in one stroke."""
    bar, right = u(0.45, 0.65), u(0.45, 0.75)
    rise = u(0.04, 0.2)  # a bar that falls would make it a 5
    points = [(u(0.2, 0.5), 0), (0, bar), (right, bar - rise), (right - u(0.05, 0.3), 1)]
    return [line(*points, roundness=u(0, 0.5))]


def four_round(u: Uniform) -> Strokes:
    right, rise, low = u(0.5, 0.75), u(0.32, 0.55), u(0.68, 0.82)
    bowl = [(u(0.3, 0.6), 0), (0.05, low - 0.25), (0.12, low - 0.03), (0.5 * right, low - 0.02)]
    stem = line((right, rise), (right - u(0, 0.3), 1))
    return [curve(*bowl, (right - 0.04, rise + 0.12), (right, rise)), stem]


def four_closed(u: Uniform) -> Strokes:
    bar, x = u(0.55, 0.8), u(0.4, 0.65)
    slope = [(x, u(0, 0.06)), (0, bar), (x + u(0.06, 0.3), bar + u(-0.05, 0.02))]
    return [line(*slope, roundness=u(0, 0.25)), line((x, 0), (x, 1))]


def five(u: Uniform, apart: bool = False) -> Strokes:
    if apart:
        width, y = u(0.45, 0.65), u(-0.12, 0.04)
        hat = line((u(0.08, 0.25), y), (width + u(0, 0.25), y + u(-0.08, 0.04)))
        neck, top = u(0.35, 0.45), u(0.08, 0.16)
    else:
        width = u(0.3, 0.55)
        hat = line((width + u(0, 0.3), u(-0.05, 0.05)), (0.08, 0))
        neck, top = u(0.25, 0.45), 0.02
    left, stop = u(0, 0.08), u(-0.1, 0.15)
    belly = [(width, 0.65), (0.4 * width + 0.5 * stop + 0.1, 0.98), (stop, u(0.88, 1))]
    belly = curve((left, neck), (0.55 * width, neck - 0.03), *belly)
    body = np.concatenate([line((left + 0.03, top), (left, neck)), belly])
    return [hat, body] if apart else [np.concatenate([hat, body])]


def five_like_s(u: Uniform) -> Strokes:
    width, neck = u(0.35, 0.55), u(0.38, 0.5)
    upper = [(width + u(0, 0.2), u(-0.03, 0.06)), (0.3 * width, 0.02), (u(0, 0.08), 0.6 * neck)]
    lower = [(width, u(0.66, 0.76)), (0.5 * width, 0.98), (u(-0.1, 0.05), u(0.88, 1))]
    return [curve(*upper, (0.5 * width, neck), *lower)]


def six_circle(u: Uniform) -> Strokes:
    size, bow = u(0.45, 0.65), u(0, 0.1)
    top, touch = (u(0.2, 1.05) * size, 0), (0.01, 1 - u(0.44, 0.58) * size)
    middle = ((touch[0] + top[0]) / 2 - bow, touch[1] / 2 - 0.3 * bow)
    return [oval(0, 1 - size, size, size), curve(top, middle, touch)]


def six_curled(u: Uniform) -> Strokes:
    width, low = u(0.5, 0.7), u(0.46, 0.56)
    tip = [(width, u(0.15, 0.23)), (width + u(0, 0.06), 0.09), (0.6 * width, 0)]
    bowl = [(0.5 * width, 1), (width, 0.5 + low / 2 + 0.02), (0.5 * width, low), (0.03, 0.65)]
    return [curve(*tip, (0.12 * width, 0.25), (0, 0.65), *bowl)]


def seven(u: Uniform, serif: bool = False, bar: bool = False, foot: bool = False) -> Strokes:
    width, bow = u(0.45, 0.7), u(-0.06, 0.1)
    end = u(0, width - 0.25)  # a 7 with a steep stem and a foot is a 1
    middle = (width + end) / 2 + bow
    points = [(0, u(-0.06, 0.06)), (width, 0), (middle, 0.5), (end, 1)]
    if serif:
        points.insert(0, (u(-0.06, 0.04), u(0.1, 0.18 if bar else 0.3)))
    strokes = [line(*points, roundness=u(0, 1))]
    if bar:
        y, tilt = u(0.42, 0.66), u(-0.08, 0.05)
        x = middle + (0.5 - y) * (width - end)
        strokes.append(line((x - u(0.1, 0.35), y - tilt), (x + u(0.08, 0.3), y + tilt)))
    if foot:
        strokes.append(line((end - u(0.06, 0.18), 1), (end + u(0.06, 0.18), 1)))
    return strokes


def eight_circles(u: Uniform) -> Strokes:
    upper, x = u(0.36, 0.52), u(-0.06, 0.06)
    wide, lower_wide = u(0.85, 1.1) * upper, u(0.85, 1.1) * (1 - upper)
    lower = oval(-lower_wide / 2, upper, lower_wide, 1 - upper)
    return [oval(x - wide / 2, 0, wide, upper), lower]


def eight_narrow(u: Uniform) -> Strokes:
    x, middle = u(0.17, 0.24), u(0.42, 0.52)
    upper = [(x, 0.14), (0, 0), (-x, 0.2), (0, middle)]
    return [curve(*upper, (x, 0.78), (0, 1), (-x, 0.78), (0, middle), (x, 0.14))]


def nine(u: Uniform, tail: str) -> Strokes:
    width, height = u(0.35, 0.6), u(0.35, 0.55)
    head = oval(0, 0, width, height, u(-40, 0))
    if tail == "round":
        end = (u(-0.05, 0.2), u(0.85, 1))
        return [head, curve((width, 0.4 * height), (width, 0.6), (0.6 * width, 0.95), end)]
    if tail == "hook":
        left = u(0.15, 0.4)
        hook = [(width - 0.06, 0.94), (width - left / 2 - 0.03, 1), (width - left, u(0.84, 0.97))]
        return [head, curve((width, 0.3 * height), (width, 0.75), *hook)]
    if tail == "flat":
        base = [(width + u(-0.02, 0.1), 1), (width - u(0.25, 0.6), 1 + u(-0.05, 0.02))]
        return [head, line((width, 0.4 * height), *base, roundness=u(0.1, 0.6))]
    return [head, line((width, u(0.3, 0.5) * height), (width + u(-0.35, 0.05), 1))]


def nine_like_s(u: Uniform) -> Strokes:
    width, height = u(0.18, 0.42), u(0.22, 0.5)
    belly, low = width + u(0.05, 0.3), max(u(0.62, 0.85), height + 0.2)
    neck = (u(0.5, 0.9) * width, u(0.65, 0.95) * height)
    tail = [(belly, low), (belly - 0.12, 0.96), (belly / 2, 1), (u(-0.25, 0.15), u(0.86, 1.02))]
    return [oval(0, 0, width, height), curve(neck, *tail)]


def nine_open(u: Uniform) -> Strokes:
    width, height, lean = u(0.4, 0.6), u(0.38, 0.52), u(-0.3, 0.05)
    # With a wide gap above it would be a 4.
    start, sweep = (-30, u(-350, -295)) if u(0, 1) < 0.6 else (u(-70, -50), -290)
    stem = [(0.97 * width, u(0.05, 0.15)), (width, 0.4), (width + 0.4 * lean + u(0, 0.05), 0.7)]
    return [oval(0, 0, width, height, start, sweep), curve(*stem, (width + lean, 1))]


# The digit that each style writes, its name, and the function that returns its strokes.
# fmt: off
STYLES = [
    (0, "slash", zero), (0, "dot", partial(zero, dot=True)),
    (1, "upstroke", one_upstroke), (1, "wide", one_wide),
    (1, "leaning", partial(one_upstroke, leans=(-0.5, -0.15), max_slope=0.8)),
    (1, "foot", one_foot), (1, "upstroke foot", partial(one_foot, printed=True)),
    (1, "loop", one_loop), (1, "broad", one_broad),
    (2, "loop", two_loop), (2, "plain", two_plain), (2, "narrow", two_narrow),
    (2, "curled", two_curled), (3, "flat", three_flat), (3, "curled", three_curled),
    (4, "open", four_open), (4, "low", four_low), (4, "stub", four_stub), (4, "bolt", four_bolt),
    (4, "round", four_round), (4, "closed", four_closed),
    (5, "hat apart", partial(five, apart=True)), (5, "stroke", five), (5, "like s", five_like_s),
    (6, "circle", six_circle), (6, "curled", six_curled),
    (7, "bar", partial(seven, bar=True)), (7, "serif", partial(seven, serif=True)),
    (7, "serif bar", partial(seven, serif=True, bar=True)), (7, "foot", partial(seven, foot=True)),
    (8, "circles", eight_circles), (8, "narrow", eight_narrow),
    (9, "round", partial(nine, tail="round")), (9, "hook", partial(nine, tail="hook")),
    (9, "flat", partial(nine, tail="flat")), (9, "straight", partial(nine, tail="straight")),
    (9, "like s", nine_like_s), (9, "open", nine_open),
]
# fmt: on


# ---- From strokes to pixels --------------------------------------------------------------


def draw_handwriting(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw n digits, one of each style in turn.

    Returns images like MNIST's, uint8 (n, 28, 28), ink 255 on background 0, and their labels,
    int64 (n,), 0..9. The same seed gives the same bytes, and a smaller n gives the first of them.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    images = np.zeros((n, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    labels = np.zeros(n, np.int64)
    for i in range(n):
        labels[i], _, style = STYLES[i % len(STYLES)]
        images[i] = draw(style(rng.uniform), rng)
    return torch.from_numpy(images), torch.from_numpy(labels)


def draw(strokes: Strokes, rng: np.random.Generator) -> np.ndarray:
    """Draw strokes in MNIST's geometry, in a random hand and with a random pen: uint8 (28, 28).

    The longer side is 20 px, and the centre of mass lies within half a pixel of the middle.
    """
    strokes = vary(strokes, rng)
    pen = rng.uniform(*PEN_WIDTHS)
    edge = min(pen, rng.uniform(*EDGE_WIDTHS))  # a wider edge would leave no pixel full
    segments = np.concatenate([np.stack([s[:-1], s[1:]], axis=1) for s in strokes])  # (S, 2, 2)
    low, high = segments.min(axis=(0, 1)), segments.max(axis=(0, 1))
    scale = (BOX_SIZE - pen - edge) / (high - low).max()
    distance = distance_to_segments((segments - (low + high) / 2) * scale + IMAGE_SIZE / 2)
    ink = (0.5 + (pen / 2 - distance) / edge).clip(0, 1)
    # Shift by whole pixels, as MNIST does. Its middle is half a pixel off, in pixel (14, 14).
    places = np.arange(IMAGE_SIZE) - IMAGE_SIZE // 2
    offset = [ink.sum(axis=axis) @ places / ink.sum() for axis in (1, 0)]
    ink = np.roll(ink, [-round(o) for o in offset], axis=(0, 1))
    return (255 * ink).round().astype(np.uint8)


def vary(strokes: Strokes, rng: np.random.Generator) -> Strokes:
    """Slant, stretch and bend strokes at random, as another hand would write them."""
    slant, stretch = rng.uniform(-MAX_SLANT, MAX_SLANT), rng.uniform(*STRETCHES)
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

GLYPHS = Path(__file__).with_name("glyphs.txt").read_text(encoding="utf-8").splitlines()
VARIANTS = [row.split(maxsplit=1)[1] for row in GLYPHS if not row.startswith("# ")]


def glyph(rng: np.random.Generator) -> Strokes:
    """Return a letter or a sign in a shaky hand, with serifs or without."""
    strokes, serifs, width = [], rng.random() < 0.25, rng.uniform(0.6, 1.1)
    for stroke in VARIANTS[rng.integers(len(VARIANTS))].split("|"):
        shape = curve if "~" in stroke else line
        points = np.array([[int(x), int(y)] for x, y in stroke.replace("~", "").split()]) / 9
        points = points * np.array([width, 1]) + rng.normal(0, SHAKE, points.shape)
        strokes.append(shape(*points))
        for x, y in points[[0, -1]] if serifs else ():
            strokes.append(line((x - 0.13, y), (x + 0.13, y)))
    return strokes


def word(rng: np.random.Generator) -> Strokes:
    """Return two to four letters or signs in a row."""
    strokes, right = [], 0.0
    for _ in range(rng.integers(2, 5)):
        letter = glyph(rng)
        strokes += [stroke + np.array([right, 0]) for stroke in letter]
        right = max(stroke[:, 0].max() for stroke in strokes) + rng.uniform(0, 0.3)
    return strokes


def scribble(rng: np.random.Generator) -> Strokes:
    """Return one long stroke that wanders about, with corners or without."""
    points = rng.uniform(0, 1, (rng.integers(5, 15), 2))
    return [line(*points) if rng.random() < 0.5 else curve(*points)]


def doodle(rng: np.random.Generator) -> Strokes:
    """Return lines, curves and ovals at random places."""
    strokes = []
    for _ in range(rng.integers(4, 9)):
        points = rng.uniform(0, 1, 2) + rng.normal(0, 0.3, (rng.integers(2, 5), 2))
        sides, angles = rng.uniform(0.1, 0.7, 2), (rng.uniform(0, 360), rng.uniform(90, 360))
        shapes = line(*points), curve(*points), oval(*points[0], *sides, *angles)
        strokes.append(shapes[rng.integers(3)])
    return strokes


def texture(rng: np.random.Generator) -> np.ndarray:
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


def spots(rng: np.random.Generator) -> np.ndarray:
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


def pair(rng: np.random.Generator, digits: np.ndarray) -> np.ndarray:
    """Return two digits that nearly touch or overlap, and often cut one in half: (H, W) in 0..1."""
    left, right = (cut_margins(digit) for digit in digits[rng.integers(len(digits), size=2)])
    gap, drop = rng.integers(-2, 3), rng.integers(-4, 5)
    height = 8 + max(len(left), len(right))
    ink = np.zeros((height, left.shape[1] + right.shape[1] + gap), np.uint8)
    ink[(height - len(left)) // 2 :, : left.shape[1]][: len(left)] = left
    place = ink[(height - len(right) + drop) // 2 :, -right.shape[1] :][: len(right)]
    np.maximum(place, right, out=place)
    side, share = rng.integers(5), rng.uniform(0.35, 0.6)
    if side == 0:
        ink = ink[:, round(share * left.shape[1]) :]
    elif side == 1:
        ink = ink[:, : ink.shape[1] - round(share * right.shape[1])]
    return ink / 255


# Letters are the most frequent, as they are where digits are read.
NON_DIGIT_KINDS = (
    *("letters", "pairs", "letters", "textures", "letters", "scribbles", "spots"),
    *("letters", "pairs", "words", "doodles", "letters", "spots", "scribbles"),
)


def draw_non_digits(n: int, seed: int, images: torch.Tensor) -> torch.Tensor:
    """Draw n non-digits: letters, signs, words, scribbles, textures, spots and pairs of digits.

    Takes the digits of which pairs are made, uint8 (N, 28, 28). Returns images like MNIST's,
    uint8 (n, 28, 28). The same seed and digits give the same bytes.
    """
    rng = np.random.Generator(np.random.PCG64([seed, NON_DIGIT]))
    strokes = {"letters": glyph, "words": word, "scribbles": scribble, "doodles": doodle}
    inks = {"textures": texture, "spots": spots, "pairs": partial(pair, digits=images.numpy())}
    drawn = np.zeros((n, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for i in range(n):
        kind = NON_DIGIT_KINDS[i % len(NON_DIGIT_KINDS)]
        if kind in strokes:
            drawn[i] = draw(strokes[kind](rng), rng)
        else:
            ink = cut_margins(inks[kind](rng)).astype(np.float32)
            # Half of them are drawn as small pictures are, whose shape is in gray.
            drawn[i] = (255 * draw_as_mnist(ink, small=rng.random() < 0.5)).round()
    return torch.from_numpy(drawn)


def add_drawings(digits: Digits, handwriting: float, non_digits: float, seed: int) -> Digits:
    """Return digits on any device, then drawn digits, then non-digits, all on the CPU.

    The numbers of drawings are given as shares of the digits. Non-digits are labelled `NON_DIGIT`.
    """
    digits, n = digits.to("cpu"), len(digits)
    drawn, labels = draw_handwriting(round(handwriting * n), seed)
    others = draw_non_digits(round(non_digits * n), seed, digits.images)
    images = torch.cat([digits.images, drawn, others])
    labels = torch.cat([digits.labels, labels, torch.full([len(others)], NON_DIGIT)])
    return Digits(images, labels, digits.name)
