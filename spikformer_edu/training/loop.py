"""The training loop: a recipe in, a run folder out."""

import copy
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..atomic import expand, write_csv, write_file, write_json
from ..data import Splits, mixup_cutmix
from ..data.loading import Reader, ahead, generator_for
from ..data.workers import ReadersError, readers
from ..errors import SpikformerError, nearest
from ..kernels.linear import compute_as, convolution_is_faster
from ..model import Spikformer
from .checkpoint import describe, linear_as_convolution, load_weights, start_from, write_weights
from .cuda_graph import CaptureError, GraphedStep
from .data_record import describe_data
from .distributed import DistributedContext, lost_peers, sync_batch_norm
from .evaluation import Score, autocast, check_readable, dtype_of_sums, evaluate, load_splits
from .memory import checkpoint_blocks, enough_memory, peak_memory
from .monitor import Rates, firing_warning, gradient_norms, open_tensorboard
from .recipe import Recipe, check_recipe, learning_rate
from .run_folder import check_same_data, check_same_recipe, how_to_go_on, settle
from .signals import Asked, Stopping

# A GPU computes while Python goes on, and must not wait for it. So only every so many steps the losses are read (more
# often where several processes train: they then also ask each other whether one was told to stop, and torchrun gives
# them 30 seconds for it), and only on so many steps firing rates are counted. On a CPU a loss is there to be read.
READ_EVERY, READ_EVERY_TOGETHER, WATCH_EVERY = 50, 10, 400
CUDA_GRAPH = ("auto", "on", "off")
TET_SHARE, TET_TARGET = 1e-3, 1.0  # lambda and phi of TET, as its code has them for CIFAR10-DVS
OnEpoch = Callable[[list[dict[str, Any]]], None]


@dataclass
class Progress:
    """The position of a run; together with weights and optimizer it is all that is needed to go on."""

    epoch: int = 0  # complete epochs
    batch: int = 0  # batches done in the epoch under way
    loss: float = 0.0  # of this process, summed over its samples of the epoch under way
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0  # spent on the epoch under way
    gradients: dict[str, float] = field(default_factory=dict)  # what ``gradient_norms`` gave after its last step
    best_epoch: int = 0
    best_val_loss: float = math.inf
    rows: list[dict[str, Any]] = field(default_factory=list)


def tet_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Temporal efficient training: (1 - lambda) mean over t of CE(logits[t], targets) + lambda MSE(logits, phi).

    Every time step must give the answer by itself; the second term, with lambda = 0.001 and phi = 1, keeps the logits,
    which are the potentials of the output, near phi.

    Args:
        logits: those of every time step, ``[T, B, K]``.
        targets: labels ``[B]``, or shares of all classes ``[B, K]``.
        label_smoothing: probability mass taken from the label and spread over all classes.

    Source: S. Deng et al., ICLR 2022, arXiv 2202.11946, and its code.
    """
    steps = len(logits)
    repeated = targets.repeat(steps, *[1] * (targets.dim() - 1))
    each = F.cross_entropy(logits.flatten(0, 1), repeated, label_smoothing=label_smoothing)  # the mean over T and B
    return (1 - TET_SHARE) * each + TET_SHARE * (logits - TET_TARGET).square().mean()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases, norms and single numbers."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


@torch.no_grad()
def decay_towards(average: nn.Module, model: nn.Module, decay: float) -> None:
    """One step of a running mean of weights and statistics."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)  # counters


