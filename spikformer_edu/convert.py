"""Load official checkpoints: three layouts of the authors' code, one set of names here.

The authors' three models hold the same numbers in different layers: the linear maps of the tokens
are ``Linear`` (CIFAR), ``Conv1d`` and ``Conv2d`` with kernel 1 (ImageNet) or ``Conv1d`` alone
(CIFAR10-DVS), and Q, K, V are three layers and three batch norms, here one of each.
"""

import argparse
import os
import re
import warnings
from typing import Any

import torch
from torch import Tensor

from .atomic import expand
from .attention import MaskAttention
from .errors import SpikformerError
from .model import Spikformer

# Our names, rewritten from top to bottom into official ones; {qkv} stands for three names, {op} is linear or conv.
RULES = (
    (r"^sps\.0\.(conv|bn)", r"patch_embed.proj_\1"),
    (r"^sps\.(\d)\.(conv|bn)", r"patch_embed.proj_\2\1"),
    (r"^sps\.rpe\.", "patch_embed.rpe_"),
    (r"^blocks\.", "block."),
    (r"\.attn\.qkv\.", ".attn.{qkv}_{op}."),
    (r"\.attn\.bn\.", ".attn.{qkv}_bn."),
    (r"\.attn\.proj\.", ".attn.proj_"),
    (r"\.mlp\.hidden\.", ".mlp.fc1_"),
    (r"\.mlp\.out\.", ".mlp.fc2_"),
    (r"_linear\.", "_{op}."),
)
# What the official code builds and never calls.
NEVER_CALLED = re.compile(r"(block\.\d+\.norm[12]|norm)\.(weight|bias)|pos_embed")


def load_official(model: Spikformer, source: str | os.PathLike[str] | dict[str, Any]) -> Spikformer:
    """Load a checkpoint of the official code into a model, in place.

    The layers that the official code builds and never calls (``norm1``, ``norm2``, ``norm``, ``pos_embed``) are
    dropped by name; every other tensor must have a place in the model. No checkpoint holds heads, scale, T or pooling:
    they come from the model's preset. The official code of the DVS128 Gesture network, the one that learns its scale,
    is not published; for a model with ``learn_scale=True`` ``attn.scale`` is therefore missing, which is an error.

    Args:
        model: a network with the checkpoint's sizes.
        source: the file, read without running any pickled code, or the state dict itself. Either may be wrapped as
            ``{"state_dict": ...}``, ``{"model": ...}`` or, if it holds nothing but the mean of the weights,
            ``{"state_dict_ema": ...}`` or ``{"model_ema": ...}``. All names may start with what a wrapper puts before
            them, such as ``module.`` (DistributedDataParallel), ``_orig_mod.`` (torch.compile), ``model.`` (Lightning).

    Returns:
        The model. It is unchanged when anything is wrong.

    Raises:
        SpikformerError: a file that is missing or is no checkpoint; a tensor that is missing, left over or of
            another shape; a model of another family: masks for attention, membrane residuals, other neurons.

    Source: the official models of CIFAR, ImageNet and CIFAR10-DVS (``q_linear``, ``q_conv``, ``fc1_conv``, ...).
    """
    official = _unwrap(source if isinstance(source, dict) else _read(source))
    for option, there in (("residual", "spike"), ("neuron", "lif")):
        if (here := getattr(model.config, option)) != there:
            raise SpikformerError(
                f"the official code has {option}={there!r}, the model {here!r}: build it with {there!r}"
            )
    if isinstance(model.blocks[0].attn, MaskAttention):
        raise SpikformerError(f"the official code has no attention={model.config.attention!r}: build it with 'ssa'")
    own = model.state_dict()
    op = "linear" if any("_linear." in name for name in official) else "conv"
    names = {name: _official_names(name, op) for name in own}

    known = {name for group in names.values() for name in group}
    for name in official:
        if name not in known and not NEVER_CALLED.fullmatch(name):
            raise SpikformerError(f"the checkpoint's {name!r} has no place in the model{_remedy(model, official)}")
    loaded = {}
    for name, group in names.items():
        parts = []
        for part in group:
            if part not in official:
                raise SpikformerError(f"the checkpoint has no {part!r}{_remedy(model, official)}")
            value, shape = official[part], list(own[name].shape)
            if len(group) == 3 and shape:
                shape[0] //= 3  # ours is Q, K, V in one
            if len(shape) == 2 < value.dim() and value.shape[2:].numel() == 1:
                value = value.flatten(1)  # a convolution with kernel 1 is a linear map
            if list(value.shape) != shape:
                raise SpikformerError(
                    f"the checkpoint's {part!r} has shape {list(official[part].shape)}, the model needs {shape}"
                    f"{_remedy(model, official)}"
                )
            parts.append(value)
        loaded[name] = torch.cat(parts) if parts[0].dim() else parts[0]  # scalars count batches, the same in Q, K, V
    model.load_state_dict(loaded)
    return model


