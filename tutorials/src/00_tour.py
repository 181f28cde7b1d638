# %% [markdown]
# # 00 · Tour in five minutes
#
# *Run time 15 s on one CPU core · you only need to know PyTorch · no internet access, no GPU*
#
# Can a transformer work if its neurons output only 0 and 1? This chapter shows one that does. It is small and comes with
# the package. It was trained on the handwritten digits of scikit-learn, pictures of 8 x 8 pixels that we enlarge to
# 32 x 32. We follow it while it reads a digit, from the first spike to the decision. Each later chapter explains one
# part of this tour in detail.
#
# ![The network's parts, from image to answer; this chapter is about all of them](../docs/images/network_map/00.svg)
#
# ## What you will learn
# - load a trained Spikformer, classify an image, and record everything that its neurons do
# - follow the path image, spikes, tokens, Q, K and V, attention, decision
# - read a raster and a firing rate
# - find the chapter that explains the topic you want to know about

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

from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch

from spikformer_edu.plot import style

torch.manual_seed(0)
torch.set_num_threads(1)
plt.rcParams.update(style.RC)

# %% [markdown]
# ## The key figure
# The network reads one test digit. Each panel shows 48 evenly spaced neurons of one layer, and the layers are in order:
# in the first column the image becomes tokens, then two encoder blocks follow. A black bar is a
# [spike](../docs/glossary.md#spike-spike-train). Time runs to the right over four steps. Most of every panel is white:
# most neurons are silent in most steps. On hardware that skips zeros, a neuron that does not fire causes no addition in
# the next layer. Two bars stand beside each panel. The first is the firing rate of the whole layer. The second is for
# the layer's features: the channels of a convolution layer, or the entries of a token. Its hatched part is the share of
# features that never fire.

# %%
model = se.load_pretrained("digits-2-64")
digits = se.data.load("digits")
# digit 3 of the test set, [1, 1, 32, 32]; None: without random augmentation
image, label = digits.test.fetch(torch.tensor([3]), None)

with torch.no_grad(), se.record(model, membranes=True) as rec:
    logits = model(image)
print(f"The network says {int(logits.argmax())}, the label is {int(label)}.")
assert logits.argmax() == label

fig, _ = se.plot.atlas(rec)
se.plot.show(
    fig,
    "Rasters of all 19 neuron layers over T = 4 steps while one digit is read: "
    "few spikes, at t = 0 hardly any in the deep layers.",
)
assert len(rec.layers("spikes")) == 19
assert all(0 < layer.spikes.mean() < 0.5 for layer in rec.layers("spikes"))
# at t = 0 the layers of the blocks are nearly silent: below 2 % in the mean
deep = [layer for layer in rec.layers("spikes") if layer.name.startswith("blocks")]
assert sum(float(layer.spikes[0].mean()) for layer in deep) / len(deep) < 0.02

# %% [markdown]
# ## Shapes and values
#
# | name | shape | value set | meaning |
# |---|---|---|---|
# | `image` | `[B, 1, 32, 32]` | reals | the input, the same in each [time step](../docs/glossary.md#time-step) |
# | `sps.0` to `sps.3`, `sps.rpe` | `[T, B, channels, rows, columns]` | {0, 1} | spikes of the convolution layers, [SPS](../docs/glossary.md#sps) |
# | `blocks.i.attn.q`, `.k`, `.v` | `[T, B, h, N, d]` | {0, 1} | $h$ heads, $N$ [tokens](../docs/glossary.md#token) |
# | `blocks.i.attn.scores` | `[T, B, h, N, N]` | multiples of 0.125 | [scores](../docs/glossary.md#attention-scores) |
# | `blocks.i.attn.attn` | `[T, B, h, N, d]` | {0, 1} | spikes of attention |
# | `blocks.i.attn.proj`, `blocks.i.mlp.hidden`, `.out` | `[T, B, N, features]` | {0, 1} | spikes of the next linear layers |
# | `blocks.i.residual` | `[T, B, N, D]` | integers | the output of a block and input of the next |
# | `logits` | `[B, 10]` | reals | one number for each class |
#
# $T$ is the number of time steps, $B$ the number of images, $D$ the number of features of a token. Attention runs in $h$
# heads side by side, each on its own $d = D / h$ features. A tensor with time has it as the first dimension. The
# recording stores each tensor under its name:

