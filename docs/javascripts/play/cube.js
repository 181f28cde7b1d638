// The cube of a recording: x and y of the sensor, and time as the third axis. It is turned by pointer and keyboard.
import { colour } from "./ui.js";

const LONG = 2.6; // half the length of the time axis, where half the sensor is 1
const STEP = Math.PI / 36; // of a key
const STEEPEST = 1.4;
export const VIEWS = { aslant: [0.44, 0.25], side: [0, 0], along: [Math.PI / 2, 0] }; // yaw and pitch, in radians

/**
 * Draws into a canvas and lets it be turned; `turned` is called when the reader has done so.
 *
 * `draw({ frames, size, period, now, sweep })` draws frames (see camera.js): all of them, or, with `now` >= 0, that one
 * fully and the earlier ones faintly; `sweep`, a time, hides what comes later.
 */
export function eventCube(element, canvas, turned) {
  let [yaw, pitch] = VIEWS.aslant;
  let shown = null;
  let turning = 0;

  function turn(to, quietly) {
    cancelAnimationFrame(turning);
    yaw = ((to[0] + Math.PI) % (2 * Math.PI) + 2 * Math.PI) % (2 * Math.PI) - Math.PI;
    pitch = Math.max(-STEEPEST, Math.min(STEEPEST, to[1]));
    paint();
    if (!quietly) turned();
  }

  /** Turns to a view, in half a second where motion is welcome. */
  function turnTo([to, tilt]) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return turn([to, tilt]);
    const [from, flat, start] = [yaw, pitch, performance.now()];
    const step = (time) => {
      const part = Math.min(1, Math.max(0, (time - start) / 500));
      const eased = part * part * (3 - 2 * part);
      turn([from + (to - from) * eased, flat + (tilt - flat) * eased], part < 1);
      if (part < 1) turning = requestAnimationFrame(step);
    };
    turning = requestAnimationFrame(step);
  }

  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    held = [event.clientX, event.clientY, yaw, pitch];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => held && turn([held[2] - (event.clientX - held[0]) / 150, held[3] + (event.clientY - held[1]) / 150]));
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (held = null));
  canvas.addEventListener("keydown", (event) => {
    const [right, down] = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] }[event.key] ?? [];
    if (event.key === "Home") turnTo(VIEWS.aslant);
    else if (right !== undefined) turn([yaw + right, pitch + down]);
    else return;
    event.preventDefault();
  });

  function paint() {
    if (!shown) return;
    const { frames, size, period, now, sweep } = shown;
    const sharp = devicePixelRatio || 1;
    const [wide, tall] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [wide * sharp, tall * sharp];
    const context = canvas.getContext("2d");
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    const [ink, paper, q, fell, rose] = ["--play-ink", "--play-paper", "--play-q", "--play-fell", "--play-rose"].map((name) => colour(element, name));

    // No perspective: seen along the time axis, the cube is the sum of all frames.
    const [sin, cos, up, flat] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
    const depth = (a, b) => b * cos - a * sin;
    const project = (a, b, c) => [a * cos + b * sin, c * flat - depth(a, b) * up];
    const corners = [-LONG, LONG].flatMap((a) => [-1, 1].flatMap((b) => [-1, 1].map((c) => project(a, b, c))));
    const reach = [0, 1].map((axis) => Math.max(...corners.map((corner) => Math.abs(corner[axis]))));
    const scale = Math.min((wide / 2 - 26) / reach[0], (tall / 2 - 22) / reach[1]);
    const place = (a, b, c) => {
      const [x, y] = project(a, b, c);
      return [wide / 2 + x * scale, tall / 2 - 4 + y * scale];
    };
    const along = (t) => LONG * ((2 * t) / period - 1);
    const pixel = (i) => (2 * (i + 0.5)) / size - 1;
    const line = (...points) => {
      context.beginPath();
      for (const point of points) context.lineTo(...place(...point));
      context.stroke();
    };
    const face = (a) => line([a, -1, -1], [a, 1, -1], [a, 1, 1], [a, -1, 1], [a, -1, -1]);
    const edges = (from, to) => {
      for (const b of [-1, 1]) for (const c of [-1, 1]) line([from, b, c], [to, b, c]);
    };

    Object.assign(context, { lineWidth: 1, strokeStyle: `rgba(${ink}, 0.16)` });
    for (const { start } of frames) face(along(start));
    context.strokeStyle = `rgba(${ink}, 0.45)`;
    face(along(0));
    face(along(period));
    edges(along(0), along(period));

    const dots = frames.flatMap(({ events }, i) => events.map((event) => ({ ...event, i, far: depth(along(event.t), pixel(event.x)) })));
    dots.sort((one, other) => other.far - one.far);
    const dot = Math.max(2, (scale * 0.8) / size);
    const through = Math.abs(sin * flat) > 0.98; // then no event may cover another: the colours are mixed, in any order
    if (through) context.globalCompositeOperation = paper[0] > 127 ? "multiply" : "screen";
    for (const { t, x, y, p, i } of dots) {
      if (sweep !== undefined && t > sweep) continue;
      const alpha = now < 0 ? (through ? 0.3 : 0.85) : i === now ? 0.95 : i < now ? 0.22 : 0.07;
      const [left, top] = place(along(t), pixel(x), pixel(y));
      context.fillStyle = `rgba(${p ? rose : fell}, ${alpha})`;
      context.fillRect(left - dot / 2, top - dot / 2, dot, dot);
    }

    context.globalCompositeOperation = "source-over";
    if (now >= 0) {
      Object.assign(context, { lineWidth: 2, strokeStyle: `rgb(${q})` });
      const { start, end } = frames[now];
      for (const t of [start, sweep ?? end]) face(along(t));
      edges(along(start), along(sweep ?? end));
    }

    // Times of the cuts, on the lowest of the four long edges; x and y on the nearest face.
    Object.assign(context, { fillStyle: `rgb(${ink})`, strokeStyle: `rgba(${ink}, 0.6)`, lineWidth: 1, font: "11px sans-serif", textAlign: "center" });
    const [b, c] = [[-1, 1], [1, 1], [-1, -1], [1, -1]].reduce((best, edge) => (place(0, ...edge)[1] > place(0, ...best)[1] + 1e-6 ? edge : best));
    const end = place(along(period), b, c); // its label is the widest
    let last = [-1e9, 0];
    for (const t of [...frames.map(({ start }) => start), period]) {
      const [x, y] = place(along(t), b, c);
      const close = ([left, top], least) => Math.hypot(x - left, y - top) < least;
      if (close(last, 30) || (t > 0 && t < period && close(end, 38))) continue;
      last = [x, y];
      context.fillText(`${Math.round(t / 1000)}${t === period ? " ms" : ""}`, x, Math.min(tall - 3, y + 14));
    }
    const near = depth(LONG, 0) < depth(-LONG, 0) ? LONG : -LONG;
    const label = (word, [x, y], right, down) => context.fillText(word, x + right, y + down);
    if (Math.abs(sin) > 0.15) label("x", place(near, 0, -c), 0, c > 0 ? -6 : 14);
    const outer = [-1, 1].map((edge) => place(near, edge, 0)).sort(([one], [other]) => Math.abs(other - wide / 2) - Math.abs(one - wide / 2))[0];
    label("y", outer, outer[0] > wide / 2 ? 10 : -10, 4);
    Object.assign(canvas.dataset, { yaw: yaw.toFixed(2), pitch: pitch.toFixed(2) });
  }

  return {
    turn, turnTo, paint,
    draw(what) {
      shown = what;
      paint();
    },
    get view() { return [yaw, pitch].map((angle) => angle.toFixed(2)).join(); },
  };
}
