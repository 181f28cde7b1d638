// Formulas are drawn when the site is built (docs/hooks.py). One that is a little too wide for its place is drawn smaller.
document$.subscribe(async ({ body }) => {
  await document.fonts.ready;
  for (const formula of body.querySelectorAll(".katex-display")) {
    const share = formula.clientWidth / formula.scrollWidth;
    if (formula.scrollWidth > formula.clientWidth + 4 && share > 0.7) formula.style.fontSize = `${Math.floor(96 * share)}%`;
  }
  dispatchEvent(new Event("maths"));
});
