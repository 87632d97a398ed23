"""What all sections of the settings share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

OnBadEpisode = Literal["error", "skip"]
Fit = Literal["stretch", "pad", "crop"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


class Settings(BaseModel):
    """Base of all sections: frozen, strict about types, unknown keys refused with the nearest right one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def check_heads(hidden: int, attention_heads: int) -> None:
    """Raises ValueError unless the width of a transformer divides into its heads."""
    if hidden % attention_heads:
        raise ValueError(f"hidden {hidden} does not divide into attention_heads {attention_heads}")
