"""ScanNet++.

    data/<scene>/scans/mesh_aligned_0.05.ply, segments.json, segments_anno.json
    splits/nvs_sem_{train,val}.txt, sem_test.txt
    metadata/semantic_benchmark/top100.txt, map_benchmark.csv
Labels: segment (the benchmark's 100 classes), one a vertex: where objects overlap, the smallest one's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pcssl.data.formats import RawScan, complete, read_raw
from pcssl.data.layouts.files import read_json, read_lists, read_table, read_text, require_folder
from pcssl.data.preparation import RawScene, Source
from pcssl.data.scene import Scene
from pcssl.errors import UserError

LISTS = {"train": "nvs_sem_train.txt", "val": "nvs_sem_val.txt", "test": "sem_test.txt"}
CLASS_FILE = "top100.txt"


def find_scannetpp(raw: str | Path) -> Source:
    """ScanNet++'s scenes under `raw`, in its splits; those that are not downloaded are noted."""
    raw = require_folder(Path(raw), "ScanNet++'s data, metadata and splits")
    split_of = read_lists(raw / "splits", LISTS)
    if not split_of:
        raise UserError(f"{raw}: no splits/nvs_sem_train.txt, nvs_sem_val.txt or sem_test.txt in it; download them")
    benchmark = raw / "metadata" / "semantic_benchmark"
    names = read_text(benchmark / CLASS_FILE).splitlines()
    table = benchmark / "map_benchmark.csv"
    class_of = read_classes(names, table)
    source = Source("scannetpp", "scannetpp 1", raw, [], extra={CLASS_FILE: "\n".join(names) + "\n"})
    present = {folder.name for folder in (raw / "data").glob("*") if (folder / "scans").is_dir()}
    for name in sorted(split_of.keys() & present):
        scans = raw / "data" / name / "scans"
        mesh, segments, annotations = (
            scans / "mesh_aligned_0.05.ply",
            scans / "segments.json",
            scans / "segments_anno.json",
        )
        # The test scenes have no labels.
        labels = (segments, annotations) if segments.exists() or annotations.exists() else None
        files = (mesh, *(labels or ()), *((benchmark / CLASS_FILE, table) if labels else ()))
        source.scenes.append(
            RawScene(name, split_of[name], files, partial(read_scannetpp_scene, name, mesh, labels, class_of))
        )
    if not source.scenes:
        raise UserError(f"{raw}: none of the {len(split_of)} listed scenes is in its data folder; download them")
    source.unlisted = sorted(present - split_of.keys())
    if len(source.scenes) < len(split_of):
        source.notes.append(f"{len(split_of) - len(source.scenes)} listed scenes are not in {raw / 'data'}")
    return source


def read_classes(names: list[str], table: Path) -> dict[str, int]:
    """Raw label -> class: the benchmark's table renames labels ("books" -> "book") and drops some ("None")."""
    index = {name: i for i, name in enumerate(names)}
    target = {
        row["class"]: row["semantic_map_to"] or row["class"]
        for row in read_table(table, ("class", "semantic_map_to"), ",")
    }
    return {label: index[name] for label, name in ({n: n for n in names} | target).items() if name in index}


def read_scannetpp_scene(name: str, mesh: Path, labels: tuple[Path, Path] | None, class_of: dict[str, int]) -> Scene:
    raw = read_raw(mesh)
    raw.labels, raw.instance = {}, None
    if labels:
        _read_labels(raw, *labels, class_of)
    return complete(raw, mesh, name=name)


def _read_labels(raw: RawScan, segments: Path, annotations: Path, class_of: dict[str, int]) -> None:
    try:
        of_vertex = np.asarray(read_json(segments)["segIndices"], dtype=np.int64).reshape(-1)
        groups = [
            (
                class_of[group["label"]],
                int(group["objectId"]),
                np.isin(of_vertex, np.asarray(group["segments"], np.int64)),
            )
            for group in read_json(annotations)["segGroups"]
            if group["label"] in class_of
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{annotations}: not ScanNet++'s segments and groups ({error!r}); download both again"
        ) from error
    if len(of_vertex) != len(raw.coord):
        raise UserError(
            f"{segments}: labels {len(of_vertex)} vertices, the mesh has {len(raw.coord)}; download both again"
        )
    segment, instance = np.full(len(of_vertex), -1), np.full(len(of_vertex), -1)
    # The largest first, so that the smallest stays; of equal ones the first in the file.
    for class_id, object_id, inside in sorted(reversed(groups), key=lambda group: -group[2].sum()):
        segment[inside], instance[inside] = class_id, object_id
    raw.labels, raw.instance = {"segment": segment}, instance
