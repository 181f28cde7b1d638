# %% [markdown]
# Wrong answers to the exercises of chapter 03; the checks must reject every one of them.

# %% tags=["exercise-1"]
# The same current in both pixels.
a, b = 1.5, 1.5

# %% tags=["exercise-1"]
# One of the two pixels never fires.
a, b = 1.5, 0.9

# %% tags=["exercise-1"]
# Different currents that fire at the same steps.
a, b = 1.4, 1.8

# %% tags=["exercise-1"]
# The brighter pixel fires in every step, so the other one adds nothing.
a, b = 2.5, 1.2


# %% tags=["exercise-2"]
# Counts the steps from 1 instead of 0.
def currents_of(t, threshold=1.0):
    low = threshold / (1 - 0.5**t)
    return low, threshold / (1 - 0.5 ** (t - 1)) if t > 1 else math.inf


# %% tags=["exercise-2"]
# Swaps the bounds.
def currents_of(t, threshold=1.0):
    high = threshold / (1 - 0.5**t) if t > 0 else math.inf
    return high, threshold / (1 - 0.5 ** (t + 1))


# %% tags=["exercise-2"]
# Knows only the threshold of 1.
def currents_of(t, threshold=1.0):
    return 1 / (1 - 0.5 ** (t + 1)), 1 / (1 - 0.5**t) if t > 0 else math.inf


# %% tags=["exercise-2"]
# Takes the next whole power of two as the upper bound at t = 0.
def currents_of(t, threshold=1.0):
    low = threshold / (1 - 0.5 ** (t + 1))
    return low, threshold / (1 - 0.5**t) if t > 0 else 2 * low


# %% tags=["exercise-2"]
# Forgets the leak: the membrane would add up half of the current in each step.
def currents_of(t, threshold=1.0):
    return 2 * threshold / (t + 1), 2 * threshold / t if t > 0 else math.inf


# %% tags=["exercise-2"]
# Reads the bounds off the figure, to two digits.
def currents_of(t, threshold=1.0):
    low = round(threshold / (1 - 0.5 ** (t + 1)), 2)
    return low, round(threshold / (1 - 0.5**t), 2) if t > 0 else math.inf


# %% tags=["exercise-3"]
# The size of a patch, without the neighbors that each window reaches.
def width_seen(pools):
    return 2 ** sum(pools)


# %% tags=["exercise-3"]
# Takes the pool for a 2 x 2 window.
def width_seen(pools):
    width, apart = 1, 1
    for pool in pools:
        width += 2 * apart
        if pool:
            width += apart
            apart *= 2
    return width


# %% tags=["exercise-3"]
# Forgets that neighbors are further apart after a pool.
def width_seen(pools):
    return 1 + sum(4 if pool else 2 for pool in pools)


# %% tags=["exercise-3"]
# Forgets the convolutions.
def width_seen(pools):
    width, apart = 1, 1
    for pool in pools:
        if pool:
            width += 2 * apart
            apart *= 2
    return width


# %% tags=["exercise-3"]
# Goes through the blocks from the last to the first.
def width_seen(pools):
    width, apart = 1, 1
    for pool in reversed(pools):
        width += 2 * apart
        if pool:
            width += 2 * apart
            apart *= 2
    return width
