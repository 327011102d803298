"""The worker processes of a pool: started, given calls, asked what became of them, killed."""

import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool
from pebble.pool.base_pool import Task
from pebble.pool.process import PoolManager

from tokencredit.errors import InputError
from tokencredit.rewards import worker
from tokencredit.rewards.call import Outcome, failed
from tokencredit.rewards.processes import LEFT, Context, kill_group

_LOOKS = 20

START_SECONDS = 120.0
"""How long the first worker may take to import everything; it does not count towards a deadline."""


class Job:
    """A call on its way."""

    def __init__(self, task: int, rows: int, future: "Future[bytes]", timeout: float) -> None:
        self.task, self.rows, self.future, self.timeout = task, rows, future, timeout
        self.broken = False


class _Manager(PoolManager):
    """Pebble's, but patient with the news of a worker that died at once.

    A worker says which task it has taken, and its death may be seen before that is read. Pebble would then give the
    task up for its deadline only, or, if no other task runs, declare the whole pool broken.
    """

    def find_expired_task(self, worker_id: int) -> Task:
        for _ in range(_LOOKS):
            for task in list(self.task_manager.tasks.values()):
                if task.worker_id == worker_id:
                    return task
            time.sleep(0.01)
        raise LookupError("it had no task")


class Processes:
    """The worker processes, from their start to their end."""

    def __init__(self, specs: list[bytes], workers: int, memory_gb: float, main: str | None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tokencredit-rewards-"))
        context = Context()
        self._pool = ProcessPool(
            max_workers=workers,
            initializer=worker.start,
            initargs=(os.getpid(), specs, str(self.folder), _import_path(), memory_gb, main),
            context=context,
        )
        self._pool._pool_manager = _Manager(self._pool._context, context)
        self._ready: Future[list[str]] = Future()
        self._over = threading.Event()
        self._finalizer = weakref.finalize(self, _close, os.getpid(), self._pool, self.folder, self._over)
        # Workers end with the thread that started them: it has to last as long as the pool, which that of a caller
        # may not.
        threading.Thread(target=_keep, args=(self._pool, self._ready, self._over), daemon=True).start()

    @property
    def healthy(self) -> bool:
        """Whether it takes tasks, or is about to."""
        return not self._ready.done() or bool(self._pool.active)

    def wait_until_ready(self) -> list[str]:
        """Wait for the first worker.

        Returns:
            Per function why it could not be loaded there, or "".

        Raises:
            InputError: There is none in time.
        """
        try:
            return self._ready.result(timeout=START_SECONDS)
        except TimeoutError:
            problem = f"no worker was ready after {START_SECONDS:.0f} s"
            raise InputError(
                "rewards", problem, "let the functions' modules import faster, or raise memory_gb"
            ) from None

    def submit(self, task: int, place: int, columns: Mapping[str, Any], timeout: float) -> Job:
        rows = len(columns["completions"])
        try:
            pickled = pickle.dumps(columns)
        except Exception as error:
            future: Future[bytes] = Future()
            problem = f"a column cannot be sent to another process ({type(error).__name__}: {error})"
            future.set_result(pickle.dumps(failed(rows, "error", type(error).__name__, problem)))
            return Job(task, rows, future, timeout)
        future = self._pool.schedule(worker.run, args=(task, place, pickled, timeout), timeout=timeout)
        return Job(task, rows, future, timeout)

    def outcome(self, job: Job) -> Outcome:
        """What became of a job that is over."""
        error = job.future.exception()
        if error is None:
            try:
                return pickle.loads(job.future.result())  # type: ignore[no-any-return]
            except Exception as problem:  # an object of the user's that cannot be made here
                return failed(job.rows, "error", type(problem).__name__, f"what it logged: {problem}")
        if isinstance(error, TimeoutError):
            return failed(job.rows, "timeout", "deadline", self.trace(job), job.timeout)
        if isinstance(error, ProcessExpired):
            kill_group(error.pid)  # its children
            return failed(job.rows, "error", _end(error.exitcode), self.trace(job))
        job.broken = True
        return failed(job.rows, "error", type(error).__name__, f"the pool broke: {error}")

    def trace(self, job: Job) -> str:
        """Where the function stood before it was stopped."""
        return worker.read_trace(self.folder, job.task)

    def close(self) -> None:
        self._finalizer()


def _keep(pool: ProcessPool, ready: "Future[list[str]]", over: threading.Event) -> None:
    try:
        pool.schedule(worker.ready).add_done_callback(lambda done: _pass_on(done, ready))
    except Exception as error:
        ready.set_exception(error)
    over.wait()


def _pass_on(done: "Future[list[str]]", to: "Future[list[str]]") -> None:
    error = done.exception() if not done.cancelled() else RuntimeError("the pool was closed")
    if error is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())


def _close(owner: int, pool: ProcessPool, folder: Path, over: threading.Event) -> None:
    if os.getpid() != owner:  # a fork that ends: the workers are not its own
        return
    pool.stop()
    pool.join()
    over.set()
    shutil.rmtree(folder, ignore_errors=True)


def _import_path() -> list[str]:
    # An empty entry stands for the working directory, whichever that will be.
    return [os.path.abspath(entry or ".") for entry in sys.path]


def _end(code: int | None) -> str:
    """How a process ended, in words."""
    if code == worker.OUT_OF_MEMORY:
        return "MemoryError"
    if code is not None and code < 0:
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"exit code {0 if code == LEFT else code}"