# %%
assert rec["sps.0"].spikes.shape == (4, 1, 8, 32, 32)
assert rec["blocks.0.attn.q"].spikes.shape == (4, 1, 4, 64, 16)
assert rec["blocks.0.attn.scores"].values.shape == (4, 1, 4, 64, 64)
assert rec["blocks.0.residual"].values.shape == (4, 1, 64, 64)
for layer in rec.layers("spikes"):
    assert set(layer.spikes.unique().tolist()) <= {0.0, 1.0}
print(rec.summary())

# %% [markdown]
# In the table, *rate* is the [firing rate](../docs/glossary.md#firing-rate): the share of ones. *Dead* features did not
# fire at all on this one image; they may fire on others. *Saturated* features fired everywhere and at every step.

# %% [markdown]
# ## The image becomes spikes
# The network gets the same real-valued image in each step ([direct coding](../docs/glossary.md#direct-coding)). The
# first layer of neurons turns it into spikes.
#
# **Predict before you run.** The image does not change and the weights do not change. Do the spikes of the first layer
# change from step to step?

# %% tags=["predict"]
first = rec["sps.0"].spikes[:, 0]  # [T, 8, 32, 32]
busiest = int(first.mean((0, 2, 3)).argmax())

fig, axes = plt.subplots(1, 5, figsize=(8.8, 2.5))
axes[0].imshow(image[0, 0], cmap="gray")
axes[0].set_title("input")
for t in range(4):
    axes[t + 1].imshow(first[t, busiest], cmap="Greys", vmin=0, vmax=1)
    axes[t + 1].set_title(f"t = {t}")
for ax in axes:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
fig.suptitle(f"sps.0, channel {busiest}, T = 4", x=0.01, ha="left", fontsize=12)
se.plot.show(
    fig,
    "A digit, and the spikes of one channel of layer sps.0 at T = 4 steps: "
    "the digit, in some steps thinner.",
)
changed = [int((first[t] != first[t - 1]).sum()) for t in (1, 2, 3)]
print("first layer, spikes that differ from the step before:", changed)
assert min(changed) > 0

# %% [markdown]
# <details><summary>Answer</summary>
#
# Yes. A neuron collects its input over time in a [membrane potential](../docs/glossary.md#membrane-potential), which
# also leaks. The neuron fires when the potential reaches a threshold, and starts again from zero. A strong input makes
# the neuron fire in every step, a weaker input in every second or third step, and a weak input never. So brightness
# becomes a pattern of spikes in time. [Chapter 01](01_leaky_neuron.ipynb) explains this neuron, [chapter
# 03](03_images_to_spikes.ipynb) these layers.
#
# </details>
#
# The next figure shows the membrane potential of two neurons. Four steps are too few to see much, so the digit is shown
# for 32. The upper neuron is in the first layer: its input is the same in each step, so it fires regularly. The lower
# one is in the first encoder block, in the hidden layer of its MLP. Its input depends on the spikes of other neurons,
# which change from step to step.

# %% tags=["fold"]
# membranes of two neurons while the digit is shown for 32 steps
names = ["sps.0", "blocks.0.mlp.hidden"]
frames = image.expand(32, *image.shape)  # 32 frames bring their own T
with torch.no_grad(), se.record(model, membranes=True, layers=names) as long:
    model(frames)
fig, axes = plt.subplots(2, 1, figsize=(8.8, 4.6), sharex=True)
for ax, name in zip(axes, names, strict=True):
    # a neuron that fires in a quarter of the steps and is never close to a tie
    counts = long[name].spikes[:, 0].sum(0).flatten()
    margin = (long[name].membrane[:, 0] - 1).abs().amin(0).flatten()
    chosen = int((margin - (counts - 8).abs()).argmax())
    se.plot.membrane(long[name], neuron=chosen, ax=ax)
