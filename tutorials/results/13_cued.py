"""The cued task with the attentions of chapter 13: ``python tutorials/results/13_cued.py`` (about 10 minutes).

The protocol, written down before the first run, is that of ``09_cued.py``, and the same code: task, network, budget,
tuning, seeds, comparison. Its runs of SSA and of the control are the ones to compare with. The classes are the
chapter's own, and the answer to exercise 13.1.

Variants    SDSA; token and channel Q-K attention.
Expected    token Q-K attention stays with the control, because no token hears of another; the other two solve the task.

Every run is reported, those of the tuning too. (A dry run of 40 steps came before.)
"""

from importlib import import_module
from pathlib import Path

import torch

import spikformer_edu as se

cued, beyond = import_module("09_cued"), import_module("13_beyond")


def main() -> None:
    torch.set_num_threads(1)
    cued.ablations.run_cells(cued.chapter, "09_ablations.py", "cued")
    classes = beyond.chapter_names()
    se.ATTENTION["sdsa"] = classes["SpikeDrivenAttention"]
    se.ATTENTION["token_qk"] = classes["TokenQKAttention"]
    se.ATTENTION["channel_qk"] = classes["ChannelQKAttention"]
    cued.compare(
        Path(__file__).with_suffix(".json"),
        ("sdsa", "token_qk", "channel_qk"),
        None,
    )


if __name__ == "__main__":
    main()
