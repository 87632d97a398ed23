from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyvla.actions.spec import ARM7, NAV2
from anyvla.data import stats
from anyvla.data.stats import action_statistics, exact_statistics, state_statistics
from anyvla.errors import DataError
from tests.data.packing import make_episode


@settings(max_examples=40)
@given(st.integers(1, 400), st.integers(1, 5), st.integers(0, 9), st.sampled_from([1, 900, 2**29]))
def test_statistics_are_those_of_numpy_however_little_memory_there_is(rows: int, width: int, seed: int, memory: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(3, 2, (rows, width)).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = 0.5  # ties
    cuts = np.sort(rng.integers(0, rows + 1, 4))
    found = exact_statistics(lambda: np.split(values, cuts), rows, width, memory)
    wide = values.astype(np.float64)
    expected = {"min": wide.min(0), "max": wide.max(0), "mean": wide.mean(0), "std": wide.std(0)}
    expected |= dict(zip(("q01", "q99"), np.quantile(wide, [0.01, 0.99], axis=0), strict=True))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_what_was_found_for_the_same_episodes_is_kept(tmp_path: Path, monkeypatch) -> None:
    episodes = [make_episode(ARM7, str(i), 20, state=["x"], seed=i) for i in range(3)]
    first = action_statistics(episodes, tmp_path, "k"), state_statistics(episodes, tmp_path, "k")
    computed = []
    monkeypatch.setattr(stats, "exact_statistics", lambda *a: computed.append(a) or {name: np.zeros(1) for name in stats.NAMES})
    again = action_statistics(episodes, tmp_path, "k"), state_statistics(episodes, tmp_path, "k")
    assert not computed
    for one, other in zip(first, again, strict=True):
        for name in stats.NAMES:
            np.testing.assert_array_equal(one[name], other[name])
    action_statistics(episodes, tmp_path, "another frame of reference")
    action_statistics(episodes[:2], tmp_path, "k")
    action_statistics([*episodes[:2], make_episode(ARM7, "2", 20, state=["x"], seed=7)], tmp_path, "k")
    assert len(computed) == 3
    for file in (tmp_path / "statistics").iterdir():
        file.write_text(file.read_text()[:40])  # damaged: found anew
    action_statistics(episodes, tmp_path, "k")
    assert len(computed) == 4


def test_values_that_are_not_finite_are_named() -> None:
    bad = make_episode(NAV2, "bad", 5)
    bad = replace(bad, actions=np.where(bad.actions > 0, np.inf, bad.actions).astype(np.float32))
    with pytest.raises(DataError, match="bad: actions hold non-finite"):
        action_statistics([make_episode(NAV2), bad])
    with pytest.raises(DataError, match="no episodes"):
        action_statistics([])
