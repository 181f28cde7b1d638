"""CIFAR10-DVS: CIFAR-10 images moved in front of an event camera (Li et al., 2017), 1,000 recordings a class."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import SpikformerError
from .augment import Augment, check_augment
from .base import DatasetInfo, Splits, stratified_split
from .cache import Cache
from .cifar10 import INFO as CIFAR10
from .events import SENSOR, check_cut
from .files import absent, class_folders, download, listing, places, unpack
from .recordings import Recordings, check_frame_size, check_steps, first_nine_tenths

TIME_STEPS = 16  # T, unless another is given
INFO = DatasetInfo(
    name="cifar10dvs",
    title="CIFAR10-DVS",
    classes=CIFAR10.classes,
    channels=2,
    image_size=128,
    mean=(),
    std=(),
    default_model="cifar10dvs-2-256",
    folder="CIFAR10DVS",
    obtain="downloaded at the first use, where the host allows it; else fetch the ten class archives (airplane.zip "
    "...) or CIFAR10DVS.zip by hand from figshare (doi.org/10.6084/m9.figshare.4724671) into that folder; "
    "`python -m spikformer_edu.data simulate` makes a simulated stand-in",
    licence="as stated on its figshare page",
    citation="H. Li et al., CIFAR10-DVS: An Event-Stream Dataset for Object Classification, "
    "Frontiers in Neuroscience 11:309, 2017",
    time_steps=TIME_STEPS,
    samples={"train": 9_000, "test": 1_000},
)
LABEL = "SIMULATED.txt"  # marks a folder of simulated recordings; its subfolders are the classes
SUFFIXES = (".aedat4", ".aedat", ".npz")


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
    """Recordings as T frames, split as the official code does: 9 to 1 in order of file name.

    AEDAT4 (tonic's archive), AEDAT 2.0 (the original one) and SpikingJelly's ``.npz`` are read, from class folders in
    the data set's folder or in the data directory itself; archives are unpacked, and without any the published one is
    downloaded. In a folder with SIMULATED.txt the class folders that are there are the classes.

    Args:
        data_dir: folder to look in; None: ``$SPIKFORMER_DATA``, else ``./data``.
        augment: augmentation of the training set; None: none.
        time_steps: number T of frames.
        image_size: height and width of a frame, in pixels.
        samples_per_class: number of recordings of each class to use; None: all.
        split_seed: seed of another split than the official one; None: the official one.
        val_fraction: share of each class that is taken from training for validation; None: 0.
        frames: what the frames are equal in: count (of events, as in the paper) or time.

    Raises:
        SpikformerError: absent, or a class is missing. A broken recording is reported when it is read.
    """
    check_steps(time_steps), check_frame_size(image_size), check_cut(frames)
    check_augment("cifar10dvs", augment, ("flip", "neuromorphic"))
    _unpack_archives(data_dir, find(data_dir, time_steps))
    folder = find(data_dir, time_steps) or _fetch(data_dir)
    info = describe(folder)
    entries = listing(folder, info.classes, SUFFIXES)
    for name, files in zip(info.classes, entries, strict=True):
        if len(files) < 2:
            raise SpikformerError(
                f"class {name!r} has one recording in {folder / name}: training and test need one each"
            )
        stems: dict[str, str] = {}
        for file in files:
            twin = stems.setdefault(file.rpartition(".")[0], file)
            if twin != file:  # one could go to training and the other to test
                raise SpikformerError(f"{folder / name} holds a recording twice, {twin} and {file}: remove one")
    found, expected = sum(map(len, entries)), sum(info.samples.values())
    if found < expected:
        warnings.warn(f"{folder} holds {found:,} of {expected:,} recordings of {info.title}", stacklevel=3)
    names = [f"{name}/{file}" for name, files in zip(info.classes, entries, strict=True) for file in files]
    labels = torch.arange(len(entries)).repeat_interleave(torch.tensor([len(files) for files in entries]))
    cache = Cache("cifar10dvs", places(INFO, data_dir)[-1])

    def split(indices: torch.Tensor, augment: Augment | None) -> Recordings:
        chosen = [names[i] for i in indices]
        return Recordings(
            folder, chosen, labels[indices], time_steps, image_size, augment, cache, frames, (SENSOR, SENSOR)
        )

    train, test = (torch.tensor(part) for part in first_nine_tenths([len(files) for files in entries], split_seed))
    rest, val = stratified_split(labels[train], val_fraction, samples_per_class, split_seed)
    some, _ = stratified_split(labels[test], None, samples_per_class, split_seed)
    return Splits(
        replace(info, image_size=image_size, time_steps=time_steps),
        split(train[rest], augment),
        split(train[val], None) if len(val) else None,
        split(test[some], None),
    )


def _fetch(data_dir: str | Path | None) -> Path:
    """Download and unpack the published archive, from where tonic has it, and return the folder with the classes."""
    from tonic.datasets import CIFAR10DVS  # takes seconds

    try:
        download(CIFAR10DVS.url, CIFAR10DVS.file_md5, places(INFO, data_dir)[0] / CIFAR10DVS.filename)
    except SpikformerError as error:
        raise absent(INFO, data_dir, f" ({error})") from None
    _unpack_archives(data_dir, None)
    folder = find(data_dir)
    if folder is None:
        raise absent(INFO, data_dir, " (the archive holds something else)")
    return folder


def find(data_dir: str | Path | None, time_steps: int = TIME_STEPS) -> Path | None:
    """The folder with the class folders: the data set's, the data directory, or one that SpikingJelly made in them."""
    for place in places(INFO, data_dir):
        for folder in (
            place,
            place / "extract",
            place / "events_np",
            place / f"frames_number_{time_steps}_split_by_number",
        ):
            if (folder / LABEL).exists() or set(class_folders(folder)) & set(INFO.classes):
                return folder
    return None


def describe(folder: Path) -> DatasetInfo:
    """The facts about the recordings in a folder, simulated or not."""
    if not (folder / LABEL).exists():
        return INFO
    return replace(
        INFO, title="CIFAR10-DVS (simulated)", classes=tuple(class_folders(folder)), samples={}, simulated=True
    )


def local_info(data_dir: str | Path | None) -> DatasetInfo:
    """The facts about the recordings on this machine; without any, those of the published data set."""
    folder = find(data_dir)
    return INFO if folder is None else describe(folder)


def count(data_dir: str | Path | None) -> dict[str, int]:
    """Recordings on this machine, training and test together."""
    folder = find(data_dir)
    if folder is None:
        return {}
    info = describe(folder)
    kind = "simulated recordings" if info.simulated else "recordings"
    return {kind: sum(map(len, listing(folder, info.classes, SUFFIXES)))}


def _unpack_archives(data_dir: str | Path | None, folder: Path | None) -> None:
    """Unpack the classes that are missing from the archives beside them: in ``folder``, or if it is None anywhere."""
    for place in places(INFO, data_dir):
        if folder not in (None, place) or (place / LABEL).exists():
            continue
        missing = [name for name in INFO.classes if not (place / name).is_dir()]
        whole = place / "CIFAR10DVS.zip"
        if whole.is_file() and not all((place / f"{name}.zip").is_file() for name in missing):
            unpack(whole, place)
        for name in missing:
            if (place / f"{name}.zip").is_file():
                unpack(place / f"{name}.zip", place)
