import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from making import write_picture
from torch.utils.data import DataLoader

from spikformer_edu import SpikformerError
from spikformer_edu.data import MODULES, PAPER, Augment, batches, info, load, mixup_cutmix
from spikformer_edu.data.base import FILES_READ, Absent, Split, stratified_split
from spikformer_edu.data.digits import Digits, plain_sevens
from spikformer_edu.data.files import data_folder
from spikformer_edu.data.images import Pictures
from spikformer_edu.data.loading import Reader


def test_the_registry_knows_every_data_set_of_the_paper():
    assert list(MODULES) == [
        "digits", "digits-dvs", "digits-motion", "cifar10", "cifar100", "cifar10dvs", "dvsgesture", "nmnist",
        "imagenet", "folder", "event-folder",
    ]  # fmt: skip
    for name in MODULES:
        facts = info(name)
        assert facts.name == name and facts.licence and facts.citation and facts.obtain
        assert len(facts.mean) == len(facts.std) == (0 if facts.time_steps else facts.channels)
        assert facts.num_classes == len(facts.classes) or not facts.classes
    assert [info(n).num_classes for n in MODULES] == [10, 10, 2, 10, 100, 10, 11, 10, 1000, 0, 0]
    assert info("digits-dvs").simulated


def test_simulated_recordings_are_called_so():
    real = replace(info("digits-dvs"), simulated=False, title="Some events")
    assert (real.label, real.title) == ("digits-dvs", "Some events")
    simulated = replace(real, simulated=True)
    assert (simulated.label, simulated.title) == ("digits-dvs (simulated)", "Some events (simulated)")
    assert info("digits-dvs").title.count("simulated") == 1


def test_default_models_fit_their_data_sets():
    from spikformer_edu.presets import PRESETS

    for name in MODULES:
        facts = info(name)
        model = PRESETS[facts.default_model]
        if name not in ("folder", "event-folder"):  # these borrow one of another data set
            assert model.dataset == name and model.config.num_classes == facts.num_classes
            assert model.config.in_channels == facts.channels and model.image_size == facts.image_size
            assert facts.time_steps in (None, model.config.time_steps)


def test_unknown_names_and_options_get_one_line_that_helps():
    with pytest.raises(SpikformerError, match="did you mean 'cifar10'"):
        load("cifar1O")
    with pytest.raises(SpikformerError, match="digits has no use for image_size=64"):
        load("digits", image_size=64)
    with pytest.raises(SpikformerError, match="digits has no use for val_fraction"):
        load("digits", val_fraction=0.1)
    with pytest.raises(SpikformerError, match="mixup and cutmix"):
        load("digits", augment=Augment(flip=0.5))
    assert (
        len(load("digits", time_steps=4, image_size=32, val_fraction=0, augment=None, samples_per_class=None).train)
        == 1258
    )


def test_the_data_directory_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    (tmp_path / "sets").mkdir()
    assert data_folder("~/sets") == tmp_path / "sets"
    monkeypatch.setenv("SPIKFORMER_DATA", "~/sets")
    assert data_folder() == tmp_path / "sets"
    for named in ("~no-such-user/sets", "\0", "a" * 300):
        with pytest.raises(SpikformerError, match="no home folder is known for ~no-such|no folder|cannot read"):
            data_folder(named)


@pytest.mark.parametrize(
    "bad", [{"samples_per_class": 0}, {"samples_per_class": -1}, {"split_seed": -1}, {"split_seed": 2**32}]
)
@pytest.mark.parametrize("name", ["digits", "digits-dvs", "cifar10dvs"])
def test_impossible_choices_of_samples_are_refused(name, bad):
    ((option, value),) = bad.items()
    with pytest.raises(SpikformerError, match=f"{option}={value}: give"):
        load(name, **bad)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("digits", {"crop_area": (0.5, 1.0)}),
        ("digits", {"neuromorphic": True}),
        ("digits-dvs", {"erasing": 0.5}),
        ("digits-dvs", {"plain_sevens": 0.3}),
        ("cifar10", {"crop_area": (0.5, 1.0)}),
        ("cifar100", {"neuromorphic": True}),
        ("cifar10dvs", {"randaugment": 1}),
        ("dvsgesture", {"crop_padding": 4}),
        ("imagenet", {"neuromorphic": True}),
        ("folder", {"neuromorphic": True}),
        ("event-folder", {"erasing": 0.5}),
        ("nmnist", {"crop_padding": 4}),
    ],
)
def test_an_augmentation_that_would_do_nothing_is_refused(name, settings, tmp_path):
    with pytest.raises(SpikformerError, match=f"{name} has no use for augment.{next(iter(settings))}=.* and cutmix"):
        load(name, tmp_path, augment=Augment(**settings))


