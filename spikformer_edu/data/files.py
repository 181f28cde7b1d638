"""Finding data on this machine, unpacking archives, listing and decoding images."""

import hashlib
import os
import shutil
import socket
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..atomic import TEMPORARY, expand
from ..errors import SpikformerError
from .base import DatasetInfo

# What torchvision's ImageFolder reads, and two more that Pillow opens.
PICTURES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
NO_CLASSES = ("spikformer-cache", "__MACOSX")  # our own folder, and what macOS adds to zip files
SCRATCH = ".spikformer-"  # how folders begin that are half done
OFFLINE = "`--dataset digits` or `--dataset digits-dvs` work without any file"


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder that data sets are looked for in: the one given, else ``$SPIKFORMER_DATA``, else ``./data``.

    Raises:
        SpikformerError: the folder that was named does not exist, or may not be read.
    """
    named = data_dir or os.environ.get("SPIKFORMER_DATA")
    folder = expand(named or "data")
    try:
        found = folder.is_dir()
    except OSError as error:  # a parent that may not be read, a name that is too long
        raise SpikformerError(f"cannot read {folder}: {error.strerror}; give another --data-dir") from None
    if named and not found:
        raise SpikformerError(f"no folder {folder}: give an existing one as --data-dir or in $SPIKFORMER_DATA")
    return folder


def places(info: DatasetInfo, data_dir: str | Path | None) -> list[Path]:
    """Where a data set may lie: in its folder of the data directory, or in the data directory itself."""
    root = data_folder(data_dir)
    return [root / info.folder, root] if info.folder else [root]


def absent(info: DatasetInfo, data_dir: str | Path | None, detail: str = "") -> SpikformerError:
    """The error that says where the data were looked for, how to get them, and what works without."""
    where = places(info, data_dir)[0].absolute()
    return SpikformerError(f"{info.name} is not in {where}{detail}: {info.obtain}; {OFFLINE}")


def class_folders(folder: Path) -> list[str]:
    """Names of the subfolders, sorted, without hidden ones; none if there is no such folder."""
    return _names(folder, folders=True)


def loose_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the files in a folder itself, sorted, without hidden ones; none if there is no such folder."""
    return [name for name in _names(folder, folders=False) if _has(name, suffixes)]


def _names(folder: Path, folders: bool) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if _counts(e.name) and e.is_dir() == folders)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SpikformerError(f"cannot read {error.filename or folder}: {error.strerror}") from None


def listing(
    folder: Path, classes: list[str] | tuple[str, ...], suffixes: tuple[str, ...]
) -> list[dict[str, os.DirEntry[str]]]:
    """The files of each class by their path inside it, in the order of torchvision's ImageFolder.

    Subfolders and links are followed. What is left out is said in one warning: files with other suffixes, hidden ones,
    and samples that lie beside the class folders or in a folder that is no class.

    Args:
        folder: the folder with the class folders.
        classes: names of the class folders.
        suffixes: how the names of samples end, in lower case.

    Raises:
        SpikformerError: a class has no folder, or no file in it, or a folder cannot be read.
    """
    found: list[dict[str, os.DirEntry[str]]] = []
    left_out: Counter[str] = Counter()
    for name in classes:
        files = {}
        try:
            for path, entry in _walk(os.path.join(folder, name)):
                if not _has(path, suffixes):
                    if _counts(entry.name):
                        left_out[os.path.splitext(path)[1].lower() or "without suffix"] += 1
                elif _counts(entry.name):
                    files[path] = entry
                elif not entry.name.startswith(("._", ".tmp-")):  # notes of macOS, and what a killed process left
                    left_out["hidden"] += 1
        except FileNotFoundError as error:
            raise SpikformerError(f"class {name!r} is missing: cannot read {error.filename}") from None
        except OSError as error:
            raise SpikformerError(f"cannot read {error.filename}: {error.strerror}") from None
        if not files:
            kinds = ", ".join(suffixes)
            raise SpikformerError(f"class {name!r} is empty: no file that ends in {kinds} in {folder / name}")
        found.append({path: files[path] for path in sorted(files, key=os.path.split)})
    left_out["outside the class folders"] = len(loose_files(folder, suffixes))
    for name in sorted(set(class_folders(folder)) - set(classes)):
        left_out[f"in {name!r}, which is not one of the classes"] = len(loose_files(folder / name, suffixes))
    left_out = +left_out  # without zeros
    if left_out:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in left_out.most_common())
        warnings.warn(f"left out in {folder}: {kinds}", stacklevel=1)
    return found


