# %% [markdown]
# # 01 · Solutions
#
# To [chapter 01, one Leaky neuron](../01_leaky_neuron.ipynb). You can paste each answer into its exercise cell there.

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

import snntorch as snn
import torch

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# What the checks need from the chapter: the neuron by equations (1) to (3), and snnTorch's `Leaky` with the settings
# that make it the same.

# %%
SETTINGS = dict(
    beta=0.5,
    threshold=2.0,
    spike_grad=se.Sigmoid(2.0),
    reset_mechanism="zero",
    reset_delay=True,
)


def paper_neuron(current, tau=2.0, v_threshold=1.0):
    """Equations 1 to 3, with V_reset = 0: current [T, ...] -> spikes [T, ...], membranes H [T, ...]."""
    v = torch.zeros_like(current[0])
    spikes, membranes = [], []
    for x in current:
        h = v + (x - v) / tau
        s = (h >= v_threshold).to(h.dtype)
        v = h * (1 - s)
        spikes.append(s)
        membranes.append(h)
    return torch.stack(spikes), torch.stack(membranes)


def leaky_over_time(current, **changes):
    """A plain snnTorch Leaky, fed with its own membrane in each step: spikes [T, ...], membranes u [T, ...]."""
    neuron = snn.Leaky(**(SETTINGS | changes))
    u = torch.zeros_like(current[0])
    spikes, membranes = [], []
    for x in current:
        s, u = neuron(x, u)
        spikes.append(s)
        membranes.append(u)
    return torch.stack(spikes), torch.stack(membranes)


# %% [markdown]
# **Exercise 1.1: match a trace.** $H[0] = X[0] / \tau$ because the neuron starts from $V = 0$: $\tau = 2 / 0.5 = 4$.
# The highest membrane that stayed silent is 0.734375, the lowest that fired is 0.75. So the threshold is above 0.734375
# and at most 0.75. A threshold of exactly 0.75 is possible, because a neuron fires at the threshold.

# %% tags=["exercise-1"]
trace_x = torch.tensor([2.0, 1.0, 2.0, 0.5, 2.5, 1.0, 3.0, -1.0, 2.0, 2.0])
trace_h = torch.tensor(
    [0.5, 0.625, 0.96875, 0.125, 0.71875, 0.7890625, 0.75, -0.25, 0.3125, 0.734375]
)
trace_s = torch.tensor([0.0, 0, 1, 0, 0, 1, 1, 0, 0, 0])

tau = float(trace_x[0] / trace_h[0])
v_threshold = float(trace_h[trace_s == 1].min())
assert v_threshold > trace_h[trace_s == 0].max()

# %% tags=["check-1"]
with se.exercise("1.1"):
    assert tau is not None and v_threshold is not None, "give tau and v_threshold"
    spikes, h = paper_neuron(trace_x, tau=tau, v_threshold=v_threshold)
    assert abs(float(h[0] - trace_h[0])) < 1e-6, (
        "tau: the neuron starts from V = 0, so H[0] = X[0] / tau"
    )
    assert torch.equal(spikes, trace_s), (
        "v_threshold: above every membrane that did not fire, not above any that did"
    )
    torch.testing.assert_close(h, trace_h)
    assert torch.equal(se.LIF(tau=tau, v_threshold=v_threshold)(trace_x), trace_s)

# %% [markdown]
# **Exercise 1.2: build a tie.** Set $H[t] = V_{th}$ in (1) and solve for the current: $V_{th} = v + (X - v)/\tau$ gives
# $X = v + \tau (V_{th} - v)$. For snnTorch's membrane $u = \tau v$ of the step before, the same formula is
# $X = \tau V_{th} - \beta u$.


# %% tags=["exercise-2"]
def tie_current(v, tau=2.0, v_threshold=1.0):
    """The current X[t] that gives H[t] = v_threshold after V[t-1] = v."""
    return v + tau * (v_threshold - v)


# %% tags=["check-2"]
with se.exercise("1.2"):
    for before in (0.0, 0.25, 0.5, 0.875):
        x = tie_current(before)
        assert x is not None, "write tie_current first"
        # the first step brings V from 0 to `before`
        current = torch.tensor([2 * before, x])
        _, h = paper_neuron(current)
        assert h[1] == 1, (
            f"from V = {before} your current leads to H = {float(h[1]):.3f}: solve equation (1) for X[t]"
        )
        assert se.LIF()(current).tolist() == [0, 1]
        assert leaky_over_time(current, spike_grad=snn.surrogate.sigmoid(2))[
            0
        ].tolist() == [0, 0]
    assert tie_current(0.25, v_threshold=0.5) == 0.75, (
        "the threshold is an argument: 0.5 after attention"
    )
    assert tie_current(0.5, tau=4.0) == 2.5, "tau is an argument too"

# %% [markdown]
# **Exercise 1.3: one reset too many.** Two changes are needed. The factor $1 - S[t-1]$ applies only to the old
# membrane: the current that arrives after a spike must be kept. And the neuron must fire at the threshold too.


# %% tags=["exercise-3"]
def mended(current):
    u, s, spikes = torch.zeros_like(current[0]), torch.zeros_like(current[0]), []
    for x in current:
        u = 0.5 * u * (1 - s) + x
        s = (u >= 2).float()
        spikes.append(s)
    return torch.stack(spikes)


# %% tags=["check-3"]
with se.exercise("1.3"):
    generator = torch.Generator().manual_seed(1)
    away = 4 * torch.rand(16, 1000, generator=generator)  # no ties here
    assert torch.equal(mended(away), se.LIF()(away)), (
        "the reset belongs to the old membrane, not to the current"
    )
    ties = torch.randint(0, 13, (16, 1000), generator=generator) / 4
    assert torch.equal(mended(ties), se.LIF()(ties)), (
        "almost: what should happen exactly at the threshold?"
    )

# %% [markdown]
# Back to [chapter 01](../01_leaky_neuron.ipynb).
