"""Functions that hang, crash or eat the memory: marked, killed, replaced, and nothing is left of them."""

import gc
import inspect
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from pebble import ProcessPool
from pebble.pool.channel import Channel
from pebble.pool.process import PoolManager

from tests.rewards import reward_functions as functions
from tests.rewards.conftest import wait_for, workers
from tokencredit.errors import InputError
from tokencredit.rewards import RewardFunction, RewardPool

MakePool = Callable[..., RewardPool]
GRACE = 5.0
"""How much later than its deadline a batch may be back, with interpreters starting on busy cores."""


def test_five_ways_of_going_wrong_in_a_batch_of_64(make_pool: MakePool) -> None:
    pool = make_pool(functions.obey, workers=4)
    texts = ["fine"] * 64
    for row, text in {3: "sleep", 9: "spin", 20: "exit", 33: "bomb", 50: "raise"}.items():
        texts[row] = text
    assert pool.score(["fine"]).status == [["ok"]]
    assert pool._together[0] > 1, "quick calls go to a worker together, and must not share each other's fate"
    start = time.monotonic()
    batch = pool.score(texts)
    assert time.monotonic() - start < pool.timeout + GRACE
    marked = {row: status[0] for row, status in enumerate(batch.status) if status != ["ok"]}
    # The memory runs out before the time does, unless the machine is busy.
    assert marked == {3: "timeout", 9: "timeout", 20: "error", 33: marked[33], 50: "error"}
    assert [value[0] for value in batch.values] == [None if row in marked else 1.0 for row in range(64)]
    assert batch.failed_share("obey") == 5 / 64
    kinds = {failure.row: failure.kind for failure in batch.failures}
    assert kinds[3] == kinds[9] == "deadline"
    assert kinds[20] == "exit code 3"
    assert kinds[33] in ("MemoryError", "deadline")
    assert kinds[50] == "ArithmeticError"
    assert {row for _, row, _ in batch.slowest(2)} <= {3, 9, 33}
    assert wait_for(lambda: len(workers()) == 4), "at full strength"
    assert pool.score(["fine"] * 8).status == [["ok"]] * 8


def test_each_of_several_calls_has_its_own_time(make_pool: MakePool) -> None:
    """Sixteen of 0.3 s to a task are none that takes longer than 2 s."""
    pool = make_pool(functions.naps, timeout=2, workers=1)
    pool.score(["0"] * 64)
    pool._together = [16]  # as on a machine that has nothing else to do
    assert pool.score(["0.3"] * 16 + ["0"] * 48).status == [["ok"]] * 64


def test_a_stuck_call_takes_no_others_along_at_the_batch_deadline(make_pool: MakePool) -> None:
    pool = make_pool(functions.naps, timeout=5, batch_timeout=2)
    pool.score(["0"] * 64)
    batch = pool.score(["0"] * 10 + ["60"] + ["0"] * 53)
    assert [row for row, (status,) in enumerate(batch.status) if status != "ok"] == [10]
    (failure,) = batch.failures
    assert failure.kind == "batch deadline"
    assert "in naps" in failure.detail, "where it stood is written down before the batch ends, too"
    assert 1 < batch.seconds[10][0] < 2 + GRACE
    assert all(seconds < 1 for row, (seconds,) in enumerate(batch.seconds) if row != 10)


def test_a_stuck_function_does_not_put_the_blame_on_another(make_pool: MakePool) -> None:
    pool = make_pool(functions.naps, functions.count_words, timeout=5, batch_timeout=1, stop_after=2)
    pool.score(["0"])
    batch = pool.score(["60"] * 16)
    no_turn = [failure for failure in batch.failures if failure.kind == "batch deadline, not begun"]
    assert {failure.function for failure in no_turn} == {"naps", "count_words"}
    assert all(re.fullmatch(r"(9\d|100)% of the time went to reward naps", failure.detail) for failure in no_turn)
    with pytest.raises(InputError, match="reward naps: it failed on every sample"):
        pool.score(["60"] * 16)
    assert pool._whole_failures["count_words"] == 0


def test_where_it_was_stuck_is_said(make_pool: MakePool) -> None:
    batch = make_pool(functions.obey).score(["sleep", "spin", "crash"])
    details = {failure.row: failure.detail for failure in batch.failures}
    assert 'reward_functions.py", line' in details[0]
    assert "in match" in details[1]
    assert "Segmentation fault" in details[2]
    assert "string_at" in details[2]
    assert "rewards/worker.py" not in details[0] + details[1], "only the function's own frames"


def test_any_signal_is_an_error(make_pool: MakePool) -> None:
    batch = make_pool(functions.obey, timeout=20).score(["signal 6", "signal 9", "signal 40", "fine"])
    assert [failure.kind for failure in batch.failures] == ["signal 6 (SIGABRT)", "signal 9 (SIGKILL)", "signal 40"]
    assert batch.status[3] == ["ok"]


def test_a_memory_bomb_alone_is_an_error(make_pool: MakePool) -> None:
    (failure,) = make_pool(functions.obey, timeout=20).score(["bomb"]).failures
    assert failure.kind == "MemoryError"
    assert "hoard" in failure.detail


def test_all_64_stuck(make_pool: MakePool) -> None:
    pool = make_pool(functions.obey, batch_timeout=2)
    pool.score(["fine"])
    start = time.monotonic()
    batch = pool.score(["spin"] * 64)
    assert time.monotonic() - start < 2 + GRACE
    assert batch.status == [["timeout"]] * 64
    kinds = {failure.kind for failure in batch.failures}
    assert {"batch deadline, not begun"} < kinds <= {"deadline", "batch deadline", "batch deadline, not begun"}
    assert pool.score(["fine"] * 8).status == [["ok"]] * 8


