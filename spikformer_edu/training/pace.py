"""How long a training step takes as it will run, and how many epochs fit into a time."""

import gc
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ..data import Splits
from ..data.workers import readers
from ..errors import SpikformerError
from .distributed import DistributedContext
from .loop import Progress, RunOptions, Trainer
from .memory import enough_memory
from .recipe import Recipe
from .signals import Asked, Stopping

WARM_UP, TIMED = 8, 40  # steps: the first compile kernels, watch firing rates and capture the CUDA graph


class _Trial(Trainer):
    """A run that stops after some steps and keeps nothing."""

    enough = WARM_UP

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        super().step(inputs, targets)
        self.stop.asked = self.progress.batch >= self.enough

    def save(self, progress: Progress) -> None:
        pass

    def go(self, steps: int) -> Progress:
        """Train for some steps, at most an epoch."""
        self.enough, self.stop.asked, self.progress = min(steps, self.steps), False, Progress()
        try:
            self.epoch()
        except Asked:
            pass
        return self.progress


def step_seconds(
    recipe: Recipe, context: DistributedContext, splits: Splits, options: RunOptions, steps: int = TIMED
) -> float:
    """Time of a training step of a run: real batches with their augmentation, compiled or as a CUDA graph as asked for.

    The network that is trained for it is thrown away. Several processes must call this together.

    Args:
        recipe: the recipe of the run.
        context: device and processes of the run.
        splits: its samples.
        options: how the run is computed.
        steps: number of steps to take the mean of, after some that are not counted; at most an epoch.

    Returns:
        Seconds, the mean over the steps.
    """
    recipe, options = replace(recipe, init_from=None), replace(options, tensorboard=False)
    remedy = "try --activation-checkpointing, or a larger --grad-accum-steps"
    with TemporaryDirectory() as folder, enough_memory(remedy), readers():
        trial = _Trial(recipe, Path(folder), context, splits.to(context.device), options, Stopping())
        with closing(trial.reader):
            trial.go(WARM_UP)
            progress = trial.go(steps)
    del trial
    gc.collect()
    if context.device.type == "cuda":
        torch.cuda.empty_cache()  # for the run itself
    return progress.seconds / progress.batch


def epochs_in(minutes: float, recipe: Recipe, context: DistributedContext, splits: Splits, options: RunOptions) -> int:
    """The number of epochs, without those of the cooldown, whose steps take so many minutes, from steps measured here.

    Args:
        minutes: time for the steps of the whole run; validation and files come on top.
        recipe: the recipe of the run; its own number of epochs plays no part.
        context: device and processes of the run, which must all call this.
        splits: its samples.
        options: how the run is computed.

    Returns:
        The number that the first process found, in every process.

    Raises:
        SpikformerError: not one epoch fits (the line says how long one takes), or memory runs out.
    """
    steps = max(1, len(splits.train) // recipe.batch_size)
    epoch = steps * step_seconds(recipe, context, splits, options)
    epochs = context.broadcast(int(60 * minutes / epoch) - recipe.cooldown_epochs)
    if epochs < 1:
        least = 1.1 * (1 + recipe.cooldown_epochs) * epoch / 60
        raise SpikformerError(f"minutes={minutes:.2g}: an epoch takes {epoch / 60:.2g} here, give at least {least:.2g}")
    return epochs
