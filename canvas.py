"""A canvas for notebooks: draw a digit, and see at once what the network makes of it.

    from canvas import DigitCanvas
    from inference import MNISTPredictor

    DigitCanvas(MNISTPredictor())

The browser draws, and sends the drawing to Python when the pen is lifted; Python reads it and
sends back the answer. It is an anywidget (https://anywidget.dev), which JupyterLab, Notebook 7,
VS Code and Colab all run with nothing but `pip install anywidget`.
"""

import base64
import io

import anywidget
import torch
import traitlets

from inference import MNISTPredictor
from preprocessing import to_image

# ---- In the browser ----------------------------------------------------------------------

STYLE = """
.digit-canvas {
  display: flex; flex-wrap: wrap; gap: 16px 24px; padding: 8px; max-width: 640px;
  font: 14px/1.3 system-ui, sans-serif;
  color: var(--jp-content-font-color1, var(--vscode-foreground, inherit));
}
.digit-canvas .pad { flex: 0 1 300px; }
.digit-canvas canvas {
  display: block; width: 100%; aspect-ratio: 1; border-radius: 8px; cursor: crosshair;
  background: white; box-shadow: 0 0 0 1px gray;
  touch-action: none; /* a finger draws, it does not scroll */
}
.digit-canvas button {
  min-height: 44px; padding: 0 20px; margin: 12px 8px 0 0; border-radius: 8px;
  font: inherit; color: inherit; background: rgb(128 128 128 / 0.15); border: 1px solid gray;
}
.digit-canvas :focus-visible { outline: 3px solid #1a73e8; outline-offset: 2px; }
.digit-canvas .answer { flex: 1 1 220px; min-width: 0; }
.digit-canvas .said { min-height: 50px; }
.digit-canvas .said b { font-size: 40px; line-height: 50px; margin-right: 6px; }
.digit-canvas .row { display: flex; align-items: center; gap: 8px; height: 20px; }
.digit-canvas .row.best { font-weight: bold; }
.digit-canvas .track { flex: 1; height: 12px; border-radius: 3px; }
.digit-canvas .track { background: rgb(128 128 128 / 0.2); }
.digit-canvas .bar { height: 100%; width: 0; border-radius: 3px; background: #1a73e8; }
.digit-canvas .percent { width: 56px; text-align: right; font-variant-numeric: tabular-nums; }
.digit-canvas .seen { display: flex; align-items: center; gap: 12px; margin-top: 12px; }
.digit-canvas img { width: 84px; height: 84px; background: black; image-rendering: pixelated; }
.digit-canvas.waiting .answer { opacity: 0.5; }
"""

