from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.config import load_config
from anyvla.data.mixture import MixtureDataset
from anyvla.data.prepare import PreparedData, prepare_data
from anyvla.data.sampler import Item, MixtureSampler
from anyvla.data.transforms import Transforms
from anyvla.errors import ConfigError, DataError
from anyvla.policies.policy import Policy
from anyvla.training.loop import train
from anyvla.training.tracking import read_metrics
from tests.conftest import write_episode

_SIZES, _WEIGHTS = (7, 300, 40), (1.0, 3.0, 0.5)


def _sources(items: list[Item]) -> Counter[int]:
    ends = np.cumsum(_SIZES)
    return Counter(int(np.searchsorted(ends, item.index, side="right")) for item in items)


def _draw(sampler: MixtureSampler, batches: int) -> list[Item]:
    return list(itertools.chain.from_iterable(itertools.islice(sampler, batches)))


@pytest.mark.parametrize("batches", ["sample", "source"])
def test_every_source_has_its_share_to_a_ten_thousandth(batches) -> None:
    counts = _sources(_draw(MixtureSampler(_SIZES, _WEIGHTS, 4, seed=1, batches=batches), 10_000))
    for source, weight in enumerate(_WEIGHTS):
        assert abs(counts[source] / 40_000 - weight / sum(_WEIGHTS)) <= 1e-4


