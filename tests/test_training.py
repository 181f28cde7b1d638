"""The training loop on real digits: what it writes, that it resumes to the same bits, and how it fails."""

import csv
import errno
import fcntl
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spikformer_edu import SpikformerError, __version__
from spikformer_edu.atomic import write_csv, write_file
from spikformer_edu.attention import ATTENTION
from spikformer_edu.data import Augment, batches, load
from spikformer_edu.evaluate import Options as EvaluateOptions
from spikformer_edu.evaluate import main as evaluate_command
from spikformer_edu.model import Spikformer
from spikformer_edu.presets import configure
from spikformer_edu.provenance import provenance
from spikformer_edu.training import (
    RECIPES,
    DistributedContext,
    Recipe,
    evaluate,
    learning_rate,
    load_run,
    loop,
    recipe_for,
    train,
)
from spikformer_edu.training.checkpoint import PRETRAINED, load_weights, read_config, start_from
from spikformer_edu.training.data_record import describe_data
from spikformer_edu.training.loop import RunOptions, Trainer, parameter_groups
from spikformer_edu.training.plan import describe_plan, plan
from spikformer_edu.training.recipe import check_recipe
from spikformer_edu.training.run_folder import LOCK, check_same_data, lock, summary

CPU = DistributedContext(torch.device("cpu"))
SMALL = replace(RECIPES["digits"], epochs=2, warmup_epochs=1, batch_size=64, time_steps=2, samples_per_class=40)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short unbroken run on 400 digits: (folder, score)."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train(SMALL, folder, CPU)


def weights(folder):
    return load_file(folder / "last.safetensors")


CLOCK = ("images_per_s", "seconds", "peak_memory_gib")


def assert_same_state(a, b):
    """Equal to the last bit: all of a checkpoint but what the clock and the memory of the machine say."""
    assert a.keys() == b.keys()
    if "rows" in a:
        a, b = ({**x, "rows": [{k: v for k, v in r.items() if k not in CLOCK} for r in x["rows"]]} for x in (a, b))
    for key, value in a.items():
        if isinstance(value, dict):
            assert_same_state(value, b[key])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, b[key]), key
        else:
            assert value == b[key], key


def assert_same_run(a, b):
    """Equal to the last bit: weights, optimizer, log and result."""
    for name in ("best.safetensors", "last.safetensors"):
        assert_same_state(load_file(a / name), load_file(b / name))
    assert_same_state(*(torch.load(f / "resume.pt", weights_only=True) for f in (a, b)))
    results = [json.loads((folder / "results.json").read_text()) for folder in (a, b)]
    assert results[0] | {"seconds": 0} == results[1] | {"seconds": 0}


def test_learning_rate_warms_up_and_follows_a_cosine_to_the_floor():
    recipe = Recipe(epochs=100, warmup_epochs=10, cooldown_epochs=5, lr=1.0, warmup_lr=0.1, min_lr=0.2)
    assert learning_rate(recipe, 0) == pytest.approx(0.1)
    assert learning_rate(recipe, 5) == pytest.approx(0.55)
    assert learning_rate(recipe, 10) == pytest.approx(1.0)
    assert learning_rate(recipe, 55) == pytest.approx(0.6)
    assert learning_rate(recipe, 100) == learning_rate(recipe, 104.9) == pytest.approx(0.2)


def test_weight_decay_spares_biases_and_norms(finished):
    model = load_run(finished[0]).model
    decayed, spared = parameter_groups(model, 0.5)
    assert decayed["weight_decay"] == 0.5 and spared["weight_decay"] == 0
    assert {p.dim() for p in decayed["params"]} == {2, 4}
    assert sum(p.numel() for g in (decayed, spared) for p in g["params"]) == 163_906


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_training_and_its_networks_are_float32_whatever_the_default_dtype(finished, tmp_path, default_dtype, dtype):
    images, _ = load("digits").test.fetch(torch.arange(9), None)
    with torch.no_grad():
        expected = load_run(finished[0]).model(images)
        default_dtype(dtype)
        assert torch.equal(load_run(finished[0]).model(images), expected) and expected.std() > 0
    assert plan(TINY, CPU).saved_bytes > 0
    trainer = Trainer(TINY, tmp_path, CPU, load("digits", samples_per_class=1), RunOptions())
    trainer.epoch()
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert math.isfinite(trainer.progress.rows[0]["loss"])


