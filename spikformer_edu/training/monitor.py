"""What is watched while a network trains: firing rates, gradients, TensorBoard."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import SpikformerError
from ..model import Spikformer
from ..modes import eager
from ..neurons import LIF
from ..record import _sources, feature_rates

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Rates:
    """Firing rate and dead features of every neuron layer during training, from one step in ``every``.

    Nothing is attached to the model on the other steps, and nothing waits for the device before ``pop``.

    Args:
        model: the network itself, not a wrapper around it. On the steps watched it runs as it is without compilation.
        every: watch one training step in so many, the first of each epoch included.

    Examples:
        >>> rates = Rates(model)
        >>> for images, labels in batches:
        ...     rates.step()                 # before the forward pass
        ...     ...                          # forward, backward, optimizer
        >>> rates.pop()                      # {"sps.0": (rate, dead), ...} of the epoch, and start again
    """

    def __init__(self, model: Spikformer, every: int = 8):
        if every < 1:
            raise SpikformerError(f"every={every}: watch one step in 1 or more")
        self.model, self.every = model, every
        self.layers = {name: module for name, module in _sources(model).items() if isinstance(module, LIF)}
        self.attached = ExitStack()
        self._start()

    def _start(self) -> None:
        self.steps = 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def step(self) -> bool:
        """Say that a training step begins; true when it is watched."""
        self.close()
        watched = self.steps % self.every == 0
        if watched:
            self.attached.enter_context(eager(self.model))
            for name, module in self.layers.items():
                self.attached.callback(module.register_forward_hook(partial(self._count, name)).remove)
        self.steps += 1
        return watched

    def state_dict(self) -> dict[str, Any]:
        """What has been counted so far, for a checkpoint in the middle of an epoch."""
        return {"steps": self.steps, "sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self.steps, self.sums, self.counts = state["steps"], dict(state["sums"]), dict(state["counts"])

    def close(self) -> None:
        """Leave nothing on the model."""
        self.attached.close()

    @torch.no_grad()
    def _count(self, name: str, module: nn.Module, inputs: tuple[Tensor], spikes: Tensor) -> None:
        self.sums[name] = feature_rates(name, spikes) + self.sums.get(name, 0)
        self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self, mean: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, tuple[float, float]]:
        """Layer -> (firing rate, share of features that never fired), of the steps watched since the last ``pop``.

        Args:
            mean: takes the mean over all processes that train together.
        """
        self.close()
        found = {}
        for name, total in self.sums.items():
            total = mean(total)
            found[name] = float(total.mean()) / self.counts[name], float((total == 0).float().mean())
        self._start()
        return found


def firing_warning(rates: dict[str, tuple[float, float]], saturated: float = 0.95) -> str | None:
    """One line when layers are silent or saturated, with what to try; None when all is well.

    Args:
        rates: what ``Rates.pop`` gave.
        saturated: firing rate from which a layer counts as saturated.
    """
    silent = [name for name, (rate, _) in rates.items() if rate == 0]
    full = [name for name, (rate, _) in rates.items() if rate >= saturated]
    said = []
    if silent:
        said.append(
            f"never fires: {', '.join(silent)} (nothing reaches V_th: look at its batch norm and learning rate)"
        )
    if full:
        said.append(f"fires nearly always: {', '.join(full)} (and so says nothing: lower the learning rate)")
    return "; ".join(said) or None


def open_tensorboard(folder: Path) -> "SummaryWriter":
    """A writer of TensorBoard's files.

    Raises:
        SpikformerError: TensorBoard is not installed, or does not fit the packages beside it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:  # a protobuf that does not fit raises a TypeError
        reason = " ".join(str(error).split())[:100]
        raise SpikformerError(
            f"--tensorboard needs TensorBoard ({reason}): pip install --upgrade tensorboard, or leave it out"
        ) from None
    return SummaryWriter(folder / "tensorboard")


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Norm of the gradient that the last step left behind, by part: a stage of the SPS, half a block, the head."""
    squares: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        part = ".".join(name.split(".")[: {"sps": 2, "blocks": 3}.get(name.split(".")[0], 1)])
        if p.grad is not None:
            squares[part] = squares.get(part, 0) + p.grad.float().square().sum()
    return {part: float(square.sqrt()) for part, square in squares.items()}
