"""``python -m spikformer_edu.data``: list data sets, prepare them, simulate event recordings, write down a split."""

import csv
import hashlib
import io
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from tqdm import tqdm

from . import cli
from .atomic import expand, write_atomically, write_file
from .data import MODULES, PAPER, Absent, batches, cifar10dvs, count, event_folder, info, load, local_info
from .data.cache import Cache, CacheWarning
from .data.events import write_events
from .data.files import data_folder, places, sweep
from .data.images import Images
from .data.recordings import Recordings
from .data.simulated_camera import simulate
from .data.workers import readers
from .errors import SpikformerError, nearest, printable

FORMATS = ("aedat4", "npz")
SOURCES = ("digits", "cifar10")
OWN = ("folder", "event-folder")  # what the user brings


@dataclass(frozen=True)
class Info:
    """Print the facts about the data sets, and which of them are on this machine."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Data set; all of them unless given."""
    data_dir: Path | None = None
    """Where data sets are; else $SPIKFORMER_DATA, else ./data."""
    figure: Path | None = None
    """Also draw samples, before and after the paper's augmentation, into this file."""


@dataclass(frozen=True)
class Prepare:
    """Download or unpack a data set, read every sample of it once, and keep what training would have to compute."""

    name: Annotated[str, tyro.conf.Positional]
    """Data set."""
    data_dir: Path | None = None
    """Where data sets are; else $SPIKFORMER_DATA, else ./data."""
    time_steps: int | None = None
    """Number T of event frames."""
    image_size: int | None = None
    """Height and width of event frames."""
    frames: str | None = None
    """What event frames are equal in: count, or time."""
    sensor: str | None = None
    """Width and height of the camera's sensor, such as 346x260, where event recordings do not state it."""
    workers: int = 0
    """Processes that read; 0: this one."""
    force: bool = False
    """Delete the cache of this data set and compute it again: for files that changed while size and time did not."""


@dataclass(frozen=True)
class Simulate:
    """Write simulated recordings of a moving image in front of an event camera, laid out as CIFAR10-DVS is."""

    out: Path
    """Folder that will hold CIFAR10DVS/<class>/*; train on it with --dataset cifar10dvs --data-dir OUT."""
    source: str = "digits"
    """digits, or cifar10 (its training images, downloaded if they are not on this machine)."""
    per_class: int = 20
    """Recordings of each class."""
    format: str = "aedat4"
    """aedat4 (needs dv-processing), or npz."""
    seed: int = 0
    """Fixes camera and noise."""
    data_dir: Path | None = None
    """Where cifar10 is; else $SPIKFORMER_DATA, else ./data."""


@dataclass(frozen=True)
class Split:
    """Write which recordings are trained, validated and tested on, each with its SHA-256, for others to compare."""

    name: Annotated[str, tyro.conf.Positional]
    """Data set of event recordings on this machine."""
    out: Path
    """CSV file to write: part, class, file, sha256."""
    data_dir: Path | None = None
    """Where data sets are; else $SPIKFORMER_DATA, else ./data."""
    split_seed: int | None = None
    """Seed of another split than the usual one."""
    val_fraction: float | None = None
    """Share of the training set that is kept for validation."""


def main(command: Info | Prepare | Simulate | Split) -> None:
    """List data sets, prepare one for training, simulate event recordings, or write down a split."""
    if isinstance(command, Info):
        show(command)
    elif isinstance(command, Prepare):
        prepare(command)
    elif isinstance(command, Split):
        write_split(command)
    else:
        write(command)


