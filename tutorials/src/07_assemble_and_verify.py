# %% [markdown]
# # 07 · Assemble and verify
#
# *Run time 30 s on one CPU core · after chapters 03, 05 and 06 · no internet access, no GPU*
#
# This chapter puts all parts together in about 70 lines. Then it asks how you can know that the network is correct. A
# spiking transformer with a swapped axis or a forgotten reset has the right shapes, and its loss goes down. A few
# checks of one or two lines find such errors. They are the main subject of this chapter.
#
# ## What you will learn
# - assemble a Spikformer from its parts, equal to the package's on every spike
# - count its parameters exactly by hand, and say where other counts come from
# - read and write the layout of official checkpoints
# - check any spiking network for leaks between samples, between calls, between tokens and backwards in time
# - find a swap of T and B that you cannot see in shapes, loss and accuracy

# %% tags=["setup"]
from collections import OrderedDict
from functools import partial
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
from torch import Tensor, nn

from spikformer_edu.attention import SpikingLinear, norm_tokens
from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# The figure shows every layer of `cifar10-4-384` up to the end of its first block. A bar is the number of values of the
# layer for one image in one time step. Its label is the shape: channels, height and width in SPS (before its pool),
# then heads, tokens and width, or tokens and width. Blocks 1 to 3 repeat block 0. The colour is the
# [value set](../docs/glossary.md#value-set). The largest layers are those of SPS before it pools and the hidden layer
# of the MLP. Only the residual stream holds integers.

# %%
big = se.spikformer("cifar10-4-384").eval()
with torch.no_grad(), se.record(big) as rec:
    # T = 4, B = 2; untrained: shapes and value sets need no training
    big(torch.rand(2, 3, 32, 32))

kinds = {"spikes": ("{0, 1}", style.SPIKE, ""), "residual": ("integers", style.MEMBRANE, "...."),
         "scores": ("multiples of s", "#F6D9A0", "////")}  # fmt: skip
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
assert shapes["sps.0"] == (4, 2, 48, 32, 32) and shapes["blocks.0.attn.scores"] == (
    4,
    2,
    12,
    64,
    64,
)
assert shapes["blocks.3.residual"] == (4, 2, 64, 384) and len(layers) == 14
se.plot.show(
    fig,
    "Horizontal bars for the layers of SPS and the first encoder block of cifar10-4-384, with their shapes. The widest "
    "is the third stage of SPS, 192 x 32 x 32; its neighbours and the hidden layer of the MLP, 64 x 1536, have half of "
    "that; attention scores, 12 x 64 x 64, come next; queries, keys and values are narrow, 12 x 64 x 32.",
)

# %% [markdown]
# ## Shapes and values
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
# ## The network in seventy lines
#
# First we write the neuron as in the paper: charge, fire on `>=`, reset (equations 1 to 3). The state is a local
# variable, so it disappears after the call.

# %%


class LIF(nn.Module):
    def __init__(self, v_threshold: float = 1.0):
        super().__init__()
        self.v_threshold = v_threshold

    def forward(self, current: Tensor) -> Tensor:  # [T, ...] -> {0, 1} [T, ...]
        v, spikes = torch.zeros_like(current[0]), []
        for x in current:
            h = v + (x - v) / 2  # (1), tau = 2
            s = (h >= self.v_threshold).to(h.dtype)  # (2)
            v = h * (1 - s)  # (3)
            spikes.append(s)
        return torch.stack(spikes)


# %% [markdown]
# Next come two layers with weights: a convolution stage of [SPS](../docs/glossary.md#sps) (10), and a linear map of the
# tokens. For layers with weights, T and B are flattened into one axis. For neurons, T is a separate first axis.


