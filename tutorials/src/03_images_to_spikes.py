# %% [markdown]
# # 03 · Images into spikes
#
# *Run time 10 s on one CPU core · after chapter 01 · no internet access, no GPU*
#
# An image consists of real numbers and has no time axis; a spiking network works with spikes over time. How does an
# image become spikes? Spikformer gets the same image at every time step, and its first neurons turn it into spikes
# ([direct coding](../docs/glossary.md#direct-coding)). These neurons are part of the spiking patch splitting
# ([SPS](../docs/glossary.md#sps)): four small convolution blocks and a position embedding, which turn the image into
# tokens. We build SPS by hand and check that every spike equals the package's.
#
# ![The network's parts, from image to answer; this chapter is about SPS, which makes tokens](../docs/images/network_map/03.svg)
#
# ## What you will learn
# - say why a still image gives spikes that change over time, and when a neuron fires first
# - write SPS stage by stage, with shapes and value sets, and check that it equals the package's
# - say why the first convolution of a still image needs to run only once
# - say why the pool comes after the neuron, and what the position embedding does

# %% tags=["setup"]
import math
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

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# The figure shows one digit in the five neuron layers of SPS (from top to bottom) and the T = 4 time steps (from left
# to right). A map shows the share of channels that fire at each place. At the right is the
# [raster](../docs/glossary.md#raster) of 60 of the layer's neurons. The maps shrink from 32 x 32 pixels to 8 x 8
# tokens. In each layer the first step has the fewest spikes, although the image is the same at every step.

# %% tags=["fold"]
# maps and rasters of the five layers
model = se.load_pretrained("digits-2-64")
# three test digits, [B, 1, 32, 32]; None: without random augmentation
images, labels = se.data.load("digits").test.fetch(torch.tensor([3, 1, 9]), None)
NAMES = ["sps.0", "sps.1", "sps.2", "sps.3", "sps.rpe"]
with torch.no_grad(), se.record(model) as rec:
    model(images)  # T = 4 and B = 3 differ on purpose
assert rec["sps.0"].spikes.shape == (4, 3, 8, 32, 32), "time first"

shares = [
    rec[name].spikes[:, 1].mean(1) for name in NAMES
]  # each [T, rows, columns]
most = max(float(share.max()) for share in shares)
fig, axes = plt.subplots(5, 5, figsize=(9, 8.4), width_ratios=[1, 1, 1, 1, 1.6])
for row, name, share in zip(axes, NAMES, shares, strict=True):
    spikes = rec[name].spikes[:, 1]  # [T, channels, rows, columns]
    for t, ax in enumerate(row[:4]):
        drawn = ax.imshow(share[t], vmin=0, vmax=most)
        ax.set(xticks=[], yticks=[])
    channels, height, width = spikes.shape[1:]
    row[0].set_title(f"{name}: {channels} x {height} x {width}")
    se.plot.raster(spikes.flatten(1), neurons=60, ax=row[4])
    row[4].set(title=f"rate {spikes.mean():.1%}", ylabel="", yticks=[], xlabel="")
for t, ax in enumerate(axes[-1, :4]):
    ax.set_xlabel(f"t = {t}")
axes[-1, 4].set_xlabel("time step t")
fig.colorbar(
    drawn,
    ax=axes[:, :4],
    location="bottom",
    shrink=0.6,
    aspect=40,
    label="share of channels that fire",
)
fig.suptitle("one digit in SPS, T = 4, and rasters of 60 neurons")
se.plot.show(
    fig,
    "Maps of the share of firing channels of one digit in the five neuron layers "
    "of SPS, for T = 4 steps, and rasters. The maps shrink from 32 x 32 to 8 x 8, "
    "and the first step has the fewest spikes.",
)
# [layer, T]
rates = torch.stack([rec[name].spikes.mean((1, 2, 3, 4)) for name in NAMES])
assert (rates[:, 0] <= rates[:, 1:].mean(1)).all()

