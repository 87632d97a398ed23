from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anyvla.checkpoint import build_model, save_model
from anyvla.config.tree import EnsembleConfig
from anyvla.data.bicubic import bicubic
from anyvla.data.images import resize_frames
from anyvla.data.state import fit_state
from anyvla.deploy.export import TOLERANCE, export_policy
from anyvla.deploy.runtime import DeployedPolicy
from anyvla.errors import CheckpointError, ConfigError, DataError
from anyvla.policies.policy import Policy
from tests.contracts import families
from tests.contracts.case import Case

INSTRUCTIONS = ("Stop.", "Pass the box on the left, and then stop in front of the green bottle! 왼쪽으로.")


def _checkpoint(folder: Path, case: Case) -> Path:
    """A checkpoint with two cameras and a state."""
    edges = {"q01": np.array([-1.0, 0.0]), "q99": np.array([1.0, 4.0]), "min": np.array([-1.0, 0.0])}
    state = fit_state(("speed", "yaw"), {**edges, "max": np.array([1.0, 4.0])})
    transforms = replace(case.transforms, cameras=("front", "rear"), state=state)
    save_model(folder, case.config, transforms, build_model(case.config, transforms))
    return folder


def _drive(policy: Policy | DeployedPolicy, instruction: str, steps: int = 6) -> np.ndarray:
    """(steps, A) actions, from images of another size than the policy's."""
    rng = np.random.default_rng(len(instruction))
    policy.reset(instruction)
    actions = []
    for _ in range(steps):
        images = {camera: rng.integers(0, 256, (50, 60, 3), dtype=np.uint8) for camera in policy.transforms.cameras}
        state = None if policy.transforms.state is None else rng.uniform(0, 1, 2)
        actions.append(policy.act(images, state=state))
    return np.stack(actions)


def _check(checkpoint: Path, exported: Path, **options) -> None:
    eager, graphs = Policy.load(checkpoint, device="cpu", **options), DeployedPolicy.load(exported, threads=1, **options)
    assert graphs.spec() == eager.spec()
    for instruction in INSTRUCTIONS:
        np.testing.assert_allclose(_drive(graphs, instruction), _drive(eager, instruction), atol=1e-3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("lstm") / "checkpoint", Case("tiny", "policy_head", "lstm", "arm7"))


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    out, difference = export_policy(checkpoint, checkpoint.parent / "onnx", "onnx")
    assert difference <= TOLERANCE
    return out


def test_onnx_drives_as_the_model_does(checkpoint: Path, exported: Path) -> None:
    """Two cameras, a state, history beyond the window, instructions of different lengths."""
    _check(checkpoint, exported)
    _check(checkpoint, exported, execution=EnsembleConfig(decay=0.2))


def test_several_robots_share_one_export(exported: Path) -> None:
    policy = DeployedPolicy.load(exported, threads=1)
    alone = [_drive(policy, instruction, 1)[0] for instruction in INSTRUCTIONS]
    sessions = [policy.start(instruction) for instruction in INSTRUCTIONS]
    images, states = [], []
    for instruction in INSTRUCTIONS:
        rng = np.random.default_rng(len(instruction))
        images.append({camera: rng.integers(0, 256, (50, 60, 3), dtype=np.uint8) for camera in ("front", "rear")})
        states.append(rng.uniform(0, 1, 2))
    np.testing.assert_allclose(policy.act_batch(sessions, images, states=states), alone, atol=1e-6)


def test_it_runs_without_torch_and_without_transformers(exported: Path) -> None:
    code = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript", "PIL", "h5py", "mujoco"):
    sys.modules[name] = None
import numpy as np
from anyvla.deploy.runtime import DeployedPolicy
policy = DeployedPolicy.load(sys.argv[1], threads=1)
assert policy.check_example() < 1e-3
rng = np.random.default_rng(5)
policy.reset("Stop.")
for _ in range(6):
    images = {camera: rng.integers(0, 256, (50, 60, 3), dtype=np.uint8) for camera in ("front", "rear")}
    print(*policy.act(images, state=rng.uniform(0, 1, 2)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    actions = np.array([line.split() for line in done.stdout.splitlines()], dtype=float)
    np.testing.assert_allclose(actions, _drive(DeployedPolicy.load(exported, threads=1), "Stop."), atol=1e-5)


@pytest.mark.parametrize("size", [(32, 48), (126, 224), (20, 31), (64, 17), (1, 1)])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_resizing_without_torch_is_the_same_to_the_bit(size: tuple[int, int], fit, monkeypatch) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 53, 71, 3), dtype=np.uint8)
    with_torch = resize_frames(frames, size, fit)
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(resize_frames(frames, size, fit), with_torch)
    np.testing.assert_array_equal(bicubic(frames, (53, 71)), frames)


