"""The whole tree of settings, what must fit together in it, and how a policy acts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from anyvla.config.data import ActionsConfig, DataConfig, ObservationConfig
from anyvla.config.model import ModelConfig
from anyvla.config.objectives import ObjectivesConfig
from anyvla.config.settings import Positive, Settings
from anyvla.config.training import TrainingConfig, TuningConfig


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
