# %% [markdown]
# # 04 · Softmax attention, recapped
#
# *Run time 10 s on one CPU core · after chapter 03 · no internet access, no GPU*
#
# Spikformer keeps the attention of the transformer but removes its softmax. To understand what this changes, you need
# to know what the softmax does. This chapter computes attention on five tokens by hand, shows what the softmax does and
# costs, and shows what it does when queries and keys are spikes. You only need to know matrix products.
#
# ## What you will learn
# - to compute attention on a handful of tokens: queries, keys, scores, softmax, values, heads
# - to read a row of an attention map
# - to say what the softmax guarantees, what it costs, and which order of multiplication it forces
# - to say what it does to scores of spikes, and to know the package's two softmax variants

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

from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# There are five tokens with four features each: red, blue, circle, square. Head 0 compares colours, head 1 compares
# shapes. A row of a map belongs to one query and shows how its attention is distributed over the five keys. The red
# circle attends to everything red in head 0, and to every circle in head 1. The empty token has no features, so all
# weights in its row are equal.

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


def show_maps(maps, titles, alt, label):
    fig, axes = plt.subplots(1, len(maps), figsize=(10.4, 4.6), sharey=True)
    for ax, values, title in zip(axes, maps, titles, strict=True):
        drawn = ax.imshow(values, vmin=0, vmax=float(maps.max()))
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                color = "white" if value < 0.6 * maps.max() else "black"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
        ax.set_xticks(range(N), names, rotation=35, ha="right")
        ax.set(xlabel="key", title=title)
    axes[0].set_yticks(range(N), names)
    axes[0].set_ylabel("query")
    fig.colorbar(drawn, ax=axes, label=label, shrink=0.8)
    se.plot.show(fig, alt)


show_maps(
    A,
    ["head 0: colour", "head 1: shape"],
    "Two attention maps of five tokens, queries down and keys across. In head 0 tokens of one colour attend to "
    "each other, in head 1 tokens of one shape; the row of the empty token is 0.2 everywhere.",
    "softmax weight (T = 1)",
)
assert (
    A[0, 0].argmax() == 0
    and torch.allclose(A[0, 0, 0], A[0, 0, 2])
    and torch.allclose(A[:, 4], torch.tensor(0.2))
)

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $X$ | `[N, D]` | reals | N tokens, D features each |
# | $Q, K, V$ | `[h, N, d]` | reals | queries, keys, values of h heads, d = D / h |
# | $QK^T / \sqrt d$ | `[h, N, N]` | reals | [scores](../docs/glossary.md#attention-scores): how well both match |
# | $A$ | `[h, N, N]` | reals in (0, 1) | softmax of the scores, each row sums to 1 |
# | $AV$ | `[h, N, d]` | reals | means of values, one for each query |
#
# $$Q, K, V = XW_q,\; XW_k,\; XW_v, \qquad A = \mathrm{softmax}\!\left(\frac{QK^T}{\sqrt d}\right), \qquad
# \mathrm{Attention}(Q, K, V) = AV$$
#
# A batch of spike trains has two more dimensions in front, `[T, B, h, N, d]`. This chapter does not need them before
# the section on the package's softmax variants.

# %% [markdown]
# ## Step by step
#
# Three linear maps compute three vectors from each token: the query (what does the token look for?), the key (what is
# the token?) and the value (what does it pass on?). An inner product measures how well a query and a key match. We look
# at head 0 and the first query, the red circle.

# %%
query = Q[0, 0]
scores = (
    torch.stack([sum(query[f] * K[0, j, f] for f in range(d)) for j in range(N)])
    / d**0.5
)
for name, score in zip(names, scores, strict=True):
    print(f"red circle meets {name:12} score {float(score):5.2f}")
torch.testing.assert_close(scores, (Q @ K.transpose(-2, -1) / d**0.5)[0, 0])

# %% [markdown]
# The softmax turns scores into weights: it takes the exponential of each score and divides by the sum. Subtracting the
# largest score first does not change the result and prevents overflow of the exponential.

# %%
exponentials = [(score - scores.max()).exp() for score in scores]
total = sum(exponentials)
weights = torch.stack([e / total for e in exponentials])
print(
    "exponentials",
    *(f"{float(e):.3f}" for e in exponentials),
    "  sum",
    f"{float(total):.3f}",
)
print(
    "weights     ",
    *(f"{float(w):.3f}" for w in weights),
    "  sum",
    f"{float(weights.sum()):.3f}",
)
torch.testing.assert_close(weights, A[0, 0])
# only differences of scores matter
torch.testing.assert_close((scores + 100).softmax(0), weights)

# %% [markdown]
# The output is the mean of the values with these weights. Here it is mostly red and a little blue; the rest of the
# weight goes to the empty token.

