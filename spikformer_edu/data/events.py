"""Event recordings: reading files, cutting them into frames, and a simulated camera.

An event says that the log intensity of pixel (x, y) rose (p = 1) or fell (p = 0) by one threshold at time t.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..atomic import expand, write_atomically
from ..errors import SpikformerError, nearest

EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "?")], align=True)  # t in microseconds
SENSOR = 128  # pixels along each side of a DVS128
NAMES = (("t", "ts", "timestamp"), ("x",), ("y",), ("p", "pol", "polarity"))  # of columns, in files with names


def read_events(path: Path) -> np.ndarray:
    """All events of a recording, of dtype ``EVENT``: AEDAT4, AEDAT 2.0, ``.npz`` with t, x, y, p, or tonic's ``.npy``.

    They come in the order of the file, which is what frames of equal count need. Cameras write a time stamp that goes
    back a little now and then; it is kept (see ``steps_back``). Where a 32-bit counter of microseconds started again
    at 0, the times go on.

    Raises:
        SpikformerError: the file is empty, truncated, of another format, or its events are outside the sensor; the line
            names the file.
    """
    path = expand(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise SpikformerError(f"{path} is no recording: {nearest(path.suffix, READERS)}")
    try:
        t, x, y, p = reader(path)
    except ImportError as error:
        raise SpikformerError(f"{path} cannot be read ({error}): pip install tonic aedat") from None
    except Exception as error:  # each decoder has errors of its own, among them bare Exception
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        raise SpikformerError(f"{path} is no readable recording ({reason}): fetch it again or remove it") from None
    if not len(t):
        raise SpikformerError(f"{path} holds no events: fetch it again or remove it")
    for name, values in (("x", x), ("y", y)):
        if values.min() < 0 or values.max() >= SENSOR:
            bad = values.min() if values.min() < 0 else values.max()
            raise SpikformerError(
                f"{path} is damaged: an event at {name} = {bad} is outside the {SENSOR} x {SENSOR} sensor"
            )
    events = np.empty(len(t), dtype=EVENT)
    events["t"], events["x"], events["y"], events["p"] = _without_wraps(t), x, y, p
    return events


def _without_wraps(t: np.ndarray) -> np.ndarray:
    """Times in microseconds, going on where a 32-bit counter (AEDAT 2.0, and what was made of it) started again at 0.

    All stamps of such a file lie within 2**32, and no camera delivers an event half of that (36 minutes) late.
    """
    if float(t.max()) - float(t.min()) < 2**32 and (np.diff(t) < -(2**31)).any():
        return np.unwrap(t, period=2**32)
    return t


def steps_back(events: np.ndarray) -> int:
    """How many events of a recording, of dtype ``EVENT``, are stamped earlier than the event before them."""
    return int((np.diff(events["t"]) < 0).sum())


def _aedat4(path: Path) -> tuple[np.ndarray, ...]:
    from tonic.io import read_aedat4

    if not path.stat().st_size:
        raise ValueError("empty file")
    events = read_aedat4(str(path))
    return events["t"].astype(np.int64), events["x"], events["y"], events[events.dtype.names[3]]


def _aedat2(path: Path) -> tuple[np.ndarray, ...]:
    """AEDAT 2.0 of a DVS128: lines that start with #, then pairs of big-endian words, address and time."""
    content = path.read_bytes()
    if not content.startswith(b"#!AER-DAT2.0"):
        raise ValueError("not AEDAT 2.0: its first line is another")
    start = 0
    while content[start : start + 1] == b"#":
        start = content.index(b"\n", start) + 1
    if (len(content) - start) % 8:
        raise ValueError("truncated: it ends in the middle of an event")
    address, t = np.frombuffer(content, dtype=">u4", offset=start).reshape(-1, 2).T.astype(np.int64)
    return t, 127 - ((address >> 8) & 127), 127 - ((address >> 1) & 127), 1 - (address & 1)


def _npz(path: Path) -> tuple[np.ndarray, ...]:
    with np.load(path) as file:
        if len(file.files) == 1 and (events := file[file.files[0]]).dtype.names:
            return _named(events, events.dtype.names)
        return _named(file, file.files)


def _npy(path: Path) -> tuple[np.ndarray, ...]:
    """Events with named fields, t in microseconds; or tonic's DVS128 Gesture: rows x, y, p, t, in milliseconds."""
    rows = np.load(path)
    if rows.dtype.names:
        return _named(rows, rows.dtype.names)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"shape {rows.shape}, not (N, 4)")
    x, y, p, t = rows.T
    t, x, y, p = _columns(t, x, y, p)
    return 1000 * t, x, y, p