@dataclass(frozen=True)
class RunOptions:
    """Options that change how a run is computed and kept, but not its recipe."""

    data_dir: Path | None = None
    """Where data sets are; else $SPIKFORMER_DATA, else ./data."""
    workers: int = 0
    """Number of processes that read data, for each one that computes; 0: it reads itself. Never changes the result."""
    compile: bool = False
    """Compile the network with torch.compile: slow to start, then faster on a GPU."""
    cuda_graph: str = "auto"
    """Record a training step once and start it as a whole: auto (where a GPU can), on (or say why not), off."""
    activation_checkpointing: bool = False
    """Save memory: keep only the input of each block, and compute the block again in the backward pass."""
    checkpoint_every: int = 1
    """Write weights, log and what --resume needs after every so many epochs, and whenever the run ends or stops."""
    keep: int = 0
    """Also keep the weights of this many last epochs that were written, as epoch-NNN.safetensors."""
    tensorboard: bool = False
    """Write the log for TensorBoard as well."""

    def __post_init__(self) -> None:
        for name in ("workers", "keep"):
            if getattr(self, name) < 0:
                raise SpikformerError(f"{name}={getattr(self, name)}: give 0 or more")
        if self.checkpoint_every < 1:
            raise SpikformerError(f"checkpoint_every={self.checkpoint_every}: give at least 1")
        if self.cuda_graph not in CUDA_GRAPH:
            raise SpikformerError(f"unknown cuda_graph {self.cuda_graph!r}: {nearest(self.cuda_graph, CUDA_GRAPH)}")


def why_no_graph(recipe: Recipe, context: DistributedContext, options: RunOptions) -> str | None:
    """Why a training step is not a CUDA graph; None if it is one.

    Args:
        recipe: the recipe of the run, with its precision settled.
        context: device and processes of the run.
        options: how the run is computed.

    Raises:
        SpikformerError: it was asked for, and cannot be.
    """
    if options.cuda_graph == "off":
        return "--cuda-graph off"
    if context.device.type != "cuda":
        reason = f"the device is {context.device.type}, no CUDA GPU"
    elif torch.cuda.get_device_capability(context.device) < (7, 0):
        reason = "the GPU is older than compute capability 7.0"
    elif context.world > 1:
        reason = f"{context.world} processes train together"
    elif recipe.precision == "fp16":
        reason = "with fp16 the scale of the loss changes from step to step"
    elif options.compile:
        reason = "--compile starts its kernels itself"
    elif options.activation_checkpointing:
        reason = "--activation-checkpointing looks at random states in a step"
    else:
        return None
    if options.cuda_graph == "on":
        raise SpikformerError(f"--cuda-graph on: {reason}; leave it out")
    return reason


def train(
    recipe: Recipe,
    folder: Path,
    context: DistributedContext,
    options: RunOptions | None = None,
    splits: Splits | None = None,
    on_epoch: OnEpoch | None = None,
) -> Score:
    """Train a network, or go on with a run that was interrupted, and measure the test set once at the end.

    Args:
        recipe: everything that determines the weights.
        folder: the run folder; an interrupted run of this recipe in it is continued and ends with the same weights.
        context: where to compute; if there are several processes, each calls this function.
        options: how to compute and what to keep; None: the defaults.
        splits: the samples, from ``load_splits``; None: they are loaded.
        on_epoch: function that gets the rows of the log, one an epoch, each time an epoch has ended (a notebook draws
            them); process 0 alone calls it. None: nothing is called.

    Returns:
        The score on the test set, of the weights in ``best.safetensors``.

    Raises:
        SpikformerError: a setting would do nothing, the data are absent, the folder cannot be written or holds another
            run, the batch does not divide among processes and parts, there can be no CUDA graph and one is asked for,
            memory runs out, or the loss is not finite (the line names the step and the last good checkpoint).
    """
    options, folder = options or RunOptions(), expand(folder)
    check_recipe(recipe)
    recipe = settle(recipe, folder, context.device)
    remedy = "" if options.activation_checkpointing else "--activation-checkpointing, or "
    if why_no_graph(recipe, context, options) is None:
        remedy = f"--cuda-graph off, or {remedy}"
    with Stopping() as stop:
        try:
            with stop.at_once():
                splits = splits or load_splits(recipe, options.data_dir)
                check_readable(splits.train, splits.val, splits.test)
            with enough_memory(f"try {remedy}in another --out a larger --grad-accum-steps"), readers():
                with stop.at_once():
                    trainer = Trainer(recipe, folder, context, splits.to(context.device), options, stop, on_epoch)
                with closing(trainer.reader):
                    return trainer.run()
        except Asked:
            saved = "the run is saved" if (folder / "resume.pt").exists() else "nothing was trained yet"
            raise SpikformerError(f"asked to stop: {saved}, {how_to_go_on(folder, options.data_dir)}") from None
        except ReadersError as error:
            said = "asked to stop: the processes that read data ended first" if stop.asked else error
            raise SpikformerError(f"{said}, and {how_to_go_on(folder, options.data_dir)}") from None
        except Exception as error:
            if options.compile and does_not_compile(error):
                reason = " ".join(str(error).partition("\n\n")[0].split())[:200]  # the rest is about debugging PyTorch
                raise SpikformerError(
                    f"--compile does not work here ({reason}): install a C++ compiler, or leave it out"
                    f" and {how_to_go_on(folder, options.data_dir)}"
                ) from None
            if context.world > 1 and isinstance(error, RuntimeError) and lost_peers(error):
                raise SpikformerError(
                    f"process {context.rank} lost the others: the reason is in their output"
                ) from None
            raise


