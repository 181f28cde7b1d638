# %% [markdown]
# # 08 · Solutions
#
# Answers to the exercises of [chapter 08](../08_train.ipynb): train it.

# %% tags=["setup"]
import math
from pathlib import Path

try:
    import spikformer_edu as se
except ModuleNotFoundError:
    # not installed yet: install it from the repository that holds this notebook
    assert Path("../../pyproject.toml").exists(), (
        "get the whole repository: the package is installed from there"
    )
    # %pip install --quiet ../..
    import spikformer_edu as se

import torch

from spikformer_edu.training import Recipe, learning_rate

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# **8.1 Fix a silent run.** Find the layers that never fire, and repair only the damaged ones.
#
# Only the first silent layer in network order is certainly damaged: later layers may be silent because they get no
# input. So repair the first one, look again, and continue until all layers fire.


# %% tags=["exercise-1"]
def revive(model: se.Spikformer, images: torch.Tensor) -> list[str]:
    """Repair all damaged layers; return their names in the order in which they were repaired."""
    cured = []
    while True:
        with torch.no_grad(), se.record(model.train()) as rec:
            model(images)
        silent = [
            layer.name for layer in rec.layers("spikes") if not layer.spikes.any()
        ]
        if not silent:
            return cured
        norm = model.get_submodule(silent[0]).bn
        torch.nn.init.ones_(norm.weight)
        torch.nn.init.zeros_(norm.bias)
        cured.append(silent[0])


# %% tags=["check-1"]
with se.exercise("8.1"):
    digits = se.data.load("digits").train.fetch(torch.arange(48), None)[0]
    for damaged in (
        [],
        ["sps.2"],
        ["sps.1", "blocks.0.mlp.hidden", "blocks.1.attn.proj"],
    ):
        torch.manual_seed(3)
        patient = se.spikformer("digits-2-64", time_steps=2)
        norms = {
            name: m
            for name, m in patient.named_modules()
            if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))
        }
        for norm in norms.values():
            torch.nn.init.uniform_(norm.weight, 0.9, 1.1)
        for number, name in enumerate(damaged):
            torch.nn.init.constant_(
                norms[f"{name}.bn"].weight, 0.0 if number % 2 else 0.02
            )
            torch.nn.init.constant_(
                norms[f"{name}.bn"].bias, -2.0 if number % 2 else 0.0
            )
        before = {
            name: (norm.weight.clone(), norm.bias.clone())
            for name, norm in norms.items()
        }
        cured = revive(patient, digits)
        assert cured is not None, "write revive first"
        assert list(cured) == damaged, (
            f"{damaged or 'nothing'} was damaged, {list(cured) or 'nothing'} was cured"
        )
        with torch.no_grad(), se.record(patient.train()) as found:
            patient(digits)
        dumb = [r.name for r in found.layers("spikes") if not r.spikes.any()]
        assert not dumb, f"{dumb[0]} still never fires"
        for name, norm in norms.items():
            same = torch.equal(norm.weight, before[name][0]) and torch.equal(
                norm.bias, before[name][1]
            )
            assert same == (name.removesuffix(".bn") not in damaged), (
                f"{name} was healthy and has been changed"
            )

# %% [markdown]
# **8.2 The schedule.** Linear warm-up, then half a cosine.
#
# The progress of the cosine goes from 0 at the end of the warm-up to 1 at the last epoch, and (1 + cos) / 2 falls from
# 1 to 0.


# %% tags=["exercise-2"]
def schedule(
    epoch: float, epochs: int, warmup: int, highest: float, lowest: float
) -> float:
    """The learning rate at that moment."""
    if epoch < warmup:
        return lowest + (highest - lowest) * epoch / warmup
    progress = min(1.0, (epoch - warmup) / (epochs - warmup))
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * progress)) / 2


# %% tags=["check-2"]
with se.exercise("8.2"):
    assert schedule(0.0, 10, 2, 1.0, 0.1) is not None, "write schedule first"
    assert abs(schedule(0.0, 10, 2, 1.0, 0.1) - 0.1) < 1e-9, (
        "it starts at the lowest rate"
    )
    assert abs(schedule(1.0, 10, 2, 1.0, 0.1) - 0.55) < 1e-9, (
        "half-way through the warm-up it is half-way up"
    )
    assert abs(schedule(2.0, 10, 2, 1.0, 0.1) - 1.0) < 1e-9, (
        "after the warm-up it is highest"
    )
    assert abs(schedule(6.0, 10, 2, 1.0, 0.1) - 0.55) < 1e-9, (
        "half-way down the cosine: the warm-up is not part of it"
    )
    assert abs(schedule(12.0, 10, 2, 1.0, 0.1) - 0.1) < 1e-9, (
        "after the last epoch it stays at the lowest rate"
    )
    paper = Recipe(
        dataset="cifar10",
        epochs=300,
        warmup_epochs=20,
        lr=5e-4,
        batch_size=128,
        lr_batch_size=128,
    )
    for epoch in (0.0, 0.5, 7.25, 20.0, 33.3, 150.0, 299.9, 300.0, 305.0):
        mine = schedule(epoch, 300, 20, 5e-4, 1e-5)
        assert abs(mine - learning_rate(paper, epoch)) < 1e-9, (
            f"the paper's schedule differs at epoch {epoch}"
        )

# %% [markdown]
# **8.3 Scale the learning rate.** Linear for SGD, square root for AdamW.
#
# The noise of the mean of $B$ gradients is proportional to $1 / \sqrt{B}$. A step of SGD is the gradient times the
# rate: with four times the batch, one step replaces four. AdamW divides by the size of the gradient, so the noise
# determines the step, which gives the square root.


# %% tags=["exercise-3"]
def scaled(lr: float, meant_for: int, batch: int, optimizer: str) -> float:
    """The learning rate for that batch; optimizer is "sgd" or "adamw"."""
    return lr * (batch / meant_for) ** {"sgd": 1.0, "adamw": 0.5}[optimizer]


# %% tags=["check-3"]
with se.exercise("8.3"):
    assert scaled(0.1, 256, 1024, "sgd") is not None, "write scaled first"
    assert abs(scaled(0.1, 256, 1024, "sgd") - 0.4) < 1e-12, (
        "SGD: four times the batch, four times the rate"
    )
    assert abs(scaled(0.1, 256, 1024, "adamw") - 0.2) < 1e-12, (
        "AdamW: four times the batch, twice the rate"
    )
    # the ImageNet recipe, 24 images on each of 8 GPUs, on one GPU
    one_gpu = scaled(5e-4, 8 * 24, 24, "adamw")
    assert abs(one_gpu - 5e-4 / math.sqrt(8)) < 1e-12, (
        "a smaller batch wants a smaller rate"
    )
    for batch in (16, 32, 128):
        wanted = Recipe(batch_size=batch).scaled_lr
        assert abs(scaled(3e-3, 32, batch, "adamw") - wanted) < 1e-12, (
            f"the package has {wanted:.2g} at {batch}"
        )
