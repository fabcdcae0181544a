"""How long after the pen is lifted the notebook's canvas shows the answer, in a real browser.

    python benchmarks/canvas_speed.py

Starts JupyterLab and Chromium, runs the notebook, and draws 50 digits with the mouse. Needs what
requirements-dev.txt names, and Chromium.
"""

import statistics
import sys
import tempfile
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR / "tests"))

from browser import STROKES, answer, draw, run_notebook  # noqa: E402

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


def main() -> None:
    """Draw, and print the distribution of the delays."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        run_notebook("lab", Path(scratch)) as page,
    ):
        page.evaluate(STOPWATCH)
        for i in range(DRAWINGS):
            draw(page, STROKES[(3, 7, 0)[i % 3]])
            answer(page)
            page.locator(".digit-canvas .clear").click()
        delays = sorted(page.evaluate("window.delays"))
    slow = delays[round(0.95 * (len(delays) - 1))]
    print("| drawings | median, ms | 95th percentile, ms | slowest, ms | goal |")
    print("| --- | --- | --- | --- | --- |")
    print(
        f"| {len(delays)} | {statistics.median(delays):.0f} | {slow:.0f} | {delays[-1]:.0f} | 100 |"
    )


if __name__ == "__main__":
    main()
