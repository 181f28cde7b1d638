# %% [markdown]
# # 01 · One Leaky neuron
#
# *Run time 10 s on one CPU core · after chapter 00 · no internet access, no GPU*
#
# Spikformer has one kind of neuron. What exactly does it compute, and which settings make snnTorch's `Leaky` the same
# neuron? With a wrong setting the network still runs, without an error, but it is not the network of the paper.
#
# ![The network's parts, from image to answer; this chapter is about the neuron in all of its layers](../docs/images/network_map/01.svg)
#
# ## What you will learn
# - compute the neuron's three equations by hand, and read a trace of its membrane
# - say what the leak and the reset do, and how long the neuron remembers
# - derive the map $u = \tau H$ to snnTorch, and check it to the last bit
# - say what happens when the membrane reaches the threshold exactly, and count the spikes that `>` loses
# - detect state that is carried over from one batch to the next

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

import matplotlib.pyplot as plt
import snntorch as snn
import torch

from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
# The figure shows one neuron over 12 [time steps](../docs/glossary.md#time-step). In each step the input current (gray)
# moves the [membrane potential](../docs/glossary.md#membrane-potential) (orange) to a new value, the dot. If the dot
# is at the [threshold](../docs/glossary.md#threshold) (dashed) or above it, the neuron fires (black) and the potential
# falls to zero. If not, the potential stays where it is until the next step. At $t = 1$ and $t = 8$ the dot lies
# exactly on the threshold, and the neuron fires.

# %%
current = torch.tensor(
    [1.0, 1.5, 1.0, 0.5, 0.0, -0.5, 1.0, 2.5, 2.0, 0.75, 1.5, 1.125]
)
fig, _ = se.plot.neuron(current, surrogate=False)
se.plot.show(
    fig,
    "One neuron over T = 12 steps: the current as bars; the membrane as a "
    "staircase from 0, with a spike and a fall to 0 at t = 1, 7, 8 and 11.",
)

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $X$, `current` | `[T, ...]` | reals | input current, one number in each step |
# | $H$, `h` | `[T, ...]` | reals | membrane potential after the charge: what is compared with the threshold |
# | $S$, `spikes` | `[T, ...]` | {0, 1} | [spikes](../docs/glossary.md#spike-spike-train) |
# | $V$, `v` | `[...]` | reals | membrane potential after the reset: what the next step starts from |
# | $u$, `u` | `[T, ...]` | reals | snnTorch's membrane, $u = \tau H$ |
# | $\tau$, $\beta$, $V_{th}$ | | 2, 0.5, 1 | time constant in steps, decay $\beta = 1 - 1/\tau$, threshold |
#
# Time, $T$, is the first dimension. The dots stand for the other dimensions of the layer. Neurons of a layer do not
# influence each other.

# %% [markdown]
# ## Charge, fire, reset
# The paper's [LIF neuron](../docs/glossary.md#lif-neuron) does three things in each step ([Zhou et al.,
# 2023](https://arxiv.org/abs/2209.15425), with $V_{reset} = 0$, $\tau = 2$ and $V_{th} = 1$):
#
# $$H[t] = V[t-1] + \frac{1}{\tau}\left(X[t] - (V[t-1] - V_{reset})\right) \tag{1}$$
#
# $$S[t] = \Theta(H[t] - V_{th}), \qquad \Theta(x) = 1 \text{ for } x \ge 0, \text{ else } 0 \tag{2}$$
#
# $$V[t] = H[t]\,(1 - S[t]) + V_{reset}\,S[t] \tag{3}$$
#
# Equation (1) moves the membrane toward the current: half of the rest in each step if $\tau = 2$. It contains both the
# leak and the input. By equation (2) the neuron fires at or above the threshold. Equation (3) is a [hard
# reset](../docs/glossary.md#hard-reset): the part of the membrane above the threshold is lost. The neuron starts from
# $V = 0$.


# %%
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


spikes, h = paper_neuron(current)
print(" t      X       H    S")
for t in range(len(current)):
    print(f"{t:2d} {current[t]:6.3f} {h[t]:7.4f} {spikes[t]:4.0f}")