def show(command: Info) -> None:
    """Print the facts about one data set, or one line for each of them."""
    if command.name is None:
        if command.figure is not None:
            raise SpikformerError("--figure draws one data set: give its name")
        root = data_folder(command.data_dir).absolute()
        print(f"{'data set':<12} {'classes':>7}  {'input':<14} {'T':>2}  {'model':<17} on this machine")
        for name in MODULES:
            facts = info(name)
            size = f"{facts.channels} x {facts.image_size} x {facts.image_size}"
            classes, steps = facts.num_classes or "any", facts.time_steps or ""
            there = "your own, as --data-dir" if name in OWN else present(name, command.data_dir)
            print(f"{name:<12} {classes:>7}  {size:<14} {steps:>2}  {facts.default_model:<17} {there}")
        print(f"looked for in {root}")
        return
    facts = local_info(command.name, command.data_dir)
    lines = {
        "title": facts.title,
        "classes": f"{facts.num_classes:,}" if facts.num_classes else "those of the folder",
        "": ", ".join(facts.classes) if len(facts.classes) <= 11 else "",
        "input": f"{facts.channels} x {facts.image_size} x {facts.image_size}"
        + (f", T = {facts.time_steps} frames of equal event count" if facts.time_steps else ""),
        "mean": ", ".join(f"{m:.4f}" for m in facts.mean),
        "std": ", ".join(f"{s:.4f}" for s in facts.std),
        "samples": ", ".join(f"{n:,} {split}" for split, n in facts.samples.items()),
        "model": facts.default_model,
        "looked for": str(places(facts, command.data_dir)[0].absolute()) if facts.folder else "",
        "obtain": facts.obtain,
        "licence": facts.licence,
        "cite": facts.citation,
        "here": present(command.name, command.data_dir),
    }
    for label, text in lines.items():
        if text:
            print(f"{label:<11} {printable(text)}")
    if command.name == "event-folder":
        for line in event_folder.examine(command.data_dir).lines():
            print(printable(line))
    if command.figure is not None:
        draw(command.name, command.data_dir, command.figure)


def present(name: str, data_dir: Path | None) -> str:
    """How many samples are on this machine, or that there are none."""
    if info(name).folder is None and name not in OWN:  # digits
        return f"always: needs no files{', simulated' if info(name).simulated else ''}"
    try:
        counts = count(name, data_dir)
    except SpikformerError as error:
        return f"incomplete: {error}"
    return ", ".join(f"{n:,} {split}" for split, n in counts.items()) or "no"


def draw(name: str, data_dir: Path | None, file: Path) -> None:
    """Samples of a data set, before and after the paper's augmentation, as a figure."""
    from .plot.samples import samples

    splits = load(name, data_dir, augment=PAPER.get(name))
    split = splits.test if isinstance(splits.train, Absent) else splits.train
    figure, _ = samples(split, splits.info)
    try:
        figure.savefig(file, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise SpikformerError(f"cannot write {file}: {error}") from None
    print(f"drew {file}")


def prepare(command: Prepare) -> None:
    """Read every sample once: this unpacks archives, fills the cache, and finds a broken file before training does."""
    facts = info(command.name)
    for folder in (*places(facts, command.data_dir), *Cache(facts.name, places(facts, command.data_dir)[-1]).folders):
        sweep(folder)
    if command.force:
        Cache(facts.name, places(facts, command.data_dir)[-1]).clear()
    absent, steps_back = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)  # the command is there to fill the cache
        splits = load(
            command.name,
            command.data_dir,
            time_steps=command.time_steps,
            image_size=command.image_size,
            frames=command.frames,
            sensor=command.sensor,
        )
        for name, split in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
            if split is None:
                continue
            if isinstance(split, Recordings):
                if split.cache is not None:
                    split.cache.strict = True  # the filter does not reach the processes that read
                steps_back.append(split.steps_back)
                if command.workers:
                    split.steps_back.share_memory_()  # they count into it
            if isinstance(split, Absent):
                print(f"{name}: none ({split.reason.split(':')[0]})")
                absent.append(name)
                continue
            with tqdm(total=len(split), desc=f"{command.name} {name}", unit="sample", disable=None) as bar:
                with readers():
                    # Few at a time: an interrupt waits for those under way, and eight readers of ImageNet fill 40 MB.
                    for inputs, targets in batches(split, 4, workers=command.workers):
                        if not inputs.isfinite().all():
                            raise SpikformerError(f"{command.name} {name}: a sample is not finite")
                        bar.update(len(targets))
            smallest = int(split.targets.bincount(minlength=splits.info.num_classes).min())
            print(f"{name}: {len(split):,} samples read, at least {smallest:,} of each class")
    if steps_back and (total := int((counts := torch.cat(steps_back)).sum())):
        print(f"time stamps that go back: {total:,}, in {int((counts > 0).sum()):,} of {len(counts):,} recordings;"
              " events stay in the order of the file")  # fmt: skip
    print(f"{splits.info.label} is ready" + (f", but training needs {' and '.join(absent)} too" if absent else ""))


