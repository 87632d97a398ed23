"""World seeds: what is collected for training and what is evaluated on come from ranges that never meet."""

from __future__ import annotations

_SPAN = 1_000_000  # run seeds, episodes a run, and attempts an episode each stay below this or a smaller bound
_MAX_ATTEMPTS = 1_000
_EVALUATION = _SPAN * _SPAN * _MAX_ATTEMPTS  # collection: [0, 1e15), evaluation: [1e15, 1e15 + 1e12), unseeded: from 2e15
UNSEEDED = 2 * _EVALUATION


def collection_seed(seed: int, i: int, attempt: int = 0) -> int:
    """The world seed of episode ``i`` of a collection with ``seed``; ``attempt`` counts the worlds that were given up.

    Raises:
        ValueError: ``seed`` or ``i`` is not in [0, 1 000 000), or ``attempt`` not in [0, 1 000).
    """
    if not 0 <= attempt < _MAX_ATTEMPTS:
        raise ValueError(f"attempt must be in [0, {_MAX_ATTEMPTS}), not {attempt}")
    return attempt * _SPAN * _SPAN + _run(seed, i)


def evaluation_seed(seed: int, i: int) -> int:
    """The world seed of episode ``i`` of an evaluation with ``seed``; no collection ever uses it.

    Raises:
        ValueError: ``seed`` or ``i`` is not in [0, 1 000 000).
    """
    return _EVALUATION + _run(seed, i)


def _run(seed: int, i: int) -> int:
    if not (0 <= seed < _SPAN and 0 <= i < _SPAN):
        raise ValueError(f"seed and episode number must be in [0, {_SPAN}), not {seed} and {i}")
    return seed * _SPAN + i
