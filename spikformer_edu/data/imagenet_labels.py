"""The class of each image of ImageNet's published validation set, whose archive does not hold it."""

import io
import re
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from ..errors import SpikformerError

Labels = dict[str, str | int]  # name without suffix -> wnid, or label from 0 to 999
WNID = re.compile(r"n\d{8}")  # WordNet's number of a class; the label is its rank among them
IMAGES = 50_000
LABELS = (
    "ILSVRC2012_devkit_t12",  # the official development kit, as a folder or not
    "ILSVRC2012_devkit_t12.tar.gz",
    "LOC_val_solution.csv",  # Kaggle's
    "imagenet_2012_validation_synset_labels.txt",  # one wnid a line
    "val.txt",  # name and wnid, or name and label
)


def labels(place: Path, split: str, root: Path) -> Labels:
    """The class of each published validation image, by its name without suffix; empty if no file gives it.

    Args:
        place: the folder with train and val.
        split: name of the split; only "val" has such files.
        root: the data directory, where the files may be too.

    Raises:
        SpikformerError: a file with labels cannot be read, or does not name all validation images.
    """
    for folder in (place, place / split, root) if split == "val" else ():
        for path in (folder / name for name in LABELS):
            if not path.exists():
                continue
            try:
                found = _devkit(path) if path.name.startswith("ILSVRC2012_devkit") else _table(path)
            except (OSError, EOFError, ValueError, KeyError, TypeError, tarfile.TarError, zlib.error) as error:
                raise SpikformerError(f"{path} is no list of validation labels ({error}): fetch it again") from None
            if len(found) != IMAGES:
                raise SpikformerError(f"{path} names {len(found):,} validation images, not {IMAGES:,}: fetch it again")
            return found
    return {}


def _devkit(path: Path) -> Labels:
    """The labels in the official development kit, a folder or a tar file: its own numbers, and which wnids they are."""
    from scipy.io import loadmat  # comes with scikit-learn

    names = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
    if path.is_dir():
        meta, truth = ((path / name).read_bytes() for name in names)
    else:
        with tarfile.open(path) as tar:
            files = [tar.extractfile(f"{LABELS[0]}/{name}") for name in names]
            meta, truth = (file.read() for file in files if file is not None)
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    return {f"ILSVRC2012_val_{i:08d}": wnids[int(number)] for i, number in enumerate(truth.split(), 1)}


def _table(path: Path) -> Labels:
    """The labels in a text file, a line an image: its wnid; or its name, then its wnid or its label from 0 to 999."""
    found: Labels = {}
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        words = re.split(r"[,\s]+", line.strip())
        name = f"ILSVRC2012_val_{len(found) + 1:08d}" if len(words) == 1 else PurePosixPath(words[0]).stem
        label = words[min(1, len(words) - 1)]
        if WNID.fullmatch(label):
            found[name] = label
        elif label.isdecimal() and len(words) > 1:  # numbers alone may be those of the development kit
            found[name] = int(label)
        elif found:
            raise ValueError(f"{line!r} has no class")
    numbers = {label for label in found.values() if isinstance(label, int)}
    if numbers and numbers != set(range(1_000)):
        raise ValueError("the labels are not 0 to 999")
    return found


def unlabelled(place: Path, image: Path | str) -> SpikformerError:
    """The error that says how to get the classes of validation images."""
    return SpikformerError(
        f"nothing says which class {image} has: put ILSVRC2012_devkit_t12.tar.gz from image-net.org, or one of "
        f"{', '.join(LABELS[2:])}, into {place}, or sort the images into <wnid>/*"
    )
