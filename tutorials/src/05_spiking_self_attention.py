# %% [markdown]
# # 05 · Spiking self-attention by hand
#
# *Run time 25 s on one CPU core · after chapters 01, 03 and 04 · no internet access, no GPU*
#
# What does spiking self-attention ([SSA](../docs/glossary.md#ssa)) compute, and why does it need no softmax? We compute
# one output spike by hand: bits, an AND, a count, a sum, a threshold. Then we write the whole layer and check that
# every spike equals that of the package's class. This layer is the new part of Spikformer; the rest is convolutions and
# linear layers.
#
# ## What you will learn
# - to compute one output of SSA from the bits of Q, K and V, on paper
# - to write the layer with time, heads and batch norm, and to check that it equals the package's, spike by spike
# - to say why no softmax is needed, and what the network gains without it: a free order of multiplication
# - to say which sums reach the threshold at a given scale, and why exact ties are common

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
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# The figure shows one attention head with N = 8 tokens and d = 8 features at time step t = 0. The blue row of Q is
# combined with the red row of K: where both are 1, the AND is 1 (black). The number of black cells is one entry of
# $QK^T$. A row of such counts is multiplied by one column of V, and the products are summed to an integer. The integer
# times s = 0.125 is the current of a neuron. Its membrane reaches the threshold $V_{th} = 0.5$ exactly, and it fires.
#
# The bitmaps are written out in the code, so you can copy them to paper. At each later step the rows of Q shift one
# feature to the right, and K and V stay the same. We chose this rule only to get different spikes at each step.


# %%
def bitmap(text):
    return torch.tensor(
        [[float(mark == "#") for mark in row] for row in text.split()]
    )


Q = bitmap(
    "..###... ..#####. ..##..#. #..####. #####... .#.###.. #......# ........"
)
K = bitmap(
    ".#....## .....#.# #..#.### .#....## ..##..## #.##..#. #..##... ..#.####"
)
V = bitmap(
    "###.#..# ........ ##..#### #..#.### #####.#. #..#..#. ##.#.#.. ..###..."
)
T, N, d, s = 3, 8, 8, 0.125
q = torch.stack([Q.roll(t, dims=1) for t in range(T)])  # [T, N, d]
k, v = K.expand(T, N, d), V.expand(T, N, d)

