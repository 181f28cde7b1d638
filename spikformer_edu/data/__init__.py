"""Data sets by name."""

import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import SpikformerError, nearest
from .augment import PAPER, Augment, mixup_cutmix
from .base import Absent, DatasetInfo, Split, Splits
from .loading import batches

MODULES = {
    "digits": "digits",
    "digits-dvs": "digits_dvs",
    "digits-motion": "digits_motion",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "cifar10dvs": "cifar10dvs",
    "dvsgesture": "dvsgesture",
    "nmnist": "nmnist",
    "imagenet": "imagenet",
    "folder": "folder",
    "event-folder": "event_folder",
}
"""Data sets by name, each with the module of this package that loads it."""

__all__ = [
    "MODULES",
    "PAPER",
    "Absent",
    "Augment",
    "DatasetInfo",
    "Split",
    "Splits",
    "batches",
    "count",
    "info",
    "load",
    "local_info",
    "mixup_cutmix",
]


def module(name: str) -> ModuleType:
    """The module that loads a data set.

    Args:
        name: a data set, a key of ``MODULES``.

    Raises:
        SpikformerError: no such data set; the line names the nearest.
    """
    if name not in MODULES:
        raise SpikformerError(f"unknown data set {name!r}: {nearest(name, MODULES)}")
    return import_module(f".{MODULES[name]}", __name__)


def info(name: str) -> DatasetInfo:
    """The facts about a data set, without reading its files.

    Args:
        name: a data set, a key of ``MODULES``.

    Raises:
        SpikformerError: no such data set; the line names the nearest.
    """
    return module(name).INFO


def local_info(name: str, data_dir: str | Path | None = None) -> DatasetInfo:
    """The facts about a data set as it is on this machine, where recordings may be simulated.

    Args:
        name: a data set, a key of ``MODULES``.
        data_dir: folder to look in; None: ``$SPIKFORMER_DATA``, else ``./data``.

    Raises:
        SpikformerError: no such data set (the line names the nearest), or no such folder.
    """
    found = module(name)
    return found.local_info(data_dir) if hasattr(found, "local_info") else found.INFO


def load(name: str, data_dir: str | Path | None = None, **options: Any) -> Splits:
    """A data set's training, validation and test splits.

    Args:
        name: a data set, a key of ``MODULES``.
        data_dir: folder to look in; None: ``$SPIKFORMER_DATA``, else ``./data``.
        options: any of ``augment`` (an ``Augment`` for the training set), ``image_size`` (pixels along each side),
            ``time_steps`` (number T of event frames; ignored for still images, which the network repeats),
            ``samples_per_class`` (use this many samples of each class), ``val_fraction`` (share of the training set
            that is kept for validation), ``split_seed`` (another choice of samples), and for event recordings
            ``frames`` (equal in count or in time); for your own also ``sensor`` (width and height) and ``transform``
            (changes the events before they are cut). None leaves the default.

    Raises:
        SpikformerError: no such data set (the line names the nearest), an option that it does not take or that is out
            of range, or its files are absent or broken.

    Examples:
        >>> import torch, spikformer_edu as se
        >>> splits = se.data.load("digits")
        >>> len(splits.train), len(splits.val), len(splits.test)
        (1258, 180, 359)
        >>> images, labels = splits.test.fetch(torch.arange(5), None)  # the first five, without augmentation
        >>> images.shape, labels  # [B, C, H, W]
        (torch.Size([5, 1, 32, 32]), tensor([1, 3, 4, 5, 8]))
    """
    loader, facts = module(name).load, info(name)
    options = {option: value for option, value in options.items() if value is not None}
    if facts.time_steps is None:
        options.pop("time_steps", None)
    if options.get("image_size") == facts.image_size:
        options.pop("image_size")
    if not options.get("val_fraction"):
        options.pop("val_fraction", None)
    taken = [option for option in inspect.signature(loader).parameters if option not in ("data_dir", "info")]
    for option in options:
        if option not in taken:
            raise SpikformerError(f"{name} has no use for {option}={options[option]!r}: it takes {', '.join(taken)}")
    if options.get("samples_per_class", 1) < 1:
        raise SpikformerError(
            f"samples_per_class={options['samples_per_class']}: give the number of samples of each class, at least 1"
        )
    if not 0 <= options.get("split_seed", 0) < 2**32:
        raise SpikformerError(f"split_seed={options['split_seed']}: give 0 to {2**32 - 1}")
    with torch.device("cpu"):  # even if PyTorch's default is another
        return loader(data_dir=data_dir, **options)


def count(name: str, data_dir: str | Path | None = None) -> dict[str, int]:
    """Samples on this machine, by split; empty when the files are not here. Nothing is downloaded or unpacked.

    Args:
        name: a data set, a key of ``MODULES``.
        data_dir: folder to look in; None: ``$SPIKFORMER_DATA``, else ``./data``.

    Raises:
        SpikformerError: no such data set (the line names the nearest), or only a part of it.
    """
    found = module(name)
    return found.count(data_dir) if hasattr(found, "count") else dict(found.INFO.samples)
