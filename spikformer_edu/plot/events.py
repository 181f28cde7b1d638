"""Pictures of event recordings: the cube of events in x, y and time, the frames it is cut into, and their tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from ..data.events import CAMERAS, EVENT, to_frames
from ..errors import SpikformerError
from ..eval_mode import evaluating
from ..input_check import check_input
from ..model import Spikformer
from ..record import record
from .layers import draw_raster
from .style import LIGHT, Q, animate, image_of, one_sample, plain, styled, time_axis

FELL, ROSE = "#D55E00", "#0072B2"  # polarity 0 and 1, as in every figure of event frames


@styled
def events(
    recording: np.ndarray,
    time_steps: int = 8,
    sensor: int | tuple[int, int] | None = None,
    title: str | None = None,
    shown: int = 16_000,
    model: Spikformer | None = None,
    by: str = "count",
    size: int | None = None,
) -> tuple[Figure, np.ndarray]:
    """Draw an event cube above the T frames that the network sees, and the tokens that it forms.

    Args:
        recording: events of dtype ``spikformer_edu.data.events.EVENT``, in the order of the file.
        time_steps: number T of frames.
        sensor: width and height of the camera's sensor in pixels, or one number for both; None: the smallest usual
            camera that holds all events.
        title: what was recorded; it should say so if it is simulated. None: no title.
        shown: greatest number of events in the cube, evenly chosen: few enough that the eye sees through it.
        model: a network for event frames; a row below the frames then shows the tokens after its patch splitting, as
            the mean over their D features. None: no such row.
        by: what the frames are equal in, count (of events) or time.
        size: pixels along each side of the frames that the network sees; None: those of the sensor.

    Returns:
        The figure, and its axes: the cube, then the frames, then the tokens if there is a model.

    Raises:
        SpikformerError: not events, none of them, events outside the sensor, or T below 1.
    """
    frames = frames_of(recording, time_steps, sensor, size, by).astype(float)
    width, height = sensor_of(recording, sensor)
    tokens = None if model is None else token_means(model, frames)
    more = 0 if tokens is None else 1
    fig = plt.figure(figsize=(10, 6.2 + 1.4 * more), layout="none")
    fig.subplots_adjust(left=0.04, right=0.985, top=0.9, bottom=0.06, wspace=0.08, hspace=0.28)
    rows = fig.add_gridspec(2 + more, time_steps, height_ratios=[3.6, *[1] * (1 + more)])
    cube: Axes3D = fig.add_axes(
        (0.0, 0.22 + 0.14 * more, 1.0, 0.74 - 0.14 * more), projection="3d", computed_zorder=False
    )
    some = recording[np.linspace(0, len(recording) - 1, min(shown, len(recording))).astype(int)]
    first, last = recording["t"].min(), recording["t"].max()  # time stamps may go back, and all may be the same
    milliseconds, end = (some["t"] - first) / 1000, max(int(last - first), 1) / 1000
    for polarity, color, label in ((0, FELL, "darker (p = 0)"), (1, ROSE, "brighter (p = 1)")):
        mine = some["p"] == polarity
        place = milliseconds[mine], some["x"][mine], some["y"][mine]
        cube.scatter(
            *place, s=3, c=color, alpha=0.6, lw=0, label=label, clip_on=False
        )  # axes are square, the cube is not
    cube.set(xlabel="time (ms)", ylabel="x", zlabel="y", ylim=(0, width), zlim=(height, 0))
    cube.set_xlim(0, end)
    wide = max(width, height)
    cube.set_box_aspect((3.2, width / wide, height / wide), zoom=1.6)
    cube.view_init(elev=18, azim=-72)
    corners = [(x, y) for x in (0, width) for y in (0, height)]
    for (a, b), (c, d) in [(p, q) for p in corners for q in corners if p < q and (p[0] == q[0] or p[1] == q[1])]:
        for t in (0, end):
            cube.plot([t, t], [a, c], [b, d], color="#BBBBBB", lw=0.8, clip_on=False)
    for a, b in corners:
        cube.plot([0, end], [a, a], [b, b], color="#BBBBBB", lw=0.8, clip_on=False)
    cube.grid(False)
    for axis in (cube.xaxis, cube.yaxis, cube.zaxis):
        axis.set_pane_color((1, 1, 1, 0))
    cube.xaxis.labelpad = 14
    cube.yaxis.set_ticks([0, width // 2])
    cube.zaxis.set_ticks([0, height // 2, height])
    cube.zaxis.labelpad = 1
    cube.legend(
        loc="upper right", bbox_to_anchor=(1.0, 1.0), bbox_transform=fig.transFigure, markerscale=6, handletextpad=0.2
    )
    panels = [fig.add_subplot(rows[1, t]) for t in range(time_steps)]
    bright = max(1.0, float(np.quantile(frames[frames > 0], 0.97)))  # a few hot pixels may be far above
    for t, panel in enumerate(panels):
        panel.imshow(picture_of(frames[t], bright))
        panel.set_xlabel(f"t = {t}")
        _frame(panel)
    panels[0].set_ylabel("frames")
    if tokens is not None:
        for t, grid in enumerate(tokens):
            panel = fig.add_subplot(rows[2, t])
            panel.imshow(grid, cmap="Greys", vmin=0, vmax=max(tokens.max(), 1e-9))
            _frame(panel)
            panels.append(panel)
        panels[time_steps].set_ylabel(f"{grid.shape[0]} x {grid.shape[1]} tokens")
    each = f"{len(recording) // time_steps:,} events" if by == "count" else f"{end / time_steps:,.4g} ms"
    count = f"{len(recording):,} events, T = {time_steps} frames of {each}"
    fig.suptitle(f"{title}: {count}" if title else count, x=0.01, ha="left", fontsize=12)
    return fig, np.array([cube, *panels], dtype=object)


@styled
def events_animation(
    recording: np.ndarray,
    model: Spikformer,
    classes: Sequence[str],
    *,
    time_steps: int | None = None,
    sensor: int | tuple[int, int] | None = None,
    size: int | None = None,
    by: str = "count",
    layer: str | None = None,
    neurons: int = 64,
    title: str | None = None,
    interval: int = 500,
) -> FuncAnimation:
    """A recording, the spikes of a layer and the network's answer, step by step.

    The answer at step t is the softmax of the mean of the logits up to t; the last one is the network's output. Keep it
    with ``.save("events.gif", writer="pillow")`` or ``.to_jshtml()``.

    Args:
        recording: events of dtype ``spikformer_edu.data.events.EVENT``, in the order of the file.
        model: a network for event frames.
        classes: names of the classes, by label.
        time_steps: number T of frames; None: the network's.
        sensor: width and height of the camera's sensor in pixels, or one number for both; None: the smallest usual
            camera that holds all events.
        size: pixels along each side of the frames that the network sees; None: those of the sensor.
        by: what the frames are equal in, count (of events) or time.
        layer: name of the layer whose spikes are drawn; None: the last neurons of the last block.
        neurons: greatest number of neurons to draw, evenly spread over the layer.
        title: what was recorded; it should say so if it is simulated. None: no title.
        interval: duration of a step, in milliseconds.

    Raises:
        SpikformerError: not events, none of them, events outside the sensor, T below 1, frames that the network cannot
            read, another number of classes than the network's, or no such layer.
    """
    steps = model.config.time_steps if time_steps is None else time_steps
    if len(classes) != model.config.num_classes:
        raise SpikformerError(f"{len(classes)} class names for a network of {model.config.num_classes} classes")
    frames = frames_of(recording, steps, sensor, size, by)
    weight = model.head.weight
    x = torch.as_tensor(frames, dtype=weight.dtype, device=weight.device)[:, None]  # [T, 1, 2, H, W]
    check_input(model, x)
    layer = layer or f"blocks.{model.config.depth - 1}.mlp.out"
    with record(model, layers=[layer]) as rec, evaluating(model), torch.no_grad():
        model(x)
    spikes = one_sample(rec[layer], None, "spikes").reshape(steps, -1)
    means = rec.logits[:, 0].double().cumsum(0) / torch.arange(1, steps + 1, device=weight.device)[:, None]
    answers = means.softmax(1).cpu().numpy()  # [T, K]
    bright = max(1.0, float(np.quantile(frames[frames > 0], 0.97)))
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3.6), width_ratios=[1, 1.3, 1], layout="constrained")
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)

    def show(t: int) -> None:
        for ax in (left, middle, right):
            ax.clear()
        left.imshow(picture_of(frames[t], bright))
        left.set_title(f"frame {t} of T = {steps}")
        _frame(left)
        drawn = spikes.copy()
        drawn[t + 1 :] = 0
        shown = draw_raster(middle, drawn, neurons)
        time_axis(middle, steps)
        of = "" if shown == spikes.shape[1] else f", {shown} of {spikes.shape[1]:,} neurons"
        middle.set_title(f"{layer}{of}")
        middle.set_ylabel("neuron")
        best = int(answers[t].argmax())
        colors = [Q if k == best else LIGHT for k in range(len(classes))]
        right.barh(range(len(classes)), answers[t], color=colors)
        right.set_yticks(range(len(classes)), [plain(name) for name in classes])
        right.set(xlim=(0, 1), xlabel="probability", title=f"answer up to t = {t}")
        right.invert_yaxis()

    return animate(fig, show, steps, interval)


def frames_of(
    recording: np.ndarray, time_steps: int, sensor: int | tuple[int, int] | None, size: int | None, by: str
) -> np.ndarray:
    """The frames ``[T, 2, H, W]`` that are drawn, after a check of what was given."""
    if not isinstance(recording, np.ndarray) or recording.dtype != EVENT or not len(recording):
        raise SpikformerError("give at least one event, in an array of dtype spikformer_edu.data.events.EVENT")
    if time_steps < 1:
        raise SpikformerError(f"time_steps={time_steps}: give at least 1")
    return to_frames(recording, time_steps, size or sensor_of(recording, sensor), sensor_of(recording, sensor), by)


def sensor_of(recording: np.ndarray, sensor: int | tuple[int, int] | None) -> tuple[int, int]:
    """Width and height of the sensor: as given, else of the smallest usual camera that holds all events."""
    if sensor is not None:
        return (sensor, sensor) if isinstance(sensor, int) else sensor
    extent = int(recording["x"].max()) + 1, int(recording["y"].max()) + 1
    return next((c for c in CAMERAS if c[0] >= extent[0] and c[1] >= extent[1]), extent)


def picture_of(frame: np.ndarray, bright: float) -> np.ndarray:
    """A frame ``[2, H, W]`` in the colours of its polarities, full at ``bright`` events."""
    both = np.concatenate([np.clip(frame / bright, 0, 1), np.zeros((2, 1, frame.shape[-1]))], axis=1)
    both[:, -1, 0] = 1  # so that all frames share one scale; the row is cut off again
    return image_of(both)[:-1]


@torch.no_grad()
def token_means(model: Spikformer, frames: np.ndarray) -> np.ndarray:
    """Mean over the D features of every token after the SPS: frames ``[T, C, H, W]`` -> ``[T, H/P, W/P]``."""
    weight = model.head.weight
    x = torch.as_tensor(frames, dtype=weight.dtype, device=weight.device)[:, None]  # [T, 1, C, H, W]
    check_input(model, x)
    with evaluating(model):
        tokens = model.sps(x, len(x))  # [T, 1, D, H/P, W/P]
    return tokens[:, 0].mean(1).cpu().numpy()


def _frame(panel: Axes) -> None:
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set_visible(True)
        spine.set_color("#BBBBBB")
