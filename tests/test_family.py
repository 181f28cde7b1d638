"""What came after Spikformer: whole networks against their papers' equations, I-LIF unrolled, energy, training, TET."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import reference
import torch
import torch.nn.functional as F
from reference import awaken
from torch import Tensor, nn

import spikformer_edu as se
from spikformer_edu import Spikformer, SpikformerConfig, SpikformerError, visualize
from spikformer_edu.attention import MaskAttention
from spikformer_edu.export.unrolled import BinarySteps, unroll
from spikformer_edu.presets import configure
from spikformer_edu.training import Recipe, init_distributed, load_run, train
from spikformer_edu.training.loop import tet_loss

ROOT = Path(__file__).parents[1]
SMALL = SpikformerConfig(dim=32, depth=2, heads=4, num_classes=5, time_steps=3)
FAMILY = [
    dict(attention="sdsa"),
    dict(attention="qk_token"),
    dict(attention="qk_channel"),
    dict(residual="membrane"),
    dict(residual="membrane", attention="sdsa"),
    dict(neuron="plif"),
    dict(neuron="if"),
    dict(neuron="ilif"),
    dict(neuron="ilif", residual="membrane"),
]


def frames(t=3, b=4, size=16, channels=3) -> Tensor:
    return torch.randn(t, b, channels, size, size, dtype=torch.float64)


def network(**options) -> Spikformer:
    """A small network in float64 that fires, in eval mode."""
    model = Spikformer(replace(SMALL, **options)).double()
    awaken(model, frames())
    return model


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("options", FAMILY, ids=str)
def test_every_weight_learns_from_the_start(options, steps):
    """At default initialisation, in training: gradients finite and none of them zero."""
    torch.manual_seed(0)
    model = se.spikformer("digits-2-64", time_steps=steps, **options)
    F.cross_entropy(model(torch.randn(4, 1, 32, 32)), torch.tensor([0, 1, 2, 3])).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name


@pytest.mark.parametrize("options", FAMILY, ids=str)
def test_parameters_are_counted(options):
    whole = se.preset("digits-2-64").parameters
    count = sum(p.numel() for p in se.spikformer("digits-2-64", **options).parameters())
    of_v = 2 * (64 * 64 + 64 + 2 * 64)  # a matrix, a bias and a norm in each of two blocks
    of_neurons = 5 + 2 * 7  # one number a layer
    lost = of_v if options.get("attention", "").startswith("qk") else 0
    assert count == whole - lost + (of_neurons if options.get("neuron") == "plif" else 0)


# The membrane shortcut.


def current(layer: nn.Module, bn: nn.Module, x: Tensor) -> Tensor:
    """BN(Linear(x)) on tokens, in evaluation mode, written out."""
    y = x @ layer.weight.T + layer.bias
    return (y - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias


def spikingformer_block(block: nn.Module, u: Tensor, attention: str) -> Tensor:
    """U' = U + BN(Linear(SN(Q K^T V s))) with Q, K, V of SN(U); U'' = U' + the MLP, whose layers begin with SN."""
    heads, x = block.attn.heads, reference.lif(u)[0]
    qkv = reference.lif(current(block.attn.qkv, block.attn.bn, x))[0]
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(2, 3) for part in qkv.chunk(3, -1))
    if attention == "sdsa":
        mixed = reference.lif((q * k).sum(-2, keepdim=True), v_threshold=0.5)[0] * v
    else:
        mixed = reference.lif(q @ k.transpose(-2, -1) @ v * 0.125, v_threshold=0.5)[0]
    u = u + current(block.attn.proj.linear, block.attn.proj.bn, mixed.transpose(2, 3).flatten(3))
    hidden = reference.lif(current(block.mlp.hidden.linear, block.mlp.hidden.bn, reference.lif(u)[0]))[0]
    return u + current(block.mlp.out.linear, block.mlp.out.bn, hidden)


@pytest.mark.parametrize("attention", ["ssa", "sdsa"])
def test_membrane_residuals_are_those_of_spikingformer_and_sdt(attention):
    model, x = network(residual="membrane", attention=attention), frames()
    seen = {}
    for name in ("sps", "blocks.0", "blocks.1", "head_in"):
        model.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    logits = model(x)
    u = seen["sps"].flatten(3).transpose(2, 3)
    assert not torch.equal(u, u.round())  # currents were added
    for i, block in enumerate(model.blocks):
        u = spikingformer_block(block, u, attention)
        assert torch.allclose(u, seen[f"blocks.{i}"], rtol=0, atol=1e-9)
    spikes = reference.lif(u)[0]
    assert 0.02 < spikes.mean() < 0.9 and torch.equal(spikes, seen["head_in"])
    assert torch.allclose(logits, model.head(spikes.mean((0, 2))), rtol=0, atol=1e-12)
    assert torch.allclose(model(x, every_step=True).mean(0), logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("attention", ["ssa", "sdsa", "qk_token", "qk_channel"])
@pytest.mark.parametrize("residual", ["spike", "membrane"])
def test_with_membranes_every_weight_sees_spikes_alone(residual, attention):
    model = network(residual=residual, attention=attention)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in ("sps.0.conv", "head"):
            module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0]}))
    model(frames())
    binary = {name for name, x in seen.items() if ((x == 0) | (x == 1)).all()}
    of_streams = {f"blocks.{i}.{n}" for i in (0, 1) for n in ("attn.qkv", "mlp.hidden.linear")}
    assert len(seen) == 4 + 2 * 4
    assert binary == (set(seen) if residual == "membrane" else set(seen) - of_streams)


# I-LIF, unrolled.


def powers_of_two(model: Spikformer) -> None:
    """Weights that are multiples of a power of two, and norms that only shift by such a number."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for p in module.parameters(recurse=False):
                p.data = (p.data * 4).clamp(-1, 1).mul(16).round() / 16
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 0.0
            module.running_mean.copy_((module.running_mean * 4).round() / 4)
            module.running_var.fill_(1.0)
            module.weight.data.fill_(0.5)
            module.bias.data = (module.bias.data * 8).round() / 8


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("residual", ["spike", "membrane"])
def test_integers_unrolled_into_binary_steps_are_the_network(residual, levels, exact):
    model = network(neuron="ilif", residual=residual, levels=levels)
    if exact:
        powers_of_two(model)
    steps, x = unroll(model), frames()
    spikes, into = {}, {}
    for name, module in steps.named_modules():
        if isinstance(module, BinarySteps):
            module.register_forward_hook(lambda m, args, out, name=name: spikes.update({name: out}))
        elif isinstance(module, nn.Conv2d | nn.Linear) and "head" not in name:
            module.register_forward_hook(lambda m, args, out, name=name: into.update({name: args[0]}))
    with torch.no_grad(), se.record(model) as rec:
        expected = model(x)
    logits = steps(x)
    assert expected.std() > 0.01
    if exact and levels != 3:  # the head's mean over T D steps, times D, is exact for a power of two only
        assert torch.equal(logits, expected)
    else:
        assert torch.allclose(logits, expected, rtol=0, atol=1e-10)
    assert len(spikes) == len(rec.layers("spikes"))
    for name, out in spikes.items():
        layer = name.removesuffix(".0").removesuffix(".neuron")
        assert len(out) == 3 * levels and set(out.unique().tolist()) <= {0.0, 1.0}, layer
        assert torch.equal(out.unflatten(0, (3, levels)).sum(1), rec[layer].values), layer
    assert max(record.values.max() for record in rec.layers("spikes")) == levels
    del into["sps.0.conv"]
    largest = max(x.max() for x in into.values())
    assert largest == 1 if residual == "membrane" else largest <= 2 + 2 * 2  # sums of spikes, as in the paper's network
    still = x[0]  # an image, repeated
    assert torch.allclose(steps(still), model(still), rtol=0, atol=1e-10)


