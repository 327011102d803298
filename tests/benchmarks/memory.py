"""The memory that a piece of work needs at its highest."""

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None)
_MMAP_THRESHOLD = -3


def free_at_once() -> None:
    """From here on freed tensors go back to the system at once."""
    _LIBC.mallopt(_MMAP_THRESHOLD, 64 * 1024)


def resident() -> int:
    """Bytes that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def trim() -> int:
    """Give back what is free, and say what is held."""
    gc.collect()
    _LIBC.malloc_trim(0)
    return resident()


def peak(work: Callable[[], None]) -> float:
    """MiB at the highest of a piece of work, above what is held before it."""
    start = top = trim()
    done = threading.Event()

    def watch() -> None:
        nonlocal top
        while not done.wait(0.001):
            top = max(top, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return (top - start) / 2**20
