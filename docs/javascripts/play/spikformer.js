// The forward pass of a Spikformer, without a library: the same spikes as the Python package, layer by layer.
//
// A feature map is [H][W][C] in one flat array, channels last; tokens are [N][D]. A layer is called once for all time
// steps and holds an array of T such maps. Spikes are rare, so every layer first lists the inputs that are not zero, and
// then adds up the weights behind these alone.
//
// Weights are numbers of half precision, multiples of 2^-24, and the first layer's pixels lie on a grid. Numbers of
// JavaScript have 53 bits: every sum here is exact, whatever its order.

/** A network as `python -m spikformer_edu.export` writes it: the parsed model.json, and model.bin as an ArrayBuffer. */
export function readModel(header, buffer) {
  const tensors = {};
  for (const [name, { offset, shape }] of Object.entries(header.tensors)) {
    const length = shape.reduce((product, size) => product * size, 1);
    const [numbers, bits] = [new Float32Array(length), new Uint16Array(buffer, 2 * offset, length)]; // little-endian, as every browser is
    for (let i = 0; i < length; i++) numbers[i] = half(bits[i]);
    tensors[name] = numbers;
  }
  if (header.dim / header.heads > 32) throw new Error("a head wider than 32 does not fit into the bits of one number");
  return { ...header, tensors };
}

const POWERS = Array.from({ length: 32 }, (_, exponent) => 2 ** (Math.max(exponent, 1) - 25));

/** The number behind the 16 bits of half precision: a sign, 5 bits of exponent, 10 of fraction. */
export function half(bits) {
  const exponent = (bits >> 10) & 31;
  const size = ((exponent ? 1024 : 0) + (bits & 1023)) * POWERS[exponent];
  return bits >> 15 ? -size : size;
}

/** Pixels [H][W][C] in [0, 1] as the network wants them: with each channel's mean and std, and rounded to the grid. Event counts stay. */
export function normalise(pixels, { mean, std, pixelGrid }) {
  if (!mean.length) return pixels;
  const one = (value, c) => Math.fround(Math.fround(value - Math.fround(mean[c])) / Math.fround(std[c]));
  return Float32Array.from(pixels, (value, i) => Math.round(one(value, i % mean.length) * pixelGrid) / pixelGrid);
}

/**
 * What the network makes of one still image, or of T event frames, a list of such maps.
 *
 * Returns the logits, those of each time step, and by name, in network order, every neuron layer's spikes (an array of
 * T Uint8Arrays) and every block's scores before the scale (T Uint8Arrays of [h][N][N] counts). For questions about one
 * neuron (why.js) it also returns every layer's currents and what they were computed from.
 */
export function forward(model, image, timeSteps = model.timeSteps) {
  const still = !Array.isArray(image);
  const frames = still ? Array(timeSteps).fill(image) : image;
  if (frames.length !== timeSteps) throw new Error(`${frames.length} frames for T = ${timeSteps}`);
  const { tensors, neurons, dim, heads } = model;
  const layers = {}, currents = {}, inputs = {};
  const scores = [];
  const fire = (name, current, input) => {
    [currents[name], inputs[name]] = [current, input];
    return (layers[name] = leaky(current, neurons[name]));
  };
  const linear = (name, x) => x.map((tokens) => multiply(tokens, tensors[name + ".weight"], tensors[name + ".bias"]));

  // SPS: four convolutions, then one more as position embedding. A still image is convolved once, not T times.
  let side = model.imageSize;
  let x;
  for (let i = 0; i < 5; i++) {
    const name = i < 4 ? `sps.${i}` : "sps.rpe";
    const [weight, bias] = [tensors[name + ".weight"], tensors[name + ".bias"]];
    const input = i ? x : frames;
    const current = i || !still ? input.map((map) => convolve(map, side, weight, bias)) : Array(timeSteps).fill(convolve(image, side, weight, bias));
    const spikes = fire(name, current, { kind: "conv", from: input, side, weights: name });
    if (i === 4) {
      x = add(x, spikes);
    } else {
      x = model.pool[i] ? spikes.map((map) => pool(map, side)) : spikes;
      if (model.pool[i]) side = Math.ceil(side / 2);
    }
  }

  // Encoder blocks. The map [H][W][D] is already the list of tokens [N][D]; x now holds the integers 0, 1, 2, ...
  for (let i = 0; i < model.depth; i++) {
    const block = `blocks.${i}`;
    const residual = x;
    const qkv = linear(`${block}.attn.qkv`, x);
    const [q, k, v] = ["q", "k", "v"].map((letter, part) =>
      fire(`${block}.attn.${letter}`, qkv.map((tokens) => columns(tokens, 3 * dim, part * dim, dim)),
        { kind: "linear", from: residual, weights: `${block}.attn.qkv`, first: part * dim }));
    const mixed = [];
    scores.push([]);
    for (let t = 0; t < timeSteps; t++) {
      const found = attend(q[t], k[t], v[t], dim, heads, model.scale[i]);
      mixed.push(found.mixed);
      scores[i].push(found.counts);
    }
    const through = (name, input) => fire(name, linear(name, input), { kind: "linear", from: input, weights: name, first: 0 });
    const attended = fire(`${block}.attn.attn`, mixed, { kind: "attention", block: i });
    x = add(x, through(`${block}.attn.proj`, attended));
    x = add(x, through(`${block}.mlp.out`, through(`${block}.mlp.hidden`, x)));
  }

  // The mean over tokens, then the head; the head is linear, so the mean over time may come last.
  const stepLogits = x.map((tokens) => {
    const mean = new Float64Array(dim);
    for (let n = 0; n < tokens.length; n++) mean[n % dim] += tokens[n] / (tokens.length / dim);
    return multiply(mean, tensors["head.weight"], tensors["head.bias"]);
  });
  const logits = stepLogits[0].map((_, c) => stepLogits.reduce((sum, step) => sum + step[c], 0) / timeSteps);
  return { logits, stepLogits, layers, scores, currents, inputs };
}

