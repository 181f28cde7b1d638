"""A linear map as a convolution: the same numbers, taken where it pays, and the same in every part of a run."""

import copy
import json
import pickle
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_training import CPU, SMALL, assert_same_run
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import spikformer_edu as se
from spikformer_edu.data import load
from spikformer_edu.kernels import linear
from spikformer_edu.kernels.linear import Linear, compute_as, convolution_is_faster
from spikformer_edu.training import loop
from spikformer_edu.training.loop import RunOptions, Trainer

ENOUGH = (4, 4, 64, 512)  # tokens [T, B, N, D] for which 512 -> 512 is worth a convolution


def layer(dim_in=512, dim_out=512, **options) -> Linear:
    made = Linear(dim_in, dim_out, **options)
    made.as_convolution = True
    return made


def operators(call, *arguments) -> set[str]:
    """Operators that multiply in a call."""
    with FlopCounterMode(display=False) as counter:
        call(*arguments)
    return {str(op) for op in counter.get_flop_counts()["Global"]}


CONVOLUTION, PRODUCT = {"aten.convolution"}, {"aten.addmm"}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "dim_out"),
    [
        (ENOUGH, 512),
        ((4, 16, 64, 256), 256),  # CIFAR
        ((2, 4, 196, 512), 384),  # ImageNet: images of 32 tokens, half of them across two samples
        ((16, 1, 64, 192), 1408),
        ((1024, 384), 768),
    ],
)
def test_it_is_the_linear_map_in_both_directions(shape, dim_out, bias):
    made = layer(shape[-1], dim_out, bias=bias)
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], dim_out)
    y = made(x)
    assert operators(made, x) == CONVOLUTION and y.shape == grad.shape and y.is_contiguous()
    y.backward(grad)
    exact = [t.detach().double().requires_grad_() for t in (x, *made.parameters())]
    expected = F.linear(*exact)
    expected.backward(grad.double())
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5)
    for tensor, wanted in zip((x, *made.parameters()), exact, strict=True):
        error = (tensor.grad - wanted.grad).norm() / wanted.grad.norm()
        assert error < 5e-6


