// Starts the demos of a page: every element with data-play names one. The rest of the site loads nothing but this file.
const DEMOS = { neuron: "./neuron.js", ssa: "./ssa.js", digit: "./digit.js", photo: "./photo.js", events: "./events.js", predict: "./predict.js" };

async function start() {
  for (const element of document.querySelectorAll("[data-play]:not([data-started])")) {
    element.dataset.started = "";
    const { mount } = await import(DEMOS[element.dataset.play]);
    await mount(element);
    element.dataset.ready = "";
  }
}

// Material announces every page it shows, also those it fetches without leaving the old one.
if (window.document$) window.document$.subscribe(start);
else start();