def test_sevens_without_a_crossbar_are_drawn_as_the_digits_were():
    sevens = plain_sevens(200, torch.Generator().manual_seed(0))
    assert sevens.shape == (200, 8, 8) and torch.equal(sevens * 16, (sevens * 16).round()) and 0 < sevens.max() <= 1
    ink = sevens > 0
    assert (ink[:, :2].any(1).sum(1) >= 4).all()  # a bar at the top
    assert (ink[:, 4:].any(2)).all() and (ink[:, 3:].sum(2) <= 3).all()  # one stroke below, and no other bar


def test_only_training_sevens_are_replaced_and_only_when_asked_for():
    splits = load("digits", augment=Augment(plain_sevens=0.3))
    usual = load("digits")
    for name in ("val", "test"):
        everything = torch.arange(len(splits[name]))
        assert torch.equal(splits[name].fetch(everything, None)[0], usual[name].fetch(everything, None)[0])
    everything = torch.arange(len(splits.train))
    assert torch.equal(splits.train.fetch(everything, None)[0], usual.train.fetch(everything, None)[0])

    def fetch(share: float) -> torch.Tensor:
        split = Digits(splits.train.images, splits.train.targets, share)
        return split.fetch(everything, torch.Generator().manual_seed(0))[0]

    # With other draws before it, the pen differs: shares of almost 0 and of 1 draw the same numbers.
    changed = (fetch(1e-9) != fetch(1.0)).flatten(1).any(1)
    assert torch.equal(changed, splits.train.targets == 7)
    share = (fetch(1e-9) != fetch(0.3)).flatten(1).any(1).sum() / (splits.train.targets == 7).sum()
    assert 0.2 < share < 0.4


def test_toy_and_validation_are_balanced_disjoint_and_fixed():
    targets = torch.randint(7, (1000,), generator=torch.Generator().manual_seed(0))
    rest, val = stratified_split(targets, 0.1, None, None)
    assert torch.equal(torch.cat([rest, val]).sort().values, torch.arange(1000))
    shares = targets[val].bincount() / targets.bincount()
    assert ((shares - 0.1).abs() < 0.01).all()
    some, some_val = stratified_split(targets, 0.1, 3, None)
    assert targets[some].bincount().tolist() == targets[some_val].bincount().tolist() == [3] * 7
    assert set(some.tolist()) <= set(rest.tolist()) and set(some_val.tolist()) <= set(val.tolist())
    assert torch.equal(stratified_split(targets, 0.1, 3, None)[0], some)
    assert not torch.equal(stratified_split(targets, 0.1, 3, 1)[0], some)
    assert len(stratified_split(targets, None, None, None)[1]) == 0
    for share in (1.0, -0.1):
        with pytest.raises(SpikformerError, match="val_fraction"):
            stratified_split(targets, share)


def test_a_fingerprint_of_samples_in_memory_covers_pixels_and_names_of_classes_and_knows_their_order():
    split, names = load("digits", samples_per_class=3).test, info("digits").classes
    own = split.fingerprint(names)
    assert own["samples"] == 30 and own == load("digits", samples_per_class=3).test.fingerprint(names)
    assert load("digits", samples_per_class=4).test.fingerprint(names)["content"] != own["content"]
    turned = Digits(split.images.flip(0), split.targets.flip(0)).fingerprint(names)
    assert turned["content"] == own["content"] and turned["order"] != own["order"]
    # Other numbers for the same classes: nothing has changed but the order of the names.
    assert Digits(split.images, 9 - split.targets).fingerprint(names[::-1]) == own
    assert split.fingerprint(names[::-1])["content"] != own["content"]
    images = split.images.clone()
    images[7, 0, 0] += 1 / 16
    assert Digits(images, split.targets).fingerprint(names)["content"] != own["content"]


def test_event_frames_that_are_simulated_on_the_spot_are_told_apart_by_their_source():
    splits = [
        load("digits-dvs", samples_per_class=2, time_steps=steps, image_size=size) for steps, size in ((1, 16), (2, 8))
    ]
    names = splits[0].info.classes
    assert splits[0].test.fingerprint(names) == splits[1].test.fingerprint(names)
    assert splits[0].test.fingerprint(names) == load("digits", samples_per_class=2).test.fingerprint(names)


def write_classes(folder, seed=0, count=4):
    for label, name in enumerate(("cat", "dog")):
        for part in ("train", "test"):
            for i in range(count):
                write_picture(folder / part / name / f"{i:02d}.png", 100 * label + i + seed)


