"""Sparse tensors on voxel geometries, and the layers that work on them."""

from pcssl.sparse.attention import local_attention, patch_attention
from pcssl.sparse.conv import SparseConv, SparseConvTranspose, SubmanifoldConv
from pcssl.sparse.engine import available_engines, current_engine, use_engine, why_missing
from pcssl.sparse.tensor import Geometry, SparseTensor

__all__ = [
    "Geometry",
    "SparseConv",
    "SparseConvTranspose",
    "SparseTensor",
    "SubmanifoldConv",
    "available_engines",
    "current_engine",
    "local_attention",
    "patch_attention",
    "use_engine",
]

why_missing("native")  # imports it here, which adds it if it can run, and not in the middle of a first layer
