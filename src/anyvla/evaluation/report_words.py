"""How the report speaks of each environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Words:
    """Attributes:

    task: what its tasks are called. meanings: by probe, and of ``expert``: what the number of that row says.
    success: when an episode counts. films: what they show.
    """

    task: str
    meanings: dict[str, str]
    success: str = ""
    films: str = "What the first camera saw. The first successes and the first failures, not chosen otherwise."

    def worlds(self, result: dict[str, Any]) -> str:
        """``100 worlds of scenario 1box``, for the sentence under the title."""
        n = result["episodes"]
        noun = "world" if n == 1 else "worlds"
        if "scenario" in result:
            return f"{n} {noun} of scenario {result['scenario']}"
        return f"{n} {noun} of {', '.join(result['per_task'])}"


_SHARED = {
    "none": "The policy, given the sentence as it is.",
    "randomised": "The same worlds, but the robot starts elsewhere, within the range of the training data.",
    "expert": "The scripted driver, which reads positions from the simulator instead of images and sentences.",
}
NAV = Words(
    task="Scenario",
    meanings={
        **_SHARED,
        "blind": "The same worlds, but the policy gets an empty sentence. It cannot know the side: what remains is habit.",
        "shuffled-language": (
            "The same worlds, but the policy gets the sentence of another scenario. Success is judged as before: who "
            "reads fails."
        ),
        "swapped": (
            "The same worlds with left and right exchanged in the sentence. Success means passing on the side that the "
            "exchanged sentence names."
        ),
    },
    films=(
        "Camera images as the policy got them, 2.5 a second, played at twice that speed; beside them the path of the same "
        "episode with the width of the robot. The first successes and the first failures, not chosen otherwise."
    ),
)
ARM = Words(
    task="Task",
    meanings={
        **_SHARED,
        "blind": (
            "The same worlds, but the policy gets an empty sentence. Where two tasks look the same it cannot know which is "
            "meant; where a thing has only one use, the picture is enough."
        ),
        "shuffled-language": (
            "The same worlds, but the policy gets the sentence of another task. Success is judged as before: who reads fails."
        ),
        "randomised": "The same worlds, but the hand starts elsewhere, as it does in half of the training data.",
        "expert": "Meta-World's scripted experts, which read positions from the simulator instead of images and sentences.",
    },
    success="the task was done at any step of the episode, as Meta-World judges it, before time was up.",
    films=(
        "What the camera saw, more often than the policy looked and slower than it happened. "
        "The first successes and the first failures, not chosen otherwise."
    ),
)
OTHER = Words(
    task="Task",
    meanings={
        **_SHARED,
        "blind": "The same worlds, but the policy gets an empty sentence.",
        "shuffled-language": "The same worlds, but the policy gets the sentence of another task.",
    },
)


def words_of(env: str) -> Words:
    return {"nav": NAV, "metaworld": ARM}.get(env, OTHER)
