# %% [markdown]
# # 08 · Train it: toy CIFAR on a laptop
#
# *Run time 100 s on one CPU core · after chapters 02 and 07 · no internet access, no GPU*
#
# This chapter trains the network that you built in [chapter 07](07_assemble_and_verify.ipynb). The tools are the usual
# ones: AdamW, warm-up, a cosine schedule. One task is new: you have to watch the firing rates, because layers can stop
# firing while the network trains, and the loss does not show it. If CIFAR-10 is on your disk, the chapter trains on it,
# for minutes on a CPU and in full on a GPU. If not, it does the same with handwritten digits.
#
# ![The network's parts, from image to answer; this chapter is about training all of them](../docs/images/network_map/08.svg)
#
# ## What you will learn
# - write a training step, and check it against the package's network: the same loss, the same gradients
# - train on CIFAR-10 or on digits, watch the curve while it grows, stop the run and resume it
# - judge a run by the firing rates of its layers, not only by its loss
# - say what dead features are, and whether they do harm
# - use the test set once

# %% tags=["setup"]
import contextlib
import copy
import csv
import io
import json
import math
import signal
import tempfile
from collections import OrderedDict
from dataclasses import replace
from itertools import islice
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
from IPython.display import clear_output
from torch import Tensor, nn

from spikformer_edu.data import Augment
from spikformer_edu.plot import style
from spikformer_edu.training import (
    DistributedContext,
    Recipe,
    RunOptions,
    choose_device,
    learning_rate,
    load_run,
    load_splits,
    recipe_for,
    train,
)
from spikformer_edu.training.monitor import Rates, firing_warning
from spikformer_edu.training.pace import step_seconds

torch.manual_seed(0)
threads = torch.get_num_threads()
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## On your machine
#
# The next cell chooses the device, the data and the [recipe](../docs/architecture.md), which holds all settings that
# affect the weights. It looks for CIFAR-10 under `$SPIKFORMER_DATA` or `./data`, and downloads nothing. To fetch
# CIFAR-10, run `python -m spikformer_edu.data prepare cifar10` and then this notebook from the top.

# %% tags=["nbval-ignore-output"]
device = choose_device("auto")  # a GPU if there is one
context = DistributedContext(device)
dataset = "cifar10" if se.data.count("cifar10") else "digits"
if dataset == "digits":
    recipe = Recipe(epochs=8)
elif device.type != "cuda":  # the small network for color, T = 2, few images
    torch.set_num_threads(threads)
    recipe = Recipe(
        dataset="cifar10",
        time_steps=2,
        samples_per_class=1000,
        val_fraction=0.1,
        epochs=4,
        augment=Augment(flip=0.5, crop_padding=4),
    )
else:  # the paper's network, T = 4, all images; recipe_for("cifar10") trains longer
    recipe = recipe_for("cifar10", "fast-t1")
    recipe = replace(recipe, time_steps=4, val_fraction=0.04)

splits = load_splits(recipe)
minutes = 1
if dataset == "cifar10":  # measured
    seconds = step_seconds(recipe, context, splits, RunOptions(), steps=8)
    steps = len(splits.train) // recipe.batch_size * recipe.epochs
    minutes = math.ceil(seconds * steps / 60)
print("On your machine this notebook will")
print(f"- compute on: {device}")
print(f"- train {recipe.model}, T = {recipe.network.time_steps}")
print(f"- on {splits.info.title}: {len(splits.train):,} images")
print(f"- for {recipe.epochs} epochs")
print(f"- take about {minutes} min for it")
assert len(splits.train) >= 1000 and len(splits.val) >= 180

# %% [markdown]
# ## The key figure
#
# The figure shows a whole training on CIFAR-10 that was run before on a GPU: the paper's network `cifar10-4-384`, 48
# epochs with T = 1 and, from the white line on, 42 epochs with T = 4. It ended at 91.8 % on the test images. Each row
# is a layer, each column an epoch. Left: the firing rate, which is the share of time steps with a spike. At the end
# every layer fires, at rates of 2.5 to 17 %. Right: the share of dead features. These are features that did not fire at
# all in the one training step (256 images) that was watched in each epoch. In the second epoch, while the learning rate
# climbs, up to 36 % of the features of a layer are dead, in the fifth 38 %. At the end the maximum is 1 %. The loss does not show this: it
# falls from 2.15 to 0.66, with one clear rise at the white line, where T changes.

