"""`pcssl extract`: write a feature for every point of a scan."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

import numpy as np

from pcssl.data import read_scene
from pcssl.errors import UserError
from pcssl.evaluation import load_model
from pcssl.sparse import use_engine
from pcssl.training.trainer import pick_device
from pcssl.visualization import PCAColors, contact_sheet, render_points, save_png

_DESCRIPTION = """\
Write a feature for every point of a scan (PLY or NPZ, metres, z up).

  python tools/extract.py scan.ply --checkpoint runs/msm_rooms/checkpoint.pt --out features.npz --picture pca.png

features.npz holds features (N, D) and coord (N, 3), in the file's order of points; points
without finite coordinates are left out, with a warning.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl extract`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("scan", help="the scan: .ply or .npz")
    parser.add_argument("--checkpoint", required=True, help="of `pcssl train`, or released MSM weights")
    parser.add_argument("--out", type=Path, required=True, help="features.npz")
    parser.add_argument("--picture", type=Path, help="PNG of the scan beside its features as colours")
    parser.add_argument("--scale", type=float, default=1.0, help="factor to metres: 0.001 for a scan in millimetres")
    parser.add_argument("--levels", type=_levels, metavar="0,1,...", help="levels to take, finest = 0 (default: all)")
    parser.add_argument("--half", action="store_true", help="store float16 instead of float32")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--engine", default="auto", help="auto, native, reference or spconv")


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
    if args.out.suffix != ".npz":
        raise UserError(f"--out {args.out}: must end in .npz")
    if args.picture and args.picture.suffix.lower() != ".png":
        raise UserError(f"--picture {args.picture}: must end in .png")
    model = load_model(args.checkpoint, pick_device(args.device))
    levels = len(model.backbone.channels)
    if args.levels and max(args.levels) >= levels:
        raise UserError(f"--levels {max(args.levels)}: the model has levels 0 to {levels - 1}")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"pcssl extract: warning: {message}", file=sys.stderr)
        scene = read_scene(args.scan, scale=args.scale)
    for what in scene.filled:
        made = {"color": "a uniform grey", "normal": "estimated"}[what]
        print(f"pcssl extract: warning: {args.scan} has no {what}; it is {made}, the model was trained with it", file=sys.stderr)
    with use_engine(args.engine):
        features = model.extract(scene, args.levels).features
    _write_npz(args.out, features=features.half().numpy() if args.half else features.numpy(), coord=scene.coord.numpy())
    print(f"features     {args.out} {tuple(features.shape)}")
    if args.picture:
        colors = PCAColors().fit(features)(features)
        sides = [render_points(scene.coord, c, size=(1000, 750), normal=scene.normal) for c in (scene.color, colors)]
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        save_png(args.picture, contact_sheet([sides], [scene.name], ["input", "features"]))
        print(f"picture      {args.picture}")
    return 0


def _write_npz(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
