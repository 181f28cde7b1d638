# %% [markdown]
# # 04 · Softmax attention, recapped
#
# *Run time 10 s on one CPU core · after chapter 03 · no internet access, no GPU*
#
# Spikformer keeps the attention of the transformer but removes its softmax. To understand what this changes, you need
# to know what the softmax does. This chapter computes attention on five tokens by hand. It measures what the softmax
# does and what it costs, and then applies it to spikes. You need matrix products; the parts on spikes also use the
# neuron of chapter 01.
#
# ![The network's parts, from image to answer; this chapter is about attention, the first half of each block](../docs/images/network_map/04.svg)
#
# ## What you will learn
# - to compute attention on a handful of tokens: queries, keys, scores, softmax, values, heads
# - to read a row of an attention map
# - to say what the softmax guarantees, what it costs, and which order of multiplication it forces
# - to say what it changes in scores of spikes, and to know the package's two softmax variants

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

from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# There are five tokens with four features each: red, blue, circle, square. Every token is compared with all five, in
# two *heads*: head 0 compares colors, head 1 compares shapes. The token that is compared is called the query, and the
# five tokens that it is compared with are the keys. A row of a map belongs to one query and shows how its attention is
# distributed over the keys: the five weights sum to 1. The red circle attends mostly to the two red tokens in head 0,
# and to the two circles in head 1, with a weight of 0.4 each. The empty token has no features. It matches all keys
# equally, so all weights in its row are 0.2.

# %%
names = ["red circle", "blue circle", "red square", "blue square", "empty"]
# [N, D]
X = torch.tensor(
    [[1.0, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]]
)
N, D, h = 5, 4, 2
d = D // h
W_q = W_k = 1.6 * torch.eye(D)  # weights chosen by hand; a network would learn them
W_v = torch.eye(D)


def heads(x):  # [N, D] -> [h, N, d]: each head takes d of the features
    return x.reshape(N, h, d).transpose(0, 1)


Q, K, V = heads(X @ W_q), heads(X @ W_k), heads(X @ W_v)
A = (Q @ K.transpose(-2, -1) / d**0.5).softmax(-1)  # [h, N, N]

fig, axes = se.plot.attention_matrix(
    {"head 0: color": A[0], "head 1: shape": A[1]},
    names=names,
    label="softmax weight",
)
se.plot.show(
    fig,
    "Two attention maps of five tokens, queries down and keys across. In head 0 "
    "tokens of one color attend to each other, in head 1 tokens of one shape; the "
    "row of the empty token is 0.2 everywhere.",
)
assert A[0, 0].argmax() == 0 and torch.allclose(A[0, 0, 0], A[0, 0, 2])
assert torch.allclose(A[:, 4], torch.tensor(0.2))

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $X$ | `[N, D]` | reals | N tokens, D features each |
# | $Q, K, V$ | `[h, N, d]` | reals | queries, keys, values of h heads, d = D / h |
# | $QK^\top / \sqrt d$ | `[h, N, N]` | reals | [scores](../docs/glossary.md#attention-scores): match of a query and a key |
# | $A$ | `[h, N, N]` | reals in (0, 1) | softmax of the scores, each row sums to 1 |
# | $AV$ | `[h, N, d]` | reals | means of values, one for each query |
#
# $$Q, K, V = XW_q,\; XW_k,\; XW_v, \qquad A = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt d}\right), \qquad
# \mathrm{Attention}(Q, K, V) = AV$$
#
# A batch of spike trains has two more dimensions in front, time steps and samples: `[T, B, h, N, d]`. Most of this
# chapter does without them; the section on the package's softmax variants uses them. The
# [glossary](../docs/glossary.md#symbols) lists the symbols of all chapters.

# %% [markdown]
# ## Step by step
#
# Three linear maps compute three vectors from each token: the query (what does the token look for?), the key (what is
# the token?) and the value (what does it pass on?). An inner product measures how well a query and a key match. We look
# at head 0 and the first query, the red circle.

# %%
query, scores = Q[0, 0], torch.zeros(N)
for j in range(N):  # each key
    for f in range(d):  # each feature
        scores[j] += query[f] * K[0, j, f]
scores = scores / d**0.5
for name, score in zip(names, scores, strict=True):
    print(f"red circle meets {name:12} score {float(score):5.2f}")