def test_products_of_binary_steps_are_not_the_product_of_sums():
    """Why Q, K and V are added up first: step by step, Q K^T counts other pairs."""
    q, k = torch.tensor([[2.0]]), torch.tensor([[2.0]])
    steps = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    assert (steps * steps).sum() == 2 and (q * k).sum() == 4


@pytest.mark.parametrize("options", [dict(), dict(neuron="ilif", attention="softmax")])
def test_what_has_no_integers_is_not_unrolled(options, one_line):
    with pytest.raises(SpikformerError) as error:
        unroll(Spikformer(replace(SMALL, **options)))
    one_line(error, "no integers to unroll")


# Configuration.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(residual="membrana"), ["'membrana'", "did you mean 'membrane'"]),
        (dict(neuron="plf"), ["'plf'", "did you mean 'plif'"]),
        (dict(attention="sdas"), ["'sdas'", "did you mean 'sdsa'"]),
        (dict(neuron="if", tau=3.0), ["tau=3.0", "if neurons have no tau"]),
        (dict(levels=2), ["levels=2", "lif neurons have no levels"]),
        (dict(neuron="ilif", levels=0), ["levels=0", "at least 1"]),
        (dict(neuron="ilif", attention="qk_token"), ["'qk_token'", "0 and 1"]),
    ],
)
def test_combinations_that_make_no_sense(options, words, one_line):
    with pytest.raises(SpikformerError) as error:
        replace(SMALL, **options)
    one_line(error, *words)


