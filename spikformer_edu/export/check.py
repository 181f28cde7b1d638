"""What a written file answers, beside the network that it was made from: the same classes, the same spikes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

BATCH = 10  # inputs at a time: the spikes of all layers are kept


@dataclass(frozen=True)
class Answers:
    """What a network or a file says.

    Attributes:
        logits: ``[B, K]``.
        spikes: of every layer, in the order of the network, boolean ``[T, B, ...]``.
    """

    logits: Tensor
    spikes: list[Tensor]


@dataclass(frozen=True)
class Check:
    """What a tool made of a file.

    Attributes:
        tool: name and version of what ran it.
        inputs: number of inputs.
        same: for how many of them the answer, the class with the largest logit, was the network's.
        spikes: number of places where a spike could be, over all layers and time steps.
        differing: number of places where one of the two fired and the other did not.
    """

    tool: str
    inputs: int
    same: int
    spikes: int
    differing: int

    def __str__(self) -> str:
        answers = f"the network's answer for {self.same} of {self.inputs} inputs"
        return f"{self.tool}: {answers}, {self.differing:,} of {self.spikes:,} spikes differ"


@dataclass(frozen=True)
class Exported:
    """What ``export`` wrote.

    Attributes:
        paths: the files.
        what: the format in words.
        check: what a tool made of the files; None: no tool ran them.
        why: why no tool ran them.
    """

    paths: list[Path]
    what: str
    check: Check | None
    why: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)

    def __str__(self) -> str:
        names = ", ".join(str(path) for path in self.paths)
        return f"{names}  {self.size:,} bytes, {self.what}; {self.check or 'not run: ' + self.why}"


@torch.no_grad()
def answers(run: Callable[[Tensor], Sequence[Tensor]] | nn.Module, inputs: Tensor) -> Answers:
    """Run a network or a file, some inputs at a time.

    Args:
        run: gives the logits ``[B, K]``, then the spikes of every layer ``[T, B, ...]``.
        inputs: images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``.
    """
    parts = [[out if n == 0 else out != 0 for n, out in enumerate(run(x))] for x in inputs.split(BATCH, -4)]
    logits, *spikes = zip(*parts, strict=True)
    return Answers(torch.cat(logits), [torch.cat(layer, 1) for layer in spikes])


def compare(tool: str, ours: Answers, theirs: Answers) -> Check:
    """Count what differs.

    Args:
        tool: name and version of what ran the file.
        ours: the network's answers.
        theirs: the file's.
    """
    differing = sum(int((a != b).sum()) for a, b in zip(ours.spikes, theirs.spikes, strict=True))
    return Check(
        tool,
        len(ours.logits),
        int((ours.logits.argmax(1) == theirs.logits.argmax(1)).sum()),
        sum(layer.numel() for layer in ours.spikes),
        differing,
    )