axes[0].set_xlabel("")
se.plot.show(
    fig,
    "Membranes of two neurons over T = 32 steps: they start at 0, charge, fire at "
    "the threshold of 1 and are reset. Only the upper one is regular.",
)
for layer in rec.layers("spikes"):  # every neuron fires exactly where H >= V_th
    assert torch.equal(layer.spikes, (layer.membrane >= layer.v_threshold).float())

# %% [markdown]
# ## Tokens, queries, keys, values
# After the four convolution layers `sps.0` to `sps.3` the image is a grid of 8 x 8 tokens with 64 features each. Each
# encoder block computes three sets of spikes from them: queries (blue), keys (red), values (green). A score counts the
# features in which both a query and a key fire, and the network scales this count by 0.125. Counting itself needs no
# multiplication, and there is no softmax.

# %%
q, k = (rec[f"blocks.0.attn.{name}"].spikes for name in "qk")
# features in which both fire, [T, B, h, N, N]
pairs = (q[:, :, :, :, None, :] * k[:, :, :, None, :, :]).sum(-1)
assert torch.equal(rec["blocks.0.attn.scores"].values, pairs * 0.125)
print("most common features of a query and a key:", int(pairs.max()), "of 16")

# %% tags=["fold"]
# where the queries, keys and values of block 0 fire
fig, axes = plt.subplots(1, 4, figsize=(9.2, 2.6))
axes[0].imshow(image[0, 0], cmap="gray")
axes[0].set(xticks=[], yticks=[], title="input")
for ax, name, color in zip(
    axes[1:], "qkv", (style.Q, style.K, style.V), strict=True
):
    spikes = rec[f"blocks.0.attn.{name}"].spikes[:, 0]  # [T, h, N, d]
    # spikes of each token, over time, heads and features
    tokens = spikes.sum((0, 1, 3)).view(8, 8)
    drawn = ax.imshow(tokens, vmin=0)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{name}, sum over T = {len(spikes)}", color=color, fontsize=11)
    fig.colorbar(drawn, ax=ax, shrink=0.8)
fig.suptitle("blocks.0.attn: spikes of each token", x=0.01, ha="left", fontsize=12)
se.plot.show(
    fig,
    "Spikes of each of 8 x 8 tokens of Q, K and V in block 0, summed over T = 4: "
    "K and V fire where the digit is, Q everywhere.",
)

# %% [markdown]
# Keys and values fire where the stroke is. Queries fire on the background too. Does the network need them? A query of
# the background has features in common with keys of the strokes. So attention can add values of the strokes to a token
# without ink. To find out, we silence queries in both blocks: those of the strokes, those of the background, or all of
# them.
#
# **Predict before you run.** Which costs more accuracy: to silence the queries of the strokes, or those of the
# background?

# %% tags=["predict"]
images, labels = digits.test.fetch(torch.arange(359), None)  # the whole test set
# [B, N]: tokens with more ink than the mean
ink = torch.nn.functional.avg_pool2d(images, 4).flatten(1) > 0
right = {}
for place, silent in (("strokes", ink), ("background", ~ink), ("all", ink | ~ink)):
    keep = (~silent).float()[:, None, :, None]  # for all heads and features

    def silenced(spikes, keep=keep):  # [T, B, h, N, d]
        return spikes * keep

    changes = {"blocks.0.attn.q": silenced, "blocks.1.attn.q": silenced}
    with torch.no_grad(), se.intervene(model, changes):
        right[place] = 100 * (model(images).argmax(1) == labels).float().mean()
    share = 100 * silent.float().mean()
    print(
        f"silent: {place:10} ({share:3.0f} % of tokens)  {right[place]:.0f} % right"
    )
assert right["strokes"] > 95 and right["background"] < 90 and right["all"] < 60

# %% [markdown]
# <details><summary>Answer</summary>
#
# The queries of the background. If those of the strokes are silent, the network still reads 98 % of the digits. If the
# queries of the background are silent, seven in ten tokens get nothing from attention, and the network reads 82 %. If
# all are silent, it reads 31 %. So tokens without ink are useful: their queries collect values of the strokes, and the
# decision is made from the mean over all tokens.
#
# </details>

