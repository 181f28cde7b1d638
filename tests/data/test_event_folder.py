"""One's own recordings and N-MNIST, by name and by command, from files to a trained network."""

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from making import some_events, write_aedat3, write_bin, write_davis, write_npz, write_prophesee

from spikformer_edu import SpikformerError, data_command
from spikformer_edu.data import batches, count, load
from spikformer_edu.data.digits_dvs import images
from spikformer_edu.data.event_folder import parse_sensor
from spikformer_edu.data.events import read_events, to_frames, write_events
from spikformer_edu.data.simulated_camera import simulate

pytestmark = pytest.mark.filterwarnings("ignore:.*do not state their sensor", "ignore:.*holds .* recordings of")


@pytest.fixture
def run(run_here):
    return partial(run_here, data_command.main, "python -m spikformer_edu.data")


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Two classes, each with a training and a test recording of six formats and four cameras."""
    root = tmp_path / "mine"
    for number, (part, name) in enumerate((p, n) for p in ("train", "test") for n in ("left", "right")):
        place = root / part / name
        place.mkdir(parents=True)
        seed = 10 * number
        write_bin(place / "a.bin", some_events(900, seed, sensor=34))
        write_aedat3(place / "b.aedat", some_events(900, seed + 1))
        write_davis(place / "c.aedat", some_events(900, seed + 2, sensor=346, height=260))
        write_prophesee(place / "d.dat", some_events(900, seed + 3, 1280, 720), "dat", (1280, 720))
        write_prophesee(place / "e.raw", some_events(900, seed + 4, 640, 480), "evt3")
        write_npz(place / "f.npz", some_events(900, seed + 5, 346, 260))
    return root


SENSORS = {
    "a.bin": (34, 34),
    "b.aedat": (128, 128),
    "c.aedat": (346, 260),
    "d.dat": (1280, 720),
    "e.raw": (640, 480),
    "f.npz": (346, 260),
}


def test_a_tree_of_many_formats_and_cameras_is_one_data_set(mixed):
    with pytest.warns(UserWarning, match=r"4 .npz recordings do not state their sensor: by their events 346 x 260"):
        splits = load("event-folder", mixed, time_steps=4, image_size=32)
    assert (len(splits.train), len(splits.test), splits.val) == (12, 12, None)
    assert splits.info.classes == ("left", "right") and splits.train.targets.bincount().tolist() == [6, 6]
    inputs, labels = splits.test.fetch(torch.arange(12), None)
    assert inputs.shape == (4, 12, 2, 32, 32) and labels.tolist() == [0] * 6 + [1] * 6
    for column, name in enumerate(splits.test.names):
        events = read_events(mixed / name)
        assert np.array_equal(inputs[:, column], to_frames(events, 4, 32, SENSORS[Path(name).name])), name
    time = load("event-folder", mixed, time_steps=4, image_size=32, frames="time").test.fetch(torch.arange(12), None)[0]
    assert not torch.equal(time, inputs) and torch.equal(time.sum((0, 2, 3, 4)), torch.full((12,), 900.0))


def test_one_tree_is_split_and_a_seed_splits_it_otherwise(mixed):
    shutil.move(mixed / "test" / "left", mixed / "train" / "left" / "more")
    shutil.move(mixed / "test" / "right", mixed / "train" / "right" / "more")
    splits, other = (load("event-folder", mixed / "train", split_seed=seed, val_fraction=0.2) for seed in (None, 1))
    names = [set(part.names) for part in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in names] == [16, 4, 4] and len(set.union(*names)) == 24
    assert set(other.test.names) != names[2]
    assert count("event-folder", mixed / "train") == {"train": 20, "test": 4}


def test_a_given_sensor_is_that_of_the_files_that_state_none(mixed, recwarn):
    split = load("event-folder", mixed, time_steps=2, image_size=16, sensor="640x480").test
    assert not [w for w in recwarn if "do not state" in str(w.message)]
    inputs = split.fetch(torch.arange(6), None)[0]
    for column, name in enumerate(split.names[:6]):
        sensor = SENSORS[Path(name).name] if Path(name).suffix in (".dat", ".aedat") else (640, 480)
        assert np.array_equal(inputs[:, column], to_frames(read_events(mixed / name), 2, 16, sensor)), name
    small = load("event-folder", mixed, time_steps=2, image_size=16, sensor=(128, 128)).test
    with pytest.raises(
        SpikformerError, match=r"e.raw \(Prophesee EVT3\) has an event at x = \d+, outside the 128 x 128"
    ):
        list(batches(small, 4))
    for bad in ("346", "346x0", "axb", 346):
        with pytest.raises(SpikformerError, match="give width and height in pixels, such as 346x260"):
            parse_sensor(bad)


def test_a_pipeline_of_tonic_works_on_the_events_before_they_are_cut(mixed):
    from tonic.transforms import CenterCrop, Compose, Denoise, DropEvent

    crop = Compose([Denoise(filter_time=1e9), CenterCrop(sensor_size=(346, 260, 2), size=(64, 64))])
    shutil.rmtree(mixed / "train")
    for name in ("left", "right"):
        for i in range(3):
            write_npz(mixed / "train" / name / f"{i}.npz", some_events(5000, i, 346, 260))
        for file in (mixed / "test" / name).iterdir():
            if file.name != "f.npz":
                file.unlink()
    options = {"time_steps": 4, "image_size": 32, "sensor": (64, 64)}
    split = load("event-folder", mixed, transform=crop, **options).train
    events = read_events(mixed / split.names[1])
    assert np.array_equal(split[1][0].numpy(), to_frames(crop(events), 4, 32, (64, 64)))
    drop = load("event-folder", mixed, transform=DropEvent(p=0.5), **options | {"sensor": None}).train
    epochs = [torch.cat([x.flatten() for x, _ in batches(drop, 3, train=True, epoch=e)]) for e in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])
    for wrong, says in (
        (lambda e: e[:0], "makes no events"),
        (lambda e: np.ones(3), "makes events without p, t, x, y"),
        (lambda e: e, "outside the sensor of 64 x 64 pixels"),
    ):
        with pytest.raises(SpikformerError, match=f"transform.*{says}"):
            load("event-folder", mixed, transform=wrong, **options).train.fetch(torch.arange(1), None)


def test_info_says_what_is_there_and_what_was_skipped(run, mixed):
    events = some_events(900, 3, 346, 260)
    events["t"][400] = 0
    write_npz(mixed / "train" / "left" / "f.npz", events)
    (mixed / "train" / "left" / "bad.aedat4").write_bytes(b"#!AER-DAT4.0\r\n")
    (mixed / "train" / "left" / "notes.txt").write_text("none")
    code, out, err = run("info", "event-folder", "--data-dir", mixed)
    assert code == 0, err
    for line in (
        "4 x AEDAT 2.0, sensor 346 x 260; events 900;",
        "4 x N-MNIST, sensor 34 x 34 by its events; events 900; seconds",
        "4 x Prophesee EVT3, sensor 640 x 480 by its events",
        "4 x Prophesee DAT, sensor 1280 x 720; events 900",
        "time stamps that go back: 1, in 1 of 24 recordings",
        "skipped, 1 that cannot be read:",
        "bad.aedat4 is no readable recording",
        "13 train, 12 test",
    ):
        assert line in out, line
    assert "left out in" in err and "1 .txt" in err


def test_a_broken_recording_stops_prepare_with_its_name(run, mixed):
    bad = mixed / "test" / "right" / "f.npz"
    bad.write_bytes(bad.read_bytes()[:3000])
    code, _, err = run("prepare", "event-folder", "--data-dir", mixed, "--time-steps", 2, "--image-size", 16)
    assert code == 2 and str(bad) in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda root: shutil.rmtree(root / "test" / "left"), "class 'left' is in one of"),
        (lambda root: shutil.rmtree(root / "test"), "has class folders in train but none in test or val"),
        (lambda root: [f.unlink() for f in (root / "test" / "left").iterdir()], "class 'left' is empty"),
    ],
)
def test_a_folder_that_is_not_as_it_should_be_is_one_line(mixed, spoil, says):
    spoil(mixed)
    with pytest.raises(SpikformerError, match=says):
        load("event-folder", mixed)


@pytest.mark.slow
def test_a_network_is_trained_on_ones_own_recordings_and_measured_again(mixed, tmp_path):
    import subprocess
    import sys

    def command(name, *options):
        line = [sys.executable, "-m", f"spikformer_edu.{name}", "--device", "cpu", *map(str, options)]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = "--model nmnist-2-64 --time-steps 2 --image-size 32 --frames time --epochs 1 --warmup-epochs 0"
    options += " --cooldown-epochs 0 --batch-size 4"
    run = tmp_path / "run"
    out = command("train", "--dataset", "event-folder", "--data-dir", mixed, *options.split(), "--out", run)
    assert "nmnist-2-64 on event-folder, 1 epochs" in out and (run / "figures").is_dir()
    accuracy = next(line for line in out.splitlines() if "of 12" in line)
    again = command("evaluate", "--checkpoint", run, "--data-dir", mixed)
    assert accuracy.split("%")[0].split()[-1] in again


# N-MNIST -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nmnist(tmp_path) -> Path:
    """A data directory in N-MNIST's layout, of simulated digits: two to train and one to test, each digit."""
    pixels, targets = images()
    for digit in range(10):
        chosen = (targets == digit).nonzero().squeeze(1)[:3]
        for number, events in enumerate(simulate(pixels[chosen], chosen.tolist(), size=34, loops=1)):
            part = "Train" if number < 2 else "Test"
            write_bin(tmp_path / "NMNIST" / part / str(digit) / f"{number:05d}.bin", events)
    return tmp_path


