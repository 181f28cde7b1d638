"""The formats of event recordings: what the header of a file says, and its events part by part.

The parsers of others are used where they read part by part: aedat for AEDAT4, expelliarmus for Prophesee's files (both
are what tonic reads with). The other formats are rows of numbers.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

PART = 2**18  # events that are read at a time: 4 MB
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # t in microseconds, x, y, p; one number an event
Sensor = tuple[int, int]  # width and height in pixels
NAMES = (("t", "ts", "timestamp"), ("x",), ("y",), ("p", "pol", "polarity"))  # of columns, in files with names
# Cameras that headers of AEDAT 2 and 3.1 name; SBRet is jAER's earlier name of the DAVIS240.
CHIPS = {"DVS128": (128, 128), "DAVIS240": (240, 180), "SBRet": (240, 180), "DAVIS346": (346, 260)}


@dataclass(frozen=True)
class Opened:
    """A recording whose header was read.

    Attributes:
        format: name of the format.
        sensor: width and height of the camera's sensor if the file states them, else None.
        parts: the events, some at a time, in the order of the file.
    """

    format: str
    sensor: Sensor | None
    parts: Iterator[Columns]


def open_aedat4(path: Path) -> Opened:
    """AEDAT4, of the program DV: the first stream of events, as tonic takes it."""
    import aedat

    if not path.stat().st_size:
        raise ValueError("empty file")
    decoder = aedat.Decoder(str(path))
    streams = {number: what for number, what in decoder.id_to_stream().items() if what["type"] == "events"}
    if not streams:
        raise ValueError("it has no stream of events")
    first = min(streams)

    def parts() -> Iterator[Columns]:
        for packet in decoder:
            if packet["stream_id"] == first:
                events = packet["events"]
                yield events["t"].astype(np.int64), events["x"], events["y"], events[events.dtype.names[3]]

    return Opened("AEDAT4", (streams[first]["width"], streams[first]["height"]), _gathered(parts()))


def _gathered(packets: Iterator[Columns]) -> Iterator[Columns]:
    """Packets of some hundred events, joined to parts of many: each costs the reader the same, however long it is."""
    waiting: list[Columns] = []
    count = 0
    for packet in packets:
        waiting.append(packet)
        count += len(packet[0])
        if count >= PART:
            yield _four([np.concatenate(column) for column in zip(*waiting, strict=True)])
            waiting, count = [], 0
    if waiting:
        yield _four([np.concatenate(column) for column in zip(*waiting, strict=True)])


def open_aedat(path: Path) -> Opened:
    """AEDAT 2.0 of a DVS128 or DAVIS, or AEDAT 3.1."""
    file = open(path, "rb")
    header = []
    start = 0
    while (line := file.readline(10_000)).startswith(b"#"):
        header.append(line)
        start = file.tell()
        if line.startswith((b"#!END-HEADER", b"#End Of ASCII Header")):
            break
    file.seek(start)
    chip = next((c for c in CHIPS if any(c.lower().encode() in text.lower() for text in header)), None)
    version = header[0][1:].strip().decode("latin-1") if header else ""
    if version.startswith("!AER-DAT3.1"):
        return Opened("AEDAT 3.1", CHIPS[chip] if chip else None, _gathered(_aedat3(file)))
    if not version.startswith("!AER-DAT2.0"):
        raise ValueError("neither AEDAT 2.0 nor 3.1: its first line is another")
    if (path.stat().st_size - start) % 8:
        raise ValueError("truncated: it ends in the middle of an event")
    if chip in (None, "DVS128"):
        # CIFAR10-DVS has such files. Without a camera's name the addresses tell whether they are of a DVS128.
        return Opened("AEDAT 2.0", CHIPS["DVS128"], _aedat2(file, _dvs128))
    return Opened("AEDAT 2.0", CHIPS[chip], _aedat2(file, lambda address: _davis(address, *CHIPS[chip])))


def _aedat2(file: IO[bytes], decode: Callable[[np.ndarray], tuple[np.ndarray, ...]]) -> Iterator[Columns]:
    """Pairs of big-endian words, address and time."""
    with file:
        while len(words := np.fromfile(file, dtype=">u4", count=2 * PART)):
            address, t = words.reshape(-1, 2).T.astype(np.int64)
            keep, x, y, p = decode(address)
            yield t[keep], x[keep], y[keep], p[keep]


def _dvs128(address: np.ndarray) -> tuple[np.ndarray, ...]:
    if address.max() >= 2**16:
        raise ValueError("its addresses are not those of a DVS128, and its header names no other camera")
    everything = np.ones(len(address), dtype=bool)
    return everything, 127 - ((address >> 8) & 127), 127 - ((address >> 1) & 127), 1 - (address & 1)


def _davis(address: np.ndarray, width: int, height: int) -> tuple[np.ndarray, ...]:
    events = (address & 0x80000400) == 0  # the other words are of images, of motion sensors and of triggers
    x, y = width - 1 - ((address >> 12) & 1023), height - 1 - ((address >> 22) & 511)
    return events, x, y, (address >> 11) & 1


def _aedat3(file: IO[bytes]) -> Iterator[Columns]:
    """Packets, each with a header of 28 bytes; those of events of polarity have type 1, two words an event."""
    with file:
        while head := file.read(28):
            if len(head) < 28:
                raise ValueError("truncated: it ends in the middle of a packet")
            kind = int(np.frombuffer(head, "<i2", 1)[0])
            size, _, overflow, capacity, number, _ = np.frombuffer(head, "<i4", 6, offset=4).tolist()
            if size < 8 or capacity < 0 or not 0 <= number <= capacity:
                raise ValueError("damaged: a packet of impossible size")
            body = file.read(size * capacity)
            if len(body) < size * capacity:
                raise ValueError("truncated: it ends in the middle of a packet")
            if kind == 1 and number:
                data, t = np.frombuffer(body, "<u4").reshape(capacity, size // 4)[:number, :2].T.astype(np.int64)
                valid = (data & 1) == 1
                t, data = t[valid] + (overflow << 31), data[valid]
                yield t, (data >> 17) & 0x7FFF, (data >> 2) & 0x7FFF, (data >> 1) & 1


def open_bin(path: Path) -> Opened:
    """N-MNIST and N-Caltech101: five bytes an event, x, y, and 24 bits of polarity and microseconds."""
    size = path.stat().st_size
    if size % 5:
        raise ValueError("truncated: it ends in the middle of an event")

    def parts() -> Iterator[Columns]:
        passed = 0
        with open(path, "rb") as file:
            while len(rows := np.fromfile(file, dtype=np.uint8, count=5 * PART).astype(np.int64).reshape(-1, 5)):
                overflow = rows[:, 1] == 240  # no event: 2**13 microseconds have passed
                later = passed + 2**13 * np.cumsum(overflow)
                passed = int(later[-1])
                t = (((rows[:, 2] & 127) << 16) | (rows[:, 3] << 8) | rows[:, 4]) + later
                yield _four([column[~overflow] for column in (t, rows[:, 0], rows[:, 1], rows[:, 2] >> 7)])

    return Opened("N-MNIST", None, parts())


def open_prophesee(path: Path) -> Opened:
    """Prophesee's ``.dat``, and ``.raw`` in EVT2 or EVT3, through expelliarmus."""
    from expelliarmus import Wizard

    header, start = "", 0
    with open(path, "rb") as file:
        while (line := file.readline(10_000)).startswith(b"%"):
            header += line.decode("latin-1")
            start = file.tell()
        file.seek(start)
        first = file.read(2)
    size = path.stat().st_size
    if path.suffix.lower() == ".dat":
        encoding, word, start = "dat", 8, start + 2
        if header and len(first) == 2 and (first[0] not in (0, 12) or first[1] != 8):
            raise ValueError(f"its events are of type {first[0]}, not changes of light")
    else:
        evt = re.search(r"^% *(?:format +EVT|evt +)([\d.]+)", header, re.M | re.I)
        if evt is None or evt[1] not in ("2", "2.0", "3", "3.0"):
            raise ValueError(f"EVT {evt[1]}, not EVT2 or EVT3" if evt else "its header names no format")
        encoding, word = ("evt2", 4) if evt[1][0] == "2" else ("evt3", 2)
    if not header:
        raise ValueError("it has no header of Prophesee's")
    if (size - start) % word or size < start:
        raise ValueError("truncated: it ends in the middle of an event")
    both = [re.search(rf"^% *{name} +(\d+)|\b{name}=(\d+)", header, re.M | re.I) for name in ("width", "height")]
    found = [int(match[1] or match[2]) for match in both if match]
    geometry = re.search(r"^% *geometry +(\d+)x(\d+)", header, re.M | re.I)
    sensor = (int(geometry[1]), int(geometry[2])) if geometry else (found[0], found[1]) if len(found) == 2 else None

    def parts() -> Iterator[Columns]:
        if size == start:
            return  # expelliarmus would not come back
        wizard = Wizard(encoding, fpath=path, chunk_size=PART)
        for events in wizard.read_chunk():
            yield events["t"], events["x"], events["y"], events["p"]
        if wizard.cargo.events_info.start_byte < size:  # it has no other sign of it
            raise ValueError(f"damaged: expelliarmus stops at byte {wizard.cargo.events_info.start_byte:,}")

    return Opened(
        {"dat": "Prophesee DAT", "evt2": "Prophesee EVT2", "evt3": "Prophesee EVT3"}[encoding], sensor, parts()
    )


