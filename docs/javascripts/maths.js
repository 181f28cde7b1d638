// Formulas: KaTeX draws what stands between \( \), \[ \] or $$ $$ on the page.
document$.subscribe(({ body }) => {
  renderMathInElement(body, {
    delimiters: [
      { left: "$$", right: "$$", display: true },
      { left: "\\[", right: "\\]", display: true },
      { left: "\\(", right: "\\)", display: false },
    ],
    throwOnError: false, // a mistake is drawn in red; a test looks for it
  });
});
