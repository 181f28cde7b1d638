"""Several processes train as one: real processes, real gloo."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from reference import awaken
from torch.nn.parallel import DistributedDataParallel

import spikformer_edu as se
from spikformer_edu.data import load
from spikformer_edu.training import (
    Recipe,
    RunOptions,
    choose_device,
    evaluate,
    init_distributed,
    load_splits,
    recipe_for,
    shutdown,
)
from spikformer_edu.training.distributed import DistributedContext, sync_batch_norm
from spikformer_edu.training.loop import Trainer
from spikformer_edu.training.monitor import Rates
from spikformer_edu.training.plan import plan

SIZE = dict(dim=32, depth=1, heads=2, in_channels=3, pool=(False, True, True, False), time_steps=3)


def network():
    torch.manual_seed(0)
    return se.Spikformer(se.SpikformerConfig(**SIZE)).double()


def batch(count):
    random = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=random)
    return images, torch.randint(10, (count,), generator=random)


def one_step(model, images, labels, weight=1.0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = F.cross_entropy(model(images), labels) * weight
    loss.backward()
    optimizer.step()
    return loss


SHARED = {  # a batch of this many samples for two processes
    "8 images": (8, False),
    "3 images": (3, False),
    "3 recordings": (3, True),
}


def shared_batch(name):
    count, frames = SHARED[name]
    images, labels = batch(count)
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64).view(3, 1, 1, 1, 1)
    return (images * scale if frames else images), labels


def work(rank, world, port, folder):
    """One of the processes: its share of each batch, statistics over all shares."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    context = DistributedContext(torch.device("cpu"), rank, world)
    assert context.broadcast(f"from {rank}") == "from 0"
    assert context.any_rank(rank == 1) and not context.any_rank(False)
    assert context.all_reduce_mean(torch.tensor([float(rank), 0.0])).tolist() == [0.5, 0.0]
    for name in SHARED:
        model = network()
        model.load_state_dict(torch.load(folder / f"{name}.start", weights_only=True))
        sync_batch_norm(model)
        images, labels = shared_batch(name)
        mine = slice(rank, None, world)
        weight = len(labels[mine]) * world / len(labels)
        rates = Rates(model)
        rates.step()
        loss = one_step(DistributedDataParallel(model), images[..., mine, :, :, :], labels[mine], weight)
        loss = context.all_reduce_sum(float(loss.detach()))[0] / world
        rates = rates.pop(context.all_reduce_mean)
        torch.save({"loss": loss, "rates": rates, **model.state_dict()}, folder / f"{name}.{rank}")
    for parts in PARTS:
        made = trainer(folder, context, parts)
        inputs, targets = made.splits.train.fetch(torch.arange(5)[rank::world], None)
        made.step(inputs, targets)
        torch.save(step_of(made), folder / f"step in {parts}.{rank}")
    shutdown()


PARTS = {1: [[0, 1, 2, 3, 4]], 3: [[0, 2, 1], [4, 3]]}  # asked for: which of five samples are computed together


def trainer(folder, context, parts):
    """Five samples for a batch of 12."""
    recipe = Recipe(batch_size=12, time_steps=2, grad_accum_steps=parts, sync_bn=True)
    recipe = replace(
        recipe, label_smoothing=0.0, init_from="digits-2-64"
    )  # a network that never fires would prove nothing
    splits = load("digits")
    five = type(splits.train)(splits.train.images[:5], splits.train.targets[:5])
    made = Trainer(recipe, folder / "none", context, replace(splits, train=five), RunOptions())
    made.model.train()
    return made


