"""Max-pool of spikes, 3 x 3 with stride 2, on a GPU: images with the channels of a pixel side by side.

The forward pass writes, beside the maximum, which of the nine pixels it was, in one byte (PyTorch: eight). The backward
pass reads each gradient once: a program covers 2 x 2 pixels of the input, which four windows reach, and picks.
Nothing is added atomically, so the result is the same in every run. Where several pixels are largest the first one in
reading order counts, as in PyTorch. ``plain`` is the same in PyTorch.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


def plain(x: Tensor) -> Tensor:
    """What ``MaxPool`` computes, in PyTorch: ``[n, H, W, C]`` -> ``[n, H/2, W/2, C]``."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 3, stride=2, padding=1).permute(0, 2, 3, 1)


@triton.jit
def _forward(x, out, which, H, W, C, BW: tl.constexpr, BC: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # a row of one image's windows
    w = tl.program_id(1) * BW + tl.arange(0, BW)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    n, h = row // (H // 2), row % (H // 2)
    rows = h + tl.zeros([BW], tl.int64)  # a mask is made of blocks: Triton's interpreter takes no scalar in it
    inside = (w < W // 2)[:, None] & (c < C)[None, :]
    best = tl.full([BW, BC], float("-inf"), tl.float32)
    chosen = tl.zeros([BW, BC], tl.int32)
    for k in tl.static_range(9):
        above, left = k // 3 - 1, k % 3 - 1
        pixel = (n * H + 2 * h + above) * W + 2 * w + left
        there = inside  # only windows at the top and at the left reach beyond the image: H and W are even
        if above < 0:
            there = there & (rows > 0)[:, None]
        if left < 0:
            there = there & (w > 0)[:, None]
        value = tl.load(x + pixel[:, None] * C + c[None, :], mask=there, other=float("-inf")).to(tl.float32)
        chosen = tl.where(value > best, k, chosen)
        best = tl.maximum(best, value)
    at = (row * (W // 2) + w)[:, None] * C + c[None, :]
    tl.store(out + at, best.to(out.dtype.element_ty), mask=inside)
    tl.store(which + at, chosen.to(tl.uint8), mask=inside)


@triton.jit
def _taken(grad, which, at, there, k: tl.constexpr):
    """The gradient of windows whose maximum was their pixel number k, else 0."""
    mine = tl.load(which + at, mask=there, other=255) == k
    return tl.where(mine, tl.load(grad + at, mask=there, other=0).to(tl.float32), 0)


@triton.jit
def _backward(grad, which, grad_x, H, W, C, BW: tl.constexpr, BC: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    w = tl.program_id(1) * BW + tl.arange(0, BW)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    n, h = row // (H // 2), row % (H // 2)
    rows = h + tl.zeros([BW], tl.int64)
    inside = (w < W // 2)[:, None] & (c < C)[None, :]
    right = inside & (w < W // 2 - 1)[:, None]
    below = inside & (rows < H // 2 - 1)[:, None]
    at = (row * (W // 2) + w)[:, None] * C + c[None, :]
    down = at + (W // 2) * C
    # Pixels of a window are numbered 0 to 8; this window's 4, 5, 7 and 8 are the 2 x 2 pixels of this program.
    a = _taken(grad, which, at, inside, 4)
    b = _taken(grad, which, at, inside, 5) + _taken(grad, which, at + C, right, 3)
    d = _taken(grad, which, at, inside, 7) + _taken(grad, which, down, below, 1)
    e = _taken(grad, which, at, inside, 8) + _taken(grad, which, at + C, right, 6)
    e += _taken(grad, which, down, below, 2) + _taken(grad, which, down + C, right & below, 0)
    to = ((n * H + 2 * h) * W + 2 * w)[:, None] * C + c[None, :]
    kind = grad_x.dtype.element_ty
    tl.store(grad_x + to, a.to(kind), mask=inside)
    tl.store(grad_x + to + C, b.to(kind), mask=inside)
    tl.store(grad_x + to + W * C, d.to(kind), mask=inside)
    tl.store(grad_x + to + W * C + C, e.to(kind), mask=inside)


def _tile(W: int, C: int) -> tuple[int, int]:
    """Windows of a row, and channels, of a program's tile."""
    width = min(64, C & -C) if C % 16 == 0 else min(64, triton.next_power_of_2(C))
    return min(triton.next_power_of_2(W // 2), 1024 // width), width


class MaxPool(torch.autograd.Function):
    """Max-pool 3 x 3 with stride 2 and padding 1: ``[n, H, W, C]`` -> ``[n, H/2, W/2, C]``; H and W even."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        n, H, W, C = x.shape
        out = torch.empty(n, H // 2, W // 2, C, device=x.device, dtype=x.dtype)
        which = torch.empty(out.shape, device=x.device, dtype=torch.uint8)
        BW, BC = _tile(W, C)
        with torch.cuda.device_of(x):
            _forward[(n * (H // 2), triton.cdiv(W // 2, BW), triton.cdiv(C, BC))](x, out, which, H, W, C, BW, BC)
        ctx.save_for_backward(which)
        ctx.shape = x.shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (which,) = ctx.saved_tensors
        n, H, W, C = ctx.shape
        grad_x = torch.empty(ctx.shape, device=grad.device, dtype=grad.dtype)
        BW, BC = _tile(W, C)
        with torch.cuda.device_of(grad):
            _backward[(n * (H // 2), triton.cdiv(W // 2, BW), triton.cdiv(C, BC))](
                grad.contiguous(), which, grad_x, H, W, C, BW, BC
            )
        return grad_x
