# %% [markdown]
# # 02 · Learning through spikes
#
# *Run time 15 s on one CPU core · after chapter 01 · no internet access, no GPU*
#
# A spike is a step function of the membrane, and the derivative of a step is zero, so gradient descent gets no gradient.
# Spiking networks learn with an approximate derivative instead, which is propagated back through time. This chapter
# computes it by hand, and shows where it fails.
#
# ![The network's parts, from image to answer; this chapter is about how a loss reaches the weights](../docs/images/network_map/02.svg)
#
# ## What you will learn
# - say what the [surrogate gradient](../docs/glossary.md#surrogate-gradient) replaces, and what it leaves alone
# - compute the gradient through $T$ steps of a neuron by hand, and match autograd to $10^{-12}$
# - explain what the detached reset does to that gradient
# - train a neuron to fire a given spike train, and say how $\alpha$ affects this
# - detect a silent layer, and make it fire again

# %% tags=["setup"]
import copy
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
from spikformer_edu.training.monitor import Rates, firing_warning

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
# The packaged model reads 60 digits. The orange histograms show the membranes $H$ of three of its layers. The violet
# curve is the approximate derivative, called surrogate derivative; it is highest at the threshold (dashed). The axis of
# the histograms is logarithmic; the curve has a linear axis of its own, which is not drawn. The gradient that a spike
# passes to its membrane is proportional to the violet curve there. In the gray areas the curve is below 5 % of its
# height, so neurons there get hardly any gradient. The hatched bar counts exact ties ([chapter
# 01](01_leaky_neuron.ipynb)).

# %%
model = se.load_pretrained("digits-2-64")
# None: without random augmentation
images, labels = se.data.load("digits").val.fetch(torch.arange(60), None)
LAYERS = ["sps.1", "blocks.0.mlp.hidden", "blocks.0.attn.attn"]
with torch.no_grad(), se.record(model, membranes=True, layers=LAYERS) as rec:
    model(images)
fig, axes = se.plot.landscape({name: rec[name] for name in LAYERS})
axes[-1].set_xlabel("membrane potential H (threshold: 1, but 0.5 after attention)")
se.plot.show(
    fig,
    "Histograms of the membranes of three layers, T = 4, under the surrogate "
    "derivative: many of two layers lie in its flat tails.",
)


# %%
def surrogate(h, alpha=4.0, v_threshold=1.0):
    """alpha sigma'(alpha (H - V_th)), which is alpha sigma (1 - sigma)."""
    sigma = torch.sigmoid(alpha * (h - v_threshold))
    return alpha * sigma * (1 - sigma)


print("membranes where the curve is below 5 % of its height:")
for name in LAYERS:
    layer = rec[name]
    vanished = surrogate(layer.membrane, v_threshold=layer.v_threshold) < 0.05
    print(f"{name:20} {100 * float(vanished.float().mean()):3.0f} %")
assert surrogate(torch.tensor(1.0)) == 1  # the height is alpha / 4
assert 0.05 < float((surrogate(rec["sps.1"].membrane) < 0.05).float().mean()) < 0.8

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | $X$, $H$ | `[T, ...]` | reals | input current and membrane, as in chapter 01 |
# | $S$ | `[T, ...]` | {0, 1} | spikes |
# | $\partial L / \partial S[t]$ | `[T, ...]` | reals | from the layer above; if positive, fewer spikes lower the loss $L$ |
# | $\partial L / \partial X[t]$ | `[T, ...]` | reals | the gradient that goes to the layer below |
# | $\alpha$ | | 4 | slope of the surrogate, per unit of $H$ |
# | $\partial S[t] / \partial X[t']$ | `[T, T]` | reals | the neuron's Jacobian: zero for $t' > t$ |

# %% [markdown]
# ## A step has no slope
# A small change of the weights usually changes no spike at all. The derivative of $\Theta$ is zero except at the
# threshold, and there it does not exist. In PyTorch a comparison has no gradient:

# %%
h = torch.tensor([-1.0, 0.9, 1.0, 1.1], requires_grad=True)
hard = (h >= 1.0).float()
print("spikes", hard.tolist(), "can be differentiated:", hard.requires_grad)
assert not hard.requires_grad

