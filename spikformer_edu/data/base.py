"""What every data set hands out: labelled splits that are read by the batch, and the batches themselves."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import SpikformerError


@dataclass(frozen=True)
class DatasetInfo:
    """The facts about a data set; one line of the registry.

    Attributes:
        name: what ``--dataset`` takes. title: for people.
        classes: class names, by label. channels, image_size: of the network's input.
        mean, std: a channel, of the training set, in [0, 1] pixel units; empty for event frames.
        default_model: preset that is trained on it unless told otherwise.
        folder: where it is looked for, under the data directory; None when it needs no files.
        obtain: how to get it. licence, citation: what to respect and cite.
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


class Split:
    """Labelled samples. Subclasses set ``targets`` and say how a batch of them is read.

    Attributes:
        targets: labels ``[n]``, int64, known without reading any sample.
    """

    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Read samples.

        Args:
            indices: which ones, ``[B]``.
            generator: the source of all randomness of the augmentation; None: no augmentation.

        Returns:
            Inputs ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``, float32, normalised, and labels ``[B]``, int64.
        """
        raise NotImplementedError


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


class _Batches(Dataset):
    """Batch number -> batch. All randomness is drawn from (seed, epoch, batch number), so neither the number of
    workers nor where a run was interrupted changes a batch."""

    def __init__(self, split: Split, batches: list[Tensor], seed: int, epoch: int, augment: bool):
        self.split, self.batches, self.seed, self.epoch, self.augment = split, batches, seed, epoch, augment

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        generator = generator_for(self.seed, self.epoch, number) if self.augment else None
        return self.split.fetch(self.batches[number], generator)


def generator_for(*numbers: int) -> torch.Generator:
    """A random generator that depends on the numbers given and on nothing else."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:  # splitmix64: neighbouring numbers give unrelated streams
        state = (state + number + 1) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return torch.Generator().manual_seed(state % 2**63)


def batches(
    split: Split,
    batch_size: int,
    *,
    train: bool = False,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch.

    Args:
        split: what to read. batch_size: samples a batch and rank; the last batch may be smaller in evaluation.
        train: shuffle, augment and drop the last incomplete batch (kept when it is the only one).
        seed, epoch: fix the order and the augmentation. rank, world: this process and how many there are.
        workers: processes that read ahead; 0 reads in this one. Never changes what is read.

    Raises:
        SpikformerError: batch_size below 1.
    """
    if batch_size < 1:
        raise SpikformerError(f"batch size {batch_size}: give at least 1")
    order = torch.arange(len(split))
    if train:
        order = torch.randperm(len(split), generator=generator_for(seed, epoch))
        whole = len(order) // (batch_size * world) * batch_size * world
        order = order[:whole] if whole else order
    chunks = list(order[rank::world].split(batch_size))
    loader = DataLoader(
        _Batches(split, chunks, seed, epoch * world + rank, augment=train), batch_size=None, num_workers=workers
    )
    return iter(loader)
