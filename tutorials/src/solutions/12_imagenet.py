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

import subprocess
import sys
from dataclasses import replace

import torch

from spikformer_edu.training import RECIPES

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## 12.1 Plan 8 GPUs
#
# The parts must be equal and must fit, so the number of parts is the smallest divisor of a GPU's share for which a part
# has at most 48 images. Steps and learning rate do not depend on the GPUs: they follow from the global batch alone.


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
    assert mine["per_gpu"] == 24 and mine["parts"] == 1, (
        "192 images on 8 GPUs are 24 each, and 24 fit at once"
    )
    assert mine["steps"] == 6672 and mine["lr"] == 5e-4, (
        "the incomplete last batch is dropped; 192 is the recipe's batch"
    )
    mine = plan_gpus(RECIPES["imagenet"], 1024)
    assert mine["per_gpu"] == 128 and mine["parts"] == 4, (
        "128 do not fit at once, and 3 does not divide 128: 4 parts of 32"
    )
    assert mine["steps"] == 1251, "1,281,167 // 1024"
    assert (
        abs(mine["lr"] - replace(RECIPES["imagenet"], batch_size=1024).scaled_lr)
        < 1e-12
    ), "lr * sqrt(1024 / 192)"

# %% [markdown]
# ## 12.2 A dry run of the real command
#
# Give model, T, batch and parts. Everything else, including the learning rate, comes from the recipe of ImageNet.

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
    assert "--dry-run" in arguments, "without --dry-run it would start to train"
    done = subprocess.run(
        [sys.executable, "-m", "spikformer_edu.train", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
    text = " ".join(done.stdout.split())
    assert "1024 = 1 processes x 32 parts x 32" in text, (
        "the global batch should be 1,024, in 32 parts of 32"
    )
    assert "1,251 an epoch" in text and "16,816,024" in text, (
        "the model should be imagenet-8-384, on ImageNet"
    )
    assert "time_steps* 1 " in text, "T should be 1"
    assert "0.00115 = 0.0005 x sqrt(1024 / 192)" in text, (
        "leave the learning rate to the recipe"
    )

# %% [markdown]
# ## 12.3 A memory budget
#
# Subtract 16 bytes for each weight from the budget, divide the rest by the bytes of an image, and round down.


# %% tags=["exercise-3"]
def images_that_fit(budget, parameters, per_image):
    """Largest number of images at once."""
    return max(0, (budget - 4 * 4 * parameters) // per_image)


# %% tags=["check-3"]
with se.exercise("12.3"):
    assert images_that_fit(10**9, 10**6, 10**7) is not None, (
        "write images_that_fit first"
    )
    assert images_that_fit(10**9, 10**6, 10**7) == 98, (
        "(1e9 - 16e6) / 1e7, rounded down"
    )
    assert images_that_fit(10**9, 10**6, 15 * 10**6) == 65, "65.6 images are 65"
    assert images_that_fit(10**6, 10**6, 10**7) == 0, (
        "if the weights do not fit, no image does"
    )
    assert images_that_fit(4 * 4 * 5 + 7 * 3, 5, 7) == 3, (
        "a whole number of images, exactly at the limit too"
    )
