"""Event recordings of any camera: reading files, whole or part by part, and cutting them into frames.

An event says that the log intensity of pixel (x, y) rose (p = 1) or fell (p = 0) by one threshold at time t.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..atomic import expand, write_atomically
from ..errors import SpikformerError, nearest
from .event_formats import FORMATS, Columns, Sensor, check_beginning

EVENT = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "?")], align=True)  # t in microseconds
SENSOR = 128  # pixels along each side of a DVS128
CUTS = ("count", "time")  # what frames are equal in
# Sensors of usual cameras: where a file does not say which, the smallest that holds all its events.
CAMERAS = ((34, 34), (128, 128), (240, 180), (304, 240), (320, 240), (346, 260), (640, 480), (1280, 720))
KEPT = 2**22  # events of a recording that are kept while it is counted: 64 MB. Longer ones are read twice


class EventFile:
    """A recording that is read part by part; every loop over it begins at its first event.

    The events stay in the order of the file, which frames of equal count need. Now and then a camera writes a time
    stamp slightly earlier than the previous one; it is kept (see ``steps_back``). Where a 32-bit counter of
    microseconds has started again at 0, the times continue.

    Args:
        path: the file.
        sensor: width and height of the camera's sensor, whatever the file states; None: as the file states.

    Attributes:
        format: name of the format.
        stated: width and height of the sensor as the file states them, or None.
        sensor: width and height of the sensor; None if neither given nor stated.

    Raises:
        SpikformerError: the file is absent, or of another format; the line names it.
    """

    def __init__(self, path: str | Path, sensor: Sensor | None = None):
        self.path = expand(path)
        if self.path.suffix.lower() not in FORMATS:
            raise SpikformerError(f"{path} is no recording: {nearest(self.path.suffix, FORMATS)}")
        self._given = sensor
        self._opened = self._guard(lambda: FORMATS[self.path.suffix.lower()](self.path), 0, check=True)
        self.format, self.stated = self._opened.format, self._opened.sensor
        self.sensor = sensor or self.stated

    def __iter__(self) -> Iterator[np.ndarray]:
        """The events, some at a time, of dtype ``EVENT``.

        Raises:
            SpikformerError: the file is truncated or damaged, or an event is outside the sensor.
        """
        opened = self._opened or self._guard(lambda: FORMATS[self.path.suffix.lower()](self.path), 0)
        self._opened = None  # its parts can be read once
        clock, polarities, read = _Clock(), set[float](), 0
        while True:
            columns = self._guard(lambda: next(opened.parts, None), read)
            if columns is None:
                return
            if not len(columns[0]):
                continue
            part = self._guard(partial(_events, columns, clock, polarities), read)
            self._check_places(columns, read)
            read += len(part)
            yield part

    def _guard(self, work: Callable, read: int, check: bool = False):  # type: ignore[no-untyped-def]
        """The result of ``work``; what it raises becomes one line with what is known of the file."""
        try:
            if check:
                check_beginning(self.path)
            return work()
        except ImportError as error:
            raise SpikformerError(f"{self.path} cannot be read ({error}): pip install tonic aedat") from None
        except OSError as error:
            if error.strerror is None:  # of a decoder
                raise self._unreadable(error, read) from None
            raise SpikformerError(f"cannot read {self.path}: {error.strerror}") from None
        except Exception as error:  # each decoder has errors of its own, among them bare Exception
            raise self._unreadable(error, read) from None

    def _unreadable(self, error: Exception, read: int) -> SpikformerError:
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        known = [f"{self.path.stat().st_size:,} bytes"]
        if hasattr(self, "format"):
            known.insert(0, self.format + (f" of {size_text(self.stated)} pixels" if self.stated else ""))
            known.append(f"{read:,} events before the fault")
        return SpikformerError(
            f"{self.path} is no readable recording ({reason}; {', '.join(known)}): fetch it again or remove it"
        )

    def _check_places(self, columns: Columns, read: int) -> None:
        for name, values, pixels in zip("xy", columns[1:3], self.sensor or (2**15, 2**15), strict=True):
            low, high = int(values.min()), int(values.max())
            if 0 <= low and high < pixels:
                continue
            if self.sensor is None:
                raise SpikformerError(
                    f"{self.path} has an event at {name} = {low if low < 0 else high}: no sensor has that pixel"
                )
            own = self.stated == self.sensor
            states = f"; its header states {size_text(self.stated)}" if self.stated and not own else ""
            raise SpikformerError(
                f"{self.path} ({self.format}) has an event at {name} = {low if low < 0 else high}, outside the "
                f"{size_text(self.sensor)} pixels that "
                + ("its own header states: fetch it again or remove it" if own else "were said to be its sensor")
                + (f"{states}: give the size of its camera (`--dataset event-folder` reads any)" if not own else "")
            )


def _events(columns: Columns, clock: "_Clock", polarities: set[float]) -> np.ndarray:
    """A part of a recording as events, checked, since a file may come from any source; polarities seen are added."""
    t, x, y, p = columns
    for name, values in zip("txyp", columns, strict=True):
        if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and not np.isfinite(values).all()):
            raise ValueError("it holds other things than numbers")
        if name in "xy" and values.dtype.kind == "f" and (values != np.round(values)).any():
            raise ValueError(f"{name} holds fractions of a pixel")
    if p.dtype.kind != "b":
        low, high = p.min(), p.max()
        polarities |= {low, high} if low >= 0 else set(np.unique(p).tolist())
        if not (polarities <= {0, 1} or polarities <= {-1, 1}) or (p.dtype.kind == "f" and (p != np.round(p)).any()):
            raise ValueError("p is neither 0 and 1 nor -1 and 1")
    events = np.empty(len(t), dtype=EVENT)
    events["t"] = clock.unwrap(t.astype(np.float64 if t.dtype.kind == "f" else np.int64))
    events["x"], events["y"], events["p"] = x, y, p > 0
    return events


class _Clock:
    """Times in microseconds that continue where a 32-bit counter (AEDAT 2.0, and files made from it) restarted at 0.

    A counter has restarted where the time jumps back by more than half of 2**32 and less than all of it: no camera
    delivers an event 36 minutes late.
    """

    def __init__(self) -> None:
        self.last: float | None = None  # time of the last event
        self.ahead = 0  # what is added to the counter

    def unwrap(self, t: np.ndarray) -> np.ndarray:
        joined = t if self.last is None else np.concatenate([np.array([self.last - self.ahead], t.dtype), t])
        if self.ahead or np.diff(joined).min(initial=0) < -(2**31):
            joined = joined + self.ahead
            jumps = np.abs(np.diff(joined))
            if jumps.max(initial=0) < 2**32:
                times = np.unwrap(joined, period=2**32)
                self.ahead += int(round(float(times[-1] - joined[-1])))
                t = times[-len(t) :]
            else:
                t = joined[-len(t) :]
        self.last = t[-1]
        return t


def size_text(sensor: Sensor) -> str:
    """A size in pixels, as text: 320 x 240."""
    return f"{sensor[0]} x {sensor[1]}"


def read_events(path: str | Path, sensor: Sensor | None = None) -> np.ndarray:
    """All events of a recording, of dtype ``EVENT``, in the order of the file (see ``EventFile``).

    The formats: AEDAT4, AEDAT 2.0 and 3.1, N-MNIST's ``.bin``, Prophesee's ``.dat`` and ``.raw``, ``.npz`` and
    ``.npy`` with t, x, y, p (or rows of tonic's DVS128 Gesture).

    Args:
        path: the file.
        sensor: width and height of the camera's sensor, to check the events against; None: as the file states.

    Raises:
        SpikformerError: the file is empty, truncated, of another format, or its events are outside the sensor; the line
            names the file.
    """
    parts = list(EventFile(path, sensor))
    if not parts:
        raise _no_events(path)
    return _joined(parts)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Parts of a recording as one array; NumPy joins bytes several times as fast as fields."""
    return np.concatenate([part.view(np.uint8) for part in parts]).view(EVENT)


def _no_events(path: str | Path) -> SpikformerError:
    return SpikformerError(f"{path} holds no events: fetch it again or remove it")


@dataclass(frozen=True)
class Survey:
    """What is known of a recording.

    Attributes:
        format: name of the format.
        sensor: width and height of the sensor as the file states them, or None.
        events: number of events N.
        first: earliest time, in microseconds.
        last: latest time, in microseconds.
        width: smallest width of a sensor that holds all events, in pixels.
        height: smallest height.
        steps_back: number of events whose time stamp is earlier than that of the event before.
    """

    format: str
    sensor: Sensor | None
    events: int = 0
    first: int = 0
    last: int = 0
    width: int = 0
    height: int = 0
    steps_back: int = 0

    @property
    def likely_sensor(self) -> Sensor:
        """The sensor: as the file states it, else that of the smallest usual camera that holds all events."""
        extent = self.width, self.height
        return self.sensor or next((c for c in CAMERAS if c[0] >= extent[0] and c[1] >= extent[1]), extent)


def survey(path: str | Path) -> Survey:
    """Read a recording part by part, and keep what ``Survey`` holds.

    Args:
        path: the file.

    Raises:
        SpikformerError: as ``read_events``.
    """
    return _survey(EventFile(path))[0]


def _survey(file: EventFile) -> tuple[Survey, list[np.ndarray] | None]:
    """What is known of a recording, and its events if they are few enough to be kept."""
    facts, kept, before = Survey(file.format, file.stated), list[np.ndarray](), None
    keep = True
    for part in file:
        t = part["t"]
        if before is None:
            facts = replace(facts, first=int(t[0]), last=int(t[0]))
        facts = replace(
            facts,
            events=facts.events + len(part),
            first=min(facts.first, int(t.min())),
            last=max(facts.last, int(t.max())),
            width=max(facts.width, int(part["x"].max()) + 1),
            height=max(facts.height, int(part["y"].max()) + 1),
            steps_back=facts.steps_back + steps_back(part) + int(before is not None and t[0] < before),
        )
        before = t[-1]
        keep = keep and facts.events <= KEPT
        if keep:
            kept.append(part)
        else:
            kept.clear()
    if not facts.events:
        raise _no_events(file.path)
    return facts, kept if keep else None


def steps_back(events: np.ndarray) -> int:
    """The number of events whose time stamp is earlier than that of the event before.

    Args:
        events: a recording, of dtype ``EVENT``.
    """
    return int((np.diff(events["t"]) < 0).sum())


def write_events(path: str | Path, events: np.ndarray, sensor: Sensor = (SENSOR, SENSOR)) -> None:
    """Write a recording, atomically: AEDAT4 (with dv-processing) or ``.npz`` with t, x, y, p.

    Args:
        path: the file; ``.npz``, or any other suffix for AEDAT4.
        events: the recording, of dtype ``EVENT``.
        sensor: width and height of the camera's sensor; AEDAT4 keeps it.

    Raises:
        SpikformerError: dv-processing is missing or cannot write these times, or the file cannot be written.
    """
    path = expand(path)

    def write(file: Path) -> None:
        if path.suffix == ".npz":
            np.savez(file, t=events["t"], x=events["x"], y=events["y"], p=events["p"])
        else:
            _write_aedat4(file, events, sensor)
        if len(read_events(file)) != len(events):
            raise SpikformerError(f"cannot write {path}: events got lost, the disk may be full")

    try:
        write_atomically(path, write)
    except (OSError, RuntimeError) as error:
        raise SpikformerError(f"cannot write {path}: {error}") from None


def _write_aedat4(path: Path, events: np.ndarray, sensor: Sensor) -> None:
    try:
        import dv_processing as dv
    except ImportError:
        raise SpikformerError(
            "AEDAT4 is written by dv-processing: pip install dv-processing, or --format npz"
        ) from None
    if back := steps_back(events):
        raise SpikformerError(f"dv-processing writes no time stamps that go back, here {back:,}: write .npz instead")
    writer = dv.io.MonoCameraWriter(str(path), dv.io.MonoCameraWriter.EventOnlyConfig("simulated", sensor))
    for start in range(0, len(events), 10_000):
        store = dv.EventStore()
        columns = (events[name][start : start + 10_000].tolist() for name in "txyp")
        deque(map(store.push_back, *columns), maxlen=0)
        writer.writeEvents(store)
    del writer  # writes what is left


def to_frames(
    events: np.ndarray,
    time_steps: int,
    size: int | Sensor = SENSOR,
    sensor: int | Sensor = SENSOR,
    by: str = "count",
) -> np.ndarray:
    """Events summed into T frames of equal event count, as Spikformer's (after Fang et al., 2021), or of equal time.

    With N events, frame i takes those from i (N // T) up to (i + 1) (N // T); the last one takes the rest as well. With
    ``by="time"`` frame i takes those from i/T up to (i + 1)/T of the time between the first and the last event.

    Args:
        events: a recording, of dtype ``EVENT``; for frames of equal count only the order of the events matters.
        time_steps: number T of frames.
        size: pixels along each side of a frame, or width and height.
        sensor: width and height of the camera's sensor, or one number for both; coordinates are scaled from there to
            ``size``, each direction by itself, and events that meet in a pixel add up.
        by: count or time.

    Returns:
        ``[T, 2, height, width]``, channel = polarity, in the smallest unsigned type that holds the counts.

    Raises:
        SpikformerError: an event is outside the sensor, or ``by`` is neither.

    Examples:
        >>> import torch
        >>> from spikformer_edu.data.simulated_camera import simulate
        >>> from spikformer_edu.data.events import to_frames
        >>> (events,) = simulate(torch.eye(8)[None], seeds=[0], size=32)  # a bright diagonal that moves
        >>> frames = to_frames(events, time_steps=4, size=32, sensor=32)
        >>> frames.shape, int(frames.sum()) == len(events)  # every event is in one frame
        ((4, 2, 32, 32), True)
    """
    check_cut(by)
    sensor = (sensor, sensor) if isinstance(sensor, int) else sensor
    for name, pixels in zip("xy", sensor, strict=True):
        if len(events) and not (events[name].min() >= 0 and events[name].max() < pixels):
            raise SpikformerError(f"an event is outside the sensor of {size_text(sensor)} pixels: give its real size")
    span = (int(events["t"].min()), int(events["t"].max())) if len(events) else (0, 0)
    return _frames([events], len(events), span, time_steps, (size, size) if isinstance(size, int) else size, sensor, by)


def check_cut(by: str) -> str:
    """What frames are to be equal in.

    Args:
        by: count or time.

    Raises:
        SpikformerError: neither of them.
    """
    if by not in CUTS:
        raise SpikformerError(f"unknown frames {by!r}: {nearest(by, CUTS)}")
    return by


def _frames(
    parts: Iterable[np.ndarray],
    count: int,
    span: tuple[int, int],
    time_steps: int,
    size: Sensor,
    sensor: Sensor,
    by: str,
) -> np.ndarray:
    """``to_frames`` of events that come in parts: ``count`` of them in all, with times in ``span``."""
    step = count // time_steps
    most = count - step * (time_steps - 1) if by == "count" else count  # a frame has at most so many events
    width, height = size
    frames = np.zeros((time_steps, 2 * width * height), dtype=np.min_scalar_type(most))
    column = (np.arange(sensor[0]) * width // sensor[0]).astype(np.intp)
    row = (np.arange(sensor[1]) * height // sensor[1] * width).astype(np.intp)
    done = 0
    for part in parts:
        for start in range(0, len(part), 2**14):  # few at a time, so that all of it stays in the processor's cache
            some = part[start : start + 2**14]
            pixel = column.take(some["x"])
            pixel += row.take(some["y"])
            pixel += some["p"] * np.intp(width * height)
            ones = np.ones(len(some), dtype=frames.dtype)
            if by == "time":
                number = (some["t"] - span[0]) * time_steps // (span[1] - span[0] + 1)
                np.add.at(frames.reshape(-1), number * frames.shape[1] + pixel, ones)
            else:
                first, last = (
                    min(i // step, time_steps - 1) if step else time_steps - 1 for i in (done, done + len(some) - 1)
                )
                for i in range(first, last + 1):
                    a = max(step * i - done, 0) if step else 0
                    b = len(some) if i == time_steps - 1 else step * (i + 1) - done
                    np.add.at(frames[i], pixel[a:b], ones[a:b])
            done += len(some)
    return frames.astype(np.min_scalar_type(int(frames.max()))).reshape(time_steps, 2, height, width)


def read_frames(
    path: str | Path, time_steps: int, size: int = SENSOR, by: str = "count", sensor: Sensor | None = None
) -> np.ndarray:
    """The frames of a recording: ``to_frames`` of its events, or ready-made ones from SpikingJelly's ``.npz``.

    A recording is read part by part: it may be larger than the memory.

    Args:
        path: the file.
        time_steps: number T of frames.
        size: pixels along each side of a frame.
        by: what the frames are equal in, count or time.
        sensor: width and height of the camera's sensor; None: as the file states it, else the smallest usual one that
            holds all events.

    Returns:
        ``[T, 2, size, size]``, unsigned.

    Raises:
        SpikformerError: as ``read_events``, or ready-made frames of another T or size.
    """
    return cut(path, time_steps, size, by, sensor)[0]


def cut(
    path: str | Path,
    time_steps: int,
    size: int,
    by: str = "count",
    sensor: Sensor | None = None,
    fallback: Sensor | None = None,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, int]:
    """What ``read_frames`` returns, and ``steps_back`` of the recording; 0 for ready-made frames.

    ``fallback`` is the sensor of a file that states none, and ``transform`` changes the events before they are cut.
    """
    path = expand(path)
    if path.suffix.lower() == ".npz":
        try:
            with np.load(path) as file:
                frames = _counts(file["frames"]) if "frames" in file.files else None
        except Exception:
            frames = None  # EventFile says what is wrong with the file
        if frames is not None:
            if frames.shape != (time_steps, 2, size, size):
                raise SpikformerError(
                    f"{path} holds frames of shape {list(frames.shape)}, not {[time_steps, 2, size, size]}: "
                    "give recordings with t, x, y, p, or the T and image size of these frames"
                )
            if frames.min() < 0 or (frames != np.round(frames)).any():
                raise SpikformerError(f"{path} holds frames that are no event counts: make them again")
            return frames.astype(np.min_scalar_type(int(frames.max()))), 0
    if transform is not None:
        recorded = EventFile(path)
        return _transformed(recorded, transform, time_steps, size, by, sensor or recorded.stated or fallback)
    recording = EventFile(path, sensor)
    recording.sensor = recording.sensor or fallback
    facts, kept = _survey(recording)
    pixels = recording.sensor or facts.likely_sensor
    parts = recording if kept is None else kept
    return _frames(
        parts, facts.events, (facts.first, facts.last), time_steps, (size, size), pixels, by
    ), facts.steps_back


def _transformed(
    recording: EventFile,
    transform: Callable[[np.ndarray], np.ndarray],
    time_steps: int,
    size: int,
    by: str,
    sensor: Sensor | None,
) -> tuple[np.ndarray, int]:
    """Frames of what a transform makes of the events, and the number of steps back that the file has."""
    facts, kept = _survey(recording)
    whole = _joined(list(recording) if kept is None else kept)
    events = transform(whole)
    missing = set("txyp") - set(getattr(events, "dtype", np.dtype(int)).names or ())
    if missing or not len(events):
        what = f"events without {', '.join(sorted(missing))}" if missing else "no events"
        raise SpikformerError(
            f"the transform makes {what} of {recording.path}: it has to return events with t, x, y, p"
        )
    try:
        return to_frames(events, time_steps, size, sensor or facts.likely_sensor, by), facts.steps_back
    except SpikformerError as error:
        raise SpikformerError(f"the transform of {recording.path}: {error} as sensor=(width, height)") from None


def _counts(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError("it holds other things than numbers")
    return array
