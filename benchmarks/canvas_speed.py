"""How long the canvas takes to show its answer, in a real browser.

    python benchmarks/canvas_speed.py            the notebook's, after the pen is lifted
    python benchmarks/canvas_speed.py --page     docs/draw.html, after each move of the pen

Starts Chromium, and for the first JupyterLab, which runs the notebook, and draws 50 digits with the
mouse. Needs what requirements-dev.txt names, and Chromium.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR / "tests"))

from browser import (  # noqa: E402
    CHROMIUM,
    FLAGS,
    STROKES,
    answer,
    draw,
    run_notebook,
    sync_playwright,
)

DRAWINGS = 50
STOPWATCH = """() => {
    let lifted = null;
    window.delays = [];
    const canvas = document.querySelector(".digit-canvas canvas");
    canvas.addEventListener("pointerup", () => { lifted = performance.now(); }, true);
    const said = document.querySelector(".digit-canvas .said");
    new MutationObserver(() => {
        if (lifted !== null) window.delays.push(performance.now() - lifted);
        lifted = null;
    }).observe(said, { childList: true });
}"""
# The time of an event is when the browser received it. The canvas answers before the window hears.
PAGE_STOPWATCH = """() => {
    window.delays = [];
    window.addEventListener("pointermove", (event) => {
        if (event.buttons) window.delays.push(performance.now() - event.timeStamp);
    });
}"""


def time_page() -> list[float]:
    """Draw on docs/draw.html; return for each move of the pen the milliseconds to its answer."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto((PROJECT_DIR / "docs" / "draw.html").as_uri())
        page.evaluate(PAGE_STOPWATCH)
        draw_digits(page)
        return page.evaluate("window.delays")


def draw_digits(page: Page) -> None:
    """Draw digits, one at a time."""
    for i in range(DRAWINGS):
        draw(page, STROKES[(3, 7, 0)[i % 3]])
        answer(page)
        page.locator(".digit-canvas .clear").click()


def time_notebook() -> list[float]:
    """Draw on the notebook's canvas; return for each digit the milliseconds to its answer."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        run_notebook("lab", Path(scratch)) as page,
    ):
        page.evaluate(STOPWATCH)
        draw_digits(page)
        return page.evaluate("window.delays")


def main() -> None:
    """Draw, and print the distribution of the delays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="draw on docs/draw.html")
    page = parser.parse_args().page
    delays = sorted(time_page() if page else time_notebook())
    goal = 30 if page else 100
    slow = delays[round(0.95 * (len(delays) - 1))]
    print("| answers | median, ms | 95th percentile, ms | slowest, ms | goal |")
    print("| --- | --- | --- | --- | --- |")
    median = statistics.median(delays)
    print(f"| {len(delays)} | {median:.0f} | {slow:.0f} | {delays[-1]:.0f} | {goal} |")


if __name__ == "__main__":
    main()
