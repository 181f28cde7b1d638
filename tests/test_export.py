"""Exported files, each run by the tool that is meant to read it, against the network that they were made from."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spikformer_edu as se
from spikformer_edu.export import Exported
from spikformer_edu.export.__main__ import Options, main
from spikformer_edu.export.check import answers, compare
from spikformer_edu.export.fixed import BITS, Integer
from spikformer_edu.export.fixed_point import FixedPoint, differences
from spikformer_edu.export.folded import Spying, fold, neuron_layers
from spikformer_edu.export.program import READER, graph_of

ROOT = Path(__file__).parents[1]
SIMULATOR = ROOT / "spikformer_edu" / "export" / "fixed_point.py"


def small(frames: bool = False, **options) -> tuple[se.Spikformer, torch.Tensor]:
    """A small network whose neurons fire, and inputs: three images, or frames of two time steps."""
    options = dict(dim=16, depth=1, heads=2, time_steps=2) | options
    model = se.spikformer("digits-2-64", **options)
    inputs = torch.randn(*(2,) * frames, 3, 1, 16, 16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0  # the running statistics become those of this batch
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, 0, 2)
    model.train()(inputs)
    return model.eval(), inputs


def spikes_of(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    return answers(Spying(model), inputs).spikes


@pytest.fixture(scope="module")
def digits():
    images, labels = se.data.load("digits").test.fetch(torch.arange(359), None)
    return images, labels


@pytest.fixture(scope="module")
def onnx():
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install '.[onnx]')")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install '.[onnx]')")
    return pytest.importorskip("onnx", reason="onnx is not installed (pip install '.[onnx]')")


@pytest.mark.parametrize(
    "options",
    [{"attention": name} for name in se.ATTENTION]
    + [{"qk_pool": True, "learn_scale": True}, {"neuron": "plif", "tau": 1.5}, {"neuron": "if"}, {}]
    + [{"residual": "membrane"}, {"residual": "membrane", "attention": "sdsa"}],
    ids=str,
)
@pytest.mark.parametrize("frames", [False, True], ids=["images", "frames"])
def test_the_folded_network_fires_as_the_network_does(options, frames):
    model, inputs = small(frames, **options)
    check = compare("", answers(Spying(model.double()), inputs.double()), answers(Spying(fold(model)), inputs.double()))
    assert check.differing == 0 and check.same == check.inputs == 3
    assert [*neuron_layers(fold(model))] == [name for name in se.layer_names(model) if name in neuron_layers(model)]
    assert all(layer.any() for layer in spikes_of(model, inputs.double()))  # there were spikes to differ


def test_the_network_itself_stays_as_it_is():
    model, inputs = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model.sps[0].bn, nn.BatchNorm2d) and not model.sps[0].neuron._forward_hooks


def test_a_difference_is_counted():
    model, inputs = small()
    ours = answers(Spying(model), inputs)
    spikes = [layer.clone() for layer in ours.spikes]
    spikes[3][0, 0, 0, 0, 0] ^= True
    assert compare("a tool", ours, replace(ours, spikes=spikes, logits=-ours.logits)).differing == 1
    assert "0 of 3 inputs, 1 of " in str(compare("a tool", ours, replace(ours, spikes=spikes, logits=-ours.logits)))


# ONNX


@pytest.fixture(scope="module")
def onnx_file(onnx, digits, tmp_path_factory) -> Exported:
    return se.export("digits-2-64", tmp_path_factory.mktemp("onnx"), "onnx", digits[0][:100])


@pytest.mark.slow
def test_onnxruntime_answers_as_the_network_does(onnx, onnx_file, digits):
    check = onnx_file.check
    assert check.same == check.inputs == 100 and check.spikes > 40e6
    assert check.differing <= 20  # sums in another order: 0 were seen
    assert "onnxruntime" in str(onnx_file) and "opset 18" in str(onnx_file)
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file.paths[0])
    model = se.load_pretrained("digits-2-64")
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 10])]
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("input", ["batch", 1, 32, 32])]
    for count in (1, 2, 7):
        (logits,) = session.run(None, {"input": digits[0][:count].numpy()})
        torch.testing.assert_close(torch.tensor(logits), model(digits[0][:count]).detach(), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_onnx_file_is_unrolled_and_folded(onnx, onnx_file):
    proto = onnx.load(onnx_file.paths[0])
    kinds = {node.op_type for node in proto.graph.node}
    assert not kinds & {"Loop", "Scan", "If", "BatchNormalization"} and {"Conv", "GreaterOrEqual"} <= kinds
    assert {node.domain for node in proto.graph.node} == {""} and not proto.functions
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    made = {name for node in proto.graph.node for name in node.output}
    assert set(neuron_layers(se.load_pretrained("digits-2-64"))) <= made  # spikes by the names of se.record


@pytest.mark.slow
def test_onnx_s_reference_evaluator_fires_as_the_network_in_float64(onnx, digits):
    from onnx.reference import ReferenceEvaluator

    from spikformer_edu.export.onnx_file import onnx_model, runs, with_spikes

    model = se.load_pretrained("digits-2-64").double()
    network, image = fold(model), digits[0][3:4].double()
    session = ReferenceEvaluator(with_spikes(onnx_model(network, image), [*neuron_layers(network)]))
    check = compare("", answers(Spying(model), image), answers(runs(session), image))
    assert check.differing == 0 and check.same == 1 and check.spikes > 400_000


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"qk_pool": True, "learn_scale": True}, {"attention": "softmax"}], ids=str)
def test_event_frames_and_other_attention_as_onnx(onnx, tmp_path, options):
    model, inputs = small(frames=True, **options)
    made = se.export(model, tmp_path, "onnx", inputs)
    assert made.check.same == 3 and made.check.differing <= 5


# torch.export


@pytest.mark.slow
def test_a_program_runs_in_a_process_that_has_no_package(tmp_path, digits):
    made = se.export("digits-2-64", tmp_path, "torch", digits[0][:20])
    assert made.check.differing == 0 and made.check.same == made.check.inputs == 20
    assert "in a process without this package" in str(made)
    program = torch.export.load(made.paths[0]).module()
    for count in (1, 2, 7):
        ours = se.load_pretrained("digits-2-64")(digits[0][:count]).detach()
        torch.testing.assert_close(program(digits[0][:count]), ours, atol=1e-4, rtol=0)
    blocked = READER.split("class Spying")[0] + "import spikformer_edu"
    done = subprocess.run([sys.executable, "-I", "-c", blocked], capture_output=True, text=True)
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr


def test_a_program_that_does_not_run_is_one_line(tmp_path, monkeypatch, one_line):
    model, inputs = small()
    torch.save({}, tmp_path / "no program.pt2")
    from spikformer_edu.export.program import elsewhere

    with pytest.raises(se.SpikformerError) as excinfo:
        elsewhere(tmp_path / "no program.pt2", inputs)
    one_line(excinfo, "does not run in another process")


def test_a_program_of_frames():
    model, inputs = small(frames=True)
    program = graph_of(fold(model).float(), inputs).module()
    torch.testing.assert_close(program(inputs[:, :1]), model(inputs[:, :1]).detach(), atol=1e-5, rtol=0)


# Integers


@pytest.mark.parametrize("bits", BITS)
def test_the_simulator_alone_computes_the_dump(tmp_path, bits):
    """A copy of the file, in a process without this package and without PyTorch."""
    made = se.export("digits-2-64", tmp_path, "fixed", bits=bits)
    assert [path.name for path in made.paths] == [f"model-{bits}bit.npz"]
    shutil.copy(SIMULATOR, tmp_path / "simulator.py")
    program = (
        "import sys, runpy; sys.modules['torch'] = sys.modules['spikformer_edu'] = None;"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", program, "simulator.py", made.paths[0]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "every spike and every logit" in done.stdout, done.stderr
    dump = dict(np.load(made.paths[0]))
    assert {dump[name].dtype for name in dump if name.endswith(".weight")} == {np.dtype(f"int{bits}")}
    assert sum(array.size for name, array in dump.items() if name.startswith("spikes/")) == 2 * 417_792
    dump["blocks.0.attn.k.threshold"] = dump["blocks.0.attn.k.threshold"] // 2
    wrong = differences(dump)
    assert "spikes/blocks.0.attn.k" in wrong and "spikes/blocks.0.attn.q" not in wrong
    np.savez(tmp_path / "other.npz", **dump)
    done = subprocess.run([*command[:-1], "other.npz"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "blocks.0.attn.k" in done.stdout


def test_the_simulator_is_short():
    assert len(SIMULATOR.read_text().splitlines()) < 150


@pytest.mark.parametrize("frames", [False, True], ids=["images", "frames"])
@pytest.mark.parametrize("bits", BITS)
def test_every_network_of_spikes_as_integers(tmp_path, bits, frames):
    """Pooled Q and K, a learned scale, a silent output; export itself compares the dump."""
    model, inputs = small(frames, qk_pool=True, learn_scale=True)
    model.blocks[0].attn.scale.data.fill_(0.3)
    model.blocks[0].mlp.out.bn.weight.data[0] = 0  # its weights are all zero
    made = se.export(model, tmp_path, "fixed", inputs, bits)
    dump = np.load(made.paths[0])
    network = FixedPoint(dump)
    logits = network.run(dump["input"])
    assert (logits == dump["logits"]).all() and 8 < network.widest <= BITS[bits]
    real = logits * network.meta["logit_step"]
    expected = model(inputs[..., :2, :, :, :]).detach().numpy()
    assert np.abs(real - expected).max() < 0.3 * np.ptp(expected)
    assert made.check.differing < (0.2 if bits == 8 else 0.01) * made.check.spikes


@pytest.mark.parametrize(("bits", "fewer"), [(8, 4), (16, 1)])
def test_integers_recognise_the_test_digits(digits, bits, fewer):
    images, labels = digits
    run = se.load_run("digits-2-64")
    integer = Integer(run.model, images[:10], bits)
    with torch.no_grad():
        assert int((integer(images).argmax(1) == labels).sum()) >= run.results["correct"] - fewer


# Model folders


def test_a_model_folder_is_the_packaged_network(tmp_path, digits):
    made = se.export("digits-2-64", tmp_path / "folder", "hub")
    assert {path.name for path in made.paths} == {"config.json", "model.safetensors", "README.md"}
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {path.name for path in made.paths}
    model, packaged = se.from_pretrained(tmp_path / "folder"), se.load_pretrained("digits-2-64")
    assert model.config == packaged.config and not model.training
    assert all(tensor.equal(packaged.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model(digits[0][:3]).equal(packaged(digits[0][:3]))
    card = made.paths[2].read_text()
    r = se.load_run("digits-2-64").results
    measured = f"{r['correct']} of {r['total']}", f"{r['epochs']} epochs"
    for fact in (*measured, "163,906 parameters", "T = 4", "Handwritten digits"):
        assert fact in card


def test_the_model_card_is_one_that_the_hub_reads(tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (pip install '.[hub]')")
    run = se.load_run("digits-2-64")
    run.data.classes[:2] = ['a "quoted" name', "- two\nlines"]
    odd = replace(run, data=replace(run.data, title='A "set": of data'))
    se.save_pretrained(odd, tmp_path)
    card = hub.ModelCard.load(tmp_path / "README.md").data
    (result,) = card.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", round(100 * run.results["accuracy"], 2))
    assert (card.library_name, card.pipeline_tag) == ("spikformer_edu", "image-classification")
    assert result.dataset_name == 'A "set": of data' and card.model_name == "digits-2-64"
    se.save_pretrained(replace(run, results={}), tmp_path)
    assert hub.ModelCard.load(tmp_path / "README.md").data.eval_results is None
    assert "has not been measured" in (tmp_path / "README.md").read_text()


def test_a_name_on_the_hub_is_taken_from_its_cache(tmp_path, monkeypatch, one_line):
    """As huggingface_hub lays it out after a download; nothing is asked of the network here."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit, folder = "0" * 40, tmp_path / "models--someone--digits"
    se.save_pretrained("digits-2-64", folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    model = se.from_pretrained("someone/digits")
    assert model.head.weight.equal(se.load_pretrained("digits-2-64").head.weight)
    with pytest.raises(se.SpikformerError) as excinfo:
        se.from_pretrained("someone/else")
    one_line(excinfo, "someone/else", "the Hub does not give it")


def test_without_huggingface_hub_one_line_says_so(tmp_path, monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(se.SpikformerError) as excinfo:
        se.from_pretrained("someone/digits")
    one_line(excinfo, "someone/digits", "spikformer-edu[hub]")
    with pytest.raises(se.SpikformerError) as excinfo:
        se.from_pretrained(tmp_path / "absent")
    one_line(excinfo, "absent", "save_pretrained")


# What a format cannot say


def command(*arguments: str) -> str:
    """The one line of a command that ends with 2."""
    program = [sys.executable, "-m", "spikformer_edu.export", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and done.stdout == "", done.stdout + done.stderr
    return lines[0]


def test_the_command_says_what_it_wrote(tmp_path):
    program = [
        sys.executable,
        "-m",
        "spikformer_edu.export",
        "--format",
        "fixed",
        "--out",
        str(tmp_path),
        "--inputs",
        "3",
    ]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (line,) = done.stdout.splitlines()
    size = (tmp_path / "model-8bit.npz").stat().st_size
    assert f"model-8bit.npz  {size:,} bytes" in line and "answer for 3 of 3 inputs" in line


@pytest.mark.slow
def test_the_command_refuses_in_one_line(tmp_path, one_line):
    assert "did you mean 'onnx'" in command("--format", "onx")
    assert "--format" in command()
    (tmp_path / "file").write_text("")
    assert "cannot write" in command("--format", "fixed", "--inputs", "1", "--out", str(tmp_path / "file" / "x"))
    for options, words in (
        (Options("fixed", bits=12), "bits=12: give 8 or 16"),
        (Options("torch", inputs=0), "--inputs 0: "),
        (Options("js", out=tmp_path / "file" / "x"), "cannot write"),
        (Options("hub", out=tmp_path / "file" / "x"), "cannot write"),
        (Options("onnx", "absent"), "no run at absent"),
    ):
        with pytest.raises(se.SpikformerError, match=words) as excinfo:
            main(options)
        one_line(excinfo)


def test_options_that_a_format_cannot_say(tmp_path, one_line):
    images = torch.rand(2, 1, 16, 16)

    def refused(model, format, *words, inputs=images):
        with pytest.raises(se.SpikformerError) as excinfo:
            se.export(model, tmp_path, format, inputs)
        one_line(excinfo, *words)

    refused(small(attention="softmax")[0], "fixed", "softmax", "ssa")
    refused(small(neuron="plif", tau=4.0)[0], "fixed", "tau must be 2", "sps.0")
    refused(small(neuron="if")[0], "fixed", "tau must be 2", "sps.0")
    refused(small(residual="membrane")[0], "fixed", "residual", "spike")
    for format in ("onnx", "torch", "fixed"):
        refused(small(neuron="ilif")[0], format, "ilif", "0 and 1")
    refused(small()[0], "js", "a run")
    refused(small()[0], "hub", "a run")
    refused(small()[0], "onnx", "inputs", inputs=None)
    refused(small()[0], "onnx", "channels", inputs=torch.rand(2, 3, 16, 16))
    refused(nn.Linear(2, 2), "torch", "no Spikformer")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_onnx_one_line_says_so(tmp_path, monkeypatch, one_line, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(se.SpikformerError) as excinfo:
        se.export("digits-2-64", tmp_path, "onnx")
    one_line(excinfo, missing, "spikformer-edu[onnx]")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_without_onnxruntime_the_file_is_written_and_the_line_says_so(onnx, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model, inputs = small()
    made = se.export(model, tmp_path, "onnx", inputs)
    assert made.check is None and "not run: ONNX needs onnxruntime" in str(made) and made.paths[0].exists()


def test_nothing_is_imported_without_need():
    program = (
        "import sys, spikformer_edu as se; se.load_pretrained('digits-2-64');"
        "print({'onnx', 'onnxscript', 'onnxruntime', 'huggingface_hub'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_no_data_here_means_random_inputs(tmp_path, monkeypatch):
    from spikformer_edu.export import inputs_for

    monkeypatch.setenv("SPIKFORMER_DATA", str(tmp_path))
    inputs, kind = inputs_for(se.load_run("cifar10-2-128"), 3)
    assert kind == "random inputs" and inputs.shape == (3, 3, 32, 32)
    assert inputs_for(se.load_run("digits-2-64"), 1000)[0].shape == (359, 1, 32, 32)
    assert not any(tmp_path.iterdir())
