"""What every data set provides: labelled splits that are read by the batch, and the batches themselves."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import SpikformerError

FILES_READ = 16  # number of files whose content a fingerprint covers


@dataclass(frozen=True)
class DatasetInfo:
    """The facts about a data set.

    Attributes:
        name: name of the data set, as ``--dataset`` takes it.
        title: full name; for simulated recordings it says so.
        classes: class names, by label; empty until the files are read if only they hold the names.
        channels: number of channels C of the network's input.
        image_size: height and width of the network's input, in pixels.
        mean: mean of each channel over the training set, in [0, 1] pixel units; empty for event frames, which are
            counts.
        std: standard deviation of each channel over the training set, in [0, 1] pixel units; empty for event frames.
        default_model: name of the preset that is trained on it by default.
        folder: name of its folder in the data directory; None if it needs no files.
        obtain: how to get the files.
        licence: licence, or what the owners of the data ask for.
        citation: what to cite.
        num_classes: number of classes K; counted from ``classes`` unless given.
        time_steps: default number T of event frames; None for still images, which the network repeats.
        samples: number of samples in a complete copy, by split; empty if it is not fixed.
        simulated: whether the events come from a simulated camera.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    default_model: str
    folder: str | None
    obtain: str
    licence: str
    citation: str
    num_classes: int = 0
    time_steps: int | None = None
    samples: dict[str, int] = field(default_factory=dict)
    simulated: bool = False

    def __post_init__(self) -> None:
        if self.classes:
            object.__setattr__(self, "num_classes", len(self.classes))
        if self.simulated and "simulated" not in self.title:
            object.__setattr__(self, "title", f"{self.title} (simulated)")

    @property
    def label(self) -> str:
        """The name for messages; it says if the recordings are simulated."""
        return f"{self.name} (simulated)" if self.simulated else self.name


