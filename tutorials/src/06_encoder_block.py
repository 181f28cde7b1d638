# %% [markdown]
# # 06 · Heads, position, residuals: the encoder block
#
# *Run time 15 s on one CPU core · after chapters 01 and 05 · no internet access, no GPU*
#
# An [encoder block](../docs/glossary.md#encoder-block) puts attention and an MLP on one residual stream. Three things
# in it look harmless and are not: the reshape that makes heads, the fact that nothing in it knows where a token sits,
# and a residual that adds spikes, so that the stream is no longer binary. This chapter builds the block and looks at
# all three.
#
# ## What you will learn
# - split tokens into heads and join them again, and test that no axis was mixed on the way
# - show that a block alone is blind to position, and what gives it one
# - write the encoder block of equations (7) and (8), equal to the package's to the last spike
# - say which integers the residual stream may hold, and what this does to claims of "binary" layers and energy
# - tell Spikformer's residual of spikes from a membrane shortcut

# %% tags=["setup"]
from pathlib import Path

try:
    import spikformer_edu as se
except ModuleNotFoundError:  # not installed yet: install it from the repository that holds this notebook
    assert Path("../pyproject.toml").exists(), "get the whole repository: the package is installed from there"
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
# The packaged network reads 64 digits of the validation set. At five depths the figure counts what the [residual
# stream](../docs/glossary.md#residual-stream) holds: it enters the first block with 0, 1 and 2, and each half block may
# add 1. The dashed line is the most that is possible at that depth. Most values stay 0, yet among the others the share
# above 1 grows with depth.

# %%
model = se.load_pretrained("digits-2-64")
images, labels = se.data.load("digits").val.fetch(torch.arange(64), None)
with torch.no_grad(), se.record(model) as rec:
    model(images)

stream = {}  # name -> [T, B, N, D]
for i in range(2):
    out, mlp, ssa = (rec[f"blocks.{i}.{part}"].values for part in ("residual", "mlp.out", "attn.proj"))
    stream |= {f"$X_{i}$" + (" from SPS" if i == 0 else ""): out - mlp - ssa} if i == 0 else {}
    stream |= {f"$X'_{i + 1}$ after SSA": out - mlp, f"$X_{i + 1}$ after MLP": out}

fig, axes = plt.subplots(1, 5, figsize=(10.5, 3.2), sharey=True)
for depth, (ax, (name, values)) in enumerate(zip(axes, stream.items(), strict=True)):
    share = torch.bincount(values.flatten().long(), minlength=7) / values.numel()
    bars = ax.bar(range(7), 100 * share, color=[style.PALE, style.SPIKE] + 5 * [style.MEMBRANE], edgecolor=style.GREY)
    for bar in bars[2:]:
        bar.set_hatch("....")
    ax.axvline(depth + 2.5, color=style.THRESHOLD, linestyle="--", linewidth=1.2)
    above = float((values > 1).sum() / (values > 0).sum())
    ax.set(yscale="log", ylim=(0.02, 130), xticks=range(7), xlabel="value")
    ax.set_title(f"{name}\n{100 * above:.0f} % of non-zero are > 1", fontsize=10.5)
    assert values.min() >= 0 and values.max() <= depth + 2 and torch.equal(values, values.round())
axes[0].set(yticks=[0.1, 1, 10, 100], yticklabels=["0.1 %", "1 %", "10 %", "100 %"], ylabel="share of values")
fig.suptitle(
    "residual stream of digits-2-64, T = 4, 64 digits: 0 (grey), 1 (black), 2 and more (dotted); dashed: the bound",
    fontsize=12,
)
se.plot.show(
    fig,
    "Five bar charts on a logarithmic scale, one for each depth of the residual stream. Zero is by far the commonest "
    "value at all depths; values of 2 and more appear from the start and reach higher with every half block, never "
    "past a dashed line at 2, 3, 4, 5 and 6.",
)

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $X_0$ | `[T, B, N, D]` | {0, 1, 2} | tokens: features and position embedding, two spikes added (6) |
# | $Q, K, V$ | `[T, B, h, N, d]` | {0, 1} | split into $h$ heads, each $d = D / h$ wide |
# | $\mathrm{SSA}(X)$ | `[T, B, N, D]` | {0, 1} | spikes after the projection |
# | hidden | `[T, B, N, 4D]` | {0, 1} | spikes inside the MLP |
# | $X'_l$ | `[T, B, N, D]` | integers 0 to $2l + 1$ | after the attention of block $l = 1 ... L$ (7) |
# | $X_l$ | `[T, B, N, D]` | integers 0 to $2l + 2$ | after its MLP (8) |
#
# (The paper counts blocks from 1; the layers in the code count from 0, so $X_1$ is `blocks.0.residual`.)

