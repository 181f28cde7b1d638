# %% [markdown]
# # 05 · Spiking self-attention by hand
#
# *Run time 10 s on one CPU core · after chapters 01, 03 and 04 · no internet access, no GPU*
#
# What does spiking self-attention ([SSA](../docs/glossary.md#ssa)) compute, and what replaces the softmax? We compute
# one output spike by hand: bits, an AND, a count, a sum, a threshold. Then we write the whole layer and check that
# every spike equals that of the package's class. This layer is the new part of Spikformer; the rest is convolutions,
# linear layers and neurons.
#
# ![The network's parts, from image to answer; this chapter is about spiking self-attention, the first half of each block](../docs/images/network_map/05.svg)
#
# ## What you will learn
# - to compute one output of SSA from the bits of Q, K and V, on paper and with machine instructions on packed bits
# - to say what replaces the softmax, and what the network gains without it: a free order of multiplication
# - to write the layer with time, heads and batch norm, equal to the package's, spike by spike
# - to say which sums reach the threshold at a given scale, and why some sums reach it exactly (a *tie*)

# %% tags=["setup"]
import time
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
import numpy as np
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
# The figure shows one attention head with N = 8 tokens and d = 8 features at time step t = 0. The framed row of Q
# (blue) is combined with the framed row of K (red): where both are 1, the AND is 1 (black). The number of black cells
# is one entry of $QK^\top$. A row of such counts is multiplied by the framed column of V (green), and the products are
# summed to an integer, here 8. The integer times s = 0.125 is the current of a neuron with the threshold
# $V_{th} = 0.5$. The last panel shows its membrane potential and its spikes, at t = 0 and t = 3.
#
# The bitmaps are written out in the code, so you can copy them to paper. About a quarter of their bits are ones. In the
# packaged network it is 5 to 11 %, as a cell below shows; with so few ones, an example of this size would hardly ever
# fire. At each later step every row of Q moves one feature to the right, and K and V stay. We chose this rule only to
# get other spikes at each step.


# %%
def bitmap(text):
    return torch.tensor(
        [[float(mark == "#") for mark in row] for row in text.split()]
    )


Q = bitmap(
    "....#... #....... ..##..#. .......# ##.....# #....#.. ##....#. ........"
)
K = bitmap(
    ".....##. ....#... .#.#..#. #....... .###..#. .....#.# ....#... ..#...#."
)
V = bitmap(
    "#...#... ........ ..#.##.. .##...#. #.###... ..#..... ..#..... #...#..."
)
T, N, d, s = 4, 8, 8, 0.125
q = torch.stack([Q.roll(t, dims=1) for t in range(T)])  # [T, N, d]
k, v = K.expand(T, N, d), V.expand(T, N, d)