assert spikes.nonzero().flatten().tolist() == [1, 7, 8, 11]
# exactly at the threshold, and fired
assert (h == 1).nonzero().flatten().tolist() == [1, 8]

# %% [markdown]
# ## What the leak does
# Without input, (1) becomes $H[t] = \beta\, V[t-1]$ with $\beta = 1 - 1/\tau$. The membrane decays by the same factor
# in each step: by one half if $\tau = 2$. So the neuron forgets old input, and $\tau$ says how fast.
#
# A biological neuron does the same. Its membrane stores charge like a capacitor, and open ion channels let the charge
# leak out. The voltage decays with a time constant of the order of 10 ms ([Gerstner et al., *Neuronal Dynamics*,
# section 1.3](https://neuronaldynamics.epfl.ch/online/Ch1.S3.html)). The textbook equation is
# $\tau\, \mathrm{d}V/\mathrm{d}t = -V + X$, and (1) is one Euler step of length 1.
#
# Because of the leak, inputs add up only if they arrive close together. The neuron detects coincidences.
#
# **Predict before you run.** One pulse of current 1.75 charges the membrane to 0.875, which is not enough to fire. A
# second, equal pulse follows `gap` steps after the first. Up to which gap does the neuron fire ($\tau = 2$)? And
# without a leak? (For other $\tau$ the cell scales the pulse, so that each pulse still adds 0.875.)


# %% tags=["predict"]
def two_pulses(gap, tau=2.0):
    """Spikes and membranes: two pulses, each charges by 0.875; then silence."""
    current = torch.zeros(16)
    current[0] = current[gap] = 0.875 * tau
    return paper_neuron(current, tau=tau)


for tau in (2.0, 4.0, 8.0):
    fires = [gap for gap in range(1, 16) if two_pulses(gap, tau)[0].any()]
    print(f"tau = {tau:g}: fires if the gap is at most {max(fires)}")
    # 0.875 beta^gap + 0.875 reaches 1
    assert fires == [g for g in range(1, 16) if (1 - 1 / tau) ** g >= 1 / 7]

# %% [markdown]
# <details><summary>Answer</summary>
#
# Up to a gap of 2. After `gap` steps the fraction $\beta^{gap}$ of the first pulse is left. For $\tau = 2$ this is one
# half, one quarter, one eighth. The neuron fires if $0.875\, \beta^{gap} + 0.875 \ge 1$, so at least one seventh must
# be left. With $\tau = 8$ more is left, and the gap may be 14. Without a leak every gap would do: the neuron would add
# up all input since its last spike, however old it is.
#
# </details>
#
# The figure shows the decay after one pulse for four values of $\tau$, and the two gaps on both sides of the limit.

# %% tags=["fold"]
# decay after one pulse for four tau, and two pulses with a gap of 2 and of 3
fig, axes = plt.subplots(1, 3, figsize=(10.4, 3.2), width_ratios=[1.2, 1, 1])
looks = {1.25: ":", 2.0: "-", 4.0: "--", 8.0: "-."}
for tau, line in looks.items():
    pulse = torch.zeros(12)
    pulse[0] = 0.875 * tau
    _, decay = paper_neuron(pulse, tau=tau)
    axes[0].plot(
        decay,
        color=style.MEMBRANE if tau == 2 else style.SPIKE,
        linestyle=line,
        marker="o",
        markersize=3,
        label=f"$\\tau$ = {tau:g}",
    )
    torch.testing.assert_close(decay, 0.875 * (1 - 1 / tau) ** torch.arange(12))
axes[0].legend()
axes[0].set(ylabel="membrane potential H", title="one pulse, T = 12", ylim=(0, 1.2))
axes[0].axhline(1, color=style.THRESHOLD, linestyle=(0, (4, 2)), linewidth=1.2)
style.time_axis(axes[0], 12)
for ax, gap in zip(axes[1:], (2, 3), strict=True):
    s, h = two_pulses(gap)
    se.plot.membrane(h[:8], s[:8], ax=ax, title=f"gap of {gap}, $\\tau$ = 2")
    ax.set_ylim(0, 1.5)
for ax in axes[1:]:
    for words in ax.texts:
        words.set_visible(False)
