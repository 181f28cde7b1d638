# %% [markdown]
# # 07 · Assemble and verify
#
# *Run time 30 s on one CPU core · after chapters 03, 05 and 06 · no internet access, no GPU*
#
# This chapter puts all parts together in about 90 lines. Then it asks how you can know that the network is correct. A
# spiking transformer with two axes swapped can have the right shapes and run without an error message. Checks of a few
# lines find such faults. They are the main subject of this chapter. [Chapter 08](08_train.ipynb) trains the network
# that you build here.
#
# ![The network's parts, from image to answer; this chapter is about the whole network](../docs/images/network_map/07.svg)
#
# ## What you will learn
# - assemble a Spikformer from its parts, equal to the package's in every spike and every gradient
# - count its parameters exactly by hand, and say where other counts come from
# - check any spiking network for leaks between samples, between calls, between tokens and backward in time
# - find a swap of T and B that the shapes do not show

# %% tags=["setup"]
import math
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

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
from torch import Tensor, nn

from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# The figure shows every layer of `cifar10-4-384` up to the end of its first block. The length of a bar is the number of
# values of the layer for one image in one time step. The label of a bar is the shape: channels, height and width in SPS
# (before the pool); heads, tokens and width in attention; tokens and width elsewhere. Blocks 1 to 3 repeat block 0. The
# color is the [value set](../docs/glossary.md#value-set). The largest layer is `sps.2`, with 196,608 values. Next come
# `sps.1`, `sps.3` and the hidden layer of the MLP, each with half as many. Only the residual stream holds integers.

# %% tags=["fold"]
big = se.spikformer("cifar10-4-384").eval()
with torch.no_grad(), se.record(big) as rec:
    # T = 4, B = 2; untrained: shapes and value sets need no training
    big(torch.rand(2, 3, 32, 32))

kinds = {
    "spikes": ("{0, 1}", style.SPIKE, ""),
    "residual": ("integers", style.MEMBRANE, "...."),
    "scores": ("multiples of s", "#F6D9A0", "////"),
}
layers = [r for r in rec.layers() if r.name.startswith(("sps", "blocks.0"))]
fig, ax = plt.subplots(figsize=(9.5, 5))
for row, r in enumerate(layers):
    _, color, hatch = kinds[r.kind]
    size = r.values[0, 0].numel()
    ax.barh(row, size, color=color, hatch=hatch, edgecolor=style.GREY, height=0.72)
    ax.text(
        size + 1800,
        row,
        " x ".join(map(str, r.values.shape[2:])),
        va="center",
        fontsize=10,
    )
ax.set_yticks(range(len(layers)), [r.name for r in layers])
ax.set(
    ylim=(len(layers) - 0.4, -0.6),
    xlim=(0, 238_000),
    xlabel="numbers, one image and time step",
)
ax.xaxis.set_major_formatter(lambda x, _: f"{int(x):,}")
handles = [
    plt.Rectangle((0, 0), 1, 1, facecolor=c, hatch=k, edgecolor=style.GREY)
    for _, c, k in kinds.values()
]
ax.legend(
    handles,
    [name for name, _, _ in kinds.values()],
    loc="center right",
    title="value set",
)
ax.set_title("atlas of shapes: SPS and block 0 of cifar10-4-384, T = 4")
shapes = {r.name: tuple(r.values.shape) for r in rec.layers()}
assert shapes["sps.0"] == (4, 2, 48, 32, 32)
assert shapes["blocks.0.attn.scores"] == (4, 2, 12, 64, 64)
assert shapes["blocks.3.residual"] == (4, 2, 64, 384) and len(layers) == 14
se.plot.show(
    fig,
    "Horizontal bars for the layers of SPS and the first encoder block of "
    "cifar10-4-384, with their shapes. The widest is the third stage of SPS, "
    "192 x 32 x 32; its neighbors and the hidden layer of the MLP, 64 x 1536, have "
    "half of that; attention scores, 12 x 64 x 64, come next; queries, keys and "
    "values are narrow, 12 x 64 x 32.",
)

# %% [markdown]
# ## Shapes and values
#
# Here and below, a number in parentheses is an equation of the paper.
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | image, frames | `[B, C, H, W]`, `[T, B, C, H, W]` | reals | input; an image is the same in all T steps |
# | after SPS | `[T, B, D, H/P, W/P]` | {0, 1, 2} | features plus position (6); P is the patch size |
# | tokens, stream | `[T, B, N, D]` | integers | N = H W / P^2 |
# | Q, K, V | `[T, B, h, N, d]` | {0, 1} | heads, d = D / h |
# | scores | `[T, B, h, N, N]` | multiples of $s$ | $Q K^T s$ |
# | logits | `[B, K]` | reals | head of the mean over tokens and time (9) |

