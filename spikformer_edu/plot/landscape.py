"""Where the membranes of the attention neuron lie on its surrogate gradient."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..errors import SpikformerError
from ..layer_record import LayerRecord
from . import style


@style.styled
def landscape(
    membranes: LayerRecord | Mapping[str, LayerRecord | object],
    *,
    threshold: float = 0.5,
    alpha: float = 4.0,
    vanishing: float = 0.05,
) -> tuple[Figure, np.ndarray]:
    """Draw where the membranes of the attention neuron lie on its surrogate: which get a gradient, tie, or fire.

    Each panel shows the histogram of H (the potential to which Q K^T V s has charged the neuron) over the surrogate's
    derivative. In the gray range the derivative is below ``vanishing`` of its maximum: neurons there pass almost no
    gradient. The ties, H exactly V_th, are drawn in red: with > in place of >= they would not fire.

    Args:
        membranes: a record with membranes of ``blocks.i.attn.attn``; or a dict of such records, or of tensors of H, by
            name, for example one for each attention variant or for each block.
        threshold: V_th for tensors; a record has its own.
        alpha: slope of the surrogate, per unit of H.
        vanishing: share of the derivative's maximum below which a gradient counts as vanished.

    Returns:
        The figure and its axes, one for each record or tensor.

    Raises:
        SpikformerError: nothing given, NaN or inf, membranes not recorded.
    """
    if isinstance(membranes, LayerRecord):
        membranes = {membranes.name: membranes}
    if not isinstance(membranes, Mapping) or not membranes:
        raise SpikformerError("give a record with membranes, or a dict of them by name")
    rows = []
    for name, item in membranes.items():
        h, own = style.to_numpy(item.membrane if isinstance(item, LayerRecord) else item, "membranes"), threshold
        if isinstance(item, LayerRecord):
            assert item.v_threshold is not None  # where there is a membrane, there is a neuron
            own = item.v_threshold
        rows.append((name, len(h), own, style.check_finite(h, "membranes").ravel()))
    # The axis fits the data but always shows the threshold; the text says how much lies beyond it.
    low = max(-3.0, min(-0.6, *(float(np.quantile(h, 0.001)) for *_, h in rows)))
    high = min(4.0, max(2.0, *(float(np.quantile(h, 0.999)) for *_, h in rows)))
    fig, axes = plt.subplots(
        len(rows), 1, figsize=(8.2, 1.1 + 1.55 * len(rows)), sharex=True, squeeze=False, layout="constrained"
    )
    axes = axes[:, 0]
    # The two points at which alpha sigma' falls to the share: sigma (1 - sigma) = vanishing / 4.
    reach = float(np.log((1 + (1 - vanishing) ** 0.5) / (1 - (1 - vanishing) ** 0.5))) / alpha
    edges = np.arange(np.floor(low / 0.0625), np.ceil(high / 0.0625) + 2) * 0.0625 - 0.03125
    for ax, (name, steps, own, h) in zip(axes, rows, strict=True):
        flat = float((np.abs(h - own) > reach).mean())
        ties = float((h == own).mean())
        outside = float(((h < edges[0]) | (h > edges[-1])).mean())
        share = np.histogram(h, edges)[0] / h.size
        middle = (edges[:-1] + edges[1:]) / 2
        ax.bar(middle, share, width=0.055, color=style.MEMBRANE)
        ax.bar(own, ties, width=0.055, color=style.K, hatch="////", edgecolor="white", linewidth=0)
        ax.set_yscale("log")
        ax.set_ylim(1e-5, 2)
        ax.set_yticks([1e-4, 1e-2, 1], ["0.01 %", "1 %", "100 %"])
        ax.minorticks_off()
        twin = ax.twinx()
        x = np.linspace(edges[0], edges[-1], 400)
        sigma = 1 / (1 + np.exp(-alpha * (x - own)))
        twin.plot(x, alpha * sigma * (1 - sigma), color=style.GRADIENT)
        twin.set_ylim(0, alpha / 4 * 1.15)
        twin.set_yticks([])
        for start, stop in ((edges[0], own - reach), (own + reach, edges[-1])):
            if start < stop:
                ax.axvspan(start, stop, color=style.PALE, zorder=0)
        ax.axvline(own, color=style.THRESHOLD, linestyle=(0, (4, 2)), linewidth=1.2)
        said = [f"gradient vanishes: {100 * flat:.1f} %", f"ties: {100 * ties:.2f} %"]
        said += [f"beyond the axis: {100 * outside:.1f} %"] if outside else []
        box = dict(facecolor="white", edgecolor="none", alpha=0.85, pad=2)
        ax.text(0.985, 0.93, "\n".join(said), transform=ax.transAxes, ha="right", va="top", fontsize=10, bbox=box)
        ax.set_title(f"{name}, T = {steps}")
        ax.set_ylabel("share")
    axes[-1].set_xlim(edges[0], edges[-1])
    axes[-1].set_xlabel(f"membrane potential H of the attention neuron ($V_{{th}}$ = {rows[0][2]:g})")
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=style.MEMBRANE, label="histogram of H"),
        plt.Rectangle((0, 0), 1, 1, facecolor=style.K, hatch="////", edgecolor="white", label="ties, H = $V_{th}$"),
        plt.Line2D([], [], color=style.GRADIENT, label="surrogate's derivative"),
        plt.Rectangle((0, 0), 1, 1, color=style.PALE, label=f"below {100 * vanishing:g} % of its height"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=4)
    return fig, axes
