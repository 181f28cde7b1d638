"""See what every layer did: spikes, membrane potentials, attention scores, the integer residual stream."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .attention import SpikingSelfAttention
from .errors import SpikformerError, nearest
from .model import Block, Spikformer
from .neurons import LIF


@dataclass
class LayerRecord:
    """What one layer did in the last forward pass.

    Attributes:
        name: the layer, as in ``layer_names(model)``.
        kind: "spikes" ({0, 1}, a neuron), "scores" (Q K^T s) or "residual" (integers).
        values: ``[T, B, ...]``, time first.
        membranes: H[t], the membrane potential when it meets the threshold, before the reset, in the paper's
            units; the shape of ``values``. None unless recorded with ``membranes=True``.
        v_threshold: the neuron's threshold in the paper's units; None where there is no neuron.
    """

    name: str
    kind: str
    values: Tensor
    membranes: Tensor | None = None
    v_threshold: float | None = None

    @property
    def spikes(self) -> Tensor:
        """Spikes ``[T, B, ...]``, {0, 1}.

        Raises:
            SpikformerError: the layer holds no neurons.
        """
        if self.kind != "spikes":
            raise SpikformerError(f"layer {self.name!r} holds no spikes but {self.kind}: read .values")
        return self.values

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


def layer_names(model: Spikformer) -> list[str]:
    """Names of everything that can be recorded, in network order.

    Every neuron layer (``sps.0``, ..., ``blocks.0.attn.q``, ...), and two that are not neurons:
    ``blocks.i.attn.scores`` and ``blocks.i.residual``.
    """
    return list(_sources(model))


def _sources(model: Spikformer) -> dict[str, nn.Module]:
    """Recordable name -> the module it comes from."""
    sources: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            if name.endswith(".attn.attn"):  # scores are made just before this neuron
                sources[name.removesuffix("attn") + "scores"] = model.get_submodule(name.removesuffix(".attn"))
            sources[name.removesuffix(".neuron")] = module
    ordered: dict[str, nn.Module] = {}
    for name, module in sources.items():
        ordered[name] = module
        if name.endswith(".mlp.out"):
            block = name.removesuffix(".mlp.out")
            ordered[block + ".residual"] = model.get_submodule(block)
    return ordered


class Recording:
    """The records of one forward pass, by layer name, in network order; made by ``record``."""

    def __init__(self, names: list[str]):
        self._names = names
        self._records: dict[str, LayerRecord] = {}

    def __getitem__(self, name: str) -> LayerRecord:
        if name not in self._names:
            raise SpikformerError(f"unknown layer {name!r}: {nearest(name, self._names)}")
        if name not in self._records:
            raise SpikformerError("nothing was recorded: call the model inside the `with record(...)` block")
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if name in self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def layers(self, kind: str | None = None) -> list[LayerRecord]:
        """All records in network order, or those of one kind: "spikes", "scores", "residual"."""
        return [self._records[name] for name in self if kind in (None, self._records[name].kind)]


class record:
    """Record what the layers of a model do inside a ``with`` block; the last forward pass is kept.

    Nothing is changed in the model's output, and nothing is left on the model afterwards.

    Args:
        model: the network.
        membranes: also keep membrane potentials (twice the memory).
        layers: names to record, all if None; see ``layer_names(model)``.

    Raises:
        SpikformerError: an unknown layer (the line names the nearest), or membranes that are being recorded already.

    Example:
        >>> with se.record(model, membranes=True) as rec:
        ...     model(images)
        >>> rec["blocks.0.attn.q"].spikes.shape      # [T, B, h, N, d]
    """

    def __init__(self, model: Spikformer, membranes: bool = False, layers: Iterable[str] | None = None):
        sources = _sources(model)
        chosen = list(sources) if layers is None else list(layers)
        for name in chosen:
            if name not in sources:
                raise SpikformerError(f"unknown layer {name!r}: {nearest(name, sources)}")
        self.membranes = membranes
        self.sources = {name: module for name, module in sources.items() if name in chosen}

    def __enter__(self) -> Recording:
        if self.membranes and any(isinstance(m, LIF) and m.on_membranes is not None for m in self.sources.values()):
            raise SpikformerError("membranes of this model are being recorded already: leave that block first")
        self.recording = Recording(list(self.sources))
        self.handles = []
        for name, module in self.sources.items():
            if isinstance(module, SpikingSelfAttention):
                module.mix = partial(self._mix, name, module)
            else:
                kind = "residual" if isinstance(module, Block) else "spikes"
                self.handles.append(module.register_forward_hook(partial(self._keep, name, kind)))
                if self.membranes and isinstance(module, LIF):
                    module.on_membranes = partial(self._keep_membranes, name, module.tau)
        self._potentials: dict[str, Tensor] = {}
        return self.recording

    def __exit__(self, *exc) -> None:
        for handle in self.handles:
            handle.remove()
        for module in self.sources.values():
            if isinstance(module, SpikingSelfAttention):
                module.__dict__.pop("mix", None)
            elif isinstance(module, LIF) and self.membranes:
                module.on_membranes = None

    def _keep_membranes(self, name: str, tau: float, potentials: list[Tensor]) -> None:
        self._potentials[name] = torch.stack(potentials).detach() / tau  # H = u / tau

    def _keep(self, name: str, kind: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        threshold = module.v_threshold if kind == "spikes" else None
        self.recording._records[name] = LayerRecord(
            name, kind, output.detach(), self._potentials.pop(name, None), threshold
        )

    def _mix(self, name: str, module: SpikingSelfAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.recording._records[name] = LayerRecord(name, "scores", module.scores(q, k).detach())
        return type(module).mix(module, q, k, v)