/** The paper's neuron, u = tau H: u[t] = beta u[t-1] (1 - S[t-1]) + X[t]. */
export function leaky(currents, { beta, threshold }) {
  const u = new Float64Array(currents[0].length);
  return currents.map((current) => {
    const spikes = new Uint8Array(u.length);
    for (let i = 0; i < u.length; i++) {
      u[i] = current[i] + (u[i] < threshold ? beta * u[i] : 0); // hard reset: after a spike, from zero
      if (u[i] >= threshold) spikes[i] = 1; // also exactly at the threshold
    }
    return spikes;
  });
}

/** The inputs of every place that are not zero: those of place p are number start[p] to start[p + 1] - 1 of the list. */
function active(x, ins) {
  const start = new Int32Array(x.length / ins + 1);
  const [channel, value] = [new Int32Array(x.length), new Float64Array(x.length)];
  let count = 0;
  for (let place = 0, i = 0; i < x.length; place++) {
    for (let c = 0; c < ins; c++, i++) {
      if (x[i] === 0) continue; // no spike, no work
      channel[count] = c;
      value[count++] = x[i];
    }
    start[place + 1] = count;
  }
  return { start, channel, value };
}

/** 3 x 3 convolution with padding 1; weight [in][3][3][out]. */
function convolve(x, side, weight, bias) {
  const outs = bias.length;
  const ins = x.length / (side * side);
  const out = new Float64Array(side * side * outs);
  const { start, channel, value } = active(x, ins);
  const [rows, values] = [new Int32Array(9 * ins), new Float64Array(9 * ins)];
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      let count = 0;
      for (let dy = 0; dy < 3; dy++) {
        const y = row + dy - 1;
        if (y < 0 || y >= side) continue;
        for (let dx = 0; dx < 3; dx++) {
          const z = column + dx - 1;
          if (z < 0 || z >= side) continue;
          const place = y * side + z;
          for (let i = start[place]; i < start[place + 1]; i++) {
            rows[count] = ((channel[i] * 3 + dy) * 3 + dx) * outs;
            values[count++] = value[i];
          }
        }
      }
      accumulate(out, (row * side + column) * outs, rows, values, count, weight, bias);
    }
  }
  return out;
}

/** Tokens [N][in] times weight [in][out], plus bias. */
function multiply(tokens, weight, bias) {
  const outs = bias.length;
  const ins = weight.length / outs;
  const n = tokens.length / ins;
  const out = new Float64Array(n * outs);
  const { start, channel, value } = active(tokens, ins);
  const rows = channel.map((c) => c * outs);
  for (let token = 0; token < n; token++) {
    accumulate(out, token * outs, rows.subarray(start[token]), value.subarray(start[token]), start[token + 1] - start[token], weight, bias);
  }
  return out;
}

