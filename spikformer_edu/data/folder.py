"""Your own images, in class folders."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SpikformerError
from .augment import Augment, check_augment
from .base import DatasetInfo, Splits, stratified_split
from .files import PICTURES, class_folders, data_folder, listing, loose_files
from .imagenet import INFO as IMAGENET
from .images import TAKEN, assemble, check_size, part, pictures

INFO = DatasetInfo(
    name="folder",
    title="Images in class folders",
    classes=(),
    channels=3,
    image_size=224,
    mean=IMAGENET.mean,
    std=IMAGENET.std,
    default_model="imagenet-8-384",
    folder=None,
    obtain="give as --data-dir a folder with train/<class>/* and test/<class>/* (val/<class>/* instead of test or "
    "besides it), or with <class>/* only",
    licence="your own",
    citation="your own",
)
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
TEST_SHARE = 0.2  # of each class, where one tree has to serve for training and test


def load(
    data_dir: str | Path | None = None,
    augment: Augment | None = None,
    image_size: int | None = None,
    samples_per_class: int | None = None,
    split_seed: int | None = None,
    val_fraction: float | None = None,
) -> Splits:
    """Images in class folders: train and test (or val), or one tree, of which a fifth of each class is the test set.

    A class has the files that torchvision's ``ImageFolder`` would give it, those in subfolders included. Other usual
    names of the parts work too: training; valid, validation and dev; testing.

    Args:
        data_dir: the folder that holds train and test, or the class folders; None: ``$SPIKFORMER_DATA``, else
            ``./data``.
        augment: augmentation of the training set; None: none.
        image_size: height and width of the network's input, in pixels; None: 224.
        samples_per_class: number of images of each class to use; None: all.
        split_seed: seed of the choice of images for testing and validation; None: 0.
        val_fraction: share of each class that is taken from training for validation if there is no val folder; None: 0.

    Raises:
        SpikformerError: no class folders, nothing to test on, different classes in two parts, a class too small to be
            split, or val_fraction beside a val folder.
    """
    check_augment("folder", augment, TAKEN)
    size = check_size(image_size, INFO.image_size)
    folder = data_folder(data_dir)
    parts = find(folder)
    classes = same_classes(parts)
    info = replace(INFO, classes=classes, image_size=size)
    whole = {name: pictures(info, place, classes) for name, place in parts.items()}
    if "all" in whole:
        rest, held = held_out(whole["all"].targets, classes, "image", split_seed)
        return assemble(
            info,
            part(whole["all"], rest, info, None),
            part(whole["all"], held, info, None),
            None,
            augment,
            samples_per_class,
            split_seed,
            val_fraction,
        )
    val = whole.get("val") if "test" in whole else None
    if val is not None and val_fraction:
        raise SpikformerError(f"{parts['val']} validates: leave out val_fraction={val_fraction} or that folder")
    test = whole["test"] if "test" in whole else whole["val"]
    return assemble(info, whole["train"], test, val, augment, samples_per_class, split_seed, val_fraction)


def find(folder: Path, info: DatasetInfo = INFO, suffixes: tuple[str, ...] = PICTURES) -> dict[str, Path]:
    """The parts that are there: "train" with "test", "val" or both, or "all" for one tree.

    Args:
        folder: the folder that holds them.
        info: the facts about the data set, which say how the folder has to be.
        suffixes: suffixes of the samples' names, in lower case.

    Raises:
        SpikformerError: none of these, or a part twice.
    """
    names = class_folders(folder)
    if not names:
        raise SpikformerError(f"no class folders in {folder.absolute()}: {info.obtain}")
    parts: dict[str, Path] = {}
    for name in names:
        kind = next((kind for kind, known in PARTS.items() if name.lower() in known), None)
        if kind and class_folders(folder / name):
            if kind in parts:
                raise SpikformerError(f"{folder} has {parts[kind].name} and {name}: keep one {kind} folder")
            parts[kind] = folder / name
    if not parts:
        return {"all": folder}
    others = [folder / name for name in names if folder / name not in parts.values()]
    if "train" not in parts or len(parts) == 1:
        there, missing = next(iter(parts.values())).name, "test or val" if "train" in parts else "train"
        beside = f" (besides it there is {', '.join(repr(other.name) for other in others)})" if others else ""
        raise SpikformerError(
            f"{folder.absolute()} has class folders in {there} but none in {missing}{beside}: {info.obtain}"
        )
    for other in others:
        if any(loose_files(place, suffixes) for place in (other, *(other / name for name in class_folders(other)))):
            what = "images" if suffixes is PICTURES else "recordings"
            warnings.warn(f"the {what} in {other} are left out", stacklevel=1)
    return {kind: parts[kind] for kind in PARTS if kind in parts}


def same_classes(parts: dict[str, Path], info: DatasetInfo = INFO) -> tuple[str, ...]:
    """The class names, which are the same in all parts.

    Args:
        parts: the folder of each part, as ``find`` returns them.
        info: the facts about the data set, which say how the folder has to be.

    Raises:
        SpikformerError: they are not the same, or there is only one class.
    """
    first = next(iter(parts.values()))
    classes = tuple(class_folders(first))
    for other in parts.values():
        different = sorted(set(class_folders(other)) ^ set(classes))
        if different:
            raise SpikformerError(
                f"class {different[0]!r} is in one of {first} and {other}: give both the same classes"
            )
    if len(classes) < 2:
        raise SpikformerError(
            f"only one class folder in {first}, {classes[0]!r} (give that as --data-dir if it holds the others): "
            f"{info.obtain}"
        )
    return classes


def held_out(targets: Tensor, classes: Sequence[str], kind: str, split_seed: int | None) -> tuple[Tensor, Tensor]:
    """One tree for training and test: indices of the samples to train on, and of a fifth of each class to test on.

    Args:
        targets: labels ``[n]``.
        classes: class names, by label.
        kind: what a sample is, for the error.
        split_seed: seed of the choice; None: 0.

    Raises:
        SpikformerError: a class has only one sample.
    """
    counts = targets.bincount()
    if counts.min() < 2:
        name = classes[int(counts.argmin())]
        raise SpikformerError(f"class {name!r} has one {kind}: training and test need one each")
    return stratified_split(targets, TEST_SHARE, None, split_seed)


def local_info(
    data_dir: str | Path | None, info: DatasetInfo = INFO, suffixes: tuple[str, ...] = PICTURES
) -> DatasetInfo:
    """The facts with the class names of the folder, or without them if the folder cannot be used as it is.

    Args:
        data_dir: the folder that holds train and test, or the class folders.
        info: the facts about the data set.
        suffixes: suffixes of the samples' names, in lower case.
    """
    with suppress(SpikformerError):
        first = next(iter(find(data_folder(data_dir), info, suffixes).values()))
        return replace(info, classes=tuple(class_folders(first)))
    return info


def count(
    data_dir: str | Path | None, info: DatasetInfo = INFO, suffixes: tuple[str, ...] = PICTURES, kind: str = "image"
) -> dict[str, int]:
    """Samples on this machine, by the split that they are used for.

    Args:
        data_dir: the folder that holds train and test, or the class folders.
        info: the facts about the data set.
        suffixes: suffixes of the samples' names, in lower case.
        kind: what a sample is, for errors.

    Raises:
        SpikformerError: they cannot be used as they are.
    """
    folder = data_folder(data_dir)
    if not class_folders(folder):
        return {}
    parts = find(folder, info, suffixes)
    classes = same_classes(parts, info)
    sizes = {name: [len(files) for files in listing(place, classes, suffixes)] for name, place in parts.items()}
    if "all" in sizes:
        targets = torch.arange(len(classes)).repeat_interleave(torch.tensor(sizes["all"]))
        rest, held = held_out(targets, classes, kind, None)
        return {"train": len(rest), "test": len(held)}
    if "test" not in sizes:
        sizes["test"] = sizes.pop("val")
    return {name: sum(number) for name, number in sizes.items()}
