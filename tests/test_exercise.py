"""The check of an exercise, and figures shown in a notebook."""

import base64
import io

import matplotlib.pyplot as plt
import pytest
from matplotlib.animation import FuncAnimation
from PIL import Image

import spikformer_edu as se


def verdict(capsys, answer) -> str:
    with se.exercise("5.1"):
        assert answer() == 3, "count the ones in Q AND K"
    return capsys.readouterr().out


def test_right_wrong_and_unfinished_answers(capsys):
    assert verdict(capsys, lambda: 3) == "Exercise 5.1: right\n"
    assert verdict(capsys, lambda: 4) == "Exercise 5.1: not yet - count the ones in Q AND K\n"
    assert verdict(capsys, lambda: None + 1).startswith("Exercise 5.1: not yet - TypeError: unsupported operand")


def test_interrupting_a_check_stops_the_notebook():
    with pytest.raises(KeyboardInterrupt), se.exercise("5.1"):
        raise KeyboardInterrupt


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would have been given."""
    calls = []
    monkeypatch.setattr("IPython.display.display", lambda content, **options: calls.append((content, options)))
    return calls


def image(content) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content["image/png"])))


def test_a_figure_is_shown_once_with_its_words(shown):
    fig, ax = plt.subplots(figsize=(3, 2))
    se.plot.show(fig, "A pair of empty axes, from 0 to 1")
    ((content, options),) = shown
    assert content["text/plain"] == options["metadata"]["image/png"]["alt"] == "A pair of empty axes, from 0 to 1"
    assert image(content).size == (288, 192) and options["raw"]
    assert not plt.fignum_exists(fig.number)


def test_an_animation_becomes_an_animated_png(shown):
    fig, ax = plt.subplots(figsize=(2, 2))
    (line,) = ax.plot([0, 1], [0, 1])
    se.plot.show(FuncAnimation(fig, lambda i: [line.set_data([0, 1], [0, i])], frames=3), "A line that climbs in steps")
    assert image(shown[0][0]).n_frames == 3


def test_a_figure_without_words_is_refused(shown, one_line):
    fig, _ = plt.subplots()
    with pytest.raises(se.SpikformerError) as excinfo:
        se.plot.show(fig, "a plot")
    one_line(excinfo, "a plot", "say in a sentence")
    assert not shown
    plt.close(fig)