# %% [markdown]
# ## Shapes and values
#
# The table is for the packaged network: one channel of 32 x 32 pixels, D = 64, and a pool in the first two blocks.
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $I$ | `[B, 1, 32, 32]` | reals | normalized image, the same at every step |
# | Conv, BN | as the spikes of the block | reals | input current of the neurons |
# | `sps.0` | `[T, B, 8, 32, 32]` | {0, 1} | spikes of the first block, before its pool |
# | pooled | `[T, B, 8, 16, 16]` | {0, 1} | the largest of 3 x 3 spikes |
# | `sps.1` | `[T, B, 16, 16, 16]` | {0, 1} | spikes of the second block, before its pool |
# | pooled | `[T, B, 16, 8, 8]` | {0, 1} | the same after the pool |
# | `sps.2`, `sps.3` | `[T, B, 32, 8, 8]`, `[T, B, 64, 8, 8]` | {0, 1} | third and fourth block |
# | `sps.rpe` | `[T, B, 64, 8, 8]` | {0, 1} | [position embedding](../docs/glossary.md#position-embedding) |
# | $X_0$ | `[T, B, 64, 64]` | {0, 1, 2} | 64 tokens of width 64: features plus position |
#
# $T$ is the number of time steps, $B$ the number of images, $D$ the width of a token, $N$ the number of tokens. In
# formulas of [the paper](https://arxiv.org/abs/2209.15425), with SN a layer of [LIF
# neurons](../docs/glossary.md#lif-neuron), BN batch norm, and MP a max-pool:
#
# $$x = \mathrm{SPS}(I) \tag{4}$$
#
# $$\mathrm{RPE} = \mathrm{SN}(\mathrm{BN}(\mathrm{Conv2d}(x))) \tag{5}$$
#
# $$X_0 = x + \mathrm{RPE} \tag{6}$$
#
# $$\text{one block of SPS: } \mathrm{MP}(\mathrm{SN}(\mathrm{BN}(\mathrm{Conv2d}(x)))) \tag{10}$$

# %% [markdown]
# ## Direct coding: a constant current
#
# The image is the same at every step, so each neuron of the first layer gets the same current at every step. But its
# membrane changes: it charges half of the way to the current, fires if it has reached the threshold, and is then set to
# zero. [Chapter 01](01_leaky_neuron.ipynb) explains this neuron.
#
# **Predict before you run.** The threshold is 1, and T = 4. At which steps does a neuron fire if its current is always
# 2? Always 1.4? Always 1?


# %% tags=["predict"]
# current [T, ...], real -> spikes [T, ...], {0, 1}
def lif(current, threshold=1.0):
    membrane, spikes = torch.zeros_like(current[0]), []
    for now in current:
        charged = (membrane + now) / 2  # tau = 2
        spikes.append((charged >= threshold).to(now.dtype))
        membrane = charged * (1 - spikes[-1])
    return torch.stack(spikes)


constant = torch.tensor([2.0, 1.4, 1.0]).expand(4, 3)  # [T, neurons]
spikes = lif(constant)
for c, train in zip(constant[0], spikes.T, strict=True):
    print(f"current {c:.1f}: spikes at t = 0..3:", *train.int().tolist())
assert spikes.T.tolist() == [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]
# the package's two implementations of the neuron
for backend in ("fused", "snntorch"):
    assert torch.equal(se.LIF(backend=backend)(constant), spikes)

# %% [markdown]
# <details><summary>Answer</summary>
#
# From zero, $n$ steps of a constant current $c$ charge the membrane to $c\,(1 - 2^{-n})$: half of $c$, then three
# quarters, then seven eighths. A current of 2 gives 1 at the first step. This is exactly the threshold, and a neuron
# fires at the threshold, so it fires at every step. A current of 1.4 gives 0.7, then 1.05: the neuron fires at t = 1,
# is reset, and fires again at t = 3. With a current of 1 the membrane comes closer and closer to the threshold but
# never reaches it.
#
# </details>
#
# So the time of the first spike and the firing rate code the strength of a current. With T = 4 a neuron distinguishes
# five ranges of a constant current. The bounds of these ranges are $1 / (1 - 2^{-n})$ = 2, 4/3, 8/7, 16/15:

