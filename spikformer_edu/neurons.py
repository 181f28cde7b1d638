"""The paper's spiking neuron, as a snnTorch ``Leaky`` that runs over all time steps.

The paper (eq. 1-3) charges, fires and resets a membrane potential:

    H[t] = V[t-1] + (X[t] - V[t-1]) / tau        charge
    S[t] = 1 if H[t] >= V_th else 0              fire
    V[t] = H[t] (1 - S[t])                       hard reset to zero

snnTorch's ``Leaky`` does not divide its input by tau. With the rescaled membrane u = tau H the same neuron reads
u[t] = beta u[t-1] (1 - S[t-1]) + X[t], where beta = 1 - 1/tau, and fires at u >= tau V_th. The mapping is exact.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import snntorch as snn
import torch
from torch import Tensor

from .errors import SpikformerError, nearest
from .kernels.lif import FusedLIF

BACKENDS = ("fused", "snntorch")


class _SigmoidSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return (x >= 0).to(x.dtype)  # >=, not >: Q K^T V s lies on a grid, where exact ties are common

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        sigma = torch.sigmoid(ctx.slope * x)
        return grad * ctx.slope * sigma * (1 - sigma), None


class Sigmoid:
    """Heaviside step forward, derivative of a sigmoid backward; a ``spike_grad`` for snnTorch neurons.

    Unlike snnTorch's own surrogates it fires on ``x >= 0`` (the paper's Theta(0) = 1) and returns
    the dtype it is given, so that spikes stay in low precision under autocast.

    Args:
        slope: alpha of sigma(alpha x), per unit of the membrane it is applied to.

    Source: paper, appendix C.1 (alpha = 4 on H; 2 on u = tau H with tau = 2).
    """

    def __init__(self, slope: float):
        self.slope = slope

    def __call__(self, x: Tensor) -> Tensor:
        return _SigmoidSpike.apply(x, self.slope)


def _loop(current: Tensor, beta: Tensor, threshold: Tensor, slope: float) -> tuple[Tensor, list[Tensor]]:
    """``LIF.loop`` as tensors alone, for the compiler, which would keep a version of a method for every shape."""
    u = fired = torch.zeros_like(current[0])
    spikes, membranes = [], []
    for x in current:
        u = beta * ((1 - fired) * u) + x
        spikes.append(_SigmoidSpike.apply(u - threshold, slope))
        fired = spikes[-1].detach()  # the reset carries no gradient
        membranes.append(u.detach())
    return torch.stack(spikes), membranes


class LIFOptions(TypedDict, total=False):
    """Options of ``LIF`` that a layer hands on to its neurons."""

    tau: float
    alpha: float
    learn_beta: bool
    learn_threshold: bool
    backend: str


class LIF(snn.Leaky):
    """The paper's leaky integrate-and-fire neuron: a ``snntorch.Leaky`` applied to every time step.

    Every call starts from V = 0 and keeps no state: there is nothing to reset, and threads may share a neuron.

    Args:
        tau: membrane time constant, in time steps; at 1 a step keeps nothing of the one before.
        v_threshold: threshold V_th in the paper's units (that of H).
        alpha: slope of the sigmoid surrogate, per unit of H.
        learn_beta: learn the decay beta = 1 - 1/tau (snnTorch's option; clamped to [0, 1]).
        learn_threshold: learn the threshold (snnTorch's option).
        backend: "fused" runs all steps at once (``kernels/lif.py``) unless beta or the threshold is learned, or the
            compiler fuses the loop anyway; "snntorch" always runs the plain loop, and only it has second derivatives.
            Spikes are the same except for a few in half precision with tau != 2, where the loop also rounds beta u.

    Shapes: input current ``[T, ...]``, real -> spikes ``[T, ...]``, {0, 1}, of the input's dtype.

    Raises:
        SpikformerError: tau out of its range, an unknown backend, a current of integers.

    Source: paper, eq. 1-3 and appendix C.1.

    Examples:
        >>> import torch, spikformer_edu as se
        >>> se.LIF()(torch.full((6,), 1.5))  # H charges to 0.75, then to 1.125, fires and is reset
        tensor([0., 1., 0., 1., 0., 1.])
    """

    beta: Tensor
    threshold: Tensor
    _constants: tuple[Sequence[tuple[Tensor | None, int | None]], tuple[float, float]]

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        alpha: float = 4.0,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        backend: str = "fused",
    ):
        if not 1 <= tau < math.inf:
            raise SpikformerError(f"tau={tau}: give a finite time constant of at least one time step")
        if backend not in BACKENDS:
            raise SpikformerError(f"unknown backend {backend!r}: {nearest(backend, BACKENDS)}")
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # half precision would round them
        super().__init__(
            beta=torch.tensor(1 - 1 / tau, dtype=dtype),
            threshold=torch.tensor(tau * v_threshold, dtype=dtype),
            spike_grad=Sigmoid(alpha / tau),
            reset_mechanism="zero",
            reset_delay=True,  # the reset acts at the next step and carries no gradient, as in the paper's code
            learn_beta=learn_beta,
            learn_threshold=learn_threshold,
        )
        self.tau, self.slope = tau, alpha / tau
        self.fusible = backend == "fused" and not learn_beta and not learn_threshold
        self.on_membranes: Callable[[Tensor], None] | None = None  # called with u [T, ...]; set by record()
        # snnTorch keeps every neuron in this list; without this line no model would be freed.
        snn.SpikingNeuron.instances.remove(self)
        self._constants = [(None, None)] * 2, (math.nan, math.nan)
        # Constants of the configuration, not weights: keep snnTorch's four buffers out of checkpoints.
        for name, value in list(self.named_buffers(recurse=False)):
            delattr(self, name)
            self.register_buffer(name, value, persistent=False)

    @property
    def v_threshold(self) -> float:
        """The threshold V_th in the paper's units."""
        return float(self.threshold) / self.tau

    def forward(self, current: Tensor) -> Tensor:
        if not current.is_floating_point():
            raise SpikformerError(f"current is {current.dtype}: give floating point numbers, current.float()")
        listener = self.on_membranes  # read once: another thread may end its recording meanwhile
        if torch.compiler.is_compiling():
            spikes, membranes = _loop(current, self.beta.clamp(0, 1), self.threshold, self.slope)
        elif self.fusible:
            spikes, membranes = FusedLIF.apply(current, *self.constants(), self.slope, listener is not None)
        else:
            spikes, membranes = self.loop(current)
        if listener is not None:
            listener(torch.stack(tuple(membranes)))
        return spikes

    def constants(self) -> tuple[float, float]:
        """beta and the threshold as numbers, read again only when they have changed: reading waits for a GPU."""
        now = [(t, None if t.is_inference() else t._version) for t in (self.beta, self.threshold)]
        if any(a is not b or m != n or n is None for (a, m), (b, n) in zip(self._constants[0], now, strict=True)):
            self._constants = now, (float(self.beta), float(self.threshold))  # at once: threads may share the neuron
        return self._constants[1]

    def loop(self, current: Tensor) -> tuple[Tensor, list[Tensor]]:
        """snnTorch's neuron, step by step: spikes ``[T, ...]``, and for each step the membrane u before the reset."""
        # These are the steps of Leaky.forward, which would keep u on the module, where threads would share it.
        u = torch.zeros_like(current[0])
        spikes, membranes = [], []
        for x in current:
            u = self.beta.clamp(0, 1) * ((1 - self.mem_reset(u)) * u) + x
            spikes.append(self.fire(u))
            membranes.append(u.detach())
        return torch.stack(spikes), membranes

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}, v_threshold={self.v_threshold:g}"
