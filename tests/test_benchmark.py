"""The benchmark measures what it says: the same network, all the work, in turns, and it says what it left out."""

import gc
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils import flop_counter

import spikformer_edu as se
from spikformer_edu import benchmark
from spikformer_edu.benchmarks import measure, peers

CPU = torch.device("cpu")


def toy(**fields) -> peers.Case:
    return replace(peers.case_of("toy", 2, CPU), **fields)


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command on the toy shape: what it printed, its JSON, its figure."""
    folder = tmp_path_factory.mktemp("benchmark")
    arguments = "--shapes toy --rounds 2 --peers ours ours+channels_last spikingjelly-triton vit"
    arguments += f" --threads 1 --device cpu --out {folder}/new/times.json --plot {folder}/new/times.png"
    command = [sys.executable, "-m", "spikformer_edu.benchmark", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "new" / "times.json").read_text()), folder / "new" / "times.png"


@pytest.mark.slow
def test_command_keeps_every_time(run):
    _, content, _ = run
    assert [part["precision"] for part in content["tables"]] == ["fp32", "bf16"]
    for part in content["tables"]:
        kinds = [(r["peer"], r["mode"]) for r in part["results"]]
        assert kinds == [(p, m) for p in ("ours", "ours+channels_last", "vit") for m in ("train", "eval")]
        for r in part["results"]:
            assert len(r["seconds"]) == 2 and min(r["seconds"]) > 0
            assert r["median"] == pytest.approx(sum(r["seconds"]) / 2)
            assert 0 < r["share"] < 1.5
        assert [r["to_ours"] for r in part["results"][:2]] == [1, 1]
        assert all(len(rates) == 2 for rates in part["rates"].values())


@pytest.mark.slow
def test_command_says_where_and_how(run):
    printed, content, figure = run
    about = content["provenance"]
    assert about["command"].startswith("python -m spikformer_edu.benchmark --shapes toy --rounds 2")
    assert about["threads"] == 1 and about["torch"] == torch.__version__ and about["device"] in printed
    title = "toy, T = 4, B = 4, 64 tokens, bf16"
    for words in ("vit (T = 1)", "share: ", title, "skipped spikingjelly-triton: its Triton"):
        assert words in printed
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(shapes=("cifr",)), ["unknown shape 'cifr'", "did you mean 'cifar'?"]),
        (dict(precisions=("fp8",)), ["unknown precision 'fp8'"]),
        (dict(peers=("spikingjely",)), ["unknown peer 'spikingjely'", "did you mean 'spikingjelly'?"]),
        (dict(peers=("ours+chanels_last",)), ["unknown change 'chanels_last'", "did you mean 'channels_last'?"]),
        (dict(peers=("vit+plain",)), ["+plain in peer 'vit+plain' changes ours only"]),
        (dict(peers=("ours+eager+graph",)), ["'ours+eager+graph' is to have a graph and none"]),
        (dict(peers=()), ["--peers names none"]),
        (dict(sweep="time"), ["unknown sweep 'time'", "time_steps"]),
        (dict(rounds=0), ["rounds=0"]),
        (dict(batch_size=0), ["batch_size=0"]),
        (dict(threads=-1), ["threads=-1"]),
    ],
)
def test_bad_options(options, words, one_line):
    with pytest.raises(se.SpikformerError) as error:
        benchmark.check(benchmark.Options(**options))
    one_line(error, *words)


def test_a_file_that_cannot_be_written_is_refused_before_measuring(tmp_path, one_line):
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path, tmp_path / "file" / "times.json"):
        with pytest.raises(se.SpikformerError) as error:
            benchmark.check(benchmark.Options(out=path))
        one_line(error, "cannot write")
    assert (tmp_path / "file").read_text() == "precious"


def test_command_refuses_in_one_line():
    command = [sys.executable, "-m", "spikformer_edu.benchmark", "--device", "cuda:99"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: device 'cuda:99'") and done.stderr.count("\n") == 1


# What is measured


@pytest.mark.parametrize("shape", peers.SHAPES)
def test_shapes_are_presets(shape):
    case = peers.case_of(shape, None, CPU)
    line = se.preset(peers.SHAPES[shape].model)
    assert case.image_size == line.image_size and case.events == ("dvs" in line.name)
    if shape != "toy":
        assert case.config == replace(line.config, time_steps=1 if shape == "cifar-t1" else line.config.time_steps)
    small = replace(case, batch=1)
    assert small.inputs(CPU).shape[-3:] == (case.config.in_channels, case.image_size, case.image_size)


def test_variants_of_ours_are_one_network():
    logits = {}
    for name in ("ours", "snntorch", "ours+channels_last"):
        step = peers.Step(name, toy(), "fp32", CPU)
        logits[name] = step.forward(step.inputs).detach()
    assert logits["ours"].shape == (2, 10) and logits["ours"].std() > 0
    assert torch.equal(logits["ours"], logits["snntorch"])
    assert torch.allclose(logits["ours"], logits["ours+channels_last"], atol=1e-2)
    assert step.inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["ours", "vit", "spikingjelly"])
@pytest.mark.parametrize("events", [False, True])
def test_a_training_step_trains_every_parameter(name, events):
    if name == "spikingjelly":
        pytest.importorskip("spikingjelly.activation_based.model.spikformer")
    step = peers.Step(name, toy(events=events), "bf16", CPU)
    before = {n: p.detach().clone() for n, p in step.model.named_parameters()}
    step.train()
    kept = [n for n, p in step.model.named_parameters() if torch.equal(p, before[n])]
    assert not kept
    step.evaluate()
    assert not step.model.training


def test_spikingjelly_is_the_same_size_but_for_biases():
    pytest.importorskip("spikingjelly.activation_based.model.spikformer")
    for shape in ("cifar", "dvs", "toy"):
        case = peers.case_of(shape, 1, CPU)
        ours, theirs = (peers.Step(n, case, "fp32", CPU).model for n in ("ours", "spikingjelly"))
        sizes = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
        biases = sum(
            m.bias.numel() for m in ours.blocks.modules() if isinstance(m, torch.nn.Linear) and m.bias is not None
        )
        assert sizes[0] - sizes[1] == biases > 0


def test_spikingjelly_starts_every_step_afresh():
    pytest.importorskip("spikingjelly.activation_based.model.spikformer")
    step = peers.Step("spikingjelly", toy(), "fp32", CPU)
    step.model.eval()
    assert torch.equal(step.forward(step.inputs), step.forward(step.inputs))


def test_what_cannot_run_says_why():
    early = toy()
    early = replace(early, config=replace(early.config, pool=(True, True, False, False)))
    entries = [("spikingjelly", None, early), ("spikingjelly-triton", None, toy()), ("ours", None, toy())]
    table = measure.measure(entries, "toy", "fp32", CPU, rounds=1)
    assert {r.peer for r in table.results} == {"ours"}
    assert "spikingjelly" in table.skipped and "CUDA" in table.skipped["spikingjelly-triton"]
    assert "skipped spikingjelly-triton: its Triton neuron needs CUDA" in benchmark.show(table)


def test_on_a_gpu_ours_is_a_graph_and_others_are_when_asked():
    gpu = torch.device("cuda")
    usual = peers.usual_peers(gpu)
    graphs = {name for name in usual if peers.captured(name, gpu)}
    assert graphs == {"ours", "spikingjelly-triton+graph", "vit+graph"}
    assert {name.replace("+graph", "") for name in graphs - {"ours"}} | {"ours+eager", "ours+plain"} < set(usual)
    assert not any(peers.captured(name, gpu) for name in ("ours+compile", "ours+eager+compile", "snntorch"))
    assert not any(peers.captured(name, CPU) for name in peers.usual_peers(CPU))


class Graphs(torch.nn.Module):
    """In place of a graph: it works without one, and counts."""

    made: list["Graphs"] = []

    def __init__(self, work, warmup):
        super().__init__()
        self.work, self.warmup, self.calls = work, warmup, 0
        self.made.append(self)

    def __call__(self, *inputs):
        self.calls += 1
        return self.work(*inputs)


@pytest.fixture
def graphs(monkeypatch):
    """Ours is captured on a CPU too, by what stands in for a graph; the list of what was captured."""
    monkeypatch.setattr(Graphs, "made", [])
    monkeypatch.setattr(peers, "GraphedStep", Graphs)
    monkeypatch.setattr(peers, "captured", lambda name, device: name == "ours")
    return Graphs.made


def test_a_step_in_a_graph_trains_as_one_without(graphs):
    one, other = peers.Step("ours", toy(), "fp32", CPU), peers.Step("ours", toy(), "fp32", CPU, counting=True)
    assert one.warmup == 4 > other.warmup and len(graphs) == 2 and all(graph.warmup == 3 for graph in graphs)
    for step in (one, other):
        for _ in range(3):
            step.train()
        step.evaluate()
    assert [graph.calls for graph in graphs] == [3, 1]
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_graph_is_captured_before_it_is_timed(graphs):
    measure.measure([("ours", None, toy())], "toy", "fp32", CPU, rounds=1)
    train, evaluate = graphs
    assert train.calls > 4 and evaluate.calls > 4  # three steps, the capture, and those that are timed


def test_a_failure_costs_the_other_peers_nothing(monkeypatch):
    usual, calls = peers.Step.train, []

    def train(step):
        calls.append(step)
        if not isinstance(step.model, se.Spikformer) and len(calls) > 12:
            raise AssertionError("it worked until now\nand a traceback")
        usual(step)

    monkeypatch.setattr(peers.Step, "train", train)
    monkeypatch.setattr(measure, "TURN", 0.001)
    table = measure.measure([("vit", None, toy()), ("ours", None, toy())], "toy", "fp32", CPU, rounds=9)
    assert table.skipped == {"vit": "failed: it worked until now"}
    assert [(r.peer, len(r.seconds)) for r in table.results] == [("ours", 9)] * 2


def test_a_capture_is_tried_in_a_process_of_its_own_first(monkeypatch):
    assert "CUDA" in measure.try_to_capture("vit+graph", toy(), "fp32", CPU)  # the error as text: it can be sent
    assert measure.try_to_capture("vit", toy(), "fp32", CPU) is None
    monkeypatch.setattr(measure, "trial", lambda name, *_: lambda: "failed: no stream" if name == "vit" else None)
    entries = [(name, None, toy()) for name in ("vit", "ours")]
    table = measure.measure(entries, "toy", "fp32", CPU, rounds=1)
    assert table.skipped == {"vit": "failed: no stream"} and {r.peer for r in table.results} == {"ours"}


def test_nothing_measured_is_one_line(tmp_path, one_line):
    options = benchmark.Options(
        shapes=("toy",), precisions=("fp32",), peers=("spikingjelly-triton",), rounds=1, device="cpu",
        plot=tmp_path / "times.png",
    )  # fmt: skip
    with pytest.raises(se.SpikformerError) as error:
        benchmark.main(options)
    one_line(error, "nothing was measured", "spikingjelly-triton (its Triton neuron needs CUDA")
    assert not list(tmp_path.iterdir())


# How it is measured


def test_operations_are_those_of_the_layers():
    case = toy()
    report = se.energy(se.spikformer("cifar10-4-256", depth=1, dim=64, heads=2), case.inputs(CPU))
    steps = [1 if layer.layer in ("sps.0", "head") else layer.steps for layer in report.layers]  # a still image
    forward = 2 * case.batch * sum(layer.flops * n for layer, n in zip(report.layers, steps, strict=True))
    counted = measure.count("ours", case, "fp32", CPU)
    assert counted["eval"].flops == forward
    first = 2 * case.batch * report.layers[0].flops
    assert counted["train"].flops == 3 * forward - first  # no gradient goes to the image


def test_attention_of_the_vit_is_counted(monkeypatch):
    for operator in measure.CPU_ATTENTION:  # as an older PyTorch, which has no formula for them
        monkeypatch.delitem(flop_counter.flop_registry, operator, raising=False)
    case = toy()
    c, n = case.config, case.tokens
    more = replace(case, config=replace(c, depth=2))
    one, two = (measure.count("vit", each, "fp32", CPU) for each in (case, more))
    linear, attention = 12 * n * c.dim**2, n * n * c.dim
    assert two["eval"].flops - one["eval"].flops == 2 * case.batch * (linear + 2 * attention)
    # Backward, every linear map is two products, and attention five: its matrix is not kept but computed again.
    assert two["train"].flops - one["train"].flops == 2 * case.batch * (3 * linear + 7 * attention)


def test_traffic_of_known_operators():
    a, b = torch.ones(1000), torch.ones(1000)
    with measure.Traffic() as traffic:
        c = a + b
    assert traffic.bytes == 3 * 4000
    with measure.Traffic() as traffic:
        c.view(10, 100).transpose(0, 1)
    assert traffic.bytes == 0
    with measure.Traffic() as traffic:
        F.relu_(c)
    assert traffic.bytes == 4000
    with measure.Traffic() as traffic:
        torch.empty(1000), torch.empty_like(c), c.new_empty(5)
    assert traffic.bytes == 0


def test_traffic_of_kernels_beside_the_operators():
    """A kernel is counted by its tensors, unless an operator has it inside: that one is counted as a whole."""
    jit = pytest.importorskip("triton.runtime.jit")

    class Kernel(jit.KernelInterface):
        launched = 0

        def run(self, *args, grid, warmup, **kwargs):
            self.launched += 1

    kernel, a, b = Kernel(), torch.ones(1000), torch.ones(500)
    with measure.Traffic() as traffic:
        kernel[(4,)](a, b, 7, out=a)
    assert (traffic.bytes, kernel.launched) == (6000, 1)
    library = torch.library.Library("benchmark_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: (kernel[(4,)](x, x), 2 * x)[1], "CPU")
    with measure.Traffic() as traffic:
        torch.ops.benchmark_test.twice(b)
    assert (traffic.bytes, kernel.launched) == (2 * 2000, 2)
    kernel[(4,)](a)
    assert traffic.bytes == 4000 and kernel.launched == 3  # not counted any more


def test_compiled_networks_are_counted_before_compilation():
    plain, compiled = (measure.count(name, toy(), "fp32", CPU)["train"] for name in ("ours", "ours+compile"))
    assert compiled == (plain.flops, None, None)


def test_of_spikingjelly_the_network_is_compiled_and_not_the_reset():
    pytest.importorskip("spikingjelly")
    model = peers.Step("spikingjelly+compile", toy(), "fp32", CPU).model
    assert model.net._compiled_call_impl is not None and model._compiled_call_impl is None


class Clock:
    """A clock that stands still until somebody works."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def work(self, seconds: float) -> None:
        self.now += seconds


