"""Splits of event recordings, and how they are read by the batch."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import SpikformerError
from .augment import Augment, augment_frames
from .base import Split, digests
from .cache import Arrays, Cache
from .event_formats import Sensor
from .events import SENSOR, cut
from .transfer import send


class Frames(Split):
    """Event frames kept in memory, on any device.

    Args:
        frames: event counts ``[n, T, 2, H, W]``.
        targets: labels ``[n]``.
        augment: augmentation; None: none.
        source: images ``[n, ...]`` that the frames were simulated from; the keys come from them, since frames change
            with T and size.
    """

    def __init__(self, frames: Tensor, targets: Tensor, augment: Augment | None, source: Tensor):
        self.frames, self.targets, self.augment, self.source = frames, targets, augment, source
        self.device = frames.device

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        indices = send(indices, self.device)
        frames = self.frames[indices].float().transpose(0, 1)  # [T, B, 2, H, W]
        return augment_frames(frames, self.augment, generator), self.targets[indices]

    def keys(self) -> list[bytes]:
        return digests(self.source)

    def to(self, device: torch.device | str) -> "Frames":
        return Frames(self.frames.to(device), self.targets.to(device), self.augment, self.source)


class Recordings(Split):
    """Recordings on disk; each is cut into frames when it is first needed, and the frames are kept in the cache.

    Args:
        folder: folder that ``names`` are relative to.
        names: names of the files.
        targets: labels ``[n]``.
        time_steps: number T of frames.
        size: height and width of a frame, in pixels.
        augment: augmentation; None: none.
        cache: cache that keeps the frames; None: every recording is read each time.
        by: what the frames are equal in, count or time.
        sensor: width and height of the sensor of all recordings, whatever their files state; None: as they state.
        fallback: sensor of the recordings whose files state none, by suffix of their names.
        transform: changes the events of a recording before they are cut, a pipeline of tonic's for example; its result
            is not kept in the cache, and what it draws from NumPy's random numbers is the same for the same epoch and
            batch. None: nothing.

    Attributes:
        steps_back: for each recording that was read, the number of events stamped earlier than the one before, ``[n]``.
    """

    def __init__(
        self,
        folder: Path,
        names: list[str],
        targets: Tensor,
        time_steps: int,
        size: int,
        augment: Augment | None,
        cache: Cache | None,
        by: str = "count",
        sensor: Sensor | None = None,
        fallback: Mapping[str, Sensor] | None = None,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self.folder, self.names, self.targets = folder.absolute(), names, targets  # the working folder may change
        self.time_steps, self.size, self.augment, self.cache = time_steps, size, augment, cache
        self.by, self.sensor, self.fallback, self.transform = by, sensor, fallback or {}, transform
        self.steps_back = torch.zeros(len(names), dtype=torch.int64)

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        if self.transform is None:
            each = [self.frames(int(i)) for i in indices]
        else:
            each = self._transformed(indices, generator)
        frames = torch.from_numpy(np.stack(each, axis=1).astype(np.float32))  # [T, B, 2, H, W]
        return augment_frames(frames, self.augment, generator), self.targets[indices]

    def _transformed(self, indices: Tensor, generator: torch.Generator | None) -> list[np.ndarray]:
        """Frames of transformed events; the transforms of tonic draw from NumPy's global random numbers."""
        before = np.random.get_state()
        seeds = indices if generator is None else torch.randint(2**32, (len(indices),), generator=generator)
        each = []
        try:
            for i, seed in zip(indices.tolist(), seeds.tolist(), strict=True):
                np.random.seed(seed)
                each.append(self._cut(i))
        finally:
            np.random.set_state(before)
        return each

    def _cut(self, index: int) -> np.ndarray:
        """The frames of one recording from its file; what its time stamps do is counted."""
        path = self.folder / self.names[index]
        sensor, fallback = self.sensor, self._fallback(index)
        frames, back = cut(path, self.time_steps, self.size, self.by, sensor, fallback, self.transform)
        self.steps_back[index] = back
        return frames

    def _fallback(self, index: int) -> Sensor | None:
        return self.fallback.get(Path(self.names[index]).suffix.lower())

    def keys(self) -> list[bytes]:
        return [os.fsencode(name) for name in self.names]

    def read(self, index: int) -> bytes:
        try:
            return (self.folder / self.names[index]).read_bytes()
        except OSError as error:
            raise SpikformerError(f"cannot read {self.folder / self.names[index]}: {error.strerror}") from None

    def rows(self, part: str, classes: Sequence[str]) -> list[tuple[str, str, str, str]]:
        """A line of a split file for each recording: part, class, name of the file, SHA-256 of its content.

        Args:
            part: name of this split.
            classes: class names, by label.

        Raises:
            SpikformerError: a file cannot be read.
        """
        return [
            (part, classes[label], name, hashlib.sha256(self.read(i)).hexdigest())
            for i, (name, label) in enumerate(zip(self.names, self.targets.tolist(), strict=True))
        ]

    def frames(self, index: int) -> np.ndarray:
        """Event counts of one recording, before augmentation: ``[T, 2, H, W]``."""
        path = self.folder / self.names[index]
        if self.cache is None:
            return self._cut(index)
        try:
            status = os.stat(path)
        except OSError as error:
            raise SpikformerError(f"cannot read {path}: {error.strerror}") from None
        key = {
            "what": "frames of equal " + {"count": "event count", "time": "time"}[self.by],
            "file": self.names[index],
            "bytes": status.st_size,
            "changed": status.st_mtime_ns,
            "time_steps": self.time_steps,
            "size": self.size,
            "sensor": self.sensor,
            "fallback": self._fallback(index),
        }

        def read() -> Arrays:
            frames = self._cut(index)
            return {"frames": frames, "steps_back": self.steps_back[index : index + 1].numpy()}

        entry = self.cache.get(key, read, compress=True)
        if "steps_back" in entry:  # older entries are of recordings in order of time
            self.steps_back[index] = int(entry["steps_back"][0])
        return entry["frames"]


def check_steps(time_steps: int) -> int:
    """The number of frames asked for.

    Args:
        time_steps: number T of frames.

    Raises:
        SpikformerError: below 1.
    """
    if time_steps < 1:
        raise SpikformerError(f"time_steps={time_steps}: give at least 1")
    return time_steps


def check_frame_size(image_size: int, most: int = SENSOR) -> int:
    """The frame size asked for.

    Args:
        image_size: height and width of a frame, in pixels.
        most: greatest size, in pixels.

    Raises:
        SpikformerError: below 8 pixels or above ``most``.
    """
    if not 8 <= image_size <= most:
        raise SpikformerError(f"image_size={image_size}: event frames have 8 to {most} pixels along each side")
    return image_size


def first_nine_tenths(counts: list[int], split_seed: int | None) -> tuple[list[int], list[int]]:
    """The official code's split of recordings that are sorted by class.

    The first ceil(0.9 n) of a class are for training and the others for testing; neither part of a class is empty.

    Args:
        counts: number of recordings of each class.
        split_seed: seed with which each class is shuffled first; None: no shuffle.

    Returns:
        Indices of the training and of the test part.
    """
    random = np.random.RandomState(split_seed or 0)
    train, test, first = [], [], 0
    for count in counts:
        order = np.arange(count) if split_seed is None else random.permutation(count)
        cut = min(math.ceil(0.9 * count), count - 1)
        train += [first + int(i) for i in order[:cut]]
        test += [first + int(i) for i in order[cut:]]
        first += count
    return train, test
