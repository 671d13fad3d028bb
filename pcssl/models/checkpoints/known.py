"""Released weights by name: where they are, under which licence, and what describes them."""

from __future__ import annotations

from dataclasses import dataclass


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
