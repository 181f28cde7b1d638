# %% [markdown]
# # 01 · One Leaky neuron
#
# *Run time 15 s on one CPU core · after chapter 00 · no internet access, no GPU*
#
# Spikformer has one kind of neuron. What exactly does it compute, and which settings make snnTorch's `Leaky` the same
# neuron? With a wrong setting the network still runs and still trains, but it is not the network of the paper.
#
# ## What you will learn
# - compute the neuron's three equations by hand, and read a trace of its membrane
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
# The figure shows one neuron, step by step. The input current (grey) charges the
# [membrane potential](../docs/glossary.md#membrane-potential) (orange), which leaks at the same time. When the
# potential reaches the [threshold](../docs/glossary.md#threshold) (dashed), the neuron fires (black) and the potential
# falls to zero. At $t = 1$ and $t = 8$ the membrane reaches the threshold exactly, and the neuron fires. The violet
# curve is the surrogate gradient of [chapter 02](02_surrogate_gradient.ipynb).

# %%
current = torch.tensor(
    [1.0, 1.5, 1.0, 0.5, 0.0, -0.5, 1.0, 2.5, 2.0, 0.75, 1.5, 1.125]
)
animation = se.plot.neuron_animation(current, interval=600)
alt = "One neuron over T = 12 steps: current, membrane with resets, spikes at t = 1, 7, 8 and 11, surrogate gradient."
se.plot.show(animation, alt, dpi=80)

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $X$, `current` | `[T, ...]` | reals | input current, one number in each [time step](../docs/glossary.md#time-step) |
# | $H$, `h` | `[T, ...]` | reals | membrane potential after the charge: what is compared with the threshold |
# | $S$, `spikes` | `[T, ...]` | {0, 1} | [spikes](../docs/glossary.md#spike-spike-train) |
# | $V$, `v` | `[...]` | reals | membrane potential after the reset: what the next step starts from |
# | $u$, `u` | `[T, ...]` | reals | snnTorch's membrane, $u = \tau H$ |
# | $\tau$, $\beta$, $V_{th}$ | | 2, 0.5, 1 | time constant in steps, decay $\beta = 1 - 1/\tau$, threshold |
#
# Time is always the first dimension. The dots stand for the other dimensions of the layer. Neurons of a layer do not
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
# Equation (1) moves the membrane towards the current: half of the way in each step if $\tau = 2$. It contains both the
# leak and the input. By equation (2) the neuron fires at or above the threshold. Equation (3) is a
# [hard reset](../docs/glossary.md#hard-reset): the part of the membrane above the threshold is lost.


# %%
def paper_neuron(current, tau=2.0, v_threshold=1.0):
    """Equations 1 to 3, with V_reset = 0: current [T, ...] -> spikes [T, ...], membranes H [T, ...]."""
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
# ## What one neuron can say
# The simplest input is a constant current. As long as there is no spike, (1) gives $H[t] = X (1 - 2^{-(t+1)})$: the
# membrane rises towards $X$ and never above it.
#
# **Predict before you run.** At $X = 2$ the neuron fires in every step. In what share of the steps does it fire at
# $X = 1.9$, which is 5 % less? And at $X = 0.95$?

# %%
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
# second step brings it to 1.425. The neuron fires, and the 0.425 above the threshold are lost. So the interval between
# spikes is a whole number $n$ of steps: the smallest $n$ with $X (1 - 2^{-n}) \ge 1$. The firing rate is $1/n$, which
# gives a staircase. At $X \le 1$ the membrane never reaches the threshold.
#
# </details>
#
# The figure shows the whole staircase. With $T = 4$, as in Spikformer on CIFAR and ImageNet, only four different rates
# are left. A rate therefore carries little information. *When* a neuron fires, and together with which other neurons,
# carries more.

# %%
# between the stairs, so that rounding decides nothing
currents = torch.arange(1281) / 500 + 0.001
fig, ax = plt.subplots(figsize=(7.2, 3.4))
for steps, color, line in ((120, style.MEMBRANE, "-"), (4, style.SPIKE, "--")):
    rate = paper_neuron(currents.expand(steps, -1))[0].mean(0)  # [currents]
    ax.plot(
        currents,
        rate,
        color=color,
        linestyle=line,
        drawstyle="steps-mid",
        label=f"T = {steps}",
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
alt = "Firing rate over a constant current: a staircase from 0 at X = 1 to 1 at X = 2, coarser for T = 4 than T = 120."
se.plot.show(fig, alt)

# %% [markdown]
# ## The same neuron on snnTorch
# snnTorch's `Leaky` computes, with `reset_mechanism="zero"` and `reset_delay=True`,
#
# $$u[t] = \beta\, u[t-1]\,(1 - S[t-1]) + X[t], \qquad S[t] = 1 \text{ where } u[t] \text{ is over the threshold.}$$
#
# It does not divide its input by $\tau$, but it is the same neuron. The proof has six steps:
#
# 1. Equation (1), rearranged: $\quad H[t] = (1 - \tfrac{1}{\tau})\, V[t-1] + \tfrac{1}{\tau} X[t]$.
# 2. Times $\tau$: $\quad \tau H[t] = (1 - \tfrac{1}{\tau})\, \tau V[t-1] + X[t]$.
# 3. Equation (3), times $\tau$: $\quad \tau V[t-1] = \tau H[t-1]\,(1 - S[t-1])$.
# 4. Write $u = \tau H$ and $\beta = 1 - \tfrac{1}{\tau}$: $\quad u[t] = \beta\, u[t-1]\,(1 - S[t-1]) + X[t]$. That is
#    `Leaky`.
# 5. Equation (2): $H \ge V_{th}$ is the same as $u \ge \tau V_{th}$. So the threshold is $\tau V_{th} = 2$.
# 6. The surrogate gradient (chapter 02) sees $\alpha (H - V_{th}) = \tfrac{\alpha}{\tau} (u - \tau V_{th})$. So its
#    slope is $\alpha / \tau = 2$.
#
# None of these steps is an approximation. They give the settings below, and each setting matters.

# %%
SETTINGS = dict(
    beta=0.5,
    threshold=2.0,
    spike_grad=se.Sigmoid(2.0),
    reset_mechanism="zero",
    reset_delay=True,
)


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


leaky_spikes, u = leaky_over_time(current)
assert torch.equal(leaky_spikes, spikes)
assert torch.equal(u, 2 * h)  # to the last bit
print("u[t] =", u.tolist())

# %% [markdown]
# `se.LIF` is this neuron as a layer: it computes all $T$ steps in one call. It has two backends. `"snntorch"` runs the
# loop above. `"fused"`, the default, does the same arithmetic as one operation. The next cell runs 4,000 neurons over
# 16 steps, once with currents on a grid of 0.25, where exact ties are common, and once with arbitrary currents.

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
    print(
        f"{name}: {int((h == 1).sum())} exact ties; u / 2 is H to the last bit: {torch.equal(u / 2, h)}"
    )
    if name == "on the grid":
        assert (
            torch.equal(leaky_spikes, by_hand)
            and torch.equal(u / 2, h)
            and (h == 1).sum() > 1000
        )

# %% [markdown]
# On the grid all four versions agree to the last bit. With arbitrary currents the three versions in $u$ agree to the
# last bit, and $H$ agrees only up to rounding, because $V + (X - V)/\tau$ rounds twice and $\beta u + X$ rounds once.
#
# Now we change one setting at a time. Which changes affect the spikes?

# %%
changes = {
    "as the paper": {},
    "threshold=1.0 (not times tau)": dict(threshold=1.0),
    'reset_mechanism="subtract"': dict(reset_mechanism="subtract"),
    "snnTorch's own sigmoid surrogate": dict(spike_grad=snn.surrogate.sigmoid(2)),
    "reset_delay=False": dict(reset_delay=False),
}
right, _ = paper_neuron(grid)
differ = {
    name: float((leaky_over_time(grid, **change)[0] != right).float().mean())
    for name, change in changes.items()
}
for name, share in differ.items():
    print(f"{name:34} {100 * share:4.0f} % of spikes and silences differ")
assert differ.pop("as the paper") == 0 and differ.pop("reset_delay=False") == 0
assert min(differ.values()) > 0.03

# %% [markdown]
# `reset_delay=False` gives the same spikes, but a different gradient, which [chapter 02](02_surrogate_gradient.ipynb)
# shows. One would expect that the surrogate matters only in the backward pass. But it changes the spikes too, as the
# next section shows.

# %% [markdown]
# ## Exactly at the threshold
# The paper's step has $\Theta(0) = 1$: the neuron fires at $H \ge V_{th}$. snnTorch's own surrogates fire at $u -
# \text{threshold} > 0$. Arbitrary real currents hardly ever reach a threshold exactly. Sums of spikes often do, because
# they are whole numbers.
#
# **Predict before you run.** The current is constant, $X = 2$, and $T = 8$. The neuron with `>=` fires 8 times. How
# often does the neuron with `>` fire?

# %%
current = torch.full((8,), 2.0)
ge, ge_u = leaky_over_time(current)
gt, gt_u = leaky_over_time(current, spike_grad=snn.surrogate.sigmoid(2))

fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.0), sharey=True)
se.plot.membrane(ge_u / 2, ge, title="fires on >= (the paper)", ax=axes[0])
se.plot.membrane(gt_u / 2, gt, title="fires on > (snnTorch's own)", ax=axes[1])
axes[1].set_ylabel("")
for ax in axes:  # one scale for both; the marks of the spikes move along
    ax.set_ylim(-0.1, 2.0)
