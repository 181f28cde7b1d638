"""Chapter 12 on machines that the notebooks' own tests do not have: with GPUs (faked), and with real pictures."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import spikformer_edu as se
from spikformer_edu import cli
from spikformer_edu.train import defaults

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tutorials"))
import build  # noqa: E402

SCRIPT = build.SOURCES / "12_imagenet.py"
WHOLE = {"train": 1_281_167, "val": 50_000}  # images of ImageNet


def cells_until_start() -> dict[str, str]:
    """Source of the code cells up to the one that starts the run, by their first tag or number; figures left out."""
    found: dict[str, str] = {}
    for number, cell in enumerate(build.read(SCRIPT).cells):
        if (
            cell.cell_type == "code"
            and "subplots" not in cell.source
            and "predict" not in cell.metadata.get("tags", [])
        ):
            kind = [tag for tag in cell.metadata.get("tags", []) if tag not in ("nbval-ignore-output", "fold")]
            found[kind[0] if kind else str(number)] = cell.source
        if "go" in found:
            return found
    raise AssertionError("no cell is tagged go")


class Machine:
    """A machine with some GPUs and all of ImageNet, as far as the chapter can see; it trains nothing."""

    def __init__(self, monkeypatch, tmp_path, capsys, gpus: int, *, gib=24.0, step=0.05):
        self.said, self.command, self.options, self.recipes = "", None, {}, []
        self.gib, self.step, self.capsys = gib, step, capsys
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tutorials").mkdir()
        monkeypatch.chdir(tmp_path / "tutorials")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a made-up GPU")
        monkeypatch.setattr(se.data, "count", lambda *_: WHOLE)
        splits = SimpleNamespace(train=range(WHOLE["train"]), test=range(WHOLE["val"]))
        monkeypatch.setattr(se.data, "load", lambda *_, **__: splits)
        monkeypatch.setattr("spikformer_edu.training.plan.plan", self.plan)
        monkeypatch.setattr(subprocess, "Popen", self.popen)

    def plan(self, recipe, context, options):
        """Takes the place of a measurement: an 80 GiB GPU, a fixed time for a step."""
        assert context.device.type == "cuda" and options.workers >= 1
        self.recipes.append(recipe)
        steps = WHOLE["train"] // recipe.batch_size * 310
        return SimpleNamespace(
            parameters=29_689_384,
            images=WHOLE["train"],
            step_seconds=self.step,
            step_images=recipe.batch_size,
            hours=steps * self.step / 3600,
            room=80 * 2**30,
            bytes=int(self.gib / recipe.grad_accum_steps * 2**30),
            image_bytes=int(self.gib * 2**30) // recipe.batch_size,
        )

    def popen(self, command, **options):
        self.said += self.capsys.readouterr().out
        self.command, self.options = command, options
        return SimpleNamespace(poll=lambda: None)

    def run(self, **settings):
        """Run the chapter up to the start of the training, with other settings of the reader."""
        names: dict[str, object] = {}
        for kind, source in cells_until_start().items():
            exec(compile(re.sub(r"^ *%pip.*$", "", source, flags=re.M), kind, "exec"), names)
            if kind == "settings":
                names |= settings
        self.said += self.capsys.readouterr().out
        return names

    @property
    def recipe(self):
        """The recipe that the command line stands for, as the command itself reads it."""
        arguments = self.command[self.command.index("spikformer_edu.train") + 1 :]
        before, sys.argv = sys.argv, ["train", *arguments]
        try:
            return cli.parse(type(defaults(arguments)), "train", defaults(arguments))
        finally:
            sys.argv = before


@pytest.fixture
def machine(monkeypatch, tmp_path, capsys):
    return lambda gpus, **more: Machine(monkeypatch, tmp_path, capsys, gpus, **more)


def test_with_a_gpu_and_imagenet_the_cells_are_the_full_run(machine):
    one = machine(1)
    one.run()
    assert "torch.distributed.run" not in one.command and one.options["start_new_session"]
    recipe = one.recipe
    assert (recipe.dataset, recipe.model, recipe.batch_size) == ("imagenet", "imagenet-8-512", 192)
    assert (recipe.epochs, recipe.cooldown_epochs, recipe.warmup_epochs) == (300, 10, 20)
    assert recipe.image_size is None and recipe.samples_per_class is None and recipe.device == "auto"
    assert str(recipe.out) == "../runs/imagenet"  # beside the notebook, and not temporary
    before = one.said.partition("python -m")[0]  # said before the process was started
    hours = 310 * (WHOLE["train"] // 192) * 0.05 / 3600
    assert "imagenet-8-512 on ImageNet, 310 epochs: the full run" in before and "1 x a made-up GPU" in before
    assert f"run        {hours:,.1f} h" in before and f"cost       {hours * 2.5:,.2f} at 2.50" in before


def test_several_gpus_share_the_batch_and_the_time(machine):
    eight = machine(8)
    names = eight.run(PRICE=1.0)
    at = eight.command.index("torch.distributed.run")
    assert eight.command[at - 1 : at + 4] == ["-m", "torch.distributed.run", "--nproc-per-node", "8", "-m"]
    assert eight.recipe.batch_size == 192 and eight.recipes[0].batch_size == 24
    hours = 310 * (WHOLE["train"] // 24) * 0.05 / 3600 / 8
    assert names["hours"] == pytest.approx(hours)
    assert f"cost       {8 * hours:,.2f} at 1.00" in eight.said


def test_five_gpus_use_four_because_the_batch_divides(machine):
    five = machine(5)
    five.run()
    assert five.command[five.command.index("--nproc-per-node") + 1] == "4"


def test_a_batch_that_does_not_fit_is_computed_in_parts(machine):
    small = machine(1, gib=200.0)
    small.run()
    parts = small.recipe.grad_accum_steps
    assert 192 % parts == 0 and 200 / parts < 0.9 * 80 and small.recipes[-1].grad_accum_steps == parts


def test_a_run_that_takes_too_long_is_not_started(machine):
    slow = machine(1)
    slow.run(MAX_HOURS=20)
    assert slow.command is None and "not started: 29 h are more than MAX_HOURS = 20" in slow.said


def test_a_run_that_is_there_is_continued(machine):
    again = machine(1)
    Path("../runs/imagenet").mkdir(parents=True)
    Path("../runs/imagenet/config.json").touch()
    again.run()
    assert again.command[-1] == "--resume"


def test_a_finished_full_run_is_kept(machine):
    finished = machine(1)
    Path("../runs/imagenet").mkdir(parents=True)
    Path("../runs/imagenet/results.json").touch()
    finished.run()
    assert finished.command is None and Path("../runs/imagenet/results.json").exists()
    assert finished.said.rstrip().endswith("finished")


@pytest.mark.slow
def test_rehearsal_on_pictures_of_imagenet(tmp_path):
    """The whole chapter where SPIKFORMER_DATA has some of ImageNet; what it draws and prints stays in a folder."""
    data = os.environ.get("SPIKFORMER_DATA")
    if not data or not se.data.count("imagenet", data):
        pytest.skip("no picture of ImageNet in SPIKFORMER_DATA")
    (tmp_path / "tutorials").mkdir()
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    notebook = build.read(SCRIPT)
    where = {"metadata": {"path": str(tmp_path / "tutorials")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    nbformat.write(notebook, tmp_path / "12_imagenet.ipynb")
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    run = tmp_path / "runs" / "imagenet-rehearsal-pictures"
    assert "64 training and 16 test images" in printed and "imagenet-8-384 on 64 pictures of ImageNet" in printed
    assert re.search(r"saved after [1-8] of 8 batches", printed)  # stopped in the middle, and continued
    assert se.load_run(run).results["epochs"] == 1 and len((run / "metrics.csv").read_text().splitlines()) == 2
    assert "recorded by the run" in printed
    figures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(figures) == 4
