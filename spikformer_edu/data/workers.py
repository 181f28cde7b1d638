"""The processes that read data: how they treat signals, and one line for each way in which they fail."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TypeVar

from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import SpikformerError

KILLED = "a process that reads data was killed, perhaps for memory: lower --workers"
NO_FILES = "too many open files: lower --workers, or raise the limit (ulimit -n)"
NO_SHARED_MEMORY = (
    "too little shared memory for the processes that read data: lower --workers, or raise it (Docker: --shm-size=8g)"
)

Batch = TypeVar("Batch")


class ReadersError(SpikformerError):
    """The processes that read data cannot go on."""


@contextmanager
def readers() -> Iterator[None]:
    """Turn PyTorch's errors about the processes that read data into one line.

    Raises:
        ReadersError: they were killed, or lack shared memory or open files.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        said = f"{error} {error.__cause__}"
        if "Too many open files" in said or "ancdata" in said:  # the second: a socket could not hand a file over
            raise ReadersError(NO_FILES) from None
        if "DataLoader worker (pid" not in said:
            raise
        raise ReadersError(NO_SHARED_MEMORY if "Bus error" in said else KILLED) from None


def start_reading(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The batches of a loader, whose processes receive no signal before they have set their handlers.

    Args:
        loader: the loader.

    Raises:
        ReadersError: they cannot be started.
    """
    before = None
    if hasattr(signal, "pthread_sigmask"):  # Windows has none
        if loader.num_workers and multiprocessing.get_start_method() != "fork":
            resource_tracker.ensure_running()  # when it starts, it unblocks signals
        # The processes inherit this mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # a half-made iterator prints an error of its own
    try:
        try:
            return iter(loader)
        except OSError as error:
            reason = str(error.strerror or error)
        raise ReadersError(f"cannot start the processes that read data ({reason}): lower --workers")
    finally:
        sys.unraisablehook = hook
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(worker: int) -> None:
    """Let a process that reads ignore Ctrl-C and SIGHUP, and also SIGTERM unless its parent sends it.

    Terminals, schedulers and ``torchrun`` send a signal to every process of a job. The process that trains still needs
    its batch then, and ends its readers itself.

    Args:
        worker: number of the process, which PyTorch passes; not used.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        threading.Thread(target=_end_with_parent, daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):  # macOS does not tell who sent a signal: SIGTERM ends this process
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a process that another one started
    while signal.sigwaitinfo((signal.SIGTERM,)).si_pid != parent.pid:
        pass
    os._exit(0)


def share(batch: tuple[Tensor, Tensor]) -> None:
    """Put a batch where another process can read it.

    PyTorch would do so later, in a thread whose errors are lost. The process that trains would then wait without end.

    Args:
        batch: inputs and labels.

    Raises:
        ReadersError: there is no room for it.
    """
    try:
        for tensor in batch:
            tensor.share_memory_()
    except RuntimeError as error:
        raise ReadersError(NO_FILES if "Too many open files" in str(error) else NO_SHARED_MEMORY) from None
