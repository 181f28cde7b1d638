"""``python -m spikformer_edu.visualize``: draw everything that one forward pass does."""

from dataclasses import dataclass
from pathlib import Path

import torch

from . import cli
from .errors import SpikformerError
from .training import load_run
from .training.evaluation import origin, splits_for


@dataclass(frozen=True)
class Options:
    checkpoint: str = "digits-2-64"
    """Run folder, or the name of a pretrained model of the package."""
    dataset: str | None = None
    """Data set with the same classes; the one it was trained on unless given."""
    split: str = "test"
    """test, val or train."""
    index: int = 0
    """Number of the sample that is drawn."""
    samples: int = 16
    """Firing rates and energy are measured on this many samples, the drawn one first."""
    out: Path = Path("figures")
    """Folder for the PNG files and report.html."""
    which: str = "best"
    """Weights of the run: best or last."""
    animate: bool = False
    """Also write neuron.gif and ssa.gif."""
    data_dir: Path | None = None
    """Where data sets are; else $SPIKFORMER_DATA, else ./data."""


def main(options: Options) -> None:
    """Draw rasters, membranes, attention maps, rates and energy of a trained network: PNG files and one HTML page."""
    from .report import write_report
    from .report_page import Subject

    run = load_run(options.checkpoint, options.which)
    splits = splits_for(run, options.dataset, options.data_dir)
    split = splits[options.split]
    if not 0 <= options.index < len(split):
        raise SpikformerError(f"--index {options.index}: the {options.split} split has {len(split)} samples, from 0")
    if options.samples < 1:
        raise SpikformerError(f"--samples {options.samples}: give at least 1")
    indices = (options.index + torch.arange(min(options.samples, len(split)))) % len(split)
    inputs, labels = split.fetch(indices, None)
    own = run.data.holds(options.split, split, splits.info.classes)
    note = origin(run, splits.info, own, options.data_dir)
    log = run.folder / "metrics.csv"
    subject = Subject(
        run.model,
        run.folder.name,
        splits.info,
        inputs,
        labels,
        options.index,
        options.split,
        log if log.exists() else None,
        note,
    )
    page = write_report(subject, options.out, options.animate)
    print(f"{page.read_text(encoding='utf-8').count('<figure>')} figures and {page}")
    if note:
        print(note)


if __name__ == "__main__":
    cli.run(main, "python -m spikformer_edu.visualize")