# %% tags=["fold"]
runs = [Path(f"../docs/results/cifar10-fast-t{t}") for t in (1, 4)]
rows = [row for run in runs for row in csv.DictReader((run / "metrics.csv").open())]
rows = [row | {"epoch": number} for number, row in enumerate(rows, 1)]
health = [
    {k: v for k, v in row.items() if not k.startswith("grad/")} for row in rows
]
made = json.loads((runs[1] / "config.json").read_text())["provenance"]
fig, axes = se.plot.training_layers(
    health, title="cifar10-4-384 on CIFAR-10, 50,000 images, T = 1, then T = 4"
)
for ax in axes:
    ax.axvline(48.5, color="white", linewidth=2)
fig.supxlabel(
    f"{made['device']}, commit {made['commit'][:10]}, {made['command'][:56]} ...",
    fontsize=8,
    color=style.THRESHOLD,
)
se.plot.show(
    fig,
    "Two maps with a row for each of the 33 layers of cifar10-4-384 and a column "
    "for each of 90 epochs. Left: firing rates. Right: the share of features that "
    "did not fire in the batch that was watched: over a third in epoch 2, "
    "almost none at the end.",
    dpi=80,
)
losses = [float(row["loss"]) for row in rows]
dead = [
    {k: float(v) for k, v in row.items() if k.startswith("dead/")} for row in rows
]
score = json.loads((runs[1] / "results.json").read_text())["accuracy"]
print(
    f"loss {losses[0]:.2f} to {losses[-1]:.2f}; test accuracy {100 * score:.1f} %"
)
for epoch, found in ((2, dead[1]), (90, dead[-1])):
    most = max(found, key=found.get)
    print(
        f"epoch {epoch}: in {most[5:]} {100 * found[most]:.0f} % are dead, the most"
    )
assert round(max(dead[1].values()), 2) == 0.36 and max(dead[-1].values()) < 0.05
assert [round(max(found.values()), 2) for found in dead].index(0.38) == 4
rates = [100 * float(v) for k, v in rows[-1].items() if k.startswith("rate/")]
print(f"firing rates in epoch 90: {min(rates):.1f} to {max(rates):.1f} %")
assert 2 < min(rates) < max(rates) < 18

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | images | `[B, C, 32, 32]` | reals | normalized; the network repeats them T times |
# | labels | `[B]` | integers 0 to 9 | |
# | logits | `[B, K]` | reals | mean over tokens and time, then the head |
# | rate of a layer | one number | [0, 1] | share of ones among its spikes |
# | dead features of a layer | one number | [0, 1] | share of features that fired in no step that was watched |

# %% [markdown]
# ## The data
#
# The upper row shows samples as they are. The lower row shows them as the training loop gets them once: digits are
# drawn again, a little turned and shifted and with another stroke width; photographs are shifted and mirrored.

# %% tags=["nbval-ignore-output", "fold"]
fig, axes = se.plot.samples(splits.train, splits.info, draws=1)
images, labels = splits.train.fetch(torch.arange(24), None)
assert images.shape[1:] == (splits.info.channels, 32, 32)
assert 0 <= int(labels.min()) <= int(labels.max()) <= 9
se.plot.show(
    fig,
    "Eight training samples with their labels; below, the same as the training "
    "loop gets them once.",
)

# %% [markdown]
# ## One step of the network of chapter 07
#
# The network is the one from chapter 07: the next cell runs the cells of that notebook that define it.

# %%
cells = json.loads(Path("07_assemble_and_verify.ipynb").read_text("utf-8"))["cells"]
parts = [c["source"] for c in cells if "network" in c["metadata"].get("tags", [])]
chapter_07 = {"torch": torch, "nn": nn, "F": F, "Tensor": Tensor, "se": se}
chapter_07["OrderedDict"] = OrderedDict
for source in parts:
    exec("".join(source), chapter_07)
Network = chapter_07["Network"]

torch.manual_seed(recipe.seed)
config = recipe.network_for(splits.info)
start = se.Spikformer(config).state_dict()  # the paper's initial weights
network = Network(config)
network.load_state_dict(start)
network.to(device)
print(f"{sum(p.numel() for p in network.parameters()):,} parameters")

# %% [markdown]
# A training step has four lines: the loss, its gradients, the optimizer's update, and clearing the gradients.
# `loss.backward()` goes back through all layers and time steps, with the surrogate gradient at every neuron
# ([chapter 02](02_surrogate_gradient.ipynb)). Label smoothing takes 0.1 of the label and distributes it over all
# classes.
#
# **Predict before you run.** The network is untrained, and there are ten classes. How large is its loss before the
# first step? Does label smoothing change it?

# %% tags=["predict", "nbval-ignore-output"]


def loss_of(
    model: nn.Module, images: Tensor, labels: Tensor, smoothing=0.1
) -> Tensor:
    return F.cross_entropy(model(images), labels, label_smoothing=smoothing)


