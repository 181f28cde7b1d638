"""Every picture and every table of numbers in these pages, made from the package: ``python docs/figures.py``.

Pictures go to ``docs/images/``, and maps of the network, one a chapter, to ``docs/images/network_map/``. Tables
replace what is between ``<!-- table NAME -->`` and ``<!-- end -->`` in the pages, so that no number in them is typed
by hand. No GPU and no network is needed. (``atlas.png`` and ``attention_over_time.png`` are made by ``make
pretrained``.)
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from torch import Tensor

import spikformer_edu as se
from spikformer_edu.benchmark import draw, label_of
from spikformer_edu.benchmarks.measure import Comparison, Result
from spikformer_edu.data import digits, digits_dvs, digits_motion
from spikformer_edu.data.events import to_frames
from spikformer_edu.data.simulated_camera import simulate
from spikformer_edu.energy import CONVENTIONS
from spikformer_edu.paper_audit import audit_ann, audit_ann_rest, audit_paper
from spikformer_edu.plot import style
from spikformer_edu.plot.attention import draw_image, draw_map
from spikformer_edu.plot.events import picture_of
from spikformer_edu.plot.layers import draw_raster
from spikformer_edu.plot.training import read_log
from spikformer_edu.presets import PRESETS
from spikformer_edu.record import Recording
from spikformer_edu.table import Table
from spikformer_edu.training import RECIPES
from spikformer_edu.training.checkpoint import PRETRAINED

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
ON_CPU = DOCS / "results" / "benchmark_cpu.json"
ON_CPU_AMD = DOCS / "results" / "benchmark_cpu_amd.json"
ON_GPU = DOCS / "results" / "benchmark_h100.json"
IMAGENET_ON_GPU = DOCS / "results" / "benchmark_h100_imagenet.json"
SPEEDRUN = DOCS / "results" / "speedrun.json"
SHORT_RECIPE = DOCS / "results" / "short_recipe.json"
EXPORTED = DOCS / "results" / "export.json"
FAST = DOCS / "results" / "fast_path_h100.json"
EVENTS = DOCS / "results" / "events.json"
MOTION = DOCS / "results" / "motion.json"
SEVENS = DOCS / "results" / "plain_sevens.json"
MOTION_NETWORK = PRETRAINED / "digits-motion-2-64"
DVS_NETWORK = PRETRAINED / "digits-dvs-2-64"
CIFAR10 = DOCS / "results" / "cifar10-2-128.json"
CIFAR10_PAPER = DOCS / "results" / "cifar10-4-384.json"
CIFAR10_FIRST = DOCS / "results" / "cifar10-2-128-t1"  # the run at T = 1, from which the packaged one started
CIFAR10_SMALL = PRETRAINED / "cifar10-2-128"
FAST_FIRST, FAST_LAST = (DOCS / "results" / f"cifar10-fast-t{steps}" for steps in (1, 4))
PAPER_FIRST = DOCS / "results" / "cifar10-4-384-t1"  # the same for the paper's network
PAPER = PRETRAINED / "cifar10-4-384"
CAT = DOCS / "assets" / "cat.png"  # a photograph that may be shared: no image of CIFAR-10 is in these pages
MODEL = "digits-2-64"  # the packaged network
EYE = 29  # token of the photograph: row 3, column 5
SAMPLES = 16  # test digits that it is shown
DPI = 120
PARTS = {  # layers that are drawn as one line
    "first layer, sps.0": ["sps.0"],
    "other layers of SPS": ["sps.1", "sps.2", "sps.3", "sps.rpe"],
    "attention": [f"blocks.{i}.attn.{name}" for i in range(4) for name in ("q", "k", "v", "attn", "proj")],
    "MLP": [f"blocks.{i}.mlp.{name}" for i in range(4) for name in ("hidden", "out")],
}


# Pictures ----------------------------------------------------------------------------------------------------------


def network() -> tuple[se.Spikformer, Tensor]:
    """The packaged network, and the first test digits ``[B, 1, 32, 32]``."""
    return se.load_pretrained(MODEL), se.data.load("digits").test.fetch(torch.arange(SAMPLES), None)[0]


def concept_neuron() -> Figure:
    """Input that never reaches the threshold, leak, one exact tie, strong input."""
    current = [0.9] * 5 + [0.0] * 3 + [1.55] * 4 + [0.0] * 2 + [2.0] + [0.0] * 2 + [3.0] * 3
    fig, _ = se.plot.neuron(current, title="one LIF neuron, tau = 2")
    return fig


def concept_surrogate() -> Figure:
    model, images = network()
    with torch.no_grad(), se.record(model, membranes=True) as rec:
        model(images)
    fig, _ = se.plot.landscape({name: rec[name] for name in ("blocks.0.attn.attn", "blocks.1.attn.attn")})
    return fig


def concept_sps() -> Figure:
    """Where each stage of SPS fires: the share of its channels that spike at each place, step by step."""
    model, images = network()
    names = [f"sps.{i}" for i in range(4)] + ["sps.rpe"]
    with torch.no_grad(), se.record(model, layers=names) as rec:
        model(images)
    steps, sample = model.config.time_steps, 3
    with plt.rc_context(style.RC):
        fig, axes = plt.subplots(
            len(names), steps + 1, figsize=(8.2, 7.4), width_ratios=[0.85, *[1] * steps], layout="compressed"
        )
        for row, name in zip(axes, names, strict=True):
            spikes = rec[name].spikes[:, sample]  # [T, C, H, W]
            channels, height, width = spikes.shape[1:]
            for t, ax in enumerate(row[1:]):
                shown = ax.imshow(spikes[t].mean(0).numpy(), cmap="Greys", vmin=0, vmax=0.5)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set(visible=True, color=style.LIGHT)
                if name == names[0]:
                    ax.set_title(f"t = {t}", loc="center", fontsize=11)
            row[0].axis("off")
            label = f"{name}\n{channels} channels\n{height} x {width}\nfires: {100 * spikes.mean():.1f} %"
            row[0].text(0.95, 0.5, label, ha="right", va="center", transform=row[0].transAxes, fontsize=11)
        fig.suptitle(f"spiking patch splitting of one digit, T = {steps}", fontsize=13)
        fig.colorbar(shown, ax=axes, label="share of channels that spike", shrink=0.5, pad=0.02)
    return fig


def concept_ssa() -> Figure:
    random = torch.Generator().manual_seed(3)
    q, k, v = (torch.bernoulli(torch.full((4, 8, 8), rate), generator=random) for rate in (0.3, 0.35, 0.35))
    fig, _ = se.plot.ssa(q, k, v)
    return fig


def concept_encoder() -> Figure:
    model, images = network()
    blocks = [name for name in se.layer_names(model) if name.startswith("blocks")]
    with torch.no_grad(), se.record(model, layers=blocks) as rec:
        model(images)
    fig, _ = se.plot.value_sets(rec, images)
    return fig


def concept_energy() -> Figure:
    fig, _ = se.plot.energy(se.energy(*network()))
    return fig


def guide_events() -> Figure:
    pictures, _ = digits_dvs.images()
    (recording,) = simulate(pictures[:1], [0])
    fig, _ = se.plot.events(recording, title="a moving digit, simulated")
    return fig


def guide_frames() -> Figure:
    """A recording whose second half is slow: frames of equal count, frames of equal time, and where they are cut."""
    pictures, _ = digits_dvs.images()
    (recording,) = simulate(pictures[3:4], [0], loops=2, noise=0.1)
    t = recording["t"].astype(float) / recording["t"].max()
    recording["t"] = 1000 * np.where(t < 0.5, 200 * t, 100 + 1400 * (t - 0.5))  # half of it takes seven times as long
    steps, last = 8, recording["t"].max() / 1000
    cuts = {"count": recording["t"][np.arange(1, steps) * (len(recording) // steps)] / 1000}
    cuts["time"] = np.arange(1, steps) * last / steps
    fig = plt.figure(figsize=(10, 4.6), layout="constrained")
    rows = fig.add_gridspec(3, steps, height_ratios=[1.5, 1, 1])
    rate = fig.add_subplot(rows[0, :])
    rate.hist(recording["t"] / 1000, bins=120, color=style.LIGHT)
    rate.set(xlabel="time (ms)", ylabel="events", xlim=(0, last), yticks=[])
    for by, color, high in (("count", style.Q, 1.0), ("time", style.K, 0.5)):
        for number, cut in enumerate(cuts[by]):
            rate.axvline(cut, ymax=high, color=color, label=f"cuts of equal {by}" if number == 0 else None)
    rate.legend(loc="upper right")
    for row, (by, color) in enumerate((("count", style.Q), ("time", style.K)), 1):
        frames = to_frames(recording, steps, 32, by=by)
        bright = np.quantile(frames[frames > 0], 0.95)
        for i in range(steps):
            panel = fig.add_subplot(rows[row, i])
            panel.imshow(frames[i].sum(0), cmap="Greys", vmin=0, vmax=2 * bright)
            panel.set(xticks=[], yticks=[], xlabel=f"{frames[i].sum():,}")
            if i == 0:
                panel.set_ylabel(f"equal {by}", color=color)
    fig.suptitle(f"a moving digit, simulated: T = {steps} frames and their events", x=0.01, ha="left", fontsize=12)
    return fig


def guide_motion() -> Figure:
    """One test digit, both ways: frames, spikes and membranes of a layer, and the answer, over all steps."""
    model, layer = se.load_pretrained("digits-motion-2-64"), "blocks.1.mlp.out"
    pictures, targets = digits_dvs.images()
    number = digits.split(targets, None, None)[2][0]
    size, steps = digits_motion.INFO.image_size, model.config.time_steps
    ways = digits_motion.INFO.classes
    recordings = [digits_motion.record(pictures[[number]], [number], way == "clockwise", size)[0] for way in ways]
    frames = np.stack([to_frames(recording, steps, size, size) for recording in recordings], 1)  # [T, 2, 2, H, W]
    with torch.no_grad(), se.record(model, layers=[layer], membranes=True) as rec:
        model(torch.from_numpy(frames).float())
    spikes = rec[layer].spikes  # [T, 2, N, D]
    fired = spikes.sum(0).flatten(1)  # [2, neurons]
    neuron = int((fired[0] - fired[1]).abs().argmax())  # the one that tells the two ways apart best
    answer = (rec.logits.cumsum(0) / torch.arange(1, steps + 1)[:, None, None]).softmax(2)  # [T, 2, K]
    bright = float(np.quantile(frames[frames > 0], 0.95))
    with plt.rc_context(style.RC):
        fig = plt.figure(figsize=(10, 7.8), layout="constrained")
        halves = fig.subfigures(2, 2, height_ratios=[0.8, 5])
        for column, way in enumerate(ways):
            for t, panel in enumerate(halves[0, column].subplots(1, steps)):
                panel.imshow(picture_of(frames[t, column], bright))
                panel.set(xticks=[], yticks=[], xlabel=f"{t}")
                panel.spines[:].set(visible=True, color=style.LIGHT)
            halves[0, column].suptitle(f"{way}: frames t = 0 to {steps - 1}", x=0.02, ha="left", fontsize=11)
            raster, potential, said = halves[1, column].subplots(3, 1, height_ratios=[1.5, 1.1, 1.1])
            shown = draw_raster(raster, spikes[:, column].flatten(1).numpy(), 64)
            style.time_axis(raster, steps, label=False)
            raster.set_title(f"{layer}: spikes of {shown} of {fired.shape[1]:,} neurons, T = {steps}", fontsize=11)
            raster.set_ylabel("neuron")
            se.plot.membrane(rec[layer], ax=potential, neuron=neuron, sample=column)
            potential.set_ylabel("H")
            potential.set_title(f"{layer}: membrane of neuron {neuron}, T = {steps}", fontsize=11)
            for k, (name, color) in enumerate(zip(ways, (style.Q, style.K), strict=True)):
                said.plot(answer[:, column, k], "o-", color=color, label=name)
            said.set(ylim=(-0.05, 1.05), ylabel="probability")
            said.set_title("answer up to step t: softmax of the mean logits", fontsize=11)
            style.time_axis(said, steps)
            said.legend(loc="center right", fontsize=9)
        fig.suptitle(
            f"a {targets[number]} that goes round, simulated; digits-motion-2-64", x=0.01, ha="left", fontsize=12
        )
    return fig


@cache
def cat() -> tuple[Tensor, Recording]:
    """A photograph ``[3, 32, 32]``, and the paper's network with T = 8 as it looks at it.

    In float64: there no membrane is so near its threshold that another processor's rounding makes another spike.
    """
    facts = se.data.info("cifar10")
    mean, std = (torch.tensor(numbers, dtype=torch.float64).view(3, 1, 1) for numbers in (facts.mean, facts.std))
    pixels = torch.from_numpy(np.array(Image.open(CAT))).double().permute(2, 0, 1) / 255
    image = (pixels - mean) / std
    model = se.load_pretrained("cifar10-4-384").double()
    with torch.no_grad(), se.record(model, membranes=True, compact=True) as rec:
        logits = model(image.expand(8, 1, 3, 32, 32))
    assert facts.classes[int(logits.argmax())] == "cat"
    return image, rec


def results_attention() -> Figure:
    """Where the token on an eye looks in each block, and where all tokens look: mean of heads and four steps."""
    image, rec = cat()
    maps = torch.stack([rec[f"blocks.{i}.attn.scores"].values[:4, 0].mean((0, 1)) for i in range(4)])  # [L, N, N]
    with plt.rc_context(style.RC):
        fig, axes = plt.subplots(2, 5, figsize=(8.2, 3.9), layout="compressed")
        for row, query, name in zip(axes, (EYE, None), ("query: the eye", "mean over queries"), strict=True):
            received = maps.mean(1) if query is None else maps[:, query]  # [L, N]
            draw_image(row[0], image, 8, 8, query)
            row[0].set_ylabel(name)
            limits = (0.0, float(received.max()))
            for block, ax in enumerate(row[1:]):
                drawn = draw_map(ax, received[block].view(8, 8).numpy(), image, query=query, limits=limits)
                ax.set_title(f"block {block}" if query is not None else "", loc="center", fontsize=11)
            fig.colorbar(drawn, ax=row, label="$Q K^T s$")
        axes[0, 0].set_title("input", loc="center", fontsize=11)
        fig.suptitle("cifar10-4-384: scores, mean over 12 heads, T = 4", fontsize=12)
    return fig


def results_landscape() -> Figure:
    _, rec = cat()
    names = [f"blocks.{block}.attn.attn" for block in range(4)]
    fig, _ = se.plot.landscape({name: rec[name].membrane[:4] for name in names})
    return fig


def results_membranes() -> Figure:
    """Four neurons of four layers, eight steps."""
    _, rec = cat()
    with plt.rc_context(style.RC):
        fig, axes = plt.subplots(2, 2, figsize=(8.2, 5.4), layout="constrained")
        names = ("sps.rpe", "blocks.0.attn.q", "blocks.0.attn.attn", "blocks.3.mlp.hidden")
        for ax, name in zip(axes.flat, names, strict=True):
            se.plot.membrane(rec[name], ax=ax)
            ax.set_title(ax.get_title("left"), fontsize=10)
    return fig


def results_training() -> Figure:
    fig, _ = se.plot.training(PRETRAINED / MODEL, title=f"{MODEL}, the packaged run")
    return fig


def results_cifar10() -> Figure:
    """Both runs in a row."""
    first, then = (read_log(folder)[0] for folder in (CIFAR10_FIRST, CIFAR10_SMALL))
    rows = [row | {"epoch": number} for number, row in enumerate([*first, *then], 1)]
    fig, axes = se.plot.training(rows, title=f"cifar10-2-128: {len(first)} epochs at T = 1, {len(then)} at T = 4")
    for ax in axes:
        ax.axvline(len(first) + 0.5, color=style.LIGHT, zorder=0)
    return fig


def results_time_steps() -> Figure:
    """Accuracy by T, and the firing rate of parts of the network in each step."""
    found = json.loads(CIFAR10_PAPER.read_text())
    rates = found["rates_by_step"]
    steps = range(1, len(next(iter(rates.values()))) + 1)
    with plt.rc_context(style.RC):
        fig, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.4), layout="constrained")
        percent = [100 * row["correct"] / row["total"] for row in found["accuracy"]]
        left.plot(steps, percent, "o-", color=style.SPIKE)
        left.set(xlabel="time steps T", ylabel="accuracy, %", xticks=steps)
        left.set_title(f"cifar10-4-384, {found['accuracy'][0]['total']:,} test images")
        looks = (("-", style.SPIKE), ("--", style.GREY), (":", style.Q), ("-.", style.MEMBRANE))
        for (name, layers), (line, color) in zip(PARTS.items(), looks, strict=True):
            mean = 100 * np.mean([rates[layer] for layer in layers], axis=0)
            right.plot(range(len(mean)), mean, line, color=color, marker="o", markersize=4, label=name)
        right.set(xlabel="time step t", ylabel="neurons that fire, %", ylim=(0, None))
        right.set_title("firing rate in each step, T = 8")
        fig.legend(loc="outside lower center", ncols=4)
    return fig


def results_motion() -> Figure:
    """Test accuracy of every run by T, and of the sum of all frames."""
    scores = {name: 100 * np.array(found) for name, found in json.loads(MOTION.read_text())["accuracy"].items()}
    steps = [int(name) for name in scores if name.isdigit()]
    with plt.rc_context(style.RC):
        fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        ax.axhline(50, color=style.GREY, linestyle=":", label="chance")
        ax.plot(steps, [scores[str(t)].mean() for t in steps], "-", color=style.Q, label="T frames in order, mean")
        for t in steps:
            ax.plot([t] * len(scores[str(t)]), scores[str(t)], "o", color=style.Q, markersize=5)
        summed = scores["the sum, 8 times"]
        ax.plot([8] * len(summed), summed, "s", color=style.K, markersize=6, label="the sum of all frames, 8 times")
        ax.set_xscale("log", base=2)
        ax.set(xlabel="time steps T", ylabel="test accuracy, %", ylim=(40, 102))
        ax.set_xticks(steps, map(str, steps))
        ax.set_title("which way a digit goes round (simulated), three seeds")
        ax.legend(loc="upper left", fontsize=10)
    return fig


def results_benchmark() -> Figure:
    about = benchmark(ON_CPU)["provenance"]
    return draw(measured(ON_CPU), f"{about['device']}, CPU threads: {about['threads']}")


PICTURES: dict[str, Callable[[], Figure]] = {
    f"{make.__name__}.png": make
    for make in (
        concept_neuron,
        concept_surrogate,
        concept_sps,
        concept_ssa,
        concept_encoder,
        concept_energy,
        guide_events,
        guide_frames,
        guide_motion,
        results_training,
        results_time_steps,
        results_attention,
        results_membranes,
        results_landscape,
        results_cifar10,
        results_motion,
        results_benchmark,
    )
}


# Maps of the network, one a chapter -----------------------------------------------------------------------------------

INK, FAINT, EDGE, BLANK = "#26323C", "#66707A", "#C4CAD0", "#F3F4F6"  # text, text elsewhere, outline, box elsewhere
HERE, TINT = "#A85C00", "#FFF0D0"  # the chapter's part
BOXES = {  # part: left, top, width, height, its colour, first line, second line
    "sps": (88, 42, 92, 44, HERE, "SPS", "image to tokens"),
    "block": (212, 42, 128, 44, HERE, "encoder block", "L of them in a row"),
    "head": (372, 42, 84, 44, HERE, "head", "mean, linear"),
    "answer": (488, 42, 98, 44, HERE, "answer", "one score a class"),
    "q": (56, 162, 30, 24, style.Q, "Q", ""),
    "k": (56, 194, 30, 24, style.K, "K", ""),
    "v": (56, 226, 30, 24, style.V, "V", ""),
    "ssa": (116, 184, 78, 44, HERE, "attention", "Q Kᵀ V · s"),
    "linear": (214, 192, 50, 28, HERE, "linear", ""),
    "mlp": (318, 192, 50, 28, HERE, "MLP", ""),
}
BLOCK = ["block", "q", "k", "v", "ssa", "linear", "residual", "mlp"]
WHOLE = ["image", "sps", *BLOCK, "head", "answer", "neuron"]
MAPS = {  # chapter: what it is about, the parts of the network
    "00": ("the whole network, at work", WHOLE),
    "01": ("one neuron", ["neuron"]),
    "02": ("how neurons learn: the gradient", ["neuron", "gradient"]),
    "03": ("from image to spikes", ["image", "sps"]),
    "04": ("attention, first with softmax", ["q", "k", "v", "ssa"]),
    "05": ("spiking self-attention", ["q", "k", "v", "ssa"]),
    "06": ("the encoder block", BLOCK),
    "07": ("the whole network, assembled", WHOLE),
    "08": ("the whole network, trained", [*WHOLE, "gradient"]),
    "09": ("the attention map, exchanged", ["ssa"]),
    "10": ("the operations of every layer", WHOLE),
    "11": ("the input: events in place of an image", ["image"]),
    "12": ("the whole network, large", [*WHOLE, "gradient"]),
    "13": ("attention, newer kinds", ["q", "k", "v", "ssa"]),
}


def network_map(chapter: str) -> str:
    """The network from image to answer as SVG, with the part that a chapter is about in colour."""
    about, here = MAPS[chapter]

    def text(x: float, y: float, words: str, color: str, size: int = 13, anchor: str = "middle") -> str:
        return f'<text x="{x}" y="{y}" fill="{color}" font-size="{size}" text-anchor="{anchor}">{words}</text>'

    def color_of(part: str, color: str = HERE) -> str:
        return color if part in here else EDGE

    def line(path: str, part: str, color: str = INK, dashes: str = "none", tip: bool = True) -> str:
        end = f' marker-end="url(#{"tip" if part in here else "faint"})"' if tip else ""
        stroke = f'stroke="{color_of(part, color)}" stroke-width="1.6" stroke-dasharray="{dashes}"'
        return f'<path d="{path}" {stroke} fill="none"{end}/>'

    drawn = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 272" width="600" height="272" '
        'font-family="Helvetica, Arial, sans-serif" role="img">',
        f"<title>The network, from image to answer. This chapter: {about}</title>",
        *(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{color}"/></marker>'
            for name, color in (("tip", INK), ("faint", EDGE))
        ),
        f'<rect x=".5" y=".5" width="599" height="271" rx="8" fill="#FFFFFF" stroke="{EDGE}"/>',
        f'<path d="M20 27c-3-5-5-7-5-10a5 5 0 0 1 10 0c0 3-2 5-5 10z" fill="{HERE}"/><circle cx="20" cy="17" r="1.8" '
        'fill="#FFFFFF"/>',
        text(32, 24, f"you are here: <tspan font-weight='600'>{about}</tspan>", INK, 14, "start"),
    ]
    # the whole network
    pixels = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0], [0, 1, 1, 1]]).nonzero().tolist()
    drawn.append(
        f'<rect x="16" y="44" width="40" height="40" fill="{TINT if "image" in here else BLANK}" '
        f'stroke="{color_of("image")}" stroke-width="1.6"/>'
    )
    drawn += [
        f'<rect x="{18 + 9 * x}" y="{46 + 9 * y}" width="9" height="9" fill="{color_of("image", INK)}"/>'
        for y, x in pixels
    ]
    drawn.append(text(36, 99, "image", INK if "image" in here else FAINT, 12))
    for start, end in ((58, 86), (182, 210), (342, 370), (458, 486)):
        drawn.append(line(f"M{start} 64H{end}", "head"))
    drawn.append(line("M537 90V108H134V90", "gradient", style.GRADIENT, "5 3"))
    drawn.append(text(440, 121, "gradient", style.GRADIENT if "gradient" in here else FAINT, 12))
    # one block of it, and one of its neurons
    drawn.append(
        f'<path d="M212 86L14 128M340 86L412 128" stroke="{EDGE}" stroke-dasharray="2 3"/>'
        f'<rect x="14" y="128" width="398" height="132" rx="6" fill="none" stroke="{color_of("residual")}"/>'
        f'<rect x="428" y="128" width="158" height="132" rx="6" fill="{TINT if "neuron" in here else "none"}" '
        f'stroke="{color_of("neuron")}"/>'
    )
    drawn.append(text(22, 143, "one encoder block", INK if "residual" in here else FAINT, 12, "start"))
    drawn += [line(f"M32 206V{y}H54", letter) for letter, y in (("q", 174), ("k", 206), ("v", 238))]
    drawn += [line(f"M86 {y}H100V206H114", "ssa") for y in (174, 206, 238)]
    drawn += [line(f"M{a} 206H{b}", "residual") for a, b in ((18, 32), (194, 212), (264, 280), (298, 316), (368, 382))]
    drawn += [
        line("M400 206H410", "residual"),
        line("M32 206V152H289V195", "residual"),
        line("M306 206V152H391V195", "residual"),
    ]
    for x in (289, 391):
        drawn.append(
            f'<circle cx="{x}" cy="206" r="9" fill="#FFFFFF" stroke="{color_of("residual", INK)}" stroke-width="1.6"/>'
        )
        drawn.append(line(f"M{x - 5} 206h10m-5 -5v10", "residual", tip=False))
    for part, (x, y, width, height, color, first, second) in BOXES.items():
        fill = BLANK if part not in here else TINT if color == HERE else color
        letter = FAINT if part not in here else INK if color == HERE else "#FFFFFF"
        stroke = color_of(part, color)
        drawn.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="1.6"/>'
        )
        middle, y = x + width / 2, y + height / 2
        drawn.append(text(middle, y - 3 if second else y + 4.5, f"<tspan font-weight='600'>{first}</tspan>", letter))
        if second:
            drawn.append(text(middle, y + 14, second, letter, 11))
        if part not in ("block", "head", "answer"):  # spikes come out of it
            drawn.append(
                f'<circle cx="{x + width}" cy="{y}" r="4" fill="{style.MEMBRANE if "neuron" in here else "#FFFFFF"}" '
                f'stroke="{color_of("neuron", INK)}" stroke-width="1.4"/>'
            )
    drawn += neuron_of_map("neuron" in here, text)
    return "\n".join([*drawn, "</svg>"]) + "\n"


def neuron_of_map(here: bool, text: Callable[..., str]) -> list[str]:
    """The panel of one neuron: the paper's LIF under a constant current, its membrane potential and its spikes."""
    steps, current = 9, 1.2
    neuron, seen = se.LIF(), []
    neuron.on_membranes = seen.append
    spikes = neuron(torch.full((steps,), current)).tolist()
    height = (seen[0] / neuron.tau).tolist()  # H[t]
    x, y = (lambda t: 440 + 15 * t), (lambda h: 220 - 50 * h)
    path = f"M{x(0)} {y(0):.0f}"
    for t, (h, spike) in enumerate(zip(height, spikes, strict=True)):  # up to H, down again where it fires
        path += f"V{y(h):.1f}" + (f"V{y(0):.0f}" if spike else "") + f"H{x(t + 1)}"
    ink, membrane = (INK, style.MEMBRANE) if here else (FAINT, EDGE)
    drawn = [
        text(436, 143, "one spiking neuron, LIF", ink, 12, "start"),
        f'<path d="M{x(0)} {y(1):.0f}H{x(steps)}" stroke="{ink}" stroke-dasharray="4 3"/>',
        text(x(steps), y(1) - 5, "threshold", ink, 11, "end"),
        f'<path d="{path}" stroke="{membrane}" fill="none" stroke-width="1.8"/>',
    ]
    drawn += [f'<path d="M{x(t)} 228v14" stroke="{ink}" stroke-width="2.4"/>' for t, s in enumerate(spikes) if s]
    mark = f'<circle cx="441" cy="251" r="4" fill="{style.MEMBRANE if here else "#FFFFFF"}" stroke="{ink}"/>'
    return [*drawn, mark, text(450, 255, "such neurons are here", ink, 11, "start")]


