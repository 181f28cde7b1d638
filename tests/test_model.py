"""The network is the official one, layout by layout; what never changes its logits; and every bad input's one line."""

import ast
import copy
import gc
import inspect
import weakref
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import snntorch as snn
import torch
from reference import LAYOUTS, OfficialSpikformer, awaken
from torch import Tensor, nn

import spikformer_edu as se
from spikformer_edu import LIF, Spikformer, SpikformerConfig, SpikformerError
from spikformer_edu.attention import MaskAttention
from spikformer_edu.convert import load_official
from spikformer_edu.model import Block

SMALL = SpikformerConfig(dim=32, depth=2, heads=4, num_classes=5)
T, B = 3, 4


def frames(size=16, channels=3, t=T, b=B, dtype=torch.float64) -> Tensor:
    return torch.randn(t, b, channels, size, size, dtype=dtype)


def network(config: SpikformerConfig = SMALL, dtype=torch.float64, size=16) -> Spikformer:
    """A small network that fires, in eval mode."""
    model = Spikformer(config).to(dtype)
    awaken(model, frames(size, config.in_channels, dtype=dtype))
    return model


def variant(attention: str) -> SpikformerConfig:
    """A small network with that attention, and a scale at which the neuron after it fires, but not always."""
    return replace(SMALL, attention=attention, scale=0.02 if attention in ("identity", "relu", "leaky_relu") else None)


