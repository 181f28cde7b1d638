# %% [markdown]
# # 12 · Scaling to ImageNet
#
# *Run time 65 s on one CPU core · after chapters 08 and 10 · no internet access, no GPU*
#
# ImageNet has 1.3 million training images, and the paper trains on it for 310 epochs. Such a run takes days, so it
# should not need a notebook that stays open. This chapter starts the real training command as a process of its own,
# watches it, stops it, continues it and looks at the result. With a GPU and ImageNet on your machine, the cells start
# the full run. Without them, the same cells start a rehearsal on 64 pictures, which takes about a minute.
#
# ![The network's parts, from image to answer; this chapter is about training all of them at full size](../docs/images/network_map/12.svg)
#
# ## What you will learn
# - say how long a full run takes and what it costs, before you start it
# - start a training that does not end when the notebook ends
# - watch its curve, stop it, and continue it where it stopped
# - evaluate the trained network and look at its answers

# %% tags=["setup"]
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

import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import clear_output
from PIL import Image, ImageDraw

from spikformer_edu.energy import count_flops
from spikformer_edu.plot import style
from spikformer_edu.training import RECIPES, DistributedContext, RunOptions
from spikformer_edu.training.plan import parts_that_fit, plan
from spikformer_edu.training.run_folder import LOCK

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## Your machine
#
# These three settings are yours. Change them before you run the cells below.

# %% tags=["settings"]
PRICE = 2.50  # what one GPU costs for one hour, in your currency
MAX_HOURS = 200  # a full run that would take longer is not started
RUNS = Path("../runs")  # what this notebook writes; it stays here

# %% [markdown]
# The next cell looks for GPUs and for ImageNet, and says what this notebook will do on your machine.

# %% tags=["nbval-ignore-output", "machine"]
gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
# as many as divide the batch of 192
gpus = max((n for n in range(1, gpus + 1) if 192 % n == 0), default=0)
device = torch.device("cuda" if gpus else "cpu")
found = se.data.count("imagenet")  # images or tar files, by split


def has(split):
    return bool(found.get(split) or found.get(f"{split} shards"))


full = gpus > 0 and has("train") and has("val")
data = "pictures of ImageNet" if found else "drawn pictures"
run = RUNS / f"imagenet{'' if full else '-rehearsal-' + data.split()[0]}"

print("On your machine this notebook will:")
card = f"{gpus} x {torch.cuda.get_device_name()}" if gpus else "the CPU"
print(f"  use      {card}")
if full:
    print("  train    imagenet-8-512 on ImageNet, 310 epochs: the full run")
    print("  time     measured below, before the run starts")
else:
    print(f"  train    imagenet-8-384 on 64 {data}, 1 epoch: a rehearsal")
    print("  time     about a minute on an idle CPU core")
    needed = {"a GPU": gpus, "training images": has("train")}
    needed |= {"validation images": has("val")}
    lacking = ", ".join(name for name, there in needed.items() if not there)
    print(f"  lacking  {lacking}, for the full run")
print(f"  write    {run}, which stays here")
assert full or not (gpus and has("train") and has("val"))

# %% [markdown]
# ## The key figure
#
# How long does the full run take on one GPU? The figure shows training steps that were measured on an NVIDIA H100, and
# what follows from them for 310 epochs of ImageNet. The network is `imagenet-8-512` with T = 4 in bf16 (numbers of 16
# bits), with 64 random images in a step. *Readable code* is this package without its [fused
# operations](../docs/kernels.md). A *CUDA graph* records all kernels of a step (the programs that the GPU runs) once
# and starts them together. Only the last bar uses one. Reading images and validation are not included.

# %% tags=["fold"]
images = se.data.info("imagenet").samples["train"]
results = Path("../docs/results")
ours = json.loads((results / "fast_path_h100.json").read_text())
theirs = json.loads((results / "benchmark_h100_imagenet.json").read_text())
step = next(s for s in ours["steps"] if s["model"] == "imagenet-8-512")
peer = next(
    row
    for row in theirs["tables"][0]["results"]
    if row["peer"] == "spikingjelly-triton" and row["mode"] == "train"
)
measured = {  # seconds of a step of 64 images, GiB at its peak
    "SpikingJelly, Triton neuron": (peer["median"], peer["memory"] / 2**30),
    "this package, readable code": (step["plain"], step["plain_bytes"]),
    "fused operations": (step["fused"], step["fused_bytes"]),
    "fused, as a CUDA graph": (step["fused_graph"], None),
}
assert step["batch"] == peer["batch"] == 64
days = {
    name: 310 * images / 64 * seconds / 86_400
    for name, (seconds, _) in measured.items()
}
memory = {name: gib for name, (_, gib) in measured.items() if gib}

