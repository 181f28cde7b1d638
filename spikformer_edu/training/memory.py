"""Memory in training: keep what was freed, save it by activation checkpointing, report its peak and that it ran out."""

import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import SpikformerError
from ..model import Spikformer
from .distributed import SyncBatchNorm


def keep_freed_memory() -> None:
    """Keep memory that tensors on a CPU no longer need for the next ones, instead of giving it back to the system.

    The system clears each page that it gives to a process. With glibc, which returns large blocks as soon as they are
    free, this takes up to a sixth of a forward pass and a twentieth of a training step. Other C libraries are left as
    they are.
    """
    if not sys.platform.startswith("linux"):
        return
    most_mappings, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    with suppress(AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(most_mappings, 0)
        mallopt(trim_threshold, -1)  # never


def checkpoint_blocks(model: Spikformer) -> None:
    """Keep only the input of every encoder block, and compute the block again in the backward pass."""
    for block in model.blocks:
        contexts = partial(_first_and_second_time, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _first_and_second_time(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_as_they_are(block)


@contextmanager
def _statistics_as_they_are(block: nn.Module) -> Iterator[None]:
    """The second computation of a block must not update the running statistics again."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm1d | SyncBatchNorm)]
    counts = ((norm, norm.num_batches_tracked) for norm in norms)
    before = [(norm, norm.momentum, count, count.clone()) for norm, count in counts if count is not None]
    for norm, *_ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count, kept in before:
            norm.momentum = momentum
            count.copy_(kept)


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Report in one line that memory ran out, on any device, and what to do.

    Args:
        advice: the end of that line.

    Raises:
        SpikformerError: memory ran out inside the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = ("out of memory", "allocate memory")  # a GPU and a CPU
        if isinstance(error, MemoryError) or any(words in str(error) for words in said):
            raise SpikformerError(f"out of memory: {advice}") from None
        raise


def peak_memory(device: torch.device) -> float:
    """Peak memory so far, in bytes: of tensors on a GPU, else of this process; nan where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
