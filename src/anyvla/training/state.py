"""What a run needs to go on exactly where it was: optimiser, loss scaler, random generators, position. Without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from anyvla.errors import CheckpointError
from anyvla.training.shard import spread_like


def save_optimizer(folder: Path, state: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write the tensors of the optimiser's ``state``; ``progress`` (JSON: step, best loss, scaler) beside its numbers."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{i}.{name}": value.contiguous() for i, entry in state["state"].items() for name, value in entry.items()}
    save_file(tensors, str(folder / "optimizer.safetensors"))
    (folder / "state.json").write_text(json.dumps({"param_groups": state["param_groups"], **progress}))


def saved_progress(checkpoint: Path) -> dict[str, Any]:
    """The ``progress`` that was saved with ``checkpoint``, and the optimiser's ``param_groups``."""
    path = checkpoint / "training_state" / "state.json"
    if not path.exists():
        raise CheckpointError(f"{checkpoint}: saved without training_state; a run cannot go on from it")
    try:
        progress: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return progress


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore ``optimizer``; returns ``progress`` as it was saved."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = checkpoint / "training_state"
    progress = saved_progress(checkpoint)
    groups = progress.pop("param_groups")
    state: dict[int, dict[str, torch.Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        for key, tensor in load_file(str(folder / "optimizer.safetensors")).items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = spread_like(tensor, parameters[int(index)])
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (OSError, SafetensorError, ValueError, IndexError) as error:
        raise CheckpointError(f"{folder}: the optimiser state does not fit the model ({error})") from error
    return progress


def save_rng(folder: Path, rank: int) -> None:
    """Write the random generators of this process."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, str(folder / f"rng-{rank}.safetensors"))


def load_rng(folder: Path, rank: int) -> None:
    """Restore them."""
    from safetensors.torch import load_file

    states = load_file(str(folder / f"rng-{rank}.safetensors"))
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