fig, (left, right) = plt.subplots(
    1, 2, figsize=(11, 3.4), width_ratios=[1.6, 1], sharey=True
)
colors = [style.LIGHT, style.GREY, style.Q, style.V]
bars = left.barh(list(days), list(days.values()), color=colors)
texts = [
    f"{days[name]:.1f} days, {64 / seconds:,.0f} images/s"
    for name, (seconds, _) in measured.items()
]
left.bar_label(bars, texts, padding=4)
left.set(xlim=(0, 1.7 * max(days.values())), xlabel="days for 310 epochs")
left.set_title("imagenet-8-512, T = 4, one H100")
left.invert_yaxis()
bars = right.barh(list(memory), list(memory.values()), color=colors)
right.bar_label(bars, [f"{gib:.1f} GiB" for gib in memory.values()], padding=4)
right.text(0.3, 3, "not measured", va="center", color=style.THRESHOLD)
right.set(xlim=(0, 34), xlabel="peak memory, GiB", title="64 images in a step")
origin = ours["provenance"]
fig.supxlabel(
    f"measured: {origin['device']}, PyTorch {origin['torch']}, commit "
    f"{origin['commit'][:7]}; SpikingJelly on another card of this kind",
    fontsize=8,
    color=style.THRESHOLD,
)
se.plot.show(
    fig,
    "Bars for four ways to compute a training step on one H100. Days for 310 "
    "epochs: about 14 for SpikingJelly, 8 for the readable code, 7 with fused "
    "operations, under 4 with a CUDA graph. Memory falls from 24 to 12 GiB.",
)
assert days["fused, as a CUDA graph"] < 4 < days["SpikingJelly, Triton neuron"]

# %% [markdown]
# One H100 needs 3.6 to 13.8 days for the same 310 epochs, depending on how a step is computed. Fused operations also
# halve the memory, because they keep fewer tensors for the backward pass. SpikingJelly's Spikformer differs from the
# paper's in small points, which the [results](../docs/results.md) list. It was measured without a CUDA graph, so its
# bar compares with the two in the middle, not with the last.
#
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | images | `[B, 3, 224, 224]` | reals | one batch; the network repeats each image over T |
# | tokens | `[T, B, 196, D]` | integers | 14 x 14 tokens, each of 16 x 16 pixels |
# | logits | `[B, 1000]` | reals | mean over tokens and time |
# | global batch | one number | integers | images in one optimizer step, over all GPUs and parts (a part: images computed at one time) |
# | run folder | files | | weights, log, and everything that is needed to continue |
#
# ## The recipe
#
# A recipe is a dataclass. The one for ImageNet holds the settings of the official code.

# %%
recipe = RECIPES["imagenet"]
for name in "model epochs cooldown_epochs warmup_epochs batch_size lr".split():
    print(f"{name:16} {getattr(recipe, name)}")

# %% [markdown]
# Paper and code disagree about the batch. The [paper](https://arxiv.org/abs/2209.15425) (section 4.1) says "128 or
# 256", without saying which network used which batch size. The official code has 24 images on each GPU, which is 192 on
# 8 GPUs. The recipe follows the code.
#
# **Predict before you run.** How many optimizer steps do 310 epochs take with a batch of 128, 192 and 256? The highest
# learning rate is 5e-4 at 192. What is it at 128 and 256, if it grows with the square root of the batch?

# %% tags=["predict"]
for batch in (128, 192, 256):
    other = replace(recipe, batch_size=batch)
    steps = images // batch  # an epoch; the incomplete last batch is dropped
    lr = 5e-4 * (batch / 192) ** 0.5
    print(f"batch {batch}: {310 * steps:9,} steps, learning rate {lr:.2e}")
    assert math.isclose(other.scaled_lr, lr)

