import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from making import some_events, write_npz

from spikformer_edu import SpikformerError
from spikformer_edu.data import PAPER, batches, cifar10dvs, count, load
from spikformer_edu.data.cifar10dvs import INFO
from spikformer_edu.data.digits_motion import record
from spikformer_edu.data.events import read_events, to_frames, write_events
from spikformer_edu.data.recordings import first_nine_tenths

pytestmark = pytest.mark.filterwarnings("ignore:.*holds .* recordings of")


def test_the_official_split_is_the_first_nine_tenths_of_each_class():
    train, test = first_nine_tenths([1000] * 10, None)
    assert len(train) == 9000 and len(test) == 1000
    assert train[:900] == list(range(900)) and test[:100] == list(range(900, 1000))
    assert train[900] == 1000 and sorted(train + test) == list(range(10_000))


@pytest.mark.parametrize("suffix", ["aedat", "aedat4"])
def test_the_packaged_list_is_the_split_of_the_published_names(tmp_path, suffix):
    """Empty files in the official layout: the split reads no recording."""
    for name in INFO.classes:
        (tmp_path / "CIFAR10DVS" / name).mkdir(parents=True)
        for n in range(1000):
            (tmp_path / "CIFAR10DVS" / name / f"cifar10_{name}_{n}.{suffix}").touch()
    splits = load("cifar10dvs", tmp_path)
    file = Path(cifar10dvs.__file__).with_name("cifar10dvs_test.txt")
    listed = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert [Path(name).stem for name in splits.test.names] == listed and len(splits.train) == 9000
    other = load("cifar10dvs", tmp_path, split_seed=1)
    assert sorted(other.train.names + other.test.names) == sorted(splits.train.names + splits.test.names)
    assert 50 < len(set(other.test.names) & set(splits.test.names)) < 200


