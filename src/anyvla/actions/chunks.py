"""Cutting episodes into windows of H observations, each with the chunk of L actions that begins at every one of its steps.

A window starts at every frame from which H frames remain, or at frame 0 of an episode shorter than H. So every frame of every
episode is in at least one window, and step h of a window sees exactly the history that a policy has h steps after its start.
Whatever lies behind the end of the episode is masked; its content is arbitrary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Windows:
    """The index of all windows of a set of episodes: ``windows[i] -> (episode, start)``.

    >>> windows = Windows([18, 5], window=8)
    >>> len(windows), windows[0], windows[10], windows[11]
    (12, (0, 0), (0, 10), (1, 0))
    """

    def __init__(self, lengths: Sequence[int], window: int) -> None:
        """``lengths``: (E,) frames per episode, each > 0; ``window``: H > 0."""
        self.window = window
        counts = np.maximum(np.asarray(lengths, dtype=np.int64) - window + 1, 1)
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def first(self, episode: int) -> int:
        """The index of the first window of ``episode``."""
        return int(self._ends[episode - 1]) if episode else 0

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        episode = int(np.searchsorted(self._ends, index, side="right"))
        return episode, index - self.first(episode)


def chunk_targets(actions: np.ndarray, start: int, window: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """The action chunks of one window.

    Args:
        actions: (T, A) actions of the whole episode.
        start: first frame of the window.
        window: H. chunk: L.

    Returns:
        targets (H, L, A): ``targets[h, l]`` is the action at frame ``start + h + l``;
        mask (H, L) bool: False where that frame does not exist, for all l where frame ``start + h`` does not.
    """
    length = len(actions)
    frames = start + np.arange(window)[:, None] + np.arange(chunk)[None, :]
    return actions[np.minimum(frames, length - 1)], frames < length
