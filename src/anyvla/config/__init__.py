"""The typed tree of settings.

A run is described by one ``Config``. It is read from a YAML recipe, changed by ``key.path=value`` overrides, checked as a
whole, and saved with everything that comes out of it. Keys that nobody knows are refused, and every key here has a reader.
"""

from anyvla.config.recipe import json_schema, load_config, parse_config, recipe_names
from anyvla.config.tree import Config

__all__ = ["Config", "json_schema", "load_config", "parse_config", "recipe_names"]
