// A recording of a simulated event camera goes through the packaged network that says which way a digit goes round.
import { backwards, counts, cut, exchanged, paintEvents, readRecordings, reorder, shuffled, summed } from "./camera.js";
import { eventCube, VIEWS } from "./cube.js";
import { readState } from "./share.js";
import { button, choice, colour, h, onLook, show } from "./ui.js";
import { loadModel, networkView, PAUSE } from "./view.js";

const FIRST = 5; // the digit that the page opens with
const ORDERS = ["recorded", "backwards", "reversed", "swapped", "shuffled", "summed"];
const SEED = 1;

const text = {
  cube: (events, milliseconds) => `Event cube: ${events} simulated events in ${milliseconds} ms. Arrow keys turn it, Home turns it back`,
  axes: { x: "x", y: "y" },
  legend: ["brighter", "darker"],
  simulated: "simulated",
  views: { aslant: "Aslant", side: "From the side", along: "Along time" },
  viewsLabel: "View of the cube",
  frames: (frames, events, last) => (frames === 1 ? `One frame of all ${events} events.`
    : `T = ${frames} frames of equal count: ${events} events each${last === events ? "" : `, the last ${last}`}. Press one to stop there.`),
  allInEach: (frames, events) => `All ${events} events in each of T = ${frames} frames: nothing tells what came first.`,
  frame: (t, from, to) => `Frame t = ${t}, ${from} to ${to} ms`,
  time: (from) => `${from}`,
  until: (to) => `\u2013${to} ms`,
  tokens: (places, features) => `The ${places} tokens of each frame: a row is a place, a column one of ${features} features. Grey: one spike of \u201csps.3\u201d or \u201csps.rpe\u201d; black: both.`,
  tokensOf: (t, spikes) => `Tokens at t = ${t}: ${spikes} spikes`,
  soFar: (up, down) => `The answer so far: logit of \u201c${up}\u201d minus logit of \u201c${down}\u201d, mean over the frames up to here.`,
  soFarOf: (t, answer, lead) => `After t = ${t}: ${answer}, by ${lead}`,
  digits: "Simulated recordings: which digit",
  digit: (digit) => `Digit ${digit}`,
  way: "It went round",
  order: "Play it",
  orders: {
    recorded: "as recorded",
    backwards: "backwards, like a film",
    reversed: "frames in reverse order, each unchanged",
    swapped: "brighter and darker exchanged",
    shuffled: "frames in random order",
    summed: "all events in every frame",
  },
  again: "Another random order",
  question: "What will the network say now?",
  showMe: "Just show me",
  verdict: (said, answer) => (said === answer ? `You predicted ${said}: right.` : `You predicted ${said}. It says ${answer}.`),
  reads: (name) => `Says: ${name}`,
  empty: "No recording yet",
  classes: { clockwise: "clockwise", "counter-clockwise": "counter-clockwise" },
};

