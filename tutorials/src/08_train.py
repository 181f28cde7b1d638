# %% [markdown]
# # 08 · Train it: toy CIFAR on a laptop
#
# *Run time 45 s on one CPU core · after chapters 02 and 07 · no internet access, no GPU*
#
# A spiking network is trained with the usual tools: AdamW, warm-up, a cosine schedule. New are the quantities that you
# should monitor. A falling loss does not show that some layers have stopped firing; firing rates and gradient norms by
# layer show it at once. This chapter writes the training loop by hand and examines a healthy run and a faulty run. It
# uses real CIFAR-10 if it is on your disk, and otherwise digits.
#
# ## What you will learn
# - write the training loop, and check that every weight equals the package's to the last bit
# - judge a run by its firing rates and gradient norms, not only by its loss
# - recognise a run with silent layers, and repair it
# - scale the learning rate when the batch changes
# - use the test set once

# %% tags=["setup"]
import contextlib
import io
import json
import math
import tempfile
from pathlib import Path

try:
    import spikformer_edu as se
except ModuleNotFoundError:
    # not installed yet: install it from the repository that holds this notebook
    assert Path("../pyproject.toml").exists(), (
        "get the whole repository: the package is installed from there"
    )
    # %pip install --quiet ..
    import spikformer_edu as se

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from spikformer_edu.plot import style
from spikformer_edu.training import DistributedContext, Recipe, learning_rate, train
from spikformer_edu.training.monitor import Rates, firing_warning

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# The figure shows a run that is too long for a notebook, from a results file: the small Spikformer (`digits-2-64`, T =
# 4, with three input channels) on toy CIFAR-10 with 200 real images of each class, 12 epochs. Most people look at loss
# and accuracy. This chapter is about the other panels. Every layer fires, at a rate of a few per cent. Dead features:
# about a third after $QK^TVs$ (`attn.attn`), 16 to 28 % in V, and at most 11 % in all other layers. All parts get
# gradients, and their norms are within two powers of ten.

# %%
results = json.loads(Path("results/08_train.json").read_text())
run, made = results["cifar10"], results["provenance"]
# after 40 digits it may say " with local changes"
commit = made["commit"][:10] + made["commit"][40:]
origin = f"{made['command']} · {made['device']}, {made['threads']} thread · commit {commit}"
fig, axes = se.plot.training(
    run["metrics"],
    title="toy CIFAR-10: 2,000 images, digits-2-64 with three channels, T = 4",
)
fig.supxlabel(origin, fontsize=8, color=style.THRESHOLD)
first, last = run["metrics"][0], run["metrics"][-1]
assert last["loss"] < first["loss"] and last["val_accuracy"] > 0.25
assert all(
    0.02 < value < 0.12 for key, value in last.items() if key.startswith("rate/")
)
assert {
    key for key, value in last.items() if key.startswith("dead/") and value > 0.3
} == {f"dead/blocks.{i}.attn.attn" for i in range(2)}
norms = [value for key, value in last.items() if key.startswith("grad/")]
assert max(norms) < 100 * min(norms)
se.plot.show(
    fig,
    "Six panels over 12 epochs of training on 2,000 CIFAR-10 images, T = 4: the loss falls and the accuracy rises for "
    "training and validation alike; firing rates of all layers stay above zero; the share of dead features; gradient "
    "norms by part on a logarithmic scale; the learning rate falls along a cosine after the warm-up.",
    dpi=80,
)
score = run["result"]
print(
    f"test images, measured once at the end: {score['correct']:,} of {score['total']:,} right; chance is one in ten"
)

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | images | `[B, C, 32, 32]` | reals | normalised; the network repeats them T times |
# | labels | `[B]` | integers 0 to 9 | |
# | logits | `[B, K]` | reals | mean over tokens and time, then the head |
# | rate of a layer | one number | [0, 1] | share of ones among its spikes |
# | dead features | one number | [0, 1] | share of a layer's features that never fired in an epoch |
# | gradient norm of a part | one number | reals | over all weights of a stage, half a block, or the head |

