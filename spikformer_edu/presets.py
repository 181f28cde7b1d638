"""The paper's networks as lines of data: sizes, time steps, data set, published accuracy."""

from dataclasses import dataclass, fields, replace
from typing import Any

from .attention import ATTENTION, MaskAttention
from .errors import SpikformerError, nearest
from .model import Spikformer, SpikformerConfig
from .table import Table


@dataclass(frozen=True)
class Preset:
    """A named network.

    Attributes:
        name: data set, number of blocks L and width D, for example "cifar10-4-384".
        dataset: name of the data set that it is meant for.
        image_size: height and width of the input, in pixels.
        config: sizes and options of the network.
        parameters: exact number of trainable parameters, head included.
        paper_accuracy: published top-1 accuracy in %, by T; None where the paper gives none.
    """

    name: str
    dataset: str
    image_size: int
    config: SpikformerConfig
    parameters: int
    paper_accuracy: dict[int, float] | None = None


_DEEP_STEM = SpikformerConfig(pool=(True, True, True, True), qkv_bias=False, trunc_normal=False)  # all SPS blocks pool
_DVS = replace(_DEEP_STEM, in_channels=2, time_steps=16)
_USUAL = {  # height and width of an image, and what all networks for a data set share
    "digits": (32, SpikformerConfig(in_channels=1, pool=(True, True, False, False))),
    "digits-dvs": (32, SpikformerConfig(in_channels=2, pool=(True, True, False, False), time_steps=8)),
    "digits-motion": (
        16,
        SpikformerConfig(in_channels=2, num_classes=2, pool=(True, True, False, False), time_steps=8),
    ),
    "cifar10": (32, SpikformerConfig()),
    "cifar100": (32, SpikformerConfig(num_classes=100)),
    "cifar10dvs": (128, replace(_DVS, scale=0.25)),
    "dvsgesture": (128, replace(_DVS, num_classes=11, learn_scale=True, qk_pool=True)),
    "nmnist": (32, SpikformerConfig(in_channels=2, pool=(True, True, False, False), time_steps=4)),
    "imagenet": (224, replace(_DEEP_STEM, num_classes=1000)),
}


def _line(
    dataset: str, depth: int, dim: int, heads: int, parameters: int, paper: dict[int, float] | None = None
) -> Preset:
    image_size, usual = _USUAL[dataset]
    config = replace(usual, depth=depth, dim=dim, heads=heads)
    return Preset(f"{dataset}-{depth}-{dim}", dataset, image_size, config, parameters, paper)


# Blocks L, width D, heads, parameters, published top-1 by T (Tables 2 to 4 and the ablation over T).
# Heads: 12 for 384 and 8 for 512 are in the official code, 12 for 768 in a comment there; 8 for 256 (the same d = 32)
# and the 12 of ImageNet's 384 are assumed. Where nothing is published the network is ours.
_LINES = [
    _line("digits", 2, 64, 4, 163_906),
    _line("digits-dvs", 2, 64, 4, 163_978),
    _line("digits-motion", 2, 64, 4, 163_458),
    _line("cifar10", 2, 128, 4, 646_810),  # ours: small enough for a laptop
    _line("cifar10", 4, 256, 8, 4_155_178, {4: 93.94}),
    _line("cifar10", 2, 384, 12, 5_765_050, {4: 94.80}),
    _line("cifar10", 4, 384, 12, 9_324_730, {1: 93.51, 2: 93.59, 4: 95.19, 6: 95.34}),
    _line("cifar100", 4, 256, 8, 4_178_308, {4: 75.96}),
    _line("cifar100", 2, 384, 12, 5_799_700, {4: 76.95}),
    _line("cifar100", 4, 384, 12, 9_359_380, {1: 74.36, 2: 76.28, 4: 77.86, 6: 78.61}),
    _line("cifar10dvs", 2, 256, 16, 2_566_666, {10: 78.9, 16: 80.9}),
    _line("dvsgesture", 2, 256, 8, 2_566_925, {10: 96.9, 16: 98.3}),
    _line("nmnist", 2, 64, 4, 163_978),
    _line("imagenet", 8, 384, 12, 16_816_024, {4: 70.24}),
    _line("imagenet", 6, 512, 8, 23_373_352, {4: 72.46}),
    _line("imagenet", 8, 512, 8, 29_689_384, {1: 70.14, 2: 71.09, 4: 73.38, 6: 73.70}),
    _line("imagenet", 10, 512, 8, 36_005_416, {4: 73.68}),
    _line("imagenet", 8, 768, 12, 66_338_632, {4: 74.81}),
]
PRESETS: dict[str, Preset] = {line.name: line for line in _LINES}


def preset(name: str) -> Preset:
    """The preset of that name.

    Args:
        name: a preset, see ``list_models()``.

    Raises:
        SpikformerError: no such preset; the line names the nearest one.
    """
    if name not in PRESETS:
        raise SpikformerError(f"unknown model {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]


def configure(name: str, **overrides: Any) -> SpikformerConfig:
    """The configuration of a preset with some fields changed.

    Args:
        name: a preset, see ``list_models()``.
        overrides: fields of ``SpikformerConfig`` to change.

    Raises:
        SpikformerError: no such preset, no such field, or a value out of range.
    """
    known = [field.name for field in fields(SpikformerConfig)]
    for option in overrides:
        if option not in known:
            raise SpikformerError(f"unknown model option {option!r}: {nearest(option, known)}")
    usual = preset(name).config
    if issubclass(ATTENTION.get(overrides.get("attention", "ssa"), object), MaskAttention):
        usual = replace(usual, scale=None, learn_scale=False)  # a mask has nothing to scale
    return replace(usual, **overrides)


def spikformer(name: str, **overrides: Any) -> Spikformer:
    """A freshly initialised network of the paper.

    Args:
        name: a preset, see ``list_models()``.
        overrides: fields of ``SpikformerConfig`` to change, for example ``num_classes=100, time_steps=2``.

    Raises:
        SpikformerError: no such preset, no such field, or a value out of range.

    Examples:
        >>> import torch, spikformer_edu as se
        >>> model = se.spikformer("cifar10-4-384", num_classes=5)
        >>> model(torch.rand(2, 3, 32, 32)).shape  # images [B, C, H, W] -> logits [B, K]
        torch.Size([2, 5])
        >>> se.preset("cifar10-4-384").paper_accuracy  # top-1 in %, by time steps T
        {1: 93.51, 2: 93.59, 4: 95.19, 6: 95.34}
    """
    return Spikformer(configure(name, **overrides))


class ModelTable(list[Preset]):
    """A list of presets that prints as a table."""

    def __str__(self) -> str:
        rows = []
        for p in self:
            size = f"{p.config.in_channels} x {p.image_size} x {p.image_size}"
            numbers = (f"{p.config.time_steps}", f"{p.config.heads}", f"{p.parameters:,}")
            accuracy = ", ".join(f"{top1:.2f} % (T={t})" for t, top1 in (p.paper_accuracy or {}).items())
            rows.append((p.name, p.dataset, size, *numbers, accuracy or "none (ours)"))
        header = ("model", "data set", "input", "T", "heads", "parameters", "published top-1")
        return str(Table(header, rows, "lllrrrl"))

    __repr__ = __str__


def list_models() -> ModelTable:
    """All presets: name, data set, input, T, heads, exact parameter count, accuracy published in the paper."""
    return ModelTable(PRESETS.values())
