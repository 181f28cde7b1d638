"""``python -m spikformer_edu.evaluate``: measure the accuracy of a trained network."""

from dataclasses import dataclass
from pathlib import Path

from . import cli
from .data import load
from .errors import SpikformerError
from .training import Place, choose_device, evaluate, load_run, load_splits
from .training.loop import enough_memory


@dataclass(frozen=True)
class Options:
    checkpoint: str = "digits-2-64"
    """Run folder, or the name of a pretrained model of the package."""
    dataset: str | None = None
    """Data set; the one it was trained on unless given."""
    split: str = "test"
    """test, val or train."""
    weights: str = "best"
    """best or last."""
    batch_size: int = 100
    """Images at a time; changes the result by no more than rounding."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    data_dir: Path | None = None
    """Where data sets are; else $SPIKFORMER_DATA, else ./data."""


def main(options: Options) -> None:
    """Measure loss and accuracy of a run folder or of a pretrained model."""
    device = choose_device(options.device)
    run = load_run(options.checkpoint, options.weights)
    if options.dataset is None:
        splits = load_splits(run.recipe, options.data_dir)  # the very samples of the run
    else:
        splits = load(options.dataset, options.data_dir, time_steps=run.model.config.time_steps)
    theirs, ours = splits.info.num_classes, run.model.config.num_classes
    if theirs != ours:
        raise SpikformerError(
            f"{splits.info.name} has {theirs} classes, the network {ours}: choose a data set with as many classes"
        )
    with enough_memory("lower --batch-size"):
        score = evaluate(
            run.model.to(device), splits[options.split], Place(device), options.batch_size, run.recipe.precision
        )
    answers = f"{score.correct} of {score.total}"
    print(f"{options.split} accuracy {100 * score.accuracy:.2f} % ({answers}), loss {score.loss:.6f}")
    recorded = run.results.get("accuracy")
    same = (options.dataset, options.split, options.weights) == (None, "test", "best")  # as train measured
    if same and recorded is not None:
        print(f"recorded by the run: {100 * recorded:.2f} % ({run.results['correct']} of {run.results['total']})")


if __name__ == "__main__":
    cli.run(main, "python -m spikformer_edu.evaluate")
