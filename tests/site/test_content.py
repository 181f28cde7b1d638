"""The content pages keep their word: code runs and prints what they show, commands and options exist, numbers and
pictures come from the package, and every test that is named is there."""

import ast
import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import typing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from reference import OfficialSpikformer

import spikformer_edu as se
from spikformer_edu import benchmark, cli, train
from spikformer_edu.data import PAPER, load
from spikformer_edu.training import RECIPES, DistributedContext, Recipe, evaluation, loop, recipe_for
from spikformer_edu.training.checkpoint import PRETRAINED
from spikformer_edu.training.recipe import DEVIATIONS, SHORT, check_recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FILES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if DOCS / "zh" not in path.parents)]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}  # test_chinese.py holds the others to them
CONCEPTS = ("neuron", "surrogate", "sps", "ssa", "encoder", "energy")
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)


def of_pages(words: str) -> pytest.MarkDecorator:
    """Parametrised by the pages that contain certain words."""
    return pytest.mark.parametrize("page", [name for name, text in PAGES.items() if words in text])


def script(file: Path) -> ModuleType:
    """A script of the pages as a module."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    with patch.object(sys, "dont_write_bytecode", True):  # what lies in docs/ goes to the site
        spec.loader.exec_module(module)
    return module


figures = script(DOCS / "figures.py")


# Code --------------------------------------------------------------------------------------------------------------


def blocks(text: str) -> list[tuple[str, str | None]]:
    """The Python blocks of a page, each with the text block that follows it at once, which is what it prints."""
    found, end, previous = [], 0, ""
    for match in FENCE.finditer(text):
        before, end = text[end : match.start()], match.end()
        kind, body = match[2].strip(), textwrap.dedent(match[3])
        if kind == "python" and "<!-- not run:" not in before:
            found.append([body, None])
        elif kind == "text" and found and found[-1][1] is None and not before.strip() and previous == "python":
            found[-1][1] = body
        previous = kind
    return [tuple(pair) for pair in found]


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text) and name != "README.md"])
def test_code_runs_and_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("Agg")
    if "<!-- made before it runs: checkpoint.pth -->" in PAGES[page]:
        torch.save(OfficialSpikformer("cifar", dim=384, depth=4, heads=12, classes=10).state_dict(), "checkpoint.pth")
    names = {"__name__": "page"}
    with patch.dict(se.ATTENTION):
        for code, expected in blocks(PAGES[page]):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, f"<code of {page}>", "exec"), names)
            if expected is not None:
                assert printed.getvalue() == expected, f"{page} shows another output"
    plt.close("all")


def test_the_guide_sorts_validation_files(tmp_path, monkeypatch):
    """The lines of the ImageNet guide, on three files, started twice."""
    monkeypatch.chdir(tmp_path)
    val = tmp_path / "data" / "imagenet" / "val"
    val.mkdir(parents=True)
    wnids = [f"n{number:08d}" for number in range(1, 1_001)]
    lines = "".join(f"{wnids[i % 1_000]}\n" for i in range(50_000))
    (val.parent / "imagenet_2012_validation_synset_labels.txt").write_text(lines)
    for number in (1, 1_000, 1_001):
        (val / f"ILSVRC2012_val_{number:08d}.JPEG").write_text(str(number))
    code = next(body for _, kind, body in FENCE.findall(PAGES["docs/guides/imagenet.md"]) if "labels(place" in body)
    for _ in range(2):
        exec(compile(code, "<the guide>", "exec"), {})
        found = {file.relative_to(val).as_posix(): file.read_text() for file in val.rglob("*.JPEG")}
        assert found == {
            f"{wnids[0]}/ILSVRC2012_val_00000001.JPEG": "1",
            f"{wnids[999]}/ILSVRC2012_val_00001000.JPEG": "1000",
            f"{wnids[0]}/ILSVRC2012_val_00001001.JPEG": "1001",
        }


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Every ``-m spikformer_edu...`` in a page: module and arguments."""
    text = text.replace("\\\n", " ")
    text = re.sub(r"(?<!`)`[^`\n]+\n[^`\n]+`(?!`)", lambda span: " ".join(span[0].split()), text)  # wrapped in a line
    found = []
    for module, rest in re.findall(r"-m (spikformer_edu[\w.]*)([^\n`|;#,]*)", text):
        words = [{"$RESUME": "--resume"}.get(word, word) for word in shlex.split(rest.replace("\\", ""))]
        found.append((module.rstrip("."), [word for word in words if word not in ("...", ")")]))
    return found


