"""The batches of an epoch, read by this process or by others; the same whoever reads them."""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import SpikformerError
from .base import Split
from .workers import outlive_signals, readers, share, start_reading

AHEAD = 4  # steps that may wait on a GPU for their turn: it never waits for the next one, and few batches need room


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
            with on_cpu():
                batch = self.split.fetch(self.batches[number], generator)
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


def _unwrapped(loader: DataLoader[tuple[Tensor, Tensor] | SpikformerError]) -> Iterator[tuple[Tensor, Tensor]]:
    with readers():
        with on_cpu():  # the loader draws a seed
            read = start_reading(loader)
        try:
            for batch in read:
                if isinstance(batch, SpikformerError):
                    raise batch
                yield batch
        finally:
            if shutdown := getattr(read, "_shutdown_workers", None):  # other processes read
                shutdown()  # PyTorch asks them to end, and waits for some seconds
            for process in getattr(read, "_workers", ()):
                process.kill()  # one that is still starting would print a traceback: what it was to read is gone
