"""What nbval cannot see: that notebooks and scripts are in step, that every chapter keeps to the template, that figures
have words, that links lead somewhere, and that exercises fail before and pass after their solution is pasted in.

The outputs themselves are compared by nbval (``make notebooks-test``).
"""

import base64
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

import spikformer_edu as se

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "tutorials"
sys.path.insert(0, str(TUTORIALS))
import build  # noqa: E402

CHAPTERS = sorted(TUTORIALS.glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((TUTORIALS / "solutions").glob("[0-9]*.ipynb"))
SECTIONS = ["What you will learn", "The key figure", "Shapes and values", "Pitfalls", "Exercises", "Recap"]


def by_name(notebooks):
    return pytest.mark.parametrize("path", notebooks, ids=[str(n.relative_to(TUTORIALS)) for n in notebooks])


def load(path: Path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def tagged(notebook, kind: str) -> dict[str, str]:
    """Sources of the cells that are tagged ``exercise-1``, ``exercise-2`` ... or ``check-1`` ..."""
    found = {}
    for cell in notebook.cells:
        for tag in tags(cell):
            if re.fullmatch(kind + r"-\d", tag):
                assert tag not in found, f"two cells are tagged {tag}"
                found[tag] = cell.source
    return found


def text_of(outputs) -> str:
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in outputs)


def test_fourteen_chapters_each_with_solutions():
    assert [c.name[:2] for c in CHAPTERS] == [f"{n:02d}" for n in range(14)]
    assert [c.name for c in CHAPTERS] == [s.name for s in SOLUTIONS]


def test_chapter_07_counts_every_network_there_is():
    """A new preset changes what its table prints; this says so in seconds, before the notebooks run."""
    printed = "".join(text_of(c.outputs) for c in code(load(TUTORIALS / "07_assemble_and_verify.ipynb")))
    assert [p.name for p in se.list_models() if p.name not in printed] == []


def test_every_script_has_its_notebook_and_no_notebook_is_without():
    assert sorted(build.target(script) for script in build.scripts()) == sorted(CHAPTERS + SOLUTIONS)


@by_name(CHAPTERS + SOLUTIONS)
def test_notebook_and_script_are_in_step(path):
    script = build.SOURCES / path.relative_to(TUTORIALS).with_suffix(".py")
    of = [(c.cell_type, c.source, tags(c), c.id) for c in load(path).cells]
    assert of == [(c.cell_type, c.source, tags(c), c.id) for c in build.read(script).cells]


@by_name(CHAPTERS + SOLUTIONS)
def test_notebook_was_run_whole_and_cleanly(path):
    notebook = load(path)
    cells = code(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", text_of([output])
        assert not re.search("NBVAL|nbval-(skip|raises)", cell.source + " ".join(tags(cell))), cell.source
        assert "Traceback" not in text_of(cell.outputs)
        if "nbval-ignore-output" in tags(cell):
            assert "assert" in cell.source, "outputs that are not compared need an assertion:\n" + cell.source
    assert any(re.search(r"^\s*(assert |torch\.testing\.assert)", c.source, re.M) for c in cells)
    assert path.stat().st_size < 1_000_000


@by_name(CHAPTERS + SOLUTIONS)
def test_first_code_cell_works_anywhere(path):
    first = code(load(path))[0]
    assert tags(first) == ["setup"]
    assert "import spikformer_edu as se" in first.source and "%pip install" in first.source
    assert "torch.set_num_threads(1)" in first.source and "manual_seed" in first.source


@by_name(CHAPTERS)
def test_chapter_keeps_to_the_template(path):
    notebook = load(path)
    text = prose(notebook)
    assert re.match(rf"# {path.name[:2]} · .+\n\n\*Run time \d+ s", notebook.cells[0].source)
    sections = [s for s in re.findall(r"^## (.+)$", text, re.M) if s in SECTIONS]
    assert sections == SECTIONS
    assert "**Predict before you run.**" in text and "<details><summary>Answer</summary>" in text
    assert text.count("<details>") == text.count("</details>")
    figures = [o for c in code(notebook) for o in c.outputs if "image/png" in o.get("data", {})]
    assert figures, "a chapter without a figure"
    assert f"solutions/{path.name}" in text


@by_name(CHAPTERS + SOLUTIONS)
def test_every_figure_has_alt_text(path):
    for cell in code(load(path)):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                alt = output.metadata.get("image/png", {}).get("alt", "")
                assert len(alt.split()) >= 6, cell.source
                assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG")
    assert not re.search(r"!\[\]\(", prose(load(path)))


def anchors(path: Path) -> set[str]:
    text = prose(load(path)) if path.suffix == ".ipynb" else path.read_text()
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@by_name(CHAPTERS + SOLUTIONS)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(load(path)))
    assert links
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        goal = (path.parent / file).resolve() if file else path
        assert goal.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(goal), f"{link}: no such heading"


@by_name(CHAPTERS + SOLUTIONS)
def test_no_path_of_a_machine_and_no_network(path):
    text = path.read_text()
    assert not re.search(r'["\s(](/home|/tmp|/work|/root|/Users)/', text)
    assert not re.search(r"urllib|requests\.|wget|curl |download=True", "".join(c.source for c in code(load(path))))


@by_name(CHAPTERS)
def test_exercises_are_open_in_the_chapter_and_right_in_the_solutions(path):
    chapter, solution = load(path), load(TUTORIALS / "solutions" / path.name)
    exercises, checks = tagged(chapter, "exercise"), tagged(chapter, "check")
    assert 2 <= len(exercises) <= 3
    assert [e[-1] for e in exercises] == [c[-1] for c in checks]
    assert tagged(solution, "check") == checks, "the solutions are checked otherwise than the exercises"
    answers = tagged(solution, "exercise")
    assert set(answers) == set(exercises) and all(answers[e] != exercises[e] for e in exercises)
    for notebook, verdict in ((chapter, "not yet - "), (solution, "right")):
        for cell in code(notebook):
            if any(tag.startswith("check-") for tag in tags(cell)):
                number = f"{int(path.name[:2])}.{tags(cell)[0][-1]}"
                assert text_of(cell.outputs).strip().startswith(f"Exercise {number}: {verdict}"), text_of(cell.outputs)


@pytest.mark.slow
@by_name(CHAPTERS)
def test_solutions_pasted_into_the_chapter_pass(path):
    notebook = build.read(build.SOURCES / path.with_suffix(".py").name)
    answers = tagged(load(TUTORIALS / "solutions" / path.name), "exercise")
    for cell in notebook.cells:
        for tag in tags(cell):
            cell.source = answers.get(tag, cell.source)
    build.run(notebook, TUTORIALS)
    verdicts = [text_of(c.outputs) for c in code(notebook) if any(t.startswith("check-") for t in tags(c))]
    assert len(verdicts) == len(answers) and all(v.strip().endswith(": right") for v in verdicts), verdicts


@pytest.mark.slow
def test_building_again_gives_the_same_bytes():
    """What is committed was made with one version of Matplotlib, whose pictures differ by some bytes from another's."""
    once, twice = (nbformat.writes(build.run(build.read(build.scripts()[5]), TUTORIALS)) for _ in range(2))
    assert once == twice


def test_run_times_are_the_measured_ones():
    measured = json.loads((TUTORIALS / "results" / "run_times.json").read_text())
    assert {"command", "commit", "device"} <= set(measured["provenance"])
    seconds = measured["seconds"]
    assert set(seconds) == {str(s.relative_to(build.SOURCES).with_suffix("")) for s in build.scripts()}
    assert max(seconds.values()) <= 180 and sum(seconds.values()) <= 25 * 60
    for path in CHAPTERS:
        said = int(re.search(r"\*Run time (\d+) s", load(path).cells[0].source)[1])
        assert abs(said - seconds[path.stem]) <= max(5, 0.3 * said), f"{path.name}: {said} s said"


def test_results_files_name_their_origin():
    for path in sorted((TUTORIALS / "results").glob("*.json")):
        facts = json.loads(path.read_text())["provenance"]
        assert {"command", "commit", "device", "torch"} <= set(facts), path.name


# What is broken on purpose in a copy of the package, and a chapter whose assertions must notice it.
FAULTS = {
    "fires above the threshold only": (
        [("neurons.py", "(x >= 0)", "(x > 0)"), ("kernels/lif.py", "torch.ge(", "torch.gt(")],
        "01_leaky_neuron",
    ),
    "time and batch swapped in a reshape": (
        [("attention.py", ".view_as(x)", ".view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)")],
        "07_assemble_and_verify",
    ),
    "state not reset": (
        [
            ("neurons.py", "elif self.fusible:", "elif False:"),
            (
                "neurons.py",
                "u = torch.zeros_like(current[0])",
                "u = getattr(self, 'kept', torch.zeros_like(current[0]))",
            ),
            (
                "neurons.py",
                "return torch.stack(spikes), membranes",
                "self.kept = u.detach(); return torch.stack(spikes), membranes",
            ),
        ],
        "01_leaky_neuron",
    ),
}


def broken_package(fault: str, folder: Path) -> None:
    shutil.copytree(ROOT / "spikformer_edu", folder / "spikformer_edu")
    for file, right, wrong in FAULTS[fault][0]:
        path = folder / "spikformer_edu" / file
        source = path.read_text()
        assert right in source, f"{right} is no longer in {file}"
        path.write_text(source.replace(right, wrong))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_package_fails_a_chapter(fault, tmp_path, monkeypatch):
    broken_package(fault, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CellExecutionError, match="AssertionError|not equal|not close"):
        build.run(build.read(build.SOURCES / f"{FAULTS[fault][1]}.py"), TUTORIALS)


@pytest.mark.parametrize("arguments", [["99"], ["--tmie"], ["--time", "09"]])
def test_build_refuses_what_it_does_not_know(arguments, monkeypatch, capsys):
    monkeypatch.setattr(build, "run", lambda *_: pytest.fail("a notebook was run"))
    with pytest.raises(SystemExit) as stopped:
        build.main(arguments)
    assert stopped.value.code == 2 and "error: " in capsys.readouterr().err
