# %% [markdown]
# # 05 · Solutions
#
# To the exercises of [chapter 05](../05_spiking_self_attention.ipynb), spiking self-attention by hand.

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

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# The bitmaps and the neuron of the chapter.


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
T, N, d = 3, 8, 8
q = torch.stack([Q.roll(t, dims=1) for t in range(T)])  # [T, N, d]
k, v = K.expand(T, N, d), V.expand(T, N, d)


# current [T, ...] -> spikes [T, ...], membranes H [T, ...]
def lif(current, v_threshold=1.0):
    membrane = torch.zeros_like(current[0])
    spikes, charged = [], []
    for x in current:
        h = (membrane + x) / 2
        spike = (h >= v_threshold).to(x.dtype)
        membrane = h * (1 - spike)
        spikes.append(spike)
        charged.append(h)
    return torch.stack(spikes), torch.stack(charged)


# %% [markdown]
# **5.1** Find keys and values that are the same to SSA and not to softmax attention.
#
# A key of zeros matches no query, so its value does not affect $K^TV$. But softmax gives it the weight
# $e^0 / \sum_j e^{\ldots} > 0$, so its value affects the output. Therefore the d x d matrix $K^TV$ is not enough for
# softmax attention, and no other order of the products avoids the N x N matrix of weights.


# %% tags=["exercise-1"]
def same_to_ssa():
    """One query, two tokens; the second has a key of zeros, and its value is 0 in v and 1 in v2."""
    q = torch.tensor([[1.0], [1.0]])
    k = torch.tensor([[1.0], [0.0]])
    return q, k, torch.tensor([[1.0], [0.0]]), k, torch.tensor([[1.0], [1.0]])


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
# **5.2** How many spikes change with the scale?
#
# With a larger current a spike comes earlier. The reset after it sets the membrane to zero, so the neuron may not fire
# at the step where it fires with the smaller current. So spikes are not only added; some also move to other steps.


# %% tags=["exercise-2"]
def changed(q, k, v, old, new):
    """Run the neuron over all T steps for both scales, and compare."""
    sums = q @ k.transpose(-2, -1) @ v
    before, after = lif(sums * old, 0.5)[0], lif(sums * new, 0.5)[0]
    return int((after > before).sum()), int((before > after).sum())


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

# %%
added, removed = changed(q, k, v, 0.125, 8**-0.5)
total = int(lif(q @ k.transpose(-2, -1) @ v * 0.125, 0.5)[0].sum())
print(
    f"bitmaps: of {total} spikes at s = 0.125, {removed} go and {added} come at s = 1/sqrt(8), T = 3"
)
assert (added, removed, total) == (70, 0, 89)

model = se.load_pretrained("digits-2-64")
images, _ = se.data.load("digits").test.fetch(torch.arange(48), None)
with torch.no_grad(), se.record(model) as rec:
    model(images)
for block in range(2):
    # each [T, B, h, N, d]
    parts = [rec[f"blocks.{block}.attn.{part}"].spikes for part in "qkv"]
    spikes = rec[f"blocks.{block}.attn.attn"].spikes
    added, removed = changed(*parts, 0.125, 16**-0.5)
    assert added > 0
    come, go = added / spikes.sum(), removed / spikes.sum()
    print(
        f"block {block} of the packaged network, s = 1/sqrt(16): {come:.0%} come, {go:.1%} go"
    )

# %% [markdown]
# **5.3** One entry with integers as bitmaps.
#
# `query & key` computes the AND of all d features in one instruction, and `bit_count` the popcount in another: the 64
# features of a head fit into one machine word.


# %% tags=["exercise-3"]
def entry(query, keys, column):
    """AND, popcount, add: no multiplication anywhere."""
    return sum(
        (query & key).bit_count()
        for key, bit in zip(keys, column, strict=True)
        if bit
    )


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
