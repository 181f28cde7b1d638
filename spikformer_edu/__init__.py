"""Spiking self-attention and Spikformer (Zhou et al., ICLR 2023), step by step on snnTorch neurons.

Examples:
    >>> import torch, spikformer_edu as se
    >>> model = se.load_pretrained("digits-2-64")
    >>> with se.record(model) as rec:
    ...     logits = model(torch.rand(1, 1, 32, 32))
    >>> rec["blocks.0.attn.q"].spikes.shape        # [T, B, h, N, d]
    torch.Size([4, 1, 4, 64, 16])
"""

from importlib import import_module
from types import ModuleType

from .attention import ATTENTION
from .check import check
from .convert import load_official
from .energy import energy
from .errors import SpikformerError
from .exercise import exercise
from .export import export
from .export.model_folder import from_pretrained, save_pretrained
from .intervene import intervene
from .model import Spikformer, SpikformerConfig
from .neurons import LIF, Sigmoid
from .presets import list_models, preset, spikformer
from .record import layer_names, record
from .training.checkpoint import load_pretrained, load_run
from .version import __version__

__all__ = [
    "ATTENTION",
    "LIF",
    "Sigmoid",
    "Spikformer",
    "SpikformerConfig",
    "SpikformerError",
    "check",
    "data",
    "energy",
    "exercise",
    "intervene",
    "export",
    "from_pretrained",
    "layer_names",
    "list_models",
    "load_official",
    "load_pretrained",
    "load_run",
    "plot",
    "preset",
    "record",
    "save_pretrained",
    "spikformer",
    "training",
    "__version__",
]


def __getattr__(name: str) -> ModuleType:
    if name == "plot":  # brings matplotlib along: only for those who draw
        return import_module(".plot", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