def _named(source: Mapping[str, np.ndarray] | np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """The columns of a file that gives each a name."""
    chosen = []
    for group in NAMES:
        found = next((name for name in group if name in names), None)
        if found is None:
            raise ValueError(f"it has no {group[0]!r}, only {', '.join(names)}")
        chosen.append(found)
    return _columns(*(source[name] for name in chosen))


def _columns(t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, ...]:
    """The columns of a file that anybody may have written, checked; polarity as bool, whether it was 0, 1 or -1, 1."""
    for name, values in zip("txyp", (t, x, y, p), strict=True):
        if _numbers(values).ndim != 1 or len(values) != len(t):
            raise ValueError(f"{name} has shape {values.shape}, not one number an event")
        if name in "xy" and (values != np.round(values)).any():
            raise ValueError(f"{name} holds fractions of a pixel")
    if not (np.isin(p, (0, 1)).all() or np.isin(p, (-1, 1)).all()):
        raise ValueError("p is neither 0 and 1 nor -1 and 1")
    return t.astype(np.float64 if t.dtype.kind == "f" else np.int64), x, y, p > 0  # small integers would overflow


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError("it holds other things than numbers")
    return array


READERS = {".aedat4": _aedat4, ".aedat": _aedat2, ".npz": _npz, ".npy": _npy}


def write_events(path: Path, events: np.ndarray) -> None:
    """Write a recording, complete or not at all: AEDAT4 (with dv-processing) or ``.npz`` with t, x, y, p.

    Raises:
        SpikformerError: dv-processing is missing or cannot write these times, or the file cannot be written.
    """
    path = expand(path)

    def write(file: Path) -> None:
        if path.suffix == ".npz":
            np.savez(file, t=events["t"], x=events["x"], y=events["y"], p=events["p"])
        else:
            _write_aedat4(file, events)
        if len(read_events(file)) != len(events):
            raise SpikformerError(f"cannot write {path}: events got lost, the disk may be full")

    try:
        write_atomically(path, write)
    except (OSError, RuntimeError) as error:
        raise SpikformerError(f"cannot write {path}: {error}") from None


def _write_aedat4(path: Path, events: np.ndarray) -> None:
    try:
        import dv_processing as dv
    except ImportError:
        raise SpikformerError(
            "AEDAT4 is written by dv-processing: pip install dv-processing, or --format npz"
        ) from None
    if back := steps_back(events):
        raise SpikformerError(f"dv-processing writes no time stamps that go back, here {back:,}: write .npz instead")
    writer = dv.io.MonoCameraWriter(str(path), dv.io.MonoCameraWriter.EventOnlyConfig("simulated", (SENSOR, SENSOR)))
    for start in range(0, len(events), 10_000):
        store = dv.EventStore()
        columns = (events[name][start : start + 10_000].tolist() for name in "txyp")
        deque(map(store.push_back, *columns), maxlen=0)
        writer.writeEvents(store)
    del writer  # writes what is left


def to_frames(events: np.ndarray, time_steps: int, size: int = SENSOR, sensor: int = SENSOR) -> np.ndarray:
    """Events summed into T frames of equal event count (Spikformer's event data, after Fang et al., 2021).

    With N events, frame i takes those from i (N // T) up to (i + 1) (N // T); the last one takes the rest as well.

    Args:
        events: of dtype ``EVENT``; their order counts, not their times.
        time_steps: T.
        size: pixels along each side of a frame, at most 128.
        sensor: pixels along each side of the camera, at most 128; each is counted where it falls.

    Returns:
        ``[T, 2, size, size]``, channel = polarity, in the smallest unsigned type that holds the counts.
    """
    step = len(events) // time_steps
    longest = len(events) - step * (time_steps - 1)  # the last frame, with the remainder
    frames = np.zeros((time_steps, 2 * size * size), dtype=np.min_scalar_type(longest))
    ones = np.ones(longest, dtype=frames.dtype)
    for i, frame in enumerate(frames):  # slice by slice, so that all of it stays in the processor's cache
        part = events[step * i :] if i == time_steps - 1 else events[step * i : step * (i + 1)]
        x, y, p = (part[name].astype(np.uint16) for name in "xyp")  # 16 bits hold every address: 2 x 128 x 128
        column, row = (x, y) if size == sensor else (x * size // sensor, y * size // sensor)
        np.add.at(frame, ((p * size + row) * size + column).astype(np.intp), ones[: len(part)])
    return frames.astype(np.min_scalar_type(int(frames.max()))).reshape(time_steps, 2, size, size)


def read_frames(path: Path, time_steps: int, size: int = SENSOR) -> np.ndarray:
    """The frames of a recording: ``to_frames`` of its events, or ready-made ones from SpikingJelly's ``.npz``.

    Returns:
        ``[T, 2, size, size]``, unsigned.

    Raises:
        SpikformerError: as ``read_events``, or ready-made frames of another T or size.
    """
    return cut(path, time_steps, size)[0]


def cut(path: Path, time_steps: int, size: int) -> tuple[np.ndarray, int]:
    """What ``read_frames`` gives, and ``steps_back`` of the recording; 0 of ready-made frames."""
    path = expand(path)
    if path.suffix.lower() == ".npz":
        try:
            with np.load(path) as file:
                frames = _numbers(file["frames"]) if "frames" in file.files else None
        except Exception:
            frames = None  # read_events says what is wrong with the file
        if frames is not None:
            if frames.shape != (time_steps, 2, size, size):
                raise SpikformerError(
                    f"{path} holds frames of shape {list(frames.shape)}, not {[time_steps, 2, size, size]}: "
                    "give recordings with t, x, y, p, or the T and image size of these frames"
                )
            if frames.min() < 0 or (frames != np.round(frames)).any():
                raise SpikformerError(f"{path} holds frames that are no event counts: make them again")
            return frames.astype(np.min_scalar_type(int(frames.max()))), 0
    events = read_events(path)
    return to_frames(events, time_steps, size), steps_back(events)


def simulate(
    images: torch.Tensor,
    seeds: list[int],
    size: int = SENSOR,
    loops: int = 6,
    steps: int = 48,
    period: int = 200_000,
    threshold: float = 0.25,
    noise: float = 0.5,
) -> list[np.ndarray]:
    """What an event camera sees when each image is moved around a closed loop: simulated recordings.

    A pixel remembers the log intensity of its last event and sends another one whenever it has changed by the pixel's
    own threshold; between two steps the log intensity is taken to be linear, which gives each event its time.

    Args:
        images: ``[B, H, W]`` in [0, 1]; they are enlarged to the sensor.
        seeds: one an image; they fix everything.
        size: pixels along each side of the sensor.
        loops: how often the path, a diamond, is run through.
        steps: positions on it.
        period: microseconds a loop takes.
        threshold: change of log intensity of one event, in the mean over pixels, which differ by 10 %.
        noise: events a pixel and second that mean nothing.

    Returns:
        One array of dtype ``EVENT`` an image, in order of time.
    """
    batch, pixels = len(images), size * size
    enlarged = F.interpolate(images[:, None].float(), size=(size, size), mode="bilinear", align_corners=False)
    turn = torch.arange(steps + 1, dtype=torch.float32) / steps * 4  # once around the four corners of the diamond
    reach = 0.08  # of half the image
    right = reach * ((turn - 2).abs() - 1)
    down = reach * (1 - ((turn - 1) % 4 - 2).abs())
    grid = F.affine_grid(torch.eye(2, 3, dtype=torch.float32)[None], [1, 1, size, size], align_corners=False)
    grid = grid + torch.stack([right, down], 1)[:, None, None]  # [steps + 1, size, size, 2]
    moved = F.grid_sample(
        enlarged.transpose(0, 1).expand(steps + 1, -1, -1, -1), grid, padding_mode="border", align_corners=False
    )
    light = torch.log(0.1 + moved).reshape(steps + 1, batch, pixels).numpy()
    random = [np.random.default_rng(seed) for seed in seeds]
    share = np.stack([1 + 0.1 * r.standard_normal(pixels, dtype=np.float32) for r in random]).clip(0.5, 1.5)
    level = (light / (threshold * share)).reshape(steps + 1, -1)  # in thresholds of each pixel
    sent = level[0] + np.concatenate([r.uniform(-1, 1, pixels).astype(np.float32) for r in random])
    changes = np.empty((loops * steps, batch * pixels), dtype=np.int8)
    before = np.empty_like(changes, dtype=np.float32)
    for step in range(loops * steps):
        now = level[step % steps + 1]
        before[step] = sent
        change = np.trunc(now - sent)
        sent += change
        changes[step] = change
    return [
        _recording(changes, before, level, slice(i * pixels, (i + 1) * pixels), size, period, noise, random[i])
        for i in range(batch)
    ]


def _recording(
    changes: np.ndarray,
    before: np.ndarray,
    level: np.ndarray,
    part: slice,
    size: int,
    period: int,
    noise: float,
    random: np.random.Generator,
) -> np.ndarray:
    """The events of one image: ``changes[k, pixel]`` of them in step k, equally far apart in log intensity."""
    total, steps = len(changes), len(level) - 1
    changed = changes[:, part]
    step, pixel = np.divmod(np.flatnonzero(changed != 0), changed.shape[1])
    change = changed[step, pixel].astype(np.intp)
    number = np.abs(change)
    which = np.arange(1, number.sum() + 1) - (np.cumsum(number) - number).repeat(number)  # 1, 2, ... within a step
    step, pixel, up = (v.repeat(number) for v in (step, pixel, change > 0))
    start, end = level[step % steps, part.start + pixel], level[step % steps + 1, part.start + pixel]
    crossed = before[step, part.start + pixel] + np.where(up, which, -which)
    tick = period / steps
    share = np.divide(crossed - start, end - start, out=np.zeros_like(start), where=end != start)  # equal by rounding
    t = ((step + share.clip(0, 1)) * tick).astype(np.int64)
    extra = random.poisson(noise * size * size * total * tick / 1e6)
    events = np.empty(len(t) + extra, dtype=EVENT)
    events["t"] = np.concatenate([t, random.integers(0, int(total * tick), extra)])
    where = np.concatenate([pixel, random.integers(0, size * size, extra)])
    events["x"], events["y"] = where % size, where // size
    events["p"] = np.concatenate([up, random.integers(0, 2, extra) > 0])
    return events[np.argsort(events["t"], kind="stable")]
