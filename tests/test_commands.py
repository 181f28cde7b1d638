"""The commands as a user meets them: real processes, one line and exit code 2 for everything that can be mended."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import spikformer_edu as se
from spikformer_edu import cli
from spikformer_edu.__main__ import Options


def run(module, *arguments, cwd=None, env=None):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def refused(done):
    """The one line of a command that refused its input."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def test_the_table_of_networks():
    done = run("spikformer_edu", "--list")
    assert done.returncode == 0
    for preset in se.list_models():
        assert preset.name in done.stdout and f"{preset.parameters:,}" in done.stdout


@pytest.mark.parametrize("module", ["spikformer_edu", "spikformer_edu.train", "spikformer_edu.evaluate"])
def test_help(module):
    done = run(module, "--help")
    assert done.returncode == 0 and "--" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset", "digit"], "unknown data set 'digit': did you mean 'digits'?"),
        (["--model", "digits-2-46"], "unknown model 'digits-2-46': did you mean 'digits-2-64'?"),
        (["--attention", "sssa"], "unknown attention 'sssa': did you mean 'ssa'?"),
        (["--epoch", "3"], "did you mean --epochs?"),
        (["--epochs", "0"], "epochs=0: give at least 1"),
        (["--epochs", "x"], "--epochs: invalid literal"),
        (["--time-steps", "0"], "time_steps=0"),
        (["--lr", "-1"], "lr=-1.0"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--device", "cuda:99"], "device 'cuda:99' is not to be had"),
        (["--precision", "fp8"], "unknown precision 'fp8'"),
        (["--out", "/dev/null/run"], "cannot write /dev/null/run/config.json: Not a directory"),
        (["--resume"], "no run of digits-2-64 in runs/ to resume"),
        (["--resume", "--out", "run", "--dry-run"], "no run at run to resume: leave out --resume"),
        (["--dataset=digits", "--dataset", "cifar10"], "--dataset is given as digits and as cifar10: give one"),
        (["--dataset", "cifar10", "--dataset=digits", "--dry-run"], "as cifar10 and as digits: give one"),
        (["--dataset"], "--dataset"),
        (["--workers", "-1"], "workers=-1: give 0 or more"),
        (["--keep", "-1"], "keep=-1: give 0 or more"),
        (["--weight-decay", "nan"], "weight_decay=nan: give a finite number"),
        (["--augment.mix-epochs", "5"], "augment.mix_epochs=5 does nothing: leave it out, or give augment.mixup or"),
        (["--split-seed", "3", "--dataset", "cifar10", "--dry-run"], "split_seed=3 does nothing"),
        (["--augment.flip", "0.5", "--dry-run"], "digits has no use for augment.flip=0.5"),
        (["--data-dir", ".", "--dataset", "folder", "--model", "digits-2-64"], "folder"),
    ],
)
def test_train_refuses_in_one_line(arguments, says, tmp_path):
    assert says in refused(run("spikformer_edu.train", *arguments, cwd=tmp_path))
    assert not any(tmp_path.iterdir())


