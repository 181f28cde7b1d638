"""The GPU kernels without a GPU: against the plain lines, and as the machine code that GPUs will run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

MISSING = "Triton is not installed: it comes with PyTorch on Linux"
triton = pytest.importorskip("triton", reason=MISSING)
lif_triton = pytest.importorskip("spikformer_edu.kernels.lif_triton", reason=MISSING)
from spikformer_edu.kernels import max_pool, norm_lif, ssa_lif  # noqa: E402  they import Triton

POINTER = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
OTHERS = {torch.uint8: "*u8", torch.int64: "*i64"}
GPUS = 80, 86, 90, 120  # A100, RTX 30, H100 and H200, RTX 50


@pytest.mark.parametrize(
    ("cases", "count"),
    [("triton_cases.py", 39), pytest.param("fused_cases.py", 70, marks=pytest.mark.slow)],
)
def test_kernels_equal_the_plain_lines(cases, count):
    # Triton decides when it is imported whether it interprets: hence a process of its own.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", Path(__file__).parent / cases],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(re.findall(r"\.", done.stdout.split("[100%]")[0])) == count, done.stdout


class Launches:
    """In place of a kernel: compiles it for a GPU of the given architecture, as it would be launched there."""

    def __init__(self, kernel, arch: int):
        self.kernel, self.arch, self.compiled = kernel, arch, []
        self.large, self.moved = 0, []  # bytes an element of the tensors of that many elements, for each launch

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **options):
        full = {a.data_ptr(): a.element_size() for a in args if isinstance(a, torch.Tensor) and a.numel() == self.large}
        self.moved.append(sum(full.values()))
        kinds, fixed, divisible = {}, {}, {}
        for i, (parameter, arg) in enumerate(zip(self.kernel.params, args, strict=True)):
            tensor, number = isinstance(arg, torch.Tensor), isinstance(arg, float)
            kinds[parameter.name] = (POINTER | OTHERS)[arg.dtype] if tensor else "fp32" if number else "i32"
            if parameter.is_constexpr or (not tensor and not number and arg == 1):
                kinds[parameter.name], fixed[(i,)] = "constexpr", arg
            elif tensor or (
                not number and arg % 16 == 0
            ):  # what Triton makes use of at a launch; PyTorch aligns its memory
                divisible[(i,)] = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(self.kernel, kinds, fixed, divisible)
        target = triton.backends.compiler.GPUTarget("cuda", self.arch, 32)
        self.compiled.append(triton.compile(source, target=target, options=options))


def resources(compiled, folder: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes of the stack that it spills into."""
    (folder / "cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", folder / "cubin"], capture_output=True, text=True, check=True)
    (registers,), (stack,) = re.findall(r"REG:(\d+)", usage.stdout), re.findall(r"STACK:(\d+)", usage.stdout)
    return int(registers), int(stack)


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Both passes of a neuron for a current, compiled for a GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pytest.importorskip("triton", "3.3", "older Triton has other names for compiling without a GPU")

    def compile_passes(x, arch):
        forward, backward = Launches(lif_triton._forward, arch), Launches(lif_triton._backward, arch)
        monkeypatch.setattr(lif_triton, "_forward", forward)
        monkeypatch.setattr(lif_triton, "_backward", backward)
        spikes, membranes, grad = (torch.empty(x.shape, dtype=x.dtype) for _ in range(3))
        lif_triton.forward(x, membranes, spikes, 0.5, 1.0)
        lif_triton.backward(membranes, grad, spikes, 0.5, 1.0, 4.0)
        return forward.compiled + backward.compiled

    return compile_passes


@pytest.mark.parametrize("arch", GPUS)
@pytest.mark.parametrize("dtype", POINTER)
def test_compile_for_gpus_that_are_not_there(launched, tmp_path, dtype, arch):
    passes = launched(torch.empty(4, 2, 48, 32, 32, dtype=dtype), arch)
    for compiled in passes:
        ptx = compiled.asm["ptx"]
        width = "v2.b64" if dtype == torch.float64 else "v4.b32"
        assert set(re.findall(r"(?:ld|st)\.global\.(\S+)", ptx)) == {width}  # 16 bytes a thread, the most there are
        registers, stack = resources(compiled, tmp_path)
        assert registers <= 96 and stack == 0  # nothing spills into memory
    arithmetic = re.findall(r"\b((?:add|mul|fma)\.\S*)f(?:32|64)(?:x2)?\b", passes[0].asm["ptx"])
    assert set(arithmetic) == {"add.rn.", "mul.rn."}  # rounded twice: spikes as on a CPU


