"""Batch norm and the neuron behind it, over all T steps, as one operation on a GPU.

Both take a current y ``[T, M, C]`` (M positions of C channels) to spikes:

    x = a y + b,  a = w / sqrt(var + eps),  b = bias - mean a            batch norm, one a and b a channel
    u[t] = x[t] + beta u[t-1] (1 - S[t-1]),  S[t] = 1 if u[t] >= threshold      the neuron (``neurons.py``)

Apart, they write and read x, and keep y, x and u for the backward pass. Here the forward pass reads y twice, once for
its mean and variance, and writes S. The backward pass keeps y alone: it walks the T steps again, in registers, once for
the two sums that the gradient of a batch norm needs and once for dL/dy. In bfloat16 a training step moves 16 bytes an
element instead of 28. Membranes are float32 whatever the dtype of y, and x is never rounded to that dtype.

``plain`` is the same in PyTorch. Without a GPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1``).
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..errors import SpikformerError

CHUNKS = 1024  # programs that share a sum over positions: some for each multiprocessor of a large GPU
SEGMENT = 4  # time steps whose membranes the backward pass holds in registers


def plain(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor],
    lif: tuple[float, float, float],
    steps: int,
    residual: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """What ``NormLIF`` computes in training, in PyTorch, with membranes in float32; arguments as there."""
    from .lif import FusedLIF

    x = y.float().expand(steps, *y.shape[1:])
    x = F.batch_norm(x.reshape(-1, y.shape[-1]), *running, weight, bias, True, momentum, eps).view_as(x)
    spikes = FusedLIF.apply(x, *lif, False)[0].to(y.dtype)
    return spikes if residual is None else residual + spikes


# --------------------------------------------------------------------------------------------------------- forward


@triton.jit
def _statistics(y, means, squares, R, C, rows, EVEN: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """Of a chunk of rows, per channel: the mean, and the sum of squared distances from it."""
    chunk = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    first = chunk * rows
    # Distances from the first row, so that a mean far from zero costs no digits.
    origin = tl.load(y + first * C + c, mask=c < C, other=0).to(tl.float32)
    total = tl.zeros([BR, BC], tl.float32)
    square = tl.zeros([BR, BC], tl.float32)
    for r in range(0, rows, BR):
        i = first + r + tl.arange(0, BR)
        at = i[:, None] * C + c[None, :]
        if EVEN:
            x = tl.load(y + at).to(tl.float32) - origin[None, :]
        else:
            inside = ((i < R) & (i < first + rows))[:, None] & (c < C)[None, :]
            x = tl.load(y + at, mask=inside, other=0).to(tl.float32)
            x = tl.where(inside, x - origin[None, :], 0)
        total += x
        square += x * x
    n = tl.minimum(rows, R - first).to(tl.float32)
    mean = tl.sum(total, 0) / n
    at = chunk * C + c
    tl.store(means + at, origin + mean, mask=c < C)
    tl.store(squares + at, tl.sum(square, 0) - mean * mean * n, mask=c < C)


@triton.jit
def _join(
    means,
    squares,
    offset,
    mean_out,
    var_out,
    running_mean,
    running_var,
    count,
    R,
    C,
    rows,
    chunks,
    bessel,
    momentum,
    OFFSET: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """Mean and variance of all rows from those of the chunks, and the running ones."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros([BC], tl.float32)
    for p in range(0, chunks, BP):
        i = p + tl.arange(0, BP)
        inside = (i < chunks)[:, None] & (c < C)[None, :]
        n = tl.minimum(rows, R - i * rows).to(tl.float32)
        total += tl.sum(tl.load(means + i[:, None] * C + c[None, :], mask=inside, other=0) * n[:, None], 0)
    mean = total / R
    square = tl.zeros([BC], tl.float32)
    for p in range(0, chunks, BP):
        i = p + tl.arange(0, BP)
        inside = (i < chunks)[:, None] & (c < C)[None, :]
        n = tl.minimum(rows, R - i * rows).to(tl.float32)
        at = i[:, None] * C + c[None, :]
        away = tl.load(means + at, mask=inside, other=0) - mean[None, :]
        own = tl.load(squares + at, mask=inside, other=0)
        square += tl.sum(tl.where(inside, own + away * away * n[:, None], 0), 0)
    var = tl.maximum(square / R, 0)
    inside = c < C
    tl.store(mean_out + c, mean, mask=inside)
    tl.store(var_out + c, var, mask=inside)
    if OFFSET:  # the bias of the layer before only moves the mean, which the norm takes away again
        mean += tl.load(offset + c, mask=inside, other=0)
    old = tl.load(running_mean + c, mask=inside, other=0)
    tl.store(running_mean + c, old + momentum * (mean - old), mask=inside)
    old = tl.load(running_var + c, mask=inside, other=0)
    tl.store(running_var + c, old + momentum * (var * bessel - old), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(count, tl.load(count) + 1)


@triton.jit
def _load(x, at, inside, EVEN: tl.constexpr):
    """Values of a tile, in float32."""
    if EVEN:
        value = tl.load(x + at)
    else:
        value = tl.load(x + at, mask=inside, other=0)
    return value.to(tl.float32)


@triton.jit
def _store(x, at, value, inside, EVEN: tl.constexpr):
    """Values of a tile, in the dtype of x."""
    if EVEN:
        tl.store(x + at, value.to(x.dtype.element_ty))
    else:
        tl.store(x + at, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _charge(y, at, inside, u, a, b, beta: tl.constexpr, threshold: tl.constexpr, EVEN: tl.constexpr):
    """The next membrane."""
    x = _load(y, at, inside, EVEN)
    return x * a[None, :] + b[None, :] + tl.where(u < threshold, beta * u, 0)


@triton.jit
def _scale_shift(weight, bias, mean, var, c, C, eps):
    """a and b of the norm, of the channels c."""
    a = tl.load(weight + c, mask=c < C, other=0) / tl.sqrt(tl.load(var + c, mask=c < C, other=1) + eps)
    b = tl.load(bias + c, mask=c < C, other=0) - tl.load(mean + c, mask=c < C, other=0) * a
    return a, b


@triton.jit
def _fire(
    y,
    weight,
    bias,
    mean,
    var,
    residual,
    out,
    M,
    C,
    step,
    eps,
    beta: tl.constexpr,
    threshold: tl.constexpr,
    RESIDUAL: tl.constexpr,
    T: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """Scale, shift, charge and fire, T steps of a tile of elements; the residual is added to the spikes."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    inside = (i < M)[:, None] & (c < C)[None, :]
    at = i[:, None] * C + c[None, :]
    a, b = _scale_shift(weight, bias, mean, var, c, C, eps)
    u = tl.zeros([BM, BC], tl.float32)
    size = M.to(tl.int64) * C
    for t in tl.static_range(T):
        u = _charge(y, at + t * step, inside, u, a, b, beta, threshold, EVEN)
        value = tl.where(u >= threshold, 1.0, 0.0)
        if RESIDUAL:
            value += _load(residual, at + t * size, inside, EVEN)
        _store(out, at + t * size, value, inside, EVEN)


# -------------------------------------------------------------------------------------------------------- backward


@triton.jit
def _starts(
    y,
    at,
    step,
    inside,
    u,
    a,
    b,
    beta: tl.constexpr,
    threshold: tl.constexpr,
    T: tl.constexpr,
    SEG: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The membrane before each segment of SEG steps; u is that before the first."""
    starts = (u,)
    for t in tl.static_range((T - 1) // SEG * SEG):
        u = _charge(y, at + t * step, inside, u, a, b, beta, threshold, EVEN)
        if t % SEG == SEG - 1:
            starts = starts + (u,)  # type: ignore[assignment]
    return starts


@triton.jit
def _segment(
    y,
    at,
    step,
    inside,
    u,
    a,
    b,
    beta: tl.constexpr,
    threshold: tl.constexpr,
    LENGTH: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Membranes of LENGTH steps, from the membrane u before them."""
    tl.debug_barrier()  # keeps the compiler from loading every segment at once, which would need more registers
    us = ()
    for t in tl.static_range(LENGTH):
        u = _charge(y, at + t * step, inside, u, a, b, beta, threshold, EVEN)
        us = us + (u,)  # type: ignore[assignment]
    return us


@triton.jit
def _surrogate(u, threshold: tl.constexpr, slope: tl.constexpr):
    """The derivative of sigmoid(slope (u - threshold)) by u."""
    root = tl.rsqrt(1 + tl.exp2(-slope * 1.4426950408889634 * (u - threshold)))
    sigma = root * root  # 1 / (1 + e): one instruction where a division takes eight
    return slope * (sigma - sigma * sigma)


@triton.jit
def _backward_sums(
    y,
    grad,
    weight,
    bias,
    mean,
    var,
    sums,
    products,
    M,
    C,
    step,
    rows,
    eps,
    beta: tl.constexpr,
    threshold: tl.constexpr,
    slope: tl.constexpr,
    T: tl.constexpr,
    SEG: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """Of a chunk of positions and all T steps, per channel: the sums of dL/dx and of dL/dx (y - mean)."""
    chunk = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    a, b = _scale_shift(weight, bias, mean, var, c, C, eps)
    centre = tl.load(mean + c, mask=c < C, other=0)[None, :]
    total = tl.zeros([BM, BC], tl.float32)
    product = tl.zeros([BM, BC], tl.float32)
    first = chunk * rows
    size = M.to(tl.int64) * C
    for r in range(0, rows, BM):
        i = first + r + tl.arange(0, BM)
        inside = ((i < M) & (i < first + rows))[:, None] & (c < C)[None, :]
        at = i[:, None] * C + c[None, :]
        zero = tl.zeros([BM, BC], tl.float32)
        starts = _starts(y, at, step, inside, zero, a, b, beta, threshold, T, SEG, EVEN)
        later = zero
        for back in tl.static_range(T):  # step T - 1 - back
            if back == 0 or (T - 1 - back) % SEG == SEG - 1:
                begin = (T - 1 - back) // SEG * SEG
                u = starts[(T - 1 - back) // SEG]
                us = _segment(
                    y, at + begin * step, step, inside, u, a, b, beta, threshold, (T - 1 - back) % SEG + 1, EVEN
                )
            u = us[(T - 1 - back) % SEG]
            g = _load(grad, at + (T - 1 - back) * size, inside, EVEN)
            later = g * _surrogate(u, threshold, slope) + tl.where(u < threshold, beta * later, 0)
            total += later
            product += later * (_load(y, at + (T - 1 - back) * step, inside, EVEN) - centre)
    at = chunk * C + c
    tl.store(sums + at, tl.sum(total, 0), mask=c < C)
    tl.store(products + at, tl.sum(product, 0), mask=c < C)


@triton.jit
def _backward_join(sums, products, var, grad_weight, grad_bias, chunks, C, eps, BP: tl.constexpr, BC: tl.constexpr):
    """dL/dbias and dL/dweight from the sums of the chunks."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros([BC], tl.float32)
    product = tl.zeros([BC], tl.float32)
    for p in range(0, chunks, BP):
        i = p + tl.arange(0, BP)
        inside = (i < chunks)[:, None] & (c < C)[None, :]
        at = i[:, None] * C + c[None, :]
        total += tl.sum(tl.load(sums + at, mask=inside, other=0), 0)
        product += tl.sum(tl.load(products + at, mask=inside, other=0), 0)
    rstd = 1 / tl.sqrt(tl.load(var + c, mask=c < C, other=1) + eps)
    tl.store(grad_bias + c, total, mask=c < C)
    tl.store(grad_weight + c, product * rstd, mask=c < C)


@triton.jit
def _backward(
    y,
    grad,
    weight,
    bias,
    mean,
    var,
    grad_weight,
    grad_bias,
    grad_y,
    M,
    C,
    step,
    n,
    eps,
    beta: tl.constexpr,
    threshold: tl.constexpr,
    slope: tl.constexpr,
    STILL: tl.constexpr,
    T: tl.constexpr,
    SEG: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """dL/dy = a (dL/dx - mean of dL/dx - x_hat mean of dL/dx x_hat); of a still image the sum over its T copies."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    inside = (i < M)[:, None] & (c < C)[None, :]
    at = i[:, None] * C + c[None, :]
    size = M.to(tl.int64) * C
    a, b = _scale_shift(weight, bias, mean, var, c, C, eps)
    centre = tl.load(mean + c, mask=c < C, other=0)
    rstd = 1 / tl.sqrt(tl.load(var + c, mask=c < C, other=1) + eps)
    # dL/dy = a dL/dx - (y slant + level), the two means folded into one line a channel
    slant = a * rstd * tl.load(grad_weight + c, mask=c < C, other=0) / n
    level = a * tl.load(grad_bias + c, mask=c < C, other=0) / n - slant * centre
    zero = tl.zeros([BM, BC], tl.float32)
    starts = _starts(y, at, step, inside, zero, a, b, beta, threshold, T, SEG, EVEN)
    later, total = zero, zero
    for back in tl.static_range(T):  # step T - 1 - back
        if back == 0 or (T - 1 - back) % SEG == SEG - 1:
            begin = (T - 1 - back) // SEG * SEG
            u = starts[(T - 1 - back) // SEG]
            us = _segment(y, at + begin * step, step, inside, u, a, b, beta, threshold, (T - 1 - back) % SEG + 1, EVEN)
        u = us[(T - 1 - back) % SEG]
        here = at + (T - 1 - back) * size
        g = _load(grad, here, inside, EVEN)
        later = g * _surrogate(u, threshold, slope) + tl.where(u < threshold, beta * later, 0)
        if STILL:
            total += later
            tl.debug_barrier()  # no store stands between the steps: see _segment
        else:
            x = _load(y, at + (T - 1 - back) * step, inside, EVEN)
            out = a[None, :] * later - (x * slant[None, :] + level[None, :])
            _store(grad_y, here, out, inside, EVEN)
    if STILL:
        x = _load(y, at, inside, EVEN)
        out = a[None, :] * total - T * (x * slant[None, :] + level[None, :])
        _store(grad_y, at, out, inside, EVEN)


# ---------------------------------------------------------------------------------------------------------- launch


def _tile(C: int, elements: int) -> tuple[int, int]:
    """Positions and channels of a program's tile: channels by a power of two that divides C, where one does."""
    width = min(64, C & -C)
    if width < 16:
        width = min(64, triton.next_power_of_2(C))
    return max(1, elements // width), width


def _chunks(tiles: int, most: int) -> tuple[int, int]:
    """Number of chunks, about ``most``, and tiles in each; even ones where the numbers allow it."""
    most = max(1, min(most, tiles))
    even = next(n for n in range(most, 0, -1) if tiles % n == 0)
    if 2 * even > most:
        return even, tiles // even
    each = triton.cdiv(tiles, most)
    return triton.cdiv(tiles, each), each


class NormLIF(torch.autograd.Function):
    """Batch norm with the batch's own statistics, then the neuron: y ``[T, M, C]`` -> spikes ``[T, M, C]``.

    y ``[1, M, C]`` with T > 1 stands for T copies of it. ``running`` (mean and variance) and ``count`` are moved as
    ``nn.BatchNorm1d`` moves them. ``offset`` ``[C]`` is the bias of the layer before, which the norm cancels: it is
    added to the running mean alone, and its gradient is zero. ``residual`` ``[T, M, C]`` is added to the spikes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        running: tuple[Tensor, Tensor],
        count: Tensor,
        offset: Tensor | None,
        residual: Tensor | None,
        lif: tuple[float, float, float],
        steps: int,
        momentum: float,
        eps: float,
    ) -> Tensor:
        given, M, C = y.shape
        R, copies = given * M, steps * M
        BR, BC = _tile(C, 4096)
        blocks = triton.cdiv(C, BC)
        chunks, tiles = _chunks(triton.cdiv(R, BR), CHUNKS // blocks)
        rows = tiles * BR
        means, squares = torch.empty(2, chunks, C, device=y.device, dtype=torch.float32)
        mean, var = torch.empty(2, C, device=y.device, dtype=torch.float32)
        even = C % BC == 0 and chunks * rows == R
        with torch.cuda.device_of(y):
            _statistics[(chunks, blocks)](y, means, squares, R, C, rows, even, BR, BC)
            _join[(triton.cdiv(C, 16),)](
                *(means, squares, mean if offset is None else offset, mean, var, *running, count),
                *(R, C, rows, chunks, copies / max(copies - 1, 1), momentum, offset is not None, 64, 16),
            )
        out = fire(y, weight, bias, mean, var, lif, steps, eps, residual)
        ctx.save_for_backward(y, weight, bias, mean, var)
        ctx.constants, ctx.steps, ctx.eps = lif, steps, eps
        ctx.given = offset is not None and ctx.needs_input_grad[5], residual is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise SpikformerError('a fused LIF has no second derivatives: take backend="snntorch"')
        y, weight, bias, mean, var = ctx.saved_tensors
        steps, eps = ctx.steps, ctx.eps
        given, M, C = y.shape
        still = given < steps
        spikes_grad = grad.contiguous()
        step = 0 if given == 1 else M * C
        BM, BC = _tile(C, 1024)
        blocks = triton.cdiv(C, BC)
        chunks, tiles = _chunks(triton.cdiv(M, BM), CHUNKS // blocks)
        rows = tiles * BM
        sums, products = torch.empty(2, chunks, C, device=y.device, dtype=torch.float32)
        grad_weight, grad_bias = torch.empty(2, C, device=y.device, dtype=torch.float32)
        grad_y = torch.empty_like(y)
        tail = *ctx.constants, steps, SEGMENT
        with torch.cuda.device_of(y):
            _backward_sums[(chunks, blocks)](
                *(y, spikes_grad, weight, bias, mean, var, sums, products, M, C, step, rows, eps, *tail),
                *(C % BC == 0 and chunks * rows == M, BM, BC),
            )
            _backward_join[(triton.cdiv(C, 16),)](sums, products, var, grad_weight, grad_bias, chunks, C, eps, 64, 16)
            _backward[(triton.cdiv(M, BM), blocks)](
                *(y, spikes_grad, weight, bias, mean, var, grad_weight, grad_bias, grad_y, M, C, step, steps * M, eps),
                *(*ctx.constants, still, steps, SEGMENT, C % BC == 0 and M % BM == 0, BM, BC),
            )
        has_offset, has_residual = ctx.given
        offset = torch.zeros_like(grad_bias) if has_offset else None
        return grad_y, grad_weight, grad_bias, None, None, offset, grad if has_residual else None, *[None] * 4


def fire(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    lif: tuple[float, float, float],
    steps: int,
    eps: float,
    residual: Tensor | None = None,
) -> Tensor:
    """Norm with the statistics given, then the neuron, without gradients: what evaluation needs. Shapes as above."""
    given, M, C = y.shape
    out = torch.empty(steps, M, C, device=y.device, dtype=y.dtype)
    BM, BC = _tile(C, 2048)
    with torch.cuda.device_of(y):
        _fire[(triton.cdiv(M, BM), triton.cdiv(C, BC))](
            *(y, weight, bias, mean, var, out if residual is None else residual, out, M, C),
            *(0 if given == 1 else M * C, eps, *lif[:2], residual is not None, steps),
            *(C % BC == 0 and M % BM == 0, BM, BC),
        )
    return out
