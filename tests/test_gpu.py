"""On a CUDA GPU: the same spikes as on the CPU. Skipped without one; SPIKFORMER_TEST_DEVICE=cpu tries the tests."""

import copy
import csv
import os
from dataclasses import replace

import pytest
import torch
from reference import awaken
from test_speed import assert_same, outcome

import spikformer_edu as se
from spikformer_edu.atomic import write_json
from spikformer_edu.benchmarks import measure
from spikformer_edu.benchmarks.peers import Step, case_of
from spikformer_edu.data import Augment, Splits, batches
from spikformer_edu.data.cifar10 import INFO
from spikformer_edu.data.images import Images
from spikformer_edu.data.loading import ahead
from spikformer_edu.kernels.choice import plain_path
from spikformer_edu.training import DistributedContext, Recipe, RunOptions, learning_rate, load_splits, train
from spikformer_edu.training.checkpoint import describe, read_config
from spikformer_edu.training.loop import Trainer
from spikformer_edu.training.monitor import Rates, gradient_norms
from spikformer_edu.training.pace import epochs_in
from spikformer_edu.training.plan import plan
from spikformer_edu.training.recipe import precision_for
from spikformer_edu.training.signals import Asked

DEVICE = os.environ.get("SPIKFORMER_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["dense", "channels_last", "still"])
@pytest.mark.parametrize("v_threshold", [1.0, 0.5])
def test_neuron_equals_the_plain_loop(layout, v_threshold, dtype):
    x = torch.randint(-4, 12, (5, 3, 24, 31, 17)).to(DEVICE, dtype) / 4
    if layout == "channels_last":
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (5, 3))
    elif layout == "still":
        x = x[:1].expand(5, -1, -1, -1, -1)
    x = x.detach().requires_grad_()
    plain = se.LIF(v_threshold=v_threshold, backend="snntorch").to(DEVICE, dtype)
    spikes, expected = se.LIF(v_threshold=v_threshold).to(DEVICE, dtype)(x), plain(x)
    assert torch.equal(spikes, expected) and 0.05 < spikes.mean() < 0.95
    weights = torch.randn_like(spikes)
    (got,) = torch.autograd.grad(spikes, x, weights)
    exact = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(plain.double()(exact), exact, weights.double())
    step = torch.finfo(dtype).eps
    # Plain torch rounds bf16 at every operation, the kernel once.
    atol = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 4 * step)
    torch.testing.assert_close(got.double(), want, rtol=4 * step, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounds_as_the_fused_neuron_of_a_cpu(dtype):
    x = (2 * torch.randn(6, 100_000)).to(dtype)
    spikes = se.LIF(tau=3.0)(x)
    assert torch.equal(se.LIF(tau=3.0).to(DEVICE)(x.to(DEVICE)).cpu(), spikes) and spikes.float().mean() > 0.02


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_a_second_gpu_does_its_own_work():
    x = 2 * torch.randn(5, 3000)
    for device in ("cuda:0", "cuda:1"):  # the current one is cuda:0 throughout
        current = x.to(device).requires_grad_()
        spikes = se.LIF().to(device)(current)
        spikes.sum().backward()
        assert torch.equal(spikes.cpu(), se.LIF()(x)) and current.grad.device == current.device
        assert current.grad.isfinite().all() and current.grad.any()


def test_both_orders_of_attention_agree_in_bfloat16():
    q, k, v = (torch.rand(3, 4, 2, 12, 256, 32) < 0.5).to(DEVICE, torch.bfloat16)
    options = torch.backends.cuda.matmul
    before = options.allow_bf16_reduced_precision_reduction
    options.allow_bf16_reduced_precision_reduction = False  # True lets CUDA add up sums that it rounded to bfloat16
    try:
        scores_first, values_first = (q @ k.mT * 0.125) @ v, q @ (k.mT @ v) * 0.125
    finally:
        options.allow_bf16_reduced_precision_reduction = before
    assert scores_first.max() > 50 and torch.equal(scores_first, values_first)


@pytest.fixture(scope="module")
def digits():
    return se.data.load("digits").test.fetch(torch.arange(64), None)


def test_packaged_model_says_the_same(digits):
    images, labels = digits
    here = se.load_pretrained("digits-2-64").eval()
    there = copy.deepcopy(here).to(DEVICE)
    with torch.no_grad():
        expected, got = here(images), there(images.to(DEVICE)).cpu()
    # A current that differs in its last bit may cross a threshold: few answers may move, and none by much.
    assert (got.argmax(1) == expected.argmax(1)).float().mean() >= 0.98
    assert (got - expected).abs().median() < 1e-3
    assert (got.argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("backend", ["fused", "snntorch"])
def test_network_in_float64_equals_the_cpu(backend):
    model = se.spikformer("digits-2-64", backend=backend).double()
    images = torch.rand(4, 1, 32, 32, dtype=torch.float64)
    awaken(model, images)
    there = copy.deepcopy(model).train().to(DEVICE)
    model.train()
    logits, other = model(images), there(images.to(DEVICE))
    torch.testing.assert_close(other.cpu(), logits, rtol=1e-9, atol=1e-9)
    logits.square().sum().backward()
    other.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), there.parameters(), strict=True):
        assert a.dim() == 1 or a.grad.abs().max() > 1e-6, f"{name}: a silent network would prove nothing"
        torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=1e-6, atol=1e-9, msg=name)


