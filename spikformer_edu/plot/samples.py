"""Samples of a data set, as they are and as training sees them."""

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ..data.base import DatasetInfo, Split
from ..data.loading import generator_for
from ..errors import SpikformerError
from .style import image_of, plain, styled


@styled
def samples(
    split: Split, info: DatasetInfo, columns: int = 8, draws: int = 2, seed: int = 0
) -> tuple[Figure, np.ndarray]:
    """Draw a grid of samples with their labels: one row as they are, then rows with augmentation.

    Args:
        split: the split to take samples from, one of each class in turn.
        info: the facts about the data set: class names, mean and std.
        columns: number of samples.
        draws: number of rows with augmentation.
        seed: seed of the choice and of the augmentation.

    Returns:
        The figure, and its axes ``[1 + draws, columns]``.

    Raises:
        SpikformerError: columns below 1, or draws below 0.
    """
    if columns < 1 or draws < 0:
        raise SpikformerError(f"columns={columns}, draws={draws}: give at least 1 and 0")
    chosen = _in_turn(split.targets.cpu(), columns, seed)
    rows = [split.fetch(chosen, None)]
    rows += [split.fetch(chosen, generator_for(seed, draw)) for draw in range(draws)]
    fig, axes = plt.subplots(
        1 + draws, len(chosen), figsize=(1.25 * len(chosen) + 0.6, 1.3 * (1 + draws) + 0.7), squeeze=False
    )
    for row, (inputs, targets) in enumerate(rows):
        for column, panel in enumerate(axes[row]):
            picture, gray = _picture(inputs.select(-4, column).cpu(), info)
            panel.imshow(picture, cmap="gray" if gray else None, vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            if row == 0:
                name = info.classes[int(targets[column])] if info.classes else f"class {int(targets[column])}"
                panel.set_title(plain(name, 13), fontsize=9, loc="center")
        axes[row, 0].set_ylabel("as it is" if row == 0 else f"augmented {row}", fontsize=10)
    steps = f", frame {rows[0][0].shape[0] // 2} of T = {rows[0][0].shape[0]}" if info.time_steps else ""
    fig.suptitle(f"{plain(info.title, 80)}{steps}", x=0.01, ha="left", fontsize=12)
    return fig, axes


def _in_turn(targets: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Indices of samples, one of each class, then a second one of each, ..."""
    order = torch.randperm(len(targets), generator=generator_for(seed))
    seen: dict[int, int] = {}
    turn = []
    for index in order.tolist():
        label = int(targets[index])
        seen[label] = seen.get(label, 0) + 1
        turn.append((seen[label], label, index))
    return torch.tensor([index for _, _, index in sorted(turn)[:count]])


def _picture(sample: torch.Tensor, info: DatasetInfo) -> tuple[np.ndarray, bool]:
    if info.time_steps:
        frame = sample[len(sample) // 2]  # [2, H, W]
        bright = float(frame[frame > 0].quantile(0.95)) if bool((frame > 0).any()) else 1.0
        return image_of((frame / bright).clamp(max=1)), False
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (info.mean, info.std))
    pixels = (sample * std + mean).clamp(0, 1)  # [C, H, W]
    return (pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy(), len(pixels) == 1