def test_a_fingerprint_of_files_does_not_depend_on_the_place_the_time_or_the_augmentation(tmp_path, monkeypatch):
    for name in ("here", "there", "other", "renamed"):
        write_classes(tmp_path / name, seed=1000 if name == "other" else 0)
    os.utime(tmp_path / "there" / "train" / "cat" / "00.png", (0, 0))
    moved = tmp_path / "renamed" / "train" / "cat"
    (moved / "00.png").rename(moved / "99.png")
    names = ("cat", "dog")

    def fingerprint(folder, **options):
        return load("folder", tmp_path / folder, **options).train.fingerprint(names)

    own = fingerprint("here")
    assert own == fingerprint("there", image_size=32, augment=PAPER["imagenet"]) and own["samples"] == 8
    assert own["content"] != fingerprint("other")["content"]  # the same names, other pictures
    assert own["content"] != fingerprint("renamed")["content"]
    write_classes(tmp_path / "many", count=40)
    read, real = [], Pictures.read
    monkeypatch.setattr(Pictures, "read", lambda self, index: read.append(index) or real(self, index))
    assert fingerprint("many")["samples"] == 80 and len(set(read)) == len(read) == FILES_READ
    (tmp_path / "here" / "train" / "cat" / "00.png").unlink()
    (tmp_path / "here" / "train" / "cat" / "00.png").symlink_to("nowhere")
    with pytest.raises(SpikformerError, match=r"cannot read .*00\.png: No such file"):
        fingerprint("here")


@pytest.mark.filterwarnings("ignore:.*holds .* recordings of")
def test_a_fingerprint_of_recordings_covers_their_names_and_a_few_of_them(recordings):
    def fingerprint():
        splits = load("cifar10dvs", recordings, time_steps=2)
        return splits.test.fingerprint(splits.info.classes)

    own = fingerprint()
    assert own["samples"] == 10
    file = recordings / "CIFAR10DVS" / "cat" / "cifar10_cat_2.npz"
    np.savez(file, **{name: values[:-1] for name, values in np.load(file).items()})
    assert fingerprint()["content"] != own["content"]


def test_an_absent_split_has_no_fingerprint():
    assert Absent("no train images in there: fetch them").fingerprint(("cat", "dog")) is None


def all_batches(split: Split, workers: int, start: int = 0):
    return list(batches(split, 16, train=True, seed=3, epoch=2, start=start, workers=workers))


@pytest.mark.parametrize("name, augment", [("digits", None), ("digits-dvs", PAPER["cifar10dvs"])])
def test_batches_do_not_depend_on_workers_nor_on_where_an_epoch_goes_on(name, augment):
    split = load(name, samples_per_class=12, augment=augment).train
    expected = all_batches(split, 0)
    assert len(expected) == 7
    for workers in (1, 2):
        for (x, y), (a, b) in zip(all_batches(split, workers), expected, strict=True):
            assert torch.equal(x, a) and torch.equal(y, b)
    for (x, y), (a, b) in zip(all_batches(split, 0, start=5), expected[5:], strict=True):
        assert torch.equal(x, a) and torch.equal(y, b)


def test_batches_leave_the_global_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(batches(load("digits", samples_per_class=3).train, 8, train=True))
    assert torch.equal(torch.get_rng_state(), before)


class Broken(Split):
    targets = torch.zeros(20, dtype=torch.int64)

    def fetch(self, indices, generator):
        raise SpikformerError("broken.png is no readable image: remove it")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_inside_a_worker_is_still_one_line(workers):
    with pytest.raises(SpikformerError) as caught:
        list(batches(Broken(), 4, workers=workers))
    assert str(caught.value) == "broken.png is no readable image: remove it"


READ = """
import multiprocessing, os, resource, signal, sys
multiprocessing.set_start_method("fork")
files = resource.getrlimit(resource.RLIMIT_NOFILE)
from spikformer_edu import SpikformerError
from spikformer_edu.data import batches, load
split = load("digits").train
reading = batches(split, 256, workers=2)
"""


def reads(*lines, **options):
    """A process that reads digits with two others: standard output and error, once all three are gone."""
    code = READ + "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, **options)
    return done.returncode, done.stdout, done.stderr


