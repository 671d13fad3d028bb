"""ScanNet's raw layout.

Raw, one folder a scene in RAW, RAW/scans or RAW/scans_test:
    <scene>_vh_clean_2.ply                   the mesh
    <scene>.aggregation.json (or <scene>_vh_clean.aggregation.json) and
    <scene>_vh_clean_2.0.010000.segs.json    labels and instances, by segments of the mesh
    <scene>_vh_clean_2.labels.ply            without those two: NYU40 ids of the vertices
    <scene>.txt                              may hold the axis alignment
Labels: segment20 and segment200.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pcssl.data.formats import RawScan, complete, read_raw
from pcssl.data.layouts.files import read_json, read_lists, read_table, read_text, require_folder
from pcssl.data.preparation import RawScene, Source
from pcssl.data.scannet_classes import SCANNET20_IDS, SCANNET200_IDS
from pcssl.data.scene import Scene
from pcssl.errors import UserError

LABEL_MAP = "scannetv2-labels.combined.tsv"
LISTS = {split: f"scannetv2_{split}.txt" for split in ("train", "val", "test")}
# The official v2 lists (1201, 312 and 100 scenes), as ScanNet's benchmark scripts bring them.
OFFICIAL_LISTS = Path(__file__).parents[1] / "splits"
_OFFICIAL_NAME = re.compile(r"scene\d{4}_\d{2}")


@dataclass
class LabelMap:
    """Category name -> position in the 20 and in the 200 classes; names without a class are left out."""

    to20: dict[str, int]
    to200: dict[str, int]


def find_scannet(raw: str | Path, splits: str | Path | None = None, labels_tsv: str | Path | None = None) -> Source:
    """ScanNet's scenes under `raw`.

    splits: folder with scannetv2_{train,val,test}.txt; by default looked up in raw, raw/splits and
        raw/meta_data, then the official lists where the names are ScanNet's. Without any list all
        scenes go to train (those in raw/scans_test to test).
    labels_tsv: ScanNet's label map; by default looked up where the lists are.
    Raises UserError when there is nothing to prepare from.
    """
    raw = Path(raw)
    folders = find_scenes(raw)
    places = [raw, raw / "splits", raw / "meta_data"]
    source = Source("scannet", "scannet 1", raw, [])
    split_of = _assign_splits(folders, places, None if splits is None else Path(splits), source)
    tsv = label_map = None
    if any(_find_labels(folders[name])[0] for name in split_of):
        tsv = _find_label_map(places, splits, labels_tsv)
        label_map = read_label_map(tsv)
    for name, split in split_of.items():
        files = _files(folders[name]) + ([tsv] if tsv and _find_labels(folders[name])[0] else [])
        source.scenes.append(RawScene(name, split, tuple(files), partial(read_scannet_scene, folders[name], label_map)))
    return source


def _files(folder: Path) -> list[Path]:
    """The files that a scene is made from; the mesh also when it is missing, for the error."""
    name = folder.name
    info = folder / f"{name}.txt"
    aggregation, segments, vertex_labels = _find_labels(folder)
    labels = [aggregation, segments] if aggregation or segments else [vertex_labels]
    return [folder / f"{name}_vh_clean_2.ply", *filter(None, labels), *([info] if info.exists() else [])]


def read_scannet_scene(folder: str | Path, label_map: LabelMap | None = None) -> Scene:
    """One raw scene folder. Raises UserError for a missing or broken file."""
    folder = Path(folder)
    name = folder.name
    mesh = folder / f"{name}_vh_clean_2.ply"
    raw = read_raw(mesh)
    # What a mesh may carry under these names is not known to be ScanNet's numbering.
    raw.labels, raw.instance = {}, None
    _read_labels(raw, folder, label_map)
    _align(raw, folder / f"{name}.txt")
    return complete(raw, mesh, name=name)


def find_scenes(raw: Path) -> dict[str, Path]:
    """Scene name -> folder, sorted; UserError if there is none."""
    require_folder(raw, "ScanNet's scene folders")
    found: dict[str, Path] = {}
    for parent in (raw, raw / "scans", raw / "scans_test"):
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            if folder.is_dir() and _is_scene(folder):
                found.setdefault(folder.name, folder)
    if not found:
        hint = "it is a scene itself, give the folder above it" if _is_scene(raw) else (
            "expected <scene>/<scene>_vh_clean_2.ply in it, in its scans or in its scans_test"
        )  # fmt: skip
        raise UserError(f"{raw}: no scenes found; {hint}")
    return dict(sorted(found.items()))


def _is_scene(folder: Path) -> bool:
    """Also when its mesh is missing, so that a download that stopped halfway is reported."""
    if _OFFICIAL_NAME.fullmatch(folder.name):
        return True
    return any(p.name.startswith((f"{folder.name}_vh_clean", f"{folder.name}.aggregation")) for p in folder.iterdir())


def _assign_splits(scenes: dict[str, Path], places: list[Path], given: Path | None, result: Source) -> dict[str, str]:
    """Scene -> split for the scenes to prepare; unlisted ones and notes go into the result."""
    if given is not None:
        source, lists = given, read_lists(given, LISTS)
        if not lists:
            raise UserError(
                f"{given}: no scannetv2_train.txt, _val.txt or _test.txt in it; give the folder of the lists"
            )
    else:
        source, lists = next(((p, found) for p in places if (found := read_lists(p, LISTS))), (None, {}))
        if not lists and any(_OFFICIAL_NAME.fullmatch(name) for name in scenes):
            source, lists = "ScanNet v2", read_lists(OFFICIAL_LISTS, LISTS)
    if not lists:
        result.notes.append("no split list found: all scenes go to train, those in scans_test to test")
        return {name: "test" if f.parent.name == "scans_test" else "train" for name, f in scenes.items()}
    result.unlisted = [name for name in scenes if name not in lists]
    if len(result.unlisted) == len(scenes):
        some = ", ".join(list(scenes)[:3])
        raise UserError(f"none of the {len(scenes)} scenes ({some}, ...) is in the lists of {source}; check --splits")
    if result.unlisted:
        some = ", ".join(result.unlisted[:3]) + (", ..." if len(result.unlisted) > 3 else "")
        result.notes.append(f"left out {len(result.unlisted)} scenes that {source} does not list: {some}")
    return {name: lists[name] for name in scenes if name in lists}


def _find_label_map(places: list[Path], splits: str | Path | None, given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    places = places + ([] if splits is None else [Path(splits)])
    for place in places:
        if (place / LABEL_MAP).exists():
            return place / LABEL_MAP
    raise UserError(f"{places[0]}: no {LABEL_MAP}, which the labels need; download it or give --labels-tsv")


def read_label_map(path: Path) -> LabelMap:
    """Read ScanNet's table of categories; of a category listed twice the first line counts."""
    rows = read_table(path, ("id", "raw_category", "nyu40id"))
    seen: set[str] = set()
    label_map = LabelMap({}, {})
    for line, row in enumerate(rows, 2):
        category = row["raw_category"]
        if category in seen:
            continue
        seen.add(category)
        for column, ids, classes in (
            ("nyu40id", SCANNET20_IDS, label_map.to20),
            ("id", SCANNET200_IDS, label_map.to200),
        ):
            text = row[column].strip()
            if text and not text.isdigit():
                raise UserError(f"{path}: line {line}: {column} is {text!r}, not a number; get the file again")
            if text and int(text) in ids:
                classes[category] = ids.index(int(text))
    return label_map


