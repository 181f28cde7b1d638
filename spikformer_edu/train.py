"""``python -m spikformer_edu.train``: train a network and write a run folder."""

import csv
import json
import math
import os
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from . import cli, visualize
from .atomic import expand
from .data import local_info
from .errors import SpikformerError
from .training import DistributedContext, Recipe, RunOptions, Score, init_distributed, recipe_for, shutdown, train
from .training.checkpoint import read_config
from .training.loop import check_same_recipe
from .training.plan import describe_plan, plan
from .training.stopping import ignoring_sigterm

LOCK = ".lock"  # in a run folder while a process trains into it; a killed one leaves the file behind, but no lock


@dataclass(frozen=True)
class Options(RunOptions, Recipe):
    out: Path | None = None
    """Run folder; runs/MODEL-NUMBER, with the next free number, unless given."""
    resume: bool = False
    """Go on with the run in --out, or with the last one of this model in runs/; the recipe is the run's own."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    dry_run: bool = False
    """Print the whole recipe and what it will take, from one measured step, and train nothing."""
    figures: bool = True
    """Draw the run and what the trained network does, into the run folder."""


def main(options: Options) -> None:
    """Train a Spikformer and write a run folder: config, metrics, checkpoints, test accuracy, figures.

    Start it with `torchrun --nproc-per-node N -m spikformer_edu.train ...` to train on N GPUs.
    """
    recipe, how = (kind(**{f.name: getattr(options, f.name) for f in fields(kind)}) for kind in (Recipe, RunOptions))
    context = init_distributed(options.device)
    folder = None
    try:
        if options.dry_run:
            if options.resume:
                choose_folder(options)
            if context.rank == 0:
                asked = {"activation_checkpointing": how.activation_checkpointing, "compile": how.compile}
                print(describe_plan(recipe, context, plan(recipe, context, how.data_dir, **asked)))
            return
        folder = common_folder(options, context)
        if options.figures:
            check_figures(folder / "figures")
        if context.rank == 0:
            data = local_info(recipe.dataset, options.data_dir).label
            print(f"{recipe.model} on {data}, {recipe.epochs} epochs on {context.device}, into {folder}", flush=True)
            if recipe.warmup_epochs >= recipe.epochs:
                warnings.warn(
                    f"the learning rate only climbs: {recipe.warmup_epochs} warm-up epochs of {recipe.epochs} in all;"
                    " shorten --warmup-epochs too",
                    stacklevel=1,
                )
        score = train(recipe, folder, context, how)
        if context.rank == 0:
            print(summary(folder, score))
            if options.figures:
                visualize.main(visualize.Options(str(folder), out=folder / "figures", data_dir=options.data_dir))
    finally:
        with ignoring_sigterm():
            if folder and context.rank == 0:
                let_go(folder, new=not options.resume)
            shutdown()


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


def common_folder(options: Options, context: DistributedContext) -> Path:
    """The run folder, chosen by the first process for all."""
    chosen: Path | str = ""
    if context.rank == 0:
        try:
            chosen = run_folder(options)
        except SpikformerError as error:
            chosen = str(error)
    chosen = context.broadcast(chosen)
    if isinstance(chosen, str):
        raise SpikformerError(chosen)
    return chosen


def run_folder(options: Options) -> Path:
    """Where the run goes, locked: never into a folder that holds another one, even if both are started at once.

    Raises:
        SpikformerError: a run is there and --resume was not given, nothing is there to resume, another process trains
            there, or it cannot be written.
    """
    folder = choose_folder(options)
    lock(folder)
    return folder


def choose_folder(options: Options) -> Path:
    """The folder of a new run, taken, or of the one to be resumed."""
    folder = options.out
    if options.resume:
        if folder is None:
            raise SpikformerError(f"no run of {options.model} in runs/ to resume: leave out --resume, or give --out")
        if not (folder / "config.json").exists():
            raise SpikformerError(f"no run at {folder} to resume: leave out --resume")
        if not (folder / "resume.pt").exists() and (folder / "best.safetensors").exists():
            raise SpikformerError(f"{folder} has weights but no resume.pt to go on from: give another --out")
        if has_config(folder):
            check_same_recipe(options, folder)
        return folder
    if folder is None:
        number = 1
        while (folder := Path("runs") / f"{options.model}-{number}").exists() or not take(folder):
            number += 1
        return folder
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


def defaults(arguments: list[str]) -> Options:
    """What the options on a command line change: the recipe of the data set, or with --resume that of the run.

    Raises:
        SpikformerError: two data sets are given, no such data set or model, or the run's config.json is broken.
    """

    def given(option: str) -> list[str]:
        pairs = zip(arguments, [*arguments[1:], ""], strict=True)
        return [b if a == option else a.partition("=")[2] for a, b in pairs if a.partition("=")[0] == option]

    datasets = given("--dataset")
    if len(set(datasets)) > 1:
        raise SpikformerError(f"--dataset is given as {' and as '.join(datasets)}: give one")
    usual = Options(**vars(recipe_for((datasets or [""])[0] or "digits")))
    if [a for a in arguments if a in ("--resume", "--no-resume")][-1:] != ["--resume"]:
        return usual
    if out := given("--out"):
        folder = expand(out[-1])
    else:
        model = (given("--model") or [usual.model])[-1]
        runs = [path for path in Path("runs").glob("*/config.json") if path.parent.name.rpartition("-")[0] == model]
        folder = max(runs, key=lambda path: path.stat().st_mtime).parent if runs else None
    if folder is None or not has_config(folder):
        return usual
    return Options(**vars(read_config(folder)[0]), out=folder)


if __name__ == "__main__":
    cli.run(main, "python -m spikformer_edu.train", default=lambda: defaults(sys.argv[1:]))
