from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from anyvla.errors import CheckpointError
from anyvla.models.backbones.published import load_strictly, read_tensors, renamed, split_rows


def test_shards_of_a_folder_are_one_model(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.safetensors")
    torch.save({"c": torch.ones(1)}, tmp_path / "pytorch_model.bin")  # the same weights again, in most folders
    assert {name: len(tensor) for name, tensor in read_tensors(tmp_path).items()} == {"a": 2, "b": 3}


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict"])
def test_a_torch_file_of_a_training_run(tmp_path: Path, wrapper: str) -> None:
    torch.save({"epoch": 3, wrapper: {"a": torch.ones(2)}}, tmp_path / "checkpoint.pt")
    assert read_tensors(tmp_path / "checkpoint.pt")["a"].tolist() == [1, 1]


def test_what_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        read_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="no readable weights"):
        read_tensors(tmp_path / "absent.safetensors")
    torch.save({"a": Path("/")}, tmp_path / "code.pt")  # an object: would need pickle to be trusted
    with pytest.raises(CheckpointError, match="no readable weights"):
        read_tensors(tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="something else than named tensors"):
        read_tensors(tmp_path / "list.pt")
    (tmp_path / "damaged.safetensors").write_bytes(b"12345678")
    with pytest.raises(CheckpointError, match="no readable weights"):
        read_tensors(tmp_path / "damaged.safetensors")


def test_renaming() -> None:
    rules: list[tuple[str, str | None]] = [(r"^old\.", "new."), (r"\.buffer$", None)]
    assert renamed("old.weight", rules) == "new.weight"
    assert renamed("old.buffer", rules) is None
    assert renamed("other", rules) == "other"
    state = {"layer.qkv.weight": torch.arange(6).view(6, 1)}
    split_rows(state, "qkv", ("q", "k", "v"))
    assert {name: tensor.flatten().tolist() for name, tensor in state.items()} == {
        "layer.q.weight": [0, 1],
        "layer.k.weight": [2, 3],
        "layer.v.weight": [4, 5],
    }


def test_every_misfit_is_named() -> None:
    with pytest.raises(CheckpointError) as error:
        load_strictly(nn.Linear(2, 3), {"weight": torch.zeros(3, 3), "bias_": torch.zeros(3)}, "file.pt")
    for part in ("file.pt", "missing: bias", "unknown: bias_; did you mean 'bias'", "weight: shape (3, 3)", "(3, 2)"):
        assert part in str(error.value)


def test_a_misfit_changes_nothing() -> None:
    layer = nn.Linear(2, 3)
    before = layer.weight.clone()
    with pytest.raises(CheckpointError):
        load_strictly(layer, {"weight": torch.zeros(3, 2)}, "file.pt")
    assert torch.equal(layer.weight, before)
