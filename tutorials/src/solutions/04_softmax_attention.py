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
# **4.1** Remove the softmax and measure the range.
#
# A score is a sum of d products divided by $\sqrt d$, so its variance is 1. An entry of the output is a sum of N
# products of a score and a value. These products are nearly independent, and each has variance 1. So the variance is N
# and the standard deviation $\sqrt N$. With the order $Q(K^TV)$ we do not need the 4096 x 4096 matrix.


# %% tags=["exercise-1"]
def spread(n, generator):
    """Measured on all n x 32 entries."""
    q, k, v = torch.randn(3, n, 32, generator=generator)
    return (q @ (k.T @ v) / 32**0.5).std()


power = 0.5

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
# **4.2** Shuffled tokens.
#
# The rows of the scores are shuffled like the queries. The columns are shuffled like the keys, and so are the rows of
# V, so the sum over keys stays the same. The result is the output with its rows shuffled: attention is permutation
# equivariant. It does not use the position of a token, so the network needs a position embedding.


# %% tags=["exercise-2"]
def of_shuffled(q, k, v, order):
    """Shuffle the output instead of the input."""
    return attention(q, k, v)[order]


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
# **4.3** A temperature.
#
# After the largest score is subtracted, no exponent is above zero, so there is no overflow. With a temperature near
# zero all other exponents go to minus infinity, and the softmax becomes an argmax. With a very large temperature all
# weights are almost equal.


# %% tags=["exercise-3"]
def weights_at(scores, temperature):
    """Subtract first, then divide."""
    e = ((scores - scores.amax(-1, keepdim=True)) / temperature).exp()
    return e / e.sum(-1, keepdim=True)


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
