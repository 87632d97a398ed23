"""The errors a user can cause. Each says what is wrong, where, and what to do; the command line prints them in one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AnyVLAError(Exception):
    """A mistake or a missing part that the user can mend. Anything else that is raised is a bug of ours."""


class ConfigError(AnyVLAError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class DataError(AnyVLAError):
    """A file or an episode cannot be used; the message names the file and the key."""


class CheckpointError(AnyVLAError):
    """A run or checkpoint folder is missing, incomplete or does not fit."""


class SimulationError(AnyVLAError):
    """The simulator cannot run here, most often because no OpenGL back end works."""


class MissingExtraError(AnyVLAError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package!r}: pip install 'anyvla[{extra}]'")


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the option nearest to ``name``, or the list of options when none is near."""
    known = sorted(options)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
