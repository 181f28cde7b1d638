"""Where the fused operations of a GPU take the place of the plain lines of the network: decided here alone.

They do on a CUDA GPU of compute capability 8.0 or more with Triton, in float32, bfloat16 and float16, for what the
presets use. Whatever looks into a layer needs the plain lines: hooks on its modules, ``record``, ``energy``,
``torch.compile``. So does what the kernels do not know: neurons other than the LIF, attention other than SSA, a
residual of membranes, another kind of norm, a gradient through running statistics. The first use of an operation in a
process compares it with its ``plain`` on a small input, and keeps to the plain lines if they differ.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

CAPABILITY = 8, 0  # that Triton asks for
STEPS = 16  # T up to which the kernels were compiled and found to fit a GPU's registers
TOKENS = 256  # N up to which K^T V is exact in bfloat16
WIDTHS = 16, 32, 64  # of a head
DTYPES = torch.float32, torch.bfloat16, torch.float16

_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_path() -> Iterator[None]:
    """Run the plain lines inside the block, also where fused operations are at hand."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def computes_in(x: Tensor) -> torch.dtype:
    """The dtype that a linear map or a convolution of x has: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def norm_lif_for(x: Tensor, steps: int, bn: Any, *others: Any) -> ModuleType | None:
    """``kernels/norm_lif.py`` if it may stand in for a norm and its neurons; None: take the plain lines.

    Args:
        x: current, or the input of the linear map that makes it, ``[..., C]`` or ``[n, C, H, W]``.
        steps: number of time steps T.
        bn: the batch norm.
        others: the neurons behind it, of the same constants if there are several, and the linear map before it.
    """
    neurons = [module for module in others if not isinstance(module, nn.Linear)]
    if not on_a_gpu(x) or steps > STEPS or any(_touched(module) for module in (bn, *others)):
        return None
    if type(bn) not in (nn.BatchNorm1d, nn.BatchNorm2d) or bn.momentum is None or bn.running_mean is None:
        return None
    if not bn.affine or bn.weight.dtype != torch.float32 or x.numel() < 2 * bn.num_features:
        return None
    if torch.is_grad_enabled() and not bn.training:
        return None
    if not all(_fits(neuron) for neuron in neurons):
        return None
    if len({(*neuron.constants(), neuron.slope) for neuron in neurons}) > 1:
        return None
    return kernels("norm_lif", computes_in(x), x.device)


def ssa_lif_for(x: Tensor, heads: int, scale: object, neuron: Any) -> ModuleType | None:
    """``kernels/ssa_lif.py`` if it may weigh spikes and fire; None: take the plain lines.

    Args:
        x: tokens ``[T, B, N, D]``.
        heads: number of heads h.
        scale: factor s of the product; one that is learned takes the plain lines.
        neuron: the ``LIF`` behind the product.
    """
    T, _, N, D = x.shape
    fits = T <= STEPS and N <= TOKENS and D // heads in WIDTHS and isinstance(scale, float | int)
    if not (fits and on_a_gpu(x) and _fits(neuron)) or _touched(neuron):
        return None
    return kernels("ssa_lif", computes_in(x), x.device)


def on_a_gpu(x: Tensor) -> bool:
    """Whether fused operations may run on x at all."""
    if not x.is_cuda or _plain.get() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return x.dtype in DTYPES and computes_in(x) in DTYPES and _capable(x.device)


@cache
def _capable(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= CAPABILITY and find_spec("triton") is not None


def _fits(neuron: Any) -> bool:
    """Whether the kernels know the neuron and no function listens to its membranes; an identity has no neuron."""
    return getattr(neuron, "fusible", False) and neuron.on_membranes is None


def _touched(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says: hooks, or a forward of its own."""
    own = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    every = (
        hooks_of_all._global_forward_hooks,
        hooks_of_all._global_forward_pre_hooks,
        hooks_of_all._global_backward_hooks,
        hooks_of_all._global_backward_pre_hooks,
    )
    return any(own) or any(every) or "forward" in vars(module)


@cache
def kernels(name: str, dtype: torch.dtype, device: torch.device) -> ModuleType | None:
    """A module of kernels that has shown on this device that it computes what its ``plain`` does; else None."""
    try:
        module = import_module(f".{name}", __package__)
        with torch.autocast(device.type, enabled=False), torch.enable_grad():
            differs = CHECKS[name](module, dtype, device)
    except Exception as error:  # a Triton that does not fit its compiler, driver or Python raises many kinds
        differs = f"it fails: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
    if differs:
        warnings.warn(
            f"kernels/{name}.py is not used on {device} in {str(dtype).removeprefix('torch.')}: {differs};"
            " the plain lines run instead, which is slower",
            stacklevel=2,
        )
        return None
    return module