class Split(Dataset[tuple[Tensor, int]]):
    """Labelled samples. Subclasses set ``targets`` and say how a batch of them is read.

    ``split[3]`` is one sample, as it is. A ``DataLoader`` takes a split; frames of events then come batch first,
    ``[B, T, C, H, W]``. ``batches`` augments, is reproducible, and puts time first.

    Attributes:
        targets: labels ``[n]``, int64, known without reading any sample.
        device: device on which the samples are kept and batches are made.
    """

    targets: Tensor
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One sample without augmentation: input ``[C, H, W]`` or frames ``[T, C, H, W]``, normalised, and its label.

        Args:
            index: from 0, or from the end if negative.

        Raises:
            IndexError: there is no such sample.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        (sample,) = self.__getitems__([index % len(self)])
        return sample

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """Several samples; a ``DataLoader`` reads a batch with it.

        Args:
            indices: which ones, from 0.
        """
        inputs, labels = self.fetch(torch.tensor(indices, device="cpu"), None)
        return list(zip(inputs.unbind(-4), labels.tolist(), strict=True))

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Read a batch of samples at once.

        Args:
            indices: numbers of the samples, ``[B]``, from 0.
            generator: draws all random numbers of the augmentation, on the CPU; None: no augmentation.

        Returns:
            Inputs ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``, float32, normalised, and labels ``[B]``, int64.
        """
        raise NotImplementedError

    def keys(self) -> list[bytes]:
        """A key for each sample: a digest of its pixels, or the path of its file inside the data set."""
        raise NotImplementedError

    def read(self, index: int) -> bytes:
        """The content of the file that holds a sample; empty where ``keys`` cover the pixels.

        Args:
            index: number of the sample, from 0.
        """
        return b""

    def fingerprint(self, classes: Sequence[str]) -> dict[str, Any] | None:
        """A fingerprint of the samples, the same in every folder and for every augmentation and image size.

        For files it covers all names and labels, but the content of sixteen only: reading a million photographs takes
        hours.

        Args:
            classes: class names, by label.

        Returns:
            ``samples``, their number; ``content``, a digest that does not depend on the order of samples and classes;
            ``order``, a digest of the samples in their order. None if the split is absent.

        Raises:
            SpikformerError: a file cannot be read.
        """
        names = [os.fsencode(name) for name in classes]
        keys = [names[label] + b"\0" + key for label, key in zip(self.targets.tolist(), self.keys(), strict=True)]
        ranked = sorted(range(len(keys)), key=keys.__getitem__)
        content = hashlib.sha256(b"\0".join(keys[i] for i in ranked))
        for i in ranked[:: -(-len(ranked) // FILES_READ) or 1]:
            content.update(self.read(i))
        order = hashlib.sha256(b"\0".join(keys))
        return {"samples": len(keys), "content": content.hexdigest()[:16], "order": order.hexdigest()[:16]}

    def to(self, device: torch.device | str) -> "Split":
        """The same samples, kept and augmented on a device if they are kept in memory; else this split.

        Args:
            device: the device to keep them on.
        """
        return self


class Absent(Split):
    """A split whose files are not there: every use of it raises an error that says why.

    Args:
        reason: the text of that error.
    """

    def __init__(self, reason: str):
        self.reason = reason

    def __len__(self) -> int:
        raise SpikformerError(self.reason)

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        raise SpikformerError(self.reason)

    def fingerprint(self, classes: Sequence[str]) -> None:
        return None

    @property
    def targets(self) -> Tensor:  # type: ignore[override]  # no sample, so no label to be set
        raise SpikformerError(self.reason)


@dataclass(frozen=True)
class Splits:
    """A data set, ready to be used.

    Attributes:
        info: the facts about the data set.
        train: samples that the network is trained on.
        val: samples that the best epoch is chosen on; None if there are none.
        test: samples that the accuracy is measured on, once, at the end.
    """

    info: DatasetInfo
    train: Split
    val: Split | None
    test: Split

    def __getitem__(self, name: str) -> Split:
        split = {"train": self.train, "val": self.val, "test": self.test}.get(name)
        if split is None:
            raise SpikformerError(f"{self.info.name} has no {name!r} split: use 'train', 'val' or 'test'")
        return split

    def to(self, device: torch.device | str) -> "Splits":
        """All splits, kept on a device if they are kept in memory.

        Args:
            device: the device to keep them on.
        """
        if torch.device(device).type == "mps":  # no bicubic warps in some PyTorch versions: batches are made on the CPU
            return self
        val = None if self.val is None else self.val.to(device)
        return replace(self, train=self.train.to(device), val=val, test=self.test.to(device))


def digests(samples: Tensor) -> list[bytes]:
    """A digest of each sample of ``[n, ...]``."""
    return [hashlib.sha256(sample).digest() for sample in samples.cpu().contiguous().numpy()]


def stratified_split(
    targets: Tensor,
    val_fraction: float | None = None,
    samples_per_class: int | None = None,
    split_seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A fixed, balanced validation part, and a fixed, balanced rest.

    Args:
        targets: labels ``[n]``.
        val_fraction: share of each class that goes to validation.
        samples_per_class: number of samples of each class that are kept in each part, at least 1; None: all.
        split_seed: seed of the choice; None: 0.

    Returns:
        Indices of the rest and of the validation part, both ascending.

    Raises:
        SpikformerError: a share outside [0, 1).
    """
    share, labels = val_fraction or 0.0, targets.numpy()
    if not 0 <= share < 1:
        raise SpikformerError(f"val_fraction={val_fraction}: give a share from 0 to below 1")
    order = np.random.RandomState(split_seed or 0).permutation(len(labels))  # NumPy guarantees this sequence
    order = order[np.argsort(labels[order], kind="stable")]  # class by class
    rest, val = [], []
    for mine in np.split(order, np.cumsum(np.unique(labels, return_counts=True)[1])[:-1]):
        cut = min(max(1, round(share * len(mine))), len(mine) - 1) if share else 0
        val.append(mine[:cut][:samples_per_class])
        rest.append(mine[cut:][:samples_per_class])
    return torch.from_numpy(np.sort(np.concatenate(rest))), torch.from_numpy(np.sort(np.concatenate(val)))
