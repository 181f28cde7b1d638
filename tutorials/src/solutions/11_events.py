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

import math

import numpy as np
import torch
import torch.nn.functional as F

from spikformer_edu.data.digits_dvs import images as padded_digits
from spikformer_edu.data.events import EVENT, to_frames
from spikformer_edu.data.simulated_camera import simulate
from spikformer_edu.training import DistributedContext, evaluate

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# What the checks need from the chapter: one simulated recording, and the trained network with its test frames.

# %%
digits, _ = padded_digits()
(recording,) = simulate(digits[5:6], seeds=[5], loops=1)

T = 8
data = se.data.load("digits-dvs", time_steps=T, image_size=16)
config = dict(
    dim=64,
    depth=1,
    heads=2,
    in_channels=2,
    time_steps=T,
    pool=(True, True, False, False),
)
model = se.Spikformer(se.SpikformerConfig(**config))
epochs, batch_size, highest = 4, 32, 6e-3
steps = epochs * (len(data.train) // batch_size)
optimizer = torch.optim.AdamW(model.parameters(), lr=highest, weight_decay=0.06)
step = 0
for epoch in range(epochs):
    for frames, labels in se.data.batches(
        data.train, batch_size, train=True, epoch=epoch
    ):
        warmup, cosine = (
            min(1, (step + 1) / 20),
            (1 + math.cos(math.pi * step / steps)) / 2,
        )
        for group in optimizer.param_groups:
            group["lr"] = highest * warmup * cosine
        loss = F.cross_entropy(model(frames), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
score = evaluate(model, data.test, DistributedContext(torch.device("cpu")))
frames, labels = data.test.fetch(torch.arange(len(data.test)), None)
model.eval()
assert score.accuracy > 0.5

# %% [markdown]
# ## 11.1 Shuffle time, and measure
#
# Each sample gets its own order. Most of the accuracy remains, because every frame shows the outline of the digit. Some
# accuracy is lost: the digits of all recordings move along the same path, so the network has learned the order of the
# frames, and its neurons carry their membrane potentials from one frame to the next.


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
    mixed = shuffle_time(frames, torch.Generator().manual_seed(0))
    assert mixed is not None, (
        "write shuffle_time first; torch.randperm(T, generator=generator) gives an order"
    )
    assert mixed.shape == frames.shape, "the shape should stay [T, B, 2, H, W]"
    # [T, B]
    sizes, mixed_sizes = (
        frames.flatten(2).square().sum(2),
        mixed.flatten(2).square().sum(2),
    )
    assert torch.equal(sizes.sort(0).values, mixed_sizes.sort(0).values), (
        "every sample should keep its own frames"
    )
    # where each first frame went
    moved_to = (mixed == frames[0]).flatten(2).all(2).float().argmax(0)
    assert len(moved_to.unique()) > 1, "each sample needs an order of its own"
    with torch.no_grad():
        shuffled_accuracy = (model(mixed).argmax(1) == labels).float().mean().item()
    assert 0.2 < shuffled_accuracy < score.accuracy + 0.02, (
        "much of it should survive, but nothing be gained"
    )

# %% tags=["nbval-ignore-output"]
print(
    f"as recorded {100 * score.accuracy:.0f} %, shuffled {100 * shuffled_accuracy:.0f} %, chance 10 %"
)
assert shuffled_accuracy > 0.2

# %% [markdown]
# ## 11.2 Frames by time
#
# The frame number of an event is its time divided by the whole duration, times T, rounded down. Only the last event
# would get the number T, so it is put into the last frame.


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
    assert sliced is not None, (
        "write frames_by_time first: which frame does an event at time t belong to?"
    )
    assert sliced.sum() == len(recording), (
        "every event belongs to exactly one frame, the last one too"
    )
    whole = to_frames(recording, 1)[0]
    assert np.array_equal(sliced.sum(0), whole), (
        "frames[t, p, y, x]: polarity is the channel, y the row"
    )
    quarters = np.histogram(recording["t"], 4)[0]
    assert abs(sliced.sum((1, 2, 3)) - quarters).max() <= 1, (
        "each frame holds the events of one quarter of the time"
    )
    late = recording[len(recording) // 2 :].copy()
    assert frames_by_time(late, 4)[0].sum() > 0, (
        "time starts at the first event, not at 0"
    )

# %% [markdown]
# ## 11.3 A hot pixel
#
# Count the events of each pixel, compare the counts with a high percentile, and keep the events of all other pixels.
# Use a percentile and not the mean, because the hot pixel itself would raise the mean.


# %% tags=["exercise-3"]
def without_hot_pixels(events, factor=3.0, size=128):
    """The events, without those of hot pixels."""
    pixel = events["y"].astype(int) * size + events["x"]
    counts = np.bincount(pixel, minlength=size * size)
    limit = factor * max(1, np.percentile(counts, 99))
    return events[counts[pixel] <= limit]


# %% tags=["check-3"]
with se.exercise("11.3"):
    hot = np.zeros(20_000, dtype=EVENT)
    hot["x"], hot["y"] = 7, 100
    hot["t"] = np.linspace(0, recording["t"][-1], len(hot)).astype(int)
    noisy = np.sort(np.concatenate([recording, hot]), order="t", kind="stable")
    clean = without_hot_pixels(noisy)
    assert clean is not None, (
        "write without_hot_pixels first; np.bincount counts the events of each pixel"
    )
    assert clean.dtype == EVENT and (np.diff(clean["t"]) >= 0).all(), (
        "events stay events, in order of time"
    )
    assert not ((clean["x"] == 7) & (clean["y"] == 100)).any(), (
        "pixel (7, 100) is hot: its events should be gone"
    )
    assert len(clean) > 0.95 * len(recording), (
        "hardly any other event should be lost"
    )
    assert len(without_hot_pixels(noisy, factor=1e6)) == len(noisy), (
        "nothing is a million times the 99th percentile"
    )
