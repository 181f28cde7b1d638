"""ImageNet-1k, from class folders (train/<wnid>/*, val/<wnid>/*) or from tar shards."""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..errors import SpikformerError
from .augment import Augment, check_augment
from .base import Absent, DatasetInfo, Split, Splits, choose
from .cache import Arrays, Cache
from .files import PICTURES, Pictures, absent, check_size, class_folders, listing, places

INFO = DatasetInfo(
    name="imagenet",
    title="ImageNet-1k (ILSVRC 2012)",
    classes=(),
    num_classes=1_000,
    channels=3,
    image_size=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    default_model="imagenet-8-512",
    folder="imagenet",
    obtain="fetch ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar by hand from image-net.org (account needed) and "
    "sort the images into train/<wnid>/* and val/<wnid>/*, or put tar shards train-*.tar and val-*.tar there",
    licence="non-commercial research and teaching; the images belong to their owners",
    citation="O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 115, 2015",
    samples={"train": 1_281_167, "val": 50_000},
)


TAKEN = ("flip", "crop_padding", "crop_area", "randaugment", "erasing")  # of an Augment, by photographs


def load(
    data_dir: str | Path | None = None,
    augment: Augment | None = None,
    image_size: int | None = None,
    toy: int | None = None,
    split_seed: int | None = None,
    val_fraction: float | None = None,
) -> Splits:
    """Images read when they are needed; the published validation set is the test set here, since it has labels.

    Tar shards are indexed once; then every image is read from its place inside them, in any order, so processes and
    machines share the work as they do with single files (``batches(rank=, world=, workers=)``).

    Args:
        data_dir: where to look. augment: for the training set; None: none. image_size: height and width of what the
            network sees. toy: images of each class that are used. split_seed, val_fraction: which images, and what
            share of each class, are taken from training for validation.

    Raises:
        SpikformerError: absent, or not all 1,000 classes. A broken image is reported when it is read.
    """
    check_augment("imagenet", augment, TAKEN)
    info = replace(INFO, image_size=check_size(image_size, INFO.image_size))
    place = find(data_dir)
    if place is None:
        raise absent(INFO, data_dir)
    train = source(info, place, "train", places(INFO, data_dir)[-1])
    test = source(info, place, "val", places(INFO, data_dir)[-1])
    info = replace(info, classes=_categories())
    return assemble(info, train, test, None, augment, toy, split_seed, val_fraction)


def find(data_dir: str | Path | None) -> Path | None:
    """The folder with train and val, one of which may be missing, as class folders or as shards."""
    for place in places(INFO, data_dir):
        for split in ("train", "val"):
            if any(re.fullmatch(r"n\d{8}", name) for name in class_folders(place / split)) or shards(place, split):
                return place
            if (place / split).is_dir() and any(f.suffix.lower() in PICTURES for f in (place / split).iterdir()):
                raise SpikformerError(f"{place / split} holds images without class folders: sort them into <wnid>/*")
    return None


def count(data_dir: str | Path | None) -> dict[str, int]:
    """Images on this machine, by split, or shards, whose images are counted only when they are indexed."""
    place, counts = find(data_dir), {}
    for split in ("train", "val") if place else ():
        if files := shards(place, split):
            counts[f"{split} shards"] = len(files)
        elif not isinstance(images := source(INFO, place, split, places(INFO, data_dir)[-1]), Absent):
            counts[split] = len(images)
    return counts


def source(info: DatasetInfo, place: Path, split: str, root: Path) -> Split:
    """All images of train or val, without augmentation; ``Absent`` if there are none."""
    files = shards(place, split)
    if files:
        return _from_shards(info, place, files, Cache("imagenet", root))
    classes = class_folders(place / split)
    if not classes:
        return Absent(f"no {split} images in {place.absolute()}: {INFO.obtain}")
    if len(classes) != info.num_classes:
        raise SpikformerError(
            f"{place / split} has {len(classes):,} class folders, ImageNet-1k has {info.num_classes:,}: "
            "add the missing ones, or use --dataset folder for another set of classes"
        )
    return pictures(info, place / split, classes)


def pictures(info: DatasetInfo, folder: Path, classes: list[str] | tuple[str, ...]) -> Pictures:
    """All images in class folders."""
    entries = listing(folder, classes, PICTURES)
    names = np.array(
        [os.fsencode(f"{name}/{e.name}") for name, files in zip(classes, entries, strict=True) for e in files]
    )
    targets = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(files) for files in entries]))
    return Pictures(folder, names, targets, info, None)


