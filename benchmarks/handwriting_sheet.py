"""Draw docs/handwriting.png: a row for each kind of writing in handwriting.py.

    python benchmarks/handwriting_sheet.py [--output docs/handwriting.png]

With another seed and more columns it shows what a training run sees.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

from handwriting import KINDS, draw_handwriting  # noqa: E402
from model import IMAGE_SIZE  # noqa: E402

DRAWINGS = 12  # of each kind
ZOOM = 2
NAME_WIDTH = 120  # pixels
GAP = 2  # pixels


def draw_sheet(images: np.ndarray, columns: int) -> Image.Image:
    """Lay out drawings, uint8 (kinds * columns, 28, 28) kind after kind, a row each."""
    cell = IMAGE_SIZE * ZOOM + GAP
    sheet = Image.new("L", (NAME_WIDTH + columns * cell, len(KINDS) * cell), "white")
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 13)
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(KINDS):
        draw.text((6, (row + 0.5) * cell), name, fill=0, font=font, anchor="lm")
        for column in range(columns):
            image = Image.fromarray(images[row * columns + column]).resize([IMAGE_SIZE * ZOOM] * 2)
            sheet.paste(image, (NAME_WIDTH + column * cell, row * cell))
    return sheet


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=PROJECT_DIR / "docs" / "handwriting.png")
    parser.add_argument("--columns", type=int, default=DRAWINGS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    n = len(KINDS) * arguments.columns
    images = draw_handwriting(n, arguments.seed)[0].numpy()
    by_kind = images.reshape(arguments.columns, len(KINDS), IMAGE_SIZE, IMAGE_SIZE).swapaxes(0, 1)
    draw_sheet(by_kind.reshape(n, IMAGE_SIZE, IMAGE_SIZE), arguments.columns).save(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
