"""The whole network at a glance: the spike atlas, and which values flow where."""

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.typing import ColorType

from ..errors import SpikformerError
from ..layer_record import LayerRecord, feature_rates, value_set
from ..record import Recording
from . import style
from .layers import draw_raster, recorded


@style.styled
def atlas(recording: Recording, *, sample: int = 0, neurons: int = 48) -> tuple[Figure, np.ndarray]:
    """Draw every neuron layer in network order: SPS in the first column, then a column for each encoder block.

    Each panel is a raster of one sample. The bars at its right are over the whole batch: the firing rate, and the
    features (a channel, an output of a linear layer) that never fired (hatched) or always fired (black).

    Args:
        recording: the result of ``record(model)``.
        sample: number of the sample in the batch whose spikes are drawn.
        neurons: greatest number of neurons to draw of each layer, evenly spread.

    Returns:
        The figure and the axes of its rasters, ``[rows, columns]``, None where a column is shorter.

    Raises:
        SpikformerError: nothing was recorded, no such sample.
    """
    records = recorded(recording)
    columns: dict[str, list[LayerRecord]] = {}
    for record in records:
        parts = record.name.split(".")
        columns.setdefault(parts[0] if parts[0] == "sps" else ".".join(parts[:2]), []).append(record)
    height = max(len(column) for column in columns.values())
    steps = len(records[0].values)
    fig, grid = plt.subplots(height, len(columns), figsize=(1 + 2.55 * len(columns), 1 + 1.15 * height), squeeze=False)
    axes = np.full(grid.shape, None, dtype=object)
    for c, (part, column) in enumerate(columns.items()):
        for r in range(height):
            ax = grid[r, c]
            if r >= len(column):
                ax.remove()
                continue
            axes[r, c] = ax
            record = column[r]
            spikes = style.check_spikes(style.one_sample(record, sample, "spikes"))
            draw_raster(ax, spikes.reshape(steps, -1), neurons)
            last = r == len(column) - 1
            style.time_axis(ax, steps, label=last)
            ax.tick_params(labelbottom=last, labelsize=9)
            if last and r < height - 1:
                ax.xaxis.set_in_layout(False)  # there is room below a short column
            ax.set_yticks([])
            per_feature = feature_rates(record.name, record.values)
            rate, dead, full = (float(x.float().mean()) for x in (per_feature, per_feature == 0, per_feature == 1))
            name = record.name.removeprefix(part + ".") if part != "sps" else record.name
            ax.set_title(f"{name}  {100 * rate:.1f} %", fontsize=10, pad=3)
            draw_shares(ax, rate, dead, full, style.color_of(record.name))
        grid[0, c].annotate(
            "SPS" if part == "sps" else part.replace(".", " ").replace("blocks", "block"),
            (0, 1), xycoords="axes fraction", xytext=(0, 24), textcoords="offset points", fontsize=12, weight="bold",
        )  # fmt: skip
    fig.suptitle(f"spike atlas, T = {steps}: name and firing rate of every layer", fontsize=13)
    fig.legend(
        handles=[
            Patch(facecolor=style.LIGHT, label="firing rate (0 to 100 %)"),
            Patch(facecolor="white", edgecolor="black", hatch="/////", label="features that never fire"),
            Patch(facecolor=style.PALE, edgecolor="black", label="features that fire"),
            Patch(facecolor="black", label="features that always fire"),
        ],
        loc="outside lower center",
        ncols=4 if len(columns) > 3 else 2,
    )
    return fig, axes


def draw_shares(ax: Axes, rate: float, dead: float, full: float, color: str) -> None:
    """Two bars at the right of a panel: the firing rate, and the shares of features that always, sometimes, never fire.

    Args:
        ax: axes of the panel.
        rate: firing rate, from 0 to 1.
        dead: share of features that never fire.
        full: share of features that always fire.
        color: colour of the firing rate.
    """
    inset = ax.inset_axes((1.03, 0, 0.13, 1))
    inset.bar(0, 1, color="white", edgecolor=style.GREY, linewidth=0.6, width=0.8)
    inset.bar(0, rate, color=color, width=0.8)
    start = 0.0
    for share, face, hatch in (
        (full, "black", None),
        (1 - dead - full, style.PALE, None),
        (dead, "white", "/////"),
    ):
        inset.bar(1, share, bottom=start, facecolor=face, hatch=hatch, edgecolor="black", linewidth=0.6, width=0.8)
        start += share
    inset.set_xlim(-0.5, 1.5)
    inset.set_ylim(0, 1)
    inset.axis("off")


