import numpy as np
import pytest

from anyvla.actions import ARM7, NAV2, NAV3, ActionDim, ActionSpec
from anyvla.actions.spec import ACTION_SPECS, action_spec
from anyvla.errors import ConfigError


@pytest.mark.parametrize("spec", ACTION_SPECS.values(), ids=lambda spec: spec.name)
def test_round_trip_through_a_dict_is_exact(spec: ActionSpec) -> None:
    assert ActionSpec.from_dict(spec.to_dict()) == spec


def test_the_built_in_specs_have_the_published_dimensions() -> None:
    assert ARM7.names == ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
    assert ARM7.binary.tolist() == [False] * 6 + [True]
    assert NAV2.names == ("linear_x", "linear_y")
    assert NAV3.names == ("linear_x", "linear_y", "angular_z")
    assert NAV3.high.tolist() == [1.15] * 3


def test_mirroring_flips_lateral_velocity_and_yaw_only() -> None:
    np.testing.assert_array_equal(NAV3.mirror_sign, [1, -1, -1])


def test_a_wrong_key_is_answered_with_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match=r"dims\[0\]: unknown key 'lo'; did you mean 'low'"):
        ActionSpec.from_dict({"name": "mine", "dims": [{"name": "x", "lo": -1}]})
    with pytest.raises(ConfigError, match="did you mean 'nav2'"):
        action_spec("nav22")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "mine"}, "has no dims"),
        ({"dims": []}, "has no name"),
        ({"name": "mine", "dims": 3}, "dims cannot be 3"),
        ({"name": "mine", "dims": [3]}, r"dims\[0\] must be a mapping"),
        ({"name": "mine", "dims": [{"name": "x", "low": "a"}]}, r"dims\[0\]: low cannot be 'a'"),
        ({"name": "mine", "dims": [{"unit": "m"}]}, r"dims\[0\] has no name"),
        ({"name": "mine", "dim": []}, "did you mean 'dims'"),
    ],
)
def test_a_damaged_spec_is_refused_with_its_place(value, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ActionSpec.from_dict(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ActionDim("x", low=1.0, high=1.0), "not below"),
        (lambda: ActionDim("x", kind="real"), "kind is 'real'"),  # type: ignore[arg-type]
        (lambda: ActionSpec("mine", ()), "no dimensions"),
        (lambda: ActionSpec("mine", (ActionDim("x"), ActionDim("x"))), "twice"),
    ],
)
def test_impossible_specs_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