def test_readers_leave_signals_to_the_process_that_they_read_for():
    send = "import os; os.killpg({os.getpgid(0)}, {number})"
    code, out, err = reads(
        "import subprocess",
        "for number in (signal.SIGINT, signal.SIGTERM):",
        "    signal.signal(number, lambda *_: print('asked'))",
        "read = len(next(reading)[1])",
        f"sends = [f'{send}' for number in (2, 15, 2, 15)]",
        "for send in sends: subprocess.run([sys.executable, '-c', send], start_new_session=True, check=True)",
        "print(read + sum(len(labels) for _, labels in reading), len(split))",
        start_new_session=True,
    )
    assert (code, err) == (0, "") and out == "asked\n" * 4 + "1258 1258\n"


@pytest.mark.slow
@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_readers_end_with_the_process_that_they_read_for(end):
    assert reads("next(reading)", end) == (3 if "exit" in end else -signal.SIGKILL, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (99_999, 99_999))",
         "too little shared memory for the processes that read data: lower --workers, or raise it (Docker:"),
        ("resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(1), files[1]))",
         "cannot start the processes that read data (Too many open files): lower --workers"),
        ("kept = [next(reading)]; resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(1), files[1]))",
         "too many open files: lower --workers, or raise the limit (ulimit -n)"),
        ("fetch = split.fetch; me = os.getpid()\n"
         "split.fetch = lambda *a: fetch(*a) if os.getpid() == me else os.kill(os.getpid(), signal.SIGKILL)",
         "a process that reads data was killed, perhaps for memory: lower --workers"),
    ],
    ids=["shared memory", "no files to start", "no files for batches", "killed"],
)  # fmt: skip
def test_readers_that_cannot_go_on_say_so_in_one_line_and_nothing_hangs(limit, says):
    code, out, err = reads(
        limit,
        "try:",
        "    rest = list(reading)",
        "except SpikformerError as error:",
        "    print(error)",
        "resource.setrlimit(resource.RLIMIT_NOFILE, files)",  # the end of Python needs some
    )
    assert (code, err) == (0, "") and out.startswith(says) and out.count("\n") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_one_after_another_have_the_same_readers_and_the_batches_of_each(workers):
    split = load("digits", samples_per_class=12).train
    options = dict(train=True, seed=3, workers=workers)
    reader, seen = Reader(split, 16, **options), []
    for epoch, start, stop in ((0, 0, 7), (1, 0, 2), (2, 3, 7), (2, 3, 7)):  # the second one ends early
        read = reader.epoch(epoch, start)
        for number, (x, y) in enumerate(batches(split, 16, train=True, seed=3, epoch=epoch), 0):
            if start <= number < stop:
                a, b = next(read)
                assert torch.equal(x, a) and torch.equal(y, b)
        assert stop < 7 or not list(read)
        del read
        seen.append([process.pid for process in getattr(reader.reading, "_workers", ())])
    processes = getattr(reader.reading, "_workers", ())
    assert len(processes) == workers == len(set(seen[0])) and seen == [seen[0]] * 4
    reader.close()
    reader.close()  # once more does no harm
    assert not any(process.is_alive() for process in processes)


@pytest.mark.slow
def test_readers_that_are_killed_between_two_epochs_are_one_line():
    lines = (
        "from spikformer_edu.data.loading import Reader",
        "from spikformer_edu.data.workers import readers",
        "reader = Reader(split, 256, workers=2)",
        "print(len(list(reader.epoch(0))))",
        "try:",
        "    with readers():",  # PyTorch tells of it at any moment: training does all of its work in this block
        "        [process.kill() for process in reader.reading._workers]",
        "        list(reader.epoch(1))",
        "except SpikformerError as error:",
        "    print(error)",
        "reader.close()",
    )
    said = "5\na process that reads data was killed, perhaps for memory: lower --workers\n"
    assert reads(*lines) == (0, said, "")


def test_what_is_absent_says_why_to_whoever_asks():
    split = Absent("no train images in there: fetch them")
    for ask in (len, lambda s: s.targets, lambda s: list(batches(s, 4, train=True))):
        with pytest.raises(SpikformerError, match="no train images in there: fetch them"):
            ask(split)


def test_ranks_share_an_epoch_without_overlap():
    split = load("digits", samples_per_class=10).train
    seen = [torch.cat([y for _, y in batches(split, 10, rank=r, world=2)]) for r in range(2)]
    assert len(seen[0]) + len(seen[1]) == len(split)
    assert torch.equal(torch.cat(seen).bincount(), split.targets.bincount())