@style.styled
def value_sets(recording: Recording, image: object | None = None, *, most: int = 4) -> tuple[Figure, np.ndarray]:
    """Draw which values flow along the network: binary spikes, integers in the residual stream, real numbers.

    The ribbon names the set; the columns below it show which share of the values is 0, 1, 2, ...

    Args:
        recording: the result of ``record(model)``.
        image: the network's input, any shape, for a first column; None: no such column. The last column is the logits.
        most: integers of this value or more share a colour.

    Returns:
        The figure and its two axes: the ribbon, the shares.

    Raises:
        SpikformerError: nothing was recorded.
    """
    records = recorded(recording, None)
    columns = [(r.name, r.values) for r in records] + [("logits", recording.logits)]
    if image is not None:
        columns.insert(0, ("input", torch.from_numpy(style.check_finite(style.to_numpy(image, "image"), "image"))))
    fig, (ribbon, shares) = plt.subplots(
        2, 1, sharex=True, figsize=(1.8 + 0.42 * len(columns), 5.2), height_ratios=[0.5, 3]
    )
    looks: dict[str, dict[str, str]] = {
        "binary": dict(facecolor="black"),
        "integer": dict(facecolor=style.MEMBRANE, hatch="...."),
        "grid": dict(facecolor="#F6D9A0", hatch="...."),
        "real": dict(facecolor="#B9C7D8", hatch="\\\\\\\\"),
    }
    levels: list[ColorType] = ["black", *(plt.get_cmap("YlOrBr")(float(x)) for x in np.linspace(0.55, 0.15, most - 1))]
    for x, (_, values) in enumerate(columns):
        kind = kind_of(values)
        ribbon.bar(x, 1, width=1, edgecolor="white", linewidth=0.8, **looks[kind])
        values = values.float()
        if kind in ("binary", "integer"):
            bottom = 0.0
            for level in range(most + 1):
                here = (values >= most) if level == most else (values == level)
                share = float(here.float().mean())
                color = "white" if level == 0 else levels[level - 1]
                shares.bar(x, share, bottom=bottom, width=0.84, color=color, edgecolor=style.GREY, linewidth=0.5)
                bottom += share
        else:
            zero = float((values == 0).float().mean())
            shares.bar(x, zero, width=0.84, color="white", edgecolor=style.GREY, linewidth=0.5)
            shares.bar(x, 1 - zero, bottom=zero, width=0.84, edgecolor=style.GREY, linewidth=0.5, **looks[kind])
    ribbon.set(yticks=[], ylim=(0, 1), xlim=(-0.6, len(columns) - 0.4))
    ribbon.spines[:].set_visible(False)
    ribbon.tick_params(bottom=False)
    ribbon.set_title(f"value sets along the network, T = {len(records[0].values)}")
    names = dict(binary="{0, 1}", integer="integers", grid="multiples of s", real="real")
    present = {kind_of(values) for _, values in columns}
    ribbon.legend(
        handles=[
            Patch(label=names[k], facecolor=look["facecolor"], hatch=look.get("hatch"))
            for k, look in looks.items() if k in present
        ],
        loc="center left", bbox_to_anchor=(1.005, 0.5), handleheight=1.2,
    )  # fmt: skip
    handles = [Patch(facecolor="white", edgecolor=style.GREY, label="0")]
    handles += [
        Patch(facecolor=levels[i - 1], label=f"{i}" if i < most else f"{i} or more") for i in range(1, most + 1)
    ]
    shares.legend(handles=handles[::-1], title="value", loc="center left", bbox_to_anchor=(1.005, 0.5))
    shares.set_ylim(0, 1)
    shares.set_yticks(np.linspace(0, 1, 6), [f"{p} %" for p in range(0, 101, 20)])
    shares.set_ylabel("share of values")
    shares.set_xticks(range(len(columns)), [name for name, _ in columns], rotation=90, fontsize=9)
    return fig, np.array([ribbon, shares])


@style.styled
def logits(
    recording: Recording, classes: Sequence[str] = (), *, label: int | None = None, sample: int = 0, shown: int = 5
) -> tuple[Figure, Axes]:
    """Draw how the decision forms: the mean of the logits up to each time step; the last one is the model's output.

    Args:
        recording: the result of ``record(model)``.
        classes: names of the classes, by label; a class without a name is drawn with its number.
        label: number of the true class, which is marked; None: none is marked.
        sample: number of the sample in the batch.
        shown: number of classes in colour: those with the largest logits, and the true one. The others are grey.

    Raises:
        SpikformerError: nothing was recorded, no such sample, shown below 1.
    """
    if shown < 1:
        raise SpikformerError(f"shown={shown}: give at least one class a colour")
    values = style.one_sample(recording.logits, sample, "logits")  # [T, K]
    steps, count = values.shape
    means = values.cumsum(0) / np.arange(1, steps + 1)[:, None]
    order = np.argsort(-means[-1], kind="stable")
    lead = [int(k) for k in order[:shown]]
    if label is not None and label not in lead and 0 <= label < count:
        lead[-1] = label
    with style.axes_for(None, (6.8, 3.6)) as (fig, ax):
        for k in range(count):
            if k not in lead:
                ax.plot(means[:, k], color=style.PALE, linewidth=1)
        looks = cycle(zip(("-", "--", "-.", ":", (0, (1, 1))), "osD^v", strict=True))
        for place, (k, (line, marker)) in enumerate(zip(lead, looks, strict=False)):
            color = plt.get_cmap(style.HEAT)(0.85 * place / max(len(lead) - 1, 1))
            name = style.plain(classes[k] if k < len(classes) else f"class {k}") + (" (true)" if k == label else "")
            ax.plot(means[:, k], color=color, linestyle=line, marker=marker, markersize=5, label=name)
        style.time_axis(ax, steps)
        ax.set_ylabel("mean logit up to t")
        ax.set_title(f"the decision over time, head, T = {steps}")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)
    return fig, ax


def kind_of(values: torch.Tensor) -> str:
    """ "binary", "integer", "grid" (multiples of a power of two below 1) or "real"."""
    said = value_set(values)
    return {"{": "binary", "i": "integer", "m": "grid", "r": "real"}[said[0]]