alt = "Membranes for a constant current of 2, T = 8: with >= a spike in every step, with > a spike in every other step."
se.plot.show(fig, alt)
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
# This is not rare in this network. The neuron after attention receives $Q K^T V s$. Because $Q$, $K$ and $V$ are
# spikes, this is a whole number times $s = 0.125$. The threshold $V_{th} = 0.5$ is a multiple of $s$, too. The membrane
# is a leaky sum of such multiples and often equals 0.5. The next cell shows this with random spikes:

# %%
# each [T, B, h, N, d], 20 % ones
q, k, v = (torch.rand(3, 4, 8, 4, 16, 16) < 0.2).float()
x = q @ k.transpose(-2, -1) @ v * 0.125  # [T, B, h, N, d], multiples of 0.125
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
images, _ = se.data.load("digits").val.fetch(torch.arange(50), None)
with torch.no_grad(), se.record(model, membranes=True) as rec:
    model(images)
for name in ("blocks.0.attn.attn", "blocks.1.attn.attn", "blocks.0.attn.q"):
    layer = rec[name]
    tie = layer.membrane == layer.v_threshold
    assert bool(layer.spikes[tie].all())  # every neuron at the threshold fires
    print(
        f"{name:20} spikes fired exactly at the threshold: {100 * float(tie.sum() / layer.spikes.sum()):.0f} %"
    )
    assert (tie.sum() > 100) if name.endswith("attn.attn") else (tie.sum() < 10)

