"""Trains the network without spikes that chapter 10 compares energies with: ``python tutorials/results/10_energy.py``.

About 5 minutes on one CPU core. The protocol, written down before the runs:

Network     digits-2-64 with the softmax attention of Table 1, a ReLU in the place of every LIF, and T = 1. It has the
            layers that ``se.energy`` counts as the network without spikes.
Budget      the package's digits recipe, which also trained digits-2-64.
Seeds       0, 1 and 2.
Choice      the epoch with the lowest validation loss. The test set is measured once, after that.

Every run is reported.
"""

from importlib import import_module
from pathlib import Path

import torch
from torch import nn

import spikformer_edu as se
from spikformer_edu.training import RECIPES

ablations = import_module("09_ablations")


def without_spikes() -> se.Spikformer:
    """The layers of digits-2-64 with ReLUs for neurons, one time step."""
    model = se.spikformer("digits-2-64", attention="softmax", time_steps=1)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, se.LIF):
                setattr(module, name, nn.ReLU())
    return model


def main() -> None:
    torch.set_num_threads(1)
    recipe = RECIPES["digits"]
    ablations.RECIPE = recipe
    ablations.digits = lambda: se.data.load("digits", augment=recipe.augment)
    ablations.NETWORK = {}  # nothing is made smaller
    runs: list[dict] = []
    for seed in range(3):
        _, run = ablations.train_and_test(without_spikes, seed)
        runs.append(run)
        ablations.write(Path(__file__).with_suffix(".json"), runs)
        top1 = f"{100 * run['test_accuracy']:.2f} %"
        print(f"seed {seed}: {top1}, {run['cpu_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