# %% [markdown]
# ## Attention
# The next figure shows the score that each key token receives, in the mean over all queries, for each head and each
# step. The outline is the digit. Heads 0 and 2 have high scores on the strokes; heads 1 and 3 have low scores
# everywhere on this digit. [Chapter 04](04_softmax_attention.ipynb) explains attention with a softmax. [Chapter
# 05](05_spiking_self_attention.ipynb) computes spiking attention by hand.

# %%
fig, _ = se.plot.attention_over_time(rec["blocks.0.attn.scores"], image[0])
se.plot.show(
    fig,
    "Attention of block 0 for each of 4 heads and T = 4 steps, over the digit: "
    "dark at t = 0, later on the strokes.",
)
assert (
    rec["blocks.0.attn.scores"].values[0].mean()
    < rec["blocks.0.attn.scores"].values[1:].mean()
)

# %% [markdown]
# ## The decision
# The last layer, the classification head, is linear, and its input is the mean over tokens and time. So we can follow
# its answer from step to step: the curves show the mean of the logits up to each step.

# %%
fig, _ = se.plot.logits(rec, label=int(label))
se.plot.show(
    fig,
    "Mean logit of each class up to each of T = 4 steps: the true class wins.",
)
torch.testing.assert_close(rec.logits.mean(0), logits)

# %% [markdown]
# This cell runs the whole test set. The network has not seen these digits in training:

# %%
with torch.no_grad():
    accuracy = (model(images).argmax(1) == labels).float().mean()
print(f"{100 * accuracy:.0f} % of {len(labels)} test digits")
assert accuracy > 0.95

# %% [markdown]
# ## What it costs
# [Firing rates](../docs/glossary.md#firing-rate) measure how many spikes a layer sends. On hardware that skips zeros
# they determine the number of additions: a spike that arrives at a synapse (one weight) costs one addition.

# %%
fig, _ = se.plot.firing_rates(rec)
se.plot.show(
    fig, "Firing rate of each of the 19 neuron layers on one digit, T = 4: all low."
)

report = se.energy(model, images[:50])
paper, ann = report.totals["paper"] / 1e6, report.totals["ann"] / 1e6
print(f"arithmetic of one digit at 45 nm: {paper:.0f} µJ with spikes,")
print(f"{ann:.0f} µJ for the same network without spikes")
assert 2 < ann / paper < 50

# %% [markdown]
# This is an estimate by the paper's formula, for a chip in 45 nm technology, and it does not count memory access.
# [Chapter 10](10_energy.ipynb) explains what the estimate shows and what it does not.

# %% [markdown]
# ## Time
# **Predict before you run.** The network was trained with $T = 4$. How accurate is it with one time step? And with 8?

# %% tags=["predict"]
some, truth = images[:100], labels[:100]
for steps in (1, 2, 4, 8):
    # [T, B, 1, 32, 32]: frames bring their own T
    frames = some.expand(steps, *some.shape)
    with torch.no_grad(), se.record(model, layers=["blocks.1.mlp.out"]) as deep:
        accuracy = (model(frames).argmax(1) == truth).float().mean()
    rate = deep["blocks.1.mlp.out"].spikes.mean()
    print(
        f"T = {steps}: {100 * accuracy:3.0f} % right, "
        f"firing rate of the last layer {100 * rate:4.1f} %"
    )
    assert (accuracy < 0.7) if steps == 1 else (accuracy > 0.8)

# %% [markdown]
# <details><summary>Answer</summary>
#
# With one step the accuracy is low: 49 %. A membrane takes up half of its input in a step, so in the first step only a
# current of at least twice the threshold makes a spike. After a few layers hardly any spikes are left. The atlas above
# shows this: its deep panels are nearly empty at $t = 0$. With two steps or more the network reads 97 to 98 %, so more
# steps than in training change little.
#
# </details>
#
# Two calls on the same image give the same answer: neurons keep state only within a sample and start from zero for the
# next one. Many libraries keep state between calls; chapter 01 shows an example.

