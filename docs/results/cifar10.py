"""What the CIFAR-10 network of the package was seen to do, into ``cifar10.json``: ``python docs/results/cifar10.py``.

1. Accuracy at several T, of the weights after the epochs at T = 1 and of those after the epochs at T = 4.
2. Firing rates, operations and energy of the final weights, at T = 4.

All of it on training images that were kept for validation: the test set was measured once, when the run ended. CIFAR-10
is looked for under ``$SPIKFORMER_DATA``, else ``./data``; the two runs are those of ``make pretrained-cifar10``.
"""

import json
from pathlib import Path

import torch

import spikformer_edu as se
from spikformer_edu.model import Spikformer
from spikformer_edu.presets import configure
from spikformer_edu.provenance import provenance
from spikformer_edu.training import DistributedContext, evaluate, load_splits
from spikformer_edu.training.checkpoint import start_from

HERE = Path(__file__).parent
MODEL = "cifar10-2-128"
RUNS = {"runs/cifar10-t1": "after the epochs at T = 1", MODEL: "after those at T = 4 (packaged)"}
STEPS = (1, 2, 3, 4, 6, 8)
IMAGES = 500  # for rates and energy
CPU = DistributedContext(torch.device("cpu"))


def main() -> None:
    splits = load_splits(se.load_run(MODEL).recipe)
    accuracy = []
    for run, name in RUNS.items():
        for steps in STEPS:
            model = Spikformer(configure(MODEL, time_steps=steps))
            start_from(model, run, splits.info.classes)
            score = evaluate(model, splits.val, CPU)
            accuracy.append({"weights": name, "T": steps, "correct": score.correct, "total": score.total})
            print(accuracy[-1], flush=True)
    model = se.load_pretrained(MODEL)
    images = splits.val.fetch(torch.arange(IMAGES), None)[0]
    with torch.no_grad(), se.record(model) as rec:
        model(images)
    rates = {layer.name: round(float(layer.spikes.mean()), 6) for layer in rec.layers("spikes")}
    found = {
        "accuracy": accuracy,
        "rates": rates,
        "energy": se.energy(model, images).to_dict(),
        "provenance": provenance(CPU.device) | {"command": "python docs/results/cifar10.py"},
    }
    (HERE / "cifar10.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
