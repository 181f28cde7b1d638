// Why one neuron fired: its inputs, its current, its membrane potential, its threshold and its spikes.

/** Where a neuron of a layer lies: its index is (row * side + column) * features + feature. */
export function placeOf(model, result, layer, index) {
  const length = result.layers[layer][0].length;
  const features = featuresOf(model, layer);
  const side = Math.sqrt(length / features);
  const place = Math.floor(index / features);
  return { features, side, feature: index % features, row: Math.floor(place / side), column: place % side };
}

/** The number of features of a layer. */
export const featuresOf = (model, layer) => model.tensors[`${layer}.bias`]?.length ?? model.dim;

/** Every step of one neuron in the paper's units: current X, H when it meets the threshold, spike, V after the reset. */
export function traceOf(model, result, layer, index) {
  const { beta, threshold } = model.neurons[layer];
  const gain = 1 - beta; // 1 / tau: the network computes with u = tau H
  let u = 0;
  return result.currents[layer].map((current, t) => {
    const x = current[index];
    const before = u;
    u = x + beta * u;
    const spike = result.layers[layer][t][index];
    const H = u * gain;
    if (spike) u = 0;
    return { x, before: before * gain, H, spike, V: u * gain };
  });
}

/** The threshold of a layer in the paper's units. */
export const thresholdOf = (model, layer) => model.neurons[layer].threshold * (1 - model.neurons[layer].beta);

/**
 * What the current of one neuron is made of at one time step.
 *
 * Returns the bias and a list of parts, largest first, each value times weight. A part has the place of its input:
 * `row` and `column`, and `feature` (of the layer before, of the image, or of the residual stream). In attention a part
 * is one key token: its score times s, where its value fires.
 */
export function inputsOf(model, result, layer, index, t) {
  const input = result.inputs[layer];
  const parts = [];
  let bias = 0;
  if (input.kind === "attention") {
    const { dim, heads } = model;
    const [token, feature] = [Math.floor(index / dim), index % dim];
    const head = Math.floor(feature / (dim / heads));
    const counts = result.scores[input.block][t];
    const values = result.layers[`blocks.${input.block}.attn.v`][t];
    const n = values.length / dim, side = Math.sqrt(n);
    for (let j = 0; j < n; j++) {
      const count = counts[(head * n + token) * n + j];
      if (count && values[j * dim + feature]) {
        parts.push({ row: Math.floor(j / side), column: j % side, feature, value: count, weight: model.scale[input.block] });
      }
    }
  } else {
    const [weight, biases] = [model.tensors[`${input.weights}.weight`], model.tensors[`${input.weights}.bias`]];
    const outs = biases.length;
    const from = input.from[t];
    if (input.kind === "conv") {
      const { side } = input;
      const ins = from.length / side ** 2;
      const [place, out] = [Math.floor(index / outs), index % outs];
      const [row, column] = [Math.floor(place / side), place % side];
      bias = biases[out];
      for (let dy = 0; dy < 3; dy++) for (let dx = 0; dx < 3; dx++) {
        const [y, z] = [row + dy - 1, column + dx - 1];
        if (y < 0 || z < 0 || y >= side || z >= side) continue;
        for (let c = 0; c < ins; c++) {
          const value = from[(y * side + z) * ins + c];
          if (value) parts.push({ row: y, column: z, feature: c, value, weight: weight[((c * 3 + dy) * 3 + dx) * outs + out] });
        }
      }
    } else {
      const ins = weight.length / outs;
      const features = featuresOf(model, layer);
      const [token, feature] = [Math.floor(index / features), index % features];
      const side = Math.sqrt(from.length / ins);
      bias = biases[input.first + feature];
      for (let c = 0; c < ins; c++) {
        const value = from[token * ins + c];
        if (value) parts.push({ row: Math.floor(token / side), column: token % side, feature: c, value, weight: weight[c * outs + input.first + feature] });
      }
    }
  }
  for (const part of parts) part.part = part.value * part.weight;
  parts.sort((a, b) => Math.abs(b.part) - Math.abs(a.part));
  return { bias, parts };
}

/** The layers whose spikes a layer gets: one, or those that are added up in the residual stream. */
export function sourcesOf(model, layer) {
  const block = Number(layer.match(/^blocks\.(\d+)/)?.[1] ?? -1);
  const stream = (blocks, more = []) => ["sps.3", "sps.rpe", ...Array.from({ length: blocks }, (_, i) => [`blocks.${i}.attn.proj`, `blocks.${i}.mlp.out`]).flat(), ...more];
  if (layer === "sps.0") return [];
  if (layer === "sps.rpe") return ["sps.3"];
  if (layer.startsWith("sps.")) return [`sps.${Number(layer.slice(4)) - 1}`];
  if (layer.endsWith(".attn.attn")) return [`blocks.${block}.attn.v`];
  if (layer.endsWith(".attn.proj")) return [`blocks.${block}.attn.attn`];
  if (layer.endsWith(".mlp.out")) return [`blocks.${block}.mlp.hidden`];
  return stream(block, layer.endsWith(".mlp.hidden") ? [`blocks.${block}.attn.proj`] : []);
}

/** A neuron that fired at time t and is behind an input of another one; undefined for a pixel. */
export function neuronBehind(model, result, layer, part, t) {
  for (const source of sourcesOf(model, layer).reverse()) {
    const spikes = result.layers[source][t];
    const features = featuresOf(model, source);
    const side = Math.sqrt(spikes.length / features);
    const target = result.inputs[layer].side ?? Math.sqrt(result.layers[`blocks.0.attn.q`][0].length / model.dim);
    const window = side > target ? [-1, 0, 1] : [0]; // max-pooling has taken one of 3 x 3
    for (const dy of window) for (const dx of window) {
      const [y, z] = [part.row * (side / target) + dy, part.column * (side / target) + dx];
      if (y < 0 || z < 0 || y >= side || z >= side) continue;
      const index = (y * side + z) * features + part.feature;
      if (spikes[index]) return { layer: source, index };
    }
  }
  return undefined;
}