# %%
with torch.no_grad():
    assert torch.equal(model(images[:20]), model(images[:20]))
    assert torch.equal(model(image), logits)
print("same image, same logits")

# %% [markdown]
# ## Where to go from here
#
# | chapter | topic |
# |---|---|
# | [01 One Leaky neuron](01_leaky_neuron.ipynb) | charge, threshold, reset; the paper's neuron on snnTorch |
# | [02 Learning through spikes](02_surrogate_gradient.ipynb) | surrogate gradients, BPTT by hand, silent layers |
# | [03 Images into spikes](03_images_to_spikes.ipynb) | direct coding, spiking patch splitting |
# | [04 Softmax attention](04_softmax_attention.ipynb) | the attention that SSA replaces |
# | [05 Spiking self-attention](05_spiking_self_attention.ipynb) | $Q K^T V s$ by hand, bit by bit |
# | [06 The encoder block](06_encoder_block.ipynb) | heads, position, residuals |
# | [07 Assemble and verify](07_assemble_and_verify.ipynb) | the network to the last parameter and spike |
# | [08 Train it](08_train.ipynb) | training on a laptop, and what to watch |
# | [09 Ablations](09_ablations.ipynb) | other attentions, other $T$ |
# | [10 Energy](10_energy.ipynb) | what the picojoules mean, and what they do not mean |
# | [11 Events](11_events.ipynb) | event cameras, frames, a task that needs time |
# | [12 ImageNet](12_imagenet.ipynb) | start, watch and resume a full run, and what it costs |
# | [13 Beyond](13_beyond.ipynb) | later spiking transformers as small changes of the code |
#
# The [glossary](../docs/glossary.md) explains words and symbols.

# %% [markdown]
# ## Pitfalls
#
# | symptom | cause | cure |
# |---|---|---|
# | poor accuracy on your own images | not normalized as in training | mean and std of `digits.info` |
# | nonsense from event frames | batch first instead of time first | `[T, B, channels, rows, columns]` |
# | `SpikformerError` about integers | pixels are uint8 | `x.float() / 255` before normalizing |
# | a "dead" layer on one image | one image is not enough to decide | record a batch |
#
# The next cell shows the first one: the same digits as pixels from 0 to 1, as you would read them from a file.

# %%
info = digits.info
pixels = images * info.std[0] + info.mean[0]
with torch.no_grad():
    normalized, raw = (
        (model(x[:100]).argmax(1) == labels[:100]).float().mean()
        for x in (images, pixels)
    )
assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
print(f"normalized {100 * normalized:.0f} %, as they are {100 * raw:.0f} %")
assert raw < normalized

# %% [markdown]
# ## Exercises
# **Exercise 0.1: change T, predict the rate.** In the last layer the firing rate grew with $T$, as printed above. How
# much does it grow in an earlier layer, `sps.3`? Guess first. Then write `rate_at`: it returns the firing rate of a
# layer when the image is shown for `steps` time steps.


# %% tags=["exercise-1"]
def rate_at(steps, layer="sps.3"):
    """Firing rate of a layer of `model`, as a float.

    The model sees `image` [1, 1, 32, 32] for so many time steps.
    """
    ...


# %% tags=["check-1"]
with se.exercise("0.1"):
    rates = [rate_at(steps) for steps in (1, 4, 16)]
    assert None not in rates, "write rate_at first: record the layer, run the model"
    for name in ("sps.3", "blocks.1.attn.k"):
        expected = float(rec[name].spikes.mean())
        assert abs(rate_at(4, name) - expected) < 1e-6, (
            f"{name}: at T = 4 the rate should be that of the recording"
        )
    assert rates[0] < rates[1] < rates[2], (
        "not the rates of T = 1, 4, 16: how many steps does the model run?"
    )

# %% [markdown]
# **Exercise 0.2: which token gets the most attention?** Scores have the shape `[T, B, h, N, N]`: the second-to-last
# dimension numbers the query tokens, the last one the key tokens. Write `focus`: it takes the scores of one image and
# returns the row and the column of the key token with the highest score, in the mean over time, heads and queries. The
# tokens fill a square, row by row.


