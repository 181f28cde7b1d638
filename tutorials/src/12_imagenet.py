# %% [markdown]
# # 12 · Scaling to ImageNet
#
# *Run time 55 s on one CPU core · after chapters 08 and 10 · no internet access, no GPU*
#
# All earlier chapters ran on a laptop. ImageNet needs more: 1.3 million images, 310 epochs, eight GPUs. What changes in
# such a run, and what must not change? This chapter compares each technique of a large run with the plain training
# step: mixed precision, gradient accumulation, activation checkpointing, several processes, and resuming. The result
# can be equal to the last bit, equal up to rounding, or not equal, and the chapter explains why.
#
# ## What you will learn
# - derive the numbers of a run by hand: steps, learning rate, memory, operations
# - say which parts of a spiking network are exact in bfloat16, and which are not
# - accumulate gradients, use activation checkpointing, train in two processes, and know what each of them changes
# - kill a run and prove that nothing is lost after resuming
# - plan the real run, and run one step of it

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

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.ticker import LogLocator, NullFormatter
from safetensors.torch import load_file

from spikformer_edu.energy import count_flops
from spikformer_edu.plot import style
from spikformer_edu.training import RECIPES, DistributedContext
from spikformer_edu.training.evaluation import autocast
from spikformer_edu.training.loop import parameter_groups
from spikformer_edu.training.memory import checkpoint_blocks
from spikformer_edu.training.plan import plan

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
#
# The figure shows the measured cost of a training step: time above, peak memory below, against the number of time steps
# T, the batch size B and the number of tokens N. All axes are logarithmic. The thin line has slope 1: a curve along it
# doubles when T, B or N doubles. The measurements were made before and come from a file; the text under the figure
# names their origin. Points are medians of a few rounds on a machine that was not quite idle. One configuration appears
# in all three columns, and the differences between its three times show how accurate a single point is. So look at the
# slopes, not at single points.

# %%
measured = json.loads(Path("results/12_imagenet.json").read_text())
titles = {"time_steps": "time steps T", "batch": "batch B", "tokens": "tokens N"}

fig, axes = plt.subplots(2, 3, figsize=(11, 6), sharey="row")
for column, (kind, label) in zip(axes.T, titles.items(), strict=True):
    rows = [row for row in measured["curves"][kind] if row["memory"]]
    points = [row["point"] for row in rows]
    for ax, values, unit in (
        (column[0], [1000 * row["median"] for row in rows], "ms a step"),
        (column[1], [row["memory"] / 2**20 for row in rows], "peak memory, MiB"),
    ):
        ax.plot(
            points,
            [values[-1] * p / points[-1] for p in points],
            color=style.THRESHOLD,
            linewidth=0.8,
        )
        ax.plot(
            points,
            values,
            "o-",
            color=style.Q if unit[0] == "m" else style.MEMBRANE,
        )
        ax.set(xscale="log", yscale="log")
        ax.yaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)),
            major_formatter="{x:g}",
            minor_formatter=NullFormatter(),
        )
        ax.set_xticks(points, [str(p) for p in points])
        ax.minorticks_off()
        if kind == "time_steps":
            ax.set_ylabel(unit)
    fixed = ", ".join(
        f"{k} = {measured['base'][n]}"
        for k, n in zip("TBN", titles, strict=True)
        if n != kind
    )
    column[0].set_title(fixed)
    column[1].set_xlabel(label)
