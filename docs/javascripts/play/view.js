// What a trained network makes of one image: the answer, every spike, why a neuron fired, and where each head attends.
// The page above it gives the image (a drawing, a photograph, T event frames); this is the same for all of them.
import { brightest, paintEvents, total } from "./camera.js";
import { readState, shareButtons, writeState } from "./share.js";
import { forward, normalise, readModel } from "./spikformer.js";
import { strings } from "./strings.js";
import { drawTrace, explain, HEIGHT } from "./trace.js";
import { button, choice, colour, h, newId, onLook, s, select, show, slider } from "./ui.js";
import { featuresOf, inputsOf, neuronBehind, placeOf, sourcesOf, thresholdOf, traceOf } from "./why.js";

const ASSETS = new URL("../../assets/play/", import.meta.url);
export const PAUSE = 700; // milliseconds between two time steps
const SHOWN = 8; // inputs of a neuron that have a line of their own

const words = strings.network, whyWords = strings.why;

async function load(name) {
  const response = await fetch(new URL(name, ASSETS));
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

/**
 * The network of a folder, "" for the digits; undefined, with one line in `element`, where it cannot be loaded.
 *
 * `more` loads what else a page needs from that folder, as fields that are added to the network's.
 */
export async function loadModel(element, folder = "", more = () => ({})) {
  try {
    const from = (name) => load(folder + name);
    const [header, weights, added] = await Promise.all([from("model.json"), from("model.bin"), more(from)]);
    return { ...readModel(await header.json(), await weights.arrayBuffer()), ...added };
  } catch (error) {
    element.replaceChildren(h("p", { class: "play-note", role: "status" },
      words.notLoaded(error.message)));
    return undefined;
  }
}

/**
 * Builds the view into `element` and returns { show(pixels), steps }.
 *
 * `input` is what stands at the top left (the drawing area), `below` what stands under the answer. `state` gives what the
 * page itself wants in the address. `reads` is the sentence of the answer, `empty` the one without an image. `drawn` is
 * called with { result, image, t, playing } whenever something has changed; t is -1 where all steps are shown.
 */
export function networkView(element, model, { input, below, state, reads, empty, drawn = () => {} }) {
  const grid = model.imageSize / 2 ** model.pool.filter(Boolean).length; // tokens along a side
  const side = model.imageSize;
  const classes = model.classes.map((name) => strings.classes[name] ?? name);
  const asked = readState();
  let source = null;
  let image = null; // pixels, or a list of T event frames
  let result = null;
  let neuron = null; // { layer, index }
  let timer = 0;
  let touched = false; // only what the reader has chosen goes into the address

  // The answer.
  const answer = h("p", { class: "play-answer", role: "status", "aria-live": "polite" });
  const seen = h("canvas", { width: side, height: side, class: "play-seen", role: "img", "aria-label": words.seen(side) });
  const bars = h("ol", { class: "play-classes", "aria-label": words.logits });
  const course = h("p", { class: "play-note play-course" });

  // Time.
  const steps = slider(words.steps, { min: 1, max: 8, step: 1, value: inside(asked.T, 1, 8) ?? model.timeSteps, name: "steps" }, () => {
    stop();
    touched = true;
    update();
  });
  const when = slider(words.when, { min: -1, max: steps.value - 1, step: 1, value: -1, name: "when", format: (t) => (t < 0 ? words.allSteps : `t = ${t}`) }, () => {
    stop();
    touched = true;
    drawTime();
  });
  const run = button(words.play, () => (timer ? stop() : play()), { "data-action": "play" });

  // Attention.
  const block = choice(words.block, "block", Array.from({ length: model.depth }, (_, i) => [String(i), String(i)]), String(inside(asked.block, 0, model.depth - 1) ?? 0), chosen);
  const query = slider(words.query, { min: -1, max: grid * grid - 1, step: 1, value: inside(asked.token, 0, grid * grid - 1) ?? -1, name: "query", fine: true,
    format: (n) => (n < 0 ? words.allQueries : words.place(n, Math.floor(n / grid), n % grid)) }, chosen);
  const heads = h("div", { class: "play-heads" });
  const scaleNote = h("p", { class: "play-note" });
  const softHeads = h("div", { class: "play-heads play-soft" });
  const softNote = h("p", { class: "play-note" });

  const rasters = h("div", { class: "play-rasters" });
  const heading = h("h2", {}, whyWords.heading);
  const why = h("div", { class: "play-why-body" });
  const attended = "attended"; // in the address
  const share = shareButtons(picture);

  element.replaceChildren(
    h("div", { class: "play-app" },
      h("div", { class: "play-left" }, input, answer, below ?? "",
        h("div", { class: "play-columns play-logits" }, h("figure", {}, seen, h("figcaption", {}, words.seenCaption)), bars)),
      h("section", { class: "play-network" },
        h("div", { class: "play-time" }, run, when.element, steps.element), course,
        h("p", { class: "play-note play-hint" }, words.hint, " ", h("a", { href: `#${attended}` }, words.attention)),
        rasters),
      h("section", { class: "play-why", "aria-label": whyWords.section }, heading, why)),
    share,
    h("section", {}, h("h2", { id: attended }, words.attention),
      h("p", { class: "play-prose" }, words.attentionNote),
      h("div", { class: "play-controls" }, block.element, query.element), heads, scaleNote,
      h("h3", {}, words.softmax),
      h("p", { class: "play-prose" }, words.softmaxNote),
      softHeads, softNote));

  function chosen() {
    touched = true;
    drawTime();
  }

  // ---------------------------------------------------------------------------------------------------------- time

  function stop() {
    clearInterval(timer);
    timer = 0;
    run.textContent = words.play;
  }

  function play() {
    if (!result) return;
    stop();
    run.textContent = words.stop;
    when.value = 0;
    timer = setInterval(() => {
      if (when.value + 1 < steps.value) when.value += 1;
      else {
        stop();
        when.value = -1; // all of them
      }
      drawTime();
    }, PAUSE);
    drawTime();
  }

  // ---------------------------------------------------------------------------------------------------------- state

  function remember() {
    if (!touched && !state().touched) return;
    const { touched: _, ...more } = state();
    writeState({ ...more,
      T: steps.value === model.timeSteps ? "" : steps.value,
      t: when.value < 0 ? "" : when.value,
      layer: neuron?.layer, n: neuron?.index,
      token: query.value < 0 ? "" : query.value,
      block: block.value === "0" ? "" : block.value,
      lesson: document.body.classList.contains("play-lesson") ? 1 : "" });
  }
  addEventListener("play-lesson", () => {
    touched = true;
    remember();
  });

  // ---------------------------------------------------------------------------------------------------------- drawing

  function update() {
    image = typeof source === "function" ? source(steps.value) : source;
    const start = performance.now();
    result = image ? forward(model, normalise(image, model), steps.value) : null;
    element.dataset.milliseconds = (performance.now() - start).toFixed(1);
    when.input.max = steps.value - 1;
    when.value = Math.min(when.value, steps.value - 1);
    if (result && !neuron) neuron = asked.layer in result.layers && inside(asked.n, 0, result.layers[asked.layer][0].length - 1) !== undefined
      ? { layer: asked.layer, index: Number(asked.n) } : first();
    element.dataset.pixels = image ? JSON.stringify(model.events ? image.map((frame) => [...frame]) : [...image]) : "";
    drawRasters();
    drawTime();
  }

  /** A neuron worth a look: of the first block's attention, one that fires, preferably after t = 0, close to the middle. */
  function first() {
    const layer = "blocks.0.attn.attn";
    const spikes = result.layers[layer];
    const score = (index) => {
      const { row, column, side: edge } = placeOf(model, result, layer, index);
      const fired = spikes.map((step) => step[index]);
      return (fired[0] ? 2 : 10) * fired.reduce((a, b) => a + b, 0) - Math.hypot(row - edge / 2, column - edge / 2);
    };
    return { layer, index: [...spikes[0].keys()].reduce((best, index) => (score(index) > score(best) ? index : best), 0) };
  }

  /** The pixels of a time step; before all of them, of event frames the sum. */
  function pixelsAt(t) {
    if (!image) return new Float32Array(side * side * model.channels);
    return !model.events ? image : t < 0 ? total(image) : image[t];
  }

  function drawTime() {
    paint(seen, side, side, pixelsAt(when.value));
    drawAnswer();
    drawAttention();
    markRasters();
    drawWhy();
    remember();
    drawn({ result, image, t: when.value, playing: timer !== 0 });
  }

  /** Fills a canvas with an image: one channel as ink on paper, three as colours, events in theirs; `share` dims places. */
  function paint(canvas, wide, tall, values, share = () => 1) {
    if (values.length === 2 * wide * tall) return paintEvents(element, canvas, wide, values, share);
    [canvas.width, canvas.height] = [wide, tall];
    const [ink, paper] = [colour(element, "--play-ink"), colour(element, "--play-paper")];
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(wide, tall);
    const colours = values.length === 3 * wide * tall;
    for (let i = 0; i < wide * tall; i++) {
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = colours ? 255 * values[3 * i + c] : paper[c] + (ink[c] - paper[c]) * values[i] * share(i);
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
  }

  function drawAnswer() {
    const t = when.value;
    const logits = !result ? new Float64Array(model.classes.length) : t < 0 ? result.logits : mean(result.stepLogits.slice(0, t + 1));
    const best = logits.indexOf(Math.max(...logits));
    const [low, high] = [Math.min(-1, ...logits), Math.max(1, ...logits)];
    const zero = -low / (high - low);
    answer.textContent = !result ? empty : t < 0 ? reads(classes[best]) : words.after(reads(classes[best]), t);
    element.dataset.logits = result ? JSON.stringify([...result.logits]) : "";
    if (result) {
      const answers = result.stepLogits.map((_, k) => mean(result.stepLogits.slice(0, k + 1))).map((sum) => classes[sum.indexOf(Math.max(...sum))]);
      const changes = answers.flatMap((name, k) => (name === answers[k - 1] ? [] : [words.from(name, k)]));
      course.textContent = words.course(changes.join(words.comma), element.dataset.milliseconds);
    } else course.textContent = "";
    bars.replaceChildren(...classes.map((name, c) => {
      const bar = h("span", { class: "bar" });
      bar.style.setProperty("--from", Math.min(zero, zero + logits[c] / (high - low)));
      bar.style.setProperty("--share", Math.abs(logits[c]) / (high - low));
      return h("li", { class: result && c === best ? "best" : "" }, h("span", { class: "token" }, name), h("span", { class: "track" }, bar), h("span", { class: "number" }, result ? show(logits[c], 2) : ""));
    }));
  }

  // -------------------------------------------------------------------------------------------------------- attention

  /** Weights of one head, a number a key token: over the queries, or of one; over time, or of one step. */
  function attention(head, softmax) {
    const n = grid * grid;
    const map = new Float64Array(n);
    if (!result) return map;
    const found = result.scores[Number(block.value)];
    const times = when.value < 0 ? [...found.keys()] : [when.value];
    const queries = query.value < 0 ? [...map.keys()] : [query.value];
    const scale = (softmax ? 1 : model.scale[Number(block.value)]) / times.length / queries.length;
    const root = Math.sqrt(model.dim / model.heads);
    for (const t of times) for (const i of queries) {
      const row = found[t].subarray((head * n + i) * n, (head * n + i + 1) * n);
      if (softmax) {
        const most = Math.max(...row);
        const powers = Array.from(row, (count) => Math.exp((count - most) / root));
        const sum = powers.reduce((a, b) => a + b, 0);
        for (let j = 0; j < n; j++) map[j] += (scale * powers[j]) / sum;
      } else for (let j = 0; j < n; j++) map[j] += scale * row[j];
    }
    return map;
  }

  const panel = (into, head) => {
    const canvas = h("canvas", { role: "img", width: side, height: side });
    canvas.addEventListener("click", (event) => {
      const [row, column] = cellOf(event, canvas, grid);
      query.value = query.value === row * grid + column ? -1 : row * grid + column;
      chosen();
    });
    into.append(h("figure", {}, canvas, h("figcaption", {}, words.head(head))));
    return canvas;
  };
  const panels = Array.from({ length: model.heads }, (_, head) => panel(heads, head));
  const softPanels = Array.from({ length: model.heads }, (_, head) => panel(softHeads, head));

  function drawAttention() {
    const most = drawMaps(panels, false);
    scaleNote.textContent = !result ? "" : most ? words.brightest(show(most, 3)) : words.noneTogether;
    const soft = drawMaps(softPanels, true);
    softNote.textContent = result ? words.brightestWeight(show(soft, 3)) : "";
  }

  function drawMaps(canvases, softmax) {
    const maps = canvases.map((_, head) => attention(head, softmax));
    const most = Math.max(...maps.flatMap((map) => [...map]));
    const [low, middle, high] = [[0, 32, 76], [124, 123, 120], [255, 234, 70]]; // dark blue, grey, yellow: even in lightness
    const mix = (a, b, share) => a.map((value, c) => value + (b[c] - value) * share);
    const pixel = 8; // of the canvas for one of the image
    const patch = side / grid;
    const now = pixelsAt(when.value), { channels } = model;
    const full = model.events ? brightest(now) : channels;
    const light = (i) => Math.min(1, now.subarray(channels * i, channels * (i + 1)).reduce((sum, value) => sum + value, 0) / full);
    for (const [head, canvas] of canvases.entries()) {
      [canvas.width, canvas.height] = [side * pixel, side * pixel];
      const context = canvas.getContext("2d");
      for (let i = 0; i < side * side; i++) {
        const [row, column] = [Math.floor(i / side), i % side];
        const share = most ? maps[head][Math.floor(row / patch) * grid + Math.floor(column / patch)] / most : 0;
        const heat = share < 0.5 ? mix(low, middle, 2 * share) : mix(middle, high, 2 * share - 1);
        context.fillStyle = `rgb(${mix(heat, [255, 255, 255], 0.4 * light(i))})`;
        context.fillRect(column * pixel, row * pixel, pixel, pixel);
      }
      if (query.value >= 0) {
        Object.assign(context, { strokeStyle: "#fff", lineWidth: 3 });
        context.strokeRect((query.value % grid) * patch * pixel, Math.floor(query.value / grid) * patch * pixel, patch * pixel, patch * pixel);
      }
      const average = maps[head].reduce((sum, value) => sum + value, 0) / maps[head].length;
      canvas.setAttribute("aria-label", (softmax ? words.softHeadLabel : words.headLabel)(head, show(Math.min(...maps[head]), 3), show(Math.max(...maps[head]), 3), show(average, 3)));
      canvas.dataset.scores = JSON.stringify([...maps[head]]);
    }
    return most;
  }

  // ---------------------------------------------------------------------------------------------------------- spikes

  const across = (features) => 2 ** Math.ceil(Math.log2(features) / 2); // maps in a row of a mosaic

  /** All neurons of a layer at one time step as a mosaic: the maps of its features side by side. */
  function mosaic(canvas, spikes, features) {
    const wideMaps = across(features);
    const edge = Math.sqrt(spikes.length / features);
    const [wide, tall] = [wideMaps * edge, Math.ceil(features / wideMaps) * edge];
    const values = new Float32Array(wide * tall);
    for (let i = 0; i < wide * tall; i++) {
      const [x, y] = [i % wide, Math.floor(i / wide)];
      const feature = Math.floor(y / edge) * wideMaps + Math.floor(x / edge);
      if (feature < features) values[i] = spikes[((y % edge) * edge + (x % edge)) * features + feature];
    }
    paint(canvas, wide, tall, values, followed(wide, edge));
  }

  /** How strongly a pixel of a mosaic is drawn: fully, or faintly where another token than the chosen one is followed. */
  function followed(wide, edge) {
    const [row, column] = [Math.floor(query.value / grid), query.value % grid];
    return (i) => {
      if (query.value < 0) return 1;
      const [x, y] = [(i % wide) % edge, Math.floor(i / wide) % edge];
      return Math.floor((y * grid) / edge) === row && Math.floor((x * grid) / edge) === column ? 1 : 0.25;
    };
  }

  let rows = []; // of the picture of all layers
  function drawRasters() {
    rows = [];
    if (!result) {
      rasters.replaceChildren(h("p", { class: "play-note" }, empty));
      return;
    }
    rasters.style.setProperty("--steps", steps.value);
    const elements = Object.entries(result.layers).flatMap(([layer, spikes]) => {
      const ones = spikes.reduce((sum, step) => sum + step.reduce((a, b) => a + b, 0), 0);
      const rate = ones / (spikes.length * spikes[0].length);
      const features = featuresOf(model, layer);
      const bar = h("span", { class: "rate" });
      bar.style.setProperty("--share", rate);
      const kind = { q: "q", k: "k", v: "v" }[layer.split(".").at(-1)] ?? "";
      const cells = spikes.map((step, t) => cell((event, canvas) => {
        const edge = Math.sqrt(step.length / features), wide = across(features);
        const box = canvas.getBoundingClientRect();
        const x = Math.min(wide * edge - 1, Math.floor(((event.clientX - box.left) / box.width) * wide * edge));
        const y = Math.floor(((event.clientY - box.top) / box.height) * Math.ceil(features / wide) * edge);
        const feature = Math.min(features - 1, Math.floor(y / edge) * wide + Math.floor(x / edge));
        stop();
        when.value = t;
        pick(layer, nearest(step, features, edge, y % edge, x % edge, feature));
        reveal();
      }));
      rows.push({ layer, features, cells, draw: (canvas, t) => mosaic(canvas, spikes[t], features) });
      const element = h("div", { class: `play-raster ${kind}`, "data-layer": layer, "data-rate": rate },
        h("span", { class: "name" }, h("span", {}, layer.split(/(?<=\.)/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]))), h("span", { class: "share" }, `${show(100 * rate, 1)} %`), bar),
        h("div", { class: "play-steps", role: "img", "aria-label": words.raster(layer, show(100 * rate, 1), spikes.map((step) => step.reduce((a, b) => a + b, 0)).join(", ")) }, cells));
      return layer.endsWith(".attn.v") ? [element, scoresRow(Number(layer.match(/\d+/)[0]))] : [element];
    });
    rasters.replaceChildren(
      h("div", { class: "play-raster head" }, h("span", {}, words.rasterHead), h("div", { class: "play-steps" }, Array.from({ length: steps.value }, (_, t) => h("span", {}, `t = ${t}`)))),
      plainRow(model.events ? "frames" : "pixels", model.events ? words.frames : words.pixels, model.events ? words.framesNote : words.pixelsNote, token,
        (canvas, t) => paint(canvas, side, side, pixelsAt(t), model.channels < 3 ? followed(side, side) : undefined)),
      ...elements,
      plainRow("logits", words.logitsRow, words.logitsNote(classes[0], classes.at(-1)), () => {}, drawLogits));
  }

  /** A canvas of the picture of all layers, and what pressing it does. */
  function cell(pressed) {
    const canvas = h("canvas", {});
    canvas.addEventListener("click", (event) => pressed(event, canvas));
    return h("div", { class: "play-cell" }, canvas);
  }

  /** Pressing a place makes it the token that is followed; once more, none. */
  function token(event, canvas) {
    const [row, column] = cellOf(event, canvas, grid);
    query.value = query.value === row * grid + column ? -1 : row * grid + column;
    chosen();
  }

  /** A row of the picture that is no layer of neurons; `key` names it in data-row. */
  function plainRow(key, name, note, pressed, draw) {
    const cells = Array.from({ length: steps.value }, () => cell(pressed));
    rows.push({ cells, draw });
    return h("div", { class: "play-raster extra", "data-row": key },
      h("span", { class: "name" }, h("span", {}, name), h("span", {}), h("span", { class: "play-note" }, note)), h("div", { class: "play-steps", role: "img", "aria-label": words.eachStep(name) }, cells));
  }

  /** The scores of a block: of the token that is followed, else the mean of all, over the heads. */
  function scoresRow(number) {
    const n = grid * grid;
    const map = (t) => {
      const found = result.scores[number][t], values = new Float32Array(n);
      for (let head = 0; head < model.heads; head++) for (let i = 0; i < n; i++) {
        if (query.value >= 0 && i !== query.value) continue;
        for (let j = 0; j < n; j++) values[j] += found[(head * n + i) * n + j];
      }
      return values;
    };
    return plainRow(`scores, block ${number}`, words.scores(number), words.scoresNote, token, (canvas, t) => {
      const most = Math.max(1e-9, ...result.layers["sps.3"].flatMap((_, k) => [...map(k)]));
      paint(canvas, grid, grid, map(t).map((value) => value / most));
    });
  }

  /** The logits after each step, as bars around 0. */
  function drawLogits(canvas, t) {
    const logits = mean(result.stepLogits.slice(0, t + 1));
    const most = Math.max(...logits.map(Math.abs)), best = logits.indexOf(Math.max(...logits));
    const count = logits.length;
    [canvas.width, canvas.height] = [12 * count, 60];
    const context = canvas.getContext("2d");
    logits.forEach((value, c) => {
      context.fillStyle = `rgb(${colour(element, c === best ? "--play-membrane" : "--play-ink")})`;
      context.fillRect(12 * c + 2, value > 0 ? 30 - (28 * value) / most : 30, 8, (28 * Math.abs(value)) / most);
    });
  }

  /** The neuron under a finger is smaller than a finger: a neighbour that fired is meant before one that did not. */
  function nearest(step, features, edge, row, column, feature) {
    let best = (row * edge + column) * features + feature, least = step[best] ? 0 : 3;
    for (let dy = -2; dy <= 2; dy++) for (let dx = -2; dx <= 2; dx++) {
      const [y, x] = [row + dy, column + dx];
      if (y < 0 || x < 0 || y >= edge || x >= edge) continue;
      const index = (y * edge + x) * features + feature;
      if (step[index] && Math.hypot(dy, dx) < least) [best, least] = [index, Math.hypot(dy, dx)];
    }
    return best;
  }

  /** Which steps are shown, which token is followed, which neuron is chosen. */
  function markRasters() {
    const playing = timer !== 0;
    for (const row of rows) {
      const { layer, features, cells } = row;
      if (row.drawn !== query.value) cells.forEach((cell, t) => row.draw(cell.firstChild, t));
      row.drawn = query.value;
      const place = layer && neuron?.layer === layer ? placeOf(model, result, layer, neuron.index) : null;
      cells.forEach((cell, t) => {
        cell.classList.toggle("now", t === when.value);
        cell.classList.toggle("later", playing && t > when.value);
        cell.querySelector(".play-mark")?.remove();
        if (!place) return;
        const wide = across(features), tall = Math.ceil(features / wide);
        const mark = h("i", { class: "play-mark" });
        mark.style.left = `${(100 * (place.feature % wide + (place.column + 0.5) / place.side)) / wide}%`;
        mark.style.top = `${(100 * (Math.floor(place.feature / wide) + (place.row + 0.5) / place.side)) / tall}%`;
        cell.append(mark);
      });
    }
  }

  // ---------------------------------------------------------------------------------------------------- one neuron

  function pick(layer, index) {
    neuron = { layer, index };
    touched = true;
    drawTime();
  }

  /** On a narrow page the answer stands below: bring it into view. */
  function reveal() {
    const box = why.parentElement.getBoundingClientRect();
    if (box.top < 0 || box.top > innerHeight - 200) why.parentElement.scrollIntoView({ block: "start" });
  }

  const names = Object.keys(model.neurons).filter((name) => !name.endsWith(".qkv"));
  const title = newId("why");
  const which = select(whyWords.layer, "layer", ordered(model, names).map((name) => [name, name]), "", () => {
    const place = placeOf(model, result, which.value, 0);
    pick(which.value, Math.min(Math.floor(place.side / 2) * (place.side + 1) * place.features, result.layers[which.value][0].length - 1));
  });
  const feature = slider(whyWords.feature, { min: 0, max: 1, step: 1, value: 0, name: "feature", format: String, fine: true }, moved);
  const spot = slider(whyWords.token, { min: 0, max: 1, step: 1, value: 0, name: "place", format: String, fine: true }, moved);
  const map = h("canvas", { class: "play-map", tabindex: "0", role: "application", "aria-label": whyWords.map });
  const trace = s("svg", { role: "img", "aria-labelledby": title, class: "play-trace", height: HEIGHT });
  const sentence = h("p", { class: "play-equation", "aria-live": "polite" });
  const because = h("p", { class: "play-because" });
  const parts = h("ol", { class: "play-parts" });
  const where = h("p", { class: "play-said" });
  why.append(h("div", { class: "play-choose" }, which.element, feature.element, spot.element), where, trace, sentence, because, parts,
    h("figure", {}, map, h("figcaption", {}, whyWords.mapCaption)));

  function moved() {
    const place = placeOf(model, result, neuron.layer, neuron.index);
    pick(neuron.layer, spot.value * place.features + feature.value);
  }
  map.addEventListener("click", (event) => {
    const place = placeOf(model, result, neuron.layer, neuron.index);
    const [row, column] = cellOf(event, map, place.side);
    pick(neuron.layer, (row * place.side + column) * place.features + place.feature);
  });
  map.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (down === undefined || !result) return;
    event.preventDefault();
    const place = placeOf(model, result, neuron.layer, neuron.index);
    const [row, column] = [place.row + down, place.column + right].map((at) => Math.max(0, Math.min(place.side - 1, at)));
    pick(neuron.layer, (row * place.side + column) * place.features + place.feature);
  });
  trace.addEventListener("click", (event) => {
    const box = trace.getBoundingClientRect();
    when.value = Math.max(0, Math.min(steps.value - 1, Math.floor(((event.clientX - box.left - 38) / (box.width - 46)) * steps.value)));
    chosen();
  });

  function drawWhy() {
    why.hidden = !result;
    if (!result) return;
    const { layer, index } = neuron;
    const place = placeOf(model, result, layer, index);
    const steps_ = traceOf(model, result, layer, index);
    const threshold = thresholdOf(model, layer);
    const fired = steps_.map((row) => row.spike);
    const t = when.value >= 0 ? when.value : Math.max(0, fired.indexOf(1)); // else the first step in which it fires
    const beta = model.neurons[layer].beta;
    which.value = layer;
    feature.input.max = place.features - 1;
    feature.value = place.feature;
    spot.input.max = place.side ** 2 - 1;
    spot.value = place.row * place.side + place.column;
    spot.element.firstChild.textContent = place.side === grid ? whyWords.token : whyWords.place;
    heading.textContent = fired.includes(1) ? whyWords.heading : whyWords.headingSilent;
    const fires = fired.includes(1) ? whyWords.firesAt(fired.flatMap((spike, k) => (spike ? [k] : [])).join(", ")) : whyWords.neverFires;
    where.textContent = place.side === grid
      ? whyWords.ofToken(layer, place.feature, place.row * grid + place.column, place.row, place.column, fires)
      : whyWords.atPlace(layer, place.feature, place.row, place.column, fires);
    drawTrace(trace, steps_, { threshold, step: t, title, what: strings.trace.neuronOf(index, layer) });
    sentence.textContent = explain(steps_[t], { beta, threshold, reset: "hard", tie: ">=" }, t);
    const { bias, parts: found } = inputsOf(model, result, layer, index, t);
    const [up, down] = [found.filter(({ part }) => part > 0), found.filter(({ part }) => part < 0)];
    const sum = (list) => list.reduce((total, { part }) => total + part, 0);
    const attends = layer.endsWith(".attn.attn");
    const current = `X[${t}] = ${show(steps_[t].x, 3)}`;
    const outside = layer === "sps.0"; // its inputs are no spikes
    because.textContent = attends ? whyWords.keys(current, found.length)
      : (!outside ? whyWords.inputs : model.events ? whyWords.counts : whyWords.pixels)(current, show(bias, 3), up.length, show(sum(up), 3), down.length, show(-sum(down), 3));
    const most = Math.max(1e-9, ...found.map(({ part }) => Math.abs(part)));
    const sources = sourcesOf(model, layer);
    const from = outside ? whyWords.pixel : attends ? whyWords.key : sources.length > 1 ? whyWords.residual : sources[0];
    const line = (part) => {
      const single = attends || (outside && model.channels === 1); // there is one of them at a place
      const name = outside && model.events ? whyWords.polarity[part.feature](part.row, part.column)
        : (single ? whyWords.part : whyWords.partFeature)(from, part.row, part.column, part.feature);
      const behind = neuronBehind(model, result, layer, part, t);
      const bar = h("span", { class: `bar ${part.part < 0 ? "minus" : ""}` });
      bar.style.setProperty("--share", Math.abs(part.part) / most);
      return h("li", {}, behind ? button(name, () => { when.value = t; pick(behind.layer, behind.index); }, { title: whyWords.behind(behind.layer) }) : h("span", {}, name),
        h("span", { class: "track" }, bar), h("span", { class: "number" }, `${part.value === 1 ? "" : `${show(part.value, 2)} \u00b7 `}${show(part.weight, 3)}`));
    };
    const rest = found.slice(SHOWN);
    parts.replaceChildren(...found.slice(0, SHOWN).map(line),
      rest.length ? h("li", { class: "rest" }, h("span", {}, whyWords.smaller(rest.length)), h("span", {}), h("span", { class: "number" }, show(sum(rest), 3))) : "");
    const spikes = result.layers[layer][t];
    const values = Float32Array.from({ length: place.side ** 2 }, (_, i) => spikes[i * place.features + place.feature]);
    const zoom = Math.max(1, Math.floor(256 / place.side));
    const [wide, edge] = [place.side * zoom, place.side];
    paint(map, wide, wide, Float32Array.from({ length: wide * wide }, (_, i) => values[Math.floor(i / wide / zoom) * edge + Math.floor((i % wide) / zoom)]));
    const context = map.getContext("2d");
    context.strokeStyle = `rgba(${colour(element, "--play-ink")}, 0.15)`;
    for (let i = 1; i < edge; i++) for (const [x, y, w, tall] of [[i * zoom, 0, 0, wide], [0, i * zoom, wide, 0]]) context.strokeRect(x, y, w, tall);
    Object.assign(context, { strokeStyle: `rgb(${colour(element, "--play-membrane")})`, lineWidth: Math.max(2, zoom / 8) });
    context.strokeRect(place.column * zoom, place.row * zoom, zoom, zoom);
    Object.assign(why.dataset, { neuron: layer, index, t, current: JSON.stringify(steps_.map((row) => row.x)), parts: JSON.stringify([bias, ...found.map(({ part }) => part)]) });
  }

  // ------------------------------------------------------------------------------------------------ picture to share

  /** The picture that "copy image" gives: the image, the answer, the neuron, and every spike. */
  function picture() {
    const canvas = h("canvas", { width: 1200, height: 630 });
    const context = canvas.getContext("2d");
    const [ink, paper] = [`rgb(${colour(element, "--play-ink")})`, `rgb(${colour(element, "--play-paper")})`];
    const rectangle = (fill, ...box) => { context.fillStyle = fill; context.fillRect(...box); };
    const text = (line, x, y, font) => { context.fillStyle = ink; context.font = `${font} sans-serif`; context.fillText(line, x, y); };
    rectangle(paper, 0, 0, 1200, 630);
    context.imageSmoothingEnabled = false;
    context.drawImage(seen, 40, 40, 240, 240);
    context.strokeStyle = ink;
    context.strokeRect(40, 40, 240, 240);
    text(answer.textContent, 40, 330, "bold 30px");
    if (result) {
      const low = Math.min(...result.logits), high = Math.max(...result.logits);
      classes.forEach((name, c) => {
        text(name, 40, 372 + 22 * c, "16px");
        const left = model.events ? 180 : 130; // their classes have long names
        rectangle(c === result.logits.indexOf(high) ? `rgb(${colour(element, "--play-membrane")})` : "#888", left, 360 + 22 * c, ((280 - left) * (result.logits[c] - low)) / (high - low || 1), 13);
      });
      context.strokeStyle = `rgba(${colour(element, "--play-ink")}, 0.2)`;
      const layers = rows.filter(({ layer }) => layer);
      const columns = 3, perColumn = Math.ceil(layers.length / columns);
      const size = Math.min(60, (520 / perColumn) * 0.76, 272 / steps.value - 4);
      layers.forEach(({ layer, cells }, i) => {
        const [x, y] = [320 + 290 * Math.floor(i / perColumn), 50 + (520 / perColumn) * (i % perColumn)];
        text(layer, x, y, "13px");
        cells.forEach((cell, t) => {
          const box = [x + (size + 4) * t, y + 5, size, size * Math.min(1, cell.firstChild.height / cell.firstChild.width)];
          context.drawImage(cell.firstChild, ...box);
          context.strokeRect(...box);
        });
      });
    }
    text(`${words.picture(model.name, steps.value - 1)} \u00b7 spikformer_edu`, 320, 610, "16px");
    return canvas;
  }

  onLook(element, () => {
    for (const row of rows) row.drawn = undefined;
    drawTime();
  });
  if (inside(asked.t, 0, steps.value - 1) !== undefined) when.value = Number(asked.t);
  return {
    steps,
    /** Shows what the network makes of pixels [H][W][C] in [0, 1], or of the T frames that a function of T gives; null: of nothing. */
    show(pixels, { playing = false } = {}) {
      stop();
      source = pixels;
      update();
      if (playing && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
    },
    /** Goes to a time step, -1 for all. */
    at(t) {
      stop();
      when.value = t;
      chosen();
    },
    remember,
    get asked() { return "layer" in asked || "t" in asked || "token" in asked; },
  };
}

/** The row and the column of a grid over an element that was pressed. */
function cellOf(event, element, cells) {
  const box = element.getBoundingClientRect();
  const at = (value, start, length) => Math.max(0, Math.min(cells - 1, Math.floor(((value - start) / length) * cells)));
  return [at(event.clientY, box.top, box.height), at(event.clientX, box.left, box.width)];
}

/** Layer names in network order. */
function ordered(model, names) {
  const order = (name) => {
    const [block] = name.match(/\d+/) ?? ["0"];
    const part = ["attn.q", "attn.k", "attn.v", "attn.attn", "attn.proj", "mlp.hidden", "mlp.out"].findIndex((end) => name.endsWith(end));
    return name.startsWith("sps") ? (name === "sps.rpe" ? 4 : Number(block)) : 5 + 10 * Number(block) + part;
  };
  return [...names].sort((a, b) => order(a) - order(b));
}

/** A text as a whole number within bounds, else undefined. */
function inside(text, low, high) {
  const value = /^\d+$/.test(text ?? "") ? Number(text) : NaN;
  return value >= low && value <= high ? value : undefined;
}

const mean = (lists) => lists[0].map((_, c) => lists.reduce((sum, list) => sum + list[c], 0) / lists.length);
