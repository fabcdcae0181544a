// Finds digits in ink and draws them as MNIST does. This is what reading/preprocessing.py does
// with the same ink, and tests/apps/test_page.py holds the two equal. An image is an object of
// height, width and data, an array of height * width values: 0 for paper, 1 for ink.

const SIDE = 28;   // pixels of MNIST's images, both ways
const BOX = 20;    // pixels of the longer side of a digit
const FINE = 5;    // strokes are drawn at so many times the resolution of MNIST
const STROKE_WIDTHS = [2.0, 3.6];  // pixels, minimum and maximum of most of MNIST
const WEAK = 0.3;  // ink below it does not count for the size of a digit
const FAINT = 0.2; // nor does ink below this, once it is drawn anew
const REDUCING_GAP = 1.5;  // a resize may start with plain averages, as long as so much is left
const SOFT = 1 / 6;  // what a pixel takes of each one beside it
const BLOCK = 4;   // pixels, both ways, of the blocks in which digits are found
// Parts of a digit lie one above the other: a 5 and its hat.
const MIN_OVERLAP = 0.6;  // across, as a share of the narrower part
const MAX_GAP = 0.45;     // down, as a share of the larger part
const MIN_EXTENT = 0.3;   // of the largest digit; what is smaller is a dot or a slip of the pen

// ---- Resizing, as Pillow does it ---------------------------------------------------------

function roundHalfToEven(value) {
  const below = Math.floor(value), rest = value - below;
  return rest === 0.5 ? below + (below % 2) : Math.round(value);
}

function resize(image, height, width) {
  [height, width] = [height, width].map((size) => Math.max(1, roundHalfToEven(size)));
  if (height === image.height && width === image.width) return image;
  const factorY = Math.trunc(image.height / height / REDUCING_GAP) || 1;
  const factorX = Math.trunc(image.width / width / REDUCING_GAP) || 1;
  const reduced = reduce(image, factorY, factorX);
  const columns = bicubicWeights(reduced.width, image.width / factorX, width);
  const rows = bicubicWeights(reduced.height, image.height / factorY, height);

  const across = new Float32Array(reduced.height * width);
  for (let y = 0; y < reduced.height; y++) {
    for (let x = 0; x < width; x++) {
      const { start, weights } = columns[x];
      let sum = 0;
      for (let i = 0; i < weights.length; i++) {
        sum += weights[i] * reduced.data[y * reduced.width + start + i];
      }
      across[y * width + x] = sum;
    }
  }
  const data = new Float32Array(height * width);
  for (let y = 0; y < height; y++) {
    const { start, weights } = rows[y];
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * across[(start + i) * width + x];
      data[y * width + x] = sum;
    }
  }
  return { height, width, data };
}

// Averages over rectangles; those at the right and at the bottom may be smaller.
function reduce(image, factorY, factorX) {
  if (factorY === 1 && factorX === 1) return image;
  const height = Math.ceil(image.height / factorY), width = Math.ceil(image.width / factorX);
  const data = new Float32Array(height * width);
  for (let y = 0; y < height; y++) {
    const bottom = Math.min(image.height, (y + 1) * factorY);
    for (let x = 0; x < width; x++) {
      const right = Math.min(image.width, (x + 1) * factorX);
      let sum = 0;
      for (let row = y * factorY; row < bottom; row++) {
        for (let i = row * image.width + x * factorX; i < row * image.width + right; i++) {
          sum += image.data[i];
        }
      }
      data[y * width + x] = sum / ((bottom - y * factorY) * (right - x * factorX));
    }
  }
  return { height, width, data };
}

