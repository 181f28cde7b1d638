"""Recipes: everything that determines the weights of a trained network, as data."""

import math
from dataclasses import dataclass, field, replace
from operator import attrgetter

import torch

from ..data import PAPER, Augment, DatasetInfo
from ..errors import SpikformerError, nearest
from ..model import SpikformerConfig
from ..presets import configure

LOSSES = "mean", "tet"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Two runs of one recipe on one CPU machine end with the same weights.

    Raises:
        SpikformerError: a value out of its range.
    """

    dataset: str = "digits"
    """Data set to train on."""
    model: str = "digits-2-64"
    """Preset; see `python -m spikformer_edu --list`."""
    time_steps: int | None = None
    """Time steps T; the preset's unless given."""
    image_size: int | None = None
    """Height and width of the network's input; the data set's unless given. Event recordings are brought to it."""
    frames: str | None = None
    """What frames of event recordings are equal in: count (of events; the default), or time."""
    sensor: str | None = None
    """Width and height of the camera's sensor, such as 346x260, where event recordings do not state it."""
    attention: str = "ssa"
    """ssa; from Table 1 identity, relu, leaky_relu, softmax, vanilla; from later papers sdsa, qk_token, qk_channel."""
    residual: str = "spike"
    """What a residual adds: spike (what neurons give), or membrane (currents, before the neurons)."""
    neuron: str = "lif"
    """Kind of the neurons: lif, plif (learns its time constant), ilif (integers up to 4) or if (nothing leaks)."""
    loss: str = "mean"
    """Cross-entropy of the mean of the logits over time (mean), or of the logits of every step (tet)."""
    init_from: str | None = None
    """Run folder or pretrained model to start from; T may differ, a head for other classes is new."""
    epochs: int = 24
    """Passes over the training set, warm-up included."""
    cooldown_epochs: int = 0
    """Passes at the lowest learning rate, after the others."""
    warmup_epochs: int = 1
    """Passes over which the learning rate climbs linearly."""
    batch_size: int = 32
    """Images in one optimizer step, over all processes and accumulation steps."""
    grad_accum_steps: int = 1
    """Parts that a step is computed in, one after the other, to save memory; each has its own batch statistics."""
    lr: float = 3e-3
    """Highest learning rate, at a batch of lr_batch_size; it grows with the square root of the batch (AdamW)."""
    lr_batch_size: int = 32
    """Batch size that the learning rates are meant for."""
    warmup_lr: float = 1e-5
    """Learning rate of the first step."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    weight_decay: float = 6e-2
    """AdamW weight decay of matrices and kernels; biases and norms have none."""
    label_smoothing: float = 0.1
    """Probability mass taken from the label and spread over all classes."""
    precision: str = "auto"
    """fp32, or bf16 or fp16 for automatic mixed precision; auto: bf16 or fp16 as the GPU has it, fp32 on a CPU."""
    sync_bn: bool = False
    """Take the statistics of batch norms over all processes instead of in each."""
    ema_decay: float = 0.0
    """Decay per step of a running mean of the weights, which is then measured and kept; 0 is off."""
    seed: int = 0
    """Fixes initial weights, order and augmentation."""
    samples_per_class: int | None = None
    """Use this many samples of each class; all unless given."""
    val_fraction: float | None = None
    """Share of the training set that is kept for validation, where the data set brings none."""
    split_seed: int | None = None
    """Another choice of samples for --samples-per-class, --val-fraction, and the test set where none is official."""
    augment: Augment = field(default_factory=Augment)
    """Augmentation of training samples."""

    def __post_init__(self) -> None:
        if self.init_from is not None:
            object.__setattr__(self, "init_from", str(self.init_from))  # JSON has no paths
        for name in ("epochs", "batch_size", "grad_accum_steps", "lr_batch_size"):
            if getattr(self, name) < 1:
                raise SpikformerError(f"{name}={getattr(self, name)}: give at least 1")
        for name in ("cooldown_epochs", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise SpikformerError(f"{name}={getattr(self, name)}: give 0 or more")
        for name, bits in (("seed", 63), ("split_seed", 32)):  # what PyTorch takes, and NumPy
            if not 0 <= (getattr(self, name) or 0) < 2**bits:
                raise SpikformerError(f"{name}={getattr(self, name)}: give a number from 0 to below 2**{bits}")
        for name in ("lr", "warmup_lr", "min_lr"):
            if not 0 < getattr(self, name) < 10:
                raise SpikformerError(f"{name}={getattr(self, name)}: give a learning rate above 0 and below 10")
        if not 0 <= self.label_smoothing < 1:
            raise SpikformerError(f"label_smoothing={self.label_smoothing}: give a share from 0 to below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise SpikformerError(f"weight_decay={self.weight_decay}: give a finite number, 0 or more")
        if self.loss not in LOSSES:
            raise SpikformerError(f"unknown loss {self.loss!r}: {nearest(self.loss, LOSSES)}")
        if self.precision not in ("auto", *PRECISIONS):
            known = ("auto", *PRECISIONS)
            raise SpikformerError(f"unknown precision {self.precision!r}: {nearest(self.precision, known)}")
        if not 0 <= self.ema_decay < 1:
            raise SpikformerError(f"ema_decay={self.ema_decay}: give a decay from 0 to below 1")

    @property
    def scaled_lr(self) -> float:
        """Highest learning rate at this batch size."""
        return self.lr * (self.batch_size / self.lr_batch_size) ** 0.5

    @property
    def network(self) -> SpikformerConfig:
        """The network that is trained, before it is fitted to its data."""
        steps = {} if self.time_steps is None else {"time_steps": self.time_steps}
        family = {name: getattr(self, name) for name in ("attention", "residual", "neuron")}
        return configure(self.model, **family, **steps)

    def network_for(self, facts: DatasetInfo) -> SpikformerConfig:
        """The network that is trained on a data set, with its classes and channels.

        Args:
            facts: the facts about the data set.
        """
        network = self.network
        classes = facts.num_classes or network.num_classes  # 0 until the files are read
        return replace(network, in_channels=facts.channels, num_classes=classes)

    def mixes(self, epoch: int) -> bool:
        """Whether mixup or cutmix is on in an epoch.

        Args:
            epoch: number of the epoch, from 0.
        """
        a = self.augment
        return bool(a.mixup or a.cutmix) and (a.mix_epochs is None or epoch < a.mix_epochs)


def precision_for(device: torch.device) -> str:
    """What ``precision="auto"`` stands for on a device.

    bf16 on GPUs that multiply it fast (compute capability 8.0), fp16 on those that multiply only that fast (7.0, such
    as a T4), fp32 elsewhere.

    Args:
        device: the device that computes.
    """
    if device.type != "cuda":
        return "fp32"
    capability = torch.cuda.get_device_capability(device)
    return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"


# The settings of the official code, except where a comment says that they are ours.
_CIFAR10 = Recipe(
    dataset="cifar10",
    model="cifar10-4-384",
    epochs=300,
    cooldown_epochs=10,
    warmup_epochs=20,
    batch_size=128,
    lr_batch_size=128,
    lr=5e-4,
    weight_decay=6e-2,
    augment=PAPER["cifar10"],
)
# Ours, for minutes on one GPU: most epochs at T = 1, the last at T = 4 from their weights. A higher rate for the fewer
# steps, a batch that keeps a GPU busy, no mixup, and shifted crops; docs/speedrun.md says what is known of each.
_FAST_T1 = replace(
    _CIFAR10,
    time_steps=1,
    epochs=77,
    cooldown_epochs=0,
    warmup_epochs=3,
    batch_size=256,
    lr_batch_size=256,
    lr=1.5e-3,
    augment=replace(PAPER["cifar10"], crop_padding=4, mixup=0.0),
)
_FAST_T4 = replace(_FAST_T1, time_steps=None, epochs=37, warmup_epochs=1, lr=7e-4)
_CIFAR10DVS = Recipe(
    dataset="cifar10dvs",
    model="cifar10dvs-2-256",
    epochs=96,
    cooldown_epochs=10,
    warmup_epochs=10,
    batch_size=16,
    lr_batch_size=16,
    lr=1e-3,  # the paper's text says 0.1; its authors say to follow the code
    weight_decay=6e-2,
    augment=PAPER["cifar10dvs"],
)
_IMAGENET = Recipe(
    dataset="imagenet",
    model="imagenet-8-512",
    epochs=300,
    cooldown_epochs=10,
    warmup_epochs=20,
    batch_size=192,  # 24 on each of 8 GPUs
    lr_batch_size=192,
    warmup_lr=1e-6,
    lr=5e-4,
    weight_decay=5e-2,
    augment=PAPER["imagenet"],
)
RECIPES: dict[str, Recipe] = {
    "digits": Recipe(epochs=36, augment=Augment(plain_sevens=0.3)),  # ours
    "digits-dvs": Recipe(  # ours
        dataset="digits-dvs", model="digits-dvs-2-64", epochs=15, augment=Augment(neuromorphic=True)
    ),
    "digits-motion": Recipe(dataset="digits-motion", model="digits-motion-2-64", epochs=2),  # ours
    "cifar10": _CIFAR10,
    "cifar100": replace(_CIFAR10, dataset="cifar100", model="cifar100-4-384", augment=PAPER["cifar100"]),
    "cifar10dvs": _CIFAR10DVS,
    "dvsgesture": replace(_CIFAR10DVS, dataset="dvsgesture", model="dvsgesture-2-256", augment=PAPER["dvsgesture"]),
    "nmnist": Recipe(  # ours
        dataset="nmnist",
        model="nmnist-2-64",
        epochs=2,
        batch_size=64,
        lr_batch_size=64,
    ),
    "imagenet": _IMAGENET,
    "folder": replace(_IMAGENET, dataset="folder", model="imagenet-8-384"),  # ours
    "event-folder": replace(_CIFAR10DVS, dataset="event-folder"),  # ours
}
"""The recipe of each data set."""
SHORT: dict[str, Recipe] = {"fast-t1": _FAST_T1, "fast-t4": _FAST_T4}
"""Recipes for short runs on CIFAR-10, by name: fast-t1, then fast-t4 from its weights (``init_from``)."""


OFFICIAL_SPLITS = (
    "cifar10",
    "cifar100",
    "dvsgesture",
    "nmnist",
    "imagenet",
)  # for these split_seed alone has no effect


def recipe_for(dataset: str, name: str = "paper") -> Recipe:
    """A recipe of a data set.

    Args:
        dataset: name of the data set, a key of ``RECIPES``.
        name: paper for the one in ``RECIPES``, or a key of ``SHORT``.

    Raises:
        SpikformerError: no recipe for that name; the line names the nearest.
    """
    if dataset not in RECIPES:
        raise SpikformerError(f"unknown data set {dataset!r}: {nearest(dataset, RECIPES)}")
    if name == "paper":
        return RECIPES[dataset]
    if name not in SHORT:
        raise SpikformerError(f"unknown recipe {name!r}: {nearest(name, ('paper', *SHORT))}")
    if SHORT[name].dataset != dataset:
        raise SpikformerError(f"recipe {name!r} is for {SHORT[name].dataset}, not for {dataset}: leave it out")
    return SHORT[name]


def check_recipe(recipe: Recipe) -> None:
    """Refuse a setting that does nothing because what it modifies is off.

    Values of the data set's own recipe, and the defaults of ``Recipe``, are always allowed.

    Args:
        recipe: the recipe to check.

    Raises:
        SpikformerError: a setting does nothing; the line names what it needs.
    """
    a = recipe.augment
    operations = a.randaugment > 0, "augment.randaugment above 0"
    mixed = a.mixup > 0 or a.cutmix > 0, "augment.mixup or augment.cutmix above 0"
    mixing = a.mix_probability > 0 and a.mix_epochs != 0, "augment.mix_probability and augment.mix_epochs above 0"
    chosen = recipe.samples_per_class or recipe.val_fraction or recipe.dataset not in OFFICIAL_SPLITS
    needs = {
        "augment.operations": operations,
        "augment.magnitude": operations,
        "augment.magnitude_std": operations,
        "augment.mixup": mixing,
        "augment.cutmix": mixing,
        "augment.mix_probability": mixed,
        "augment.mix_epochs": mixed,
        "warmup_lr": (recipe.warmup_epochs > 0, "warmup_epochs above 0"),
        "min_lr": (recipe.epochs + recipe.cooldown_epochs > recipe.warmup_epochs, "more epochs than warmup_epochs"),
        "split_seed": (chosen, f"samples_per_class or val_fraction: {recipe.dataset} has an official split"),
    }
    for name, (met, need) in needs.items():
        value, *usual = map(attrgetter(name), (recipe, recipe_for(recipe.dataset), Recipe()))
        if not met and value not in usual:
            raise SpikformerError(f"{name}={value} does nothing: leave it out, or give {need}")


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The learning rate at a point of the training: linear warm-up, cosine to ``min_lr``, then ``min_lr``.

    Args:
        recipe: learning rates and numbers of epochs.
        epoch: passes over the training set so far, with fractions.

    Examples:
        >>> from spikformer_edu.training import learning_rate, recipe_for
        >>> [round(learning_rate(recipe_for("cifar10"), epoch), 6) for epoch in (0, 10, 20, 160, 300)]
        [1e-05, 0.000255, 0.0005, 0.000255, 1e-05]
    """
    highest = recipe.scaled_lr
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr + (highest - recipe.warmup_lr) * epoch / recipe.warmup_epochs
    if epoch >= recipe.epochs:
        return recipe.min_lr
    progress = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    return recipe.min_lr + (highest - recipe.min_lr) * (1 + math.cos(math.pi * progress)) / 2


