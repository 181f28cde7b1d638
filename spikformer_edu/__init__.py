"""Spiking self-attention and Spikformer (Zhou et al., ICLR 2023), step by step on snnTorch neurons."""

from .attention import ATTENTION
from .errors import SpikformerError
from .model import Spikformer, SpikformerConfig
from .neurons import LIF, Sigmoid
from .presets import list_models, preset, spikformer
from .record import layer_names, record

__version__ = "0.1.0"

__all__ = [
    "ATTENTION",
    "LIF",
    "Sigmoid",
    "Spikformer",
    "SpikformerConfig",
    "SpikformerError",
    "layer_names",
    "list_models",
    "preset",
    "record",
    "spikformer",
]
