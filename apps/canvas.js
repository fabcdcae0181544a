// The canvas: in a notebook, anywidget calls render; on the page of Python's server, openPage is
// called. On the page that works without Python, page.js is, which reads as one draws.

const [WIDTH, HEIGHT] = [1120, 560];  // pixels of the drawing, more than most screens show
const PEN = 28;    // pixels: a stroke as wide as MNIST's, for a digit half as high as the canvas
const STEP = 14;   // pixels that an arrow key moves the pen
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const PATIENCE = 4000;  // milliseconds without an answer
const SILENCE = "No answer. Python is busy, or has ended. If so, start the canvas again.";

// Paints strokes, lists of points [x, y] in pixels of the drawing, in black on white.
function paintStrokes(context, strokes, pen = PEN) {
  context.fillStyle = "white";
  context.fillRect(0, 0, WIDTH, HEIGHT);
  context.strokeStyle = "black";
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = pen;
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
}

// Adds a canvas to an element. When the pen is lifted, it calls send with the drawing: an id, the
// canvas, and its strokes; if it is live, whenever the drawing changes. Returns the function that
// takes the answers.
function createCanvas(el, send, live = false) {
  const root = document.createElement("div");
  root.className = "digit-canvas";
  const status = 'role="status"';  // a screen reader says what is in it
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
        <div class="said" ${live ? "" : status}></div>
        <div class="heard" ${live ? status : ""}></div>
        <div class="seen"><img alt="the 28 by 28 pixels that the network saw">
          <span>what the network saw:<br>28×28 pixels</span></div>
      </div>
      <div class="rows"></div>
    </div>`;
  el.append(root);
  const find = (selector) => root.querySelector(selector);
  const [canvas, said] = [find("canvas"), find(".said")];
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: live });

  const strokes = [];  // lists of points [x, y], in pixels of the drawing
  let pointer = null;  // the mouse, finger or pen that is down
  let keyboard = null; // where the keyboard holds the pen, once it does
  let keyboardDown = false;
  let asked, timer;    // the id of the drawing that an answer is wanted for; for how long

  function paint(withPen = true) {
    paintStrokes(context, strokes);
    if (withPen && keyboard && canvas.matches(":focus")) {
      context.beginPath();
      context.arc(...keyboard, PEN / 2, 0, 2 * Math.PI);
      context.lineWidth = 4;
      context.strokeStyle = "#1a73e8";
      context.stroke();
    }
  }

  function say(html) {
    if (said.innerHTML !== html) said.innerHTML = html;
    // A screen reader has to wait until the pen is lifted.
    if (live && pointer === null && !keyboardDown) find(".heard").textContent = said.textContent;
  }

  const percent = (share) => (share === undefined ? "" : (100 * share).toFixed(1) + "%");
  // No lines: an empty canvas. If one of several digits is chosen, its probabilities are shown.
  function show({ lines, seen, chosen, remark }) {
    clearTimeout(timer);
    root.classList.remove("waiting");
    const digits = lines?.flat() ?? [];
    const one = digits.length === 1 ? digits[0] : chosen;
    const number = lines?.map((line) => line.map(({ digit, number }, i) =>
      (i && number !== line[i - 1].number ? " " : "") + digit).join("")).join(" ");
    remark ??= !lines ? "draw a digit" : !number ? "no digit"
      : digits.length === 1 ? percent(one.confidence) + " sure" : "";
    say(`<b>${number || "?"}</b> ${remark}`);
    // How likely each of the ten is; of several that were found, each of these.
    const rows = digits.length && !one ? digits.map(({ digit, confidence }) => [digit, confidence])
      : [...Array(10).keys()].map((digit) => [digit, one?.probabilities[digit]]);
    find(".rows").innerHTML = rows.map(([digit, share]) => `
      <div class="row ${one?.digit === digit ? "best" : ""}" data-digit="${digit}">
        <span>${digit}</span>
        <div class="track"><div class="bar" style="width: ${percent(share)}"></div></div>
        <span class="percent">${percent(share)}</span></div>`).join("");
    find(".boxes").innerHTML = digits.map(({ digit, box: [left, top, right, bottom] }) => `
      <span style="left: ${percent(left / WIDTH)}; top: ${percent(top / HEIGHT)};
        width: ${percent((right - left) / WIDTH)}; height: ${percent((bottom - top) / HEIGHT)}">
        <b>${digit}</b></span>`).join("");
    find(".seen").hidden = !seen;
    if (seen) find("img").src = seen;
  }

  function ask() {
    asked = String(Math.random());  // a widget may be shown twice, and each view asks
    root.classList.add("waiting");
    clearTimeout(timer);
    timer = setTimeout(() => say(SILENCE), PATIENCE);
    paint(false);
    if (strokes.length === 0) show({});
    if (strokes.length || live) send({ id: asked, canvas, strokes });
    if (keyboard) paint();
  }

  const change = () => (live ? ask() : paint());

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
    change();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];  // all since the last frame
    strokes.at(-1).push(...(events.length ? events : [event]).map(place));
    change();
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
    if (keyboardDown) change();
    else paint();
  });
  canvas.addEventListener("blur", () => paint());  // without the ring where the pen is

  paint();
  show({});
  return (answer) => {
    if (answer.id === asked) show(answer);  // any other is late: the drawing has changed
  };
}

function render({ model, el }) {
  const take = createCanvas(el, ({ id, canvas }) => {
    model.set("drawing", { id, png: canvas.toDataURL("image/png") });
    model.save_changes();
  });
  const onAnswer = () => take(model.get("answer"));
  model.on("change:answer", onAnswer);
  return () => model.off("change:answer", onAnswer);
}

function openPage(el) {
  const take = createCanvas(el, async ({ id, canvas }) => {
    const png = atob(canvas.toDataURL("image/png").split(",")[1]);
    const body = Uint8Array.from(png, (byte) => byte.charCodeAt());
    const headers = { "Content-Type": "image/png" };
    const reply = await fetch("read", { method: "POST", headers, body });
    take({ id, ...(await reply.json()) });
  });
}

export { openPage };
export default { render };
