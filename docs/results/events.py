"""Every format of event recordings against the readers of others: ``python docs/results/events.py --out FILE``.

What is compared: every event (t, x, y, p) of a file, as this package and as tonic, expelliarmus or NumPy read it; how
fast on one thread; and the memory that a recording of 50 million events takes on its way to frames. Formats of which
there is no real file are written by ``tests/data/making.py``, by another's writer or by the published layout. For the
real files set SPIKFORMER_EVENTS to a folder with recording_320x240.aedat4 and nmnist/<digit>/*.bin.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from spikformer_edu import cli
from spikformer_edu.atomic import write_json
from spikformer_edu.data.event_formats import PART
from spikformer_edu.data.events import read_events, write_events
from spikformer_edu.provenance import provenance

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "data"))
from making import some_events, write_aedat3, write_bin, write_davis, write_npz, write_prophesee

MANY = 50_000_000
LAYOUT = "by the published layout"


@dataclass(frozen=True)
class Options:
    out: Path
    """JSON file for the results."""
    events: int = 1_000_000
    """Events of a written file."""
    many: int = MANY
    """Events of the long recording."""


def tonic_aedat4(file: Path) -> np.ndarray:
    from tonic.io import read_aedat4

    events = read_aedat4(str(file))
    events.dtype.names = ("t", "x", "y", "p")
    return events


def tonic_bin(file: Path) -> np.ndarray:
    from tonic.datasets import NMNIST
    from tonic.io import read_mnist_file

    return read_mnist_file(str(file), dtype=NMNIST.dtype)


def tonic_words(file: Path) -> np.ndarray:
    from tonic.io import get_aer_events_from_file, read_aedat_header_from_file

    version, start, _ = read_aedat_header_from_file(str(file))
    return get_aer_events_from_file(str(file), version, start)


def tonic_davis(file: Path) -> np.ndarray:
    from tonic.io import read_davis_346

    words = tonic_words(file)["address"]
    return read_davis_346(str(file))[2][words < 2**31]  # tonic takes images for events


def tonic_dvs128(file: Path) -> np.ndarray:
    """tonic's own function fails (1.7.0); its addresses, mirrored as the cameras' own program does."""
    from tonic.io import make_structured_array

    words = tonic_words(file)
    a = words["address"].astype(np.int64)
    return make_structured_array(127 - (a >> 8 & 127), 127 - (a >> 1 & 127), words["timeStamp"], 1 - (a & 1))


def tonic_aedat3(file: Path) -> np.ndarray:
    from tonic.io import make_structured_array

    words = tonic_words(file)
    words = words[words["timeStamp"] != 7]  # the special events, which tonic takes for events
    a = words["address"].astype(np.int64)
    return make_structured_array(a >> 17 & 0x1FFF, a >> 2 & 0x1FFF, words["timeStamp"], a >> 1 & 1)


def expelliarmus(encoding: str) -> Callable[[Path], np.ndarray]:
    def read(file: Path) -> np.ndarray:
        from expelliarmus import Wizard

        return Wizard(encoding).read(file)

    return read


def numpy(file: Path) -> np.ndarray:
    loaded = np.load(file)
    return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in "txyp"}  # type: ignore[return-value]


def dvs128(path: Path, events: np.ndarray) -> None:
    words = np.empty((len(events), 2), ">u4")
    x, y = 127 - events["x"].astype("u4"), 127 - events["y"].astype("u4")
    words[:, 0], words[:, 1] = x << 8 | y << 1 | ~events["p"], events["t"]
    path.write_bytes(b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n" + words.tobytes())


def rate(count: int, work: Callable[[], object]) -> float:
    """Million events a second: the best of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return round(count / min(seconds) / 1e6, 1)


def compare(kind: str, source: str, files: list[Path], other: str, theirs: Callable[[Path], np.ndarray]) -> dict:
    equal, count = True, 0
    for file in files:
        a, b = read_events(file), theirs(file)
        equal &= all(len(b[name]) == len(a) and bool((a[name] == b[name]).all()) for name in "txyp")
        count += len(a)
    row = {"format": kind, "source": source, "events": count, "against": other, "same": equal}
    row["ours"] = rate(count, lambda: [read_events(file) for file in files])
    row["theirs"] = rate(count, lambda: [theirs(file) for file in files])
    print(json.dumps(row), flush=True)
    return row


