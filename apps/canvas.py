"""A canvas to draw digits on, one or a whole number, and see at once what the network reads.

    python canvas.py                                         opens it as a page in the browser
    canvas.DigitCanvas(inference.MNISTPredictor())           shows it in a notebook

The browser draws, and sends the drawing to Python when the pen is lifted; Python reads it and
sends back the answer. The page comes from Python's own web server; in a notebook, the canvas is
an anywidget (https://anywidget.dev), which JupyterLab, Notebook 7, VS Code and Colab all run.
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

from inference import MNISTPredictor
from reading.image_io import to_grayscale
from reading.preprocessing import to_image

try:
    import anywidget
    import traitlets
except ImportError:  # the page needs neither
    anywidget = None

MAX_BYTES = 2_000_000  # of a drawing, as a PNG

# ---- In the browser ----------------------------------------------------------------------

STYLE = """
.digit-canvas {
  padding: 8px; max-width: 720px; font: 14px/1.3 system-ui, sans-serif;
  color: var(--jp-content-font-color1, var(--vscode-foreground, inherit));
}
.digit-canvas .pad { position: relative; }
.digit-canvas canvas {
  display: block; width: 100%; border-radius: 8px; background: white; box-shadow: 0 0 0 1px gray;
  cursor: crosshair; touch-action: none; /* a finger draws, it does not scroll */
}
.digit-canvas .boxes { position: absolute; inset: 0; pointer-events: none; color: white; }
.digit-canvas .boxes span { position: absolute; outline: 2px solid #1a73e8; }
.digit-canvas .boxes b { position: absolute; bottom: 100%; padding: 0 6px; background: #1a73e8; }
.digit-canvas button {
  min-height: 44px; padding: 0 20px; margin: 12px 8px 12px 0; border-radius: 8px;
  font: inherit; color: inherit; background: rgb(128 128 128 / 0.15); border: 1px solid gray;
}
.digit-canvas :focus-visible { outline: 3px solid #1a73e8; outline-offset: 2px; }
.digit-canvas .answer { display: flex; flex-wrap: wrap; gap: 12px 24px; }
.digit-canvas .answer > div { flex: 1 1 260px; }
.digit-canvas .said { min-height: 50px; overflow-wrap: anywhere; }
.digit-canvas .said b { font-size: 40px; line-height: 50px; margin-right: 6px; }
.digit-canvas .row { display: flex; align-items: center; gap: 8px; height: 20px; }
.digit-canvas .row.best { font-weight: bold; }
.digit-canvas .track { flex: 1; border-radius: 3px; background: rgb(128 128 128 / 0.2); }
.digit-canvas .bar { height: 12px; width: 0; border-radius: 3px; background: #1a73e8; }
.digit-canvas .percent { width: 60px; text-align: right; font-variant-numeric: tabular-nums; }
.digit-canvas .seen:not([hidden]) { display: flex; align-items: center; gap: 12px; }
.digit-canvas img { width: 84px; height: 84px; margin-top: 12px; image-rendering: pixelated; }
.digit-canvas.waiting .answer { opacity: 0.5; }
"""

SCRIPT = """
const [WIDTH, HEIGHT] = [1120, 560];  // pixels of the drawing, more than most screens show
const PEN = 28;    // pixels: a stroke as wide as MNIST's, for a digit half as high as the canvas
const STEP = 14;   // pixels that an arrow key moves the pen
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const PATIENCE = 4000;  // milliseconds without an answer
const SILENCE = "No answer. Python is busy, or has ended: then run this cell (or canvas.py) again.";

// Calls send with an id and a PNG when the pen is lifted; returns what takes the answers.
function createCanvas(el, send) {
  const root = document.createElement("div");
  root.className = "digit-canvas";
  // Without data-lm-suppress-shortcuts, Jupyter takes our keys.
  root.innerHTML = `
    <div class="pad">
      <canvas width="${WIDTH}" height="${HEIGHT}" tabindex="0" data-lm-suppress-shortcuts
        role="application" aria-label="Canvas. Draw a digit or a number with mouse, finger or pen.
        On a keyboard, arrows move the pen, space puts it down and lifts it."></canvas>
      <div class="boxes" aria-hidden="true"></div>
    </div>
    <button type="button" class="undo" data-lm-suppress-shortcuts>Undo</button>
    <button type="button" class="clear" data-lm-suppress-shortcuts>Clear</button>
    <div class="answer">
      <div>
        <div class="said" role="status"></div>
        <div class="seen"><img alt="the 28 by 28 pixels that the network saw">
          <span>what the network saw:<br>28×28 pixels</span></div>
      </div>
      <div class="rows"></div>
    </div>`;
  el.append(root);
  const find = (selector) => root.querySelector(selector);
  const [canvas, said] = [find("canvas"), find(".said")];
  const context = canvas.getContext("2d", { alpha: false });

  const strokes = [];  // lists of points [x, y], in pixels of the drawing
  let pointer = null;  // the mouse, finger or pen that is down
  let keyboard = null; // where the keyboard holds the pen, once it does
  let keyboardDown = false;
  let asked, timer;    // the id of the drawing that an answer is wanted for; for how long

  function paint(withPen = true) {
    context.fillStyle = "white";
    context.fillRect(0, 0, WIDTH, HEIGHT);
    context.strokeStyle = "black";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = PEN;
    for (const points of strokes) {
      const [startX, startY] = points[0];
      context.beginPath();
      context.moveTo(startX, startY);
      context.lineTo(startX + 0.1, startY);  // a dot, if there is no more
      // Curves from middle to middle of the segments: no corners where the pen was sampled.
      for (let i = 1; i < points.length; i++) {
        const [x, y] = points[i];
        const [nextX, nextY] = points[i + 1] ?? points[i];
        context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
      }
      context.stroke();
    }
    if (withPen && keyboard && canvas.matches(":focus")) {
      context.beginPath();
      context.arc(...keyboard, PEN / 2, 0, 2 * Math.PI);
      context.lineWidth = 4;
      context.strokeStyle = "#1a73e8";
      context.stroke();
    }
  }

  const percent = (share) => (share === undefined ? "" : (100 * share).toFixed(1) + "%");
  function show({ lines, seen }) {  // no lines: an empty canvas
    clearTimeout(timer);
    root.classList.remove("waiting");
    const digits = lines?.flat() ?? [];
    const one = digits.length === 1 ? digits[0] : null;
    const number = lines?.map((line) => line.map(({ digit }) => digit).join("")).join(" ");
    const remark = !lines ? "draw a digit" : !number ? "no digit" : "";
    said.innerHTML = `<b>${number || "?"}</b> ${one ? percent(one.confidence) + " sure" : remark}`;
    // How likely each of the ten is; of several that were found, each of these.
    const rows = digits.length > 1 ? digits.map(({ digit, confidence }) => [digit, confidence])
      : [...Array(10).keys()].map((digit) => [digit, one?.probabilities[digit]]);
    find(".rows").innerHTML = rows.map(([digit, share]) => `
      <div class="row ${one?.digit === digit ? "best" : ""}"><span>${digit}</span>
        <div class="track"><div class="bar" style="width: ${percent(share)}"></div></div>
        <span class="percent">${percent(share)}</span></div>`).join("");
    find(".boxes").innerHTML = digits.map(({ digit, box: [left, top, right, bottom] }) => `
      <span style="left: ${percent(left / WIDTH)}; top: ${percent(top / HEIGHT)};
        width: ${percent((right - left) / WIDTH)}; height: ${percent((bottom - top) / HEIGHT)}">
        <b>${digit}</b></span>`).join("");
    find(".seen").hidden = !one;
    if (one) find("img").src = seen;
  }

  function ask() {
    asked = String(Math.random());  // a widget may be shown twice, and each view asks
    paint(false);
    const png = canvas.toDataURL("image/png");
    paint();
    if (strokes.length === 0) return show({});
    send({ id: asked, png });
    root.classList.add("waiting");
    clearTimeout(timer);
    timer = setTimeout(() => { said.textContent = SILENCE; }, PATIENCE);
  }

  function place(event) {
    const { left, top, width } = canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top].map((x) => (x * WIDTH) / width);
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;  // a second finger, another button
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);  // a stroke goes on outside of the canvas
    [keyboard, keyboardDown] = [null, false];
    strokes.push([place(event)]);
    paint();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];  // all since the last frame
    strokes.at(-1).push(...(events.length ? events : [event]).map(place));
    paint();
  });
  canvas.addEventListener("lostpointercapture", (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    ask();
  });

  function takeBack(from) {  // -1: the last stroke, 0: all
    if (pointer !== null) return;
    keyboardDown = false;
    strokes.splice(from);
    ask();
  }
  find(".undo").addEventListener("click", () => takeBack(-1));
  find(".clear").addEventListener("click", () => takeBack(0));
  root.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key !== "z") return;
    event.preventDefault();
    takeBack(-1);
  });

  canvas.addEventListener("keydown", (event) => {
    const direction = ARROWS[event.key];
    if (pointer !== null || (!direction && event.key !== " ")) return;
    event.preventDefault();  // the page would scroll
    keyboard ??= [WIDTH / 2, HEIGHT / 2];
    if (direction) {
      const [x, y] = keyboard.map((place, i) => Math.max(0, place + STEP * direction[i]));
      keyboard = [Math.min(WIDTH, x), Math.min(HEIGHT, y)];
      if (keyboardDown) strokes.at(-1).push(keyboard);
    } else {
      keyboardDown = !keyboardDown;
      if (keyboardDown) strokes.push([keyboard]);
      else ask();
    }
    paint();
  });
  canvas.addEventListener("blur", () => paint());  // without the ring where the pen is

  paint();
  show({});
  return (answer) => {
    if (answer.id === asked) show(answer);  // any other is late: the drawing has changed
  };
}
"""

WIDGET_SCRIPT = """
function render({ model, el }) {
  const take = createCanvas(el, (drawing) => {
    model.set("drawing", drawing);
    model.save_changes();
  });
  const onAnswer = () => take(model.get("answer"));
  model.on("change:answer", onAnswer);
  return () => model.off("change:answer", onAnswer);
}
export default { render };
"""

PAGE_SCRIPT = """
const take = createCanvas(document.querySelector("main"), async ({ id, png }) => {
  const body = Uint8Array.from(atob(png.split(",")[1]), (byte) => byte.charCodeAt());
  const headers = { "Content-Type": "image/png" };
  const reply = await fetch("read", { method: "POST", headers, body });
  take({ id, ...(await reply.json()) });
});
"""

PAGE = f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Draw a number</title><link rel="icon" href="data:,">
<style>{STYLE}
:root {{ color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif; }}
main, main .digit-canvas {{ max-width: 960px; margin: auto; }}
h1, p {{ margin: 8px; }}
</style>
<main><h1>Draw a number</h1>
<p>One digit, or several in lines. The answer comes when you lift the pen.</p></main>
<script type="module">{SCRIPT + PAGE_SCRIPT}</script>
"""

