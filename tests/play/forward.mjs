// Compares the JavaScript forward pass with spikes that Python recorded: node forward.mjs SPIKFORMER.JS FOLDER
//
// FOLDER holds model.json, model.bin, cases.json (a list of {image, timeSteps, logits, layers: {name: {shape}}}) and, for
// case i, i.pixels (float32, normalised; of an event network all T frames, one after the other) and i.spikes (uint8, the
// layers in order, each [T][...] as cases.json says, already in the order of the JavaScript). Prints one JSON line.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [script, folder] = process.argv.slice(2);
const { readModel, forward } = await import(pathToFileURL(script));
const read = (name) => readFileSync(join(folder, name));
const floats = (name) => new Float32Array(new Uint8Array(read(name)).buffer);
const model = readModel(JSON.parse(read("model.json")), new Uint8Array(read("model.bin")).buffer);
const cases = JSON.parse(read("cases.json"));

const report = { values: 0, ones: 0, mismatches: [], logits: 0, milliseconds: {} };
for (const [index, { timeSteps, logits, layers, scores }] of cases.entries()) {
  const all = floats(`${index}.pixels`), length = all.length / timeSteps;
  const pixels = model.events ? Array.from({ length: timeSteps }, (_, t) => all.subarray(t * length, (t + 1) * length)) : all;
  if (!index) for (let i = 0; i < 5; i++) forward(model, pixels, timeSteps); // compile first
  const start = performance.now();
  const found = forward(model, pixels, timeSteps);
  (report.milliseconds[timeSteps] ??= []).push(performance.now() - start);
  const expected = new Uint8Array(read(`${index}.spikes`));
  let at = 0;
  const compare = (name, steps, length) => {
    if (steps.length !== timeSteps || steps.some((step) => step.length * timeSteps !== length)) {
      throw new Error(`${name}: ${steps.length} steps of ${steps[0].length}, expected ${length} values in ${timeSteps} steps`);
    }
    for (const [t, step] of steps.entries()) {
      for (let i = 0; i < step.length; i++, at++) {
        report.values++;
        if (expected[at]) report.ones++;
        if (step[i] !== expected[at]) report.mismatches.push({ case: index, layer: name, t, i, index: t * step.length + i });
      }
    }
  };
  if (Object.keys(found.layers).join() !== layers.map(({ name }) => name).join()) throw new Error("the layers differ");
  for (const { name, length } of layers) compare(name, found.layers[name], length);
  for (const [block, { length }] of scores.entries()) compare(`blocks.${block}.attn.scores`, found.scores[block], length);
  for (let c = 0; c < logits.length; c++) report.logits = Math.max(report.logits, Math.abs(logits[c] - found.logits[c]));
}
console.log(JSON.stringify(report));
