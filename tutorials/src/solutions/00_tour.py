# %% [markdown]
# # 00 · Solutions
#
# To [chapter 00, tour in five minutes](../00_tour.ipynb). You can paste each answer into its exercise cell there.

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

from types import SimpleNamespace

import torch

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# The model, the digit and the recording of the chapter.

# %%
model = se.load_pretrained("digits-2-64")
digits = se.data.load("digits")
image, label = digits.test.fetch(torch.tensor([3]), None)
with torch.no_grad(), se.record(model, membranes=True) as rec:
    logits = model(image)

# %% [markdown]
# **Exercise 0.1: change T, predict the rate.** The rate rises with $T$. A membrane starts at zero, so the first steps
# have few spikes. The more steps there are, the less the first ones weigh in the mean. The model treats a tensor with
# five dimensions as frames, and its first dimension is $T$. `expand` needs no memory.


# %% tags=["exercise-1"]
def rate_at(steps, layer="sps.3"):
    """Firing rate of that layer of `model` for `image` [1, 1, 32, 32] shown for so many steps, as a float."""
    frames = image.expand(steps, *image.shape)
    with torch.no_grad(), se.record(model, layers=[layer]) as recording:
        model(frames)
    return float(recording[layer].spikes.mean())


# %% tags=["check-1"]
with se.exercise("0.1"):
    rates = [rate_at(steps) for steps in (1, 4, 16)]
    assert None not in rates, (
        "write rate_at first: give the model frames [T, B, C, H, W], and record the layer"
    )
    assert abs(rates[1] - float(rec["sps.3"].spikes.mean())) < 1e-6, (
        "at T = 4 it should be the rate of the recording"
    )
    assert rates[0] < rates[1] < rates[2], (
        "T has no effect: does the model see so many frames?"
    )

# %% [markdown]
# **Exercise 0.2: the layer that fires least.** The rate is the mean of a tensor of zeros and ones.

# %% tags=["exercise-2"]
least = min(rec.layers("spikes"), key=lambda layer: float(layer.spikes.mean())).name

# %% tags=["check-2"]
with se.exercise("0.2"):
    assert least is not None, (
        "go through rec.layers('spikes'): each has a name and spikes"
    )
    assert least in list(rec), f"{least!r} is no layer of this recording"
    assert rec[least].kind == "spikes", "not a layer of neurons"
    rates = [float(layer.spikes.mean()) for layer in rec.layers("spikes")]
    assert float(rec[least].spikes.mean()) == min(rates), "another layer fires less"

# %% [markdown]
# **Exercise 0.3: when did it know?** Sum the logits up to each step; the largest entry of the sum is that of the mean.
# Then go back from the end as long as the class is right.


# %% tags=["exercise-3"]
def knows_from(recording, label):
    """The first step t from which on the running mean of the logits always names the label."""
    named = recording.logits[:, 0].cumsum(0).argmax(1) == label  # [T]
    t = len(named)
    while t > 0 and named[t - 1]:
        t -= 1
    return t


# %% tags=["check-3"]
with se.exercise("0.3"):
    assert knows_from(rec, label) is not None, (
        "write knows_from first: cumsum over time helps"
    )
    for number in range(10):
        one, truth = digits.val.fetch(torch.tensor([number]), None)
        with torch.no_grad(), se.record(model, layers=[]) as short:
            said = model(one).argmax()
        if said == truth:
            t = int(knows_from(short, truth))
            named = [
                bool(short.logits[: n + 1].mean(0).argmax() == truth)
                for n in range(4)
            ]
            assert all(named[t:]), (
                f"validation digit {number}: after step {t} it changed its mind"
            )
            assert t == 0 or not named[t - 1], (
                f"validation digit {number}: it knew before step {t}"
            )
    # the logits of one step that speaks for class 0, or for 1
    right, wrong = torch.eye(10)[:1], torch.eye(10)[1:2]
    wavering = SimpleNamespace(
        logits=torch.stack([right, 3 * wrong, 3 * right, right])
    )
    assert int(knows_from(wavering, torch.tensor([0]))) == 2, (
        "right, wrong, right, right: it is sure from step 2 on"
    )

# %% [markdown]
# Back to [chapter 00](../00_tour.ipynb).
