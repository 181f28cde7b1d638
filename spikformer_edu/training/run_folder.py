"""The folder of a run: chosen, locked while a process trains, left tidy."""

import csv
import json
import math
import os
import shlex
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import SpikformerError
from .checkpoint import read_config
from .data_record import DataRecord, difference
from .distributed import DistributedContext
from .evaluation import Score
from .recipe import Recipe

LOCK = ".lock"  # in a run folder while a process trains into it; a killed one leaves the file behind, but no lock


def summary(folder: Path, score: Score) -> str:
    """What a reader wants to know of a finished run."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as log:
        rows = list(csv.DictReader(log))
    last, seconds = rows[-1], sum(float(row["seconds"]) for row in rows)
    speed = sum(float(row["images_per_s"]) * float(row["seconds"]) for row in rows) / seconds
    memory = float(last["peak_memory_gib"])
    best = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    data = f", trained on {', then '.join(best['trained_on'])}" if best["simulated"] else ""
    lines = [
        f"test accuracy {100 * score.accuracy:.2f} % ({score.correct} of {score.total}), measured once{data}",
        f"weights of    epoch {best['best_epoch']} of {best['epochs']}"
        + ("" if best["val_accuracy"] is None else f", validation accuracy {100 * best['val_accuracy']:.2f} %"),
        f"firing rate   {100 * float(last['rate']):.2f} % of neurons and time steps, in training",
        f"training      {seconds:.0f} s, {speed:.0f} images/s"
        + ("" if math.isnan(memory) else f", peak memory {memory:.2f} GiB"),
        f"run folder    {folder}",
    ]
    return "\n".join(lines)


def common_folder(recipe: Recipe, out: Path | None, resume: bool, context: DistributedContext) -> Path:
    """The run folder, chosen and locked by process 0 for all.

    Raises:
        SpikformerError: as ``run_folder``, in every process.
    """
    chosen: Path | str = ""
    if context.rank == 0:
        try:
            chosen = run_folder(recipe, out, resume)
        except SpikformerError as error:
            chosen = str(error)
    chosen = context.broadcast(chosen)
    if isinstance(chosen, str):
        raise SpikformerError(chosen)
    return chosen


def run_folder(recipe: Recipe, out: Path | None, resume: bool) -> Path:
    """Where the run goes, locked: never into a folder that holds another one, even if both are started at once.

    Raises:
        SpikformerError: a run is there and --resume was not given, nothing is there to resume, another process trains
            there, or it cannot be written.
    """
    folder = choose_folder(recipe, out, resume)
    lock(folder)
    return folder


def choose_folder(recipe: Recipe, folder: Path | None, resume: bool) -> Path:
    """The folder of a new run, taken, or of the one to be resumed."""
    if resume:
        if folder is None:
            raise SpikformerError(f"no run of {recipe.model} in runs/ to resume: leave out --resume, or give --out")
        if not (folder / "config.json").exists():
            raise SpikformerError(f"no run at {folder} to resume: leave out --resume")
        if not (folder / "resume.pt").exists() and (folder / "best.safetensors").exists():
            raise SpikformerError(f"{folder} has weights but no resume.pt to go on from: give another --out")
        if has_config(folder):
            check_same_recipe(recipe, folder)
        return folder
    if folder is None:
        number = 1
        while (free := Path("runs") / f"{recipe.model}-{number}").exists() or not take(free):
            number += 1
        return free
    if not take(folder):
        raise SpikformerError(f"{folder} holds a run already: give --resume to go on with it, or another --out")
    return folder


def has_config(folder: Path) -> bool:
    """Whether a run began there; a process that was killed while it took the folder leaves an empty file."""
    config = folder / "config.json"
    return config.exists() and config.stat().st_size > 0


def take(folder: Path) -> bool:
    """Mark a folder as this run's with an empty config.json, which training fills; false if it is taken.

    Raises:
        SpikformerError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").open("x").close()
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.is_dir():
            return False
        if isinstance(error, FileExistsError):
            raise SpikformerError(f"{folder} is a file: give a folder as --out") from None
        raise SpikformerError(
            f"cannot write {folder / 'config.json'}: {error.strerror}; free the disk or choose another --out"
        ) from None
    return True


