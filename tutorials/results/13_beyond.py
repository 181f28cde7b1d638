"""Trains the variants of chapter 13: ``python tutorials/results/13_beyond.py`` (about 5 minutes on one CPU core).

The protocol, written down before the first run, is that of chapter 09 and the same code: ``09_ablations.py``, whose
docstring says task, network, budget, seeds, choice and comparison. Its runs of SSA and of the control without attention
are the ones to compare with.

Variants    SDSA; token and channel Q-K attention; SSA and SDSA with membrane shortcuts.

Every run is reported. The runs in the results file were made with classes that the chapter defined itself. The
package has them now, and the chapter shows that they give the same spikes and gradients; ``energy`` did not count
masks then, and does now.
"""

from importlib import import_module
from pathlib import Path

import torch

import spikformer_edu as se
from spikformer_edu.presets import configure

ablations = import_module("09_ablations")
VARIANTS: dict[str, dict] = {
    "sdsa": dict(attention="sdsa"),
    "token_qk": dict(attention="qk_token"),
    "channel_qk": dict(attention="qk_channel"),
    "membrane": dict(residual="membrane"),
    "sdsa_membrane": dict(attention="sdsa", residual="membrane"),
}


def main() -> None:
    torch.set_num_threads(1)
    runs = []
    for seed in ablations.SEEDS:
        for name, options in VARIANTS.items():
            config = configure("digits-2-64", **options, **ablations.NETWORK)
            model, run = ablations.train_and_test(
                lambda c=config: se.Spikformer(c), seed
            )
            rates = {}
            with torch.no_grad(), se.record(model, compact=True) as rec:
                model(ablations.validation_images()[0])
            for line in rec.summary():
                if line["rate"] is not None:
                    rates[line["layer"]] = line["rate"]
            parameters = sum(p.numel() for p in model.parameters())
            runs.append({"variant": name, "parameters": parameters} | run)
            runs[-1] |= {"energy": ablations.joules(model), "rates": rates}
            ablations.write(Path(__file__).with_suffix(".json"), runs)
            print(f"seed {seed}  {name:14} {run['cpu_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
