"""Chapter 08 with CIFAR-10: ``python tutorials/results/08_train.py [FOLDER]``.

The chapter is run as it is, in a folder of its own, with the images under ``$SPIKFORMER_DATA``. Only numbers are kept,
in ``08_train.json``. With FOLDER the notebook stays there with its outputs, which show images of CIFAR-10: they must
not be published with the chapter.
"""

import csv
import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient

from spikformer_edu.data.files import data_folder
from spikformer_edu.provenance import provenance

TUTORIALS = Path(__file__).parents[1]
sys.path.insert(0, str(TUTORIALS))
import build  # noqa: E402

CLOCK = ("images_per_s", "peak_memory_gib", "data")


def run_chapter(folder: Path, timeout: int | None = None) -> nbformat.NotebookNode:
    """Run chapter 08 in a copy of the folders that it reads; its run folder is then ``FOLDER/tutorials/runs/...``.

    The cell that prints the file of this script is left out.

    Args:
        folder: an empty folder.
        timeout: seconds that a cell may take; None: any number.
    """
    there = folder / "tutorials"
    there.mkdir(parents=True)
    shutil.copy(TUTORIALS / "07_assemble_and_verify.ipynb", there)
    shutil.copytree(
        TUTORIALS.parent / "docs" / "results", folder / "docs" / "results"
    )
    notebook = build.read(build.SOURCES / "08_train.py")
    notebook.cells = [
        cell
        for cell in notebook.cells
        if 'Path("results/08_train.json")' not in cell.source
    ]
    resources = {"metadata": {"path": str(there)}}
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources=resources
    )
    try:
        client.execute(
            env=os.environ | {"SPIKFORMER_DATA": str(data_folder(None).absolute())}
        )
    finally:
        nbformat.write(notebook, there / "08_train.ipynb")
    return notebook


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        run_chapter(folder)
        used = resource.getrusage(
            resource.RUSAGE_CHILDREN
        )  # of the kernel, which has ended
        (run,) = (folder / "tutorials" / "runs").iterdir()
        with (run / "metrics.csv").open(newline="") as log:
            rows = [
                {k: round(float(v), 5) for k, v in r.items() if k not in CLOCK}
                for r in csv.DictReader(log)
            ]
        content = {
            "provenance": provenance(torch.device("cpu"))
            | {"command": "python tutorials/results/08_train.py"},
            "cpu_seconds": round(used.ru_utime + used.ru_stime),
            "recipe": json.loads((run / "config.json").read_text())["recipe"],
            "metrics": rows,
            "result": json.loads((run / "results.json").read_text()),
        }
    Path(__file__).with_suffix(".json").write_text(
        json.dumps(content, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
