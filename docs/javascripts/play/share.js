// The state of a page in its address, and what is done with it: copy the link, copy a picture, hide the controls.
import { strings } from "./strings.js";
import { button, h } from "./ui.js";

const words = strings.share;

/** The state that the address holds: { name: text }. */
export const readState = () => Object.fromEntries(new URLSearchParams(location.search));

let waiting = 0;
/** Writes the state into the address, without a step in the history; what is undefined or "" is left out. */
export function writeState(state) {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) if (value !== undefined && value !== "") parameters.set(name, value);
    const text = parameters.toString();
    history.replaceState(history.state, "", `${location.pathname}${text ? `?${text}` : ""}${location.hash}`);
  }, 150);
}

const DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz";
/** Strokes as text: two base-36 digits a coordinate, "." between strokes; points nearer than 3 units are left out. */
export function packStrokes(strokes) {
  const number = (value) => DIGITS[Math.floor(value / 36)] + DIGITS[value % 36];
  return strokes.map((stroke) => {
    const kept = stroke.filter(([x, y], i) => i === 0 || i === stroke.length - 1 || Math.hypot(x - stroke[i - 1][0], y - stroke[i - 1][1]) >= 3);
    return kept.map(([x, y]) => number(Math.round(x)) + number(Math.round(y))).join("");
  }).join(".");
}

/** The strokes of such a text; what is none gives none. */
export function unpackStrokes(text) {
  if (!/^([0-9a-z]{4})+(\.([0-9a-z]{4})+)*$/.test(text ?? "")) return [];
  return text.split(".").map((stroke) => stroke.match(/.{4}/g).map((point) => [parseInt(point.slice(0, 2), 36), parseInt(point.slice(2), 36)]));
}

/** Buttons: copy the link, copy a picture (`draw` returns a canvas), hide the controls. */
export function shareButtons(draw) {
  const said = h("span", { class: "play-note", role: "status" });
  const tell = (text) => {
    said.textContent = text;
    setTimeout(() => (said.textContent = ""), 4000);
  };
  const copyLink = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      tell(words.linkCopied);
    } catch {
      tell(words.copyThis(location.href));
    }
  };
  const copyImage = () => draw().toBlob(async (blob) => {
    try {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
      tell(words.imageCopied);
    } catch { // no permission, or a browser without it: a file then
      const link = h("a", { href: URL.createObjectURL(blob), download: "spikformer.png" });
      link.click();
      URL.revokeObjectURL(link.href);
      tell(words.imageSaved(link.download));
    }
  });
  const lesson = button(words.hideControls, () => showLesson(!document.body.classList.contains("play-lesson")), { "data-action": "lesson" });
  const showLesson = (on) => {
    document.body.classList.toggle("play-lesson", on);
    lesson.textContent = on ? words.showControls : words.hideControls;
    if (on) scrollTo(0, 0); // to the picture, which is now at the top
    dispatchEvent(new CustomEvent("play-lesson", { detail: on }));
  };
  document.addEventListener("keydown", (event) => event.key === "Escape" && document.body.classList.contains("play-lesson") && showLesson(false));
  if (readState().lesson) showLesson(true);
  return h("div", { class: "play-buttons play-share" },
    button(words.copyLink, copyLink, { "data-action": "link" }), button(words.copyImage, copyImage, { "data-action": "image" }), lesson, said);
}