# %% [markdown]
# ## The data
#
# The cell uses CIFAR-10 if it finds it under `$SPIKFORMER_DATA` or `./data`, and otherwise the digits. It downloads
# nothing. A *toy* set keeps only a few samples of each class. T = 2 instead of 4 halves the time. One
# [recipe](../docs/architecture.md) holds all settings that affect the weights.

# %%
dataset = "cifar10" if se.data.count("cifar10") else "digits"
recipe = Recipe(
    dataset=dataset,
    model="digits-2-64",
    time_steps=2,
    samples_per_class=60,  # images of each class
    # digits have a validation set
    val_fraction=0.01 if dataset == "cifar10" else None,
    epochs=4,
    batch_size=24,
    lr_batch_size=24,  # the learning rate is meant for this batch
)
splits = se.data.load(
    dataset,
    samples_per_class=recipe.samples_per_class,
    val_fraction=recipe.val_fraction,
)
print(
    f"{splits.info.title}: {len(splits.train)} to train, {len(splits.val)} to validate, {len(splits.test)} to test"
)
print(
    f"highest learning rate {recipe.scaled_lr}, weight decay {recipe.weight_decay}, {recipe.epochs} epochs"
)

# %%
fig, axes = se.plot.samples(splits.train, splits.info, draws=1)
images, labels = splits.train.fetch(torch.arange(24), None)
assert (
    images.shape[1:] == (splits.info.channels, 32, 32)
    and 0 <= int(labels.min()) <= int(labels.max()) <= 9
)
se.plot.show(
    fig,
    "Eight training samples with their labels; below, the same as the training loop sees them once.",
)

# %% [markdown]
# ## The pieces of the loop
#
# **Predict before you run.** The network is untrained and has ten classes. What is its cross-entropy before the first
# step? Does label smoothing change it?

# %%
torch.manual_seed(recipe.seed)
model = se.Spikformer(recipe.network_for(splits.info))
logits = model(images)
plain = F.cross_entropy(logits, labels).item()
smooth = F.cross_entropy(
    logits, labels, label_smoothing=recipe.label_smoothing
).item()
print(
    f"without smoothing {plain:.1f}, with {smooth:.1f}; ln 10 = {math.log(10):.1f}"
)
assert abs(plain - math.log(10)) < 0.05 and abs(smooth - math.log(10)) < 0.05

# %% [markdown]
# <details><summary>Answer</summary>
#
# ln 10 = 2.30. The initial weights of the head have a standard deviation of 0.02, so all logits are near 0 and each
# class has a probability of about 1/10. Label smoothing takes 0.1 of the label and distributes it over all classes;
# with equal probabilities this changes nothing. If the first loss is far from ln K, the head or the labels are probably
# wrong.
#
# </details>
#
# **The optimizer.** We use AdamW, with weight decay only for matrices and kernels. Decay of batch-norm weights would
# move the layer's currents below the threshold. Decay of biases, which raise the currents, would do the same.


# %%
def optimizer_for(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.dim() >= 2]
    # biases and batch norms
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.warmup_lr, fused=True)


# %% [markdown]
# **The schedule.** The learning rate rises linearly for one epoch and then falls along a cosine. Here we use the
# package's schedule; in exercise 8.2 you write it. The warm-up matters more than in other networks: if the first steps
# are too large, they can push the membranes of a layer below the threshold, where it gets little gradient.

# %%
epochs = torch.linspace(0, recipe.epochs, 200)
rates_of_learning = [learning_rate(recipe, float(epoch)) for epoch in epochs]
fig, ax = plt.subplots(figsize=(6.5, 2.6))
ax.plot(epochs, rates_of_learning, color=style.Q)
ax.set(
    xlabel="epoch",
    ylabel="learning rate",
    title="linear warm-up, then a cosine",
    ylim=(0, None),
)
assert (
    max(rates_of_learning) <= recipe.scaled_lr
    and rates_of_learning[-1] == recipe.min_lr
)
se.plot.show(
    fig,
    "The learning rate climbs linearly during the first epoch and then falls along a cosine to its floor.",
)

