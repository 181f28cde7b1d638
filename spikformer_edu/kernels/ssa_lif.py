"""Spiking self-attention and its neuron over all T steps, on a GPU, straight from the spikes of Q, K and V.

    O[t] = Q (K^T V) s,    u[t] = O[t] + beta u[t-1] (1 - S[t-1]),    S[t] = 1 if u[t] >= threshold

Q, K, V lie side by side in one tensor ``[T, B, N, 3D]``, as one norm and neuron leave them: no head is copied into a
tensor of its own, and O is never written. K^T V, d x d integers up to N, is made first, by one program a sample, step
and head; then each program takes some tokens of a head through all T steps. Membranes are float32 and are not kept: the
backward pass, the same in reverse, needs dS/du alone, which is kept in the dtype of the spikes, and whether the neuron
fired. Sums of integers up to 256 are exact in bfloat16: hence N <= 256.
In float32 each product is made of three of TF32's, which keeps float32's digits. ``plain`` is the same in PyTorch.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import SpikformerError

TOKENS = 64  # of a program's tile


def _shape(qkv: Tensor, N: int) -> tuple[int, dict[str, int]]:
    """Tokens of a program's tile, and the warps that share it: float32 takes twice the registers."""
    return min(TOKENS, max(16, triton.next_power_of_2(N))), {"num_warps": 8 if qkv.dtype == torch.float32 else 4}


def plain(qkv: Tensor, heads: int, scale: float, lif: tuple[float, float, float]) -> Tensor:
    """What ``SSALIF`` computes, in PyTorch, with products and membranes in float32; arguments as there."""
    from .lif import FusedLIF

    q, k, v = qkv.float().unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)  # each [T, B, h, N, d]
    mixed = (q @ (k.mT @ v) * scale).transpose(2, 3).flatten(3)
    return FusedLIF.apply(mixed, *lif, False)[0].to(qkv.dtype)


@triton.jit
def _outer(x, y, out, N, width_x, width_y, heads, BN: tl.constexpr, d: tl.constexpr):
    """X^T Y over all tokens of a head: x ``[.., N, width_x]``, y ``[.., N, width_y]`` -> out ``[.., heads, d, d]``."""
    sample, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, d)
    total = tl.zeros([d, d], tl.float32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        row, inside = sample * N + n, (n < N)[:, None]
        a = tl.load(x + row[:, None] * width_x + head * d + c[None, :], mask=inside, other=0)
        b = tl.load(y + row[:, None] * width_y + head * d + c[None, :], mask=inside, other=0)
        total += tl.dot(tl.trans(a), b, input_precision="tf32x3")
    at = (sample * heads + head) * d * d + c[:, None] * d + c[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty))


@triton.jit
def _attend(
    qkv,
    kv,
    out,
    slopes,
    B,
    N,
    D,
    heads,
    scale,
    beta: tl.constexpr,
    threshold: tl.constexpr,
    slope: tl.constexpr,
    KEEP: tl.constexpr,
    T: tl.constexpr,
    BN: tl.constexpr,
    d: tl.constexpr,
):
    """Spikes of some tokens of a head, over T steps, and the surrogate dS/du."""
    sample, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n, c = tl.program_id(2) * BN + tl.arange(0, BN), tl.arange(0, d)
    inside = (n < N)[:, None]
    u = tl.zeros([BN, d], tl.float32)
    for t in range(T):
        row = (t * B + sample) * N + n
        q = tl.load(qkv + row[:, None] * (3 * D) + head * d + c[None, :], mask=inside, other=0)
        product = tl.load(kv + ((t * B + sample) * heads + head) * d * d + c[:, None] * d + c[None, :])
        u = tl.dot(q, product, input_precision="tf32x3") * scale + tl.where(u < threshold, beta * u, 0)
        at = row[:, None] * D + head * d + c[None, :]
        tl.store(out + at, tl.where(u >= threshold, 1.0, 0.0).to(out.dtype.element_ty), mask=inside)
        if KEEP:
            root = tl.rsqrt(1 + tl.exp2(-slope * 1.4426950408889634 * (u - threshold)))
            sigma = root * root
            tl.store(slopes + at, (slope * (sigma - sigma * sigma)).to(slopes.dtype.element_ty), mask=inside)