def spikes_of(model: Spikformer, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad(), se.record(model) as rec:
        logits = model(x)
    return logits, {name: rec[name].values for name in rec}


# The official network.


def pair(layout: str) -> tuple[OfficialSpikformer, Spikformer, Tensor]:
    """An official network that fires, ours with its weights, and frames for both."""
    scale = 0.25 if layout == "dvs" else 0.125
    channels, size = (3, 16) if layout == "cifar" else (2 if layout == "dvs" else 3, 48)
    official = OfficialSpikformer(layout, channels=channels, size=size, scale=scale).double()
    x = frames(size, channels)
    awaken(official, x)
    config = replace(
        SMALL, in_channels=channels, pool=official.patch_embed.pool, qkv_bias=layout == "cifar", scale=scale
    )
    return official, load_official(Spikformer(config).double(), official.state_dict()), x


def as_tokens(name: str, spikes: Tensor) -> Tensor:
    """Heads ``[T, B, h, N, d]`` -> tokens ``[T, B, N, D]``; everything else as it is."""
    return spikes.transpose(2, 3).flatten(3) if name.split(".")[-1] in ("q", "k", "v", "attn") else spikes


@pytest.mark.parametrize("backend", ["fused", "snntorch"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_the_official_network(layout, mode, backend):
    official, model, x = pair(layout)
    if backend == "snntorch":
        weights = model.state_dict()
        model = Spikformer(replace(model.config, backend=backend)).double()
        model.load_state_dict(weights)
    official.train(mode == "train"), model.train(mode == "train")
    with se.record(model) as rec:
        logits = model(x)
    expected = official(x)

    assert expected.std() > 0.1 and (logits - expected).abs().max() < 1e-9
    compared = 0
    for name, spikes in official.trace.items():
        if name.startswith("residual"):
            assert torch.equal(rec[f"blocks.{name[-1]}.residual"].values, spikes)
        else:
            assert 0.005 < spikes.mean() < 0.6, f"{name} is silent or saturated: the comparison says nothing"
            assert torch.equal(as_tokens(name, rec[name].spikes), spikes), name
            compared += 1
    assert compared == len(rec.layers("spikes")) == 5 + 7 * 2

    weights = torch.randn_like(expected)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    ours, theirs = model.sps[0].conv.weight.grad, official.patch_embed.proj_conv.weight.grad
    assert theirs.abs().max() > 1e-3 and (ours - theirs).abs().max() < 1e-9
    ours, theirs = model.sps[0].bn.running_var, official.patch_embed.proj_bn.running_var
    assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_gradient_is_the_official_one(layout):
    official, model, x = pair(layout)
    official.train(), model.train()
    weights = torch.randn(B, 5, dtype=torch.float64)
    (model(x) * weights).sum().backward()
    (official(x) * weights).sum().backward()
    gradients = {name: p.grad for name, p in official.named_parameters() if p.grad is not None}
    assert all(g.abs().max() > 1e-6 for g in gradients.values() if g.dim() > 1)
    twin = Spikformer(model.config).double()
    never_called = {name: p for name, p in official.state_dict().items() if name not in gradients and "bn" not in name}
    assert all("norm" in name or name == "pos_embed" for name in never_called)
    statistics = {name: b for name, b in official.state_dict().items() if "running" in name or "num_" in name}
    load_official(twin, gradients | statistics)  # gradients travel under the names of the weights
    expected = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=0, atol=1e-9), name


def test_patch_embedding_is_integer_and_the_head_reads_a_mean():
    model = network()
    seen = {}
    model.sps.register_forward_hook(lambda m, i, output: seen.update(sps=output))
    model.blocks[-1].register_forward_hook(lambda m, i, output: seen.update(last=output))
    logits = model(frames())
    assert set(seen["sps"].unique().tolist()) == {0.0, 1.0, 2.0}
    assert torch.equal(seen["last"], seen["last"].round()) and seen["last"].max() > 2
    assert torch.allclose(logits, model.head(seen["last"].mean((0, 2))), rtol=1e-12)


@pytest.mark.parametrize("trunc_normal", [True, False])
def test_initialisation(trunc_normal):
    model = Spikformer(replace(SMALL, dim=64, heads=2, trunc_normal=trunc_normal))
    assert model.head.weight.abs().max() < 0.1 and not model.head.bias.any()  # the head always
    hidden = model.blocks[0].mlp.hidden.linear
    if trunc_normal:
        assert 0.019 < hidden.weight.std() < 0.021 and not hidden.bias.any()
    else:  # PyTorch's: uniform within 1 / sqrt(64)
        assert 0.12 < hidden.weight.abs().max() <= 0.125 and hidden.bias.any()


# What never changes the logits.


@pytest.mark.parametrize("backend", ["fused", "snntorch"])
def test_two_calls_agree(backend):
    model, x = network(replace(SMALL, backend=backend)), frames()
    first = model(x)
    model(frames(size=32, t=5, b=2))  # another shape in between
    assert first.std() > 0.01 and torch.equal(model(x), first)


def test_batch_mates_do_not_matter():
    """Spikes are equal to the last one. Logits are equal but for the last bits, since a matrix product may sum in
    another order for another batch size; in lower precision such a bit may, rarely, decide a spike."""
    model, x = network(), frames(b=5)
    logits, spikes = spikes_of(model, x)
    order = torch.tensor([3, 0, 4, 1, 2])
    for chosen in (order, torch.tensor([2]), torch.tensor([4, 4, 1])):
        other, other_spikes = spikes_of(model, x[:, chosen])
        assert (other - logits[chosen]).abs().max() < 1e-12 and logits.std(0).max() > 0.01
        for name in spikes:
            assert torch.equal(other_spikes[name], spikes[name][:, chosen]), name


def test_a_static_image_is_its_copies_over_time():
    model = network(replace(SMALL, time_steps=6))
    image = frames()[0]
    logits, spikes = spikes_of(model, image)
    for copies in (image.expand(6, *image.shape), torch.stack([image] * 6)):
        other, other_spikes = spikes_of(model, copies)
        assert (other - logits).abs().max() < 1e-12
        assert all(torch.equal(other_spikes[name], spikes[name]) for name in spikes)
    assert (model(torch.stack([image] * 2)) - logits).abs().max() > 0.01


@pytest.mark.parametrize("layout", ["cifar", "imagenet"])
def test_a_static_image_trains_as_its_copies_do(layout):
    """The first convolution sees an image once. Gradients and running statistics are those of T copies all the same,
    and those of the official network, which convolves them all."""
    official, model, x = pair(layout)
    stacked = Spikformer(model.config).double()
    stacked.load_state_dict(model.state_dict())
    copies = x[0].expand(model.config.time_steps, *x[0].shape)
    weights = torch.randn(B, 5, dtype=torch.float64)
    for net, batch in ((official, copies), (stacked, copies), (model, x[0])):
        net.train()
        for _ in range(3):  # running statistics build on themselves
            net.zero_grad()
            (net(batch) * weights).sum().backward()
    other = dict(stacked.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.dim() == 1 or parameter.grad.abs().max() > 1e-6, f"{name} learns nothing"
        assert torch.allclose(parameter.grad, other[name].grad, rtol=0, atol=1e-9), name
    buffers = dict(stacked.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.allclose(buffer, buffers[name], rtol=1e-12), name
    for ours, theirs in (
        (model.sps[0].conv.weight.grad, official.patch_embed.proj_conv.weight.grad),
        (model.sps[0].bn.running_mean, official.patch_embed.proj_bn.running_mean),
        (model.sps[0].bn.running_var, official.patch_embed.proj_bn.running_var),
        (model.sps[0].bn.num_batches_tracked, official.patch_embed.proj_bn.num_batches_tracked),
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-9)


def test_update_bn_on_images_is_that_on_their_copies():
    """The plain mean over batches (momentum None) of torch.optim.swa_utils, for a still image too."""
    once, batches = network(), [frames()[0], 2 * frames()[0], frames(b=2)[0]]
    copies, before = copy.deepcopy(once), copy.deepcopy(once.state_dict())
    torch.optim.swa_utils.update_bn(batches, once)
    torch.optim.swa_utils.update_bn([x.expand(4, *x.shape) for x in batches], copies)
    for name, value in copies.state_dict().items():
        torch.testing.assert_close(once.state_dict()[name], value, rtol=1e-9, atol=1e-12)
        assert "running" not in name or not torch.allclose(value, before[name])


@pytest.mark.parametrize("training", [True, False])
def test_a_static_image_needs_no_running_statistics(training):
    model, image = network(), frames()[0]
    model.sps[0].bn = nn.BatchNorm2d(4, track_running_stats=False).double()
    nn.init.ones_(model.sps[0].bn.bias)
    model.train(training)
    logits = model(image)
    assert logits.std() > 0.01
    torch.testing.assert_close(model(image.expand(4, *image.shape)), logits, rtol=0, atol=1e-12)


def test_an_exported_network_says_the_same():
    model, image = network(replace(SMALL, depth=1, time_steps=2)), frames()[0]
    # strict, the default up to PyTorch 2.6, allows no module to set an attribute: snnTorch's Leaky sets `mem`.
    program = torch.export.export(model, (frames()[0],), strict=False).module()
    assert model(image).std() > 0.01
    torch.testing.assert_close(program(image), model(image), rtol=0, atol=1e-12)


def test_event_frames_bring_their_own_time_steps():
    model = network()
    assert model.config.time_steps == 4
    for t in (1, 2, 7):
        _, spikes = spikes_of(model, frames(t=t))
        assert {values.shape[0] for values in spikes.values()} == {t}


class Memoryless(nn.Module):
    """Fires on the current alone."""

    def __init__(self, v_threshold: float):
        super().__init__()
        self.v_threshold = v_threshold

    def forward(self, current: Tensor) -> Tensor:
        return (current >= self.v_threshold).to(current.dtype)


def changes(model: nn.Module, x: Tensor, changed: Tensor, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Where the output ``[T, B, ...]`` of each module changes when x does: ``[T, B]``, bool."""
    seen: list[dict[str, Tensor]] = []
    for name, module in modules.items():
        module.register_forward_hook(lambda m, i, output, name=name: seen[-1].update({name: output}))
    with torch.no_grad():
        for batch in (x, changed):
            seen.append({})
            model(batch)
    return {name: (seen[0][name] != seen[1][name]).flatten(2).any(2) for name in modules}


def changed_at(x: Tensor, step: int, sample: int) -> Tensor:
    changed = x.clone()
    changed[step, sample] = -x[step, sample]
    return changed


@pytest.mark.parametrize("attention", se.ATTENTION)
def test_time_flows_forward_and_through_neurons_alone(attention):
    model, x = network(variant(attention)), frames(t=4)
    neurons = {name: m for name, m in model.named_modules() if isinstance(m, LIF)}
    assert len(neurons) == {"ssa": 19, "sdsa": 19, "qk_token": 17, "qk_channel": 17, "vanilla": 13}.get(attention, 15)
    later = torch.zeros(4, B, dtype=torch.bool)
    later[2:, 1] = True
    # The gates of Q-K attention are an OR over much that fires: they may be open before and after a change.
    gates = {name for name in neurons if attention.startswith("qk") and name.endswith("attn.attn")}
    for name, where in changes(model, x, changed_at(x, 2, 1), neurons).items():
        assert not (where & ~later).any(), f"{name}: an earlier step or another sample changed"
        arrived = where[2, 1] and where[3, 1]
        assert arrived or name in gates, f"{name}: the change did not arrive, or did not stay"

    for name, neuron in neurons.items():
        model.set_submodule(name, Memoryless(neuron.v_threshold))
    memoryless = {name: m for name, m in model.named_modules() if isinstance(m, Memoryless)}
    alone = torch.zeros(4, B, dtype=torch.bool)
    alone[2, 1] = True
    for name, where in changes(model, x, changed_at(x, 2, 1), memoryless).items():
        expected = alone & where if name in gates else alone
        assert torch.equal(where, expected), f"{name}: time steps or samples mix outside the neurons"


def test_tokens_mix_in_attention_and_nowhere_else_in_a_block():
    block = Block(SMALL).double()
    awaken(block, torch.randint(0, 3, (T, B, 9, 32), dtype=torch.float64))
    x = torch.randint(0, 3, (T, B, 9, 32), dtype=torch.float64)
    changed = x.clone()
    changed[:, 0, 4] = 3 - x[:, 0, 4]

    def tokens_that_change(layer: nn.Module) -> list[int]:
        return (layer(x) != layer(changed))[:, 0].any(2).any(0).nonzero().flatten().tolist()

    with torch.no_grad():
        assert tokens_that_change(block.mlp) == [4]
        mixed = tokens_that_change(block.attn)
    assert 4 in mixed and len(mixed) > 5


# Sizes, precision, memory.


@pytest.mark.parametrize("height, width", [(16, 16), (8, 24), (12, 4), (4, 4)])
def test_any_multiple_of_the_patch_size_will_do(height, width):
    model = Spikformer(SMALL).eval()
    assert model.config.patch_size == 4
    with se.record(model) as rec:
        assert model(torch.randn(2, 3, height, width)).shape == (2, 5)
    assert rec["blocks.1.residual"].values.shape == (4, 2, height * width // 16, 32)
    assert rec["sps.rpe"].spikes.shape == (4, 2, 32, height // 4, width // 4)


@pytest.mark.parametrize("pool, patch", [((False,) * 4, 1), ((True, True, False, False), 4), ((True,) * 4, 16)])
def test_pool_says_how_many_pixels_a_token_covers(pool, patch):
    config = replace(SMALL, pool=pool)
    assert config.patch_size == patch
    with se.record(model := Spikformer(config)) as rec:
        model(torch.randn(1, 3, 32, 32))
    assert rec["blocks.0.residual"].values.shape[2] == (32 // patch) ** 2


@pytest.mark.parametrize("attention", ["ssa", "softmax"])
@pytest.mark.parametrize("backend", ["fused", "snntorch"])
def test_bfloat16_stays_bfloat16_between_layers(backend, attention):
    model, dtypes = network(replace(SMALL, backend=backend, attention=attention), dtype=torch.float32).train(), {}
    for name, module in model.named_modules():
        if isinstance(module, LIF | Block | nn.BatchNorm1d | nn.BatchNorm2d) or name == "sps":
            module.register_forward_hook(lambda m, i, output, name=name: dtypes.update({name: output.dtype}))
    x = frames(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    logits.float().logsumexp(1).sum().backward()
    assert len(dtypes) > 30 and set(dtypes.values()) == {torch.bfloat16}, dtypes
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("backend", ["fused", "snntorch"])
def test_deleting_a_model_frees_it(backend):
    before = len(snn.SpikingNeuron.instances)
    model = Spikformer(replace(SMALL, backend=backend))
    with se.record(model, membranes=True):
        model(frames(dtype=torch.float32)).sum().backward()
    assert len(snn.SpikingNeuron.instances) == before
    alive = [weakref.ref(m) for m in (model, model.sps[0].neuron, model.blocks[1].attn)]
    alive += [weakref.ref(p) for p in model.parameters()]
    del model
    gc.collect()
    assert not any(ref() is not None for ref in alive)


@pytest.mark.parametrize("attention", se.ATTENTION)
@pytest.mark.parametrize("learned", [False, True])
def test_no_parameter_is_dead(attention, learned):
    masks = issubclass(se.ATTENTION[attention], MaskAttention)
    options = dict(learn_scale=learned and not masks, neuron="plif" if learned else "lif", qk_pool=learned)
    model = network(replace(variant(attention), **options))
    (model(frames()) * torch.randn(B, 5)).sum().backward()  # in eval mode: in training, batch norm undoes a bias
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_state_dict_survives_a_round_trip():
    model, x = network(), frames()
    twin = Spikformer(SMALL).double().eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x)) and model(x).std() > 0.01
    assert all("neuron" not in name for name in model.state_dict())


# Bad input.


@pytest.mark.parametrize(
    "shape, words",
    [
        ((3, 16, 16), ["[3, 16, 16]", "[B, C, H, W]", "[T, B, C, H, W]"]),
        ((1, 1, 1, 3, 16, 16), ["[T, B, C, H, W]"]),
        ((2, 1, 16, 16), ["1 channels", "takes 3"]),
        ((4, 2, 2, 16, 16), ["2 channels", "takes 3"]),
        ((0, 3, 16, 16), ["empty batch", "at least one"]),
        ((4, 0, 3, 16, 16), ["empty batch", "at least one"]),
        ((0, 2, 3, 16, 16), ["T = 0", "at least one"]),
        ((2, 3, 18, 16), ["18 x 16", "multiples", "4"]),
        ((2, 3, 16, 30), ["16 x 30", "multiples", "4"]),
        ((2, 3, 0, 16), ["0 x 16", "multiples"]),
    ],
)
def test_input_of_a_wrong_shape(shape, words, one_line):
    with pytest.raises(SpikformerError) as error:
        Spikformer(SMALL)(torch.zeros(shape))
    one_line(error, *words)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_input_that_is_not_finite(value, one_line):
    x = torch.zeros(2, 3, 16, 16)
    x[1, 2, 3, 4] = value
    with pytest.raises(SpikformerError) as error:
        Spikformer(SMALL)(x)
    one_line(error, "NaN or inf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_input_of_another_dtype_than_the_network(dtype, one_line):
    model, x = Spikformer(SMALL).eval(), torch.rand(2, 3, 16, 16).to(dtype)
    with pytest.raises(SpikformerError) as error:
        model(x)
    one_line(error, str(dtype), "torch.float32", "the same dtype")
    assert model.to(dtype)(x).dtype == dtype
    if dtype is torch.bfloat16:
        with torch.autocast("cpu", dtype):
            assert model.float()(x).dtype == dtype


def test_input_that_is_no_tensor(one_line):
    with pytest.raises(SpikformerError) as error:
        Spikformer(SMALL)(np.zeros((2, 3, 16, 16), dtype=np.float32))
    one_line(error, "ndarray", "torch.as_tensor")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool], ids=str)
def test_input_of_integers(dtype, one_line):
    with pytest.raises(SpikformerError) as error:
        Spikformer(SMALL)(torch.ones(2, 3, 16, 16, dtype=dtype))
    one_line(error, str(dtype), "x.float() / 255")


@pytest.mark.parametrize(
    "option, words",
    [
        *((dict([(name, 0)]), [f"{name}=0", "at least 1"]) for name in ("dim", "depth", "heads", "time_steps")),
        *((dict([(name, -3)]), [f"{name}=-3"]) for name in ("num_classes", "in_channels", "mlp_ratio")),
        (dict(depth=2.0), ["depth=2.0", "whole number"]),
        (dict(dim=36, heads=4), ["dim=36", "multiple of 8"]),
        (dict(heads=5), ["heads=5", "dim=32"]),
        (dict(pool=(True, False)), ["pool=(True, False)", "four"]),
        (dict(attention="softmx"), ["'softmx'", "did you mean 'softmax'", "ssa"]),
        (dict(backend="fusde"), ["'fusde'", "did you mean 'fused'"]),
        (dict(tau=1.0), ["tau=1.0"]),
        (dict(tau=float("nan")), ["tau=nan"]),
        (dict(tau=float("inf")), ["tau=inf", "finite"]),
        (dict(scale=0.0), ["scale=0.0", "positive"]),
        (dict(scale=float("nan")), ["scale=nan"]),
    ],
)
def test_configuration_out_of_range(option, words, one_line):
    with pytest.raises(SpikformerError) as error:
        replace(SMALL, **option)
    one_line(error, *words)


def test_configuration_takes_a_list_for_pool():
    assert replace(SMALL, pool=[1, 0, 0, 1]) == replace(SMALL, pool=(True, False, False, True))


def test_every_option_changes_the_network():
    """An option that nothing reads would be a lie: every field, changed, changes weights, output or representation."""
    other = dict(
        dim=64,
        depth=1,
        heads=2,
        num_classes=6,
        in_channels=1,
        time_steps=2,
        pool=(True, True, False, False),
        mlp_ratio=2,
        attention="softmax",
        scale=0.5,
        learn_scale=True,
        qk_pool=True,
        qkv_bias=False,
        trunc_normal=False,
        tau=4.0,
        residual="membrane",
        neuron="if",
        levels=2,
    )
    names = {field.name for field in fields(SpikformerConfig)}
    assert set(other) | {"backend"} == names  # fused and snntorch are equal by design

    def fingerprint(config: SpikformerConfig) -> tuple:
        torch.manual_seed(1)
        model = Spikformer(config).train()
        torch.manual_seed(1)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
            nn.init.constant_(norm.bias, 0.9)
        x = torch.randn(2, config.in_channels, 16, 16)
        return [(name, p.shape) for name, p in model.named_parameters()], model(x).tolist()

    default = fingerprint(SMALL)
    assert fingerprint(SMALL) == default
    integers = replace(SMALL, neuron="ilif")
    assert fingerprint(replace(integers, levels=other.pop("levels"))) != fingerprint(integers)
    for name, value in other.items():
        assert fingerprint(replace(SMALL, **{name: value})) != default, f"{name} does nothing"


def test_the_model_can_be_read_in_one_sitting():
    """Neurons, attention and model, blank lines and comments aside: under 500 lines of code, 660 with docstrings."""
    package, code, whole = Path(inspect.getfile(se)).parent, 0, 0
    for name in ("neurons.py", "attention.py", "model.py"):
        source = (package / name).read_text()
        said = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                said |= set(range(node.lineno, node.end_lineno + 1))
        lines = {
            n for n, line in enumerate(source.splitlines(), 1) if line.strip() and not line.strip().startswith("#")
        }
        code, whole = code + len(lines - said), whole + len(lines)
    assert 300 < code < 500 and code < whole < 660, (code, whole)
