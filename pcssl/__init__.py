"""pcssl: self-supervised learning on 3D point clouds.

    import pcssl
    scene = pcssl.read_scene("scan.ply")
    features = pcssl.load_model("runs/msm_rooms").extract(scene).features  # (N, D)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcssl.data import Scene, read_scene
    from pcssl.evaluation import PretrainedModel, load_model
    from pcssl.tokens import Tokens

__all__ = ["PretrainedModel", "Scene", "Tokens", "load_model", "read_scene"]

_HOME = {
    "PretrainedModel": "pcssl.evaluation",
    "Scene": "pcssl.data",
    "Tokens": "pcssl.tokens",
    "load_model": "pcssl.evaluation",
    "read_scene": "pcssl.data",
}


def __getattr__(name: str) -> Any:
    # On first use, so that `pcssl --help` does not import torch.
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pcssl' has no attribute {name!r}")
