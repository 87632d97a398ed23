"""Settings of the sources: one class per format, told apart by ``type``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from anyvla.config.settings import Positive, Settings
from anyvla.errors import did_you_mean

PATH = Field(None, description="folder (or file) of the episodes")


class MobileH5Config(Settings):
    """Mobile navigation, one HDF5 file an episode."""

    type: Literal["mobile_h5"] = "mobile_h5"
    path: Path | None = PATH
    language: Literal["en", "ko"] = Field("en", description="of the sentence made from a scenario, where an episode has none")


class LeRobotConfig(Settings):
    """A LeRobotDataset, v3.0 or v2.x."""

    type: Literal["lerobot"] = "lerobot"
    path: Path | None = PATH
    split: str | None = Field(None, description="one of those that the dataset names; all episodes if null")
    episodes: list[int] | None = Field(None, min_length=1, description="numbers of the episodes to use; all if null")
    action_names: list[str] | None = Field(None, description="names of the recorded actions, in order, instead of its own")


class CalvinConfig(Settings):
    """CALVIN as it is published: one npz file a frame, and annotations that select stretches of them."""

    type: Literal["calvin"] = "calvin"
    path: Path | None = PATH
    split: Literal["training", "validation"] = Field("training", description="unless path is the folder of a split itself")
    language: Literal["annotated", "play", "both"] = Field(
        "annotated",
        description="stretches with a sentence, all recordings without one, or first the former and then the latter",
    )
    play_instruction: str = Field("", description="instruction of recordings without a sentence")
    play_length: Positive = Field(
        1000, description="longest episode, in frames, that recordings without a sentence are cut into"
    )
    actions: Literal["relative", "absolute"] = Field("relative", description="changes of the hand's pose, or poses to go to")
    frame: Literal["world", "tcp"] = Field("world", description="frame of reference of relative actions")
    scenes: list[Literal["A", "B", "C", "D"]] | None = Field(None, min_length=1, description="scenes to take; all if null")
    tasks: list[str] | None = Field(None, min_length=1, description="tasks of annotations to take, by name; all if null")
    per_task: Positive | None = Field(None, description="annotations of each task to take; all if null")
    fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="of each task's annotations; all if null")
    draw: int = Field(0, ge=0, description="of per_task and fraction: another number takes others")

    @model_validator(mode="after")
    def _fits_together(self) -> CalvinConfig:
        if self.frame == "tcp" and self.actions == "absolute":
            raise ValueError("frame: only relative actions can be those of the tcp frame")
        if self.per_task is not None and self.fraction is not None:
            raise ValueError("per_task and fraction say the same thing: leave one out")
        if self.language == "play":
            for key in ("tasks", "per_task", "fraction"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} selects annotations: it does not go with language=play")
        return self


class RLDSLayout(Settings):
    """What the features of an RLDS dataset mean.

    Names are those of features.json without ``steps/``; ``[a:b]`` behind a name takes some of its columns.
    """

    cameras: dict[str, str] = Field(min_length=1, description="camera -> its feature, such as observation/image")
    translation: str | None = Field(None, description="columns of the change of place, up to three; zeros if null")
    rotation: str | None = Field(None, description="columns of the change of attitude; zeros if null")
    rotation_form: Literal["rpy", "quaternion", "axis_angle"] = Field("rpy", description="quaternion is x y z w")
    gripper: str | None = Field(None, description="one column")
    gripper_rule: Literal["open", "closed", "closing", "always_open", "always_closed"] = Field(
        "open", description="what 1 means there: a position open or closed, or a change that closes (then -1 opens)"
    )
    scale: tuple[float, float] | None = Field(
        (1.0, 1.0), description="factors to metres and radians; null: units unknown, limits of the spec are not applied"
    )
    reached: str | None = Field(None, description="six columns of the pose that was reached, x y z roll pitch yaw")
    state: dict[str, list[str]] = Field({}, description="columns -> the names of these numbers")
    instruction: list[str] = Field(["language_instruction"], description="features of the sentence; the first not empty")
    drop_first: int = Field(0, ge=0, description="steps at the beginning of every episode that are left out")
    fps: float = Field(gt=0, description="control steps per second")

    @model_validator(mode="after")
    def _gripper_is_known(self) -> RLDSLayout:
        if (self.gripper is None) != self.gripper_rule.startswith("always"):
            raise ValueError(f"gripper_rule {self.gripper_rule!r} {'takes no' if self.gripper else 'needs a'} gripper column")
        return self


class RLDSConfig(Settings):
    """RLDS, as Open X-Embodiment is published: a folder of TensorFlow Datasets."""

    type: Literal["rlds"] = "rlds"
    path: Path | None = Field(None, description="folder of a version, of a dataset (newest version), or of several datasets")
    split: str = Field("train", description="such as train, train[:95%], train[10:20], train+val")
    dataset: str | None = Field(None, description="whose layout it has; its own name if null")
    layout: RLDSLayout | None = Field(None, description="of a dataset that is not in the table")
    cameras: dict[str, str] | None = Field(None, description="camera -> its feature, instead of those of the layout")
    motion: Literal["commanded", "reached"] = Field(
        "commanded", description="the action as commanded, or what the pose changed by until the next step"
    )
    unlabelled: bool = Field(False, description="keep episodes without a sentence")
    checksum: bool = Field(True, description="check every record when the index is made")


class PackedConfig(Settings):
    """The packed store that `anyvla convert` writes."""

    type: Literal["packed"] = "packed"
    path: Path | None = PATH


class BagConfig(Settings):
    """Bags of ROS 2, in sqlite3 or mcap: topics are brought to one rate, and cut at gaps and changes of the instruction."""

    type: Literal["bag"] = "bag"
    path: Path | None = PATH
    cameras: dict[str, str] | None = Field(
        None, description="name -> topic of images, the one that gives the beat first; all but depth if null"
    )
    cmd_vel: str | None = Field(None, description="topic of the commands (Twist or TwistStamped); the only one, or /cmd_vel")
    instruction: str | None = Field(None, description="topic of the instructions (String); /instruction if it is there")
    text: str | None = Field(None, description="instruction of what no message gives one")
    fps: float = Field(5.0, gt=0, le=1000, description="control steps per second")
    max_age: float = Field(0.25, gt=0, description="seconds; an older frame or state is none, and the episode ends")
    command: Literal["hold", "mean"] = Field("hold", description="the command in force, or its mean until the next step")
    command_gap: float = Field(0.5, gt=0, description="seconds without a command after which it is zero")
    shortest: float = Field(1.0, ge=0, description="seconds; a shorter episode is left out")
    mapping: Path | None = Field(None, description="YAML file that says which number of which topic is which action and state")


Weight = Annotated[float, Field(gt=0)]
SingleSourceConfig = Annotated[
    MobileH5Config | LeRobotConfig | CalvinConfig | RLDSConfig | PackedConfig | BagConfig,
    Field(discriminator="type"),
]


class MixtureConfig(Settings):
    """Several sources at once, each with the scale of its own actions and states."""

    type: Literal["mixture"] = "mixture"
    sources: dict[str, SingleSourceConfig] = Field(min_length=2, description="name -> source")
    weights: dict[str, Weight] | None = Field(
        None, description="name -> share of the windows, in any unit; as many as each source has if null"
    )
    cameras: dict[str, dict[str, str]] = Field({}, description="name -> {camera of the source: camera of the model}")
    batches: Literal["sample", "source"] = Field("sample", description="draw the source anew for every window, or for a batch")

    @model_validator(mode="after")
    def _names_are_known(self) -> MixtureConfig:
        for key, names in (("weights", self.weights), ("cameras", self.cameras)):
            for name in names or ():
                if name not in self.sources:
                    raise ValueError(f"{key}: there is no source {name!r}{did_you_mean(name, self.sources)}")
        missing = [name for name in self.sources if self.weights is not None and name not in self.weights]
        if missing:
            raise ValueError(f"weights: none for {', '.join(missing)}")
        return self


class OpenXConfig(Settings):
    """A published mixture of Open X-Embodiment, by its name."""

    type: Literal["open_x"] = "open_x"
    path: Path | None = Field(None, description="folder of the datasets' folders")
    mixture: str = Field("bridge_rt_1", description="bridge_rt_1, rtx, oxe_magic_soup or oxe_magic_soup_plus")
    leave_out: list[str] = Field([], description="datasets of the mixture that are not used")
    split: str = Field("train", description="such as train, train[:95%]; of every dataset")
    motion: Literal["commanded", "reached"] = Field(
        "commanded", description="actions as commanded, or what the pose changed by, in datasets that tell the pose"
    )
    batches: Literal["sample", "source"] = Field("sample", description="draw the dataset anew for every window, or for a batch")


SourceConfig = Annotated[SingleSourceConfig | MixtureConfig | OpenXConfig, Field(discriminator="type")]