# Tables ------------------------------------------------------------------------------------------------------------


def benchmark(file: Path) -> dict:
    """A measurement, with where and how it was made."""
    return json.loads(file.read_text())


def measured(file: Path) -> list[Comparison]:
    """The same as the benchmark's own tables."""
    tables = []
    for part in benchmark(file)["tables"]:
        results = [Result(**{key: value for key, value in r.items() if key != "median"}) for r in part["results"]]
        tables.append(Comparison(**part | {"results": results}))
    return tables


def listed(facts: Sequence[tuple[str, str]]) -> str:
    """Facts as a list in Markdown."""
    return "\n".join(f"- {name}: {text}" for name, text in facts)


def recorded(folder: Path) -> str:
    """What a run wrote when it ended."""
    r = json.loads((folder / "results.json").read_text())
    about = json.loads((folder / "config.json").read_text())["provenance"]
    rows = read_log(folder)[0]
    minutes, threads = sum(float(row["seconds"]) for row in rows) / 60, about["threads"]
    chosen = [
        ("weights of", f"epoch {r['best_epoch']} of {r['epochs']}, the last: all training images were trained on")
    ]
    if r["val_accuracy"] is not None:
        chosen = [
            ("weights of", f"epoch {r['best_epoch']} of {r['epochs']}, the one with the lowest validation loss"),
            ("validation accuracy", f"{100 * r['val_accuracy']:.2f} %"),
        ]
    facts = [
        ("test accuracy", f"**{100 * r['accuracy']:.2f} % ({r['correct']:,} of {r['total']:,})**, measured once"),
        ("test loss", f"{r['loss']:.4f} (cross-entropy)"),
        *chosen,
        ("training time", f"{minutes:.1f} minutes"),
        ("on", f"{about['device']}, {threads} thread{'s' if threads > 1 else ''}"),
        ("versions", f"Python {about['python']}, PyTorch {about['torch']}, snnTorch {about['snntorch']}"),
        ("commit", about["commit"]),
    ]
    if not about["command"].startswith("python"):
        return listed([*facts, ("training step", about["command"])])
    return f"{listed(facts)}\n\n```bash\n{today(about['command'])}\n```"


