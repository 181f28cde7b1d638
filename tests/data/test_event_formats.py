"""Every format against the reading of tonic, expelliarmus or aedat; any sensor; bad files in one line."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from making import some_events, write_aedat3, write_bin, write_davis, write_npz, write_prophesee

from spikformer_edu import SpikformerError
from spikformer_edu.data.event_formats import FORMATS, PART
from spikformer_edu.data.events import (
    EventFile,
    read_events,
    read_frames,
    survey,
    to_frames,
    write_events,
)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return len(a) == len(b) and all((a[name] == b[name]).all() for name in "txyp")


@pytest.fixture
def real() -> Path:
    """Real recordings: a folder with recording_320x240.aedat4 and nmnist/<digit>/*.bin."""
    folder = os.environ.get("SPIKFORMER_EVENTS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real recordings are not here: set SPIKFORMER_EVENTS")
    return Path(folder)


# Against the readers of others ---------------------------------------------------------------------------------------


def test_a_real_aedat4_recording_is_what_tonic_reads(real):
    from tonic.io import read_aedat4

    file = real / "recording_320x240.aedat4"
    theirs = read_aedat4(str(file))
    theirs.dtype.names = ("t", "x", "y", "p")
    assert same(read_events(file), theirs) and len(theirs) == 111_954
    assert EventFile(file).stated == (320, 240)
    frames = read_frames(file, 4, size=64)
    assert frames.shape == (4, 2, 64, 64) and frames.sum() == len(theirs)


def test_real_recordings_of_nmnist_are_what_tonic_reads(real):
    from tonic.datasets import NMNIST
    from tonic.io import read_mnist_file

    files = [*real.glob("nmnist/*/*.bin"), real / "nmnist_sample.bin"]
    assert len(files) == 4
    for file in files:
        theirs = read_mnist_file(str(file), dtype=NMNIST.dtype)
        assert same(read_events(file), theirs) and len(theirs) > 2000
        assert survey(file).likely_sensor == (34, 34)


def test_a_bin_file_with_overflows_is_what_tonic_reads(tmp_path):
    from tonic.datasets import NMNIST
    from tonic.io import read_mnist_file

    events = some_events(5000, sensor=34)
    events["t"] *= 20  # 24 seconds: more than 23 bits
    write_bin(tmp_path / "a.bin", events)
    assert same(read_events(tmp_path / "a.bin"), events)
    assert same(read_mnist_file(str(tmp_path / "a.bin"), dtype=NMNIST.dtype), events)


@pytest.mark.parametrize("stated", [(1280, 720), None])
@pytest.mark.parametrize("encoding, suffix", [("dat", ".dat"), ("evt2", ".raw"), ("evt3", ".raw")])
def test_prophesee_files_are_what_expelliarmus_reads(tmp_path, encoding, suffix, stated):
    from expelliarmus import Wizard

    events = some_events(30_000, sensor=1280, height=720)
    file = tmp_path / f"a{suffix}"
    write_prophesee(file, events, encoding, stated)
    assert same(read_events(file), events) and same(Wizard(encoding).read(file), events)
    assert EventFile(file).stated == stated and survey(file).likely_sensor == (1280, 720)


def test_aedat_3_1_is_what_tonic_reads_but_the_packets_that_are_no_events(tmp_path):
    from tonic.io import get_aer_events_from_file, read_aedat_header_from_file

    events = some_events(2500)
    write_aedat3(tmp_path / "a.aedat", events)
    assert same(read_events(tmp_path / "a.aedat"), events) and EventFile(tmp_path / "a.aedat").stated == (128, 128)
    _, start, _ = read_aedat_header_from_file(str(tmp_path / "a.aedat"))
    words = get_aer_events_from_file(str(tmp_path / "a.aedat"), 3.1, start)
    words = words[words["timeStamp"] != 7]  # the special events, which tonic takes for events
    address = words["address"]
    assert len(words) == len(events)
    assert (address >> 17 == events["x"]).all() and (address >> 2 & 0x1FFF == events["y"]).all()
    assert (words["timeStamp"] == events["t"]).all() and (address >> 1 & 1 == events["p"]).all()


def test_an_aedat_2_file_of_a_davis_is_what_tonic_reads_without_the_images(tmp_path):
    from tonic.io import read_davis_346

    events = some_events(2000, sensor=346, height=260)
    write_davis(tmp_path / "a.aedat", events)
    assert same(read_events(tmp_path / "a.aedat"), events) and EventFile(tmp_path / "a.aedat").stated == (346, 260)
    file = tmp_path / "a.aedat"
    content = file.read_bytes()
    start = content.index(b"Header\r\n") + 8
    words = np.frombuffer(content[start:], ">u4").reshape(-1, 2)
    file.write_bytes(content[:start] + words[words[:, 0] < 2**31].tobytes())  # tonic takes images for events
    _, _, theirs = read_davis_346(str(file))
    assert same(events, theirs)


