# %% [markdown]
# # 04 · Solutions
#
# To the exercises of [chapter 04](../04_softmax_attention.ipynb), softmax attention.

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
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_num_threads(1)


# %%
def attention(q, k, v):  # as in the chapter
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True) @ v


# %% [markdown]
# **4.1** Remove the softmax and measure.
#
# Real numbers: a score is a sum of d products divided by $\sqrt d$, so its variance is 1. An entry of the output is a
# sum of N products of a score and a value. They have both signs and are nearly independent, so their variances add: the
# size grows like $\sqrt N$, and the exponent is 0.5. Spikes: no term is negative, so the terms do not cancel, the size
# grows like N, and the exponent is 1.


# %% tags=["exercise-1"]
def size(q, k, v):
    """Root mean square; with this order no N x N matrix is needed."""
    return (q @ (k.T @ v) / q.shape[-1] ** 0.5).square().mean().sqrt()


power_real = 0.5
power_spikes = 1

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
# %%
generator = torch.Generator().manual_seed(0)
for name, draw in {
    "real numbers": lambda n: torch.randn(3, n, 32, generator=generator),
    "spikes": lambda n: (torch.rand(3, n, 32, generator=generator) < 0.2).float(),
}.items():
    few, many = (float(size(*draw(n))) for n in (64, 4096))
    print(
        f"{name:12} N = 64: {few:5.1f}  N = 4096: {many:6.1f}  {many / few:.1f} x"
    )

# %% [markdown]
# 8 is 64 to the power 0.5, and 64 is 64 to the power 1.
#
# **4.2** Shuffled tokens.
#
# The rows of the scores belong to the queries, so the rows of the output are shuffled like the queries. The columns of
# the scores and the rows of V are shuffled in the same way, so each sum over keys has the same terms. Attention does
# not use the position of a token, so the network needs a position embedding.


# %% tags=["exercise-2"]
def of_shuffled(output, a, b):
    """The order b of keys and values does not matter."""
    return output[a]


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
# **4.3** A temperature.
#
# After the largest score is subtracted, no argument of the exponential is above zero, so there is no overflow. With a
# temperature near zero all other arguments are far below zero, and the largest score gets all weight. With a very large
# temperature all weights are almost equal.


# %% tags=["exercise-3"]
def weights_at(scores, temperature):
    """Subtract the largest score of each row, then divide."""
    e = ((scores - scores.amax(-1, keepdim=True)) / temperature).exp()
    return e / e.sum(-1, keepdim=True)


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
