"""Splits of images: in memory, or read from files when they are needed."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import SpikformerError
from .augment import Augment, augment_images, uniform
from .base import Absent, DatasetInfo, Split, Splits, digests, stratified_split
from .files import PICTURES, listing
from .transfer import send

if TYPE_CHECKING:
    from PIL import Image


def decode(content: str | Path | io.BytesIO, name: str) -> "Image.Image":
    """An image file as an RGB image of Pillow.

    Transparent pixels become white, 16-bit grey keeps its upper 8 bits (as Pillow does for 16-bit colour), and the
    orientation that a camera has noted (EXIF) is ignored.

    Args:
        content: path, or open file.
        name: name of the file in an error message.

    Raises:
        SpikformerError: it is not an image, or only part of one.
    """
    from PIL import Image

    try:
        image: Image.Image = Image.open(content)
        if image.mode in ("I", "F"):
            raise ValueError("32-bit pixels, whose white is unknown: save it with 8 or 16 bits")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        raise SpikformerError(f"{name} is no readable image ({reason}): replace or remove it") from None


class Images(Split):
    """Images kept in memory as one array, on any device.

    Args:
        pixels: images ``[n, C, H, W]``, uint8.
        targets: labels ``[n]``.
        info: the facts about the data set; its mean and std normalise.
        augment: augmentation; None: none.
    """

    def __init__(self, pixels: Tensor, targets: Tensor, info: DatasetInfo, augment: Augment | None):
        self.pixels, self.targets, self.info, self.augment = pixels, targets, info, augment
        self.device = pixels.device

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        indices = send(indices, self.device)
        images = augment_images(self.pixels[indices], self.augment, self.info.mean, self.info.std, generator)
        return images, self.targets[indices]

    def keys(self) -> list[bytes]:
        return digests(self.pixels)

    def to(self, device: torch.device | str) -> "Images":
        return Images(self.pixels.to(device), self.targets.to(device), self.info, self.augment)


class Pictures(Split):
    """Photographs of any size, read from files (or from inside tar files) when they are needed.

    Args:
        folder: folder that ``names`` are relative to.
        names: paths ``[n]``, as an array of bytes: a million Python strings would be copied into every worker.
        targets: labels ``[n]``.
        info: the facts about the data set; its mean and std normalise, its image_size is that of the network's input.
        augment: augmentation; None: none.
        ranges: first byte and length of each image inside its file, ``[n, 2]``; None: whole files.
    """

    def __init__(
        self,
        folder: Path,
        names: np.ndarray,
        targets: Tensor,
        info: DatasetInfo,
        augment: Augment | None,
        ranges: np.ndarray | None = None,
    ):
        self.folder, self.names, self.ranges = folder.absolute(), names, ranges
        self.targets, self.info, self.augment = targets, info, augment

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        images = torch.stack([self._read(int(i), generator) for i in indices])  # [B, C, H, W]
        return augment_images(images, self.augment, self.info.mean, self.info.std, generator), self.targets[indices]

    def keys(self) -> list[bytes]:
        names = self.names.tolist()
        if self.ranges is None:
            return names
        return [b"%s %d" % (name, start) for name, start in zip(names, self.ranges[:, 0].tolist(), strict=True)]

    def read(self, index: int) -> bytes:
        path = self.folder / os.fsdecode(self.names[index])
        try:
            return path.read_bytes() if self.ranges is None else member(path, *self.ranges[index])[0].getvalue()
        except OSError as error:
            raise SpikformerError(f"cannot read {path}: {error.strerror}") from None

    def _read(self, index: int, generator: torch.Generator | None) -> Tensor:
        from torchvision.transforms.v2 import InterpolationMode, functional

        path = self.folder / os.fsdecode(self.names[index])
        if self.ranges is None:
            image = decode(path, str(path))
        else:
            image = decode(*member(path, *self.ranges[index]))
        size = self.info.image_size
        if generator is None or self.augment is None:  # the square in the middle
            side = min(image.size)
            box = (image.height - side) // 2, (image.width - side) // 2, side, side
        else:
            box = crop_box(*image.size, self.augment.crop_area, generator)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return functional.resized_crop(
            pixels, *box, [size, size], InterpolationMode.BICUBIC, antialias=True
        ).contiguous()


def member(path: Path, start: int, length: int) -> tuple[io.BytesIO, str]:
    """A file inside a tar file, and its name in an error message.

    Args:
        path: the tar file.
        start: position of the first byte.
        length: number of bytes.

    Raises:
        SpikformerError: the tar file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            file.seek(int(start))
            return io.BytesIO(file.read(int(length))), f"{path} (bytes {start} to {start + length})"
    except OSError as error:
        raise SpikformerError(f"cannot read {path}: {error.strerror}") from None