@pytest.mark.parametrize("count", [2, 3, 5, 9, 10, 11])
def test_neither_side_of_a_small_class_is_empty(count):
    train, test = first_nine_tenths([count, count], None)
    for part in (train, test):
        assert {i // count for i in part} == {0, 1}
    assert sorted(train + test) == list(range(2 * count))


def test_a_split_seed_gives_another_split_that_is_as_fixed():
    first, again, other = (first_nine_tenths([50, 50], seed) for seed in (1, 1, 2))
    assert first == again != other and first != first_nine_tenths([50, 50], None)
    assert sorted(first[0] + first[1]) == list(range(100))


def test_recordings_become_frames_in_the_order_of_their_names(recordings):
    (recordings / "CIFAR10DVS" / "airplane" / "._junk.npz").write_bytes(b"what macOS leaves in archives")
    (recordings / "CIFAR10DVS" / "__MACOSX").mkdir()
    with pytest.warns(UserWarning, match="holds 30 of 10,000 recordings of CIFAR10-DVS"):
        splits = load("cifar10dvs", recordings, time_steps=4)
    assert len(splits.train) == 20 and len(splits.test) == 10 and splits.val is None
    assert splits.train.targets.bincount().tolist() == [2] * 10
    assert splits.info.time_steps == 4 and not splits.info.simulated
    frames, labels = splits.test.fetch(torch.tensor([3, 0]), None)
    assert frames.shape == (4, 2, 2, 128, 128) and frames.dtype == torch.float32 and labels.tolist() == [3, 0]
    events = read_events(recordings / "CIFAR10DVS" / "cat" / "cifar10_cat_2.npz")
    assert np.array_equal(frames[:, 0].numpy(), to_frames(events, 4))


def test_the_second_reading_comes_from_the_cache_and_a_changed_option_or_file_does_not(recordings, monkeypatch):
    def read(**options):
        return load("cifar10dvs", recordings, **options).train.fetch(torch.tensor([0]), None)[0]

    first = read(time_steps=4)
    from spikformer_edu.data import recordings as module

    seen = []
    real = module.cut
    monkeypatch.setattr(module, "cut", lambda path, *args: seen.append(path.name) or real(path, *args))
    assert torch.equal(read(time_steps=4), first) and seen == []
    assert read(time_steps=5).shape[0] == 5 and len(seen) == 1
    assert read(time_steps=4, image_size=32).shape[-1] == 32 and len(seen) == 2
    write_npz(recordings / "CIFAR10DVS" / "airplane" / "cifar10_airplane_0.npz", some_events(700, 99))
    changed = read(time_steps=4)
    assert len(seen) == 3 and changed.sum() == 700


@pytest.mark.parametrize("place", ["CIFAR10DVS", ".", "CIFAR10DVS/events_np", "CIFAR10DVS/extract"])
def test_recordings_are_found_where_people_have_them(tmp_path, recordings, place):
    there = tmp_path / "elsewhere" / place
    there.parent.mkdir(parents=True, exist_ok=True)
    (recordings / "CIFAR10DVS").rename(there)
    assert len(load("cifar10dvs", tmp_path / "elsewhere").train) == 20


def test_a_missing_class_and_a_lonely_recording_are_said(recordings):
    (recordings / "CIFAR10DVS" / "frog" / "cifar10_frog_0.npz").unlink()
    (recordings / "CIFAR10DVS" / "frog" / "cifar10_frog_1.npz").unlink()
    with pytest.raises(SpikformerError, match="frog' has one recording"):
        load("cifar10dvs", recordings)
    (recordings / "CIFAR10DVS" / "frog" / "cifar10_frog_2.npz").unlink()
    with pytest.raises(SpikformerError, match="class 'frog' is empty: no file that ends in .aedat4"):
        load("cifar10dvs", recordings)
    (recordings / "CIFAR10DVS" / "frog").rmdir()
    with pytest.raises(SpikformerError, match="class 'frog' is missing: cannot read .*frog"):
        load("cifar10dvs", recordings)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_recording_stops_with_its_name(recordings, workers):
    broken = recordings / "CIFAR10DVS" / "dog" / "cifar10_dog_1.npz"
    broken.write_bytes(broken.read_bytes()[:500])
    split = load("cifar10dvs", recordings, time_steps=4).train
    with pytest.raises(SpikformerError) as caught:
        list(batches(split, 4, workers=workers))
    assert str(broken) in str(caught.value) and "\n" not in str(caught.value)


def test_batches_of_recordings_do_not_depend_on_workers(recordings):
    split = load("cifar10dvs", recordings, time_steps=3, image_size=32, augment=PAPER["cifar10dvs"]).train
    runs = [list(batches(split, 8, train=True, seed=1, epoch=4, workers=workers)) for workers in (0, 1, 2)]
    assert len(runs[0]) == 2 and not torch.equal(runs[0][0][0], runs[0][1][0])
    for run in runs[1:]:
        for (x, y), (a, b) in zip(run, runs[0], strict=True):
            assert torch.equal(x, a) and torch.equal(y, b)


def test_validation_is_taken_from_training_only(recordings):
    splits = load("cifar10dvs", recordings, val_fraction=0.5)
    names = [set(part.names) for part in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in names] == [10, 10, 10] and len(set.union(*names)) == 30
    assert splits.val.augment is None
    assert names[2] == set(load("cifar10dvs", recordings).test.names)


@pytest.mark.parametrize("bad", [{"time_steps": 0}, {"image_size": 4}, {"image_size": 256}])
def test_impossible_frames_are_refused(recordings, bad):
    with pytest.raises(SpikformerError, match=next(iter(bad))):
        load("cifar10dvs", recordings, **bad)


def test_the_original_archives_are_unpacked(tmp_path, recordings):
    """The ten class archives, inside one archive or not, as they are handed out."""
    import zipfile

    for name in INFO.classes:
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for file in sorted((recordings / "CIFAR10DVS" / name).iterdir()):
                archive.write(file, f"{name}/{file.name}")
    loose, nested = tmp_path / "loose", tmp_path / "nested"
    for folder in (loose, nested):
        (folder / "CIFAR10DVS").mkdir(parents=True)
    with zipfile.ZipFile(nested / "CIFAR10DVS" / "CIFAR10DVS.zip", "w") as archive:
        for name in INFO.classes:
            archive.write(tmp_path / f"{name}.zip", f"{name}.zip")
            (tmp_path / f"{name}.zip").rename(loose / "CIFAR10DVS" / f"{name}.zip")
    for folder in (loose, nested):
        assert len(load("cifar10dvs", folder).train) == 20


def zipped(place, names) -> None:
    """The archive of each class instead of its folder, as the data set is handed out."""
    import shutil

    for name in names:
        shutil.make_archive(place / name, "zip", place, name)
        shutil.rmtree(place / name)


def test_archives_of_missing_classes_are_unpacked_whatever_is_there(recordings):
    """As after a kill half way, or when one class was unpacked by hand."""
    place = recordings / "CIFAR10DVS"
    zipped(place, INFO.classes[1:])
    assert len(load("cifar10dvs", recordings).train) == 20
    mine = place / "ship" / "cifar10_ship_0.npz"
    mine.unlink()
    assert len(load("cifar10dvs", recordings).train) == 20 - 1  # of two, one trains; and the class is left alone
    assert not mine.exists()


def test_archives_are_left_alone_where_recordings_lie_elsewhere(recordings):
    zipped(recordings / "CIFAR10DVS", ["dog"])
    (recordings / "CIFAR10DVS" / "extract").mkdir()
    for name in INFO.classes:
        for i in range(2):
            write_npz(recordings / "CIFAR10DVS" / "extract" / name / f"{i}.npz", some_events(10))
        if name != "dog":
            (recordings / "CIFAR10DVS" / name).rename(recordings / f"no-{name}")
    assert len(load("cifar10dvs", recordings).train) == 10
    assert not (recordings / "CIFAR10DVS" / "dog").exists()


def _load(folder) -> None:
    assert len(load("cifar10dvs", folder).train) == 20


def test_processes_that_find_archives_at_once_agree(recordings):
    import multiprocessing

    zipped(recordings / "CIFAR10DVS", INFO.classes[1:])
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_load, args=(recordings,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert not list((recordings / "CIFAR10DVS").glob(".*"))


def test_one_recording_in_two_formats_is_refused(recordings):
    folder = recordings / "CIFAR10DVS" / "cat"
    (folder / "cifar10_cat_2.aedat").write_bytes(b"#!AER-DAT2.0\r\n")
    with pytest.raises(SpikformerError, match="twice, cifar10_cat_2.aedat and cifar10_cat_2.npz: remove one"):
        load("cifar10dvs", recordings)


# Simulated recordings ----------------------------------------------------------------------------------------------


def test_digits_dvs_need_no_file_and_are_kept(user_cache):
    splits = load("digits-dvs", time_steps=2, image_size=16)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [1258, 180, 359]
    assert splits.info.simulated and len(list((user_cache / "spikformer_edu" / "digits-dvs").iterdir())) == 1
    frames, labels = splits.train.fetch(torch.arange(5), None)
    assert frames.shape == (2, 5, 2, 16, 16) and torch.equal(labels, splits.train.targets[:5])
    assert torch.equal(load("digits-dvs", time_steps=2, image_size=16).train.frames, splits.train.frames)


def test_a_round_goes_the_way_that_its_name_says():
    """A bright dot: where events are brighter, there it goes; its angle runs on, or back."""
    dot = torch.zeros(1, 9, 9)
    dot[:, 4, 4] = 1
    for clockwise in (True, False):
        for number in (0, 1, 2):
            (events,) = record(dot, [number], clockwise, size=32)
            assert events["t"].min() >= 0 and events["t"].max() < 200_000
            brighter = events[events["p"]]
            places = [brighter[brighter["t"] // 25_000 == i] for i in range(8)]
            angles = [np.arctan2(part["y"].mean() - 15.5, part["x"].mean() - 15.5) for part in places]
            turn = np.diff(np.unwrap(angles)).sum()  # y runs down: on the screen a positive turn is clockwise
            assert (turn > 4) if clockwise else (turn < -4)


def test_motion_is_in_the_frames_and_not_in_their_sum(user_cache):
    splits = load("digits-motion", time_steps=4)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [2516, 360, 718]
    assert splits.info.simulated and "simulated" in splits.info.title and splits.info.num_classes == 2
    assert len({*splits.train.keys(), *splits.val.keys(), *splits.test.keys()}) == 3594
    counts, ways = splits.train.frames.float(), splits.train.targets
    assert ways.bincount().tolist() == [1258, 1258]
    one, other = (counts[ways == way].sum(1).mean(0) for way in (0, 1))  # mean recording, all frames summed
    assert (one - other).abs().mean() < 0.05 * one.mean()
    same = counts[ways == 0].sum(1), counts[ways == 1].sum(1)  # the same digits from the same starts
    assert (same[0] - same[1]).abs().mean() < 0.25 * one.mean()
    assert (counts[ways == 0] - counts[ways == 1]).abs().mean() > 0.25 * counts.mean()
    few = load("digits-motion", time_steps=4, samples_per_class=10)
    assert few.train.targets.tolist() == [0] * 10 + [1] * 10 and len(few.test) == 20


def test_simulated_digits_are_recognised_by_a_linear_classifier():
    """Labels and frames belong together, and the pictures are in the events."""
    from sklearn.linear_model import RidgeClassifier

    splits = load("digits-dvs", samples_per_class=40)

    def features(split):
        return split.frames.float().mean(1).flatten(1).numpy(), split.targets.numpy()

    model = RidgeClassifier(100.0).fit(*features(splits.train))
    assert model.score(*features(splits.test)) > 0.8


def test_real_aedat4_files_of_a_simulated_camera_are_read_end_to_end(tmp_path):
    pytest.importorskip("dv_processing")
    from spikformer_edu.data.cifar10dvs import LABEL

    written = {}
    for label in "07":
        for i in range(2):
            events = some_events(21_007, seed=10 * int(label) + i)
            path = tmp_path / "CIFAR10DVS" / label / f"digits_{label}_{i}.aedat4"
            write_events(path, events)
            written[label, i] = events
    (tmp_path / "CIFAR10DVS" / LABEL).write_text("simulated\n")
    splits = load("cifar10dvs", tmp_path, time_steps=16)
    assert splits.info.classes == ("0", "7") and splits.info.simulated and "simulated" in splits.info.title
    assert splits.info.num_classes == 2
    for split, i in ((splits.train, 0), (splits.test, 1)):
        frames, labels = split.fetch(torch.arange(2), None)
        for column, label in enumerate(labels.tolist()):
            expected = to_frames(written["07"[label], i], 16)
            assert np.array_equal(frames[:, column].numpy(), expected)


# DVS128 Gesture ----------------------------------------------------------------------------------------------------


@pytest.fixture
def gestures(tmp_path):
    for split, users in (("Train", (1, 2)), ("Test", (24,))):
        for user in users:
            for label in range(11):
                events = some_events(300, seed=100 * user + label)
                folder = tmp_path / "DVSGesture" / f"ibmGesture{split}" / f"user{user:02d}_fluorescent"
                folder.mkdir(parents=True, exist_ok=True)
                rows = np.stack([events["x"], events["y"], events["p"], events["t"] // 1000], axis=1)
                np.save(folder / f"{label}.npy", rows)
    return tmp_path


def test_gestures_keep_the_official_users_apart(gestures):
    with pytest.warns(UserWarning, match="22 of 1,077 recordings of DVS128 Gesture"):
        splits = load("dvsgesture", gestures, time_steps=5)
    assert len(splits.train) == 22 and len(splits.test) == 11
    assert all(name.startswith("user24") for name in splits.test.names)
    frames, labels = splits.test.fetch(torch.tensor([10, 2]), None)
    assert labels.tolist() == [10, 2] and frames.shape == (5, 2, 2, 128, 128)
    file = gestures / "DVSGesture" / "ibmGestureTest" / "user24_fluorescent" / "10.npy"
    assert np.array_equal(frames[:, 0].numpy(), to_frames(read_events(file), 5))


def test_gesture_archives_are_unpacked_and_a_missing_gesture_is_said(gestures):
    import shutil
    import tarfile

    place = gestures / "DVSGesture"
    for name in ("ibmGestureTrain", "ibmGestureTest"):
        with tarfile.open(place / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(place / name, name)
        shutil.rmtree(place / name)
    before = sorted(place.iterdir())
    assert count("dvsgesture", gestures) == {} and sorted(place.iterdir()) == before
    assert len(load("dvsgesture", gestures).train) == 22
    assert count("dvsgesture", gestures) == {"train": 22, "test": 11}
    for file in (place / "ibmGestureTrain").glob("*/7.npy"):
        file.unlink()
    with pytest.raises(SpikformerError, match=r"no recording of gesture 7 \(arm roll\)"):
        load("dvsgesture", gestures)


@pytest.mark.parametrize("folder", ["events_np", "frames_number_4_split_by_number"])
@pytest.mark.parametrize("place", ["DVSGesture", "DVS128Gesture", "."])
def test_gestures_are_found_in_the_folders_of_spikingjelly(tmp_path, folder, place):
    for split, number in (("train", 2), ("test", 1)):
        for label in range(11):
            for i in range(number):
                events = some_events(300, seed=10 * label + i)
                file = tmp_path / place / folder / split / str(label) / f"user0{i}_led_{i}.npz"
                if folder == "events_np":
                    write_npz(file, events)
                else:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    np.savez(file, frames=to_frames(events, 4))
    splits = load("dvsgesture", tmp_path, time_steps=4)
    assert (len(splits.train), len(splits.test)) == (22, 11)
    frames, labels = splits.test.fetch(torch.tensor([10, 2]), None)
    assert labels.tolist() == [10, 2]
    assert np.array_equal(frames[:, 1], to_frames(some_events(300, seed=20), 4))


def test_the_original_gesture_recordings_are_cut_by_their_tables(tmp_path):
    from making import write_aedat3

    root = tmp_path / "DVSGesture" / "DvsGesture"
    recordings = {}
    for part, user in (("train", 1), ("test", 24)):
        name = f"user{user:02d}_lab"
        events = some_events(6000, seed=user)  # 1.2 seconds: eleven gestures of a tenth of a second
        write_aedat3(root / f"{name}.aedat", events)
        rows = [f"{label},{100_000 * label - 50_000},{100_000 * label + 50_000}" for label in range(1, 12)]
        (root / f"{name}_labels.csv").write_text("class,startTime_usec,endTime_usec\n" + "\n".join(rows) + "\n")
        (root / f"trials_to_{part}.txt").write_text(f"{name}.aedat\n")
        recordings[part] = events
    splits = load("dvsgesture", tmp_path, time_steps=2)
    assert (len(splits.train), len(splits.test)) == (11, 11)
    for part in ("train", "test"):
        t = recordings[part]["t"]
        gesture = recordings[part][(t >= 250_000) & (t < 350_000)]
        frames, label = splits[part][2]
        assert label == 2 and np.array_equal(frames, to_frames(gesture, 2))
    assert count("dvsgesture", tmp_path) == {"train": 11, "test": 11}
    assert sorted(p.name for p in (tmp_path / "DVSGesture").iterdir()) == ["DvsGesture", "events_np"]


def test_the_recorded_motion_runs_are_at_chance_without_time_and_better_with_every_doubling():
    """What the results page says of them."""
    found = json.loads((Path(__file__).parents[2] / "docs" / "results" / "motion.json").read_text())["accuracy"]
    means = {name: sum(scores) / len(scores) for name, scores in found.items()}
    for name in {"1", "the sum, 8 times"} & set(means):
        assert abs(means[name] - 0.5) < 0.03, name
    steps = sorted(int(name) for name in means if name.isdigit())
    assert steps[:3] == [1, 2, 4] and all(means[str(a)] < means[str(b)] for a, b in pairwise(steps))