def _official_names(name: str, op: str) -> list[str]:
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    letters = "qkv" if "{qkv}" in name else "q"
    return [name.format(qkv=letter, op=op) for letter in letters]


def _read(path: str | os.PathLike[str]) -> object:
    """What is in a file: tensors and plain containers, and the ``Namespace`` in which timm keeps a run's arguments."""
    path = expand(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old or foreign formats: what cannot be read is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SpikformerError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
    except Exception as error:  # every foreign format fails in its own way
        code = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds pickled code ({code[1]}), which is never run" if code else "truncated, or another format"
        raise SpikformerError(
            f"{path} is no checkpoint of tensors: {why}; fetch it again, or save its state_dict() with torch.save"
        ) from None


def _unwrap(checkpoint: object) -> dict[str, Tensor]:
    keys = ("state_dict", "model", "state_dict_ema", "model_ema")
    while isinstance(checkpoint, dict):
        inside = next((checkpoint[key] for key in keys if isinstance(checkpoint.get(key), dict)), None)
        if inside is None:
            break
        checkpoint = inside
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise SpikformerError("the checkpoint holds no state dict: give names and tensors, or {'state_dict': them}")
    for name, value in checkpoint.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise SpikformerError(f"the checkpoint's {name!r} is no named tensor: give the model's state dict")
    return without_prefix(checkpoint, "patch_embed.proj_conv.weight", "the checkpoint")


def without_prefix(state: dict[str, Tensor], first: str, source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A state dict without what DistributedDataParallel, torch.compile or another wrapper put before every name.

    Args:
        state: names and tensors.
        first: a name that the network itself has.
        source: what an error line names.

    Raises:
        SpikformerError: the state dict holds several networks, or more than one network.
    """
    prefixes = [name.removesuffix(first) for name in state if f".{name}".endswith(f".{first}")]
    if len(prefixes) > 1:
        named = " and ".join(repr(prefix + first) for prefix in prefixes)
        raise SpikformerError(f"{source} holds {named}, so several networks: give the state dict of one")
    prefix = prefixes[0] if prefixes else ""
    for name in state:
        if not name.startswith(prefix):
            raise SpikformerError(
                f"{source} holds {name!r} beside the network {prefix!r}: give the state dict of the network alone"
            )
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _remedy(model: Spikformer, official: dict[str, Tensor]) -> str:
    """The end of an error line: in which options checkpoint and model differ, as far as the tensors show it."""
    found: dict[str, object] = dict(learn_scale=any(name.endswith(".attn.scale") for name in official))
    found |= dict(mlp_ratio=4)  # fixed in the official code
    for option, name, axis in (
        ("in_channels", "patch_embed.proj_conv.weight", 1),
        ("dim", "patch_embed.proj_conv3.weight", 0),
        ("num_classes", "head.weight", 0),
    ):
        if name in official and official[name].dim() > axis:
            found[option] = official[name].shape[axis]
    if blocks := {name.split(".")[1] for name in official if re.match(r"block\.\d+\.", name)}:
        found["depth"] = len(blocks)
        found["qkv_bias"] = any(re.search(r"\.attn\.q_(linear|conv)\.bias$", name) for name in official)
    differ = {option: value for option, value in found.items() if value != getattr(model.config, option)}
    if not blocks or not differ:
        return ": is it a checkpoint of the official Spikformer code?"
    theirs, ours = (
        ", ".join(f"{option}={value}" for option, value in options.items())
        for options in (differ, {option: getattr(model.config, option) for option in differ})
    )
    return f": the checkpoint has {theirs}, the model {ours}; build the model with {theirs}"