# %%
output = sum(weight * value for weight, value in zip(weights, V[0], strict=True))
print(
    "output of head 0 for the red circle: red",
    f"{float(output[0]):.2f}",
    " blue",
    f"{float(output[1]):.2f}",
)
torch.testing.assert_close(output, (A @ V)[0, 0])

# %% [markdown]
# ## All tokens, all heads
#
# Two matrix products with a softmax between them do this for every query. Each head works on its own d features. At the
# end the heads are put side by side again. PyTorch has one function for all of this.


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

# T, B, h, N, d
big = [
    torch.randn(4, 3, 2, 49, 16, generator=torch.Generator().manual_seed(n))
    for n in range(3)
]
torch.testing.assert_close(attention(*big), F.scaled_dot_product_attention(*big))

# %% [markdown]
# **Predict before you run.** A row of A belongs to one query. What does a *column* mean, and does it sum to one? And
# can an output be larger than the largest value?

# %%
rows, columns = A.sum(-1), A.sum(-2)
print("rows sum to   ", *(f"{float(x):.2f}" for x in rows[0]))
print("columns sum to", *(f"{float(x):.2f}" for x in columns[0]))
torch.testing.assert_close(rows, torch.ones(h, N))
assert not torch.allclose(columns, torch.ones(h, N))
outputs, low, high = (
    attention(*big),
    big[2].amin(-2, keepdim=True),
    big[2].amax(-2, keepdim=True),
)
assert (outputs <= high + 1e-6).all() and (outputs >= low - 1e-6).all()

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
# ## What the softmax is there for
#
# Without the softmax the output is a sum of N terms, and each term has a factor that is a sum of d products. The output
# is not bounded: it grows with N and with the size of the weights, and without the factor $1/\sqrt d$ also with d. The
# softmax turns the sum into a mean. We measure the largest output for random Q, K, V with unit variance.

# %%
tokens = [16, 64, 256, 1024]
generator = torch.Generator().manual_seed(1)
measured = {"no softmax": [], "softmax": []}
for n in tokens:
    q, k, v = torch.randn(3, n, 32, generator=generator)
    measured["no softmax"].append(float((q @ k.T / 32**0.5 @ v).abs().max()))
    measured["softmax"].append(float(attention(q, k, v).abs().max()))
fig, ax = plt.subplots(figsize=(6.4, 3.6))
ax.loglog(
    tokens,
    measured["no softmax"],
    "o-",
    color=style.K,
    label=r"$(QK^T/\sqrt{d})\,V$",
)
ax.loglog(
    tokens,
    measured["softmax"],
    "s--",
    color=style.Q,
    label=r"softmax$(QK^T/\sqrt{d})\,V$",
)
ax.set_xticks(tokens, tokens)
ax.set_yticks([1, 3, 10, 30, 100], [1, 3, 10, 30, 100])
ax.minorticks_off()
ax.set(
    xlabel="tokens N",
    ylabel="largest output",
    title="random Q, K, V of unit variance, d = 32, T = 1",
)
ax.legend()
se.plot.show(
    fig,
    "Largest output of attention over the number of tokens, random inputs. Without softmax it grows with N and passes "
    "100; with softmax it stays below 4.",
)
assert all(
    small < large
    for small, large in zip(
        measured["no softmax"], measured["no softmax"][1:], strict=False
    )
)
assert max(measured["softmax"]) < 4 < 100 < max(measured["no softmax"])

# %% [markdown]
# Random inputs may be a special case, so we also use trained weights. In the packaged network the currents of the
# neurons of Q, K and V, which come from linear maps and batch norm, are real numbers. We use these currents as
# real-valued queries, keys and values to see the range that trained weights give. (That network was trained with
# spikes, not with these products; we only measure a range.)

# %%
model = se.load_pretrained("digits-2-64")
images, _ = se.data.load("digits").test.fetch(torch.arange(24), None)
seen = {}
handles = [
    block.attn.bn.register_forward_hook(
        lambda module, inputs, output, i=i: seen.update({i: output})
    )
    for i, block in enumerate(model.blocks)
]
with torch.no_grad():
    model(images)
for handle in handles:
    handle.remove()
for i, currents in seen.items():
    # each [T, B, h, N, d], real
    q, k, v = currents.reshape(4, 24, 64, 3, 4, 16).permute(3, 0, 1, 4, 2, 5)
    raw, soft = (
        (q @ k.transpose(-2, -1) / 4 @ v).abs().max(),
        attention(q, k, v).abs().max(),
    )
    print(
        f"block {i}: largest |value| {v.abs().max():.1f}   output without softmax {raw:.1e}, with {soft:.1f}"
    )
    assert soft <= v.abs().max() + 1e-4 and raw > 10 * soft