# %% [markdown]
# The solution is to keep the step in the forward pass, and to use the derivative of a sigmoid in the backward pass,
#
# $$\frac{\partial S}{\partial H} \approx \alpha\, \sigma'\big(\alpha (H - V_{th})\big),
# \qquad \sigma' = \sigma (1 - \sigma), \quad \alpha = 4.$$
#
# In PyTorch this is a function with its own backward pass. The spikes are still 0 and 1: the forward pass does not
# change.


# %%
class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return (h >= 1.0).to(h.dtype)

    @staticmethod
    def backward(ctx, dL_dS):
        (h,) = ctx.saved_tensors
        return dL_dS * surrogate(h)


spikes = Step.apply(h)
(gradient,) = torch.autograd.grad(spikes.sum(), h)
print("spikes  ", spikes.tolist())
print("gradient", [round(g, 3) for g in gradient.tolist()])

package = se.Sigmoid(4.0)(h - 1.0)  # the package's surrogate, on H - V_th
assert torch.equal(package, spikes) and spikes.tolist() == [0, 0, 1, 1]
torch.testing.assert_close(torch.autograd.grad(package.sum(), h)[0], gradient)

# %% [markdown]
# Two membranes at the same distance from the threshold get the same gradient, whether the neurons fired or not. The
# membrane at $-1$ gets almost no gradient: far below the threshold the surrogate falls as
# $\alpha e^{-\alpha (V_{th} - H)}$.

# %% [markdown]
# ## The chain rule through time
# $H[t]$ affects the loss in two ways: through its own spike, and through $V[t]$, from which the next step starts.
# Equations (1) to (3) of [chapter 01](01_leaky_neuron.ipynb) give, from the last step to the first:
#
# $$\frac{\partial L}{\partial H[t]} = \frac{\partial L}{\partial S[t]}\, \alpha \sigma'\big(\alpha(H[t] - V_{th})\big)
# + (1 - S[t])\, \frac{\partial L}{\partial V[t]}$$
#
# $$\frac{\partial L}{\partial X[t]} = \frac{1}{\tau} \frac{\partial L}{\partial H[t]},
# \qquad \frac{\partial L}{\partial V[t-1]} = \Big(1 - \frac{1}{\tau}\Big) \frac{\partial L}{\partial H[t]}$$
#
# The factor $1 - S[t]$ is $\partial V[t] / \partial H[t]$ with the reset *detached*: $S[t]$ in equation (3) is treated
# as a constant. This is backpropagation through time (BPTT), and for one neuron it takes five lines.


# %%
def forward_by_hand(current, tau=2.0, v_threshold=1.0):
    """Equations (1) to (3): spikes and membranes H, each [T, ...]."""
    v, spikes, membranes = torch.zeros_like(current[0]), [], []
    for x in current:
        h = v + (x - v) / tau
        s = (h >= v_threshold).to(h.dtype)
        v = h * (1 - s)
        spikes.append(s)
        membranes.append(h)
    return torch.stack(spikes), torch.stack(membranes)


def backward_by_hand(spikes, h, dL_dS, tau=2.0):
    """dL/dX [T, ...] from dL/dS [T, ...]."""
    # nothing comes after the last step
    dL_dX, dL_dV = torch.zeros_like(h), torch.zeros_like(h[0])
    for t in reversed(range(len(h))):
        dL_dH = dL_dS[t] * surrogate(h[t]) + (1 - spikes[t]) * dL_dV
        dL_dX[t] = dL_dH / tau
        dL_dV = dL_dH * (1 - 1 / tau)
    return dL_dX


# H[1] is exactly V_th
current = torch.tensor(
    [1.0, 1.5, 1.0, 1.0, 2.0, 0.5, 1.25, 1.5], dtype=torch.float64
)
# any numbers
dL_dS = torch.tensor(
    [1.0, -1.0, 0.5, 2.0, 1.0, -0.5, 0.25, 3.0], dtype=torch.float64
)
spikes, h = forward_by_hand(current)
by_hand = backward_by_hand(spikes, h, dL_dS)

print(" t   X[t]    H[t]  S   surrogate   dL/dX[t]")
for t in range(8):
    row = f"{t:2d} {current[t]:6.2f} {h[t]:7.4f} {spikes[t]:2.0f}"
    print(f"{row} {surrogate(h[t]):11.4f} {by_hand[t]:10.4f}")

for backend in ("snntorch", "fused"):
    x = current.clone().requires_grad_()
    out = se.LIF(backend=backend).double()(x)
    assert torch.equal(out, spikes)
    (out * dL_dS).sum().backward()
    torch.testing.assert_close(x.grad, by_hand, rtol=0, atol=1e-12)