@triton.jit
def _backward_queries(
    kv,
    spikes,
    slopes,
    grad,
    grad_out,
    grad_qkv,
    B,
    N,
    D,
    heads,
    scale,
    beta: tl.constexpr,
    T: tl.constexpr,
    BN: tl.constexpr,
    d: tl.constexpr,
):
    """dL/dO s and dL/dQ of some tokens of a head, from the last step to the first."""
    sample, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n, c = tl.program_id(2) * BN + tl.arange(0, BN), tl.arange(0, d)
    inside = (n < N)[:, None]
    later = tl.zeros([BN, d], tl.float32)
    for back in range(T):
        t = T - 1 - back
        row = (t * B + sample) * N + n
        at = row[:, None] * D + head * d + c[None, :]
        fired = tl.load(spikes + at, mask=inside, other=0).to(tl.float32)
        slope = tl.load(slopes + at, mask=inside, other=0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0).to(tl.float32)
        later = g * slope + beta * (1 - fired) * later
        o = (later * scale).to(grad_out.dtype.element_ty)
        tl.store(grad_out + at, o, mask=inside)
        product = tl.load(kv + ((t * B + sample) * heads + head) * d * d + c[None, :] * d + c[:, None])  # transposed
        q = tl.dot(o, product, input_precision="tf32x3")
        to = row[:, None] * (3 * D) + head * d + c[None, :]
        tl.store(grad_qkv + to, q.to(grad_qkv.dtype.element_ty), mask=inside)


@triton.jit
def _backward_keys_values(qkv, grad_out, grad_qkv, N, D, BN: tl.constexpr, d: tl.constexpr):
    """dL/dK = V (Q^T dL/dO s)^T and dL/dV = K (Q^T dL/dO s) of a sample, step and head."""
    sample, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, d)
    total = tl.zeros([d, d], tl.float32)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        row, inside = sample * N + n, (n < N)[:, None]
        q = tl.load(qkv + row[:, None] * (3 * D) + head * d + c[None, :], mask=inside, other=0)
        o = tl.load(grad_out + row[:, None] * D + head * d + c[None, :], mask=inside, other=0)
        total += tl.dot(tl.trans(q), o, input_precision="tf32x3")
    product = total.to(qkv.dtype.element_ty)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        row, inside = sample * N + n, (n < N)[:, None]
        at = row[:, None] * (3 * D) + head * d + c[None, :]
        k = tl.load(qkv + at + D, mask=inside, other=0)
        v = tl.load(qkv + at + 2 * D, mask=inside, other=0)
        kind = grad_qkv.dtype.element_ty
        tl.store(grad_qkv + at + D, tl.dot(v, tl.trans(product), input_precision="tf32x3").to(kind), mask=inside)
        tl.store(grad_qkv + at + 2 * D, tl.dot(k, product, input_precision="tf32x3").to(kind), mask=inside)


class SSALIF(torch.autograd.Function):
    """Q K^T V s and its neuron: spikes ``[T, B, N, 3D]`` of Q, K and V, contiguous -> spikes ``[T, B, N, D]``."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, scale: float, lif: tuple[float, float, float]) -> Tensor:
        T, B, N, D = *qkv.shape[:3], qkv.shape[3] // 3
        d, keep = D // heads, ctx.needs_input_grad[0]
        out = torch.empty(T, B, N, D, device=qkv.device, dtype=qkv.dtype)
        kv = torch.empty(T, B, heads, d, d, device=qkv.device, dtype=qkv.dtype)
        slopes = torch.empty(out.shape if keep else 0, device=qkv.device, dtype=qkv.dtype)
        BN, warps = _shape(qkv, N)
        with torch.cuda.device_of(qkv):
            _outer[(T * B, heads)](qkv[..., D:], qkv[..., 2 * D :], kv, N, 3 * D, 3 * D, heads, BN, d, **warps)
            _attend[(B, heads, triton.cdiv(N, BN))](
                qkv, kv, out, slopes, B, N, D, heads, scale, *lif, keep, T, BN, d, **warps
            )
        ctx.save_for_backward(qkv, kv, out, slopes)
        ctx.constants = heads, scale, lif[0]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise SpikformerError('a fused LIF has no second derivatives: take backend="snntorch"')
        qkv, kv, spikes, slopes = ctx.saved_tensors
        heads, scale, beta = ctx.constants
        T, B, N, D = spikes.shape
        d = D // heads
        grad_out, grad_qkv = torch.empty_like(grad, memory_format=torch.contiguous_format), torch.empty_like(qkv)
        BN, warps = _shape(qkv, N)
        with torch.cuda.device_of(qkv):
            _backward_queries[(B, heads, triton.cdiv(N, BN))](
                *(kv, spikes, slopes, grad.contiguous(), grad_out, grad_qkv, B, N, D, heads, scale, beta, T, BN, d),
                **warps,
            )
            _backward_keys_values[(T * B, heads)](qkv, grad_out, grad_qkv, N, D, BN, d, **warps)
        return grad_qkv, None, None, None