def write_split(command: Split) -> None:
    """Write the split of a data set as a file."""
    splits = load(command.name, command.data_dir, split_seed=command.split_seed, val_fraction=command.val_fraction)
    rows = [("part", "class", "file", "sha256")]
    for part, split in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if isinstance(split, Recordings):
            rows += split.rows(part, splits.info.classes)
        elif split is not None:
            raise SpikformerError(f"{command.name} has no files of recordings: give a data set of event recordings")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    content = text.getvalue().encode("utf-8", "surrogateescape")
    write_file(expand(command.out), lambda file: file.write_bytes(content))
    digest = hashlib.sha256(content).hexdigest()
    print(f"{len(rows) - 1:,} recordings of {splits.info.label} in {command.out}, SHA-256 of that file: {digest}")


def write(command: Simulate) -> None:
    """Simulate recordings and write them, each file atomically."""
    for value, options, what in ((command.source, SOURCES, "source"), (command.format, FORMATS, "format")):
        if value not in options:
            raise SpikformerError(f"unknown {what} {value!r}: {nearest(value, options)}")
    if command.per_class < 2:
        raise SpikformerError(f"per_class={command.per_class}: give at least 2, one to train on and one to test")
    if command.seed < 0:
        raise SpikformerError(f"seed={command.seed}: give 0 or more")
    folder = command.out / "CIFAR10DVS"
    label = (
        f"Simulated: {command.source} images moved in front of a modelled event camera, seed {command.seed}.\n"
        f"{command.per_class} recordings of each class, as {command.format}.\n"
        "No camera recorded these files. Made by: python -m spikformer_edu.data simulate\n"
    )
    if folder.exists() and not (folder / cifar10dvs.LABEL).exists():
        raise SpikformerError(f"{folder} exists and holds no simulated recordings: give another --out")
    if folder.exists() and (folder / cifar10dvs.LABEL).read_text(encoding="utf-8") != label:
        raise SpikformerError(
            f"{folder} holds simulated recordings of another source, seed, number or format: give another --out"
        )
    pictures, targets, names = sources(command)
    try:
        write_atomically(folder / cifar10dvs.LABEL, lambda file: file.write_text(label, encoding="utf-8"))
    except OSError as error:
        raise SpikformerError(f"cannot write to {folder}: {error.strerror}") from None
    for name in names:
        sweep(folder / name)
    total = 0
    for i in tqdm(range(len(pictures)), desc="simulating", unit="recording", disable=None):
        name, number = names[targets[i]], i % command.per_class
        (events,) = simulate(pictures[i][None], [(100 * command.seed + int(targets[i])) * 1_000_000 + number])
        write_events(folder / name / f"{command.source}_{name}_{number:04d}.{command.format}", events)
        total += len(events)
    print(f"{len(pictures):,} simulated recordings of {total // len(pictures):,} events on average in {folder}")
    print(f"train on them with {shlex.join(['--dataset', 'cifar10dvs', '--data-dir', str(command.out)])}")


def sources(command: Simulate) -> tuple[torch.Tensor, np.ndarray, tuple[str, ...]]:
    """The images to move ``[n, H, W]`` in [0, 1], class by class, their labels, and class names."""
    if command.source == "digits":
        from .data.digits_dvs import images

        pictures, targets = images()
    else:
        split = load("cifar10", command.data_dir).train
        assert isinstance(split, Images)  # CIFAR-10 is kept in memory
        pictures, targets = split.pixels, split.targets
    parts = [(targets == label).nonzero().squeeze(1)[: command.per_class] for label in range(10)]
    fewest = min(len(part) for part in parts)
    if fewest < command.per_class:
        raise SpikformerError(f"per_class={command.per_class}: {command.source} has {fewest} images of one class")
    chosen = torch.cat(parts)
    pictures = pictures[chosen]
    if command.source == "cifar10":
        pictures = pictures.float().mean(1) / 255  # of the chosen alone
    return pictures, targets[chosen].numpy(), info(command.source).classes


if __name__ == "__main__":
    cli.run(main, "python -m spikformer_edu.data")
