"""The neuron is the paper's: equations 1 to 3 by hand, SpikingJelly, and the two backends against each other."""

import copy
import gc
import json
import math
import pickle
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import reference
import snntorch as snn
import torch
from torch import Tensor

from spikformer_edu import LIF, Sigmoid, SpikformerError
from spikformer_edu.kernels.lif import FusedLIF
from spikformer_edu.neurons import IF, ILIF, NEURONS, PLIF, _loop, spiking

BACKENDS = ("fused", "snntorch")
GOLDEN = json.loads((Path(__file__).parent / "golden" / "lif.json").read_text())


def grid_of_ties(time_steps: int = 6, neurons: int = 4000) -> Tensor:
    """Multiples of 1/4: membranes stay on a grid that contains the threshold, so exact ties abound."""
    return torch.randint(-4, 13, (time_steps, neurons), dtype=torch.float64) / 4


def random_currents(time_steps: int = 6, neurons: int = 4000) -> Tensor:
    return torch.randn(time_steps, neurons, dtype=torch.float64) * 2 + 0.5


CURRENTS = {"random": random_currents, "ties": grid_of_ties}


def run(neuron, current: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes, and the gradient of sum(weights * spikes) with respect to the current."""
    current = current.clone().requires_grad_()
    spikes = neuron(current)
    (spikes * weights).sum().backward()
    return spikes.detach(), current.grad


def count_ties(current: Tensor, v_threshold: float = 1.0) -> int:
    return int((reference.lif(current, v_threshold)[1] == v_threshold).sum())


# The golden trace: literal numbers, worked out from the equations with nothing but arithmetic.


def by_hand(current: list[float], weights: list[float], v_threshold: float, tau=2.0, alpha=4.0):
    """One neuron: membranes H, spikes S, and d(sum of weights * S)/dX, the reset held constant."""
    v, membranes, spikes = 0.0, [], []
    for x in current:
        h = v + (x - (v - 0.0)) / tau
        s = 1.0 if h >= v_threshold else 0.0
        v = h * (1 - s) + 0.0 * s
        membranes.append(h)
        spikes.append(s)
    gradients, from_next = [], 0.0  # from_next = dL/dV[t]
    for h, s, w in zip(reversed(membranes), reversed(spikes), reversed(weights), strict=True):
        sigma = 1 / (1 + math.exp(-alpha * (h - v_threshold)))
        dh = w * alpha * sigma * (1 - sigma) + from_next * (1 - s)
        gradients.insert(0, dh / tau)
        from_next = dh * (1 - 1 / tau)
    return membranes, spikes, gradients


@pytest.mark.parametrize("trace", GOLDEN, ids=lambda trace: f"V_th={trace['v_threshold']}")
def test_golden_trace_is_what_the_equations_say(trace):
    for neuron in trace["neurons"]:
        membranes, spikes, gradients = by_hand(neuron["current"], neuron["weights"], trace["v_threshold"])
        assert membranes == neuron["membranes"]
        assert spikes == neuron["spikes"]
        assert gradients == pytest.approx(neuron["gradients"], rel=1e-14, abs=0)  # exp may differ in its last bit


def golden(trace: dict, key: str) -> Tensor:
    return torch.tensor([neuron[key] for neuron in trace["neurons"]], dtype=torch.float64).T  # [T, neurons]


def is_golden(trace: dict, neuron) -> tuple[bool, bool]:
    """Whether spikes and whether gradients are those of the golden trace."""
    spikes, gradients = run(neuron, golden(trace, "current"), golden(trace, "weights"))
    same = torch.allclose(gradients, golden(trace, "gradients"), rtol=0, atol=1e-14)
    return torch.equal(spikes, golden(trace, "spikes")), same


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trace", GOLDEN, ids=lambda trace: f"V_th={trace['v_threshold']}")
def test_lif_follows_the_golden_trace(trace, backend):
    neuron = LIF(v_threshold=trace["v_threshold"], backend=backend).double()
    assert is_golden(trace, neuron) == (True, True)
    kept = []
    neuron.on_membranes = kept.append
    neuron(golden(trace, "current"))
    assert torch.equal(kept[0] / neuron.tau, golden(trace, "membranes"))
    assert neuron.v_threshold == trace["v_threshold"]


def leaky_over_time(slope=2.0, threshold=2.0, spike_grad=None, **options):
    """A plain snnTorch Leaky in a loop, the neuron that LIF would be if one of its options were wrong."""
    settings = dict(reset_mechanism="zero", reset_delay=True) | options
    leaky = snn.Leaky(beta=0.5, threshold=threshold, spike_grad=spike_grad or Sigmoid(slope), **settings).double()

    def neuron(current: Tensor) -> Tensor:
        u, spikes = torch.zeros_like(current[0]), []
        for x in current:
            spike, u = leaky(x, u)
            spikes.append(spike)
        return torch.stack(spikes)

    return neuron


@pytest.mark.parametrize(
    "options, spikes_differ",
    [
        pytest.param({}, None, id="the right one"),
        pytest.param(dict(reset_delay=False), False, id="gradient through the reset"),
        pytest.param(dict(spike_grad=snn.surrogate.sigmoid(2)), True, id="fires on > only"),
        pytest.param(dict(reset_mechanism="subtract"), True, id="soft reset"),
        pytest.param(dict(threshold=1.0), True, id="threshold not rescaled"),
        pytest.param(dict(slope=4.0), False, id="slope not rescaled"),
    ],
)
def test_golden_trace_tells_faulty_neurons_apart(options, spikes_differ):
    spikes, gradients = is_golden(GOLDEN[0], leaky_over_time(**options))
    if spikes_differ is None:
        assert spikes and gradients
    else:
        assert spikes is not spikes_differ
        assert not gradients


# Against SpikingJelly, and against the equations on tensors.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("v_threshold", [1.0, 0.5])
@pytest.mark.parametrize("kind", CURRENTS)
def test_equals_spikingjelly(kind, v_threshold, backend):
    neurons = pytest.importorskip("spikingjelly.activation_based.neuron", reason="needs the `benchmark` extra")
    from spikingjelly.activation_based import surrogate

    peer = neurons.LIFNode(
        tau=2.0, v_threshold=v_threshold, surrogate_function=surrogate.Sigmoid(4.0), detach_reset=True, step_mode="m"
    ).double()
    current, weights = CURRENTS[kind](), torch.randn(6, 4000, dtype=torch.float64)
    if kind == "ties":
        assert count_ties(current, v_threshold) > 500
    spikes, gradient = run(LIF(v_threshold=v_threshold, backend=backend).double(), current, weights)
    peer_spikes, peer_gradient = run(peer, current, weights)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, peer_spikes)
    assert (gradient - peer_gradient).abs().max() < 1e-10 < gradient.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tau, v_threshold", [(2.0, 1.0), (2.0, 0.5), (4.0, 1.0), (1.25, 0.75)])
@pytest.mark.parametrize("kind", CURRENTS)
def test_equals_the_equations(kind, tau, v_threshold, backend):
    current, weights = CURRENTS[kind](), torch.randn(6, 4000, dtype=torch.float64)
    neuron = LIF(tau=tau, v_threshold=v_threshold, backend=backend).double()
    if tau == 1.25:  # 1 - 1/tau is stored in float32 and no dyadic number: keep away from ties
        current = current + 0.01 * torch.rand_like(current)
    spikes, gradient = run(neuron, current, weights)
    expected, expected_gradient = run(lambda x: reference.lif(x, v_threshold, tau)[0], current, weights)
    assert torch.equal(spikes, expected)
    assert torch.allclose(gradient, expected_gradient, rtol=0, atol=1e-10 if tau != 1.25 else 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fires_on_an_exact_tie(backend):
    neuron = LIF(backend=backend)
    below, tie = torch.tensor(2.0).nextafter(torch.tensor(0.0)), torch.tensor(2.0)
    assert neuron(torch.stack([below, tie])[None]).tolist() == [[0.0, 1.0]]
    assert neuron(torch.tensor([1.0, 1.5])).tolist() == [0.0, 1.0]  # H = 0.5, then 0.25 + 0.75
    assert Sigmoid(2.0)(torch.zeros(1)).item() == 1.0


def test_surrogate_is_the_derivative_of_a_sigmoid():
    x = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    (surrogate,) = torch.autograd.grad(Sigmoid(2.0)(x).sum(), x)
    (expected,) = torch.autograd.grad(torch.sigmoid(2 * x).sum(), x)
    assert torch.allclose(surrogate, expected, rtol=1e-12)
    assert surrogate.max() == 0.5 == surrogate[30]


# The two backends.

ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("v_threshold", [1.0, 0.5])
@pytest.mark.parametrize("kind", CURRENTS)
def test_backends_agree(kind, v_threshold, dtype):
    current, weights = CURRENTS[kind]().to(dtype), torch.randn(6, 4000).to(dtype)
    torch.use_deterministic_algorithms(True)  # fills memory that is not written with NaN
    try:
        fused = run(LIF(v_threshold=v_threshold), current, weights)
        plain = run(LIF(v_threshold=v_threshold, backend="snntorch"), current, weights)
    finally:
        torch.use_deterministic_algorithms(False)
    assert fused[0].dtype == fused[1].dtype == plain[0].dtype == plain[1].dtype == dtype
    assert 0.1 < fused[0].float().mean() < 0.9
    assert torch.equal(fused[0], plain[0])
    assert torch.allclose(fused[1], plain[1], rtol=0, atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tau", [2.0, 3.0, 7.0])
def test_in_half_precision_the_backends_agree_for_tau_2_alone(tau, dtype):
    """Where the equality ends: the loop rounds beta u and then the sum, the fused neuron the sum alone."""
    current = random_currents(6, 100_000).to(dtype)
    fused, plain = LIF(tau=tau)(current), LIF(tau=tau, backend="snntorch")(current)
    differ = (fused != plain).double().mean()
    assert fused.double().mean() > 0.02
    assert differ == 0 if tau == 2 or dtype == torch.float32 else 0 < differ < 1e-3


@pytest.mark.parametrize("kind", CURRENTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_the_compiler_gets_is_snntorchs_loop_to_the_bit(kind, dtype):
    neuron = LIF(tau=3.0, backend="snntorch")
    current, weights = CURRENTS[kind]().to(dtype), torch.randn(6, 4000, dtype=dtype)
    found = []
    for loop in (neuron.loop, lambda x: _loop(x, neuron.beta, neuron.threshold, neuron.slope)):
        x = current.clone().requires_grad_()
        spikes, membranes = loop(x)
        assert spikes.dtype == dtype and 0.05 < spikes.mean() < 0.95
        (gradient,) = torch.autograd.grad((spikes * weights).sum(), x)
        found.append((spikes, torch.stack(membranes), gradient))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("loss", [torch.sum, lambda spikes: spikes.square().sum()], ids=["linear", "square"])
def test_second_derivatives_are_refused_or_right(loss, one_line):
    current = 2 * torch.randn(1, 50, dtype=torch.float64).requires_grad_()
    with pytest.raises(SpikformerError) as error:
        torch.autograd.grad(loss(LIF().double()(current)), current, create_graph=True)
    one_line(error, "second derivative", 'backend="snntorch"')

    spikes = LIF(backend="snntorch").double()(current)
    (first,) = torch.autograd.grad(loss(spikes), current, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), current)
    sigma = torch.sigmoid(2 * (current - 2))  # slope 2 on u, threshold 2
    once, twice = 2 * sigma * (1 - sigma), 4 * sigma * (1 - sigma) * (1 - 2 * sigma)
    expected = twice if loss is torch.sum else 2 * (once**2 + spikes * twice)
    torch.testing.assert_close(second, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_spikes_that_no_loss_hears_of_have_no_gradient(backend):
    class Deaf(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    current, other = torch.randn(2, 4, 3, requires_grad=True).unbind()
    current.retain_grad()
    (Deaf.apply(LIF(backend=backend)(current)).sum() + other.sum()).backward()
    assert current.grad is None or not current.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.transpose(1, 3), id="transposed"),
        pytest.param(lambda x: x[:, :1].expand(-1, 5, -1, -1), id="expanded"),
        pytest.param(lambda x: x[::2, :, 1:, ::3], id="strided"),
        pytest.param(lambda x: x[:1], id="one step"),
    ],
)
def test_memory_layout_does_not_matter(view, backend):
    current = view(random_currents(4, 2 * 6 * 7).reshape(4, 2, 6, 7))
    neuron = LIF(backend=backend).double()
    spikes, gradient = run(neuron, current, torch.ones(()))  # a gradient of stride 0
    expected, expected_gradient = run(neuron, current.contiguous(), torch.ones_like(current))
    assert 0 < spikes.sum() < spikes.numel()
    assert torch.equal(spikes, expected)
    assert torch.allclose(gradient, expected_gradient, rtol=0, atol=1e-15)


def test_fused_runs_for_the_lif_and_the_if_alone():
    def saved(neuron: LIF) -> int:
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
            neuron(torch.randn(4, 3, requires_grad=True))
        return len(kept)

    assert saved(LIF()) == saved(IF()) == 1  # the membrane, nothing else
    for plain in (LIF(backend="snntorch"), IF(backend="snntorch"), PLIF(), ILIF()):
        assert saved(plain) > 1


@pytest.mark.parametrize("steps", range(1, 6))
def test_without_a_backward_pass_only_one_membrane_is_kept_and_the_spikes_are_the_same(steps):
    neuron, current = LIF(), 3 * torch.randn(steps, 50)
    kept = []
    with torch.no_grad():
        spikes, u = FusedLIF.apply(current, 0.5, 2.0, 2.0, False)
        neuron.on_membranes = kept.append
        assert torch.equal(neuron(current), spikes) and len(kept[0]) == steps
    assert len(u) == 1 and torch.equal(u[0], kept[0][-1])
    neuron.on_membranes = None
    assert torch.equal(neuron(current.requires_grad_()), spikes) and 0.1 < spikes.mean() < 0.6


def test_a_threshold_or_beta_that_was_changed_by_hand_is_used():
    neuron, plain, current = LIF(), LIF(backend="snntorch"), 4 * torch.randn(6, 200)
    seen = [neuron(current)]
    for change in (
        lambda n: n.threshold.fill_(1.0),
        lambda n: setattr(n, "threshold", torch.tensor(3.0)),
        lambda n: n.beta.mul_(0.5),
    ):
        for n in (neuron, plain):
            change(n)
        seen.append(neuron(current))
        assert torch.equal(seen[-1], plain(current)) and not torch.equal(seen[-1], seen[-2])


def test_constants_are_read_once():
    neuron = LIF()
    neuron(torch.randn(2, 3))
    before = neuron._constants
    neuron(torch.randn(2, 3))
    assert neuron._constants is before
    with torch.inference_mode():
        made = LIF()
        assert torch.equal(made(torch.full((2, 3), 2.0)), torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_constants_do_not_depend_on_the_default_dtype(default_dtype, dtype):
    expected = LIF(tau=3.0, v_threshold=0.7).constants()
    default_dtype(dtype)
    assert LIF(tau=3.0, v_threshold=0.7).float().constants() == expected


# State, memory, checkpoints.


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_never_leaks(backend):
    neuron = LIF(backend=backend)
    small, large = torch.rand(4, 2, 3) * 2, torch.rand(7, 5) * 2
    first = neuron(small), neuron(large)
    again = neuron(small), neuron(large)
    assert all(torch.equal(a, b) and 0 < a.sum() for a, b in zip(first, again, strict=True))
    assert neuron.mem.numel() == 0 and getattr(neuron, "reset", None) is None  # snnTorch would keep both
    half = torch.cat([neuron(small[:, :1]), neuron(small[:, 1:])], 1)  # neurons do not know of each other
    assert torch.equal(half, first[0])


def test_an_error_in_the_middle_leaves_no_state():
    neuron, current = LIF(backend="snntorch"), torch.rand(4, 3) * 2
    expected, surrogate, calls = neuron(current), neuron.spike_grad, []

    def fails_at_the_third_step(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) > 5:  # snnTorch asks twice a step, for the reset and for the spike
            raise RuntimeError("stop")
        return surrogate(x)

    neuron.spike_grad = fails_at_the_third_step
    with pytest.raises(RuntimeError, match="stop"):
        neuron(current)
    neuron.spike_grad = surrogate
    assert neuron.mem.numel() == 0 and torch.equal(neuron(current), expected)


@pytest.fixture
def nervous_threads():
    """Python changes from thread to thread after a few operations, not after 5 ms."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("make", [LIF, lambda: LIF(backend="snntorch"), IF, PLIF, ILIF])
def test_threads_that_call_one_neuron_share_no_state(make, nervous_threads):
    neuron = make()
    currents = [3 * torch.rand(4, 5 + i) for i in range(4)]
    expected = [neuron(current) for current in currents]
    together = Barrier(4)

    def work(i: int) -> bool:
        together.wait()
        return all(torch.equal(neuron(currents[i]), expected[i]) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_constants_are_right_whenever_another_thread_asks_for_them():
    class Interrupted(LIF):
        """Whenever something is set on it, another thread is at once faster."""

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if others:
                heard.append(others[0].submit(self.constants).result() == (0.5, float(self.threshold)))

    heard, others = [], []
    neuron = Interrupted()
    with ThreadPoolExecutor(1) as other:
        others.append(other)
        assert neuron.constants() == (0.5, 2.0)
        neuron.threshold.fill_(1.0)
        assert neuron.constants() == (0.5, 1.0)
    assert heard and all(heard)


@pytest.mark.parametrize("backend", BACKENDS)
def test_deleting_frees(backend):
    before = list(snn.SpikingNeuron.instances)
    neuron = LIF(backend=backend)
    current = torch.rand(4, 3, requires_grad=True)
    neuron(current).sum().backward()
    assert snn.SpikingNeuron.instances == before
    alive = weakref.ref(neuron), weakref.ref(current)
    del neuron, current
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_other_snntorch_neurons_are_left_alone():
    theirs = snn.Leaky(beta=0.5)
    try:
        LIF()
        assert any(neuron is theirs for neuron in snn.SpikingNeuron.instances)
    finally:
        snn.SpikingNeuron.instances.remove(theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_are_the_same_neuron(clone, backend):
    neuron = LIF(tau=4.0, v_threshold=0.5, backend=backend)
    current, weights = torch.rand(4, 50) * 3, torch.randn(4, 50)
    run(neuron, current, weights)  # after use as well as before
    expected, actual = run(neuron, current, weights), run(clone(neuron), current, weights)
    assert torch.equal(expected[0], actual[0]) and torch.equal(expected[1], actual[1])
    assert clone(neuron).fusible is neuron.fusible


def test_checkpoints_hold_weights_only():
    assert LIF().state_dict() == IF().state_dict() == ILIF().state_dict() == {}
    assert set(PLIF().state_dict()) == {"w"}


# The other kinds, each against its paper's equations.


def integrate_and_fire(current: Tensor, v_threshold: float) -> Tensor:
    v, spikes = torch.zeros_like(current[0]), []
    for x in current:
        h = v + x
        spikes.append(reference.Theta.apply(h - v_threshold))
        v = h * (1 - spikes[-1].detach())
    return torch.stack(spikes)


def parametric(current: Tensor, a: Tensor, v_threshold: float) -> Tensor:
    """1/tau = k(a) = 1 / (1 + exp(-a)), the same for all neurons."""
    v, spikes, k = torch.zeros_like(current[0]), [], 1 / (1 + torch.exp(-a))
    for x in current:
        h = v + k * (-v + x)
        spikes.append(reference.Theta.apply(h - v_threshold))
        v = h * (1 - spikes[-1].detach())
    return torch.stack(spikes)


class Rounded(torch.autograd.Function):
    """clip(round(x), 0, D), whose gradient is 1 where 0 <= x <= D."""

    @staticmethod
    def forward(ctx, x: Tensor, largest: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.largest = largest
        return torch.tensor([float(min(max(round(v), 0), largest)) for v in x.flatten().tolist()]).to(x).view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where((x < 0) | (x > ctx.largest), torch.zeros_like(grad), grad), None


def integers(current: Tensor, beta: float, largest: int) -> Tensor:
    memory, spikes = torch.zeros_like(current[0]), []
    for x in current:
        u = memory + x
        spikes.append(Rounded.apply(u, largest))
        memory = beta * (u - spikes[-1].detach())
    return torch.stack(spikes)


def compare(neuron: LIF, formula, current: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and gradients of a neuron in float64, which are those of a formula."""
    weights, found = torch.randn_like(current), []
    for way in (neuron.double(), formula):
        x = current.clone().requires_grad_()
        spikes = way(x)
        found.append((spikes, *torch.autograd.grad((spikes * weights).sum(), x, retain_graph=True)))
    (spikes, gradient), (expected, expected_gradient) = found
    assert torch.equal(spikes, expected) and expected_gradient.abs().max() > 1e-2
    assert torch.allclose(gradient, expected_gradient, rtol=0, atol=1e-12)
    return spikes, weights


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [1, 6])
def test_if_never_leaks(backend, steps):
    current = random_currents(steps, 4000)
    spikes, _ = compare(IF(0.75, backend=backend), lambda x: integrate_and_fire(x, 0.75), current)
    assert 0.1 < spikes.mean() < 0.9
    drops = torch.full((8, 1), 0.25)
    assert IF(backend=backend)(drops).flatten().tolist() == [0, 0, 0, 1, 0, 0, 0, 1]  # ties, and exact sums


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("tau", [1.5, 2.0, 3.0])
def test_plif_learns_its_time_constant(tau, steps):
    neuron, current = PLIF(tau), random_currents(steps, 4000)
    a = torch.tensor(-math.log(tau - 1), dtype=torch.float64, requires_grad=True)
    assert neuron.double().tau == pytest.approx(tau, rel=1e-6) and neuron.w.dim() == 0
    neuron.w.data.copy_(a.detach())
    spikes, weights = compare(neuron, lambda x: parametric(x, a, 1.0), current)
    assert 0.05 < spikes.mean() < 0.9
    (neuron(current) * weights).sum().backward()
    (parametric(current, a, 1.0) * weights).sum().backward()
    assert a.grad.abs() > 1e-2 and torch.allclose(neuron.w.grad, a.grad, rtol=1e-9)


def test_plif_starts_as_snntorchs_loop_and_says_what_it_learned():
    current, weights = random_currents(), torch.randn(6, 4000, dtype=torch.float64)
    fixed = run(LIF(backend="snntorch").double(), current, weights)
    learned = run(PLIF().double(), current, weights)
    assert torch.equal(fixed[0], learned[0]) and torch.allclose(fixed[1], learned[1], rtol=0, atol=1e-14)
    neuron, kept = PLIF().double(), []
    neuron.w.data.fill_(1.0)
    neuron.on_membranes = kept.append
    spikes = neuron(current)
    assert neuron.tau == pytest.approx(1 + math.exp(-1)) and neuron.decay == pytest.approx(1 - 1 / neuron.tau)
    assert neuron.v_threshold == 1.0 and torch.equal(spikes, (kept[0] / neuron.tau >= 1 - 1e-12).double())


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_ilif_gives_integers_and_keeps_the_rest(levels, steps):
    current = 1.5 * random_currents(steps, 4000)
    spikes, _ = compare(ILIF(tau=4 / 3, levels=levels), lambda x: integers(x, 0.25, levels), current)
    assert set(spikes.unique().tolist()) == {float(i) for i in range(levels + 1)}


def test_ilif_rounds_exactly_in_every_dtype():
    """The rounded value is a number plus what it lacks: exact, or a spike of 2.9999998 would come out."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        current = torch.linspace(-2, 9, 20_001).to(dtype)
        spikes = ILIF(levels=7)(current[None])[0]
        assert spikes.dtype == dtype and torch.equal(spikes, current.clamp(0, 7).round())


def test_a_kind_by_name():
    assert {name: type(spiking(name)) for name in NEURONS} == {"lif": LIF, "plif": PLIF, "ilif": ILIF, "if": IF}
    assert spiking("ilif", tau=4.0, levels=2).levels == 2 and spiking().tau == 2.0


# Bad input.


@pytest.mark.parametrize(
    "option, words",
    [
        (dict(backend="fusd"), ["'fusd'", "did you mean 'fused'", "snntorch"]),
        *((dict(tau=tau), [f"tau={tau}", "at least one"]) for tau in (0.8, 0.0, -2, math.inf, math.nan)),
    ],
)
def test_option_out_of_range(option, words, one_line):
    with pytest.raises(SpikformerError) as error:
        LIF(**option)
    one_line(error, *words)


@pytest.mark.parametrize("tau", [1.0, 0.5, math.inf, math.nan])
def test_a_time_constant_that_is_learned_must_exceed_a_step(tau, one_line):
    with pytest.raises(SpikformerError) as error:
        PLIF(tau)
    one_line(error, f"tau={tau}", "more than one")


@pytest.mark.parametrize("backend", BACKENDS)
def test_tau_of_one_step_forgets_at_once(backend):
    current = random_currents()
    spikes, gradient = run(LIF(tau=1, backend=backend).double(), current, torch.ones(()))
    assert torch.equal(spikes, (current >= 1).double()) and gradient.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_current_of_integers(backend, one_line):
    with pytest.raises(SpikformerError) as error:
        LIF(backend=backend)(torch.tensor([[-1], [2]]))
    one_line(error, "torch.int64", "current.float()")
    assert LIF(backend=backend)(torch.tensor([[-1.0], [2.0]])).tolist() == [[0], [0]]  # u = 1.5