axes[2].set_ylabel("")
se.plot.show(
    fig,
    "Left: the membrane after one pulse decays, faster for a smaller tau. Middle: "
    "a second pulse after 2 steps makes it fire. Right: after 3 it does not.",
)

# %% [markdown]
# The next figure shows a neuron with a constant current up to $t = 15$ and no current after that. In a running notebook
# the sliders below it change the current, $\tau$ and the threshold. The [neuron playground](../docs/play/neuron.md)
# does the same in the browser, with $\beta$ in place of $\tau$.


# %% tags=["fold"]
# a constant current until t = 15, then none
def constant_current(X=1.25, tau=2.0, v_threshold=1.0):
    current = torch.zeros(24)
    current[:16] = X
    name = f"X = {X:g}, $\\tau$ = {tau:g}, $V_{{th}}$ = {v_threshold:g}"
    fig, _ = se.plot.neuron(
        current, tau=tau, threshold=v_threshold, surrogate=False, title=name
    )
    se.plot.show(
        fig,
        f"One neuron over T = 24 steps with a current of {X:g} in the first 16, "
        f"tau = {tau:g} and a threshold of {v_threshold:g}: current and membrane.",
    )


constant_current()

# %% tags=["widget", "fold", "nbval-ignore-output"]
# sliders for the figure above
try:
    from ipywidgets import interact
except ModuleNotFoundError:
    print("for sliders: pip install ipywidgets, then restart the kernel")
else:
    interact(
        constant_current,
        X=(-1.0, 4.0, 0.05),
        tau=(1.0, 10.0, 0.25),
        v_threshold=(0.25, 2.0, 0.05),
    )

# %% [markdown]
# ## What one neuron can signal
# Start with a constant current. As long as there is no spike, (1) with $\tau = 2$ gives $H[t] = X (1 - 2^{-(t+1)})$:
# the membrane rises toward $X$ and never above it.
#
# **Predict before you run.** At $X = 2$ the neuron fires in every step. In what share of the steps does it fire at
# $X = 1.9$, which is 5 % less? And at $X = 0.95$?

# %% tags=["predict"]
steps = 120  # divisible by 1, 2, 3, 4, 5 and 6
for x in (2.0, 1.9, 0.95):
    s, _ = paper_neuron(torch.full((steps,), x))
    print(f"X = {x:4.2f}: firing rate {s.mean():.2f}")
assert paper_neuron(torch.full((steps,), 1.9))[0].mean() == 0.5
assert paper_neuron(torch.full((steps,), 0.95))[0].sum() == 0

# %% [markdown]
# <details><summary>Answer</summary>
#
# In half of the steps, and in none. At $X = 1.9$ the first step brings the membrane to 0.95, which is not enough. The
# second step brings it to 1.425. The neuron fires, and the 0.425 above the threshold is lost. So the interval between
# spikes is a whole number $n$ of steps: the smallest $n$ with $X (1 - 2^{-n}) \ge 1$. The [firing
# rate](../docs/glossary.md#firing-rate) is $1/n$, which gives a staircase. At $X < 1$ the membrane never reaches the
# threshold. At $X = 1$ it does so by rounding only: in float32 at $t = 24$.
#
# </details>
#
# A *soft* reset keeps what is above the threshold: $V[t] = H[t] - V_{th}\, S[t]$. The next cell compares both resets at
# $X = 1.9$.


# %%
def soft_neuron(current, tau=2.0, v_threshold=1.0):
    """As paper_neuron, but a spike subtracts the threshold."""
    v = torch.zeros_like(current[0])
    spikes, membranes = [], []
    for x in current:
        h = v + (x - v) / tau
        s = (h >= v_threshold).to(h.dtype)
        v = h - v_threshold * s  # the only line that differs
        spikes.append(s)
        membranes.append(h)
    return torch.stack(spikes), torch.stack(membranes)


constant = torch.full((16,), 1.9)
(hard, hard_h), (soft, soft_h) = paper_neuron(constant), soft_neuron(constant)
print(f"X = 1.9, T = 16: {hard.sum():.0f} spikes hard, {soft.sum():.0f} soft")
assert hard.sum() == 8 and soft.sum() == 12

