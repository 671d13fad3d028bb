"""`pcssl health`: are the features of a checkpoint alive?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pcssl.commands.probe import ProbeJob, write_text
from pcssl.config import load_config
from pcssl.errors import UserError
from pcssl.evaluation import load_model
from pcssl.evaluation.health import as_table, level_health, verdict
from pcssl.training.trainer import pick_device

_DESCRIPTION = """\
Look at the features of every level of a checkpoint, without labels, and say whether they are collapsed,
constant or merely geometric; random weights of the same network stand beside them.

  python -m pcssl health runs/msm_rooms/checkpoint.pt --data configs/data/rooms.yaml

std: spread of directions, 0 to about 1. rank: effective rank of the covariance, 1 to the channels.
scenes: share of the variance between scenes. height, normal, color: how well a linear map of the features
tells them (R2). geometric: how well height and normal tell the features (R2).
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl health`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", help="file, folder or name of a model, see docs/models.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override those of --data")
    parser.add_argument("--data", required=True, metavar="YAML", help="dataset, for example configs/data/rooms.yaml")
    parser.add_argument("--scenes", type=int, default=8, metavar="N", help="val scenes to look at (default 8)")
    parser.add_argument("--without", nargs="+", choices=("color", "normal"), default=[], help="inputs that the network does not get")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the numbers to this file")


def run(args: argparse.Namespace) -> int:
    """Load, look, tell."""
    if args.scenes < 1:
        raise UserError(f"--scenes {args.scenes}: give at least 1")
    job = load_config(args.data, ProbeJob, args.overrides)
    model = load_model(args.checkpoint, pick_device(args.device))
    scenes = job.dataset.build().scenes(job.probe.val_split)
    shown = [scenes[i] for i in range(min(args.scenes, len(scenes)))]
    trained = level_health(model.point_features(), shown, args.without)
    random = level_health(model.with_random_weights(0).point_features(), shown, args.without)
    without = f", without {' and '.join(args.without)}" if args.without else ""
    print(f"{args.checkpoint}, {len(shown)} scenes{without}\n{as_table(trained)}\n\nrandom weights\n{as_table(random)}\n")
    for line in verdict(trained):
        print(f"verdict: {line}")
    if args.out:
        found = {"checkpoint": str(args.checkpoint), "without": args.without, "levels": trained, "random": random, "verdict": verdict(trained)}
        write_text(args.out, json.dumps(found, indent=1) + "\n")
    return 0
