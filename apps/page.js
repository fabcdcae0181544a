// The page that works without Python. Each time the drawing changes, its digits are found and read,
// and the network is shown at work on one of them. Stands after canvas.js.

const FOR = [26, 115, 232], AGAINST = [232, 113, 10];  // blue and orange
const GAP = 3;      // pixels between maps
const FAINTEST = 0.06;  // of the blue, in cells without anything
const SLICE = 12;   // milliseconds that the explanation may keep a pen waiting

// Paints maps of size×size values, so many in a row, as blue cells of so many pixels.
function paintMaps(canvas, values, size, cell, columns) {
  const n = values.length / size ** 2, pitch = size * cell + GAP;
  const width = columns * pitch - GAP, height = (n / columns) * pitch - GAP;
  if (canvas.width !== width) [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  const colors = new Uint32Array(image.data.buffer);  // red is the lowest byte, alpha the highest
  const [red, green, blue] = FOR;
  const highest = values.reduce((most, value) => Math.max(most, value), 1e-6);
  for (let i = 0; i < values.length; i++) {
    const map = Math.trunc(i / size ** 2), place = i % size ** 2;
    const left = (map % columns) * pitch + (place % size) * cell;
    const top = Math.trunc(map / columns) * pitch + Math.trunc(place / size) * cell;
    // The root shows what is weak, and what is 0 is faint, but there.
    const alpha = Math.round(255 * (FAINTEST + (1 - FAINTEST) * Math.sqrt(values[i] / highest)));
    const color = ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    for (let y = top; y < top + cell; y++) {
      for (let x = left; x < left + cell; x++) colors[y * width + x] = color;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Paints 28×28 pixels: ink in gray, and where a pixel spoke, in blue (for) or orange (against).
function paintInk(canvas, pixels, spoke) {
  const image = new ImageData(SIDE, SIDE);
  const highest = Math.max(1e-6, ...(spoke ?? []).map(Math.abs));
  pixels.forEach((ink, i) => {
    const share = spoke ? Math.min(1, Math.abs(spoke[i]) / highest) : 0;
    const color = spoke?.[i] > 0 ? FOR : AGAINST;
    const mixed = color.map((value) => share * value + (1 - share) * 128);
    image.data.set([...mixed, 255 * Math.max(0.4 * ink, share)], 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function toUrl(pixels) {  // white ink on black
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const image = new ImageData(SIDE, SIDE);
  pixels.forEach((ink, i) => image.data.set([255 * ink, 255 * ink, 255 * ink, 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.toDataURL();
}

// The ink of a drawing, black on white: the part of the canvas in which there are strokes.
function readInk(canvas, strokes) {
  let [left, top, right, bottom] = [WIDTH, HEIGHT, 0, 0];
  for (const [x, y] of strokes.flat()) {
    [left, right] = [Math.min(left, x - PEN), Math.max(right, x + PEN)];
    [top, bottom] = [Math.min(top, y - PEN), Math.max(bottom, y + PEN)];
  }
  [left, top] = [left, top].map((start) => Math.max(0, Math.floor(start)));
  const width = Math.min(WIDTH, Math.ceil(right)) - left;
  const height = Math.min(HEIGHT, Math.ceil(bottom)) - top;
  const { data } = canvas.getContext("2d").getImageData(left, top, width, height);
  const colors = new Uint32Array(data.buffer), white = 0xffffffff;
  const ink = new Float32Array(width * height);
  for (let i = 0; i < ink.length; i++) {
    if (colors[i] !== white) ink[i] = (255 - data[4 * i]) / 255;
  }
  return { height, width, data: ink, top, left };
}

// Reads all the digits of a drawing: lines of what the network makes of each. Those that have not
// changed since they were read are taken from there.
function readDrawing(network, canvas, strokes, read) {
  return findDigits(readInk(canvas, strokes)).map((line) => line.map(({ ink, box }) => {
    const known = read.find((other) => String(other.box) === String(box) &&
      other.ink.data.every((value, i) => value === ink.data[i]));
    if (known) return known;
    const pixels = drawAsMnist(ink);
    const state = forward(network, pixels);
    const confidence = Math.max(...state.probabilities);
    const digit = state.probabilities.indexOf(confidence);
    return { ...state, digit, confidence, ink, pixels, box };
  }));
}

function startPage(root) {
  const find = (selector) => root.querySelector(selector);
  const network = decodeWeights(document.querySelector("#weights").textContent);
  const minConfidence = Number(root.dataset.minConfidence);
  const drawing = { id: null, lines: [], digits: [] };
  let chosen = null;   // the digit that the network is shown at work on
  let asked = null;    // for which of the ten is shown which pixels spoke, if not for the likeliest
  let spoke = null;    // ten maps of which pixels spoke, once they are there
  let timer;

  const buttons = [...Array(CLASSES).keys()].map((digit) => `
    <button type="button" data-digit="${digit}" aria-pressed="false">${digit}</button>`);
  find(".ten").innerHTML = buttons.join("");

  function explain() {  // which pixels spoke, a slice at a time
    clearTimeout(timer);
    spoke = null;
    if (!chosen) return;
    const work = occlude(network, chosen.pixels);
    const slice = () => {
      const start = performance.now();
      let step;
      do step = work.next();
      while (!step.done && performance.now() - start < SLICE);
      if (!step.done) return (timer = setTimeout(slice));
      spoke = step.value;
      showWhy();
    };
    timer = setTimeout(slice, 100);  // not at each move of the pen
  }

  function showWhy() {
    const digit = asked ?? chosen?.digit;
    for (const button of find(".ten").children) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.digit) === digit));
    }
    paintInk(find(".why canvas"), chosen?.pixels ?? new Float32Array(SIDE ** 2), spoke?.[digit]);
    find(".why").classList.toggle("waiting", Boolean(chosen && !spoke));
  }

  function showNetwork() {
    paintMaps(find(".maps1"), chosen?.maps1 ?? new Float32Array(32 * 14 * 14), 14, 3, 16);
    paintMaps(find(".maps2"), chosen?.maps2 ?? new Float32Array(64 * 7 * 7), 7, 6, 16);
    paintMaps(find(".units"), chosen?.units ?? new Float32Array(128), 1, 19, 32);
    find(".found").hidden = drawing.digits.length < 2;
    find(".found span").innerHTML = drawing.digits.map((found, i) => `<button type="button"
      data-index="${i}" aria-pressed="${found === chosen}">${found.digit}</button>`).join("");
    showWhy();
  }

  function choose(digit) {
    chosen = digit;
    const unsure = drawing.digits.length === 1 && digit.confidence < minConfidence;
    const remark = unsure ? `perhaps, ${(100 * digit.confidence).toFixed(1)}% sure` : undefined;
    take({ id: drawing.id, lines: drawing.lines, seen: toUrl(digit.pixels), chosen, remark });
    showNetwork();
    explain();
  }

  const take = createCanvas(find(".drawing"), ({ id, canvas, strokes }) => {
    drawing.id = id;
    drawing.lines = strokes.length ? readDrawing(network, canvas, strokes, drawing.digits) : [];
    drawing.digits = drawing.lines.flat();
    asked = null;
    if (!drawing.digits.length) {
      chosen = null;
      if (strokes.length) take({ id, lines: [] });
      showNetwork();
      return explain();
    }
    const [x, y] = strokes.at(-1).at(-1);  // the digit at the pen is shown
    const away = ({ box: [left, top, right, bottom] }) =>
      Math.max(left - x, x - right, top - y, y - bottom);
    choose(drawing.digits.reduce((one, other) => (away(other) < away(one) ? other : one)));
  }, true);

  find(".found").addEventListener("click", ({ target }) => {
    const { index } = target.dataset;
    if (index === undefined) return;
    asked = null;
    choose(drawing.digits[index]);
    find(`.found [data-index="${index}"]`).focus();  // the buttons are new
  });
  function askFor({ target }) {  // the pointer or the focus is on one of the ten
    const row = target.closest("[data-digit]");
    if (!row || !chosen) return;
    asked = Number(row.dataset.digit);
    showWhy();
  }
  for (const kind of ["pointerover", "focusin", "click"]) root.addEventListener(kind, askFor);
  showNetwork();
}

startPage(document.querySelector(".draw-page"));
