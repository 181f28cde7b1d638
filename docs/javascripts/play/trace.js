// The picture of one neuron over time: current, membrane potential, threshold, spikes. And one step of it as a sentence.
import { strings } from "./strings.js";
import { s, show } from "./ui.js";

const words = strings.trace;

export const [LEFT, RIGHT, HEIGHT] = [38, 8, 340]; // of the drawing, in pixels
const PANELS = { x: [20, 76], H: [104, 254], spikes: [282, 308] }; // top and bottom

/**
 * Draws a trace, a list of { x, before, H, spike, V }, into an SVG.
 *
 * `step` is marked. `highest` is the top of the scale of the current, where it is fixed. `title` is the id of the
 * picture's title, and `what` is said in it.
 */
export function drawTrace(picture, trace, { threshold, tie = ">=", step, highest, title, what = words.oneNeuron }) {
  const width = Math.max(200, picture.clientWidth);
  picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const end = width - RIGHT;
  const wide = (end - LEFT) / trace.length;
  const middle = (t) => LEFT + (t + 0.5) * wide;
  const scale = ([top, bottom], low, high) => (value) => bottom - ((bottom - top) * (value - low)) / (high - low);
  const xs = trace.map((row) => row.x);
  const range = highest ? [0, highest] : [Math.min(0, ...xs), Math.max(0, ...xs, 1e-9)];
  const lowest = Math.min(0, ...trace.map((row) => row.H));
  const top = Math.max(1.25 * threshold, 1.05 * Math.max(...trace.map((row) => row.H)));
  const [yX, yH] = [scale(PANELS.x, ...range), scale(PANELS.H, lowest, top)];
  const text = (x, y, content, attributes = {}) => s("text", { x, y, ...attributes }, content);
  const line = (x1, y1, x2, y2, name) => s("line", { x1, y1, x2, y2, class: name });
  const axis = ([up, down], zero) => [line(LEFT, up, LEFT, down, "axis"), line(LEFT, zero, end, zero, "axis")];
  const ticks = [...trace.keys()].filter((t) => t % (trace.length > 12 ? 4 : 1) === 0);
  const path = trace.map((row, t) => {
    const from = `${middle(t) - wide / 2} ${yH(row.before)}`;
    const jump = row.spike || row.V !== row.H ? ` L${middle(t)} ${yH(row.V)}` : "";
    return `${t ? "L" : "M"}${from} L${middle(t)} ${yH(row.H)}${jump} L${middle(t) + wide / 2} ${yH(row.V)}`;
  });
  picture.replaceChildren(
    s("title", { id: title }, words.title(what, trace.length)),
    s("rect", { x: LEFT + step * wide, y: 16, width: step < 0 ? 0 : wide, height: PANELS.spikes[1] - 16, class: "here" }),
    text(LEFT, 12, words.current, { class: "name" }), ...axis(PANELS.x, yX(0)),
    text(LEFT - 4, PANELS.x[0] + 4, show(range[1], 1), { class: "tick end" }), text(LEFT - 4, yX(0) + 4, "0", { class: "tick end" }),
    range[0] < 0 && yX(range[0]) - yX(0) > 12 ? text(LEFT - 4, PANELS.x[1] + 2, show(range[0], 1), { class: "tick end" }) : "",
    ...trace.map((row, t) => s("rect", { x: middle(t) - 0.4 * wide, width: 0.8 * wide, y: Math.min(yX(row.x), yX(0)), height: Math.abs(yX(0) - yX(row.x)), class: "current" })),
    text(LEFT, 96, words.potential, { class: "name" }), ...axis(PANELS.H, yH(0)),
    text(LEFT - 4, yH(0) + 4, "0", { class: "tick end" }),
    line(LEFT, yH(threshold), end, yH(threshold), "threshold"),
    text(LEFT - 4, yH(threshold) + 5, show(threshold, 2), { class: "tick end" }),
    s("path", { d: path.join(" "), class: "membrane" }),
    ...trace.map((row, t) => s("circle", { cx: middle(t), cy: yH(row.H), r: 5, class: row.spike ? "meets fired" : "meets" })),
    text(LEFT, 274, words.spikes(tie === ">=" ? "\u2265" : ">"), { class: "name" }), line(LEFT, PANELS.spikes[1], end, PANELS.spikes[1], "axis"),
    ...trace.flatMap((row, t) => (row.spike ? [line(middle(t), PANELS.spikes[0] + 4, middle(t), PANELS.spikes[1], "spike")] : [])),
    ...ticks.map((t) => text(middle(t), 322, String(t), { class: "tick middle" })),
    text(end, 337, words.time, { class: "tick end" }));
  picture.dataset.spikes = trace.map((row) => row.spike).join("");
  picture.dataset.membrane = JSON.stringify(trace.map((row) => row.H));
}

/** One step as a sentence with its numbers. */
export function explain(row, { beta, threshold, reset, tie }, t) {
  const n = (value) => show(value, 4);
  const charge = `H[${t}] = ${show(beta, 2)} \u00b7 ${n(row.before)} + ${show(1 - beta, 2)} \u00b7 ${n(row.x)} = ${n(row.H)}`;
  const rest = `V[${t}] = ${n(row.V)}`;
  if (!row.spike) return words.noSpike(`${charge} ${tie === ">=" ? "<" : "\u2264"} ${show(threshold, 2)}`, rest);
  const sentence = { hard: words.hardReset, soft: words.softReset, none: words.noReset }[reset];
  return sentence(`${charge} ${tie === ">=" ? "\u2265" : ">"} ${show(threshold, 2)}`, rest, show(threshold, 2));
}
