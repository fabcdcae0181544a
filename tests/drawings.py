"""Digits and signs as different people draw them, and how a mouse draws them on the canvas."""

from browser import STROKES, arc, draw
from playwright.sync_api import Page

UPSTROKES = (0.05, 0.15, 0.25, 0.4)  # of a 1, in its heights


def one(upstroke: float = 0.0, foot: bool = False) -> list:
    """Draw a 1, from (0, 0) to (0, 1)."""
    start = [(-0.8 * upstroke, upstroke)] if upstroke else []
    return [[*start, (0, 0), (0, 1)], *([[(-0.2, 1), (0.2, 1)]] if foot else [])]


def turned(strokes: list) -> list:
    """Turn a drawing upside down: a 6 becomes a 9."""
    return [[(-x, 1 - y) for x, y in points] for points in strokes]


SIX_STRAIGHT = [[(0.4, 0), (0.02, 0.68), *arc(0.25, 0.75, 0.25, 0.25, 190, 550)]]
SIX_CURLED = [arc(0.3, 0.5, 0.3, 0.5, -55, -180) + arc(0.25, 0.75, 0.25, 0.25, 190, 550)]
DIGITS = [  # digit, name, strokes: 1 high, with y downwards
    (1, "plain", one()),
    (1, "with a foot", one(foot=True)),
    *((1, f"with an upstroke of {u:.0%}", one(u)) for u in UPSTROKES),
    *((1, f"with an upstroke of {u:.0%} and a foot", one(u, True)) for u in UPSTROKES),
    (7, "plain", [[(0, 0), (0.55, 0), (0.2, 1)]]),
    (7, "with a bar", [[(0, 0), (0.55, 0), (0.2, 1)], [(0.12, 0.5), (0.55, 0.5)]]),
    (4, "open", [[(0.1, 0), (0, 0.6), (0.6, 0.6)], [(0.42, 0.2), (0.4, 1)]]),
    (4, "closed", [[(0.42, 1), (0.42, 0), (0, 0.65), (0.62, 0.65)]]),
    (6, "with a straight tail", SIX_STRAIGHT),
    (6, "with a curled tail", SIX_CURLED),
    (9, "with a straight tail", turned(SIX_STRAIGHT)),
    (9, "with a curled tail", turned(SIX_CURLED)),
    (0, "wide", [arc(0.45, 0.5, 0.45, 0.5, -90, 275)]),
    (0, "narrow", [arc(0.18, 0.5, 0.18, 0.5, -90, 275)]),
    (0, "slashed", [arc(0.33, 0.5, 0.33, 0.5, -90, 275), [(0.62, 0.08), (0.04, 0.92)]]),
]
PLUS = [[(0, 0.5), (0.6, 0.5)], [(0.3, 0.2), (0.3, 0.8)]]
SIGNS = [
    ("plus", PLUS),
    ("minus", [[(0, 0.5), (0.6, 0.5)]]),
    ("equals", [[(0, 0.38), (0.6, 0.38)], [(0, 0.62), (0.6, 0.62)]]),
    ("times", [[(0, 0.25), (0.5, 0.75)], [(0.5, 0.25), (0, 0.75)]]),
    ("point", [[(0.1, 0.98), (0.12, 1)]]),
    ("comma", [[(0.1, 0.92), (0.12, 1), (0.05, 1.15)]]),
]
EYES = [arc(x, 0.35, 0.04, 0.06, 0, 360) for x in (0.33, 0.67)]
FACE = [arc(0.5, 0.5, 0.5, 0.5, 0, 362), *EYES, arc(0.5, 0.55, 0.25, 0.22, 20, 160)]
BESIDE_DIGITS = [  # what alone would be a 1
    ("slash", [[(0.4, -0.05), (0, 1.05)]]),
    ("opening bracket", [arc(0.6, 0.5, 0.5, 0.7, 230, 130)]),
    ("closing bracket", [arc(-0.2, 0.5, 0.5, 0.7, -50, 50)]),
]
NEIGHBOURS = (3, 0)  # the digits that are drawn to the left and to the right


def draw_high(page: Page, strokes: list, height: float, across: float = 0.5) -> None:
    """Draw strokes that are 1 high so high, around a place across the canvas."""
    xs = [x for points in strokes for x, _ in points]
    middle = (min(xs) + max(xs)) / 2
    places = [
        [(0.5 + height * (x - middle), 0.5 + height * (y - 0.5)) for x, y in points]
        for points in strokes
    ]
    draw(page, places, across=across)


def draw_between(page: Page, strokes: list, size: float) -> None:
    """Draw strokes between two digits."""
    draw_high(page, strokes, size)
    for digit, side in zip(NEIGHBOURS, (-1, 1), strict=True):
        # in STROKES a digit is 0.64 high, below a margin of 0.18
        high = [[(x / 0.64, (y - 0.18) / 0.64) for x, y in points] for points in STROKES[digit]]
        draw_high(page, high, size, 0.5 + side * 0.45 * size)
