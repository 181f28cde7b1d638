# %% [markdown]
# # 03 · Solutions
#
# To the exercises of [chapter 03](../03_images_to_spikes.ipynb), images into spikes.

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
# **3.1** Pool before or after the neuron: constant currents of two pixels for which the two differ within T = 4 steps.
#
# 1.5 lies between 4/3 and 2, so its neuron fires at t = 1 and t = 3. 1.2 lies between 8/7 and 4/3, so its neuron fires
# at t = 2. Pooling the spikes afterwards gives spikes at all three steps. Pooling the currents before keeps only 1.5,
# which gives no spike at t = 2. If one of the two never fires, or both are in the same range, the results do not
# differ.

# %% tags=["exercise-1"]
a, b = 1.5, 1.2

# %% tags=["check-1"]
with se.exercise("3.1"):
    assert a is not None and b is not None, "give two numbers"
    pair = se.LIF()(torch.tensor([float(a), float(b)]).expand(4, 2))  # [T, 2]
    pooled_after = pair.max(1).values
    pooled_before = se.LIF()(torch.full((4, 1), max(float(a), float(b))))[:, 0]
    hint = "both must fire, and at different steps: look at the bounds 4/3 and 8/7 above"
    assert not torch.equal(pooled_after, pooled_before), hint

# %% [markdown]
# **3.2** The step of the first spike under a constant current.
#
# After n steps $H = X (1 - 2^{-n})$. The neuron fires at the first n for which this reaches 1. `>=` matters for X = 2:
# the neuron fires at t = 0.


# %% tags=["exercise-2"]
def first_spike(current, T):
    """Compare X (1 - 2^-n) with the threshold, n = 1 ... T; step t is n - 1."""
    for n in range(1, T + 1):
        if current * (1 - 0.5**n) >= 1:
            return n - 1
    return None


# %% tags=["check-2"]
with se.exercise("3.2"):
    assert first_spike(2.0, 4) is not None, (
        "a current of 2 fires at step 0: reached is enough"
    )
    for current in (0.5, 1.0, 1.01, 1.07, 1.2, 1.5, 1.99, 2.0, 3.0):
        train = se.LIF()(torch.full((8, 1), current))[:, 0]
        truth = int(train.argmax()) if train.any() else None
        assert first_spike(current, 8) == truth, (
            f"a current of {current} fires first at {truth}"
        )
    assert first_spike(1.01, 4) is None, "1.01 needs more than 4 steps"

# %% [markdown]
# **3.3** The number of tokens.
#
# Each pool halves both sides, so one more pool leaves a quarter of the tokens.


# %% tags=["exercise-3"]
def tokens_of(pool, height, width):
    """Sides divided by the patch size, 2 to the number of pools."""
    patch = 2 ** sum(pool)
    return (height // patch) * (width // patch)


# %% tags=["check-3"]
with se.exercise("3.3"):
    result = tokens_of((False, False, True, True), 32, 32)
    assert result is not None, "write tokens_of first"
    assert result == 64, "CIFAR: 32 x 32 pixels, two pools, 8 x 8 tokens"
    assert tokens_of((True, True, True, True), 224, 224) == 196, (
        "each of four pools halves both sides"
    )
    assert tokens_of((False, False, True, True), 48, 32) == 96, (
        "height and width need not be equal"
    )
