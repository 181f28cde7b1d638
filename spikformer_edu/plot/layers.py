"""One layer through time, and all layers side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import SpikformerError, nearest
from ..layer_record import LayerRecord
from ..record import Recording
from . import style

RESETS = ("zero", "subtract")  # as snnTorch names them


@style.styled
def raster(
    spikes: LayerRecord | object,
    *,
    sample: int | None = None,
    neurons: int = 64,
    title: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw which neurons fire when: a black bar for every spike.

    Args:
        spikes: a record of one layer, or spikes ``[T, ...]`` in {0, 1} of one sample (``[T, B, ...]`` with ``sample``).
        sample: number of the sample in the batch; None: the first of a record, or a tensor without a batch axis.
        neurons: greatest number of neurons to draw, evenly spread over the layer; the title gives the total.
        title: text in place of the layer's name; None: the name.
        ax: axes to draw into; None: those of a new figure.

    Raises:
        SpikformerError: nothing recorded, an empty tensor, values other than 0 and 1, no such sample.
    """
    array = style.check_spikes(style.one_sample(spikes, sample, "spikes"))
    steps = len(array)
    array = array.reshape(steps, -1)
    with style.axes_for(ax, (6.4, 3.8)) as (fig, ax):
        shown = draw_raster(ax, array, neurons)
        style.time_axis(ax, steps)
        ax.set_ylabel("neuron")
        of = "" if shown == array.shape[1] else f", {shown} of {array.shape[1]:,} neurons"
        ax.set_title(f"{style.layer_title(spikes, steps, title)}{of}")
    return fig, ax


def draw_raster(ax: Axes, array: np.ndarray, neurons: int) -> int:
    """Bars for the spikes of ``[T, n]`` at (t, row); returns how many of the n neurons were drawn."""
    if neurons < 1:
        raise SpikformerError(f"neurons={neurons}: draw at least one")
    steps, count = array.shape
    chosen = spread(count, neurons)
    t, row = np.nonzero(array[:, chosen])
    box = ax.get_window_extent()
    width = max(0.7, 72 * box.width / ax.figure.dpi / steps * 0.35)
    half = max(0.42, 0.6 * len(chosen) / box.height)  # of a row; at least 1.2 pixels in all, or bars would get lost
    ax.vlines(t, row - half, row + half, color=style.SPIKE, linewidth=width, antialiased=False)
    ax.set_ylim(len(chosen) - 0.5, -0.5)
    labels = np.unique(np.linspace(0, len(chosen) - 1, min(5, len(chosen))).round().astype(int))
    ax.set_yticks(labels, chosen[labels])
    return len(chosen)


def spread(count: int, neurons: int) -> np.ndarray:
    """Numbers of at most ``neurons`` of ``count`` neurons, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(neurons, count)).round().astype(int))


@style.styled
def membrane(
    membranes: LayerRecord | object,
    spikes: object | None = None,
    *,
    threshold: float = 1.0,
    neuron: int | Sequence[int] | None = None,
    sample: int | None = None,
    reset: str = "zero",
    title: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw the membrane potential of one neuron: it charges, reaches the threshold, fires, is reset.

    The neuron lives in time steps, so the line is a staircase. It starts at V = 0. At step t it jumps to H[t], the
    potential before the reset (a dot), and after a spike it falls to V[t]. It stays there until the next step.

    Args:
        membranes: a record with membranes, or H ``[T, ...]`` of one sample (``[T, B, ...]`` with ``sample``).
        spikes: spikes of a tensor H, of the same shape; None: H >= threshold. A record has its own.
        threshold: V_th for a tensor H. A record has its own.
        neuron: flat number or index within ``[...]``; None: the neuron whose number of spikes is nearest to T / 2.
        sample: number of the sample in the batch; None: the first of a record, or a tensor without a batch axis.
        reset: what a spike does to the potential: "zero" (hard, the paper's) or "subtract" the threshold (soft).
        title: text in place of the layer's name; None: the name.
        ax: axes to draw into; None: those of a new figure.

    Raises:
        SpikformerError: membranes not recorded, NaN or inf in them, spikes of another shape, no such neuron or reset.
    """
    if reset not in RESETS:
        raise SpikformerError(f"unknown reset {reset!r}: {nearest(reset, RESETS)}")
    potentials, fired, threshold = potentials_of(membranes, spikes, threshold, sample)
    where = pick_neuron(fired, neuron)
    h, s = one_neuron(potentials, where), one_neuron(fired, where)
    label = f"neuron {', '.join(map(str, where))}" if where else ""
    with style.axes_for(ax, (6.4, 3.2)) as (fig, ax):
        draw_membrane(ax, h, s, threshold, after=h * (1 - s) if reset == "zero" else h - threshold * s)
        style.time_axis(ax, len(h))
        ax.set_ylabel("membrane potential H")
        name = style.layer_title(membranes, len(h), title)
        ax.set_title(f"{name}, {label}" if label else name)
    return fig, ax


