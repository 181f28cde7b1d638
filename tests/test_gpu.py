"""On a CUDA GPU: the same spikes as on the CPU. Skipped without one; SPIKFORMER_TEST_DEVICE=cpu tries the tests."""

import copy
import csv
import os

import pytest
import torch
from reference import awaken
from test_speed import assert_same, outcome

import spikformer_edu as se
from spikformer_edu.benchmarks import measure
from spikformer_edu.benchmarks.peers import Step, case_of
from spikformer_edu.kernels.choice import plain_path
from spikformer_edu.training import DistributedContext, Recipe, RunOptions, load_splits, train
from spikformer_edu.training.loop import Trainer
from spikformer_edu.training.pace import epochs_in
from spikformer_edu.training.plan import plan
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
    assert mine[-1]["loss"] < 0.9 * mine[0]["loss"], mine  # it learns at all


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