def crop_box(
    width: int, height: int, area: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """A random window with an aspect ratio of 3/4 to 4/3: top, left, height, width, in pixels.

    With an area of (1, 1) it is the whole picture, or the largest middle part within these ratios.

    Args:
        width: width of the picture, in pixels.
        height: height of the picture, in pixels.
        area: least and greatest area of the window, as a share of the picture's.
        generator: draws all random numbers, on the CPU.
    """
    for share, ratio, x, y in uniform(10, 4, generator=generator).tolist():
        size = width * height * (area[0] + (area[1] - area[0]) * share)
        aspect = (3 / 4) * (16 / 9) ** ratio
        wide, tall = round((size * aspect) ** 0.5), round((size / aspect) ** 0.5)
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(x * (width - wide + 1)), int(y * (height - tall + 1))
            return top, left, tall, wide
    wide, tall = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def check_size(image_size: int | None, default: int) -> int:
    """The image size asked for.

    Args:
        image_size: height and width, in pixels; None: the default.
        default: the default, in pixels.

    Raises:
        SpikformerError: below 8 pixels.
    """
    if image_size is not None and image_size < 8:
        raise SpikformerError(f"image_size={image_size}: give at least 8 pixels")
    return image_size or default


TAKEN = ("flip", "crop_padding", "crop_area", "randaugment", "erasing")  # settings that photographs take


def pictures(info: DatasetInfo, folder: Path, classes: list[str] | tuple[str, ...]) -> Pictures:
    """All images in class folders."""
    entries = listing(folder, classes, PICTURES)
    names = np.array(
        [os.fsencode(f"{name}/{file}") for name, files in zip(classes, entries, strict=True) for file in files]
    )
    targets = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(files) for files in entries]))
    return Pictures(folder, names, targets, info, None)


def part(
    whole: Pictures | Absent, indices: torch.Tensor, info: DatasetInfo, augment: Augment | None
) -> Pictures | Absent:
    """Some of the images, with augmentation."""
    if isinstance(whole, Absent):
        return whole
    ranges = None if whole.ranges is None else whole.ranges[indices.numpy()]
    return Pictures(whole.folder, whole.names[indices.numpy()], whole.targets[indices], info, augment, ranges)


def assemble(
    info: DatasetInfo,
    train: Pictures | Absent,
    test: Pictures | Absent,
    val: Pictures | Absent | None,
    augment: Augment | None,
    samples_per_class: int | None,
    split_seed: int | None,
    val_fraction: float | None,
) -> Splits:
    """Splits from whole parts: a validation set taken from training if there is none, and few samples of each class."""

    def some(whole: Split, share: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(whole, Absent):
            return torch.arange(0), torch.arange(0)
        return stratified_split(whole.targets, share, samples_per_class, split_seed)

    rest, held = some(train, val_fraction)
    if val is not None:
        val = part(val, some(val, None)[0], info, None)
    elif len(held):
        val = part(train, held, info, None)
    return Splits(info, part(train, rest, info, augment), val, part(test, some(test, None)[0], info, None))
