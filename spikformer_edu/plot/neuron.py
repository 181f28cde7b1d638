"""The neuron microscope: current, membrane, spikes and surrogate gradient of one neuron, still and moving."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure

from ..errors import SpikformerError
from ..layer_record import LayerRecord
from ..neurons import LIF
from . import style
from .layers import draw_membrane, one_neuron, pick_neuron


@dataclass
class Trace:
    """One neuron: current X, membrane H, spikes S, each ``[T]``; surrogate gradient sigma'(alpha (H - V_th))."""

    x: np.ndarray
    h: np.ndarray
    s: np.ndarray
    threshold: float
    alpha: float
    title: str

    def surrogate(self, h: np.ndarray) -> np.ndarray:
        sigma = 1 / (1 + np.exp(-self.alpha * (h - self.threshold)))
        return self.alpha * sigma * (1 - sigma)


@style.styled
def neuron(
    source: LayerRecord | object,
    *,
    tau: float = 2.0,
    threshold: float = 1.0,
    alpha: float = 4.0,
    neuron: int | Sequence[int] | None = None,
    sample: int | None = None,
    title: str | None = None,
    surrogate: bool = True,
) -> tuple[Figure, np.ndarray]:
    """Draw one neuron: its input current X, membrane H with threshold and resets, spikes, and surrogate gradient.

    The curve at the right of the membrane is the surrogate, alpha sigma'(alpha (H - V_th)), over the same H. The last
    panel shows it over time: the factor by which a gradient passes each step's threshold.

    Args:
        source: an input current X ``[T]``, which is run through the paper's neuron; or a record with membranes, whose
            current follows from H[t] and V[t-1] (paper, eq. 1).
        tau: membrane time constant, in time steps; a record has its own.
        threshold: V_th; a record has its own.
        alpha: slope of the surrogate gradient, per unit of H.
        neuron: neuron of a record, as flat number or index within ``[...]``; None: the one whose number of spikes is
            nearest to T / 2.
        sample: number of the sample in the batch of a record; None: the first.
        title: text in place of the layer's name; None: the name.
        surrogate: draw the surrogate gradient too; False: only what happens in the forward pass.

    Returns:
        The figure and its axes: current and membrane; then, unless left out, surrogate over time and over H.

    Raises:
        SpikformerError: a current that is not ``[T]``, NaN or inf, membranes not recorded, no such neuron.
    """
    trace = trace_of(source, tau, threshold, alpha, neuron, sample, title)
    fig, axes = microscope() if surrogate else two_panels()
    draw_microscope(axes, trace, len(trace.h))
    return fig, axes


@style.styled
def neuron_animation(source: LayerRecord | object, *, interval: int = 500, **options: Any) -> FuncAnimation:
    """The neuron microscope step by step; keep it with ``.save("neuron.gif", writer="pillow")`` or ``.to_jshtml()``.

    Args:
        source: an input current X ``[T]``, or a record with membranes.
        interval: duration of a step, in milliseconds.
        options: further arguments of ``neuron``: tau, threshold, alpha, neuron, sample, title.

    Raises:
        SpikformerError: as ``neuron``.
    """
    defaults: dict[str, Any] = dict(tau=2.0, threshold=1.0, alpha=4.0, neuron=None, sample=None, title=None)
    trace = trace_of(source, **(defaults | options))
    fig, axes = microscope()

    def show(t: int) -> None:
        for ax in axes:
            ax.clear()
        draw_microscope(axes, trace, t + 1)

    return style.animate(fig, show, len(trace.h), interval)


