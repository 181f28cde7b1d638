"""``python -m spikformer_edu.data``: what it prints, and that each mistake is one line and exit code 2."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import urllib.error
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from making import some_events, write_npz, write_picture
from PIL import Image

from spikformer_edu import cli
from spikformer_edu import data_command as command
from spikformer_edu.data import load

pytestmark = pytest.mark.filterwarnings("ignore:.*holds .* of")


@pytest.fixture
def run(run_here):
    """Run the command in this process: exit code, standard output, standard error."""
    return partial(run_here, command.main, "python -m spikformer_edu.data")


def snapshot(folder) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_info_lists_all_data_sets_and_what_is_here(run, recordings, pictures):
    code, out, _ = run("info", "--data-dir", recordings)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0 and "needs no files" in lines["digits"] and "40 train, 20 test" in lines["cifar10"]
    assert "30 recordings" in lines["cifar10dvs"] and lines["cifar100"].endswith("no")
    code, out, _ = run("info", "cifar10", "--data-dir", recordings)
    assert code == 0
    for fact in ("0.4914, 0.4822, 0.4465", "50,000 train, 10,000 test", "Krizhevsky", "40 train, 20 test", "airplane"):
        assert fact in out


def test_the_data_directory_is_the_option_then_the_variable_then_data(run, recordings, tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKFORMER_DATA", str(recordings))
    assert "30 recordings" in run("info", "cifar10dvs")[1]
    (tmp_path / "other").mkdir()
    assert "30 recordings" not in run("info", "cifar10dvs", "--data-dir", tmp_path / "other")[1]
    monkeypatch.delenv("SPIKFORMER_DATA")
    monkeypatch.chdir(tmp_path / "other")
    (tmp_path / "other" / "data").symlink_to(recordings)
    assert "30 recordings" in run("info", "cifar10dvs")[1]


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "cifar10dvs", "dvsgesture", "nmnist", "imagenet", "folder", "event-folder"]
)
def test_absent_data_name_the_folder_the_file_and_what_works_offline(run, tmp_path, monkeypatch, name):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    code, out, err = run("prepare", name, "--data-dir", tmp_path)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and out == ""
    assert str(tmp_path) in err and list(tmp_path.iterdir()) == []
    if name not in ("folder", "event-folder"):
        assert "--dataset digits" in err
        by_hand = {
            "cifar10": "cifar-10-python.tar.gz",
            "cifar100": "cifar-100-python.tar.gz",
            "cifar10dvs": "airplane.zip",
            "dvsgesture": "ibmGestureTrain.tar.gz",
            "nmnist": "train.zip",
            "imagenet": "ILSVRC2012_img_train.tar",
        }
        assert by_hand[name] in err


def test_a_split_is_written_down_with_checksums(run, recordings, tmp_path):
    import csv
    import hashlib

    file = tmp_path / "split.csv"
    code, out, _ = run("split", "cifar10dvs", "--data-dir", recordings, "--out", file, "--val-fraction", "0.5")
    assert code == 0 and "30 recordings of cifar10dvs" in out
    assert hashlib.sha256(file.read_bytes()).hexdigest() in out
    rows = list(csv.DictReader(file.open()))
    assert [sum(row["part"] == part for row in rows) for part in ("train", "val", "test")] == [10, 10, 10]
    for row in rows[::7]:
        content = (recordings / "CIFAR10DVS" / row["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"] and row["file"].startswith(row["class"])
    code, _, err = run("split", "digits", "--out", tmp_path / "no.csv")
    assert code == 2 and "has no files of recordings" in err and not (tmp_path / "no.csv").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["prepare", "cifar1O"], "did you mean 'cifar10'"),
        (["info", "cifar10", "--data-dir", "/no/such/folder"], "no folder /no/such/folder"),
        (["info", "cifar10", "--data-dir", "/two\nlines"], r"no folder /two\nlines"),
        (["info", "--figure", "x.png"], "give its name"),
        (["info", "digits", ""], "Unrecognized options: ''"),
        (["prepare", "digits-dvs", "--time-steps", "0"], "time_steps=0"),
        (["simulate", "--out", "OUT", "--source", "digit"], "did you mean 'digits'"),
        (["simulate", "--out", "OUT", "--format", "npy"], "did you mean 'npz'"),
        (["simulate", "--out", "OUT", "--per-class", "1"], "per_class=1"),
        (["simulate", "--out", "OUT", "--seed", "-1"], "seed=-1"),
        (["simulate", "--out", "OUT", "--per-class", "900"], "digits has 174 images of one class"),
        (["simulate"], "--out"),
        (["prepar"], "prepar"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, arguments, says):
    before = snapshot(tmp_path)
    code, _, err = run(*[str(tmp_path / "out") if a == "OUT" else a for a in arguments])
    assert code == 2 and says in err and err.count("\n") == 1 and "Traceback" not in err
    assert snapshot(tmp_path) == before


def test_a_broken_recording_is_found_by_prepare_and_nothing_is_touched(run, recordings):
    broken = recordings / "CIFAR10DVS" / "ship" / "cifar10_ship_2.npz"
    broken.write_bytes(b"garbage")
    before = snapshot(recordings / "CIFAR10DVS")
    code, _, err = run("prepare", "cifar10dvs", "--data-dir", recordings)
    last = err.splitlines()[-1]
    assert code == 2 and str(broken) in last and "Traceback" not in err
    assert snapshot(recordings / "CIFAR10DVS") == before
    broken.write_bytes((recordings / "CIFAR10DVS" / "ship" / "cifar10_ship_1.npz").read_bytes())
    code, out, _ = run("prepare", "cifar10dvs", "--data-dir", recordings, "--time-steps", "4", "--workers", "2")
    assert code == 0 and "train: 20 samples" in out and "cifar10dvs is ready" in out


@pytest.mark.parametrize("workers", [0, 2])
def test_prepare_says_how_many_time_stamps_go_back_also_of_what_was_read_before(run, recordings, workers):
    for name, times in (("cat_0", [5, 4, 3]), ("cat_1", [9, 9, 9]), ("dog_2", [2, 1, 2])):  # _2 tests, the others train
        events = some_events(3)
        events["t"] = times
        write_npz(recordings / "CIFAR10DVS" / name[:3] / f"cifar10_{name}.npz", events)
    for _ in range(2):  # the second time from the cache
        code, out, _ = run("prepare", "cifar10dvs", "--data-dir", recordings, "--workers", workers)
        said = "time stamps that go back: 3, in 2 of 30 recordings; events stay in the order of the file"
        assert code == 0 and said in out.splitlines()


def test_prepare_says_nothing_of_time_stamps_that_never_go_back(run, recordings):
    assert "go back" not in run("prepare", "cifar10dvs", "--data-dir", recordings)[1]


def test_a_data_folder_that_cannot_be_written_sends_the_cache_elsewhere(run, recordings, user_cache):
    (recordings / "spikformer-cache").write_text("a file in the way, which stops root as well")
    code, out, err = run("prepare", "cifar10dvs", "--data-dir", recordings)
    assert code == 0 and "is ready" in out
    assert "the cache goes to" in err and len(list((user_cache / "spikformer_edu" / "cifar10dvs").iterdir())) == 30
    (user_cache / "spikformer_edu" / "cifar10dvs").rename(user_cache / "gone")
    (user_cache / "spikformer_edu" / "cifar10dvs").write_text("in the way, too")
    code, _, err = run("prepare", "cifar10dvs", "--data-dir", recordings)
    assert code == 2 and "no cache is kept" in err.splitlines()[-1]
    with pytest.warns(UserWarning, match="no cache is kept"):  # training goes on without
        frames, _ = load("cifar10dvs", recordings).train.fetch(torch.tensor([0]), None)
    assert frames.sum() == 500


def test_prepare_forgets_what_is_kept_when_told_to(run, recordings):
    first = ("prepare", "cifar10dvs", "--data-dir", recordings)
    assert run(*first, "--time-steps", "4")[0] == run(*first, "--time-steps", "6")[0] == 0
    before = load("cifar10dvs", recordings, time_steps=4).train.fetch(torch.tensor([0]), None)[0]
    file = recordings / "CIFAR10DVS" / "airplane" / "cifar10_airplane_0.npz"
    status = file.stat()
    write_npz(file, some_events(500, 999))
    assert file.stat().st_size == status.st_size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    def now(time_steps: int = 4) -> torch.Tensor:
        return load("cifar10dvs", recordings, time_steps=time_steps).train.fetch(torch.tensor([0]), None)[0]

    stale = now(6)
    assert run(*first, "--time-steps", "4")[0] == 0 and torch.equal(now(), before)
    assert run(*first, "--time-steps", "4", "--force")[0] == 0
    assert not torch.equal(now(), before) and now().sum() == 500
    assert not torch.equal(now(6), stale)  # whatever was kept of the old file is gone


def test_prepare_and_info_say_what_training_would_miss(run, tmp_path):
    for i in range(1000):
        folder = tmp_path / "imagenet" / "val" / f"n{i:08d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (i % 256, 0, 0)).save(folder / "a.png")
    code, out, _ = run("prepare", "imagenet", "--data-dir", tmp_path)
    assert code == 0 and out.endswith("imagenet is ready, but training needs train too\n")
    assert run("info", "imagenet", "--data-dir", tmp_path)[1].endswith(" 0 train, 1,000 val\n")


def test_info_counts_the_classes_and_images_of_a_folder(run, tmp_path):
    for name in ("b", "a", "c/deep"):
        for i in range(10):
            write_picture(tmp_path / name / f"{i}.png", i)
    (tmp_path / "b" / "notes.txt").write_text("")
    code, out, err = run("info", "folder", "--data-dir", tmp_path)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0 and "classes 3" in lines and "a, b, c" in lines and lines[-1] == "here 24 train, 6 test"
    assert err.count(f"left out in {tmp_path}: 1 .txt") == 1
    (tmp_path / "d").mkdir()
    assert "here        incomplete: class 'd' is empty" in run("info", "folder", "--data-dir", tmp_path)[1]


def _limited(limit: int, arguments: list[str], pipe: int) -> None:
    import resource

    os.dup2(pipe, 2)
    os.dup2(pipe, 1)
    sys.stderr = open(2, "w", closefd=False)  # pytest has replaced it
    sys.argv = ["data", *arguments]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    cli.run(command.main, "data")


def limited(limit: int, *arguments) -> tuple[int, str]:
    """Run the command in a process whose files cannot grow beyond a limit, as on a full disk: exit code, output."""
    here, there = os.pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_limited, args=(limit, list(map(str, arguments)), there)
    )
    process.start()
    os.close(there)
    with open(here) as output:
        text = output.read()
    process.join()
    return process.exitcode, text


def test_a_full_disk_stops_prepare_and_simulate_with_one_line_and_leaves_no_half_file(recordings, tmp_path):
    before = snapshot(recordings / "CIFAR10DVS")
    code, text = limited(700, "prepare", "cifar10dvs", "--data-dir", recordings)
    assert code == 2 and "Traceback" not in text
    assert "no cache is kept" in text.splitlines()[-1] and "free space" in text.splitlines()[-1]
    assert snapshot(recordings / "CIFAR10DVS") == before
    assert not [p for p in (recordings / "spikformer-cache").rglob("*") if p.is_file()]
    code, text = limited(50_000, "simulate", "--out", tmp_path / "out", "--per-class", "2", "--format", "npz")
    assert code == 2 and "cannot write" in text.splitlines()[-1] and "Traceback" not in text
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["SIMULATED.txt"]


def _prepare(folder) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    command.prepare(command.Prepare("cifar10dvs", folder, time_steps=4))


def test_a_killed_prepare_leaves_nothing_that_is_taken_for_complete(recordings):
    expected = [load("cifar10dvs", recordings, time_steps=4).train.fetch(torch.arange(20), None)[0]]
    import shutil

    shutil.rmtree(recordings / "spikformer-cache")
    context, counts = multiprocessing.get_context("fork"), []

    def entries() -> int:
        return len(list((recordings / "spikformer-cache").rglob("*.z")))

    for wanted in (0, 1, 3, 6):
        process = context.Process(target=_prepare, args=(recordings,))
        process.start()
        while entries() < wanted:
            assert process.is_alive(), "prepare ended before it was killed"
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        counts.append(entries())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*damaged")
        frames = load("cifar10dvs", recordings, time_steps=4).train.fetch(torch.arange(20), None)[0]
    assert torch.equal(frames, expected[0])
    assert counts[0] < counts[-1], "every kill came before the first entry, or after the last"


def test_two_prepares_at_once_agree(recordings):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_prepare, args=(recordings,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    files = list((recordings / "spikformer-cache").rglob("*"))
    assert len([f for f in files if f.suffix == ".z"]) == 30 and not [f for f in files if f.name.startswith(".")]


INTERRUPTED = """
import os, subprocess, sys
from spikformer_edu import cli
from spikformer_edu import data_command as command