def open_npz(path: Path) -> Opened:
    """NumPy's ``.npz``: columns t, x, y, p, or one array with these fields."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        heads = {}
        for name in names:
            with archive.open(f"{name}.npy") as member:
                heads[name] = _array_header(member)
    if len(names) == 1 and heads[names[0]][1].names:
        ((shape, dtype),) = heads.values()
        fields = _fields(dtype.names or ())
        members = names
    else:
        members, fields = _fields(names), None
    for column, name in zip("txyp", members, strict=False):
        if len(heads[name][0]) != 1 or heads[name][0] != heads[members[0]][0]:
            wrong = heads[name][0]
            raise ValueError(f"{column} has shape {wrong}, not one number an event")

    def parts() -> Iterator[Columns]:
        with zipfile.ZipFile(path) as archive:
            files = [archive.open(f"{name}.npy") for name in members]
            kinds = [_array_header(file)[1] for file in files]
            left = heads[members[0]][0][0]
            while left:
                count = min(left, PART)
                arrays = [_read(file, kind, count) for file, kind in zip(files, kinds, strict=True)]
                yield _four(arrays if fields is None else [arrays[0][field] for field in fields])
                left -= count
            for file in files:
                file.read(1)  # at the end the archive's checksum is compared

    return Opened("npz", None, parts())


def _four(columns: Sequence[np.ndarray]) -> Columns:
    t, x, y, p = columns
    return t, x, y, p


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array in a file of NumPy's; the file is then at its first element."""
    version = np.lib.format.read_magic(file)
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds other things than numbers")
    return shape, dtype