def test_a_clock_gives_the_mean_of_one_call(monkeypatch):
    clock, times = Clock(monkeypatch), iter([1.0, 2.0, 6.0])
    assert measure.seconds(lambda: clock.work(next(times)), CPU, repeats=3) == 3.0


def test_peers_take_turns(monkeypatch):
    log, clock = [], Clock(monkeypatch)

    class Fake:
        warmup = 1

        def __init__(self, name, *_, **__):
            self.name = name

        def train(self):
            log.append((self.name, "train"))
            clock.work(2 * measure.TURN)

        def evaluate(self):
            log.append((self.name, "eval"))
            clock.work(2 * measure.TURN)

    monkeypatch.setattr(measure, "prepare", Fake)
    monkeypatch.setattr(
        measure, "probes", lambda *_: {n: (1, lambda: clock.work(1)) for n in ("matmul", "conv", "copy")}
    )
    measure.measure([(name, None, toy()) for name in "ABC"], "fake", "fp32", CPU, rounds=2)
    assert log[-12:] == [(name, mode) for name in "ABC" for mode in ("train", "eval")] * 2


def test_ratios_are_taken_within_a_round():
    def result(peer, seconds):
        return measure.Result(peer, "train", None, 1, 1, 1, flops=100, traffic=None, seconds=seconds)

    # The machine slows down fourfold after the first round; the peer is always half as fast as ours.
    results = [
        result("ours", [1.0, 4.0, 4.0]),
        result("snntorch", [2.0, 8.0, 8.0]),
        result("spikingjelly", [4.0, 4, 4]),
    ]
    table = measure.Comparison("x", "fp32", results, {"matmul": [50.0] * 3, "conv": [25.0] * 3, "copy": [1.0] * 3}, {})
    measure.compare(table)
    assert [r.to_ours for r in results] == [1, 2, 1]
    assert [r.to_spikingjelly for r in results] == [1, 2, 1]
    assert [r.share for r in results] == [0.5, 0.25, 0.5]


