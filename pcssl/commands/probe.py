"""`pcssl probe`: measure how good the features of a checkpoint are."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pcssl.config import Component, load_config, to_dict
from pcssl.data.datasets import SceneSource
from pcssl.errors import UserError
from pcssl.evaluation import (
    ImageProbeConfig,
    PretrainedModel,
    ProbeConfig,
    load_image_model,
    load_model,
    probe,
    probe_images,
)
from pcssl.evaluation.ceilings import budget
from pcssl.evaluation.report import (
    image_markdown,
    instance_table,
    layer_table,
    markdown,
    ratios,
    robustness_table,
    table,
)
from pcssl.image.datasets import ImageSource
from pcssl.sparse import current_engine, use_engine
from pcssl.training.trainer import pick_device
from pcssl.version import commit, pcssl_version
from pcssl.visualization import PCAColors, bar_chart, contact_sheet, label_colors, render_points, save_png

_DESCRIPTION = """\
Measure how good the features of a checkpoint are, with labels that training has not seen: heads on
frozen features, beside random weights and input features, under one declared protocol.

  python tools/probe.py --checkpoint runs/msm_rooms/checkpoint.pt --data configs/data/rooms.yaml
  python tools/probe.py --checkpoint X --data Y --heads linear,nn,few,clusters --levels
  python tools/probe.py --checkpoint runs/image/dino/checkpoint.pt --data configs/image/data/digits.yaml
  python tools/probe.py --checkpoint X --data configs/image/data/digits.yaml probe.layers=true probe.robustness=true

Writes results.json, report.md and pictures to --out. Features are kept in --cache, so that another
head on the same checkpoint does not run the network again.
"""


@dataclass(frozen=True)
class ProbeJob:
    """What a file for --data holds."""

    dataset: Annotated[Any, Component("dataset")]
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    imports: tuple[str, ...] = ()
    kind: Literal["scenes"] = "scenes"


@dataclass(frozen=True)
class ImageProbeJob(ProbeJob):
    """The same for images."""

    probe: ImageProbeConfig = field(default_factory=ImageProbeConfig)
    kind: Literal["images"] = "images"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl probe`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override those of --data")
    parser.add_argument("--checkpoint", required=True, help="file, folder or name of a model, see docs/models.md")
    parser.add_argument("--data", required=True, metavar="YAML", help="dataset and protocol, for example configs/data/rooms.yaml")
    parser.add_argument("--heads", metavar="A,B", help="linear, nn, few, clusters, instances, supervised, finetune; of images ridge, nn, few (default: those of --data)")
    parser.add_argument("--levels", action="store_true", help="also every level alone, and all without it")
    parser.add_argument("--out", type=Path, help="folder for the results (default: the checkpoint's; runs/NAME for a model by name)")
    parser.add_argument("--cache", type=Path, help="folder for features (default: features/ in --out)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--engine", default="auto", help="auto, native, reference or spconv")
    parser.add_argument("--pictures", type=int, default=3, metavar="N", help="val scenes to draw (default 3)")


def run(args: argparse.Namespace) -> int:
    """Load, probe, write."""
    if args.pictures < 0:
        raise UserError(f"--pictures {args.pictures}: give a number of scenes, 0 for none")
    heads = [f"probe.heads=[{args.heads}]"] if args.heads else []
    levels = ["probe.levels=true"] if args.levels else []
    job = load_config(args.data, ProbeJob | ImageProbeJob, [*args.overrides, *heads, *levels])
    out = args.out or default_out(args.checkpoint)
    # The checkpoint is opened first: a wrong path should not cost the making of a dataset, nor leave a folder.
    if isinstance(job, ImageProbeJob):
        load_image_model(args.checkpoint, with_head=job.probe.layers)
        make_folder(out)
        probe_images_and_report(args.checkpoint, job.dataset.build(), job.probe, out, args.device, job)
        return 0
    load_model(args.checkpoint)
    make_folder(out)
    with use_engine(args.engine):
        probe_and_report(args.checkpoint, job.dataset.build(), job.probe, out, args.device, args.pictures, args.cache, job)
    return 0


def make_folder(out: Path) -> None:
    """For results; UserError where there cannot be one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write results to {out}: {error.strerror}; choose another folder with --out") from error


