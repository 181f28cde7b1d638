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
    layer = AgreementAttention(64, 2)
    q, k, v = (
        torch.rand(3, 2, 1, 2, 10, 32, generator=torch.Generator().manual_seed(0))
        < 0.3
    ).float()
    agree = (q.unsqueeze(-2) == k.unsqueeze(-3)).sum(-1) * 0.125  # [T, B, h, N, N]
    assert layer.scores(q, k).shape == agree.shape, (
        "scores must stay [T, B, h, N, N]"
    )
    assert torch.equal(layer.scores(q, k), agree), (
        "scores do not count agreements: what can phi append to Q and to K?"
    )
    assert torch.equal(layer.mix(q, k, v), agree @ v), (
        "mix takes the other order for long sequences: change phi alone"
    )
    # now every configuration knows it
    se.ATTENTION["agreement"] = AgreementAttention
    assert (
        se.spikformer("digits-2-64", attention="agreement").config.attention
        == "agreement"
    )

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
    for tokens, width, *rates in (
        (50, 16, 0.1, 0.3, 0.2),
        (20, 32, 0.5, 0.5, 0.5),
        (40, 8, 0.02, 0.05, 0.4),
    ):
        q, k, v = (
            (torch.rand(2000, tokens, width, generator=generator) < rate).float()
            for rate in rates
        )
        scores = (q @ k.transpose(1, 2) + (1 - q) @ (1 - k).transpose(1, 2)) * 0.125
        said = mean_current(tokens, width, *rates)
        assert said is not None, "write mean_current first"
        assert abs(said / (scores @ v).mean().item() - 1) < 0.02, (
            "two bits agree when both are 1, or both are 0"
        )

# %% [markdown]
# At N = 196, d = 64 and 5 % the mean is far above the range of the surrogate, while that of SSA is well below the
# threshold: if spikes are rare, most bits agree because both are 0. SSA does not count such pairs, so its range stays
# small. This variant would need another scale.

# %%
ours, ssa = mean_current(196, 64, 0.05, 0.05, 0.05), 0.125 * 196 * 64 * 0.05**3
print(
    f"mean X: agreement {ours:.1f}, SSA {ssa:.2f}; the surrogate ends near H = 1.6"
)
assert ours > 50 and ssa < 0.5

# %% [markdown]
# ## 9.3 Read a trade-off
#
# Which T do you take when an image may cost at most `budget`?
#
# Choose the T with the best validation accuracy within the budget. The test accuracy is for reporting, not for
# choosing.


# %% tags=["exercise-3"]
def choose_time_steps(points, budget):
    """The T to use, from a list of (T, validation accuracy, test accuracy, energy)."""
    within = [point for point in points if point[3] <= budget]
    return max(within, key=lambda point: point[1])[0] if within else None


# %% tags=["check-3"]
with se.exercise("9.3"):
    points = [
        (1, 0.90, 0.93, 10.0),
        (2, 0.94, 0.92, 21.0),
        (4, 0.93, 0.96, 45.0),
        (6, 0.95, 0.94, 70.0),
    ]
    assert choose_time_steps(points, 50.0) is not None, (
        "write choose_time_steps first"
    )
    assert choose_time_steps(points, 50.0) == 2, (
        "which column may be used for choosing?"
    )
    assert choose_time_steps(points, 21.0) == 2, (
        "a point exactly at the budget is within it"
    )
    assert choose_time_steps(points, 100.0) == 6, (
        "with enough budget the best on validation wins"
    )
    assert choose_time_steps(points, 5.0) is None, "nothing is within this budget"
