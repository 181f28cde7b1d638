"""ImageNet-1k, from class folders (train/<wnid>/*, val/<wnid>/*), the published archives, or tar shards.

Archives are read where they are. torchvision's ``ImageNet`` unpacks them instead: that takes the space twice, and an
interrupted unpacking is later taken for a complete one.
"""

import hashlib
import itertools
import os
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm import tqdm

from ..errors import SpikformerError
from .augment import Augment, check_augment
from .base import Absent, DatasetInfo, Splits
from .cache import Arrays, Cache
from .files import PICTURES, absent, class_folders, loose_files, places
from .imagenet_labels import WNID, Labels, labels, unlabelled
from .images import TAKEN, Pictures, assemble, check_size, pictures

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
    obtain="fetch ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz by hand from "
    "image-net.org (account needed) and put them there as they are; or class folders train/<wnid>/* and val/<wnid>/*, "
    "or tar shards train-*.tar and val-*.tar",
    licence="non-commercial research and teaching; the images belong to their owners",
    citation="O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 115, 2015",
    samples={"train": 1_281_167, "val": 50_000},
)


PUBLISHED = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}


def load(
    data_dir: str | Path | None = None,
    augment: Augment | None = None,
    image_size: int | None = None,
    samples_per_class: int | None = None,
    split_seed: int | None = None,
    val_fraction: float | None = None,
) -> Splits:
    """Images read when they are needed; the published validation set is the test set here, since it has labels.

    Tar files are indexed once; then every image is read from its place inside them, in any order, so processes and
    machines share the work as they do with single files (``batches(rank=, world=, workers=)``). Validation images that
    lie in no class folder get their classes from a file beside them (``imagenet_labels.LABELS``).

    Args:
        data_dir: folder to look in; None: ``$SPIKFORMER_DATA``, else ``./data``.
        augment: augmentation of the training set; None: none.
        image_size: height and width of the network's input, in pixels; None: 224.
        samples_per_class: number of images of each class to use; None: all.
        split_seed: seed of the choice of images, for validation and for ``samples_per_class``; None: 0.
        val_fraction: share of each class that is taken from training for validation; None: 0.

    Raises:
        SpikformerError: absent, not all 1,000 classes, or validation images without classes. A broken image is reported
            when it is read.
    """
    check_augment("imagenet", augment, TAKEN)
    info = replace(INFO, image_size=check_size(image_size, INFO.image_size))
    place = find(data_dir)
    if place is None:
        raise absent(INFO, data_dir)
    train, wnids = source(info, place, "train", places(INFO, data_dir)[-1])
    test, others = source(info, place, "val", places(INFO, data_dir)[-1])
    if wnids and others and wnids != others:
        different = sorted(set(wnids) ^ set(others))
        raise SpikformerError(f"class {different[0]} is in one of train and val in {place}: give both the same classes")
    for split, whole in (("train", train), ("val", test)):
        if not isinstance(whole, Absent) and len(whole) < INFO.samples[split]:
            found = f"{len(whole):,} of {INFO.samples[split]:,}"
            warnings.warn(f"{place} holds {found} {split} images of {info.title}", stacklevel=3)
    info = replace(info, classes=_categories())
    return assemble(info, train, test, None, augment, samples_per_class, split_seed, val_fraction)


def find(data_dir: str | Path | None) -> Path | None:
    """The folder with train and val, one of which may be missing."""
    for place in places(INFO, data_dir):
        if any(layout(place, split)[0] for split in ("train", "val")):
            return place
    return None


def layout(place: Path, split: str) -> tuple[str, list[str], list[Path]]:
    """The layout of a split, and what there is of it.

    Args:
        place: the folder of the data set.
        split: "train" or "val".

    Returns:
        "folders", "shards" (tar files), "loose" or "" (no such images); the names of the class folders, or of the loose
        images; the tar files.
    """
    folders = [name for name in class_folders(place / split) if WNID.fullmatch(name)]
    files = shards(place, split)
    if len(folders) == INFO.num_classes or (folders and not files):
        return "folders", folders, []
    if files:
        return "shards", [], files
    loose = loose_files(place / split, PICTURES)
    return "loose" if loose else "", loose, []


