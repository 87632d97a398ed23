"""The robot's state and absent cameras, from the files of the episodes to the actions of the robot."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from anyvla.checkpoint import check_example, load_checkpoint, resolve_checkpoint
from anyvla.cli import app
from anyvla.config import load_config
from anyvla.data.dataset import collate
from anyvla.data.prepare import prepare_data
from anyvla.data.sampler import Item
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.errors import ConfigError, DataError
from anyvla.policies.policy import Policy
from anyvla.training.loop import train
from tests.conftest import write_episode

STRUCTURES = {
    "policy_head": ["model.head.layers=1"],
    "interleaved": ["model.structure.type=interleaved", "model.head={type: fc, hidden: 16, trunk: [16]}"],
    "discrete": ["model.structure.type=interleaved", "model.head={type: discrete, bins: 8}"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "episodes"
    folder.mkdir()
    for i in range(4):
        rng = np.random.default_rng(i)
        further = {"rear": rng.integers(0, 256, (6, 20, 30, 3), dtype=np.uint8)} if i % 2 else None
        states = rng.uniform(-3, 3, (6, 2))
        write_episode(folder / f"{i}.h5", 6, seed=i, further_images=further, states=states, state_names=["speed", "yaw"])
    return folder


@pytest.fixture
def overrides(folder: Path, tiny_overrides: list[str]) -> list[str]:
    return [
        *tiny_overrides,
        f"data.source.path={folder}",
        "data.augment={drop_camera: 0.5}",
        "observation.optional_cameras=[rear]",
        "observation.state=[yaw,speed]",
        "training.steps=2",
        "policy.execution.type=first",
        "policy.safety.rate_limit=false",
    ]


@pytest.fixture(params=STRUCTURES)
def policy(request: pytest.FixtureRequest, overrides: list[str]) -> Policy:
    return Policy.load(train(load_config("nav-tiny", [*overrides, *STRUCTURES[request.param]])))


def test_the_robot_sees_what_training_saw(policy: Policy, overrides: list[str], folder: Path, monkeypatch) -> None:
    """Driving through a recorded episode, the model gets the very images, states and cameras of the training batch."""
    data = prepare_data(load_config("nav-tiny", [*overrides, "data.augment={}"]))
    source = MobileH5Source(folder, policy.transforms.spec)
    given = []
    step = policy._model.step

    def note(images, prompts, states, state, present):
        given.append((images, state, present))
        return step(images, prompts, states, state, present)

    monkeypatch.setattr(policy._model, "step", note)
    for number, item in ((i, Item(0, i)) for i in range(len(data.train))):
        name, start = data.train[item]["name"].split("@")
        batch = collate([data.train[item]])
        episode = next(e for e in map(source.episode, range(4)) if e.name == name)
        policy.reset(episode.instruction)
        given.clear()
        for t in range(int(start), int(start) + 4):
            frames = {camera: images[0] for camera, images in episode.read(t, t + 1, episode.cameras).items()}
            policy.act(frames, state=episode.state[t, [1, 0]])
        for h, (images, state, present) in enumerate(given):
            assert list(images) == list(batch.images) == ["front", "rear"]
            assert all(torch.equal(images[camera], batch.images[camera][:, h]) for camera in images), number
            assert torch.equal(state, batch.state[:, h])
            assert (present is None) == (batch.present is None) == ("rear" in episode.cameras)
            assert present is None or torch.equal(present, batch.present)


def test_robots_with_and_without_the_camera_share_a_batch(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    front, rear = (rng.integers(0, 256, (2, 5, 36, 64, 3), dtype=np.uint8) for _ in range(2))
    states = rng.uniform(-3, 3, (2, 5, 2))

    def images(row: int, t: int) -> dict[str, np.ndarray]:
        return {"front": front[row, t]} | ({"rear": rear[row, t]} if row else {})

    alone = []
    for row in range(2):
        policy.reset("Left.")
        alone.append([policy.act(images(row, t), state=states[row, t]) for t in range(5)])
    sessions = [policy.start("Left."), policy.start("Left.")]
    for t in range(5):
        together = policy.act_batch(sessions, [images(0, t), images(1, t)], states=[*states[:, t]])
        np.testing.assert_allclose(together, [alone[0][t], alone[1][t]], atol=1e-5)


def test_the_spec_names_state_and_optional_cameras_and_wrong_use_is_answered(policy: Policy) -> None:
    spec = policy.spec()
    assert (spec.cameras, spec.optional_cameras, spec.state) == (("front", "rear"), ("rear",), ("yaw", "speed"))
    image = np.zeros((36, 64, 3), np.uint8)
    policy.reset("Left.")
    for state, message in (
        (None, r"lacks the robot's state: yaw, speed"),
        ([1.0, 2.0, 3.0], r"2 numbers \(yaw, speed\)"),
        ([1.0, float("nan")], "speed is nan"),
    ):
        with pytest.raises(DataError, match=message):
            policy.act({"front": image}, state=state)
    with pytest.raises(DataError, match="lacks the camera 'front'"):
        policy.act({"rear": image}, state=[1.0, 2.0])
    assert np.isfinite(policy.act({"front": image}, state=[1.0, 2.0])).all()


def test_the_checkpoint_reproduces_its_example_and_inspection_tells_what_to_feed(overrides: list[str]) -> None:
    run = train(load_config("nav-tiny", overrides))
    assert check_example(load_checkpoint(run)) == 0
    result = CliRunner().invoke(app, ["inspect", "run", str(run)])
    assert result.exit_code == 0, result.output
    spec = json.loads(result.output[result.output.index("{") : result.output.index("\n}") + 2])
    assert (spec["state"], spec["optional_cameras"]) == (["yaw", "speed"], ["rear"])


def test_a_run_goes_on_with_the_same_states_only(overrides: list[str], folder: Path) -> None:
    config = load_config("nav-tiny", overrides)
    run = train(config)
    progress = resolve_checkpoint(run) / "training_state" / "state.json"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | {"step": 1}))
    for path in folder.iterdir():
        with h5py.File(path, "a") as file:
            file["states"][0, 0] += 1
    with pytest.raises(ConfigError, match="the data have changed"):
        train(config, resume=True)
    with pytest.raises(ConfigError, match=r"begun with other settings: observation\.state"):
        train(load_config("nav-tiny", [*overrides, "observation.state=[speed,yaw]"]), resume=True)