_AUGMENTATION = "random numbers of the augmentation are our own; its operations and strengths are the official ones"
# Differences from the official code, by data set; printed by --dry-run.
DEVIATIONS: dict[str, tuple[str, ...]] = {
    "all": (
        "the learning rate moves with every step, not once an epoch",
        "it grows with the square root of the batch size; the official code leaves it as it is",
        "the convolution of a still image is done once, not T times; the statistics of its norm are those of T copies",
        "layers that the official code builds and never calls are not built",
        "the precision is what the device computes fast (bf16, fp16 or fp32); the official code always trains at fp16",
        "order and augmentation depend on (seed, epoch, batch) alone",
        "the test set is measured once, at the end; the official code reports the best epoch on it",
    ),
    "cifar10": (_AUGMENTATION,),
    "dvsgesture": ("the paper's recipe is not published: this is the one of CIFAR10-DVS without mirror images",),
    "imagenet": (
        _AUGMENTATION,
        "the batch of 24 on each of 8 GPUs is one batch of 192, shared among as many processes as there are",
    ),
    "digits": (
        "the paper has no digits: the recipe is ours",
        "three in ten training sevens are replaced by drawn ones without a crossbar, which the data set hardly has",
    ),
    "digits-dvs": ("the paper has no digits: the recipe is ours",),
    "digits-motion": ("the paper has no digits: the recipe is ours",),
    "nmnist": ("the paper has no N-MNIST: the recipe is ours",),
    "event-folder": ("the recipe is that of CIFAR10-DVS: adapt it to the number of recordings",),
    "folder": ("the recipe is that of ImageNet: adapt it to the number of images",),
}
DEVIATIONS["cifar100"] = DEVIATIONS["cifar10"]
