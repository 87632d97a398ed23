"""A checkpoint as two graphs, by ``torch.export``: the backbone's step and the head. Both files of one folder:

    deploy.json          what the graphs take, how the policy is executed, how a prompt is laid out
    transforms.json      as in a checkpoint
    tokenizer.json       of the ``tokenizers`` package
    backbone.onnx | .pt2 images (1, C, 3, h, w) uint8, tokens (1, T) int64 [, state (1, S)] -> features (1, Q, D)
    head.onnx | .pt2     window (1, H, Q, D) of features, zeros behind the last step, and its index (1,) -> actions (1, L, A)
    example.json         an input and the output that belongs to it

The graphs hold no state: an episode's history is the window of its features, which ``runtime`` keeps. That is the whole run
time of ``one_step`` and ``policy_head``; what keeps a key-value cache or decodes tokens is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

import anyvla
from anyvla.checkpoint import Checkpoint, Which, load_checkpoint, make_example
from anyvla.deploy.runtime import DeployedPolicy, Graph, onnx_graph
from anyvla.deploy.tokens import PromptLayout, prompt_tokens
from anyvla.errors import CheckpointError, ConfigError, MissingExtraError
from anyvla.models.backbones.adapter import Backbone
from anyvla.models.backbones.sequence import TokenSequence
from anyvla.models.heads.base import Head
from anyvla.models.tuning import merge_lora
from anyvla.models.vla import ContinuousVLA

GraphFormat = Literal["torch", "onnx"]
TOLERANCE = 1e-3  # of normalised actions
_SAMPLES = ("Stop.", "Pass the box on the left, and then stop in front of the green bottle!", "왼쪽으로 지나가서 멈춰.")


class BackboneStep(nn.Module):
    """One observation of one robot; the sequence is laid out from the tokens alone."""

    image: torch.Tensor

    def __init__(self, backbone: Backbone, layout: PromptLayout) -> None:
        super().__init__()
        self.backbone = backbone
        self.ending = layout.ending
        each = backbone.family.tokens_per_image
        image = torch.full((1, layout.image_places[-1] + 1), -1)
        image[0, list(layout.image_places)] = torch.arange(len(layout.image_places)) // each
        self.register_buffer("image", image, persistent=False)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor, state: torch.Tensor | None = None) -> torch.Tensor:
        """images (1, C, 3, h, w) uint8, tokens (1, T) int64 with slots, state (1, S) -> (1, Q, D)."""
        backbone = self.backbone
        length, cameras = tokens.shape[1], images.shape[1]
        queries = 0 if backbone.queries is None else len(backbone.queries)
        states = 0 if backbone.state_encoder is None else 1
        slots = length - self.ending - queries - states + torch.arange(states + queries)[None, None]
        none = torch.zeros(1, 0, dtype=torch.int64)
        sequence = TokenSequence(
            ids=tokens,
            mask=torch.ones_like(tokens),
            frame=torch.zeros_like(tokens),
            image=torch.cat([self.image, tokens.new_full((1, length - self.image.shape[1]), -1)], dim=1),
            later=torch.zeros_like(tokens, dtype=torch.bool),
            images=[cameras],
            frame_of_image=torch.zeros(1, cameras, dtype=torch.int64),
            state=slots[..., :states],
            queries=slots[..., states:],
            suffix=none,
            tail=none,
        )
        inputs = backbone.family.inputs(sequence, backbone.pixels(images[0]))
        hidden = backbone.run(sequence, inputs, None if state is None else state[:, None])
        return backbone.readout(hidden, sequence)[:, 0]


class HeadStep(nn.Module):
    """The chunk at one step of a window."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, window: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """window (1, H, Q, D), step (1,) int64 -> normalised actions (1, L, A), binary dimensions 0 or 1."""
        return self.head.sample_at(window, step)


def export_policy(path: Path, out: Path, form: GraphFormat, which: Which = "last") -> tuple[Path, float]:
    """Write the ``which`` checkpoint of ``path`` as graphs into the new folder ``out``.

    Returns:
        ``out``, and the largest difference of a normalised action between the graphs and the model.

    Raises:
        ConfigError: the structure, the head or the vision-language model cannot be exported; it says what stands in the way.
        CheckpointError: ``path`` is no checkpoint, ``out`` exists, or the graphs compute something else than the model.
        MissingExtraError: ONNX is not installed.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists already; export writes a new folder")
    if form == "onnx":
        _need_onnx()
    loaded = load_checkpoint(path, which)
    model = merge_lora(loaded.model).float().eval().requires_grad_(False)
    if loaded.transforms.mixture:
        names = ", ".join(loaded.transforms.mixture)
        raise ConfigError(f"{path} was trained on several sources ({names}); graphs are exported of policies of one")
    if not isinstance(model, ContinuousVLA) or model.interleaved:
        kind = f"structure {loaded.config.model.structure.type} with head {loaded.config.model.head.type}"
        raise ConfigError(
            f"{kind} keeps a key-value cache at run time or decodes tokens, which these graphs cannot: export one_step or "
            "policy_head with a continuous head, or write a checkpoint (--format checkpoint)"
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        difference = _write(partial, loaded, model, form)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out, difference


def _write(folder: Path, loaded: Checkpoint, model: ContinuousVLA, form: GraphFormat) -> float:
    backbone, transforms = model.backbone, loaded.transforms
    cameras = len(transforms.cameras)
    layout = prompt_layout(backbone, cameras)
    images = torch.zeros(1, cameras, 3, *transforms.image_size, dtype=torch.uint8)
    tokens = backbone.sequence(["Pass the box on the left."], [[cameras]]).ids
    inputs: dict[str, torch.Tensor] = {"images": images, "tokens": tokens}
    if backbone.state_size:
        inputs["state"] = torch.zeros(1, backbone.state_size)
    window = torch.zeros(1, model.head.history, backbone.readouts, backbone.width)
    write = _write_torch if form == "torch" else _write_onnx
    suffix = "pt2" if form == "torch" else "onnx"
    kind = backbone.model.config.model_type
    step = write(folder / f"backbone.{suffix}", BackboneStep(backbone, layout), inputs, {"tokens": {1: "T"}}, "features", kind)
    head_inputs = {"window": window, "step": torch.zeros(1, dtype=torch.int64)}
    head = write(folder / f"head.{suffix}", HeadStep(model.head), head_inputs, {}, "actions", loaded.config.model.head.type)
    tokenizer = folder / "tokenizer.json"
    backbone.tokenizer.backend_tokenizer.save(str(tokenizer))
    settings = {
        "anyvla": anyvla.__version__,
        "format": form,
        "window": list(window.shape[1:]),
        "policy": loaded.config.policy.model_dump(mode="json"),
        "prompt": layout.to_dict(),
        "tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
    }
    (folder / "deploy.json").write_text(json.dumps(settings, indent=1))
    (folder / "transforms.json").write_text(transforms.to_json())
    (folder / "example.json").write_text(json.dumps(make_example(model, transforms)))
    difference = DeployedPolicy.around(folder, settings, step, head).check_example()
    if not difference <= TOLERANCE:
        raise CheckpointError(f"the exported graphs differ from the model by {difference:.3g}, more than {TOLERANCE:g}")
    return difference


def prompt_layout(backbone: Backbone, cameras: int) -> PromptLayout:
    """How ``backbone`` writes a prompt with ``cameras`` images; found by trying, proved on sentences.

    Raises:
        ConfigError: in none of the ways that ``PromptLayout`` can say.
    """
    family, tokenizer = backbone.family, backbone.tokenizer
    expected = [family.prompt_ids(text, cameras) for text in _SAMPLES]
    flags = [family.placeholders(ids) for ids in expected]
    places = [[i for i, flag in enumerate(row) if flag] for row in flags]
    alone = all(row == [token == family.placeholder_id for token in ids] for row, ids in zip(flags, expected, strict=True))
    if places.count(places[0]) == len(places) and places[0] and hasattr(tokenizer, "backend_tokenizer"):
        written = family.template
        if "{images}" in written:  # otherwise the family puts the images' tokens in front of the text
            written = written.replace("{images}", family.images_text(cameras))
        for special in (family.special_tokens, False):
            layout = PromptLayout(
                front=(),
                text=written,
                special_tokens=special,
                image_places=tuple(places[0]),
                image_token=family.placeholder_id if alone else None,
                slots=(0 if backbone.queries is None else len(backbone.queries)) + (backbone.state_encoder is not None),
                ending=family.ending,
            )
            words = prompt_tokens(tokenizer.backend_tokenizer, layout, _SAMPLES[0])
            layout = replace(layout, front=tuple(expected[0][: len(expected[0]) - len(words)]))
            if expected == [prompt_tokens(tokenizer.backend_tokenizer, layout, text) for text in _SAMPLES]:
                return layout
    raise ConfigError(f"{family.config.model_type}: its prompt cannot be written without its own code, so it is not exported")


Inputs = dict[str, torch.Tensor]
Dynamic = dict[str, dict[int, str]]


def _program(module: nn.Module, inputs: Inputs, dynamic: Dynamic, what: str) -> torch.export.ExportedProgram:
    """``torch.export``'s program. Raises ConfigError where it cannot follow the model's code."""
    shapes = {name: dict.fromkeys(dynamic[name], torch.export.Dim.DYNAMIC) if name in dynamic else None for name in inputs}
    try:
        with torch.no_grad(), _quiet("torch"):  # of code that it cannot follow it logs hundreds of lines
            return torch.export.export(module.eval(), (), dict(inputs), dynamic_shapes=shapes, strict=False)
    except _EXPORT_ERRORS as error:
        raise _refused(what, "torch.export", error) from error


# what torch.export and the ONNX exporter raise for code that they cannot follow, each a family of its own
_EXPORT_ERRORS: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError)


