"""Every picture of one forward pass, as PNG files and as one HTML page that needs nothing else."""

import textwrap
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import torch
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from . import plot
from .atomic import expand
from .attention import MaskAttention, SpikingSelfAttention
from .energy import EnergyReport, energy
from .errors import SpikformerError
from .model import Spikformer
from .plot.attention import token_grid
from .record import Recording, record
from .report_page import Subject, page_of


def write_report(subject: Subject, out: Path, animate: bool = False) -> Path:
    """Draw everything and write it to a folder: a PNG a figure, and ``report.html`` with all of them inside.

    Args:
        subject: what is drawn.
        out: the folder; made if it is not there.
        animate: also write ``neuron.gif`` and ``ssa.gif``.

    Returns:
        The path of the page.

    Raises:
        SpikformerError: the folder cannot be written, the model does not take the inputs, or gives integers (ilif).
    """
    import matplotlib.pyplot as plt

    model, inputs, out = subject.model, subject.inputs, expand(out)
    if model.config.neuron == "ilif":
        raise SpikformerError("neuron='ilif' gives integers, and the figures show spikes of 0 and 1: none is drawn")
    with torch.no_grad():
        with record(model, compact=True) as whole:  # all samples: rates
            model(inputs)
        with record(model, membranes=True) as first:  # one sample: pictures
            model(inputs[:1] if inputs.dim() == 4 else inputs[:, :1])
    report = energy(model, inputs)
    figures = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, title, alt, fig in _figures(subject, whole, first, report):
            png = BytesIO()
            fig.savefig(png, dpi=150)
            if subject.note:
                image, png = Image.open(png), BytesIO()
                _with_note(image, subject.note).save(png, "PNG")
            figures.append((name, title, alt, png.getvalue(), fig.get_size_inches()[0]))
            plt.close(fig)
            (out / f"{name}.png").write_bytes(png.getvalue())
        if animate:
            for name, movie in _animations(model, first):
                file = out / f"{name}.gif"
                movie.save(file, writer="pillow", dpi=80)
                if subject.note:
                    with Image.open(file) as image:
                        frames = [_with_note(frame, subject.note) for frame in ImageSequence.Iterator(image)]
                        duration = image.info["duration"]
                    frames[0].save(file, save_all=True, append_images=frames[1:], duration=duration, loop=0)
                plt.close(movie._fig)  # type: ignore[attr-defined]  # it has no public name
        page = out / "report.html"
        page.write_text(page_of(subject, whole, report, figures), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise SpikformerError(f"cannot write to {out}: {reason}; give another --out") from None
    return page


def _with_note(image: Image.Image, note: str) -> Image.Image:
    """A picture with a strip of text below it; inside the picture the text could cover something."""
    size = max(12, image.width // 70)
    font = ImageFont.truetype(findfont("DejaVu Sans"), size)  # which comes with matplotlib
    lines = textwrap.wrap(note, image.width * 3 // size // 2)
    whole = Image.new("RGB", (image.width, image.height + (len(lines) + 1) * size * 5 // 4), "white")
    whole.paste(image.convert("RGB"))
    text = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        text.text((size, image.height + number * size * 5 // 4), line, "black", font)
    return whole


def _spiking(model: Spikformer) -> bool:
    """Are Q, K and V spikes, so that SSA can be taken apart by hand?"""
    return type(model.blocks[0].attn) is SpikingSelfAttention


OF_SCORES = "attention", "attention_query", "attention_over_time", "multiplication_order"


def _figures(
    subject: Subject, whole: Recording, first: Recording, report: EnergyReport
) -> Iterator[tuple[str, str, str, Figure]]:
    """File name, title, alternative text and figure, one after another."""
    model, picture = subject.model, subject.picture
    blocks = [f"blocks.{i}.attn" for i in range(len(model.blocks))]
    attn = first[f"{blocks[0]}.attn"]
    spikes = first[f"{blocks[0]}.q"] if _spiking(model) else attn
    masks = isinstance(model.blocks[0].attn, MaskAttention)  # which make no scores to draw
    if not masks:
        early, late = first[f"{blocks[0]}.scores"], first[f"{blocks[-1]}.scores"]
        rows, columns = token_grid(late.values.shape[-1], picture)
        middle = rows // 2 * columns + columns // 2
    drawings: list[tuple[str, str, str, Callable[[], tuple[Figure, object]]]] = [
        (
            "logits",
            "The decision over time",
            "Line plot: mean logit of each class up to each time step; the last step is the output.",
            lambda: plot.logits(whole, subject.info.classes, label=int(subject.labels[0])),
        ),
        (
            "atlas",
            "Spike atlas",
            "A raster of every neuron layer in network order, its firing rate, its dead and saturated features.",
            lambda: plot.atlas(whole),
        ),
        (
            "firing_rates",
            "Firing rates",
            "Bar chart: firing rate of every neuron layer in network order.",
            lambda: plot.firing_rates(whole),
        ),
        (
            "value_sets",
            "Which values flow where",
            "Ribbon along the network: binary spikes, integer residuals, multiples of s, real numbers; their shares.",
            lambda: plot.value_sets(whole, subject.inputs),
        ),
        (
            "raster",
            f"Raster of {spikes.name}",
            "Raster: which neurons of one layer fire at which time step.",
            lambda: plot.raster(spikes),
        ),
        (
            "membrane",
            f"Membrane of {attn.name}",
            "Membrane potential of one attention neuron over time, with threshold, resets and spikes.",
            lambda: plot.membrane(attn),
        ),
        (
            "neuron",
            "Neuron microscope",
            "Current, membrane, spikes and surrogate gradient of one attention neuron.",
            lambda: plot.neuron(attn),
        ),
        (
            "attention",
            "Where attention goes",
            "Heat map over the image: the mean score that each token receives in the last block.",
            lambda: plot.attention(late, picture),
        ),
        (
            "attention_query",
            "Where one token looks",
            "Heat map over the image: the scores of the token in the middle, in the last block.",
            lambda: plot.attention(late, picture, query=middle),
        ),
        (
            "attention_over_time",
            "Attention over time, by head",
            "Heat maps over the image for every head and time step of the first block.",
            lambda: plot.attention_over_time(early, picture),
        ),
        (
            "landscape",
            "Threshold landscape",
            "Histogram of the attention neurons' membranes over the surrogate's derivative, block by block.",
            lambda: plot.landscape({f"{block}.attn": first[f"{block}.attn"] for block in blocks}),
        ),
        (
            "multiplication_order",
            "The order of multiplication",
            "Operations of both orders of the product of Q, K, V over the number of tokens; the ratio for each preset.",
            lambda: plot.multiplication_order(model.config.dim // model.config.heads),
        ),
        (
            "energy",
            "Energy waterfall",
            "Estimated energy layer by layer, and totals under three conventions beside a network without spikes.",
            lambda: plot.energy(report),
        ),
    ]
    if _spiking(model):
        by_hand = (
            "ssa",
            "Spiking self-attention by hand",
            "Q, K, V as bitmaps: two rows meet in an AND, are counted and scaled, gather V, and charge a membrane.",
            lambda: plot.ssa(first),
        )
        drawings.insert(7, by_hand)
    log = subject.log
    if log is not None:
        health = "Loss, accuracy, firing rates and learning rate over the epochs."
        drawings.append(("training", "Training health", health, lambda: plot.training(log)))
    for name, title, alt, draw in drawings:
        if masks and name in OF_SCORES:
            continue
        yield name, title, alt, draw()[0]


def _animations(model: Spikformer, first: Recording) -> Iterator[tuple[str, FuncAnimation]]:
    yield "neuron", plot.neuron_animation(first["blocks.0.attn.attn"])
    if _spiking(model):
        yield "ssa", plot.ssa_animation(first)
