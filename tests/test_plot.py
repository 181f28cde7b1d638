"""Pictures of inputs whose picture is known: the artists must sit where the numbers say."""

import os
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import spikformer_edu as se
from spikformer_edu import plot
from spikformer_edu.energy import CONVENTIONS, energy
from spikformer_edu.layer_record import LayerRecord
from spikformer_edu.plot import style
from spikformer_edu.plot.neuron import run_neuron
from spikformer_edu.plot.ssa import product_of
from spikformer_edu.record import Recording


@pytest.fixture(autouse=True)
def close_figures():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before, "a figure changed matplotlib's global settings"


@pytest.fixture(scope="module")
def rec():
    torch.manual_seed(0)
    model = se.spikformer("digits-2-64", dim=16, heads=2, depth=2)  # in training mode: batch norm lets it fire
    with torch.no_grad(), se.record(model, membranes=True) as rec:
        model(4 * torch.randn(2, 1, 32, 32))
    return rec


def bars(ax):
    """(t, row) of every bar of a raster."""
    return sorted((float(s[0, 0]), float(s[:, 1].mean())) for s in ax.collections[0].get_segments())


def label_of(fig):
    return " ".join(ax.get_title(loc) for ax in fig.axes for loc in ("left", "center")) + (fig.get_suptitle() or "")


ODD_NAMES = (
    "$5",
    r"$\frac{1$",
    "x^2_$a$",
    r"a\\b\$",
    "two\nlines",
    "_private",
    "n" * 300,
    "caf\udce9",
    "\x1b[2J\t",
    "猫 שלום",
)


class TestStyle:
    @pytest.mark.filterwarnings("ignore:Glyph")
    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_any_name_can_be_drawn_as_it_reads(self, name):
        fig, ax = plt.subplots()
        shown = style.plain(name)
        ax.plot([0, 1], label=shown)
        ax.set_title(shown)
        assert [text.get_text() for text in ax.legend().get_texts()] == [shown]
        fig.canvas.draw()
        text, formula = ax.title._preprocess_math(shown)
        assert not formula and len(text) <= 35 and text.isprintable()
        if len(name) < 10 and name.isprintable():
            assert text.strip() == name

    def test_house_colours_differ_in_lightness_so_that_grey_print_keeps_them_apart(self):
        def lightness(color):
            linear = [
                c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(color)
            ]
            y = np.dot(linear, (0.2126, 0.7152, 0.0722))
            return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y

        found = sorted(lightness(c) for c in (style.Q, style.K, style.V, style.SPIKE, style.MEMBRANE))
        assert min(np.diff(found)) > 8

    def test_the_style_is_local(self, rec):
        with plt.rc_context({"font.size": 3}):
            plot.raster(rec["sps.0"])
            assert matplotlib.rcParams["font.size"] == 3

    @pytest.mark.parametrize(
        ("backend", "used"), [("nonsense", "agg"), ("module://nowhere", "agg"), ("svg", "svg"), (None, None)]
    )
    def test_a_backend_that_does_not_exist_is_said_and_replaced(self, backend, used):
        env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
        env |= {"MPLBACKEND": backend} if backend else {}
        code = "import os; from spikformer_edu.plot.style import plt; plt.figure()"
        code += "; print(plt.get_backend().lower(), os.environ.get('MPLBACKEND'))"
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert used is None or done.stdout == f"{used} {used}\n"
        said = f"UserWarning: MPLBACKEND={backend} does not exist here: figures are drawn with agg"
        assert (said in done.stderr) == (backend != used)


