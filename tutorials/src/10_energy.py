# %% [markdown]
# # 10 · Energy, honestly
#
# *Run time 10 s on one CPU core · after chapters 05 and 06 · no internet access, no GPU*
#
# How much energy does a spiking network need for one image? Nearly every paper answers with a number that was counted,
# not measured. This chapter counts it by hand, shows which choices the counting contains, and checks the paper's table
# with the paper's formula. It ends with a list of what a fair statement must include. The accuracy is one item of it.
#
# ![The network's parts, from image to answer; this chapter counts the operations of every layer](../docs/images/network_map/10.svg)
#
# ## What you will learn
# - count synaptic operations of every layer from a recording, and turn them into picojoules (eq. 21-24)
# - say what the three conventions of `se.energy` charge for, and where they differ
# - check a published table with its own formula only
# - explain why an integer times a weight is not one addition
# - read energy and accuracy together
# - write a statement about energy that readers can check

# %% tags=["setup"]
import json
from pathlib import Path

try:
    import spikformer_edu as se
except ModuleNotFoundError:
    # not installed yet: install it from the repository that holds this notebook
    assert Path("../pyproject.toml").exists(), (
        "get the whole repository: the package is installed from there"
    )
    # %pip install --quiet ..
    import spikformer_edu as se

import textwrap
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from spikformer_edu.energy import AC, CONVENTIONS, MAC
from spikformer_edu.paper_audit import (
    PUBLISHED,
    PUBLISHED_ANN,
    Audit,
    audit_ann,
    audit_paper,
    first_conv_mj,
)
from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# Each bar is one layer of the packaged network and starts where the bar of the layer before ends, so the last bar ends
# at the energy of one image. The first convolution multiplies real-valued pixels; nearly all other layers add weights
# where there are spikes. The hatched orange parts are not in the paper's way of counting: they come from residual
# values above 1. The products of attention (`K^TV` and `Q(K^TV)`) take about 1 % of the total, so their bars look like
# lines. The right panel shows the same spikes under three conventions, beside the network of the same size without
# spikes.

# %%
model = se.load_pretrained("digits-2-64")
images, labels = se.data.load("digits").test.fetch(torch.arange(100), None)
report = se.energy(model, images)

fig, axes = se.plot.energy(report)
se.plot.show(
    fig,
    "Waterfall of the energy of one image over the 18 layers of digits-2-64 at"
    " T = 4, counted by the convention 'integer'. The first convolution and the"
    " MLPs take most of it. Three totals at the right, far below the network"
    " without spikes.",
)
assert report.totals["paper"] < report.totals["integer"] < report.totals["ann"]

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | image | `[B, C, H, W]` | reals | input of the first convolution, the same in all T steps |
# | spikes | `[T, B, ...]` | {0, 1} | input of nearly every other layer |
# | residual stream | `[T, B, N, D]` | integers 0, 1, 2, ... | input of `qkv` and `mlp.hidden` |
# | weights | `[D_out, D_in]` | reals | what is added, once for each spike |
# | input of the head | `[B, D]` | reals | the mean of integers over tokens and time |
# | $\mathrm{FLOPs}(l)$ | one number | integers | multiply-accumulates of layer $l$, one image, one time step |
# | $\mathrm{rate}(l)$ | one number | [0, 1] | share of non-zero values in the **input** of layer $l$ |
# | $\mathrm{SOPs}(l)$ | one number | reals | [synaptic operations](../docs/glossary.md#synaptic-operation), one image |

# %% [markdown]
# ## One layer by hand
#
# When a spike arrives at a weight, the weight is added once. This addition is called an *accumulate*, AC. Without a
# spike there is no operation. The paper counts
#
# $$\mathrm{SOPs}(l) = \mathrm{rate}(l) \cdot T \cdot \mathrm{FLOPs}(l)$$
#
# (eq. 21-24 of the paper turn this into energy). We take the last linear layer of the first block, which turns the 4D
# spikes of a token into D currents. We need its input, so we record the layer before it.

# %%
with se.record(model) as rec, torch.no_grad():
    model(images)

hidden = rec["blocks.0.mlp.hidden"].spikes  # [T, B, N, 4D]
T, B, N, width = hidden.shape
D = model.config.dim

