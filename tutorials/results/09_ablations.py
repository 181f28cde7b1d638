"""Measures what chapter 09 shows: ``python tutorials/results/09_ablations.py`` (about 8 minutes on one CPU core).

The protocol, written down before the runs that are reported:

Task        the digits that come with scikit-learn, as the package splits and draws them (1258 training images, 180
            validation, 359 test), at half size: 16 x 16.
Network     digits-2-64 made small: D = 32, h = 2 (d = 16), L = 1, two pools (N = 16), T = 4.
Variants    the five of Table 1, and a control without any attention (its output is zero), which tells how much there
            is to be seen at all. For SSA also T = 1, 2 and 6.
Budget      the same for all: 16 epochs of batch 32, AdamW, learning rate 3e-3 with one epoch of warm-up and a cosine,
            weight decay 0.06, label smoothing 0.1: the digits recipe of the package, shortened.
Seeds       0, 1 and 2; a seed fixes initial weights, order and augmentation. (Five were planned. The machine's time
            allowed three; that was decided before any comparison of this protocol was looked at.)
Choice      the epoch with the lowest validation loss. The test set is measured once, after that.
Comparison  differences to SSA are paired by seed. A difference counts as resolved when zero lies outside its 95 %
            interval (Student's t, 2 degrees of freedom). What is not resolved is reported as not resolved.

Every run under this protocol is reported.

How it came about: two first ones (L = 2, 32 x 32; 10 epochs, then 6) were stopped in their first seed, the second
because networks had learned too little (38 to 67 % on the test set, which had been looked at). Size and epochs were
then set with the control alone, on validation accuracy, with seed 99, which is not reported. No variant was tuned.

The range of Q K^T V s and the energy are measured on the validation images.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import jupytext
import torch
import torch.nn.functional as F
from torch import Tensor

import spikformer_edu as se
from spikformer_edu.attention import SpikingSelfAttention
from spikformer_edu.provenance import provenance
from spikformer_edu.training.distributed import DistributedContext
from spikformer_edu.training.evaluation import evaluate
from spikformer_edu.training.loop import parameter_groups
from spikformer_edu.training.monitor import gradient_norms
from spikformer_edu.training.recipe import Recipe, learning_rate

CPU = torch.device("cpu")
SOURCES = Path(__file__).parents[1] / "src"
NETWORK = dict(
    dim=32, heads=2, depth=1, pool=(True, True, False, False)
)  # of digits-2-64
RECIPE = Recipe(epochs=16)
SEEDS = range(3)
VARIANTS = ("identity", "leaky_relu", "relu", "softmax", "ssa", "none")
TIME_STEPS = (1, 2, 4, 6)
QUANTILES = (0.0, 0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999, 1.0)
VANISHING = 1.089  # |H - V_th| from which the surrogate's derivative is below 5 % of its height (alpha = 4)


class HalfSize(se.data.Split):
    """Images of a split at half their height and width."""

    def __init__(self, split: se.data.Split):
        self.split, self.targets = split, split.targets

    def fetch(
        self, indices: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        x, y = self.split.fetch(indices, generator)
        return F.avg_pool2d(x, 2), y


def digits() -> se.data.Splits:
    whole = se.data.load("digits")
    return se.data.Splits(
        whole.info, HalfSize(whole.train), HalfSize(whole.val), HalfSize(whole.test)
    )


class NoAttention(SpikingSelfAttention):
    """The control: nothing is added to the residual stream."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def train_and_test(
    make_model: Callable[[], se.Spikformer], seed: int
) -> tuple[se.Spikformer, dict]:
    """Train by the protocol above, keep the epoch with the lowest validation loss, measure the test set once."""
    splits, place = digits(), DistributedContext(CPU)
    torch.manual_seed(seed)
    model = make_model()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, RECIPE.weight_decay),
        lr=RECIPE.warmup_lr,
        fused=True,
    )
    steps = len(splits.train) // RECIPE.batch_size
    log: dict[str, list] = {"loss": [], "val_loss": [], "val_accuracy": []}
    best, start = None, time.process_time()
    for epoch in range(RECIPE.epochs):
        model.train()
        losses = []
        for step, (x, y) in enumerate(
            se.data.batches(
                splits.train, RECIPE.batch_size, train=True, seed=seed, epoch=epoch
            )
        ):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(RECIPE, epoch + step / steps)
            loss = F.cross_entropy(
                model(x), y, label_smoothing=RECIPE.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        score = evaluate(model, splits.val, place)
        log["loss"].append(sum(losses) / len(losses))
        log["val_loss"].append(score.loss)
        log["val_accuracy"].append(score.accuracy)
        if not math.isfinite(log["loss"][-1]):
            break
        if best is None or score.loss < best[0]:
            best = score.loss, epoch + 1, copy.deepcopy(model.state_dict())
    _, best_epoch, weights = best
    model.load_state_dict(weights)
    model.eval()
    x, y = splits.test.fetch(torch.arange(len(splits.test)), None)
    with torch.no_grad():
        wrong = (model(x).argmax(1) != y).nonzero().flatten().tolist()
    return model, {
        "seed": seed,
        "test_accuracy": 1 - len(wrong) / len(y),
        "test_images": len(y),
        "test_wrong": wrong,
        "best_epoch": best_epoch,
        "cpu_seconds": round(time.process_time() - start, 1),
        **log,
    }


def validation_images() -> tuple[Tensor, Tensor]:
    val = digits().val
    return val.fetch(torch.arange(len(val)), None)


def joules(model: se.Spikformer) -> dict:
    """Operations and energy of one image, at the firing rates of the validation images."""
    report = se.energy(model, validation_images()[0])
    return {"sops": report.sops, "totals_pj": report.totals}


def ranges(model: se.Spikformer, x: Tensor, y: Tensor) -> list[dict]:
    """Of every block: quantiles of X = Q K^T V s, what it does to the surrogate, gradient of the layer."""
    currents, handles = [], []
    for block in model.blocks:
        hook = block.attn.attn.register_forward_pre_hook(
            lambda _, args: currents.append(args[0].detach())
        )
        handles.append(hook)
    with se.record(model, membranes=True) as rec:
        F.cross_entropy(model(x), y).backward()
    for handle in handles:
        handle.remove()
    norms = gradient_norms(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    )
    found = []
    for i, current in enumerate(currents):
        h = rec[f"blocks.{i}.attn.attn"].membrane
        sample = current.flatten().double()
        found.append(
            {
                "quantiles": [
                    float(q)
                    for q in torch.quantile(
                        sample, torch.tensor(QUANTILES, dtype=torch.float64)
                    )
                ],
                "negative": float((sample < 0).double().mean()),
                "zero": float((sample == 0).double().mean()),
                "vanishing": float(((h - 0.5).abs() > VANISHING).double().mean()),
                "rate": float(rec[f"blocks.{i}.attn.attn"].spikes.double().mean()),
                "gradient": norms[f"blocks.{i}.attn"],
            }
        )
    return found


def run_cells(names: dict, script: str, tag: str) -> None:
    """Execute the cells of a chapter that have a tag, so that what is measured is what is shown."""
    for cell in jupytext.read(SOURCES / script, fmt="py:percent").cells:
        if tag in cell.metadata.get("tags", []):
            exec(compile(cell.source, script, "exec"), names)


def write(path: Path, runs: list[dict], **more) -> None:
    """The results so far, so that a killed script has not run in vain."""
    facts = provenance(CPU) | {
        "command": f"python tutorials/results/{path.stem}.py"
    }
    protocol = {
        "network": NETWORK,
        "epochs": RECIPE.epochs,
        "seeds": list(SEEDS),
        "quantiles": QUANTILES,
    }
    path.write_text(
        json.dumps(
            {"provenance": facts, "protocol": protocol, **more, "runs": runs}
        )
        + "\n"
    )


def main() -> None:
    torch.set_num_threads(1)
    se.ATTENTION["none"] = NoAttention
    parameters = sum(
        p.numel() for p in se.spikformer("digits-2-64", **NETWORK).parameters()
    )
    runs = []
    for seed in SEEDS:
        for attention in VARIANTS:
            for steps in TIME_STEPS if attention == "ssa" else (4,):
                config = dict(attention=attention, time_steps=steps, **NETWORK)
                model, run = train_and_test(
                    lambda c=config: se.spikformer("digits-2-64", **c), seed
                )
                run = (
                    {"attention": attention, "time_steps": steps}
                    | run
                    | {"energy": joules(model)}
                )
                if attention != "none":
                    run["ranges"] = ranges(model, *validation_images())
                runs.append(run)
                write(
                    Path(__file__).with_suffix(".json"), runs, parameters=parameters
                )
                print(
                    f"seed {seed}  {attention:10} T = {steps}  {run['cpu_seconds']:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
