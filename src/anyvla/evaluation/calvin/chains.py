"""The chains of CALVIN: five subtasks in a row, from a known initial state (Mees et al., arXiv 2112.03227).

The list that every published number was measured with is drawn: for each of the 192 possible initial states, NumPy's legacy
generator with a fixed seed draws five tasks until they can be done one after the other, five or six times. That takes five
million draws, so ``chains.txt`` holds what came out, a line per state and a letter per task; the tests draw some of it anew.
Neither the environment nor its hash package is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import product
from typing import Any

import numpy as np

from anyvla.errors import ConfigError

CHAINS = 1000
SUBTASKS = 5  # of a chain
COLORS = ("red", "blue", "pink")
_TURNED_OR_PUSHED = tuple(
    f"{verb}_{color}_block_{side}" for verb in ("rotate", "push") for color in COLORS for side in ("right", "left")
)
_LIFTED = tuple(f"lift_{color}_block_{place}" for color in COLORS for place in ("table", "slider", "drawer"))
# the order matters: the draws are indices into it
TASKS = (
    *_TURNED_OR_PUSHED,
    *("move_slider_left", "move_slider_right", "open_drawer", "close_drawer"),
    *_LIFTED,
    *("place_in_slider", "place_in_drawer", "stack_block", "unstack_block"),
    *("turn_on_lightbulb", "turn_off_lightbulb", "turn_on_led", "turn_off_led"),
    "push_into_drawer",
)
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGH"  # of the tasks in chains.txt
# a chain has at most one task of each kind
_KINDS: dict[str, str] = {
    **dict.fromkeys(_TURNED_OR_PUSHED, "turned or pushed"),
    **{task: "lifted from the " + task.rsplit("_", 1)[1] for task in _LIFTED},
    **{f"move_slider_{side}": "slider" for side in ("left", "right")},
    **{f"{verb}_drawer": "drawer" for verb in ("open", "close")},
    **{f"place_in_{place}": "placed" for place in ("slider", "drawer")},
    **{f"turn_{state}_{light}": "light" for state in ("on", "off") for light in ("lightbulb", "led")},
}

State = dict[str, Any]  # led, lightbulb: 0 or 1; slider, drawer; where each block is; whether one is grasped: 0 or 1


@dataclass(frozen=True)
class Chain:
    """Five tasks in a row, and the state that they begin from."""

    index: int
    state: State
    tasks: tuple[str, ...]

    @property
    def world(self) -> str:
        """A name of the initial state and the tasks."""
        return hashlib.sha256(json.dumps([self.state, self.tasks]).encode()).hexdigest()[:12]


def evaluation_chains(count: int = CHAINS, seed: int = 0) -> list[Chain]:
    """The first ``count`` of the published chains, in the published order for ``seed`` 0 and in another for any other seed.

    Raises ConfigError for a count that is not 1 to 1000, or a seed that is no 32-bit number.
    """
    if not 1 <= count <= CHAINS:
        raise ConfigError(f"CALVIN has {CHAINS} chains: {count} of them cannot be driven")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"the seed must be 0 (the published order) to {2**32 - 1}, not {seed}")
    lines = resources.files(__package__).joinpath("chains.txt").read_text(encoding="ascii").split("\n")
    drawn = [
        (state, tuple(TASKS[_LETTERS.index(letter)] for letter in word))
        for state, line in zip(initial_states(), lines, strict=True)
        for word in line.split()
    ]
    np.random.RandomState(0).shuffle(drawn)  # type: ignore[arg-type]  # the published order
    if seed:
        np.random.RandomState(seed).shuffle(drawn)  # type: ignore[arg-type]
    return [Chain(i, state, tasks) for i, (state, tasks) in enumerate(drawn[:count])]


def draws(index: int) -> Iterator[str]:
    """The chains of initial state ``index``, five letters each, without end; the first five or six are its line of the file."""
    state = initial_states()[index]
    random = np.random.RandomState(index)  # the list is defined by this generator
    while True:
        drawn = random.permutation(len(TASKS))[:SUBTASKS]
        if _can_be_done(state, [TASKS[i] for i in drawn]):
            yield "".join(_LETTERS[i] for i in drawn)


def initial_states() -> list[State]:
    """All states that a chain may begin from: one or two blocks on the table, each half of the cabinet holds one at most."""
    places = ("table", "slider_right", "slider_left")
    states = []
    for led, bulb, slider, drawer, *blocks in product((0, 1), (0, 1), ("right", "left"), ("closed", "open"), *[places] * 3):
        if blocks.count("table") in (1, 2) and blocks.count("slider_right") < 2 and blocks.count("slider_left") < 2:
            state = {"led": led, "lightbulb": bulb, "slider": slider, "drawer": drawer}
            blocks_of = {f"{color}_block": place for color, place in zip(COLORS, blocks, strict=True)}
            states.append({**state, **blocks_of, "grasped": 0})
    return states


def _can_be_done(state: State, tasks: list[str]) -> bool:
    """Whether each task is possible in the state that the one before leaves, in exactly one way, and no kind comes twice."""
    for task in tasks:
        after = states_after(state, task)
        if len(after) != 1:
            return False
        state = after[0]
    return len({_KINDS.get(task, task) for task in tasks}) == len(tasks)


def states_after(state: State, task: str) -> list[State]:
    """Every state that ``task`` can lead to from ``state``; none where it cannot be done."""
    block_at = {color: state[f"{color}_block"] for color in COLORS}
    held = [color for color in COLORS if block_at[color] == "grasped"]
    puts_down = task in ("place_in_slider", "place_in_drawer", "stack_block")
    if bool(state["grasped"]) != puts_down:
        return []
    changes: list[State] = []
    words = task.split("_")
    if words[0] in ("rotate", "push") and words[2] == "block":
        changes = [{}] if block_at[words[1]] == "table" else []
    elif words[0] == "move":
        changes = [{"slider": words[2]}] if state["slider"] != words[2] else []
    elif words[0] in ("open", "close"):
        goal = "open" if words[0] == "open" else "closed"
        changes = [{"drawer": goal}] if state["drawer"] != goal else []
    elif words[0] == "turn":
        light, goal_state = words[2], int(words[1] == "on")
        changes = [{light: goal_state}] if state[light] != goal_state else []
    elif words[0] == "lift":
        color, place = words[1], words[3]
        # the door hides the half of the cabinet that it stands in front of
        free = "slider_left" if state["slider"] == "right" else "slider_right"
        reachable = {"table": "table", "slider": free, "drawer": "drawer" if state["drawer"] == "open" else None}
        changes = [{f"{color}_block": "grasped", "grasped": 1}] if block_at[color] == reachable[place] else []
    elif task == "place_in_slider":
        changes = [{f"{color}_block": f"slider_{state['slider']}", "grasped": 0} for color in held]
    elif task == "place_in_drawer":
        changes = [{f"{color}_block": "drawer", "grasped": 0} for color in held if state["drawer"] == "open"]
    elif task == "stack_block":
        for top in held:
            for bottom in COLORS:
                if block_at[bottom] == "table":
                    changes.append({f"{top}_block": "stacked_top", f"{bottom}_block": "stacked_bottom", "grasped": 0})
    elif task == "unstack_block":
        stacked = [color for color in COLORS if block_at[color] in ("stacked_top", "stacked_bottom")]
        changes = [{f"{color}_block": "table" for color in stacked}] if len(stacked) == 2 else []
    elif task == "push_into_drawer":
        for color in COLORS:
            others = [block_at[other] for other in COLORS if other != color]
            if block_at[color] == "table" and state["drawer"] == "open" and set(others) <= {"slider_right", "slider_left"}:
                changes.append({f"{color}_block": "drawer", "grasped": 0})
    return [{**state, **change} for change in changes]


# ---------------------------------------------------------------------------------------------------- initial observations

ROBOT_OBS = (
    *("tcp_x", "tcp_y", "tcp_z", "tcp_roll", "tcp_pitch", "tcp_yaw"),  # metres, radians
    "gripper_width",  # metres
    *(f"joint_{i}" for i in range(1, 8)),  # radians
    "gripper_action",  # -1 closed, 1 open
)
_ROBOT_START = (
    *(0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963),
    *(-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0),
)
_ON_TABLE = ((5.00000896e-02, -1.20000177e-01, 4.59990009e-01), (2.29995412e-01, -1.19995140e-01, 4.59990010e-01))
_IN_CABINET = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
}
BLOCKS = {"red": 6, "blue": 12, "pink": 18}  # where a block's x, y, z, roll, pitch, yaw begin in scene_obs


def initial_observations(state: State) -> tuple[np.ndarray, np.ndarray]:
    """robot_obs (15,) and scene_obs (24,) float64 that the environment is reset to for ``state``.

    Which block on the table lies where, and how each is turned, is drawn with a seed made from the state.
    """
    random = np.random.RandomState(fnv1_32(str(state.values())))  # the published states come from it
    table = [np.array(place) for place in _ON_TABLE]
    random.shuffle(table)
    scene = np.zeros(24)
    scene[0] = 0.28 if state["slider"] == "left" else 0.0
    scene[1] = 0.22 if state["drawer"] == "open" else 0.0
    scene[3] = 0.088 if state["lightbulb"] else 0.0  # the switch
    scene[4], scene[5] = state["lightbulb"], state["led"]
    for color, start in BLOCKS.items():
        place = state[f"{color}_block"]
        if place in _IN_CABINET:
            scene[start : start + 3] = _IN_CABINET[place]
        elif color == "pink" or (color == "blue" and state["red_block"] == "table"):
            scene[start : start + 3] = table[1]
        else:
            scene[start : start + 3] = table[0]
        scene[start + 5] = random.uniform(np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)
    return np.array(_ROBOT_START), scene


def fnv1_32(text: str) -> int:
    """FNV-1, 32 bits, over the UTF-16-LE bytes of ``text``, from 0 instead of the usual offset basis."""
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193) % 2**32 ^ byte
    return value