# %% [markdown]
# ## The network in ninety lines
#
# First we write the neuron as in the paper: charge, fire on `>=`, reset (equations 1 to 3). The membrane is a local
# variable, so it disappears after the call. The spike has the surrogate gradient of
# [chapter 02](02_surrogate_gradient.ipynb), and the reset is detached, so the network can be trained.


# %% tags=["network"]
class Step(torch.autograd.Function):
    """1 where x >= 0; its derivative is that of sigma(4 x)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        sigma = torch.sigmoid(4 * ctx.saved_tensors[0])
        return gradient * 4 * sigma * (1 - sigma)


class LIF(nn.Module):
    def __init__(self, v_threshold: float = 1.0):
        super().__init__()
        self.v_threshold = v_threshold

    def forward(self, current: Tensor) -> Tensor:  # [T, ...] -> {0, 1} [T, ...]
        v, spikes = torch.zeros_like(current[0]), []
        for x in current:
            h = v + (x - v) / 2  # (1), tau = 2
            s = Step.apply(h - self.v_threshold)  # (2)
            v = h * (1 - s.detach())  # (3)
            spikes.append(s)
        return torch.stack(spikes)


# %% [markdown]
# Next come two layers with weights: a convolution stage of [SPS](../docs/glossary.md#sps) (10), and a linear map of the
# tokens. For layers with weights, T and B are flattened into one axis. For neurons, T is a separate first axis.


# %% tags=["network"]
class Stage(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, pool: bool):
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False)
        self.bn, self.neuron, self.pool = nn.BatchNorm2d(dim_out), LIF(), pool

    def forward(self, x: Tensor) -> Tensor:
        t, b = x.shape[:2]
        current = self.bn(self.conv(x.flatten(0, 1)))  # [T B, D_out, H, W]
        x = self.neuron(current.unflatten(0, (t, b)))  # [T, B, D_out, H, W]
        if self.pool:
            x = F.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, (t, b))
        return x


class Tokenwise(nn.Module):
    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim_out)
        self.bn, self.neuron = nn.BatchNorm1d(dim_out), LIF()

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.neuron(self.bn(y.flatten(0, 2)).view_as(y))  # [T, B, N, D_out]


# %% [markdown]
# The rest is attention, block and network. The modules have the package's names, so we can copy weights by name.


# %% tags=["network"]
class SSA(nn.Module):
    def __init__(self, dim: int, heads: int, scale: float, bias: bool):
        super().__init__()
        self.heads, self.scale = heads, scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.bn = nn.BatchNorm1d(3 * dim)
        self.q, self.k, self.v = LIF(), LIF(), LIF()
        self.attn = LIF(v_threshold=0.5)
        self.proj = Tokenwise(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(x)
        y = self.bn(y.flatten(0, 2)).view_as(y)
        y = y.unflatten(-1, (3, self.heads, -1))  # [T, B, N, 3, h, d]
        q, k, v = y.permute(3, 0, 1, 4, 2, 5)  # each [T, B, h, N, d]
        q, k, v = self.q(q), self.k(k), self.v(v)
        x = self.attn(q @ k.transpose(-2, -1) @ v * self.scale)
        return self.proj(x.transpose(2, 3).flatten(3))  # [T, B, N, D]


class Block(nn.Module):
    def __init__(self, c: se.SpikformerConfig):
        super().__init__()
        self.attn = SSA(c.dim, c.heads, c.scale or 0.125, c.qkv_bias)
        wide = c.mlp_ratio * c.dim
        layers = {"hidden": Tokenwise(c.dim, wide), "out": Tokenwise(wide, c.dim)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(x) + x  # (7)
        return self.mlp(x) + x  # (8)


class Network(nn.Module):
    def __init__(self, c: se.SpikformerConfig):
        super().__init__()
        widths = [c.in_channels, c.dim // 8, c.dim // 4, c.dim // 2, c.dim]
        stages = {
            str(i): Stage(widths[i], widths[i + 1], c.pool[i]) for i in range(4)
        }
        self.sps = nn.ModuleDict(stages | {"rpe": Stage(c.dim, c.dim, pool=False)})
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.head, self.time_steps = nn.Linear(c.dim, c.num_classes), c.time_steps

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.expand(self.time_steps, *x.shape)  # a still image
        for i in range(4):
            x = self.sps[str(i)](x)  # (4)
        x = x + self.sps["rpe"](x)  # (5), (6)
        x = x.flatten(3).transpose(2, 3)  # [T, B, N, D]
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(2).mean(0))  # (9): [B, K]


# %% [markdown]
# ## Equal on every spike
#
# **Predict before you run.** Take a fresh network of the package, copy its weights into ours, set both to evaluation
# mode and compare all spikes on random images. All spikes agree. How much does this prove?

# %% tags=["predict"]
config = se.SpikformerConfig(dim=32, depth=2, heads=4, num_classes=5)
fresh = se.Spikformer(config).eval()
with torch.no_grad(), se.record(fresh) as rec:
    fresh(torch.randn(3, 4, 3, 16, 16))
rates = {r.name: float(r.spikes.mean()) for r in rec.layers("spikes")}
silent = [name for name, rate in rates.items() if rate == 0]
print(f"{len(silent)} of {len(rates)} layers never fire")
assert len(silent) > len(rates) / 2

# %% [markdown]
# <details><summary>Answer</summary>
#
# Almost nothing. In evaluation mode batch norm uses running statistics, and in a fresh network these are mean 0 and
# variance 1. Sparse spikes cause small currents, and batch norm with these statistics does not enlarge them. So the
# membranes never reach the threshold: only `sps.0`, which reads the image, fires. Silent layers always agree. A
# comparison must first check that neurons fire.
#
# </details>
#
# We make the network fire: we choose larger weights and biases for the batch norms, and take the running statistics
# from one batch.


# %%
def norms_of(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return [module for module in model.modules() if isinstance(module, kinds)]


def awaken(model: nn.Module, x: Tensor) -> nn.Module:
    """Make an untrained network fire in evaluation mode."""
    norms = norms_of(model)
    for norm in norms:
        nn.init.uniform_(norm.weight, 1.5, 2.5)
        nn.init.uniform_(norm.bias, 0.6, 1.4)
        norm.momentum = 1.0  # running statistics = those of the next batch
    with torch.no_grad():
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def store(seen: dict, name: str, module: nn.Module, inputs, out: Tensor) -> None:
    seen[name] = out


def spikes_of(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the spikes of every neuron layer by name."""
    seen, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (LIF, se.LIF)):
            keep = partial(store, seen, name.removesuffix(".neuron"))
            hooks.append(module.register_forward_hook(keep))
    with torch.no_grad():
        logits = model(x)
    for hook in hooks:
        hook.remove()
    return logits, seen


