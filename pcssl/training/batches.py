"""Batches by step number: the order and every random draw follow from (seed, step) alone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pcssl.data.crops import SceneChange
from pcssl.data.scene import Scene
from pcssl.data.settings import DataConfig
from pcssl.errors import UserError
from pcssl.sparse import current_engine


@dataclass(frozen=True)
class _Failure:
    """An error in a worker, as text: exceptions lose their form on the way between processes."""

    message: str


class BatchesByCount:
    """`batch_size` scenes a step. An epoch goes once through a new permutation of the scenes; what does not
    fill a batch at its end is left out, and fewer scenes than a batch are repeated to fill one.
    """

    def __init__(self, scenes: int, batch_size: int, epochs: int, seed: int):
        self.scenes, self.batch_size, self.seed = scenes, batch_size, seed
        self.per_epoch = max(1, scenes // batch_size)
        self.total = self.per_epoch * epochs

    def indices(self, step: int) -> list[int]:
        """The scenes of this step's batch."""
        epoch, place = divmod(step, self.per_epoch)
        order = _permutation(self.seed, epoch, self.scenes)
        return [int(i) for i in np.resize(order[place * self.batch_size :], self.batch_size)]


class BatchesByVoxels:
    """As many scenes a step as have `max_voxels` in all; a larger one is alone. Every scene once an epoch."""

    def __init__(self, voxels: Sequence[int], max_voxels: int, epochs: int, seed: int):
        self.scenes, self.seed = len(voxels), seed
        self._first = [self._cut(np.asarray(voxels)[self._order(epoch)], max_voxels) for epoch in range(epochs)]
        self._starts = np.cumsum([0, *(len(first) for first in self._first)])
        self.total = int(self._starts[-1])
        self.per_epoch = self.total / epochs

    def indices(self, step: int) -> list[int]:
        """The scenes of this step's batch."""
        epoch = int(np.searchsorted(self._starts, step, side="right")) - 1
        place = step - self._starts[epoch]
        ends = [*self._first[epoch][1:], self.scenes]
        return [int(i) for i in self._order(epoch)[self._first[epoch][place] : ends[place]]]

    def _order(self, epoch: int) -> np.ndarray:
        return _permutation(self.seed, epoch, self.scenes)

    @staticmethod
    def _cut(voxels: np.ndarray, max_voxels: int) -> np.ndarray:
        """Where batches begin, the scenes in this order."""
        first, room = [], 0
        for i, count in enumerate(voxels.tolist()):
            if not first or count > room:
                first.append(i)
                room = max_voxels
            room -= count
        return np.asarray(first, dtype=np.int32)


def count_voxels(scenes: Sequence[Scene], voxel_size: float) -> list[int]:
    """Occupied voxels of every scene."""
    return [len(current_engine().voxelize(scene.coord, voxel_size).coords) for scene in scenes]


def plan_batches(scenes: Sequence[Scene], data: DataConfig, epochs: int, seed: int) -> BatchesByCount | BatchesByVoxels:
    """The batches of a whole run, by the config's `max_voxels` or else `batch_size`."""
    if data.max_voxels is None:
        return BatchesByCount(len(scenes), data.batch_size, epochs, seed)
    return BatchesByVoxels(count_voxels(scenes, data.voxel_size), data.max_voxels, epochs, seed)


@dataclass(frozen=True)
class StepBatches(Dataset):
    """Item `step` is the collated batch of that step, whatever the number of workers.

    indices: step -> the scenes of its batch. change: what happens to a scene before it is sampled.
    """

    scenes: Sequence[Scene]
    sampler: Callable[[Scene, torch.Generator], Any]
    collate: Callable[[list[Any]], Any]
    indices: Callable[[int], list[int]]
    seed: int
    change: SceneChange = SceneChange()

    def __getitem__(self, step: int) -> Any:
        samples = []
        for slot, index in enumerate(self.indices(step)):
            seed = np.random.SeedSequence([self.seed, step, slot]).generate_state(1, np.uint64)[0]
            rng = torch.Generator().manual_seed(int(seed >> 1))
            try:
                samples.append(self.sampler(self.change(self.scenes, index, rng), rng))
            except (UserError, ValueError, OSError) as error:
                return _Failure(f"scene {index} ({_name(self.scenes, index)}): {error}")
        return self.collate(samples)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _name(scenes: Sequence[Scene], index: int) -> str:
    names = getattr(scenes, "names", None)
    return names[index] if names is not None else "unnamed"


def _worker_init(_: int) -> None:
    # Ctrl-C goes to the whole process group; the main process decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def iterate(batches: StepBatches, steps: range, workers: int, pin: bool) -> Iterator[tuple[int, Any]]:
    """(step, batch) for every step; UserError for a scene that cannot be used."""
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        worker_init_fn=_worker_init,
        prefetch_factor=2 if workers else None,
        pin_memory=pin,
        # Else it draws from torch's global generator, and a resumed run would differ.
        generator=torch.Generator(),
    )
    for step, batch in zip(steps, loader):
        if isinstance(batch, _Failure):
            raise UserError(f"cannot make a training sample of {batch.message}")
        yield step, batch
