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
from spikformer_edu.training import Recipe, RunOptions, choose_device, evaluate, join, leave, load_splits, recipe_for
from spikformer_edu.training.distributed import Place, sync_batch_norm
from spikformer_edu.training.loop import Trainer
from spikformer_edu.training.plan import plan

SIZE = dict(dim=32, depth=1, heads=2, in_channels=3, pool=(False, True, True, False), time_steps=3)


def network():
    torch.manual_seed(0)
    return se.Spikformer(se.SpikformerConfig(**SIZE)).double()


def batch(count):
    random = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=random)
    return images, torch.randint(10, (count,), generator=random)


def one_step(model, images, labels):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss


def work(rank, world, port, start, folder):
    """One of the processes: half the batch, statistics over both halves."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    place = Place(torch.device("cpu"), rank, world)
    model = network()
    model.load_state_dict(torch.load(start, weights_only=True))
    sync_batch_norm(model)
    images, labels = batch(8)
    loss = one_step(DistributedDataParallel(model), images[rank::world], labels[rank::world])
    mean = place.total(float(loss.detach()))[0] / world
    assert place.share(f"from {rank}") == "from 0"
    assert place.any(rank == 1) and not place.any(False)
    if rank == 0:
        torch.save({"loss": mean, **model.state_dict()}, folder / "ours.pt")
    leave()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    model = network()
    awaken(model, batch(8)[0])
    torch.save(model.state_dict(), tmp_path / "start.pt")
    model.train()
    loss = one_step(model, *batch(8))
    mp.spawn(work, (2, free_port(), tmp_path / "start.pt", tmp_path), nprocs=2)
    theirs = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert theirs.pop("loss") == pytest.approx(float(loss.detach()), abs=1e-12)
    assert theirs.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters()), "a silent network would prove nothing"


def talk_and_leave(rank, world, store):
    torch.set_num_threads(1)
    for turn in range(20):
        dist.init_process_group("gloo", init_method=f"file://{store}{turn}", rank=rank, world_size=world)
        assert Place(torch.device("cpu"), rank, world).total(turn) == [world * turn]
        leave()


def test_leaving_at_once_after_the_last_message_ends(tmp_path):
    group = mp.spawn(talk_and_leave, (2, tmp_path / "store"), nprocs=2, join=False)
    limit = time.monotonic() + 60
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


SMALL = ["--epochs", 1, "--warmup-epochs", 0, "--batch-size", 64, "--time-steps", 2, "--toy", 40, "--device", "cpu"]


def test_torchrun_trains_and_only_the_first_process_writes_and_speaks(tmp_path):
    done = torchrun(*SMALL, "--sync-bn", "--no-figures", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1 and done.stdout.count("epoch   1") == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["total"] == 359
    assert json.loads((tmp_path / "run" / "config.json").read_text())["provenance"]["processes"] == 2
    again = se.load_run(tmp_path / "run")  # a network that one process can use
    assert again.results == results and again.recipe == replace(again.recipe, sync_bn=True)


def test_only_the_first_process_holds_the_run_and_all_are_told_when_another_does(tmp_path):
    long = [*SMALL, "--toy", 1, "--batch-size", 10, "--epochs", 1000, "--no-figures", "--out", tmp_path / "run"]
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


def test_torchrun_that_is_asked_to_stop_saves_the_run(tmp_path):
    """It hands SIGTERM to each process and to those that read for it."""
    folder = tmp_path / "run"
    few = [*SMALL, "--toy", 1, "--batch-size", 10, "--epochs", 1000, "--workers", 1, "--no-figures", "--out", folder]
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


@pytest.mark.parametrize(
    "more",
    [(), ("--ema-decay", 0.5), ("--toy", 1, "--accumulate", 8)],  # of the last, each process has 5 samples for 8 parts
    ids=lambda more: "-".join(map(str, more)) or "plain",
)
def test_the_network_that_is_kept_is_the_one_that_was_validated(tmp_path, more):
    awake = ("--weights", "digits-2-64", "--lr", 0.01)  # the statistics of a silent network say nothing
    done = torchrun(*SMALL, *awake, *more, "--no-figures", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(open(tmp_path / "run" / "metrics.csv"))
    run = se.load_run(tmp_path / "run", "last")
    score = evaluate(run.model, load_splits(run.recipe).val, Place(torch.device("cpu")))
    assert score.loss == pytest.approx(float(row["val_loss"]), rel=1e-5)
    assert score.accuracy == float(row["val_accuracy"])


def test_more_processes_than_samples(tmp_path, monkeypatch, one_line):
    place = Place(torch.device("cpu"), rank=10, world=11)
    splits = load("digits", toy=1)
    with pytest.raises(se.SpikformerError) as excinfo:
        Trainer(Recipe(batch_size=11, toy=1), tmp_path, place, splits, RunOptions())
    one_line(excinfo, "10 training samples for 11 processes")
    monkeypatch.setattr(Place, "total", lambda self, *numbers: list(numbers))
    score = evaluate(se.spikformer("digits-2-64"), splits.val, place)
    assert (score.loss, score.correct, score.total) == (0, 0, 10)  # this process has nothing to add


def test_a_plan_of_several_processes_is_printed_once():
    done = torchrun(*SMALL, "--dry-run")
    assert done.returncode == 0 and done.stdout.count("recipe of digits") == 1, done.stderr
    assert "destroy_process_group" not in done.stderr


def test_half_a_place_is_one_line(monkeypatch, one_line):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(se.SpikformerError) as excinfo:
        join("cpu")
    one_line(excinfo, "WORLD_SIZE=2 without LOCAL_RANK", "torchrun")
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(se.SpikformerError) as excinfo:
        join("cpu")
    one_line(excinfo, "LOCAL_RANK=first is no number", "torchrun")


def test_a_numbered_gpu_is_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # as if there were two
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cuda:1") == torch.device("cuda:1") == chosen[0]


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
        place = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "spikformer_edu.train", "--device", "cpu", "--out", str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | place, timeout=100)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    line = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "cannot reach the other processes" in line and "address already in use" in line
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # a real step of the largest network
def test_sharding_the_largest_preset_would_not_make_room_for_one_more_image(tmp_path):
    """Why there is no FSDP: docs/guides/cluster.md."""
    recipe = replace(recipe_for("imagenet"), model="imagenet-8-768")
    planned = plan(recipe, Place(torch.device("cpu")), data_dir=tmp_path, step_images=1)
    state = 16 * planned.parameters  # weights, gradients and two moments of AdamW, four bytes each
    assert 0.98 < state / 2**30 < 1.0
    assert 7 / 8 * state < planned.saved_bytes
