"""``.ci/gpu``: each stage calls commands that there are, with options that they take; what comes back is a run."""

import importlib.util
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import spikformer_edu as se
from spikformer_edu import benchmark, cli, train
from spikformer_edu.training import recipe_for
from spikformer_edu.training.checkpoint import PRETRAINED

ROOT = Path(__file__).parents[1]


@pytest.fixture
def called(tmp_path):
    """Runs a stage with an interpreter that only writes down what it is called with: its log, and the calls."""
    calls, python = tmp_path / "calls", tmp_path / "python"
    python.write_text(f"#!/bin/bash\n{{ printf '%q ' \"$@\"; echo; }} >>{shlex.quote(str(calls))}\n")
    python.chmod(0o755)

    def run(*arguments: str) -> tuple[str, list[list[str]]]:
        command = [ROOT / ".ci" / "gpu", arguments[0], tmp_path / "out", *arguments[1:]]
        environment = os.environ | {"PYTHON": str(python), "RUNS": str(tmp_path / "runs")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "out" / "gpu.log").read_text().endswith(done.stdout)
        return done.stdout, [shlex.split(line) for line in calls.read_text().splitlines()]

    return run


def options_of(command: list[str]):
    """The options of a command line, read as the command itself reads them."""
    module, arguments = command[1].rpartition(".")[2], command[2:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        if module == "train":
            return cli.parse(train.Options, "train", train.defaults(arguments))
        options = cli.parse(benchmark.Options, "benchmark")
        benchmark.check(options)
        return options


def test_check_runs_the_tests_for_a_gpu(called):
    _, (*_, tests) = called("check")
    assert tests[:2] == ["-m", "pytest"] and "tests/test_gpu.py" in tests and tests[-2:] == ["-m", "not slow"]


@pytest.mark.parametrize("stage", ["measure", "compiled"])
def test_what_is_measured(called, stage, tmp_path):
    _, calls = called(stage)
    measured = [options_of(call) for call in calls if call[1] == "spikformer_edu.benchmark"]
    assert all(options.precisions == ("bf16",) and options.rounds == 5 for options in measured)
    if stage == "measure":
        cifar, imagenet, more = measured
        assert {"ours", "ours+eager", "ours+plain", "spikingjelly-triton+graph", "vit+graph"} < set(cifar.peers)
        assert (cifar.shapes, cifar.batch_size) == (("cifar",), None)  # the shape's own 128 images
        assert (imagenet.shapes, imagenet.batch_size) == (("imagenet",), 64)
        assert (more.shapes, more.batch_size, more.peers) == (("cifar", "cifar-t1"), 256, ("ours",))
    with tarfile.open(tmp_path / "out" / "measure.tar") as archive:
        assert archive.getnames() == ["measure"]  # nothing was measured by this interpreter


def test_both_stages_of_the_training(called, tmp_path):
    _, calls = called("stage1", "300")
    prepare, training, pack = calls
    assert prepare == ["-m", "spikformer_edu.data", "prepare", "cifar10"]
    first = options_of(training)
    assert 3 < first.minutes < 4.2 and first.epochs == recipe_for("cifar10", "fast-t1").epochs  # until it is measured
    assert (first.time_steps, first.val_fraction, first.samples_per_class) == (1, None, None)  # all training images
    assert pack == [".ci/pack.py", str(first.out), str(tmp_path / "out")] and not first.resume
    _, (*_, training, pack) = called("stage2", "400", "weights")
    second = options_of(training)
    assert (second.time_steps, second.init_from, second.out) == (None, "weights", tmp_path / "runs" / "stage2")
    assert 4.5 < second.minutes < 6
    second.out.mkdir(parents=True)
    (second.out / "config.json").write_text("a run that was stopped")
    _, (*_, training, pack) = called("stage2")
    assert "--resume" in training and training[-2:] == ["--init-from", str(tmp_path / "runs" / "stage1")]


def test_an_unknown_stage_is_named(tmp_path):
    command = [ROOT / ".ci" / "gpu", "chek", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"RUNS": str(tmp_path)})
    assert done.returncode == 2 and "unknown stage chek: check, measure" in done.stdout


def test_a_packed_run_is_a_run_in_half_the_bytes(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("pack", ROOT / ".ci" / "pack.py")
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    monkeypatch.setattr(pack, "PIECE", 100_000)
    pieces = pack.pack(PRETRAINED / "digits-2-64", tmp_path)
    assert len(pieces) > 2 and max(piece.stat().st_size for piece in pieces) == 100_000
    subprocess.run("cat digits-2-64.tar.* | tar x", shell=True, cwd=tmp_path, check=True)
    run, whole = se.load_run(tmp_path / "digits-2-64"), se.load_run("digits-2-64")
    assert run.results == whole.results and run.recipe == whole.recipe
    for (name, ours), theirs in zip(run.model.named_parameters(), whole.model.parameters(), strict=True):
        expected = theirs.half().float() if theirs.dim() > 1 else theirs
        assert torch.equal(ours, expected), name