torch.testing.assert_close(scores, (Q @ K.transpose(-2, -1) / d**0.5)[0, 0])

# %% [markdown]
# The softmax turns scores into weights: it takes the exponential of each score and divides by the sum. Subtracting the
# largest score first does not change the result and prevents overflow of the exponential.

# %%
exponentials = (scores - scores.max()).exp()
total = exponentials.sum()
weights = exponentials / total
print("exponentials", *(f"{e:.3f}" for e in exponentials), f"  sum {total:.3f}")
print("weights     ", *(f"{w:.3f}" for w in weights), f"  sum {weights.sum():.3f}")
torch.testing.assert_close(weights, A[0, 0])
# only differences of scores matter
torch.testing.assert_close((scores + 100).softmax(0), weights)

# %% [markdown]
# The output is the mean of the values with these weights. Here it is mostly red and a little blue; the rest of the
# weight goes to the empty token.

# %%
output = sum(weights[j] * V[0, j] for j in range(N))
print(f"red circle, output of head 0: red {output[0]:.2f}  blue {output[1]:.2f}")
torch.testing.assert_close(output, (A @ V)[0, 0])

# %% [markdown]
# ## All tokens, all heads
#
# Two matrix products with a softmax between them do this for every query. Each head works on its own d features. At the
# end the heads are put side by side again. PyTorch has one function for the products and the softmax.


# %%
def attention(q, k, v):  # each [..., N, d]
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # [..., N, N]
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True) @ v  # [..., N, d]


mine = attention(Q, K, V)
torch.testing.assert_close(mine, F.scaled_dot_product_attention(Q, K, V))
merged = mine.transpose(0, 1).reshape(N, D)
print("              red   blue  circle square")
for name, row in zip(names, merged, strict=True):
    print(f"{name:12}", *(f"{float(value):5.2f}" for value in row))

# the same function on larger tensors: T, B, h, N, d
big = [
    torch.randn(4, 3, 2, 49, 16, generator=torch.Generator().manual_seed(n))
    for n in range(3)
]
torch.testing.assert_close(attention(*big), F.scaled_dot_product_attention(*big))

# %% [markdown]
# **Predict before you run.** A row of A belongs to one query. What does a *column* mean, and does it sum to one? And
# can an output be larger than the largest value?

# %% tags=["predict"]
rows, columns = A.sum(-1), A.sum(-2)
print("rows sum to   ", *(f"{float(x):.2f}" for x in rows[0]))
print("columns sum to", *(f"{float(x):.2f}" for x in columns[0]))
torch.testing.assert_close(rows, torch.ones(h, N))
assert not torch.allclose(columns, torch.ones(h, N))
values, outputs = big[2], attention(*big)  # [T, B, h, N, d]
print(f"largest value {values.max():.2f}, largest output {outputs.max():.2f}")
assert (outputs <= values.amax(-2, keepdim=True) + 1e-6).all()
assert (outputs >= values.amin(-2, keepdim=True) - 1e-6).all()

# %% [markdown]
# <details><summary>Answer</summary>
#
# A column belongs to a key and shows how much attention this token receives from each query. Its sum can be any number
# between 0 and N; it is large if many queries attend to the token. An output is a weighted mean of values, with
# positive weights that sum to one. So each of its features stays between the smallest and the largest value of that
# feature.
#
# </details>
#
# ## What the softmax is for
#
# Without the softmax the output is a sum of N terms, and each term has a factor that is a sum of d products. The output
# is not bounded: it grows with N and with the size of the weights, and without the factor $1/\sqrt d$ also with d. The
# softmax turns the sum into a mean. We measure the largest output for random Q, K, V of unit variance.

# %% tags=["fold"]
# largest output for 16 to 1024 tokens, with and without softmax
tokens = [16, 64, 256, 1024]
generator = torch.Generator().manual_seed(1)
measured = {"no softmax": [], "softmax": []}
for n in tokens:
    q, k, v = torch.randn(3, n, 32, generator=generator)
    measured["no softmax"].append(float((q @ k.T / 32**0.5 @ v).abs().max()))
    measured["softmax"].append(float(attention(q, k, v).abs().max()))