# of one image in one time step: every input is connected to every output
flops = N * width * D
rate = hidden.double().mean().item()
sops = rate * T * flops
print(f"FLOPs {flops:,}   rate {rate:.3f}   SOPs {sops / 1e6:.2f} M")

# %% [markdown]
# **Predict before you run.** A rate is a mean, so this looks like an estimate. Is it one? Count the additions one by
# one: every spike is added to D outputs. Will the two numbers agree only roughly, or exactly?

# %% tags=["predict"]
additions = hidden.double().sum().item() * D / B  # the mean over the images
print(f"counted {additions / 1e6:.4f} M, rate x T x FLOPs {sops / 1e6:.4f} M")
assert abs(additions - sops) < 1e-9 * sops

# %% [markdown]
# <details><summary>Answer</summary>
#
# Exactly. The rate is the number of spikes divided by $T \cdot B \cdot N \cdot 4D$, and every spike has the same
# fan-out D: it is added to D outputs. If all inputs have the same fan-out, the formula is a count, not an estimate.
#
# </details>
#
# **Predict before you run.** What about a 3 x 3 convolution? Does every spike contribute to nine places of the output?

# %% tags=["predict"]
feature = rec["sps.0"].spikes  # [T, B, D/8, 32, 32]
# what sps.1 sees: [T B, D/8, 16, 16]
pooled = F.max_pool2d(feature.flatten(0, 1), 3, stride=2, padding=1)
conv = model.sps[1].conv
formula = (
    pooled.double().mean().item() * T * (pooled[0, 0].numel() * conv.weight.numel())
)

ones = torch.ones(1, conv.in_channels, 3, 3, dtype=torch.float64)
# spikes met at each place of each output channel
met = F.conv2d(pooled.double(), ones, padding=1).sum()
counted = met.item() * conv.out_channels / B
print(f"counted {counted / formula:.3f} of the formula")
assert 0.9 < counted / formula < 1

# %% [markdown]
# <details><summary>Answer</summary>
#
# Nearly every spike does. FLOPs count nine products at every place, including those with the zeros of the padding. A
# spike at the edge of the image contributes to only six places, in a corner to four. So the formula is an upper bound
# for convolutions. It is close to the exact count, because most spikes are not at the edge. Published counts do not
# correct for this, and we do not either.
#
# </details>

# %% [markdown]
# ## All layers
#
# To do the same for every layer, we need its input and the number of its products. Most inputs are in the recording.
# Four must be computed from it: the pooled features, the sum after SPS, the residual stream in the middle of a block,
# and the mean before the head.


# %%
def pool(spikes):
    """What the next convolution sees: max-pool 3 x 3, stride 2."""
    return F.max_pool2d(spikes.flatten(0, 1), 3, stride=2, padding=1)


def inputs_of_layers(rec):
    """Layer -> its input, in network order."""
    stage = {
        name: rec[name].spikes
        for name in ("sps.0", "sps.1", "sps.2", "sps.3", "sps.rpe")
    }
    # these two stages pool
    found = {"sps.1": pool(stage["sps.0"]), "sps.2": pool(stage["sps.1"])}
    found |= {"sps.3": stage["sps.2"], "sps.rpe": stage["sps.3"]}
    # X_0: [T, B, N, D]
    x = (stage["sps.3"] + stage["sps.rpe"]).flatten(3).transpose(2, 3)
    for i in range(model.config.depth):
        block = f"blocks.{i}."
        found[block + "attn.qkv"] = x
        # the ones of K say which rows of V are added
        found[block + "attn.K^TV"] = rec[block + "attn.k"].spikes
        found[block + "attn.Q(K^TV)"] = rec[block + "attn.q"].spikes
        found[block + "attn.proj"] = rec[block + "attn.attn"].spikes
        # X' = SSA(X) + X
        found[block + "mlp.hidden"] = x + rec[block + "attn.proj"].spikes
        found[block + "mlp.out"] = rec[block + "mlp.hidden"].spikes
        x = rec[block + "residual"].values
    found["head"] = x.mean(2).mean(0)
    return found


