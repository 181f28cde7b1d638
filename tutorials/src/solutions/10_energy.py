# %% [markdown]
# # 10 · Solutions
#
# Back to [chapter 10](../10_energy.ipynb).

# %% tags=["setup"]
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

from spikformer_edu.energy import AC, MAC

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# What the checks need from the chapter: the report, and the stream in the middle of the second block.

# %%
model = se.load_pretrained("digits-2-64")
images, labels = se.data.load("digits").test.fetch(torch.arange(100), None)
report = se.energy(model, images)
first, D = report.layers[0], model.config.dim
with (
    se.record(model, layers=["blocks.0.residual", "blocks.1.attn.proj"]) as rec,
    torch.no_grad(),
):
    model(images)
# X' = SSA(X) + X
middle = rec["blocks.0.residual"].values + rec["blocks.1.attn.proj"].spikes
inputs = {"blocks.1.mlp.hidden": middle}

# %% [markdown]
# ## 10.1 Find the constant
#
# Compute the width D from the energy of the first convolution. All factors except D are known, so this is one division.
# The rest of every row of Table 2 is 1.596 mJ, which corresponds to D = 512, also in the rows of D = 384 and D = 768.


# %% tags=["exercise-1"]
def width_behind(energy_mj, T=4, size=224, channels=3):
    """The width D whose first convolution costs that much (4.6 pJ a multiply-accumulate)."""
    flops_of_width_one = 9 * channels / 8 * size**2  # D / 8 output channels
    return energy_mj * 1e9 / (4.6 * T * flops_of_width_one)


# %% tags=["check-1"]
with se.exercise("10.1"):
    result = width_behind(1.596)
    assert result is not None, (
        "write width_behind first: energy = 4.6 pJ * T * 9 * channels * D / 8 * size^2"
    )
    assert result < 1e6, "mind the units: 1 mJ is 1e9 pJ"
    assert abs(result - 512) < 1, (
        "the products of one image and step are 9 * channels * (D / 8) * size^2"
    )
    assert (
        abs(
            width_behind(
                first.pj["paper-corrected"] / 1e9, T=4, size=32, channels=1
            )
            - 64
        )
        < 1e-6
    ), "it should also find the 64 of digits-2-64 from its own first convolution"

# %% [markdown]
# ## 10.2 When does it lose?
#
# This is the rate of all other layers at which the network needs as much energy as the network without spikes. At T = 4
# it is above 1: four additions at 0.9 pJ cost less than one multiplication at 4.6 pJ, so the spiking network always
# needs less, at any firing rate. From T = 6 on it can need more. The prices alone decide this, not the spikes.


# %% tags=["exercise-2"]
def break_even_rate(report, T):
    """The firing rate at which 4.6 T FLOPs(first) + 0.9 r T FLOPs(others) = 4.6 FLOPs(without spikes)."""
    first_flops = report.layers[0].flops
    # what the first convolution leaves to the others
    left = 4.6 * report.ann_flops - 4.6 * T * first_flops
    return left / (0.9 * T * (report.flops - first_flops))


# %% tags=["check-2"]
with se.exercise("10.2"):
    r = break_even_rate(report, 4)
    assert r is not None, (
        "write break_even_rate first: solve the equation in the docstring for r"
    )
    others = report.flops - report.layers[0].flops
    whole = MAC * 4 * report.layers[0].flops + AC * r * 4 * others
    assert abs(whole - MAC * report.ann_flops) < 1e-6 * whole, (
        "at this rate the two energies are not equal"
    )
    assert r > 1 > break_even_rate(report, 8), (
        "at T = 4 even a network that always fires wins, at T = 8 it loses: the prices decide that, not the spikes"
    )

# %% [markdown]
# ## 10.3 The energy of an integer residual
#
# There are three prices for the same stream. Sum over all values and divide by B, because the energy is that of one
# image. Do not divide by T, because every time step counts.


# %% tags=["exercise-3"]
def residual_energy(x, fan_out):
    """pJ of one image: {"as spikes": ..., "by value": ..., "multiplied": ...}; every value meets fan_out weights."""
    nonzero = (x != 0).double().sum().item() * fan_out / x.shape[1]
    total = x.double().sum().item() * fan_out / x.shape[1]
    return {
        "as spikes": 0.9 * nonzero,
        "by value": 0.9 * total,
        "multiplied": 4.6 * nonzero,
    }


# %% tags=["check-3"]
with se.exercise("10.3"):
    tiny = torch.tensor([0.0, 1.0, 3.0, 0.0]).view(2, 1, 1, 2)  # T = 2, B = 1
    result = residual_energy(tiny, 10)
    assert result is not None, "write residual_energy first"
    assert abs(result["as spikes"] - 0.9 * 2 * 10) < 1e-6, (
        "two values are not zero, each meets ten weights"
    )
    assert abs(result["by value"] - 0.9 * 4 * 10) < 1e-6, (
        "1 + 3 additions, ten weights each"
    )
    assert abs(result["multiplied"] - 4.6 * 2 * 10) < 1e-6, (
        "two values are not zero, each multiplies ten weights"
    )
    twice = residual_energy(torch.cat([tiny, tiny], dim=1), 10)
    assert abs(twice["by value"] - result["by value"]) < 1e-6, (
        "energy of one image: divide by B"
    )
    stream = inputs["blocks.1.mlp.hidden"]
    expected = next(
        cost for cost in report.layers if cost.layer == "blocks.1.mlp.hidden"
    ).pj["integer"]
    assert (
        abs(residual_energy(stream, 4 * D)["by value"] - expected) < 1e-6 * expected
    ), "se.energy finds another value"