def test_nmnist_is_found_and_read_as_tonic_reads_it(nmnist):
    from tonic.datasets import NMNIST
    from tonic.io import read_mnist_file

    with pytest.warns(UserWarning, match="holds 20 of 60,000 recordings of N-MNIST"):
        splits = load("nmnist", nmnist, time_steps=4)
    assert (len(splits.train), len(splits.test)) == (20, 10) and count("nmnist", nmnist) == {"train": 20, "test": 10}
    frames, labels = splits.test.fetch(torch.arange(10), None)
    assert frames.shape == (4, 10, 2, 32, 32) and labels.tolist() == list(range(10))
    theirs = read_mnist_file(str(nmnist / "NMNIST" / "Test" / "3" / "00002.bin"), dtype=NMNIST.dtype)
    assert np.array_equal(frames[:, 3], to_frames(theirs, 4, 32, (34, 34)))
    assert not (nmnist / "spikformer-cache").exists()


def test_nmnist_is_unpacked_from_the_archives_that_tonic_downloads(nmnist):
    for part in ("Train", "Test"):
        shutil.make_archive(nmnist / "NMNIST" / part.lower(), "zip", nmnist / "NMNIST", part)
        shutil.rmtree(nmnist / "NMNIST" / part)
    assert len(load("nmnist", nmnist).train) == 20


