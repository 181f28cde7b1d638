// A prediction: the page holds the question and its options as plain text, this makes them radio buttons. Opening the
// explanation that follows says whether the prediction was right.
import { strings } from "./strings.js";
import { h, newId } from "./ui.js";

const words = strings.predict;

export function mount(element) {
  const question = element.querySelector("p").textContent;
  const texts = [...element.querySelectorAll("li")].map((item) => item.textContent);
  const answer = Number(element.dataset.answer) - 1;
  const name = newId("predict");
  const said = h("p", { class: "play-said", "aria-live": "polite" });
  const inputs = texts.map((_, i) => h("input", { type: "radio", name, value: i }));
  element.replaceChildren(
    h("fieldset", { class: "play-predict" }, h("legend", {}, question),
      texts.map((text, i) => h("label", {}, inputs[i], h("span", {}, text)))), said);

  let why = element.nextElementSibling;
  while (why && why.tagName !== "DETAILS") why = why.nextElementSibling;
  const refresh = () => {
    const chosen = inputs.findIndex((input) => input.checked);
    if (chosen < 0) said.textContent = why?.open ? words.itWas(texts[answer]) : "";
    else if (!why?.open) said.textContent = words.noted;
    else if (chosen === answer) said.textContent = words.right;
    else said.textContent = words.wrong(texts[chosen], texts[answer]);
  };
  for (const input of inputs) input.addEventListener("change", refresh);
  why?.addEventListener("toggle", refresh);
}
