"""Recording beyond spikes: logits per step, gradients, few samples, the summary."""

import gc
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import spikformer_edu as se
from spikformer_edu.eval_mode import evaluating
from spikformer_edu.layer_record import feature_rates, value_set


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = se.spikformer("digits-2-64", dim=16, heads=2, depth=2)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # one batch in training mode sets the statistics, so that every layer fires
    model(4 * torch.randn(8, 1, 32, 32))
    return model.eval()


@pytest.fixture
def images():
    return 4 * torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


class TestLogits:
    def test_one_for_each_step_and_their_mean_is_the_output(self, model, images):
        torch.nn.init.normal_(model.head.bias)
        with torch.no_grad(), se.record(model) as rec:
            out = model(images)
        assert rec.logits.shape == (4, 3, 10)
        torch.testing.assert_close(rec.logits.mean(0), out)
        assert not torch.equal(rec.logits[0], rec.logits[3])

    def test_a_step_is_what_a_model_with_so_many_steps_would_add(self, model, images):
        """The network is causal: logits of step t do not depend on later steps."""
        frames = images.expand(4, *images.shape)
        with torch.no_grad(), se.record(model) as rec:
            model(frames)
            whole = rec.logits
            model(frames[:2])
        torch.testing.assert_close(rec.logits, whole[:2])

    def test_they_come_whatever_layers_are_recorded(self, model, images):
        with torch.no_grad(), se.record(model, layers=["sps.0"]) as rec:
            model(images)
        assert rec.logits.shape == (4, 3, 10) and list(rec) == ["sps.0"]

    def test_nothing_recorded_is_one_line(self, model):
        with se.record(model) as rec:
            pass
        with pytest.raises(se.SpikformerError, match="call the model inside"):
            rec.logits  # noqa: B018


class TestGradients:
    def test_equal_the_neuron_s_backward_pass_written_out(self):
        torch.manual_seed(0)
        model = se.spikformer("digits-2-64", dim=16, heads=2, depth=1).double()
        x = 4 * torch.randn(2, 1, 32, 32, dtype=torch.float64)
        weight = torch.randn(4, 2, 64, 16, dtype=torch.float64)
        current = []
        hook = model.blocks[0].mlp.out.neuron.register_forward_pre_hook(
            lambda _, args: current.append(args[0].detach())
        )
        seen = []
        after = model.blocks[0].mlp.out.neuron.register_forward_hook(lambda _, args, out: seen.append(out))
        with se.record(model, gradients=True) as rec:
            model(x)
            (seen[0] * weight).sum().backward()
        hook.remove()
        after.remove()

        spikes, h, expected = [], [], []
        for t in range(4):
            v = h[-1] * (1 - spikes[-1]) if h else torch.zeros_like(current[0][0])
            h.append(v + (current[0][t] - v) / 2)
            spikes.append((h[-1] >= 1).double())
        for t in reversed(range(4)):
            sigma = torch.sigmoid(4 * (h[t] - 1))
            gradient = weight[t] * 4 * sigma * (1 - sigma)
            if t < 3:  # the reset is detached: V[t] = H[t] (1 - S[t]), H[t+1] = V[t] / 2 + X / 2
                gradient = gradient + expected[0] * 0.5 * (1 - spikes[t])
            expected.insert(0, gradient)
        torch.testing.assert_close(rec["blocks.0.mlp.out"].gradient, torch.stack(expected))

    def test_after_the_block_too_and_for_every_layer(self, model, images):
        with se.record(model, membranes=True, gradients=True) as rec:
            loss = model(images).logsumexp(1).sum()
        loss.backward()
        for layer in rec.layers("spikes"):
            assert layer.gradient.shape == layer.membrane.shape == layer.spikes.shape
            assert torch.isfinite(layer.gradient).all() and layer.gradient.abs().sum() > 0

    def test_recording_changes_no_gradient_of_a_weight(self, model, images):
        def gradients(recorded):
            model.zero_grad()
            with se.record(model, gradients=recorded):
                model(images).square().sum().backward()
            return [p.grad.clone() for p in model.parameters()]

        for plain, watched in zip(gradients(False), gradients(True), strict=True):
            assert torch.equal(watched, plain)

    def test_a_loss_on_the_first_step_leaves_the_later_ones_zero(self, model, images):
        seen = []
        hook = model.blocks[-1].register_forward_hook(lambda _, args, out: seen.append(out))
        with se.record(model, gradients=True) as rec:
            model(images)
        hook.remove()
        seen[0][0].sum().backward()
        gradient = rec["sps.0"].gradient
        assert gradient[0].abs().sum() > 0 and gradient[1:].abs().sum() == 0

    @pytest.mark.parametrize("backward", [False, True])
    def test_errors_are_one_line(self, model, images, backward):
        with se.record(model) as rec:
            model(images)
        with pytest.raises(se.SpikformerError, match="gradients=True"):
            rec["sps.0"].gradient  # noqa: B018
        with pytest.raises(se.SpikformerError, match="not neurons"):
            rec["blocks.0.residual"].gradient  # noqa: B018
        with se.record(model, gradients=True) as rec, torch.set_grad_enabled(not backward):
            model(images)
        with pytest.raises(se.SpikformerError, match="loss.backward"):
            rec["sps.0"].gradient  # noqa: B018
        with pytest.raises(se.SpikformerError, match="membranes=True"):
            rec["sps.0"].membrane  # noqa: B018

    def test_the_graph_is_not_kept_alive(self, model, images):
        with se.record(model, membranes=True, gradients=True) as rec:
            loss = model(images).sum()
            loss.backward()
        assert all(not layer.membrane.requires_grad for layer in rec.layers("spikes"))
        import weakref

        node = weakref.ref(loss)
        del loss
        gc.collect()
        assert node() is None
        assert rec["sps.0"].gradient is not None


