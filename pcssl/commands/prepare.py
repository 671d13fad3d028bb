"""`pcssl prepare`: convert a dataset to the layout that training reads."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pcssl.commands.extract import add_reading_options, reading_options
from pcssl.data.layouts.arkitscenes import find_arkitscenes
from pcssl.data.layouts.folder import find_folder
from pcssl.data.layouts.matterport3d import find_matterport3d
from pcssl.data.layouts.s3dis import find_s3dis
from pcssl.data.layouts.scannet import find_scannet
from pcssl.data.layouts.scannetpp import find_scannetpp
from pcssl.data.layouts.structured3d import find_structured3d
from pcssl.data.manifest import Shard
from pcssl.data.preparation import PrepareSummary, Source, prepare
from pcssl.data.storage import pack
from pcssl.errors import UserError

_DESCRIPTION = """\
Convert a dataset to the layout that training reads.

A run that was stopped goes on where it was; a later run prepares what is missing or has changed since, and says
how much that was. OUT/manifest.jsonl holds for every scene what it was made from, its points and labels, and hashes.
"""

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
"""

_S3DIS = """\
Prepare S3DIS. Its terms allow non-commercial research; agree to them at
http://buildingparser.stanford.edu/dataset.html and download Stanford3dDataset_v1.2.zip (or the
Aligned_Version). RAW is the unpacked folder with Area_1 .. Area_6. The few damaged numbers in the
published files are mended, with a warning.
"""

_SCANNETPP = """\
Prepare ScanNet++. Apply for access at https://kaldir.vc.in.tum.de/scannetpp (non-commercial research) and
download, with its script, the assets mesh_aligned_0.05.ply, segments.json and segments_anno.json of the scenes,
and the folders metadata and splits. RAW is the folder with data, metadata and splits.
"""

_STRUCTURED3D = """\
Prepare Structured3D's rooms as point clouds, from their panoramas. Fill in the form at
https://structured3d-dataset.org (non-commercial research), download the Structured3D_panorama_*.zip files and
unpack them into one folder, RAW.
"""

_MATTERPORT3D = """\
Prepare Matterport3D's regions. Sign the terms of use at https://niessner.github.io/Matterport (non-commercial
research) and download, with its script, `--type region_segmentations`; unpack the zip files. Copy
metadata/category_mapping.tsv of https://github.com/niessner/Matterport into RAW, or give its path.
"""

_ARKITSCENES = """\
Prepare ARKitScenes' meshes, with labels from its boxes. Apple's licence allows non-commercial use; download with
download_data.py of https://github.com/apple/ARKitScenes:

  python download_data.py 3dod --video_id_csv threedod/3dod_train_val_splits.csv --download_dir RAW

Only *_3dod_mesh.ply and *_3dod_annotation.json are read; the frames beside them can be deleted.
"""

_FOLDER = """\
Prepare your own scans: files of any format that pcssl reads, in RAW, or in RAW/train, RAW/val and RAW/test.
Metres and z up are assumed; --unit and --up say otherwise.
"""

_ROOMS = """\
Generate furnished rooms with labels, in ScanNet's raw layout, and prepare them.
They need no download and no licence, and serve to try everything out.
"""

