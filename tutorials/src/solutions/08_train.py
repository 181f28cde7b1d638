# %% [markdown]
# # 08 · Solutions
#
# Answers to the exercises of [chapter 08](../08_train.ipynb): train it.

# %% tags=["setup"]
import copy
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
import torch.nn.functional as F
from torch import nn

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
    """Repair the damaged layers; return their names in the order of repair."""
    cured = []
    while True:
        with torch.no_grad(), se.record(model.train()) as rec:
            model(images)
        silent = [r.name for r in rec.layers("spikes") if not r.spikes.any()]
        if not silent:
            return cured
        norm = model.get_submodule(silent[0]).bn
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
        cured.append(silent[0])


# %% tags=["check-1", "fold"]
with se.exercise("8.1"):
    digits = se.data.load("digits").train.fetch(torch.arange(48), None)[0]
    kinds = [(0.02, 0.0), (0.3, -9.0), (0.0, -2.0)]  # weight and bias
    for damaged in (
        [],
        ["sps.2"],
        ["sps.1", "blocks.0.mlp.hidden", "blocks.1.attn.proj"],
    ):
        torch.manual_seed(3)
        patient = se.spikformer("digits-2-64", time_steps=2)
        norms = {n: m for n, m in patient.named_modules() if n.endswith("bn")}
        for norm in norms.values():
            torch.nn.init.uniform_(norm.weight, 0.9, 1.1)
        torch.nn.init.constant_(norms["sps.0.bn"].weight, 0.05)  # odd, but it fires
        torch.nn.init.constant_(norms["sps.0.bn"].bias, 1.95)
        for name, (weight, bias) in zip(damaged, kinds, strict=False):
            torch.nn.init.constant_(norms[f"{name}.bn"].weight, weight)
            torch.nn.init.constant_(norms[f"{name}.bn"].bias, bias)
        before = {n: (m.weight.clone(), m.bias.clone()) for n, m in norms.items()}
        cured = revive(patient, digits)
        assert cured is not None, "write revive first"
        assert list(cured) == damaged, (
            f"damaged: {', '.join(damaged) or 'nothing'}; repaired: {list(cured)}"
        )
        with torch.no_grad(), se.record(patient.train()) as found:
            patient(digits)
        dumb = [r.name for r in found.layers("spikes") if not r.spikes.any()]
        assert not dumb, f"{dumb[0]} still never fires"
        for name, norm in norms.items():
            weight, bias = before[name]
            same = torch.equal(norm.weight, weight) and torch.equal(norm.bias, bias)
            healthy = name.removesuffix(".bn") not in damaged
            assert same == healthy, f"{name}: healthy {healthy}, unchanged {same}"

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


# %% tags=["check-2", "fold"]
with se.exercise("8.2"):
    assert schedule(0.0, 10, 2, 1.0, 0.1) is not None, "write schedule first"
    for epoch, warmup, wanted in (
        (0.0, 2, 0.1),
        (1.0, 2, 0.55),
        (2.0, 2, 1.0),
        (6.0, 2, 0.55),
        (10.0, 2, 0.1),
        (12.0, 2, 0.1),
        (0.0, 0, 1.0),
    ):
        try:
            rate = schedule(epoch, 10, warmup, 1.0, 0.1)
        except ZeroDivisionError:
            rate = math.nan
        assert abs(rate - wanted) < 1e-9, (
            f"epoch {epoch:g} of 10, warm-up {warmup}, 0.1 to 1: not {rate:.3f}"
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
        rate = schedule(epoch, 300, 20, 5e-4, 1e-5)
        assert abs(rate - learning_rate(paper, epoch)) < 1e-9, (
            f"the paper's schedule, epoch {epoch}: not {rate:.6f}"
        )

# %% [markdown]
# **8.3 Stop and resume.** Save all that a step depends on.
#
# A step of AdamW depends on the weights, on its own moments (two running means for each weight), on its count of steps,
# and on the data of that step. The state dict of the model also holds the running statistics of the batch norms, which
# are no parameters. Both state dicts share memory with the run that goes on, so they must be copied.


# %% tags=["exercise-3"]
def save(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict:
    """Everything that is needed to go on with this step."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return copy.deepcopy(state) | {"step": step}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> int:
    """Fill the model and the optimizer; return the next step."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


# %% tags=["check-3", "fold"]
with se.exercise("8.3"):
    pages = se.data.load("digits").train

    def fresh(seed: int):
        torch.manual_seed(seed)
        sizes = {"dim": 16, "heads": 2, "depth": 1, "time_steps": 2}
        net = se.spikformer("digits-2-64", **sizes)
        return net, torch.optim.AdamW(net.parameters(), lr=1e-2)

    def run(net, optimizer, first: int, last: int) -> None:
        for number in range(first, last):
            images, labels = pages.fetch(torch.arange(8) + 8 * number, None)
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()

    net, optimizer = fresh(1)
    run(net, optimizer, 0, 3)
    there = copy.deepcopy(net.state_dict())
    state = save(net, optimizer, 3)
    assert state is not None, "write save first"
    run(net, optimizer, 3, 6)
    other, fresh_optimizer = fresh(2)
    number = restore(other, fresh_optimizer, state)
    assert number == 3, (
        f"the run was stopped before step 3, and goes on with {number}"
    )
    for name, value in other.state_dict().items():
        assert torch.equal(value, there[name]), (
            f"after restore, {name} is not what it was when save was called"
        )
    run(other, fresh_optimizer, number, 6)
    for name, value in other.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), (
            f"three steps later {name} differs: what else does a step depend on?"
        )
