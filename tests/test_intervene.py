"""``se.intervene``: the same as a network edited by hand, and nothing is left behind."""

import threading

import pytest
import torch

import spikformer_edu as se


@pytest.fixture
def model():
    return se.load_pretrained("digits-2-64").double().eval()


@pytest.fixture(scope="module")
def images():
    return se.data.load("digits").test.fetch(torch.arange(6), None)[0].double()


def without_head(number):
    def change(spikes):
        spikes = spikes.clone()
        spikes[:, :, number] = 0
        return spikes

    return change


def test_a_silenced_head_is_the_network_without_its_columns(model, images):
    """Edited by hand: the columns of proj that read head 2 are zero."""
    with torch.no_grad(), se.intervene(model, {"blocks.0.attn.attn": without_head(2)}):
        logits = model(images)
    edited = se.load_pretrained("digits-2-64").double().eval()
    with torch.no_grad():
        edited.blocks[0].attn.proj.linear.weight[:, 2 * 16 : 3 * 16] = 0
        expected = edited(images)
        assert torch.equal(logits, expected) and not torch.equal(logits, model(images))


@pytest.mark.parametrize("name", se.layer_names(se.spikformer("digits-2-64")))
def test_every_layer_can_be_silenced_and_left_alone(model, images, name):
    with torch.no_grad():
        before = model(images)
        with se.intervene(model, {name: lambda x: x}):
            torch.testing.assert_close(model(images), before, rtol=1e-12, atol=1e-12)
        with se.intervene(model, {name: torch.zeros_like}), se.record(model) as rec:
            changed = model(images)
        assert not rec[name].values.any() if not name.endswith("scores") else True
        if se.layer_names(model).index(name) < len(se.layer_names(model)) - 1:
            assert not torch.equal(changed, before) or name.startswith("blocks.1"), name
        assert torch.equal(model(images), before)
    assert not any(m._forward_hooks or "mix" in vars(m) for m in model.modules())


def test_changed_scores_reach_the_currents(model, images):
    """Scores of an identity matrix: each token takes its own value alone."""
    name = "blocks.0.attn.scores"
    with torch.no_grad(), se.intervene(model, {name: lambda s: torch.eye(64, dtype=s.dtype).expand_as(s)}):
        found = []
        handle = model.blocks[0].attn.attn.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
        with se.record(model, layers=["blocks.0.attn.v"]) as rec:
            model(images)
        handle.remove()
    assert torch.equal(found[0], rec["blocks.0.attn.v"].spikes)


def test_spikes_shifted_in_time_and_a_token_replaced(model, images):
    def later(spikes):
        return torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])

    def token_from_sample_0(spikes):  # [T, B, N, D]
        spikes = spikes.clone()
        spikes[:, 1:, 5] = spikes[:, :1, 5]
        return spikes

    with torch.no_grad():
        with se.record(model, layers=["blocks.0.attn.q"]) as rec:
            model(images)
        with (
            se.intervene(model, {"blocks.0.attn.q": later, "blocks.0.mlp.hidden": token_from_sample_0}),
            se.record(model, layers=["blocks.0.attn.q", "blocks.0.mlp.hidden"]) as changed,
        ):
            model(images)
    assert torch.equal(changed["blocks.0.attn.q"].spikes[1:], rec["blocks.0.attn.q"].spikes[:-1])
    hidden = changed["blocks.0.mlp.hidden"].spikes
    assert torch.equal(hidden[:, 3, 5], hidden[:, 0, 5])


def test_gradients_flow_through_the_change(model, images):
    gain = torch.ones((), dtype=torch.double, requires_grad=True)
    with se.intervene(model, {"blocks.1.residual": lambda x: gain * x}):
        model(images)[:, 0].sum().backward()
    with torch.no_grad():
        expected = (model(images) - model.head.bias)[:, 0].sum()  # the head is linear in it
    torch.testing.assert_close(gain.grad, expected)


def test_other_threads_see_the_network_as_it_is(model, images):
    with torch.no_grad():
        before = model(images)
        found = []
        with se.intervene(model, {"blocks.0.attn.scores": torch.zeros_like, "sps.0": torch.zeros_like}):
            with torch.no_grad():
                thread = threading.Thread(target=lambda: found.append(torch.no_grad()(model)(images)))
                thread.start()
                thread.join()
    assert torch.equal(found[0], before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks.0.atn.q": torch.zeros_like}, "unknown layer 'blocks.0.atn.q'"),
        ({"blocks.0.attn.q": 0.0}, "give a function"),
        ({"blocks.0.attn.q": lambda s: s[0]}, r"blocks.0.attn.q: the function returned \[6, 4, 64, 16\]"),
        ({"blocks.0.attn.q": lambda s: s.bool()}, "returned torch.bool"),
        ({"blocks.0.attn.q": lambda s: None}, "returned NoneType"),
    ],
)
def test_bad_changes(model, images, changes, said):
    with pytest.raises(se.SpikformerError, match=said), se.intervene(model, changes):
        model(images)
    assert not any(m._forward_hooks for m in model.modules())