def _difference(ours: list[Tensor], plain: list[Tensor], tolerance: float) -> str | None:
    """What differs between spikes and gradients of two ways; None if they are the same to rounding."""
    (spikes, *gradients), (expected, *others) = ours, plain
    wrong = int((spikes != expected).sum())
    if wrong > spikes.numel() // 500:  # a current that differs in its last bit may cross the threshold
        return f"{wrong} of {spikes.numel()} spikes differ from the plain lines'"
    for gradient, other in zip(gradients, others, strict=True):
        apart = float((gradient.double() - other.double()).norm() / other.double().norm())
        if not apart <= tolerance:
            return f"a gradient is {apart:.1%} away from the plain lines'"
    return None


def _tolerance(dtype: torch.dtype) -> float:
    return 0.01 if dtype == torch.float32 else 0.05  # of a norm; a spike that differs moves gradients too


def _check_norm_lif(module: ModuleType, dtype: torch.dtype, device: torch.device) -> str | None:
    random = torch.Generator(device).manual_seed(0)
    y, grad = torch.randn(2, 4, 512, 64, generator=random, device=device).to(dtype)
    lif, steps = (0.5, 2.0, 2.0), 4

    def outcome(fused: bool) -> list[Tensor]:
        current = y.clone().requires_grad_()
        weight, bias = (torch.full([64], v, device=device, requires_grad=True) for v in (1.2, 0.4))
        running = torch.zeros(64, device=device), torch.ones(64, device=device)
        count = torch.zeros((), dtype=torch.long, device=device)
        if fused:
            spikes = module.NormLIF.apply(current, weight, bias, running, count, None, None, lif, steps, 0.1, 1e-5)
        else:
            spikes = module.plain(current, weight, bias, running, lif, steps)
        return [spikes, *torch.autograd.grad(spikes, (current, weight, bias), grad), *running]

    return _difference(outcome(True), outcome(False), _tolerance(dtype))


def _check_ssa_lif(module: ModuleType, dtype: torch.dtype, device: torch.device) -> str | None:
    random = torch.Generator(device).manual_seed(0)
    heads, scale, lif = 2, 0.125, (0.5, 1.0, 2.0)
    qkv = (torch.rand(4, 2, 64, 3 * heads * 32, generator=random, device=device) < 0.15).to(dtype)
    grad = torch.randn(4, 2, 64, heads * 32, generator=random, device=device).to(dtype)

    def outcome(way: Callable[..., Tensor]) -> list[Tensor]:
        spikes = way(x := qkv.clone().requires_grad_(), heads, scale, lif)
        return [spikes, *torch.autograd.grad(spikes, x, grad)]

    return _difference(outcome(module.SSALIF.apply), outcome(module.plain), _tolerance(dtype))


def _check_max_pool(module: ModuleType, dtype: torch.dtype, device: torch.device) -> str | None:
    random = torch.Generator(device).manual_seed(0)
    spikes = (torch.rand(4, 16, 16, 64, generator=random, device=device) < 0.2).to(dtype)
    grad = torch.randn(4, 8, 8, 64, generator=random, device=device).to(dtype)

    def outcome(way: Callable[..., Tensor]) -> list[Tensor]:
        pooled = way(x := spikes.clone().requires_grad_())
        return [pooled, *torch.autograd.grad(pooled, x, grad)]

    return _difference(outcome(module.MaxPool.apply), outcome(module.plain), _tolerance(dtype))


CHECKS = {"norm_lif": _check_norm_lif, "ssa_lif": _check_ssa_lif, "max_pool": _check_max_pool}


