"""LAS and LAZ, through laspy."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from pcssl.data.formats.scan import COLORS, RawScan, ReadOptions, from_columns, is_known, need, one_line, plain_name
from pcssl.errors import UserError

_CHUNK = 1_000_000  # points read at a time, so that a header's count alone makes no room


def read_las(path: Path, options: ReadOptions) -> RawScan:
    """Coordinates as doubles, 16-bit colours, intensity, classification, and extra dimensions of known names."""
    laspy = need("laspy", "laspy[lazrs]", path)
    need("lazrs", "laspy[lazrs]", path)  # which laspy looks for by itself
    chunks: dict[str, list[np.ndarray]] = {}
    try:
        _check_counts(path)
        with laspy.open(path) as file:
            promised = file.header.point_count
            dimensions = file.header.point_format.dimension_names
            names = {plain_name(name): name for name in dimensions if name not in "XYZ" and is_known(plain_name(name))}
            names |= {axis: axis for axis in "xyz"}
            for chunk in file.chunk_iterator(_CHUNK):
                for plain, name in names.items():
                    chunks.setdefault(plain, []).append(np.array(chunk[name]))
    except OSError:
        raise
    except Exception as error:  # laspy and its decoder raise what they like
        raise UserError(
            f"{path}: not a LAS or LAZ file, or cut short or damaged ({one_line(error)}); copy or export it again"
        ) from error
    columns = {name: np.concatenate(parts) for name, parts in chunks.items()}
    if len(columns.get("x", ())) != promised:
        raise UserError(
            f"{path}: cut short or damaged: {len(columns.get('x', ()))} of {promised} points; copy or export it again"
        )
    # Fields that every point format has, whether the scanner filled them or not.
    empty = [group for group in (*COLORS, ("intensity",), ("classification",)) if _all_zero(columns, group)]
    for name in (name for group in empty for name in group):
        del columns[name]
    return from_columns({axis: np.empty(0) for axis in "xyz"} | columns, path)


def _check_counts(path: Path) -> None:
    """Raise ValueError if the header counts more than the file has bytes for.

    Of a damaged count laspy would read billions of empty records, and its decoder would end the process
    for want of memory.
    """
    length = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(255)
        if len(head) < 227:
            raise ValueError(f"{len(head)} bytes, less than a header")
        size, start, records, kind, width, points = struct.unpack_from("<HIIBHI", head, 94)
        if head[24:26] == b"\x01\x04" and len(head) == 255:
            later, points = struct.unpack_from("<IQ", head, 243)
            if later * 60 > length:
                raise ValueError(f"more records after the points than fit into {length} bytes")
        if records * 54 > max(min(start, length) - size, 0):
            raise ValueError(f"more records before the points than fit into {length} bytes")
        if kind & 0x80:  # compressed: the points begin with the place of the table of chunks
            file.seek(start)
            table = int.from_bytes(file.read(8), "little", signed=True)
            file.seek(table if 0 <= table < length else length)
            chunks = int.from_bytes(file.read(8)[4:], "little")
            if chunks * width > length:  # each has its first point as it is
                raise ValueError(f"{chunks} chunks of points in {length} bytes")
        elif start + points * width > length:
            raise ValueError(f"the header promises {points} points of {width} bytes, {length} are there")


def _all_zero(columns: dict[str, np.ndarray], names: tuple[str, ...]) -> bool:
    return all(name in columns and not columns[name].any() for name in names)
