# %% [markdown]
# # 13 · Beyond Spikformer
#
# *Run time 25 s on one CPU core · after chapters 05, 06 and 09 · no internet access, no GPU*
#
# What came after SSA, and what does each part of a trained network contribute? Later papers replace the matrix products
# by a mask, move the residual connection, and change the neuron. We write these changes by hand, in a few lines each,
# and compare them with the package's classes, which must give the same results. After that we change a trained network
# while it runs, and compare kinds of attention on a small task.
#
# ![The network's parts, from image to answer; this chapter is about newer kinds of attention](../docs/images/network_map/13.svg)
#
# ## What you will learn
# - to write spike-driven self-attention, Q-K attention and the membrane shortcut, and to select them by name
# - to check a new layer with `se.check`
# - to count the operations of the attention, and to say what share of a block's operations they are
# - to find out when a gate without a scale fires, and what this means for many tokens
# - to silence a head, a time step or a token of a trained network, and to measure how the answer changes
# - to compare variants fairly, and to say what a small comparison cannot show

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

import matplotlib.pyplot as plt
import torch
from torch import nn

from spikformer_edu.attention import SpikingSelfAttention, norm_tokens
from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# The figure shows the operations of the attention core of one block in one time step. The core is everything between Q,
# K, V and the projection. The left panel varies the number of tokens, the right panel the width. In the left panel the
# line of SSA has one bend, where SSA changes the order of its products ([chapter 05](05_spiking_self_attention.ipynb)).
# The line *mask and add*, of the newer kinds of attention below, is lower and straight. The dotted black line shows the
# linear layers of the same block. At the sizes of the paper's networks, marked in gray, these are most of the
# operations.


# %%
def core_operations(tokens, dim, heads):
    """Additions (softmax: multiply-accumulates) and masks of one block and step."""
    d = dim // heads
    return {
        # Q K^T, then times V; the exponentials come on top
        "softmax": 2 * tokens**2 * dim,
        "SSA": 2 * tokens * dim * min(tokens, d),  # the cheaper order
        # one gated sum over all N D bits, then one mask for each of them
        "mask and add": 2 * tokens * dim,
    }


def linear_operations(tokens, dim, mlp_ratio=4):
    """Those of a block: Q, K, V, the projection, and the two of the MLP."""
    return (4 + 2 * mlp_ratio) * tokens * dim**2


# %% tags=["fold"]
LOOK = {
    "softmax": (style.GREY, "--"),
    "SSA": (style.Q, "-"),
    "mask and add": (style.V, "-."),
}
fig, axes = plt.subplots(1, 2, figsize=(10.5, 4.6), sharey=True)
sizes = [2**n for n in range(4, 13)]
for ax, xs, at in (
    (axes[0], sizes, lambda n: (n, 512, 8)),
    (axes[1], sizes[2:], lambda D: (196, D, D // 64)),
):
    for name, (color, line) in LOOK.items():
        ys = [core_operations(*at(x))[name] for x in xs]
        ax.loglog(xs, ys, line, color=color, label=name)
    ys = [linear_operations(*at(x)[:2]) for x in xs]
    ax.loglog(xs, ys, ":", color="black", label="linear layers of the block")
for ax, x, text in (
    (axes[0], 196, "ImageNet, N = 196"),
    (axes[1], 512, "model 8-512"),
):
    ax.axvline(x, color=style.PALE, linewidth=6, zorder=0)
    place = dict(xytext=(7, 0), textcoords="offset points", fontsize=10)
    ax.annotate(text, (x, 1.2e4), **place)
axes[0].set(
    xlabel="tokens N",
    ylabel="operations a block and time step",
    title="D = 512, h = 8, so d = 64",
)
axes[1].set(xlabel="width D", title="N = 196, d = 64 a head")
axes[0].legend(loc="upper left")
se.plot.show(
    fig,
    "Operations of the attention core of one block in one time step over the "
    "number of tokens and over the width, log-log: softmax grows with N squared, "
    "SSA less from N = d on, mask and add is lowest and linear in both; the linear "
    "layers of the block lie above SSA and masks everywhere.",
)
for n in sizes:
    for counts in (core_operations(n, 512, 8), core_operations(196, 64 * n, n)):
        assert counts["mask and add"] < counts["SSA"] <= counts["softmax"]

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $Q, K, V$ | `[T, B, h, N, d]` | {0, 1} | as in SSA |
# | $\sum_n Q \odot K$ | `[T, B, h, 1, d]` | integers 0 ... N | for each feature: how many tokens have it in both Q and K |
# | $g = \mathrm{SN}(\cdot)$ | `[T, B, h, 1, d]` | {0, 1} | channel gate of spike-driven self-attention (SDSA) |
# | $g \odot V$ | `[T, B, h, N, d]` | {0, 1} | V, with whole features switched off |
# | $\sum_c Q$ | `[T, B, h, N, 1]` | integers 0 ... d | how many features of a token fire in Q |
# | $A_t = \mathrm{SN}(\cdot)$ | `[T, B, h, N, 1]` | {0, 1} | token gate of Q-K attention |
# | $U$ | `[T, B, N, D]` | real | residual stream with the [membrane shortcut](../docs/glossary.md#membrane-shortcut) |
#
# The papers: Spikformer ([Zhou et al., ICLR 2023](https://arxiv.org/abs/2209.15425)), the Spike-driven Transformer
# ([Yao et al., NeurIPS 2023](https://arxiv.org/abs/2307.01694)) and QKFormer ([Zhou et al., NeurIPS
# 2024](https://arxiv.org/abs/2403.16552)). We take one idea of each paper, not the whole networks, which also change
# the patch embedding, the stages and the training. The page [Successors](../docs/successors.md) has all ideas that the
# package knows, with their equations, in one table.

# %% [markdown]
# ## Mask and add: spike-driven self-attention
#
# The Spike-driven Transformer keeps Q, K and V as spikes and removes both products of matrices:
#
# $$\mathrm{SDSA}(Q, K, V) = \mathrm{SN}\Big(\sum_{n=1}^{N} Q_n \odot K_n\Big) \odot V$$
#
# $\odot$ multiplies entry by entry. For bits this is an AND, so it acts as a mask. We start with a small example: one
# head, N = 4 tokens, d = 3 features, one time step.

# %%
Q = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 0], [1, 1, 0]]).float()
K = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]]).float()
V = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 1, 1]]).float()