def norm_lif(
    kernel: ModuleType,
    y: Tensor,
    steps: int,
    bn: Any,
    neuron: Any,
    offset: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """SN(BN(y)) by ``kernels/norm_lif.py``: y ``[T or 1, ..., C]`` -> spikes ``[T, ..., C]``, plus the residual."""
    shape = steps, *y.shape[1:]
    y = y.reshape(len(y), -1, y.shape[-1]).contiguous()
    if residual is not None:
        residual = residual.to(y.dtype).reshape(steps, *y.shape[1:]).contiguous()
    lif = *neuron.constants(), neuron.slope
    if bn.training:
        running = bn.running_mean, bn.running_var
        arguments = running, bn.num_batches_tracked, offset, residual, lif, steps, bn.momentum, bn.eps
        return kernel.NormLIF.apply(y, bn.weight, bn.bias, *arguments).view(shape)
    statistics = bn.weight, bn.bias, bn.running_mean, bn.running_var
    return kernel.fire(y, *statistics, lif, steps, bn.eps, residual).view(shape)


def linear_norm_lif(
    kernel: ModuleType, x: Tensor, linear: nn.Linear, bn: Any, neuron: Any, residual: Tensor | None = None
) -> Tensor:
    """SN(BN(Linear(x))) by ``kernels/norm_lif.py``: tokens ``[T, B, N, D_in]`` -> spikes ``[T, B, N, D_out]``."""
    if bn.training:  # the norm takes the bias away again: it is neither added nor differentiated
        return norm_lif(kernel, F.linear(x, linear.weight), len(x), bn, neuron, linear.bias, residual)
    return norm_lif(kernel, F.linear(x, linear.weight, linear.bias), len(x), bn, neuron, None, residual)


def add(residual: Tensor | None, layer: nn.Module, x: Tensor) -> Tensor:
    """residual + layer(x); on a GPU the layer adds it to its spikes by itself, if it can and has no hooks.

    Args:
        residual: integers of the shape of the spikes; None: nothing is added.
        layer: a layer of neurons; one whose ``forward`` takes a residual adds it in its last operation.
        x: input of the layer.
    """
    if residual is None:
        return layer(x)
    if on_a_gpu(x) and not _touched(layer) and _takes_residual(type(layer).forward):
        return layer(x, residual=residual)
    return residual + layer(x)


@cache
def _takes_residual(forward: Callable[..., Any]) -> bool:
    return "residual" in signature(forward).parameters  # a subclass may have a forward of its own


def fused_ssa(layer: Any, x: Tensor) -> Tensor | None:
    """SN(Q K^T V s) in fused operations, from tokens to the spikes before ``proj``; None: take the plain lines.

    Args:
        layer: a ``SpikingSelfAttention`` whose class is no variant of it.
        x: tokens ``[T, B, N, D]``.
    """
    if layer.pool is not None or layer.on_mix or {"mix", "scores", "phi"} & vars(layer).keys():
        return None
    norm = norm_lif_for(x, len(x), layer.bn, layer.q, layer.k, layer.v, layer.qkv)
    ssa = norm and ssa_lif_for(x, layer.heads, layer.scale, layer.attn)
    if not (norm and ssa):
        return None
    qkv = linear_norm_lif(norm, x, layer.qkv, layer.bn, layer.q)  # spikes [T, B, N, 3D]
    return ssa.SSALIF.apply(qkv, layer.heads, layer.scale, (*layer.attn.constants(), layer.attn.slope))


def norm_lif_pool(kernel: ModuleType, y: Tensor, steps: int, layer: Any, residual: Tensor | None = None) -> Tensor:
    """MP(SN(BN(y))) by ``kernels/norm_lif.py`` and ``kernels/max_pool.py``, channels last throughout.

    Args:
        kernel: the first of them.
        y: what the convolution of the layer gives, ``[T or 1, B, C, H, W]``.
        steps: number of time steps T.
        layer: a ``SpikingConv``.
        residual: integers ``[T, B, C, H, W]`` that the spikes are added to, in a layer without a pool.
    """
    residual = residual if residual is None else residual.permute(0, 1, 3, 4, 2)
    x = norm_lif(kernel, y.permute(0, 1, 3, 4, 2), steps, layer.bn, layer.neuron, residual=residual)
    if layer.pool is not None:
        x = max_pool(x.flatten(0, 1), layer.pool).unflatten(0, x.shape[:2])
    return x.permute(0, 1, 4, 2, 3)


def max_pool(x: Tensor, pool: nn.Module) -> Tensor:
    """The max-pool of spikes ``[n, H, W, C]``, by ``kernels/max_pool.py`` where it fits.

    Args:
        x: spikes with the channels of a pixel side by side.
        pool: the max-pool, 3 x 3 with stride 2.
    """
    if x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0 and on_a_gpu(x) and not _touched(pool):
        if kernel := kernels("max_pool", x.dtype, x.device):
            return kernel.MaxPool.apply(x)
    return pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
