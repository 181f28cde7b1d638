"""``se.check``: every planted fault is found, and a right network, whoever wrote it, gives no finding."""

import json
import re
import sys

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import spikformer_edu as se
from spikformer_edu.check import check

T, B = 4, 5


@pytest.fixture(scope="module")
def digits():
    return se.data.load("digits").test.fetch(torch.arange(B), None)[0]


def frames() -> Tensor:
    return torch.rand(T, B, 2, 16, 16, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------- right networks


def test_packaged_network(digits):
    model = se.load_pretrained("digits-2-64")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = check(model, digits)
    assert report and not report.findings and "no fault found" in str(report)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", [line.name for line in se.list_models()])
def test_no_false_alarm_on_a_preset(name):
    config = se.preset(name).config
    size = 2 * config.patch_size
    shape = (3, config.in_channels, size, size)
    torch.manual_seed(0)
    inputs = torch.rand((2, *shape) if config.in_channels == 2 else shape)
    report = check(se.spikformer(name, depth=1, time_steps=2), inputs)
    assert not report.findings, report


@pytest.mark.parametrize("attention", sorted(se.ATTENTION))
def test_no_false_alarm_on_a_variant_of_attention(attention, digits):
    torch.manual_seed(0)
    report = check(se.spikformer("digits-2-64", attention=attention, depth=1), digits)
    assert not report.findings, report


def test_no_false_alarm_on_spikingjelly():
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based.functional import reset_net
    from spikingjelly.activation_based.model.spikformer import Spikformer as Peer

    torch.manual_seed(0)
    model = Peer(T=T, img_size_h=32, img_size_w=32, patch_size=4, num_classes=10, embed_dims=64, num_heads=2, depths=1)
    images = torch.rand(B, 3, 32, 32)
    assert not check(model, images, reset=reset_net).findings
    (found,) = (f for f in check(model, images).findings if "two calls" in f.what)  # whoever forgets to reset
    assert "reset" in found.remedy


class Net(nn.Module):
    """A right network on snnTorch neurons: frames ``[T, B, 2, 16, 16]`` -> logits ``[B, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 8, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(8)
        self.first, self.second = (snn.Leaky(beta=0.5) for _ in range(2))
        self.hidden, self.head = nn.Linear(128, 32), nn.Linear(32, 10)

    def norm(self, x: Tensor) -> Tensor:
        return self.bn(x)

    def fire(self, neuron: nn.Module, current: Tensor) -> Tensor:
        membrane, spikes = neuron.init_leaky(), []
        for x in current:
            spike, membrane = neuron(x, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    def mix(self, spikes: Tensor) -> Tensor:
        return spikes

    def forward(self, x: Tensor) -> Tensor:
        current = self.norm(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        spikes = self.mix(self.fire(self.first, 3 * current))
        return self.head(self.fire(self.second, 4 * self.hidden(spikes.flatten(2)))).mean(0)


def test_no_false_alarm_on_a_network_of_ones_own():
    torch.manual_seed(0)
    assert not (report := check(Net(), frames())).findings, report


# -------------------------------------------------------------------------------------------------------- faults


class Remembers(Net):
    def fire(self, neuron, current):
        membrane = getattr(self, f"kept{id(neuron)}", neuron.init_leaky())
        spikes = []
        for x in current:
            spike, membrane = neuron(x, membrane)
            spikes.append(spike)
        setattr(self, f"kept{id(neuron)}", membrane.detach())
        return torch.stack(spikes)


class NormOfTheBatch(Net):
    def norm(self, x):
        return nn.functional.batch_norm(x, None, None, self.bn.weight, self.bn.bias, training=True)


class Swapped(Net):
    def fire(self, neuron, current):
        return super().fire(neuron, current.transpose(0, 1)).transpose(0, 1)


class SizeOfTheBatch(Net):
    def mix(self, spikes):
        return spikes * 5 / spikes.shape[1]


class NumbersItsSamples(Net):
    def mix(self, spikes):
        return spikes * (torch.arange(spikes.shape[1]) % 2).view(1, -1, 1, 1, 1)


class LooksAhead(Net):
    def fire(self, neuron, current):
        return super().fire(neuron, current.flip(0)).flip(0)


class MeanOverTime(Net):
    def mix(self, spikes):
        return (spikes > spikes.mean(0)).to(spikes.dtype) + 0 * spikes


class NoSurrogate(Net):
    def mix(self, spikes):
        return (spikes >= 1).to(spikes.dtype)


class BuiltForNothing(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(128, 32)


class NeuronForgotten(Net):
    def fire(self, neuron, current):
        return current if neuron is self.first else super().fire(neuron, current)


class Silent(Net):
    def __init__(self):
        super().__init__()
        self.bn.num_batches_tracked += 1000  # a trained network
        self.second = snn.Leaky(beta=0.5, threshold=1e6)


class Saturated(Net):
    def __init__(self):
        super().__init__()
        self.second = snn.Leaky(beta=0.5, threshold=-1e6, reset_mechanism="none")


class Dropout(Net):
    def mix(self, spikes):
        return nn.functional.dropout(spikes, 0.5, training=True)


FAULTS = {
    Remembers: ("", "two calls on the same input differ"),
    Dropout: ("", "two calls on the same input differ"),
    NormOfTheBatch: ("", "a sample changes the logits of others in the batch"),
    Swapped: ("", "a sample changes the logits of those behind it"),
    SizeOfTheBatch: ("", "a sample alone gets other logits"),
    NumbersItsSamples: ("", "samples in another order get other logits"),
    LooksAhead: ("", None),  # the neurons are called step by step: see below
    MeanOverTime: ("", None),
    NoSurrogate: ("conv.weight", "gets no gradient"),
    BuiltForNothing: ("spare", "is built and never called"),
    NeuronForgotten: ("hidden", "multiplies real numbers"),
    Silent: ("second", "never fires"),
    Saturated: ("second", "always fires"),
}


@pytest.mark.parametrize("net", [net for net, (_, what) in FAULTS.items() if what], ids=lambda net: net.__name__)
def test_a_planted_fault_is_found(net):
    layer, what = FAULTS[net]
    torch.manual_seed(0)
    report = check(net(), frames())
    found = [f for f in report.findings if f.what.startswith(what) and f.layer.startswith(layer)]
    assert found and not report, report
    for finding in report.findings:
        assert "\n" not in str(finding) and finding.evidence and finding.cause and finding.remedy


class OverTime(nn.Module):
    """A layer on ``[T, B, ...]``, as this package has them, with an operation over time or without."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x):
        return self.operation(x)


@pytest.mark.parametrize(
    ("operation", "wrong"),
    [
        (lambda x: x, False),
        (lambda x: x - x.mean(0), True),
        (lambda x: x.flip(0).cumsum(0).flip(0), True),
        (lambda x: x.cumsum(0), False),
        (lambda x: x.softmax(0), True),
    ],
)
def test_an_operation_that_looks_ahead_in_time_is_found(operation, wrong):
    torch.manual_seed(0)
    model = se.spikformer("cifar10dvs-2-256", depth=1, dim=32, heads=2)
    model.blocks[0] = nn.Sequential(model.blocks[0], OverTime(operation))
    report = check(model, frames())
    found = [f.layer for f in report.findings if "a later input" in f.what]
    assert found == (["blocks.0.1"] if wrong else []), report


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("x >= 0", "x > 100", "never fires"),
        ("grad * ctx.slope", "0 * grad * ctx.slope", "gets a gradient of zeros"),
    ],
)
def test_faults_planted_into_this_package_are_found(digits, monkeypatch, old, new, what):
    """In the neuron's code, as a copy of the module with that line changed."""
    import inspect
    import types

    from spikformer_edu import neurons

    source = inspect.getsource(neurons)
    assert old in source
    changed = types.ModuleType("spikformer_edu.changed_neurons")
    changed.__package__ = "spikformer_edu"
    monkeypatch.setitem(sys.modules, changed.__name__, changed)
    exec(compile(source.replace(old, new), "changed", "exec"), vars(changed))
    model = se.load_pretrained("digits-2-64")
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, se.LIF):
                options = {"tau": child.tau, "v_threshold": child.v_threshold, "backend": "snntorch"}
                setattr(module, name, changed.LIF(**options))
    report = check(model, digits)
    assert any(what in finding.what for finding in report.findings), report


