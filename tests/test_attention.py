"""Every attention variant against a few lines of loops; the freedom of order; what is kept for the backward pass."""

import math
import re
from pathlib import Path

import pytest
import reference
import torch
from torch import Tensor, nn

import spikformer_edu as se
from spikformer_edu import ATTENTION, SpikformerError
from spikformer_edu.attention import SpikingSelfAttention

T, B, N, D, HEADS = 3, 2, 5, 16, 2


def layer(kind="ssa", dim=D, heads=HEADS, **options):
    attention = ATTENTION[kind](dim, heads, **options)
    for norm in (attention.bn, attention.proj.bn):  # livelier than the start, so that something fires
        nn.init.uniform_(norm.weight, 1, 3)
        nn.init.uniform_(norm.bias, 0.8, 1.8)
    return attention.double()


def tokens(n=N, dim=D) -> Tensor:
    """A residual stream: integers 0 to 3."""
    return torch.randint(0, 4, (T, B, n, dim), dtype=torch.float64)


def spikes(*shape: int, rate=0.3) -> Tensor:
    return (torch.rand(*shape) < rate).float()


def normalised(bn: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Training-mode batch norm over T, B and N, written out."""
    x = x.reshape(-1, x.shape[-1])
    mean, var = x.mean(0), x.var(0, unbiased=False)
    return (x - mean) / (var + bn.eps).sqrt() * bn.weight + bn.bias


SCORES = {  # of one head: q and k are [N, d]
    "ssa": lambda q, k: q @ k.T * 0.125,
    "identity": lambda q, k: q @ k.T * 0.125,
    "relu": lambda q, k: q.clamp(min=0) @ k.clamp(min=0).T * 0.125,
    "leaky_relu": lambda q, k: torch.where(q > 0, q, 0.01 * q) @ torch.where(k > 0, k, 0.01 * k).T * 0.125,
    "softmax": lambda q, k: torch.softmax(q @ k.T / math.sqrt(k.shape[1]), dim=1),
    "vanilla": lambda q, k: torch.softmax(q @ k.T / math.sqrt(k.shape[1]), dim=1),
}


def masked(kind: str, qkv: dict[str, Tensor], cut: slice) -> Tensor:
    """One head of a mask, ``[T, B, N, d]``: what is counted, the neuron of threshold 0.5, what it masks."""
    q, k, v = (None if x is None else x[..., cut] for x in (qkv["q"], qkv["k"], qkv["v"]))
    counted = {"sdsa": lambda: (q * k).sum(2, True), "qk_token": lambda: q.sum(3, True)}
    count = counted.get(kind, lambda: q.sum(2, True))()
    return reference.lif(count, v_threshold=0.5)[0] * (k if v is None else v)


def written_out(attention: SpikingSelfAttention, kind: str, x: Tensor) -> Tensor:
    """The layer in training mode, one matrix for Q, K and V each, head by head, step by step."""
    qkv = {"v": None}
    for i, name in enumerate("qkv"[: attention.maps]):
        rows = slice(i * D, (i + 1) * D)
        y = x @ attention.qkv.weight[rows].T + attention.qkv.bias[rows]
        y = y.reshape(-1, D)
        mean, var = y.mean(0), y.var(0, unbiased=False)
        y = (y - mean) / (var + attention.bn.eps).sqrt() * attention.bn.weight[rows] + attention.bn.bias[rows]
        y = y.reshape(x.shape)
        fires = kind in ("ssa", *MASKS) or (name == "v" and kind != "vanilla")
        qkv[name] = reference.lif(y)[0] if fires else y
    d = D // HEADS
    if kind in MASKS:
        out = torch.cat([masked(kind, qkv, slice(head * d, (head + 1) * d)) for head in range(HEADS)], -1)
    else:
        mixed = torch.zeros_like(x)
        for t in range(T):
            for b in range(B):
                for head in range(HEADS):
                    cut = slice(head * d, (head + 1) * d)
                    q, k, v = (qkv[name][t, b, :, cut] for name in "qkv")
                    mixed[t, b, :, cut] = SCORES[kind](q, k) @ v
        out = reference.lif(mixed, v_threshold=0.5)[0]
    out = normalised(attention.proj.bn, out @ attention.proj.linear.weight.T + attention.proj.linear.bias)
    return reference.lif(out.reshape(x.shape))[0]


# The masks, of one head and one step. The code of SDSA masks Q by a sum over K and V; its Q is V here, and its K and V
# are Q and K. As the three maps are learned, it is the same layer.
MASKS = {
    "sdsa": lambda q, k, v: ((q * k).sum(0, keepdim=True) > 0) * v,
    "qk_token": lambda q, k, v: (q.sum(1, keepdim=True) > 0) * k,
    "qk_channel": lambda q, k, v: (q.sum(0, keepdim=True) > 0) * k,
}


def test_every_variant_is_tested():
    assert set(SCORES) | set(MASKS) == set(ATTENTION)


@pytest.mark.parametrize("n", [7, 12])  # 12 tokens exceed d = 8: Q(K^TV)
@pytest.mark.parametrize("kind", ATTENTION)
def test_equals_loops_over_heads(kind, n):
    attention, x = layer(kind), tokens(n)
    kept = {}
    attention.proj.register_forward_pre_hook(lambda module, inputs: kept.update(mixed=inputs[0]))
    out, expected = attention(x), written_out(attention, kind, x)
    assert 0.02 < kept["mixed"].mean() and 0.02 < expected.mean() < 0.98  # not silent, not saturated
    assert torch.equal(out, expected)

    weights = torch.randn_like(x)
    parameters = [attention.qkv.weight, attention.bn.weight, attention.proj.linear.weight]
    actual = torch.autograd.grad((out * weights).sum(), parameters)
    for a, b in zip(actual, torch.autograd.grad((expected * weights).sum(), parameters), strict=True):
        assert b.abs().max() > 1e-3 and torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_the_line_of_its_authors(kind):
    """Bit by bit, one head and one step at a time: the gate is an OR, because one spike reaches 0.5."""
    attention = layer(kind)
    q, k, v = (spikes(T, B, HEADS, N, 8, rate=0.2).double() for _ in range(3))
    found = attention.attend(q, k, v if attention.maps == 3 else k)
    assert 0.01 < found.mean() < 0.3 and not torch.equal(found, v) and not torch.equal(found, k)
    for t in range(T):
        for b in range(B):
            for head in range(HEADS):
                expected = MASKS[kind](q[t, b, head], k[t, b, head], v[t, b, head])
                assert torch.equal(found[t, b, head], expected)


@pytest.mark.parametrize("kind, passes", [("ssa", True), ("sdsa", True), ("qk_channel", True), ("qk_token", False)])
def test_token_qk_passes_nothing_between_tokens(kind, passes):
    attention, x = layer(kind), tokens()
    attention(x)  # its norms see a batch
    attention.eval()
    found = []
    for changed in range(50):
        torch.manual_seed(changed)
        y = x.clone()
        y[:, :, 2] = torch.randint(0, 4, (T, B, D), dtype=torch.float64)
        found += (attention(x) != attention(y)).any(-1).any(0).any(0).nonzero().flatten().tolist()
    assert 2 in found and (set(found) - {2} != set()) == passes


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("options", [dict(scale=0.25), dict(learn_scale=True)])
def test_a_mask_has_no_scale(kind, options, one_line):
    with pytest.raises(SpikformerError) as error:
        layer(kind, **options)
    one_line(error, "no product to scale", "leave out")
    assert not hasattr(layer(kind), "scale")


def test_the_guide_on_a_variant_of_your_own_runs(tmp_path, monkeypatch):
    """Every block of code in docs/guides/attention_variant.md, one after the other."""
    guide = Path(__file__).parents[1] / "docs" / "guides" / "attention_variant.md"
    blocks = re.findall(r"^```python\n(.+?)^```", guide.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    known, names = dict(ATTENTION), {}
    try:
        for block in blocks:
            exec(compile(block, guide.name, "exec"), names)
        ATTENTION["keys"] = names["KeyAttention"]
        model = se.spikformer("digits-2-64", attention="keys")
        assert model(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    finally:
        ATTENTION.clear()
        ATTENTION.update(known)
    assert (tmp_path / "runs" / "agreement" / "results.json").exists()


@pytest.mark.parametrize("kind, maps", [("ssa", 3), ("sdsa", 3), ("qk_token", 2), ("qk_channel", 2)])
def test_parameters_of_each_kind(kind, maps):
    """Q, K and, where there is one, V: a matrix, a bias and a norm each; then the projection."""
    assert sum(p.numel() for p in layer(kind).parameters()) == (maps + 1) * (D * D + D + 2 * D)


# (Q K^T) V = Q (K^T V)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.125, 0.25])
def test_both_orders_agree_to_the_last_bit(scale, dtype):
    q, k, v = (spikes(T, B, 12, 64, 32, rate=0.5).to(dtype) for _ in range(3))
    scores_first = (q @ k.transpose(-2, -1) * scale) @ v
    values_first = q @ (k.transpose(-2, -1) @ v) * scale
    assert torch.equal(scores_first, values_first)
    exact = (q.double() @ k.double().transpose(-2, -1)) @ v.double() * scale
    assert exact.max() > 50 and torch.equal(scores_first, exact.to(dtype))


def test_bfloat16_counts_no_further_than_256():
    """Where the equality ends: with more than 256 tokens that all fire, K^T V is no bfloat16 number."""
    for n, equal in ((256, True), (257, False)):
        k, v = (torch.ones(n, 4, dtype=torch.bfloat16) for _ in range(2))
        assert torch.equal((k.T @ v).double(), k.double().T @ v.double()) == equal


def test_orders_differ_in_general():
    """The counter-proof: for real numbers the last bits do depend on the order."""
    q, k, v = (torch.randn(8, 64, 32) for _ in range(3))
    assert not torch.equal(q @ k.transpose(1, 2) @ v, q @ (k.transpose(1, 2) @ v))


def shapes_kept(attention: SpikingSelfAttention, n: int) -> list[tuple[int, ...]]:
    """Shapes of all that autograd keeps of Q K^T V s."""
    q, k, v = (spikes(T, B, HEADS, n, 8).requires_grad_() for _ in range(3))
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(tuple(x.shape)) or x, lambda x: x):
        attention.mix(q, k, v)
    return shapes


@pytest.mark.parametrize("kind", ["ssa", "identity", "relu", "leaky_relu"])
@pytest.mark.parametrize("n", [3, 8, 9, 20])
def test_the_cheaper_order_is_taken(kind, n):
    attention = layer(kind)
    kept = shapes_kept(attention, n)
    scores_first, values_first = n * n * 8, n * 8 * 8  # multiply-accumulates of either half
    has_scores = any(shape[-2:] == (n, n) for shape in kept)
    has_values = any(shape[-2:] == (8, 8) for shape in kept)
    assert has_scores == (scores_first <= values_first)
    if n != 8:
        assert has_values == (values_first < scores_first)


@pytest.mark.parametrize("kind", ATTENTION)
def test_no_table_of_all_token_pairs_is_kept_when_it_need_not_be(kind):
    """A whole layer on 40 tokens of width 8 a head: what autograd keeps grows with N, not with N^2."""
    attention, shapes = layer(kind), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(tuple(x.shape)) or x, lambda x: x):
        attention(tokens(40))
    assert len(shapes) > 10
    assert any(40 in shape[-1:] and 40 in shape[-2:-1] for shape in shapes) == (kind in ("softmax", "vanilla"))


def test_orders_give_the_same_layer(monkeypatch):
    attention, x = layer(), tokens(12)
    out = attention(x)
    monkeypatch.setattr(SpikingSelfAttention, "mix", lambda self, q, k, v: self.scores(q, k) @ v)
    assert out.any() and torch.equal(attention(x), out)


def agreements(q: Tensor, k: Tensor) -> Tensor:
    """Features in which a query and a key are the same: no product of Q and K."""
    return (q.unsqueeze(-2) == k.unsqueeze(-3)).sum(-1).to(q.dtype)


class OwnScores(SpikingSelfAttention):
    def scores(self, q, k):
        return agreements(q, k)


class Thresholded(OwnScores):
    def scores(self, q, k):
        return (super().scores(q, k) > 5).to(q.dtype)


@pytest.mark.parametrize("n", [3, 8, 9, 20])
def test_scores_of_a_subclass_are_what_weighs_v(n, monkeypatch):
    q, k, v = (spikes(T, B, HEADS, n, 8, rate=0.6) for _ in range(3))
    expected = agreements(q, k) @ v
    assert torch.equal(OwnScores(D, HEADS).mix(q, k, v), expected)
    assert torch.equal(Thresholded(D, HEADS).mix(q, k, v), (agreements(q, k) > 5).float() @ v)
    single = layer()
    assert not torch.equal(single.mix(q, k, v), expected)
    single.scores = agreements  # of this one layer
    assert torch.equal(single.mix(q, k, v), expected)
    monkeypatch.setattr(SpikingSelfAttention, "scores", lambda self, q, k: agreements(q, k))  # of all
    assert torch.equal(layer().mix(q, k, v), expected)


class Doubled(SpikingSelfAttention):
    def phi(self, x):
        return torch.cat([x, 1 - x], -1)


@pytest.mark.parametrize("n", [3, 20])
def test_phi_of_a_subclass_counts_in_either_order(n):
    q, k, v = (spikes(T, B, HEADS, n, 8, rate=0.6) for _ in range(3))
    assert torch.equal(Doubled(D, HEADS).mix(q, k, v), agreements(q, k) @ v * 0.125)
    assert any(shape[-2:] == (n, n) for shape in shapes_kept(Doubled(D, HEADS), n)) == (n == 3)


# Options.


def test_tokens_mix_within_a_head_only():
    """One changed V spike of one head reaches other tokens, never another head, sample or step."""
    attention = layer()
    q, k, v = (spikes(T, B, HEADS, N, 8, rate=0.6) for _ in range(3))
    changed = v.clone()
    changed[1, 0, 1, 2, 3] = 1 - changed[1, 0, 1, 2, 3]
    difference = (attention.mix(q, k, v) != attention.mix(q, k, changed)).nonzero()
    assert len(difference) > 1
    assert (difference[:, [0, 1, 2, 4]] == torch.tensor([1, 0, 1, 3])).all()


def test_pool_takes_the_largest_of_three_neighbouring_tokens():
    attention = layer(qk_pool=True)
    x = torch.randn(T, B, HEADS, 7, 8)
    pooled = attention.pool_tokens(x)
    for i in range(7):
        window = x[:, :, :, max(i - 1, 0) : i + 2]
        assert torch.equal(pooled[:, :, :, i], window.amax(3))


def test_pool_acts_on_q_and_k_after_their_neurons():
    attention, x = layer(qk_pool=True), tokens()
    seen = {}
    for name in "qkv":
        attention.get_submodule(name).register_forward_hook(lambda m, i, output, name=name: seen.update({name: output}))
    attention.attn.register_forward_pre_hook(lambda m, inputs: seen.update(mixed=inputs[0]))
    attention(x)
    q, k = attention.pool_tokens(seen["q"]), attention.pool_tokens(seen["k"])
    assert q.sum() > seen["q"].sum() and set(q.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(seen["mixed"], q @ k.transpose(-2, -1) @ seen["v"] * 0.125)
    assert layer().pool is None


@pytest.mark.parametrize("n", [5, 12])
def test_learned_scale_gets_its_gradient(n):
    attention = layer(scale=0.25, learn_scale=True)
    q, k, v = (spikes(T, B, HEADS, n, 8).double() for _ in range(3))
    weights = torch.randn(T, B, HEADS, n, 8, dtype=torch.float64)
    mixed = attention.mix(q, k, v)
    (mixed * weights).sum().backward()
    products = q @ k.transpose(-2, -1) @ v
    assert torch.equal(mixed, 0.25 * products)
    assert torch.allclose(attention.scale.grad, (products * weights).sum(), rtol=1e-12)
    assert "scale" in dict(attention.named_parameters())


def test_scale_may_be_a_whole_number():
    scale = layer(scale=1, learn_scale=True).scale
    assert scale.is_floating_point() and scale.item() == 1 == layer(scale=1).scale


def test_learned_scale_learns_through_the_neuron():
    attention = layer(learn_scale=True)
    attention(tokens()).sum().backward()
    assert attention.scale.grad.abs() > 1e-6 and attention.scale.item() == 0.125


def test_scales():
    assert layer().scale == 0.125 and layer(scale=0.25).scale == 0.25
    assert layer("softmax").scale == layer("vanilla").scale == 8**-0.5
    assert isinstance(layer().scale, float) and "scale" not in layer().state_dict()


def test_qkv_bias_is_an_option_of_q_k_v_alone():
    assert layer().qkv.bias.shape == (3 * D,)
    assert layer(qkv_bias=False).qkv.bias is None and layer(qkv_bias=False).proj.linear.bias.shape == (D,)


def test_neuron_options_reach_every_neuron():
    attention = SpikingSelfAttention(D, HEADS, tau=4.0, backend="snntorch")
    neurons = [attention.q, attention.k, attention.v, attention.attn, attention.proj.neuron]
    assert [n.tau for n in neurons] == [4.0] * 5 and not any(n.fusible for n in neurons)
    assert [n.v_threshold for n in neurons] == [1, 1, 1, 0.5, 1]


@pytest.mark.parametrize("heads", [0, 3, 32])
def test_heads_must_divide_dim(heads, one_line):
    with pytest.raises(SpikformerError) as error:
        SpikingSelfAttention(D, heads)
    one_line(error, f"heads={heads}", f"dim={D}")
