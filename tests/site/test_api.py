"""Docstrings are complete: every parameter on the API pages has an entry, and every entry is of a parameter."""

import re
from pathlib import Path

import pytest
import yaml

griffe = pytest.importorskip("griffe", reason="griffe is not installed (pip install '.[docs]')")

ROOT = Path(__file__).parent.parent.parent
PACKAGE = griffe.load("spikformer_edu", search_paths=[ROOT], docstring_parser="google")
ENTRY = re.compile(r"^::: spikformer_edu\.(\S+)(?:\n    options: (\{.*\}))?$", flags=re.MULTILINE)


def shown(page: str) -> dict:
    """The functions and classes that a page shows, and the methods that it shows of a class, by path."""
    found = {}
    for path, options in ENTRY.findall(page):
        thing = PACKAGE[path].final_target if PACKAGE[path].is_alias else PACKAGE[path]
        if thing.is_function or thing.is_class:  # not a module, nor a table
            members = yaml.safe_load(options or "{}").get("members", thing.members)
            methods = [thing.members[name] for name in members if not name.startswith("_")]
            found |= {method.path: method for method in methods if method.is_function and method.docstring}
            found[thing.path] = thing
    return found


def everything(inside=PACKAGE) -> dict:
    """All functions, classes and methods of the package, by path."""
    found = {}
    for thing in inside.members.values():
        if not thing.is_alias and not thing.is_attribute:
            found |= everything(thing) if thing.is_module or thing.is_class else {}
            found |= {} if thing.is_module else {thing.path: thing}
    return found


ALL, SHOWN = everything(), {}
for file in sorted((ROOT / "docs" / "api").glob("*.md")):
    SHOWN |= shown(file.read_text(encoding="utf-8"))


def entries(thing, kind: str) -> list[str]:
    """Names in the sections of a docstring: "parameters" or "attributes"."""
    sections = thing.docstring.parsed if thing.docstring else []
    return [item.name.lstrip("*") for section in sections if section.kind.value == kind for item in section.value]


def parameters(thing) -> list[str]:
    return [parameter.name for parameter in thing.parameters if parameter.name not in ("self", "cls")]


def undescribed(thing) -> list[str]:
    """Parameters without an entry. The fields of a dataclass may have one under Attributes, or docstrings of their own;
    a class without an ``__init__`` of its own may leave its parameters to the class that has it."""
    while thing.is_class and "__init__" not in thing.members and thing.resolved_bases:
        thing = thing.resolved_bases[0]
    found = entries(thing, "parameters")
    if "dataclass" in thing.labels:
        found += entries(thing, "attributes")
        found += [name for name, field in thing.attributes.items() if field.docstring]
    return [name for name in parameters(thing) if name not in found]


def unknown(thing) -> list[str]:
    """Entries that are neither a parameter nor a field of a dataclass."""
    wrong = [name for name in entries(thing, "parameters") if name not in parameters(thing)]
    fields = entries(thing, "attributes") if "dataclass" in thing.labels else []
    return wrong + [name for name in fields if name not in thing.attributes]


def test_every_parameter_on_the_api_pages_is_described():
    assert {path: missing for path, thing in SHOWN.items() if (missing := undescribed(thing))} == {}


def test_a_docstring_that_describes_a_parameter_describes_all():
    partly = {path: thing for path, thing in ALL.items() if entries(thing, "parameters")}
    assert {path: missing for path, thing in partly.items() if (missing := undescribed(thing))} == {}


def test_no_docstring_describes_what_is_not_there():
    assert {path: wrong for path, thing in ALL.items() if (wrong := unknown(thing))} == {}


def test_classes_that_inherit_their_parameters_stand_beside_the_one_that_describes_them():
    for path, thing in SHOWN.items():
        if thing.is_class and "__init__" not in thing.members and thing.resolved_bases:
            assert thing.resolved_bases[0].path in SHOWN, f"{path}: its parameters are on no API page"


def test_gaps_would_be_noticed():
    code = '''
from dataclasses import dataclass

def f(x, *rest, y=1, **more):
    """Some numbers.

    Args:
        x: a number.
        rest: numbers.
        z: not there.
    """

@dataclass
class C:
    """Fields.

    Attributes:
        a: described here.
        d: not there.
    """

    a: int
    b: int
    """Described here."""
    c: int  # not in a docstring
'''
    with griffe.temporary_visited_package("made", {"__init__.py": code}, docstring_parser="google") as module:
        assert (undescribed(module["f"]), unknown(module["f"])) == (["y", "more"], ["z"])
        assert (undescribed(module["C"]), unknown(module["C"])) == (["c"], ["d"])
    assert {"spikformer_edu.neurons.LIF", "spikformer_edu.record.Recording.layers"} <= set(SHOWN)  # and methods