// For each pixel of the output: the first pixel of the input that counts, and the weights from it.
function bicubicWeights(inputSize, stop, outputSize) {
  const scale = Math.fround(stop) / outputSize;
  const spread = Math.max(scale, 1);
  const result = [];
  for (let i = 0; i < outputSize; i++) {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - 2 * spread + 0.5));
    const end = Math.min(inputSize, Math.trunc(center + 2 * spread + 0.5));
    const weights = [];
    for (let x = start; x < end; x++) weights.push(bicubic((x - center + 0.5) / spread));
    const sum = weights.reduce((total, weight) => total + weight);
    result.push({ start, weights: weights.map((weight) => weight / sum) });
  }
  return result;
}

function bicubic(x) {  // Keys's kernel, with a = -0.5
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return ((x - 5) * x + 8) * x * -0.5 + 2;
  return 0;
}

// ---- Distances ---------------------------------------------------------------------------

// The square of the distance from each pixel of ink to the nearest paper, or from each pixel of
// paper to the nearest ink, and 0 for the others. There has to be some of both.
function squaredDistances({ height, width, data }, fromInk) {
  const vertical = new Int32Array(height * width);  // squares of distances within the column
  for (let x = 0; x < width; x++) {
    let distance = height + width;  // more than any
    for (let i = x; i < height * width; i += width) {
      distance = data[i] > 0.5 === fromInk ? distance + 1 : 0;
      vertical[i] = distance;
    }
    for (let i = (height - 1) * width + x; i >= 0; i -= width) {
      distance = Math.min(distance + 1, vertical[i]);
      vertical[i] = distance;
    }
  }
  for (let i = 0; i < vertical.length; i++) vertical[i] *= vertical[i];
  const squares = new Int32Array(height * width);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      let best = vertical[i];
      for (let away = 1, square = 1; square < best; away++, square = away * away) {
        if (away <= x && square + vertical[i - away] < best) best = square + vertical[i - away];
        if (x + away < width && square + vertical[i + away] < best) {
          best = square + vertical[i + away];
        }
      }
      squares[i] = best;
    }
  }
  return squares;
}

// The median width of the strokes of ink, along their ridges: twice the distance to the edge.
function medianStrokeWidth(image) {
  const padded = pad(image, 2);
  const { height, width } = padded;
  const squares = squaredDistances(padded, true);
  const widths = [];
  for (let y = 2; y < height - 2; y++) {
    for (let x = 2; x < width - 2; x++) {
      const square = squares[y * width + x];
      let highest = square > 0;
      for (let row = y - 2; highest && row <= y + 2; row++) {
        for (let i = row * width + x - 2; i <= row * width + x + 2; i++) {
          if (squares[i] > square) highest = false;
        }
      }
      if (highest) widths.push(2 * Math.sqrt(square));
    }
  }
  if (!widths.length) return 1;
  widths.sort((a, b) => a - b);
  const middle = widths.length >> 1;
  return widths.length % 2 ? widths[middle] : (widths[middle - 1] + widths[middle]) / 2;
}

// ---- MNIST's geometry --------------------------------------------------------------------

function pad({ height, width, data }, margin) {
  const wide = width + 2 * margin;
  const padded = new Float32Array((height + 2 * margin) * wide);
  for (let y = 0; y < height; y++) {
    padded.set(data.subarray(y * width, (y + 1) * width), (y + margin) * wide + margin);
  }
  return { height: height + 2 * margin, width: wide, data: padded };
}

// Crops to what is above a threshold, and a margin.
function crop({ height, width, data }, threshold, margin) {
  let [top, bottom, left, right] = [height, -1, width, -1];
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!(data[i] > threshold)) continue;
      top = Math.min(top, y);
      bottom = y;
      left = Math.min(left, x);
      right = Math.max(right, x);
    }
  }
  if (bottom < 0) return null;
  top = Math.max(0, top - margin);
  left = Math.max(0, left - margin);
  bottom = Math.min(height, bottom + 1 + margin);
  right = Math.min(width, right + 1 + margin);
  const cropped = new data.constructor((bottom - top) * (right - left));
  for (let y = top; y < bottom; y++) {
    cropped.set(data.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  }
  return { height: bottom - top, width: right - left, data: cropped, top, left };
}

