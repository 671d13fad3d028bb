"""`pcssl export`: a model as one file that describes itself."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import yaml

from pcssl.errors import UserError
from pcssl.models.checkpoints import find_file, read_weights, write_model
from pcssl.models.checkpoints.exported import FILE

_DESCRIPTION = """\
Write the network of a checkpoint as one safetensors file, with its config and card in the header, or show these.

  python -m pcssl export runs/msm_rooms/checkpoint.pt --out model --license CC-BY-4.0   writes model/model.safetensors
  python -m pcssl export runs/msm_rooms/model.safetensors                               shows its card

Training writes such a file at its end, without a licence.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl export`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", help="checkpoint, exported model, released weights, or a name on the Hugging Face Hub")
    parser.add_argument("--out", type=Path, help="folder, or a file NAME.safetensors (default: show the card)")
    parser.add_argument("--license", "--licence", metavar="TEXT", help="of the weights, for the card")


def run(args: argparse.Namespace) -> int:
    """Read, write or show."""
    weights = read_weights(args.model)
    if args.license:
        weights = replace(weights, card=weights.card | {"license": args.license})
    if args.out is None:
        if args.license:
            raise UserError("--license needs --out: a file is not changed in place")
        print(yaml.safe_dump(weights.card, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120), end="")
        return 0
    out = args.out if args.out.suffix == ".safetensors" else args.out / FILE
    if out.exists() and out.samefile(find_file(args.model)):
        raise UserError(f"--out {out} is the model itself; choose another place")
    write_model(out, weights)
    print(f"model        {out}")
    return 0
