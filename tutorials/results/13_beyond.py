"""Trains the variants of chapter 13: ``python tutorials/results/13_beyond.py`` (about 5 minutes on one CPU core).

The protocol, written down before the first run, is that of chapter 09 and the same code: ``09_ablations.py``, whose
docstring says task, network, budget, seeds, choice and comparison. Its runs of SSA and of the control without attention
are the ones to compare with. The classes are the chapter's own: its cells tagged "swap" are executed, and the answer to
exercise 13.1, so that what is trained is what is shown.

Variants    SDSA; token and channel Q-K attention; SSA and SDSA with membrane shortcuts.

Every run is reported. ``energy`` counts convolutions, linear layers and SSA's products; masks are not in it.
"""

from importlib import import_module
from pathlib import Path

import torch
from torch import nn

import spikformer_edu as se
from spikformer_edu.attention import SpikingSelfAttention, norm_tokens
from spikformer_edu.model import Block
from spikformer_edu.presets import configure

ablations = import_module("09_ablations")


def chapter_names() -> dict:
    """The names that the chapter's own cells define."""
    names = dict(
        se=se,
        nn=nn,
        Block=Block,
        SpikingSelfAttention=SpikingSelfAttention,
        norm_tokens=norm_tokens,
    )
    for script, tag in (
        ("13_beyond.py", "swap"),
        ("solutions/13_beyond.py", "exercise-1"),
    ):
        ablations.run_cells(names, script, tag)
    return names


def main() -> None:
    torch.set_num_threads(1)
    chapter = chapter_names()
    se.ATTENTION["sdsa"] = chapter["SpikeDrivenAttention"]
    se.ATTENTION["token_qk"] = chapter["TokenQKAttention"]
    se.ATTENTION["channel_qk"] = chapter["ChannelQKAttention"]
    membrane_spikformer = chapter["membrane_spikformer"]
    variants = {
        "sdsa": (se.Spikformer, "sdsa"),
        "token_qk": (se.Spikformer, "token_qk"),
        "channel_qk": (se.Spikformer, "channel_qk"),
        "membrane": (membrane_spikformer, "ssa"),
        "sdsa_membrane": (membrane_spikformer, "sdsa"),
    }
    runs = []
    for seed in ablations.SEEDS:
        for name, (build, attention) in variants.items():
            config = configure(
                "digits-2-64", attention=attention, **ablations.NETWORK
            )
            model, run = ablations.train_and_test(
                lambda b=build, c=config: b(c), seed
            )
            rates = {}
            with torch.no_grad(), se.record(model, compact=True) as rec:
                model(ablations.validation_images()[0])
            for line in rec.summary():
                if line["rate"] is not None:
                    rates[line["layer"]] = line["rate"]
            parameters = sum(p.numel() for p in model.parameters())
            runs.append({"variant": name, "parameters": parameters} | run)
            runs[-1] |= {"energy": ablations.joules(model), "rates": rates}
            ablations.write(Path(__file__).with_suffix(".json"), runs)
            print(f"seed {seed}  {name:14} {run['cpu_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
