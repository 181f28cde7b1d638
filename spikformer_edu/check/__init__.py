"""``se.check``: faults of any spiking network, found by its behaviour. ``python -m spikformer_edu.check MODULE:MAKE``.

Nothing is assumed of the code: the network is called on changed inputs and must answer as a network without the fault
would. It may come from this package, SpikingJelly, snnTorch or yourself.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SpikformerError
from ..eval_mode import evaluating
from ..table import Table

NEURONS = ("lif", "ifnode", "leaky", "basenode", "spikingneuron")  # in the names of a neuron's classes


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        layer: name of the module or parameter; "" for the whole network.
        what: the fault.
        evidence: what was seen, with numbers.
        cause: the likely cause.
        remedy: what to do.
    """

    layer: str
    what: str
    evidence: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.layer}: " if self.layer else ""
        return f"{where}{self.what} ({self.evidence}); likely cause: {self.cause}; {self.remedy}"


@dataclass
class CheckReport:
    """What ``check`` found; prints one line a finding, and is false if there is one.

    Attributes:
        findings: the faults.
        skipped: checks that this input does not allow, and why.
    """

    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        lines = [str(finding) for finding in self.findings] or ["no fault found"]
        return "\n".join(lines + [f"not checked: {reason}" for reason in self.skipped])

    def table(self) -> Table:
        """One row a finding."""
        rows = [tuple(asdict(finding).values()) for finding in self.findings]
        return Table(("layer", "what", "evidence", "likely cause", "remedy"), rows, "l")

    def to_dict(self) -> dict[str, Any]:
        """The whole report, ready for JSON."""
        return asdict(self)


def check(
    model: nn.Module,
    inputs: Tensor,
    *,
    time_first: bool | None = None,
    reset: Callable[[nn.Module], object] | None = None,
) -> CheckReport:
    """Look for the faults that cost others their results; a network without them gives no finding.

    It is called about ten times, on copies of itself: the network that is given does not change.

    Args:
        model: a network that gives logits ``[B, K]`` or ``[T, B, K]``.
        inputs: at least three different samples, ``[B, ...]`` or, with time first, ``[T, B, ...]``.
        time_first: whether the first dimension of ``inputs`` is time; None: it is if there are five.
        reset: called with the network before each of its calls, where its users must do so, such as SpikingJelly's
            ``functional.reset_net``.

    Raises:
        SpikformerError: fewer than three samples, two equal ones, or no logits come out.

    Examples:
        >>> import torch, spikformer_edu as se
        >>> model = se.load_pretrained("digits-2-64")
        >>> report = se.check(model, se.data.load("digits").test.fetch(torch.arange(4), None)[0])
        >>> report.findings
        []
    """
    return _Check(model, inputs, inputs.dim() == 5 if time_first is None else time_first, reset).run()