def step_of(made):
    """Gradients and running statistics after a step."""
    gradients = {name: p.grad for name, p in made.model.named_parameters()}
    return gradients | {name: b for name, b in made.model.named_buffers() if b.numel()}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes leave of every batch in ``SHARED`` and of a step in so many ``PARTS``."""
    folder = tmp_path_factory.mktemp("two")
    for name in SHARED:
        model = network()
        awaken(model, shared_batch(name)[0])
        torch.save(model.state_dict(), folder / f"{name}.start")
    mp.spawn(work, (2, free_port(), folder), nprocs=2)
    return folder


def assert_close(actual, expected, rtol, atol):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_two_processes_equal_one_with_the_whole_batch(two_processes, name):
    model = network()
    model.load_state_dict(torch.load(two_processes / f"{name}.start", weights_only=True))
    model.train()
    rates = Rates(model)
    rates.step()
    loss, rates = one_step(model, *shared_batch(name)), rates.pop()
    for rank in range(2):
        theirs = torch.load(two_processes / f"{name}.{rank}", weights_only=True)
        found = theirs.pop("rates")
        if name == "8 images":  # of equal shares the mean is that of all
            assert all(found[layer] == pytest.approx(rates[layer], abs=1e-6) for layer in rates)
        assert theirs.pop("loss") == pytest.approx(float(loss.detach()), abs=1e-12)
        assert_close(theirs, model.state_dict(), rtol=1e-9, atol=1e-12)
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters()), (
        "a network that never fires would prove nothing"
    )


@pytest.mark.slow
@pytest.mark.parametrize("parts", PARTS)
def test_a_step_on_unequal_shares_has_the_gradient_of_the_whole(two_processes, parts):
    """Three samples and two: each counts a fifth. Processes have equally many parts, or one would wait without end."""
    made = trainer(two_processes, DistributedContext(torch.device("cpu")), 1)
    inputs, targets = made.splits.train.fetch(torch.arange(5), None)
    for together in PARTS[parts]:
        (F.cross_entropy(made.model(inputs[together]), targets[together], reduction="sum") / 5).backward()
    for rank in range(2):
        theirs = torch.load(two_processes / f"step in {parts}.{rank}", weights_only=True)
        assert_close(theirs, step_of(made), rtol=1e-4, atol=3e-6)  # float32 sums in another order
    assert all(float(p.grad.abs().max()) > 1e-6 for p in made.model.parameters() if p.dim() > 1)


def talk_and_shut_down(rank, world, store):
    torch.set_num_threads(1)
    for turn in range(20):
        dist.init_process_group("gloo", init_method=f"file://{store}{turn}", rank=rank, world_size=world)
        assert DistributedContext(torch.device("cpu"), rank, world).all_reduce_sum(turn) == [world * turn]
        shutdown()


@pytest.mark.slow
def test_leaving_at_once_after_the_last_message_ends(tmp_path):
    group = mp.spawn(talk_and_shut_down, (2, tmp_path / "store"), nprocs=2, join=False)
    limit = time.monotonic() + 600  # only a hang reaches it
    try:
        while not group.join(1):
            assert time.monotonic() < limit, "a process hangs"
    finally:
        for process in group.processes:
            process.kill()


def torchrun(*arguments, processes=2, call=subprocess.run, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), "-m", "spikformer_edu.train"]
    options |= dict(
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return call([*command, *map(str, arguments)], **options)


SMALL = [
    "--epochs",
    1,
    "--warmup-epochs",
    0,
    "--batch-size",
    64,
    "--time-steps",
    2,
    "--samples-per-class",
    40,
    "--device",
    "cpu",
]


@pytest.mark.slow
def test_torchrun_trains_and_only_the_first_process_writes_and_speaks(tmp_path):
    done = torchrun(*SMALL, "--sync-bn", "--no-figures", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1 and done.stdout.count("epoch   1") == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["total"] == 359
    assert json.loads((tmp_path / "run" / "config.json").read_text())["provenance"]["processes"] == 2
    again = se.load_run(tmp_path / "run")  # a network that one process can use
    assert again.results == results and again.recipe == replace(again.recipe, sync_bn=True)


@pytest.mark.slow
def test_only_the_first_process_holds_the_run_and_all_are_told_when_another_does(tmp_path):
    long = [
        *SMALL,
        "--samples-per-class",
        1,
        "--batch-size",
        10,
        "--epochs",
        1000,
        "--no-figures",
        "--out",
        tmp_path / "run",
    ]
    command = [sys.executable, "-m", "spikformer_edu.train", *map(str, long)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        assert " into " in running.stdout.readline()
        done = torchrun(*long, "--resume")
        assert done.returncode != 0 and running.poll() is None
        assert done.stderr.count(f"error: another process trains into {tmp_path / 'run'}: wait for its end") == 2
        assert "epoch" not in done.stdout
    finally:
        running.kill()
    running.wait()
    ended = torchrun(*long, "--epochs", 1, "--out", tmp_path / "new", processes=2)
    assert ended.returncode == 0 and not (tmp_path / "new" / ".lock").exists(), ended.stderr


@pytest.mark.slow
def test_torchrun_that_is_asked_to_stop_saves_the_run(tmp_path):
    """It hands SIGTERM to each process and to those that read for it."""
    folder = tmp_path / "run"
    few = [
        *SMALL,
        "--samples-per-class",
        1,
        "--batch-size",
        10,
        "--epochs",
        1000,
        "--workers",
        1,
        "--no-figures",
        "--out",
        folder,
    ]
    job = torchrun(*few, call=subprocess.Popen)
    try:
        while not (folder / "resume.pt").exists():
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.01)
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=100)
    finally:
        job.kill()
    assert job.returncode != 0
    assert said.count(f"error: asked to stop: the run is saved, go on with --out {folder} --resume\n") == 2, said
    assert torch.load(folder / "resume.pt", weights_only=True)["progress"]["epoch"] >= 1
    assert not (folder / ".lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--ema-decay", 0.5),
        ("--samples-per-class", 1, "--grad-accum-steps", 8),
    ],  # of the last, each process has 5 samples for 8 parts
    ids=lambda more: "-".join(map(str, more)) or "plain",
)
def test_the_network_that_is_kept_is_the_one_that_was_validated(tmp_path, more):
    awake = ("--init-from", "digits-2-64", "--lr", 0.01)  # the statistics of a network that never fires say nothing
    done = torchrun(*SMALL, *awake, *more, "--no-figures", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(open(tmp_path / "run" / "metrics.csv"))
    run = se.load_run(tmp_path / "run", "last")
    score = evaluate(run.model, load_splits(run.recipe).val, DistributedContext(torch.device("cpu")))
    assert score.loss == pytest.approx(float(row["val_loss"]), rel=1e-5)
    assert score.accuracy == float(row["val_accuracy"])


def test_more_processes_than_samples(tmp_path, monkeypatch, one_line):
    context = DistributedContext(torch.device("cpu"), rank=10, world=11)
    splits = load("digits", samples_per_class=1)
    with pytest.raises(se.SpikformerError) as excinfo:
        Trainer(Recipe(batch_size=11, samples_per_class=1), tmp_path, context, splits, RunOptions())
    one_line(excinfo, "10 training samples for 11 processes")
    monkeypatch.setattr(DistributedContext, "all_reduce_sum", lambda self, *numbers: list(numbers))
    score = evaluate(se.spikformer("digits-2-64"), splits.val, context)
    assert (score.loss, score.correct, score.total) == (0, 0, 10)  # this process has nothing to add


@pytest.mark.slow
def test_a_plan_of_several_processes_is_printed_once():
    done = torchrun(*SMALL, "--dry-run")
    assert done.returncode == 0 and done.stdout.count("recipe of digits") == 1, done.stderr
    assert "destroy_process_group" not in done.stderr


def test_half_a_place_is_one_line(monkeypatch, one_line):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(se.SpikformerError) as excinfo:
        init_distributed("cpu")
    one_line(excinfo, "WORLD_SIZE=2 without LOCAL_RANK", "torchrun")
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(se.SpikformerError) as excinfo:
        init_distributed("cpu")
    one_line(excinfo, "LOCAL_RANK=first is no number", "torchrun")


def test_a_numbered_gpu_is_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # as if there were two
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cuda:1") == torch.device("cuda:1") == chosen[0]


@pytest.mark.slow
def test_a_batch_that_does_not_divide_ends_the_job_with_its_reason(tmp_path):
    done = torchrun(*SMALL, "--batch-size", 33, "--out", tmp_path / "run")
    assert done.returncode != 0
    assert "batch_size=33 does not divide among 2 processes" in done.stderr
    assert "Traceback" not in done.stderr.split("torch/distributed")[0].split("error:")[0]


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        context = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "spikformer_edu.train", "--device", "cpu", "--out", str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | context, timeout=100)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    line = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "cannot reach the other processes" in line and "address already in use" in line
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # a real step of the largest network
def test_sharding_the_largest_preset_would_not_make_room_for_one_more_image(tmp_path):
    """Why there is no FSDP: docs/guides/cluster.md."""
    recipe = replace(recipe_for("imagenet"), model="imagenet-8-768")
    planned = plan(recipe, DistributedContext(torch.device("cpu")), RunOptions(data_dir=tmp_path), step_images=1)
    state = 16 * planned.parameters  # weights, gradients and two moments of AdamW, four bytes each
    assert 0.98 < state / 2**30 < 1.0
    assert 7 / 8 * state < planned.saved_bytes
