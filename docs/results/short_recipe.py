"""What each setting of the short recipe for CIFAR-10 is worth: ``python docs/results/short_recipe.py --out FILE``.

Every change of one setting is trained beside the recipe itself, on 45,000 training images, and measured on the other
5,000; on a processor, on fewer. The test set is not read. A short run on a small network can tell a rate that is too
high from one that is too low; it cannot tell what 310 epochs of the paper's network need. Several processes may write
into one file if each of them measures other changes.
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
    "half the batch, with its rate": {"batch_size": 128},
    "mixup 0.5 in the first half": {"mixup": 0.5},
    "no shifted crops": {"crop_padding": 0},
    "cutmix 0.5 in the first half": {"cutmix": 0.5},
    "a third of the weight decay": {"weight_decay": 0.02},
    "twice the weight decay": {"weight_decay": 0.12},
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
    """Passes over the training images, in each run; the first warms up."""
    seeds: int = 1
    """Runs of each change, with seeds from 0."""
    changes: tuple[str, ...] = tuple(CHANGES)
    """Names of the changes to measure."""
    samples_per_class: int | None = None
    """Use this many training images of each class; all unless given."""
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
        split_seed=0,  # the same images for every seed
        samples_per_class=options.samples_per_class,
    )
    about = provenance(context.device) | {"command": shlex.join(["python", *sys.argv]), "recipe": asdict(base)}
    for seed in range(options.seeds):
        for name in options.changes:
            if any((row["change"], row["seed"]) == (name, seed) for row in measured(options.out)):
                continue
            recipe = replace(changed(base, CHANGES[name]), seed=seed)
            splits = load_splits(recipe)  # its training images are augmented as it says
            splits = replace(splits, test=splits.val)  # what a run measures at its end
            with TemporaryDirectory() as folder:
                train(recipe, Path(folder), context, splits=splits)
                last = read_log(Path(folder))[0][-1]
            found: dict[str, float] = {"training images": len(splits.train), "validation images": len(splits.val)}
            found |= {key: float(last[key]) for key in ("val_accuracy", "val_loss", "accuracy", "loss")}
            rows = [*measured(options.out), {"change": name, "seed": seed, **found}]
            write_json(options.out, {"provenance": about, "rows": rows})
            print(f"{name}, seed {seed}: {100 * found['val_accuracy']:.2f} %", flush=True)


def measured(out: Path) -> list[dict[str, Any]]:
    """The rows that a file has."""
    return json.loads(out.read_text())["rows"] if out.exists() else []


if __name__ == "__main__":
    cli.run(main, "python docs/results/short_recipe.py")
