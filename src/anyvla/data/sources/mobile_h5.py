"""Mobile navigation episodes, one HDF5 file each (``mobile_h5``).

    images                 uint8   (T, H, W, 3)   RGB, of the camera ``front``
    images_<camera>        uint8   (T, H, W, 3)   of a further camera; may be absent
    actions                float32 (T, 3)         linear_x m/s, linear_y m/s, angular_z rad/s
    language_instruction   bytes   (1,)           UTF-8, may be absent
    states                 float32 (T, S)         state of the robot as measured when frame t was seen; may be absent
    state_names            bytes   (S,)           UTF-8, with ``states``
    action_event_types     bytes   (T,)           may be absent

Attributes ``fps``, ``robot``, ``scenario``, ``task`` (where it is no scenario) and ``schema_version`` are read where a writer
left them. Where the instruction is absent it follows from the scenario in the attribute or the file name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anyvla.actions.spec import NAV3, ActionSpec
from anyvla.config.settings import OnBadEpisode
from anyvla.data.episode import Problem
from anyvla.data.scenarios import Scenario, scenario_in
from anyvla.errors import ConfigError, DataError, did_you_mean
from anyvla.progress import progress_bar

STATE_HINT = "observation.state=null trains without the robot's state"
_TEXTS = ("language_instruction", "action_event_types")
CAMERA = "front"
DEFAULT_FPS = 2.5
_MANY_FILES = 1000  # opening more takes seconds
_RANGE_TOLERANCE = 1e-3  # recorded limits are rounded to float32


@dataclass(frozen=True)
class MobileH5Episode:
    """One file; see ``anyvla.data.episode.Episode``."""

    path: Path
    name: str
    fingerprint: str
    length: int
    fps: float
    instruction: str
    scenario: Scenario | None
    stored_task: str  # where it is no scenario
    events: dict[str, int]
    frame_shape: tuple[int, int]  # (H, W) as stored
    actions: np.ndarray  # (T, A) float32
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    state: np.ndarray | None  # (T, S) float32

    @property
    def task(self) -> str:
        return self.stored_task or (self.scenario.name if self.scenario else "")

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        import h5py

        keys = [_image_key(camera) for camera in cameras]
        try:
            with h5py.File(self.path, "r") as file:
                return {camera: file[key][start:stop] for camera, key in zip(cameras, keys, strict=True)}
        except (OSError, KeyError) as error:
            what = " or ".join(map(repr, keys))
            raise DataError(f"{self.path}: key {what}: frames {start}-{stop} cannot be read ({error})") from error


class MobileH5Source:
    """All ``*.h5`` and ``*.hdf5`` files below a folder, in the order of their names; or one such file."""

    def __init__(
        self,
        path: Path,
        spec: ActionSpec,
        on_bad_episode: OnBadEpisode = "error",
        language: Literal["en", "ko"] = "en",
        state: Sequence[str] | None = None,
    ) -> None:
        """Open and check every file; images are not decoded yet.

        Args:
            language: of the sentences that are made from scenarios, where a file stores none.
            state: names of the numbers of the robot's state, which every episode must have; None: what each file has.

        Raises:
            DataError: no such folder, no episode in it, or (unless ``on_bad_episode`` is ``skip``) a damaged file.
            ConfigError: ``spec`` has a dimension that the format does not hold.
        """
        for name in spec.names:
            if name not in NAV3.names:
                raise ConfigError(
                    f"mobile_h5 holds no action dimension {name!r}{did_you_mean(name, NAV3.names)} "
                    f"(action spec {spec.name!r}; mobile_h5 fits nav2 and nav3)"
                )
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".h5", ".hdf5"))
        if not files:
            raise DataError(f"{path}: no *.h5 or *.hdf5 episode in this folder")
        self.name = str(path.resolve())
        self.spec = spec
        self.problems: list[Problem] = []
        self.ready: dict[str, tuple[int, int]] = {}
        self._episodes: list[MobileH5Episode] = []
        root = path.parent if path.is_file() else path
        with progress_bar("open episodes", len(files), shown=len(files) > _MANY_FILES) as bar:
            for file in files:
                bar.advance()
                name = file.relative_to(root).as_posix()
                try:
                    self._episodes.append(_open_episode(file, name, spec, language, state))
                except DataError as error:
                    if on_bad_episode == "error":
                        raise DataError(f"{error} (on_bad_episode=skip leaves such episodes out)") from error
                    self.problems.append(Problem(name, str(error)))
        if not self._episodes:
            raise DataError(f"{path}: none of the {len(files)} episodes can be used; the first: {self.problems[0].reason}")
        further = {camera for episode in self._episodes for camera in episode.cameras} - {CAMERA}
        self.cameras: tuple[str, ...] = (CAMERA, *sorted(further))

    def __len__(self) -> int:
        return len(self._episodes)

    def episode(self, index: int) -> MobileH5Episode:
        return self._episodes[index]


def _image_key(camera: str) -> str:
    return "images" if camera == CAMERA else f"images_{camera}"


def _open_episode(
    path: Path, name: str, spec: ActionSpec, language: Literal["en", "ko"], wanted_state: Sequence[str] | None
) -> MobileH5Episode:
    import h5py

    stat = path.stat()
    if not h5py.is_hdf5(path):
        raise DataError(f"{path}: not an HDF5 file ({stat.st_size} bytes)")
    try:
        with h5py.File(path, "r") as file:
            for key in ("images", "actions"):
                if not isinstance(file.get(key), h5py.Dataset):
                    raise DataError(f"{path}: no dataset {key!r}{did_you_mean(key, file.keys())}")
            shape: tuple[int, ...] = file["images"].shape or ()
            dtype = file["images"].dtype
            actions = np.asarray(file["actions"][()]) if file["actions"].shape is not None else np.empty(0)
            _check(path, shape, dtype, actions)
            texts = {key: _read_texts(path, key, file[key]) for key in _TEXTS if key in file}
            attributes = dict(file.attrs)
            cameras = [CAMERA, *(key.removeprefix("images_") for key in file if _is_camera(path, key, file[key], shape))]
            state_names, state = _read_state(path, file, wanted_state, len(actions))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: damaged HDF5 file ({error})") from error
    selected = actions[:, [NAV3.names.index(dim) for dim in spec.names]].astype(np.float32)
    _check_range(path, selected, spec)
    scenario = scenario_in(str(attributes.get("scenario", ""))) or scenario_in(path.name)
    return MobileH5Episode(
        path=path,
        name=name,
        fingerprint=f"{stat.st_size}-{stat.st_mtime_ns}",
        length=len(actions),
        fps=_fps(path, attributes),
        instruction=_instruction(path, texts.get("language_instruction"), scenario, language),
        scenario=scenario,
        stored_task=str(attributes.get("task", "")),
        events=_events(path, texts.get("action_event_types"), len(actions)),
        frame_shape=(shape[1], shape[2]),
        actions=selected,
        cameras=tuple(cameras),
        state_names=state_names,
        state=state,
    )


def _is_camera(path: Path, key: str, stored: Any, shape: tuple[int, ...]) -> bool:
    """Whether ``stored`` holds the RGB frames of a further camera; other things, such as depth, may have such names too."""
    import h5py

    if not key.startswith("images_") or not isinstance(stored, h5py.Dataset) or stored.dtype != np.uint8:
        return False
    if len(stored.shape or ()) != 4 or stored.shape[-1] != 3:
        return False
    if stored.shape[0] != shape[0] or 0 in stored.shape or key == f"images_{CAMERA}":
        raise DataError(f"{path}: key {key!r}: shape {stored.shape} does not go with 'images', {shape}")
    return True


def _read_state(path: Path, file: Any, wanted: Sequence[str] | None, length: int) -> tuple[tuple[str, ...], np.ndarray | None]:
    """The ``wanted`` numbers of the robot's state, (T, S) float32, and their names; all that there are if None."""
    import h5py

    if not ("states" in file if wanted is None else wanted):
        return (), None
    for key in ("states", "state_names"):
        if not isinstance(file.get(key), h5py.Dataset):
            raise DataError(f"{path}: no dataset {key!r}{did_you_mean(key, file.keys())} ({STATE_HINT})")
    stored = file["states"]
    names = _read_texts(path, "state_names", file["state_names"])
    if stored.shape != (length, len(names)) or not names:
        raise DataError(f"{path}: key 'states': shape {stored.shape} is not {(length, len(names))}, (frames, state_names)")
    if stored.dtype.kind != "f":
        raise DataError(f"{path}: key 'states': dtype {stored.dtype} is not a float")
    if len(set(names)) != len(names):
        raise DataError(f"{path}: key 'state_names': a name stands there twice: {', '.join(names)}")
    for name in wanted or ():
        if name not in names:
            raise DataError(f"{path}: key 'state_names': the state has no {name!r}{did_you_mean(name, names)} ({STATE_HINT})")
    chosen = tuple(wanted or names)
    state = stored[()][:, [names.index(name) for name in chosen]].astype(np.float32)
    bad = ~np.isfinite(state)
    if bad.any():
        frame, dim = np.argwhere(bad)[0]
        raise DataError(f"{path}: key 'states': {chosen[dim]} at frame {frame} is {state[frame, dim]}")
    return chosen, state


