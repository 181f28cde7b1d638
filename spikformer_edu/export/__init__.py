"""Trained networks for other programs: ONNX, torch.export, integers, the browser, model folders."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import expand
from ..data import count, info
from ..errors import SpikformerError, nearest
from ..eval_mode import check_network
from ..input_check import check_input
from ..model import Spikformer
from ..training import Run, load_run
from ..training.evaluation import splits_for
from .check import Check, Exported
from .fixed import BITS, write_fixed
from .js import write_js
from .model_folder import write_folder
from .onnx_file import write_onnx
from .program import write_program

__all__ = ["FORMATS", "Check", "Exported", "export", "inputs_for"]

FORMATS = {
    "onnx": "an ONNX file, for onnxruntime and other engines",
    "torch": "a program of torch.export, for PyTorch without this package",
    "fixed": "integer weights, a reference input and every spike, for hardware",
    "js": "weights for the pages in the browser",
    "hub": "a model folder as Hugging Face has them",
}
"""Formats by name, each in words."""


def inputs_for(run: Run, number: int, data_dir: Path | None = None) -> tuple[Tensor, str]:
    """Inputs to check an exported network with, and what they are.

    The outputs of the run's network are brought into the order of the classes of the data.

    Args:
        run: the trained network.
        number: how many.
        data_dir: folder to look in for data; None: ``$SPIKFORMER_DATA``, else ``./data``.

    Returns:
        Test samples, spread over the split, if the data are here, else random numbers: nothing is downloaded.

    Raises:
        SpikformerError: the data are broken.
    """
    facts, config = info(run.recipe.dataset), run.model.config
    if count(run.recipe.dataset, data_dir):
        split = splits_for(run, None, data_dir).test
        number = min(number, len(split))
        spread = torch.arange(number) * (len(split) // number)  # a split may be sorted by class
        return split.fetch(spread, None)[0], f"test samples of {facts.label}"
    time = () if facts.time_steps is None else (config.time_steps,)
    size = facts.image_size
    random = torch.Generator().manual_seed(0)
    return torch.randn(*time, number, config.in_channels, size, size, generator=random), "random inputs"


def export(
    model: Spikformer | Run | str | Path,
    out: str | Path,
    format: str = "onnx",
    inputs: Tensor | None = None,
    bits: int = 8,
) -> Exported:
    """Write a network for other programs, and let such a program run what was written.

    Args:
        model: a network, a run (``se.load_run``), a run folder, or the name of a pretrained model of the package.
        out: folder for the files; made if need be.
        format: one of ``FORMATS``: "onnx", "torch", "fixed", "js" or "hub".
        inputs: what the network is traced and checked with, images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``;
            the files take inputs of this size, with any B. None: ten test samples of the run, or random inputs.
        bits: width of the integer weights of "fixed", 8 or 16.

    Returns:
        The files, and how they were checked; ``print`` shows both.

    Raises:
        SpikformerError: an unknown format; a network or an option that the format cannot say; a package that is not
            installed; a folder that cannot be written.

    Examples:
        >>> import tempfile, spikformer_edu as se
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = se.export("digits-2-64", folder, "fixed", bits=16)
        >>> written.paths[0].name, f"{written.check.same} of {written.check.inputs} answers as before"
        ('model-16bit.npz', '10 of 10 answers as before')
    """
    out = expand(out)
    if format not in FORMATS:
        raise SpikformerError(f"unknown format {format!r}: {nearest(format, FORMATS)}")
    if bits not in BITS:
        raise SpikformerError(f"bits={bits}: give {' or '.join(map(str, BITS))}")
    run = load_run(model) if isinstance(model, str | Path) else model
    if format in ("js", "hub"):
        if not isinstance(run, Run):
            raise SpikformerError(f"format {format} names classes and data: give a run, as se.load_run gives it")
        return write_js(run, out) if format == "js" else write_folder(run, out)
    if isinstance(run, Run):
        network = run.model
        inputs = inputs_for(run, 10)[0] if inputs is None else inputs
    else:
        network = run
    check_network(network)
    if network.config.neuron == "ilif":
        raise SpikformerError(f"format {format} has neurons of 0 and 1 alone, and the network's neuron is 'ilif'")
    network = copy.deepcopy(network).cpu().float().eval()
    if inputs is None:
        raise SpikformerError(
            "a network alone does not say what it reads: give inputs, [B, C, H, W] or [T, B, C, H, W]"
        )
    check_input(network, inputs := inputs.cpu())
    if format == "fixed":
        return write_fixed(network, out, inputs, bits)
    return write_onnx(network, out, inputs) if format == "onnx" else write_program(network, out, inputs)
