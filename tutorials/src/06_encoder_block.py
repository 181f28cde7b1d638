# %% [markdown]
# # 06 · Heads, position, residuals: the encoder block
#
# *Run time 10 s on one CPU core · after chapters 01 and 05 · no internet access, no GPU*
#
# An [encoder block](../docs/glossary.md#encoder-block) consists of attention and an MLP (two linear layers, each with a
# neuron). Each of the two reads the *residual stream*, the tensor that runs through all blocks, and adds its output to
# it. This chapter builds the block. It looks at three details that often cause errors: the reshape that makes heads;
# the position of a token; and the residual connections, which add spikes, so that the stream is not binary.
#
# ![The network's parts, from image to answer; this chapter is about the encoder block, attention and MLP](../docs/images/network_map/06.svg)
#
# ## What you will learn
# - split tokens into heads and join them again, and test that no axis was mixed on the way
# - find out whether a block depends on the order of its tokens, and what adds the position
# - write the encoder block of the paper's equations (7) and (8), equal to the package's to the last spike
# - say which integers the residual stream may hold, and what this means for claims of "binary" layers and for energy
# - say how Spikformer's residual of spikes differs from a membrane shortcut

# %% tags=["setup"]
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

from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# The packaged network reads 64 digits of the validation set. The figure counts the values of the [residual
# stream](../docs/glossary.md#residual-stream) at five depths, on a logarithmic scale. At the input of the first block
# they are 0, 1 and 2, and each half of a block can add 1. No value to the right of the dashed line is possible at that
# depth. Most values stay 0. But of the non-zero values 14 % are above 1 at the input of the first block, and 47 % after
# the last.

# %% tags=["fold"]
# record the network, and count the values of the stream at five depths
model = se.load_pretrained("digits-2-64")
images, labels = se.data.load("digits").val.fetch(torch.arange(64), None)
with torch.no_grad(), se.record(model) as rec:
    model(images)

stream = {}  # name -> [T, B, N, D]
for i in range(2):
    out, mlp, ssa = (
        rec[f"blocks.{i}.{part}"].values
        for part in ("residual", "mlp.out", "attn.proj")
    )
    if i == 0:
        stream["$X_0$ from SPS"] = out - mlp - ssa
    stream[f"$X'_{i + 1}$ after SSA"] = out - mlp
    stream[f"$X_{i + 1}$ after MLP"] = out

fig, axes = plt.subplots(1, 5, figsize=(10.5, 3.2), sharey=True)
colors = [style.PALE, style.SPIKE] + 5 * [style.MEMBRANE]
for depth, (ax, (name, values)) in enumerate(
    zip(axes, stream.items(), strict=True)
):
    share = torch.bincount(values.flatten().long(), minlength=7) / values.numel()
    bars = ax.bar(range(7), 100 * share, color=colors, edgecolor=style.GREY)
    for bar in bars[2:]:
        bar.set_hatch("....")
    ax.axvline(depth + 2.5, color=style.THRESHOLD, linestyle="--", linewidth=1.2)
    above = float((values > 1).sum() / (values > 0).sum())
    ax.set(yscale="log", ylim=(0.02, 130), xticks=range(7), xlabel="value")
    ax.set_title(f"{name}\n{100 * above:.0f} % of non-zero are > 1", fontsize=10.5)
    assert values.min() >= 0 and values.max() <= depth + 2
    assert torch.equal(values, values.round())
axes[0].set(
    yticks=[0.1, 1, 10, 100],
    yticklabels=["0.1 %", "1 %", "10 %", "100 %"],
    ylabel="share of values",
)
fig.suptitle(
    "residual stream of digits-2-64, T = 4, 64 digits: "
    "0 (gray), 1 (black), 2 and more (dotted); dashed: the bound",
    fontsize=12,
)
se.plot.show(
    fig,
    "Five bar charts on a logarithmic scale, one for each depth of the residual "
    "stream. Zero is by far the most frequent value at all depths; values of 2 "
    "and more appear from the start and reach higher with every half block, never "
    "past a dashed line at 2, 3, 4, 5 and 6.",
)

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $X_0$ | `[T, B, N, D]` | {0, 1, 2} | tokens: features and position embedding, two spikes added (eq. 6) |
# | $Q, K, V$ | `[T, B, h, N, d]` | {0, 1} | split into $h$ heads, each $d = D / h$ wide |
# | $\mathrm{SSA}(X)$ | `[T, B, N, D]` | {0, 1} | spikes after the projection |
# | hidden | `[T, B, N, 4D]` | {0, 1} | spikes inside the MLP |
# | $X'_l$ | `[T, B, N, D]` | integers 0 to $2l + 1$ | after the attention of block $l = 1 ... L$ (eq. 7) |
# | $X_l$ | `[T, B, N, D]` | integers 0 to $2l + 2$ | after its MLP (eq. 8) |
#
# The numbers of equations are those of [the paper](https://arxiv.org/abs/2209.15425). (The paper numbers blocks from 1,
# the code from 0, so $X_1$ is `blocks.0.residual`.)

