"""On a CUDA GPU: the same spikes as on the CPU. Skipped without one; SPIKFORMER_TEST_DEVICE=cpu tries the tests."""

import copy
import os

import pytest
import torch

import spikformer_edu as se

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


@pytest.mark.parametrize("neuron", ["fused", "snntorch"])
def test_network_in_float64_equals_the_cpu(neuron):
    model = se.spikformer("digits-2-64", neuron=neuron).double().train()
    images = torch.rand(4, 1, 32, 32, dtype=torch.float64)
    there = copy.deepcopy(model).to(DEVICE)
    logits, other = model(images), there(images.to(DEVICE))
    torch.testing.assert_close(other.cpu(), logits, rtol=1e-9, atol=1e-9)
    logits.square().sum().backward()
    other.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), there.parameters(), strict=True):
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


@pytest.mark.slow  # compiling takes a while
def test_compiled_equals_eager():
    model = se.spikformer("digits-2-64").double().to(DEVICE).eval()
    images = torch.rand(4, 1, 32, 32, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(images), model(images), rtol=1e-9, atol=1e-9)
