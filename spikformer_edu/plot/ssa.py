"""Spiking self-attention taken apart: one cell of SN(Q K^T V s), computed by hand."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..errors import SpikformerError
from ..record import Recording
from . import style
from .layers import draw_membrane

ROUNDING = 0.01  # of H: nearer to the threshold, low precision may fall on either side


class Product:
    """All steps from Q, K, V ``[T, N, d]`` of one head to its spikes; ``spikes``, if given, are the recorded ones."""

    pooled = False  # Q and K are drawn after a pool over the tokens

    def __init__(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        scale: float,
        threshold: float,
        title: str,
        tau: float = 2.0,
        beta: float = 0.5,
        spikes: np.ndarray | None = None,
    ):
        self.q, self.k, self.v, self.scale, self.threshold, self.title = q, k, v, scale, threshold, title
        self.counts = q @ k.transpose(0, 2, 1)  # [T, N, N]: how many ones Q_i and K_j share
        self.sums = self.counts @ v  # [T, N, d]
        self.h, self.s, before = np.empty_like(self.sums), np.empty_like(self.sums), 0.0
        for t, current in enumerate(self.sums * scale):
            self.h[t] = beta * before + current / tau
            self.s[t] = self.h[t] >= threshold if spikes is None else spikes[t]
            before = self.h[t] * (1 - self.s[t])  # after the reset

    def cell(self) -> tuple[int, int, int]:
        """A cell that fires, (t, query, feature); if none does, the first at the last step."""
        fired = np.argwhere(self.s > 0)
        if not len(fired):
            return len(self.sums) - 1, 0, 0
        t, i, c = (int(n) for n in fired[len(fired) // 2])
        return t, i, c


@style.styled
def ssa(
    q: Recording | object,
    k: object | None = None,
    v: object | None = None,
    *,
    scale: float | None = None,
    threshold: float = 0.5,
    block: int = 0,
    head: int = 0,
    sample: int = 0,
    step: int | None = None,
    query: int | None = None,
    key: int | None = None,
    feature: int | None = None,
) -> tuple[Figure, dict[str, Axes]]:
    """Spiking self-attention by hand: two rows of bits -> AND -> popcount -> sum over V -> membrane -> spike.

    One cell of SN(Q K^T V s) is traced: where Q of the query and K of the key are both 1, how often, what the scores of
    the query gather from one column of V, what that adds to a membrane, and whether it fires. If the network pools Q
    and K over the tokens, they are drawn after the pool.

    Args:
        q: spikes of Q ``[T, N, d]`` or ``[N, d]`` of one head; or, alone, a recording that holds q, k, v, scores and
            attn of the block.
        k: spikes of K, of the same shape; None with a recording.
        v: spikes of V, of the same shape; None with a recording.
        scale: factor s, for tensors; None: 0.125. A recording has its own.
        threshold: V_th, for tensors. A recording has its own.
        block: number of the block in a recording.
        head: number of the head in a recording.
        sample: number of the sample in a recording.
        step: time step of the cell to trace; None: that of a cell that fires.
        query: number of the query token, the row of the cell; None: that of a cell that fires.
        key: number of the key token that the query is compared with; None: that of the cell's largest score.
        feature: column of V and of the result; None: that of a cell that fires.

    Returns:
        The figure and its axes by name: q, k, v, and, scores, sums, membrane.

    Raises:
        SpikformerError: not spikes, shapes that do not fit, no such block, head, sample or cell; a recording whose
            spikes are not SN(Q K^T V s).
    """
    product = product_of(q, k, v, scale, threshold, block, head, sample)
    cell = choose_cell(product, step, query, key, feature)
    fig, axes = board()
    draw_board(axes, product, cell)
    return fig, axes


@style.styled
def ssa_animation(q: Recording | object, k: object | None = None, v: object | None = None, *, interval: int = 500,
                  **options: Any) -> FuncAnimation:  # fmt: skip
    """Spiking self-attention by hand, key by key, step by step; ``.save("ssa.gif", writer="pillow")``.

    In each time step the query is compared with up to six keys, those with which it shares most ones; then its membrane
    is updated.

    Args:
        q: spikes of Q ``[T, N, d]`` or ``[N, d]`` of one head; or, alone, a recording that holds q, k, v, scores and
            attn of the block.
        k: spikes of K, of the same shape; None with a recording.
        v: spikes of V, of the same shape; None with a recording.
        interval: duration of a frame, in milliseconds.
        options: further arguments of ``ssa``: scale, threshold, block, head, sample, step, query, key, feature.

    Raises:
        SpikformerError: as ``ssa``.
    """
    defaults: dict[str, Any] = dict(scale=None, threshold=0.5, block=0, head=0, sample=0)
    where = {name: options.pop(name, None) for name in ("step", "query", "key", "feature")}
    product = product_of(q, k, v, **(defaults | options))
    _, i, _, c = choose_cell(product, **where)
    frames = []
    for t in range(len(product.sums)):
        met = sorted(np.argsort(-product.counts[t, i], kind="stable")[:6])
        frames += [((t, i, int(j), c), n + 1 == len(met)) for n, j in enumerate(met)]
    fig, axes = board()

    def show(number: int) -> None:
        for ax in axes.values():
            ax.clear()
        cell, complete = frames[number]
        draw_board(axes, product, cell, upto=cell[0] + complete)

    return style.animate(fig, show, len(frames), interval)


def product_of(
    q: Recording | object,
    k: object | None,
    v: object | None,
    scale: float | None,
    threshold: float,
    block: int,
    head: int,
    sample: int,
) -> Product:
    """Q, K, V of one head out of tensors or out of a recording."""
    if isinstance(q, Recording):
        layers = {name: q[f"blocks.{block}.attn.{name}"] for name in ("q", "k", "v", "attn", "scores")}
        neuron, scores = layers["attn"], layers["scores"]
        parts = []
        for name in ("q", "k", "v", "attn"):
            values = style.one_sample(layers[name], sample, "spikes")  # [T, h, N, d]
            if not 0 <= head < values.shape[1]:
                raise SpikformerError(f"head={head}: there are {values.shape[1]}, numbered from 0")
            parts.append(values[:, head])
        title = f"blocks.{block}.attn, head {head}"
        if scores.pooled:
            parts[:2] = (pool_tokens(part) for part in parts[:2])
        scale = scores.scale if scale is None else scale
        assert scale is not None and neuron.v_threshold is not None  # recorded with scores and with a neuron,
        assert neuron.tau is not None and neuron.beta is not None  # as these
        product = Product(
            parts[0], parts[1], parts[2], scale, neuron.v_threshold, title, neuron.tau, neuron.beta, parts[3]
        )
        product.pooled = scores.pooled
        away = np.abs(product.h - product.threshold) > ROUNDING
        if ((product.h >= product.threshold) != product.s)[away].any():
            raise SpikformerError(
                f"{neuron.name}: its spikes are not SN(Q K^T V s) of the recorded Q, K, V and s = {scale:g}; leave out"
                " scale, and record plain spiking self-attention"
            )
        return product
    else:
        if k is None or v is None:
            raise SpikformerError("give a recording, or three tensors q, k, v of shape [T, N, d]")
        parts = [style.to_numpy(x, name) for x, name in zip((q, k, v), "QKV", strict=True)]
        parts = [part[None] if part.ndim == 2 else part for part in parts]
        title = "spiking self-attention"
    if any(part.ndim != 3 for part in parts) or len({part.shape for part in parts}) > 1:
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise SpikformerError(f"Q, K, V of shapes {shapes}: give three of the same shape [T, N, d]")
    parts = [style.check_spikes(part, name) for part, name in zip(parts, "QKV", strict=True)]
    return Product(parts[0], parts[1], parts[2], 0.125 if scale is None else scale, threshold, title)


def pool_tokens(x: np.ndarray) -> np.ndarray:
    """The max-pool over tokens of ``qk_pool``, for Q or K ``[T, N, d]``."""
    return F.max_pool1d(torch.from_numpy(x).transpose(1, 2), 3, stride=1, padding=1).transpose(1, 2).numpy()


def choose_cell(
    product: Product, step: int | None, query: int | None, key: int | None, feature: int | None
) -> tuple[int, int, int, int]:
    """The cell asked for, completed by one that fires; the key is that of its largest score whose V is 1."""
    steps, tokens, width = product.sums.shape

    def choose(name: str, asked: int | None, usual: int, size: int) -> int:
        if asked is not None and not 0 <= asked < size:
            raise SpikformerError(f"{name}={asked}: there are {size}, numbered from 0")
        return usual if asked is None else asked

    t, i, c = product.cell()
    t, i, c = choose("step", step, t, steps), choose("query", query, i, tokens), choose("feature", feature, c, width)
    return t, i, choose("key", key, int((product.counts[t, i] * product.v[t, :, c]).argmax()), tokens), c


def board() -> tuple[Figure, dict[str, Axes]]:
    """Empty axes, in the order of the computation: Q, K, V above; AND in the middle; counts, sums, membrane below."""
    fig = plt.figure(figsize=(11, 7.6))
    rows = fig.add_gridspec(3, 1, height_ratios=[3, 1.25, 3])
    top, bottom = rows[0].subgridspec(1, 3), rows[2].subgridspec(1, 3, width_ratios=[1.1, 1, 1.35])
    cells = dict(q=top[0], k=top[1], v=top[2], scores=bottom[0], sums=bottom[1], membrane=bottom[2])
    cells["and"] = rows[1]
    return fig, {name: fig.add_subplot(cell) for name, cell in cells.items()}


def bitmap(ax: Axes, bits: np.ndarray, color: str) -> None:
    """A matrix of zeros and ones: white and one color, with a grid while it is small."""
    ax.imshow(bits, cmap=ListedColormap(["white", color]), vmin=0, vmax=1, aspect="auto")
    rows, columns = bits.shape
    if max(rows, columns) <= 20:
        ax.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
        ax.grid(which="minor", color=style.PALE, linewidth=0.8)
        ax.tick_params(which="minor", length=0)
    ax.set_xticks([0, columns - 1] if columns > 1 else [0])
    ax.set_yticks([0, rows - 1] if rows > 1 else [0])
    ax.spines[:].set_visible(True)


def frame(ax: Axes, row: int | None = None, column: int | None = None, color: str = "black") -> None:
    """Outline a row, a column, or the cell in both, of the matrix on ``ax``."""
    rows, columns = ax.images[0].get_size()
    loose = [0.5 if size > 20 else 0.0 for size in (columns, rows)]  # a frame would cover a thin row
    x, wide = (-0.5, columns) if column is None else (column - 0.5 - loose[0], 1 + 2 * loose[0])
    y, tall = (-0.5, rows) if row is None else (row - 0.5 - loose[1], 1 + 2 * loose[1])
    lines = [(color, 1.3)] if any(loose) else [("white", 4.5), (color, 2.4)]
    for edge, width in lines:
        ax.add_patch(
            Rectangle((x, y), wide, tall, edgecolor=edge, linewidth=width, fill=False, clip_on=False, zorder=4)
        )


def draw_board(
    axes: dict[str, Axes], product: Product, cell: tuple[int, int, int, int], upto: int | None = None
) -> None:
    """Everything at one time step; the membrane up to the step ``upto``."""
    t, i, j, c = cell
    q, k, v, counts = product.q[t], product.k[t], product.v[t], product.counts[t]
    steps, tokens, width = product.sums.shape

    for name, bits, color in (("q", q, style.Q), ("k", k, style.K), ("v", v, style.V)):
        bitmap(axes[name], bits, color)
        axes[name].set_xlabel("feature")
        axes[name].set_ylabel("token")
    pooled = "pooled " if product.pooled else ""
    axes["q"].set_title(f"{pooled}Q, query {i} framed")
    axes["k"].set_title(f"{pooled}K, key {j} framed")
    axes["v"].set_title(f"V, feature {c} framed")
    frame(axes["q"], row=i)
    frame(axes["k"], row=j)
    frame(axes["v"], column=c)
    axes["q"].annotate(f"{product.title}, t = {t} of T = {steps}", (0, 1), xycoords="axes fraction", xytext=(0, 26),
                       textcoords="offset points", fontsize=13)  # fmt: skip

    both = q[i] * k[j]
    strips = np.stack([q[i] * 1, k[j] * 2, both * 3])
    ax = axes["and"]
    colors = ListedColormap(["white", style.Q, style.K, "black"])
    ax.imshow(strips, cmap=colors, vmin=0, vmax=3, aspect="auto")
    ax.set_xticks(np.arange(width + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(4) - 0.5, minor=True)
    ax.grid(which="minor", color=style.PALE, linewidth=0.8)
    ax.tick_params(which="minor", length=0)
    ax.set_xticks([])
    ax.set_yticks(range(3), [f"$Q_{{{i}}}$", f"$K_{{{j}}}$", "AND"])
    count = int(counts[i, j])
    ax.set_title(f"popcount of the AND: {count}   so   $(QK^\\top)_{{{i},{j}}}$ = {count}")

    ax = axes["scores"]
    ax.imshow(counts, cmap="Greys", vmin=0, vmax=max(counts.max(), 1), aspect="auto")
    ax.set_title(r"$QK^\top$, counts")
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    label_cells(ax, counts, max(counts.max(), 1))
    frame(ax, row=i, color=style.Q)
    frame(ax, row=i, column=j, color=style.K)

    ax = axes["sums"]
    sums = product.sums[t]
    ax.imshow(sums, cmap="Greys", vmin=0, vmax=max(product.sums.max(), 1), aspect="auto")
    ax.set_title(f"$QK^\\top V$, sums\ncurrent: {sums[i, c]:g} x {product.scale:g} = {sums[i, c] * product.scale:g}")
    ax.set_xlabel("feature")
    ax.set_ylabel("query")
    label_cells(ax, sums, product.sums.max())
    frame(ax, row=i, column=c)
    for name in ("scores", "sums"):
        rows, columns = axes[name].images[0].get_size()
        axes[name].set_xticks([0, columns - 1] if columns > 1 else [0])
        axes[name].set_yticks([0, rows - 1] if rows > 1 else [0])
        axes[name].spines[:].set_visible(True)

    ax = axes["membrane"]
    draw_membrane(ax, product.h[:, i, c], product.s[:, i, c], product.threshold, upto)
    ax.axvspan(t - 0.5, t + 0.5, color=style.PALE, alpha=0.6, zorder=0)
    verdict = ": " + ("spike" if product.s[t, i, c] else "no spike") + f" at t = {t}"
    ax.set_title(f"membrane of cell ({i}, {c})" + (verdict if upto is None or upto > t else ""))
    ax.set_ylabel("H")
    style.time_axis(ax, steps)


def label_cells(ax: Axes, values: np.ndarray, darkest: float) -> None:
    """Write the numbers into a matrix if it is small enough to read them; ``darkest`` is the value drawn in black."""
    if max(values.shape) > 12:
        return
    for (row, column), value in np.ndenumerate(values):
        dark = value > darkest / 2
        ax.text(column, row, f"{value:g}", ha="center", va="center", fontsize=9, color="white" if dark else "black")
