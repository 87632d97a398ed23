import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyvla.actions import ARM7, NAV2
from anyvla.actions.discretize import IGNORED, make_discretizer
from anyvla.errors import ConfigError, DataError

GRIPPER = torch.from_numpy(ARM7.binary)
numbers = st.floats(-3, 3, width=32)
bins = st.integers(4, 300)
ranges = st.tuples(st.floats(-2, 1.5), st.floats(0.1, 3)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def nav(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, len(NAV2))


@given(values=st.lists(numbers, min_size=1, max_size=20), n=bins, limits=ranges)
def test_a_round_trip_errs_by_half_a_bin_at_most(values: list[float], n: int, limits: tuple[float, float]) -> None:
    discretizer = make_discretizer(NAV2, n, *limits)
    actions = nav(*values).clamp(*limits)
    error = (discretizer.decode(discretizer.encode(actions)) - actions).abs().max().item()
    assert error <= (limits[1] - limits[0]) / (n - 1) / 2 + 1e-6


@given(values=st.lists(numbers, min_size=2, max_size=20), n=bins, limits=ranges)
def test_a_larger_action_has_no_smaller_index_and_beyond_the_range_is_its_end(values, n: int, limits) -> None:
    discretizer = make_discretizer(NAV2, n, *limits)
    index = discretizer.encode(nav(*sorted(values)))
    assert (index.diff(dim=0) >= 0).all()
    assert (discretizer.encode(nav(-torch.inf, -9, 9, torch.inf))[:, 0] == torch.tensor([0, 0, n - 1, n - 1])).all()
    assert (discretizer.decode(index).diff(dim=0) >= 0).all()


@given(values=st.lists(numbers, min_size=1, max_size=20), n=bins, limits=ranges)
def test_a_second_round_trip_changes_nothing(values: list[float], n: int, limits: tuple[float, float]) -> None:
    discretizer = make_discretizer(NAV2, n, *limits)
    once = discretizer.decode(discretizer.encode(nav(*values)))
    torch.testing.assert_close(discretizer.decode(discretizer.encode(once)), once, atol=0, rtol=0)


@given(n=bins, open_=st.booleans())
def test_binary_dimensions_come_back_exactly_and_have_two_indices(n: int, open_: bool) -> None:
    discretizer = make_discretizer(ARM7, n, low=[-0.1] * 7, high=[0.1] * 7)
    actions = torch.zeros(2, 7)
    actions[:, GRIPPER] = float(open_)
    index = discretizer.encode(actions)
    assert (discretizer.decode(index)[:, GRIPPER] == float(open_)).all()
    assert discretizer.allowed[GRIPPER].sum() == 2
    assert discretizer.allowed[GRIPPER, index[0, GRIPPER]].all()
    assert discretizer.allowed[~GRIPPER].all()


def test_it_is_the_published_formula() -> None:
    """id = base - digitize(clip(a), edges); decode = centre of [clip(base - id - 1, 0, 254)]."""
    base = 32_000 - 10
    rng = np.random.default_rng(0)
    actions = np.concatenate([rng.uniform(-1.2, 1.2, (4000, 2)), [[-1, 1], [0, 0]]]).astype(np.float32)
    edges = np.linspace(-1, 1, 256)
    ids = base - np.digitize(np.clip(actions, -1, 1), edges)
    decoded = ((edges[:-1] + edges[1:]) / 2)[np.clip(base - ids - 1, 0, 254)]
    discretizer = make_discretizer(NAV2)
    index = discretizer.encode(torch.from_numpy(actions))
    assert np.array_equal(base - (index.numpy() + 1), ids)
    np.testing.assert_allclose(discretizer.decode(index).numpy(), decoded, atol=1e-7, rtol=0)


def test_golden_values() -> None:
    discretizer = make_discretizer(NAV2)
    assert discretizer.encode(nav(-1, -0.5, 0, 0.5, 1))[:, 0].tolist() == [0, 63, 127, 191, 255]
    expected = [-0.996078, -0.501961, 0.0, 0.501961, 0.996078, 0.996078]
    decoded = discretizer.decode(torch.tensor([0, 63, 127, 191, 254, 255])[:, None].expand(-1, 2))[:, 0]
    torch.testing.assert_close(decoded, torch.tensor(expected), atol=1e-6, rtol=0)
    fine = nav(*np.linspace(-1, 1, 100_001))
    worst = (discretizer.decode(discretizer.encode(fine)) - fine).abs().max().item()
    assert worst == pytest.approx(0.00392, abs=5e-6)


def test_every_dimension_has_its_own_range() -> None:
    discretizer = make_discretizer(NAV2, 11, low=[0, -10], high=[1, 10])
    assert discretizer.encode(torch.tensor([[0.55, 3.0]])).tolist() == [[5, 6]]
    torch.testing.assert_close(discretizer.decode(torch.tensor([5, 6])), torch.tensor([0.55, 3.0]))


def test_what_is_masked_has_no_index_and_nan_is_refused_by_name() -> None:
    discretizer = make_discretizer(NAV2)
    actions = torch.tensor([[[0.0, 0.0], [torch.nan, torch.inf]], [[0.0, 0.0], [0.0, torch.nan]]])
    mask = torch.tensor([[True, False], [True, False]])
    assert discretizer.encode(actions, mask).tolist() == [[[127, 127], [IGNORED, IGNORED]]] * 2
    mask[1, 1] = True
    with pytest.raises(DataError, match="NaN in linear_y"):
        discretizer.encode(actions, mask)
    with pytest.raises(DataError, match="from 0 to 255"):
        discretizer.decode(torch.tensor([[0, IGNORED]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 1.0, "high": 0.5}, "'linear_x': low 1 is not below high 0.5"),
        ({"low": [0.0]}, "low of the bins must be one number or 2 "),
        ({"high": [1.0, torch.inf]}, "high of the bins"),
        ({"bins": 3}, "at least 4"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_discretizer(NAV2, **settings)