def part(whole: Split, indices: torch.Tensor, info: DatasetInfo, augment: Augment | None) -> Split:
    """Some of the images, with augmentation."""
    if isinstance(whole, Absent):
        return whole
    ranges = None if whole.ranges is None else whole.ranges[indices.numpy()]
    return Pictures(whole.folder, whole.names[indices.numpy()], whole.targets[indices], info, augment, ranges)


def assemble(
    info: DatasetInfo,
    train: Split,
    test: Split,
    val: Split | None,
    augment: Augment | None,
    toy: int | None,
    split_seed: int | None,
    val_fraction: float | None,
) -> Splits:
    """Splits from whole parts: a validation set taken from training if there is none, and toy subsets."""

    def some(whole: Split, share: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(whole, Absent):
            return torch.arange(0), torch.arange(0)
        return choose(whole.targets, share, toy, split_seed)

    rest, held = some(train, val_fraction)
    if val is not None:
        val = part(val, some(val, None)[0], info, None)
    elif len(held):
        val = part(train, held, info, None)
    return Splits(info, part(train, rest, info, augment), val, part(test, some(test, None)[0], info, None))


def shards(place: Path, split: str) -> list[Path]:
    """Tar files of a split: ``<split>*.tar`` in the folder, or any in its subfolder ``<split>``."""
    return sorted([*place.glob(f"{split}*.tar"), *(place / split).glob("*.tar")])


def _from_shards(info: DatasetInfo, place: Path, files: list[Path], cache: Cache) -> Pictures:
    names = [os.fsencode(file.relative_to(place)) for file in files]
    try:
        stamp = [
            (os.fsdecode(name), file.stat().st_size, file.stat().st_mtime_ns)
            for name, file in zip(names, files, strict=True)
        ]
    except OSError as error:
        raise SpikformerError(f"cannot read {error.filename}: {error.strerror}") from None
    index = cache.get({"what": "index of shards", "files": stamp}, lambda: _index(files, info.num_classes))
    targets = torch.from_numpy(index["targets"])
    return Pictures(place, np.array(names)[index["shard"]], targets, info, None, index["ranges"])


def _index(files: list[Path], num_classes: int) -> Arrays:
    """Where each image lies in which shard, and its label: the number in ``<key>.cls``, or its folder's rank."""
    shard, ranges, labels = [], [], []
    for number, file in enumerate(tqdm(files, desc="indexing shards", unit="shard", disable=None)):
        for start, length, label in _members(file):
            shard.append(number)
            ranges.append((start, length))
            labels.append(label)
    folders = sorted({label for label in labels if isinstance(label, str)})
    if folders and len(folders) != num_classes:
        raise SpikformerError(
            f"the shards in {files[0].parent} have {len(folders):,} class folders, not {num_classes:,}"
        )
    rank = {name: i for i, name in enumerate(folders)}
    targets = np.array([rank[label] if isinstance(label, str) else label for label in labels], dtype=np.int64)
    if not len(targets) or targets.min() < 0 or targets.max() >= num_classes:
        raise SpikformerError(f"the shards in {files[0].parent} have no labels from 0 to {num_classes - 1}")
    return {"shard": np.array(shard, dtype=np.int64), "ranges": np.array(ranges, dtype=np.int64), "targets": targets}


def _members(file: Path) -> Iterator[tuple[int, int, int | str]]:
    """Start, length and label of each image in a shard; ``<key>.cls`` may come before or after its image."""
    images, labels = {}, {}
    try:
        with tarfile.open(file, "r:") as tar:  # uncompressed: only then can an image be read from its place
            for member in tar:
                path = Path(member.name)
                key = str(path.with_suffix(""))
                if member.isfile() and path.suffix.lower() in PICTURES:
                    images[key] = member.offset_data, member.size, path.parent.name
                elif member.isfile() and path.suffix == ".cls":
                    labels[key] = int(tar.extractfile(member).read())
    except (OSError, ValueError, tarfile.TarError) as error:
        raise SpikformerError(f"{file} is no readable shard ({error}): make it again, uncompressed") from None
    for key, (start, length, folder) in images.items():
        yield start, length, labels.get(key, folder)


def _categories() -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])  # in the order of the sorted wnids