@of_pages("-m spikformer_edu")
def test_commands_and_options_exist(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, arguments in commands(PAGES[page]):
        parse(name, arguments)


def parse(name: str, arguments: list[str]) -> None:
    """Read a command line as the command itself does, and check the names in it."""
    where = {
        "spikformer_edu": "spikformer_edu.__main__",
        "spikformer_edu.check": "spikformer_edu.check.__main__",
        "spikformer_edu.data": "spikformer_edu.data_command",
        "spikformer_edu.export": "spikformer_edu.export.__main__",
    }
    module = importlib.import_module(where.get(name, name))
    main = module.run if name == "spikformer_edu" else module.main
    options = next(iter(typing.get_type_hints(main).values()))
    default = None
    if module is train:
        default = train.defaults([word for word in arguments if word != "--resume"])  # no such run is here
    with patch("sys.argv", [name, *arguments]):
        try:
            said = cli.parse(options, f"python -m {name}", default)
        except SystemExit as stop:  # --help
            assert not stop.code
            return
    if module is train:
        assert said.network
        check_recipe(said)
    if module is benchmark:
        benchmark.check(said)
    if getattr(said, "dataset", None):
        recipe_for(said.dataset)


def test_a_command_with_an_invented_option_would_be_noticed():
    for arguments in ("--picture-size 64", "--dataset cifar", "--model digits-2-46"):
        with pytest.raises(se.SpikformerError):
            parse(*commands(f"`python -m spikformer_edu.train {arguments}`")[0])
    page = "`python -m\nspikformer_edu.data info cifar10`\n\n    torchrun -m spikformer_edu.train \\\n  --lr 1  # x"
    assert commands(page) == [("spikformer_edu.data", ["info", "cifar10"]), ("spikformer_edu.train", ["--lr", "1"])]


@of_pages("make ")
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z][\w-]*)", PAGES[page], flags=re.MULTILINE)) <= targets


def test_job_scripts_are_bash():
    scripts = [body for text in PAGES.values() for _, _, body in FENCE.findall(text) if body.startswith("#!/bin/bash")]
    assert scripts
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


# Numbers -----------------------------------------------------------------------------------------------------------


@of_pages("<!-- table ")
def test_tables_are_made_from_the_package(page):
    assert figures.filled(PAGES[page]) == PAGES[page], f"{page} is out of date: python docs/figures.py"


def test_every_table_is_shown():
    shown = {name for text in PAGES.values() for name in re.findall(r"<!-- table ([\w-]+) -->", text)}
    assert shown == set(figures.TABLES)