both = Q * K  # mask
count = both.sum(0)  # add, over the tokens
gate = se.LIF(v_threshold=0.5)(count[None])[0]  # one time step
print("Q AND K, added over tokens:", count.int().tolist())
print("gate:", gate.int().tolist())
print("gate AND V, token by token:", (gate * V).int().tolist())
assert count.tolist() == [2, 0, 0] and gate.tolist() == [1, 0, 0]
assert torch.equal((gate * V)[:, 0], V[:, 0]) and (gate * V)[:, 1:].sum() == 0

# %% [markdown]
# The gate passes feature 0 for all tokens, and features 1 and 2 for none. So tokens exchange information, but only
# about which features to keep: every token gets the same gate. In SSA, by contrast, each query gets its own weighted
# sum of values.
#
# We write it as a subclass of the package's attention with another `forward`. It inherits the linear map, the batch
# norm, the neurons and the projection. The authors' code uses other letters: it gates Q by a sum over K and V. The
# three maps are learned, so only their names differ: it is the same layer. The threshold 0.5 is from their code, and
# there is no scale.


# %%
class HandMadeSDSA(SpikingSelfAttention):
    """SDSA: SN(sum over tokens of Q * K) * V, then the projection."""

    def forward(self, x):
        qkv = norm_tokens(self.bn, self.qkv(x))  # [T, B, N, 3D]
        # each [T, B, h, N, d]
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q, k, v = self.q(q), self.k(k), self.v(v)
        gate = self.attn((q * k).sum(-2, keepdim=True))  # [T, B, h, 1, d], {0, 1}
        return self.proj((gate * v).transpose(2, 3).flatten(3))  # [T, B, N, D]


# %% [markdown]
# The package has this layer under the name `sdsa`. With the same weights, both must give the same spikes and the same
# gradients.


