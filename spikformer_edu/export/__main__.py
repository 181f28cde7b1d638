"""``python -m spikformer_edu.export``: a trained network for other programs."""

from dataclasses import dataclass
from pathlib import Path

from .. import cli
from ..errors import SpikformerError
from ..training import load_run
from . import export, inputs_for


@dataclass(frozen=True)
class Options:
    format: str
    """onnx, torch (torch.export), fixed (integers), js (the browser) or hub (a folder as Hugging Face has them)."""
    checkpoint: str = "digits-2-64"
    """Run folder, or the name of a pretrained model of the package."""
    out: Path = Path("export")
    """Folder for the files."""
    bits: int = 8
    """Width of the integer weights of the format fixed: 8 or 16."""
    inputs: int = 10
    """Number of test samples that the files are checked with; random ones if the data are not on this machine."""
    data_dir: Path | None = None
    """Where data sets are; else $SPIKFORMER_DATA, else ./data."""


def main(options: Options) -> None:
    """Write a trained network for programs that are not this package, and let such a program run the files."""
    if options.inputs < 1:
        raise SpikformerError(f"--inputs {options.inputs}: give the number of samples to check with, at least 1")
    run = load_run(options.checkpoint)
    needed = options.format in ("onnx", "torch", "fixed")
    inputs, _ = inputs_for(run, options.inputs, options.data_dir) if needed else (None, "")
    print(export(run, options.out, options.format, inputs, options.bits))


if __name__ == "__main__":
    cli.run(main, "python -m spikformer_edu.export")