// Draws cropped ink as MNIST does: 28x28 pixels in 0..1. The longer side is 20 pixels, and the
// center of mass is in the middle. Strokes much thinner or fatter than MNIST's are drawn anew.
function drawAsMnist(ink) {
  const size = Math.max(ink.height, ink.width);
  let scale = (FINE * BOX) / size;
  let fine = resize(ink, ink.height * scale, ink.width * scale);
  const strokeWidth = medianStrokeWidth(fine) / FINE;
  const [minimum, maximum] = STROKE_WIDTHS;
  const grow = (Math.min(Math.max(strokeWidth, minimum), maximum) - strokeWidth) / 2;
  if (grow) {
    scale = (FINE * (BOX - 2 * grow)) / size;
    fine = resize(ink, ink.height * scale, ink.width * scale);
  }
  fine = pad(fine, 2 * FINE);
  if (Math.abs(grow) > 0.05) {
    const outward = squaredDistances(fine, false), inward = squaredDistances(fine, true);
    fine.data = new Float64Array(outward.length);
    for (let i = 0; i < outward.length; i++) {
      const edge = Math.sqrt(outward[i]) - Math.sqrt(inward[i]);
      fine.data[i] = 0.5 + (grow * FINE - edge) / FINE;
    }
  }
  for (let i = 0; i < fine.data.length; i++) {
    fine.data[i] = Math.min(Math.max(fine.data[i], 0), 1);
  }
  return soften(center(crop(fine, FAINT, 0)));
}

// Blurs the edges of strokes: a pen's and a camera's differ, and tell no digit.
function soften(pixels) {
  for (const step of [1, SIDE]) {
    pixels = pixels.map((value, i) => {
      const place = Math.trunc(i / step) % SIDE;  // along the row, or along the column
      const before = place > 0 ? pixels[i - step] : 0;
      const after = place < SIDE - 1 ? pixels[i + step] : 0;
      return SOFT * (before + after) + (1 - 2 * SOFT) * value;
    });
  }
  return pixels;
}

// Averages fine ink down to 28x28 pixels, with its center of mass at (14, 14).
function center({ height, width, data }) {
  let total = 0, sumY = 0, sumX = 0;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      total += data[i];
      sumY += data[i] * (y + 0.5);
      sumX += data[i] * (x + 0.5);
    }
  }
  const place = (sum, length) => {
    const start = roundHalfToEven(FINE * (SIDE / 2 + 0.5) - sum / Math.max(total, 1e-6));
    return Math.min(Math.max(start, 0), FINE * SIDE - length);
  };
  const top = place(sumY, height), left = place(sumX, width);
  const pixels = new Float32Array(SIDE * SIDE);
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.trunc((top + y) / FINE) * SIDE;
    for (let x = 0; x < width; x++, i++) {
      pixels[row + Math.trunc((left + x) / FINE)] += data[i] / FINE ** 2;
    }
  }
  return pixels;
}

// ---- Several digits ----------------------------------------------------------------------

// Returns the digits of an image that stand apart, in lines: of each its ink, cropped, and its
// box on the canvas: left, top, right, bottom. The image lies on it at top and left.
function findDigits(image) {
  const { labels, columns, parts } = findParts(image);
  const groups = joinParts(parts);
  const largest = Math.max(...groups.map(extent));
  const digits = [];
  for (const group of groups.filter((group) => extent(group) >= MIN_EXTENT * largest)) {
    // A block more on each side leaves room for the margin.
    const top = Math.max(0, group.top - BLOCK), left = Math.max(0, group.left - BLOCK);
    const height = Math.min(image.height, group.bottom + BLOCK) - top;
    const width = Math.min(image.width, group.right + BLOCK) - left;
    const data = new Float32Array(height * width);
    for (let y = 0; y < height; y++) {
      const row = Math.trunc((top + y) / BLOCK) * columns + left / BLOCK;
      const source = (top + y) * image.width + left;
      for (let x = 0; x < width; x += BLOCK) {
        if (!group.labels.includes(labels[row + x / BLOCK])) continue;
        const stop = Math.min(x + BLOCK, width);
        for (let i = x; i < stop; i++) data[y * width + i] = image.data[source + i];
      }
    }
    const ink = crop({ height, width, data }, WEAK, 1);
    if (!ink) continue;
    const [x, y] = [image.left + left + ink.left, image.top + top + ink.top];
    digits.push({ ink, box: [x, y, x + ink.width, y + ink.height] });
  }
  return inLines(digits);
}