origin = measured["provenance"]
fig.suptitle(
    f"a training step of {measured['model']}, {measured['precision']}",
    x=0.01,
    ha="left",
)
where = f"{origin['device']}, threads: {origin['threads']}, commit {origin['commit'][:7] + origin['commit'][40:]}"
fig.supxlabel(
    f"measured: {where}; {origin['command']}", fontsize=8, color=style.THRESHOLD
)
se.plot.show(
    fig,
    "Six panels with logarithmic axes: time and peak memory of a training step against T, B and N. From end to end "
    "all rise; time roughly along the line of slope 1, memory more slowly at first and nearly along it in the end.",
)
for kind in titles:
    rows = measured["curves"][kind]
    assert rows[-1]["median"] > rows[0]["median"] and (rows[-1]["memory"] or 1) > (
        rows[0]["memory"] or 0
    )

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | images | `[B, 3, 224, 224]` | reals | one image for each sample; the network repeats it over T |
# | tokens | `[T, B, 196, D]` | integers | what autograd keeps of each layer grows with T, B, N and D |
# | global batch | one number | integers | images in one optimizer step: processes x parts x images at a time |
# | gradient | shape of its weight | reals | mean over the global batch |
# | checkpoint | a file | | weights, optimizer, position: everything that is needed to resume |

# %% [markdown]
# ## The recipe as data
#
# A recipe is a dataclass. The recipe of ImageNet holds the official settings, and `--dry-run` prints every difference
# from the official code. Some numbers follow from the recipe. We compute them by hand and compare them with the
# package.

# %%
recipe = RECIPES["imagenet"]
for name in (
    "model",
    "epochs",
    "cooldown_epochs",
    "warmup_epochs",
    "batch_size",
    "lr",
    "weight_decay",
):
    print(f"{name:16} {getattr(recipe, name)}")

# %% [markdown]
# **Predict before you run.** You have memory for a global batch of 768 instead of 192. How many optimizer steps will
# the run take, and how does the learning rate change?

# %%
images = 1_281_167
large = replace(recipe, batch_size=768)
steps = images // 768  # an epoch; the incomplete last batch is dropped
lr = 5e-4 * (768 / 192) ** 0.5
print(
    f"{steps:,} steps an epoch, {310 * steps:,} in all, highest learning rate {lr:.1e}"
)
assert (
    images == se.data.info("imagenet").samples["train"]
    and large.scaled_lr == lr == 1e-3
)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The run takes a quarter of the steps, with twice the learning rate. With a batch four times as large the gradient has
# half the noise. AdamW divides by the size of the gradient, so the step may grow with the *square root* of the batch
# size. The linear rule is for plain SGD. The official code does not scale the rate.
#
# </details>
#
# `--dry-run` calls `plan`, which counts, and measures one step on this machine. To save time we use the smallest
# ImageNet network at T = 1 with one image. The numbers that we compare do not depend on this.

# %%
short = replace(recipe, model="imagenet-8-384", time_steps=1)
planned = plan(short, DistributedContext(torch.device("cpu")), step_images=1)

assert planned.steps == images // 192 == 6672 and planned.total_steps == 310 * 6672
assert (
    planned.lr == 5e-4
    and planned.parameters == se.preset("imagenet-8-384").parameters
)
print(
    f"{planned.steps:,} steps an epoch, {planned.total_steps:,} in all, {planned.parameters / 1e6:.2f} M parameters"
)

# %% [markdown]
# Now we count the operations by hand. The forward pass has one matrix product in each layer. The backward pass has two
# more, one for the gradient of the input and one for the gradient of the weight. Only the first convolution needs no
# gradient of its input. Each multiply-accumulate of [chapter 10](10_energy.ipynb) counts as two operations, a
# multiplication and an addition.

# %%
parts = count_flops(se.preset("imagenet-8-384").config, 224)
others = parts["other convs"] + parts["linear"] + 2 * parts["K^TV"] + parts["head"]
flops = 2 * (3 * others + 2 * parts["first conv"])  # T = 1
assert flops == planned.flops
print(
    f"{flops / 1e9:.1f} GFLOP for one image at T = 1, and about T times that at T"
)

# %% [markdown]
# ## Memory
#
# The memory must hold four copies of the weights: weights, gradients, and the two moments of AdamW. The rest, which is
# usually far more, are the tensors that autograd keeps of every layer until the backward pass. The next cell measures
# their size.


