"""The network of inference: batch norms folded into the layers before them, neurons as plain lines, T unrolled.

It is a copy of the network itself, with other layers in the same places. Its ``forward`` is the network's, so every
attention and every option works, and its layers have the names that ``se.record`` gives them.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import MaskAttention, SpikingLinear, SpikingSelfAttention
from ..model import Spikformer, SpikingConv
from ..neurons import LIF, PLIF


def folded(weight: Tensor, bias: Tensor | None, bn: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """A layer and the batch norm behind it as one layer, in evaluation mode: weights ``[out, ...]``, bias ``[out]``."""
    assert bn.running_mean is not None and bn.running_var is not None  # evaluation mode needs them
    gain = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    before = bn.running_mean.double() - (0 if bias is None else bias.double())
    return weight.double() * gain.view(-1, *[1] * (weight.dim() - 1)), bn.bias.double() - before * gain


class UnrolledLIF(nn.Module):
    """``LIF`` in operations that every format has: multiply, add, compare. Step after step, without a loop in the file.

    Args:
        beta: the decay.
        threshold: the threshold of the membrane u.

    Shapes: current ``[T, ...]`` -> spikes ``[T, ...]``.
    """

    def __init__(self, beta: float, threshold: Any):
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def forward(self, current: Tensor) -> Tensor:
        u, spikes = current[0], [(current[0] >= self.threshold).to(current.dtype)]
        for t in range(1, len(current)):
            u = self.leak((1 - spikes[-1]) * u) + current[t]
            spikes.append((u >= self.threshold).to(current.dtype))
        return torch.stack(spikes)

    def leak(self, u: Tensor) -> Tensor:
        return self.beta * u


def layer_of(weight: Tensor, bias: Tensor) -> nn.Module:
    """A convolution or a linear layer of these weights, in float64."""
    layer: Any
    if weight.dim() == 4:
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=3, padding=1, dtype=torch.float64)
    else:
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.weight.data, layer.bias.data = weight.detach().contiguous(), bias.detach()
    return layer


def fold(model: Spikformer) -> Spikformer:
    """A copy of a network for inference, on the CPU, in float64: ``.float()`` makes the one that formats write.

    Args:
        model: the network; it stays as it is.
    """
    network = copy.deepcopy(model).cpu().double().requires_grad_(False)
    for module in list(network.modules()):
        layer: Any = module  # its parts become other classes
        if isinstance(module, SpikingConv):
            layer.conv = layer_of(*folded(module.conv.weight, module.conv.bias, module.bn))
        elif isinstance(module, SpikingLinear):
            layer.linear = layer_of(*folded(module.linear.weight, module.linear.bias, module.bn))
        elif isinstance(module, SpikingSelfAttention):
            layer.qkv = layer_of(*folded(module.qkv.weight, module.qkv.bias, module.bn))
            if not isinstance(module, MaskAttention):
                scale = float(module.scale)
                del module.scale  # it may be a parameter
                module.scale = scale
        if hasattr(module, "bn"):
            layer.bn = nn.Identity()
        for name, child in list(module.named_children()):
            if isinstance(child, LIF):
                threshold = child.v_threshold * child.tau if isinstance(child, PLIF) else float(child.threshold)
                setattr(module, name, UnrolledLIF(child.decay, threshold))
    return network.eval().requires_grad_(False)


def neuron_layers(model: Spikformer) -> dict[str, nn.Module]:
    """The neurons of a network, folded or not, by the name that ``se.record`` gives their layer, in its order."""
    return {
        name.removesuffix(".neuron"): module
        for name, module in model.named_modules()
        if isinstance(module, LIF | UnrolledLIF)
    }


@contextmanager
def watching(model: Spikformer) -> Iterator[dict[str, Tensor]]:
    """What the neurons fire inside the block, by layer: spikes ``[T, ...]``.

    Args:
        model: a network, folded or not.
    """
    spikes: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: spikes.__setitem__(name, output))
        for name, module in neuron_layers(model).items()
    ]
    try:
        yield spikes
    finally:
        for hook in hooks:
            hook.remove()


class Spying(nn.Module):
    """A folded network that answers with the logits and the spikes of every layer.

    Args:
        network: the folded network.
    """

    def __init__(self, network: Spikformer):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with watching(self.network) as spikes:
            return self.network(x), *spikes.values()
