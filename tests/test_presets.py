"""Presets are the paper's networks: parameter counts from a formula, sizes and published numbers from its tables."""

from dataclasses import replace

import pytest
import torch

import spikformer_edu as se
from spikformer_edu.presets import PRESETS, configure

# Millions of parameters that the paper prints (it sometimes cuts, sometimes rounds), and the official networks' own
# count without the layers that they never call.
PAPER = {
    "cifar10-4-256": (4.15, 4.155),
    "cifar10-2-384": (5.76, 5.765),
    "cifar10-4-384": (9.32, 9.325),
    "imagenet-8-384": (16.81, 16.816),
    "imagenet-6-512": (23.37, 23.373),
    "imagenet-8-512": (29.68, 29.689),
    "imagenet-10-512": (36.01, 36.005),
    "imagenet-8-768": (66.34, 66.339),
    "cifar10dvs-2-256": (2.57, 2.567),
}
ACCURACY = {
    "cifar10-4-256": {4: 93.94},
    "cifar10-2-384": {4: 94.80},
    "cifar10-4-384": {1: 93.51, 2: 93.59, 4: 95.19, 6: 95.34},
    "cifar100-4-256": {4: 75.96},
    "cifar100-2-384": {4: 76.95},
    "cifar100-4-384": {1: 74.36, 2: 76.28, 4: 77.86, 6: 78.61},
    "cifar10dvs-2-256": {10: 78.9, 16: 80.9},
    "dvsgesture-2-256": {10: 96.9, 16: 98.3},
    "imagenet-8-384": {4: 70.24},
    "imagenet-6-512": {4: 72.46},
    "imagenet-8-512": {1: 70.14, 2: 71.09, 4: 73.38, 6: 73.70},
    "imagenet-10-512": {4: 73.68},
    "imagenet-8-768": {4: 74.81},
}
CLASSES = {
    "digits": 10,
    "digits-dvs": 10,
    "digits-motion": 2,
    "cifar10": 10,
    "cifar100": 100,
    "cifar10dvs": 10,
    "dvsgesture": 11,
    "nmnist": 10,
}
CLASSES["imagenet"] = 1000
CHANNELS = {"digits": 1, "cifar10": 3, "cifar100": 3, "imagenet": 3}
CHANNELS |= dict.fromkeys(("digits-dvs", "digits-motion", "cifar10dvs", "dvsgesture", "nmnist"), 2)
SMALL_IMAGES = ("digits", "digits-dvs", "digits-motion", "cifar10", "cifar100", "nmnist")  # 32 x 32, 16 x 16


