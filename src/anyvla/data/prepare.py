"""From settings to data sets: open the source, split its episodes, fit the transforms, fill the frame store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from anyvla.actions import ActionSpec, Normalizer, fit_normalizer
from anyvla.actions.spec import action_spec
from anyvla.config import Config
from anyvla.config.data import ActionsConfig, DataConfig
from anyvla.config.objectives import FutureConfig
from anyvla.config.settings import Fit, OnBadEpisode
from anyvla.config.sources import MixtureConfig, OpenXConfig, SourceConfig
from anyvla.data.augment import Augmentation
from anyvla.data.conversations import ConversationDataset, load_conversations
from anyvla.data.dataset import WindowDataset
from anyvla.data.direct import DirectFrames
from anyvla.data.episode import Episode, EpisodeSource, Problem
from anyvla.data.mixture import MixtureDataset, rename_cameras
from anyvla.data.sampler import MixtureSampler, Sampler, WindowSampler
from anyvla.data.sources.opening import open_source
from anyvla.data.sources.oxe import MIXTURES, datasets_of
from anyvla.data.state import fit_state
from anyvla.data.stats import Statistics, action_statistics, state_statistics
from anyvla.data.store import FrameStore, default_cache, free_room, open_store, stored_bytes
from anyvla.data.transforms import Scale, Transforms
from anyvla.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class PreparedData:
    """Training and validation windows, the transforms fitted on the former, what was left out, and conversations beside.

    ``validation``: source -> its held-out windows, none where nothing is held out. The only source of data that are no mixture
    has the name "". ``weights``: share of each source of a mixture.
    """

    train: WindowDataset | MixtureDataset
    validation: dict[str, WindowDataset]
    transforms: Transforms
    problems: list[Problem]
    conversations: ConversationDataset | None = None
    weights: dict[str, float] | None = None

    def fingerprint(self) -> str:
        """Of names, lengths, sentences, actions, states and cameras of the training episodes, and of conversations."""
        digest = hashlib.sha256()
        for episode in self.train.episodes:
            digest.update(f"{episode.name} {episode.length} {episode.instruction}\n".encode())
            digest.update(np.ascontiguousarray(episode.actions).tobytes())
            if episode.state is not None:
                digest.update(np.ascontiguousarray(episode.state).tobytes())
            digest.update(" ".join(c for c in self.transforms.cameras if c not in episode.cameras).encode())
        if self.conversations is not None:
            digest.update(self.conversations.fingerprint().encode())
        return digest.hexdigest()[:16]

    def summary(self) -> dict[str, object]:
        """Counts for the run's report."""
        mixture = self.train.parts if isinstance(self.train, MixtureDataset) else {}
        return {
            "training_episodes": len(self.train.episodes),
            "training_windows": len(self.train),
            "validation_episodes": sum(len(part.episodes) for part in self.validation.values()),
            "conversation_answers": len(self.conversations) if self.conversations else 0,
            "sources": {
                name: {"episodes": len(part.episodes), "windows": len(part), "weight": (self.weights or {})[name]}
                for name, part in mixture.items()
            },
            "skipped": [{"episode": problem.episode, "reason": problem.reason} for problem in self.problems],
        }

    def sampler(self, batch_size: int, seed: int, rank: int, world_size: int, config: DataConfig) -> Sampler:
        """Of the training windows."""
        if isinstance(self.train, MixtureDataset) and isinstance(config.source, MixtureConfig | OpenXConfig):
            sizes = [len(part) for part in self.train.parts.values()]
            weights = [(self.weights or {})[name] for name in self.train.parts]
            return MixtureSampler(sizes, weights, batch_size, seed, rank, world_size, config.source.batches)
        return WindowSampler(len(self.train), batch_size, seed, rank, world_size)


@dataclass(frozen=True)
class _Part:
    """One source, opened, split and measured."""

    training: list[Episode]
    held_out: list[Episode]
    frames: FrameStore | DirectFrames
    scale: Scale
    problems: list[Problem]


