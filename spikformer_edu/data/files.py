"""Finding data on this machine, unpacking archives, listing and decoding images."""

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from ..atomic import TEMPORARY, expand
from ..errors import SpikformerError
from .base import DatasetInfo

# What torchvision's ImageFolder reads, and two more that Pillow opens.
PICTURES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
NO_CLASSES = ("spikformer-cache", "__MACOSX")  # our own folder, and what macOS adds to zip files
SCRATCH = ".spikformer-"  # prefix of folders that are not finished yet
OFFLINE = "`--dataset digits` or `--dataset digits-dvs` work without any file"


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder to look in for data sets.

    Args:
        data_dir: the folder; None: ``$SPIKFORMER_DATA``, else ``./data``.

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
    """The places where a data set may be: its folder in the data directory, or the data directory itself."""
    root = data_folder(data_dir)
    return [root / info.folder, root] if info.folder else [root]


def absent(info: DatasetInfo, data_dir: str | Path | None, detail: str = "") -> SpikformerError:
    """The error that says where data were looked for, how to get them, and which data sets need no files."""
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

    Subfolders and links are followed. One warning says what is left out: files with other suffixes, hidden files, and
    samples beside the class folders or in a folder that is not a class.

    Args:
        folder: the folder with the class folders.
        classes: names of the class folders.
        suffixes: suffixes of the samples' names, in lower case.

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
                elif not entry.name.startswith(("._", ".tmp-")):  # files of macOS, and of killed processes
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
    """A hash that changes when the name or the content of any file does.

    Args:
        files: the files of each class, as ``listing`` returns them.

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
    """Download a file, with progress; it gets its name only when it is complete and its checksum is right.

    What an interrupted download left is kept, and the next one goes on from there if the server can.

    Args:
        url: address of the file.
        md5: its MD5 checksum, in hexadecimal.
        archive: path to write it to.

    Raises:
        SpikformerError: no network, or another file than expected.
    """
    partial = archive.with_name(f"{archive.name}.part")
    own = archive.with_name(f"{SCRATCH}download-{os.getpid()}-{archive.name}")
    try:
        with suppress(OSError):
            os.replace(partial, own)  # another process that downloads it too begins anew, beside this one
        _download(url, own, archive.name)
        if _md5(own) != md5:
            own.unlink()
            raise SpikformerError("the file is another than expected: its checksum is wrong")
        os.replace(own, archive)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise SpikformerError(f"cannot download {archive.name} ({reason})") from None
    finally:
        with suppress(OSError):
            os.replace(own, partial)


def _download(url: str, path: Path, name: str) -> None:
    """Add to a file what it lacks of the one at an address."""
    start = path.stat().st_size if path.is_file() else 0
    headers = {"User-Agent": "spikformer-edu"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # there is nothing after what is here
            return
        raise
    with response:
        if getattr(response, "status", None) != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(path, "ab" if start else "wb") as file,
            tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := response.read(2**20):
                file.write(block)
                bar.update(len(block))
    if total is not None and path.stat().st_size < total:
        raise OSError(f"the connection ended after {path.stat().st_size:,} of {total:,} bytes; try again to go on")


def _md5(path: Path) -> str:
    total = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()


def sweep(folder: Path) -> None:
    """Remove temporary files of our own that a killed process left in a folder more than a day ago."""
    for path in [*folder.glob(f"{SCRATCH}*"), *folder.glob(".tmp-*")]:
        with suppress(OSError):  # another process has finished it meanwhile, or it may not be removed
            if time.time() - path.lstat().st_mtime < 86_400:
                continue
            if path.name.startswith(SCRATCH):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif TEMPORARY.fullmatch(path.name):
                path.unlink()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip file into a folder, all of it or nothing; existing files are left alone.

    Args:
        archive: the tar or zip file.
        folder: the folder to unpack into; made if need be.

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
                continue  # rename() would replace a file, though not a folder with content
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