def step(model, optimizer, images: Tensor, labels: Tensor) -> float:
    loss = loss_of(model, images, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


images, labels = images.to(device), labels.to(device)
plain = loss_of(network, images, labels, smoothing=0).item()
smooth = loss_of(network, images, labels).item()
print(f"without smoothing {plain:.2f}, with smoothing {smooth:.2f}")
assert abs(plain - math.log(10)) < 0.05 and abs(smooth - plain) < 0.05

# %% [markdown]
# <details><summary>Answer</summary>
#
# About ln 10 = 2.30. The initial weights of the head are small, so the logits are small too, and each class has a
# probability of about 1/10. Smoothing changes the labels, and with equal probabilities this changes nothing. If the
# first loss is far from ln K, the head or the labels are probably wrong.
#
# </details>
#
# Now forty steps with AdamW on batches of 16. The loss falls: the network from chapter 07 learns.

# %% tags=["nbval-ignore-output"]
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
loader = se.data.batches(splits.train, 16, train=True)
losses = []
for images, labels in islice(loader, 40):
    losses.append(step(network, optimizer, images.to(device), labels.to(device)))
first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
print(f"mean loss of the first five steps {first:.2f}, of the last five {last:.2f}")
assert last < first

# %% [markdown]
# ## The package's network takes the same step
#
# The neuron of chapter 07 runs a Python loop over T, and the convolution repeats the same still image T times. The
# package's network computes the same without that waste. Before we use it, we compare both in float64: equal weights,
# eight images, three steps of AdamW.

# %% tags=["nbval-ignore-output"]
own, package = Network(config).double(), se.Spikformer(config).double()
for model in (own, package):
    model.load_state_dict(start)
pair = {"chapter 07": own, "package": package}
optimizers = {
    k: torch.optim.AdamW(m.parameters(), lr=2e-3) for k, m in pair.items()
}
batch, targets = splits.train.fetch(torch.arange(8), None)
for number in range(1, 4):
    loss = {
        k: step(m, optimizers[k], batch.double(), targets) for k, m in pair.items()
    }
    gradients = zip(own.parameters(), package.parameters(), strict=True)
    gap = max(float((a.grad - b.grad).abs().max()) for a, b in gradients)
    print(f"step {number}: loss {loss['chapter 07']:.6f} and {loss['package']:.6f}")
    assert abs(loss["chapter 07"] - loss["package"]) < 1e-9 and gap < 1e-9
print("all gradients agree to 1e-9")

# %% [markdown]
# ## The whole run
#
# One step is not a training. The package's `train` repeats it for all epochs, sets the learning rate before each step
# (a linear warm-up, then half a cosine), applies no weight decay to biases and batch norms, measures loss and accuracy
# on the validation set after each epoch, and writes a checkpoint. After each epoch it calls `on_epoch` with the log;
# our function draws the curve again. In a shell the same run is one command: `python -m spikformer_edu.train --dataset
# digits`, for example.
#
# Long runs get interrupted. We interrupt this one on purpose: after two epochs the cell sends the signal that Jupyter's
# stop button sends.

# %% tags=["nbval-ignore-output"]
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
if dataset == "cifar10":  # a folder that stays: the run goes on from there
    folder = Path("runs") / f"08-{recipe.model}-{device.type}"
    folder.mkdir(parents=True, exist_ok=True)
SHOWN = ("epoch", "loss", "val_loss", "accuracy", "val_accuracy")


def draw(rows: list[dict]) -> None:
    title = f"{recipe.model} on {splits.info.title}, T = {config.time_steps}"
    fig, axes = se.plot.training(
        [{k: r[k] for k in SHOWN} for r in rows], title=title
    )
    clear_output(wait=True)  # the next figure takes the place of this one
    alt = "Loss and accuracy of training and validation images over the epochs."
    se.plot.show(fig, alt, dpi=80)


def stop_after_two(rows: list[dict]) -> None:
    draw(rows)
    if len(rows) == 2:
        signal.raise_signal(signal.SIGINT)


def go(on_epoch):
    with contextlib.redirect_stdout(io.StringIO()):  # the figure says it
        return train(recipe, folder, context, splits=splits, on_epoch=on_epoch)


try:
    go(stop_after_two)
except se.SpikformerError as stopped:
    print(str(stopped).partition(",")[0])
assert (folder / "resume.pt").exists()

# %% [markdown]
# The same call continues where the run was stopped, with the saved weights, optimizer state, learning rate and order of
# the images. On the same machine with the same number of threads, the final weights equal those of a run without a
# stop, to the last bit. If your kernel dies during the long run, start the notebook again: with CIFAR-10 the run folder
# stays, and the cell resumes.
#
# **Predict before you run.** The validation loss will be lower than the training loss. Why?

# %% tags=["predict", "nbval-ignore-output"]
score = go(draw)
log = list(csv.DictReader((folder / "metrics.csv").open()))
draw(log)
print(f"{len(log)} epochs; test images, measured once at the end:")
print(f"{score.correct:,} of {score.total:,} right, {100 * score.accuracy:.1f} %")
goal = {"digits": 0.9, "cifar10": 0.35 if recipe.samples_per_class else 0.8}[
    dataset
]
assert len(log) == recipe.epochs and score.accuracy > goal

# %% [markdown]
# <details><summary>Answer</summary>
#
# The training loss is measured with label smoothing and on augmented images, which are harder to read. It is also the
# mean over an epoch in which the weights still change. The validation loss has none of this.
#
# </details>

# %% [markdown]
# If you have no CIFAR-10, this is what the cells above gave with it, from a [results file](results/08_train.json): the
# small network, 10,000 of the 50,000 training images (1,000 of them for validation), T = 2. On a CUDA GPU the same
# cells train the paper's network on 48,000 images and validate on 2,000, for 77 epochs with T = 4. The run of the key
# figure had 90 epochs, 48 of them with T = 1, and no validation images.

# %%
cifar = json.loads(Path("results/08_train.json").read_text())
made, result, metrics = cifar["provenance"], cifar["result"], cifar["metrics"]
accuracies = ", ".join(f"{100 * row['val_accuracy']:.0f}" for row in metrics)
print(f"validation accuracy by epoch, in %: {accuracies}")
print(f"test images: {result['correct']:,} of {result['total']:,} right")
most = 100 * metrics[-1]["dead/blocks.1.attn.attn"]
print(f"dead features of blocks.1.attn.attn at the end: {most:.0f} %")
print(f"the whole chapter: {cifar['cpu_seconds'] / 60:.1f} minutes of one CPU core")
print(f"{made['device']}, commit {made['commit'][:10]}, {made['command']}")
assert result["total"] == 10_000 and result["accuracy"] > 0.35

# %% [markdown]
# ## What does it get wrong?
#
# Look at mistakes before you change any setting. Wrong labels, a wrong normalization or a flipped axis are easy to see
# here. These are validation images; we do not use the test set again.

# %% tags=["nbval-ignore-output", "fold"]
trained = load_run(folder).model.to(
    device
)  # the epoch with the lowest validation loss
inputs, truth = splits.val.fetch(torch.arange(len(splits.val)), None)
with torch.no_grad():
    parts = [trained(part.to(device)).argmax(1).cpu() for part in inputs.split(100)]
guess, names = torch.cat(parts), splits.info.classes
table = torch.bincount(truth * 10 + guess, minlength=100).view(10, 10)
wrong = (guess != truth).nonzero().flatten().tolist()
spread = wrong[:: max(1, len(wrong) // 8)]  # of all classes

fig = plt.figure(figsize=(10, 4.2))
left, right = fig.subfigures(1, 2, width_ratios=[1, 1.15])
ax = left.subplots()
ax.imshow(table, cmap=style.HEAT)
for i in range(10):
    for j in range(10):
        color = "white" if table[i, j] < table.max() / 2 else "black"
        ax.text(
            j, i, int(table[i, j]), ha="center", va="center", color=color, size=8
        )
ax.set_xticks(range(10), names, rotation=90 if len(names[0]) > 1 else 0, fontsize=9)
ax.set_yticks(range(10), names, fontsize=9)
ax.set(xlabel="read as", ylabel="label", title=f"{len(truth):,} validation images")
panels = right.subplots(2, 4).ravel()
for panel in panels:
    panel.axis("off")
for panel, i in zip(panels, spread, strict=False):
    panel.imshow(style.image_of(inputs[i]), cmap="gray")
    title = f"{names[truth[i]]}\nread as {names[guess[i]]}"
    panel.set_title(title, fontsize=9, loc="center")
right.suptitle(f"{len(wrong)} are misread, for example", fontsize=12)
se.plot.show(
    fig,
    "Left: a table of labels and answers for the validation images; most lie on "
    "the diagonal. Right: up to eight images that were misread, with label and "
    "answer.",
    dpi=80,
)
assert 0 < len(wrong) < (1 - goal) * len(truth) * 1.3

# %% [markdown]
# ## What training has changed inside
#
# We compare the network before its first step and after its last one, on the same 64 validation images. Both run in
# training mode, so that the batch norms use the statistics of these images. (In evaluation mode all
# layers of the untrained network but the first are silent; see the pitfalls.)
#
# **Predict before you run.** At the start the batch norms give almost every layer currents with mean 0 and standard
# deviation 1. Which layer has no batch norm before it, and how much does it fire before training?

# %% tags=["predict", "nbval-ignore-output"]


def look(model: se.Spikformer, images: Tensor):
    """What every layer does in training mode; the model itself stays as it is."""
    model = copy.deepcopy(model).train()
    with torch.no_grad(), se.record(model, membranes=True) as rec:
        model(images)
    return rec


untrained = se.Spikformer(config)
untrained.load_state_dict(start)
before = look(untrained.to(device), inputs[:64].to(device))
after = look(trained, inputs[:64].to(device))
layers = [layer.name for layer in before.layers("spikes")]
rates = {
    "before": [100 * float(before[name].spikes.mean()) for name in layers],
    "after": [100 * float(after[name].spikes.mean()) for name in layers],
}
for name in ("sps.rpe", "blocks.0.mlp.hidden", "blocks.0.attn.attn"):
    one, two = (rates[when][layers.index(name)] for when in ("before", "after"))
    print(f"{name:20} fires in {one:.2f} % of the steps before, {two:.2f} % after")
place = layers.index("blocks.0.attn.attn")
assert min(rates["after"]) > 0
assert rates["after"][place] > 2 * rates["before"][place]

# %% tags=["fold"]
fig, ax = plt.subplots(figsize=(7, 0.9 + 0.24 * len(layers)))
rows = torch.arange(len(layers))
ax.barh(rows - 0.2, rates["before"], 0.4, color=style.LIGHT, label="before")
ax.barh(rows + 0.2, rates["after"], 0.4, color=style.SPIKE, label="after")
ax.set_yticks(rows, layers, fontsize=9)
ax.set(ylim=(len(layers) - 0.4, -0.6), xlabel="firing rate, % of time steps")
ax.set_title(f"every layer, before and after training, T = {config.time_steps}")
ax.legend()
se.plot.show(
    fig,
    "Two bars for every layer: its firing rate on 64 images before training, and "
    "after it.",
    dpi=80,
)

# %% tags=["fold"]
chosen = {}
for name in ("sps.rpe", "blocks.0.mlp.hidden", "blocks.1.attn.attn"):
    for when, found in (("before", before), ("after", after)):
        chosen[f"{name}, {when}"] = found[name]
fig, axes = se.plot.landscape(chosen)
axes[-1].set_xlabel("membrane potential H (threshold: 1, but 0.5 after attention)")
se.plot.show(
    fig,
    "Histograms of the membranes of three layers before and after training, over "
    "the derivative of the surrogate and the threshold.",
    dpi=80,
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The neuron after $Q K^T V s$, `attn.attn`. Before training it fires less than most other layers (with digits in 0.07 %
# of the steps in block 0), so the layer behind it, `attn.proj`, gets little input. Training raises its rate (with
# digits to 13 %): in the lowest two histograms the membranes move across the threshold. With digits, most other layers
# fire 1.5 to 3 times as often as before; `sps.0` hardly changes, and `sps.1` fires less.
#
# </details>

# %% [markdown]
# ## Dead features
#
# A feature is a channel of SPS or an output of a linear layer; all its positions share weights. It is *dead* in an
# epoch if it fired at no position, in no step that was watched; `train` watches one step in eight on a CPU. The figure
# shows the run above in the form of the key figure. The third map is new: the norm of the gradient of each part of the
# network.

# %% tags=["nbval-ignore-output", "fold"]
fig, axes = se.plot.training_layers(
    log, title=f"{recipe.model} on {splits.info.title}, T = {config.time_steps}"
)
se.plot.show(
    fig,
    "Three maps with a row for each layer and a column for each epoch: firing "
    "rate, dead features, gradient norm.",
    dpi=80,
)
peaks = {
    k.removeprefix("dead/"): [float(row[k]) for row in log]
    for k in log[0]
    if k.startswith("dead/")
}
worst = max(peaks, key=lambda name: sum(peaks[name]))
shares = ", ".join(f"{100 * share:.0f}" for share in peaks[worst])
print(f"{worst}, dead features by epoch, in %: {shares}")
assert max(peaks[worst]) < 1

# %% [markdown]
# In the key figure, and with digits, `attn.attn`, the neuron after $Q K^T V s$, is among the layers with the most dead
# features. The reason is its current. All other neurons get their current from a batch norm, which at the start of
# training gives every feature a standard deviation of 1. Before this neuron there is no batch norm. The current of a
# feature is $s = 0.125$ times a count: how often its spikes in V meet spikes in Q and K. To fire in the first time
# step, $H = X / 2$ must reach 0.5, so this count must reach 8. A feature that rarely fires in V does not get there. The
# share climbs in the first epochs and falls later, so a run that ends too early keeps many dead features: the four
# epochs on CIFAR-10 above ended with 36 %. (With digits one of the eight features of `sps.0` is also dead, in every
# epoch.)
#
# Does this harm the network? We run the trained network on more training images, find the features of `attn.attn` that
# never fire, and force them to 0 while it reads the validation images.
#
# **Predict before you run.** By how much does the accuracy change?

# %% tags=["predict", "nbval-ignore-output"]
watch = Rates(trained, every=1)
loader = se.data.batches(splits.train, 100, train=True)
with torch.no_grad():
    for images, _ in islice(loader, 20):
        watch.step()
        trained(images.to(device))
attention = [f"blocks.{i}.attn.attn" for i in range(config.depth)]
alive = {
    name: (watch.sums[name] > 0).view(config.heads, 1, -1) for name in attention
}
watch.close()


def only(mask: Tensor):
    return lambda spikes: spikes * mask  # [T, B, h, N, d] x [h, 1, d]


with torch.no_grad(), se.intervene(trained, {k: only(m) for k, m in alive.items()}):
    parts = [trained(part.to(device)).argmax(1).cpu() for part in inputs.split(100)]
without = torch.cat(parts)
for name, mask in alive.items():
    share = 1 - float(mask.float().mean())
    print(
        f"{name}: {100 * share:.0f} % of the features never fired, and are removed"
    )
accuracy = [
    100 * float((answers == truth).float().mean()) for answers in (guess, without)
]
print(f"accuracy before {accuracy[0]:.1f} %, after {accuracy[1]:.1f} %")
assert abs(accuracy[0] - accuracy[1]) < 1

# %% [markdown]
# <details><summary>Answer</summary>
#
# Not at all, or by a few images: a feature that never fires passes nothing on, so it can be removed. Dead features do
# no harm to what the network has learned. But they are unused width: the network computes them and gains nothing.
# They can come back, because the surrogate gradient is not zero below the threshold. In the key figure, with 50,000
# photographs to learn, almost all of them do.
#
# So judge the share together with the accuracy. If the share falls, or stays while the accuracy rises, wait. If it
# climbs while the accuracy stalls, something is wrong, and 100 % in a layer is always a fault.
#
# </details>

# %% [markdown]
# ## A silent run
#
# In residual networks a common trick is to start every branch at zero: the weight of its last batch norm is set to 0,
# so that every block starts as the identity. In a spiking network a neuron follows this batch norm.
#
# **Predict before you run.** What do these neurons do? Which parts of the network can still learn?

# %% tags=["predict", "nbval-ignore-output"]
sick = se.Spikformer(config)
sick.load_state_dict(start)
for block in sick.blocks:
    for layer in (block.attn.proj, block.mlp.out):
        nn.init.zeros_(layer.bn.weight)
sick.to(device)
optimizer = torch.optim.AdamW(sick.parameters(), lr=3e-3)
watch, sick_losses = Rates(sick), []
loader = se.data.batches(splits.train, 32, train=True)
for images, labels in islice(loader, 80):
    watch.step()
    sick_losses.append(step(sick, optimizer, images.to(device), labels.to(device)))
found = watch.pop()
first, last = sum(sick_losses[:5]) / 5, sum(sick_losses[-5:]) / 5
print(f"mean loss of the first five steps {first:.2f}, of the last five {last:.2f}")
print("the package warns:", firing_warning(found).partition(" (")[0])
silent = [layer for layer, (rate, _) in found.items() if rate == 0]
branches = [
    f"blocks.{i}.{part}"
    for i in range(config.depth)
    for part in ("attn.proj", "mlp.out")
]
assert last < first and silent == branches

# %% [markdown]
# <details><summary>Answer</summary>
#
# They never fire. Their current is 0 everywhere at the start, and their membranes do not reach the threshold of 1. SPS
# and the head learn, so the loss falls nevertheless (with digits from 2.30 to 2.03). The blocks add nothing to the
# stream. If you look only at the loss, you train a network without attention and without MLP and do not notice it.
# `train` prints this warning at the end of every epoch in which a layer is silent.
#
# </details>
#
# To repair a silent layer, correct its current. A batch norm with weight 1 and bias 0 gives currents with a standard
# deviation of 1, which reach the threshold often enough to learn. Check the common causes in this order:
#
# 1. a batch norm whose weight is near 0 or whose bias is far below 0 (initialization, weight decay on norms);
# 2. a wrong threshold: it was chosen for $u$ instead of $H$ ([chapter 01](01_leaky_neuron.ipynb)), or it was raised;
# 3. a learning rate so high that the first steps have destroyed the initial weights;
# 4. evaluation mode after few steps: the running statistics are still near their initial values (see the pitfalls).

# %% [markdown]
# ## The test set, once
#
# If you measure the test set after every epoch and report the best value, you have chosen the epoch on the test set. By
# how much is this value too high? We *simulate* it: a network with a true accuracy of 95 % is measured 24 times on 359
# test digits, without any learning in between, and all of this is repeated 2,000 times.
#
# **Predict before you run.** What is the mean of the best of 24?

# %% tags=["predict"]
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
# About two points above the true accuracy, only by chance. Epochs of one run are more similar than 24 independent
# draws, so the real error is smaller, but on average it is never negative. Use a validation set to choose the epoch.
# `train` keeps the epoch with the lowest validation loss and measures the test set once, after the last epoch.
#
# </details>

# %% [markdown]
# ## Pitfalls
#
# - **The loss falls, so it works.** The loss also falls if the blocks are silent. Cure: look at the rates of all
#   layers.
# - **Learning rate copied, batch changed.** Symptom: the accuracy is a few points below the published one, or the run
#   diverges in the first epoch. A recipe's learning rate belongs to its batch size, summed over all GPUs. Scaling rules
#   (linear for SGD, [Goyal et al., 2017](https://arxiv.org/abs/1706.02677); with the square root for Adam, [Malladi et
#   al., 2022](https://arxiv.org/abs/2205.10287)) give a first value. Search around it on validation data.
# - **The epoch is chosen on the test set.** Symptom: none in your own table. Cure: use a validation set, and measure
#   the test set once.
# - **Weight decay on batch norms and biases.** Symptom: firing rates fall slowly over many epochs. Cure: decay only
#   matrices and kernels.
# - **Evaluation too early.** After few steps the running statistics of the batch norms are still near their initial
#   values. The next cell runs the same network on the same images in both modes after three steps:

# %% tags=["nbval-ignore-output"]
young = se.Spikformer(config)
young.load_state_dict(start)
young.to(device)
optimizer = torch.optim.AdamW(young.parameters(), lr=2e-3)
loader = se.data.batches(splits.train, 32, train=True)
for images, labels in islice(loader, 3):
    step(young, optimizer, images.to(device), labels.to(device))
firing = {}
for mode in (True, False):
    with torch.no_grad(), se.record(young.train(mode)) as rec:
        young(images.to(device))
    firing[mode] = sum(bool(r.spikes.any()) for r in rec.layers("spikes"))
print(f"of {len(layers)} layers fire in training mode: {firing[True]},")
print(f"in evaluation mode: {firing[False]}")
assert firing[True] == len(layers) > firing[False]

# %% [markdown]
# ## Exercises
#
# **8.1 Fix a silent run.** Some batch norms of a network are damaged. Write a function that finds the layers that never
# fire *in training mode*. It sets weight 1 and bias 0 in the batch norm in front of each damaged layer until every
# layer fires. It must not change healthy batch norms. (`model.get_submodule("sps.2").bn` is the batch norm of layer
# `sps.2`. The same works for `attn.proj`, `mlp.hidden` and `mlp.out` of a block. Only such layers are damaged.)


# %% tags=["exercise-1"]
def revive(model: se.Spikformer, images: torch.Tensor) -> list[str]:
    """Repair the damaged layers; return their names in the order of repair."""
    ...


# %% tags=["check-1", "fold"]
with se.exercise("8.1"):
    digits = se.data.load("digits").train.fetch(torch.arange(48), None)[0]
    kinds = [(0.02, 0.0), (0.3, -9.0), (0.0, -2.0)]  # weight and bias
    for damaged in (
        [],
        ["sps.2"],
        ["sps.1", "blocks.0.mlp.hidden", "blocks.1.attn.proj"],
    ):
        torch.manual_seed(3)
        patient = se.spikformer("digits-2-64", time_steps=2)
        norms = {n: m for n, m in patient.named_modules() if n.endswith("bn")}
        for norm in norms.values():
            torch.nn.init.uniform_(norm.weight, 0.9, 1.1)
        torch.nn.init.constant_(norms["sps.0.bn"].weight, 0.05)  # odd, but it fires
        torch.nn.init.constant_(norms["sps.0.bn"].bias, 1.95)
        for name, (weight, bias) in zip(damaged, kinds, strict=False):
            torch.nn.init.constant_(norms[f"{name}.bn"].weight, weight)
            torch.nn.init.constant_(norms[f"{name}.bn"].bias, bias)
        before = {n: (m.weight.clone(), m.bias.clone()) for n, m in norms.items()}
        cured = revive(patient, digits)
        assert cured is not None, "write revive first"
        assert list(cured) == damaged, (
            f"damaged: {', '.join(damaged) or 'nothing'}; repaired: {list(cured)}"
        )
        with torch.no_grad(), se.record(patient.train()) as found:
            patient(digits)
        dumb = [r.name for r in found.layers("spikes") if not r.spikes.any()]
        assert not dumb, f"{dumb[0]} still never fires"
        for name, norm in norms.items():
            weight, bias = before[name]
            same = torch.equal(norm.weight, weight) and torch.equal(norm.bias, bias)
            healthy = name.removesuffix(".bn") not in damaged
            assert same == healthy, f"{name}: healthy {healthy}, unchanged {same}"

# %% [markdown]
# **8.2 The schedule.** Write the learning rate after `epoch` epochs (`epoch` may be a fraction). It rises linearly from
# `lowest` to `highest` over the warm-up, then falls along half a cosine to `lowest` at the last epoch, and then stays
# at `lowest`. There may be no warm-up.


# %% tags=["exercise-2"]
def schedule(
    epoch: float, epochs: int, warmup: int, highest: float, lowest: float
) -> float:
    """The learning rate at that moment."""
    ...


# %% tags=["check-2", "fold"]
with se.exercise("8.2"):
    assert schedule(0.0, 10, 2, 1.0, 0.1) is not None, "write schedule first"
    for epoch, warmup, wanted in (
        (0.0, 2, 0.1),
        (1.0, 2, 0.55),
        (2.0, 2, 1.0),
        (6.0, 2, 0.55),
        (10.0, 2, 0.1),
        (12.0, 2, 0.1),
        (0.0, 0, 1.0),
    ):
        try:
            rate = schedule(epoch, 10, warmup, 1.0, 0.1)
        except ZeroDivisionError:
            rate = math.nan
        assert abs(rate - wanted) < 1e-9, (
            f"epoch {epoch:g} of 10, warm-up {warmup}, 0.1 to 1: not {rate:.3f}"
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
        rate = schedule(epoch, 300, 20, 5e-4, 1e-5)
        assert abs(rate - learning_rate(paper, epoch)) < 1e-9, (
            f"the paper's schedule, epoch {epoch}: not {rate:.6f}"
        )

# %% [markdown]
# **8.3 Stop and resume.** Write two functions for a training loop of your own. `save` returns all that is needed to go
# on later. `restore` puts it into a new network and a new optimizer, and returns the number of the next step. The
# resumed run must end with the same weights, to the last bit. The first run goes on after `save`; that must not change
# what `save` returned.


# %% tags=["exercise-3"]
def save(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict:
    """Everything that is needed to go on with this step."""
    ...


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> int:
    """Fill the model and the optimizer; return the next step."""
    ...


# %% tags=["check-3", "fold"]
with se.exercise("8.3"):
    pages = se.data.load("digits").train

    def fresh(seed: int):
        torch.manual_seed(seed)
        sizes = {"dim": 16, "heads": 2, "depth": 1, "time_steps": 2}
        net = se.spikformer("digits-2-64", **sizes)
        return net, torch.optim.AdamW(net.parameters(), lr=1e-2)

    def run(net, optimizer, first: int, last: int) -> None:
        for number in range(first, last):
            images, labels = pages.fetch(torch.arange(8) + 8 * number, None)
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()

    net, optimizer = fresh(1)
    run(net, optimizer, 0, 3)
    there = copy.deepcopy(net.state_dict())
    state = save(net, optimizer, 3)
    assert state is not None, "write save first"
    run(net, optimizer, 3, 6)
    other, fresh_optimizer = fresh(2)
    number = restore(other, fresh_optimizer, state)
    assert number == 3, (
        f"the run was stopped before step 3, and goes on with {number}"
    )
    for name, value in other.state_dict().items():
        assert torch.equal(value, there[name]), (
            f"after restore, {name} is not what it was when save was called"
        )
    run(other, fresh_optimizer, number, 6)
    for name, value in other.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), (
            f"three steps later {name} differs: what else does a step depend on?"
        )

# %% [markdown]
# ## Recap
#
# - The network of chapter 07 trains with the usual step. The package's network takes the same step, to rounding.
# - Watch firing rates and dead features by layer. The loss can fall even if layers are silent.
# - A dead feature does no harm by itself; many dead features and a stalled accuracy are a fault.
# - To repair a silent layer, check batch norm, threshold and learning rate, in this order.
# - A run that was stopped goes on with weights, optimizer and position. Choose on validation data, and measure the test
#   set once.
#
# Next: [chapter 09](09_ablations.ipynb) changes one part at a time. Answers: [solutions](solutions/08_train.ipynb).
