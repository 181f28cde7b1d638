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
    """Equations 1 to 3 with V_reset = 0.

    current [T, ...] -> spikes [T, ...], membranes H [T, ...]
    """
    v = torch.zeros_like(current[0])
    spikes, membranes = [], []
    for x in current:
        h = v + (x - v) / tau  # (1) charge
        s = (h >= v_threshold).to(h.dtype)  # (2) fire
        v = h * (1 - s)  # (3) reset
        spikes.append(s)
        membranes.append(h)
    return torch.stack(spikes), torch.stack(membranes)


def leaky_over_time(current, **changes):
    """A plain snnTorch Leaky, fed with its own membrane in each step.

    current [T, ...] -> spikes [T, ...], membranes u [T, ...]
    """
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

# %%
trace_x = torch.tensor([2.0, 1.0, 2.0, 0.5, 2.5, 1.0, 3.0, -1.0, 2.0, 2.0])
trace_h = torch.tensor(
    [0.5, 0.625, 0.96875, 0.125, 0.71875, 0.7890625, 0.75, -0.25, 0.3125, 0.734375]
)
trace_s = torch.tensor([0.0, 0, 1, 0, 0, 1, 1, 0, 0, 0])

# %% tags=["exercise-1"]
tau = float(trace_x[0] / trace_h[0])
v_threshold = float(trace_h[trace_s == 1].min())
assert v_threshold > trace_h[trace_s == 0].max()

# %% tags=["check-1"]
with se.exercise("1.1"):
    assert tau is not None and v_threshold is not None, "give tau and v_threshold"
    spikes, h = paper_neuron(trace_x, tau=tau, v_threshold=v_threshold)
    assert abs(float(h[0] - trace_h[0])) < 1e-6, (
        f"with this tau H[0] is {h[0]:.3f}, but {trace_h[0]:.3f} was recorded"
    )
    wrong = (spikes != trace_s).nonzero().flatten().tolist()
    assert not wrong, (
        f"tau is right; with this threshold the spike at t = {wrong[0]} differs"
    )
    torch.testing.assert_close(h, trace_h)
    lif = se.LIF(tau=tau, v_threshold=v_threshold)
    assert torch.equal(lif(trace_x), trace_s), "se.LIF gives other spikes"

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
    assert tie_current(0.0) is not None, "write tie_current first"
    for before in (0.0, 0.25, 0.5, 0.875):
        # the first step brings V from 0 to `before`
        x = torch.tensor([2 * before, tie_current(before)])
        _, h = paper_neuron(x)
        assert h[1] == 1, f"from V = {before} your current leads to H = {h[1]:.6g}"
        assert se.LIF()(x).tolist() == [0, 1], "se.LIF should fire at the tie"
        larger, _ = leaky_over_time(x, spike_grad=snn.surrogate.sigmoid(2))
        assert larger.tolist() == [0, 0], "a neuron with > should stay silent"
    for tau_, threshold_ in ((2.0, 0.5), (4.0, 1.0), (8.0, 0.5)):
        x = torch.tensor([0.25 * tau_, tie_current(0.25, tau_, threshold_)])
        _, h = paper_neuron(x, tau=tau_, v_threshold=threshold_)
        assert h[1] == threshold_, (
            f"with tau = {tau_:g} and a threshold of {threshold_:g} your current "
            f"leads to H = {h[1]:.6g}"
        )

# %% [markdown]
# **Exercise 1.3: write a test.** Take one fault after the other. `>` for `>=` shows only at an exact tie: from zero, a
# current of 2. The double reset shows if a strong current follows a spike, and so does the soft reset, if the first
# spike left something above the threshold. The leak shows after a step without a spike: without a leak the membrane has
# kept more. The wrong threshold shows at any current that charges to something between 0.5 and 1.

# %%
FAULTS = ("> for >=", "soft reset", "reset twice", "no leak", "threshold on tau H")


def faulty(current, fault):
    """Spikes of a neuron that has this fault, as a list."""
    v, s, spikes = 0.0, 0.0, []
    for x in current.tolist():
        h = (v + x) / 2
        if fault == "no leak":
            h = v + x / 2
        elif fault == "threshold on tau H":  # u = tau H against V_th
            h = v / 2 + x
        elif fault == "reset twice":  # before the charge, and after it
            h = h * (1 - s)
        s = float(h > 1 if fault == "> for >=" else h >= 1)
        v = h - s if fault == "soft reset" else h * (1 - s)
        spikes.append(s)
    return spikes


# %% tags=["exercise-3"]
probe = [2.0, 2.5, 1.75, 1.5, 1.0, 1.0]

# %% tags=["check-3"]
with se.exercise("1.3"):
    assert probe is not None, "give a list of currents"
    x = torch.as_tensor(probe, dtype=torch.float32)
    assert x.dim() == 1 and 1 <= len(x) <= 8, "give between 1 and 8 currents, [T]"
    truth = se.LIF()(x).tolist()
    hidden = [fault for fault in FAULTS if faulty(x, fault) == truth]
    assert not hidden, f"your test does not show: {', '.join(hidden)}"

# %% [markdown]
# Back to [chapter 01](../01_leaky_neuron.ipynb).