def test_wrong_use_is_answered(exported: Path, tmp_path: Path) -> None:
    policy = DeployedPolicy.load(exported, threads=1)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    policy.reset("Stop.")
    with pytest.raises(DataError, match="camera 'rear'"):
        policy.act({"front": image}, state=[0, 0])
    with pytest.raises(DataError, match="lacks the robot's state"):
        policy.act({"front": image, "rear": image})
    policy.reset("Stop <image>.")
    with pytest.raises(DataError, match="token that stands for an image"):
        policy.act({"front": image, "rear": image}, state=[0, 0])


@pytest.mark.parametrize("name", ["deploy.json", "transforms.json", "tokenizer.json", "head.onnx", "backbone.onnx"])
@pytest.mark.parametrize("damage", [None, b"{}", b"\x00\xff garbage"], ids=["missing", "empty", "garbage"])
def test_a_damaged_export_is_refused(exported: Path, tmp_path: Path, name: str, damage: bytes | None) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    (folder / name).unlink()
    if damage is not None:
        (folder / name).write_bytes(damage)
    with pytest.raises(CheckpointError):
        DeployedPolicy.load(folder)


def test_what_needs_a_cache_at_run_time_is_refused(tmp_path: Path) -> None:
    for structure, head in (("interleaved", "fc"), ("one_step", "discrete")):
        case = Case("tiny", structure, head)
        folder = tmp_path / f"{structure}-{head}"
        save_model(folder, case.config, case.transforms, case.model)
        with pytest.raises(ConfigError, match=f"{structure} with head {head}.*one_step or policy_head"):
            export_policy(folder, tmp_path / "out", "torch")
        assert not (tmp_path / "out").exists()


def test_a_program_of_torch_computes_what_the_model_does_and_nothing_is_overwritten(tmp_path: Path) -> None:
    case = Case("tiny", "one_step", "fc")
    checkpoint = tmp_path / "checkpoint"
    save_model(checkpoint, case.config, case.transforms, case.model.eval())
    out, difference = export_policy(checkpoint, tmp_path / "out", "torch")
    assert difference <= TOLERANCE
    program = torch.export.load(out / "backbone.pt2").module()
    for instruction in INSTRUCTIONS:
        sequence = case.model.backbone.sequence([instruction], [[1]])
        images = case.images[:1, 0]
        with torch.no_grad():
            expected = case.model.backbone.encode(images[:, None], [instruction])
            torch.testing.assert_close(program(images=images[:, None], tokens=sequence.ids), expected, atol=1e-5, rtol=0)
    with pytest.raises(CheckpointError, match="exists already"):
        export_policy(checkpoint, out, "torch")
    with pytest.raises(CheckpointError, match="--format onnx"):
        DeployedPolicy.load(out)


@pytest.mark.slow
@pytest.mark.parametrize(("structure", "head"), [("one_step", "fc"), ("policy_head", "gpt"), ("policy_head", "flow")])
def test_every_continuous_head(structure: str, head: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    checkpoint = _checkpoint(tmp_path / "checkpoint", Case("tiny", structure, head, "arm7"))
    _check(checkpoint, export_policy(checkpoint, tmp_path / "onnx", "onnx")[0])


# who cannot follow the model's code; mllama and moondream lack an operator of ONNX
REFUSED = dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "openflamingo"), "torch.export")
REFUSED |= dict.fromkeys(("mllama", "moondream"), "ONNX")


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    """Which families export; the table in docs/deploy.md says the same."""
    pytest.importorskip("onnxscript")
    case = Case(families.make_tiny(family, tmp_path / "vlm"), "policy_head", "lstm", size=families.image_size(family))
    checkpoint = tmp_path / "checkpoint"
    save_model(checkpoint, case.config, case.transforms, case.model)
    if family in REFUSED:
        with pytest.raises(ConfigError, match=f"cannot be exported: {REFUSED[family]}"):
            export_policy(checkpoint, tmp_path / "onnx", "onnx")
        return
    _check(checkpoint, export_policy(checkpoint, tmp_path / "onnx", "onnx")[0])


def test_the_folder_says_what_it_is(exported: Path) -> None:
    settings = json.loads((exported / "deploy.json").read_text())
    assert settings["format"] == "onnx"
    assert settings["window"] == [4, 2, 32]
    assert {path.name for path in exported.iterdir()} == {
        "deploy.json", "transforms.json", "tokenizer.json", "backbone.onnx", "head.onnx", "example.json",
    }  # fmt: skip