class TestRaster:
    def test_one_bar_for_each_spike_at_its_step_and_neuron(self):
        spikes = torch.zeros(5, 3)
        spikes[0, 2] = spikes[3, 0] = spikes[4, 1] = 1
        fig, ax = plot.raster(spikes, title="three spikes")
        assert bars(ax) == [(0, 2), (3, 0), (4, 1)]
        assert ax.get_xlabel() == "time step t" and ax.get_title("left") == "three spikes, T = 5"
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # neuron 0 on top

    def test_a_record_draws_the_sample_asked_for(self, rec):
        record = rec["blocks.0.attn.q"]
        for sample in (None, 1):
            _, ax = plot.raster(record, sample=sample, neurons=10**6)
            expected = torch.nonzero(record.spikes[:, sample or 0].flatten(1)).tolist()
            assert bars(ax) == sorted((float(t), float(n)) for t, n in expected)
        assert "blocks.0.attn.q, T = 4" in ax.get_title("left")

    def test_a_tensor_with_sample_is_a_batch(self):
        spikes = torch.zeros(2, 3, 4)
        spikes[1, 2, 3] = 1
        assert bars(plot.raster(spikes, sample=2)[1]) == [(1, 3)]
        assert bars(plot.raster(spikes, sample=0)[1]) == []

    def test_too_many_neurons_are_thinned_evenly_and_said(self):
        spikes = torch.zeros(1, 101)
        spikes[0, 100] = spikes[0, 50] = spikes[0, 1] = 1
        _, ax = plot.raster(spikes, neurons=3)  # neurons 0, 50, 100
        assert bars(ax) == [(0, 1), (0, 2)]
        assert "3 of 101 neurons" in ax.get_title("left")

    def test_no_spike_gets_lost_where_a_row_is_lower_than_a_pixel(self):
        fig, ax = plt.subplots(figsize=(3, 1.2))
        for neuron in range(0, 400, 57):
            ax.clear()
            spikes = torch.zeros(1, 400)
            spikes[0, neuron] = 1
            plot.raster(spikes, neurons=400, ax=ax)
            ax.set(title="", xlabel="", ylabel="", xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            fig.canvas.draw()
            assert (np.asarray(fig.canvas.buffer_rgba())[..., 0] < 50).any(), neuron

    @pytest.mark.parametrize("shape", [(1,), (1, 1), (4,), (100, 7)])
    def test_any_T_and_silence(self, shape):
        _, ax = plot.raster(torch.zeros(shape))
        assert bars(ax) == [] and ax.get_xlim() == (-0.5, shape[0] - 0.5)

    def test_draws_on_the_axes_given(self):
        fig, ax = plt.subplots()
        assert plot.raster(torch.ones(2, 2), ax=ax) == (fig, ax)
        assert len(bars(ax)) == 4

    @pytest.mark.parametrize(
        ("values", "options", "said"),
        [
            (torch.rand(3, 4) + 0.1, {}, "0 or 1"),
            (torch.full((3, 4), torch.nan), {}, "nan"),
            (torch.zeros(0, 4), {}, "nothing to draw"),
            ("sps.0", {}, "not str"),
            (torch.zeros(3, 2, 4), {"sample": 2}, "2 samples"),
            (torch.zeros(3, 4), {"neurons": 0}, "at least one"),
        ],
    )
    def test_bad_input_is_one_line(self, values, options, said, one_line):
        with pytest.raises(se.SpikformerError) as error:
            plot.raster(values, **options)
        one_line(error, said)
        assert not plt.get_fignums(), "a figure was left open"

    def test_residuals_are_not_spikes(self, rec):
        with pytest.raises(se.SpikformerError, match="holds no spikes"):
            plot.raster(rec["blocks.0.residual"])


class TestMembrane:
    def test_the_line_starts_at_zero_jumps_to_H_and_falls_to_zero_after_a_spike(self):
        h = torch.tensor([0.5, 1.25, 0.75, 1.0])  # the last one is a tie: >= fires
        _, ax = plot.membrane(h)
        line = ax.lines[1]
        assert line.get_color() == style.MEMBRANE
        assert line.get_xdata().tolist() == [-0.5, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3.5]
        assert line.get_ydata().tolist() == [0, 0, 0.5, 0.5, 0.5, 1.25, 0, 0, 0.75, 0.75, 0.75, 1.0, 0, 0]
        assert ax.lines[2].get_xdata().tolist() == [0, 1, 2, 3] and ax.lines[2].get_ydata().tolist() == h.tolist()
        assert ax.lines[0].get_ydata()[0] == 1.0  # threshold
        assert [s[0, 0] for s in ax.collections[0].get_segments()] == [1, 3]  # spikes
        assert ax.get_title("left") == "T = 4"

    def test_the_line_passes_the_threshold_only_at_a_step_with_a_spike(self):
        torch.manual_seed(0)
        h, spikes = run_neuron(3 * torch.rand(200))
        _, ax = plot.membrane(h, spikes)
        x, y = ax.lines[1].get_data()
        passed = x[1:][(y[:-1] < 1) != (y[1:] < 1)]
        assert set(passed.tolist()) == set(torch.nonzero(spikes).flatten().tolist())

    def test_a_soft_reset_keeps_what_is_above_the_threshold(self):
        h = torch.tensor([0.5, 1.25, 0.5])
        _, ax = plot.membrane(h, reset="subtract")
        assert ax.lines[1].get_ydata().tolist() == [0, 0, 0.5, 0.5, 0.5, 1.25, 0.25, 0.25, 0.5, 0.5, 0.5]

    def test_a_record_brings_its_threshold_and_spikes(self, rec):
        record = rec["blocks.0.attn.attn"]
        _, ax = plot.membrane(record, neuron=(1, 5, 3), sample=1)
        h = record.membrane[:, 1, 1, 5, 3].numpy()
        assert ax.lines[0].get_ydata()[0] == 0.5
        np.testing.assert_array_equal(ax.lines[2].get_ydata(), h)
        fired = torch.nonzero(record.spikes[:, 1, 1, 5, 3]).flatten().tolist()
        assert [s[0, 0] for s in ax.collections[0].get_segments()] == fired
        assert "blocks.0.attn.attn, T = 4, neuron 1, 5, 3" == ax.get_title("left")

    def test_by_default_the_neuron_that_fires_about_half_of_the_time(self):
        h = torch.tensor([[0.0, 2.0, 2.0], [0.0, 2.0, 0.0]])  # rates 0, 1, one half
        assert "neuron 2" in plot.membrane(h)[1].get_title("left")

    @pytest.mark.parametrize("h", [torch.zeros(1), torch.zeros(4, 1), torch.full((3, 1), 7.0), torch.full((2,), -3.0)])
    def test_degenerate_traces(self, h):
        _, ax = plot.membrane(h)
        low, high = ax.get_ylim()
        assert low < min(0, h.min()) and high > max(1, h.max())

    @pytest.mark.parametrize(
        ("h", "options", "said"),
        [
            (torch.tensor([0.0, torch.nan]), {}, "NaN"),
            (torch.tensor([0.0, torch.inf]), {}, "NaN or inf"),
            (torch.zeros(3, 4), {"spikes": torch.zeros(3, 5)}, "[3, 5]"),
            (torch.zeros(3, 4), {"spikes": torch.full((3, 4), 0.5)}, "0.5"),
            (torch.zeros(3, 4), {"neuron": 4}, "4 neurons"),
            (torch.zeros(3, 4, 5), {"neuron": (1, 9)}, "[4, 5]"),
            (torch.zeros(3, 4), {"neuron": "first"}, "neuron=first"),
            (torch.zeros(3), {"reset": "soft"}, "subtract"),
        ],
    )
    def test_bad_input_is_one_line(self, h, options, said, one_line):
        with pytest.raises(se.SpikformerError) as error:
            plot.membrane(h, **options)
        one_line(error, said)

    def test_membranes_that_were_not_recorded(self):
        record = LayerRecord("sps.0", "spikes", torch.zeros(2, 1, 3), None, 1.0)
        with pytest.raises(se.SpikformerError, match="membranes=True"):
            plot.membrane(record)


class TestMembranes:
    def test_a_row_for_each_neuron_and_a_bar_for_each_spike(self):
        h = torch.tensor([[0.25, -0.5, 1.0], [0.5, 0.75, 1.5]])  # [T, neurons]; the 1.0 is a tie, and fires
        fig, ax = plot.membranes(h, title="three neurons")
        assert ax.images[0].get_array().tolist() == h.T.tolist()
        assert ax.images[0].get_clim() == (-0.5, 1.5)
        assert bars(ax) == [(0, 2), (1, 2)]
        assert ax.get_xlabel() == "time step t" and ax.get_title("left") == "three neurons, T = 2"
        bar = fig.axes[1]
        assert bar.get_ylabel() == "membrane potential H" and bar.lines[-1].get_ydata()[0] == 1

    def test_the_rows_are_those_of_the_raster(self, rec):
        record = rec["blocks.0.attn.attn"]
        _, raster = plot.raster(record, sample=1, neurons=20)
        fig, ax = plot.membranes(record, sample=1, neurons=20)
        assert bars(ax) == bars(raster) and ax.get_title("left") == raster.get_title("left")
        assert [t.get_text() for t in ax.get_yticklabels()] == [t.get_text() for t in raster.get_yticklabels()]
        assert fig.axes[1].lines[-1].get_ydata()[0] == 0.5  # this layer's threshold

    def test_a_very_low_potential_does_not_take_the_color_scale(self):
        _, ax = plot.membranes(torch.tensor([[-50.0, 0.5]]))
        assert ax.images[0].get_clim() == (-1, 1)

    @pytest.mark.parametrize("shape", [(1,), (1, 1), (4,), (100, 7)])
    def test_any_T_and_silence(self, shape):
        _, ax = plot.membranes(torch.zeros(shape))
        assert bars(ax) == [] and ax.images[0].get_clim() == (0, 1)

    @pytest.mark.parametrize(
        ("h", "options", "said"),
        [
            (torch.tensor([0.0, torch.nan]), {}, "NaN"),
            (torch.zeros(3, 4), {"spikes": torch.zeros(3, 5)}, "[3, 5]"),
            (torch.zeros(3, 4), {"neurons": 0}, "at least one"),
        ],
    )
    def test_bad_input_is_one_line(self, h, options, said, one_line):
        with pytest.raises(se.SpikformerError) as error:
            plot.membranes(h, **options)
        one_line(error, said)
        assert not plt.get_fignums(), "a figure was left open"


class TestFiringRates:
    def test_bars_are_the_rates_in_network_order(self, rec):
        fig, ax = plot.firing_rates(rec)
        records = rec.layers("spikes")
        widths = [bar.get_width() for bar in ax.patches]
        np.testing.assert_allclose(widths, [100 * float(r.spikes.mean()) for r in records], rtol=1e-5)
        assert [t.get_text() for t in ax.get_yticklabels()] == [r.name for r in records]
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first layer on top
        assert ax.patches[5].get_facecolor() == matplotlib.colors.to_rgba(style.Q)
        assert "T = 4" in label_of(fig)

    def test_an_empty_recording(self, one_line):
        model = se.spikformer("digits-2-64", dim=16)
        with se.record(model) as rec:
            pass
        with pytest.raises(se.SpikformerError) as error:
            plot.firing_rates(rec)
        one_line(error, "recording is empty")
        with pytest.raises(se.SpikformerError, match="not Tensor"):
            plot.firing_rates(torch.zeros(3))


class TestAttention:
    def test_one_query_is_one_row_of_the_scores(self):
        scores = torch.arange(16.0).view(4, 4)
        _, ax = plot.attention(scores, query=2)
        assert ax.images[0].get_array().tolist() == [[8, 9], [10, 11]]
        assert ax.patches[0].get_xy() == (-0.5, 0.5)  # token 2: second row, first column

    def test_without_a_query_the_mean_that_each_key_receives(self):
        scores = torch.arange(16.0).view(4, 4)
        _, ax = plot.attention(scores)
        assert ax.images[0].get_array().tolist() == [[6, 7], [8, 9]]
        assert not ax.patches

    def test_a_record_with_head_step_and_image(self, rec):
        record = rec["blocks.1.attn.scores"]
        image = torch.rand(1, 32, 32)
        fig, ax = plot.attention(record, image, query=9, head=1, step=2, sample=1)
        np.testing.assert_array_equal(ax.images[0].get_array(), record.values[2, 1, 1, 9].view(8, 8))
        assert fig.axes[0].images[0].get_array().shape == (32, 32)
        assert "head 1" in label_of(fig) and "t = 2 of T = 4" in label_of(fig) and record.name in label_of(fig)

    def test_tokens_follow_the_images_proportions(self):
        _, ax = plot.attention(torch.rand(8, 8), torch.rand(3, 16, 8))
        assert ax.images[0].get_array().shape == (4, 2)

    def test_one_token_and_no_attention_at_all(self):
        assert plot.attention(torch.zeros(1, 1))[1].images[0].get_array().tolist() == [[0]]
        fig, axes = plot.attention_over_time(torch.zeros(1, 2, 1, 1), torch.zeros(1, 4, 4))
        assert axes.shape == (2, 1)

    def test_over_time_has_a_map_for_every_head_and_step(self, rec):
        record = rec["blocks.0.attn.scores"]
        fig, axes = plot.attention_over_time(record, torch.rand(1, 32, 32), query=3)
        assert axes.shape == (2, 4)
        for h in range(2):
            for t in range(4):
                shown = axes[h, t].images[0]
                np.testing.assert_array_equal(shown.get_array(), record.values[t, 0, h, 3].view(8, 8))
                limits = record.values[:, 0, :, 3]
                assert shown.get_clim() == pytest.approx((float(limits.min()), float(limits.max()) or 1))
        assert "T = 4" in label_of(fig)

    def test_the_image_is_outlined_and_the_maps_colors_stay(self):
        image = torch.zeros(1, 8, 8)
        image[0, 2:6, 2:6] = 1  # tokens 5, 6, 9 and 10 of 4 x 4
        _, ax = plot.attention(torch.rand(16, 16), image)
        assert len(ax.images) == 1  # nothing is laid over the map but lines
        lines = np.concatenate([path.vertices for c in ax.collections for path in c.get_paths()])
        assert lines.min() == pytest.approx(0.5, abs=0.26) and lines.max() == pytest.approx(2.5, abs=0.26)
        _, ax = plot.attention(torch.rand(16, 16), torch.zeros(1, 8, 8))
        assert not ax.collections  # an even image has no outlines
        _, ax = plot.attention(torch.rand(16, 16), torch.rand(3, 8, 8))
        assert len(ax.images) == 1 and not ax.collections  # a photograph stands beside the map only

    @pytest.mark.parametrize(
        ("scores", "options", "said"),
        [
            (torch.zeros(4, 5), {}, "[1, 1, 4, 5]"),
            (torch.zeros(4, 4), {"query": 4}, "query=4"),
            (torch.zeros(2, 3, 4, 4), {"head": 3}, "head=3"),
            (torch.zeros(2, 3, 4, 4), {"step": -3}, "step=-3"),
            (torch.zeros(5, 5), {}, "fill no grid"),
            (torch.zeros(9, 9), {"image": torch.zeros(1, 8, 4)}, "8 x 4"),
            (torch.zeros(4, 4), {"image": torch.zeros(5, 8, 8)}, "1, 2 or 3 channels"),
            (torch.full((4, 4), torch.nan), {}, "NaN"),
        ],
    )
    def test_bad_input_is_one_line(self, scores, options, said, one_line):
        with pytest.raises(se.SpikformerError) as error:
            plot.attention(scores, **options)
        one_line(error, said)
        assert not plt.get_fignums()

    def test_spikes_are_no_scores(self, rec):
        with pytest.raises(se.SpikformerError, match="attn.scores"):
            plot.attention(rec["blocks.0.attn.q"])


class TestAttentionMatrix:
    def test_rows_are_queries_and_the_numbers_are_written(self):
        counts = torch.tensor([[0.0, 3.0], [0.25, 0.0]])
        fig, (ax, other) = plot.attention_matrix(
            {"counts": counts, "even": torch.full((2, 2), 0.5)}, names=["a", "b"], label=["count", "weight"]
        )
        np.testing.assert_array_equal(ax.images[0].get_array(), counts)
        assert ax.images[0].get_clim() == (0, 3) and other.images[0].get_clim() == (0, 0.5)
        assert [t.get_text() for t in ax.texts] == ["0", "3", "0.25", "0"]
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title("left")) == ("key", "query", "counts")
        assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
        assert [a.get_ylabel() for a in fig.axes[2:]] == ["count", "weight"]

    def test_a_large_map_has_no_numbers(self):
        _, (ax,) = plot.attention_matrix({"zeros": torch.zeros(64, 64)})
        assert not ax.texts and ax.images[0].get_clim() == (0, 1)

    @pytest.mark.parametrize(
        ("given", "options", "said"),
        [
            ({}, {}, "at least one map"),
            ({"a": torch.zeros(4, 5)}, {}, "[4, 5]"),
            ({"a": torch.zeros(4, 4), "b": torch.zeros(5, 5)}, {}, "[5, 5]"),
            ({"a": torch.zeros(4)}, {}, "[4]"),
            ({"a": torch.zeros(2, 2)}, {"names": ["x"]}, "1 names for 2"),
            ({"a": torch.zeros(2, 2)}, {"label": ["x", "y"]}, "2 labels for 1"),
            ({"a": torch.full((2, 2), torch.nan)}, {}, "NaN"),
        ],
    )
    def test_bad_input_is_one_line(self, given, options, said, one_line):
        with pytest.raises(se.SpikformerError) as error:
            plot.attention_matrix(given, **options)
        one_line(error, said)


