import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from anyvla.actions import Windows, chunk_targets


def test_the_classic_episode_gives_8_by_10_targets() -> None:
    actions = np.arange(18 * 2, dtype=np.float32).reshape(18, 2)
    targets, mask = chunk_targets(actions, start=0, window=8, chunk=10)
    assert targets.shape == (8, 10, 2)
    assert mask.all()
    np.testing.assert_array_equal(targets[3, 4], actions[7])


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), window=st.integers(1, 12), chunk=st.integers(1, 12))
def test_every_frame_is_reachable_and_the_mask_tells_the_truth(lengths: list[int], window: int, chunk: int) -> None:
    windows = Windows(lengths, window)
    observed = [np.zeros(length, dtype=bool) for length in lengths]
    acted = [np.zeros(length, dtype=bool) for length in lengths]
    for i in range(len(windows)):
        episode, start = windows[i]
        length = lengths[episode]
        targets, mask = chunk_targets(np.arange(length)[:, None], start, window, chunk)
        for h in range(window):
            assert mask[h, 0] == (start + h < length)
            if mask[h, 0]:
                observed[episode][start + h] = True
            for step in range(chunk):
                assert mask[h, step] == (start + h + step < length)
                if mask[h, step]:
                    assert targets[h, step, 0] == start + h + step
                    acted[episode][start + h + step] = True
    assert all(frames.all() for frames in observed)
    assert all(frames.all() for frames in acted)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), window=st.integers(1, 12))
def test_a_window_holds_only_real_frames_unless_the_episode_is_shorter(lengths: list[int], window: int) -> None:
    windows = Windows(lengths, window)
    seen = [windows[i] for i in range(len(windows))]
    assert len(set(seen)) == len(seen)
    for episode, start in seen:
        assert start == 0 or start + window <= lengths[episode]
