# %% [markdown]
# # 13 · Solutions
#
# To [chapter 13](../13_beyond.ipynb).

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
from torch import nn

from spikformer_edu.attention import SpikingSelfAttention, norm_tokens

torch.manual_seed(0)
torch.set_num_threads(1)
images, _ = se.data.load("digits").val.fetch(torch.arange(16), None)


def settle(model, images):
    """Give all batch norms the statistics of these images, and more current."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
            nn.init.constant_(module.bias, 0.3)
    model.train()(images)
    return model.eval()


# %% [markdown]
# ## 13.1 Channel Q-K attention
#
# Write Q-K attention with a channel gate: $A_c = \mathrm{SN}(\sum_n Q_n)$, one value for each feature, and $X' = A_c
# \odot K$.
#
# The only difference from the token gate is the axis of the sum: it runs over tokens, the second-last axis. Tokens now
# exchange information, as in SDSA: which features fire in any token.


# %% tags=["exercise-1"]
class ChannelQKAttention(SpikingSelfAttention):
    """Q-K channel attention: SN(sum over tokens of Q) * K, then the projection."""

    def __init__(self, dim, heads, **options):
        super().__init__(dim, heads, **options)
        self.qkv = nn.Linear(dim, 2 * dim, bias=self.qkv.bias is not None)
        self.bn = nn.BatchNorm1d(2 * dim)
        del self.v

    def forward(self, x):
        qk = norm_tokens(self.bn, self.qkv(x))  # [T, B, N, 2D]
        # each [T, B, h, N, d]
        q, k = qk.unflatten(-1, (2, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q, k = self.q(q), self.k(k)
        gate = self.attn(q.sum(-2, keepdim=True))  # [T, B, h, 1, d], {0, 1}
        return self.proj((gate * k).transpose(2, 3).flatten(3))  # [T, B, N, D]


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
# The package's class is the same layer.

# %%
theirs = se.ATTENTION["qk_channel"](64, 4)
theirs.load_state_dict(layer.state_dict())
torch.testing.assert_close(theirs(x), layer(x), rtol=0, atol=0)

# %% [markdown]
# ## 13.2 Count
#
# How many operations does the core of channel Q-K attention take, and what share of an SSA block is saved?
#
# The sum adds N bits for each of D features, and the mask is applied to N D bits. The block no longer has SSA's
# products, and it has one less of its twelve D x D matrices, the one for V.


# %% tags=["exercise-2"]
def channel_qk_savings(tokens, dim, heads):
    """(operations of the core, share of an SSA block's that is saved)"""
    core = 2 * tokens * dim
    products = 2 * tokens * dim * min(tokens, dim // heads)
    matrix = tokens * dim**2
    return core, 1 - (core + 11 * matrix) / (products + 12 * matrix)


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
# ## 13.3 In which networks do all layers receive only spikes?
#
# Return the names of the convolutions and linear layers, except the first and the head, with inputs other than 0 and 1.
#
# In Spikformer these are the layers that read the residual stream: the map to Q, K, V and the first layer of each MLP.
# With membrane shortcuts the list is empty. No residual stream in this chapter is binary: Spikformer's holds integers,
# the other real numbers.


# %% tags=["exercise-3"]
@torch.no_grad()
def not_binary(model, images):
    """Sorted names of the layers whose input holds something else than 0 and 1."""
    found, hooks = set(), []

    def look(name):
        def hook(module, args):
            if not ((args[0] == 0) | (args[0] == 1)).all():
                found.add(name)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and name not in (
            "sps.0.conv",
            "head",
        ):
            hooks.append(module.register_forward_pre_hook(look(name)))
    model(images)
    for hook in hooks:
        hook.remove()
    return sorted(found)


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