# %% tags=["fold"]
# membranes with both resets
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.0), sharey=True)
se.plot.membrane(hard_h, hard, title="hard reset (the paper)", ax=axes[0])
se.plot.membrane(soft_h, soft, reset="subtract", title="soft reset", ax=axes[1])
axes[1].set_ylabel("")
se.plot.show(
    fig,
    "Membrane for a constant current of 1.9, T = 16. Hard reset: it falls to 0 and "
    "fires in every other step. Soft reset: it falls by 1 and fires more often.",
)

# %% [markdown]
# The next figure shows the rate for constant currents from 0 to 2.5. It is a staircase with both resets; the soft reset
# only adds stairs. The paper's neuron resets hard. At $T = 4$, as in Spikformer on CIFAR and ImageNet, a constant
# current gives only four different rates. The times of the spikes tell a little more: [chapter
# 03](03_images_to_spikes.ipynb) shows five patterns.

# %% tags=["fold"]
# firing rate over a constant current: T = 120 and T = 4, and with a soft reset
# between the stairs, so that rounding decides nothing
currents = torch.arange(1281) / 500 + 0.001
fig, ax = plt.subplots(figsize=(7.2, 3.4))
for run, steps, color, line, label in (
    (soft_neuron, 120, style.GREY, "-", "soft reset, T = 120"),
    (paper_neuron, 120, style.MEMBRANE, "-", "hard reset, T = 120"),
    (paper_neuron, 4, style.SPIKE, "--", "hard reset, T = 4"),
):
    rate = run(currents.expand(steps, -1))[0].mean(0)  # [currents]
    ax.plot(
        currents,
        rate,
        color=color,
        linestyle=line,
        drawstyle="steps-mid",
        label=label,
    )
ax.set(
    xlabel="constant current X",
    ylabel="firing rate",
    title=r"one LIF neuron, $\tau$ = 2, $V_{th}$ = 1",
)
ax.legend()
# n, from the formula in the answer
interval = torch.ceil(-torch.log2(1 - 1 / currents[currents > 1.0]))
assert torch.equal(rate[currents > 1.0], torch.floor(4 / interval) / 4)
assert sorted(set(rate.tolist())) == [0, 0.25, 0.5, 1]
se.plot.show(
    fig,
    "Firing rate over a constant current. Hard reset: a staircase from 0 at X = 1 "
    "to 1 at X = 2, coarser for T = 4 than for T = 120. Soft reset: a few more "
    "stairs.",
)

# %% [markdown]
# ## The same neuron on snnTorch
# snnTorch's `Leaky` computes, with `reset_mechanism="zero"` (hard reset) and `reset_delay=True` (the reset acts at the
# start of the next step),
#
# $$u[t] = \beta\, u[t-1]\,(1 - S[t-1]) + X[t], \qquad S[t] = 1 \text{ where } u[t] \text{ is over the threshold.}$$
#
# It does not divide its input by $\tau$, but it is the same neuron. The proof has five steps:
#
# 1. Equation (1), rearranged: $\quad H[t] = (1 - \tfrac{1}{\tau})\, V[t-1] + \tfrac{1}{\tau} X[t]$.
# 2. Times $\tau$: $\quad \tau H[t] = (1 - \tfrac{1}{\tau})\, \tau V[t-1] + X[t]$.
# 3. Equation (3), times $\tau$: $\quad \tau V[t-1] = \tau H[t-1]\,(1 - S[t-1])$.
# 4. Write $u = \tau H$ and $\beta = 1 - \tfrac{1}{\tau}$: $\quad u[t] = \beta\, u[t-1]\,(1 - S[t-1]) + X[t]$. That is
#    `Leaky`.
# 5. Equation (2): $H \ge V_{th}$ is the same as $u \ge \tau V_{th}$. So the threshold is $\tau V_{th} = 2$.
#
# None of these steps is an approximation. They give the settings below, and each setting matters. `spike_grad` is the
# function that compares the membrane with the threshold. (It also defines the gradient, which is the topic of
# [chapter 02](02_surrogate_gradient.ipynb).)