def does_not_compile(error: Exception) -> bool:
    """Whether an error comes from torch.compile itself: no compiler on this machine, or code that it cannot take."""
    from torch._dynamo.exc import TorchDynamoException  # slow to import, and needed only here

    return isinstance(error, TorchDynamoException)


class Trainer:
    """A run under way: the network, its optimizer, and its progress."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        context: DistributedContext,
        splits: Splits,
        options: RunOptions,
        stop: Stopping | None = None,
        on_epoch: OnEpoch | None = None,
    ):
        recipe = settle(recipe, folder, context.device)
        self.recipe, self.folder, self.context, self.splits, self.options = recipe, folder, context, splits, options
        self.stop, self.on_epoch = stop or Stopping(), on_epoch
        gpu = context.device.type == "cuda"
        parts = context.world * recipe.grad_accum_steps
        if recipe.batch_size % parts:
            raise SpikformerError(
                f"batch_size={recipe.batch_size} does not divide among {context.world} processes"
                f" x {recipe.grad_accum_steps} parts: give a multiple of {parts}"
                + (", or start another number of processes" if context.world > 1 else "")
            )
        if len(splits.train) < context.world:
            raise SpikformerError(
                f"{len(splits.train)} training samples for {context.world} processes: start fewer, or use more samples"
            )
        torch.manual_seed(recipe.seed)
        self.network = recipe.network_for(splits.info)
        self.model = Spikformer(self.network).to(context.device, torch.float32)  # not PyTorch's default dtype
        before = None
        if recipe.init_from and not (folder / "resume.pt").exists():
            before = start_from(self.model, recipe.init_from, splits.info.classes)
            if context.rank == 0:
                print(before.as_a_start(splits.info.classes), flush=True)
        self.data = describe_data(splits, before.data if before else None)
        if recipe.sync_bn and context.world > 1:
            sync_batch_norm(self.model)
        self.average = copy.deepcopy(self.model).eval() if recipe.ema_decay else None
        groups = parameter_groups(self.model, recipe.weight_decay)
        # A number is part of a CUDA graph and would stay as it was; a tensor is read anew in every step.
        self.lr = torch.tensor(recipe.warmup_lr, dtype=torch.float32, device=context.device) if gpu else None
        lr = recipe.warmup_lr if self.lr is None else self.lr
        self.optimizer = torch.optim.AdamW(groups, lr=lr, fused=True, capturable=gpu)
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=recipe.precision == "fp16")
        if options.activation_checkpointing:
            checkpoint_blocks(self.model)
        self.parallel = DistributedDataParallel(self.model) if context.world > 1 else self.model
        self.compiled = torch.compile(self.parallel, dynamic=False) if options.compile else self.parallel
        self.graphed = None
        if why_no_graph(recipe, context, options) is None:
            self.graphed = GraphedStep(partial(self.work, self.parallel))
        self.board = None
        if options.tensorboard and context.rank == 0:
            self.board = open_tensorboard(folder)
            self.board.add_text("data", splits.info.label)
        self.progress = Progress()
        self.rates = Rates(self.model, every=WATCH_EVERY) if gpu else Rates(self.model)
        self.reader = Reader(
            splits.train,
            recipe.batch_size // context.world,
            train=True,
            seed=recipe.seed,
            rank=context.rank,
            world=context.world,
            workers=options.workers,
        )
        self.steps = max(1, len(splits.train) // recipe.batch_size)  # an epoch
        # What ``work`` counted in the last steps, on the device, and the number of samples of each of these steps.
        steps = (READ_EVERY if context.world == 1 else READ_EVERY_TOGETHER) if gpu else 1
        self.step_sums = torch.zeros(steps, 3, dtype=dtype_of_sums(context.device), device=context.device)
        self.unread: list[int] = []
        self.gradients: dict[str, Tensor] = {}  # of the last step; after one in a graph, p.grad may be an older one
        self.unwritten: dict[str, dict[str, Tensor]] = {}  # file -> weights of an epoch that it will hold

    @property
    def measured(self) -> Spikformer:
        """The network that is measured and kept: the running mean of the weights where there is one."""
        return self.average or self.model

    def run(self) -> Score:
        """Train to the end, from the last checkpoint in the folder if there is one, and measure the test set."""
        resumed = (self.folder / "resume.pt").exists()
        if resumed:
            self.resume()
        else:
            as_convolution = self.context.broadcast(convolution_is_faster())
            compute_as(as_convolution, self.model, self.average)
            if self.context.rank == 0:
                content = describe(self.recipe, self.network, self.context, self.data, as_convolution)
                write_json(self.folder / "config.json", content)
        started = time.perf_counter()
        while self.progress.epoch < self.recipe.epochs + self.recipe.cooldown_epochs:
            self.epoch()
            if self.on_epoch and self.context.rank == 0:
                self.on_epoch(self.progress.rows)
        self.context.barrier()
        load_weights(self.model, self.folder / "best.safetensors")
        with self.stop.at_once():
            score = evaluate(self.model, self.splits.test, self.context, precision=self.recipe.precision)
        best = self.progress.rows[self.progress.best_epoch - 1]
        result = {"split": "test", "accuracy": score.accuracy, **asdict(score)}
        result |= {"best_epoch": best["epoch"], "val_accuracy": best.get("val_accuracy"), "epochs": self.progress.epoch}
        result |= {"trained_on": self.data.trained_on, "simulated": self.data.simulated}
        file = self.folder / "results.json"
        seconds: float | None = time.perf_counter() - started
        if resumed:  # its clock is not known, unless it had ended before
            seconds = json.loads(file.read_text("utf-8")).get("seconds") if file.exists() else None
        result["seconds"] = seconds  # from the first step to this score
        if self.context.rank == 0:
            write_json(file, result)
        return score

    def epoch(self) -> None:
        """Train for the rest of an epoch, then write its row in the log and a checkpoint.

        Raises:
            Asked: the process was asked to end; a checkpoint was written first.
        """
        recipe, progress, context = self.recipe, self.progress, self.context
        self.model.train()
        title, hidden = f"epoch {progress.epoch + 1}", True if context.rank else None  # None: shown on a terminal only
        started, stop = time.perf_counter(), False
        made = ahead(self.reader.epoch(progress.epoch, progress.batch), context.device)
        with tqdm(made, title, self.steps, initial=progress.batch, leave=False, disable=hidden) as bar:
            for inputs, targets in bar:
                self.step(inputs, targets)
                if not self.unread:  # just read: the device has nothing left to do
                    bar.set_postfix(loss=f"{progress.loss / progress.seen:.3f}")
                if progress.batch == self.steps:
                    progress.gradients = gradient_norms(self.gradients)
                if context.world == 1 or not self.unread:  # to ask other processes is to wait for them
                    stop = context.any_rank(self.stop.asked)
                if stop:
                    break
        self.read()
        progress.seconds += time.perf_counter() - started
        if progress.batch == self.steps and not stop:
            self.finish_epoch()
        last = progress.epoch == recipe.epochs + recipe.cooldown_epochs
        due = progress.batch == 0 and (last or progress.epoch % self.options.checkpoint_every == 0)
        if due or context.any_rank(self.stop.asked):
            self.save(self.together())
            if context.any_rank(self.stop.asked):  # all wait here until the first has saved: a job ends with it
                raise Asked

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One optimizer step on a batch. On a GPU it waits for nothing; every fiftieth then reads the losses.

        Args:
            inputs: images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``, on the device.
            targets: labels ``[B]``, on the device.

        Raises:
            SpikformerError: a loss was not finite.
        """
        recipe, progress = self.recipe, self.progress
        self.set_lr(learning_rate(recipe, progress.epoch + progress.batch / self.steps))
        if recipe.mixes(progress.epoch):
            random = generator_for(recipe.seed, progress.epoch, progress.batch, self.context.rank)
            a = recipe.augment
            inputs, targets = mixup_cutmix(
                inputs, targets, self.network.num_classes, a.mixup, a.cutmix, random, a.mix_probability
            )
        self.gradients = {}  # room for the next ones
        if self.rates.step():  # watched: neither compiled code nor a CUDA graph sees hooks
            sums, self.gradients = self.work(self.parallel, inputs, targets)
        elif self.graphed is not None:
            sums, self.gradients = self.replay(self.graphed, inputs, targets)
        else:
            sums, self.gradients = self.work(self.compiled, inputs, targets)
        self.step_sums[len(self.unread)].copy_(sums)
        self.unread.append(len(targets))
        progress.batch += 1
        if len(self.unread) == len(self.step_sums) or progress.batch == self.steps:
            self.read()

    def replay(self, graphed: GraphedStep, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """``work`` as a CUDA graph; one that was not asked for, and cannot be, is given up."""
        try:
            return graphed(inputs, targets)
        except CaptureError as error:
            if self.options.cuda_graph == "on":
                raise
            warnings.warn(f"{error}; this run goes on without one", stacklevel=1)
            self.graphed = None
            return self.work(self.parallel, inputs, targets)

    def work(self, network: Callable[..., Tensor], inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the device does in a step: forward and backward pass, optimizer, running mean of the weights.

        Nothing here waits for the device, so all of it can be a CUDA graph.

        Args:
            network: the network, or what compiles or wraps it.
            inputs: images or frames.
            targets: labels ``[B]``, or shares of all classes ``[B, K]`` after mixup.

        Returns:
            The loss, the number of correct answers, and 0 (NaN for an input with NaN or inf), as one tensor; and the
            gradients, by the name of the parameter.
        """
        recipe, parallel = self.recipe, self.parallel
        self.optimizer.zero_grad(set_to_none=True)
        labels = targets if targets.dim() == 1 else targets.argmax(1)  # accuracy takes the label with the larger share
        together = min(recipe.batch_size, len(self.splits.train))  # samples in all processes, whose shares may differ
        number_of_parts = min(recipe.grad_accum_steps, together // self.context.world)  # the same in each of them
        parts = zip(*(x.tensor_split(number_of_parts, dim) for x, dim in ((inputs, -4), (targets, 0))), strict=True)
        sums = torch.zeros_like(self.step_sums[0])
        answers = []
        for number, (x, y) in enumerate(parts, 1):
            last = number == number_of_parts  # gradients are summed over the processes only once
            with nullcontext() if last or not isinstance(parallel, DistributedDataParallel) else parallel.no_sync():
                with autocast(self.context.device, recipe.precision):
                    logits = network(x, every_step=True) if recipe.loss == "tet" else network(x)
                if recipe.loss == "tet":
                    part, logits = tet_loss(logits.float(), y, recipe.label_smoothing), logits.mean(0)
                else:
                    part = F.cross_entropy(logits.float(), y, label_smoothing=recipe.label_smoothing)
                # All samples have the same weight, in every part and process; DDP averages gradients over processes.
                self.scaler.scale(part * (len(y) * self.context.world / together)).backward()
            sums[0] += part.detach().to(sums.dtype) * len(y) / len(targets)
            answers.append(logits.detach().argmax(1))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            decay_towards(self.average, self.model, recipe.ema_decay)
        sums[1] = (torch.cat(answers) == labels).sum()
        sums[2] = 0 * inputs.sum()
        return sums, {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step, without waiting for the device."""
        if self.lr is not None:
            self.lr.fill_(lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self.lr is None else self.lr

    def read(self) -> None:
        """Wait for the device, and add up what was counted in the steps since the last call.

        Raises:
            SpikformerError: the loss or the input of a step was not finite; the line names the first one.
        """
        progress = self.progress
        first = progress.batch - len(self.unread)
        sums = self.step_sums[: len(self.unread)].tolist()
        for batch, samples, (loss, correct, clean) in zip(range(first, progress.batch), self.unread, sums, strict=True):
            if not (math.isfinite(loss) and math.isfinite(clean)):
                self.refuse(batch, loss if math.isfinite(clean) else None)
            progress.loss += loss * samples
            progress.correct += int(correct)
            progress.seen += samples
        self.unread.clear()

    def refuse(self, batch: int, loss: float | None) -> None:
        """End the run because of a step in this epoch: its loss, or with None its input, was not finite."""
        progress, good = self.progress, self.folder / "resume.pt"
        lr = learning_rate(self.recipe, progress.epoch + batch / self.steps)
        where = f"epoch {progress.epoch + 1}, step {batch + 1}, learning rate {lr:.2g}"
        elsewhere, checkpoint = (" in another --out", str(good)) if good.exists() else ("", "none yet")
        what, remedy = f"loss is {loss}", f"start again{elsewhere} with a lower --lr or more --warmup-epochs"
        if loss is None:
            what, remedy = "input holds NaN or inf", "check the data and their normalisation"
        raise SpikformerError(f"{what} in {where}: {remedy}; last good checkpoint: {checkpoint}")

    def finish_epoch(self) -> None:
        """Validate, keep the weights, write the epoch's row, and reset the counts for the next epoch."""
        progress, context, val = self.progress, self.context, self.splits.val
        whole = self.together()
        row = {"epoch": progress.epoch + 1, "loss": whole.loss / whole.seen, "accuracy": whole.correct / whole.seen}
        context.sync_buffers(self.measured)  # what is measured is what is kept; DDP does the same before every step
        self.rates.close()  # validation is not a training step
        try:
            with self.stop.at_once():
                if val is not None:
                    score = evaluate(self.measured, val, context, precision=self.recipe.precision)
                    row |= {"val_loss": score.loss, "val_accuracy": score.accuracy}
        except BaseException:  # no error may lose the steps of this epoch
            self.save(whole)
            raise
        rates = self.rates.pop(context.all_reduce_mean)
        row |= {
            "rate": sum(rate for rate, _ in rates.values()) / len(rates),
            "lr": learning_rate(self.recipe, progress.epoch + (self.steps - 1) / self.steps),  # of the last step
            "images_per_s": whole.seen / progress.seconds,
            "seconds": progress.seconds,
            "peak_memory_gib": peak_memory(context.device) / 2**30,
        }
        row |= {f"grad/{part}": norm for part, norm in progress.gradients.items()}
        row |= {f"rate/{layer}": rate for layer, (rate, _) in rates.items()}
        row |= {f"dead/{layer}": dead for layer, (_, dead) in rates.items()}
        progress.epoch += 1
        progress.batch, progress.loss, progress.correct, progress.seen = 0, 0.0, 0, 0
        progress.seconds, progress.gradients = 0.0, {}
        progress.rows.append(row)
        best = val is None or row["val_loss"] < progress.best_val_loss
        if best:
            progress.best_epoch, progress.best_val_loss = progress.epoch, row.get("val_loss", math.inf)
        if context.rank:
            return
        weights = {name: tensor.detach().clone() for name, tensor in self.measured.state_dict().items()}
        self.unwritten |= {"last": weights, "best": weights} if best else {"last": weights}
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(name, value, progress.epoch)
            self.board.flush()
        shown = ("loss", "accuracy", "val_loss", "val_accuracy", "rate")
        figures = "  ".join(f"{name} {row[name]:.4f}" for name in shown if name in row)
        print(f"epoch {progress.epoch:>3}  {figures}  {row['images_per_s']:.0f} images/s", flush=True)
        if warning := firing_warning(rates):
            print(f"warning: {warning}", file=sys.stderr)

    def write_weights(self) -> None:
        """Write the weights and the rows of the epochs that ended since the last call.

        Until then they are kept on the device: the best epoch may not be the last one.
        """
        for name in sorted(self.unwritten):  # the best ones first
            write_weights(self.folder / f"{name}.safetensors", self.unwritten[name])
        if self.options.keep:
            write_weights(self.folder / f"epoch-{self.progress.epoch:03}.safetensors", self.unwritten["last"])
            kept = self.folder.glob("epoch-*.safetensors")
            for old in sorted(kept, key=lambda file: (len(file.name), file.name))[: -self.options.keep]:
                old.unlink()  # 999 comes before 1000
        self.unwritten = {}
        self.write_log()

    def write_log(self) -> None:
        """Write metrics.csv: a row an epoch."""
        data = self.splits.info.label
        write_csv(self.folder / "metrics.csv", [{"epoch": r["epoch"], "data": data} | r for r in self.progress.rows])

    def together(self) -> Progress:
        """The progress of all processes, with their counts added up."""
        loss, correct, seen = self.context.all_reduce_sum(self.progress.loss, self.progress.correct, self.progress.seen)
        return replace(self.progress, loss=loss, correct=int(correct), seen=int(seen))

    def save(self, progress: Progress) -> None:
        """Write what the last epochs left, and all that is needed to go on from here; process 0 does so for all."""
        if self.context.rank:
            return
        if self.unwritten:
            self.write_weights()
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])  # a tensor on a GPU
        state = {
            "model": self.model.state_dict(),
            "average": self.average and self.average.state_dict(),
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "rates": self.rates.state_dict(),
            "progress": asdict(progress),
        }
        write_file(self.folder / "resume.pt", lambda file: torch.save(state, file))

    def resume(self) -> None:
        """Continue at the point where the run in the folder was interrupted.

        Raises:
            SpikformerError: the run has another recipe (the line names the options) or other data, or a broken file.
        """
        check_same_recipe(self.recipe, self.folder)
        self.data = check_same_data(self.data, self.folder)
        compute_as(linear_as_convolution(self.folder), self.model, self.average)  # the same bits on any machine
        path = self.folder / "resume.pt"
        try:
            state = torch.load(path, map_location=self.context.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:  # the run may have been on a CPU, or on a GPU
                group |= {"lr": group["lr"] if self.lr is None else self.lr, "capturable": self.lr is not None}
            self.scaler.load_state_dict(state["scaler"])
            self.rates.load_state_dict(state["rates"])
            self.progress = Progress(**state["progress"])
        except Exception as error:  # torch raises many kinds of errors for a damaged file
            reason = str(error).splitlines()[0]
            raise SpikformerError(f"{path} is broken ({reason}): start again in another --out") from None
        best = self.folder / "best.safetensors"
        if self.progress.best_epoch and not best.exists():
            raise SpikformerError(f"{best} is gone, and the end of the run needs it: start again in another --out")
        if not self.context.rank and self.progress.rows and not (self.folder / "metrics.csv").exists():
            self.write_log()
        if self.context.rank:  # process 0 holds the counts of all
            self.progress.loss, self.progress.correct, self.progress.seen = 0.0, 0, 0
