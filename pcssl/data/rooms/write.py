"""ScanNet's raw layout on disk: one folder a scene, the label table and the split lists."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcssl.data.rooms.generate import RoomScan
from pcssl.data.rooms.labels import CATEGORIES, NYU40_NAMES

COLUMNS = ("id", "raw_category", "category", "count", "nyu40id", "eigen13id", "nyuClass", "nyu40class")


def scene_name(index: int) -> str:
    return f"scene{index:04d}_00"


def write_scene(scan: RoomScan, raw_dir: Path, name: str) -> None:
    """Write the five files of a scene; its folder appears only when they are complete."""
    partial, final = raw_dir / "scans" / f".partial_{name}", raw_dir / "scans" / name
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    stem = partial / f"{name}_vh_clean_2"
    _write_ply(stem.with_suffix(".ply"), scan, labels=False)
    _write_ply(stem.with_suffix(".labels.ply"), scan, labels=True)
    segments = {"params": {}, "sceneId": name, "segIndices": scan.segment.tolist()}
    _write_json(partial / f"{name}_vh_clean_2.0.010000.segs.json", segments)
    _write_json(partial / f"{name}.aggregation.json", _aggregation(scan, name))
    numbers = " ".join(f"{x:.9g}" for x in scan.axis_alignment.ravel())
    _write_text(partial / f"{name}.txt", f"axisAlignment = {numbers}\nsceneType = {scan.kind}\n")
    os.replace(partial, final)


def _write_ply(path: Path, scan: RoomScan, labels: bool) -> None:
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    fields += [(c, "u1") for c in ("red", "green", "blue", "alpha")] + [("label", "<u2")] * labels
    vertex = np.empty(len(scan.vertices), fields)
    for i, axis in enumerate("xyz"):
        vertex[axis] = scan.vertices[:, i]
    for i, channel in enumerate(("red", "green", "blue")):
        vertex[channel] = scan.colors[:, i]
    vertex["alpha"] = 255
    if labels:
        vertex["label"] = scan.nyu40
    face = np.empty(len(scan.faces), [("count", "u1"), ("vertices", "<i4", 3)])
    face["count"], face["vertices"] = 3, scan.faces
    names = {"<f4": "float", "u1": "uchar", "<u2": "ushort"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertex)}"]
    header += [f"property {names[kind]} {name}" for name, kind in fields]
    header += [f"element face {len(face)}", "property list uchar int vertex_indices", "end_header"]
    with open(path, "wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        file.write(vertex.tobytes())
        file.write(face.tobytes())


def _aggregation(scan: RoomScan, name: str) -> dict:
    groups = []
    for number, category in enumerate(scan.categories):
        segments = np.unique(scan.segment[scan.instance == number]).tolist()
        groups.append({"id": number, "objectId": number, "segments": segments, "label": category})
    return {"sceneId": name, "appId": "generated", "segGroups": groups}


def write_label_table(raw_dir: Path) -> None:
    """`scannetv2-labels.combined.tsv` with the rows and columns that generated rooms need."""
    lines = ["\t".join(COLUMNS)]
    for name, (raw_id, nyu40) in CATEGORIES.items():
        nyu = NYU40_NAMES[nyu40]
        lines.append("\t".join((str(raw_id), name, name, "1", str(nyu40), "", nyu, nyu)))
    _write_text(raw_dir / "scannetv2-labels.combined.tsv", "\n".join(lines) + "\n")


def write_splits(raw_dir: Path, names: Sequence[str], val: int) -> None:
    """The last `val` scenes are for validation."""
    train = len(names) - val
    for split, members in (("train", names[:train]), ("val", names[train:])):
        _write_text(raw_dir / f"scannetv2_{split}.txt", "".join(f"{n}\n" for n in members))


def write_manifest(raw_dir: Path, manifest: dict) -> None:
    partial = raw_dir / ".partial_rooms.json"
    _write_text(partial, json.dumps(manifest, indent=1) + "\n")
    os.replace(partial, raw_dir / "rooms.json")


def _write_json(path: Path, value: dict) -> None:
    _write_text(path, json.dumps(value, separators=(",", ":")))


def _write_text(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