def test_aedat4_of_any_sensor_is_what_was_written_and_what_tonic_reads(tmp_path):
    pytest.importorskip("dv_processing")
    from tonic.io import read_aedat4

    events = some_events(25_000, sensor=640, height=480)
    write_events(tmp_path / "a.aedat4", events, (640, 480))
    theirs = read_aedat4(str(tmp_path / "a.aedat4"))
    theirs.dtype.names = ("t", "x", "y", "p")
    assert same(read_events(tmp_path / "a.aedat4"), events) and same(theirs, events)
    assert survey(tmp_path / "a.aedat4").sensor == (640, 480)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_and_npy_are_read_part_by_part(tmp_path, save):
    events = some_events(2 * PART + 77, sensor=346, height=260)
    save(tmp_path / "a.npz", **{name: events[name] for name in "txyp"})
    save(tmp_path / "b.npz", events=events)
    np.save(tmp_path / "c.npy", events)
    for name in ("a.npz", "b.npz", "c.npy"):
        parts = list(EventFile(tmp_path / name))
        assert [len(part) for part in parts] == [PART, PART, 77] and same(np.concatenate(parts), events)


# Any sensor ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensor", [(34, 34), (128, 128), (240, 180), (346, 260), (320, 240), (1280, 720)])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_a_smaller_frame_is_what_tonic_makes_of_downsampled_events(sensor, size):
    from tonic.transforms import Downsample, ToFrame

    events = some_events(16_000, sensor=sensor[0], height=sensor[1])
    small = Downsample(sensor_size=(*sensor, 2), target_size=(size, size))(events)
    theirs = ToFrame(sensor_size=(size, size, 2), n_event_bins=8)(small)
    assert np.array_equal(to_frames(events, 8, size, sensor), theirs)


def test_frames_of_equal_time_are_what_tonic_makes():
    from tonic.transforms import ToFrame

    events = some_events(40_000)
    events["t"][0], events["t"][-1] = 0, 1_199_999  # tonic cuts off what does not fill a frame: nothing here
    theirs = ToFrame(sensor_size=(128, 128, 2), time_window=150_000, include_incomplete=True)(events)
    assert np.array_equal(to_frames(events, 8, by="time"), theirs)


def test_frames_of_equal_time_follow_the_clock_and_those_of_equal_count_the_order():
    events = some_events(1000)
    events["t"] = np.repeat([0, 1_000_000], [900, 100])
    assert to_frames(events, 4, by="time").sum((1, 2, 3)).tolist() == [900, 0, 0, 100]
    assert to_frames(events, 4, by="count").sum((1, 2, 3)).tolist() == [250] * 4
    shuffled = np.random.default_rng(0).permutation(events)
    assert np.array_equal(to_frames(shuffled, 4, by="time"), to_frames(events, 4, by="time"))
    events["t"] += 1_605_537_493_718_345  # the clocks of AEDAT4 count from 1970
    assert to_frames(events, 4, by="time").sum((1, 2, 3)).tolist() == [900, 0, 0, 100]
    with pytest.raises(SpikformerError, match="unknown frames 'times': did you mean 'time'"):
        to_frames(events, 4, by="times")


def test_frames_of_parts_are_frames_of_the_whole(tmp_path, monkeypatch):
    """A recording too long to be kept is read twice, with the same frames."""
    from spikformer_edu.data import events as module

    events = some_events(3 * PART + 5, sensor=346, height=260)
    events["t"][1000] = 0
    write_npz(tmp_path / "a.npz", events)
    for by in ("count", "time"):
        whole = to_frames(events, 7, 48, (346, 260), by)
        assert np.array_equal(read_frames(tmp_path / "a.npz", 7, 48, by), whole)
        monkeypatch.setattr(module, "KEPT", PART + 1)
        assert np.array_equal(read_frames(tmp_path / "a.npz", 7, 48, by), whole)
    facts = survey(tmp_path / "a.npz")
    assert (facts.events, facts.width, facts.height, facts.steps_back) == (len(events), 346, 260, 1)
    assert (facts.first, facts.last) == (0, events["t"].max())


