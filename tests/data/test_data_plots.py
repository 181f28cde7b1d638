from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from making import some_events

import spikformer_edu as se
from spikformer_edu import SpikformerError
from spikformer_edu.data import PAPER, load
from spikformer_edu.data.events import EVENT, to_frames
from spikformer_edu.data.simulated_camera import simulate

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from spikformer_edu.plot.events import FELL, ROSE, events
from spikformer_edu.plot.samples import samples


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_events_are_drawn_where_and_when_they_happened():
    recording = np.array([(1000, 3, 5, 1), (4000, 100, 20, 0), (9000, 64, 64, 1)], dtype=EVENT)
    figure, axes = events(recording, time_steps=3, title="a test")
    cube, panels = axes[0], axes[1:]
    clouds = {c.get_label(): np.array(c._offsets3d).T for c in cube.collections}
    assert clouds["brighter (p = 1)"].tolist() == [[0, 3, 5], [8, 64, 64]]  # ms since the first event, x, y
    assert clouds["darker (p = 0)"].tolist() == [[3, 100, 20]]
    assert cube.get_zlim() == (128, 0)  # y runs down, as in an image
    pictures = [np.asarray(panel.images[0].get_array()) for panel in panels]
    for picture, (_, x, y, p) in zip(pictures, recording.tolist(), strict=True):
        colored = np.argwhere((picture != 1).any(2))
        assert colored.tolist() == [[y, x]]
        assert np.allclose(picture[y, x], matplotlib.colors.to_rgb(ROSE if p else FELL), atol=0.01)
    assert "3 events, T = 3 frames of 1 events" in figure.get_suptitle() and "a test" in figure.get_suptitle()


def test_a_cube_holds_all_events_when_times_go_back_or_stand_still():
    for times, last in (([4000, 1000, 9000, 3000], 8), ([5, 5, 5, 5], 0.001)):
        recording = some_events(4)
        recording["t"] = times
        _, axes = events(recording, time_steps=2)
        t = np.concatenate([c._offsets3d[0] for c in axes[0].collections])
        assert sorted(t) == sorted((np.array(times) - min(times)) / 1000) and axes[0].get_xlim() == (0, last)


def test_a_cube_of_many_events_shows_a_share_of_them():
    _, axes = events(some_events(50_000), time_steps=4, shown=1000)
    assert sum(len(c._offsets3d[0]) for c in axes[0].collections) == 1000 and len(axes) == 5


def test_events_of_any_sensor_are_drawn_in_its_shape():
    for given, extent, shown in ((None, (320, 240), (320, 240)), (None, (33, 30), (34, 34)), ((640, 480),) * 3):
        recording = some_events(3000, 0, *extent)
        _, axes = events(recording, time_steps=2, sensor=given)
        assert np.asarray(axes[1].images[0].get_array()).shape == (shown[1], shown[0], 3)
        assert axes[0].get_ylim() == (0, shown[0]) and axes[0].get_zlim() == (shown[1], 0)
    figure, axes = events(recording, time_steps=2, size=32, by="time")
    assert np.asarray(axes[1].images[0].get_array()).shape == (32, 32, 3) and "T = 2 frames of" in figure.get_suptitle()
    assert figure.get_suptitle().endswith(" ms")
    with pytest.raises(SpikformerError, match="outside the sensor of 128 x 128"):
        events(recording, sensor=128)


def test_an_animation_ends_with_the_answer_of_the_network():
    torch.manual_seed(0)
    model = se.spikformer("nmnist-2-64", num_classes=3).eval()
    recording = some_events(3000, 0, 34)
    moving = se.plot.events_animation(recording, model, ("a", "b", "c"), size=32, title="noise")
    frames = torch.from_numpy(to_frames(recording, 4, 32, 34).astype("float32"))[:, None]
    with torch.no_grad():
        answer = model(frames)[0].softmax(0)
    figure = moving._fig
    for t in (0, 3):
        moving._func(t)
        left, middle, right = figure.axes
        bars = torch.tensor([bar.get_width() for bar in right.patches])
        assert bars.sum().item() == pytest.approx(1) and f"t = {t}" in right.get_title("left")
        assert f"frame {t} of T = 4" == left.get_title("left")
    assert torch.allclose(bars.float(), answer, atol=1e-5) and "blocks.1.mlp.out, 64 of" in middle.get_title("left")
    assert [text.get_text() for text in right.get_yticklabels()] == ["a", "b", "c"]
    with pytest.raises(SpikformerError, match="2 class names for a network of 3"):
        se.plot.events_animation(recording, model, ("a", "b"))
    moving._draw_was_started = True  # nothing is shown


