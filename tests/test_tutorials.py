"""What nbval cannot see: that notebooks and scripts are in step, that every chapter keeps to the template, that figures
have words, that links lead somewhere, and that exercises reject wrong answers and accept the solution.

The outputs themselves are compared by nbval (``make notebooks-test``).
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

import spikformer_edu as se

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "tutorials"
WRONG_ANSWERS = ROOT / "tests" / "wrong_answers"
sys.path.insert(0, str(TUTORIALS))
import assignments  # noqa: E402
import build  # noqa: E402

CHAPTERS = sorted(TUTORIALS.glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((TUTORIALS / "solutions").glob("[0-9]*.ipynb"))
COLUMNS = 84  # of a line of code that the site shows whole
QUESTION = "**Predict before you run.**"
CLOCK = r"\d+(\.\d+)? (ms|s)\b"  # as in nbval.cfg
LONG_PLOT = 25  # lines of a cell that draws, from which on its source is folded
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
    of = [(c.cell_type, c.source, c.metadata, c.id) for c in load(path).cells]
    assert of == [(c.cell_type, c.source, c.metadata, c.id) for c in build.read(script).cells]


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
        if "widget" in tags(cell):
            assert "nbval-ignore-output" in tags(cell) and text_of(cell.outputs) in ("", build.WIDGET_TEXT)
        elif "nbval-ignore-output" in tags(cell):
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
    assert 1 <= text.count(QUESTION) <= text.count("<details><summary>Answer</summary>")
    assert text.count("<details>") == text.count("</details>")
    figures = [o for c in code(notebook) for o in c.outputs if "image/png" in o.get("data", {})]
    assert figures, "a chapter without a figure"
    assert f"solutions/{path.name}" in text


@by_name(CHAPTERS)
def test_output_that_answers_a_prediction_is_folded(path):
    """Notebook: by the cell's metadata. Site: by docs/hooks.py."""
    cells = load(path).cells
    for cell, following in zip(cells, cells[1:] + cells[:1], strict=True):
        asks = cell.cell_type == "markdown" and QUESTION in cell.source
        assert asks == ("predict" in tags(following)), f"{cell.source[-80:]!r} before {following.source[:80]!r}"
        if asks:
            assert following.outputs and following.metadata.get("jupyter", {}).get("outputs_hidden"), following.source
            assert text_of(following.outputs).startswith(build.PREDICT_LINE)


@by_name(CHAPTERS)
def test_long_plotting_code_is_folded(path):
    for cell in code(load(path)):
        if re.search(r"subplots|plt\.figure", cell.source) and cell.source.count("\n") >= LONG_PLOT:
            assert "fold" in tags(cell) and cell.metadata.get("jupyter", {}).get("source_hidden"), cell.source[:200]


@by_name(CHAPTERS)
def test_opening_shows_the_map_of_the_network(path):
    shown = re.findall(r"!\[(.+)\]\(\.\./docs/images/network_map/(.+?)\)", load(path).cells[0].source)
    assert [file for _, file in shown] == [f"{path.stem[:2]}.svg"], f"network_map/{path.stem[:2]}.svg is not shown"
    assert len(shown[0][0].split()) >= 8


@by_name(CHAPTERS + SOLUTIONS)
def test_code_fits_the_columns_that_the_site_shows(path):
    long = [line for cell in code(load(path)) for line in cell.source.split("\n") if len(line) > COLUMNS]
    assert not long, f"{len(long)} lines have more than {COLUMNS} columns: {long[0].strip()}"


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


# Names of the notebook as they are before an answer, and the same again after it.
KEEP = """import builtins as _b
_b.kept = {n: v for n, v in globals().items() if not n.startswith("_") and n not in ("In", "Out")}
_b.kept_state = torch.get_rng_state(), dict(se.ATTENTION)"""
RESTORE = """for _n in [n for n in globals() if not n.startswith("_") and n not in ("In", "Out")]:
    if _n not in _b.kept:
        del globals()[_n]
globals().update(_b.kept)
torch.set_rng_state(_b.kept_state[0])
se.ATTENTION.clear()
se.ATTENTION.update(_b.kept_state[1])"""