def count(data_dir: str | Path | None) -> dict[str, int]:
    """Images on this machine, by split, or tar files, whose images are counted only when they are indexed.

    Args:
        data_dir: folder to look in; None: ``$SPIKFORMER_DATA``, else ``./data``.

    Raises:
        SpikformerError: some classes are missing, or nothing says which class an image has.
    """
    place = find(data_dir)
    if place is None:
        return {}
    counts = {}
    for split in ("train", "val"):
        kind, _, files = layout(place, split)
        if kind == "shards":
            counts[f"{split} shards"] = len(files)
            _check_labelled(place, split, files[0], places(INFO, data_dir)[-1])
        elif kind:
            counts[split] = len(source(INFO, place, split, places(INFO, data_dir)[-1])[0])
        else:
            counts[split] = 0
    return counts


def source(info: DatasetInfo, place: Path, split: str, root: Path) -> tuple[Pictures | Absent, tuple[str, ...]]:
    """All images of train or val, without augmentation (``Absent`` if there are none), and the wnids if known."""
    kind, names, files = layout(place, split)
    if not kind:
        return Absent(f"no {split} images in {place.absolute()}: {INFO.obtain}"), ()
    if kind == "folders":
        if len(names) != info.num_classes:
            raise SpikformerError(
                f"{place / split} has {len(names):,} class folders, ImageNet-1k has {info.num_classes:,}: "
                "add the missing ones, or use --dataset folder for another set of classes"
            )
        images, wnids = pictures(info, place / split, names), tuple(names)
    elif kind == "shards":
        images, wnids = _from_shards(info, place, split, files, root)
    else:
        images, wnids = _from_loose(info, place, split, names, root)
    found, expected = len(images), info.samples[split]
    if found > expected:
        raise SpikformerError(
            f"{found:,} {split} images in {place}, ImageNet-1k has {expected:,}: remove what is there twice, or use "
            "--dataset folder for another set of images"
        )
    return images, wnids


def shards(place: Path, split: str) -> list[Path]:
    """Tar files of a split: the published one, else ``<split>*.tar`` in the folder and any in its subfolder."""
    published = [file for file in (place / PUBLISHED[split], place / split / PUBLISHED[split]) if file.is_file()]
    files = published[:1] or [*place.glob(f"{split}*.tar"), *(place / split).glob("*.tar")]
    return sorted(file for file in files if not file.name.startswith("."))


def _from_loose(
    info: DatasetInfo, place: Path, split: str, files: list[str], root: Path
) -> tuple[Pictures, tuple[str, ...]]:
    """Images without class folders."""
    named = labels(place, split, root)
    found = []
    for file in files:
        label = _class_of(PurePosixPath(file), "", named)
        if label is None:
            raise unlabelled(place, place / split / file)
        found.append(label)
    targets, wnids = _ranks(found, f"{place / split}", info.num_classes)
    names = np.array([os.fsencode(file) for file in files])
    return Pictures(place / split, names, torch.from_numpy(targets), info, None), wnids


def _from_shards(
    info: DatasetInfo, place: Path, split: str, files: list[Path], root: Path
) -> tuple[Pictures, tuple[str, ...]]:
    names = [os.fsencode(file.relative_to(place)) for file in files]
    try:
        stamp = [
            (os.fsdecode(name), file.stat().st_size, file.stat().st_mtime_ns)
            for name, file in zip(names, files, strict=True)
        ]
    except OSError as error:
        raise SpikformerError(f"cannot read {error.filename}: {error.strerror}") from None
    named = labels(place, split, root)
    key = {"what": "index of tar files", "files": stamp}
    key["labels"] = hashlib.sha256(repr(sorted(named.items())).encode()).hexdigest()
    index = Cache("imagenet", root).get(key, lambda: _index(place, files, named, info.num_classes))
    wnids = tuple(f"n{number:08d}" for number in index["wnids"])
    targets = torch.from_numpy(index["targets"])
    return Pictures(place, np.array(names)[index["shard"]], targets, info, None, index["ranges"]), wnids


