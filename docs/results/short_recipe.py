"""What each setting of the short recipe for CIFAR-10 is worth: ``python docs/results/short_recipe.py --out FILE``.

Every change of one setting is trained beside the recipe itself, on 45,000 training images, and measured on the other
5,000. The test set is not read. A short run on a small network can tell a rate that is too high from one that is too
low; it cannot tell what 310 epochs of the paper's network need.
"""

import json
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spikformer_edu import cli
from spikformer_edu.atomic import write_json
from spikformer_edu.plot.training import read_log
from spikformer_edu.provenance import provenance
from spikformer_edu.training import DistributedContext, Recipe, choose_device, load_splits, recipe_for, train

CHANGES: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "half the rate": {"lr": 7.5e-4},
    "twice the rate": {"lr": 3e-3},
    "a third of the weight decay": {"weight_decay": 0.02},
    "twice the weight decay": {"weight_decay": 0.12},
    "half the batch, with its rate": {"batch_size": 128},
    "mixup 0.5 in the first half": {"mixup": 0.5},
    "cutmix 0.5 in the first half": {"cutmix": 0.5},
    "no RandAugment": {"randaugment": 0},
    "no erasing": {"erasing": 0.0},
    "running mean of the weights": {"ema_decay": 0.998},
}


@dataclass(frozen=True)
class Options:
    out: Path
    """JSON file for the accuracies; rows that are there already are not measured again."""
    model: str = "cifar10-2-128"
    """Preset: a small one where there is no GPU."""
    epochs: int = 10
    """Passes over the 45,000 images, in each run."""
    seeds: int = 1
    """Runs of each change, with seeds from 0."""
    changes: tuple[str, ...] = tuple(CHANGES)
    """Names of the changes to measure."""
    samples_per_class: int | None = None
    """Use this many training images of each class, to try the script."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda."""


def changed(base: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with some settings changed, in it or in its augmentation."""
    inside = {name: value for name, value in changes.items() if name in asdict(base.augment)}
    if {"mixup", "cutmix"} & set(inside):
        inside["mix_epochs"] = base.epochs // 2
    return replace(
        base,
        augment=replace(base.augment, **inside),
        **{name: value for name, value in changes.items() if name not in inside},
    )


def main(options: Options) -> None:
    """Train the short recipe and its changes at T = 1, and keep their accuracy on images that were set aside."""
    context = DistributedContext(choose_device(options.device))
    base = replace(
        recipe_for("cifar10", "fast-t1"),
        model=options.model,
        epochs=options.epochs,
        warmup_epochs=1,
        val_fraction=0.1,
        samples_per_class=options.samples_per_class,
    )
    splits = load_splits(base)
    splits = replace(splits, test=splits.val)  # what a run measures at its end
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for seed in range(options.seeds):
        for name in options.changes:
            if any((row["change"], row["seed"]) == (name, seed) for row in rows):
                continue
            recipe = replace(changed(base, CHANGES[name]), seed=seed)
            with TemporaryDirectory() as folder:
                train(recipe, Path(folder), context, splits=splits)
                last = read_log(Path(folder))[0][-1]
            found = {key: float(last[key]) for key in ("val_accuracy", "val_loss", "accuracy", "loss")}
            rows.append({"change": name, "seed": seed, **found})
            print(f"{name}, seed {seed}: {100 * found['val_accuracy']:.2f} %", flush=True)
            about = provenance(context.device) | {"command": shlex.join(["python", *sys.argv])}
            about |= {"model": options.model, "epochs": options.epochs}
            write_json(options.out, {"provenance": about, "rows": rows})


if __name__ == "__main__":
    cli.run(main, "python docs/results/short_recipe.py")