fig, ax = plt.subplots(figsize=(6.4, 3.6))
product = r"$(QK^\top/\sqrt{d})\,V$"
ax.loglog(tokens, measured["no softmax"], "o-", color=style.K, label=product)
ax.loglog(
    tokens, measured["softmax"], "s--", color=style.Q, label="softmax" + product
)
ax.set_xticks(tokens, tokens)
ax.set_yticks([0.3, 1, 3, 10, 30, 100], [0.3, 1, 3, 10, 30, 100])
ax.minorticks_off()
ax.set(
    xlabel="tokens N",
    ylabel="largest output",
    title="random Q, K, V of unit variance, one head, d = 32",
)
ax.legend()
se.plot.show(
    fig,
    "Largest output of attention over the number of tokens, random inputs. Without "
    "softmax it grows with N and passes 100; with softmax it stays below 4.",
)
assert measured["no softmax"] == sorted(measured["no softmax"])
assert max(measured["softmax"]) < 4 < 100 < max(measured["no softmax"])

# %% [markdown]
# From 16 to 1024 tokens the largest output grows from 16 to 150 without the softmax. With it, the largest output is 1.1
# at 16 tokens and 0.2 at 1024: a mean over more random values is closer to zero.
#
# Trained weights are not random, so we measure once more with the packaged network. It reads digits of 32 x 32 pixels
# with N = 64 tokens, 4 heads, d = 16 and T = 4. The currents of its Q, K and V neurons are real numbers. We use these
# currents as real-valued queries, keys and values. (The network was trained with spikes and not with these products. So
# this cell shows only how large the outputs get.)

# %%
model = se.load_pretrained("digits-2-64")
images, _ = se.data.load("digits").test.fetch(torch.arange(24), None)
seen = []
handles = [
    block.attn.bn.register_forward_hook(lambda module, x, y: seen.append(y))
    for block in model.blocks
]
with torch.no_grad():
    model(images)
for handle in handles:
    handle.remove()
for i, currents in enumerate(seen):
    # each [T, B, h, N, d], real
    q, k, v = currents.reshape(4, 24, 64, 3, 4, 16).permute(3, 0, 1, 4, 2, 5)
    raw = (q @ k.transpose(-2, -1) / 4 @ v).abs().max()
    soft = attention(q, k, v).abs().max()
    print(
        f"block {i}: largest value {v.abs().max():.1f};",
        f"largest output {raw / 1e3:.1f} thousand, with softmax {soft:.1f}",
    )
    assert soft <= v.abs().max() + 1e-4 and raw > 10 * soft

# %% [markdown]
# ## What it costs
#
# Each of the N x N entries in every head needs an exponential, an addition to the sum and a division. In the code above
# all entries are in memory at once, and they stay there for the backward pass. (Fused kernels work on tiles and never
# store the whole matrix. But they also compute every entry, and compute it again in the backward pass.) The next cell
# counts the numbers that PyTorch saves for the backward pass between the two products: with softmax, and without it in
# the order $Q(K^\top V)$.