def parameters(dim: int, depth: int, channels: int, classes: int, qkv_bias: bool, learned_scale: bool) -> int:
    """Counted layer by layer from the shapes in the paper."""

    def bn(width):
        return 2 * width

    def conv(wide_in, wide_out):  # 3x3, no bias
        return 9 * wide_in * wide_out + bn(wide_out)

    def linear(wide_in, wide_out, bias=True):
        return wide_in * wide_out + bias * wide_out + bn(wide_out)

    sps = conv(channels, dim // 8) + conv(dim // 8, dim // 4) + conv(dim // 4, dim // 2) + conv(dim // 2, dim)
    rpe = conv(dim, dim)
    attention = 3 * linear(dim, dim, bias=qkv_bias) + linear(dim, dim) + learned_scale
    mlp = linear(dim, 4 * dim) + linear(4 * dim, dim)
    head = dim * classes + classes
    return sps + rpe + depth * (attention + mlp) + head


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count(name):
    dataset, depth, dim = name.rsplit("-", 2)
    cifar_like = dataset in SMALL_IMAGES
    expected = parameters(
        int(dim), int(depth), CHANNELS[dataset], CLASSES[dataset], cifar_like, dataset == "dvsgesture"
    )
    model = se.spikformer(name)
    assert sum(p.numel() for p in model.parameters()) == expected == PRESETS[name].parameters
    if name in PAPER:
        printed, exact = PAPER[name]
        assert abs(expected / 1e6 - printed) < 0.01 and round(expected / 1e6, 3) == exact


def test_every_published_network_is_there():
    ours = {"digits-2-64", "digits-dvs-2-64", "digits-motion-2-64", "cifar10-2-128", "nmnist-2-64"}
    assert set(ACCURACY) | ours == set(PRESETS)
    for name, line in PRESETS.items():
        assert line.name == name and line.paper_accuracy == ACCURACY.get(name)


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_are_the_papers(name):
    line, c = PRESETS[name], PRESETS[name].config
    dataset, depth, dim = name.rsplit("-", 2)
    assert (line.dataset, c.depth, c.dim) == (dataset, int(depth), int(dim))
    assert (c.num_classes, c.in_channels) == (CLASSES[dataset], CHANNELS[dataset])
    steps = {"cifar10dvs": 16, "dvsgesture": 16, "digits-dvs": 8, "digits-motion": 8}
    assert c.time_steps == steps.get(dataset, 4)
    sizes = {"cifar10dvs": 128, "dvsgesture": 128, "imagenet": 224, "digits-motion": 16}
    assert line.image_size == sizes.get(dataset, 32)
    tokens = (line.image_size // c.patch_size) ** 2
    assert tokens == {"imagenet": 196, "digits-motion": 16}.get(dataset, 64)
    assert c.qkv_bias == c.trunc_normal == (dataset in SMALL_IMAGES)
    assert (c.scale or 0.125) == (0.25 if dataset == "cifar10dvs" else 0.125)
    assert c.learn_scale == c.qk_pool == (dataset == "dvsgesture")
    heads = {64: 4, 128: 4, 256: 8, 384: 12, 512: 8, 768: 12}
    assert c.heads == (16 if dataset == "cifar10dvs" else heads[c.dim])
    assert (c.tau, c.attention, c.mlp_ratio) == (2.0, "ssa", 4)


@pytest.mark.parametrize("name", ["digits-2-64", "cifar10-4-256", "dvsgesture-2-256"])
def test_presets_run(name):
    line = PRESETS[name]
    model = se.spikformer(name, time_steps=2).eval()
    image = torch.randn(1, line.config.in_channels, line.image_size, line.image_size)
    with torch.no_grad():
        assert model(image).shape == (1, line.config.num_classes)


def test_list_models_prints_one_line_a_preset():
    models = se.list_models()
    assert [line.name for line in models] == list(PRESETS)
    header, *rows = str(models).splitlines()
    assert repr(models) == str(models) and len(rows) == len(PRESETS)
    for row, (name, line) in zip(rows, PRESETS.items(), strict=True):
        assert row.startswith(name + " ") and f"{line.parameters:,}" in row and f" {line.config.time_steps} " in row
        assert all(f"{top1:.2f} % (T={t})" in row for t, top1 in ACCURACY.get(name, {}).items())
        assert row.index(line.dataset, len(name)) == header.index("data set")
    assert max(map(len, rows)) <= 140


def test_overrides_change_a_preset_and_leave_it_alone():
    before = PRESETS["cifar10-4-384"].config
    config = configure("cifar10-4-384", num_classes=7, time_steps=2, attention="softmax")
    assert config == replace(before, num_classes=7, time_steps=2, attention="softmax")
    model = se.spikformer("cifar10-4-384", num_classes=7, time_steps=2)
    assert model.head.out_features == 7 and model.config.time_steps == 2
    assert se.preset("cifar10-4-384").config is before and before.num_classes == 10


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("cifar10-4-385", {}, ["'cifar10-4-385'", "did you mean 'cifar10-4-384'", "imagenet-8-768"]),
        ("imagenet-8_512", {}, ["did you mean 'imagenet-8-512'"]),
        ("", {}, ["unknown model ''", "available: digits-2-64"]),
        ("cifar10-4-384", dict(num_class=5), ["'num_class'", "did you mean 'num_classes'"]),
        ("cifar10-4-384", dict(atention="ssa"), ["'atention'", "did you mean 'attention'"]),
        ("cifar10-4-384", dict(heads=7), ["heads=7", "dim=384"]),
        ("cifar10-4-384", dict(time_steps=0), ["time_steps=0"]),
    ],
)
def test_unknown_names_name_the_nearest(name, options, words, one_line):
    with pytest.raises(se.SpikformerError) as error:
        se.spikformer(name, **options)
    one_line(error, *words)


def test_unknown_preset_by_name_alone(one_line):
    with pytest.raises(se.SpikformerError) as error:
        se.preset("cifar-4-384")
    one_line(error, "did you mean 'cifar10")