# %% [markdown]
# ## Heads: the right reshape
#
# One linear layer computes $Q$, $K$ and $V$ of all heads at once, `[T, B, N, 3D]`. To see where each number goes, we
# use numbers that say where they come from: four digits for time step, sample, token and feature. T, B, N, D and h all
# differ, so that equal sizes cannot hide a swapped axis.

# %%
T, B, N, D, h = 4, 3, 5, 8, 2
d = D // h
# (time step, sample, token, feature) of every place: [T, B, N, D, 4]
origin = torch.cartesian_prod(*map(torch.arange, (T, B, N, D))).view(T, B, N, D, 4)
code = (origin * torch.tensor([1000, 100, 10, 1])).sum(-1)  # [T, B, N, D]
print("time 2, sample 1, token 3:", code[2, 1, 3].tolist())

# %% [markdown]
# First split the feature axis into `(h, d)`, then move the head axis before the tokens. Each head is now a matrix
# `[N, d]`, as needed for $Q K^\top$.

# %%
heads = code.unflatten(-1, (h, d)).transpose(2, 3)  # [T, B, h, N, d]
for head in range(2):
    print(f"head {head}, tokens 0 to 2:", *heads[2, 1, head, :3].tolist())
assert heads.shape == (T, B, h, N, d)

# %% [markdown]
# To get tokens again, undo the two steps in the opposite order.

# %%
assert torch.equal(heads.transpose(2, 3).flatten(3), code)

# %% [markdown]
# **Predict before you run.** The next cell has three other ways to get the shape `[T, B, h, N, d]`. Which of them raise
# an error? Which axes do they mix?

# %% tags=["predict"]
attempts = {
    "unflatten, transpose": lambda x: x.unflatten(-1, (h, d)).transpose(2, 3),
    "view(T, B, h, N, d)": lambda x: x.view(T, B, h, N, d),
    "B and T swapped": lambda x: (
        x.reshape(B, T, N, h, d).transpose(0, 1).transpose(2, 3)
    ),
    "(d, h) for (h, d)": lambda x: x.unflatten(-1, (d, h)).permute(0, 1, 4, 2, 3),
}