# %%
class Stage(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, pool: bool):
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False)
        self.bn, self.neuron, self.pool = nn.BatchNorm2d(dim_out), LIF(), pool

    def forward(self, x: Tensor) -> Tensor:
        t, b = x.shape[:2]
        # [T, B, D_out, H, W]
        x = self.neuron(self.bn(self.conv(x.flatten(0, 1))).unflatten(0, (t, b)))
        return (
            F.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, (t, b))
            if self.pool
            else x
        )


class Tokenwise(nn.Module):
    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.linear, self.bn, self.neuron = (
            nn.Linear(dim_in, dim_out),
            nn.BatchNorm1d(dim_out),
            LIF(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.neuron(self.bn(y.flatten(0, 2)).view_as(y))  # [T, B, N, D_out]


# %% [markdown]
# The rest is attention, block and network. The modules have the package's names, so we can copy weights by name.


# %%
class SSA(nn.Module):
    def __init__(self, dim: int, heads: int, scale: float, bias: bool):
        super().__init__()
        self.heads, self.scale = heads, scale
        self.qkv, self.bn = (
            nn.Linear(dim, 3 * dim, bias=bias),
            nn.BatchNorm1d(3 * dim),
        )
        self.q, self.k, self.v, self.attn = (
            LIF(),
            LIF(),
            LIF(),
            LIF(v_threshold=0.5),
        )
        self.proj = Tokenwise(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(x)
        y = self.bn(y.flatten(0, 2)).view_as(y)
        # [T, B, h, N, d]
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for part in y.chunk(3, -1)
        )
        x = self.attn(
            self.q(q) @ self.k(k).transpose(-2, -1) @ self.v(v) * self.scale
        )
        return self.proj(x.transpose(2, 3).flatten(3))  # [T, B, N, D]


class Block(nn.Module):
    def __init__(self, c: se.SpikformerConfig):
        super().__init__()
        self.attn = SSA(c.dim, c.heads, c.scale or 0.125, c.qkv_bias)
        hidden = c.mlp_ratio * c.dim
        self.mlp = nn.Sequential(
            OrderedDict(
                hidden=Tokenwise(c.dim, hidden), out=Tokenwise(hidden, c.dim)
            )
        )

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
        return self.head(x.mean(2).mean(0))  # (9)


# %% [markdown]
# ## Equal on every spike
#
# **Predict before you run.** Take a fresh network of the package, copy its weights into ours, set both to evaluation
# mode and compare all spikes on random images. All spikes agree. How much does this prove?

# %%
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
# variance 1. They do not fit the small currents that sparse spikes cause, so these currents never reach the threshold.
# Two silent networks always agree. So a comparison must first check that neurons fire.
#
# </details>
#
# So we make the network fire: we choose larger weights and biases for the batch norms, and take the running statistics
# from one batch.


# %%
def awaken(model: nn.Module, x: Tensor) -> nn.Module:
    """Make an untrained network fire in evaluation mode."""
    norms = [
        m
        for m in model.modules()
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))
    ]
    for norm in norms:
        nn.init.uniform_(norm.weight, 1.5, 2.5)
        nn.init.uniform_(norm.bias, 0.6, 1.4)
        norm.momentum = 1.0  # running statistics = those of the next batch
    with torch.no_grad():
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def spikes_of(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the spikes of every neuron layer by name."""
    seen, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (LIF, se.LIF)):
            keep = partial(
                lambda name, module, inputs, out: seen.update({name: out}),
                name.removesuffix(".neuron"),
            )
            hooks.append(module.register_forward_hook(keep))
    with torch.no_grad():
        logits = model(x)
    for hook in hooks:
        hook.remove()
    return logits, seen


# %% [markdown]
# The comparison runs in float64, so that rounding does not change spikes. It uses $T \ne B$, frames and still images,
# and both backends of the package's neuron.

# %%
T, B = 3, 4
frames = torch.randn(T, B, 3, 16, 16, dtype=torch.float64)
package = awaken(se.Spikformer(config).double(), frames)
ours = Network(config).double()
ours.load_state_dict(package.state_dict())
ours.eval()
for backend in ("fused", "snntorch"):
    theirs = se.Spikformer(
        se.SpikformerConfig(**vars(config) | {"backend": backend})
    ).double()
    theirs.load_state_dict(package.state_dict())
    theirs.eval()
    for name, x in {"frames": frames, "images": frames[0]}.items():
        (logits, spikes), (expected, expected_spikes) = (
            spikes_of(ours, x),
            spikes_of(theirs, x),
        )
        assert (
            list(spikes) == list(expected_spikes)
            and len(spikes) == 5 + 7 * config.depth
        )
        for layer, values in expected_spikes.items():
            assert 0.02 < values.mean() < 0.8, (
                f"{layer} is silent or saturated: comparing it says nothing"
            )
            assert torch.equal(spikes[layer], values), (
                f"{layer} differs ({backend}, {name})"
            )
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
        count = sum(values.numel() for values in spikes.values())
        print(
            f"{backend:8} {name}: {count:,} values of {len(spikes)} layers, all equal"
        )

# %% [markdown]
# The same with trained weights and real digits:

# %%
trained = se.load_pretrained("digits-2-64").double()
digits = se.data.load("digits").val.fetch(torch.arange(6), None)[0].double()
ours_trained = Network(trained.config).double().eval()
ours_trained.load_state_dict(trained.state_dict())
(logits, spikes), (expected, expected_spikes) = (
    spikes_of(ours_trained, digits),
    spikes_of(trained, digits),
)
assert all(
    torch.equal(spikes[layer], values) for layer, values in expected_spikes.items()
)
torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
print(f"digits-2-64: {sum(v.numel() for v in spikes.values()):,} values, all equal")

# %% [markdown]
# ## Golden numbers
#
# Two implementations by the same authors can share an error, and both can change at the same time. A golden test
# compares the network with stored numbers: weights and input come from a formula, not from a random generator, and the
# spikes of every layer are counted. (Counts are whole numbers, so there is no rounding.)


# %%
def fill(model: nn.Module) -> Tensor:
    """Weights, statistics and frames [T, B, C, H, W] from a formula; the same on every machine."""
    with torch.no_grad():
        for k, (name, p) in enumerate(model.named_parameters()):
            wave = torch.sin(
                12.9898 * torch.arange(p.numel(), dtype=torch.float64) + k
            ).view(p.shape)
            is_norm = ".bn." in name
            p.copy_(
                (2 if is_norm and name.endswith("weight") else 1 if is_norm else 0)
                + 0.4 * wave
            )
        x = torch.sin(
            78.233 * torch.arange(3 * 4 * 3 * 16 * 16, dtype=torch.float64)
        ).view(3, 4, 3, 16, 16)
        for norm in (
            m
            for m in model.modules()
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))
        ):
            norm.momentum = 1.0
        model.train()(x)
    model.eval()
    return x


golden = [5417, 8168, 16782, 7451, 1952, 1871, 1922, 1946, 1890, 2008, 7420, 1816, 1885, 1863, 1804, 1781, 1975,
          7345, 1947]  # fmt: skip
for model in (se.Spikformer(config).double(), Network(config).double()):
    x = fill(model)
    counts = [int(values.sum()) for values in spikes_of(model, x)[1].values()]
    assert counts == golden, f"spikes have changed: {counts}"
print(f"{sum(golden):,} spikes in {len(golden)} layers, as written down")

# %% [markdown]
# ## Parameters, to the digit
#
# For `cifar10-4-384`: $D = 384$, $L = 4$, $C = 3$, $K = 10$. A 3 x 3 convolution has 9 weights for each pair of
# channels and no bias. A batch norm has a weight and a bias for each feature. Q, K, V and all other linear maps have
# biases.

# %%
D, L, C, K = 384, 4, 3, 10
widths = [C, D // 8, D // 4, D // 2, D, D]  # four stages and the position embedding
table = {
    "SPS, convolutions": sum(
        9 * a * b for a, b in zip(widths, widths[1:], strict=False)
    ),
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
assert (
    sum(table.values())
    == sum(p.numel() for p in big.parameters())
    == se.preset("cifar10-4-384").parameters
)

# %% [markdown]
# The next cell compares all presets with the package's table and with the paper's numbers (in millions, for ImageNet
# and CIFAR-10). It builds our network on PyTorch's `meta` device, which needs no memory. The paper gives two decimals,
# some rounded and some truncated, so the numbers agree to 0.01 M.

# %%
paper = {"cifar10-4-256": 4.15, "cifar10-2-384": 5.76, "cifar10-4-384": 9.32, "imagenet-8-384": 16.81,
         "imagenet-6-512": 23.37, "imagenet-8-512": 29.68, "imagenet-10-512": 36.01,
         "imagenet-8-768": 66.34}  # fmt: skip
# what the official models sum to
official = {"cifar10-4-384": 9_330_874, "imagenet-8-512": 29_705_768}
print(
    f"{'preset':18} {'counted':>11} {'paper':>8}  {'with layers never called':>24}"
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
    print(f"{line.name:18} {counted:11,} {published:>8}  {counted + never:24,}")

# %% [markdown]
# The last column is what `sum(p.numel() for p in model.parameters())` gives for the official code. That code builds two
# layer norms in each block and never calls them; its model for event frames also builds one at the end and a table of
# positions. They are in its checkpoints, but get no gradient and do not change the output.

# %% [markdown]
# ## The layout of official checkpoints
#
# The authors' three models hold the same numbers under other names. Q, K and V are three layers and three batch norms.
# The linear maps are `Linear` (CIFAR), `Conv1d` and `Conv2d` of kernel 1 (ImageNet), or `Conv1d` (CIFAR10-DVS). The
# next cell converts our weights to these layouts; `se.load_official` converts them back.


# %%
def to_official(model: se.Spikformer, layout: str) -> dict[str, Tensor]:
    op = "linear" if layout == "cifar" else "conv"
    # kernel axes
    extra = {
        "cifar": {},
        "imagenet": {"attn": 1, "mlp": 2},
        "dvs": {"attn": 1, "mlp": 1},
    }[layout]
    official = {}
    for name, value in model.state_dict().items():
        part = name.split(".")
        if part[0] == "sps":
            number = "" if part[1] == "0" else part[1]
            new = (
                f"rpe_{part[2]}" if part[1] == "rpe" else f"proj_{part[2]}{number}"
            )
            official[f"patch_embed.{new}.{part[3]}"] = value
            continue
        if part[0] == "head":
            official[name] = value
            continue
        prefix = f"block.{part[1]}.{part[2]}"
        is_map = part[-2] in ("linear", "qkv")
        kind = op if is_map else "bn"
        if is_map and part[-1] == "weight" and layout != "cifar":
            # [out, in] -> [out, in, 1] or [out, in, 1, 1]
            value = value[(...,) + (None,) * extra[part[2]]]
        if part[3] in ("qkv", "bn"):
            # a counter of batches is one number
            chunks = value.chunk(3) if value.dim() else [value] * 3
            official |= {
                f"{prefix}.{letter}_{kind}.{part[-1]}": c
                for letter, c in zip("qkv", chunks, strict=True)
            }
        else:
            new = {"proj": "proj", "hidden": "fc1", "out": "fc2"}[part[3]]
            official[f"{prefix}.{new}_{kind}.{part[-1]}"] = value
    # built and never called
    official["pos_embed"] = torch.zeros(1, 16, model.config.dim)
    return official


for layout in ("cifar", "imagenet", "dvs"):
    state = to_official(package, layout)
    back = se.load_official(se.Spikformer(config).double().eval(), state)
    assert all(
        torch.equal(value, back.state_dict()[name])
        for name, value in package.state_dict().items()
    )
    with torch.no_grad():
        assert torch.equal(back(frames), package(frames))
    key = next(
        name
        for name in state
        if "block.1.attn.k_" in name and name.endswith("weight")
    )
    print(
        f"{layout:8} {len(state)} tensors, for example {key} {list(state[key].shape)}"
    )

# %% [markdown]
# The three matrices `q`, `k`, `v` become one matrix `[3D, D]`, in this order. If a checkpoint does not fit, the model
# stays unchanged and the error says what differs:

# %%
state = to_official(package, "cifar")
del state["block.1.attn.k_bn.running_mean"]
try:
    se.load_official(se.Spikformer(config), state)
except se.SpikformerError as error:
    message = str(error)
print(message)
assert "block.1.attn.k_bn.running_mean" in message

# %% [markdown]
# ## Checks that a loss curve cannot replace
#
# Every correct spiking transformer has the following four properties, whether it is trained or not. Each check needs
# only a few lines of code and can find real errors.
#
# **State never leaks.** Two calls on the same input agree, whatever was called in between. The call in between is
# important, because in a wrong network it leaves a different state.

# %%
pooled = se.Spikformer(
    se.SpikformerConfig(**vars(config) | {"qk_pool": True})
).double()
nets = {
    "ours": ours,
    "package": package,
    "package, snntorch neuron": theirs,
    "package, pool of Q and K": pooled,
}
awaken(pooled, frames)

for name, net in nets.items():
    for x in (frames, frames[0]):
        first, first_spikes = spikes_of(net, x)
        # the same shape: a kept state would fit the next call
        spikes_of(net, 3 * x.flip(-4))
        spikes_of(net, x[..., :8, :8])  # and another shape
        again, again_spikes = spikes_of(net, x)
        assert torch.equal(first, again), f"{name}: a call remembers the one before"
        assert all(
            torch.equal(first_spikes[layer], again_spikes[layer])
            for layer in first_spikes
        )
print("two calls agree:", ", ".join(nets))

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
        assert logits.std(0).max() > 0.01, (
            "all samples have the same logits: the check says nothing"
        )
        assert (shuffled - logits[order]).abs().max() < 1e-12, (
            f"{name}: the order of the batch matters"
        )
        assert (alone - logits[1:2]).abs().max() < 1e-12, (
            f"{name}: batch mates matter"
        )
        for layer, values in spikes.items():
            assert torch.equal(shuffled_spikes[layer], values[:, order]), (
                f"{name}: {layer} sees batch mates"
            )
            assert torch.equal(alone_spikes[layer], values[:, 1:2]), (
                f"{name}: {layer} sees batch mates"
            )
print("batch mates do not matter:", ", ".join(nets))

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
        assert torch.equal(where, wanted), (
            f"{name}: {layer} changed at another step or in another sample"
        )
print("time flows forward:", ", ".join(nets))

# %% [markdown]
# **Only attention mixes tokens.** Change one token of a block's input.
#
# **Predict before you run.** Token 4 of 16 changes. Which tokens of the MLP's output can change, and which of the
# attention's?

# %%
stream = torch.randint(0, 3, (T, B, 16, 32), dtype=torch.float64)
touched = stream.clone()
touched[:, 0, 4] = 2 - touched[:, 0, 4]
for name, block in {"ours": ours.blocks[0], "package": package.blocks[0]}.items():
    with torch.no_grad():
        for part in (block.mlp, block.attn):
            differs = (part(stream) != part(touched)).any(3).any(0)  # [B, N]
            tokens = differs[0].nonzero().flatten().tolist()
            print(
                f"{name:8} {'MLP' if part is block.mlp else 'SSA'}: tokens {tokens}"
            )
            assert not differs[1:].any(), "another sample changed"
            assert (tokens == [4]) if part is block.mlp else len(tokens) > 4

# %% [markdown]
# <details><summary>Answer</summary>
#
# The MLP processes each token by itself: only token 4 can change. Attention connects every token with every other, so
# all tokens can change. A token stays the same if the change of $Q K^T V s$ does not change its spikes.
#
# </details>

# %% [markdown]
# ## A planted fault: T and B swapped
#
# Here is the package's linear layer with one wrong line. A reshape swaps T and B before the neuron, and another one
# swaps them back after it. All shapes are right.

# %%


class MixedUp(SpikingLinear):
    def forward(self, x: Tensor) -> Tensor:
        t, b, n, _ = x.shape
        current = norm_tokens(self.bn, self.linear(x))
        # wrong: the neuron runs over samples
        return self.neuron(current.reshape(b, t, n, -1)).reshape(t, b, n, -1)


# %% [markdown]
# We train a small network with this layer and one with the correct layer, on the same digits in the same order. Can we
# see the error in the loss?


# %%
def small_network(layer: type[SpikingLinear]) -> se.Spikformer:
    torch.manual_seed(0)
    net = se.spikformer("digits-2-64", dim=32, heads=2, depth=1)
    net.blocks[0].attn.proj, net.blocks[0].mlp.out = layer(32, 32), layer(128, 32)
    return net


splits = se.data.load("digits", samples_per_class=64)
losses, finished = {}, {}
for name, layer in {"right": SpikingLinear, "T and B mixed up": MixedUp}.items():
    net = small_network(layer)
    optimizer = torch.optim.AdamW(net.parameters(), lr=6e-3)
    losses[name] = []
    for epoch in range(4):
        for images, labels in se.data.batches(
            splits.train, 32, train=True, epoch=epoch
        ):
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
    finished[name] = net.eval()
    # the shapes are right, and the loss has gone down:
    assert net(images).shape == (32, 10)
    assert sum(losses[name][-10:]) < 0.9 * sum(losses[name][:10])

fig, ax = plt.subplots(figsize=(7, 3.2))
looks = ({"color": style.SPIKE}, {"color": style.MEMBRANE, "linestyle": "--"})
for (name, values), look in zip(losses.items(), looks, strict=True):
    smooth = torch.tensor(values).unfold(0, 8, 1).mean(1)
    ax.plot(range(8, len(values) + 1), smooth, label=name, **look)
ax.set(
    xlabel="optimizer step",
    ylabel="loss, mean of 8 steps",
    title="one block, D = 32, T = 4, 640 digits",
)
ax.legend()
se.plot.show(
    fig,
    "Training loss of two small networks over 80 steps, T = 4. Both curves fall in the same way; the loss does not "
    "show that in one of them the neurons run over samples instead of time steps.",
)

# %% [markdown]
# Now we run the check of two lines: each network gets the same validation digits in another order, and in batches of
# another size.

# %% tags=["nbval-ignore-output"]
images, labels = splits.val.fetch(torch.arange(len(splits.val)), None)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
for name, net in finished.items():
    with torch.no_grad():
        logits, shuffled = net(images), net(images[order])
        moved = float((shuffled - logits[order]).abs().max())
        scores = {
            b: [net(part).argmax(1) for part in images.split(b)]
            for b in (1, 32, 180)
        }
    accuracy = ", ".join(
        f"{100 * float((torch.cat(s) == labels).float().mean()):.1f} %"
        for s in scores.values()
    )
    print(
        f"{name:17} logits move by {moved:.3f} when shuffled; accuracy in batches of 1, 32, 180: {accuracy}"
    )
    assert (moved < 1e-4) == (name == "right"), (
        "batch independence tells right from wrong"
    )

# %% [markdown]
# The accuracy of the right network does not depend on the batch. The accuracy of the wrong network depends on the other
# images in the batch. With batches as in training it need not be lower, but if images come one by one, the network
# computes something that it was not trained for. This error has happened in practice: in the public code of QKFormer a
# neuron got `[T B, ...]` instead of `[T, B, ...]`, so it ran over all samples as if they were time steps. [A reader
# reported](https://github.com/zhouchenlin2096/QKFormer/issues/14) that its trained ImageNet model scores 78.7 % in
# batches of 32, and 74.2 % one by one or with the line repaired.

# %% [markdown]
# ## Pitfalls
#
# - **T and B swapped in a reshape.** Symptom: accuracy depends on the batch size of the evaluation. Cause: `reshape` or
#   `view` with the axes in another order than in memory; with $T = B$ the shapes are right as well. Cure: use `flatten`
#   and `unflatten` of neighbouring axes only, test with $T \ne B$, and use the shuffle check.
# - **State not reset between batches.** Symptom: the same batch gives other results at the start than later. Cause: a
#   neuron that stores its membrane in the module. Cure: keep the state in a local variable, as here; otherwise reset
#   before every call, not after.
# - **`>` instead of `>=`.** Symptom: attention fires less often than in the official network. Cause: $Q K^T V s$ lies
#   on a grid, and the membrane often equals the threshold exactly. The next cell counts how often this happens in the
#   trained network.

# %%
with torch.no_grad(), se.record(trained, membranes=True) as rec:
    trained(digits)
for i in range(2):
    layer = rec[f"blocks.{i}.attn.attn"]
    ties = float((layer.membrane == layer.v_threshold).sum() / layer.spikes.sum())
    print(
        f"{layer.name}: {100 * ties:.0f} % of its spikes are exact ties: with > they would not be fired then"
    )
    assert ties > 0.001 and torch.equal(
        layer.spikes, (layer.membrane >= layer.v_threshold).double()
    )

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
            f"{line.name} is off by {off:,}: D = {line.config.dim}, L = {line.config.depth}"
        )
    slim = se.SpikformerConfig(dim=32, depth=3, heads=4, mlp_ratio=2)
    assert parameters(slim) == sum(
        p.numel() for p in se.Spikformer(slim).parameters()
    ), "mlp_ratio is not always 4"

# %% [markdown]
# **7.2 Find the mix-up.** Write a function that tells whether samples of a batch influence each other in any layer. The
# shuffle check is not enough: a network that subtracts the mean of its batch passes it.


# %% tags=["exercise-2"]
def samples_interact(model: torch.nn.Module, frames: torch.Tensor) -> bool:
    """Whether the logits of one sample depend on another one; frames are [T, B, C, H, W]."""
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

    def last_only(x: torch.Tensor) -> torch.Tensor:
        # the last sample looks at the first
        return torch.cat([x[:, :-1], x[:, -1:] * x[:, :1]], 1)

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
    assert samples_interact(plant("sps.3.neuron", last_only), clips), (
        "one sample in five looks at another one"
    )
    assert samples_interact(plant("head", mean_free), clips), (
        "each sample is told the mean of the batch"
    )

# %% [markdown]
# **7.3 The forgotten reset.** Write a function that tells whether a neuron, called with currents `[T, ...]`, still
# depends on an earlier call. The caller of your function chooses the currents, and some currents leave almost no state
# behind.


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
            f"not found with currents of {current[0, 0]:.1f}: make calls of your own that leave something behind"
        )

# %% [markdown]
# ## Recap
#
# - A Spikformer takes seventy lines. For layers with weights T and B are flattened into one axis, for neurons they are
#   separate.
# - You can count the parameters exactly by hand. The official count is higher because of layers that are never called.
# - A comparison is meaningful only if both networks fire, with $T \ne B$ and in float64.
# - Two calls, shuffled batches, changed frames and changed tokens are four checks that find errors that the loss does
#   not show.
#
# Next: [chapter 08](08_train.ipynb) trains it. Answers: [solutions](solutions/07_assemble_and_verify.ipynb).
