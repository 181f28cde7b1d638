"""Where a result was made: command, commit, versions, hardware."""

import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .version import __version__


def provenance(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Where a run was made: command, commit, versions, hardware.

    Args:
        device: where it computes.
        processes: number of processes that compute together.
    """
    import snntorch

    return {
        "command": " ".join(["python", "-m", "spikformer_edu.train", *sys.argv[1:]]),
        "commit": _commit(),
        "spikformer_edu": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "snntorch": snntorch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def _commit() -> str:
    """The commit of this package; empty unless it runs from a repository of its own.

    Git also answers in a foreign repository that merely contains the package, installed or as a copy.
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", here.parent, *arguments], capture_output=True, text=True, check=False)
        except OSError:  # no git on this machine
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    if not git("ls-files", "--error-unmatch", here.name):
        return ""
    root, project = Path(git("rev-parse", "--show-toplevel")), here.parents[1] / "pyproject.toml"
    if root != project.parent or not project.is_file() or 'name = "spikformer-edu"' not in project.read_text("utf-8"):
        return ""
    return git("rev-parse", "HEAD") + (" with local changes" if git("status", "--porcelain") else "")


def _processor() -> str:
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
