"""Handwritten digits that come with scikit-learn: 1,797 real 8 x 8 images, no download.

They are drawn into 32 x 32 with a margin. Blurred strokes become pen strokes of varying width in the
augmentation, so that a network trained here also reads digits drawn on a screen. Nearly all its sevens have a crossbar:
``Augment.plain_sevens`` replaces some of those in training by drawn ones without.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import Augment, check_augment, uniform
from .base import DatasetInfo, Split, Splits, digests
from .transfer import send

INFO = DatasetInfo(
    name="digits",
    title="Handwritten digits (scikit-learn)",
    classes=tuple("0123456789"),
    channels=1,
    image_size=32,
    mean=(0.22,),
    std=(0.40,),
    default_model="digits-2-64",
    folder=None,
    obtain="comes with scikit-learn",
    licence="CC BY 4.0 (UCI Machine Learning Repository)",
    citation="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository",
    samples={"train": 1258, "val": 180, "test": 359},
)

MARGIN = 0.8  # share of the 32 x 32 image that the 8 x 8 digit fills


class Digits(Split):
    """Digits kept in memory, on any device.

    Args:
        images: ``[n, 8, 8]`` in [0, 1].
        targets: labels ``[n]``.
        plain_sevens: probability that augmentation replaces a seven by a drawn one without a crossbar.
    """

    def __init__(self, images: Tensor, targets: Tensor, plain_sevens: float = 0.0):
        self.images, self.targets, self.device = images, targets, images.device
        self.plain_sevens = plain_sevens

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        indices = send(indices, self.device)
        images, targets = self.images[indices], self.targets[indices]
        if generator is not None and self.plain_sevens:
            chosen = send(uniform(len(images), generator=generator) < self.plain_sevens, self.device) & (targets == 7)
            images = torch.where(chosen[:, None, None], send(plain_sevens(len(images), generator), self.device), images)
        pixels = render(images, generator)
        return (pixels - INFO.mean[0]) / INFO.std[0], targets

    def keys(self) -> list[bytes]:
        return digests(self.images)

    def to(self, device: torch.device | str) -> "Digits":
        return Digits(self.images.to(device), self.targets.to(device), self.plain_sevens)


def plain_sevens(count: int, generator: torch.Generator) -> Tensor:
    """Drawn sevens without a crossbar, made as the data set's digits were: ink on 32 x 32, counted in 4 x 4 blocks.

    Args:
        count: number of sevens.
        generator: draws the shape of each: a bar, then a stroke that is upright or leans, bent a little.

    Returns:
        ``[count, 8, 8]`` in steps of 1/16, as ``read`` gives digits.
    """

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * uniform(count, generator=generator)

    left, right, top, tilt = draw(4, 11), draw(20, 27), draw(2, 5), draw(-1, 3)
    lean, bend, pen = draw(-1, 14), draw(-2, 2), draw(1.8, 3)  # lean: how far the foot is left of the corner
    foot = torch.stack([right - lean, torch.full_like(lean, 30)], 1)
    corner = torch.stack([right, top], 1)
    middle = (corner + foot) / 2 + torch.stack([bend, torch.zeros_like(bend)], 1)
    path = torch.stack([torch.stack([left, top + tilt], 1), corner, middle, foot], 1)  # [count, 4, 2]: x, y
    start, step = path[:, :-1, None, None], path.diff(dim=1)[:, :, None, None]  # [count, 3, 1, 1, 2]: three lines
    centers = torch.arange(32) + 0.5
    offset = torch.stack(torch.meshgrid(centers, centers, indexing="xy"), -1) - start  # [count, 3, 32, 32, 2]
    along = ((offset * step).sum(-1) / step.square().sum(-1)).clamp(0, 1)
    distance = (offset - along[..., None] * step).norm(dim=-1)  # of each square from each line
    ink = distance.amin(1) <= pen[:, None, None]
    return F.avg_pool2d(ink.float(), 4)


def render(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw 8 x 8 digits with a margin into 32 x 32.

    Args:
        images: digits ``[B, 8, 8]`` in [0, 1].
        generator: draws rotation, shear, scale, shift, stroke width and blur for each digit; None: the middle of each
            range.

    Returns:
        ``[B, 1, 32, 32]`` in [0, 1], ink 1 on paper 0.
    """

    def draw(low: float, high: float) -> Tensor:
        if generator is None:
            return torch.full((len(images),), (low + high) / 2, dtype=torch.float32, device=images.device)
        drawn = torch.empty(len(images), dtype=torch.float32).uniform_(low, high, generator=generator)
        return send(drawn, images.device)

    angle, shear = draw(-0.15, 0.15), draw(-0.12, 0.12)
    wide, tall = MARGIN * draw(0.88, 1.12), MARGIN * draw(0.88, 1.12)
    right, down = draw(-0.09, 0.09), draw(-0.09, 0.09)
    ink, sharpness = draw(0.28, 0.56), draw(1.8, 4.6)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Where on the source image each target pixel looks: rotation and shear, then 1 / scale, then shift.
    rows = [cos / wide, (shear * cos - sin) / wide, -right / wide, sin / tall, (shear * sin + cos) / tall, -down / tall]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(images), 1, 32, 32], align_corners=False)
    padded = F.pad(images[:, None], (1, 1, 1, 1))  # [B, 1, 10, 10]: strokes at the rim fade out instead of being cut
    pixels = F.grid_sample(padded, grid * 0.8, mode="bicubic", padding_mode="zeros", align_corners=False)
    strokes = ((pixels - ink.view(-1, 1, 1, 1)) * sharpness.view(-1, 1, 1, 1) + 0.5).clamp(0, 1)
    return strokes * (pixels > 0.02)  # thick soft pens would otherwise tint the empty paper


def load(
    data_dir: str | Path | None = None,
    augment: Augment | None = None,
    samples_per_class: int | None = None,
    split_seed: int | None = None,
) -> Splits:
    """The digits, split once and for all: 70 % train, 10 % validation, 20 % test, each class in the same shares.

    Args:
        data_dir: not used: the digits need no files.
        augment: of single samples only plain_sevens may be on; the training loop applies mixup and cutmix.
        samples_per_class: number of digits of each class to use in each part; None: all.
        split_seed: seed of the split; None: 0.

    Raises:
        SpikformerError: another augmentation of single images; digits are redrawn with other pens instead.
    """
    check_augment("digits", augment, ("plain_sevens",))  # they are redrawn with other pens instead
    images, targets = read()
    train, val, test = split(targets, samples_per_class, split_seed)
    plain = 0.0 if augment is None else augment.plain_sevens
    return Splits(
        INFO,
        Digits(images[train], targets[train], plain),
        Digits(images[val], targets[val]),
        Digits(images[test], targets[test]),
    )


def read() -> tuple[Tensor, Tensor]:
    """All digits ``[1797, 8, 8]`` in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.tensor(bunch.images / 16, dtype=torch.float32), torch.tensor(bunch.target)


def split(targets: Tensor, samples_per_class: int | None, split_seed: int | None) -> list[list[int]]:
    """Indices of 70 % train, 10 % validation and 20 % test."""
    order = np.random.RandomState(split_seed or 0).permutation(len(targets))  # NumPy guarantees this sequence
    parts: list[list[int]] = [[], [], []]
    for label in range(10):
        mine = [int(i) for i in order if targets[i] == label]
        first, second = round(0.7 * len(mine)), round(0.8 * len(mine))
        for part, chunk in zip(parts, (mine[:first], mine[first:second], mine[second:]), strict=True):
            part.extend(chunk[:samples_per_class])
    return [sorted(part) for part in parts]