# %% [markdown]
# ## Heads: a reshape that is right
#
# One linear layer makes $Q$, $K$ and $V$ of all heads at once, `[T, B, N, 3D]`. To see where every number ends up, let
# each number say where it comes from: four digits for $t$, $b$, $n$ and the feature. All sizes differ, so that a
# swapped axis cannot hide behind an equal size.

# %%
T, B, N, D, h = 4, 3, 5, 8, 2
d = D // h
origin = torch.cartesian_prod(*(torch.arange(size) for size in (T, B, N, D))).view(T, B, N, D, 4)  # (t, b, n, feature)
code = (origin * torch.tensor([1000, 100, 10, 1])).sum(-1)  # [T, B, N, D]
print("time 2, sample 1, token 3:", code[2, 1, 3].tolist())

# %% [markdown]
# First cut the feature axis into `(h, d)`, then move the head axis before the tokens. Each head now holds a matrix `[N,
# d]`, which is what $Q K^T$ multiplies.

# %%
heads = code.unflatten(-1, (h, d)).transpose(2, 3)  # [T, B, h, N, d]
print("head 0:", heads[2, 1, 0].tolist())
print("head 1:", heads[2, 1, 1].tolist())
assert heads.shape == (T, B, h, N, d)

# %% [markdown]
# Back to tokens: the same two steps in the other order.

# %%
assert torch.equal(heads.transpose(2, 3).flatten(3), code)

# %% [markdown]
# **Predict before you run.** Here are three other ways to `[T, B, h, N, d]`. Which of them raise an error? Which axes
# do they mix?

# %%
attempts = {
    "unflatten, transpose": lambda x: x.unflatten(-1, (h, d)).transpose(2, 3),
    "view(T, B, h, N, d)": lambda x: x.view(T, B, h, N, d),
    "B and T swapped": lambda x: x.reshape(B, T, N, h, d).transpose(0, 1).transpose(2, 3),
    "(d, h) for (h, d)": lambda x: x.unflatten(-1, (d, h)).permute(0, 1, 4, 2, 3),
}


