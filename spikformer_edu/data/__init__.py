"""Data sets by name."""

import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import SpikformerError, nearest
from .augment import PAPER, Augment, mixup_cutmix
from .base import Absent, DatasetInfo, Split, Splits, batches

MODULES = {  # data set -> module of this package that loads it
    "digits": "digits",
    "digits-dvs": "digits_dvs",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "cifar10dvs": "cifar10dvs",
    "dvsgesture": "dvsgesture",
    "imagenet": "imagenet",
    "folder": "folder",
}

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

    Raises:
        SpikformerError: no such data set; the line names the nearest.
    """
    if name not in MODULES:
        raise SpikformerError(f"unknown data set {name!r}: {nearest(name, MODULES)}")
    return import_module(f".{MODULES[name]}", __name__)


def info(name: str) -> DatasetInfo:
    """The facts about a data set, without touching its files.

    Raises:
        SpikformerError: no such data set; the line names the nearest.
    """
    return module(name).INFO


def local_info(name: str, data_dir: str | Path | None = None) -> DatasetInfo:
    """The facts about a data set as it lies on this machine: recordings there may be simulated.

    Raises:
        SpikformerError: no such data set (the line names the nearest), or no such folder.
    """
    found = module(name)
    return found.local_info(data_dir) if hasattr(found, "local_info") else found.INFO


def load(name: str, data_dir: str | Path | None = None, **options: Any) -> Splits:
    """A data set's training, validation and test splits.

    Args:
        name: a data set of the registry.
        data_dir: where data sets are looked for; else ``$SPIKFORMER_DATA``, else ``./data``.
        options: any of ``augment`` (an ``Augment``, of the training set), ``image_size``, ``time_steps`` (number of
            event frames; still images are repeated by the network, so they leave it alone), ``samples_per_class`` (use
            that many samples of each class), ``val_fraction`` (share of the training set that is kept for validation),
            ``split_seed`` (another choice of samples). None leaves the default.

    Raises:
        SpikformerError: no such data set (the line names the nearest), an option it has no use for or out of range, or
            its files are absent or broken.
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
    with torch.device("cpu"):  # whatever PyTorch's default is
        return loader(data_dir=data_dir, **options)


def count(name: str, data_dir: str | Path | None = None) -> dict[str, int]:
    """Samples on this machine, by split; empty when the files are not here. Nothing is downloaded or unpacked.

    Raises:
        SpikformerError: no such data set (the line names the nearest), or only a part of it.
    """
    found = module(name)
    return found.count(data_dir) if hasattr(found, "count") else dict(found.INFO.samples)