# %% [markdown]
# ## What it costs
#
# Each of the N x N entries in every head needs an exponential, an addition to the sum and a division. In the code above
# all entries are in memory at once, and again in the backward pass. (Fused kernels work on tiles and never store the
# whole matrix. But they also compute every entry, and compute it again in the backward pass.) We count the numbers that
# PyTorch saves for the backward pass between the two products, with softmax, and without it in the order $Q(K^TV)$.


# %%
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


print(
    "  N   d   exponentials and divisions   kept with softmax   kept for Q(K^T V)"
)
for n, width in ((64, 32), (196, 64), (784, 64)):
    with_softmax = saved_numbers(
        lambda q, k, v: (q @ k.T / 8).softmax(-1) @ v, n, width
    )
    without = saved_numbers(lambda q, k, v: q @ (k.T @ v) / 8, n, width)
    assert with_softmax >= n * n and without == width * width
    print(f"{n:3}  {width:2}   {n * n:26,}   {with_softmax:17,}   {without:17,}")

# %% [markdown]
# ## The order it forbids
#
# $(QK^T)V = Q(K^TV)$: without a softmax the two products can be computed in either order, and the second order never
# makes an N x N matrix. With the softmax between the products only the first order is possible: the softmax needs a
# whole row of scores before it can compute a weight, and it is not linear.
#
# **Predict before you run.** Could we use the softmax of Q, of K or of $K^TV$ instead, and get the same result?

# %%
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
# No. $e^{q \cdot k}$ cannot be written as an inner product of d features that depend only on q and d features that
# depend only on k: infinitely many features would be needed. The variants above are other functions. Some of them are
# used as *linear attention*, and a network must be trained with them from the start. Exercise 5.1 of the next chapter
# proves that $K^TV$ does not hold enough information to compute a softmax.
#
# </details>
#
# ## Softmax on spikes
#
# In a spiking network Q and K are {0, 1}. Their inner product counts shared ones: it is an integer from 0 to d and
# never negative. So the scores are already bounded and non-negative without a softmax. A softmax would only have
# disadvantages here: it turns integers into reals and zeros into positive numbers, and a query that matches no key then
# attends to all keys equally.

# %%
bits = torch.Generator().manual_seed(3)
# N = 64, d = 16: spikes at a rate of 15 %
q, k, v = (torch.rand(3, 64, 16, generator=bits) < 0.15).float()
counts = q @ k.T
weights = (counts / 4).softmax(-1)
print(
    "scores:  ",
    counts.unique().int().tolist(),
    f" zeros: {(counts == 0).float().mean():.0%}",
)
print(
    "softmax:  reals from",
    f"{weights.min():.4f} to {weights.max():.4f},",
    f"zeros: {(weights == 0).float().mean():.0%}",
)
nothing = counts.sum(1) == 0
print(
    "queries that fit no key:",
    int(nothing.sum()),
    " their weights:",
    *(f"{x:.4f}" for x in weights[nothing].unique()),
)
assert torch.equal(counts, counts.round()) and (weights > 0).all()
assert nothing.any() and torch.allclose(weights[nothing], torch.tensor(1 / 64))

# %% [markdown]
# In a vanilla vision transformer X, Q, K, V and the output are all real, and every product is a multiplication. Table 1
# of [the paper](https://arxiv.org/abs/2209.15425) compares SSA with variants between the two.
#
# ## The package's softmax variants
#
# `se.ATTENTION` has two softmax variants. In `softmax` Q and K are real and V is spikes; in `vanilla` V is real too.
# Both end with the attention neuron ($V_{th} = 0.5$) and a projection with a neuron, so their output is spikes. The
# next cell writes the layer by hand, with T = 4 and B = 3. It uses PyTorch's softmax for a reason: if all tokens have a
# 1 in some feature of V, the mean is 1 up to rounding and H is 0.5 up to rounding, so only the same rounding gives the
# same spike.


# %%
# the neuron of chapter 01, current [T, ...] -> spikes [T, ...]
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
        mine, theirs = (
            softmax_layer(layer, x, spiking_v=kind == "softmax"),
            layer(x),
        )
    assert mine.shape == (4, 3, 20, 32) and torch.equal(mine, theirs), (
        f"{kind}: every spike, exactly"
    )
    assert layer.scale == 8**-0.5 and 0 < mine.mean() < 1
    print(f"{kind:8} equal to the package's, firing rate {mine.mean():.2f}")

# %% [markdown]
# ## Pitfalls
#
# **Softmax over the wrong axis.** Symptom: the network trains, but badly. Columns sum to one instead of rows. Cure:
# assert that `A.sum(-1)` is one.
#
# **Exponentials that overflow.** Scores can exceed 88 when weights are large, especially without the factor
# $1/\sqrt d$. `exp(100)` is infinite in float32, and infinity divided by infinity is NaN. Subtract the largest score of
# the row, as above and as in every library.
#
# **Heads taken apart in the wrong order.** `[N, D]` becomes `[N, h, d]` and only then `[h, N, d]`. Reshaping to `[h, N,
# d]` at once raises no error and mixes tokens with features:

