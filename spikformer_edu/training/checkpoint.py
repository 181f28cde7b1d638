"""A run on disk: every file is written atomically, and reading one executes no code.

config.json          recipe, network, data (class names, fingerprints), how and where the run was computed
metrics.csv          a row an epoch
best.safetensors     weights of the epoch with the lowest validation loss (of the last, without validation)
last.safetensors     weights of the last complete epoch
resume.pt            all that is needed to go on: weights, optimizer, position
results.json         written at the end: the accuracy on the test set, measured once, and the seconds of an unbroken run
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..atomic import expand, write_file
from ..convert import without_prefix
from ..data import Augment, DatasetInfo
from ..errors import SpikformerError, nearest
from ..model import Spikformer, SpikformerConfig
from ..provenance import provenance
from .data_record import DataRecord, difference
from .distributed import DistributedContext
from .recipe import Recipe

PRETRAINED = Path(__file__).parents[1] / "pretrained"


@dataclass
class Run:
    """A trained network and where it comes from.

    Attributes:
        model: the network, in evaluation mode.
        recipe: the recipe that it was trained with.
        folder: the run folder that it was read from.
        results: content of ``results.json``; empty while the run is not finished.
        data: the record of the data that it was trained on.
    """

    model: Spikformer
    recipe: Recipe
    folder: Path
    results: dict[str, Any]
    data: DataRecord

    def as_a_start(self, classes: Sequence[str]) -> str:
        """One line for the log of a run that starts from these weights.

        Args:
            classes: class names of the new network, by label; empty until they are read from files.
        """
        other = classes and self.data.places_of(classes) is None
        head = "; the head is new, for other classes" if other else ""
        return f"weights of {self.folder}, trained on {self.data.history}{head}"

    def align(self, info: DatasetInfo) -> None:
        """Bring the outputs of the network into the order of a data set's classes, in place.

        Args:
            info: the facts about the data set.

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
            why = difference(info.classes, self.data.classes)
            raise SpikformerError(
                f"the data set {info.name} has other classes than {self.folder} ({why}): choose one with the same"
            )
        for parameter in self.model.head.parameters():
            parameter.data = parameter.data[places]
        self.data = replace(self.data, classes=list(info.classes))


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_file(path, lambda file: file.write_bytes(save(tensors)))  # save_file would make it unreadable to others


def load_weights(model: Spikformer, path: Path) -> None:
    """Fill a network with the weights of a safetensors file.

    Args:
        model: the network to fill.
        path: the file.

    Raises:
        SpikformerError: the file is missing, truncated or foreign, or its weights are those of another network.
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


def read_config(folder: Path) -> tuple[Recipe, SpikformerConfig, DataRecord]:
    """The recipe, the network and the data of a run folder.

    Args:
        folder: the run folder.

    Raises:
        SpikformerError: no run there, or its ``config.json`` is broken.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a byte-order mark
        recipe = content["recipe"]
        return (
            Recipe(**recipe | {"augment": Augment(**recipe["augment"])}),
            SpikformerConfig(**_without_former_options(content["network"], path)),
            DataRecord(**content["data"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        raise SpikformerError(f"no run at {folder}: config.json is missing; give the folder that train wrote") from None
    except KeyError as error:
        raise SpikformerError(f"{path} has no {error}: it is broken, or another version wrote it") from None
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, SpikformerError):
            raise
        if unknown := re.search(r"unexpected keyword argument ('\w+')", str(error)):
            raise SpikformerError(
                f"{path} has {unknown[1]}, which this version does not know: another version wrote it, train again"
            ) from None
        raise SpikformerError(f"{path} is broken: {error}") from None


def _without_former_options(network: dict[str, Any], path: Path) -> dict[str, Any]:
    """The options of a network without those that earlier versions had and left off."""
    for option in ("learn_beta", "learn_threshold"):
        if network.get(option):
            raise SpikformerError(f"{path} has {option}=true, which this version cannot build: train with neuron=plif")
    return {name: value for name, value in network.items() if name not in ("learn_beta", "learn_threshold")}


def load_run(run: str | Path, which: str = "best") -> Run:
    """Load a trained network, in float32 independent of PyTorch's default dtype.

    Args:
        run: a run folder, or the name of a pretrained model of the package.
        which: weights to load: "best" or "last".

    Raises:
        SpikformerError: no run there, or its files are broken or do not belong together.
    """
    folder = expand(run)
    if not os.path.exists(folder) and os.path.isdir(PRETRAINED / folder):
        folder = PRETRAINED / folder
    recipe, network, data = read_config(folder)
    model = Spikformer(network).float()
    load_weights(model, folder / f"{which}.safetensors")
    results = folder / "results.json"
    try:
        content = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    except ValueError as error:
        raise SpikformerError(f"{results} is broken: {error}") from None
    return Run(model.eval(), recipe, folder, content, data)


def start_from(model: Spikformer, run: str | Path, classes: Sequence[str]) -> Run:
    """Fill a network with the weights of a trained one, in place.

    Neurons have no weights for single time steps, so T may differ. The head is taken over for the same classes, in any
    order; for other classes it stays as it is. All attention with Q, K and V has the same tensors, so the attention may
    differ too; Q-K attention has fewer, PLIF neurons have one more.

    Args:
        model: the network to fill.
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
        name: a preset for which weights are packaged: "digits-2-64" (a toy, which needs no files), "digits-dvs-2-64"
            and "digits-motion-2-64" (trained on simulated events), "cifar10-4-384" (the paper's network for CIFAR-10)
            or "cifar10-2-128" (a smaller one).

    Raises:
        SpikformerError: no weights for that name; the line lists the names.

    Examples:
        >>> import torch, spikformer_edu as se
        >>> model = se.load_pretrained("digits-2-64")
        >>> images, labels = se.data.load("digits").test.fetch(torch.arange(5), None)
        >>> model(images).argmax(1), labels
        (tensor([1, 3, 4, 5, 8]), tensor([1, 3, 4, 5, 8]))
    """
    names = sorted(folder.name for folder in PRETRAINED.iterdir() if folder.is_dir())
    if name not in names:
        raise SpikformerError(f"no pretrained weights for {name!r}: {nearest(name, names)}")
    return load_run(PRETRAINED / name).model


def linear_as_convolution(folder: Path) -> bool:
    """Whether a run computes its linear maps as convolutions, see ``kernels/linear.py``; without an entry it does not.

    Args:
        folder: the run folder, with a whole ``config.json``.
    """
    return bool(json.loads((folder / "config.json").read_text(encoding="utf-8-sig")).get("linear_as_convolution"))


def describe(
    recipe: Recipe, network: SpikformerConfig, context: DistributedContext, data: DataRecord, as_convolution: bool
) -> dict[str, Any]:
    """The content of ``config.json``."""
    return {
        "recipe": asdict(recipe),
        "network": asdict(network),
        "data": asdict(data),
        "linear_as_convolution": as_convolution,
        "provenance": provenance(context.device, context.world),
    }
