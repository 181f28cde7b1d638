// One Leaky neuron under the reader's hands.
import { button, choice, h, hidden, newId, onLook, s, show, slider, vth } from "./ui.js";

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
const [LEFT, RIGHT, HEIGHT] = [34, 8, 340]; // of the drawing, in pixels
const PANELS = { x: [20, 76], H: [104, 254], spikes: [282, 308] }; // top and bottom

export function mount(element) {
  const drawn = Array.from({ length: LONGEST }, (_, t) => [0, 0.5, 1.5, 2.5, 1, 0, 0, 3][t % 8]);
  let step = 0;

  const level = slider("Input current X", { min: 0, max: 4, step: 0.05, value: element.dataset.level ?? 1.5, name: "level" }, refresh);
  const beta = slider("Decay \u03b2", { min: 0, max: 0.95, step: 0.05, value: 0.5, name: "beta",
    format: (value) => `${show(value, 2)} (\u03c4 = ${show(1 / (1 - value), 1)} steps)` }, refresh);
  const threshold = slider(["Threshold ", vth()], { min: 0.1, max: 2, step: 0.05, value: 1, name: "threshold" }, refresh);
  const length = slider("Time steps T", { min: 1, max: LONGEST, step: 1, value: element.dataset.steps ?? 16, name: "steps" }, refresh);
  const kind = choice("Input", "kind", [["constant", "constant"], ["pulses", "pulses"], ["drawn", "drawn"]], "constant", refresh);
  const reset = choice("Reset after a spike", "reset", [["hard", "hard: to 0"], ["soft", ["soft: minus ", vth()]], ["none", "none"]], "hard", refresh);
  const tie = choice("Fires when", "tie", [[">=", ["H \u2265 ", vth()]], [">", ["H > ", vth()]]], ">=", refresh);
  const paper = button("The paper\u2019s values", () => {
    [beta.value, threshold.value, kind.value, reset.value, tie.value] = [0.5, 1, "constant", "hard", ">="];
    refresh();
  }, { "data-action": "paper" });
  const exact = button("A tie: exactly at the threshold", () => {
    [beta.value, threshold.value, kind.value, level.value] = [0.5, 1, "constant", 2]; // H[0] = 0.5 * 2
    step = 0;
    refresh();
  }, { "data-action": "tie" });

  const title = newId("title");
  const picture = s("svg", { role: "img", "aria-labelledby": title, class: "play-trace", height: HEIGHT });
  const pen = h("div", { class: "play-pen", tabindex: "0", role: "slider", "aria-label": "Drawn input: left and right choose a time step, up and down change its current",
    "aria-valuemin": "0", "aria-valuemax": "4" });
  const sum = h("p", { class: "play-said", "aria-live": "polite" });
  const sentence = h("p", { class: "play-equation", "aria-live": "polite" });
  const inspect = slider("Look at time step t", { min: 0, max: LONGEST - 1, step: 1, value: 0, name: "inspect" }, () => {
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
    hidden(element, "table") ? "" : h("details", { class: "play-fold" }, h("summary", {}, "Every number"),
      h("div", { class: "play-scroll", tabindex: "0", role: "region", "aria-label": "Table of every time step" }, table)));

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
    draw(trace, settings);
    sum.textContent = `${spikes} ${spikes === 1 ? "spike" : "spikes"} in T = ${trace.length} steps: firing rate ${show(spikes / trace.length)}`;
    sentence.textContent = explain(trace[step], settings, step);
    table.replaceChildren(
      h("thead", {}, h("tr", {}, ["t", "X", "H", "spike", "V"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, trace.map((row, t) =>
        h("tr", {}, [t, ...[row.x, row.H].map((value) => show(value, 6)), row.spike, show(row.V, 6)].map((value) => h("td", {}, String(value)))))));
  }

  function draw(trace, { threshold, tie }) {
    const width = Math.max(200, picture.clientWidth);
    picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const end = width - RIGHT;
    const wide = (end - LEFT) / trace.length;
    const middle = (t) => LEFT + (t + 0.5) * wide;
    const highest = Math.max(1.25 * threshold, 1.05 * Math.max(...trace.map((row) => row.H)));
    const scale = ([top, bottom], most) => (value) => bottom - ((bottom - top) * value) / most;
    const [yX, yH] = [scale(PANELS.x, 4), scale(PANELS.H, highest)];
    const text = (x, y, content, attributes = {}) => s("text", { x, y, ...attributes }, content);
    const line = (x1, y1, x2, y2, name) => s("line", { x1, y1, x2, y2, class: name });
    const axis = ([top, bottom]) => [line(LEFT, top, LEFT, bottom, "axis"), line(LEFT, bottom, end, bottom, "axis")];
    const ticks = [...trace.keys()].filter((t) => t % (trace.length > 12 ? 4 : 1) === 0);
    const path = trace.map((row, t) => {
      const from = `${middle(t) - wide / 2} ${yH(row.before)}`;
      const jump = row.spike || row.V !== row.H ? ` L${middle(t)} ${yH(row.V)}` : "";
      return `${t ? "L" : "M"}${from} L${middle(t)} ${yH(row.H)}${jump} L${middle(t) + wide / 2} ${yH(row.V)}`;
    });
    picture.replaceChildren(
      s("title", { id: title }, `Input, membrane potential and spikes of one neuron over ${trace.length} time steps`),
      s("rect", { x: LEFT + step * wide, y: 16, width: wide, height: PANELS.spikes[1] - 16, class: "here" }),
      text(LEFT, 12, "input X", { class: "name" }), ...axis(PANELS.x),
      text(LEFT - 6, PANELS.x[0] + 4, "4", { class: "tick end" }), text(LEFT - 6, PANELS.x[1], "0", { class: "tick end" }),
      ...trace.map((row, t) => s("rect", { x: middle(t) - 0.4 * wide, width: 0.8 * wide, y: yX(row.x), height: Math.max(0, PANELS.x[1] - yX(row.x)), class: "current" })),
      text(LEFT, 96, "membrane potential H, then V after the reset", { class: "name" }), ...axis(PANELS.H),
      text(LEFT - 6, PANELS.H[1], "0", { class: "tick end" }),
      line(LEFT, yH(threshold), end, yH(threshold), "threshold"),
      text(LEFT - 6, yH(threshold) + 5, show(threshold, 2), { class: "tick end" }),
      s("path", { d: path.join(" "), class: "membrane" }),
      ...trace.map((row, t) => s("circle", { cx: middle(t), cy: yH(row.H), r: 5, class: row.spike ? "meets fired" : "meets" })),
      text(LEFT, 274, `spikes: H ${tie === ">=" ? "\u2265" : ">"} threshold`, { class: "name" }), line(LEFT, PANELS.spikes[1], end, PANELS.spikes[1], "axis"),
      ...trace.flatMap((row, t) => (row.spike ? [line(middle(t), PANELS.spikes[0] + 4, middle(t), PANELS.spikes[1], "spike")] : [])),
      ...ticks.map((t) => text(middle(t), 322, String(t), { class: "tick middle" })),
      text(end, 337, "time step t", { class: "tick end" }));
    picture.dataset.spikes = trace.map((row) => row.spike).join("");
    picture.dataset.membrane = JSON.stringify(trace.map((row) => row.H));
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

/** One step as a sentence with its numbers. */
function explain(row, { beta, threshold, reset, tie }, t) {
  const n = (value) => show(value, 4);
  const charge = `H[${t}] = ${show(beta, 2)} \u00b7 ${n(row.before)} + ${show(1 - beta, 2)} \u00b7 ${n(row.x)} = ${n(row.H)}`;
  if (!row.spike) return `${charge} ${tie === ">=" ? "<" : "\u2264"} ${show(threshold, 2)}: no spike, V[${t}] = ${n(row.V)}`;
  const after = { hard: "reset to", soft: `minus ${show(threshold, 2)} leaves`, none: "no reset," }[reset];
  return `${charge} ${tie === ">=" ? "\u2265" : ">"} ${show(threshold, 2)}: spike, ${after} V[${t}] = ${n(row.V)}`;
}