class TestNeuron:
    def test_the_written_out_trace(self):
        fig, (current, middle, below, curve) = plot.neuron(torch.tensor([1.0, 2.0, 0.0, 2.0]))
        assert [bar.get_height() for bar in current.patches] == [1, 2, 0, 2]
        h = [0.5, 1.25, 0.0, 1.0]  # the last one is a tie, and fires
        assert middle.lines[2].get_ydata().tolist() == h
        assert [s[0, 0] for s in middle.collections[0].get_segments()] == [1, 3]
        expected = [4 * (s := 1 / (1 + np.exp(-4 * (x - 1)))) * (1 - s) for x in h]
        assert [bar.get_height() for bar in below.patches] == pytest.approx(expected)
        dots = curve.lines[1]
        assert dots.get_xdata().tolist() == pytest.approx(expected) and dots.get_ydata().tolist() == h
        assert "T = 4" in label_of(fig) and below.get_xlabel() == "time step t"

    def test_a_record_gives_back_the_current_that_went_in(self):
        torch.manual_seed(0)
        current = torch.randn(6, 3)
        h, spikes = run_neuron(current)
        record = LayerRecord("toy", "spikes", spikes[:, None], h[:, None], 1.0)
        _, (ax, *_) = plot.neuron(record, neuron=2)
        np.testing.assert_allclose([bar.get_height() for bar in ax.patches], current[:, 2], atol=1e-6)

    @pytest.mark.parametrize("options", [dict(tau=1.25), dict(tau=4.0, neuron="plif"), dict(neuron="if")], ids=str)
    def test_a_record_brings_its_tau_and_its_learned_decay(self, options):
        torch.manual_seed(0)
        model = se.spikformer("digits-2-64", dim=16, heads=2, depth=1, **options)
        layer, seen = model.sps[2].neuron, []
        if options.get("neuron") == "plif":
            layer.w.data.fill_(0.3)
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
        with torch.no_grad(), se.record(model, membranes=True) as recording:
            model(4 * torch.randn(1, 1, 32, 32))
        _, (ax, *_) = plot.neuron(recording["sps.2"], neuron=(3, 4, 5))
        np.testing.assert_allclose([bar.get_height() for bar in ax.patches], seen[0][:, 0, 3, 4, 5], atol=1e-5)

    @pytest.mark.parametrize("current", [torch.zeros(1), torch.zeros(5), torch.full((3,), 9.0), -torch.ones(2)])
    def test_degenerate_currents(self, current):
        _, (_, middle, *_) = plot.neuron(current)
        assert len(middle.lines[2].get_xdata()) == len(current)

    def test_without_the_surrogate_there_are_two_panels(self):
        fig, (current, middle) = plot.neuron(torch.tensor([1.0, 2.0, 0.0]), tau=4, threshold=0.5, surrogate=False)
        assert len(fig.axes) == 2 and [bar.get_height() for bar in current.patches] == [1, 2, 0]
        assert middle.lines[2].get_ydata().tolist() == [0.25, 0.6875, 0.0]  # fires at t = 1
        assert middle.get_xlabel() == "time step t" and "spikes" in [text.get_text() for text in middle.texts]

    def test_the_animation_draws_one_step_more_each_frame(self, tmp_path):
        movie = plot.neuron_animation(torch.tensor([1.0, 2.0, 0.5]), interval=100)
        movie.save(tmp_path / "neuron.gif", writer="pillow", dpi=40)
        from PIL import Image

        assert Image.open(tmp_path / "neuron.gif").n_frames == 3
        assert movie.to_jshtml(fps=2).count("data:image/png;base64") == 3
        current = movie._fig.axes[0]
        for frame in range(3):
            movie._func(frame)
            assert len(current.patches) == frame + 1

    @pytest.mark.parametrize(
        ("source", "said"), [(torch.zeros(2, 3), "[2, 3]"), (torch.tensor([torch.nan]), "NaN"), ("x", "not str")]
    )
    def test_bad_input_is_one_line(self, source, said, one_line):
        with pytest.raises(se.SpikformerError) as error:
            plot.neuron(source)
        one_line(error, said)


