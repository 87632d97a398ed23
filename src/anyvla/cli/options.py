"""What several verbs share: options, and how their texts are read and printed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from anyvla.errors import ConfigError

Overrides = Annotated[list[str] | None, typer.Argument(help="settings as key.path=value", show_default=False)]
SourceSettings = Annotated[
    list[str] | None,
    typer.Argument(help="settings of the source as key=value; type=FORMAT if it is not found", show_default=False),
]
Spec = Annotated[str | None, typer.Option(help="action spec; all actions that the data hold if not given")]
Seed = Annotated[int, typer.Option(min=0)]
Workers = Annotated[int, typer.Option(min=1, help="simulation processes")]
CalvinRoot = Annotated[Path | None, typer.Option(help="your checkout of github.com/mees/calvin")]
CalvinPython = Annotated[str | None, typer.Option(help="the Python that has CALVIN's packages; this one if not given")]
Checkpoint = Annotated[Literal["best", "last"], typer.Option(help="which checkpoint of the run")]

PROBLEMS_SHOWN = 20


@contextmanager
def going_on() -> Iterator[None]:
    """Say after Ctrl-C what is true of verbs that continue by themselves."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; what was finished is kept, and the same command goes on from there") from None


def size_of(text: str) -> tuple[int, int]:
    """``1280x720`` -> (720, 1280)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ConfigError(f"a size is WIDTHxHEIGHT, such as 1280x720, not {text!r}")
    return int(height), int(width)


def execution_of(text: str | None) -> Any:
    """``receding:4`` -> the settings of this execution; None stays None."""
    if text is None:
        return None
    from anyvla.config import parse_config

    kind, _, value = text.partition(":")
    keys = {"receding": "steps", "ensemble": "decay"}
    overrides = ["actions.chunk=1000000", f"policy.execution.type={kind}"]  # the policy itself checks against its chunk
    if value:
        overrides.append(f"policy.execution.{keys.get(kind, 'steps')}={value}")
    return parse_config("{}", overrides, where=f"--execution {text}").policy.execution


def plain(text: object) -> str:
    """Text that rich prints as it is."""
    return escape(str(text))
