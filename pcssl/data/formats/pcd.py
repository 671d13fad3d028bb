"""PCD, the format of the Point Cloud Library: ascii, binary and binary_compressed.

Read here and not by a library: the readers there are bring a model validator and a C extension for a
header of ten lines, and make room for what a damaged header promises.
"""

from __future__ import annotations

import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pcssl.data.formats.scan import RawScan, ReadOptions, from_columns, one_line, plain_name
from pcssl.errors import UserError

_KINDS = {"F": {4, 8}, "U": {1, 2, 4, 8}, "I": {1, 2, 4, 8}}
_MOST_LINES = 100  # of a header; a file without DATA by then is something else


@dataclass
class _Header:
    names: list[str]  # "_" is padding
    dtypes: list[np.dtype]
    counts: list[int]  # values a point has of each field
    points: int
    encoding: str


def read_pcd(path: Path, options: ReadOptions) -> RawScan:
    """The fields of one value a point, rgb and rgba unpacked. VIEWPOINT is not applied."""
    try:
        with open(path, "rb") as file:
            header = _read_header(file)
            values = {"ascii": _read_ascii, "binary": _read_binary, "binary_compressed": _read_compressed}
            columns = values[header.encoding](file, header)
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise UserError(
            f"{path}: not a PCD file, or cut short or damaged ({one_line(error)}); copy or export it again"
        ) from error
    for name in ("rgb", "rgba"):
        if name in columns:
            packed = _bits(columns.pop(name), header.encoding)
            columns |= {c: (packed >> shift & 255).astype(np.uint8) for c, shift in zip("rgb", (16, 8, 0))}
    return from_columns(columns, path)


def _read_header(file: BinaryIO) -> _Header:
    entries: dict[str, list[str]] = {}
    for _ in range(_MOST_LINES):
        words = file.readline(65536).decode("ascii", "replace").split()
        if words and not words[0].startswith("#"):
            entries[words[0].upper()] = words[1:]
        if "DATA" in entries:
            break
    lacking = [key for key in ("FIELDS", "SIZE", "TYPE", "WIDTH", "HEIGHT", "DATA") if not entries.get(key)]
    if lacking:
        raise ValueError(f"its header has no {', '.join(lacking)}")
    names, sizes, kinds = entries["FIELDS"], [int(s) for s in entries["SIZE"]], entries["TYPE"]
    counts = [int(c) for c in entries.get("COUNT", ["1"] * len(names))]
    if not len(names) == len(sizes) == len(kinds) == len(counts) or min(counts) < 0:
        raise ValueError("FIELDS, SIZE, TYPE and COUNT do not agree")
    for kind, size in zip(kinds, sizes):
        if size not in _KINDS.get(kind, ()):
            raise ValueError(f"a field of TYPE {kind} and SIZE {size}")
    width, height = int(entries["WIDTH"][0]), int(entries["HEIGHT"][0])
    points = int(entries.get("POINTS", [width * height])[0])
    if points != width * height or points < 0:
        raise ValueError(f"POINTS {points} is not WIDTH {width} times HEIGHT {height}")
    encoding = entries["DATA"][0].lower()
    if encoding not in ("ascii", "binary", "binary_compressed"):
        raise ValueError(f"DATA {encoding}; known: ascii, binary, binary_compressed")
    return _Header(names, [np.dtype(f"<{k.lower()}{s}") for k, s in zip(kinds, sizes)], counts, points, encoding)


def _read_ascii(file: BinaryIO, header: _Header) -> dict[str, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy's, of no lines; the count says it
        table = np.loadtxt(file, ndmin=2, encoding="ascii")
    width = sum(header.counts)
    if len(table) != header.points or (len(table) and table.shape[1] != width):
        shape = f"{len(table)} rows of {table.shape[1]} values"
        raise ValueError(f"cut short: {shape}, but the header says {header.points} of {width}")
    starts = np.cumsum([0, *header.counts])
    table = table.reshape(-1, width)
    return {
        name: column if dtype.kind == "f" else column.astype(dtype)
        for name, dtype, column in (
            (plain_name(name), dtype, table[:, start])
            for name, dtype, count, start in zip(header.names, header.dtypes, header.counts, starts)
            if count == 1 and name != "_"
        )
    }


def _read_binary(file: BinaryIO, header: _Header) -> dict[str, np.ndarray]:
    layout = [(f"{i}", dtype, (count,)) for i, (dtype, count) in enumerate(zip(header.dtypes, header.counts))]
    _check_follows(file, header.points * np.dtype(layout).itemsize)
    table = np.fromfile(file, layout, header.points)
    return {
        plain_name(name): table[f"{i}"][:, 0]
        for i, (name, count) in enumerate(zip(header.names, header.counts))
        if count == 1 and name != "_"
    }


def _read_compressed(file: BinaryIO, header: _Header) -> dict[str, np.ndarray]:
    packed, unpacked = struct.unpack("<II", file.read(8))
    sizes = [header.points * count * dtype.itemsize for dtype, count in zip(header.dtypes, header.counts)]
    if unpacked != sum(sizes):
        raise ValueError(f"{unpacked} bytes of points, but the header says {sum(sizes)}")
    _check_follows(file, packed)
    content = _decompress_lzf(file.read(packed), unpacked)
    starts = np.cumsum([0, *sizes])  # one field after the other, not one point after the other
    return {
        plain_name(name): np.frombuffer(content, dtype, header.points, start)
        for name, dtype, count, start in zip(header.names, header.dtypes, header.counts, starts)
        if count == 1 and name != "_"
    }


def _check_follows(file: BinaryIO, needed: int) -> None:
    present = os.fstat(file.fileno()).st_size - file.tell()
    if needed > present:
        raise ValueError(f"cut short: the header promises {needed} bytes, {present} follow")


def _decompress_lzf(data: bytes, size: int) -> bytearray:
    """Undo LibLZF: a control byte below 32 starts a run of new bytes, others repeat earlier ones.

    About 30 MB a second. Raises ValueError or IndexError unless `data` holds exactly `size` bytes.
    """
    out = bytearray()
    at = 0
    while at < len(data) and len(out) < size:
        control = data[at]
        if control < 32:
            out += data[at + 1 : at + control + 2]
            at += control + 2
            continue
        length = (control >> 5) + 2
        if length == 9:
            at += 1
            length += data[at]
        start = len(out) - ((control & 31) << 8) - data[at + 1] - 1
        at += 2
        if start < 0:
            raise ValueError("its compressed points refer to bytes before the first")
        earlier = out[start : start + length]
        # a repeat may reach into itself: a period shorter than its length goes on
        out += earlier if len(earlier) == length else (earlier * (length // len(earlier) + 1))[:length]
    if len(out) != size:
        raise ValueError(f"its compressed points are {len(out)} bytes, not {size}")
    return out


def _bits(values: np.ndarray, encoding: str) -> np.ndarray:
    """(N,) uint32 0xAARRGGBB, that PCL keeps in an integer or in the bits of a float32."""
    if values.dtype.kind in "iu":
        return values.astype(np.uint32)
    if encoding == "ascii" and np.nanmax(np.append(values, 0)) >= 1:  # bits without alpha are below 1e-37
        return np.nan_to_num(values, posinf=0, neginf=0).clip(0, 2**32 - 1).astype(np.uint32)
    return np.ascontiguousarray(values, dtype="<f4").view("<u4")
