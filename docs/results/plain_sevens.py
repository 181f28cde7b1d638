"""What drawn sevens in training cost on real digits. ``python docs/results/plain_sevens.py --out FILE``.

The protocol, written before these runs. The recipe of ``digits`` (36 epochs) with seeds 1 to 5, twice each: with real
sevens only (``augment.plain_sevens=0``), and with three in ten replaced by drawn ones, as the recipe has it (0.3).
Both use the same split of the digits. The epoch is chosen on the 180 digits for validation; the 359 test digits are
measured once in each run and choose nothing: the packaged network (seed 0) stays whatever comes out. The question is
the difference of the two in test accuracy, seed by seed. Each network also reads 200 plain sevens, drawn as those in
training are, but others.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import spikformer_edu as se
from spikformer_edu import cli
from spikformer_edu.atomic import write_json
from spikformer_edu.data.digits import plain_sevens, render
from spikformer_edu.provenance import provenance
from spikformer_edu.training import DistributedContext, load_run, recipe_for, train

SEEDS, SHARES = (1, 2, 3, 4, 5), (0.0, 0.3)
DRAWN = 200


@dataclass(frozen=True)
class Options:
    out: Path
    """JSON file for the answers; runs that are there already are not made again."""


def right_sevens(model: se.Spikformer) -> int:
    """How many of the drawn sevens the network reads as 7."""
    generator = torch.Generator().manual_seed(7)
    pixels = render(plain_sevens(DRAWN, generator), generator)
    facts = se.data.info("digits")
    with torch.no_grad():
        return int((model((pixels - facts.mean[0]) / facts.std[0]).argmax(1) == 7).sum())


def main(options: Options) -> None:
    """Train what is missing, and write what each network answers."""
    torch.set_num_threads(1)
    content = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
    made = provenance(torch.device("cpu"))
    content["provenance"] = made | {"command": f"python docs/results/plain_sevens.py --out {options.out.name}"}
    done = {(run["seed"], run["plain_sevens"]) for run in content["runs"]}
    for seed in SEEDS:
        for share in SHARES:
            if (seed, share) in done:
                continue
            recipe = recipe_for("digits")
            recipe = replace(recipe, seed=seed, augment=replace(recipe.augment, plain_sevens=share))
            with TemporaryDirectory() as folder:
                score = train(recipe, Path(folder) / "run", DistributedContext(torch.device("cpu")))
                sevens = right_sevens(load_run(Path(folder) / "run").model)
            content["runs"].append(
                {"seed": seed, "plain_sevens": share, "right": round(score.accuracy * 359), "drawn_sevens": sevens}
            )
            write_json(options.out, content)
            print(content["runs"][-1], flush=True)


if __name__ == "__main__":
    cli.run(main, "python docs/results/plain_sevens.py")