def _check(path: Path, shape: tuple[int, ...], dtype: np.dtype, actions: np.ndarray) -> None:
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape[1:]:
        raise DataError(f"{path}: key 'images': shape {shape} is not (T, H, W, 3)")
    if dtype != np.uint8:
        raise DataError(f"{path}: key 'images': dtype {dtype} is not uint8")
    if shape[0] == 0:
        raise DataError(f"{path}: key 'images': the episode has no frames")
    if actions.ndim != 2 or actions.shape[1] != len(NAV3):
        raise DataError(f"{path}: key 'actions': shape {actions.shape} is not (T, {len(NAV3)})")
    if actions.dtype.kind != "f":
        raise DataError(f"{path}: key 'actions': dtype {actions.dtype} is not a float")
    if len(actions) != shape[0]:
        raise DataError(f"{path}: {shape[0]} images but {len(actions)} actions")


def _check_range(path: Path, actions: np.ndarray, spec: ActionSpec) -> None:
    bad = ~np.isfinite(actions)
    if bad.any():
        frame, dim = np.argwhere(bad)[0]
        raise DataError(f"{path}: key 'actions': {spec.names[dim]} at frame {frame} is {actions[frame, dim]}")
    outside = (actions < spec.low - _RANGE_TOLERANCE) | (actions > spec.high + _RANGE_TOLERANCE)
    if outside.any():
        frame, dim = np.argwhere(outside)[0]
        limits = spec.dims[dim]
        raise DataError(
            f"{path}: key 'actions': {limits.name} at frame {frame} is {actions[frame, dim]:g} {limits.unit}, outside "
            f"[{limits.low:g}, {limits.high:g}]; a robot with other limits needs an action spec of its own"
        )