def _find_labels(folder: Path) -> tuple[Path | None, Path | None, Path | None]:
    """The aggregation, segments and labels.ply files of a scene, None where absent."""
    name = folder.name
    aggregations = (f"{name}.aggregation.json", f"{name}_vh_clean.aggregation.json")
    aggregation = next((folder / a for a in aggregations if (folder / a).exists()), None)
    segments = folder / f"{name}_vh_clean_2.0.010000.segs.json"
    vertex_labels = folder / f"{name}_vh_clean_2.labels.ply"
    return aggregation, segments if segments.exists() else None, vertex_labels if vertex_labels.exists() else None


def _read_labels(raw: RawScan, folder: Path, label_map: LabelMap | None) -> None:
    """Fill raw.labels and raw.instance as far as the scene's files tell."""
    aggregation, segments, vertex_labels = _find_labels(folder)
    if aggregation and segments:
        if label_map is None:
            raise UserError(f"{aggregation}: needs the label map {LABEL_MAP}; give it with --labels-tsv")
        _read_segment_labels(raw, aggregation, segments, label_map)
    elif vertex_labels:
        nyu40 = read_raw(vertex_labels).labels.get("label")
        if nyu40 is None:
            raise UserError(f"{vertex_labels}: its vertices have no integer 'label'; download it again")
        _same_length(vertex_labels, len(nyu40), raw)
        raw.labels["segment20"] = _class_of_nyu40(nyu40)
    elif aggregation or segments:
        have, lack = ("aggregation", "segs") if aggregation else ("segs", "aggregation")
        raise UserError(
            f"{aggregation or segments}: the {lack}.json that goes with this {have}.json is missing; get it"
        )