class TestAtlas:
    def test_a_raster_for_every_layer_in_network_order(self, rec):
        fig, axes = plot.atlas(rec, neurons=10**6, sample=1)
        drawn = [ax for ax in axes.T.ravel() if ax is not None]
        records = rec.layers("spikes")
        assert len(drawn) == len(records) == 19
        for ax, record in zip(drawn, records, strict=True):
            assert ax.get_title("left").startswith((record.name, record.name.split(".", 2)[-1]))
            assert f"{100 * float(record.spikes.mean()):.1f} %" in ax.get_title("left")
            assert len(bars(ax)) == int(record.spikes[:, 1].sum())
        assert "T = 4" in label_of(fig)

    def test_shares_of_dead_and_saturated_features(self):
        spikes = torch.zeros(2, 1, 4, 1, 1)  # [T, B, C, H, W]: of four channels one always fires, one sometimes
        spikes[:, :, 0] = 1
        spikes[0, :, 1] = 1
        recording = Recording(["sps.0"])
        recording._records["sps.0"] = LayerRecord("sps.0", "spikes", spikes, None, 1.0)
        _, axes = plot.atlas(recording)
        rate, always, sometimes, never = (bar.get_height() for bar in axes[0, 0].child_axes[0].patches[1:])
        assert (rate, always, sometimes, never) == (3 / 8, 1 / 4, 1 / 4, 1 / 2)

    def test_one_step_one_token(self):
        model = se.spikformer("digits-2-64", dim=16, heads=2, depth=1, time_steps=1).eval()
        with torch.no_grad(), se.record(model) as recording:
            model(torch.zeros(1, 1, 4, 4))
        fig, axes = plot.atlas(recording)
        assert "T = 1" in label_of(fig)

    def test_bad_input_is_one_line(self, rec):
        for options, said in ((dict(sample=9), "2 samples"), (dict(neurons=0), "at least one")):
            with pytest.raises(se.SpikformerError, match=said):
                plot.atlas(rec, **options)
        assert not plt.get_fignums(), "a figure was left open"
        with pytest.raises(se.SpikformerError, match="recording is empty"):
            plot.atlas(Recording(["sps.0"]))


