"""Change what a layer says, and let the network run on: the causal half of ``record``."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from .attention import SpikingSelfAttention
from .errors import SpikformerError, nearest
from .eval_mode import eager
from .model import Spikformer
from .record import layer_sources

Change = Callable[[Tensor], Tensor]


class intervene:
    """Replace what layers give inside a ``with`` block; everything behind them sees the replacement.

    Nothing stays on the model afterwards. Gradients flow through what the functions do. Only calls from the thread that
    opened the block are changed. Inside ``record``, or around it, the recording shows the replacement.

    Args:
        model: the network.
        changes: layer name, see ``layer_names(model)`` -> a function of what the layer gives that returns what it shall
            give. Spikes ``[T, B, ...]``: C, H, W in SPS, ``[T, B, h, N, d]`` for q, k, v and attn, ``[T, B, N, D]``
            elsewhere; scores ``[T, B, h, N, N]``; the residual stream ``[T, B, N, D]``.

    Raises:
        SpikformerError: not a Spikformer, an unknown layer (the line names the nearest), or, when the model is called,
            a function that returns another shape, dtype or device.

    Examples:
        >>> import torch, spikformer_edu as se
        >>> model = se.load_pretrained("digits-2-64").eval()
        >>> images = se.data.load("digits").test.fetch(torch.arange(4), None)[0]
        >>> def without_head_2(spikes):           # [T, B, h, N, d]
        ...     spikes = spikes.clone()
        ...     spikes[:, :, 2] = 0
        ...     return spikes
        >>> with torch.no_grad(), se.intervene(model, {"blocks.0.attn.attn": without_head_2}):
        ...     changed = model(images)
        >>> bool((changed != model(images)).any())
        True
    """

    def __init__(self, model: Spikformer, changes: Mapping[str, Change]):
        sources = layer_sources(model)
        for name, change in changes.items():
            if name not in sources:
                raise SpikformerError(f"unknown layer {name!r}: {nearest(name, sources)}")
            if not callable(change):
                raise SpikformerError(f"{name}: give a function of what the layer gives, not a {type(change).__name__}")
        self.model, self.changes = model, {name: (sources[name], change) for name, change in changes.items()}

    def __enter__(self) -> None:
        self.thread, self.attached = get_ident(), ExitStack()
        self.attached.enter_context(eager(self.model))
        for name, (module, change) in self.changes.items():
            if isinstance(module, SpikingSelfAttention):
                self._change_scores(name, module, change)
            else:
                self.attached.callback(module.register_forward_hook(self._hook(name, change)).remove)

    def __exit__(self, *exc: object) -> None:
        self.attached.close()

    def _hook(self, name: str, change: Change) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return self._changed(name, change, output) if get_ident() == self.thread else None

        return hook

    def _change_scores(self, name: str, module: SpikingSelfAttention, change: Change) -> None:
        """Scores are made inside ``mix``: for the block, it is their product with V, whatever the order before."""
        own = vars(module).get("mix")
        mix = module.mix

        def changed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if get_ident() != self.thread:
                return mix(q, k, v)
            return self._changed(name, change, module.scores(q, k)) @ v

        def restore() -> None:
            if own is None:
                del module.mix
            else:
                vars(module)["mix"] = own

        vars(module)["mix"] = changed
        self.attached.callback(restore)

    @staticmethod
    def _changed(name: str, change: Change, given: Tensor) -> Tensor:
        made = change(given)
        if not isinstance(made, Tensor) or made.shape != given.shape:
            found = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise SpikformerError(f"{name}: the function returned {found}, the layer gives {list(given.shape)}")
        if (made.dtype, made.device) != (given.dtype, given.device):
            raise SpikformerError(
                f"{name}: the function returned {made.dtype} on {made.device}, the layer gives {given.dtype}"
                f" on {given.device}"
            )
        return made
