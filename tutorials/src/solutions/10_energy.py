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

from dataclasses import replace

import torch

from spikformer_edu.energy import AC, MAC
from spikformer_edu.paper_audit import first_conv_mj

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
# The rest of every row of Table 2 is 1.596 mJ. This is D = 512, also in the rows of D = 384 and D = 768.


# %% tags=["exercise-1"]
def width_behind(energy_mj, T=4, size=224, channels=3):
    """The width D whose first convolution costs energy_mj (4.6 pJ a MAC)."""
    flops_of_width_one = 9 * channels / 8 * size**2  # D / 8 output channels
    return energy_mj * 1e9 / (MAC * T * flops_of_width_one)


# %% tags=["check-1"]
with se.exercise("10.1"):
    result = width_behind(1.596)
    assert result is not None, "write width_behind first: the formula is above"
    assert 1 < result < 1e6, "mind the units: 1 mJ is 1e9 pJ"
    assert abs(result - 512) < 1, (
        f"1.596 mJ is not the first convolution of D = {result:.0f}: which factor"
        " of the formula is missing?"
    )
    for name, size, steps in (
        ("imagenet-8-768", 224, 4),
        ("cifar10-4-384", 32, 1),
        ("cifar10dvs-2-256", 128, 16),
    ):
        network = replace(se.preset(name).config, time_steps=steps)
        inputs_of = network.in_channels
        energy = first_conv_mj(network, size)
        said = width_behind(energy, T=steps, size=size, channels=inputs_of)
        assert abs(said - network.dim) < 1e-6 * network.dim, (
            f"{name}, T = {steps}, {size} x {size}, {inputs_of} channels:"
            f" D is {network.dim}, your answer {said:.0f}"
        )

# %% [markdown]
# ## 10.2 When does it lose?
#
# This is the rate of all other layers at which the network needs as much energy as the network without spikes. At T = 4
# it is above 1: four additions at 0.9 pJ cost less than one multiplication at 4.6 pJ, so the spiking network always
# needs less, at any firing rate. From T = 6 on it can need more. The prices alone decide this, not the spikes.


# %% tags=["exercise-2"]
def break_even_rate(report, T):
    """The rate r at which both networks need the same energy."""
    first, *others, head = (cost.flops for cost in report.layers)
    # what the first convolution leaves to the others
    left = MAC * report.ann_flops - MAC * T * first
    return left / (AC * (T * sum(others) + head))


# %% tags=["check-2"]
with se.exercise("10.2"):
    r = break_even_rate(report, 4)
    assert r is not None, "write break_even_rate first: one equation, one unknown"
    flops = [cost.flops for cost in report.layers]
    for steps in (4, 1, 2, 8):
        r = break_even_rate(report, steps)
        multiplied = MAC * steps * flops[0]
        added = AC * r * (steps * sum(flops[1:-1]) + flops[-1])
        ratio = (multiplied + added) / (MAC * report.ann_flops)
        assert abs(ratio - 1) < 1e-6, (
            f"T = {steps}: at your rate {r:.4f} the network needs {ratio:.6f} times"
            " the energy of the other: count each layer as often as it runs"
        )
    assert break_even_rate(report, 4) > 1 > break_even_rate(report, 8), (
        "at T = 4 even a network that always fires needs less energy"
    )

# %% [markdown]
# ## 10.3 The energy of an integer residual
#
# There are three prices for the same stream. Sum over all values and divide by B, because the energy is that of one
# image. Do not divide by T, because every time step counts.


# %% tags=["exercise-3"]
def residual_energy(x, fan_out):
    """pJ of one image; every value of x meets fan_out weights.

    Returns {"as spikes": ..., "by value": ..., "multiplied": ...}.
    """
    nonzero = (x != 0).double().sum().item() * fan_out / x.shape[1]
    total = x.double().sum().item() * fan_out / x.shape[1]
    return {
        "as spikes": AC * nonzero,
        "by value": AC * total,
        "multiplied": MAC * nonzero,
    }


# %% tags=["check-3"]
with se.exercise("10.3"):
    tiny = torch.tensor([0.0, 1.0, 3.0, 0.0]).view(2, 1, 1, 2)  # T = 2, B = 1
    result = residual_energy(tiny, 10)
    assert result is not None, "write residual_energy first"
    assert set(result) == {"as spikes", "by value", "multiplied"}, (
        "return a dict with the three names of the docstring"
    )
    other = torch.cat([tiny, 2 * tiny, tiny.flip(0)], dim=1)  # T = 2, B = 3
    stream = inputs["blocks.1.mlp.hidden"]
    (cost,) = (c for c in report.layers if c.layer == "blocks.1.mlp.hidden")
    for x, fan_out, pj in (
        (tiny, 10, (18, 36, 92)),
        (tiny, 7, (12.6, 25.2, 64.4)),
        (other, 10, (18, 48, 92)),
        (stream, 4 * D, (cost.pj["paper"], cost.pj["integer"], MAC * cost.sops)),
    ):
        result, shape = residual_energy(x, fan_out), list(x.shape)
        for name, right in zip(
            ("as spikes", "by value", "multiplied"), pj, strict=True
        ):
            assert abs(result[name] - right) < 1e-6 * right, (
                f"{name}: {right:.1f} pJ and not {result[name]:.1f}, for fan-out"
                f" {fan_out} and T, B, N, D = {shape}"
            )
