"""Official checkpoints load to the last tensor, or not at all, with one line that says why."""

import argparse
import os
import pickle
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from reference import LAYOUTS, OfficialSpikformer, awaken

from spikformer_edu import Spikformer, SpikformerConfig, SpikformerError
from spikformer_edu.convert import load_official


def official(layout: str, **sizes) -> OfficialSpikformer:
    model = OfficialSpikformer(layout, **sizes)
    awaken(model, torch.randn(2, 3, sizes.get("channels", 3), 32, 32))  # every tensor has its own values
    return model


def ours(layout: str, **options) -> Spikformer:
    """The model for ``official(layout)``, with the options changed."""
    pool = (False, False, True, True) if layout == "cifar" else (True, True, True, True)
    config = SpikformerConfig(dim=32, depth=2, heads=4, num_classes=5, pool=pool, qkv_bias=layout == "cifar")
    return Spikformer(replace(config, **options)).eval()


def same_logits(model: Spikformer, reference: OfficialSpikformer) -> bool:
    x = torch.randn(3, 2, 3, 32, 32)
    with torch.no_grad():
        logits = reference(x)
        return logits.std() > 0.05 and torch.allclose(model(x), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads(layout):
    reference, model = official(layout), ours(layout)
    assert not same_logits(model, reference)
    assert load_official(model, reference.state_dict()) is model
    assert same_logits(model, reference)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_number_finds_its_place(layout):
    """Each tensor of the checkpoint gets a number of its own; the model then holds all of them, in the right rows."""
    state = official(layout).state_dict()
    state = {name: torch.full_like(value, i) for i, (name, value) in enumerate(state.items())}
    loaded = load_official(ours(layout), state).state_dict()
    never_called = {i for i, name in enumerate(state) if ".norm" in name or name.startswith(("norm", "pos_embed"))}
    assert len(never_called) == 2 * 4 + 2 + 1
    one_counter = ("k_bn.num_batches_tracked", "v_bn.num_batches_tracked")  # the same number as q_bn's
    counters = {i for i, name in enumerate(state) if name.endswith(one_counter)}
    found = set(torch.cat([value.flatten().float() for value in loaded.values()]).int().tolist())
    assert found == set(range(len(state))) - never_called - counters

    op = "linear" if layout == "cifar" else "conv"
    numbers = {name: float(value.flatten()[0]) for name, value in state.items()}
    qkv = [numbers[f"block.1.attn.{letter}_{op}.weight"] for letter in "qkv"]
    assert loaded["blocks.1.attn.qkv.weight"][:, 0].tolist() == [n for n in qkv for _ in range(32)]
    variance = [numbers[f"block.1.attn.{letter}_bn.running_var"] for letter in "qkv"]
    assert loaded["blocks.1.attn.bn.running_var"].tolist() == [n for n in variance for _ in range(32)]
    for name, theirs in {
        "sps.0.conv.weight": "patch_embed.proj_conv.weight",
        "sps.2.bn.running_mean": "patch_embed.proj_bn2.running_mean",
        "sps.rpe.conv.weight": "patch_embed.rpe_conv.weight",
        "blocks.0.attn.proj.linear.bias": f"block.0.attn.proj_{op}.bias",
        "blocks.0.mlp.hidden.linear.weight": f"block.0.mlp.fc1_{op}.weight",
        "blocks.1.mlp.out.bn.weight": "block.1.mlp.fc2_bn.weight",
        "head.bias": "head.bias",
    }.items():
        assert loaded[name].unique().tolist() == [numbers[theirs]], name


@pytest.mark.parametrize("wrap", ["state_dict", "model", "state_dict_ema", "model_ema"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model.model.net."]
)
def test_files_as_training_scripts_write_them(tmp_path, wrap, prefix):
    reference = official("cifar")
    state = OrderedDict((prefix + name, value) for name, value in reference.state_dict().items())
    arguments = argparse.Namespace(lr=5e-4, model="spikformer", amp=True, mean=(0.5, 0.5, 0.5), resume=None)
    optimizer = torch.optim.AdamW(reference.parameters()).state_dict()
    torch.save(
        {"epoch": 3, "arch": "spikformer", wrap: state, "optimizer": optimizer, "args": arguments}, tmp_path / "c"
    )
    assert same_logits(load_official(ours("cifar"), tmp_path / "c"), reference)
    assert same_logits(load_official(ours("cifar"), {wrap: state}), reference)


def test_weights_come_before_their_mean_and_wrappings_may_be_nested():
    reference, other = official("cifar").state_dict(), official("cifar").state_dict()
    for checkpoint in ({"state_dict_ema": other, "state_dict": reference}, {"model": {"state_dict": reference}}):
        model = load_official(ours("cifar"), checkpoint)
        assert torch.equal(model.state_dict()["head.weight"], reference["head.weight"])
    model = load_official(ours("cifar"), {"state_dict_ema": other})
    assert torch.equal(model.state_dict()["head.weight"], other["head.weight"])


def test_a_real_wrapper_of_wrappers():
    class Lightning(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.model = network

    reference = official("cifar")
    state = torch.compile(Lightning(torch.nn.DataParallel(reference))).state_dict()
    assert all(name.startswith("_orig_mod.model.module.") for name in state)
    assert same_logits(load_official(ours("cifar"), state), reference)


@pytest.mark.parametrize("zipped", [True, False])
def test_bare_state_dicts_of_either_format(tmp_path, zipped):
    reference = official("dvs")
    torch.save(reference.state_dict(), tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    assert same_logits(load_official(ours("dvs"), str(tmp_path / "c.pth")), reference)


def test_dtype_and_training_mode_stay():
    model = ours("cifar").double().train()
    load_official(model, official("cifar").state_dict())
    assert model.training and {p.dtype for p in model.parameters()} == {torch.float64}
    assert all(p.requires_grad for p in model.parameters())


# What is refused. The model is as it was, every time.


def refused(one_line, model: Spikformer, source, *words: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SpikformerError) as error:
        load_official(model, source)
    one_line(error, *words)
    assert error.value.__cause__ is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was changed"


@pytest.mark.parametrize(
    "layout, options, words",
    [
        (
            "cifar",
            dict(dim=64),
            ["patch_embed.proj_conv.weight", "checkpoint has dim=32, the model dim=64", "with dim=32"],
        ),
        ("imagenet", dict(depth=1), ["block.1.", "depth=2, the model depth=1"]),
        ("imagenet", dict(depth=3), ["block.2.", "depth=2, the model depth=3"]),
        (
            "dvs",
            dict(num_classes=11),
            ["head.weight", "[5, 32]", "[11, 32]", "num_classes=5, the model num_classes=11"],
        ),
        ("dvs", dict(in_channels=2), ["patch_embed.proj_conv.weight", "in_channels=3, the model in_channels=2"]),
        ("imagenet", dict(qkv_bias=True), ["block.0.attn.q_conv.bias", "qkv_bias=False, the model qkv_bias=True"]),
        ("cifar", dict(qkv_bias=False), ["block.0.attn.q_linear.bias", "qkv_bias=True, the model qkv_bias=False"]),
        ("dvs", dict(learn_scale=True), ["block.0.attn.scale", "learn_scale=False, the model learn_scale=True"]),
        ("cifar", dict(neuron="plif"), ["neuron='lif', the model 'plif'"]),
        ("cifar", dict(residual="membrane"), ["residual='spike', the model 'membrane'"]),
        ("imagenet", dict(attention="sdsa"), ["attention='sdsa'", "'ssa'"]),
        ("cifar", dict(mlp_ratio=2), ["block.0.mlp.fc1_linear.weight", "[128, 32]", "[64, 32]", "mlp_ratio=4"]),
        ("cifar", dict(dim=64, num_classes=10, depth=4), ["dim=32, num_classes=5, depth=2", "dim=64, num_classes=10"]),
    ],
)
def test_sizes_that_differ_are_named(one_line, layout, options, words):
    refused(one_line, ours(layout, **options), official(layout).state_dict(), *words)


def changed(**tensors) -> dict:
    """A CIFAR checkpoint with tensors replaced (dots are written __), or taken out where None."""
    state = official("cifar").state_dict()
    for name, value in tensors.items():
        name = name.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


@pytest.mark.parametrize(
    "tensors, words",
    [
        (dict(block__1__attn__k_bn__running_mean=None), ["has no 'block.1.attn.k_bn.running_mean'"]),
        (dict(head__bias=None), ["has no 'head.bias'"]),
        (dict(patch_embed__proj_conv__weight=None), ["has no 'patch_embed.proj_conv.weight'"]),
        (dict(block__0__attn__extra__weight=torch.ones(3)), ["'block.0.attn.extra.weight' has no place"]),
        (dict(block__0__norm3__weight=torch.ones(3)), ["'block.0.norm3.weight' has no place"]),
        (dict(my_norm__weight=torch.ones(3)), ["'my_norm.weight' has no place"]),
        (dict(sps__0__conv__weight=torch.ones(3)), ["'sps.0.conv.weight' has no place"]),
        (dict(block__0__attn__v_linear__weight=torch.ones(32, 31)), ["'block.0.attn.v_linear.weight'", "[32, 31]"]),
        (dict(block__0__attn__proj_linear__weight=torch.ones(32, 32, 3)), ["[32, 32, 3]", "[32, 32]"]),
        (dict(block__0__mlp__fc1_bn__weight=torch.tensor(1.0)), ["'block.0.mlp.fc1_bn.weight'", "[]", "[128]"]),
        (dict(head__weight=torch.tensor(1.0)), ["'head.weight'", "[]", "[5, 32]"]),
        (dict(head__weight="a string"), ["'head.weight'", "state dict"]),
    ],
)
def test_tensors_that_do_not_fit_are_named(one_line, tensors, words):
    refused(one_line, ours("cifar"), changed(**tensors), *words)


@pytest.mark.parametrize(
    "source",
    [{}, {"state_dict": {}}, {"epoch": 3}, {1: torch.ones(1)}, {"conv1.weight": torch.ones(4, 3, 3, 3)}],
    ids=["empty", "empty inside", "no tensors", "numbers for names", "another network"],
)
def test_what_is_no_checkpoint_of_a_spikformer(one_line, source):
    refused(one_line, ours("cifar"), source, "checkpoint")


@pytest.mark.parametrize(
    "more, words",
    [
        ({"criterion.weight": torch.ones(5)}, ["'criterion.weight' beside the network 'model.'", "alone"]),
        ({"head.weight": torch.ones(5, 32)}, ["'head.weight' beside the network 'model.'"]),
        ({"model.block.0.attn.extra": torch.ones(5)}, ["'block.0.attn.extra' has no place"]),
        (
            {"ema.module.patch_embed.proj_conv.weight": torch.ones(5)},
            ["'model.patch_embed.proj_conv.weight' and 'ema.module.patch_embed.proj_conv.weight'", "state dict of one"],
        ),
    ],
)
def test_what_a_wrapper_holds_beside_the_network_is_named(one_line, more, words):
    state = {f"model.{name}": value for name, value in official("cifar").state_dict().items()}
    refused(one_line, ours("cifar"), {"state_dict": state | more}, *words)


def test_our_own_checkpoint_is_not_an_official_one(one_line):
    model = ours("cifar")
    refused(one_line, model, model.state_dict(), "'sps.0.conv.weight' has no place", "official Spikformer code?")


class Bomb:
    """Pickled code: makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", ["zip", "legacy", "pickle"])
def test_pickled_code_never_runs(tmp_path, one_line, write):
    path, mark = tmp_path / "evil.pth", tmp_path / "was here"
    content = {"state_dict": official("cifar").state_dict(), "args": Bomb(mark)}
    if write == "pickle":
        path.write_bytes(pickle.dumps({"args": Bomb(mark)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "zip")
    refused(one_line, ours("cifar"), path, "evil.pth", "mkdir", "never run")
    assert not mark.exists()
    os.mkdir(mark)  # the bomb was armed: this is what it would have done
    with pytest.raises(FileExistsError):
        torch.load(path, weights_only=False)


def test_namespaces_are_allowed_for_this_one_load(tmp_path):
    torch.save({"state_dict": official("cifar").state_dict(), "args": argparse.Namespace(a=1)}, tmp_path / "c")
    load_official(ours("cifar"), tmp_path / "c")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9, 0.999])
def test_truncated_files(tmp_path, one_line, share, zipped):
    path = tmp_path / "cut.pth"
    torch.save(official("cifar").state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(one_line, ours("cifar"), path, "cut.pth", "truncated")


FOREIGN = {
    "web page": b"<!DOCTYPE html><html>404: not found</html>",
    "image": b"\x89PNG\r\n\x1a\n",
    "zip": b"PK\x03\x04 a zip of another kind",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "zeros": b"\x00" * 999,
    "empty pickle": b"\x80\x02.",
    "list": pickle.dumps([1, 2, 3]),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files(tmp_path, one_line, content):
    path = tmp_path / "foreign.pth"
    path.write_bytes(content)
    refused(one_line, ours("cifar"), path, "checkpoint")


def test_a_file_in_the_home_folder(tmp_path, monkeypatch, one_line):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    reference = official("cifar")
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    assert same_logits(load_official(ours("cifar"), "~/weights.pt"), reference)
    with pytest.raises(SpikformerError) as caught:
        load_official(ours("cifar"), "~no-such-user/weights.pt")
    one_line(caught, "no home folder is known for ~no-such-user")


def test_files_that_cannot_be_read(tmp_path, one_line):
    refused(one_line, ours("cifar"), tmp_path / "absent.pth", "absent.pth", "No such file")
    refused(one_line, ours("cifar"), tmp_path, str(tmp_path), "directory")