def prepare_data(config: Config) -> PreparedData:
    """Everything that training needs of the data.

    Raises:
        DataError: the data cannot be used; see the source and the store.
        ConfigError: a camera that the data or the model lack, or that a policy would never learn to do without; no path.
    """
    image_size = config.observation.image_size
    if image_size is None:
        raise ConfigError("observation.image_size is not set: what the backbone takes is not known to the data")
    sources = _open_sources(config)
    spec = _common_spec(sources)
    known = sorted({camera for source in sources.values() for camera in source.cameras})
    cameras = tuple(config.observation.cameras or (known if len(sources) > 1 else next(iter(sources.values())).cameras))
    optional = tuple(config.observation.optional_cameras)
    for camera in (*cameras, *optional):
        if camera not in known:
            raise ConfigError(f"observation.cameras: the data have no camera {camera!r}{did_you_mean(camera, known)}")
    parts = {name: _prepare_part(config, source, cameras, image_size) for name, source in sources.items()}
    for camera in optional:
        everywhere = all(camera in episode.cameras for part in parts.values() for episode in part.training)
        if config.data.augment.drop_camera == 0 and everywhere:
            raise ConfigError(
                f"observation.optional_cameras: every training episode has {camera!r}, so the policy would not learn to do "
                "without it; data.augment.drop_camera=0.3 leaves it out of some windows"
            )
    first = next(iter(parts.values())).scale
    transforms = Transforms(
        spec=spec,
        normalizer=first.normalizer,
        statistics=first.statistics,
        cameras=cameras,
        image_size=image_size,
        fit=config.observation.fit,
        prompt_template=config.observation.prompt,
        window=config.actions.window,
        chunk=config.actions.chunk,
        fps=first.fps,
        optional_cameras=optional,
        state=first.state,
        mixture={name: part.scale for name, part in parts.items()} if len(parts) > 1 else {},
    )
    conversations: ConversationDataset | None = None
    broken: list[Problem] = []
    if config.objectives.conversations is not None:
        conversations, broken = load_conversations(
            config.objectives.conversations, image_size, config.observation.fit, config.data.on_bad_episode
        )
    # held-out windows measure actions only: frames ahead of them are not loaded
    ahead, ahead_cameras = _frames_ahead(config.objectives.future, cameras)
    augmentation = _augmentation(config)
    train, validation = {}, {}
    for number, (name, part) in enumerate(parts.items()):
        own = transforms.of(name) if transforms.mixture else transforms
        train[name] = WindowDataset(
            part.training,
            part.frames,
            own,
            augmentation,
            config.seed + number,
            ahead,
            ahead_cameras,
            config.data.on_bad_episode,
        )
        if part.held_out:
            validation[name] = WindowDataset(part.held_out, part.frames, own, on_bad_episode=config.data.on_bad_episode)
    return PreparedData(
        train[""] if "" in train else MixtureDataset(train),
        validation,
        transforms,
        [*(problem for part in parts.values() for problem in part.problems), *broken],
        conversations,
        _weights(config.data.source, {name: len(part) for name, part in train.items()}),
    )


def _weights(settings: SourceConfig, windows: dict[str, int]) -> dict[str, float] | None:
    """Share of each source of a mixture, in any unit."""
    if isinstance(settings, OpenXConfig):
        factors = MIXTURES[settings.mixture]
        return {name: factors[name] * count for name, count in windows.items()}
    if isinstance(settings, MixtureConfig):
        return settings.weights or {name: float(count) for name, count in windows.items()}
    return None


def _open_sources(config: Config) -> dict[str, EpisodeSource]:
    """Name -> source; one without a name where the data are no mixture."""
    spec = None if config.actions.spec is None else action_spec(config.actions.spec)
    how = (spec, config.data.on_bad_episode, config.observation.state or [], config.data.cache)
    settings = config.data.source
    if isinstance(settings, OpenXConfig):
        return {name: open_source(one, *how) for name, one in datasets_of(settings).items()}
    if not isinstance(settings, MixtureConfig):
        return {"": open_source(settings, *how)}
    return {
        name: rename_cameras(open_source(one, *how), settings.cameras.get(name, {})) for name, one in settings.sources.items()
    }


def _common_spec(sources: dict[str, EpisodeSource]) -> ActionSpec:
    specs = {name: source.spec for name, source in sources.items()}
    (first, spec), *rest = specs.items()
    for name, other in rest:
        if other != spec:
            raise ConfigError(
                f"the sources have different actions: {first} {spec.describe()}; {name} {other.describe()}; "
                "actions.spec=NAME asks all of them for the same"
            )
    return spec


def _prepare_part(config: Config, source: EpisodeSource, cameras: tuple[str, ...], image_size: tuple[int, int]) -> _Part:
    data, observation = config.data, config.observation
    incomplete = _without_cameras(source, cameras, observation.optional_cameras, data.on_bad_episode)
    frames, unreadable = open_frames(
        source,
        cameras,
        image_size,
        fit=observation.fit,
        store=data.store,
        cache=data.cache,
        on_bad_episode=data.on_bad_episode,
    )
    left_out = {problem.episode for problem in incomplete}
    episodes = [e for e in map(source.episode, range(len(source))) if e.name in frames and e.name not in left_out]
    training, held_out = split_episodes(episodes, data.validation, config.seed)
    known = data.cache or default_cache(), f"{source.name} {data.source.model_dump_json()} {source.spec}"
    statistics = action_statistics(training, *known)
    scale = Scale(
        normalizer=make_normalizer(config.actions, source.spec, statistics),
        statistics=statistics,
        fps=_common_fps(episodes),
        state=fit_state(observation.state, state_statistics(training, *known)) if observation.state else None,
    )
    return _Part(training, held_out, frames, scale, [*source.problems, *incomplete, *unreadable])


