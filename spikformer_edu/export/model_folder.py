"""Model folders as Hugging Face has them: config.json, model.safetensors, and a model card filled from the run."""

import json
import re
from pathlib import Path
from typing import Any

from ..atomic import expand, write_file, write_json
from ..errors import SpikformerError, printable
from ..model import Spikformer
from ..training import Run, load_run
from ..training.checkpoint import load_weights, read_config, write_weights
from .check import Exported


def save_pretrained(run: Run | str | Path, folder: str | Path) -> list[Path]:
    """Write a trained network as a model folder; to publish it, ``hf upload OWNER/NAME FOLDER`` is yours to run.

    Args:
        run: the run, a run folder, or the name of a pretrained model of the package.
        folder: where to write config.json, model.safetensors and README.md, the model card; made if need be.

    Returns:
        The three paths.

    Raises:
        SpikformerError: no run there, or the folder cannot be written.

    Examples:
        >>> import tempfile, spikformer_edu as se
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = se.save_pretrained("digits-2-64", folder)
        ...     model = se.from_pretrained(folder)  # equal to se.load_pretrained("digits-2-64")
        >>> [path.name for path in paths]
        ['config.json', 'model.safetensors', 'README.md']
    """
    run, folder = run if isinstance(run, Run) else load_run(run), expand(folder)
    content = json.loads((run.folder / "config.json").read_text(encoding="utf-8-sig"))
    content["data"]["classes"] = run.data.classes  # in the order of the network's outputs
    paths = [folder / name for name in ("config.json", "model.safetensors", "README.md")]
    write_json(paths[0], {"library_name": "spikformer_edu", "model_type": "spikformer"} | content)
    write_weights(paths[1], run.model.state_dict())
    card = model_card(run, content.get("provenance", {}))
    write_file(paths[2], lambda file: file.write_text(card, encoding="utf-8"))
    return paths


def from_pretrained(name: str | Path, revision: str | None = None) -> Spikformer:
    """The network of a model folder, in evaluation mode.

    Args:
        name: a folder that ``save_pretrained`` wrote, or "owner/name" of one on the Hugging Face Hub, which is
            downloaded with huggingface_hub (extra ``hub``).
        revision: branch, tag or commit on the Hub.

    Raises:
        SpikformerError: no such folder, or its files are broken; huggingface_hub is not installed or finds nothing.
    """
    folder = expand(name)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
            raise SpikformerError(
                f"no model folder at {folder}: give a folder that save_pretrained wrote, or owner/name"
            )
        folder = download(str(name), revision)
    _, network, _ = read_config(folder)
    model = Spikformer(network).float()
    load_weights(model, folder / "model.safetensors")
    return model.eval()


def download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SpikformerError(
            f"no folder {name}, and the Hub needs huggingface_hub: pip install 'spikformer-edu[hub]'"
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:  # its own classes, those of its HTTP client, OSError
        reason = str(error).strip().splitlines()[0]
        raise SpikformerError(f"no folder {name}, and the Hub does not give it: {reason}") from None


def model_card(run: Run, provenance: dict[str, Any]) -> str:
    """The README.md of a model folder: what the network is, what it learned from, how good it was.

    Args:
        run: the trained network.
        provenance: where it was trained, from its ``config.json``.
    """
    config, recipe, results = run.model.config, run.recipe, run.results
    name, title = printable(run.folder.resolve().name), printable(run.data.title)
    about: list[str] = [
        "library_name: spikformer_edu",
        "pipeline_tag: image-classification",
        "tags: [spiking-neural-network, spikformer, snntorch]",
    ]
    score = "It has not been measured: the run is not finished."
    if "accuracy" in results:
        percent = round(100 * results["accuracy"], 2)
        score = f"{percent:.2f} % of the test samples ({results['correct']} of {results['total']}), measured once."
        about += [
            "model-index:",
            f"- name: {json.dumps(name)}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {json.dumps(title)}, type: {json.dumps(printable(run.data.dataset))}}}",
            f"    metrics: [{{type: accuracy, value: {percent}}}]",
        ]
    classes = ", ".join(printable(label) for label in run.data.classes[:20])
    more = ", ..." if len(run.data.classes) > 20 else ""
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    made = ", ".join(f"{key} {value}" for key, value in provenance.items() if key in ("torch", "snntorch", "device"))
    return f"""---
{chr(10).join(about)}
---

# {name}

A Spikformer ([Zhou et al., ICLR 2023](https://arxiv.org/abs/2209.15425)), a transformer of spiking neurons:
{config.depth} blocks, width {config.dim}, {config.heads} heads, T = {config.time_steps}, {parameters:,} parameters,
attention `{config.attention}`, residual `{config.residual}`, neurons `{config.neuron}`.

```python
import spikformer_edu as se

model = se.from_pretrained("path/to/this/folder")
logits = model(images)  # [B, {config.in_channels}, H, W], normalised as in training -> [B, {config.num_classes}]
```

- **Accuracy:** {score}
- **Data:** {title}. All data that it has learned from: {printable(run.data.history)}.
- **Classes:** {classes}{more}.
- **Training:** {recipe.epochs} epochs, batch {recipe.batch_size}, learning rate {recipe.lr:g}, seed {recipe.seed}.
- **Made with:** {made or "not recorded"}. `config.json` has the whole recipe.
"""


def write_folder(run: Run, out: Path) -> Exported:
    """Write a model folder, as ``export`` does it.

    Args:
        run: the trained network.
        out: the folder.

    Raises:
        SpikformerError: the folder cannot be written, or what was written reads as another network.
    """
    paths, ours = save_pretrained(run, out), run.model.state_dict()
    read = from_pretrained(out).state_dict()
    if not all(read[name].equal(tensor.float().cpu()) for name, tensor in ours.items()):
        raise SpikformerError(f"{out} reads as another network than was written: write it again")
    return Exported(paths, "a model folder", None, "from_pretrained reads the same weights")
