"""The neuron of ``neurons.py`` as one operation, with a third of the memory traffic.

For the plain loop autograd would record about twenty small operations in each time step.
Here the forward pass keeps one tensor, the membrane u, and the backward pass walks it once in reverse:

    dL/du[t] = dL/dS[t] Theta'(u[t] - threshold) + beta (1 - S[t]) dL/du[t+1],    dL/dX[t] = dL/du[t]

(the reset is detached, so no gradient flows through 1 - S[t]). On a GPU each pass is one kernel where
Triton is installed (PyTorch brings it along on Linux).
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import SpikformerError


@cache
def _triton() -> ModuleType | None:
    return import_module(".lif_triton", __package__) if find_spec("triton") else None


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """The kernels for a tensor on a GPU; None on other devices, and where Triton is not installed."""
    return _triton() if tensor.is_cuda else None


class FusedLIF(torch.autograd.Function):
    """Leaky integrate-and-fire: current ``[T, ...]`` -> spikes ``[T, ...]`` and membranes u ``[T, ...]`` for recording.

    Without gradients and without recording (``keep`` is false) u holds the last step only.
    """

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, beta: float, threshold: float, slope: float, keep: bool
    ) -> tuple[Tensor, Tensor]:
        not_fired = torch.empty_like(current[0])  # dense, and channels_last where the current is

        def steps(count: int) -> Tensor:
            strides = (not_fired.numel(), *not_fired.stride())
            return torch.empty_strided((count, *not_fired.shape), strides, dtype=current.dtype, device=current.device)

        keep = keep or ctx.needs_input_grad[0]
        u, spikes = steps(len(current) if keep else 1), steps(len(current))
        ctx.save_for_backward(u)
        ctx.constants = beta, threshold, slope
        ctx.mark_non_differentiable(u)
        ctx.set_materialize_grads(False)  # u's would be a tensor of zeros
        if kernels := kernels_for(current):
            kernels.forward(current, u if keep else None, spikes, beta, threshold)
            return spikes, u
        last = None
        for t, (x, spike) in enumerate(zip(current.unbind(), spikes.unbind(), strict=True)):
            now = u[t % len(u)]
            if last is None:
                now.copy_(x)
            else:
                torch.lt(last, threshold, out=not_fired)
                torch.addcmul(x, last, not_fired, value=beta, out=now)
            torch.ge(now, threshold, out=spike)
            last = now
        return spikes, u

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise SpikformerError('a fused LIF has no second derivatives: take backend="snntorch"')
        if grad is None:  # the loss does not depend on the spikes
            return None, None, None, None, None
        (u,) = ctx.saved_tensors
        beta, threshold, slope = ctx.constants
        out = torch.empty_like(u)
        if kernels := kernels_for(u):
            kernels.backward(u, grad, out, beta, threshold, slope)
            return out, None, None, None, None
        offset = u.new_full((), -slope * threshold)  # without a copy from the host, which would wait
        sigma, not_fired, later = torch.empty_like(u[0]), torch.empty_like(u[0]), None
        for now, g, x in zip(*(reversed(y.unbind()) for y in (u, grad, out)), strict=True):
            torch.add(offset, now, alpha=slope, out=sigma).sigmoid_()
            torch.ops.aten.sigmoid_backward(g, sigma, grad_input=x)
            x.mul_(slope)
            if later is not None:
                torch.lt(now, threshold, out=not_fired)
                x.addcmul_(later, not_fired, value=beta)
            later = x
        return out, None, None, None, None
