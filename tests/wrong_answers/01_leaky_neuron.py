# %% [markdown]
# Wrong answers to the exercises of chapter 01; the checks must reject every one of them.

# %% tags=["exercise-1"]
# The settings of the paper, not those of the recording.
tau, v_threshold = 2.0, 1.0

# %% tags=["exercise-1"]
# Reads tau as the ratio of the second step, which also holds what is left of the first.
tau, v_threshold = float(trace_x[1] / trace_h[1]), 0.75

# %% tags=["exercise-1"]
# Takes the highest silent membrane as the threshold: it would fire there.
tau, v_threshold = 4.0, float(trace_h[trace_s == 0].max())

# %% tags=["exercise-1"]
# Gives the threshold in snnTorch's units, tau times V_th.
tau, v_threshold = 4.0, 4 * 0.75

# %% tags=["exercise-1"]
# Takes the mean of the membranes that fired as the threshold.
tau, v_threshold = 4.0, float(trace_h[trace_s == 1].mean())


# %% tags=["exercise-2"]
# Forgets the membrane of the step before.
def tie_current(v, tau=2.0, v_threshold=1.0):
    return tau * v_threshold


# %% tags=["exercise-2"]
# Knows only the paper's tau = 2.
def tie_current(v, tau=2.0, v_threshold=1.0):
    return 2 * v_threshold - v


# %% tags=["exercise-2"]
# Forgets the leak: only the missing part is charged.
def tie_current(v, tau=2.0, v_threshold=1.0):
    return tau * (v_threshold - v)


# %% tags=["exercise-2"]
# Knows only the threshold of 1.
def tie_current(v, tau=2.0, v_threshold=1.0):
    return v + tau * (1 - v)


# %% tags=["exercise-2"]
# Treats v as snnTorch's membrane u = tau H.
def tie_current(v, tau=2.0, v_threshold=1.0):
    return tau * v_threshold - (1 - 1 / tau) * v


# %% tags=["exercise-2"]
# Goes a little above the threshold instead of onto it.
def tie_current(v, tau=2.0, v_threshold=1.0):
    return v + tau * (v_threshold - v) + 1e-3


# %% tags=["exercise-3"]
# Ties in every step hide all that depends on what is left in the membrane.
probe = [2.0] * 8

# %% tags=["exercise-3"]
# No step ends exactly at the threshold.
probe = [1.9, 2.5, 1.3, 0.7, 1.2, 3.0, 1.1, 0.9]

# %% tags=["exercise-3"]
# Input so strong that every neuron fires in every step.
probe = [5.0] * 8

# %% tags=["exercise-3"]
# No input: nothing fires.
probe = [0.0] * 8

# %% tags=["exercise-3"]
# A good test with one step too many, nine instead of eight.
probe = [2.0, 2.5, 1.75, 1.5, 1.0, 1.0, 0.0, 0.0, 0.0]

# %% tags=["exercise-3"]
# A strong input after each spike, but nothing is left over for a soft reset to keep.
probe = [2.0, 2.5, 1.0, 1.0, 1.0, 1.0]
