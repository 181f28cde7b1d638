"""mypy finds nothing in the package."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TYPED = {"torch": (2, 11), "matplotlib": (3, 10)}  # in older ones some functions have other types, or none


@pytest.mark.slow
def test_mypy_finds_nothing(tmp_path):
    for name, least in TYPED.items():
        version = tuple(int(part) for part in importlib.metadata.version(name).split(".")[:2])
        if version < least:
            pytest.skip(f"{name} {version} has older types: mypy is run with newer ones")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "spikformer_edu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
