"""A step is measured as it will run, and an epoch number is found for a time."""

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import spikformer_edu as se
from spikformer_edu import train as command
from spikformer_edu.training import DistributedContext, Recipe, RunOptions, load_splits, loop, pace, recipe_for
from spikformer_edu.training.checkpoint import read_config
from spikformer_edu.training.recipe import SHORT, check_recipe

CPU = DistributedContext(torch.device("cpu"))
SMALL = Recipe(epochs=2, warmup_epochs=0, batch_size=8, time_steps=1, samples_per_class=8)


@pytest.fixture(scope="module")
def splits():
    return load_splits(SMALL)


def test_a_step_is_timed_as_the_loop_runs_it(splits, monkeypatch, tmp_path):
    """Real steps, the first of them not counted; nothing is left of them."""
    monkeypatch.chdir(tmp_path)
    steps, clock = [], [0.0]
    usual = loop.Trainer.step

    def step(trainer, inputs, targets):
        steps.append(len(targets))
        clock[0] += 100.0 if len(steps) <= 5 else 2.0
        usual(trainer, inputs, targets)

    monkeypatch.setattr(loop.Trainer, "step", step)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(pace, "WARM_UP", 5)
    assert pace.step_seconds(SMALL, CPU, splits, RunOptions(), steps=3) == 2.0
    assert steps == [8] * 8 and not list(tmp_path.iterdir())
    steps.clear()
    clock[0] = 0.0
    assert pace.step_seconds(SMALL, CPU, splits, RunOptions(), steps=1000) == 2.0
    assert len(steps) == 5 + len(splits.train) // 8  # an epoch at most


