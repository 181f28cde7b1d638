"""The paper's spiking neuron, as a snnTorch ``Leaky`` that runs over all time steps; and three others, by name.

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
from torch import Tensor, nn

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
    """Options that a layer hands on to its neurons: the kind, and what this kind takes."""

    neuron: str
    tau: float
    alpha: float
    levels: int
    backend: str


class LIF(snn.Leaky):
    """The paper's leaky integrate-and-fire neuron: a ``snntorch.Leaky`` applied to every time step.

    Every call starts from V = 0 and keeps no state: there is nothing to reset, and threads may share a neuron.

    Args:
        tau: membrane time constant, in time steps; at 1 a step keeps nothing of the one before.
        v_threshold: threshold V_th in the paper's units (that of H).
        alpha: slope of the sigmoid surrogate, per unit of H.
        backend: "fused" runs all steps at once (``kernels/lif.py``) unless the compiler fuses the loop anyway;
            "snntorch" always runs the plain loop, and only it has second derivatives. Spikes are the same except for a
            few in half precision with tau != 2, where the loop also rounds beta u.

    Shapes: input current ``[T, ...]``, real -> spikes ``[T, ...]``, {0, 1}, of the input's dtype.

    Raises:
        SpikformerError: tau out of its range, an unknown backend, a current of integers.

    Source: paper, eq. 1-3 and appendix C.1.

    Examples:
        >>> import torch, spikformer_edu as se
        >>> se.LIF()(torch.full((6,), 1.5))  # H charges to 0.75, then to 1.125, fires and is reset
        tensor([0., 1., 0., 1., 0., 1.])
    """

    levels = 1  # the largest number that it gives
    beta: Tensor
    threshold: Tensor
    _constants: tuple[Sequence[tuple[Tensor | None, int | None]], tuple[float, float]]

    def __init__(self, tau: float = 2.0, v_threshold: float = 1.0, alpha: float = 4.0, backend: str = "fused"):
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
        )
        self.tau, self.slope = tau, alpha / tau
        self.fusible = backend == "fused"  # may be computed by the kernels
        self.on_membranes: Callable[[Tensor], None] | None = None  # called with u = tau H; set by record()
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

    @property
    def decay(self) -> float:
        """What a step leaves of the membrane potential, beta = 1 - 1/tau."""
        return float(self.beta)

    def forward(self, current: Tensor) -> Tensor:
        if not current.is_floating_point():
            raise SpikformerError(f"current is {current.dtype}: give floating point numbers, current.float()")
        listener = self.on_membranes  # read once: another thread may end its recording meanwhile
        if self.fusible and not torch.compiler.is_compiling():
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
        if torch.compiler.is_compiling():
            return _loop(current, self.beta, self.threshold, self.slope)
        # These are the steps of Leaky.forward, which would keep u on the module, where threads would share it.
        u = torch.zeros_like(current[0])
        spikes, membranes = [], []
        for x in current:
            u = self.beta * ((1 - self.mem_reset(u)) * u) + x
            spikes.append(self.fire(u))
            membranes.append(u.detach())
        return torch.stack(spikes), membranes

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}, v_threshold={self.v_threshold:g}"


class IF(LIF):
    """Integrate-and-fire: H[t] = V[t-1] + X[t], nothing leaks.

    Args:
        v_threshold: threshold V_th, in units of H.
        alpha: slope of the sigmoid surrogate, per unit of H.
        backend: "fused" or "snntorch", as for ``LIF``.
    """

    def __init__(self, v_threshold: float = 1.0, alpha: float = 4.0, backend: str = "fused"):
        super().__init__(1.0, v_threshold, alpha, backend)  # tau = 1 divides no current, so u = H;
        self.beta.fill_(1.0)  # and nothing leaks


class PLIF(LIF):
    """A LIF that learns its time constant, one for all neurons of the layer: 1/tau = sigmoid(w).

    H[t] = V[t-1] + sigmoid(w) (X[t] - V[t-1]); it fires and is reset as the LIF is.

    Args:
        tau: time constant at the start, in time steps, above 1.
        v_threshold: threshold V_th, in units of H.
        alpha: slope of the sigmoid surrogate, per unit of H.

    Source: W. Fang et al., ICCV 2021, arXiv 2007.05785.
    """

    w: Tensor

    def __init__(self, tau: float = 2.0, v_threshold: float = 1.0, alpha: float = 4.0):
        if not 1 < tau < math.inf:
            raise SpikformerError(f"tau={tau}: give a finite time constant of more than one time step")
        super().__init__(tau, v_threshold, alpha, backend="snntorch")
        self.threshold.fill_(v_threshold)  # of H, not of u = tau H, whose threshold would move with tau
        self.spike_grad = Sigmoid(alpha)

    @property
    def v_threshold(self) -> float:
        return float(self.threshold)

    @property
    def decay(self) -> float:
        return 1 - 1 / self.tau

    @property
    def tau(self) -> float:
        """The time constant that ``w`` stands for, in time steps."""
        return float(1 + torch.exp(-self.w.detach()))

    @tau.setter
    def tau(self, tau: float) -> None:
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))

    def loop(self, current: Tensor) -> tuple[Tensor, list[Tensor]]:
        v, share = torch.zeros_like(current[0]), torch.sigmoid(self.w)  # share = 1/tau
        spikes, membranes = [], []
        for x in current:
            h = v + share * (x - v)
            spikes.append(self.spike_grad(h - self.threshold))
            v = h * (1 - spikes[-1].detach())
            membranes.append(h.detach() / share.detach())  # u = tau H, as for the LIF
        return torch.stack(spikes), membranes


class ILIF(LIF):
    """A LIF of integers: it gives as many spikes in a step as its potential holds, D at most, and keeps the rest.

        U[t] = V[t-1] + X[t],  S[t] = clip(round(U[t] / V_th), 0, D),  V[t] = beta (U[t] - V_th S[t])

    An integer n is what n of D binary steps say (``export.unroll`` makes that network). Backward, rounding counts as
    the identity between 0 and D.

    Args:
        tau: time constant, in time steps: beta = 1 - 1/tau. The current is not divided by it.
        v_threshold: potential V_th of one spike; 1 in the paper.
        levels: largest integer D.

    Shapes: input current ``[T, ...]``, real -> integers 0 to D ``[T, ...]``, of the input's dtype.

    Source: X. Luo et al., ECCV 2024, arXiv 2407.20708, and its code, where beta = 0.25 and D = 4.
    """

    def __init__(self, tau: float = 2.0, v_threshold: float = 1.0, levels: int = 4):
        super().__init__(1.0, v_threshold, backend="snntorch")  # u = U: no current is divided
        self.beta.fill_(1 - 1 / tau)
        self.levels = levels

    def loop(self, current: Tensor) -> tuple[Tensor, list[Tensor]]:
        v = torch.zeros_like(current[0])
        spikes, membranes = [], []
        for x in current:
            u = v + x
            s = (u / self.threshold).clamp(0, self.levels)  # whose gradient is 1 between 0 and D
            spikes.append(s + (s.round() - s).detach())  # exactly s.round(), with the gradient of s
            v = self.beta * (u - self.threshold * spikes[-1].detach())
            membranes.append(u.detach())
        return torch.stack(spikes), membranes


NEURONS: dict[str, type[LIF]] = {"lif": LIF, "plif": PLIF, "ilif": ILIF, "if": IF}
"""Kinds of neurons by the name that ``SpikformerConfig.neuron`` takes."""


def spiking(neuron: str = "lif", **options: Any) -> LIF:
    """A layer of neurons of that kind; the options are what its class takes."""
    return NEURONS[neuron](**options)
