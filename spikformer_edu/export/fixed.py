"""A trained network in integers: weights of 8 or 16 bits, a reference input, every spike and the logits as ``.npz``.

The dump is made by the network's own ``forward``: integers take the places of the weights, in float64, where sums of
integers are exact. ``fixed_point.py`` computes it again in numpy's integers, and must agree to the bit.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..atomic import write_file
from ..attention import SpikingLinear, SpikingSelfAttention
from ..errors import SpikformerError
from ..model import Spikformer, SpikingConv
from .check import Exported, answers, compare
from .fixed_point import differences
from .folded import Spying, UnrolledLIF, fold, neuron_layers, watching

BITS = {8: 32, 16: 48}
"""Widths of the weights, each with the width of the registers that hold membranes, biases and thresholds."""
FRACTION = 8  # bits of a membrane below one step of the weights: a leak of one half loses the last of them
DUMPED = 2  # inputs


class IntegerLIF(UnrolledLIF):
    """The neuron in whole numbers: u <- floor(u / 2) + current, a spike at u >= threshold.

    Args:
        threshold: integers, of a shape that fits the currents.
    """

    def __init__(self, threshold: Tensor):
        super().__init__(0.5, threshold)

    def leak(self, u: Tensor) -> Tensor:
        return torch.floor(u / 2)


class IntegerHead(nn.Module):
    """Logits as integers, from sums over tokens and time in place of the mean.

    Args:
        weight: integers ``[K, D]``, as float64.
        bias: integers ``[K]``, as float64.
        count: numbers in a mean, T N.
    """

    def __init__(self, weight: Tensor, bias: Tensor, count: int):
        super().__init__()
        self.weight, self.bias, self.count = weight, bias, count

    def forward(self, mean: Tensor) -> Tensor:
        return torch.round(mean * self.count) @ self.weight.t() + self.bias  # rounding gives the exact sum back


class Integer(nn.Module):
    """A Spikformer in integers; ``arrays`` is what a dump says of it.

    Args:
        model: the network.
        inputs: inputs of the size and range that it will see: images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``.
        bits: width of the weights and of the input.

    Attributes:
        network: the network, with integers in the places of its weights.
        arrays: weights, biases, thresholds and scales by layer.
        step: what one unit of the integer input means.
        unit: what one unit of a logit means.

    Shapes: images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``, real -> logits ``[B, K]``, real.

    Raises:
        SpikformerError: an attention or a decay that integers cannot say.
    """

    def __init__(self, model: Spikformer, inputs: Tensor, bits: int):
        super().__init__()
        config = model.config
        if config.attention != "ssa":
            raise SpikformerError(
                f"attention={config.attention!r}: fixed has spiking self-attention only, so it needs attention='ssa'"
            )
        if config.residual != "spike":
            raise SpikformerError("residual='membrane' adds real numbers: fixed needs residual='spike'")
        self.network = fold(model)
        self.arrays: dict[str, Any] = {}
        self.largest, self.room = 2 ** (bits - 1) - 1, BITS[bits] - 2
        for name, module in neuron_layers(self.network).items():
            if isinstance(module, UnrolledLIF) and module.beta != 0.5:
                raise SpikformerError(f"{name} decays by {module.beta:g}: fixed halves with a shift, so tau must be 2")
        # A power of two that holds every input seen here; inputs beyond are clipped.
        self.step = 2.0 ** float(torch.ceil(torch.log2(inputs.abs().max().clamp_min(1e-6)))) / 2 ** (bits - 1)
        for name, module in list(self.network.named_modules()):
            layer: Any = module  # its parts become other classes
            if isinstance(module, SpikingConv):
                threshold = self.replace(name, layer.conv, layer.neuron, self.step if name == "sps.0" else 1.0)
                layer.neuron = IntegerLIF(threshold[:, None, None])
            elif isinstance(module, SpikingLinear):
                layer.neuron = IntegerLIF(self.replace(name, layer.linear, layer.neuron))
            elif isinstance(module, SpikingSelfAttention):
                self.replace_attention(name, module)
        steps = inputs.shape[0] if inputs.dim() == 5 else config.time_steps
        count = steps * inputs.shape[-1] * inputs.shape[-2] // config.patch_size**2
        body: Any = self.network
        head = body.head
        scale = float(head.weight.abs().max()) / self.largest  # one for all classes: logits must be comparable
        weight, bias = torch.round(head.weight / scale), torch.round(head.bias / scale * count)
        body.head = IntegerHead(weight, bias, count)
        self.keep("head", weight=weight, bias=bias)
        self.unit = scale / count

    def keep(self, name: str, **arrays: Tensor) -> None:
        for kind, array in arrays.items():
            narrow, wide = (np.int8, np.int32) if self.room < 32 else (np.int16, np.int64)
            dtype = narrow if kind == "weight" else np.float64 if kind == "scale" else wide
            self.arrays[f"{name}.{kind}"] = array.numpy().astype(dtype)

    def replace(
        self, name: str, layer: Any, neuron: UnrolledLIF, step: float = 1.0, parts: Sequence[str] = ("",)
    ) -> Tensor:
        """Put integers into a layer, one scale an output; gives the thresholds in the same units."""
        scale = layer.weight.flatten(1).abs().amax(1) / self.largest
        bound = layer.bias.abs().clamp_min(neuron.threshold)  # a silent output has tiny weights
        scale = scale.maximum(bound * 2.0 ** (FRACTION - self.room) / step)  # so that both fit, with a bit to spare
        weight = torch.round(layer.weight / scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        unit = scale * step / 2**FRACTION  # of a membrane
        bias, threshold = torch.round(layer.bias / unit), torch.round(neuron.threshold / unit)
        layer.weight.data, layer.bias.data = weight * 2**FRACTION, bias
        made = {"weight": weight, "bias": bias, "threshold": threshold, "scale": scale}
        for n, part in enumerate(parts):
            self.keep(name + part, **{kind: array.chunk(len(parts))[n] for kind, array in made.items()})
        return threshold

    def replace_attention(self, name: str, module: Any) -> None:
        """Q, K and V fire in integers; Q K^T V counts, so that its scale moves into the threshold."""
        thresholds = self.replace(name, module.qkv, module.q, parts=(".q", ".k", ".v")).chunk(3)
        for part, threshold in zip("qkv", thresholds, strict=True):
            setattr(module, part, IntegerLIF(threshold.view(module.heads, 1, -1)))
        threshold = torch.round(torch.tensor(module.attn.threshold / module.scale * 2**FRACTION, dtype=torch.float64))
        module.attn, module.scale = IntegerLIF(threshold), float(2**FRACTION)
        self.keep(name + ".attn", threshold=threshold)

    def quantised(self, inputs: Tensor) -> Tensor:
        """Inputs as integers, in float64."""
        return torch.round(inputs.double() / self.step).clamp(-self.largest - 1, self.largest)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(self.quantised(inputs)) * self.unit


def write_fixed(model: Spikformer, out: Path, inputs: Tensor, bits: int) -> Exported:
    """Write ``model-8bit.npz`` or ``model-16bit.npz``, and compute it again with ``fixed_point.py``.

    Args:
        model: the network.
        out: the folder.
        inputs: what the rounding is checked with, images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``; the first are
            the reference input.
        bits: width of the weights and of the input.

    Raises:
        SpikformerError: an attention or a decay that integers cannot say, or the folder cannot be written.
    """
    integer, config = Integer(model, inputs, bits), model.config
    spying = Spying(integer.network)
    given = integer.quantised(inputs[..., :DUMPED, :, :, :])
    with torch.no_grad(), watching(integer.network) as spikes:
        logits = integer.network(given)
    meta = {
        "bits": bits,
        "fraction": FRACTION,
        "dim": config.dim,
        "depth": config.depth,
        "heads": config.heads,
        "time_steps": config.time_steps,
        "pool": list(config.pool),
        "qk_pool": config.qk_pool,
        "input_step": integer.step,
        "logit_step": integer.unit,
    }
    arrays = integer.arrays | {f"spikes/{name}": fired.numpy().astype(np.uint8) for name, fired in spikes.items()}
    arrays |= {"meta": np.array(json.dumps(meta)), "input": given.numpy().astype(np.int16)}
    arrays["logits"] = logits.numpy().astype(np.int64)
    if wrong := differences(arrays):
        raise AssertionError(f"the two ways to compute integers differ, at {bits} bits: {wrong}")
    path = out / f"model-{bits}bit.npz"
    write_file(path, lambda file: np.savez_compressed(file, **arrays))
    ours, theirs = answers(Spying(model), inputs), answers(lambda x: spying(integer.quantised(x)), inputs)
    what = f"integers of {bits} bits, which fixed_point.py computes to the same bit"
    return Exported([path], what, compare(f"rounded to {bits} bits", ours, theirs))
