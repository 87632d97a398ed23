"""From the record of an RLDS episode to actions, state and the places of its images, as a layout says."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from anyvla.actions.gripper import GRIPPER_RULES
from anyvla.actions.spec import DELTA7
from anyvla.config.sources import RLDSLayout
from anyvla.data.sources.tf_example import Feature, byte_ranges, byte_strings, floats, integers, locate_features
from anyvla.data.sources.tfds import DatasetFolder, FeatureSpec
from anyvla.errors import ConfigError, DataError, did_you_mean

_COLUMNS = re.compile(r"(?P<key>[^\[\]]+)(?:\[(?P<start>-?\d+)?(?P<colon>:)?(?P<stop>-?\d+)?\])?")
_MOST_PIXELS = 2**26
_ROTATIONS = {"rpy": 3, "quaternion": 4, "axis_angle": 3}


@dataclass(frozen=True)
class Columns:
    """Columns ``start`` to ``stop`` of a feature of the steps."""

    key: str
    feature: FeatureSpec
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """A layout, resolved against the features that a dataset has."""

    cameras: dict[str, str]  # camera -> name in the record
    translation: Columns | None
    rotation: Columns | None
    rotation_form: Literal["rpy", "quaternion", "axis_angle"]
    gripper: Columns | None
    gripper_rule: str
    scale: tuple[float, float] | None
    reached: Columns | None  # the pose whose change is the action; None: the action as commanded
    state: tuple[Columns, ...]
    state_names: tuple[str, ...]
    instruction: tuple[tuple[str, FeatureSpec], ...]
    drop_first: int


@dataclass(frozen=True)
class Steps:
    """An episode of T steps, without its pixels."""

    actions: np.ndarray  # (T, 7) float32, the dimensions of DELTA7
    state: np.ndarray  # (T, S) float32
    images: np.ndarray  # (T, cameras, 2) int64: start and stop in the record; zeros where there is no image
    present: np.ndarray  # (cameras,) bool
    instruction: str  # empty where there is none


def make_plan(
    layout: RLDSLayout, folder: DatasetFolder, cameras: dict[str, str] | None, reached: bool, from_table: bool
) -> Plan:
    """Find what ``layout`` names among the features of ``folder``.

    Args:
        cameras: instead of those of the layout. reached: the action is the change of the pose.
        from_table: leave out cameras and states that this version of a published dataset does not have.

    Raises:
        ConfigError: a feature that there is not, or of another kind or size.
    """
    found = {}
    for camera, key in (cameras or layout.cameras).items():
        name = f"steps/{key}"
        feature = folder.features.get(name)
        if feature is None and from_table and cameras is None:
            continue
        if feature is None or feature.kind != "image" or not feature.in_steps or feature.shape[2:] not in ((), (3,), (None,)):
            images = [n.removeprefix("steps/") for n, f in folder.features.items() if f.kind == "image"]
            what = "no feature" if feature is None else "no colour images in"
            raise ConfigError(f"{folder.path}: camera {camera!r}: {what} {key!r}{did_you_mean(key, images)}")
        found[camera] = name
    if not found:
        raise ConfigError(f"{folder.path}: none of the cameras' features is there: {', '.join(layout.cameras.values())}")
    state, names = [], []
    for text, numbers in layout.state.items():
        if from_table and f"steps/{_key(text)}" not in folder.features:
            continue
        columns = _columns(folder, text, "state", {len(numbers)})
        state.append(columns)
        names += numbers
    if len(set(names)) != len(names):
        raise ConfigError(f"{folder.path}: state: a name stands there twice: {', '.join(names)}")
    if reached and layout.reached is None:
        raise ConfigError(f"{folder.path}: motion=reached: the layout of this dataset names no pose that was reached")
    return Plan(
        cameras=found,
        translation=_optional(folder, layout.translation, "translation", {1, 2, 3}),
        rotation=_optional(folder, layout.rotation, "rotation", {_ROTATIONS[layout.rotation_form]}),
        rotation_form=layout.rotation_form,
        gripper=_optional(folder, layout.gripper, "gripper", {1}),
        gripper_rule=layout.gripper_rule,
        scale=layout.scale,
        reached=_optional(folder, layout.reached, "reached", {6}) if reached else None,
        state=tuple(state),
        state_names=tuple(names),
        instruction=tuple(_sentences(folder, layout.instruction)),
        drop_first=layout.drop_first,
    )


def read_steps(data: bytes, plan: Plan) -> Steps:
    """The episode in the payload of a record. Raises DataError, naming the feature."""
    features = locate_features(data)
    ranges = {camera: _images(data, features, camera, key) for camera, key in plan.cameras.items()}
    lengths = {plan.cameras[camera]: len(places) for camera, places in ranges.items()}

    def read(columns: Columns) -> np.ndarray:
        values = _numbers(data, features, columns.key, columns.feature)
        lengths[columns.key] = len(values)
        return values[:, columns.start : columns.stop]

    used = [c for c in (plan.translation, plan.rotation, plan.gripper, plan.reached, *plan.state) if c is not None]
    arrays = {columns: read(columns) for columns in dict.fromkeys(used)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DataError(f"features of different lengths, in steps: {told}")
    length = next(iter(lengths.values()))
    if length == 0:
        raise DataError("an episode without steps")
    actions = _actions(arrays, plan, length)
    state = np.concatenate([np.empty((length, 0)), *(arrays[columns] for columns in plan.state)], axis=1)
    kept = slice(plan.drop_first, length - (plan.reached is not None))
    for what, values, names in (("action", actions, DELTA7.names), ("state", state, plan.state_names)):
        bad = ~np.isfinite(values[kept])
        if bad.any():
            step, dim = np.argwhere(bad)[0]
            raise DataError(f"{what} {names[dim]} at step {step + plan.drop_first} is {values[kept][step, dim]}")
    present = np.array([_is_filmed(data, camera, places) for camera, places in ranges.items()])
    images = np.stack([places if there else 0 * places for places, there in zip(ranges.values(), present, strict=True)], axis=1)
    return Steps(
        actions[kept].astype(np.float32),
        state[kept].astype(np.float32),
        images[kept],
        present,
        _instruction(data, features, plan, min(plan.drop_first, length - 1)),
    )


def decode_image(encoded: bytes, shape: Sequence[int | None] = (None, None)) -> np.ndarray:
    """JPEG or PNG -> (H, W, 3) uint8 RGB. ``shape`` begins with the H and W that it should have, None where any will do."""
    try:
        with Image.open(BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            size = (image.height, image.width)
            if any(n is not None and n != have for n, have in zip(shape[:2], size, strict=True)):
                raise DataError(f"an image of {size[0]} x {size[1]}, where features.json says {shape[0]} x {shape[1]}")
            if size[0] * size[1] > _MOST_PIXELS:
                raise DataError(f"an image of {size[0]} x {size[1]} pixels")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, Image.DecompressionBombError) as error:
        raise DataError(f"a damaged image ({error})") from error


def quaternion_to_rpy(quaternions: np.ndarray) -> np.ndarray:
    """(T, 4) x y z w, of any length -> (T, 3) roll, pitch, yaw: the turn about the fixed x, then y, then z axis, in radians."""
    norm = np.linalg.norm(quaternions, axis=-1, keepdims=True)
    unit = np.where(norm > 0, quaternions / np.where(norm > 0, norm, 1), [0, 0, 0, 1])
    x, y, z, w = np.moveaxis(unit, -1, 0)
    return np.stack(
        [
            np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)),
            np.arcsin(np.clip(2 * (w * y - z * x), -1, 1)),
            np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
        ],
        axis=-1,
    )


def axis_angle_to_rpy(vectors: np.ndarray) -> np.ndarray:
    """(T, 3) axes times angles in radians -> (T, 3) roll, pitch, yaw."""
    half = np.linalg.norm(vectors, axis=-1, keepdims=True) / 2
    return quaternion_to_rpy(np.concatenate([vectors * np.sinc(half / np.pi) / 2, np.cos(half)], axis=-1))


def _actions(arrays: dict[Columns, np.ndarray], plan: Plan, length: int) -> np.ndarray:
    """(T, 7) float64; with ``plan.reached``, the last one is not known and NaN."""
    actions = np.zeros((length, len(DELTA7)))
    metres, radians = plan.scale or (1.0, 1.0)
    if plan.reached is not None:
        change = np.diff(arrays[plan.reached], axis=0)
        change[:, 3:] = (change[:, 3:] + np.pi) % (2 * np.pi) - np.pi  # the short way round
        actions[:-1, :6], actions[-1, :6] = change, np.nan
    else:
        if plan.translation is not None:
            actions[:, : plan.translation.stop - plan.translation.start] = arrays[plan.translation] * metres
        if plan.rotation is not None:
            turn = arrays[plan.rotation]
            if plan.rotation_form == "quaternion":
                actions[:, 3:6] = quaternion_to_rpy(turn)
            elif plan.rotation_form == "axis_angle":
                actions[:, 3:6] = axis_angle_to_rpy(turn * radians)
            else:
                actions[:, 3:6] = turn * radians
    values = arrays[plan.gripper][:, 0] if plan.gripper is not None else np.zeros(length)
    if not np.isfinite(values).all():
        raise DataError(f"action gripper at step {np.argmin(np.isfinite(values))} is {values[~np.isfinite(values)][0]}")
    actions[:, 6] = GRIPPER_RULES[plan.gripper_rule](values)
    return actions


def _images(data: bytes, features: dict[str, Feature], camera: str, key: str) -> np.ndarray:
    try:
        return np.array(byte_ranges(data, _feature(features, key)), dtype=np.int64).reshape(-1, 2)
    except DataError as error:
        raise DataError(f"camera {camera!r}: {key}: {error}") from error


def _feature(features: dict[str, Feature], key: str) -> Feature:
    if key not in features:
        raise DataError(f"features.json names it, but the record does not have it{did_you_mean(key, features)}")
    return features[key]


def _numbers(data: bytes, features: dict[str, Feature], key: str, spec: FeatureSpec) -> np.ndarray:
    """(T, size) float64, or int64 for integers."""
    try:
        feature = _feature(features, key)
        if spec.encoding in ("zlib", "bytes"):
            return _unpacked(data, feature, spec)
        if spec.dtype.startswith(("float", "bfloat")):
            values = floats(data, feature).astype(np.float64)
        else:
            values = integers(data, feature)
        if len(values) % spec.size:
            raise DataError(f"{len(values)} numbers are no multiple of {spec.size}, its size in features.json")
        return values.reshape(-1, spec.size)
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def _unpacked(data: bytes, feature: Feature, spec: FeatureSpec) -> np.ndarray:
    """Of a tensor whose every step is a byte string of its own, compressed or not."""
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    size = spec.size * dtype.itemsize
    rows = []
    for packed in byte_strings(data, feature):
        try:
            raw = zlib.decompressobj().decompress(packed, size + 1) if spec.encoding == "zlib" else packed
        except zlib.error as error:
            raise DataError(f"not compressed with zlib ({error})") from error
        if len(raw) != size:
            raise DataError(f"a step has {'more' if len(raw) > size else 'fewer'} bytes than the {size} of features.json")
        rows.append(np.frombuffer(raw, dtype))
    return np.array(rows).reshape(-1, spec.size).astype(np.float64)


def _is_filmed(data: bytes, camera: str, places: np.ndarray) -> bool:
    """False where a camera was absent: its images are empty, or one black image repeated. (Flags such as has_image lie.)"""
    sizes = places[:, 1] - places[:, 0]
    if not sizes.any():
        return False
    first, last = (data[start:stop] for start, stop in places[[0, -1]].tolist())
    if (sizes != sizes[0]).any() or first != last:
        return True
    try:
        return bool(decode_image(first).any())
    except DataError as error:
        raise DataError(f"camera {camera!r}, step 0: {error}") from error


def _instruction(data: bytes, features: dict[str, Feature], plan: Plan, step: int) -> str:
    """The first sentence that is not empty, of ``step`` where every step has one."""
    for key, spec in plan.instruction:
        try:
            if spec.kind == "text":
                texts = byte_strings(data, _feature(features, key), step + 1)
                text = texts[-1].decode("utf-8") if texts else ""  # that of the whole episode where there is but one
            else:
                codes = _numbers(data, features, key, spec)  # the bytes of the sentence, zeros behind the last
                row = codes[min(step, len(codes) - 1)] if len(codes) else codes[:0].reshape(-1)
                ends = np.flatnonzero(row == 0)
                text = bytes(row[: ends[0] if len(ends) else None].astype(np.int64).tolist()).decode("utf-8")
        except ValueError as error:
            raise DataError(f"{key}: no UTF-8 text ({error})") from error
        if text.strip():
            return text.strip()
    return ""


def _sentences(folder: DatasetFolder, keys: Sequence[str]) -> list[tuple[str, FeatureSpec]]:
    """Those of ``keys`` that the dataset has, in the steps or of the whole episode."""
    found = []
    for key in keys:
        for name in (f"steps/{key}", key):
            feature = folder.features.get(name)
            if feature is not None and (feature.kind == "text" or feature.dtype.startswith(("int", "uint"))):
                found.append((name, feature))
                break
    if keys and not found:
        texts = [name.removeprefix("steps/") for name, feature in folder.features.items() if feature.kind == "text"]
        raise ConfigError(f"{folder.path}: instruction: no feature {keys[0]!r}{did_you_mean(keys[0], texts)}")
    return found


def _key(text: str) -> str:
    return text.partition("[")[0]


def _optional(folder: DatasetFolder, text: str | None, what: str, sizes: set[int]) -> Columns | None:
    return None if text is None else _columns(folder, text, what, sizes)


def _columns(folder: DatasetFolder, text: str, what: str, sizes: set[int]) -> Columns:
    """``observation/state[0:6]`` -> its columns, of which there must be one of ``sizes``."""
    match = _COLUMNS.fullmatch(text)
    if not match or (match["start"] is None and match["colon"] is None and "[" in text):
        raise ConfigError(f"{folder.path}: {what}: {text!r} is not of the form name, name[3] or name[0:6]")
    key = f"steps/{match['key']}"
    feature = folder.features.get(key)
    if feature is None or feature.kind != "tensor" or not feature.in_steps or feature.size == 0:
        tensors = [n.removeprefix("steps/") for n, f in folder.features.items() if f.kind == "tensor" and f.in_steps and f.size]
        raise ConfigError(f"{folder.path}: {what}: no numbers {match['key']!r}{did_you_mean(match['key'], tensors)}")
    if feature.encoding not in ("none", "zlib", "bytes") or not re.fullmatch(r"bool|u?int\d+|float(16|32|64)", feature.dtype):
        raise ConfigError(
            f"{folder.path}: {what}: {match['key']!r} is stored as {feature.encoding} {feature.dtype}, not known here"
        )
    start = int(match["start"] or 0)
    stop = int(match["stop"] or feature.size) if match["colon"] or match["start"] is None else start + 1 or feature.size
    start, stop = start % feature.size if start < 0 else start, stop + feature.size if stop < 0 else stop
    if not 0 <= start < stop <= feature.size or stop - start not in sizes:
        wanted = " or ".join(map(str, sorted(sizes)))
        raise ConfigError(f"{folder.path}: {what}: {text!r} is not {wanted} of its {feature.size} columns")
    return Columns(key, feature, start, stop)
