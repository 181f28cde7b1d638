"""Every format for every preset, into ``export.json``: ``python docs/results/export.py [PRESET ...]``.

1. Each format is written and run by its tool. Trained networks get test images. The others get random inputs, and their
   norms the statistics of such inputs, else no neuron would fire.
2. ONNX's reference evaluator computes the trained networks in float64, on two images.
3. The accuracy of integer weights: on all test samples of the digits, and on every tenth test image of CIFAR-10.

Presets that are not named keep what the file says of them. CIFAR-10 is looked for under ``$SPIKFORMER_DATA``, else
``./data``. onnx, onnxscript and onnxruntime must be installed.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import spikformer_edu as se
from spikformer_edu.export import inputs_for
from spikformer_edu.export.check import answers, compare
from spikformer_edu.export.fixed import BITS, Integer
from spikformer_edu.export.folded import Spying, fold, neuron_layers
from spikformer_edu.export.onnx_file import onnx_model, runs, with_spikes
from spikformer_edu.provenance import provenance
from spikformer_edu.training.evaluation import splits_for

FILE = Path(__file__).parent / "export.json"
TRAINED = {  # test samples that are checked
    "digits-2-64": 100,
    "digits-dvs-2-64": 100,
    "digits-motion-2-64": 100,
    "cifar10-2-128": 100,
    "cifar10-4-384": 100,
}
RANDOM = 2
SCORED = {
    "digits-2-64": 359,
    "digits-dvs-2-64": 359,
    "digits-motion-2-64": 718,
    "cifar10-2-128": 1000,
    "cifar10-4-384": 1000,
}
FLOAT64 = 2  # images


def untrained(name: str) -> tuple[se.Spikformer, Tensor]:
    """A network with random weights whose neurons fire, and random inputs for it."""
    preset, random = se.preset(name), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model, size = se.spikformer(name), preset.image_size
    time_steps = () if se.data.info(preset.dataset).time_steps is None else (preset.config.time_steps,)
    inputs = torch.randn(*time_steps, RANDOM, preset.config.in_channels, size, size, generator=random)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0  # the running statistics become those of this batch
    with torch.no_grad():
        model.train()(inputs)
    return model.eval(), inputs


def rows_of(name: str) -> list[dict[str, Any]]:
    """Every format of a preset."""
    formats = [("onnx", 8), ("torch", 8)]
    model: Any
    if name in TRAINED:
        model = se.load_run(name)
        inputs, kind = inputs_for(model, TRAINED[name])
        formats += [("fixed", 8), ("fixed", 16), ("hub", 8), ("js", 8)]
    else:
        (model, inputs), kind = untrained(name), "random inputs"  # rounding random weights would say nothing
    rows = []
    for format, bits in formats:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            made = se.export(model, folder, format, inputs, bits)
            seconds = round(time.perf_counter() - start, 1)
            size = made.size
        row = {"preset": name, "format": format if format != "fixed" else f"fixed, {bits} bits", "bytes": size}
        row |= {"seconds": seconds}
        if check := made.check:
            row |= {"tool": check.tool, "inputs": check.inputs, "kind": kind, "same": check.same}
            row |= {"spikes": check.spikes, "differing": check.differing}
        print(row, flush=True)
        rows.append(row)
    return rows


def in_float64(name: str) -> dict[str, Any]:
    """The ONNX model in float64, in ONNX's own reference evaluator."""
    run = se.load_run(name)
    inputs, kind = inputs_for(run, FLOAT64)
    network, inputs = fold(run.model), inputs.double()
    start = time.perf_counter()
    session = ReferenceEvaluator(with_spikes(onnx_model(network, inputs), list(neuron_layers(network))))
    check = compare(
        f"onnx.reference {onnx.__version__}",
        answers(Spying(run.model.double()), inputs),
        answers(runs(session), inputs),
    )
    row = {"preset": name, "format": "onnx in float64", "seconds": round(time.perf_counter() - start, 1)}
    row |= {"tool": check.tool, "inputs": check.inputs, "kind": kind, "same": check.same}
    row |= {"spikes": check.spikes, "differing": check.differing}
    print(row, flush=True)
    return row


@torch.no_grad()
def accuracy_of(name: str) -> list[dict[str, Any]]:
    """Correct answers in float32 and in integers, on test images; the input range is that of the first ten."""
    run = se.load_run(name)
    split = splits_for(run, None).test
    inputs, targets = split.fetch(torch.arange(SCORED[name]) * (len(split) // SCORED[name]), None)
    rows = []
    for bits in (None, *BITS):
        model = run.model if bits is None else Integer(run.model, inputs.narrow(-4, 0, 10), bits)
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(inputs.split(20, -4), targets.split(20), strict=True)
        )
        rows.append(
            {"preset": name, "weights": f"{bits} bits" if bits else "float32", "correct": right, "total": len(targets)}
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    names = sys.argv[1:] or [preset.name for preset in se.list_models()]
    for name in names:
        written = rows_of(name) + ([in_float64(name)] if name in TRAINED else [])
        scores = accuracy_of(name) if name in SCORED else []
        found = json.loads(FILE.read_text()) if FILE.exists() else {"written": [], "accuracy": []}
        for key, rows in (("written", written), ("accuracy", scores)):
            found[key] = [row for row in found[key] if row["preset"] != name] + rows
        versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
        found["provenance"] = provenance(torch.device("cpu")) | versions | {"command": "python docs/results/export.py"}
        FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
