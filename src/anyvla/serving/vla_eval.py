"""A policy as a model server of vla-eval (PyPI ``vla-eval``, Apache-2.0), which drives SimplerEnv, LIBERO, CALVIN and others.

Every episode of every connected benchmark has its own session of the policy: its sentence, what the model remembers, the chunk
in execution. Observations that wait together are answered in one forward pass. One observation gives one action: chunks are
executed here, as the policy's settings say, and not by vla-eval.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from anyvla.errors import AnyVLAError, ConfigError, DataError, MissingExtraError
from anyvla.policies.execution import replans_every
from anyvla.policies.policy import Policy, Session
from anyvla.serving.conventions import ActionTranslator, Convention, match_names, named_state, turn

if TYPE_CHECKING:
    from vla_eval.model_servers.predict import PredictModelServer

logger = logging.getLogger(__name__)


@dataclass
class _Episode:
    """What the server keeps of one episode; ``gripper``: the policy's last command."""

    session: Session | None = None
    sentence: str = ""
    gripper: float | None = None
    stopped: bool = False


@dataclass(frozen=True)
class _Request:
    """One observation, checked and in the policy's own terms; ``images`` is None where the policy does not look."""

    episode: _Episode
    session: Session
    images: dict[str, np.ndarray] | None
    state: np.ndarray | None


