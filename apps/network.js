// The network of model.py in plain JavaScript: two convolutions and two fully connected layers.

const PIXEL_MEAN = 0.1307, PIXEL_STD = 0.3081;  // as in model.py
const CLASSES = 10;
const SQUARE = 4, STEP = 2;  // pixels of the squares of ink that occlusion erases, and between them
// The layers as they follow each other in the weights, and how many numbers each has.
const LAYERS = {
  conv1: 32 * 9, bias1: 32, conv2: 64 * 32 * 9, bias2: 64,
  fc1: 128 * 64 * 7 * 7, bias3: 128, fc2: CLASSES * 128, bias4: CLASSES,
};

// Turns weights, float16 in base64, into the layers of a network, each a Float32Array.
function decodeWeights(base64) {
  const bytes = Uint8Array.from(atob(base64.trim()), (byte) => byte.charCodeAt(0));
  const numbers = new Float32Array(bytes.length / 2);
  for (let i = 0; i < numbers.length; i++) {
    const bits = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    numbers[i] = bits >> 15 ? -size : size;
  }
  let start = 0;
  return Object.fromEntries(
    Object.entries(LAYERS).map(([name, n]) => [name, numbers.subarray(start, (start += n))]),
  );
}

// Maps pixels in 0..1 to the maps after each pooling, the units, the logits, the probabilities.
function forward(network, pixels) {
  const input = pixels.map((value) => (value - PIXEL_MEAN) / PIXEL_STD);  // 28×28
  const maps1 = convolveAndPool(input, SIDE, network.conv1, network.bias1);  // 32×14×14
  const maps2 = convolveAndPool(maps1, SIDE / 2, network.conv2, network.bias2);  // 64×7×7
  const units = connect(maps2, network.fc1, network.bias3).map((value) => Math.max(0, value));
  const logits = connect(units, network.fc2, network.bias4);
  const powers = [...logits].map((logit) => Math.exp(logit - Math.max(...logits)));
  const sum = powers.reduce((total, power) => total + power);
  return { maps1, maps2, units, logits, probabilities: powers.map((power) => power / sum) };
}

// A convolution with 3×3 weights and a margin of zeros, ReLU, and the maximum of each 2×2 pixels.
// Takes maps of size×size values, and returns half as large ones, as many as there are biases.
function convolveAndPool(maps, size, weights, biases) {
  const n = maps.length / size ** 2, side = size + 2, half = size / 2;
  const padded = new Float32Array(n * side * side);
  for (let row = 0; row < n * size; row++) {
    const start = (row + 2 * Math.trunc(row / size) + 1) * side + 1;
    padded.set(maps.subarray(row * size, (row + 1) * size), start);
  }
  const pooled = new Float32Array(biases.length * half * half);
  const sums = new Float32Array(size * size);
  for (let output = 0; output < biases.length; output++) {
    sums.fill(biases[output]);
    for (let input = 0; input < n; input++) {
      const [a, b, c, d, e, f, g, h, i] = weights.subarray(9 * (output * n + input));
      for (let y = 0; y < size; y++) {
        let first = (input * side + y) * side, second = first + side, third = second + side;
        for (let x = y * size; x < (y + 1) * size; x++, first++, second++, third++) {
          sums[x] +=
            a * padded[first] + b * padded[first + 1] + c * padded[first + 2] +
            d * padded[second] + e * padded[second + 1] + f * padded[second + 2] +
            g * padded[third] + h * padded[third + 1] + i * padded[third + 2];
        }
      }
    }
    for (let y = 0; y < half; y++) {
      for (let x = 0; x < half; x++) {
        const i = 2 * (y * size + x);
        pooled[(output * half + y) * half + x] =
          Math.max(0, sums[i], sums[i + 1], sums[i + size], sums[i + size + 1]);
      }
    }
  }
  return pooled;
}

function connect(values, weights, biases) {  // a fully connected layer
  return biases.map((bias, output) => {
    let sum = bias;
    for (let i = 0, j = output * values.length; i < values.length; i++, j++) {
      sum += weights[j] * values[i];
    }
    return sum;
  });
}

// How sure the network is of each digit: the logarithm of its odds against all others.
function logOdds({ logits }) {
  return [...logits].map((logit, digit) => {
    const others = [...logits].filter((_, other) => other !== digit);
    const highest = Math.max(...others);
    const sum = others.reduce((total, other) => total + Math.exp(other - highest), 0);
    return logit - highest - Math.log(sum);
  });
}

// Which pixels spoke for each digit, and which against it: occlusion (Zeiler and Fergus 2014).
// Squares of ink are erased in turn. A pixel counts by its ink, and by how much less sure of the
// digit the network is without the squares around it, on average. Yields after each square, as
// it takes a while; returns ten lists of 28×28 values. training/plots.py does the same.
function* occlude(network, pixels) {
  const whole = logOdds(forward(network, pixels));
  const drops = whole.map(() => new Float32Array(SIDE * SIDE));
  const squares = new Uint8Array(SIDE * SIDE);  // of how many each pixel is part
  for (let top = 0; top + SQUARE <= SIDE; top += STEP) {
    for (let left = 0; left + SQUARE <= SIDE; left += STEP) {
      const square = [];
      for (let i = 0; i < SQUARE ** 2; i++) {
        square.push((top + Math.trunc(i / SQUARE)) * SIDE + left + (i % SQUARE));
      }
      for (const i of square) squares[i]++;
      if (!square.some((i) => pixels[i])) continue;
      const erased = pixels.slice();
      for (const i of square) erased[i] = 0;
      const odds = logOdds(forward(network, erased));
      drops.forEach((drop, digit) => {
        for (const i of square) drop[i] += whole[digit] - odds[digit];
      });
      yield;
    }
  }
  return drops.map((drop) => drop.map((value, i) => (value * pixels[i]) / squares[i]));
}
