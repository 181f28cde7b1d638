"""How long the networks of the Play pages take in a browser: ``python docs/results/browser.py --out FILE``.

In headless Chromium, on a page of the built site (`make docs`): the JavaScript of the page computes one image with
T = 4 several times, at the processor's speed and slowed down to resemble a phone's.
"""

import functools
import http.server
import shutil
import statistics
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from spikformer_edu import cli
from spikformer_edu.atomic import write_json
from spikformer_edu.provenance import provenance

NETWORKS = {"cifar10-2-128": ("play/photo/", "cifar10/"), "digits-2-64": ("play/digit/", "")}
SLOWDOWNS = (1, 4)
TIMES = """async (folder) => {
    const { forward, normalise, readModel } = await import("../../javascripts/play/spikformer.js");
    const parts = ["json", "bin"].map((kind) => fetch(`../../assets/play/${folder}model.${kind}`));
    const [header, weights] = await Promise.all(parts);
    const model = readModel(await (await header).json(), await (await weights).arrayBuffer());
    const length = model.imageSize ** 2 * model.channels;
    const pixels = Float32Array.from({ length }, (_, i) => (1 + Math.sin(i / 7)) / 2);
    const image = normalise(pixels, model), times = [];
    for (let i = 0; i < 9; i++) {
        const start = performance.now();
        forward(model, image, 4);
        times.push(Math.round(performance.now() - start));
    }
    return times.slice(1); // the first compiles
}"""


@dataclass(frozen=True)
class Options:
    out: Path
    """JSON file for the milliseconds."""
    site: Path = Path("site")
    """Folder of the built site."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, *_: object) -> None:
        pass


def main(options: Options) -> None:
    """Measure both networks at every speed, and write all times."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(options.site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for network, (address, folder) in NETWORKS.items():
            for slowdown in SLOWDOWNS:
                page = browser.new_page()
                page.goto(f"http://127.0.0.1:{server.server_port}/{address}")
                page.wait_for_selector(".play-answer")
                session = page.context.new_cdp_session(page)
                session.send("Emulation.setCPUThrottlingRate", {"rate": slowdown})
                times = page.evaluate(TIMES, folder)
                rows.append({"network": network, "slowdown": slowdown, "milliseconds": times})
                print(network, slowdown, statistics.median(times), times)
                page.close()
        about = provenance(torch.device("cpu")) | {"browser": f"Chromium {browser.version}"}
    about["command"] = f"python docs/results/browser.py --out {options.out.name}"
    write_json(options.out, {"provenance": about, "rows": rows})


if __name__ == "__main__":
    cli.run(main, "python docs/results/browser.py")