class TestValueSets:
    def test_shares_of_each_value(self):
        recording = Recording(["a", "b", "c"])
        recording._records["a"] = LayerRecord("a", "spikes", torch.tensor([[0.0, 0, 0, 1]]))
        recording._records["b"] = LayerRecord("b", "residual", torch.tensor([[0.0, 1, 2, 5]]))
        recording._records["c"] = LayerRecord("c", "scores", torch.tensor([[0.0, 0.125]]))
        recording._logits = torch.tensor([[0.1, 0.3]])
        fig, (ribbon, shares) = plot.value_sets(recording, torch.tensor([[0.3, 0.7]]))
        names = [t.get_text() for t in shares.get_xticklabels()]
        assert names == ["input", "a", "b", "c", "logits"]
        heights = {x: [b.get_height() for b in shares.patches if round(b.get_x() + 0.42) == x] for x in range(5)}
        assert heights[1] == [0.75, 0.25, 0, 0, 0]
        assert heights[2] == [0.25, 0.25, 0.25, 0, 0.25]  # 5 counts as "4 or more"
        assert heights[0] == [0, 1] and heights[3] == [0.5, 0.5]
        kinds = [bar.get_facecolor() for bar in ribbon.patches]
        assert len(set(kinds)) == 4 and kinds[0] == kinds[4]

    def test_a_real_recording(self, rec):
        fig, (ribbon, _) = plot.value_sets(rec)
        assert len(ribbon.patches) == len(rec) + 1
        assert "T = 4" in label_of(fig)


