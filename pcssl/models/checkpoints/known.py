"""Released weights by name: where they are, under which licence, and what describes them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml

from pcssl.models.checkpoints.weights import ImageWeights, Weights

CARD = "README.md"


@dataclass(frozen=True)
class Known:
    """repo: on the Hugging Face hub. file: in it. license: of the weights, as the card there names it."""

    repo: str
    file: str
    license: str
    paper: str


_SONATA = ("CC-BY-NC-4.0", "Wu et al., Sonata, CVPR 2025, arXiv 2503.16429")
_CONCERTO = ("CC-BY-NC-4.0", "Zhang et al., Concerto, NeurIPS 2025, arXiv 2510.23607")
_UTONIA = ("CC-BY-NC-4.0", "Zhang et al., Utonia, 2026, arXiv 2603.03283")

KNOWN = {
    "sonata": Known("facebook/sonata", "sonata.pth", *_SONATA),
    "sonata_small": Known("facebook/sonata", "sonata_small.pth", *_SONATA),
    "concerto_tiny": Known("Pointcept/Concerto", "concerto_tiny.pth", *_CONCERTO),
    "concerto_small": Known("Pointcept/Concerto", "concerto_small.pth", *_CONCERTO),
    "concerto_base": Known("Pointcept/Concerto", "concerto_base.pth", *_CONCERTO),
    "concerto_large": Known("Pointcept/Concerto", "concerto_large.pth", *_CONCERTO),
    "utonia": Known("Pointcept/Utonia", "utonia.pth", *_UTONIA),
}


def with_licence(weights: Weights | ImageWeights, name: str, path: Path) -> Weights | ImageWeights:
    """The licence that the card beside the file names, or else the table, joins the weights' card; it is also printed.

    name: as the model was asked for. path: of its file.
    """
    known = KNOWN.get(name) or next((k for k in KNOWN.values() if f"{k.repo}/" in f"{name}/"), None)
    license = card_license(path.with_name(CARD)) or (known and known.license)
    if license is None:
        return weights
    _say(f"{name}: the weights have the licence {license}")
    paper = {"paper": known.paper} if known else {}
    return replace(weights, card={"license": license, **paper, **weights.card})


def card_license(card: Path) -> str | None:
    """What a model card, as the Hugging Face hub has them, names as `license` in the YAML at its top."""
    try:
        start, top, _ = card.read_text(encoding="utf-8").split("---\n", 2)
        settings = yaml.safe_load(top) if not start else None
    except (OSError, ValueError, yaml.YAMLError):  # no card, or one of another kind
        return None
    found = settings.get("license_name", settings.get("license")) if isinstance(settings, dict) else None
    return found and str(found)


@cache  # once a model: a probe loads it several times
def _say(line: str) -> None:
    print(line, file=sys.stderr)
