"""Text and JSON files of raw datasets, with errors that name the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from pcssl.errors import UserError


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file, or damaged; get it again") from error


def read_json(path: Path) -> dict:
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON, or cut short ({error}); download it again") from error


def read_table(path: Path, needed: Iterable[str], delimiter: str = "\t") -> list[dict[str, str]]:
    """The rows of a table with a header; UserError if a column is missing."""
    rows = csv.DictReader(read_text(path).splitlines(), delimiter=delimiter)
    missing = [column for column in needed if column not in (rows.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; is it the file that this dataset brings?")
    return [{key: value or "" for key, value in row.items() if key is not None} for row in rows]


def read_lists(folder: Path, names: dict[str, str]) -> dict[str, str]:
    """Scene -> split, from the lists in a folder (split -> file name); empty if it has none of them."""
    split_of: dict[str, str] = {}
    for split, file in names.items():
        path = folder / file
        for scene in read_text(path).split() if path.exists() else ():
            if split_of.setdefault(scene, split) != split:
                raise UserError(f"{path}: {scene} is also in the {split_of[scene]} list; keep it in one")
    return split_of


def require_folder(raw: Path, what: str) -> Path:
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; give the one that holds {what}")
    return raw
