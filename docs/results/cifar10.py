"""What a CIFAR-10 network of the package was seen to do: ``python docs/results/cifar10.py cifar10-4-384``.

Writes ``<network>.json`` beside this file:

1. Accuracy at T = 1 to 8, and the firing rate of every layer in every time step.
2. Energy, membranes and attention scores at T = 4, on some of those images.

``cifar10-2-128`` is seen on training images that were kept for validation; its two runs are those of
``make pretrained-cifar10``. ``cifar10-4-384`` was trained on all training images, so it is seen on test images. Nothing
is chosen by these numbers. All is computed in fp32. CIFAR-10 is looked for under ``$SPIKFORMER_DATA``, else ``./data``.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import spikformer_edu as se
from spikformer_edu.model import Spikformer
from spikformer_edu.presets import configure
from spikformer_edu.provenance import provenance
from spikformer_edu.training import load_splits
from spikformer_edu.training.checkpoint import start_from

HERE = Path(__file__).parent
MOST_STEPS = 8
BATCH = 20
SLOPE, VANISHED = 4.0, 0.05  # of the surrogate; share of its height below which a gradient counts as vanished


@dataclass(frozen=True)
class Subject:
    """What is measured of one packaged network."""

    runs: dict[str, str]
    """Run folder or packaged network -> what the tables call its weights; the last are the packaged ones."""
    split: str
    images: int
    """Number of images for accuracy and rates."""
    few: int
    """Number of images, the first of those, for energy, membranes and scores."""


SUBJECTS = {
    "cifar10-2-128": Subject(
        {"runs/cifar10-t1": "after the epochs at T = 1", "cifar10-2-128": "after those at T = 4 (packaged)"},
        split="val",
        images=2000,
        few=500,
    ),
    "cifar10-4-384": Subject({"cifar10-4-384": "packaged"}, split="test", images=1000, few=200),
}


@torch.no_grad()
def over_time(model: Spikformer, images: Tensor, targets: Tensor) -> tuple[list[int], dict[str, list[float]]]:
    """Correct answers at T = 1, 2, ..., and the firing rate of every layer by time step.

    One pass at the largest T is enough: no step sees a later one, so its first steps are those of a smaller T.
    """
    correct = torch.zeros(MOST_STEPS, dtype=torch.long)
    fired: dict[str, Tensor] = {}
    for batch, labels in zip(images.split(BATCH), targets.split(BATCH), strict=True):
        with se.record(model, compact=True) as rec:
            model(batch.expand(MOST_STEPS, *batch.shape))
        sums = rec.logits.cumsum(0)  # the mean over T has the same largest logit
        correct += (sums.argmax(-1) == labels).sum(1)
        for layer in rec.layers("spikes"):
            rates = layer.spikes.flatten(1).double().mean(1) * len(batch) / len(images)
            fired[layer.name] = fired.get(layer.name, torch.zeros(MOST_STEPS)) + rates
        print(".", end="", flush=True)
    return correct.tolist(), {name: [round(rate, 6) for rate in rates.tolist()] for name, rates in fired.items()}


@torch.no_grad()
def membranes_and_scores(model: Spikformer, images: Tensor) -> tuple[dict, dict]:
    """Of every neuron layer the mean of H, shares on the threshold and without gradient; of every block the scores."""
    membranes: dict[str, dict[str, float]] = {}
    scores: dict[str, dict[str, float]] = {}
    for batch in images.split(BATCH):
        with se.record(model, membranes=True, compact=True) as rec:
            model(batch)
        share = len(batch) / len(images)
        for layer in rec.layers("spikes"):
            sigma = torch.sigmoid(SLOPE * (layer.membrane - layer.v_threshold))
            seen = {
                "mean": layer.membrane.mean(),
                "on the threshold": (layer.membrane == layer.v_threshold).double().mean(),
                "no gradient": (4 * sigma * (1 - sigma) < VANISHED).double().mean(),
            }
            add(membranes, layer.name, seen, share)
        for layer in rec.layers("scores"):
            add(scores, layer.name, {"mean": layer.values.mean(), "zero": (layer.values == 0).double().mean()}, share)
            scores[layer.name]["largest"] = max(scores[layer.name].get("largest", 0.0), float(layer.values.max()))
    return membranes, scores


def add(found: dict[str, dict[str, float]], name: str, seen: dict[str, Tensor], share: float) -> None:
    """Add the means over one batch to the means over all."""
    row = found.setdefault(name, {})
    for key, value in seen.items():
        row[key] = row.get(key, 0.0) + share * float(value)


def main(name: str) -> None:
    where = provenance(torch.device("cpu")) | {"command": f"python docs/results/cifar10.py {name}"}
    subject, model = SUBJECTS[name], Spikformer(configure(name)).eval()
    splits = load_splits(se.load_run(name).recipe)
    split = splits[subject.split]
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[: subject.images]
    images, targets = split.fetch(chosen, None)
    accuracy = []
    for run, weights in subject.runs.items():
        start_from(model, run, splits.info.classes)
        correct, by_step = over_time(model, images, targets)
        accuracy += [
            {"weights": weights, "T": steps, "correct": right, "total": len(targets)}
            for steps, right in enumerate(correct, 1)
        ]
        print(f"\n{weights}: {correct}", flush=True)
    usual = model.config.time_steps
    membranes, scores = membranes_and_scores(model, images[: subject.few])
    found = {
        "split": subject.split,
        "accuracy": accuracy,
        "rates": {layer: round(sum(rates[:usual]) / usual, 6) for layer, rates in by_step.items()},
        "rates_by_step": by_step,
        "membranes": membranes,
        "scores": scores,
        "energy": se.energy(model, images[: subject.few]).to_dict(),
        "provenance": where,
    }
    (HERE / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
