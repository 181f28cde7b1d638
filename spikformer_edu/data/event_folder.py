"""Your own event recordings, in class folders: any camera, any of the formats that ``events`` reads."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..errors import SpikformerError
from . import folder
from .augment import Augment, check_augment
from .base import DatasetInfo, Splits, stratified_split
from .cache import Cache
from .event_formats import FORMATS, Sensor
from .events import CAMERAS, EventFile, Survey, check_cut, size_text, survey
from .files import data_folder, listing
from .recordings import Recordings, check_frame_size, check_steps

TIME_STEPS = 16  # T, unless another is given
INFO = replace(
    folder.INFO,
    name="event-folder",
    title="Event recordings in class folders",
    channels=2,
    image_size=128,
    mean=(),
    std=(),
    default_model="cifar10dvs-2-256",
    time_steps=TIME_STEPS,
)
SUFFIXES = tuple(FORMATS)
LARGEST = 1280  # pixels along each side of a frame


def load(
    data_dir: str | Path | None = None,
    augment: Augment | None = None,
    time_steps: int = TIME_STEPS,
    image_size: int = INFO.image_size,
    samples_per_class: int | None = None,
    split_seed: int | None = None,
    val_fraction: float | None = None,
    frames: str = "count",
    sensor: str | Sensor | None = None,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Splits:
    """Event recordings in class folders: train and test (or val), or one tree, a fifth of each class for the test.

    The recordings of one tree may be of different cameras and in different formats. AEDAT4 and Prophesee's files state
    the size of the sensor. For the others, files of one suffix are taken to be of one camera: the smallest usual one
    that holds all their events, which are read for it once.

    Args:
        data_dir: the folder that holds train and test, or the class folders; None: ``$SPIKFORMER_DATA``, else
            ``./data``.
        augment: augmentation of the training set; None: none.
        time_steps: number T of frames.
        image_size: height and width of a frame, in pixels; every recording is brought to it, and events that meet in a
            pixel add up.
        samples_per_class: number of recordings of each class to use; None: all.
        split_seed: seed of the choice of recordings for testing and validation; None: 0.
        val_fraction: share of each class that is taken from training for validation if there is no val folder; None: 0.
        frames: what the frames are equal in, count (of events) or time.
        sensor: width and height, such as ``"346x260"`` or ``(346, 260)``, of the sensor of the files that do not state
            it; after a transform, of the coordinates that it returns. None: found from the files.
        transform: changes the events of a recording before they are cut into frames: a pipeline of
            ``tonic.transforms``, or any function of an array with t, x, y, p.

    Raises:
        SpikformerError: no class folders, nothing to test on, different classes in two parts, or a class too small to
            be split. A broken recording is reported when it is read.
    """
    check_steps(time_steps), check_frame_size(image_size, LARGEST), check_cut(frames)
    check_augment("event-folder", augment, ("flip", "neuromorphic"))
    given = parse_sensor(sensor)
    root = data_folder(data_dir)
    parts = folder.find(root, INFO, SUFFIXES)
    classes = folder.same_classes(parts, INFO)
    info = replace(INFO, classes=classes, image_size=image_size, time_steps=time_steps)
    names: dict[str, list[str]] = {}
    labels: dict[str, torch.Tensor] = {}
    for name, place in parts.items():
        inside = "" if place == root else f"{place.name}/"
        files = listing(place, classes, SUFFIXES)
        names[name] = [f"{inside}{c}/{file}" for c, group in zip(classes, files, strict=True) for file in group]
        labels[name] = torch.arange(len(files)).repeat_interleave(torch.tensor([len(group) for group in files]))
    cache = Cache("event-folder", root)
    everything = [name for group in names.values() for name in group]
    fallback = dict.fromkeys(SUFFIXES, given) if given else find_sensors(root, everything, cache)

    def split(part: str, indices: torch.Tensor, augment: Augment | None) -> Recordings:
        chosen = [names[part][i] for i in indices]
        return Recordings(
            root,
            chosen,
            labels[part][indices],
            time_steps,
            image_size,
            augment,
            cache,
            frames,
            given if transform else None,
            fallback,
            transform,
        )

    def some(part: str) -> torch.Tensor:
        return stratified_split(labels[part], None, samples_per_class, split_seed)[0]

    if "all" in parts:
        rest, test = folder.held_out(labels["all"], classes, "recording", split_seed)
        train, val = stratified_split(labels["all"][rest], val_fraction, samples_per_class, split_seed)
        few, _ = stratified_split(labels["all"][test], None, samples_per_class, split_seed)
        return Splits(
            info,
            split("all", rest[train], augment),
            split("all", rest[val], None) if len(val) else None,
            split("all", test[few], None),
        )
    validation = None
    if "test" in parts and "val" in parts:
        if val_fraction:
            raise SpikformerError(f"{parts['val']} validates: leave out val_fraction={val_fraction} or that folder")
        validation = split("val", some("val"), None)
    rest, val = stratified_split(labels["train"], val_fraction, samples_per_class, split_seed)
    if len(val):
        validation = split("train", val, None)
    tested = "test" if "test" in parts else "val"
    return Splits(info, split("train", rest, augment), validation, split(tested, some(tested), None))


def parse_sensor(sensor: str | Sensor | None) -> Sensor | None:
    """Width and height of a sensor, as numbers.

    Args:
        sensor: the size as text, such as ``"346x260"``, or as numbers; None: None.

    Raises:
        SpikformerError: neither of them, or below 1 pixel.
    """
    if sensor is None:
        return None
    try:
        width, height = map(int, sensor.lower().split("x") if isinstance(sensor, str) else sensor)
    except (ValueError, TypeError):
        width = height = 0
    if not (0 < width < 2**15 and 0 < height < 2**15):
        raise SpikformerError(f"sensor={sensor!r}: give width and height in pixels, such as 346x260")
    return width, height


def find_sensors(root: Path, names: Sequence[str], cache: Cache) -> dict[str, Sensor]:
    """The sensor of the files that do not state it, by suffix; each is read once for it, and the result is kept.

    A file that cannot be read is left out here: the error comes when it is needed.
    """
    extents: dict[str, dict[str, Sensor]] = {}
    for name in tqdm(names, desc="finding the sensor", unit="file", disable=None, leave=False):
        with suppress(SpikformerError):
            if _is_frames(root / name) or EventFile(root / name).stated:
                continue
            width, height = _extent(root, name, cache)
            extents.setdefault(Path(name).suffix.lower(), {})[name] = width, height
    found = {}
    for suffix, sizes in extents.items():
        found[suffix] = _camera(max(w for w, _ in sizes.values()), max(h for _, h in sizes.values()))
        message = (
            f"{len(sizes):,} {suffix} recordings do not state their sensor: by their events {size_text(found[suffix])}"
        )
        smaller = [name for name, size in sizes.items() if _camera(*size) != found[suffix]]
        if smaller:
            other = size_text(_camera(*sizes[smaller[0]]))
            message += f", but those of {len(smaller):,} would fit into a smaller one ({smaller[0]}: {other})"
        warnings.warn(f"{message}; --sensor WIDTHxHEIGHT says it", stacklevel=3)
    return found


def _is_frames(path: Path) -> bool:
    if path.suffix.lower() != ".npz":
        return False
    try:
        with np.load(path) as file:
            return "frames" in file.files
    except Exception:  # EventFile says what is wrong with it
        return False


def _extent(root: Path, name: str, cache: Cache) -> Sensor:
    status = (root / name).stat()
    key = {"what": "extent", "file": name, "bytes": status.st_size, "changed": status.st_mtime_ns}

    def read() -> dict[str, np.ndarray]:
        facts = survey(root / name)
        return {"extent": np.array([facts.width, facts.height])}

    width, height = cache.get(key, read)["extent"].tolist()
    return width, height


def _camera(width: int, height: int) -> Sensor:
    return next((c for c in CAMERAS if c[0] >= width and c[1] >= height), (width, height))


@dataclass(frozen=True)
class Report:
    """What is in a folder of recordings.

    Attributes:
        surveys: what is known of each recording that can be read, by its path.
        skipped: why others cannot be read, one line each.
    """

    surveys: dict[Path, Survey]
    skipped: list[str]

    def lines(self) -> list[str]:
        """A line for each format and sensor, then what was skipped."""
        groups: dict[tuple[str, str], list[Survey]] = {}
        for facts in self.surveys.values():
            sensor = size_text(facts.sensor) if facts.sensor else f"{size_text(facts.likely_sensor)} by its events"
            groups.setdefault((facts.format, sensor), []).append(facts)
        lines = []
        for (kind, sensor), group in sorted(groups.items()):
            counts = sorted(facts.events for facts in group)
            seconds = sorted((facts.last - facts.first) / 1e6 for facts in group)
            rates = sorted(f.events / max((f.last - f.first) / 1e6, 1e-6) for f in group)
            lines.append(
                f"{len(group):,} x {kind}, sensor {sensor}; events {_range(counts)}; "
                f"seconds {_range(seconds)}; events a second {_range(rates)}"
            )
        back = [facts.steps_back for facts in self.surveys.values()]
        if sum(back):
            files = f"{sum(b > 0 for b in back):,} of {len(back):,} recordings"
            lines.append(f"time stamps that go back: {sum(back):,}, in {files}; events stay in the order of the file")
        if self.skipped:
            lines += [f"skipped, {len(self.skipped):,} that cannot be read:", *(f"  {line}" for line in self.skipped)]
        return lines


def _range(values: Sequence[float]) -> str:
    """Smallest to greatest value, and the median between them."""
    shown = [f"{v:,.0f}" if v >= 100 or float(v).is_integer() else f"{v:.3g}" for v in (values[0], values[-1])]
    middle = values[len(values) // 2]
    median = f"{middle:,.0f}" if middle >= 100 or float(middle).is_integer() else f"{middle:.3g}"
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]} (median {median})"


def examine(data_dir: str | Path | None) -> Report:
    """Read all recordings in a folder once, and say what they are; what cannot be read is counted and named.

    Args:
        data_dir: the folder that holds train and test, or the class folders.

    Raises:
        SpikformerError: no class folders.
    """
    parts = folder.find(data_folder(data_dir), INFO, SUFFIXES)
    classes = folder.same_classes(parts, INFO)
    surveys: dict[Path, Survey] = {}
    skipped: list[str] = []
    paths = [Path(f.path) for p in parts.values() for g in listing(p, classes, SUFFIXES) for f in g.values()]
    for path in tqdm(paths, desc="reading", unit="file", disable=None, leave=False):
        if _is_frames(path):
            skipped.append(f"{path} holds frames, not events")
            continue
        try:
            surveys[path] = survey(path)
        except SpikformerError as error:
            skipped.append(f"{error}")
    return Report(surveys, skipped)


def local_info(data_dir: str | Path | None) -> DatasetInfo:
    """The facts with the class names of the folder, or without them if the folder cannot be used as it is."""
    return folder.local_info(data_dir, INFO, SUFFIXES)


def count(data_dir: str | Path | None) -> dict[str, int]:
    """Recordings on this machine, by the split that they are used for.

    Args:
        data_dir: the folder that holds train and test, or the class folders.

    Raises:
        SpikformerError: they cannot be used as they are.
    """
    return folder.count(data_dir, INFO, SUFFIXES, "recording")
