"""Accuracy and loss, and the samples to measure them on."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from ..data import DatasetInfo, Split, Splits, batches, load
from ..data.files import data_folder
from ..data.loading import ahead
from ..eval_mode import evaluating
from ..model import Spikformer
from .checkpoint import Run
from .distributed import DistributedContext
from .recipe import PRECISIONS, Recipe


@dataclass(frozen=True)
class Score:
    """The result of an evaluation.

    Attributes:
        loss: mean cross-entropy over the samples.
        correct: number of correct answers.
        total: number of samples.
    """

    loss: float
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of correct answers, in [0, 1]."""
        return self.correct / self.total


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for a forward pass; fp32 changes nothing."""
    # Each weight is rounded once in a pass anyway. A CUDA graph must do it in every step, not find it done.
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32", cache_enabled=False)


def dtype_of_sums(device: torch.device) -> torch.dtype:
    """The dtype for sums over many samples: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def load_splits(recipe: Recipe, data_dir: Path | None = None) -> Splits:
    """The samples that a recipe trains, validates and tests on.

    Args:
        recipe: data set, time steps, augmentation and choice of samples.
        data_dir: folder to look in for data; None: ``$SPIKFORMER_DATA``, else ``./data``.

    Raises:
        SpikformerError: the data are absent or do not fit the recipe.
    """
    return load(
        recipe.dataset,
        data_dir=data_dir,
        time_steps=recipe.network.time_steps,
        image_size=recipe.image_size,
        frames=recipe.frames,
        sensor=recipe.sensor,
        augment=recipe.augment,
        samples_per_class=recipe.samples_per_class,
        val_fraction=recipe.val_fraction,
        split_seed=recipe.split_seed,
    )


def check_readable(*splits: Split | None) -> None:
    """Read a sample of each split, so that an error in the test set shows before the training and not after it.

    Args:
        splits: the splits; None is skipped.

    Raises:
        SpikformerError: a split is not there, or its first sample cannot be read.
    """
    for split in splits:
        if split is not None:
            split.fetch(torch.arange(1), None)


def splits_for(run: Run, dataset: str | None, data_dir: Path | None = None) -> Splits:
    """Load samples for a trained network, and bring its outputs into the order of their classes.

    Args:
        run: the trained network.
        dataset: name of another data set with the same classes; None: the samples of the run.
        data_dir: folder to look in for data; None: ``$SPIKFORMER_DATA``, else ``./data``.

    Raises:
        SpikformerError: the data are absent, or have other classes.
    """
    if dataset is None:
        splits = load_splits(run.recipe, data_dir)
    else:
        recipe = run.recipe
        splits = load(
            dataset,
            data_dir,
            time_steps=run.model.config.time_steps,
            image_size=recipe.image_size,
            frames=recipe.frames,
        )
    run.align(splits.info)
    return splits


def origin(run: Run, facts: DatasetInfo, own: bool, data_dir: Path | None = None) -> str:
    """The note on the data that belongs beside a measured number; empty for real samples of the run itself.

    Args:
        run: the trained network.
        facts: the facts about the data set that was measured on.
        own: whether these are samples of the run.
        data_dir: folder to look in for data; None: ``$SPIKFORMER_DATA``, else ``./data``.
    """
    if own and not (run.data.simulated or facts.simulated):
        return ""
    folder = str(data_folder(data_dir)).encode(errors="replace").decode()  # its bytes may be no UTF-8
    where = f" in {folder}" if facts.folder or facts.name in ("folder", "event-folder") else ""
    other = "" if own else ", not the data of this run"
    return f"trained on {run.data.history}, measured on {facts.label}{where}{other}"


@torch.no_grad()
def evaluate(
    model: Spikformer, split: Split, context: DistributedContext, batch_size: int = 100, precision: str = "fp32"
) -> Score:
    """Loss (cross-entropy without label smoothing) and accuracy of a network, in evaluation mode, on all of a split.

    Several processes share the work; each gets the whole score.

    Args:
        model: the network.
        split: the samples.
        context: device, and processes that share the work.
        batch_size: number of samples in a batch of one process.
        precision: fp32, or bf16 or fp16 for automatic mixed precision.
    """
    sums = torch.zeros(2, dtype=dtype_of_sums(context.device), device=context.device)  # read once, at the end
    with evaluating(model):
        read = batches(split, batch_size, rank=context.rank, world=context.world)
        for inputs, targets in ahead(read, context.device):
            with autocast(context.device, precision):
                logits = model(inputs)
            sums[0] += F.cross_entropy(logits.float(), targets, reduction="sum")
            sums[1] += (logits.argmax(1) == targets).sum()
    loss, correct = sums.tolist()
    total, right = context.all_reduce_sum(loss, correct)
    return Score(total / len(split), int(right), len(split))
