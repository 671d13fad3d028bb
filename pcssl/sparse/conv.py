"""Convolution layers. Weights have spconv 2's layout (out, k, k, k, in), so released ones load."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pcssl.ops.sparse_conv import KernelMap
from pcssl.sparse.engine import current_engine
from pcssl.sparse.tensor import Geometry, SparseTensor


class _Conv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1, bias: bool = True):
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.weight = nn.Parameter(torch.empty(out_channels, kernel, kernel, kernel, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(fan in), as torch's own convolutions."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _apply_map(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        out, k, _, _, into = self.weight.shape
        weight = self.weight.reshape(out, k**3, into).permute(1, 2, 0)
        return current_engine().sparse_conv(features, weight, kernel_map, self.bias)

    def extra_repr(self) -> str:
        out, k, _, _, into = self.weight.shape
        return f"{into}, {out}, kernel={k}, dilation={self.dilation}, bias={self.bias is not None}"


class SubmanifoldConv(_Conv):
    """Output voxels are the input voxels (Graham et al., 2018); odd kernels are centred."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.replace(self._apply_map(x.features, x.geometry.submanifold_map(self.kernel, self.dilation)))


class SparseConv(_Conv):
    """Stride 2: output voxels are the occupied cells of the next coarser level."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        kernel_map = x.geometry.down_map(self.kernel, self.dilation)
        return SparseTensor(self._apply_map(x.features, kernel_map), x.geometry.coarser()[0])


class SparseConvTranspose(_Conv):
    """Back from a level to the finer `target` geometry, over the pairs of the way down."""

    def forward(self, x: SparseTensor, target: Geometry) -> SparseTensor:
        if target.coarser()[0] is not x.geometry:
            raise ValueError("the input is not on the coarser level of the target geometry")
        kernel_map = target.down_map(self.kernel, self.dilation).transposed
        return SparseTensor(self._apply_map(x.features, kernel_map), target)
