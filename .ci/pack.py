"""``.ci/pack.py RUN OUT``: a finished run as OUT/NAME.tar.00, .01, ..., which some mailboxes and tools take.

Matrices and kernels are rounded to fp16, which halves the file. ``cat OUT/NAME.tar.* | tar x`` makes a run folder.
"""

import io
import sys
import tarfile
from pathlib import Path

from safetensors.torch import load_file, save

PIECE = 15 * 2**20  # bytes


def pack(run: Path, out: Path) -> list[Path]:
    """Pack a run folder, without what only ``--resume`` needs.

    Args:
        run: the run folder.
        out: folder for the pieces.

    Returns:
        The paths of the pieces.
    """
    weights = load_file(run / "best.safetensors")
    halved = {name: tensor.half() if tensor.dim() > 1 else tensor for name, tensor in weights.items()}
    content = {name: (run / name).read_bytes() for name in ("config.json", "metrics.csv", "results.json")}
    content["best.safetensors"] = save(halved)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(f"{run.name}/{name}")
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    data = whole.getvalue()
    pieces = []
    for number, start in enumerate(range(0, len(data), PIECE)):
        pieces.append(out / f"{run.name}.tar.{number:02}")
        pieces[-1].write_bytes(data[start : start + PIECE])
    return pieces


if __name__ == "__main__":
    for piece in pack(Path(sys.argv[1]), Path(sys.argv[2])):
        print(f"{piece}  {piece.stat().st_size:,} bytes")