# %% tags=["fold"]
# spikes over time for constant currents from 0.9 to 2.2
T = 4
currents = torch.linspace(0.9, 2.2, 131)
trains = lif(currents.expand(T, -1))  # [T, currents]
first = torch.where(trains.any(0), trains.argmax(0), T)  # T: never
# 16/15, 8/7, 4/3, 2: from here on it fires first at t = 3, 2, 1, 0
bounds = torch.tensor([1 / (1 - 0.5**n) for n in range(T, 0, -1)])
fig, ax = plt.subplots(figsize=(6.4, 4))
ax.pcolormesh(
    torch.arange(T),
    currents,
    trains.T,
    cmap="Greys",
    vmin=0,
    vmax=1,
    shading="nearest",
)
for bound, label in zip(bounds, ("16/15", "8/7", "4/3", "2"), strict=True):
    ax.axhline(bound, color=style.MEMBRANE, linewidth=2)
    ax.annotate(
        label,
        (1, bound),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
    )
ax.set(xlabel="time step t", ylabel="constant current c", xticks=range(T))
ax.set_title("spikes (black) of a first-layer neuron under direct coding, T = 4")
se.plot.show(
    fig,
    "Spikes over T = 4 time steps of neurons with a constant current from 0.9 to "
    "2.2, upwards. Orange lines at 16/15, 8/7, 4/3 and 2 separate five ranges, "
    "each with its own pattern of spikes.",
)
assert (first == T - torch.bucketize(currents, bounds, right=True)).all()

# %% [markdown]
# ## The first block by hand
#
# A 3 x 3 convolution computes 8 currents from each pixel and its neighbors. Batch norm shifts and scales each channel.
# Then come the neuron and the pool. The image is copied T times: `[T, B, 1, 32, 32]`. Convolution and pool do not
# depend on time, so we merge time and batch for them. For the neuron we separate the two again.


# %%
def batch_norm(bn, x):  # evaluation mode
    return F.batch_norm(
        x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps
    )


def conv_block(block, x):  # x [T, B, channels, rows, columns]
    T, B = x.shape[:2]
    # [T*B, channels, rows, columns], real
    current = batch_norm(
        block.bn, F.conv2d(x.flatten(0, 1), block.conv.weight, padding=1)
    )
    # [T, B, channels, rows, columns], {0, 1}
    spikes = lif(current.reshape(T, B, *current.shape[1:]))
    if block.pool is None:
        return spikes, spikes
    # [T*B, channels, rows / 2, columns / 2]
    pooled = F.max_pool2d(spikes.flatten(0, 1), kernel_size=3, stride=2, padding=1)
    return pooled.reshape(T, B, *pooled.shape[1:]), spikes


# [T, B, 1, 32, 32]: the same image at every step
frames = images.expand(4, *images.shape)
with torch.no_grad():
    x, before_pool = conv_block(model.sps[0], frames)
assert x.shape == (4, 3, 8, 16, 16) and set(x.unique().tolist()) == {0, 1}
# recorded layers are neurons, so this is before the pool
assert torch.equal(before_pool, rec["sps.0"].spikes)
print("neurons:", list(before_pool.shape), " after the pool:", list(x.shape))

# %% [markdown]
# ## All of SPS
#
# Three more blocks of the same kind follow, then the position embedding. It is one more convolution block without a
# pool, and its spikes are added to its own input (6). A sum of two spikes is 0, 1 or 2.


# %%
def sps_by_hand(sps, x):  # x [T, B, 1, rows, columns]
    layers = []
    for block in (sps[0], sps[1], sps[2], sps[3]):  # (10), four times
        x, spikes = conv_block(block, x)
        layers.append(spikes)
    position, _ = conv_block(sps.rpe, x)  # (5)
    return x + position, [*layers, position]  # (6)


