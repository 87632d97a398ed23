"""Collecting: complete files, resumable, independent of the number of workers, and Ctrl-C safe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from anyvla.data.scenarios import scenario_in
from anyvla.errors import AnyVLAError
from anyvla.simulation import collection_seed, evaluation_seed
from anyvla.simulation.collect import collect_nav
from anyvla.simulation.env import BoxNav
from anyvla.simulation.seeds import UNSEEDED
from anyvla.simulation.sentences import all_sentences

SIZE = (32, 56)


def silent(done: int, total: int) -> None:
    """Takes the place of the progress bar."""


def content(folder: Path) -> dict[str, tuple[bytes, bytes, bytes]]:
    episodes = {}
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            episodes[path.name] = (
                file["images"][()].tobytes(),
                file["actions"][()].tobytes(),
                file["language_instruction"][0],
            )
    return episodes


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of 1box and 2box, with pushes, collected in this process."""
    out = tmp_path_factory.mktemp("collected")
    calls: list[tuple[int, int]] = []
    report = collect_nav(out, "left", 6, 7, SIZE, workers=0, on_progress=lambda *call: calls.append(call))
    assert (report.written, report.skipped) == (6, 0)
    assert calls == [(k, 6) for k in range(1, 7)]
    return out


def test_files_are_complete_and_labelled(collected: Path) -> None:
    files = sorted(collected.glob("*.h5"))
    assert [path.name for path in files][:2] == [
        "episode_000000_1box_hori_left_seed7.h5",
        "episode_000001_1box_vert_left_seed7.h5",
    ]
    for path in files:
        with h5py.File(path) as file:
            frames = len(file["images"])
            assert file["images"].shape == (frames, *SIZE, 3)
            assert file["actions"].shape == (frames, 3)
            assert file.attrs["fps"] == 2.5
            scenario = scenario_in(path.name)
            assert scenario is not None
            assert file.attrs["scenario"] == scenario.name
            events = [event.decode() for event in file["action_event_types"]]
            assert events == ["episode_start"] + ["start_action"] * (frames - 1)
            text = file["language_instruction"][0].decode()
            assert any(
                text in all_sentences(scenario, target, "train")
                for target in ("bottle", "ball", "can", "cup", "plant", "chair")
            )
            assert not file["actions"][-2:].any()
            assert file["actions"][0, 0] > 0.3


def test_actions_are_commands_given_while_the_frame_was_seen(collected: Path) -> None:
    """Played back in the same world, with the same pushes, they give the same pictures."""
    env = BoxNav("all", "nav3", SIZE, language="any", disturbances=0.15)
    for i, path in enumerate(sorted(collected.glob("*.h5"))[:2]):
        with h5py.File(path) as file:
            images, actions = file["images"][()], file["actions"][()]
        scenario = scenario_in(path.name)
        assert scenario is not None
        seen = [env.reset(seed=collection_seed(7, i), options={"scenario": scenario.name})[0]["image"]]
        seen += [env.step(action)[0]["image"] for action in actions[:-1]]
        np.testing.assert_array_equal(seen, images)
    env.close()


def test_a_second_run_goes_on_and_workers_do_not_matter(collected: Path, tmp_path: Path) -> None:
    first = collect_nav(tmp_path, "left", 2, 7, SIZE, workers=1, on_progress=silent)
    stamp = (tmp_path / "episode_000000_1box_hori_left_seed7.h5").stat().st_mtime_ns
    second = collect_nav(tmp_path, "left", 6, 7, SIZE, workers=2, on_progress=silent)
    assert (first.written, second.written, second.skipped) == (2, 4, 2)
    assert (tmp_path / "episode_000000_1box_hori_left_seed7.h5").stat().st_mtime_ns == stamp
    assert content(tmp_path) == content(collected)
    record = json.loads((tmp_path / "collect.json").read_text())
    assert record["arguments"]["seed"] == 7
    assert record["episodes_on_disk"] == 6
    assert collect_nav(tmp_path, "left", 6, 7, SIZE, workers=2, on_progress=silent).written == 0


@pytest.mark.parametrize(
    "changed", [{"seed": 8}, {"size": (64, 112)}, {"scenarios": "right"}, {"disturbances": 0.0}, {"language": "en"}]
)
def test_other_arguments_are_refused(collected: Path, changed: dict[str, object]) -> None:
    arguments: dict[str, object] = {"scenarios": "left", "episodes": 6, "seed": 7, "size": SIZE, **changed}
    with pytest.raises(AnyVLAError, match=f"was collected with {next(iter(changed))}="):
        collect_nav(collected, workers=0, on_progress=silent, **arguments)  # type: ignore[arg-type]


def test_foreign_episodes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "episode_1box_hori_left.h5").write_bytes(b"")
    with pytest.raises(AnyVLAError, match="no collect"):
        collect_nav(tmp_path, workers=0, on_progress=silent)


def test_a_folder_that_cannot_be_made_and_wrong_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AnyVLAError, match="cannot make this folder"):
        collect_nav(tmp_path / "file" / "x", workers=0, on_progress=silent)
    for wrong in (
        {"episodes": 0},
        {"seed": -1},
        {"workers": -1},
        {"size": (0, 0)},
        {"scenarios": "3box"},
        {"language": "x"},
    ):
        with pytest.raises(AnyVLAError):
            collect_nav(tmp_path / "never", on_progress=silent, **{"workers": 0, **wrong})  # type: ignore[arg-type]
    assert not (tmp_path / "never").exists()


def test_worlds_of_collection_and_evaluation_never_meet() -> None:
    last = 999_999
    collection = [collection_seed(s, i, a) for s in (0, 1, last) for i in (0, 1, last) for a in (0, 1, 999)]
    evaluation = [evaluation_seed(s, i) for s in (0, 1, last) for i in (0, 1, last)]
    assert len(set(collection + evaluation)) == len(collection) + len(evaluation)
    assert max(collection) < min(evaluation)
    assert max(evaluation) < UNSEEDED
    with pytest.raises(ValueError, match="seed"):
        collection_seed(-1, 0)
    with pytest.raises(ValueError, match="episode"):
        evaluation_seed(0, 1_000_000)


SCRIPT = """
import sys
from pathlib import Path
from anyvla.simulation.collect import collect_nav
if __name__ == "__main__":
    try:
        collect_nav(Path(sys.argv[1]), "1box", 500, 0, (32, 56), workers=2)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("episodes_before", [0, 3])
def test_ctrl_c_leaves_complete_files_and_no_processes(tmp_path: Path, episodes_before: int) -> None:
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    workers: list[psutil.Process] = []
    while len(workers) < 2 or len(list(out.glob("*.h5"))) < episodes_before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert not any(worker.is_running() for worker in workers)
    left = {path.name for path in out.iterdir()}
    assert all(name.startswith("episode_") or name == "collect.json" for name in left), left
    assert len(content(out)) >= episodes_before  # every file opens
    script.write_text(SCRIPT.replace("500", str(max(4, len(content(out)) + 1))))
    assert subprocess.run([sys.executable, str(script), str(out)], capture_output=True, check=False).returncode == 0
    assert len(content(out)) >= 4
