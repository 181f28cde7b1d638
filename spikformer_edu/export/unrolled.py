"""A network of I-LIF neurons as it infers: every integer becomes D binary steps, and every weight sees T D of them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import SpikingLinear, SpikingSelfAttention
from ..errors import SpikformerError
from ..eval_mode import check_network
from ..model import Spikformer, SpikingConv
from ..neurons import ILIF
from .folded import folded, layer_of


class BinarySteps(nn.Module):
    """An ``ILIF`` that is sent binary steps and sends them: it adds D of them up, and says n as n ones and D - n zeros.

    Args:
        neuron: the neuron.
        bias: what the layer before it adds once in D steps; None: nothing.
        steps: number of steps that belong together: D, or 1 where numbers come in.

    Shapes: current ``[T steps, ...]`` -> spikes ``[T D, ...]`` in {0, 1}.
    """

    def __init__(self, neuron: ILIF, bias: Tensor | None = None, steps: int = 1):
        super().__init__()
        self.neuron, self.bias, self.steps = neuron, bias, steps

    def forward(self, current: Tensor) -> Tensor:
        x = current.unflatten(0, (-1, self.steps)).sum(1)  # [T, ...]
        integers = self.neuron(x if self.bias is None else x + self.bias)
        counted = torch.arange(1, self.neuron.levels + 1).to(integers).view(-1, *[1] * (integers.dim() - 1))
        return (integers.unsqueeze(1) >= counted).to(integers.dtype).flatten(0, 1)


class AddedUp(nn.Module):
    """The sum of every D steps: ``[T D, ...]`` -> ``[T, ...]``."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def forward(self, spikes: Tensor) -> Tensor:
        return spikes.unflatten(0, (-1, self.steps)).sum(1)


class OnceInSteps(nn.Module):
    """A bias added in the first of every D steps: where a current joins the residual stream, and no neuron follows."""

    def __init__(self, bias: Tensor, steps: int):
        super().__init__()
        self.bias, self.steps = bias, steps

    def forward(self, current: Tensor) -> Tensor:
        first = torch.zeros(self.steps).to(current)
        first[0] = 1.0
        grouped = current.unflatten(0, (-1, self.steps))  # [T, D, ...]
        return (grouped + first.view(-1, *[1] * (current.dim() - 1)) * self.bias).flatten(0, 1)


class Times(nn.Module):
    """x D: the head takes a mean over T D steps, and the network's over T."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def unroll(model: Spikformer) -> Spikformer:
    """The network of binary steps that a network of I-LIF neurons stands for, in evaluation mode.

    Every neuron gives 0 or 1 in each of T D steps, and every weight but the first sees these (sums of them, where
    residuals add spikes). Q, K and V are added up over D steps before their products, because products of binary steps
    are not the product of their sums. Logits are the network's: to the bit where all weights and norms are multiples of
    a power of two, else to rounding.

    Args:
        model: a network with neuron="ilif" and attention="ssa"; it stays as it is.

    Raises:
        SpikformerError: another kind of neuron, or of attention.

    Source: X. Luo et al., ECCV 2024, arXiv 2407.20708.
    """
    check_network(model)
    for option, needed in (("neuron", "ilif"), ("attention", "ssa")):
        if (given := getattr(model.config, option)) != needed:
            raise SpikformerError(f"{option}={given!r} has no integers to unroll: give a network with {needed!r}")
    network, levels = copy.deepcopy(model).requires_grad_(False).eval(), model.config.levels
    dtype, device = model.head.weight.dtype, model.head.weight.device
    for name, module in list(network.named_modules()):
        part: Any = module  # its parts become other classes
        if isinstance(module, SpikingConv | SpikingLinear | SpikingSelfAttention):
            kind = {SpikingConv: "conv", SpikingLinear: "linear"}.get(type(module), "qkv")
            layer = getattr(part, kind)
            weight, bias = (x.to(device, dtype) for x in folded(layer.weight, layer.bias, part.bn))
            setattr(part, kind, layer_of(weight, bias).to(device, dtype))
            part.bn = nn.Identity()
            if name == "sps.0":  # it sees the image itself
                part.neuron = BinarySteps(part.neuron)
                continue
            getattr(part, kind).bias = None
            if kind == "qkv":
                for neuron, own in zip("qkv", bias.view(3, part.heads, 1, -1), strict=True):
                    steps = BinarySteps(getattr(part, neuron), own, levels)
                    setattr(part, neuron, nn.Sequential(steps, AddedUp(levels)))
                part.attn = BinarySteps(part.attn)
            else:
                bias = bias[:, None, None] if kind == "conv" else bias
                silent = isinstance(part.neuron, nn.Identity)  # its current joins a stream of membranes
                part.neuron = OnceInSteps(bias, levels) if silent else BinarySteps(part.neuron, bias, levels)
    for parent, name in [(b, n) for b in network.blocks for n in ("attn_in", "mlp_in")] + [(network, "head_in")]:
        if isinstance(neuron := getattr(parent, name), ILIF):
            setattr(parent, name, BinarySteps(neuron, steps=levels))
    network.head_in = nn.Sequential(network.head_in, Times(levels))
    return network.requires_grad_(False).eval()
