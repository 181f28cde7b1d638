"""``python -m spikformer_edu.data``, which is ``data_command.py``."""

from .. import cli
from ..data_command import main

if __name__ == "__main__":
    cli.run(main, "python -m spikformer_edu.data")
