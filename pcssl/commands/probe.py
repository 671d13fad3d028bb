"""`pcssl probe`: measure how good the features of a checkpoint are."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from pcssl.config import Component, load_config
from pcssl.data.datasets import SceneSource
from pcssl.evaluation import PretrainedModel, ProbeConfig, load_model, probe
from pcssl.training.trainer import pick_device
from pcssl.visualization import PCAColors, contact_sheet, label_colors, render_points, save_png

_DESCRIPTION = """\
Measure how good the features of a checkpoint are, with labels that training has not seen: a linear
layer and cosine nearest neighbours on frozen features, beside random weights and input features.

  python tools/probe.py --checkpoint runs/msm_rooms/checkpoint.pt --data configs/data/rooms.yaml

Writes results.json and pictures of features as colours to --out.
"""


@dataclass(frozen=True)
class ProbeJob:
    """What a file for --data holds."""

    dataset: Annotated[Any, Component("dataset")]
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    imports: tuple[str, ...] = ()


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl probe`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override those of --data")
    parser.add_argument("--checkpoint", required=True, help="of `pcssl train`, or released MSM weights")
    parser.add_argument("--data", required=True, metavar="YAML", help="dataset and protocol, for example configs/data/rooms.yaml")
    parser.add_argument("--out", type=Path, help="folder for the results (default: the checkpoint's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--pictures", type=int, default=3, metavar="N", help="val scenes to draw (default 3)")


def run(args: argparse.Namespace) -> int:
    """Load, probe, write."""
    job = load_config(args.data, ProbeJob, args.overrides)
    # The checkpoint is opened first: a wrong path should not cost the making of a dataset.
    load_model(args.checkpoint)
    out = args.out or Path(args.checkpoint).parent
    probe_and_report(args.checkpoint, job.dataset.build(), job.probe, out, args.device, args.pictures)
    return 0


def probe_and_report(
    checkpoint: str | Path, data: SceneSource, config: ProbeConfig, out: Path, device: str, pictures: int
) -> None:
    """Probe a checkpoint on a dataset, write results.json and pictures to `out`, print the table."""
    begin = time.monotonic()
    model = load_model(checkpoint, pick_device(device))
    found = probe(model, data, config)
    found |= {
        "checkpoint": {"path": str(checkpoint), **model.card},
        "machine": {"platform": platform.platform(), "torch": str(torch.__version__), "threads": torch.get_num_threads()},
        "seconds": round(time.monotonic() - begin, 1),
    }
    if data.groups:
        found["groups"] = group_scores(found["results"], data.groups)
    if data.limit:
        found["limit"] = str(data.limit)
    _write_json(out / "results.json", found)
    print(table(found["results"]))
    for group, scores in found.get("groups", {}).items():
        print(f"{group:16}" + "".join(f"  {source} {100 * next(iter(miou.values())):.1f}" for source, miou in scores.items()))
    print(f"\nresults      {out / 'results.json'}")
    if pictures:
        for path in draw(model, data, config.val_split, pictures, out / "pictures"):
            print(f"picture      {path}")


def group_scores(results: dict[str, Any], groups: dict[str, tuple[int, ...]]) -> dict[str, dict[str, dict[str, float]]]:
    """group -> source -> head -> mean IoU of its classes, without those that the split does not have."""

    def mean(iou: list[float | None], classes: tuple[int, ...]) -> float:
        present = [iou[c] for c in classes if iou[c] is not None]
        return sum(present) / len(present) if present else math.nan

    return {
        group: {
            source: {head: mean(score["iou"], classes) for head, score in scores.items()}
            for source, scores in results.items()
        }
        for group, classes in groups.items()
    }


def table(results: dict[str, Any]) -> str:
    """mIoU in percent, a row a source, mean and standard deviation over seeds."""
    heads = list(next(iter(results.values())))
    lines = [f"{'mIoU, %':16}" + "".join(f"{head:>16}" for head in heads)]
    for source, scores in results.items():
        cells = (f"{100 * scores[h]['miou']['mean']:.1f} +- {100 * scores[h]['miou']['std']:.1f}" for h in heads)
        lines.append(f"{source:16}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def draw(model: PretrainedModel, data: SceneSource, split: str, count: int, folder: Path) -> list[Path]:
    """One picture of the first scenes of a split: colours, labels, and features of the model and of random weights
    as colours that mean the same in every scene."""
    scenes = data.scenes(split)
    shown = [scenes[i] for i in range(min(count, len(scenes)))]
    labels = [label_colors(s.labels[data.label], data.colors) for s in shown]
    columns = {"input": [s.color for s in shown], "labels": labels}
    for title, source in (("trained features", model), ("random weights", model.with_random_weights(0))):
        features = [source.extract(scene).features for scene in shown]
        colors = PCAColors().fit(features)
        columns[title] = [colors(f) for f in features]
    rows = [
        [render_points(scene.coord, colors[i], size=(560, 420), normal=scene.normal) for colors in columns.values()]
        for i, scene in enumerate(shown)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "features.png"
    save_png(path, contact_sheet(rows, [s.name for s in shown], list(columns)))
    return [path]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
