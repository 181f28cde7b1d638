"""Recording shows what happened, in the paper's units, changes nothing and leaves nothing behind."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from threading import Barrier

import pytest
import reference
import torch
from reference import awaken
from torch import Tensor

import spikformer_edu as se
from spikformer_edu import LIF, Spikformer, SpikformerConfig, SpikformerError
from spikformer_edu.training.monitor import Rates

CONFIG = SpikformerConfig(dim=32, depth=2, heads=4, num_classes=5)
T, B, N, H, D = 4, 3, 16, 4, 8

NAMES = ["sps.0", "sps.1", "sps.2", "sps.3", "sps.rpe"]
for i in range(2):
    NAMES += [f"blocks.{i}.attn.{layer}" for layer in ("q", "k", "v", "scores", "attn", "proj")]
    NAMES += [f"blocks.{i}.mlp.hidden", f"blocks.{i}.mlp.out", f"blocks.{i}.residual"]


@pytest.fixture
def model() -> Spikformer:
    model = Spikformer(CONFIG).double()
    awaken(model, torch.randn(T, B, 3, 16, 16, dtype=torch.float64))
    return model


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(T, B, 3, 16, 16, dtype=torch.float64)


def state(model: Spikformer) -> dict[str, tuple]:
    """All that recording could leave on a model: hooks, callbacks, replaced methods, new attributes, state."""
    found = {}
    for name, module in model.named_modules():
        hooks = sum(len(v) for k, v in vars(module).items() if k.endswith("_hooks"))
        attributes = sorted(k for k, v in vars(module).items() if v is not None and v != [])
        found[name] = hooks, attributes, {k: tuple(v.shape) for k, v in module.named_buffers(recurse=False)}
    return found


def test_names_and_their_order(model, frames):
    assert se.layer_names(model) == NAMES
    with se.record(model) as rec:
        model(frames)
    assert list(rec) == NAMES and len(rec) == len(NAMES)
    assert [layer.name for layer in rec.layers()] == NAMES
    kinds = {"scores": "scores", "residual": "residual"}
    assert [layer.kind for layer in rec.layers()] == [kinds.get(name.split(".")[-1], "spikes") for name in NAMES]
    assert [layer.name for layer in rec.layers("residual")] == ["blocks.0.residual", "blocks.1.residual"]
    assert "sps.0" in rec and "sps.9" not in rec


def test_order_is_that_of_the_network(model, frames):
    """Scores are made after V and before the neuron that reads them, and so on: names follow the computation."""
    called = []
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda m, i, o, name=name: called.append(name.removesuffix(".neuron")))
    model(frames)
    assert called == [name for name in NAMES if not name.endswith(("scores", "residual"))]


def test_shapes(model, frames):
    with se.record(model, membranes=True) as rec:
        model(frames)
    shapes = {name.split(".", 2)[-1]: tuple(rec[name].values.shape) for name in NAMES if name.startswith("blocks")}
    heads, tokens = (T, B, H, N, D), (T, B, N, H * D)
    assert shapes == {
        "attn.q": heads,
        "attn.k": heads,
        "attn.v": heads,
        "attn.scores": (T, B, H, N, N),
        "attn.attn": heads,
        "attn.proj": tokens,
        "mlp.hidden": (T, B, N, 4 * H * D),
        "mlp.out": tokens,
        "residual": tokens,
    }
    assert [rec[f"sps.{i}"].spikes.shape[2:] for i in (0, 1, 2, 3, "rpe")] == [
        (4, 16, 16),
        (8, 16, 16),
        (16, 16, 16),  # the neurons stand before the pool
        (32, 8, 8),
        (32, 4, 4),
    ]
    for layer in rec.layers("spikes"):
        assert layer.membrane.shape == layer.spikes.shape


def test_values_equal_an_independent_recomputation(model, frames):
    """From the input of each neuron on: spikes and membranes by equations 1 to 3, scores and residual by hand."""
    currents = {}
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            module.register_forward_pre_hook(
                lambda m, inputs, name=name: currents.update({name.removesuffix(".neuron"): inputs[0].detach()})
            )
    with se.record(model, membranes=True) as rec:
        model(frames)
    with torch.no_grad():
        residual = torch.nn.functional.max_pool2d(rec["sps.3"].spikes.flatten(0, 1), 3, 2, 1).unflatten(0, (T, B))
        residual = (residual + rec["sps.rpe"].spikes).flatten(3).transpose(2, 3)
    for layer in rec.layers("spikes"):
        v_threshold = 0.5 if layer.name.endswith("attn.attn") else 1.0
        spikes, membranes = reference.lif(currents[layer.name], v_threshold)
        assert layer.v_threshold == v_threshold
        assert torch.equal(layer.spikes, spikes) and 0.002 < spikes.mean() < 0.9, layer.name
        assert torch.allclose(layer.membrane, membranes, rtol=0, atol=1e-12), layer.name
        assert torch.equal(layer.spikes, (layer.membrane >= layer.v_threshold).double())
    for i in range(2):
        q, k, v = (rec[f"blocks.{i}.attn.{name}"].spikes for name in "qkv")
        scores = rec[f"blocks.{i}.attn.scores"].values
        assert torch.equal(scores, torch.einsum("tbhid,tbhjd->tbhij", q, k) * 0.125)
        assert torch.equal(scores @ v, currents[f"blocks.{i}.attn.attn"])
        residual = residual + rec[f"blocks.{i}.attn.proj"].spikes + rec[f"blocks.{i}.mlp.out"].spikes
        recorded = rec[f"blocks.{i}.residual"].values
        assert torch.equal(recorded, residual) and torch.equal(recorded, recorded.round()) and recorded.max() > 2


def test_scores_of_softmax_are_its_weights():
    model = Spikformer(SpikformerConfig(dim=32, depth=1, heads=4, attention="softmax"))
    with se.record(model) as rec:
        model(torch.randn(2, 3, 16, 16))
    assert "blocks.0.attn.q" not in se.layer_names(model) and "blocks.0.attn.v" in rec
    assert torch.allclose(rec["blocks.0.attn.scores"].values.sum(-1), torch.ones(()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("membranes", [False, True])
@pytest.mark.parametrize("backend", ["fused", "snntorch"])
@pytest.mark.parametrize("scale", [dict(), dict(learn_scale=True, qk_pool=True)], ids=["plain", "learned scale"])
def test_recording_changes_nothing(frames, backend, membranes, training, scale):
    """Logits and gradients to the last bit. Only where recorded membranes replace the fused neuron by the plain loop do
    gradients agree to rounding instead."""
    model = Spikformer(SpikformerConfig(dim=32, depth=2, heads=4, num_classes=5, backend=backend, **scale)).double()
    awaken(model, frames)
    model.train(training)

    def step() -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        logits = model(frames)
        logits.logsumexp(1).sum().backward()
        return logits.detach(), [p.grad for p in model.parameters()]

    logits, gradients = step()
    with se.record(model, membranes=membranes):
        recorded, recorded_gradients = step()
    assert torch.equal(recorded, logits)
    for a, b in zip(recorded_gradients, gradients, strict=True):
        assert torch.equal(a, b)


def test_what_is_kept_is_detached(model, frames):
    with se.record(model, membranes=True) as rec:
        model(frames)
    assert not any(layer.values.requires_grad for layer in rec.layers())
    assert not any(layer.membrane.requires_grad for layer in rec.layers("spikes"))


def test_a_block_inside_another_takes_nothing_from_it(model, frames):
    with se.record(model) as outer:
        with se.record(model) as inner:
            model(frames)
        assert torch.equal(outer["blocks.0.attn.scores"].values, inner["blocks.0.attn.scores"].values)
        with se.record(model, layers=["blocks.0.attn.scores"]):
            pass
        before = outer["blocks.0.attn.scores"]
        model(frames)
        assert outer["blocks.0.attn.scores"] is not before
    assert not any(block.attn.on_mix for block in model.blocks)


def test_a_mix_of_the_user_s_own_stays(model, frames):
    attn, calls = model.blocks[0].attn, []

    def mix(q, k, v):
        calls.append(q.shape)
        return type(attn).mix(attn, q, k, v)

    attn.mix = mix
    with se.record(model) as rec:
        model(frames)
    assert attn.mix is mix and len(calls) == 1 and len(rec) == len(NAMES)


class Agreement(se.ATTENTION["ssa"]):
    def scores(self, q, k):
        return (q.unsqueeze(-2) == k.unsqueeze(-3)).sum(-1).to(q.dtype) * 0.0625


class AgreementInMix(Agreement):
    def mix(self, q, k, v):
        return self.scores(q, k) @ v


class Shifted(se.ATTENTION["ssa"]):
    def mix(self, q, k, v):
        return super().mix(q, k, v) + 0.125


class Gate(se.ATTENTION["ssa"]):
    def forward(self, x):
        return self.proj(x)


@pytest.mark.parametrize("kind", [Agreement, AgreementInMix])
def test_scores_of_a_variant_are_those_that_ran(monkeypatch, frames, kind):
    monkeypatch.setitem(se.ATTENTION, "variant", kind)
    model = Spikformer(replace(CONFIG, attention="variant")).double()  # N = 16 tokens exceed d = 8
    currents = []
    model.blocks[0].attn.attn.register_forward_pre_hook(lambda module, inputs: currents.append(inputs[0]))
    with torch.no_grad(), se.record(model) as rec:
        model(frames)
    scores, v = rec["blocks.0.attn.scores"].values, rec["blocks.0.attn.v"].spikes
    assert scores.any() and torch.equal(scores @ v, currents[0])


@pytest.mark.parametrize("kind", [Shifted, Gate])
def test_scores_that_never_were_are_not_recorded(monkeypatch, frames, kind, one_line):
    monkeypatch.setitem(se.ATTENTION, "variant", kind)
    model = Spikformer(replace(CONFIG, attention="variant")).double()
    with torch.no_grad(), se.record(model) as rec:
        model(frames)
    assert "blocks.0.attn.scores" not in rec and "blocks.0.attn.proj" in rec
    with pytest.raises(SpikformerError) as error:
        rec["blocks.0.attn.scores"]
    one_line(error, "'blocks.0.attn.scores' made nothing", "mix of its own")


@pytest.mark.parametrize("backend", ["fused", "snntorch"])
def test_threads_compute_record_and_count_at_once(backend):
    """Each gets what it would alone, and nothing is left behind."""
    model = Spikformer(replace(CONFIG, backend=backend)).double()
    batches = [torch.randn(T, 1 + i, 3, 16, 16, dtype=torch.float64) for i in range(4)]
    awaken(model, torch.cat(batches, 1))
    before, together, interval = state(model), Barrier(4), sys.getswitchinterval()

    def work(i: int) -> list[Tensor]:
        found = []
        if i == 3:
            report = se.energy(model, batches[i])
            return [torch.tensor([[cost.flops, cost.rate, cost.mean] for cost in report.layers])]
        with torch.no_grad(), se.record(model, membranes=i == 0) if i < 2 else nullcontext() as rec:
            found.append(model(batches[i]))
        for layer in rec.layers() if rec else []:
            found += [layer.values, *([layer.membrane] if i == 0 and layer.kind == "spikes" else [])]
        return found

    alone = [work(i) for i in range(4)]

    def keep_working(i: int) -> bool:
        together.wait()
        for _ in range(6):
            found = work(i)
            if len(found) != len(alone[i]) or not all(map(torch.equal, found, alone[i])):
                return False
        return True

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(keep_working, range(4))) == [True] * 4
    finally:
        sys.setswitchinterval(interval)
    assert state(model) == before


def test_a_block_hears_of_its_own_thread_alone(model, frames, one_line):
    with se.record(model) as rec, ThreadPoolExecutor(1) as other:
        other.submit(model, frames).result()
    with pytest.raises(SpikformerError) as error:
        rec["sps.0"]
    one_line(error, "nothing was recorded", "in the thread that opened it")


@pytest.mark.parametrize("options", [dict(), dict(membranes=True), dict(gradients=True)], ids=str)
def test_nothing_is_left_behind(model, frames, options):
    before = state(model)
    with se.record(model, **options):
        model(frames)
        assert state(model) != before
    assert state(model) == before


@pytest.mark.parametrize("options", [dict(), dict(membranes=True), dict(gradients=True)], ids=str)
def test_nothing_is_left_behind_after_an_error(model, frames, options):
    before, logits = state(model), model(frames)
    with pytest.raises(SpikformerError, match="multiples"), se.record(model, **options):
        model(frames[..., :15])
    with pytest.raises(KeyboardInterrupt), se.record(model, **options):
        model.blocks[1].mlp.register_forward_hook(interrupt := _Interrupt())
        model(frames)
    interrupt.off = True
    model.blocks[1].mlp._forward_hooks.clear()
    assert state(model) == before and torch.equal(model(frames), logits)


class _Interrupt:
    off = False

    def __call__(self, module, inputs, output):
        if not self.off:
            raise KeyboardInterrupt


def test_some_layers_only(model, frames):
    chosen = ["blocks.1.attn.scores", "sps.2"]
    before = state(model)
    with se.record(model, membranes=True, layers=chosen) as rec:
        untouched = [n for n, s in state(model).items() if s != before[n]]
        model(frames)
    assert list(rec) == ["sps.2", "blocks.1.attn.scores"]  # network order, whatever order was asked for
    assert {"sps.2.neuron", "blocks.1.attn"} <= set(untouched) and len(untouched) <= 3
    with se.record(model) as everything:
        model(frames)
    for name in chosen:
        assert torch.equal(rec[name].values, everything[name].values)


def test_the_last_forward_pass_is_kept(model, frames):
    with se.record(model) as rec:
        model(frames)
        first = rec["sps.0"].spikes
        model(frames[:, :1] * 2)
    assert rec["sps.0"].spikes.shape[1] == 1 and first.shape[1] == B
    assert torch.equal(rec["sps.0"].spikes, model_spikes(model, frames[:, :1] * 2))


def model_spikes(model: Spikformer, frames: Tensor) -> Tensor:
    current = model.sps[0].bn(model.sps[0].conv(frames.flatten(0, 1))).unflatten(0, frames.shape[:2])
    return reference.lif(current)[0]


def test_a_static_image_is_seen_at_every_step(model):
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with se.record(model, membranes=True) as rec:
        model(image)
    with se.record(model, membranes=True) as copies:
        model(image.expand(4, *image.shape))
    for name in NAMES:
        assert rec[name].values.shape[0] == 4 and torch.equal(rec[name].values, copies[name].values)
    assert torch.allclose(rec["sps.0"].membrane, copies["sps.0"].membrane, rtol=0, atol=1e-12)


def test_logits_of_every_step_average_to_the_output(model, frames):
    with torch.no_grad(), se.record(model) as rec:
        logits = model(frames)
    assert rec.logits.shape == (T, B, 5)
    assert torch.allclose(rec.logits.mean(0), logits, rtol=0, atol=1e-12)
    assert rec.logits.std(0).max() > 1e-3


def test_gradients_are_those_of_the_equations(model, frames):
    """dL/dH of the last neuron, by autograd through equations 1 to 3 written with H in sight."""
    seen = {}
    model.blocks[-1].mlp.out.neuron.register_forward_pre_hook(lambda m, inputs: seen.update(x=inputs[0].detach()))
    weights = torch.randn(B, 5, dtype=torch.float64)
    with se.record(model, gradients=True) as rec:
        (model(frames) * weights).sum().backward()
    v, out, membranes = torch.zeros_like(seen["x"][0]), [], []
    for x in seen["x"].requires_grad_():
        membranes.append(v + (x - v) / 2)
        out.append(reference.Theta.apply(membranes[-1] - 1))
        v = membranes[-1] * (1 - out[-1].detach())
    logits = torch.stack(out).mean(2).mean(0) @ model.head.weight.detach().T
    expected = torch.autograd.grad((logits * weights).sum(), membranes)
    gradient = rec["blocks.1.mlp.out"].gradient
    assert gradient.abs().max() > 1e-4 and torch.allclose(gradient, torch.stack(expected), rtol=0, atol=1e-12)


def test_a_record_says_which_neuron_and_which_scores(frames):
    config = SpikformerConfig(dim=32, depth=1, heads=4, tau=1.25, neuron="plif", learn_scale=True, qk_pool=True)
    model = Spikformer(config).double()
    model.blocks[0].attn.v.w.data.fill_(0.0)  # 1/tau = 1/2
    with se.record(model) as rec:
        model(frames)
    for layer in rec.layers("spikes"):
        tau = 2 if layer.name.endswith(".v") else 1.25
        assert (layer.tau, layer.beta, layer.levels) == pytest.approx((tau, 1 - 1 / tau, 1))
    scores = rec["blocks.0.attn.scores"]
    assert (scores.scale, scores.pooled, scores.tau, scores.beta) == (0.125, True, None, None)
    with se.record(plain := Spikformer(CONFIG)) as rec:
        plain(frames.float())
    assert not rec["blocks.0.attn.scores"].pooled and rec["blocks.0.residual"].tau is None


def test_compiled_in_place_every_layer_is_seen(model, frames):
    with torch.no_grad(), se.record(model) as expected:
        model(frames)
    model.compile(backend="eager")
    model.blocks[1].mlp.compile(backend="eager")
    with torch.no_grad():
        model(frames)  # compiled now
        before = [model._compiled_call_impl, model.blocks[1].mlp._compiled_call_impl]
        with se.record(model) as rec:
            model(frames)
    assert list(rec) == NAMES
    assert all(torch.equal(rec[name].values, expected[name].values) for name in NAMES)
    assert [model._compiled_call_impl, model.blocks[1].mlp._compiled_call_impl] == before and None not in before


# Errors.


@pytest.mark.parametrize(
    "wrap", [torch.compile, torch.nn.DataParallel, lambda model: model.sps], ids=["compiled", "DataParallel", "a part"]
)
def test_a_wrapper_is_no_network(model, wrap, one_line):
    for use in (se.record, se.layer_names, Rates, lambda model: se.energy(model, torch.zeros(1, 3, 16, 16))):
        with pytest.raises(SpikformerError) as error:
            use(wrap(model))
        one_line(error, "is no Spikformer", "model.module", "model._orig_mod")


def test_unknown_layers_name_the_nearest(model, frames, one_line):
    with pytest.raises(SpikformerError) as error:
        se.record(model, layers=["sps.0", "blocks.0.attn.score"])
    one_line(error, "'blocks.0.attn.score'", "did you mean 'blocks.0.attn.scores'")
    with se.record(model) as rec:
        model(frames)
    with pytest.raises(SpikformerError) as error:
        rec["blocks.0.attn.p"]
    one_line(error, "'blocks.0.attn.p'", "did you mean 'blocks.0.attn.")


def test_reading_before_the_model_was_called(model, one_line):
    with se.record(model) as rec:
        pass
    assert len(rec) == 0 and list(rec) == [] and rec.layers() == []
    with pytest.raises(SpikformerError) as error:
        rec["sps.0"]
    one_line(error, "call the model inside")


def test_reading_what_is_not_there(model, frames, one_line):
    with se.record(model) as rec:
        model(frames)
    with pytest.raises(SpikformerError) as error:
        _ = rec["blocks.0.attn.scores"].spikes
    one_line(error, "'blocks.0.attn.scores'", "scores", ".values")
    with pytest.raises(SpikformerError) as error:
        _ = rec["blocks.0.residual"].membrane
    one_line(error, "'blocks.0.residual'", "residual")
    with pytest.raises(SpikformerError) as error:
        _ = rec["sps.0"].membrane
    one_line(error, "'sps.0'", "membranes=True")


def test_membranes_are_recorded_once_at_a_time(model, frames, one_line):
    before = state(model)
    with se.record(model, membranes=True) as outer:
        with pytest.raises(SpikformerError) as error, se.record(model, membranes=True):
            pass
        model(frames)
    one_line(error, "already")
    assert len(outer.layers("spikes")) == 19 and outer["sps.0"].membrane.shape == outer["sps.0"].spikes.shape
    assert state(model) == before
