"""The training loop: a recipe in, a run folder out."""

import copy
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from ..data import Split, Splits, batches, load, mix
from ..data.base import generator_for
from ..errors import SpikformerError
from ..model import Spikformer
from ..record import Rates, evaluating, firing_warning
from .checkpoint import (
    describe,
    load_weights,
    read_config,
    start_from,
    write_csv,
    write_file,
    write_json,
    write_weights,
)
from .distributed import Place, SyncBatchNorm, lost_peers, sync_batch_norm
from .recipe import PRECISIONS, Recipe, check_recipe, learning_rate


@dataclass(frozen=True)
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
    loss: float = 0.0  # of this process, summed over its samples of the epoch under way
    correct: int = 0
    seen: int = 0
    best_epoch: int = 0
    best_val_loss: float = math.inf
    rows: list[dict[str, Any]] = field(default_factory=list)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for a forward pass; nothing changes at fp32."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def load_splits(recipe: Recipe, data_dir: Path | None = None) -> Splits:
    """The samples that a recipe trains, validates and tests on: those of ``--toy`` and of the split it names.

    Raises:
        SpikformerError: the data are absent or do not fit the recipe.
    """
    return load(
        recipe.dataset,
        data_dir=data_dir,
        time_steps=recipe.network.time_steps,
        augment=recipe.augment,
        toy=recipe.toy,
        val_fraction=recipe.val_fraction,
        split_seed=recipe.split_seed,
    )


