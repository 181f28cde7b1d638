"""See what every layer did: spikes, membrane potentials and their gradients, attention scores, integers, logits."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import index
from threading import Lock, get_ident
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import SpikingSelfAttention
from .errors import SpikformerError, nearest
from .model import Block, Spikformer
from .modes import check_network, eager
from .neurons import LIF
from .table import Table


@dataclass
class LayerRecord:
    """What one layer did in the last forward pass.

    Attributes:
        name: name of the layer, as in ``layer_names(model)``.
        kind: "spikes" ({0, 1}, a neuron layer), "scores" (Q K^T s) or "residual" (integers).
        values: what the layer gave, ``[T, B, ...]``; of dtype bool for spikes recorded with ``compact=True``.
        membranes: membrane potential H[t] before the reset, shaped as ``values``, in the paper's units; None unless
            recorded with ``membranes=True``.
        v_threshold: threshold V_th of the neurons, in the paper's units; None where there are no neurons.
        dtype: dtype that the layer computed in; None: that of ``values``.
        gradients: dL/dH, shaped as ``values``; the backward pass fills it in.
        watched: whether the backward pass fills in ``gradients``: recorded with ``gradients=True``.
        tau: membrane time constant, in time steps; None where there are no neurons.
        beta: decay of the membrane, 1 - 1/tau unless learned; None where there are no neurons.
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
    scale: float | None = None
    pooled: bool = False

    @property
    def spikes(self) -> Tensor:
        """Spikes ``[T, B, ...]``, {0, 1}, in the dtype that the layer computed in.

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
    """Firing rate of each feature of a layer: ``[T, B, ...]`` -> ``[features]``, float32.

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


def layer_names(model: Spikformer) -> list[str]:
    """Names of everything that can be recorded, in network order.

    Every neuron layer (``sps.0``, ..., ``blocks.0.attn.q``, ...), and two that are not neurons:
    ``blocks.i.attn.scores`` and ``blocks.i.residual``.

    Args:
        model: the network.

    Raises:
        SpikformerError: not a Spikformer, but a wrapper around one.
    """
    return list(_sources(model))


def _sources(model: Spikformer) -> dict[str, nn.Module]:
    """Recordable name -> the module it comes from."""
    check_network(model)
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
    """The records of one forward pass, by layer name, in network order; made by ``record``.

    Args:
        names: names of the layers to record, in network order.
    """

    def __init__(self, names: list[str]):
        self._names = names
        self._records: dict[str, LayerRecord] = {}
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """Logits of every time step ``[T, B, K]``; their mean over T is the model's output (the head is linear).

        Raises:
            SpikformerError: the model was not called inside the block.
        """
        if self._logits is None:
            raise SpikformerError(
                "nothing was recorded: call the model inside the `with record(...)` block, in the thread that opened it"
            )
        return self._logits

    def __getitem__(self, name: str) -> LayerRecord:
        if name not in self._names:
            raise SpikformerError(f"unknown layer {name!r}: {nearest(name, self._names)}")
        if name not in self._records:
            self.logits  # noqa: B018  raises if the model was not called at all
            raise SpikformerError(f"{name!r} made nothing: its attention has a forward or a mix of its own")
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if name in self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def layers(self, kind: str | None = None) -> list[LayerRecord]:
        """All records in network order, or those of one kind.

        Args:
            kind: "spikes", "scores" or "residual"; None: all.
        """
        return [self._records[name] for name in self if kind in (None, self._records[name].kind)]

    def summary(self) -> "Summary":
        """One line a layer, in network order: shape, value set, firing rate, dead and saturated features.

        Raises:
            SpikformerError: nothing was recorded.
        """
        if not self._records:
            raise SpikformerError("the recording is empty: call the model inside the `with record(...)` block")
        return Summary(_summarise(record) for record in self.layers())


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


def _summarise(record: LayerRecord) -> LayerSummary:
    rate = dead = saturated = None
    if record.kind == "spikes":
        per_feature = feature_rates(record.name, record.values)
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