# ---- In Python ---------------------------------------------------------------------------


def read_drawing(predictor: MNISTPredictor, png: bytes) -> dict:
    """Return what the browser shows of a drawing: the digits in their lines; {} if it is blank.

    And of a single digit what the network saw, as a data URL. ValueError if it is no PNG.
    """
    if not png.startswith(b"\x89PNG"):
        raise ValueError("not a PNG")
    drawing = to_grayscale(png)[0]
    try:
        lines = predictor.read(drawing)
    except ValueError:
        return {}  # no ink
    answer = {"lines": [[found._asdict() for found in line] for line in lines]}
    if sum(map(len, lines)) == 1:
        buffer = io.BytesIO()
        to_image(predictor.preprocess(drawing)).save(buffer, "png")
        answer["seen"] = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return answer


if anywidget:

    class DigitCanvas(anywidget.AnyWidget):
        """A canvas to draw digits on with mouse, finger, pen or arrow keys, with undo and clear.

        Each time the pen is lifted, it shows the number that was read and a box around each
        digit; of a single digit, the probabilities of all ten and the 28x28 pixels that the
        network saw. An empty canvas says "draw a digit".

        Args:
            predictor: reads the drawings.
        """

        _esm = SCRIPT + WIDGET_SCRIPT
        _css = STYLE
        drawing = traitlets.Dict().tag(sync=True)  # from the browser: id, and png, a data URL
        answer = traitlets.Dict().tag(sync=True)  # to the browser: the same id, and what was read

        def __init__(self, predictor: MNISTPredictor) -> None:
            super().__init__()
            self.predictor = predictor

        @traitlets.observe("drawing")
        def _read_drawing(self, change: dict) -> None:
            png = base64.b64decode(change["new"]["png"].partition(",")[2])
            self.answer = {"id": change["new"]["id"]} | read_drawing(self.predictor, png)

        def __repr__(self) -> str:
            # What shows where no widget can: on a page that does not run Python, say.
            return "To draw, run this cell in Jupyter, VS Code or Colab; or read a digit's photo."

