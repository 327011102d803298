"""Process lifetimes: no worker outlives the command that started it."""

import signal
import sys
from types import FrameType


def die_with_parent() -> None:
    """End this process when the one that started it is killed (Linux only)."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


class Terminated(BaseException):
    """SIGTERM, raised where the program stands, so that it cleans up as it does for an interrupt."""


def raise_on_sigterm() -> None:
    """Turn SIGTERM into `Terminated`."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, handle)
