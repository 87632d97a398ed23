"""The typed tree of settings.

A run is described by one ``Config``. It is read from a YAML recipe, changed by ``key.path=value`` overrides, checked as a
whole, and saved with everything that comes out of it. Keys that nobody knows are refused, and every key here has a reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from anyvla.actions.normalize import NormalizerKind
from anyvla.actions.spec import action_spec
from anyvla.errors import ConfigError, did_you_mean
from anyvla.settings import Fit, Fraction, OnBadEpisode, Positive, Settings
from anyvla.source_config import MobileH5Config, SourceConfig


class AugmentConfig(Settings):
    """Augmentation of training windows; 0 turns a part off."""

    shift: float = Field(0.0, ge=0, le=0.5, description="largest shift of a window, as a fraction of height and width")
    color: float = Field(
        0.0, ge=0, le=1, description="largest relative change of brightness, contrast, saturation, white balance"
    )
    mirror: Fraction = Field(0.0, description="probability to exchange left and right in images, actions and words together")
    words: Fraction = Field(0.0, description="probability to leave out each word of the instruction that names no side")
    drop_camera: Fraction = Field(0.0, description="probability to leave out each of observation.optional_cameras")


class DataConfig(Settings):
    """Where the episodes are and how windows are drawn from them."""

    source: SourceConfig = MobileH5Config()
    on_bad_episode: OnBadEpisode = Field("error", description="stop at a damaged episode, or skip and count it")
    validation: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="fraction of the episodes held out")
    store: Literal["auto", "cache", "direct"] = Field(
        "auto", description="decode all frames once into the cache, or each when it is drawn; auto: the cache if it has room"
    )
    cache: Path | None = Field(None, description="folder of the frame cache; ~/.cache/anyvla if null")
    workers: int = Field(0, ge=0, description="processes that load batches; 0 loads them in the training process")
    augment: AugmentConfig = AugmentConfig()


class ObservationConfig(Settings):
    """What the model sees."""

    cameras: list[str] | None = Field(None, min_length=1, description="camera names; all that the data have if null")
    optional_cameras: list[str] = Field([], description="those of them that an episode, and later the robot, may lack")
    state: list[str] | None = Field(
        None, min_length=1, description="numbers of the robot's state that the model takes, by name; none if null"
    )
    mirrored_state: list[str] | None = Field(
        None, description="those of state that change sign when left and right are exchanged; needed for data.augment.mirror"
    )
    image_size: tuple[Positive, Positive] | None = Field(
        None, description="height and width of the model's images; those that the backbone was trained with if null"
    )
    fit: Fit = Field("stretch", description="how a frame of another aspect ratio is brought to image_size")
    prompt: str = Field("{instruction}", pattern=r"\{instruction\}", description="template around the instruction")

    @model_validator(mode="after")
    def _names_are_known(self) -> ObservationConfig:
        for key, names, among in (
            ("cameras", self.cameras, None),
            ("optional_cameras", self.optional_cameras, self.cameras),
            ("state", self.state, None),
            ("mirrored_state", self.mirrored_state, self.state or []),
        ):
            for name in names or []:
                if among is not None and name not in among:
                    raise ValueError(
                        f"{key}: {name!r} is not in {'state' if 'state' in key else 'cameras'}{did_you_mean(name, among)}"
                    )
                if (names or []).count(name) > 1:
                    raise ValueError(f"{key}: {name!r} is named twice")
        return self


class ActionsConfig(Settings):
    """What the model predicts."""

    spec: str | dict[str, Any] | None = Field(
        "nav2", description="arm7, delta7, pose7, nav2, nav3, or a mapping with name and dims; that of the data if null"
    )
    window: Positive = Field(8, description="H, observations in a window")
    chunk: Positive = Field(10, description="L, actions predicted at each step")
    normalization: NormalizerKind = "quantile"
    bounds: tuple[float, float] | None = Field(
        None,
        description="of normalization bounds and mu_law: what becomes -1 and 1; smallest and largest of the data if null",
    )

    @field_validator("bounds")
    @classmethod
    def _bounds_are_ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"the lower bound {value[0]:g} is not below the upper one {value[1]:g}")
        return value

    @model_validator(mode="after")
    def _bounds_are_used(self) -> ActionsConfig:
        if self.bounds is not None and self.normalization not in ("bounds", "mu_law"):
            raise ValueError(f"normalization {self.normalization!r} takes no bounds; only 'bounds' and 'mu_law' do")
        return self

    @field_validator("spec")
    @classmethod
    def _spec_is_one(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        try:
            if value is not None:
                action_spec(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value


class TinyBackboneConfig(Settings):
    """A small vision-language transformer, trained from scratch."""

    type: Literal["tiny"] = "tiny"
    width: Positive = 96
    vision_layers: Positive = 2
    language_layers: Positive = 3
    attention_heads: Positive = 4
    dropout: Fraction = 0.0


class PretrainedBackboneConfig(Settings):
    """A pretrained image-text-to-text model of transformers, or one of those defined here."""

    type: Literal["pretrained"] = "pretrained"
    path: str = Field(description="folder with config.json, weights, tokenizer and image processor; or a name of the hub")
    random_weights: bool = Field(False, description="take the architecture only")
    layout: Literal["native", "robovlms"] = Field(
        "native", description="the sequence of tokens: the model's own, or that of weights imported from RoboVLMs"
    )


class OneStepConfig(Settings):
    """No history: one observation in, one chunk out."""

    type: Literal["one_step"] = "one_step"


class InterleavedConfig(Settings):
    """History in the backbone: frames and query tokens of the window in one causal sequence."""

    type: Literal["interleaved"] = "interleaved"
    keep: int | None = Field(
        None, ge=0, description="frames that a full window begins again with at run time; half of the window if null"
    )


class PolicyHeadConfig(Settings):
    """History in the head: the backbone sees one frame at a time, the head the window of its features."""

    type: Literal["policy_head"] = "policy_head"


class FCHeadConfig(Settings):
    """A multi-layer perceptron on the features of one step."""

    type: Literal["fc"] = "fc"
    hidden: Positive = Field(1024, description="width in front of the trunk")
    trunk: list[Positive] = Field([1024, 512, 256], description="widths of the trunk's hidden layers")


class LSTMHeadConfig(Settings):
    """An LSTM over the features of the window."""

    type: Literal["lstm"] = "lstm"
    hidden: Positive = 1024
    layers: Positive = 4
    dropout: Fraction = 0.0
    trunk: list[Positive] = Field([1024, 512, 256], description="widths of the trunk's hidden layers")


class GPTHeadConfig(Settings):
    """A causal transformer over the features of the window."""

    type: Literal["gpt"] = "gpt"
    hidden: Positive = 1024
    layers: Positive = 8
    attention_heads: Positive = 8
    dropout: Fraction = 0.1
    trunk: list[Positive] = Field([1024, 512, 256], description="widths of the trunk's hidden layers")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> GPTHeadConfig:
        _check_heads(self.hidden, self.attention_heads)
        return self


class FlowHeadConfig(Settings):
    """Flow matching: a transformer that turns noise into a chunk. It has a loss of its own (see ``model.loss``)."""

    type: Literal["flow"] = "flow"
    hidden: Positive = Field(512, description="width of the transformer")
    layers: Positive = 4
    attention_heads: Positive = 8
    steps: int = Field(10, gt=0, le=10, description="Euler steps from noise to actions")
    times: Literal["beta", "uniform"] = Field("beta", description="times to train at: more of the noisy ones, or all alike")
    draws: Positive = Field(8, description="times and noises that each chunk is trained at in one step")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> FlowHeadConfig:
        _check_heads(self.hidden, self.attention_heads)
        return self


def _check_heads(hidden: int, attention_heads: int) -> None:
    if hidden % attention_heads:
        raise ValueError(f"hidden {hidden} does not divide into attention_heads {attention_heads}")


class DiscreteHeadConfig(Settings):
    """Actions as tokens of the language model, decoded one after the other, as in RT-2 and OpenVLA."""

    type: Literal["discrete"] = "discrete"
    bins: int = Field(256, ge=4, description="uniform bins of every continuous dimension")


class PoolingConfig(Settings):
    """Features pooled over tokens, instead of query tokens."""

    tokens: Literal["all", "text", "vision"] = "all"
    reduce: Literal["max", "mean"] = "max"


class ResamplerConfig(Settings):
    """A Perceiver resampler (Flamingo, arXiv 2204.14198) between connector and language model."""

    depth: Positive = 6
    latents: Positive = Field(64, description="visual tokens per image that the language model gets")
    heads: Positive = 8


class LossConfig(Settings):
    """``continuous`` loss, averaged over real actions, plus ``binary_weight`` x binary cross-entropy.

    Of the heads that predict actions in one go; the flow head minimises the squared error of its velocity.
    """

    continuous: Literal["huber", "mse", "l1"] = "huber"
    huber_delta: float = Field(1.0, gt=0)
    binary_weight: float = Field(0.01, ge=0)


class ModelConfig(Settings):
    """Backbone x structure x head."""

    backbone: Annotated[TinyBackboneConfig | PretrainedBackboneConfig, Field(discriminator="type")] = TinyBackboneConfig()
    queries: Positive = Field(1, description="Q, learnable query tokens per frame")
    pooling: PoolingConfig | None = Field(None, description="features pooled over tokens instead of query tokens")
    resampler: ResamplerConfig | None = Field(None, description="fewer visual tokens for the language model")
    structure: Annotated[OneStepConfig | InterleavedConfig | PolicyHeadConfig, Field(discriminator="type")] = PolicyHeadConfig()
    head: Annotated[
        FCHeadConfig | LSTMHeadConfig | GPTHeadConfig | FlowHeadConfig | DiscreteHeadConfig, Field(discriminator="type")
    ] = LSTMHeadConfig()
    loss: LossConfig = LossConfig()


Weight = Annotated[float, Field(gt=0, description="factor of this loss, beside 1 for that of the actions")]


class CaptionConfig(Settings):
    """The backbone is asked ``prompt`` about the last frame of every window, and learns to answer with the instruction."""

    weight: Weight = 0.05
    prompt: str = Field("What should the robot do?", min_length=1, description="the question")


class ConversationsConfig(Settings):
    """Co-training: beside every batch of windows, one of questions about images and their answers (LLaVA's JSON)."""

    weight: Weight = 0.1
    path: Path = Field(description="JSON file of the conversations")
    images: Path | None = Field(None, description="folder that the images' paths start from; that of the file if null")
    batch_size: Positive = Field(8, description="answers per device and forward pass")
    max_characters: Positive = Field(4000, description="of a question, its answer and the turns before them")


class MaskedConfig(Settings):
    """Some patches of the frames to come are shown, and the others are to be predicted."""

    ratio: float = Field(0.9, gt=0, lt=1, description="fraction of the patches that are hidden")
    tube: bool = Field(True, description="hide the same patches in all frames to come")


class FutureConfig(Settings):
    """A small transformer predicts the pixels of the next frames from the features of this one."""

    weight: Weight = 0.1
    cameras: list[str] | None = Field(None, min_length=1, description="cameras whose frames are predicted; all if null")
    next: Positive = Field(1, description="how many frames ahead: t + 1 to t + next")
    masked: MaskedConfig | None = Field(None, description="show a few patches of these frames; null shows none")
    patch: Positive = Field(16, description="side of a patch in pixels; divides observation.image_size")
    hidden: Positive = Field(256, description="width of the transformer")
    layers: Positive = 2
    attention_heads: Positive = 4

    @model_validator(mode="after")
    def _heads_divide_width(self) -> FutureConfig:
        _check_heads(self.hidden, self.attention_heads)
        return self


class AlignmentConfig(Settings):
    """The features point where a frozen feature of the instruction points."""

    weight: Weight = 0.1


class ObjectivesConfig(Settings):
    """What is minimised beside the loss of the actions; a section that is null is off and costs nothing."""

    caption: CaptionConfig | None = None
    conversations: ConversationsConfig | None = None
    future: FutureConfig | None = None
    alignment: AlignmentConfig | None = None


class TrainingConfig(Settings):
    """Optimisation, its schedule, and how often things are measured and saved."""

    init_from: Path | None = Field(None, description="run or checkpoint whose weights training begins with")
    steps: Positive = Field(10_000, description="optimiser steps")
    batch_size: Positive = Field(16, description="windows per device and forward pass")
    accumulation: Positive = Field(1, description="forward passes per optimiser step")
    learning_rate: float = Field(1e-4, gt=0)
    min_learning_rate: Fraction = Field(0.0, description="at the end of the cosine, as a fraction of learning_rate")
    warmup: int = Field(100, ge=0, description="steps of linear warm-up")
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0, description="of weight matrices; never of norms, biases and embeddings")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    shard: bool = Field(False, description="spread weights, gradients and optimiser over all processes (FSDP2)")
    log_every: Positive = 20
    validate_every: Positive = 500
    validation_windows: Positive = Field(512, description="windows per validation, spread evenly over the held-out episodes")
    save_every: Positive = 500
    trackers: list[Literal["tensorboard"]] = Field([], description="beside metrics.jsonl, which is always written")