class _Check:
    def __init__(self, model: nn.Module, inputs: Tensor, time_first: bool, reset: Callable[[nn.Module], object] | None):
        self.original, self.inputs, self.time_first = model, inputs, time_first
        self.reset = reset or (lambda _: None)
        self.axis = 1 if time_first else 0  # of the samples
        self.report = CheckReport()
        samples = inputs.unbind(self.axis)
        if len(samples) < 3 or any(torch.equal(samples[0], other) for other in samples[1:]):
            raise SpikformerError("check needs three samples or more, all different: it compares them")

    def found(self, layer: str, what: str, evidence: str, cause: str, remedy: str) -> None:
        self.report.findings.append(Finding(layer, what, evidence, cause, remedy))

    def run(self) -> CheckReport:
        self.fresh = self.model = copy.deepcopy(self.original)
        self.untrained = self.awaken()
        self.model = copy.deepcopy(self.fresh)
        with evaluating(self.model):
            self.first = self.logits(self.inputs)
            if self.keeps_nothing():
                if self.tells_samples_apart():
                    self.samples_are_apart()
                self.time_runs_forwards()
            self.layers()
        self.gradients()
        return self.report

    @torch.no_grad()
    def awaken(self) -> bool:
        """Give norms that have never seen a batch its statistics and a push: else hardly a neuron behind them fires."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        norms = [m for m in norms if m.num_batches_tracked is not None and m.num_batches_tracked == 0]
        if not norms:
            return False
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
            if norm.bias is not None:
                norm.bias.add_(0.7)
        self.model.train()
        for _ in range(2):
            self.call(self.inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.model.train(self.original.training)
        self.report.skipped.append(
            "which neurons never fire, and which weights see them: its norms have not been trained (they got a push)"
        )
        return True

    # ------------------------------------------------------------------------------------------------ calling

    def call(self, inputs: Tensor) -> Tensor:
        self.reset(self.model)
        out = self.model(inputs)
        out = out[0] if isinstance(out, tuple) else out  # snnTorch's networks give spikes and membranes
        if not isinstance(out, Tensor) or out.dim() not in (2, 3) or not out.is_floating_point():
            kind = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise SpikformerError(f"the network gives {kind}: check needs logits [B, K] or [T, B, K]")
        return out.mean(0) if out.dim() == 3 else out

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        return self.call(inputs).double()

    def apart(self, one: Tensor, other: Tensor) -> float:
        """How far logits differ, relative to how far the samples' logits differ; rounding counts as nothing."""
        spread = float(self.first.std(0).max().clamp(min=1e-12))
        difference = float((one - other).abs().max())
        size = float(self.first.abs().max().clamp(min=1e-12))
        return 0.0 if difference <= 2e-4 * size else difference / spread

    # ----------------------------------------------------------------------------------------------- behaviour

    def keeps_nothing(self) -> bool:
        again = self.logits(self.inputs)
        if not (by := self.apart(again, self.first)):
            return True
        self.found(
            "",
            "two calls on the same input differ",
            f"by {by:.1%} of what samples differ by",
            "membranes are kept from one call to the next, or dropout is on in evaluation",
            "reset the state before each call (pass reset= if yours does so from outside)",
        )
        return False

    def tells_samples_apart(self) -> bool:
        if float(self.first.std(0).max()) > 1e-6 * float(self.first.abs().max()):
            return True
        self.found(
            "",
            "all samples get the same logits",
            f"{len(self.first)} samples",
            "a layer is silent, or the input does not reach the output",
            "look at the layers that never fire",
        )
        return False

    def take(self, numbers: list[int]) -> Tensor:
        return self.inputs.index_select(self.axis, torch.tensor(numbers, device=self.inputs.device))

    def samples_are_apart(self) -> None:
        """Each sample must get the logits that it gets in any other company."""
        count = self.inputs.shape[self.axis]
        # The last sample is another one: whose logits move?
        changed = self.logits(self.take([*range(count - 1), 0]))
        earlier = self.apart(changed[: count - 1], self.first[: count - 1])
        changed = self.logits(self.take([count - 1, *range(1, count)]))
        later = self.apart(changed[1:], self.first[1:])
        if later and not earlier:
            self.found(
                "",
                "a sample changes the logits of those behind it in the batch, and of none before it",
                f"by {later:.1%} of what samples differ by",
                "the neuron runs over the batch as if it were time: T and B are swapped",
                "put time first, [T, B, ...], or tell the neuron which axis is time",
            )
        elif later or earlier:
            self.found(
                "",
                "a sample changes the logits of others in the batch",
                f"by {max(later, earlier):.1%} of what samples differ by",
                "a norm uses the batch's statistics in evaluation, or a sum, softmax or reshape runs over the batch",
                "look at every operation over the batch axis; call model.eval()",
            )
        elif by := self.apart(self.logits(self.take([0])), self.first[:1]):
            self.found(
                "",
                "a sample alone gets other logits than in a batch",
                f"by {by:.1%} of what samples differ by",
                "the network looks at the size of the batch",
                "look for B in its arithmetic",
            )
        order = [*range(1, count), 0]
        if not (later or earlier) and (by := self.apart(self.logits(self.take(order)), self.first[order])):
            self.found(
                "",
                "samples in another order get other logits",
                f"by {by:.1%} of what samples differ by",
                "the network numbers its samples",
                "look for indices along the batch axis",
            )

    def time_runs_forwards(self) -> None:
        """What comes later must not change what a layer gave before."""
        steps = len(self.inputs) if self.time_first else 0
        if steps < 2:
            self.report.skipped.append("whether time runs forwards: the input has no time steps of its own")
            return
        before = self.outputs(self.inputs)
        changed = self.inputs.clone()
        changed[-1] = self.inputs[-1].roll(1, 0)
        after = self.outputs(changed)
        samples = self.inputs.shape[1]
        for name, values in before.items():
            other = after.get(name)
            if other is None or other.shape != values.shape or not values.is_floating_point():
                continue
            if values.shape[0] == steps * samples and steps * samples != steps:
                values, other = values.unflatten(0, (steps, samples)), other.unflatten(0, (steps, samples))
            if values.shape[0] != steps or values.dim() < 2:
                continue
            size = float(values.abs().max().clamp(min=1e-12))
            moved = float((values[:-1] - other[:-1]).abs().max()) / size
            if moved > 1e-3:
                self.found(
                    name,
                    "a later input changes what it gave before",
                    f"steps before the last move by {moved:.1%} of its largest value",
                    "an operation runs over the time axis: a norm, a softmax, attention over T, or a reversed loop",
                    "let each step use itself and the state alone",
                )
                return  # all layers behind it move too

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """What each module gave, by name, in the order in which they were called."""
        found: dict[str, Tensor] = {}
        with _watching(self.model, lambda name, _, out: found.setdefault(name, out.detach().clone())):
            self.call(inputs)
        return found

    # -------------------------------------------------------------------------------------------------- layers

    @torch.no_grad()
    def layers(self) -> None:
        """Modules that are never called, neurons that never or always fire, weights that see real numbers."""
        read: dict[str, Tensor] = {}
        gave: dict[str, Tensor] = {}

        def keep(name: str, given: Tensor | None, out: Tensor) -> None:
            if given is not None:
                read.setdefault(name, given.detach().clone())
            gave.setdefault(name, out.detach().clone())

        with _watching(self.model, keep):
            self.call(self.inputs)
        weights = []
        for name, module in self.model.named_modules():
            own = list(module.parameters(recurse=False))
            if own and name not in gave and not isinstance(module, nn.ParameterList | nn.ParameterDict):
                self.found(
                    name,
                    "is built and never called",
                    f"{sum(p.numel() for p in own):,} parameters",
                    "the forward pass leaves it out, or calls another module of the same shape",
                    "call it, or do not build it",
                )
            elif name in gave and _is_neuron(module):
                rate = float(gave[name].double().mean())
                binary = bool(((gave[name] == 0) | (gave[name] == 1)).all())
                if binary and rate in (0, 1) and not (self.untrained and rate == 0):
                    self.found(
                        name,
                        "never fires" if rate == 0 else "always fires",
                        f"{gave[name].numel():,} neurons and time steps",
                        "its input is far below the threshold" if rate == 0 else "its input is far above the threshold",
                        "look at the norm before it, the threshold and the learning rate",
                    )
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and name in read:
                weights.append(name)
        order = [name for name in read if name in weights]
        for name in order[1:-1]:  # the first one sees the image, the last one a mean
            values = read[name]
            if not torch.equal(values, values.round()):
                share = float((values != values.round()).double().mean())
                self.found(
                    name,
                    "multiplies real numbers: its input is no spikes",
                    f"{share:.1%} of its inputs are no whole numbers",
                    "a neuron is missing before it, or a norm stands behind the neuron",
                    "let only spikes, or sums of spikes, enter a weight",
                )

    def gradients(self) -> None:
        """In training every weight must get a gradient."""
        model = self.model = self.fresh.train()
        torch.manual_seed(0)
        logits = self.call(self.inputs.clone())
        labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
        if not logits.requires_grad:
            self.found(
                "",
                "the logits have no gradient",
                "requires_grad is false",
                "the network runs under no_grad, or its spikes are cut off",
                "use a surrogate gradient",
            )
            return
        F.cross_entropy(logits, labels).backward()
        never, zero = [], []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.dim() >= 2:  # a bias before a norm has none, and needs none
                if parameter.grad is None:
                    never.append(name)
                elif not parameter.grad.any() and not self.untrained:
                    zero.append(name)
        for names, what, cause in (
            (never, "gets no gradient", "it is not used, or a comparison without a surrogate cuts the gradient off"),
            (zero, "gets a gradient of zeros", "the layers behind it are silent, or the surrogate is zero there"),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                self.found(names[-1] + more, what, "in a training step", cause, "look at what lies behind it")


def _is_neuron(module: nn.Module) -> bool:
    names = "".join(kind.__name__.lower() for kind in type(module).__mro__)
    return any(word in names for word in NEURONS)


@contextmanager
def _watching(model: nn.Module, seen: Callable[[str, Tensor | None, Tensor], object]) -> Iterator[None]:
    """Call a function with name, first input and output of every module that is called."""

    def hook(name: str) -> Callable[..., None]:
        def listener(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            out = output[0] if isinstance(output, tuple) and output else output
            given = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            if isinstance(out, Tensor):
                seen(name, given, out)

        return listener

    handles = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
