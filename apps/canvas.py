"""A canvas to draw digits on, one or a whole number, which shows at once what the network reads.

    python -m apps.canvas                               opens it as a page in the browser

    from apps.canvas import DigitCanvas
    DigitCanvas(MNISTPredictor())                       shows it in a notebook

When the pen is lifted, the browser sends the drawing to Python. Python reads it and sends back
the answer. The page comes from Python's own web server. In a notebook, the canvas is an anywidget
(https://anywidget.dev), which runs in JupyterLab, Notebook 7, VS Code and Colab. What runs in the
browser is in canvas.html, canvas.js and canvas.css.
"""

import argparse
import base64
import contextlib
import hashlib
import io
import json
import sys
import threading
import time
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from inference import FoundDigit, MNISTPredictor
from reading.image_io import to_grayscale
from reading.preprocessing import to_image

try:
    import anywidget
    import traitlets
except ImportError:  # the page needs neither
    anywidget = None

MARGIN = 20  # pixels of paper around a drawing: a stroke at its edge may be one of a table
MAX_BYTES = 2_000_000  # of a drawing, as a PNG: many times what one takes
COMMAND = "python -m apps.canvas"


def read_sources(*names: str) -> str:
    """Return the text of files of this folder, one after the other."""
    return "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)


def hash_source(script: str) -> str:
    """Return what a page's policy calls a script that it lets run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def read_drawing(predictor: MNISTPredictor, png: bytes) -> dict:
    """Read a drawing, and return what the browser shows of it.

    That is the digits in their lines and, if there is but one, what the network saw, as a data
    URL; {} if the drawing is blank. Raises ValueError if it is no PNG.
    """
    if not png.startswith(b"\x89PNG"):
        raise ValueError("not a PNG")
    drawing = np.pad(to_grayscale(png)[0], MARGIN, constant_values=1)
    try:
        lines = predictor.read(drawing)
    except ValueError:
        return {}  # no ink
    answer = {"lines": [[on_canvas(found) for found in line] for line in lines]}
    with contextlib.suppress(ValueError):  # what read finds in a corner, predict may not find
        if sum(map(len, lines)) == 1:
            buffer = io.BytesIO()
            to_image(predictor.preprocess(drawing)).save(buffer, "png")
            seen = base64.b64encode(buffer.getvalue()).decode()
            answer["seen"] = f"data:image/png;base64,{seen}"
    return answer


def on_canvas(found: FoundDigit) -> dict:
    """Return a digit with its box in pixels of the canvas, without the margin."""
    return found._replace(box=tuple(side - MARGIN for side in found.box))._asdict()


if anywidget:

    class DigitCanvas(anywidget.AnyWidget):
        """A canvas to draw digits on with mouse, finger, pen or arrow keys, with undo and clear.

        Each time the pen is lifted, it shows the number that was read and a box around each
        digit. Of a single digit, it shows the probabilities of all ten digits and the 28x28
        pixels that the network saw. An empty canvas says "draw a digit".
        """

        drawing = traitlets.Dict().tag(sync=True)  # from the browser: id, and png, a data URL
        answer = traitlets.Dict().tag(sync=True)  # to the browser: the same id, and what was read

        def __init__(self, predictor: MNISTPredictor) -> None:
            self._esm, self._css = read_sources("canvas.js"), read_sources("canvas.css")
            super().__init__()
            self.predictor = predictor

        @traitlets.observe("drawing")
        def _read_drawing(self, change: dict) -> None:
            png = base64.b64decode(change["new"]["png"].partition(",")[2])
            self.answer = {"id": change["new"]["id"]} | read_drawing(self.predictor, png)

        def __repr__(self) -> str:
            # This shows where no widget can, as on a page that does not run Python.
            return "To draw, run this cell in Jupyter, VS Code or Colab; or read a digit's photo."

else:

    def __getattr__(name: str) -> None:
        if name == "DigitCanvas":
            raise ImportError("DigitCanvas needs anywidget: pip install anywidget, restart Jupyter")
        raise AttributeError(name)


# ---- The page's server -------------------------------------------------------------------


class CanvasServer(ThreadingHTTPServer):
    """Serves the page on this machine alone, at a free port."""

    def __init__(self, predictor: MNISTPredictor) -> None:
        script = read_sources("canvas.js") + "openPage(document.querySelector('main'));"
        self.page = read_sources("canvas.html").format(
            style=read_sources("canvas.css"), script=script
        )
        self.policy = (
            f"default-src 'none'; script-src {hash_source(script)}; style-src 'unsafe-inline'; "
            "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        self.predictor = predictor
        super().__init__(("127.0.0.1", 0), PageHandler)


class PageHandler(BaseHTTPRequestHandler):
    """Serves the page, and reads the drawings that it sends. It serves no other page's requests.

    Pages of other sites can reach this server through their visitors' browsers. But their requests
    have another Origin, or another Host, if a name of theirs points to it (DNS rebinding).
    """

    timeout = 10  # seconds that a client may leave the server waiting

    def do_GET(self) -> None:
        if self.is_ours("/"):
            self.reply(self.server.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        if not self.is_ours("/read"):
            return
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "image/png":
            self.send_error(415)
        elif not length.isdecimal():
            self.send_error(411)
        elif len(length) > 9 or int(length) > MAX_BYTES:
            self.send_error(413)
        else:
            try:
                answer = read_drawing(self.server.predictor, self.rfile.read(int(length)))
                self.reply(json.dumps(answer), "application/json")
            except ValueError:
                self.send_error(400, "Not a PNG that can be read")

    def is_ours(self, path: str) -> bool:
        """Return whether our own page, or no page, asks for this path, and refuse all else."""
        host, port = self.headers.get("Host"), self.server.server_port
        ours = host in (f"127.0.0.1:{port}", f"localhost:{port}")
        ours = ours and self.headers.get("Origin", f"http://{host}") == f"http://{host}"
        if not ours or self.path != path:
            self.send_error(404 if ours else 403)
        return ours and self.path == path

    def reply(self, text: str, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text.encode())))
        self.send_header("Content-Security-Policy", self.server.policy)
        self.end_headers()
        self.wfile.write(text.encode())

    def handle(self) -> None:
        """Handle a connection. A browser may close it early, which is no error."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal shows the address."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    description = "Open the canvas in the browser."
    # Without the usage, an error is one line.
    argparse.ArgumentParser(COMMAND, argparse.SUPPRESS, description).parse_args(argv)
    try:
        with CanvasServer(MNISTPredictor()) as server:
            address = f"http://127.0.0.1:{server.server_port}/"
            print(f"Draw at {address} (Ctrl-C ends it)", flush=True)
            # In a thread, because a browser that runs in the terminal returns when it is left.
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                # Ctrl-C comes here, never between a connection and its thread. The sleeps are short
                # because the signal may wake another thread than this one.
                while True:
                    time.sleep(0.5)
            finally:
                server.shutdown()
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError) as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
