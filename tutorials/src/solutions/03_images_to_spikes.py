# %% [markdown]
# # 03 · Solutions
#
# To the exercises of [chapter 03](../03_images_to_spikes.ipynb), images into spikes.

# %% tags=["setup"]
import math
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

# %% [markdown]
# **Exercise 3.1: pool before or after the neuron?** 1.5 lies between 4/3 and 2, so its neuron fires at t = 1 and t = 3.
# 1.2 lies between 8/7 and 4/3, so its neuron fires at t = 2. Pooling the spikes afterwards gives spikes at all three
# steps. Pooling the currents before keeps only 1.5, which gives no spike at t = 2. If one of the two never fires, or
# both are in the same range, the results do not differ.

# %% tags=["exercise-1"]
a, b = 1.5, 1.2

# %% tags=["check-1"]
with se.exercise("3.1"):
    assert a is not None and b is not None, "give two numbers"
    pair = se.LIF()(torch.tensor([float(a), float(b)]).expand(4, 2))  # [T, 2]
    pooled_after = pair.max(1).values
    pooled_before = se.LIF()(torch.full((4, 1), max(float(a), float(b))))[:, 0]
    assert not torch.equal(pooled_after, pooled_before), (
        f"a fires {pair[:, 0].int().tolist()}, b {pair[:, 1].int().tolist()}: "
        f"both ways give {pooled_after.int().tolist()}"
    )

# %% [markdown]
# **Exercise 3.2: from the first spike back to the current.** After $n$ steps the membrane is $c\,(1 - 2^{-n})$. Step t
# is step number $n = t + 1$. The current is strong enough for the threshold after $t + 1$ steps, and not after $t$.


# %% tags=["exercise-2"]
def currents_of(t, threshold=1.0):
    """(low, high): a current c with low <= c < high fires first at step t."""
    low = threshold / (1 - 0.5 ** (t + 1))
    high = threshold / (1 - 0.5**t) if t > 0 else math.inf
    return low, high


# %% tags=["check-2"]
with se.exercise("3.2"):
    assert currents_of(1) is not None, "write currents_of first"

    def first_step(c, threshold):
        constant_ = torch.full((64,), c, dtype=torch.float64)
        train = se.LIF(v_threshold=threshold).double()(constant_)
        return int(train.argmax()) if train.any() else "never"

    for threshold in (1.0, 0.5):
        for t in (1, 2, 5, 0):
            low, high = (float(bound) for bound in currents_of(t, threshold))
            case = f"threshold {threshold:g}, t = {t}"
            assert low < high, (
                f"{case}: the lower bound {low:g} is not the smaller one"
            )
            bounds = [("lower", low, t + 1, t)]
            bounds += [("upper", high, t, t - 1)] if t > 0 else []
            for which, bound, below, above in bounds:
                steps_ = [
                    first_step(bound * (1 + x), threshold) for x in (-1e-9, 1e-9)
                ]
                assert steps_ == [below, above], (
                    f"{case}: a current just below your {which} bound {bound:.4f} "
                    f"fires first at step {steps_[0]}, just above it at {steps_[1]}"
                )
            assert t > 0 or high == math.inf, (
                f"{case}: a current above your bound {high:g} fires at t = 0 too"
            )

# %% [markdown]
# **Exercise 3.3: what does a token see?** Go through the layers from the image on. A window of 3 adds one neighbor on
# each side. Two neighbors are one pixel apart at first, and twice as many pixels after each pool. In this network the
# width is 29 of 32 pixels: already the tokens that enter attention depend on nearly the whole image. On ImageNet it is
# 61 of 224.


# %% tags=["exercise-3"]
def width_seen(pools):
    """Width in pixels of the receptive field, for True or False in each block."""
    width, apart = 1, 1
    for pool in pools:
        width += 2 * apart  # the convolution
        if pool:
            width += 2 * apart
            apart *= 2
    return width


# %% tags=["check-3"]
with se.exercise("3.3"):
    assert width_seen((True,)) is not None, "write width_seen first"
    for pools in (
        (False, False),
        (True,),
        (True, True, False, False),  # this network
        (False, False, True, True),  # CIFAR
        (True, True, True, True),  # ImageNet
    ):
        picture_ = torch.ones(1, 1, 129, 129, requires_grad=True)
        grid = picture_
        for pool in pools:
            grid = F.conv2d(grid, torch.ones(1, 1, 3, 3), padding=1)
            # an average depends on the same pixels as a maximum
            grid = F.avg_pool2d(grid, 3, 2, 1) if pool else grid
        middle = grid.shape[-1] // 2
        grid[0, 0, middle, middle].backward()
        measured = int((picture_.grad[0, 0].sum(0) > 0).sum())
        assert width_seen(pools) == measured, (
            f"pools {pools}: measured {measured}, your answer {width_seen(pools)}"
        )

# %% [markdown]
# Back to [chapter 03](../03_images_to_spikes.ipynb).
