"""The ways in which digits, letters, signs and shapes are written: the table forms.txt.

    form = FORMS["digit"][0]
    strokes = form.write(np.random.default_rng(0))  # in a shaky hand

docs/handwriting.png shows those of digits, and docs/non_digits.png some of the others.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

Random = np.random.Generator
# A stroke is float (P, 2): points, x to the right and y down. A digit is 1 high.
Strokes = list[np.ndarray]

SHAKE = 0.03  # standard deviation of each point, as a share of the height of a digit
MAX_ROUNDNESS = 0.5  # of the corners of digits; those of letters are sharp

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


def segments(strokes: Strokes) -> np.ndarray:
    """Turn strokes from point to point to segments, float (S, 2 ends, 2)."""
    return np.concatenate([np.stack([points[:-1], points[1:]], axis=1) for points in strokes])


# ---- The table -----------------------------------------------------------------------------


class Form(NamedTuple):
    """One way to write a digit, a letter, a sign or a shape: rows of forms.txt."""

    kind: str  # "digit", "letter", "foreign", "sign", "shape", or "beside": only beside digits
    name: str  # that of a digit begins with the digit
    marks: tuple[str, ...]  # of each stroke: "~" of a curve, "o" of an oval, "" of straight lines
    ends: tuple[int, ...]  # the number of points up to the end of each stroke
    points: np.ndarray  # float (rows, P, 2): in each row, those of all strokes

    def write(self, rng: Random) -> Strokes:
        """Return its strokes in a shaky hand, somewhere between its rows."""
        points = self.mix(rng)
        points += rng.normal(0, SHAKE, points.shape)
        return self.trace(points, rng.uniform(0, MAX_ROUNDNESS) if self.kind == "digit" else 0.0)

    def mix(self, rng: Random) -> np.ndarray:
        """Return the points of all strokes, (P, 2), somewhere between its rows."""
        share = rng.dirichlet(np.ones(len(self.points)))  # of each row
        return np.tensordot(share, self.points, 1)

    def trace(self, points: np.ndarray, roundness: float) -> Strokes:
        """Return the strokes that its marks make of the points of all strokes, (P, 2)."""
        shapes = {
            "~": curve,
            "o": lambda corner, opposite: oval(*corner, *(opposite - corner), start=-90),
            "": functools.partial(line, roundness=roundness),
        }
        parts = np.split(points, self.ends[:-1])
        return [shapes[mark](*part) for mark, part in zip(self.marks, parts, strict=True)]


def read_forms(table: str) -> dict[str, list[Form]]:
    """Return the forms of each kind in a table of strokes, which says itself how it is written."""
    rows_of = {}
    for row in table.splitlines():
        if not row or row.startswith("#"):
            continue
        name, _, drawing = row.rpartition(": ")
        strokes = [stroke.split() for stroke in drawing.split("|")]
        marks = [stroke.pop(0) if stroke[0] in "~o" else "" for stroke in strokes]
        points = [[float(number) for number in p.split(",")] for stroke in strokes for p in stroke]
        ends = np.cumsum([len(stroke) for stroke in strokes]).tolist()
        rows_of.setdefault((name, tuple(marks), tuple(ends)), []).append(points)
    forms = {}
    for (name, marks, ends), rows in rows_of.items():
        kind, name = ("digit", name) if name[0].isdigit() else name.split(maxsplit=1)
        forms.setdefault(kind, []).append(Form(kind, name, marks, ends, np.array(rows) / 100))
    return forms


FORMS = read_forms(Path(__file__).with_name("forms.txt").read_text(encoding="utf-8"))
