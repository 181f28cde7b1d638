"""Events and pictures for the tests of data sets."""

from pathlib import Path

import numpy as np

from spikformer_edu.data.events import EVENT


def some_events(count: int, seed: int = 0, sensor: int = 128, height: int | None = None) -> np.ndarray:
    random = np.random.default_rng(seed)
    events = np.empty(count, dtype=EVENT)
    events["t"] = np.sort(random.integers(0, 1_200_000, count))
    events["x"], events["y"] = random.integers(0, [[sensor], [height or sensor]], (2, count))
    events["p"] = random.integers(0, 2, count)
    return events


def write_npz(path: Path, events: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: events[name] for name in "txyp"})


def write_picture(path: Path, seed: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


# Event files by the published layout of their formats: no package writes these.


def write_bin(path: Path, events: np.ndarray) -> None:
    """N-MNIST: x, y, then polarity and 23 bits of microseconds, big-endian; y = 240 says that 2**13 have passed."""
    rows, passed = [], 0
    for t, x, y, p in events.tolist():
        while t - passed >= 2**23:
            rows.append((x, 240, 0, 0, 0))
            passed += 2**13
        t -= passed
        rows.append((x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.array(rows, dtype=np.uint8).tobytes())


def write_aedat3(path: Path, events: np.ndarray, source: str = "DVS128", packet: int = 1000) -> None:
    """AEDAT 3.1 as cAER writes it; between the packets of events there is one of special events."""
    content = f"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: {source}\r\n#!END-HEADER\r\n".encode()
    for start in range(0, len(events), packet):
        some = events[start : start + packet]
        head = np.array([8, 4, 0, len(some), len(some), len(some)], "<i4").tobytes()
        words = np.empty((len(some), 2), "<u4")
        words[:, 0] = some["x"].astype("<u4") << 17 | some["y"].astype("<u4") << 2 | some["p"].astype("<u4") << 1 | 1
        words[:, 1] = some["t"]
        content += np.array([1, 1], "<i2").tobytes() + head + words.tobytes()
        special = np.array([8, 4, 0, 1, 1, 1, 5, 7], "<i4").tobytes()
        content += np.array([0, 1], "<i2").tobytes() + special
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_davis(path: Path, events: np.ndarray, width: int = 346, height: int = 260) -> None:
    """AEDAT 2.0 of a DAVIS as jAER writes it; every tenth word is of an image."""
    words = []
    for number, (t, x, y, p) in enumerate(events.tolist()):
        if number % 10 == 0:
            words += [1 << 31 | 5, t]
        words += [(height - 1 - y) << 22 | (width - 1 - x) << 12 | p << 11, t]
    head = b"#!AER-DAT2.0\r\n# AEChip: eu.seebetter.ini.chips.davis.DAVIS346B\r\n#End Of ASCII Header\r\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + np.array(words, ">u4").tobytes())


def write_prophesee(path: Path, events: np.ndarray, encoding: str, sensor: tuple[int, int] | None = None) -> None:
    """With expelliarmus; ``sensor`` goes into the header, as Prophesee's own files have it."""
    from expelliarmus import Wizard

    path.parent.mkdir(parents=True, exist_ok=True)
    Wizard(encoding).save(path, events.astype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")]))
    if sensor:
        line = {"dat": "% Width {}\n% Height {}\n", "evt2": "% geometry {}x{}\n"}.get(encoding)
        line = line or "% format EVT3;height={1};width={0}\n% end\n"
        content = path.read_bytes()
        end = 0  # of the header
        while content[end : end + 1] == b"%":
            end = content.index(b"\n", end) + 1
        path.write_bytes(content[:end] + line.format(*sensor).encode() + content[end:])
