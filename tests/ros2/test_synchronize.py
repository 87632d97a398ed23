"""The rules of ``anyvla.ros2.synchronize``, as properties over random recordings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.ros2.synchronize import cut, in_force, mean_in_force, message_times, newest

moments = st.lists(st.floats(0, 20), min_size=1, max_size=60).map(lambda values: np.array(sorted(values)))
rates = st.sampled_from([1.0, 2.5, 5.0, 30.0])


@given(moments, moments, st.floats(0.05, 2))
def test_never_a_future_frame_and_never_an_old_one(times: np.ndarray, ticks: np.ndarray, max_age: float) -> None:
    index = newest(times, ticks, max_age)
    for tick, i in zip(ticks, index, strict=True):
        if i >= 0:
            assert tick - max_age <= times[i] <= tick
            assert not ((times > times[i]) & (times <= tick)).any()
        else:
            assert not ((times <= tick) & (tick - times <= max_age)).any()


@given(moments, rates, st.floats(0.1, 1), st.one_of(st.none(), st.floats(-3, 3)))
def test_every_tick_of_an_episode_has_its_frame(times: np.ndarray, fps: float, age: float, anchor: float | None) -> None:
    second = times + 0.03
    stretches = cut({"a": times, "b": second}, {}, [(0.0, "go")], fps, age, anchor)
    before = -np.inf
    for stretch in stretches:
        assert np.allclose(np.diff(stretch.times), 1 / fps)
        assert stretch.times[0] > before
        before = stretch.times[-1]
        for camera, stamps in (("a", times), ("b", second)):
            shown = stamps[stretch.frames[camera]]
            assert (shown <= stretch.times).all()
            assert (stretch.times - shown <= age).all()
            assert (np.diff(stretch.frames[camera]) >= 0).all()
        if anchor is not None:
            beats = (stretch.times - anchor) * fps
            assert np.allclose(beats, np.round(beats), atol=1e-6)


@given(moments, st.floats(0.2, 2), st.integers(0, 2**31))
def test_a_command_holds_until_the_next_or_the_gap(times: np.ndarray, gap: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, ticks = rng.normal(size=(len(times), 2)), rng.uniform(-1, 22, 50)
    held = in_force(times, values, ticks, gap)
    for tick, action in zip(ticks, held, strict=True):
        past = np.flatnonzero(times <= tick)
        alive = len(past) > 0 and tick - times[past[-1]] <= gap
        assert np.array_equal(action, values[past[-1]] if alive else np.zeros(2))


@given(moments, st.floats(0.2, 2), st.integers(0, 2**31))
def test_the_mean_is_the_mean_of_what_is_in_force(times: np.ndarray, gap: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, ticks, step = rng.normal(size=(len(times), 2)), rng.uniform(-1, 22, 5), 0.4
    mean = mean_in_force(times, values, ticks, gap, step)
    fine = (np.arange(4000) + 0.5) / 4000 * step
    for tick, action in zip(ticks, mean, strict=True):
        assert np.allclose(action, in_force(times, values, tick + fine, gap).mean(axis=0), atol=0.02)


def test_no_commands_are_zeros() -> None:
    nothing = np.zeros(0), np.zeros((0, 3))
    assert in_force(*nothing, np.arange(4.0), 0.5).tolist() == [[0] * 3] * 4
    assert mean_in_force(*nothing, np.arange(4.0), 0.5, 0.2).tolist() == [[0] * 3] * 4


def test_a_late_instruction_holds_from_the_start_and_a_new_one_begins_an_episode() -> None:
    frames = np.arange(0, 10, 0.1)
    stretches = cut({"front": frames}, {}, [(1.5, "left"), (3.0, "left"), (6.01, "right"), (8.01, "")], 5.0, 0.25)
    assert [(s.instruction, round(s.times[0], 2), round(s.times[-1], 2)) for s in stretches] == [
        ("left", 0.0, 6.0),
        ("right", 6.2, 8.0),
    ]


def test_a_gap_ends_an_episode_and_an_instruction_stays() -> None:
    frames = np.concatenate([np.arange(0, 3, 0.1), np.arange(5, 8, 0.1)])
    stretches = cut({"front": frames}, {}, [(6.0, "go")], 5.0, 0.25)
    assert [(s.instruction, len(s.times)) for s in stretches] == [(None, 15), ("go", 15)]
    assert [s.instruction for s in cut({"front": frames}, {}, [(-9.0, "go")], 5.0, 0.25)] == ["go", "go"]


def test_a_second_camera_that_fails_ends_an_episode() -> None:
    front, wrist = np.arange(0, 10, 0.1), np.concatenate([np.arange(0, 4, 0.1), np.arange(6, 10, 0.1)])
    stretches = cut({"front": front, "wrist": wrist}, {}, [(0.0, "go")], 5.0, 0.25)
    assert [(round(s.times[0], 2), round(s.times[-1], 2)) for s in stretches] == [(0.0, 4.0), (6.0, 9.8)]


def test_stamps_a_day_apart_make_no_million_ticks() -> None:
    frames = np.array([0.0, 0.1, 0.2, 1e9, 1e9 + 0.1, 1e9 + 0.2])
    assert sum(len(s.times) for s in cut({"front": frames}, {}, [], 10.0, 0.25)) <= 6


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([9.9, 10.4, 10.9], [9.9, 10.4, 10.9]),  # stamped when taken
        ([np.nan, np.nan, np.nan], [10, 10.5, 11]),  # no stamps
        ([9.9, np.nan, 10.9], [9.9, 10.5, 10.9]),  # one without
        ([10.2, 10.7, 11.2], [10, 10.5, 11]),  # in the future: another clock
        ([5.0, 5.5, 6.0], [10, 10.5, 11]),  # long ago: another clock
        ([9.9, 0.5, 10.9], [9.9, 10.5, 10.9]),  # a jump
        ([9.9, 10.9, 10.9], [9.9, 10.5, 10.9]),  # a jump forward
    ],
)
def test_which_clock_counts(stamps: list[float], expected: list[float]) -> None:
    received = np.array([10, 10.5, 11])
    assert message_times(received, np.array(stamps)).tolist() == expected


@given(st.lists(st.tuples(st.floats(0, 100), st.one_of(st.just(np.nan), st.floats(-1e10, 1e10))), min_size=1, max_size=30))
def test_a_message_is_never_from_after_its_arrival(pairs: list[tuple[float, float]]) -> None:
    received, stamps = np.array(pairs).T
    times = message_times(received, stamps)
    assert (times <= received).all()
    assert (received - times <= 1.0).all()
