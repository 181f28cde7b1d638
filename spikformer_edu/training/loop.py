"""The training loop: a run folder in, a better run folder out."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data import Split, Splits, batches, load, mix
from ..data.base import generator_for
from ..errors import SpikformerError
from ..model import Spikformer
from ..record import Rates, firing_warning
from .checkpoint import describe, load_weights, read_config, write_atomically, write_csv, write_json, write_weights
from .recipe import Recipe, learning_rate


@dataclass
class Score:
    """Mean loss and number of correct answers over ``total`` samples."""

    loss: float
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of correct answers, in [0, 1]."""
        return self.correct / self.total


@dataclass
class Progress:
    """Where a run stands; together with weights and optimizer, all that is needed to go on."""

    epoch: int = 0  # complete epochs
    batch: int = 0  # batches done in the epoch under way
    loss: float = 0.0  # summed over the samples of the epoch under way
    correct: int = 0
    seen: int = 0
    best_epoch: int = 0
    best_val_loss: float = math.inf
    rows: list[dict[str, Any]] = field(default_factory=list)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def evaluate(
    model: Spikformer, split: Split, device: torch.device, batch_size: int = 100, precision: str = "fp32"
) -> Score:
    """Loss (cross-entropy, no smoothing) and accuracy of a model, in evaluation mode, on all of a split."""
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    for inputs, targets in batches(split, batch_size):
        targets = targets.to(device)
        with autocast(device, precision):
            logits = model(inputs.to(device))
        loss += F.cross_entropy(logits.float(), targets, reduction="sum").item()
        correct += int((logits.argmax(1) == targets).sum())
    model.train(was_training)
    return Score(loss / len(split), correct, len(split))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases, norms and single numbers."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


@contextmanager
def stop_on_sigterm() -> Iterator[list[bool]]:
    """A flag that turns true when the process is asked to end, so that the run can be saved first."""
    asked: list[bool] = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    except ValueError:  # not the main thread: nobody can be asked here
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, previous)


def train(recipe: Recipe, folder: Path, device: torch.device, data_dir: str | None = None, workers: int = 0) -> Score:
    """Train a network, or go on with a run that was interrupted, and measure the test set once at the end.

    Args:
        recipe: everything that shapes the weights.
        folder: the run; if it holds an interrupted run of this recipe, that one goes on to the same end.
        device: where to compute. data_dir: where data sets are looked for. workers: processes that read data.

    Returns:
        The score on the test set, of the weights in ``best.safetensors``.

    Raises:
        SpikformerError: the data are absent, the folder cannot be written or holds another run, or the loss is not
            finite (the line says at which step, and which checkpoint is good).
    """
    splits = load(
        recipe.dataset,
        data_dir=data_dir,
        time_steps=recipe.network.time_steps,
        augment=recipe.augment,
        toy=recipe.toy,
        val_fraction=recipe.val_fraction,
        split_seed=recipe.split_seed,
    )
    return Trainer(recipe, folder, device, splits.to(device), workers).run()