# %% tags=["fold"]
# counts the numbers that PyTorch keeps for the backward pass
def saved_numbers(product, n, width):
    sizes = []
    q, k, v = (torch.randn(n, width, requires_grad=True) for _ in range(3))
    own = {x.data_ptr() for x in (q, k, v)}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            sizes.append((tensor.data_ptr(), tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        product(q, k, v)
    return sum(dict(sizes).values())


print("  N   d   exponentials   kept with softmax   kept for Q(K^T V)")
for n, width in ((64, 32), (196, 64), (784, 64)):
    with_softmax = saved_numbers(
        lambda q, k, v: (q @ k.T / 8).softmax(-1) @ v, n, width
    )
    without = saved_numbers(lambda q, k, v: q @ (k.T @ v) / 8, n, width)
    assert with_softmax >= n * n and without == width * width
    print(f"{n:3}  {width:2}   {n * n:12,}   {with_softmax:17,}   {without:17,}")

# %% [markdown]
# ## The order it forbids
#
# Matrix products are associative: $(QK^\top)V = Q(K^\top V)$. Without a softmax the two products can be computed in
# either order, and the second order never makes an N x N matrix. With the softmax between them only the first order is
# possible: the softmax is not linear, and it needs a whole row of scores before it can compute one weight.
#
# **Predict before you run.** Could we use the softmax of Q, of K or of $K^\top V$ instead, and get the same result?

# %% tags=["predict"]
q, k, v = (x.double() for x in big)
kt = k.transpose(-2, -1)
torch.testing.assert_close((q @ kt) @ v, q @ (kt @ v))  # associative
right = (q @ kt).softmax(-1) @ v
for name, other in {
    "softmax(Q) (softmax(K)^T V)": q.softmax(-1)
    @ (k.softmax(-2).transpose(-2, -1) @ v),
    "Q softmax(K^T V)": q @ (kt @ v).softmax(-1),
    "Q (softmax(K)^T V)": q @ (k.softmax(-2).transpose(-2, -1) @ v),
}.items():
    print(f"{name:28} largest difference {float((right - other).abs().max()):.1f}")
    assert (right - other).abs().max() > 0.5

# %% [markdown]
# <details><summary>Answer</summary>
#
# No. The score of a query and a key enters through $e^{q \cdot k}$. This cannot be written as an inner product of d
# features that depend only on q and d features that depend only on k: infinitely many features would be needed. The
# variants above are other functions. Some of them are used as *linear attention*, and a network must be trained with
# them from the start. Exercise 5.1 of the next chapter proves that $K^\top V$ does not hold enough information to
# compute a softmax.
#
# </details>
#
# ## Softmax on spikes
#
# In Spikformer Q and K are spikes, {0, 1}. Their inner product counts the ones that both have: it is an integer from 0
# to d. So the scores are never negative, and they are bounded, before any softmax. What does a softmax change? We draw
# spikes at a rate of 15 %.

# %%
bits = torch.Generator().manual_seed(3)
q, k, v = (torch.rand(3, 64, 16, generator=bits) < 0.15).float()  # N = 64, d = 16
counts = q @ k.T
weights = (counts / 4).softmax(-1)
zeros = [(x == 0).float().mean() for x in (counts, weights)]
print(f"counts:   {counts.unique().int().tolist()}, {zeros[0]:.0%} of them zero")
print(
    f"softmax:  reals from {weights.min():.4f} to {weights.max():.4f},",
    f"{zeros[1]:.0%} of them zero",
)
nothing = counts.sum(1) == 0
print(
    f"queries that share no feature with any key: {int(nothing.sum())},",
    f"their softmax weights: {weights[nothing].unique().tolist()}, which is 1 / 64",
)
assert torch.equal(counts, counts.round()) and (weights > 0).all()
assert nothing.any() and torch.allclose(weights[nothing], torch.tensor(1 / 64))

# %% [markdown]
# The softmax changes three things. Integers become reals. Zeros become positive numbers, so every query attends to
# every key. And a query that matches no key gets the mean of all values; a sum of values weighted by counts would be
# zero.
#
# None of this shows that a softmax makes the answers worse. In Table 1 of
# [the paper](https://arxiv.org/abs/2209.15425) the softmax variant (real Q and K, spikes in V) and SSA are less than a
# point apart: 94.97 % and 95.19 % on CIFAR-10, 77.92 % and 77.86 % on CIFAR-100, 80.00 % and 80.90 % on CIFAR10-DVS.
# [Chapter 09](09_ablations.ipynb) asks how much such differences mean.
#
# ## The package's softmax variants
#
# `se.ATTENTION` has two softmax variants. In `softmax` Q and K are real and V is spikes; in `vanilla` V is real too.
# Both end with the attention neuron and a projection with a neuron, so their output is spikes. The attention neuron
# fires at $H \ge V_{th} = 0.5$. At the first step its membrane potential H is half of its current, here half of the
# mean of values: a mean of 1 gives H = 0.5, and the neuron fires.
#
# So rounding can decide whether there is a spike. Suppose that ten tokens have equal scores, and that all ten have a 1
# in some feature of V. The weights are 0.1 each, and their exact sum is 1. A computer rounds after every addition:

# %%
one_by_one = 0.0
for weight in [0.1] * 10:
    one_by_one += weight
once = math.fsum([0.1] * 10)
for how, mean in (("added one by one", one_by_one), ("rounded once", once)):
    print(f"{how:17} mean {mean:<19} H {mean / 2:<20} fires: {mean / 2 >= 0.5}")
assert one_by_one < 1

# %% [markdown]
# The last bit of the sum decides whether the neuron fires. So two programs are certain to give the same spikes only if
# they do the same operations in the same order. The next cell writes the layer by hand with PyTorch's softmax and
# matrix product, as the package does, with T = 4 and B = 3.


# %%
# the neuron of chapter 01: current [T, ...] -> spikes [T, ...]
def lif(current, v_threshold=1.0):
    membrane, spikes = torch.zeros_like(current[0]), []
    for x in current:
        charged = (membrane + x) / 2
        spikes.append((charged >= v_threshold).to(x.dtype))
        membrane = charged * (1 - spikes[-1])
    return torch.stack(spikes)


def softmax_layer(layer, x, spiking_v):  # x [T, B, N, D]
    T, B, N, D = x.shape
    # real
    qkv = layer.bn(layer.qkv(x).flatten(0, 2)).reshape(T, B, N, 3, layer.heads, -1)
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each [T, B, h, N, d]
    v = lif(v) if spiking_v else v
    weights = (q @ k.transpose(-2, -1) * layer.scale).softmax(-1)  # [T, B, h, N, N]
    x = lif(weights @ v, v_threshold=0.5)  # [T, B, h, N, d], {0, 1}
    x = x.transpose(2, 3).reshape(T * B * N, D)  # heads side by side
    return lif(layer.proj.bn(layer.proj.linear(x)).reshape(T, B, N, D))


torch.manual_seed(2)
for kind in ("softmax", "vanilla"):
    # double: rounding almost never changes a spike
    layer = se.ATTENTION[kind](32, heads=4).double().eval()
    for bn in (layer.bn, layer.proj.bn):
        torch.nn.init.uniform_(bn.weight, 2, 4)
        torch.nn.init.uniform_(bn.bias, 0, 2)
    x = torch.randint(0, 3, (4, 3, 20, 32)).double()  # tokens [T, B, N, D]
    with torch.no_grad():
        mine = softmax_layer(layer, x, spiking_v=kind == "softmax")
        theirs = layer(x)
    assert mine.shape == (4, 3, 20, 32) and torch.equal(mine, theirs)  # every spike
    assert layer.scale == 8**-0.5 and 0 < mine.mean() < 1
    print(f"{kind:8} all spikes equal the package's, firing rate {mine.mean():.2f}")

# %% [markdown]
# ## Pitfalls
#
# **Softmax over the wrong axis.** Symptom: no error, and columns sum to one instead of rows. Cure: assert that
# `A.sum(-1)` is one.
#
# **Exponentials that overflow.** Scores can exceed 88 when weights are large, especially without the factor
# $1/\sqrt d$. `exp(100)` is infinite in float32, and infinity divided by infinity is NaN. Subtract the largest score of
# the row, as above and as in every library.
#
# **Heads split in the wrong order.** `[N, D]` becomes `[N, h, d]` and only then `[h, N, d]`. Reshaping to `[h, N, d]`
# at once raises no error and mixes tokens with features:

# %%
print("exp(100) in float32:", float(torch.tensor(100.0).exp()))
right, wrong = heads(X), X.reshape(h, N, d)
for how, (first, second, *_) in (
    ("right", right[0]),
    ("reshaped at once", wrong[0]),
):
    print(f"{how:17} token 0 {first.tolist()}   token 1 {second.tolist()}")
assert right.shape == wrong.shape and not torch.equal(right, wrong)
# what should be token 1 is the shape of token 0
assert torch.equal(wrong[0, 1], X[0, 2:])

# %% [markdown]
# ## Exercises
#
# **4.1** Remove the softmax and measure. The *size* of a matrix is the root of the mean of its squared entries. Write
# `size`, which returns the size of $QK^\top V / \sqrt d$. Then measure how it grows with the number of tokens, for two
# kinds of input with d = 32: real numbers, `torch.randn(3, n, 32)`, and spikes at a rate of 20 %,
# `(torch.rand(3, n, 32) < 0.2).float()`. The size grows like a power of N, and the exponent is about 0, 0.5, 1 or 2.
# Write down both exponents.


# %% tags=["exercise-1"]
def size(q, k, v):
    """Root mean square of the entries of Q K^T V / sqrt(d). q, k, v: [N, d]."""
    ...


power_real = None
power_spikes = None

# %% tags=["check-1"]
with se.exercise("4.1"):
    q = torch.tensor([[1.0, 2], [0, 1]])
    k = torch.tensor([[1.0, 0], [2, 1]])
    v = torch.tensor([[1.0, 1], [0, 2]])
    found = size(q, k, v)
    assert found is not None, "write size first"
    assert abs(float(found) - 3.2787) < 1e-3, (
        f"two tokens, d = 2: {float(found):.3f}, but by hand it is 3.279;"
        " compute the four entries on paper"
    )
    one = size(*torch.tensor([[[2.0]], [[3.0]], [[5.0]]]))
    assert abs(float(one) - 30) < 1e-3, (
        "one token, d = 1: the size is 2 * 3 * 5; which d do you divide by?"
    )
    assert power_real is not None and power_spikes is not None, (
        "now measure at 64 and at 4096 tokens: how many times as large is the size?"
    )
    assert power_real == 0.5, (
        "real numbers: compare the sizes at 64 and at 4096 tokens, 64 times as many"
    )
    assert power_spikes == 1, (
        "spikes: measure them too; terms of one sign add up in another way than"
        " terms of both signs"
    )

# %% [markdown]
# **4.2** Attention does not use the order of the tokens. Let `output` be `attention(q, k, v)`. Now shuffle the queries
# in one way, and the tokens of K and V in another way: `attention(q[a], k[b], v[b])`. Return this result, computed from
# `output`, a and b only.


# %% tags=["exercise-2"]
def of_shuffled(output, a, b):
    """attention(q[a], k[b], v[b]), made of output = attention(q, k, v) [N, d]."""
    ...


# %% tags=["check-2"]
with se.exercise("4.2"):
    q, k, v = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(7))
    a = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    b = torch.tensor([2, 7, 1, 8, 0, 4, 5, 9, 3, 6])
    result = of_shuffled(attention(q, k, v), a, b)
    assert result is not None, "write of_shuffled first"
    assert result.shape == (10, 4), f"shape {list(result.shape)}: [10, 4] is wanted"
    wanted = F.scaled_dot_product_attention(q[a], k[b], v[b])
    assert torch.allclose(
        result.sort(0).values, wanted.sort(0).values, atol=1e-6
    ), "these rows are not the outputs of the ten queries"
    assert torch.allclose(result, wanted, atol=1e-6), (
        "the rows are right, their order is not: which row of the output belongs to"
        " query a[0], and does a sum over keys depend on their order?"
    )

# %% [markdown]
# **4.3** Divide the scores by a positive number, the *temperature*, before the softmax. Write this softmax yourself,
# with `exp` and a sum. First predict the weights at a temperature near 0 and at a very large one.


# %% tags=["exercise-3"]
def weights_at(scores, temperature):
    """Softmax of scores / temperature over the last axis, at 0.001 and above."""
    ...


# %% tags=["check-3"]
class NoSoftmax(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert "softmax" not in function.__name__, "write it with exp and a sum"
        return function(*args, **(kwargs or {}))


with se.exercise("4.3"):
    scores = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 3.0], [-9.0, -7.0, -8.0]])
    with NoSoftmax():
        plain, half, cold, warm = (weights_at(scores, t) for t in (1, 2, 1e-3, 1e6))
    assert plain is not None, "write weights_at first"
    assert torch.allclose(plain.sum(-1), torch.ones(3)), "a row does not sum to one"
    assert torch.allclose(plain, scores.softmax(-1)), (
        "a temperature of 1 is the plain softmax"
    )
    assert torch.allclose(half, (scores / 2).softmax(-1)), (
        "a temperature of 2 halves the scores"
    )
    assert not cold.isnan().any(), (
        "NaN at a temperature of 0.001: what is exp(4000) in float32, and 0 / 0?"
    )
    best = torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 1, 0]])
    assert torch.allclose(cold, best), (
        "near 0 one score of each row gets all weight"
    )
    assert torch.allclose(warm, torch.full((3, 3), 1 / 3), atol=1e-5), (
        "at a very large temperature the weights are nearly equal"
    )

# %% [markdown]
# ## Recap
#
# - A query is compared with all keys, the softmax turns the scores into weights, and the output is a weighted mean of
#   values.
# - The softmax makes the weights positive and bounds the output, whatever the scores.
# - It needs an exponential for each of N x N entries, keeps all entries in memory (unless a fused kernel computes them
#   again), and fixes the order of the products.
# - Scores of spikes are counts from 0 to d, without any softmax. A softmax would make them positive reals, and a query
#   without a match would attend to all tokens equally.
#
# Next: [chapter 05](05_spiking_self_attention.ipynb) leaves the softmax out. Solutions of the exercises:
# [here](solutions/04_softmax_attention.ipynb).
