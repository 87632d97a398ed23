"""A table as text, Markdown or LaTeX (booktabs)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Format = Literal["text", "markdown", "latex"]


@dataclass(frozen=True)
class Table:
    """``columns``: heading -> one cell for each row. ``notes``: sentences below it."""

    title: str
    columns: dict[str, list[str]]
    notes: list[str]


def render(table: Table, form: Format) -> str:
    """The whole table in one of the formats."""
    rows = [list(table.columns), *map(list, zip(*table.columns.values(), strict=True))]
    return {"text": _text, "markdown": _markdown, "latex": _latex}[form](table, rows)


def _text(table: Table, rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([table.title, *lines, *table.notes])


def _markdown(table: Table, rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join([table.title, "", *lines, *notes])


def _latex(table: Table, rows: list[list[str]]) -> str:
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in rows]
    return "\n".join(
        [
            f"% {table.title}",
            *(f"% {note}" for note in table.notes),
            r"\begin{tabular}{" + "l" * len(rows[0]) + "}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _escaped(text: str) -> str:
    """
    >>> _escaped("a_b 50 % +0.1 [-0.2, 0.3]")
    'a\\\\_b 50 \\\\% $+0.1$ [$-0.2$, 0.3]'
    """
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    escaped = "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
    return re.sub(r"(?<![\w.])[+-]\d+(\.\d+)?", r"$\g<0>$", escaped)