def _read(file: IO[bytes], dtype: np.dtype, count: int) -> np.ndarray:
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise ValueError("truncated: an array ends too early")
    return np.frombuffer(content, dtype)


def open_npy(path: Path) -> Opened:
    """Events with named fields, t in microseconds; or tonic's DVS128 Gesture: rows x, y, p, t, in milliseconds."""
    large = path.stat().st_size > 2**26  # an empty array cannot be mapped
    rows = np.load(path, mmap_mode="r" if large else None)
    if rows.dtype.names:
        fields = _fields(rows.dtype.names)
        if rows.ndim != 1:
            raise ValueError(f"t has shape {rows.shape}, not one number an event")
    elif rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"shape {rows.shape}, not (N, 4)")

    def parts() -> Iterator[Columns]:
        for start in range(0, len(rows), PART):
            some = rows[start : start + PART]
            if rows.dtype.names:
                yield _four([some[field] for field in fields])
            else:
                x, y, p, t = some.T
                yield 1000 * (t.astype(np.int64) if t.dtype.kind in "biu" else t), x, y, p

    return Opened("npy" if rows.dtype.names else "npy (rows of x, y, p and ms)", None, parts())


def _fields(names: Sequence[str]) -> list[str]:
    """The names that t, x, y and p have in a file."""
    chosen = []
    for group in NAMES:
        found = next((name for name in group if name in names), None)
        if found is None:
            raise ValueError(f"it has no {group[0]!r}, only {', '.join(names)}")
        chosen.append(found)
    return chosen


FORMATS: dict[str, Callable[[Path], Opened]] = {
    ".aedat4": open_aedat4,
    ".aedat": open_aedat,
    ".bin": open_bin,
    ".dat": open_prophesee,
    ".raw": open_prophesee,
    ".npz": open_npz,
    ".npy": open_npy,
}
"""What opens a recording, by suffix."""
BEGINNINGS = {  # first bytes -> suffixes of files that begin so; N-MNIST's files begin with their first event
    b"#!AER-DAT4": (".aedat4",),
    b"#!AER-DAT": (".aedat",),
    b"% ": (".raw", ".dat"),
    b"PK\x03\x04": (".npz",),
    b"\x93NUMPY": (".npy",),
}


def check_beginning(path: Path) -> None:
    """Refuse a file that begins as those of another format.

    Args:
        path: the file.

    Raises:
        ValueError: it does.
    """
    with open(path, "rb") as file:
        start = file.read(10)
    for beginning, suffixes in BEGINNINGS.items():
        if start.startswith(beginning):
            if path.suffix.lower() not in suffixes:
                raise ValueError(f"it begins as a file that ends in {' or '.join(suffixes)}: rename it")
            return
