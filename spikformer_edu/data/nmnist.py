"""N-MNIST: the digits of MNIST in front of an event camera that makes three small turns (Orchard et al., 2015)."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import SpikformerError
from .augment import Augment, check_augment
from .base import DatasetInfo, Splits, stratified_split
from .events import check_cut
from .files import absent, class_folders, download, listing, places, unpack
from .recordings import Recordings, check_frame_size, check_steps

TIME_STEPS = 4  # T, unless another is given
SENSOR = (34, 34)  # width and height in pixels
INFO = DatasetInfo(
    name="nmnist",
    title="N-MNIST",
    classes=tuple("0123456789"),
    channels=2,
    image_size=32,
    mean=(),
    std=(),
    default_model="nmnist-2-64",
    folder="NMNIST",
    obtain="downloaded at the first use; where that fails fetch train.zip and test.zip by hand into that folder "
    "(doi.org/10.17632/468j46mzdv.1; Train/0/*.bin ... Test/9/*.bin when unpacked)",
    licence="CC BY-SA 4.0",
    citation="G. Orchard et al., Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades, "
    "Frontiers in Neuroscience 9:437, 2015",
    time_steps=TIME_STEPS,
    samples={"train": 60_000, "test": 10_000},
)
FOLDERS = {"train": "Train", "test": "Test"}


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
    """Recordings as T frames; the official training and test set.

    They are looked for in ``NMNIST/Train/<digit>/*.bin`` and ``NMNIST/Test/<digit>/*.bin``, as tonic leaves them, and
    else in the archives beside these; without those they are downloaded from where tonic downloads them, with its
    checksums.

    Args:
        data_dir: folder to look in; None: ``$SPIKFORMER_DATA``, else ``./data``.
        augment: augmentation of the training set; None: none.
        time_steps: number T of frames.
        image_size: height and width of a frame, in pixels; the sensor has 34 x 34.
        samples_per_class: number of recordings of each class to use; None: all.
        split_seed: seed of the choice of recordings, for validation and for ``samples_per_class``; None: 0.
        val_fraction: share of each class that is taken from training for validation; None: 0.
        frames: what the frames are equal in, count (of events) or time.

    Raises:
        SpikformerError: absent and not to be downloaded, or a digit is missing. A broken recording is reported when it
            is read.
    """
    check_steps(time_steps), check_frame_size(image_size), check_cut(frames)
    check_augment("nmnist", augment, ("flip", "neuromorphic"))
    root = find(data_dir) or _fetch(data_dir)
    parts = {}
    for part, folder in FOLDERS.items():
        files = listing(root / folder, INFO.classes, (".bin",))
        names = [f"{c}/{file}" for c, group in zip(INFO.classes, files, strict=True) for file in group]
        if len(names) < INFO.samples[part]:
            message = f"{root / folder} holds {len(names):,} of {INFO.samples[part]:,} recordings of {INFO.title}"
            warnings.warn(message, stacklevel=3)
        parts[part] = names, torch.arange(10).repeat_interleave(torch.tensor([len(group) for group in files]))

    def split(part: str, indices: torch.Tensor, augment: Augment | None) -> Recordings:
        names, labels = parts[part]
        chosen = [names[i] for i in indices]
        # A recording is read as fast as the cache would be.
        return Recordings(
            root / FOLDERS[part], chosen, labels[indices], time_steps, image_size, augment, None, frames, SENSOR
        )

    rest, val = stratified_split(parts["train"][1], val_fraction, samples_per_class, split_seed)
    test, _ = stratified_split(parts["test"][1], None, samples_per_class, split_seed)
    return Splits(
        replace(INFO, image_size=image_size, time_steps=time_steps),
        split("train", rest, augment),
        split("train", val, None) if len(val) else None,
        split("test", test, None),
    )


def find(data_dir: str | Path | None) -> Path | None:
    """The folder that holds Train and Test."""
    for place in places(INFO, data_dir):
        if all(set(class_folders(place / folder)) & set(INFO.classes) for folder in FOLDERS.values()):
            return place
    return None


def count(data_dir: str | Path | None) -> dict[str, int]:
    """Recordings on this machine, by split."""
    place = find(data_dir)
    if place is None:
        return {}
    return {part: sum(map(len, listing(place / folder, INFO.classes, (".bin",)))) for part, folder in FOLDERS.items()}


def _fetch(data_dir: str | Path | None) -> Path:
    """Unpack the archives, downloaded if need be, and return the folder that holds Train and Test."""
    place = places(INFO, data_dir)[0]
    for part, folder in FOLDERS.items():
        if class_folders(place / folder):
            continue
        archive = place / f"{part}.zip"
        if not archive.is_file():
            from tonic.datasets import NMNIST  # takes seconds

            url, md5 = (NMNIST.train_url, NMNIST.train_md5) if part == "train" else (NMNIST.test_url, NMNIST.test_md5)
            try:
                download(url, md5, archive)
            except SpikformerError as error:
                raise absent(INFO, data_dir, f" ({error})") from None
        unpack(archive, place)
    found = find(data_dir)
    if found is None:
        raise absent(INFO, data_dir, " (the archives hold something else)")
    return found
