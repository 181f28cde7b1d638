// Spiking self-attention by hand: 8 tokens, 8 features, one head, one time step.
import { strings } from "./strings.js";
import { button, choice, h, hidden, select, show, slider, vth } from "./ui.js";

const words = strings.ssa;

export const SIZE = 8; // tokens N, and features d
const TAU = 2; // H = X / tau in the first time step, when the membrane starts from zero

const each = (make) => Array.from({ length: SIZE }, (_, i) => make(i));
const matrix = (make) => each((i) => each((j) => make(i, j)));
const total = (values) => values.reduce((sum, value) => sum + value, 0);
const and = (a, b) => a.map((bit, i) => bit & b[i]);
const column = (rows, j) => rows.map((row) => row[j]);

/** Everything that SSA and softmax attention make of binary Q, K, V, each 8 tokens x 8 features. */
export function attend(Q, K, V, { scale, threshold }) {
  const counts = matrix((i, j) => total(and(Q[i], K[j]))); // Q K^T: features in which query i and key j both fire
  const pairs = matrix((a, c) => total(and(column(K, a), column(V, c)))); // K^T V: tokens in which both fire
  const first = matrix((i, c) => total(counts[i].map((count, j) => count * V[j][c]))); // (Q K^T) V
  const second = matrix((i, c) => total(pairs.map((row, a) => Q[i][a] * row[c]))); // Q (K^T V)
  const membrane = first.map((row) => row.map((sum) => (sum * scale) / TAU));
  const spikes = membrane.map((row) => row.map((value) => Number(value >= threshold)));
  const weights = counts.map((row) => softmax(row.map((count) => count / Math.sqrt(SIZE))));
  const soft = matrix((i, c) => total(weights[i].map((weight, j) => weight * V[j][c])));
  // An addition happens where a spike meets something that is not zero.
  const additions = {
    first: total(counts.flat()) + total(counts.flatMap((row) => row.map((count, j) => (count ? total(V[j]) : 0)))),
    second: total(pairs.flat()) + total(Q.flatMap((row) => row.map((bit, a) => (bit ? pairs[a].filter(Boolean).length : 0)))),
  };
  return { counts, pairs, first, second, membrane, spikes, weights, soft, additions };
}

function softmax(row) {
  const largest = Math.max(...row);
  const powers = row.map((value) => Math.exp(value - largest));
  return powers.map((power) => power / total(powers));
}

/** Operations of both orders for N tokens of d features, all of them counted: two products of matrices each. */
export const operations = (n, d) => ({ first: 2 * n * n * d, second: 2 * n * d * d });