def _class_of_nyu40(nyu40: np.ndarray) -> np.ndarray:
    table = np.full(max(SCANNET20_IDS) + 2, -1)
    table[list(SCANNET20_IDS)] = np.arange(len(SCANNET20_IDS))
    beyond = len(table) - 1  # holds -1
    known = (nyu40 >= 0) & (nyu40 < beyond)
    return table[np.where(known, nyu40, beyond)]


def _read_segment_labels(raw: RawScan, aggregation: Path, segments: Path, label_map: LabelMap) -> None:
    try:
        of_vertex = np.asarray(read_json(segments)["segIndices"], dtype=np.int64).reshape(-1)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{segments}: no list of integers 'segIndices' in it; download it again") from error
    _same_length(segments, len(of_vertex), raw)
    ids, row = np.unique(of_vertex, return_inverse=True)
    row = row.reshape(-1)
    of_segment = np.full((len(ids), 3), -1)
    try:
        for group in read_json(aggregation)["segGroups"]:
            category = group["label"]
            value = (label_map.to20.get(category, -1), label_map.to200.get(category, -1), int(group["id"]))
            of_segment[np.isin(ids, np.asarray(group["segments"], dtype=np.int64))] = value
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{aggregation}: not the 'segGroups' of ScanNet ({error!r}); download it again") from error
    raw.labels = {"segment20": of_segment[row, 0], "segment200": of_segment[row, 1]}
    raw.instance = of_segment[row, 2]


def _same_length(path: Path, length: int, raw: RawScan) -> None:
    if length != len(raw.coord):
        raise UserError(f"{path}: labels {length} vertices, the mesh has {len(raw.coord)}; download both again")


def _align(raw: RawScan, info: Path) -> None:
    """Turn the scan so that its walls follow the axes, where ScanNet says how."""
    lines = read_text(info).splitlines() if info.exists() else []
    text = next((line.partition("=")[2] for line in lines if line.partition("=")[0].strip() == "axisAlignment"), None)
    if text is None:
        return
    try:
        matrix = np.array(text.split(), dtype=np.float64)
    except ValueError:
        matrix = np.empty(0)
    if matrix.shape != (16,) or not np.isfinite(matrix).all():
        raise UserError(f"{info}: axisAlignment is not 16 numbers; download it again or delete the line")
    matrix = matrix.reshape(4, 4)
    raw.coord = raw.coord @ matrix[:3, :3].T + matrix[:3, 3]
    if raw.normal is not None:
        raw.normal = raw.normal @ matrix[:3, :3].T
