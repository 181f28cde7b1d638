"""What every data set provides: labelled splits that are read by the batch, and the batches themselves."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import active_children
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import SpikformerError
from .reading import outlive_signals, readers, share, start_reading

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


class _Batches(Dataset[tuple[Tensor, Tensor] | SpikformerError]):
    """Batch number -> batch. All random numbers are drawn from (seed, epoch, batch number), so neither the number of
    workers nor an interruption of the run changes a batch."""

    def __init__(self, split: Split, batches: list[Tensor], seed: int, epoch: int, augment: bool, start: int):
        self.split, self.batches, self.seed, self.epoch, self.augment = split, batches, seed, epoch, augment
        self.start = start

    def __len__(self) -> int:
        return max(0, len(self.batches) - self.start)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | SpikformerError:
        number += self.start
        generator = generator_for(self.seed, self.epoch, number) if self.augment else None
        try:
            with torch.device("cpu"):  # even if PyTorch's default is another
                batch = self.split.fetch(self.batches[number], generator)
            if get_worker_info() is not None:
                share(batch)
        except SpikformerError as error:
            return error  # raised in a worker process it would be wrapped in that worker's traceback
        return batch


def generator_for(*numbers: int) -> torch.Generator:
    """A random generator that depends only on the numbers given."""
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
        split: the samples to read.
        batch_size: samples in a batch of one process; the last batch may be smaller in evaluation.
        train: shuffle, augment and drop the last incomplete batch (kept when it is the only one).
        seed: seed of the order and the augmentation, together with the epoch.
        epoch: number of the epoch, from 0.
        rank: number of this process, from 0.
        world: number of processes.
        start: number of batches to skip, when an interrupted epoch goes on.
        workers: number of processes that read ahead; 0: this process reads. The batches are the same.

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
        generator=generator_for(seed, epoch),  # otherwise the loader would draw from the global one
    )
    return _unwrapped(loader)


def _unwrapped(loader: DataLoader[tuple[Tensor, Tensor] | SpikformerError]) -> Iterator[tuple[Tensor, Tensor]]:
    with readers():
        others = set(active_children())
        with torch.device("cpu"):  # the loader would draw a seed on PyTorch's default device
            read = start_reading(loader)
        processes = set(active_children()) - others
        try:
            for batch in read:
                if isinstance(batch, SpikformerError):
                    raise batch
                yield batch
        finally:
            if shutdown := getattr(read, "_shutdown_workers", None):
                shutdown()  # PyTorch asks them to end, and waits for some seconds
            for process in processes:
                process.kill()  # one that is still starting would print a traceback: what it was to read is gone
