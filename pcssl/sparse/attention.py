"""Local attention along a space-filling curve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.sparse.tensor import Geometry


@dataclass(frozen=True)
class Windows:
    """Scenes laid out along a curve and cut into blocks of half a window.

    rows: (B * half,) int64 voxel at every place, -1 for padding (each scene fills whole blocks).
    slots: (N,) int64, the place of every voxel.
    mask: (B, 1, half, 3 * half) bool, which places of the blocks before, of and after each query sees.
    """

    rows: Tensor
    slots: Tensor
    mask: Tensor
    half: int


def build_windows(geometry: Geometry, curve: str, window: int) -> Windows:
    """Blocks for attention to all |i - j| <= window // 2 along `curve`; memory O(N window)."""
    order, sizes = geometry.curve_order(curve), geometry.scene_sizes()
    # A scene shorter than half a window is one block: a longer one would only hold padding.
    half = min(window // 2, int(sizes.max()))
    blocks = torch.div(sizes + half - 1, half, rounding_mode="floor")
    first_slot = (blocks.cumsum(0) - blocks) * half
    first_row = sizes.cumsum(0) - sizes
    rank = torch.arange(len(order), device=order.device)
    slot = rank + torch.repeat_interleave(first_slot - first_row, sizes)
    rows = order.new_full((int(blocks.sum()) * half,), -1)
    rows[slot] = order
    slots = torch.empty_like(slot)
    slots[order] = slot

    scene = torch.repeat_interleave(torch.arange(len(sizes), device=order.device), blocks)
    occupied = _around(torch.where(rows.view(-1, half) >= 0, scene[:, None], -1), -1)
    same_scene = occupied == scene[:, None]
    query = torch.arange(half, device=order.device)[:, None]
    key = torch.arange(3 * half, device=order.device)[None, :] - half
    band = (query - key).abs() <= window // 2
    return Windows(rows, slots, (band & same_scene[:, None, :])[:, None], half)


def _around(blocks: Tensor, fill: float) -> Tensor:
    """(B, half, ...) -> (B, 3 * half, ...): each block with the ones before and after it."""
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
    w = geometry.cached(("windows", curve, window), lambda: build_windows(geometry, curve, window))

    def blocks(x: Tensor) -> Tensor:
        padded = x.index_select(0, w.rows.clamp(min=0))
        return padded.view(-1, w.half, *x.shape[1:])

    out = F.scaled_dot_product_attention(
        blocks(q).transpose(1, 2),
        _around(blocks(k), 0).transpose(1, 2),
        _around(blocks(v), 0).transpose(1, 2),
        attn_mask=w.mask,
        dropout_p=dropout,
    )
    return out.transpose(1, 2).reshape(-1, *q.shape[1:]).index_select(0, w.slots)