def _refused(what: str, by: str, error: Exception) -> ConfigError:
    said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:200]  # without the colours of a terminal
    return ConfigError(f"{what} cannot be exported: {by} says {type(error).__name__}: {said}")


def _write_torch(path: Path, module: nn.Module, inputs: Inputs, dynamic: Dynamic, output: str, what: str) -> Graph:
    program = _program(module, inputs, dynamic, what)
    torch.export.save(program, path)
    exported = program.module()

    # not read from the file: PyTorch's loader of these archives may unpickle
    def run(values: dict[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            result: torch.Tensor = exported(**{name: torch.from_numpy(value) for name, value in values.items()})
        return result.numpy()

    return run


def _write_onnx(path: Path, module: nn.Module, inputs: Inputs, dynamic: Dynamic, output: str, what: str) -> Graph:
    program = _program(module, inputs, dynamic, what)
    try:
        with _quiet("torch"), _quiet("onnxscript"):  # they warn of packages that are not asked for
            graph = torch.onnx.export(
                program,
                kwargs=dict(inputs),
                input_names=list(inputs),
                output_names=[output],
                dynamo=True,
                verbose=False,
                custom_translation_table=_translations(),
            )
        assert graph is not None
        graph.save(str(path), external_data=_bytes(module) > _ONE_FILE)
    except _EXPORT_ERRORS as error:
        raise _refused(what, "ONNX", error) from error
    return onnx_graph(path)


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """While the block runs, nothing of ``library`` is logged."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


_ONE_FILE = 1 << 30  # an ONNX file is a protobuf message, of 2 GiB at most; more weights lie beside it


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators that the exporter does not know: the models' checks of their own inputs."""
    from onnxscript import opset18 as op

    def is_all_true(values: Any) -> Any:
        return op.Equal(op.ReduceMin(op.Cast(values, to=7), keepdims=0), op.Constant(value_int=1))

    return {torch.ops.aten._is_all_true.default: is_all_true}


def _need_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(package, "onnx") from error
