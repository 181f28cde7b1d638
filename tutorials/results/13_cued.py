"""The cued task with the attentions of chapter 13: ``python tutorials/results/13_cued.py`` (about 10 minutes).

The protocol, written down before the first run, is that of ``09_cued.py``, and the same code: task, network, budget,
tuning, seeds, comparison. Its runs of SSA and of the control are the ones to compare with.

Variants    SDSA; token and channel Q-K attention.
Expected    token Q-K attention stays with the control, because its tokens exchange no information; the other two solve
            the task.

Every run is reported, those of the tuning too. (A dry run of 40 steps came before.) The runs in the results file were
made with classes that the chapter defined itself. The package has them now, and the chapter shows that they give the
same spikes and gradients.
"""

from importlib import import_module
from pathlib import Path

import torch

import spikformer_edu as se

cued = import_module("09_cued")


def main() -> None:
    torch.set_num_threads(1)
    cued.ablations.run_cells(cued.chapter, "09_ablations.py", "cued")
    se.ATTENTION["token_qk"] = se.ATTENTION["qk_token"]  # as the results call them
    se.ATTENTION["channel_qk"] = se.ATTENTION["qk_channel"]
    cued.compare(
        Path(__file__).with_suffix(".json"),
        ("sdsa", "token_qk", "channel_qk"),
        None,
    )


if __name__ == "__main__":
    main()
