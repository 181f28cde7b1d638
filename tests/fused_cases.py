"""The fused operations of a GPU on a CPU: run by ``test_kernels.py`` in a process whose Triton interprets.

bfloat16 is left out: the interpreter multiplies its matrices wrongly.
"""

import copy
import warnings
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import spikformer_edu as se
from spikformer_edu.kernels import choice, max_pool, norm_lif, ssa_lif
from spikformer_edu.model import Spikformer, SpikformerConfig

DTYPES = [torch.float32, torch.float16]
LIF = 0.5, 2.0, 2.0  # beta, threshold and slope of the paper's neuron on u = tau H
USED = {"norm_lif", "ssa_lif", "max_pool"}


def close(ours: torch.Tensor, other: torch.Tensor, dtype: torch.dtype, flips: float = 0.0) -> None:
    """Equal to rounding, by the norm, but for the share of spikes that differ."""
    apart = (ours.double() - other.double()).norm() / other.double().norm()
    assert apart < (2e-5 if dtype == torch.float32 else 2e-3) + 3 * flips**0.5, float(apart)


def norm_lif_outcome(fused, y, steps, offset, residual, grad):
    C = y.shape[-1]
    y = y.clone().requires_grad_()
    weight, bias = (torch.linspace(*ends, C).requires_grad_() for ends in ((0.5, 1.6), (-0.3, 0.6)))
    running, count = (torch.zeros(C), torch.ones(C)), torch.zeros((), dtype=torch.long)
    if fused:
        arguments = running, count, offset, residual, LIF, steps, 0.1, 1e-5
        spikes = norm_lif.NormLIF.apply(y, weight, bias, *arguments)
        assert count == 1
    else:
        spikes = norm_lif.plain(y, weight, bias, running, LIF, steps, residual)
    spikes.backward(grad)
    if not fused and offset is not None:
        running[0].add_(0.1 * offset.detach())  # the norm of a current with its bias
    return spikes.detach(), y.grad, weight.grad, bias.grad, *running


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("steps", "M", "C", "still"),
    [(1, 128, 64, False), (4, 200, 48, True), (4, 33, 24, False), (10, 64, 96, False), (16, 40, 32, False)]
    + [(16, 64, 16, True), (3, 5, 3, True)],
)
def test_norm_and_neuron(M, C, still, steps, dtype):
    random = torch.Generator().manual_seed(M + steps)
    y = (2 * torch.randn(1 if still else steps, M, C, generator=random) + 5).to(dtype)  # a mean far from zero
    offset = torch.randn(C, generator=random).requires_grad_()
    residual = torch.randint(0, 5, (steps, M, C), generator=random).to(dtype).requires_grad_()
    grad = torch.randn(steps, M, C, generator=random).to(dtype)
    ours = norm_lif_outcome(True, y, steps, offset, residual, grad)
    plain = norm_lif_outcome(False, y, steps, offset, residual.detach(), grad)
    flips = float((ours[0] != plain[0]).float().mean())  # a current that differs in its last bit at a threshold
    assert flips <= 1e-4 and 0.02 < (ours[0] - residual).float().mean() < 0.9
    for a, b in zip(ours[1:], plain[1:], strict=True):
        close(a, b, dtype, flips)
    assert torch.equal(residual.grad, grad) and not offset.grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("still", [False, True])
def test_spikes_are_the_same_to_the_bit_where_sums_are_exact(still, dtype):
    """A norm that changes nothing, and currents on a grid, where many membranes reach the threshold exactly."""
    y = torch.randint(-4, 12, (1 if still else 6, 70, 40), generator=torch.Generator().manual_seed(0)).to(dtype) / 4
    one, zero = torch.ones(40), torch.zeros(40)
    spikes = norm_lif.fire(y, one, zero, zero, one, LIF, 6, 0.0)
    assert torch.equal(spikes, se.LIF(backend="snntorch")(y.expand(6, -1, -1))) and 0.05 < spikes.float().mean() < 0.9


