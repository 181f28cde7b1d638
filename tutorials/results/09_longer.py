"""Why did SSA come last on the cued task? ``python tutorials/results/09_longer.py`` (about an hour on two CPU cores).

After the comparison of ``09_cued.py`` three explanations were open: SSA learned slowest and may not have been done; its
best learning rate was the highest tried; and its scale s = 1/8, made for 64 tokens and more, may be small for nine. The
protocol, written down before the first run, is that of ``09_cued.py``, and the same code and test pictures, but

Variants    the five of Table 1, and SSA with s = 1/2.
Budget      1,800 steps instead of 600, the same for all.
Tuning      four learning rates, 0.005 to 0.04.

Questions   Is SSA at 1,800 steps still below ReLU and LeakyReLU? Is SSA with s = 1/2 above SSA with s = 1/8?
Expected    No, or by less; yes.

The test pictures have been measured before, by other networks; nothing is chosen on them. Every run is reported, those
of the tuning too. Seeds are taken in order: should time run out, those that all variants have finished are reported.
"""

from importlib import import_module
from pathlib import Path

import torch

import spikformer_edu as se

cued = import_module("09_cued")


class HalfAttention(se.ATTENTION["ssa"]):
    """SSA with s = 1/2."""

    @staticmethod
    def default_scale(width: int) -> float:
        return 0.5


def main() -> None:
    torch.set_num_threads(1)
    cued.ablations.run_cells(cued.chapter, "09_ablations.py", "cued")
    se.ATTENTION["ssa_half"] = HalfAttention
    variants = ("identity", "leaky_relu", "relu", "softmax", "ssa", "ssa_half")
    rates = (5e-3, 1e-2, 2e-2, 4e-2)
    cued.compare(
        Path(__file__).with_suffix(".json"),
        variants,
        cued.describe,
        steps=1800,
        rates=rates,
    )


if __name__ == "__main__":
    main()