# ------------------------------------------------------------------------------------------------ input and output


def test_the_report_as_table_and_dict():
    torch.manual_seed(0)
    report = check(BuiltForNothing(), frames())
    assert "spare" in report.table().markdown()
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["layer"] == "spare"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (torch.rand(2, 1, 32, 32), "three samples"),
        (torch.rand(1, 1, 32, 32).expand(4, -1, -1, -1), "all different"),
    ],
)
def test_bad_inputs(inputs, said):
    with pytest.raises(se.SpikformerError, match=said):
        check(se.load_pretrained("digits-2-64"), inputs)


def test_a_network_without_logits():
    with pytest.raises(se.SpikformerError, match=r"check needs logits \[B, K\]"):
        check(nn.Conv2d(1, 2, 3), torch.rand(4, 1, 8, 8))


@pytest.mark.slow
def test_the_command(tmp_path, one_line):
    import os
    import subprocess

    (tmp_path / "mynet.py").write_text(
        "import torch, spikformer_edu as se\n"
        "def right():\n"
        "    return se.load_pretrained('digits-2-64'), se.data.load('digits').test.fetch(torch.arange(4), None)[0]\n"
        "def wrong():\n"
        "    model, x = right()\n"
        "    model.spare = torch.nn.Linear(2, 2)\n"
        "    return model, x, {'time_first': False}\n"
    )

    def run(factory):
        command = [sys.executable, "-m", "spikformer_edu.check", factory]
        return subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)

    right, wrong = run("mynet:right"), run("mynet:wrong")
    assert right.returncode == 0 and right.stdout.startswith("no fault found"), right
    assert wrong.returncode == 1 and re.search(r"^spare: is built and never called", wrong.stdout, re.M), wrong
    for factory in ("mynet", "nothere:make", "mynet:nothing"):
        refused = run(factory)
        assert refused.returncode == 2 and refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
