"""RandAugment by the batch, with separate operations for every image."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .transfer import constant, send

Generator = torch.Generator


def warp(x: Tensor, matrix: list[Tensor], fill: Tensor | float = 0.0, mode: str = "bicubic") -> Tensor:
    """Transform each image by an affine map of its own.

    Args:
        x: images ``[B, C, H, W]``.
        matrix: a, b, c, d, e, f, each ``[B]``: a pixel (x, y) from the centre of the result shows what is at (a x + b y
            + c, d x + e y + f) from the centre of the image, in pixels.
        fill: value of the pixels outside the image.
        mode: interpolation, "bicubic", "bilinear" or "nearest".
    """
    height, width = x.shape[-2:]
    a, b, c, d, e, f = matrix
    theta = torch.stack([a, b * height / width, 2 * c / width, d * width / height, e, 2 * f / height], 1).view(-1, 2, 3)
    grid = F.affine_grid(send(theta, x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x.float() - fill, grid, mode=mode, padding_mode="zeros", align_corners=False) + fill


def rand_augment(
    pixels: Tensor,
    operations: str,
    count: int,
    magnitude: float,
    magnitude_std: float,
    mean: tuple[float, ...],
    generator: Generator,
) -> Tensor:
    """RandAugment (Cubuk et al., 2020) as the official code uses it: strength ~ N(magnitude, std), probability 1/2.

    Args:
        pixels: ``[B, C, H, W]``, uint8.
        operations: a key of ``OPERATIONS``.
        count: operations an image.
        magnitude: mean strength, 0 to 10.
        magnitude_std: standard deviation of the strength.
        mean: mean of each channel, in [0, 1]; it fills the pixels that move in from outside an image.
        generator: draws all random numbers, on the CPU.

    Returns:
        ``[B, C, H, W]``, uint8.
    """
    names = OPERATIONS[operations]
    fill = constant(tuple(float(round(255 * m)) for m in mean), pixels.device).view(-1, 1, 1)
    pixels = pixels.clone()
    for _ in range(count):
        kind = torch.randint(2 * len(names), (len(pixels),), generator=generator)  # the upper half: unchanged
        level = torch.randn(len(pixels), generator=generator, dtype=torch.float32)
        level = (level * magnitude_std + magnitude).clamp(0, 10) / 10
        sign = torch.randint(2, (len(pixels),), generator=generator).float() * 2 - 1
        for number, name in enumerate(names):
            chosen = (kind == number).nonzero().squeeze(1)
            if len(chosen):
                here = send(chosen, pixels.device)
                pixels[here] = _OPERATION[name](pixels[here], level[chosen], sign[chosen], fill)
    return pixels


# Images, strength in [0, 1] and sign of each, colour of what moves in -> images.
Operation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _kernel(name: str) -> Operation:
    def apply(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        return getattr(functional, name)(x)

    return apply


def _geometry(matrix: Callable[[Tensor, Tensor, int, int], list[Tensor]]) -> Operation:
    def apply(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
        moved = warp(x, matrix(level * sign, torch.zeros_like(level), *x.shape[-2:]), fill)
        return moved.round_().clamp_(0, 255).byte()

    return apply


def _enhance(degenerate: Callable[[Tensor], Tensor]) -> Operation:
    """Away from, or towards, an image without colour, contrast, brightness or edges: factor 1 +- 0.9 level."""

    def apply(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
        factor = send((1 + 0.9 * level * sign).clamp_min(0.1).view(-1, 1, 1, 1), x.device)
        plain = degenerate(x).float()
        return (plain + factor * (x.float() - plain)).round_().clamp_(0, 255).byte()

    return apply


def _pixelwise(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    def apply(x: Tensor, level: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
        return function(x.int(), send(level.view(-1, 1, 1, 1), x.device)).byte()

    return apply


def _rotate(v: Tensor, zero: Tensor, height: int, width: int) -> list[Tensor]:
    cos, sin = torch.cos(v * math.radians(30)), torch.sin(v * math.radians(30))
    return [cos, -sin, zero, sin, cos, zero]


def _grey(x: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.rgb_to_grayscale(x.float(), num_output_channels=3).byte()


def _blurred(x: Tensor) -> Tensor:
    """torchvision's ``adjust_sharpness(x, 0.0)``, which would wait for its kernel to reach the device."""
    height, width = x.shape[-2:]
    if height <= 2 or width <= 2:
        return x
    a, b = 1 / 13, 5 / 13
    kernel = constant((a, a, a, a, b, a, a, a, a), x.device).view(1, 1, 3, 3).expand(x.shape[1], 1, 3, 3)
    blurred = x.float()
    blurred[..., 1:-1, 1:-1] = F.conv2d(blurred, kernel, groups=x.shape[1]).round_()  # the rim stays
    return blurred.clamp_(0, 255).byte()


# Strengths are those of timm's "increasing" set. Its shear turns about the upper left corner, hence the third term.
_OPERATION = {
    "equalize": _kernel("equalize"),
    "rotate": _geometry(_rotate),
    "shear_x": _geometry(lambda v, z, h, w: [z + 1, 0.3 * v, 0.15 * v * h, z, z + 1, z]),
    "shift_x": _geometry(lambda v, z, h, w: [z + 1, z, 0.45 * v * w, z, z + 1, z]),
    "shift_y": _geometry(lambda v, z, h, w: [z + 1, z, z, z, z + 1, 0.45 * v * h]),
    "shear_y": _geometry(lambda v, z, h, w: [z + 1, z, z, 0.3 * v, z + 1, 0.15 * v * w]),
    "auto_contrast": _kernel("autocontrast"),
    "invert": _kernel("invert"),
    "posterize": _pixelwise(lambda x, level: x & (255 << (4 + (4 * level).int()))),
    "solarize": _pixelwise(lambda x, level: torch.where(x < 256 - (256 * level).int(), x, 255 - x)),
    "solarize_add": _pixelwise(
        lambda x, level: torch.where(x < 128, (x + (110 * level).int()).clamp_max(255), x),
    ),
    "color": _enhance(_grey),
    "contrast": _enhance(lambda x: _grey(x)[:, :1].float().mean((1, 2, 3), keepdim=True).round()),
    "brightness": _enhance(torch.zeros_like),
    "sharpness": _enhance(_blurred),
}


OPERATIONS: dict[str, tuple[str, ...]] = {"few": tuple(_OPERATION)[:5], "all": tuple(_OPERATION)}