def test_a_counter_that_starts_again_between_two_parts_goes_on(tmp_path):
    events = some_events(3 * PART)
    expected = events["t"] * 9000  # three hours: the counter starts again twice, first between two parts
    expected += 2**32 - expected[PART]
    expected[2 * PART] = expected[2 * PART - 1] - 1000
    expected = expected[PART // 2 :]
    events = events[PART // 2 :]
    expected = np.concatenate([expected[: PART // 2], expected])
    events = np.concatenate([events[: PART // 2], events])
    expected[: PART // 2] = expected[PART // 2]
    assert expected[PART - 1] < 2**32 <= expected[PART] and expected.max() > 2**33
    events["t"] = expected % 2**32
    write_npz(tmp_path / "a.npz", events)
    assert read_events(tmp_path / "a.npz")["t"].tolist() == expected.tolist()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory")
def test_memory_stays_bounded_on_a_long_recording(tmp_path):
    """Sixteen million events take 256 MB as events; their frames are made in a fraction of it."""
    import subprocess

    words = np.zeros((2**24, 2), "<u4")
    words[:, 0], words[:, 1] = np.arange(2**24), np.arange(2**24) % 640
    file = tmp_path / "a.dat"
    file.write_bytes(b"% Version 2\n% Width 640\n% Height 480\n\x00\x08" + words.tobytes())
    count = len(words)
    del words
    code = r"""if True:
        import re, sys
        from spikformer_edu.data.events import read_frames
        peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
        before = peak()
        frames = read_frames(sys.argv[1], 16, 128, "count", (640, 480))
        print(frames.sum(), peak() - before)
    """
    out = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    total, kilobytes = map(int, out.stdout.split())
    assert total == count and kilobytes < 100 * 1024


# Bad files -----------------------------------------------------------------------------------------------------------


def written(path: Path) -> None:
    events = some_events(3000)
    {
        ".aedat": lambda: write_aedat3(path, events),
        ".bin": lambda: write_bin(path, events),
        ".dat": lambda: write_prophesee(path, events, "dat"),
        ".raw": lambda: write_prophesee(path, events, "evt3"),
        ".npy": lambda: np.save(path, events),
    }.get(path.suffix, lambda: write_events(path, events))()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("cut", [0.5, 10])
def test_a_truncated_file_is_one_line_that_says_what_is_known(tmp_path, suffix, cut):
    if suffix == ".aedat4":
        pytest.importorskip("dv_processing")
    path = tmp_path / f"a{suffix}"
    written(path)
    content = path.read_bytes()
    keep = int(len(content) * cut) if cut < 1 else cut
    path.write_bytes(content[: keep - (suffix != ".bin" and keep > 100) * 3 + (suffix == ".bin")])
    with pytest.raises(SpikformerError) as caught:
        read_events(path)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and "bytes" in line and "fetch it again" in line


@pytest.mark.parametrize("encoding, suffix", [("dat", ".dat"), ("evt2", ".raw"), ("evt3", ".raw")])
def test_a_header_without_events_comes_back(tmp_path, encoding, suffix):
    """expelliarmus reads it without end."""
    path = tmp_path / f"a{suffix}"
    write_prophesee(path, some_events(10), encoding)
    content, end = path.read_bytes(), 0
    while content[end : end + 1] == b"%":
        end = content.index(b"\n", end) + 1
    path.write_bytes(content[: end + (2 if encoding == "dat" else 0)])
    with pytest.raises(SpikformerError, match="holds no events"):
        read_events(path)


@pytest.mark.parametrize("encoding", ["evt2", "evt3"])
def test_garbage_after_a_good_header_is_not_an_empty_recording(tmp_path, encoding):
    path = tmp_path / "a.raw"
    write_prophesee(path, some_events(5000), encoding, (128, 128))
    content = path.read_bytes()
    path.write_bytes(content[:300] + np.random.default_rng(0).bytes(len(content) - 300))
    with pytest.raises(SpikformerError, match="expelliarmus stops at byte|outside the 128 x 128"):
        read_events(path)


@pytest.mark.parametrize(
    "suffix, says",
    [
        (".npz", r"begins as a file that ends in .aedat: rename it"),
        (".raw", r"begins as a file that ends in .aedat: rename it"),
        (".aedat4", r"begins as a file that ends in .aedat: rename it"),
        (".txt", r"is no recording: .*available: .aedat4"),
    ],
)
def test_a_wrong_suffix_is_said(tmp_path, suffix, says):
    write_aedat3(tmp_path / f"a{suffix}", some_events(100))
    with pytest.raises(SpikformerError, match=says):
        read_events(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("line", ["% evt 2.1", "% format EVT4;height=720;width=1280", "% date 2024"])
def test_another_encoding_of_prophesee_is_named(tmp_path, line):
    (tmp_path / "a.raw").write_bytes(line.encode() + b"\n% end\n" + bytes(800))
    with pytest.raises(SpikformerError, match="EVT .*not EVT2 or EVT3|names no format"):
        read_events(tmp_path / "a.raw")


def test_another_camera_is_never_called_damaged(tmp_path):
    pytest.importorskip("dv_processing")
    events = some_events(1000, sensor=320, height=240)
    write_events(tmp_path / "a.aedat4", events, (320, 240))
    with pytest.raises(SpikformerError) as caught:
        read_events(tmp_path / "a.aedat4", (128, 128))
    line = str(caught.value)
    assert "its header states 320 x 240" in line and "event-folder" in line and "damaged" not in line
    assert read_frames(tmp_path / "a.aedat4", 4, 32).sum() == 1000


def test_an_event_outside_of_its_own_header_is_said(tmp_path):
    write_prophesee(tmp_path / "a.dat", some_events(1000, sensor=600), "dat", (304, 240))
    with pytest.raises(SpikformerError, match="outside the 304 x 240 pixels that its own header states"):
        read_events(tmp_path / "a.dat")


def test_words_that_are_not_of_a_dvs128_are_not_read_as_one(tmp_path):
    write_davis(tmp_path / "a.aedat", some_events(100, sensor=346, height=260))
    content = (tmp_path / "a.aedat").read_bytes().replace(b"DAVIS346B", b"something")
    (tmp_path / "a.aedat").write_bytes(content)
    with pytest.raises(SpikformerError, match="not those of a DVS128, and its header names no other camera"):
        read_events(tmp_path / "a.aedat")
