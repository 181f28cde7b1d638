"""DVS128 Gesture: people making eleven gestures in front of an event camera (Amir et al., 2017), in tonic's files."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import SpikformerError
from .augment import Augment, check_augment
from .base import DatasetInfo, Splits, stratified_split
from .cache import Cache
from .events import SENSOR, check_cut
from .files import absent, class_folders, places, unpack
from .recordings import Recordings, check_frame_size, check_steps

TIME_STEPS = 16  # T, unless told otherwise
INFO = DatasetInfo(
    name="dvsgesture",
    title="DVS128 Gesture",
    classes=(
        "hand clapping",
        "right hand wave",
        "left hand wave",
        "right arm clockwise",
        "right arm counter clockwise",
        "left arm clockwise",
        "left arm counter clockwise",
        "arm roll",
        "air drums",
        "air guitar",
        "other gestures",
    ),
    channels=2,
    image_size=128,
    mean=(),
    std=(),
    default_model="dvsgesture-2-256",
    folder="DVSGesture",
    obtain="fetch ibmGestureTrain.tar.gz and ibmGestureTest.tar.gz (figshare, as tonic.datasets.DVSGesture does) "
    "into that folder",
    licence="CC BY 4.0",
    citation="A. Amir et al., A Low Power, Fully Event-Based Gesture Recognition System, CVPR 2017",
    time_steps=TIME_STEPS,
    samples={"train": 1_077, "test": 264},
)
FOLDERS = {"train": "ibmGestureTrain", "test": "ibmGestureTest"}


def load(
    data_dir: str | Path | None = None,
    augment: Augment | None = None,
    time_steps: int = TIME_STEPS,
    image_size: int = INFO.image_size,
    samples_per_class: int | None = None,
    split_seed: int | None = None,
    val_fraction: float | None = None,
    frames: str = "count",
) -> Splits:
    """Recordings as T frames; the official training and test users.

    Args:
        data_dir: folder to look in for ``DVSGesture/ibmGestureTrain/userNN_light/<label>.npy``; archives are unpacked.
            None: ``$SPIKFORMER_DATA``, else ``./data``.
        augment: augmentation of the training set; None: none.
        time_steps: number T of frames.
        image_size: height and width of a frame, in pixels.
        samples_per_class: number of recordings of each class to use; None: all.
        split_seed: seed of the choice of recordings, for validation and for ``samples_per_class``; None: 0.
        val_fraction: share of each class that is taken from training for validation; None: 0.
        frames: what the frames are equal in: count (of events, as in the paper) or time.

    Raises:
        SpikformerError: absent, or a gesture is missing. A broken recording is reported when it is read.
    """
    check_steps(time_steps), check_frame_size(image_size), check_cut(frames)
    check_augment("dvsgesture", augment, ("flip", "neuromorphic"))
    for place in places(INFO, data_dir):
        for folder in FOLDERS.values():
            archive = place / f"{folder}.tar.gz"
            if archive.is_file() and not (place / folder).is_dir():
                unpack(archive, place)
    root = find(data_dir)
    if root is None:
        raise absent(INFO, data_dir)
    cache = Cache("dvsgesture", places(INFO, data_dir)[-1])
    parts = {}
    for part, folder in FOLDERS.items():
        files, labels = _walk(root / folder)
        if len(files) < INFO.samples[part]:
            warnings.warn(
                f"{root / folder} holds {len(files):,} of {INFO.samples[part]:,} recordings of {INFO.title}",
                stacklevel=3,
            )
        parts[part] = root / folder, files, torch.tensor(labels)

    def split(name: str, indices: torch.Tensor, augment: Augment | None) -> Recordings:
        folder, names, labels = parts[name]
        chosen = [names[i] for i in indices]
        return Recordings(
            folder, chosen, labels[indices], time_steps, image_size, augment, cache, frames, (SENSOR, SENSOR)
        )

    rest, val = stratified_split(parts["train"][2], val_fraction, samples_per_class, split_seed)
    test, _ = stratified_split(parts["test"][2], None, samples_per_class, split_seed)
    return Splits(
        replace(INFO, image_size=image_size, time_steps=time_steps),
        split("train", rest, augment),
        split("train", val, None) if len(val) else None,
        split("test", test, None),
    )


def find(data_dir: str | Path | None) -> Path | None:
    """The folder that holds ibmGestureTrain and ibmGestureTest."""
    for place in places(INFO, data_dir):
        if (place / FOLDERS["train"]).is_dir():
            return place
    return None


def count(data_dir: str | Path | None) -> dict[str, int]:
    """Recordings on this machine, by split."""
    place = find(data_dir)
    return {} if place is None else {split: len(_walk(place / folder)[0]) for split, folder in FOLDERS.items()}


def _walk(folder: Path) -> tuple[list[str], list[int]]:
    """Names relative to the folder, in order of user, light and label; and labels.

    Raises:
        SpikformerError: a gesture is missing.
    """
    names, labels = [], []
    for user in class_folders(folder):
        if re.fullmatch(r"user\d+_\w+", user):
            files = [f for f in (folder / user).glob("*.npy") if f.stem.isdigit() and int(f.stem) < INFO.num_classes]
            for file in sorted(files, key=lambda f: int(f.stem)):
                names.append(f"{user}/{file.name}")
                labels.append(int(file.stem))
    missing = sorted(set(range(INFO.num_classes)) - set(labels))
    if missing:
        gesture = f"{missing[0]} ({INFO.classes[missing[0]]})"
        raise SpikformerError(f"no recording of gesture {gesture} in {folder}: {INFO.obtain}")
    return names, labels
