"""Operators on sparse voxels, as plain functions on tensors.

Every function here is the plain-torch reference of its operator: it runs on any device,
and it is the specification that a compiled engine is tested against.
"""

from pcssl.ops.curves import CURVES, curve_codes
from pcssl.ops.displace import displace
from pcssl.ops.interpolate import interpolate
from pcssl.ops.keys import KEY_RANGE, lookup, pack_keys, unpack_keys
from pcssl.ops.nearest import nearest, radius_neighbors
from pcssl.ops.neighbors import kernel_offsets, neighbor_table
from pcssl.ops.segment import scatter_sum, segment_reduce
from pcssl.ops.sparse_conv import KernelMap, sparse_conv
from pcssl.ops.voxelize import voxelize

__all__ = [
    "CURVES",
    "KEY_RANGE",
    "KernelMap",
    "curve_codes",
    "displace",
    "interpolate",
    "kernel_offsets",
    "lookup",
    "nearest",
    "neighbor_table",
    "pack_keys",
    "radius_neighbors",
    "scatter_sum",
    "segment_reduce",
    "sparse_conv",
    "unpack_keys",
    "voxelize",
]
