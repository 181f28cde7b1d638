"""Event recordings: reading files, cutting them into frames, and a simulated camera.

An event says that the log intensity of pixel (x, y) rose (p = 1) or fell (p = 0) by one threshold at time t.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..atomic import expand, write_atomically
from ..errors import SpikformerError, nearest

EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "?")], align=True)  # t in microseconds
SENSOR = 128  # pixels along each side of a DVS128
NAMES = (("t", "ts", "timestamp"), ("x",), ("y",), ("p", "pol", "polarity"))  # of columns, in files with names


def read_events(path: Path) -> np.ndarray:
    """All events of a recording, of dtype ``EVENT``: AEDAT4, AEDAT 2.0, ``.npz`` with t, x, y, p, or tonic's ``.npy``.

    The events stay in the order of the file, which frames of equal count need. Now and then a camera writes a time
    stamp slightly earlier than the previous one; it is kept (see ``steps_back``). Where a 32-bit counter of
    microseconds has started again at 0, the times continue.

    Args:
        path: the file.

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
    """Times in microseconds that continue where a 32-bit counter (AEDAT 2.0, and files made from it) restarted at 0.

    All stamps of such a file lie within 2**32, and no camera delivers an event half of that (36 minutes) late.
    """
    if float(t.max()) - float(t.min()) < 2**32 and (np.diff(t) < -(2**31)).any():
        return np.unwrap(t, period=2**32)
    return t


def steps_back(events: np.ndarray) -> int:
    """The number of events whose time stamp is earlier than that of the event before.

    Args:
        events: a recording, of dtype ``EVENT``.
    """
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
    """The columns of a file, checked, since it may come from any source; polarity, 0 and 1 or -1 and 1, as bool."""
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
    """Write a recording, atomically: AEDAT4 (with dv-processing) or ``.npz`` with t, x, y, p.

    Args:
        path: the file; ``.npz``, or any other suffix for AEDAT4.
        events: the recording, of dtype ``EVENT``.

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
        events: a recording, of dtype ``EVENT``; only the order of the events matters, not their times.
        time_steps: number T of frames.
        size: pixels along each side of a frame, at most 128.
        sensor: pixels along each side of the camera, at most 128; coordinates are scaled from ``sensor`` to ``size``.

    Returns:
        ``[T, 2, size, size]``, channel = polarity, in the smallest unsigned type that holds the counts.

    Examples:
        >>> import torch
        >>> from spikformer_edu.data.simulated_camera import simulate
        >>> from spikformer_edu.data.events import to_frames
        >>> (events,) = simulate(torch.eye(8)[None], seeds=[0], size=32)  # a bright diagonal that moves
        >>> frames = to_frames(events, time_steps=4, size=32, sensor=32)
        >>> frames.shape, int(frames.sum()) == len(events)  # every event is in one frame
        ((4, 2, 32, 32), True)
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

    Args:
        path: the file.
        time_steps: number T of frames.
        size: pixels along each side of a frame, at most 128.

    Returns:
        ``[T, 2, size, size]``, unsigned.

    Raises:
        SpikformerError: as ``read_events``, or ready-made frames of another T or size.
    """
    return cut(path, time_steps, size)[0]


def cut(path: Path, time_steps: int, size: int) -> tuple[np.ndarray, int]:
    """What ``read_frames`` returns, and ``steps_back`` of the recording; 0 for ready-made frames."""
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