def test_compile_for_any_size(launched):
    assert all(compiled.asm["cubin"] for compiled in launched(torch.empty(3, 1, 7, 5, dtype=torch.bfloat16), 90))


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """All kernels of a fused operation, compiled for a GPU when they are launched: name -> what was compiled."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    pytest.importorskip("triton", "3.3", "older Triton has other names for compiling without a GPU")

    def replace(module, arch):
        compiled = {}
        for name, kernel in vars(module).items():
            if isinstance(kernel, triton.runtime.jit.JITFunction) and f"{name}[" in Path(module.__file__).read_text():
                compiled[name] = Launches(kernel, arch)
        for name, launches in compiled.items():
            monkeypatch.setattr(module, name, launches)
        return compiled

    return replace


def fits(launches: dict[str, Launches], tmp_path: Path, spilled: int = 0) -> None:
    """Each kernel was compiled, spills no more than so many bytes, and moves 16 bytes at once in large tensors."""
    for name, launch in launches.items():
        assert launch.compiled, f"{name} was not launched"
        for compiled in launch.compiled:
            used, stack = resources(compiled, tmp_path)
            assert used <= 255 and stack <= spilled, f"{name}: {used} registers, {stack} bytes spilled"
            ptx = compiled.asm["ptx"]
            narrow = {"b32", "b64", "v2.b32"}  # one number a channel, or one byte an element
            wide = set(re.findall(r"ld\.global\.(\S+)", ptx)) - narrow
            copies = set(re.findall(r"cp\.async\.(c[ag])", ptx))  # into shared memory; .cg copies 16 bytes
            assert wide <= {"v4.b32"} and (wide or "cg" in copies), f"{name}: {wide} {copies}"
            assert copies <= {"cg"} or name in ("_attend", "_backward_queries"), name  # K^T V, d x d numbers


def norm_and_neuron(steps: int, C: int, still: bool, dtype: torch.dtype, M: int = 4096) -> None:
    y = torch.empty(1 if still else steps, M, C, dtype=dtype, requires_grad=True)
    weight, bias, mean, var = torch.ones(4, C).requires_grad_().unbind()
    count = torch.zeros((), dtype=torch.long)
    arguments = (mean.detach(), var.detach()), count, None, None, (0.5, 2.0, 2.0), steps, 0.1, 1e-5
    spikes = norm_lif.NormLIF.apply(y, weight, bias, *arguments)
    spikes.backward(torch.empty_like(spikes))


@pytest.mark.parametrize("arch", [pytest.param(a, marks=[] if a == 90 else pytest.mark.slow) for a in GPUS])
@pytest.mark.parametrize("steps", [1, 4, 10, 16])
@pytest.mark.parametrize(("C", "still"), [(384, False), (48, True)])
def test_norm_and_neuron_fit_a_gpu(kernels, tmp_path, C, still, steps, arch):
    launches = kernels(norm_lif, arch)
    norm_and_neuron(steps, C, still, torch.bfloat16)
    assert set(launches) == {"_statistics", "_join", "_fire", "_backward_sums", "_backward_join", "_backward"}
    fits(launches, tmp_path)


def test_norm_and_neuron_move_16_bytes_an_element(kernels):
    """In bfloat16, forward and backward: the tensors of full size that the kernels are given."""
    launches = kernels(norm_lif, 90)
    for launch in launches.values():
        launch.large = 4 * 4096 * 384
    norm_and_neuron(4, 384, False, torch.bfloat16)
    moved = {name: sum(launch.moved) for name, launch in launches.items() if sum(launch.moved)}
    assert moved == {"_statistics": 2, "_fire": 4, "_backward_sums": 4, "_backward": 6}
    page = (Path(__file__).parents[1] / "docs" / "kernels.md").read_text(encoding="utf-8")
    for name, count in moved.items():
        assert re.search(rf"\| `{name}` \|.*\| {count} \|", page)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("arch", GPUS)
def test_norm_and_neuron_fit_in_other_dtypes(kernels, tmp_path, arch, dtype):
    launches = kernels(norm_lif, arch)
    norm_and_neuron(4, 384, False, dtype)
    fits(launches, tmp_path, spilled=8)  # two numbers in float16 on an RTX 50


def test_norm_and_neuron_compile_for_any_size(kernels):
    launches = kernels(norm_lif, 90)
    norm_and_neuron(3, 30, False, torch.bfloat16, M=77)
    assert all(launch.compiled for launch in launches.values())


@pytest.mark.parametrize("arch", [pytest.param(a, marks=[] if a == 90 else pytest.mark.slow) for a in GPUS])
@pytest.mark.parametrize(("T", "N", "d"), [(4, 64, 32), (4, 196, 64), (16, 64, 16)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_attention_and_neuron_fit_a_gpu(kernels, tmp_path, T, N, d, arch, dtype):
    launches = kernels(ssa_lif, arch)
    qkv = torch.empty(T, 2, N, 3 * 12 * d, dtype=dtype, requires_grad=True)
    spikes = ssa_lif.SSALIF.apply(qkv, 12, 0.125, (0.5, 1.0, 2.0))
    spikes.backward(torch.empty_like(spikes))
    assert set(launches) == {"_outer", "_attend", "_backward_queries", "_backward_keys_values"}
    fits(launches, tmp_path)
    assert all(launch.compiled[0].metadata.shared < 99 * 1024 for launch in launches.values())  # of RTX cards


@pytest.mark.parametrize("arch", [pytest.param(a, marks=[] if a == 90 else pytest.mark.slow) for a in GPUS])
def test_max_pool_fits_a_gpu(kernels, tmp_path, arch):
    launches = kernels(max_pool, arch)
    x = torch.empty(8, 32, 32, 192, dtype=torch.bfloat16, requires_grad=True)
    pooled = max_pool.MaxPool.apply(x)
    pooled.backward(torch.empty_like(pooled))
    fits(launches, tmp_path)
