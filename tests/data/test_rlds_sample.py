"""Real Bridge episodes: 25 of them, 64 x 64 pixels, without the validation split that dataset_info.json names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from anyvla.cli import app
from anyvla.config import load_config
from anyvla.config.sources import RLDSConfig
from anyvla.data.convert import convert
from anyvla.data.sources.packed import PackedSource
from anyvla.data.sources.rlds import RLDSSource
from anyvla.errors import DataError
from anyvla.policies.policy import Policy
from tests.data.packing import assert_same


@pytest.fixture
def bridge(sample_data: Path) -> Path:
    return sample_data / "bridge_rlds" / "bridge_dataset"


def test_bridge_is_read(bridge: Path, tmp_path: Path) -> None:
    source = RLDSSource(RLDSConfig(path=bridge), cache=tmp_path)
    episodes = [source.episode(i) for i in range(len(source))]
    assert len(episodes) == 25
    assert source.problems == []
    assert source.cameras == ("primary", "secondary", "tertiary")  # the fourth is black everywhere, whatever its flag says
    assert {episode.length for episode in episodes} == {9}  # of ten steps, without the first
    assert {e.instruction for e in episodes} >= {"put carrot on plate", "flip pot upright which is in sink"}
    actions = np.concatenate([episode.actions for episode in episodes])
    assert set(actions[:, 6].tolist()) == {0.0, 1.0}
    assert 0.001 < np.abs(actions[:, :3]).mean() < 0.02  # metres in a fifth of a second
    frames = episodes[0].read(0, 9, ["primary", "tertiary"])
    assert frames["primary"].shape == (9, 64, 64, 3)
    assert 90 < frames["primary"].mean() < 150
    assert 0 < np.abs(np.diff(frames["primary"].astype(int), axis=0)).mean() < 30  # one scene, which changes


def test_what_was_reached_follows_what_was_commanded(bridge: Path, tmp_path: Path) -> None:
    commanded = RLDSSource(RLDSConfig(path=bridge), cache=tmp_path)
    reached = RLDSSource(RLDSConfig(path=bridge, motion="reached"), cache=tmp_path)
    pairs = [(commanded.episode(i).actions[:-1], reached.episode(i).actions) for i in range(25)]
    first, second = (np.concatenate(part) for part in zip(*pairs, strict=True))
    for dim in range(3):
        assert np.corrcoef(first[:, dim], second[:, dim])[0, 1] > 0.5
    np.testing.assert_array_equal(first[:, 6], second[:, 6])


def test_the_missing_split_is_named(bridge: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"split 'val' is named in dataset_info\.json, but none of its 1 files is here .*here: train"
    ):
        RLDSSource(RLDSConfig(path=bridge, split="val"), cache=tmp_path)


def test_the_recipe_trains_on_it(bridge: Path, tmp_path: Path, tiny_overrides: list[str]) -> None:
    from anyvla.training.loop import train

    changes = [
        f"data.source.path={bridge}",
        "data.source.split=train[:40%]",
        "model.backbone={type: tiny, width: 32, vision_layers: 1, language_layers: 1}",
        "observation.state=[x, gripper]",
        "training.steps=2",
        "training.warmup=1",
        "training.precision=fp32",
        "policy.execution.steps=2",
    ]
    run = train(load_config("openx-kosmos2", [*(o for o in tiny_overrides if "backbone" not in o), *changes]))
    policy = Policy.load(run)
    policy.reset("put carrot on plate")
    action = policy.act({"primary": np.zeros((64, 64, 3), np.uint8)}, state=[0.3, 1.0])
    assert action.shape == (7,)
    assert action[6] in (0.0, 1.0)
    assert policy.spec().fps == 5


def test_inspect_and_stats_know_it(bridge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = CliRunner().invoke(app, ["inspect", "data", str(bridge), "--out", str(tmp_path / "look")])
    assert told.exit_code == 0, told.output
    assert "25 episodes, 225 frames" in " ".join(told.output.split())
    assert "primary (25 episodes)" in " ".join(told.output.split())
    told = CliRunner().invoke(app, ["stats", str(bridge), "split=train[:10]"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["episodes"] == 10


def test_the_stored_jpeg_files_are_packed_as_they_are(bridge: Path, tmp_path: Path) -> None:
    source = RLDSSource(RLDSConfig(path=bridge), cache=tmp_path)
    convert(source, tmp_path / "packed", "packed", encoding="jpeg", quality=10, workers=1)
    packed = PackedSource(tmp_path / "packed")
    for i in (0, 24):
        assert_same(packed.episode(i), source.episode(i))