# %%
def kept_bytes(model, x):
    """What autograd keeps of one forward pass, weights not counted."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x).sum()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for pointer, size in kept.items() if pointer not in weights)


config = dict(dim=64, depth=2, heads=2, pool=(True, True, False, False))
x = torch.randn(4, 3, 32, 32)
by_steps = {
    T: kept_bytes(se.Spikformer(se.SpikformerConfig(time_steps=T, **config)), x)
    for T in (1, 2, 4)
}
by_batch = {
    B: kept_bytes(se.Spikformer(se.SpikformerConfig(time_steps=2, **config)), x[:B])
    for B in (1, 2, 4)
}

# %% [markdown]
# **Predict before you run.** With twice the batch, autograd keeps twice as much. How much does it keep with twice the
# time steps?

# %%
for name, kept in (("T", by_steps), ("B", by_batch)):
    ratios = [kept[2 * n] / kept[n] for n in (1, 2)]
    print(
        f"{name} from 1 to 2 to 4: memory times",
        ", ".join(f"{ratio:.2f}" for ratio in ratios),
    )
    assert all(1.7 < ratio <= 2.01 for ratio in ratios)
estimate = 4 * 4 * planned.parameters + 192 * planned.saved_bytes
assert planned.bytes == estimate

# %% [markdown]
# <details><summary>Answer</summary>
#
# Also nearly twice as much: T multiplies the memory of all layers except the first convolution, which processes a still
# image only once. Backpropagation through time needs this memory. So a spiking network with T = 4 keeps about four
# times as much for the backward pass as the same network without spikes. Weights, gradients and moments do not grow
# with T; therefore the orange curves of the key figure start above the thin line. The package's estimate is the sum of
# both: four times the weights, plus the batch size times the memory of one image.
#
# </details>

# %% [markdown]
# ## Mixed precision: spikes are exact
#
# bfloat16 has 8 significant bits. It holds 0 and 1, and every whole number up to 256.

# %%
numbers = torch.arange(300.0)
exact = numbers.bfloat16().float() == numbers
print("first whole number that bfloat16 cannot hold:", int(numbers[~exact][0]))
assert exact[:257].all() and not exact[257]

# %% [markdown]
# **Predict before you run.** Let Q, K and V be binary, with d = 32 features in each head and 196 tokens. Is $(Q K^T) V$
# exact in bfloat16? And $Q (K^T V)$? What is the largest intermediate number?

# %%
q, k, v = (torch.randint(2, (196, 32)).float() for _ in range(3))
low = [t.bfloat16() for t in (q, k, v)]
assert torch.equal((low[0] @ low[1].T).float(), q @ k.T)  # at most d = 32
assert torch.equal((low[1].T @ low[2]).float(), k.T @ v)  # at most N = 196
product, rounded = q @ k.T @ v, ((low[0] @ low[1].T) @ low[2]).float()
print(
    f"inner products are exact; the full product reaches {product.max():.0f} and is off by up to",
    end=" ",
)
print(f"{(product - rounded).abs().max() / product.max():.1%}")
assert product.max() > 256 and not torch.equal(product, rounded)
# what the threshold of Q K^T V s is compared with
assert ((product * 0.125 >= 1) == (rounded * 0.125 >= 1)).all()

# %% [markdown]
# <details><summary>Answer</summary>
#
# Both inner products are exact: they count at most d = 32 or N = 196 ones. The full product can reach $N d$ = 6272;
# above 256 it is rounded. This does not affect the neuron after it: its threshold is small, and all values near the
# threshold are small whole numbers times s = 1/8, so they are exact. The random bits here have a much higher rate than
# spikes of trained layers.
#
# </details>
#
# Weights, currents and batch norms are real numbers, and they *are* rounded. A membrane potential near its threshold
# may then be on the other side of it, and that spike flips. How many spikes flip?

# %%
trained = se.load_pretrained("digits-2-64")
digits, labels = se.data.load("digits").test.fetch(torch.arange(50), None)
recordings = {}
for precision in ("fp32", "bf16"):
    with (
        torch.no_grad(),
        se.record(trained) as rec,
        autocast(torch.device("cpu"), precision),
    ):
        answers = trained(digits).argmax(1)
    recordings[precision] = rec
    assert (answers == labels).float().mean() > 0.9
flipped = {
    layer.name: (layer.values != recordings["bf16"][layer.name].values.float())
    .float()
    .mean()
    .item()
    for layer in recordings["fp32"].layers("spikes")
}
assert recordings["bf16"]["sps.1"].values.dtype == torch.bfloat16
print(
    f"flipped: {100 * flipped['sps.0']:.1f} % in the first layer, at most {100 * max(flipped.values()):.0f} % in any"
)
assert flipped["sps.0"] < 0.01 and max(flipped.values()) < 0.1

# %% [markdown]
# A few per cent of the spikes flip, and the accuracy stays above 90 % here. But a run in bf16 is a different run: its
# weights are no longer bit for bit equal. `--precision bf16` needs no gradient scaler, because bfloat16 has the range
# of float32. The official code uses `fp16`, which needs a gradient scaler; with `--precision fp16` the package uses
# one.

# %% [markdown]
# ## Accumulation
#
# If a batch of 8 does not fit into memory, take two parts of 4, add their gradients, and make one optimizer step. The
# loss is a mean, so the loss of each part is divided by the number of parts.


# %%
def gradients(model, x, y, parts=1):
    """The gradient of one optimizer step, taken in parts."""
    model.zero_grad()
    for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
        (F.cross_entropy(model(x_part), y_part) / parts).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


double = copy.deepcopy(trained).double()
x, y = digits[:8].double(), labels[:8]
apart = {}
# batch norms use fixed statistics, and those of the batch
for mode in ("eval", "train"):
    double.train(mode == "train")
    whole, in_parts = gradients(double, x, y), gradients(double, x, y, parts=2)
    apart[mode] = ((whole - in_parts).norm() / whole.norm()).item()
print(
    f"equal with frozen statistics: {apart['eval'] < 1e-10}; with those of the batch: {apart['train'] < 1e-10}"
)
assert apart["eval"] < 1e-10 and apart["train"] > 0.01

# %% [markdown]
# With fixed statistics the gradients are equal up to rounding. In training each part has its *own* mean and variance,
# computed from half as many images. So gradient accumulation is not the same as a large batch: the batch norms use the
# statistics of a small batch. The same is true for several processes, unless `--sync-bn` shares the statistics. In a
# spiking network this matters even more: a slightly different mean shifts every membrane potential, and some spikes
# flip.

# %% [markdown]
# ## Recomputation
#
# `--activation-checkpointing` keeps only the input of each block and recomputes the block in the backward pass. This
# needs less memory and more time. Unlike the two techniques before, it does not change any number, as long as batch
# norms do not count the batch twice. The package ensures this.

# %%
plain = se.Spikformer(
    se.SpikformerConfig(
        time_steps=2, dim=64, depth=4, heads=2, pool=(True, True, False, False)
    )
)
again = copy.deepcopy(plain)
checkpoint_blocks(again)
x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
assert torch.equal(gradients(plain, x, y), gradients(again, x, y))
assert all(
    torch.equal(a, b)
    for a, b in zip(
        plain.state_dict().values(), again.state_dict().values(), strict=True
    )
)
share = kept_bytes(again, x) / kept_bytes(plain, x)
print(
    f"gradients and statistics equal to the bit, {100 * share:.0f} % of the memory kept"
)
assert share < 0.75

# %% [markdown]
# ## Two processes
#
# With several GPUs every process holds the whole network and takes its share of the batch, and the gradients are
# averaged. This is like gradient accumulation, but the parts run at the same time. `torchrun` starts the processes, and
# the training command detects this. The next cell starts two processes on the CPU for one short epoch. With eight GPUs
# only the number changes.


# %%
def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name)
environment = os.environ | {"OMP_NUM_THREADS": "1"}
tiny = [
    "--dataset",
    "digits",
    "--samples-per-class",
    "8",
    "--time-steps",
    "1",
    "--device",
    "cpu",
    "--no-figures",
]
torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
torchrun += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
command = [
    *torchrun,
    "-m",
    "spikformer_edu.train",
    *tiny,
    "--epochs",
    "1",
    "--sync-bn",
    "--out",
    str(folder / "two"),
]
done = subprocess.run(
    command, env=environment, capture_output=True, text=True, check=False
)
assert done.returncode == 0, done.stderr

config = json.loads((folder / "two" / "config.json").read_text())
results = json.loads((folder / "two" / "results.json").read_text())
print(
    f"{config['provenance']['processes']} processes, one run folder, {results['total']} test digits, counted once"
)
assert (
    config["provenance"]["processes"] == 2
    and done.stdout.count("test accuracy") == 1
)
# a network that one process can use
assert se.load_run(folder / "two").model.config.dim == 64

# %% [markdown]
# ## Killed, and resumed
#
# Large runs are often killed by time limits, power failures or other jobs. After every epoch the package writes
# weights, optimizer, position and counters to one file. It writes a temporary file first and renames it when it is
# complete. All random numbers depend only on (seed, epoch, batch), so the package needs to save nothing else. To prove
# this we kill a run with SIGKILL, which gives it no time to save.

# %%
train = [
    sys.executable,
    "-m",
    "spikformer_edu.train",
    *tiny,
    "--epochs",
    "20",
    "--warmup-epochs",
    "0",
]
unbroken = subprocess.run(
    [*train, "--out", str(folder / "unbroken")],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
)
assert unbroken.returncode == 0, unbroken.stderr

process = subprocess.Popen(
    [*train, "--out", str(folder / "killed")],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
)
while not (folder / "killed" / "resume.pt").exists():  # the first checkpoint
    assert process.poll() is None, process.stdout.read().decode()
    time.sleep(0.005)
process.kill()
assert process.wait() != 0
process.stdout.close()
state = torch.load(folder / "killed" / "resume.pt", weights_only=True)
assert (
    1 <= state["progress"]["epoch"] < 20
    and not (folder / "killed" / "results.json").exists()
)

resumed = subprocess.run(
    [*train, "--out", str(folder / "killed"), "--resume"],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
)
assert resumed.returncode == 0, resumed.stderr

# %% [markdown]
# **Predict before you run.** The resumed run computed the missing epochs in another process. Are its weights close to
# those of the uninterrupted run, or the same?

# %%
first, second = (
    load_file(folder / name / "last.safetensors") for name in ("unbroken", "killed")
)
assert first.keys() == second.keys()
assert all(torch.equal(first[name], second[name]) for name in first)
print(
    f"{len(first)} tensors, {sum(t.numel() for t in first.values()):,} numbers: equal to the last bit"
)
workplace.cleanup()

# %% [markdown]
# <details><summary>Answer</summary>
#
# They are the same, on the same machine with the same number of threads. If they were only close, something would be
# missing in the checkpoint: the moments of AdamW, the position in the schedule, or the order of the data. Each of these
# can lower the accuracy without any error message.
#
# </details>

# %% [markdown]
# ## The real thing: costs
#
# The plan gives the operations of the whole run, and the measurements above give the operations per second. Together
# they give the time. The speed is that of the machine in the results file, for its largest batch of a smaller network
# in fp32. Your machine will have a very different speed. So take the hours as an order of magnitude, and use the speed
# that `--dry-run` prints on your machine.

# %%
config = se.preset(recipe.model).config
parts = count_flops(config, 224)
others = parts["other convs"] + parts["linear"] + 2 * parts["K^TV"] + parts["head"]
# the still image's convolution is done once
per_image = 2 * (3 * config.time_steps * others + 2 * parts["first conv"])
total = per_image * planned.total_steps * recipe.batch_size
row = measured["curves"]["batch"][-1]
rate = row["flops"] / row["median"]
print(
    f"{recipe.model}: {per_image / 1e9:.0f} GFLOP an image, {total / 1e18:.0f} EFLOP (10^18) for 310 epochs"
)
print(
    f"at the {rate / 1e9:,.0f} GFLOP/s of the results file: about {round(total / rate / 3600, -4):,.0f} hours"
)
assert 1e19 < total < 1e21

# %% [markdown]
# These are the commands. The first takes seconds and tells you nearly everything. Run it before you start the third.

# %%
commands = {
    "what it takes": "python -m spikformer_edu.train --dataset imagenet --precision bf16 --dry-run",
    "full CIFAR-10, one GPU": "python -m spikformer_edu.train --dataset cifar10 --precision bf16 --compile",
    "ImageNet, 8 GPUs": "torchrun --nproc-per-node 8 -m spikformer_edu.train --dataset imagenet"
    " --precision bf16 --compile --workers 8 --keep 3 --out runs/imagenet",
    "go on after a crash": "the same with --resume",
}
for purpose, command in commands.items():
    print(f"{purpose}:\n    {command}")

# %% [markdown]
# `--compile` uses `torch.compile`, which fuses neurons, norms and sums into few kernels. The start is slow, but the run
# is then faster on a GPU. Compiled code rounds differently, so it also gives a different run.
#
# The next two cells start the real runs if there are a GPU and the data. Otherwise they print the command. They train
# for one epoch on a few images of each class. For the full run remove `--samples-per-class` and `--epochs`.


# %%
def real_run(dataset, *options):
    """Train if there are a GPU and the data; otherwise print the command."""
    arguments = [
        "--dataset",
        dataset,
        "--precision",
        "bf16",
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        *options,
    ]
    counts = se.data.count(dataset)
    if torch.cuda.is_available() and counts.get("train"):
        with tempfile.TemporaryDirectory() as out:
            command = [
                sys.executable,
                "-m",
                "spikformer_edu.train",
                *arguments,
                "--no-figures",
                "--out",
                f"{out}/run",
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, done.stderr
        print(done.stdout)
        return
    missing = [] if torch.cuda.is_available() else ["a GPU"]
    missing += (
        []
        if counts.get("train")
        else [f"the training images of {dataset} under $SPIKFORMER_DATA"]
    )
    print(
        f"not run, needs {' and '.join(missing)}:\n    python -m spikformer_edu.train {' '.join(arguments)}"
    )


# %% tags=["nbval-ignore-output"]
real_run("cifar10", "--samples-per-class", "100")
assert RECIPES["cifar10"].epochs + RECIPES["cifar10"].cooldown_epochs == 310

# %% tags=["nbval-ignore-output"]
real_run("imagenet", "--samples-per-class", "2", "--batch-size", "24")
assert RECIPES["imagenet"].epochs + RECIPES["imagenet"].cooldown_epochs == 310

# %% [markdown]
# ## One real step
#
# The next cell runs on every machine: one optimizer step of `imagenet-8-384`, with 16.8 million parameters, T = 4, two
# images of 224 x 224, and the optimizer of the recipe. It uses images of ImageNet if they are available, and random
# images otherwise.

# %% tags=["nbval-ignore-output"]
if counts := se.data.count("imagenet"):
    splits = se.data.load("imagenet")
    split = "train" if counts.get("train") else "val"
    x, y = splits["train" if split == "train" else "test"].fetch(
        torch.arange(2), None
    )
    print(f"on two images of ImageNet's {split} folder")
else:
    x, y = torch.randn(2, 3, 224, 224), torch.tensor([0, 1])
    print("on two random images: ImageNet is not here")
model = se.spikformer("imagenet-8-384")
optimizer = torch.optim.AdamW(
    parameter_groups(model, recipe.weight_decay), lr=recipe.warmup_lr
)
before = [p.detach().clone() for p in model.parameters()]
loss = F.cross_entropy(model(x), y, label_smoothing=recipe.label_smoothing)
loss.backward()
optimizer.step()
changed = [
    not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
]
print(
    f"logits for 1,000 classes, {sum(changed)} of {len(changed)} parameter tensors have moved"
)
assert torch.isfinite(loss) and 5 < loss.item() < 9  # ln 1000 = 6.9
assert sum(changed) > 0.9 * len(changed)

# %% [markdown]
# ## Pitfalls
#
# - **The learning rate of another batch.** Symptom: the accuracy is some points below the published one. Possible
#   cause: the batch is smaller, but the learning rate is the same. Cure: use the recipe's square root rule, and check
#   the rate with `--dry-run`.
# - **Steps counted in epochs of another batch.** A warm-up of 20 epochs has four times fewer steps if the batch is four
#   times larger.
# - **Small batches in norms.** Symptom: training with gradient accumulation or many processes gives a lower accuracy.
#   Cause: each part has its own statistics. Cure: larger parts, or `--sync-bn`.
# - **`batch_size` per process or in total?** In the official code 24 is the batch of each GPU; here `--batch-size` is
#   the global batch. The next cell shows an error message of the package.
# - **The epoch is chosen on the test set.** Here ImageNet's published validation set is the test set, and it is
#   measured once. Use `--val-fraction` to choose the epoch on a part of the training set.
# - **A checkpoint without the optimizer.** Symptom: the loss jumps after resuming. Cure: save the whole state, and test
#   it as above.

# %%
from spikformer_edu.training.loop import RunOptions, Trainer

odd = replace(RECIPES["digits"], batch_size=50, grad_accum_steps=4)
try:
    Trainer(
        odd,
        Path("unused"),
        DistributedContext(torch.device("cpu")),
        se.data.load("digits"),
        RunOptions(),
    )
    raise AssertionError("50 images cannot be cut into 4 equal parts")
except se.SpikformerError as error:
    print(error)

# %% [markdown]
# ## Exercises
#
# **12.1 Plan 8 GPUs.** You have 8 GPUs, and each can hold 48 images at a time. For a given global batch compute: the
# images of each GPU in an optimizer step; the number of parts (as few as possible, all of equal size); the optimizer
# steps in an epoch; and the highest learning rate by the square root rule, from the recipe's `lr` at `lr_batch_size`.


# %% tags=["exercise-1"]
def plan_gpus(recipe, global_batch, gpus=8, fits=48, images=1_281_167):
    """{"per_gpu": ..., "parts": ..., "steps": ..., "lr": ...}"""
    ...


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
# **12.2 A dry run of the real command.** Write the arguments of `python -m spikformer_edu.train` for a dry run of
# `imagenet-8-384` at T = 1 with a global batch of 1,024 in 32 parts, as a list of strings. The check runs the command;
# it does not train. (`python -m spikformer_edu.train --help` lists the options.)

# %% tags=["exercise-2"]
arguments = None  # ["--dataset", "imagenet", ...]

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
# **12.3 A memory budget.** A process has `budget` bytes of memory. Every weight needs four floats of 4 bytes (the
# weight, its gradient, two moments), and every image needs `per_image` bytes. How many images fit at once? The result
# must not be less than 0.


# %% tags=["exercise-3"]
def images_that_fit(budget, parameters, per_image):
    """Largest number of images at once."""
    ...


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

# %% [markdown]
# ## Recap
#
# - Bit for bit equal: activation checkpointing and resuming. Equal up to rounding: gradients in parts, with fixed
#   statistics. Not equal: batch statistics in parts, bf16, compiled code.
# - Spikes and their inner products are exact in bf16; weights and membrane potentials are not.
# - The memory that autograd keeps grows with T and with B. The batch size determines the number of steps, and its
#   square root the learning rate.
# - Use `--dry-run` first.
#
# Solutions: [solutions](solutions/12_imagenet.ipynb). Next: [chapter 13](13_beyond.ipynb).
