"""Attention maps: on the image that they look at, and as matrices of queries and keys."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ..errors import SpikformerError
from ..layer_record import LayerRecord
from . import style


@style.styled
def attention(
    scores: LayerRecord | object,
    image: object | None = None,
    *,
    query: int | None = None,
    head: int | None = None,
    step: int | None = None,
    sample: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw where attention goes: the scores of one query token, or the mean that each token receives.

    Args:
        scores: record of ``blocks.i.attn.scores``, or Q K^T s as ``[T, h, N, N]`` of one sample (``[T, B, h, N, N]``
            with ``sample``) or a single map ``[N, N]``.
        image: the network's input ``[C, H, W]``, drawn beside the map; over the map the outlines of a gray image;
            None: no image.
        query: number of the query token (row by row), outlined in blue; None: the mean over all queries.
        head: number of one head; None: the mean over all heads.
        step: number of one time step; None: the mean over all steps.
        sample: number of the sample in the batch; None: the first of a record, or a tensor without a batch axis.
        title: text in place of the layer's name; None: the name.
        ax: axes for the map; None: those of a new figure. The axes of the map are returned.

    Raises:
        SpikformerError: not scores, no such token, head, step or sample, or tokens that fill no rectangle.
    """
    array = score_array(scores, sample)
    steps = len(array)
    values = pick(pick(array, step, 0, "step"), head, 0, "head")  # [N, N]
    received = pick(values, query, 0, "query")  # [N]: what each key gets
    rows, columns = token_grid(len(received), image)
    who = "mean over queries" if query is None else f"query token {query}"
    when = f"mean over T = {steps}" if step is None else f"t = {step} of T = {steps}"
    which = "all heads" if head is None else f"head {head}"
    with style.axes_for(ax, (5.2, 4.6) if image is None else (8.6, 4.3)) as (fig, own):
        if image is not None and ax is None:
            own.remove()
            beside, own = fig.subplots(1, 2)
            draw_image(beside, image, rows, columns, query)
            beside.set_title(f"input, {rows} x {columns} tokens")
        ax = own
        drawn = draw_map(ax, received.reshape(rows, columns), image, query=query)
        fig.colorbar(drawn, ax=ax, label=r"$Q K^\top s$", fraction=0.046, pad=0.03)
        name = title or (scores.name if isinstance(scores, LayerRecord) else "attention")
        ax.set_title(f"{name}, {which}\n{who}, {when}")
    return fig, ax


@style.styled
def attention_over_time(
    scores: LayerRecord | object,
    image: object | None = None,
    *,
    query: int | None = None,
    sample: int | None = None,
    title: str | None = None,
) -> tuple[Figure, np.ndarray]:
    """Draw the attention map of every head (down) at every time step (across), all on one color scale.

    Args:
        scores: record of ``blocks.i.attn.scores``, or Q K^T s as ``[T, h, N, N]`` of one sample (``[T, B, h, N, N]``
            with ``sample``) or a single map ``[N, N]``.
        image: the network's input ``[C, H, W]``, drawn beside the maps; over each the outlines of a gray image;
            None: no image.
        query: number of the query token (row by row), outlined in blue; None: the mean over all queries.
        sample: number of the sample in the batch; None: the first of a record, or a tensor without a batch axis.
        title: text in place of the layer's name; None: the name.

    Returns:
        The figure and its axes ``[h, T]``.

    Raises:
        SpikformerError: as ``attention``.
    """
    array = pick(score_array(scores, sample), query, 2, "query")  # [T, h, N]
    steps, heads, tokens = array.shape
    rows, columns = token_grid(tokens, image)
    size = 1.35 if max(steps, heads) <= 8 else 0.95
    extra = 0 if image is None else 1  # a first column for the image itself
    fig, axes = plt.subplots(
        heads, steps + extra, figsize=(size * (steps + extra) + 1.6, size * heads + 0.9), squeeze=False
    )
    if extra:
        draw_image(axes[0, 0], image, rows, columns, query)
        axes[0, 0].set_title("input", loc="center", fontsize=11)
        for ax in axes[1:, 0]:
            ax.remove()
    axes = axes[:, extra:]
    low, high = float(array.min()), float(array.max())
    for h in range(heads):
        for t in range(steps):
            drawn = draw_map(axes[h, t], array[t, h].reshape(rows, columns), image, query=query, limits=(low, high))
            if h == 0:
                axes[h, t].set_title(f"t = {t}", loc="center", fontsize=11)
        axes[h, 0].set_ylabel(f"head {h}", fontsize=10)
    fig.colorbar(drawn, ax=axes, label=r"$Q K^\top s$", shrink=min(1, 3 / heads), pad=0.02)
    name = title or (scores.name if isinstance(scores, LayerRecord) else "attention")
    who = "mean over queries" if query is None else f"query token {query}"
    fig.suptitle(f"{name}, {who}, T = {steps}", fontsize=12)
    return fig, axes


