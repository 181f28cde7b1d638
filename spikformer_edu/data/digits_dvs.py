"""The digits of scikit-learn in front of a simulated event camera: event data without any download."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import digits
from .augment import Augment, check_augment
from .base import Splits
from .cache import Arrays, Cache
from .events import check_cut, to_frames
from .recordings import Frames, check_frame_size, check_steps
from .simulated_camera import simulate

TIME_STEPS = 8  # T, unless another is given
INFO = replace(
    digits.INFO,
    name="digits-dvs",
    title="Handwritten digits (scikit-learn), simulated events",
    channels=2,
    mean=(),
    std=(),
    default_model="digits-dvs-2-64",
    obtain="simulated from scikit-learn's digits",
    time_steps=TIME_STEPS,
    simulated=True,
)
LOOPS = 2  # rounds along the path that each digit makes


def load(
    data_dir: str | Path | None = None,
    augment: Augment | None = None,
    time_steps: int = TIME_STEPS,
    image_size: int = INFO.image_size,
    samples_per_class: int | None = None,
    split_seed: int | None = None,
    frames: str = "count",
) -> Splits:
    """Simulated recordings of all digits as T frames, split as the digits are.

    Args:
        data_dir: not used: the digits need no files.
        augment: augmentation of the training set; None: none.
        time_steps: number T of frames.
        image_size: pixels along each side of the simulated sensor.
        samples_per_class: number of digits of each class to use in each part; None: all.
        split_seed: seed of the split; None: 0.
        frames: what the frames are equal in, count or time.
    """
    check_steps(time_steps), check_frame_size(image_size), check_cut(frames)
    check_augment("digits-dvs", augment, ("flip", "neuromorphic"))
    key = {"what": "digits-dvs", "loops": LOOPS, "time_steps": time_steps, "size": image_size}
    if frames != "count":
        key["by"] = frames
    kept = Cache("digits-dvs", None).get(key, lambda: _simulate(time_steps, image_size, frames))
    counts = torch.from_numpy(kept["frames"])
    pixels, targets = digits.read()
    train, val, test = digits.split(targets, samples_per_class, split_seed)
    return Splits(
        replace(INFO, image_size=image_size, time_steps=time_steps),
        Frames(counts[train], targets[train], augment, pixels[train]),
        Frames(counts[val], targets[val], None, pixels[val]),
        Frames(counts[test], targets[test], None, pixels[test]),
    )


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Digits with a margin, so that no stroke leaves the camera's view: ``[1797, 10, 10]`` in [0, 1], and labels."""
    pixels, targets = digits.read()
    return F.pad(pixels, (1, 1, 1, 1)), targets


def _simulate(time_steps: int, size: int, by: str) -> Arrays:
    pixels, _ = images()
    frames = []
    for chunk in tqdm(torch.arange(len(pixels)).split(64), desc="simulating digits-dvs", unit_scale=64, disable=None):
        for events in simulate(pixels[chunk], chunk.tolist(), size, LOOPS):
            frames.append(to_frames(events, time_steps, size, size, by))
    return {"frames": np.stack(frames)}