class record:
    """Record what the layers of a model do inside a ``with`` block; the last forward pass is kept.

    The model's output does not change, and nothing stays on the model afterwards. Recording works in training, in
    evaluation and under autocast; the tensors that it keeps are detached. A block keeps what its own thread computes:
    other threads may call or record the model at the same time, but only one block at a time records membranes.

    Args:
        model: the network.
        membranes: also keep membrane potentials (twice the memory).
        layers: names of the layers to record, see ``layer_names(model)``; None: all.
        gradients: keep dL/dH of every neuron in the backward pass; ``.gradient`` returns it.
        samples: numbers of the samples of the batch to keep, in this order; None: all. B is then their number, in the
            logits too.
        compact: keep spikes as bool, a quarter of the memory of float32; ``.spikes`` returns them in their own dtype.

    Raises:
        SpikformerError: not a Spikformer, an unknown layer (the line names the nearest), no samples, membranes that are
            being recorded already, or, when the model is called, a sample that the batch does not have.

    Examples:
        >>> import torch, spikformer_edu as se
        >>> model = se.load_pretrained("digits-2-64")
        >>> with se.record(model, membranes=True) as rec:
        ...     logits = model(torch.rand(2, 1, 32, 32))
        >>> rec["blocks.0.attn.q"].spikes.shape      # [T, B, h, N, d]
        torch.Size([4, 2, 4, 64, 16])
        >>> neuron = rec["blocks.0.attn.attn"]
        >>> bool((neuron.spikes == (neuron.membrane >= neuron.v_threshold)).all())
        True
    """

    def __init__(
        self,
        model: Spikformer,
        membranes: bool = False,
        layers: Iterable[str] | None = None,
        *,
        gradients: bool = False,
        samples: Iterable[int] | None = None,
        compact: bool = False,
    ):
        sources = _sources(model)
        if isinstance(layers, str):
            layers = [layers]
        chosen = list(sources) if layers is None else list(layers)
        for name in chosen:
            if name not in sources:
                raise SpikformerError(f"unknown layer {name!r}: {nearest(name, sources)}")
        self.model, self.membranes, self.gradients, self.compact = model, membranes, gradients, compact
        self.samples = None if samples is None else _numbers(samples)
        self.sources = {name: module for name, module in sources.items() if name in chosen}

    def __enter__(self) -> Recording:
        self.recording, self.thread = Recording(list(self.sources)), get_ident()
        self._potentials: dict[str, Tensor] = {}
        self.attached = ExitStack()
        if self.membranes:
            self._listen_to_membranes()
        self.attached.enter_context(eager(self.model))
        self.attached.callback(self.model.blocks[-1].register_forward_hook(self._here(self._keep_logits)).remove)
        for name, module in self.sources.items():
            if isinstance(module, SpikingSelfAttention):
                listener = self._here(partial(self._keep_scores, name, module))
                module.on_mix.append(listener)
                self.attached.callback(module.on_mix.remove, listener)
            else:
                kind = "residual" if isinstance(module, Block) else "spikes"
                hook = self._here(partial(self._keep, name, kind))
                self.attached.callback(module.register_forward_hook(hook).remove)
        return self.recording

    def __exit__(self, *exc: object) -> None:
        self.attached.close()

    def _listen_to_membranes(self) -> None:
        neurons = {name: module for name, module in self.sources.items() if isinstance(module, LIF)}
        with _one_at_a_time:
            if any(neuron.on_membranes is not None for neuron in neurons.values()):
                raise SpikformerError("membranes of this model are being recorded already: leave that block first")
            for name, neuron in neurons.items():
                neuron.on_membranes = self._here(partial(self._keep_membranes, name, neuron.tau))
                self.attached.callback(setattr, neuron, "on_membranes", None)

    def _here(self, keep: Callable[..., None]) -> Callable[..., None]:
        """A function that calls ``keep``, but only in the thread that opened the block."""

        def listener(*args: object) -> None:
            if get_ident() == self.thread:
                keep(*args)

        return listener

    def _chosen(self, values: Tensor) -> Tensor:
        """The samples to keep of ``[T, B, ...]``."""
        if self.samples is None:
            return values.detach()
        batch = values.shape[1]
        for i in self.samples.tolist():
            if not 0 <= i < batch:
                raise SpikformerError(f"samples={self.samples.tolist()}: the batch holds {batch}, numbered from 0")
        return values.detach().index_select(1, self.samples.to(values.device))

    def _keep_logits(self, module: nn.Module, inputs: tuple[Tensor], tokens: Tensor) -> None:
        head = self.model.head  # used as numbers, not called: hooks on the head must not run
        # Detached, or autocast would keep a copy of the weight without history, and the model's own call would use it.
        weight, bias = head.weight.detach(), head.bias.detach()
        with torch.no_grad():
            self.recording._logits = F.linear(self._chosen(tokens).mean(2), weight, bias)  # [T, B, K]

    def _keep_membranes(self, name: str, tau: float, u: Tensor) -> None:
        self._potentials[name] = self._chosen(u) / tau  # H = u / tau

    def _keep_gradient(self, record: LayerRecord, tau: float, gradient: Tensor) -> None:
        # X[t] enters as u[t] = ... + X[t], so dL/du = dL/dX; and dL/dH = dL/du du/dH with u = tau H.
        record.gradients = self._chosen(gradient) * tau

    def _keep(self, name: str, kind: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        record = self.recording._records[name] = LayerRecord(name, kind, self._chosen(output))
        if not isinstance(module, LIF):
            return
        record.membranes, record.v_threshold = self._potentials.pop(name, None), module.v_threshold
        record.tau, record.beta = module.tau, float(module.beta.detach().clamp(0, 1))  # as Leaky clamps it
        if self.compact:
            record.values, record.dtype = record.values.bool(), record.values.dtype
        record.watched = self.gradients
        if record.watched and inputs[0].requires_grad:
            inputs[0].register_hook(partial(self._keep_gradient, record, module.tau))

    def _keep_scores(
        self, name: str, module: SpikingSelfAttention, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor
    ) -> None:
        q, k, v, mixed = (self._chosen(x) for x in (q, k, v, mixed))
        with torch.no_grad():
            scores = module.scores(q, k)
            own_mix = type(module).mix is not SpikingSelfAttention.mix or "mix" in vars(module)
            if own_mix and not _alike(scores @ v, mixed):
                return  # mix() computed something else from Q, K and V, without these scores
        scale = module.scale.item() if isinstance(module.scale, Tensor) else module.scale
        pooled = module.pool is not None
        self.recording._records[name] = LayerRecord(name, "scores", scores, scale=scale, pooled=pooled)


_one_at_a_time = Lock()  # a neuron has room for one listener


def _alike(x: Tensor, y: Tensor) -> bool:
    """Equal except for rounding, which depends on the order of a product."""
    if x.shape != y.shape:
        return False
    return float((x - y).abs().max()) <= torch.finfo(y.dtype).eps ** 0.5 * float(y.abs().max())


def _numbers(samples: Iterable[int]) -> Tensor:
    """Numbers of samples, as a tensor."""
    try:
        numbers = [index(i) for i in samples]
    except TypeError:
        numbers = []
    if not numbers:
        raise SpikformerError(f"samples={samples!r}: give a list of whole numbers with at least one in it, such as [0]")
    return torch.tensor(numbers)
