"""Attention along a space-filling curve: over a sliding window, or within consecutive patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.ops.curves import DEPTH
from pcssl.sparse.tensor import Geometry


@dataclass(frozen=True)
class Blocks:
    """Scenes laid out along a curve and cut into blocks of places; every scene fills whole blocks.

    rows: (B * size,) int64 voxel at every place, -1 for padding.
    slots: (N,) int64, the place of every voxel.
    scene: (B,) int64, which scene each block belongs to.
    size: places of a block.
    mask: bool, broadcastable to (B, 1, size, keys): which keys each query sees; None: all.
    """

    rows: Tensor
    slots: Tensor
    scene: Tensor
    size: int
    mask: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """(N, heads, D) -> (B, size, heads, D), padding filled with some voxel's values."""
        return x.index_select(0, self.rows.clamp(min=0)).view(-1, self.size, *x.shape[1:])

    def put_back(self, x: Tensor) -> Tensor:
        """(B, heads, size, D) -> (N, heads, D)."""
        return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3]).index_select(0, self.slots)


def lay_out(geometry: Geometry, curve: str, size: int, depth: int = DEPTH) -> Blocks:
    order, sizes = geometry.curve_order(curve, depth), geometry.scene_sizes()
    count = torch.div(sizes + size - 1, size, rounding_mode="floor")
    first_slot = (count.cumsum(0) - count) * size
    first_row = sizes.cumsum(0) - sizes
    rank = torch.arange(len(order), device=order.device)
    slot = rank + torch.repeat_interleave(first_slot - first_row, sizes)
    rows = order.new_full((int(count.sum()) * size,), -1)
    rows[slot] = order
    slots = torch.empty_like(slot)
    slots[order] = slot
    scene = torch.repeat_interleave(torch.arange(len(sizes), device=order.device), count)
    return Blocks(rows, slots, scene, size)


def build_windows(geometry: Geometry, curve: str, window: int) -> Blocks:
    """Blocks for attention to all |i - j| <= window // 2 along `curve`; memory O(N window)."""
    # A scene shorter than half a window is one block: a longer one would only hold padding.
    half = min(window // 2, int(geometry.scene_sizes().max()))
    blocks = lay_out(geometry, curve, half)
    occupied = _around(torch.where(blocks.rows.view(-1, half) >= 0, blocks.scene[:, None], -1), -1)
    same_scene = occupied == blocks.scene[:, None]
    query = torch.arange(half, device=geometry.device)[:, None]
    key = torch.arange(3 * half, device=geometry.device)[None, :] - half
    band = (query - key).abs() <= window // 2
    return Blocks(blocks.rows, blocks.slots, blocks.scene, half, (band & same_scene[:, None, :])[:, None])


def _around(blocks: Tensor, fill: float) -> Tensor:
    """(B, size, ...) -> (B, 3 * size, ...): each block with the ones before and after it."""
    edge = torch.full_like(blocks[:1], fill)
    before, after = torch.cat([edge, blocks[:-1]]), torch.cat([blocks[1:], edge])
    return torch.cat([before, blocks, after], 1)


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, curve: str, window: int, dropout: float = 0.0
) -> Tensor:
    """Softmax attention of every voxel to those of its scene at most window // 2 away on the curve.

    q, k, v: (N, heads, D). window: at least 2. Returns (N, heads, D). Exact: the band is
    covered by three half-window blocks per query block.
    """
    if window < 2:
        raise ValueError(f"window must be at least 2, got {window}")
    if len(geometry) == 0:
        return v
    blocks = geometry.cached(("windows", curve, window), lambda: build_windows(geometry, curve, window))
    out = F.scaled_dot_product_attention(
        blocks.take(q).transpose(1, 2),
        _around(blocks.take(k), 0).transpose(1, 2),
        _around(blocks.take(v), 0).transpose(1, 2),
        attn_mask=blocks.mask,
        dropout_p=dropout,
    )
    return blocks.put_back(out)


def build_patches(geometry: Geometry, curve: str, patch: int, depth: int) -> Blocks:
    """Blocks for attention within patches of consecutive voxels along `curve`.

    What is left at a scene's end fills its last patch up with the voxels at the same places of the patch
    before; a scene shorter than a patch sees itself alone.
    """
    sizes = geometry.scene_sizes()
    blocks = lay_out(geometry, curve, min(patch, int(sizes.max())), depth)
    rows, scene, size = blocks.rows.clone(), blocks.scene, blocks.size
    empty = torch.nonzero(rows < 0)[:, 0]
    has_patch_before = (sizes > size)[scene[torch.div(empty, size, rounding_mode="floor")]]
    borrowing = empty[has_patch_before]
    rows[borrowing] = rows[borrowing - size]
    mask = None if bool(has_patch_before.all()) else (rows >= 0).view(-1, 1, 1, size)
    return Blocks(rows, blocks.slots, scene, size, mask)


def patch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    geometry: Geometry,
    curve: str,
    patch: int,
    depth: int = DEPTH,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention of every voxel to those of its patch, as in Point Transformer V3.

    Wu et al., "Point Transformer V3", CVPR 2024. q, k, v: (N, heads, D). patch: consecutive voxels
    along the curve that see one another, at least 1. depth: bits an axis of the curve. Returns
    (N, heads, D).
    """
    if patch < 1:
        raise ValueError(f"patch must be at least 1, got {patch}")
    if len(geometry) == 0:
        return v
    blocks = geometry.cached(
        ("patches", curve, patch, depth), lambda: build_patches(geometry, curve, patch, depth)
    )
    q, k, v = (blocks.take(x).transpose(1, 2) for x in (q, k, v))
    return blocks.put_back(F.scaled_dot_product_attention(q, k, v, attn_mask=blocks.mask, dropout_p=dropout))
