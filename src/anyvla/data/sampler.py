"""Which windows are in which batch: a pure function of (seed, batch number, rank), so that any moment can be returned to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Item:
    """One draw: the window, and the epoch that seeds its augmentation."""

    epoch: int
    index: int


class WindowSampler:
    """Batches of a seeded shuffle, epoch after epoch without end; the rest of an epoch that fills no batch is left out.

    With several ranks each takes its share of every global batch of ``batch_size * world_size`` windows.
    ``iter(sampler)`` yields the batches from ``sampler.batch_number`` on, which is all there is to save and restore.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if size == 0:
            raise ValueError("a sampler needs at least one window")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batch_number = 0
        self.batches_per_epoch = max(1, size // (batch_size * world_size))
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of all windows in ``epoch``; repeated where it is shorter than one global batch."""
        if self._order[0] != epoch:
            permutation = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            self._order = (epoch, np.resize(permutation, max(self.size, self.batch_size * self.world_size)))
        return self._order[1]

    def batch(self, number: int) -> list[Item]:
        """This rank's part of batch ``number``, counted from the start of training."""
        epoch, position = divmod(number, self.batches_per_epoch)
        start = (position * self.world_size + self.rank) * self.batch_size
        return [Item(epoch, int(index)) for index in self.order(epoch)[start : start + self.batch_size]]

    def __iter__(self) -> Iterator[list[Item]]:
        number = self.batch_number
        while True:
            yield self.batch(number)
            number += 1
