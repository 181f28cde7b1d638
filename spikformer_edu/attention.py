"""Spiking self-attention (SSA), the variants that the paper compares it with in Table 1, and what came after it.

All variants share one frame: Q, K, V are linear maps of the tokens, a map of (Q, K) weights V, a
neuron turns the result into spikes, and a last linear layer mixes the heads. Those of Table 1 differ in three
lines: whether Q and K are spikes or real, whether V is, and how scores are made of Q and K. Those that came after
it make no scores: a neuron says 0 or 1 for each feature or each token, and masks V or K with it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from .errors import SpikformerError
from .kernels.choice import fused_ssa, linear_norm_lif, norm_lif_for
from .kernels.linear import Linear
from .neurons import LIFOptions, spiking


class SpikingLinear(nn.Module):
    """SN(BN(Linear(x))) on tokens: ``[T, B, N, D_in]`` -> spikes ``[T, B, N, D_out]``, plus a residual if one is given.

    Args:
        dim_in: features of an input token, D_in.
        dim_out: features of an output token, D_out.
        lif: options of the neurons.
    """

    def __init__(self, dim_in: int, dim_out: int, **lif: Unpack[LIFOptions]):
        super().__init__()
        self.linear = Linear(dim_in, dim_out)
        self.bn = nn.BatchNorm1d(dim_out)
        self.neuron: nn.Module = spiking(**lif)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if kernel := norm_lif_for(x, len(x), self.bn, self.neuron, self.linear):  # on a GPU
            return linear_norm_lif(kernel, x, self.linear, self.bn, self.neuron, residual)
        spikes = self.neuron(norm_tokens(self.bn, self.linear(x)))
        return spikes if residual is None else residual + spikes


def norm_tokens(bn: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Batch norm over T, B and N together, one statistic a feature: ``[T, B, N, D]`` -> the same shape."""
    return bn(x.flatten(0, 2)).view_as(x)