def test_memory_of_the_two_orders():
    case = measure.SWEEPS["tokens"][1](toy(batch=1), 1024)
    c = case.config
    scores = 4 * c.time_steps * c.heads * case.tokens**2  # bytes of Q K^T
    matrix = 4 * c.time_steps * case.tokens * c.dim  # bytes of Q, of K, of V, of the result and of each gradient
    state = 4 * c.time_steps * c.dim**2 // c.heads  # bytes of K^T V
    table = {order: measure.count(order, case, "fp32", CPU) for order in peers.PRODUCTS}
    held, result, gradients = 4 * matrix, matrix, 3 * matrix  # Q, K, V and the gradient of the result are held
    counted = table["(QK^T)V"]
    assert counted["eval"].memory == held + gradients + scores + result
    assert counted["train"].memory == held + result + 2 * scores + matrix  # the scores' gradient, and then that of V
    counted = table["Q(K^TV)"]
    assert counted["eval"].memory == held + gradients + state + result
    assert counted["train"].memory == held + result + gradients + matrix  # K's gradient comes transposed, and is copied


@pytest.mark.parametrize(("name", "precision"), [("ours", "fp32"), ("ours", "bf16"), ("snntorch", "fp32")])
def test_memory_is_what_the_allocator_gives_out(tmp_path, name, precision):
    """Every tensor of a step, and little more: PyTorch's profiler follows the allocator, from the first weight on."""
    case = toy(batch=16)
    gc.collect()  # what an earlier profile saw must not be freed in this one
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = measure.prepare(name, case, precision, CPU)
        step.train()
        for mode, work in measure.works(step).items():
            with torch.profiler.record_function(mode):
                work()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    begin = {e["name"]: float(e["ts"]) for e in events if e["name"] in ("train", "eval") and e["ph"] == "X"}
    given = [e["args"] | {"at": float(e["ts"])} for e in events if e["name"] == "[memory]"]
    before = given[0]["Total Allocated"] - given[0]["Bytes"]

    def peak(start, end=math.inf):
        return max(e["Total Allocated"] for e in given if start <= e["at"] < end) - before

    peaks = {"train": peak(begin["train"], begin["eval"]), "eval": peak(begin["eval"])}
    counted = measure.count(name, case, precision, CPU)
    assert {mode: counts.memory for mode, counts in counted.items()} == pytest.approx(peaks, rel=0.01)


