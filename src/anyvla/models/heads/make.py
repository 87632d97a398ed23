"""From the settings of a head to the head."""

from __future__ import annotations

from collections.abc import Callable

from anyvla.config.model import FCHeadConfig, FlowHeadConfig, GPTHeadConfig, LossConfig, LSTMHeadConfig
from anyvla.models.heads.base import Head, HeadSizes
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


def make_head(config: HeadConfig, sizes: HeadSizes, loss: LossConfig) -> Head:
    """The head that ``config`` describes, with fresh weights."""
    return _HEADS[type(config)](config, sizes, loss)
