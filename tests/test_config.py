from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

import anyvla.config
from anyvla.config import Config, json_schema, load_config, parse_config, recipe_names
from anyvla.config.settings import Settings
from anyvla.errors import ConfigError
from tests.calvin_data import write_calvin
from tests.conftest import write_conversations, write_episode
from tests.data.rlds_made import made_steps, make_dataset


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_complete_and_survives_saving(name: str) -> None:
    config = load_config(name)
    assert parse_config(config.to_yaml()) == config
    assert load_config(f"recipes/{name}.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainin.steps=3", "trainin: unknown key; did you mean 'training'"),
        ("training.stps=3", "training.stps: unknown key; did you mean 'steps'"),
        ("model.head.hiden=3", "model.head.hiden: unknown key; did you mean 'hidden'"),
        ("data.augment.shft=0.1", "data.augment.shft: unknown key; did you mean 'shift'"),
        ("training.steps=many", "training.steps: input should be a valid integer, not 'many'"),
        ("training.steps=true", "training.steps: input should be a valid integer, not True"),
        ("training.steps=0", "training.steps: input should be greater than 0"),
        ("training.learning_rate=.nan", "training.learning_rate: input should be a finite number"),
        ("model.head.type=mlp", "model.head: unknown type 'mlp'; known: 'fc', 'lstm'"),
        ("actions.spec={name: mine}", "actions.spec: action spec has no dims"),
        ("actions.spec=nav22", "actions.spec: unknown action spec 'nav22'; did you mean 'nav2'"),
        ("observation.prompt=Go", "observation.prompt: string should match pattern"),
        ("model.head={hidden: 3}", "model.head: a section with a choice needs its type"),
        ("observation.image_size=[64]", "observation.image_size.1: Field required"),
        ("model.structure.type=one_step", "actions.window=1"),
        ("policy.execution={type: receding, steps: 11}", "more than actions.chunk 10"),
        ("objectives.caption.wait=0.1", "objectives.caption.wait: unknown key; did you mean 'weight'"),
        ("objectives.caption.weight=0", "objectives.caption.weight: input should be greater than 0"),
        ("objectives.conversations.weight=0.1", "objectives.conversations.path: Field required"),
        ("objectives.future.masked.ratio=1", "objectives.future.masked.ratio: input should be less than 1"),
        ("training", "not of the form key.path=value"),
        ("training.steps.x=3", "'steps' is no section"),
        ("training.steps=[", "not valid YAML"),
    ],
)
def test_a_mistake_is_answered_with_its_path(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("nav-tiny", [override])
    assert message in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("nav-tiny", ["training.stps=3", "model.head.hiden=3"])
    assert "stps" in str(caught.value)
    assert "hiden" in str(caught.value)


def test_files_are_read_with_their_mistakes_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("training: {learning_rate: 1e-4, steps: 7}\n")
    assert load_config(path).training.learning_rate == 1e-4
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: not valid YAML: key 'seed' is given twice"):
        load_config(path)
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(path)
    with pytest.raises(ConfigError, match="did you mean 'nav-tiny'"):
        load_config("nav-tny")


def test_changing_a_type_starts_the_section_anew() -> None:
    config = load_config("nav-tiny", ["model.head.type=fc"])
    assert config.model.head.type == "fc"
    assert config.model.head.hidden == 1024


def test_a_spec_of_ones_own() -> None:
    spec = "{name: drone, dims: [{name: climb, unit: m/s}, {name: lamp, kind: binary, low: 0.0, high: 1.0}]}"
    assert load_config("nav-tiny", [f"actions.spec={spec}"]).actions.spec["name"] == "drone"


def test_the_schema_knows_every_section_and_refuses_unknown_keys() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False
    json.dumps(schema)


def test_every_setting_has_a_reader(make_episodes, tiny_overrides, tmp_path: Path, monkeypatch) -> None:
    """Run what settings are for, note which are read outside of the settings' own checks, and find none that is not."""
    import torch

    from anyvla.actions import ARM7
    from anyvla.data.prepare import prepare_data
    from anyvla.data.sources.opening import open_source
    from anyvla.models.backbones.load import build_backbone
    from anyvla.models.heads.base import HeadSizes
    from anyvla.models.heads.make import make_head
    from anyvla.models.losses import action_loss
    from anyvla.policies.policy import Policy
    from anyvla.training.loop import train

    own = Path(anyvla.config.__file__).parent
    read: set[tuple[str, str]] = set()
    original = BaseModel.__getattribute__

    def note(self, name: str):
        if name in type(self).model_fields and Path(sys._getframe(1).f_code.co_filename).parent != own:
            read.add((type(self).__name__, name))
        return original(self, name)

    monkeypatch.setattr(Settings, "__getattribute__", note, raising=False)
    folder = make_episodes(9, 9, 9)
    for path in folder.iterdir():
        rear = np.zeros((9, 8, 8, 3), np.uint8)
        write_episode(path, 9, states=np.zeros((9, 1)), state_names=["yaw"], further_images={"rear": rear})
    overrides = [
        *tiny_overrides,
        f"data.source.path={folder}",
        "observation.cameras=[front]",
        "training.steps=2",
        "training.warmup=1",
    ]
    one = f"{{type: mobile_h5, path: {folder}}}"
    objectives = [
        "objectives.caption={}",
        f"objectives.conversations={{path: {write_conversations(tmp_path / 'talk')}}}",
        "objectives.future={hidden: 8, masked: {ratio: 0.5}}",
        "objectives.alignment={}",
    ]
    for i, changes in enumerate(
        [
            ["policy.execution.type=ensemble", "model.head.layers=2", "tuning.vision.type=lora"],
            [
                "model.structure.type=one_step",
                "actions.window=1",
                "model.head={type: fc, hidden: 8, trunk: [8]}",
                "tuning.language={type: last_layers, layers: 1}",
            ],
            ["model.structure.type=interleaved", "model.head={type: discrete, bins: 8}", *objectives],
            ["model.pooling.tokens=text", "model.resampler={depth: 1, latents: 2, heads: 1}"],
            [
                "observation={state: [yaw], mirrored_state: [yaw], optional_cameras: [rear], image_size: [32, 48]}",
                "data.augment.drop_camera=0.5",
            ],
            [f"data.source={{type: mixture, weights: {{a: 1, b: 2}}, sources: {{a: {one}, b: {one}}}}}"],
        ]
    ):
        run = train(load_config("nav-tiny", [*overrides, *changes, f"out={tmp_path / str(i)}"]))
        policy = Policy.load(run, source="a" if "mixture" in changes[0] else None)
        policy.reset("go")
        policy.act({"front": np.zeros((8, 8, 3), np.uint8)}, state=[0.5] if policy.spec().state else None)
    source = load_config(
        "openx-kosmos2", [f"data.source.path={make_dataset(tmp_path, 'bridge_dataset', [made_steps('bridge_dataset', 4)])}"]
    ).data.source
    open_source(source, cache=tmp_path / "cache")
    # what the runs above do not come by
    arm = torch.zeros(1, 1, 1, 7)
    action_loss(arm, arm, arm[..., 0] == 0, ARM7, load_config("nav-tiny").model.loss)
    for head in ("gpt", "flow"):
        model = load_config("nav-tiny", [f"model.head={{type: {head}, hidden: 8}}"]).model
        make_head(model.head, HeadSizes(8, 1, ARM7, 1, 1, True), model.loss)
    receding = load_config("nav-tiny", ["policy.execution={type: receding, steps: 2}"])
    calvin = parse_config(
        "data: {source: {type: calvin, language: both}}", [f"data.source.path={write_calvin(tmp_path / 'calvin')}"]
    )
    open_source(calvin.data.source, cache=tmp_path)
    from anyvla.policies.execution import make_execution

    make_execution(receding.policy.execution, ARM7)
    folder = tmp_path / "0" / "checkpoints"
    definition = next(folder.iterdir()) / "backbone"
    pretrained = load_config("nav-tiny", [f"model.backbone={{type: pretrained, path: {definition}, random_weights: true}}"])
    build_backbone(pretrained.model, (32, 48))

    from anyvla.data.sources.opening import open_source, source_at

    for name in ("bridge_dataset", "fractal20220817_data"):
        make_dataset(tmp_path / "oxe", name, [made_steps(name, 6, seed) for seed in range(3)])
    source = f"data.source={{type: open_x, path: {tmp_path / 'oxe'}}}"
    open_x = load_config("nav-tiny", [*tiny_overrides, source, "actions.spec=delta7", "observation.cameras=[primary]"])
    prepare_data(open_x).sampler(1, 0, 0, 1, open_x.data)
    from tests.data.lerobot_folders import make_episode, write_v3
    from tests.data.packing import make_packed

    lerobot = write_v3(tmp_path / "lerobot", [make_episode(0)])
    open_source(source_at(lerobot), cache=tmp_path / "cache")
    open_source(source_at(make_packed(tmp_path / "packed")))
    from anyvla.ros2.mapping import live_kind, read_mapping
    from tests.ros2.made import MAPPING, write_arm

    (tmp_path / "map.yaml").write_text(MAPPING)
    open_source(source_at(write_arm(tmp_path / "arm"), [f"mapping={tmp_path / 'map.yaml'}"]))
    live_kind(read_mapping(tmp_path / "map.yaml").state[0])
    open_source(source_at(tmp_path / "arm"))

    every = {(cls.__name__, field) for cls in Settings.__subclasses__() for field in cls.model_fields}
    tags = {(cls.__name__, "type") for cls in Settings.__subclasses__()}
    assert every - read - tags == set()
