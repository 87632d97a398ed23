"""Meta-World's fifty tasks: what each is told, in our words; more wordings for those of the demo.

Held-out wordings are never used for training; they measure whether a policy reads. A task without further wordings says the
one sentence always.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Literal

import numpy as np

from anyvla.errors import ConfigError, did_you_mean

Split = Literal["train", "held_out"]

DEMO_TASKS = ("faucet-open-v3", "faucet-close-v3", "drawer-open-v3")

SENTENCES: dict[str, str] = {
    "assembly-v3": "Pick up the ring by its handle and put it over the peg.",
    "basketball-v3": "Drop the basketball into the basket.",
    "bin-picking-v3": "Take the cube out of its bin and put it into the other one.",
    "box-close-v3": "Put the lid on the box.",
    "button-press-topdown-v3": "Press the button from above.",
    "button-press-topdown-wall-v3": "Reach over the wall and press the button from above.",
    "button-press-v3": "Push the button in from the front.",
    "button-press-wall-v3": "Go around the wall and push the button in.",
    "coffee-button-v3": "Start the coffee machine with its button.",
    "coffee-pull-v3": "Pull the mug away from the coffee machine.",
    "coffee-push-v3": "Push the mug under the coffee machine.",
    "dial-turn-v3": "Turn the dial.",
    "disassemble-v3": "Lift the ring off the peg.",
    "door-close-v3": "Shut the door.",
    "door-lock-v3": "Lock the door.",
    "door-open-v3": "Open the door by its handle.",
    "door-unlock-v3": "Unlock the door.",
    "drawer-close-v3": "Push the drawer shut.",
    "drawer-open-v3": "Pull the drawer open.",
    "faucet-close-v3": "Turn the faucet off.",
    "faucet-open-v3": "Turn the faucet on.",
    "hammer-v3": "Take the hammer and drive the nail in.",
    "hand-insert-v3": "Put the gripper into the hole.",
    "handle-press-side-v3": "Press the handle at the side down.",
    "handle-press-v3": "Press the handle down.",
    "handle-pull-side-v3": "Pull the handle at the side up.",
    "handle-pull-v3": "Pull the handle up.",
    "lever-pull-v3": "Pull the lever up.",
    "peg-insert-side-v3": "Insert the peg into the hole from the side.",
    "peg-unplug-side-v3": "Pull the peg out of its hole to the side.",
    "pick-out-of-hole-v3": "Take the puck out of the hole and bring it to the goal.",
    "pick-place-v3": "Pick the puck up and bring it to the goal.",
    "pick-place-wall-v3": "Pick the puck up and bring it over the wall to the goal.",
    "plate-slide-back-side-v3": "Slide the plate out of the goal to the side.",
    "plate-slide-back-v3": "Slide the plate back out of the goal.",
    "plate-slide-side-v3": "Slide the plate sideways into the goal.",
    "plate-slide-v3": "Slide the plate into the goal.",
    "push-back-v3": "Pull the block back to the goal.",
    "push-v3": "Push the puck to the goal.",
    "push-wall-v3": "Push the puck around the wall to the goal.",
    "reach-v3": "Move the gripper to the goal.",
    "reach-wall-v3": "Move the gripper over the wall to the goal.",
    "shelf-place-v3": "Put the block on the shelf.",
    "soccer-v3": "Kick the ball into the goal.",
    "stick-pull-v3": "Pull the thermos with the stick.",
    "stick-push-v3": "Push the thermos with the stick.",
    "sweep-into-v3": "Sweep the block into the hole.",
    "sweep-v3": "Sweep the block off the table.",
    "window-close-v3": "Slide the window shut.",
    "window-open-v3": "Slide the window open.",
}

# beside the sentence above
_TRAIN: dict[str, tuple[str, ...]] = {
    "faucet-open-v3": (
        "Open the faucet.",
        "Open the tap, please.",
        "Switch the tap on by its handle.",
        "Turn the handle so that the faucet opens.",
        "Let the water run: turn the tap on.",
        "Move the handle of the faucet to open.",
    ),
    "faucet-close-v3": (
        "Close the faucet.",
        "Close the tap, please.",
        "Switch the tap off by its handle.",
        "Turn the handle so that the faucet closes.",
        "Stop the water: turn the tap off.",
        "Move the handle of the faucet to closed.",
    ),
    "drawer-open-v3": (
        "Open the drawer.",
        "Take the handle and pull the drawer out.",
        "Pull the drawer out, please.",
        "Draw the handle towards you until the drawer is open.",
        "Get the drawer open by its handle.",
        "Slide the drawer out of the box.",
    ),
}
_HELD_OUT: dict[str, tuple[str, ...]] = {
    "faucet-open-v3": (
        "Turn on the tap.",
        "Please open the faucet by its handle.",
        "Let the water run by turning the faucet on.",
    ),
    "faucet-close-v3": (
        "Turn off the tap.",
        "Please close the faucet by its handle.",
        "Stop the water by turning the faucet off.",
    ),
    "drawer-open-v3": (
        "Please open the drawer by its handle.",
        "Pull out the drawer.",
        "Slide the drawer open.",
    ),
}


def wordings(task: str, split: Split = "train") -> tuple[str, ...]:
    """All sentences that ``split`` can say for ``task``."""
    if split == "held_out":
        return _HELD_OUT.get(task, (SENTENCES[task],))
    return (SENTENCES[task], *_TRAIN.get(task, ()))


def sentence(task: str, rng: np.random.Generator, split: Split = "train") -> str:
    """One sentence for ``task``, drawn with ``rng``."""
    said = wordings(task, split)
    return said[int(rng.integers(len(said)))]


def select_tasks(text: str) -> tuple[str, ...]:
    """``reach-v3,door-*`` -> names, in that order, each once; ``demo`` and ``all`` are short for those tasks.

    Raises:
        ConfigError: a part names or matches no task.
    """
    chosen: dict[str, None] = {}
    for part in (part.strip() for part in text.split(",")):
        if part == "demo":
            found = list(DEMO_TASKS)
        else:
            found = [name for name in SENTENCES if part in ("all", name) or fnmatch(name, part)]
        if not found:
            near = did_you_mean(part, SENTENCES) if did_you_mean(part, SENTENCES).startswith("; did") else ""
            raise ConfigError(f"no task of Meta-World is {part!r}{near}; for instance {', '.join(DEMO_TASKS)}; or all")
        chosen |= dict.fromkeys(found)
    return tuple(chosen)
