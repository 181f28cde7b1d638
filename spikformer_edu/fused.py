"""The neuron of ``neurons.py`` as one operation: the same numbers with a third of the memory traffic.

Autograd, left to itself, records some twenty small operations for each time step of the plain loop.
Here the forward pass keeps one tensor, the membrane u, and the backward pass walks it once in reverse:

    dL/du[t] = dL/dS[t] Theta'(u[t] - threshold) + beta (1 - S[t]) dL/du[t+1],    dL/dX[t] = dL/du[t]

(the reset is detached, so no gradient flows through 1 - S[t]).
"""

import torch
from torch import Tensor


class FusedLIF(torch.autograd.Function):
    """Leaky integrate-and-fire: current ``[T, ...]`` -> spikes ``[T, ...]``, membranes u ``[T, ...]`` to look at."""

    @staticmethod
    def forward(ctx, current: Tensor, beta: float, threshold: float, slope: float) -> tuple[Tensor, Tensor]:
        step = torch.empty_like(current[0])  # dense, and channels_last where the current is
        u = torch.empty_strided(
            current.shape, (step.numel(), *step.stride()), dtype=current.dtype, device=current.device
        )
        spikes = torch.empty_like(u)
        u[0] = current[0]
        torch.ge(u[0], threshold, out=spikes[0])
        silent = torch.empty_like(u[0])
        for t in range(1, len(u)):
            torch.lt(u[t - 1], threshold, out=silent)
            torch.addcmul(current[t], u[t - 1], silent, value=beta, out=u[t])
            torch.ge(u[t], threshold, out=spikes[t])
        ctx.save_for_backward(u)
        ctx.constants = beta, threshold, slope
        ctx.mark_non_differentiable(u)
        ctx.set_materialize_grads(False)  # u's would be a tensor of zeros
        return spikes, u

    @staticmethod
    def backward(ctx, grad: Tensor, _: None) -> tuple[Tensor, None, None, None]:
        (u,) = ctx.saved_tensors
        beta, threshold, slope = ctx.constants
        out = torch.empty_like(u)
        offset = u.new_tensor(-slope * threshold)
        sigma, silent = torch.empty_like(u[0]), torch.empty_like(u[0])
        for t in range(len(u) - 1, -1, -1):
            torch.add(offset, u[t], alpha=slope, out=sigma).sigmoid_()
            torch.ops.aten.sigmoid_backward(grad[t], sigma, grad_input=out[t])
            out[t].mul_(slope)
            if t + 1 < len(u):
                torch.lt(u[t], threshold, out=silent)
                out[t].addcmul_(out[t + 1], silent, value=beta)
        return out, None, None, None