def losses(steps: int = 15) -> list[float]:
    """Of the first steps in bf16 on random images, always the same ones."""
    torch.manual_seed(0)
    model = se.spikformer("digits-2-64").to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    images, labels = torch.rand(16, 1, 32, 32).to(DEVICE), torch.arange(16, device=DEVICE) % 10
    found = []
    for _ in range(steps):
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_bf16_autocast_trains_on_both_paths():
    fused = losses()
    with plain_path():
        plain = losses()
    assert fused[-1] < 0.8 * fused[0] and plain[-1] < 0.8 * plain[0], (fused, plain)
    assert abs(fused[0] - plain[0]) < 0.05, (fused, plain)  # later a spike that differs makes others differ


RECIPE = Recipe(epochs=3, warmup_epochs=1, batch_size=64, time_steps=2, samples_per_class=60, precision="bf16")
PLACE = DistributedContext(torch.device(DEVICE))


def rows(folder) -> list[dict[str, float]]:
    with open(folder / "metrics.csv", newline="") as log:
        return [{name: float(row[name]) for name in ("loss", "accuracy", "lr")} for row in csv.DictReader(log)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on digits, its steps single kernels: what its log says."""
    folder = tmp_path_factory.mktemp("run")
    train(RECIPE, folder, PLACE, RunOptions(cuda_graph="off"))
    return rows(folder)


def assert_alike(mine, theirs):
    """Sums in another order change a few spikes, so losses agree to some per cent and not to the bit."""
    assert [row["lr"] for row in mine] == pytest.approx([row["lr"] for row in theirs], rel=1e-5)
    for a, b in zip(mine, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.08), (mine, theirs)
    assert mine[-1]["loss"] < 0.95 * mine[0]["loss"], mine  # it learns at all


def test_a_graph_trains_as_single_kernels_do(run, tmp_path):
    train(RECIPE, tmp_path, PLACE, RunOptions(cuda_graph="on" if DEVICE == "cuda" else "auto"))
    assert_alike(rows(tmp_path), run)


def test_a_run_with_a_graph_is_resumed(run, tmp_path):
    """Stopped after an epoch: the next process captures anew, with the state that it read."""
    splits = load_splits(RECIPE)
    before = Trainer(RECIPE, tmp_path, PLACE, splits.to(PLACE.device), RunOptions())
    finish_epoch = before.finish_epoch

    def finish_and_stop() -> None:
        finish_epoch()
        before.stop.asked = True

    before.finish_epoch = finish_and_stop
    with pytest.raises(Asked):
        before.run()
    assert len(rows(tmp_path)) == 1
    train(RECIPE, tmp_path, PLACE)
    assert_alike(rows(tmp_path), run)


def test_steps_are_measured_and_fill_the_time():
    assert 1 <= epochs_in(0.05, RECIPE, PLACE, load_splits(RECIPE), RunOptions()) < 10_000
    assert plan(RECIPE, PLACE).step_images == (64 if DEVICE == "cuda" else 2)


@pytest.mark.skipif(DEVICE != "cuda", reason="a graph needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_benchmark_s_steps_train(precision):
    """Weights move alike with the graph and without, and the capture itself is no step."""
    case, place = case_of("toy", None, torch.device(DEVICE)), torch.device(DEVICE)
    moved = []
    for name in ("ours", "ours+eager", "ours+plain"):
        step = Step(name, case, precision, place)
        first = [p.detach().clone() for p in step.model.parameters()]
        for _ in range(6):
            step.train()
        step.evaluate()
        # AdamW moves a weight by about the learning rate in each step, whatever its gradient: 1e-4 here.
        moved.append(torch.stack([(p - q).abs().mean() for p, q in zip(step.model.parameters(), first, strict=True)]))
    for other in moved[1:]:
        assert 0.8 < (moved[0] / other).nanmedian() < 1.25, moved
    assert 2e-4 < moved[0].max() < 8e-4


@pytest.mark.skipif(DEVICE != "cuda", reason="memory of a GPU")
def test_a_graph_and_its_peers_are_measured_with_their_memory():
    case = case_of("toy", None, torch.device(DEVICE))
    names = ("ours", "ours+eager", "ours+plain", "vit", "vit+graph")
    table = measure.measure([(name, None, case) for name in names], "toy", "bf16", torch.device(DEVICE), rounds=2)
    assert not table.skipped
    found = {(r.peer, r.mode): r for r in table.results}
    assert len(found) == 10 and all(r.memory > 0 and r.traffic > 0 for r in found.values())
    assert all(found[name, "eval"].memory < found[name, "train"].memory for name in ("ours+eager", "ours+plain", "vit"))
    # A GPU's kernels beside PyTorch's operators are counted, and fusing saves traffic.
    assert found["ours", "train"].traffic == found["ours+eager", "train"].traffic < found["ours+plain", "train"].traffic
    assert len({found[name, "train"].flops for name in names[:3]}) == 1


@pytest.mark.slow  # compiling takes a while
def test_compiled_equals_eager(digits):
    images = digits[0][:8].double().to(DEVICE)
    plain = se.load_pretrained("digits-2-64").double().to(DEVICE).train()
    same = copy.deepcopy(plain)
    compiled = torch.compile(same, dynamic=False)
    assert_same(outcome(plain, images), outcome(same, images, compiled))  # a training step, statistics included
    plain.eval(), same.eval()
    with torch.no_grad():
        logits = plain(images)
        assert logits.std() > 0.01
        torch.testing.assert_close(compiled(images), logits, rtol=1e-9, atol=1e-9)


# Training ------------------------------------------------------------------------------------------------------------

HERE = DistributedContext(torch.device(DEVICE))
GRAPH = "on" if DEVICE == "cuda" else "off"
EVERYTHING = Augment(flip=0.5, crop_padding=4, randaugment=2, operations="all", magnitude_std=0.5, erasing=0.25)


def pictures(count=384, augment=EVERYTHING, kind=Images):
    """Images in the device's memory, as CIFAR-10 is kept there."""
    random = torch.Generator().manual_seed(1)
    pixels = torch.nn.functional.interpolate(torch.rand(count, 3, 6, 6, generator=random), size=32, mode="bilinear")
    labels = torch.randint(10, (count,), generator=random)
    split = kind((255 * pixels).byte(), labels, INFO, augment)
    return Splits(INFO, split, None, Images(split.pixels[:64], labels[:64], INFO, None))


def trainer_here(folder, splits, options, **changes):
    plain = dict(dataset="cifar10", precision="fp32", epochs=2, warmup_epochs=1, batch_size=32, lr_batch_size=32)
    recipe = Recipe(**plain | changes)
    trainer = Trainer(recipe, folder, HERE, splits.to(DEVICE), options)
    trainer.model.train()
    return trainer


def exact(trainer):
    """The trainer in float64: then two ways to compute the same differ by so little that no spike is lost or won."""
    trainer.model.double()
    if trainer.average is not None:
        trainer.average.double()
    return trainer


def steps_of(trainer, start=0, stop=None, before=lambda number: None):
    """Some steps of the epoch under way; yields the number of each."""
    recipe, epoch = trainer.recipe, trainer.progress.epoch
    read = batches(trainer.splits.train, recipe.batch_size, train=True, seed=recipe.seed, epoch=epoch, start=start)
    for number, (inputs, targets) in enumerate(ahead(read, HERE.device), start + 1):
        before(number)
        trainer.step(inputs.to(trainer.model.head.weight.dtype), targets)
        yield number
        if number == stop:
            break


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_a_step_in_a_graph_is_the_step_outside_of_it(tmp_path):
    """Two epochs of twelve steps: the first and the eighth of each are watched; mixup ends after the first epoch."""
    done = []
    for graph in (GRAPH, "off"):
        changes = dict(ema_decay=0.9, grad_accum_steps=2, augment=Augment(mixup=0.5, mix_epochs=1))
        t = exact(trainer_here(tmp_path, pictures(augment=None), RunOptions(cuda_graph=graph), **changes))
        t.rates, norms = Rates(t.model, every=7), []
        for _ in range(2):
            norms += [gradient_norms(t.gradients) for _ in steps_of(t)]  # of each step, whoever has done it
            assert t.progress.batch == t.steps == 12 and not t.unread
            t.rates.pop()
            t.progress.epoch, t.progress.batch = t.progress.epoch + 1, 0
        if graph == "on":
            assert len(t.graphed.captured) == 2  # for labels, and for shares of all classes
        done.append((t, norms))
    (one, norms), (other, expected) = done
    assert len(norms) == 24 and len({n["head"] for n in norms}) == 24
    for a, b in zip(norms, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)
    assert_same_weights(one.model.state_dict(), other.model.state_dict())
    assert_same_weights(one.average.state_dict(), other.average.state_dict())
    assert one.progress.loss == pytest.approx(other.progress.loss, rel=1e-9)
    assert one.progress.correct == other.progress.correct > 0 and one.progress.seen == 2 * 384


def test_the_fast_step_in_half_precision_learns_as_the_plain_one(tmp_path):
    losses = []
    for graph in (GRAPH, "off"):
        options = dict(epochs=8, precision="bf16", lr=3e-3, batch_size=64)
        t = trainer_here(tmp_path / graph, pictures(augment=None), RunOptions(cuda_graph=graph), **options)
        for _ in range(8):
            t.epoch()
        losses.append([row["loss"] for row in t.progress.rows])
    assert losses[0][-1] < losses[0][0] - 0.1
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_run_goes_on_in_the_middle_of_an_epoch_as_if_nothing_had_been(tmp_path):
    def made(name):
        options = RunOptions(cuda_graph=GRAPH)
        t = exact(trainer_here(tmp_path / name, pictures(augment=None), options, ema_decay=0.9))
        t.rates = Rates(t.model, every=7)
        (tmp_path / name).mkdir(exist_ok=True)
        write_json(tmp_path / name / "config.json", describe(t.recipe, t.network, t.context, t.data))
        return t

    whole, first = made("whole"), made("parts")
    list(steps_of(whole))
    list(steps_of(first, stop=6))
    first.read()
    first.save(first.together())
    second = made("parts")
    second.resume()
    assert (second.progress.batch, second.progress.seen) == (6, 6 * 32)
    list(steps_of(second, start=6))
    assert GRAPH == "off" or (first.graphed.captured and second.graphed.captured)
    assert_same_weights(whole.model.state_dict(), second.model.state_dict())
    assert_same_weights(whole.average.state_dict(), second.average.state_dict())
    assert whole.progress.loss == pytest.approx(second.progress.loss, rel=1e-9)
    assert gradient_norms(whole.gradients) == pytest.approx(gradient_norms(second.gradients), rel=1e-6)
    with torch.no_grad():
        assert second.measured.double().cpu()(torch.rand(2, 3, 32, 32, dtype=torch.float64)).isfinite().all()


class Spoilt(Images):
    """The seventh batch that is read holds a pixel that is no number."""

    read = 0

    def fetch(self, indices, generator):
        images, labels = super().fetch(indices, generator)
        self.read += 1
        if self.read == 7:
            images[5, 1, 3, 3] = float("nan")
        return images, labels

    def to(self, device):
        return Spoilt(self.pixels.to(device), self.targets.to(device), self.info, self.augment)


@pytest.mark.skipif(DEVICE != "cuda", reason="on a CPU the network looks at every input")
@pytest.mark.parametrize("graph", ["on", "off"])
def test_a_pixel_that_is_no_number_ends_the_run_and_its_step_is_named(tmp_path, graph):
    t = trainer_here(tmp_path, pictures(kind=Spoilt), RunOptions(cuda_graph=graph))
    with pytest.raises(se.SpikformerError, match="^input holds NaN or inf in epoch 1, step 7, .*good checkpoint: none"):
        t.epoch()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("graph", sorted({GRAPH, "off"}))
def test_a_loss_that_is_not_finite_ends_the_run_and_its_step_is_named(tmp_path, graph):
    t = trainer_here(tmp_path, pictures(), RunOptions(cuda_graph=graph))

    def spoil(number):
        if number == 7:
            with torch.no_grad():
                t.model.head.bias[3] = float("nan")

    with pytest.raises(se.SpikformerError, match="^loss is nan in epoch 1, step 7, learning rate"):
        list(steps_of(t, before=spoil))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("graph", "precision"), [(GRAPH, "bf16"), ("off", "bf16"), ("off", "fp16")])