@pytest.mark.slow
def test_nmnist_is_trained_by_name_on_real_samples_where_they_are(nmnist, tmp_path):
    """The four real samples, copied into their folders, beside the simulated ones."""
    import subprocess
    import sys

    real = os.environ.get("SPIKFORMER_EVENTS")
    for file in Path(real).glob("nmnist/*/*.bin") if real else ():
        for part in ("Train", "Test"):
            shutil.copy(file, nmnist / "NMNIST" / part / file.parent.name / f"real_{file.name}")
    line = [sys.executable, "-m", "spikformer_edu.train", "--dataset", "nmnist", "--data-dir", nmnist, "--epochs", "1"]
    line += ["--warmup-epochs", "0", "--batch-size", "4", "--out", tmp_path / "run", "--device", "cpu"]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True)
    assert done.returncode == 0 and "nmnist-2-64 on nmnist, 1 epochs" in done.stdout, done.stderr


def test_written_recordings_of_any_sensor_come_back_as_frames(tmp_path):
    pytest.importorskip("dv_processing")
    for name in ("a", "b"):
        for i in range(2):
            write_events(tmp_path / name / f"{i}.aedat4", some_events(500, i, 320, 240), (320, 240))
    frames, _ = load("event-folder", tmp_path, time_steps=2, image_size=40).train[0]
    assert frames.shape == (2, 2, 40, 40) and frames.sum() == 500