# %% [markdown]
# ## The loop by hand
#
# The loop takes thirty lines. The order of the batches comes from `se.data.batches`, which computes it only from (seed,
# epoch). `Rates` monitors one step in eight: it attaches hooks before the forward pass, and counts the spikes of every
# layer.


# %%
def fit(model: se.Spikformer, recipe: Recipe) -> list[dict[str, float]]:
    """Train a model; the result has one row for each epoch."""
    optimizer, watch, rows = optimizer_for(model, recipe), Rates(model), []
    steps = len(splits.train) // recipe.batch_size
    for epoch in range(recipe.epochs):
        model.train()
        total, correct, seen = 0.0, 0, 0
        loader = se.data.batches(
            splits.train,
            recipe.batch_size,
            train=True,
            seed=recipe.seed,
            epoch=epoch,
        )
        for step, (images, labels) in enumerate(loader):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, epoch + step / steps)
            watch.step()
            optimizer.zero_grad()
            logits = model(images)
            loss = F.cross_entropy(
                logits, labels, label_smoothing=recipe.label_smoothing
            )
            # through time and surrogate gradients, as in chapter 02
            loss.backward()
            optimizer.step()
            total, seen = total + loss.item() * len(labels), seen + len(labels)
            correct += int((logits.argmax(1) == labels).sum())
        row = {"epoch": epoch + 1, "loss": total / seen, "accuracy": correct / seen}
        row |= dict(
            zip(
                ("val_loss", "val_accuracy"),
                measure(model, splits.val),
                strict=True,
            )
        )
        row |= {
            f"grad/{part}": norm for part, norm in gradient_norms(model).items()
        }
        for layer, (rate, dead) in watch.pop().items():
            row |= {f"rate/{layer}": rate, f"dead/{layer}": dead}
        rows.append(row | {"lr": optimizer.param_groups[0]["lr"]})
    return rows


@torch.no_grad()
def measure(model: se.Spikformer, split) -> tuple[float, float]:
    """Loss and accuracy in evaluation mode."""
    model.eval()
    loss, correct = 0.0, 0
    for images, labels in se.data.batches(split, 100):
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
    return loss / len(split), correct / len(split)


def gradient_norms(model: se.Spikformer) -> dict[str, float]:
    """Norm of the gradients of the last step, by stage of SPS, half block, and head."""
    squares: dict[str, float] = {}
    for name, p in model.named_parameters():
        part = ".".join(
            name.split(".")[
                : {"sps": 2, "blocks": 3, "head": 1}[name.split(".")[0]]
            ]
        )
        squares[part] = squares.get(part, 0.0) + float(p.grad.square().sum())
    return {part: square**0.5 for part, square in squares.items()}


# %% tags=["nbval-ignore-output"]
torch.manual_seed(recipe.seed)
model = se.Spikformer(recipe.network_for(splits.info))
rows = fit(model, recipe)
for row in rows:
    print(
        f"epoch {row['epoch']}  loss {row['loss']:.2f}  val accuracy {100 * row['val_accuracy']:.0f} %"
    )
assert rows[-1]["loss"] < rows[0]["loss"] - 0.05

# %% tags=["nbval-ignore-output"]
fig, axes = se.plot.training(
    rows,
    title=f"{splits.info.title}, {len(splits.train)} samples, T = {recipe.time_steps}",
)
assert all(
    rows[-1][key] > 0 for key in rows[-1] if key.startswith(("rate/", "grad/"))
)
se.plot.show(
    fig,
    "Six panels over four epochs: the loss falls and the accuracy rises; no layer's firing rate is zero, though some "
    "layers have many features that did not fire in the few steps watched; gradient norms stay within two powers of "
    "ten; the learning rate falls after the warm-up.",
    dpi=80,
)