def wrong_answers(path: Path) -> dict[str, list[str]]:
    """Exercise -> its wrong answers, from ``wrong_answers/<chapter>.py``."""
    found: dict[str, list[str]] = {}
    file = WRONG_ANSWERS / path.with_suffix(".py").name
    if file.exists():
        for cell in code(jupytext.read(file, fmt="py:percent")):
            if tags(cell) or not all(line.startswith("#") for line in cell.source.split("\n")):  # else a heading
                (exercise,) = tags(cell)
                found.setdefault(exercise, []).append(cell.source)
    return found


@by_name(CHAPTERS)
def test_every_exercise_has_three_wrong_answers(path):
    wrong = wrong_answers(path)
    assert list(wrong) == list(tagged(load(path), "exercise")), f"wrong answers of {list(wrong)} only"
    for exercise, answers in wrong.items():
        assert len(set(answers)) >= 3, f"{exercise} has {len(answers)} wrong answers"
        for answer in answers:
            assert re.match(r"# \w+.* \w+", answer), f"{exercise}: say what the mistake is:\n{answer}"


@pytest.mark.slow
@by_name(CHAPTERS)
def test_wrong_answers_are_rejected_and_solutions_are_right(path):
    """One run of the chapter; in the place of each exercise its wrong answers and then its solution, each checked."""
    answers, wrong = tagged(load(TUTORIALS / "solutions" / path.name), "exercise"), wrong_answers(path)
    notebook = build.read(build.SOURCES / path.with_suffix(".py").name)
    checks = tagged(notebook, "check")
    cells, tried = [], []
    for cell in notebook.cells:
        (exercise,) = [tag for tag in tags(cell) if tag in answers] or [""]
        if exercise:
            check = checks[exercise.replace("exercise", "check")]
            for answer in wrong.get(exercise, []):
                cells += [nbformat.v4.new_code_cell(source) for source in (KEEP, answer, check, RESTORE)]
                tried.append((exercise, answer, cells[-2]))
            cell.source = answers[exercise]
        cells.append(cell)
    notebook.cells = cells
    build.run(notebook, TUTORIALS)
    for exercise, answer, cell in tried:
        verdict = text_of(cell.outputs).strip()
        reason = verdict.partition("not yet - ")[2]
        assert len(reason.split()) >= 4, f"{exercise}: {verdict!r} is said of\n{answer}"
        assert not re.match(r"\w+(Error|Exception): ", reason), f"{exercise}: {verdict!r} does not help with\n{answer}"
    verdicts = [text_of(c.outputs) for c in code(notebook) if any(t.startswith("check-") for t in tags(c))]
    assert len(verdicts) == len(answers) and all(v.strip().endswith(": right") for v in verdicts), verdicts


@pytest.mark.slow
def test_controls_are_built_to_the_same_bytes_and_draw_nothing(tmp_path):
    """ipywidgets give their models random ids."""
    pytest.importorskip("ipywidgets", reason="ipywidgets is not installed")
    script = tmp_path / "controls.py"
    script.write_text(
        '# %% tags=["widget", "nbval-ignore-output"]\nfrom ipywidgets import interact\n\n'
        "import matplotlib.pyplot as plt\n\n\ndef draw(tau=2.0):\n    plt.plot([0, tau])\n    plt.show()\n\n\n"
        "interact(draw, tau=(1.0, 8.0));\n"
    )
    once, twice = (build.run(build.read(script), tmp_path) for _ in range(2))
    assert nbformat.writes(once) == nbformat.writes(twice)
    assert [text_of([output]) for output in once.cells[0].outputs] == [build.WIDGET_TEXT]


def test_the_site_knows_the_lines_that_building_adds():
    hooks = (ROOT / "docs" / "hooks.py").read_text()
    assert build.WIDGET_TEXT in hooks and build.PREDICT_LINE.strip() in hooks
    regex = re.search(r"^regex: (.*Predict.*)$", (ROOT / "tests" / "nbval.cfg").read_text(), re.M)[1]
    assert re.sub(regex, r"\1", build.PREDICT_LINE + "3 of 4\n") == "3 of 4\n"


@pytest.mark.slow
def test_building_again_gives_the_same_bytes():
    """All but clock times. (What is committed was made with one version of Matplotlib; another's pictures differ.)"""
    once, twice = (nbformat.writes(build.run(build.read(build.scripts()[5]), TUTORIALS)) for _ in range(2))
    assert re.sub(CLOCK, "TIME", once) == re.sub(CLOCK, "TIME", twice)


