"""Plan a run before it starts: the whole recipe, the numbers that follow from it, and a measured step."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..data import Absent, count, info
from ..errors import SpikformerError
from ..kernels.choice import plain_path
from ..model import Spikformer
from ..provenance import provenance
from .checkpoint import start_from
from .distributed import DistributedContext
from .evaluation import autocast, check_readable, load_splits
from .loop import RunOptions, parameter_groups, why_no_graph
from .memory import checkpoint_blocks, enough_memory
from .pace import step_seconds
from .recipe import DEVIATIONS, Recipe, check_recipe, recipe_for
from .run_folder import settle


@dataclass(frozen=True)
class Plan:
    """The numbers that follow from a recipe, and from one step measured here.

    Attributes:
        data: name of the data set.
        start: a line about the run that the initial weights come from; None: the weights are random.
        source: the images that the step was measured on, as text.
        images: number of training images.
        steps: optimizer steps in an epoch.
        total_steps: optimizer steps in the whole run.
        lr: highest learning rate, after scaling with the batch size.
        parameters: number of parameters to train.
        flops: floating-point operations of a training step for one image, forward and backward, 2 a multiply-add.
        saved_bytes: bytes that autograd keeps for one image until the backward pass; with activation checkpointing
            those for the inputs of all blocks and for one whole block.
        bytes: estimate of the memory of one process, in bytes: weights, gradients, two AdamW moments, the running mean
            of the weights if there is one, buffers to exchange gradients between processes, what autograd keeps (a CUDA
            graph keeps it for itself; steps whose firing rates are counted need it once more).
        room: memory of the GPU, or this process's share of the machine's, in bytes; None where the system does not
            tell.
        step_images: number of images in the measured step.
        step_seconds: time of a step, the median of three after one that is not counted; of the run's own steps the
            mean of some dozens.
        hours: duration of the whole run in one process at that speed, without validation.
        activation_checkpointing: whether the run uses activation checkpointing.
        compile: whether the run compiles the network.
        precision: precision that the run computes in.
        no_graph: why a step of the run is not a CUDA graph; None if it is one.
    """

    data: str
    start: str | None
    source: str
    images: int
    steps: int
    total_steps: int
    lr: float
    parameters: int
    flops: float
    saved_bytes: int
    bytes: int
    room: int | None
    step_images: int
    step_seconds: float
    hours: float
    activation_checkpointing: bool = False
    compile: bool = False
    precision: str = "fp32"
    no_graph: str | None = "--cuda-graph off"

    @property
    def image_bytes(self) -> int:
        """Bytes that one image more in a step takes."""
        return self.saved_bytes * (2 if self.no_graph is None else 1)


def plan(recipe: Recipe, context: DistributedContext, options: RunOptions | None = None, step_images: int = 2) -> Plan:
    """Count and measure, on images of the data set if they are on this machine, else on random images.

    On one GPU that has the training images, the time is that of the run's own steps, with all that belongs to them.

    Args:
        recipe: the recipe of the run.
        context: device and processes of the run.
        options: how the run is computed; compiled code may keep less than is estimated here. Nothing is downloaded.
        step_images: number of images in the step that is counted, and timed where the run's own is not.

    Raises:
        SpikformerError: a setting would do nothing, the number of training images is not known, not enough memory,
            weights that do not fit, or a CUDA graph is asked for where there can be none.
    """
    check_recipe(recipe)
    recipe = settle(recipe, None, context.device)
    options = options or RunOptions()
    no_graph = why_no_graph(recipe, context, options)
    facts, source, name = info(recipe.dataset), "random images", None
    known, inputs, images = facts.samples.get("train"), None, None
    if count(recipe.dataset, options.data_dir):
        splits = load_splits(recipe, options.data_dir)
        check_readable(splits.val, splits.test)  # the training set may be absent here, see below
        facts = splits.info
        name = next(name for name in ("train", "test") if not isinstance(splits[name], Absent))
        source = f"images of {recipe.dataset}'s {name} split"
        inputs, labels = splits[name].fetch(torch.arange(step_images), None)
        images = len(splits.train) if name == "train" else None
    if images is None:
        if not known:
            raise SpikformerError(f"the size of {recipe.dataset} is known only from its files, which are not here")
        images = min(known, recipe.samples_per_class * facts.num_classes) if recipe.samples_per_class else known
        images = round(images * (1 - (recipe.val_fraction or 0)))
    network = recipe.network_for(facts)
    if inputs is None:
        shape = (step_images, network.in_channels, facts.image_size, facts.image_size)
        inputs = torch.rand((network.time_steps, *shape) if facts.time_steps else shape, dtype=torch.float32)
        labels = torch.randint(network.num_classes, (step_images,))
    x, y = inputs.to(context.device), labels.to(context.device)
    torch.manual_seed(recipe.seed)
    model = Spikformer(network).to(context.device, torch.float32).train()
    start = None
    if recipe.init_from:
        start = start_from(model, recipe.init_from, facts.classes).as_a_start(facts.classes)  # or it does not fit
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.scaled_lr, fused=True)

    def loss_of(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        with autocast(context.device, recipe.precision):
            return F.cross_entropy(network(x).float(), y, label_smoothing=recipe.label_smoothing)

    def step(network: Callable[[Tensor], Tensor]) -> None:
        loss_of(network, x, y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if context.device.type == "cuda":
            torch.cuda.synchronize(context.device)

    def saved_bytes(images: int) -> int:
        chosen = torch.arange(images, device=context.device) % step_images
        return bytes_for_backward(model, lambda: loss_of(model, x.index_select(-4, chosen), y[chosen]))

    with enough_memory(f"{step_images} images do not fit into this device; use a smaller model"):
        saved = saved_bytes(step_images)
        an_image = saved_bytes(step_images + 1) - saved
        copies = saved - step_images * an_image if recipe.precision != "fp32" else 0  # of the weights, rounded
        if options.activation_checkpointing:
            checkpoint_blocks(model)
            inputs_of_blocks = saved_bytes(step_images + 1) - saved_bytes(step_images)
            an_image = inputs_of_blocks + (an_image - inputs_of_blocks) // network.depth  # one block at a time
        with plain_path(), FlopCounterMode(display=False) as counter:  # which sees no products in fused operations
            step(model)
        called = torch.compile(model, dynamic=False) if options.compile else model
        if options.compile:
            step(called)
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            step(called)
            seconds.append(time.perf_counter() - started)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    times = 4 + bool(recipe.ema_decay) + (context.world > 1)
    batch = recipe.batch_size // (context.world * recipe.grad_accum_steps)
    steps = max(1, images // recipe.batch_size)
    total = steps * (recipe.epochs + recipe.cooldown_epochs)
    needed = times * weights + copies + batch * an_image * (2 if no_graph is None else 1)
    room, timed = room_of(context), sorted(seconds)[1]
    parameters, flops = sum(p.numel() for p in model.parameters()), counter.get_total_flops() / step_images
    if context.device.type == "cuda" and context.world == 1 and name == "train" and room and needed < 0.9 * room:
        del model, called, optimizer
        step_images, timed = recipe.batch_size, step_seconds(recipe, context, splits, options)
    return Plan(
        facts.label,
        start,
        source,
        images,
        steps,
        total,
        recipe.scaled_lr,
        parameters,
        flops,
        an_image,
        needed,
        room,
        step_images,
        timed,
        total * recipe.batch_size * timed / step_images / 3600,
        options.activation_checkpointing,
        options.compile,
        recipe.precision,
        no_graph,
    )


def bytes_for_backward(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of a forward pass until the backward pass, without the weights themselves."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = forward()  # holds all of it, so that no two of them lie at the same address
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del loss
    return sum(kept.values())


def room_of(context: DistributedContext) -> int | None:
    """Memory of the GPU, or this process's share of the machine's, in bytes; None where the system does not tell."""
    if context.device.type == "cuda":
        return torch.cuda.get_device_properties(context.device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // context.world
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def parts_that_fit(recipe: Recipe, context: DistributedContext, p: Plan, room: int) -> int | None:
    """The smallest ``--grad-accum-steps`` at which a step fits into nine tenths of the room; None if none does."""
    share = recipe.batch_size // context.world
    fixed = p.bytes - share // recipe.grad_accum_steps * p.image_bytes
    fitting = (k for k in range(1, share + 1) if share % k == 0 and fixed + share // k * p.image_bytes < 0.9 * room)
    return next(fitting, None)


def describe_plan(recipe: Recipe, context: DistributedContext, p: Plan) -> str:
    """The whole recipe, the numbers that follow from it, and the differences from the official code, as text.

    Args:
        recipe: the recipe of the run.
        context: device and processes of the run.
        p: the plan of the run.
    """
    own = asdict(recipe_for(recipe.dataset))
    lines = [f"recipe of {p.data} (* differs from the data set's own)"]
    for name, value in asdict(recipe).items():
        if isinstance(value, dict):
            changed = {k: v for k, v in value.items() if v != own[name][k]}
            lines.append(f"  {name}{'*' if changed else ''}")
            lines += [f"    {k}{'*' if k in changed else ''} {v}" for k, v in value.items()]
        else:
            lines.append(f"  {name}{'' if value == own[name] else '*'} {value}")
    per_process = recipe.batch_size // context.world
    checkpointing, compiled = (
        ", with --activation-checkpointing" if p.activation_checkpointing else "",
        ", compiled" if p.compile else "",
    )
    faster = "; larger batches run faster" if p.step_images < recipe.batch_size else ""
    where = provenance(context.device)
    lines += [
        "",
        "derived",
        *([f"  start                {p.start}"] if p.start else []),
        f"  parameters           {p.parameters:,}",
        f"  training images      {p.images:,}",
        f"  global batch         {recipe.batch_size} = {context.world} processes x {recipe.grad_accum_steps} parts"
        f" x {per_process // recipe.grad_accum_steps}",
        f"  optimizer steps      {p.steps:,} an epoch, {p.total_steps:,} in all",
        f"  highest lr           {p.lr:.3g} = {recipe.lr:.3g} x sqrt({recipe.batch_size} / {recipe.lr_batch_size})",
        f"  precision            {p.precision}" + (", chosen for this device" if recipe.precision == "auto" else ""),
        f"  CUDA graph           {'yes' if p.no_graph is None else f'no: {p.no_graph}'}",
        f"  operations           {p.flops / 1e9:.2f} GFLOP an image (forward and backward),"
        f" {p.flops * p.total_steps * recipe.batch_size / 1e15:,.4g} PFLOP in all",
        f"  memory a process     about {p.bytes / 2**30:.2f} GiB (estimate: weights, gradients, AdamW,"
        f" {p.saved_bytes / 2**20:.1f} MiB an image for the backward pass{checkpointing})",
        *_remedy(recipe, context, p),
        f"  measured step        {p.step_seconds:.3f} s for {p.step_images} {p.source},"
        f" {p.flops * p.step_images / p.step_seconds / 1e9:.0f} GFLOP/s{compiled}",
        f"  on                   {where['device']}, {where['threads']} threads",
        f"  projected            {p.hours:,.1f} hours in one process at this speed{faster}",
        "",
        "what differs from the official code",
        *(f"  - {text}" for text in DEVIATIONS["all"] + DEVIATIONS.get(recipe.dataset, ())),
    ]
    return "\n".join(lines)


def _remedy(recipe: Recipe, context: DistributedContext, p: Plan) -> list[str]:
    if p.room is None or p.bytes < 0.9 * p.room:
        return []
    parts = parts_that_fit(recipe, context, p, p.room)
    advice = f"add --grad-accum-steps {parts}" if parts else "use a smaller model, or more processes"
    advice += ", or try --cuda-graph off" if p.no_graph is None else ""
    advice += "" if p.activation_checkpointing else ", or try --activation-checkpointing"
    return [f"  too much             there are {p.room / 2**30:.1f} GiB a process: {advice}"]
