// A recording of a simulated event camera goes through the packaged network that says which way a digit goes round.
import { backwards, counts, cut, exchanged, paintEvents, readRecordings, reorder, shuffled, summed } from "./camera.js";
import { eventCube, VIEWS } from "./cube.js";
import { readState } from "./share.js";
import { strings } from "./strings.js";
import { button, choice, colour, h, onLook, show } from "./ui.js";
import { loadModel, networkView, PAUSE } from "./view.js";

const FIRST = 5; // the digit that the page opens with
const ORDERS = ["recorded", "backwards", "reversed", "swapped", "shuffled", "summed"];
const SEED = 1;

const words = strings.events;

export async function mount(element) {
  const model = await loadModel(element, "motion/", loadRecordings);
  if (!model) return;
  const { recordings } = model;
  const asked = readState();
  const ways = model.classes;
  const name = (way) => strings.classes[way] ?? way;
  let digit = /^\d$/.test(asked.digit ?? "") ? Number(asked.digit) : FIRST;
  let seed = /^\d{1,6}$/.test(asked.seed ?? "") ? Number(asked.seed) : SEED;
  let touched = ["digit", "way", "order", "seed", "turn"].some((key) => key in asked);
  let frames = []; // that the network gets, see camera.js
  let predicted = ""; // what the reader has said before looking

  // The cube, and what stands under it, a column a frame.
  const canvas = h("canvas", { class: "play-cube", tabindex: "0", role: "application" });
  const cube = eventCube(element, canvas, () => {
    touched = true;
    view.remember();
  });
  const legend = h("p", { class: "play-note play-legend" }, h("span", { class: "rose" }, words.brighter), h("span", { class: "fell" }, words.darker), h("span", {}, words.simulated));
  const views = h("div", { class: "play-buttons", role: "group", "aria-label": words.viewsLabel },
    Object.entries(VIEWS).map(([key, angles]) => button(words.views[key], () => cube.turnTo(angles), { "data-view": key })));
  const notes = Object.fromEntries(["frames", "tokens", "soFar"].map((key) => [key, h("p", { class: "play-note" })]));
  const strips = Object.fromEntries(["frames", "tokens", "soFar"].map((key) => [key, h("div", { class: `play-strip ${key}` })]));
  const input = h("div", { class: "play-draw" }, h("div", { class: "play-cube-bar" }, views, legend), canvas);
  const rows = h("div", { class: "play-strips" }, Object.keys(notes).map((key) => h("div", { class: `play-strip-row ${key}` }, notes[key], strips[key])));

  // Which recording, and how it is played.
  const samples = Array.from({ length: 10 }, (_, number) => button(picture(number), () => {
    digit = number;
    use({ playing: true });
  }, { class: "play-sample", "aria-label": words.digit(number), title: words.digit(number), "data-sample": number }));
  const way = choice(words.way, "way", ways.map((key) => [key, name(key)]), ways.includes(asked.way) ? asked.way : ways[0], () => use({ playing: true }));
  const order = choice(words.order, "order", ORDERS.map((key) => [key, words.orders[key]]), ORDERS.includes(asked.order) ? asked.order : ORDERS[0], () => use({ ask: order.value !== "recorded", playing: true }));
  const again = button(words.again, () => {
    seed = (seed + 1) % 1e6;
    use({ ask: true });
  }, { "data-action": "again" });
  const guesses = [...ways, ""].map((key) => button(key ? name(key) : words.showMe, () => {
    predicted = key;
    use({ playing: true, keep: true });
  }, { "data-guess": key }));
  const question = h("div", { class: "play-question", role: "group", "aria-label": words.question }, h("p", { class: "play-answer" }, words.question), h("div", { class: "play-buttons" }, guesses));
  const verdict = h("p", { class: "play-said play-verdict", role: "status" });
  const asking = h("div", { class: "play-asking" }, question, verdict);
  const below = h("div", { class: "play-below" }, asking, rows,
    h("div", { class: "play-controls-here" },
      h("p", {}, words.digits), h("div", { class: "play-samples", role: "group", "aria-label": words.digits }, samples),
      way.element, order.element, again));

  let now = { t: -1, result: null };
  const view = networkView(element, model, {
    input, below, drawn,
    state: () => ({ touched,
      digit: digit === FIRST ? "" : digit,
      way: way.value === ways[0] ? "" : way.value,
      order: order.value === ORDERS[0] ? "" : order.value,
      seed: order.value === "shuffled" && seed !== SEED ? seed : "",
      turn: cube.view === VIEWS.aslant.map((angle) => angle.toFixed(2)).join() ? "" : cube.view }),
    reads: words.reads, empty: words.empty,
  });
  // Time is played beside the cube, not above the layers.
  input.append(element.querySelector(".play-time"));
  rows.append(element.querySelector(".play-course"));
  for (const control of input.querySelectorAll(".play-time :is(button, input)")) {
    for (const kind of ["pointerdown", "keydown"]) control.addEventListener(kind, () => wait(false));
  }

  /** While the reader is asked, the answer is not shown. */
  function wait(on) {
    element.classList.toggle("play-waiting", on);
  }

  function recording() {
    return recordings.find((one) => one.digit === digit && one.way === way.value);
  }

  /** The frames of the recording as it is played. */
  function played(T) {
    const source = recording();
    const own = cut({ backwards, swapped: exchanged }[order.value]?.(source) ?? source, T);
    if (order.value === "summed") return summed(own);
    const places = { reversed: own.map((_, i) => T - 1 - i), shuffled: shuffled(T, seed) }[order.value];
    return places ? reorder(own, places) : own;
  }

  function use({ ask = false, playing = false, keep = false, quietly = false } = {}) {
    if (!quietly) touched = true;
    if (!keep) predicted = "";
    wait(ask);
    for (const each of samples) each.setAttribute("aria-pressed", String(Number(each.dataset.sample) === digit));
    again.hidden = order.value !== "shuffled";
    view.show((T) => {
      frames = played(T);
      return frames.map(({ events }) => counts(events, model.imageSize));
    }, { playing: playing && !ask });
    if (ask) reveal();
  }

  /** On a phone the question stands above what the reader has pressed: bring it into view, below the cube. */
  function reveal() {
    const box = asking.getBoundingClientRect();
    if (box.top < 100 || box.bottom > innerHeight) element.scrollIntoView({ block: "start" });
  }

  // ------------------------------------------------------------------------------------------------------- drawing

  let sweeping = 0;
  function drawn({ result, image, t, playing }) {
    const changed = result !== now.result;
    now = { t, result, playing };
    cancelAnimationFrame(sweeping);
    const { size, period } = recording();
    const what = { frames, size, period, now: t };
    if (playing && t >= 0) sweep(what, performance.now());
    else cube.draw(what);
    if (changed) drawStrips(result, image);
    for (const strip of Object.values(strips)) for (const [i, cell] of [...strip.children].entries()) {
      cell.classList.toggle("now", i === t);
      cell.classList.toggle("later", playing && i > t);
    }
    const answer = ways[result.logits.indexOf(Math.max(...result.logits))];
    verdict.textContent = !predicted || playing || t >= 0 ? "" : predicted === answer ? words.right(name(answer)) : words.wrong(name(predicted), name(answer));
    const total = order.value === "summed" ? frames[0].events.length : frames.reduce((sum, { events }) => sum + events.length, 0);
    canvas.setAttribute("aria-label", words.cube(total, period / 1000));
    element.dataset.order = order.value;
  }

  /** Within a step, time runs on. */
  function sweep(what, start) {
    const { start: from, end } = frames[what.now];
    const step = (time) => {
      const part = Math.min(1, Math.max(0, (time - start) / PAUSE));
      cube.draw({ ...what, sweep: from + (end - from) * part });
      if (part < 1) sweeping = requestAnimationFrame(step);
    };
    step(start);
  }

  function drawStrips(result, image) {
    const T = frames.length;
    const [up, down] = ways;
    const { size } = recording();
    element.style.setProperty("--steps", T);
    const first = frames[0].events.length;
    notes.frames.textContent = T === 1 ? words.oneFrame(first) : order.value === "summed" ? words.allInEach(first, T) : words.frames(T, first, frames.at(-1).events.length);
    const ms = (time) => Math.round(time / 1000);
    strips.frames.replaceChildren(...frames.map(({ start, end }, t) => {
      const own = h("canvas", { "aria-hidden": "true" });
      paintEvents(element, own, size, image[t]);
      return button([own, h("span", {}, `t = ${t}`), h("span", { class: "ms" }, order.value === "summed" ? "" : [String(ms(start)), h("span", {}, `\u2013${ms(end)} ms`)])], () => {
        wait(false);
        view.at(now.t === t ? -1 : t);
      }, { class: "play-frame", "aria-label": words.frame(t, ms(start), ms(end)), "data-frame": t });
    }));
    const features = model.dim, places = result.layers["sps.3"][0].length / features;
    notes.tokens.textContent = words.tokens(places, features, "sps.3", "sps.rpe");
    const [ink, paper] = [colour(element, "--play-ink"), colour(element, "--play-paper")];
    strips.tokens.replaceChildren(...frames.map((_, t) => {
      const values = result.layers["sps.3"][t].map((spike, i) => spike + result.layers["sps.rpe"][t][i]);
      const own = h("canvas", { width: features, height: places, role: "img", "aria-label": words.tokensOf(t, values.reduce((sum, value) => sum + value, 0)) });
      const pixels = own.getContext("2d").createImageData(features, places);
      for (const [i, value] of values.entries()) {
        for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = paper[c] + (value / 2) * (ink[c] - paper[c]);
        pixels.data[4 * i + 3] = 255;
      }
      own.getContext("2d").putImageData(pixels, 0, 0);
      return h("div", {}, own);
    }));
    notes.soFar.textContent = words.soFar(name(up), name(down));
    const leads = frames.map((_, t) => result.stepLogits.slice(0, t + 1).reduce((sum, [one, other]) => sum + one - other, 0) / (t + 1));
    const most = Math.max(1, ...leads.map(Math.abs));
    strips.soFar.replaceChildren(...leads.map((lead, t) => {
      const bar = h("span", { class: lead > 0 ? "up" : "down" });
      bar.style.setProperty("--share", Math.abs(lead) / most);
      return h("div", { role: "img", "aria-label": words.soFarOf(t, name(lead > 0 ? up : down), show(Math.abs(lead), 2)), "data-lead": lead }, bar);
    }));
  }

  /** The digit of a recording, as scikit-learn has it. */
  function picture(number) {
    const { pixels } = recordings.find((one) => one.digit === number);
    const wide = Math.sqrt(pixels.length);
    const own = h("canvas", { width: wide, height: wide, "aria-hidden": "true" });
    const context = own.getContext("2d");
    const data = context.createImageData(wide, wide);
    for (const [i, value] of pixels.entries()) data.data.set([0, 0, 0, (255 * value) / 16], 4 * i);
    context.putImageData(data, 0, 0);
    return [own];
  }

  onLook(element, () => {
    drawStrips(now.result, frames.map(({ events }) => counts(events, model.imageSize)));
    drawn(now);
  });
  const turn = (asked.turn ?? "").split(",").map(Number);
  if (turn.length === 2 && turn.every(Number.isFinite)) cube.turn(turn, true);
  use({ playing: !view.asked && !("order" in asked), quietly: true });
}

async function loadRecordings(load) {
  const [header, events] = await Promise.all([load("recordings.json"), load("recordings.bin")]);
  return { recordings: readRecordings(await header.json(), await events.arrayBuffer()) };
}
