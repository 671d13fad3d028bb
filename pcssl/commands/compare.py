"""`pcssl compare`: the scores of two results.json side by side."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pcssl.errors import UserError
from pcssl.evaluation.report import cautions, compared, differences

_DESCRIPTION = """\
Put the scores of two probes side by side.

  python -m pcssl compare runs/a/results.json runs/b/results.json

Scores are comparable only under the same protocol on the same scenes. Where these differ the command
says how and stops with status 2; --anyway prints the table all the same, with a warning. Other numbers of
seeds, other budgets of training with labels and the warnings of either result are told, and do not stop it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl compare`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("first", type=Path, metavar="A/results.json")
    parser.add_argument("second", type=Path, metavar="B/results.json")
    parser.add_argument("--anyway", action="store_true", help="print the table even where protocols differ")


def run(args: argparse.Namespace) -> int:
    """Read both, check, print."""
    a, b = read_results(args.first), read_results(args.second)
    found = differences(a, b)
    if found and not args.anyway:
        raise UserError(
            "these scores cannot be compared:\n  " + "\n  ".join(found) + "\nprobe both in the same way, or add --anyway"
        )
    for line in found:
        print(f"warning: not comparable: {line}", file=sys.stderr)
    for line in cautions(a, b):
        print(f"warning: {line}", file=sys.stderr)
    print(compared(a, b, (args.first.parent.name or "first", args.second.parent.name or "second")))
    return 0


def read_results(path: Path) -> dict[str, Any]:
    """UserError when the file is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no results at {path}; `pcssl probe` writes them") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a results.json ({error})") from error
    if not isinstance(content, dict) or any(not isinstance(content.get(key), dict) for key in ("protocol", "data", "results")):
        raise UserError(f"{path}: not a results.json of this version (no protocol, data and results); probe again")
    return content
