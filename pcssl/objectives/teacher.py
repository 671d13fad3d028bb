"""The momentum teacher."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Teacher(nn.Module):
    """An exponential moving average of a network; never trained, always in eval mode."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.network = copy.deepcopy(student)
        self.network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs):
        return self.network(*inputs)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student; buffers are copied."""
        torch._foreach_lerp_(
            list(self.network.parameters()), [p.detach() for p in student.parameters()], 1 - momentum
        )
        for mine, theirs in zip(self.network.buffers(), student.buffers()):
            mine.copy_(theirs)
