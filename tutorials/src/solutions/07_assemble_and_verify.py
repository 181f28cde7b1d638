# %% [markdown]
# # 07 · Solutions
#
# Answers to the exercises of [chapter 07](../07_assemble_and_verify.ipynb): assemble and verify.

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

import torch

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# **7.1 Parameters of any preset.** Write the formula for every configuration.
#
# The formula is that of the chapter, with letters instead of numbers. Pooling, heads and T have no weights, so they do
# not appear.


# %% tags=["exercise-1"]
def parameters(c: se.SpikformerConfig) -> int:
    """Number of trainable parameters, from the sizes alone."""
    d, r = c.dim, c.mlp_ratio
    widths = [c.in_channels, d // 8, d // 4, d // 2, d, d]
    sps = sum(
        9 * a * b + 2 * b for a, b in zip(widths[:-1], widths[1:], strict=True)
    )
    attention = 3 * d * d + 3 * d * c.qkv_bias + d * d + d + c.learn_scale
    mlp = d * r * d + r * d + r * d * d + d
    norms = 2 * (3 * d + d + r * d + d)
    return (
        sps
        + c.depth * (attention + mlp + norms)
        + d * c.num_classes
        + c.num_classes
    )


# %% tags=["check-1"]
with se.exercise("7.1"):
    assert parameters(se.preset("cifar10-4-384").config) is not None, (
        "write parameters first"
    )
    for line in se.list_models():
        off = parameters(line.config) - line.parameters
        assert off == 0, (
            f"{line.name}: off by {off:,}; print se.preset('{line.name}').config"
        )
    slim = se.SpikformerConfig(dim=32, depth=3, heads=4, mlp_ratio=2)
    count = sum(p.numel() for p in se.Spikformer(slim).parameters())
    off = parameters(slim) - count
    assert off == 0, f"dim=32, depth=3, heads=4, mlp_ratio=2: off by {off:,}"

# %% [markdown]
# **7.2 Find the mix-up.** Write a function that tells whether samples of a batch influence each other.
#
# Change one sample at a time and look at all others. This makes no assumption about the form of the influence: it finds
# a swapped axis, one sample that affects one other, and a mean over the batch. T and B do not change, so the arithmetic
# of the other samples is the same to the last bit, and we can require exact equality.


# %% tags=["exercise-2"]
def samples_interact(model: torch.nn.Module, frames: torch.Tensor) -> bool:
    """Whether logits of a sample depend on another; frames are [T, B, C, H, W]."""
    model.eval()
    with torch.no_grad():
        before = model(frames)
        for sample in range(frames.shape[1]):
            changed = frames.clone()
            changed[:, sample] = frames[:, sample].flip(-1) * -2
            after = model(changed)
            others = torch.arange(frames.shape[1]) != sample
            if not torch.equal(after[others], before[others]):
                return True
    return False


# %% tags=["check-2"]
with se.exercise("7.2"):
    clips = torch.randn(3, 5, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    good = se.load_pretrained("digits-2-64")
    assert samples_interact(good, clips) is not None, "write samples_interact first"
    assert not samples_interact(good, clips), (
        "the packaged network is right: compare like with like, in eval()"
    )

    def plant(path: str, wrong) -> torch.nn.Module:
        """A copy of the network in which the output of one module is rearranged."""
        broken = se.load_pretrained("digits-2-64")
        broken.get_submodule(path).register_forward_hook(
            lambda module, inputs, out: wrong(out)
        )
        return broken

    def swapped(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(0, 1).reshape(x.shape)  # T and B

    def looks(reader: int, read: int):
        """A fault by which one sample of the batch looks at another one."""

        def wrong(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[:, reader] *= x[:, read]
            return x

        return wrong

    def mean_free(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)  # symmetric: a shuffle cannot see it

    for path in (
        "sps.1.neuron",
        "blocks.0.attn.q",
        "blocks.1.attn.proj",
        "blocks.1.mlp.out",
    ):
        assert samples_interact(plant(path, swapped), clips), (
            f"T and B are swapped after {path}, and nothing was found"
        )
    for reader in range(5):
        read = (reader + 2) % 5
        broken = plant("sps.3.neuron", looks(reader, read))
        assert samples_interact(broken, clips), (
            f"sample {reader} depends on sample {read}, and nothing was found"
        )
    assert samples_interact(plant("head", mean_free), clips), (
        "the mean of the batch is subtracted, and nothing was found"
    )

# %% [markdown]
# **7.3 The forgotten reset.** Write a function that tells whether a neuron still depends on an earlier call.
#
# The given current alone is not enough. If all neurons fire in the last step, a hard reset leaves no state; and an
# input of zeros leaves the state at zero. So we make our own calls before each probe. One of them charges the membrane
# to just below the threshold and leaves it there. If the probe then gives another result, the neuron has kept its
# state.


# %% tags=["exercise-3"]
def remembers(neuron: torch.nn.Module, current: torch.Tensor) -> bool:
    """Whether a call depends on the calls before it."""
    charge, drain = torch.full_like(current, 0.99), torch.zeros_like(current)
    probe = torch.linspace(0.5, 1.5, current.numel()).view_as(current)
    answers = []
    for before in (drain, charge, current):
        for _ in range(5):
            neuron(before)
        answers.append(neuron(probe))
    return not all(torch.equal(answer, answers[0]) for answer in answers)


# %% tags=["check-3"]
with se.exercise("7.3"):

    class Forgetful(torch.nn.Module):
        """Keeps its membrane between calls of one shape."""

        def __init__(self, reset: bool):
            super().__init__()
            self.reset, self.v = reset, None

        def forward(self, current: torch.Tensor) -> torch.Tensor:
            if self.reset or self.v is None or self.v.shape != current[0].shape:
                self.v = torch.zeros_like(current[0])
            spikes = []
            for x in current:
                h = (self.v + x) / 2
                spikes.append((h >= 1).to(h.dtype))
                self.v = h * (1 - spikes[-1])
            return torch.stack(spikes)

    # strong: fires always, so nothing is left over
    weak, strong = torch.full((4, 3), 0.7), torch.full((4, 3), 2.5)
    assert remembers(Forgetful(reset=True), weak) is not None, (
        "write remembers first"
    )
    for current in (weak, strong, torch.zeros(4, 3)):
        assert not remembers(Forgetful(reset=True), current), (
            "this neuron starts from zero at every call"
        )
        assert not remembers(se.LIF(), current), (
            "the package's neuron starts from zero at every call"
        )
        assert remembers(Forgetful(reset=False), current), (
            f"a kept membrane was not found, with currents of {current[0, 0]:.1f}: "
            "is it certain that your calls leave one?"
        )
