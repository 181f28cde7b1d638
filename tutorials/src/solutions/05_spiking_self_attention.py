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


# %% [markdown]
# **5.1** Find keys and values that are the same to SSA and not to softmax attention.
#
# A key of zeros adds nothing to $K^\top V$, whatever its value is. But softmax gives it the weight
# $e^0 / \sum_j e^{\ldots} > 0$, so its value affects the output. Therefore softmax attention cannot be computed from q
# and the d x d matrix $K^\top V$.


# %% tags=["exercise-1"]
def same_to_ssa():
    """The second token has a key of zeros; its value is 0 in v and 1 in v2."""
    q = torch.tensor([[1.0], [1.0]])
    k = torch.tensor([[1.0], [0.0]])
    return q, k, torch.tensor([[1.0], [0.0]]), k, torch.tensor([[1.0], [1.0]])


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
# **5.2** How many spikes change with the scale?
#
# With a larger current a spike comes earlier. The reset after it sets the membrane to zero, so the neuron may not fire
# at the step where it fires with the smaller current. So a larger scale does not only add spikes; it also moves some to
# other steps.


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

# %%
added, removed = changed(q, k, v, 0.125, 8**-0.5)
total = int(lif(q @ k.transpose(-2, -1) @ v * 0.125, 0.5)[0].sum())
print(f"bitmaps, T = 4: {total} spikes at s = 0.125;", end=" ")
print(f"at s = 1/sqrt(8) {removed} of them go and {added} come")
assert added > removed

model = se.load_pretrained("digits-2-64")
images, _ = se.data.load("digits").test.fetch(torch.arange(48), None)
with torch.no_grad(), se.record(model) as rec:
    model(images)
for block in range(2):
    # each [T, B, h, N, d]
    parts = [rec[f"blocks.{block}.attn.{part}"].spikes for part in "qkv"]
    spikes = rec[f"blocks.{block}.attn.attn"].spikes
    added, removed = changed(*parts, 0.125, 16**-0.5)
    come, go = added / spikes.sum(), removed / spikes.sum()
    print(f"packaged network, block {block}, s = 1/sqrt(16):", end=" ")
    print(f"{come:.0%} come, {go:.1%} go")
    assert added > 0

# %% [markdown]
# **5.3** One entry of the other order.
#
# One entry of $K^\top V$ counts the tokens whose key has feature a and whose value has the feature: it is the popcount
# of the AND of two columns. For N = 64 tokens a column fits into one machine word. The bits of the query select which
# of these counts are added.


# %% tags=["exercise-3"]
def entry(query, key_columns, value_column):
    """AND, popcount, add: no multiplication."""
    return sum(
        (column & value_column).bit_count()
        for bit, column in zip(query, key_columns, strict=True)
        if bit
    )


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