def default_out(checkpoint: str) -> Path:
    """The checkpoint's folder; for a model by name, which lies in a shared store, one below runs/."""
    path = Path(checkpoint)
    if path.is_dir():
        return path
    return path.parent if path.is_file() else Path("runs") / path.stem


def probe_and_report(
    checkpoint: str | Path,
    data: SceneSource,
    config: ProbeConfig,
    out: Path,
    device: str,
    pictures: int,
    cache: Path | None = None,
    settings: Any = None,
) -> None:
    """Probe a checkpoint on a dataset, write results.json, report.md and pictures to `out`, print the table.

    settings: the config that this call came from, which the results then hold.
    """
    begin = time.monotonic()
    model = load_model(checkpoint, pick_device(device))
    trained_with_labels = {"supervised", "finetune"} & set(config.heads)
    if trained_with_labels and Path(checkpoint).is_dir():  # these need more than the weights
        checkpoint = Path(checkpoint) / "checkpoint.pt"
    warnings = leakage(model.card, data.scenes(config.val_split), config.val_split)
    if shared := [part for part in data.parts(config.train_split) if part in data.parts(config.val_split)]:
        warnings.append(f"heads are fitted on scenes that they are scored on, those of {', '.join(shared)}: the scores are not of unseen scenes")
    for warning in warnings:
        print(f"probe: warning: {warning}", file=sys.stderr)
    predictions = dict.fromkeys(range(pictures))
    found = probe(model, data, config, cache=cache or out / "features", checkpoint=checkpoint, predictions=predictions)
    found |= {
        "warnings": warnings,
        "checkpoint": {"path": str(checkpoint), **{k: v for k, v in model.card.items() if k != "scene_names"}},
        **({"labelled_training": budget(checkpoint)} if trained_with_labels else {}),
        "machine": describe_machine() | {"seconds": round(time.monotonic() - begin, 1)},
        **({"config": to_dict(settings)} if settings is not None else {}),
    }
    if data.groups:
        found["groups"] = group_scores(found["results"], data.groups)
    if data.limit:
        found["limit"] = str(data.limit)
    write_text(out / "results.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "report.md", markdown(found))
    print(table(found["results"]))
    for group, scores in found.get("groups", {}).items():
        print(f"{group:16}" + "".join(f"  {source} {100 * next(iter(miou.values())):.1f}" for source, miou in scores.items() if miou))
    if "instances" in found:
        print(instance_table(found["instances"]))
    for name, value in ratios(found["results"]).items():
        print(f"{name}: {value:.2f}")
    print(f"\nresults      {out / 'results.json'}\nreport       {out / 'report.md'}")
    drawn = draw(model, data, config, found, predictions, out / "pictures") if pictures else []
    write_text(out / "report.md", markdown(found, [path.name for path in drawn]))  # again: scores do not wait for pictures
    for path in drawn:
        print(f"picture      {path}")


def probe_images_and_report(
    checkpoint: str | Path, data: ImageSource, config: ImageProbeConfig, out: Path, device: str, settings: Any = None
) -> None:
    """Probe a checkpoint on images, write results.json and report.md to `out`, print the tables."""
    if not isinstance(data, ImageSource):
        raise UserError("the checkpoint was trained on images; name a dataset of images")
    begin = time.monotonic()
    model = load_image_model(checkpoint, pick_device(device), config.layers)
    warnings = leakage(model.card, data.images(config.val_split), config.val_split, "image")
    for warning in warnings:
        print(f"probe: warning: {warning}", file=sys.stderr)
    found = probe_images(model, data, config) | {
        "warnings": warnings,
        "checkpoint": {"path": str(checkpoint), **{k: v for k, v in model.card.items() if k != "scene_names"}},
        "machine": describe_machine() | {"seconds": round(time.monotonic() - begin, 1)},
        **({"config": to_dict(settings)} if settings is not None else {}),
    }
    write_text(out / "results.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "report.md", image_markdown(found))
    heads = list(next(iter(found["results"].values())))
    print(table(found["results"], heads))
    for part, as_table in (("layers", layer_table), ("robustness", robustness_table)):
        if part in found:
            print(f"\n{as_table(found[part])}")
    print(f"\nresults      {out / 'results.json'}\nreport       {out / 'report.md'}")


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


def leakage(card: dict[str, Any], scored: Sequence[Any], split: str, item: str = "scene") -> list[str]:
    """Warnings when the checkpoint has seen scenes that it is now scored on, or does not say what it has seen."""
    seen = card.get("scene_names")
    if seen is None:
        return [f"the checkpoint does not name the {item}s it was trained on, so leakage cannot be ruled out"]
    names = getattr(scored, "names", None) or [scene.name for scene in scored]
    both = sorted(set(seen) & set(names))
    if not both:
        return []
    return [
        f"the checkpoint was trained on {len(both)} of the {len(names)} {item}s of {split!r} that it is scored on "
        f"({', '.join(both[:3])}{', ...' if len(both) > 3 else ''}): the scores are not of unseen {item}s, unless "
        f"{item}s of the dataset it was trained on, {card.get('dataset', 'which it does not name')}, only have the same names"
    ]


def describe_machine() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "pcssl": pcssl_version(),
        "commit": commit(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "engine": current_engine().name,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def draw(
    model: PretrainedModel, data: SceneSource, config: ProbeConfig, found: dict[str, Any],
    predictions: dict[int, Tensor | None], folder: Path,
) -> list[Path]:  # fmt: skip
    """Scored scenes, those of `predictions`: colours, labels, what the linear probe predicts, and features of the model and of
    random weights as colours that mean the same in every scene; and the linear probe's classes as bars."""
    scenes = data.scenes(config.val_split)
    numbers = [i for i in predictions if i < len(scenes)]
    shown = [scenes[i] for i in numbers]
    labels = [label_colors(s.labels[data.label], data.colors) for s in shown]
    columns = {"input": [s.color for s in shown], "labels": labels}
    if all(predictions[i] is not None for i in numbers):
        columns["linear probe"] = [label_colors(predictions[i], data.colors) for i in numbers]
    for title, source in (("trained features", model), ("random weights", model.with_random_weights(0))):
        features = [source.extract(scene, config.only_levels or "all").features for scene in shown]
        colors = PCAColors().fit(features)
        columns[title] = [colors(f) for f in features]
    rows = [
        [render_points(scene.coord, colors[i], size=(560, 420), normal=scene.normal) for colors in columns.values()]
        for i, scene in enumerate(shown)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("features.png", "classes.png", "levels.png"):  # of another call
        (folder / old).unlink(missing_ok=True)
    paths = [folder / "features.png"]
    save_png(paths[0], contact_sheet(rows, [s.name for s in shown], list(columns)))
    bars = {
        source: [None if v is None else 100 * v for v in scores[head]["iou"]]
        for source, scores in found["results"].items()
        for head in ("linear", "supervised", "finetune")
        if head in scores
    }
    if bars:
        paths.append(folder / "classes.png")
        save_png(paths[-1], bar_chart(found["data"]["classes"], bars, "IoU of the linear probe, and of networks trained with labels, %"))
    levels = {h[7:]: 100 * s["miou"]["mean"] for h, s in found["results"]["trained"].items() if "level " in h}
    if levels:
        if "linear" in found["results"]["trained"]:
            levels["all levels"] = 100 * found["results"]["trained"]["linear"]["miou"]["mean"]
        paths.append(folder / "levels.png")
        save_png(paths[-1], bar_chart(list(levels), {"linear mIoU": list(levels.values())}, "Levels alone and left out, %"))
    return paths


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
