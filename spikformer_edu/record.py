"""See what every layer did: spikes, membrane potentials and their gradients, attention scores, integers, logits."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from operator import index
from threading import Lock, get_ident

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import MaskAttention, SpikingSelfAttention
from .errors import SpikformerError, nearest
from .eval_mode import check_network, eager
from .layer_record import LayerRecord, Summary, summarise
from .model import Block, Spikformer
from .neurons import LIF


def layer_names(model: Spikformer) -> list[str]:
    """Names of everything that can be recorded, in network order.

    Every neuron layer (``sps.0``, ..., ``blocks.0.attn.q``, ...), and two that are not neurons:
    ``blocks.i.attn.scores``, where the attention makes scores, and ``blocks.i.residual``.

    Args:
        model: the network.

    Raises:
        SpikformerError: not a Spikformer, but a wrapper around one.
    """
    return list(layer_sources(model))


def layer_sources(model: Spikformer) -> dict[str, nn.Module]:
    """Recordable name -> the module it comes from."""
    check_network(model)
    sources: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            attention = model.get_submodule(name.rpartition(".")[0])
            if name.endswith(".attn.attn") and not isinstance(attention, MaskAttention):
                sources[name.removesuffix("attn") + "scores"] = attention  # scores are made just before this neuron
            sources[name.removesuffix(".neuron")] = module
    ordered: dict[str, nn.Module] = {}
    for i, block in enumerate(model.blocks):
        ordered |= {name: module for name, module in sources.items() if name.startswith(("sps.", f"blocks.{i}."))}
        ordered[f"blocks.{i}.residual"] = block
    return ordered | sources


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
        return Summary(summarise(record) for record in self.layers())


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
        compact: keep spikes in a byte each, a quarter of the memory of float32; ``.spikes`` returns them in their own
            dtype.

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
        sources = layer_sources(model)
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
        self.attached.callback(self.model.head_in.register_forward_hook(self._here(self._keep_logits)).remove)
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
        record.tau, record.beta, record.levels = module.tau, module.decay, module.levels
        if self.compact:
            small = torch.bool if module.levels == 1 else torch.uint8
            record.values, record.dtype = record.values.to(small), record.values.dtype
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