# %% [markdown]
# The comparison runs in float64, so that rounding changes no spike. It uses $T \ne B$, frames and still images, and both
# backends of the package's neuron.

# %%
T, B = 3, 4
frames = torch.randn(T, B, 3, 16, 16, dtype=torch.float64)
package = awaken(se.Spikformer(config).double(), frames)
ours = Network(config).double()
ours.load_state_dict(package.state_dict())
ours.eval()
for backend in ("fused", "snntorch"):
    theirs = se.Spikformer(replace(config, backend=backend)).double().eval()
    theirs.load_state_dict(package.state_dict())
    for name, x in {"frames": frames, "images": frames[0]}.items():
        logits, spikes = spikes_of(ours, x)
        expected, expected_spikes = spikes_of(theirs, x)
        assert list(spikes) == list(expected_spikes) and len(spikes) == 19
        for layer, values in expected_spikes.items():
            assert 0.02 < values.mean() < 0.8, f"{layer} is silent or saturated"
            assert torch.equal(spikes[layer], values), f"{layer}, {backend}, {name}"
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
        count = sum(values.numel() for values in spikes.values())
        print(f"{backend:8} {name}: {count:,} values of 19 layers, all equal")

# %% [markdown]
# The same with trained weights and real digits:

# %%
trained = se.load_pretrained("digits-2-64").double()
digits = se.data.load("digits").val.fetch(torch.arange(6), None)[0].double()
ours_trained = Network(trained.config).double().eval()
ours_trained.load_state_dict(trained.state_dict())
logits, spikes = spikes_of(ours_trained, digits)
expected, expected_spikes = spikes_of(trained, digits)
for layer, values in expected_spikes.items():
    assert torch.equal(spikes[layer], values), layer
torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
print(f"digits-2-64: {sum(v.numel() for v in spikes.values()):,} values, all equal")

# %% [markdown]
# ## Equal in every gradient
#
# Equal spikes do not show that a network learns. With a plain comparison, `h >= v_threshold`, the spikes above would
# all be the same. The gradients would not.
#
# **Predict before you run.** The network has 49 tensors of parameters. With `Step`, all get a gradient. How many get
# one with the plain comparison?


# %% tags=["predict"]
def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of the loss on the frames, by name of the parameter."""
    model.train().zero_grad()
    F.cross_entropy(model(frames), torch.arange(B)).backward()
    found = model.named_parameters()
    return {name: p.grad for name, p in found if p.grad is not None}


def plain(x: Tensor) -> Tensor:
    return (x >= 0).to(x.dtype)


mine, theirs_too = gradients_of(ours), gradients_of(package)
with patch.object(Step, "apply", plain):
    without = gradients_of(ours)
print(f"{len(mine)} tensors get a gradient")
print(f"with the plain comparison: {', '.join(without)}")
gap = max(float((mine[n] - g).abs().max()) for n, g in theirs_too.items())
print(f"largest difference from the package's gradients: {gap:.0e}")
assert len(mine) == len(theirs_too) == 49 and len(without) == 2 and gap < 1e-10
# batch norm subtracts a bias of the layer before it, so that bias has gradient 0
matter = [n for n in mine if not n.endswith(("linear.bias", "qkv.bias"))]
assert all(mine[name].abs().max() > 1e-6 for name in matter)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Two: the weight and the bias of the head. The derivative of the comparison is zero, so the gradient stops at the last
# neuron, and only the head lies behind it. The other 47 tensors would keep their initial values for the whole training.
#
# </details>

# %% [markdown]
# ## Golden numbers
#
# Two implementations by the same authors can share an error, and both can change at the same time. A golden test
# compares the network with stored numbers. Weights and input come from a formula, not from a random generator, so they
# are the same on every machine. The spikes of every layer are counted; counts are whole numbers, so there is no
# rounding.


# %%
def fill(model: nn.Module) -> Tensor:
    """Weights, statistics and frames [T, B, C, H, W] from a formula."""

    def wave(step: float, shift: int, shape) -> Tensor:
        numbers = torch.arange(math.prod(shape), dtype=torch.float64)
        return torch.sin(step * numbers + shift).view(shape)

    with torch.no_grad():
        for k, (name, p) in enumerate(model.named_parameters()):
            is_norm = ".bn." in name
            middle = 2 if is_norm and name.endswith("weight") else float(is_norm)
            p.copy_(middle + 0.4 * wave(12.9898, k, p.shape))
        x = wave(78.233, 0, (3, 4, 3, 16, 16))
        for norm in norms_of(model):
            norm.momentum = 1.0
        model.train()(x)
    model.eval()
    return x


golden = [
    *(5417, 8168, 16782, 7451, 1952),  # SPS
    *(1871, 1922, 1946, 1890, 2008, 7420, 1816),  # block 0
    *(1885, 1863, 1804, 1781, 1975, 7345, 1947),  # block 1
]
for model in (se.Spikformer(config).double(), Network(config).double()):
    x = fill(model)
    counts = [int(values.sum()) for values in spikes_of(model, x)[1].values()]
    assert counts == golden, f"spikes have changed: {counts}"
print(f"{sum(golden):,} spikes in {len(golden)} layers, equal to the stored counts")

# %% [markdown]
# ## Parameters, to the digit
#
# For `cifar10-4-384`: $D = 384$, $L = 4$, $C = 3$, $K = 10$. A 3 x 3 convolution has 9 weights for each pair of
# channels and no bias. A batch norm has a weight and a bias for each feature. Q, K, V and all other linear maps have
# biases.

# %%
D, L, C, K = 384, 4, 3, 10
widths = [C, D // 8, D // 4, D // 2, D, D]  # four stages and the position embedding
pairs = zip(widths[:-1], widths[1:], strict=True)
table = {
    "SPS, convolutions": sum(9 * a * b for a, b in pairs),
    "SPS, batch norms": sum(2 * b for b in widths[1:]),
    "Q, K, V": L * (3 * D * D + 3 * D),
    "projection": L * (D * D + D),
    "MLP": L * (D * 4 * D + 4 * D + 4 * D * D + D),
    "batch norms of blocks": L * 2 * (3 * D + D + 4 * D + D),
    "head": D * K + K,
}
for part, count in table.items():
    print(f"{part:22} {count:>10,}")
print(f"{'all':22} {sum(table.values()):>10,}")
assert sum(table.values()) == sum(p.numel() for p in big.parameters())
assert sum(table.values()) == se.preset("cifar10-4-384").parameters

# %% [markdown]
# The next cell compares all presets with the package's table and with the paper's numbers (in millions, for ImageNet
# and CIFAR-10). It builds our network on PyTorch's `meta` device, which needs no memory. The paper gives two decimals,
# some rounded and some truncated, so the numbers agree to 0.01 M.

# %%
paper = {
    "cifar10-4-256": 4.15,
    "cifar10-2-384": 5.76,
    "cifar10-4-384": 9.32,
    "imagenet-8-384": 16.81,
    "imagenet-6-512": 23.37,
    "imagenet-8-512": 29.68,
    "imagenet-10-512": 36.01,
    "imagenet-8-768": 66.34,
}
# what the official models sum to
official = {"cifar10-4-384": 9_330_874, "imagenet-8-512": 29_705_768}
print(
    f"{'preset':18} {'counted':>11} {'paper':>8} {'with layers never called':>25}"
)
for line in se.list_models():
    with torch.device("meta"):
        counted = sum(p.numel() for p in Network(line.config).parameters())
    # DVS128 Gesture: s is a parameter, one a block
    counted += line.config.depth * line.config.learn_scale
    assert counted == line.parameters
    if line.name in paper:
        assert abs(counted / 1e6 - paper[line.name]) < 0.01
    c, tokens = line.config, (line.image_size // line.config.patch_size) ** 2
    never = c.depth * 4 * c.dim  # norm1 and norm2 of each block
    # its model for event frames also builds norm and pos_embed
    if c.in_channels == 2:
        never += 2 * c.dim + tokens * c.dim
    assert line.name not in official or counted + never == official[line.name]
    published = f"{paper[line.name]:.2f} M" if line.name in paper else ""
    print(f"{line.name:18} {counted:11,} {published:>8} {counted + never:25,}")

# %% [markdown]
# For the networks of the paper, the last column is what `sum(p.numel() for p in model.parameters())` gives in the
# official code. (The digits networks, `cifar10-2-128` and `nmnist-2-64` are ours.) The official code builds two layer
# norms in each block and never calls them. Its model for event frames also builds one more norm at the end and a table
# of positions. These layers are in its checkpoints, but they get no gradient and do not change the output. The guide
# [official checkpoints](../docs/guides/official_checkpoints.md) says how to load one.

# %% [markdown]
# ## Checks that a loss curve cannot replace
#
# Every correct Spikformer has the following four properties, whether it is trained or not. Each check needs only a few
# lines of code and can find real errors.
#
# **State never leaks.** Two calls on the same input agree, whatever was called in between. The call in between is
# necessary: if a network keeps its state, this call changes the state.

# %%
pooled = se.Spikformer(replace(config, qk_pool=True)).double()
nets = {
    "ours": ours,
    "package": package,
    "package with snnTorch's loop": theirs,
    "package with pooled Q and K": pooled,
}
awaken(pooled, frames)
for net in (ours, package):
    net.load_state_dict(theirs.state_dict())  # after the gradients in training mode
    net.eval()

for name, net in nets.items():
    for x in (frames, frames[0]):
        first, first_spikes = spikes_of(net, x)
        # the same shape: a kept state would fit the next call
        spikes_of(net, 3 * x.flip(-4))
        spikes_of(net, x[..., :8, :8])  # and another shape
        again, again_spikes = spikes_of(net, x)
        assert torch.equal(first, again), f"{name}: a call remembers the one before"
        for layer, values in first_spikes.items():
            assert torch.equal(values, again_spikes[layer]), f"{name}: {layer}"
print("two calls agree:", "; ".join(nets))

# %% [markdown]
# **Batch independence.** In evaluation mode a sample's spikes depend only on that sample. If we shuffle the batch, the
# spikes are shuffled in the same way. Logits may differ in the last bit, because a matrix product may sum in another
# order, but spikes must be equal.

# %%
order = torch.tensor([2, 0, 3, 1])
for name, net in nets.items():
    for x in (frames, frames[0]):
        logits, spikes = spikes_of(net, x)
        shuffled, shuffled_spikes = spikes_of(net, x.index_select(-4, order))
        alone, alone_spikes = spikes_of(net, x.narrow(-4, 1, 1))
        assert logits.std(0).max() > 0.01, "all samples have the same logits"
        assert (shuffled - logits[order]).abs().max() < 1e-12, f"{name}: order"
        assert (alone - logits[1:2]).abs().max() < 1e-12, f"{name}: other samples"
        for layer, values in spikes.items():
            message = f"{name}: {layer} depends on other samples"
            assert torch.equal(shuffled_spikes[layer], values[:, order]), message
            assert torch.equal(alone_spikes[layer], values[:, 1:2]), message
print("samples do not influence each other:", "; ".join(nets))

# %% [markdown]
# **Time flows forward.** Change the last frame of one sample. Earlier spikes and spikes of other samples must not
# change.

# %%
changed = frames.clone()
changed[2, 1] = -changed[2, 1]
for name, net in nets.items():
    before, after = spikes_of(net, frames)[1], spikes_of(net, changed)[1]
    for layer in before:
        where = (before[layer] != after[layer]).flatten(2).any(2)  # [T, B]
        wanted = torch.zeros(T, B, dtype=torch.bool)
        wanted[2, 1] = True
        assert torch.equal(where, wanted), f"{name}: {layer} changed elsewhere"
print("time flows forward:", "; ".join(nets))

# %% [markdown]
# **Only one part of a block mixes tokens.** Change one token of a block's input.
#
# **Predict before you run.** Token 4 of 16 changes. Which tokens of the MLP's output can change, and which of the
# attention's?

# %% tags=["predict"]
stream = torch.randint(0, 3, (T, B, 16, 32), dtype=torch.float64)
touched = stream.clone()
touched[:, 0, 4] = 2 - touched[:, 0, 4]
for name, block in {"ours": ours.blocks[0], "package": package.blocks[0]}.items():
    with torch.no_grad():
        for part in (block.mlp, block.attn):
            differs = (part(stream) != part(touched)).any(3).any(0)  # [B, N]
            tokens = differs[0].nonzero().flatten().tolist()
            kind = "MLP" if part is block.mlp else "SSA"
            print(f"{name:8} {kind}: {len(tokens)} of 16 tokens change: {tokens}")
            assert not differs[1:].any(), "another sample changed"
            assert (tokens == [4]) if part is block.mlp else len(tokens) > 4

# %% [markdown]
# <details><summary>Answer</summary>
#
# The MLP processes each token by itself: only token 4 can change. Attention connects every token with every other, so
# all tokens can change. A token stays the same if the change of $Q K^T V s$ is too small to change its spikes. Here
# this happens to token 11.
#
# </details>

# %% [markdown]
# ## A planted fault: T and B swapped
#
# Here is the package's neuron with one wrong line. Before the neuron a reshape exchanges the sizes T and B without
# moving the values, and after it another reshape restores the shape. The output has the right shape, but the neuron
# runs over the samples of the batch as if they were time steps.


# %%
class MixedUp(se.LIF):
    def forward(self, current: Tensor) -> Tensor:
        t, b, *rest = current.shape
        return super().forward(current.reshape(b, t, *rest)).reshape(current.shape)


# %% [markdown]
# We make two copies of the trained network. In one of them three stages of SPS get the wrong neuron. Both copies are
# then trained further on the same 480 digits in the same order, in batches of 32.
#
# **Predict before you run.** Does the loss of the wrong network go down? What does its accuracy depend on?

# %% tags=["predict", "nbval-ignore-output"]
splits = se.data.load("digits", samples_per_class=48)
images, labels = splits.val.fetch(torch.arange(len(splits.val)), None)
losses, accuracy, finished = {}, {}, {}
for name in ("right", "T and B mixed up"):
    net = finished[name] = se.load_pretrained("digits-2-64")
    if name != "right":
        for stage in (1, 2, 3):
            net.sps[stage].neuron = MixedUp()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    losses[name] = []
    for epoch in range(3):
        net.train()
        loader = se.data.batches(splits.train, 32, train=True, epoch=epoch)
        for batch, targets in loader:
            loss = F.cross_entropy(net(batch), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
    net.eval()
    for size in (1, 32, 180):
        with torch.no_grad():
            answers = torch.cat(
                [net(part).argmax(1) for part in images.split(size)]
            )
        accuracy[name, size] = 100 * float((answers == labels).float().mean())
    start, end = sum(losses[name][:5]) / 5, sum(losses[name][-5:]) / 5
    print(
        f"{name}: loss of the first five steps {start:.2f}, of the last {end:.2f}"
    )
    for size in (1, 32, 180):
        print(f"  in batches of {size:3}: {accuracy[name, size]:.1f} % are right")
right = [accuracy["right", size] for size in (1, 32, 180)]
wrong = [accuracy["T and B mixed up", size] for size in (1, 32, 180)]
assert max(right) - min(right) < 0.1 and min(right) > max(wrong)
assert wrong[0] < wrong[1] - 2 and end < start

# %% [markdown]
# <details><summary>Answer</summary>
#
# The loss goes down, from 0.50 to 0.29, and the wrong network learns: in batches of 32, the size that it was trained
# with, it reads 95.6 % of the digits, nearly as many as the right one (97.2 %). But its answer for an image depends on
# the other images of the batch. If images come one by one, the network computes something that it was not trained for,
# and reads only 89.4 %. The accuracy of the right network does not depend on the batch.
#
# </details>
#
# This error has happened in practice. In the public code of QKFormer the last neuron layer of attention got `[T B,
# ...]` instead of `[T, B, ...]`. So it ran over all samples as if they were time steps. [A reader
# reported](https://github.com/zhouchenlin2096/QKFormer/issues/14) that its trained ImageNet model HST-10-384 scores
# 78.7 % in batches of 32, but 74.2 % with images one by one. With the line repaired it scores 74.2 %, too.
#
# The shuffle check finds the error in a second, without any training:

# %%
order = torch.randperm(180, generator=torch.Generator().manual_seed(1))
for name, net in finished.items():
    with torch.no_grad():
        moved = float((net(images[order]) - net(images)[order]).abs().max())
    agree = moved < 1e-4
    print(f"{name}: logits of a shuffled batch are the same: {agree}")
    assert agree == (name == "right")

# %% [markdown]
# ## Pitfalls
#
# - **T and B swapped in a reshape.** Symptom: accuracy depends on the batch size of the evaluation. Cause: `reshape` or
#   `view` with the axes in another order than in memory; with $T = B$ all shapes are right. Cure: use `flatten`
#   and `unflatten` of neighboring axes only, test with $T \ne B$, and use the shuffle check.
# - **State not reset between batches.** Symptom: the same batch gives other results at the start than later. Cause: a
#   neuron that stores its membrane in the module. Cure: keep the membrane in a local variable, as here, or reset it
#   before every call.
# - **`>` instead of `>=`.** Symptom: the attention neuron fires less often than in the official network. Cause:
#   $QK^TVs$ lies on a grid, and the membrane often equals the threshold exactly. The next cell counts how often this
#   happens in the trained network.

# %%
with torch.no_grad(), se.record(trained, membranes=True) as rec:
    trained(digits)
for i in range(2):
    layer = rec[f"blocks.{i}.attn.attn"]
    ties = float((layer.membrane == layer.v_threshold).sum() / layer.spikes.sum())
    print(f"{layer.name}: {100 * ties:.0f} % of the spikes come from an exact tie")
    fires = layer.membrane >= layer.v_threshold
    assert ties > 0.001 and torch.equal(layer.spikes, fires.double())

# %% [markdown]
# - **Two silent networks compared.** Symptom: all comparisons agree. Cure: assert a minimum firing rate in the
#   comparison.
# - **Checks in training mode.** In training mode batch norm uses all samples of the batch on purpose. Batch
#   independence holds only in `eval()`.

# %% [markdown]
# ## Exercises
#
# **7.1 Parameters of any preset.** Write the formula for every configuration, from `dim`, `depth`, `in_channels`,
# `num_classes`, `mlp_ratio`, `qkv_bias`, and `learn_scale` (one more number for each block).


# %% tags=["exercise-1"]
def parameters(c: se.SpikformerConfig) -> int:
    """Number of trainable parameters, from the sizes alone."""
    ...


# %% tags=["check-1"]
with se.exercise("7.1"):
    assert parameters(se.preset("cifar10-4-384").config) is not None, (
        "write parameters first"
    )
    for line in se.list_models():
        off = parameters(line.config) - line.parameters
        assert off == 0, (
            f"{line.name}: off by {off:,}; print se.preset('{line.name}').config"
        )
    slim = se.SpikformerConfig(dim=32, depth=3, heads=4, mlp_ratio=2)
    count = sum(p.numel() for p in se.Spikformer(slim).parameters())
    off = parameters(slim) - count
    assert off == 0, f"dim=32, depth=3, heads=4, mlp_ratio=2: off by {off:,}"

# %% [markdown]
# **7.2 Find the mix-up.** Write a function that tells whether any sample of a batch influences another one. The shuffle
# check is not enough: a network that subtracts the mean of its batch passes it.


# %% tags=["exercise-2"]
def samples_interact(model: torch.nn.Module, frames: torch.Tensor) -> bool:
    """Whether logits of a sample depend on another; frames are [T, B, C, H, W]."""
    ...


# %% tags=["check-2"]
with se.exercise("7.2"):
    clips = torch.randn(3, 5, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    good = se.load_pretrained("digits-2-64")
    assert samples_interact(good, clips) is not None, "write samples_interact first"
    assert not samples_interact(good, clips), (
        "the packaged network is right: compare like with like, in eval()"
    )

    def plant(path: str, wrong) -> torch.nn.Module:
        """A copy of the network in which the output of one module is rearranged."""
        broken = se.load_pretrained("digits-2-64")
        broken.get_submodule(path).register_forward_hook(
            lambda module, inputs, out: wrong(out)
        )
        return broken

    def swapped(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(0, 1).reshape(x.shape)  # T and B

    def looks(reader: int, read: int):
        """A fault by which one sample of the batch looks at another one."""

        def wrong(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[:, reader] *= x[:, read]
            return x

        return wrong

    def mean_free(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)  # symmetric: a shuffle cannot see it

    for path in (
        "sps.1.neuron",
        "blocks.0.attn.q",
        "blocks.1.attn.proj",
        "blocks.1.mlp.out",
    ):
        assert samples_interact(plant(path, swapped), clips), (
            f"T and B are swapped after {path}, and nothing was found"
        )
    for reader in range(5):
        read = (reader + 2) % 5
        broken = plant("sps.3.neuron", looks(reader, read))
        assert samples_interact(broken, clips), (
            f"sample {reader} depends on sample {read}, and nothing was found"
        )
    assert samples_interact(plant("head", mean_free), clips), (
        "the mean of the batch is subtracted, and nothing was found"
    )

# %% [markdown]
# **7.3 The forgotten reset.** Write a function that tells whether a neuron, called with currents `[T, ...]`, still
# depends on an earlier call. The caller of your function chooses the currents. Note that some currents leave the
# membrane at zero.


# %% tags=["exercise-3"]
def remembers(neuron: torch.nn.Module, current: torch.Tensor) -> bool:
    """Whether a call depends on the calls before it."""
    ...


# %% tags=["check-3"]
with se.exercise("7.3"):

    class Forgetful(torch.nn.Module):
        """Keeps its membrane between calls of one shape."""

        def __init__(self, reset: bool):
            super().__init__()
            self.reset, self.v = reset, None

        def forward(self, current: torch.Tensor) -> torch.Tensor:
            if self.reset or self.v is None or self.v.shape != current[0].shape:
                self.v = torch.zeros_like(current[0])
            spikes = []
            for x in current:
                h = (self.v + x) / 2
                spikes.append((h >= 1).to(h.dtype))
                self.v = h * (1 - spikes[-1])
            return torch.stack(spikes)

    # strong: fires always, so nothing is left over
    weak, strong = torch.full((4, 3), 0.7), torch.full((4, 3), 2.5)
    assert remembers(Forgetful(reset=True), weak) is not None, (
        "write remembers first"
    )
    for current in (weak, strong, torch.zeros(4, 3)):
        assert not remembers(Forgetful(reset=True), current), (
            "this neuron starts from zero at every call"
        )
        assert not remembers(se.LIF(), current), (
            "the package's neuron starts from zero at every call"
        )
        assert remembers(Forgetful(reset=False), current), (
            f"a kept membrane was not found, with currents of {current[0, 0]:.1f}: "
            "is it certain that your calls leave one?"
        )

# %% [markdown]
# ## Recap
#
# - A Spikformer takes about ninety lines. For layers with weights T and B are flattened into one axis, for neurons they
#   are separate.
# - Without a surrogate gradient only the head would learn: 2 of 49 tensors.
# - You can count the parameters exactly by hand. The official count is higher because of layers that are never called.
# - Compare two networks only where both fire, with $T \ne B$ and in float64.
# - Four checks find errors that the loss does not show: two calls on the same input, shuffled batches, changed frames
#   and changed tokens.
#
# Next: [chapter 08](08_train.ipynb) trains this network. Answers: [solutions](solutions/07_assemble_and_verify.ipynb).
