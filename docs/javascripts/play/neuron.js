// One Leaky neuron under the reader's hands.
import { strings } from "./strings.js";
import { drawTrace, explain, HEIGHT, LEFT, RIGHT } from "./trace.js";
import { button, choice, h, hidden, newId, onLook, s, show, slider, vth } from "./ui.js";

const words = strings.neuron;

/**
 * The neuron of the paper in the package's arithmetic: u = tau H in single precision, tau = 1 / (1 - beta).
 * Returns for every step H (when it meets the threshold), the spike, and V (after the reset), in the paper's units.
 */
export function simulate(input, { beta, threshold, reset = "hard", tie = ">=" }) {
  const gain = 1 - beta; // 1 / tau
  const limit = Math.fround(threshold / gain);
  let v = 0; // membrane after the reset, in units of u
  return input.map((x) => {
    const u = Math.fround(Math.fround(x) + Math.fround(Math.fround(beta) * v));
    const spike = tie === ">=" ? u >= limit : u > limit;
    const before = v;
    if (!spike || reset === "none") v = u;
    else v = reset === "hard" ? 0 : Math.fround(u - limit);
    return { x, before: before * gain, H: u * gain, spike: Number(spike), V: v * gain };
  });
}

const LONGEST = 24;
const PULSES = (t) => t % 6 < 2; // two steps on, four off

export function mount(element) {
  const drawn = Array.from({ length: LONGEST }, (_, t) => [0, 0.5, 1.5, 2.5, 1, 0, 0, 3][t % 8]);
  let step = 0;

  const level = slider(words.level, { min: 0, max: 4, step: 0.05, value: element.dataset.level ?? 1.5, name: "level" }, refresh);
  const beta = slider(words.decay, { min: 0, max: 0.95, step: 0.05, value: 0.5, name: "beta",
    format: (value) => words.decayValue(show(value, 2), show(1 / (1 - value), 1)) }, refresh);
  const threshold = slider([words.threshold, " ", vth()], { min: 0.1, max: 2, step: 0.05, value: 1, name: "threshold" }, refresh);
  const length = slider(words.steps, { min: 1, max: LONGEST, step: 1, value: element.dataset.steps ?? 16, name: "steps" }, refresh);
  const kind = choice(words.kind, "kind", [["constant", words.constant], ["pulses", words.pulses], ["drawn", words.drawn]], "constant", refresh);
  const reset = choice(words.reset, "reset", [["hard", words.hard], ["soft", [words.soft, " ", vth()]], ["none", words.none]], "hard", refresh);
  const tie = choice(words.fires, "tie", [[">=", ["H \u2265 ", vth()]], [">", ["H > ", vth()]]], ">=", refresh);
  const paper = button(words.paper, () => {
    [beta.value, threshold.value, kind.value, reset.value, tie.value] = [0.5, 1, "constant", "hard", ">="];
    refresh();
  }, { "data-action": "paper" });
  const exact = button(words.tie, () => {
    [beta.value, threshold.value, kind.value, level.value] = [0.5, 1, "constant", 2]; // H[0] = 0.5 * 2
    step = 0;
    refresh();
  }, { "data-action": "tie" });

  const title = newId("title");
  const picture = s("svg", { role: "img", "aria-labelledby": title, class: "play-trace", height: HEIGHT });
  const pen = h("div", { class: "play-pen", tabindex: "0", role: "slider", "aria-label": words.pen,
    "aria-valuemin": "0", "aria-valuemax": "4" });
  const sum = h("p", { class: "play-said", "aria-live": "polite" });
  const sentence = h("p", { class: "play-equation", "aria-live": "polite" });
  const inspect = slider(words.inspect, { min: 0, max: LONGEST - 1, step: 1, value: 0, name: "inspect" }, () => {
    step = inspect.value;
    refresh();
  });
  const table = h("table", {});

  const controls = [
    hidden(element, "kind") ? [] : kind.element, level.element,
    hidden(element, "beta") ? [] : beta.element, hidden(element, "threshold") ? [] : threshold.element,
    length.element, hidden(element, "reset") ? [] : reset.element, hidden(element, "tie") ? [] : tie.element,
    h("div", { class: "play-buttons" }, hidden(element, "tie") ? [] : exact, hidden(element, "beta") ? [] : paper),
  ];
  element.replaceChildren(
    h("div", { class: "play-stage" }, h("div", { class: "play-picture" }, picture, pen), sum),
    inspect.element, sentence,
    h("div", { class: "play-controls" }, ...controls.flat()),
    hidden(element, "table") ? "" : h("details", { class: "play-fold" }, h("summary", {}, words.table),
      h("div", { class: "play-scroll", tabindex: "0", role: "region", "aria-label": words.tableLabel }, table)));

  function input() {
    return Array.from({ length: length.value }, (_, t) => {
      if (kind.value === "drawn") return drawn[t];
      return kind.value === "constant" || PULSES(t) ? level.value : 0;
    });
  }

  // Drawing the input: the pointer sets the bar it is over; the keyboard does the same.
  const place = (event) => {
    const box = pen.getBoundingClientRect();
    const t = Math.floor(((event.clientX - box.left) / box.width) * length.value);
    step = Math.max(0, Math.min(length.value - 1, t));
    drawn[step] = Math.round(Math.max(0, Math.min(1, (box.bottom - event.clientY) / box.height)) * 40) / 10;
    refresh();
  };
  pen.addEventListener("pointerdown", (event) => {
    pen.setPointerCapture(event.pointerId);
    place(event);
  });
  pen.addEventListener("pointermove", (event) => event.buttons && place(event));
  pen.addEventListener("keydown", (event) => {
    const [along, up] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key] ?? [];
    if (along === undefined) return;
    event.preventDefault();
    step = Math.max(0, Math.min(length.value - 1, step + along));
    drawn[step] = Math.round(Math.max(0, Math.min(4, drawn[step] + up)) * 10) / 10;
    refresh();
  });

  function refresh() {
    step = Math.min(step, length.value - 1);
    inspect.input.max = length.value - 1;
    inspect.value = step;
    const settings = { beta: beta.value, threshold: threshold.value, reset: reset.value, tie: tie.value };
    const trace = simulate(input(), settings);
    const spikes = trace.filter((row) => row.spike).length;
    level.input.disabled = kind.value === "drawn";
    pen.hidden = kind.value !== "drawn";
    pen.setAttribute("aria-valuenow", drawn[step]);
    pen.setAttribute("aria-valuetext", `t = ${step}, X = ${show(drawn[step])}`);
    drawTrace(picture, trace, { ...settings, step, highest: 4, title });
    sum.textContent = words.sum(spikes, trace.length, show(spikes / trace.length));
    sentence.textContent = explain(trace[step], settings, step);
    table.replaceChildren(
      h("thead", {}, h("tr", {}, ["t", "X", "H", words.spikeColumn, "V"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, trace.map((row, t) =>
        h("tr", {}, [t, ...[row.x, row.H].map((value) => show(value, 6)), row.spike, show(row.V, 6)].map((value) => h("td", {}, String(value)))))));
  }

  // Pointing at the picture chooses the step that is explained.
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const t = Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)) * length.value);
    if (t >= 0 && t < length.value && t !== step) {
      step = t;
      refresh();
    }
  });
  onLook(element, refresh);
  refresh();
}