inputs = inputs_of_layers(rec)
assert list(inputs) == [cost.layer for cost in report.layers[1:]]

# %% [markdown]
# The number of products depends only on the sizes. The tokens are the 64 places of an 8 x 8 map. The attention uses the
# order $Q(K^T V)$, because N = 64 tokens are more than d = 16 features of a head ([chapter
# 05](05_spiking_self_attention.ipynb)).

# %%
c, d = model.config, model.config.dim // model.config.heads
flops_of = {"sps.0": 9 * 1 * (D // 8) * 32**2}
flops_of |= {
    "sps.1": 9 * (D // 8) * (D // 4) * 16**2,
    "sps.2": 9 * (D // 4) * (D // 2) * 8**2,
}
flops_of |= {"sps.3": 9 * (D // 2) * D * 8**2, "sps.rpe": 9 * D * D * 8**2}
for i in range(c.depth):
    block = f"blocks.{i}."
    flops_of |= {block + "attn.qkv": N * D * 3 * D, block + "attn.proj": N * D * D}
    flops_of |= {
        block + "attn.K^TV": c.heads * N * d * d,
        block + "attn.Q(K^TV)": c.heads * N * d * d,
    }
    flops_of |= {
        block + "mlp.hidden": N * D * 4 * D,
        block + "mlp.out": N * 4 * D * D,
    }
flops_of["head"] = D * 10  # once, after the mean over time

sops_of = {}
for name, x in inputs.items():
    rate = (x != 0).double().mean().item()
    sops_of[name] = rate * (1 if name == "head" else T) * flops_of[name]

for cost in report.layers:
    assert cost.flops == flops_of[cost.layer]
    assert abs(cost.sops - sops_of.get(cost.layer, 0)) <= 1e-9 * max(cost.sops, 1)
print(f"{len(report.layers)} layers as in se.energy:")
print(f"{report.flops / 1e6:.2f} M FLOPs, {report.sops / 1e6:.2f} M SOPs")

# %% [markdown]
# ## From operations to energy
#
# There are two prices, both for 45 nm and 32-bit floating point
# ([Horowitz 2014](https://doi.org/10.1109/ISSCC.2014.6757323)): a multiplication with addition, a
# [MAC](../docs/glossary.md#ac-and-mac), costs 4.6 pJ, an addition alone, an AC, 0.9 pJ. The first convolution reads
# real-valued pixels, so each of its operations costs a MAC at every time step. In all other layers an operation costs
# an AC:
#
# $$E = 4.6\,\mathrm{pJ} \cdot T \cdot \mathrm{FLOPs}(\text{first convolution}) + 0.9\,\mathrm{pJ} \cdot \sum_l
# \mathrm{SOPs}(l)$$

# %%
by_hand = MAC * T * flops_of["sps.0"] + AC * sum(sops_of.values())
assert abs(by_hand - report.totals["paper-corrected"]) < 1e-9 * by_hand
print(f"{by_hand / 1e6:.2f} µJ for one image, T = {T}")

# %% [markdown]
# **Predict before you run.** The first convolution has less than one percent of the products of a time step. Is its
# share of the energy also below one percent?

# %% tags=["predict"]
first = report.layers[0]
share_of_flops = first.flops / report.flops
share_of_energy = first.pj["paper-corrected"] / report.totals["paper-corrected"]
print(f"first convolution: {100 * share_of_flops:.1f} % of the FLOPs,")
print(f"{100 * share_of_energy:.0f} % of the energy")
assert share_of_flops < 0.01 and share_of_energy > 10 * share_of_flops

# %% [markdown]
# <details><summary>Answer</summary>
#
# No, it is much higher. A product in the first convolution costs 4.6 pJ and is computed at every place. A product in
# another layer costs 0.9 pJ and is computed only where there is a spike. At a rate of 10 % this is a factor of about
# fifty. Note also that for a still image the first convolution is the same in every time step. This package computes it
# once, but the convention charges it T times, because on event data every step differs.
#
# </details>

# %% [markdown]
# ## The residual stream is not binary
#
# The formula treats the inputs of all layers except the first as spikes. But the [residual
# stream](../docs/glossary.md#residual-stream) is a sum of spikes. The next figure shows its values. (The paper counts
# blocks from 1, the code from 0: $X_1$ is the stream after `blocks.0`.)

# %% tags=["fold"]
# Draw the values of the residual stream, and the price of each
streams = {
    "X_0, after SPS": inputs["blocks.0.attn.qkv"],
    "X'_1, middle of block 0": inputs["blocks.0.mlp.hidden"],
    "X_1, after block 0": inputs["blocks.1.attn.qkv"],
    "X'_2, middle of block 1": inputs["blocks.1.mlp.hidden"],
}
most = int(max(x.max() for x in streams.values()))
shares = {
    name: torch.bincount(x.flatten().long(), minlength=most + 1) / x.numel()
    for name, x in streams.items()
}

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
colors = (style.LIGHT, style.GREY, style.MEMBRANE, style.SPIKE)
for i, ((name, share), color) in enumerate(
    zip(shares.items(), colors, strict=True)
):
    left.bar(
        torch.arange(most + 1) + 0.2 * (i - 1.5),
        100 * share,
        width=0.2,
        color=color,
        label=name,
    )
left.set(
    yscale="log",
    xlabel="value in the residual stream",
    ylabel="share of all values, %",
    xticks=range(most + 1),
)
left.set_title(f"what the stream holds, digits-2-64, T = {T}")
left.legend()
n = torch.arange(1, 9)
right.plot(
    n, AC * (n > 0), "o--", color=style.GREY, label="as a spike: one addition"
)
right.plot(n, AC * n, "s-", color=style.MEMBRANE, label="by value: n additions")
right.plot(
    n,
    MAC * (n > 0),
    "^:",
    color=style.SPIKE,
    label="one multiplication with addition",
)
right.set(
    xlabel="value n",
    ylabel="pJ for n times a weight",
    ylim=(0, 8),
    title="the price of an integer",
)
right.legend()
se.plot.show(
    fig,
    "Left: bar chart of the values in the residual stream at four depths of"
    " digits-2-64, T = 4: mostly zeros and ones, but twos and more at every depth,"
    " and more of them deeper. Right: the price of a value n under three"
    " conventions; n additions exceed a multiplication from n = 6.",
)
above_one = {name: float(share[2:].sum()) for name, share in shares.items()}
for name, share in above_one.items():
    print(f"{name:24} above 1: {100 * share:4.1f} %")
assert (
    all(share > 0 for share in above_one.values()) and most <= 1 + 1 + 2 * c.depth
)
assert AC * 5 < MAC < AC * 6

# %% [markdown]
# A value is at most 2 after SPS, and each of the two residual connections of a block adds at most 1.
#
# **Predict before you run.** A residual value of 2 is multiplied by a weight $w$. Is $2w$ one addition, two additions,
# or a multiplication?

# %% tags=["predict"]
# [T, B, N, D], [3D, D]
x, weight = streams["X_1, after block 0"], model.blocks[1].attn.qkv.weight
value = x[x >= 2][0].item()
w = weight[0, 0].item()
# it is n additions of w, not one
assert value * w == sum([w] * int(value)) and value * w != w
layer = next(cost for cost in report.layers if cost.layer == "blocks.1.attn.qkv")
products = T * layer.flops
nonzero, mean = (x != 0).double().mean().item(), x.double().mean().item()
prices = {
    "as spikes": AC * nonzero,
    "by value": AC * mean,
    "multiplied": MAC * nonzero,
}
for name, price in prices.items():
    print(f"{layer.layer}: {name:10} {price * products / 1e6:.2f} µJ")
assert (
    abs(prices["as spikes"] * products - layer.pj["paper"])
    < 1e-6 * layer.pj["paper"]
)
assert (
    abs(prices["by value"] * products - layer.pj["integer"])
    < 1e-6 * layer.pj["integer"]
)
assert prices["as spikes"] < prices["by value"] < prices["multiplied"]

# %% [markdown]
# <details><summary>Answer</summary>
#
# That depends on the machine, so name the machine. A machine that sends spikes sends two of them and adds twice. A
# machine with a multiplier multiplies once. The paper counts *one* addition, but no machine gets $2w$ from one addition
# of $w$.
#
# </details>

# %% [markdown]
# ## Three conventions, side by side
#
# These are the conventions of `se.energy`. They use the same spikes and differ in four layers and the head.

# %%
for name, meaning in CONVENTIONS.items():
    print(
        textwrap.fill(
            f"{name}, {report.totals[name] / 1e6:.2f} µJ: {meaning}",
            84,
            subsequent_indent="    ",
        )
    )
differ = [
    cost.layer
    for cost in report.layers
    if abs(cost.pj["integer"] - cost.pj["paper"]) > 1e-9
]
print(textwrap.fill("differ: " + ", ".join(differ), 84))
assert [name for name in differ if not name.endswith((".qkv", ".hidden"))] == [
    "head"
]

# %% [markdown]
# ## Auditing Table 2
#
# The paper gives SOPs and energy of five ImageNet networks. The formula has two terms. So if we subtract 0.9 pJ for
# every SOP from the energy, the rest must be the first convolution: $4.6\,\mathrm{pJ} \cdot T \cdot 9 \cdot 3 \cdot
# \frac{D}{8} \cdot 224^2$.
#
# **Predict before you run.** The five networks have widths of 384, 512, 512, 512 and 768. How many different rests do
# you expect, and how do they depend on D?

# %% tags=["predict"]
rows = audit_paper()
print(rows)
assert (
    rows[0]["rest"]
    == PUBLISHED["imagenet-8-384"][1] - AC * PUBLISHED["imagenet-8-384"][0]
)
assert all(abs(row["rest"] - 1.596) < 0.0001 for row in rows)

# %% [markdown]
# <details><summary>Answer</summary>
#
# We expect three different rests, growing in proportion to D. The table has only one: 1.596 mJ in every row. The
# formula gives this value for D = 512, so the published energies for D = 384 and D = 768 seem to contain the first
# convolution of another network. The error is small, 0.4 mJ too much in one row and 0.8 mJ too little in the other, and
# it changes no ranking. We could find it only because the table lists both operations and energies.
#
# SOPs are rounded to 0.01 G, which is 0.009 mJ, but the five rests agree more closely than that. So the energies must
# have been computed from the rounded SOPs. The table alone shows this, too.
#
# The convention `paper` repeats this error, so that the published numbers can be reproduced; `paper-corrected` does
# not.
#
# </details>
#
# The next figure shows the same: the line is the formula, and the dots are the rests from the table.

# %% tags=["fold"]
# Draw the first convolution's energy over D, and the five rests
fig, ax = plt.subplots(figsize=(7.5, 3.8))
widths = [se.preset(row["model"]).config.dim for row in rows]
grid = [256, 384, 512, 640, 768, 896]
at_512 = se.preset("imagenet-8-512").config
ax.plot(
    grid,
    [first_conv_mj(replace(at_512, dim=w)) for w in grid],
    color=style.Q,
    label="eq. 21-24: own width",
)
ax.plot(
    widths,
    [row["rest"] for row in rows],
    "o",
    color=style.SPIKE,
    markersize=8,
    label="energy - 0.9 SOPs",
)
ax.set(
    xlabel="width D",
    ylabel="mJ",
    title="first convolution on ImageNet, T = 4",
    ylim=(0, 3),
    xticks=grid,
)
ax.legend()
se.plot.show(
    fig,
    "The rest of five published energies over the width D: all at 1.596 mJ, on a"
    " flat line, while the formula grows with D and passes through them only at"
    " D = 512.",
)
assert abs(first_conv_mj(at_512) - 1.596) < 0.001

# %% [markdown]
# ## Energy beside accuracy
#
# Energy alone says little: a network that guesses at random needs almost no energy. The next cell puts the published
# energies beside the published accuracies, all at T = 4 on ImageNet. ANN 8-512 is the network of the same size without
# spikes.
#
# **Predict before you run.** How much less energy does 8-512 need with spikes? And what does it cost in accuracy?

# %% tags=["predict"]
ANN_TOP1 = 80.80  # the paper, ImageNet
ann, _, ann_mj = PUBLISHED_ANN
print(f"{'':18}{'mJ':>8}{'top-1, %':>10}")
for name, (_, mj) in PUBLISHED.items():
    print(f"{name:18}{mj:8.3f}{se.preset(name).paper_accuracy[4]:10.2f}")
print(f"{'ANN 8-512':18}{ann_mj:8.3f}{ANN_TOP1:10.2f}")
less = ann_mj / PUBLISHED[ann][1]
cost = ANN_TOP1 - se.preset(ann).paper_accuracy[4]
print(f"8-512 with spikes: {less:.1f} times less energy, {cost:.2f} points less")
assert all(se.preset(name).paper_accuracy[4] < ANN_TOP1 for name in PUBLISHED)

# %% [markdown]
# <details><summary>Answer</summary>
#
# It needs 3.3 times less energy, and its accuracy is 7.42 points lower. No spiking network of the table reaches the
# accuracy of the one without spikes, so the table shows a trade-off between accuracy and energy. It does not say how
# much energy a smaller network without spikes would need to reach 73 %.
#
# </details>
#
# The energy of the ANN can be checked, too. Divided by 4.6 pJ, it gives the number of operations: 8.335 G. We tried
# twenty plausible ways of counting: with or without the first convolution, with or without the head, and with none, one
# or both products of attention in either order.

# %%
ways = audit_ann()
print(Audit(ways[:3]))
rounding = 0.0005 / MAC  # of the published energy, in G
print(f"the nearest is off by {abs(ways[0]['off by (G)']):.4f} G,")
print(f"rounding explains {rounding:.4f} G")
assert all(abs(row["off by (G)"]) > 10 * rounding for row in ways)

# %% [markdown]
# None of them gives the published number, and we do not know what was counted. `se.energy` counts the network without
# spikes in the simplest way: every layer once, both products of attention, all at 4.6 pJ.

# %% [markdown]
# ## One model, three figures
#
# For Spikformer-8-384 at T = 4, with the same 6.82 G SOPs, three energies have been published: 0.525, 7.734 and 12.43
# mJ. The middle one is from Table 2 of the paper. The first is from an early version of the [same
# paper](https://arxiv.org/abs/2209.15425), the last from the table of
# [Spikingformer](https://arxiv.org/abs/2304.11954). The next cell divides the first by the SOPs, and subtracts the
# middle one from the last.

# %%
early = {
    "imagenet-8-384": 0.525,
    "imagenet-6-512": 0.669,
    "imagenet-8-512": 0.854,
    "imagenet-10-512": 1.053,
}
early |= {"imagenet-8-768": 1.701}  # mJ, in an early version of the paper
# mJ, in Spikingformer's table
later = {"imagenet-8-384": 12.43, "imagenet-8-512": 18.82, "imagenet-8-768": 32.07}

for name, (sops_g, published) in PUBLISHED.items():
    line = f"{name:16} early {early[name] / sops_g:.3f} pJ a SOP"
    assert abs(early[name] - 0.077 * sops_g) < 0.0006
    if name in later:
        # G SOPs that would have to cost a MAC instead of an AC
        dearer = (later[name] - published) / (MAC - AC)
        more, percent = later[name] - published, 100 * dearer / sops_g
        line += f"   later: {more:5.2f} mJ more, as if {percent:.0f} % were MACs"
        assert 0.1 < dearer / sops_g < 0.2
    print(line)

# %% [markdown]
# - **0.525** is 0.077 pJ for every SOP, as in all five rows. It uses another price for an operation and leaves out the
#   first convolution.
# - **7.734** is 0.9 pJ for every SOP plus the first convolution of D = 512.
# - **12.43** is from a paper that points out that Spikformer's residual stream holds integers, which must be multiplied
#   by weights. The difference equals the extra cost if 13 to 19 % of the SOPs are MACs instead of ACs. This agrees with
#   the argument of that paper. We could not find how it counted each layer, so we draw no further conclusion.
#
# None of the three was measured. The factor of 24 between the smallest and the largest comes from counting alone.

# %% [markdown]
# ## The same spikes, five numbers
#
# Now we do the same for the packaged network. Its spikes stay the same; only the prices change.

# %%
from_residual = [
    cost for cost in report.layers if cost.layer.endswith((".qkv", ".hidden"))
]
extra = sum((MAC - AC) * cost.sops for cost in from_residual)
dense = sum(
    (MAC - AC * cost.rate) * cost.steps * cost.flops for cost in from_residual
)
numbers = {
    "0.077 pJ a SOP, no first convolution": 0.077 * report.sops,
    "paper, eq. 21-24": report.totals["paper-corrected"],
    "integers by value": report.totals["integer"],
    "residual values multiply": report.totals["paper-corrected"] + extra,
    "... the zeros among them too": report.totals["paper-corrected"] + dense,
    "network without spikes, T = 1": report.totals["ann"],
}
for name, pj in numbers.items():
    print(f"{name:38}{pj / 1e6:6.2f} µJ")
*spiking, ann = numbers.values()
assert spiking == sorted(spiking) and spiking[-1] > 50 * spiking[0]
assert spiking[-2] < ann < spiking[-1]

# %% [markdown]
# The line before the last is for a machine that multiplies in these four layers and cannot skip their zeros. These
# layers run T times, and on this machine the spiking network needs more energy than the network without spikes. **A
# statement about an energy advantage must name the machine.**

# %% [markdown]
# ## What is not counted at all: memory
#
# All numbers above are for arithmetic only. But a weight must be read from memory before it can be added. Every neuron
# also has a [membrane potential](../docs/glossary.md#membrane-potential) that is read and written in every time step,
# with or without a spike. The network without spikes has no such state. We do not need a price to see how much this
# matters: we count the memory accesses.

# %%
neurons = sum(record.values[0, 0].numel() for record in rec.layers("spikes"))
# of one image: each reads, decays and writes a membrane potential
updates = neurons * T
# pJ an access at which state costs as much as arithmetic
even = report.totals["paper-corrected"] / (2 * updates)
print(f"{neurons:,} neurons, {2 * updates:,} reads and writes of state:")
print(f"as much as the arithmetic, if each costs {even:.1f} pJ")
assert even < 20

# %% [markdown]
# If one access to a membrane potential costs more than 7.3 pJ, this memory alone needs more energy than all the
# arithmetic that we counted. The reads of weights are not counted for either network. A GPU also multiplies zeros, so
# on a GPU the savings counted here do not exist.

# %% [markdown]
# ## What a fair statement names
#
# 1. what was **measured** and what was **counted**, and for which machine the prices hold (45 nm, 32-bit, arithmetic)
# 2. T, and the firing rates **of inputs**, with the data and the number of images on which they were measured
# 3. how the first layer is counted: MAC or AC, once or T times, at which width
# 4. how everything that is not {0, 1} is counted: residual integers, the head
# 5. the order of the attention products, because it changes the number of operations
# 6. what is left out: memory, neurons, batch norm, pooling
# 7. the accuracy, and the network it is compared with: same size, T = 1, same precision, counted by the same rules,
#    with **its** accuracy
#
# `print(report)` states most of this: that the energy was counted and at which prices, T, the rate of every input and
# the number of images, the cost of the first layer and of integers, and that memory is left out. You must add the data
# and the accuracy. For 7 we trained the network without spikes: the layers of `digits-2-64` with ReLUs in place of the
# neurons and softmax attention, with the same recipe and three seeds ([script](results/10_energy.py)). The next cell
# gives the whole statement.

# %%
ours = se.load_run("digits-2-64").results
twin = json.loads(Path("results/10_energy.json").read_text())["runs"]
twin_top1 = 100 * sum(run["test_accuracy"] for run in twin) / len(twin)
micro = {name: pj / 1e6 for name, pj in report.totals.items()}
top1, sops_m = 100 * ours["accuracy"], report.sops / 1e6
statement = f"""
digits-2-64: {micro["paper-corrected"]:.1f} µJ an image (counted: eq. 21-24,
arithmetic at 45 nm, no memory), {micro["integer"]:.1f} µJ with integers by value,
{top1:.1f} % of {ours["total"]} test digits. T = {T}, {sops_m:.1f} M SOPs,
first convolution as MACs at every step, attention as Q(K^T V), rates
measured on {report.images} test digits. The same size without spikes, T = 1,
by the same rules: {micro["ann"]:.0f} µJ, {twin_top1:.1f} % ({len(twin)} seeds).
""".strip()
print(statement)
assert "No memory access" in str(report) and 0 < twin_top1 - top1 < 2

# %% [markdown]
# Here the network without spikes is about a point more accurate, which is about three of 359 digits. On ImageNet it is
# 7.42 points.

# %% [markdown]
# ## Pitfalls
#
# - **The rate of the wrong tensor.** Symptom: the SOPs of some layers are wrong by a factor of two or more, which the
#   total may not show. Cause: the firing rate of a layer's *output* was used. Cure: use the rate of its input. The next
#   cell makes this mistake.
# - **Energies compared across conventions.** Symptom: the same network has 0.525, 7.734 or 12.43 mJ. Cure: compare only
#   energies that you counted yourself, all with the same function.
# - **FLOPs counted twice.** Profilers count a multiplication and an addition as two operations; eq. 21-24 mean one
#   multiply-accumulate. Symptom: exactly twice the energy.
# - **Rates on noise.** On random images the firing rates differ from those on real data. Symptom: energies that are too
#   low or too high. Cure: give `se.energy` test images, normalized as in training.
# - **Residual streams taken for spikes.** Symptom: the mean is larger than the firing rate. Cure: look at `report`,
#   which has both columns.

# %%
for part in ("mlp.hidden", "mlp.out"):
    right = (inputs[f"blocks.1.{part}"] != 0).double().mean().item()
    wrong = rec[f"blocks.1.{part}"].spikes.double().mean().item()
    print(f"blocks.1.{part:11} rate of its input {right:.3f}, output {wrong:.3f}")
    assert max(right, wrong) > 1.2 * min(right, wrong)

# %% [markdown]
# ## Exercises
#
# **10.1 Find the constant.** The rest is 1.596 mJ in all five rows of Table 2. Which width D does this energy belong
# to? The first convolution is 3 x 3, has `channels` input channels and D/8 output channels, and keeps the `size` x
# `size` pixels. It is charged T times. Invert its formula for any network.


# %% tags=["exercise-1"]
def width_behind(energy_mj, T=4, size=224, channels=3):
    """The width D whose first convolution costs energy_mj (4.6 pJ a MAC)."""
    ...


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
# **10.2 When does it lose?** Suppose the inputs of all layers but the first have the same rate r. At which r does eq.
# 21-24 give the network as much energy as the network without spikes? Every layer runs T times, except the head, which
# runs once. `report.layers` has the `flops` of each layer, the first convolution first and the head last;
# `report.ann_flops` has those of the network without spikes. Then think about what r > 1 means. (Item 7 of the list
# above asks for more than this: at equal energy, which of the two is more accurate?)


# %% tags=["exercise-2"]
def break_even_rate(report, T):
    """The rate r at which both networks need the same energy."""
    ...


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
# **10.3 The energy of an integer residual.** Write the three prices of this chapter for any residual stream
# `[T, B, N, D]` and any fan-out, for **one image**: each non-zero value costs one AC; a value n costs n ACs; each
# non-zero value costs one MAC.


# %% tags=["exercise-3"]
def residual_energy(x, fan_out):
    """pJ of one image; every value of x meets fan_out weights.

    Returns {"as spikes": ..., "by value": ..., "multiplied": ...}.
    """
    ...


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


# %% [markdown]
# ## Recap
#
# - SOPs are counted from recorded inputs. The count is exact for linear layers, and nearly exact for convolutions with
#   padding.
# - The first convolution multiplies, and the residual stream holds integers. Each convention of counting sets its own
#   prices for such cases.
# - Table 2 can be checked from its own columns: all five rows contain the same first convolution.
# - Only arithmetic is counted, not memory. A count says little without T, the rates, the convention, the accuracy, and
#   the network it is compared with.
# - On ImageNet, 8-512 needs 3.3 times less energy with spikes than without, by the paper's count, and is 7.42 points
#   less accurate.
#
# Solutions: [solutions](solutions/10_energy.ipynb). Next: [chapter 11](11_events.ipynb), in which the input itself is
# sparse.