def today(command: str) -> str:
    """A command that was recorded, with the options that it has now."""
    return command.replace("--weights", "--init-from").replace(" --no-memory", "")  # memory is counted in every run


def table_digits() -> str:
    return recorded(PRETRAINED / MODEL)


def table_sevens_first() -> str:
    """The three runs of seed 0, of which the last is packaged, and what they make of drawings."""
    header = ("run", "epochs", "validation, of 180", "test, of 359", "steep sevens, of 30", "ones, of 30")
    return Table(header, [tuple(map(str, run.values())) for run in json.loads(SEVENS.read_text())["seed 0"]]).markdown()


def table_sevens() -> str:
    """Right answers with and without drawn sevens, seed by seed, and the interval of the mean difference."""
    found = json.loads(SEVENS.read_text())
    right = {(run["seed"], run["plain_sevens"]): run for run in found["runs"]}
    seeds = sorted({seed for seed, _ in right})
    rows, differences = [], []
    for seed in seeds:
        real, drawn = right[seed, 0.0], right[seed, 0.3]
        differences.append(drawn["right"] - real["right"])
        row = (real["right"], drawn["right"], f"{differences[-1]:+d}", real["drawn_sevens"], drawn["drawn_sevens"])
        rows.append((f"seed {seed}", *map(str, row)))
    means = [np.mean([right[seed, share]["right"] for seed in seeds]) for share in (0.0, 0.3)]
    rows.append(("mean", *(f"{mean:.1f}" for mean in means), f"{np.mean(differences):+.1f}", "", ""))
    half = stats.t.ppf(0.975, len(seeds) - 1) * np.std(differences, ddof=1) / len(seeds) ** 0.5
    header = ("", "test: real", "test: drawn", "difference", "sevens: real", "sevens: drawn")
    about = found["provenance"]
    return (
        f"{Table(header, rows).markdown()}\n\nThe mean difference is {np.mean(differences):+.1f} ± {half:.1f} digits"
        f" (95 % interval, t distribution). {about['device']}, threads: {about['threads']}, commit"
        f" {about['commit'][:12]}:\n`{about['command']}`."
    )


