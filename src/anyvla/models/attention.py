"""Multi-head attention, for the modules around the backbone."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention of all heads: q (N, T, D), k and v (N, S, D) -> (N, T, D).

    Args:
        mask: (N or 1, T, S) bool, True where a query may look; every query must see something.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask[:, None]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal).transpose(1, 2).flatten(2)