@pytest.mark.parametrize("name", ["cifar10dvs-2-256", "dvsgesture-2-256"])
def test_a_mask_drops_the_scale_of_a_preset(name):
    assert configure(name, attention="sdsa").scale is None and not configure(name, attention="sdsa").learn_scale
    small = configure(name, attention="sdsa", dim=32, heads=2, depth=1)
    assert isinstance(Spikformer(small).blocks[0].attn, MaskAttention)


# Recording, interventions, check.


@pytest.mark.parametrize("options", FAMILY, ids=str)
def test_names_and_order_of_layers(options):
    model = network(**options)
    names = se.layer_names(model)
    with torch.no_grad(), se.record(model, membranes=True, compact=True) as rec:
        logits = model(frames())
    assert list(rec) == names and torch.allclose(rec.logits.mean(0), logits, rtol=0, atol=1e-12)
    membrane, mask = options.get("residual") == "membrane", options.get("attention", "ssa") != "ssa"
    block = [
        *(["attn_in"] if membrane else []),
        *(["attn.q", "attn.k"] if options.get("attention", "").startswith("qk") else ["attn.q", "attn.k", "attn.v"]),
        *([] if mask else ["attn.scores"]),
        "attn.attn",
        *(["mlp_in", "mlp.hidden"] if membrane else ["attn.proj", "mlp.hidden", "mlp.out"]),
        "residual",
    ]
    sps = ["sps.0", "sps.1", "sps.2", "sps.3"] + ([] if membrane else ["sps.rpe"])
    expected = sps + [f"blocks.{i}.{name}" for i in (0, 1) for name in block] + (["head_in"] if membrane else [])
    assert names == expected
    for record in rec.layers("spikes"):
        record.membrane  # noqa: B018  raises if there is none
        assert record.levels == (4 if options.get("neuron") == "ilif" else 1) and record.spikes.dtype == torch.float64
    assert all(line["rate"] is None or 0 <= line["rate"] <= 1 for line in rec.summary())


@pytest.mark.parametrize("options", FAMILY, ids=str)
def test_interventions_reach_every_layer(options):
    model, x = network(**options), frames()
    with torch.no_grad():
        before = model(x)
        for name in se.layer_names(model):
            with se.intervene(model, {name: torch.zeros_like}):
                silenced = model(x)
            assert silenced.shape == before.shape
            gate = name.endswith("attn.attn") or name.endswith(".q") or name == "head_in"
            assert not gate or (silenced != before).any(), name
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("options", FAMILY, ids=str)
def test_check_finds_no_fault_in_the_family(options):
    torch.manual_seed(0)
    model = se.spikformer("digits-2-64", depth=1, dim=32, heads=2, **options)
    report = se.check(model, torch.randn(4, 1, 32, 32))
    assert report.findings == []