@pytest.mark.parametrize("batches", ["sample", "source"])
def test_every_window_of_a_source_is_drawn_before_any_is_drawn_again(batches) -> None:
    items = _draw(MixtureSampler(_SIZES, _WEIGHTS, 4, seed=1, batches=batches), 500)
    for first, size in ((0, _SIZES[0]), (_SIZES[0], _SIZES[1])):
        own = [item for item in items if first <= item.index < first + size]
        for epoch in range(len(own) // size):
            drawn = own[epoch * size : (epoch + 1) * size]
            assert sorted(item.index - first for item in drawn) == list(range(size))
            assert {item.epoch for item in drawn} == {epoch}


@given(
    seed=st.integers(0, 99), world=st.integers(1, 4), number=st.integers(0, 6000), batches=st.sampled_from(["sample", "source"])
)
def test_ranks_share_the_global_batch_of_one_process_and_any_batch_is_found_at_once(seed, world, number, batches) -> None:
    alone = MixtureSampler(_SIZES, _WEIGHTS, 2 * world, seed, batches=batches)
    ranks = [MixtureSampler(_SIZES, _WEIGHTS, 2, seed, rank, world, batches) for rank in range(world)]
    together = [item for rank in ranks for item in rank.batch(number)]
    assert together == alone.batch(number)
    resumed = MixtureSampler(_SIZES, _WEIGHTS, 2 * world, seed, batches=batches)
    resumed.batch_number = number
    assert next(iter(resumed)) == alone.batch(number)


def test_a_batch_of_one_source_holds_no_other() -> None:
    sampler = MixtureSampler(_SIZES, _WEIGHTS, 4, seed=1, batches="source")
    assert all(len(_sources(sampler.batch(number))) == 1 for number in range(200))
    mixed = MixtureSampler(_SIZES, _WEIGHTS, 4, seed=1)
    assert any(len(_sources(mixed.batch(number))) > 1 for number in range(20))


def test_a_source_with_a_weight_of_next_to_nothing_is_still_drawn() -> None:
    sampler = MixtureSampler((5, 5), (1e-9, 1.0), 10, seed=0)
    assert any(item.index < 5 for item in _draw(sampler, 1000))


@pytest.fixture
def mixture(tmp_path: Path, tiny_overrides) -> list[str]:
    """Two sources of other scales, rates and camera names."""
    for name, scale, fps in (("slow", 0.2, 2.5), ("fast", 1.0, 5.0)):
        (tmp_path / name).mkdir()
        for i in range(6):
            rng = np.random.default_rng(i)
            rear = {"rear": rng.integers(0, 256, (9, 36, 64, 3), dtype=np.uint8)} if name == "fast" else {}
            actions = rng.uniform(-scale, scale, (9, 3))
            write_episode(tmp_path / name / f"{i}.h5", 9, seed=i, actions=actions, fps=fps, further_images=rear)
    tree = (
        f"{{type: mixture, weights: {{slow: 3, fast: 1}}, cameras: {{fast: {{rear: back}}}}, sources: "
        f"{{slow: {{type: mobile_h5, path: {tmp_path / 'slow'}}}, fast: {{type: mobile_h5, path: {tmp_path / 'fast'}}}}}}}"
    )
    return [*tiny_overrides, f"data.source={tree}", "observation.cameras=[front]", "data.augment={}"]


def test_each_source_keeps_its_own_scale_and_names_its_windows(mixture) -> None:
    data = prepare_data(load_config("nav-tiny", mixture))
    assert isinstance(data.train, MixtureDataset)
    assert {name: len(part.episodes) for name, part in data.train.parts.items()} == {"slow": 5, "fast": 5}
    assert set(data.validation) == {"slow", "fast"}
    samples = [data.train[Item(0, i)] for i in range(len(data.train))]
    assert {sample["name"].split(":")[0] for sample in samples} == {"slow", "fast"}
    for name in ("slow", "fast"):
        largest = max(abs(s["actions"]).max() for s in samples if s["name"].startswith(name))
        assert largest == pytest.approx(1.0, abs=1e-5)  # each one's quantiles become 1, whatever the units
    slow, fast = (data.transforms.of(name) for name in ("slow", "fast"))
    assert (slow.fps, fast.fps) == (2.5, 5.0)
    np.testing.assert_allclose(fast.statistics["q99"] / slow.statistics["q99"], 5, rtol=0.3)
    assert Transforms.from_json(data.transforms.to_json()).to_json() == data.transforms.to_json()


def test_a_camera_that_only_one_source_has_may_be_optional(mixture) -> None:
    settings = [*mixture, "observation.cameras=[front, back]"]
    with pytest.raises(DataError, match="no images of the camera back"):
        prepare_data(load_config("nav-tiny", settings))
    data: PreparedData = prepare_data(load_config("nav-tiny", [*settings, "observation.optional_cameras=[back]"]))
    for i in range(0, len(data.train), 3):
        sample = data.train[Item(0, i)]
        assert sample["present"].tolist() == [True, sample["name"].startswith("fast")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.source.weights={slow: 1}", "weights: none for fast"),
        ("data.source.weights={slow: 1, fast: 1, fst: 2}", "no source 'fst'; did you mean 'fast'"),
        ("data.source.weights={slow: 1, fast: 0}", "greater than 0"),
        ("data.source.sources.fast.pth=x", "unknown key; did you mean 'path'"),
    ],
)
def test_a_mistake_in_a_mixture_is_named(mixture, change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("nav-tiny", [*mixture, change])
    assert message in str(caught.value)
    assert "data.source" in str(caught.value)


def test_an_unknown_camera_of_a_source_is_named(mixture) -> None:
    with pytest.raises(ConfigError, match="no camera 'raer'; did you mean 'rear'"):
        prepare_data(load_config("nav-tiny", [*mixture, "data.source.cameras={fast: {raer: back}}"]))


def test_a_policy_of_a_mixture_drives_in_the_scale_of_the_source_that_is_named(mixture) -> None:
    run = train(load_config("nav-tiny", mixture))
    lines = read_metrics(run / "metrics.jsonl")
    last = {key: value for line in lines for key, value in line.items()}
    expected = (3 * last["validation/slow/loss"] + last["validation/fast/loss"]) / 4
    assert last["validation/loss"] == pytest.approx(expected)
    with pytest.raises(ConfigError, match=r"several sources.*slow, fast"):
        Policy.load(run)
    with pytest.raises(ConfigError, match="no source 'slo'; did you mean 'slow'"):
        Policy.load(run, source="slo")
    image = {"front": np.zeros((36, 64, 3), np.uint8)}
    chunks = {}
    for source in ("slow", "fast"):
        policy = Policy.load(run, source=source)
        session = policy.start("go")
        policy.act_batch([session], [image])
        assert session.chunk is not None
        chunks[source] = policy.transforms.normalizer.normalize(session.chunk)
        assert policy.spec().fps == {"slow": 2.5, "fast": 5.0}[source]
    np.testing.assert_allclose(chunks["slow"], chunks["fast"], atol=1e-5)


def test_two_processes_train_a_mixture_as_one_does(mixture, tmp_path: Path) -> None:
    overrides = [*mixture, "actions.chunk=1"]
    one = train(load_config("nav-tiny", [*overrides, f"out={tmp_path / 'one'}"]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "anyvla"]
    command += ["train", "nav-tiny", *overrides, f"out={tmp_path / 'two'}", "training.batch_size=2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    losses = [
        [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] for run in (one, tmp_path / "two")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