# %% [markdown]
# The membranes of attention neurons lie on the grid, so exact ties happen. The neurons of $Q$ get real-valued currents
# from a batch norm and have almost no ties. With `>` the network is a different one: if a spike is lost, the neuron is
# not reset, so its later spikes can change, and the layers behind it get other inputs.

# %% [markdown]
# ## What is left between batches
# Within one sample a neuron must keep its membrane from step to step. Between samples it must forget it. `Leaky` stores
# its membrane in `neuron.mem` and continues from there, unless you pass it a state or reset it.
#
# **Predict before you run.** We feed the same current twice to a `Leaky` that keeps its state. Are the spikes the same?


# %%
def forgets_to_reset(neuron, current):
    """A loop as it is often written: the state stays inside the neuron."""
    return torch.stack([neuron(x) for x in current])


current = torch.tensor([1.5, 1.0, 0.5, 1.25])
stateful = snn.Leaky(**SETTINGS, init_hidden=True)
first, second = (
    forgets_to_reset(stateful, current),
    forgets_to_reset(stateful, current),
)
print("stateful Leaky, first call ", first.tolist(), "second call", second.tolist())

stateful.reset_mem()  # the cure: before every batch
third = forgets_to_reset(stateful, current)
assert torch.equal(first, third) and not torch.equal(first, second)

for backend in ("snntorch", "fused"):
    lif = se.LIF(backend=backend)
    once, again = lif(current), lif(current)
    assert torch.equal(once, again) and torch.equal(once, first)  # nothing to reset
    assert lif.mem.numel() == 0  # and nothing kept
print("se.LIF,         first call ", once.tolist(), "second call", again.tolist())

# %% [markdown]
# <details><summary>Answer</summary>
#
# No. The first call never fires and ends with $u = 1.9375$, just below the threshold of 2. The second call goes on from
# there and fires at once. So the result depends on the samples before: if you shuffle the test set, the accuracy
# changes.
#
# </details>
#
# The next figure shows this error in the membrane. It does not appear in a last batch that is smaller than the others:
# the shapes differ, so `Leaky` silently starts from zero. So the error depends on the batch size.

# %%
# the second batch goes on where the first ended
kept, kept_u = leaky_over_time(current.repeat(2))
clean, clean_h = (torch.cat([x, x]) for x in paper_neuron(current))

fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.0), sharey=True)
for ax, h, s, name in zip(
    axes, (clean_h, kept_u / 2), (clean, kept), ("forgotten", "kept"), strict=True
):
    se.plot.membrane(h, s, ax=ax)
    ax.axvline(3.5, color=style.GREY, linestyle=":")
    ax.set_xticks(range(8), [0, 1, 2, 3] * 2)
    ax.set_title(f"the same batch twice, T = 4: state {name}", fontsize=11)
axes[1].set_ylabel("")
alt = "The same batch twice: with state forgotten two equal traces, with state kept the second batch fires early."
se.plot.show(fig, alt)
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
# | fewer attention spikes than the paper's network | a surrogate that fires on `>` | `se.Sigmoid`: `>=` |
# | accuracy depends on the order of the test set | state kept between batches | reset every time, or `se.LIF` |
# | silence after every spike | [double reset](../docs/glossary.md#double-reset) | reset in one place only |
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
print(
    "left behind by ten Leaky that nobody uses any more:",
    len(snn.SpikingNeuron.instances) - before,
)
assert len(snn.SpikingNeuron.instances) == before + 10

# %% [markdown]
# This cell shows the double reset, which is easy to write by mistake: the neuron is reset before the charge, as in
# `Leaky`, and once more after it, with the spikes of the step before. The current that arrives right after a spike is
# then lost.


# %%
def resets_twice(current):
    u, s, spikes = torch.zeros_like(current[0]), torch.zeros_like(current[0]), []
    for x in current:
        u = 0.5 * u * (1 - s) + x
        u = u * (1 - s)  # the second reset: s is still the spike of the step before
        s = (u >= 2).float()
        spikes.append(s)
    return torch.stack(spikes)


strong = torch.full((8,), 2.5)
print("one reset: ", se.LIF()(strong).tolist())
print("two resets:", resets_twice(strong).tolist())
assert se.LIF()(strong).sum() == 8 and resets_twice(strong).sum() == 4

# %% [markdown]
# ## Exercises
# **Exercise 1.1: match a trace.** The cell below has a recording of a neuron with the paper's equations: current,
# membrane $H$ and spikes. Which $\tau$ and which threshold did it have? The first step gives $\tau$. The threshold lies
# between two of the membranes; any number that fits is accepted.

# %% tags=["exercise-1"]
trace_x = torch.tensor([2.0, 1.0, 2.0, 0.5, 2.5, 1.0, 3.0, -1.0, 2.0, 2.0])
trace_h = torch.tensor(
    [0.5, 0.625, 0.96875, 0.125, 0.71875, 0.7890625, 0.75, -0.25, 0.3125, 0.734375]
)
trace_s = torch.tensor([0.0, 0, 1, 0, 0, 1, 1, 0, 0, 0])

tau = None
v_threshold = None

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
# **Exercise 1.2: build a tie.** Given the membrane $V[t-1] = v$, which current brings $H[t]$ exactly to the threshold?
# Write the formula. The check tests it on the paper's neuron and on a neuron that fires on `>`.


# %% tags=["exercise-2"]
def tie_current(v, tau=2.0, v_threshold=1.0):
    """The current X[t] that gives H[t] = v_threshold after V[t-1] = v."""
    ...


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
# **Exercise 1.3: one reset too many.** Repair `mended` with as few changes as possible, so that it is the paper's
# neuron. Now it loses the current that arrives right after a spike.


# %% tags=["exercise-3"]
def mended(current):
    u, s, spikes = torch.zeros_like(current[0]), torch.zeros_like(current[0]), []
    for x in current:
        u = (0.5 * u + x) * (1 - s)
        s = (u > 2).float()
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
# ## Recap
# - The neuron leaks, charges, fires at $H \ge V_{th}$ and is set to zero: equations (1) to (3).
# - On snnTorch it is `Leaky(beta=1 - 1/tau, threshold=tau * V_th, reset_mechanism="zero", reset_delay=True)` with a
#   surrogate of slope $\alpha / \tau$ that fires on `>=`. Its membrane is $u = \tau H$.
# - After attention the membrane lies on a grid: exact ties are common there, and with `>` these spikes are lost.
# - State belongs to one sample. Two calls on the same batch must give the same result.
#
# Solutions: [01](solutions/01_leaky_neuron.ipynb). Next: [chapter 02](02_surrogate_gradient.ipynb), how such a neuron
# learns.
