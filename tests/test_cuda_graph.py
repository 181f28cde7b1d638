"""What keeps a GPU busy, as far as a CPU can tell: when a step is recorded, where losses are read, learning rates."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import spikformer_edu as se
from spikformer_edu import train as train_command
from spikformer_edu.data import Augment, batches, load
from spikformer_edu.data.loading import ahead
from spikformer_edu.training import DistributedContext, Recipe, RunOptions, recipe_for, train
from spikformer_edu.training.checkpoint import read_config
from spikformer_edu.training.cuda_graph import Captured, CaptureError, GraphedStep, signature
from spikformer_edu.training.loop import Trainer, why_no_graph
from spikformer_edu.training.plan import describe_plan, plan
from spikformer_edu.training.recipe import precision_for

CPU, GPU = (DistributedContext(torch.device(name)) for name in ("cpu", "cuda"))
SMALL = Recipe(epochs=2, warmup_epochs=1, batch_size=10, time_steps=1, samples_per_class=5)  # five steps an epoch


def trainer(folder, options=None, **changes):
    recipe = replace(SMALL, **changes)
    made = Trainer(recipe, folder, CPU, load("digits", samples_per_class=5), options or RunOptions())
    made.model.train()
    return made


class Recorded(GraphedStep):
    """A step whose recording, which needs a GPU, is noted instead."""

    def __init__(self, **options):
        super().__init__(lambda *inputs: None, **options)
        self.done = []

    def warm_up(self, *inputs):
        self.done.append("warm up")

    def capture(self, *inputs):
        self.done.append("capture")
        graph = SimpleNamespace(replay=lambda: self.done.append("replay"))
        return Captured(graph, [tensor.clone() for tensor in inputs], len(self.captured))


class TestGraphedStep:
    def test_after_warming_up_a_step_is_recorded_once_and_then_only_started(self):
        step = Recorded()
        outputs = [step(torch.full((4, 2), float(i)), torch.zeros(4)) for i in range(6)]
        assert step.done == ["warm up"] * 3 + ["capture", "replay"] + ["replay"] * 2
        assert outputs == [None] * 3 + [0] * 3
        (captured,) = step.captured.values()
        assert captured.inputs[0].eq(5).all()  # those of the last call

    def test_other_shapes_have_a_graph_of_their_own(self):
        step = Recorded(warmup=1)
        x, labels, shares = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 10)
        outputs = [step(x, y) for y in (labels, labels, shares, labels, shares, labels)]
        kinds = ["warm up", "capture", "replay", "warm up", "replay", "capture", "replay", "replay"]
        assert step.done == kinds and outputs == [None, 0, None, 0, 1, 0]

    def test_a_signature_is_shapes_strides_and_dtypes(self):
        x = torch.zeros(2, 3, 4, 4)
        others = x[:1], x.double(), x.to(memory_format=torch.channels_last), x.flatten(1)
        assert len({signature(x), *map(signature, others)}) == 5
        assert signature(x, x[0]) == signature(x + 1, x[1]) != signature(x[0], x)


@pytest.fixture
def gpu_of(monkeypatch):
    """Lets this machine say that it has a GPU of some compute capability."""
    return lambda *capability: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
)
def test_the_precision_is_what_the_gpu_computes_fast(gpu_of, capability, precision):
    gpu_of(*capability)
    assert precision_for(torch.device("cuda")) == precision
    assert precision_for(torch.device("cpu")) == precision_for(torch.device("mps")) == "fp32"


@pytest.mark.parametrize(
    ("capability", "context", "recipe", "options", "why"),
    [
        ((9, 0), CPU, {}, {}, "the device is cpu"),
        ((6, 1), GPU, {}, {}, "older than compute capability 7.0"),
        ((9, 0), replace(GPU, world=2), {}, {}, "2 processes"),
        ((9, 0), GPU, {"precision": "fp16"}, {}, "fp16"),
        ((9, 0), GPU, {}, {"compile": True}, "--compile"),
        ((9, 0), GPU, {}, {"activation_checkpointing": True}, "--activation-checkpointing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_turns_the_graph_off_is_said_and_refused_where_it_was_asked_for(
    gpu_of, one_line, capability, context, recipe, options, why
):
    gpu_of(*capability)
    recipe = replace(Recipe(precision="bf16"), **recipe)
    assert why in why_no_graph(recipe, context, RunOptions(**options))
    assert why_no_graph(recipe, context, RunOptions(cuda_graph="off", **options)) == "--cuda-graph off"
    with pytest.raises(se.SpikformerError) as excinfo:
        why_no_graph(recipe, context, RunOptions(cuda_graph="on", **options))
    one_line(excinfo, "--cuda-graph on: ", why, "leave it out")


@pytest.mark.parametrize("asked", ["auto", "on"])
def test_on_a_gpu_a_step_is_a_graph(gpu_of, asked):
    gpu_of(8, 0)
    for precision in ("bf16", "fp32"):
        options = RunOptions(cuda_graph=asked, checkpoint_every=5, keep=2)
        recipe = Recipe(precision=precision, ema_decay=0.9, grad_accum_steps=2, augment=Augment(mixup=0.5))
        assert why_no_graph(recipe, GPU, options) is None


def test_wrong_options_are_one_line(tmp_path, one_line, run_here):
    for values, words in (
        (dict(cuda_graph="offf"), ("unknown cuda_graph 'offf'", "did you mean 'off'?")),
        (dict(checkpoint_every=0), ("checkpoint_every=0: give at least 1",)),
    ):
        with pytest.raises(se.SpikformerError) as excinfo:
            RunOptions(**values)
        one_line(excinfo, *words)
    for more in ([], ["--dry-run"]):
        given = ("--cuda-graph", "on", "--device", "cpu", "--out", tmp_path / "run", *more)
        code, _, said = run_here(train_command.main, "train", *given, default=lambda: train_command.defaults([]))
        assert code == 2 and said == "error: --cuda-graph on: the device is cpu, no CUDA GPU; leave it out\n"
        assert not (tmp_path / "run").exists()


def test_a_dry_run_says_how_it_would_compute(gpu_of):
    recipe = recipe_for("digits")
    assert recipe.precision == "auto"
    text = describe_plan(recipe, CPU, plan(recipe, CPU, RunOptions(cuda_graph="off")))
    assert (
        "precision            fp32, chosen for this device\n" in text
        and "CUDA graph           no: --cuda-graph off\n" in text
    )
    p = plan(replace(recipe, precision="bf16"), CPU)
    text = describe_plan(replace(recipe, precision="bf16"), CPU, p)
    assert "precision            bf16\n" in text and "CUDA graph           no: the device is cpu, no CUDA GPU\n" in text
    assert "CUDA graph           yes\n" in describe_plan(recipe, CPU, replace(p, no_graph=None))


def test_a_graph_that_cannot_be_recorded_is_given_up_unless_it_was_asked_for(tmp_path):
    def fails(*inputs):
        raise CaptureError("the training step cannot be a CUDA graph (operation not permitted): give --cuda-graph off")

    for asked in ("auto", "on"):
        t = trainer(tmp_path)
        t.options = SimpleNamespace(cuda_graph=asked)
        t.graphed = fails
        read = batches(t.splits.train, 10, train=True)
        t.step(*next(read))  # watched: without a graph
        before = t.model.head.weight.clone()
        if asked == "on":
            with pytest.raises(CaptureError):
                t.step(*next(read))
            assert torch.equal(t.model.head.weight, before)
        else:
            with pytest.warns(UserWarning, match="cannot be a CUDA graph .*this run goes on without one"):
                t.step(*next(read))
            assert t.graphed is None and t.progress.batch == 2 and not torch.equal(t.model.head.weight, before)


# Losses that are read now and then ----------------------------------------------------------------------------------


def test_losses_read_now_and_then_are_those_read_at_once(tmp_path):
    once, later = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    later.step_sums = torch.zeros(3, 3, dtype=torch.float64)  # as on a GPU, with 3 for 50
    seen = []
    for x, y in batches(once.splits.train, 10, train=True):
        once.step(x, y), later.step(x, y)
        seen.append(later.progress.seen)
    assert seen == [0, 0, 30, 30, 50]  # every third step, and at the end of the epoch
    assert once.progress.loss == later.progress.loss > 0 and once.progress.correct == later.progress.correct > 0


@pytest.mark.parametrize(("bad", "number"), [("loss", 4), ("loss", 1), ("input", 4)])
def test_the_first_step_that_is_not_finite_is_named_though_it_is_read_later(
    tmp_path, monkeypatch, one_line, bad, number
):
    monkeypatch.setattr(torch, "isfinite", torch.ones_like)  # in training on a GPU the network does not look at values
    folder = tmp_path / "run"
    t, calls, cross_entropy = trainer(folder, lr=0.02), [], F.cross_entropy
    t.step_sums = torch.zeros(50, 3, dtype=torch.float64)
    t.epoch()
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}

    def nan_now_and_then(logits, y, **options):
        calls.append(y)
        return cross_entropy(logits, y, **options) * (float("nan") if len(calls) >= number else 1)

    if bad == "loss":
        monkeypatch.setattr(F, "cross_entropy", nan_now_and_then)
    else:
        fetch = type(t.splits.train).fetch

        def spoilt(split, indices, generator):
            inputs, targets = fetch(split, indices, generator)
            calls.append(targets)
            if len(calls) == number:
                inputs[3, 0, 5, 5] = float("inf")
            return inputs, targets

        monkeypatch.setattr(type(t.splits.train), "fetch", spoilt)
    with pytest.raises(se.SpikformerError) as excinfo:
        t.epoch()
    assert len(calls) == 5  # it was read at the end of the epoch
    what = "loss is nan in " if bad == "loss" else "input holds NaN or inf in "
    lr = se.training.learning_rate(t.recipe, 1 + (number - 1) / 5)
    one_line(
        excinfo, f"{what}epoch 2, step {number}, learning rate {lr:.2g}", f"last good checkpoint: {folder}/resume.pt"
    )
    assert kept == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_batches_ahead_are_the_batches():
    split = load("digits", samples_per_class=5).train
    plain = list(batches(split, 16, train=True, seed=2))
    moved = list(ahead(batches(split, 16, train=True, seed=2), torch.device("cpu")))
    pairs = [(a, b) for x, y in zip(plain, moved, strict=True) for a, b in zip(x, y, strict=True)]
    assert len(pairs) == 6 and all(torch.equal(a, b) for a, b in pairs)


# A learning rate that is a tensor, and a run that changes its device --------------------------------------------------


def as_on_a_gpu(made):
    """The trainer with a learning rate in a tensor."""
    made.lr = torch.tensor(made.recipe.warmup_lr)
    made.set_lr(made.recipe.warmup_lr)
    for group in made.optimizer.param_groups:
        group["capturable"] = True
    return made


@pytest.mark.parametrize("first_on_gpu", [True, False])
def test_a_run_goes_on_on_another_kind_of_device(tmp_path, first_on_gpu):
    folder = tmp_path / "run"
    train(replace(SMALL, epochs=1, warmup_epochs=0), folder, CPU)  # for its config.json and best.safetensors
    before, after = trainer(folder), trainer(folder)
    as_on_a_gpu(before if first_on_gpu else after)
    read = list(batches(before.splits.train, 10, train=True))
    for batch in read[:2]:
        before.step(*batch)
    before.save(before.progress)
    state = torch.load(folder / "resume.pt", weights_only=True)["optimizer"]["param_groups"]
    assert all(type(group["lr"]) is float for group in state)
    after.recipe = replace(SMALL, epochs=1, warmup_epochs=0, precision="fp32")
    after.resume()
    assert after.progress.batch == 2
    for group in after.optimizer.param_groups:
        assert group["capturable"] == (not first_on_gpu)
        assert (group["lr"] is after.lr) == (not first_on_gpu)
    after.recipe = before.recipe
    for t in (before, after):
        t.step(*read[2])
    for (name, a), b in zip(before.model.named_parameters(), after.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)  # a tensor holds the rate in float32
    one = float(after.optimizer.param_groups[0]["lr"])
    assert one == pytest.approx(se.training.learning_rate(SMALL, 2 / 5))


def test_a_run_keeps_the_precision_that_it_began_with(tmp_path, one_line):
    recipe = replace(SMALL, epochs=1, warmup_epochs=0)
    train(replace(recipe, precision="bf16"), tmp_path / "run", CPU)
    assert recipe.precision == "auto"
    t = Trainer(recipe, tmp_path / "run", CPU, load("digits", samples_per_class=5), RunOptions())
    assert t.recipe.precision == "bf16"
    train(recipe, tmp_path / "run", CPU)
    assert read_config(tmp_path / "run")[0].precision == "bf16"
    with pytest.raises(se.SpikformerError) as excinfo:
        train(replace(recipe, precision="fp32"), tmp_path / "run", CPU)
    one_line(excinfo, "--precision fp32 differs from the run's bf16")
    train(recipe, tmp_path / "new", CPU)
    assert read_config(tmp_path / "new")[0].precision == "fp32"