// Finds the connected components of blocks that hold any ink.
function findParts({ height, width, data }) {
  const rows = Math.ceil(height / BLOCK), columns = Math.ceil(width / BLOCK);
  const labels = new Int32Array(rows * columns);  // 0: no ink; -1: ink, not yet labelled
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.trunc(y / BLOCK) * columns;
    for (let x = 0; x < width; x++, i++) {
      if (data[i] !== 0) labels[row + Math.trunc(x / BLOCK)] = -1;
    }
  }
  const parts = [];
  for (let first = 0; first < labels.length; first++) {
    if (labels[first] !== -1) continue;
    const label = parts.length + 1;
    const part = { labels: [label], top: height, left: width, bottom: 0, right: 0 };
    const waiting = [first];
    labels[first] = label;
    while (waiting.length) {
      const block = waiting.pop();
      const row = Math.trunc(block / columns), column = block % columns;
      part.top = Math.min(part.top, row * BLOCK);
      part.left = Math.min(part.left, column * BLOCK);
      part.bottom = Math.max(part.bottom, (row + 1) * BLOCK);
      part.right = Math.max(part.right, (column + 1) * BLOCK);
      for (let y = Math.max(0, row - 1); y <= Math.min(rows - 1, row + 1); y++) {
        for (let x = Math.max(0, column - 1); x <= Math.min(columns - 1, column + 1); x++) {
          if (labels[y * columns + x] !== -1) continue;
          labels[y * columns + x] = label;
          waiting.push(y * columns + x);
        }
      }
    }
    parts.push(part);
  }
  return { labels, columns, parts };
}

const extent = ({ top, left, bottom, right }) => Math.max(bottom - top, right - left);

function joinParts(parts) {
  const groups = [];
  for (let part of parts) {
    let other;
    while ((other = groups.find((group) => belongTogether(group, part)))) {
      groups.splice(groups.indexOf(other), 1);
      part = {
        labels: [...part.labels, ...other.labels],
        top: Math.min(part.top, other.top),
        left: Math.min(part.left, other.left),
        bottom: Math.max(part.bottom, other.bottom),
        right: Math.max(part.right, other.right),
      };
    }
    groups.push(part);
  }
  return groups;
}

function belongTogether(one, other) {
  const overlap = Math.min(one.right, other.right) - Math.max(one.left, other.left);
  const gap = Math.max(one.top, other.top) - Math.min(one.bottom, other.bottom);
  const narrower = Math.min(one.right - one.left, other.right - other.left);
  const larger = Math.max(extent(one), extent(other));
  return overlap > MIN_OVERLAP * narrower && gap < MAX_GAP * larger;
}

// Sorts digits into lines, from top to bottom, and each line from left to right.
function inLines(digits) {
  const lines = [];
  for (const digit of digits.sort((one, other) => one.box[1] - other.box[1])) {
    const middle = (digit.box[1] + digit.box[3]) / 2;
    const line = lines.find(([first]) => first.box[1] < middle && middle < first.box[3]);
    if (line) line.push(digit);
    else lines.push([digit]);
  }
  return lines.map((line) => line.sort((one, other) => one.box[0] - other.box[0]));
}