def _index(place: Path, files: list[Path], named: Labels, num_classes: int) -> Arrays:
    """Where each image lies in which tar file, and its label: the number in ``<key>.cls``, or the rank of its wnid."""
    shard, ranges, found = [], [], []
    with tqdm(desc="indexing tar files", unit="image", disable=None) as bar:
        for number, file in enumerate(files):
            for path, start, length, label in _images(file, named):
                if label is None:
                    raise unlabelled(place, f"{file}: {path}")
                shard.append(number)
                ranges.append((start, length))
                found.append(label)
                bar.update()
    where = f"{files[0].parent}"
    if any(WNID.fullmatch(name) for name in class_folders(files[0].parent)):
        where += " (its tar files are read, not the class folders beside them)"
    targets, wnids = _ranks(found, where, num_classes)
    return {
        "shard": np.array(shard, dtype=np.int64),
        "ranges": np.array(ranges, dtype=np.int64),
        "targets": targets,
        "wnids": np.array([int(wnid[1:]) for wnid in wnids], dtype=np.int64),
    }


Found = tuple[PurePosixPath, int, int, str | int | None]  # name, start, length and class of an image


def _images(file: Path, named: Labels) -> Iterator[Found]:
    """Name, start, length and class of each image in a tar file, or in tar files inside it."""

    def inside(tar: tarfile.TarFile, archive: str, offset: int) -> Iterator[Found]:
        images, numbers = {}, {}  # <key>.cls may come before or after its image
        for entry in tar:
            path, start = PurePosixPath(entry.name), offset + entry.offset_data
            suffix = path.suffix.lower()
            if path.name.startswith(".") or entry.isdir():
                continue
            if suffix == ".tar":
                with tarfile.open(fileobj=tar.extractfile(entry), mode="r:") as inner:
                    yield from inside(inner, path.stem, start)
            elif suffix in PICTURES and not entry.isfile():
                raise ValueError(f"{path} is a link, not an image")
            elif suffix in PICTURES:
                images[path] = start, entry.size
            elif suffix == ".cls" and (content := tar.extractfile(entry)):
                numbers[path.with_suffix("")] = int(content.read())
        for path, (start, length) in images.items():
            number = numbers.get(path.with_suffix(""))
            yield path, start, length, _class_of(path, archive, named) if number is None else number

    try:
        with tarfile.open(file, "r:") as tar:  # uncompressed: only then can an image be read from its place
            yield from inside(tar, file.stem, 0)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise SpikformerError(f"{file} is no readable shard ({error}): make it again, uncompressed") from None


def _class_of(path: PurePosixPath, archive: str, named: Labels) -> str | int | None:
    """The wnid (or label) of an image: from its folder, its tar file, the list of validation images, or its name."""
    for text in (path.parent.name, archive):
        if WNID.fullmatch(text):
            return text
    if path.stem in named:
        return named[path.stem]
    return next((word for word in path.stem.split("_") if WNID.fullmatch(word)), None)


def _ranks(found: list[str | int], where: str, num_classes: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels, and the wnids whose ranks they are; no wnids where the labels were given as numbers."""
    wnids = sorted({label for label in found if isinstance(label, str)})
    if wnids and len(wnids) != num_classes:
        raise SpikformerError(f"{where} has images of {len(wnids):,} classes, not {num_classes:,}: add the rest")
    rank = {wnid: i for i, wnid in enumerate(wnids)}
    targets = np.array([rank[label] if isinstance(label, str) else label for label in found], dtype=np.int64)
    if not len(targets) or np.min(targets) < 0 or np.max(targets) >= num_classes:
        raise SpikformerError(f"{where} has no images with labels from 0 to {num_classes - 1}")
    return targets, tuple(wnids)


def _check_labelled(place: Path, split: str, file: Path, root: Path) -> None:
    """Find out from the first files in a tar file whether the classes of its images are known."""
    try:
        with tarfile.open(file, "r:") as tar:
            entries = itertools.islice((entry for entry in tar if entry.isfile()), 2)
            first = [PurePosixPath(entry.name) for entry in entries]  # an image, its .cls before or after it
    except (OSError, tarfile.TarError) as error:
        raise SpikformerError(f"{file} is no readable shard ({error}): make it again, uncompressed") from None
    for path in first if not any(path.suffix == ".cls" for path in first) else ():
        if path.suffix.lower() in PICTURES and _class_of(path, file.stem, labels(place, split, root)) is None:
            raise unlabelled(place, f"{file}: {path}")


def _categories() -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])  # in the order of the sorted wnids
