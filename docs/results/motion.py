"""How much time a task needs: which way a simulated digit goes round. ``python docs/results/motion.py --out FILE``.

The protocol, written before these runs. Data: ``digits-motion`` (16 x 16 pixels), 800 recordings to train on and 718 to
test on, of other digits; half of each goes either way, so chance is 50 %. Network: ``nmnist-2-64`` with two classes,
which is a preset of its own now, ``digits-motion-2-64``. Recipe: that of the data set (2 epochs, batch 32, learning
rate 3e-3, no augmentation), the same for all. Six inputs: T = 1, 2, 4, 8 and 16 frames of equal count, and for T = 8
the sum of all frames, shown eight times: the same steps and the same events, but no order. Three seeds each (0, 1, 2).
The epoch is chosen on the 360 recordings for validation; the test set is measured once. Before it, one run was made to
see how long an epoch takes: T = 8, all 2,516 recordings, one epoch; it gave 712 of 718, and led to the small number of
recordings and epochs. Everything is simulated: it says nothing about a real camera.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from spikformer_edu import cli
from spikformer_edu.atomic import write_json
from spikformer_edu.data import Splits
from spikformer_edu.data.recordings import Frames
from spikformer_edu.provenance import provenance
from spikformer_edu.training import DistributedContext, load_splits, recipe_for, train

STEPS, SEEDS = (1, 2, 4, 8, 16), (0, 1, 2)
PER_CLASS = 400  # recordings to train on
SUMMED = "the sum, 8 times"


@dataclass(frozen=True)
class Options:
    out: Path
    """JSON file for the accuracies; runs that are there already are not made again."""


def summed(splits: Splits) -> Splits:
    """Every frame replaced by the sum of all: the same number of steps, and no order."""

    def of(split: Frames) -> Frames:
        total = split.frames.sum(1, keepdim=True, dtype=torch.int32).expand(split.frames.shape)
        return Frames(total.contiguous(), split.targets, split.augment, split.source)

    assert isinstance(splits.train, Frames) and isinstance(splits.val, Frames) and isinstance(splits.test, Frames)
    return replace(splits, train=of(splits.train), val=of(splits.val), test=of(splits.test))


def main(options: Options) -> None:
    """Train what is missing, and write the test accuracies."""
    torch.set_num_threads(1)
    content = json.loads(options.out.read_text()) if options.out.exists() else {"accuracy": {}, "provenance": []}
    for name in (*map(str, STEPS), SUMMED):
        for seed in SEEDS[len(content["accuracy"].get(name, [])) :]:
            steps = 8 if name == SUMMED else int(name)
            recipe = replace(recipe_for("digits-motion"), time_steps=steps, samples_per_class=PER_CLASS, seed=seed)
            splits = load_splits(recipe)
            with TemporaryDirectory() as folder:
                given = summed(splits) if name == SUMMED else splits
                score = train(recipe, Path(folder) / "run", DistributedContext(torch.device("cpu")), splits=given)
            content["accuracy"].setdefault(name, []).append(score.accuracy)
            command = f"python docs/results/motion.py --out {options.out.name}"
            made = provenance(torch.device("cpu")) | {"command": command}
            if made not in content["provenance"]:  # runs may be added later
                content["provenance"].append(made)
            write_json(options.out, content)
            print(name, seed, score, flush=True)


if __name__ == "__main__":
    cli.run(main, "python docs/results/motion.py")