def table_digits_dvs() -> str:
    return recorded(DVS_NETWORK)


def table_digits_motion() -> str:
    return recorded(MOTION_NETWORK)


def table_motion() -> str:
    """Test accuracy of every run of the motion task, and the mean of each input."""
    found = json.loads(MOTION.read_text())
    rows = []
    for name, accuracy in found["accuracy"].items():
        percent = [100 * share for share in accuracy]
        spread = np.std(percent, ddof=1)
        what = f"T = {name}" if name.isdigit() else f"{name[0].upper()}{name[1:]}"
        rows.append((what, *(f"{p:.1f}" for p in percent), f"{np.mean(percent):.1f}", f"{spread:.1f}"))
    about, *_ = found["provenance"]
    commits = " and ".join(dict.fromkeys(made["commit"][:12] for made in found["provenance"]))
    table = Table(("input", "seed 0", "seed 1", "seed 2", "mean", "std"), rows).markdown()
    where = f"{about['device']}, threads: {about['threads']}, commit {commits}"
    return f"{table}\n\nTest accuracy in %, 718 recordings, chance 50 %. {where}:\n`{about['command']}`."


def table_cifar10_first() -> str:
    return recorded(CIFAR10_FIRST)


def table_cifar10() -> str:
    return recorded(CIFAR10_SMALL)