# %% [markdown]
# Read the figure from left to right. The *loss* falls for both sets. The validation loss is lower, because it is
# measured without label smoothing and without augmentation. *Firing rates* are small and differ by layer, but none is
# zero. *Dead features* are those that never fired in the monitored steps of an epoch. Here only four of 25 steps are
# monitored, so features that fire rarely count as dead. In a long run their number should fall; a layer with only dead
# features passes on no information. *Gradient norms* should stay within a few powers of ten of each other, from the
# first stage to the last half block. If one line falls far below the others, that part does not learn.

# %% [markdown]
# ## The same run from the recipe
#
# The package's loop does the same, and also handles checkpoints, resuming and several GPUs. With the same recipe its
# final weights must equal ours to the last bit.

# %%
with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.redirect_stdout(io.StringIO()) as log,
):
    test = train(recipe, Path(folder), DistributedContext(torch.device("cpu")))
    last, best = se.load_run(folder, which="last").model, se.load_run(folder)
print(f"{len(log.getvalue().splitlines())} epochs logged")
weights = model.state_dict()
assert all(
    torch.equal(value, weights[name]) for name, value in last.state_dict().items()
)
assert best.results["total"] == len(splits.test) == test.total
print(f"{len(weights)} tensors, all equal to those of the loop by hand")

# %% [markdown]
# In a shell the same run is one command. With `--dry-run` it prints the whole recipe and the time and memory that the
# run needs on your machine:
#
#     python -m spikformer_edu.train --dataset digits --samples-per-class 60 --time-steps 2 \
#         --epochs 4 --batch-size 24 --lr-batch-size 24

# %% [markdown]
# ## What does it get wrong?
#
# Look at mistakes before you tune anything. Wrong labels, a wrong normalisation or a flipped axis are easy to see here.
# These are validation samples; we do not use the test set.

# %% tags=["nbval-ignore-output"]
inputs, truth = splits.val.fetch(torch.arange(len(splits.val)), None)
with torch.no_grad():
    guess = model.eval()(inputs).argmax(1)
wrong = (guess != truth).nonzero().flatten()
assert 0 < len(wrong) < 0.9 * len(truth)

names = splits.info.classes
fig, axes = plt.subplots(1, 8, figsize=(10, 1.95))
for ax, i in zip(axes, wrong.tolist(), strict=False):
    ax.imshow(style.image_of(inputs[i]), cmap="gray")
    ax.set_title(
        f"{names[truth[i]]}\nread as {names[guess[i]]}", fontsize=9, loc="center"
    )
    ax.set(xticks=[], yticks=[])
fig.suptitle(
    f"{len(wrong)} of {len(truth)} validation samples are misread, T = {recipe.time_steps}",
    x=0.01,
    ha="left",
)
se.plot.show(
    fig,
    "Eight validation samples that the network has misread, each with its label and what was read.",
)
pairs = torch.bincount(truth[wrong] * 10 + guess[wrong], minlength=100)
for pair in pairs.topk(3).indices.tolist():
    print(
        f"{names[pair // 10]} read as {names[pair % 10]}: {int(pairs[pair])} times"
    )

# %% [markdown]
# ## A silent run
#
# In residual networks a common trick is to start every branch at zero: the weight of its last batch norm is set to 0,
# so that the network starts as the identity. In a spiking network a neuron follows the last batch norm of a branch.
#
# **Predict before you run.** What do these neurons do? Does the loss go down?

# %% tags=["nbval-ignore-output"]
sick_recipe = Recipe(**vars(recipe) | {"epochs": 2})
torch.manual_seed(recipe.seed)
sick = se.Spikformer(recipe.network_for(splits.info))
for block in sick.blocks:
    for layer in (block.attn.proj, block.mlp.out):
        torch.nn.init.zeros_(layer.bn.weight)
sick_rows = fit(sick, sick_recipe)
print(f"loss {sick_rows[0]['loss']:.2f}, then {sick_rows[1]['loss']:.2f}")
assert sick_rows[1]["loss"] < sick_rows[0]["loss"]

