"""Finding data on this machine, unpacking archives, listing and decoding images."""

import hashlib
import io
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

import numpy as np
import torch
from torch import Tensor

from ..atomic import TEMPORARY, expand
from ..errors import SpikformerError
from .augment import Augment, augment_images, uniform
from .base import DatasetInfo, Split, digests

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
) -> list[dict[str, os.DirEntry]]:
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
    found, left_out = [], Counter()
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


def _walk(folder: str) -> Iterator[tuple[str, os.DirEntry]]:
    """All files in a folder and its subfolders, in any order, with their path inside it."""
    pending: list[tuple[str, tuple]] = [("", ())]
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


def digest(files: list[dict[str, os.DirEntry]]) -> str:
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


def decode(content: str | Path | io.BytesIO, name: str):
    """An image file as an RGB picture of Pillow's.

    What is transparent shows white paper, 16-bit grey keeps its upper 8 bits (Pillow does so with 16-bit colour), and
    the orientation that a camera notes (EXIF) is ignored.

    Args:
        content: path or open file. name: what an error calls it.

    Raises:
        SpikformerError: it is not an image, or only part of one.
    """
    from PIL import Image

    try:
        image = Image.open(content)
        if image.mode in ("I", "F"):
            raise ValueError("32-bit pixels, whose white is unknown: save it with 8 or 16 bits")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        raise SpikformerError(f"{name} is no readable image ({reason}): replace or remove it") from None


class Images(Split):
    """Images kept in memory as one array, on any device.

    Args:
        pixels: ``[n, C, H, W]``, uint8. targets: ``[n]``. info: its mean and std normalise.
    """

    def __init__(self, pixels: Tensor, targets: Tensor, info: DatasetInfo, augment: Augment | None):
        self.pixels, self.targets, self.info, self.augment = pixels, targets, info, augment
        self.device = pixels.device

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        indices = indices.to(self.device, non_blocking=True)
        images = augment_images(self.pixels[indices], self.augment, self.info.mean, self.info.std, generator)
        return images, self.targets[indices]

    def keys(self) -> list[bytes]:
        return digests(self.pixels)

    def to(self, device: torch.device | str) -> "Images":
        return Images(self.pixels.to(device), self.targets.to(device), self.info, self.augment)


class Pictures(Split):
    """Photographs of any size, read from files (or from inside tar files) when they are needed.

    Args:
        folder: what ``names`` are relative to. names: ``[n]`` paths, as bytes: a million Python strings would be
            copied into every worker. targets: ``[n]``. image_size: height and width of what the network sees.
        ranges: ``[n, 2]``, first byte and length inside the file; None: whole files.
    """

    def __init__(
        self,
        folder: Path,
        names: np.ndarray,
        targets: Tensor,
        info: DatasetInfo,
        augment: Augment | None,
        ranges: np.ndarray | None = None,
    ):
        self.folder, self.names, self.ranges = folder.absolute(), names, ranges
        self.targets, self.info, self.augment = targets, info, augment

    def fetch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        images = torch.stack([self._read(int(i), generator) for i in indices])  # [B, C, H, W]
        return augment_images(images, self.augment, self.info.mean, self.info.std, generator), self.targets[indices]

    def keys(self) -> list[bytes]:
        names = self.names.tolist()
        if self.ranges is None:
            return names
        return [b"%s %d" % (name, start) for name, start in zip(names, self.ranges[:, 0].tolist(), strict=True)]

    def read(self, index: int) -> bytes:
        path = self.folder / os.fsdecode(self.names[index])
        try:
            return path.read_bytes() if self.ranges is None else member(path, *self.ranges[index])[0].getvalue()
        except OSError as error:
            raise SpikformerError(f"cannot read {path}: {error.strerror}") from None

    def _read(self, index: int, generator: torch.Generator | None) -> Tensor:
        from torchvision.transforms.v2 import InterpolationMode, functional

        path = self.folder / os.fsdecode(self.names[index])
        if self.ranges is None:
            image = decode(path, str(path))
        else:
            image = decode(*member(path, *self.ranges[index]))
        size = self.info.image_size
        if generator is None or self.augment is None:  # the square in the middle
            side = min(image.size)
            box = (image.height - side) // 2, (image.width - side) // 2, side, side
        else:
            box = crop_box(*image.size, self.augment.crop_area, generator)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return functional.resized_crop(
            pixels, *box, [size, size], InterpolationMode.BICUBIC, antialias=True
        ).contiguous()


def member(path: Path, start: int, length: int) -> tuple[io.BytesIO, str]:
    """A file inside a tar file, and what an error calls it.

    Raises:
        SpikformerError: the tar file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            file.seek(int(start))
            return io.BytesIO(file.read(int(length))), f"{path} (bytes {start} to {start + length})"
    except OSError as error:
        raise SpikformerError(f"cannot read {path}: {error.strerror}") from None


def crop_box(
    width: int, height: int, area: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """A window at random, of that share of the area and an aspect ratio of 3/4 to 4/3: top, left, height, width.

    With an area of 1 nothing but the whole picture fits, or the largest middle part within these ratios.
    """
    for share, ratio, x, y in uniform(10, 4, generator=generator).tolist():
        size = width * height * (area[0] + (area[1] - area[0]) * share)
        aspect = (3 / 4) * (16 / 9) ** ratio
        wide, tall = round((size * aspect) ** 0.5), round((size / aspect) ** 0.5)
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(x * (width - wide + 1)), int(y * (height - tall + 1))
            return top, left, tall, wide
    wide, tall = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def check_size(image_size: int | None, default: int) -> int:
    """The image size asked for.

    Raises:
        SpikformerError: below 8 pixels.
    """
    if image_size is not None and image_size < 8:
        raise SpikformerError(f"image_size={image_size}: give at least 8 pixels")
    return image_size or default


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