# %%
SETTINGS = dict(
    beta=0.5,
    threshold=2.0,
    spike_grad=se.Sigmoid(2.0),
    reset_mechanism="zero",
    reset_delay=True,
)


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


spikes, h = paper_neuron(current)
leaky_spikes, u = leaky_over_time(current)
assert torch.equal(leaky_spikes, spikes)
assert torch.equal(u, 2 * h)  # to the last bit
print("u[t] =", u.tolist())

# %% [markdown]
# `se.LIF` is this neuron as a layer: it computes all $T$ steps in one call. It has two backends. `"snntorch"` runs the
# loop above. `"fused"`, the default, does the same arithmetic as one operation. The next cell runs 4,000 neurons over
# 16 steps, once with currents that are multiples of 0.25 ("on the grid"), and once with arbitrary currents. It counts
# exact ties: membranes that are equal to the threshold.

# %%
grid = torch.randint(-4, 13, (16, 4000)) / 4
arbitrary = 4 * torch.rand(16, 4000) - 0.5


def lif_over_time(current, backend):
    """se.LIF: spikes [T, ...], membranes u [T, ...]."""
    neuron, seen = se.LIF(backend=backend), []
    neuron.on_membranes = seen.append  # what se.record uses
    return neuron(current), seen[0]


for name, x in (("on the grid", grid), ("arbitrary", arbitrary)):
    by_hand, h = paper_neuron(x)
    leaky_spikes, u = leaky_over_time(x)
    for backend in ("snntorch", "fused"):
        lif_spikes, lif_u = lif_over_time(x, backend)
        assert torch.equal(lif_spikes, leaky_spikes) and torch.equal(lif_u, u)
    torch.testing.assert_close(u / 2, h)
    exact = torch.equal(u / 2, h)
    print(f"{name}: {int((h == 1).sum())} exact ties; u / 2 is exactly H: {exact}")
    if name == "on the grid":
        assert torch.equal(leaky_spikes, by_hand) and exact
        assert (h == 1).sum() > 1000

# %% [markdown]
# On the grid 2,063 of the 64,000 membranes are ties, and all four versions agree to the last bit. With arbitrary
# currents the three versions in $u$ agree to the last bit, and $H$ agrees only up to rounding, because $V + (X -
# V)/\tau$ rounds twice and $\beta u + X$ rounds once.
#
# Now we change one setting at a time. Which changes affect the spikes?

# %%
changes = {
    "as the paper": {},
    "threshold=1.0 (not times tau)": dict(threshold=1.0),
    'reset_mechanism="subtract"': dict(reset_mechanism="subtract"),
    "snnTorch's own spike_grad": dict(spike_grad=snn.surrogate.sigmoid(2)),
    "reset_delay=False": dict(reset_delay=False),
}
right, _ = paper_neuron(grid)
differ = {
    name: float((leaky_over_time(grid, **change)[0] != right).float().mean())
    for name, change in changes.items()
}
for name, share in differ.items():
    print(f"{name:30} {100 * share:4.0f} % of spikes and silences differ")
assert differ.pop("as the paper") == 0 and differ.pop("reset_delay=False") == 0
assert min(differ.values()) > 0.03

# %% [markdown]
# `reset_delay=False` gives the same spikes, but a different gradient, which chapter 02 shows. The choice of `spike_grad`
# changes the spikes: snnTorch's own functions treat one case differently from the paper.

# %% [markdown]
# ## Exactly at the threshold
# The paper's step has $\Theta(0) = 1$: the neuron fires at $H \ge V_{th}$. snnTorch's own functions fire at $u -
# \text{threshold} > 0$. With arbitrary real currents a membrane hardly ever equals the threshold. With sums of spikes
# it can, because they are whole numbers.
#
# **Predict before you run.** The current is constant, $X = 2$, and $T = 8$. The neuron with `>=` fires 8 times. How
# often does the neuron with `>` fire?

# %% tags=["predict"]
twos = torch.full((8,), 2.0)
ge, ge_u = leaky_over_time(twos)
gt, gt_u = leaky_over_time(twos, spike_grad=snn.surrogate.sigmoid(2))

fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.0), sharey=True)
se.plot.membrane(ge_u / 2, ge, title="fires on >= (the paper)", ax=axes[0])
se.plot.membrane(gt_u / 2, gt, title="fires on > (snnTorch's own)", ax=axes[1])
axes[1].set_ylabel("")
for ax in axes:  # one scale for both; the marks of the spikes move along
    ax.set_ylim(-0.1, 2.0)
se.plot.show(
    fig,
    "Membranes for a constant current of 2, T = 8: with >= a spike in every step, "
    "with > a spike in every other step.",
)
assert ge.sum() == 8 and gt.sum() == 4

# %% [markdown]
# <details><summary>Answer</summary>
#
# 4 times. From $V = 0$ one step brings the membrane to exactly 1. With `>=` the neuron fires and starts again from 0.
# With `>` it does not fire; the next step brings the membrane to 1.5, and only then it fires. Half of the spikes are
# lost.
#
# </details>
#
# Exact ties occur in this network too. The attention of [chapter 05](05_spiking_self_attention.ipynb) counts spikes,
# and a neuron receives each count times $s = 0.125$. The threshold of this neuron is $V_{th} = 0.5$, a multiple of $s$.
# The membrane is a leaky sum of such multiples and can equal 0.5. The next cell shows this with random spikes:

# %%
# each [T, B, heads, tokens, features], 20 % ones
queries, keys, values = (torch.rand(3, 4, 8, 4, 16, 16) < 0.2).float()
x = queries @ keys.transpose(-2, -1) @ values * 0.125  # counts times 0.125
assert torch.equal(x * 8, (x * 8).round())

ge = se.LIF(v_threshold=0.5)(x)
gt, _ = leaky_over_time(x, threshold=1.0, spike_grad=snn.surrogate.sigmoid(2))
lost = 1 - float(gt.sum() / ge.sum())
print(f"random spikes: > loses {100 * lost:.0f} % of the attention neuron's spikes")
assert torch.equal(ge, paper_neuron(x, v_threshold=0.5)[0])
assert lost > 0.1

# %% [markdown]
# What about a trained network? The packaged model reads 50 validation digits. We count the membranes of its attention
# neurons that are exactly at the threshold, and check that these neurons fired.

# %%
model = se.load_pretrained("digits-2-64")
# None: without random augmentation
images, _ = se.data.load("digits").val.fetch(torch.arange(50), None)
with torch.no_grad(), se.record(model, membranes=True) as rec:
    model(images)
for name in ("blocks.0.attn.attn", "blocks.1.attn.attn", "blocks.0.attn.q"):
    layer = rec[name]
    tie = layer.membrane == layer.v_threshold
    assert bool(layer.spikes[tie].all())  # every neuron at the threshold fires
    share = 100 * float(tie.sum() / layer.spikes.sum())
    print(f"{name:20} spikes fired exactly at the threshold: {share:.0f} %")
    assert (tie.sum() > 100) if name.endswith("attn.attn") else (tie.sum() < 10)

# %% [markdown]
# Exact ties occur: the attention neurons fire 5 % (block 0) and 3 % (block 1) of their spikes exactly at the threshold.
# The neurons of `blocks.0.attn.q` get real-valued currents from a batch norm and have almost no ties. With `>` the
# network is a different one: if a spike is lost, the neuron is not reset, so its later spikes can change, and later
# layers get other inputs.

# %% [markdown]
# ## A layer of neurons
# A layer is many of these neurons side by side. The left panel below is a [raster](../docs/glossary.md#raster): one row
# for each neuron, one bar for each spike. The right panel shows the membranes of the same neurons. The network was
# trained with $T = 4$; here one digit is shown for 32 steps, so that there is more to see.

# %% tags=["fold"]
# raster and membranes of one layer while one digit is shown for 32 steps
NAME = "blocks.0.mlp.hidden"
frames = images[:1].expand(32, 1, 1, 32, 32)  # 32 frames bring their own T
with torch.no_grad(), se.record(model, membranes=True, layers=[NAME]) as long:
    model(frames)