class Trainer:
    """A run under way: the network, its optimizer, and where it stands."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device, splits: Splits, workers: int):
        self.recipe, self.folder, self.device, self.splits, self.workers = recipe, folder, device, splits, workers
        torch.manual_seed(recipe.seed)
        self.network = replace(recipe.network, num_classes=splits.info.num_classes)
        self.model = Spikformer(self.network).to(device)
        groups = parameter_groups(self.model, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.warmup_lr)
        self.progress, self.rates = Progress(), Rates(self.model)
        self.steps = max(1, len(splits.train) // recipe.batch_size)  # an epoch

    def run(self) -> Score:
        """Train to the end, from wherever the folder stands, and measure the test set."""
        if (self.folder / "resume.pt").exists():
            self.resume()
        else:
            write_json(self.folder / "config.json", describe(self.recipe, self.network, self.device))
        with stop_on_sigterm() as asked_to_stop:
            while self.progress.epoch < self.recipe.epochs + self.recipe.cooldown_epochs:
                self.epoch(asked_to_stop)
        load_weights(self.model, self.folder / "best.safetensors")
        score = evaluate(self.model, self.splits.test, self.device, precision=self.recipe.precision)
        best = self.progress.rows[self.progress.best_epoch - 1]
        result = {"split": "test", "accuracy": score.accuracy, **asdict(score)}
        result |= {"best_epoch": best["epoch"], "val_accuracy": best.get("val_accuracy"), "epochs": self.progress.epoch}
        write_json(self.folder / "results.json", result)
        return score

    def epoch(self, asked_to_stop: list[bool]) -> None:
        """What is left of an epoch, then its row in the log and a checkpoint."""
        recipe, progress = self.recipe, self.progress
        self.model.train()
        loader = batches(
            self.splits.train,
            recipe.batch_size,
            train=True,
            seed=recipe.seed,
            epoch=progress.epoch,
            start=progress.batch,
            workers=self.workers,
        )
        title = f"epoch {progress.epoch + 1}"
        started, seen = time.perf_counter(), progress.seen
        with tqdm(loader, title, self.steps, initial=progress.batch, leave=False, disable=None) as bar:
            for inputs, targets in bar:
                self.step(inputs.to(self.device), targets.to(self.device))
                bar.set_postfix(loss=f"{progress.loss / progress.seen:.3f}")
                if asked_to_stop:
                    self.save()
                    raise SpikformerError(f"asked to stop: the run is saved, go on with --out {self.folder} --resume")
        self.finish_epoch(time.perf_counter() - started, progress.seen - seen)
        self.save()

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One optimizer step on a batch."""
        recipe, progress = self.recipe, self.progress
        lr = learning_rate(recipe, progress.epoch + progress.batch / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        labels = targets
        if recipe.mixes(progress.epoch):
            random = generator_for(recipe.seed, progress.epoch, progress.batch, 1)
            a = recipe.augment
            mixing = dict(mixup=a.mixup, cutmix=a.cutmix, generator=random, probability=a.mix_probability)
            inputs, targets = mix(inputs, targets, self.network.num_classes, **mixing)
            labels = targets.argmax(1)  # of two mixed labels the one with the larger share counts
        self.rates.step()
        with autocast(self.device, recipe.precision):
            logits = self.model(inputs)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        value = loss.item()
        if not math.isfinite(value):
            good = self.folder / "resume.pt" if (self.folder / "resume.pt").exists() else "none yet"
            where = f"epoch {progress.epoch + 1}, step {progress.batch + 1}, learning rate {lr:.2g}"
            raise SpikformerError(
                f"loss is {value} in {where}: lower --lr or raise --warmup-epochs; last good checkpoint: {good}"
            )
        self.optimizer.step()
        progress.batch += 1
        progress.seen += len(labels)
        progress.loss += value * len(labels)
        progress.correct += int((logits.argmax(1) == labels).sum())

    def finish_epoch(self, seconds: float, images: int) -> None:
        """Validate, keep the weights, write the epoch's row, and turn the page."""
        progress, val = self.progress, self.splits.val
        row = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss / progress.seen,
            "accuracy": progress.correct / progress.seen,
        }
        if val is not None:
            score = evaluate(self.model, val, self.device, precision=self.recipe.precision)
            row |= {"val_loss": score.loss, "val_accuracy": score.accuracy}
        rates = self.rates.pop()
        row |= {
            "rate": sum(rate for rate, _ in rates.values()) / len(rates),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": images / seconds,
            "seconds": seconds,
        }
        row |= {f"rate/{layer}": rate for layer, (rate, _) in rates.items()}
        row |= {f"dead/{layer}": dead for layer, (_, dead) in rates.items()}
        progress.epoch, progress.batch, progress.loss, progress.correct, progress.seen = row["epoch"], 0, 0.0, 0, 0
        progress.rows.append(row)
        if val is None or row["val_loss"] < progress.best_val_loss:
            progress.best_epoch, progress.best_val_loss = progress.epoch, row.get("val_loss", math.inf)
            write_weights(self.folder / "best.safetensors", self.model.state_dict())
        write_weights(self.folder / "last.safetensors", self.model.state_dict())
        write_csv(self.folder / "metrics.csv", progress.rows)
        shown = ("loss", "accuracy", "val_loss", "val_accuracy", "rate")
        figures = "  ".join(f"{name} {row[name]:.4f}" for name in shown if name in row)
        print(f"epoch {progress.epoch:>3}  {figures}  {row['images_per_s']:.0f} images/s")
        if warning := firing_warning(rates):
            print(f"warning: {warning}", file=sys.stderr)

    def save(self) -> None:
        """Write all that is needed to go on from here."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "rates": self.rates.state(),
        }
        write_atomically(self.folder / "resume.pt", lambda file: torch.save(state, file))

    def resume(self) -> None:
        """Stand where the run in the folder was interrupted.

        Raises:
            SpikformerError: the run has another recipe (the line names the field), or its file is broken.
        """
        theirs, _ = read_config(self.folder)
        for name, value in asdict(self.recipe).items():
            if (found := asdict(theirs)[name]) != value:
                other = f"{name}={found!r}, not {value!r}"
                raise SpikformerError(f"{self.folder} holds a run with {other}: give the same, or another --out")
        path = self.folder / "resume.pt"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
            self.rates.load(state["rates"])
        except Exception as error:  # whatever torch says of a damaged file
            reason = str(error).splitlines()[0]
            raise SpikformerError(f"{path} is broken ({reason}): start again in another --out") from None
