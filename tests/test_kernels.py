"""The GPU kernels of the neuron, without a GPU: against the plain loops, and as the machine code that GPUs will run."""

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
POINTER = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def test_kernels_equal_the_loops():
    cases = Path(__file__).parent / "triton_cases.py"
    # Triton decides when it is imported whether it interprets: hence a process of its own.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", str(cases)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(re.findall(r"\.", done.stdout.split("[100%]")[0])) == 39, done.stdout


class Launches:
    """In place of a kernel: compiles it for a GPU of the given architecture, as it would be launched there."""

    def __init__(self, kernel, arch: int):
        self.kernel, self.arch, self.compiled = kernel, arch, []

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **options):
        kinds, fixed, divisible = {}, {}, {}
        for i, (parameter, arg) in enumerate(zip(self.kernel.params, args, strict=True)):
            tensor = isinstance(arg, torch.Tensor)
            kinds[parameter.name] = POINTER[arg.dtype] if tensor else "i32"
            if parameter.is_constexpr:
                kinds[parameter.name], fixed[(i,)] = "constexpr", arg
            elif tensor or arg % 16 == 0:  # what Triton makes use of at a launch; PyTorch aligns its memory
                divisible[(i,)] = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(self.kernel, kinds, fixed, divisible)
        target = triton.backends.compiler.GPUTarget("cuda", self.arch, 32)
        self.compiled.append(triton.compile(source, target=target, options=options))


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


@pytest.mark.parametrize("arch", [80, 90, 120])  # A100, H100 and H200, RTX 50
@pytest.mark.parametrize("dtype", POINTER)
def test_compile_for_gpus_that_are_not_there(launched, tmp_path, dtype, arch):
    passes = launched(torch.empty(4, 2, 48, 32, 32, dtype=dtype), arch)
    for compiled in passes:
        ptx = compiled.asm["ptx"]
        width = "v2.b64" if dtype == torch.float64 else "v4.b32"
        assert set(re.findall(r"(?:ld|st)\.global\.(\S+)", ptx)) == {width}  # 16 bytes a thread, the most there are
        (tmp_path / "cubin").write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", tmp_path / "cubin"], capture_output=True, text=True, check=True)
        (registers,), (stack,) = re.findall(r"REG:(\d+)", usage.stdout), re.findall(r"STACK:(\d+)", usage.stdout)
        assert int(registers) <= 96 and stack == "0"  # nothing spills into memory
    arithmetic = re.findall(r"\b((?:add|mul|fma)\.\S*)f(?:32|64)(?:x2)?\b", passes[0].asm["ptx"])
    assert set(arithmetic) == {"add.rn.", "mul.rn."}  # rounded twice: spikes as on a CPU


def test_compile_for_any_size(launched):
    assert all(compiled.asm["cubin"] for compiled in launched(torch.empty(3, 1, 7, 5, dtype=torch.bfloat16), 90))
