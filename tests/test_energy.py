"""Operations counted three ways: by hooks, by PyTorch's own counter, by formulas; and the paper's figures audited."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import spikformer_edu as se
from spikformer_edu.energy import (
    AC,
    CONVENTIONS,
    MAC,
    count_flops,
    energy,
    rate_and_mean,
)
from spikformer_edu.paper_audit import (
    PUBLISHED,
    PUBLISHED_ANN,
    audit_ann,
    audit_ann_rest,
    audit_paper,
    first_conv_mj,
)


def build(**options):
    torch.manual_seed(0)
    model = se.spikformer("digits-2-64", **({"dim": 16, "heads": 2, "depth": 2} | options))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # one batch in training mode sets the statistics, so that every layer fires
    model(4 * torch.randn(8, model.config.in_channels, 32, 32))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def images():
    return 4 * torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def by_name(report):
    return {cost.layer: cost for cost in report.layers}


class TestFlops:
    @pytest.mark.parametrize("attention", ["ssa", "relu", "softmax", "vanilla"])
    @pytest.mark.parametrize("size", [32, 8])  # N = 64 > d and N = 4 < d: both orders of the product
    def test_agree_with_pytorchs_counter(self, attention, size):
        model = build(attention=attention)
        x = torch.randn(4, 3, 1, size, size)  # frames: of a still image the model computes the first convolution once
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        report = energy(model, x)
        executed = sum(cost.flops * cost.steps for cost in report.layers) * 3
        assert counter.get_total_flops() == 2 * executed  # it counts a multiplication and an addition as two

    def test_agree_with_pytorchs_counter_layer_by_layer(self, model, images):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images)
        counts = counter.get_flop_counts()
        costs = by_name(energy(model, images))
        for module in ("sps.1.conv", "sps.rpe.conv", "blocks.1.attn.qkv", "blocks.0.mlp.out", "head"):
            cost = costs[module.removesuffix(".conv")]
            assert sum(counts[f"Spikformer.{module}"].values()) == 2 * cost.flops * cost.steps * 3

    def test_a_still_image_is_charged_like_the_same_frames(self, model, images):
        still, frames = energy(model, images), energy(model, images.expand(4, *images.shape))
        assert still.totals == frames.totals and still.layers[0].steps == 4

    @pytest.mark.parametrize("name", ["digits-2-64", "cifar10-2-384", "dvsgesture-2-256"])
    def test_agree_with_the_formulas(self, name):
        preset = se.preset(name)
        model = se.spikformer(name).eval()
        size = preset.image_size
        parts = count_flops(preset.config, size)
        costs = by_name(energy(model, torch.randn(1, 1, preset.config.in_channels, size, size)))
        assert costs["sps.0"].flops == parts["first conv"]
        assert sum(c.flops for n, c in costs.items() if n.startswith("sps.") and n != "sps.0") == parts["other convs"]
        linear = [c.flops for n, c in costs.items() if n.endswith((".qkv", ".proj", ".hidden", ".out"))]
        assert sum(linear) == parts["linear"]
        assert sum(c.flops for n, c in costs.items() if "^T" in n) == 2 * parts["K^TV"]
        assert sum(c.ann_flops for n, c in costs.items() if "^T" in n) == 2 * parts["QK^T"]
        assert costs["head"].flops == parts["head"]

    def test_cifar_written_out(self):
        """Spikformer-4-384 on 32 x 32: every number typed by hand."""
        parts = count_flops(se.preset("cifar10-4-384").config, 32)
        assert parts["first conv"] == 32 * 32 * 48 * 27
        assert parts["other convs"] == 9 * (1024 * 48 * 96 + 1024 * 96 * 192 + 256 * 192 * 384 + 64 * 384 * 384)
        assert parts["linear"] == 4 * 64 * 12 * 384 * 384
        assert parts["QK^T"] == 4 * 64 * 64 * 384 and parts["K^TV"] == 4 * 64 * 384 * 32
        assert parts["head"] == 3840


class TestRates:
    def test_are_those_of_the_inputs(self, model, images):
        costs = by_name(energy(model, images))
        with torch.no_grad(), se.record(model) as rec:
            model(images)
        residual = rec["blocks.0.residual"].values
        assert costs["blocks.1.attn.qkv"].rate == pytest.approx(float((residual != 0).double().mean()))
        assert costs["blocks.1.attn.qkv"].mean == pytest.approx(float(residual.double().mean()))
        assert costs["blocks.1.attn.qkv"].mean > costs["blocks.1.attn.qkv"].rate  # integers above 1
        assert costs["blocks.0.mlp.out"].rate == pytest.approx(float(rec["blocks.0.mlp.hidden"].spikes.double().mean()))
        assert costs["blocks.0.attn.K^TV"].rate == pytest.approx(float(rec["blocks.0.attn.k"].spikes.double().mean()))
        assert costs["blocks.0.attn.Q(K^TV)"].rate == pytest.approx(
            float(rec["blocks.0.attn.q"].spikes.double().mean())
        )

    def test_the_other_order_is_counted_by_q_and_v(self, model):
        frames = 4 * torch.randn(3, 2, 1, 8, 8)
        costs = by_name(energy(model, frames))
        with torch.no_grad(), se.record(model) as rec:
            model(frames)
        assert costs["blocks.0.attn.QK^T"].rate == pytest.approx(float(rec["blocks.0.attn.q"].spikes.double().mean()))
        assert costs["blocks.0.attn.(QK^T)V"].rate == pytest.approx(
            float(rec["blocks.0.attn.v"].spikes.double().mean())
        )
        assert costs["sps.1"].steps == 3 and costs["head"].steps == 1

    def test_silent_and_saturated_inputs(self, model):
        assert energy(model, torch.zeros(1, 1, 32, 32)).layers[0].rate == 0
        silent = build()
        with torch.no_grad():
            for name, parameter in silent.named_parameters():
                if ".bn." in name:
                    parameter.fill_(-5.0 if name.endswith("bias") else 0.0)  # no neuron ever fires
        report = energy(silent, torch.ones(1, 1, 32, 32))
        assert [cost.rate for cost in report.layers] == [1.0] + [0.0] * (len(report.layers) - 1)
        assert report.sops == 0 and report.totals["paper"] == 4.6 * 4 * report.layers[0].flops
        full = build()
        with torch.no_grad():
            full.sps[3].bn.weight.zero_()
            full.sps[3].bn.bias.fill_(5.0)  # every neuron fires at every step
        cost = by_name(energy(full, torch.zeros(1, 1, 32, 32)))["sps.rpe"]
        assert cost.rate == 1 and cost.sops == cost.flops * 4


class TestEnergy:
    def test_conventions_written_out(self, model, images):
        report = energy(model, images)
        first, *others = report.layers
        assert first.layer == "sps.0" and first.real and first.sops == 0
        assert report.sops == pytest.approx(sum(c.rate * c.steps * c.flops for c in others))
        expected = 4.6 * 4 * first.flops + 0.9 * report.sops  # eq. 23
        assert report.totals["paper-corrected"] == pytest.approx(expected)
        assert report.totals["paper"] == pytest.approx(expected)  # no image of ImageNet's shape: no slip to repeat
        by_value = 4.6 * 4 * first.flops + sum(0.9 * c.mean * c.steps * c.flops for c in others[:-1])
        assert report.totals["integer"] == pytest.approx(by_value + 4.6 * others[-1].flops)
        assert report.totals["integer"] > report.totals["paper"]
        assert report.totals["ann"] == pytest.approx(4.6 * report.ann_flops)

    def test_only_inputs_with_values_above_one_cost_more_by_value(self, model, images):
        for cost in energy(model, images).layers[1:-1]:
            if cost.mean == pytest.approx(cost.rate, abs=1e-12):
                assert cost.pj["integer"] == pytest.approx(cost.pj["paper"])
            else:
                assert cost.layer.endswith((".qkv", ".hidden")) and cost.pj["integer"] > cost.pj["paper"]

    def test_at_imagenet_shape_the_paper_charges_the_first_conv_of_width_512(self):
        model = se.spikformer("imagenet-8-384", dim=64, depth=1, heads=2).eval()
        cost = energy(model, torch.randn(1, 3, 224, 224)).layers[0]
        assert cost.pj["paper"] / 1e9 == pytest.approx(1.596, abs=0.001)  # mJ, whatever D
        assert cost.pj["paper-corrected"] == pytest.approx(cost.pj["paper"] * 64 / 512)
        assert cost.pj["integer"] == cost.pj["paper-corrected"]

    def test_real_q_and_k_multiply_in_every_convention(self, images):
        costs = by_name(energy(build(attention="softmax"), images))
        product = costs["blocks.0.attn.QK^T"]
        assert product.real and product.sops == 0
        assert set(product.pj.values()) == {MAC * 4 * product.flops}
        weighted = costs["blocks.0.attn.(QK^T)V"]  # V is spikes: additions
        assert not weighted.real and weighted.pj["paper"] == pytest.approx(AC * weighted.sops)
        assert by_name(energy(build(attention="vanilla"), images))["blocks.0.attn.(QK^T)V"].real

    def test_a_batch_gives_the_mean_of_its_images(self, model, images):
        whole = energy(model, images)
        single = [energy(model, images[i : i + 1]) for i in range(3)]
        assert whole.sops == pytest.approx(sum(r.sops for r in single) / 3)
        assert whole.flops == single[0].flops

    def test_every_module_keeps_its_mode(self, images):
        model = build().train()
        model.sps[0].bn.eval()  # frozen
        energy(model, images)
        assert model.training and model.sps[1].bn.training and not model.sps[0].bn.training

    def test_compiled_in_place_is_counted_alike(self, model, images):
        expected, compiled = energy(model, images), build()
        compiled.compile(backend="eager")
        with torch.no_grad():
            compiled(images)
        assert energy(compiled, images) == expected

    def test_rates_and_means_need_no_double_precision_on_the_device(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise TypeError("no float64 here")

        x = torch.randint(0, 3, (5, 7, 1001)).float()
        expected = float((x != 0).double().mean()), float(x.double().mean())
        monkeypatch.setattr(torch.Tensor, "mean", refuse)
        assert rate_and_mean(x) == expected
        assert rate_and_mean(x.bfloat16()) == expected  # sums far above what bfloat16 can hold

    def test_leaves_the_model_as_it_was(self, images):
        model = build()
        before = model(images)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        model.train()
        with se.record(model, layers=["blocks.0.attn.scores"]) as rec:
            energy(model, images)
        assert model.training and len(rec) == 1
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks for m in model.modules())
        assert torch.equal(model.eval()(images), before)
        with pytest.raises(se.SpikformerError, match="channels"):
            energy(model, torch.zeros(1, 3, 32, 32))
        assert not any(m._forward_hooks or getattr(m, "on_mix", None) for m in model.modules())


class Agreement(se.ATTENTION["ssa"]):
    def phi(self, x):
        return torch.cat([x, 1 - x], -1)


class Binary(se.ATTENTION["identity"]):
    def phi(self, x):
        return (x > 0).to(x.dtype)


class Above(se.ATTENTION["vanilla"]):
    def scores(self, q, k):
        return (super().scores(q, k) > 1 / q.shape[-2]).to(q.dtype)


class ScoresFirst(se.ATTENTION["ssa"]):
    def mix(self, q, k, v):
        return self.scores(q, k) @ v


class Einsum(se.ATTENTION["ssa"]):
    def mix(self, q, k, v):
        scores = torch.einsum("tbhid,tbhjd->tbhij", self.phi(q), self.phi(k)) * self.scale
        return torch.einsum("tbhij,tbhjd->tbhid", scores, v)


class ThirdProduct(se.ATTENTION["ssa"]):
    def scores(self, q, k):
        return super().scores(q @ torch.eye(q.shape[-1]), k)


class NoMatrix(se.ATTENTION["ssa"]):
    def scores(self, q, k):
        return (q.unsqueeze(-2) == k.unsqueeze(-3)).sum(-1).to(q.dtype)


class Fused(se.ATTENTION["vanilla"]):
    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(*(x.flatten(0, 1) for x in (q, k, v))).unflatten(0, q.shape[:2])


class OwnForward(se.ATTENTION["ssa"]):
    def forward(self, x):
        return torch.zeros_like(x)


class OtherOrder(se.ATTENTION["ssa"]):
    def mix(self, q, k, v):
        return (v.transpose(-2, -1) @ k @ q.transpose(-2, -1)).transpose(-2, -1) * self.scale


class TestVariants:
    def build(self, monkeypatch, kind: type) -> se.Spikformer:
        monkeypatch.setitem(se.ATTENTION, "variant", kind)
        return build(attention="variant")

    @pytest.mark.parametrize("inference", [False, True])
    @pytest.mark.parametrize("kind", [Agreement, Binary, Above, ScoresFirst, Einsum])
    @pytest.mark.parametrize("size", [32, 8])
    def test_are_counted_as_they_run(self, monkeypatch, kind, size, inference):
        model, x = self.build(monkeypatch, kind), torch.randn(4, 3, 1, size, size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        with torch.inference_mode(inference):
            report = energy(model, x)
        assert counter.get_total_flops() == 2 * 3 * sum(cost.flops * cost.steps for cost in report.layers)

    def products(self, model, images):
        """Rate of each product's input in block 0, or "real"; the q, k, v and scores that were recorded."""
        with torch.no_grad(), se.record(model) as rec:
            report = energy(model, images)
        costs = {n.removeprefix("blocks.0.attn."): c for n, c in by_name(report).items() if n.startswith("blocks.0.")}
        return {n: "real" if c.real else c.rate for n, c in costs.items() if "^T" in n}, rec

    def test_ones_are_those_that_phi_made(self, monkeypatch, images):
        found, rec = self.products(self.build(monkeypatch, Agreement), images)
        assert found == {"K^TV": 0.5, "Q(K^TV)": 0.5}  # of x and 1 - x one is 1
        assert rec["blocks.0.attn.k"].spikes.mean() < 0.3
        found, _ = self.products(self.build(monkeypatch, Binary), images)
        assert all(0.2 < rate < 0.8 for rate in found.values())  # of real numbers phi made spikes

    def test_scores_of_ones_and_zeros_only_add(self, monkeypatch, images):
        found, rec = self.products(self.build(monkeypatch, Above), images)
        rate = float(rec["blocks.0.attn.scores"].values.mean())
        assert found == {"QK^T": "real", "(QK^T)V": pytest.approx(rate)} and 0 < rate < 1

    def test_the_order_is_the_one_that_ran(self, monkeypatch, images):
        for kind in (ScoresFirst, Einsum):
            found, rec = self.products(self.build(monkeypatch, kind), images)
            rates = {name: float(rec[f"blocks.0.attn.{name}"].spikes.mean()) for name in "qv"}
            assert found == {"QK^T": pytest.approx(rates["q"]), "(QK^T)V": pytest.approx(rates["v"])}

    def test_relu_is_counted_behind_the_relu(self):
        cost = by_name(energy(build(attention="relu"), 4 * torch.randn(2, 3, 1, 8, 8)))["blocks.0.attn.QK^T"]
        assert cost.real and 0.2 < cost.rate < 0.8 and cost.mean > 0

    def test_real_inputs_of_a_layer_multiply(self, images):
        model = build()
        model.sps[2].neuron.register_forward_hook(lambda module, args, spikes: spikes / 2)
        costs = by_name(energy(model, images))
        assert costs["sps.3"].real and not costs["sps.2"].real and not costs["head"].real

    @pytest.mark.parametrize("kind", [ThirdProduct, NoMatrix, Fused, OwnForward, OtherOrder])
    def test_are_refused_when_they_make_other_products(self, monkeypatch, kind, images, one_line):
        model = self.build(monkeypatch, kind)
        for size in (32, 8):
            with pytest.raises(se.SpikformerError) as error:
                energy(model, images[..., :size, :size])
            one_line(error, f"blocks.0.attn ({kind.__name__})", "by hand")

    def test_an_attention_of_another_kind_is_refused(self, images, one_line):
        model = build()
        model.blocks[1].attn = torch.nn.Identity()
        with pytest.raises(se.SpikformerError) as error:
            energy(model, images)
        one_line(error, "blocks.1.attn (Identity)", "by hand")

    def test_autocast_counts_alike(self, model, images):
        for attention in ("ssa", "softmax", "vanilla"):
            model = build(attention=attention)
            with torch.autocast("cpu"):
                assert energy(model, images).flops == energy(model, images).flops