class TestLittleMemory:
    def test_samples_keeps_those_in_that_order(self, model, images):
        with se.record(model, membranes=True, gradients=True) as whole:
            model(images).square().sum().backward()
        with se.record(model, membranes=True, gradients=True, samples=[2, 0]) as rec:
            model(images).square().sum().backward()
        for layer in rec.layers():
            full = whole[layer.name]
            torch.testing.assert_close(layer.values, full.values[:, [2, 0]])
            if layer.kind == "spikes":
                torch.testing.assert_close(layer.membrane, full.membrane[:, [2, 0]])
                torch.testing.assert_close(layer.gradient, full.gradient[:, [2, 0]])
        torch.testing.assert_close(rec.logits, whole.logits[:, [2, 0]])

    @pytest.mark.parametrize("samples", [[3], [-1], [0, 7]])
    def test_a_sample_that_is_not_there(self, model, images, samples):
        with pytest.raises(se.SpikformerError, match="the batch holds 3"), se.record(model, samples=samples):
            model(images)
        assert model(images).shape == (3, 10)  # nothing was left behind

    @pytest.mark.parametrize("samples", [0, [], [0.5], "01"])
    def test_samples_are_a_list_of_numbers(self, model, samples, one_line):
        with pytest.raises(se.SpikformerError) as error:
            se.record(model, samples=samples)
        one_line(error, f"samples={samples!r}", "such as [0]")

    def test_numbers_may_come_as_an_array_or_a_tensor(self, model, images):
        for samples in (np.array([2, 0]), torch.tensor([2, 0]), range(2, -1, -2)):
            with torch.no_grad(), se.record(model, samples=samples, layers=["sps.0"]) as rec:
                model(images)
            assert rec.logits.shape == (4, 2, 10)

    def test_compact_keeps_bools_and_gives_spikes_back(self, model, images):
        with torch.no_grad(), se.record(model) as plain:
            model(images)
        with torch.no_grad(), se.record(model, compact=True) as rec:
            model(images)
        for layer in rec.layers("spikes"):
            assert layer.values.dtype == torch.bool and layer.spikes.dtype == torch.float32
            assert torch.equal(layer.spikes, plain[layer.name].spikes)
        assert str(rec.summary()) == str(plain.summary())

    def test_a_single_layer_may_be_a_string(self, model, images):
        with torch.no_grad(), se.record(model, layers="sps.1") as rec:
            model(images)
        assert list(rec) == ["sps.1"]
        with pytest.raises(se.SpikformerError, match="did you mean 'sps.1'"):
            se.record(model, layers="sps.11")


class TestEverywhere:
    def test_under_autocast(self, model, images):
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(images)
            with se.record(model, membranes=True, gradients=True, compact=True) as rec:
                out = model(images)
            out.float().square().sum().backward()
        assert torch.equal(out, expected)
        assert rec["blocks.0.attn.q"].spikes.dtype == torch.bfloat16
        assert torch.isfinite(rec["sps.0"].gradient).all()
        torch.testing.assert_close(rec.logits.float().mean(0), out.float(), atol=0.02, rtol=0.02)

    def test_under_autocast_every_weight_keeps_its_gradient(self, model, images):
        """Autocast keeps a cast weight for the next use; one cast without history would take the head's gradient."""

        class Seen(TorchFunctionMode):
            leaves = 0

            def __torch_function__(self, func, types, args=(), kwargs=None):
                if func is torch.nn.functional.linear and not torch.is_grad_enabled():
                    self.leaves += sum(x.requires_grad for x in args)
                return func(*args, **(kwargs or {}))

        def gradients(recorded: bool) -> list[torch.Tensor]:
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16), se.record(model, layers=[]) if recorded else nullcontext():
                out = model(images)
            out.float().square().sum().backward()
            return [p.grad.clone() for p in model.parameters()]

        plain = gradients(False)
        with Seen() as seen:
            watched = gradients(True)
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
        assert model.head.weight.grad.abs().sum() > 0 and seen.leaves == 0

    def test_inside_training_the_weights_move_as_without(self, images):
        def train(recorded):
            torch.manual_seed(0)
            model = se.spikformer("digits-2-64", dim=16, heads=2)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(2):
                optimizer.zero_grad()
                if recorded:
                    with se.record(model):
                        model(images).square().sum().backward()
                else:
                    model(images).square().sum().backward()
                optimizer.step()
            return model.state_dict()

        plain, watched = train(False), train(True)
        assert all(torch.equal(plain[key], watched[key]) for key in plain)

    def test_frames_of_one_step_and_one_token(self):
        model = se.spikformer("digits-2-64", dim=16, heads=2, depth=1).eval()
        with torch.no_grad(), se.record(model, membranes=True) as rec:
            model(torch.randn(1, 2, 1, 4, 4))
        assert rec["blocks.0.attn.q"].spikes.shape == (1, 2, 2, 1, 8)
        assert rec.logits.shape == (1, 2, 10)
        assert len(rec.summary()) == len(se.layer_names(model))


