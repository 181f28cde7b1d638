"""Spikformer: one network for CIFAR, ImageNet and event cameras; its configuration says which.

Time comes first everywhere and is merged with the batch in every layer but the neurons:
images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]`` -> tokens ``[T, B, N, D]`` -> logits ``[B, K]``.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .attention import ATTENTION, MaskAttention, SpikingLinear
from .errors import SpikformerError, nearest
from .input_check import check_input
from .kernels.choice import add, norm_lif_for, norm_lif_pool
from .neurons import BACKENDS, NEURONS, LIFOptions, spiking

RESIDUALS = "spike", "membrane"


@dataclass(frozen=True)
class SpikformerConfig:
    """Sizes and options of a Spikformer; every field changes the network.

    Raises:
        SpikformerError: a value out of its range, or an unknown attention.
    """

    dim: int = 384
    """Token width D."""
    depth: int = 4
    """Number of encoder blocks L."""
    heads: int = 12
    """Number of attention heads h, each d = D / h wide."""
    num_classes: int = 10
    """Number of classes K."""
    in_channels: int = 3
    """Channels C of the input."""
    time_steps: int = 4
    """Number T of time steps for images; event frames bring their own T."""
    pool: tuple[bool, ...] = (False, False, True, True)
    """Which of the four SPS blocks halve the image."""
    mlp_ratio: int = 4
    """Hidden width of the MLP over D."""
    attention: str = "ssa"
    """Name of the attention, a key of ``ATTENTION``."""
    scale: float | None = None
    """Factor s in Q K^T V s; None: 0.125, or 1 / sqrt(d) for softmax."""
    learn_scale: bool = False
    """Make s a parameter."""
    qk_pool: bool = False
    """Max-pool Q and K over the tokens."""
    qkv_bias: bool = True
    """Add a bias in the linear map to Q, K, V."""
    trunc_normal: bool = True
    """Initialise linear layers as trunc_normal(0.02) with bias 0, not as PyTorch's default."""
    residual: str = "spike"
    """What a residual adds: "spike" what neurons give, so integers add up; "membrane" currents, before the neurons."""
    neuron: str = "lif"
    """Kind of the neurons, a key of ``NEURONS``."""
    tau: float = 2.0
    """Membrane time constant, in time steps; at the start, where it is learned."""
    levels: int = 4
    """Largest integer D of neurons of the kind ilif."""
    backend: str = "fused"
    """Code of lif and if: "fused", or "snntorch" for the plain loop (``LIF`` says where they differ)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pool", tuple(bool(p) for p in self.pool))  # JSON has no tuples
        for name in ("dim", "depth", "heads", "num_classes", "in_channels", "time_steps", "mlp_ratio", "levels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise SpikformerError(f"{name}={value!r}: give a whole number of at least 1")
        if self.dim % 8:
            raise SpikformerError(f"dim={self.dim}: SPS widens as D/8, D/4, D/2, D, so choose a multiple of 8")
        if self.dim % self.heads:
            raise SpikformerError(f"heads={self.heads} does not divide dim={self.dim}: choose a number that does")
        if len(self.pool) != 4:
            raise SpikformerError(f"pool={self.pool}: give one True or False for each of the four SPS blocks")
        choices = {"attention": ATTENTION, "residual": RESIDUALS, "neuron": NEURONS, "backend": BACKENDS}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise SpikformerError(f"unknown {name} {value!r}: {nearest(value, known)}")
        if not 1 < self.tau < math.inf:
            raise SpikformerError(f"tau={self.tau}: give a finite time constant of more than one time step")
        if self.neuron == "ilif" and issubclass(ATTENTION[self.attention], MaskAttention):
            raise SpikformerError(f"attention={self.attention!r} masks with 0 and 1: give a neuron other than 'ilif'")
        for name, default in (("tau", 2.0), ("levels", 4)):
            if name not in self.lif and (value := getattr(self, name)) != default:
                raise SpikformerError(f"{name}={value}: {self.neuron} neurons have no {name}, so leave it out")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise SpikformerError(f"scale={self.scale}: give a positive number, or None for the default")

    @property
    def patch_size(self) -> int:
        """Pixels a token covers along each side."""
        return 2 ** sum(self.pool)

    @property
    def lif(self) -> LIFOptions:
        """Options of every neuron in the network: what its kind takes."""
        kinds = {"tau": ("lif", "plif", "ilif"), "levels": ("ilif",), "backend": ("lif", "if")}
        taken = {option: getattr(self, option) for option, takers in kinds.items() if self.neuron in takers}
        return cast(LIFOptions, {"neuron": self.neuron} | taken)

    def before_weights(self) -> nn.Module:
        """What a residual stream passes before a weight: neurons where it adds membranes, nothing where spikes."""
        return spiking(**self.lif) if self.residual == "membrane" else nn.Identity()


class SpikingConv(nn.Module):
    """MP(SN(BN(Conv2d))): ``[T, B, C_in, H, W]`` -> spikes ``[T, B, C_out, H, W]``, halved by the pool (eq. 10).

    Args:
        channels_in: C_in.
        channels_out: C_out.
        pool: halve height and width with a max-pool.
        lif: options of the neurons.
    """

    def __init__(self, channels_in: int, channels_out: int, pool: bool, **lif: Unpack[LIFOptions]):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)
        self.neuron: nn.Module = spiking(**lif)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if pool else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.conv(x.flatten(0, 1))
        if kernel := norm_lif_for(y, len(x), self.bn, self.neuron):  # on a GPU, in one operation
            return norm_lif_pool(kernel, y.unflatten(0, x.shape[:2]), len(x), self, residual)
        spikes = self.spike(self.bn(y).unflatten(0, x.shape[:2]))
        return spikes if residual is None else residual + spikes

    def forward_image(self, x: Tensor, time_steps: int) -> Tensor:
        """What ``forward`` gives for T copies of an image ``[B, C_in, H, W]``, at the cost of one convolution."""
        x, bn = self.conv(x), self.bn  # [B, C_out, H, W]
        if kernel := norm_lif_for(x, time_steps, bn, self.neuron):
            return norm_lif_pool(kernel, x.unsqueeze(0), time_steps, self)
        if bn.training and bn.running_var is not None and bn.num_batches_tracked is not None:
            # Copies have the statistics of one image, but Bessel's correction n / (n - 1) becomes Tn / (Tn - 1).
            variance = bn.running_var.data  # .data: autograd checks the buffer's version, but never reads it
            share = 1 / (bn.num_batches_tracked + 1) if bn.momentum is None else bn.momentum  # None: a plain mean
            kept = variance * (1 - share)
            x = bn(x)
            n = getattr(bn, "count", x.numel() // x.shape[1])  # of all processes, if they share it
            variance.sub_(kept).mul_((n - 1) / n * (time_steps * n) / (time_steps * n - 1)).add_(kept)
        else:
            x = bn(x)
        return self.spike(x.expand(time_steps, *x.shape))

    def spike(self, current: Tensor) -> Tensor:
        x = self.neuron(current)  # [T, B, C_out, H, W]
        if self.pool is not None:
            x = self.pool(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # [T, B, C_out, H/2, W/2], still {0, 1}
        return x


class SPS(nn.Sequential):
    """Spiking patch splitting: four conv blocks, then a conv block as relative position embedding (eq. 4-6).

    Args:
        in_channels: C.
        dim: token width D.
        pool: which of the four conv blocks halve height and width; P = 2 to the number of these.
        lif: options of every neuron.

    Shapes: frames ``[T, B, C, H, W]`` or images ``[B, C, H, W]`` -> ``[T, B, D, H/P, W/P]`` in {0, 1, 2}.
    """

    def __init__(self, in_channels: int, dim: int, pool: tuple[bool, ...], **lif: Unpack[LIFOptions]):
        widths = [in_channels, dim // 8, dim // 4, dim // 2, dim]
        super().__init__(*(SpikingConv(widths[i], widths[i + 1], pool[i], **lif) for i in range(4)))
        self.rpe = SpikingConv(dim, dim, pool=False, **lif)
        # Convolutions and pools run faster with the channels of a pixel side by side; tokens then need no copy.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, time_steps: int) -> Tensor:  # type: ignore[override]  # T, which Sequential's has not
        first, *stages, rpe = self
        assert isinstance(first, SpikingConv)
        x = first(x) if x.dim() == 5 else first.forward_image(x, time_steps)
        for stage in stages:
            x = stage(x)
        return add(x, rpe, x)  # x + rpe(x)


class MLP(nn.Module):
    """Two spiking linear layers, D -> hidden -> D, on tokens ``[T, B, N, D]``.

    Args:
        dim: token width D.
        hidden: width between the two layers.
        lif: options of both layers of neurons.
    """

    def __init__(self, dim: int, hidden: int, **lif: Unpack[LIFOptions]):
        super().__init__()
        self.hidden = SpikingLinear(dim, hidden, **lif)
        self.out = SpikingLinear(hidden, dim, **lif)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return add(residual, self.out, self.hidden(x))


class Block(nn.Module):
    """Encoder block: X' = SSA(X) + X, then MLP(X') + X'. The residual stream is an integer (eq. 7-8).

    With residual="membrane" it adds currents, U' = U + BN(Linear(SSA'(SN(U)))) and the MLP alike, without the neurons
    that end SSA and MLP in the paper. The stream U is real, and every weight sees spikes alone.

    Args:
        config: sizes and options.

    Source of the membrane shortcut: Y. Hu et al., arXiv 2112.08954; in transformers Spikingformer (C. Zhou et al.,
    arXiv 2304.11954) and the Spike-driven Transformer (M. Yao et al., NeurIPS 2023).
    """

    def __init__(self, config: SpikformerConfig):
        super().__init__()
        self.attn_in = config.before_weights()
        self.attn = ATTENTION[config.attention](
            config.dim,
            config.heads,
            scale=config.scale,
            learn_scale=config.learn_scale,
            qk_pool=config.qk_pool,
            qkv_bias=config.qkv_bias,
            **config.lif,
        )
        self.mlp_in = config.before_weights()
        self.mlp = MLP(config.dim, config.dim * config.mlp_ratio, **config.lif)
        if config.residual == "membrane":
            self.attn.proj.neuron = self.mlp.out.neuron = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_in(x))
        return add(x, self.mlp, self.mlp_in(x))  # x + self.mlp(self.mlp_in(x))


class Spikformer(nn.Module):
    """The network of the paper: SPS, L encoder blocks, the mean over tokens and time, a linear head (eq. 4-9).

    Args:
        config: sizes and options.

    Shapes: images ``[B, C, H, W]``, repeated over T, or frames ``[T, B, C, H, W]`` with their own T
    -> logits ``[B, K]``. H and W may be any multiples of ``config.patch_size``.

    Raises:
        SpikformerError: no tensor, wrong number of dimensions or channels, a size that the patch size does not divide,
            an empty batch, T = 0; not in compiled code: another dtype than the network's, NaN or inf (nor these two on
            a GPU in training or in a CUDA graph, where looking would make every step wait).
    """

    def __init__(self, config: SpikformerConfig):
        super().__init__()
        self.config = config
        self.sps = SPS(config.in_channels, config.dim, config.pool, **config.lif)
        if config.residual == "membrane":
            self.sps.rpe.neuron = nn.Identity()  # the position embedding is added as a current, too
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_in = config.before_weights()
        self.head = nn.Linear(config.dim, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear) and (config.trunc_normal or module is self.head):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, every_step: bool = False) -> Tensor:
        """Logits ``[B, K]``; with ``every_step`` those of every time step ``[T, B, K]``, of which they are the mean."""
        check_input(self, x)
        x = self.sps(x, self.config.time_steps)  # [T, B, D, H/P, W/P]
        x = x.flatten(3).transpose(2, 3)  # [T, B, N, D]
        for block in self.blocks:
            x = block(x)
        x = self.head_in(x).mean(2)  # [T, B, D]
        return self.head(x if every_step else x.mean(0))  # [T, B, K] or [B, K]