# %% [markdown]
# <details><summary>Answer</summary>
#
# 3.1, 2.1 and 1.6 million steps. The learning rate is 4.1e-4 at 128 and 5.8e-4 at 256. A batch that is twice as large
# has a gradient with $\sqrt 2$ times less noise. AdamW divides the gradient by its typical size, so the rate can grow
# by the same factor. To use this rule is our choice: the official code has 5e-4 whatever the batch is, and the paper
# gives 5e-4 for both batches. Report the batch and the rate with every result.
#
# </details>
#
# ## The pictures
#
# The full run reads ImageNet where it is. The rehearsal gets a small ImageNet of its own in the same layout: tar files
# `train-0.tar` with 64 pictures and `val-0.tar` with 16, and in them a file with the class number for each picture. The
# pictures come from ImageNet if you have any part of it, even a small sample. Otherwise the next cell **draws** them:
# clocks, balloons, envelopes and traffic lights. These are four of ImageNet's 1,000 classes, but drawings are not
# photographs.

# %% tags=["fold", "nbval-ignore-output"]
CLASSES = {409: "clock", 417: "balloon", 549: "envelope", 920: "traffic light"}


def draw(label, random):
    """A drawing of one of four classes: position, size and colors are random."""

    def color(low, high):
        return tuple(int(c) for c in random.integers(low, high, 3))

    picture = Image.new("RGB", (256, 256), color(150, 250))
    pen, dark = ImageDraw.Draw(picture), color(0, 110)
    (x, y), r = random.integers(100, 157, 2).tolist(), int(random.integers(45, 80))
    if CLASSES[label] == "clock":
        pen.ellipse((x - r, y - r, x + r, y + r), "white", dark, 6)
        for length, a in [(0.5 * r, random.uniform(0, 6.28)), (0.8 * r, 1.0)]:
            end = x + length * np.cos(a), y + length * np.sin(a)
            pen.line((x, y, *end), dark, 6)
    elif CLASSES[label] == "balloon":
        pen.ellipse((x - 0.8 * r, y - r, x + 0.8 * r, y + r), dark)
        pen.line((x, y + r, x + 10, 250), (60, 60, 60), 3)
    elif CLASSES[label] == "envelope":
        pen.rectangle((x - r, y - 0.6 * r, x + r, y + 0.6 * r), "white", dark, 5)
        top = y - 0.6 * r
        pen.line((x - r, top, x, y + 0.1 * r, x + r, top), dark, 5)
    else:
        pen.rectangle((x - 0.4 * r, y - r, x + 0.4 * r, y + r), (40, 40, 40))
        for i, lamp in enumerate(("red", "gold", "lime")):
            middle, s = y + (i - 1) * 0.65 * r, 0.25 * r
            pen.ellipse((x - s, middle - s, x + s, middle + s), lamp)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def pictures(split, count):
    """Pictures as the bytes of JPEG files, with their class numbers."""
    if not found:
        random = np.random.default_rng(len(split))
        labels = [list(CLASSES)[i % 4] for i in range(count)]
        return [(draw(label, random), label) for label in labels]
    splits = se.data.load("imagenet")
    part = splits["train" if split == "train" and has("train") else "test"]
    if isinstance(part, se.data.Absent):
        part = splits.train
    chosen = np.linspace(0, len(part) - 1, 64).astype(int)[:count]
    return [(part.read(i), int(part.targets[i])) for i in chosen]


def write_shard(path, content):
    """A tar file as ImageNet is often distributed: 0000.jpg, 0000.cls, ..."""
    with tarfile.open(path, "w") as tar:
        for number, (picture, label) in enumerate(content):
            for suffix, text in (("jpg", picture), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"{number:04}.{suffix}")
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))


# the package says that this is not all of ImageNet: here that is intended
warnings.filterwarnings("ignore", message=".* of ImageNet-1k")
data_dir = None  # where ImageNet is
if not full:
    if (run / "results.json").exists():  # an earlier rehearsal: make another
        shutil.rmtree(run)
    data_dir = RUNS / f"{run.name}-data"
    (data_dir / "imagenet").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 64), ("val", 16)):
        shard = data_dir / "imagenet" / f"{split}-0.tar"
        write_shard(shard, pictures(split, count))
splits = se.data.load("imagenet", data_dir)
print(f"{len(splits.train):,} training and {len(splits.test):,} test images")
assert full or (len(splits.train), len(splits.test)) == (64, 16)