@style.styled
def membranes(
    membranes: LayerRecord | object,
    spikes: object | None = None,
    *,
    threshold: float = 1.0,
    sample: int | None = None,
    neurons: int = 64,
    title: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw the membrane potentials of a layer as a map, neurons by time, with a black bar for every spike.

    The neurons are those that ``raster`` draws with the same ``neurons``, in the same rows.

    Args:
        membranes: a record with membranes, or H ``[T, ...]`` of one sample (``[T, B, ...]`` with ``sample``).
        spikes: spikes of a tensor H, of the same shape; None: H >= threshold. A record has its own.
        threshold: V_th for a tensor H. A record has its own.
        sample: number of the sample in the batch; None: the first of a record, or a tensor without a batch axis.
        neurons: greatest number of neurons to draw, evenly spread over the layer; the title gives the total.
        title: text in place of the layer's name; None: the name.
        ax: axes to draw into; None: those of a new figure.

    Raises:
        SpikformerError: membranes not recorded, NaN or inf in them, spikes of another shape, neurons below 1.
    """
    potentials, fired, threshold = potentials_of(membranes, spikes, threshold, sample)
    steps = len(potentials)
    potentials, fired = potentials.reshape(steps, -1), fired.reshape(steps, -1)
    with style.axes_for(ax, (6.4, 3.8)) as (fig, ax):
        shown = draw_raster(ax, fired, neurons)
        values = potentials[:, spread(fired.shape[1], neurons)].T  # [neurons, T]
        # A few very low potentials would take all of the color scale: what matters is near the threshold.
        low, high = max(float(values.min()), -threshold), max(float(values.max()), threshold)
        drawn = ax.imshow(values, vmin=min(low, 0), vmax=high, aspect="auto")
        bar = ax.figure.colorbar(
            drawn, ax=ax, label="membrane potential H", extend="min" if values.min() < low else "neither"
        )
        bar.ax.axhline(threshold, color=style.SPIKE, linewidth=1.5)
        bar.ax.annotate(
            "$V_{th}$", (0, threshold), xycoords=("axes fraction", "data"), xytext=(-3, 0),
            textcoords="offset points", ha="right", va="center", fontsize=10,
        )  # fmt: skip
        style.time_axis(ax, steps)
        ax.set_ylabel("neuron")
        of = "" if shown == fired.shape[1] else f", {shown} of {fired.shape[1]:,} neurons"
        ax.set_title(f"{style.layer_title(membranes, steps, title)}{of}")
    return fig, ax


def potentials_of(
    membranes: LayerRecord | object, spikes: object | None, threshold: float, sample: int | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """H and spikes ``[T, ...]`` of one sample, and their threshold, out of a record or of tensors."""
    if isinstance(membranes, LayerRecord):
        potentials = style.one_sample(membranes, sample, "membranes", field="membrane")
        fired = style.one_sample(membranes, sample, "spikes")
        assert membranes.v_threshold is not None  # where there is a membrane, there is a neuron
        threshold = membranes.v_threshold
    else:
        potentials = style.one_sample(membranes, sample, "membranes")
        fired = potentials >= threshold if spikes is None else style.one_sample(spikes, sample, "spikes")
    style.check_finite(potentials, "membranes")
    fired = style.check_spikes(np.asarray(fired, dtype=np.float32))
    if fired.shape != potentials.shape:
        raise SpikformerError(f"spikes of shape {list(fired.shape)} for membranes of shape {list(potentials.shape)}")
    return potentials, fired, threshold


def pick_neuron(fired: np.ndarray, neuron: int | Sequence[int] | None) -> tuple[int, ...]:
    """Index of a neuron within the ``[...]`` of ``[T, ...]``."""
    shape = fired.shape[1:]
    if neuron is None:
        counts = fired.sum(0).reshape(-1)
        neuron = int(np.argmin(np.abs(counts - len(fired) / 2)))
    try:
        asked = np.asarray(neuron)
        if asked.ndim == 0:
            return tuple(int(i) for i in np.unravel_index(int(asked), shape)) if shape else ()
        index = tuple(int(i) for i in asked)
        np.ravel_multi_index(index, shape)
    except (ValueError, TypeError) as error:
        count = int(np.prod(shape))
        raise SpikformerError(f"neuron={neuron}: the layer is {list(shape)}, {count} neurons from 0") from error
    return index


def one_neuron(values: np.ndarray, neuron: tuple[int, ...]) -> np.ndarray:
    """What one neuron of a layer ``[T, ...]`` does: ``[T]``."""
    index: tuple[slice | int, ...] = (slice(None), *neuron)
    return values[index]


def draw_membrane(
    ax: Axes,
    h: np.ndarray,
    s: np.ndarray,
    threshold: float,
    upto: int | None = None,
    labels: bool = True,
    after: np.ndarray | None = None,
) -> None:
    """One neuron's H and spikes: an orange staircase from V = 0, the threshold, black marks for spikes.

    Args:
        ax: axes to draw into.
        h: membrane potential before the reset, ``[T]``.
        s: spikes ``[T]``, {0, 1}.
        threshold: V_th.
        upto: number of steps to draw, on axes that fit all of them; None: all.
        labels: name threshold and spikes at the right.
        after: membrane potential after the reset, ``[T]``; None: zero after a spike.
    """
    after = h * (1 - s) if after is None else after  # V[t]
    low, high = min(0.0, float(h.min()), float(after.min())), max(threshold, float(h.max()))
    room = high - low
    top = high + 0.18 * room
    ax.set_ylim(low - 0.08 * room, high + 0.3 * room)
    ax.axhline(threshold, color=style.THRESHOLD, linestyle=(0, (4, 2)), linewidth=1.2, zorder=1)
    shown = slice(0, upto)
    steps, h, after, s = np.arange(len(h))[shown], h[shown], after[shown], s[shown]
    # Between two steps the potential is V[t-1]. A sloping line would pass the threshold where no spike is.
    v = np.concatenate([[0], after])
    x = np.concatenate([[-0.5], np.repeat(steps, 3), [len(steps) - 0.5]])
    y = np.concatenate([[0], np.stack([v[:-1], h, after], 1).reshape(-1), [v[-1]]])
    ax.plot(x, y, color=style.MEMBRANE, zorder=2)
    ax.plot(steps, h, "o", color=style.MEMBRANE, markersize=4 if len(h) <= 40 else 2, zorder=3)
    ax.vlines(steps[s == 1], top - 0.06 * room, top + 0.06 * room, color=style.SPIKE, linewidth=2.2, zorder=3)
    if labels:
        texts = ((f"$V_{{th}}$ = {threshold:g}", threshold, style.THRESHOLD), ("spikes", top, None))
        for text, y_text, color in texts:
            ax.annotate(
                text,
                (1, y_text),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=10,
                color=color,
            )


def recorded(recording: Recording, kind: str | None = "spikes") -> list[LayerRecord]:
    """The records of a kind, in network order.

    Args:
        recording: the result of ``record(model)``.
        kind: "spikes", "scores" or "residual"; None: all.

    Raises:
        SpikformerError: not a recording, or none of that kind in it.
    """
    if not isinstance(recording, Recording):
        raise SpikformerError(f"give a recording made with record(model), not {type(recording).__name__}")
    records = recording.layers(kind)
    if not records:
        raise SpikformerError(
            "the recording is empty: call the model inside the `with record(...)` block"
            if not len(recording)
            else f"the recording holds no {kind}: record more layers"
        )
    return records


@style.styled
def firing_rates(recording: Recording, *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw the firing rate of every neuron layer, in network order from top to bottom.

    Args:
        recording: the result of ``record(model)``; the rate is the mean over time, batch and neurons.
        ax: axes to draw into; None: those of a new figure.

    Raises:
        SpikformerError: nothing was recorded.
    """
    records = recorded(recording)
    rates = [100 * float(r.spikes.float().mean()) for r in records]
    with style.axes_for(ax, (6.4, 0.9 + 0.26 * len(records))) as (fig, ax):
        bars = ax.barh(range(len(records)), rates, color=[style.color_of(r.name) for r in records], height=0.75)
        ax.bar_label(bars, [f"{rate:.1f} %" for rate in rates], padding=3, fontsize=9)
        ax.set_yticks(range(len(records)), [r.name for r in records], fontsize=9)
        ax.set_ylim(len(records) - 0.4, -0.6)
        ax.set_xlim(0, min(118, max(*rates, 1) * 1.18))
        ax.set_xlabel("firing rate, % of time steps")
        ax.set_title(f"firing rate of every layer, T = {len(records[0].values)}")
    return fig, ax
