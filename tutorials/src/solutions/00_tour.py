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
    """Firing rate of a layer of `model`, as a float.

    The model sees `image` [1, 1, 32, 32] for so many time steps.
    """
    frames = image.expand(steps, *image.shape)
    with torch.no_grad(), se.record(model, layers=[layer]) as recording:
        model(frames)
    return float(recording[layer].spikes.mean())


# %% tags=["check-1"]
with se.exercise("0.1"):
    rates = [rate_at(steps) for steps in (1, 4, 16)]
    assert None not in rates, "write rate_at first: record the layer, run the model"
    for name in ("sps.3", "blocks.1.attn.k"):
        expected = float(rec[name].spikes.mean())
        assert abs(rate_at(4, name) - expected) < 1e-6, (
            f"{name}: at T = 4 the rate should be that of the recording"
        )
    assert rates[0] < rates[1] < rates[2], (
        "not the rates of T = 1, 4, 16: how many steps does the model run?"
    )

# %% [markdown]
# **Exercise 0.2: which token gets the most attention?** Take the mean over all dimensions but the last one. The number of the largest
# entry, divided by the side of the square, gives the row; the remainder is the column.


# %% tags=["exercise-2"]
def focus(scores):
    """Scores [T, 1, h, N, N] -> (row, column) of the key token."""
    means = scores.mean((0, 1, 2, 3))  # [N]
    side = round(len(means) ** 0.5)
    return divmod(int(means.argmax()), side)


# %% tags=["check-2"]
with se.exercise("0.2"):
    generator = torch.Generator().manual_seed(0)
    made_up = torch.rand(
        5, 1, 3, 36, 36, generator=generator
    )  # T = 5, 6 x 6 tokens
    made_up[:, :, :, :, 15] += 0.5  # a key that is high for all queries
    made_up[:, :, :, 7, :] += 2.0  # a query that is high for all keys
    made_up[0, :, :, :, 21] += 1.5  # a key that is high at t = 0 only
    assert focus(made_up) is not None, "write focus first"
    for scores in (made_up, rec["blocks.0.attn.scores"].values):
        found = focus(scores)
        assert isinstance(found, (tuple, list)) and len(found) == 2, (
            "give two numbers: the row and the column"
        )
        side = round(scores.shape[-1] ** 0.5)
        means = scores.mean((0, 1, 2, 3)).view(side, side)
        row, column = (int(number) for number in found)
        assert 0 <= row < side and 0 <= column < side, (
            f"row {row}, column {column}: there are {side} x {side} tokens"
        )
        assert means[row, column] == means.max(), (
            f"T = {len(scores)}, {side} x {side} tokens: row {row}, column {column}"
            f" has a mean of {means[row, column]:.2f}, the best {means.max():.2f}"
        )

# %% [markdown]
# **Exercise 0.3: from which step on is it right?** Sum the logits up to each step; the largest entry of the sum is that of the mean.
# Then go back from the end as long as the class is right.


# %% tags=["exercise-3"]
def right_from(recording, label):
    """The first step from which on the running mean of the logits names the label.

    T if the mean of all steps does not name it.
    """
    named = recording.logits[:, 0].cumsum(0).argmax(1) == label  # [T]
    t = len(named)
    while t > 0 and named[t - 1]:
        t -= 1
    return t


# %% tags=["check-3"]
with se.exercise("0.3"):
    assert right_from(rec, label) is not None, "write right_from first"

    def wavering(*classes):
        """A recording; each step has one logit of that size, for that class."""
        steps = [size * torch.eye(10)[name] for name, size in classes]
        return SimpleNamespace(logits=torch.stack(steps)[:, None])

    zero = torch.tensor([0])
    for story, classes, expected in (
        ("right all the time", [(0, 1)] * 3, 0),
        ("right, wrong, right, right", [(0, 1), (1, 3), (0, 3), (0, 1)], 2),
        ("one loud right step, then quiet wrong ones", [(0, 9)] + [(1, 1)] * 5, 0),
        ("right at the last of seven steps", [(1, 1)] * 6 + [(0, 9)], 6),
        ("wrong all the time", [(1, 1)] * 5, 5),
    ):
        found = int(right_from(wavering(*classes), zero))
        assert found == expected, f"{story}: expected {expected}, not {found}"
    for number in range(10):
        one, truth = digits.val.fetch(torch.tensor([number]), None)
        with torch.no_grad(), se.record(model, layers=[]) as short:
            model(one.expand(6, *one.shape))
        t = int(right_from(short, truth))
        named = [
            bool(short.logits[: n + 1].mean(0).argmax() == truth) for n in range(6)
        ]
        assert all(named[t:]) and (t == 0 or not named[t - 1]), (
            f"validation digit {number}, T = 6: step {t} is not the first"
        )

# %% [markdown]
# Back to [chapter 00](../00_tour.ipynb).
