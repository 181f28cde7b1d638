"""Time and memory of a training step against T, B and N, for chapter 12: ``python tutorials/results/12_imagenet.py``.

On a CPU, one thread, the network is that of CIFAR; on a GPU that of ImageNet. ``--shape toy`` is a quick try.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from spikformer_edu.benchmarks.measure import sweep
from spikformer_edu.benchmarks.peers import SHAPES, case_of
from spikformer_edu.provenance import provenance
from spikformer_edu.training import choose_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        help="unless given: cifar on a CPU, imagenet on a GPU",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each point is measured"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = choose_device("auto")
    name = options.shape or ("cifar" if device.type == "cpu" else "imagenet")
    case = case_of(name, 4 if device.type == "cpu" else None, device)
    precision = "fp32" if device.type == "cpu" else "bf16"
    curves = {}
    for kind in ("time_steps", "batch", "tokens"):
        table = sweep(kind, case, ["ours"], precision, device, options.rounds)[0]
        train = [r for r in table.results if r.mode == "train"]
        keys = ("point", "batch", "tokens", "flops", "memory", "seconds", "median")
        curves[kind] = [{key: getattr(r, key) for key in keys} for r in train]
        for text in table.skipped.values():
            print(text, file=sys.stderr)
    c = case.config
    results = {
        "provenance": provenance(device)
        | {
            "command": " ".join(
                ["python", "tutorials/results/12_imagenet.py"] + sys.argv[1:]
            )
        },
        "model": SHAPES[name].model
        if not SHAPES[name].overrides
        else f"a toy, D = {c.dim}, L = {c.depth}",
        "base": {
            "time_steps": c.time_steps,
            "batch": case.batch,
            "tokens": case.tokens,
        },
        "precision": precision,
        "curves": curves,
    }
    Path(__file__).with_suffix(".json").write_text(
        json.dumps(results, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
