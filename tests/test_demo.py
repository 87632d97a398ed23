from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anyvla.demo import run_demo
from anyvla.errors import ConfigError

SMALL = {"demonstrations": 6, "steps": 2, "episodes": 2}


def test_interrupted_at_any_stage_the_same_command_goes_on_to_the_report(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "anyvla", "demo", "--out", str(out)]
    command += [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]

    def episodes() -> list[Path]:
        return list((out / "data").glob("*.h5"))

    stages = [
        lambda: len(episodes()) > 0,  # while it collects
        lambda: (out / "run" / "config.yaml").exists(),  # while it trains
        lambda: any((out / "evaluation").glob("*.jsonl")),  # while it evaluates
    ]
    for reached in stages:
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not reached():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        assert "Traceback" not in error
        assert "goes on from there" in error
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("success ")
    assert len(episodes()) == SMALL["demonstrations"]
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["evaluations"]) == {"policy", "swapped", "blind", "two_boxes", "expert"}
    assert summary["evaluations"]["expert"]["successes"] == SMALL["episodes"]
    assert set(summary["seconds"]) == {"collect", "train", "evaluate", "report"}
    page = (out / "report.html").read_text()
    assert "Left and right exchanged" in page
    assert f"/ {SMALL['episodes']}" in page
    with pytest.raises(ConfigError, match=r"holds a demo with other settings \(episodes 2 then, 3 now\)"):
        run_demo(out, **SMALL | {"episodes": 3})


@pytest.mark.slow
def test_the_demo_drives_and_obeys(tmp_path: Path) -> None:
    """The numbers that the project promises, measured as a user would see them."""
    run_demo(tmp_path / "demo")
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    rows = summary["evaluations"]
    assert rows["policy"]["successes"] >= 90
    assert rows["swapped"]["passed_as_told"] >= 85
    assert rows["expert"]["successes"] >= 99
    assert rows["blind"]["successes"] < rows["policy"]["successes"]


@pytest.mark.slow
def test_the_arm_demo_runs_to_its_report_and_is_not_mixed_with_another(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    from anyvla.demo_arm import run_arm_demo

    small = {"demonstrations": 6, "steps": 2, "episodes": 1}
    result = run_arm_demo(tmp_path, **small)
    assert result.line.startswith("success ")
    assert "faucet-open-v3" in result.line
    summary = json.loads(result.summary.read_text())
    assert set(summary["evaluations"]) == {"policy", "blind", "shuffled", "randomised", "expert"}
    assert summary["evaluations"]["expert"]["successes"] == 3
    page = result.report.read_text()
    assert "Another task&#39;s sentence" in page
    assert "Passed on the" not in page
    with pytest.raises(ConfigError, match=r"holds a demo with other settings \(demo arm then, None now"):
        run_demo(tmp_path, **small)


@pytest.mark.slow
def test_the_arm_demo_does_its_three_tasks(tmp_path: Path) -> None:
    """The numbers that the project aims at."""
    pytest.importorskip("metaworld")
    from anyvla.demo_arm import run_arm_demo

    rows = json.loads(run_arm_demo(tmp_path).summary.read_text())["evaluations"]
    assert all(task["successes"] >= 40 for task in rows["policy"]["per_task"].values())
    assert rows["expert"]["successes"] >= 148
    faucets = [rows["blind"]["per_task"][task]["successes"] for task in ("faucet-open-v3", "faucet-close-v3")]
    assert sum(faucets) <= 60  # the two look the same
