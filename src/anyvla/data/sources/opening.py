"""From the settings of a source, or only its path, to the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anyvla.actions.spec import NAV2, NAV3, ActionSpec
from anyvla.config import parse_config
from anyvla.config.settings import OnBadEpisode
from anyvla.config.sources import (
    BagConfig,
    CalvinConfig,
    LeRobotConfig,
    MixtureConfig,
    OpenXConfig,
    PackedConfig,
    RLDSConfig,
    SingleSourceConfig,
    SourceConfig,
)
from anyvla.data.episode import EpisodeSource
from anyvla.data.sources.tfds import find_version
from anyvla.errors import ConfigError, DataError
from anyvla.ros2.bag import is_bag


def open_source(
    config: SourceConfig,
    spec: ActionSpec | None = None,
    on_bad_episode: OnBadEpisode = "error",
    state: Sequence[str] | None = None,
    cache: Path | None = None,
) -> EpisodeSource:
    """The source that ``config`` describes.

    Args:
        spec: the actions wanted; None: as the format has them.
        state: names of the numbers of the robot's state that every episode must have, in the order wanted; None: what each has.
        cache: folder of what is costly to find out about a source, ``default_cache()`` if None.

    Raises:
        ConfigError: no path, or a format that does not hold these actions. DataError: nothing usable there.
    """
    if isinstance(config, MixtureConfig | OpenXConfig):
        raise ConfigError("a mixture is opened source by source")
    if config.path is None:
        raise ConfigError("data.source.path is not set: the folder of the episodes")
    try:
        return _open(config, config.path, spec, on_bad_episode, state, cache)
    except DataError as error:
        found = _format_at(config.path)
        if found in (None, config.type):
            raise
        raise DataError(f"{error}; it looks like {found}: data.source.type={found}") from error


def _open(
    config: SingleSourceConfig,
    path: Path,
    spec: ActionSpec | None,
    on_bad_episode: OnBadEpisode,
    state: Sequence[str] | None,
    cache: Path | None,
) -> EpisodeSource:
    if isinstance(config, LeRobotConfig):
        from anyvla.data.sources.lerobot import LeRobotSource

        return LeRobotSource(
            path,
            spec,
            on_bad_episode,
            state,
            split=config.split,
            episodes=config.episodes,
            action_names=config.action_names,
            cache=cache,
        )
    if isinstance(config, CalvinConfig):
        from anyvla.data.sources.calvin import CalvinSource

        return CalvinSource(config, spec, on_bad_episode, state, cache)
    if isinstance(config, RLDSConfig):
        from anyvla.data.sources.rlds import RLDSSource

        return RLDSSource(config, spec, on_bad_episode, state, cache)
    if isinstance(config, PackedConfig):
        from anyvla.data.sources.packed import PackedSource

        return PackedSource(path, spec, on_bad_episode, state)
    if isinstance(config, BagConfig):
        from anyvla.data.sources.ros2_bag import BagSource

        return BagSource(config, spec, on_bad_episode, state)
    from anyvla.data.sources.mobile_h5 import MobileH5Source

    return MobileH5Source(path, spec or NAV2, on_bad_episode, config.language, state)


def all_actions(config: SingleSourceConfig) -> ActionSpec | None:
    """The spec of all that the files hold, where opening them without one gives only a part; to convert them, for example."""
    return NAV3 if config.type == "mobile_h5" else None


def source_at(path: Path, settings: Sequence[str] = ()) -> SingleSourceConfig:
    """The settings of the source at ``path``; its format is found by what lies there.

    Args:
        settings: ``key=value`` of the source's own settings, such as ``split=validation``; ``type=...`` names the format.

    Raises:
        DataError: nothing known lies there. ConfigError: an unknown setting.
    """
    kind = next((setting.removeprefix("type=") for setting in settings if setting.startswith("type=")), None)
    rest = [f"data.source.{setting}" for setting in settings if not setting.startswith("type=")]
    tree = f"data: {{source: {{type: {kind or detect_format(path)}}}}}"
    source = parse_config(tree, [f"data.source.path={path}", *rest], str(path)).data.source
    if isinstance(source, MixtureConfig | OpenXConfig):
        raise ConfigError("a mixture is described in a recipe, not on the command line")
    return source


def detect_format(path: Path) -> str:
    """The type of the source at ``path``; raises DataError if it is none that is known."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = _format_at(path)
    if found is None:
        raise DataError(f"{path}: holds no format that is known; type=FORMAT names it")
    return found


def _format_at(path: Path) -> str | None:
    if (path / "packed.json").exists():
        return "packed"
    if (path / "meta" / "info.json").exists():
        return "lerobot"
    if any((path / split / "ep_start_end_ids.npy").is_file() for split in ("", "training", "validation")):
        return "calvin"  # looked for first: going through the folders of a large data set takes long
    if find_version(path) is not None:
        return "rlds"
    if path.suffix in (".h5", ".hdf5") or any(p.suffix in (".h5", ".hdf5") for p in path.rglob("*.h*5")):
        return "mobile_h5"
    if is_bag(path):
        return "bag"
    return None
