"""Compares the family on toy CIFAR-10: ``python tutorials/results/13_cifar.py`` (about 12 minutes on one CPU core).

The protocol, written down and committed before its first run:

Task        CIFAR-10 made small: 200 images of each class to train, 50 to validate, every second test image (5,000), at
            half size, 16 x 16. Augmentation: half of the training images of a batch are mirrored.
Network     the package's, small: D = 64, h = 4 (d = 16), L = 2, two pools (N = 16), T = 2.
Variants    one thing changes at a time: SSA with spike residuals and LIF neurons (the paper's network); a control
            without attention; SDSA, token and channel Q-K attention; membrane residuals; PLIF, I-LIF (D = 4) and IF
            neurons. Q-K attention has fewer weights, and is not given more.
Budget      the same for all: 8 epochs of batch 50, AdamW, learning rate 3e-3 with one epoch of warm-up and a cosine,
            weight decay 0.06, label smoothing 0.1, float32. No variant is tuned. I-LIF may give 4 spikes in a step, so
            its budget is equal in training, not in spikes.
Seeds       0, 1 and 2; a seed fixes initial weights, order and mirroring. Images are the same for all.
Choice      the epoch with the lowest validation loss. The test set is measured once, after that.
Comparison  differences to SSA are paired by seed. A difference counts as resolved when zero lies outside its 95 %
            interval (Student's t, 2 degrees of freedom). Eight comparisons are made, so one false alarm in 20 is to be
            expected among them a third of the time.
Energy      ``se.energy`` on the first 500 test images, in the convention "integer".

Every run is reported. A short trial before (SSA, one epoch, seed 99, not reported) only measured the time.

Runs that the results file has are not repeated: a script that was stopped goes on. ``--runs N`` makes N more at most.
"""

import argparse
import copy
import json
import time
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import spikformer_edu as se
from spikformer_edu.presets import configure
from spikformer_edu.provenance import provenance
from spikformer_edu.training.loop import parameter_groups
from spikformer_edu.training.recipe import Recipe, learning_rate

ablations = import_module("09_ablations")
RESULTS = Path(__file__).with_suffix(".json")
NETWORK = dict(
    dim=64, heads=4, depth=2, pool=(True, True, False, False), time_steps=2
)
VARIANTS: dict[str, dict] = {
    "ssa": {},
    "none": dict(attention="none"),
    "sdsa": dict(attention="sdsa"),
    "qk_token": dict(attention="qk_token"),
    "qk_channel": dict(attention="qk_channel"),
    "membrane": dict(residual="membrane"),
    "plif": dict(neuron="plif"),
    "ilif": dict(neuron="ilif"),
    "if": dict(neuron="if"),
}
RECIPE = Recipe(epochs=8, batch_size=50, lr_batch_size=50)
SEEDS = range(3)
TO_TRAIN, TO_VALIDATE, CLASSES = 200, 50, 10


def images(
    split: se.data.Split, numbers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Images ``[n, 3, 16, 16]`` of a split, normalised, without augmentation, and their labels."""
    numbers = torch.arange(len(split)) if numbers is None else numbers
    x, y = split.fetch(numbers, None)
    return F.avg_pool2d(x, 2), y


def data() -> dict[str, tuple[Tensor, Tensor]]:
    """The images of the protocol: the first of each class to train, the next ones to validate."""
    splits = se.data.load("cifar10")
    labels = torch.as_tensor(splits.train.targets)
    of_class = [(labels == k).nonzero().flatten() for k in range(CLASSES)]
    last = TO_TRAIN + TO_VALIDATE
    return {
        "train": images(splits.train, torch.cat([i[:TO_TRAIN] for i in of_class])),
        "val": images(
            splits.train, torch.cat([i[TO_TRAIN:last] for i in of_class])
        ),
        "test": images(splits.test, torch.arange(0, len(splits.test), 2)),
    }


@torch.no_grad()
def score(model: se.Spikformer, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Loss and accuracy in evaluation mode."""
    model.eval()
    logits = torch.cat([model(part) for part in x.split(250)])
    return float(F.cross_entropy(logits, y)), float(
        (logits.argmax(1) == y).double().mean()
    )


def run(
    variant: str, seed: int, sets: dict[str, tuple[Tensor, Tensor]], epochs: int
) -> dict:
    """One run of the protocol."""
    start = time.process_time()
    torch.manual_seed(seed)
    model = se.Spikformer(
        configure("cifar10-2-128", **NETWORK, **VARIANTS[variant])
    )
    groups = parameter_groups(model, RECIPE.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=RECIPE.warmup_lr, fused=True)
    random = torch.Generator().manual_seed(seed)
    (x, y), steps = sets["train"], len(sets["train"][1]) // RECIPE.batch_size
    log: dict[str, list] = {"loss": [], "val_loss": [], "val_accuracy": []}
    best = None
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(y), generator=random)
        mirrored = torch.rand(len(y), generator=random) < 0.5
        losses = []
        for step, chosen in enumerate(order.split(RECIPE.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(RECIPE, epoch + step / steps)
            batch = torch.where(
                mirrored[chosen, None, None, None], x[chosen].flip(-1), x[chosen]
            )
            loss = F.cross_entropy(
                model(batch), y[chosen], label_smoothing=RECIPE.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        val_loss, val_accuracy = score(model, *sets["val"])
        log["loss"].append(round(sum(losses) / len(losses), 4))
        log["val_loss"].append(round(val_loss, 4))
        log["val_accuracy"].append(val_accuracy)
        if best is None or val_loss < best[0]:
            best = val_loss, epoch + 1, copy.deepcopy(model.state_dict())
    _, best_epoch, weights = best
    model.load_state_dict(weights)
    found = {
        "test_accuracy": score(model, *sets["test"])[1],
        "best_epoch": best_epoch,
    }
    energy = se.energy(model, sets["test"][0][:500]) if variant != "none" else None
    return {
        "variant": variant,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        **found,
        "pj": energy and energy.totals["integer"],
        "cpu_seconds": round(time.process_time() - start, 1),
        **log,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10**6)
    parser.add_argument("--trial", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    se.ATTENTION["none"] = ablations.NoAttention
    if options.trial:
        print(run("ssa", 99, data(), epochs=1)["cpu_seconds"], "s")
        return
    done = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    have = {(r["variant"], r["seed"]) for r in done}
    missing = [(v, s) for s in SEEDS for v in VARIANTS if (v, s) not in have]
    sets = data() if missing else {}
    for variant, seed in missing[: options.runs]:
        done.append(run(variant, seed, sets, RECIPE.epochs))
        facts = provenance(torch.device("cpu")) | {
            "command": f"python tutorials/results/{RESULTS.stem}.py"
        }
        protocol = {
            "network": NETWORK,
            "epochs": RECIPE.epochs,
            "seeds": list(SEEDS),
            "train": TO_TRAIN * CLASSES,
            "test": len(sets["test"][1]),
        }
        content = {"provenance": facts, "protocol": protocol, "runs": done}
        RESULTS.write_text(json.dumps(content) + "\n")
        print(
            f"{variant} {seed}: {done[-1]['cpu_seconds']:.0f} s, {len(missing)} were missing",
            flush=True,
        )


if __name__ == "__main__":
    main()
