"""``python -m spikformer_edu.check MODULE:FUNCTION``: ``se.check`` as a command, for continuous integration."""

import importlib
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from .. import cli
from ..errors import SpikformerError
from . import check


@dataclass(frozen=True)
class Options:
    factory: Annotated[str, tyro.conf.Positional]
    """MODULE:FUNCTION; the function takes nothing and gives (network, inputs), or these and a dict of options."""


def main(options: Options) -> None:
    """Check a spiking network for state that leaks, samples that mix, silent layers and the like; exit code 1 if so."""
    module_name, _, name = options.factory.partition(":")
    if not name:
        raise SpikformerError(f"{options.factory!r}: give MODULE:FUNCTION, such as mynet:make")
    sys.path.insert(0, "")  # a module in this folder
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpikformerError(f"cannot import {module_name!r}: {error}") from None
    if not callable(factory := getattr(module, name, None)):
        raise SpikformerError(f"{module_name} has no function {name!r}")
    made = factory()
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise SpikformerError(f"{options.factory} gives {type(made).__name__}: return (network, inputs)")
    model, inputs, *more = made
    report = check(model, inputs, **(more[0] if more else {}))
    print(report)
    if not report:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, "python -m spikformer_edu.check")
