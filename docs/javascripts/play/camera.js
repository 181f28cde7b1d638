// A recording of an event camera: reading it, playing it in another order, cutting it into frames, and drawing a frame.
import { colour } from "./ui.js";

/** Recordings as docs/hooks.py writes them: an event is one number, ((t size + y) size + x) 2 + p, with t in microseconds. */
export function readRecordings({ size, period, recordings }, buffer) {
  const codes = new Uint32Array(buffer); // little-endian, as every browser is
  let end = 0;
  return recordings.map((facts) => {
    const own = codes.subarray(end, (end += facts.events));
    const events = Array.from(own, (code) => {
      const place = Math.floor(code / 2) % (size * size);
      return { t: Math.floor(code / 2 / size / size), x: place % size, y: Math.floor(place / size), p: code % 2 };
    });
    return { ...facts, size, period, events };
  });
}

/**
 * A recording cut into T frames of equal count: { start, end, events } each, in microseconds.
 *
 * With N events, frame i takes those from i floor(N / T); the last one takes the rest as well.
 */
export function cut({ events, period }, frames) {
  const first = (i) => (i < frames ? i * Math.floor(events.length / frames) : events.length);
  const time = (i) => (i === 0 ? 0 : i === frames ? period : events[first(i)].t);
  return Array.from({ length: frames }, (_, i) => ({ start: time(i), end: time(i + 1), events: events.slice(first(i), first(i + 1)) }));
}

/** Brighter and darker exchanged. */
export const exchanged = (recording) => ({ ...recording, events: recording.events.map((event) => ({ ...event, p: 1 - event.p })) });

/** The recording as a film that runs backwards: what got brighter gets darker. */
export function backwards(recording) {
  const { events, period } = exchanged(recording);
  return { ...recording, events: events.map((event) => ({ ...event, t: period - 1 - event.t })).reverse() };
}

/** Frames in another order, one after the other in time. */
export function reorder(frames, order) {
  let now = 0;
  return order.map((i) => {
    const [start, shift] = [now, now - frames[i].start];
    now += frames[i].end - frames[i].start;
    return { start, end: now, events: frames[i].events.map((event) => ({ ...event, t: event.t + shift })) };
  });
}

/** An order of n things at random; the same seed gives the same order. */
export function shuffled(n, seed) {
  let state = seed + 1;
  const random = (below) => {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9;
    return ((state ^ (state >>> 13)) >>> 0) % below;
  };
  const order = Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = random(i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** Every frame gets all events: the order is gone, the number of steps is not. */
export function summed(frames) {
  const [all, end] = [frames.flatMap(({ events }) => events), frames.at(-1).end];
  return frames.map((_, i) => {
    const [start, stop] = [(end * i) / frames.length, (end * (i + 1)) / frames.length];
    return { start, end: stop, events: all.map((event) => ({ ...event, t: (start + stop) / 2 })) };
  });
}

/** The events of a frame counted by pixel and polarity: [H][W][2], darker first. */
export function counts(events, size) {
  const map = new Float32Array(size * size * 2);
  for (const { x, y, p } of events) map[(y * size + x) * 2 + p]++;
  return map;
}

/** Several maps added up. */
export const total = (maps) => maps.reduce((sum, map) => sum.map((value, i) => value + map[i]), new Float32Array(maps[0].length));

/** The count that is drawn in full colour: few pixels of a map have more. */
export function brightest(map) {
  const found = map.filter((value) => value > 0).sort();
  return found.length ? Math.max(1, found[Math.floor(0.95 * (found.length - 1))]) : 1;
}

/** Draws a map of event counts: darker orange, brighter blue, both the mixture; `share` says how strongly a pixel is drawn. */
export function paintEvents(element, canvas, size, map, share = () => 1) {
  [canvas.width, canvas.height] = [size, size];
  const [paper, fell, rose] = ["--play-paper", "--play-fell", "--play-rose"].map((name) => colour(element, name));
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(size, size);
  const most = brightest(map);
  for (let i = 0; i < size * size; i++) {
    const [down, up] = [map[2 * i], map[2 * i + 1]].map((count) => Math.min(1, count / most) * share(i));
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = paper[c] + down * (fell[c] - paper[c]) + up * (rose[c] - paper[c]);
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}
