"""The table of conventions: signs, scales, rotations and names, each with the value that it must give."""

from __future__ import annotations

from dataclasses import replace
from math import pi, sqrt
from pathlib import Path

import numpy as np
import pytest

from anyvla.actions import ARM7, DELTA7, NAV2, POSE7, ActionDim, ActionSpec
from anyvla.errors import ConfigError, DataError
from anyvla.serving import conventions as c

LIBERO = ActionSpec(
    "libero",
    (
        *(ActionDim(name, unit="x 0.05 m") for name in ("dx", "dy", "dz")),
        *(ActionDim(name, unit="x 0.5 rad") for name in ("drx", "dry", "drz")),
        ActionDim("gripper", kind="binary", unit="1 = open", low=0.0),
    ),
)


def translate(spec: ActionSpec, benchmark: str, action: list[float], previous: float | None = None) -> np.ndarray:
    return c.ActionTranslator(spec, c.convention(benchmark))(np.array(action), previous)


def test_the_table_is_the_published_one() -> None:
    rows = {name: (row.rate, row.cameras, row.turned, row.rotation, row.gripper) for name, row in c.CONVENTIONS.items()}
    assert rows == {
        "simpler-widowx": (5.0, ("primary",), False, "axis-angle", "+1 open"),
        "simpler-google": (3.0, ("primary",), False, "axis-angle", "relative"),
        "libero": (20.0, ("agentview", "wrist"), True, "axis-angle", "+1 close"),
        "calvin": (30.0, ("rgb_static", "rgb_gripper"), False, "euler", "+1 open"),
    }
    with pytest.raises(ConfigError, match="did you mean 'simpler-widowx'"):
        c.convention("simpler-widow")


def test_the_page_says_what_the_table_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")]
    described = {
        row.name: [
            f"{row.rate:g} Hz",
            ", ".join(f"`{camera}`" for camera in row.cameras),
            "turned by 180 degrees" if row.turned else "as rendered",
            row.position,
            f"{row.rotation_unit}, {row.rotation}",
            row.gripper,
            " ".join(row.state),
        ]
        for row in c.CONVENTIONS.values()
    }
    assert {row[0].strip("`"): [*row[1:-1], row[-1].replace(",", "")] for row in rows} == described


@pytest.mark.parametrize(("benchmark", "opened", "closed"), [("simpler-widowx", 1, -1), ("calvin", 1, -1), ("libero", -1, 1)])
def test_the_sign_of_the_gripper(benchmark: str, opened: float, closed: float) -> None:
    assert translate(ARM7, benchmark, [0] * 6 + [1])[6] == opened
    assert translate(ARM7, benchmark, [0] * 6 + [0])[6] == closed


def test_the_google_robot_is_told_changes() -> None:
    commands = [1, 1, 0, 0, 1]
    sent = [
        translate(DELTA7, "simpler-google", [0] * 6 + [now], previous)[6]
        for now, previous in zip(commands, [None, *commands], strict=False)
    ]
    assert sent == [0.5, 0.5, 0.0, 0.5, 1.0]
    # what vla-eval makes of it before its simulator, where +1 closes
    assert [-(2 * value - 1) for value in sent] == [0, 0, 1, 0, -1]


def test_units() -> None:
    assert c.unit_scale("x 0.02 m") == (0.02, "m")
    assert c.unit_scale("rad") == (1.0, "rad")
    with pytest.raises(ConfigError, match="neither of"):
        c.unit_scale("mm")
    # half of CALVIN's 2 cm and 0.05 rad, in metres and radians; in LIBERO's 5 cm and 0.5 rad
    np.testing.assert_allclose(translate(ARM7, "calvin", [0.5, 0, 0, 0, 0, 0.5, 1]), [0.01, 0, 0, 0, 0, 0.025, 1], rtol=1e-6)
    np.testing.assert_allclose(translate(ARM7, "libero", [0.5, 0, 0, 0, 0, 0.5, 1]), [0.2, 0, 0, 0, 0, 0.05, -1], rtol=1e-6)
    np.testing.assert_allclose(translate(DELTA7, "simpler-widowx", [0.1, 0, 0, 0, 0, 0, 0])[0], 0.1, rtol=1e-6)
    action = [0.3, -0.2, 0.1, 0.9, -0.4, 0.2, 1]
    np.testing.assert_allclose(translate(LIBERO, "libero", action), [*action[:6], -1], rtol=1e-6)  # its own convention