# Energy.


def test_energy_of_masks_is_their_count_and_their_mask():
    x = torch.randn(4, 1, 32, 32)
    for attention, counted in (
        ("sdsa", lambda q, k: q * k),
        ("qk_token", lambda q, k: q),
        ("qk_channel", lambda q, k: q),
    ):
        model = se.spikformer("digits-2-64", attention=attention, depth=1)
        awaken(model, x)
        with torch.no_grad(), se.record(model) as rec:
            model(x)
        q, k = (rec[f"blocks.0.attn.{name}"].spikes for name in "qk")
        costs = {cost.layer: cost for cost in se.energy(model, x).layers}
        gate, mask = costs["blocks.0.attn.gate"], costs["blocks.0.attn.mask"]
        assert gate.flops == mask.flops == 64 * 64 and gate.steps == 4  # N D
        assert gate.rate == pytest.approx(float(counted(q, k).mean()))
        assert mask.rate == pytest.approx(float((rec["blocks.0.attn.v"].spikes if attention == "sdsa" else k).mean()))
        assert gate.pj["integer"] == pytest.approx(0.9 * gate.rate * 4 * 64 * 64)
        assert gate.ann_flops == mask.ann_flops == 64 * 64 * 64 and not any("^T" in name for name in costs)
        maps = 3 if attention == "sdsa" else 2
        assert costs["blocks.0.attn.qkv"].flops == 64 * maps * 64 * 64


def test_with_membranes_integers_cost_what_spikes_cost():
    """The difference of the conventions is the integers of the residual stream, and the head."""
    x = torch.randn(4, 1, 32, 32)
    for residual in ("spike", "membrane"):
        model = se.spikformer("digits-2-64", residual=residual)
        awaken(model, x)
        report = se.energy(model, x)
        more = {
            c.layer for c in report.layers if c.pj["integer"] > 1.001 * c.pj["paper-corrected"] and c.layer != "head"
        }
        streams = {f"blocks.{i}.{n}" for i in (0, 1) for n in ("attn.qkv", "mlp.hidden")}
        products = {f"blocks.{i}.attn.(QK^T)V" for i in (0, 1)} | {f"blocks.{i}.attn.Q(K^TV)" for i in (0, 1)}
        assert more - products == (streams if residual == "spike" else set())


def test_energy_of_integers_counts_binary_steps():
    model, x = network(neuron="ilif", residual="membrane", levels=3), frames()
    with torch.no_grad(), se.record(model) as rec:
        model(x)
    costs = {cost.layer: cost for cost in se.energy(model, x).layers}
    spikes = rec["blocks.0.attn_in"].spikes
    cost = costs["blocks.0.attn.qkv"]
    assert cost.steps == 3 * 3 and cost.rate == pytest.approx(float(spikes.mean()) / 3)
    assert cost.sops == pytest.approx(float(spikes.mean()) * 3 * cost.flops)
    assert costs["sps.0"].real and costs["sps.0"].steps == 3


# The page of successors.

T_95 = {10: 2.262, 3: 4.303}  # Student's t, 95 %, seeds - 1 degrees of freedom
PAGE = ROOT / "docs" / "successors.md"


def measured(*files: str) -> dict[str, Tensor]:
    """Variant -> test accuracies in %, by seed; the results call Q-K attention otherwise in one file."""
    found: dict[str, dict[int, float]] = {}
    for file in files:
        for run in json.loads((ROOT / "tutorials" / "results" / f"{file}.json").read_text())["runs"]:
            name = run.get("variant", run.get("attention"))
            name = {"token_qk": "qk_token", "channel_qk": "qk_channel"}.get(name, name)
            found.setdefault(name, {})[run["seed"]] = 100 * run["test_accuracy"]
    return {name: torch.tensor([by[s] for s in sorted(by)], dtype=torch.float64) for name, by in found.items()}