def table_cifar10_paper_first() -> str:
    return recorded(PAPER_FIRST)


def table_cifar10_paper() -> str:
    return recorded(PAPER)


def table_cifar10_fast_first() -> str:
    return recorded(FAST_FIRST)


def table_cifar10_fast() -> str:
    return recorded(FAST_LAST)


def table_overview() -> str:
    """Every accuracy that was measured, beside the paper's."""
    rows = []
    for folder in (
        PRETRAINED / MODEL,
        DVS_NETWORK,
        MOTION_NETWORK,
        PAPER_FIRST,
        PAPER,
        FAST_FIRST,
        FAST_LAST,
        CIFAR10_FIRST,
        CIFAR10_SMALL,
    ):
        config, r = (json.loads((folder / name).read_text()) for name in ("config.json", "results.json"))
        model, steps = config["recipe"]["model"], config["network"]["time_steps"]
        published = PRESETS[model].paper_accuracy or {}
        seconds = sum(float(row["seconds"]) for row in read_log(folder)[0])
        paper = f"{published[steps]:.2f}" if steps in published else ""
        ours = f"{100 * r['accuracy']:.2f}"
        about = config["provenance"]
        gpu, threads = about["device"].startswith("NVIDIA"), about["threads"]
        where = about["device"].split()[1] if gpu else f"{threads} CPU thread{'s' if threads > 1 else ''}"
        data = config["data"]["trained_on"][-1]  # it says if the data are simulated
        rows.append((data, f"`{model}`", f"{steps}", ours, paper, where, f"{seconds / 60:.1f}"))
    header = ("data set", "network", "T", "ours, %", "paper, %", "trained on", "minutes")
    return Table(header, rows, "llrrrlr").markdown()