@pytest.mark.parametrize("name", ["digits", "digits-dvs"])
def test_a_split_is_a_dataset_of_pytorch(name):
    """Single samples and the batches of a plain DataLoader hold what ``fetch`` reads; frames come batch first there."""
    split = load(name, samples_per_class=2).test
    inputs, labels = split.fetch(torch.arange(len(split)), None)
    image, label = split[3]
    assert torch.equal(image, inputs.select(-4, 3)) and label == int(labels[3]) and type(label) is int
    assert torch.equal(split[-1][0], inputs.select(-4, -1)) and len(list(split)) == len(split) == 20
    for index in (20, -21):
        with pytest.raises(IndexError, match=f"sample {index} of 20"):
            split[index]
    read = list(DataLoader(split, batch_size=8, num_workers=1))
    assert torch.equal(torch.cat([x for x, _ in read]), inputs.movedim(-4, 0))
    assert torch.equal(torch.cat([y for _, y in read]), labels)


@pytest.mark.slow  # it waits for the ten seconds that PyTorch gives a process
def test_a_process_that_is_still_starting_at_the_end_says_nothing(tmp_path):
    """On a busy machine the second process may take longer to start than the first one works."""
    (tmp_path / "late.py").write_text(
        """
import multiprocessing, time
import torch
from spikformer_edu.data import batches
from spikformer_edu.data.base import Split

class Late(Split):
    def __init__(self):
        self.targets, self.device, self.info = torch.zeros(8).long(), torch.device("cpu"), None
    def fetch(self, indices, generator):
        return torch.zeros(len(indices)), self.targets[indices]
    def __setstate__(self, state):
        self.__dict__ = state
        if multiprocessing.current_process().name.endswith("2"):
            time.sleep(60)

if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    reading = batches(Late(), 4, workers=2)
    next(reading)
    reading.close()
"""
    )
    done = subprocess.run([sys.executable, "late.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # once nothing is left that could write there


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_without_samples_and_epochs_that_are_over_have_no_batches(workers):
    split = load("digits", samples_per_class=1).train
    split.images, split.targets = split.images[:2], split.targets[:2]
    shares = [list(batches(split, 10, rank=rank, world=3, workers=workers)) for rank in range(3)]
    assert [len(share) for share in shares] == [1, 1, 0]
    assert list(batches(split, 1, start=5, workers=workers)) == []  # there were more samples when the run began


def test_on_mps_samples_stay_in_memory():
    splits = load("digits", samples_per_class=1)
    assert splits.to("mps") is splits and splits.to("meta") is not splits


STRONG = Augment(
    flip=0.5, crop_padding=4, randaugment=3, operations="all", magnitude_std=0.5, erasing=0.5, crop_area=(0.3, 1.0)
)
EVERYTHING = {  # that a data set does to its training samples
    "digits": None,
    "digits-dvs": PAPER["cifar10dvs"],
    "cifar10": replace(STRONG, crop_area=(1.0, 1.0)),
    "cifar10dvs": PAPER["cifar10dvs"],
    "folder": STRONG,
}


@pytest.fixture
def everywhere(tmp_path, pictures, recordings):
    """Data set -> its options, with files for it."""
    for i in range(24):
        folder = tmp_path / "mine" / ("train", "test")[i % 2] / ("apple", "pear")[i // 2 % 2]
        write_picture(folder / f"{i}.png", i, size=(40, 33))
    small = {"digits": {"samples_per_class": 2}, "digits-dvs": {"samples_per_class": 2}, "folder": {"image_size": 24}}
    where = {"folder": tmp_path / "mine"}
    return lambda name: {"data_dir": where.get(name, tmp_path), **small.get(name, {})}


def everything_of(name, options):
    """Training batches, mixed, and test batches."""
    splits = load(name, augment=EVERYTHING[name], **options)
    numbers = torch.Generator("cpu").manual_seed(0)
    mixed = [
        mixup_cutmix(*batch, splits.info.num_classes, 0.5, 0.5, numbers)
        for batch in batches(splits.train, 4, train=True, seed=3)
    ]
    return mixed + list(batches(splits.test, 5))


@pytest.mark.filterwarnings("ignore:.* holds ")
@pytest.mark.parametrize("change", ["float64", "bfloat16", "float16", "device"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_batches_are_the_same_whatever_pytorchs_defaults_are(name, everywhere, change, default_dtype):
    options = everywhere(name)
    expected = everything_of(name, options)
    try:
        torch.set_default_device("meta") if change == "device" else default_dtype(getattr(torch, change))
        found = everything_of(name, options)
    finally:
        torch.set_default_device(None)
    assert len(found) == len(expected) > 2
    for (inputs, targets), (others, labels) in zip(expected, found, strict=True):
        assert inputs.dtype == others.dtype == torch.float32 and inputs.std() > 0
        assert torch.equal(inputs, others) and torch.equal(targets, labels) and targets.dtype == labels.dtype