def open_frames(
    source: EpisodeSource,
    cameras: Sequence[str],
    size: tuple[int, int],
    *,
    fit: Fit = "stretch",
    store: Literal["auto", "cache", "direct"] = "auto",
    cache: Path | None = None,
    on_bad_episode: OnBadEpisode = "error",
) -> tuple[FrameStore | DirectFrames, list[Problem]]:
    """Where windows get their frames from, and the episodes that cannot be read; see ``open_store``, ``DirectFrames``."""
    if store == "auto":
        as_they_are = all(source.ready.get(camera) == size for camera in cameras if camera in source.cameras)
        frames = sum(source.episode(i).length for i in range(len(source)))
        missing = frames * len(cameras) * size[0] * size[1] * 3 - stored_bytes(source, cameras, size, fit, cache)
        store = "direct" if as_they_are or missing > 0.9 * free_room(cache) else "cache"
    if store == "direct":
        return DirectFrames(source, cameras, size, fit), []
    return open_store(source, cameras, size, fit=fit, cache=cache, on_bad_episode=on_bad_episode)


def _augmentation(config: Config) -> Augmentation:
    augment, observation = config.data.augment, config.observation
    mirrored = observation.mirrored_state or []
    return Augmentation(
        augment.shift,
        augment.color,
        augment.mirror,
        augment.words,
        augment.drop_camera,
        tuple(observation.optional_cameras),
        tuple(-1.0 if name in mirrored else 1.0 for name in observation.state or ()),
    )


def make_normalizer(config: ActionsConfig, spec: ActionSpec, statistics: Statistics) -> Normalizer:
    """The normaliser that ``config`` asks for, fitted on ``statistics`` except where the bounds are given."""
    if config.bounds is not None:
        low, high = config.bounds
        statistics = {"min": np.full(len(spec), low), "max": np.full(len(spec), high)}
    return fit_normalizer(config.normalization, statistics, spec)


def _without_cameras(
    source: EpisodeSource, cameras: Sequence[str], optional: Sequence[str], on_bad_episode: OnBadEpisode
) -> list[Problem]:
    """The episodes that lack a camera which is not optional, or all of them."""
    problems = []
    for episode in map(source.episode, range(len(source))):
        lacking = [camera for camera in cameras if camera not in episode.cameras]
        needed = [camera for camera in lacking if camera not in optional]
        if not needed and len(lacking) < len(cameras):
            continue
        reason = f"{episode.name}: no images of the camera {', '.join(needed or lacking)}"
        if on_bad_episode == "error":
            raise DataError(
                f"{reason} (observation.optional_cameras trains on episodes without it, observation.cameras without the "
                "camera, on_bad_episode=skip without such episodes)"
            )
        problems.append(Problem(episode.name, reason))
    return problems


def _frames_ahead(config: FutureConfig | None, cameras: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    """How many frames behind each window are to be predicted, and of which cameras."""
    if config is None:
        return 0, ()
    for camera in config.cameras or ():
        if camera not in cameras:
            raise ConfigError(f"objectives.future.cameras: the model has no camera {camera!r}{did_you_mean(camera, cameras)}")
    return config.next, tuple(config.cameras or cameras)


def split_episodes(episodes: Sequence[Episode], fraction: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Training and held-out episodes, whole episodes each; at least one is held out if ``fraction`` > 0.

    Raises DataError if nothing would be left to train on.
    """
    count = max(1, round(fraction * len(episodes))) if fraction > 0 else 0
    if count >= len(episodes):
        raise DataError(f"{len(episodes)} usable episodes are too few to hold out {count}; set data.validation=0 or add data")
    held_out = set(np.random.default_rng(seed).permutation(len(episodes))[:count].tolist())
    training = [episode for i, episode in enumerate(episodes) if i not in held_out]
    return training, [episode for i, episode in enumerate(episodes) if i in held_out]


def _common_fps(episodes: Sequence[Episode]) -> float:
    first = episodes[0]
    for episode in episodes:
        if not np.isclose(episode.fps, first.fps, rtol=0.01):
            raise DataError(
                f"episodes of different control rates: {first.name} has {first.fps:g} fps, {episode.name} {episode.fps:g}; "
                "an action means something else at another rate"
            )
    return first.fps
