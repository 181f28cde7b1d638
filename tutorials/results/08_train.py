"""Runs that take longer than a chapter may, for chapter 08: ``python tutorials/results/08_train.py``.

1. The small Spikformer (``digits-2-64``, with three input channels) on toy CIFAR-10: 200 images a class, 12 epochs.
2. The digits at a batch of 32, and at 256 with the learning rate left alone, scaled with the square root, and scaled
   linearly; 80 digits a class, 6 epochs, two seeds each; measured on validation digits.

CIFAR-10 is looked for under ``$SPIKFORMER_DATA``, else ``./data``. Only numbers are kept, in ``08_train.json``.
"""

import csv
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from spikformer_edu.data import Augment
from spikformer_edu.provenance import provenance
from spikformer_edu.training import DistributedContext, Recipe, train

CPU = DistributedContext(torch.device("cpu"))
CIFAR = Recipe(
    dataset="cifar10",
    model="digits-2-64",
    epochs=12,
    samples_per_class=200,
    val_fraction=0.01,
    augment=Augment(flip=0.5, crop_padding=4),
)
DIGITS = Recipe(epochs=6, samples_per_class=80)
BATCH = 256
CLOCK = (
    "seconds",
    "images_per_s",
    "peak_memory_gib",
)  # other programs ran on the machine: no measurement of speed
# How the learning rate of a batch of 32 is changed for the larger batch.
RULES = {
    "left alone": 1.0,
    "square root": (BATCH / 32) ** 0.5,
    "linear": BATCH / 32,
}


def run(recipe: Recipe) -> tuple[list[dict[str, float]], dict]:
    """Train; the rows of the log and the score on the test set."""
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder), CPU)
        with open(Path(folder) / "metrics.csv", newline="") as log:
            rows = [
                {k: round(float(v), 5) for k, v in row.items() if k not in CLOCK}
                for row in csv.DictReader(log)
            ]
        return rows, json.loads((Path(folder) / "results.json").read_text())


def scaling() -> list[dict]:
    """Validation accuracy by epoch, for each rule and seed."""
    found = []
    recipes = {"batch 32": DIGITS}
    for (
        rule,
        factor,
    ) in (
        RULES.items()
    ):  # lr_batch_size = batch_size: the recipe's own scaling is out of the way
        recipes[f"batch {BATCH}, {rule}"] = replace(
            DIGITS, batch_size=BATCH, lr_batch_size=BATCH, lr=DIGITS.lr * factor
        )
    for name, recipe in recipes.items():
        for seed in (0, 1):
            rows, _ = run(replace(recipe, seed=seed))
            found.append(
                {
                    "run": name,
                    "seed": seed,
                    "lr": recipe.lr,
                    "val_accuracy": [row["val_accuracy"] for row in rows],
                    "loss": [row["loss"] for row in rows],
                }
            )
    return found


def main() -> None:
    torch.set_num_threads(1)
    rows, result = run(CIFAR)
    content = {
        "provenance": provenance(CPU.device)
        | {"command": "python tutorials/results/08_train.py"},
        "cifar10": {"recipe": asdict(CIFAR), "metrics": rows, "result": result},
        "scaling": {"recipe": asdict(DIGITS), "runs": scaling()},
    }
    Path(__file__).with_suffix(".json").write_text(
        json.dumps(content, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