class TestSummary:
    def test_is_a_list_of_dicts_that_agrees_with_the_records(self, model, images):
        with torch.no_grad(), se.record(model) as rec:
            model(images)
        lines = {line["layer"]: line for line in rec.summary()}
        assert list(lines) == list(rec)
        q = rec["blocks.0.attn.q"].spikes
        fired = q.sum((0, 1, 3)).flatten()  # a feature for each head and width
        line = lines["blocks.0.attn.q"]
        assert line["shape"] == tuple(q.shape) and line["values"] == "{0, 1}"
        assert line["rate"] == pytest.approx(float(q.mean())) and 0 < line["rate"] < 1
        assert line["dead"] == pytest.approx(float((fired == 0).float().mean()))
        assert lines["blocks.0.attn.scores"]["values"].startswith("multiples of 0.125")
        assert lines["blocks.1.residual"]["values"].startswith("integers 0 to")
        assert lines["blocks.1.residual"]["rate"] is None

    def test_dead_and_saturated_are_shares_of_features(self, model, images):
        bn = model.sps[0].bn  # 2 channels
        torch.nn.init.zeros_(bn.weight)
        with torch.no_grad():
            bn.bias.copy_(torch.tensor([-5.0, 5.0]))
        with torch.no_grad(), se.record(model) as rec:
            model(images)
        line = rec.summary()[0]
        assert (line["rate"], line["dead"], line["saturated"]) == (0.5, 0.5, 0.5)

    def test_a_feature_that_always_fires_is_saturated_on_every_device(self, monkeypatch):
        """A GPU takes a mean as the sum times the rounded 1/n, which of 41 ones is not 1."""

        def mean(x, dim=None, dtype=None):
            return x.sum(dim, dtype=dtype) * torch.tensor(1 / 41)

        monkeypatch.setattr(torch.Tensor, "mean", mean)
        spikes = torch.ones(1, 1, 41, 3)  # [T, B, N, D]
        assert not (spikes.mean((0, 1, 2), dtype=torch.float32) == 1).any()
        assert feature_rates("blocks.0.mlp.out", spikes).tolist() == [1, 1, 1]

    def test_prints_as_a_table(self, model, images):
        with torch.no_grad(), se.record(model) as rec:
            model(images)
        lines = str(rec.summary()).splitlines()
        assert len(lines) == len(rec) + 1 and "dead" in lines[0] and lines[1].startswith("sps.0")
        assert repr(rec.summary()) == str(rec.summary())

    def test_an_empty_recording(self, model):
        with se.record(model) as rec:
            pass
        with pytest.raises(se.SpikformerError, match="recording is empty"):
            rec.summary()

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ([0.0, 1.0], "{0, 1}"),
            ([0.0, 0.0], "{0, 1}"),
            ([0.0, 3.0], "integers 0 to 3"),
            ([-1.0, 1.0], "integers -1 to 1"),
            ([0.0, 0.375], "multiples of 0.125, 0 to 0.375"),
            ([0.1, 0.25], "real, 0.1 to 0.25"),
            ([True, False], "{0, 1}"),
        ],
    )
    def test_value_sets(self, values, said):
        assert value_set(torch.tensor(values)) == said

    def test_value_sets_are_found_without_double_precision(self, monkeypatch):
        """Which not every device has."""

        def refuse(self):
            raise TypeError("no float64 here")

        monkeypatch.setattr(torch.Tensor, "double", refuse)
        assert value_set(torch.tensor([0.0, 0.375])) == "multiples of 0.125, 0 to 0.375"
        assert value_set(torch.tensor([0.1, 1000.0], dtype=torch.float16)) == "real, 0.1 to 1e+03"
        assert value_set(torch.tensor([0.1, 0.25], dtype=torch.float64)) == "real, 0.1 to 0.25"


def test_evaluation_mode_is_left_as_it_was(model):
    """A frozen batch norm of a network in training stays frozen, also when what runs inside fails."""
    model.train()
    model.sps[1].bn.eval()
    model.blocks[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert {name: module.training for name, module in model.named_modules()} == before
    assert before[""] and not before["sps.1.bn"]
