"""What makes training fast or small changes nothing: every shortcut against the long way."""

import platform
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import snntorch as snn
import torch
from reference import awaken

import spikformer_edu as se
from spikformer_edu.data import load
from spikformer_edu.train import Options, main
from spikformer_edu.training import DistributedContext, Recipe, RunOptions, recipe_for
from spikformer_edu.training.loop import Trainer
from spikformer_edu.training.memory import checkpoint_blocks
from spikformer_edu.training.plan import describe_plan, plan

CPU = DistributedContext(torch.device("cpu"))
SIZE = dict(dim=32, depth=2, heads=2, in_channels=3, pool=(False, True, True, False), time_steps=3)


def network(**changes):
    torch.manual_seed(0)
    model = se.Spikformer(se.SpikformerConfig(**SIZE | changes)).double()
    awaken(model, images())
    return model.train()


def images(count=6):
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def outcome(model, inputs, call=None):
    """Logits, gradients and running statistics of one training step."""
    logits = (model if call is None else call)(inputs)
    (logits.softmax(1)[:, 0]).sum().backward()
    assert all(p.grad.abs().max() > 1e-6 for p in model.parameters() if p.dim() > 1), "it must not be silent"
    buffers = {name: buffer.double() for name, buffer in model.named_buffers() if buffer.numel()}
    return {"logits": logits} | {name: p.grad for name, p in model.named_parameters()} | buffers


def assert_same(a, b, atol=1e-10):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def test_a_still_image_costs_one_convolution_and_changes_nothing_else():
    once, copies = network(), network()
    convolutions = []
    once.sps[0].conv.register_forward_hook(lambda module, args, out: convolutions.append(len(out)))
    a = outcome(once, images())
    b = outcome(copies, images().expand(3, *images().shape))
    assert convolutions == [6]
    assert_same(a, b)


def test_blocks_computed_twice_give_the_same_step():
    plain, twice = network(), network()
    checkpoint_blocks(twice)
    calls = []
    twice.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_same(outcome(plain, images()), outcome(twice, images()))
    assert len(calls) == 2
    assert twice.state_dict().keys() == plain.state_dict().keys()


