"""Batches by step number: the order and every random draw follow from (seed, step) alone."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pcssl.data.crops import SceneChange
from pcssl.data.scene import Scene
from pcssl.data.settings import SampleConfig
from pcssl.errors import UserError
from pcssl.sparse import current_engine
from pcssl.training.bad_scenes import BadScene, BadScenes


class _Unreadable(Exception):
    def __init__(self, index: int, reason: Exception):
        super().__init__(str(reason))
        self.index = index


@dataclass(frozen=True)
class _Watched(Sequence):
    """Scenes that say which of them could not be read."""

    scenes: Sequence[Scene]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        try:
            return self.scenes[index]
        except (UserError, ValueError, OSError) as error:
            raise _Unreadable(index, error) from error


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
    """Occupied voxels of every scene; 0 of one that cannot be read, which others stand in for later."""

    def count(index: int) -> int:
        try:
            return len(current_engine().voxelize(scenes[index].coord, voxel_size).coords)
        except (UserError, ValueError, OSError):
            return 0

    return [count(index) for index in range(len(scenes))]


def plan_batches(scenes: Sequence[Scene], data: SampleConfig, epochs: int, seed: int) -> BatchesByCount | BatchesByVoxels:
    """The batches of a whole run, by the config's `max_voxels` or else `batch_size`."""
    if data.max_voxels is None:
        return BatchesByCount(len(scenes), data.batch_size, epochs, seed)
    return BatchesByVoxels(count_voxels(scenes, data.voxel_size), data.max_voxels, epochs, seed)


@dataclass(frozen=True)
class StepBatches(Dataset):
    """Item `step` is the collated batch of that step, whatever the number of workers, and the bad scenes met.

    A bad scene's place is taken by others, drawn from (seed, step) too. With more than `allowed` bad scenes in one
    batch it is None.

    indices: step -> the scenes of its batch. change: what happens to a scene before it is sampled.
    """

    scenes: Sequence[Scene]
    sampler: Callable[[Scene, torch.Generator], Any]
    collate: Callable[[list[Any]], Any]
    indices: Callable[[int], list[int]]
    seed: int
    change: SceneChange = SceneChange()
    allowed: int = 0

    def __getitem__(self, step: int) -> tuple[Any, list[BadScene]]:
        samples, bad = [], {}
        for slot, index in enumerate(self.indices(step)):
            for attempt, candidate in enumerate(self._candidates(index, step, slot)):
                # The first draws stay what they are without bad scenes.
                again = [attempt] if attempt else []
                seed = np.random.SeedSequence([self.seed, step, slot, *again]).generate_state(1, np.uint64)[0]
                rng = torch.Generator().manual_seed(int(seed >> 1))
                try:
                    if candidate not in bad:
                        samples.append(self.sampler(self.change(_Watched(self.scenes), candidate, rng), rng))
                        break
                # As text: exceptions lose their form on the way between processes.
                except _Unreadable as error:  # of a scene that this one was to be mixed with, perhaps
                    bad[error.index] = BadScene(error.index, _name(self.scenes, error.index), str(error))
                except (UserError, ValueError, OSError) as error:
                    bad[candidate] = BadScene(candidate, _name(self.scenes, candidate), str(error))
                if len(bad) > self.allowed:
                    return None, list(bad.values())
        return (self.collate(samples) if samples else None), list(bad.values())

    def _candidates(self, index: int, step: int, slot: int) -> Iterator[int]:
        """A scene, and those that may stand in for it."""
        yield index
        yield from np.random.default_rng([self.seed, step, slot]).permutation(len(self.scenes)).tolist()


@dataclass(frozen=True)
class Draft:
    """What a sample is made of elsewhere: the scene, and the state of the generator to go on with."""

    scene: Scene
    state: Tensor

    def pin_memory(self) -> Draft:
        return Draft(self.scene.pin_memory(), self.state)

    def finish(self, sampler: Callable[[Scene, torch.Generator], Any], device: torch.device) -> Any:
        """The sample, made on this device."""
        rng = torch.Generator()
        rng.set_state(self.state)
        return sampler(self.scene.to(device), rng)


class Drafts(list):
    """The drafts of a batch; its `pin_memory` is for torch's loader."""

    def pin_memory(self) -> Drafts:
        return Drafts(draft.pin_memory() for draft in self)


def _draft(scene: Scene, rng: torch.Generator) -> Draft:
    return Draft(scene, rng.get_state())


def _finished(batches: StepBatches, step: int, drafts: Drafts, device: torch.device) -> tuple[Any, list[BadScene]]:
    """The batch of this step and the bad scenes met, made on the device from what the workers read."""
    try:
        return batches.collate([draft.finish(batches.sampler, device) for draft in drafts]), []
    except (UserError, ValueError, OSError):
        return batches[step]  # on the CPU, which finds the bad scene and another one for it


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
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, where the C library is glibc.

    glibc gives large blocks back to the system; to get those of a sample's tensors anew takes a tenth of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # the second: the most that older ones take


def iterate(
    batches: StepBatches, steps: range, workers: int, pin: bool, bad: BadScenes, device: torch.device | None = None
) -> Iterator[tuple[int, Any]]:
    """(step, batch) for every step; `bad` gets the scenes that could not be used, and raises UserError if too many.

    device: samples are made there, in this process, and workers only read scenes; None: workers make them.
    """
    read = batches if device is None else replace(batches, sampler=_draft, collate=Drafts)
    loader = DataLoader(
        read,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        worker_init_fn=_worker_init,
        prefetch_factor=2 if workers else None,
        pin_memory=pin,
        # Else it draws from torch's global generator, and a resumed run would differ.
        generator=torch.Generator(),
    )
    for step, (batch, found) in zip(steps, loader):
        bad.add(found)
        if device is not None:
            batch, found = _finished(batches, step, batch, device)
            bad.add(found)
        yield step, batch
