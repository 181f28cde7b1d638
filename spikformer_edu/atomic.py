"""Files that are there whole, or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it, whenever the process may be killed.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; an older file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name on old blocks
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
