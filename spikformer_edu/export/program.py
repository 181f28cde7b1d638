"""A folded network as a graph of PyTorch's own operations: what ``torch.export`` writes, and what becomes ONNX."""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..atomic import write_file
from ..errors import SpikformerError
from ..model import Spikformer
from .check import BATCH, Answers, Exported, answers, compare
from .folded import Spying, fold

# Runs a file in a process that cannot import this package. A layer's spikes are the T steps that one `stack` joins.
READER = """
import sys
sys.modules["spikformer_edu"] = sys.modules["snntorch"] = None  # now an import of either fails
import torch

class Spying(torch.fx.Interpreter):
    def run_node(self, node):
        value = super().run_node(node)
        if node.target is torch.ops.aten.stack.default:
            self.spikes.append(value != 0)
        return value

program, inputs, outputs = sys.argv[1:]
spying, parts = Spying(torch.export.load(program).module()), []
for x in torch.load(inputs, weights_only=True):
    spying.spikes = []
    with torch.no_grad():
        parts.append([spying.run(x), *spying.spikes])
torch.save(parts, outputs)
"""


def graph_of(network: nn.Module, inputs: Tensor) -> torch.export.ExportedProgram:
    """Trace a folded network; the number of inputs stays free, all other sizes are fixed.

    Args:
        network: the folded network, or one that answers with its spikes too.
        inputs: images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``.
    """
    axis = inputs.dim() - 4
    pair = torch.cat([inputs.narrow(axis, 0, 1)] * 2, axis)  # a batch of one would be taken for a fixed size
    # Strict, the default up to PyTorch 2.6, allows no module to keep something aside, as the hooks of `Spying` do.
    return torch.export.export(network, (pair,), dynamic_shapes=({axis: torch.export.Dim("batch")},), strict=False)


def elsewhere(program: Path, inputs: Tensor) -> Answers:
    """What a written program answers in another process, which has PyTorch and cannot import this package.

    Args:
        program: the file.
        inputs: images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``.

    Raises:
        SpikformerError: the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "inputs.pt"), Path(folder, "outputs.pt")
        torch.save([part.contiguous() for part in inputs.split(BATCH, -4)], given)
        # -I: no PYTHONPATH, no current folder
        command = [sys.executable, "-I", "-c", READER, str(program.resolve()), str(given), str(found)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise SpikformerError(f"{program} does not run in another process: {done.stderr.strip().splitlines()[-1]}")
        parts = iter(torch.load(found, weights_only=True))
    return answers(lambda _: next(parts), inputs)


def write_program(model: Spikformer, out: Path, inputs: Tensor) -> Exported:
    """Write ``model.pt2``, a program of ``torch.export`` in float32.

    Args:
        model: the network.
        out: the folder.
        inputs: what it is traced and checked with, images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``.

    Raises:
        SpikformerError: the folder cannot be written, or the file does not run.
    """
    path, buffer = out / "model.pt2", io.BytesIO()
    torch.export.save(graph_of(fold(model).float(), inputs), buffer)
    write_file(path, lambda file: file.write_bytes(buffer.getvalue()))
    tool = f"PyTorch {torch.__version__} in a process without this package"
    return Exported([path], "torch.export", compare(tool, answers(Spying(model), inputs), elsewhere(path, inputs)))
