"""Pictures of everything that a recording holds; each function returns ``(fig, ax)`` and works without a display.

``ax`` is one axes, or an array or dict of axes where the figure has several panels.
"""

from . import matplotlib_backend  # noqa: F401, before anything that imports matplotlib
from .attention import attention, attention_matrix, attention_over_time
from .energy import energy
from .events import events, events_animation
from .landscape import landscape
from .layers import firing_rates, membrane, membranes, raster
from .network import atlas, logits, value_sets
from .neuron import neuron, neuron_animation
from .product_order import multiplication_order
from .samples import samples
from .show import show
from .ssa import ssa, ssa_animation
from .training import training, training_layers

__all__ = [
    "atlas",
    "attention",
    "attention_matrix",
    "attention_over_time",
    "energy",
    "events",
    "events_animation",
    "firing_rates",
    "landscape",
    "logits",
    "membrane",
    "membranes",
    "multiplication_order",
    "neuron",
    "neuron_animation",
    "raster",
    "samples",
    "show",
    "ssa",
    "ssa_animation",
    "training",
    "training_layers",
    "value_sets",
]
