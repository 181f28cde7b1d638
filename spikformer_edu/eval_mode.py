"""Put a network into the state that it is examined in: not compiled, in evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .errors import SpikformerError
from .model import Spikformer


def check_network(model: nn.Module) -> None:
    """Refuse wrappers around a network: they name its layers differently, or run code that ignores hooks.

    Args:
        model: what the caller passed as a network.

    Raises:
        SpikformerError: not a Spikformer.
    """
    if not isinstance(model, Spikformer):
        raise SpikformerError(
            f"{type(model).__name__} is no Spikformer: give the network itself, model.module of"
            " DistributedDataParallel, model._orig_mod of torch.compile"
        )


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run a network uncompiled inside the block: what ``model.compile()`` made ignores hooks that are added later."""
    compiled = {m: m._compiled_call_impl for m in model.modules() if m._compiled_call_impl is not None}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module, frozen ones too, is in its own mode again.

    A module has one mode for all threads, so a network that several of them use must be in evaluation mode before.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
