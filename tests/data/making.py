"""Events and pictures for the tests of data sets."""

from pathlib import Path

import numpy as np

from spikformer_edu.data.events import EVENT


def some_events(count: int, seed: int = 0, sensor: int = 128) -> np.ndarray:
    random = np.random.default_rng(seed)
    events = np.empty(count, dtype=EVENT)
    events["t"] = np.sort(random.integers(0, 1_200_000, count))
    events["x"], events["y"] = random.integers(0, sensor, (2, count))
    events["p"] = random.integers(0, 2, count)
    return events


def write_npz(path: Path, events: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: events[name] for name in "txyp"})


def write_picture(path: Path, seed: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels
