"""The examples in docstrings run, each by itself, and print what they show."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import spikformer_edu as se

MODULES = ["spikformer_edu", *(module.name for module in pkgutil.walk_packages(se.__path__, "spikformer_edu."))]
EXAMPLES = {
    test.name: test
    for name in MODULES
    if not name.endswith("lif_triton")  # importing it needs Triton; it holds no example, see below
    for test in doctest.DocTestFinder().find(importlib.import_module(name))
    if test.examples
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_shows(name):
    printed = []
    result = doctest.DocTestRunner().run(EXAMPLES[name], out=printed.append, clear_globs=False)
    assert result.failed == 0, "".join(printed)


def test_no_example_is_overlooked():
    """Doctest finds no docstring of a function that a decorator has replaced without functools.wraps, for one."""
    sources = Path(se.__file__).parent.rglob("*.py")
    written = sum(len(re.findall(r"^ *>>> ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)) for file in sources)
    assert sum(len(test.examples) for test in EXAMPLES.values()) == written > 20


def test_the_main_entry_points_have_an_example():
    found = {name.rpartition(".")[2] for name in EXAMPLES}
    assert found >= {"spikformer", "load_pretrained", "record", "energy", "LIF", "load", "exercise", "spikformer_edu"}


def test_an_example_that_prints_something_else_would_be_noticed():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda _: None).failed == 1
