"""`pcssl extract`: write a feature for every point of a scan."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcssl.commands.feature_files import SUFFIXES, Folder, color_of, save, scratch
from pcssl.data import read_scene
from pcssl.data.formats import READERS, UP_AXES
from pcssl.errors import UserError
from pcssl.evaluation import PretrainedModel, load_model
from pcssl.evaluation.cache import weights_key
from pcssl.evaluation.memory import parse_bytes
from pcssl.sparse import use_engine
from pcssl.visualization import PCAColors, contact_sheet, render_points, save_png

_DESCRIPTION = """\
Write a feature for every point of a scan: PLY, PCD, LAS, LAZ, XYZ, TXT, CSV, NPZ, OBJ, GLB, STL or OFF.

  python tools/extract.py scan.ply --model runs/msm_rooms --out features
  python tools/extract.py scans/ more.las --model owner/name --out features --format ply --max-memory 4GB

Writes OUT/<scan>.npz and so on, with the points in the file's order; those without finite coordinates are left
out, with a warning. npz holds features (N, D), coord (N, 3) in metres with z up, and origin (3,), which is added to
coord to get a georeferenced scan's place; npy the features alone; ply the points in colours of the features. A scan
that is done is skipped when the command runs again; one that cannot be read is reported and the rest goes on (exit
status 1). A scan that does not fit in memory is cut into overlapping tiles, whose features are blended.
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
    parser.add_argument(
        "--model",
        required=True,
        help="a run's folder, its model.safetensors or checkpoint.pt, released weights, or owner/name on the Hugging Face Hub",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder; or for one scan a file, whose suffix is the format"
    )
    parser.add_argument("--format", choices=[suffix[1:] for suffix in SUFFIXES], help="of the files in the folder (default: npz)")
    parser.add_argument(
        "--picture",
        type=Path,
        help="PNG of the scan beside its features as colours; a folder where OUT is one, all in the same colours",
    )
    add_reading_options(parser)
    parser.add_argument("--levels", type=_levels, default="all", metavar="0,1,...", help="levels to take, finest = 0 (default: all)")
    parser.add_argument("--half", action="store_true", help="store float16 instead of float32")
    parser.add_argument(
        "--max-memory",
        type=parse_bytes,
        metavar="4GB",
        help="of the process, or of tensors on a GPU (default: most of what is free); larger scans are tiled",
    )
    parser.add_argument("--overwrite", action="store_true", help="extract anew what OUT has already")
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


def _levels(text: str) -> tuple[int, ...] | str:
    if text == "all":
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of levels such as 0,1") from None


def run(args: argparse.Namespace) -> int:
    """Read, extract, write, draw."""
    jobs = _jobs(args)
    model = load_model(args.model, args.device)
    try:
        model.width(args.levels)
    except ValueError as error:
        raise UserError(f"--levels: {error}") from error
    folder = None if _is_file(args.out) else Folder(args.out, _settings(args, model), args.overwrite)
    colors = folder.load_colors() if folder else PCAColors()
    todo = [job for job in jobs if not (folder and _is_done(job, folder))]
    if len(todo) < len(jobs):
        print(f"skipped      {len(jobs) - len(todo)} of {len(jobs)} scans, which {args.out} has already")
    failed = 0
    for number, job in enumerate(todo):
        try:
            _extract(job, model, colors, args, f"{job.scan.name} ({number + 1} of {len(todo)})")
        except UserError as error:
            if len(jobs) == 1:
                raise
            print(f"pcssl extract: error: {error}", file=sys.stderr)
            failed += 1
            continue
        if folder:
            folder.keep_colors(colors)
            folder.add(job.scan, job.out)
    if failed:
        print(f"pcssl extract: {failed} of {len(jobs)} scans failed; the reasons are above", file=sys.stderr)
    return 1 if failed else 0


def _settings(args: argparse.Namespace, model: PretrainedModel) -> dict[str, Any]:
    """All that the features of a scan depend on, as JSON has it."""
    weights = weights_key(model.backbone, model.voxel_size, model.mode, model.inputs)
    reading = {name: list(value) if isinstance(value, tuple) else value for name, value in reading_options(args).items()}
    levels = args.levels if args.levels == "all" else list(args.levels)
    return {"model": weights, "levels": levels, "half": args.half, **reading}


