"""What every test stands on: one thread, a fixed seed, and a compiler that remembers nothing."""

import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from spikformer_edu import cli

CHROMIUM = Path("/usr/bin/chromium")  # Debian's package

torch.set_num_threads(1)  # for fixtures of modules too, which come before the fixture below

CPU_SECONDS = 30  # of this process; a test that takes more and is not marked slow is named in the summary


# Commands respect a signal that their parent ignores, as nohup and a shell's background jobs do. Tests send signals.
for number, handler in (
    ("SIGINT", signal.default_int_handler),
    ("SIGTERM", signal.SIG_DFL),
    ("SIGHUP", signal.SIG_DFL),
):
    with suppress(AttributeError, ValueError):  # there is no such signal here, or this is not the main thread
        if signal.getsignal(getattr(signal, number)) is signal.SIG_IGN:
            signal.signal(getattr(signal, number), handler)


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def compiler_forgets():
    """Dynamo learns from the shapes it has seen: what one test compiles must not change what the next one gets."""
    yield
    if "torch._dynamo" in sys.modules:  # importing it takes seconds
        torch.compiler.reset()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    start = time.process_time()
    result = yield
    seconds = time.process_time() - start
    if seconds > CPU_SECONDS and not item.get_closest_marker("slow"):
        warnings.warn(f"{item.nodeid} took {seconds:.0f} s of CPU: make it faster or mark it slow", stacklevel=1)
    return result


@pytest.fixture
def default_dtype():
    """Sets PyTorch's default dtype; it is float32 again afterwards."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def one_line():
    """Checks that an error is one line that a person can act on, with these words in it."""

    def check(excinfo: pytest.ExceptionInfo, *words: str) -> None:
        message = str(excinfo.value)
        assert "\n" not in message and 20 < len(message) < 500, message
        for word in words:
            assert word in message, f"{word!r} is not in: {message}"

    return check


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run a command in this process, which takes no seconds to start: exit code, standard output, standard error."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # cli.run changes it for the whole process

    def run(main, prog: str, *arguments, default=None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [prog, *map(str, arguments)])
        code = 0
        with warnings.catch_warnings():
            try:
                cli.run(main, prog, default=default)
            except SystemExit as stop:
                code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, one for all tests of a process: Playwright can be started only once in it."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was tried")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed: no page was tried")
    flags = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*flags.split(), "--no-first-run"])
        yield browser
        browser.close()