class TestLogits:
    def test_the_lines_end_at_the_models_output(self, rec):
        _, ax = plot.logits(rec, list("abcdefghij"), label=3, sample=1)
        output = rec.logits[:, 1].mean(0)
        named = {line.get_label(): line.get_ydata()[-1] for line in ax.lines if not line.get_label().startswith("_")}
        assert len(ax.lines) == 10 and len(named) == 5 and "d (true)" in named
        best = "abcdefghij"[int(output.argmax())]
        assert named.get(best, named.get(f"{best} (true)")) == pytest.approx(float(output.max()), abs=1e-6)
        assert named["d (true)"] == pytest.approx(float(output[3]), abs=1e-6)

    def test_as_many_classes_as_are_asked_for(self, rec, one_line):
        _, ax = plot.logits(rec, shown=8)
        named = [line for line in ax.lines if not line.get_label().startswith("_")]
        assert len(ax.lines) == 10 and len(named) == 8
        assert len({(line.get_linestyle(), line.get_color()) for line in named}) == 8
        with pytest.raises(se.SpikformerError) as error:
            plot.logits(rec, shown=0)
        one_line(error, "shown=0")

    @pytest.mark.filterwarnings("ignore:Glyph")
    def test_classes_of_any_name_stand_in_the_legend(self, rec):
        fig, ax = plot.logits(rec, ODD_NAMES, label=3, shown=10)
        fig.canvas.draw()
        assert len(ax.get_legend().get_texts()) == len(ODD_NAMES)
        assert ax.get_window_extent().width > 150, "a long name left no room for the curves"


class TestSSA:
    def q_k_v(self):
        q, k, v = torch.zeros(3, 2, 4, 8)  # T = 2, N = 4, d = 8
        q[:, 1, :5] = 1
        k[:, 2, 2:7] = 1
        k[:, 3, 4] = 1
        v[:, 2, 6] = v[:, 3, 6] = 1
        return q, k, v

    def test_one_cell_from_bits_to_spike(self):
        fig, axes = plot.ssa(*self.q_k_v(), step=1, query=1, key=2, feature=6)
        counts = axes["scores"].images[0].get_array()
        assert counts[1].tolist() == [0, 0, 3, 1] and counts.sum() == 4
        assert axes["and"].images[0].get_array()[2].tolist() == [0, 0, 3, 3, 3, 0, 0, 0]
        assert "popcount of the AND: 3" in axes["and"].get_title("left")
        assert axes["sums"].images[0].get_array()[1, 6] == 4  # 3 + 1
        assert "current: 4 x 0.125 = 0.5" in axes["sums"].get_title("left")
        h = axes["membrane"].lines[2].get_ydata().tolist()
        assert h == [0.25, 0.375]
        assert "no spike" in axes["membrane"].get_title("left")
        for name, color in (("q", style.Q), ("k", style.K), ("v", style.V)):
            assert axes[name].images[0].cmap(1.0) == pytest.approx(matplotlib.colors.to_rgba(color))
        assert "T = 2" in [t.get_text() for t in axes["q"].texts][0]

    def test_by_default_a_cell_that_fires(self, rec):
        _, axes = plot.ssa(rec, block=1, head=1, sample=1)
        assert "spike at t" in axes["membrane"].get_title("left")
        assert "no spike" not in axes["membrane"].get_title("left")

    @pytest.mark.parametrize(
        "options",
        [
            dict(),
            dict(qk_pool=True),
            dict(tau=1.2),
            dict(neuron="plif"),
            dict(neuron="if"),
            dict(scale=0.25),
        ],
        ids=str,
    )
    def test_the_spikes_are_those_of_the_model(self, options):
        torch.manual_seed(0)
        model = se.spikformer("digits-2-64", dim=16, heads=2, depth=2, **options)
        if options.get("neuron") == "plif":
            model.blocks[1].attn.attn.w.data.fill_(0.3)
        with torch.no_grad(), se.record(model, membranes=True) as rec:
            model(4 * torch.randn(2, 1, 32, 32))
        product = product_of(rec, None, None, None, None, 1, 0, 1)
        record = rec["blocks.1.attn.attn"]
        np.testing.assert_array_equal(product.s, record.spikes[:, 1, 0])
        np.testing.assert_array_equal(product.h >= product.threshold, product.s)
        np.testing.assert_allclose(product.h, record.membrane[:, 1, 0], atol=1e-6)
        assert 0 < product.s.mean() < 1
        _, axes = plot.ssa(rec, block=1, sample=1)
        assert ("pooled" in axes["q"].get_title("left")) == ("qk_pool" in options)

    def test_a_recording_that_does_not_multiply_out_is_refused(self, rec, one_line):
        with pytest.raises(se.SpikformerError) as error:
            plot.ssa(rec, scale=0.5)
        one_line(error, "blocks.0.attn.attn", "s = 0.5")

    def test_low_precision_is_drawn_as_it_was(self):
        """Rounding may turn a spike at the very threshold; the recorded one is drawn."""
        torch.manual_seed(0)
        model = se.spikformer("digits-2-64", dim=64, heads=2, depth=1, scale=0.2)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), se.record(model) as rec:
            model(4 * torch.randn(2, 1, 32, 32))
        product = product_of(rec, None, None, None, None, 0, 1, 1)
        np.testing.assert_array_equal(product.s, rec["blocks.0.attn.attn"].spikes[:, 1, 1].float())

    def test_silence_one_step_one_token(self):
        nothing = torch.zeros(1, 1, 4)
        _, axes = plot.ssa(nothing, nothing, nothing)
        assert "no spike at t = 0" in axes["membrane"].get_title("left")
        _, axes = plot.ssa(*torch.ones(3, 4, 8))  # one step: [N, d]
        assert axes["scores"].images[0].get_array().max() == 8

    @pytest.mark.slow
    def test_the_animation_meets_the_keys_one_by_one(self, tmp_path):
        movie = plot.ssa_animation(*self.q_k_v(), query=1, feature=6)
        assert movie._save_count == 2 * 4  # T = 2 steps, N = 4 keys
        movie.save(tmp_path / "ssa.gif", writer="pillow", dpi=30)
        seen = []
        for frame in range(4):
            movie._func(frame)
            seen.append(movie._fig.axes[-1].get_title("left"))
            titles = [ax.get_title("left") for ax in movie._fig.axes]
            assert any("at t = 0" in title for title in titles) == (frame == 3)  # no verdict before the last key
        assert ["AND: 0", "AND: 0", "AND: 3", "AND: 1"] == [title[16:22] for title in seen]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (dict(k=torch.zeros(2, 4, 7)), "[2, 4, 7]"),
            (dict(v=None), "three tensors"),
            (dict(q=torch.full((2, 4, 8), 0.5)), "0.5"),
            (dict(query=4), "query=4"),
            (dict(step=2), "step=2"),
            (dict(feature=-1), "feature=-1"),
        ],
    )
    def test_bad_input_is_one_line(self, change, said, one_line):
        with pytest.raises(se.SpikformerError) as error:
            plot.ssa(**(dict(zip("qkv", self.q_k_v(), strict=True)) | change))
        one_line(error, said)

    def test_bad_parts_of_a_recording(self, rec):
        with pytest.raises(se.SpikformerError, match="head=2"):
            plot.ssa(rec, head=2)
        with pytest.raises(se.SpikformerError, match="did you mean 'blocks.1.attn.q'"):
            plot.ssa(rec, block=7)


