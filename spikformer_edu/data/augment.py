"""Augmentation by the batch, on the device where the batch lives.

All random numbers are drawn on the CPU, as float32, from a generator that the caller passes, so a batch is the same on
every device and with any number of worker processes. torchvision's transforms would draw one set of parameters for a
whole batch, from the global generator; only their kernels are used.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SpikformerError, nearest
from .randaugment import OPERATIONS, rand_augment, warp
from .transfer import constant, send

Generator = torch.Generator


@dataclass(frozen=True)
class Augment:
    """The augmentation of training samples. By default all of it is off; ``PAPER`` holds the official settings.

    Raises:
        SpikformerError: a value out of its range.
    """

    flip: float = 0.0
    """Probability of a mirror image."""
    crop_padding: int = 0
    """Width in pixels of a black border around the image; a window of the image's size is then cut at random."""
    crop_area: tuple[float, float] = (1.0, 1.0)
    """Least and greatest share of a photograph's area that is cut out at random and resized; (1, 1): all of it."""
    randaugment: int = 0
    """Number of RandAugment operations for each image, each applied with probability 1/2."""
    operations: str = "few"
    """few: the five of the official CIFAR code; all: the fifteen of timm."""
    magnitude: float = 9.0
    """Strength of RandAugment, 0 to 10."""
    magnitude_std: float = 0.0
    """Standard deviation of that strength."""
    erasing: float = 0.0
    """Probability that a rectangle is erased."""
    neuromorphic: bool = False
    """For event frames: shear, shift, rotation or cutout, the same for all frames of a sample."""
    plain_sevens: float = 0.0
    """For digits: probability that a seven is replaced by a drawn one without a crossbar."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off. Mixup and cutmix are applied to whole batches: see mixup_cutmix()."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 is off. With both on, each batch takes one of the two."""
    mix_probability: float = 1.0
    """Share of batches that are mixed."""
    mix_epochs: int | None = None
    """Mixing ends after this many epochs; None: never."""

    def __post_init__(self) -> None:
        for name in ("flip", "erasing", "plain_sevens", "mix_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpikformerError(f"{name}={getattr(self, name)}: give a probability from 0 to 1")
        for name in ("crop_padding", "randaugment", "magnitude_std", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:  # this refuses nan too
                raise SpikformerError(f"{name}={getattr(self, name)}: give 0 or more")
        if self.mix_epochs is not None and self.mix_epochs < 0:
            raise SpikformerError(f"mix_epochs={self.mix_epochs}: give 0 or more")
        if not 0 <= self.magnitude <= 10:
            raise SpikformerError(f"magnitude={self.magnitude}: give a strength from 0 to 10")
        object.__setattr__(self, "crop_area", tuple(self.crop_area))  # JSON has no tuples
        if len(self.crop_area) != 2 or not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise SpikformerError(
                f"crop_area={self.crop_area}: give the least and the greatest share, above 0, up to 1"
            )
        if self.operations not in OPERATIONS:
            raise SpikformerError(f"unknown operations {self.operations!r}: {nearest(self.operations, OPERATIONS)}")


def check_augment(name: str, augment: Augment | None, taken: tuple[str, ...]) -> None:
    """Check that a data set can do what is asked of single samples; mixup and cutmix work on any batch.

    Args:
        name: name of the data set.
        augment: the settings; None: no augmentation.
        taken: names of the settings that the data set takes.

    Raises:
        SpikformerError: a setting would do nothing.
    """
    for setting in ("flip", "crop_padding", "crop_area", "randaugment", "erasing", "neuromorphic", "plain_sevens"):
        value = getattr(augment or Augment(), setting)
        if setting not in taken and value != getattr(Augment(), setting):
            options = ", ".join((*taken, "mixup and cutmix"))
            raise SpikformerError(f"{name} has no use for augment.{setting}={value}: of augment it takes {options}")


def augment_images(
    pixels: Tensor,
    augment: Augment | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    generator: Generator | None,
) -> Tensor:
    """Images as the network takes them: augmented when there is a generator, then normalised.

    Args:
        pixels: images ``[B, C, H, W]``, uint8.
        augment: the settings; None: only normalise.
        mean: mean of each channel, in [0, 1] pixel units.
        std: standard deviation of each channel, in [0, 1] pixel units.
        generator: draws all random numbers, on the CPU; None: only normalise.

    Returns:
        ``[B, C, H, W]``, float32.
    """
    if augment is None or generator is None:
        return _normalise(pixels, mean, std)
    if augment.crop_padding:
        pixels = random_crop(pixels, augment.crop_padding, generator)
    if augment.flip:
        pixels = random_flip(pixels, augment.flip, generator)
    if augment.randaugment:
        pixels = rand_augment(
            pixels,
            augment.operations,
            augment.randaugment,
            augment.magnitude,
            augment.magnitude_std,
            mean,
            generator,
        )
    images = _normalise(pixels, mean, std)
    if augment.erasing:
        chosen = uniform(len(images), generator=generator) < augment.erasing
        images = erase(images, chosen, (0.02, 1 / 3), (0.3, 1 / 0.3), generator)
    return images


def _normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    scale = 1 / (255 * constant(std, pixels.device).view(-1, 1, 1))
    shift = 255 * constant(mean, pixels.device).view(-1, 1, 1)
    return pixels.float().sub_(shift).mul_(scale)


def augment_frames(frames: Tensor, augment: Augment | None, generator: Generator | None) -> Tensor:
    """Event frames, augmented in the same way in all frames of a sample: a mirror image, then one of six operations.

    The six have equal probability: none, shear by up to 0.3, shift in x or in y by up to 5 pixels, rotation by up to 30
    degrees, a square hole of 0.1 to 11 % of the area. They are those of the official CIFAR10-DVS code, whose shift
    fills with zeros (the paper's text says roll).

    Args:
        frames: event frames ``[T, B, C, H, W]``, float32.
        augment: the settings; None: no augmentation.
        generator: draws all random numbers, on the CPU; None: no augmentation.

    Returns:
        Frames of the same shape.
    """
    if augment is None or generator is None:
        return frames
    time, batch = frames.shape[:2]
    x = frames.transpose(0, 1).flatten(1, 2)  # [B, TC, H, W]: all channels move together
    if augment.flip:
        x = random_flip(x, augment.flip, generator)
    if augment.neuromorphic:
        kind = torch.randint(6, (batch,), generator=generator)
        level = torch.linspace(-1, 1, 31, dtype=torch.float32)[torch.randint(31, (batch,), generator=generator)]
        shear, angle = 0.3 * level * (kind == 1), math.radians(30) * level * (kind == 4)
        right, down = torch.trunc(5 * level) * (kind == 2), torch.trunc(5 * level) * (kind == 3)
        cos, sin = torch.cos(angle), torch.sin(angle)
        moved = warp(x, [cos, -sin + torch.tan(shear), -right, sin, cos, -down], mode="nearest")
        x = _where((kind > 0) & (kind < 5), moved, x)
        x = erase(x, kind == 5, (0.001, 0.11), (1.0, 1.0), generator)
    return x.unflatten(1, (time, -1)).transpose(0, 1)


def mixup_cutmix(
    inputs: Tensor,
    targets: Tensor,
    num_classes: int,
    mixup: float,
    cutmix: float,
    generator: Generator,
    probability: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix of a batch with itself in reverse order; one share lambda ~ Beta(alpha, alpha) for the batch.

    Args:
        inputs: images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``.
        targets: labels ``[B]``.
        num_classes: number of classes K.
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of cutmix; 0 is off.
        generator: draws all random numbers, on the CPU.
        probability: share of batches that are mixed; for the others only the targets change, to one-hot vectors.

    Returns:
        Mixed inputs, and targets ``[B, K]``, whose rows sum to 1.
    """
    targets = F.one_hot(targets, num_classes).float()
    chance, which = uniform(2, generator=generator).tolist()
    if chance >= probability or not (mixup or cutmix):
        return inputs, targets
    boxed = bool(cutmix) and (not mixup or which < 0.5)
    alpha = cutmix if boxed else mixup
    share = float(np.random.default_rng(_integer(generator)).beta(alpha, alpha))
    other = inputs.flip(-4)
    if boxed:
        height, width = inputs.shape[-2:]
        cut = math.sqrt(1 - share)
        y, x = _integer(generator) % height, _integer(generator) % width
        top, bottom = max(0, y - int(height * cut) // 2), min(height, y + int(height * cut) // 2)
        left, right = max(0, x - int(width * cut) // 2), min(width, x + int(width * cut) // 2)
        inputs = inputs.clone()
        inputs[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)  # the box was cut off at the rim
    else:
        inputs = share * inputs + (1 - share) * other
    return inputs, share * targets + (1 - share) * targets.flip(0)


def uniform(*shape: int, generator: Generator) -> Tensor:
    """Random numbers in [0, 1), float32, on the CPU."""
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")


def _integer(generator: Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator, device="cpu"))


def _where(chosen: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(send(chosen, x.device).view(-1, 1, 1, 1), x, y)


def random_flip(x: Tensor, probability: float, generator: Generator) -> Tensor:
    """Each sample of ``[B, C, H, W]`` mirrored left to right with that probability."""
    return _where(uniform(len(x), generator=generator) < probability, x.flip(-1), x)


def random_crop(x: Tensor, padding: int, generator: Generator) -> Tensor:
    """A window of the image's own size cut from each padded image of ``[B, C, H, W]``."""
    batch, channels, height, width = x.shape
    corner = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator)
    corner = send(corner, x.device)
    rows = (corner[0] + torch.arange(height, device=x.device)).view(batch, 1, height, 1)
    columns = (corner[1] + torch.arange(width, device=x.device)).view(batch, 1, 1, width)
    sample = torch.arange(batch, device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
    return F.pad(x, [padding] * 4)[sample, channel, rows, columns]


def erase(
    x: Tensor, chosen: Tensor, area: tuple[float, float], aspect: tuple[float, float], generator: Generator
) -> Tensor:
    """Random erasing (Zhong et al., 2020), in place: one rectangle set to 0 in the chosen samples of ``[B, C, H, W]``.

    Args:
        x: images ``[B, C, H, W]``, normalised.
        chosen: the samples to erase in, ``[B]``, bool.
        area: least and greatest area of the rectangle, as a share of the image.
        aspect: least and greatest height over width of the rectangle; drawn log-uniformly.
        generator: draws all random numbers, on the CPU.
    """
    batch, _, height, width = x.shape
    draws = uniform(4, batch, 10, generator=generator)  # ten attempts; the first that fits is used
    size = (area[0] + (area[1] - area[0]) * draws[0]) * height * width
    ratio = torch.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * draws[1])
    tall, wide = torch.sqrt(size * ratio).round(), torch.sqrt(size / ratio).round()
    fits = (tall < height) & (wide < width)
    top, left = (draws[2] * (height - tall + 1)).floor(), (draws[3] * (width - wide + 1)).floor()
    boxes = torch.stack([top, top + tall, left, left + wide], 2).long()  # [B, 10, 4]
    first = boxes[torch.arange(batch), fits.int().argmax(1)]  # [B, 4]
    box = send(first * (chosen & fits.any(1))[:, None], x.device).view(batch, 4, 1, 1, 1).unbind(1)  # empty: 0 to 0
    row, column = torch.arange(height, device=x.device).view(-1, 1), torch.arange(width, device=x.device)
    return x.masked_fill_((row >= box[0]) & (row < box[1]) & (column >= box[2]) & (column < box[3]), 0)


PAPER: dict[str, Augment] = {
    "cifar10": Augment(flip=0.5, randaugment=1, magnitude_std=0.4, erasing=0.25, mixup=0.5, mix_epochs=200),
    "imagenet": Augment(
        flip=0.5, randaugment=2, operations="all", magnitude_std=0.5, erasing=0.25, mixup=0.8, cutmix=1.0
    ),
    "cifar10dvs": Augment(flip=0.5, neuromorphic=True, mixup=0.5, mix_probability=0.5, mix_epochs=75),
}
"""The settings of the official code by data set: its YAML files, and its training script for CIFAR10-DVS."""
PAPER["cifar100"] = PAPER["cifar10"]
PAPER["dvsgesture"] = replace(PAPER["cifar10dvs"], flip=0.0)  # a mirror would turn a left hand into a right one
