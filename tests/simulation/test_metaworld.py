from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from anyvla.actions.spec import ACTION_SPECS
from anyvla.errors import ConfigError, MissingExtraError, SimulationError
from anyvla.simulation.gl import choose_backend
from anyvla.simulation.metaworld_tasks import DEMO_TASKS, SENTENCES, select_tasks, sentence, wordings


def test_training_and_held_out_wordings_of_the_demo_are_all_different() -> None:
    said = [line for task in DEMO_TASKS for split in ("train", "held_out") for line in wordings(task, split)]
    assert len(set(said)) == len(said)
    assert all(len(wordings(task, "train")) > 3 and len(wordings(task, "held_out")) > 1 for task in DEMO_TASKS)
    rng = np.random.default_rng(0)
    assert {sentence("faucet-open-v3", rng) for _ in range(100)} == set(wordings("faucet-open-v3"))
    assert len(set(SENTENCES.values())) == len(SENTENCES) == 50


def test_tasks_are_named_or_matched() -> None:
    assert select_tasks("demo") == DEMO_TASKS
    assert select_tasks("reach-v3, window-*,reach-v3") == ("reach-v3", "window-close-v3", "window-open-v3")
    assert len(select_tasks("all")) == 50
    with pytest.raises(ConfigError, match="did you mean 'drawer-open-v3'"):
        select_tasks("reach-v3,drawer-opn-v3")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    choose_backend()
    from anyvla.simulation.metaworld import MetaWorld

    monkeypatch.setitem(sys.modules, "metaworld", None)
    monkeypatch.delitem(sys.modules, "metaworld.env_dict", raising=False)
    with pytest.raises(MissingExtraError, match=r"anyvla\[metaworld\]"):
        MetaWorld()


@pytest.fixture(scope="module")
def cameras() -> Iterator:
    pytest.importorskip("metaworld")
    choose_backend()
    from anyvla.simulation.metaworld import ArmCameras

    opened = ArmCameras()
    yield opened
    opened.close()


def _worlds(cameras, **options):
    from anyvla.simulation.metaworld import MetaWorld

    return MetaWorld(cameras, **{"image_size": (24, 32), **options})


def _trace(world, task: str, seed: int, new_start: bool = False, steps: int = 6) -> list[bytes]:
    """Pictures, states and expert's actions of the beginning of an episode."""
    world.reset(task, seed, new_start=new_start)
    seen = []
    for _ in range(steps):
        seen += [world.images()["corner"].tobytes(), world.state().tobytes(), world.expert().tobytes()]
        world.step(world.expert())
    return seen


def test_our_sentences_are_of_the_tasks_of_the_package(cameras) -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(SENTENCES) == set(ALL_V3_ENVIRONMENTS)


def test_the_same_seed_gives_the_same_bits_whatever_was_shown_before(cameras) -> None:
    first, second = (_worlds(cameras, disturbances=0.2) for _ in range(2))
    expected = _trace(first, "drawer-open-v3", 5)
    _trace(second, "faucet-open-v3", 1)
    _trace(second, "drawer-open-v3", 6, new_start=True, steps=20)
    assert _trace(second, "drawer-open-v3", 5) == expected
    assert _trace(second, "drawer-open-v3", 6) != expected
    assert _trace(second, "drawer-open-v3", 5, new_start=True) == _trace(first, "drawer-open-v3", 5, new_start=True) != expected


def test_the_experts_do_the_tasks_of_the_demo(cameras) -> None:
    from anyvla.simulation.metaworld import MAX_STEPS

    world = _worlds(None)
    for task in DEMO_TASKS:
        for new_start in (False, True):
            world.reset(task, 3, new_start=new_start)
            while not world.over:
                world.step(world.expert())
            assert world.success, task
            assert world.steps < MAX_STEPS / 2


def test_time_is_up_after_the_promised_steps(cameras) -> None:
    from anyvla.simulation.metaworld import MAX_STEPS

    world = _worlds(None)
    world.reset("drawer-open-v3", 3)
    while not world.over:
        world.step(np.zeros(4))
    assert (world.steps, world.success) == (MAX_STEPS, False)


def test_a_new_start_moves_the_hand_and_nothing_else(cameras) -> None:
    from anyvla.simulation.metaworld import START_HIGH, START_LOW

    world = _worlds(None)
    world.reset("faucet-close-v3", 8)
    usual, things = world.state(), world.expert_sees[4:7].copy()
    places = []
    for seed in range(4):
        world.reset("faucet-close-v3", 8 + 100 * seed, new_start=True)
        places.append(world.state()[:3] - usual[:3])
        if seed == 0:
            np.testing.assert_allclose(world.expert_sees[4:7], things, atol=1e-3)
    assert np.ptp(places, axis=0).max() > 0.02
    assert (np.array(places) > START_LOW - 0.02).all()
    assert (np.array(places) < START_HIGH + 0.02).all()


def test_pushes_move_the_hand_and_leave_the_experts_action(cameras) -> None:
    calm, pushed = _worlds(None), _worlds(None, disturbances=1.0)
    for world in (calm, pushed):
        world.reset("drawer-open-v3", 2)
    np.testing.assert_array_equal(calm.expert(), pushed.expert())
    for _ in range(8):
        calm.step(np.zeros(4))
        pushed.step(np.zeros(4))
    assert np.linalg.norm(calm.state()[:3] - pushed.state()[:3]) > 0.02


def test_open_and_close_cannot_be_told_apart_by_the_picture(cameras) -> None:
    world = _worlds(cameras, image_size=(64, 64))
    pictures = []
    for task in ("faucet-open-v3", "faucet-close-v3"):
        world.reset(task, 0)
        env = world.simulator
        env._freeze_rand_vec, env._last_rand_vec = True, np.array([0.02, 0.82, 0.0])
        env.reset()
        assert env.model.site("goal_open").rgba[3] == env.model.site("goal_close").rgba[3] == 0
        pictures.append(world.images()["corner"].astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.2  # the arm hangs a twentieth of a millimetre differently


def test_what_is_wrong_is_said(cameras) -> None:
    with pytest.raises(ConfigError, match="did you mean 'corner'"):
        _worlds(None, views=("corne",))
    with pytest.raises(ConfigError, match="probability"):
        _worlds(None, disturbances=2.0)
    with pytest.raises(ConfigError, match="2048"):
        _worlds(None, image_size=(4, 4))
    world = _worlds(None)
    with pytest.raises(ConfigError, match="unknown task"):
        world.reset("drawer-opn-v3", 0)
    world.reset("reach-v3", 0)
    with pytest.raises(SimulationError, match="without cameras"):
        world.images()
    for action in (np.zeros(3), [0, 0, 0, np.nan]):
        with pytest.raises(ValueError, match="4 finite numbers"):
            world.step(action)
    assert len(ACTION_SPECS["metaworld4"]) == 4
