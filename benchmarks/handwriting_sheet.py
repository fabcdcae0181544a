"""Draw docs/handwriting.png, non_digits.png and lines.png: a row for each style, kind or digit.

    python benchmarks/handwriting_sheet.py [--folder docs]

With another seed and more columns it shows what a training run sees.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

from model import IMAGE_SIZE  # noqa: E402
from training.data import load_sample  # noqa: E402
from training.forms import FORMS  # noqa: E402
from training.lines import cut_lines  # noqa: E402
from training.synthetic import NON_DIGIT_KINDS, draw_handwriting, draw_non_digits  # noqa: E402

DRAWINGS = 12  # of each style or kind
ZOOM = 2
NAME_WIDTH = 120  # pixels
GAP = 2  # pixels


def draw_sheet(images: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Lay out drawings, uint8 (N, 28, 28), whose kinds take turns, in a row for each name."""
    rows = {name: images[first :: len(names)] for first, name in enumerate(names)}
    cell = IMAGE_SIZE * ZOOM + GAP
    columns = len(images) // len(names)
    sheet = Image.new("L", (NAME_WIDTH + columns * cell, len(rows) * cell), "white")
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 13)
    draw = ImageDraw.Draw(sheet)
    for row, (name, drawings) in enumerate(rows.items()):
        draw.text((6, (row + 0.5) * cell), name, fill=0, font=font, anchor="lm")
        for column, drawing in enumerate(drawings):
            image = Image.fromarray(drawing).resize([IMAGE_SIZE * ZOOM] * 2)
            sheet.paste(image, (NAME_WIDTH + column * cell, row * cell))
    return sheet


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=PROJECT_DIR / "docs")
    parser.add_argument("--columns", type=int, default=DRAWINGS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    seed = arguments.seed
    names = [form.name for form in FORMS["digit"]]
    images, _ = draw_handwriting(arguments.columns * len(names), seed)
    draw_sheet(images.numpy(), names).save(arguments.folder / "handwriting.png")
    n = arguments.columns * len(NON_DIGIT_KINDS)
    images = draw_non_digits(n, seed)
    draw_sheet(images.numpy(), NON_DIGIT_KINDS).save(arguments.folder / "non_digits.png")
    names = [*map(str, range(10)), "no digit"]
    images, labels = cut_lines(load_sample(True), 40 * arguments.columns, arguments.columns, seed)
    rows = [images[labels == label][: arguments.columns] for label in range(len(names))]
    columns = min(map(len, rows))
    images = torch.stack([row[:columns] for row in rows], dim=1).flatten(0, 1)
    draw_sheet(images.numpy(), names).save(arguments.folder / "lines.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