/** out = bias + the rows of weight, each times its value. Eight sums at a time: nearly all the time is spent here. */
function accumulate(out, to, rows, values, count, weight, bias) {
  const outs = bias.length;
  let o = 0;
  for (; o + 7 < outs; o += 8) {
    let a = bias[o], b = bias[o + 1], c = bias[o + 2], d = bias[o + 3];
    let e = bias[o + 4], f = bias[o + 5], g = bias[o + 6], h = bias[o + 7];
    for (let i = 0; i < count; i++) {
      const from = rows[i] + o, value = values[i];
      a += value * weight[from];
      b += value * weight[from + 1];
      c += value * weight[from + 2];
      d += value * weight[from + 3];
      e += value * weight[from + 4];
      f += value * weight[from + 5];
      g += value * weight[from + 6];
      h += value * weight[from + 7];
    }
    out[to + o] = a;
    out[to + o + 1] = b;
    out[to + o + 2] = c;
    out[to + o + 3] = d;
    out[to + o + 4] = e;
    out[to + o + 5] = f;
    out[to + o + 6] = g;
    out[to + o + 7] = h;
  }
  for (; o < outs; o++) {
    let sum = bias[o];
    for (let i = 0; i < count; i++) sum += values[i] * weight[rows[i] + o];
    out[to + o] = sum;
  }
}

/** Max-pool 3 x 3, stride 2, padding 1: of spikes, a logical OR. */
function pool(x, side) {
  const channels = x.length / (side * side);
  const half = Math.ceil(side / 2);
  const out = new Uint8Array(half * half * channels);
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      for (let c = 0; c < channels; c++) {
        if (!x[(row * side + column) * channels + c]) continue;
        // An odd row lies in the windows of the rows before and after it, an even one in its own only.
        for (let y = row >> 1; y <= Math.min((row + 1) >> 1, half - 1); y++) {
          for (let z = column >> 1; z <= Math.min((column + 1) >> 1, half - 1); z++) out[(y * half + z) * channels + c] = 1;
        }
      }
    }
  }
  return out;
}

/** One head's spikes as bits: one number a token. */
function bits(spikes, token, dim, head, width) {
  let word = 0;
  for (let c = 0; c < width; c++) word |= spikes[token * dim + head * width + c] << c;
  return word;
}

/** Ones in a 32-bit number. */
export function popcount(word) {
  let ones = 0;
  for (; word; word &= word - 1) ones++;
  return ones;
}

/**
 * Q K^T V s of one time step, all heads.
 *
 * The scores are made for looking at: AND and popcount. The result is computed in the other order, Q (K^T V), which is
 * the same integer and cheaper whenever there are more tokens than features a head.
 */
function attend(q, k, v, dim, heads, scale) {
  const width = dim / heads;
  const n = q.length / dim;
  const counts = new Uint8Array(heads * n * n);
  const mixed = new Float64Array(n * dim);
  for (let head = 0; head < heads; head++) {
    const [queries, keys] = [q, k].map((spikes) => Array.from({ length: n }, (_, token) => bits(spikes, token, dim, head, width)));
    for (let i = 0; i < n; i++) {
      if (!queries[i]) continue; // a query that does not fire attends to nothing
      for (let j = 0; j < n; j++) counts[(head * n + i) * n + j] = popcount(queries[i] & keys[j]);
    }
    const keyValue = new Uint32Array(width * width); // K^T V: in how many tokens key a and value b fire together
    for (let j = 0; j < n; j++) {
      for (let a = 0; a < width; a++) {
        if (!k[j * dim + head * width + a]) continue;
        for (let b = 0; b < width; b++) keyValue[a * width + b] += v[j * dim + head * width + b];
      }
    }
    for (let i = 0; i < n; i++) {
      const to = i * dim + head * width;
      for (let a = 0; a < width; a++) {
        if (!q[to + a]) continue;
        for (let b = 0; b < width; b++) mixed[to + b] += scale * keyValue[a * width + b];
      }
    }
  }
  return { counts, mixed };
}

/** Some columns of [N][wide]. */
function columns(tokens, wide, first, count) {
  const out = new Float64Array((tokens.length / wide) * count);
  for (let row = 0; row * wide < tokens.length; row++) {
    out.set(tokens.subarray(row * wide + first, row * wide + first + count), row * count);
  }
  return out;
}

/** The residual connection: integers, step by step. */
function add(x, spikes) {
  return x.map((tokens, t) => tokens.map((value, i) => value + spikes[t][i]));
}