seen = {key.removeprefix("rate/"): (sick_rows[-1][key], sick_rows[-1][key.replace("rate/", "dead/")])
        for key in sick_rows[-1] if key.startswith("rate/")}  # fmt: skip
warning = firing_warning(seen)
print("warning:", warning)
silent = [layer for layer, (rate, _) in seen.items() if rate == 0]
assert silent == [
    f"blocks.{i}.{part}" for i in range(2) for part in ("attn.proj", "mlp.out")
]

# %% [markdown]
# <details><summary>Answer</summary>
#
# They never fire. At the start their current is 0 everywhere, and in two epochs their membranes do not reach the
# threshold of 1. The loss falls nevertheless: SPS and the head learn, and the blocks add nothing to the stream. If you
# look only at the loss, you train a network without attention and without MLP and do not notice it. The package prints
# the warning at the end of every epoch in which a layer is silent.
#
# </details>
#
# Below the threshold the surrogate gradient is not zero, but small: $\alpha\,\sigma'(\alpha (H - V_{th}))$ is 1 at the
# threshold and 0.07 at $H = 0$. The weights in front of a batch norm get no gradient while its weight is exactly 0, and
# little gradient as long as it is small. The next figure compares the gradient norms of the faulty and the healthy
# network after two epochs:

# %%
parts = [key for key in rows[1] if key.startswith("grad/")]
fig, ax = plt.subplots(figsize=(8, 3.2))
for offset, (name, found, color) in enumerate(
    (("healthy", rows[1], style.LIGHT), ("silent", sick_rows[1], style.K))
):
    ax.bar([x + 0.4 * offset - 0.2 for x in range(len(parts))], [found[key] for key in parts], 0.4, color=color,
           edgecolor=style.GREY, label=name)  # fmt: skip
ax.set_xticks(
    range(len(parts)),
    [key.removeprefix("grad/") for key in parts],
    rotation=30,
    ha="right",
)
ax.set(
    yscale="log",
    ylabel="gradient norm",
    title=f"after two epochs, T = {recipe.time_steps}",
)
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
blocks = [key for key in parts if "blocks" in key]
assert sum(sick_rows[1][key] for key in blocks) < 0.5 * sum(
    rows[1][key] for key in blocks
)
se.plot.show(
    fig,
    "Bars of the gradient norm of each part of the network on a logarithmic scale, for the healthy and the silent run: "
    "in SPS and the head that of the silent run is about half, in the half blocks about ten times smaller.",
)
slope = (
    4 * torch.sigmoid(torch.tensor(-4.0)) * (1 - torch.sigmoid(torch.tensor(-4.0)))
)
assert abs(slope - 0.07) < 0.005

# %% [markdown]
# To repair a silent layer, correct its current: a batch norm with weight 1 and bias 0 gives currents with a standard
# deviation of 1, which reach the threshold often enough to learn. Check the common causes of a silent layer in this
# order:
#
# 1. a batch norm whose weight is near 0 or whose bias is far below 0 (initialisation, weight decay on norms);
# 2. a wrong threshold: it was chosen for other units ($u$ instead of $H$), or it was raised;
# 3. a learning rate so high that the first steps have destroyed the initial weights;
# 4. evaluation mode after few steps: the running statistics are still near their initial values (see the pitfalls).

