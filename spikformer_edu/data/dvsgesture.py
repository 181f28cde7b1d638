"""DVS128 Gesture: people making eleven gestures in front of an event camera (Amir et al., 2017).

Three forms of it are read: tonic's files, SpikingJelly's, and the original recordings with their tables of times.
"""

import os
import re
import shutil
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..errors import SpikformerError
from .augment import Augment, check_augment
from .base import DatasetInfo, Splits, stratified_split
from .cache import Cache
from .events import SENSOR, check_cut, read_events, write_events
from .files import SCRATCH, absent, class_folders, data_folder, download, listing, places, unpack
from .recordings import Recordings, check_frame_size, check_steps

TIME_STEPS = 16  # T, unless another is given
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
    obtain="downloaded at the first use, where the host allows it; else fetch ibmGestureTrain.tar.gz and "
    "ibmGestureTest.tar.gz (figshare, as tonic.datasets.DVSGesture does) into that folder",
    licence="CC BY 4.0",
    citation="A. Amir et al., A Low Power, Fully Event-Based Gesture Recognition System, CVPR 2017",
    time_steps=TIME_STEPS,
    samples={"train": 1_077, "test": 264},
)
FOLDERS = {"train": "ibmGestureTrain", "test": "ibmGestureTest"}  # tonic's
CUT = "events_np"  # SpikingJelly's name of the folder with one file a gesture: train/<label>/*.npz, test/<label>/*.npz
Part = tuple[Path, list[str], list[int]]  # a folder, names in it, and labels


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
        data_dir: folder to look in: for tonic's ``DVSGesture/ibmGestureTrain/userNN_light/<label>.npy`` or its
            archives, SpikingJelly's ``events_np`` or ``frames_number_T_split_by_number``, or the original
            ``DvsGesture/userNN_light.aedat`` with ``userNN_light_labels.csv``, which are cut into ``events_np`` once;
            without any, tonic's archives are downloaded. None: ``$SPIKFORMER_DATA``, else ``./data``.
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
    found = find(data_dir, time_steps)
    if found is None:
        _unpack_archives(data_dir)
        found = _cut_originals(data_dir) or find(data_dir, time_steps) or _fetch(data_dir)
    cache = Cache("dvsgesture", places(INFO, data_dir)[-1])
    parts = {}
    for part, (folder, files, labels) in found.items():
        if len(files) < INFO.samples[part]:
            warnings.warn(
                f"{folder} holds {len(files):,} of {INFO.samples[part]:,} recordings of {INFO.title}", stacklevel=3
            )
        parts[part] = folder, files, torch.tensor(labels)

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


def find(data_dir: str | Path | None, time_steps: int = TIME_STEPS) -> dict[str, Part] | None:
    """The recordings of "train" and "test", tonic's or SpikingJelly's."""
    for place in (*places(INFO, data_dir), data_folder(data_dir) / "DVS128Gesture"):
        if (place / FOLDERS["train"]).is_dir():
            return {part: (place / folder, *_walk(place / folder)) for part, folder in FOLDERS.items()}
        for name in (CUT, f"frames_number_{time_steps}_split_by_number"):
            if class_folders(place / name / "train"):
                return {part: _labelled(place / name / part) for part in FOLDERS}
    return None


def count(data_dir: str | Path | None) -> dict[str, int]:
    """Recordings on this machine, by split."""
    found = find(data_dir)
    return {} if found is None else {part: len(files) for part, (_, files, _) in found.items()}


def _labelled(folder: Path) -> Part:
    """SpikingJelly's files: a folder a label, 0 to 10."""
    labels = [str(label) for label in range(INFO.num_classes)]
    files = listing(folder, labels, (".npz",))
    names = [f"{label}/{file}" for label, group in zip(labels, files, strict=True) for file in group]
    return folder, names, [int(name.split("/")[0]) for name in names]


def _unpack_archives(data_dir: str | Path | None) -> None:
    for place in places(INFO, data_dir):
        for folder in FOLDERS.values():
            archive = place / f"{folder}.tar.gz"
            if archive.is_file() and not (place / folder).is_dir():
                unpack(archive, place)
        archive = place / "DvsGesture.tar.gz"
        if archive.is_file() and not (place / "DvsGesture").is_dir():
            unpack(archive, place)


def _cut_originals(data_dir: str | Path | None) -> dict[str, Part] | None:
    """Cut the original recordings, one of all gestures of a user in a light, into a file a gesture."""
    candidates = [place / name for place in places(INFO, data_dir) for name in ("DvsGesture", ".")]
    root = next((place for place in candidates if (place / "trials_to_train.txt").is_file()), None)
    if root is None:
        return None
    target = places(INFO, data_dir)[0] / CUT
    scratch = target.with_name(f"{SCRATCH}cut-{os.getpid()}")
    try:
        for part in FOLDERS:
            trials = (root / f"trials_to_{part}.txt").read_text().split()
            for trial in tqdm(trials, desc=f"cutting {part}", unit="file", disable=None):
                events = read_events(root / trial, (SENSOR, SENSOR))
                table = np.loadtxt(root / f"{Path(trial).stem}_labels.csv", dtype=np.int64, delimiter=",", skiprows=1)
                for number, (label, start, end) in enumerate(table.reshape(-1, 3).tolist()):
                    mine = events[(events["t"] >= start) & (events["t"] < end)]
                    name = f"{Path(trial).stem}_{number}.npz"
                    write_events(scratch / part / str(label - 1) / name, mine)
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # another process was faster
            scratch.rename(target)
    except (OSError, ValueError) as error:
        if isinstance(error, SpikformerError):
            raise
        raise SpikformerError(f"{root} is not the original {INFO.title} ({error}): {INFO.obtain}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return find(data_dir)


def _fetch(data_dir: str | Path | None) -> dict[str, Part]:
    """Download and unpack tonic's archives."""
    from tonic.datasets import DVSGesture  # takes seconds

    place = places(INFO, data_dir)[0]
    sources = ((DVSGesture.train_url, DVSGesture.train_md5), (DVSGesture.test_url, DVSGesture.test_md5))
    for folder, (url, md5) in zip(FOLDERS.values(), sources, strict=True):
        try:
            if not (place / f"{folder}.tar.gz").is_file():
                download(url, md5, place / f"{folder}.tar.gz")
        except SpikformerError as error:
            raise absent(INFO, data_dir, f" ({error})") from None
    _unpack_archives(data_dir)
    found = find(data_dir)
    if found is None:
        raise absent(INFO, data_dir, " (the archives hold something else)")
    return found


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
