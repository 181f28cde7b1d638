"""The command that draws everything: files, a page that needs nothing else, and one-line errors."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import islice

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import spikformer_edu as se
from spikformer_edu import report, visualize
from spikformer_edu.data import info
from spikformer_edu.report import write_report
from spikformer_edu.report_page import Subject
from spikformer_edu.training import load_splits
from spikformer_edu.visualize import Options, main

FIGURES = [
    "logits", "atlas", "firing_rates", "value_sets", "raster", "membrane", "neuron", "ssa", "attention",
    "attention_query", "attention_over_time", "landscape", "multiplication_order", "energy", "training",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command writes for the packaged model."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("figures")
    plt.close("all")  # whatever other tests left open
    main(Options(checkpoint="digits-2-64", index=7, samples=8, out=out))
    assert not plt.get_fignums(), "figures were left open"
    return out


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every tag with its attributes, and whether all are closed in order."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.slow
def test_every_figure_is_a_png_with_something_on_it(folder):
    assert sorted(path.stem for path in folder.glob("*.png")) == sorted(FIGURES)
    for name in FIGURES:
        picture = plt.imread(folder / f"{name}.png")
        assert min(picture.shape[:2]) > 300 and np.unique(picture[..., :3].round(2)).size > 3, name


@pytest.mark.slow
def test_the_page_asks_for_nothing_outside(page):
    for tag, attributes in Tags(page).found:
        assert tag not in ("script", "iframe", "object")
        for key in ("src", "href"):
            if key in attributes:
                assert attributes[key].startswith(("data:", "#")), attributes[key]
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_figures_have_alternative_texts_and_links_lead_somewhere(page):
    tags = Tags(page).found
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == len(FIGURES) and all(len(image["alt"]) > 30 for image in images)
    ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert len(links) == len(FIGURES) + 2 and {link[1:] for link in links} == ids


def test_the_tables_hold_what_was_measured(page):
    model = se.load_pretrained("digits-2-64")
    images, labels = se.data.load("digits").test.fetch(7 + torch.arange(8), None)
    with torch.no_grad(), se.record(model) as rec:
        output = model(images)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    for line in rec.summary():
        assert line["layer"] in cells
        if line["rate"] is not None:
            assert f"{100 * line['rate']:.1f} %" in cells
    report = se.energy(model, images)
    for cost in report.layers:
        assert cost.layer in cells
    assert f"{report.sops / 1e6:.3f}" in cells and f"{report.flops / 1e6:.3f}" in cells
    right = int((output.argmax(1) == labels).sum())
    assert f"{right} of them classified correctly" in page
    assert "not the energy of a GPU" in page


def test_in_a_browser(folder, browser):
    """No outside request, no console message, no sideways scroll, light and dark, wide and on a phone."""
    backgrounds = set()
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            requests, messages = [], []
            view.on("request", lambda request, seen=requests: seen.append(request.url))
            view.on("console", lambda message, seen=messages: seen.append(message.text))
            view.on("pageerror", lambda error, seen=messages: seen.append(str(error)))
            view.goto((folder / "report.html").as_uri())
            view.wait_for_load_state("load")
            assert [url for url in requests if not url.startswith("data:")] == [(folder / "report.html").as_uri()]
            assert messages == []
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            broken = "[...document.images].filter(image => !image.naturalWidth).length"
            assert view.evaluate(broken) == 0
            smallest = "Math.min(...[...document.querySelectorAll('p, dd, td, a')]"
            smallest += ".map(node => parseFloat(getComputedStyle(node).fontSize)))"
            assert view.evaluate(smallest) >= 13
            backgrounds.add((scheme, view.evaluate("getComputedStyle(document.body).backgroundColor")))
            view.close()
    assert len(backgrounds) == 2 and len({color for _, color in backgrounds}) == 2


def test_the_samples_are_those_of_the_run(tmp_path, monkeypatch, capsys):
    """Of a run on another split, and on a few samples of each class, the test set is its own."""
    run = se.load_run("digits-2-64")
    recipe = replace(run.recipe, split_seed=5, samples_per_class=20)
    monkeypatch.setattr(visualize, "load_run", lambda *_: replace(run, recipe=recipe))
    subjects = []

    def write(subject, out, animate):
        subjects.append(subject)
        (out / "report.html").write_text("<figure></figure>")
        return out / "report.html"

    monkeypatch.setattr("spikformer_edu.report.write_report", write)
    (tmp_path / "before.png").write_bytes(b"")
    main(Options(out=tmp_path, samples=4))
    inputs, labels = load_splits(recipe).test.fetch(torch.arange(4), None)
    others = se.data.load("digits").test.fetch(torch.arange(4), None)[0]
    assert torch.equal(subjects[0].inputs, inputs) and torch.equal(subjects[0].labels, labels)
    assert not torch.equal(inputs, others)
    note = "trained on digits, measured on digits, not the data of this run"  # whose config tells of all digits
    assert subjects[0].note == note
    assert capsys.readouterr().out == f"1 figures and {tmp_path / 'report.html'}\n{note}\n"  # not what lay there before
    main(Options(out=tmp_path, samples=4, dataset="digits"))  # named: the data set as it is
    assert torch.equal(subjects[1].inputs, others) and subjects[1].note == ""


class TestOtherModels:
    def subject(self, **options):
        shape = options.pop("shape", (2, 1, 32, 32))
        model = se.spikformer("digits-2-64", **({"dim": 16, "heads": 2, "depth": 1} | options)).eval()
        labels = torch.zeros(shape[-4], dtype=torch.long)
        return Subject(model, "a <toy> & more", info("digits"), torch.randn(shape), labels, 0, "test")

    def names(self, out):
        return {path.stem for path in out.glob("*.png")}

    def test_event_frames_and_a_variant_without_binary_q_and_k(self, tmp_path):
        subject = self.subject(attention="softmax", in_channels=2, shape=(3, 2, 2, 32, 32))
        subject = replace(subject, info=info("digits-dvs"))
        page = write_report(subject, tmp_path).read_text(encoding="utf-8")
        assert "T = 3" in page and "simulated" in page
        assert self.names(tmp_path) == set(FIGURES) - {"ssa", "training"}

    def test_what_is_to_be_said_of_the_data_stands_on_the_page_and_below_the_figures(self, tmp_path, monkeypatch):
        from PIL import Image

        figures = report._figures
        monkeypatch.setattr(report, "_figures", lambda *subject: islice(figures(*subject), 3))  # enough
        subject = self.subject(time_steps=1, shape=(1, 1, 8, 8))
        note = "trained on digits-dvs (simulated), measured on cifar10dvs in $HOME/a_b, not the data of this run"
        page = write_report(replace(subject, note=note), tmp_path / "noted").read_text(encoding="utf-8")
        assert f"<dt>note</dt><dd>{note}</dd>" in page
        assert "<dt>note</dt>" not in write_report(subject, tmp_path / "plain").read_text(encoding="utf-8")
        for path in (tmp_path / "plain").glob("*.png"):
            plain, noted = (np.asarray(Image.open(tmp_path / f / path.name).convert("L")) for f in ("plain", "noted"))
            assert noted.shape[1] == plain.shape[1] and (noted[: len(plain)] == plain).all()
            assert (noted[len(plain) :] < 100).sum() > 500, path.name

    @pytest.mark.slow
    def test_one_step_one_token_one_sample_silent(self, tmp_path):
        subject = self.subject(time_steps=1, shape=(1, 1, 4, 4))
        odd = replace(info("digits"), classes=("<b>", r"$\frac{1$", "caf\udce9", "two\nlines", *"456789"))
        subject = replace(subject, inputs=torch.zeros(1, 1, 4, 4), info=odd, name="a <toy> & $x_{ \udce9")
        page = write_report(subject, tmp_path / "new" / "folder").read_text(encoding="utf-8")
        assert r"a &lt;toy&gt; &amp; $x_{ \udce9" in page and "true: &lt;b&gt;)" in page
        assert self.names(tmp_path / "new" / "folder") == set(FIGURES) - {"training"}

    @pytest.mark.slow
    def test_animations(self, tmp_path):
        from PIL import Image

        subject = self.subject(time_steps=2)
        write_report(subject, tmp_path / "plain", animate=True)
        write_report(replace(subject, note="simulated"), tmp_path / "noted", animate=True)
        for name in ("neuron", "ssa"):
            plain, noted = (Image.open(tmp_path / folder / f"{name}.gif") for folder in ("plain", "noted"))
            assert noted.height > plain.height and noted.info["duration"] == plain.info["duration"]
            assert noted.n_frames == plain.n_frames and (plain.n_frames == 2) == (name == "neuron")


class TestErrors:
    def test_are_one_line(self, tmp_path):
        taken = tmp_path / "taken"
        taken.write_text("mine")
        for options, said in [
            (Options(index=10**6), "--index 1000000"),
            (Options(index=-1), "--index -1"),
            (Options(samples=0), "--samples 0"),
            (Options(split="tset"), "tset"),
            (Options(dataset="digit"), "did you mean 'digits'"),
            (Options(checkpoint="digits-2-65"), "digits-2-65"),
            (Options(out=taken), "taken"),
        ]:
            out = options.out if options.out == taken else tmp_path / "none"
            with pytest.raises(se.SpikformerError) as error:
                main(replace(options, out=out))
            assert said in str(error.value) and "\n" not in str(error.value)
        assert taken.read_text() == "mine" and not (tmp_path / "none").exists()

    @pytest.mark.slow
    def test_the_command_exits_with_2_and_one_line(self, tmp_path):
        command = [sys.executable, "-m", "spikformer_edu.visualize"]
        done = subprocess.run([*command, "--index", "-5"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2 and done.stdout == ""
        assert len(done.stderr.strip().splitlines()) == 1 and "--index -5" in done.stderr
        assert not list(tmp_path.iterdir())
        done = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=tmp_path)
        assert (
            done.returncode == 0
            and "python -m spikformer_edu.visualize" in done.stdout
            and "--checkpoint" in done.stdout
        )
