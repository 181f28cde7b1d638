"""What is watched during training: firing rates on some steps, and the warning that they may end in."""

from dataclasses import replace

import pytest
import torch
from reference import awaken

import spikformer_edu as se
from spikformer_edu.data import load
from spikformer_edu.layer_record import feature_rates
from spikformer_edu.training import DistributedContext, Recipe
from spikformer_edu.training.loop import RunOptions, Trainer
from spikformer_edu.training.monitor import Rates, firing_warning


@pytest.fixture
def images():
    return 4 * torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(images):
    model = se.spikformer("digits-2-64", dim=16, heads=2, depth=2)
    awaken(model, images)
    return model.eval()


class TestRates:
    def test_rates_and_dead_features_of_the_steps_watched(self, model, images):
        rates = Rates(model, every=2)
        with torch.no_grad(), se.record(model) as rec:
            kept = []
            for step in range(4):
                rates.step()
                model(images * (step + 1))
                if step % 2 == 0:
                    kept.append({layer.name: feature_rates(layer.name, layer.spikes) for layer in rec.layers("spikes")})
        found = rates.pop()
        assert list(found) == [layer.name for layer in rec.layers("spikes")]
        for name, (rate, dead) in found.items():
            both = torch.stack([k[name] for k in kept])
            assert rate == pytest.approx(float(both.mean()), abs=1e-7)
            assert dead == pytest.approx(float((both.sum(0) == 0).float().mean()))

    def test_pop_starts_again_and_leaves_nothing(self, model, images):
        rates = Rates(model)
        assert rates.pop() == {}
        rates.step()
        model(images)
        assert rates.pop() and rates.pop() == {}
        model(images)
        assert rates.pop() == {}
        assert not any(module._forward_hooks for module in model.modules())

    def test_nothing_is_attached_between_watched_steps(self, model):
        rates = Rates(model, every=3)
        attached = []
        for _ in range(7):
            rates.step()
            attached.append(any(module._forward_hooks for module in model.modules()))
        assert attached == [True, False, False, True, False, False, True]
        rates.close()

    def test_validation_is_no_training_step(self, tmp_path):
        """An epoch of one step, which is watched: the hooks must be gone when the network is measured."""
        splits = load("digits", samples_per_class=10)
        recipe = Recipe(epochs=1, warmup_epochs=0, batch_size=len(splits.train), time_steps=1, samples_per_class=10)
        trainer, rows = Trainer(recipe, tmp_path, DistributedContext(torch.device("cpu")), splits, RunOptions()), []
        for val in (splits.val, None):
            trainer.splits = replace(splits, val=val)
            trainer.model.train()
            with torch.no_grad():
                trainer.rates.step()
                trainer.model(splits.train.fetch(torch.arange(20), None)[0])
            trainer.progress.seen = trainer.progress.seconds = 1
            trainer.finish_epoch()
            rows.append({name: value for name, value in trainer.progress.rows[-1].items() if name.startswith("rate/")})
        assert len(rows[0]) > 10 and rows[0] == rows[1]

    def test_compiled_in_place_every_layer_is_counted(self, model, images):
        model.compile(backend="eager")
        with torch.no_grad():
            model(images)
            rates = Rates(model)
            rates.step()
            model(images)
        found = rates.pop()
        assert list(found) == list(rates.layers) and model._compiled_call_impl is not None

    def test_bad_every(self, model):
        with pytest.raises(se.SpikformerError, match="every=0"):
            Rates(model, every=0)

    def test_the_warning_is_one_line_that_names_the_layers(self):
        assert firing_warning({"sps.0": (0.2, 0.5)}) is None
        said = firing_warning({"sps.0": (0.2, 0.0), "sps.1": (0.0, 1.0), "sps.2": (0.99, 0.0)})
        assert "\n" not in said and "sps.1" in said and "sps.2" in said and "sps.0" not in said
