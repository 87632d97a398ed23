"""From what a client sends to chunks of actions: checks, episodes, batches. Nothing here knows of sockets."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anyvla.errors import DataError, did_you_mean
from anyvla.policies.policy import Policy, PolicySpec, Session

MAX_SIDE = 8192  # pixels of an image
MAX_ASPECT = 10  # longer side over the shorter one: resizing anything longer may need a thousand times its memory
MAX_PROMPT = 1000  # characters


@dataclass(frozen=True)
class Observation:
    """What one request says, its form checked.

    Attributes:
        images: camera -> (H, W, 3) uint8. state: (S,) or None. prompt: None for that of the request before.
        reset: a new episode begins here. stamp: when the images were taken, seconds on the client's clock, if it says so.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray | list[Any] | None
    prompt: str | None
    reset: bool
    stamp: float | None


@dataclass
class Episode:
    """What the server keeps of one connection.

    Attributes:
        before: the model's memory before the last step, to take that step again with a fresher image. after: behind it.
        chunk: (L, A), as last answered. stamp: of the observation that it came from. missed: control steps without one.
    """

    session: Session | None = None
    prompt: str = ""
    before: Any = None
    after: Any = None
    chunk: np.ndarray | None = None
    stamp: float | None = None
    missed: int = 0


@dataclass
class Request:
    """One observation on its way; ``given_up``: its client is gone, nobody waits for the answer."""

    episode: Episode
    observation: Observation
    arrived: float = field(default_factory=time.perf_counter)
    given_up: bool = False


@dataclass(frozen=True)
class Answer:
    """``chunk`` (L, A) in robot units, within the limits of the action spec; how long the model took, for how many at once.

    ``stale``: the observation was not newer than the one before, so that the model was not asked again.
    """

    chunk: np.ndarray
    seconds: float
    batch: int
    stale: bool = False


@dataclass(frozen=True)
class _Step:
    """One step of one session: the memory to take it from, images of the model's size; ``again``: in place of the last step."""

    session: Session
    memory: Any
    images: dict[str, np.ndarray]
    again: bool = False


class UnsafeActionError(Exception):
    """The model predicted what is no number."""


def read_observation(message: Mapping[str, Any], spec: PolicySpec) -> Observation:
    """A decoded frame -> an observation.

    Images are ``images: {camera: array}`` or openpi's flat ``observation/<camera>``, the state ``state`` or
    ``observation/state``, the sentence ``prompt``. Raises DataError.
    """
    images = message.get("images", {})
    if not isinstance(images, Mapping):
        raise DataError("`images` must be a map of cameras")
    flat = {camera: message[f"observation/{camera}"] for camera in spec.cameras if f"observation/{camera}" in message}
    images = {**flat, **images}
    for camera, image in images.items():
        if camera not in spec.cameras:
            raise DataError(f"the policy has no camera {camera!r}{did_you_mean(camera, spec.cameras)}")
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise DataError(f"camera {camera!r}: expected an array (H, W, 3) of uint8 RGB")
        low, high = sorted(image.shape[:2])
        if not 1 <= high <= min(MAX_SIDE, MAX_ASPECT * low):
            raise DataError(f"camera {camera!r}: {image.shape[1]}x{image.shape[0]} pixels are no image for a policy")
    state = message.get("state", message.get("observation/state"))
    if state is not None and not (isinstance(state, list) or (isinstance(state, np.ndarray) and state.dtype.kind in "iuf")):
        raise DataError("`state` must be an array or a list of numbers")
    prompt = message.get("prompt")
    if prompt is not None and not (isinstance(prompt, str) and len(prompt) <= MAX_PROMPT):
        raise DataError(f"`prompt` must be a text of at most {MAX_PROMPT} characters")
    reset = message.get("reset", False)
    if not isinstance(reset, bool | np.bool_):
        raise DataError("`reset` must be true or false")
    stamp = message.get("stamp")
    if stamp is not None:
        if not isinstance(stamp, int | float | np.integer | np.floating) or not np.isfinite(stamp):
            raise DataError("`stamp` must be seconds")
        stamp = float(stamp)
    return Observation(images, state, prompt, bool(reset), stamp)


def answer_batch(policy: Policy, requests: Sequence[Request]) -> list[Answer | DataError | UnsafeActionError]:
    """One forward pass for requests of different episodes; what is wrong with one of them is its own answer."""
    began = time.perf_counter()
    answers: dict[int, Answer | DataError | UnsafeActionError] = {}
    steps: dict[int, _Step] = {}
    for i, request in enumerate(requests):
        try:
            step = _prepare(policy, request)
        except DataError as error:
            answers[i] = error
            continue
        if step is not None:
            steps[i] = step
        else:
            assert request.episode.chunk is not None
            answers[i] = Answer(request.episode.chunk, 0.0, 1, stale=True)
    if steps:
        for step in steps.values():
            step.session.state = step.memory
        chunks = policy.chunk_batch(
            [step.session for step in steps.values()],
            [step.images for step in steps.values()],
            states=[requests[i].observation.state for i in steps],
        )
        seconds = time.perf_counter() - began
        for (i, step), chunk in zip(steps.items(), chunks, strict=True):
            if np.isfinite(chunk).all():
                answers[i] = Answer(_keep(policy, requests[i], step, chunk), seconds, len(steps))
            else:
                answers[i] = UnsafeActionError("the policy predicted actions that are no numbers")
    return [answers[i] for i in range(len(requests))]


def _prepare(policy: Policy, request: Request) -> _Step | None:
    """The step that a request asks for; None if its observation is not new.

    Changes nothing that is kept, so that a request may be tried again alone when its batch failed. Raises DataError.
    """
    episode, observation = request.episode, request.observation
    images = policy.transforms.images(observation.images)
    policy.transforms.normalize_state(observation.state)
    prompt = observation.prompt if observation.prompt is not None else episode.prompt
    if episode.session is None or observation.reset or prompt != episode.prompt:
        if episode.session is None and observation.prompt is None:
            raise DataError("the first observation of an episode needs a `prompt`")
        session = policy.start(prompt)
        return _Step(session, session.state, images)
    if observation.stamp is None or episode.stamp is None:
        return _Step(episode.session, episode.after, images)
    if observation.stamp <= episode.stamp:
        return None
    # a fresher image of the control step that was taken already takes that step's place in the model's memory
    again = round((observation.stamp - episode.stamp) * policy.transforms.fps) == 0
    return _Step(episode.session, episode.before if again else episode.after, images, again)


def _keep(policy: Policy, request: Request, step: _Step, chunk: np.ndarray) -> np.ndarray:
    """Keep what the next request of the episode needs; gives the chunk within the limits."""
    episode, observation = request.episode, request.observation
    if step.session is not episode.session:
        episode.session, episode.stamp, episode.missed = step.session, None, 0
        episode.prompt = observation.prompt if observation.prompt is not None else episode.prompt
    if observation.stamp is not None and not step.again:  # a step taken again stays at its own place in time
        if episode.stamp is not None:
            steps = round((observation.stamp - episode.stamp) * policy.transforms.fps)
            episode.missed += max(0, steps - 1)
        episode.stamp = observation.stamp
    spec = policy.transforms.spec
    episode.before, episode.after = step.memory, step.session.state
    episode.chunk = np.clip(chunk, spec.low, spec.high).astype(np.float32)
    return episode.chunk
