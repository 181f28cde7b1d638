"""Data sets by name."""

from importlib import import_module

from ..errors import SpikformerError, nearest
from .base import DatasetInfo, Split, Splits, batches

MODULES = {"digits": "digits"}  # data set -> module of this package that loads it

__all__ = ["MODULES", "DatasetInfo", "Split", "Splits", "batches", "load"]


def load(name: str, **options) -> Splits:
    """A data set's training, validation and test splits.

    Args:
        name: a data set of the registry.
        options: what the data set's own ``load`` takes.

    Raises:
        SpikformerError: no such data set (the line names the nearest), or its files are absent or broken.
    """
    if name not in MODULES:
        raise SpikformerError(f"unknown data set {name!r}: {nearest(name, MODULES)}")
    return import_module(f".{MODULES[name]}", __name__).load(**options)