# %% [markdown]
# ## The learning rate belongs to a batch size
#
# A recipe's learning rate is meant for its batch size. With a larger batch an epoch has fewer steps, each with less
# noise, and the steps may be larger. Common rules scale the rate linearly with the batch for SGD
# ([Goyal et al., 2017](https://arxiv.org/abs/1706.02677)), and with its square root for Adam and similar optimizers
# ([Malladi et al., 2022](https://arxiv.org/abs/2205.10287)). The same rules apply in the other direction: if you run a
# recipe for eight GPUs on one GPU with the same batch per GPU, the total batch is an eighth. So report batch size and
# learning rate whenever you report an accuracy.
#
# The next figure is from the results file: 800 digits, 6 epochs, T = 4, batches of 32 and 256, two seeds each.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharex=True)
colors = dict(
    zip(
        dict.fromkeys(r["run"] for r in results["scaling"]["runs"]),
        (style.SPIKE, style.K, style.Q, style.V),
        strict=True,
    )
)
lines = dict(zip(colors, ("-", "--", "-.", ":"), strict=True))
for r in results["scaling"]["runs"]:
    label = f"{r['run']}, lr {r['lr']:.2g}" if r["seed"] == 0 else None
    look = dict(
        color=colors[r["run"]], linestyle=lines[r["run"]], marker="o", markersize=3
    )
    axes[0].plot(range(1, 7), r["loss"], label=label, **look)
    axes[1].plot(range(1, 7), [100 * a for a in r["val_accuracy"]], **look)
axes[0].set(title="training loss", xlabel="epoch")
axes[1].set(title="validation accuracy, %", xlabel="epoch", ylim=(0, 100))
fig.legend(
    *axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9
)
fig.suptitle("digits-2-64 on 800 digits, T = 4, two seeds", fontsize=12)
fig.supxlabel(origin, fontsize=8, color=style.THRESHOLD)
end = {
    name: sum(r["loss"][-1] for r in results["scaling"]["runs"] if r["run"] == name)
    / 2
    for name in colors
}
assert (
    end["batch 32"]
    < end["batch 256, linear"]
    < end["batch 256, square root"]
    < end["batch 256, left alone"]
)
se.plot.show(
    fig,
    "Training loss and validation accuracy over six epochs of 800 digits, T = 4, for a batch of 32 and three learning "
    "rates at a batch of 256. The small batch is far ahead; of the large ones, that with the learning rate left alone "
    "learns slowest. In validation the large batches stay at chance or little above.",
)
for name, loss in end.items():
    print(f"{name:24} training loss at the end {loss:.2f}, mean of two seeds")

# %% [markdown]
# The figure shows three things. First, scaling the learning rate recovers a part of what the large batch loses, but no
# rule recovers all of it, because the large batch has 18 steps and the small one 150. Second, the linear rule does
# better here than the square root, although the optimizer is AdamW. In such a short run larger steps help most, and two
# seeds prove nothing. Use a rule only as the start of a search on validation data. Third, with the large batches
# validation accuracy stays at chance, or slightly above, although the training loss falls: after 18 steps the running
# statistics of the batch norms are still far from the right values, and in evaluation mode layers are silent.

# %% [markdown]
# ## The test set, once
#
# If you measure the test set after every epoch and report the best value, you have chosen the epoch on the test set. By
# how much is this value too high? We *simulate* it: a network with a true accuracy of 95 % is measured 24 times on 359
# test digits, without any learning in between, and all of this is repeated 2,000 times.
#
# **Predict before you run.** What is the mean of the best of 24?

# %%
random = torch.Generator().manual_seed(0)
right = torch.rand(2000, 24, 359, generator=random) < 0.95
accuracy = right.float().mean(2)  # [repetitions, epochs]
one, best = float(accuracy[:, 0].mean()), float(accuracy.max(1).values.mean())
print(
    f"simulated: one measurement {100 * one:.1f} %, best of 24 {100 * best:.1f} %"
)
assert abs(one - 0.95) < 0.005 and best > 0.965

# %% [markdown]
# <details><summary>Answer</summary>
#
# About two points above the true accuracy, only by chance. (Epochs of one run are more similar than 24 independent
# draws, so the real error is smaller; on average it is never negative.) Use a validation set to choose the epoch.
# `train` keeps the epoch with the lowest validation loss, and measures the test set once, after the last epoch.
#
# </details>