def lock(folder: Path) -> None:
    """Let no other process train into a folder until this one ends; the system ends the lock, even of a killed one.

    Raises:
        SpikformerError: another process trains there, or the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows: a run that is resumed twice at once is not noticed there
        return
    path = folder / LOCK
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # stays open: closing it would end the lock
    except OSError as error:
        raise SpikformerError(f"cannot write {path}: {error.strerror}; free the disk or choose another --out") from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not kept by the processes that read data
    except (BlockingIOError, PermissionError):  # which of the two depends on the system
        raise SpikformerError(
            f"another process trains into {folder}: wait for its end, or give another --out"
        ) from None
    except OSError:  # a disk without locks
        return
    if not os.fstat(file).st_nlink:  # its owner ended, and removed it, after it was opened here
        lock(folder)


def check_figures(folder: Path) -> None:
    """Find out before the training whether figures can be drawn into a folder after it.

    Raises:
        SpikformerError: they cannot.
    """
    if os.path.lexists(folder) and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise SpikformerError(f"{folder} is no folder that can be written: remove it, or give --no-figures")


def let_go(folder: Path, new: bool) -> None:
    """Remove the lock, and every trace of a new run that ended before its first checkpoint: it may be tried again."""
    with suppress(OSError):
        (folder / LOCK).unlink()
    if not has_config(folder) or (new and not (folder / "resume.pt").exists()):
        (folder / "config.json").unlink(missing_ok=True)
        for empty in (folder, Path("runs")):
            with suppress(OSError):  # it holds something else, or is not there
                empty.rmdir()


def check_same_recipe(recipe: Recipe, folder: Path) -> None:
    """A run goes on as it began.

    Args:
        recipe: what is to be trained.
        folder: the run.

    Raises:
        SpikformerError: the run in the folder has another recipe; the line names the options.
    """
    given, own = asdict(recipe), asdict(read_config(folder)[0])
    for values in (given, own):
        values |= {f"augment.{name}": value for name, value in values.pop("augment").items()}
    different = [f"{_typed(n, given[n])} differs from the run's {own[n]}" for n in own if given[n] != own[n]]
    if different:
        raise SpikformerError(f"{', '.join(different)}: leave that out to go on with {folder}, or give another --out")


def _typed(name: str, value: Any) -> str:
    """A value as it is given on the command line."""
    group, dot, last = name.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"--{group}{dot}{'' if value else 'no-'}{last}"
    return f"--{group}{dot}{last} {value}"


def how_to_go_on(folder: Path, data_dir: Path | None) -> str:
    """The end of an error line: what to type for a run that ended before its time."""
    if not (folder / "resume.pt").exists():
        return "start again"
    data = [] if data_dir is None else ["--data-dir", str(data_dir)]
    return f"go on with {shlex.join([*data, '--out', str(folder), '--resume'])}"


def check_same_data(data: DataRecord, folder: Path) -> DataRecord:
    """What the run in a folder says of its data, if the data here are the same, in the same order.

    Raises:
        SpikformerError: they are not; the line says in what they differ.
    """
    own = read_config(folder)[2]
    what = None
    if own.title != data.title:
        what = f"{own.title}, not {data.title}"
    elif own.classes != data.classes:
        what = f"other classes ({difference(own.classes, data.classes)})"
    elif own.splits != data.splits:
        name = next(name for name in own.splits if own.splits[name] != data.splits[name])
        there, here = own.splits[name], data.splits[name]
        there_are, here_are = (f"{part['samples']:,}" if part else "none" for part in (there, here))
        what = f"other {name} samples ({there_are} there, {here_are} here)"
        if there and here and there["content"] == here["content"]:
            what = f"the same {name} samples in another order"
    if what is not None:
        raise SpikformerError(f"{folder} holds a run on {what}: give its data as --data-dir, or another --out")
    return own
