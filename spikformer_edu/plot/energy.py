"""Where the energy goes: a waterfall over the layers, and the totals under every convention."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..energy import CONVENTIONS, EnergyReport, energy_unit
from ..errors import SpikformerError, nearest
from . import style

LOOKS = {  # of the total of a convention: grey levels and hatches differ without colour too
    "paper": dict(facecolor="#BBBBBB", hatch="////"),
    "paper-corrected": dict(facecolor=style.GREY),
    "integer": dict(facecolor=style.MEMBRANE),
    "ann": dict(facecolor="white", hatch="...."),
}


@style.styled
def energy(report: EnergyReport, *, convention: str = "integer") -> tuple[Figure, np.ndarray]:
    """Draw the energy of one image as a waterfall over the layers, beside the totals under three conventions.

    Each bar starts where the layer before it ended. The share that only counting by value adds (residual integers above
    1, the real input of the head) is drawn in orange. The panel at the right shows the totals, and the network of the
    same size without spikes.

    Args:
        report: the result of ``se.energy(model, images)``.
        convention: convention of the waterfall: "paper", "paper-corrected" or "integer".

    Returns:
        The figure and its two axes.

    Raises:
        SpikformerError: not a report, an unknown convention.
    """
    if not isinstance(report, EnergyReport):
        raise SpikformerError(f"give the report that energy(model, images) returns, not {type(report).__name__}")
    if convention not in CONVENTIONS:
        raise SpikformerError(f"unknown convention {convention!r}: {nearest(convention, CONVENTIONS)}")
    totals = report.totals
    unit, name = energy_unit(totals[convention])
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(4.2 + 0.3 * len(report.layers), 5.2), width_ratios=[0.3 * len(report.layers), 2.4]
    )
    start = 0.0
    for x, cost in enumerate(report.layers):
        whole = cost.pj[convention] / unit
        base = whole if cost.real else min(whole, cost.pj["paper-corrected"] / unit)
        color = "#444444" if cost.real else style.color_of_product(cost.layer)
        left.bar(x, base, bottom=start, width=0.8, color=color)
        left.bar(x, whole - base, bottom=start + base, width=0.8, color=style.MEMBRANE, hatch="////", edgecolor="white",
                 linewidth=0)  # fmt: skip
        left.plot([x - 0.4, x + 1.4], [start + whole] * 2, color=style.SPIKE, linewidth=0.7)
        start += whole
    left.set_xticks(range(len(report.layers)), [cost.layer for cost in report.layers], rotation=90, fontsize=8.5)
    left.set_xlim(-0.6, len(report.layers) - 0.2)
    left.set_ylabel(f"energy of one image, {name}")
    left.set_title(f"energy waterfall, convention {convention!r}, T = {report.time_steps}")
    handles = [
        Patch(color="#444444", label="multiplies (4.6 pJ)"),
        Patch(color=style.GREY, label="adds (0.9 pJ)"),
        Patch(color=style.Q, label="products of attention"),
    ]
    if convention == "integer":
        label = "added by counting integers by value"
        handles.append(Patch(facecolor=style.MEMBRANE, hatch="////", edgecolor="white", label=label))
    left.legend(handles=handles, loc="upper left")

    for x, (key, value) in enumerate(totals.items()):
        right.bar(x, value / unit, edgecolor="black", linewidth=0.8, width=0.72, **LOOKS[key])
        number = f"{value / unit:,.0f}" if value >= 100 * unit else f"{value / unit:.3g}"
        right.text(x, value / unit, number, ha="center", va="bottom", fontsize=10)
    labels = {"paper": "paper", "paper-corrected": "corrected", "integer": "integer", "ann": "no spikes"}
    right.set_xticks(range(len(totals)), [labels[key] for key in totals], rotation=90)
    right.set_ylabel(f"{name}")
    right.set_title("totals")
    fig.supxlabel(
        "arithmetic at 45 nm (Horowitz 2014), no memory access; not the energy of a GPU",
        fontsize=9,
        color=style.THRESHOLD,
    )
    return fig, np.array([left, right])
