"""CIFAR-10 and CIFAR-100, from torchvision's layout or from class folders, decoded once into one array."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ..errors import SpikformerError
from .augment import Augment, check_augment
from .base import DatasetInfo, Splits, stratified_split
from .cache import Arrays, Cache
from .files import PICTURES, absent, class_folders, digest, download, listing, places, unpack
from .images import Images, decode

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

INFO = DatasetInfo(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    channels=3,
    image_size=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    default_model="cifar10-4-384",
    folder="cifar10",
    obtain="put cifar-10-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html there, or class folders "
    "train/<class>/* and test/<class>/*",
    licence="none stated; used for research and teaching",
    citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto, 2009",
    samples={"train": 50_000, "test": 10_000},
)
# Class of torchvision that knows the published archive and its checksums, and the folder inside that archive.
PUBLISHED = {"cifar10": ("CIFAR10", "cifar-10-batches-py"), "cifar100": ("CIFAR100", "cifar-100-python")}


def load(
    data_dir: str | Path | None = None,
    augment: Augment | None = None,
    samples_per_class: int | None = None,
    split_seed: int | None = None,
    val_fraction: float | None = None,
    info: DatasetInfo = INFO,
) -> Splits:
    """All images in memory; they are downloaded if they are not on this machine.

    Args:
        data_dir: folder to look in; None: ``$SPIKFORMER_DATA``, else ``./data``.
        augment: augmentation of the training set; None: none.
        samples_per_class: number of images of each class to use; None: all.
        split_seed: seed of the choice of images, for validation and for ``samples_per_class``; None: 0.
        val_fraction: share of each class that is taken from training for validation; None: 0.
        info: the facts about the data set.

    Raises:
        SpikformerError: absent and cannot be downloaded, a class missing, or a file that cannot be read.
    """
    check_augment(info.name, augment, ("flip", "crop_padding", "randaugment", "erasing"))
    kind, folder = find(data_dir, info) or fetch(data_dir, info)
    read = _read_batches if kind == "batches" else _read_folders
    arrays = {name: read(info, folder, name, places(info, data_dir)[-1]) for name in ("train", "test")}
    targets = {name: torch.from_numpy(part["targets"]) for name, part in arrays.items()}
    rest, val = stratified_split(targets["train"], val_fraction, samples_per_class, split_seed)
    test, _ = stratified_split(targets["test"], None, samples_per_class, split_seed)

    def split(name: str, indices: torch.Tensor, augment: Augment | None) -> Images:
        pixels = torch.from_numpy(arrays[name]["pixels"])
        whole = len(indices) == len(pixels)
        return Images(pixels if whole else pixels[indices], targets[name][indices], info, augment)

    return Splits(
        info, split("train", rest, augment), split("train", val, None) if len(val) else None, split("test", test, None)
    )


def find(data_dir: str | Path | None, info: DatasetInfo = INFO) -> tuple[str, Path] | None:
    """The files on this machine: torchvision's ("batches", folder), or ("folders", folder with train and test)."""
    for place in places(info, data_dir):
        if (place / PUBLISHED[info.name][1]).is_dir():
            return "batches", place
        if set(class_folders(place / "train")) & set(info.classes):
            return "folders", place
    return None


def count(data_dir: str | Path | None, info: DatasetInfo = INFO) -> dict[str, int]:
    """Images on this machine, by split.

    Args:
        data_dir: folder to look in; None: ``$SPIKFORMER_DATA``, else ``./data``.
        info: the facts about the data set.

    Raises:
        SpikformerError: some files are missing.
    """
    source = find(data_dir, info)
    if source is None:
        return {}
    if source[0] == "batches":
        published, folder = _published(info), source[1] / PUBLISHED[info.name][1]
        if not all((folder / name).is_file() for name, _ in published.train_list + published.test_list):
            raise _broken(info, source[1])
        return dict(info.samples)
    return {
        name: sum(len(files) for files in listing(source[1] / name, info.classes, PICTURES))
        for name in ("train", "test")
    }


def fetch(data_dir: str | Path | None, info: DatasetInfo) -> tuple[str, Path]:
    """Unpack the published archive, after downloading it if it is not there.

    Args:
        data_dir: folder to look in; None: ``$SPIKFORMER_DATA``, else ``./data``.
        info: the facts about the data set.

    Returns:
        What ``find`` then gives.

    Raises:
        SpikformerError: no network, or a damaged archive.
    """
    published = _published(info)
    place = places(info, data_dir)[0]
    archive = next((p / published.filename for p in places(info, data_dir) if (p / published.filename).exists()), None)
    if archive is None:
        archive = place / published.filename
        try:
            download(published.url, published.tgz_md5, archive)
        except SpikformerError as error:
            raise absent(info, data_dir, f" and {error}") from None
    unpack(archive, place)
    found = find(data_dir, info)
    if found is None:
        raise SpikformerError(f"{archive} holds no {PUBLISHED[info.name][1]}: {info.obtain}")
    return found


def _published(info: DatasetInfo) -> "type[CIFAR10]":
    import torchvision

    return getattr(torchvision.datasets, PUBLISHED[info.name][0])


def _read_batches(info: DatasetInfo, folder: Path, name: str, root: Path) -> Arrays:
    """The pickled batches; torchvision opens only files that have the published checksum."""
    try:
        data = _published(info)(folder, train=name == "train")
    except (OSError, RuntimeError):
        raise _broken(info, folder) from None
    pixels = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))  # [n, C, H, W]
    return {"pixels": pixels, "targets": np.array(data.targets, dtype=np.int64)}


def _broken(info: DatasetInfo, folder: Path) -> SpikformerError:
    return SpikformerError(f"{folder / PUBLISHED[info.name][1]} is incomplete or damaged: remove it and {info.obtain}")


def _read_folders(info: DatasetInfo, folder: Path, name: str, root: Path) -> Arrays:
    entries = listing(folder / name, info.classes, PICTURES)
    found, expected = sum(map(len, entries)), info.samples[name]
    if found < expected:
        warnings.warn(f"{folder / name} holds {found:,} of {expected:,} images of {info.title}", stacklevel=4)
    # The key holds their contents: bitmaps from an archive may all have the same size and time. Hashing takes about a
    # tenth of the time of decoding.
    key = {"what": "images", "classes": info.classes, "size": info.image_size, "files": digest(entries)}
    return Cache(info.name, root).get(key, lambda: _decode_all(info, name, entries))


def _decode_all(info: DatasetInfo, name: str, entries: list[dict[str, os.DirEntry[str]]]) -> Arrays:
    def pixels(entry: os.DirEntry[str]) -> np.ndarray:
        image = np.asarray(decode(entry.path, entry.path))
        if image.shape[:2] != (info.image_size, info.image_size):
            size = f"{image.shape[1]} x {image.shape[0]}"
            raise SpikformerError(
                f"{entry.path} is {size} pixels, {info.title} is {info.image_size} x {info.image_size}: "
                "for other pictures use --dataset folder"
            )
        return image.transpose(2, 0, 1)

    files = [entry for group in entries for entry in group.values()]
    targets = np.repeat(np.arange(len(entries), dtype=np.int64), [len(group) for group in entries])
    images = np.empty((len(files), info.channels, info.image_size, info.image_size), dtype=np.uint8)
    for i, file in enumerate(tqdm(files, desc=f"{info.name} {name}", unit="image", disable=None)):
        images[i] = pixels(file)
    return {"pixels": images, "targets": targets}
