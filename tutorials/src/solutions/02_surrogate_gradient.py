# %% [markdown]
# # 02 · Solutions
#
# To [chapter 02, learning through spikes](../02_surrogate_gradient.ipynb). You can paste each answer into its exercise
# cell there.

# %% tags=["setup"]
import copy
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
# What the checks need from the chapter: the surrogate, the neuron by hand, and the neuron whose reset is not detached.


# %%
def surrogate(h, alpha=4.0, v_threshold=1.0):
    """alpha sigma'(alpha (H - V_th)), which is alpha sigma (1 - sigma)."""
    sigma = torch.sigmoid(alpha * (h - v_threshold))
    return alpha * sigma * (1 - sigma)


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


# %% [markdown]
# **Exercise 2.1: revive a layer.** Do the same as a batch norm: compute the mean and the standard deviation of each
# neuron's current over time and batch, and change weight and bias so that each current has mean 0 and standard
# deviation 1. Adding 0.5 to the bias makes the neurons fire a little more often. No gradient is needed, so this works
# for membranes at any distance from the threshold.

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
    current = linear(inputs)  # [T, B, 16]
    mean, deviation = current.mean((0, 1)), current.std((0, 1))
    linear.weight /= deviation[:, None]
    linear.bias.copy_((linear.bias - mean) / deviation + 0.5)


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
# **Exercise 2.2: with and without detach.** With $S$ a constant, $\partial V / \partial H = 1 - S$. Otherwise the
# product rule adds a term: $\partial V / \partial H = 1 - S - H\, \partial S / \partial H$. At the threshold that term
# is $-\alpha H / 4$, which is $-1$ here. The true reset has no such slope: $V$ equals $H$ below the threshold, and zero
# above it.


# %% tags=["exercise-2"]
def reset_slope(h, spike, detach):
    """dV/dH of V = H (1 - S), with S a constant (detach) or a function of H."""
    return 1 - spike if detach else 1 - spike - h * surrogate(h)


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
# **Exercise 2.3: choose alpha.** Halve $\alpha$ until enough membranes get a gradient. The answer depends on the layer.
# With a smaller $\alpha$ more membranes get a gradient, but the surrogate is a worse approximation of the step, so
# smaller is not always better. The paper uses 4, and the batch norms keep the membranes near the threshold.

# %%
model = se.load_pretrained("digits-2-64")
images, labels = se.data.load("digits").val.fetch(torch.arange(60), None)
with (
    torch.no_grad(),
    se.record(model, membranes=True, layers=["blocks.0.mlp.hidden"]) as rec,
):
    model(images)

# %% tags=["exercise-3"]
membranes = rec["blocks.0.mlp.hidden"].membrane
best_alpha = 64.0
while (
    float((surrogate(membranes, best_alpha) < 0.05 * best_alpha / 4).float().mean())
    > 0.1
):
    best_alpha /= 2

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
# Back to [chapter 02](../02_surrogate_gradient.ipynb).
