"""The GPU kernels of the neuron on a CPU: run by ``test_kernels.py`` in a process whose Triton interprets."""

from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest
import torch

from spikformer_edu import LIF
from spikformer_edu.kernels import lif, lif_triton


@pytest.fixture
def kernels(monkeypatch):
    """The kernels are used for tensors of a CPU; a list of the calls."""
    calls = []
    monkeypatch.setattr(lif, "kernels_for", lambda tensor: calls.append(tensor.shape) or lif_triton)
    return calls


def current(layout: str, steps: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randint(-4, 12, (steps, 3, 6, 10, 7)).to(dtype) / 4  # a grid: exact ties are common
    if layout == "channels_last":
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (steps, 3))
    elif layout == "transposed":
        x = x.transpose(2, 4)
    elif layout == "still":
        x = x[:1].expand(steps, -1, -1, -1, -1)
    return x.detach().requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["dense", "channels_last", "transposed", "still"])
@pytest.mark.parametrize("v_threshold", [1.0, 0.5])
def test_equals_snntorch(kernels, layout, v_threshold, dtype):
    x = current(layout, 5, dtype)
    plain = LIF(v_threshold=v_threshold, backend="snntorch").to(dtype)
    spikes, expected = LIF(v_threshold=v_threshold).to(dtype)(x), plain(x)
    assert torch.equal(spikes, expected) and 0.05 < spikes.mean() < 0.95
    weights = torch.randn_like(spikes)
    (got,) = torch.autograd.grad(spikes, x, weights)
    exact = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(plain.double()(exact), exact, weights.double())
    step = torch.finfo(dtype).eps  # the kernel rounds its gradient once, at the end
    torch.testing.assert_close(got.double(), want, rtol=step, atol=1e-12 if dtype == torch.float64 else 1e-6)
    assert len(kernels) == 2  # one for each pass: it was them that ran


@pytest.mark.parametrize("tau", [1.25, 2.0, 7.0])
def test_any_time_constant(kernels, tau):
    x = torch.randn(6, 2000, dtype=torch.float64, requires_grad=True)
    spikes, expected = LIF(tau=tau).double()(x), LIF(tau=tau, backend="snntorch").double()(x)
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(
        torch.autograd.grad(spikes.sum(), x), torch.autograd.grad(expected.sum(), x), rtol=0, atol=1e-12
    )


def test_membranes_are_the_same_and_only_kept_on_demand(kernels):
    x = torch.randn(4, 3000)
    spikes, u = lif.FusedLIF.apply(x, 0.5, 2.0, 2.0, True)
    assert torch.equal(u, torch.stack(LIF().loop(x)[1]))
    again, last = lif.FusedLIF.apply(x, 0.5, 2.0, 2.0, False)
    assert torch.equal(again, spikes) and len(last) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter cuts bfloat16, a GPU rounds it
def test_rounds_as_the_fused_neuron_of_a_cpu(dtype, monkeypatch):
    x = (2 * torch.randn(6, 50_000)).to(dtype)  # enough for a sum that is rounded twice to tell
    spikes, u = lif.FusedLIF.apply(x, 2 / 3, 3.0, 4 / 3, True)
    monkeypatch.setattr(lif, "kernels_for", lambda tensor: lif_triton)
    ours, membranes = lif.FusedLIF.apply(x, 2 / 3, 3.0, 4 / 3, True)
    assert torch.equal(membranes, u) and torch.equal(ours, spikes) and 0.02 < spikes.float().mean()


def test_kernels_start_on_the_device_of_their_tensors(kernels, monkeypatch):
    devices, started = [], []

    @contextmanager
    def device_of(tensor):
        devices.append(tensor.device)
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("_forward", "_backward"):
        kernel, spy = getattr(lif_triton, name), MagicMock()
        spy.__getitem__.side_effect = lambda grid, kernel=kernel: started.append(list(devices)) or kernel[grid]
        monkeypatch.setattr(lif_triton, name, spy)
    x = torch.randn(4, 30, requires_grad=True)
    LIF()(x).sum().backward()
    assert started == [[x.device]] * 2