def in_place(split) -> dict[str, bool]:
    """Whether every number of heads [T, B, h, N, d] comes from its own time step, sample, token, and head."""
    got = torch.stack([split(origin[..., axis].contiguous()) for axis in range(4)], -1)  # [T, B, h, N, d, 4]
    places = torch.meshgrid(*(torch.arange(size) for size in (T, B, h, N)), indexing="ij")
    t, b, head, n = (place[..., None].expand(T, B, h, N, d) for place in places)
    wanted = {"time": t, "sample": b, "token": n, "head": head}
    found = {"time": got[..., 0], "sample": got[..., 1], "token": got[..., 2], "head": got[..., 3] // d}
    return {name: torch.equal(found[name], wanted[name]) for name in wanted}


for name, split in attempts.items():
    assert split(code).shape == (T, B, h, N, d)
    mixed = [axis for axis, right in in_place(split).items() if not right]
    print(f"{name:22} mixes {', '.join(mixed) or 'nothing'}")
assert all(in_place(attempts["unflatten, transpose"]).values())

# %% [markdown]
# <details><summary>Answer</summary>
#
# None raises an error: the number of elements is right, and that is all a reshape checks. `view(T, B, h, N, d)` cuts
# the flat memory of one sample's `N D` numbers elsewhere: a "token" is then made of pieces of several. Swapping T and B
# in a reshape gives samples each other's numbers. `(d, h)` for `(h, d)` only deals the features to other heads; a
# network trained that way works as well, but no checkpoint of anybody else fits it.
#
# </details>

# %% [markdown]
# ## The MLP: token by token
#
# Two spiking linear layers, $D \to 4D \to D$: each is a linear map, a batch norm over time, batch and tokens, and a
# neuron. Written with the neuron of [chapter 01](01_leaky_neuron.ipynb):


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
        return self.bn(y.flatten(0, 2)).view_as(y)  # one mean and variance a feature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neuron(self.current(x))  # the only line in which time steps meet


class MLP(torch.nn.Module):
    def __init__(self, dim: int, ratio: int = 4):
        super().__init__()
        self.hidden, self.out = SpikingLinear(dim, ratio * dim), SpikingLinear(ratio * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(x))


# %% [markdown]
# ## The attention, with heads
#
# [Chapter 05](05_spiking_self_attention.ipynb) worked out [SSA](../docs/glossary.md#ssa) and wrote it as a function.
# Here it is as a module, with the reshape from above: all heads in one product. The neuron after $Q K^T V s$ has the
# threshold 0.5.


# %%
class SSA(torch.nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, 0.125
        self.qkv, self.bn = torch.nn.Linear(dim, 3 * dim), torch.nn.BatchNorm1d(3 * dim)
        self.q, self.k, self.v, self.attn = se.LIF(), se.LIF(), se.LIF(), se.LIF(v_threshold=0.5)
        self.proj = SpikingLinear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.qkv(x)  # [T, B, N, 3D]
        y = self.bn(y.flatten(0, 2)).view_as(y)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(2, 3) for part in y.chunk(3, -1))  # [T, B, h, N, d]
        scores = self.q(q) @ self.k(k).transpose(-2, -1) * self.scale  # [T, B, h, N, N]
        y = self.attn(scores @ self.v(v))  # [T, B, h, N, d]
        return self.proj(y.transpose(2, 3).flatten(3))  # [T, B, N, D]


# %% [markdown]
# ## The block: spikes are added
#
# $$X'_l = \mathrm{SSA}(X_{l-1}) + X_{l-1} \tag{7}$$
#
# $$X_l = \mathrm{MLP}(X'_l) + X'_l \tag{8}$$
#
# Both summands on the right of (7) are spikes, or sums of spikes. Adding spikes after the neuron is called SEW
# (spike-element-wise) in residual networks ([Fang et al., 2021](https://arxiv.org/abs/2102.04159)).


# %%
class Block(torch.nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attn, self.mlp = SSA(dim, heads), MLP(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attn(x) + x  # (7)
        return self.mlp(x) + x  # (8)


# %% [markdown]
# The parts carry the package's names, so the weights of the trained first block fit as they are. Tokens of real digits
# go through both blocks: every integer of the output agrees, and so do the gradients in training.

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
for (name, mine), yours in zip(ours.named_parameters(), theirs.parameters(), strict=True):
    torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-3, atol=1e-6, msg=name)
model = se.load_pretrained("digits-2-64")  # training has moved the batch statistics: take the network afresh
print("block from scratch = package's block: output exactly, gradients to rounding")

# %% [markdown]
# ## Position: the block has none
#
# **Predict before you run.** Shuffle the 64 tokens of an image, all time steps alike, and give them to the block. How
# is the output related to that of the unshuffled image?

# %%
block = model.blocks[0]
order = torch.randperm(64)
with torch.no_grad():
    plain, shuffled = block(tokens), block(tokens[:, :, order])
print(f"values that differ from the shuffled output: {int((shuffled != plain[:, :, order]).sum())}")
print(f"mean over tokens, largest difference:        {float((shuffled.mean(2) - plain.mean(2)).abs().max()):.3f}")
assert torch.equal(shuffled, plain[:, :, order])

# %% [markdown]
# <details><summary>Answer</summary>
#
# It is the same output, shuffled alike. Linear maps and neurons treat each token by itself, attention sums over a set
# of tokens, and a sum knows no order. The mean over tokens at the end then forgets even the shuffle: blocks and head
# would give a scrambled image the same logits.
#
# </details>
#
# Position has to come in before the blocks. Spikformer adds a [position
# embedding](../docs/glossary.md#position-embedding) that is computed from the tokens themselves, by a convolution that
# sees each token's eight neighbours:
#
# $$\mathrm{RPE} = \mathrm{SN}(\mathrm{BN}(\mathrm{Conv2d}(x))) \tag{5}$$
#
# $$X_0 = x + \mathrm{RPE} \tag{6}$$

# %%
with torch.no_grad(), se.record(model) as rec:
    model(images)
x, rpe = rec["sps.3"].spikes, rec["sps.rpe"].spikes  # [T, B, D, 8, 8]; the last SPS stage of this preset has no pool
as_map = tokens.transpose(2, 3).unflatten(3, (8, 8))
assert torch.equal((x + rpe)[:, :6], as_map)

grid = x[:, :6].flatten(3)[..., order].unflatten(3, (8, 8))  # the same features, places shuffled
with torch.no_grad():
    moved = model.sps.rpe(grid).flatten(3)
changed = float((moved != rpe[:, :6].flatten(3)[..., order]).float().mean())
print(f"RPE: {100 * changed:.0f} % of its values change when places are shuffled (its firing rate: {rpe.mean():.2f})")
assert changed > 0.01
assert sorted((x + rpe).unique().tolist()) == [0, 1, 2]

# %% [markdown]
# ## The stream is an integer
#
# $X_0$ is a sum of two spikes, and every half block adds one more. After $l$ blocks a value may be at most
#
# $$2 + 2 l,$$
#
# and $2L + 2$ at the end: 10 for the CIFAR-10 network with four blocks, 22 for the ten blocks of `imagenet-10-512`. The
# ribbon shows where in the network integers flow: nowhere but in the stream, which is what each block reads.

# %%
fig, axes = se.plot.value_sets(rec, images)
assert all(set(r.values.unique().tolist()) <= {0.0, 1.0} for r in rec.layers("spikes"))
assert all(rec[f"blocks.{i}.residual"].values.max() <= 2 * (i + 1) + 2 for i in range(2))
se.plot.show(
    fig,
    "A ribbon along all layers of the network, T = 4: input and logits are real, all neuron layers are binary, "
    "attention scores are multiples of the scale, and the residual after each block is an integer. Below it the share "
    "of zeros, ones, twos and more in every layer.",
)

# %% [markdown]
# What does that mean for the claim that a spiking network only adds? A matrix that reads spikes adds a column of
# weights for each 1. For a 2 it must add the column twice, or multiply. The paper counts [synaptic
# operations](../docs/glossary.md#synaptic-operation) from the firing rate of a layer's input, and so takes every
# non-zero value for one spike. Counting by value is the `integer` convention of `se.energy`: the mean takes the place
# of the rate.

# %%
report = se.energy(model, images)
print(f"{'layer':20} {'reads':9} {'non-zero':>8} {'mean':>6} {'mean / non-zero':>16}")
for cost in report.layers:
    if cost.layer.startswith("blocks") and "^T" not in cost.layer:
        reads = "integers" if cost.mean > cost.rate else "{0, 1}"
        print(f"{cost.layer:20} {reads:9} {cost.rate:8.3f} {cost.mean:6.3f} {cost.mean / cost.rate:16.2f}")
        assert (reads == "integers") == cost.layer.endswith(("qkv", "hidden"))
totals = report.totals
print(f"whole network, counted by value instead of by rate: {totals['integer'] / totals['paper'] - 1:+.0%}")
assert totals["integer"] > totals["paper"]

# %% [markdown]
# So the two matrices of each block that read the stream do more additions than their rate says, and more the deeper
# they sit. "Binary" is true of what neurons send, not of what matrices read. [Chapter 10](10_energy.ipynb) takes the
# accounts apart.

# %% [markdown]
# ## The other residual: a membrane shortcut
#
# Add the *currents* before the neuron instead of the spikes after it ([Hu et al.,
# 2021](https://arxiv.org/abs/2112.08954)). The stream is then a real number, and a neuron stands between it and every
# matrix: what is read is binary again. For the MLP half:
#
# | | half block | stream | a matrix reads |
# |---|---|---|---|
# | SEW, Spikformer | $X + \mathrm{SN}(f(X))$ | integer | integers |
# | membrane shortcut | $U + f(\mathrm{SN}(U))$ | real | {0, 1} |
#
# Here $f$ is everything between two neurons of the stream: the hidden layer, then BN(Linear) of the second.

# %%


def sew_half(mlp: MLP, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """New stream, and what the first matrix has read."""
    return mlp(x) + x, x


def membrane_half(mlp: MLP, neuron: se.LIF, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    spikes = neuron(u)
    return u + mlp.out.current(mlp.hidden(spikes)), spikes


# %% [markdown]
# A stack of twelve untrained half blocks of each kind, on the same tokens, in training mode so that batch norm keeps
# the currents alive. What does the first matrix of every half block read?

# %%
torch.manual_seed(0)
stack = [MLP(64) for _ in range(12)]
sew = tokens
membrane = 2 * tokens  # currents: a spike of X_0 is worth the threshold, as H = X / 2 at the first step
read = {"SEW": [], "membrane shortcut": []}
with torch.no_grad():
    for mlp in stack:
        sew, seen = sew_half(mlp, sew)
        read["SEW"].append(seen)
        membrane, seen = membrane_half(mlp, se.LIF(), membrane)
        read["membrane shortcut"].append(seen)

fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
looks = {"SEW": dict(color=style.MEMBRANE, marker="o"), "membrane shortcut": dict(color=style.SPIKE, marker="s")}
for name, tensors in read.items():
    axes[0].plot(range(12), [float(x.max()) for x in tensors], label=name, **looks[name])
    axes[1].plot(range(12), [float(x.mean() / (x > 0).float().mean()) for x in tensors], label=name, **looks[name])
axes[0].plot(range(12), [2 + i for i in range(12)], color=style.THRESHOLD, linestyle="--", label="bound of SEW")
axes[0].set(title="largest value read", xlabel="half block", ylim=(0, 14.5), yticks=range(0, 15, 2))
axes[1].set(title="additions for one non-zero value", xlabel="half block", ylim=(0, None))
axes[0].legend()
fig.suptitle("what the first matrix of each half block reads: 12 untrained MLP halves, T = 4", fontsize=12)
assert all(set(x.unique().tolist()) == {0.0, 1.0} for x in read["membrane shortcut"])
assert all(x.max() <= 2 + i for i, x in enumerate(read["SEW"])) and read["SEW"][-1].max() > 4
assert not torch.equal(membrane, membrane.round())
se.plot.show(
    fig,
    "Two line charts over twelve half blocks. With the residual of spikes the largest value that a matrix reads "
    "climbs from 2, below a dashed bound, and so do the additions for one non-zero value; with the membrane shortcut "
    "both stay at 1.",
)

# %% [markdown]
# Neither is right or wrong. SEW keeps a stream of small integers, which a shortcut can carry without loss, and pays
# with multi-valued inputs. The membrane shortcut keeps the matrices binary and pays with a stream of real numbers that
# has to be stored. [Chapter 13](13_beyond.ipynb) builds networks of the second kind.

# %% [markdown]
# ## Pitfalls
#
# - **A reshape that runs is taken for a reshape that is right.** Symptom: none; the loss goes down. Cause: element
#   counts agree, axes do not. Cure: numbers that carry their origin, with all sizes different, as above.
# - **Residual streams that are not binary.** Symptom: an energy estimate that is too low, hardware that refuses the
#   model, or `assert x.max() <= 1` failing at the input of the first block already. Cause: spikes were added, first in
#   $X_0 = x + \mathrm{RPE}$. Cure: say "integer", count by value, or use a membrane shortcut.
# - **"Fixing" the stream by clamping it.** `(x + y).clamp(max=1)` is an OR. It is binary, but a spike that lands where
#   the stream already holds a 1 leaves no trace. How many of the first attention's spikes would be lost?

# %%
with torch.no_grad():
    y = block.attn(tokens)
    kept = (tokens + y).clamp(max=1) - tokens.clamp(max=1)
lost = 1 - float(kept.sum() / y.sum())
print(f"spikes of the first SSA that a clamped residual would lose: {100 * lost:.0f} %")
assert 0 < lost < 1 and torch.equal(kept, y * (tokens == 0))

# %% [markdown]
# - **A membrane shortcut without a neuron before the matrix** is an ordinary residual network: real numbers are
#   multiplied. Look at what matrices read, not at what neurons send.

# %% [markdown]
# ## Exercises
#
# **6.1 Channels first.** The official ImageNet code makes $Q$ with a `Conv1d`, so its features come before the tokens:
# `[T, B, D, N]`. Write the split into heads `[T, B, h, N, d]` from there, and the way back.


# %% tags=["exercise-1"]
def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[T, B, D, N] -> [T, B, h, N, d]"""
    ...


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """[T, B, h, N, d] -> [T, B, D, N]"""
    ...


# %% tags=["check-1"]
with se.exercise("6.1"):
    features = torch.arange(4 * 3 * 8 * 5).view(4, 3, 8, 5)  # [T, B, D, N], every number is there once
    split = split_heads(features, heads=2)
    assert split is not None, "write split_heads first"
    assert split.shape == (4, 3, 2, 5, 4), f"shape {list(split.shape)}: [T, B, h, N, d] is wanted"
    for head in range(2):
        expected = features[:, :, 4 * head : 4 * head + 4].transpose(2, 3)
        assert torch.equal(split[:, :, head], expected), "cut D into (h, d) first, then let d and N change places"
    joined = join_heads(split)
    assert joined is not None, "write join_heads too"
    assert joined.shape == features.shape, "join_heads gives [T, B, D, N], features before tokens"
    assert torch.equal(joined, features), "undo the steps of split_heads in the opposite order"

# %% [markdown]
# **6.2 SEW against membrane shortcut.** Write the attention half of a block with a membrane shortcut: real stream `u`,
# new stream out. Use the parts of a `SpikingSelfAttention` of the package (`qkv`, `bn`, `q`, `k`, `v`, `mix`, `attn`,
# `proj.linear`, `proj.bn`) and the neuron that is handed in.


# %% tags=["exercise-2"]
def membrane_attention(ssa: torch.nn.Module, neuron: se.LIF, u: torch.Tensor) -> torch.Tensor:
    """U + f(SN(U)), where f is SSA without its last neuron: [T, B, N, D], real -> [T, B, N, D], real."""
    ...


# %% tags=["check-2"]
with se.exercise("6.2"):
    torch.manual_seed(1)
    ssa, u = se.load_pretrained("digits-2-64").blocks[1].attn, torch.randn(4, 3, 64, 64)
    inputs = []
    hooks = [layer.register_forward_hook(lambda m, x, y: inputs.append(x[0])) for layer in (ssa.qkv, ssa.proj.linear)]
    try:
        with torch.no_grad():
            out = membrane_attention(ssa, se.LIF(), u)
    finally:
        for hook in hooks:
            hook.remove()
    assert out is not None, "write membrane_attention first"
    assert len(inputs) == 2, "both matrices, qkv and proj.linear, are used once"
    assert all(set(x.unique().tolist()) <= {0.0, 1.0} for x in inputs), "a matrix still reads values other than 0 and 1"
    assert torch.equal(inputs[0], se.LIF()(u)), "qkv reads the spikes of the stream, SN(U)"
    added = (out - u).flatten()
    assert not torch.equal(added, added.round()), "spikes were added: leave the last neuron out, add its current"
    with torch.no_grad():
        expected = ssa.proj.neuron(out - u)
        assert torch.equal(expected, ssa(se.LIF()(u))), (
            "the neuron on what was added gives the spikes of SSA: is it the projection's current? are the heads right?"
        )

# %% [markdown]
# **6.3 The largest residual.** Write the bound for $L$ blocks, and make a network reach it: change batch norms of the
# given model so that every neuron fires in every step, whatever the image.


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
    assert [largest_residual(depth) for depth in (1, 4, 10)] == [4, 10, 22], "SPS brings two, each block adds two"
    for depth in (1, 3):
        small = se.spikformer("digits-2-64", depth=depth).eval()
        saturate(small)
        with torch.no_grad(), se.record(small) as found:
            small(torch.rand(2, 1, 32, 32))
        silent = [r.name for r in found.layers("spikes") if r.spikes.mean() < 1]
        assert not silent, f"{silent[0]} does not fire always: a batch norm's bias is added to every current"
        assert found[f"blocks.{depth - 1}.residual"].values.min() == largest_residual(depth)

# %% [markdown]
# ## Recap
#
# - Heads are a cut of the feature axis and a transpose; every other reshape of the right size runs too, and is wrong.
# - A block treats its tokens as a set. Position comes from a convolution before the blocks.
# - Spikformer adds spikes, so its stream is an integer, at most $2L + 2$. Matrices that read it do more than binary
#   work.
# - A membrane shortcut keeps what matrices read binary, and its stream real.
#
# Next: [chapter 07](07_assemble_and_verify.ipynb) puts the whole network together and hunts for faults that training
# does not show. Answers: [solutions](solutions/06_encoder_block.ipynb).
