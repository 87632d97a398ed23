"""Settings of the model: backbone x structure x head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from anyvla.config.settings import Fraction, Positive, Settings, check_heads


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
        check_heads(self.hidden, self.attention_heads)
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
        check_heads(self.hidden, self.attention_heads)
        return self


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