def test_the_page_for_teachers_names_every_chapter_and_sections_that_exist():
    page = (ROOT / "docs" / "learn" / "teaching.md").read_text()
    rows = re.findall(r"^\| \[.+?\]\((\w+)\.md\) \| <!-- minutes: (\w+) --> \| (.+?) \|", page, re.M)
    assert [name for name, _, _ in rows] == [of for _, of, _ in rows] == [chapter.stem for chapter in CHAPTERS]
    for name, _, skip in rows:
        sections = re.findall(r"^## (.+)$", prose(build.read(build.SOURCES / f"{name}.py")), re.M)
        for section in re.findall(r"\*(.+?)\*", skip):
            assert any(title.startswith(section) for title in sections), f"{name}: no section {section}"


@by_name(CHAPTERS)
def test_assignment_holds_every_exercise_and_its_start(path):
    """Before nbgrader has taken out the solutions and the hidden tests, and what is left after it."""
    notebook, asked = assignments.assignment(path.stem), build.read(build.SOURCES / f"{path.stem}.py")
    starts, checks = tagged(asked, "exercise"), tagged(asked, "check")
    cells = {cell.metadata.nbgrader.grade_id: cell for cell in code(notebook)}
    assert {name for name, cell in cells.items() if cell.metadata.nbgrader.grade} == set(checks)
    for name, start in starts.items():
        left = re.sub(r"^ *### BEGIN SOLUTION$.*^ *### END SOLUTION$", "", cells[name].source, flags=re.S | re.M)
        begun = [line for line in start.split("\n") if line.strip() not in ("", "...")]
        assert begun[0] in left and "SOLUTION" not in left
        compile(cells[name].source, name, "exec")
    for name in checks:
        assert cells[name].source.startswith(assignments.SEEN + "### BEGIN HIDDEN TESTS\n")
        assert "se.exercise" not in cells[name].source
    assert not re.search(r"\]\((?!https?:)", prose(notebook))  # no link to a file that is not there


@pytest.mark.slow
def test_nbgrader_grades_an_assignment(tmp_path):
    """Full points for the solutions; none for wrong answers or for none, and students see neither answer nor test."""
    api = pytest.importorskip("nbgrader.api", reason="nbgrader is not installed: no assignment was graded")
    stem = "10_energy"
    assignments.main([str(tmp_path), "10"])
    # nbgrader calls its database's command by name
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}

    def nbgrader(*words):
        command = [sys.executable, "-m", "nbgrader", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    nbgrader("generate_assignment", stem)
    released = load(tmp_path / "release" / stem / f"{stem}.ipynb")
    text = "\n".join(cell.source for cell in released.cells)
    assert "# your code here\n    ..." in text and "def width_behind" in text
    assert not re.search("SOLUTION|HIDDEN|flops_of_width_one", text)
    assert all("assert" not in cell.source for cell in code(released) if cell.metadata.nbgrader.grade)
    chapter = TUTORIALS / f"{stem}.ipynb"
    wrong = {exercise: answers[0] for exercise, answers in wrong_answers(chapter).items()}
    students = {"right": tagged(load(TUTORIALS / "solutions" / chapter.name), "exercise"), "wrong": wrong, "none": {}}
    for student, answers in students.items():
        for cell in code(released):
            cell.source = answers.get(cell.metadata.nbgrader.grade_id, cell.source)
        folder = tmp_path / "submitted" / student / stem
        folder.mkdir(parents=True)
        nbformat.write(released, folder / f"{stem}.ipynb")
        released = load(tmp_path / "release" / stem / f"{stem}.ipynb")
    nbgrader("autograde", stem)
    with api.Gradebook(f"sqlite:///{tmp_path}/gradebook.db") as gradebook:
        scores = {student: gradebook.find_submission(stem, student).score for student in students}
    assert scores == {"right": 3, "wrong": 0, "none": 0}


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
            ("neurons.py", "if self.fusible and not", "if False and not"),
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


@pytest.mark.parametrize("arguments", [["course", "99"], [], ["course", "--tmie"]])
def test_assignments_refuse_what_they_do_not_know(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        assignments.main(arguments)
    assert stopped.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["99"], ["--tmie"], ["--time", "09"]])
def test_build_refuses_what_it_does_not_know(arguments, monkeypatch, capsys):
    monkeypatch.setattr(build, "run", lambda *_: pytest.fail("a notebook was run"))
    with pytest.raises(SystemExit) as stopped:
        build.main(arguments)
    assert stopped.value.code == 2 and "error: " in capsys.readouterr().err