def test_results_say_where_they_were_measured_and_what_was_not():
    page = PAGES["docs/results.md"]
    for file in (figures.ON_CPU, figures.ON_GPU):
        about = figures.benchmark(file)["provenance"]
        for fact in (about["device"], about["torch"], figures.today(about["command"]), about["commit"]):
            assert fact in page
    (comparison,) = figures.measured(figures.ON_GPU)
    (peer,) = (r for r in comparison.results if (r.peer, r.mode) == ("spikingjelly-triton+graph", "train"))
    ours = json.loads(figures.FAST.read_text())["steps"][0]["fused_graph"]
    times = f"{1000 * peer.median:.1f} ms where ours takes {1000 * ours:.2f}: {peer.median / ours:.1f} times as long"
    assert times in " ".join(page.split())
    for folder in (figures.FAST_FIRST, figures.FAST_LAST):
        rows = figures.read_log(folder)[0]
        speed = 50_000 // 256 * 256 * len(rows) / sum(float(row["seconds"]) for row in rows)
        assert f"{speed:,.0f}" in page, folder
    assert f"with {speed:,.0f} images a second" in " ".join(PAGES["README.md"].split())
    for run in sorted(PRETRAINED.iterdir()):
        r = json.loads((run / "results.json").read_text())
        score = f"{100 * r['accuracy']:.2f} % ({r['correct']:,} of {r['total']:,})"
        assert score in page and run.name in page
        assert score in " ".join(PAGES["README.md"].split()), f"README.md: {run.name} has {score}"
    assert len(page.split("### Not measured yet")[1].split("##")[0].splitlines()) > 3
    measured, published = page.split("\n## Published\n")
    assert "95.19" in published
    for line in (line for line in measured.splitlines() if "95.19" in line):  # in the paper's column, or said to be its
        assert line.startswith("| cifar10 | `cifar10-4-384`") or "paper reports 95.19" in line
    beside = re.findall(r"^\| cifar10 \| `cifar10-4-384` \| \d \| ([\d.]+) \| ([\d.]+) \|", page, re.M)
    assert len(beside) == 4 and all(float(ours) < float(paper) for ours, paper in beside)
    assert "**No accuracy of the paper has been reached here yet.**" in page and f"with {max(beside)[0]} %" in page


