"""docs/architecture.md names every module of the package, in an order in which imports only ever point back."""

import ast
import re
from pathlib import Path

import pytest

import spikformer_edu as se

PACKAGE = Path(se.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"
GROUND, DATA = "Ground", "Data"


def floors() -> dict[str, str]:
    """File of a module -> title of its floor, in the order of the page."""
    found = {}
    for part in PAGE.read_text(encoding="utf-8").split("\n### ")[1:]:
        title = part.partition("\n")[0].partition(":")[0]
        for room in re.findall(r"^\| `([\w/]+\.py)` \|", part, re.M):
            assert room not in found, f"{room} is named twice"
            found[room] = title
    return found


def imported(file: Path) -> set[str]:
    """Modules of the package that a module imports, anywhere in it, as files below the package."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in node.names:
                inner = folder / name.name
                places = (inner.with_suffix(".py"), inner / "__init__.py", folder.with_suffix(".py"))
                found.add(next((p for p in places if p.exists()), folder / "__init__.py"))
        elif isinstance(node, ast.Import | ast.ImportFrom):  # an absolute import of the package would be missed
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            assert not any(name.split(".")[0] == PACKAGE.name for name in names), f"{file}: write it as relative"
    return {path.relative_to(PACKAGE).as_posix() for path in found}


ROOMS = floors()


def test_every_room_is_on_the_page():
    assert set(ROOMS) == {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room):
    order = list(ROOMS)
    used = imported(PACKAGE / room)
    above = {other for other in used if order.index(other) >= order.index(room)}
    assert not above, f"{room} imports {above}, which stand higher"
    if ROOMS[room] == DATA:
        assert {ROOMS[other] for other in used} <= {DATA, GROUND}