def test_running_statistics_are_those_of_batch_norm():
    """T copies of a still image, Bessel's correction and the bias of the layer before included."""
    random = torch.Generator().manual_seed(0)
    linear, bn, steps = torch.nn.Linear(8, 32), torch.nn.BatchNorm1d(32, momentum=0.3), 4
    x = torch.randn(1, 40, 8, generator=random)
    bn(linear(x).expand(steps, -1, -1).flatten(0, 1))
    running, count = (torch.zeros(32), torch.ones(32)), torch.zeros((), dtype=torch.long)
    with torch.no_grad():
        y = F.linear(x, linear.weight)
        norm_lif.NormLIF.apply(y, bn.weight, bn.bias, running, count, linear.bias, None, LIF, steps, 0.3, bn.eps)
    torch.testing.assert_close(running[0], bn.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(running[1], bn.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("T", "N", "heads", "d"), [(4, 64, 2, 32), (1, 16, 2, 16), (16, 16, 1, 16), (2, 196, 1, 64), (3, 50, 3, 16)]
)
def test_attention_and_neuron(T, N, heads, d, dtype):
    random = torch.Generator().manual_seed(N)
    qkv = (torch.rand(T, 2, N, 3 * heads * d, generator=random) < (8 / N / d) ** (1 / 3)).to(dtype)
    grad = torch.randn(T, 2, N, heads * d, generator=random).to(dtype)
    found = []
    for way in (ssa_lif.SSALIF.apply, ssa_lif.plain):
        x = qkv.clone().requires_grad_()
        spikes = way(x, heads, 0.125, (0.5, 1.0, 2.0))
        found.append((spikes, *torch.autograd.grad(spikes, x, grad)))
    assert torch.equal(found[0][0], found[1][0]) and 0.02 < found[0][0].float().mean() < 0.98  # sums are exact
    close(found[0][1], found[1][1], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 8, 8, 48), (3, 4, 16, 64), (1, 6, 10, 24), (2, 2, 2, 5)])
def test_max_pool(shape, dtype):
    random = torch.Generator().manual_seed(0)
    x = (torch.rand(shape, generator=random) < 0.2).to(dtype)
    grad = torch.randn(shape[0], shape[1] // 2, shape[2] // 2, shape[3], generator=random).to(dtype)
    found = []
    for way in (max_pool.MaxPool.apply, max_pool.plain):
        spikes = x.clone().requires_grad_()
        pooled = way(spikes)
        found.append((pooled, *torch.autograd.grad(pooled, spikes, grad)))
    assert torch.equal(found[0][0], found[1][0])
    close(found[0][1], found[1][1], dtype)


@pytest.fixture
def fused(monkeypatch):
    """Tensors of a CPU count as those of a GPU; the names of the kernels that were used."""
    used = []
    monkeypatch.setattr(choice, "on_a_gpu", lambda x: not choice._plain.get())
    monkeypatch.setattr(
        choice, "kernels", lambda name, *_: used.append(name) or import_module(f"spikformer_edu.kernels.{name}")
    )
    return used


LAYOUTS = {  # what the presets differ in, small
    "cifar": (SpikformerConfig(dim=32, depth=1, heads=2, pool=(False, False, True, True)), (3, 16, 16)),
    "dvs": (SpikformerConfig(dim=32, depth=1, heads=2, in_channels=2, pool=(True, True, True, False)), (2, 16, 16)),
    "imagenet": (SpikformerConfig(dim=64, depth=1, heads=1, pool=(True,) * 4), (3, 32, 48)),
}


def step(model, x, y):
    """A training step: logits, gradients and statistics."""
    logits = model(x)
    F.cross_entropy(logits, y).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())


@pytest.mark.parametrize(
    ("layout", "steps"), [("cifar", 1), ("cifar", 4), ("dvs", 4), ("dvs", 16), ("imagenet", 1), ("imagenet", 4)]
)
def test_a_training_step_of_the_network(fused, layout, steps):
    config, shape = LAYOUTS[layout]
    torch.manual_seed(0)
    model = Spikformer(SpikformerConfig(**vars(config) | {"time_steps": steps, "scale": 1.0})).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bias, 0.7)  # so that every layer fires
    other = copy.deepcopy(model)
    x = torch.rand(2, *shape) if layout != "dvs" else torch.rand(steps, 2, *shape)
    y = torch.tensor([1, 2])
    logits, gradients, statistics = step(model, x, y)
    assert set(fused) == USED and fused.count("norm_lif") == 5 + 4 * config.depth
    with choice.plain_path():
        expected, others, plain = step(other, x, y)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for name, gradient in others.items():
        if name.endswith(("linear.bias", "qkv.bias")):  # the norm takes the bias away: zero but for rounding
            assert not gradients[name].any() and gradient.abs().max() < 1e-4
        else:
            assert gradient.any(), f"{name}: a silent network would prove nothing"
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    for name, buffer in plain.items():
        torch.testing.assert_close(statistics[name], buffer, rtol=1e-4, atol=1e-5, msg=name)


def test_evaluation_of_the_packaged_network(fused):
    model = se.load_pretrained("digits-2-64").eval()
    images = se.data.load("digits").test.fetch(torch.arange(4), None)[0]
    with torch.no_grad():
        logits = model(images)
        assert set(fused) == USED
        with choice.plain_path():
            torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-4)
    fused.clear()
    model(images).sum().backward()  # a gradient through running statistics
    assert "norm_lif" not in fused