assert h[1] == 1 and spikes.tolist() == [0, 1, 0, 0, 1, 0, 0, 1]

# %% [markdown]
# `se.LIF` works on $u = \tau H$ with the slope $\alpha / \tau$, and gives the same gradient: the slope is smaller by
# the factor $\tau$, but the current is not divided by $\tau$. The backward pass of the fused backend computes these
# equations. The other backend uses autograd.

# %% [markdown]
# ## What a spike cuts off
# **Predict before you run.** The neuron above fires at $t = 1$, $4$ and $7$. The loss depends only on the last spike,
# $S[7]$. Which of the eight currents get a gradient?

# %% tags=["predict"]
x = current.clone().requires_grad_()
se.LIF().double()(x)[7].backward()
print("dS[7]/dX[t] =", [round(g, 3) for g in x.grad.tolist()])
assert (x.grad[:5] == 0).all() and (x.grad[5:] > 0).all()

# %% [markdown]
# <details><summary>Answer</summary>
#
# $X[5]$, $X[6]$ and $X[7]$. At $t = 4$ the neuron fired and its membrane was set to zero: $1 - S[4] = 0$. The earlier
# steps no longer affect the neuron, so the gradient stops there too. A spike cuts off the past in the forward pass and
# in the backward pass.
#
# </details>
#
# The derivatives for all pairs of steps are the Jacobian $\partial S[t] / \partial X[t']$. `backward_by_hand` computes
# it in one call, with the identity matrix as $\partial L / \partial S$. The right panel shows the same neuron with a
# gradient through the reset, as in snnTorch with `reset_delay=False`.


# %%
def leaky_not_detached(current):
    """The same spikes, but S in V = H (1 - S) is differentiated too."""
    options = dict(
        threshold=2.0,
        spike_grad=se.Sigmoid(2.0),
        reset_mechanism="zero",
        reset_delay=False,
    )
    neuron = snn.Leaky(0.5, **options).double()
    u, spikes = torch.zeros_like(current[0]), []
    for x in current:
        s, u = neuron(x, u)
        spikes.append(s)
    return torch.stack(spikes)


T = len(current)
# T copies of the neuron, one for each row
many = [x[:, None].expand(T, T) for x in (spikes, h)]
# [T, T]: dS[t] / dX[t']
detached = backward_by_hand(*many, torch.eye(T, dtype=torch.float64)).T
not_detached = torch.autograd.functional.jacobian(leaky_not_detached, current)
assert torch.equal(leaky_not_detached(current), spikes)
torch.testing.assert_close(
    torch.autograd.functional.jacobian(se.LIF().double(), current),
    detached,
    rtol=0,
    atol=1e-12,
)
# spikes before t: the number of the interval between two spikes that t belongs to
interval = torch.cat([torch.zeros(1), spikes.cumsum(0)[:-1].float()])
other = interval[:, None] != interval[None, :]
assert (detached[other] == 0).all() and (detached >= 0).all()
assert (not_detached < -0.05).any() and (not_detached.triu(1) == 0).all()

# %% tags=["fold"]
# both Jacobians as matrices
fig, axes = plt.subplots(1, 2, figsize=(8.8, 4.2), sharey=True)
for ax, matrix, title in (
    (axes[0], detached, f"reset detached (the paper), T = {T}"),
    (axes[1], not_detached, f"reset not detached, T = {T}"),
):
    drawn = ax.imshow(matrix, cmap="PuOr_r", vmin=-0.75, vmax=0.75)
    for t, row in enumerate(matrix.tolist()):
        for before, value in enumerate(row):
            if abs(value) >= 0.005:
                ax.text(
                    before, t, f"{value:.2f}", ha="center", va="center", fontsize=8
                )
    for t in spikes.nonzero().flatten().tolist():
        ax.axhline(t + 0.5, color=style.SPIKE, linewidth=1)
        ax.axvline(t + 0.5, color=style.SPIKE, linewidth=1)
    ax.set(xlabel="current at time step t'", title=title)
axes[0].set_ylabel("spike at time step t")
fig.colorbar(drawn, ax=axes, label="$\\partial S[t] / \\partial X[t']$", shrink=0.8)
se.plot.show(
    fig,
    "Jacobian of one neuron: blocks between spikes when the reset is detached, "
    "also negative entries across when not.",
)

