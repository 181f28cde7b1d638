"""From chapter 07 to a training: the reader's network is the one that is trained, on whatever this machine has."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikformer_edu as se
from spikformer_edu.data import Split, Splits, cifar10
from spikformer_edu.training import DistributedContext, Recipe, train

TUTORIALS = Path(__file__).parent.parent / "tutorials"


def test_08_trains_the_classes_of_chapter_07_and_has_none_of_its_own():
    chapters = {n: json.loads(next(TUTORIALS.glob(f"{n}_*.ipynb")).read_text("utf-8"))["cells"] for n in ("07", "08")}
    sources = {
        n: [("".join(c["source"]), c["metadata"].get("tags", [])) for c in cells if c["cell_type"] == "code"]
        for n, cells in chapters.items()
    }
    tagged = "\n".join(source for source, tags in sources["07"] if "network" in tags)
    defined = re.findall(r"^class (\w+)", tagged, re.M)
    assert defined == ["Step", "LIF", "Stage", "Tokenwise", "SSA", "Block", "Network"]
    assert not re.findall(r"^class (\w+)\(nn\.Module\)", "\n".join(s for s, _ in sources["08"]), re.M)
    (loading,) = [s for s, _ in sources["08"] if '"network" in c["metadata"]' in s]
    assert "07_assemble_and_verify.ipynb" in loading and "Network = " in loading


def network_of_07() -> type[nn.Module]:
    """The network that chapter 08 loads, from the script of chapter 07."""
    from collections import OrderedDict

    sys.path.insert(0, str(TUTORIALS))
    import build

    names = {"torch": torch, "nn": nn, "F": F, "Tensor": Tensor, "se": se, "OrderedDict": OrderedDict}
    for cell in build.read(build.SOURCES / "07_assemble_and_verify.py").cells:
        if "network" in cell.metadata.get("tags", []):
            exec(cell.source, names)
    return names["Network"]


@pytest.mark.parametrize("still", [True, False])
def test_08_the_network_of_chapter_07_learns_as_the_package_s_does(still):
    """Losses and weights of three steps, in float64; statistics of the batch norms too."""
    config = se.SpikformerConfig(dim=16, depth=1, heads=2, num_classes=5, time_steps=3)
    own, package = network_of_07()(config).double(), se.Spikformer(config).double()
    own.load_state_dict(package.state_dict())
    inputs = torch.randn(*(() if still else (3,)), 4, 3, 16, 16, dtype=torch.float64)
    for model in (own, package):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), torch.arange(4)).backward()
            optimizer.step()
    assert all(p.grad is not None for p in own.parameters())
    for name, value in package.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, rtol=0, atol=1e-9, msg=name)


def test_08_a_run_calls_on_epoch_with_its_rows_also_after_a_stop(tmp_path):
    import signal

    context = DistributedContext(torch.device("cpu"))
    recipe = Recipe(epochs=3, samples_per_class=2, batch_size=10, lr_batch_size=10, time_steps=1)
    seen: list[list[int]] = []

    def stop(rows):
        seen.append([row["epoch"] for row in rows])
        if len(rows) == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(se.SpikformerError, match="asked to stop: the run is saved"):
        train(recipe, tmp_path / "run", context, on_epoch=stop)
    train(recipe, tmp_path / "run", context, on_epoch=stop)
    assert seen == [[1], [1, 2], [1, 2, 3]]
    train(recipe, tmp_path / "whole", context)
    weights = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


class Few(Split):
    """Black images of CIFAR's shape, as many as are asked for."""

    def __init__(self, count: int):
        self.targets = torch.arange(count) % 10
        self.device = torch.device("cpu")

    def fetch(self, indices, generator):
        return torch.zeros(len(indices), 3, 32, 32), self.targets[indices]


@pytest.mark.parametrize(
    ("device", "images", "said"),
    [
        ("cpu", {}, "on Handwritten digits"),
        ("cuda", {}, "on Handwritten digits"),
        ("cpu", {"train": 50_000, "test": 10_000}, "10,000 images"),
        ("cuda", {"train": 50_000, "test": 10_000}, "48,000 images"),
    ],
)
def test_08_chooses_device_data_and_length(monkeypatch, capsys, device, images, said):
    """The chapter's own cell, with a device and data that are not here."""
    import spikformer_edu.training as training
    from spikformer_edu.training import pace

    asked = {}

    def measured(recipe, context, splits, options, steps):
        asked.update(device=context.device, steps=steps)
        return 0.25

    def load_splits(recipe):
        if recipe.dataset == "digits":
            return se.data.load("digits", samples_per_class=recipe.samples_per_class)
        held = round(50_000 * recipe.val_fraction)
        rest = min(50_000 - held, 10 * (recipe.samples_per_class or 5_000))
        return Splits(cifar10.INFO, Few(rest), Few(held), Few(10_000))

    monkeypatch.setattr(se.data, "count", lambda name: images)
    monkeypatch.setattr(training, "choose_device", lambda name: torch.device(device if name == "auto" else "cpu"))
    monkeypatch.setattr(training, "load_splits", load_splits)
    monkeypatch.setattr(pace, "step_seconds", measured)
    cells = json.loads((TUTORIALS / "08_train.ipynb").read_text("utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    names: dict = {"__name__": "chapter"}
    pytest.importorskip("IPython")
    exec(re.sub(r"^ *%pip.*$", "", sources[0], flags=re.M), names)
    exec(sources[1], names)
    recipe, printed = names["recipe"], capsys.readouterr().out
    assert f"compute on: {device}" in printed and said in printed
    if not images:
        assert recipe == Recipe(epochs=recipe.epochs) and recipe.epochs >= 8 and not asked
        return
    assert asked["device"].type == device and f"{recipe.epochs} epochs" in printed
    if device == "cuda":  # in full: the paper's network and all images
        short = se.training.recipe_for("cifar10", "fast-t1")
        assert (recipe.model, recipe.network.time_steps) == ("cifar10-4-384", 4)
        assert recipe.samples_per_class is None and recipe.epochs == short.epochs == 77
        assert f"about {-(-int(48_000 // 256 * 77 * 0.25) // 60)} min" in printed
    else:
        assert recipe.samples_per_class == 1000 and recipe.epochs <= 10


@pytest.mark.slow
def test_08_trains_on_cifar10_where_it_is(tmp_path):
    """The whole chapter on real images: its assertions hold; its outputs are not compared."""
    if not se.data.count("cifar10"):
        pytest.skip("no CIFAR-10 under $SPIKFORMER_DATA")
    run_chapter = runpy.run_path(str(TUTORIALS / "results" / "08_train.py"))["run_chapter"]
    notebook = run_chapter(tmp_path, timeout=900)
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert "on CIFAR-10: 10,000 images" in printed or "48,000 images" in printed
    right, total = re.search(r"([\d,]+) of ([\d,]+) right", printed).groups()
    assert total == "10,000" and int(right.replace(",", "")) > 3_500
    assert (next((tmp_path / "tutorials" / "runs").iterdir()) / "results.json").exists()
    figures = sum("image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", []))
    assert figures >= 8
