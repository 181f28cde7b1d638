"""What a run was trained on: names of the data, of their classes, and fingerprints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data import Split, Splits


@dataclass(frozen=True)
class DataRecord:
    """What a run was trained on, so that no number measured on other data is taken for its own.

    Attributes:
        dataset: name of the data set.
        title: its full name.
        trained_on: all data sets that the network has learned from, those of the weights it started from first.
        simulated: whether any of them are simulated recordings.
        classes: class names, by output of the network.
        splits: fingerprints of "train", "val" and "test"; None where there is no such split.
    """

    dataset: str
    title: str
    trained_on: list[str]
    simulated: bool
    classes: list[str]
    splits: dict[str, dict[str, Any] | None]

    @property
    def history(self) -> str:
        """All data sets that the network has learned from, as text."""
        return ", then ".join(self.trained_on)

    def holds(self, name: str, split: Split, classes: Sequence[str]) -> bool:
        """Are these the very samples of the run's split of that name, in whatever order?"""
        own, other = self.splits[name], split.fingerprint(classes)
        return own is not None and other is not None and own["content"] == other["content"]

    def places_of(self, classes: Sequence[str]) -> list[int] | None:
        """Which output of the network stands for each of these classes; None if it was trained on other ones."""
        if list(classes) == self.classes:
            return list(range(len(self.classes)))
        if sorted(classes) != sorted(self.classes) or len(set(classes)) < len(classes):
            return None
        return [self.classes.index(name) for name in classes]


def difference(classes: Sequence[str], others: Sequence[str]) -> str:
    """Why two lists of class names are not the same."""
    lone = sorted(set(classes) ^ set(others))
    return f"{lone[0]!r} is in one of them only" if lone else "the order is another"


def describe_data(splits: Splits, before: DataRecord | None = None) -> DataRecord:
    """What ``config.json`` says of the data.

    Args:
        splits: what the network is trained, validated and tested on.
        before: of the run whose weights it starts from.

    Raises:
        SpikformerError: a file of the data set cannot be read.
    """
    info = splits.info
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    earlier = before.trained_on if before else []
    return DataRecord(
        info.name,
        info.title,
        [*(name for name in earlier if name != info.label), info.label],
        info.simulated or (before is not None and before.simulated),
        list(info.classes),
        {name: None if split is None else split.fingerprint(info.classes) for name, split in parts.items()},
    )
