"""A run on disk, written so that nothing is ever half there, and read without executing anything.

config.json          recipe, network, and where the run was made
metrics.csv          a row an epoch
best.safetensors     weights of the epoch with the lowest validation loss (of the last, without validation)
last.safetensors     weights of the last complete epoch
resume.pt            all that is needed to go on: weights, optimizer, position
results.json         written at the end: the accuracy on the test set, measured once
"""

import csv
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..atomic import write_atomically
from ..convert import without_prefix
from ..data import Augment
from ..errors import SpikformerError, nearest
from ..model import Spikformer, SpikformerConfig
from .distributed import Place
from .recipe import Recipe

PRETRAINED = Path(__file__).parents[1] / "pretrained"


@dataclass
class Run:
    """A trained network and where it comes from.

    Attributes:
        model: in evaluation mode. recipe: how it was trained. folder: where it was read from.
        results: contents of ``results.json``; empty while the run is not finished.
    """

    model: Spikformer
    recipe: Recipe
    folder: Path
    results: dict[str, Any]


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
    write_file(path, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    def write(file: Path) -> None:
        with open(file, "w", newline="") as handle:
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
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def load_weights(model: Spikformer, path: Path) -> None:
    """Fill a network with the weights of a safetensors file.

    Raises:
        SpikformerError: the file is missing, truncated or foreign, or its weights are another network's.
    """
    try:
        weights = load_file(path)
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
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
        recipe = content["recipe"]
        return Recipe(**recipe | {"augment": Augment(**recipe["augment"])}), SpikformerConfig(**content["network"])
    except (FileNotFoundError, NotADirectoryError):
        raise SpikformerError(f"no run at {folder}: config.json is missing; give the folder that train wrote") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, SpikformerError):
            raise
        raise SpikformerError(f"{path} is broken: {error}") from None


def load_run(run: str | Path, weights: str = "best") -> Run:
    """Load a trained network; it is float32, as it was trained, whatever PyTorch's default is.

    Args:
        run: a run folder, or the name of a pretrained model of the package.
        weights: "best" or "last".

    Raises:
        SpikformerError: no run there, or its files are broken or do not belong together.
    """
    folder = Path(run)
    if not folder.exists() and (PRETRAINED / folder).is_dir():
        folder = PRETRAINED / folder
    recipe, network = read_config(folder)
    model = Spikformer(network).float()
    load_weights(model, folder / f"{weights}.safetensors")
    results = folder / "results.json"
    try:
        content = json.loads(results.read_text()) if results.exists() else {}
    except ValueError as error:
        raise SpikformerError(f"{results} is broken: {error}") from None
    return Run(model.eval(), recipe, folder, content)


def start_from(model: Spikformer, run: str | Path) -> None:
    """Fill a network with what a trained one has learned, in place.

    Neurons have no weights for single time steps, so T may differ. A head for another number of classes stays as it is.
    All attention variants have the same tensors, so another one is accepted: it starts from weights that were learned
    for the first.

    Args:
        run: a run folder, or the name of a pretrained model of the package.

    Raises:
        SpikformerError: no run there, or its network has other sizes.
    """
    trained = load_run(run).model
    weights = trained.state_dict()
    if trained.config.num_classes != model.config.num_classes:
        weights |= {name: value for name, value in model.state_dict().items() if name.startswith("head.")}
    _fill(model, weights, run)


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


def describe(recipe: Recipe, network: SpikformerConfig, place: Place) -> dict[str, Any]:
    """What ``config.json`` holds."""
    return {"recipe": asdict(recipe), "network": asdict(network), "provenance": provenance(place.device, place.world)}
