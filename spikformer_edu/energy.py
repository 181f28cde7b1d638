"""Count operations, and turn them into the paper's estimate of energy, with every assumption stated.

    SOPs(l) = rate(l) * T * FLOPs(l)                                          paper, eq. 21-22
    E = 4.6 pJ * T * FLOPs(first convolution) + 0.9 pJ * sum of all other SOPs     eq. 23-24, appendix C.2

FLOPs are multiply-accumulates of one image in one time step, rate is the firing rate of the layer's INPUT. 4.6 pJ is a
32-bit floating-point multiplication and addition at 45 nm (MAC), 0.9 pJ the addition alone (AC; M. Horowitz, ISSCC
2014). An input of 1 needs the addition only, an input of 0 nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .attention import MaskAttention, SpikingSelfAttention
from .errors import SpikformerError
from .eval_mode import check_network, eager, evaluating
from .model import Spikformer, SpikformerConfig
from .table import Table

MAC, AC = 4.6, 0.9  # pJ
CONVENTIONS = {
    "paper": "eq. 21-24 as the published ImageNet figures have them: there the first convolution is that of D = 512"
    " whatever D (as published only for 3 x 224 x 224 inputs; otherwise the same as paper-corrected)",
    "paper-corrected": "eq. 21-24 as written: the first convolution at the model's own width",
    "integer": "integers count by value: a residual of 2 costs two additions; real inputs of the head multiply",
}
DISCLAIMER = (
    "Energy of the arithmetic alone at 45 nm (4.6 pJ a multiply-accumulate, 0.9 pJ an addition; Horowitz 2014), at the"
    " firing rates of the inputs given. No memory access is in it, and it is not the energy of a GPU or of any chip."
)


@dataclass
class LayerCost:
    """One layer's operations, for one image.

    Attributes:
        layer: name of the layer; products of attention are named after their factors.
        flops: multiply-accumulates of one time step.
        steps: number of time steps T; 1 for the head, which sees the mean over time.
        rate: share of non-zero values in the input (of a product: in the factor whose ones select what is added).
        mean: mean value of that input; it exceeds the rate where the input holds integers above 1.
        real: both factors are real numbers, so the layer multiplies in every convention.
        ann_flops: multiply-accumulates of the same layer in a network without spikes.
        pj: energy in pJ, by convention.
    """

    layer: str
    flops: int
    steps: int
    rate: float
    mean: float
    real: bool
    ann_flops: int
    pj: dict[str, float] = field(default_factory=dict)

    @property
    def sops(self) -> float:
        """Synaptic operations of one image, rate * T * FLOPs (eq. 21); 0 where it multiplies instead."""
        return 0.0 if self.real else self.rate * self.steps * self.flops


@dataclass
class EnergyReport:
    """What ``energy`` returns; prints as a table.

    Attributes:
        layers: the layers' costs, in network order.
        time_steps: number of time steps T.
        images: number of images that the rates were measured on.
    """

    layers: list[LayerCost]
    time_steps: int
    images: int

    @property
    def flops(self) -> int:
        """Multiply-accumulates of one image in one time step."""
        return sum(cost.flops for cost in self.layers)

    @property
    def sops(self) -> float:
        """Synaptic operations of one image, over all time steps, without the first convolution."""
        return sum(cost.sops for cost in self.layers)

    @property
    def ann_flops(self) -> int:
        """Multiply-accumulates of one image in the network of the same size without spikes, which runs once."""
        return sum(cost.ann_flops for cost in self.layers)

    @property
    def totals(self) -> dict[str, float]:
        """Energy of one image in pJ, by convention, and of the network without spikes ("ann")."""
        spiking = {name: sum(cost.pj[name] for cost in self.layers) for name in CONVENTIONS}
        return spiking | {"ann": MAC * self.ann_flops}

    def to_dict(self) -> dict[str, Any]:
        """The whole report, ready for JSON; energies in pJ."""
        return {
            "time_steps": self.time_steps,
            "images": self.images,
            "flops": self.flops,
            "sops": self.sops,
            "ann_flops": self.ann_flops,
            "totals_pj": self.totals,
            "layers": [vars(cost) | {"sops": cost.sops} for cost in self.layers],
            "conventions": CONVENTIONS,
            "disclaimer": DISCLAIMER,
        }

    def table(self) -> Table:
        """A row a layer, and the total."""
        unit, name = energy_unit(max(self.totals.values()))
        energies = (f"{c}, {name}" for c in CONVENTIONS)
        header = ("layer", "FLOPs (M)", "x steps", "input rate", "mean", "SOPs (M)", *energies)
        rows = [
            (
                cost.layer,
                f"{cost.flops / 1e6:.3f}",
                str(cost.steps),
                "real" if cost.real else f"{100 * cost.rate:.2f} %",
                "" if cost.real else f"{cost.mean:.4f}",
                "MAC" if cost.real else f"{cost.sops / 1e6:.3f}",
                *(f"{cost.pj[c] / unit:.4g}" for c in CONVENTIONS),
            )
            for cost in self.layers
        ]
        totals = (f"{self.totals[c] / unit:.4g}" for c in CONVENTIONS)
        rows.append(("total", f"{self.flops / 1e6:.3f}", "", "", "", f"{self.sops / 1e6:.3f}", *totals))
        return Table(header, rows)

    @property
    def without_spikes(self) -> str:
        """What the network of the same size without spikes takes, as a line of text."""
        unit, name = energy_unit(max(self.totals.values()))
        macs = f"{self.ann_flops / 1e6:.3f} M multiply-accumulates"
        return f"without spikes: {macs}, {self.totals['ann'] / unit:.4g} {name}"

    def __str__(self) -> str:
        said = [f"{c}: {text}." for c, text in CONVENTIONS.items()]
        where = f"one image, T = {self.time_steps}, rates measured on {self.images}"
        return "\n".join([str(self.table()), self.without_spikes, where, *said, DISCLAIMER])

    __repr__ = __str__


def energy_unit(pj: float) -> tuple[float, str]:
    """The unit an energy is best read in: its size in pJ, and its name."""
    return next(
        (size, name) for size, name in ((1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ")) if pj >= size or size == 1
    )


def energy(model: Spikformer, inputs: Tensor) -> EnergyReport:
    """Count the operations of a model on real inputs, and estimate their energy under three conventions.

    FLOPs are counted on the forward pass, in evaluation mode: convolutions, linear layers, and the two products of
    attention in the order in which they run, with ``phi`` applied to Q and K. As in the paper, biases, pooling, the
    softmax of variants and the neurons themselves are not counted, and batch norms fold into the layer before them.
    The first convolution is charged at every step, as in the paper, although the model computes it once for a still
    image.

    Attention by masks takes N D gated additions for its count (``gate``; the rate is that of what is counted) and N D
    ANDs (``mask``; the rate is that of what is masked), which are charged as additions, though an AND costs less.
    Neurons of the kind ilif give integers up to D, each the sum of D binary steps: layers behind them count T D steps,
    at the rate of these. Currents that a membrane residual adds enter no weight and are not counted, as the paper's
    additions of spikes are not.

    The rate of a product is that of the factor whose ones select what is added: Q in Q K^T, V in (Q K^T) V, K in K^T V,
    Q in Q (K^T V). If that factor is real (Q and K of some variants of Table 1), the other one is taken; if both are
    real, the product multiplies in every convention.

    Only what this thread computes is counted. Other threads may call the model at the same time if it is in evaluation
    mode.

    Args:
        model: the network.
        inputs: images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``, normalised as in training; the rates are measured
            on them.

    Returns:
        For each layer FLOPs, firing rate of its input, SOPs and pJ; ``CONVENTIONS`` explains the three conventions. The
        network without spikes has the same layers and runs once; its attention takes 2 N^2 D, with Q-K attention too.

    Raises:
        SpikformerError: not a Spikformer but a wrapper around one, inputs that the model does not take, or an attention
            that makes other products than those two, and no mask.

    Source: paper, eq. 21-24 and appendix C.2.

    Examples:
        >>> import torch, spikformer_edu as se
        >>> model = se.load_pretrained("digits-2-64")
        >>> images, _ = se.data.load("digits").test.fetch(torch.arange(20), None)
        >>> report = se.energy(model, images)
        >>> report.flops  # multiply-accumulates of one image in one time step
        10756736
        >>> round(report.totals["ann"] / report.totals["integer"])  # energy without spikes over energy with them
        7
    """
    check_network(model)
    costs: list[LayerCost] = []
    time_steps = inputs.shape[0] if inputs.dim() == 5 else model.config.time_steps
    products, thread, handles = _Products(), get_ident(), []
    levels = model.config.levels if model.config.neuron == "ilif" else 1

    def fires(x: Tensor) -> tuple[float, float]:
        """Rate and mean of what neurons give; of integers those of the binary steps that they are the sum of."""
        rate, mean = rate_and_mean(x)
        return (rate, mean) if levels == 1 else (mean / levels, mean / levels)

    unseen = {f"blocks.{i}.attn": getattr(block, "attn", block) for i, block in enumerate(model.blocks)}

    def count_layer(name: str, module: nn.Conv2d | nn.Linear, args: tuple[Tensor], out: Tensor) -> None:
        (x,) = args
        if isinstance(module, nn.Conv2d):
            flops = out[0].numel() * module.weight[0].numel()
        else:  # rows of one image and step: its tokens, or the one row of the head
            flops = (1 if name == "head" else x.shape[-2]) * module.weight.numel()
        real = name == "sps.0" or (name != "head" and not _adds(x))
        steps = 1 if name == "head" else time_steps * (1 if real else levels)
        seen = rate_and_mean(x) if real or name == "head" else fires(x)
        costs.append(LayerCost(name, flops, steps, *seen, real, flops))
        products.factors.clear()

    def count_masks(name: str, module: MaskAttention, q: Tensor, k: Tensor, v: Tensor, count: Tensor) -> None:
        tokens, (counted, flops) = v.shape[-2], (q if v is k else q * k, v[0, 0].numel())
        del unseen[name]
        for part, x in (("gate", counted), ("mask", v)):
            ann_flops = flops * tokens  # the network without spikes makes products here, N^2 D each
            costs.append(LayerCost(f"{name}.{part}", flops, time_steps * levels, *fires(x), False, ann_flops))

    def count_products(name: str, module: SpikingSelfAttention, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        found = _two_products(products.factors, module, v)
        if found:
            del unseen[name]
        for product, flops, ann_flops, factors in found:
            ones = next((x for x, spiking in factors if _adds(x, spiking)), None)
            shown = factors[0][0] if ones is None else ones
            layer, real = f"{name}.{product}", ones is None
            steps, seen = (time_steps, rate_and_mean(shown)) if real else (time_steps * levels, fires(shown))
            costs.append(LayerCost(layer, flops, steps, *seen, real, ann_flops))

    def here(count: Callable[..., None], *names: object) -> Callable[..., None]:
        return lambda *args: count(*names, *args) if get_ident() == thread else None

    try:
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                layer = name.removesuffix(".conv").removesuffix(".linear")
                handles.append(module.register_forward_hook(here(count_layer, layer)).remove)
            elif isinstance(module, SpikingSelfAttention):
                count = count_masks if isinstance(module, MaskAttention) else count_products
                unseen[name], listener = module, here(count, name, module)
                module.on_mix.insert(0, listener)  # before record(), whose own products are not the network's
                handles.append(partial(module.on_mix.remove, listener))
        with torch.no_grad(), evaluating(model), eager(model), products:
            model(inputs)
    finally:
        for remove in handles:
            remove()
    for name, module in unseen.items():
        raise SpikformerError(
            f"{name} ({type(module).__name__}) makes other products than Q K^T and that with V, so its operations are"
            " not known: count this network by hand"
        )
    for cost in costs:
        for convention in CONVENTIONS:
            cost.pj[convention] = _pj(cost, convention, model.config.dim, tuple(inputs.shape[-3:]))
    return EnergyReport(costs, time_steps, inputs.shape[-4])


class _Products(TorchDispatchMode):
    """The factors of every product of matrices that this thread runs, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[tuple[Tensor, ...]] = []  # of one product each

    def __torch_dispatch__(
        self, func: OpOverload, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func.overloadpacket in flop_registry:
            self.factors.append(args)
        else:
            with self:
                parts = func.decompose(*args, **kwargs)  # inference mode passes composite operators undivided
            if parts is not NotImplemented:
                return parts
        return func(*args, **kwargs)


def _two_products(
    factors: list[tuple[Tensor, ...]], module: SpikingSelfAttention, v: Tensor
) -> list[tuple[str, int, int, list[tuple[Tensor, bool]]]]:
    """The two products a b and c d of ``mix``, in the order in which they ran; an empty list if it made others.

    Args:
        factors: pairs of factors, as ``_Products`` kept them.
        module: the attention layer.
        v: V, ``[T, B, h, N, d]``.

    Returns:
        For each product its name, its FLOPs, the FLOPs of the network without spikes (which takes (Q K^T) V), and its
        factors, first the one that selects what is added, each with a flag: does the layer call it spikes?
    """
    if len(factors) != 2 or any(len(pair) != 2 for pair in factors):
        return []
    (a, b), (c, d) = factors  # [T B h, rows, columns]
    heads, tokens, width = v.shape[2:]

    def is_v(x: Tensor) -> bool:
        return x.numel() == v.numel() and torch.equal(x.reshape(v.shape), v.to(x.dtype))  # autocast has rounded x

    def flops(x: Tensor, y: Tensor) -> int:
        return heads * x[0].numel() * y.shape[-1]

    qk, spiking_v = module.spiking_qk, module.spiking_v
    if is_v(d) and a.shape[1] == b.shape[2] == tokens:
        first, second = ("QK^T", [(a, qk), (b, qk)]), ("(QK^T)V", [(d, spiking_v), (c, False)])
        inner = a.shape[2]  # d, unless phi changes it
    elif is_v(b) and c.shape[1] == tokens:
        first, second = ("K^TV", [(a, qk), (b, spiking_v)]), ("Q(K^TV)", [(c, qk), (d, False)])
        inner = c.shape[2]
    else:
        return []
    return [
        (first[0], flops(a, b), heads * tokens * tokens * inner, first[1]),
        (second[0], flops(c, d), heads * tokens * tokens * width, second[1]),
    ]


def _adds(x: Tensor, spiking: bool = True) -> bool:
    """Whether a product with x takes only additions: x holds whole numbers from 0 up.

    Args:
        x: a factor of the product.
        spiking: whether x comes from a neuron; this decides if x holds only zeros.
    """
    return bool(((x >= 0) & (x == x.round())).all()) and (spiking or bool(x.any()))


def rate_and_mean(x: Tensor) -> tuple[float, float]:
    """Share of non-zero values, and mean value; both are exact for integers, without float64 on the device."""
    rows = x.sum(-1, dtype=torch.promote_types(x.dtype, torch.float32))
    return int(x.count_nonzero()) / x.numel(), float(rows.cpu().double().sum()) / x.numel()


def _pj(cost: LayerCost, convention: str, dim: int, shape: tuple[int, ...]) -> float:
    """Energy of one layer for one image."""
    if cost.real:
        published = convention == "paper" and cost.layer == "sps.0" and shape == (3, 224, 224)
        return MAC * cost.steps * cost.flops * (512 / dim if published else 1)
    if convention == "integer":
        if cost.layer == "head":  # the mean of integers over tokens and time is a real number
            return MAC * cost.flops
        return AC * cost.mean * cost.steps * cost.flops
    return AC * cost.sops


def count_flops(config: SpikformerConfig, image_size: int) -> dict[str, int]:
    """Multiply-accumulates of one image in one time step by part, from the formulas alone.

    Args:
        config: the network.
        image_size: height and width in pixels.

    Returns:
        "first conv" = 9 C (D/8) H W; "other convs", those of SPS and the position embedding; "linear" = L (4 + 2 r) N
        D^2 for Q, K, V, the projection and the MLP of ratio r; "QK^T" = L N^2 D, one product in the order (Q K^T) V;
        "K^TV" = L N D d, one product in the order Q (K^T V); "head" = D K.
    """
    widths = [config.in_channels, *(config.dim // n for n in (8, 4, 2, 1))]
    size, convs = image_size, []
    for i in range(4):
        convs.append(9 * widths[i] * widths[i + 1] * size**2)
        size //= 2 if config.pool[i] else 1
    tokens, dim = size**2, config.dim
    return {
        "first conv": convs[0],
        "other convs": sum(convs[1:]) + 9 * dim * dim * tokens,
        "linear": config.depth * (4 + 2 * config.mlp_ratio) * tokens * dim**2,
        "QK^T": config.depth * tokens**2 * dim,
        "K^TV": config.depth * tokens * dim * (dim // config.heads),
        "head": dim * config.num_classes,
    }