with torch.no_grad():
    x0, layers = sps_by_hand(model.sps, frames)
    for name, mine in zip(NAMES, layers, strict=True):
        assert torch.equal(mine, rec[name].spikes), f"{name}: every spike, exactly"
        print(f"{name}: {list(mine.shape)}, values {mine.unique().int().tolist()}")
    assert torch.equal(x0, model.sps(images, time_steps=4))
    # five dimensions: the first is T
    assert torch.equal(x0, model.sps(frames, time_steps=4))
    for b in range(3):  # a sample's spikes do not depend on the others in its batch
        assert torch.equal(
            x0[:, b : b + 1], model.sps(frames[:, b : b + 1], time_steps=4)
        )
assert x0.shape == (4, 3, 64, 8, 8) and set(x0.unique().tolist()) == {0, 1, 2}
shares = torch.bincount(x0.int().flatten()) / x0.numel()
print(
    "X_0:",
    list(x0.shape),
    "  shares of 0, 1, 2:",
    *(f"{share:.2f}" for share in shares),
)

# %% [markdown]
# For the sequence of tokens we flatten the two space dimensions of $X_0$ and put the features last: `[T, B, N, D]`, N =
# 8 · 8. T and B stay in place.

# %%
tokens = x0.flatten(3).transpose(2, 3)  # [T, B, N, D]
assert tokens.shape == (4, 3, 64, 64)
# token 43 is row 5, column 3
assert torch.equal(tokens[2, 1, 8 * 5 + 3], x0[2, 1, :, 5, 3])

# %% [markdown]
# ## The first convolution, once
#
# Convolution and batch norm of the first block have no memory, so T copies of an image give T times the same current.
# It is enough to compute the current once and to give it to the neuron T times, because only the neuron depends on
# time. The package does this for inputs of shape `[B, 1, 32, 32]`. We let PyTorch count the multiplications.


# %%
def mmacs(function, *inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*inputs)
    return counter.get_total_flops() / 2e6


copied = mmacs(model.sps[0], frames)
once = mmacs(model.sps[0].forward_image, images, 4)
print("first block, B = 3, million multiply-accumulates:")
print(f"{copied:.2f} for 4 copies, {once:.2f} for one")
assert copied == 4 * once
with torch.no_grad():
    assert torch.equal(model.sps[0](frames), model.sps[0].forward_image(images, 4))

# %% [markdown]
# ## Pool after the neuron
#
# SPS pools spikes: the neuron comes first, then the maximum of a 3 x 3 window is taken (10). The maximum of nine bits
# is their OR, so the result is still a bit. An average would be a multiple of 1/9, and the next convolution would need
# multiplications again.

# %%
bits = before_pool[:, 0, 0]  # [T, 32, 32], one channel of one digit
largest = F.max_pool2d(bits, 3, 2, 1)
average = F.avg_pool2d(bits, 3, 2, 1)
patches = F.unfold(bits[:, None], 3, padding=1, stride=2).bool()  # [T, 9, 16*16]
assert torch.equal(largest.flatten(1), patches.any(1).float())
ninths = round(9 * float(average.max()))
print("max-pool:", largest.unique().tolist(), " average-pool: up to", ninths, "/ 9")
assert set(largest.unique().tolist()) <= {0, 1}
assert not set(average.unique().tolist()) <= {0, 1}

# %% [markdown]
# Pooling the currents before the neuron would also give bits, with a quarter of the neurons. But this is a different
# network: one neuron that gets the largest current of a window has one membrane, and each of its spikes resets it. Nine
# neurons that are pooled afterwards have nine membranes. The next cell computes both with the trained weights. At t = 0
# they agree: the largest current of a window causes a spike exactly if any of the nine does. At t = 1 the rates still
# agree, and from t = 2 on they differ, because the resets differ. Exercise 3.1 asks for an example with two pixels.

