# %% [markdown]
# # 09 · Solutions
#
# To [chapter 09](../09_ablations.ipynb).

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
# ## 9.1 Add a variant
#
# Write `AgreementAttention`, whose scores count the features in which Q and K agree, both 1 or both 0.
#
# Let $\phi(Q)$ be Q with 1 - Q appended. Then the product is $\phi(Q)\phi(K)^T = QK^T + (1-Q)(1-K)^T$. The rest of the
# class is inherited, including both orders of the products.


# %% tags=["exercise-1"]
class AgreementAttention(se.ATTENTION["ssa"]):
    """Scores count the features in which Q and K agree."""

    def phi(self, x):
        return torch.cat([x, 1 - x], dim=-1)


# %% tags=["check-1"]
with se.exercise("9.1"):
    generator = torch.Generator().manual_seed(0)
    for dim, heads, tokens, scale in ((64, 2, 10, 0.125), (48, 4, 20, 0.5)):
        layer = AgreementAttention(dim, heads, scale=scale)
        size = (3, 2, 1, heads, tokens, dim // heads)
        q, k, v = (torch.rand(size, generator=generator) < 0.3).float()
        agree = (q.unsqueeze(-2) == k.unsqueeze(-3)).sum(-1) * scale
        found = layer.scores(q, k)
        assert found.shape == agree.shape, "scores must stay [T, B, h, N, N]"
        i = (found - agree).abs().flatten().argmax()
        assert torch.allclose(found, agree), (
            f"two tokens that agree in {agree.flatten()[i] / scale:.0f} of"
            f" {dim // heads} features get {found.flatten()[i] / scale:.2f} s"
        )
        assert torch.allclose(layer.mix(q, k, v), agree @ v), (
            "the scores are right, but mix, which takes the other order when N > d,"
            " does not use them"
        )
    # now every configuration knows it
    se.ATTENTION["agreement"] = AgreementAttention
    se.spikformer("digits-2-64", attention="agreement")

# %% [markdown]
# ## 9.2 The range of a variant
#
# What is the mean of X for independent bits with rates $r_Q$, $r_K$, $r_V$?
#
# X sums over N tokens and d features. Two bits agree with probability $r_Q r_K + (1-r_Q)(1-r_K)$, and V counts the
# token with probability $r_V$.


# %% tags=["exercise-2"]
def mean_current(tokens, width, rate_q, rate_k, rate_v, scale=0.125):
    """Expected X of agreement attention."""
    agree = rate_q * rate_k + (1 - rate_q) * (1 - rate_k)
    return scale * tokens * width * agree * rate_v


# %% tags=["check-2"]
with se.exercise("9.2"):
    generator = torch.Generator().manual_seed(0)
    for tokens, width, rates, scale in (
        (50, 16, (0.1, 0.3, 0.2), 0.125),
        (20, 32, (0.5, 0.5, 0.5), 0.125),
        (40, 8, (0.02, 0.05, 0.4), 0.125),
        (30, 24, (0.6, 0.2, 0.3), 0.5),
    ):
        q, k, v = (
            (torch.rand(2000, tokens, width, generator=generator) < rate).float()
            for rate in rates
        )
        agree = q @ k.transpose(1, 2) + (1 - q) @ (1 - k).transpose(1, 2)
        mean = (scale * agree @ v).mean().item()
        said = mean_current(tokens, width, *rates, scale=scale)
        assert said is not None, "write mean_current first"
        assert abs(said / mean - 1) < 0.02, (
            f"N = {tokens}, d = {width}, rates {rates}, s = {scale}:"
            f" 2,000 random draws have the mean {mean:.2f}, your formula {said:.2f}"
        )

# %% [markdown]
# At N = 196, d = 64 and 5 % the mean is far above the range of the surrogate, while that of SSA is well below the
# threshold: if spikes are rare, most bits agree because both are 0. SSA does not count such pairs, so its range stays
# small. This variant would need another scale.

# %%
ours, ssa = mean_current(196, 64, 0.05, 0.05, 0.05), 0.125 * 196 * 64 * 0.05**3
print(f"mean X: agreement {ours:.1f}, SSA {ssa:.2f}; surrogate: up to H = 1.6")
assert ours > 50 and ssa < 0.5

# %% [markdown]
# ## 9.3 Read a trade-off
#
# Which T do you take when an image may cost at most `budget`?
#
# Choose the T with the best validation accuracy within the budget, and of two equals the cheaper. The test accuracy is
# for reporting, not for choosing.


# %% tags=["exercise-3"]
def choose_time_steps(points, budget):
    """The T to use."""
    within = [point for point in points if point[3] <= budget]
    best = max(within, key=lambda point: (point[1], -point[3]), default=[None])
    return best[0]


# %% tags=["check-3"]
with se.exercise("9.3"):
    points = [
        (6, 0.95, 0.94, 70.0),
        (1, 0.90, 0.93, 10.0),
        (4, 0.93, 0.96, 45.0),
        (2, 0.94, 0.92, 21.0),
        (3, 0.94, 0.95, 33.0),
    ]
    assert choose_time_steps(points, 50.0) is not None, (
        "write choose_time_steps first"
    )
    for budget, right, words in (
        (44.0, 2, "choose as in rule 3; of two equals take the cheaper"),
        (21.0, 2, "a point exactly at the budget is within it"),
        (20.0, 1, "only one point is within this budget"),
        (100.0, 6, "all points are within this budget"),
        (5.0, None, "nothing is within this budget"),
    ):
        said = choose_time_steps(points, budget)
        assert said == right, f"budget {budget}: you chose {said!r}; {words}"
