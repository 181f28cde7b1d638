// What the demos share: building elements, labelled controls, and colours that follow the light or dark page.

/** The symbol of the threshold. */
export const vth = () => h("span", {}, "V", h("sub", {}, "th"));

let lastId = 0;
/** An id that no other element has. */
export const newId = (name) => `play-${name}-${++lastId}`;

/** An element: h("p", { class: "note" }, "text", child). Attributes that are undefined or false are left out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2));
  return element;
}

/** A number with at most `digits` decimals, and a true minus sign. */
export function show(value, digits = 3) {
  return String(Number(value.toFixed(digits))).replace("-", "\u2212");
}

/**
 * A labelled range input; the label is text or elements; `format` says what stands beside it, and is read out as its value.
 * `fine` adds a button at each end: a finger cannot set one of 64 values. The keyboard has its arrow keys for that.
 */
export function slider(label, { min, max, step, value, name, format = show, fine = false }, changed) {
  const input = h("input", { type: "range", min, max, step, value, id: newId("slider"), name });
  const output = h("output", { for: input.id });
  const refresh = () => {
    output.textContent = format(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    refresh();
    changed();
  });
  refresh();
  const nudge = (sign, by) => button(sign, () => {
    input.stepUp(by);
    input.dispatchEvent(new Event("input"));
  }, { class: "play-button play-nudge", tabindex: "-1", "aria-hidden": "true" });
  const range = fine ? h("div", { class: "play-fine" }, nudge("\u2212", -1), input, nudge("+", 1)) : input;
  const element = h("div", { class: "play-slider" }, h("label", { for: input.id }, label), output, range);
  return {
    element,
    input,
    get value() {
      return Number(input.value);
    },
    set value(number) {
      input.value = number;
      refresh();
    },
  };
}

/** A group of radio buttons: options are [value, text]. */
export function choice(label, name, options, value, changed) {
  const group = newId(name);
  const inputs = options.map(([key]) => h("input", { type: "radio", name: group, value: key, checked: key === value }));
  const labels = options.map(([, text], i) => h("label", {}, inputs[i], h("span", {}, text)));
  for (const input of inputs) input.addEventListener("change", changed);
  return {
    element: h("fieldset", { class: "play-choice", "data-name": name }, h("legend", {}, label), ...labels),
    get value() {
      return inputs.find((input) => input.checked).value;
    },
    set value(key) {
      for (const input of inputs) input.checked = input.value === key;
    },
    show(key, shown) {
      for (const [i, input] of inputs.entries()) if (input.value === key) labels[i].hidden = !shown;
    },
  };
}

/** A labelled drop-down list: options are [value, text]. */
export function select(label, name, options, value, changed) {
  const list = h("select", { id: newId("select"), name },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
  list.addEventListener("change", changed);
  return {
    element: h("div", { class: "play-select" }, h("label", { for: list.id }, label), list),
    input: list,
    get value() {
      return list.value;
    },
    set value(key) {
      list.value = key;
    },
  };
}

/** A push button. */
export function button(text, clicked, attributes = {}) {
  const element = h("button", { type: "button", class: "play-button", ...attributes }, text);
  element.addEventListener("click", clicked);
  return element;
}

/** Whether the page asks a demo to leave a part out: data-hide="table reset". */
export const hidden = (element, part) => (element.dataset.hide ?? "").split(" ").includes(part);

/** Calls `redraw` when the page turns light or dark, or the element changes its width, while the element is there. */
export function onLook(element, redraw) {
  const look = new MutationObserver(() => (element.isConnected ? redraw() : look.disconnect()));
  look.observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
  let width = element.clientWidth;
  const size = new ResizeObserver(() => {
    if (!element.isConnected) size.disconnect();
    else if (element.clientWidth !== width) {
      width = element.clientWidth;
      redraw();
    }
  });
  size.observe(element);
}

/** A colour of the style sheet, as [r, g, b]: for canvases, which know no CSS variables. */
export function colour(element, variable) {
  const probe = h("span", { class: "play-probe" });
  probe.style.color = `var(${variable})`;
  element.append(probe);
  const numbers = getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
  probe.remove();
  return numbers.slice(0, 3);
}
