"""A cache on disk for arrays that are expensive to make: written atomically, checked on read.

The key of an entry holds everything that determines the arrays. A cache file is a SHA-256 digest followed by a
safetensors body. The digest covers the key as well as the body, so a truncated, damaged, renamed or foreign file is
never taken for an entry; the entry is built again.
"""

import errno
import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ..atomic import expand, write_atomically
from ..errors import SpikformerError

Arrays = dict[str, np.ndarray]
# Part of every key. Increase it with every change of this package after which the same files, or the same simulation,
# give other arrays: the new code then reads no entry of the old code. Old entries stay on disk.
VERSION = 2


class CacheWarning(SpikformerError, UserWarning):
    """The cache cannot be written: a warning where work can go on without it, an error in ``data prepare``."""


class Cache:
    """A folder of cache entries.

    Args:
        name: name of the data set, which is that of the subfolder.
        data_dir: folder of the data; the cache is beside them, in ``spikformer-cache``. If nothing can be written
            there, or if it is None, the cache is in the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``).
            In a container there may be no home folder either; then nothing is kept.

    Attributes:
        strict: whether an entry that cannot be written is an error, in worker processes too.
    """

    strict = False

    def __init__(self, name: str, data_dir: Path | None):
        self.folders = [] if data_dir is None else [data_dir / "spikformer-cache" / name]
        with suppress(SpikformerError):
            self.folders.append(expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "spikformer_edu" / name)

    def get(self, key: dict[str, Any], build: Callable[[], Arrays], compress: bool = False) -> Arrays:
        """The entry of that key, built and stored when it is not there.

        Args:
            key: everything that determines the arrays, as values that JSON can hold.
            build: makes the arrays.
            compress: compress the entry; for sparse arrays.
        """
        text = json.dumps(key | {"version": VERSION}, sort_keys=True)
        file = hashlib.sha256(text.encode()).hexdigest()[:24] + (".z" if compress else ".safetensors")
        for folder in self.folders:
            arrays = _read(folder / file, text)
            if arrays is not None:
                return arrays
        arrays = {name: np.ascontiguousarray(array) for name, array in build().items()}
        self._store(file, text, arrays, compress)
        return arrays

    def clear(self) -> None:
        """Remove all entries.

        Raises:
            SpikformerError: an entry cannot be removed.
        """
        for folder in self.folders:
            for file in (*folder.glob("*.safetensors"), *folder.glob("*.z")):
                try:
                    file.unlink(missing_ok=True)  # another process may be faster
                except OSError as error:
                    raise SpikformerError(f"cannot remove {file}: {error.strerror}") from None

    def _store(self, file: str, text: str, arrays: Arrays, compress: bool) -> None:
        body = safetensors.numpy.save(arrays)
        body = zlib.compress(body, 1) if compress else body
        reason = "no home folder is known"
        for folder in self.folders:
            try:
                write_atomically(folder / file, lambda path: path.write_bytes(_digest(text, body) + body))
            except OSError as error:
                reason = f"{folder}: {error.strerror or error}"
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # the disk is full: do not fill another
                    break
            else:
                if folder != self.folders[0]:
                    warnings.warn(f"cannot write to {self.folders[0]}: the cache goes to {folder}", stacklevel=2)
                return
        lost = CacheWarning(f"no cache is kept, {reason}: free space, or set XDG_CACHE_HOME to another folder")
        if self.strict:
            raise lost
        warnings.warn(lost, stacklevel=2)


def _digest(text: str, body: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(text.encode())
    digest.update(body)
    return digest.digest()


def _read(path: Path, text: str) -> Arrays | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, body = content[:32], memoryview(content)[32:]
    if digest != _digest(text, body):
        warnings.warn(f"cache file {path} is damaged: it is built again", stacklevel=3)
        return None
    return safetensors.numpy.load(zlib.decompress(body) if path.suffix == ".z" else bytes(body))