# %%
with torch.no_grad():
    # [B, 8, 32, 32]
    current = batch_norm(model.sps[0].bn, model.sps[0].conv(images))
    after = F.max_pool2d(
        lif(current.expand(4, *current.shape)).flatten(0, 1), 3, 2, 1
    ).reshape(4, 3, 8, 16, 16)
    before = lif(F.max_pool2d(current, 3, 2, 1).expand(4, 3, 8, 16, 16))
for t in range(4):
    rate_after, rate_before = after[t].mean(), before[t].mean()
    print(f"t = {t}: rate pooled after {rate_after:.3f}, before {rate_before:.3f}")
assert torch.equal(after[0], before[0]) and torch.equal(after, x)
assert (after[1:] > before[1:]).any() and not torch.equal(after, before)

# %% [markdown]
# ## How many tokens
#
# Each pool halves height and width. Digits and CIFAR images have 32 x 32 pixels, so their networks pool in two blocks.
# Event frames and ImageNet's images are larger, so all four blocks pool. The next cell shows the shapes with narrow
# networks that have the same pools.

# %%
for name in ("digits-2-64", "cifar10-4-384", "cifar10dvs-2-256", "imagenet-8-512"):
    p = se.preset(name)
    narrow = se.spikformer(name, dim=8, heads=1, depth=1).eval()
    blank = torch.zeros(1, p.config.in_channels, p.image_size, p.image_size)
    with torch.no_grad():
        grid = narrow.sps(blank, time_steps=1)
    side = p.image_size // 2 ** sum(p.config.pool)
    assert grid.shape[-2:] == (side, side)
    pools = "".join("P" if pool else "-" for pool in p.config.pool)
    pixels, tokens = f"{p.image_size:3} x {p.image_size:3}", f"{side:2} x {side:2}"
    print(
        f"{name:17} {pixels} pixels, pools {pools}: {tokens} = {side**2:3} tokens"
    )

# %% [markdown]
# ## What the position embedding is for
#
# All layers after SPS treat all tokens in the same way: linear layers process one token at a time, attention compares
# every pair only by content, and the classification head takes the mean over tokens. The position embedding is a
# convolution, so it also uses a token's neighbors.
#
# **Predict before you run.** We shuffle the features $x$ of 120 test digits in front of the embedding, all in the same
# way. For how many digits does the network give the same answer as before, without the embedding? And with it?

# %% tags=["predict"]
many, _ = se.data.load("digits").test.fetch(torch.arange(120), None)
order = torch.randperm(64, generator=torch.Generator().manual_seed(0))


def logits_of(features, embed):  # features [T, B, D, 8, 8]
    x0 = features + model.sps.rpe(features) if embed else features
    tokens = x0.flatten(3).transpose(2, 3)  # [T, B, N, D]
    for block in model.blocks:
        tokens = block(tokens)
    return model.head(tokens.mean(2).mean(0))


with torch.no_grad():
    # sps.3, [T, B, D, 8, 8]
    features = sps_by_hand(model.sps, many.expand(4, *many.shape))[1][3]
    shuffled = features.flatten(3)[..., order].reshape(features.shape)
    for embed in (False, True):
        still, moved = logits_of(features, embed), logits_of(shuffled, embed)
        share = (still.argmax(1) == moved.argmax(1)).float().mean()
        word = "with" if embed else "without"
        print(f"{word} embedding: same answer for {share:.0%} of the digits")
        if embed:
            torch.testing.assert_close(still, model(many))
            assert share < 1 and (still - moved).abs().max() > 0.5
        else:
            assert share == 1 and (still - moved).abs().max() < 0.01

