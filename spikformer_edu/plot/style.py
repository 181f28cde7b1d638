"""The house style of every figure, and the checks that every figure makes of its input.

Q is blue, K red, V green, spikes black, membrane orange; time runs to the right and is labelled in steps. The colours
differ in lightness too, so that they stay apart in grey print and for colour-blind readers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import SpikformerError, printable
from ..layer_record import LayerRecord

Q, K, V = "#0072B2", "#A50F26", "#0FA37A"
SPIKE, MEMBRANE, THRESHOLD = "#000000", "#EC9F05", "#555555"
GRADIENT = "#7B5EA7"
GREY, LIGHT, PALE = "#8C8C8C", "#C2C2C2", "#E4E4E4"  # LIGHT differs from V even where green looks grey
HEAT = "cividis"  # its lightness rises evenly: the same order in colour, in grey and for colour-blind readers

RC = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.interpolation": "nearest",
    "image.cmap": HEAT,
    "hatch.linewidth": 0.6,
}

Arguments = ParamSpec("Arguments")
Drawn = TypeVar("Drawn")


def styled(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """A decorator: draw in the house style, restore matplotlib's settings, and after an error close the new figures."""

    @wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Drawn:
        before = plt.get_fignums()
        try:
            with plt.style.context(RC):
                return draw(*args, **kwargs)
        except BaseException:
            for number in set(plt.get_fignums()) - set(before):
                plt.close(number)
            raise

    return styled


@contextmanager
def axes_for(ax: Axes | None, figsize: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    """The figure and axes to draw on: those given, or new ones."""
    if ax is None:
        yield plt.subplots(figsize=figsize)
    else:
        yield ax.figure, ax  # type: ignore[misc]  # in a SubFigure too, which draws all that a Figure does


def animate(fig: Figure, show: Callable[[int], None], frames: int, interval: int) -> FuncAnimation:
    """An animation in the house style, with the layout of the last frame in all of them.

    Args:
        fig: the figure.
        show: draws the frame of a number.
        frames: number of frames.
        interval: duration of a frame, in milliseconds.
    """
    show(frames - 1)
    fig.canvas.draw()
    fig.set_layout_engine("none")

    def frame(number: int) -> list[Artist]:
        with plt.style.context(RC):
            show(number)
        return []

    return FuncAnimation(fig, frame, frames=frames, interval=interval, init_func=lambda: [])


def color_of(name: str) -> str:
    """The colour of a layer: Q blue, K red, V green, every other neuron light grey."""
    return {"q": Q, "k": K, "v": V}.get(name.rpartition(".attn.")[2] if ".attn." in name else "", LIGHT)


def color_of_product(name: str) -> str:
    """The colour of a layer's cost: the products of attention blue, all others grey."""
    return Q if "^T" in name else GREY


def to_numpy(values: object, what: str) -> np.ndarray:
    """A tensor, array or list as a float array.

    Args:
        values: the numbers.
        what: name of the values in an error message.

    Raises:
        SpikformerError: not numbers, or no numbers at all.
    """
    try:
        tensor = values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values, dtype=float))
    except (TypeError, ValueError) as error:
        raise SpikformerError(f"{what}: give a tensor or a record of one layer, not {type(values).__name__}") from error
    if tensor.numel() == 0 or tensor.dim() == 0:
        raise SpikformerError(f"{what} of shape {list(tensor.shape)}: nothing to draw, give at least one time step")
    return tensor.detach().to("cpu", torch.float32).numpy()


def one_sample(values: LayerRecord | object, sample: int | None, what: str, field: str = "spikes") -> np.ndarray:
    """Values of one sample ``[T, ...]`` out of a record or a tensor.

    Args:
        values: a record; or a tensor, ``[T, ...]`` of a single sample if ``sample`` is None, else ``[T, B, ...]``.
        sample: number of the sample in the batch; None: the first of a record, or the tensor itself.
        what: name of the values in an error message.
        field: field of a record to read.
    """
    if isinstance(values, LayerRecord):
        values, sample = getattr(values, field), sample or 0
    array = to_numpy(values, what)
    if sample is None:
        return array
    if array.ndim < 2 or not -array.shape[1] <= sample < array.shape[1]:
        size = array.shape[1] if array.ndim > 1 else 0
        raise SpikformerError(f"sample={sample}: {what} hold {size} samples, numbered from 0")
    return array[:, sample]


def check_spikes(spikes: np.ndarray, what: str = "spikes") -> np.ndarray:
    """The spikes, after a check that they are 0 or 1.

    Args:
        spikes: spikes of any shape.
        what: name of the values in an error message.

    Raises:
        SpikformerError: a value that is neither 0 nor 1.
    """
    wrong = spikes[(spikes != 0) & (spikes != 1)]
    if wrong.size:
        raise SpikformerError(f"{what} hold {wrong.flat[0]:g}: give spikes, 0 or 1 (membranes go to plot.membrane)")
    return spikes


def check_finite(values: np.ndarray, what: str) -> np.ndarray:
    """The values, after a check that they are finite.

    Args:
        values: numbers of any shape.
        what: name of the values in an error message.

    Raises:
        SpikformerError: NaN or inf among them.
    """
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise SpikformerError(f"{what} hold NaN or inf ({bad} of {values.size}): check the run that produced them")
    return values


def plain(text: str, most: int = 32) -> str:
    """The name of a class or a folder for a figure: on one line, never as a formula.

    Args:
        text: the name.
        most: greatest number of characters before "...".
    """
    text = printable(text)
    text = text if len(text) <= most else f"{text[: most - 1]}..."
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a legend leaves out what starts with an underscore


def layer_title(values: LayerRecord | object, steps: int, title: str | None = None) -> str:
    """The title that every figure has: the layer and T."""
    name = title or (values.name if isinstance(values, LayerRecord) else None)
    return f"{name}, T = {steps}" if name else f"T = {steps}"


def time_axis(ax: Axes, steps: int, label: bool = True) -> None:
    """Time on x, one unit a step, steps numbered from 0 as in the tensors."""
    ax.set_xlim(-0.5, steps - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if label:
        ax.set_xlabel("time step t")


def image_of(image: object) -> np.ndarray:
    """An image as matplotlib shows it.

    Args:
        image: image ``[C, H, W]`` or ``[H, W]`` in any range, or frames ``[T, C, H, W]``, of which the mean over T is
            shown. Two channels are event polarities.

    Returns:
        ``[H, W]`` or ``[H, W, 3]`` in [0, 1], scaled to its own range.

    Raises:
        SpikformerError: another shape, or NaN.
    """
    array = check_finite(to_numpy(image, "image"), "image pixels")
    shape = list(array.shape)
    if array.ndim == 4:
        array = array.mean(0)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[0] not in (1, 2, 3):
        raise SpikformerError(f"image of shape {shape}: give [C, H, W] with 1, 2 or 3 channels")
    array = (array - array.min()) / max(float(np.ptp(array)), 1e-12)
    if array.shape[0] == 1:
        return array[0]
    if array.shape[0] == 2:  # polarity 0 (darker) orange, polarity 1 (brighter) blue, on white
        fell, rose = array[..., None]
        return np.clip(1 - fell * (1 - np.array([0.84, 0.37, 0.0])) - rose * (1 - np.array([0.0, 0.45, 0.70])), 0, 1)
    return array.transpose(1, 2, 0)