def by_steps(file: Path) -> str:
    """Accuracy by T, of the weights after each run."""
    found = json.loads(file.read_text())["accuracy"]
    steps = sorted({row["T"] for row in found})
    rows = []
    for name in dict.fromkeys(row["weights"] for row in found):
        share = {row["T"]: row["correct"] / row["total"] for row in found if row["weights"] == name}
        rows.append((name, *(f"{100 * share[t]:.2f}" for t in steps)))
    return Table(("weights", *(f"T = {t}" for t in steps)), rows).markdown()


def table_cifar10_steps() -> str:
    return by_steps(CIFAR10)


def table_cifar10_paper_steps() -> str:
    return by_steps(CIFAR10_PAPER)


def rates(file: Path) -> str:
    """Firing rates, %: a line for each block, a sentence for the SPS."""
    found = {name: f"{100 * rate:.1f}" for name, rate in json.loads(file.read_text())["rates"].items()}
    heads = [name.removeprefix("blocks.0.") for name in found if name.startswith("blocks.0.")]
    blocks = sorted({name.rsplit(".", 2)[0] for name in found if name.startswith("blocks.")})
    rows = [(f"`{block}`", *(found[f"{block}.{name}"] for name in heads)) for block in blocks]
    sps = ", ".join(f"`{name}` {rate}" for name, rate in found.items() if name.startswith("sps."))
    table = Table(("% of neurons and time steps", *(f"`{name}`" for name in heads)), rows)
    return f"{table.markdown()}\n\nIn the SPS: {sps}."


def table_cifar10_rates() -> str:
    return rates(CIFAR10)


def table_cifar10_paper_rates() -> str:
    return rates(CIFAR10_PAPER)


def energy_of(file: Path) -> str:
    """Operations and energy of one image, by convention."""
    found = json.loads(file.read_text())["energy"]
    rows = [(f"`{name}`", f"{found['totals_pj'][name] / 1e6:.1f}") for name in (*CONVENTIONS, "ann")]
    return Table(("convention", "energy of one image, µJ"), rows).markdown() + (
        f"\n\nSOPs of one image: {found['sops'] / 1e6:.1f} M at T = {found['time_steps']}; multiply-accumulates of the"
        f" network without spikes: {found['ann_flops'] / 1e6:.1f} M. Rates measured on {found['images']} images."
    )


def table_cifar10_energy() -> str:
    return energy_of(CIFAR10)


def table_cifar10_paper_energy() -> str:
    return energy_of(CIFAR10_PAPER)


def table_cifar10_paper_made() -> str:
    """Where the paper's network was seen."""
    about = json.loads(CIFAR10_PAPER.read_text())["provenance"]
    versions = f"Python {about['python']}, PyTorch {about['torch']}, snnTorch {about['snntorch']}"
    facts = [
        ("on", f"{about['device']}, {about['threads']} threads, fp32"),
        ("versions", versions),
        ("commit", about["commit"]),
    ]
    return f"{listed(facts)}\n\n```bash\n{about['command']}\n```"


def table_energies() -> str:
    """Energy of one image: the toy, and a network of the paper."""
    found = json.loads(CIFAR10_PAPER.read_text())["energy"]
    toy, real = se.energy(*network()).totals, found["totals_pj"]
    rows = [(f"`{name}`", f"{toy[name] / 1e6:.2f}", f"{real[name] / 1e6:.0f}") for name in (*CONVENTIONS, "ann")]
    return Table(("one image, T = 4, in µJ", f"`{MODEL}`", "`cifar10-4-384`"), rows).markdown()


def table_scores() -> str:
    """Scores of the paper's network, by block."""
    found = json.loads(CIFAR10_PAPER.read_text())["scores"]
    rows = [
        (f"`{name}`", f"{100 * row['zero']:.1f}", f"{row['mean']:.3f}", f"{row['largest']:g}")
        for name, row in found.items()
    ]
    return Table(("`cifar10-4-384`", "zero, %", "mean", "largest"), rows).markdown()


def table_membranes() -> str:
    """Membranes of the paper's network: the attention neurons, and the widest layer beside each."""
    found = json.loads(CIFAR10_PAPER.read_text())
    rows = []
    for name, row in found["membranes"].items():
        if name.startswith("blocks.") and name.endswith((".attn.attn", ".mlp.hidden")):
            shares = (found["rates"][name], row["on the threshold"], row["no gradient"])
            rows.append((f"`{name}`", *(f"{100 * share:.2f}" for share in shares)))
    header = ("`cifar10-4-384`, % of neurons and steps", "fires", "H = V_th", "almost no gradient")
    return Table(header, rows).markdown()


def compared(file: Path) -> str:
    """Median time of a step, and the ratio to ours, or on a GPU the memory: a table for each network."""
    parts, on_cpu = [], file in (ON_CPU, ON_CPU_AMD)
    ratio = "/ ours" if on_cpu else "peak memory, GiB"
    header = ("peer", "precision", "train, ms", ratio, "eval, ms", ratio)
    for title in dict.fromkeys(part.title for part in measured(file)):
        rows = []
        for part in (part for part in measured(file) if part.title == title):
            for peer in dict.fromkeys(label_of(r) for r in part.results):
                row = [peer, part.precision]
                for mode in ("train", "eval"):
                    (r,) = (r for r in part.results if label_of(r) == peer and r.mode == mode)
                    beside = r.to_ours if on_cpu else r.memory / 2**30
                    row += [f"{1000 * r.median:,.{0 if on_cpu else 1}f}", f"{beside:.2f}"]
                rows.append(row)
        parts.append(f"**{title}, B = {part.results[0].batch}**\n\n{Table(header, rows, 'llr').markdown()}")
    widest = max((r for part in measured(file) for r in part.results), key=lambda r: max(r.seconds) / min(r.seconds))
    factor = max(widest.seconds) / min(widest.seconds)
    spread = f"{factor:.0f}" if factor >= 2 else f"{factor:.1f}"
    parts.append(f"In the row with the widest spread the slowest round took {spread} times as long as the fastest.")
    return "\n\n".join(parts)


def made_how(file: Path) -> str:
    """Where and how a benchmark was run, and what its peers are."""
    about = benchmark(file)["provenance"]
    named = {r.peer for part in measured(file) for r in part.results}
    peers = {part for name in named for part in (name.split("+")[0], *(f"+{c}" for c in name.split("+")[1:]))}
    versions = f"Python {about['python']}, PyTorch {about['torch']}, snnTorch {about['snntorch']}, "
    facts = [
        *((f"`{name}`", text) for name, text in about["peers"].items() if name in peers),
        ("on", f"{about['device']}, {about['threads']} threads"),
        ("versions", f"{versions}SpikingJelly {about['spikingjelly']}"),
        ("commit", about["commit"]),
    ]
    return listed(facts) + f"\n\n```bash\n{today(about['command'])}\n```"


def table_benchmark() -> str:
    return compared(ON_CPU)


def table_provenance() -> str:
    return made_how(ON_CPU)


def table_benchmark_amd() -> str:
    return compared(ON_CPU_AMD)


