"""The batches of an epoch, read by this process or by others; the same whoever reads them."""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import SpikformerError
from .base import Split
from .workers import outlive_signals, readers, share, start_reading

AHEAD = 4  # steps that may wait on a GPU for their turn: it never waits for the next one, and few batches need room


class _Batches(Dataset[tuple[Tensor, Tensor] | SpikformerError]):
    """(epoch, number in it) -> batch. All random numbers are drawn from (seed, epoch, number), so neither the number
    of workers nor an interruption of the run changes a batch."""

    def __init__(self, split: Split, batch_size: int, train: bool, seed: int, rank: int, world: int):
        self.split, self.batch_size, self.train, self.seed = split, batch_size, train, seed
        self.rank, self.world = rank, world
        self.epoch: int | None = None
        self.chunks: tuple[Tensor, ...] = ()  # indices of each batch of that epoch

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"epoch": None, "chunks": ()}  # a process that reads finds them again

    def chunks_of(self, epoch: int) -> tuple[Tensor, ...]:
        """The indices of each batch of an epoch."""
        if epoch != self.epoch:
            order = torch.arange(len(self.split), device="cpu")
            if self.train:
                order = torch.randperm(len(order), generator=generator_for(self.seed, epoch), device="cpu")
                whole = len(order) // (self.batch_size * self.world) * self.batch_size * self.world
                order = order[:whole] if whole else order
            mine = order[self.rank :: self.world]
            self.epoch, self.chunks = epoch, mine.split(self.batch_size) if len(mine) else ()
        return self.chunks

    def __getitem__(self, which: tuple[int, int]) -> tuple[Tensor, Tensor] | SpikformerError:
        epoch, number = which
        generator = generator_for(self.seed, epoch * self.world + self.rank, number) if self.train else None
        try:
            with on_cpu():
                batch = self.split.fetch(self.chunks_of(epoch)[number], generator)
            if get_worker_info() is not None:
                share(batch)
        except SpikformerError as error:
            return error  # raised in a worker process it would be wrapped in that worker's traceback
        return batch


def on_cpu() -> AbstractContextManager[object]:
    """New tensors are made on the CPU inside the block, whatever PyTorch's default device is."""
    # The context of a device looks at every call of PyTorch, which takes longer than many a small one: only if need be.
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def generator_for(*numbers: int) -> torch.Generator:
    """A random generator that depends only on the numbers given."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:  # splitmix64: neighbouring numbers give unrelated streams
        state = (state + number + 1) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return torch.Generator("cpu").manual_seed(state % 2**63)


class Reader:
    """Reads the batches of one epoch after another. Processes that read for it live until ``close``.

    Args:
        split: the samples to read.
        batch_size: samples in a batch of one process; the last batch may be smaller in evaluation.
        train: shuffle, augment and drop the last incomplete batch (kept when it is the only one).
        seed: seed of the order and the augmentation, together with the epoch.
        rank: number of this process, from 0.
        world: number of processes.
        workers: number of processes that read ahead; 0: this process reads. The batches are the same.

    Raises:
        SpikformerError: batch_size below 1.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        train: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ):
        if batch_size < 1:
            raise SpikformerError(f"batch size {batch_size}: give at least 1")
        self.batches = _Batches(split, batch_size, train, seed, rank, world)
        self.wanted: list[tuple[int, int]] = []  # epoch and number of each batch of the epoch under way
        workers = workers if split.device.type == "cpu" else 0  # what is on a GPU is not read by processes
        self.loader = DataLoader(
            self.batches,
            batch_size=None,
            sampler=self.wanted,
            num_workers=workers,
            worker_init_fn=outlive_signals,
            persistent_workers=workers > 0,
            pin_memory=split.device.type == "cpu" and torch.cuda.is_available(),
            generator=generator_for(seed),  # otherwise the loader would draw from the global one
        )
        self.reading: Iterator[tuple[Tensor, Tensor] | SpikformerError] | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch.

        Args:
            epoch: number of the epoch, from 0.
            start: number of batches to skip, when an interrupted epoch goes on.

        Raises:
            SpikformerError: a sample cannot be read, or the processes that read cannot go on.
        """
        self.wanted[:] = [(epoch, number) for number in range(start, len(self.batches.chunks_of(epoch)))]
        with readers():
            with on_cpu():  # the loader draws a seed
                self.reading = start_reading(self.loader)  # the processes are there from the second epoch on
            for batch in self.reading:
                if isinstance(batch, SpikformerError):
                    raise batch
                yield batch

    def close(self) -> None:
        """End the processes that read."""
        if shutdown := getattr(self.reading, "_shutdown_workers", None):  # other processes read
            shutdown()  # PyTorch asks them to end, and waits for some seconds
        for process in getattr(self.reading, "_workers", ()):
            process.kill()  # one that is still starting would print a traceback: what it was to read is gone
        self.reading = None


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
    reader = Reader(split, batch_size, train=train, seed=seed, rank=rank, world=world, workers=workers)
    return _closing(reader, reader.epoch(epoch, start))


def _closing(reader: Reader, read: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    try:
        yield from read
    finally:
        reader.close()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that batches are made on: one for all epochs, because each keeps memory of its own."""
    return torch.cuda.Stream(device)


def ahead(read: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches, on a device. On a GPU each is made while the GPU still computes the steps before it.

    Args:
        read: the batches, from ``batches``.
        device: the device that computes, on its current stream.
    """
    if device.type != "cuda":
        for inputs, targets in read:
            yield inputs.to(device), targets.to(device)
        return
    main, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(main)
    begun: deque[torch.cuda.Event] = deque()

    def make() -> tuple[tuple[Tensor, ...], torch.cuda.Event] | None:
        with torch.cuda.stream(side):
            batch = next(read, None)  # a split on the GPU is augmented here, on the side stream
            if batch is None:
                return None
            return tuple(tensor.to(device, non_blocking=True) for tensor in batch), side.record_event()

    following = make()
    while following is not None:
        ((inputs, targets), made), following = following, make()
        main.wait_event(made)
        for tensor in (inputs, targets):
            tensor.record_stream(main)  # made on the side stream: its memory is not free before main has used it
        yield inputs, targets
        begun.append(main.record_event(torch.cuda.Event(blocking=True)))
        if len(begun) > AHEAD:
            begun.popleft().synchronize()