# %%
print("exp(100) in float32:", float(torch.tensor(100.0).exp()))
right, wrong = heads(X), X.reshape(h, N, d)
print(
    "head 0, red circle:",
    right[0, 0].tolist(),
    " blue circle:",
    right[0, 1].tolist(),
)
print(
    "reshaped at once:  ",
    wrong[0, 0].tolist(),
    " then:       ",
    wrong[0, 1].tolist(),
)
assert right.shape == wrong.shape and not torch.equal(right, wrong)
# the second "token" is the shape of the first
assert torch.equal(wrong[0, 1], X[0, 2:])

# %% [markdown]
# ## Exercises
#
# **4.1** Remove the softmax and measure the range. For random Q, K, V of unit variance, the standard deviation of the
# entries of $QK^TV / \sqrt d$ grows as a power of N. Write a function that measures it for a given N with d = 32, and
# set `power` to the exponent (0, 0.5, 1 or 2).


# %% tags=["exercise-1"]
def spread(n, generator):
    """Standard deviation of the entries of Q K^T V / sqrt(32), for Q, K, V = torch.randn(3, n, 32, ...)."""
    ...


power = None

# %% tags=["check-1"]
with se.exercise("4.1"):
    generator = torch.Generator().manual_seed(0)
    few, many = spread(64, generator), spread(4096, generator)
    assert few is not None and many is not None, "write spread first"
    assert abs(float(few) - 8) < 1.5 and abs(float(many) - 64) < 6, (
        "N terms of variance 1 add up: check the factor 1/sqrt(d)"
    )
    assert power is not None, (
        "now compare spread(64) with spread(4096): 64 times the tokens"
    )
    assert power == 0.5, (
        "64 times the tokens gives about 8 times the spread: 64 to which power is 8?"
    )

# %% [markdown]
# **4.2** Attention does not depend on the order of tokens. What happens to the output if you shuffle the tokens of Q, K
# and V in the same way? Write a function that takes q, k, v and a permutation, and returns the output for shuffled
# tokens *without* calling `attention` on shuffled tensors.


# %% tags=["exercise-2"]
def of_shuffled(q, k, v, order):
    """What attention(q[order], k[order], v[order]) gives, from attention(q, k, v) alone. q, k, v [N, d]."""
    ...


# %% tags=["check-2"]
with se.exercise("4.2"):
    q, k, v = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(7))
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    result = of_shuffled(q, k, v, order)
    assert result is not None, "write of_shuffled first"
    hint = "the output of a token does not change, only its place"
    assert torch.allclose(
        result,
        F.scaled_dot_product_attention(q[order], k[order], v[order]),
        atol=1e-6,
    ), hint

# %% [markdown]
# **4.3** Divide the scores by a number, the temperature, before the softmax. Compute the weights for a given
# temperature. Then think about the weights when the temperature is near 0, and when it is very large.


# %% tags=["exercise-3"]
def weights_at(scores, temperature):
    """Softmax of scores / temperature over the last axis, without calling softmax; safe at 0.001 too."""
    ...


# %% tags=["check-3"]
with se.exercise("4.3"):
    scores = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 3.0]])
    result = weights_at(scores, 1.0)
    assert result is not None, "write weights_at first"
    assert torch.allclose(result, scores.softmax(-1)), (
        "a temperature of 1 is the plain softmax"
    )
    cold, warm = weights_at(scores, 0.001), weights_at(scores, 1e6)
    assert not cold.isnan().any(), (
        "exp(4000) overflows: subtract the largest score of each row first"
    )
    assert torch.allclose(cold, torch.tensor([[0.0, 0, 1], [0, 0, 1]])), (
        "near 0: all weight on the largest score"
    )
    assert torch.allclose(warm, torch.full((2, 3), 1 / 3), atol=1e-5), (
        "very large: even weights"
    )

# %% [markdown]
# ## Recap
#
# - A query is compared with all keys, the softmax turns the scores into weights, and the output is a weighted mean of
#   values.
# - The softmax bounds the output and makes the weights positive, whatever the scores.
# - It needs an exponential for each of N x N entries, keeps all entries in memory unless a fused kernel computes them
#   again, and fixes the order of the products.
# - Scores of spikes are counts. Even without a softmax they are never negative and at most d.
#
# Next: [chapter 05](05_spiking_self_attention.ipynb) leaves the softmax out. Solutions of the exercises:
# [here](solutions/04_softmax_attention.ipynb).