def mixed_axes(split) -> list[str]:
    """Names of the axes along which numbers end up in a wrong place."""
    places = torch.meshgrid(*map(torch.arange, (T, B, h, N)), indexing="ij")
    wanted = dict(zip(("time", "sample", "head", "token"), places, strict=True))
    time, sample, token, feature = (
        split(part.contiguous()) for part in origin.unbind(-1)
    )
    found = dict(time=time, sample=sample, head=feature // d, token=token)
    return [
        name for name in found if (found[name] != wanted[name][..., None]).any()
    ]


for name, split in attempts.items():
    assert split(code).shape == (T, B, h, N, d)
    print(f"{name:22} mixes {', '.join(mixed_axes(split)) or 'nothing'}")
assert not mixed_axes(attempts["unflatten, transpose"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# None raises an error: the number of elements is right, and a reshape checks nothing else. `view(T, B, h, N, d)` splits
# the `N D` numbers of a sample at other places in memory: a "token" then consists of pieces of several tokens. If T and
# B are swapped in a reshape, the numbers go to other samples and other time steps. With `(d, h)` instead of `(h, d)`
# the features only go to other heads. A network can be trained in this way, but it cannot use checkpoints of other
# implementations.
#
# </details>

# %% [markdown]
# ## The MLP: token by token
#
# The MLP has two spiking linear layers, $D \to 4D \to D$. Each is a linear map, a batch norm over time, batch and
# tokens, and a neuron. We write it with the neuron of [chapter 01](01_leaky_neuron.ipynb):


# %%
class SpikingLinear(torch.nn.Module):
    """SN(BN(Linear x)): [T, B, N, D_in] -> {0, 1} [T, B, N, D_out]."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.linear = torch.nn.Linear(dim_in, dim_out)
        self.bn = torch.nn.BatchNorm1d(dim_out)
        self.neuron = se.LIF()

    def current(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        # one mean and variance for each feature
        return self.bn(y.flatten(0, 2)).view_as(y)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neuron(self.current(x))  # only this line connects time steps


class MLP(torch.nn.Module):
    def __init__(self, dim: int, ratio: int = 4):
        super().__init__()
        self.hidden = SpikingLinear(dim, ratio * dim)
        self.out = SpikingLinear(ratio * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(x))


# %% [markdown]
# ## The attention, with heads
#
# [Chapter 05](05_spiking_self_attention.ipynb) wrote [SSA](../docs/glossary.md#ssa) as a function. Here it is a module.
# With the reshape from above one batched matrix product computes all heads. The neuron after $Q K^\top V s$ has the
# threshold 0.5.


# %%
class SSA(torch.nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, 0.125
        self.qkv = torch.nn.Linear(dim, 3 * dim)
        self.bn = torch.nn.BatchNorm1d(3 * dim)
        self.q, self.k, self.v = se.LIF(), se.LIF(), se.LIF()
        self.attn = se.LIF(v_threshold=0.5)
        self.proj = SpikingLinear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.qkv(x)  # [T, B, N, 3D]
        y = self.bn(y.flatten(0, 2)).view_as(y)
        # [T, B, h, N, d]
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for part in y.chunk(3, -1)
        )
        # [T, B, h, N, N]
        scores = self.q(q) @ self.k(k).transpose(-2, -1) * self.scale
        y = self.attn(scores @ self.v(v))  # [T, B, h, N, d]
        return self.proj(y.transpose(2, 3).flatten(3))  # [T, B, N, D]


# %% [markdown]
# ## The block: spikes are added
#
# $$X'_l = \mathrm{SSA}(X_{l-1}) + X_{l-1} \tag{7}$$
#
# $$X_l = \mathrm{MLP}(X'_l) + X'_l \tag{8}$$
#
# In (7) $\mathrm{SSA}(X_{l-1})$ holds spikes, and $X_{l-1}$ is a sum of spikes. Equation (8) does the same with the
# MLP. A residual connection that adds spikes after the neuron is called SEW (spike-element-wise) ([Fang et al.,
# 2021](https://arxiv.org/abs/2102.04159)).

# %% tags=["fold"]
# draw the block: the stream along the bottom, both halves above it
fig, ax = plt.subplots(figsize=(10.4, 3.1))
ax.set(xlim=(0, 10.4), ylim=(-0.75, 2.4))
ax.axis("off")
stem = dict(
    arrowstyle="-|>", color=style.MEMBRANE, linewidth=3.5, mutation_scale=16
)
thin = dict(arrowstyle="-|>", color=style.SPIKE, linewidth=1.6, mutation_scale=14)
halves = (
    (1.3, "SSA", "Q, K, V, heads,\nneuron, projection", "(7)"),
    (6.0, "MLP", "hidden 4D, out D,\na neuron after each", "(8)"),
)
for x, name, parts, equation in halves:
    ax.add_patch(plt.Rectangle((x, 0.95), 2.3, 1.15, fill=False, linewidth=1.4))
    ax.text(x + 1.15, 1.8, name, ha="center", va="center", fontsize=13)
    ax.text(x + 1.15, 1.28, parts, ha="center", va="center", fontsize=9.5)
    ax.annotate(
        "", (x, 1.5), (x - 0.35, 0.05), arrowprops=stem | dict(linewidth=1.8)
    )
    ax.annotate("", (x + 3.0, 0.24), (x + 2.3, 1.5), arrowprops=thin)
    ax.text(x + 2.8, 1.0, "{0, 1}", fontsize=11)
    ax.text(x + 3.0, 0, "+", ha="center", va="center", fontsize=17, zorder=3)
    ax.add_patch(plt.Circle((x + 3.0, 0), 0.24, fc="white", ec="black", zorder=2))
    ax.text(x + 3.0, -0.5, equation, ha="center", va="center", fontsize=10)
for start, end in ((0.0, 4.05), (4.55, 8.75), (9.25, 10.35)):
    ax.annotate("", (end, 0), (start, 0), arrowprops=stem)
for x, name, values in (
    (0.05, "$X_{l-1}$", "0 to $2l$"),
    (4.75, "$X'_l$", "0 to $2l + 1$"),
    (9.35, "$X_l$", "0 to $2l + 2$"),
):
    ax.text(x, 0.3, name, fontsize=13)
    ax.text(x, -0.5, values, fontsize=10)
ax.set_title(
    "block $l$, at each of T steps: spikes (thin) are added to integers (thick)"
)
se.plot.show(
    fig,
    "Diagram of an encoder block. A thick line, the residual stream, runs from "
    "left to right. SSA reads it and adds spikes at the first plus; the MLP reads "
    "the sum and adds spikes at the second plus. The values reach 2l, then 2l + "
    "1, then 2l + 2.",
)


# %%
class Block(torch.nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attn, self.mlp = SSA(dim, heads), MLP(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attn(x) + x  # (7)
        return self.mlp(x) + x  # (8)


# %% [markdown]
# The modules have the package's names, so we can load the weights of the trained first block directly. We run the
# tokens of six digits through both blocks. All output values are equal, and in training mode the gradients are equal up
# to rounding.

# %%
theirs = model.blocks[0]
ours = Block(64, heads=4)
ours.load_state_dict(theirs.state_dict())
tokens = stream["$X_0$ from SPS"][:, :6]  # [T, B, N, D], B = 6 digits
ours.eval(), theirs.eval()
with torch.no_grad():
    assert torch.equal(ours(tokens), theirs(tokens)) and ours(tokens).max() > 1

ours.train(), theirs.train()
ours(tokens).square().mean().backward()
theirs(tokens).square().mean().backward()
for (name, mine), yours in zip(
    ours.named_parameters(), theirs.parameters(), strict=True
):
    torch.testing.assert_close(
        mine.grad, yours.grad, rtol=1e-3, atol=1e-6, msg=name
    )
# the training pass has changed the batch statistics: load the network again
model = se.load_pretrained("digits-2-64")
print("block from scratch = package's block: output exactly, gradients to rounding")

# %% [markdown]
# ## Position
#
# **Predict before you run.** Shuffle the 64 tokens of an image, in the same way at all time steps, and give them to the
# block. How is the output related to the output for the tokens in their own order?

# %% tags=["predict"]
block = model.blocks[0]
order = torch.randperm(64)
with torch.no_grad():
    plain, shuffled = block(tokens), block(tokens[:, :, order])
differ = int((shuffled != plain[:, :, order]).sum())
gap = float((shuffled.mean(2) - plain.mean(2)).abs().max())
print(f"values that differ from the shuffled output: {differ}")
print(f"mean over tokens, largest difference:        {gap:.3f}")
assert differ == 0

# %% [markdown]
# <details><summary>Answer</summary>
#
# It is the same output, shuffled in the same way. Linear maps and neurons process each token by itself. Attention sums
# over all tokens, and a sum does not depend on the order. The mean over tokens at the end does not depend on it either:
# if the tokens are shuffled after the position embedding, the network's answer stays the same.
#
# </details>
#
# So the position must be added before the blocks. Spikformer adds a [position
# embedding](../docs/glossary.md#position-embedding) (RPE). A convolution computes it from each token and its eight
# neighbors, so it depends on which tokens are neighbors:
#
# $$\mathrm{RPE} = \mathrm{SN}(\mathrm{BN}(\mathrm{Conv2d}(x))) \tag{5}$$
#
# $$X_0 = x + \mathrm{RPE} \tag{6}$$

# %%
with torch.no_grad(), se.record(model) as rec:
    model(images)
# [T, B, D, 8, 8]; the last SPS stage of this preset has no pool
x, rpe = rec["sps.3"].spikes, rec["sps.rpe"].spikes
as_map = tokens.transpose(2, 3).unflatten(3, (8, 8))
assert torch.equal((x + rpe)[:, :6], as_map)

# the same features, places shuffled
grid = x[:, :6].flatten(3)[..., order].unflatten(3, (8, 8))
with torch.no_grad():
    moved = model.sps.rpe(grid).flatten(3)
changed = (moved != rpe[:, :6].flatten(3)[..., order]).float().mean()
print(f"RPE fires at a rate of {rpe.mean():.0%};", end=" ")
print(f"{changed:.0%} of its values change when places are shuffled")
assert changed > 0.01
assert sorted((x + rpe).unique().tolist()) == [0, 1, 2]

# %% [markdown]
# ## The stream holds integers
#
# A value of $X_0$ is a sum of two values that are 0 or 1, and each half of a block adds at most 1. After $l$ blocks a
# value is at most
#
# $$2 + 2 l,$$
#
# and $2L + 2$ at the end: 10 for the CIFAR-10 network with four blocks, 22 for the ten blocks of `imagenet-10-512`. The
# next figure follows the values through the second block (`blocks.1` in the code). Everything that comes from a neuron
# is 0 or 1. Only the stream holds larger integers.

# %% tags=["fold"]
# shares of the values 0, 1, 2, ... along the second block
stages = {
    "stream in, $X_1$": stream["$X_1$ after MLP"],
    **{name: rec[f"blocks.1.attn.{name.lower()}"].spikes for name in "QKV"},
    "attention neuron": rec["blocks.1.attn.attn"].spikes,
    "projection": rec["blocks.1.attn.proj"].spikes,
    "stream, $X'_2$": stream["$X'_2$ after SSA"],
    "MLP hidden": rec["blocks.1.mlp.hidden"].spikes,
    "MLP out": rec["blocks.1.mlp.out"].spikes,
    "stream out, $X_2$": stream["$X_2$ after MLP"],
}
looks = (
    ("1", style.SPIKE, ""),
    ("2", style.MEMBRANE, ""),
    ("3", style.GRADIENT, "////"),
    ("4 or more", style.LIGHT, "...."),
)
fig, ax = plt.subplots(figsize=(8.6, 4.4))
for y, (name, values) in enumerate(stages.items()):
    left = 0.0
    for level, (_, color, hatch) in enumerate(looks, 1):
        here = values >= level if level == 4 else values == level
        width = 100 * float(here.float().mean())
        ax.barh(y, width, 0.72, left, color=color, hatch=hatch, edgecolor="white")
        left += width
    ax.text(left + 0.3, y, f"{left:.0f} %", va="center", fontsize=10)
    assert values.max() > 1 if "stream" in name else values.max() == 1
ax.set_yticks(range(len(stages)), stages)
ax.invert_yaxis()
ax.set(xlabel="non-zero, % of all values", xlim=(0, 36))
ax.set_title("digits-2-64, block 1, T = 4, 64 digits: which values are not zero")
handles = [
    plt.Rectangle((0, 0), 1, 1, facecolor=color, hatch=hatch, edgecolor="white")
    for _, color, hatch in looks
]
names = [name for name, *_ in looks]
ax.legend(handles, names, title="value", bbox_to_anchor=(1, 0.87))
se.plot.show(
    fig,
    "Ten horizontal bars along the second block, T = 4. Outputs of neurons hold "
    "only ones. The residual stream before, inside and after the block also holds "
    "twos, threes and larger values, and is less sparse than all other "
    "layers.",
)

# %% [markdown]
# What does this mean for the claim that a spiking network only adds? If the inputs of a weight matrix are spikes, each
# 1 adds a column of weights to the output. For a 2 the column must be added twice, or multiplied by 2. The paper counts
# [synaptic operations](../docs/glossary.md#synaptic-operation) from the firing rate of a layer's input, so every
# non-zero value counts as one spike. The `integer` convention of `se.energy` counts by value: a 2 counts as two
# additions, so the mean of the input takes the place of its rate.

# %%
report = se.energy(model, images)
print("layer                reads     non-zero   mean   mean / non-zero")
for cost in report.layers:
    if cost.layer.startswith("blocks") and "^T" not in cost.layer:
        reads = "integers" if cost.mean > cost.rate else "{0, 1}"
        ratio = cost.mean / cost.rate
        numbers = f"{cost.rate:8.3f} {cost.mean:6.3f} {ratio:17.2f}"
        print(f"{cost.layer:20} {reads:9} {numbers}")
        assert (reads == "integers") == cost.layer.endswith(("qkv", "hidden"))
more = report.totals["integer"] / report.totals["paper"] - 1
print(f"energy of the whole network, by value instead of by rate: {more:+.0%}")
assert more > 0

# %% [markdown]
# So the two matrices of each block that read the stream need more additions than their rate suggests: 1.14 times as
# many at the first and 1.67 times at the last. The energy of the whole network is 21 % higher if counted by value. The
# outputs of neurons are binary, but the inputs of these matrices are not. [Chapter 10](10_energy.ipynb) explains the
# counting in detail.

# %% [markdown]
# ## The other residual: a membrane shortcut
#
# A membrane shortcut adds the *currents* before the neuron instead of the spikes after it
# ([Hu et al., 2021](https://arxiv.org/abs/2112.08954)). The stream then holds real numbers, and we call it $U$. A
# neuron stands between the stream and every matrix, so the inputs of the matrices are binary again. For the MLP half:
#
# | | half block | stream | a matrix reads |
# |---|---|---|---|
# | SEW, Spikformer | $X + \mathrm{SN}(f(X))$ | integer | integers |
# | membrane shortcut | $U + f(\mathrm{SN}(U))$ | real | {0, 1} |
#
# Here $f$ is everything up to the last neuron: the hidden layer, then BN(Linear) of the second layer.


# %%
def sew_half(mlp: MLP, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """New stream, and what the first matrix has read."""
    return mlp(x) + x, x


def membrane_half(
    mlp: MLP, neuron: se.LIF, u: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    spikes = neuron(u)
    return u + mlp.out.current(mlp.hidden(spikes)), spikes


# %% [markdown]
# We make twelve untrained MLPs and stack them in both ways, as SEW halves and as membrane-shortcut halves. Both stacks
# get the same tokens. The MLPs run in training mode, so that batch norm keeps the currents near the threshold. What
# does the first matrix of every half block read?

# %%
torch.manual_seed(0)
stack = [MLP(64) for _ in range(12)]
sew = tokens
# as currents: 2 is enough to fire in the first step, because H = 2 / 2 = 1
membrane = 2 * tokens
read = {"SEW": [], "membrane shortcut": []}
with torch.no_grad():
    for mlp in stack:
        sew, seen = sew_half(mlp, sew)
        read["SEW"].append(seen)
        membrane, seen = membrane_half(mlp, se.LIF(), membrane)
        read["membrane shortcut"].append(seen)

assert all(set(x.unique().tolist()) == {0, 1} for x in read["membrane shortcut"])
assert all(x.max() <= 2 + i for i, x in enumerate(read["SEW"]))
assert read["SEW"][-1].max() > 4 and not torch.equal(membrane, membrane.round())

# %% tags=["fold"]
# draw what the first matrices read
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
looks = {
    "SEW": dict(color=style.SPIKE, marker="o"),
    "membrane shortcut": dict(color=style.MEMBRANE, marker="s"),
}
depths = range(12)
for name, tensors in read.items():
    largest = [float(x.max()) for x in tensors]
    additions = [float(x.mean() / (x > 0).float().mean()) for x in tensors]
    axes[0].plot(depths, largest, label=name, **looks[name])
    axes[1].plot(depths, additions, label=name, **looks[name])
bound = [2 + i for i in depths]
axes[0].plot(depths, bound, "--", color=style.THRESHOLD, label="bound of SEW")
axes[0].set(title="largest value read", ylim=(0, 14.5), yticks=range(0, 15, 2))
axes[1].set(title="additions for one non-zero value", ylim=(0, 2.2))
axes[0].legend()
for ax in axes:
    ax.set_xlabel("half block")
fig.suptitle(
    "what the first matrix of each half block reads: 12 untrained MLP halves, T = "
    "4",
    fontsize=12,
)
se.plot.show(
    fig,
    "Two line charts over twelve half blocks. With the residual of spikes the "
    "largest value that a matrix reads climbs from 2, below a dashed bound, and "
    "so do the additions for one non-zero value; with the membrane shortcut both "
    "stay at 1.",
)

# %% [markdown]
# With SEW the largest value read grows from 2 to 9, and at the last half block a non-zero value costs 1.9 additions on
# average. With the membrane shortcut both numbers stay 1.
#
# Both kinds have advantages. With SEW the stream holds small integers, which need few bits and are exact, but the
# inputs of the matrices are not binary. With the membrane shortcut the inputs of the matrices are binary, but the
# stream holds real numbers, which need more bits. [Chapter 13](13_beyond.ipynb) builds networks of the second kind.

# %% [markdown]
# ## Pitfalls
#
# - **A reshape that runs but is wrong.** Symptom: none; the loss goes down. Cause: the number of elements is right, but
#   the axes are wrong. Cure: test with numbers that say where they come from, and with different sizes for all axes, as
#   above.
# - **Residual streams that are not binary.** Symptom: the energy estimate is too low, hardware for binary spikes cannot
#   run the model, or `assert x.max() <= 1` fails at the input of the first block. Cause: spikes are added, first in
#   $X_0 = x + \mathrm{RPE}$. Cure: call the stream "integer", count by value, or use a membrane shortcut.
# - **"Fixing" the stream by clamping it.** `(x + y).clamp(max=1)` is an OR. It is binary, but a spike is lost where the
#   stream already holds a 1. How many of the first attention's spikes would be lost?

# %%
with torch.no_grad():
    y = block.attn(tokens)
    kept = (tokens + y).clamp(max=1) - tokens.clamp(max=1)
lost = 1 - float(kept.sum() / y.sum())
print(f"spikes of the first SSA that a clamped residual would lose: {lost:.0%}")
assert 0 < lost < 1 and torch.equal(kept, y * (tokens == 0))

# %% [markdown]
# - **A membrane shortcut without a neuron before the matrix** is an ordinary residual network: it multiplies real
#   numbers. Check that the inputs of the matrices are binary, not only the outputs of the neurons.

# %% [markdown]
# ## Exercises
#
# **6.1 Channels first.** The official ImageNet code computes $Q$ with a `Conv1d`, so its features come before the
# tokens: `[T, B, D, N]`. Write the split from this shape into heads `[T, B, h, N, d]`, and the inverse.


# %% tags=["exercise-1"]
def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[T, B, D, N] -> [T, B, h, N, d]"""
    ...


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """[T, B, h, N, d] -> [T, B, D, N]"""
    ...


# %% tags=["check-1"]
with se.exercise("6.1"):
    # [T, B, D, N], every number is there once
    features = torch.arange(4 * 3 * 8 * 5).view(4, 3, 8, 5)
    split = split_heads(features, heads=2)
    assert split is not None, "write split_heads first"
    assert split.shape == (4, 3, 2, 5, 4), (
        f"shape {list(split.shape)}: [T, B, h, N, d] = [4, 3, 2, 5, 4] is wanted"
    )
    for head in range(2):
        for n in range(5):
            own = features[:, :, 4 * head : 4 * head + 4, n]
            got = split[:, :, head, n]
            assert torch.equal(got, own), (
                f"head {head}, token {n} holds {got[0, 0].tolist()}, its part of"
                f" the token is {own[0, 0].tolist()}"
            )
    joined = join_heads(split)
    assert joined is not None, "write join_heads too"
    assert joined.shape == features.shape, (
        f"join_heads: shape {list(joined.shape)}, but [T, B, D, N] is wanted"
    )
    assert torch.equal(joined, features), "join_heads(split_heads(x)) is not x"
    four = split_heads(features, heads=4)
    assert four.shape == (4, 3, 4, 5, 2), (
        "with 4 heads the shape is not [4, 3, 4, 5, 2]"
    )
    assert torch.equal(join_heads(four), features), (
        "join_heads is wrong for 4 heads"
    )

# %% [markdown]
# **6.2 SEW against membrane shortcut.** Write the attention half of a block with a membrane shortcut. It takes the real
# stream `u` and returns the new stream. Use the parts of a `SpikingSelfAttention` of the package (`qkv`, `bn`, `q`,
# `k`, `v`, `mix`, `attn`, `proj.linear`, `proj.bn`) and the neuron that is passed in.


# %% tags=["exercise-2"]
def membrane_attention(
    ssa: torch.nn.Module, neuron: se.LIF, u: torch.Tensor
) -> torch.Tensor:
    """U + f(SN(U)), f is SSA without its last neuron. u, result: [T, B, N, D]."""
    ...


# %% tags=["check-2"]
with se.exercise("6.2"):
    torch.manual_seed(1)
    net = se.load_pretrained("digits-2-64")
    digits, _ = se.data.load("digits").val.fetch(torch.arange(3), None)
    with torch.no_grad():
        x = net.sps(digits, time_steps=4).flatten(3).transpose(2, 3)
    ssa, u = net.blocks[0].attn, 2 * x + 0.1 * torch.randn_like(x)
    inputs = []
    hooks = [
        layer.register_forward_hook(lambda m, x, y: inputs.append(x[0]))
        for layer in (ssa.qkv, ssa.proj.linear)
    ]
    try:
        with torch.no_grad():
            wanted = ssa(se.LIF()(u))  # the spikes of SSA
            inputs_of_ssa, inputs = inputs, []
            out = membrane_attention(ssa, se.LIF(), u)
    finally:
        for hook in hooks:
            hook.remove()
    assert out is not None, "write membrane_attention first"
    assert len(inputs) == 2, "both matrices, qkv and proj.linear, are used once"
    assert all(set(x.unique().tolist()) <= {0.0, 1.0} for x in inputs), (
        "a matrix still reads values other than 0 and 1"
    )
    assert torch.equal(inputs[0], inputs_of_ssa[0]), "qkv does not read SN(U)"
    joined, spikes = (x[1].reshape(wanted.shape) for x in (inputs, inputs_of_ssa))
    assert 0.01 < spikes.mean() < 0.99, "these digits cannot show mixed-up heads"
    assert torch.equal(joined, spikes), (
        "proj.linear reads other spikes than it does in SSA: are the heads right?"
    )
    assert not torch.allclose(out, u + wanted, atol=1e-3), (
        "spikes were added to the stream; a membrane shortcut adds a current"
    )
    with torch.no_grad():
        assert torch.equal(ssa.proj.neuron(out - u), wanted), (
            "out - u is not the current of the projection's neuron"
        )

# %% [markdown]
# **6.3 The largest residual.** Write the bound for $L$ blocks, and make a network reach it: change the weights and
# biases of the given model's batch norms so that every neuron fires at every step for every image.


# %% tags=["exercise-3"]
def largest_residual(depth: int) -> int:
    """The largest value that the stream can hold after all blocks."""
    ...


def saturate(model: se.Spikformer) -> None:
    """Let every neuron of the model fire at every step."""
    ...


# %% tags=["check-3"]
with se.exercise("6.3"):
    assert largest_residual(4) is not None, "write largest_residual first"
    bounds = [largest_residual(depth) for depth in (1, 4, 10)]
    assert bounds == [4, 10, 22], (
        f"{bounds} for 1, 4 and 10 blocks: what is the largest value of X_0, and"
        " how much can a block add?"
    )
    for depth in (1, 3):
        small = se.spikformer("digits-2-64", depth=depth).eval()
        saturate(small)
        with torch.no_grad(), se.record(small) as found:
            small(torch.rand(2, 1, 32, 32))
        silent = [r.name for r in found.layers("spikes") if r.spikes.mean() < 1]
        assert not silent, (
            f"{silent[0]} does not fire at every step: compute H at t = 0 there"
        )
        reached = found[f"blocks.{depth - 1}.residual"].values.min()
        assert reached == largest_residual(depth)
        thresholds = {
            m.v_threshold for m in small.modules() if isinstance(m, se.LIF)
        }
        assert thresholds == {0.5, 1}, "change batch norms only, not the thresholds"

# %% [markdown]
# ## Recap
#
# - To make heads, split the feature axis and transpose. Other reshapes of the right size also run, but are wrong.
# - A block does not use the order of its tokens: shuffled tokens give the same outputs, shuffled. A convolution before
#   the blocks adds the position.
# - Spikformer adds spikes, so its stream holds integers of at most $2L + 2$. Matrices that read it need more additions
#   than with binary inputs.
# - With a membrane shortcut the inputs of matrices are binary, and the stream holds real numbers.
#
# Next: [chapter 07](07_assemble_and_verify.ipynb) puts the whole network together and checks for errors that training
# does not show. Solutions of the exercises: [here](solutions/06_encoder_block.ipynb).
