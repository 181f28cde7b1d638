# %% [markdown]
# # 12 · Solutions
#
# Back to [chapter 12](../12_imagenet.ipynb).

# %% tags=["setup"]
from pathlib import Path

try:
    import spikformer_edu as se
except ModuleNotFoundError:
    # not installed yet: install it from the repository that holds this notebook
    assert Path("../../pyproject.toml").exists(), (
        "get the whole repository: the package is installed from there"
    )
    # %pip install --quiet ../..
    import spikformer_edu as se

import math
import subprocess
import sys
from dataclasses import replace

import torch
import torch.nn.functional as F

from spikformer_edu.training import RECIPES

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## 12.1 Plan a run
#
# The parts must be equal and must fit, so the number of parts is the smallest divisor of a GPU's share for which a part
# is small enough. Steps and learning rate do not depend on the GPUs: they follow from the global batch alone.


# %% tags=["exercise-1"]
def plan_gpus(recipe, global_batch, gpus=8, fits=48, images=1_281_167):
    """{"per_gpu": ..., "parts": ..., "steps": ..., "lr": ...}"""
    per_gpu = global_batch // gpus
    parts = next(
        n
        for n in range(1, per_gpu + 1)
        if per_gpu % n == 0 and per_gpu // n <= fits
    )
    lr = recipe.lr * (global_batch / recipe.lr_batch_size) ** 0.5
    return {
        "per_gpu": per_gpu,
        "parts": parts,
        "steps": images // global_batch,
        "lr": lr,
    }


# %% tags=["check-1"]
with se.exercise("12.1"):
    mine = plan_gpus(RECIPES["imagenet"], 192)
    assert mine is not None, "write plan_gpus first"
    assert set(mine) == {"per_gpu", "parts", "steps", "lr"}, (
        "return a dictionary with the four keys of the docstring"
    )
    cases = [("imagenet", b, {}) for b in (128, 192, 1024, 1152, 1920, 376)]
    cases.append(("cifar10", 300, {"gpus": 2, "fits": 40, "images": 50_000}))
    for dataset, batch, more in cases:
        mine = plan_gpus(RECIPES[dataset], batch, **more)
        n, most = more.get("gpus", 8), more.get("fits", 48)
        where = f"batch {batch} on {n} GPUs"
        assert mine["per_gpu"] * n == batch, f"{where}: the shares should add up"
        share, k = mine["per_gpu"], mine["parts"]
        assert k >= 1 and share % k == 0, f"{where}: {k} parts cannot be equal"
        assert share // k <= most, f"{where}: a part is too large for a GPU"
        fewer = [j for j in range(1, k) if share % j == 0 and share // j <= most]
        assert not fewer, f"{where}: there is a plan with fewer parts"
        n_images = more.get("images", 1_281_167)
        assert mine["steps"] == n_images // batch, (
            f"{where}: an optimizer step takes one global batch, a whole one"
        )
        lr = replace(RECIPES[dataset], batch_size=batch).scaled_lr
        assert math.isclose(mine["lr"], lr), (
            f"{where}: the rule starts from the recipe's lr and lr_batch_size"
        )

# %% [markdown]
# ## 12.2 A dry run
#
# Give model, T, batch and parts: 32 parts of 32 images are 1,024. Everything else, including the learning rate, comes
# from the recipe of ImageNet.

# %% tags=["exercise-2"]
arguments = [
    "--dataset",
    "imagenet",
    "--model",
    "imagenet-8-384",
    "--time-steps",
    "1",
]
arguments += ["--batch-size", "1024", "--grad-accum-steps", "32", "--dry-run"]

# %% tags=["check-2"]
with se.exercise("12.2"):
    assert arguments is not None, "set arguments to a list of strings"
    assert "--dry-run" in arguments, "this would start to train"
    done = subprocess.run(
        [sys.executable, "-m", "spikformer_edu.train", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
    printed = [line.split() for line in done.stdout.splitlines()]
    names = "model* time_steps* batch_size* grad_accum_steps*".split()
    wanted = dict(zip(names, ("imagenet-8-384", "1", "1024", "32"), strict=True))
    for words in printed:
        if len(words) == 2 and words[0] in wanted:
            name = words[0].rstrip("*")
            assert words[1] == wanted.pop(words[0]), (
                f"{name} is {words[1]}, which is not what the task asks for"
            )
        elif words and words[0].endswith("*"):
            raise AssertionError(
                f"{words[0][:-1]} should stay as the recipe has it"
            )
    assert not wanted, f"not as asked for: {', '.join(n[:-1] for n in wanted)}"

# %% [markdown]
# ## 12.3 A large batch in parts
#
# `cross_entropy` is a mean over the images of a part, so each part counts by its share of the images. `backward` adds
# to the gradients that are there, so they are cleared first.


# %% tags=["exercise-3"]
def gradient_in_parts(model, x, y, parts):
    """The gradient of the mean cross-entropy over all images, as one vector."""
    model.zero_grad()
    splits = zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)
    for x_part, y_part in splits:
        loss = F.cross_entropy(model(x_part), y_part)
        (loss * len(y_part) / len(y)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# %% tags=["check-3"]
with se.exercise("12.3"):
    torch.manual_seed(0)
    config = se.SpikformerConfig(
        dim=32, depth=1, heads=2, time_steps=2, pool=(True, True, True, False)
    )
    small = se.Spikformer(config).double().eval()
    x8, y8 = torch.randn(8, 3, 32, 32).double(), torch.arange(8)
    F.cross_entropy(small(x8), y8).backward()
    whole = torch.cat([p.grad.flatten() for p in small.parameters()])
    sizes = []
    hook = small.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    for count in (1, 2, 3, 5):
        sizes.clear()
        mine = gradient_in_parts(small, x8, y8, count)
        assert mine is not None, "write gradient_in_parts first"
        assert len(sizes) == count and max(sizes) == -(-8 // count), (
            f"{count} parts were asked for; the network got parts of {sizes} images"
        )
        assert mine.shape == whole.shape, "one vector with all parameters"
        size = (mine.norm() / whole.norm()).item()
        assert abs(size - 1) < 0.5, (
            f"{count} parts: {size:.1f} times as long as it should be"
        )
        assert torch.allclose(mine, whole, rtol=1e-8, atol=1e-12), (
            f"{count} parts of {sizes} images: not every image has the same weight"
        )
    hook.remove()
