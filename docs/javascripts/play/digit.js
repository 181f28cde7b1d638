// A drawn digit goes through the packaged Spikformer, and every spike of it is shown.
import { rasterise, SIDE } from "./drawing.js";
import { SAMPLES } from "./samples.js";
import { forward, normalise, readModel } from "./spikformer.js";
import { button, choice, colour, h, hidden, newId, onLook, select, show, slider } from "./ui.js";

export const UNITS = 280; // of the drawing area, along each side
const ASSETS = new URL("../../assets/play/", import.meta.url);

async function load(name) {
  const response = await fetch(new URL(name, ASSETS));
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

async function loadModel() {
  const [header, weights] = await Promise.all([load("model.json"), load("model.bin")]);
  return readModel(await header.json(), await weights.arrayBuffer());
}

export async function mount(element) {
  const note = h("p", { class: "play-note", role: "status" }, "Loading the network \u2026");
  element.replaceChildren(note);
  let model;
  try {
    model = await loadModel();
  } catch (error) {
    note.textContent = `The network could not be loaded (${error.message}). Reload the page; opened as a file and not from a server, it cannot load anything.`;
    return;
  }

  let strokes = [];
  let image = new Float32Array(SIDE * SIDE);
  let result = null;
  const pen = { x: UNITS / 2, y: UNITS / 2, down: false, shown: false };

  // Left: the drawing area and its controls.
  const help = newId("help");
  const pad = h("canvas", { width: 2 * UNITS, height: 2 * UNITS, class: "play-pad", tabindex: "0", role: "application",
    "aria-label": "Drawing area", "aria-describedby": help });
  const penState = h("span", { class: "play-pen-state", "aria-live": "polite" });
  const sample = select("Sample drawing", "sample", [["", "choose one"], ...SAMPLES.map(({ name }, i) => [String(i), name])], "", () => {
    if (sample.value === "") return;
    strokes = structuredClone(SAMPLES[Number(sample.value)].strokes);
    update();
  });
  const steps = slider("Time steps T", { min: 1, max: 8, step: 1, value: model.timeSteps, name: "steps" }, () => update());

  // Right: what the network reads.
  const answer = h("p", { class: "play-answer", role: "status", "aria-live": "polite" });
  const seen = h("canvas", { width: SIDE, height: SIDE, class: "play-seen", role: "img", "aria-label": "The 32 by 32 pixels that the network sees" });
  const bars = h("ol", { class: "play-classes", "aria-label": "Logit of each class" });
  const course = h("p", { class: "play-note" });

  // Below: attention and rasters.
  const block = choice("Encoder block", "block", Array.from({ length: model.depth }, (_, i) => [String(i), String(i)]), "0", drawAttention);
  const when = slider("Time step", { min: -1, max: model.timeSteps - 1, step: 1, value: -1, name: "when", format: (t) => (t < 0 ? "mean of all" : `t = ${t}`) }, drawAttention);
  const grid = model.imageSize / 2 ** model.pool.filter(Boolean).length; // tokens along a side
  const query = slider("Query token", { min: -1, max: grid * grid - 1, step: 1, value: -1, name: "query",
    format: (n) => (n < 0 ? "mean of all" : `row ${Math.floor(n / grid)}, column ${n % grid}`) }, drawAttention);
  const heads = h("div", { class: "play-heads" });
  const scaleNote = h("p", { class: "play-note" });
  const rasters = h("div", { class: "play-rasters" });

  element.replaceChildren(
    h("div", { class: "play-digit" },
      h("div", { class: "play-draw" }, pad,
        h("p", { id: help, class: "play-note" }, "Draw with mouse, finger or pen. With the keyboard: arrow keys move the pen, the space bar puts it down and lifts it, Backspace takes the last stroke back. ", penState),
        h("div", { class: "play-buttons" },
          button("Undo", undo, { "data-action": "undo" }),
          button("Clear", () => { strokes = []; sample.value = ""; update(); }, { "data-action": "clear" })),
        h("div", { class: "play-controls" }, sample.element, steps.element)),
      h("div", { class: "play-read" }, answer,
        h("div", { class: "play-columns" }, h("figure", {}, seen, h("figcaption", {}, "what the network sees")), bars), course)),
    hidden(element, "attention") ? "" : h("section", {}, h("h2", {}, "What each head attends to"),
      h("p", {}, "Q K\u1d40 s over the drawing: the brighter a place, the more features of its key fire together with the query\u2019s. No softmax: a head may attend to nothing at all. Press a place to make it the query."),
      h("div", { class: "play-controls" }, block.element, when.element, query.element), heads, scaleNote),
    hidden(element, "rasters") ? "" : h("section", {}, h("h2", {}, "Every spike"),
      h("p", {}, "Time runs to the right, one picture for each time step. A picture holds all neurons of a layer: each small square in it is one feature, laid out as the image is, and each mark is one spike. The number is the firing rate."),
      rasters));

  // Pointers: mouse, finger and pen alike.
  const position = (event) => {
    const box = pad.getBoundingClientRect();
    const along = (value, start, length) => Math.round(Math.max(0, Math.min(1, (value - start) / length)) * UNITS);
    return [along(event.clientX, box.left, box.width), along(event.clientY, box.top, box.height)];
  };
  let drawing = false;
  pad.addEventListener("pointerdown", (event) => {
    if (drawing || event.button) return; // a second finger does not draw
    drawing = true;
    pen.down = pen.shown = false;
    pad.setPointerCapture(event.pointerId);
    strokes.push([position(event)]);
    sample.value = "";
    update();
  });
  pad.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) strokes.at(-1).push(position(each));
    later();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    pad.addEventListener(end, () => {
      if (drawing) update();
      drawing = false;
    });
  }
  pad.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? 28 : 7;
    const [right, down] = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] }[event.key] ?? [];
    if (right !== undefined) {
      pen.x = Math.max(0, Math.min(UNITS, pen.x + right));
      pen.y = Math.max(0, Math.min(UNITS, pen.y + down));
      if (pen.down) strokes.at(-1).push([pen.x, pen.y]);
    } else if (event.key === " ") {
      pen.down = !pen.down;
      if (pen.down) strokes.push([[pen.x, pen.y]]);
      sample.value = "";
    } else if (event.key === "Backspace") undo();
    else return;
    event.preventDefault();
    pen.shown = true;
    penState.textContent = pen.down ? "The pen is down." : "The pen is up.";
    update();
  });
  pad.addEventListener("blur", () => {
    pen.shown = pen.down = false;
    penState.textContent = "";
    drawPad();
  });

  function undo() {
    strokes.pop();
    pen.down = false;
    sample.value = "";
    update();
  }

  // While a stroke is being drawn, five answers a second are enough.
  let waiting = 0;
  function later() {
    drawPad();
    waiting ||= setTimeout(update, 200);
  }

  function update() {
    clearTimeout(waiting);
    waiting = 0;
    image = rasterise(strokes);
    const start = performance.now();
    result = strokes.length ? forward(model, normalise(image, model), steps.value) : null;
    const took = performance.now() - start;
    when.input.max = steps.value - 1;
    when.value = Math.min(when.value, steps.value - 1);
    element.dataset.milliseconds = took.toFixed(1);
    element.dataset.pixels = JSON.stringify([...image]);
    drawAll();
  }

  function drawAll() {
    drawPad();
    drawSeen();
    drawAnswer();
    drawAttention();
    drawRasters();
  }

  function drawPad() {
    const context = pad.getContext("2d");
    context.setTransform(2, 0, 0, 2, 0, 0);
    context.clearRect(0, 0, UNITS, UNITS);
    const ink = `rgb(${colour(element, "--play-ink")})`;
    Object.assign(context, { strokeStyle: ink, fillStyle: ink, lineWidth: 14, lineCap: "round", lineJoin: "round" });
    for (const stroke of strokes) {
      context.beginPath();
      context.moveTo(...stroke[0]);
      for (const point of stroke) context.lineTo(...point);
      context.stroke();
    }
    if (!strokes.length) {
      context.globalAlpha = 0.6;
      context.font = "20px sans-serif";
      context.textAlign = "center";
      context.fillText("Draw a digit here", UNITS / 2, UNITS / 2);
      context.globalAlpha = 1;
    }
    if (pen.shown) {
      Object.assign(context, { lineWidth: 3, strokeStyle: `rgb(${colour(element, "--play-q")})` });
      context.beginPath();
      context.arc(pen.x, pen.y, pen.down ? 6 : 11, 0, 7);
      context.stroke();
    }
    element.dataset.strokes = strokes.length;
  }

  function drawSeen() {
    paint(seen, SIDE, SIDE, (i) => image[i]);
  }

  /** Fills a canvas with shares of ink on paper. */
  function paint(canvas, wide, tall, share) {
    [canvas.width, canvas.height] = [wide, tall];
    const [ink, paper] = [colour(element, "--play-ink"), colour(element, "--play-paper")];
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(wide, tall);
    for (let i = 0; i < wide * tall; i++) {
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = paper[c] + (ink[c] - paper[c]) * share(i);
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
  }

  function drawAnswer() {
    const logits = result?.logits ?? new Float64Array(model.classes.length);
    const best = logits.indexOf(Math.max(...logits));
    const [low, high] = [Math.min(-1, ...logits), Math.max(1, ...logits)];
    const zero = -low / (high - low);
    const answers = result?.stepLogits.map((_, t) => {
      const sums = model.classes.map((_, c) => result.stepLogits.slice(0, t + 1).reduce((sum, step) => sum + step[c], 0));
      return model.classes[sums.indexOf(Math.max(...sums))];
    });
    answer.textContent = result ? `Reads ${model.classes[best]}` : "Nothing drawn yet";
    element.dataset.answer = result ? model.classes[best] : "";
    element.dataset.logits = result ? JSON.stringify([...logits]) : "";
    course.textContent = result
      ? `Answer after each time step: ${answers.join(", ")}. This took ${element.dataset.milliseconds} ms.`
      : "The answer is the class with the largest logit, the mean over tokens and time steps.";
    bars.replaceChildren(...model.classes.map((name, c) => {
      const bar = h("span", { class: "bar" });
      bar.style.setProperty("--from", Math.min(zero, zero + logits[c] / (high - low)));
      bar.style.setProperty("--share", Math.abs(logits[c]) / (high - low));
      return h("li", { class: result && c === best ? "best" : "" }, h("span", { class: "token" }, name), h("span", { class: "track" }, bar), h("span", { class: "number" }, result ? show(logits[c], 2) : ""));
    }));
  }

  /** Mean scores of one head, a number a key token: over the queries, or of one; over time, or of one step. */
  function attention(head) {
    const n = grid * grid;
    const map = new Float64Array(n);
    if (!result) return map;
    const found = result.scores[Number(block.value)];
    const times = when.value < 0 ? [...found.keys()] : [when.value];
    const queries = query.value < 0 ? [...map.keys()] : [query.value];
    const scale = model.scale[Number(block.value)] / times.length / queries.length;
    for (const t of times) for (const i of queries) for (let j = 0; j < n; j++) map[j] += scale * found[t][(head * n + i) * n + j];
    return map;
  }

  const panels = Array.from({ length: model.heads }, (_, head) => {
    const canvas = h("canvas", { role: "img", width: SIDE, height: SIDE });
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      const at = (value, start, length) => Math.min(grid - 1, Math.floor(((value - start) / length) * grid));
      query.value = at(event.clientY, box.top, box.height) * grid + at(event.clientX, box.left, box.width);
      drawAttention();
    });
    heads.append(h("figure", {}, canvas, h("figcaption", {}, `head ${head}`)));
    return canvas;
  });

  function drawAttention() {
    const maps = panels.map((_, head) => attention(head));
    const most = Math.max(...maps.flatMap((map) => [...map]));
    const [low, middle, high] = [[0, 32, 76], [124, 123, 120], [255, 234, 70]]; // dark blue, grey, yellow: even in lightness
    const mix = (a, b, share) => a.map((value, c) => value + (b[c] - value) * share);
    const pixel = 8; // of the canvas for one of the image
    const patch = SIDE / grid;
    for (const [head, canvas] of panels.entries()) {
      [canvas.width, canvas.height] = [SIDE * pixel, SIDE * pixel];
      const context = canvas.getContext("2d");
      for (let i = 0; i < SIDE * SIDE; i++) {
        const [row, column] = [Math.floor(i / SIDE), i % SIDE];
        const share = most ? maps[head][Math.floor(row / patch) * grid + Math.floor(column / patch)] / most : 0;
        const heat = share < 0.5 ? mix(low, middle, 2 * share) : mix(middle, high, 2 * share - 1);
        context.fillStyle = `rgb(${mix(heat, [255, 255, 255], 0.4 * image[i])})`;
        context.fillRect(column * pixel, row * pixel, pixel, pixel);
      }
      if (query.value >= 0) {
        Object.assign(context, { strokeStyle: "#fff", lineWidth: 3 });
        context.strokeRect((query.value % grid) * patch * pixel, Math.floor(query.value / grid) * patch * pixel, patch * pixel, patch * pixel);
      }
      const mean = maps[head].reduce((sum, value) => sum + value, 0) / maps[head].length;
      canvas.setAttribute("aria-label", `Head ${head}: scores from 0 to ${show(Math.max(...maps[head]), 2)}, mean ${show(mean, 2)}`);
      canvas.dataset.scores = JSON.stringify([...maps[head]]);
    }
    scaleNote.textContent = !result ? "Draw something first." : most ? `Dark: 0. Brightest: Q K\u1d40 s = ${show(most, 3)}, the same in all heads.` : "No query and no key fire together here.";
  }

  /** All neurons of a layer at one time step as a mosaic: the maps of its features side by side. */
  function mosaic(canvas, spikes, channels) {
    const places = spikes.length / channels;
    const side = Math.sqrt(places);
    const across = 2 ** Math.ceil(Math.log2(channels) / 2); // maps in a row
    const [wide, tall] = [across * side, (channels / across) * side];
    paint(canvas, wide, tall, (i) => {
      const [x, y] = [i % wide, Math.floor(i / wide)];
      const channel = Math.floor(y / side) * across + Math.floor(x / side);
      return spikes[((y % side) * side + (x % side)) * channels + channel];
    });
  }

  function drawRasters() {
    if (hidden(element, "rasters")) return;
    if (!result) {
      rasters.replaceChildren(h("p", { class: "play-note" }, "Draw something first."));
      return;
    }
    rasters.style.setProperty("--steps", steps.value);
    rasters.replaceChildren(
      h("div", { class: "play-raster head" }, h("span", {}, "layer, firing rate"), h("div", { class: "play-steps" }, Array.from({ length: steps.value }, (_, t) => h("span", {}, `t = ${t}`)))),
      ...Object.entries(result.layers).map(([name, spikes]) => {
        const ones = spikes.reduce((sum, step) => sum + step.reduce((a, b) => a + b, 0), 0);
        const rate = ones / (spikes.length * spikes[0].length);
        const channels = model.tensors[`${name}.bias`]?.length ?? model.dim;
        const bar = h("span", { class: "rate" });
        bar.style.setProperty("--share", rate);
        const kind = { q: "q", k: "k", v: "v" }[name.split(".").at(-1)] ?? "";
        return h("div", { class: `play-raster ${kind}`, "data-layer": name, "data-rate": rate },
          h("span", { class: "name" }, h("span", {}, name.split(/(?<=\.)/).flatMap((part, i) => (i ? [h("wbr"), part] : [part]))), h("span", { class: "share" }, `${show(100 * rate, 1)} %`), bar),
          h("div", { class: "play-steps", role: "img", "aria-label": `${name}: firing rate ${show(100 * rate, 1)} percent, ${spikes.map((step) => step.reduce((a, b) => a + b, 0)).join(", ")} spikes in the time steps` },
            spikes.map((step) => {
              const canvas = h("canvas", {});
              mosaic(canvas, step, channels);
              return canvas;
            })));
      }));
  }

  onLook(element, drawAll);
  update();
}
