"""`pcssl extract`: write a feature for every point of a scan."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcssl.data import read_scene
from pcssl.data.formats import READERS, UP_AXES
from pcssl.errors import UserError
from pcssl.evaluation import load_model
from pcssl.evaluation.pretrained import PretrainedModel
from pcssl.sparse import use_engine
from pcssl.training.trainer import pick_device
from pcssl.visualization import PCAColors, contact_sheet, render_points, save_png

_DESCRIPTION = """\
Write a feature for every point of a scan: PLY, PCD, LAS, LAZ, XYZ, TXT, CSV, NPZ, OBJ, GLB, STL or OFF.

  python tools/extract.py scan.ply --checkpoint runs/msm_rooms/checkpoint.pt --out features.npz --picture pca.png
  python tools/extract.py scans/ more.las --checkpoint runs/msm_rooms/checkpoint.pt --out features --picture pictures

features.npz holds features (N, D), coord (N, 3) in metres with z up, and origin (3,), which is added
to coord to get a georeferenced scan's place. The points are in the file's order; those without finite
coordinates are left out, with a warning. Several scans, or a folder of them, write OUT/<name>.npz each;
one that cannot be read is reported and the rest goes on (exit status 1).
"""


@dataclass(frozen=True)
class _Job:
    scan: Path
    out: Path
    picture: Path | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl extract`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("scans", nargs="+", type=Path, metavar="scan", help="a scan, or a folder of scans")
    parser.add_argument("--checkpoint", required=True, help="of `pcssl train`, or released MSM weights")
    parser.add_argument("--out", type=Path, required=True, help="features.npz; a folder for several scans")
    parser.add_argument(
        "--picture",
        type=Path,
        help="PNG of the scan beside its features as colours; a folder for several, which then share their colours",
    )
    add_reading_options(parser)
    parser.add_argument("--levels", type=_levels, metavar="0,1,...", help="levels to take, finest = 0 (default: all)")
    parser.add_argument("--half", action="store_true", help="store float16 instead of float32")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--engine", default="auto", help="auto, native, reference or spconv")


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a scan's file is to be read; `reading_options` collects them."""
    parser.add_argument(
        "--unit",
        default="auto",
        help="of the files: m, cm, mm, km, ft, in, or metres per unit "
        "(default: metres, with a warning if that seems wrong)",
    )
    parser.add_argument(
        "--up",
        default="auto",
        choices=("auto", *UP_AXES),
        help="axis of the files that points up: y, --up=-y for a camera's frame, ... "
        "(default: z, y for GLB, with a warning if that seems wrong)",
    )
    parser.add_argument(
        "--columns",
        type=lambda text: tuple(text.split(",")),
        metavar="x,y,z,...",
        help="names of a text file's columns where it has none: x y z r g b nx ny nz intensity label, - to skip one",
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="points to draw from a mesh's faces; 0: its vertices (default: PLY its vertices, others 5000 a m2)",
    )


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `read_scene`."""
    return {name: getattr(args, name) for name in ("unit", "up", "columns", "samples")}


def _levels(text: str) -> tuple[int, ...]:
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        levels = (-1,)
    if min(levels) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of levels such as 0,1")
    return levels


def run(args: argparse.Namespace) -> int:
    """Read, extract, write, draw."""
    jobs, several = _jobs(args)
    model = load_model(args.checkpoint, pick_device(args.device))
    levels = len(model.backbone.channels)
    if args.levels and max(args.levels) >= levels:
        raise UserError(f"--levels {max(args.levels)}: the model has levels 0 to {levels - 1}")
    colors = PCAColors()
    failed = 0
    for job in jobs:
        try:
            _extract(job, model, colors, args)
        except UserError as error:
            if not several:
                raise
            print(f"pcssl extract: error: {error}", file=sys.stderr)
            failed += 1
    if failed:
        print(f"pcssl extract: {failed} of {len(jobs)} scans failed; the reasons are above", file=sys.stderr)
    return 1 if failed else 0


def _jobs(args: argparse.Namespace) -> tuple[list[_Job], bool]:
    """What to read and write, and whether OUT is a folder."""
    several = len(args.scans) > 1 or args.scans[0].is_dir()
    if not several:
        if args.out.suffix != ".npz":
            raise UserError(f"--out {args.out}: must end in .npz")
        if args.picture and args.picture.suffix.lower() != ".png":
            raise UserError(f"--picture {args.picture}: must end in .png")
        return [_Job(args.scans[0], args.out, args.picture)], False
    for flag, place in (("--out", args.out), ("--picture", args.picture)):
        if place and (place.suffix.lower() in (".npz", ".png") or place.is_file()):
            raise UserError(f"{flag} {place}: several scans need a folder, not a file")
    scans = [file for scan in args.scans for file in (_scans_in(scan) if scan.is_dir() else [scan])]
    by_name: dict[str, Path] = {}
    for scan in scans:
        if scan.stem in by_name:
            raise UserError(f"{by_name[scan.stem]} and {scan} would both write {scan.stem}.npz; rename one or run twice")
        by_name[scan.stem] = scan
    drawn = args.picture
    return [_Job(s, args.out / f"{n}.npz", drawn and drawn / f"{n}.png") for n, s in by_name.items()], True


def _scans_in(folder: Path) -> list[Path]:
    scans = sorted(p for p in folder.iterdir() if p.suffix.lower() in READERS and not p.name.startswith("."))
    if not scans:
        raise UserError(f"{folder}: no scans in it; known: {', '.join(READERS)}")
    return scans


def _extract(job: _Job, model: PretrainedModel, colors: PCAColors, args: argparse.Namespace) -> None:
    """One scan; the first one that is drawn chooses the colours."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"pcssl extract: warning: {message}", file=sys.stderr)
        scene = read_scene(job.scan, **reading_options(args))
    grey = "a uniform grey" if len(scene.color.unique()) == 1 else "its intensity as grey"
    for what in scene.filled:
        made = {"color": grey, "normal": "estimated"}[what]
        lack = f"{job.scan} has no {what}; it is {made}, the model was trained with it"
        print(f"pcssl extract: warning: {lack}", file=sys.stderr)
    with use_engine(args.engine):
        features = model.extract(scene, args.levels).features
    stored = features.half().numpy() if args.half else features.numpy()
    _write_npz(job.out, features=stored, coord=scene.coord.numpy(), origin=np.array(scene.origin))
    print(f"features     {job.out} {tuple(features.shape)}")
    if job.picture:
        shown = (colors.fit(features) if colors.mean is None else colors)(features)
        sides = [render_points(scene.coord, c, size=(1000, 750), normal=scene.normal) for c in (scene.color, shown)]
        job.picture.parent.mkdir(parents=True, exist_ok=True)
        save_png(job.picture, contact_sheet([sides], [scene.name], ["input", "features"]))
        print(f"picture      {job.picture}")


def _write_npz(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
