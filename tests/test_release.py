"""What a release needs: one version, metadata for a wheel, and files that GitHub, PyPI and citation tools read."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from datetime import date
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import snntorch
import yaml
from packaging.requirements import Requirement

import spikformer_edu as se
from spikformer_edu import cli, train

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load(path: str | Path) -> dict:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with the metadata of a wheel and a source archive, made where the package cannot be imported: its other
    modules are not there."""
    pytest.importorskip("setuptools", minversion="77", reason="no setuptools of at least 77: nothing was built")
    folder = tmp_path_factory.mktemp("source")
    files = ["pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"]
    package = [f"spikformer_edu/{name}" for name in ("__init__.py", "version.py", "py.typed")]
    for name in [*files, *package, "tests/test_release.py"]:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "out").mkdir()
    build = "from setuptools import build_meta as b; b.prepare_metadata_for_build_wheel('out'); b.build_sdist('out')"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out"


@pytest.fixture(scope="module")
def built(source):
    return PathDistribution(next(source.glob("*.dist-info")))


def requirements(built, name: str) -> list[Requirement]:
    return [need for need in map(Requirement, built.requires) if need.name == name]


# One version


def test_the_version_of_the_package_is_that_of_the_wheel_and_of_the_citation(built):
    assert built.version == se.__version__ == load("CITATION.cff")["version"]


def releases() -> dict[str, str]:
    """The versions of the changelog, newest first, each with what stands behind it: a date, or "unreleased"."""
    return dict(re.findall(r"^## \[(\d[^\]]*)\] - (.+)$", read("CHANGELOG.md"), flags=re.M))


def test_the_changelog_begins_with_this_version():
    assert next(iter(releases())) == se.__version__
    state = releases()[se.__version__]
    citation = load("CITATION.cff")
    if state == "unreleased":
        assert "date-released" not in citation
    else:
        assert date.fromisoformat(state) == citation["date-released"]


def test_the_changelog_keeps_its_format():
    text = read("CHANGELOG.md")
    headings = re.findall(r"^(##+) (.+)$", text, flags=re.M)
    assert len(set(headings)) >= 4
    for level, heading in headings:
        if level == "##":
            assert re.fullmatch(r"\[Unreleased\]|\[[\d.]+\] - (unreleased|\d{4}-\d\d-\d\d)", heading), heading
        else:
            assert heading in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"), heading


def test_the_citation_page_has_no_number_of_its_own():
    assert "version = {X.Y.Z}" in read("docs/citation.md")


# Metadata


def test_the_wheel_names_its_authors_and_the_paper(built):
    about = built.metadata
    assert about["Author"] == load("CITATION.cff")["authors"][0]["name"]
    assert about["License-Expression"] == load("CITATION.cff")["license"] == "MIT"
    paper = load("CITATION.cff")["references"][0]
    assert f"Paper, {paper['url']}" in about.get_all("Project-URL")


def test_the_source_archive_has_changelog_and_citation_and_not_half_of_the_tests(source):
    with tarfile.open(next(source.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= names
    assert {"spikformer_edu/__init__.py", "spikformer_edu/py.typed"} <= names
    assert not any(name.startswith("tests") for name in names)


def test_the_paper_is_the_same_in_both_citations():
    citation, page = load("CITATION.cff"), " ".join(read("docs/citation.md").replace("\\_", "_").split())
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["type"] == "software"
    paper = citation["references"][0]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    for fact in (paper["title"], authors, paper["collection-title"], f"{{{paper['year']}}}", paper["url"]):
        assert fact in page, fact
    assert citation["title"] in page and citation["authors"][0]["name"] in page


def test_snntorch_is_bounded_to_what_the_golden_trace_was_run_with(built):
    (need,) = requirements(built, "snntorch")
    assert need.specifier.contains(snntorch.__version__)
    assert "0.9.4" in need.specifier and "1.0.0" in need.specifier
    assert not need.specifier.contains("2.0.0"), "a rewrite of snnTorch's resets would be installed untested"


def test_the_style_is_the_same_before_a_commit_and_in_make(built):
    pinned = {entry["repo"].rpartition("/")[2]: entry["rev"] for entry in load(".pre-commit-config.yaml")["repos"]}
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", version) for version in pinned.values())
    needs = requirements(built, "ruff")
    assert needs and all(pinned["ruff-pre-commit"].removeprefix("v") in need.specifier for need in needs)


# Workflows and forms


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_bounded_and_needs_no_secret(path):
    workflow = load(path)
    assert True in workflow, "no `on`"  # YAML 1.1 reads the word `on` as a truth value
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@[\w/.]+", step["uses"]), step
    assert "secrets" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, job, rights", [("release", "publish", {"id-token"}), ("docs", "deploy", {"pages", "id-token"})]
)
def test_only_the_job_that_publishes_may_write(name, job, rights):
    workflow = load(f".github/workflows/{name}.yml")
    assert workflow["permissions"] == {"contents": "read"}
    allowed = {name: set(job["permissions"]) for name, job in workflow["jobs"].items() if "permissions" in job}
    assert allowed == {job: rights}


def test_a_tag_is_released_only_if_it_is_the_version_and_the_changelog_has_its_date(tmp_path):
    steps = load(".github/workflows/release.yml")["jobs"]["build"]["steps"]
    (script,) = (step["run"] for step in steps if "tag" in step.get("name", ""))
    (tmp_path / "dist").mkdir()
    for file in ("spikformer_edu-0.2.0-py3-none-any.whl", "spikformer_edu-0.2.0.tar.gz"):
        (tmp_path / "dist" / file).touch()

    def passes(tag: str, heading: str) -> bool:
        (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n")
        environment = os.environ | {"GITHUB_REF_NAME": tag}
        command = ["bash", "-e", "-c", script]  # as GitHub runs it
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).returncode == 0

    assert passes("v0.2.0", "[0.2.0] - 2027-01-31")
    assert not passes("v0.2.0", "[0.2.0] - unreleased")
    assert not passes("v0.2.0", "[0.1.0] - 2027-01-31")
    assert not passes("v0.3.0", "[0.3.0] - 2027-01-31")


def test_the_release_tries_commands_and_networks_that_there_are():
    steps = load(".github/workflows/release.yml")["jobs"]["check"]["steps"]
    assert not any("checkout" in step.get("uses", "") for step in steps), "the wheel is tried outside the repository"
    commands = [shlex.split(step["run"]) for step in steps if "run" in step]
    (training,) = (words[3:] for words in commands if words[:3] == ["python", "-m", "spikformer_edu.train"])
    assert "digits" in training
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *training])
        options = cli.parse(train.Options, "train")
    assert options.epochs == 1 and not options.figures
    (code,) = (words[2] for words in commands if words[:2] == ["python", "-c"])
    exec(code, {})


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_asks_and_one_answer_is_required(path):
    form = load(path)
    assert form["name"] and form["description"] and form["labels"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) and all(field["attributes"]["label"] for field in form["body"])
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_a_bug_report_asks_for_what_helps():
    asked = {field["id"] for field in load(".github/ISSUE_TEMPLATE/bug_report.yml")["body"]}
    assert {"version", "command", "output", "dataset", "hardware"} <= asked
