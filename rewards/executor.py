"""The worker processes of a pool: started, given calls, asked what became of them, killed."""

import contextlib
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import weakref
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool
from pebble.pool.base_pool import Task
from pebble.pool.process import PoolManager

from tokencredit.errors import InputError
from tokencredit.rewards import worker
from tokencredit.rewards.call import Outcome, failed
from tokencredit.rewards.contract import Status
from tokencredit.rewards.processes import LEFT, Context, kill_group

_MARGIN = 0.1
"""Seconds for a worker to get from looking at the clock to the call."""

START_SECONDS = 120.0
"""How long the first worker may take to import everything; it does not count towards a deadline."""


class Job:
    """Calls on their way to a worker, which makes them one after the other.

    Args:
        task: Its number.
        function: Place of the function.
        calls: The pickled columns of each call.
        rows: Completions of each call.
        timeout: Seconds for all of them.
        future: The pickled outcome of each call.
    """

    def __init__(
        self,
        task: int,
        function: int,
        calls: list[bytes],
        rows: list[int],
        timeout: float,
        future: "Future[list[bytes]]",
    ) -> None:
        self.task, self.function, self.calls, self.rows = task, function, calls, rows
        self.timeout, self.future = timeout, future
        self.broken = False
        self.seen = 0.0
        """When it was first seen running."""
        self.fate: list[Outcome | None] | None = None


class _Manager(PoolManager):
    """Pebble's, but patient with the news of a worker that died at once, and not with workers that never get ready.

    A worker says which task it has taken, and its death may be seen before that is read. Pebble would then give the
    task up for its deadline only, or, if no other task runs, declare the whole pool broken. So a death waits until all
    that the worker had said is read. Those that die before they take a task Pebble would replace for ever.
    """

    def __init__(self, pool: ProcessPool, context: Context, folder: Path) -> None:
        super().__init__(pool._context, context)
        self._folder = folder
        self._quiet = 0
        self._dead: dict[int, tuple[int | None, int]] = {}
        self._falls: list[float] = []
        self.fall: tuple[int, str] | None = None
        """If workers do not get ready: place of the function that they were loading (or -1), and how they ended."""

    def process_next_message(self, timeout: float) -> None:
        channel: Any = self.worker_manager.pool_channel
        with contextlib.suppress(OSError):  # of one that was closed, which Pebble knows how to take
            self._quiet += not channel.poll(0)
        super().process_next_message(timeout)

    def find_expired_task(self, worker_id: int) -> Task:
        for task in list(self.task_manager.tasks.values()):
            if task.worker_id == worker_id:
                return task
        raise LookupError("it had no task")

    def update_workers(self) -> None:
        super().update_workers()  # type: ignore[no-untyped-call]
        for pid, (code, quiet) in list(self._dead.items()):
            # The first look may have begun before the death; whatever the worker said was there at the second.
            if self._quiet >= quiet + 2:
                del self._dead[pid]
                super().handle_worker_expiration((pid, code))

    def handle_worker_expiration(self, expiration: tuple[int, int | None]) -> None:
        pid, code = expiration
        place = worker.read_fall(self._folder, pid)
        if place is None:
            self._dead[pid] = code, self._quiet
            return
        now = time.monotonic()
        self._falls = [*(fall for fall in self._falls if now - fall < START_SECONDS), now]
        if len(self._falls) > 2 * self.context.workers:
            self.fall = place, _end(code)
            raise BrokenProcessPool(f"workers end before they are ready: {_end(code)}")


