# %% [markdown]
# # 06 · Solutions
#
# Answers to the exercises of [chapter 06](../06_encoder_block.ipynb): heads, position, residuals.

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

import matplotlib.pyplot as plt
import torch

from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# **6.1 Channels first.** Split `[T, B, D, N]` into heads `[T, B, h, N, d]`, and join them again.
#
# Split the feature axis, which is the third, into `(h, d)`, and then swap `d` and `N`. A `view` directly to the wanted
# shape would also run, but it would mix features with tokens.


# %% tags=["exercise-1"]
def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[T, B, D, N] -> [T, B, h, N, d]"""
    return x.unflatten(2, (heads, -1)).transpose(3, 4)


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """[T, B, h, N, d] -> [T, B, D, N]"""
    return x.transpose(3, 4).flatten(2, 3)


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
# **6.2 SEW against membrane shortcut.** Write the attention half of a block with a membrane shortcut.
#
# A neuron turns the stream into spikes before the first matrix. The rest is SSA up to the current of the projection.
# This current is added to the stream, not the spikes of the projection's neuron.


# %% tags=["exercise-2"]
def membrane_attention(
    ssa: torch.nn.Module, neuron: se.LIF, u: torch.Tensor
) -> torch.Tensor:
    """U + f(SN(U)), f is SSA without its last neuron. u, result: [T, B, N, D]."""
    y = ssa.qkv(neuron(u))  # [T, B, N, 3D]
    y = ssa.bn(y.flatten(0, 2)).view_as(y)
    # [T, B, h, N, d]
    q, k, v = (
        part.unflatten(-1, (ssa.heads, -1)).transpose(2, 3)
        for part in y.chunk(3, -1)
    )
    spikes = ssa.attn(ssa.mix(ssa.q(q), ssa.k(k), ssa.v(v)))
    current = ssa.proj.linear(spikes.transpose(2, 3).flatten(3))  # [T, B, N, D]
    return u + ssa.proj.bn(current.flatten(0, 2)).view_as(current)


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
# **6.3 The largest residual.** The bound for $L$ blocks, and a network that reaches it.
#
# A value of $X_0$ is at most 2 (features plus position embedding), and each block adds at most 2 more: $2L + 2$. To
# make all neurons fire, give every batch norm the weight 0 and a bias of $\tau V_{th} = 2$ or more. Then every current
# is 2 or more; $H$ is half of it and reaches the threshold 1 at every step. The attention neuron has no batch norm and
# fires as well: if all entries of $Q$, $K$ and $V$ are ones, $Q K^\top V s$ is far above 0.5.


# %% tags=["exercise-3"]
def largest_residual(depth: int) -> int:
    """The largest value that the stream can hold after all blocks."""
    return 2 + 2 * depth


def saturate(model: se.Spikformer) -> None:
    """Let every neuron of the model fire at every step."""
    for norm in model.modules():
        if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.zeros_(norm.weight)
            torch.nn.init.constant_(norm.bias, 2.0)


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
