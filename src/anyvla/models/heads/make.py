"""From the settings of a head to the head."""

from __future__ import annotations

from collections.abc import Callable

from anyvla.actions import ActionSpec
from anyvla.config import FCHeadConfig, FlowHeadConfig, GPTHeadConfig, LossConfig, LSTMHeadConfig
from anyvla.models.heads.base import Head
from anyvla.models.heads.fc import FCHead
from anyvla.models.heads.flow import FlowHead
from anyvla.models.heads.gpt import GPTHead
from anyvla.models.heads.lstm import LSTMHead

HeadConfig = FCHeadConfig | LSTMHeadConfig | GPTHeadConfig | FlowHeadConfig
_HEADS: dict[type, Callable[..., Head]] = {
    FCHeadConfig: FCHead,
    LSTMHeadConfig: LSTMHead,
    GPTHeadConfig: GPTHead,
    FlowHeadConfig: FlowHead,
}


def make_head(
    config: HeadConfig,
    width: int,
    queries: int,
    spec: ActionSpec,
    window: int,
    chunk: int,
    bounded: bool,
    loss: LossConfig,
) -> Head:
    """The head that ``config`` describes, with fresh weights.

    Args:
        width: D. queries: Q. window: H. chunk: L. bounded: whether normalised continuous actions lie in [-1, 1].
    """
    return _HEADS[type(config)](config, width, queries, spec, window, chunk, bounded, loss)
