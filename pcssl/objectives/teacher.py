"""The momentum teacher."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Teacher(nn.Module):
    """An exponential moving average of a network; never trained, always in eval mode.

    batch_statistics: its BatchNorms use the batch in hand all the same, as MoCo v3 and BYOL do; the student's
    running statistics lag behind weights that move as fast as at the start of a run.
    share_frozen: parameters that the student does not train are the student's own, not copies.
    """

    def __init__(self, student: nn.Module, batch_statistics: bool = False, share_frozen: bool = False):
        super().__init__()
        self.batch_statistics = batch_statistics
        shared = {id(p): p for p in student.parameters() if share_frozen and not p.requires_grad}
        self.network = copy.deepcopy(student, shared)
        self.network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        super().train(False)
        for module in self.modules() if self.batch_statistics else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = True
        return self

    @torch.no_grad()
    def forward(self, *inputs):
        return self.network(*inputs)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student; buffers are copied."""
        pairs = [(mine, p.detach()) for mine, p in zip(self.network.parameters(), student.parameters()) if mine is not p]
        torch._foreach_lerp_(*map(list, zip(*pairs)), 1 - momentum)
        for mine, theirs in zip(self.network.buffers(), student.buffers()):
            mine.copy_(theirs)