OURS = """
from spikformer_edu.data.events import read_frames
work = lambda f: read_frames(f, 16, 128, "count", (640, 480))
"""
THEIRS = """
from tonic.transforms import Downsample, ToFrame
from expelliarmus import Wizard
steps = Downsample(sensor_size=(640, 480, 2), target_size=(128, 128)), ToFrame((128, 128, 2), n_event_bins=16)
work = lambda f: steps[1](steps[0](Wizard("dat").read(f)))
"""
MEASURE = """
import re, sys, time
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024  # of Linux
before, start = peak(), time.perf_counter()
frames = work(sys.argv[1])
print(int(frames.sum(dtype="int64")), round(before), round(peak()), time.perf_counter() - start)
"""


def long_recording(path: Path, count: int) -> None:
    """A file of Prophesee's, whose events are made a million at a time."""
    with open(path, "wb") as file:
        file.write(b"% Data file containing CD events\n% Version 2\n% Width 640\n% Height 480\n\x00\x08")
        for start in range(0, count, 10**6):
            events = some_events(min(10**6, count - start), start, 640, 480)
            words = np.empty((len(events), 2), "<u4")
            words[:, 0] = np.arange(start, start + len(events)) * 2
            x, y, p = (events[name].astype("u4") for name in "xyp")
            words[:, 1] = p << 28 | y << 14 | x
            file.write(words.tobytes())


def measure(code: str, file: Path, count: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code + MEASURE, file], capture_output=True, text=True, env=os.environ, check=False
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    total, imports, peak, seconds = done.stdout.split()
    speed = round(count / float(seconds) / 1e6, 1)
    return {"counted": int(total), "MB after imports": int(imports), "peak MB": int(peak), "million a second": speed}


def main(options: Options) -> None:
    """Compare, and write the results."""
    rows, n = [], options.events
    if real := os.environ.get("SPIKFORMER_EVENTS"):
        file = Path(real) / "recording_320x240.aedat4"
        rows.append(compare("AEDAT4, 320 x 240", "real", [file], "tonic", tonic_aedat4))
        files = sorted(Path(real).glob("nmnist/*/*.bin")) + [Path(real) / "nmnist_sample.bin"]
        rows.append(compare("N-MNIST, 34 x 34", "real, four recordings", files, "tonic", tonic_bin))
    with TemporaryDirectory() as folder:
        root = Path(folder)
        vga, dvs, davis = some_events(n, 0, 640, 480), some_events(n), some_events(n, 0, 346, 260)
        small = some_events(n, 0, 34)
        small["t"] *= 20  # more than 23 bits of microseconds
        written: list[tuple[str, str, str, Callable[[Path], None], str, Callable[[Path], np.ndarray]]] = [
            ("AEDAT4", "dv-processing", "a.aedat4", lambda f: write_events(f, vga, (640, 480)), "tonic", tonic_aedat4),
            ("AEDAT 2.0, DVS128", LAYOUT, "b.aedat", lambda f: dvs128(f, dvs), "tonic's words", tonic_dvs128),
            ("AEDAT 2.0, DAVIS346", LAYOUT, "c.aedat", lambda f: write_davis(f, davis), "tonic", tonic_davis),
            ("AEDAT 3.1, DVS128", LAYOUT, "d.aedat", lambda f: write_aedat3(f, dvs), "tonic's words", tonic_aedat3),
            ("N-MNIST, overflows", LAYOUT, "e.bin", lambda f: write_bin(f, small), "tonic", tonic_bin),
            (".npz of t, x, y, p", "NumPy", "f.npz", lambda f: write_npz(f, vga), "NumPy", numpy),
            (".npy with fields", "NumPy", "g.npy", lambda f: np.save(f, vga), "NumPy", numpy),
        ]
        for name, encoding in (("h.dat", "dat"), ("i.raw", "evt2"), ("j.raw", "evt3")):
            write_it = partial(write_prophesee, events=vga, encoding=encoding)
            kind = f"Prophesee {encoding.upper()}"
            written.append((kind, "expelliarmus", name, write_it, "expelliarmus", expelliarmus(encoding)))
        for kind, source, name, write, other, theirs in written:
            write(root / name)
            rows.append(compare(kind, source, [root / name], other, theirs))
            (root / name).unlink()
        long = root / "long.dat"
        long_recording(long, options.many)
        memory = {"events": options.many, "part": PART, "file, MB": round(long.stat().st_size / 1e6)}
        memory |= {"ours": measure(OURS, long, options.many), "theirs": measure(THEIRS, long, options.many)}
    print(json.dumps(memory))
    where = provenance(torch.device("cpu")) | {"command": f"python docs/results/events.py --out {options.out.name}"}
    write_json(
        options.out, {"rows": rows, "long recording": memory, "provenance": where | {"system": platform.system()}}
    )


if __name__ == "__main__":
    cli.run(main, "python docs/results/events.py")
