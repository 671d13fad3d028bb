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

from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.training.bad_scenes import BadScene, BadScenes


@dataclass(frozen=True)
class StepBatches(Dataset):
    """Item `step` is the collated batch of that step, whatever the number of workers, and the bad scenes met.

    A bad scene's place is taken by others, drawn from (seed, step) too. With more than `allowed` bad scenes in one
    batch it is None.

    An epoch goes once through a new permutation of the scenes; what does not fill a batch at
    its end is left out, and fewer scenes than a batch are repeated to fill one.
    """

    scenes: Sequence[Scene]
    sampler: Callable[[Scene, torch.Generator], Any]
    collate: Callable[[list[Any]], Any]
    batch_size: int
    seed: int
    allowed: int = 0

    def indices(self, step: int) -> list[int]:
        """The scenes of this step's batch."""
        epoch, place = divmod(step, steps_per_epoch(len(self.scenes), self.batch_size))
        order = _permutation(self.seed, epoch, len(self.scenes))
        return [int(i) for i in np.resize(order[place * self.batch_size :], self.batch_size)]

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
                        samples.append(self.sampler(self.scenes[candidate], rng))
                        break
                # As text: exceptions lose their form on the way between processes.
                except (UserError, ValueError, OSError) as error:
                    bad[candidate] = BadScene(candidate, _name(self.scenes, candidate), str(error))
                if len(bad) > self.allowed:
                    return None, list(bad.values())
        return (self.collate(samples) if samples else None), list(bad.values())

    def _candidates(self, index: int, step: int, slot: int) -> Iterator[int]:
        """A scene, and those that may stand in for it."""
        yield index
        yield from np.random.default_rng([self.seed, step, slot]).permutation(len(self.scenes)).tolist()


def steps_per_epoch(scenes: int, batch_size: int) -> int:
    return max(1, scenes // batch_size)


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


def iterate(batches: StepBatches, steps: range, workers: int, pin: bool, bad: BadScenes) -> Iterator[tuple[int, Any]]:
    """(step, batch) for every step; `bad` gets the scenes that could not be used, and raises UserError if too many."""
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
    for step, (batch, found) in zip(steps, loader):
        bad.add(found)
        yield step, batch
