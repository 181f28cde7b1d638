"""Makes the notebooks from the scripts in ``src/``: ``python tutorials/build.py [05 solutions/05 ...]``.

A script is a notebook in jupytext's percent format. Building runs it and writes the notebook with its outputs. The same
script gives the same bytes on the same machine: cell ids are numbered, and nothing of the clock or the kernel is kept.

Tags of a cell in the script, and what the notebook makes of them:

- ``setup``: the first code cell.
- ``predict``: answers the question "Predict before you run". Its output is collapsed until the reader runs the cell or
  opens the output.
- ``fold``: code that is not the lesson, such as plotting. Its source is collapsed.
- ``widget``: controls of ipywidgets. The notebook holds a line of text in their place; a static figure stands before
  them. Its outputs are not compared (``nbval-ignore-output`` beside it).
- ``exercise-1``, ``check-1``, ...: the place for an answer, and its check.

``--time`` also writes how long each chapter took, for its header, to ``results/run_times.json``.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SOURCES = HERE / "src"
METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
COLLAPSED = {
    "predict": "outputs_hidden",
    "fold": "source_hidden",
}  # tag -> what Jupyter calls it
WIDGET = "application/vnd.jupyter.widget-view+json"
# JupyterLab shows the first line of a collapsed output: this one, not the answer. tests/nbval.cfg and docs/hooks.py drop it.
PREDICT_LINE = "Predict first. Then run the cell, or open this output.\n"
WIDGET_TEXT = "[controls: run this cell to use them]"


def scripts() -> list[Path]:
    """Scripts of all chapters, then of all solutions."""
    return sorted(SOURCES.glob("[0-9]*.py")) + sorted(
        SOURCES.glob("solutions/[0-9]*.py")
    )


def target(script: Path) -> Path:
    """Where the notebook of a script goes."""
    return (HERE / script.relative_to(SOURCES)).with_suffix(".ipynb")


def read(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script, not run yet."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("lines_to_next_cell", None)
        hidden = {
            name: True
            for tag, name in COLLAPSED.items()
            if tag in cell.metadata.get("tags", [])
        }
        if hidden:
            cell.metadata["jupyter"] = hidden
    return notebook


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run every cell in that folder, on one thread, without data sets of this machine and without a window."""
    os.environ.update(OMP_NUM_THREADS="1", PYTHONHASHSEED="0")
    for name in ("SPIKFORMER_DATA", "MPLBACKEND"):
        os.environ.pop(name, None)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                without_widget(output) for output in joined(cell.outputs)
            ]
            if "predict" in cell.metadata.get("tags", []) and cell.outputs:
                first = cell.outputs[0]
                place, key = (
                    (first, "text")
                    if "text" in first
                    else (first.data, "text/plain")
                )
                place[key] = PREDICT_LINE + place[key]
    return notebook


def without_widget(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The output as a reader without a kernel can see it: a widget's view names a random id of a running kernel."""
    if WIDGET in output.get("data", {}):
        output.data = nbformat.from_dict({"text/plain": WIDGET_TEXT})
    return output


def joined(outputs: list) -> list:
    """Outputs with neighbouring pieces of one stream joined: how a stream is cut into pieces is chance."""
    result: list = []
    for output in outputs:
        if (
            output.output_type == "stream"
            and result
            and result[-1].get("name") == output.name
        ):
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "chapters", nargs="*", help="05, solutions/05, ...; all unless given"
    )
    parser.add_argument(
        "--time",
        action="store_true",
        help="write how long each took to results/run_times.json",
    )
    options = parser.parse_args(arguments)
    names = {
        str(script.relative_to(SOURCES).with_suffix("")): script
        for script in scripts()
    }
    for chapter in options.chapters:
        if not any(name.startswith(chapter) for name in names):
            parser.error(f"no chapter {chapter!r}: there are {', '.join(names)}")
    if options.time and options.chapters:
        parser.error("--time measures all chapters in one run: name none")
    seconds = {}
    for name, script in names.items():
        if options.chapters and not name.startswith(tuple(options.chapters)):
            continue
        start = time.perf_counter()
        notebook = run(read(script), target(script).parent)
        nbformat.validate(notebook)
        target(script).parent.mkdir(exist_ok=True)
        text = nbformat.writes(notebook) + "\n"
        target(script).write_text(text)
        seconds[name] = round(time.perf_counter() - start, 1)
        print(
            f"{name:40} {seconds[name]:6.1f} s {len(text) / 1000:8.0f} kB",
            flush=True,
        )
    if options.time:
        import torch

        from spikformer_edu.provenance import provenance

        facts = provenance(torch.device("cpu")) | {
            "command": "python tutorials/build.py --time",
            "threads": 1,
        }
        results = (
            json.dumps({"provenance": facts, "seconds": seconds}, indent=2) + "\n"
        )
        (HERE / "results" / "run_times.json").write_text(results)


if __name__ == "__main__":
    main(sys.argv[1:])
