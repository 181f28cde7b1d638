"""The paper's own energy figures, taken apart: which way of counting gives Table 2?"""

from typing import Any

from .energy import AC, MAC, count_flops
from .model import SpikformerConfig
from .presets import PRESETS, preset
from .table import Table

# Published for ImageNet (paper, Table 2): SOPs in G, energy in mJ. The network without spikes: FLOPs in G, mJ.
PUBLISHED = {
    "imagenet-8-384": (6.82, 7.734),
    "imagenet-6-512": (8.69, 9.417),
    "imagenet-8-512": (11.09, 11.577),
    "imagenet-10-512": (13.67, 13.899),
    "imagenet-8-768": (22.09, 21.477),
}
PUBLISHED_ANN = ("imagenet-8-512", 8.33, 38.340)


class Audit(list[dict[str, Any]]):
    """A list of dicts that prints as a table."""

    def __str__(self) -> str:
        def text(value: object) -> str:
            return f"{value:.4f}" if isinstance(value, float) else str(value)

        return str(Table(list(self[0]), [[text(value) for value in row.values()] for row in self]))

    __repr__ = __str__


def audit_paper() -> Audit:
    """Check each ImageNet row of Table 2: what is left of its energy after 0.9 pJ a SOP is subtracted?

    By eq. 23 the rest should be 4.6 pJ * T * FLOPs(first convolution), which grows with D. In the published rows it is
    the same for every D, and equal to that of D = 512: the figures for D = 384 and 768 seem to use the wrong width.

    Returns:
        One dict a model, in mJ: ``rest`` = energy - 0.9 SOPs; ``own width`` and ``D = 512``, what eq. 23 gives at these
        widths; ``corrected``, the energy with the first convolution at its own width.
    """
    rows = Audit()
    for name, (sops, published) in PUBLISHED.items():
        own = first_conv_mj(preset(name).config)
        rows.append(
            {
                "model": name,
                "SOPs (G)": sops,
                "energy": published,
                "rest": published - AC * sops,
                "own width": own,
                "D = 512": first_conv_mj(preset("imagenet-8-512").config),
                "corrected": AC * sops + own,
            }
        )
    return rows


def first_conv_mj(config: SpikformerConfig, image_size: int = 224) -> float:
    """4.6 pJ * T * FLOPs of the first convolution, in mJ (eq. 23): 1.595 for D = 512 and T = 4 at 224 x 224."""
    return MAC * config.time_steps * count_flops(config, image_size)["first conv"] / 1e9


def audit_ann() -> Audit:
    """Which way of counting the network without spikes, ANN 8-512, comes nearest to its published energy?

    Its FLOPs follow from the energy more exactly than from the rounded figure: 38.340 mJ / 4.6 pJ. Counted are all
    convolutions and linear layers, and none, one or both products of attention in either order, with or without the
    first convolution and the head.

    Returns:
        One dict a way of counting, in G multiply-accumulates, nearest first. No way gives the published figure exactly.
        With the first convolution and without the head, it would leave attention ``audit_ann_rest()`` times N^2 D a
        block, where one product takes 1 and both take 2.
    """
    name, _, published = PUBLISHED_ANN
    parts = count_flops(preset(name).config, PRESETS[name].image_size)
    target = published / MAC
    products = {
        "no product": 0,
        "one, N^2 D": parts["QK^T"],
        "both, N^2 D": 2 * parts["QK^T"],
        "one, N D d": parts["K^TV"],
        "both, N D d": 2 * parts["K^TV"],
    }
    rows = Audit()
    for product, flops in products.items():
        for first in (True, False):
            for head in (True, False):
                counted = parts["other convs"] + parts["linear"] + flops
                total = (counted + first * parts["first conv"] + head * parts["head"]) / 1e9
                rows.append(
                    {
                        "attention": product,
                        "first conv": "in" if first else "out",
                        "head": "in" if head else "out",
                        "FLOPs (G)": total,
                        "published (G)": target,
                        "off by (G)": total - target,
                        "mJ": MAC * total,
                    }
                )
    rows.sort(key=lambda row: abs(row["off by (G)"]))
    return rows


def audit_ann_rest() -> float:
    """What the published energy of ANN 8-512 leaves for attention, in N^2 D a block: see ``audit_ann``."""
    name, _, published = PUBLISHED_ANN
    parts = count_flops(preset(name).config, PRESETS[name].image_size)
    return (published / MAC * 1e9 - parts["first conv"] - parts["other convs"] - parts["linear"]) / parts["QK^T"]
