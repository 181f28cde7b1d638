"""``python -m spikformer_edu.benchmark``: throughput and memory, ours beside the peers that are installed."""

import importlib.metadata
import os
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import cli
from .atomic import write_file, write_json
from .benchmarks.measure import SWEEPS, Comparison, Result, measure, sweep
from .benchmarks.peers import CHANGES, PEERS, SHAPES, Case, case_of, split_name, usual_peers
from .errors import SpikformerError, nearest
from .provenance import provenance
from .table import Table
from .training import choose_device
from .training.memory import keep_freed_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRECISIONS = ("fp32", "bf16")
AXES = {"time_steps": "time steps T", "batch": "batch B", "tokens": "tokens N", "dim": "width D"}
NOTES = (
    "train: forward, backward and AdamW; eval: forward without gradients; random input, nothing read from disk",
    "peers take turns, and ratios are medians of the ratios round by round; above 1 is slower than the reference",
    "GFLOP counts matrix products and convolutions, two operations a multiply-accumulate, neurons not at all",
    "share: of the faster of a large matrix product and a large convolution, timed in the same rounds",
    "GB: an estimate, as if every operator and every Triton kernel moved each of its inputs and outputs once",
    "MB: peak of the bytes of all tensors in a step, weights and optimizer included; on a GPU what PyTorch allocated",
)