def test_events_refuses_what_are_no_events():
    for bad in (np.zeros(3), some_events(0), [1, 2]):
        with pytest.raises(SpikformerError, match="give at least one event"):
            events(bad)
    with pytest.raises(SpikformerError, match="time_steps=0"):
        events(some_events(5), time_steps=0)
    assert plt.get_fignums() == []


def test_samples_show_each_class_as_it_is_and_augmented():
    splits = load("digits")
    figure, axes = samples(splits.test, splits.info, columns=10, draws=2)
    assert axes.shape == (3, 10) and [a.get_title() for a in axes[0]] == list("0123456789")
    rows = [[np.asarray(a.images[0].get_array()) for a in row] for row in axes]
    assert all(not np.array_equal(a, b) for a, b in zip(rows[1], rows[2], strict=True))
    assert 0 <= min(p.min() for p in rows[0]) and max(p.max() for p in rows[0]) <= 1
    assert "digits" in figure.get_suptitle()


@pytest.mark.filterwarnings("ignore:Glyph")
def test_samples_show_classes_of_any_name():
    splits = load("digits")
    odd = ("$5", r"$\frac{1$", "two\nlines", "caf\udce9", "n" * 300, *"56789")
    figure, axes = samples(splits.test, replace(splits.info, classes=odd, title="$x_{$"), columns=5, draws=0)
    figure.canvas.draw()
    titles = [ax.get_title().replace(r"\$", "$") for ax in axes[0]]
    assert titles == ["$5", r"$\frac{1$", r"two\nlines", r"caf\udce9", "nnnnnnnnnnnn..."]


def test_samples_of_simulated_events_say_so():
    splits = load("digits-dvs", augment=PAPER["cifar10dvs"])
    figure, axes = samples(splits.train, splits.info, columns=3, draws=1)
    assert "simulated" in figure.get_suptitle() and "T = 8" in figure.get_suptitle()
    assert np.asarray(axes[0, 0].images[0].get_array()).shape == (32, 32, 3)
    with pytest.raises(SpikformerError, match="columns=0"):
        samples(splits.train, splits.info, columns=0)


def test_tokens_of_a_network_stand_below_its_frames():
    recording = simulate(torch.rand(1, 16, 16), [0], size=32, loops=1)[0]
    torch.manual_seed(0)
    config = se.SpikformerConfig(dim=32, depth=1, heads=2, in_channels=2, pool=(True, True, False, False))
    model = se.Spikformer(config)
    model(torch.rand(4, 2, 2, 32, 32) * 5)  # moves the statistics, so that it is not silent
    model.sps[0].bn.bias.data.fill_(2.0)
    frames = torch.from_numpy(to_frames(recording, 4, 32, 32).astype("float32"))
    with se.record(model.eval(), layers=["sps.3", "sps.rpe"]) as rec, torch.no_grad():
        model(frames[:, None])
    expected = (rec["sps.3"].values + rec["sps.rpe"].values)[:, 0].mean(1)
    fig, axes = se.plot.events(recording, 4, sensor=32, model=model.train())
    assert len(axes) == 1 + 4 + 4 and model.training
    for t, panel in enumerate(axes[5:]):
        assert torch.equal(torch.from_numpy(panel.images[0].get_array().data), expected[t])
    assert "8 x 8 tokens" in axes[5].get_ylabel()
    with pytest.raises(se.SpikformerError, match="channels"):
        se.plot.events(recording, 4, sensor=32, model=se.spikformer("digits-2-64"))