fig, axes = plt.subplots(1, 2, figsize=(10.4, 4.2), width_ratios=[1, 1.25])
se.plot.raster(long[NAME], neurons=40, ax=axes[0], title="spikes")
se.plot.membranes(long[NAME], neurons=40, ax=axes[1], title="membranes")
axes[1].set_ylabel("")
fig.suptitle(f"{NAME}, one digit", x=0.01, ha="left", fontsize=12)
se.plot.show(
    fig,
    "Left: raster of 40 neurons of a hidden layer over T = 32 steps; most never "
    "fire. Right: their membranes as a map, bright near the threshold.",
)
assert long[NAME].spikes.shape[0] == 32
assert 0.01 < float(long[NAME].spikes.mean()) < 0.3

# %% [markdown]
# A row that stays dark belongs to a neuron that is far below its threshold at every step. The bright rows charge again
# and again. Each bar is drawn on the step whose potential reached the threshold; the reset acts before the next step.

# %% [markdown]
# ## What is left between batches
# Within one sample a neuron must keep its membrane from step to step. Between samples it must forget it. `Leaky` stores
# its membrane in `neuron.mem` and continues from there, unless you pass it a state or reset it.
#
# **Predict before you run.** We feed the currents 1.5, 1, 0.5 and 1.25 twice to a `Leaky` that is not reset in between.
# The first call gives no spike. Does the second call give any? At which step?


# %% tags=["predict"]
def forgets_to_reset(neuron, current):
    """A loop as it is often written: the state stays inside the neuron."""
    return torch.stack([neuron(x) for x in current])


batch = torch.tensor([1.5, 1.0, 0.5, 1.25])
stateful = snn.Leaky(**SETTINGS, init_hidden=True)
first = forgets_to_reset(stateful, batch)
second = forgets_to_reset(stateful, batch)
print("Leaky,  first call ", first.tolist(), " second call", second.tolist())

stateful.reset_mem()  # the cure: before every batch
third = forgets_to_reset(stateful, batch)
assert torch.equal(first, third) and not torch.equal(first, second)

for backend in ("snntorch", "fused"):
    lif = se.LIF(backend=backend)
    once, again = lif(batch), lif(batch)
    assert torch.equal(once, again) and torch.equal(once, first)  # nothing to reset
    assert lif.mem.numel() == 0  # and nothing kept
print("se.LIF, first call ", once.tolist(), " second call", again.tolist())

# %% [markdown]
# <details><summary>Answer</summary>
#
# It gives one spike, at its first step. The first call ends with $u = 1.9375$, just below the threshold of 2. The
# second call continues from there and fires at once. So the result depends on the samples before: if you shuffle the
# test set, the accuracy can change. `se.LIF` starts from zero in each call.
#
# </details>
#
# The next figure shows this error in the membrane. If the last batch is smaller than the others, the error is absent
# there: the shapes differ, so `Leaky` starts from zero without a warning. So the error also depends on the batch size.

# %% tags=["fold"]
# the same batch twice: with the state forgotten in between, and with the state kept
kept, kept_u = leaky_over_time(batch.repeat(2))
clean, clean_h = paper_neuron(batch)

fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.0), sharey=True, width_ratios=[4, 8])
se.plot.membrane(clean_h, clean, ax=axes[0], title="state forgotten")
se.plot.membrane(kept_u / 2, kept, ax=axes[1], title="state kept")
axes[0].texts[0].set_visible(False)  # the words beside the right panel are enough
axes[0].texts[1].set_visible(False)
axes[1].set(ylabel="", title="state kept: two batches, T = 4 each")
axes[1].axvline(3.5, color=style.GREY, linestyle=":")
axes[1].set_xticks(range(8), [0, 1, 2, 3] * 2)
se.plot.show(
    fig,
    "State forgotten: each batch starts at 0 and never fires. State kept: the "
    "second batch starts where the first ended, and fires at its first step.",
)
assert torch.equal(kept, torch.cat([first, second]))  # the stateful Leaky above
assert clean.sum() == 0 and kept.tolist() == [0, 0, 0, 0, 1, 0, 0, 0]

# %% [markdown]
# A simple test finds this error: call the model twice on the same batch. The whole network passes this test, because
# each of its neurons starts from zero. The logits of a sample do not depend on the other samples of the batch either.

