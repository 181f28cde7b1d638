// What the theme leaves out for readers with a keyboard or a screen reader: the search has a name, and everything that
// scrolls sideways can be reached with Tab. The switch to the other language stays at the place.
document$.subscribe(() => {
  const search = document.querySelector("[data-md-component=search]");
  search?.setAttribute("aria-label", search.querySelector("input").placeholder);
  const reach = () => {
    for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset__table, .arithmatex, .katex-display, .md-typeset pre > code, .play-scroll")) {
      if (box.scrollWidth > box.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(box).overflowX)) box.tabIndex = 0;
    }
  };
  setTimeout(reach, 300); // after the theme has wrapped the tables
  addEventListener("maths", reach);
  document.querySelector(".language a:not([data-only])")?.addEventListener("click", ({ currentTarget }) => {
    currentTarget.search = location.search; // the state of a demo, and the section, are the same in the other language
    currentTarget.hash = location.hash;
  });
});
