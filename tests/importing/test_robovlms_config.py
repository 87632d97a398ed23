"""Configurations of RoboVLMs: all published shapes become recipes, and no key is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from anyvla.config import Config, parse_config
from anyvla.errors import ConfigError
from anyvla.importing.robovlms_config import ImportedConfig, import_config
from tests.importing.shapes import CALVIN, SHAPES, shape


def write(folder: Path, tree: dict[str, Any], name: str = "config.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
    return path


def changed(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A shape with some keys, written ``section.key``, changed."""
    tree = shape(name)
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        (tree[section] if section else tree)[leaf] = value
    return tree


def take(folder: Path, name: str = "kosmos", **changes: Any) -> ImportedConfig:
    return import_config(write(folder, changed(name, {key.replace("__", "."): value for key, value in changes.items()})))


def settings(imported: ImportedConfig) -> Config:
    return parse_config(yaml.safe_dump(imported.recipe))


def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}"}
    return found


@pytest.mark.parametrize("layout", ["native", "robovlms"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_published_shape_becomes_a_valid_recipe(name: str, layout: Any, tmp_path: Path) -> None:
    config = settings(import_config(write(tmp_path, shape(name)), layout=layout))
    assert (config.seed, config.actions.window, config.actions.chunk) == (7, 5, 3)
    assert (config.training.batch_size, config.training.learning_rate, config.training.weight_decay) == (6, 3e-5, 0.25)
    assert (config.model.head.type, config.model.head.hidden, config.model.loss.binary_weight) == ("lstm", 24, 0.02)
    assert config.model.structure.type == "policy_head"


@pytest.mark.parametrize("name", SHAPES)
def test_every_key_is_accounted_for_once_and_none_is_unknown(name: str, tmp_path: Path) -> None:
    tree = shape(name)
    imported = import_config(write(tmp_path, tree))
    names = [key.key for key in imported.keys]
    assert len(names) == len(set(names))
    assert set(names) == leaves(tree)
    assert imported.of("unknown") == []
    assert all(key.note for key in imported.keys)


def test_a_key_that_nobody_knows_is_listed_as_such(tmp_path: Path) -> None:
    imported = take(tmp_path, surprise=3, act_head__surprise=4)
    assert {(key.key, key.value) for key in imported.of("unknown")} == {("surprise", 3), ("act_head.surprise", 4)}


def test_what_is_mapped_changes_the_recipe_and_what_is_dead_does_not(tmp_path: Path) -> None:
    """Change each key in turn: a mapped number must arrive, a dead one must not matter."""
    before = take(tmp_path)
    for key in before.keys:
        if isinstance(key.value, bool) or not isinstance(key.value, (int, float)):
            continue
        if key.key in ("act_head.action_dim", "act_head.latent"):
            continue  # 7 only; one query token
        value = 2 * key.value + 1 if key.value >= 0 else key.value / 2
        after = import_config(write(tmp_path, changed("kosmos", {key.key: value})))
        if key.fate == "mapped":
            assert after.recipe != before.recipe, key.key
        elif key.fate == "dead":
            assert after.recipe == before.recipe, key.key


def test_actions_keep_the_range_and_the_loss_of_the_original(tmp_path: Path) -> None:
    config = settings(take(tmp_path))
    assert (config.actions.spec, config.actions.normalization, config.actions.bounds) == ("arm7", "bounds", (-0.5, 0.75))
    assert (config.model.loss.continuous, config.model.loss.huber_delta) == ("huber", 1.0)
    unscaled = settings(take(tmp_path, norm_action=False))
    assert unscaled.actions.bounds == (-1.0, 1.0)  # tanh bounds its outputs whether they are scaled or not
    assert settings(take(tmp_path, use_mu_law=True)).actions.normalization == "mu_law"


def test_open_x_actions_are_normalised_once(tmp_path: Path) -> None:
    imported = take(tmp_path, "kosmos_bridge")
    assert (imported.open_x, imported.fps) == (True, 5.0)
    config = settings(imported)
    assert (config.actions.normalization, config.actions.bounds) == ("quantile", None)
    assert "norm_min" in [key.key for key in imported.of("dropped")]


@pytest.mark.parametrize("name", SHAPES)
def test_the_prompt_is_the_originals_where_its_layout_is(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, shape(name))
    prompt = import_config(path, layout="robovlms").recipe["observation"]["prompt"]
    assert "{instruction}" in prompt
    assert "prompt" not in import_config(path).recipe["observation"]


def test_cameras_follow_use_hand_rgb_where_the_data_have_a_hand_camera(tmp_path: Path) -> None:
    def cameras(name: str) -> Any:
        return take(tmp_path, name).recipe["observation"].get("cameras")

    assert cameras("kosmos") == ["rgb_static"]
    assert cameras("kosmos_hand") == ["rgb_static", "rgb_gripper"]
    old = import_config(write(tmp_path, shape("kosmos_hand")), layout="robovlms").recipe
    assert old["observation"]["cameras"] == ["rgb_gripper", "rgb_static"]  # the order of the old sequence
    assert cameras("kosmos_bridge") is None


@pytest.mark.parametrize("name", CALVIN)
def test_images_have_the_size_that_the_originals_preprocessing_makes(name: str, tmp_path: Path) -> None:
    shared = name.split("_")[0] in ("kosmos", "flamingo")  # the other models bring their own
    assert take(tmp_path, name).recipe["observation"].get("image_size") == ([112, 112] if shared else None)


def test_epochs_become_steps_where_the_size_of_the_data_is_known(tmp_path: Path) -> None:
    path = write(tmp_path, shape("kosmos"))
    unknown = import_config(path)
    assert not {"steps", "warmup"} & set(unknown.recipe["training"])
    assert {"trainer.max_epochs", "warmup_epochs"} <= {key.key for key in unknown.of("dropped")}
    known = import_config(path, steps_per_epoch=100).recipe["training"]
    assert (known["steps"], known["warmup"]) == (400, 50)
    limited = import_config(write(tmp_path, shape("kosmos_rt")), steps_per_epoch=1000).recipe["training"]
    assert (limited["steps"], limited["warmup"]) == (900, 50)


@pytest.mark.parametrize(("schedule", "least"), [("constant", 1.0), ("cosine", 0.0), ("half-cosine", 0.01)])
def test_schedules(schedule: str, least: float, tmp_path: Path) -> None:
    assert take(tmp_path, scheduler=schedule).recipe["training"]["min_learning_rate"] == least


def test_structures_and_heads(tmp_path: Path) -> None:
    def model(**changes: Any) -> Any:
        return take(tmp_path, **changes).recipe["model"]

    assert model(act_head__history_type="pre")["structure"] == {"type": "interleaved"}
    one_step = model(act_head__type="FCDecoder", window_size=1)
    assert (one_step["structure"], one_step["head"]) == ({"type": "one_step"}, {"type": "fc", "hidden": 24})
    assert model(act_head__type="GPTDecoder")["head"] == {"type": "gpt", "hidden": 24}
    assert model(act_head__type="DiscreteDecoder", act_head__action_space="discrete")["head"]["type"] == "discrete"
    deep = model(act_head__num_layers=2, act_head__policy_rnn_dropout_p=0.25, act_head__latent=3)
    assert deep["head"] == {"type": "lstm", "hidden": 72, "layers": 2, "dropout": 0.25}
    assert deep["queries"] == 3


def test_pooling_takes_the_place_of_query_tokens(tmp_path: Path) -> None:
    assert take(tmp_path, "uform").recipe["model"]["pooling"] == {"tokens": "all", "reduce": "max"}
    assert take(tmp_path, "uform", act_head__token_source="text").recipe["model"]["pooling"]["tokens"] == "text"
    with pytest.raises(ConfigError, match=r"act_head\.down_sample = 'none'.*pooling"):
        take(tmp_path, "uform", act_head__down_sample="none")


def test_a_resampler_is_the_one_that_is_built_not_the_one_that_is_described(tmp_path: Path) -> None:
    imported = take(tmp_path, "moondream")
    assert imported.recipe["model"]["resampler"] == {"depth": 6, "latents": 64, "heads": 8}
    assert {"vision_resampler.depth", "vision_resampler.heads"} <= {key.key for key in imported.of("dead")}


def test_what_is_trained(tmp_path: Path) -> None:
    def tuning(name: str = "kosmos", **changes: Any) -> Any:
        return take(tmp_path, name, **{f"train_setup__{key}": value for key, value in changes.items()}).recipe["tuning"]

    everything = tuning()
    assert {everything[tower]["type"] for tower in ("vision", "connector", "language")} == {"full"}
    assert tuning("qwen")["vision"] == {"type": "frozen"}
    frozen = tuning(freeze_backbone=True, train_vision=False, train_text_embedding=False)
    assert {frozen[tower]["type"] for tower in ("vision", "connector", "language")} == {"frozen"}
    assert frozen["text_embedding"] is False
    last = tuning(train_decoder_layers=3)
    assert (last["language"], last["connector"]) == ({"type": "last_layers", "layers": 3}, {"type": "frozen"})
    lora = tuning(lora_enable=True)["language"]
    assert lora == {"type": "lora", "rank": 8, "alpha": 4.0, "dropout": 0.1, "targets": "all-linear"}
    flamingo = tuning("flamingo")
    assert [flamingo[tower]["type"] for tower in ("vision", "connector", "language")] == ["frozen", "full", "frozen"]
    apart = take(tmp_path, "flamingo", train_setup__train_resampler=False)
    assert "train_setup.train_resampler" in [key.key for key in apart.of("dropped")]


def test_the_vision_language_model_is_a_folder_or_a_name_on_the_hub(tmp_path: Path) -> None:
    def path(name: str, **options: Any) -> str:
        tree = changed(name, {f"vlm.{key}": value for key, value in options.items()})
        return import_config(write(tmp_path, tree)).recipe["model"]["backbone"]["path"]

    assert path("kosmos") == "microsoft/tiny-kosmos"
    assert path("paligemma") == "google/tiny-paligemma"  # its model_url names another model
    (tmp_path / "vlm").mkdir()
    (tmp_path / "vlm" / "config.json").write_text("{}")
    assert path("kosmos", pretrained_model_name_or_path=str(tmp_path / "vlm")) == str(tmp_path / "vlm")
    given = import_config(write(tmp_path, shape("kosmos")), vlm="somewhere/else")
    assert given.recipe["model"]["backbone"]["path"] == "somewhere/else"


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_a_model_that_cannot_be_loaded_is_replaced_and_that_is_said(name: str, tmp_path: Path) -> None:
    imported = take(tmp_path, name)
    assert imported.obstacle
    note = next(key.note for key in imported.of("dropped") if key.key == "vlm.pretrained_model_name_or_path")
    assert imported.recipe["model"]["backbone"]["path"] in note


def test_a_parent_is_inherited_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, shape("kosmos"), "configs/base.json")
    child = {"parent": "configs/base.json", "seed": 99, "act_head": {"hidden_size": 48}}
    path = write(tmp_path, child, "configs/more/child.json")
    for folder in (tmp_path, Path("/")):  # from the working directory, and from the folders above the file
        monkeypatch.chdir(folder)
        imported = import_config(path)
        assert imported.recipe["seed"] == 99
        assert imported.recipe["model"]["head"]["hidden"] == 48
        assert imported.recipe["actions"]["chunk"] == 3
    replaced = write(tmp_path, child | {"vision_resampler": {"__override__": True, "depth": 1}}, "configs/more/other.json")
    assert "vision_resampler.heads" not in [key.key for key in import_config(replaced).keys]


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"robovlm_name = 'RoboKosmos'.*did you mean 'RoboKosMos'"):
        take(tmp_path, robovlm_name="RoboKosmos")
    with pytest.raises(ConfigError, match="6 \\+ 1"):
        take(tmp_path, act_head__action_dim=9)
    with pytest.raises(ConfigError, match="its own parent"):
        import_config(write(tmp_path, {"parent": str(tmp_path / "a.json")}, "a.json"))
    with pytest.raises(ConfigError, match=r"parent 'gone\.json'"):
        import_config(write(tmp_path, {"parent": "gone.json"}))
    (tmp_path / "text.json").write_text("{'no': json}")
    with pytest.raises(ConfigError, match=r"text\.json: no configuration in JSON"):
        import_config(tmp_path / "text.json")
    with pytest.raises(ConfigError, match="no learning_rate; not a whole configuration"):
        take(tmp_path, learning_rate=None)
    with pytest.raises(ConfigError, match=r"act_head = None: there is no action head"):
        import_config(write(tmp_path, shape("kosmos") | {"act_head": None}))
