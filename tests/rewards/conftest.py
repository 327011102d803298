"""What the tests of rewards share: pools with short deadlines, and a look at what is left."""

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tokencredit.rewards import RewardPool

_others: set[int] = set()


@pytest.fixture(autouse=True, scope="module")
def _not_of_others() -> None:
    """A trainer of a test before, which is garbage and not yet collected, still holds its pool."""
    _others.clear()
    gc.collect()
    _others.update(child.pid for child in workers())


@pytest.fixture
def make_pool() -> Iterator[Callable[..., RewardPool]]:
    """Make pools with short deadlines; all are closed, and no worker may be left."""
    pools = []

    def make(*functions: Any, **settings: Any) -> RewardPool:
        settings = {"timeout": 0.5, "workers": 2, "batch_timeout": 20, "memory_gb": 0.5, "stop_after": 99} | settings
        pools.append(RewardPool(functions, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
    assert not workers()


def workers() -> list[psutil.Process]:
    """The living worker processes of this one that these tests have started."""
    return [child for child in psutil.Process().children() if child.pid not in _others and _is_worker(child)]


def _is_worker(child: psutil.Process) -> bool:
    try:
        return "--multiprocessing-fork" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()
