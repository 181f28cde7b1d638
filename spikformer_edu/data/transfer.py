"""Small tensors on their way to the device where a batch is made; nothing here waits for that device."""

from functools import cache

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, copied while Python goes on.

    A GPU copies by itself only from memory that the system cannot move (pinned memory).

    Args:
        tensor: the tensor, on the CPU.
        device: where it is needed.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers that never change, ``[n]``, float32, on a device; they are sent there once.

    Args:
        values: the numbers.
        device: where they are needed.
    """
    return torch.tensor(values, dtype=torch.float32, device="cpu").to(device)
