"""What a recipe's model is and costs, without weights: parameters, tokens, arithmetic, memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from anyvla.actions.normalize import BOUNDED_KINDS
from anyvla.actions.spec import action_spec
from anyvla.batch import Batch, TextBatch
from anyvla.config import Config
from anyvla.config.model import PretrainedBackboneConfig
from anyvla.models.backbones.load import resolve_image_size
from anyvla.models.objectives.objectives import make_objectives
from anyvla.models.quantization import BYTES, quantized_layers
from anyvla.models.tuning import apply_tuning, count_parameters, freeze_unused
from anyvla.models.vla import VLA, build_vla
from anyvla.models.weightless import build_weightless, weightless

INSTRUCTION = "Pass the box on the left and stop in front of the green bottle."
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelDescription:
    """Of one process; FLOPs count a multiplication and an addition as two, memory is in bytes.

    Attributes:
        towers: vision, connector, language, head, objectives if any are on -> parameters, and those that are trained.
        tokens: visual, text, state, query -> how many the language model gets with one frame and ``instruction``.
        windows, frames: in one training step; ``frames`` of each window.
        training_flops: of one optimiser step. control_flops: of one control step, in the mean, with a full history.
        weights, gradients, moments, activations: what training holds at its largest. inference: what a control step holds.
    """

    towers: dict[str, tuple[int, int]]
    tokens: dict[str, int]
    cameras: int
    instruction: str
    windows: int
    frames: int
    precision: str
    training_flops: int
    control_flops: int
    weights: int
    gradients: int
    moments: int
    activations: int
    inference: int

    @property
    def training(self) -> int:
        """Bytes of memory expected in training."""
        return self.weights + self.gradients + self.moments + self.activations

    def lines(self) -> list[str]:
        """For people."""
        total, trained = (sum(numbers) for numbers in zip(*self.towers.values(), strict=True))
        rows = [*self.towers.items(), ("all", (total, trained))]
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.tokens.items() if count)
        memory = {name: _bytes(getattr(self, name)) for name in ("weights", "gradients", "moments", "activations")}
        return [
            "parameters: total, trained",
            *(f"  {name:<10} {total / 1e6:>9.2f} M {trained / 1e6:>9.2f} M" for name, (total, trained) in rows),
            f"tokens of one frame: {sum(self.tokens.values())} ({kinds}) with {self.cameras} camera{'s' * (self.cameras > 1)} "
            f"and the instruction {self.instruction!r}",
            f"training step: {_flops(self.training_flops)} ({self.windows} windows of {self.frames} frames); "
            f"control step: {_flops(self.control_flops)}",
            f"memory in training: {_bytes(self.training)} (weights {memory['weights']}, gradients {memory['gradients']}, "
            f"AdamW {memory['moments']}, activations {memory['activations']} in {self.precision}); "
            f"in a control step: {_bytes(self.inference)}",
        ]


def describe_model(config: Config, cameras: int | None = None) -> ModelDescription:
    """Build the model of ``config`` without weights, run a training step and control steps of it, and count.

    Args:
        cameras: how many, where ``observation.cameras`` does not say; 1 if None.

    Raises:
        CheckpointError: the pretrained model's files are not at hand. ConfigError: the settings do not fit the model.
    """
    config = resolve_image_size(config)
    count = len(config.observation.cameras) if config.observation.cameras else cameras or 1
    precision = config.training.precision
    vla = _build(config, count)
    control_flops, control_peak = _control_step(config, vla, count)
    vla.to(_DTYPES[precision])
    flops, peak = _training_step(config, vla, 1, count)
    _, peak_of_two = _training_step(config, vla, 2, count)
    towers = count_parameters(vla)
    parameters = sum(p.numel() for p in vla.parameters())
    layers = quantized_layers(vla.backbone, config.tuning)
    quantized = sum(vla.backbone.model.get_submodule(name).weight.numel() for name in layers)
    trained = sum(p.numel() for p in vla.parameters() if p.requires_grad)
    weights = 4 * (parameters - quantized) + round(BYTES.get(config.tuning.quantization or "", 0) * quantized)
    if precision != "fp32":
        weights += 2 * (parameters - quantized)  # autocast computes with copies

    of_training_alone = sum(p.numel() for p in vla.objectives.parameters()) if vla.objectives is not None else 0
    batch = config.training.batch_size
    return ModelDescription(
        towers=towers,
        tokens=_tokens(config, vla, count),
        cameras=count,
        instruction=INSTRUCTION,
        windows=batch * config.training.accumulation,
        frames=config.actions.window,
        precision=precision,
        training_flops=flops * batch * config.training.accumulation,
        control_flops=control_flops,
        weights=weights,
        gradients=4 * trained,
        moments=8 * trained,
        activations=peak + (batch - 1) * (peak_of_two - peak),
        inference=4 * (parameters - of_training_alone) + control_peak,
    )


def _build(config: Config, cameras: int) -> VLA:
    """The model without weights, with its tuning and its objectives."""
    backbone = config.model.backbone
    if isinstance(backbone, PretrainedBackboneConfig):
        backbone = backbone.model_copy(update={"random_weights": True})
    image_size = config.observation.image_size
    assert image_size is not None  # resolved

    def build() -> VLA:
        vla = build_vla(
            config.model.model_copy(update={"backbone": backbone}),
            action_spec(config.actions.spec),
            window=config.actions.window,
            chunk=config.actions.chunk,
            image_size=image_size,
            bounded=config.actions.normalization in BOUNDED_KINDS,
            state_size=len(config.observation.state or ()),
        )
        apply_tuning(vla, config.tuning)
        vla.objectives = make_objectives(config.objectives, vla.backbone, _camera_names(config, cameras), image_size)
        return vla

    return build_weightless(build)


def _training_step(config: Config, vla: VLA, windows: int, cameras: int) -> tuple[int, int]:
    """FLOPs, and bytes of activations at the peak, of a forward and a backward pass; freezes what they have no use for."""
    hooks = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in vla.parameters() if p.requires_grad]
    vla.train()
    with weightless() as cost:
        loss = vla(_batch(config, vla, windows, cameras))["loss"]
        freeze_unused(vla, [loss])
        loss.backward()
    for hook in hooks:
        hook.remove()
    return cost.flops, cost.peak


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None  # gradients are counted by themselves


@torch.no_grad()
def _control_step(config: Config, vla: VLA, cameras: int) -> tuple[int, int]:
    """FLOPs, in the mean over the steps behind a full history, and bytes beside the weights at the peak."""
    vla.eval()
    batch = _batch(config, vla, 1, cameras)
    images = {camera: frames[:, 0] for camera, frames in batch.images.items()}
    state = None if batch.state is None else batch.state[:, 0]
    # where history is in the backbone, a full window begins again at times, which costs more than going on
    before, measured = (vla.window, vla.window - vla.keep) if vla.interleaved else (0, 1)
    states = [vla.init_state()]
    with weightless() as cost:
        if not vla.interleaved:
            features = torch.zeros(1, vla.backbone.readouts, vla.backbone.width, device="meta")
            head: Any = vla.head
            for _ in range(vla.history - 1):
                _, states = head.step(features, states)
        for step in range(before + measured):
            if step == before:
                spent = cost.flops
            _, states = vla.step(images, batch.prompts, states, state)
        return (cost.flops - spent) // measured, cost.peak


def _camera_names(config: Config, count: int) -> list[str]:
    """Names for ``count`` cameras, those that the recipe names among them."""
    future = config.objectives.future
    known = config.observation.cameras or (future and future.cameras) or []
    return [*known, *map(str, range(count))][: max(count, len(known))]


def _batch(config: Config, vla: VLA, windows: int, cameras: int) -> Batch:
    frames, chunk, actions = config.actions.window, config.actions.chunk, len(action_spec(config.actions.spec))
    size = vla.backbone.state_size
    names, image = _camera_names(config, cameras), (3, *vla.backbone.image_size)
    future, talk = config.objectives.future, config.objectives.conversations
    batch = Batch(
        images={name: torch.zeros(windows, frames, *image, dtype=torch.uint8) for name in names},
        prompts=[config.observation.prompt.replace("{instruction}", INSTRUCTION)] * windows,
        actions=torch.zeros(windows, frames, chunk, actions),
        action_mask=torch.ones(windows, frames, chunk, dtype=torch.bool),
        names=[""] * windows,
        state=torch.zeros(windows, frames, size) if size else None,
        captions=[INSTRUCTION] * windows,
    )
    if future is not None:
        ahead = {name: torch.zeros(windows, future.next, *image, dtype=torch.uint8) for name in future.cameras or names}
        batch = replace(batch, future=ahead, future_mask=torch.ones(windows, future.next, dtype=torch.bool))
    if talk is not None:
        # as many conversations a window as in training, at least one, each as long as the instruction
        count = max(1, round(windows * talk.batch_size / config.training.batch_size))
        texts = [INSTRUCTION] * count
        pixels, present = torch.zeros(count, *image, dtype=torch.uint8), torch.ones(count, dtype=torch.bool)
        batch = replace(batch, text=TextBatch(pixels, present, texts, texts, texts))
    return batch


def _tokens(config: Config, vla: VLA, cameras: int) -> dict[str, int]:
    sequence = vla.backbone.sequence([_batch(config, vla, 1, cameras).prompts[0]], [[cameras]])
    visual, state, queries = int((sequence.image >= 0).sum()), sequence.state.numel(), sequence.queries.numel()
    text = int(sequence.mask.sum()) - visual - state - queries
    return {"visual": visual, "text": text, "state": state, "query": queries}


def _flops(count: int) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}FLOP"
    return f"{count / 1e6:.3g} MFLOP"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