class Bridge:
    """Between vla-eval's observations and actions and the policy's: what is to be said before anything is served.

    Args:
        cameras: benchmark's name -> policy's name, where they differ; a policy with one camera gets the main one anyway.
        state: the same for the numbers of the state.
        turn_images: for a policy that was trained with images as the simulator renders them, where vla-eval turns them.
        any_rate: serve although the policy was trained for another control rate.

    Raises:
        ConfigError: the policy does not fit the benchmark.
    """

    def __init__(
        self,
        policy: Policy,
        convention: Convention,
        *,
        cameras: Mapping[str, str] | None = None,
        state: Mapping[str, str] | None = None,
        turn_images: bool = False,
        any_rate: bool = False,
    ) -> None:
        self.policy, self.convention = policy, convention
        spec = policy.spec()
        self.translate = ActionTranslator(policy.transforms.spec, convention)
        if abs(spec.fps - convention.rate) > 0.05 * convention.rate and not any_rate:
            raise ConfigError(
                f"{convention.name} takes {convention.rate:g} actions a second, the policy was trained for {spec.fps:g}: "
                "the same action moves another distance (--any-rate serves it all the same)"
            )
        if turn_images and not convention.turned:
            raise ConfigError(f"--turn-images: the images of {convention.name} are as its simulator renders them")
        self._turn = turn_images
        self.cameras = match_names("camera", spec.cameras, convention.cameras, cameras or {})
        if not self.cameras and len(spec.cameras) == 1:
            self.cameras = {spec.cameras[0]: convention.cameras[0]}
        missing = [name for name in spec.cameras if name not in self.cameras and name not in spec.optional_cameras]
        if missing or not self.cameras:
            raise ConfigError(
                f"{convention.name} has the cameras {', '.join(convention.cameras)}; say which of them is the policy's "
                f"{', '.join(missing or spec.cameras)}: --camera {convention.cameras[0]}={(missing or spec.cameras)[0]}"
            )
        offered = list(named_state(convention, _resting(convention)))
        self.state = match_names("state", spec.state, offered, state or {})
        missing = [name for name in spec.state if name not in self.state]
        if missing:
            raise ConfigError(
                f"the policy's state has {', '.join(missing)}; say which of {', '.join(offered)} that is: --state THEIRS=OURS"
            )

    def images(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The policy's cameras, at the size of its model.

        Raises DataError for what is missing or no image.
        """
        sent = observation.get("images")
        if not isinstance(sent, Mapping):
            raise DataError("the observation has no `images`")
        found = {ours: np.asarray(sent[theirs]) for ours, theirs in self.cameras.items() if theirs in sent}
        if self._turn:
            found = {ours: turn(image) for ours, image in found.items()}
        return self.policy.transforms.images(found)

    def robot_state(self, observation: Mapping[str, Any]) -> np.ndarray | None:
        """(S,) in the order of the policy, or None if it takes none. Raises DataError."""
        if not self.state:
            return None
        if observation.get("states") is None:
            raise DataError("the observation has no `states`; the policy wants them")
        named = named_state(self.convention, observation["states"])
        state = np.array([named[self.state[name]] for name in self.policy.spec().state])
        self.policy.transforms.normalize_state(state)  # refuses what is not finite, before it is in a batch with others
        return state

    def params(self) -> dict[str, Any]:
        """Parameters of vla-eval's benchmark that this policy needs."""
        wanted = dict(self.convention.params)
        if set(self.cameras.values()) - {self.convention.cameras[0]}:
            wanted["send_wrist_image"] = True
        if self.state:
            wanted["send_state"] = True
        return wanted

    def describe(self) -> list[str]:
        """What is converted, one line each."""
        cameras = ", ".join(f"{theirs} is {ours}" for ours, theirs in self.cameras.items())
        state = ", ".join(f"{theirs} is {ours}" for ours, theirs in self.state.items()) or "not asked for"
        execution = self.policy.config.execution
        return [
            f"benchmark: {self.convention.name}, {self.convention.rate:g} actions a second",
            f"cameras: {cameras}{', turned by 180 degrees' if self._turn else ''}",
            f"state: {state}",
            f"actions: {self.translate.describe()}",
            f"execution: {execution.type}, the model predicts every {replans_every(execution)} steps",
        ]


def _resting(convention: Convention) -> np.ndarray:
    """A valid state of the convention."""
    return np.array([1.0 if name == "qw" else 0.0 for name in convention.state])


def make_server(bridge: Bridge, *, batch: int = 16, wait: float = 0.01) -> PredictModelServer:
    """The model server.

    Args:
        batch: observations at most in one forward pass. wait: seconds to wait for more of them.

    Raises:
        MissingExtraError: vla-eval is not installed.
    """
    try:
        from vla_eval import specs
        from vla_eval.model_servers.base import SessionContext
        from vla_eval.model_servers.predict import PredictModelServer
    except ImportError as error:
        raise MissingExtraError("vla-eval", "vla-eval") from error

    policy = bridge.policy
    # a context is one episode; it goes when its connection begins another one or ends, and takes the session with it
    episodes: WeakKeyDictionary[SessionContext, _Episode] = WeakKeyDictionary()

    class AnyVLAServer(PredictModelServer):
        """One action for every observation."""

        async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
            await super().on_episode_start(config, ctx)
            episodes[ctx] = _Episode()

        async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
            episodes.pop(ctx, None)
            await super().on_episode_end(result, ctx)

        async def on_observation(self, obs: dict[str, Any], ctx: SessionContext) -> None:
            # what is wrong with one observation is answered here: in a batch it would fail the others too
            if ctx not in episodes:
                raise AnyVLAError("no episode was begun on this connection")
            await super().on_observation({"request": _read(bridge, episodes[ctx], obs)}, ctx)

        def predict_batch(self, obs_batch: list[dict[str, Any]], ctx_batch: list[SessionContext]) -> list[dict[str, Any]]:
            requests: list[_Request] = [obs["request"] for obs in obs_batch]
            actions = policy.act_batch(
                [request.session for request in requests],
                [request.images for request in requests],
                states=[request.state for request in requests],
            )
            return [{"actions": _answer(bridge, request, a)} for request, a in zip(requests, actions, strict=True)]

        def get_observation_params(self) -> dict[str, Any]:
            return bridge.params()

        def get_action_spec(self) -> dict[str, specs.DimSpec]:
            gripper = {"+1 open": specs.GRIPPER_CLOSE_NEG, "+1 close": specs.GRIPPER_CLOSE_POS, "relative": specs.GRIPPER_01}
            rotation = specs.ROTATION_EULER if bridge.convention.rotation == "euler" else specs.ROTATION_AA
            return {"position": specs.POSITION_DELTA, "rotation": rotation, "gripper": gripper[bridge.convention.gripper]}

        def get_observation_spec(self) -> dict[str, specs.DimSpec]:
            return {**dict.fromkeys(bridge.cameras.values(), specs.IMAGE_RGB), "language": specs.LANGUAGE}

    return AnyVLAServer(max_batch_size=batch, max_wait_time=wait)


def _read(bridge: Bridge, episode: _Episode, observation: Mapping[str, Any]) -> _Request:
    sentence = observation.get("task_description")
    if not isinstance(sentence, str):
        raise DataError("the observation has no `task_description`")
    # CALVIN goes on to its next subtask within an episode, and says so
    if episode.session is None or observation.get("episode_restart") or sentence != episode.sentence:
        episode.session, episode.sentence = bridge.policy.start(sentence), sentence
    looks = bridge.policy.looks(episode.session)
    images = bridge.images(observation) if looks else None
    return _Request(episode, episode.session, images, bridge.robot_state(observation) if looks else None)


def _answer(bridge: Bridge, request: _Request, action: np.ndarray) -> np.ndarray:
    episode = request.episode
    answer = bridge.translate(action, episode.gripper)
    episode.gripper = bridge.translate.gripper(action)
    last = request.session.last
    if last is not None and last.stop is not None and not episode.stopped:
        episode.stopped = True  # said once: it may go on for the whole episode
        logger.warning("%r: the safety filter stops the robot: %s", episode.sentence, last.stop)
    return answer


def serve(server: PredictModelServer, host: str, port: int) -> None:
    """Serve until interrupted. Raises ConfigError where the port cannot be had."""
    from vla_eval.model_servers import serve as serving

    failed: list[BaseException] = []
    try:
        serving.serve(server, host=host, port=port)
    except* OSError as group:
        failed.extend(group.exceptions)
    if failed:
        raise ConfigError(f"cannot serve at {host}:{port}: {failed[0]}") from failed[0]
