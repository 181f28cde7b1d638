"""``python -m spikformer_edu``: list the commands, or the networks."""

from dataclasses import dataclass

from . import cli
from .presets import list_models
from .version import __version__

COMMANDS = """\
python -m spikformer_edu.train --dataset digits       train a network and write a run folder
python -m spikformer_edu.evaluate --checkpoint RUN    measure its accuracy
python -m spikformer_edu.visualize --checkpoint RUN   draw what it does with one image
python -m spikformer_edu.data info                    data sets, and which are here
python -m spikformer_edu.benchmark                    speed and memory, ours beside the peers that are installed
python -m spikformer_edu.check MODULE:FUNCTION        faults of your own spiking network, found by its behaviour
python -m spikformer_edu.export --format onnx         a run for other programs: ONNX, integers, the browser, ..."""


@dataclass(frozen=True)
class Options:
    list: bool = False
    """Print the table of networks."""


def run(options: Options) -> None:
    """Spiking self-attention and Spikformer, step by step on snnTorch neurons."""
    if options.list:
        print(list_models())
    else:
        print(f"spikformer_edu {__version__}\n\n{COMMANDS}\n\n--list prints the table of networks")


def main() -> None:
    cli.run(run, "python -m spikformer_edu")


if __name__ == "__main__":
    main()
