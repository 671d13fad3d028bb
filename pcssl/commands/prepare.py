"""`pcssl prepare`: convert a dataset to the layout that training reads."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pcssl.data.scannet import PrepareSummary, prepare_scannet
from pcssl.errors import UserError

_SCANNET = """\
Prepare ScanNet, or own scans in its layout, for training.

What to download. ScanNet is free for non-commercial research: sign the terms of use at
http://www.scan-net.org, mail them, and you are sent download-scannet.py. For each scene this needs

  python download-scannet.py -o RAW --type _vh_clean_2.ply               the mesh
  python download-scannet.py -o RAW --type .aggregation.json             labels, part 1
  python download-scannet.py -o RAW --type _vh_clean_2.0.010000.segs.json  labels, part 2
  python download-scannet.py -o RAW --type .txt                          the axis alignment
  python download-scannet.py -o RAW --label_map                          scannetv2-labels.combined.tsv

The scenes may lie in RAW, RAW/scans or RAW/scans_test. Scenes without the two label files are
prepared without labels, which is all that self-supervised training needs.

A run that was stopped goes on where it was: complete scenes are skipped.
"""

_ROOMS = """\
Generate furnished rooms with labels, in ScanNet's raw layout, and prepare them.
They need no download and no licence, and serve to try everything out.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl prepare`."""
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True, title="sources")
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}

    scannet = sources.add_parser("scannet", help="ScanNet, or own scans in its layout", description=_SCANNET, **style)
    scannet.add_argument("--raw", type=Path, required=True, help="folder with the downloaded scenes")
    scannet.add_argument(
        "--splits",
        type=Path,
        metavar="DIR",
        help="folder with scannetv2_train.txt, _val.txt, _test.txt (default: those in RAW, RAW/splits or "
        "RAW/meta_data; else the official lists for scenes with ScanNet's names; else everything is train)",
    )
    scannet.add_argument(
        "--labels-tsv",
        type=Path,
        metavar="FILE",
        help="scannetv2-labels.combined.tsv (default: the one in RAW, RAW/splits or RAW/meta_data)",
    )
    scannet.add_argument("--overwrite", action="store_true", help="prepare complete scenes again")
    scannet.set_defaults(prepare=_prepare_scannet)

    rooms = sources.add_parser("rooms", help="generated rooms", description=_ROOMS, **style)
    rooms.add_argument("--scenes", type=int, default=60, help="number of rooms (default: 60)")
    rooms.add_argument("--val", type=int, default=12, help="how many of them are for validation (default: 12)")
    rooms.add_argument("--seed", type=int, default=0, help="another seed makes other rooms (default: 0)")
    rooms.add_argument("--raw", type=Path, help="where the raw layout goes (default: OUT/raw)")
    rooms.set_defaults(prepare=_prepare_rooms)

    for source in (scannet, rooms):
        source.add_argument("--out", type=Path, required=True, help="folder for the prepared scenes")
        source.add_argument(
            "--workers",
            type=int,
            default=min(8, os.cpu_count() or 1),
            help="processes; 0 works in the main one (default: %(default)s here); fewer need less memory",
        )


def run(args: argparse.Namespace) -> int:
    """Prepare; 0 if every scene is there afterwards, 1 if some failed. Raises UserError."""
    if args.workers < 0:
        raise UserError(f"--workers is {args.workers}; give 0 or the number of processes")
    summary: PrepareSummary = args.prepare(args)
    print(f"{summary} -> {args.out}")
    if summary.failed:
        print(f"failed: {', '.join(name for name, _ in summary.failed)}; the reasons are above", file=sys.stderr)
    return 1 if summary.failed else 0


def _prepare_scannet(args: argparse.Namespace) -> PrepareSummary:
    return prepare_scannet(
        args.raw,
        args.out,
        workers=args.workers,
        splits=args.splits,
        overwrite=args.overwrite,
        labels_tsv=args.labels_tsv,
    )


def _prepare_rooms(args: argparse.Namespace) -> PrepareSummary:
    from pcssl.data.rooms import generate_rooms  # only here: the rest needs no generator

    raw = args.raw or args.out / "raw"
    processes = max(args.workers, 1)
    generate_rooms(raw, scenes=args.scenes, val=args.val, seed=args.seed, workers=processes, progress=True)
    return prepare_scannet(raw, args.out, workers=args.workers)