@style.styled
def attention_matrix(
    matrices: Mapping[str, object], *, names: Sequence[str] | None = None, label: str | Sequence[str] = "weight"
) -> tuple[Figure, np.ndarray]:
    """Draw whole attention maps side by side: a row is a query, a column a key; each map has its own color scale.

    Up to 12 tokens the numbers are written into the cells.

    Args:
        matrices: maps ``[N, N]`` by title: weights, counts or scores, at least 0.
        names: names of the N tokens; None: numbers.
        label: what the colors stand for: one text for all maps, or one for each.

    Returns:
        The figure and its axes, one for each map.

    Raises:
        SpikformerError: no maps, maps that are not square or not of one size, NaN or inf, another number of names or
            labels.
    """
    if not matrices:
        raise SpikformerError("give at least one map [N, N], by title")
    arrays = {title: style.check_finite(style.to_numpy(x, title), title) for title, x in matrices.items()}
    shapes = [list(array.shape) for array in arrays.values()]
    if len(shapes[0]) != 2 or any(shape != 2 * shapes[0][:1] for shape in shapes):
        raise SpikformerError(f"maps of shapes {', '.join(map(str, shapes))}: give [N, N], of one size")
    tokens = shapes[0][0]
    labels = [label] * len(arrays) if isinstance(label, str) else list(label)
    for what, given, wanted in (("names", names, tokens), ("labels", labels, len(arrays))):
        if given is not None and len(given) != wanted:
            raise SpikformerError(f"{len(given)} {what} for {wanted}: give one for each")
    fig, axes = plt.subplots(1, len(arrays), figsize=(0.6 + 5.2 * len(arrays), 4.5), sharey=True, squeeze=False)
    for ax, (title, array), text in zip(axes[0], arrays.items(), labels, strict=True):
        high = float(array.max()) or 1.0
        drawn = ax.imshow(array, vmin=0, vmax=high)
        if tokens <= 12:
            for (row, column), value in np.ndenumerate(array):
                color = "white" if value < 0.6 * high else "black"
                ax.text(column, row, f"{value:.2f}".rstrip("0").rstrip("."), ha="center", va="center", color=color)
        if names is not None:
            ax.set_xticks(range(tokens), names, rotation=35, ha="right")
            ax.set_yticks(range(tokens), names)
        ax.set_xlabel("key")
        ax.set_title(title)
        fig.colorbar(drawn, ax=ax, label=text, fraction=0.046, pad=0.03)
    axes[0, 0].set_ylabel("query")
    return fig, axes[0]


def score_array(scores: LayerRecord | object, sample: int | None) -> np.ndarray:
    """Scores of one sample as ``[T, h, N, N]``.

    Args:
        scores: a record of scores, or a tensor.
        sample: number of the sample in the batch; None: the first of a record, or the tensor itself.
    """
    if isinstance(scores, LayerRecord) and scores.kind != "scores":
        raise SpikformerError(f"layer {scores.name!r} holds {scores.kind}: give a record of 'blocks.<i>.attn.scores'")
    array = style.check_finite(style.one_sample(scores, sample, "attention scores", field="values"), "attention scores")
    if array.ndim == 2:
        array = array[None, None]
    if array.ndim != 4 or array.shape[2] != array.shape[3]:
        raise SpikformerError(f"attention scores of shape {list(array.shape)}: give [T, h, N, N] or [N, N]")
    return array


def pick(array: np.ndarray, index: int | None, axis: int, what: str) -> np.ndarray:
    """One index along an axis, or the mean over it when the index is None."""
    if index is None:
        return array.mean(axis)
    if not -array.shape[axis] <= index < array.shape[axis]:
        raise SpikformerError(f"{what}={index}: there are {array.shape[axis]}, numbered from 0")
    return array.take(index, axis)


def token_grid(tokens: int, image: object | None) -> tuple[int, int]:
    """Rows and columns of the tokens: in the image's proportions, square without one."""
    height, width = (1, 1) if image is None else style.image_of(image).shape[:2]
    rows = round((tokens * height / width) ** 0.5)
    if rows < 1 or tokens % rows or (image is not None and rows * width != tokens // rows * height):
        over = "" if image is None else f" over an image of {height} x {width}"
        raise SpikformerError(f"{tokens} tokens{over} fill no grid: give the scores and the image of one model")
    return rows, tokens // rows


def draw_map(
    ax: Axes,
    values: np.ndarray,
    image: object | None,
    *,
    query: int | None = None,
    limits: tuple[float, float] | None = None,
) -> AxesImage:
    """Token values ``[rows, columns]`` in heat colors, the outlines of a gray image, the query framed in blue."""
    rows, columns = values.shape
    low, high = limits or (float(values.min()), float(values.max()))
    if low == high:  # a flat map: show it as the bottom of the scale
        high = low + 1
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    drawn = ax.imshow(values, vmin=low, vmax=high, extent=extent)
    if image is not None:
        draw_outlines(ax, image, rows, columns)
    outline(ax, query, rows, columns)
    return drawn


def draw_outlines(ax: Axes, image: object, rows: int, columns: int) -> None:
    """Lines where a gray image crosses its middle gray: they show its shapes and leave the colors of the map alone."""
    gray = style.image_of(image)
    if gray.ndim > 2 or min(gray.shape) < 2 or gray.min() == gray.max():
        return  # a color photograph has no such outlines, an even image none at all
    height, width = gray.shape
    x = (np.arange(width) + 0.5) / width * columns - 0.5
    y = (np.arange(height) + 0.5) / height * rows - 0.5
    for color, wide in (("black", 2.2), ("white", 1.0)):
        ax.contour(x, y, gray, levels=[0.5], colors=color, linewidths=wide)


def draw_image(ax: Axes, image: object, rows: int, columns: int, query: int | None) -> None:
    """The image on the grid of its tokens, the query outlined."""
    ax.imshow(style.image_of(image), cmap="gray", vmin=0, vmax=1, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    for edges, line in ((range(1, columns), ax.axvline), (range(1, rows), ax.axhline)):
        for edge in edges:
            line(edge - 0.5, color=style.GREY, linewidth=0.5)
    outline(ax, query, rows, columns)


def outline(ax: Axes, query: int | None, rows: int, columns: int) -> None:
    """A blue frame (Q) around the query token; no ticks."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if query is not None:
        row, column = divmod(query % (rows * columns), columns)
        for color, width in (("white", 4.5), (style.Q, 2.5)):
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=width))
