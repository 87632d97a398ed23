"""From settings to data sets: open the source, split its episodes, fit the transforms, fill the frame store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anyvla.actions import ActionSpec, Normalizer, fit_normalizer
from anyvla.actions.spec import action_spec
from anyvla.config import ActionsConfig, Config, FutureConfig
from anyvla.data.augment import Augmentation
from anyvla.data.conversations import ConversationDataset, load_conversations
from anyvla.data.dataset import WindowDataset
from anyvla.data.episode import Episode, EpisodeSource, Problem
from anyvla.data.sources.opening import open_source
from anyvla.data.state import fit_state
from anyvla.data.stats import Statistics, action_statistics, state_statistics
from anyvla.data.store import open_store
from anyvla.data.transforms import Transforms
from anyvla.errors import ConfigError, DataError, did_you_mean
from anyvla.settings import OnBadEpisode


@dataclass(frozen=True)
class PreparedData:
    """Training and validation windows, the transforms fitted on the former, what was left out, and conversations beside."""

    train: WindowDataset
    validation: WindowDataset | None
    transforms: Transforms
    problems: list[Problem]
    conversations: ConversationDataset | None = None

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
        return {
            "training_episodes": len(self.train.episodes),
            "training_windows": len(self.train),
            "validation_episodes": len(self.validation.episodes) if self.validation else 0,
            "conversation_answers": len(self.conversations) if self.conversations else 0,
            "skipped": [{"episode": problem.episode, "reason": problem.reason} for problem in self.problems],
        }


def prepare_data(config: Config) -> PreparedData:
    """Everything that training needs of the data.

    Raises:
        DataError: the data cannot be used; see the source and the store.
        ConfigError: a camera that the data or the model lack, or that a policy would never learn to do without; no path.
    """
    image_size = config.observation.image_size
    if image_size is None:
        raise ConfigError("observation.image_size is not set: what the backbone takes is not known to the data")
    state_names = config.observation.state or []
    source = open_source(config.data.source, action_spec(config.actions.spec), config.data.on_bad_episode, state_names)
    cameras = tuple(config.observation.cameras or source.cameras)
    optional = tuple(config.observation.optional_cameras)
    for camera in (*cameras, *optional):
        if camera not in source.cameras:
            raise ConfigError(f"observation.cameras: the data have no camera {camera!r}{did_you_mean(camera, source.cameras)}")
    incomplete = _without_cameras(source, cameras, optional, config.data.on_bad_episode)
    store, unreadable = open_store(
        source,
        cameras,
        image_size,
        fit=config.observation.fit,
        cache=config.data.cache,
        on_bad_episode=config.data.on_bad_episode,
    )
    left_out = {problem.episode for problem in incomplete}
    episodes = [e for e in map(source.episode, range(len(source))) if e.name in store and e.name not in left_out]
    training, held_out = split_episodes(episodes, config.data.validation, config.seed)
    augment = config.data.augment
    for camera in optional:
        if augment.drop_camera == 0 and all(camera in episode.cameras for episode in training):
            raise ConfigError(
                f"observation.optional_cameras: every training episode has {camera!r}, so the policy would not learn to do "
                "without it; data.augment.drop_camera=0.3 leaves it out of some windows"
            )
    statistics = action_statistics(training)
    transforms = Transforms(
        spec=source.spec,
        normalizer=make_normalizer(config.actions, source.spec, statistics),
        statistics=statistics,
        cameras=cameras,
        image_size=image_size,
        fit=config.observation.fit,
        prompt_template=config.observation.prompt,
        window=config.actions.window,
        chunk=config.actions.chunk,
        fps=_common_fps(episodes),
        optional_cameras=optional,
        state=fit_state(state_names, state_statistics(training)) if state_names else None,
    )
    mirrored = config.observation.mirrored_state or []
    augmentation = Augmentation(
        augment.shift,
        augment.color,
        augment.mirror,
        augment.words,
        augment.drop_camera,
        optional,
        tuple(-1.0 if name in mirrored else 1.0 for name in state_names),
    )
    conversations: ConversationDataset | None = None
    broken: list[Problem] = []
    if config.objectives.conversations is not None:
        conversations, broken = load_conversations(
            config.objectives.conversations, image_size, config.observation.fit, config.data.on_bad_episode
        )
    # held-out windows measure actions only: frames ahead of them are not loaded
    ahead, ahead_cameras = _frames_ahead(config.objectives.future, cameras)
    return PreparedData(
        WindowDataset(training, store, transforms, augmentation, config.seed, ahead, ahead_cameras),
        WindowDataset(held_out, store, transforms) if held_out else None,
        transforms,
        [*source.problems, *incomplete, *unreadable, *broken],
        conversations,
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