def _counts(name: str) -> bool:
    return not name.startswith(".") and name not in NO_CLASSES


def _has(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)


def _walk(folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All files in a folder and its subfolders, in any order, with their path inside it."""
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        inside, above = pending.pop()
        here = os.path.join(folder, inside) if inside else folder
        status = os.stat(here)
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise SpikformerError(f"{here} is a link to a folder that holds it: remove it")
        with os.scandir(here) as entries:
            for entry in entries:
                path = os.path.join(inside, entry.name)
                if not entry.is_dir():
                    yield path, entry
                elif _counts(entry.name):
                    pending.append((path, (*above, identity)))


def digest(files: list[dict[str, os.DirEntry[str]]]) -> str:
    """A number that changes when the name or the content of any file does.

    Raises:
        SpikformerError: a file cannot be read.
    """
    total = hashlib.sha256()
    for group in files:
        for path, entry in group.items():
            try:
                with open(entry.path, "rb") as file:
                    content = file.read()
            except OSError as error:
                raise SpikformerError(f"cannot read {entry.path}: {error.strerror}") from None
            total.update(repr((path, len(content))).encode() + content)
        total.update(b"next class")
    return total.hexdigest()


def download(url: str, md5: str, archive: Path) -> None:
    """Fetch a file; it appears under its name only when it is complete and its checksum right.

    Raises:
        SpikformerError: no network, or another file than expected.
    """
    from torchvision.datasets.utils import download_url

    patience = socket.getdefaulttimeout()
    nearest = next(parent for parent in archive.absolute().parents if parent.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=f"{SCRATCH}download-") as folder:
            socket.setdefaulttimeout(20)  # torchvision waits for ever
            download_url(url, folder, archive.name, md5)
            archive.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(folder) / archive.name, archive)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(f"{error}".split())
        raise SpikformerError(f"cannot download {archive.name} ({reason})") from None
    finally:
        socket.setdefaulttimeout(patience)


def sweep(folder: Path) -> None:
    """Remove what killed processes of ours left half done in a folder more than a day ago."""
    for path in [*folder.glob(f"{SCRATCH}*"), *folder.glob(".tmp-*")]:
        with suppress(OSError):  # another process has finished it meanwhile, or it may not be removed
            if time.time() - path.lstat().st_mtime < 86_400:
                continue
            if path.name.startswith(SCRATCH):
                shutil.rmtree(path)
            elif TEMPORARY.fullmatch(path.name):
                path.unlink()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip file into a folder, all of it or nothing; what is there already is left alone.

    Raises:
        SpikformerError: damaged, not an archive, a full disk, or a member that would leave the folder.
    """
    if not hasattr(tarfile, "data_filter"):
        raise SpikformerError(f"this Python cannot unpack {archive} safely: update it, or unpack by hand into {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=f"{SCRATCH}unpack-"))
    except OSError as error:
        raise SpikformerError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for name in file.namelist():
                    if name.startswith(("/", "\\")) or ".." in Path(name).parts or ":" in name:
                        raise SpikformerError(f"{archive} is refused: its member {name!r} would leave {folder}")
                file.extractall(scratch)
        else:
            with tarfile.open(archive) as file:
                file.extractall(scratch, filter="data")
        for path in scratch.iterdir():
            target = folder / path.name
            if os.path.lexists(target) and not target.is_dir():
                continue  # a file would be replaced; a folder that holds anything is not
            try:
                path.rename(target)
            except OSError:
                if not target.exists():  # else another process was faster, or it was there before
                    raise
    except tarfile.FilterError as error:
        raise SpikformerError(f"{archive} is refused: {error}") from None
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise SpikformerError(f"cannot unpack {archive}: {error}; fetch it again, or free space") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
