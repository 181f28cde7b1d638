"""A run on disk, written so that nothing is ever half there, and read without executing anything.

config.json          recipe, network, data (class names, fingerprints), and where the run was made
metrics.csv          a row an epoch
best.safetensors     weights of the epoch with the lowest validation loss (of the last, without validation)
last.safetensors     weights of the last complete epoch
resume.pt            all that is needed to go on: weights, optimizer, position
results.json         written at the end: the accuracy on the test set, measured once
"""

import csv
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..atomic import expand, write_atomically
from ..convert import without_prefix
from ..data import Augment, DatasetInfo, Split, Splits
from ..errors import SpikformerError, nearest
from ..model import Spikformer, SpikformerConfig
from .distributed import DistributedContext
from .recipe import Recipe

PRETRAINED = Path(__file__).parents[1] / "pretrained"


@dataclass(frozen=True)
class DataRecord:
    """What a run was trained on, so that no number measured on other data is taken for its own.

    Attributes:
        dataset, title: of the data set.
        trained_on: all data sets that the network has learned from, those of the weights it started from first.
        simulated: whether any of them are simulated recordings.
        classes: class names, by output of the network.
        splits: fingerprints of "train", "val" and "test"; None where there is no such split.
    """

    dataset: str
    title: str
    trained_on: list[str]
    simulated: bool
    classes: list[str]
    splits: dict[str, dict[str, Any] | None]

    @property
    def history(self) -> str:
        """All data sets that the network has learned from, as text."""
        return ", then ".join(self.trained_on)

    def holds(self, name: str, split: Split, classes: Sequence[str]) -> bool:
        """Are these the very samples of the run's split of that name, in whatever order?"""
        own, other = self.splits[name], split.fingerprint(classes)
        return own is not None and other is not None and own["content"] == other["content"]

    def places_of(self, classes: Sequence[str]) -> list[int] | None:
        """Which output of the network stands for each of these classes; None if it was trained on other ones."""
        if list(classes) == self.classes:
            return list(range(len(self.classes)))
        if sorted(classes) != sorted(self.classes) or len(set(classes)) < len(classes):
            return None
        return [self.classes.index(name) for name in classes]


@dataclass
class Run:
    """A trained network and where it comes from.

    Attributes:
        model: in evaluation mode. recipe: how it was trained. folder: where it was read from.
        results: contents of ``results.json``; empty while the run is not finished. data: what it was trained on.
    """

    model: Spikformer
    recipe: Recipe
    folder: Path
    results: dict[str, Any]
    data: DataRecord

    def as_a_start(self, classes: Sequence[str]) -> str:
        """What a network for these classes starts from, as a line."""
        other = classes and self.data.places_of(classes) is None  # none: they are only known from files
        head = "; the head is new, for other classes" if other else ""
        return f"weights of {self.folder}, trained on {self.data.history}{head}"

    def align(self, info: DatasetInfo) -> None:
        """Bring the outputs of the network into the order of a data set's classes, in place.

        Raises:
            SpikformerError: the data set has other classes.
        """
        theirs, ours = info.num_classes, self.model.config.num_classes
        if theirs != ours:
            raise SpikformerError(
                f"{info.name} has {theirs} classes, the network {ours}: choose a data set with as many classes"
            )
        places = self.data.places_of(info.classes)
        if places is None:
            why = _difference(info.classes, self.data.classes)
            raise SpikformerError(
                f"the data set {info.name} has other classes than {self.folder} ({why}): choose one with the same"
            )
        for parameter in self.model.head.parameters():
            parameter.data = parameter.data[places]
        self.data = replace(self.data, classes=list(info.classes))


def _difference(classes: Sequence[str], others: Sequence[str]) -> str:
    """Why two lists of class names are not the same."""
    lone = sorted(set(classes) ^ set(others))
    return f"{lone[0]!r} is in one of them only" if lone else "the order is another"


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file, atomically.

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


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_file(path, lambda file: file.write_bytes(save(tensors)))  # save_file would hide it from the group


