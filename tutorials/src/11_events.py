# %% [markdown]
# # 11 · Events
#
# *Run time 30 s on one CPU core · after chapters 03 and 08 · no internet access, no GPU*
#
# An event camera sends no pictures. Each pixel reports independently, within microseconds, that it became brighter or
# darker. How do such recordings become the input `[T, B, C, H, W]` of a network? This chapter covers all steps from
# files on disk to a trained classifier. All events in it are **simulated**, because you must download the real data set
# by hand. The same code reads the real data set.
#
# ## What you will learn
# - say what an event means, and simulate the pixel that sends it
# - read recordings, and cut them into frames by count and by time
# - use `cifar10dvs` from disk: layout, cache, and the missing official split
# - train a classifier on event frames, and measure how much it uses the order of the frames
# - augment event data in the same way for all frames of a recording

# %% tags=["setup"]
from pathlib import Path

try:
    import spikformer_edu as se
except ModuleNotFoundError:
    # not installed yet: install it from the repository that holds this notebook
    assert Path("../pyproject.toml").exists(), (
        "get the whole repository: the package is installed from there"
    )
    # %pip install --quiet ..
    import spikformer_edu as se

import importlib.util
import math
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from tonic.transforms import ToFrame

from spikformer_edu.data.augment import augment_frames
from spikformer_edu.data.cifar10dvs import LABEL
from spikformer_edu.data.digits_dvs import images as padded_digits
from spikformer_edu.data.events import EVENT, read_events, to_frames, write_events
from spikformer_edu.data.simulated_camera import simulate
from spikformer_edu.plot import style
from spikformer_edu.training import DistributedContext, evaluate

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# The figure shows one simulated recording of a digit that moves along a closed path. The top shows the events in space
# and time: there are no events where nothing moves. The middle row shows the frames that the network gets; each is the
# sum of the same number of events. The bottom row shows the [tokens](../docs/glossary.md#token) from the
# [patch splitting](../docs/glossary.md#sps): one number for each 16 x 16 pixels, here the mean over D. The weights are
# random; we train later.

# %%
digits, digit_labels = padded_digits()  # [1797, 10, 10], with a margin
(recording,) = simulate(digits[5:6], seeds=[5], loops=1)


def small_network(time_steps, pool=(True, True, True, True)):
    """A tiny Spikformer for event frames: two channels, one for each polarity."""
    torch.manual_seed(0)
    config = dict(
        dim=64, depth=1, heads=2, in_channels=2, time_steps=time_steps, pool=pool
    )
    return se.Spikformer(se.SpikformerConfig(**config))


network = small_network(8)
for module in network.modules():
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        module.momentum = 1.0  # one pass then sets the statistics
with torch.no_grad():
    network(torch.from_numpy(to_frames(recording, 8).astype(np.float32))[:, None])

fig, axes = se.plot.events(
    recording, 8, title="simulated, digit 5", model=network, shown=8_000
)
se.plot.show(
    fig,
    "A cube of simulated events in x, y and time, the moving outline of a digit; below it T = 8 frames with one colour "
    "for each polarity, and below those 8 x 8 grids of tokens, dark mostly where the digit is.",
)
assert len(axes) == 1 + 2 * 8

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | events | `[n]`, fields t, x, y, p | integers; p in {0, 1} | microsecond, pixel, polarity: brighter or darker |
# | frames of one recording | `[T, 2, H, W]` | integers 0, 1, 2, ... | events in each pixel, channel = polarity |
# | batch | `[T, B, 2, H, W]` | integers, as float | input of the network; the first axis gives T |
# | after the first stage | `[T, B, D/8, H/2, W/2]` | {0, 1} | spikes; from here on as with images |
# | tokens | `[T, B, N, D]` | integers | N = 64 for 128 x 128 |
# | logits | `[B, K]` | reals | mean over tokens and time |

# %% [markdown]
# ## One pixel of an event camera
#
# A pixel stores the *logarithm* of the intensity at its last event. When the current logarithm differs from it by a
# threshold, the pixel sends an event and stores the new level.


# %%
def pixel_events(light, threshold=0.25):
    """Events of one pixel: indices and polarities, from its intensity over time."""
    level = np.log(light)
    remembered, when, polarity = level[0], [], []
    for i, now in enumerate(level):
        while abs(now - remembered) >= threshold - 1e-12:
            up = now > remembered
            remembered += threshold if up else -threshold
            when.append(i)
            polarity.append(int(up))
    return np.array(when), np.array(polarity)