@pytest.mark.parametrize("operations", ["few", "all"])
def test_a_step_and_its_batch_wait_for_nothing(tmp_path, graph, precision, operations):
    augment = replace(EVERYTHING, operations=operations, mixup=0.8, cutmix=1.0)
    splits, options = pictures(32 * 25, augment), RunOptions(cuda_graph=graph)
    t = trainer_here(tmp_path, splits, options, precision=precision, augment=augment)

    def forbid(number):
        if number == 9 and DEVICE == "cuda":  # all kernels are compiled, and the graph is there
            torch.cuda.set_sync_debug_mode("error")

    try:
        assert list(steps_of(t, stop=21, before=forbid)) == list(range(1, 22))
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    t.read()
    assert t.progress.seen == 21 * 32 and 0 < t.progress.loss / t.progress.seen < 10


@pytest.mark.parametrize("where", sorted({"cpu", DEVICE}))
def test_batches_made_ahead_are_the_same(where):
    split = pictures().train.to(where)
    plain = list(batches(split, 32, train=True, seed=3))
    kept = []
    for inputs, targets in ahead(batches(split, 32, train=True, seed=3), HERE.device):
        if DEVICE == "cuda":
            torch.cuda._sleep(2_000_000)  # the main stream is late
        kept.append((inputs + 0, targets + 0))
    assert len(plain) == len(kept) == 12
    for (x, y), (inputs, targets) in zip(plain, kept, strict=True):
        assert torch.equal(x.to(DEVICE), inputs) and torch.equal(y.to(DEVICE), targets)


def test_a_whole_run_is_fast_by_itself_and_goes_on_elsewhere(tmp_path):
    recipe = Recipe(epochs=3, warmup_epochs=1, batch_size=64, samples_per_class=100)
    score = train(recipe, tmp_path / "run", HERE, RunOptions(checkpoint_every=2))
    config, _, _ = read_config(tmp_path / "run")
    assert config.precision == precision_for(HERE.device) and score.total == 359
    state = torch.load(tmp_path / "run" / "resume.pt", weights_only=True, map_location="cpu")
    rows = state["progress"]["rows"]
    assert [row["lr"] for row in rows] == [learning_rate(recipe, e + 14 / 15) for e in range(3)]  # 1,000 images
    assert rows[-1]["loss"] < rows[0]["loss"] and all(0 < row["rate"] < 1 and row["grad/head"] > 0 for row in rows)
    there = train(recipe, tmp_path / "run", DistributedContext(torch.device("cpu")))  # it is finished: only measured
    assert there.accuracy == pytest.approx(score.accuracy, abs=0.02)