# %% [markdown]
# ## Pitfalls
#
# - **The loss falls, so it works.** The loss also falls if the blocks are silent. Look at rates and gradients by layer.
# - **Learning rate copied, batch changed.** Symptom: the accuracy is a few points below the published one, or the run
#   diverges in the first epoch. Cure: scale the rate, and keep the same number of warm-up epochs.
# - **The epoch is chosen on the test set.** Symptom: none in your own table. Cure: use a validation set, and measure
#   the test set once.
# - **Evaluation too early.** After few steps the running statistics of the batch norms are still near their initial
#   values. The next cell runs the same network on the same images in both modes after three steps:

# %%
torch.manual_seed(0)
young = se.Spikformer(recipe.network_for(splits.info))
optimizer = optimizer_for(young, recipe)
for images, labels in list(
    se.data.batches(splits.train, recipe.batch_size, train=True)
)[:3]:
    optimizer.zero_grad()
    F.cross_entropy(young(images), labels).backward()
    optimizer.step()
firing = {}
for mode in (True, False):
    with torch.no_grad(), se.record(young.train(mode)) as rec:
        young(images)
    firing[mode] = sum(bool(r.spikes.any()) for r in rec.layers("spikes"))
print(
    f"layers that fire: {firing[True]} in training mode, {firing[False]} in evaluation mode, of 19"
)
assert firing[True] == 19 and firing[False] < 19

# %% [markdown]
# - **Weight decay on batch norms and biases.** Symptom: firing rates fall slowly over many epochs. Cure: decay only
#   matrices and kernels.

# %% [markdown]
# ## Exercises
#
# **8.1 Fix a silent run.** Some batch norms of a network are damaged. Write a function that finds the layers that never
# fire *in training mode*. It sets weight 1 and bias 0 in the batch norm in front of each damaged layer until every
# layer fires. It must not change healthy batch norms. Note that a silent layer also silences the layers behind it,
# which are not damaged. (`model.get_submodule("sps.2").bn` is the batch norm of layer `sps.2`. The same works for
# `attn.proj`, `mlp.hidden` and `mlp.out` of a block. Only such layers are damaged.)


# %% tags=["exercise-1"]
def revive(model: se.Spikformer, images: torch.Tensor) -> list[str]:
    """Repair all damaged layers; return their names in the order in which they were repaired."""
    ...


# %% tags=["check-1"]
with se.exercise("8.1"):
    digits = se.data.load("digits").train.fetch(torch.arange(48), None)[0]
    for damaged in (
        [],
        ["sps.2"],
        ["sps.1", "blocks.0.mlp.hidden", "blocks.1.attn.proj"],
    ):
        torch.manual_seed(3)
        patient = se.spikformer("digits-2-64", time_steps=2)
        norms = {
            name: m
            for name, m in patient.named_modules()
            if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))
        }
        for norm in norms.values():
            torch.nn.init.uniform_(norm.weight, 0.9, 1.1)
        for number, name in enumerate(damaged):
            torch.nn.init.constant_(
                norms[f"{name}.bn"].weight, 0.0 if number % 2 else 0.02
            )
            torch.nn.init.constant_(
                norms[f"{name}.bn"].bias, -2.0 if number % 2 else 0.0
            )
        before = {
            name: (norm.weight.clone(), norm.bias.clone())
            for name, norm in norms.items()
        }
        cured = revive(patient, digits)
        assert cured is not None, "write revive first"
        assert list(cured) == damaged, (
            f"{damaged or 'nothing'} was damaged, {list(cured) or 'nothing'} was cured"
        )
        with torch.no_grad(), se.record(patient.train()) as found:
            patient(digits)
        dumb = [r.name for r in found.layers("spikes") if not r.spikes.any()]
        assert not dumb, f"{dumb[0]} still never fires"
        for name, norm in norms.items():
            same = torch.equal(norm.weight, before[name][0]) and torch.equal(
                norm.bias, before[name][1]
            )
            assert same == (name.removesuffix(".bn") not in damaged), (
                f"{name} was healthy and has been changed"
            )

