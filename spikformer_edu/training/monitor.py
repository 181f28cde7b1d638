"""Watch a network while it trains: firing rates, gradients, TensorBoard."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import SpikformerError
from ..eval_mode import eager
from ..layer_record import feature_rates
from ..model import Spikformer
from ..neurons import LIF
from ..record import layer_sources

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Rates:
    """Firing rate and dead features of every neuron layer during training, from one step in ``every``.

    Nothing is attached to the model on the other steps, and nothing waits for the device before ``pop``.

    Args:
        model: the network itself, not a wrapper around it. On the steps that are watched it runs without compilation.
        every: watch one training step in this many, beginning with the first of each epoch.

    Examples:
        >>> import torch, spikformer_edu as se
        >>> from spikformer_edu.training.monitor import Rates
        >>> model = se.load_pretrained("digits-2-64")
        >>> rates = Rates(model, every=2)
        >>> for images, labels in se.data.batches(se.data.load("digits").val, 90):
        ...     watched = rates.step()               # before the forward pass
        ...     logits = model(images)               # then backward pass and optimizer step
        >>> found = rates.pop()                      # {"sps.0": (rate, dead), ...}, and start again
        >>> all(0 < rate < 1 for rate, dead in found.values())
        True
    """

    def __init__(self, model: Spikformer, every: int = 8):
        if every < 1:
            raise SpikformerError(f"every={every}: watch one step in 1 or more")
        self.model, self.every = model, every
        self.layers = {name: module for name, module in layer_sources(model).items() if isinstance(module, LIF)}
        self.attached = ExitStack()
        self._start()

    def _start(self) -> None:
        self.steps = 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def step(self) -> bool:
        """Begin a training step; the result says whether it is watched."""
        self.close()
        watched = self.steps % self.every == 0
        if watched:
            self.attached.enter_context(eager(self.model))
            for name, module in self.layers.items():
                self.attached.callback(module.register_forward_hook(partial(self._count, name)).remove)
        self.steps += 1
        return watched

    def state_dict(self) -> dict[str, Any]:
        """The counts so far, for a checkpoint in the middle of an epoch."""
        return {"steps": self.steps, "sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Args:
            state: the result of ``state_dict``.
        """
        self.steps, self.sums, self.counts = state["steps"], dict(state["sums"]), dict(state["counts"])

    def close(self) -> None:
        """Remove all hooks from the model."""
        self.attached.close()

    @torch.no_grad()
    def _count(self, name: str, module: nn.Module, inputs: tuple[Tensor], spikes: Tensor) -> None:
        rates = feature_rates(name, spikes) / self.layers[name].levels  # of D binary steps, for ilif
        self.sums[name] = rates + self.sums.get(name, 0)
        self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self, mean: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, tuple[float, float]]:
        """Layer -> (firing rate, share of features that never fired), of the steps watched since the last ``pop``.

        Args:
            mean: function that takes the mean of a tensor over all processes; without one this process is alone.
        """
        self.close()
        found = {}
        for name, total in self.sums.items():
            total = mean(total)
            found[name] = float(total.mean()) / self.counts[name], float((total == 0).float().mean())
        self._start()
        return found


def firing_warning(rates: dict[str, tuple[float, float]], saturated: float = 0.95) -> str | None:
    """A line about silent and saturated layers, with what to try; None if there are none.

    Args:
        rates: the result of ``Rates.pop``.
        saturated: firing rate, from 0 to 1, from which on a layer counts as saturated.
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

    Args:
        folder: the run folder; the files go to its subfolder "tensorboard".

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


def gradient_norms(gradients: dict[str, Tensor]) -> dict[str, float]:
    """Norm of the gradient of a step, by part: a stage of the SPS, half a block, the head.

    Args:
        gradients: the gradients, by the name of the parameter.
    """
    squares: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        part = ".".join(name.split(".")[: {"sps": 2, "blocks": 3}.get(name.split(".")[0], 1)])
        squares[part] = squares.get(part, 0) + gradient.float().square().sum()
    return {part: float(square.sqrt()) for part, square in squares.items()}