def table_provenance_amd() -> str:
    return made_how(ON_CPU_AMD)


def table_benchmark_gpu() -> str:
    return f"{compared(ON_GPU)}\n\n{compared(IMAGENET_ON_GPU)}"


def table_provenance_gpu() -> str:
    return made_how(ON_GPU)


def table_fast_path_gpu() -> str:
    """Times of a training step with fused operations and with plain lines, launched one by one or as a graph."""
    rows = []
    for step in json.loads(FAST.read_text())["steps"]:
        times = (step.get(kind) for kind in ("plain", "plain_graph", "fused", "fused_graph"))
        case = f"`{step['model']}`, T = {step['time_steps']}, B = {step['batch']}"
        rows.append((case, *("" if t is None else f"{1000 * t:.2f}" for t in times)))
    return Table(("training step, ms", "plain", "plain, graph", "fused", "fused, graph"), rows).markdown()


def table_kernels_gpu() -> str:
    """Milliseconds of a training step in the kernels of the fused operations."""
    kernels = json.loads(FAST.read_text())["kernels"]
    names = next(iter(kernels.values()))
    rows = [(f"`{name}`" if "." in name else name, *(f"{k[name]:.2f}" for k in kernels.values())) for name in names]
    return Table(("ms", *kernels), rows).markdown()


def table_training_gpu() -> str:
    """What training costs by preset: images a second, memory, and the hours of 300 epochs of steps."""
    rows = []
    for step in json.loads(FAST.read_text())["steps"]:
        preset = se.preset(step["model"])
        images, batch, seconds = se.data.info(preset.dataset).samples["train"], step["batch"], step["fused_graph"]
        speed, hours = f"{batch / seconds:,.0f}", f"{300 * images / batch * seconds / 3600:,.1f}"
        rows.append(
            (f"`{preset.name}`", f"{step['time_steps']}", f"{batch}", speed, f"{step['fused_bytes']:.1f}", hours)
        )
    header = ("preset", "T", "B", "images/s", "peak memory, GiB", "hours for 300 epochs")
    return Table(header, rows, "lrrr").markdown()


def table_export() -> str:
    """Every format of every preset: size, tool, answers and spikes that differ, seconds."""
    rows = []
    for row in json.loads(EXPORTED.read_text())["written"]:
        case = (f"`{row['preset']}`", row["format"], f"{row['bytes'] / 1e6:.2f} MB" if "bytes" in row else "")
        if "tool" in row:
            tool = re.sub(r" in a process.*|\+\w+", "", row["tool"].replace("rounded to", "`fixed_point.py`,"))
            share = f"{row['differing']:,} of {row['spikes']:,}"
            case += (
                f"{tool}, {row['inputs']} {row['kind'].split(' of ')[0]}",
                f"{row['same']} of {row['inputs']}",
                share,
            )
        else:
            case += ("`from_pretrained`" if row["format"] == "hub" else "", "", "")
        rows.append((*case, f"{row['seconds']:.1f}"))
    header = ("preset", "format", "size", "run by", "same answers", "differing spikes", "seconds")
    return Table(header, rows, "lllllrr").markdown()


def table_export_accuracy() -> str:
    """Correct answers of integer weights, by width."""
    found = json.loads(EXPORTED.read_text())["accuracy"]
    widths = list(dict.fromkeys(row["weights"] for row in found))
    rows = []
    for preset in dict.fromkeys(row["preset"] for row in found):
        mine = {row["weights"]: row for row in found if row["preset"] == preset}
        shares = (f"{100 * row['correct'] / row['total']:.2f} % ({row['correct']})" for row in mine.values())
        rows.append((f"`{preset}`", f"{next(iter(mine.values()))['total']:,}", *shares))
    return Table(("network", "test images", *widths), rows).markdown()


def table_speedrun() -> str:
    """Entries of the speedrun, the most accurate first."""
    rows = []
    for entry in json.loads(SPEEDRUN.read_text())["entries"]:
        folders = [DOCS.parent / run for run in entry["runs"]]
        runs = [[json.loads((f / name).read_text()) for name in ("config.json", "results.json")] for f in folders]
        seconds = entry.get("seconds") or [results["seconds"] for _, results in runs]
        epochs = ", then ".join(f"{c['network']['time_steps']} ({r['epochs']})" for c, r in runs)
        (config, results), device = runs[-1], runs[-1][0]["provenance"]["device"]
        score = f"{100 * results['accuracy']:.2f}"
        rows.append((entry["date"], f"`{config['recipe']['model']}`", epochs, score, f"{sum(seconds):.0f}", device))
    header = ("date", "network", "T (epochs)", "test accuracy, %", "seconds", "on")
    return Table(header, sorted(rows, key=lambda row: -float(row[3])), "lllrrl").markdown()


def table_short_recipe() -> str:
    """What a change of one setting of the short recipe does to the accuracy on images that were set aside."""
    found = json.loads(SHORT_RECIPE.read_text())
    percent = {(row["change"], row["seed"]): 100 * row["val_accuracy"] for row in found["rows"]}
    seeds = sorted({seed for _, seed in percent})
    rows = []
    for change in sorted({change for change, _ in percent}):
        own = [percent[change, seed] for seed in seeds]
        against = np.mean(own) - np.mean([percent["the recipe", seed] for seed in seeds])
        shown = "" if change == "the recipe" else f"{against:+.1f}"
        rows.append((change, *(f"{p:.1f}" for p in own), f"{np.mean(own):.1f}", shown))
    rows.sort(key=lambda row: -float(row[-1] or "inf"))  # the recipe first
    header = ("setting", *(f"seed {seed}" for seed in seeds), "mean", "difference")
    about, (row, *_) = found["provenance"], found["rows"]
    recipe = about["recipe"]
    return (
        f"{Table(header, rows).markdown()}\n\nAccuracy in % on {row['validation images']:,} training images that were"
        f" set aside: `{recipe['model']}` at T = {recipe['time_steps']}, {recipe['epochs']} epochs of"
        f" {row['training images']:,} images. {about['device']}, threads: {about['threads']}, commit"
        f" {about['commit'][:12]}:\n`{about['command'].split(' --changes')[0]}`."
    )


def table_events() -> str:
    """Formats of event recordings against the readers of others."""
    content = json.loads(EVENTS.read_text())
    rows = []
    for r in content["rows"]:
        same = "yes" if r["same"] else "NO"
        speeds = f"{r['ours']:.1f}", f"{r['theirs']:.1f}"
        rows.append((r["format"], r["source"], f"{r['events']:,}", r["against"], same, *speeds))
    header = ("format", "source", "events", "against", "same", "ours, M/s", "theirs, M/s")
    about = content["provenance"]
    where = f"{about['device']}, threads: {about['threads']}, commit {about['commit'][:12] or 'unknown'}"
    table = Table(header, rows, "llrllrr").markdown()
    return f"{table}\n\nM/s: million events a second, from file to events, the best of three. {where}."