def trace_of(
    source: LayerRecord | object,
    tau: float,
    threshold: float,
    alpha: float,
    neuron: int | Sequence[int] | None,
    sample: int | None,
    title: str | None,
) -> Trace:
    """The numbers behind the microscope."""
    if isinstance(source, LayerRecord):
        membranes = style.check_finite(style.one_sample(source, sample, "membranes", field="membrane"), "membranes")
        spikes = style.one_sample(source, sample, "spikes")
        where = pick_neuron(spikes, neuron)
        h, s = one_neuron(membranes, where), one_neuron(spikes, where)
        before = np.concatenate([[0], (h * (1 - s))[:-1]])  # V[t-1]
        if source.tau is not None:
            tau = source.tau
        beta = 1 - 1 / tau if source.beta is None else source.beta  # it may have been learned
        x = tau * (h - beta * before)
        name = f"{style.layer_title(source, len(h), title)}, neuron {', '.join(map(str, where))}"
        assert source.v_threshold is not None  # where there is a membrane, there is a neuron
        return Trace(x, h, s, source.v_threshold, alpha, name)
    x = style.check_finite(style.to_numpy(source, "current"), "current")
    if x.ndim != 1:
        raise SpikformerError(f"current of shape {list(x.shape)}: give the current of one neuron, [T]")
    membrane, fired = run_neuron(torch.from_numpy(x), tau, threshold, alpha)
    name = style.layer_title(source, len(x), title or "one neuron")
    return Trace(x, membrane.numpy(), fired.numpy(), threshold, alpha, name)


@torch.no_grad()
def run_neuron(
    current: torch.Tensor, tau: float = 2.0, v_threshold: float = 1.0, alpha: float = 4.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Membrane H and spikes ``[T, ...]`` of the paper's neuron for a current ``[T, ...]``."""
    layer = LIF(tau, v_threshold, alpha)
    spikes, u = layer.loop(current)
    return torch.stack(u) / layer.tau, spikes


def microscope() -> tuple[Figure, np.ndarray]:
    """An empty figure: current, membrane and surrogate above each other, the surrogate's curve at the right."""
    fig = plt.figure(figsize=(8.2, 5.6))
    grid = fig.add_gridspec(3, 2, width_ratios=[4, 1.1], height_ratios=[1, 2.2, 1])
    current = fig.add_subplot(grid[0, 0])
    middle = fig.add_subplot(grid[1, 0], sharex=current)
    below = fig.add_subplot(grid[2, 0], sharex=current)
    curve = fig.add_subplot(grid[1, 1], sharey=middle)
    return fig, np.array([current, middle, below, curve])


def two_panels() -> tuple[Figure, np.ndarray]:
    """An empty figure: current above membrane."""
    return plt.subplots(2, 1, sharex=True, figsize=(7.2, 4.2), height_ratios=[1, 2.2])


def draw_microscope(axes: np.ndarray, trace: Trace, upto: int) -> None:
    """Draw the first ``upto`` steps, on limits that fit all of them."""
    current, middle, *more = axes
    steps = np.arange(len(trace.h))
    shown = slice(0, upto)

    current.bar(steps[shown], trace.x[shown], width=0.5, color=style.GREY)
    current.axhline(0, color=style.SPIKE, linewidth=0.8)
    current.set_ylim(min(0, trace.x.min()) * 1.1, max(trace.x.max(), 0.1) * 1.15)
    current.set_ylabel("current X")
    current.set_title(trace.title)
    current.tick_params(labelbottom=False)

    draw_membrane(middle, trace.h, trace.s, trace.threshold, upto=upto, labels=not more)
    middle.set_ylabel("membrane H")
    if not more:
        style.time_axis(middle, len(steps))
        return
    middle.tick_params(labelbottom=False)

    below, curve = more
    heights = trace.surrogate(trace.h)
    below.bar(steps[shown], heights[shown], width=0.5, color=style.GRADIENT)
    below.set_ylim(0, trace.alpha / 4 * 1.1)
    below.set_ylabel("surrogate")
    style.time_axis(below, len(steps))

    low, high = middle.get_ylim()
    h = np.linspace(low, high, 200)
    curve.plot(trace.surrogate(h), h, color=style.GRADIENT)
    curve.plot(heights[shown], trace.h[shown], "o", color=style.MEMBRANE, markersize=5)
    curve.axhline(trace.threshold, color=style.THRESHOLD, linestyle=(0, (4, 2)), linewidth=1.2)
    curve.text(0.02, trace.threshold, f"$V_{{th}}$ = {trace.threshold:g}", va="bottom", fontsize=10)
    curve.set_xlim(0, trace.alpha / 4 * 1.1)
    curve.set_title(r"$\alpha\,\sigma'(\alpha(H - V_{th}))$", fontsize=10)
    curve.tick_params(labelleft=False)