SCRIPT = """
const SIZE = 560;  // pixels of the drawing, twice what most screens show
const PEN = 42;    // pixels: a stroke as wide as MNIST's, for a digit that fills the canvas
const STEP = 14;   // pixels that an arrow key moves the pen
const PATIENCE = 4000;  // milliseconds without an answer

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "digit-canvas";
  root.innerHTML = `
    <div class="pad">
      <canvas width="${SIZE}" height="${SIZE}" tabindex="0" role="application" aria-label="Canvas.
        Draw a digit with mouse, finger or pen. With the keyboard, the arrow keys move the pen,
        and the space bar puts it down and lifts it."></canvas>
      <button type="button" class="undo">Undo</button>
      <button type="button" class="clear">Clear</button>
    </div>
    <div class="answer">
      <div class="said" role="status"></div>
      ${[..."0123456789"].map((digit) => `<div class="row">
        <span>${digit}</span><div class="track"><div class="bar"></div></div>
        <span class="percent"></span></div>`).join("")}
      <div class="seen"><img alt="the 28 by 28 pixels that the network saw" hidden>
        <span hidden>what the network saw:<br>28×28 pixels</span></div>
    </div>`;
  el.append(root);
  for (const element of root.querySelectorAll("canvas, button")) {
    element.setAttribute("data-lm-suppress-shortcuts", "true");  // else Jupyter takes our keys
  }
  const find = (selector) => root.querySelector(selector);
  const [canvas, said] = [find("canvas"), find(".said")];
  const context = canvas.getContext("2d", { alpha: false });

  const strokes = [];  // lists of points [x, y], in pixels of the drawing
  let pointer = null;  // the mouse, finger or pen that is down
  let keyboard = null; // where the keyboard holds the pen, once it does
  let keyboardDown = false;
  let asked = null;    // the id of the drawing that an answer is wanted for
  let count = 0;
  let timer;
  const view = Math.random().toString(36).slice(2);  // a widget may be shown twice

  function paint(withPen = true) {
    context.fillStyle = "white";
    context.fillRect(0, 0, SIZE, SIZE);
    context.fillStyle = context.strokeStyle = "black";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = PEN;
    for (const points of strokes) {
      context.beginPath();
      context.arc(...points[0], PEN / 2, 0, 2 * Math.PI);
      context.fill();
      context.beginPath();
      context.moveTo(...points[0]);
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

  function show(answer) {
    clearTimeout(timer);
    root.classList.remove("waiting");
    const known = answer && answer.probabilities;
    said.innerHTML = known
      ? `<b>${answer.digit}</b> ${(100 * answer.confidence).toFixed(1)}% sure`
      : "<b>?</b> draw a digit";
    root.querySelectorAll(".row").forEach((row, digit) => {
      const percent = known ? (100 * answer.probabilities[digit]).toFixed(1) + "%" : "";
      row.classList.toggle("best", Boolean(known) && digit === answer.digit);
      row.querySelector(".bar").style.width = percent || "0";
      row.querySelector(".percent").textContent = percent;
    });
    if (known) find("img").src = answer.seen;
    find("img").hidden = find(".seen span").hidden = !known;
  }

  function ask() {
    asked = null;
    if (strokes.length === 0) {
      show(null);
      paint();
      return;
    }
    asked = `${view}-${++count}`;
    paint(false);
    model.set("drawing", { id: asked, png: canvas.toDataURL("image/png") });
    model.save_changes();
    paint();
    root.classList.add("waiting");
    clearTimeout(timer);
    timer = setTimeout(() => {
      said.textContent =
        "No answer yet. Python is busy, or was restarted: then run this cell again.";
    }, PATIENCE);
  }

  function onAnswer() {
    const answer = model.get("answer");
    if (answer.id === asked) show(answer);  // any other is late: the drawing has changed
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top].map((x) => (x * SIZE) / box.width);
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;  // a second finger, another button
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);  // a stroke goes on outside of the canvas
    keyboard = null;
    keyboardDown = false;
    strokes.push([place(event)]);
    paint();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];  // all since the last frame
    strokes.at(-1).push(...(events.length ? events : [event]).map(place));
    paint();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      ask();
    });
  }

  function undo() {
    if (pointer !== null) return;
    keyboardDown = false;
    strokes.pop();
    ask();
  }
  function clear() {
    if (pointer !== null) return;
    keyboardDown = false;
    strokes.length = 0;
    ask();
  }
  find(".undo").addEventListener("click", undo);
  find(".clear").addEventListener("click", clear);

  root.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      event.preventDefault();
      undo();
    }
  });
  const directions = {
    ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  };
  canvas.addEventListener("keydown", (event) => {
    const direction = directions[event.key];
    if (pointer !== null || (!direction && event.key !== " ")) return;
    event.preventDefault();  // the page would scroll
    keyboard ??= [SIZE / 2, SIZE / 2];
    if (direction) {
      keyboard = keyboard.map((x, i) => Math.min(SIZE, Math.max(0, x + STEP * direction[i])));
      if (keyboardDown) strokes.at(-1).push(keyboard);
      paint();
    } else if (keyboardDown) {
      keyboardDown = false;
      ask();
    } else {
      keyboardDown = true;
      strokes.push([keyboard]);
      paint();
    }
  });

  canvas.addEventListener("blur", () => paint());  // without the ring where the pen is

  model.on("change:answer", onAnswer);
  paint();
  show(null);
  return () => {
    clearTimeout(timer);
    model.off("change:answer", onAnswer);
  };
}

export default { render };
"""

# ---- In Python ---------------------------------------------------------------------------


class DigitCanvas(anywidget.AnyWidget):
    """A canvas to draw a digit on with mouse, finger, pen or arrow keys, with undo and clear.

    Each time the pen is lifted, it shows the predicted digit, the probabilities of all ten, and
    the 28x28 pixels that the network saw. An empty canvas says "draw a digit".

    Args:
        predictor: reads the drawings.
    """

    _esm = SCRIPT
    _css = STYLE
    drawing = traitlets.Dict().tag(sync=True)  # from the browser: id, and png, a data URL
    answer = traitlets.Dict().tag(sync=True)  # to the browser: the same id, and what was read

    def __init__(self, predictor: MNISTPredictor) -> None:
        super().__init__()
        self.predictor = predictor

    @traitlets.observe("drawing")
    def _read_drawing(self, change: dict) -> None:
        png = base64.b64decode(change["new"]["png"].partition(",")[2])
        answer = {"id": change["new"]["id"]}
        try:
            seen = self.predictor.preprocess(png)
            [prediction] = self.predictor.classify(seen)
            answer |= prediction._asdict() | {"seen": to_data_url(seen)}
        except ValueError:
            pass  # no ink: an answer without a digit
        self.answer = answer

    def __repr__(self) -> str:
        # What shows where no widget can: on a page that does not run Python, say.
        return "To draw, run this cell in Jupyter, VS Code or Colab; or read a photo of a digit."


def to_data_url(preprocessed: torch.Tensor) -> str:
    """Return what the network saw, normalized (1, 28, 28), as a PNG in a data URL."""
    buffer = io.BytesIO()
    to_image(preprocessed).save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
