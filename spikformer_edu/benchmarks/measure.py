"""How peers are measured: time in turns, operations and memory by counting.

The speed of a machine drifts by tens of per cent within minutes. So all peers are kept ready in one process and take
turns, A B C A B C ..., and ratios are taken within a round. A large product of matrices, a large convolution and a
large copy take turns with them: they show the best rate of the machine.
"""

import gc
import math
import multiprocessing
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm import tqdm

from ..kernels.choice import plain_path
from ..training.recipe import PRECISIONS
from .peers import PRODUCTS, Case, Product, Step, Unavailable, captured, prepare

TURN = 0.1  # seconds that a turn lasts at least: short steps are repeated
CPU_ATTENTION = {  # softmax attention's kernels on a CPU, which older PyTorch versions (such as 2.11) do not count
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@dataclass
class Result:
    """The measurements of one peer in one mode.

    Attributes:
        peer: name of the peer, with its changes, for example "ours+compile".
        mode: "train" or "eval".
        point: value of what a sweep varies; None without a sweep.
        batch: samples in a step, B.
        tokens: number of tokens N.
        repeats: number of steps that each time in ``seconds`` is the mean of.
        flops: floating-point operations of a step (two a multiply-accumulate), in matrix products and convolutions.
        traffic: estimate of the bytes moved in a step, see ``Traffic``; None for a compiled network.
        memory: peak of the bytes that all tensors of the peer take, on a GPU of what PyTorch allocated; None for a
            compiled network elsewhere.
        seconds: time of one step in each round.
        to_ours: median over the rounds of this time divided by ours; None without ours.
        to_spikingjelly: median over the rounds of this time divided by SpikingJelly's; None without it.
        share: operations a second, as a share of the best rate that the machine reached in the same rounds.
    """

    peer: str
    mode: str
    point: int | None
    batch: int
    tokens: int
    repeats: int
    flops: int
    traffic: int | None
    memory: int | None = None
    seconds: list[float] = field(default_factory=list)
    to_ours: float | None = None
    to_spikingjelly: float | None = None
    share: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Comparison:
    """All results at one precision.

    Attributes:
        title: name of the shape, or what the sweep varies.
        precision: fp32 or bf16 (autocast).
        results: one result for every peer and mode.
        rates: name of a probe -> operations (of the copy: bytes) a second, by round.
        skipped: name of a peer -> why it was not measured.
    """

    title: str
    precision: str
    results: list[Result]
    rates: dict[str, list[float]]
    skipped: dict[str, str]

    @property
    def best_rate(self) -> float:
        """Median rate of the faster probe, in operations a second."""
        return max(statistics.median(self.rates[name]) for name in ("matmul", "conv"))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(work: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """Time of one call, the mean over some in a row."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


class Traffic(TorchDispatchMode):
    """Counts the bytes moved if every operation read its inputs from memory and wrote its outputs there, once each.

    An operation is one of PyTorch's operators, or a Triton kernel that is launched beside them. Of ours the fused norm
    and neuron move 16 bytes an element and training step in bf16: the current is read four times and its gradient
    twice, the spikes and the gradient of the current are written once.

    An estimate: caches save some of it, an operator that reads twice or works in place moves more, and an expanded
    tensor counts as if it were written out.
    """

    ALLOCATIONS = ("aten::empty", "aten::new_empty")  # these and empty_like, new_empty_strided, ... move nothing

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.inside = False  # an operator, which is counted as a whole

    def __torch_dispatch__(
        self, func: OpOverload, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        self.inside = True
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self.inside = False
        if not func.is_view and not func.name().startswith(self.ALLOCATIONS):
            self.add((args, kwargs, out))
        return out

    def __enter__(self) -> "Traffic":
        self.stack = ExitStack()
        self.stack.enter_context(triton_launches(self.launched))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stack.close()

    def launched(self, arguments: tuple[Any, ...]) -> None:
        if not self.inside:
            self.add(arguments)

    def add(self, arguments: object) -> None:
        """Count every tensor among some arguments once."""
        tensors = {id(x): x for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)}
        self.bytes += sum(x.numel() * x.element_size() for x in tensors.values())


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that were made inside and still exist, and their peak.

    What an operator allocates and frees within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(
        self, func: OpOverload, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.add(x.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, which views share, once, until it is freed."""
        address = storage._cdata
        if address not in self.storages:
            self.storages.add(address)
            self.now += storage.nbytes()
            weakref.finalize(storage, self.freed, address, storage.nbytes())

    def freed(self, address: int, size: int) -> None:
        self.storages.remove(address)
        self.now -= size

    def peak_of(self, work: Callable[[], object]) -> int:
        """Peak during a call, with everything that was there before."""
        self.peak = self.now
        work()
        return self.peak


@contextmanager
def triton_launches(tell: Callable[[tuple[Any, ...]], object]) -> Iterator[None]:
    """Call a function with the arguments of every Triton kernel that is launched, ``kernel[grid](...)``."""
    try:
        from triton.runtime.jit import KernelInterface
    except ImportError:  # no Triton, no kernels
        yield
        return
    usual = KernelInterface.__getitem__

    def watched(kernel: Any, grid: Any) -> Callable[..., Any]:
        def launch(*args: Any, **kwargs: Any) -> Any:
            tell((*args, *kwargs.values()))
            return usual(kernel, grid)(*args, **kwargs)

        return launch

    KernelInterface.__getitem__ = watched
    try:
        yield
    finally:
        KernelInterface.__getitem__ = usual


class Counts(NamedTuple):
    """What was counted in one step of a peer in one mode; the names are those of ``Result``."""

    flops: int
    traffic: int | None
    memory: int | None


def count(name: str, case: Case, precision: str, device: torch.device) -> dict[str, Counts]:
    """Operations, estimated traffic and peak memory of one step, by mode, counted while it runs.

    Operations are counted on the readable code, since products inside a fused kernel are not seen; traffic and memory
    on the way that the step takes. All are counted without compilation; traffic and memory, which fusion changes, are
    then None.
    """
    found = {}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it runs an encoder layer as one operator, which is not counted
    try:
        with Held() as held:
            step = prepare(name, case, precision, device, counting=True)
            step.train()  # allocates what the optimizer keeps
            for mode, work in works(step).items():
                with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as flops, plain_path():
                    work()
                with Traffic() as traffic:
                    memory = held.peak_of(work)
                found[mode] = Counts(flops.get_total_flops(), traffic.bytes, memory)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if "+compile" in name:
        found = {mode: Counts(counts.flops, None, None) for mode, counts in found.items()}
    return found


def works(step: Step | Product) -> dict[str, Callable[[], object]]:
    return {"train": step.train, "eval": step.evaluate}


def probes(precision: str, device: torch.device) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Work that shows the best rate of the machine: name -> (operations or bytes, work)."""
    dtype, gpu = PRECISIONS[precision], device.type != "cpu"
    n, images, copied = (8192, 1024, 2**30) if gpu else (1024, 16, 2**28)
    a, b, out = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(3))
    x = torch.randn(images, 192, 16, 16, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.randn(192, 192, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    source = torch.ones(copied // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)

    def conv() -> None:
        with torch.no_grad():
            F.conv2d(x, kernel, padding=1)

    return {
        "matmul": (2 * n**3, lambda: torch.mm(a, b, out=out)),
        "conv": (2 * x.numel() * kernel[0].numel(), conv),
        "copy": (2 * copied, lambda: target.copy_(source)),
    }


def measure(
    entries: Sequence[tuple[str, int | None, Case]],
    title: str,
    precision: str,
    device: torch.device,
    rounds: int,
) -> Comparison:
    """Measure peers beside each other.

    Args:
        entries: tuples of a peer's name, the value of what a sweep varies (None without a sweep), and the case.
        title: title of the table.
        precision: fp32 or bf16 (autocast).
        device: where to compute.
        rounds: number of turns of each entry.
    """
    skipped: dict[str, str] = {}
    ready: list[tuple[str, Case, Callable[[], object], Result]] = []
    machine = probes(precision, device)
    rates: dict[str, list[float]] = {name: [] for name in machine}
    for _, work in machine.values():
        work()
    with ExitStack() as stack:
        cases = {name: case for name, _, case in entries}
        trials = {name: trial(name, case, precision, device, stack) for name, case in cases.items()}
        for name, point, case in tqdm(entries, f"{title}, {precision}: warm up", leave=False, disable=None):
            label = name if point is None else f"{name} at {point}"
            try:
                counted = count(name, case, precision, device)
                if error := trials[name]():
                    raise Unavailable(error)
                gc.collect()  # the network that was counted
                before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
                step = prepare(name, case, precision, device)
                results = []
                for mode, work in works(step).items():
                    most = warm_up(work, step.warmup, device)
                    memory = counted[mode].memory if most is None else most - before
                    repeats = math.ceil(TURN / seconds(work, device))
                    sizes = (case.batch, case.tokens, repeats, counted[mode].flops, counted[mode].traffic, memory)
                    results.append((label, case, work, Result(name, mode, point, *sizes)))
                ready += results
            except Exception as error:  # of a peer, a compiler or a capture: the others are measured all the same
                skipped[label] = why(error, case)
    for _ in tqdm(range(rounds), f"{title}, {precision}", leave=False, disable=None):
        for label, case, work, result in ready:
            if label not in skipped:
                try:
                    result.seconds.append(seconds(work, device, result.repeats))
                except Exception as error:
                    skipped[label] = why(error, case)
        for name, (amount, work) in machine.items():
            rates[name].append(amount / seconds(work, device))
    table = Comparison(title, precision, [r for label, *_, r in ready if label not in skipped], rates, skipped)
    compare(table)
    return table


def warm_up(work: Callable[[], object], calls: int, device: torch.device) -> int | None:
    """Call until every further call takes the same time.

    Args:
        work: a step in one mode.
        calls: number of calls.
        device: where to compute.

    Returns:
        Peak memory that PyTorch allocated on a GPU in a call after the first; the capture of a graph is the last.
    """
    if device.type != "cuda":
        for _ in range(calls):
            work()
        return None
    for _ in range(max(2, calls)):
        torch.cuda.reset_peak_memory_stats(device)
        work()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def trial(name: str, case: Case, precision: str, device: torch.device, stack: ExitStack) -> Callable[[], str | None]:
    """Begin to capture a small step in another process: a capture that fails can leave its process unable to go on.

    Args:
        name: name of the peer.
        case: network and input; of the batch only a part is taken.
        precision: fp32 or bf16 (autocast).
        device: where to compute.
        stack: ends the process.

    Returns:
        A function that waits for the end, and says what went wrong; None if nothing did or nothing is captured.
    """
    if name in PRODUCTS or device.type != "cuda" or not captured(name, device):
        return lambda: None
    pool = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
    small = replace(case, batch=min(case.batch, 8))
    return pool.submit(try_to_capture, name, small, precision, device).result


def try_to_capture(name: str, case: Case, precision: str, device: torch.device) -> str | None:
    """Prepare a peer, capture both of its modes and replay them once; the text of an error, None without one."""
    try:
        step = prepare(name, case, precision, device)
        for work in works(step).values():
            warm_up(work, step.warmup + 1, device)
    except Exception as error:
        return why(error, case)
    return None


def why(error: Exception, case: Case) -> str:
    """Why a peer was not measured, in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory at batch {case.batch}, {case.tokens} tokens"
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if isinstance(error, Unavailable) else f"failed: {text}"


def compare(table: Comparison) -> None:
    """Fill in the ratios, round by round because the machine drifts, and the shares of its best rate."""
    by_key = {(r.peer, r.mode, r.point): r for r in table.results}
    for result in table.results:
        for reference in ("ours", "spikingjelly"):
            other = by_key.get((reference, result.mode, result.point))
            if other is not None and result.peer not in PRODUCTS:
                ratios = (mine / theirs for mine, theirs in zip(result.seconds, other.seconds, strict=True))
                setattr(result, f"to_{reference}", statistics.median(ratios))
        result.share = result.flops / result.median / table.best_rate


SWEEPS: dict[str, tuple[tuple[int, ...], Callable[[Case, int], Case]]] = {
    "time_steps": ((1, 2, 4, 8), lambda case, t: replace(case, config=replace(case.config, time_steps=t))),
    "batch": ((1, 2, 4, 8, 16), lambda case, b: replace(case, batch=b)),
    "tokens": ((16, 64, 144, 256), lambda case, n: replace(case, image_size=math.isqrt(n) * case.config.patch_size)),
    "dim": ((128, 256, 384, 512), lambda case, d: replace(case, config=replace(case.config, dim=d, heads=d // 32))),
}
PRODUCT_TOKENS = (64, 256, 576, 1024, 2304)


def sweep(
    kind: str, case: Case, peers: Iterable[str], precision: str, device: torch.device, rounds: int
) -> list[Comparison]:
    """How cost grows with one size: every peer at every point, all interleaved.

    Args:
        kind: what varies: time_steps, batch (from a quarter of the case's to four times as much), tokens or dim.
        case: network and input that the sweep starts from.
        peers: names of the peers.
        precision: fp32 or bf16 (autocast).
        device: where to compute.
        rounds: number of turns of each entry.

    Returns:
        The table; over tokens also a second one, of the product of attention alone, in both orders, for one sample.
    """
    usual, at = SWEEPS[kind]
    points = sorted({max(1, point * case.batch // 4) for point in usual}) if kind == "batch" else usual
    entries = [(name, point, at(case, point)) for point in points for name in peers]
    tables = [measure(entries, kind, precision, device, rounds)]
    if kind == "tokens":
        one = replace(case, batch=1)
        entries = [(order, n, at(one, n)) for n in PRODUCT_TOKENS for order in PRODUCTS]
        tables.append(measure(entries, "orders", precision, device, rounds))
    return tables