def test_rotations() -> None:
    third = [2 * pi / 3 / sqrt(3)] * 3  # see the golden values of rotations
    quarter_turns = [0, 0, 0, pi / 2, 0, pi / 2, 1]
    np.testing.assert_allclose(translate(DELTA7, "simpler-widowx", quarter_turns)[3:6], third, rtol=1e-6)
    np.testing.assert_allclose(translate(DELTA7, "calvin", quarter_turns)[3:6], quarter_turns[3:6], rtol=1e-6)
    vector = ActionSpec("v", (*DELTA7.dims[:3], *(ActionDim(n, unit="rad") for n in ("drx", "dry", "drz")), DELTA7.dims[6]))
    np.testing.assert_allclose(translate(vector, "calvin", [0, 0, 0, *third, 1])[3:6], quarter_turns[3:6], atol=1e-6)
    np.testing.assert_allclose(translate(vector, "simpler-google", [0, 0, 0, *third, 1])[3:6], third, rtol=1e-6)


def test_dimensions_are_found_by_name() -> None:
    shuffled = ActionSpec("shuffled", tuple(reversed(DELTA7.dims)))
    action = np.array([0.1, 0.2, 0.3, 0.01, 0.02, 0.03, 1])
    np.testing.assert_array_equal(translate(shuffled, "calvin", list(action[::-1])), translate(DELTA7, "calvin", list(action)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (NAV2, "takes changes of a pose"),
        (POSE7, "takes changes of a pose"),
        (replace(ARM7, dims=(replace(ARM7.dims[0], unit=""), *ARM7.dims[1:])), "'dx': the unit '' is neither"),
        (replace(ARM7, dims=(replace(ARM7.dims[0], unit="rad"), *ARM7.dims[1:])), "'dx' is in rad, calvin takes m"),
        (replace(ARM7, dims=(*ARM7.dims[:6], replace(ARM7.dims[6], kind="continuous"))), "gripper is not binary"),
    ],
)
def test_actions_without_a_counterpart_are_refused(spec: ActionSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        c.ActionTranslator(spec, c.convention("calvin"))


def test_images_are_turned_and_back() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert c.turn(image)[0, 0].tolist() == image[1, 3].tolist()
    np.testing.assert_array_equal(c.turn(c.turn(image)), image)


def test_the_state_by_name_in_every_representation() -> None:
    half = sqrt(0.5)
    google = c.named_state(c.convention("simpler-google"), [0.1, 0.2, 0.3, half, 0, 0, half, 0.75])
    assert [google[name] for name in ("x", "qw", "qz", "gripper_open", "gripper_closed")] == [0.1, half, half, 0.75, 0.25]
    assert [google[name] for name in ("roll", "pitch", "yaw")] == pytest.approx([0, 0, pi / 2])
    assert [google[name] for name in ("rx", "ry", "rz")] == pytest.approx([0, 0, pi / 2])
    libero = c.named_state(c.convention("libero"), [0, 0, 0, 0, 0, 1.5 * pi, 0.04, -0.04])
    assert libero["rz"] == 1.5 * pi  # as robosuite gives it, more than half a turn
    assert libero["yaw"] == pytest.approx(-pi / 2)
    calvin = c.named_state(c.convention("calvin"), [0, 0, 0.5, 3.0, -0.02, 1.5, 0.08, 1])
    assert [calvin[name] for name in ("roll", "pitch", "yaw", "gripper_width", "gripper_action")] == [3.0, -0.02, 1.5, 0.08, 1]
    with pytest.raises(DataError, match=r"8 numbers .* shape \(7,\)"):
        c.named_state(c.convention("calvin"), [0.0] * 7)


def test_bridge_measures_the_gripper_from_where_it_points_down() -> None:
    """In that attitude of the tool, its data says (0, 0, 0)."""
    from anyvla.actions.rotations import matrix_to_quaternion

    qx, qy, qz, qw = matrix_to_quaternion(np.array(c.convention("simpler-widowx").tool))
    named = c.named_state(c.convention("simpler-widowx"), [0.3, 0, 0.1, qw, qx, qy, qz, 1])
    assert [named[name] for name in ("roll", "pitch", "yaw")] == pytest.approx([0, 0, 0], abs=1e-9)
    assert named["qw"] == pytest.approx(1)


def test_names_are_matched_and_renamed() -> None:
    offered = ("agentview", "wrist")
    assert c.match_names("camera", ("wrist", "front"), offered, {}) == {"wrist": "wrist"}
    assert c.match_names("camera", ("wrist", "front"), offered, {"agentview": "front"}) == {
        "wrist": "wrist",
        "front": "agentview",
    }
    with pytest.raises(ConfigError, match=r"--camera agent=front: the benchmark has no camera 'agent'.*agentview"):
        c.match_names("camera", ("front",), offered, {"agent": "front"})
    with pytest.raises(ConfigError, match=r"the policy has no camera 'fron'.*front"):
        c.match_names("camera", ("front",), offered, {"agentview": "fron"})