def _is_done(job: _Job, folder: Folder) -> bool:
    return folder.has(job.scan, job.out) and (job.picture is None or job.picture.exists())


def _jobs(args: argparse.Namespace) -> list[_Job]:
    """What to read and write. UserError where scans and OUT do not go together."""
    several = len(args.scans) > 1 or args.scans[0].is_dir()
    if _is_file(args.out):
        if several:
            raise UserError(f"--out {args.out}: several scans need a folder, not a file")
        if args.format not in (None, args.out.suffix[1:]):
            raise UserError(f"--out {args.out}: its suffix is the format; leave out --format {args.format}")
        if args.picture and args.picture.suffix.lower() != ".png":
            raise UserError(f"--picture {args.picture}: must end in .png")
        return [_Job(args.scans[0], args.out, args.picture)]
    if (args.out.suffix and not args.out.is_dir()) or args.out.is_file():
        raise UserError(f"--out {args.out}: a file must end in {' or '.join(SUFFIXES)}, a folder's name without a suffix")
    if args.picture and (args.picture.suffix.lower() == ".png" or args.picture.is_file()):
        raise UserError(f"--picture {args.picture}: give a folder, as --out is one")
    scans = [file for scan in args.scans for file in (_scans_in(scan) if scan.is_dir() else [scan])]
    by_name: dict[str, Path] = {}
    for scan in scans:
        if scan.stem in by_name:
            raise UserError(f"{by_name[scan.stem]} and {scan} would both write {scan.stem}; rename one or run twice")
        by_name[scan.stem] = scan
    drawn, suffix = args.picture, f".{args.format}" if args.format else SUFFIXES[0]
    return [_Job(s, args.out / f"{n}{suffix}", drawn and drawn / f"{n}.png") for n, s in by_name.items()]


def _is_file(out: Path) -> bool:
    return out.suffix in SUFFIXES and not out.is_dir()


def _scans_in(folder: Path) -> list[Path]:
    scans = sorted(p for p in folder.iterdir() if p.suffix.lower() in READERS and not p.name.startswith("."))
    if not scans:
        raise UserError(f"{folder}: no scans in it; known: {', '.join(READERS)}")
    return scans


def _extract(job: _Job, model: PretrainedModel, colors: PCAColors, args: argparse.Namespace, title: str) -> None:
    """One scan; the first one that is coloured chooses the colours."""
    dtype, channels = np.float16 if args.half else np.float32, model.width(args.levels)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"pcssl extract: warning: {message}", file=sys.stderr)
        scene = read_scene(job.scan, **reading_options(args))
        with scratch(job.out, len(scene), channels, dtype) as features:
            with use_engine(args.engine), Progress(title) as progress:
                for rows, values in model.parts(scene, args.levels, max_memory=args.max_memory, progress=progress):
                    features.add(rows, values)
            shown = color_of(features, colors) if job.picture else None
            save(features, job.out, scene, colors)
    print(f"features     {job.out} ({len(scene)}, {channels})")
    if shown is not None:
        sides = [render_points(scene.coord, c, size=(1000, 750), normal=scene.normal) for c in (scene.color, shown)]
        job.picture.parent.mkdir(parents=True, exist_ok=True)
        save_png(job.picture, contact_sheet([sides], [scene.name], ["input", "features"]))
        print(f"picture      {job.picture}")


class Progress:
    """A line with the part done and the time left, once a scan takes more than a few seconds."""

    def __init__(self, title: str):
        self.title, self.live = title, sys.stderr.isatty()
        self.last = time.monotonic()
        self.first: tuple[float, float] | None = None  # when the first part was done, and how large it was
        self.shown = False

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: float) -> None:
        now = time.monotonic()
        self.first = self.first or (now, done)
        wait = 3 if not self.shown else 1 if self.live else 10
        if now - self.last < wait or done >= 1 or done == self.first[1]:
            return
        self.last, self.shown = now, True
        left = round((now - self.first[0]) / (done - self.first[1]) * (1 - done))
        line = f"{self.title}: {100 * done:.0f} %, {left // 60}:{left % 60:02d} left"
        print(f"\r\x1b[K{line}" if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        if self.live and self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
