// A drawn digit goes through the packaged Spikformer, and every spike of it is shown.
import { rasterise, SIDE } from "./drawing.js";
import { SAMPLES } from "./samples.js";
import { packStrokes, readState, unpackStrokes } from "./share.js";
import { strings } from "./strings.js";
import { button, colour, h, newId, onLook, s } from "./ui.js";
import { loadModel, networkView } from "./view.js";

const words = strings.digit;

export const UNITS = 280; // of the drawing area, along each side
const FIRST = 7; // the sample that the page opens with

export async function mount(element) {
  const model = await loadModel(element);
  if (!model) return;
  const asked = readState();
  let strokes = [];
  let sample = "";
  let touched = false;
  const pen = { x: UNITS / 2, y: UNITS / 2, down: false, shown: false };

  const help = newId("help");
  const pad = h("canvas", { width: 2 * UNITS, height: 2 * UNITS, class: "play-pad", tabindex: "0", role: "application",
    "aria-label": words.pad, "aria-describedby": help });
  const penState = h("span", { class: "play-pen-state", "aria-live": "polite" });
  const samples = SAMPLES.map(({ strokes: lines }, i) => button([
    s("svg", { viewBox: `0 0 ${UNITS} ${UNITS}`, "aria-hidden": "true" }, lines.map((points) => s("polyline", { points: points.join(" ") })))],
  () => {
    choose(i);
    touched = true;
    update({ playing: true });
  }, { "aria-label": words.sample(words.sampleNames[i]), title: words.sampleNames[i], "data-sample": i, class: "play-sample" }));
  const input = h("div", { class: "play-draw" }, pad,
    h("div", { class: "play-buttons" },
      button(words.clear, () => {
        [strokes, sample, touched] = [[], "", true];
        update();
      }, { "data-action": "clear" }),
      button(words.undo, undo, { "data-action": "undo" }), penState));
  const below = h("div", { class: "play-samples", role: "group", "aria-label": words.samples }, ...samples);
  const hint = h("p", { id: help, class: "play-note play-help" }, words.help, h("span", { class: "play-keys" }, words.keys));

  const view = networkView(element, model, {
    input, below: h("div", {}, below, hint),
    state: () => ({ sample, d: sample === "" && strokes.length ? packStrokes(strokes) : "", touched }),
    reads: words.reads, empty: words.empty,
  });

  function choose(i) {
    strokes = structuredClone(SAMPLES[i].strokes);
    sample = String(i);
  }

  // Pointers: mouse, finger and pen alike.
  const position = (event) => {
    const box = pad.getBoundingClientRect();
    const along = (value, start, length) => Math.round(Math.max(0, Math.min(1, (value - start) / length)) * UNITS);
    return [along(event.clientX, box.left, box.width), along(event.clientY, box.top, box.height)];
  };
  let drawing = false;
  pad.addEventListener("pointerdown", (event) => {
    if (drawing || event.button) return; // a second finger does not draw
    drawing = touched = true;
    pen.down = pen.shown = false;
    pad.setPointerCapture(event.pointerId);
    if (sample !== "") strokes = []; // one's own drawing does not go on top of a sample
    sample = "";
    strokes.push([position(event)]);
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
      if (pen.down) {
        if (sample !== "") strokes = [];
        strokes.push([[pen.x, pen.y]]);
      }
      [sample, touched] = ["", true];
    } else if (event.key === "Backspace") undo();
    else return;
    event.preventDefault();
    pen.shown = true;
    penState.textContent = pen.down ? words.penDown : words.penUp;
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
    [sample, touched] = ["", true];
    update();
  }

  // While a stroke is being drawn, five answers a second are enough.
  let waiting = 0;
  function later() {
    drawPad();
    waiting ||= setTimeout(update, 200);
  }

  function update(how) {
    clearTimeout(waiting);
    waiting = 0;
    drawPad();
    view.show(strokes.length ? rasterise(strokes) : null, how);
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
    if (!touched || !strokes.length) {
      context.globalAlpha = 0.75;
      context.font = "17px sans-serif";
      context.textAlign = "center";
      context.fillText(strokes.length ? words.drawOwn : words.drawHere, UNITS / 2, UNITS - 8);
      context.globalAlpha = 1;
    }
    if (pen.shown) {
      Object.assign(context, { lineWidth: 3, strokeStyle: `rgb(${colour(element, "--play-q")})` });
      context.beginPath();
      context.arc(pen.x, pen.y, pen.down ? 6 : 11, 0, 7);
      context.stroke();
    }
    element.dataset.strokes = strokes.length;
    for (const [i, each] of samples.entries()) each.setAttribute("aria-pressed", String(sample === String(i)));
  }

  onLook(element, drawPad);
  strokes = unpackStrokes(asked.d);
  if (strokes.length) touched = true;
  else choose(asked.sample in SAMPLES ? Number(asked.sample) : FIRST);
  update({ playing: !view.asked });
}
