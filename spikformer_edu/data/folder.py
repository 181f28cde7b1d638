"""Any images of one's own, in class folders."""

from dataclasses import replace
from pathlib import Path

from ..errors import SpikformerError
from .augment import Augment, check_augment
from .base import DatasetInfo, Splits, choose
from .files import check_size, class_folders, data_folder
from .imagenet import INFO as IMAGENET
from .imagenet import TAKEN, assemble, part, pictures

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
TEST_SHARE = 0.2  # of each class, where one tree has to serve for training and test


def load(
    data_dir: str | Path | None = None,
    augment: Augment | None = None,
    image_size: int | None = None,
    toy: int | None = None,
    split_seed: int | None = None,
    val_fraction: float | None = None,
) -> Splits:
    """Images in class folders: train and test (or val), or one tree of which a fifth of each class tests.

    Args:
        data_dir: the folder itself. augment: for the training set; None: none. image_size: height and width of what the
            network sees. toy: images of each class that are used. split_seed: which images test or validate.
        val_fraction: share of each class that is taken from training for validation, if there is no val folder.

    Raises:
        SpikformerError: no class folders, different classes in two parts, a class too small to be split, or
            val_fraction beside a val folder.
    """
    check_augment("folder", augment, TAKEN)
    folder = data_folder(data_dir)
    parts = find(folder)
    if not parts:
        raise SpikformerError(f"no class folders in {folder.absolute()}: {INFO.obtain}")
    if parts == ["train"]:
        raise SpikformerError(f"{folder.absolute()} has class folders in train but none in test or val: {INFO.obtain}")
    first = parts[0]
    classes = tuple(class_folders(folder / first))
    info = replace(INFO, classes=classes, image_size=check_size(image_size, INFO.image_size))
    for name in parts:
        other = class_folders(folder / name)
        different = sorted(set(other) ^ set(classes))
        if different:
            raise SpikformerError(
                f"class {different[0]!r} is in one of {folder / first} and {folder / name}: give both the same classes"
            )
    if len(classes) < 2:
        raise SpikformerError(f"only one class folder in {folder / first}: {INFO.obtain}")
    whole = {name: pictures(info, folder / name, classes) for name in parts}
    if "." in whole:
        train, test = choose(whole["."].targets, TEST_SHARE, None, split_seed)
        counts = whole["."].targets.bincount()
        if counts.min() < 2:
            name = classes[int(counts.argmin())]
            raise SpikformerError(f"class {name!r} has one image: training and test need one each")
        return assemble(
            info,
            *(part(whole["."], p, info, None) for p in (train, test)),
            None,
            augment,
            toy,
            split_seed,
            val_fraction,
        )
    val = whole.get("val") if "test" in whole else None
    if val is not None and val_fraction:
        raise SpikformerError(f"{folder / 'val'} validates: leave out val_fraction={val_fraction} or that folder")
    test = whole.get("test", whole.get("val"))
    return assemble(info, whole["train"], test, val, augment, toy, split_seed, val_fraction)


def find(folder: Path) -> list[str]:
    """The parts that are there: train with test, val or both, or "." for one tree."""
    parts = [name for name in ("train", "val", "test") if class_folders(folder / name)]
    if "train" in parts:
        return parts
    return ["."] if class_folders(folder) and not parts else []


def count(data_dir: str | Path | None) -> dict[str, int]:
    """Images on this machine, by split."""
    folder = data_folder(data_dir)
    return {name: len(pictures(INFO, folder / name, class_folders(folder / name))) for name in find(folder)}
