"""Matterport3D's regions: one scene a room-like region of a house.

    <house>/region_segmentations/region<k>.ply             (also below v1/scans/, or <house>/<house>/ as unpacked)
    <house>/region_segmentations/region<k>.fsegs.json      segment of every face
    <house>/region_segmentations/region<k>.semseg.json     objects: their segments and raw label
    category_mapping.tsv                                   raw label -> NYU40 id, from the dataset's repository
Labels: segment21, ScanNet's 20 classes and ceiling; a vertex has what most of its faces have.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pcssl.data.formats import RawScan, complete, read_raw
from pcssl.data.layouts.files import read_json, read_lists, read_table, require_folder
from pcssl.data.preparation import RawScene, Source
from pcssl.data.scannet_classes import SCANNET20_COLORS, SCANNET20_IDS, SCANNET20_NAMES
from pcssl.data.scene import Scene
from pcssl.errors import UserError

CATEGORIES = "category_mapping.tsv"
CLASSES = (*SCANNET20_NAMES, "ceiling")
COLORS = (*SCANNET20_COLORS, (78, 71, 183))
_NYU40_IDS = (*SCANNET20_IDS, 22)
_LISTS = {split: f"matterport3d_{split}.txt" for split in ("train", "val", "test")}


def find_matterport3d(raw: str | Path, categories: str | Path | None = None) -> Source:
    """The regions under `raw`, as <house>_region<k>, in the benchmark's splits of houses.

    categories: the table of labels; by default RAW/category_mapping.tsv or RAW/metadata/category_mapping.tsv.
    """
    raw = require_folder(Path(raw), "Matterport3D's houses")
    meshes = {
        f"{mesh.parents[1].name}_{mesh.stem}": mesh for mesh in sorted(raw.glob("**/region_segmentations/region*.ply"))
    }
    if not meshes:
        raise UserError(
            f"{raw}: no regions found; expected <house>/region_segmentations/region0.ply; unpack the zip files"
        )
    table = _find_table(raw, categories)
    class_of = read_classes(table)
    split_of = read_lists(Path(__file__).parents[1] / "splits", _LISTS)
    source = Source("matterport3d", "matterport3d 1", raw, [])
    for name, mesh in sorted(meshes.items()):
        split = split_of.get(mesh.parents[1].name)
        if split is None:
            source.unlisted.append(name)
            continue
        files = (mesh, mesh.with_suffix(".fsegs.json"), mesh.with_suffix(".semseg.json"), table)
        source.scenes.append(RawScene(name, split, files, partial(read_region, name, mesh, class_of)))
    if not source.scenes:
        raise UserError(f"{raw}: none of its {len(meshes)} regions is of one of Matterport3D's 90 houses")
    return source


def _find_table(raw: Path, given: str | Path | None) -> Path:
    places = [Path(given)] if given else [raw / CATEGORIES, raw / "metadata" / CATEGORIES]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise UserError(f"{places[0]}: no such file; copy metadata/{CATEGORIES} of the Matterport3D repository there")
    return found


def read_classes(table: Path) -> dict[str, int]:
    """Raw label -> class of the 21; labels of other NYU40 classes are left out."""
    rows = read_table(table, ("raw_category", "nyu40id"))
    ids = {row["raw_category"]: int(row["nyu40id"]) for row in rows if row["nyu40id"].isdigit()}
    return {label: _NYU40_IDS.index(nyu40) for label, nyu40 in ids.items() if nyu40 in _NYU40_IDS}


def read_region(name: str, mesh: Path, class_of: dict[str, int]) -> Scene:
    raw = read_raw(mesh)
    raw.labels, raw.instance = {}, None
    if raw.face is None:
        raise UserError(f"{mesh}: has no faces, which the labels belong to; download it again")
    _read_labels(raw, mesh.with_suffix(".fsegs.json"), mesh.with_suffix(".semseg.json"), class_of)
    return complete(raw, mesh, name=name)


def _read_labels(raw: RawScan, segments: Path, objects: Path, class_of: dict[str, int]) -> None:
    try:
        of_face = np.asarray(read_json(segments)["segIndices"], dtype=np.int64).reshape(-1)
        ids, row = np.unique(of_face, return_inverse=True)
        of_segment = np.full((len(ids), 2), -1)
        for number, group in enumerate(read_json(objects)["segGroups"]):
            value = (class_of.get(group["label"], -1), number)
            of_segment[np.isin(ids, np.asarray(group["segments"], dtype=np.int64))] = value
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{objects}: not Matterport3D's segments and objects ({error!r}); download both again"
        ) from error
    if len(of_face) != len(raw.face):
        raise UserError(f"{segments}: labels {len(of_face)} faces, the mesh has {len(raw.face)}; download both again")
    face_labels = of_segment[row.reshape(-1)]
    segment, instance = (majority(raw.face, values, len(raw.coord)) for values in face_labels.T)
    raw.labels, raw.instance = {"segment21": segment}, instance


def majority(face: np.ndarray, label: np.ndarray, points: int) -> np.ndarray:
    """(points,) the label that most faces of a vertex have, of equally many the lowest; -1 without faces.

    face: (F, 3) int64. label: (F,) int64, at least -1.
    """
    pairs, count = np.unique(np.stack([face.reshape(-1), np.repeat(label, 3)]), axis=1, return_counts=True)
    vertex, value = pairs
    order = np.lexsort((-value, count, vertex))  # the last of a vertex is its majority
    last = np.append(vertex[order][1:] != vertex[order][:-1], True)
    found = np.full(points, -1)
    found[vertex[order][last]] = value[order][last]
    return found
