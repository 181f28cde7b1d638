# %% [markdown]
# Wrong answers to the exercises of chapter 00; the checks must reject every one of them.


# %% tags=["exercise-1"]
# Repeats the image along the batch: the model still runs its own T = 4 steps.
def rate_at(steps, layer="sps.3"):
    with torch.no_grad(), se.record(model, layers=[layer]) as recording:
        model(image.repeat(steps, 1, 1, 1))
    return float(recording[layer].spikes.mean())


# %% tags=["exercise-1"]
# Ignores the layer that is asked for.
def rate_at(steps, layer="sps.3"):
    with torch.no_grad(), se.record(model, layers=["sps.3"]) as recording:
        model(image.expand(steps, *image.shape))
    return float(recording["sps.3"].spikes.mean())


# %% tags=["exercise-1"]
# Counts spikes instead of giving a share.
def rate_at(steps, layer="sps.3"):
    with torch.no_grad(), se.record(model, layers=[layer]) as recording:
        model(image.expand(steps, *image.shape))
    return float(recording[layer].spikes.sum())


# %% tags=["exercise-1"]
# Looks at the last step only.
def rate_at(steps, layer="sps.3"):
    with torch.no_grad(), se.record(model, layers=[layer]) as recording:
        model(image.expand(steps, *image.shape))
    return float(recording[layer].spikes[-1].mean())


# %% tags=["exercise-1"]
# Gives the rate of the recording of the chapter, whatever T is.
def rate_at(steps, layer="sps.3"):
    return float(rec[layer].spikes.mean())


# %% tags=["exercise-2"]
# Takes the mean over the keys: this finds the strongest query.
def focus(scores):
    means = scores.mean((0, 1, 2, 4))
    side = round(len(means) ** 0.5)
    return divmod(int(means.argmax()), side)


# %% tags=["exercise-2"]
# Gives the number of the token, not its row and column.
def focus(scores):
    return int(scores.mean((0, 1, 2, 3)).argmax())


# %% tags=["exercise-2"]
# Swaps row and column.
def focus(scores):
    number = int(scores.mean((0, 1, 2, 3)).argmax())
    side = round(scores.shape[-1] ** 0.5)
    return number % side, number // side


# %% tags=["exercise-2"]
# Assumes 8 x 8 tokens.
def focus(scores):
    return divmod(int(scores.mean((0, 1, 2, 3)).argmax()), 8)


# %% tags=["exercise-2"]
# Looks at the first step only.
def focus(scores):
    means = scores[0].mean((0, 1, 2))
    return divmod(int(means.argmax()), round(len(means) ** 0.5))


# %% tags=["exercise-2"]
# Finds the largest single score instead of the largest mean.
def focus(scores):
    number = int(scores.amax((0, 1, 2, 3)).argmax())
    return divmod(number, round(scores.shape[-1] ** 0.5))


# %% tags=["exercise-3"]
# Assumes T = 4.
def right_from(recording, label):
    means = [recording.logits[: n + 1, 0].mean(0).argmax() for n in range(4)]
    t = 4
    while t > 0 and means[t - 1] == label:
        t -= 1
    return t


# %% tags=["exercise-3"]
# Gives the first step that is right, even if it is wrong again later.
def right_from(recording, label):
    named = recording.logits[:, 0].cumsum(0).argmax(1) == label
    return int(named.int().argmax())


# %% tags=["exercise-3"]
# Looks at each step alone instead of at the mean so far.
def right_from(recording, label):
    named = recording.logits[:, 0].argmax(1) == label
    t = len(named)
    while t > 0 and named[t - 1]:
        t -= 1
    return t


# %% tags=["exercise-3"]
# Gives the last step at which the mean is wrong, one too early.
def right_from(recording, label):
    named = recording.logits[:, 0].cumsum(0).argmax(1) == label
    wrong = (~named).nonzero().flatten()
    return int(wrong[-1]) if len(wrong) else 0


# %% tags=["exercise-3"]
# Counts the right steps from the end without stopping at a wrong one.
def right_from(recording, label):
    named = recording.logits[:, 0].cumsum(0).argmax(1) == label
    return len(named) - int(named.sum())
