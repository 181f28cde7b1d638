"""Measures the cued task of chapter 09: ``python tutorials/results/09_cued.py`` (about 20 minutes on two CPU cores).

The protocol, written down before the runs that are reported:

Task        the chapter's: four colored digits and a cue in 3 x 3 cells. Pictures for training, validation and test are
            made of the package's digits for each. Those for training are drawn anew at every step.
Network     the chapter's: a patch embedding of one cell, D = 64, h = 4 (d = 16), L = 1, T = 2, N = 9. (The first text of
            this protocol said h = 2, d = 32; all runs had four heads.)
Variants    the five of Table 1, and the control without attention.
Budget      the same for all: 600 steps of batch 64, AdamW, weight decay 0.06, one cycle of the learning rate.
Tuning      the same for all: three learning rates, two seeds each (100 and 101), the highest mean accuracy on 1,000
            validation pictures.
Seeds       1 to 10; a seed fixes initial weights and pictures.
Choice      none: the weights of the last step. 2,000 test pictures, the same for all, measured once.
Comparison  differences to SSA are paired by seed. A difference counts as resolved when zero lies outside its 95 %
            interval (Student's t, 9 degrees of freedom).

Every run under this protocol is reported, those of the tuning too.

How it came about: number of cells, size, T, number of steps and the three learning rates were set in 20 short runs with
seed 0 on validation pictures, 15 with SSA and 5 with the control. The other variants had not been run.
"""

import multiprocessing
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikformer_edu as se
from spikformer_edu.model import SpikingConv

ablations = import_module("09_ablations")
VARIANTS = ("identity", "leaky_relu", "relu", "softmax", "ssa", "none")
RATES = (5e-3, 1e-2, 2e-2)
TUNING, SEEDS = (100, 101), range(1, 11)
STEPS, TEST = 600, 2000
chapter: dict = dict(se=se, torch=torch, nn=nn, F=F, SpikingConv=SpikingConv)


def pictures(split: se.data.Split, count: int) -> tuple[Tensor, Tensor]:
    return chapter["cued_digits"](split, count, torch.Generator().manual_seed(0))


def accuracy(model: se.Spikformer, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item()


def looks(model: se.Spikformer, x: Tensor) -> dict[str, float]:
    """Mean score that the cue's token gives to the digit asked for, to the other digits, to empty cells."""
    with torch.no_grad(), se.record(model) as rec:
        model(x)
    scores = rec["blocks.0.attn.scores"].values.mean((0, 2))  # [B, N, N]
    ink = F.avg_pool2d(x.amax(1), 8).flatten(
        1
    )  # [B, N], of every cell; the cue's is full
    color = F.max_pool2d(x, 8).flatten(2) > 0  # [B, 3, N]
    cue = ink == 1
    same = (color == color.transpose(1, 2)[cue].unsqueeze(2)).all(1)
    kinds = {"asked": same & ~cue, "others": ~same & (ink > 0), "empty": ink == 0}
    return {
        name: scores[cue][keys].double().mean().item()
        for name, keys in kinds.items()
    }


def describe(model: se.Spikformer, x: Tensor, y: Tensor) -> dict:
    """What a trained network does with its attention; nothing of the control, which has none."""
    if isinstance(model.blocks[0].attn, chapter["NoAttention"]):
        return {}
    return {"looks": looks(model, x), "ranges": ablations.ranges(model, x, y)}


def trained(
    attention: str, lr: float, seed: int, steps: int
) -> tuple[se.Spikformer, list[float]]:
    return chapter["train_cued"](
        se.data.load("digits").train, attention, seed, steps, lr
    )


def tune(attention: str, lr: float, seed: int, steps: int) -> float:
    return accuracy(
        trained(attention, lr, seed, steps)[0],
        *pictures(se.data.load("digits").val, 1000),
    )


def run(
    attention: str, lr: float, seed: int, steps: int, describe: Callable | None
) -> dict:
    digits = se.data.load("digits")
    model, losses = trained(attention, lr, seed, steps)
    found = {"attention": attention, "seed": seed, "lr": lr}
    found["test_accuracy"] = accuracy(model, *pictures(digits.test, TEST))
    found["loss"] = [
        round(sum(losses[i : i + 20]) / 20, 4) for i in range(0, steps, 20)
    ]
    return found | (
        describe(model, *pictures(digits.val, 1000)) if describe else {}
    )


def compare(
    path: Path,
    variants: tuple[str, ...],
    describe: Callable[[se.Spikformer, Tensor, Tensor], dict] | None,
    steps: int = STEPS,
    rates: tuple[float, ...] = RATES,
) -> None:
    """Tune and train every variant by the protocol above, and write what was found to ``path``."""
    with multiprocessing.get_context(
        "fork"
    ).Pool() as pool:  # a process a core; each keeps to one thread
        jobs = [
            (attention, lr, seed, steps)
            for attention in variants
            for lr in rates
            for seed in TUNING
        ]
        scores = pool.starmap(tune, jobs, chunksize=1)
        tuning = []
        for i in range(0, len(jobs), len(TUNING)):
            attention, lr, *_ = jobs[i]
            tuning.append(
                {
                    "attention": attention,
                    "lr": lr,
                    "val_accuracy": scores[i : i + len(TUNING)],
                }
            )
            print(tuning[-1], flush=True)
        best = {
            a: max(
                (t for t in tuning if t["attention"] == a),
                key=lambda t: sum(t["val_accuracy"]),
            )
            for a in variants
        }
        jobs = [
            (attention, best[attention]["lr"], seed, steps, describe)
            for seed in SEEDS
            for attention in variants
        ]
        runs = []
        for waiting in [pool.apply_async(run, job) for job in jobs]:
            runs.append(waiting.get())
            protocol = {"steps": steps, "seeds": list(SEEDS), "test_pictures": TEST}
            ablations.write(path, runs, protocol=protocol, tuning=tuning)
            print(
                *(runs[-1][key] for key in ("seed", "attention", "test_accuracy")),
                flush=True,
            )


def main() -> None:
    torch.set_num_threads(1)
    ablations.run_cells(chapter, "09_ablations.py", "cued")
    compare(Path(__file__).with_suffix(".json"), VARIANTS, describe)


if __name__ == "__main__":
    main()