# %% [markdown]
# <details><summary>Answer</summary>
#
# Without the embedding for all of them: no layer after SPS can distinguish the two orders, so the logits are the same
# up to rounding. With the embedding the output depends on which tokens are neighbors: for 88 % of the digits the answer
# stays the same, for the others it changes. So the embedding encodes position. The embedding is *conditional*: it is
# computed from the tokens, so it works for any image size, unlike a learned table of positions. (This test does not
# show how good a network trained without the embedding would be: this network was trained with it, and the convolutions
# of SPS already combine neighboring pixels.)
#
# </details>
#
# ## Rate coding, for comparison
#
# Rate coding is an older method: a pixel of brightness p in [0, 1] fires at each step with probability p. The share of
# spikes over time estimates p. This code is random, and its error falls only as $1/\sqrt T$. Direct coding gives the
# exact number to the first layer at once. But then the first convolution multiplies real numbers, while all later
# convolutions add weights for spikes ([chapter 10](10_energy.ipynb) counts these operations). For the figure we shade a
# digit from dark to bright.

# %% tags=["fold"]
# a digit with a gradient of brightness, rate-coded over 1 to 128 steps
# undo the normalization: brightness in [0, 1]
picture = (images[1, 0] * 0.40 + 0.22).clamp(0, 1)
# from dark to bright, so that there is something to code
gray = picture * torch.linspace(0.2, 1, 32)[:, None]
steps = [1, 2, 4, 8, 16, 32, 64, 128]
noise = torch.Generator().manual_seed(0)
coded = {
    n: (torch.rand(n, 32, 32, generator=noise) < gray).float().mean(0)
    for n in steps
}
errors = [float((coded[n] - gray).square().mean().sqrt()) for n in steps]
expected = [float((gray * (1 - gray)).mean().sqrt()) / n**0.5 for n in steps]

fig, axes = plt.subplots(1, 4, figsize=(11, 2.9), width_ratios=[1, 1, 1, 1.7])
shown = [
    ("direct: exact at t = 0", gray),
    ("rate, T = 4", coded[4]),
    ("rate, T = 64", coded[64]),
]
for ax, (title, values) in zip(axes, shown, strict=False):
    ax.imshow(values, cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[], title=title)
axes[3].loglog(steps, errors, "o-", color=style.SPIKE, label="measured")
axes[3].loglog(
    steps,
    expected,
    "--",
    color=style.MEMBRANE,
    label=r"expected, falls as $1/\sqrt{T}$",
)
axes[3].set(
    xlabel="time steps T",
    ylabel="RMS error",
    title="error of the rate code",
)
axes[3].set_xticks([1, 4, 16, 64], [1, 4, 16, 64])
axes[3].set_yticks([0.02, 0.05, 0.1, 0.2], [0.02, 0.05, 0.1, 0.2])
axes[3].minorticks_off()
axes[3].legend()
se.plot.show(
    fig,
    "A shaded digit as direct coding gives it to the first layer, and the mean of "
    "its rate code after 4 and 64 steps, which is noisy. At the right the error "
    "of the rate code over T, on logarithmic axes: it falls as one over root T.",
)
assert all(
    0.8 < error / own < 1.2 for error, own in zip(errors, expected, strict=True)
)

# %% [markdown]
# ## Pitfalls
#
# **T and B swapped.** We merge both into one axis for the convolution and separate them again for the neuron. If they
# are separated in the wrong order, no error is raised when the batch size equals T. The neuron then treats the samples
# of a batch as the time steps of one sample. Symptom: in evaluation, the logits of a sample depend on the other samples
# in the batch. The cell below makes this mistake with B = T = 4. It then tests the network with T ≠ B:

# %%
square = images.repeat(2, 1, 1, 1)[:4]  # B = 4 = T: no shape can show the mistake
with torch.no_grad():
    current = batch_norm(model.sps[0].bn, model.sps[0].conv(square))
    current = current.expand(4, *current.shape)  # [T, B, channels, rows, columns]
    right, wrong = lif(current), lif(current.transpose(0, 1)).transpose(0, 1)
