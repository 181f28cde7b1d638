import struct

import numpy as np
import pytest
import torch
from making import some_events, write_npz

from spikformer_edu import SpikformerError
from spikformer_edu.data.digits_dvs import images as digits
from spikformer_edu.data.events import EVENT, read_events, read_frames, steps_back, to_frames, write_events
from spikformer_edu.data.simulated_camera import simulate

T = 16


def written_out(events: np.ndarray, time_steps: int, size: int = 128) -> np.ndarray:
    """Frame i holds events i * (N // T) up to (i + 1) * (N // T), the last one all the rest: one event at a time."""
    frames = np.zeros((time_steps, 2, size, size), dtype=np.int64)
    step = len(events) // time_steps
    for number, event in enumerate(events):
        t = time_steps - 1 if step == 0 else min(number // step, time_steps - 1)
        frames[t, int(event["p"]), int(event["y"]) * size // 128, int(event["x"]) * size // 128] += 1
    return frames


@pytest.mark.parametrize(
    "count, size",
    [(0, 128), (1, 128), (T - 1, 128), (T, 128), (T + 1, 128), (200_003, 128), (0, 48), (T - 1, 48), (3 * T + 5, 48)],
)
def test_frames_equal_the_written_out_rule(count, size):
    events = some_events(count)
    frames = to_frames(events, T, size)
    assert frames.shape == (T, 2, size, size) and frames.dtype.kind == "u"
    assert np.array_equal(frames, written_out(events, T, size))
    assert frames.sum() == count


def test_counts_beyond_any_small_integer_type_are_exact():
    events = some_events(200_003)
    events["x"], events["y"], events["p"] = 127, 126, True
    for time_steps, expected in ((1, [200_003]), (2, [100_001, 100_002]), (5, [40_000] * 4 + [40_003])):
        frames = to_frames(events, time_steps)
        assert frames[:, 1, 126, 127].tolist() == expected and frames.sum() == 200_003
    assert to_frames(events[:200], 1).dtype == np.uint8 and to_frames(events[:40_000], 1).dtype == np.uint16


def test_frames_hold_what_tonic_makes_of_them_but_the_remainder():
    from tonic.transforms import ToFrame

    events = some_events(200_000)  # a multiple of 16: no remainder
    tonic = ToFrame(sensor_size=(128, 128, 2), n_event_bins=T)
    assert np.array_equal(tonic(events), to_frames(events, T))


def test_a_simulated_recording_has_as_many_events_as_one_of_the_camera():
    pictures, _ = digits()
    (events,) = simulate(pictures[:1], [0])
    assert 150_000 < len(events) < 320_000


def test_simulation_is_fixed_by_its_seed_and_not_by_the_batch_it_is_in():
    pictures, _ = digits()
    a, b = simulate(pictures[:2], [5, 6], size=32)
    (alone,) = simulate(pictures[1:2], [6], size=32)
    (other,) = simulate(pictures[1:2], [7], size=32)
    assert np.array_equal(b, alone) and not np.array_equal(b, other)
    assert (np.diff(a["t"]) >= 0).all() and a["t"].min() >= 0 and a["t"].max() < 1_200_000
    assert a["x"].min() >= 0 and a["x"].max() < 32


def test_a_simulated_edge_says_when_and_which_way_the_light_changed():
    """A bright right half moved to and fro: pixels along its edge brighten, then darken, in step with the path."""
    picture = torch.zeros(1, 32, 32)
    picture[:, :, 16:] = 1
    (events,) = simulate(picture, [0], size=32, loops=2, noise=0.0)
    assert np.abs(events["x"].astype(int) - 16).max() <= 4  # nothing happens far from the edge
    assert abs(events["p"].mean() - 0.5) < 0.05  # what rises falls again
    # In a loop of 200 ms the image goes left for the first half, then right, and the edge with it.
    phase = events["t"] % 200_000
    first, second = events["p"][phase < 100_000].mean(), events["p"][phase >= 100_000].mean()
    assert (first > 0.95 and second < 0.05) or (first < 0.05 and second > 0.95)
    crossings = 2 * np.log(11) / 0.25  # up and down once a loop, log(1.1 / 0.1) high, one event each 0.25
    per_pixel = len(events[events["x"] == 16]) / 32 / 2
    assert abs(per_pixel - crossings) < 0.25 * crossings


def test_blank_paper_gives_noise_only_and_as_much_as_asked_for():
    (silent,) = simulate(torch.zeros(1, 8, 8), [0], noise=0.0)
    (noisy,) = simulate(torch.zeros(1, 8, 8), [0], noise=0.5)
    expected = 0.5 * 128 * 128 * 1.2
    assert len(silent) == 0 and abs(len(noisy) - expected) < 5 * expected**0.5


# Reading -----------------------------------------------------------------------------------------------------------


def aedat2(path, events: np.ndarray) -> None:
    words = []
    for t, x, y, p in events.tolist():
        words += [(127 - x) << 8 | (127 - y) << 1 | (1 - p), t]
    path.write_bytes(b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n" + struct.pack(f">{len(words)}I", *words))


def tonic_npy(path, events: np.ndarray) -> None:
    np.save(path, np.stack([events["x"], events["y"], events["p"], events["t"] // 1000], axis=1))


@pytest.mark.parametrize("suffix", [".aedat4", ".aedat", ".npz", ".npy"])
def test_every_format_gives_back_the_events_that_were_written(tmp_path, suffix):
    events = some_events(25_000)
    if suffix == ".aedat4":
        pytest.importorskip("dv_processing")
    if suffix == ".npy":
        events["t"] = events["t"] // 1000 * 1000
    path = tmp_path / f"recording{suffix}"
    {".aedat": aedat2, ".npy": tonic_npy}.get(suffix, write_events)(path, events)
    assert read_events(path).dtype == EVENT
    assert np.array_equal(read_events(path), events)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def broken(path, how: str) -> None:
    events = some_events(30_000)
    if how == "foreign":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
        return
    {".aedat": aedat2, ".npy": tonic_npy}.get(path.suffix, write_events)(path, events)
    content = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2 - 3])
    elif how == "garbage":
        path.write_bytes(np.random.default_rng(0).bytes(len(content)))


@pytest.mark.parametrize("how", ["empty", "truncated", "garbage", "foreign"])
@pytest.mark.parametrize("suffix", [".aedat4", ".aedat", ".npz", ".npy"])
def test_a_broken_file_is_named_in_one_line(tmp_path, suffix, how):
    if suffix == ".aedat4":
        pytest.importorskip("dv_processing")
    path = tmp_path / f"recording{suffix}"
    broken(path, how)
    before = path.read_bytes()
    with pytest.raises(SpikformerError) as caught:
        read_events(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "remove it" in message
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda e: e["x"].__setitem__(7, 128), "x = 128, outside the 128 x 128 pixels that were said"),
        (lambda e: e["y"].__setitem__(7, -1), "y = -1, outside the 128 x 128 pixels"),
    ],
)
def test_impossible_events_are_refused(tmp_path, spoil, says):
    events = some_events(1000)
    spoil(events)
    write_npz(tmp_path / "a.npz", events)
    with pytest.raises(SpikformerError, match=says) as caught:
        read_events(tmp_path / "a.npz", (128, 128))
    assert "a.npz" in str(caught.value) and "damaged" not in str(caught.value)


def test_a_recording_without_events_is_refused(tmp_path):
    write_npz(tmp_path / "a.npz", some_events(0))
    with pytest.raises(SpikformerError, match="a.npz holds no events"):
        read_events(tmp_path / "a.npz")


def test_numbers_that_are_none_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **{name: np.array([0.0, np.nan]) for name in "txyp"})
    np.savez(tmp_path / "b.npz", **{name: np.array(["x", "y"]) for name in "txyp"})
    np.savez(tmp_path / "c.npz", something=np.ones(3))
    for name in "abc":
        with pytest.raises(SpikformerError, match=f"{name}.npz is no readable recording"):
            read_events(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("low", [0, -1])
@pytest.mark.parametrize("kind", [np.int8, np.float32])
def test_polarity_may_be_given_with_either_zero_or_minus_one(tmp_path, low, kind):
    events = some_events(100)
    columns = {name: events[name] for name in "txy"}
    np.savez(tmp_path / "a.npz", **columns, p=np.where(events["p"], 1, low).astype(kind))
    assert np.array_equal(read_events(tmp_path / "a.npz"), events)


@pytest.mark.parametrize(
    "columns, says",
    [
        ({"p": np.array([1, 2, 1])}, "p is neither 0 and 1 nor -1 and 1"),
        ({"p": np.array([-1, 0, 1])}, "p is neither 0 and 1 nor -1 and 1"),
        ({"x": np.array([5])}, r"x has shape \(1,\)"),
        ({"y": np.array([5, 6])}, r"y has shape \(2,\)"),
        ({"x": np.ones((3, 1))}, r"x has shape \(3, 1\)"),
        ({"t": np.ones((3, 3))}, r"t has shape \(3, 3\)"),
        ({"t": np.array(7)}, r"t has shape \(\)"),
        ({"x": np.array([5.0, 127.7, 3.0])}, "x holds fractions"),
        ({name: np.array([]) for name in "txyp"}, "holds no events"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, says):
    good = {"t": np.array([1, 2, 3]), "x": np.array([5, 6, 7]), "y": np.array([5, 6, 7]), "p": np.array([0, 1, 1])}
    np.savez(tmp_path / "a.npz", **(good | columns))
    with pytest.raises(SpikformerError, match=says) as caught:
        read_events(tmp_path / "a.npz")
    assert "a.npz" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [np.uint8, np.uint32, np.uint64, np.int64, np.float32, ">i8"])
def test_times_that_go_back_are_kept_and_counted(tmp_path, kind):
    events = some_events(6)
    columns = {name: events[name] for name in "xyp"}
    np.savez(tmp_path / "a.npz", t=np.array([5, 9, 7, 7, 3, 200], dtype=kind), **columns)
    read = read_events(tmp_path / "a.npz")
    assert read["t"].tolist() == [5, 9, 7, 7, 3, 200] and steps_back(read) == 2
    assert all(np.array_equal(read[name], events[name]) for name in "xyp")


def test_frames_of_equal_count_follow_the_order_of_the_file_whatever_the_times_say(tmp_path):
    events = some_events(1003)
    write_npz(tmp_path / "a.npz", events)
    events["t"] = np.random.default_rng(1).permutation(events["t"])
    write_npz(tmp_path / "b.npz", events)
    assert steps_back(read_events(tmp_path / "b.npz")) > 300
    assert np.array_equal(read_frames(tmp_path / "b.npz", T), read_frames(tmp_path / "a.npz", T))


@pytest.mark.parametrize("suffix", [".aedat", ".npz"])
def test_a_counter_of_32_bits_that_starts_again_goes_on(tmp_path, suffix):
    events = some_events(1000)
    expected = events["t"] + 2**32 - 600_000
    expected[700] -= expected[700] - expected[698]  # late, long after the counter began anew
    near = int(np.searchsorted(expected, 2**32))
    expected[near] = 2**32 - 1  # and late just there: 0 comes before it
    expected[near - 1] = 2**32
    events["t"] = expected % 2**32
    path = tmp_path / f"a{suffix}"
    (aedat2 if suffix == ".aedat" else write_npz)(path, events)
    read = read_events(path)
    assert read["t"].tolist() == expected.tolist() and steps_back(read) == 2
    assert np.array_equal(to_frames(read, T), to_frames(events, T))


def test_times_that_go_back_are_written_to_npz_only(tmp_path):
    events = some_events(100)
    events["t"][50] = 0
    write_events(tmp_path / "a.npz", events)
    assert np.array_equal(read_events(tmp_path / "a.npz"), events)
    pytest.importorskip("dv_processing")
    with pytest.raises(SpikformerError, match="no time stamps that go back, here 1: write .npz"):
        write_events(tmp_path / "a.aedat4", events)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_times_of_64_bits_that_go_back_far_have_not_wrapped(tmp_path):
    events = some_events(3)
    events["t"] = [2**50, 7, 2**50 + 5]
    write_npz(tmp_path / "a.npz", events)
    assert read_events(tmp_path / "a.npz")["t"].tolist() == [2**50, 7, 2**50 + 5]


@pytest.mark.parametrize("names", ["t x y p", "ts x y polarity", "timestamp x y pol"])
def test_columns_are_known_by_their_usual_names_and_fields_of_one_array_as_well(tmp_path, names):
    events = some_events(100)
    named = dict(zip(names.split(), "txyp", strict=True))
    np.savez(tmp_path / "a.npz", **{name: events[ours] for name, ours in named.items()})
    fields = np.empty(100, dtype=[(name, ">i8") for name in reversed(named)])
    for name, ours in named.items():
        fields[name] = events[ours]
    np.savez(tmp_path / "b.npz", events=fields)
    np.save(tmp_path / "c.npy", fields)
    for name in ("a.npz", "b.npz", "c.npy"):
        assert np.array_equal(read_events(tmp_path / name), events), name


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    np.savez(tmp_path / "a.npz", t=[1], x=[1], y=[1], sign=[1])
    with pytest.raises(SpikformerError, match="it has no 'p', only t, x, y, sign"):
        read_events(tmp_path / "a.npz")


def test_milliseconds_of_a_small_type_do_not_overflow(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[3, 4, 1, 32], [3, 4, 0, 33], [3, 4, 1, 6000]], dtype=np.int16))
    assert read_events(tmp_path / "a.npy")["t"].tolist() == [32_000, 33_000, 6_000_000]
    np.save(tmp_path / "b.npy", np.array([[3, 4, 1, 0.5], [3, 4, 0, 2.25]]))
    assert read_events(tmp_path / "b.npy")["t"].tolist() == [500, 2250]


def test_a_file_of_another_kind_and_a_missing_reader_are_said(tmp_path, monkeypatch):
    (tmp_path / "a.aedat5").write_bytes(b"")
    with pytest.raises(SpikformerError, match="a.aedat5 is no recording: did you mean '.aedat'"):
        read_events(tmp_path / "a.aedat5")
    (tmp_path / "a.aedat4").write_bytes(b"something")
    monkeypatch.setitem(__import__("sys").modules, "aedat", None)
    with pytest.raises(SpikformerError, match="pip install tonic aedat"):
        read_events(tmp_path / "a.aedat4")


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", t=np.array([{"a": 1}], dtype=object), x=[1], y=[1], p=[1])
    with pytest.raises(SpikformerError, match="no readable recording"):
        read_events(tmp_path / "a.npz")


def test_ready_made_frames_are_taken_as_they_are(tmp_path):
    frames = to_frames(some_events(5000), 8)
    np.savez(tmp_path / "a.npz", frames=frames.astype(np.float32))
    assert np.array_equal(read_frames(tmp_path / "a.npz", 8), frames)
    with pytest.raises(SpikformerError, match=r"a.npz holds frames of shape \[8, 2, 128, 128\], not \[16, "):
        read_frames(tmp_path / "a.npz", 16)
    np.savez(tmp_path / "b.npz", frames=frames - 0.5)
    with pytest.raises(SpikformerError, match="b.npz holds frames that are no event counts"):
        read_frames(tmp_path / "b.npz", 8)


def test_without_dv_processing_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dv_processing", None)
    with pytest.raises(SpikformerError, match="pip install dv-processing, or --format npz"):
        write_events(tmp_path / "a.aedat4", some_events(10))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_simulated_recordings_do_not_depend_on_the_default_dtype(default_dtype, dtype):
    images = torch.rand(2, 10, 10)
    expected = simulate(images, [3, 4], size=32)
    default_dtype(dtype)
    found = simulate(images, [3, 4], size=32)
    assert all(len(a) > 100 and (a == b).all() for a, b in zip(expected, found, strict=True))
