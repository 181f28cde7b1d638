"""What was recorded of one layer, and the summary of all."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from .errors import SpikformerError
from .table import Table


@dataclass
class LayerRecord:
    """What one layer did in the last forward pass.

    Attributes:
        name: name of the layer, as in ``layer_names(model)``.
        kind: "spikes" ({0, 1}, a neuron layer), "scores" (Q K^T s) or "residual" (integers; real with membranes).
        values: what the layer gave, ``[T, B, ...]``; of dtype bool for spikes recorded with ``compact=True``.
        membranes: membrane potential H[t] before the reset, shaped as ``values``, in the paper's units; None unless
            recorded with ``membranes=True``.
        v_threshold: threshold V_th of the neurons, in the paper's units; None where there are no neurons.
        dtype: dtype that the layer computed in; None: that of ``values``.
        gradients: dL/dH, shaped as ``values``; the backward pass fills it in.
        watched: whether the backward pass fills in ``gradients``: recorded with ``gradients=True``.
        tau: by what a current is divided when it charges the membrane: the time constant of lif and plif, in time
            steps, 1 for if and ilif; None where there are no neurons.
        beta: what a step leaves of the membrane potential; None where there are no neurons.
        levels: largest number of spikes of a neuron in a time step: 1, or D of ilif.
        scale: factor s of scores; None elsewhere.
        pooled: whether these are scores of Q and K after the max-pool over tokens.
    """

    name: str
    kind: str
    values: Tensor
    membranes: Tensor | None = None
    v_threshold: float | None = None
    dtype: torch.dtype | None = None
    gradients: Tensor | None = None
    watched: bool = False
    tau: float | None = None
    beta: float | None = None
    levels: int = 1
    scale: float | None = None
    pooled: bool = False

    @property
    def spikes(self) -> Tensor:
        """Spikes ``[T, B, ...]``, {0, 1} (0 to D of ilif), in the dtype that the layer computed in.

        Raises:
            SpikformerError: the layer holds no neurons.
        """
        if self.kind != "spikes":
            raise SpikformerError(f"layer {self.name!r} holds no spikes but {self.kind}: read .values")
        return self.values if self.dtype is None else self.values.to(self.dtype)

    @property
    def membrane(self) -> Tensor:
        """Membrane potential H ``[T, B, ...]`` before the reset, real, in units where the threshold is ``v_threshold``.

        Raises:
            SpikformerError: the layer holds no neurons, or membranes were not recorded.
        """
        if self.kind != "spikes":
            raise SpikformerError(f"layer {self.name!r} has no membrane: it holds {self.kind}, not neurons")
        if self.membranes is None:
            raise SpikformerError(f"membranes of {self.name!r} were not recorded: use record(model, membranes=True)")
        return self.membranes

    @property
    def gradient(self) -> Tensor:
        """dL/dH ``[T, B, ...]``, real: how the loss changes with the membrane potential, later steps included.

        It is there once ``loss.backward()`` has run, inside the block or after it. L is the number that was
        differentiated: a loss that an AMP scaler has multiplied gives gradients multiplied by the same factor.

        Raises:
            SpikformerError: the layer holds no neurons, gradients were not recorded, or no backward pass has run.
        """
        if self.kind != "spikes":
            raise SpikformerError(f"layer {self.name!r} has no membrane: it holds {self.kind}, not neurons")
        if not self.watched:
            raise SpikformerError(f"gradients of {self.name!r} were not recorded: use record(model, gradients=True)")
        if self.gradients is None:
            raise SpikformerError(
                f"no gradient has reached {self.name!r}: call loss.backward() on a forward pass without torch.no_grad()"
            )
        return self.gradients


def feature_rates(name: str, spikes: Tensor) -> Tensor:
    """Mean number of spikes of each feature of a layer, its firing rate: ``[T, B, ...]`` -> ``[features]``, float32.

    A feature is a channel of SPS or an output of a linear layer: all its positions share the same weights.

    Args:
        name: name of the layer, as in ``layer_names(model)``.
        spikes: spikes of the layer, ``[T, B, ...]``.
    """
    positions: tuple[int, ...]
    if name.startswith("sps."):
        positions = (0, 1, 3, 4)  # [T, B, C, H, W]
    else:
        positions = (0, 1, 3) if spikes.dim() == 5 else (0, 1, 2)  # [T, B, h, N, d] or [T, B, N, D]
    total = spikes.sum(positions, dtype=torch.float32).flatten()
    return total / (spikes.numel() // total.numel())  # not mean(): on a GPU the mean of ones may be 0.99999994


class LayerSummary(TypedDict):
    """One line of a ``Summary``."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    values: str
    rate: float | None
    dead: float | None
    saturated: float | None


class Summary(list[LayerSummary]):
    """What ``Recording.summary`` returns: a list of dicts, one a layer, that prints as a table.

    Keys: ``layer``, ``kind``, ``shape`` (time first), ``values`` (the value set, as text), ``rate`` (share of ones
    among the spikes), ``dead`` and ``saturated`` (shares of features, see ``feature_rates``, that never fired and that
    always fired in the recording). The last three are None where there are no neurons.
    """

    def table(self) -> Table:
        """The same as a table."""

        def percent(value: float | None) -> str:
            return "" if value is None else f"{100 * value:.1f} %"

        rows = []
        for line in self:
            shape = " x ".join(map(str, line["shape"]))
            shares = [percent(share) for share in (line["rate"], line["dead"], line["saturated"])]
            rows.append((line["layer"], shape, line["values"], *shares))
        return Table(("layer", "shape [T, B, ...]", "values", "rate", "dead", "saturated"), rows, "lllr")

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__


def summarise(record: LayerRecord) -> LayerSummary:
    rate = dead = saturated = None
    if record.kind == "spikes":
        per_feature = feature_rates(record.name, record.values) / record.levels  # of D binary steps
        rate = float(per_feature.mean())
        dead = float((per_feature == 0).float().mean())
        saturated = float((per_feature == 1).float().mean())
    return LayerSummary(
        layer=record.name,
        kind=record.kind,
        shape=tuple(record.values.shape),
        values=value_set(record.values),
        rate=rate,
        dead=dead,
        saturated=saturated,
    )


def value_set(values: Tensor) -> str:
    """The set that the values lie in, as text: "{0, 1}", "integers 0 to 5", "multiples of 0.125, ...", "real, ..."."""
    if values.dtype == torch.bool:
        return "{0, 1}"
    values = values if values.dtype == torch.float64 else values.float()  # 128 times a half may be too large for it
    low, high = float(values.min()), float(values.max())
    for power in range(8):  # a grid finer than 1/128 counts as real
        scaled = values * 2**power
        if torch.equal(scaled, scaled.round()):
            if power:
                return f"multiples of {2**-power:g}, {low:g} to {high:g}"
            return "{0, 1}" if low >= 0 and high <= 1 else f"integers {low:g} to {high:g}"
    return f"real, {low:.3g} to {high:.3g}"
