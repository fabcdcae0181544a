"""Keep mnist_classifier_demo.ipynb up to date.

    python tests/make_notebook.py          bring the modules that it carries up to date
    python tests/make_notebook.py --run    and run it, and keep the outputs, which are committed,
                                           and a picture of the canvas in use

The second needs Chromium. The notebook is edited like any other: its other cells are left alone.
"""

import argparse
import base64
import bz2
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

PROJECT_DIR = Path(__file__).resolve().parent.parent
NOTEBOOK = PROJECT_DIR / "mnist_classifier_demo.ipynb"
CANVAS_PICTURE = PROJECT_DIR / "docs" / "canvas.png"
# What the notebook has no use for.
LEFT_OUT = {"export.py", "page.py", "page.js", "page.css", "page.html", "mnist.js", "network.js"}
LEFT_OUT |= {"scenes.py", "papers.py", "strokes.py", "fields.py"}
LEFT_OUT |= {"train_ink.py", "train_context.py"}
# What the notebook carries, but for model.py, which it shows.
PACKED_FILES = ["train.py", "inference.py"]
PACKED_FILES += sorted(
    path.relative_to(PROJECT_DIR).as_posix()
    for folder in ("training", "reading", "apps")
    for path in (PROJECT_DIR / folder).iterdir()
    if path.suffix in (".py", ".js", ".css", ".html", ".txt") and path.name not in LEFT_OUT
)
WIDGET = "application/vnd.jupyter.widget-view+json"


def copy_project(folder: Path) -> None:
    """Copy what a clone would have, as it is now, so that nothing here is touched."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(command, cwd=PROJECT_DIR, text=True).splitlines():
        if (PROJECT_DIR / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_DIR / name, folder / name)


def shorten(source: str) -> str:
    """Let the notebook, or its cell, train for 4 epochs in place of 12."""
    assert source.count("25 if FULL else 12") == 1
    return source.replace("25 if FULL else 12", "25 if FULL else 4")


def read_file(name: str) -> str:
    """Return the text of a file of the project."""
    return (PROJECT_DIR / name).read_text(encoding="utf-8")


def carried_source() -> str:
    """Return what the cell must hold that shows model.py."""
    return "%%carry model.py\n" + read_file("model.py").rstrip("\n")


def pack_files() -> str:
    """Return the other files as the text that the notebook unpacks."""
    sources = {name: read_file(name) for name in PACKED_FILES}
    return base64.b85encode(bz2.compress(json.dumps(sources).encode())).decode()


def unpack_files(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Return each file that the notebook carries packed, by its name."""
    [packed] = re.findall(r'^PACKED = "(.*)"', find_cell(notebook, "files").source, re.MULTILINE)
    return json.loads(bz2.decompress(base64.b85decode(packed)))


def find_cell(notebook: nbformat.NotebookNode, cell_id: str) -> nbformat.NotebookNode:
    """Return the cell of that id."""
    return next(cell for cell in notebook.cells if cell.id == cell_id)


def carry_files(notebook: nbformat.NotebookNode) -> None:
    """Bring the two cells that carry files up to date."""
    find_cell(notebook, "carry-model").source = carried_source()
    cell = find_cell(notebook, "files")
    packed = f'PACKED = "{pack_files()}"  # noqa: E501'
    cell.source = re.sub(r"^PACKED = .*", lambda _: packed, cell.source, flags=re.MULTILINE)


def execute(notebook: nbformat.NotebookNode, folder: Path, **environment: str) -> None:
    """Run all cells in a folder; raises nbclient's CellExecutionError if one fails."""
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, resources=resources, record_timing=False, coalesce_streams=True, timeout=600
    ).execute(env=os.environ | environment)


def run(notebook: nbformat.NotebookNode) -> None:
    """Run all cells, and keep of the outputs what reads well; take a picture of the canvas."""
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder))
        execute(notebook, Path(folder))
    take_canvas_picture()
    picture = base64.b64encode(CANVAS_PICTURE.read_bytes()).decode()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        # Where nothing runs, a widget is only a line of noise.
        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
        if cell.id == "canvas":
            alt = "A digit drawn on the canvas, and what the network makes of it"
            data = {"image/png": picture, "text/plain": alt}
            cell.outputs = [nbformat.v4.new_output("display_data", data)]


def take_canvas_picture() -> None:
    """Draw a digit on the notebook's canvas, in JupyterLab, and take a picture."""
    from browser import STROKES, answer, draw, run_notebook

    with (
        tempfile.TemporaryDirectory() as scratch,
        run_notebook("lab", Path(scratch)) as page,
    ):
        draw(page, STROKES[4])
        answer(page)
        page.locator(".digit-canvas").screenshot(path=CANVAS_PICTURE)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help="run it, and keep the outputs")
    arguments = parser.parse_args(argv)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    carry_files(notebook)
    if arguments.run:
        run(notebook)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, NOTEBOOK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
