"""A linear map of tokens, as the convolution of one pixel that it equals where the processor computes that faster.

PyTorch gives float32 matrix products to MKL, and float32 convolutions to oneDNN. On AMD's processors MKL leaves AVX-512
unused, so that oneDNN is faster: 1.1 to 1.3 times on a Zen 4, twice on a newer one. In bfloat16 both are oneDNN's, and
the convolution is a little faster without a backward pass only. Tokens ``[..., D]``, which lie one after the other, are
images of D channels in channels_last without a copy. The numbers differ in their rounding only.
"""

import math
import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CPUINFO = Path("/proc/cpuinfo")
# Measured on a Zen 4: with fewer images oneDNN takes slower code, and small products cost more to start than they save.
TALLEST, SHORTEST = 64, 16  # tokens an image
FEWEST = 16  # images
SMALLEST = 2**28  # multiply-accumulates


@cache
def convolution_is_faster() -> bool:
    """Whether this machine computes large products faster as a convolution: an AMD processor with AVX-512."""
    try:
        name = CPUINFO.read_text(errors="replace")
    except OSError:  # not Linux
        name = platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()  # with AVX2 oneDNN's backward pass is slow
    return "AuthenticAMD" in name and capability == "AVX512" and torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """``nn.Linear``, computed as a convolution where that is faster: large products on some processors.

    Attributes:
        as_convolution: whether large products on a CPU are convolutions (float32, and bfloat16 without gradients);
            None: where this machine is faster so.

    Shapes: ``[..., D]`` -> ``[..., K]``.
    """

    as_convolution: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.pays(x):
            return super().forward(x)
        # [images, D, height, 1] in channels_last -> [images, K, height, 1]
        images = x.reshape(-1, height_of(x), 1, x.shape[-1]).permute(0, 3, 1, 2)
        y = F.conv2d(images, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)

    def pays(self, x: Tensor) -> bool:
        """Whether to take the convolution for an input."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # such code is made for other sizes as well
            return False
        if x.device.type != "cpu" or x.dtype == torch.float64:
            return False
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if precision != torch.float32 and (precision != torch.bfloat16 or torch.is_grad_enabled()):
            return False
        tokens, height = x.shape[:-1].numel(), height_of(x)
        large = height >= SHORTEST and tokens >= FEWEST * height and tokens * self.weight.numel() >= SMALLEST
        return large and (convolution_is_faster() if self.as_convolution is None else self.as_convolution)


def height_of(x: Tensor) -> int:
    """Tokens an image, for tokens ``[..., D]``."""
    return math.gcd(x.shape[:-1].numel(), TALLEST)


def compute_as(convolution: bool, *models: nn.Module | None) -> None:
    """Compute the linear maps of networks in one way, whatever this machine is faster at.

    Args:
        convolution: whether large products on a CPU are convolutions.
        models: the networks; None is left out.
    """
    for model in models:
        for module in model.modules() if model is not None else ():
            if isinstance(module, Linear):
                module.as_convolution = convolution