# %% [markdown]
# The black lines mark the end of a step with a spike. The left matrix consists of blocks, one for each interval between
# two spikes, and no entry is negative: according to this gradient, more current never means fewer spikes. On the right
# the gradient also flows through the reset. It says that more current at $t = 1$ makes the reset stronger and so reduces
# the membrane at $t = 2$. In fact that membrane starts from zero in both cases. The paper's code detaches the reset,
# and `se.LIF` does the same.

# %% [markdown]
# ## Learn a spike train
# One neuron gets forty inputs with random spikes over 24 time steps. We train its weights so that it fires at five
# given time steps and at no others. The loss counts wrong time steps, and Adam uses its gradient through the surrogate.
# At the start the neuron does not fire, because all its weights are negative.

# %%
generator = torch.Generator().manual_seed(0)
inputs = (torch.rand(24, 40, generator=generator) < 0.2).float()  # [T, 40]
target = torch.zeros(24)
target[[4, 9, 11, 17, 22]] = 1
start = (torch.rand(40, generator=generator) - 0.5) * 0.4 - 0.5


def learn(alpha, steps=100):
    """Spike trains [steps, T] on the way to the target."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.05)
    neuron, trains = se.LIF(alpha=alpha), []
    for _ in range(steps):
        spikes = neuron(inputs @ weights)  # [T]
        loss = ((spikes - target) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trains.append(spikes.detach())
    return torch.stack(trains)


trains = learn(alpha=4.0)
print("before:", "".join(".|"[int(s)] for s in trains[0]))
print("after: ", "".join(".|"[int(s)] for s in trains[-1]))
print("target:", "".join(".|"[int(s)] for s in target))
assert trains[0].sum() == 0 and torch.equal(trains[-1], target)

# %% [markdown]
# The next figure shows the spike train after each step of gradient descent, one row for each step.

# %% tags=["fold"]
# the spike train after each step of gradient descent
fig, (top, ax) = plt.subplots(
    2, 1, figsize=(7.2, 4.6), sharex=True, height_ratios=[1, 9]
)
top.imshow(target[None], cmap="Greys", aspect="auto")
top.set_yticks([0], ["target"])
top.set_title(f"one LIF neuron learns a spike train, T = {len(target)}")
ax.imshow(trains, cmap="Greys", aspect="auto")
ax.set_ylabel("step of gradient descent")
style.time_axis(ax, len(target))
se.plot.show(
    fig,
    "Spikes of one neuron over T = 24 steps, a row for each step of gradient "
    "descent: first none, then the target.",
)

# %% [markdown]
# ## What alpha does
# With a large $\alpha$ the surrogate is steep and narrow: it is close to the true step, and its derivative is almost
# zero nearly everywhere. With a small $\alpha$ it is wide: every membrane gets some gradient, but the gradient is a
# poor approximation of the step.
#
# **Predict before you run.** We train the same neuron from the same start with $\alpha = 1$, $4$ and $64$. With which
# values does it learn the target?

# %% tags=["predict", "fold"]
# the surrogates over the membranes at the start, and the errors during training
alphas = {
    1.0: (style.GREY, "--"),
    4.0: (style.GRADIENT, "-"),
    64.0: (style.SPIKE, ":"),
}
errors = {alpha: (learn(alpha) != target).sum(1) for alpha in alphas}  # [steps]
_, h = forward_by_hand(inputs @ start)

fig, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.6))
grid = torch.linspace(-6.5, 2.5, 1801)
for alpha, (color, line) in alphas.items():
    left.plot(
        grid,
        surrogate(grid, alpha) / (alpha / 4),
        color=color,
        linestyle=line,
        label=f"$\\alpha$ = {alpha:g}",
    )
    right.plot(
        errors[alpha], color=color, linestyle=line, label=f"$\\alpha$ = {alpha:g}"
    )
left.hist(
    h,
    bins=15,
    weights=torch.full_like(h, 1 / 24),
    color=style.MEMBRANE,
    label="H at the start",
)
left.set(
    xlabel="membrane potential H",
    ylabel="surrogate / its height",
    title=f"one LIF neuron, T = {len(h)}",
)
right.set(
    xlabel="step of gradient descent",
    ylabel=f"wrong steps of T = {len(h)}",
    title="learning the spike train",
)
left.legend(loc="upper left")
se.plot.show(
    fig,
    "Left: surrogates for alpha 1, 4 and 64; the membranes at the start are far "
    "below. Right: with 1 and 4 the neuron learns the target, with 64 it does not.",
)
for alpha in alphas:
    print(f"alpha = {alpha:g}: {int(errors[alpha][-1])} wrong steps at the end")
assert errors[1.0][-1] == 0 and errors[4.0][-1] == 0 and (errors[64.0] == 5).all()
assert (surrogate(h, 64.0) == 0).all()

# %% [markdown]
# <details><summary>Answer</summary>
#
# With 1 and 4. With 64 no membrane is near enough to the threshold: in float32 the surrogate derivative is zero for all
# of them, so no weight changes, and the five wanted spikes never appear. With $\alpha = 4$ the first gradients are
# tiny: at $H = -2$, near the highest membranes at the start, the surrogate derivative is about $4 e^{-12} \approx 2
# \cdot 10^{-5}$. Training succeeds because Adam divides each gradient by its own size. Plain gradient descent does not,
# so with the same learning rate its first steps would be tiny too.
#
# </details>

# %% [markdown]
# ## A silent layer
# The same can happen to whole layers: after a weight update that is too large, or when a bias drifts, no membrane
# reaches the threshold any more. Such a [silent layer](../docs/glossary.md#silent-layer) gets hardly any gradient, so
# it stays silent.
#
# **Predict before you run.** We silence one layer of the packaged model: we lower the bias of the batch norm in front
# of the hidden layer of the first MLP by 8. What happens to the accuracy?

# %% tags=["predict"]
NAME = "blocks.0.mlp.hidden"


def lowered(shift):
    """The packaged model, with the bias before its first hidden layer moved."""
    model = se.load_pretrained("digits-2-64")
    with torch.no_grad():
        model.blocks[0].mlp.hidden.bn.bias += shift
    return model


def read(model):
    """Accuracy; the record of the layer; the line that training would print."""
    rates = Rates(model, every=1)
    rates.step()
    with se.record(model, membranes=True, gradients=True, layers=[NAME]) as rec:
        logits = model(images)
        torch.nn.functional.cross_entropy(logits, labels).backward()
    accuracy = float((logits.argmax(1) == labels).float().mean())
    return accuracy, rec[NAME], firing_warning(rates.pop())


healthy, silent = read(lowered(0.0)), read(lowered(-8.0))
for name, (accuracy, layer, warning) in zip(
    ("as trained", "silenced"), (healthy, silent), strict=True
):
    print(f"{name}: {100 * accuracy:.0f} % right, rate {layer.spikes.mean():.2f}")
    print(f"  training would print: {warning or 'no warning'}")
assert silent[1].spikes.sum() == 0 and NAME in silent[2] and healthy[2] is None
assert silent[0] > 0.5

# %% [markdown]
# <details><summary>Answer</summary>
#
# Nothing here: 98 % before and after. The residual connection carries the tokens around the MLP, so the network works
# without the spikes of this layer. You cannot see this in the accuracy, but you can see it in the firing rates.
# Therefore training in this package monitors the rate of every layer and prints this line.
#
# </details>
#
# What gradient does the layer get? The next figure lowers the bias in steps of 2, down to $-8$. With `gradients=True`
# the recording keeps $\partial L / \partial H$.

# %% tags=["fold"]
# firing rate and gradient while the bias is lowered
shifts = [0.0, -2.0, -4.0, -6.0, -8.0]
layers = [read(lowered(shift))[1] for shift in shifts]
rates = [100 * float(layer.spikes.mean()) for layer in layers]
sizes = [float(layer.gradient.abs().mean()) for layer in layers]

fig, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.2))
left.plot(shifts, rates, "o-", color=style.SPIKE)
left.set(
    xlabel="bias moved by",
    ylabel="firing rate, %",
    title=f"{NAME}, T = {len(layers[0].spikes)}",
)
right.semilogy(shifts, sizes, "o-", color=style.GRADIENT)
right.set(
    xlabel="bias moved by",
    ylabel=r"mean $|\partial L / \partial H|$",
    title="gradient of the loss",
)
for ax in (left, right):
    ax.set_xticks(shifts)
    ax.invert_xaxis()
right.minorticks_off()
se.plot.show(
    fig,
    "Firing rate and mean gradient of a hidden layer as its bias is lowered: the "
    "rate falls to 0, the gradient too.",
)
power = round(torch.tensor(sizes[-1] / sizes[0]).log10().item())
print("gradient at -8 over gradient at 0: 10 to the power of", power)
assert rates[-1] == 0 and sizes == sorted(sizes, reverse=True)
assert sizes[-1] < 1e-5 * sizes[0]

# %% [markdown]
# At $-8$ the gradient is smaller by a factor of $10^7$. Far below the threshold it falls exponentially with the
# distance, so longer training hardly helps. The membranes must come back near the threshold. In Spikformer a batch norm
# in front of every neuron does this, except for the neuron after attention. It cannot do this if its own bias is far
# too low, as in the example above. The next cell takes a layer with a very low bias and trains it toward a firing rate
# of 0.3, by 200 steps of plain gradient descent. Without a batch norm the layer stays silent; with a batch norm the
# rate rises from 0.03 to 0.28.

# %%
# [T, B, features], spikes
x = (torch.rand(4, 64, 32, generator=generator) < 0.2).float()


def train_to_fire(norm, steps=200):
    """Firing rate before and after training a layer toward a rate of 0.3."""
    torch.manual_seed(0)
    linear, neuron, rates = torch.nn.Linear(32, 16), se.LIF(), []
    torch.nn.init.constant_(linear.bias, -3.0)
    norm = torch.nn.BatchNorm1d(16) if norm else torch.nn.Identity()
    optimizer = torch.optim.SGD([*linear.parameters(), *norm.parameters()], lr=0.1)
    for _ in range(steps):
        spikes = neuron(norm(linear(x).flatten(0, 1)).unflatten(0, (4, 64)))
        rates.append(spikes.mean().item())
        loss = (spikes.mean((0, 1)) - 0.3).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rates[0], rates[-1]


for norm in (False, True):
    before, after = train_to_fire(norm)
    print(f"batch norm: {norm!s:5}  rate before {before:.2f}, after {after:.2f}")
    assert (after > 0.15) if norm else (after == 0)

# %% [markdown]
# ## Pitfalls
#
# | symptom | cause | cure |
# |---|---|---|
# | the loss does not fall, a rate is 0 | a silent layer | batch norm before the neuron, lower learning rate, warm-up |
# | gradients differ from the paper, spikes do not | the reset is not detached | `reset_delay=True`, as in `se.LIF` |
# | gradients too large at the threshold, too small elsewhere | slope $\alpha$ on $u = \tau H$ | slope $\alpha / \tau$ |
# | no gradient at all | $\alpha$ far too large, or a bare comparison | `se.Sigmoid` with $\alpha = 4$ |
# | accuracy is good, a layer does nothing | the residual goes around it | watch the firing rates too |
#
# The next cell shows the third one. The slope of `Sigmoid` is per unit of its input.

# %%
u = torch.tensor(1.9, requires_grad=True)  # u = tau H, at H = 0.95
paper = surrogate(torch.tensor(0.95)).item() / 2  # dS/dH times dH/dX = 1 / tau
for slope in (2.0, 4.0):
    # dS/du times du/dX = 1
    (gradient,) = torch.autograd.grad(se.Sigmoid(slope)(u - 2.0), u)
    slope_x = f"dS/dX = {gradient.item():.3f}"
    print(f"slope {slope:g} on u: {slope_x}; the paper's: {paper:.3f}")
    assert (abs(gradient.item() - paper) < 1e-6) == (slope == 2.0)

# %% [markdown]
# ## Exercises
# **Exercise 2.1: revive a layer.** `dead` never fires on `inputs_2`. Change its weight and bias in place so that each
# of its 16 neurons fires in 5 % to 60 % of the steps, and still prefers the same inputs as before: its new current must
# be a scaled and shifted copy of the old one, with a standard deviation between 0.5 and 2. Compute the numbers from the
# data, without gradient descent.

# %%
torch.manual_seed(1)
inputs_2 = (torch.rand(8, 100, 32) < 0.2).float()  # [T, B, features]
dead = torch.nn.Linear(32, 16)
torch.nn.init.constant_(dead.bias, -4.0)
assert se.LIF()(dead(inputs_2)).sum() == 0


# %% tags=["exercise-1"]
@torch.no_grad()
def revive(linear, inputs):
    """Change linear.weight and linear.bias in place."""
    ...


# %% tags=["check-1"]
with se.exercise("2.1"), torch.no_grad():
    layer = copy.deepcopy(dead)
    revive(layer, inputs_2)
    old, new = (
        dead(inputs_2).flatten(0, 1),
        layer(inputs_2).flatten(0, 1),
    )  # [T B, 16]
    rates = se.LIF()(layer(inputs_2)).mean((0, 1))  # [16]
    assert rates.max() > 0, (
        f"still silent: the largest current is {new.max():.2f}, the threshold 1"
    )
    deviation = new.std(0)
    assert deviation.min() > 1e-6, (
        "some neurons get the same current from every input: they carry no "
        "information"
    )
    alike = (
        (old - old.mean(0)) / old.std(0) * (new - new.mean(0)) / deviation
    ).mean(0)
    assert alike.min() > 0.99, (
        f"a neuron prefers other inputs: correlation {alike.min():.2f} with before"
    )
    assert 0.5 <= deviation.min() and deviation.max() <= 2, (
        f"standard deviations are {deviation.min():.2f} to {deviation.max():.2f}"
    )
    assert rates.min() >= 0.05, (
        f"a neuron fires in {rates.min():.1%} of the steps only"
    )
    assert rates.max() <= 0.6, f"a neuron fires in {rates.max():.1%} of the steps"

# %% [markdown]
# **Exercise 2.2: with and without detach.** In the backward pass of one step, the detached reset changes only
# $\partial V / \partial H$ of $V = H (1 - S)$. Write this derivative for both cases, with `surrogate(h)` as
# $\partial S / \partial H$.


# %% tags=["exercise-2"]
def reset_slope(h, spike, detach):
    """dV/dH of V = H (1 - S), with S a constant (detach) or a function of H."""
    ...


# %% tags=["check-2"]
with se.exercise("2.2"):
    x = torch.tensor([1.0, 1.5, 1.0, 1.0, 2.0, 0.5, 1.25, 1.5], dtype=torch.float64)
    s, h = forward_by_hand(x)
    assert reset_slope(h, s, True) is not None, "write reset_slope first"
    for detach, neuron in ((True, se.LIF().double()), (False, leaky_not_detached)):
        dL_dX, dL_dV = torch.zeros_like(x), 0.0
        for t in reversed(range(len(x))):
            dL_dH = surrogate(h[t]) + reset_slope(h[t], s[t], detach) * dL_dV
            dL_dX[t], dL_dV = dL_dH / 2, dL_dH / 2
        y = x.clone().requires_grad_()
        neuron(y).sum().backward()
        t = int((dL_dX - y.grad).abs().argmax())
        assert torch.allclose(dL_dX, y.grad, rtol=0, atol=1e-12), (
            f"detach={detach}: at t = {t} your gradient is {dL_dX[t]:.3f}, "
            f"autograd's {y.grad[t]:.3f}"
        )

# %% [markdown]
# **Exercise 2.3: choose alpha.** How wide must the surrogate be so that a layer gets a gradient? The height of the
# surrogate derivative is $\alpha / 4$. Find the largest power of two for $\alpha$ at which the derivative is below 5 %
# of this height for at most 10 % of the membranes of `blocks.0.mlp.hidden` in the key figure.

# %% tags=["exercise-3"]
best_alpha = None

# %% tags=["check-3"]
with se.exercise("2.3"):
    assert best_alpha is not None, "give best_alpha"
    alpha = float(best_alpha)
    assert alpha > 0 and torch.tensor(alpha).log2() % 1 == 0, (
        f"{alpha:g} is not a power of two"
    )
    h = rec["blocks.0.mlp.hidden"].membrane
    shares = [
        float((surrogate(h, a) < 0.05 * a / 4).float().mean())
        for a in (alpha, 2 * alpha)
    ]
    assert shares[0] <= 0.1, (
        f"too steep: {shares[0]:.0%} of membranes are below 5 %"
    )
    assert shares[1] > 0.1, f"{2 * alpha:g} is still wide enough: {shares[1]:.0%}"

# %% [markdown]
# ## Recap
# - The forward pass uses a step, the backward pass the derivative of a sigmoid: $\alpha \sigma'(\alpha (H - V_{th}))$,
#   with $\alpha = 4$.
# - BPTT for one neuron takes five lines. Because the reset is detached, no gradient flows back across a spike: from the
#   steps after it to the step of the spike or earlier ones.
# - Far below the threshold the gradient vanishes exponentially. A silent layer stays silent, and the accuracy may not
#   show it: monitor the firing rates.
#
# Solutions: [02](solutions/02_surrogate_gradient.ipynb). Next: [chapter 03](03_images_to_spikes.ipynb), how an image
# becomes spikes.