def test_the_imagenet_guide_estimates_eight_gpus_from_the_measured_step():
    page = " ".join(PAGES["docs/guides/imagenet.md"].split())
    (step,) = (s for s in json.loads(figures.FAST.read_text())["steps"] if s["model"] == "imagenet-8-512")
    images, seconds, rate = 1_281_167, step["fused"], 8 * step["batch"] / step["fused"]
    assert f"{step['batch']} images: {1000 * seconds:.2f} ms" in page and f"took {step['fused_bytes']:.1f} GiB" in page
    assert f"- {310 * images / rate / 3600:.0f} hours, if the time" in page
    assert f"read {rate:,.0f} images a second" in page
    steps = 310 * (images // 192)
    assert f"- {steps * seconds / 3600:.0f} hours, if a step" in page and f"{steps:,} steps of" in page


def test_what_the_pages_say_of_the_paper_s_network_was_measured():
    found = json.loads(figures.CIFAR10_PAPER.read_text())
    page = " ".join(PAGES["docs/results.md"].split("### Inside the paper's network")[1].split())
    assert found["split"] == "test" and [row["T"] for row in found["accuracy"]] == list(range(1, 9))
    total, few = found["accuracy"][0]["total"], found["energy"]["images"]
    assert f"The numbers below are of {total:,} of them" in page and f"of the first {few} of these" in page
    share = found["accuracy"][3]["correct"] / total
    assert f"standard error of {100 * (share * (1 - share) / total) ** 0.5:.1f} points" in page
    once, *more = (row["correct"] / total for row in found["accuracy"])
    assert once < min(more) and max(more) - min(more) < 0.01
    steps, membranes, scores = found["rates_by_step"], found["membranes"], found["scores"]
    drawn = [layer for layers in figures.PARTS.values() for layer in layers]
    assert list(steps) == list(found["rates"]) and sorted(steps) == sorted(drawn)
    for layer, rates in steps.items():
        assert found["rates"][layer] == pytest.approx(sum(rates[:4]) / 4, abs=2e-6)
    assert all(rate > steps["sps.0"][0] for rate in steps["sps.0"][1::2])  # docs/concepts/neuron.md
    for name, row in membranes.items():  # docs/concepts/surrogate.md
        assert (row["on the threshold"] > 1e-3) == name.endswith(".attn.attn"), name
        assert not name.endswith(".attn.attn") or row["no gradient"] < 0.1
        assert not name.endswith(".mlp.hidden") or row["no gradient"] == pytest.approx(0.5, abs=0.05)
    assert all(row["zero"] > 0.5 for row in scores.values())  # docs/concepts/ssa.md


def test_the_script_that_looks_at_a_network_counts_right():
    """One pass at T = 8 against passes at T = 1 and 4; shares against a recording."""
    look = script(DOCS / "results" / "cifar10.py")
    model = se.load_pretrained("digits-2-64")
    images, targets = load("digits").val.fetch(torch.arange(30), None)  # two batches, of 20 and of 10
    correct, rates = look.over_time(model, images, targets)
    for steps in (1, 4):
        with torch.no_grad(), se.record(model, membranes=True) as rec:
            logits = model(images.expand(steps, *images.shape))
        assert correct[steps - 1] == int((logits.argmax(1) == targets).sum())
    membranes, scores = look.membranes_and_scores(model, images)
    for layer in rec.layers("spikes"):
        assert sum(rates[layer.name][:4]) / 4 == pytest.approx(float(layer.spikes.mean()), abs=1e-5)
        row, distance = membranes[layer.name], (layer.membrane - layer.v_threshold).abs()
        assert row["on the threshold"] == pytest.approx(float((distance == 0).double().mean()), abs=1e-5)
        assert row["no gradient"] == pytest.approx(float((distance > 1.08913).double().mean()), abs=1e-3)
    for layer in rec.layers("scores"):
        assert scores[layer.name]["zero"] == pytest.approx(float((layer.values == 0).double().mean()), abs=1e-5)
        assert scores[layer.name]["largest"] == float(layer.values.max())


def test_what_the_speedrun_says_of_its_settings():
    """The sentences below the table of short runs, and the differences from the paper's recipe above it."""
    page, found = PAGES["docs/speedrun.md"], json.loads(figures.SHORT_RECIPE.read_text())
    rows, recipe = found["rows"], found["provenance"]["recipe"]
    accuracy = {(row["change"], row["seed"]): 100 * row["val_accuracy"] for row in rows}
    changes, seeds = {change for change, _ in accuracy}, {seed for _, seed in accuracy}
    assert len(accuracy) == len(changes) * len(seeds) == 8 * 2 and "of three seeds that were planned, two" in page
    against = {c: [accuracy[c, seed] - accuracy["the recipe", seed] for seed in sorted(seeds)] for c in changes}
    assert max(against["half the rate"]) < 0 < min(against["twice the rate"])
    assert min(against["half the batch, with its rate"]) > 0 and min(against["no shifted crops"]) > 5
    for change in ("mixup 0.5 in the first half", "no RandAugment", "a third of the weight decay"):
        assert abs(sum(against[change]) / len(seeds)) < 1
    spread = max(abs(accuracy[change, 0] - accuracy[change, 1]) for change in changes)
    assert f"differ by up to {spread:.1f}" in page
    assert all(row["val_accuracy"] > row["accuracy"] for row in rows)
    steps = recipe["epochs"] * (rows[0]["training images"] // recipe["batch_size"])
    fast, paper = SHORT["fast-t1"], RECIPES["cifar10"]
    whole = fast.epochs * (50_000 // fast.batch_size)
    assert f"A run has {steps} steps, the recipe {whole:,}." in page
    assert (fast.lr, fast.batch_size, fast.augment.mixup) == (1.5e-3, 256, 0) and fast.augment.crop_padding == 4
    assert (paper.lr, paper.batch_size, paper.augment.crop_padding) == (5e-4, 128, 0)
    assert f"after {paper.augment.mix_epochs} of {paper.epochs + paper.cooldown_epochs} epochs" in page
    assert {name for name in vars(fast) if getattr(fast, name) != getattr(paper, name)} == {
        "time_steps", "epochs", "cooldown_epochs", "warmup_epochs", "batch_size", "lr_batch_size", "lr", "augment"
    }  # fmt: skip


def test_the_speedrun_s_seconds_are_those_of_its_runs():
    """Stated by an entry or by its runs: a little more than the steps alone, for the test set and for files."""
    page, entries = PAGES["docs/speedrun.md"], json.loads(figures.SPEEDRUN.read_text())["entries"]
    for entry in entries:
        for place, run in enumerate(entry["runs"]):
            result = json.loads((ROOT / run / "results.json").read_text())
            steps = sum(float(row["seconds"]) for row in figures.read_log(ROOT / run)[0])
            seconds = entry["seconds"][place] if "seconds" in entry else result["seconds"]
            assert steps < seconds < 1.1 * steps + 5, run
            splits = json.loads((ROOT / run / "config.json").read_text())["data"]["splits"]
            assert splits["train"]["samples"] == 50_000 and splits["val"] is None  # the rules
    packaged = f"{100 * se.load_run('cifar10-4-384').results['accuracy']:.2f} | 310 |"
    assert packaged in page.split("<!-- end -->")[0] and entries[0]["runs"][-1].endswith("pretrained/cifar10-4-384")
    for name in ("fast-t1", "fast-t4"):
        assert f"--recipe {name} --minutes" in page and name in SHORT


def test_the_test_set_is_measured_once(tmp_path):
    """Whatever the number of epochs: validation every epoch, the test set at the end."""
    recipe = Recipe(samples_per_class=2, epochs=3, batch_size=10, time_steps=1)
    splits = load("digits", samples_per_class=2)
    seen = []

    def counted(model, split, *rest, **options):
        seen.append(split)
        return evaluate(model, split, *rest, **options)

    evaluate = loop.evaluate
    with patch.object(loop, "evaluate", counted), patch.object(evaluation, "load", lambda *_, **__: splits):
        loop.train(recipe, tmp_path, DistributedContext(torch.device("cpu")))
    is_test = [torch.equal(split.images, splits.test.images) for split in seen]
    assert is_test == [False, False, False, True]


def test_recipes_are_as_the_paper_page_says():
    cifar, dvs, gesture = (RECIPES[name] for name in ("cifar10", "cifar10dvs", "dvsgesture"))
    assert (cifar.lr, cifar.batch_size, cifar.epochs, cifar.cooldown_epochs) == (5e-4, 128, 300, 10)
    a = PAPER["cifar10"]
    assert (a.randaugment, a.operations, a.crop_padding, a.crop_area, a.mix_epochs) == (1, "few", 0, (1, 1), 200)
    assert dvs.lr == gesture.lr == 1e-3 and (dvs.batch_size, dvs.epochs) == (16, 96)
    assert replace(dvs.augment, flip=0.0) == gesture.augment and dvs.augment.flip == 0.5
    assert replace(cifar, batch_size=512).scaled_lr == pytest.approx(2 * cifar.lr)
    assert all(recipe.precision == "auto" for recipe in RECIPES.values())


def test_every_dry_run_says_how_often_the_test_set_is_measured():
    for name in ("cifar10", "cifar100", "cifar10dvs", "imagenet"):
        said = " ".join(DEVIATIONS["all"] + DEVIATIONS.get(name, ()))
        assert "measured once" in said and "best epoch" in said
    assert all("augmentation are our own" in " ".join(DEVIATIONS[name]) for name in ("cifar10", "cifar100", "imagenet"))


# Pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_are_those_that_the_script_makes():
    made_elsewhere = {"atlas.png", "attention_over_time.png", "network_map"}
    assert {path.name for path in figures.IMAGES.iterdir()} == set(figures.PICTURES) | made_elsewhere


@pytest.mark.parametrize("name", figures.PICTURES)
def test_pictures_are_up_to_date(name):
    """The picture shows what the package draws now. Pixels are not compared: Matplotlib versions differ."""
    fig = figures.PICTURES[name]()
    now = figures.contents(fig)
    plt.close(fig)
    picture = Image.open(figures.IMAGES / name)
    then = json.loads(picture.text["Description"])
    assert len(now) == len(then) > 2, f"{name} is out of date: python docs/figures.py"
    for shown, drawn in zip(now, then, strict=True):
        same = shown == drawn if isinstance(shown[0], str) else shown == pytest.approx(drawn, rel=1e-3, abs=1e-4)
        assert same, f"{name} is out of date: python docs/figures.py"
    assert np.array(picture.convert("L")).std() > 10, f"{name} is blank"


def test_maps_of_the_network_are_up_to_date():
    """One a chapter, and every part that a chapter is about is drawn."""
    folder = figures.IMAGES / "network_map"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        f"{chapter}.svg": figures.network_map(chapter) for chapter in figures.MAPS
    }
    parts = {*figures.BOXES, "image", "residual", "neuron", "gradient"}
    assert {part for _, here in figures.MAPS.values() for part in here} == parts
    assert len(figures.MAPS) == 14 and len({figures.network_map(chapter) for chapter in figures.MAPS}) == 14


def test_pictures_are_described_and_used():
    used = set()
    for page, text in PAGES.items():
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+\.png)\)", text):
            path = (ROOT / page).parent / target
            assert path.exists(), f"{page}: no {target}"
            assert len(alt.split()) >= 8, f"{page}: say in words what {target} shows"
            used.add(path.name)
    assert set(figures.PICTURES) <= used


