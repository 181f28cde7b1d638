"""What all commands share: options from a dataclass, and errors as one line with exit code 2."""

import contextlib
import difflib
import inspect
import io
import os
import re
import signal
import sys
import threading
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from .atomic import expand
from .errors import SpikformerError, printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def run(main: Callable[..., Any], prog: str, default: Callable[[], Any] | None = None) -> None:
    """Parse the command line into the dataclass that ``main`` takes, and call it.

    Args:
        main: a function of one argument annotated with a dataclass; its docstring is the description in ``--help``.
        prog: how the command is called, for ``--help``.
        default: makes an instance whose values are the defaults; None: those of the dataclass.

    The exit code is 0; 2 after one line on stderr about a mistake that the user can correct; 130 after Ctrl-C; 143
    after SIGTERM; 141 when the pipe that its output goes to is closed.
    """
    os.environ["MPLBACKEND"] = "Agg"  # commands draw into files; what is set may need a display, or not exist here
    # A user of a command cannot act on what libraries say about their own future; our own warnings are one line.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # Matplotlib warns of every character of a class name that its font does not have.
    warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from", category=UserWarning)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {printable(message)}")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: `>&-`
            setattr(sys, name, open(os.devnull, "w"))
    if hasattr(sys.stdout, "reconfigure"):  # not every terminal can show every name of a folder; stderr escapes anyway
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with sigterm_interrupts():
            options = next(iter(typing.get_type_hints(main).values()))
            main(parse(options, prog, None if default is None else default(), main.__doc__))
            sys.stdout.flush()  # now, while a pipe without a reader is still caught below
    except SpikformerError as error:
        say(f"error: {printable(error)}")
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output has ended: `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would flush it again at the end
        sys.exit(141)  # what a shell reports for a program that SIGPIPE ended
    except OSError as error:  # a disk, a folder or a variable of this machine; a traceback would say no more
        file = f"cannot use {printable(error.filename)}: " if error.filename else ""
        say(f"error: {file}{error.strerror or printable(error)}")
        sys.exit(2)
    except KeyboardInterrupt as stop:
        say("interrupted")
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))  # what a shell reports for that signal


def say(line: str) -> None:
    """A line on stderr in one write: processes that share it must not mix their lines."""
    sys.stderr.write(line + "\n")


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: half-done files are removed on the way out."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: it was not set by Python


def parse(options: type[Options], prog: str, default: Options | None = None, description: str | None = None) -> Options:
    """The command line as an instance of ``options``.

    Args:
        options: a dataclass.
        prog: how the command is called, for ``--help``.
        default: an instance whose values are the defaults; None: those of the dataclass.
        description: text at the top of ``--help``.

    Raises:
        SpikformerError: the command line holds a mistake.
    """
    import tyro

    text = io.StringIO()
    description = description and inspect.cleandoc(description)
    try:
        with contextlib.redirect_stderr(text):
            if default is None:
                given = tyro.cli(options, prog=prog, description=description)
            else:
                given = tyro.cli(options, prog=prog, description=description, default=default)
    except SystemExit as stop:
        if not stop.code:  # --help
            sys.stdout.flush()
            raise
        raise SpikformerError(_one_line(text.getvalue(), prog)) from None
    paths = {field.name: getattr(given, field.name) for field in fields(given)}
    return replace(given, **{name: expand(path) for name, path in paths.items() if isinstance(path, Path)})


def _one_line(box: str, prog: str) -> str:
    """tyro explains a mistake in a framed box of several lines: keep what is wrong and the option that was meant."""
    text = " ".join(" ".join(line.strip("│|╭╮╰╯ ") for line in box.splitlines()).split())
    parts = [part.strip() for part in re.split(r"[─-]{5,}", text)]
    message = next(part for part in parts if ": " in part or part.endswith((".", ":")))
    message += " ''" if message.endswith(":") else ""  # an empty argument, as of a variable that is not set
    wrong = re.search(r"(--[\w.-]+)", message)
    meant = re.findall(r"(--[\w.-]+)", text.partition("Perhaps you meant:")[2].partition("For full")[0])
    close = difflib.get_close_matches(wrong[1], meant, n=1, cutoff=0) if wrong and meant else []
    return message.rstrip(".") + (f" (did you mean {close[0]}?)" if close else "") + f"; see {prog} --help"
