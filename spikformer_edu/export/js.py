"""A trained network as two plain files that any language can read; the pages in the browser read them.

``model.json`` describes the network and says where each tensor lies in ``model.bin``, which holds only little-endian
numbers of half precision (float16). Batch norms are folded into the layers before them, so that a layer is one matrix
and one bias. Outputs are the last axis of every weight: an input spike adds one contiguous row to the currents of the
next layer.

Numbers of half precision are multiples of 2^-24, so in double precision every sum of them is exact: the order of the
additions does not matter, and any language finds the same spikes. The first layer's pixels are rounded for this, too.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic import write_file
from ..attention import SpikingLinear, SpikingSelfAttention
from ..data import DatasetInfo, info
from ..errors import SpikformerError, printable
from ..model import Spikformer, SpikingConv
from ..neurons import LIF
from ..training import Run
from .check import Exported
from .folded import folded

PIXEL_GRID = 2**12  # normalised pixels are multiples of 1 / PIXEL_GRID


def in_half(model: Spikformer) -> Spikformer:
    """The network that the files hold, as a copy in float64: batch norms folded, then rounded to half precision.

    Args:
        model: the network; it stays as it is.
    """
    network = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)

    def put(layer: nn.Conv2d | nn.Linear, norm: nn.modules.batchnorm._BatchNorm) -> None:
        weight, bias = folded(layer.weight, layer.bias, norm)
        layer.weight.copy_(weight.half())
        if layer.bias is not None:
            layer.bias.zero_()
        norm.reset_parameters()  # mean 0, variance 1: what is left of the norm is the bias
        norm.eps = 0.0
        norm.bias.copy_(bias.half())

    for module in network.modules():
        if isinstance(module, SpikingConv):
            put(module.conv, module.bn)
        elif isinstance(module, SpikingSelfAttention):
            put(module.qkv, module.bn)
        elif isinstance(module, SpikingLinear):
            put(module.linear, module.bn)
    network.head.weight.copy_(network.head.weight.half())
    network.head.bias.copy_(network.head.bias.half())
    return network


def on_grid(image: Tensor) -> Tensor:
    """Normalised pixels as the files' network reads them, float64: rounded to the grid, ties upwards.

    Args:
        image: pixels of any shape.
    """
    return torch.floor(image.double() * PIXEL_GRID + 0.5) / PIXEL_GRID


def tensors(model: Spikformer) -> dict[str, Tensor]:
    """Every weight that inference needs, by layer: convolutions ``[in, 3, 3, out]``, linear layers ``[in, out]``."""
    found: dict[str, Tensor] = {}

    def add(name: str, weight: Tensor, bias: Tensor) -> None:
        outputs_last = weight.permute(1, 2, 3, 0) if weight.dim() == 4 else weight.t()
        found[name + ".weight"], found[name + ".bias"] = outputs_last, bias

    for name, module in model.named_modules():
        if isinstance(module, SpikingConv):
            add(name, *folded(module.conv.weight, None, module.bn))
        elif isinstance(module, SpikingSelfAttention):
            add(name + ".qkv", *folded(module.qkv.weight, module.qkv.bias, module.bn))
        elif isinstance(module, SpikingLinear):
            add(name, *folded(module.linear.weight, module.linear.bias, module.bn))
    add("head", model.head.weight, model.head.bias)
    return {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in found.items()}


def header(run: Run, facts: DatasetInfo) -> dict[str, Any]:
    """The content of ``model.json``, without the positions of the tensors."""
    model, config = run.model, run.model.config
    neurons = {
        layer.removesuffix(".neuron"): {"beta": float(module.beta), "threshold": float(module.threshold)}
        for layer, module in model.named_modules()
        if isinstance(module, LIF)
    }
    return {
        "name": printable(run.folder.name),
        "data": printable(run.data.title),  # says so where they are simulated
        "dim": config.dim,
        "depth": config.depth,
        "heads": config.heads,
        "timeSteps": config.time_steps,
        "pool": list(config.pool),
        "scale": [float(m.scale) for m in model.modules() if isinstance(m, SpikingSelfAttention)],
        "neurons": neurons,  # of u = tau H: u[t] = beta u[t-1] (1 - S[t-1]) + X[t], a spike where u >= threshold
        "channels": config.in_channels,
        "imageSize": run.recipe.image_size or facts.image_size,
        "events": facts.time_steps is not None,  # frames of event counts: they bring their own T and go in as they are
        "pixelGrid": PIXEL_GRID,  # normalised pixels are rounded to multiples of 1 / pixelGrid
        "mean": list(facts.mean),
        "std": list(facts.std),
        "classes": [printable(name) for name in run.data.classes],
    }


def write_js(run: Run, out: Path) -> Exported:
    """Write a trained network as ``model.json`` and ``model.bin``.

    Args:
        run: the trained network.
        out: folder for the two files; made if need be.

    Raises:
        SpikformerError: a network that is not the paper's SSA; or a full disk.
    """
    config, facts = run.model.config, info(run.recipe.dataset)
    if config.attention != "ssa" or config.qk_pool:
        raise SpikformerError(
            f"{run.folder}: attention is {config.attention!r}{' with qk_pool' if config.qk_pool else ''}; format js"
            " has plain spiking self-attention only, so give a run with attention='ssa' and no qk_pool"
        )
    if config.residual != "spike" or config.neuron not in ("lif", "if"):
        raise SpikformerError(
            f"{run.folder}: residual={config.residual!r}, neuron={config.neuron!r}; format js has residual='spike' and"
            " neurons lif and if only"
        )
    content, offset, chunks = header(run, facts), 0, []
    content["tensors"] = {}
    for name, tensor in tensors(in_half(run.model)).items():
        if not tensor.isfinite().all():
            raise SpikformerError(f"{run.folder}: {name} has numbers above 65504, the largest of half precision")
        content["tensors"][name] = {"offset": offset, "shape": list(tensor.shape)}  # in numbers, not bytes
        offset += tensor.numel()
        chunks.append(tensor.numpy().astype("<f2").tobytes())
    paths = [out / "model.json", out / "model.bin"]
    write_file(paths[0], lambda file: file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8"))
    write_file(paths[1], lambda file: file.write_bytes(b"".join(chunks)))
    return Exported(paths, "weights for the browser", None, "the pages of the site run them")
