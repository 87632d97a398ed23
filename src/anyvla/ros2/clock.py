"""When a picture was taken: by its header's stamp where that can be believed, else when it arrived."""

from __future__ import annotations

from collections import deque
from statistics import median

from anyvla.ros2.transport import Message

LONGEST_DELAY = 1.0  # s: a stamp that is older on the whole is of another clock
_REMEMBERED = 31  # messages


class CameraClock:
    """For one camera. A header's stamp counts if it is set and, by the median of the last messages, 0 to 1 s before arrival."""

    def __init__(self) -> None:
        self._delays: deque[float] = deque(maxlen=_REMEMBERED)

    def time(self, message: Message) -> float:
        """Seconds, on the transport's clock."""
        if message.stamp is None:
            return message.received
        self._delays.append(message.received - message.stamp)
        return message.stamp if 0 <= median(self._delays) <= LONGEST_DELAY else message.received
