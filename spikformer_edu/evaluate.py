"""``python -m spikformer_edu.evaluate``: measure the accuracy of a trained network."""

from dataclasses import dataclass
from pathlib import Path

from . import cli
from .training import DistributedContext, choose_device, evaluate, load_run
from .training.evaluation import origin, splits_for
from .training.memory import enough_memory, keep_freed_memory


@dataclass(frozen=True)
class Options:
    checkpoint: str = "digits-2-64"
    """Run folder, or the name of a pretrained model of the package."""
    dataset: str | None = None
    """Data set with the same classes; the one it was trained on unless given."""
    split: str = "test"
    """test, val or train."""
    which: str = "best"
    """Weights of the run: best or last."""
    batch_size: int = 100
    """Images at a time; changes the result by no more than rounding."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    data_dir: Path | None = None
    """Where data sets are; else $SPIKFORMER_DATA, else ./data."""


def main(options: Options) -> None:
    """Measure loss and accuracy of a run folder or of a pretrained model."""
    keep_freed_memory()
    device = choose_device(options.device)
    run = load_run(options.checkpoint, options.which)
    splits = splits_for(run, options.dataset, options.data_dir)
    split = splits[options.split]
    own = run.data.holds(options.split, split, splits.info.classes)
    with enough_memory("lower --batch-size"):
        score = evaluate(
            run.model.to(device), split, DistributedContext(device), options.batch_size, run.recipe.precision
        )
    answers = f"{score.correct} of {score.total}"
    print(f"{options.split} accuracy {100 * score.accuracy:.2f} % ({answers}), loss {score.loss:.6f}")
    if note := origin(run, splits.info, own, options.data_dir):
        print(note)
    recorded = run.results.get("accuracy")
    as_train_did = own and (options.dataset, options.split, options.which) == (None, "test", "best")
    if as_train_did and recorded is not None:
        print(f"recorded by the run: {100 * recorded:.2f} % ({run.results['correct']} of {run.results['total']})")


if __name__ == "__main__":
    cli.run(main, "python -m spikformer_edu.evaluate")
