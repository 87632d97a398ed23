"""Verbs of models: take over what others trained, look at a recipe or a run, write it to run with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anyvla.cli.options import Checkpoint, Overrides
from anyvla.errors import AnyVLAError


def import_robovlms_command(
    config: Annotated[Path, typer.Argument(help="configuration of RoboVLMs, in JSON")],
    checkpoint: Annotated[Path | None, typer.Argument(help="its checkpoint, in one file; only the recipe if not given")] = None,
    out: Annotated[Path, typer.Option(help="folder of the recipe, and of the run")] = Path("runs/imported"),
    vlm: Annotated[str | None, typer.Option(help="folder or hub name of the vision-language model")] = None,
    layout: Annotated[
        Literal["native", "robovlms"] | None, typer.Option(help="of the tokens; robovlms with a checkpoint, native without")
    ] = None,
    steps_per_epoch: Annotated[int | None, typer.Option(min=1, help="optimiser steps in an epoch")] = None,
    statistics: Annotated[Path | None, typer.Option(help="action quantiles of the Open X data that it was trained on")] = None,
    fps: Annotated[float | None, typer.Option(help="control steps per second of its data, where they are not known")] = None,
) -> None:
    """Take over a configuration of RoboVLMs as a recipe, and its checkpoint as a run."""
    from anyvla.importing.robovlms import describe, import_robovlms

    done = import_robovlms(
        config, checkpoint, out, vlm=vlm, layout=layout, steps_per_epoch=steps_per_epoch, statistics=statistics, fps=fps
    )
    print(describe(done.config))
    for name, why in done.unused:
        print(f"tensor not needed: {name}: {why}")
    print(f"recipe: {done.recipe}")
    if done.checkpoint is not None:
        print(f"checkpoint: {done.checkpoint}")


def import_backbone_command(
    family: Annotated[Literal["uform", "moondream", "openflamingo"], typer.Argument()],
    checkpoint: Annotated[str, typer.Argument(help="published file, folder, or hub name; NAME@REVISION for a revision")],
    out: Annotated[Path, typer.Option(help="folder to write, for model.backbone.path")],
    language: Annotated[str | None, typer.Option(help="OpenFlamingo's language model: folder or hub name")] = None,
    vision: Annotated[str | None, typer.Option(help="OpenFlamingo's CLIP ViT-L/14: file, folder or hub name")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="folder or hub name, where it is not beside the weights")] = None,
) -> None:
    """Convert a published UForm-Gen, Moondream or OpenFlamingo, once, to a folder that recipes can name."""
    from anyvla.importing.backbones import import_backbone

    done = import_backbone(family, checkpoint, out, language=language, vision=vision, tokenizer=tokenizer)
    print(f"backbone: {done}")


def export(
    run: Annotated[Path, typer.Argument(help="a run or checkpoint folder")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    checkpoint: Checkpoint = "last",
    form: Annotated[
        Literal["checkpoint", "torch", "onnx"],
        typer.Option("--format", help="checkpoint: as a run saves it; torch, onnx: graphs that run without the model's code"),
    ] = "checkpoint",
) -> None:
    """Write a policy to run with: LoRA merged into the weights, without what only training needs."""
    if form == "checkpoint":
        from anyvla.checkpoint import export_checkpoint

        print(f"checkpoint: {export_checkpoint(run, out, checkpoint)}")
        return
    from anyvla.deploy.export import export_policy

    folder, difference = export_policy(run, out, form, checkpoint)
    print(f"exported: {folder} (actions equal to {difference:.2g})")


def inspect_recipe(
    recipe: Annotated[str, typer.Argument()],
    overrides: Overrides = None,
    settings: Annotated[bool, typer.Option("--settings", help="the settings alone")] = False,
) -> None:
    """The resolved settings of a recipe, and as comments what its model is and costs, counted without weights."""
    from anyvla.config import load_config

    config = load_config(recipe, overrides or ())
    print(config.to_yaml(), end="", flush=True)
    if settings:
        return
    from anyvla.models.inspect import describe_model

    try:
        lines = describe_model(config).lines()
    except AnyVLAError as error:
        lines = f"the model cannot be described here: {error}".splitlines()
    print("", *(f"# {line}" for line in lines), sep="\n")


def inspect_run(path: Annotated[Path, typer.Argument()], checkpoint: Checkpoint = "last") -> None:
    """What a run or checkpoint is: its inputs and outputs, its last measurements, and whether it computes what it should."""
    from anyvla.checkpoint import check_example, load_checkpoint
    from anyvla.policies.policy import Policy
    from anyvla.training.tracking import read_metrics

    loaded = load_checkpoint(path, checkpoint)
    spec = Policy(loaded.model, loaded.transforms, loaded.config.policy).spec()
    print(f"checkpoint: {loaded.folder}")
    print(f"model: {sum(p.numel() for p in loaded.model.parameters()) / 1e6:.2f} M parameters")
    print(json.dumps(spec.to_dict(), indent=1, ensure_ascii=False))
    metrics = path / "metrics.jsonl"
    if metrics.exists():
        latest: dict[str, Any] = {}
        for line in read_metrics(metrics):
            latest |= line
        print("last measured:", json.dumps(latest))
    print(f"saved example reproduced to {check_example(loaded):.2g}")


def inspect_schema() -> None:
    """The JSON schema of recipes, for completion in editors."""
    from anyvla.config import json_schema

    print(json.dumps(json_schema(), indent=1))
