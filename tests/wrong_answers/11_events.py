# %% [markdown]
# Wrong answers to the exercises of chapter 11; the checks must reject every one of them.


# %% tags=["exercise-1"]
# Shifts the frames cyclically: nearly all of them still follow the one before.
def shuffle_time(frames, generator):
    shifts = torch.randint(len(frames), (frames.shape[1],), generator=generator)
    return torch.stack([f.roll(int(s), 0) for f, s in zip(frames.unbind(1), shifts, strict=True)], 1)


# %% tags=["exercise-1"]
# Uses one order for all samples.
def shuffle_time(frames, generator):
    return frames[torch.randperm(len(frames), generator=generator)]


# %% tags=["exercise-1"]
# Draws frames with replacement: some are lost, others appear twice.
def shuffle_time(frames, generator):
    T, B = frames.shape[:2]
    return frames[torch.randint(T, (T, B), generator=generator), torch.arange(B)]


# %% tags=["exercise-1"]
# Shuffles the batch, not time.
def shuffle_time(frames, generator):
    return frames[:, torch.randperm(frames.shape[1], generator=generator)]


# %% tags=["exercise-1"]
# Does not use the generator.
def shuffle_time(frames, generator):
    return torch.stack([sample[torch.randperm(len(sample))] for sample in frames.unbind(1)], 1)


# %% tags=["exercise-1"]
# Swaps two frames of each sample: most of the order is left.
def shuffle_time(frames, generator):
    mixed = frames.clone()
    for b in range(frames.shape[1]):
        i, j = torch.randperm(len(frames), generator=generator)[:2].tolist()
        mixed[[i, j], b] = frames[[j, i], b]
    return mixed


# %% tags=["exercise-2"]
# Time starts at 0, not at the first event.
def frames_by_time(events, T, size=128):
    frame = np.minimum(events["t"] * T // events["t"][-1], T - 1)
    frames = np.zeros((T, 2, size, size), dtype=np.int64)
    np.add.at(frames, (frame, events["p"].astype(int), events["y"], events["x"]), 1)
    return frames


# %% tags=["exercise-2"]
# Leaves out the last event.
def frames_by_time(events, T, size=128):
    t = events["t"] - events["t"][0]
    frame = t * T // t[-1]
    frames = np.zeros((T + 1, 2, size, size), dtype=np.int64)
    np.add.at(frames, (frame, events["p"].astype(int), events["y"], events["x"]), 1)
    return frames[:T]


# %% tags=["exercise-2"]
# Swaps row and column.
def frames_by_time(events, T, size=128):
    t = events["t"] - events["t"][0]
    frames = np.zeros((T, 2, size, size), dtype=np.int64)
    np.add.at(frames, (np.minimum(t * T // t[-1], T - 1), events["p"].astype(int), events["x"], events["y"]), 1)
    return frames


# %% tags=["exercise-2"]
# Cuts by count, as the chapter does.
def frames_by_time(events, T, size=128):
    return to_frames(events, T)


# %% tags=["exercise-2"]
# Marks pixels with an event instead of counting events.
def frames_by_time(events, T, size=128):
    t = events["t"] - events["t"][0]
    frames = np.zeros((T, 2, size, size), dtype=np.int64)
    frames[np.minimum(t * T // t[-1], T - 1), events["p"].astype(int), events["y"], events["x"]] = 1
    return frames


# %% tags=["exercise-3"]
# Takes the loss of the mean of the logits, as without TET.
def loss_of_every_step(logits, labels):
    return F.cross_entropy(logits.mean(0), labels)


# %% tags=["exercise-3"]
# Repeats each label T times in a row, beside the wrong samples.
def loss_of_every_step(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(len(logits)))


# %% tags=["exercise-3"]
# Adds the losses of the steps and does not divide by T.
def loss_of_every_step(logits, labels):
    return sum(F.cross_entropy(step, labels) for step in logits)


# %% tags=["exercise-3"]
# Uses the last step only.
def loss_of_every_step(logits, labels):
    return F.cross_entropy(logits[-1], labels)


# %% tags=["exercise-3"]
# Means the probabilities over T first.
def loss_of_every_step(logits, labels):
    return F.nll_loss(logits.softmax(-1).mean(0).log(), labels)