# %% [markdown]
# **8.2 The schedule.** Write the learning rate after `epoch` epochs (`epoch` may be a fraction). It rises linearly from
# `lowest` to `highest` over the warm-up, then falls along half a cosine to `lowest` at the last epoch, and then stays
# at `lowest`.


# %% tags=["exercise-2"]
def schedule(
    epoch: float, epochs: int, warmup: int, highest: float, lowest: float
) -> float:
    """The learning rate at that moment."""
    ...


# %% tags=["check-2"]
with se.exercise("8.2"):
    assert schedule(0.0, 10, 2, 1.0, 0.1) is not None, "write schedule first"
    assert abs(schedule(0.0, 10, 2, 1.0, 0.1) - 0.1) < 1e-9, (
        "it starts at the lowest rate"
    )
    assert abs(schedule(1.0, 10, 2, 1.0, 0.1) - 0.55) < 1e-9, (
        "half-way through the warm-up it is half-way up"
    )
    assert abs(schedule(2.0, 10, 2, 1.0, 0.1) - 1.0) < 1e-9, (
        "after the warm-up it is highest"
    )
    assert abs(schedule(6.0, 10, 2, 1.0, 0.1) - 0.55) < 1e-9, (
        "half-way down the cosine: the warm-up is not part of it"
    )
    assert abs(schedule(12.0, 10, 2, 1.0, 0.1) - 0.1) < 1e-9, (
        "after the last epoch it stays at the lowest rate"
    )
    paper = Recipe(
        dataset="cifar10",
        epochs=300,
        warmup_epochs=20,
        lr=5e-4,
        batch_size=128,
        lr_batch_size=128,
    )
    for epoch in (0.0, 0.5, 7.25, 20.0, 33.3, 150.0, 299.9, 300.0, 305.0):
        mine = schedule(epoch, 300, 20, 5e-4, 1e-5)
        assert abs(mine - learning_rate(paper, epoch)) < 1e-9, (
            f"the paper's schedule differs at epoch {epoch}"
        )

# %% [markdown]
# **8.3 Scale the learning rate.** A rate is meant for one batch size. Compute the rate for another batch size. Scale
# linearly for SGD, and with the square root for AdamW.


# %% tags=["exercise-3"]
def scaled(lr: float, meant_for: int, batch: int, optimizer: str) -> float:
    """The learning rate for that batch; optimizer is "sgd" or "adamw"."""
    ...


# %% tags=["check-3"]
with se.exercise("8.3"):
    assert scaled(0.1, 256, 1024, "sgd") is not None, "write scaled first"
    assert abs(scaled(0.1, 256, 1024, "sgd") - 0.4) < 1e-12, (
        "SGD: four times the batch, four times the rate"
    )
    assert abs(scaled(0.1, 256, 1024, "adamw") - 0.2) < 1e-12, (
        "AdamW: four times the batch, twice the rate"
    )
    # the ImageNet recipe, 24 images on each of 8 GPUs, on one GPU
    one_gpu = scaled(5e-4, 8 * 24, 24, "adamw")
    assert abs(one_gpu - 5e-4 / math.sqrt(8)) < 1e-12, (
        "a smaller batch wants a smaller rate"
    )
    for batch in (16, 32, 128):
        wanted = Recipe(batch_size=batch).scaled_lr
        assert abs(scaled(3e-3, 32, batch, "adamw") - wanted) < 1e-12, (
            f"the package has {wanted:.2g} at {batch}"
        )

# %% [markdown]
# ## Recap
#
# - The training loop is the usual one. With the same recipe, the loop by hand and the package's loop end with the same
#   bits.
# - Monitor firing rates, dead features and gradient norms by layer. The loss can fall even if layers are silent.
# - To repair a silent layer, check batch norm, threshold and learning rate, in this order.
# - Scale the learning rate with the batch size, make choices on validation data, and measure the test set once.
#
# Next: [chapter 09](09_ablations.ipynb) changes one part at a time. Answers: [solutions](solutions/08_train.ipynb).
