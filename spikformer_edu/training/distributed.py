"""Where to compute."""

import torch

from ..errors import SpikformerError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU when there is one.

    Raises:
        SpikformerError: unknown device, or none such on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise SpikformerError(f"device {name!r} is not to be had on this machine: use --device auto or cpu") from None
    return device