_PACK = """\
Pack a prepared dataset into a few large tar files with an index, for file systems that suffer from many small
files. Training reads the packed folder in place of the other: same scenes, same order, same values. `tar xf`
unpacks the shards into folders again.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl prepare`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True, title="sources")

    def add(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        style = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        return sources.add_parser(name, help=summary, description=description, **style)

    def add_layout(name: str, summary: str, description: str, find: Callable[[argparse.Namespace], Source]):
        source = add(name, summary, description)
        source.add_argument("--raw", type=Path, required=True, help="folder with what was downloaded")
        source.set_defaults(job=_prepare, find=find)
        _add_preparation(source)
        return source

    scannet = add_layout(
        "scannet",
        "ScanNet, or own scans in its layout",
        _SCANNET,
        lambda a: find_scannet(a.raw, a.splits, a.labels_tsv),
    )
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
    add_layout("s3dis", "S3DIS", _S3DIS, lambda a: find_s3dis(a.raw))
    add_layout("scannetpp", "ScanNet++", _SCANNETPP, lambda a: find_scannetpp(a.raw))
    add_layout("structured3d", "Structured3D's panoramas", _STRUCTURED3D, lambda a: find_structured3d(a.raw))
    matterport3d = add_layout(
        "matterport3d", "Matterport3D's regions", _MATTERPORT3D, lambda a: find_matterport3d(a.raw, a.categories)
    )
    matterport3d.add_argument(
        "--categories", type=Path, metavar="FILE", help="category_mapping.tsv (default: in RAW or RAW/metadata)"
    )
    add_layout("arkitscenes", "ARKitScenes", _ARKITSCENES, lambda a: find_arkitscenes(a.raw))
    own = add_layout("folder", "your own scans, of any format", _FOLDER, lambda a: find_folder(a.raw, **reading_options(a)))
    add_reading_options(own)

    rooms = add("rooms", "generated rooms", _ROOMS)
    rooms.add_argument("--scenes", type=int, default=60, help="number of rooms (default: 60)")
    rooms.add_argument("--val", type=int, default=12, help="how many of them are for validation (default: 12)")
    rooms.add_argument("--seed", type=int, default=0, help="another seed makes other rooms (default: 0)")
    rooms.add_argument("--raw", type=Path, help="where the raw layout goes (default: OUT/raw)")
    rooms.set_defaults(job=_prepare, find=_generate_rooms)
    _add_preparation(rooms)

    packed = add("pack", "a prepared folder, as a few large files", _PACK)
    packed.add_argument("data", type=Path, help="the prepared folder")
    packed.add_argument("--out", type=Path, required=True, help="folder for the shards; must not be there yet")
    packed.add_argument("--shard-mb", type=int, default=1024, help="size of a shard (default: %(default)s)")
    packed.set_defaults(job=_pack)


def _add_preparation(source: argparse.ArgumentParser) -> None:
    source.add_argument("--out", type=Path, required=True, help="folder for the prepared scenes")
    source.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes; 0 works in the main one (default: %(default)s here); fewer need less memory",
    )
    source.add_argument(
        "--shard",
        metavar="I/N",
        help="only the I-th of N shares of the scenes, to spread the work over machines; a last run without it merges "
        "the shares' manifests",
    )
    source.add_argument(
        "--verify", action="store_true", help="compare the content of all files with the manifest's hashes"
    )
    source.add_argument("--overwrite", action="store_true", help="prepare complete scenes again")


def run(args: argparse.Namespace) -> int:
    """Prepare or pack; 0 if every scene is there afterwards, 1 if some failed. Raises UserError."""
    return args.job(args)


def _prepare(args: argparse.Namespace) -> int:
    if args.workers < 0:
        raise UserError(f"--workers is {args.workers}; give 0 or the number of processes")
    shard = None if args.shard is None else Shard.parse(args.shard)
    summary: PrepareSummary = prepare(
        args.find(args), args.out, workers=args.workers, overwrite=args.overwrite, verify=args.verify, shard=shard
    )
    print(f"{summary} -> {args.out}")
    if summary.failed:
        print(f"failed: {', '.join(name for name, _ in summary.failed)}; the reasons are above", file=sys.stderr)
    return 1 if summary.failed else 0


def _generate_rooms(args: argparse.Namespace) -> Source:
    from pcssl.data.rooms import generate_rooms  # only here: the rest needs no generator

    raw = args.raw or args.out / "raw"
    processes = max(args.workers, 1)
    generate_rooms(raw, scenes=args.scenes, val=args.val, seed=args.seed, workers=processes, progress=True)
    return find_scannet(raw)


def _pack(args: argparse.Namespace) -> int:
    if args.shard_mb < 1:
        raise UserError(f"--shard-mb is {args.shard_mb}; give at least 1")
    for split, done, total in pack(args.data, args.out, shard_bytes=args.shard_mb << 20):
        if done == total or done % 100 == 0:
            print(f"{split}: {done}/{total} scenes packed", file=sys.stderr)
    print(f"packed -> {args.out}")
    return 0