def test_recomputing_keeps_less():
    def kept(model):
        total = {}

        def keep(t):
            total[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            model(images()).sum()
        return sum(total.values())

    plain, twice = network(depth=6), network(depth=6)
    checkpoint_blocks(twice)
    assert kept(twice) < 0.5 * kept(plain)


LENT_PAGES = """
import resource, sys, torch
from spikformer_edu.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
new = []
for _ in range(5):
    before = faults()
    torch.ones(50_000_000)  # 200 MB, more than glibc ever keeps by itself
    new.append(faults() - before)
print(min(new))  # something small may come to lie in the way of the next block
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
def test_freed_memory_is_lent_again():
    def pages(how: str) -> int:
        command = [sys.executable, "-c", LENT_PAGES, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert pages("keep") < 100 < pages("give back")


def test_channels_last_gives_the_same_step():
    plain, last = network(), network().to(memory_format=torch.channels_last)
    assert_same(
        outcome(plain, images()), outcome(last, images().contiguous(memory_format=torch.channels_last)), atol=1e-9
    )


@pytest.mark.slow
def test_compiled_code_gives_the_same_step():
    plain, compiled = network(depth=1), network(depth=1)
    assert_same(outcome(plain, images()), outcome(compiled, images(), torch.compile(compiled, dynamic=False)))


@pytest.mark.slow
def test_a_network_of_four_blocks_is_compiled_as_one_graph_for_each_mode(monkeypatch):
    """Dynamo gives up where a function has been compiled for eight shapes, so no layer may be compiled by itself."""
    from torch._dynamo.utils import counters

    def not_called(*_):
        raise AssertionError("a method of snnTorch was compiled")

    for owner, name in ((snn.SpikingNeuron, "fire"), (snn.SpikingNeuron, "mem_reset"), (snn.Leaky, "_base_zero")):
        monkeypatch.setattr(owner, name, not_called)
    counters.clear()
    model = network(depth=4, pool=(True, True, True, False), time_steps=2).float()
    compiled = torch.compile(model, dynamic=False, backend="eager")
    for _ in range(2):
        compiled(images().float()).sum().backward()
    assert dict(counters["frames"]) == {"total": 1, "ok": 1} and not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    compiled(images().float()).sum().backward()


def trainer(tmp_path, **changes):
    recipe = replace(Recipe(batch_size=16, time_steps=2, samples_per_class=4, lr=1e-3, warmup_epochs=0), **changes)
    made = Trainer(recipe, tmp_path, CPU, load("digits", samples_per_class=recipe.samples_per_class), RunOptions())
    made.model.double().train()
    return made


def test_a_step_in_parts_has_the_gradient_of_the_whole(tmp_path):
    # Parts have batch statistics of their own: halves that are alike have those of the whole.
    half, labels = load("digits").train.fetch(torch.arange(8), None)
    inputs, targets = torch.cat([half, half]).double(), torch.cat([labels, labels])
    whole, parts = trainer(tmp_path), trainer(tmp_path, grad_accum_steps=2)
    for t in (whole, parts):
        t.step(inputs, targets)
    for (name, p), q in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    assert (whole.progress.correct, whole.progress.seen) == (parts.progress.correct, parts.progress.seen)
    assert whole.progress.loss == pytest.approx(parts.progress.loss, abs=1e-12)


@pytest.mark.parametrize("parts", [2, 3, 4, 6, 8, 12, 32])
def test_parts_of_an_incomplete_batch_count_by_their_samples(tmp_path, parts):
    inputs, targets = load("digits", samples_per_class=1).train.fetch(
        torch.arange(10), None
    )  # of 10 samples a batch of 96
    done = []
    for steps in (1, parts):
        t = trainer(tmp_path, grad_accum_steps=steps, batch_size=96, samples_per_class=1)
        torch.manual_seed(0)
        awaken(t.model, inputs.double())  # in evaluation mode: norms stand still, so parts cannot differ by them
        t.step(inputs.double(), targets)
        done.append(t)
    whole, split = done
    assert split.progress.loss == pytest.approx(whole.progress.loss, rel=1e-6)  # of float32 logits
    assert all(p.grad.abs().max() > 1e-9 for p in whole.model.parameters() if p.dim() > 1), "it must not be silent"
    for (name, p), q in zip(whole.model.named_parameters(), split.model.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q[1].grad, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_the_running_mean_of_weights_is_one(tmp_path):
    t = trainer(tmp_path, ema_decay=0.75)
    t.average.double()
    before = {k: v.clone() for k, v in t.average.state_dict().items()}
    inputs, labels = load("digits").train.fetch(torch.arange(16), None)
    t.step(inputs.double(), labels)
    for name, value in t.model.state_dict().items():
        expected = 0.75 * before[name] + 0.25 * value if value.is_floating_point() else value
        torch.testing.assert_close(t.average.state_dict()[name], expected)
    assert t.measured is t.average


def test_bf16_trains(tmp_path):
    recipe = Recipe(samples_per_class=16, precision="bf16", time_steps=2, batch_size=32, epochs=3)
    t = Trainer(recipe, tmp_path, CPU, load("digits", samples_per_class=16), RunOptions())
    for _ in range(3):
        t.epoch()
    losses = [row["loss"] for row in t.progress.rows]
    assert losses[-1] < losses[0] - 0.04
    assert all(p.dtype == torch.float32 for p in t.model.parameters())


def test_fp16_scales_its_loss_and_skips_a_step_that_overflows(tmp_path):
    recipe = Recipe(samples_per_class=1, precision="fp16", time_steps=1, batch_size=2, warmup_epochs=0)
    t = Trainer(recipe, tmp_path, CPU, load("digits", samples_per_class=1), RunOptions())
    t.model.train()
    inputs, labels = load("digits").train.fetch(torch.arange(2), None)
    before = t.model.head.weight.clone()
    t.step(inputs, labels)
    assert t.scaler.get_scale() > 1 and not torch.equal(t.model.head.weight, before)
    t.scaler.update(new_scale=2.0**40)
    before = t.model.head.weight.clone()
    t.step(inputs, labels)
    assert t.scaler.get_scale() < 2.0**40 and torch.equal(t.model.head.weight, before)


def test_the_plan_counts_what_there_is():
    recipe = replace(recipe_for("cifar10"), model="cifar10-2-384", batch_size=64, grad_accum_steps=2)
    p = plan(recipe, CPU, step_images=1)
    assert (p.images, p.steps, p.total_steps) == (50_000, 781, 781 * 310)
    assert p.parameters == 5_765_050
    assert p.lr == pytest.approx(5e-4 * 0.5**0.5)
    macs = se.energy(se.spikformer("cifar10-2-384"), torch.rand(1, 3, 32, 32)).flops
    # Backward costs twice the forward pass; the first convolution is done once and needs no gradient of the image.
    assert 0.9 < p.flops / (2 * 3 * 4 * macs) < 1.0
    assert p.bytes > 16 * p.parameters and p.step_seconds > 0
    assert p.hours == pytest.approx(p.total_steps * 64 * p.step_seconds / 3600)
    text = describe_plan(recipe, CPU, p)
    assert "batch_size* 64" in text and "epochs 300" in text and "official code reports the best epoch" in text


def test_a_plan_that_does_not_fit_says_how_it_would():
    recipe = replace(recipe_for("cifar10"), model="cifar10-2-384", time_steps=1, batch_size=48)
    p = replace(plan(recipe, CPU, step_images=1), room=None)
    fixed = p.bytes - 48 * p.saved_bytes
    assert "too much" not in describe_plan(recipe, CPU, p)
    assert "too much" not in describe_plan(recipe, CPU, replace(p, room=2 * p.bytes))
    room = int((fixed + 10 * p.saved_bytes) / 0.9)  # up to nine images: 48 = 6 x 8
    assert "add --grad-accum-steps 6," in describe_plan(recipe, CPU, replace(p, room=room))
    assert "use a smaller model" in describe_plan(recipe, CPU, replace(p, room=fixed))


def test_a_plan_is_that_of_the_training_that_was_asked_for(monkeypatch):
    recipe = recipe_for("digits")
    plain, half, mean = (plan(replace(recipe, **more), CPU) for more in ({}, {"precision": "bf16"}, {"ema_decay": 0.9}))
    weights = 4 * plain.parameters
    fixed, fixed_half = (p.bytes - recipe.batch_size * p.saved_bytes for p in (plain, half))
    assert fixed == 4 * weights  # with gradients and two moments
    assert mean.bytes == plain.bytes + weights
    shared = plan(recipe, DistributedContext(torch.device("cpu"), 0, 2))
    assert shared.bytes == fixed + weights + recipe.batch_size // 2 * plain.saved_bytes
    assert 0.5 <= half.saved_bytes / plain.saved_bytes < 0.55  # some numbers stay in full precision
    assert 0.4 * weights < fixed_half - fixed < 0.6 * weights  # a copy of the weights in half precision

    twice = plan(recipe, CPU, RunOptions(activation_checkpointing=True))
    assert 0.3 < twice.saved_bytes / plain.saved_bytes < 0.9 and twice.bytes < plain.bytes
    assert 1.05 < twice.flops / plain.flops < 4 / 3  # forward, backward, and the blocks once more
    for made, advised in ((plain, True), (twice, False)):
        text = describe_plan(recipe, CPU, replace(made, room=made.bytes))
        assert "add --grad-accum-steps 2" in text and ("try --activation-checkpointing" in text) == advised
        assert ("for the backward pass, with --activation-checkpointing)" in text) != advised

    asked = []
    monkeypatch.setattr(torch, "compile", lambda network, **options: asked.append(network) or network)
    assert not plain.compile and not asked
    compiled = plan(recipe, CPU, RunOptions(compile=True))
    assert compiled.compile and len(asked) == 1 and compiled.saved_bytes == plain.saved_bytes
    assert "GFLOP/s, compiled" in describe_plan(recipe, CPU, compiled)


def test_a_dry_run_hears_of_all_options(capsys):
    before = signal.getsignal(signal.SIGTERM)
    main(Options(**vars(recipe_for("digits")), device="cpu", dry_run=True, activation_checkpointing=True))
    assert signal.getsignal(signal.SIGTERM) == before, "a run in a process that goes on must leave its signals as found"
    assert "for the backward pass, with --activation-checkpointing)" in capsys.readouterr().out
