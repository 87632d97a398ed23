"""From a recipe in YAML and ``key.path=value`` overrides to checked settings; every mistake named by its path."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from anyvla.config.settings import Settings
from anyvla.config.tree import Config
from anyvla.errors import ConfigError, did_you_mean


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply overrides.

    Args:
        recipe: path of a YAML file, or the name of a recipe in the package (``nav-tiny`` or ``recipes/nav-tiny.yaml``).
        overrides: ``key.path=value`` strings, the value in YAML; ``key.type=x`` starts that section anew when the type changes.

    Raises:
        ConfigError: no such recipe, no valid YAML, an unknown key (with the nearest right one), a wrong type (with its path).
    """
    text, where = _read_recipe(recipe)
    return parse_config(text, overrides, where)


def parse_config(text: str, overrides: Sequence[str] = (), where: str = "settings") -> Config:
    """As ``load_config``, from the text of a recipe; ``where`` names it in messages."""
    try:
        tree = yaml.load(text, Loader=_RecipeLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping of settings, found {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    try:
        return Config.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in _explain(error, tree))) from error


def recipe_names() -> list[str]:
    """The recipes in the package."""
    return sorted(item.name.removesuffix(".yaml") for item in _recipes().iterdir() if item.name.endswith(".yaml"))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for completion and checks in editors."""
    return Config.model_json_schema()


def _recipes() -> Any:
    return resources.files("anyvla") / "recipes"


def _read_recipe(recipe: str | Path) -> tuple[str, str]:
    path = Path(recipe)
    if path.is_file():
        return path.read_text(), str(path)
    name = path.name.removesuffix(".yaml")
    if path.parent.name in ("", "recipes") and name in recipe_names():
        return (_recipes() / f"{name}.yaml").read_text(), f"recipe {name}"
    raise ConfigError(f"no recipe {str(recipe)!r}: neither a file nor one of the package{did_you_mean(name, recipe_names())}")


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.2 in two points where PyYAML differs: 1e-4 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ConfigError(f"override {override!r} is not of the form key.path=value")
    try:
        value = yaml.load(text, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    section = tree
    for key in keys[:-1]:
        below = section.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"override {override!r}: {key!r} is no section of settings")
        section = below
    if keys[-1] == "type" and section.get("type", value) != value:
        section.clear()  # the other keys belong to the former type
    section[keys[-1]] = value


def _explain(error: ValidationError, tree: Any) -> list[str]:
    """One line per mistake: ``path: what is wrong``, with the path as the user wrote it."""
    lines = []
    for mistake in error.errors():
        path = []
        node = tree
        for part in mistake["loc"]:
            inside = (isinstance(node, dict) and part in node) or (
                isinstance(node, list) and isinstance(part, int) and part < len(node)
            )
            if inside:
                node = node[part]
            elif part != mistake["loc"][-1]:
                continue  # the tag of a union, which is in no file
            if inside or mistake["type"] == "missing":
                path.append(str(part))
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = f"unknown key{did_you_mean(str(mistake['loc'][-1]), _keys_at(mistake['loc'][:-1]))}"
        elif mistake["type"] == "union_tag_not_found":
            message = "a section with a choice needs its type"
        elif mistake["type"] == "union_tag_invalid":
            message = f"unknown type {mistake['ctx']['tag']!r}; known: {mistake['ctx']['expected_tags']}"
        elif mistake["type"] not in ("value_error", "missing"):
            message = f"{message[0].lower()}{message[1:]}, not {mistake['input']!r}"
        lines.append(": ".join(filter(None, [".".join(path), message])))
    return lines


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """The keys of the section at ``location``, which holds the tags of unions beside the keys."""
    here: list[Any] = [Config]
    for part in location:
        if get_origin(here[0]) is dict:
            here = _members(get_args(here[0])[1])
        elif len(here) == 1 and part in here[0].model_fields:
            here = _members(here[0].model_fields[str(part)].annotation)
        else:
            here = [section for section in here if section.model_fields["type"].default == part]
    return list(here[0].model_fields)


def _members(annotation: Any) -> list[Any]:
    """The sections, or mappings of sections, that an annotation allows."""
    if get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, Settings)):
        return [annotation]
    return [member for argument in get_args(annotation) for member in _members(argument)]
