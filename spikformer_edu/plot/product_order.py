"""What the order of multiplication costs."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..errors import SpikformerError, nearest
from ..presets import PRESETS, Preset
from . import style


@style.styled
def multiplication_order(width: int = 32, *, models: list[str] | None = None) -> tuple[Figure, np.ndarray]:
    """Draw how many operations each order of Q K^T V takes: (Q K^T) V grows as N^2 d, Q (K^T V) as N d^2.

    Without softmax both give the same numbers; N = d is where they cost the same.

    Args:
        width: width d of a head, for the curves in the left panel.
        models: names of the presets to mark; None: all. The right panel gives N / d of each.

    Returns:
        The figure and its two axes.

    Raises:
        SpikformerError: width below 1, an unknown model.
    """
    if width < 1:
        raise SpikformerError(f"width={width}: a head has at least one feature")
    for name in models or ():
        if name not in PRESETS:
            raise SpikformerError(f"unknown model {name!r}: {nearest(name, PRESETS)}")
    chosen = [PRESETS[name] for name in (models or PRESETS)]
    sizes: dict[tuple[int, int], list[str]] = {}  # (N, d) -> names
    for p in chosen:
        tokens = (p.image_size // p.config.patch_size) ** 2
        sizes.setdefault((tokens, p.config.dim // p.config.heads), []).append(p.name)
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=[1.25, 1])
    n = np.geomspace(width / 4, max(width * 32, 1.2 * max(tokens for tokens, _ in sizes)), 200)
    left.loglog(n, 2 * n**2 * width, color=style.Q, label=r"$(QK^\top)V$:  $2N^2d$")
    left.loglog(n, 2 * n * width**2, color=style.V, linestyle="--", label=r"$Q(K^\top V)$:  $2Nd^2$")
    left.plot(width, 2 * width**3, "o", color="black", markersize=7)
    left.annotate(f"N = d = {width}", (width, 2 * width**3), xytext=(8, -14), textcoords="offset points")
    for tokens in sorted({tokens for tokens, d in sizes if d == width}):
        left.plot([tokens] * 2, [2 * tokens**2 * width, 2 * tokens * width**2], "o:", color=style.GREY, markersize=5)
        left.annotate(f"N = {tokens}", (tokens, 2 * tokens * width**2), xytext=(6, -12), textcoords="offset points")
    left.set_xlabel("tokens N")
    left.set_ylabel("multiply-accumulates a head and step")
    left.set_title(f"operations of one head, d = {width}, one time step")
    left.legend(loc="upper left")
    labels = []
    for y, ((tokens, d), names) in enumerate(sorted(sizes.items(), key=lambda item: item[0][0] / item[0][1])):
        ratio = tokens / d
        right.barh(y, ratio, color=style.V if ratio > 1 else style.Q, height=0.6)
        right.text(ratio, y, f" {ratio:.3g} x", va="center", fontsize=10)
        labels.append("\n".join([*shorten(names, chosen), f"N = {tokens}, d = {d}"]))
    right.set_yticks(range(len(labels)), labels, fontsize=8.5)
    right.axvline(1, color="black", linewidth=1)
    right.set_xlim(0, right.get_xlim()[1] * 1.15)
    right.set_xlabel(r"N / d = operations of $(QK^\top)V$ over $Q(K^\top V)$")
    right.set_title("presets")
    return fig, np.array([left, right])


def shorten(names: list[str], chosen: list[Preset]) -> list[str]:
    """Preset names, one line for each data set: "cifar10-*" if all are there, else "imagenet-6-512, -8-512"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        dataset, _, size = name.partition("-")
        groups.setdefault(dataset, []).append(size)
    whole = {dataset: sum(p.dataset == dataset for p in chosen) for dataset in groups}
    return [
        f"{dataset}-*" if len(sizes) == whole[dataset] > 1 else f"{dataset}-" + ", -".join(sizes)
        for dataset, sizes in groups.items()
    ]