def test_a_run_folder_holds_what_it_promises(finished):
    folder, score = finished
    assert {p.name for p in folder.iterdir()} == {
        *("config.json", "metrics.csv", "best.safetensors", "last.safetensors", "resume.pt", "results.json")
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"]["batch_size"] == 64 and config["network"]["time_steps"] == 2
    assert {"command", "commit", "torch", "snntorch", "device"} <= config["provenance"].keys()
    data = config["data"]
    assert (data["dataset"], data["title"]) == ("digits", "Handwritten digits (scikit-learn)")
    assert data["classes"] == list("0123456789") and data["trained_on"] == ["digits"] and data["simulated"] is False
    splits = load("digits", samples_per_class=40)
    for name in ("train", "val", "test"):
        assert data["splits"][name] == splits[name].fingerprint(data["classes"])
    assert config["provenance"]["spikformer_edu"] == __version__
    rows = list(csv.DictReader(open(folder / "metrics.csv")))
    assert [(row["epoch"], row["data"]) for row in rows] == [("1", "digits"), ("2", "digits")]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert 0 < float(rows[1]["rate"]) < 1
    best = min(rows, key=lambda row: float(row["val_loss"]))
    results = json.loads((folder / "results.json").read_text())
    assert results["best_epoch"] == int(best["epoch"])
    assert results["correct"] == score.correct and results["total"] == 359
    assert results["trained_on"] == ["digits"] and results["simulated"] is False
    assert results["seconds"] > sum(float(row["seconds"]) for row in rows)  # validation, files and the test too


def test_evaluate_reproduces_the_reported_score_to_the_last_digit(finished):
    folder, score = finished
    again = evaluate(load_run(folder).model, load("digits").test, CPU)
    assert (again.correct, again.total, again.loss) == (score.correct, score.total, score.loss)


def test_evaluate_keeps_nothing_for_a_backward_pass(finished):
    model, seen = load_run(finished[0]).model, []
    model.head.register_forward_hook(lambda layer, inputs, output: seen.append(output.requires_grad))
    evaluate(model, load("digits").test, CPU)
    assert seen and not any(seen)


DIGITS = tuple("0123456789")


@pytest.mark.slow
def test_a_run_starts_from_another_one_with_other_time_steps(finished, tmp_path, capsys):
    before = tmp_path / "before"
    shutil.copytree(finished[0], before)
    recipe = replace(SMALL, init_from=str(before), time_steps=4, epochs=1, warmup_epochs=0)
    trainer = Trainer(
        recipe, tmp_path / "run", CPU, load("digits", samples_per_class=recipe.samples_per_class), RunOptions()
    )
    assert trainer.model.config.time_steps == 4
    assert_same_state(load_file(before / "best.safetensors"), trainer.model.state_dict())
    score = train(recipe, tmp_path / "run", CPU)
    assert capsys.readouterr().out.startswith(f"weights of {before}, trained on digits\n")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["init_from"] == str(before)
    shutil.rmtree(before)  # needed at the start alone
    assert train(recipe, tmp_path / "run", CPU) == score


def test_a_run_starts_from_one_with_another_attention(finished):
    for attention in ATTENTION:
        model = Spikformer(configure("digits-2-64", attention=attention))
        if ATTENTION[attention].maps == 2:  # without V there are fewer weights
            with pytest.raises(SpikformerError, match="checkpoint of another model"):
                start_from(model, finished[0], DIGITS)
            continue
        start_from(model, finished[0], DIGITS)
        assert_same_state(model.state_dict(), load_file(finished[0] / "best.safetensors"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model."])
def test_weights_that_a_wrapper_saved_are_the_network_s(finished, tmp_path, prefix, one_line):
    state = load_file(finished[0] / "best.safetensors")
    save_file({prefix + name: value for name, value in state.items()}, tmp_path / "w.safetensors")
    model = Spikformer(configure("digits-2-64"))
    load_weights(model, tmp_path / "w.safetensors")
    assert_same_state(model.state_dict(), state)
    save_file({prefix + name: value for name, value in state.items()} | {"loss.weight": torch.ones(10)}, tmp_path / "x")
    with pytest.raises(SpikformerError) as excinfo:
        load_weights(model, tmp_path / "x")
    one_line(excinfo, f"'loss.weight' beside the network {prefix!r}", str(tmp_path))


def test_a_head_for_other_classes_is_new_and_another_network_is_refused(finished):
    learned = load_file(finished[0] / "best.safetensors")
    for classes in (DIGITS[:7], ("zero", *DIGITS[1:])):  # fewer; as many, with another name
        model = Spikformer(configure("digits-2-64", num_classes=len(classes)))
        head = model.head.weight.clone()
        assert "the head is new" in start_from(model, finished[0], classes).as_a_start(classes)
        assert torch.equal(model.head.weight, head)
        assert_same_state(
            {k: v for k, v in model.state_dict().items() if not k.startswith("head.")},
            {k: v for k, v in learned.items() if not k.startswith("head.")},
        )
    model = Spikformer(configure("digits-2-64"))
    assert "new" not in start_from(model, finished[0], DIGITS[::-1]).as_a_start(DIGITS[::-1])
    assert torch.equal(model.head.weight, learned["head.weight"].flip(0))
    assert torch.equal(model.head.bias, learned["head.bias"].flip(0))
    wide = Spikformer(configure("digits-2-64", dim=72))
    untouched = {name: value.clone() for name, value in wide.state_dict().items()}
    with pytest.raises(SpikformerError, match="checkpoint of another model"):
        start_from(wide, finished[0], DIGITS)
    assert_same_state(wide.state_dict(), untouched)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_weights_that_are_nowhere_are_one_line(tmp_path, more):
    command = [*COMMAND, "--init-from", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"), *more]
    done = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_different_seed_is_a_different_run_and_the_same_seed_the_same(finished, tmp_path):
    train(SMALL, tmp_path / "same", CPU)
    assert_same_run(finished[0], tmp_path / "same")
    train(replace(SMALL, seed=1), tmp_path / "other", CPU)
    ours, theirs = weights(finished[0]), weights(tmp_path / "other")
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


COMMAND = [
    *(sys.executable, "-m", "spikformer_edu.train", "--epochs", "2", "--warmup-epochs", "1", "--batch-size", "64"),
    *("--time-steps", "2", "--samples-per-class", "40", "--device", "cpu", "--no-figures"),
]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in these tests: sums of several threads round differently


# A run that sends signals to itself and its readers at a given moment, from outside, as a scheduler does.
SIGNALLED = """
import multiprocessing, os, signal, subprocess, sys
from spikformer_edu import cli, train
from spikformer_edu.data import loading
from spikformer_edu.training.loop import Trainer

method, moment, *numbers = sys.argv[1].split(",")
multiprocessing.set_start_method(method)

def after(owner, name, when):
    work = getattr(owner, name)

    def then(*arguments):
        done = work(*arguments)
        if when(*arguments):
            for number in numbers:
                send = f"import os; os.killpg({os.getpgid(0)}, {number})"
                subprocess.run([sys.executable, "-c", send], start_new_session=True, check=True)
        return done

    setattr(owner, name, then)

shutdown = train.shutdown
train.shutdown = lambda: (signal.raise_signal(signal.SIGTERM), shutdown())  # comes late, and does no harm
if moment == "start of readers":
    after(loading, "start_reading", lambda loader: loader.num_workers)
else:
    after(Trainer, "step", lambda trainer, *batch: (trainer.progress.epoch, trainer.progress.batch) == (1, 2))
del sys.argv[1]
cli.run(train.main, "train", default=lambda: train.defaults(sys.argv[1:]))
"""


def signalled(moment, *arguments, cwd):
    command = [sys.executable, "-c", SIGNALLED, moment, *COMMAND[3:], *arguments]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=cwd, env=ONE_THREAD)
    return subprocess.run(command, start_new_session=True, timeout=200, check=False, **pipes)


@pytest.mark.slow
def test_a_signal_to_a_run_and_its_readers_saves_it_and_the_line_that_is_printed_goes_on(finished, tmp_path):
    folder = tmp_path / "my run"
    options = ["--workers", "2", "--out", folder, "--data-dir", tmp_path]
    twice = f"{signal.SIGTERM:d},{signal.SIGTERM:d}"  # from the scheduler and from torchrun
    done = signalled(f"fork,step,{twice}", *options, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    said, _, typed = done.stderr.strip().partition(", go on with ")
    assert said == "error: asked to stop: the run is saved"
    assert torch.load(folder / "resume.pt", weights_only=True)["progress"]["batch"] == 2
    assert shlex.split(typed) == ["--data-dir", str(tmp_path), "--out", str(folder), "--resume"]
    command = [sys.executable, "-m", "spikformer_edu.train", *shlex.split(typed), "--no-figures", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_run(finished[0], folder)


FEW = ["--samples-per-class", "2", "--batch-size", "5", "--time-steps", "1", "--out", "run"]  # four steps an epoch


@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("spawn", signal.SIGINT),
        ("fork", signal.SIGHUP),
        pytest.param("forkserver", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_readers_start_saves_the_run_as_well(tmp_path, method, number):
    done = signalled(f"{method},start of readers,{number:d}", "--workers", "2", *FEW, cwd=tmp_path)
    saved = "error: asked to stop: the run is saved, go on with --out run --resume\n"
    assert (done.returncode, done.stderr) == (2, saved)
    state = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["progress"]
    assert (state["epoch"], state["batch"]) == (0, 1) and not (tmp_path / "run" / LOCK).exists()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_keeps_the_last_checkpoint(tmp_path):
    numbers = f"{signal.SIGINT:d},{signal.SIGINT:d}"
    done = signalled(f"fork,step,{numbers}", "--workers", "1", *FEW, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    state = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["progress"]
    assert (state["epoch"], state["batch"]) == (1, 0)


TINY = Recipe(epochs=3, warmup_epochs=0, batch_size=10, time_steps=1, samples_per_class=1)  # an epoch is one step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["Trainer.step", "evaluate", "write_csv", "write_file", "load_weights"])
def test_a_signal_at_any_moment_loses_no_bit(tmp_path, monkeypatch, number, name):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(TINY, whole, CPU)
    work, calls, before = attrgetter(name)(loop), [], signal.getsignal(number)

    def signalled_every_second_time(*arguments, **options):
        calls.append(name)
        if len(calls) % 2:
            signal.raise_signal(number)
        return work(*arguments, **options)

    monkeypatch.setattr(f"spikformer_edu.training.loop.{name}", signalled_every_second_time)
    stops = 0
    while not (broken / "results.json").exists():
        try:
            train(TINY, broken, CPU)
        except SpikformerError as error:
            assert str(error) == f"asked to stop: the run is saved, go on with --out {broken} --resume"
            stops += 1
    assert stops == (len(calls) + 1) // 2 and signal.getsignal(number) == before
    assert_same_run(whole, broken)


def test_where_a_signal_ends_the_readers_too_memory_is_not_blamed(tmp_path, monkeypatch):
    def step(trainer, *batch):  # as on macOS
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated: 15.")

    monkeypatch.setattr(loop.Trainer, "step", step)
    with pytest.raises(SpikformerError, match="^asked to stop: the .* read data ended first, and start again$"):
        train(TINY, tmp_path, CPU)


def test_a_signal_before_the_first_step_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "load_splits", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SpikformerError, match="asked to stop: nothing was trained yet, start again"):
        train(TINY, tmp_path, CPU)
    assert not any(tmp_path.iterdir())


def test_a_log_may_gain_columns(tmp_path):
    write_csv(tmp_path / "metrics.csv", [{"epoch": 1}, {"epoch": 2, "grad/head": 0.5}])
    rows = list(csv.DictReader(open(tmp_path / "metrics.csv")))
    assert rows == [{"epoch": "1", "grad/head": ""}, {"epoch": "2", "grad/head": "0.5"}]


def pair(tmp_path, *arguments):
    """Two short runs started at once: (exit code, stderr) of each."""
    command = [
        *COMMAND,
        "--samples-per-class",
        "1",
        "--batch-size",
        "10",
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        *arguments,
    ]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    both = [subprocess.Popen([*command, "--seed", s], cwd=tmp_path, env=ONE_THREAD, **pipes) for s in "01"]
    return [(errors, process.returncode) for process in both for errors in [process.communicate()[1]]]


@pytest.mark.slow
def test_two_runs_started_at_once_take_two_folders(tmp_path):
    assert pair(tmp_path) == [("", 0), ("", 0)]
    folders = sorted(tmp_path.glob("runs/*"))
    assert [folder.name for folder in folders] == ["digits-2-64-1", "digits-2-64-2"]
    assert sorted(load_run(folder).recipe.seed for folder in folders) == [0, 1]


@pytest.mark.slow
def test_of_two_runs_into_one_folder_the_second_is_refused(tmp_path):
    done = sorted(pair(tmp_path, "--out", "run"))
    assert done[0] == ("", 0)
    assert done[1] == ("error: run holds a run already: give --resume to go on with it, or another --out\n", 2)
    assert (tmp_path / "run" / "results.json").exists() and not (tmp_path / "run" / LOCK).exists()


@pytest.mark.slow
def test_a_run_is_resumed_by_one_process_at_a_time_and_a_killed_one_blocks_no_other(tmp_path):
    command = [*COMMAND, "--samples-per-class", "1", "--batch-size", "10", "--epochs", "1000", "--out", "run"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ONE_THREAD)
    running = None
    try:
        for more in ([], ["--resume"]):  # a new run, then one that goes on where that was killed
            running = subprocess.Popen([*command, *more], **pipes)
            assert running.stdout.readline().endswith("into run\n"), running.stderr.read()
            while not (tmp_path / "run" / "resume.pt").exists():
                assert running.poll() is None, running.stderr.read()
                time.sleep(0.01)
            second = subprocess.run([*command, "--resume"], **pipes, timeout=60, check=False)
            said = "error: another process trains into run: wait for its end, or give another --out\n"
            assert (second.returncode, second.stdout, second.stderr) == (2, "", said)
            assert running.poll() is None and (tmp_path / "run" / LOCK).exists()
            running.kill() if not more else running.terminate()
            running.communicate()
            assert running.returncode == (2 if more else -signal.SIGKILL)
            assert (tmp_path / "run" / LOCK).exists() == (not more)
    finally:
        running.kill()
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["progress"]["epoch"] > 0


def test_a_process_that_reads_data_holds_no_lock(tmp_path):
    code = "import os, sys, time; from pathlib import Path; from spikformer_edu.training.run_folder import lock"
    code += "; lock(Path()); child = os.fork(); print(child, flush=True) if child else None; time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(SpikformerError, match="another process trains into"):
            lock(tmp_path)
        process.kill()
        process.wait()
        lock(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_that_its_owner_removes_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    tries, take = [], fcntl.lockf

    def late(file, how):
        if not tries:
            (tmp_path / LOCK).unlink()
        tries.append(file)
        take(file, how)

    monkeypatch.setattr(fcntl, "lockf", late)
    lock(tmp_path)
    assert len(tries) == 2 and os.path.samestat(os.fstat(tries[1]), (tmp_path / LOCK).stat())


def test_without_locks_training_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:

        def fails(file, how):
            raise OSError(errno.ENOLCK, "No locks available")

        patched.setattr(fcntl, "lockf", fails)
        lock(tmp_path)
    (tmp_path / LOCK).unlink()
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    lock(tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_last_weights_are_kept_by_their_number(tmp_path):
    t = Trainer(replace(TINY, epochs=1000), tmp_path, CPU, load("digits", samples_per_class=1), RunOptions(keep=2))
    t.progress.epoch = 998
    for _ in range(2):
        t.epoch()
        (tmp_path / "epoch-998.safetensors").touch()
    t.progress.epoch = 1000
    t.epoch()
    assert {p.name for p in tmp_path.glob("epoch-*")} == {"epoch-1000.safetensors", "epoch-1001.safetensors"}


def test_fewer_checkpoints_change_nothing_but_how_often_files_are_written(tmp_path, monkeypatch):
    """Seven epochs; the best one is between two writes, and the last one is not a multiple of three."""
    recipe = replace(TINY, epochs=7)
    losses, written = [9.0, 8.0, 7.0, 3.0, 6.0, 5.0, 4.0], []
    work = loop.write_weights

    def scored(model, split, *arguments, **options):
        score = evaluate(model, split, *arguments, **options)
        return replace(score, loss=next(answers, 0.5))  # the last one is that of the test set

    def noted(path, state):
        written.append(path.name)
        work(path, state)

    monkeypatch.setattr(loop, "evaluate", scored)
    for every in (1, 3):
        answers = iter(losses)
        if every == 3:
            monkeypatch.setattr(loop, "write_weights", noted)
        train(recipe, tmp_path / f"{every}", CPU, RunOptions(checkpoint_every=every, keep=2))
    assert json.loads((tmp_path / "3" / "results.json").read_text())["best_epoch"] == 4
    assert_same_run(tmp_path / "1", tmp_path / "3")
    names = ["best.safetensors", "last.safetensors"]
    assert [name for name in written if name in names] == names * 2 + names[1:]  # after epochs 3, 6 and 7
    assert [len(list(csv.reader(open(tmp_path / f / "metrics.csv")))) for f in "13"] == [8, 8]
    kept = {path.name for path in (tmp_path / "3").glob("epoch-*")}
    assert kept == {"epoch-006.safetensors", "epoch-007.safetensors"}


@pytest.mark.slow
def test_a_run_that_is_stopped_between_two_checkpoints_keeps_every_step(tmp_path, monkeypatch):
    recipe, steps, step = replace(SMALL, epochs=3), [], Trainer.step  # 400 images: six steps an epoch

    def asked_in_the_third_epoch(trainer, *batch):
        step(trainer, *batch)
        steps.append(batch)
        if len(steps) % 14 == 0:
            signal.raise_signal(signal.SIGTERM)

    often, never = tmp_path / "often", tmp_path / "never"
    for folder, every in ((often, 1), (never, 100)):
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "step", asked_in_the_third_epoch)
            with pytest.raises(SpikformerError, match="asked to stop: the run is saved"):
                train(recipe, folder, CPU, RunOptions(checkpoint_every=every))
        state = torch.load(folder / "resume.pt", weights_only=True)["progress"]
        assert (state["epoch"], state["batch"], len(state["rows"])) == (2, 2, 2)
        assert len(list(csv.reader(open(folder / "metrics.csv")))) == 3
    for name in ("best.safetensors", "last.safetensors"):
        assert_same_state(*(load_file(folder / name) for folder in (often, never)))
    for folder in (often, never):
        train(recipe, folder, CPU, RunOptions(checkpoint_every=100))
    assert_same_run(often, never)


def test_provenance_needs_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance(CPU.device)["commit"] == ""


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(folder, *files):
    """A repository with these files, and its commit."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init")
    git(folder, "add", *files)
    git(folder, "commit", "--allow-empty", "-m", "theirs")
    return git(folder, "rev-parse", "HEAD")


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_run_names_the_commit_of_this_package_and_no_other(tmp_path, monkeypatch):
    def commit_in(root):
        monkeypatch.setattr("spikformer_edu.provenance.__file__", str(root / module))
        found = provenance(CPU.device)
        assert found["spikformer_edu"] == __version__
        return found["commit"]

    module = Path("spikformer_edu", "provenance.py")
    ours, installed, copied = (tmp_path / name for name in ("ours", "theirs/.venv/lib/site-packages", "copied"))
    for root in (ours, installed, copied):
        (root / module).parent.mkdir(parents=True)
        (root / module).touch()
    (ours / "pyproject.toml").write_text((Path(__file__).parents[1] / "pyproject.toml").read_text())
    (copied / "pyproject.toml").write_text('name = "their-project"')

    assert commit_in(ours) == ""
    commit = repository(ours, module, "pyproject.toml")
    assert commit_in(ours) == commit and len(commit) == 40
    (ours / module).write_text("changed")
    assert commit_in(ours) == commit + " with local changes"

    repository(tmp_path / "theirs")
    assert commit_in(installed) == ""  # not in their repository
    repository(copied, module, "pyproject.toml")
    assert commit_in(copied) == ""  # in their repository, which is not this project


def test_memory_that_cannot_be_asked_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    score = train(replace(TINY, epochs=1), tmp_path, CPU)
    text = summary(tmp_path, score)
    assert "images/s" in text and "GiB" not in text


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_is_one_line_with_the_remedy(tmp_path, monkeypatch, one_line, error):
    def forward(self, x):
        raise error

    monkeypatch.setattr(Spikformer, "forward", forward)
    for remedies, work in (
        (("--activation-checkpointing", "--grad-accum-steps"), lambda: train(TINY, tmp_path, CPU)),
        (("--batch-size",), lambda: evaluate_command(EvaluateOptions(device="cpu"))),
        (("use a smaller model",), lambda: plan(TINY, CPU)),
        (("try in another --out a",), lambda: train(TINY, tmp_path, CPU, RunOptions(activation_checkpointing=True))),
    ):
        with pytest.raises(SpikformerError, match="^out of memory: ") as excinfo:
            work()
        one_line(excinfo, *remedies)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(Spikformer, "forward", lambda self, x: x.view(-1, 7))
    with pytest.raises(RuntimeError, match="invalid for input"):
        train(TINY, tmp_path, CPU)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (dict(weight_decay=math.nan), "weight_decay=nan: give a finite number"),
        (dict(weight_decay=math.inf), "weight_decay=inf"),
        (dict(lr=math.nan), "lr=nan: give a learning rate"),
        (dict(label_smoothing=math.nan), "label_smoothing=nan"),
        (dict(ema_decay=math.nan), "ema_decay=nan"),
        (dict(seed=2**70), r"seed=1180591620717411303424: give a number from 0 to below 2\*\*63"),
        (dict(seed=-1), "seed=-1"),
        (dict(split_seed=2**32), r"split_seed=4294967296: give a number from 0 to below 2\*\*32"),
    ],
)
def test_a_recipe_refuses_numbers_that_are_none(values, says):
    with pytest.raises(SpikformerError, match=says):
        Recipe(**values)


def with_augment(dataset, **settings):
    recipe = recipe_for(dataset)
    return replace(recipe, augment=replace(recipe.augment, **settings))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (with_augment("cifar10", randaugment=0, magnitude=5), ("magnitude=5 does nothing", "randaugment above 0")),
        (with_augment("cifar10", randaugment=0, magnitude_std=0.2), ("magnitude_std=0.2", "randaugment above 0")),
        (with_augment("cifar10", randaugment=0, operations="all"), ("operations=all", "randaugment above 0")),
        (with_augment("cifar10", mixup=0, mix_epochs=50), ("mix_epochs=50", "augment.mixup or augment.cutmix")),
        (with_augment("digits", mix_probability=0.3), ("mix_probability=0.3", "augment.mixup or augment.cutmix")),
        (with_augment("cifar10", mixup=0.8, mix_epochs=0), ("mixup=0.8", "augment.mix_epochs above 0")),
        (with_augment("imagenet", cutmix=0.5, mix_probability=0), ("cutmix=0.5", "augment.mix_probability")),
        (Recipe(warmup_epochs=0, warmup_lr=1e-4), ("warmup_lr=0.0001", "warmup_epochs above 0")),
        (Recipe(epochs=2, warmup_epochs=2, min_lr=1e-4), ("min_lr=0.0001", "more epochs than warmup_epochs")),
        (
            replace(recipe_for("cifar10"), split_seed=3),
            ("split_seed=3", "samples_per_class or val_fraction", "official split"),
        ),
    ],
    ids=lambda value: value[0].split("=")[0] if isinstance(value, tuple) else None,
)
def test_a_setting_that_would_do_nothing_is_refused_before_anything_is_read(tmp_path, one_line, recipe, words):
    for work in (lambda: train(recipe, tmp_path, CPU), lambda: plan(recipe, CPU, RunOptions(data_dir=tmp_path))):
        with pytest.raises(SpikformerError) as excinfo:
            work()
        one_line(excinfo, *words)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "recipe",
    [
        *RECIPES.values(),
        *(replace(recipe, augment=Augment()) for recipe in RECIPES.values()),  # none at all
        *(with_augment(name, randaugment=0, mixup=0, cutmix=0) for name in RECIPES),  # the modifiers are the recipe's
        with_augment("cifar10", randaugment=0, magnitude_std=0.0, cutmix=1.0, mixup=0, mix_epochs=50),
        with_augment("cifar10", mix_probability=0),
        Recipe(epochs=1, warmup_epochs=1, cooldown_epochs=1, min_lr=1e-4),
        Recipe(split_seed=3),
        replace(recipe_for("cifar10"), split_seed=3, val_fraction=0.1),
        *(read_config(folder)[0] for folder in PRETRAINED.iterdir()),
    ],
)
def test_a_setting_that_was_not_asked_for_is_no_offence(recipe):
    check_recipe(recipe)


def test_a_recipe_takes_a_path_and_the_log_holds_it(finished, tmp_path):
    recipe = replace(TINY, epochs=1, init_from=finished[0])
    train(recipe, tmp_path, CPU)
    assert load_run(tmp_path).recipe == replace(recipe, precision="fp32")  # chosen for the CPU
    assert recipe.init_from == str(finished[0])


@pytest.mark.slow
def test_a_run_killed_twenty_times_at_random_moments_loses_no_bit(tmp_path):
    recipe = replace(SMALL, epochs=1000, time_steps=1)  # longer than twenty lives
    folder, random = tmp_path / "run", torch.Generator().manual_seed(0)
    command = [*COMMAND, "--out", folder, "--epochs", "1000", "--time-steps", "1"]
    checkpoint = folder / "resume.pt"
    for life in range(20):
        resume = ["--resume"] if (folder / "config.json").exists() else []
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen([*command, *resume], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ONE_THREAD)
        assert process.stdout.readline(), process.stderr.read()  # it has started
        if life % 3:  # most lives get an epoch done and die in the next; the others die at the start
            while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.002)
        time.sleep(1.5 * float(torch.rand(1, generator=random)))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    broken = torch.load(checkpoint, weights_only=True)
    unbroken = Trainer(
        recipe,
        tmp_path / "unbroken",
        CPU,
        load("digits", samples_per_class=recipe.samples_per_class, augment=recipe.augment),
        RunOptions(),
    )
    while unbroken.progress.epoch < broken["progress"]["epoch"]:
        unbroken.epoch()
    assert unbroken.progress.epoch >= 13
    assert_same_state(torch.load(tmp_path / "unbroken" / "resume.pt", weights_only=True), broken)
    rows = [list(csv.DictReader(open(f / "metrics.csv"))) for f in (folder, tmp_path / "unbroken")]
    assert [r["epoch"] for r in rows[0][: len(rows[1])]] == [r["epoch"] for r in rows[1]]


def test_a_run_that_starts_from_simulated_recordings_never_hides_it(finished, tmp_path):
    before = shutil.copytree(finished[0], tmp_path / "before")
    config = json.loads((before / "config.json").read_text())
    config["data"] |= {"trained_on": ["digits-dvs (simulated)"], "simulated": True}
    (before / "config.json").write_text(json.dumps(config))
    recipe = replace(TINY, epochs=1, init_from=str(before))
    assert "trained on digits-dvs (simulated)" in describe_plan(recipe, CPU, plan(recipe, CPU, step_images=1))
    score = train(recipe, tmp_path / "run", CPU)
    for name in ("config", "results"):
        content = json.loads((tmp_path / "run" / f"{name}.json").read_text())
        content = content.get("data", content)
        assert content["trained_on"] == ["digits-dvs (simulated)", "digits"] and content["simulated"]
    assert "trained on digits-dvs (simulated), then digits" in summary(tmp_path / "run", score)


def test_resuming_needs_the_same_data_in_the_same_order(finished, tmp_path, monkeypatch, one_line):
    splits = load("digits", samples_per_class=SMALL.samples_per_class)
    own = describe_data(splits)
    assert check_same_data(own, finished[0]) == own
    train_set, info = splits.train, splits.info
    turned = type(train_set)(train_set.images.flip(0), train_set.targets.flip(0))
    others = type(train_set)(1 - train_set.images, train_set.targets)
    for changed, words in (
        (replace(splits, train=turned), ["the same train samples in another order"]),
        (replace(splits, train=others), ["other train samples (400 there, 400 here)"]),
        (
            replace(splits, train=load("digits", samples_per_class=5).train),
            ["other train samples (400 there, 50 here)"],
        ),
        (replace(splits, val=None), ["other val samples (180 there, none here)"]),
        (
            replace(splits, info=replace(info, classes=("zero", *DIGITS[1:]))),
            ["other classes", "'0' is in one of them"],
        ),
        (replace(splits, info=replace(info, classes=DIGITS[::-1])), ["other classes", "the order is another"]),
        (replace(splits, info=replace(info, simulated=True)), [f"{info.title}, not {info.title} (simulated)"]),
    ):
        with pytest.raises(SpikformerError) as excinfo:
            check_same_data(describe_data(changed), finished[0])
        one_line(excinfo, *words, str(finished[0]), "give its data as --data-dir, or another --out")
    # The run itself: nothing in its folder changes, not even when only the last measurement is left.
    folder = shutil.copytree(finished[0], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("spikformer_edu.training.evaluation.load", lambda *_, **__: replace(splits, test=splits.val))
    with pytest.raises(SpikformerError, match=r"other test samples \(359 there, 180 here\)"):
        train(SMALL, folder, CPU)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_resuming_needs_the_same_recipe(finished):
    with pytest.raises(SpikformerError, match=r"^--lr 0.5 differs from the run's 0.003: "):
        train(replace(SMALL, lr=0.5), finished[0], CPU)


def test_a_broken_resume_file_is_named_and_left_alone(finished, tmp_path):
    for name in ("config.json", "resume.pt"):
        (tmp_path / name).write_bytes((finished[0] / name).read_bytes())
    broken = (finished[0] / "resume.pt").read_bytes()[:-1000]
    (tmp_path / "resume.pt").write_bytes(broken)
    with pytest.raises(SpikformerError, match="resume.pt is broken"):
        train(SMALL, tmp_path, CPU)
    assert (tmp_path / "resume.pt").read_bytes() == broken


def test_a_run_without_its_best_weights_is_not_resumed(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "best.safetensors").unlink()
    with pytest.raises(SpikformerError, match="best.safetensors is gone, and the end of the run needs it"):
        train(SMALL, folder, CPU)


def test_a_log_that_is_gone_is_written_anew(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "metrics.csv").unlink()
    train(SMALL, folder, CPU)
    assert (folder / "metrics.csv").read_bytes() == (finished[0] / "metrics.csv").read_bytes()


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_sample_that_cannot_be_read_in_the_end_stops_training_at_once(tmp_path, part):
    from PIL import Image

    for place in ("train", "val", "test"):
        for name in "ab":
            (tmp_path / "data" / place / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / "data" / place / name / "1.png")
    broken = tmp_path / "data" / part / "a" / "1.png"
    broken.write_bytes(b"")
    recipe = replace(RECIPES["folder"], model="digits-2-64", batch_size=2, epochs=1, warmup_epochs=0, cooldown_epochs=0)
    options = RunOptions(data_dir=tmp_path / "data")
    with pytest.raises(SpikformerError, match="1.png is no readable image") as caught:
        train(recipe, tmp_path / "run", CPU, options)
    assert str(broken) in str(caught.value) and not (tmp_path / "run").exists()
    with pytest.raises(SpikformerError, match="1.png is no readable image"):
        plan(recipe, CPU, options)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_facts(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda w, std: w.data.fill_(float("nan")))
    with pytest.raises(SpikformerError, match=r"loss is nan in epoch 1, step 1, learning rate 1e-05.*none yet"):
        train(SMALL, tmp_path, CPU)
    assert not (tmp_path / "last.safetensors").exists()


@pytest.mark.slow
def test_a_reader_that_is_killed_is_said_and_the_last_checkpoint_stays(tmp_path):
    folder = tmp_path / "run"
    command = [*COMMAND, "--epochs", "1000", "--workers", "1", "--out", folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD)
    while not (folder / "resume.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    while process.poll() is None:  # a new one is born with every epoch
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            if "train" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
        time.sleep(0.01)
    line = process.communicate()[1].strip()
    assert process.returncode == 2 and line.startswith("error: a process that reads data was killed")
    assert "\n" not in line and torch.load(folder / "resume.pt", weights_only=True)["progress"]["epoch"] >= 1


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")

    def stops_half_way(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(file, stops_half_way)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_one_line(tmp_path):
    def write(_):
        with open("/dev/full", "w") as full:
            full.write("x" * 10**6)

    with pytest.raises(SpikformerError, match="cannot write .*No space left on device"):
        write_file(tmp_path / "file", write)
    assert not any(tmp_path.iterdir())


def test_digits_splits_share_no_image_and_no_label_is_missing():
    splits = load("digits")
    parts = [splits[name].images.flatten(1) for name in ("train", "val", "test")]
    assert [len(p) for p in parts] == [1258, 180, 359]
    for i, a in enumerate(parts):
        for b in parts[i + 1 :]:
            assert torch.cdist(a, b).min() > 0
    assert all(splits[name].targets.unique().tolist() == list(range(10)) for name in ("train", "val", "test"))


def test_same_seed_same_batches_whatever_the_workers_and_the_start():
    split = load("digits").train
    plain = list(batches(split, 256, train=True, seed=3, epoch=5))
    for other in (
        list(batches(split, 256, train=True, seed=3, epoch=5, workers=2)),
        [*plain[:2], *batches(split, 256, train=True, seed=3, epoch=5, start=2)],
    ):
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(plain, other, strict=True))
    changed = list(batches(split, 256, train=True, seed=3, epoch=6))
    assert not torch.equal(plain[0][0], changed[0][0])
