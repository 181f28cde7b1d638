"""What a network can read: every other input ends in one line that says what to give instead."""

from typing import Any

import torch
from torch import Tensor

from .errors import SpikformerError


def check_input(model: Any, x: Tensor) -> None:
    """Refuse an input that a ``Spikformer`` cannot read.

    Args:
        model: the network.
        x: images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``.

    Raises:
        SpikformerError: as ``Spikformer`` says.
    """
    c, p = model.config.in_channels, model.config.patch_size
    if not isinstance(x, Tensor):
        raise SpikformerError(f"input is a {type(x).__name__}: give a tensor, torch.as_tensor(x)")
    if x.dim() not in (4, 5):
        raise SpikformerError(f"input of shape {list(x.shape)}: give images [B, C, H, W] or frames [T, B, C, H, W]")
    if not x.is_floating_point():
        raise SpikformerError(f"input is {x.dtype}: give floating point numbers, for images x.float() / 255")
    if x.shape[-3] != c:
        raise SpikformerError(f"input has {x.shape[-3]} channels, this model takes {c}: [..., {c}, H, W]")
    if 0 in x.shape[:-3]:
        what = "T = 0 time steps" if x.dim() == 5 and x.shape[0] == 0 else "an empty batch"
        raise SpikformerError(f"input of shape {list(x.shape)} has {what}: give at least one")
    if x.shape[-2] % p or x.shape[-1] % p or 0 in x.shape[-2:]:
        raise SpikformerError(
            f"image of {x.shape[-2]} x {x.shape[-1]}: height and width must be multiples of the patch size {p}"
        )
    if torch.compiler.is_compiling():  # the rest is not checked in compiled code
        return
    if x.dtype != model.head.weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise SpikformerError(f"input is {x.dtype}, the network {model.head.weight.dtype}: give both the same dtype")
    if x.is_cuda and (model.training or torch.cuda.is_current_stream_capturing()):
        return  # reading the answer would make every step wait for the GPU
    if not torch.isfinite(x).all():  # a NaN never fires, so it would vanish silently in the first neuron
        raise SpikformerError("input holds NaN or inf: check the data and their normalisation")
