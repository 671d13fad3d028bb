"""Sparse tensors on voxel geometries, and the layers that work on them."""

import pcssl.sparse.native  # noqa: F401  adds its engine if it is built
from pcssl.sparse.attention import local_attention, patch_attention
from pcssl.sparse.conv import SparseConv, SparseConvTranspose, SubmanifoldConv
from pcssl.sparse.engine import available_engines, current_engine, use_engine
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
