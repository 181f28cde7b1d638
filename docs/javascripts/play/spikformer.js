// The forward pass of a Spikformer, without a library: the same spikes as the Python package, layer by layer.
//
// A feature map is [H][W][C] in one flat array, channels last; tokens are [N][D]. A layer is called once for all time
// steps and holds an array of T such maps. Spikes are rare, so every layer walks over its input spikes and adds the
// weights behind each: additions only, where a dense layer would multiply.

/** A network as `python -m spikformer_edu.export` writes it: the parsed model.json, and model.bin as an ArrayBuffer. */
export function readModel(header, buffer) {
  const tensors = {};
  for (const [name, { offset, shape }] of Object.entries(header.tensors)) {
    const length = shape.reduce((product, size) => product * size, 1);
    tensors[name] = new Float32Array(buffer, 4 * offset, length); // little-endian, as every browser is
  }
  if (header.dim / header.heads > 32) throw new Error("a head wider than 32 does not fit into the bits of one number");
  return { ...header, tensors };
}

/** Pixels [H][W][C] in [0, 1] as the network wants them; every channel has its own mean and std. Event counts have none. */
export function normalise(pixels, { mean, std }) {
  if (!mean.length) return pixels;
  const one = (value, c) => Math.fround(Math.fround(value - Math.fround(mean[c])) / Math.fround(std[c]));
  return Float32Array.from(pixels, (value, i) => one(value, i % mean.length));
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

/** The paper's neuron, u = tau H: u[t] = beta u[t-1] (1 - S[t-1]) + X[t], in single precision as in Python. */
export function leaky(currents, { beta, threshold }) {
  const u = new Float32Array(currents[0].length);
  return currents.map((current) => {
    const spikes = new Uint8Array(u.length);
    for (let i = 0; i < u.length; i++) {
      u[i] = Math.fround(current[i]) + (u[i] < threshold ? beta * u[i] : 0); // hard reset: after a spike, from zero
      if (u[i] >= threshold) spikes[i] = 1; // also exactly at the threshold
    }
    return spikes;
  });
}

/** 3 x 3 convolution with padding 1; weight [in][3][3][out]. Sums in double precision. */
function convolve(x, side, weight, bias) {
  const outs = bias.length;
  const ins = x.length / (side * side);
  const out = filled(side * side, bias);
  for (let row = 0; row < side; row++) {
    for (let column = 0; column < side; column++) {
      for (let c = 0; c < ins; c++) {
        const value = x[(row * side + column) * ins + c];
        if (value === 0) continue; // no spike, no work
        for (let dy = 0; dy < 3; dy++) {
          const y = row + 1 - dy;
          if (y < 0 || y >= side) continue;
          for (let dx = 0; dx < 3; dx++) {
            const z = column + 1 - dx;
            if (z < 0 || z >= side) continue;
            accumulate(out, (y * side + z) * outs, weight, ((c * 3 + dy) * 3 + dx) * outs, outs, value);
          }
        }
      }
    }
  }
  return out;
}

/** Tokens [N][in] times weight [in][out], plus bias. */
function multiply(tokens, weight, bias) {
  const outs = bias.length;
  const ins = weight.length / outs;
  const out = filled(tokens.length / ins, bias);
  for (let i = 0; i < tokens.length; i++) {
    if (tokens[i] !== 0) accumulate(out, Math.floor(i / ins) * outs, weight, (i % ins) * outs, outs, tokens[i]);
  }
  return out;
}

/** out += value * weight, over one row. For a spike, value is 1. Four at a time: nearly all the time is spent here. */
function accumulate(out, to, weight, from, length, value) {
  let o = 0;
  for (; o + 3 < length; o += 4) {
    out[to + o] += value * weight[from + o];
    out[to + o + 1] += value * weight[from + o + 1];
    out[to + o + 2] += value * weight[from + o + 2];
    out[to + o + 3] += value * weight[from + o + 3];
  }
  for (; o < length; o++) out[to + o] += value * weight[from + o];
}

/** The bias, once for every place. */
function filled(places, bias) {
  const out = new Float64Array(places * bias.length);
  for (let place = 0; place < places; place++) out.set(bias, place * bias.length);
  return out;
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
      for (let a = 0; a < width; a++) {
        if (q[i * dim + head * width + a]) accumulate(mixed, i * dim + head * width, keyValue, a * width, width, scale);
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