time = np.linspace(0, 2, 2001)  # seconds
# two waves, then constant
light = np.where(time < 1, np.exp(1.1 * np.sin(2 * np.pi * time) ** 2), 1.0)
when, polarity = pixel_events(light)

fig, ax = plt.subplots(figsize=(9, 3.2))
ax.plot(time, np.log(light), color=style.GREY, label="log intensity")
for p, color, marker, label in (
    (1, "#0072B2", "^", "brighter (p = 1)"),
    (0, "#D55E00", "v", "darker (p = 0)"),
):
    mine = when[polarity == p]
    ax.plot(time[mine], np.log(light)[mine], marker, color=color, label=label)
ax.set(
    xlabel="time (s)",
    ylabel="log intensity",
    title="one pixel, simulated, threshold 0.25",
)
ax.legend(loc="upper right")
se.plot.show(
    fig,
    "Log intensity of one pixel over two seconds with its events: upward marks on rising flanks, "
    # fmt: skip
    "downward marks on falling ones, none in the second half, where the light stands still.",
)
assert len(when) > 10 and time[when].max() <= 1  # no change of light, no events

# %% [markdown]
# **Predict before you run.** The same scene is now ten times as bright. How many more events does this pixel send?

# %%
brighter, _ = pixel_events(10 * light)
print(f"{len(when)} events, with ten times the light {len(brighter)}")
assert np.array_equal(when, brighter)

# %% [markdown]
# <details><summary>Answer</summary>
#
# None. The logarithm turns a factor into an added constant, and the pixel uses only differences. So event cameras see
# the same edges in sun and shade; in real cameras this holds until noise dominates.
#
# </details>
#
# `simulate` computes 128 x 128 such pixels, with thresholds that vary by 10 % between pixels, interpolated times and
# some noise. It is only a model of a camera, so everything made with it is labelled simulated.

# %% [markdown]
# ## Onto disk and back
#
# Recordings are stored as AEDAT4 (newer cameras and the archive that tonic downloads), AEDAT 2.0 (the original
# CIFAR10-DVS) or `.npz`. `read_events` reads all three into the same type, in the order of the file. It checks that a
# recording is not empty and that all events are inside the sensor. Writing AEDAT4 needs `dv-processing`; without it
# this chapter uses `.npz`.

# %%
suffix = ".aedat4" if importlib.util.find_spec("dv_processing") else ".npz"
print(
    f"recordings are written as {suffix}"
    + (" (no dv-processing here)" if suffix == ".npz" else "")
)

workplace = tempfile.TemporaryDirectory()
file = Path(workplace.name) / f"digit{suffix}"
write_events(file, recording)
again = read_events(file)

assert again.dtype == EVENT and np.array_equal(again, recording)
for field in "txyp":
    print(
        f"{field}: {again.dtype[field]!s:6} from {int(again[field].min())} to {int(again[field].max()):,}"
    )
assert (np.diff(again["t"]) >= 0).all() and 0.4 < again["p"].mean() < 0.6

# %% [markdown]
# ## Events into frames, by count
#
# The paper cuts a recording of n events into T [frames](../docs/glossary.md#frame) of equal *count*: frame i holds
# events $i \lfloor n/T \rfloor$ to $(i+1) \lfloor n/T \rfloor - 1$, and the last frame also takes the remainder. A
# frame counts events for each pixel and polarity.


# %%
def frames_by_count(events, T, size=128):
    """[T, 2, size, size]: equally many events a frame, the rest in the last."""
    step = len(events) // T
    frames = np.zeros((T, 2, size, size), dtype=np.int64)
    for i in range(T):
        part = events[i * step : (i + 1) * step if i < T - 1 else len(events)]
        np.add.at(frames[i], (part["p"].astype(int), part["y"], part["x"]), 1)
    return frames