def rows(section: str) -> dict[str, list[str]]:
    """The table under a heading: first cell -> the others."""
    text = PAGE.read_text(encoding="utf-8").split(f"### {section}\n")[1].split("\n## ")[0].split("\n### ")[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_page_shows_the_cued_results():
    results, shown = measured("13_cued", "09_cued"), rows("Cued digits")
    names = {"SSA": "ssa", "no attention (control)": "none", "SDSA": "sdsa"}
    names |= {"token Q-K": "qk_token", "channel Q-K": "qk_channel"}
    assert list(shown) == list(names)
    for title, (accuracy, minus, resolved) in shown.items():
        top = results[names[title]]
        gap = top - results["ssa"]
        half = T_95[len(top)] * gap.std() / len(top) ** 0.5
        assert float(accuracy) == pytest.approx(float(top.mean()), abs=0.0051) and len(top) == 10
        if title != "SSA":
            said = [float(number) for number in minus.split(" ± ")]
            assert said == pytest.approx([float(gap.mean()), float(half)], abs=0.0051)
            assert resolved == ("yes" if gap.mean().abs() > half else "no")


def test_the_page_shows_the_toy_cifar_results():
    results, shown = measured("13_cifar"), rows("Toy CIFAR")
    runs = json.loads((ROOT / "tutorials" / "results" / "13_cifar.json").read_text())["runs"]
    assert len(shown) == len(results) == 9
    for name, (parameters, accuracy, minus, resolved, energy) in zip(results, shown.values(), strict=True):
        top, own = results[name], [run for run in runs if run["variant"] == name]
        gap = top - results["ssa"]
        half = T_95[len(top)] * gap.std() / len(top) ** 0.5
        assert float(accuracy) == pytest.approx(float(top.mean()), abs=0.0051) and len(top) == 3
        assert int(parameters.replace(",", "")) == own[0]["parameters"]
        if name != "ssa":
            said = [float(number) for number in minus.split(" ± ")]
            assert said == pytest.approx([float(gap.mean()), float(half)], abs=0.0051)
            assert resolved == ("yes" if gap.mean().abs() > half else "no")
        if energy:
            usual = sum(run["pj"] for run in runs if run["variant"] == "ssa")
            assert float(energy) == pytest.approx(sum(run["pj"] for run in own) / usual, abs=0.0051)


# Training.


def test_tet_is_its_papers_sum():
    logits = torch.randn(4, 6, 5, dtype=torch.float64)
    labels, shares = torch.arange(6) % 5, torch.rand(6, 5, dtype=torch.float64).softmax(1)
    for targets in (labels, shares):
        steps = sum(F.cross_entropy(logits[t], targets, label_smoothing=0.1) for t in range(4)) / 4
        expected = (1 - 0.001) * steps + 0.001 * F.mse_loss(logits, torch.ones_like(logits))
        torch.testing.assert_close(tet_loss(logits, targets, 0.1), expected)
    same = logits[:1].expand(4, -1, -1)
    usual = F.cross_entropy(same.mean(0), labels)
    assert tet_loss(same, labels) == pytest.approx(float(0.999 * usual + 0.001 * (same - 1).square().mean()))


@pytest.mark.parametrize(
    "options",
    [
        dict(attention="sdsa", loss="tet"),
        dict(attention="qk_channel", residual="membrane"),
        dict(neuron="plif"),
        dict(neuron="ilif", residual="membrane", loss="tet"),
    ],
    ids=str,
)
def test_a_run_keeps_its_family_and_goes_on(tmp_path, options, monkeypatch):
    recipe = Recipe(epochs=2, samples_per_class=2, batch_size=10, warmup_epochs=0, time_steps=2, **options)
    place = init_distributed("cpu")
    train(recipe, tmp_path / "whole", place)
    from spikformer_edu.training.loop import Trainer

    finish = Trainer.finish_epoch

    def interrupted(self):
        finish(self)
        if self.progress.epoch == 1:
            self.save(self.progress)
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "finish_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "parts", place)
    monkeypatch.undo()
    with pytest.raises(SpikformerError, match="--loss|--attention|--neuron|--residual"):
        train(replace(recipe, **{name: getattr(Recipe(), name) for name in options}), tmp_path / "parts", place)
    train(recipe, tmp_path / "parts", place)
    whole, parts = (load_run(tmp_path / name, "last") for name in ("whole", "parts"))
    for name in ("attention", "residual", "neuron"):
        assert getattr(whole.model.config, name) == options.get(name, getattr(Recipe(), name))
    assert whole.recipe == parts.recipe and whole.recipe.loss == options.get("loss", "mean")
    for a, b in zip(whole.model.state_dict().values(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_tet_moves_the_weights_otherwise(tmp_path):
    weights = []
    for loss in ("mean", "tet"):
        recipe = Recipe(epochs=1, samples_per_class=2, batch_size=10, time_steps=2, loss=loss)
        train(recipe, tmp_path / loss, init_distributed("cpu"))
        weights.append(load_run(tmp_path / loss, "last").model.head.weight)
    assert not torch.equal(*weights)


def test_figures_of_integers_are_refused(tmp_path, one_line):
    train(Recipe(epochs=1, samples_per_class=1, batch_size=10, neuron="ilif"), tmp_path, init_distributed("cpu"))
    with pytest.raises(SpikformerError) as error:
        visualize.main(visualize.Options(str(tmp_path), samples=1, out=tmp_path / "figures"))
    one_line(error, "ilif", "0 and 1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [dict(attention="sdsa", residual="membrane"), dict(neuron="plif"), dict(neuron="if")]
)
def test_a_run_of_the_family_is_drawn(tmp_path, options):
    train(Recipe(epochs=1, samples_per_class=2, batch_size=10, **options), tmp_path, init_distributed("cpu"))
    visualize.main(visualize.Options(str(tmp_path), samples=2, out=tmp_path / "figures"))
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    scores = {"attention", "attention_query", "attention_over_time", "multiplication_order"}
    assert {"atlas", "neuron", "landscape", "energy"} <= drawn
    assert drawn & scores == (set() if "attention" in options else scores)


def test_unknown_loss(one_line):
    with pytest.raises(SpikformerError) as error:
        Recipe(loss="ted")
    one_line(error, "'ted'", "did you mean 'tet'")


@pytest.mark.parametrize("learned", [False, True])
def test_configs_of_former_versions(tmp_path, learned, one_line):
    """They hold learn_beta and learn_threshold, which no run of this project ever turned on."""
    recipe = Recipe(epochs=1, samples_per_class=1, batch_size=10)
    train(recipe, tmp_path, init_distributed("cpu"))
    content = json.loads((tmp_path / "config.json").read_text())
    for name in ("residual", "neuron", "levels"):
        del content["network"][name]
    for name in ("residual", "neuron", "loss"):
        del content["recipe"][name]
    content["network"] |= {"learn_beta": False, "learn_threshold": learned}
    (tmp_path / "config.json").write_text(json.dumps(content))
    if learned:
        with pytest.raises(SpikformerError) as error:
            load_run(tmp_path)
        one_line(error, "learn_threshold=true", "plif")
    else:
        assert load_run(tmp_path).recipe == replace(recipe, precision="fp32")
        train(recipe, tmp_path, init_distributed("cpu"))  # a finished run is resumed


def test_the_packaged_configs_load():
    for name in ("digits-2-64", "cifar10-2-128", "cifar10-4-384"):
        config = se.load_pretrained(name).config
        assert (config.attention, config.residual, config.neuron) == ("ssa", "spike", "lif")
