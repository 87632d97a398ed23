"""The prompt function: the only place where an instruction becomes what the language model reads.

A prompt is made from the instruction alone. Nothing that depends on the actions may enter it: it would leak the answer.
"""

from __future__ import annotations

import re

import numpy as np

from anyvla.errors import ConfigError


def make_prompt(instruction: str, template: str = "{instruction}") -> str:
    """Put ``instruction``, with its white space tidied, into ``template``.

    Raises:
        ConfigError: the template does not hold ``{instruction}``.
    """
    if "{instruction}" not in template:
        raise ConfigError(f"prompt template {template!r} does not contain '{{instruction}}'")
    return template.replace("{instruction}", " ".join(instruction.split()))


_EXCHANGED = [
    ("left", "right"),
    ("왼쪽", "오른쪽"),
    ("왼편", "오른편"),
    ("왼손", "오른손"),
    ("좌측", "우측"),
    ("좌회전", "우회전"),
]
_OTHER = {a: b for pair in _EXCHANGED for a, b in (pair, pair[::-1])}
_SIDES = re.compile(r"\b(?:left|right)(?=\b|ward|most|hand)|" + "|".join(word for word in _OTHER if not word.isascii()), re.I)
# "turn right before the box" names a side, "stop right before the box" does not: nobody can tell without understanding
_AMBIGUOUS = re.compile(
    r"(?<!\bthe )(?<!\bits )\bright\s+(?:in front|before|behind|next|at|away|now|after|there|here|up|by|through|past|on top)\b"
    r"|\b(?:is|are|was|were|be|only\s+\w+)\s+left\b",
    re.I,
)
_NEGATION = re.compile(r"\b(?:not|never|no|without|don't|doesn't|mustn't)\b|말고|말아|않|안\b", re.I)


def drop_words(text: str, probability: float, rng: np.random.Generator) -> str:
    """Leave out each word with ``probability``, except sides and negations; at least one word stays."""
    words = text.split()
    kept = [word for word in words if _SIDES.search(word) or _NEGATION.search(word) or rng.random() >= probability]
    return " ".join(kept or words[:1])


def mirror_text(text: str) -> str | None:
    """Exchange left and right, in English and Korean; applied twice it gives the text back.

    None where "right" may mean "directly", so that the text cannot be mirrored safely.

    >>> mirror_text("Keep LEFT of the box. 왼쪽으로!")
    'Keep RIGHT of the box. 오른쪽으로!'
    >>> mirror_text("Stop right in front of the box.") is None
    True
    """
    if _AMBIGUOUS.search(text):
        return None

    def exchange(match: re.Match[str]) -> str:
        word = match.group(0)
        other = _OTHER[word.lower()]
        if word.isascii() and word.isupper():
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    return _SIDES.sub(exchange, text)