# %% tags=["exercise-2"]
def focus(scores):
    """Scores [T, 1, h, N, N] -> (row, column) of the key token."""
    ...


# %% tags=["check-2"]
with se.exercise("0.2"):
    generator = torch.Generator().manual_seed(0)
    made_up = torch.rand(
        5, 1, 3, 36, 36, generator=generator
    )  # T = 5, 6 x 6 tokens
    made_up[:, :, :, :, 15] += 0.5  # a key that is high for all queries
    made_up[:, :, :, 7, :] += 2.0  # a query that is high for all keys
    made_up[0, :, :, :, 21] += 1.5  # a key that is high at t = 0 only
    assert focus(made_up) is not None, "write focus first"
    for scores in (made_up, rec["blocks.0.attn.scores"].values):
        found = focus(scores)
        assert isinstance(found, (tuple, list)) and len(found) == 2, (
            "give two numbers: the row and the column"
        )
        side = round(scores.shape[-1] ** 0.5)
        means = scores.mean((0, 1, 2, 3)).view(side, side)
        row, column = (int(number) for number in found)
        assert 0 <= row < side and 0 <= column < side, (
            f"row {row}, column {column}: there are {side} x {side} tokens"
        )
        assert means[row, column] == means.max(), (
            f"T = {len(scores)}, {side} x {side} tokens: row {row}, column {column}"
            f" has a mean of {means[row, column]:.2f}, the best {means.max():.2f}"
        )

# %% [markdown]
# **Exercise 0.3: from which step on is it right?** `rec.logits` holds the logits of each single step, `[T, B, 10]`.
# Take the mean of the logits up to and including step t. From which step on, until the end, does this mean name the
# true class? Write a function that answers this for any recording of one image, with any $T$.


# %% tags=["exercise-3"]
def right_from(recording, label):
    """The first step from which on the running mean of the logits names the label.

    T if the mean of all steps does not name it.
    """
    ...


# %% tags=["check-3"]
with se.exercise("0.3"):
    assert right_from(rec, label) is not None, "write right_from first"

    def wavering(*classes):
        """A recording; each step has one logit of that size, for that class."""
        steps = [size * torch.eye(10)[name] for name, size in classes]
        return SimpleNamespace(logits=torch.stack(steps)[:, None])

    zero = torch.tensor([0])
    for story, classes, expected in (
        ("right all the time", [(0, 1)] * 3, 0),
        ("right, wrong, right, right", [(0, 1), (1, 3), (0, 3), (0, 1)], 2),
        ("one loud right step, then quiet wrong ones", [(0, 9)] + [(1, 1)] * 5, 0),
        ("right at the last of seven steps", [(1, 1)] * 6 + [(0, 9)], 6),
        ("wrong all the time", [(1, 1)] * 5, 5),
    ):
        found = int(right_from(wavering(*classes), zero))
        assert found == expected, f"{story}: expected {expected}, not {found}"
    for number in range(10):
        one, truth = digits.val.fetch(torch.tensor([number]), None)
        with torch.no_grad(), se.record(model, layers=[]) as short:
            model(one.expand(6, *one.shape))
        t = int(right_from(short, truth))
        named = [
            bool(short.logits[: n + 1].mean(0).argmax() == truth) for n in range(6)
        ]
        assert all(named[t:]) and (t == 0 or not named[t - 1]), (
            f"validation digit {number}, T = 6: step {t} is not the first"
        )

# %% [markdown]
# ## Recap
# - A Spikformer is a transformer whose neurons output 0 or 1, over $T$ steps. Sums of these spikes, such as the
#   residual, are integers.
# - With `se.load_pretrained`, `se.record`, `se.plot` and `se.energy` you can look inside the network.
# - The information is in the pattern of spikes: which neurons fire, and when. Most neurons are silent most of the time.
#
# Solutions: [00](solutions/00_tour.ipynb). Next: [chapter 01](01_leaky_neuron.ipynb), one neuron in detail.