def test_a_stuck_batched_function_ends_at_the_batch_deadline(make_pool: MakePool) -> None:
    pool = make_pool(RewardFunction(functions.batch_sleeps, batched=True), functions.count_words, batch_timeout=1)
    start = time.monotonic()
    batch = pool.score(["x", "x x"])
    assert time.monotonic() - start < 1 + GRACE
    assert batch.status == [["timeout", "ok"], ["timeout", "ok"]]


@pytest.mark.parametrize("text", ["children", "orphan"])
def test_children_of_a_killed_worker_die_too(make_pool: MakePool, text: str) -> None:
    def sleepers() -> list[int]:
        return [
            p.pid
            for p in psutil.process_iter(["cmdline"])
            if "import time; time.sleep(600)" in (p.info["cmdline"] or [])
        ]

    before = sleepers()
    batch = make_pool(functions.obey, timeout=1).score([text])
    assert batch.status == [["timeout" if text == "children" else "error"]]
    assert wait_for(lambda: sleepers() == before)


@pytest.mark.parametrize("others", ["fine", "exit"])
def test_the_ones_that_die_at_once_are_the_only_ones(make_pool: MakePool, others: str) -> None:
    """However fast they die: nobody else's result is lost, and they are not mistaken for slow."""
    pool = make_pool(functions.obey, timeout=5)
    for _ in range(3):
        batch = pool.score(["exit", *[others] * 5, "exit", "fine"])
        assert [failure.kind for failure in batch.failures] == ["exit code 3"] * (2 if others == "fine" else 7)


def test_what_is_used_of_pebble_is_there() -> None:
    """A private part, in a narrow range of versions."""
    assert set(inspect.signature(PoolManager.find_expired_task).parameters) == {"self", "worker_id"}
    assert "find_expired_task(worker_id)" in inspect.getsource(PoolManager.handle_worker_expiration)
    assert "except LookupError" in inspect.getsource(PoolManager.handle_worker_expiration)
    assert "handle_worker_expiration(expiration)" in inspect.getsource(PoolManager.update_workers)
    assert "self.worker_manager.receive(timeout)" in inspect.getsource(PoolManager.process_next_message)
    assert "self.poll = self._make_poll_method()" in inspect.getsource(Channel.__init__)
    assert "self._pool_manager: PoolManager" in inspect.getsource(ProcessPool.__init__)


def test_workers_that_are_killed_between_batches_are_replaced(make_pool: MakePool) -> None:
    """As by a kernel short of memory."""
    pool = make_pool(functions.obey)
    pool.score(["fine"])
    assert wait_for(lambda: len(workers()) == 2)
    for child in workers():
        child.kill()
    time.sleep(0.5)
    assert pool.score(["fine"] * 8).status == [["ok"]] * 8


def test_an_interrupted_batch_does_not_delay_the_next(make_pool: MakePool) -> None:
    pool = make_pool(functions.obey, timeout=30, batch_timeout=60)
    pool.score(["fine"])
    previous = signal.signal(signal.SIGALRM, lambda number, frame: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    with pytest.raises(KeyboardInterrupt):
        pool.score(["sleep"] * 8)
    signal.signal(signal.SIGALRM, previous)
    start = time.monotonic()
    assert pool.score(["fine"] * 2).status == [["ok"]] * 2
    assert time.monotonic() - start < GRACE


def test_a_fork_that_ends_leaves_the_workers_alone(make_pool: MakePool) -> None:
    pool = make_pool(functions.process_id, workers=1)
    before = pool.score(["x"]).values
    child = os.fork()
    if child == 0:
        pool.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert pool.score(["x"]).values == before


@pytest.mark.slow
def test_thirty_stuck_batches_leak_nothing(make_pool: MakePool) -> None:
    pool = make_pool(functions.obey, timeout=0.2, batch_timeout=0.4)
    this = psutil.Process()

    def stuck(batches: int) -> tuple[int, int, int]:
        """What this process holds after so many, once the pool is at full strength."""
        for _ in range(batches):
            assert {status for (status,) in pool.score(["spin"] * 64).status} == {"timeout"}
        pool.score(["fine"])
        assert wait_for(lambda: len(workers()) == 2)
        gc.collect()
        return this.num_fds(), this.num_threads(), this.memory_info().rss

    files, threads, memory = stuck(5)
    found = stuck(25)
    assert wait_for(lambda: this.num_fds() <= files and this.num_threads() <= threads), found
    assert found[2] - memory < 8 * 2**20, "less than a third of a MiB a batch"
    assert len(list(pool._processes.folder.iterdir())) <= 5


PARENT = """
import os, sys, threading, time
from tokencredit.rewards import RewardPool
from tests.rewards.reward_functions import obey

pool = RewardPool([obey], workers=2, timeout=30)
pool.score(["fine"] * 4)
threading.Thread(target=lambda: pool.score(["spin"] * 2), daemon=True).start()
time.sleep(0.5)
print("ready", flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["time.sleep(60)", "raise SystemExit", "pool.close()", "os._exit(0)"])
def test_workers_end_with_the_process_that_started_them(end: str, tmp_path: Path) -> None:
    """Even those that spin in C, and even if it is killed."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PARENT.format(end=end)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        children: list[psutil.Process] = []
        assert parent.stdout.readline() == "ready\n"
        if parent.poll() is None:
            children = psutil.Process(parent.pid).children(recursive=True)
        if end.startswith("time"):
            assert len(workers_of(children)) == 2
            parent.send_signal(signal.SIGKILL)
        parent.wait(timeout=20)
        assert wait_for(lambda: not [child for child in workers_of(children) if child.is_running()])


def workers_of(children: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for child in children:
        try:
            if "multiprocessing-fork" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found