@pytest.mark.parametrize(
    "look",
    [
        lambda model: se.record(model),
        lambda model: se.record(model, membranes=True, layers=["blocks.0.attn.q"]),
        lambda model: model.blocks[0].attn.q.register_forward_hook(lambda *_: None),
        lambda model: model.blocks[0].attn.bn.register_forward_pre_hook(lambda *_: None),
        lambda model: model.blocks[0].attn.qkv.register_full_backward_hook(lambda *_: None),
    ],
)
def test_whoever_looks_into_a_layer_gets_the_plain_lines(fused, look):
    model = se.spikformer("digits-2-64", depth=1).train()
    images = torch.rand(1, 1, 16, 16)
    looking = look(model)
    if isinstance(looking, se.record):
        with looking as rec:
            logits = model(images)
        assert rec["blocks.0.attn.q"].spikes.any()
    else:
        logits = model(images)
        looking.remove()
    plainly = fused.count("norm_lif")
    fused.clear()
    model(images)
    assert plainly < fused.count("norm_lif") == 5 + 4 and logits.isfinite().all()


def test_a_residual_is_added_in_the_kernel_unless_somebody_looks(fused, monkeypatch):
    """And never by a layer whose ``forward`` is somebody's own."""
    from spikformer_edu.attention import SpikingLinear

    class Own(SpikingLinear):
        def forward(self, x):
            return super().forward(x)

    given = []
    apply = norm_lif.NormLIF.apply
    monkeypatch.setattr(norm_lif.NormLIF, "apply", lambda *a: given.append(a[6] is not None) or apply(*a))
    model, x = se.spikformer("digits-2-64", depth=1), torch.rand(1, 1, 16, 16)
    model(x)
    assert sum(given) == 2 and len(given) == 5 + 4  # the position embedding, and the MLP
    seen = []
    given.clear()
    model.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.sps.rpe = copy.deepcopy(model.sps.rpe)
    model(x)
    assert sum(given) == 1 and set(seen[0].unique().tolist()) <= {0, 1}  # spikes, without the residual
    given.clear()
    model = se.spikformer("digits-2-64", depth=1)
    model.blocks[0].mlp.out.__class__ = Own
    model(x)
    assert sum(given) == 1


@pytest.mark.parametrize("options", [{"backend": "snntorch"}, {"neuron": "plif"}, {"neuron": "ilif"}])
def test_other_neurons_take_the_plain_lines(fused, options):
    se.spikformer("digits-2-64", **options)(torch.rand(1, 1, 16, 16))
    assert not set(fused) & {"norm_lif", "ssa_lif"}


@pytest.mark.parametrize("options", [{"residual": "membrane"}, {"neuron": "if"}, {"attention": "sdsa"}], ids=str)
def test_the_family_gives_what_the_plain_lines_give(fused, options):
    torch.manual_seed(0)
    model, x = se.spikformer("digits-2-64", depth=1, **options).train(), 2 * torch.rand(2, 1, 16, 16)
    with choice.plain_path():
        expected = copy.deepcopy(model)(x)
    assert not fused
    logits = model(x)
    # A membrane residual has no neuron to fuse with in the position embedding, proj and mlp.out; a mask no products.
    expected_uses = {"residual": (4 + 2, 1), "neuron": (5 + 4, 1), "attention": (5 + 3, 0)}[next(iter(options))]
    assert (fused.count("norm_lif"), fused.count("ssa_lif")) == expected_uses
    assert expected.std() > 0.01 and (logits - expected).abs().max() < 1e-3


@pytest.mark.parametrize("attention", ["relu", "vanilla", "sdsa", "qk_token"])
def test_variants_of_attention_keep_their_own_lines(fused, attention):
    model = se.spikformer("digits-2-64", attention=attention, depth=1).train()
    model(torch.rand(1, 1, 16, 16)).sum().backward()
    assert "ssa_lif" not in fused and fused.count("norm_lif") == 5 + 3  # SPS, and proj and MLP of the block


def test_no_second_derivatives(fused):
    logits = se.spikformer("digits-2-64", depth=1).train()(torch.rand(1, 1, 16, 16, requires_grad=True))
    with pytest.raises(se.SpikformerError, match='take backend="snntorch"'):
        logits.sum().backward(create_graph=True)


@pytest.mark.parametrize("name", sorted(USED))
@pytest.mark.parametrize("fault", [None, "wrong", "raises"])
def test_the_first_use_compares_with_the_plain_lines(monkeypatch, name, fault):
    module = import_module(f"spikformer_edu.kernels.{name}")
    plain = module.plain
    if fault:
        error = RuntimeError("no kernel image is available")
        broken = (lambda *a, **k: (_ for _ in ()).throw(error)) if fault == "raises" else (lambda *a: 1 - plain(*a))
        monkeypatch.setattr(module, "plain", broken)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = choice.kernels.__wrapped__(name, torch.float32, torch.device("cpu"))
    if fault is None:
        assert found is module and not said
        return
    line = str(said[0].message)
    assert found is None and len(said) == 1 and "\n" not in line and f"kernels/{name}.py is not used on cpu" in line
    assert ("no kernel image" if fault == "raises" else "differ") in line
