"""The GPU kernels of the neuron against the plain loops, in Triton's interpreter where there is no GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: it comes with PyTorch on Linux")


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