class TestReport:
    def test_prints_every_layer_the_total_and_the_disclaimer(self, model, images):
        report = energy(model, images)
        text = str(report)
        assert all(cost.layer in text for cost in report.layers)
        assert "not the energy of a GPU" in text and "Horowitz 2014" in text and "T = 4" in text
        assert all(f"{name}: " in text for name in CONVENTIONS)
        assert repr(report) == text

    def test_to_dict_goes_through_json(self, model, images):
        report = energy(model, images)
        found = json.loads(json.dumps(report.to_dict()))
        assert found["totals_pj"] == pytest.approx(report.totals)
        assert found["layers"][1]["layer"] == "sps.1" and found["layers"][1]["sops"] == pytest.approx(
            report.layers[1].sops
        )
        assert found["flops"] == report.flops and "not the energy of a GPU" in found["disclaimer"]


class TestAuditOfThePaper:
    def test_every_row_leaves_the_first_convolution_of_width_512(self):
        rows = audit_paper()
        assert [row["model"] for row in rows] == list(PUBLISHED)
        for row in rows:
            rounding = 0.9 * 0.005 + 0.0005  # of the published SOPs and energy
            assert row["rest"] == pytest.approx(1.596, abs=1e-9)
            assert abs(row["rest"] - row["D = 512"]) < rounding
            right_width = "-512" in row["model"]
            assert (abs(row["rest"] - row["own width"]) < rounding) == right_width
            assert (abs(row["corrected"] - row["energy"]) < rounding) == right_width
        assert "imagenet-8-768" in str(rows)

    def test_the_constant_comes_out_of_the_architecture(self):
        config = se.preset("imagenet-8-512").config
        assert first_conv_mj(config) == pytest.approx(4.6e-12 * 4 * 224 * 224 * 64 * 27 * 1e3)
        assert first_conv_mj(config) == pytest.approx(1.596, abs=0.001)

    def test_the_network_without_spikes(self):
        """Which counting is nearest is computed here again, with numbers typed by hand."""
        rows = audit_ann()
        conv = 9 * (112**2 * 64 * 128 + 56**2 * 128 * 256 + 28**2 * 256 * 512 + 14**2 * 512 * 512)
        linear = 8 * 196 * 12 * 512**2
        one = 8 * 196**2 * 512
        first = 224**2 * 64 * 27
        target = PUBLISHED_ANN[2] / 4.6
        assert round(target, 2) == PUBLISHED_ANN[1]
        nearest = (conv + linear + one + 512_000) / 1e9
        assert rows[0]["FLOPs (G)"] == pytest.approx(nearest)
        assert (rows[0]["attention"], rows[0]["first conv"], rows[0]["head"]) == ("one, N^2 D", "out", "in")
        assert rows[0]["off by (G)"] == pytest.approx(nearest - target) == pytest.approx(-0.0075, abs=5e-5)
        assert abs(rows[0]["off by (G)"]) * MAC > 0.0005  # more than the rounding of the published energy: no match
        distances = [abs(row["off by (G)"]) for row in rows]
        assert distances == sorted(distances) and len(rows) == 20
        everything = next(
            r for r in rows if (r["attention"], r["first conv"], r["head"]) == ("both, N^2 D", "in", "in")
        )
        assert everything["FLOPs (G)"] == pytest.approx((conv + linear + 2 * one + first + 512_000) / 1e9)
        rest = (target * 1e9 - conv - linear - first) / one
        assert audit_ann_rest() == pytest.approx(rest) == pytest.approx(0.5, abs=0.001)
