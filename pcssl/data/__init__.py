"""Scenes: reading, preparing, augmenting. Importing this package registers the datasets."""

from pcssl.data.datasets import FolderConfig, RoomsConfig, ScanNetConfig, SceneSource
from pcssl.data.formats import read_scene, write_ply
from pcssl.data.prepared import PreparedDataset
from pcssl.data.scene import Scene

__all__ = [
    "FolderConfig",
    "PreparedDataset",
    "RoomsConfig",
    "ScanNetConfig",
    "Scene",
    "SceneSource",
    "read_scene",
    "write_ply",
]
