// A photograph goes through the packaged CIFAR-10 network, and every spike of it is shown.
import { readState } from "./share.js";
import { strings } from "./strings.js";
import { button, h, newId } from "./ui.js";
import { loadModel, networkView } from "./view.js";

const words = strings.photo;

const SIDE = 32;
const CAT = new URL("../../assets/cat.png", import.meta.url);

/** Pictures to start from: all made of one photograph, so that what changes the answer is what changed in it. */
const VARIANTS = {
  cat: (context, picture) => context.drawImage(picture, 0, 0, SIDE, SIDE),
  mirror: (context, picture) => { context.scale(-1, 1); context.drawImage(picture, -SIDE, 0, SIDE, SIDE); },
  turned: (context, picture) => { context.scale(1, -1); context.drawImage(picture, 0, -SIDE, SIDE, SIDE); },
  gray: (context, picture) => { context.filter = "grayscale(1)"; context.drawImage(picture, 0, 0, SIDE, SIDE); },
  dark: (context, picture) => { context.filter = "brightness(0.35)"; context.drawImage(picture, 0, 0, SIDE, SIDE); },
  eyes: (context, picture) => context.drawImage(picture, 4, 8, 20, 20, 0, 0, SIDE, SIDE),
};

/** A canvas of 32 x 32 pixels. */
function small(draw) {
  const canvas = h("canvas", { width: SIDE, height: SIDE });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  draw(context);
  return canvas;
}

/** The largest square in the middle of a picture, halved until it is close to 32 x 32: every pixel counts. */
function square(picture) {
  let size = Math.min(picture.width, picture.height);
  let [from, left, top] = [picture, (picture.width - size) / 2, (picture.height - size) / 2];
  while (size > 2 * SIDE) {
    const half = h("canvas", { width: Math.ceil(size / 2), height: Math.ceil(size / 2) });
    half.getContext("2d").drawImage(from, left, top, size, size, 0, 0, half.width, half.height);
    [from, left, top, size] = [half, 0, 0, half.width];
  }
  return small((context) => context.drawImage(from, left, top, size, size, 0, 0, SIDE, SIDE));
}

export async function mount(element) {
  const [model, cat] = await Promise.all([loadModel(element, "cifar10/"), picture(CAT)]);
  if (!model) return;
  const asked = readState();
  let which = asked.photo in VARIANTS ? asked.photo : "cat";
  let touched = "photo" in asked;

  const photo = h("canvas", { width: SIDE, height: SIDE, class: "play-photo", role: "img", "aria-label": words.photograph });
  const made = Object.fromEntries(Object.entries(VARIANTS).map(([key, draw]) => [key, small((context) => draw(context, cat))]));
  const samples = Object.keys(VARIANTS).map((key) => button(
    h("img", { src: made[key].toDataURL(), alt: "", width: SIDE, height: SIDE }),
    () => {
      [which, touched] = [key, true];
      use(made[key], { playing: true });
    }, { class: "play-sample", "aria-label": words.sample(words.variants[key]), title: words.variants[key], "data-sample": key }));
  const file = h("input", { type: "file", accept: "image/*", id: newId("file"), class: "play-file" });
  const trouble = h("p", { class: "play-said play-trouble", role: "status" });
  file.addEventListener("change", () => file.files[0] && own(file.files[0]));
  const input = h("div", { class: "play-draw" }, photo);
  const below = h("div", {},
    h("div", { class: "play-samples", role: "group", "aria-label": words.samples }, ...samples),
    h("p", { class: "play-upload" }, h("label", { for: file.id }, words.own, " "), file),
    h("p", { class: "play-note" }, words.stays), trouble);
  element.addEventListener("dragover", (event) => event.preventDefault());
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) own(event.dataTransfer.files[0]);
  });

  const view = networkView(element, model, {
    input, below,
    state: () => ({ photo: which === "own" ? "" : which, touched }),
    reads: words.reads, empty: words.empty,
  });

  async function own(chosen) {
    trouble.textContent = "";
    try {
      const bitmap = await createImageBitmap(chosen);
      [which, touched] = ["own", true];
      use(square(bitmap), { playing: true });
    } catch {
      trouble.textContent = words.unreadable(chosen.name);
    }
  }

  function use(canvas, how) {
    photo.getContext("2d").drawImage(canvas, 0, 0);
    for (const each of samples) each.setAttribute("aria-pressed", String(each.dataset.sample === which));
    const { data } = canvas.getContext("2d").getImageData(0, 0, SIDE, SIDE);
    view.show(Float32Array.from({ length: 3 * SIDE * SIDE }, (_, i) => data[4 * Math.floor(i / 3) + (i % 3)] / 255), how);
  }

  use(made[which], { playing: !view.asked });
}

function picture(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error(`${url.href} cannot be loaded`));
    image.src = url;
  });
}