else:

    def __getattr__(name: str) -> None:
        if name == "DigitCanvas":
            raise ImportError("DigitCanvas needs anywidget: pip install anywidget, restart Jupyter")
        raise AttributeError(name)


# ---- The page's server -------------------------------------------------------------------

SCRIPT_HASH = base64.b64encode(hashlib.sha256((SCRIPT + PAGE_SCRIPT).encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; script-src 'sha256-{SCRIPT_HASH}'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class PageHandler(BaseHTTPRequestHandler):
    """Serves the page, and reads the drawings that it sends; nothing else, and to no other page.

    Pages of other sites reach this server through their visitors' browsers: by our address, as
    Origin shows, or by a name of theirs that they point to it (DNS rebinding), as Host shows.
    """

    timeout = 10  # seconds that a client may stall

    def do_GET(self) -> None:
        """Serve the page."""
        if self.is_ours("/"):
            self.reply(PAGE, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        """Read a drawing."""
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
        """Whether our own page, or no page, asks for this path; all else is refused."""
        host, port = self.headers.get("Host"), self.server.server_port
        ours = host in (f"127.0.0.1:{port}", f"localhost:{port}")
        ours = ours and self.headers.get("Origin", f"http://{host}") == f"http://{host}"
        if not ours or self.path != path:
            self.send_error(404 if ours else 403)
        return ours and self.path == path

    def reply(self, text: str, content_type: str) -> None:
        """Send a text."""
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text.encode())))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(text.encode())

    def handle(self) -> None:
        """Handle a connection; that the browser closed it early is no error."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Say nothing: the terminal shows the address."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    argparse.ArgumentParser(description="Open the canvas in the browser.").parse_args(argv)
    try:
        predictor = MNISTPredictor()
        with ThreadingHTTPServer(("127.0.0.1", 0), PageHandler) as server:
            server.predictor = predictor
            address = f"http://127.0.0.1:{server.server_port}/"
            print(f"Draw at {address} (Ctrl-C ends it)", flush=True)
            # In a thread, because a browser that runs in the terminal returns when it is left.
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                # Ctrl-C comes here, never between a connection and its thread. Often, because the
                # signal may wake another thread than this one.
                while True:
                    time.sleep(0.5)
            finally:
                server.shutdown()
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError) as error:
        print(f"canvas.py: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
