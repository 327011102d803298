"""Process lifetimes: no worker outlives the command that started it."""

import atexit
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn


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


def leave(code: int) -> NoReturn:
    """End this process with an exit code, without tearing the interpreter down.

    Gloo's threads outlive `destroy_process_group` as long as anything refers to the group (DDP and DeepSpeed do). One
    that releases its last tensor while the interpreter is torn down aborts the process, and a finished run would count
    as failed.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