/** Random numbers in [0, 1) that are the same for the same seed. */
function random(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function mount(element) {
  const bits = { Q: matrix(() => 0), K: matrix(() => 0), V: matrix(() => 0) };
  let focus = { matrix: "out", row: 2, column: 2 };
  let seed = 6;
  let found;

  const rate = slider(words.rate, { min: 0, max: 1, step: 0.05, value: 0.5, name: "rate", format: (value) => show(value, 2) }, shuffle);
  const scale = select(words.scale, "scale", ["0.0625", "0.125", "0.25", "0.5"].map((value) => [value, value]), "0.125", refresh);
  const threshold = select([words.threshold, " ", vth()], "threshold", ["0.25", "0.5", "1"].map((value) => [value, value]), "0.5", refresh);
  const order = choice(words.order, "order", [["first", "(Q K\u1d40) V"], ["second", "Q (K\u1d40 V)"]], "first", () => {
    if (focus.matrix !== "out") focus = { matrix: "out", row: 2, column: 2 };
    refresh();
  });

  const grids = {
    Q: grid("Q", words.queries, words.feature, true), K: grid("K", words.keys, words.feature, true), V: grid("V", words.values, words.feature, true),
    counts: grid("counts", words.scores, words.keyToken, false), pairs: grid("pairs", "K\u1d40 V", words.valueFeature, false),
    out: grid("out", words.out, words.feature, false),
  };
  // On a phone one matrix is shown at a time, with cells that a finger can hit.
  const matrixOf = choice(words.matrix, "matrix", [["Q", "Q"], ["K", "K"], ["V", "V"], ["counts", words.scoresShort], ["pairs", "K\u1d40 V"], ["out", words.outShort]], "out", () => {
    if (matrixOf.value !== focus.matrix) point(matrixOf.value, focus.row, focus.column);
  });
  matrixOf.element.classList.add("play-one");
  const detail = h("div", { class: "play-detail", "aria-live": "polite" });
  const beside = h("div", { class: "play-beside" });
  const cost = h("div", { class: "play-cost" });
  const part = (name, ...children) => (hidden(element, name) ? "" : children);

  element.replaceChildren(
    h("div", { class: "play-controls" },
      h("div", { class: "play-buttons", role: "group", "aria-label": words.presets },
        button(words.random, () => { seed++; shuffle(); }, { "data-preset": "random" }),
        button(words.ones, () => preset(() => 1), { "data-preset": "ones" }),
        button(words.oneToken, () => { preset((i) => Number(i === 2)); point("out", 2, 2); }, { "data-preset": "token" }),
        button(words.clear, () => preset(() => 0), { "data-preset": "clear" })),
      rate.element, ...part("settings", scale.element, threshold.element), ...part("order", order.element)),
    matrixOf.element,
    h("div", { class: "play-grids" }, grids.Q.element, grids.K.element, grids.V.element, grids.counts.element, grids.pairs.element, grids.out.element),
    detail, ...part("softmax", beside), ...part("cost", cost));

  /** An 8 x 8 table of buttons: one tab stop, arrow keys inside; cells of Q, K, V flip when pressed. */
  function grid(name, caption, across, editable) {
    const cells = matrix((i, j) => h("button", { type: "button", tabindex: i || j ? "-1" : "0", "data-cell": `${name}-${i}-${j}`,
      "aria-pressed": editable ? "false" : undefined }));
    const table = h("div", { class: `play-grid play-grid-${name}`, role: "group", "aria-label": editable ? words.editable(caption) : words.computed(caption) }, cells.flat());
    // Not pointerover: a browser sends it to a resting pointer whenever the page changes beneath, and would undo the keyboard.
    for (const event of ["pointermove", "pointerdown", "focusin"]) table.addEventListener(event, ({ target }) => target.dataset.cell && pointAt(target.dataset.cell));
    table.addEventListener("click", ({ target }) => {
      if (!editable || !target.dataset.cell) return;
      const [, i, j] = target.dataset.cell.split("-");
      bits[name][i][j] ^= 1;
      refresh();
    });
    table.addEventListener("keydown", (event) => {
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
      if (down === undefined) return;
      event.preventDefault();
      const [, i, j] = event.target.dataset.cell.split("-").map(Number);
      const next = cells[Math.min(SIZE - 1, Math.max(0, i + down))][Math.min(SIZE - 1, Math.max(0, j + right))];
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
    return { cells, across, element: h("figure", { class: "play-matrix" }, h("figcaption", {}, caption), table) };
  }

  function pointAt(cell) {
    const [name, i, j] = cell.split("-");
    point(name, Number(i), Number(j));
  }

  function point(name, row, column) {
    if (focus.matrix === name && focus.row === row && focus.column === column) return;
    focus = { matrix: name, row, column };
    refresh();
  }

  function preset(value) {
    for (const name of ["Q", "K", "V"]) bits[name] = matrix(value);
    refresh();
  }

  function shuffle() {
    const next = random(seed);
    preset(() => Number(next() < rate.value));
  }

  function refresh() {
    found = attend(bits.Q, bits.K, bits.V, { scale: Number(scale.value), threshold: Number(threshold.value) });
    const way = hidden(element, "order") ? "first" : order.value;
    grids.counts.element.hidden = way !== "first";
    grids.pairs.element.hidden = way !== "second";
    matrixOf.show("counts", way === "first");
    matrixOf.show("pairs", way === "second");
    matrixOf.value = focus.matrix;
    for (const [name, { element: figure }] of Object.entries(grids)) figure.classList.toggle("shown", name === focus.matrix);
    for (const [name, { cells, across, element: figure }] of Object.entries(grids)) {
      if (figure.hidden) continue;
      const values = { ...bits, counts: found.counts, pairs: found.pairs, out: found.spikes }[name];
      for (let i = 0; i < SIZE; i++) {
        for (let j = 0; j < SIZE; j++) {
          const cell = cells[i][j];
          const value = values[i][j];
          const counted = name === "counts" || name === "pairs";
          cell.textContent = counted ? value : "";
          cell.style.setProperty("--level", value / (counted ? SIZE : 1));
          cell.classList.toggle("strong", value > SIZE / 2);
          cell.classList.toggle("on", value > 0);
          cell.classList.toggle("used", used(name, i, j));
          cell.classList.toggle("focused", focus.matrix === name && focus.row === i && focus.column === j);
          if (cell.hasAttribute("aria-pressed")) cell.setAttribute("aria-pressed", String(Boolean(value)));
          cell.setAttribute("aria-label", words.cell(name === "pairs" ? words.keyFeature : words.token, i, across, j, counted ? value : value ? words.spike : words.none));
        }
      }
    }
    explain(way);
    compare();
    count(way);
  }

  /** Whether a cell goes into the entry that is explained. */
  function used(name, i, j) {
    const { matrix: where, row, column: across } = focus;
    if (where === "counts") return (name === "Q" && i === row) || (name === "K" && i === across);
    if (where === "pairs") return (name === "K" && j === row) || (name === "V" && j === across);
    if (where === "out") return ((name === "counts" || name === "Q") && i === row) || ((name === "V" || name === "pairs") && j === across);
    return false;
  }

  /** The entry under the pointer or the focus, from its spikes to its result. */
  function explain(way) {
    const { matrix: where, row, column: across } = focus;
    const s = Number(scale.value);
    const line = (name, values, kind) => h("tr", { class: kind }, h("th", { scope: "row" }, name), values.map((value) => h("td", { class: value ? "on" : "" }, String(value))));
    const rows = (...lines) => h("div", { class: "play-scroll" }, h("table", { class: "play-bits" }, h("tbody", {}, lines)));
    const say = (text) => h("p", { class: "play-equation" }, text);
    if (where === "counts") {
      const both = and(bits.Q[row], bits.K[across]);
      detail.replaceChildren(
        h("p", {}, words.score(row, across)),
        rows(line(words.rowOfToken("Q", row), bits.Q[row], "q"), line(words.rowOfToken("K", across), bits.K[across], "k"), line("AND", both, "and")),
        say(words.scaled(total(both), s, show(total(both) * s, 4))));
    } else if (where === "pairs") {
      const [keys, values] = [column(bits.K, row), column(bits.V, across)];
      const both = and(keys, values);
      detail.replaceChildren(
        h("p", {}, words.pair(row, across)),
        rows(line(words.rowOfFeature("K", row), keys, "k"), line(words.rowOfFeature("V", across), values, "v"), line("AND", both, "and")),
        say(words.popcount(total(both))));
    } else if (where === "out") {
      const [one, other, names] = way === "first"
        ? [found.counts[row], column(bits.V, across), [words.rowOfScores(row), words.rowOfFeature("V", across)]]
        : [bits.Q[row], column(found.pairs, across), [words.rowOfToken("Q", row), words.rowOfPairs(across)]];
      const kept = one.map((value, i) => value * other[i]);
      const sum = found[way][row][across];
      const H = found.membrane[row][across];
      const fires = found.spikes[row][across];
      detail.replaceChildren(
        h("p", {}, (way === "first" ? words.outputFirst : words.outputSecond)(row, across)),
        rows(line(names[0], one, way === "first" ? "" : "q"), line(names[1], other, way === "first" ? "v" : ""), line(words.kept, kept, "and")),
        say(words.current(sum, s, show(sum * s, 4))),
        say((fires ? words.fires : words.silent)(show(H, 4), threshold.value)));
    } else {
      detail.replaceChildren(h("p", {}, (bits[where][row][across] ? words.bitSpike : words.bitNone)(where, row, across)));
    }
    detail.dataset.entry = `${where}-${row}-${across}`;
  }

  /** SSA's weights of one query token, and those of softmax over the same scores. */
  function compare() {
    const row = focus.matrix === "K" || focus.matrix === "V" || focus.matrix === "pairs" ? 2 : focus.row;
    const s = Number(scale.value);
    const weights = found.counts[row].map((count) => count * s);
    const most = Math.max(1, ...weights); // one scale for both
    const bars = (title, values, most, kind, note) => h("div", { class: `play-weights ${kind}`, "data-values": JSON.stringify(values) }, h("h4", {}, title),
      h("ol", {}, values.map((value, j) => {
        const bar = h("span", { class: "bar" });
        bar.style.setProperty("--share", most ? value / most : 0);
        return h("li", {}, h("span", { class: "token" }, words.weightOf(j)), bar, h("span", { class: "number" }, show(value)));
      })), h("p", {}, note));
    beside.replaceChildren(
      h("h3", {}, words.weights(row)),
      h("div", { class: "play-columns" },
        bars(words.weightsOfSsa, weights, most, "ssa", words.sumOfSsa(show(total(weights)))),
        bars("softmax(Q K\u1d40 / \u221ad)", found.weights[row], most, "softmax", words.sumOfSoftmax(show(total(found.weights[row]))))),
      h("p", { class: "play-note" }, words.outputs(SIZE, found.soft[row].map((value) => show(value, 2)).join("  "), found.spikes[row].join("  "))));
  }

  const tokens = select(words.tokens, "tokens", [8, 16, 32, 64, 128, 196, 256, 512, 1024].map((n) => [String(n), String(n)]), "64", sizes);
  const width = select(words.width, "width", [8, 16, 32, 64].map((n) => [String(n), String(n)]), "16", sizes);
  const here = h("div", {});
  const larger = h("div", { class: "play-weights" });
  cost.append(h("h3", {}, words.cost), here, h("div", { class: "play-controls" }, tokens.element, width.element), larger);

  function count(way) {
    const same = found.first.every((row, i) => row.every((value, j) => value === found.second[i][j]));
    const differ = total(matrix((i, c) => Number(found.first[i][c] !== found.second[i][c])).flat());
    const dense = operations(SIZE, SIZE);
    const line = (name, key) => h("tr", { class: key === way ? "on" : "", "data-order": key }, h("th", { scope: "row" }, name),
      [dense[key], found.additions[key]].map((value) => h("td", {}, value.toLocaleString("en"))));
    here.replaceChildren(
      h("div", { class: "play-scroll" }, h("table", {}, h("thead", {}, h("tr", {}, [words.orderColumn, words.denseColumn, words.additionsColumn].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, line("(Q K\u1d40) V", "first"), line("Q (K\u1d40 V)", "second")))),
      h("p", { class: "play-said" }, way === "second" ? (same ? words.same : words.differ)(differ, SIZE * SIZE) : words.compare));
  }

  function sizes() {
    const [n, d] = [Number(tokens.value), Number(width.value)];
    const cost = operations(n, d);
    const most = Math.max(cost.first, cost.second);
    const line = (name, value, kind) => {
      const bar = h("span", { class: "bar" });
      bar.style.setProperty("--share", value / most);
      return h("li", { class: kind }, h("span", { class: "token" }, name), bar, h("span", { class: "number" }, value.toLocaleString("en")));
    };
    const ratio = cost.first / cost.second;
    larger.replaceChildren(
      h("ol", { class: "wide" }, line("(Q K\u1d40) V: 2 N\u00b2 d", cost.first, "first"), line("Q (K\u1d40 V): 2 N d\u00b2", cost.second, "second")),
      h("p", {}, ratio === 1 ? words.equalCost : (ratio > 1 ? words.secondCheaper : words.firstCheaper)(n, d, show(Math.max(ratio, 1 / ratio), 2))));
  }

  sizes();
  if (element.dataset.preset === "token") preset((i) => Number(i === 2));
  else shuffle();
}
