"""What the trainer knows of a method, in 3D and 2D alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Objective(nn.Module, ABC):
    """A pre-training method: how scenes or images become samples, what the loss is, what learns how.

    A method is a subclass registered with `@register("objective", name, config=...)`, built as
    `factory(config, backbone, data, total_steps)`: the backbone to train, the run's
    `data:` section (voxel size and augmentation, or channels) and the number of steps of the whole run.
    """

    counted: str = "voxels"
    """What the log counts by the second: a batch says how many it has as `num_<counted>`."""

    watched: bool = False
    """Set by the trainer on the steps whose numbers it logs: `forward` may add health metrics then."""

    samples_on_device: bool = False
    """Whether the sampler and `collate` also work on scenes in a GPU's memory."""

    @abstractmethod
    def sampler(self) -> Callable[[Any, torch.Generator], Any]:
        """A picklable function that makes a training sample from a scene or an image.

        It runs in loader workers on the CPU, with `samples_on_device` also on the scene's device. All randomness
        comes from the generator, which is one of the CPU. It raises ValueError for an item it cannot use.
        """

    @abstractmethod
    def collate(self, samples: list[Any]) -> Any:
        """Samples to a batch with `.to(device)` and `.num_<counted>`."""

    @abstractmethod
    def forward(self, batch: Any, step: int) -> dict[str, torch.Tensor]:
        """`loss`, a scalar with gradient, and named detached scalars to log."""

    @abstractmethod
    def backbone(self) -> nn.Module:
        """The network that evaluation should use: a submodule of this one."""

    def lr_factor(self, name: str) -> float:
        """What the learning rate of the parameter called `name` is multiplied with."""
        return 1.0

    def after_step(self, step: int) -> dict[str, float]:
        """Called after the optimizer's step number `step` (from 0); returns numbers to log."""
        return {}
