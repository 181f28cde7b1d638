"""On a CUDA GPU: the same spikes as on the CPU. Skipped without one; SPIKFORMER_TEST_DEVICE=cpu tries the tests."""

import copy
import os

import pytest
import torch
from reference import awaken
from test_speed import assert_same, outcome

import spikformer_edu as se
from spikformer_edu.benchmarks.measure import peak_memory
from spikformer_edu.benchmarks.peers import case_of

DEVICE = os.environ.get("SPIKFORMER_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["dense", "channels_last", "still"])
@pytest.mark.parametrize("v_threshold", [1.0, 0.5])
def test_neuron_equals_the_plain_loop(layout, v_threshold, dtype):
    x = torch.randint(-4, 12, (5, 3, 24, 31, 17)).to(DEVICE, dtype) / 4
    if layout == "channels_last":
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (5, 3))
    elif layout == "still":
        x = x[:1].expand(5, -1, -1, -1, -1)
    x = x.detach().requires_grad_()
    plain = se.LIF(v_threshold=v_threshold, backend="snntorch").to(DEVICE, dtype)
    spikes, expected = se.LIF(v_threshold=v_threshold).to(DEVICE, dtype)(x), plain(x)
    assert torch.equal(spikes, expected) and 0.05 < spikes.mean() < 0.95
    weights = torch.randn_like(spikes)
    (got,) = torch.autograd.grad(spikes, x, weights)
    exact = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(plain.double()(exact), exact, weights.double())
    step = torch.finfo(dtype).eps
    # Plain torch rounds bf16 at every operation, the kernel once.
    atol = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 4 * step)
    torch.testing.assert_close(got.double(), want, rtol=4 * step, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounds_as_the_fused_neuron_of_a_cpu(dtype):
    x = (2 * torch.randn(6, 100_000)).to(dtype)
    spikes = se.LIF(tau=3.0)(x)
    assert torch.equal(se.LIF(tau=3.0).to(DEVICE)(x.to(DEVICE)).cpu(), spikes) and spikes.float().mean() > 0.02


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_a_second_gpu_does_its_own_work():
    x = 2 * torch.randn(5, 3000)
    for device in ("cuda:0", "cuda:1"):  # the current one is cuda:0 throughout
        current = x.to(device).requires_grad_()
        spikes = se.LIF().to(device)(current)
        spikes.sum().backward()
        assert torch.equal(spikes.cpu(), se.LIF()(x)) and current.grad.device == current.device
        assert current.grad.isfinite().all() and current.grad.any()


def test_both_orders_of_attention_agree_in_bfloat16():
    q, k, v = (torch.rand(3, 4, 2, 12, 256, 32) < 0.5).to(DEVICE, torch.bfloat16)
    options = torch.backends.cuda.matmul
    before = options.allow_bf16_reduced_precision_reduction
    options.allow_bf16_reduced_precision_reduction = False  # True lets CUDA add up sums that it rounded to bfloat16
    try:
        scores_first, values_first = (q @ k.mT * 0.125) @ v, q @ (k.mT @ v) * 0.125
    finally:
        options.allow_bf16_reduced_precision_reduction = before
    assert scores_first.max() > 50 and torch.equal(scores_first, values_first)


@pytest.fixture(scope="module")
def digits():
    return se.data.load("digits").test.fetch(torch.arange(64), None)


def test_packaged_model_says_the_same(digits):
    images, labels = digits
    here = se.load_pretrained("digits-2-64").eval()
    there = copy.deepcopy(here).to(DEVICE)
    with torch.no_grad():
        expected, got = here(images), there(images.to(DEVICE)).cpu()
    # A current that differs in its last bit may cross a threshold: few answers may move, and none by much.
    assert (got.argmax(1) == expected.argmax(1)).float().mean() >= 0.98
    assert (got - expected).abs().median() < 1e-3
    assert (got.argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("backend", ["fused", "snntorch"])
def test_network_in_float64_equals_the_cpu(backend):
    model = se.spikformer("digits-2-64", backend=backend).double()
    images = torch.rand(4, 1, 32, 32, dtype=torch.float64)
    awaken(model, images)
    there = copy.deepcopy(model).train().to(DEVICE)
    model.train()
    logits, other = model(images), there(images.to(DEVICE))
    torch.testing.assert_close(other.cpu(), logits, rtol=1e-9, atol=1e-9)
    logits.square().sum().backward()
    other.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), there.parameters(), strict=True):
        assert a.dim() == 1 or a.grad.abs().max() > 1e-6, f"{name}: a silent network would prove nothing"
        torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_bf16_autocast_trains():
    model = se.spikformer("digits-2-64").to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    images, labels = torch.rand(16, 1, 32, 32, device=DEVICE), torch.arange(16, device=DEVICE) % 10
    losses = []
    for _ in range(15):
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.skipif(DEVICE != "cuda", reason="memory of a GPU")
def test_memory_is_measured_with_the_whole_gpu_free():
    kept = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    del kept  # PyTorch keeps it for the next tensor
    assert torch.cuda.memory_reserved() >= 2**30
    case = case_of("toy", None, torch.device(DEVICE))
    peak = peak_memory("ours", case, "bf16", torch.device(DEVICE))
    assert 0 < peak["eval"] < peak["train"] and torch.cuda.memory_reserved() < 2**30


@pytest.mark.slow  # compiling takes a while
def test_compiled_equals_eager(digits):
    images = digits[0][:8].double().to(DEVICE)
    plain = se.load_pretrained("digits-2-64").double().to(DEVICE).train()
    same = copy.deepcopy(plain)
    compiled = torch.compile(same, dynamic=False)
    assert_same(outcome(plain, images), outcome(same, images, compiled))  # a training step, statistics included
    plain.eval(), same.eval()
    with torch.no_grad():
        logits = plain(images)
        assert logits.std() > 0.01
        torch.testing.assert_close(compiled(images), logits, rtol=1e-9, atol=1e-9)