class TestMultiplicationOrder:
    def test_the_curves_cross_at_n_equal_d(self):
        _, (left, right) = plot.multiplication_order(32)
        quadratic, linear = (dict(zip(*line.get_data(), strict=True)) for line in left.lines[:2])
        for n in quadratic:
            assert quadratic[n] == pytest.approx(2 * n * n * 32) and linear[n] == pytest.approx(2 * n * 32 * 32)
        assert left.lines[2].get_data() == ([32], [2 * 32**3])

    def test_every_preset_is_marked_with_its_ratio(self):
        _, (_, right) = plot.multiplication_order()
        found = {}
        for bar, tick in zip(right.patches, right.get_yticklabels(), strict=True):
            found[tick.get_text()] = bar.get_width()
        ratio = {label.splitlines()[-1]: width for label, width in found.items()}
        assert ratio["N = 64, d = 32"] == 2 and ratio["N = 196, d = 64"] == 196 / 64
        text = "\n".join(found)
        assert all(word in text for word in ("cifar10-*", "cifar100-*", "imagenet-8-384", "digits-2-64", "-8-768"))

    def test_bad_input_is_one_line(self):
        with pytest.raises(se.SpikformerError, match="width=0"):
            plot.multiplication_order(0)
        with pytest.raises(se.SpikformerError, match="did you mean 'cifar10-4-384'"):
            plot.multiplication_order(models=["cifar10-4-385"])


class TestLandscape:
    def test_ties_and_vanishing_shares_are_counted(self):
        h = torch.tensor([[0.5, 0.5, 0.0, 1.0, 3.0, 3.0, 3.0, -9.0]])  # T = 1
        _, (ax,) = plot.landscape({"toy": h})
        said = ax.texts[0].get_text()
        assert "ties: 25.00 %" in said and "gradient vanishes: 50.0 %" in said and "beyond the axis: 12.5 %" in said
        assert ax.get_title("left") == "toy, T = 1"
        tallest = max(ax.patches[:-3], key=lambda bar: bar.get_height())
        assert tallest.get_height() == pytest.approx(3 / 8) and abs(tallest.get_x() + 0.0275 - 3.0) < 0.04

    def test_the_edge_of_vanishing_is_where_the_surrogate_says(self):
        for share in (0.05, 0.5):
            reach = np.log((1 + (1 - share) ** 0.5) / (1 - (1 - share) ** 0.5)) / 4
            for delta, expected in ((-1e-4, "0.0"), (1e-4, "100.0")):
                h = torch.tensor([0.5 + reach + delta, 0.5 - reach - delta])
                _, (ax,) = plot.landscape({"edge": h}, vanishing=share)
                assert f"vanishes: {expected} %" in ax.texts[0].get_text()
            sigma = 1 / (1 + np.exp(-4 * reach))
            assert sigma * (1 - sigma) / 0.25 == pytest.approx(share)

    def test_records_of_several_blocks(self, rec):
        chosen = {f"block {i}": rec[f"blocks.{i}.attn.attn"] for i in range(2)}
        fig, axes = plot.landscape(chosen)
        assert len(axes) == 2
        ties = float((rec["blocks.0.attn.attn"].membrane == 0.5).float().mean())
        assert f"ties: {100 * ties:.2f} %" in axes[0].texts[0].get_text()
        assert len(plot.landscape(rec["blocks.0.attn.attn"])[1]) == 1

    @pytest.mark.parametrize(("given", "said"), [({}, "dict of them"), ({"x": torch.tensor([torch.nan])}, "NaN")])
    def test_bad_input_is_one_line(self, given, said, one_line):
        with pytest.raises(se.SpikformerError) as error:
            plot.landscape(given)
        one_line(error, said)


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    model = se.spikformer("digits-2-64", dim=16, heads=2)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # one batch in training mode sets the statistics, so that every layer fires
    model(4 * torch.randn(8, 1, 32, 32))
    return energy(model, 4 * torch.randn(2, 1, 32, 32))


