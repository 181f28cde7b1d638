"""Pictures of everything that a recording holds; each function returns ``(fig, ax)`` and works without a display.

``ax`` is the one axes, or the array (the dict) of them where the figure has several panels.
"""

from .attention import attention, attention_over_time
from .energy import energy
from .layers import firing_rates, membrane, raster
from .network import atlas, value_sets
from .neuron import neuron, neuron_animation
from .ssa import landscape, multiplication_order, ssa, ssa_animation
from .training import training

__all__ = [
    "atlas",
    "attention",
    "attention_over_time",
    "energy",
    "firing_rates",
    "landscape",
    "membrane",
    "multiplication_order",
    "neuron",
    "neuron_animation",
    "raster",
    "ssa",
    "ssa_animation",
    "training",
    "value_sets",
]
