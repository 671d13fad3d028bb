"""Points as text, one a line: XYZ, TXT, CSV, ASC, PTS."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from pcssl.data.formats.scan import POSITION, RawScan, ReadOptions, from_columns, is_known, listed, plain_name
from pcssl.errors import UserError

_MOST_LINES = 1000  # before the first point
_MARKS = "#/%"
_SKIP = "-"


@dataclass
class _Start:
    """What stands before the first point. names: of the header, or None; row: the cells of the first point."""

    lines: int
    delimiter: str | None
    names: list[str] | None
    row: list[str]
    promised: int | None


def read_table(path: Path, options: ReadOptions) -> RawScan:
    """Columns by the names of the header, by `options.columns`, or else by their number.

    A line before the points that starts with # // or % is a comment, or the header if it names x, y and z;
    among the points # starts a comment. A lone whole number before the points is their count.
    """
    encoding = _encoding(path)
    with open(path, encoding=encoding, errors="replace") as file:
        start = _find_start(file, path)
    names = _names(start, options.columns, path)
    used = [i for i, name in enumerate(names or start.row) if not names or is_known(name)]
    with open(path, encoding=encoding, errors="replace") as file:
        table = _load(file, start, used, path)
    if start.promised not in (None, len(table)):
        raise UserError(f"{path}: its first line promises {start.promised} points, {len(table)} follow; copy it again")
    if names is None:
        names = _guess_names(table, path)
        used = range(len(names))
    return from_columns({names[i]: table[:, j] for j, i in enumerate(used)}, path)


def _encoding(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in head:
        raise UserError(f"{path}: is not text; give it the extension of its format")
    return "utf-8-sig"


def _cells(line: str) -> tuple[list[str], str | None]:
    """The cells of a line and what divides them; None: any white space."""
    delimiter = next((d for d in (";", ",") if d in line), None)
    return [cell.strip().strip("\"'") for cell in line.strip().split(delimiter)], delimiter


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _find_start(file: TextIO, path: Path) -> _Start:
    names, promised = None, None
    for number, line in enumerate(islice(file, _MOST_LINES)):
        comment = line.lstrip().startswith(tuple(_MARKS))
        cells, delimiter = _cells(line.strip().lstrip(_MARKS) if comment else line.split("#")[0])
        if not any(cells):
            continue
        plain = [plain_name(cell) for cell in cells]
        if all(axis in plain for axis in POSITION):
            names = plain
        elif comment:
            continue
        elif names is None and promised is None and len(cells) == 1 and cells[0].isdecimal():
            promised = int(cells[0])
        elif delimiter == ";" and "," in line and all(re.fullmatch(r"[-+]?\d+(,\d+)?", cell) for cell in cells):
            raise UserError(f"{path}: line {number + 1} has decimal commas; write the numbers with points")
        elif names is not None or any(map(_is_number, cells)):
            return _Start(number, delimiter, names, cells, promised)
        else:
            names = plain  # without x, y and z: of use only with the names of --columns
    if names is None and promised is None:
        raise UserError(f"{path}: has no points; check how it was made")
    raise UserError(f"{path}: has no points after its header; check how it was made")


def _names(start: _Start, given: tuple[str, ...] | None, path: Path) -> list[str] | None:
    """The plain name of each column; None if nobody names them."""
    if given is not None:
        names = [plain_name(name) for name in given]
        unknown = [name for name in names if name != _SKIP and not is_known(name)]
        if unknown:
            known = "x y z r g b nx ny nz intensity label... segment... class... instance, and - for the rest"
            raise UserError(f"{path}: --columns has unknown {', '.join(unknown)}; known: {known}")
        if len(names) != len(start.row):
            raise UserError(f"{path}: has {len(start.row)} columns, --columns names {len(names)}; name each, - skips")
    elif start.names is None:
        return None
    else:
        names = start.names
        if len(names) != len(start.row):
            line = f"line {start.lines + 1} has {len(start.row)}"
            raise UserError(f"{path}: its header names {len(names)} columns, {line}; give --columns")
    lacking = [axis for axis in POSITION if axis not in names]
    if lacking:
        raise UserError(f"{path}: no x, y and z in its columns; it has {listed(names)}; name them with --columns x,y,z")
    words = [n for n, cell in zip(names, start.row) if is_known(n) and n not in POSITION and not _is_number(cell)]
    if words:
        warnings.warn(f"{path}: left out {', '.join(words)}, which holds no numbers", stacklevel=2)
    return [_SKIP if name in words else name for name in names]


def _load(file: TextIO, start: _Start, used: list[int], path: Path) -> np.ndarray:
    """(N, len(used)) float64; UserError names the line that cannot be read."""
    for _ in range(start.lines):
        file.readline()
    every = len(used) == len(start.row)
    try:
        return np.loadtxt(
            file, delimiter=start.delimiter, usecols=None if every else used, quotechar='"', ndmin=2, encoding=None
        )
    except ValueError as error:
        with open(path, encoding=file.encoding, errors="replace") as again:
            what = next(_faults(again, start, used), str(error))
        raise UserError(f"{path}: {what}; correct or remove the line, or copy the file again") from error


def _faults(file: TextIO, start: _Start, used: list[int]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        text = line.split("#")[0].strip()
        if number <= start.lines or not text:
            continue
        cells = [cell.strip().strip('"') for cell in text.split(start.delimiter)]
        if len(cells) != len(start.row):
            yield f"line {number} has {len(cells)} columns, the first point has {len(start.row)}"
        for i in used:
            if i < len(cells) and not _is_number(cells[i]):
                yield f"line {number}: {cells[i][:40]!r} in column {i + 1} is not a number"


def _guess_names(table: np.ndarray, path: Path) -> list[str]:
    """Names of 3, 4, 6, 7 (PTS) or 9 nameless columns; a warning says what the guess was."""
    width = table.shape[1]
    triple = {True: ["nx", "ny", "nz"], False: ["r", "g", "b"]}
    if width == 3:
        return list(POSITION)
    if width == 4:
        rest = ["intensity"]
    elif width == 6:
        rest = triple[_are_unit(table[:, 3:6])]
    elif width == 7 and path.suffix.lower() == ".pts":
        rest = ["intensity", "r", "g", "b"]
    elif width == 9 and _are_unit(table[:, 3:6]) != _are_unit(table[:, 6:9]):
        rest = triple[_are_unit(table[:, 3:6])] + triple[_are_unit(table[:, 6:9])]
    else:
        raise UserError(
            f"{path}: {width} columns without names; name them, e.g. --columns x,y,z,r,g,b,label (- skips one)"
        )
    warnings.warn(
        f"{path}: columns without names, taken as x y z {' '.join(rest)}; if that is wrong give --columns", stacklevel=2
    )
    return [*POSITION, *rest]


def _are_unit(triples: np.ndarray) -> bool:
    """Whether most of (N, 3) are of length 1, as normals are and colours are not."""
    return bool(np.mean(np.abs(np.linalg.norm(triples, axis=1) - 1) < 0.01) > 0.9)