@dataclass(frozen=True)
class Options:
    shapes: tuple[str, ...] = ("cifar",)
    """cifar, dvs, imagenet, imagenet-768 (the paper's cifar10-4-384, cifar10dvs-2-256, imagenet-8-512 and
    imagenet-8-768), cifar-t1 (cifar at T = 1), toy (to try the command)."""
    precisions: tuple[str, ...] = PRECISIONS
    """fp32, bf16 (autocast)."""
    peers: tuple[str, ...] | None = None
    """Any of ours, snntorch, spikingjelly, spikingjelly-torch, spikingjelly-triton, vit; else what suits the device.
    +channels_last, +compile and, on a GPU, +graph change one: vit+channels_last+compile.
    On a GPU ours is a CUDA graph; ours+eager goes without it, ours+plain without the fused operations too."""
    rounds: int = 7
    """Number of turns of each peer."""
    batch_size: int | None = None
    """Samples a step; each shape has its own, one for a CPU and one for a GPU."""
    sweep: str | None = None
    """How cost grows with time_steps, batch, tokens or dim, from the first shape, instead of one point.
    The batch goes from a quarter of --batch-size to four times as much; what does not fit is named."""
    threads: int | None = None
    """CPU threads; PyTorch's choice unless given."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    out: Path | None = None
    """JSON file for every time measured, with machine, versions, commit and command."""
    plot: Path | None = None
    """PNG file for a figure."""


def main(options: Options) -> None:
    """Measure a training step, a forward pass and peak memory of this package and of its peers, side by side."""
    keep_freed_memory()  # as training does
    check(options)
    device = choose_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    about = describe(options, device)
    print(f"{about['device']}, CPU threads: {about['threads']}, torch {about['torch']}")
    tables: list[Comparison] = []
    for run in runs(options, device):
        tables += run
        for part in run:
            print(f"\n{show(part)}", flush=True)
        if options.out is not None:
            write_json(options.out, {"provenance": about, "notes": NOTES, "tables": [to_dict(t) for t in tables]})
    print("\n" + "\n".join(f"{name}: {text}" for name, text in about["peers"].items()))
    print("\n" + ".\n".join(NOTES) + ".")
    measured = [part for part in tables if part.results]
    if not measured:
        reasons = dict.fromkeys(f"{name} ({reason})" for part in tables for name, reason in part.skipped.items())
        raise SpikformerError(f"nothing was measured, give other --peers: skipped {', '.join(reasons)}")
    if options.plot is not None:
        fig = draw(measured, f"{about['device']}, CPU threads: {about['threads']}")
        write_file(options.plot, lambda file: fig.savefig(file, format="png", dpi=150))


def check(options: Options) -> None:
    """Check the options before anything takes minutes.

    Args:
        options: options of the command.

    Raises:
        SpikformerError: an unknown name, a number out of range, a file that could not be written.
    """
    for kind, names, known in (("shape", options.shapes, SHAPES), ("precision", options.precisions, PRECISIONS)):
        for name in names:
            if name not in known:
                raise SpikformerError(f"unknown {kind} {name!r}: {nearest(name, known)}")
    for name in options.peers or ():
        split_name(name)
    for kind in ("shapes", "precisions", "peers"):
        if getattr(options, kind) == ():
            raise SpikformerError(f"--{kind} names none: give at least one")
    if options.sweep not in (None, *SWEEPS):
        raise SpikformerError(f"unknown sweep {options.sweep!r}: {nearest(options.sweep, SWEEPS)}")
    for name in ("rounds", "batch_size", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise SpikformerError(f"{name}={value}: give at least 1")
    for path in filter(None, (options.out, options.plot)):
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise SpikformerError(f"cannot write {path}: give a file in a folder that can be written")


def describe(options: Options, device: torch.device) -> dict[str, Any]:
    """Where and how it was measured."""
    try:
        spikingjelly = importlib.metadata.version("spikingjelly")
    except importlib.metadata.PackageNotFoundError:
        spikingjelly = None
    names = options.peers or usual_peers(device)
    peers = {base: PEERS[base].about for base in dict.fromkeys(split_name(name)[0] for name in names)}
    changes = {f"+{c}": CHANGES[c] for name in names for c in split_name(name)[1]}
    if spikingjelly and "spikingjelly" in peers and device.type in ("cpu", "cuda"):
        from spikingjelly.activation_based.functional import neuron_implementation

        peers["spikingjelly"] += f": {neuron_implementation('lif', device)['implementation']}"
    return provenance(device) | {
        "command": " ".join(["python", "-m", "spikformer_edu.benchmark", *sys.argv[1:]]),
        "spikingjelly": spikingjelly,
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        "peers": peers | changes,
    }


def runs(options: Options, device: torch.device) -> Iterable[list[Comparison]]:
    """The measurements that were asked for, one shape and precision at a time."""
    peers = options.peers or usual_peers(device)
    cases: dict[str, Case] = {name: case_of(name, options.batch_size, device) for name in options.shapes}
    for precision in options.precisions:
        if options.sweep is not None:
            case = cases[options.shapes[0]]
            yield sweep(options.sweep, case, peers, precision, device, options.rounds)
            continue
        for name, case in cases.items():
            entries = [(peer, None, case) for peer in peers]
            title = f"{name}, T = {case.config.time_steps}"
            yield [measure(entries, title, precision, device, options.rounds)]


def to_dict(part: Comparison) -> dict[str, Any]:
    content = asdict(part)
    for result, line in zip(part.results, content["results"], strict=True):
        line["median"] = result.median
    return content


def label_of(result: Result) -> str:
    """The name of a peer in tables and figures; the one without time is marked, since it does less work."""
    return result.peer + (" (T = 1)" if result.peer.startswith("vit") else "")


def show(part: Comparison) -> str:
    """A table as text."""

    def number(value: float | None, digits: str = ".2f") -> str:
        return "" if value is None else format(value, digits)

    header = ("peer", "mode", "ms", "min", "max", "samples/s", "/ ours", "/ SpikingJelly", "GFLOP", "share", "GB", "MB")
    rows = []
    for r in sorted(part.results, key=lambda r: (r.mode != "train", r.point or 0)):
        label = label_of(r) if r.point is None else f"{label_of(r)}, {r.point}"
        times = [f"{1000 * t:.1f}" for t in (r.median, min(r.seconds), max(r.seconds))]
        rates = [f"{r.batch / r.median:.1f}", number(r.to_ours), number(r.to_spikingjelly)]
        share = "" if r.share is None else f"{100 * r.share:.0f} %"
        work = [number(r.flops / 1e9, ".3g"), share, number(r.traffic and r.traffic / 1e9, ".3g")]
        rows.append([label, r.mode, *times, *rates, *work, number(r.memory and r.memory / 2**20, ".0f")])
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    text = str(Table([header[i] for i in used], [[row[i] for i in used] for row in rows], "llr"))
    best = {name: statistics.median(values) / 1e9 for name, values in part.rates.items()}
    machine = "matmul {matmul:.0f} GFLOP/s, convolution {conv:.0f} GFLOP/s, copy {copy:.1f} GB/s".format(**best)
    sizes = {(r.batch, r.tokens) for r in part.results}
    where = ", B = {}, {} tokens".format(*sizes.pop()) if len(sizes) == 1 else ""
    lines = [f"{part.title}{where}, {part.precision}; in the same rounds: {machine}", text]
    return "\n".join(lines + [f"skipped {name}: {reason}" for name, reason in part.skipped.items()])


def draw(tables: list[Comparison], where: str) -> "Figure":
    """A figure of all tables: bars for single points, curves for a sweep."""
    from .plot import style

    return style.styled(_draw_sweep if tables[0].title in (*SWEEPS, "orders") else _draw_points)(tables, where)


def _draw_points(tables: list[Comparison], where: str) -> "Figure":
    """Time of a step, median and range, a panel for each shape and mode, a bar for each peer and precision."""
    import matplotlib.pyplot as plt

    from .plot import style

    looks = {"ours": style.Q, "snntorch": "#8FBFDC", "spikingjelly": style.MEMBRANE, "vit": style.GREY}
    titles = list(dict.fromkeys(t.title for t in tables))
    longest = max(len(t.results) // 2 for t in tables) * len({t.precision for t in tables})
    fig, axes = plt.subplots(len(titles), 2, squeeze=False, figsize=(11, (1.2 + 0.3 * longest) * len(titles)))
    for row, title in zip(axes, titles, strict=True):
        for ax, mode in zip(row, ("train", "eval"), strict=True):
            labels: list[str] = []
            for part in (t for t in tables if t.title == title):
                for r in (r for r in part.results if r.mode == mode):
                    y, ms = len(labels), [1000 * t for t in r.seconds]
                    color = next(c for name, c in looks.items() if r.peer.startswith(name))
                    middle = 1000 * r.median
                    hatch = "////" if part.precision == "bf16" else None
                    ax.barh(y, middle, color=color, edgecolor="white", hatch=hatch, height=0.75)
                    ax.plot([min(ms), max(ms)], [y, y], color="black", linewidth=1)
                    ratio = "" if r.to_ours is None else f"  {r.to_ours:.2f}"
                    ax.text(max(ms), y, ratio, va="center", fontsize=9)
                    labels.append(f"{label_of(r)}, {part.precision}")
            ax.set_yticks(range(len(labels)), labels if mode == "train" else [""] * len(labels))
            ax.invert_yaxis()
            ax.set_xlim(0, 1.15 * ax.get_xlim()[1])
            ax.set_xlabel("ms a step: median, and line from least to most")
            ax.set_title(f"{title}, B = {part.results[0].batch}, {mode}")
    fig.supxlabel(f"number: time divided by that of `ours` at the same precision. {where}", fontsize=9)
    return fig


def _draw_sweep(tables: list[Comparison], where: str) -> "Figure":
    """Time and memory of a training step against what the sweep varies, a row for each table."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    from .plot import style

    colors = [style.Q, style.MEMBRANE, style.V, style.K, style.GRADIENT, style.GREY, style.SPIKE]
    fig, axes = plt.subplots(len(tables), 2, squeeze=False, figsize=(11, 3.8 * len(tables)))
    for row, part in zip(axes, tables, strict=True):
        orders = part.title == "orders"
        train = [r for r in part.results if r.mode == "train"]
        points = sorted({r.point for r in train if r.point is not None})
        for i, peer in enumerate(dict.fromkeys(r.peer for r in train)):
            line = [r for r in train if r.peer == peer]
            look = dict(color=colors[i % len(colors)], marker="os^Dv<>"[i % 7], label=f"${peer}$" if orders else peer)
            row[0].plot([r.point for r in line], [1000 * r.median for r in line], **look)
            if kept := {r.point: r.memory / 2**20 for r in line if r.memory}:
                row[1].plot(list(kept), list(kept.values()), **look)
        what = "product of attention, forward and backward, B = 1" if orders else f"training step, B = {train[0].batch}"
        for ax, label in zip(row, ("ms", "peak memory, MB"), strict=True):
            ax.set(xscale="log", yscale="log", ylabel=label)
            ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
            ax.set_xlabel(AXES["tokens" if orders else part.title])
            ax.set_xticks(points, [str(p) for p in points])
            ax.minorticks_off()
            ax.set_title(f"{what if part.title != 'batch' else 'training step'}, {part.precision}")
        row[0].legend()
    fig.supxlabel(f"medians. {where}", fontsize=9)
    return fig


if __name__ == "__main__":
    cli.run(main, "python -m spikformer_edu.benchmark")
