"""The configuration files of RoboVLMs: JSON that inherits from a parent; and the account of what became of each key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anyvla.errors import ConfigError
from anyvla.importing.robovlms_keys import DEAD, DROPPED, find

Fate = Literal["mapped", "dropped", "dead", "unknown"]


@dataclass(frozen=True)
class SourceKey:
    """One key of the source and what became of it: ``note`` is the recipe's key if it was mapped, and otherwise the reason."""

    key: str
    value: Any
    fate: Fate
    note: str


def read_config(path: Path) -> dict[str, Any]:
    """The settings in ``path`` on top of those of its ``parent``, and so on.

    As in the original a parent is found from the working directory; failing that, from the folders above ``path``.

    Raises ConfigError: no JSON object, a parent that is not found, or files that are parents of each other.
    """
    return _read_config(path, ())


def _read_config(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in children:
        raise ConfigError(f"{path}: a configuration is its own parent")
    try:
        tree = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: no configuration in JSON ({error})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(tree).__name__}")
    parent = tree.get("parent")
    if not parent:
        return tree
    places = [Path(parent), *(folder / parent for folder in path.resolve().parents)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigError(f"{path}: its parent {parent!r} is neither in this folder nor in one above the file")
    return _merge(_read_config(found, (*children, path.resolve())), tree)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` over ``base``, section by section; a section with ``__override__`` replaces the former one whole."""
    merged = dict(base)
    for key, value in changes.items():
        if not isinstance(value, dict):
            merged[key] = value
        elif value.get("__override__"):
            merged[key] = {name: item for name, item in value.items() if name != "__override__"}
        else:
            before = merged.get(key)
            merged[key] = _merge(before if isinstance(before, dict) else {}, value)
    return merged


class Source:
    """The keys of a configuration, written ``section.key``, and what became of each."""

    def __init__(self, tree: Mapping[str, Any], path: Path) -> None:
        self.values = dict(_flatten(tree))
        self.path = path
        self.keys: dict[str, SourceKey] = {}

    def look(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def map(self, key: str, to: str, default: Any = None) -> Any:
        """The value of ``key``, which becomes ``to`` in the recipe."""
        return self._settle(key, "mapped", to, default)

    def need(self, key: str, to: str) -> Any:
        """As ``map``, of a key without which nothing can be said."""
        if self.values.get(key) is None:
            raise ConfigError(f"{self.path}: no {key}; not a whole configuration of RoboVLMs")
        return self.map(key, to)

    def drop(self, key: str, why: str, default: Any = None) -> Any:
        return self._settle(key, "dropped", why, default)

    def dead(self, key: str, why: str) -> None:
        self._settle(key, "dead", why, None)

    def _settle(self, key: str, fate: Fate, note: str, default: Any) -> Any:
        if key not in self.values:
            return default
        self.keys[key] = SourceKey(key, self.values[key], fate, note)
        return self.values[key]

    def account(self) -> tuple[SourceKey, ...]:
        """Every key once, in the order of the file."""
        for key in self.values:
            if key in self.keys:
                continue
            if (why := find(DEAD, key)) is not None:
                self.dead(key, why)
            elif (why := find(DROPPED, key)) is not None:
                self.drop(key, why)
            else:
                self._settle(key, "unknown", "not a key of the public RoboVLMs", None)
        return tuple(self.keys[key] for key in self.values)

    def refuse(self, key: str, why: str) -> ConfigError:
        return ConfigError(f"{self.path}: {key} = {self.values.get(key)!r}: {why}")


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key; sections in a list are numbered."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for i, item in enumerate(value):
                yield from _flatten(item, f"{key}[{i}].")
        else:
            yield key, value