fig, axes = se.plot.ssa(
    q, k, v, scale=s, threshold=0.5, step=0, query=2, key=4, feature=4
)
se.plot.show(
    fig,
    "Bitmaps of Q, K and V, 8 tokens by 8 features, T = 4, one attention head. "
    "Query 2 and key 4 share three ones; the scores of query 2 and feature 4 of V "
    "give the sum 8, the current 1, the membrane 0.5, and a spike.",
)
assert all(0.2 < x.mean() < 0.3 for x in (Q, K, V))

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $X$ | `[T, B, N, D]` | integers 0, 1, 2, ... | [tokens](../docs/glossary.md#token) |
# | $Q, K, V$ | `[T, B, h, N, d]` | {0, 1} | queries, keys, values of h heads, d = D / h |
# | $QK^\top$ | `[T, B, h, N, N]` | integers 0 ... d | counts: how many ones a query and a key share |
# | $m = QK^\top V$ | `[T, B, h, N, d]` | integers 0 ... N d | sums, one for each query and feature |
# | $m\,s$ | `[T, B, h, N, d]` | multiples of s | current of the attention neuron |
# | $H$ | `[T, B, h, N, d]` | multiples of $s/2^{t+1}$ | its membrane potential |
# | $S$ | `[T, B, h, N, d]` | {0, 1} | its spikes, $V_{th} = 0.5$ |
#
# In formulas (eq. 14-19 of [the paper](https://arxiv.org/abs/2209.15425)), with SN a layer of [LIF
# neurons](../docs/glossary.md#lif-neuron):
#
# $$Q, K, V = \mathrm{SN}(\mathrm{BN}(XW)), \qquad \mathrm{SSA}' = \mathrm{SN}(QK^\top V\,s), \qquad
# \mathrm{SSA} = \mathrm{SN}(\mathrm{BN}(\mathrm{Linear}(\mathrm{SSA}')))$$
#
# The paper uses two letters twice, and so do we. In chapters 01 and 02, X is the current of a neuron and V its
# potential after the reset. Here X holds tokens and V holds values. The [glossary](../docs/glossary.md#symbols) has one
# table of all symbols.

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
    row, popcount = show_bits(K[j]), int(both.sum())
    print(f"key {j}     {row}   AND {show_bits(both)}   popcount {popcount}")

# %% [markdown]
# The eight keys give eight counts, which are row 2 of $QK^\top$. Column 4 of V shows which tokens have feature 4. Only
# the counts of these tokens are added.

# %%
counts = [int((Q[2].bool() & K[j].bool()).sum()) for j in range(N)]
carries = [int(V[j, 4]) for j in range(N)]
print("counts          ", *counts)
print("V, feature 4    ", *carries)
terms = [count for count, bit in zip(counts, carries, strict=True) if bit]
m = sum(terms)
print("sum              ", " + ".join(map(str, terms)), "=", m)
assert m == 8

# %% [markdown]
# So far we needed no multiplication, only AND, counting and addition. The sum m times the scale s = 0.125 is a current.
# It charges the [membrane potential](../docs/glossary.md#membrane-potential) H of a neuron with $\tau = 2$, which
# starts from 0. At every step H is half of the sum of what is left and the new current:
#
# $$H[t] = \tfrac12\,\big(H[t-1]\,(1 - S[t-1]) + m[t]\,s\big), \qquad S[t] = \Theta(H[t] - V_{th})$$
#
# These are equations (1) to (3) of the paper: after a spike, the factor $1 - S$ sets the potential to zero.
#
# **Predict before you run.** The sum is 8 and the threshold is 0.5. Compute H at t = 0. The figure shows a spike there:
# would the neuron also fire if the rule were `H > 0.5` instead of `H >= 0.5`?

# %% tags=["predict"]
current = m * s
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
# The current is 8 · 0.125 = 1, and H is half of it: 0.5, exactly the threshold. This is a tie. With `>` there would be
# no spike. The neuron fires, because the paper's step is $S = \Theta(H - V_{th})$ with $\Theta(0) = 1$. The assert
# checks this for both implementations of the package's neuron. With arbitrary real currents a tie hardly ever happens.
# Here ties do happen, because every current is a multiple of s. We count them below.
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
print("counts, QK^T", (Q @ K.T).int(), sep="\n")
print("sums, QK^T V", by_hand.int(), sep="\n")

# %% [markdown]
# The last row of both matrices is zero: token 7 has no ones in Q, so it attends to no token. This is impossible in
# softmax attention, because its weights sum to one for every query.
#
# ## Over time: the neuron
#
# Each of the 64 outputs has its own neuron. In each of the T steps every neuron charges, fires or not, and is reset if
# it fired.


# %%
# current [T, ...] -> spikes S [T, ...], membranes H [T, ...]
def lif(current, v_threshold=1.0):
    H = S = torch.zeros_like(current[0])
    spikes, membranes = [], []
    for step in current:
        H = (H * (1 - S) + step) / 2  # zero where it fired, then charge
        S = (H >= v_threshold).to(step.dtype)  # >=, not >
        spikes.append(S)
        membranes.append(H)
    return torch.stack(spikes), torch.stack(membranes)


sums = q @ k.transpose(-2, -1) @ v  # [T, N, d]
spikes, membranes = lif(sums * s, v_threshold=0.5)
print("neuron (2, 4)")
for t in range(T):
    m, H, S = (int(sums[t, 2, 4]), float(membranes[t, 2, 4]), int(spikes[t, 2, 4]))
    print(
        f"t = {t}   m = {m}   current m s = {m * s:5.3f}   H = {H:6.4f}   S = {S}"
    )
for backend in ("fused", "snntorch"):
    assert torch.equal(spikes, se.LIF(v_threshold=0.5, backend=backend)(sums * s))
ties = int((membranes == 0.5).sum())
print(f"all 64 neurons: {int(spikes.sum())} spikes, {ties} of them ties")
assert spikes[:, 2, 4].tolist() == [1, 0, 0, 1] and ties > 0

# %% [markdown]
# The neuron reaches its threshold in two ways. At t = 0 one large sum is enough. At t = 3 the sum is 7, and the current
# alone would give H = 0.4375. The other 0.0625 is left from the steps before: half of the H = 0.125 at t = 2. The next
# figure shows step 3.

# %%
fig, axes = se.plot.ssa(q, k, v, scale=s, threshold=0.5, step=3, query=2, feature=4)
se.plot.show(
    fig,
    "The same bitmaps at t = 3 of T = 4, with the rows of Q moved three features "
    "to the right. The sum of query 2 and feature 4 is 7, the current 0.875; the "
    "membrane reaches 0.5 with what was left from t = 1 and t = 2, and fires.",
)

# %% [markdown]
# Move the query and the time step yourself (this needs `pip install ipywidgets`). On the
# [Play page](../docs/play/ssa.md) you can flip single bits in the browser.


# %% tags=["widget", "nbval-ignore-output"]
def trace(query, step):
    fig, _ = se.plot.ssa(
        q, k, v, scale=s, threshold=0.5, step=step, query=query, feature=4
    )
    se.plot.show(fig, f"SSA for query {query} and feature 4 at step {step}, T = 4.")


try:
    from ipywidgets import IntSlider, interact
except ImportError:
    print("pip install ipywidgets, then run this cell again")
else:
    query = IntSlider(2, 0, N - 1, continuous_update=False)
    step = IntSlider(0, 0, T - 1, continuous_update=False)
    interact(trace, query=query, step=step)
assert q.shape == (T, N, d)

# %% [markdown]
# ## AND and popcount as running code
#
# Does the computer need multiplications? The d bits of a query fit into one machine word: here 16 bits of the packaged
# network, which reads 32 x 32 digits with N = 64 tokens, 4 heads and T = 4. One instruction computes the AND of two
# words, another one the popcount. The second product, counts times V, also works with bits: we write each count in
# binary. Bit p of all 64 counts of a query is again a word. Its AND with a column of V selects the tokens whose count
# contains $2^p$. The popcount is the number of these tokens, and a shift by p multiplies this number by $2^p$. The sum
# over p is the entry of $QK^\top V$.


# %%
def pack(bits):  # [..., n] of {0, 1}, n = 8, 16, 32 or 64 -> [...] words of n bits
    packed = np.packbits(np.ascontiguousarray(bits, np.uint8), axis=-1)
    return packed.view(f"u{bits.shape[-1] // 8}")[..., 0]


def popcount(words):
    if hasattr(np, "bitwise_count"):  # NumPy 2: one instruction for each word
        return np.bitwise_count(words)
    octets = np.ascontiguousarray(words)[..., None].view(np.uint8)
    return np.unpackbits(octets, axis=-1).sum(-1, dtype=np.uint8)


# q, k: words of d bits [..., N]; v: a word of N bits for each feature [..., d]
def sums_of_bits(q, k, v):
    counts = popcount(q[..., :, None] & k[..., None, :])  # Q K^T: [..., N, N]
    sums = np.zeros((*q.shape, v.shape[-1]), np.uint16)  # [..., N, d]
    for p in range(7):  # a count of at most 64 has 7 bits
        bit_p = pack(counts >> p & 1)  # a word of N bits for each query: [..., N]
        sums += (
            popcount(bit_p[..., :, None] & v[..., None, :]).astype(np.uint16) << p
        )
    return sums


model = se.load_pretrained("digits-2-64")
images, labels = se.data.load("digits").test.fetch(torch.arange(48), None)
with torch.no_grad(), se.record(model, membranes=True) as rec:
    model(images)  # B = 48, T = 4
pq, pk, pv = (rec[f"blocks.0.attn.{part}"].spikes for part in "qkv")
bq, bk, bv = pack(pq), pack(pk), pack(pv.transpose(-2, -1))
assert np.array_equal(sums_of_bits(bq, bk, bv), pq @ pk.transpose(-2, -1) @ pv)
print(
    f"{pq.numel():,} sums of products equal those of AND, popcount, shift and add"
)

# %% [markdown]
# So the two products of SSA need no multiplication, and packed bits need 1/32 of the memory of floats. Are they also
# faster?


# %% tags=["fold"]
# times of both, for the 768 heads of 48 digits, on one thread
def milliseconds(run):
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return f"{1000 * min(times):.1f} ms"


fq, fk, fv = (x.flatten(0, 2) for x in (pq, pk, pv))  # [T B h, N, d]
wq, wk, wv = (x.reshape(-1, x.shape[-1]) for x in (bq, bk, bv))
two_ways = {
    "counts, Q K^T": (
        lambda: fq @ fk.mT,
        lambda: popcount(wq[:, :, None] & wk[:, None, :]),
    ),
    "sums, Q K^T V": (lambda: fq @ fk.mT @ fv, lambda: sums_of_bits(wq, wk, wv)),
}
for name, (product, bits) in two_ways.items():
    print(f"{name}: products of floats {milliseconds(product)},", end=" ")
    print(f"packed bits {milliseconds(bits)}")
print(
    f"memory of Q: floats {4 * fq.numel():,} bytes, packed bits {wq.nbytes:,} bytes"
)
assert wq.nbytes * 32 == fq.numel() * 4

# %% [markdown]
# On the processor that made this page the counts alone are somewhat faster in bits, and the sums are slower. The
# processor computes many multiply-accumulates of floats in one cycle, and NumPy stores every intermediate result. So
# for the whole of $QK^\top V$, packed bits save memory here, but no time. Additions instead of multiplications save
# energy on hardware that is built for them: at 45 nm and 32 bits a floating-point multiplication with addition takes
# 4.6 pJ, a floating-point addition 0.9 pJ, and an integer addition 0.1 pJ ([Horowitz
# 2014](https://doi.org/10.1109/ISSCC.2014.6757323)). [Chapter 10](10_energy.ipynb) counts with the first two.

# %% [markdown]
# ## What replaces the softmax
#
# With real-valued Q and K an entry of $QK^\top$ can be any real number. The softmax makes it positive and turns the
# output into a mean. With spikes the entries are counts, which are never negative. They are also bounded: a count is at
# most d, and a sum at most N d. But this bound is loose. In the packaged network it gives a current of up to N d s =
# 128, and the threshold is 0.5. The neuron bounds the output: for every sum, it is 0 or 1.
#
# But the neuron does not normalize: the sums grow with N, with d and with the firing rates. They stay small only while
# spikes are rare. [Chapter 09](09_ablations.ipynb) raises the rates of random spikes with N = 196 and d = 64: at 30 %
# every membrane is so far above the threshold that the surrogate gradient is close to zero. The next cell measures the
# packaged network.

# %%
for block in range(2):
    name = f"blocks.{block}.attn"
    # each [T, B, h, N, d]
    pq, pk, pv = (rec[f"{name}.{part}"].spikes for part in "qkv")
    shared = pq @ pk.transpose(-2, -1)  # counts: Q K^T
    total = shared @ pv  # sums: Q K^T V
    assert torch.equal(rec[f"{name}.scores"].values, shared * s)
    assert 0 <= shared.min() and shared.max() <= 16 and total.max() <= 64 * 16
    rates = "  ".join(f"{x.mean():.0%}" for x in (pq, pk, pv))
    none, at_once = (total == 0).float().mean(), (total >= 8).float().mean()
    print(f"{name}: rates of Q, K, V: {rates}")
    print(f"   counts: up to {shared.max():.0f} of 16,", end=" ")
    print(f"{(shared == 0).float().mean():.0%} are zero")
    print(f"   sums: up to {total.max():.0f} of 1024,", end=" ")
    print(f"{none:.0%} are zero, {at_once:.0%} at least 8 (fire in one step)")

# %% [markdown]
# **Predict before you run.** What would a softmax do with the counts of the bitmaps, d = 8? Query 2 has the counts 1,
# 0, 2, 0, 3, 0, 0, 2. Which weights do key 4 (count 3) and key 1 (count 0) get in SSA? With softmax, how many times as
# much does key 4 get as key 1? And which weights does query 7, whose counts are all zero, give to the keys?

# %% tags=["predict"]
for row in (2, 7):
    n = (Q @ K.T)[row]
    weights = (n / d**0.5).softmax(0)
    print(f"counts of query {row}     ", *(f"{x:6.0f}" for x in n))
    print("softmax(QK^T / sqrt d)", *(f"{x:6.3f}" for x in weights))
    assert weights.min() > 0
assert torch.allclose(weights, torch.tensor(1 / N))  # query 7, without a match

# %% [markdown]
# <details><summary>Answer</summary>
#
# In SSA the weights are the counts: 3 for key 4 and 0 for key 1. With softmax key 4 gets only
# $e^{3 / \sqrt 8} \approx 2.9$ times as much, 0.23 against 0.08. For query 7 all weights in SSA are zero, and its
# neurons get no current. Softmax gives each of the 8 keys the weight 1/8 = 0.125, so the query
# receives the mean of all values although it matches none of the keys. Softmax also turns every zero into a positive
# number, so the sparse matrix of integers becomes a full matrix of reals. This needs an exponential and a division for
# each entry ([chapter 04](04_softmax_attention.ipynb)).
#
# </details>
#
# The next figure shows whole maps, 64 x 64, of a larger network. `cifar10-4-384` is the paper's network for CIFAR-10,
# with d = 32 and T = 4, and with weights trained for this package. Its input is a photograph of a cat. Left: the counts
# of one head. Right: the softmax weights of the same Q and K. (The network was trained without softmax. With softmax it
# would learn other Q and K.)

# %% tags=["fold"]
# read the photograph, record the network, draw counts and softmax of one head
facts = se.data.info("cifar10")
mean, std = (torch.tensor(x).view(3, 1, 1) for x in (facts.mean, facts.std))
pixels = torch.from_numpy(plt.imread("../docs/assets/cat.png")).permute(2, 0, 1)
cat = (pixels - mean) / std  # [3, 32, 32]
large = se.load_pretrained("cifar10-4-384")
with torch.no_grad(), se.record(large) as seen:
    answer = facts.classes[int(large(cat[None]).argmax())]
scores = seen["blocks.0.attn.scores"]
head, step = 3, 1
n = scores.values[step, 0, head] / s  # [N, N]
softmax = (n / 32**0.5).softmax(-1)
fig, axes = se.plot.attention_matrix(
    {
        f"SSA: $QK^\\top$\nblock 0, head {head}, t = {step} of T = 4": n,
        r"softmax($QK^\top/\sqrt{d}$)" + "\nof the same Q and K": softmax,
    },
    label=["count", "weight"],
)
for ax in axes:
    ax.set(xticks=range(0, 64, 8), yticks=range(0, 64, 8))
se.plot.show(
    fig,
    "Two maps of 64 queries by 64 keys. The counts of SSA are mostly zero, with "
    "some bright columns and some empty rows. The softmax of the same Q and K is "
    "positive everywhere and much more even; the empty rows have become plain "
    "gray.",
)
alone = n.sum(1) == 0
print(f"answer: {answer}")
print(
    f"SSA: {(n == 0).float().mean():.0%} of the counts are zero, the largest is",
    end=" ",
)
print(f"{n.max():.0f}; {int(alone.sum())} of 64 queries match no key")
print(f"softmax: weights from {softmax.min():.3f} to {softmax.max():.3f}", end=" ")
print(f"(even weights would be {1 / 64:.3f})")
assert answer == "cat" and softmax.min() > 0 and alone.any()
assert torch.allclose(softmax[alone], torch.tensor(1 / 64))

# %% [markdown]
# A bright column belongs to a token that many queries attend to. The next figure shows where on the photograph these
# tokens are.

# %%
fig, ax = se.plot.attention(scores, cat, head=head, step=step)
se.plot.show(
    fig,
    "The photograph of a cat with its 8 x 8 tokens, and beside it the mean score "
    "that each token receives in this head: a few tokens are bright, most are "
    "dark.",
)

# %% [markdown]
# ## The order of multiplication is free
#
# There is no softmax between the two products, and matrix products are associative:
# $(QK^\top)V = Q(K^\top V)$. Both are sums of integers, and floating point adds integers exactly (up to $2^{24}$ in
# float32). So the two orders agree to the last bit. They also agree after scaling if s is a power of two, because such a
# scaling only changes the exponent and does not round. The next cell uses a batch in which T, B and h all differ.

# %%
bits = torch.Generator().manual_seed(5)
# T = 4, B = 5, h = 2, N = 96, d = 16
rq, rk, rv = (torch.rand(3, 4, 5, 2, 96, 16, generator=bits) < 0.3).float()
left = (rq @ rk.transpose(-2, -1) * s) @ rv
right = rq @ (rk.transpose(-2, -1) @ rv) * s
assert torch.equal(left, right)
ssa = se.ATTENTION["ssa"](dim=32, heads=2)
assert torch.equal(ssa.mix(rq, rk, rv), left)
print("largest difference at s = 1/8: ", float((left - right).abs().max()))

# %% [markdown]
# What does each order cost? We let PyTorch count the operations: `FlopCounterMode` counts two operations, a
# multiplication and an addition, for each [multiply-accumulate](../docs/glossary.md#ac-and-mac) of a matrix product. We
# also count the numbers in the matrix between the two products, which training must keep in memory.
#
# **Predict before you run.** On ImageNet, 224 x 224 pixels give N = 196 tokens, and each of the 8 heads of the network
# 8-512 (8 blocks, D = 512) has d = 64. Which order is cheaper, and by what factor?


# %% tags=["predict"]
def macs(product, *matrices):
    with FlopCounterMode(display=False) as counter:
        product(*matrices)
    return counter.get_total_flops() // 2


print("  N    d    (QK^T)V     Q(K^T V)  factor   kept between them")
for tokens, width in ((64, 16), (64, 32), (196, 64), (784, 64)):
    a, b, c = torch.ones(3, tokens, width)
    one = macs(lambda q, k, v: (q @ k.T) @ v, a, b, c)
    other = macs(lambda q, k, v: q @ (k.T @ v), a, b, c)
    assert one == 2 * tokens**2 * width and other == 2 * tokens * width**2
    kept, ratio = f"{tokens**2:,} against {width**2:,}", one / other
    print(f"{tokens:3}  {width:3}  {one:10,}  {other:9,}   {ratio:5.2f}   {kept}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# $Q(K^\top V)$, by the factor N / d = 196 / 64, about 3. The first order takes $2N^2d$ multiply-accumulates and needs
# an N x N matrix between the products. The second takes $2Nd^2$ and needs a d x d matrix, which does not grow with the
# image. With four times as many tokens (a 448 x 448 image) the factor is about 12. The package compares N and d and
# uses the cheaper order.
#
# </details>

# %%
fig, axes = se.plot.multiplication_order(32)
se.plot.show(
    fig,
    "Left: operations of both orders over the number of tokens N for one head of "
    "width d = 32 in one time step; they cross at N = d. Right: the ratio N / d "
    "for every preset; above 1 the order Q (K^T V) is cheaper.",
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
    y = F.linear(x, proj.linear.weight, proj.linear.bias)
    return lif(batch_norm(proj.bn, y))[0], (q, k, v)


# %% [markdown]
# First we test a fresh layer, with random batch norm weights and biases so that all neuron layers fire. T = 4 and B = 3
# differ on purpose: if they were equal, a tensor with T and B swapped would have the right shape. Both of the package's
# implementations of the neuron get the same weights and the same tokens.

# %%
torch.manual_seed(1)
fused = se.ATTENTION["ssa"](32, heads=4, backend="fused").eval()
for bn in (fused.bn, fused.proj.bn):
    torch.nn.init.uniform_(bn.weight, 1, 3)
    torch.nn.init.uniform_(bn.bias, 0, 2)
plain = se.ATTENTION["ssa"](32, heads=4, backend="snntorch").eval()
plain.load_state_dict(fused.state_dict())
# integers, like the residual stream: [T, B, N, D]
tokens = torch.randint(0, 3, (4, 3, 8, 32)).float()
with torch.no_grad():
    mine, parts = ssa_by_hand(fused, tokens)
    for layer in (fused, plain):
        theirs = layer(tokens)
        assert torch.equal(mine, theirs), "every spike, exactly"
        assert torch.equal(layer(tokens), theirs), "no state is left behind"
        for b in range(3):  # a sample does not depend on the others in its batch
            assert torch.equal(layer(tokens[:, b : b + 1]), theirs[:, b : b + 1])
rates = [f"{x.mean():.2f}" for x in (*parts, mine)]
print("by hand = fused = snntorch; rates of Q, K, V, output:", *rates)

# %% [markdown]
# Then we test the trained network. The recording holds the input of each block: the tokens after
# [SPS](../docs/glossary.md#sps), and the residual stream after block 0.

# %%
entering = [
    # [T, B, D, 8, 8] -> [T, B, N, D]
    (rec["sps.3"].spikes + rec["sps.rpe"].spikes).flatten(3).transpose(2, 3),
    rec["blocks.0.residual"].values,
]
for block, tokens in enumerate(entering):
    name = f"blocks.{block}.attn"
    with torch.no_grad():
        mine, parts = ssa_by_hand(model.blocks[block].attn, tokens)
    for letter, part in zip("qkv", parts, strict=True):
        assert torch.equal(part, rec[f"{name}.{letter}"].spikes)
    assert torch.equal(mine, rec[f"{name}.proj"].spikes)
    print(f"{name}: all {mine.numel():,} outputs equal, shape {list(mine.shape)}")

# %% [markdown]
# ## Scale and threshold: which sums fire
#
# If the sum m is the same at every step, the current is m s, and the membrane rises toward it: m s / 2 at t = 0, then
# 3 m s / 4, and so on. So a neuron fires at the first step if $m \ge 2 V_{th} / s$, and never fires if $m < V_{th} / s$
# (if the two are equal, by rounding only, as in chapter 01). The paper uses s = 0.125. Softmax attention uses
# $1/\sqrt d$, which is 0.25 for d = 16, as in the packaged network.

# %% tags=["fold"]
# rasters of neurons with a constant sum m, at two scales
m, steps = torch.arange(13.0), 8
fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
for ax, scale in zip(axes, (0.125, 0.25), strict=True):
    fired, _ = lif((m * scale).expand(steps, 13), v_threshold=0.5)
    se.plot.raster(fired, ax=ax)
    ax.set_title(f"attention neuron, s = {scale}, T = {steps}")
    ax.set_yticks(range(0, 13, 2), range(0, 13, 2))
    ax.set_ylabel(r"sum m of $QK^\top V$, each step")
    ax.axhspan(-0.5, 0.5 / scale + 0.5, color=style.PALE, zorder=0)
    ax.text(3.5, 0.25 / scale, "never fire", ha="center", va="center")
    # at once: m >= 2 * 0.5 / s
    assert fired[0].tolist() == (m >= 1 / scale).float().tolist()
    assert fired.any(0).tolist() == (m > 0.5 / scale).tolist()  # ever
axes[1].set_ylabel("")
se.plot.show(
    fig,
    "Two rasters of attention neurons with a constant sum m from 0 (top) to 12, T "
    "= 8. At s = 0.125 sums up to 4 never fire (gray) and sums from 8 fire at "
    "every step; at s = 0.25 it is 2 and 4.",
)

# %% [markdown]
# So the scale sets a threshold on the sums: a constant sum must be more than 4 at s = 0.125, and more than 2 at s =
# 0.25. The paper's CIFAR and ImageNet networks use 0.125 for every d. It is a power of two, so scaling does not round;
# for integers it would be a shift by three bits. Exercise 5.2 counts the spikes that change with the scale.
#
# ## Ties
#
# At t = 0 every H is a multiple of s / 2 = 1/16, so H = 0.5 whenever a sum is exactly 8. At each later step the grid is
# twice as fine; after a reset the neuron is on the coarse grid again. How often are membranes of the trained network
# exactly at the threshold? How many spikes would be lost if neurons fired only above it? (New spikes also appear: a
# neuron that misses a spike is not reset, so it may fire at a later step instead.)


# %%
def lif_above(current, v_threshold):  # the wrong neuron: > instead of >=
    H = S = torch.zeros_like(current[0])
    spikes = []
    for step in current:
        H = (H * (1 - S) + step) / 2
        S = (H > v_threshold).to(step.dtype)
        spikes.append(S)
    return torch.stack(spikes)


for block in range(2):
    record = rec[f"blocks.{block}.attn.attn"]
    tied = record.membrane == record.v_threshold
    assert (record.spikes[tied] == 1).all() and tied.any()  # a tie is a spike
    pq, pk, pv = (rec[f"blocks.{block}.attn.{part}"].spikes for part in "qkv")
    current = pq @ (pk.transpose(-2, -1) @ pv) * s
    right, wrong = lif(current, 0.5)[0], lif_above(current, 0.5)
    assert torch.equal(right, record.spikes)
    share, lost, new = (
        x.sum() / right.sum() for x in (tied, right > wrong, wrong > right)
    )
    assert lost > 0
    print(
        f"{record.name}: {share:.1%} of the spikes are ties;",
        f"with >, {lost:.1%} are lost and {new:.1%} are new",
    )
    for t in range(4):  # the grid: multiples of s / 2^(t + 1)
        on_grid = record.membrane[t] / s * 2 ** (t + 1)
        assert torch.equal(on_grid, on_grid.round())

# %% [markdown]
# ## Attention over time
#
# Softmax attention gives one map for each head. SSA gives one map for each head and time step, because Q and K have new
# spikes at every step. The maps show the mean score that each token receives as a key (the mean of $QK^\top s$ over the
# queries), for one test digit. The lines are the outlines of the digit.

# %%
scores = rec["blocks.0.attn.scores"]
fig, axes = se.plot.attention_over_time(scores, images[1], sample=1)
se.plot.show(
    fig,
    "Attention maps of block 0 of the packaged network for one digit, four heads "
    "down and T = 4 time steps across, all on one color scale. At t = 0 nearly "
    "all is dark; then some heads light up, each at places of its own.",
)
first, *later = scores.values.mean((1, 2, 3, 4))  # one number for each step
print("mean score at t = 0, 1, 2, 3:", *(f"{x:.3f}" for x in (first, *later)))
print(
    "mean score of heads 0 to 3, 48 digits:",
    *(f"{x:.3f}" for x in scores.values.mean((0, 1, 3, 4))),
)
names = ["sps.0", "sps.1", "sps.2", "sps.3", "blocks.0.attn.q", "blocks.0.attn.k"]
rates = [rec[name].spikes[0].mean() for name in names]
print(
    "rates at t = 0:", *(f"{n} {r:.1%} " for n, r in zip(names, rates, strict=True))
)
assert first < 0.5 * min(later) and max(rates[4:]) < 0.5 * rates[0]
# of this digit, one number for each head
blank = scores.values[:, 1].mean((0, 2, 3))
assert blank.argmin() == 3 and blank[3] < 0.1 * blank.max()

# %% [markdown]
# At t = 0 there are almost no scores. A neuron that starts from zero fires at the first step only if its current is at
# least twice the threshold. The first layers of the network do fire at the first step, as in [chapter
# 03](03_images_to_spikes.ipynb). Q and K are the sixth layer of neurons after the image and fire much less at t = 0:
# 0.8 % and 0.4 %, against 4.4 % in the first layer.
#
# The row of head 3 is nearly blank: for this digit its queries and keys hardly ever share a feature. Over 48 digits its
# mean score is 0.019. The other heads have 0.024 to 0.042.
#
# ## Pitfalls
#
# **`>` instead of `>=`.** Symptom: everything runs, but some spikes are missing, and published weights may give other
# answers. Cause: the neuron fires only above the threshold, as with snnTorch's own surrogates. Cure: test a tie, as we
# did.
#
# **T and B swapped in a reshape.** Symptom: there is no error, but the neuron takes other samples of the batch for
# earlier time steps of the same sample. Cure: test with T ≠ B, and compare a batch with its samples one by one. The
# next cell makes this mistake in one line:

# %%
# T = 4, B = 3, 50 neurons
x = 2.5 * torch.rand(4, 3, 50, generator=torch.Generator().manual_seed(2))
right = lif(x)[0]
# [T, B] was read as [B, T]: no error, other spikes
swapped = lif(x.reshape(3, 4, 50))[0].reshape(4, 3, 50)
print(f"{int((right != swapped).sum())} of {right.numel()} outputs differ")
assert (right != swapped).sum() > 50

# %% [markdown]
# **Low precision rounds counts.** bfloat16 has 8 significant binary digits, so it cannot hold all integers above 256.
# An inner product over N = 196 tokens is at most 196, so the first product is exact in both orders. The second product
# is a larger sum. If it is added up in float32 and rounded at the end, both orders round the same exact value once. So
# the two orders agree up to 256 tokens (and d up to 256). With more tokens they can differ.
#
# **A scale that is not a power of two.** Then the two orders round at different places, and a sum that should equal the
# threshold may miss it by the last bit.

# %%
print("257 in bfloat16:", float(torch.tensor(257.0).bfloat16()))
left = (rq @ rk.transpose(-2, -1) * 0.1) @ rv
right = rq @ (rk.transpose(-2, -1) @ rv) * 0.1
torch.testing.assert_close(left, right)  # close
assert not torch.equal(left, right)  # but not equal
print("s = 0.1: the two orders agree to the last bit:", torch.equal(left, right))

# %% [markdown]
# ## Exercises
#
# **5.1** SSA needs only the d x d matrix $K^\top V$: it gives the same output for all keys and values with the same
# $K^\top V$. Prove that softmax attention needs more. Find binary q, k, v and other k2, v2 with
# `k.T @ v == k2.T @ v2` for which the softmax outputs differ by more than 0.1. Matrices with one or two rows are enough.


# %% tags=["exercise-1"]
def same_to_ssa():
    """q, k, v, k2, v2: [N, d] in {0, 1}, the same to SSA, different to softmax."""
    ...


# %% tags=["check-1"]
def softmax_attention(q, k, v):
    return (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v


with se.exercise("5.1"):
    found = same_to_ssa()
    assert found is not None, "write same_to_ssa first"
    assert all(((x == 0) | (x == 1)).all() for x in found), (
        "use zeros and ones only"
    )
    eq, ek, ev, ek2, ev2 = (x.float() for x in found)
    assert torch.equal(ek.T @ ev, ek2.T @ ev2), (
        f"k.T @ v is {(ek.T @ ev).tolist()}, k2.T @ v2 is {(ek2.T @ ev2).tolist()}:"
        " they must be equal, so that SSA sees no difference"
    )
    gap = softmax_attention(eq, ek, ev) - softmax_attention(eq, ek2, ev2)
    assert gap.abs().max() > 0.1, (
        f"softmax attention gives nearly the same (largest difference"
        f" {gap.abs().max():.2f}): what does softmax do that a count does not?"
    )

# %% [markdown]
# **5.2** How many spikes change when s goes from 0.125 to $1/\sqrt d$? Write a function that takes Q, K, V as
# `[T, N, d]` and two scales, and returns how many spikes the second scale adds and how many it removes. Why can a
# larger current remove a spike?


# %% tags=["exercise-2"]
def changed(q, k, v, old, new):
    """How many spikes of SN(Q K^T V s), V_th = 0.5, are only there at s = new,
    and how many only at s = old."""
    ...


# %% tags=["check-2"]
with se.exercise("5.2"):
    result = changed(q, k, v, 0.125, 0.125)
    assert result is not None, "write changed first"
    assert tuple(map(int, result)) == (0, 0), "the same scale changes nothing"
    m = Q @ K.T @ V
    joined = int(((m >= 4) & (m < 8)).sum())
    once = tuple(map(int, changed(q[:1], k[:1], v[:1], 0.125, 0.25)))
    assert once == (joined, 0), (
        f"one step, s from 0.125 to 0.25: {once}, but {joined} spikes are added and"
        " none is removed; look at the sums that reach the threshold exactly"
    )
    back = tuple(map(int, changed(q[:1], k[:1], v[:1], 0.25, 0.125)))
    assert back == (0, joined), "from 0.25 to 0.125 the same spikes are removed"
    # T = 6, one token, d = 32: five ones, so that every sum is 5 where V is 1
    five = torch.zeros(6, 1, 32)
    five[..., :5] = 1
    moved = tuple(map(int, changed(five, five, five, 0.125, 32**-0.5)))
    assert moved == (10, 5), (
        f"six steps with the sum 5 at five neurons: {moved}; write the membrane of"
        " one of them on paper, for both scales, with its resets"
    )

# %% [markdown]
# **5.3** The chapter computed $(QK^\top)V$ with packed bits. Compute one entry of the other order, $Q(K^\top V)$. Now
# the words run over the tokens: column a of K, from token 0 to token N - 1, is one integer of N bits, and so is a
# column of V. Use `&` and `int.bit_count()`, no tensors and no multiplication.


# %% tags=["exercise-3"]
def entry(query, key_columns, value_column):
    """One entry of Q (K^T V). query: d bits; key_columns and value_column: ints."""
    ...


# %% tags=["check-3"]
def as_int(bits):
    return int("".join(str(int(bit)) for bit in bits), 2)


class Bit(int):
    def __mul__(self, other):
        raise AssertionError("no multiplication: what does a bit decide?")

    __rmul__ = __mul__


with se.exercise("5.3"):
    columns = [as_int(column) for column in K.T]
    table = [
        [
            entry([Bit(bit) for bit in row], columns, as_int(column))
            for column in V.T
        ]
        for row in Q
    ]
    assert table[2][4] is not None, "write entry first"
    wanted = (Q @ K.T @ V).int().tolist()
    assert table[2][4] == wanted[2][4], (
        f"query 2, feature 4: {table[2][4]}, but the sum is {wanted[2][4]};"
        " what does one entry of K^T V count?"
    )
    assert table == wanted, "query 2, feature 4 is right, another entry is not"

# %% [markdown]
# ## Recap
#
# - An entry of $QK^\top$ is the popcount of an AND. A row of $QK^\top$ times a column of V is a sum, and s times the
#   sum is the current of a neuron.
# - Counts are never negative, and the neuron turns every sum into 0 or 1. So the output is bounded without a softmax.
#   But nothing normalizes the sums: they grow with N, d and the firing rates.
# - Without a softmax $(QK^\top)V = Q(K^\top V)$ to the last bit. For N > d the second order is cheaper, $2Nd^2$ instead
#   of $2N^2d$, and needs no N x N matrix.
# - Sums lie on a grid, so ties with the threshold happen (in the two blocks of the packaged network 4.9 % and 2.3 % of
#   the spikes of the attention neurons), and `>=` matters.
# - The layer is Linear, BN, neuron, heads, product, neuron, Linear, BN, neuron. Every spike of our version equals the
#   package's.
#
# Next: [chapter 06](06_encoder_block.ipynb) puts the layer into a block with residuals and an MLP. Solutions of the
# exercises: [here](solutions/05_spiking_self_attention.ipynb).
