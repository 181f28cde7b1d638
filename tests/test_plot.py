"""Pictures of inputs whose picture is known: the artists must sit where the numbers say."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import spikformer_edu as se
from spikformer_edu import plot
from spikformer_edu.plot import style
from spikformer_edu.record import LayerRecord


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


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) > 15
    return text


class TestStyle:
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
    def test_bad_input_is_one_line(self, values, options, said):
        with pytest.raises(se.SpikformerError) as error:
            plot.raster(values, **options)
        assert said in one_line(error)
        assert not plt.get_fignums(), "a figure was left open"

    def test_residuals_are_not_spikes(self, rec):
        with pytest.raises(se.SpikformerError, match="holds no spikes"):
            plot.raster(rec["blocks.0.residual"])


class TestMembrane:
    def test_the_line_charges_then_falls_to_zero_after_a_spike(self):
        h = torch.tensor([0.5, 1.25, 0.75, 1.0])  # the last one is a tie: >= fires
        _, ax = plot.membrane(h)
        line = ax.lines[1]
        assert line.get_color() == style.MEMBRANE
        assert line.get_xdata().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert line.get_ydata().tolist() == [0.5, 0.5, 1.25, 0, 0.75, 0.75, 1.0, 0]
        assert ax.lines[0].get_ydata()[0] == 1.0  # threshold
        assert [s[0, 0] for s in ax.collections[0].get_segments()] == [1, 3]  # spikes
        assert ax.get_title("left") == "T = 4"

    def test_a_record_brings_its_threshold_and_spikes(self, rec):
        record = rec["blocks.0.attn.attn"]
        _, ax = plot.membrane(record, neuron=(1, 5, 3), sample=1)
        h = record.membrane[:, 1, 1, 5, 3].numpy()
        assert ax.lines[0].get_ydata()[0] == 0.5
        np.testing.assert_array_equal(ax.lines[1].get_ydata()[::2], h)
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
        ],
    )
    def test_bad_input_is_one_line(self, h, options, said):
        with pytest.raises(se.SpikformerError) as error:
            plot.membrane(h, **options)
        assert said in one_line(error)

    def test_membranes_that_were_not_recorded(self):
        record = LayerRecord("sps.0", "spikes", torch.zeros(2, 1, 3), None, 1.0)
        with pytest.raises(se.SpikformerError, match="membranes=True"):
            plot.membrane(record)


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

    def test_an_empty_recording(self):
        model = se.spikformer("digits-2-64", dim=16)
        with se.record(model) as rec:
            pass
        with pytest.raises(se.SpikformerError) as error:
            plot.firing_rates(rec)
        assert "recording is empty" in one_line(error)
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
    def test_bad_input_is_one_line(self, scores, options, said):
        with pytest.raises(se.SpikformerError) as error:
            plot.attention(scores, **options)
        assert said in one_line(error)
        assert not plt.get_fignums()

    def test_spikes_are_no_scores(self, rec):
        with pytest.raises(se.SpikformerError, match="attn.scores"):
            plot.attention(rec["blocks.0.attn.q"])