@torch.no_grad()
def evaluate(model: Spikformer, split: Split, place: Place, batch_size: int = 100, precision: str = "fp32") -> Score:
    """Loss (cross-entropy, no smoothing) and accuracy of a model, in evaluation mode, on all of a split.

    Several processes share the work; each gets the whole score.
    """
    loss, correct = 0.0, 0
    with evaluating(model):
        for inputs, targets in batches(split, batch_size, rank=place.rank, world=place.world):
            targets = targets.to(place.device)
            with autocast(place.device, precision):
                logits = model(inputs.to(place.device))
            loss += F.cross_entropy(logits.float(), targets, reduction="sum").item()
            correct += int((logits.argmax(1) == targets).sum())
    loss, correct = place.total(loss, correct)
    return Score(loss / len(split), int(correct), len(split))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases, norms and single numbers."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def recompute_blocks(model: Spikformer) -> None:
    """Let every encoder block keep only its input, and compute itself again in the backward pass."""
    for block in model.blocks:
        contexts = partial(_first_and_second_time, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _first_and_second_time(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _statistics_as_they_are(block)


@contextmanager
def _statistics_as_they_are(block: nn.Module) -> Iterator[None]:
    """The second time, norms must not move their running statistics again."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm1d | SyncBatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Say in one line that memory ran out, on whatever device, and what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = ("out of memory", "allocate memory")  # a GPU and a CPU
        if isinstance(error, MemoryError) or any(words in str(error) for words in said):
            raise SpikformerError(f"out of memory: {advice}") from None
        raise


def open_tensorboard(folder: Path):
    """A writer of TensorBoard's files.

    Raises:
        SpikformerError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SpikformerError("--tensorboard needs TensorBoard: pip install tensorboard, or leave it out") from None
    return SummaryWriter(folder / "tensorboard")


def peak_memory(device: torch.device) -> float:
    """Most bytes held so far: by tensors on a GPU, else by this process; nan where it cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Norm of the gradient that the last step left behind, by part: a stage of the SPS, half a block, the head."""
    squares: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        part = ".".join(name.split(".")[: {"sps": 2, "blocks": 3}.get(name.split(".")[0], 1)])
        if p.grad is not None:
            squares[part] = squares.get(part, 0) + p.grad.float().square().sum()
    return {part: float(square.sqrt()) for part, square in squares.items()}


@torch.no_grad()
def decay_towards(average: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of a running mean of weights and statistics."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)  # counters


@contextmanager
def stop_on_sigterm() -> Iterator[list[bool]]:
    """A list that is no longer empty once the process was asked to end, so that the run can be saved first."""
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


@dataclass(frozen=True)
class RunOptions:
    """What changes how a run is computed and kept, but not what its recipe is."""

    data_dir: Path | None = None
    """Where data sets are; else $SPIKFORMER_DATA, else ./data."""
    workers: int = 0
    """Processes that read data, for each that computes; 0: the same one. Never changes the result."""
    compile: bool = False
    """Compile the network with torch.compile: slow to start, then faster on a GPU."""
    recompute: bool = False
    """Save memory: keep only the input of each block, and compute the block again in the backward pass."""
    keep: int = 0
    """Keep the weights of that many last epochs too, as epoch-NNN.safetensors."""
    tensorboard: bool = False
    """Write the log for TensorBoard as well."""

    def __post_init__(self):
        for name in ("workers", "keep"):
            if getattr(self, name) < 0:
                raise SpikformerError(f"{name}={getattr(self, name)}: give 0 or more")


def train(recipe: Recipe, folder: Path, place: Place, options: RunOptions | None = None) -> Score:
    """Train a network, or go on with a run that was interrupted, and measure the test set once at the end.

    Args:
        recipe: everything that shapes the weights.
        folder: the run; if it holds an interrupted run of this recipe, that one goes on to the same end.
        place: where to compute; of several processes each calls this.
        options: how to compute and what to keep.

    Returns:
        The score on the test set, of the weights in ``best.safetensors``.

    Raises:
        SpikformerError: a setting would do nothing, the data are absent, the folder cannot be written or holds another
            run, the batch does not divide among processes and parts, memory runs out, or the loss is not finite (the
            line says at which step, and which checkpoint is good).
    """
    options = options or RunOptions()
    check_recipe(recipe)
    splits = load_splits(recipe, options.data_dir)
    remedy = "" if options.recompute else "--recompute, or "
    try:
        with enough_memory(f"try {remedy}in another --out a larger --accumulate"):
            return Trainer(recipe, folder, place, splits.to(place.device), options).run()
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise SpikformerError(
                "a process that reads data was killed, perhaps for memory: lower --workers,"
                f" and go on with --out {folder} --resume"
            ) from None
        if place.world > 1 and lost_peers(error):
            raise SpikformerError(f"process {place.rank} lost the others: the reason is in their output") from None
        raise


class Trainer:
    """A run under way: the network, its optimizer, and where it stands."""

    def __init__(self, recipe: Recipe, folder: Path, place: Place, splits: Splits, options: RunOptions):
        self.recipe, self.folder, self.place, self.splits, self.options = recipe, folder, place, splits, options
        parts = place.world * recipe.accumulate
        if recipe.batch_size % parts:
            raise SpikformerError(
                f"batch_size={recipe.batch_size} does not divide among {place.world} processes"
                f" x {recipe.accumulate} parts: give a multiple of {parts}"
            )
        if len(splits.train) < place.world:
            raise SpikformerError(
                f"{len(splits.train)} training samples for {place.world} processes: start fewer, or use more samples"
            )
        torch.manual_seed(recipe.seed)
        self.network = recipe.network_for(splits.info)
        self.model = Spikformer(self.network).to(place.device, torch.float32)  # whatever PyTorch's default is
        if recipe.weights and not (folder / "resume.pt").exists():
            start_from(self.model, recipe.weights)
        if recipe.sync_bn and place.world > 1:
            sync_batch_norm(self.model)
        self.average = copy.deepcopy(self.model).eval() if recipe.ema_decay else None
        groups = parameter_groups(self.model, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.warmup_lr, fused=True)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=recipe.precision == "fp16")
        if options.recompute:
            recompute_blocks(self.model)
        self.parallel = DistributedDataParallel(self.model) if place.world > 1 else self.model
        self.compiled = torch.compile(self.parallel) if options.compile else self.parallel
        self.board = None
        if options.tensorboard and place.rank == 0:
            self.board = open_tensorboard(folder)
        self.progress, self.rates = Progress(), Rates(self.model)
        self.steps = max(1, len(splits.train) // recipe.batch_size)  # an epoch

    @property
    def measured(self) -> Spikformer:
        """The network that is measured and kept: the running mean of the weights where there is one."""
        return self.average or self.model

    def run(self) -> Score:
        """Train to the end, from wherever the folder stands, and measure the test set."""
        if (self.folder / "resume.pt").exists():
            self.resume()
        elif self.place.rank == 0:
            write_json(self.folder / "config.json", describe(self.recipe, self.network, self.place))
        with stop_on_sigterm() as asked_to_stop:
            while self.progress.epoch < self.recipe.epochs + self.recipe.cooldown_epochs:
                self.epoch(asked_to_stop)
        self.place.wait()
        load_weights(self.model, self.folder / "best.safetensors")
        score = evaluate(self.model, self.splits.test, self.place, precision=self.recipe.precision)
        best = self.progress.rows[self.progress.best_epoch - 1]
        result = {"split": "test", "accuracy": score.accuracy, **asdict(score)}
        result |= {"best_epoch": best["epoch"], "val_accuracy": best.get("val_accuracy"), "epochs": self.progress.epoch}
        if self.place.rank == 0:
            write_json(self.folder / "results.json", result)
        return score

    def epoch(self, asked_to_stop: list[bool]) -> None:
        """What is left of an epoch, then its row in the log and a checkpoint.

        Raises:
            SpikformerError: asked to stop; a checkpoint was written first.
        """
        recipe, progress, place = self.recipe, self.progress, self.place
        self.model.train()
        loader = batches(
            self.splits.train,
            recipe.batch_size // place.world,
            train=True,
            seed=recipe.seed,
            epoch=progress.epoch,
            rank=place.rank,
            world=place.world,
            start=progress.batch,
            workers=self.options.workers,
        )
        title, hidden = f"epoch {progress.epoch + 1}", True if place.rank else None  # None: shown on a terminal only
        started, seen, stop = time.perf_counter(), progress.seen, False
        with tqdm(loader, title, self.steps, initial=progress.batch, leave=False, disable=hidden) as bar:
            for inputs, targets in bar:
                self.step(inputs.to(place.device), targets.to(place.device))
                bar.set_postfix(loss=f"{progress.loss / progress.seen:.3f}")
                stop = place.any(bool(asked_to_stop))
                if stop:
                    break
        if progress.batch == self.steps:  # the row tells of gradients that no checkpoint holds: write it before
            self.finish_epoch(time.perf_counter() - started, progress.seen - seen)
        self.save()
        if stop:
            raise SpikformerError(f"asked to stop: the run is saved, go on with --out {self.folder} --resume")

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One optimizer step on a batch."""
        recipe, progress = self.recipe, self.progress
        lr = learning_rate(recipe, progress.epoch + progress.batch / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        labels = targets
        if recipe.mixes(progress.epoch):
            random = generator_for(recipe.seed, progress.epoch, progress.batch, self.place.rank)
            a = recipe.augment
            mixing = dict(mixup=a.mixup, cutmix=a.cutmix, generator=random, probability=a.mix_probability)
            inputs, targets = mix(inputs, targets, self.network.num_classes, **mixing)
            labels = targets.argmax(1)  # of two mixed labels the one with the larger share counts
        watched = self.rates.step()
        network = self.parallel if watched else self.compiled  # compiled code sees no hooks
        self.optimizer.zero_grad(set_to_none=True)
        together = min(recipe.batch_size, len(self.splits.train))  # samples in all processes, whose shares may differ
        number_of_parts = min(recipe.accumulate, together // self.place.world)  # the same in each of them
        parts = zip(*(x.tensor_split(number_of_parts, dim) for x, dim in ((inputs, -4), (targets, 0))), strict=True)
        outputs, loss = [], 0.0
        for number, (x, y) in enumerate(parts, 1):
            last = number == number_of_parts  # gradients are summed over the processes only once
            with nullcontext() if last or self.place.world == 1 else self.parallel.no_sync():
                with autocast(self.place.device, recipe.precision):
                    logits = network(x)
                part = F.cross_entropy(logits.float(), y, label_smoothing=recipe.label_smoothing)
                # Every sample counts alike, whatever its part and process; over the processes gradients are averaged.
                self.scaler.scale(part * (len(y) * self.place.world / together)).backward()
            loss += part.item() * len(y) / len(targets)
            outputs.append(logits.detach())
        if not math.isfinite(loss):
            good = self.folder / "resume.pt" if (self.folder / "resume.pt").exists() else "none yet"
            where = f"epoch {progress.epoch + 1}, step {progress.batch + 1}, learning rate {lr:.2g}"
            raise SpikformerError(
                f"loss is {loss} in {where}: lower --lr or raise --warmup-epochs; last good checkpoint: {good}"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            decay_towards(self.average, self.model, recipe.ema_decay)
        progress.batch += 1
        progress.seen += len(labels)
        progress.loss += loss * len(labels)
        progress.correct += int((torch.cat(outputs).argmax(1) == labels).sum())

    def finish_epoch(self, seconds: float, images: int) -> None:
        """Validate, keep the weights, write the epoch's row, and turn the page."""
        progress, place, val = self.progress, self.place, self.splits.val
        loss, correct, seen, images = place.total(progress.loss, progress.correct, progress.seen, images)
        row = {"epoch": progress.epoch + 1, "loss": loss / seen, "accuracy": correct / seen}
        place.align(self.measured)  # what is measured is what is kept; DDP does the same before every step
        self.rates.close()  # what is measured below is no training step
        if val is not None:
            score = evaluate(self.measured, val, place, precision=self.recipe.precision)
            row |= {"val_loss": score.loss, "val_accuracy": score.accuracy}
        rates = self.rates.pop(place.mean)
        row |= {
            "rate": sum(rate for rate, _ in rates.values()) / len(rates),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": images / seconds,
            "seconds": seconds,
            "peak_memory_gib": peak_memory(place.device) / 2**30,
        }
        row |= {f"grad/{part}": norm for part, norm in gradient_norms(self.model).items()}
        row |= {f"rate/{layer}": rate for layer, (rate, _) in rates.items()}
        row |= {f"dead/{layer}": dead for layer, (_, dead) in rates.items()}
        progress.epoch, progress.batch, progress.loss, progress.correct, progress.seen = row["epoch"], 0, 0.0, 0, 0
        progress.rows.append(row)
        best = val is None or row["val_loss"] < progress.best_val_loss
        if best:
            progress.best_epoch, progress.best_val_loss = progress.epoch, row.get("val_loss", math.inf)
        if place.rank:
            return
        if best:
            write_weights(self.folder / "best.safetensors", self.measured.state_dict())
        write_weights(self.folder / "last.safetensors", self.measured.state_dict())
        if self.options.keep:
            write_weights(self.folder / f"epoch-{progress.epoch:03}.safetensors", self.measured.state_dict())
            kept = self.folder.glob("epoch-*.safetensors")
            for old in sorted(kept, key=lambda file: (len(file.name), file.name))[: -self.options.keep]:
                old.unlink()  # 999 comes before 1000
        write_csv(self.folder / "metrics.csv", progress.rows)
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(name, value, progress.epoch)
            self.board.flush()
        shown = ("loss", "accuracy", "val_loss", "val_accuracy", "rate")
        figures = "  ".join(f"{name} {row[name]:.4f}" for name in shown if name in row)
        print(f"epoch {progress.epoch:>3}  {figures}  {row['images_per_s']:.0f} images/s", flush=True)
        if warning := firing_warning(rates):
            print(f"warning: {warning}", file=sys.stderr)

    def save(self) -> None:
        """Write all that is needed to go on from here; other processes stand where the first one does."""
        loss, correct, seen = self.place.total(self.progress.loss, self.progress.correct, self.progress.seen)
        if self.place.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "average": self.average and self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rates": self.rates.state(),
            "progress": asdict(replace(self.progress, loss=loss, correct=int(correct), seen=int(seen))),
        }
        write_file(self.folder / "resume.pt", lambda file: torch.save(state, file))

    def resume(self) -> None:
        """Stand where the run in the folder was interrupted.

        Raises:
            SpikformerError: the run has another recipe (the line names the field), or its file is broken.
        """
        theirs = asdict(read_config(self.folder)[0])
        for name, value in asdict(self.recipe).items():
            if theirs[name] != value:
                other = f"{name}={theirs[name]!r}, not {value!r}"
                raise SpikformerError(f"{self.folder} holds a run with {other}: give the same, or another --out")
        path = self.folder / "resume.pt"
        try:
            state = torch.load(path, map_location=self.place.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.rates.load(state["rates"])
            self.progress = Progress(**state["progress"])
        except Exception as error:  # whatever torch says of a damaged file
            reason = str(error).splitlines()[0]
            raise SpikformerError(f"{path} is broken ({reason}): start again in another --out") from None
        if self.place.rank:  # the first process goes on counting for all
            self.progress.loss, self.progress.correct, self.progress.seen = 0.0, 0, 0
