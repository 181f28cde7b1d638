"""``python -m spikformer_edu.train``: train a network and write a run folder."""

import sys
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path

from . import cli, visualize
from .atomic import expand
from .data import local_info
from .errors import SpikformerError
from .training import Recipe, RunOptions, init_distributed, load_splits, recipe_for, shutdown, train
from .training.checkpoint import read_config
from .training.memory import keep_freed_memory
from .training.pace import epochs_in
from .training.plan import describe_plan, plan
from .training.run_folder import (
    check_figures,
    choose_folder,
    common_folder,
    has_config,
    let_go,
    settle,
    summary,
)
from .training.signals import ignoring_sigterm


@dataclass(frozen=True)
class Options(RunOptions, Recipe):
    recipe: str = "paper"
    """Recipe of the defaults: paper, the data set's; fast-t1, then fast-t4 with --init-from, for a GPU and cifar10."""
    minutes: float | None = None
    """Train as many epochs as fit into so many minutes, validation not counted; a resumed run keeps its epochs."""
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
    keep_freed_memory()
    recipe = Recipe(**{f.name: getattr(options, f.name) for f in fields(Recipe)})
    how = RunOptions(**{f.name: getattr(options, f.name) for f in fields(RunOptions)})
    context = init_distributed(options.device)
    folder, splits = None, None
    try:
        if options.minutes is not None and not (options.resume and options.out and has_config(options.out)):
            splits = load_splits(recipe, options.data_dir)
            recipe = replace(recipe, epochs=epochs_in(options.minutes, recipe, context, splits, how))
        if options.dry_run:
            if options.resume:
                choose_folder(recipe, options.out, options.resume)
            if context.rank == 0:
                print(describe_plan(recipe, context, plan(recipe, context, how)))
            return
        folder = common_folder(recipe, options.out, options.resume, context)
        if options.figures:
            check_figures(folder / "figures")
        recipe = settle(recipe, folder, context.device)
        if context.rank == 0:
            data = local_info(recipe.dataset, options.data_dir).label
            where = f"on {context.device} in {recipe.precision}"
            print(f"{recipe.model} on {data}, {recipe.epochs} epochs {where}, into {folder}", flush=True)
            if recipe.warmup_epochs >= recipe.epochs:
                warnings.warn(
                    f"the learning rate only climbs: {recipe.warmup_epochs} warm-up epochs of {recipe.epochs} in all;"
                    " shorten --warmup-epochs too",
                    stacklevel=1,
                )
        score = train(recipe, folder, context, how, splits)
        if context.rank == 0:
            print(summary(folder, score))
            if options.figures and recipe.neuron == "ilif":
                print("no figures: they show spikes of 0 and 1, and neuron=ilif gives integers")
            elif options.figures:
                visualize.main(visualize.Options(str(folder), out=folder / "figures", data_dir=options.data_dir))
    finally:
        with ignoring_sigterm():
            if folder and context.rank == 0:
                let_go(folder, new=not options.resume)
            shutdown()


def defaults(arguments: list[str]) -> Options:
    """The defaults of a command line: the recipe of the data set, or with --resume that of the run.

    Args:
        arguments: the command line, without the name of the command.

    Raises:
        SpikformerError: two data sets are given, --epochs and --minutes are, no such data set, recipe or model, or the
            run's config.json is broken.
    """

    def given(option: str) -> list[str]:
        pairs = zip(arguments, [*arguments, ""][1:], strict=True)
        return [b if a == option else a.partition("=")[2] for a, b in pairs if a.partition("=")[0] == option]

    datasets = given("--dataset")
    if len(set(datasets)) > 1:
        raise SpikformerError(f"--dataset is given as {' and as '.join(datasets)}: give one")
    if given("--epochs") and given("--minutes"):
        raise SpikformerError("--minutes finds the number of epochs: leave out --epochs, or --minutes")
    name = (given("--recipe") or ["paper"])[-1]
    usual = Options(**vars(recipe_for((datasets or [""])[0] or "digits", name)), recipe=name)
    if [a for a in arguments if a in ("--resume", "--no-resume")][-1:] != ["--resume"]:
        return usual
    folder: Path | None
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