def test_epochs_fill_the_time(splits, monkeypatch, one_line):
    monkeypatch.setattr(pace, "step_seconds", lambda *_: 1.5)
    epoch = 1.5 * (len(splits.train) // 8)

    def found(seconds: float, **fields) -> int:
        return pace.epochs_in(seconds / 60, replace(SMALL, **fields), CPU, splits, RunOptions())

    assert found(10.01 * epoch) == 10 and found(10.99 * epoch) == 10
    assert found(10.01 * epoch, cooldown_epochs=4) == 6  # all passes together fill it
    with pytest.raises(se.SpikformerError) as error:
        found(4.9 * epoch, cooldown_epochs=4)
    one_line(error, f"an epoch takes {epoch / 60:.2g} here", f"give at least {5.5 * epoch / 60:.2g}")


def test_the_command_keeps_the_number_that_it_found(tmp_path, monkeypatch, capsys):
    """What was found is part of the recipe: the run is repeated with --epochs, and resumed without measuring."""
    monkeypatch.setattr(pace, "step_seconds", lambda *_: 0.6)
    arguments = (
        "--samples-per-class 8 --batch-size 8 --time-steps 1 --warmup-epochs 0 --device cpu --no-figures".split()
    )

    def run(*more: str) -> None:
        monkeypatch.setattr(command.sys, "argv", ["train", *arguments, *more])
        command.main(command.cli.parse(command.Options, "train", command.defaults([*arguments, *more])))

    images = len(load_splits(SMALL).train)
    run("--minutes", str(0.01 * (3 * images // 8 + 1)), "--out", str(tmp_path / "a"))
    recipe = read_config(tmp_path / "a")[0]
    assert recipe.epochs == 3
    run("--epochs", "3", "--out", str(tmp_path / "b"))
    weights = [(tmp_path / name / "best.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    monkeypatch.delattr(pace, "step_seconds")
    run("--minutes", "99", "--out", str(tmp_path / "a"), "--resume")
    assert "test accuracy" in capsys.readouterr().out


def test_epochs_and_minutes_together_are_refused(one_line):
    with pytest.raises(se.SpikformerError) as error:
        command.defaults(["--epochs", "3", "--minutes=2"])
    one_line(error, "leave out --epochs, or --minutes")


# The recipe for minutes


def test_the_short_recipe_is_that_of_the_packaged_run():
    """What was trained with a prototype's step is what the recipe says, apart from where the weights came from."""
    first = read_config(se.training.checkpoint.PRETRAINED.parents[1] / "docs" / "results" / "cifar10-4-384-t1")[0]
    assert SHORT["fast-t1"] == replace(first, precision=SHORT["fast-t1"].precision)
    then = se.load_run("cifar10-4-384").recipe
    assert SHORT["fast-t4"] == replace(then, precision=SHORT["fast-t4"].precision, init_from=None)


@pytest.mark.parametrize("name", SHORT)
def test_a_short_recipe_is_chosen_by_name(name, one_line):
    options = command.defaults(["--dataset", "cifar10", "--recipe", name])
    assert options.recipe == name and options.lr == SHORT[name].lr == recipe_for("cifar10", name).lr
    check_recipe(SHORT[name])
    with pytest.raises(se.SpikformerError) as error:
        recipe_for("cifar100", name)
    one_line(error, f"recipe '{name}' is for cifar10")
    with pytest.raises(se.SpikformerError) as error:
        command.defaults(["--recipe", "fst-t1"])
    one_line(error, "unknown recipe 'fst-t1'", "fast-t1")


@pytest.fixture
def short_recipe(monkeypatch):
    """The script that compares changes of the short recipe."""
    path = Path(__file__).parents[1] / "docs" / "results" / "short_recipe.py"
    spec = importlib.util.spec_from_file_location("short_recipe", path)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # what lies in docs/ goes to the site
    monkeypatch.setitem(sys.modules, "short_recipe", script)
    spec.loader.exec_module(script)
    return script


def test_changes_of_the_short_recipe_are_settings_that_do_something(short_recipe):
    """Each change is one setting of a recipe that a run takes."""
    base = replace(SHORT["fast-t1"], val_fraction=0.1)
    recipes = {name: short_recipe.changed(base, changes) for name, changes in short_recipe.CHANGES.items()}
    assert recipes.pop("the recipe") == base and len(set(map(str, recipes.values()))) == len(recipes) > 8
    for name, recipe in recipes.items():
        check_recipe(recipe)
        assert recipe != base, name
    assert recipes["mixup 0.5 in the first half"].augment.mix_epochs == base.epochs // 2


@pytest.mark.slow
def test_each_change_of_the_short_recipe_is_trained(short_recipe, monkeypatch, tmp_path):
    """Also one of the augmentation; on the same images for every seed, and measured on images that are set aside."""
    if not os.environ.get("SPIKFORMER_DATA"):
        pytest.skip("real data are not here: set SPIKFORMER_DATA")
    trained = []

    def train(recipe, folder, context, splits):
        trained.append((recipe, splits))

    log = {"val_accuracy": "0.5", "val_loss": "1", "accuracy": "0.4", "loss": "1.5"}
    monkeypatch.setattr(short_recipe, "train", train)
    monkeypatch.setattr(short_recipe, "read_log", lambda folder: ([log],))
    out = tmp_path / "rows.json"
    changes = ("the recipe", "no shifted crops", "no RandAugment", "no erasing", "mixup 0.5 in the first half")
    for seeds in (1, 2):  # the second time only the second seed is trained
        short_recipe.main(short_recipe.Options(out, seeds=seeds, changes=changes, samples_per_class=3, device="cpu"))
    assert len(trained) == 2 * len(changes) and [recipe.seed for recipe, _ in trained] == [0] * 5 + [1] * 5
    aside = trained[0][1].val.keys()
    for recipe, splits in trained:
        assert splits.train.augment == recipe.augment and splits.test is splits.val and splits.val.keys() == aside
        assert not {*aside} & {*splits.train.keys()}
    rows = json.loads(out.read_text())["rows"]
    assert [(row["change"], row["seed"]) for row in rows] == [(name, seed) for seed in (0, 1) for name in changes]
    assert {(row["training images"], row["validation images"]) for row in rows} == {(30, 30)}
