"""What every data set hands out: labelled splits that are read by the batch, and the batches themselves."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import SpikformerError
from .reading import outlive_signals, readers, share, start_reading

FILES_READ = 16  # of those a fingerprint covers


@dataclass(frozen=True)
class DatasetInfo:
    """The facts about a data set; one line of the registry.

    Attributes:
        name: what ``--dataset`` takes.
        title: for people; of simulated recordings it says so.
        classes: class names, by label; empty while they are only known from the files.
        channels: of the network's input.
        image_size: height and width of the network's input.
        mean: mean of each channel over the training set, in [0, 1] pixel units; empty for event frames, which are
            counts.
        std: standard deviation of each channel, likewise.
        default_model: preset that is trained on it unless told otherwise.
        folder: where it is looked for, under the data directory; None when it needs no files.
        obtain: how to get it.
        licence: what the owners of the data ask for.
        citation: what to cite.
        num_classes: number of classes; counted from ``classes`` unless given.
        time_steps: number T of event frames, unless told otherwise; None for still images, which the network repeats.
        samples: how many a complete copy has, by split; empty if that is not fixed.
        simulated: the events come from a simulated camera.
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
        """The name as messages give it: simulated recordings are called so."""
        return f"{self.name} (simulated)" if self.simulated else self.name


class Split:
    """Labelled samples. Subclasses set ``targets`` and say how a batch of them is read.

    Attributes:
        targets: labels ``[n]``, int64, known without reading any sample.
        device: where the samples are kept, and batches come from.
    """

    targets: Tensor
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Read samples.

        Args:
            indices: which ones, ``[B]``.
            generator: the source of all randomness of the augmentation, on the CPU; None: no augmentation.

        Returns:
            Inputs ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``, float32, normalised, and labels ``[B]``, int64.
        """
        raise NotImplementedError

    def keys(self) -> list[bytes]:
        """What tells each sample from all others: a digest of its pixels, or where its file lies below the data set."""
        raise NotImplementedError

    def read(self, index: int) -> bytes:
        """The bytes of the file that holds a sample; none where ``keys`` cover its pixels."""
        return b""

    def fingerprint(self, classes: Sequence[str]) -> dict[str, Any] | None:
        """What tells these samples from all others, wherever they lie and however they are augmented or resized.

        Of files it covers names and labels, and the bytes of sixteen: reading a million photographs takes hours.

        Args:
            classes: class names, by label.

        Returns:
            Number of ``samples``; ``content``, a digest of them in any order and with the classes in any order;
            ``order``, a digest of them in their order. None if the split is absent.

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
        """The same samples kept on a device and augmented there, if they are kept in memory; else this split."""
        return self


class Absent(Split):
    """A split that is not there: whoever asks it for anything is told why."""

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
    """A data set ready to be used: the training set drives the weights, the validation set (None if there is none)
    chooses between epochs, the test set is touched once, at the end."""

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
        """All splits kept on a device; see ``Split.to``."""
        if torch.device(device).type == "mps":  # cannot warp bicubically in every torch: batches are made on the CPU
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
        samples_per_class: samples of each class that are kept on either side, at least 1; None: all.
        split_seed: another choice; 0 if None.

    Returns:
        Indices of the rest and of the validation part, both ascending.

    Raises:
        SpikformerError: a share outside [0, 1).
    """
    share, labels = val_fraction or 0.0, targets.numpy()
    if not 0 <= share < 1:
        raise SpikformerError(f"val_fraction={val_fraction}: give a share from 0 to below 1")
    order = np.random.RandomState(split_seed or 0).permutation(len(labels))  # numpy promises this sequence for ever
    order = order[np.argsort(labels[order], kind="stable")]  # class by class
    rest, val = [], []
    for mine in np.split(order, np.cumsum(np.unique(labels, return_counts=True)[1])[:-1]):
        cut = min(max(1, round(share * len(mine))), len(mine) - 1) if share else 0
        val.append(mine[:cut][:samples_per_class])
        rest.append(mine[cut:][:samples_per_class])
    return torch.from_numpy(np.sort(np.concatenate(rest))), torch.from_numpy(np.sort(np.concatenate(val)))


class _Batches(Dataset[tuple[Tensor, Tensor] | SpikformerError]):
    """Batch number -> batch. All randomness is drawn from (seed, epoch, batch number), so neither the number of
    workers nor where a run was interrupted changes a batch."""

    def __init__(self, split: Split, batches: list[Tensor], seed: int, epoch: int, augment: bool, start: int):
        self.split, self.batches, self.seed, self.epoch, self.augment = split, batches, seed, epoch, augment
        self.start = start

    def __len__(self) -> int:
        return max(0, len(self.batches) - self.start)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | SpikformerError:
        number += self.start
        generator = generator_for(self.seed, self.epoch, number) if self.augment else None
        try:
            with torch.device("cpu"):  # whatever PyTorch's default is
                batch = self.split.fetch(self.batches[number], generator)
            if get_worker_info() is not None:
                share(batch)
        except SpikformerError as error:
            return error  # raised inside a worker it would come out wrapped in that worker's traceback
        return batch


def generator_for(*numbers: int) -> torch.Generator:
    """A random generator that depends on the numbers given and on nothing else."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:  # splitmix64: neighbouring numbers give unrelated streams
        state = (state + number + 1) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return torch.Generator("cpu").manual_seed(state % 2**63)


def batches(
    split: Split,
    batch_size: int,
    *,
    train: bool = False,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch.

    Args:
        split: what to read.
        batch_size: samples a batch and rank; the last batch may be smaller in evaluation.
        train: shuffle, augment and drop the last incomplete batch (kept when it is the only one).
        seed: fixes the order and the augmentation, together with the epoch.
        epoch: number of the epoch, from 0.
        rank: number of this process, from 0.
        world: number of processes.
        start: number of batches to skip, when an interrupted epoch goes on.
        workers: processes that read ahead; 0 reads in this one. Never changes what is read.

    Raises:
        SpikformerError: batch_size below 1.
    """
    if batch_size < 1:
        raise SpikformerError(f"batch size {batch_size}: give at least 1")
    order = torch.arange(len(split), device="cpu")
    if train:
        order = torch.randperm(len(split), generator=generator_for(seed, epoch), device="cpu")
        whole = len(order) // (batch_size * world) * batch_size * world
        order = order[:whole] if whole else order
    mine = order[rank::world]
    chunks = list(mine.split(batch_size)) if len(mine) else []
    loader = DataLoader(
        _Batches(split, chunks, seed, epoch * world + rank, augment=train, start=start),
        batch_size=None,
        num_workers=workers if split.device.type == "cpu" else 0,  # what is on a GPU is not read by processes
        worker_init_fn=outlive_signals,
        pin_memory=split.device.type == "cpu" and torch.cuda.is_available(),
        generator=generator_for(seed, epoch),  # or the loader would draw from the global one
    )
    return _unwrapped(loader)


def _unwrapped(loader: DataLoader[tuple[Tensor, Tensor] | SpikformerError]) -> Iterator[tuple[Tensor, Tensor]]:
    with readers():
        with torch.device("cpu"):  # whatever PyTorch's default is, where the loader would draw a seed
            read = start_reading(loader)
        for batch in read:
            if isinstance(batch, SpikformerError):
                raise batch
            yield batch
