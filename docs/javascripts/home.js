// The live figure of the home page: spiking self-attention on bits drawn at random, one time step after the other.
// The arithmetic is that of the package; a test compares the spikes.
const N = 8, D = 8, T = 4, SCALE = 0.125, TAU = 2, THRESHOLD = 0.5, RATE = 0.42, PAUSE = 1600;

const zeros = () => Array.from({ length: N }, () => new Array(D).fill(0));
const bits = () => zeros().map((row) => row.map(() => Number(Math.random() < RATE)));

/** SN(Q K^T V s) for one time step. `membrane` holds V[t-1]; it is charged and reset in place. */
export function step(q, k, v, membrane) {
  const counts = q.map((row) => k.map((key) => row.reduce((sum, bit, c) => sum + (bit & key[c]), 0)));
  const h = zeros(), spikes = zeros();
  for (let i = 0; i < N; i++) {
    for (let c = 0; c < D; c++) {
      const x = SCALE * counts[i].reduce((sum, count, j) => sum + count * v[j][c], 0);
      h[i][c] = membrane[i][c] + (x - membrane[i][c]) / TAU;
      spikes[i][c] = Number(h[i][c] >= THRESHOLD);
      membrane[i][c] = h[i][c] * (1 - spikes[i][c]);
    }
  }
  return { q, k, v, counts, h, spikes };
}

const strength = { // how strongly a cell is coloured, 0 to 1
  q: (x) => x, k: (x) => x, v: (x) => x, spikes: (x) => x, counts: (x) => x / 6, h: (x) => x / 1.2,
};

function start(root, words) {
  const panels = Object.fromEntries([...root.querySelectorAll("svg[data-matrix]")].map((svg) => [svg.dataset.matrix, svg]));
  const said = root.querySelector(".live-said"), clock = root.querySelector(".live-clock");
  const button = root.querySelector(".live-pause");
  for (const svg of Object.values(panels)) {
    for (let n = 0; n < N * D; n++) {
      const cell = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const [row, column] = [Math.floor(n / D), n % D];
      for (const [name, value] of Object.entries({ x: column + 0.05, y: row + 0.05, width: 0.9, height: 0.9, rx: 0.12 }))
        cell.setAttribute(name, value);
      svg.append(cell);
    }
    const frame = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.append(frame);
  }

  let t = -1, membrane, shown, traced = [2, 3];

  function draw() {
    for (const [name, svg] of Object.entries(panels))
      shown[name].flat().forEach((value, n) => {
        svg.children[n].dataset.value = value;
        svg.children[n].style.setProperty("--on", Math.min(1, strength[name](value)));
      });
    clock.textContent = words.clock(t, T);
    trace();
  }

  function trace() {
    const [i, c] = traced;
    const row = `M0 ${i}h${D}v1h-${D}z`, column = `M${c} 0h1v${N}h-1z`, cell = `M${c} ${i}h1v1h-1z`;
    const frames = { q: row, k: `M0 0h${D}v${N}h-${D}z`, v: column, counts: row, h: cell, spikes: cell };
    for (const [name, svg] of Object.entries(panels)) svg.lastChild.setAttribute("d", frames[name]);
    const gathered = shown.counts[i].reduce((sum, count, j) => sum + count * shown.v[j][c], 0);
    said.textContent = words.trace(i, c, gathered, SCALE, (gathered * SCALE).toFixed(3), shown.h[i][c].toFixed(3),
      shown.spikes[i][c] ? words.spike : words.noSpike);
  }

  function advance() {
    t = (t + 1) % T;
    if (t === 0) membrane = zeros();
    shown = step(bits(), bits(), bits(), membrane);
    draw();
  }

  for (const name of ["h", "spikes"]) // a click or a finger chooses the cell that is traced
    panels[name].addEventListener("pointerdown", (event) => {
      const n = [...panels[name].children].indexOf(event.target);
      if (n >= 0 && n < N * D) { traced = [Math.floor(n / D), n % D]; trace(); }
    });

  let timer = null;
  function run(on) {
    clearInterval(timer);
    timer = on ? setInterval(advance, PAUSE) : null;
    button.textContent = on ? words.pause : words.run;
  }
  button.addEventListener("click", () => run(timer === null));
  root.querySelector(".live-step").addEventListener("click", () => { run(false); advance(); });
  advance();
  run(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}

const roots = document.querySelectorAll(".live");
if (roots.length) { // this file is loaded with every page
  const { strings } = await import("./play/strings.js");
  for (const root of roots) start(root, strings.home);
}
