# %% tags=["exercise-1"]
# the same keys and values twice
def same_to_ssa():
    q, k, v = torch.ones(3, 2, 1)
    return q, k, v, k, v


# %% tags=["exercise-1"]
# the tokens are shuffled: softmax gives the same too
def same_to_ssa():
    q, k, v = torch.eye(2), torch.eye(2), torch.eye(2)
    return q, k, v, k[[1, 0]], v[[1, 0]]


# %% tags=["exercise-1"]
# K^T V is not the same
def same_to_ssa():
    q, k, v = torch.eye(2), torch.eye(2), torch.eye(2)
    return q, k, v, k[[1, 0]], v


# %% tags=["exercise-1"]
# not binary
def same_to_ssa():
    q = torch.ones(1, 1)
    return q, 2 * q, q, q, 2 * q


# %% tags=["exercise-1"]
# every value is zero, so softmax sees no difference either
def same_to_ssa():
    q, k = torch.ones(1, 2), torch.tensor([[1.0, 0], [0, 1]])
    return q, k, torch.zeros(2, 1), torch.zeros(2, 2), torch.zeros(2, 1)


# %% tags=["exercise-2"]
# no membrane: every step is compared with the threshold by itself
def changed(q, k, v, old, new):
    sums = q @ k.transpose(-2, -1) @ v
    before, after = sums * old / 2 >= 0.5, sums * new / 2 >= 0.5
    return int((after & ~before).sum()), int((before & ~after).sum())


# %% tags=["exercise-2"]
# the threshold is that of the other neurons, 1
def changed(q, k, v, old, new):
    sums = q @ k.transpose(-2, -1) @ v
    before, after = lif(sums * old)[0], lif(sums * new)[0]
    return int((after > before).sum()), int((before > after).sum())


# %% tags=["exercise-2"]
# added and removed are swapped
def changed(q, k, v, old, new):
    sums = q @ k.transpose(-2, -1) @ v
    before, after = lif(sums * old, 0.5)[0], lif(sums * new, 0.5)[0]
    return int((before > after).sum()), int((after > before).sum())


# %% tags=["exercise-2"]
# only the difference of the two totals is counted
def changed(q, k, v, old, new):
    sums = q @ k.transpose(-2, -1) @ v
    more = int(lif(sums * new, 0.5)[0].sum() - lif(sums * old, 0.5)[0].sum())
    return max(more, 0), max(-more, 0)


# %% tags=["exercise-2"]
# fires above the threshold only
def changed(q, k, v, old, new):
    def above(current):
        H = S = torch.zeros_like(current[0])
        spikes = []
        for step in current:
            H = (H * (1 - S) + step) / 2
            S = (H > 0.5).float()
            spikes.append(S)
        return torch.stack(spikes)

    sums = q @ k.transpose(-2, -1) @ v
    before, after = above(sums * old), above(sums * new)
    return int((after > before).sum()), int((before > after).sum())


# %% tags=["exercise-2"]
# the potential is not reset after a spike
def changed(q, k, v, old, new):
    def without_reset(current):
        H, spikes = torch.zeros_like(current[0]), []
        for step in current:
            H = (H + step) / 2
            spikes.append((H >= 0.5).float())
        return torch.stack(spikes)

    sums = q @ k.transpose(-2, -1) @ v
    before, after = without_reset(sums * old), without_reset(sums * new)
    return int((after > before).sum()), int((before > after).sum())


# %% tags=["exercise-3"]
# multiplies by the bit of the query
def entry(query, key_columns, value_column):
    return sum(bit * (column & value_column).bit_count() for bit, column in zip(query, key_columns))


# %% tags=["exercise-3"]
# multiplies in the other order
def entry(query, key_columns, value_column):
    return sum((column & value_column).bit_count() * bit for bit, column in zip(query, key_columns))


# %% tags=["exercise-3"]
# OR in place of AND
def entry(query, key_columns, value_column):
    return sum((column | value_column).bit_count() for bit, column in zip(query, key_columns) if bit)


# %% tags=["exercise-3"]
# the query selects nothing: all features are added
def entry(query, key_columns, value_column):
    return sum((column & value_column).bit_count() for column in key_columns)


# %% tags=["exercise-3"]
# counts a token once, however many features it shares with the query
def entry(query, key_columns, value_column):
    found = 0
    for bit, column in zip(query, key_columns):
        if bit:
            found |= column
    return (found & value_column).bit_count()


# %% tags=["exercise-3"]
# the value is not used: counts of the keys alone
def entry(query, key_columns, value_column):
    return sum(c.bit_count() for bit, c in zip(query, key_columns) if bit)


# %% tags=["exercise-3"]
# counts the features in which some token has both, not the tokens
def entry(query, key_columns, value_column):
    return sum(1 for bit, column in zip(query, key_columns) if bit and column & value_column)