class Processes:
    """The worker processes, from their start to their end."""

    def __init__(self, specs: list[bytes], workers: int, memory_gb: float, main: tuple[str, bool] | None) -> None:
        self._owner = os.getpid()
        self.folder = Path(tempfile.mkdtemp(prefix="tokencredit-rewards-"))
        (self.folder / worker.TEMPORARY).mkdir()
        context = Context()
        self._pool = ProcessPool(
            max_workers=workers,
            initializer=worker.start,
            initargs=(os.getpid(), specs, str(self.folder), _import_path(), memory_gb, main),
            context=context,
        )
        self._manager = self._pool._pool_manager = _Manager(self._pool, context, self.folder)
        self._functions = len(specs)
        self._ready: Future[list[str]] = Future()
        self._over = threading.Event()
        self._finalizer = weakref.finalize(self, _close, os.getpid(), self._pool, self.folder, self._over)
        # Workers end with the thread that started them: it has to last as long as the pool, which that of a caller
        # may not.
        threading.Thread(target=_keep, args=(self._pool, self._ready, self._over), daemon=True).start()

    @property
    def healthy(self) -> bool:
        """Whether it takes tasks, or is about to."""
        return not self.closed and (not self._ready.done() or bool(self._pool.active))

    @property
    def closed(self) -> bool:
        """Whether it was closed, if only just now, from another thread."""
        return not self._finalizer.alive

    @property
    def inherited(self) -> bool:
        """Whether this process is a fork of the one whose workers these are."""
        return os.getpid() != self._owner

    def wait_until_ready(self) -> list[str]:
        """Wait for the first worker.

        Returns:
            Per function why it could not be loaded there, or "".

        Raises:
            InputError: There is none in time, all end before they are ready, or it was closed meanwhile.
        """
        try:
            return self._ready.result(timeout=START_SECONDS)
        except RuntimeError:
            if self.closed:
                raise closed_meanwhile() from None
            if self._manager.fall is None:
                raise
            guilty, end = self._manager.fall
            if guilty < 0:
                problem = f"workers end before they are ready ({end})"
                raise InputError("rewards", problem, "raise memory_gb, or look for what kills them") from None
            reason = f"it ends when the module is imported: {end}"
            return [reason if place == guilty else "" for place in range(self._functions)]
        except TimeoutError:
            problem = f"no worker was ready after {START_SECONDS:.0f} s"
            raise InputError(
                "rewards", problem, "let the functions' modules import faster, or raise memory_gb"
            ) from None

    def submit(self, task: int, function: int, parts: list[dict[str, Any]], timeout: float, end: float) -> Job:
        """Send calls to a worker, one per part of the batch."""
        rows = [len(part["completions"]) for part in parts]
        return self.send(task, function, [_packed(part) for part in parts], rows, timeout, end)

    def send(self, task: int, function: int, calls: list[bytes], rows: list[int], timeout: float, end: float) -> Job:
        """The same with columns that are pickled already."""
        future: Future[list[bytes]]
        # So that the last call which a worker begins of several has its whole time.
        whole = timeout + (worker.TOGETHER_SECONDS if len(calls) > 1 else 0)
        try:
            future = self._pool.schedule(worker.run, args=(task, function, calls, rows, whole, end), timeout=whole)
        except RuntimeError as error:  # it broke since the batch began
            future = Future()
            future.set_exception(error)
        return Job(task, function, calls, rows, timeout, future)

    def outcomes(self, job: Job) -> list[Outcome | None]:
        """What became of the calls of a job that is over.

        Returns:
            One per call; None for those that were not made, since one before them was slow, stuck or crashed.
        """
        if job.fate is None:
            job.fate = self._over_with(job)
        return job.fate

    def unmade(self, job: Job) -> list[int]:
        """Places of the calls that the worker of a job has not made and will not make any more."""
        if job.future.done():
            return [place for place, outcome in enumerate(self.outcomes(job)) if outcome is None]
        if len(job.calls) == 1 or not job.future.running():
            return []
        job.seen = job.seen or time.monotonic()
        if time.monotonic() - job.seen < worker.TOGETHER_SECONDS + _MARGIN:
            return []
        trace = worker.read_trace(self.folder, job.task, remove=False)
        return list(range(trace.place + 1, len(job.calls))) if trace else []

    def _over_with(self, job: Job) -> list[Outcome | None]:
        error = job.future.exception()
        if error is None:
            made = job.future.result()
            found: list[Outcome | None] = [_loaded(*pair) for pair in zip(made, job.rows, strict=False)]
            return found + [None] * (len(job.rows) - len(made))
        if isinstance(error, TimeoutError):
            return self._one_failed(job, "timeout", "deadline", job.timeout)
        if isinstance(error, ProcessExpired):
            kill_group(error.pid)  # its children
            return self._one_failed(job, "error", _end(error.exitcode), 0.0)
        if len(job.calls) > 1:  # whose fault it was is seen when each is alone
            return [None] * len(job.calls)
        job.broken = True
        return [failed(rows, "error", type(error).__name__, f"the pool broke: {error}") for rows in job.rows]

    def late(self, job: Job) -> list[Outcome | None]:
        """The same for a job that is not over when the batch has to be; None for calls that were not begun."""
        if not job.future.running():
            return [None] * len(job.rows)
        return self._one_failed(job, "timeout", "batch deadline", 0.0)

    def _one_failed(self, job: Job, status: Status, kind: str, seconds: float) -> list[Outcome | None]:
        """What was written down, what failed, and None for the rest."""
        trace = worker.read_trace(self.folder, job.task)
        made = worker.read_made(self.folder, job.task)
        found: list[Outcome | None] = [_loaded(*pair) for pair in zip(made, job.rows, strict=False)]
        found += [None] * (len(job.rows) - len(made))
        guilty = trace.place if trace else 0 if len(job.calls) == 1 else None
        if guilty is not None and found[guilty] is None:
            took = seconds or (time.monotonic() - trace.begun if trace else 0.0)
            found[guilty] = failed(job.rows[guilty], status, kind, trace.stack if trace else "", took)
        return found

    def close(self) -> None:
        self._finalizer()
        with contextlib.suppress(InvalidStateError):
            self._ready.set_exception(RuntimeError("the pool was closed"))


def closed_meanwhile() -> InputError:
    """What a thread gets that waits for a batch while another closes the pool."""
    return InputError("RewardPool", "it was closed while it scored", "close it after its last batch")


def _packed(part: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps(part)
    except Exception as error:
        problem = f"a column cannot be sent to another process ({type(error).__name__}: {error})"
        return pickle.dumps(failed(len(part["completions"]), "error", type(error).__name__, problem))


def _loaded(outcome: bytes, rows: int) -> Outcome:
    try:
        return pickle.loads(outcome)  # type: ignore[no-any-return]
    except Exception as error:  # an object of the user's that cannot be made here
        return failed(rows, "error", type(error).__name__, f"what it logged: {error}")


def _keep(pool: ProcessPool, ready: "Future[list[str]]", over: threading.Event) -> None:
    try:
        pool.schedule(worker.ready).add_done_callback(lambda done: _pass_on(done, ready))
    except Exception as error:
        ready.set_exception(error)
    over.wait()


def _pass_on(done: "Future[list[str]]", to: "Future[list[str]]") -> None:
    error = done.exception() if not done.cancelled() else RuntimeError("the pool was closed")
    with contextlib.suppress(InvalidStateError):  # it was closed
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
        # Real-time signals have no names.
        names = {number.value: f" ({number.name})" for number in signal.Signals}
        return f"signal {-code}{names.get(-code, '')}"
    return f"exit code {0 if code == LEFT else code}"
