"""Expand paths, and write files atomically: a file is complete or it is not there."""

import csv
import json
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import SpikformerError

TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{8}-.+")  # names of files that a killed process may leave behind


def expand(path: str | os.PathLike[str]) -> Path:
    """Replace ``~`` and ``~name`` at the start of a path by home folders; in ``--out=~/run`` no shell does it.

    Args:
        path: a path as the user wrote it.

    Raises:
        SpikformerError: no user of that name, or the home folder is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SpikformerError(f"{path}: no home folder is known for {Path(path).parts[0]}, write it out") from None


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it, so that ``path`` is never half written.

    Args:
        path: the file to write; its folder is made if need be.
        write: writes the content to the path that it is given.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; an older file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers that share a folder may share process numbers too: hence the token. Writers choose a format by suffix.
    token = secrets.token_hex(4)
    temporary = path.with_name(f".tmp-{os.getpid()}-{token}-{path.name}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())  # else a power cut may leave the new name on old blocks
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file, atomically.

    Args:
        path: the file to write.
        write: writes the content to the path that it is given.

    Raises:
        SpikformerError: the folder cannot be written, or the disk is full.
    """
    try:
        write_atomically(path, write)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError of its file writer
        if isinstance(error, RuntimeError) and "file" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise SpikformerError(f"cannot write {path}: {reason}; free the disk or choose another --out") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_file(path, lambda file: file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    def write(file: Path) -> None:
        with open(file, "w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)

    write_file(path, write)