# %%
with torch.no_grad():
    logits = model(images)
    assert torch.equal(model(images), logits)
    torch.testing.assert_close(
        model(images.flip(0)).flip(0), logits, atol=1e-4, rtol=1e-4
    )
print("same batch, same logits; other order, same logits")

# %% [markdown]
# ## Pitfalls
#
# | symptom | cause | cure |
# |---|---|---|
# | fewer attention spikes than the paper's network | a neuron that fires on `>` | `se.Sigmoid`: `>=` |
# | accuracy depends on the order of the test set | state kept between batches | reset every time, or `se.LIF` |
# | input right after a spike has no effect | [double reset](../docs/glossary.md#double-reset) | reset in one place only |
# | far too many spikes | threshold 1 on $u$, which is $\tau H$ | threshold $\tau V_{th}$ |
# | memory grows with every model built | snnTorch keeps each neuron in a list | `se.LIF` takes itself out of it |
#
# The next cell shows the last one: snnTorch's list keeps a plain `Leaky` alive, but not an `se.LIF`.

# %%
before = len(snn.SpikingNeuron.instances)
for _ in range(10):
    se.LIF()
assert len(snn.SpikingNeuron.instances) == before
for _ in range(10):
    snn.Leaky(beta=0.5)
left = len(snn.SpikingNeuron.instances) - before
print(f"ten unused Leaky neurons: {left} are still in the list")
assert left == 10

# %% [markdown]
# ## Exercises
# **Exercise 1.1: match a trace.** The next cell has a recording of a neuron with the paper's equations: current,
# membrane $H$ and spikes. Which $\tau$ and which threshold did it have? More than one threshold fits; any of them is
# accepted.

# %%
trace_x = torch.tensor([2.0, 1.0, 2.0, 0.5, 2.5, 1.0, 3.0, -1.0, 2.0, 2.0])
trace_h = torch.tensor(
    [0.5, 0.625, 0.96875, 0.125, 0.71875, 0.7890625, 0.75, -0.25, 0.3125, 0.734375]
)
trace_s = torch.tensor([0.0, 0, 1, 0, 0, 1, 1, 0, 0, 0])

# %% tags=["exercise-1"]
tau = None
v_threshold = None

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
# **Exercise 1.2: build a tie.** Given the membrane $V[t-1] = v$, which current brings $H[t]$ exactly to the threshold?
# Write the formula. The check tries it on the paper's neuron and on a neuron that fires on `>`.


# %% tags=["exercise-2"]
def tie_current(v, tau=2.0, v_threshold=1.0):
    """The current X[t] that gives H[t] = v_threshold after V[t-1] = v."""
    ...


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
# **Exercise 1.3: write a test.** Each of the five neurons below has one fault. A test current shows a fault if the
# faulty neuron and the paper's neuron give different spikes. Find one current of at most 8 steps that shows all five.


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
probe = None  # the currents of the steps t = 0, 1, ...

# %% tags=["check-3"]
with se.exercise("1.3"):
    assert probe is not None, "give a list of currents"
    x = torch.as_tensor(probe, dtype=torch.float32)
    assert x.dim() == 1 and 1 <= len(x) <= 8, "give between 1 and 8 currents, [T]"
    truth = se.LIF()(x).tolist()
    hidden = [fault for fault in FAULTS if faulty(x, fault) == truth]
    assert not hidden, f"your test does not show: {', '.join(hidden)}"

# %% [markdown]
# ## Recap
# - The neuron leaks, charges, fires at $H \ge V_{th}$ and is set to zero: equations (1) to (3). The leak makes it forget
#   old input, the reset discards what is above the threshold.
# - On snnTorch it is `Leaky(beta=1 - 1/tau, threshold=tau * V_th, reset_mechanism="zero", reset_delay=True)` with a
#   `spike_grad` that fires on `>=`. Its membrane is $u = \tau H$.
# - After attention the currents are multiples of 0.125, so exact ties occur: 3 to 5 % of these spikes in the packaged
#   model. A neuron with `>` does not fire at a tie.
# - State belongs to one sample. Two calls on the same batch must give the same result.
#
# Solutions: [01](solutions/01_leaky_neuron.ipynb). Next: [chapter 02](02_surrogate_gradient.ipynb), how such a neuron
# learns.
