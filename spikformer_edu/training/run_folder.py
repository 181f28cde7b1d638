"""The folder of a run: choose it, lock it while a process trains, clean it up afterwards."""

import csv
import json
import math
import os
import shlex
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import SpikformerError
from .checkpoint import read_config
from .data_record import DataRecord, difference
from .distributed import DistributedContext
from .evaluation import Score
from .recipe import Recipe, precision_for

LOCK = ".lock"  # in a run folder while a process trains into it; a killed one leaves the file behind, but no lock


def summary(folder: Path, score: Score) -> str:
    """A summary of a finished run, as text."""
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

    Args:
        recipe: the recipe of the run.
        out: the folder that the user named; None: the next free one in ``runs``.
        resume: go on with the run in the folder.
        context: the processes.

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
    """Choose and lock the folder of a run; two runs never share one, even if they start at the same time.

    Args:
        recipe: the recipe of the run.
        out: the folder that the user named; None: the next free one in ``runs``.
        resume: go on with the run in the folder.

    Raises:
        SpikformerError: a run is there and --resume was not given, nothing is there to resume, another process trains
            there, or it cannot be written.
    """
    folder = choose_folder(recipe, out, resume)
    lock(folder)
    return folder


def choose_folder(recipe: Recipe, folder: Path | None, resume: bool) -> Path:
    """The folder of a new run, marked with an empty config.json, or of the run to be resumed."""
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

    Args:
        folder: the folder; made if need be.

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
    """Lock a folder against other processes that train, until this one ends; the lock ends even if it is killed.

    Args:
        folder: the run folder.

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

    Args:
        folder: the folder for the figures.

    Raises:
        SpikformerError: they cannot.
    """
    if os.path.lexists(folder) and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise SpikformerError(f"{folder} is no folder that can be written: remove it, or give --no-figures")


def let_go(folder: Path, new: bool) -> None:
    """Remove the lock, and all files of a new run that ended before its first checkpoint, so it can start again.

    Args:
        folder: the run folder.
        new: whether the run began now, without ``--resume``.
    """
    with suppress(OSError):
        (folder / LOCK).unlink()
    if not has_config(folder) or (new and not (folder / "resume.pt").exists()):
        (folder / "config.json").unlink(missing_ok=True)
        for empty in (folder, Path("runs")):
            with suppress(OSError):  # it holds something else, or is not there
                empty.rmdir()


def settle(recipe: Recipe, folder: Path | None, device: torch.device) -> Recipe:
    """The recipe with a precision instead of "auto": that of the run in the folder, else the best one for the device.

    Args:
        recipe: the recipe that is asked for.
        folder: the run folder; None: there is none.
        device: the device that computes.
    """
    if recipe.precision != "auto":
        return recipe
    if folder is not None and (folder / "resume.pt").exists() and has_config(folder):
        return replace(recipe, precision=read_config(folder)[0].precision)  # a run keeps what it began with
    return replace(recipe, precision=precision_for(device))


def check_same_recipe(recipe: Recipe, folder: Path) -> None:
    """Check that a run is resumed with its own recipe; the precision "auto" is whatever the run has.

    Args:
        recipe: the recipe that is asked for.
        folder: the run folder.

    Raises:
        SpikformerError: the run in the folder has another recipe; the line names the options.
    """
    given, own = asdict(recipe), asdict(read_config(folder)[0])
    if recipe.precision == "auto":
        given["precision"] = own["precision"]
    for values in (given, own):
        values |= {f"augment.{name}": value for name, value in values.pop("augment").items()}
    different = [f"{_typed(n, given[n])} differs from the run's {own[n]}" for n in own if given[n] != own[n]]
    if different:
        raise SpikformerError(f"{', '.join(different)}: leave that out to go on with {folder}, or give another --out")


def _typed(name: str, value: Any) -> str:
    """An option as it is written on the command line."""
    group, dot, last = name.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"--{group}{dot}{'' if value else 'no-'}{last}"
    return f"--{group}{dot}{last} {value}"


def how_to_go_on(folder: Path, data_dir: Path | None) -> str:
    """The end of an error line: how to go on with a run that was stopped."""
    if not (folder / "resume.pt").exists():
        return "start again"
    data = [] if data_dir is None else ["--data-dir", str(data_dir)]
    return f"go on with {shlex.join([*data, '--out', str(folder), '--resume'])}"


def check_same_data(data: DataRecord, folder: Path) -> DataRecord:
    """The data record of the run in a folder, after a check that the data here are the same, in the same order.

    Args:
        data: record of the data here.
        folder: the run folder.

    Raises:
        SpikformerError: they are not the same; the line names the difference.
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
