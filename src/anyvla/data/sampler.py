"""Which windows are in which batch: a pure function of (seed, batch number, rank), so that any moment can be returned to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np


@dataclass(frozen=True)
class Item:
    """One draw: the window, and the epoch that seeds its augmentation."""

    epoch: int
    index: int


class Sampler(Protocol):
    """``iter(sampler)`` yields the batches from ``batch_number`` on, without end: all there is to save and restore.

    With several ranks each takes its share of every global batch of ``batch_size * world_size`` windows.
    """

    batch_number: int
    rank: int
    world_size: int

    def batch(self, number: int) -> list[Item]:
        """This rank's part of batch ``number``, counted from the start of training."""

    def __iter__(self) -> Iterator[list[Item]]: ...


class WindowSampler:
    """Batches of a seeded shuffle, epoch after epoch; the rest of an epoch that fills no batch is left out."""

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
        epoch, position = divmod(number, self.batches_per_epoch)
        start = (position * self.world_size + self.rank) * self.batch_size
        return [Item(epoch, int(index)) for index in self.order(epoch)[start : start + self.batch_size]]

    def __iter__(self) -> Iterator[list[Item]]:
        return _from(self)


class MixtureSampler:
    """Batches from several sources in fixed shares.

    Draws come in rounds of ``_ROUND``, in each of which every source has its share to 1e-4, in a seeded order. The draws of one
    source go through seeded shuffles of its windows, one epoch of its own after the other, and no window is left out. Windows
    are numbered through all sources: those of source s from ``sum(sizes[:s])`` on.
    """

    _ROUND = 10_000

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        batches: Literal["sample", "source"] = "sample",
    ) -> None:
        """``sizes``, ``weights``: windows, and share in any unit, of each source.

        ``batches``: draw the source for every window, or once for a whole global batch.
        """
        if not sizes or min(sizes) < 1:
            raise ValueError("a mixture needs at least one window of each source")
        self.sizes = list(sizes)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batch_number = 0
        self._batches = batches
        self._shares = _shares(weights, self._ROUND)
        self._offsets = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # of each source: epoch and its permutation
        self._current: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0), np.empty(0))

    def batch(self, number: int) -> list[Item]:
        size = self.batch_size * self.world_size
        own = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        if self._batches == "source":
            source, draw = self._draw(number)
            return [self._item(source, draw * size + i) for i in own]
        return [self._item(*self._draw(number * size + i)) for i in own]

    def _draw(self, number: int) -> tuple[int, int]:
        """The source of draw ``number``, and how many draws of this source came before."""
        around, position = divmod(number, self._ROUND)
        if self._current[0] != around:
            sources = np.repeat(np.arange(len(self._shares)), self._shares)
            sources = np.random.default_rng([self.seed, 1, around]).permutation(sources)
            before = np.empty(self._ROUND, dtype=np.int64)
            for source, share in enumerate(self._shares):
                before[sources == source] = np.arange(share)
            self._current = (around, sources, before)
        source = int(self._current[1][position])
        return source, around * int(self._shares[source]) + int(self._current[2][position])

    def _item(self, source: int, draw: int) -> Item:
        epoch, position = divmod(draw, self.sizes[source])
        known, order = self._orders.get(source, (-1, np.empty(0)))
        if known != epoch:
            order = np.random.default_rng([self.seed, 2, source, epoch]).permutation(self.sizes[source])
            self._orders[source] = (epoch, order)
        return Item(epoch, int(self._offsets[source] + order[position]))

    def __iter__(self) -> Iterator[list[Item]]:
        return _from(self)


def _from(sampler: Sampler) -> Iterator[list[Item]]:
    number = sampler.batch_number
    while True:
        yield sampler.batch(number)
        number += 1


def _shares(weights: Sequence[float], total: int) -> np.ndarray:
    """(S,) whole numbers that sum to ``total``, as near to the ``weights`` as can be, none of them 0."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    shares = np.maximum(np.floor(exact).astype(np.int64), 1)
    while shares.sum() != total:  # at most once for each source
        missing = exact - shares
        if shares.sum() < total:
            shares[np.argmax(missing)] += 1
        else:
            shares[np.argmin(np.where(shares > 1, missing, np.inf))] -= 1
    return shares
