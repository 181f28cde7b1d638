"""The data that a run was trained on: names, classes, fingerprints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data import Split, Splits


@dataclass(frozen=True)
class DataRecord:
    """The data that a run was trained on: measurements on other data can then be recognised.

    Attributes:
        dataset: name of the data set.
        title: full name of the data set.
        trained_on: names of all data sets that the network has learned from, first those of its initial weights.
        simulated: whether any of them holds simulated recordings.
        classes: class names, by output of the network.
        splits: fingerprints of "train", "val" and "test"; None for a split that is not there.
    """

    dataset: str
    title: str
    trained_on: list[str]
    simulated: bool
    classes: list[str]
    splits: dict[str, dict[str, Any] | None]

    @property
    def history(self) -> str:
        """Names of all data sets that the network has learned from, as text."""
        return ", then ".join(self.trained_on)

    def holds(self, name: str, split: Split, classes: Sequence[str]) -> bool:
        """Whether a split holds the samples of the run's split of that name, in any order.

        Args:
            name: name of the split: "train", "val" or "test".
            split: the samples.
            classes: class names of the samples, by label.
        """
        own, other = self.splits[name], split.fingerprint(classes)
        return own is not None and other is not None and own["content"] == other["content"]

    def places_of(self, classes: Sequence[str]) -> list[int] | None:
        """For each class the number of its output of the network; None if it was trained on other classes.

        Args:
            classes: class names.
        """
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
    """The data record of a new run.

    Args:
        splits: the samples that the network is trained, validated and tested on.
        before: data record of the run that the initial weights come from; None: the network starts from random weights.

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
