"""Makes assignments for nbgrader: ``python tutorials/assignments.py COURSE [05 10 ...]``.

Every chapter becomes the folder ``COURSE/source/NN_title`` with one notebook: the exercises as the chapter states them,
the solutions between nbgrader's marks, and the checks as hidden tests of one point each. nbgrader takes out both when
it generates what students get. Run nbgrader in COURSE; its configuration is written there unless there is one.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import build

CONFIG = """c = get_config()
c.CourseDirectory.course_id = "spikformer"
c.ExecutePreprocessor.timeout = 300
c.ClearSolutions.code_stub = {"python": "# your code here\\n..."}
"""
# what students see of a check
SEEN = "# The check of this exercise runs when your work is graded.\n"


def tag_of(cell: nbformat.NotebookNode, kind: str) -> str:
    """``exercise-1``, ``check-2`` ... if the cell has such a tag, else "" """
    tags = cell.metadata.get("tags", [])
    return next((tag for tag in tags if re.fullmatch(kind + r"-\d", tag)), "")


def exercises(chapter: nbformat.NotebookNode) -> dict[str, list[str]]:
    """Exercise -> what the chapter asks, the code that it gives, and the code to start from."""
    found, asked = {}, []
    for cell in chapter.cells:
        if cell.cell_type == "markdown":
            text = cell.source.rpartition("## Exercises\n")[2].strip()
            # files beside the chapter are not beside the assignment
            asked = [re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)]
        else:
            asked.append(cell.source)
        if tag := tag_of(cell, "exercise"):
            found[tag] = list(asked)
    return found


def with_marks(start: str, answer: str) -> str:
    """The answer, with nbgrader's marks around what it adds to the code that the reader starts from."""
    lines = answer.split("\n")
    same = len(os.path.commonprefix([start.split("\n"), lines]))
    if not same:
        # it begins with other lines, such as imports: the start stays readable
        lines = [*(f"# {line}".rstrip() for line in start.split("\n")), *lines]
        same = start.count("\n") + 1
    added = lines[same:]
    indent = re.match(" *", next((line for line in added if line.strip()), ""))[0]
    begin, end = (f"{indent}### {word} SOLUTION" for word in ("BEGIN", "END"))
    return "\n".join([*lines[:same], begin, *added, end])


def hidden(check: str) -> str:
    """A check as a hidden test: it raises what ``se.exercise`` would print."""
    raising, found = re.subn(
        r"^with se\.exercise\(.*\):", "if True:", check, flags=re.M
    )
    assert found == 1, check
    return f"{SEEN}### BEGIN HIDDEN TESTS\n{raising}\n### END HIDDEN TESTS"


def code_cell(source: str, name: str = "") -> nbformat.NotebookNode:
    """A cell with nbgrader's facts: an exercise can be edited, a check gives a point."""
    check, exercise = name.startswith("check"), name.startswith("exercise")
    facts = {
        "grade_id": name,
        "solution": exercise,
        "grade": check,
        "locked": not exercise,
        "task": False,
        "schema_version": 3,
    }
    if check:
        facts["points"] = 1
    return new_code_cell(source, metadata={"nbgrader": facts})


def assignment(stem: str) -> nbformat.NotebookNode:
    """The notebook of a chapter's exercises, as nbgrader's source."""
    chapter, solutions = (
        build.read(build.SOURCES / folder / f"{stem}.py")
        for folder in ("", "solutions")
    )
    asked = exercises(chapter)
    title = re.match(r"# (.+)", chapter.cells[0].source)[1]
    cells = [new_markdown_cell(f"# {title}: exercises")]
    last = [i for i, c in enumerate(solutions.cells) if tag_of(c, "check")][-1]
    for cell in solutions.cells[: last + 1]:
        exercise, check = tag_of(cell, "exercise"), tag_of(cell, "check")
        if cell.cell_type == "markdown":
            continue
        if exercise:
            text, *given, start = asked[exercise]
            cells.append(new_markdown_cell(text))
            cells += [code_cell(source) for source in given]
            cells.append(code_cell(with_marks(start, cell.source), exercise))
        elif check:
            cells.append(code_cell(hidden(cell.source), check))
        else:
            cells.append(code_cell(cell.source))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:02d}"
        if cell.cell_type == "code" and not cell.metadata.nbgrader.grade_id:
            cell.metadata.nbgrader.grade_id = f"given-{number}"
    return new_notebook(cells=cells, metadata=build.METADATA)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("course", type=Path, help="folder of the course")
    parser.add_argument("chapters", nargs="*", help="05, 10, ...; all unless given")
    options = parser.parse_args(arguments)
    stems = [path.stem for path in sorted(build.SOURCES.glob("[0-9]*.py"))]
    for chapter in options.chapters:
        if not any(stem.startswith(chapter) for stem in stems):
            parser.error(f"no chapter {chapter!r}: there are {', '.join(stems)}")
    for stem in stems:
        if not options.chapters or stem.startswith(tuple(options.chapters)):
            path = options.course / "source" / stem / f"{stem}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(nbformat.writes(assignment(stem)) + "\n")
            print(path)
    config = options.course / "nbgrader_config.py"
    if not config.exists():
        config.write_text(CONFIG)


if __name__ == "__main__":
    main(sys.argv[1:])
