"""A folded network as an ONNX file: T unrolled, batch free, one output, every layer's spikes under its name."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..atomic import write_file
from ..errors import SpikformerError
from ..model import Spikformer
from .check import Exported, answers, compare
from .folded import Spying, fold, neuron_layers
from .program import graph_of

OPSET = 18  # the one that PyTorch writes itself, without a converter: in all versions from 2.6


def need(name: str) -> ModuleType:
    """Import a package of the extra ``onnx``.

    Args:
        name: the package.

    Raises:
        SpikformerError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise SpikformerError(f"ONNX needs {name} ({error}): pip install 'spikformer-edu[onnx]'") from None


def onnx_model(network: Spikformer, inputs: Tensor) -> Any:
    """The ``onnx.ModelProto`` of a folded network, in its dtype.

    Args:
        network: the folded network.
        inputs: what it is traced with, of the same dtype: images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``.

    Raises:
        SpikformerError: onnx or onnxscript is not installed.
    """
    onnx = need("onnx")
    need("onnxscript")
    names = ["logits", *neuron_layers(network)]
    made = torch.onnx.export(
        graph_of(Spying(network), inputs),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input"],
        output_names=names,
        verbose=False,
    )
    assert made is not None
    proto: Any = made.model_proto
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[inputs.dim() - 4].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if symbol in size.dim_param:  # others have a value, which a name would take away
                size.dim_param = size.dim_param.replace(symbol, "batch")
    del proto.graph.output[1:]  # the values keep their names: `with_spikes` makes them outputs again
    onnx.checker.check_model(proto, full_check=True)
    return proto


def with_spikes(proto: Any, layers: list[str]) -> Any:
    """A copy of an ONNX model with the spikes of its layers as further outputs.

    Args:
        proto: the ``onnx.ModelProto``.
        layers: names of the layers.
    """
    onnx = need("onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in layers)
    return copy


def write_onnx(model: Spikformer, out: Path, inputs: Tensor) -> Exported:
    """Write ``model.onnx``, in float32, and run it in onnxruntime if that is installed.

    Args:
        model: the network.
        out: the folder.
        inputs: what it is traced and checked with, images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``.

    Raises:
        SpikformerError: onnx or onnxscript is not installed, or the folder cannot be written.
    """
    path, network = out / "model.onnx", fold(model).float()
    proto = onnx_model(network, inputs)
    write_file(path, lambda file: file.write_bytes(proto.SerializeToString()))
    what = f"ONNX opset {OPSET}, checked by onnx.checker"
    try:
        runtime = need("onnxruntime")
    except SpikformerError as error:
        return Exported([path], what, None, str(error))
    session = runtime.InferenceSession(with_spikes(proto, list(neuron_layers(network))).SerializeToString())
    tool = f"onnxruntime {runtime.__version__}"
    return Exported([path], what, compare(tool, answers(Spying(model), inputs), answers(runs(session), inputs)))


def runs(session: Any) -> Callable[[Tensor], list[Tensor]]:
    """A session of onnxruntime, or ONNX's reference evaluator, as a function of a tensor."""
    return lambda x: [torch.as_tensor(value) for value in session.run(None, {"input": x.numpy()})]
