// Formulas: KaTeX draws what stands between \( \), \[ \] or $$ $$. It is loaded on pages with formulas only.
const vendor = new URL("../assets/vendor/katex/", document.currentScript.src);

function load(tag, attributes) {
  return new Promise((resolve, reject) => {
    const element = Object.assign(document.createElement(tag), attributes, { onload: resolve, onerror: reject });
    document.head.append(element);
  });
}

let ready = null;
function katex() {
  ready ??= Promise.all([
    load("link", { rel: "stylesheet", href: new URL("katex.min.css", vendor) }),
    load("script", { src: new URL("katex.min.js", vendor) }).then(() => load("script", { src: new URL("auto-render.min.js", vendor) })),
  ]);
  return ready;
}

document$.subscribe(async ({ body }) => {
  if (!body.querySelector(".arithmatex")) return;
  await katex();
  renderMathInElement(body, {
    delimiters: [
      { left: "$$", right: "$$", display: true },
      { left: "\\[", right: "\\]", display: true },
      { left: "\\(", right: "\\)", display: false },
    ],
    throwOnError: false, // a mistake is drawn in red; a test looks for it
  });
  await document.fonts.ready;
  for (const formula of body.querySelectorAll(".katex-display")) { // one that is a little too wide is drawn smaller
    const share = formula.clientWidth / formula.scrollWidth;
    if (formula.scrollWidth > formula.clientWidth + 4 && share > 0.7) formula.style.fontSize = `${Math.floor(96 * share)}%`;
  }
  dispatchEvent(new Event("maths"));
});