def provenance(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Where a run was made: command, commit, versions, hardware."""
    import snntorch

    from .. import __version__

    return {
        "command": " ".join(["python", "-m", "spikformer_edu.train", *sys.argv[1:]]),
        "commit": _commit(),
        "spikformer_edu": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "snntorch": snntorch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def _commit() -> str:
    """The commit of this package; empty unless it runs from a repository of its own.

    Git also answers in a repository that only happens to hold the package: as an installed one, or a copy.
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", here.parent, *arguments], capture_output=True, text=True, check=False)
        except OSError:  # no git on this machine
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    if not git("ls-files", "--error-unmatch", here.name):
        return ""
    root, project = Path(git("rev-parse", "--show-toplevel")), here.parents[2] / "pyproject.toml"
    if root != project.parent or not project.is_file() or 'name = "spikformer-edu"' not in project.read_text("utf-8"):
        return ""
    return git("rev-parse", "HEAD") + (" with local changes" if git("status", "--porcelain") else "")


def _processor() -> str:
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def load_weights(model: Spikformer, path: Path) -> None:
    """Fill a network with the weights of a safetensors file.

    Raises:
        SpikformerError: the file is missing, truncated or foreign, or its weights are another network's.
    """
    try:
        weights = load(path.read_bytes())  # load_file takes no path that is not UTF-8
    except FileNotFoundError:
        raise SpikformerError(f"no checkpoint at {path}: give a run folder, or a name of a pretrained model") from None
    except (SafetensorError, OSError) as error:
        raise SpikformerError(f"{path} is no whole safetensors file: {error}") from None
    _fill(model, without_prefix(weights, "sps.0.conv.weight", path), path)


def _fill(model: Spikformer, weights: dict[str, Tensor], source: str | Path) -> None:
    own = model.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        where = "lacks" if name in own else "has"
        raise SpikformerError(f"{source} is a checkpoint of another model: it {where} {name!r}")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            shapes = f"{list(tensor.shape)} there, {list(own[name].shape)} in the model"
            raise SpikformerError(f"{source} is a checkpoint of another model: {name!r} is {shapes}")
    model.load_state_dict(weights)


def read_config(folder: Path) -> tuple[Recipe, SpikformerConfig]:
    """The recipe and the network of a run folder.

    Raises:
        SpikformerError: no run there, or its ``config.json`` is broken.
    """
    return _read_config(folder)[:2]


def _read_config(folder: Path) -> tuple[Recipe, SpikformerConfig, DataRecord]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
        recipe = content["recipe"]
        return (
            Recipe(**recipe | {"augment": Augment(**recipe["augment"])}),
            SpikformerConfig(**content["network"]),
            DataRecord(**content["data"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        raise SpikformerError(f"no run at {folder}: config.json is missing; give the folder that train wrote") from None
    except KeyError as error:
        raise SpikformerError(f"{path} has no {error}: it is broken, or another version wrote it") from None
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, SpikformerError):
            raise
        raise SpikformerError(f"{path} is broken: {error}") from None


def load_run(run: str | Path, which: str = "best") -> Run:
    """Load a trained network; it is float32, as it was trained, whatever PyTorch's default is.

    Args:
        run: a run folder, or the name of a pretrained model of the package.
        which: "best" or "last" weights.

    Raises:
        SpikformerError: no run there, or its files are broken or do not belong together.
    """
    folder = expand(run)
    if not os.path.exists(folder) and os.path.isdir(PRETRAINED / folder):
        folder = PRETRAINED / folder
    recipe, network, data = _read_config(folder)
    model = Spikformer(network).float()
    load_weights(model, folder / f"{which}.safetensors")
    results = folder / "results.json"
    try:
        content = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    except ValueError as error:
        raise SpikformerError(f"{results} is broken: {error}") from None
    return Run(model.eval(), recipe, folder, content, data)


def start_from(model: Spikformer, run: str | Path, classes: Sequence[str]) -> Run:
    """Fill a network with what a trained one has learned, in place.

    Neurons have no weights for single time steps, so T may differ. The head is taken over for the same classes, in any
    order; for others it stays as it is. All attention variants have the same tensors, so another one is accepted: it
    starts from weights that were learned for the first.

    Args:
        model: the network to be filled.
        run: a run folder, or the name of a pretrained model of the package.
        classes: class names of the data set that the network is for, by label.

    Returns:
        The run that the weights come from.

    Raises:
        SpikformerError: no run there, or its network has other sizes.
    """
    trained = load_run(run)
    weights, places = trained.model.state_dict(), trained.data.places_of(classes)
    for name, own in model.state_dict().items():
        if name.startswith("head."):
            weights[name] = own if places is None else weights[name][places]
    _fill(model, weights, run)
    return trained


def load_pretrained(name: str) -> Spikformer:
    """A trained network that comes with the package, in evaluation mode.

    Args:
        name: a preset for which weights are packaged, for example "digits-2-64".

    Raises:
        SpikformerError: no weights for that name; the line names those there are.
    """
    names = sorted(folder.name for folder in PRETRAINED.iterdir() if folder.is_dir())
    if name not in names:
        raise SpikformerError(f"no pretrained weights for {name!r}: {nearest(name, names)}")
    return load_run(PRETRAINED / name).model


def describe_data(splits: Splits, before: Run | None = None) -> DataRecord:
    """What ``config.json`` says of the data.

    Args:
        splits: what the network is trained, validated and tested on.
        before: the run whose weights it starts from.

    Raises:
        SpikformerError: a file of the data set cannot be read.
    """
    info = splits.info
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    earlier = before.data.trained_on if before else []
    return DataRecord(
        info.name,
        info.title,
        [*(name for name in earlier if name != info.label), info.label],
        info.simulated or (before is not None and before.data.simulated),
        list(info.classes),
        {name: None if split is None else split.fingerprint(info.classes) for name, split in parts.items()},
    )


def same_data(folder: Path, data: DataRecord) -> DataRecord:
    """What the run in a folder says of its data, if the data here are the same, in the same order.

    Raises:
        SpikformerError: they are not; the line says in what they differ.
    """
    own = _read_config(folder)[2]
    what = None
    if own.title != data.title:
        what = f"{own.title}, not {data.title}"
    elif own.classes != data.classes:
        what = f"other classes ({_difference(own.classes, data.classes)})"
    elif own.splits != data.splits:
        name = next(name for name in own.splits if own.splits[name] != data.splits[name])
        there, here = own.splits[name], data.splits[name]
        there_are, here_are = (f"{part['samples']:,}" if part else "none" for part in (there, here))
        what = f"other {name} samples ({there_are} there, {here_are} here)"
        if there and here and there["content"] == here["content"]:
            what = f"the same {name} samples in another order"
    if what is not None:
        raise SpikformerError(f"{folder} holds a run on {what}: give its data as --data-dir, or another --out")
    return own


def describe(
    recipe: Recipe, network: SpikformerConfig, context: DistributedContext, data: DataRecord
) -> dict[str, Any]:
    """What ``config.json`` holds."""
    return {
        "recipe": asdict(recipe),
        "network": asdict(network),
        "data": asdict(data),
        "provenance": provenance(context.device, context.world),
    }
