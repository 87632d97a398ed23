"""What has been recorded, for the page: episodes of any source, with or without a policy beside them, and result files."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.actions import NAV2, ActionSpec
from anyvla.data.episode import Episode, EpisodeSource
from anyvla.errors import ConfigError
from anyvla.evaluation.results import read_results
from anyvla.policies.session import PolicyBase, Session
from anyvla.serving.monitor import Moment
from anyvla.watch.drawing import GroundCamera, describe_moment, describe_spec

CHUNK = 10  # recorded actions that are drawn ahead, where no policy says how many
DRIVES = 4  # episodes whose predictions are kept


@dataclass
class _Drive:
    """A policy beside an episode, as far as it has been shown the frames."""

    session: Session
    chunks: list[np.ndarray | None]
    actions: list[np.ndarray]
    stops: list[str | None]
    times: list[float]


class Episodes:
    """Episodes of a source. With a policy, what it would do: it sees what was recorded, and nothing that it says is done."""

    def __init__(
        self, source: EpisodeSource, title: str, policy: PolicyBase | None = None, camera: GroundCamera | None = None
    ) -> None:
        """Raises ConfigError for a policy of other actions, cameras or state than were recorded."""
        if policy is not None:
            if policy.transforms.spec.names != source.spec.names:
                theirs = policy.transforms.spec.describe()
                raise ConfigError(f"the policy's actions are {theirs}; what was recorded is {source.spec.describe()}")
            missing = set(policy.transforms.cameras) - set(source.cameras) - set(policy.transforms.optional_cameras)
            if missing:
                recorded = ", ".join(source.cameras)
                raise ConfigError(f"the policy needs the camera {sorted(missing)[0]!r}; recorded: {recorded}")
        self._source, self._title, self._policy = source, title, policy
        self._camera = camera or GroundCamera()
        self._lock = threading.Lock()
        self._drives: OrderedDict[int, _Drive] = OrderedDict()

    @property
    def spec(self) -> ActionSpec:
        return self._source.spec

    @property
    def fps(self) -> float:
        """Of the first episode."""
        return self._source.episode(0).fps if len(self._source) else 1.0

    def about(self) -> dict[str, Any]:
        episodes = [self._source.episode(i) for i in range(len(self._source))]
        items = [{"name": f"{episode.name}: {episode.instruction}", "length": episode.length} for episode in episodes]
        return {"live": False, "title": self._title, "fps": self.fps, "spec": describe_spec(self._source.spec), "items": items}

    def now(self, robot: str | None, after: int) -> dict[str, Any]:
        return {}

    def moment(self, item: int, step: int) -> dict[str, Any]:
        episode = self._episode(item)
        return describe_moment(self.at(item, step), self._source.spec, episode.fps, self._camera) | {"stops": []}

    def at(self, item: int, step: int) -> Moment:
        """What was recorded at ``step`` of an episode, and what the policy says to it. Raises IndexError."""
        episode = self._episode(item)
        if not 0 <= step < episode.length:
            raise IndexError(step)
        frames = {name: images[0] for name, images in episode.read(step, step + 1, episode.cameras).items()}
        ahead = CHUNK if self._policy is None else self._policy.transforms.chunk
        facts = {"recorded at": f"{episode.fps:g} Hz"}
        if episode.state is not None:
            facts |= {name: f"{value:.3f}" for name, value in zip(episode.state_names, episode.state[step], strict=True)}
        moment = Moment(
            robot=episode.name,
            instruction=episode.instruction,
            images=frames,
            action=episode.actions[step],
            recorded=episode.actions[step : step + ahead],
            facts=facts,
        )
        if self._policy is None:
            return moment
        with self._lock:
            drive = self._driven(item, episode, step)
            return Moment(
                **{
                    **vars(moment),
                    "chunk": drive.chunks[step],
                    "action": drive.actions[step],
                    "stop": drive.stops[step],
                    "step_ms": drive.times[step],
                }
            )

    def _episode(self, item: int) -> Episode:
        if not 0 <= item < len(self._source):
            raise IndexError(item)
        return self._source.episode(item)

    def _driven(self, item: int, episode: Episode, step: int) -> _Drive:
        """The drive of an episode, brought to ``step``: a policy with history has to see every frame before it."""
        assert self._policy is not None
        drive = self._drives.pop(item, None)
        if drive is None:
            while len(self._drives) >= DRIVES:
                self._drives.popitem(last=False)
            drive = _Drive(self._policy.start(episode.instruction), [], [], [], [])
        self._drives[item] = drive
        names = self._policy.transforms.state.names if self._policy.transforms.state else ()
        while len(drive.actions) <= step:
            t = len(drive.actions)
            cameras = [name for name in self._policy.transforms.cameras if name in episode.cameras]
            images = {name: frames[0] for name, frames in episode.read(t, t + 1, cameras).items()}
            state = None
            if names and episode.state is not None:
                state = episode.state[t][[episode.state_names.index(name) for name in names]]
            began = time.perf_counter()
            action = self._policy.act_batch([drive.session], [images], states=[state])[0]
            drive.times.append(1e3 * (time.perf_counter() - began))
            drive.actions.append(action)
            drive.chunks.append(drive.session.chunk)
            last = drive.session.last
            drive.stops.append(None if last is None else last.stop)
        return drive


class Results:
    """A result file: no pictures were kept, but the ways driven, where the environment tells them."""

    def __init__(self, path: Path, spec: ActionSpec = NAV2, fps: float = 2.5) -> None:
        """Raises DataError for a file that is none."""
        self._result = read_results([path])[0]
        self._spec, self._fps = spec, fps
        self._episodes: list[dict[str, Any]] = json.loads(path.read_text())["results"]

    def about(self) -> dict[str, Any]:
        low, high = self._result.about["wilson95"]
        score = f"{self._result.successes}/{len(self._episodes)} (95 % {low:.2f} to {high:.2f})"
        items = []
        for one in self._episodes:
            what = "success" if one["success"] else str(one.get("failure") or "failure")
            name = f"{one['index']}: {what.replace('_', ' ')}, {one['task']}: {one.get('instruction') or 'no instruction'}"
            items.append({"name": name, "length": max(1, len(one.get("path") or ()))})
        title = f"{self._result.name}: {score}"
        return {"live": False, "title": title, "fps": self._fps, "spec": describe_spec(self._spec), "items": items}

    def now(self, robot: str | None, after: int) -> dict[str, Any]:
        return {}

    def moment(self, item: int, step: int) -> dict[str, Any]:
        return describe_moment(self.at(item, step), self._spec, self._fps, GroundCamera()) | {"stops": []}

    def at(self, item: int, step: int) -> Moment:
        """Where the robot was at ``step``. Raises IndexError."""
        if item < 0:
            raise IndexError(item)
        episode = self._episodes[item]
        path = episode.get("path") or []
        if not 0 <= step < max(1, len(path)):
            raise IndexError(step)
        latency = episode.get("latency_ms") or []
        over = step >= len(path) - 1
        facts = {"task": str(episode["task"]), "world": str(episode["world"]), "steps": str(episode["steps"])}
        if math.isfinite(distance := float(episode.get("distance_to_goal", math.nan))):
            facts["distance to goal at the end"] = f"{distance:.2f} m"
        if episode.get("stops"):
            facts["safety stops in it"] = str(episode["stops"])
        return Moment(
            robot=str(episode["index"]),
            instruction=str(episode.get("instruction", "")),
            step_ms=float(latency[step]) if step < len(latency) else None,
            pose=path[step] if path else None,
            path=path[: step + 1],
            layout=episode.get("layout"),
            outcome=("success" if episode["success"] else str(episode.get("failure") or "failure")) if over else None,
            facts=facts,
        )