Rate = Annotated[float, Field(gt=0)]
_RATE = Field(None, description="peak learning rate; training.learning_rate if null")


class FullTuningConfig(Settings):
    """Train every weight."""

    type: Literal["full"] = "full"
    learning_rate: Rate | None = _RATE


class FrozenTuningConfig(Settings):
    """Train nothing."""

    type: Literal["frozen"] = "frozen"


class LoraTuningConfig(Settings):
    """Low-rank updates of frozen linear layers, W + (alpha / rank) B A (arXiv 2106.09685)."""

    type: Literal["lora"] = "lora"
    rank: Positive = 32
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | list[str] = Field("attention", description="attention, all-linear, or regular expressions of layer names")
    learning_rate: Rate | None = _RATE

    @field_validator("targets")
    @classmethod
    def _targets_are_known(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            if value not in ("attention", "all-linear"):
                raise ValueError(f"{value!r} is neither 'attention' nor 'all-linear' nor a list of regular expressions")
            return value
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return value


class LastLayersTuningConfig(Settings):
    """Train the last decoder layers."""

    type: Literal["last_layers"] = "last_layers"
    layers: Positive = Field(4, description="how many")
    learning_rate: Rate | None = _RATE


class HeadTuningConfig(Settings):
    """The action head is new, so it is always trained."""

    learning_rate: Rate | None = _RATE


_Tower = Annotated[FullTuningConfig | FrozenTuningConfig | LoraTuningConfig, Field(discriminator="type")]
_Language = Annotated[
    FullTuningConfig | FrozenTuningConfig | LoraTuningConfig | LastLayersTuningConfig, Field(discriminator="type")
]


class TuningConfig(Settings):
    """What of the model is trained, tower by tower; what is new around a pretrained model (query tokens, head) always is."""

    vision: _Tower = FullTuningConfig()
    connector: _Tower = FullTuningConfig()
    language: _Language = FullTuningConfig()
    head: HeadTuningConfig = HeadTuningConfig()
    text_embedding: bool | None = Field(None, description="train the word embedding; null: if all of language is trained")
    resampler: bool | None = Field(None, description="train the vision resampler; null: as the connector, a new one always")
    gradient_checkpointing: bool = Field(False, description="compute activations again in the backward pass: less memory")
    quantization: Literal["4bit", "8bit"] | None = Field(None, description="of the frozen weights of a pretrained backbone")


class FirstActionConfig(Settings):
    """Run the model at every step and execute the first action of its chunk."""

    type: Literal["first"] = "first"


class RecedingHorizonConfig(Settings):
    """Execute ``steps`` actions of a chunk before taking the next one."""

    type: Literal["receding"] = "receding"
    steps: Positive = 4


class EnsembleConfig(Settings):
    """Average all predictions made for this moment, weighted exp(-decay * age in steps)."""

    type: Literal["ensemble"] = "ensemble"
    decay: float = Field(0.1, ge=0)


class SafetyConfig(Settings):
    """Limits between the policy and the robot; velocity and rate limits come from the action spec."""

    rate_limit: bool = Field(True, description="bound the change from one action to the next by the spec's rates")
    max_observation_age: float = Field(1.0, gt=0, description="seconds; an older observation stops the robot")
    max_action_age: float = Field(4.0, gt=0, description="seconds since it was predicted; an older action stops the robot")


ExecutionConfig = Annotated[FirstActionConfig | RecedingHorizonConfig | EnsembleConfig, Field(discriminator="type")]


class PolicyConfig(Settings):
    """How predicted chunks become actions."""

    execution: ExecutionConfig = FirstActionConfig()
    safety: SafetyConfig = SafetyConfig()


class Config(Settings):
    """All settings of a run."""

    seed: int = Field(0, ge=0, description="of initial weights, data order, augmentation and dropout")
    out: Path = Field(Path("runs/latest"), description="folder of the run")
    data: DataConfig = DataConfig()
    observation: ObservationConfig = ObservationConfig()
    actions: ActionsConfig = ActionsConfig()
    model: ModelConfig = ModelConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    training: TrainingConfig = TrainingConfig()
    tuning: TuningConfig = TuningConfig()
    policy: PolicyConfig = PolicyConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.model.structure.type == "one_step" and self.actions.window != 1:
            raise ValueError(f"structure one_step has no history: set actions.window=1 (it is {self.actions.window})")
        model = self.model
        if model.structure.type == "interleaved" and (model.structure.keep or 0) >= self.actions.window:
            raise ValueError(f"model.structure.keep must be less than actions.window {self.actions.window}")
        if model.head.type == "discrete" and model.structure.type == "policy_head":
            raise ValueError("the discrete head decodes in the backbone: use it with structure one_step or interleaved")
        if model.head.type == "discrete" and model.pooling is not None:
            raise ValueError("the discrete head continues the query tokens: model.pooling does not go with it")
        if model.pooling is not None and model.queries != 1:
            raise ValueError(f"with model.pooling there are no query tokens: leave model.queries at 1 (it is {model.queries})")
        if self.tuning.quantization is not None:
            towers = (self.tuning.vision, self.tuning.connector, self.tuning.language)
            if not any(tower.type in ("frozen", "lora") for tower in towers):
                raise ValueError("tuning.quantization needs a tower of type frozen or lora: quantised weights are not trained")
            if self.training.init_from is not None:
                raise ValueError("tuning.quantization takes published weights, not those of training.init_from")
            if self.model.backbone.type != "pretrained" or self.model.backbone.random_weights:
                raise ValueError("tuning.quantization needs a backbone with pretrained weights")
        if self.training.shard and (self.training.precision == "fp16" or self.tuning.quantization is not None):
            raise ValueError("training.shard goes with precision fp32 or bf16, and without tuning.quantization")
        augment, observation = self.data.augment, self.observation
        if augment.mirror > 0 and observation.state is not None and observation.mirrored_state is None:
            raise ValueError(
                "data.augment.mirror exchanges left and right: name in observation.mirrored_state which numbers of the state "
                "change sign with it ([] if none does), or set data.augment.mirror=0"
            )
        if augment.drop_camera > 0 and not observation.optional_cameras:
            raise ValueError("data.augment.drop_camera leaves out optional cameras: name them in observation.optional_cameras")
        execution = self.policy.execution
        if execution.type == "receding" and execution.steps > self.actions.chunk:
            raise ValueError(f"policy.execution.steps {execution.steps} is more than actions.chunk {self.actions.chunk}")
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply overrides.

    Args:
        recipe: path of a YAML file, or the name of a recipe in the package (``nav-tiny`` or ``recipes/nav-tiny.yaml``).
        overrides: ``key.path=value`` strings, the value in YAML; ``key.type=x`` starts that section anew when the type changes.

    Raises:
        ConfigError: no such recipe, no valid YAML, an unknown key (with the nearest right one), a wrong type (with its path).
    """
    text, where = _read_recipe(recipe)
    return parse_config(text, overrides, where)


def parse_config(text: str, overrides: Sequence[str] = (), where: str = "settings") -> Config:
    """As ``load_config``, from the text of a recipe; ``where`` names it in messages."""
    try:
        tree = yaml.load(text, Loader=_RecipeLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping of settings, found {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    try:
        return Config.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in _explain(error, tree))) from error


def recipe_names() -> list[str]:
    """The recipes in the package."""
    return sorted(item.name.removesuffix(".yaml") for item in _recipes().iterdir() if item.name.endswith(".yaml"))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for completion and checks in editors."""
    return Config.model_json_schema()


def _recipes() -> Any:
    return resources.files("anyvla") / "recipes"


def _read_recipe(recipe: str | Path) -> tuple[str, str]:
    path = Path(recipe)
    if path.is_file():
        return path.read_text(), str(path)
    name = path.name.removesuffix(".yaml")
    if path.parent.name in ("", "recipes") and name in recipe_names():
        return (_recipes() / f"{name}.yaml").read_text(), f"recipe {name}"
    raise ConfigError(f"no recipe {str(recipe)!r}: neither a file nor one of the package{did_you_mean(name, recipe_names())}")


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.2 in two points where PyYAML differs: 1e-4 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ConfigError(f"override {override!r} is not of the form key.path=value")
    try:
        value = yaml.load(text, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    section = tree
    for key in keys[:-1]:
        below = section.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"override {override!r}: {key!r} is no section of settings")
        section = below
    if keys[-1] == "type" and section.get("type", value) != value:
        section.clear()  # the other keys belong to the former type
    section[keys[-1]] = value


def _explain(error: ValidationError, tree: Any) -> list[str]:
    """One line per mistake: ``path: what is wrong``, with the path as the user wrote it."""
    lines = []
    for mistake in error.errors():
        path = []
        node = tree
        for part in mistake["loc"]:
            inside = (isinstance(node, dict) and part in node) or (
                isinstance(node, list) and isinstance(part, int) and part < len(node)
            )
            if inside:
                node = node[part]
            elif part != mistake["loc"][-1]:
                continue  # the tag of a union, which is in no file
            if inside or mistake["type"] == "missing":
                path.append(str(part))
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = f"unknown key{did_you_mean(str(mistake['loc'][-1]), _keys_at(mistake['loc'][:-1]))}"
        elif mistake["type"] == "union_tag_not_found":
            message = "a section with a choice needs its type"
        elif mistake["type"] == "union_tag_invalid":
            message = f"unknown type {mistake['ctx']['tag']!r}; known: {mistake['ctx']['expected_tags']}"
        elif mistake["type"] not in ("value_error", "missing"):
            message = f"{message[0].lower()}{message[1:]}, not {mistake['input']!r}"
        lines.append(": ".join(filter(None, [".".join(path), message])))
    return lines


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """The keys of the section at ``location``, which holds the tags of unions beside the keys."""
    here: list[Any] = [Config]
    for part in location:
        if get_origin(here[0]) is dict:
            here = _members(get_args(here[0])[1])
        elif len(here) == 1 and part in here[0].model_fields:
            here = _members(here[0].model_fields[str(part)].annotation)
        else:
            here = [section for section in here if section.model_fields["type"].default == part]
    return list(here[0].model_fields)


def _members(annotation: Any) -> list[Any]:
    """The sections, or mappings of sections, that an annotation allows."""
    if get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, Settings)):
        return [annotation]
    return [member for argument in get_args(annotation) for member in _members(argument)]