print(
    "same shapes:",
    right.shape == wrong.shape,
    " same spikes:",
    torch.equal(right, wrong),
)
assert right.shape == wrong.shape and not torch.equal(right, wrong)
# the test for a whole network: the logits of a sample are the same in a batch of 3
with torch.no_grad():
    together = model(images)
    alone = torch.cat([model(images[b : b + 1]) for b in range(3)])
torch.testing.assert_close(together, alone, atol=0.05, rtol=0)

# %% [markdown]
# **Rates at t = 0 taken for the network's rates.** The first step has the fewest spikes in each layer (key figure).
# Measure over all T, and do not compare rates at different T.
#
# **Images not normalized as in training.** In training, the batch norm after the first convolution removes scale and
# offset. In evaluation it uses the statistics of the training images, which do not fit raw pixels: the firing rate of
# the first block is then 5.5 times lower on our three digits. Normalize images as in training.
#
# **Image sizes.** Each pool halves a side, so a token covers a patch of $2^n$ pixels a side after $n$ pools: 4 here. If
# a side is not divisible by this patch size, there is no whole number of tokens. The package raises an error of one
# line.

# %%
facts = se.data.info("digits")
pixels = images * facts.std[0] + facts.mean[0]  # in [0, 1] again
with torch.no_grad(), se.record(model, layers=["sps.0"]) as raw:
    model(pixels)
less = float(rec["sps.0"].spikes.mean() / raw["sps.0"].spikes.mean())
print(f"raw pixels: the first stage fires {less:.1f} times less")
assert 4 < less < 8
try:
    model(torch.zeros(1, 1, 30, 32))
except se.SpikformerError as error:
    print(error)

# %% [markdown]
# **A first convolution that runs once, in training.** In training mode batch norm also keeps a running average of the
# variance, for later. PyTorch stores it with Bessel's correction: it divides by one less than the number of values. T
# copies of a batch have T times as many values, so their correction is smaller. A convolution that runs once must make
# up for this, or the statistics differ from those of a network trained with copies: by 5 % in the next cell, which has
# only 16 values a channel. The package makes up for it:

# %% tags=["fold"]
# running variance after one batch: copies, once, and once in the package
block = se.spikformer("digits-2-64", dim=16, heads=2).sps[0].train()
small = images[:1, :, 12:16, 12:16]  # 4 x 4 pixels: 16 values a channel
variance = {}
for way in ("copies", "once", "once, in the package"):
    block.bn.reset_running_stats()
    with torch.no_grad():
        if way == "copies":
            block(small.expand(4, *small.shape))
        elif way == "once":
            block.bn(block.conv(small))
        else:
            block.forward_image(small, 4)
    # momentum 0.1, starts from 1
    variance[way] = (block.bn.running_var - 0.9) / 0.1
    ratio = float((variance[way] / variance["copies"]).mean())
    print(f"{way:20} variance over that of the copies: {ratio:.4f}")
torch.testing.assert_close(variance["once, in the package"], variance["copies"])
torch.testing.assert_close(
    variance["once"] / variance["copies"],
    torch.full((2,), (16 / 15) / (64 / 63)),
)

# %% [markdown]
# ## Exercises
#
# **Exercise 3.1: pool before or after the neuron?** Find constant currents of two neighboring pixels, a and b, for which
# pooling their spikes and pooling their currents differ within T = 4 steps.

# %% tags=["exercise-1"]
a, b = None, None

# %% tags=["check-1"]
with se.exercise("3.1"):
    assert a is not None and b is not None, "give two numbers"
    pair = se.LIF()(torch.tensor([float(a), float(b)]).expand(4, 2))  # [T, 2]
    pooled_after = pair.max(1).values
    pooled_before = se.LIF()(torch.full((4, 1), max(float(a), float(b))))[:, 0]
    assert not torch.equal(pooled_after, pooled_before), (
        f"a fires {pair[:, 0].int().tolist()}, b {pair[:, 1].int().tolist()}: "
        f"both ways give {pooled_after.int().tolist()}"
    )