def _fps(path: Path, attributes: dict[str, Any]) -> float:
    stored = np.asarray(attributes.get("fps", DEFAULT_FPS))
    if stored.size != 1 or stored.dtype.kind not in "fiu" or not (np.isfinite(stored).all() and stored.item() > 0):
        raise DataError(f"{path}: attribute 'fps' is {stored.tolist()!r}, not a positive number")
    return float(stored.item())


def _read_texts(path: Path, key: str, stored: Any) -> list[str]:
    """The strings of a dataset of one dimension (or of one string)."""
    import h5py

    if not isinstance(stored, h5py.Dataset) or stored.shape is None or len(stored.shape) > 1:
        raise DataError(f"{path}: key {key!r}: not a list of strings")
    texts = []
    for value in np.atleast_1d(stored[()]).tolist():
        if not isinstance(value, (bytes, str)):
            raise DataError(f"{path}: key {key!r}: holds {value!r}, not a string")
        try:
            texts.append(value.decode("utf-8") if isinstance(value, bytes) else value)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: key {key!r}: not UTF-8 ({error})") from error
    return texts


def _instruction(path: Path, stored: list[str] | None, scenario: Scenario | None, language: Literal["en", "ko"]) -> str:
    if stored and stored[0].strip():
        return stored[0].strip()
    if scenario is None:
        raise DataError(f"{path}: no 'language_instruction', and no scenario such as 1box_hori_left in the file's name")
    return scenario.instruction(language)


def _events(path: Path, stored: list[str] | None, length: int) -> dict[str, int]:
    if stored is not None and len(stored) != length:
        raise DataError(f"{path}: key 'action_event_types': {len(stored)} events for {length} frames")
    return dict(Counter(stored or ()))
