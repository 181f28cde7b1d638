"""The commands as a user meets them: real processes, one line and exit code 2 for everything that can be mended."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import spikformer_edu as se
from spikformer_edu import benchmark, cli, evaluate, report, train, visualize
from spikformer_edu import data_command as data
from spikformer_edu.__main__ import Options
from spikformer_edu.data import info
from spikformer_edu.export import __main__ as export_command
from spikformer_edu.training import recipe_for


def run(module, *arguments, cwd=None, env=None):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def test_a_command_whose_output_is_closed_ends_well():
    for option in ("--list", "--help"):
        command = f'"{sys.executable}" -m spikformer_edu {option} >&-'
        done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


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
        (["--device", "cuda:99"], "device 'cuda:99' is not available"),
        (["--out", "~nobody_here/x", "--resume"], "~nobody_here"),
        (["--device", "meta"], "device 'meta' is not available"),
        (["--out", "/dev/null"], "/dev/null is a file"),
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
def test_train_refuses_in_one_line(arguments, says, tmp_path, monkeypatch, run_here):
    monkeypatch.chdir(tmp_path)
    prog = "python -m spikformer_edu.train"
    code, _, err = run_here(train.main, prog, *arguments, default=lambda: train.defaults(sys.argv[1:]))
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and says in err
    assert not any(tmp_path.iterdir())


def test_without_options_the_digits_are_trained(tmp_path):
    """As ``make train`` does; the first line is enough here."""
    command = [sys.executable, "-u", "-m", "spikformer_edu.train"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        first = running.stdout.readline()
        running.kill()
    assert first.startswith("digits-2-64 on digits, 36 epochs on "), running.stderr


def test_a_process_that_refuses_ends_with_two(tmp_path):
    assert "epochs=0: give at least 1" in refused(run("spikformer_edu.train", "--epochs", "0", cwd=tmp_path))


@pytest.mark.slow
def test_train_warns_of_a_schedule_that_only_climbs(tmp_path):
    short = ("--samples-per-class", "1", "--batch-size", "10", "--no-figures", "--device", "cpu")
    done = run("spikformer_edu.train", *short, "--epochs", "1", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0 and "warning: the learning rate only climbs" in done.stderr
    done = run(
        *("spikformer_edu.train", *short, "--epochs", "1", "--warmup-epochs", "0", "--out", tmp_path / "other"),
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "climbs" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_test_set_that_is_not_there_stops_training_before_its_first_step(tmp_path, more):
    for label in range(1000):
        folder = tmp_path / "imagenet" / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "a.png")
    short = ("--epochs", "1", "--warmup-epochs", "0", "--cooldown-epochs", "0", "--no-figures", "--device", "cpu")
    where = ("--dataset", "imagenet", "--model", "digits-2-64", "--data-dir", tmp_path, "--out", tmp_path / "run")
    done = run("spikformer_edu.train", *where, *short, *more)
    assert done.returncode == 2 and "derived" not in done.stdout, done.stdout
    assert done.stderr.splitlines()[-1].startswith(f"error: no val images in {tmp_path}"), done.stderr
    assert not (tmp_path / "run").exists()


def test_figures_that_could_not_be_written_stop_training_before_its_first_step(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").write_text("mine")
    short = ("--samples-per-class", "1", "--epochs", "1", "--warmup-epochs", "0", "--device", "cpu")
    line = refused(run("spikformer_edu.train", *short, "--out", tmp_path / "run"))
    assert "figures is no folder that can be written: remove it, or give --no-figures" in line
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["figures"]


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
    options = tuple("--samples-per-class 1 --batch-size 10 --time-steps 1 --epochs 2 --augment.mixup 0.5".split())
    options += ("--ema-decay", "0.5", "--seed", "3", "--no-figures", "--device", "cpu")
    done = run("spikformer_edu.train", *options, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_resume_needs_no_option_of_the_run(trained):
    before = content(trained)
    done = run("spikformer_edu.train", "--out", trained, "--resume", "--no-figures", "--device", "cpu")
    assert done.returncode == 0 and "digits-2-64 on digits, 2 epochs" in done.stdout, done.stderr
    assert content(trained) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--epochs", "24"], "--epochs 24 differs from the run's 2: leave that out to go on with"),
        (["--epochs=2", "--lr=0.1", "--sync-bn"], "error: --lr 0.1 differs from the run's 0.003, --sync-bn differs"),
        (["--augment.mixup", "0.4"], "error: --augment.mixup 0.4 differs from the run's 0.5: "),
        (["--dataset", "cifar10"], "error: --dataset cifar10 differs from the run's digits: "),
        (["--init-from", "digits-2-64", "--dry-run"], "error: --init-from digits-2-64 differs from the run's None: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_resume_refuses_what_was_given_and_differs(trained, given, says):
    before = content(trained)
    assert says in refused(run("spikformer_edu.train", "--out", trained, "--resume", *given))
    assert content(trained) == before


@pytest.mark.slow
def test_resume_finds_the_last_run_of_a_model(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs" / "digits-2-64-7")
    done = run("spikformer_edu.train", "--model=digits-2-64", "--resume", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "seed* 3" in done.stdout and "mixup* 0.5" in done.stdout, done.stderr


def test_resume_overwrites_no_run_that_has_no_checkpoint(packaged):
    before = content(packaged)
    line = refused(run("spikformer_edu.train", "--out", packaged, "--resume"))
    assert "has weights but no resume.pt to go on from: give another --out" in line
    assert content(packaged) == before


@pytest.mark.slow
def test_resume_goes_on_where_a_run_was_killed_before_it_began(tmp_path):
    (tmp_path / "config.json").touch()
    options = tuple("--samples-per-class 1 --batch-size 10 --time-steps 1 --epochs 1 --warmup-epochs 0".split())
    done = run("spikformer_edu.train", *options, "--no-figures", "--device", "cpu", "--out", tmp_path, "--resume")
    assert done.returncode == 0 and json.loads((tmp_path / "config.json").read_text())["recipe"]["epochs"] == 1


@pytest.mark.slow
def test_a_run_that_fails_before_its_first_checkpoint_does_not_block_the_next(tmp_path):
    options = tuple("--samples-per-class 2 --batch-size 10 --time-steps 1 --epochs 1 --warmup-epochs 0".split())
    options += ("--no-figures", "--device", "cpu", "--out", tmp_path / "run")
    (tmp_path / "bin").mkdir()
    no_compiler = {k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": str(tmp_path / "bin")}
    no_compiler["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    line = refused(run("spikformer_edu.train", *options, "--compile", env=no_compiler))
    assert line.startswith("error: --compile does not work here (") and "C++ compiler" in line.partition(")")[0]
    assert line.endswith("install a C++ compiler, or leave it out and start again") and len(line) < 300
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_tensorboard_that_does_not_fit_is_one_line(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    code = "raise TypeError('Descriptors cannot be created directly.\\nIf this call came from a _pb2.py file, ...')"
    (tmp_path / "tensorboard" / "__init__.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), str(Path(se.__file__).parents[1])])
    env = os.environ | {"PYTHONPATH": path}
    line = refused(
        run("spikformer_edu.train", "--samples-per-class", "1", "--tensorboard", "--out", tmp_path / "run", env=env)
    )
    assert "--tensorboard needs TensorBoard (Descriptors cannot be created directly." in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
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
    file = tmp_path / "nowhere" / "file"
    assert capsys.readouterr().err == f"error: cannot use {file}: No such file or directory\n"


def test_evaluate_reproduces_the_packaged_result():
    done = run("spikformer_edu.evaluate", "--checkpoint", "digits-2-64", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    measured, recorded = done.stdout.splitlines()
    assert measured.split(",")[0].removeprefix("test accuracy") == recorded.removeprefix("recorded by the run:")


@pytest.mark.slow
def test_evaluate_reads_the_samples_of_a_toy_run(packaged):
    config = json.loads((packaged / "config.json").read_text())
    config["recipe"]["samples_per_class"] = 3
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


@pytest.mark.slow
def test_evaluate_shows_the_record_beside_the_same_measurement_only(packaged):
    shutil.copy(packaged / "best.safetensors", packaged / "last.safetensors")
    for other in (["--which", "last"], ["--dataset", "digits"], ["--split", "val"]):
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


def rename(run, names):
    """Let a run have been trained on classes with other names, output by output."""
    config = json.loads((run / "config.json").read_text())
    config["data"]["classes"] = list(names)
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_evaluate_finds_the_classes_by_name_and_refuses_other_names(packaged):
    weights = load_file(packaged / "best.safetensors")
    turned = {k: v.flip(0).contiguous() if k.startswith("head.") else v for k, v in weights.items()}
    save_file(turned, packaged / "best.safetensors")
    rename(packaged, "9876543210")
    done = run("spikformer_edu.evaluate", "--checkpoint", packaged, "--device", "cpu")
    measured, recorded = done.stdout.splitlines()
    assert measured.split(",")[0].removeprefix("test accuracy") == recorded.removeprefix("recorded by the run:")
    rename(packaged, ["nine", *"876543210"])
    line = refused(run("spikformer_edu.evaluate", "--checkpoint", packaged))
    assert "the data set digits has other classes than" in line and "'9' is in one of them only" in line
    with pytest.raises(se.SpikformerError, match="the data set digits has other classes than"):
        visualize.main(visualize.Options(str(packaged)))


def test_a_run_that_does_not_say_what_it_was_trained_on_is_refused(packaged):
    config = json.loads((packaged / "config.json").read_text())
    del config["data"]
    (packaged / "config.json").write_text(json.dumps(config))
    line = refused(run("spikformer_edu.evaluate", "--checkpoint", packaged))
    assert "config.json has no 'data': it is broken" in line


def test_a_run_of_another_version_is_named_as_such(packaged, one_line):
    config = json.loads((packaged / "config.json").read_text())
    config["recipe"]["momentum"] = 0.9
    (packaged / "config.json").write_text(json.dumps(config))
    with pytest.raises(se.SpikformerError) as excinfo:
        se.load_run(packaged)
    one_line(excinfo, "config.json has 'momentum'", "another version wrote it")


def write_cifar10(folder, seed):
    random = np.random.default_rng(seed)
    for name in info("cifar10").classes:
        for part, count in (("train", 2), ("test", 1)):
            (folder / "cifar10" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "cifar10" / part / name / f"{i}.png")


@pytest.mark.slow
def test_what_was_measured_on_other_data_is_never_taken_for_a_result_of_the_run(tmp_path, monkeypatch):
    """Other pictures, as many, under the same names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, name in enumerate(("own", "other")):
        write_cifar10(tmp_path / name, seed)
    quick = ("--model", "digits-2-64", "--time-steps", "1", "--epochs", "1", "--warmup-epochs", "0")
    quick += ("--cooldown-epochs", "0", "--batch-size", "10", "--device", "cpu", "--no-figures", "--dataset", "cifar10")
    folder = tmp_path / "run"
    command = ("spikformer_edu.train", *quick, "--out", folder, "--data-dir")
    done = run(*command, tmp_path / "own")
    assert done.returncode == 0, done.stderr
    other, before = tmp_path / "other", {path.name: path.read_bytes() for path in folder.iterdir()}
    done = run("spikformer_edu.evaluate", "--checkpoint", folder, "--data-dir", other, "--device", "cpu")
    measured, note = done.stdout.splitlines()
    assert measured.startswith("test accuracy") and "of 10)" in measured
    assert note == f"trained on cifar10, measured on cifar10 in {other}, not the data of this run"
    done = run(*command, other, "--resume")
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("warning")]
    assert "holds a run on other train samples (20 there, 20 here): give its data as --data-dir" in line
    assert done.returncode == 2 and {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.fixture
def simulated(tmp_path, monkeypatch):
    """A data directory with simulated recordings of two classes, and what a run of one step on them is told."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random, folder = np.random.default_rng(0), tmp_path / "events" / "CIFAR10DVS"
    for name in "07":
        (folder / name).mkdir(parents=True)
        for i in range(2):
            x, y, p = (random.integers(0, n, 1000) for n in (128, 128, 2))
            np.savez(folder / name / f"{i}.npz", t=np.arange(1000), x=x, y=y, p=p)
    (folder / "SIMULATED.txt").write_text("No camera recorded these files.\n")
    recipe = replace(recipe_for("cifar10dvs"), time_steps=1, batch_size=2, lr_batch_size=2)
    return folder.parent, replace(recipe, epochs=1, warmup_epochs=0, cooldown_epochs=0)


def test_every_command_says_that_recordings_are_simulated(simulated, tmp_path, capsys, monkeypatch):
    """And everything that it writes: a number or a figure may be all that is left of a run."""
    figures = report._figures
    monkeypatch.setattr(report, "_figures", lambda *subject: islice(figures(*subject), 1))  # one stands for all
    data_dir, recipe = simulated
    folder, name = tmp_path / "run", "cifar10dvs (simulated)"
    options = train.Options(**vars(recipe), data_dir=data_dir, out=folder, device="cpu")

    def said(command, options):
        command(options)
        return capsys.readouterr().out

    assert "simulated" in said(data.main, data.Info("digits-dvs")).splitlines()[0]
    listed = said(data.main, data.Info(data_dir=data_dir)).splitlines()
    assert [line.split()[0] for line in listed if "simulated" in line] == ["digits-dvs", "digits-motion", "cifar10dvs"]
    assert "simulated" in said(data.main, data.Info("cifar10dvs", data_dir)).splitlines()[0]
    assert f"{name} is ready" in said(data.main, data.Prepare("cifar10dvs", data_dir, time_steps=1))
    assert f"recipe of {name} " in said(train.main, replace(options, dry_run=True))
    lines = said(train.main, options).splitlines()
    assert lines[0].startswith(f"cifar10dvs-2-256 on {name}, 1 epochs")
    (measured,) = (line for line in lines if line.startswith("test accuracy"))
    note = f"trained on {name}, measured on {name} in {data_dir}"
    assert measured.endswith(f", trained on {name}") and note in lines
    for file in ("config.json", "results.json"):
        content = json.loads((folder / file).read_text())
        assert content.get("data", content)["simulated"] is True and f'"{name}"' in (folder / file).read_text()
    assert name in (folder / "metrics.csv").read_text().splitlines()[1]
    assert note in (folder / "figures" / "report.html").read_text(encoding="utf-8")
    assert note in said(evaluate.main, evaluate.Options(str(folder), data_dir=data_dir, device="cpu"))
    se.export(folder, tmp_path / "out", "js")
    assert json.loads((tmp_path / "out" / "model.json").read_text())["data"] == "CIFAR10-DVS (simulated)"


@pytest.mark.parametrize("arguments", [["--list"], ["--help"]])
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(arguments):
    command = [sys.executable, "-m", "spikformer_edu", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))  # Windows
    return folder


COMMANDS = {
    "train": train.Options,
    "evaluate": evaluate.Options,
    "visualize": visualize.Options,
    "export": export_command.Options,
    "benchmark": benchmark.Options,
    "data info": data.Info | data.Prepare | data.Simulate,
    "data prepare": data.Info | data.Prepare | data.Simulate,
    "data simulate": data.Info | data.Prepare | data.Simulate,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_option_knows_the_home_folder(command, home, monkeypatch):
    given = {"data info": ["info"], "data prepare": ["prepare", "digits"], "data simulate": ["simulate", "--out", "x"]}
    given["export"] = ["--format", "js"]
    start = given.get(command, [])
    monkeypatch.setattr("sys.argv", [command, *start])
    kind = type(cli.parse(COMMANDS[command], command))
    paths = [name for name, hint in get_type_hints(kind).items() if Path in (hint, *get_args(hint))]
    assert paths
    for name in paths:
        option = "--" + name.replace("_", "-")
        monkeypatch.setattr("sys.argv", [command, *start, f"{option}=~/some where"])
        assert getattr(cli.parse(COMMANDS[command], command), name) == home / "some where"
        monkeypatch.setattr("sys.argv", [command, *start, f"{option}=~no-such-user/x"])
        with pytest.raises(se.SpikformerError, match="^~no-such-user/x: no home folder is known"):
            cli.parse(COMMANDS[command], command)


def test_a_tilde_makes_no_folder_of_that_name(packaged, home, tmp_path):
    packaged.rename(home / "run")
    done = run("spikformer_edu.export", "--format=js", "--checkpoint=~/run", "--out=~/exported", cwd=tmp_path)
    assert done.returncode == 0 and str(home / "exported" / "model.bin") in done.stdout, done.stderr
    assert {path.name for path in home.iterdir()} == {"run", "exported"} and [*tmp_path.iterdir()] == [home]


def test_a_path_in_the_home_folder_of_the_library(packaged, home, tmp_path, monkeypatch):
    packaged.rename(home / "run")
    assert se.load_run("~/run").folder == home / "run"
    monkeypatch.chdir(tmp_path)
    assert se.export("~/run", "~/exported", "js").paths[0] == home / "exported" / "model.json"
    assert [*tmp_path.iterdir()] == [home]


@pytest.mark.skipif(sys.platform != "linux", reason="names there are always text")
def test_folders_of_any_name_on_a_terminal_of_few_letters(packaged, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    odd = os.fsdecode("猫 $x_{ ".encode() + b"caf\xe9")
    packaged.rename(tmp_path / odd)
    done = run(
        "spikformer_edu.export", "--format=js", "--checkpoint", tmp_path / odd, "--out", tmp_path / odd / "exported"
    )
    assert done.returncode == 0 and r"\u732b $x_{ caf\udce9" in done.stdout, done.stderr
    content = json.loads((tmp_path / odd / "exported" / "model.json").read_text(encoding="utf-8"))
    assert content["name"] == r"猫 $x_{ caf\udce9"


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    refused(run("spikformer_edu.train", "--out", "a" * 300, "--resume", cwd=tmp_path))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names there are always text")
def test_a_data_set_whose_classes_have_any_name_is_trained_and_drawn(tmp_path, monkeypatch):
    names = [rb"$\frac{1$", b"two\nlines", "猫 <b> & co".encode(), b"caf\xe9", b"n" * 200]
    for number, name in enumerate(names):
        for split in (b"train", b"test"):
            folder = os.fsencode(tmp_path / "data") + b"/" + split + b"/" + name
            os.makedirs(folder)
            Image.new("RGB", (32, 32), (40 * number, 0, 255)).save(os.fsdecode(folder + b"/0.png"))
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    recipe = "--model cifar10dvs-2-256 --time-steps 1 --epochs 1 --cooldown-epochs 0 --warmup-epochs 0 --batch-size 5"
    recipe += " --augment.randaugment 0 --augment.mixup 0 --augment.cutmix 0 --dataset folder --device cpu"
    out = tmp_path / os.fsdecode(b"$x_{ \xe9")
    done = run("spikformer_edu.train", *recipe.split(), "--data-dir", tmp_path / "data", "--out", out)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (out / "figures" / "training.png").exists() and r"$x_{ \udce9" in done.stdout
    assert "<title>$x_{ " in (out / "figures" / "report.html").read_text(encoding="utf-8")
    figure = tmp_path / "samples.png"
    done = run("spikformer_edu.data", "info", "folder", "--data-dir", tmp_path / "data", "--figure", figure)
    assert done.returncode == 0 and done.stderr == "" and figure.exists(), done.stderr
    done = run("spikformer_edu.evaluate", "--checkpoint", out, "--data-dir", tmp_path / "data")
    assert done.returncode == 0 and done.stderr == "", done.stderr


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


def test_a_config_may_begin_with_the_mark_of_an_editor(packaged):
    (packaged / "config.json").write_text((packaged / "config.json").read_text(), encoding="utf-8-sig")
    assert se.load_run(packaged).recipe.dataset == "digits"


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