# %% [markdown]
# If you have ImageNet pictures of only one split, the 16 test pictures are also among the 64 that the network trains
# on. The accuracy then says nothing.
#
# ## What it takes
#
# The next cell writes the changes to the recipe into one dictionary. The command line is made from it. The rehearsal
# uses the smallest network, pictures of 112 x 112 instead of 224 x 224 pixels, and one epoch. It also sets the warm-up
# epochs (rising learning rate) and the cool-down epochs (lowest learning rate, at the end) to 0. Otherwise the recipe's
# ten cool-down epochs would follow the one epoch.

# %% tags=["plan", "nbval-ignore-output"]
if full:
    cores = os.cpu_count() or 1
    # 1 % of the training images choose the epoch
    changes = {"model": "imagenet-8-512", "val_fraction": 0.01}
    extra = ["--workers", str(max(1, cores // gpus - 1)), "--keep", "3"]
else:
    changes = {"model": "imagenet-8-384", "image_size": 112, "batch_size": 8}
    changes |= {"epochs": 1, "cooldown_epochs": 0, "warmup_epochs": 0}
    extra = ["--data-dir", str(data_dir)]
recipe = replace(RECIPES["imagenet"], **changes)
how = RunOptions(data_dir=data_dir, workers=int(extra[1]) if full else 0)


def measure():
    """Count, and time training steps of one GPU's share of the batch."""
    share = replace(recipe, batch_size=recipe.batch_size // max(gpus, 1))
    context = DistributedContext(device)
    p = plan(share, context, how)
    if p.room and p.bytes > 0.9 * p.room:  # too much for the GPU: in parts
        parts = parts_that_fit(share, context, p, p.room) or share.batch_size
        changes["grad_accum_steps"] = parts
        p = plan(replace(share, grad_accum_steps=parts), context, how)
    return p


planned = measure()
hours = planned.hours / max(gpus, 1)
epochs = recipe.epochs + recipe.cooldown_epochs
print(f"network    {recipe.model}, {planned.parameters / 1e6:.1f} M parameters")
print(f"images     {planned.images:,}, epochs: {epochs}")
print(f"step       {planned.step_seconds:.2f} s for {planned.step_images} images")
expected = f"{hours:,.1f} h" if hours > 1 else f"{3600 * hours:.0f} s"
print(f"run        {expected}, without validation", end="")
print(f", on {gpus} GPUs at best" if gpus > 1 else "")
print(f"cost       {hours * gpus * PRICE:,.2f} at {PRICE:.2f} a GPU and hour")
assert hours > 0 and planned.parameters > 16e6

# %% [markdown]
# **Predict before you run.** How long would the full run take on *this* machine? Chapter 10 counts the operations of a
# network. A training step takes about three forward passes. Here a multiply-accumulate counts as two operations, and a
# GFLOP is $10^9$ of them. Divide by the speed that was just measured. Is it a week, a year, or longer on a CPU?

# %% tags=["predict", "nbval-ignore-output"]
config = se.preset("imagenet-8-512").config
parts = count_flops(config, 224)  # multiply-accumulates of one time step
others = parts["other convs"] + parts["linear"] + 2 * parts["K^TV"] + parts["head"]
# the first convolution of a still image is computed once, not T times
flops = 2 * (3 * config.time_steps * others + 2 * parts["first conv"])
speed = planned.flops * planned.step_images / planned.step_seconds
years = flops * images * 310 / speed / 86_400 / 365 / max(gpus, 1)
print(f"{flops / 1e9:.0f} GFLOP for an image, {speed / 1e9:,.0f} GFLOP/s here")
print(f"the full run would take {365 * years:,.0f} days, {years:.1f} years")
best = min(days.values())
print(f"one H100: {best:.1f} days, or {24 * best * PRICE:,.0f} at your price")
assert 190e9 < flops < 210e9 and years > 0

# %% [markdown]
# <details><summary>Answer</summary>
#
# On one CPU core decades, on an H100 3.6 days. So a CPU is only for the rehearsal. The rehearsal tries every
# step of the real run, on files of the same layout, and should find the faults that would stop the real run after
# hours.
#
# </details>
#
# A GPU also needs images fast enough. The CPU reads, decodes and augments them.
#
# **Predict before you run.** The best step of the key figure trains about 1,300 images a second. How many CPU cores must
# read images for it?

# %% tags=["predict", "nbval-ignore-output"]
augmented = se.data.load("imagenet", data_dir, augment=recipe.augment)
started = time.perf_counter()
augmented.train.fetch(torch.arange(32), torch.Generator().manual_seed(0))
rate = 32 / (time.perf_counter() - started)
wanted = 64 / step["fused_graph"]
print(f"one core reads {rate:.0f} images a second")
print(f"{wanted:,.0f} a second need about {math.ceil(wanted / rate)} cores")
assert rate > 1

# %% [markdown]
# <details><summary>Answer</summary>
#
# Here about 4, because one core reads 390 of the drawings a second. ImageNet's photographs have more pixels and more
# detail than the drawings, so they take longer and need more cores: run this cell where the full run will be.
# `--workers` sets how many processes read for each GPU. If they are too slow, the GPU waits, and the run takes longer
# than the key figure says.
#
# </details>
#
# ## Start
#
# The command is `python -m spikformer_edu.train`. With several GPUs `torchrun` (as a module: `torch.distributed.run`)
# starts one process for each. You can also copy the printed command into a terminal on a server. Here the process gets
# a session of its own, so it continues when the kernel of this notebook ends. Its output goes into a file, and its
# results go into the run folder. You can call `start` at any time. It starts a run, or continues one that was stopped.
# If the run is in progress or finished, it does nothing.

# %% tags=["start"]
log = run.with_name(f"{run.name}.log")
process = None


def command():
    """The command line of the run."""
    torchrun = ["torch.distributed.run", "--nproc-per-node", str(gpus), "-m"]
    options = [[f"--{n.replace('_', '-')}", str(v)] for n, v in changes.items()]
    return [
        *(sys.executable, "-m", *(torchrun if gpus > 1 else [])),
        *("spikformer_edu.train", "--dataset", "imagenet"),
        *(text for option in options for text in option),
        *(*extra, "--no-figures", "--out", str(run)),
        *(["--resume"] if (run / "config.json").exists() else []),
    ]


def in_progress():
    """Whether a process trains: ours, or one that locks a file in the folder."""
    if process is not None and process.poll() is None:
        return True
    try:
        import fcntl

        with open(run / LOCK, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, FileNotFoundError):  # no locks on Windows; no run
        return False
    except OSError:
        return True
    return False


def start():
    """Start the run, or continue it; do nothing if it is running or finished."""
    global process
    if (run / "results.json").exists() or in_progress():
        print("finished" if (run / "results.json").exists() else "running")
    elif hours > MAX_HOURS:
        print(f"not started: {hours:,.0f} h are more than MAX_HOURS = {MAX_HOURS}")
    else:
        print(shlex.join(["python", *command()[1:]]))
        RUNS.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            process = subprocess.Popen(
                command(),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


# %% tags=["nbval-ignore-output", "go"]
start()
assert in_progress() or hours > MAX_HOURS or (run / "results.json").exists()

# %% [markdown]
# ## Stop
#
# Long runs get interrupted: by time limits, by power failures, by other jobs. Before a scheduler ends a process, it
# sends the signal SIGTERM. The training process then finishes its step, writes everything into `resume.pt`, and ends.
# We do this to the rehearsal in the middle of its epoch. The full run is not stopped.

# %% tags=["nbval-ignore-output"]
if not full and process is not None:
    config_file = run / "config.json"  # is filled when training begins
    while in_progress() and not (
        config_file.exists() and config_file.stat().st_size
    ):
        time.sleep(0.1)
    batch_seconds = 8 / planned.step_images * planned.step_seconds
    time.sleep(2 * batch_seconds)
    process.terminate()  # SIGTERM
    process.wait()
    print(log.read_text().splitlines()[-1])
    if (run / "resume.pt").exists():
        saved = torch.load(run / "resume.pt", weights_only=True)["progress"]
        print(f"saved after {saved['batch']} of {64 // 8} batches")
    assert not in_progress()

# %% [markdown]
# A process that is killed at once (SIGKILL, or a power failure) cannot save. It loses what it did since the last
# complete epoch. In both cases the next cell continues the run with the same call.
#
# **If the kernel of this notebook dies,** restart it and run the cells from the top. The training is still in progress,
# and `start` finds it by its lock. **If the machine was restarted,** do the same: `start` then adds `--resume`.

# %% tags=["nbval-ignore-output"]
start()
assert in_progress() or hours > MAX_HOURS or (run / "results.json").exists()

# %% [markdown]
# All random numbers of a run depend only on the seed, the epoch and the batch. So the run goes on with the same batches
# in the same order, and on the same machine it ends with the same weights as a run without a stop, to the last bit. A
# test of the package kills a run twenty times at random moments and compares the weights.
#
# ## Watch
#
# `watch` redraws the curve when an epoch ends, until the run has ended. To stop watching, interrupt the kernel (the
# square button). The training goes on. Run the cell again to watch again.


# %% tags=["nbval-ignore-output"]
def watch(seconds=1.0):
    """Show progress and curve of the run while it is in progress."""
    started, drawn, going = time.perf_counter(), -1, True
    while going:
        going = in_progress()
        table = run / "metrics.csv"
        rows = table.read_text().splitlines()[1:] if table.exists() else []
        if len(rows) > max(1, drawn) or len(rows) < 2 or not going:
            clear_output(wait=True)
            print(f"epochs: {len(rows)} of {epochs}; all should take {expected}")
            print(f"watched for {time.perf_counter() - started:.0f} s")
            said = log.read_text() if log.exists() else "not started"
            print("\n".join(said.splitlines()[-6:]))
            if len(rows) > 1:  # one point makes no curve
                alt = "Loss, accuracy, firing rates and more of this run, by epoch."
                se.plot.show(se.plot.training(run)[0], alt, dpi=70)
            drawn = len(rows)
        time.sleep(seconds)


try:
    watch()
except KeyboardInterrupt:
    print("the training goes on: run this cell again to watch it")
assert in_progress() or hours > MAX_HOURS or (run / "results.json").exists(), (
    log.read_text()
)

# %% [markdown]
# The rehearsal has one epoch, which makes no curve. This is how a curve looks, from a run of this package on an H100:
# `cifar10-4-384` at T = 4 on CIFAR-10, 42 epochs of five seconds. It started from a network that was trained at T = 1,
# so its training accuracy is already 81 % in the first epoch. It ends at 93 %.

# %% tags=["fold"]
file = results / "cifar10-fast-t4" / "metrics.csv"
header, *rows = [line.split(",") for line in file.read_text().splitlines()]
table = [dict(zip(header, row, strict=True)) for row in rows]
shown = "epoch loss accuracy rate lr".split()
fig, axes = se.plot.training(
    [{name: row[name] for name in shown} for row in table],
    title="cifar10-4-384, T = 4, CIFAR-10: measured on one H100 while it trained",
)
se.plot.show(
    fig,
    "Four panels over 42 epochs: the training loss falls, the training accuracy "
    "rises, the firing rate stays between 7 and 8.2 percent, and the learning "
    "rate falls along a cosine.",
    dpi=80,
)
assert float(table[-1]["loss"]) < float(table[0]["loss"]) and len(table) == 42

# %% [markdown]
# [Chapter 08](08_train.ipynb) explains what to look for: the loss should fall, and no layer's firing rate should go to
# 0.
#
# ## Evaluate
#
# Evaluation is a command too. It reads the weights from the run folder, also while the training is in progress.

# %% tags=["nbval-ignore-output"]
evaluate = [sys.executable, "-m", "spikformer_edu.evaluate", "--batch-size", "16"]
evaluate += ["--checkpoint", str(run)]
evaluate += [] if full else ["--data-dir", str(data_dir)]
trained = (run / "best.safetensors").exists()
if trained:
    done = subprocess.run(evaluate, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
else:
    print("no epoch is complete yet: run this cell again later")
assert trained or hours > MAX_HOURS or in_progress()

# %% [markdown]
# Chance is 0.1 % for 1,000 classes. The paper's network of the full run, `imagenet-8-512`, classifies 73.38 % of the
# validation images correctly, and `imagenet-8-384` 70.24 %. **This project has not trained on ImageNet.**
#
# The accuracy of a rehearsal says nothing. In evaluation the batch norms use running statistics, which start with a
# variance of 1 and move a tenth of the way in each step. After eight steps $0.9^8 = 43\,\%$ of the start is left. The
# true variances are smaller, as the next cell shows. So the currents are scaled down too much, and almost no neuron
# fires. The network gives the same answer for all 16 pictures: the class with the largest bias of the head. Each of the
# four drawn classes has 4 of the 16 pictures, so one answer for all is correct 4 times.
#
# ## Look
#
# The figures show test pictures with the network's answers, the attention that each token receives in the last block,
# and the firing rates. For a rehearsal one pass over 16 training images first sets the statistics of the batch norms.

# %% tags=["nbval-ignore-output"]
if trained:
    model, size = se.load_run(run).model, recipe.image_size or 224
    splits = se.data.load("imagenet", data_dir, image_size=size)
    if not full:
        of_norms = torch.nn.modules.batchnorm._BatchNorm
        norms = [m for m in model.modules() if isinstance(m, of_norms)]
        before = torch.cat([norm.running_var for norm in norms]).median()
        for norm in norms:
            norm.momentum = 1.0  # keep nothing of the old statistics
        with torch.no_grad():
            model.train()(splits.train.fetch(torch.arange(16), None)[0])
        after = torch.cat([norm.running_var for norm in norms]).median()
        print(f"variance (median): {before:.2f} kept, {after:.2f} of 16 images")
        assert after < 0.5 * before
    x, y = splits.test.fetch(torch.arange(6), None)
    with torch.no_grad(), se.record(model.eval()) as rec:
        answers = model(x).softmax(1)
    fired = {
        layer.name: float(layer.values.mean()) for layer in rec.layers("spikes")
    }
    mean_rate = sum(fired.values()) / len(fired)
    print(f"{len(fired)} layers, mean firing rate {100 * mean_rate:.1f} %")
    assert answers.shape == (6, 1000) and mean_rate > 0
assert trained or hours > MAX_HOURS or in_progress()

# %% tags=["fold", "nbval-ignore-output"]
if trained:
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (splits.info.mean, splits.info.std)
    )
    last = f"blocks.{model.config.depth - 1}.attn.scores"
    # [T, B, h, N, N] -> what each token receives, mean over T, heads and queries
    received = rec[last].values.float().mean((0, 2, 3))
    side = math.isqrt(received.shape[1])
    fig, axes = plt.subplots(2, 6, figsize=(11, 4.8))
    for i, (top, bottom) in enumerate(axes.T):
        best = int(answers[i].argmax())
        top.imshow((x[i] * std + mean).clamp(0, 1).permute(1, 2, 0))
        top.set_title(style.plain(splits.info.classes[int(y[i])], 16), fontsize=10)
        said = style.plain(splits.info.classes[best], 16)
        top.set_xlabel(f"{said}\n{100 * answers[i, best]:.1f} %", fontsize=9)
        grid = received[i].view(side, side)
        drawn = bottom.imshow(grid, vmin=0, vmax=float(received.max()))
        for ax in (top, bottom):
            ax.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("picture, answer")
    axes[1, 0].set_ylabel("attention")
    fig.colorbar(drawn, ax=axes[1], label="$QK^T s$", shrink=0.9)
    of = f"{recipe.model}, T = {model.config.time_steps}"
    fig.suptitle(f"{of}: answers, and {last} (mean over T, heads, queries)")
    se.plot.show(
        fig,
        "Six test pictures with their classes above and the network's answers "
        "below, and under each a map of the attention that its tokens receive in "
        "the last block.",
    )

    fig, ax = plt.subplots(figsize=(11, 2.6))
    ax.bar(
        range(len(fired)),
        [100 * rate for rate in fired.values()],
        color=[style.color_of(name) for name in fired],
    )
    starts = [i for i, name in enumerate(fired) if name.endswith(".q")]
    blocks = [f"block {i}" for i in range(len(starts))]
    ax.set_xticks([0, *starts], ["SPS", *blocks], ha="left")
    ax.set_ylabel("firing rate, %")
    ax.set_title(f"firing rate of every layer, {of} (Q blue, K red, V green)")
    se.plot.show(
        fig,
        "Firing rate of every neuron layer of the network as bars in network "
        "order, from the patch splitting to the last block; Q, K and V of each "
        "block are colored.",
    )
assert trained or hours > MAX_HOURS or in_progress()

# %% [markdown]
# In the rehearsal with drawings, every answer gets 0.2 or 0.3 %, little more than chance (0.1 %): one epoch of 64
# pictures is not enough to learn. The scores $QK^T s$ are highest at the tokens of the drawings and near 0 on the plain
# background. The firing rate falls with depth, from about 4 % in SPS to about 2 % in the last block.
#
# ## Options that save time or memory
#
# Some options save time or memory and do not change the result of the run. Other options change it: report them with
# your result.
#
# | option | saves | the same weights at the end? |
# |---|---|---|
# | `--resume` after a stop | the time before it | yes, to the last bit on the same machine |
# | `--activation-checkpointing` | memory | yes: blocks are computed twice, with the same result |
# | `--workers` | time | yes: they only read |
# | several GPUs | time | no: each GPU has its own batch statistics (`--sync-bn` shares them), and sums are rounded differently |
# | `--grad-accum-steps` | memory | no: each part has its own batch statistics |
# | `--precision bf16` | time, memory | no: weights and membrane potentials are rounded, and some spikes flip |
# | `--compile` | time on some GPUs | no: sums are rounded differently |
#
# Spikes are exact in bf16, which represents 0, 1 and every integer up to 256.
#
# ## Pitfalls
#
# - **The run folder is temporary.** Symptom: after days the weights are gone. Cause: the folder was deleted with the
#   notebook's machine. Cure: a folder that stays, on a disk with enough free space.
# - **The run belongs to the notebook.** Symptom: the training ends with the kernel or with the connection. Cause: it is
#   a process of the notebook. Cure: a process in a session of its own, `nohup`, or a
#   [scheduler](../docs/guides/cluster.md).
# - **`--epochs 1` for a quick try.** Symptom: eleven epochs. Cause: the recipe's ten cool-down epochs follow. Cure:
#   `--cooldown-epochs 0 --warmup-epochs 0`.
# - **The learning rate of another batch size.** Symptom: the accuracy is some points below the published one. Cause: a
#   smaller batch with the same learning rate. Cure: the recipe's square root rule; `--dry-run` prints the rate.
# - **`batch_size` per process or in total?** Symptom: a batch that is eight times too large or too small. Cause: in the
#   official code 24 is the batch of each GPU. Cure: here, give the global batch to `--batch-size`.
# - **The epoch is chosen on the test set.** Symptom: an accuracy that is too high. Cause: ImageNet's published
#   validation set is the test set here, and should be measured only once. Cure: `--val-fraction 0.01` takes images from
#   the training set to choose the epoch.
#
# ## Exercises
#
# **12.1 Plan a run.** You have some GPUs, and each can hold `fits` images at a time. For a given global batch compute:
# the images of each GPU in an optimizer step; the number of parts (as few as possible, all of equal size); the
# optimizer steps in an epoch; and the highest learning rate by the square root rule.


# %% tags=["exercise-1"]
def plan_gpus(recipe, global_batch, gpus=8, fits=48, images=1_281_167):
    """{"per_gpu": ..., "parts": ..., "steps": ..., "lr": ...}"""
    ...


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
# **12.2 A dry run.** With `--dry-run` the command counts and measures, and trains nothing. Write its arguments, as a
# list of strings, for `imagenet-8-384` on ImageNet at T = 1 with a global batch of 1,024, of which 32 images fit into
# memory at once. Everything else stays as the recipe has it. (`python -m spikformer_edu.train --help` lists the
# options.)

# %% tags=["exercise-2"]
arguments = None

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
# **12.3 A large batch in parts.** The GPU cannot hold the whole batch. Split it into `parts` with `torch.tensor_split`,
# whose parts may differ by one image, and compute one after the other. Return the gradient of the *mean loss over all
# images* as one vector. With fixed batch statistics it must equal the gradient of the whole batch.


# %% tags=["exercise-3"]
def gradient_in_parts(model, x, y, parts):
    """The gradient of the mean cross-entropy over all images, as one vector."""
    ...


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

# %% [markdown]
# ## Recap
#
# - A large run is a process with a folder. The notebook only starts it and watches it.
# - Measure a step first: it gives the days and the price. Rehearse on a few images: it finds what would fail.
# - A stopped run continues with `--resume`. On the same machine it ends with the same weights.
# - The batch decides the number of steps and the learning rate. The paper says 128 or 256, its code 192.
#
# Solutions: [solutions](solutions/12_imagenet.ipynb). Next: [chapter 13](13_beyond.ipynb).
