"""How SIGTERM, SIGHUP and Ctrl-C end a training: a step or a file is finished first, all else ends at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# A scheduler's request to end, Ctrl-C, and a terminal that was closed (there is no such signal on Windows).
REQUESTS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Asked(KeyboardInterrupt):
    """The process was asked to end. No ``Exception``, so that no library takes it for an error of its own."""


class Stopping:
    """Handles these signals inside its ``with`` block.

    Attributes:
        asked: whether a signal has come; work that may not be interrupted should then end soon.
    """

    def __init__(self) -> None:
        self.asked, self.waits = False, True
        self.before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "Stopping":
        for number in REQUESTS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it, or a shell for a background job
                with suppress(ValueError):  # only the main thread may listen
                    self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not set by Python

    def _ask(self, number: int, _: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if again and number == signal.SIGINT:  # a second SIGTERM is usual: from torchrun and from the scheduler
            raise KeyboardInterrupt
        if not again and not self.waits:
            raise Asked

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block of work that may be interrupted anywhere.

        Raises:
            Asked: a signal comes inside the block, or has come before it.
        """
        self.waits = False
        try:
            if self.asked:
                raise Asked
            yield
        finally:
            self.waits = True


@contextmanager
def ignoring_sigterm() -> Iterator[None]:
    """For the end of a run, which is short: schedulers and torchrun send SIGTERM more than once."""
    before = None
    with suppress(ValueError):  # only the main thread may choose
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
