"""The benchmarks run: in this process, with models of a size for tests. What they measure is no concern of a test."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("common", "random_models", request.param):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module(request.param)


@pytest.mark.parametrize("script", ["training_memory"], indirect=True)
@pytest.mark.parametrize("model", ["kosmos2", "paligemma", "llava"])
def test_both_ways_of_training_give_the_same_features(script: ModuleType, model: str) -> None:
    task = {"model": model, "batch": 2, "window": 2, "steps": 1, "device": "cpu", "dtype": "fp32", "tiny": True}
    assert script.measure({**task, "variant": None})["difference"] < 1e-4


@pytest.mark.parametrize("script", ["training_memory"], indirect=True)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_memory(script: ModuleType, dtype: str) -> None:
    task = {"model": "kosmos2", "batch": 2, "window": 2, "steps": 1, "device": "cpu", "dtype": dtype, "tiny": True}
    for variant in script.VARIANTS:
        found = script.measure({**task, "variant": variant})
        assert min(found["peak_mib"], found["model_mib"], found["step_ms"]["p50"]) > 0


@pytest.mark.parametrize("script", ["control_window"], indirect=True)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_control_window(script: ModuleType, dtype: str) -> None:
    task = {"model": "llava", "calls": 2, "device": "cpu", "dtype": dtype, "tiny": True}
    one = script.measure({**task, "structure": "one_step", "window": 1})
    head = script.measure({**task, "structure": "policy_head", "window": 3})
    assert one["step"]["p50"] > 0
    assert head["step"]["change_in_a_step"] > 1e-3
    window = script.measure({**task, "structure": "interleaved", "window": 4})
    assert window["keep 2"]["beginning_again"]["calls"] == window["keep 2"]["appending"]["calls"] == 1
    assert "appending" not in window["keep 3"]
    assert window["plain"]["p50"] > 0
