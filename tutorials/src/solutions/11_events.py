# %% [markdown]
# # 11 · Solutions
#
# Back to [chapter 11](../11_events.ipynb).

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

import numpy as np
import torch
import torch.nn.functional as F

from spikformer_edu.data.digits_dvs import images as padded_digits
from spikformer_edu.data.digits_motion import record
from spikformer_edu.data.events import to_frames

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# What the checks need from the chapter: one simulated recording.

# %%
digits, _ = padded_digits()
recording = record(digits[5:6], [5], clockwise=True, size=128)[0]
assert len(recording) > 1000

# %% [markdown]
# ## 11.1 Shuffle time
#
# Each sample gets its own order from the generator. A cyclic shift is not enough: seven of eight frames would still
# follow the one before them, so the direction would still be visible.


# %% tags=["exercise-1"]
def shuffle_time(frames, generator):
    """[T, B, 2, H, W] -> the same frames, in a random order for each sample."""
    samples = [
        sample[torch.randperm(len(sample), generator=generator)]
        for sample in frames.unbind(1)
    ]
    return torch.stack(samples, dim=1)


# %% tags=["check-1"]
with se.exercise("11.1"):
    # a number that says which sample and which step a frame comes from
    marked = torch.arange(8.0)[:, None] + 10 * torch.arange(300.0)
    marked = marked[..., None, None, None].expand(-1, -1, 2, 3, 3).clone()
    mixed = shuffle_time(marked.clone(), torch.Generator().manual_seed(0))
    assert mixed is not None, "write shuffle_time first"
    assert mixed.shape == marked.shape, "the shape should stay [T, B, 2, H, W]"
    assert (mixed == mixed[..., :1, :1, :1]).all(), (
        "a frame should stay in one piece"
    )
    seen = mixed[:, :, 0, 0, 0]
    assert torch.equal(seen // 10, marked[:, :, 0, 0, 0] // 10), (
        "frames have moved to another sample"
    )
    order = seen % 10  # [T, B]
    assert torch.equal(
        order.sort(0).values, torch.arange(8.0)[:, None].expand(8, 300)
    ), "every frame of a sample should be there exactly once"
    assert len({tuple(o) for o in order.T.tolist()}) > 250, (
        "different samples should have different orders"
    )
    follows = (order[1:] - order[:-1] == 1).float().mean().item()
    assert follows < 0.3, (
        f"{100 * follows:.0f} % of the frames still follow the one before them"
    )
    first = torch.bincount(order[0].long(), minlength=8)
    assert 15 < first.min() and first.max() < 65, (
        f"some frames come first too often: {first.tolist()} of 300 samples"
    )
    twice = [shuffle_time(marked, torch.Generator().manual_seed(s)) for s in (0, 1)]
    assert torch.equal(twice[0], mixed), (
        "use the generator: the same seed, the same order"
    )
    assert not torch.equal(twice[1], mixed), (
        "another seed should give another order"
    )

# %% [markdown]
# ## 11.2 Frames by time
#
# The frame number of an event is its time since the first event, divided by the whole duration, times T, rounded down.
# Only the last event would get the number T, so it is put into the last frame.


# %% tags=["exercise-2"]
def frames_by_time(events, T, size=128):
    """[T, 2, size, size]: equal duration a frame."""
    t = events["t"] - events["t"][0]
    frame = np.minimum(t * T // max(1, t[-1]), T - 1)
    frames = np.zeros((T, 2, size, size), dtype=np.int64)
    np.add.at(frames, (frame, events["p"].astype(int), events["y"], events["x"]), 1)
    return frames


# %% tags=["check-2"]
with se.exercise("11.2"):
    sliced = frames_by_time(recording, 4)
    assert sliced is not None, "write frames_by_time first"
    sliced = np.asarray(sliced)
    assert sliced.shape == (4, 2, 128, 128), f"the shape is {sliced.shape}"
    assert sliced.sum() == len(recording), (
        f"{int(sliced.sum()):,} events of {len(recording):,} are in a frame"
    )
    assert np.array_equal(sliced.sum(0), to_frames(recording, 1)[0]), (
        "the sum of your frames has events in the wrong pixel or polarity"
    )
    quarters = np.histogram(recording["t"], 4)[0]
    assert abs(sliced.sum((1, 2, 3)) - quarters).max() <= 1, (
        "your frames do not hold the events of one quarter of the time each"
    )
    late = recording[len(recording) // 2 :].copy()
    quarters = np.histogram(late["t"], 4)[0]
    mine = np.asarray(frames_by_time(late, 4)).sum((1, 2, 3))
    assert abs(mine - quarters).max() <= 1, (
        f"starting at {late['t'][0]} us, the frames hold {mine.tolist()} events"
    )

# %% [markdown]
# ## 11.3 The loss of every step
#
# Flattening `[T, B]` puts all samples of step 0 first, then those of step 1, and so on. The labels are repeated in the
# same order: the whole batch, T times. `repeat_interleave` would put each label T times in a row, beside the wrong
# samples.


# %% tags=["exercise-3"]
def loss_of_every_step(logits, labels):
    """Logits [T, B, K] and labels [B] -> one number."""
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))


# %% tags=["check-3"]
with se.exercise("11.3"):
    random = torch.Generator().manual_seed(0)
    for steps, count in ((4, 4), (3, 5), (1, 2)):
        logits = 3 * torch.randn(steps, count, 6, generator=random)
        y = torch.randint(6, (count,), generator=random)
        mine = loss_of_every_step(logits, y)
        assert mine is not None, "write loss_of_every_step first"
        each = -logits.log_softmax(-1)[:, torch.arange(count), y]  # [T, B]
        at = f"T = {steps}, B = {count}: {float(mine):.3f}"
        assert abs(float(mine) - float(each.sum())) > 1e-4 or steps * count == 1, (
            f"{at} grows with T and B: it is a sum"
        )
        if steps > 1:
            of_mean = F.cross_entropy(logits.mean(0), y)
            assert abs(float(mine) - float(of_mean)) > 1e-4, (
                f"{at} is the loss of the mean of the logits"
            )
        assert abs(float(mine) - float(each.mean())) < 1e-5, (
            f"{at}, not {float(each.mean()):.3f}: is each label beside its sample?"
        )