fig, axes = se.plot.ssa(
    q, k, v, scale=s, threshold=0.5, step=0, query=2, key=4, feature=4
)
se.plot.show(
    fig,
    "Bitmaps of Q, K and V, 8 tokens by 8 features, T = 3, one attention head. Query 2 and key 4 share three ones; the "
    "scores of query 2 and feature 4 of V give the sum 8, the current 1, the membrane 0.5, and a spike.",
)

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $X$ | `[T, B, N, D]` | integers 0, 1, 2, ... | [tokens](../docs/glossary.md#token); $X[t]$: a neuron's current |
# | $Q, K, V$ | `[T, B, h, N, d]` | {0, 1} | queries, keys, values of h heads, d = D / h |
# | $QK^T$ | `[T, B, h, N, N]` | integers 0 ... d | how many ones a query and a key share |
# | $QK^TV$ | `[T, B, h, N, d]` | integers 0 ... N d | the sum for each query and feature |
# | $QK^TVs$ | `[T, B, h, N, d]` | multiples of s | current of the attention neuron |
# | $H$ | `[T, B, h, N, d]` | multiples of $s/2^{t+1}$ | membrane potential before the reset |
# | $\mathrm{SN}(QK^TVs)$ | `[T, B, h, N, d]` | {0, 1} | its spikes, $V_{th} = 0.5$ |
#
# In formulas (eq. 14-19 of [the paper](https://arxiv.org/abs/2209.15425)), with SN a layer of [LIF
# neurons](../docs/glossary.md#lif-neuron):
#
# $$Q, K, V = \mathrm{SN}(\mathrm{BN}(XW)), \qquad \mathrm{SSA}' = \mathrm{SN}(QK^TV\,s), \qquad
# \mathrm{SSA} = \mathrm{SN}(\mathrm{BN}(\mathrm{Linear}(\mathrm{SSA}')))$$

# %% [markdown]
# ## One entry with a pencil
#
# We compute the output of query 2, feature 4, at t = 0. First we combine the query with each key. The product of two
# bits is their AND, and the inner product of two rows is the number of ones in their AND: the *popcount*.


# %%
def show_bits(row):
    return "".join("#" if bit else "." for bit in row.bool())


print("query 2   ", show_bits(Q[2]))
for j in range(N):
    both = Q[2].bool() & K[j].bool()
    print(
        f"key {j}     {show_bits(K[j])}   AND {show_bits(both)}   popcount {int(both.sum())}"
    )

# %% [markdown]
# The eight keys give eight counts, which are row 2 of $QK^T$. Column 4 of V shows which tokens have feature 4. The
# query adds the counts of these tokens only.

# %%
counts = [int((Q[2].bool() & K[j].bool()).sum()) for j in range(N)]
carries = [int(V[j, 4]) for j in range(N)]
print("counts          ", *counts)
print("V, feature 4    ", *carries)
gathered = sum(count for count, bit in zip(counts, carries, strict=True) if bit)
print(
    "gathered        ",
    " + ".join(str(c) for c, bit in zip(counts, carries, strict=True) if bit),
    "=",
    gathered,
)
assert gathered == 8

# %% [markdown]
# So far we needed no multiplication, only AND, counting and adding. The sum times the scale s = 0.125 is a current,
# which charges the [membrane potential](../docs/glossary.md#membrane-potential) of a neuron with $\tau = 2$ that starts
# from $V[-1] = 0$:
#
# $$H[t] = V[t-1] + \tfrac{1}{\tau}\,(X[t] - V[t-1]) = \tfrac12\,(V[t-1] + X[t]) \tag{1}$$
#
# **Predict before you run.** The sum is 8. What is H at t = 0? The threshold is 0.5. Does the neuron fire?

# %%
current = gathered * 0.125
H = (0 + current) / 2
print("current", current, "  membrane", H, "  fires:", H >= 0.5)
assert H == 0.5
# the package's two implementations of the neuron
for backend in ("fused", "snntorch"):
    spike = se.LIF(v_threshold=0.5, backend=backend)(torch.tensor([[current]]))
    assert spike.item() == 1, "a neuron exactly at its threshold must fire"

# %% [markdown]
# <details><summary>Answer</summary>
#
# The current is 8 · 0.125 = 1, and half of it reaches the membrane: H = 0.5, exactly the threshold. The neuron fires,
# because the paper's step is $S = \Theta(H - V_{th})$ with $\Theta(0) = 1$. The assert checks this for both
# implementations of the package's neuron. With `>` instead of `>=` there would be no spike. With arbitrary real
# currents an exact tie hardly ever happens. Here ties are common, because every current is a multiple of s. We count
# them below.
#
# </details>

# %% [markdown]
# ## All entries at once
#
# Matrix products do the same for all 64 entries. We compute all entries first with AND and counting only, and then with
# the products. Both must agree.

# %%
by_hand = torch.zeros(N, d)
for i in range(N):
    for c in range(d):
        for j in range(N):
            if V[j, c]:
                by_hand[i, c] += (Q[i].bool() & K[j].bool()).sum()

assert torch.equal(by_hand, Q @ K.T @ V)
assert by_hand[2, 4] == 8 and (Q @ K.T)[2].tolist() == counts
print("QK^T", (Q @ K.T).int(), sep="\n")
print("QK^TV", by_hand.int(), sep="\n")

# %% [markdown]
# The last row of both matrices is zero: token 7 has no ones in Q, so it attends to no token. This is impossible in
# softmax attention, because its weights sum to one for every query.
#
# ## Over time: the neuron
#
# Each of the 64 outputs has its own neuron. In each of the T steps every neuron charges (1), fires (2) and is reset
# (3).
#
# $$S[t] = \Theta(H[t] - V_{th}) \tag{2}$$
#
# $$V[t] = H[t]\,(1 - S[t]) \tag{3}$$


# %%
# current [T, ...] -> spikes [T, ...], membranes H [T, ...]
def lif(current, v_threshold=1.0):
    membrane = torch.zeros_like(current[0])
    spikes, charged = [], []
    for x in current:
        h = (membrane + x) / 2  # (1)
        spike = (h >= v_threshold).to(x.dtype)  # (2): >=
        membrane = h * (1 - spike)  # (3)
        spikes.append(spike)
        charged.append(h)
    return torch.stack(spikes), torch.stack(charged)


x = q @ k.transpose(-2, -1) @ v * s  # [T, N, d]
spikes, membranes = lif(x, v_threshold=0.5)
for t in range(T):
    print(
        f"t = {t}   neuron (2, 4): X = {x[t, 2, 4]:.3f}   H = {membranes[t, 2, 4]:.5f}   S = {int(spikes[t, 2, 4])}"
    )
for backend in ("fused", "snntorch"):
    assert torch.equal(spikes, se.LIF(v_threshold=0.5, backend=backend)(x))
ties = membranes == 0.5
print(
    f"{int(ties.sum())} of {int(spikes.sum())} spikes sit exactly on the threshold"
)

# %% [markdown]
# The animation shows the first step: the query is combined with the keys that share most bits with it, one after
# another, and then the membrane of neuron (2, 4) changes.

# %%
movie = se.plot.ssa_animation(
    q[:1], k[:1], v[:1], scale=s, query=2, feature=4, interval=900
)
se.plot.show(
    movie,
    "Animation of spiking self-attention for query 2 and feature 4, T = 1, one head: six keys are met one by one, and "
    "at the end the membrane moves.",
    dpi=80,
)

# %% [markdown]
# ## Why no softmax is needed
#
# Scores of real-valued Q and K can be any real number. Softmax makes them positive, and it bounds them because each row
# sums to one. With spikes the scores are counts: they are never negative and at most d, and a sum of N of them is at
# most N d. That bound is loose: in the network below N d s = 128, and the threshold is 0.5. What keeps the sums near
# the threshold is that spikes are rare, so that most counts are zero, and the scale s. The next cell measures the
# scores of the packaged network, which reads 32 x 32 digits with T = 4. It has N = 64 tokens and heads of d = 16.

# %%
model = se.load_pretrained("digits-2-64")
images, labels = se.data.load("digits").test.fetch(torch.arange(48), None)
with torch.no_grad(), se.record(model, membranes=True) as rec:
    model(images)  # B = 48, T = 4

for block in range(2):
    name = f"blocks.{block}.attn"
    # each [T, B, h, N, d]
    pq, pk, pv = (rec[f"{name}.{part}"].spikes for part in "qkv")
    shared = pq @ pk.transpose(-2, -1)  # counts: QK^T
    total = shared @ pv
    width, tokens = pq.shape[-1], pq.shape[-2]
    assert (
        shared.min() >= 0
        and shared.max() <= width
        and torch.equal(shared, shared.round())
    )
    assert total.max() <= tokens * width and torch.equal(
        rec[f"{name}.scores"].values, shared * 0.125
    )
    print(
        f"{name}: counts up to {int(shared.max())} of {width}, {(shared == 0).float().mean():.0%} of them zero;",
        end=" ",
    )
    print(f"sums up to {int(total.max())} of {tokens * width}")

# %% [markdown]
# **Predict before you run.** What would a softmax do with these counts? Take a query that shares no feature with any
# key. Which weights does SSA give to the keys, and which does softmax?

# %%
silent = torch.zeros(N)  # row 7 of QK^T
busy = (Q @ K.T)[2]
print("counts of query 2     ", *(f"{n:5.0f}" for n in busy))
print("softmax(QK^T / sqrt d)", *(f"{p:5.2f}" for p in (busy / d**0.5).softmax(0)))
print("counts of query 7     ", *(f"{n:5.0f}" for n in silent))
print(
    "softmax(QK^T / sqrt d)", *(f"{p:5.2f}" for p in (silent / d**0.5).softmax(0))
)
assert torch.equal((Q @ K.T)[7], silent)
assert (
    torch.allclose(silent.softmax(0), torch.tensor(1 / N))
    and (busy / d**0.5).softmax(0)[busy == 0].min() > 0
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# In SSA all weights are zero, and the neuron gets no current. Softmax gives each of the 8 keys the weight 1/8, so the
# query receives the mean of all values although it matches none of the keys. Softmax also turns every zero into a
# positive number, so the sparse matrix of integers becomes a full matrix of reals. This needs an exponential and a
# division for each entry ([chapter 04](04_softmax_attention.ipynb)).
#
# </details>

# %% [markdown]
# ## The order of multiplication is free
#
# There is no softmax between the two products, and matrix products are associative: $(QK^T)V = Q(K^TV)$. Both are sums
# of integers, and floating point adds integers exactly (up to $2^{24}$ in float32). So the two orders agree to the last
# bit. They also agree after scaling if s is a power of two, because such a scaling only changes the exponent and does
# not round. The next cell uses a batch in which T, B and h all differ.

# %%
bits = torch.Generator().manual_seed(5)
# T = 4, B = 5, h = 2, N = 96, d = 16
rq, rk, rv = (torch.rand(3, 4, 5, 2, 96, 16, generator=bits) < 0.3).float()
left = (rq @ rk.transpose(-2, -1) * s) @ rv
right = rq @ (rk.transpose(-2, -1) @ rv) * s
assert torch.equal(left, right)
ssa = se.ATTENTION["ssa"](dim=32, heads=2)
# the package takes the cheaper order: here the second, as N > d
assert torch.equal(ssa.mix(rq, rk, rv), left)
print("largest difference at s = 1/8: ", float((left - right).abs().max()))

# %% [markdown]
# What does each order cost? We let PyTorch count the operations: `FlopCounterMode` counts two operations, a
# multiplication and an addition, for each [multiply-accumulate](../docs/glossary.md#ac-and-mac) of a matrix product. We
# also count the numbers in the matrix between the two products, which training must keep in memory.
#
# **Predict before you run.** On ImageNet, 224 x 224 pixels give N = 196 tokens, and the heads of the 8-512 network have
# d = 64. Which order is cheaper, and by what factor?


# %%
def macs(product, *matrices):
    with FlopCounterMode(display=False) as counter:
        product(*matrices)
    return counter.get_total_flops() // 2


print("  N    d    (QK^T)V     Q(K^TV)   factor   kept between them")
for tokens, width in ((64, 16), (64, 32), (196, 64), (784, 64)):
    a, b, c = torch.ones(3, tokens, width)
    one = macs(lambda q, k, v: (q @ k.T) @ v, a, b, c)
    other = macs(lambda q, k, v: q @ (k.T @ v), a, b, c)
    assert one == 2 * tokens**2 * width and other == 2 * tokens * width**2
    print(
        f"{tokens:3}  {width:3}  {one:10,}  {other:9,}   {one / other:5.2f}   {tokens**2:,} against {width**2:,}"
    )

# %% [markdown]
# <details><summary>Answer</summary>
#
# $Q(K^TV)$, by the factor N / d = 196 / 64, about 3. The first order takes $2N^2d$ multiply-accumulates and needs an N
# x N matrix between the products. The second takes $2Nd^2$ and needs a d x d matrix, which does not grow with the
# image. With four times as many tokens (a 448 x 448 image) the factor is 12. The package compares N and d and uses the
# cheaper order.
#
# </details>

# %%
fig, axes = se.plot.multiplication_order(32)
se.plot.show(
    fig,
    "Left: operations of both orders over the number of tokens N for one head of width d = 32 in one time step; they "
    "cross at N = d. Right: the ratio N / d for every preset; above 1 the order Q (K^T V) is cheaper.",
)

# %% [markdown]
# ## The whole layer
#
# Now we add the rest: the linear maps with batch norm before the neurons, the heads, and the projection. Linear layers
# and batch norm do not depend on time, so for them time is merged with the batch. The neurons need T as a separate
# first dimension. Shape comments mark each change. We use the weights of the package's class so that we can compare the
# results.


# %%
# evaluation mode, over the last dimension of [T, B, N, features]
def batch_norm(bn, x):
    y = F.batch_norm(
        x.flatten(0, 2),
        bn.running_mean,
        bn.running_var,
        bn.weight,
        bn.bias,
        eps=bn.eps,
    )
    return y.reshape(x.shape)


def ssa_by_hand(layer, x, s=0.125):  # x [T, B, N, D]
    T, B, N, D = x.shape
    h = layer.heads
    # [T, B, N, 3D], real
    qkv = batch_norm(layer.bn, F.linear(x, layer.qkv.weight, layer.qkv.bias))
    parts = []
    for current in qkv.chunk(3, dim=-1):  # Q, K, V, each [T, B, N, D]
        spikes, _ = lif(current)  # {0, 1}
        # [T, B, h, N, d]
        parts.append(spikes.reshape(T, B, N, h, D // h).transpose(2, 3))
    q, k, v = parts
    # [T, B, h, N, d], {0, 1}
    x, _ = lif(q @ (k.transpose(-2, -1) @ v) * s, v_threshold=0.5)
    x = x.transpose(2, 3).reshape(T, B, N, D)  # heads side by side again
    proj = layer.proj
    x, _ = lif(
        batch_norm(proj.bn, F.linear(x, proj.linear.weight, proj.linear.bias))
    )
    return x, (q, k, v)


# %% [markdown]
# First we test a fresh layer, with random batch norm weights and biases so that all neuron layers fire. T = 4 and B = 3
# differ on purpose: if they were equal, no shape would reveal a mix-up of the two.

# %%
torch.manual_seed(1)
T, B, N, D = 4, 3, 8, 32
for backend in ("fused", "snntorch"):
    layer = se.ATTENTION["ssa"](D, heads=4, backend=backend).eval()
    for bn in (layer.bn, layer.proj.bn):
        torch.nn.init.uniform_(bn.weight, 1, 3)
        torch.nn.init.uniform_(bn.bias, 0, 2)
    # integers, like the residual stream
    tokens = torch.randint(0, 3, (T, B, N, D)).float()
    with torch.no_grad():
        mine, (q2, k2, v2) = ssa_by_hand(layer, tokens)
        theirs = layer(tokens)
        assert mine.shape == theirs.shape == (T, B, N, D)
        assert torch.equal(mine, theirs), "every spike, exactly"
        one_by_one = torch.cat(
            [layer(tokens[:, b : b + 1]) for b in range(B)], dim=1
        )
        assert torch.equal(one_by_one, theirs), (
            "a sample's spikes do not depend on the others in its batch"
        )
        assert torch.equal(layer(tokens), theirs), (
            "nor on the batch before: no state is left behind"
        )
    print(
        f"{backend:9} rates: Q {q2.mean():.2f}  K {k2.mean():.2f}  V {v2.mean():.2f}  out {theirs.mean():.2f}"
    )

# %% [markdown]
# Then we test the trained network. The recording holds the input of each block: the tokens after
# [SPS](../docs/glossary.md#sps), and the residual stream after block 0.

# %%
entering = {
    # [T, B, D, 8, 8] -> [T, B, N, D]
    0: (rec["sps.3"].spikes + rec["sps.rpe"].spikes).flatten(3).transpose(2, 3),
    1: rec["blocks.0.residual"].values,
}
for block, tokens in entering.items():
    name = f"blocks.{block}.attn"
    with torch.no_grad():
        mine, parts = ssa_by_hand(model.blocks[block].attn, tokens)
    for letter, part in zip("qkv", parts, strict=True):
        assert torch.equal(part, rec[f"{name}.{letter}"].spikes)
    assert torch.equal(mine, rec[f"{name}.proj"].spikes)
    print(
        f"{name}: all {mine.numel():,} output spikes and non-spikes equal, shape {list(mine.shape)}"
    )

# %% [markdown]
# ## Scale and threshold: which sums fire
#
# If the sum m is the same at every step, the current is m s, and the membrane rises towards it: m s / 2 at t = 0, then
# 3 m s / 4, and so on. So a neuron fires at the first step if $m \ge 2 V_{th} / s$, and never fires if
# $m \le V_{th} / s$. The paper uses s = 0.125. A transformer would use $1/\sqrt d$, which is 0.25 for the packaged
# network's d = 16.

# %%
m = torch.arange(13.0)
steps = 8
fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
for ax, scale in zip(axes, (0.125, 0.25), strict=True):
    fired, _ = lif((m * scale).expand(steps, 13), v_threshold=0.5)
    se.plot.raster(fired, ax=ax)
    ax.set_title(f"attention neuron, s = {scale}, T = {steps}")
    ax.set_yticks(range(0, 13, 2), range(0, 13, 2))
    ax.set_ylabel("sum m of $QK^TV$, each step")
    ax.axhspan(-0.5, 0.5 / scale + 0.5, color=style.PALE, zorder=0)
    # at once: m >= 2 * 0.5 / s
    assert fired[0].tolist() == (m >= 1 / scale).float().tolist()
    assert fired.any(0).tolist() == (m > 0.5 / scale).tolist()  # ever
axes[1].set_ylabel("")
se.plot.show(
    fig,
    "Two rasters of attention neurons with a constant sum m from 0 (top) to 12, T = 8. At s = 0.125 sums up to 4 never "
    "fire "
    "(grey) and sums from 8 fire at every step; at s = 0.25 it is 2 and 4.",
)

# %% [markdown]
# So the scale sets a threshold on the sums: at 0.125 the sum must be more than 4, at 0.25 more than 2. The paper's
# CIFAR and ImageNet networks use 0.125 for every d. It is a power of two, so scaling does not round; for integers it
# would be a shift by three bits. Exercise 5.2 counts the spikes that change with the scale.
#
# ## Ties
#
# At t = 0 every H is a multiple of s / 2 = 1/16, so H = 0.5 whenever a sum is exactly 8. At each later step the grid is
# twice as fine; after a reset the neuron is on the coarse grid again. How often are membranes of the trained network
# exactly at the threshold, and how many spikes would be lost if neurons fired only above it?


# %%
def lif_above(current, v_threshold):  # the wrong neuron: > instead of >=
    membrane, spikes = torch.zeros_like(current[0]), []
    for x in current:
        h = (membrane + x) / 2
        spikes.append((h > v_threshold).to(x.dtype))
        membrane = h * (1 - spikes[-1])
    return torch.stack(spikes)


for block in range(2):
    record = rec[f"blocks.{block}.attn.attn"]
    tied = record.membrane == record.v_threshold
    assert (record.spikes[tied] == 1).all() and tied.any()  # a tie is a spike
    pq, pk, pv = (rec[f"blocks.{block}.attn.{part}"].spikes for part in "qkv")
    current = pq @ (pk.transpose(-2, -1) @ pv) * 0.125
    right, wrong = lif(current, 0.5)[0], lif_above(current, 0.5)
    assert torch.equal(right, record.spikes)
    lost, late = (
        (right > wrong).sum() / right.sum(),
        (wrong > right).sum() / right.sum(),
    )
    assert lost > 0
    share = tied.sum() / right.sum()
    print(
        f"{record.name}: {share:.1%} of the spikes are ties; with >, {lost:.1%} are lost and {late:.1%} are new"
    )
    for t in range(len(tied)):
        on_grid = record.membrane[t] * 8 * 2 ** (t + 1)  # in units of s / 2^(t+1)
        assert torch.equal(on_grid, on_grid.round())

# %%
fig, axes = se.plot.landscape(
    {
        f"block {b}: blocks.{b}.attn.attn": rec[f"blocks.{b}.attn.attn"]
        for b in range(2)
    }
)
se.plot.show(
    fig,
    "Histograms of the membrane potential of the attention neurons in both blocks, T = 4, under the derivative of the "
    "surrogate. The red bar of exact ties stands at 0.5, where the derivative is highest.",
)

# %% [markdown]
# ## Attention over time
#
# Softmax attention gives one map for each head. SSA gives one map for each head and time step, because Q and K have new
# spikes at every step. The maps show how much score each token receives (the mean of $QK^Ts$ over the queries) for one
# test digit.

# %%
picture = images[1] * 0.40 + 0.22  # undo the normalisation of the data set
fig, axes = se.plot.attention_over_time(
    rec["blocks.0.attn.scores"], picture, sample=1
)
se.plot.show(
    fig,
    "Attention maps of block 0 of the packaged network for one digit, four heads down and T = 4 time steps across, all "
    "on one colour scale. At t = 0 nearly all is dark; then some heads light up, each in places of its own.",
)
scores = rec["blocks.0.attn.scores"].values[:, 1]  # [T, h, N, N]
assert (
    rec["blocks.0.attn.scores"].values[0].mean()
    < 0.5 * rec["blocks.0.attn.scores"].values[1:].mean()
)
assert not torch.equal(scores[1], scores[2]) and not torch.equal(
    scores[1, 0], scores[1, 1]
)

# %% [markdown]
# At t = 0 there are almost no scores: a neuron that starts from zero fires at the first step only if its current is at
# least twice the threshold, and Q and K are the sixth layer of neurons after the image. The first layers do fire at the
# first step (chapter 03); each layer behind them fires less.
#
# ## Pitfalls
#
# **`>` instead of `>=`.** Symptom: everything runs, but rates are a little low, and published weights lose accuracy.
# Cause: the neuron fires only above the threshold, as with snnTorch's own surrogates. Cure: test a tie, as we did.
#
# **T and B swapped in a reshape.** Symptom: there is no error when T = B, or when the shapes fit by chance, but the
# neuron treats other samples of the batch as earlier time steps of a sample. Cure: test with T ≠ B, and compare a batch
# with its samples one by one. The next cell makes this mistake in one line:

# %%
# T = 4, B = 3, 50 neurons
x = 2.5 * torch.rand(4, 3, 50, generator=torch.Generator().manual_seed(2))
right = lif(x)[0]
# [T, B] was read as [B, T]: no error, other spikes
swapped = lif(x.reshape(3, 4, 50))[0].reshape(4, 3, 50)
print(f"{int((right != swapped).sum())} of {right.numel()} outputs differ")
assert (right != swapped).sum() > 50

# %% [markdown]
# **Low precision rounds counts.** bfloat16 has 8 significant bits, so it cannot hold all integers above 256. An inner
# product over N = 196 tokens is at most 196, so the first product is exact in both orders. The second product is a
# larger sum, and in both orders the same exact value is rounded once. So the two orders agree up to 256 tokens. With
# more tokens they can differ.
#
# **A scale that is not a power of two.** Then the two orders round at different places, and a sum that should equal the
# threshold may miss it by the last bit.

# %%
print("257 in bfloat16:", float(torch.tensor(257.0).bfloat16()))
scale = 0.1
left, right = (
    (rq @ rk.transpose(-2, -1) * scale) @ rv,
    rq @ (rk.transpose(-2, -1) @ rv) * scale,
)
torch.testing.assert_close(left, right)  # close, of course
assert not torch.equal(left, right)  # but not equal
print("s = 0.1: the two orders agree to the last bit:", torch.equal(left, right))

# %% [markdown]
# ## Exercises
#
# **5.1** SSA needs only the d x d matrix $K^TV$: it gives the same output for all keys and values with the same $K^TV$.
# Prove that softmax attention needs more. Find binary q, k, v and other k2, v2 with `k.T @ v == k2.T @ v2` for which
# the softmax outputs differ by more than 0.1. Matrices with one or two rows are enough.


# %% tags=["exercise-1"]
def same_to_ssa():
    """Return q, k, v, k2, v2: tensors [N, d] in {0, 1} with k.T @ v == k2.T @ v2 and different softmax outputs."""
    ...


# %% tags=["check-1"]
with se.exercise("5.1"):
    found = same_to_ssa()
    assert found is not None, "write same_to_ssa first"
    assert all(((x == 0) | (x == 1)).all() for x in found), (
        "use zeros and ones only"
    )
    eq, ek, ev, ek2, ev2 = (x.float() for x in found)
    assert torch.equal(ek.T @ ev, ek2.T @ ev2), (
        "k.T @ v and k2.T @ v2 differ: think of a token that no query can find"
    )
    assert torch.equal((eq @ ek.T) @ ev, (eq @ ek2.T) @ ev2), (
        "SSA must not see a difference"
    )
    gap = (
        ((eq @ ek.T).softmax(-1) @ ev - (eq @ ek2.T).softmax(-1) @ ev2).abs().max()
    )
    assert gap > 0.1, (
        "softmax gives the same: a key of zeros gets a weight, so change the value of such a token"
    )

# %% [markdown]
# **5.2** How many spikes change when s goes from 0.125 to $1/\sqrt d$? Write a function that takes Q, K, V as
# `[T, N, d]` and two scales, and returns how many spikes the second scale adds and how many it removes. Why can a
# larger current remove a spike?


# %% tags=["exercise-2"]
def changed(q, k, v, old, new):
    """Return (added, removed): spikes of SN(Q K^T V s), V_th = 0.5, that come and go when s = old becomes s = new."""
    ...


# %% tags=["check-2"]
with se.exercise("5.2"):
    result = changed(q, k, v, 0.125, 0.125)
    assert result is not None, "write changed first"
    assert tuple(map(int, result)) == (0, 0), "the same scale changes nothing"
    once = changed(q[:1], k[:1], v[:1], 0.125, 0.25)
    assert tuple(map(int, once)) == (
        int(((Q @ K.T @ V >= 4) & (Q @ K.T @ V < 8)).sum()),
        0,
    ), "one step: sums 4 to 7 join"
    # T = 6, one token, d = 32; five ones, so that every sum is 5 where V is 1
    five = torch.zeros(6, 1, 32)
    five[..., :5] = 1
    moved = tuple(map(int, changed(five, five, five, 0.125, 32**-0.5)))
    assert moved == (10, 5), (
        "sum 5 fires at t = 2, 5 with s = 0.125, and at t = 1, 3, 5 with 0.177: run all T steps"
    )

# %% [markdown]
# **5.3** Compute one entry of $QK^TV$ with integers as bitmaps, as hardware would: each row of Q and of K is one
# integer of d bits, and column c of V is a list of bits. Use `&` and `int.bit_count()`, but no tensors and no
# multiplication.


# %% tags=["exercise-3"]
def entry(query, keys, column):
    """Sum of popcount(query & key) over the keys whose bit in the column is 1. query: int, keys: ints, column: 0/1."""
    ...


# %% tags=["check-3"]
def as_int(row):
    return int("".join(str(int(bit)) for bit in row), 2)


with se.exercise("5.3"):
    keys = [as_int(row) for row in K]
    first = entry(as_int(Q[2]), keys, [int(bit) for bit in V[:, 4]])
    assert first is not None, "write entry first"
    assert first == 8, "query 2, feature 4 gathers 1 + 2 + 3 + 2 = 8"
    table = [
        [entry(as_int(row), keys, [int(bit) for bit in V[:, c]]) for c in range(8)]
        for row in Q
    ]
    assert torch.equal(torch.tensor(table), (Q @ K.T @ V).long()), (
        "some entry differs from Q K^T V"
    )

# %% [markdown]
# ## Recap
#
# - An entry of $QK^T$ is the popcount of an AND. A row of $QK^T$ times a column of V is a sum, and s times the sum is
#   the current of a neuron.
# - Counts are never negative and mostly zero, and the neuron behind them only asks whether a sum reaches its threshold.
#   It needs no probabilities, so no softmax. Without it $(QK^T)V = Q(K^TV)$ to the last bit.
# - For N > d the cheaper order costs $2Nd^2$ instead of $2N^2d$ and needs no N x N matrix.
# - Sums lie on a grid, so ties with the threshold are common, and `>=` matters.
# - The layer is Linear, BN, neuron, heads, product, neuron, Linear, BN, neuron. Every spike of our version equals the
#   package's.
#
# Next: [chapter 06](06_encoder_block.ipynb) puts the layer into a block with residuals and an MLP. Solutions of the
# exercises: [here](solutions/05_spiking_self_attention.ipynb).