def test_train_warns_of_a_schedule_that_only_climbs(tmp_path):
    short = ("--toy", "1", "--batch-size", "10", "--no-figures", "--device", "cpu")
    done = run("spikformer_edu.train", *short, "--epochs", "1", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0 and "warning: the learning rate only climbs" in done.stderr
    done = run(
        *("spikformer_edu.train", *short, "--epochs", "1", "--warmup-epochs", "0", "--out", tmp_path / "other"),
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "climbs" not in done.stderr


def test_train_never_writes_into_another_run(tmp_path):
    (tmp_path / "config.json").write_text("precious")
    line = refused(run("spikformer_edu.train", "--out", tmp_path))
    assert "holds a run already" in line and "--resume" in line
    assert (tmp_path / "config.json").read_text() == "precious"


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of one step an epoch whose every option is unlike the defaults."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ("--toy", "1", "--batch-size", "10", "--time-steps", "1", "--epochs", "2", "--augment.mixup", "0.5")
    options += ("--ema-decay", "0.5", "--seed", "3", "--no-figures", "--device", "cpu")
    done = run("spikformer_edu.train", *options, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_resume_needs_no_option_of_the_run(trained):
    before = content(trained)
    done = run("spikformer_edu.train", "--out", trained, "--resume", "--no-figures", "--device", "cpu")
    assert done.returncode == 0 and "digits-2-64 on digits, 2 epochs" in done.stdout, done.stderr
    assert content(trained) == before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--epochs", "24"], "--epochs 24 differs from the run's 2: leave that out to go on with"),
        (["--epochs=2", "--lr=0.1", "--sync-bn"], "error: --lr 0.1 differs from the run's 0.003, --sync-bn differs"),
        (["--augment.mixup", "0.4"], "error: --augment.mixup 0.4 differs from the run's 0.5: "),
        (["--dataset", "cifar10"], "error: --dataset cifar10 differs from the run's digits: "),
        (["--weights", "digits-2-64", "--dry-run"], "error: --weights digits-2-64 differs from the run's None: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_resume_refuses_what_was_given_and_differs(trained, given, says):
    before = content(trained)
    assert says in refused(run("spikformer_edu.train", "--out", trained, "--resume", *given))
    assert content(trained) == before


def test_resume_finds_the_last_run_of_a_model(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs" / "digits-2-64-7")
    done = run("spikformer_edu.train", "--model=digits-2-64", "--resume", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "seed* 3" in done.stdout and "mixup* 0.5" in done.stdout, done.stderr


def test_resume_overwrites_no_run_that_has_no_checkpoint(packaged):
    before = content(packaged)
    line = refused(run("spikformer_edu.train", "--out", packaged, "--resume"))
    assert "has weights but no resume.pt to go on from: give another --out" in line
    assert content(packaged) == before


def test_resume_goes_on_where_a_run_was_killed_before_it_began(tmp_path):
    (tmp_path / "config.json").touch()
    options = ("--toy", "1", "--batch-size", "10", "--time-steps", "1", "--epochs", "1", "--warmup-epochs", "0")
    done = run("spikformer_edu.train", *options, "--no-figures", "--device", "cpu", "--out", tmp_path, "--resume")
    assert done.returncode == 0 and json.loads((tmp_path / "config.json").read_text())["recipe"]["epochs"] == 1


def test_a_run_that_fails_before_its_first_checkpoint_does_not_block_the_next(tmp_path):
    options = ("--toy", "2", "--batch-size", "10", "--time-steps", "1", "--epochs", "1", "--warmup-epochs", "0")
    options += ("--no-figures", "--device", "cpu", "--out", tmp_path / "run")
    (tmp_path / "bin").mkdir()
    no_compiler = {k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": str(tmp_path / "bin")}
    no_compiler["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    line = refused(run("spikformer_edu.train", *options, "--compile", env=no_compiler))
    assert line.startswith("error: --compile does not work here (") and "C++ compiler" in line.partition(")")[0]
    assert line.endswith("install a C++ compiler, or leave it out and start again") and len(line) < 300
    assert not (tmp_path / "run").exists()


def test_a_tensorboard_that_does_not_fit_is_one_line(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    code = "raise TypeError('Descriptors cannot be created directly.\\nIf this call came from a _pb2.py file, ...')"
    (tmp_path / "tensorboard" / "__init__.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), str(Path(se.__file__).parents[1])])
    env = os.environ | {"PYTHONPATH": path}
    line = refused(run("spikformer_edu.train", "--toy", "1", "--tensorboard", "--out", tmp_path / "run", env=env))
    assert "--tensorboard needs TensorBoard (Descriptors cannot be created directly." in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("backend", "command", "drawn"),
    [
        ("nonsense", ("spikformer_edu.visualize", "--samples", "1", "--out", "."), "report.html"),
        ("module://nowhere", ("spikformer_edu.data", "info", "digits", "--figure", "digits.png"), "digits.png"),
    ],
)
def test_commands_draw_whatever_backend_is_set(tmp_path, backend, command, drawn):
    done = run(*command, cwd=tmp_path, env=os.environ | {"MPLBACKEND": backend})
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / drawn).exists()


def test_what_the_system_refuses_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["name"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # cli.run changes it for the whole process

    def fails(options: Options):
        open(tmp_path / "nowhere" / "file")

    with warnings.catch_warnings(), pytest.raises(SystemExit, match="2"):
        cli.run(fails, "name")
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere' / 'file'}: No such file or directory\n"


def test_evaluate_reproduces_the_packaged_result():
    done = run("spikformer_edu.evaluate", "--checkpoint", "digits-2-64", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    measured, recorded = done.stdout.splitlines()
    assert measured.split(",")[0].removeprefix("test accuracy") == recorded.removeprefix("recorded by the run:")


def test_evaluate_reads_the_samples_of_a_toy_run(packaged):
    config = json.loads((packaged / "config.json").read_text())
    config["recipe"]["toy"] = 3
    (packaged / "config.json").write_text(json.dumps(config))
    done = run("spikformer_edu.evaluate", "--checkpoint", packaged, "--device", "cpu")
    assert " of 30)" in done.stdout.splitlines()[0]
    done = run("spikformer_edu.evaluate", "--checkpoint", packaged, "--device", "cpu", "--dataset", "digits")
    assert " of 359)" in done.stdout.splitlines()[0]


@pytest.fixture
def packaged(tmp_path):
    """A copy of the packaged run, to be broken."""
    from spikformer_edu.training.checkpoint import PRETRAINED

    return shutil.copytree(PRETRAINED / "digits-2-64", tmp_path / "run")


def test_evaluate_shows_the_record_beside_the_same_measurement_only(packaged):
    shutil.copy(packaged / "best.safetensors", packaged / "last.safetensors")
    for other in (["--weights", "last"], ["--dataset", "digits"], ["--split", "val"]):
        done = run("spikformer_edu.evaluate", "--checkpoint", packaged, "--device", "cpu", *other)
        assert done.returncode == 0 and "recorded" not in done.stdout, done.stdout + done.stderr


def test_evaluate_refuses_labels_that_the_network_does_not_know(packaged):
    config = json.loads((packaged / "config.json").read_text())
    config["network"]["num_classes"] = 7
    (packaged / "config.json").write_text(json.dumps(config))
    weights = load_file(packaged / "best.safetensors")
    few = {k: v[:7].contiguous() if k.startswith("head.") else v for k, v in weights.items()}
    save_file(few, packaged / "best.safetensors")
    line = refused(run("spikformer_edu.evaluate", "--checkpoint", packaged, "--dataset", "digits"))
    assert "digits has 10 classes, the network 7" in line


@pytest.mark.parametrize("arguments", [["--list"], ["--help"]])
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(arguments):
    command = [sys.executable, "-m", "spikformer_edu", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141


def test_evaluate_refuses_what_is_no_run(tmp_path):
    assert "no run at" in refused(run("spikformer_edu.evaluate", "--checkpoint", tmp_path / "absent"))


def test_evaluate_refuses_a_truncated_checkpoint(packaged):
    whole = (packaged / "best.safetensors").read_bytes()
    (packaged / "best.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "no whole safetensors file" in refused(run("spikformer_edu.evaluate", "--checkpoint", packaged))


def test_evaluate_refuses_a_checkpoint_of_another_model(packaged):
    config = (packaged / "config.json").read_text()
    assert '"dim": 64' in config
    (packaged / "config.json").write_text(config.replace('"dim": 64', '"dim": 128'))
    line = refused(run("spikformer_edu.evaluate", "--checkpoint", packaged))
    assert "checkpoint of another model" in line


def test_evaluate_refuses_a_broken_config(packaged):
    (packaged / "config.json").write_text("{")
    assert "config.json is broken" in refused(run("spikformer_edu.evaluate", "--checkpoint", packaged))


def test_evaluate_refuses_an_unknown_split(packaged):
    assert "use 'train', 'val' or 'test'" in refused(
        run("spikformer_edu.evaluate", "--checkpoint", packaged, "--split", "tset")
    )


def test_an_unknown_pretrained_model_names_those_there_are():
    with pytest.raises(se.SpikformerError, match="digits-2-64"):
        se.load_pretrained("digits-2-46")


README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_readme_shows_the_networks_as_they_are():
    assert str(se.list_models()) in README


def test_the_readme_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "Agg"}
    )
    assert done.returncode == 0, done.stderr
    answer, label = re.match(r"(\d) should be (\d)", done.stdout).groups()
    assert answer == label and "torch.Size([4, 1, 4, 64, 16])" in done.stdout


def test_the_readme_states_the_accuracy_that_was_recorded():
    results = se.load_run("digits-2-64").results
    assert f"{100 * results['accuracy']:.2f} % ({results['correct']} of {results['total']})" in README