batches, number = command.batches, sys.argv.pop()

def signalled(*arguments, **options):
    for i, batch in enumerate(batches(*arguments, **options)):
        if i == 1:
            send = f"import os; os.killpg({os.getpgid(0)}, {number})"
            subprocess.run([sys.executable, "-c", send], start_new_session=True, check=True)
        yield batch

command.batches = signalled
cli.run(command.main, "data")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_prepare_is_one_line_and_keeps_what_it_has_read(recordings, number, code):
    arguments = ["prepare", "cifar10dvs", "--data-dir", recordings, "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments, f"{number:d}"],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=100,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert (done.returncode, done.stdout, said) == (code, "", ["interrupted"])
    files = [path.name for path in (recordings / "spikformer-cache").rglob("*") if path.is_file()]
    assert files and all(name.endswith(".z") for name in files)


def test_simulate_writes_a_labelled_folder_that_cifar10dvs_loads(run, tmp_path):
    code, out, _ = run("simulate", "--out", tmp_path, "--per-class", "2", "--format", "npz")
    assert code == 0 and "20 simulated recordings" in out and "--dataset cifar10dvs --data-dir" in out
    assert "No camera recorded these files" in (tmp_path / "CIFAR10DVS" / "SIMULATED.txt").read_text()
    code, out, _ = run("info", "cifar10dvs", "--data-dir", tmp_path)
    assert "simulated" in out.splitlines()[0] and "20 simulated recordings" in out
    splits = load("cifar10dvs", tmp_path, time_steps=6)
    assert splits.info.simulated and splits.info.classes == tuple("0123456789")
    assert len(splits.train) == len(splits.test) == 10
    frames, _ = splits.train.fetch(torch.arange(10), None)
    assert np.all(frames.sum((0, 2, 3, 4)).numpy() > 50_000)
    first = snapshot(tmp_path / "CIFAR10DVS" / "3")
    run("simulate", "--out", tmp_path, "--per-class", "2", "--format", "npz")  # again: the same events
    for name, content in snapshot(tmp_path / "CIFAR10DVS" / "3").items():
        (tmp_path / "a.npz").write_bytes(content), (tmp_path / "b.npz").write_bytes(first[name])
        assert all(np.array_equal(np.load(tmp_path / "a.npz")[k], np.load(tmp_path / "b.npz")[k]) for k in "txyp")


@pytest.mark.slow
def test_simulate_writes_aedat4_from_images_of_cifar10(run, pictures):
    pytest.importorskip("dv_processing")
    out = pictures / "out"
    code, text, err = run("simulate", "--out", out, "--source", "cifar10", "--per-class", "2", "--data-dir", pictures)
    assert code == 0, err
    assert len(list((out / "CIFAR10DVS").glob("*/cifar10_*.aedat4"))) == 20
    code, text, err = run("prepare", "cifar10dvs", "--data-dir", out, "--workers", "2")
    assert code == 0 and "train: 10 samples" in text, err


def test_simulate_never_mixes_sources(run, tmp_path):
    (tmp_path / "CIFAR10DVS").mkdir()
    (tmp_path / "CIFAR10DVS" / "SIMULATED.txt").write_text("Simulated: cifar10 images ...")
    code, _, err = run("simulate", "--out", tmp_path, "--per-class", "2")
    assert code == 2 and "of another source, seed, number or format: give another --out" in err


def test_simulate_never_mixes_formats_and_numbers_and_removes_what_a_kill_left(run, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "simulate", lambda pictures, seeds: [some_events(100)])
    out = tmp_path / "out"
    first = ("simulate", "--out", out, "--per-class", "2", "--format", "npz")
    assert run(*first)[0] == 0
    left = out / "CIFAR10DVS" / "3" / ".tmp-7-0123abcd-digits_3_0000.npz"
    left.touch()
    before = snapshot(out)
    for other in (("--format", "aedat4"), ("--per-class", "3")):
        code, _, err = run(*first, *other)
        assert code == 2 and "of another source, seed, number or format: give another --out" in err
        assert snapshot(out) == before
    os.utime(left, (0, 0))
    assert run(*first)[0] == 0 and not left.exists()


def test_prepare_reads_the_validation_set_too(run):
    code, out, _ = run("prepare", "digits")
    assert code == 0 and "val: 180 samples read, at least" in out


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_cache_that_a_reading_process_cannot_keep_stops_prepare(run, recordings, user_cache, method):
    (recordings / "spikformer-cache").write_text("in the way")
    (user_cache / "spikformer_edu").write_text("in the way, too")
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        code, _, err = run("prepare", "cifar10dvs", "--data-dir", recordings, "--workers", "1", "--image-size", "16")
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert code == 2 and "no cache is kept" in err.splitlines()[-1]


def test_images_of_cifar10_to_simulate_from_are_the_chosen_ones_in_grey(pictures):
    chosen, labels, names = command.sources(command.Simulate(pictures, "cifar10", 2, data_dir=pictures))
    split = load("cifar10", pictures).train
    expected = (split.pixels.float().mean(1) / 255).view(10, 4, 32, 32)[:, :2].flatten(0, 1)
    assert torch.equal(chosen, expected) and labels.tolist() == [i // 2 for i in range(20)] and names[2] == "bird"


def test_simulate_never_mixes_with_real_recordings(run, recordings):
    before = snapshot(recordings)
    code, _, err = run("simulate", "--out", recordings, "--per-class", "2")
    assert code == 2 and "holds no simulated recordings: give another --out" in err
    assert snapshot(recordings) == before


def test_info_draws_samples(run, tmp_path):
    from PIL import Image

    code, out, _ = run("info", "digits", "--figure", tmp_path / "a.png")
    assert code == 0 and Image.open(tmp_path / "a.png").size[0] > 800
    code, _, err = run("info", "digits", "--figure", tmp_path / "no" / "a.png")
    assert code == 2 and "cannot write" in err and err.count("\n") == 1
