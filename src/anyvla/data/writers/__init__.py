"""Writers of episodes, one file a format. A file appears under its name only when it is complete."""

from __future__ import annotations

from anyvla.data.writers.mobile_h5 import write_mobile_h5

__all__ = ["write_mobile_h5"]