# Words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_concept_has_its_formula_picture_table_code_and_links(concept):
    text = PAGES[f"docs/concepts/{concept}.md"]
    assert "$$" in text and f"../images/concept_{concept}.png" in text and "| name | shape" in text
    assert blocks(text), "no code"
    assert re.search(r"\]\(\.\./learn/\d\d_\w+\.md\)", text) and re.search(
        r"\]\(\.\./play/(neuron|ssa|digit)\.md\)", text
    )
    prose = re.sub(r"\$\$.*?\$\$|^\|.*?$|^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    assert 200 < len(prose.split()) < 520


def test_chapters_that_are_linked_are_in_the_plan():
    chapters = """00_tour 01_leaky_neuron 02_surrogate_gradient 03_images_to_spikes 04_softmax_attention
        05_spiking_self_attention 06_encoder_block 07_assemble_and_verify 08_train 09_ablations 10_energy 11_events
        12_imagenet 13_beyond""".split()
    for page, text in PAGES.items():
        for name in re.findall(r"learn/(\d\d_\w+)\.md", text):
            assert name in chapters, f"{page}: no chapter {name}"


def test_tests_that_are_named_exist():
    named = set(re.findall(r"`(tests/[\w/]+\.py)((?:::\w+)+)`", "\n".join(PAGES.values())))
    assert len(named) > 30
    for file, path in sorted(named):
        body = ast.parse((ROOT / file).read_text()).body
        for part in path.strip(":").split("::"):
            found = [node for node in body if getattr(node, "name", None) == part]
            assert found, f"{file} has no {part}"
            body = found[0].body


@of_pages("### ")
def test_every_entry_of_the_paper_page_names_its_test(page):
    if page == "docs/paper.md":
        for entry in re.split(r"^### ", PAGES[page], flags=re.MULTILINE)[1:]:
            assert re.search(r"^Tests?:\s+`tests/", entry, flags=re.MULTILINE), entry.splitlines()[0]


def test_no_page_speaks_of_a_machines_folders():
    results = {str(path): json.dumps(json.loads(path.read_text())) for path in DOCS.glob("results/*.json")}
    for page, text in (PAGES | results).items():
        assert not re.search(r"(?<![\w.])/(tmp|work|root|home/)", text), page
    assert os.path.isdir(DOCS / "results")


@pytest.mark.parametrize("command", ["train", "evaluate", "visualize", "benchmark", "data prepare", "check", "export"])
def test_help_has_no_stray_lines(command):
    """A line of an option's help ends where the next word would not fit: no leftover of a docstring's line breaks."""
    module, *rest = f"spikformer_edu.{command}".split()
    printed = subprocess.run(
        [sys.executable, "-m", module, *rest, "--help"],
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    column = next(line.index("show this help") for line in printed.splitlines() if "show this help" in line)
    lines = [line.rstrip("│ ") for line in printed.splitlines() if line.startswith("│")]
    for line, after in zip(lines, lines[1:], strict=False):
        goes_on = not after[1:column].strip() and after[column:].strip()
        if goes_on and line[column - 2 : column] == "  " and re.search(r"[^.;─]$", line[column:]):
            word = after[column:].split()[0]
            assert len(line) + 1 + len(word) > 78, f"{line} / {after}"
    assert not re.search(r"^ +\S", printed, flags=re.MULTILINE)