class TestEnergy:
    def test_the_waterfall_adds_up_to_the_total(self, report):
        for convention in CONVENTIONS:
            fig, (left, right) = plot.energy(report, convention=convention)
            unit = 1e3 if left.get_ylabel().endswith("nJ") else 1e6
            top = max(bar.get_y() + bar.get_height() for bar in left.patches)
            assert top * unit == pytest.approx(report.totals[convention])
            heights = [bar.get_height() * unit for bar in right.patches]
            assert heights == pytest.approx(list(report.totals.values()))
            names = [t.get_text() for t in left.get_xticklabels()]
            assert names == [cost.layer for cost in report.layers]
            assert "T = 4" in label_of(fig) and "not the energy of a GPU" in fig.get_supxlabel()

    def test_bad_input_is_one_line(self, report):
        with pytest.raises(se.SpikformerError, match="did you mean 'integer'"):
            plot.energy(report, convention="integers")
        with pytest.raises(se.SpikformerError, match="not Tensor"):
            plot.energy(torch.zeros(3))


class TestTraining:
    ROWS = [
        {"epoch": "1", "loss": "2.0", "val_loss": "1.5", "accuracy": "0.5", "lr": "0.1", "rate": "0.2",
         "rate/blocks.0.attn.q": "0.1", "rate/sps.0": "0.3", "dead/sps.0": "0.5", "grad/head": "3.0"},
        {"epoch": "2", "loss": "1.0", "val_loss": "", "accuracy": "0.75", "lr": "0.05", "rate": "0.2",
         "rate/blocks.0.attn.q": "0.2", "rate/sps.0": "0.3", "dead/sps.0": "0.25", "grad/head": "1.0"},
    ]  # fmt: skip

    def test_a_panel_for_each_group_of_columns(self):
        fig, axes = plot.training(self.ROWS, title="a run")
        titles = [ax.get_title("left") for ax in axes]
        expected = ["loss", "accuracy, %", "firing rate, %", "dead features, %", "gradient norm", "learning rate"]
        assert titles == expected
        loss, val = axes[0].lines
        assert loss.get_xdata().tolist() == [1, 2] and loss.get_ydata().tolist() == [2, 1]
        assert val.get_ydata()[0] == 1.5 and np.isnan(val.get_ydata()[1])
        assert axes[1].lines[0].get_ydata().tolist() == [50, 75]
        first, second = axes[2].lines  # network order, not the file's
        assert first.get_ydata().tolist() == [30, 30] and second.get_ydata().tolist() == [10, 20]
        assert axes[4].get_yscale() == "log"
        assert fig.get_suptitle() == "a run"

    def test_a_row_of_color_for_every_layer(self):
        rows = [
            {"epoch": 1, "loss": 2, "rate/sps.0": 0.1, "rate/blocks.0.attn.q": 0.02, "dead/sps.0": 0.5,
             "grad/blocks.0.mlp": 3.0, "grad/blocks.0.attn": 1.0},
            {"epoch": 2, "loss": 1, "rate/sps.0": 0.2, "rate/blocks.0.attn.q": 0.03, "dead/sps.0": "",
             "grad/blocks.0.mlp": 4.0, "grad/blocks.0.attn": 2.0},
        ]  # fmt: skip
        fig, axes = plot.training_layers(rows, title="a run")
        assert [ax.get_title("left") for ax in axes] == ["firing rate, %", "dead features, %", "gradient norm"]
        named = [[label.get_text() for label in ax.get_yticklabels()] for ax in axes]
        assert named == [["sps.0", "blocks.0.attn.q"], ["sps.0"], ["blocks.0.attn", "blocks.0.mlp"]]
        rate, dead, gradient = (ax.collections[0].get_array() for ax in axes)
        np.testing.assert_allclose(rate, [[10, 20], [2, 3]])
        assert dead[0, 0] == 50 and np.ma.is_masked(dead[0, 1])  # an empty value leaves a gap
        np.testing.assert_allclose(gradient, [[1, 2], [3, 4]])
        assert axes[0].get_ylim() == (1.5, -0.5) and fig.get_suptitle() == "a run"  # the first layer on top
        with pytest.raises(se.SpikformerError, match="no column of a layer"):
            plot.training_layers([{"epoch": 1, "loss": 2}])

    def test_reads_a_file_or_its_folder_and_skips_what_is_not_there(self, tmp_path):
        (tmp_path / "metrics.csv").write_text("epoch,loss,rate\n1,2.5,0.1\n2,2.0,0.2\n")
        for log in (tmp_path, tmp_path / "metrics.csv", str(tmp_path)):
            _, axes = plot.training(log)
            assert [ax.get_title("left") for ax in axes] == ["loss", "firing rate, %"]
        assert axes[0].lines[0].get_ydata().tolist() == [2.5, 2.0]

    def test_the_title_names_the_data_that_the_log_names(self, tmp_path):
        (tmp_path / "metrics.csv").write_text("epoch,data,loss\n1,digits-dvs (simulated),2.5\n")
        assert plot.training(tmp_path)[0].get_suptitle() == f"{tmp_path.name}, digits-dvs (simulated)"

    def test_bad_logs_are_one_line(self, tmp_path, one_line):
        (tmp_path / "empty.csv").write_text("epoch,loss\n")
        (tmp_path / "other.csv").write_text("a,b\n1,2\n")
        (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
        for name, said in (("none.csv", "No such file"), ("empty.csv", "no epoch yet"), ("other.csv", "no column")):
            with pytest.raises(se.SpikformerError, match=said):
                plot.training(tmp_path / name)
        with pytest.raises(se.SpikformerError) as error:
            plot.training(tmp_path / "bytes.csv")
        one_line(error)


def test_every_public_function_is_documented_and_exported():
    for name in plot.__all__:
        function = getattr(plot, name)
        assert callable(function) and "Args:" in function.__doc__ and "Raises:" in function.__doc__