T = 16
# a number of events that 16 does not divide
odd = recording[: len(recording) // T * T - 5]
frames = frames_by_count(odd, T)
assert np.array_equal(frames, to_frames(odd, T)) and frames.sum() == len(odd)

# %% [markdown]
# **Predict before you run.** tonic's `ToFrame(n_event_bins=T)` does the same. Will both give the same frames for these
# events? All of them?

# %%
theirs = ToFrame(sensor_size=(128, 128, 2), n_event_bins=T)(odd)
whole = odd[: len(odd) // T * T]  # without the remainder
assert np.array_equal(theirs[:-1], frames[:-1])
assert np.array_equal(theirs, to_frames(whole, T))
print(
    f"events in our frames minus events in tonic's: {frames.sum() - theirs.sum()}, remainder {len(odd) % T}"
)
assert frames.sum() - theirs.sum() == len(odd) % T == 11

# %% [markdown]
# <details><summary>Answer</summary>
#
# All but the last. tonic drops the remainder, and the paper's rule keeps it. The remainder is fewer than T events, so
# it hardly affects the accuracy. But if we say "the same frames", we should check it. There is a larger difference:
# tonic counts in signed 16-bit integers, which overflow at 32,768 events in one pixel; `to_frames` uses the smallest
# type that can hold the counts.
#
# </details>

# %% [markdown]
# ## By count or by time?
#
# The alternative gives every frame the same *duration*. To see the difference, we make the second half of the recording
# ten times slower.

# %%
t = recording["t"]
middle = t[-1] // 2
slowed = recording.copy()
slowed["t"] = np.where(t < middle, t, middle + 10 * (t - middle))

by_time = ToFrame(sensor_size=(128, 128, 2), n_time_bins=T)
events_in = {
    "by count": to_frames(recording, T).sum((1, 2, 3)),
    "by time": by_time(recording).sum((1, 2, 3)),
    "by time, second half slowed": by_time(slowed).sum((1, 2, 3)),
}

fig, axes = plt.subplots(1, 3, figsize=(11, 3), sharey=True)
for ax, (name, counts), color in zip(
    axes, events_in.items(), (style.Q, style.GREY, style.MEMBRANE), strict=True
):
    ax.bar(range(T), counts, color=color)
    ax.set(xlabel="time step", title=name, xticks=range(0, T, 5))
axes[0].set_ylabel(f"events a frame, T = {T}")
se.plot.show(fig, "Events in each of T = 16 frames of one simulated recording: all equal when cut by count, "
             "uneven by a factor of about two by time, and after slowing the second half more than half in the first "
             "two.")  # fmt: skip
assert np.ptp(events_in["by count"]) < T
assert events_in["by time, second half slowed"][:2].sum() > 0.5 * len(recording)

# %% [markdown]
# **Predict before you run.** Which of the frames by count change when the recording is slowed?

# %%
assert np.array_equal(to_frames(slowed, T), to_frames(recording, T))
print("none of them")

# %% [markdown]
# <details><summary>Answer</summary>
#
# None. Cutting by count uses only the order of the events, so a change of speed, even a pause, does not change the
# frames. This helps if objects move at varying speed. But the frames no longer contain the speed and the time in
# seconds: a network with such frames cannot distinguish a slow wave of a hand from a fast one.
#
# </details>
#
# You can choose T; the paper uses 10 or 16. No weight of the network depends on T, so the same network accepts both.

# %%
with torch.no_grad():
    for steps in (10, 16):
        # [T, 1, 2, 128, 128]
        x = torch.from_numpy(to_frames(recording, steps).astype(np.float32))[
            :, None
        ]
        empty = (x == 0).float().mean().item()
        print(
            f"T = {steps}: frames {list(x.shape)}, {100 * empty:.0f} % zeros, logits {list(network(x).shape)}"
        )

# %% [markdown]
# ## The data set on disk
#
# CIFAR10-DVS ([Li et al., 2017](https://doi.org/10.3389/fnins.2017.00309)) holds 10,000 recordings of CIFAR-10 images
# that were moved in front of a camera, in one folder for each class. Here we write a simulated replacement with two
# classes of four recordings. The file `SIMULATED.txt` marks the folder as simulated for every program that reads it.
# (`python -m spikformer_edu.data simulate --out DIR` writes one with ten classes.)

# %%
folder = Path(workplace.name) / "CIFAR10DVS"
for label in (0, 1):
    chosen = (digit_labels == label).nonzero().squeeze(1)[:4]
    for number, events in enumerate(
        simulate(digits[chosen], seeds=chosen.tolist(), loops=1)
    ):
        write_events(folder / f"{label}" / f"digit_{number}{suffix}", events)
(folder / LABEL).write_text(
    "Simulated: moving digits in front of a modelled event camera.\n"
)

splits = se.data.load(
    "cifar10dvs", data_dir=workplace.name, time_steps=10, image_size=32
)
print(splits.info.title, splits.info.classes)
print("train", [name.split(".")[0] for name in splits.train.names])
print("test ", [name.split(".")[0] for name in splits.test.names])
assert splits.info.simulated and len(splits.train) == 6 and len(splits.test) == 2

# %% [markdown]
# **The split.** CIFAR10-DVS has no official split. The official code of the paper trains on the first
# $\lceil 0.9 n \rceil$ files of each class, in sorted order, and tests on the rest. We do the same so that results can
# be compared. (With four files this would leave no test file, so one is kept for testing.) Other projects shuffle
# first. `split_seed=` makes such a split, and several of them show how much the accuracy depends on the split. The
# official code reports the best epoch *on the test set*. With `val_fraction=` you take a validation part out of the
# training recordings, and can choose the epoch without the test set.
#
# **The cache.** Cutting a recording takes time, so its frames are stored. The key contains everything that the frames
# depend on: the file, its size and date, T, and the frame size. Another T gives another entry, and a changed file is
# read again.


# %%
def entries():
    return sorted(Path(workplace.name).glob("spikformer-cache/cifar10dvs/*"))


first = splits.train.frames(0)
assert len(entries()) == 1
# from the cache
assert np.array_equal(splits.train.frames(0), first) and len(entries()) == 1
write_events(folder / splits.train.names[0], recording)  # the file is replaced
assert not np.array_equal(splits.train.frames(0), first) and len(entries()) == 2
print("one entry for each file, T and size; a changed file gets a new one")

# %% [markdown]
# In a batch time is the first axis, as everywhere in this package. The counts are not normalised by mean and standard
# deviation, because the first batch norm does this.

# %%
x, y = next(se.data.batches(splits.train, batch_size=4))
print("batch", list(x.shape), "labels", y.tolist())
assert x.shape == (10, 4, 2, 32, 32) and torch.equal(x, x.round())
print(se.data.info("cifar10dvs").obtain)

# %% [markdown]
# ## Train a classifier
#
# Eight recordings are too few to train on. `digits-dvs` has recordings of all 1,797 digits of scikit-learn by the same
# simulated camera, cut into T = 8 frames and stored in the user's cache. At 16 x 16 pixels a tiny network learns them
# in a minute. The loop is a short form of the loop in [chapter 08](08_train.ipynb): it does not monitor rates and does
# not choose an epoch on a validation set. For brevity weight decay acts on all parameters, although chapter 08 advises
# against this. The only difference to images is that the batch has its own axis for T.

# %%
T = 8
workplace.cleanup()
data = se.data.load("digits-dvs", time_steps=T, image_size=16)
model = small_network(T, pool=(True, True, False, False))  # 4 x 4 tokens
epochs, batch_size, highest = 4, 32, 6e-3
steps = epochs * (len(data.train) // batch_size)
optimizer = torch.optim.AdamW(model.parameters(), lr=highest, weight_decay=0.06)
step = 0
for epoch in range(epochs):
    # [T, B, 2, 16, 16]
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

# %% tags=["nbval-ignore-output"]
score = evaluate(model, data.test, DistributedContext(torch.device("cpu")))
print(
    f"{100 * score.accuracy:.0f} % of {score.total} test digits (simulated events), chance is 10 %"
)
assert score.accuracy > 0.5

# %% [markdown]
# ## When does it know?
#
# The output is a mean over time, so we can compute what the network would answer after the first frames only. We use
# the test set here only to show this, not to choose anything.

# %%
frames, labels = data.test.fetch(torch.arange(len(data.test)), None)
model.eval()
with torch.no_grad(), se.record(model, layers=["blocks.0.residual"]) as rec:
    model(frames)
# [T, B, K]: the sum and the mean have the same largest entry
so_far = rec.logits.cumsum(0)
accuracy_at = (so_far.argmax(-1) == labels).float().mean(1)
assert abs(accuracy_at[-1].item() - score.accuracy) < 1e-6

fig, ax = plt.subplots(figsize=(6.5, 3.6))
ax.plot(range(1, T + 1), 100 * accuracy_at, "o-", color=style.Q)
ax.axhline(10, color=style.THRESHOLD, linestyle="--")
ax.text(T, 12, "chance", ha="right", color=style.THRESHOLD)
ax.set(
    xlabel="time steps seen",
    ylabel="test accuracy, %",
    ylim=(0, 100),
    xticks=range(1, T + 1),
)
ax.set_title(f"digits-dvs (simulated), tiny network, T = {T}")
se.plot.show(
    fig,
    "Test accuracy of the tiny network over the number of time steps it has seen, from 1 to 8: it rises "
    # fmt: skip
    "steeply at first, then flattens, and lies above chance everywhere.",
)
assert accuracy_at[-1] > accuracy_at[0] + 0.1

# %% [markdown]
# One frame already gives some accuracy, because it shows an outline of the digit. More frames give more: other edges
# appear when the path turns, and the [membrane potentials](../docs/glossary.md#membrane-potential), which start at
# zero, have charged.

# %% [markdown]
# ## Augmentation for events
#
# A photograph can be cropped, flipped and recoloured. A recording has no colours, and all frames of a recording must be
# changed in the same way. The package's augmentation of events follows the official CIFAR10-DVS code: a possible flip,
# then one of nothing, a shear, a shift, a rotation or a hole.

# %%
augment = se.data.PAPER["cifar10dvs"]
# [1, 1, 2, 64, 64]
still = torch.from_numpy(to_frames(recording, 1, size=64).astype(np.float32))[
    :, None
]
# six samples whose T = 4 frames are all the same
copies = still.expand(4, 6, -1, -1, -1)
moved = augment_frames(copies.clone(), augment, torch.Generator().manual_seed(1350))

# all frames of a sample change in the same way
assert all(torch.equal(moved[0], moved[t]) for t in range(4))
# and each sample changes differently
assert not torch.equal(moved[0, 0], moved[0, 1])

fig, axes = plt.subplots(1, 7, figsize=(11, 1.9))
for ax, picture, title in zip(
    axes, [still[0, 0], *moved[0]], ["as recorded", *"123456"], strict=True
):
    ax.imshow(picture.sum(0), cmap="Greys", vmax=0.6 * float(still.sum(2).max()))
    ax.set_title(title)
    ax.axis("off")
se.plot.show(
    fig,
    "One simulated recording summed over time, and six augmented versions: shifted sideways, "
    # fmt: skip
    "rotated, shifted down, mirrored alone, sheared, with a hole; three of the six are mirrored.",
)

# %% [markdown]
# ## Pitfalls
#
# - **T and B swapped.** Symptom: training works, but badly. Cause: frames as `[B, T, ...]`, which most loaders give;
#   the network cannot detect this. Cure: put time first, and check the shape of the logits. The next cell makes this
#   mistake.
# - **No official split.** Symptom: results that cannot be compared. Cure: report the split, and measure the test set
#   once.
# - **Order of files.** The "first 90 %" in the order of the file system is a different split on every machine. Cure:
#   sort the files.
# - **Each frame augmented separately.** Symptom: augmentation lowers the accuracy. Cause: every frame got its own
#   rotation. Cure: draw the augmentation once for each recording.
# - **Outdated caches.** Symptom: a changed transform has no effect. Cure: a key that contains everything that affects
#   the result.
# - **Simulated events that are not labelled.** Symptom: wrong claims about cameras. Cure: say "simulated" in every
#   title, as in this chapter.

# %%
batch = frames[:, :5]  # [T, B, 2, H, W] with T = 8, B = 5
with torch.no_grad():
    right, wrong = model(batch), model(batch.transpose(0, 1))
print(
    "logits",
    list(right.shape),
    "and, after the swap, no error but",
    list(wrong.shape),
)
assert right.shape == (5, 10) and wrong.shape == (8, 10)

# %% [markdown]
# ## Exercises
#
# **11.1 Shuffle time, and measure.** If the network used only the shapes in its frames, their order would not matter.
# Write a function that puts the frames of every sample into a random order, with a different order for each sample.
# Predict first: does the accuracy of the trained network fall to chance, a little, or not at all?


# %% tags=["exercise-1"]
def shuffle_time(frames, generator):
    """[T, B, 2, H, W] -> the same frames, in a random order for each sample."""
    ...


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

# %% [markdown]
# **11.2 Frames by time.** Write the other method: T frames of equal duration between the first and the last event. The
# last event belongs to the last frame.


# %% tags=["exercise-2"]
def frames_by_time(events, T, size=128):
    """[T, 2, size, size]: equal duration a frame."""
    ...


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
# **11.3 A hot pixel.** Broken pixels fire all the time and dominate every frame. Take the 99th percentile of the event
# counts of all pixels. Write a filter that drops all events of pixels with more than `factor` times this number of
# events.


# %% tags=["exercise-3"]
def without_hot_pixels(events, factor=3.0, size=128):
    """The events, without those of hot pixels."""
    ...


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

# %% [markdown]
# ## Recap
#
# - An event is a step of log intensity. Without motion there are no events, and more light does not cause more events.
# - Frames of equal count ignore speed; frames of equal duration keep it.
# - CIFAR10-DVS has no official split: report which one you use, and keep the test set for the end.
# - The input is frames `[T, B, 2, H, W]`, and nothing else in the network changes.
#
# Solutions: [solutions](solutions/11_events.ipynb). Next: [chapter 12](12_imagenet.ipynb), about large networks and
# data sets.