def test_tokens_in_any_order_of_memory_are_taken():
    made, x = layer(), torch.randn(4, 512, 4, 64).permute(0, 2, 3, 1)
    assert not x.is_contiguous()
    torch.testing.assert_close(made(x), F.linear(x, made.weight, made.bias), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [(4, 3, 64, 512), (1, 1, 1031, 512), (1023, 512), (0, 512), (512,)],  # too little work, no images, no tokens, one
    ids=str,
)
def test_small_and_odd_inputs_are_a_product_to_the_bit(shape):
    made, x = layer(), torch.randn(shape)
    assert torch.equal(made(x), F.linear(x, made.weight, made.bias))
    assert not operators(made, x) & CONVOLUTION


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_is_a_product_in_training_and_a_convolution_without_gradients(autocast):
    made, x = layer(), torch.randn(ENOUGH)
    made, x = (made, x) if autocast else (made.bfloat16(), x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert operators(made, x) == PRODUCT
        trained = made(x)
        with torch.no_grad():
            assert operators(made, x) == CONVOLUTION
            y = made(x)
    assert y.dtype == trained.dtype == torch.bfloat16
    torch.testing.assert_close(y, trained, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_numbers_are_a_product(dtype):
    made, x = layer().to(dtype), torch.randn(ENOUGH, dtype=dtype)
    with torch.no_grad():
        assert operators(made, x) == PRODUCT
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=dtype == torch.float16):
        assert operators(made, x) == PRODUCT


@pytest.fixture
def forgetful():
    """What is known of this machine is read anew, in the test and after it."""
    convolution_is_faster.cache_clear()
    yield
    convolution_is_faster.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "level", "faster"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_a_processor_takes_what_it_is_known_to_be_faster_at(monkeypatch, tmp_path, forgetful, vendor, level, faster):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(linear, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    assert convolution_is_faster() == faster
    assert operators(Linear(512, 512), torch.randn(ENOUGH)) == (CONVOLUTION if faster else PRODUCT)


@pytest.mark.parametrize(
    ("name", "faster"), [("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", True), ("arm", False), ("", False)]
)
def test_without_a_list_of_processors_the_system_is_asked(monkeypatch, tmp_path, forgetful, name, faster):
    monkeypatch.setattr(linear, "CPUINFO", tmp_path / "nothing")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(platform, "processor", lambda: name)
    assert convolution_is_faster() == faster


def test_it_is_an_ordinary_linear_layer():
    torch.manual_seed(0)
    made = layer()
    torch.manual_seed(0)
    plain = nn.Linear(512, 512)
    assert isinstance(made, nn.Linear) and repr(made) == repr(plain)
    assert made.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(made.weight, plain.weight) and torch.equal(made.bias, plain.bias)
    x, seen = torch.randn(ENOUGH), []
    y = made(x)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(twin(x), y) and operators(twin, x) == CONVOLUTION
    made.register_forward_hook(lambda module, args, out: seen.append((args[0] is x, out.shape)))
    made(x)
    assert seen == [(True, x.shape)]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_code_that_is_kept_holds_the_linear_map():
    made, x, targets = layer(), torch.randn(ENOUGH), []

    def look(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(made, backend=look)(x)
    program = torch.export.export(made, (x,), strict=False)
    targets += [str(node.target) for node in program.graph.nodes]
    traced = torch.jit.trace(made, x)
    targets.append(str(traced.inlined_graph))
    assert sum("linear" in target for target in targets) == 3 and not any("conv" in target for target in targets)
    plain = F.linear(x, made.weight, made.bias)
    for y in (compiled, program.module()(x), traced(x)):
        torch.testing.assert_close(y, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("way", "multiplies"), [(True, CONVOLUTION), (False, PRODUCT)])
def test_the_network_is_made_of_them_and_computes_as_it_is_told(way, multiplies):
    model = se.spikformer("cifar10-4-384").eval()
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    assert len(layers) == 4 * 4 and type(model.head) is nn.Linear
    compute_as(way, model, None)
    assert ways(model) == {way}
    with torch.no_grad():
        assert operators(model.blocks[0], torch.ones(4, 16, 64, 384)) == multiplies | {"aten.bmm"}


def ways(*models: nn.Module | None) -> set[bool | None]:
    """What the linear maps of networks are told to be."""
    return {m.as_convolution for model in models if model for m in model.modules() if isinstance(m, Linear)}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a machine that takes convolutions, and the folder of its twin that was killed after an epoch."""
    folder, epoch = tmp_path_factory.mktemp("runs"), Trainer.epoch

    def killed(trainer):
        if trainer.progress.epoch == 1:
            raise Killed
        epoch(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "convolution_is_faster", lambda: True)
        start(folder / "whole").run()
        patch.setattr(Trainer, "epoch", killed)
        with pytest.raises(Killed):
            start(folder / "killed").run()
    return folder


def start(folder: Path, **changes) -> Trainer:
    # 64 -> 256 for the tokens of 64 images in 4 steps is just worth a convolution.
    recipe = replace(SMALL, time_steps=4, samples_per_class=8, **changes)
    folder.mkdir(exist_ok=True)
    return Trainer(recipe, folder, CPU, load("digits", samples_per_class=8), RunOptions())


def test_a_run_goes_on_as_it_began_on_any_machine(run, monkeypatch, tmp_path):
    assert json.loads((run / "whole" / "config.json").read_text())["linear_as_convolution"] is True
    shutil.copytree(run / "killed", tmp_path / "elsewhere")
    monkeypatch.setattr(loop, "convolution_is_faster", lambda: False)
    trainer = start(tmp_path / "elsewhere")
    trainer.run()
    assert ways(trainer.model, trainer.average) == {True}
    assert operators(trainer.model.blocks[0].mlp.hidden.linear, torch.ones(4, 64, 64, 64)) == CONVOLUTION
    assert_same_run(run / "whole", tmp_path / "elsewhere")


def test_a_run_of_an_older_version_goes_on_with_products(run, monkeypatch, tmp_path):
    shutil.copytree(run / "killed", tmp_path / "old")
    config = tmp_path / "old" / "config.json"
    content = json.loads(config.read_text())
    del content["linear_as_convolution"]
    config.write_text(json.dumps(content))
    monkeypatch.setattr(loop, "convolution_is_faster", lambda: True)
    trainer = start(tmp_path / "old")
    trainer.resume()
    assert ways(trainer.model, trainer.average) == {False}


def test_the_running_mean_of_the_weights_is_measured_in_the_same_way(monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "convolution_is_faster", lambda: True)
    trainer = start(tmp_path / "mean", ema_decay=0.9, epochs=1, cooldown_epochs=0)
    assert ways(trainer.model, trainer.average) == {None}
    trainer.run()
    assert trainer.average is not None and ways(trainer.model, trainer.average) == {True}
