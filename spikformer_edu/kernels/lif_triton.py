"""The fused neuron's two passes as GPU kernels: each reads and writes the T steps of an element once, in one loop.

Arithmetic is in float32 (in float64 for float64); the membrane is rounded to the tensor's own precision at every step,
as ``lif.py`` does on a CPU, so that spikes are the same. The constants are compiled in, exact for every dtype.
Without a GPU these kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), which is how they are tested.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # elements a program


@triton.jit
def _forward(
    current,
    membranes,
    spikes,
    size,
    step,
    beta: tl.constexpr,
    threshold: tl.constexpr,
    T: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    out = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, into = out < size, out
    wide = tl.float64 if current.dtype.element_ty == tl.float64 else tl.float32
    last = tl.zeros([BLOCK], wide)
    for _ in range(T):
        x = tl.load(current + into, mask=inside, other=0).to(wide)
        u = (x + tl.where(last < threshold, beta * last, 0)).to(current.dtype.element_ty)  # the reset is one step late
        if KEEP:
            tl.store(membranes + out, u, mask=inside)
        last = u.to(wide)
        spike = tl.where(last >= threshold, 1.0, 0.0)
        tl.store(spikes + out, spike.to(spikes.dtype.element_ty), mask=inside)
        into += step  # 0 for a still image: the same current at every step
        out += size


@triton.jit
def _backward(
    membranes,
    grad,
    currents,
    size,
    final,
    beta: tl.constexpr,
    threshold: tl.constexpr,
    slope: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    at += final
    wide = tl.float64 if membranes.dtype.element_ty == tl.float64 else tl.float32
    later = tl.zeros([BLOCK], wide)
    for _ in range(T):
        u = tl.load(membranes + at, mask=inside, other=0).to(wide)
        g = tl.load(grad + at, mask=inside, other=0).to(wide)
        sigma = 1 / (1 + tl.exp(-slope * (u - threshold)))
        later = g * slope * sigma * (1 - sigma) + tl.where(u < threshold, beta * later, 0)
        tl.store(currents + at, later.to(currents.dtype.element_ty), mask=inside)
        at -= size


def forward(current: Tensor, membranes: Tensor | None, spikes: Tensor, beta: float, threshold: float) -> None:
    """Fill ``spikes`` and, if given, ``membranes``; both ``[T, ...]``, one step after the other without gaps."""
    if current.stride()[1:] != spikes.stride()[1:]:
        current = torch.empty_like(spikes).copy_(current)
    steps, size = len(spikes), spikes[0].numel()
    keep = membranes is not None
    with torch.cuda.device_of(current):  # Triton launches on the current GPU, wherever its arguments are
        _forward[(triton.cdiv(size, BLOCK),)](
            *(current, membranes if keep else spikes, spikes, size, current.stride(0)),
            *(beta, threshold, steps, keep, BLOCK),
            enable_fp_fusion=False,  # x + beta u in two roundings, as everywhere else
        )


def backward(membranes: Tensor, grad: Tensor, currents: Tensor, beta: float, threshold: float, slope: float) -> None:
    """Fill ``currents`` with dL/dX, in the layout of ``membranes``; ``grad``, dL/dS, may have any."""
    if grad.stride() != membranes.stride():
        grad = torch.empty_like(membranes).copy_(grad)
    steps, size = len(membranes), membranes[0].numel()
    with torch.cuda.device_of(membranes):
        _backward[(triton.cdiv(size, BLOCK),)](
            *(membranes, grad, currents, size, (steps - 1) * size),
            *(beta, threshold, slope, steps, BLOCK),
            enable_fp_fusion=False,  # explicit, because the default changes from Triton 3.9 to 3.10
        )
