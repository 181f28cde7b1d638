"""The health of a training run, from its log."""

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..atomic import expand
from ..errors import SpikformerError
from . import style


@style.styled
def training(log: str | Path | Iterable[Mapping[str, Any]], *, title: str | None = None) -> tuple[Figure, np.ndarray]:
    """Draw how a run went: loss, accuracy, firing rate, dead features and gradient norm by layer, learning rate.

    Only the panels whose columns the log has are drawn.

    Args:
        log: a ``metrics.csv``, the run folder that holds one, or its rows. Columns: ``epoch``, ``loss``, ``val_loss``,
            ``accuracy``, ``val_accuracy``, ``lr``, ``rate``, for each layer ``rate/<layer>`` and ``dead/<layer>``, for
            each block ``grad/<block>``; ``data`` goes into the title. An empty or missing value leaves a gap.
        title: text in place of the names of run and data set; None: these names.

    Returns:
        The figure and the axes of its panels, in that order.

    Raises:
        SpikformerError: no such file, or nothing in it that can be drawn.
    """
    rows, name = read_log(log)
    columns = {key for row in rows for key in row}
    epochs = column(rows, "epoch") if "epoch" in columns else np.arange(1, len(rows) + 1)
    groups: dict[str, list[str]] = {
        "loss": [c for c in ("loss", "val_loss") if c in columns],
        "accuracy, %": [c for c in ("accuracy", "val_accuracy") if c in columns],
        "firing rate, %": sorted_layers(columns, "rate/") or [c for c in ("rate",) if c in columns],
        "dead features, %": sorted_layers(columns, "dead/"),
        "gradient norm": sorted_layers(columns, "grad/"),
        "learning rate": [c for c in ("lr",) if c in columns],
    }
    groups = {label: names for label, names in groups.items() if names}
    if not groups:
        raise SpikformerError(f"{name or 'the log'} has no column to draw: expected loss, accuracy, rate/<layer>, ...")
    wide = 2 if len(groups) > 1 else 1
    tall = -(-len(groups) // wide)
    fig, grid = plt.subplots(tall, wide, figsize=(6.2 * wide, 0.4 + 2.9 * tall), squeeze=False, sharex=True)
    axes = grid.ravel()
    for ax in axes[len(groups) :]:
        ax.remove()
    for number, (ax, (label, names)) in enumerate(zip(axes, groups.items(), strict=False)):
        percent = label.endswith("%")
        many = any("/" in key for key in names)
        for i, key in enumerate(names):
            values = column(rows, key) * (100 if percent else 1)
            ax.plot(epochs, values, **(layer_look(i, len(names)) if many else series_look(key)))
        if many:
            label_layers(ax, names)
        elif len(names) > 1:
            ax.legend()
        if label == "gradient norm":
            ax.set_yscale("log")
        if percent:
            ax.set_ylim(bottom=0)
        ax.set_title(label)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.tick_params(labelbottom=True)
        if number >= len(groups) - wide:
            ax.set_xlabel("epoch")
    fig.suptitle(title or style.plain(", ".join(filter(None, (name, rows[-1].get("data")))), 80), fontsize=13)
    return fig, axes[: len(groups)]


@style.styled
def training_layers(
    log: str | Path | Iterable[Mapping[str, Any]], *, title: str | None = None
) -> tuple[Figure, np.ndarray]:
    """Draw every layer over the epochs: a row of color for each, for its firing rate, dead features and gradient norm.

    Where ``training`` draws a line for each layer and names a few, this names all. Only the panels whose columns the
    log has are drawn.

    Args:
        log: a ``metrics.csv``, the run folder that holds one, or its rows. Columns: ``epoch``; for each layer
            ``rate/<layer>`` and ``dead/<layer>``, shares from 0 to 1; for each part of the network ``grad/<part>``.
        title: text in place of the names of run and data set; None: these names.

    Returns:
        The figure and the axes of its panels, in that order.

    Raises:
        SpikformerError: no such file, or no column of a layer in it.
    """
    rows, name = read_log(log)
    columns = {key for row in rows for key in row}
    kinds = {"rate/": "firing rate, %", "dead/": "dead features, %", "grad/": "gradient norm"}
    panels = {prefix: names for prefix in kinds if (names := sorted_layers(columns, prefix))}
    if not panels:
        raise SpikformerError(f"{name or 'the log'} has no column of a layer: expected rate/<layer>, dead/<layer>, ...")
    epochs = column(rows, "epoch") if "epoch" in columns else np.arange(1, len(rows) + 1)
    tall = 1.3 + 0.2 * max(map(len, panels.values()))
    fig, axes = plt.subplots(1, len(panels), figsize=(0.6 + 3.5 * len(panels), tall), squeeze=False)
    edges = np.append(epochs - 0.5, epochs[-1] + 0.5)
    for ax, (prefix, names) in zip(axes[0], panels.items(), strict=True):
        share = prefix != "grad/"
        values = np.array([column(rows, key) for key in names]) * (100 if share else 1)  # [layers, epochs]
        scale: dict[str, Any] = {"norm": "log"}
        if share:
            least = 20.0 if prefix == "dead/" else 1.0
            scale = {"vmin": 0, "vmax": max(least, float(np.nanmax(values)))}
        drawn = ax.pcolormesh(edges, np.arange(len(names) + 1) - 0.5, values, **scale)
        ax.set_yticks(range(len(names)), [style.plain(key.removeprefix(prefix)) for key in names], fontsize=8)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(title=kinds[prefix], xlabel="epoch")
        fig.colorbar(drawn, ax=ax, fraction=0.06, pad=0.02)
    fig.suptitle(title or style.plain(", ".join(filter(None, (name, rows[-1].get("data")))), 80), fontsize=13)
    return fig, axes[0]


def read_log(log: str | Path | Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """Rows of a log, and what to call it."""
    name = ""
    if isinstance(log, (str, Path)):
        path = expand(log)
        path = path / "metrics.csv" if os.path.isdir(path) else path
        name = path.parent.name or path.name
        try:
            with open(path, newline="", encoding="utf-8") as file:
                log = list(csv.DictReader(file))
        except (OSError, csv.Error, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SpikformerError(f"cannot read {path}: {reason}; give the metrics.csv of a run") from None
    rows = list(log)
    if not rows:
        raise SpikformerError(f"{name or 'the log'} holds no epoch yet: train for at least one")
    return rows, name


def column(rows: list[Mapping[str, Any]], name: str) -> np.ndarray:
    """One column as numbers; NaN where a row has none."""

    def number(value: str | SupportsFloat | None) -> float:
        if value is None:
            return float("nan")
        try:
            return float(value)
        except (TypeError, ValueError):
            return float("nan")

    return np.array([number(row.get(name)) for row in rows])


def sorted_layers(columns: set[str], prefix: str) -> list[str]:
    """The columns of a prefix in network order: SPS, blocks by number, the rest."""
    order = ["q", "k", "v", "attn", "proj", "hidden", "out", "mlp"]

    def place(key: str) -> tuple[int, int, int, str]:
        parts = key.removeprefix(prefix).split(".")
        stage = {"sps": 0, "blocks": 1}.get(parts[0], 2)
        number = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 99
        return stage, number, order.index(parts[-1]) if parts[-1] in order else 0, key

    return sorted((key for key in columns if key.startswith(prefix)), key=place)


def series_look(key: str) -> dict[str, Any]:
    """Training as a solid grey line, validation as a dashed blue one."""
    if key.startswith("val_"):
        return dict(color=style.Q, linestyle="--", marker="o", markersize=3, label="validation")
    return dict(color="#444444", marker="o", markersize=3, label="training" if key in ("loss", "accuracy") else key)


def layer_look(number: int, count: int) -> dict[str, Any]:
    """Depth as colour: early layers dark, late layers bright."""
    return dict(
        color=plt.get_cmap(style.HEAT)(0.92 * number / max(count - 1, 1)), linewidth=1.3, marker="o", markersize=2
    )


def label_layers(ax: Axes, names: list[str]) -> None:
    """A legend while the layers are few; else the first, the last, and the one that ends highest."""
    short = [style.plain(name.partition("/")[2]) for name in names]
    lines = ax.get_lines()
    chosen = list(range(len(short)))
    if len(short) > 6:
        ends = np.nan_to_num([np.asarray(line.get_ydata())[-1] for line in lines], nan=-np.inf)
        chosen = sorted({0, int(np.argmax(ends)), len(short) - 1})
    ax.legend(
        [lines[i] for i in chosen],
        [short[i] for i in chosen],
        fontsize=9,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        borderaxespad=0,
    )