export async function mount(element) {
  const model = await loadModel(element, "motion/", loadRecordings);
  if (!model) return;
  const { recordings } = model;
  const asked = readState();
  const ways = model.classes;
  const name = (way) => text.classes[way] ?? way;
  let digit = /^\d$/.test(asked.digit ?? "") ? Number(asked.digit) : FIRST;
  let seed = /^\d{1,6}$/.test(asked.seed ?? "") ? Number(asked.seed) : SEED;
  let touched = ["digit", "way", "order", "seed", "turn"].some((key) => key in asked);
  let frames = []; // that the network gets, see camera.js
  let predicted = ""; // what the reader has said before looking

  // The cube, and what stands under it, a column a frame.
  const canvas = h("canvas", { class: "play-cube", tabindex: "0", role: "application" });
  const cube = eventCube(element, canvas, { words: text.axes, turned: () => {
    touched = true;
    view.remember();
  } });
  const legend = h("p", { class: "play-note play-legend" }, h("span", { class: "rose" }, text.legend[0]), h("span", { class: "fell" }, text.legend[1]), h("span", {}, text.simulated));
  const views = h("div", { class: "play-buttons", role: "group", "aria-label": text.viewsLabel },
    Object.entries(VIEWS).map(([key, angles]) => button(text.views[key], () => cube.turnTo(angles), { "data-view": key })));
  const notes = Object.fromEntries(["frames", "tokens", "soFar"].map((key) => [key, h("p", { class: "play-note" })]));
  const strips = Object.fromEntries(["frames", "tokens", "soFar"].map((key) => [key, h("div", { class: `play-strip ${key}` })]));
  const input = h("div", { class: "play-draw" }, h("div", { class: "play-cube-bar" }, views, legend), canvas);
  const rows = h("div", { class: "play-strips" }, Object.keys(notes).map((key) => h("div", { class: `play-strip-row ${key}` }, notes[key], strips[key])));

  // Which recording, and how it is played.
  const samples = Array.from({ length: 10 }, (_, number) => button(picture(number), () => {
    digit = number;
    use({ playing: true });
  }, { class: "play-sample", "aria-label": text.digit(number), title: text.digit(number), "data-sample": number }));
  const way = choice(text.way, "way", ways.map((key) => [key, name(key)]), ways.includes(asked.way) ? asked.way : ways[0], () => use({ playing: true }));
  const order = choice(text.order, "order", ORDERS.map((key) => [key, text.orders[key]]), ORDERS.includes(asked.order) ? asked.order : ORDERS[0], () => use({ ask: order.value !== "recorded", playing: true }));
  const again = button(text.again, () => {
    seed = (seed + 1) % 1e6;
    use({ ask: true });
  }, { "data-action": "again" });
  const guesses = [...ways, ""].map((key) => button(key ? name(key) : text.showMe, () => {
    predicted = key;
    use({ playing: true, keep: true });
  }, { "data-guess": key }));
  const question = h("div", { class: "play-question", role: "group", "aria-label": text.question }, h("p", { class: "play-answer" }, text.question), h("div", { class: "play-buttons" }, guesses));
  const verdict = h("p", { class: "play-said play-verdict", role: "status" });
  const below = h("div", { class: "play-below" }, h("div", { class: "play-asking" }, question, verdict), rows,
    h("div", { class: "play-controls-here" },
      h("p", {}, text.digits), h("div", { class: "play-samples", role: "group", "aria-label": text.digits }, samples),
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
    reads: (key) => text.reads(name(key)), empty: text.empty,
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
    verdict.textContent = predicted && !playing && t < 0 ? text.verdict(name(predicted), name(answer)) : "";
    const total = order.value === "summed" ? frames[0].events.length : frames.reduce((sum, { events }) => sum + events.length, 0);
    canvas.setAttribute("aria-label", text.cube(total, period / 1000));
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
    notes.frames.textContent = order.value === "summed" && T > 1 ? text.allInEach(T, first) : text.frames(T, first, frames.at(-1).events.length);
    const ms = (time) => Math.round(time / 1000);
    strips.frames.replaceChildren(...frames.map(({ start, end }, t) => {
      const own = h("canvas", { "aria-hidden": "true" });
      paintEvents(element, own, size, image[t]);
      return button([own, h("span", {}, `t = ${t}`), h("span", { class: "ms" }, order.value === "summed" ? "" : [text.time(ms(start)), h("span", {}, text.until(ms(end)))])], () => {
        wait(false);
        view.at(now.t === t ? -1 : t);
      }, { class: "play-frame", "aria-label": text.frame(t, ms(start), ms(end)), "data-frame": t });
    }));
    const features = model.dim, places = result.layers["sps.3"][0].length / features;
    notes.tokens.textContent = text.tokens(places, features);
    const [ink, paper] = [colour(element, "--play-ink"), colour(element, "--play-paper")];
    strips.tokens.replaceChildren(...frames.map((_, t) => {
      const values = result.layers["sps.3"][t].map((spike, i) => spike + result.layers["sps.rpe"][t][i]);
      const own = h("canvas", { width: features, height: places, role: "img", "aria-label": text.tokensOf(t, values.reduce((sum, value) => sum + value, 0)) });
      const pixels = own.getContext("2d").createImageData(features, places);
      for (const [i, value] of values.entries()) {
        for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = paper[c] + (value / 2) * (ink[c] - paper[c]);
        pixels.data[4 * i + 3] = 255;
      }
      own.getContext("2d").putImageData(pixels, 0, 0);
      return h("div", {}, own);
    }));
    notes.soFar.textContent = text.soFar(name(up), name(down));
    const leads = frames.map((_, t) => result.stepLogits.slice(0, t + 1).reduce((sum, [one, other]) => sum + one - other, 0) / (t + 1));
    const most = Math.max(1, ...leads.map(Math.abs));
    strips.soFar.replaceChildren(...leads.map((lead, t) => {
      const bar = h("span", { class: lead > 0 ? "up" : "down" });
      bar.style.setProperty("--share", Math.abs(lead) / most);
      return h("div", { role: "img", "aria-label": text.soFarOf(t, name(lead > 0 ? up : down), show(Math.abs(lead), 2)), "data-lead": lead }, bar);
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
