from __future__ import annotations

from pathlib import Path

import pytest

from anyvla.config import load_config
from anyvla.data.mixture import MixtureDataset
from anyvla.data.prepare import prepare_data
from anyvla.errors import ConfigError
from tests.data.rlds_made import made_steps, make_dataset

_NAMES = ("bridge_dataset", "fractal20220817_data")


@pytest.fixture
def settings(tmp_path: Path, tiny_overrides) -> list[str]:
    for name, lengths in zip(_NAMES, ((9, 7, 8), (12, 12, 12)), strict=True):
        make_dataset(tmp_path / "oxe", name, [made_steps(name, n, seed) for seed, n in enumerate(lengths)])
    source = f"{{type: open_x, path: {tmp_path / 'oxe'}, motion: reached}}"
    return [*tiny_overrides, f"data.source={source}", "actions.spec=delta7", "observation.cameras=[primary]"]


def test_a_published_mixture_has_its_weights_and_a_scale_for_each_dataset(settings) -> None:
    data = prepare_data(load_config("nav-tiny", settings))
    assert isinstance(data.train, MixtureDataset)
    assert tuple(data.train.parts) == _NAMES
    # both weights of bridge_rt_1 are 1: a step of one is drawn as often as a step of the other
    assert data.weights == {name: len(part) for name, part in data.train.parts.items()}
    assert {name: scale.fps for name, scale in data.transforms.mixture.items()} == {_NAMES[0]: 5.0, _NAMES[1]: 3.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.source.mixture=rt_x", "unknown mixture 'rt_x'; did you mean 'rtx'"),
        ("data.source.mixture=rtx", "rtx needs kuka"),
        ("data.source.leave_out=[kuka]", "bridge_rt_1 has no 'kuka'"),
        ("data.source.leave_out=[bridge_dataset]", "fewer than two datasets"),
        ("data.source.path=null", "path is not set"),
    ],
)
def test_a_mistake_in_a_published_mixture_is_named(settings, change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_data(load_config("nav-tiny", [*settings, change]))
    assert message in str(caught.value)