def table_events_memory() -> str:
    """A long recording on its way to frames."""
    long = json.loads(EVENTS.read_text())["long recording"]
    rows = []
    for name, key in (("this package", "ours"), ("expelliarmus, then tonic's Downsample and ToFrame", "theirs")):
        r = long[key]
        megabytes = f"{r['MB after imports']:,}", f"{r['peak MB']:,}"
        rows.append((name, *megabytes, f"{r['million a second']:.1f}"))
    header = ("reader", "MB after the imports", "MB at the peak", "million events a second")
    what = f"{long['events']:,} events of 640 x 480 pixels, a `.dat` file of {long['file, MB']} MB"
    return f"{Table(header, rows, 'lrrr').markdown()}\n\n{what}, to 16 frames of 128 x 128."


def table_published() -> str:
    """Accuracies as the paper prints them, beside our parameter counts."""
    rows = []
    for p in PRESETS.values():
        if p.paper_accuracy:
            published = ", ".join(f"{top1:.2f} (T = {steps})" for steps, top1 in p.paper_accuracy.items())
            rows.append((f"`{p.name}`", published, f"{p.parameters:,}"))
    return Table(("preset", "published top-1, %", "parameters, counted here"), rows, "llr").markdown()


def table_energy_audit() -> str:
    """Every ImageNet row of the paper's Comparison 2, less 0.9 pJ a SOP."""
    rows = [
        [
            f"`{r['model']}`",
            f"{r['SOPs (G)']:.2f}",
            f"{r['energy']:.3f}",
            f"{r['rest']:.3f}",
            f"{r['own width']:.3f}",
            f"{r['D = 512']:.3f}",
        ]
        for r in audit_paper()
    ]
    header = ("network", "SOPs, G", "energy, mJ", "rest, mJ", "at its D", "at D = 512")
    return Table(header, rows).markdown()


def table_ann_audit() -> str:
    """The ways of counting that come nearest to the published network without spikes."""
    rows = [
        (
            r["attention"],
            r["first conv"],
            r["head"],
            f"{r['FLOPs (G)']:.4f}",
            f"{r['published (G)']:.4f}",
            f"{r['off by (G)']:+.4f}",
        )
        for r in audit_ann()[:4]
    ]
    header = ("attention", "first conv", "head", "FLOPs, G", "published", "off by")
    return Table(header, rows, "lllr").markdown() + (
        f"\n\nWith the first convolution and without the head, the published figure leaves {audit_ann_rest():.2f} "
        "\\(N^2 D\\) a block for attention, where one product takes 1 and both take 2."
    )


def hours(datasets: tuple[str, ...]) -> str:
    """Images a second of a training step on one H100 and the hours of the whole recipe, where they were measured."""
    steps = json.loads(FAST.read_text())["steps"]
    rows = []
    for preset in PRESETS.values():
        if preset.dataset not in datasets:
            continue
        case = f"`{preset.name}`", f"{preset.config.time_steps}"
        found = [s for s in steps if (s["model"], s["time_steps"]) == (preset.name, preset.config.time_steps)]
        if not found:
            rows.append((*case, "", "not measured", "not measured"))
            continue
        step = min(found, key=lambda s: s["fused_graph"] / s["batch"])
        speed, recipe = step["batch"] / step["fused_graph"], RECIPES[preset.dataset]
        epochs = recipe.epochs + recipe.cooldown_epochs
        total = epochs * se.data.info(preset.dataset).samples["train"] / speed / 3600
        rows.append((*case, f"{step['batch']}", f"{speed:,.0f}", f"{total:,.0f} ({epochs} epochs)"))
    return Table(("preset", "T", "batch", "images/s", "hours of one H100"), rows, "lrrrr").markdown()


def table_hours_imagenet() -> str:
    return hours(("imagenet",))


def table_hours_dvs() -> str:
    return hours(("cifar10dvs", "dvsgesture"))


TABLES: dict[str, Callable[[], str]] = {
    make.__name__.removeprefix("table_").replace("_", "-"): make
    for make in (
        table_overview,
        table_export,
        table_export_accuracy,
        table_cifar10_fast_first,
        table_cifar10_fast,
        table_digits,
        table_sevens_first,
        table_sevens,
        table_cifar10_paper_first,
        table_cifar10_paper,
        table_cifar10_paper_steps,
        table_cifar10_paper_rates,
        table_cifar10_paper_energy,
        table_cifar10_paper_made,
        table_energies,
        table_scores,
        table_membranes,
        table_cifar10_first,
        table_cifar10,
        table_cifar10_steps,
        table_cifar10_rates,
        table_cifar10_energy,
        table_benchmark,
        table_provenance,
        table_benchmark_amd,
        table_provenance_amd,
        table_benchmark_gpu,
        table_provenance_gpu,
        table_training_gpu,
        table_hours_imagenet,
        table_hours_dvs,
        table_fast_path_gpu,
        table_kernels_gpu,
        table_speedrun,
        table_short_recipe,
        table_published,
        table_digits_dvs,
        table_digits_motion,
        table_motion,
        table_events,
        table_events_memory,
        table_energy_audit,
        table_ann_audit,
    )
}
MARKED = re.compile(r"<!-- table ([\w-]+) -->\n.*?<!-- end -->", flags=re.DOTALL)


def filled(page: str) -> str:
    """A page with its tables made anew."""
    return MARKED.sub(lambda m: f"<!-- table {m[1]} -->\n\n{TABLES[m[1]]()}\n\n<!-- end -->", page)


def contents(fig: Figure) -> list[list]:
    """What a figure shows, whatever version of Matplotlib draws it: of each axes the texts, of each artist its numbers.

    Numbers are given as how many there are, their mean and their standard deviation.
    """
    found: list[list] = []
    for ax in fig.axes:
        found.append([ax.get_title(), ax.get_xlabel(), ax.get_ylabel(), *(text.get_text() for text in ax.texts)])
        numbers = [line.get_xydata() for line in ax.lines]
        numbers += [image.get_array() for image in ax.images]
        numbers += [collection.get_offsets() for collection in ax.collections]
        corners = [patch.get_patch_transform().transform(patch.get_path().vertices) for patch in ax.patches]
        numbers += [np.stack([points.min(0), points.max(0)]) for points in corners]  # bars and bands
        for values in numbers:
            values = np.ma.masked_invalid(np.ma.asarray(values, dtype=float)).compressed()
            found.append([values.size, *((float(values.mean()), float(values.std())) if values.size else ())])
    return found


def main(folder: Path = IMAGES) -> None:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    for name, make in PICTURES.items():
        fig = make()
        fig.savefig(folder / name, dpi=DPI, metadata={"Software": None, "Description": json.dumps(contents(fig))})
        plt.close(fig)
        print(f"drew {name}")
    (folder / "network_map").mkdir(exist_ok=True)
    for chapter in MAPS:
        (folder / "network_map" / f"{chapter}.svg").write_text(network_map(chapter), encoding="utf-8")
    for path in sorted(set(DOCS.rglob("*.md")) - set(DOCS.glob("zh/**/*.md"))):  # tests compare the Chinese with them
        page = path.read_text()
        if (new := filled(page)) != page:
            path.write_text(new)
            print(f"filled {path.relative_to(DOCS)}")


if __name__ == "__main__":
    main()
