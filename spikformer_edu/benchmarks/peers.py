"""The peers that are measured: networks of one size, built by this package and by others, and the work of a step."""

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SpikformerError, nearest
from ..kernels.choice import plain_path
from ..model import Spikformer, SpikformerConfig
from ..presets import configure, preset
from ..training.cuda_graph import GraphedStep
from ..training.evaluation import autocast
from ..training.recipe import PRECISIONS


@dataclass(frozen=True)
class Shape:
    """A size to measure: a preset with some fields changed, and the batch on a CPU and on a GPU."""

    model: str
    batch_cpu: int
    batch_gpu: int
    overrides: dict[str, int] = field(default_factory=dict)


SHAPES = {
    "cifar": Shape("cifar10-4-384", 16, 128),
    "cifar-t1": Shape("cifar10-4-384", 16, 128, dict(time_steps=1)),
    "dvs": Shape("cifar10dvs-2-256", 2, 16),
    "imagenet": Shape("imagenet-8-512", 2, 32),
    "imagenet-768": Shape("imagenet-8-768", 2, 32),
    "toy": Shape("cifar10-4-256", 4, 4, dict(depth=1, dim=64, heads=2)),  # to try the command
}


@dataclass(frozen=True)
class Case:
    """A network and its input: everything that determines the work of a step.

    Attributes:
        config: sizes and options of the network.
        image_size: height and width of the input, in pixels.
        events: whether the input holds its own T frames.
        batch: number of samples B.
    """

    config: SpikformerConfig
    image_size: int
    events: bool
    batch: int

    @property
    def tokens(self) -> int:
        return (self.image_size // self.config.patch_size) ** 2

    def inputs(self, device: torch.device) -> Tensor:
        """Random images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``."""
        shape = (self.batch, self.config.in_channels, self.image_size, self.image_size)
        return torch.randn((self.config.time_steps, *shape) if self.events else shape, device=device)


def case_of(shape: str, batch: int | None, device: torch.device) -> Case:
    """The case of a named shape.

    Args:
        shape: a key of ``SHAPES``.
        batch: number of samples B; None: the shape's own for the device.
        device: where to compute.

    Raises:
        SpikformerError: no such shape.
    """
    if shape not in SHAPES:
        raise SpikformerError(f"unknown shape {shape!r}: {nearest(shape, SHAPES)}")
    s = SHAPES[shape]
    line = preset(s.model)
    usual = s.batch_cpu if device.type == "cpu" else s.batch_gpu
    events = line.config.in_channels == 2
    return Case(configure(s.model, **s.overrides), line.image_size, events, batch or usual)


class Unavailable(Exception):
    """A peer cannot run here; the text says why."""


class ViT(nn.Module):
    """A vision transformer of the same D, L, heads and MLP ratio, without neurons and without time (T = 1).

    The stem is the same convolutions, batch norms and pools with ReLU for the neurons, its last block the position
    embedding; the encoder is PyTorch's: layer norm first, softmax attention, GELU. It sees the mean of event frames.
    """

    def __init__(self, case: Case):
        super().__init__()
        c = case.config
        widths = [c.in_channels, c.dim // 8, c.dim // 4, c.dim // 2, c.dim]
        stem = []
        for i in range(4):
            stem += self.conv(widths[i], widths[i + 1])
            if c.pool[i]:
                stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.stem = nn.Sequential(*stem)
        self.position = nn.Sequential(*self.conv(c.dim, c.dim))
        layers = (
            nn.TransformerEncoderLayer(
                c.dim, c.heads, c.mlp_ratio * c.dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(c.depth)
        )
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(c.dim, c.num_classes)

    @staticmethod
    def conv(channels_in: int, channels_out: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.mean(0) if x.dim() == 5 else x)  # [B, D, H/P, W/P]
        x = (x + self.position(x)).flatten(2).transpose(1, 2)  # [B, N, D]
        return self.head(self.blocks(x).mean(1))  # [B, K]


class SpikingJelly(nn.Module):
    """SpikingJelly's own Spikformer of the same size; its state is reset after every call, as its users must do."""

    def __init__(self, case: Case, **neuron: object):
        super().__init__()
        try:
            from spikingjelly.activation_based.functional import reset_net
            from spikingjelly.activation_based.model.spikformer import Spikformer as Peer
        except ImportError as error:
            raise Unavailable(f"needs SpikingJelly 2: pip install 'spikformer-edu[benchmark]' ({error})") from None
        c = case.config
        pools = {4: (False, False, True, True), 16: (True, True, True, True)}  # it has no others
        if pools.get(c.patch_size) != c.pool or c.attention != "ssa":
            raise Unavailable("its Spikformer pools in the last two blocks of the stem or in all four, nothing else")
        self.reset = reset_net
        self.net = Peer(
            T=c.time_steps,
            in_channels=c.in_channels,
            img_size_h=case.image_size,
            img_size_w=case.image_size,
            patch_size=c.patch_size,
            num_classes=c.num_classes,
            embed_dims=c.dim,
            num_heads=c.heads,
            mlp_ratio=c.mlp_ratio,
            depths=c.depth,
            **neuron,
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x).mean(0)  # [T, B, K] -> [B, K]
        self.reset(self.net)
        return logits

    def compile(self, *, dynamic: bool) -> None:
        self.net.compile(dynamic=dynamic)  # not the reset


def _spikingjelly(case: Case, precision: str, device: torch.device) -> nn.Module:
    return SpikingJelly(case)


def _spikingjelly_torch(case: Case, precision: str, device: torch.device) -> nn.Module:
    if device.type != "cuda":
        raise Unavailable("on this device SpikingJelly has its Torch neuron only: it is what `spikingjelly` runs")
    SpikingJelly(case)  # is it installed?
    from spikingjelly.activation_based.surrogate import Sigmoid

    class Plain(Sigmoid):
        """SpikingJelly's fused operators take only its own surrogates: for another class plain Torch code runs."""

    return SpikingJelly(case, surrogate_function=Plain())


def _spikingjelly_triton(case: Case, precision: str, device: torch.device) -> nn.Module:
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        raise Unavailable("its Triton neuron needs CUDA and triton")
    model = SpikingJelly(case)
    from spikingjelly.activation_based.precision import PrecisionConfig, prepare_model_for_precision

    config = PrecisionConfig(mode=precision, neuron_storage=precision)
    model.net = prepare_model_for_precision(model.net.to(device), device, config).model
    return model


@dataclass(frozen=True)
class Peer:
    """How to build the network, and what a reader must know to compare it."""

    about: str
    build: Callable[[Case, str, torch.device], nn.Module]


SJ = "SpikingJelly's Spikformer: no bias in linear maps, pools before the neuron, every stage at all T steps"
PEERS = {
    "ours": Peer(
        "this package; on a GPU its step is captured once as a CUDA graph", lambda case, *_: Spikformer(case.config)
    ),
    "snntorch": Peer(
        "this package, snnTorch's Leaky in a loop over time: the same spikes",
        lambda case, *_: Spikformer(replace(case.config, backend="snntorch")),
    ),
    "spikingjelly": Peer(f"{SJ}; the neuron that it selects itself, by its own word", _spikingjelly),
    "spikingjelly-torch": Peer(f"{SJ}; its neuron in plain Torch", _spikingjelly_torch),
    "spikingjelly-triton": Peer(f"{SJ}; its Triton neuron, states in the precision measured", _spikingjelly_triton),
    "vit": Peer("softmax vision transformer of the same size, no neurons, T = 1", lambda case, *_: ViT(case)),
}
CHANGES = {
    "channels_last": "weights and images in channels_last layout",
    "compile": "torch.compile with static shapes",
    "graph": "the step captured once as a CUDA graph, then replayed",
    "eager": "without the CUDA graph: Python starts every kernel",
    "plain": "the readable code: without the graph and without the fused operations",
}


def split_name(name: str) -> tuple[str, list[str]]:
    """ "ours+channels_last" -> ("ours", ["channels_last"]).

    Args:
        name: name of a peer, then its changes, each after a "+".

    Raises:
        SpikformerError: no such peer, no such change to it, or changes that do not go together.
    """
    base, *changes = name.split("+")
    if base not in PEERS:
        raise SpikformerError(f"unknown peer {base!r}: {nearest(base, PEERS)}")
    for change in changes:
        if change not in CHANGES:
            raise SpikformerError(f"unknown change {change!r} in peer {name!r}: {nearest(change, CHANGES)}")
        if change in ("eager", "plain") and base != "ours":
            raise SpikformerError(f"+{change} in peer {name!r} changes ours only: {base} is eager without +graph")
    if "graph" in changes and {"eager", "plain"} & set(changes):
        raise SpikformerError(f"peer {name!r} is to have a graph and none: leave one out")
    return base, changes


def usual_peers(device: torch.device) -> tuple[str, ...]:
    """The peers that a device is measured with: on a GPU each also with or without the graph, so that like meets like.

    Args:
        device: where to compute.
    """
    if device.type == "cuda":
        ours, graphs = ("ours", "ours+eager", "ours+plain"), ("spikingjelly-triton", "vit")
        return *ours, "snntorch", "spikingjelly", *(peer + end for peer in graphs for end in ("", "+graph"))
    return "ours", "snntorch", "spikingjelly", "spikingjelly+channels_last", "vit"


def captured(name: str, device: torch.device) -> bool:
    """Whether a peer's step is replayed as a CUDA graph: ours on a GPU, and any other that is asked for.

    Args:
        name: name of the peer, with its changes.
        device: where to compute.
    """
    base, changes = split_name(name)
    usual = base == "ours" and device.type == "cuda" and not {"eager", "plain", "compile"} & set(changes)
    return usual or "graph" in changes


class Step:
    """A peer ready to work: ``train`` is forward, backward and AdamW, ``evaluate`` a forward pass without gradients.

    Args:
        name: name of the peer, with its changes.
        case: network and input.
        precision: fp32 or bf16 (autocast).
        device: where to compute.
        counting: the step is counted and not timed: nothing is compiled, and no graph is captured.

    Attributes:
        warmup: number of steps before every further step takes the same time: the first chooses kernels and compiles,
            and a graph is captured in the fourth.

    Raises:
        Unavailable: the peer cannot run here.
    """

    def __init__(self, name: str, case: Case, precision: str, device: torch.device, counting: bool = False):
        base, changes = split_name(name)
        for change in ("graph", "eager", "plain"):
            if change in changes and device.type != "cuda":
                raise Unavailable(f"+{change} needs a CUDA GPU" + (": elsewhere it is ours" if base == "ours" else ""))
        graph = captured(name, device) and not counting
        torch.manual_seed(0)
        self.device, self.precision, self.plain = device, precision, "plain" in changes
        self.model = PEERS[base].build(case, precision, device).to(device)
        self.inputs = case.inputs(device)
        if "channels_last" in changes:
            self.model = self.model.to(memory_format=torch.channels_last)
            flat = self.inputs.flatten(0, -4).contiguous(memory_format=torch.channels_last)
            self.inputs = flat.unflatten(0, self.inputs.shape[:-3])
        self.labels = torch.zeros(case.batch, dtype=torch.long, device=device)
        # As in training. A graph cannot hold the step counter of the optimizer on the CPU: capturable.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True, capturable=graph)
        if "compile" in changes and not counting:
            self.model.compile(dynamic=False)
        self.warmup = 4 if graph else 1
        self.work: dict[str, Callable[[Tensor], None]] = {"train": self.training_step, "eval": self.evaluation}
        if graph:
            self.work = {mode: GraphedStep(work, warmup=3) for mode, work in self.work.items()}

    def forward(self, inputs: Tensor) -> Tensor:
        with autocast(self.device, self.precision), plain_path() if self.plain else nullcontext():
            return self.model(inputs)

    def training_step(self, inputs: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.forward(inputs).float(), self.labels).backward()
        self.optimizer.step()

    @torch.no_grad()
    def evaluation(self, inputs: Tensor) -> None:
        self.forward(inputs)

    def train(self) -> None:
        self.model.train()
        self.work["train"](self.inputs)

    def evaluate(self) -> None:
        self.model.eval()
        self.work["eval"](self.inputs)


PRODUCTS = {"(QK^T)V": lambda q, k, v: (q @ k.mT) @ v, "Q(K^TV)": lambda q, k, v: q @ (k.mT @ v)}


class Product:
    """The product of attention alone, in one of its two orders, on Q, K, V of a case; works as a ``Step`` does."""

    warmup = 1

    def __init__(self, order: str, case: Case, precision: str, device: torch.device):
        c = case.config
        torch.manual_seed(0)
        dtype = PRECISIONS[precision]
        shape = (c.time_steps, case.batch, c.heads, case.tokens, c.dim // c.heads)
        spikes = (torch.randint(2, shape, device=device, dtype=dtype) for _ in range(3))
        self.qkv = [s.requires_grad_() for s in spikes]
        self.product, self.gradient = PRODUCTS[order], torch.ones(shape, device=device, dtype=dtype)

    def train(self) -> None:
        for x in self.qkv:
            x.grad = None
        self.product(*self.qkv).backward(self.gradient)

    def evaluate(self) -> None:
        with torch.no_grad():
            self.product(*self.qkv)


def prepare(name: str, case: Case, precision: str, device: torch.device, counting: bool = False) -> Step | Product:
    """A peer, or one order of the attention product, ready to work; ``counting`` as for a ``Step``."""
    if name in PRODUCTS:
        return Product(name, case, precision, device)
    return Step(name, case, precision, device, counting)
