"""The notebook in a real Jupyter and a real browser: JupyterLab or Notebook 7, and Chromium."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from make_notebook import NOTEBOOK, copy_project, shorten
from playwright.sync_api import Page, TimeoutError, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 300  # seconds; a busy machine is slow, and a wait that ends well costs nothing
INDICATOR = ".jp-Notebook-ExecutionIndicator"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def jupyter(app: str, folder: Path, scratch: Path) -> Iterator[tuple[str, str]]:
    """Serve a folder on loopback with "lab" or "notebook"; scratch is for all else it writes.

    Yields the addresses of the notebook and of the server's list of kernels.
    """
    # Nothing of the user's own Jupyter gets in, and nothing of this stays there.
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = os.environ | {name: str(scratch / name.lower()) for name in names}
    command = [sys.executable, "-m", "jupyter", app, "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
    log = scratch / "jupyter.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        note = None  # in which Jupyter says, once it listens, at what port, and its token
        for _ in range(5 * PATIENCE):
            with contextlib.suppress(StopIteration, ValueError):
                notes = (scratch / "jupyter_runtime_dir").glob("jpserver-*.json")
                note = json.loads(next(notes).read_text())
            if note or server.poll() is not None:
                break
            time.sleep(0.2)
        if not note:
            raise RuntimeError(f"jupyter {app} did not start:\n{log.read_text()}")
        address, token = f"http://127.0.0.1:{note['port']}", note["token"]
        view = "lab/tree" if app == "lab" else "notebooks"
        notebook = f"{address}/{view}/{NOTEBOOK.name}?token={token}"
        yield notebook, f"{address}/api/kernels?token={token}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@contextlib.contextmanager
def run_notebook(app: str, scratch: Path) -> Iterator[Page]:
    """Open the notebook of a copy of the project and run all its cells.

    Takes "lab" or "notebook", and an empty folder; yields the page, with the canvas in view.
    """
    folder = scratch / "project"
    copy_project(folder)
    notebook = folder / NOTEBOOK.name  # the canvas reads with the weights that ship
    notebook.write_text(shorten(notebook.read_text(encoding="utf-8")), encoding="utf-8")
    with jupyter(app, folder, scratch) as (address, kernels), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1200, "height": 1000}, has_touch=True)
            page.set_default_timeout(PATIENCE * 1000)
            page.goto(address)
            page.locator(f"{INDICATOR}[data-status=idle]").wait_for()
            while not is_connected(kernels):
                page.wait_for_timeout(200)
            run_all_cells(page)
            page.locator(".digit-canvas canvas").wait_for()
            page.locator(f"{INDICATOR}[data-status=idle]").wait_for()
            page.locator(".digit-canvas").scroll_into_view_if_needed()
            yield page
        except Exception:
            page.screenshot(path=scratch / "failure.png")
            raise
        finally:
            browser.close()


def is_connected(kernels: str) -> bool:
    """Whether the page has met its kernel, as the server says it, which may be busy."""
    with contextlib.suppress(HTTPError):  # 500 while it starts a kernel
        return any(kernel["connections"] for kernel in json.load(urlopen(kernels)))
    return False


def run_all_cells(page: Page) -> None:
    """Run all cells; again, if page and kernel had not met yet, and the request was lost."""
    for _ in range(20):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(TimeoutError):
            page.locator(f"{INDICATOR}:not([data-status=idle])").wait_for(timeout=10_000)
            return
    raise RuntimeError("the kernel never ran a cell")


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list:
    """Return points of an ellipse, in parts of the canvas; angles in degrees, clockwise."""
    angles = [math.radians(start + (end - start) * i / 16) for i in range(17)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


# How a hand draws them in a square, one list of points a stroke.
STROKES = {
    0: [arc(0.5, 0.5, 0.2, 0.32, -90, 275)],
    3: [arc(0.48, 0.33, 0.18, 0.16, -150, 90) + arc(0.48, 0.66, 0.22, 0.18, -90, 150)],
    4: [[(0.4, 0.2), (0.27, 0.55), (0.72, 0.55)], [(0.6, 0.3), (0.57, 0.85)]],
    7: [[(0.28, 0.22), (0.5, 0.21), (0.72, 0.22), (0.6, 0.5), (0.48, 0.82)]],
}


def draw(page: Page, strokes: list, touch: bool = False, across: float = 0.5) -> None:
    """Draw with the mouse or a finger, as high as the canvas, around a place across it."""
    canvas = page.locator(".digit-canvas canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    session = page.context.new_cdp_session(page) if touch else None
    for points in strokes:
        left = box["x"] + across * box["width"] - box["height"] / 2
        places = [(left + x * box["height"], box["y"] + y * box["height"]) for x, y in points]
        if touch:
            for i, (x, y) in enumerate(places):
                kind = "touchMove" if i else "touchStart"
                finger = {"type": kind, "touchPoints": [{"x": x, "y": y}]}
                session.send("Input.dispatchTouchEvent", finger)
            session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        else:
            page.mouse.move(*places[0])
            page.mouse.down()
            for x, y in places[1:]:
                page.mouse.move(x, y, steps=3)
            page.mouse.up()


def answer(page: Page) -> str:
    """Wait for the answer to the last drawing, and return what the canvas says."""
    page.locator(".digit-canvas:not(.waiting)").wait_for()
    return page.locator(".digit-canvas .said").inner_text()
