"""Which way does a digit go round? A task that needs time: simulated events of digits on a closed path."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from . import digits
from .augment import Augment, check_augment
from .base import Splits
from .cache import Arrays, Cache
from .digits_dvs import INFO as DIGITS_DVS
from .digits_dvs import images
from .events import check_cut, to_frames
from .recordings import Frames, check_frame_size, check_steps
from .simulated_camera import simulate

TIME_STEPS = 8  # T, unless another is given
INFO = replace(
    DIGITS_DVS,
    name="digits-motion",
    title="Which way a handwritten digit goes round (scikit-learn), simulated events",
    image_size=16,
    classes=("clockwise", "counter-clockwise"),
    num_classes=2,
    default_model="digits-motion-2-64",
    obtain="simulated from scikit-learn's digits",
    time_steps=TIME_STEPS,
    samples={"train": 2516, "val": 360, "test": 718},
)
REACH = 0.2  # radius of the path, as a share of half the image
PERIOD = 200_000  # microseconds of a round


def load(
    data_dir: str | Path | None = None,
    augment: Augment | None = None,
    time_steps: int = TIME_STEPS,
    image_size: int = INFO.image_size,
    samples_per_class: int | None = None,
    split_seed: int | None = None,
    frames: str = "count",
) -> Splits:
    """Simulated recordings of one round on a closed path, as T frames; every digit goes both ways, from a random start.

    Over a whole round each pixel gets brighter as often as it gets darker, and one way is the other played backwards:
    the sum of all events hardly tells them apart. The digit in a recording says nothing about its way.

    Args:
        data_dir: not used: the digits need no files.
        augment: augmentation of the training set, without mirror images; None: none.
        time_steps: number T of frames.
        image_size: pixels along each side of the simulated sensor.
        samples_per_class: number of recordings of each way to use in each part; None: all.
        split_seed: seed of the split of the digits; None: 0.
        frames: what the frames are equal in, count or time.
    """
    check_steps(time_steps), check_frame_size(image_size), check_cut(frames)
    check_augment("digits-motion", augment, ("neuromorphic",))
    key = {"what": "digits-motion", "reach": REACH, "time_steps": time_steps, "size": image_size, "by": frames}
    kept = Cache("digits-motion", None).get(key, lambda: _simulate(time_steps, image_size, frames))
    counts = torch.from_numpy(kept["frames"])  # [2, n, T, 2, H, W]: clockwise, then the other way
    pixels, targets = digits.read()

    def part(indices: list[int], augment: Augment | None) -> Frames:
        some = indices[:samples_per_class]
        ways = torch.arange(2).repeat_interleave(len(some))
        # Each way has keys of its own: the same digit is in both classes.
        source = torch.cat([torch.stack([pixels[some], torch.full_like(pixels[some], way)], 1) for way in (0.0, 1.0)])
        return Frames(counts[:, some].flatten(0, 1), ways, augment, source)

    # Digits in a mixed order, so that any number of them holds all kinds.
    order = np.random.RandomState(0).permutation(len(targets))
    train, val, test = (
        [int(i) for i in order if i in chosen] for chosen in map(set, digits.split(targets, None, split_seed))
    )
    info = replace(INFO, image_size=image_size, time_steps=time_steps)
    return Splits(info, part(train, augment), part(val, None), part(test, None))


def record(pixels: torch.Tensor, numbers: list[int], clockwise: bool, size: int) -> list[np.ndarray]:
    """Recordings of one round, of dtype ``EVENT``.

    Args:
        pixels: digits with a margin, ``[B, H, W]`` in [0, 1].
        numbers: number of each digit; it fixes its start and its noise, the same for both ways.
        clockwise: which way.
        size: pixels along each side of the sensor.
    """
    starts = [np.random.default_rng(number).random() for number in numbers]
    ways = [-1 if clockwise else 1] * len(numbers)
    # Noise of its own for each way, and a round before, which brings the pixels into the state that they come back to.
    seeds = [2 * number + clockwise for number in numbers]
    whole = simulate(pixels, seeds, size, loops=2, period=PERIOD, reach=REACH, ways=ways, starts=starts)
    last = [events[events["t"] >= PERIOD] for events in whole]
    for events in last:
        events["t"] -= PERIOD
    return last


def _simulate(time_steps: int, size: int, by: str) -> Arrays:
    pixels, _ = images()
    both: list[list[np.ndarray]] = [[], []]
    for chunk in tqdm(
        torch.arange(len(pixels)).split(64), desc="simulating digits-motion", unit_scale=64, disable=None
    ):
        for frames, clockwise in zip(both, (True, False), strict=True):
            for events in record(pixels[chunk], chunk.tolist(), clockwise, size):
                frames.append(to_frames(events, time_steps, size, size, by))
    return {"frames": np.stack([np.stack(frames) for frames in both])}