def test_points_of_a_sweep():
    case = toy()
    for kind, (points, at) in measure.SWEEPS.items():
        for point in points:
            moved = at(case, point)
            c = moved.config
            found = dict(time_steps=c.time_steps, batch=moved.batch, tokens=moved.tokens, dim=c.dim)
            base = dict(time_steps=4, batch=2, tokens=64, dim=64)
            assert found == base | {kind: point}
    assert all(measure.SWEEPS["tokens"][1](case, n).tokens == n for n in measure.PRODUCT_TOKENS)


@pytest.mark.slow
def test_a_sweep_of_batches_goes_around_the_one_given():
    tables = measure.sweep("batch", toy(batch=4), ("ours",), "fp32", CPU, rounds=1)
    assert [r.batch for r in tables[0].results if r.mode == "train"] == [1, 2, 4, 8, 16]
    tables = measure.sweep("batch", toy(batch=2), ("ours",), "fp32", CPU, rounds=1)
    assert [r.point for r in tables[0].results if r.mode == "train"] == [1, 2, 4, 8]


@pytest.mark.slow
def test_a_sweep_is_measured_and_drawn(monkeypatch):
    monkeypatch.setitem(measure.SWEEPS, "tokens", ((16, 64), measure.SWEEPS["tokens"][1]))
    monkeypatch.setattr(measure, "PRODUCT_TOKENS", (64, 256))
    tables = measure.sweep("tokens", toy(), ("ours", "vit"), "fp32", CPU, rounds=1)
    assert [(r.peer, r.point) for r in tables[0].results if r.mode == "train"] == [
        ("ours", 16), ("vit", 16), ("ours", 64), ("vit", 64)
    ]  # fmt: skip
    assert {r.peer for r in tables[1].results} == set(peers.PRODUCTS)
    assert "ours, 64" in benchmark.show(tables[0])
    fig = benchmark.draw(tables, "here")
    steps, memory, products, memory_of_products = fig.axes
    for ax in (steps, memory):
        assert [(line.get_label(), list(line.get_xdata())) for line in ax.lines] == [
            ("ours", [16, 64]),
            ("vit", [16, 64]),
        ]
    for ax in (products, memory_of_products):
        assert [list(line.get_xdata()) for line in ax.lines] == [[64, 256]] * 2