# %%
def assert_same_layer(ours, theirs):
    """Same weights, same input: the same spikes and the same gradients."""
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, 4, (4, 2, 16, 64)).float()  # [T, B, N, D]
    weights, found = torch.randn(4, 2, 16, 64), []
    for layer in (ours, theirs):
        out = layer(tokens)
        parameters = [layer.qkv.weight, layer.proj.linear.weight]
        found.append((out, *torch.autograd.grad((out * weights).sum(), parameters)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert found[0][0].any() and found[0][1].any()


assert_same_layer(HandMadeSDSA(64, 4), se.ATTENTION["sdsa"](64, 4))
model = se.spikformer("digits-2-64", attention="sdsa")
print("in the package:", type(model.blocks[0].attn).__name__)

# %% [markdown]
# ## Check a new layer
#
# A new layer that trains need not be correct: a layer with a sum over the wrong axis trains, too. `se.check` calls a
# network on changed inputs. It looks for samples that influence each other, state that is kept between calls, outputs
# that depend on later time steps, layers that are never called, and weights without gradient.

# %%
images, _ = se.data.load("digits").val.fetch(torch.arange(16), None)
print("SDSA:", se.check(model, images).findings or "no fault found")


class SumOverTheBatch(HandMadeSDSA):
    """A mistake: the gate also adds up over the samples of the batch."""

    def forward(self, x):
        qkv = norm_tokens(self.bn, self.qkv(x))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q, k, v = self.q(q), self.k(k), self.v(v)
        gate = self.attn((q * k).sum((1, -2), keepdim=True))
        return self.proj((gate * v).transpose(2, 3).flatten(3))


se.ATTENTION["mistake"] = SumOverTheBatch
wrong = se.check(se.spikformer("digits-2-64", attention="mistake"), images)
print("the mistake:", wrong.findings[0].what)
del se.ATTENTION["mistake"]
assert "sample" in wrong.findings[0].what

# %% [markdown]
# ## When does the gate fire?
#
# **Predict before you run.** The gate's neuron has $\tau = 2$ and $V_{th} = 0.5$, and its input is a whole number 0 ...
# N. When does it fire? Is its membrane potential ever different from 0 at the end of a step?

# %% tags=["predict"]
counts = torch.randint(0, 4, (50, 1000)).float()  # 50 time steps
counts[torch.rand(50, 1000) < 0.5] = 0
fired = se.LIF(v_threshold=0.5)(counts)
print("share of counts above 0:", round((counts > 0).float().mean().item(), 2))
print(
    "fires exactly where the count is above 0:",
    torch.equal(fired, (counts > 0).float()),
)
assert torch.equal(fired, (counts > 0).float())

# %% [markdown]
# <details><summary>Answer</summary>
#
# A count of 1 charges the membrane to $H = 1/2$. This is the threshold, so the neuron fires. A count of 0 leaves the
# membrane at 0. After a spike it is reset to 0. So V is 0 at the end of every step, and the neuron is an OR over the
# tokens: "does any token have this feature in both Q and K?" Leak and memory have no effect. In SSA the scale is 0.125.
# A sum of 1 then charges the membrane to 0.0625, far below 0.5, so the size of the sum matters.
#
# </details>
#
# An OR over many tokens is often 1. If the bits of Q and K were independent and each were 1 with probability r, the
# gate would be open with probability $1 - (1 - r^2)^N$. The token gate of Q-K attention, further down, is an OR over
# the d features of a head: $1 - (1 - r)^d$.

# %% tags=["fold"]
generator = torch.Generator().manual_seed(0)
fig, ax = plt.subplots(figsize=(8, 4.2))
ns = torch.tensor([4, 16, 64, 196, 784])
for rate, color, marker in (
    (0.05, style.Q, "o"),
    (0.1, style.V, "s"),
    (0.2, style.K, "^"),
):
    n = torch.logspace(0.5, 3, 100)
    line = 100 * (1 - (1 - rate**2) ** n)
    ax.semilogx(n, line, color=color, label=f"r = {rate:g}")
    opened = []
    for tokens in ns.tolist():
        bits = torch.rand(2, tokens, 2000, generator=generator) < rate
        opened.append((bits[0] & bits[1]).any(0).float().mean().item())
    ax.semilogx(ns, [100 * o for o in opened], marker, color=color)
    torch.testing.assert_close(
        torch.tensor(opened), (1 - (1 - rate**2) ** ns).float(), atol=0.05, rtol=0
    )
for tokens, name in ((64, "CIFAR"), (196, "ImageNet")):
    ax.axvline(tokens, color=style.PALE, linewidth=5, zorder=0)
    text = f"{name}\nN = {tokens}"
    ax.annotate(text, (tokens, 104), ha="center", va="bottom", fontsize=9)
ax.set(xlabel="tokens N", ylabel="channel gates open, %", ylim=(-4, 118))
ax.set_title("SDSA gate on random bits, one time step (T = 1)")
ax.legend(
    title="firing rate of Q and K", loc="center left", bbox_to_anchor=(1, 0.5)
)
se.plot.show(
    fig,
    "Share of open SDSA gates over the number of tokens for random bits of firing "
    "rate 0.05, 0.1 and 0.2: curves of the formula and measured points agree; at "
    "196 tokens and rate 0.2 every gate is open.",
)

# %% [markdown]
# A gate that is always open carries no information. At 196 tokens and r = 0.2, 99.97 % of the gates are open by the
# formula. So the firing rates of Q and K must stay low, and with more tokens they must be lower. Monitor these rates
# with `se.record` when you train such a network.

# %% [markdown]
# ## Q-K attention
#
# QKFormer goes one step further and removes V. The token gate is 1 if any Q feature of the token fires, and it masks
# the token's K:
#
# $$A_t = \mathrm{SN}\Big(\sum_{c=1}^{d} Q_{:,c}\Big), \qquad X' = A_t \odot K$$
#
# The sum and the gate have one value for each token and head. This value masks all d features. The channel gate sums
# over tokens instead; you write it in exercise 13.1. In the authors' code the threshold of the gate is again 0.5, so
# the gate is again an OR.


# %%
class HandMadeTokenQK(SpikingSelfAttention):
    """Q-K token attention: SN(sum over features of Q) * K, then the projection."""

    def __init__(self, dim, heads, **options):
        super().__init__(dim, heads, **options)
        # Q and K alone
        self.qkv = nn.Linear(dim, 2 * dim, bias=self.qkv.bias is not None)
        self.bn = nn.BatchNorm1d(2 * dim)
        del self.v

    def forward(self, x):
        qk = norm_tokens(self.bn, self.qkv(x))  # [T, B, N, 2D]
        # each [T, B, h, N, d]
        q, k = qk.unflatten(-1, (2, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q, k = self.q(q), self.k(k)
        gate = self.attn(q.sum(-1, keepdim=True))  # [T, B, h, N, 1], {0, 1}
        return self.proj((gate * k).transpose(2, 3).flatten(3))  # [T, B, N, D]


assert_same_layer(HandMadeTokenQK(64, 4), se.ATTENTION["qk_token"](64, 4))
model = se.spikformer("digits-2-64", attention="qk_token")
saved = se.preset("digits-2-64").parameters
saved -= sum(p.numel() for p in model.parameters())
print("the package's layer is the same; parameters less than with SSA:", saved)
# a matrix, a bias and a batch norm a block
assert saved == 2 * (64 * 64 + 64 + 2 * 64)

# %% [markdown]
# **Predict before you run.** Change one token of the input. Which tokens of the output can change with SSA, SDSA and
# token Q-K attention? (The batch norms are in evaluation mode, so they do not connect tokens.)

# %% tags=["predict"]
torch.manual_seed(1)
x = torch.randint(0, 3, (4, 1, 16, 64)).float()  # [T, B, N, D]
y = x.clone()
y[:, :, 5] = torch.randint(0, 3, (4, 1, 64)).float()  # another token 5
touched = {}
for name in ("ssa", "sdsa", "qk_token"):
    torch.manual_seed(2)
    layer = se.ATTENTION[name](64, 4)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
            # strong currents, so that spikes are common
            nn.init.constant_(module.weight, 3.0)
    layer(x)
    layer.eval()
    changed = (layer(x) != layer(y)).any(-1).any(0).flatten()  # [N]
    touched[name] = changed.nonzero().flatten().tolist()
    others = len(set(touched[name]) - {5})
    print(f"{name:9} other tokens of the output that change: {others}")
assert touched["qk_token"] == [5]
assert len(touched["ssa"]) > 1 and len(touched["sdsa"]) > 1

# %% [markdown]
# <details><summary>Answer</summary>
#
# In SSA all 15 other tokens change, because of the scores. In SDSA 14 change, because of the sum over tokens. In token
# Q-K attention only token 5 changes. The sum of the gate runs over features, so tokens do not exchange information.
# This attention only selects tokens, and other layers must mix them: QKFormer mixes tokens with convolutions in its
# patch embeddings, and with SSA in its last stage.
#
# </details>

# %% [markdown]
# ## How much does a mask save?
#
# Each of these kinds of attention takes N D gated additions for the sum and N D masks for the result, 2 N D in total.
# SSA takes 2 N D min(N, d). `se.energy` counts both.

# %%
counted = {}
for name in ("ssa", "sdsa", "qk_token"):
    report = se.energy(se.spikformer("digits-2-64", attention=name), images)
    core = [
        cost
        for cost in report.layers
        if cost.layer.startswith("blocks.0.attn.")
        and cost.layer.split(".")[-1] not in ("qkv", "proj")
    ]
    counted[name] = sum(cost.flops for cost in core)
    parts = ", ".join(c.layer.removeprefix("blocks.0.attn.") for c in core)
    print(f"{name:9} {parts:16} {counted[name]:7,} operations in a step")
assert counted["ssa"] == core_operations(64, 64, 4)["SSA"]
assert counted["sdsa"] == core_operations(64, 64, 4)["mask and add"]

# %% [markdown]
# **Predict before you run.** In the ImageNet model 8-512 a mask takes 64 times fewer operations than SSA's products. By
# how much does the number of operations of a whole block fall?

# %% tags=["predict"]
falls = {}
for name in ("digits-2-64", "cifar10-4-384", "imagenet-8-512"):
    p = se.preset(name)
    tokens = (p.image_size // p.config.patch_size) ** 2
    core = core_operations(tokens, p.config.dim, p.config.heads)
    whole = core["SSA"] + linear_operations(tokens, p.config.dim)
    falls[name] = (core["SSA"] - core["mask and add"]) / whole
    ratio = core["SSA"] / core["mask and add"]
    print(
        f"{name:15} SSA takes {ratio:2.0f} times as many; "
        f"the block falls by {100 * falls[name]:4.1f} %"
    )
assert falls["imagenet-8-512"] < 0.03 < falls["digits-2-64"]

# %% [markdown]
# <details><summary>Answer</summary>
#
# By about 2 %. For each token and feature a block needs 12 D + 2 d operations, and the core of SSA is 2 d of them. The
# rest are linear layers, which stay. More tokens would not change this share, because SSA in the order $Q(K^TV)$ is
# already linear in N. The paper on the Spike-driven Transformer states up to 87.2 times less energy than softmax
# attention. That number is for the attention alone, against another baseline, and under the paper's own convention. It
# is not the saving of the whole network. Q-K attention saves more because it has no V. The linear layers of a block are
# as large as 12 matrices of D x D, and the one for V is gone.
#
# </details>

# %% [markdown]
# ## The membrane shortcut
#
# Spikformer adds spikes after the neuron (eq. 7, 8), so its [residual stream](../docs/glossary.md#residual-stream)
# holds integers. The next linear layer then multiplies by 2, 3, ..., but a spike would need only an addition.
# Spikingformer ([Zhou et al., 2023](https://arxiv.org/abs/2304.11954)) and the Spike-driven Transformer add currents
# before the neuron, like MS-ResNet ([Hu et al., 2021](https://arxiv.org/abs/2112.08954)):
#
# $$U' = U + \mathrm{BN}(\mathrm{Linear}(\mathrm{SSA}'(\mathrm{SN}(U)))), \qquad
# U'' = U' + \mathrm{BN}(\mathrm{Linear}(\mathrm{SN}(\mathrm{BN}(\mathrm{Linear}(\mathrm{SN}(U'))))))$$
#
# The stream U then holds real numbers, and a neuron turns it into spikes before each linear layer. The function below
# computes this with the layers of the package's network. Compared with Spikformer's block there are two more layers of
# neurons at the inputs, and two fewer at the outputs. The position embedding is added as a current, too, and one more
# layer of neurons is placed before the head.


# %%
def hand_made_membrane(model, images):
    """Logits, computed from a network's weights with membrane shortcuts."""
    neuron = se.LIF()
    *stages, rpe = model.sps
    x = stages[0].forward_image(images, model.config.time_steps)
    for stage in stages[1:]:
        x = stage(x)  # spikes
    position = rpe.bn(rpe.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
    u = (x + position).flatten(3).transpose(2, 3)  # [T, B, N, D], real
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        qkv = norm_tokens(attn.bn, attn.qkv(neuron(u)))
        q, k, v = qkv.unflatten(-1, (3, attn.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q, k, v = attn.q(q), attn.k(k), attn.v(v)
        mixed = attn.attn(q @ k.transpose(-2, -1) @ v * 0.125)
        mixed = mixed.transpose(2, 3).flatten(3)
        u = u + norm_tokens(attn.proj.bn, attn.proj.linear(mixed))
        hidden = neuron(norm_tokens(mlp.hidden.bn, mlp.hidden.linear(neuron(u))))
        u = u + norm_tokens(mlp.out.bn, mlp.out.linear(hidden))
    return model.head(neuron(u).mean(2).mean(0))


def settle(model, images):
    """Give all batch norms the statistics of these images, and more current."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
            nn.init.constant_(module.bias, 0.3)
    model.train()(images)
    return model.eval()


torch.manual_seed(0)
membrane = settle(se.spikformer("digits-2-64", residual="membrane"), images)
with torch.no_grad():
    by_hand = hand_made_membrane(membrane, images)
    torch.testing.assert_close(by_hand, membrane(images))
assert by_hand.std() > 0.01
print('by hand and by residual="membrane": the same logits')

# %% [markdown]
# **Predict before you run.** Two networks have the same initial weights, one with Spikformer's residuals and one with
# membrane shortcuts. Which of their linear layers and convolutions get inputs other than 0 and 1? How large is the
# largest input?


# %% tags=["predict"]
@torch.no_grad()
def inputs_of_layers(model, images):
    """Name -> inputs, of all weights but the first convolution and the head."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        weighs = isinstance(module, (nn.Conv2d, nn.Linear))
        if weighs and name not in ("sps.0.conv", "head"):
            name = name.removesuffix(".conv").removesuffix(".linear")
            hooks.append(
                module.register_forward_hook(
                    lambda m, args, out, name=name: found.update({name: args[0]})
                )
            )
    model(images)
    for hook in hooks:
        hook.remove()
    return found


torch.manual_seed(0)
spikformer = settle(se.spikformer("digits-2-64"), images)
after = inputs_of_layers(spikformer, images)
before = inputs_of_layers(membrane, images)
print(f"{'largest input of':20} {'Spikformer':>10} {'membrane shortcut':>18}")
for name in after:
    largest = [int(x[name].max()) for x in (after, before)]
    print(f"{name:20} {largest[0]:10} {largest[1]:18}")
assert all(((x == 0) | (x == 1)).all() for x in before.values())
assert {n for n, x in after.items() if x.max() > 1} == {
    f"blocks.{i}.{n}" for i in (0, 1) for n in ("attn.qkv", "mlp.hidden")
}

# %% [markdown]
# <details><summary>Answer</summary>
#
# In each block two layers read Spikformer's residual stream: the map to Q, K, V and the first layer of the MLP. Their
# largest input grows with depth, by at most 2 in each block: here from 2 to 5. With membrane shortcuts all inputs are 0
# and 1. Neither stream is binary: one holds integers, the other real numbers. The two networks differ in the place of
# the addition, and therefore in the values that are sent and multiplied. In `se.energy` ([chapter
# 10](10_energy.ipynb)), the convention "integer" charges an input of 2 twice, so only Spikformer's residual costs more
# there than in the convention "paper".
#
# </details>
#
# ## Other neurons
#
# The family also differs in its neurons. `neuron=` selects them: `lif` is the paper's, `if` never leaks, and `plif`
# learns its time constant. `ilif` gives integers from 0 to 4 and keeps the remainder in its potential. Its current is
# not divided by $\tau$, so it fires earlier. Here all get the same current.

# %%
from spikformer_edu.neurons import NEURONS

current = torch.tensor([0.8, 0.8, 2.6, 0.0, 0.8, 0.8])
print("current ", [round(x, 1) for x in current.tolist()])
gave = {name: kind()(current[:, None]).flatten() for name, kind in NEURONS.items()}
for name, spikes in gave.items():
    print(f"{name:8}", [int(s) for s in spikes.tolist()])
# tau = 2 at the start
assert torch.equal(gave["plif"], gave["lif"])
assert gave["if"].sum() > gave["lif"].sum() and gave["ilif"].max() > 1

# %% [markdown]
# An integer is not a spike. For inference, each integer becomes four binary steps: 3 is sent as 1, 1, 1, 0. The network
# then runs 4 T steps, and the inputs of its weights are only 0 and 1. `unroll` makes this network.

# %%
from spikformer_edu.export.unrolled import unroll

torch.manual_seed(0)
integers = se.spikformer("digits-2-64", neuron="ilif", residual="membrane")
settle(integers.double(), images.double())
binary = unroll(integers)
seen = {}
binary.blocks[1].mlp.hidden.linear.register_forward_hook(
    lambda m, args, out: seen.update(x=args[0])
)
with torch.no_grad():
    expected, found = integers(images.double()), binary(images.double())
print("steps:", integers.config.time_steps, "->", len(seen["x"]))
print("values that a weight sees:", seen["x"].unique().int().tolist())
torch.testing.assert_close(found, expected)
assert seen["x"].unique().tolist() == [0, 1] and expected.std() > 0.01

# %% [markdown]
# ## What a head, a step and a token do to the answer
#
# So far we looked at the values in the layers. To learn how much a layer matters for the answer, change its output and
# compute the rest of the network. This is called an intervention. `se.intervene` passes the output of a layer through a
# function of yours. We take the trained network of [chapter 00](00_tour.ipynb) and 200 of its test digits, and silence
# one part at a time:
#
# - a head: no spike of this head leaves `blocks.i.attn.attn`
# - a time step: the last residual stream is zero in this step, so the answer comes from the other three
# - a token: the residual stream after block 0 is zero at this token
#
# **Predict before you run.** What costs more correct answers, to silence a head or to silence a time step? Are all
# heads equally important?

# %% tags=["predict"]
trained = se.load_pretrained("digits-2-64")
test = se.data.load("digits").test
digits, labels = test.fetch(torch.arange(200), None)


def without(*place):
    """A function that sets a part of what a layer gives to zero."""

    def change(values):
        values = values.clone()
        values[place] = 0
        return values

    return change


@torch.no_grad()
def answers(changes, images=digits):
    """The logits with some layers changed."""
    with se.intervene(trained, changes):
        return trained(images)


def accuracy(changes):
    return 100 * (answers(changes).argmax(1) == labels).float().mean().item()


whole, every = accuracy({}), slice(None)
heads = {
    (i, h): accuracy({f"blocks.{i}.attn.attn": without(every, every, h)})
    for i in range(2)
    for h in range(4)
}
steps = {t: accuracy({"blocks.1.residual": without(t)}) for t in range(4)}
alone = {
    t: accuracy({"blocks.1.residual": without([s for s in range(4) if s != t])})
    for t in range(4)
}
print(f"all parts: {whole:.1f} % of {len(labels)} digits")
for i in range(2):
    row = "  ".join(f"{heads[i, h]:5.1f}" for h in range(4))
    print(f"block {i} without head 0, 1, 2, 3: {row}")
print(
    "without step 0, 1, 2, 3:        ",
    "  ".join(f"{a:5.1f}" for a in steps.values()),
)
print(
    "step 0, 1, 2, 3 alone:          ",
    "  ".join(f"{a:5.1f}" for a in alone.values()),
)
with torch.no_grad():
    # nothing is left behind
    assert torch.equal(trained(digits), answers({}))
assert whole - 10 < min(heads.values()) < whole
assert min(steps.values()) > whole - 10 and alone[0] < 50 < alone[1]

# %% [markdown]
# <details><summary>Answer</summary>
#
# A head costs more, but not much: from 0 to 3.5 points (7 of 200 digits). Silencing one step costs nothing (98.0 to
# 98.5 %). The heads are not equal, but the network does not depend on any single one. A step is a quarter of the
# answer, but the image is the same in all steps, so the others give almost the same answer. Only step 0 alone fails
# (25.5 %): all membrane potentials start at 0, and the deep layers hardly fire in the first step. Here only one part is
# silenced at a time. Two heads that can replace each other both look useless when only one of them is silenced.
#
# </details>
#
# A token is a place in the image. We silence each of the 64 tokens in turn, and measure how far the logit of the right
# class falls.

# %% tags=["fold"]
shown = [int((labels == k).nonzero()[0]) for k in (0, 3, 7)]
fig, axes = plt.subplots(2, 3, figsize=(8.4, 5.6))
falls = torch.zeros(3, 64)
chosen, right = digits[shown], labels[shown]
usual = answers({}, chosen)[range(3), right]
for n in range(64):
    changed = answers({"blocks.0.residual": without(every, every, n)}, chosen)
    falls[:, n] = usual - changed[range(3), right]
largest = falls.abs().max().item()
for j in range(3):
    axes[0, j].imshow(chosen[j, 0], cmap="gray")
    axes[0, j].set_title(f"digit {right[j]}", fontsize=11)
    drawn = axes[1, j].imshow(
        falls[j].view(8, 8), cmap="RdBu_r", vmin=-largest, vmax=largest
    )
    axes[1, j].set_title("fall of its logit", fontsize=11)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
fig.colorbar(drawn, ax=axes[1], shrink=0.8, label="logit, before minus after")
fig.suptitle("blocks.0.residual silenced at one token, T = 4", fontsize=11)
se.plot.show(
    fig,
    "Three test digits, 0, 3 and 7, and below each a map of 8 x 8 tokens: how far "
    "the logit of the right class falls when the residual stream after block 0 is "
    "silenced at that token; red is a fall, blue a rise, T = 4.",
)
assert falls.max() > 0.05

# %% [markdown]
# Silencing a red token lowers the logit of the right class. Silencing a blue one raises it. All changes are small,
# about 0.1 at most. A map of attention shows from which tokens a token takes values. This map shows which tokens change
# the answer. The two can differ.

# %% [markdown]
# ## Small comparisons
#
# These runs are too long for a notebook, so their results come from files. In the cued task of [chapter
# 09](09_ablations.ipynb) an image holds four colored digits and a colored cue. The network must name the digit of the
# cue's color, so the token of the cue needs information from other tokens. Apart from the attention, all variants have
# the same network, budget and tuning, and ten seeds. The protocol was written before the runs. It is at the top of [the
# script](results/13_cued.py).
#
# **Predict before you run.** In which kinds of attention does a token get information from other tokens? Which of them
# will solve the cued task?

# %% tags=["predict"]
NAMES = {
    "ssa": "SSA",
    "none": "no attention (control)",
    "sdsa": "SDSA",
    # the names in the files
    "token_qk": "token Q-K",
    "channel_qk": "channel Q-K",
}
T_95 = {10: 2.262, 3: 4.303}  # Student's t, 95 %, seeds - 1 degrees of freedom


def load(name):
    return json.loads(Path(f"results/{name}.json").read_text())


def accuracies(runs, key, name):
    """Test accuracies of a variant in %, by seed."""
    own = sorted((r for r in runs if r[key] == name), key=lambda r: r["seed"])
    return 100 * torch.tensor([r["test_accuracy"] for r in own]).double()


def difference(top, other):
    """Mean difference, paired by seed, and half of its 95 % interval."""
    gap = top - other
    return gap.mean().item(), T_95[len(gap)] * gap.std().item() / len(gap) ** 0.5


runs = load("13_cued")["runs"] + load("09_cued")["runs"]
cued = {name: accuracies(runs, "attention", name) for name in NAMES}
print(f"{'cued digits, ten seeds':25} {'accuracy, %':>14} {'minus SSA':>16}")
for name, top in cued.items():
    mean, half = difference(top, cued["ssa"])
    said = "" if name == "ssa" else f"{mean:+7.2f} ± {half:5.2f}"
    print(f"{NAMES[name]:25} {top.mean():7.2f} ± {top.std():4.2f} {said:>16}")
assert all(len(top) == 10 for top in cued.values())
# tokens do not exchange information
assert abs(cued["token_qk"].mean() - cued["none"].mean()) < 1
assert abs(cued["channel_qk"].mean() - cued["ssa"].mean()) < 2
assert cued["channel_qk"].min() > 90 and (cued["sdsa"] < cued["ssa"]).all()
assert round(cued["sdsa"].min().item()) == 58
assert round(cued["sdsa"].max().item()) == 92

# %% [markdown]
# <details><summary>Answer</summary>
#
# Token Q-K attention reaches only the accuracy of the control (38 %), because its tokens do not exchange information.
# In QKFormer other layers mix the tokens. Ten seeds show no difference between channel Q-K attention and SSA, although
# it has one gate for all tokens and no product of matrices. So this task can be solved without a separate weighted sum
# for each query. SDSA has such a gate, too, and we expected it to solve the task. But its seeds range from 58 to 92 %,
# and each is below the SSA run of the same seed. Its training loss at the end is 0.45 to 1.17, and that of SSA 0.16 to
# 0.48, so more steps might change this.
#
# </details>

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(9, 3.4))
for row, (name, top) in enumerate(cued.items()):
    color = style.Q if name == "ssa" else style.GREY
    ax.plot(top, [row] * 10, "o", color=color, alpha=0.6)
    ax.plot([top.mean()] * 2, [row - 0.28, row + 0.28], color="black")
dashed = dict(linestyle=(0, (4, 2)), linewidth=1.2)
ax.axvline(cued["none"].mean(), color=style.THRESHOLD, **dashed)
ax.set(yticks=range(len(cued)), yticklabels=[NAMES[name] for name in cued])
ax.set(xlabel="test accuracy, % (2,000 pictures of cued digits), T = 2")
ax.set(xlim=(30, 100))
ax.invert_yaxis()
ax.set_title("ten seeds each, mean as a bar; dashed: the control's")
se.plot.show(
    fig,
    "Test accuracy on the cued digits, ten seeds each, for SSA, the control "
    "without attention, SDSA, token and channel Q-K attention; a dashed line "
    "marks the mean of the control.",
)

# %% [markdown]
# A task that does not need attention cannot compare kinds of attention. The next cell shows this for the plain digits,
# by the protocol of chapter 09 with three seeds ([script](results/13_beyond.py)). There the mean of the control without
# attention is 1.8 points *above* that of SSA. A difference counts as resolved if its 95 % interval does not contain 0.

# %%
runs = load("13_beyond")["runs"] + [
    r | {"variant": r["attention"]}
    for r in load("09_ablations")["runs"]
    if r["attention"] in ("ssa", "none") and r["time_steps"] == 4
]
names = ("none", "sdsa", "token_qk", "channel_qk", "membrane", "sdsa_membrane")
usual = accuracies(runs, "variant", "ssa")
gaps = [difference(accuracies(runs, "variant", n), usual) for n in names]
print("difference to SSA in points, with its 95 % interval")
for name, (mean, half) in zip(names, gaps, strict=True):
    found = "resolved" if abs(mean) > half else "not resolved"
    print(f"{name:13} {mean:+5.1f} ± {half:4.1f}  {found}")
assert all(abs(mean) <= half for mean, half in gaps)

# %% [markdown]
# Even the largest difference is not resolved: SSA with membrane shortcuts is 8.6 points below SSA, with an interval of
# ± 14.8 points. Three seeds are too few to resolve a difference of this size.
#
# Do not read these comparisons as a ranking. They show what a layer can do in a network of one block after a short
# training. The papers of these ideas report higher accuracies than Spikformer's, but their networks differ from it in
# more than one thing. [Successors](../docs/successors.md) lists their numbers, and compares the whole family on a toy
# CIFAR-10.
#
# ## Using a variant
#
# You select a variant of the package by its name, in Python and on the command line. The run folder stores the name:
#
#     python -m spikformer_edu.train --dataset digits --attention sdsa --residual membrane --neuron plif
#
# Your own attention needs a name, too: `se.ATTENTION["mine"] = MyAttention`. A class is registered only if the file
# that defines it is imported, so train it with a short script of your own
# ([guide](../docs/guides/attention_variant.md)). Follow these rules for a comparison that others can trust, in addition
# to those of [chapter 09](09_ablations.ipynb):
#
# - Change one thing at a time.
# - State the number of parameters. Without V there are fewer.
# - State the convention of the energy, and what it does not include.
# - Record firing rates. A gate that is always open does nothing.

# %% [markdown]
# ## Pitfalls
#
# - **A sum over the wrong axis.** Symptom: everything runs, but the accuracy is a little too low. Cause: `sum(-1)`
#   instead of `sum(-2)`: the gate then masks tokens, not features. Broadcasting accepts both. Cure: change one token of
#   the input and see which tokens of the output change, as above.
# - **A residual stream that is not binary.** Symptom: a paper claims additions only, but integers are multiplied.
#   Cause: spikes are added to spikes. Cure: look at the inputs of the layers, as above, and count by value
#   ([chapter 10](10_energy.ipynb)).
# - **A membrane shortcut with spikes as input.** Symptom: silent blocks. Cause: a constant input of 1 charges a neuron
#   with $\tau = 2$ to 1/2, 3/4, 7/8, ... and never to $V_{th} = 1$. So with spikes of size 1 the neuron at the input of
#   such a block never fires. Cure: give it currents, as the position embedding does. The cell below this list shows the
#   silent neuron.
# - **Parts silenced only one at a time.** Symptom: every head seems useless, because the accuracy stays the same
#   without it. Cause: heads replace each other. Cure: silence pairs and groups as well.

# %%
ones = torch.ones(10, 1)  # a spike at every one of 10 time steps
assert se.LIF()(ones).sum() == 0 and se.LIF()(2 * ones).sum() == 10
print("spikes in 10 steps at input 1:", int(se.LIF()(ones).sum()))
print("spikes in 10 steps at input 2:", int(se.LIF()(2 * ones).sum()))

# %% [markdown]
# ## Exercises
#
# **13.1** Write `ChannelQKAttention`, Q-K attention with a channel gate: $A_c = \mathrm{SN}(\sum_n Q_n)$, one value for
# each feature, and $X' = A_c \odot K$. Write it as a subclass of `SpikingSelfAttention`, as above.


# %% tags=["exercise-1"]
class ChannelQKAttention(SpikingSelfAttention):
    """Q-K channel attention: SN(sum over tokens of Q) * K, then the projection."""

    ...


# %% tags=["check-1"]
with se.exercise("13.1"):
    torch.manual_seed(0)
    layer = ChannelQKAttention(64, 4)
    assert layer.qkv.out_features == 128, "without V the linear map is smaller"
    x = torch.randint(
        0, 3, (4, 2, 16, 64), generator=torch.Generator().manual_seed(0)
    ).float()
    seen = {}
    for name in ("q", "k", "attn"):
        getattr(layer, name).register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: (args[0], out)})
        )
    layer.proj.register_forward_pre_hook(
        lambda m, args: seen.update(masked=args[0])
    )
    out = layer(x)
    assert out.shape == x.shape and ((out == 0) | (out == 1)).all(), (
        "the layer gives spikes [T, B, N, D]"
    )
    assert set(seen) == {"q", "k", "attn", "masked"}, (
        "Q, K and the gate each need their neuron, and the projection comes last"
    )
    count, gate = seen["attn"]
    assert count.shape == (4, 2, 4, 1, 16), (
        "the gate needs one value for each feature of a head: what does it add up?"
    )
    assert torch.equal(count, seen["q"][1].sum(-2, keepdim=True)), (
        "look at what enters the neuron of the gate"
    )
    expected = (gate * seen["k"][1]).transpose(2, 3).flatten(3)
    assert seen["masked"].shape == expected.shape and torch.equal(
        seen["masked"], expected
    ), "look at what enters the projection: which spikes, and in which order?"

# %% [markdown]
# **13.2** Count. How many operations (additions of the sum, and masks) does the core of channel Q-K attention take in
# one block and time step? And what share of the operations of a whole SSA block, including its linear layers, does it
# save, since the block also has one matrix less? Return both.


# %% tags=["exercise-2"]
def channel_qk_savings(tokens, dim, heads):
    """(operations of the core, share of an SSA block's that is saved)"""
    ...


# %% tags=["check-2"]
with se.exercise("13.2"):
    answer = channel_qk_savings(196, 512, 8)
    assert answer is not None, "write channel_qk_savings first"
    assert len(answer) == 2, "return two numbers"
    counted = se.energy(
        se.spikformer("digits-2-64", attention="qk_channel"), images
    )
    core = sum(
        c.flops
        for c in counted.layers
        if c.layer in ("blocks.0.attn.gate", "blocks.0.attn.mask")
    )
    assert channel_qk_savings(64, 64, 4)[0] == core, (
        "the core of digits-2-64 (64 tokens, D = 64, 4 heads) takes another number"
    )
    # both blocks, counted
    whole = {
        name: sum(
            c.flops
            for c in se.energy(
                se.spikformer("digits-2-64", attention=name), images
            ).layers
            if c.layer.startswith("blocks.")
        )
        for name in ("ssa", "qk_channel")
    }
    share = 1 - whole["qk_channel"] / whole["ssa"]
    assert abs(channel_qk_savings(64, 64, 4)[1] - share) < 1e-9, (
        "the share of a block of digits-2-64 is another: count all its matrices, "
        "before and after"
    )
    ssa_block = 2 * 16 * 512 * 16 + 12 * 16 * 512**2
    short = 1 - (2 * 16 * 512 + 11 * 16 * 512**2) / ssa_block
    assert abs(channel_qk_savings(16, 512, 8)[1] - short) < 1e-9, (
        "16 tokens are fewer than d = 64: what does SSA take then?"
    )

# %% [markdown]
# **13.3** In which networks do all layers receive only spikes? For a given network and images, return the names of all
# convolutions and linear layers with an input value other than 0 and 1. Leave out the first convolution (`sps.0.conv`)
# and the head.


# %% tags=["exercise-3"]
def not_binary(model, images):
    """Sorted names of the layers whose input holds something else than 0 and 1."""
    ...


# %% tags=["check-3"]
with se.exercise("13.3"):
    x, _ = se.data.load("digits").val.fetch(torch.arange(8), None)
    packaged = se.load_pretrained("digits-2-64")
    found = not_binary(packaged, x)
    assert found is not None, "write not_binary first"
    expected = [
        f"blocks.{i}.{n}" for i in (0, 1) for n in ("attn.qkv", "mlp.hidden.linear")
    ]
    assert found == expected, "in the packaged network other layers are not binary"
    torch.manual_seed(0)
    shortcut = settle(se.spikformer("digits-2-64", residual="membrane"), x)
    assert not_binary(shortcut, x) == [], (
        "with membrane shortcuts all inputs are spikes"
    )
    # halves, and negative numbers, are neither 0 nor 1
    for factor in (0.5, -1.0):
        with se.intervene(shortcut, {"blocks.1.mlp_in": lambda s, f=factor: f * s}):
            assert not_binary(shortcut, x) == ["blocks.1.mlp.hidden.linear"], (
                f"inputs of 0 and {factor} are not binary"
            )
    assert not any(
        m._forward_hooks or m._forward_pre_hooks for m in packaged.modules()
    ), "leave nothing behind on the network"

# %% [markdown]
# ## Recap
#
# SDSA and Q-K attention replace matrix products by a gate and a mask. They take 2 N D operations instead of SSA's 2 N D
# min(N, d), but both are a small share of a block's operations at the sizes of the paper's networks. Without a scale
# the gate is an OR, which is nearly always open with many tokens or high rates. With the membrane shortcut all layers
# receive binary inputs, and the residual stream holds real numbers. An intervention shows what a part of a trained
# network does to the answer. To find out how useful a change is, make a fair comparison on a task that depends on it.
#
# This was the last chapter. Back to [the tour](00_tour.ipynb), or on to your own variant. Answers:
# [solutions](solutions/13_beyond.ipynb).