class SpikingSelfAttention(nn.Module):
    """SSA: SN(Q K^T V s) with Q, K, V in {0, 1}, no softmax (paper, eq. 14-19).

    Without softmax the product is associative, (Q K^T) V = Q (K^T V): ``mix`` takes the cheaper order. Both orders sum
    integers and agree to the last bit when s is a power of two (in bfloat16 on a CPU: for up to 256 tokens). A variant
    of the attention overrides ``phi``, ``scores`` or ``mix``.

    Args:
        dim: token width D.
        heads: number of heads h, which must divide D; a head has the width d = D / h.
        scale: factor s of the product; None: 0.125 (1 / sqrt(d) for the softmax variants).
        learn_scale: make s a parameter (the paper's DVS128 Gesture network).
        qk_pool: max-pool Q and K over the tokens, kernel 3, stride 1 (DVS128 Gesture).
        qkv_bias: add a bias in the linear map to Q, K, V.
        lif: options of every neuron in the layer.

    Shapes: tokens ``[T, B, N, D]``, integers -> spikes ``[T, B, N, D]``; q, k, v are ``[T, B, h, N, d]``.

    Raises:
        SpikformerError: heads do not divide dim.
    """

    spiking_qk = True
    spiking_v = True
    maps = 3  # Q, K and V; 2: there is no V

    def __init__(
        self,
        dim: int,
        heads: int,
        scale: float | None = None,
        learn_scale: bool = False,
        qk_pool: bool = False,
        qkv_bias: bool = True,
        **lif: Unpack[LIFOptions],
    ):
        super().__init__()
        if heads < 1 or dim % heads:
            raise SpikformerError(f"heads={heads} does not divide dim={dim}: choose a number of heads that does")
        self.heads = heads
        scale = self.default_scale(dim // heads) if scale is None else scale
        self.scale = nn.Parameter(torch.tensor(float(scale))) if learn_scale else scale
        self.qkv = Linear(dim, self.maps * dim, bias=qkv_bias)
        self.bn = nn.BatchNorm1d(self.maps * dim)  # per feature, so one over 3D is three over D
        self.q = spiking(**lif) if self.spiking_qk else nn.Identity()
        self.k = spiking(**lif) if self.spiking_qk else nn.Identity()
        if self.maps == 3:
            self.v = spiking(**lif) if self.spiking_v else nn.Identity()
        self.pool = nn.MaxPool1d(3, stride=1, padding=1) if qk_pool else None
        self.attn = spiking(v_threshold=0.5, **lif)
        self.proj = SpikingLinear(dim, dim, **lif)
        # Functions called with q, k, v and the result of mix; record() and energy() add theirs.
        self.on_mix: list[Callable[[Tensor, Tensor, Tensor, Tensor], None]] = []

    def forward(self, x: Tensor) -> Tensor:
        if type(self) is SpikingSelfAttention and (fused := fused_ssa(self, x)) is not None:  # on a GPU
            return self.proj(fused)
        qkv = norm_tokens(self.bn, self.qkv(x))  # [T, B, N, 3D]
        q, k, *v = qkv.unflatten(-1, (self.maps, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)  # each [T, B, h, N, d]
        q, k = self.pool_tokens(self.q(q)), self.pool_tokens(self.k(k))
        spikes = self.attend(q, k, self.v(v[0]) if v else k)  # [T, B, h, N, d]
        return self.proj(spikes.transpose(2, 3).flatten(3))  # [T, B, N, D]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """SN(Q K^T V s), spikes ``[T, B, h, N, d]``."""
        mixed = self.mix(q, k, v)
        for listener in tuple(self.on_mix):
            listener(q, k, v, mixed)
        return self.attn(mixed)

    def pool_tokens(self, x: Tensor) -> Tensor:
        if self.pool is None:
            return x
        tokens_last = x.transpose(3, 4)  # [T, B, h, d, N]
        return self.pool(tokens_last.flatten(0, 2)).view_as(tokens_last).transpose(3, 4)

    @staticmethod
    def default_scale(width: int) -> float:
        """s of a head of width d."""
        return 0.125

    def phi(self, x: Tensor) -> Tensor:
        """A function of Q and of K before their product; here the identity."""
        return x

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """The scores Q K^T s: q, k ``[T, B, h, N, d]`` -> ``[T, B, h, N, N]``."""
        return self.phi(q) @ self.phi(k).transpose(-2, -1) * self.scale

    _product = scores

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Q K^T V s, ``[T, B, h, N, d]``, in the order that takes fewer operations: N^2 d against N d^2."""
        # A subclass that overrides the scores leaves no choice of order.
        is_product = type(self).scores is SpikingSelfAttention._product and "scores" not in vars(self)
        if is_product and q.shape[-2] > q.shape[-1]:
            return self.phi(q) @ (self.phi(k).transpose(-2, -1) @ v) * self.scale
        return self.scores(q, k) @ v


class IdentityAttention(SpikingSelfAttention):
    """Table 1, A_I: real Q and K, their product as it is, weighting a spike-form V."""

    spiking_qk = False


class ReLUAttention(SpikingSelfAttention):
    """Table 1, A_ReLU: ReLU(Q) ReLU(K)^T of real Q and K, weighting a spike-form V."""

    spiking_qk = False

    def phi(self, x: Tensor) -> Tensor:
        return F.relu(x)


class LeakyReLUAttention(SpikingSelfAttention):
    """Table 1, A_LeakyReLU: LeakyReLU(Q) LeakyReLU(K)^T of real Q and K, weighting a spike-form V."""

    spiking_qk = False

    def phi(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x)


class SoftmaxAttention(SpikingSelfAttention):
    """Table 1, A_softmax: softmax(Q K^T / sqrt(d)) of real Q and K, weighting a spike-form V."""

    spiking_qk = False

    @staticmethod
    def default_scale(width: int) -> float:
        return width**-0.5

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q, k).softmax(-1)


class VanillaSelfAttention(SoftmaxAttention):
    """The transformer's attention (VSA): softmax over real Q, K and V; only the result becomes spikes."""

    spiking_v = False


class MaskAttention(SpikingSelfAttention):
    """Attention without products of matrices: a gate of 0 or 1, SN(a count of spikes), masks V.

    A count takes at most N D additions and the mask N D ANDs, where SSA takes 2 N D min(N, d) additions. The count has
    no scale, so one spike opens the gate (V_th = 0.5, tau = 2): it is an OR over what is counted.

    Args:
        dim: token width D.
        heads: number of heads h, which must divide D.
        scale: none, because there is no product to scale.
        learn_scale: none.
        options: the other options of ``SpikingSelfAttention``.

    Raises:
        SpikformerError: a scale, or heads that do not divide dim.
    """

    def __init__(self, dim: int, heads: int, scale: None = None, learn_scale: bool = False, **options: Any):
        if scale is not None or learn_scale:
            raise SpikformerError(f"{type(self).__name__} makes no product to scale: leave out scale and learn_scale")
        super().__init__(dim, heads, **options)
        del self.scale

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """SN(count) * V, spikes ``[T, B, h, N, d]``."""
        count = self.count(q, k)
        for listener in tuple(self.on_mix):
            listener(q, k, v, count)
        return self.attn(count) * v

    def count(self, q: Tensor, k: Tensor) -> Tensor:
        """The count that opens the gate: ``[T, B, h, N, d]`` each -> ``[T, B, h, 1, d]`` or ``[T, B, h, N, 1]``."""
        raise NotImplementedError


class SpikeDrivenAttention(MaskAttention):
    """SDSA: SN(sum over tokens of Q * K) * V. Tokens share which features pass, and nothing else.

    Source: M. Yao et al., NeurIPS 2023, arXiv 2307.01694; its code calls V here Q there, and Q and K here K and V.
    """

    def count(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * k).sum(-2, keepdim=True)


class TokenQKAttention(MaskAttention):
    """Q-K token attention: SN(sum over features of Q) * K. Nothing passes from one token to another.

    Source: C. Zhou et al. (QKFormer), NeurIPS 2024, arXiv 2403.16552.
    """

    maps = 2

    def count(self, q: Tensor, k: Tensor) -> Tensor:
        return q.sum(-1, keepdim=True)


class ChannelQKAttention(TokenQKAttention):
    """Q-K channel attention: SN(sum over tokens of Q) * K, from the same paper. Tokens share which features pass."""

    def count(self, q: Tensor, k: Tensor) -> Tensor:
        return q.sum(-2, keepdim=True)


ATTENTION: dict[str, type[SpikingSelfAttention]] = {
    "ssa": SpikingSelfAttention,
    "identity": IdentityAttention,
    "relu": ReLUAttention,
    "leaky_relu": LeakyReLUAttention,
    "softmax": SoftmaxAttention,
    "vanilla": VanillaSelfAttention,
    "sdsa": SpikeDrivenAttention,
    "qk_token": TokenQKAttention,
    "qk_channel": ChannelQKAttention,
}
"""Attention variants by the name that ``SpikformerConfig.attention`` takes; add your own class here."""