# %% [markdown]
# **Exercise 3.2: from the first spike back to the current.** A neuron with a constant current fires for the first time
# at step t. Between which bounds does the current lie? Write a function that returns both, for any t and any threshold
# ($\tau = 2$). At t = 0 there is no upper bound: return `math.inf`.


# %% tags=["exercise-2"]
def currents_of(t, threshold=1.0):
    """(low, high): a current c with low <= c < high fires first at step t."""
    ...


# %% tags=["check-2"]
with se.exercise("3.2"):
    assert currents_of(1) is not None, "write currents_of first"

    def first_step(c, threshold):
        constant_ = torch.full((64,), c, dtype=torch.float64)
        train = se.LIF(v_threshold=threshold).double()(constant_)
        return int(train.argmax()) if train.any() else "never"

    for threshold in (1.0, 0.5):
        for t in (1, 2, 5, 0):
            low, high = (float(bound) for bound in currents_of(t, threshold))
            case = f"threshold {threshold:g}, t = {t}"
            assert low < high, (
                f"{case}: the lower bound {low:g} is not the smaller one"
            )
            bounds = [("lower", low, t + 1, t)]
            bounds += [("upper", high, t, t - 1)] if t > 0 else []
            for which, bound, below, above in bounds:
                steps_ = [
                    first_step(bound * (1 + x), threshold) for x in (-1e-9, 1e-9)
                ]
                assert steps_ == [below, above], (
                    f"{case}: a current just below your {which} bound {bound:.4f} "
                    f"fires first at step {steps_[0]}, just above it at {steps_[1]}"
                )
            assert t > 0 or high == math.inf, (
                f"{case}: a current above your bound {high:g} fires at t = 0 too"
            )

# %% [markdown]
# **Exercise 3.3: what does a token see?** One feature of one token depends on a square of pixels of the image, its
# *receptive field*. How many pixels wide is this square at the end of the four blocks, before the position embedding?
# Each block has a 3 x 3 convolution with stride 1 and, if it pools, a 3 x 3 pool with stride 2. Write a function for
# any choice of pools. The check measures the width with a gradient.


# %% tags=["exercise-3"]
def width_seen(pools):
    """Width in pixels of the receptive field, for True or False in each block."""
    ...


# %% tags=["check-3"]
with se.exercise("3.3"):
    assert width_seen((True,)) is not None, "write width_seen first"
    for pools in (
        (False, False),
        (True,),
        (True, True, False, False),  # this network
        (False, False, True, True),  # CIFAR
        (True, True, True, True),  # ImageNet
    ):
        picture_ = torch.ones(1, 1, 129, 129, requires_grad=True)
        grid = picture_
        for pool in pools:
            grid = F.conv2d(grid, torch.ones(1, 1, 3, 3), padding=1)
            # an average depends on the same pixels as a maximum
            grid = F.avg_pool2d(grid, 3, 2, 1) if pool else grid
        middle = grid.shape[-1] // 2
        grid[0, 0, middle, middle].backward()
        measured = int((picture_.grad[0, 0].sum(0) > 0).sum())
        assert width_seen(pools) == measured, (
            f"pools {pools}: measured {measured}, your answer {width_seen(pools)}"
        )

# %% [markdown]
# ## Recap
#
# - Direct coding: the input is the same image at every step, and the first neurons turn a current into spike times and
#   a rate.
# - SPS has four blocks of convolution, batch norm, neuron and max-pool, and a position embedding. Its values are {0, 1}
#   inside and {0, 1, 2} at the end.
# - The first convolution of a still image runs once, because only the neuron depends on time.
# - The pool comes after the neuron, so its output is the OR of the spikes in a window.
# - Without the position embedding, the layers that follow could not distinguish shuffled tokens from ordered ones.
#
# Solutions: [03](solutions/03_images_to_spikes.ipynb). Next: [chapter 04](04_softmax_attention.ipynb), softmax
# attention, which a transformer applies to the tokens.
