"""Published checkpoints of models that are defined here: read without pickle, renamed, loaded strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from anyvla.errors import CheckpointError, did_you_mean

Tensors = Mapping[str, torch.Tensor]
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def read_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors or torch file, or of the files of a folder (several are shards of one model)."""
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    for suffix in SUFFIXES:  # a folder may hold the same weights in two formats
        files = sorted(file for file in path.glob(f"*{suffix}") if file.name != "training_args.bin")
        if files:
            return {name: tensor for file in files for name, tensor in _read_file(file).items()}
    raise CheckpointError(f"{path}: no weights; expected a file that ends in {', '.join(SUFFIXES)}")


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # its message advises to execute the file
        problem = "it is damaged, or a pickle of more than tensors, which is never executed"
        raise CheckpointError(f"{path}: no readable weights: {problem}") from error
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path}: no readable weights ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from error
    for wrapper in ("state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path}: holds something else than named tensors")
    return {str(name): tensor for name, tensor in state.items()}


def tensors_of(source: Path | str | Tensors) -> dict[str, torch.Tensor]:
    return read_tensors(source) if isinstance(source, (str, Path)) else dict(source)


def renamed(name: str, rules: Sequence[tuple[str, str | None]]) -> str | None:
    """``name`` after every rule (pattern, replacement) in turn; None where a rule says that the tensor isn't needed.

    Names that no rule knows stay as they are, so that the strict load reports them.
    """
    for pattern, replacement in rules:
        if replacement is None:
            if re.search(pattern, name):
                return None
        else:
            name = re.sub(pattern, replacement, name)
    return name


def split_rows(state: dict[str, torch.Tensor], fused: str, parts: Sequence[str]) -> None:
    """Replace every ``...fused.weight`` / ``.bias`` by equal parts of its rows, e.g. qkv by q_proj, k_proj, v_proj."""
    for name in [name for name in state if f".{fused}." in name]:
        for part, rows in zip(parts, state.pop(name).chunk(len(parts)), strict=True):
            state[name.replace(f".{fused}.", f".{part}.")] = rows


def check_fit(model: nn.Module, state: Tensors, where: str) -> None:
    """Whether ``state`` is what ``model``, which may be on the meta device, consists of.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of another shape; it names them.
    """
    own = model.state_dict()
    tied = tied_names(model)
    needed = {name for name in own if name not in tied}
    problems = []
    if missing := sorted(needed - set(state)):
        problems.append(f"missing: {_few(missing)}")
    if unknown := sorted(set(state) - set(own)):
        near = did_you_mean(unknown[0], missing)
        problems.append(f"unknown: {_few(unknown)}{near if 'did you mean' in near else ''}")
    for name in sorted(set(own) & set(state)):
        if own[name].shape != state[name].shape:
            problems.append(f"{name}: shape {tuple(state[name].shape)}, the configuration says {tuple(own[name].shape)}")
    for name, source in tied.items():
        if name in state and source in state and not torch.equal(state[name], state[source]):
            problems.append(f"{name} differs from {source}, but the configuration ties them (tie_word_embeddings)")
    if problems:
        raise CheckpointError(f"{where}: the weights do not fit the model; " + "; ".join(problems[:6]))


def tied_names(model: nn.Module) -> dict[str, str]:
    """Tensors that are others under a second name, and which."""
    return dict(getattr(model, "all_tied_weights_keys", {}))


def load_strictly(model: nn.Module, state: Tensors, where: str) -> None:
    """Copy ``state`` into ``model``; raises as ``check_fit`` does, before anything is changed."""
    check_fit(model, state, where)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
