"""Reward functions in processes of their own, under deadlines."""

import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from itertools import zip_longest
from typing import Any, Self

from tokencredit.errors import InputError, plain
from tokencredit.rewards.batch import FAILED, NOT_BEGUN, Failure, RewardBatch, assemble
from tokencredit.rewards.call import Outcome, call, failed
from tokencredit.rewards.contract import Completion
from tokencredit.rewards.executor import Job, Processes, closed_meanwhile
from tokencredit.rewards.functions import Callee, Function, RewardFunction, load, main_script, named, pickled
from tokencredit.rewards.processes import IN_WORKER

_log = logging.getLogger("tokencredit")


class RewardPool:
    """Scores completions with functions that may be slow, get stuck or crash.

    Every function is called for each completion on its own, in a worker process. A call that is not back by its
    deadline is killed with its process, and so is everything unfinished when the batch's deadline passes; dead workers
    are replaced. Such a sample has no signal for that function: it is counted as `timeout` or `error`, never as 0.
    `batched` functions are called once, under the deadline of the batch; `trusted` ones in this process, without any.

    Workers are started anew rather than forked, know nothing of ranks and accelerators, do not run the main script
    again (unless a function belongs to it), and end with this process. The pool works from any thread, one batch at a
    time.

    Args:
        functions: Built-in names, `module:function`, functions, or `RewardFunction`s that say more.
        timeout: Seconds for one sample.
        workers: Processes; by default the cores, at most 8, divided by the ranks on this machine.
        batch_timeout: Seconds for one batch, however many of its samples are stuck; by default 10 × `timeout`.
        memory_gb: Address space of a worker in GiB.
        alarm_share: Warn when more than this share of the samples of a function fails.
        stop_after: Stop after so many batches in a row of which a function failed on every sample.

    Raises:
        InputError: A function cannot be found, refuses its arguments, or a setting is impossible.
    """

    def __init__(
        self,
        functions: Sequence[str | Function | RewardFunction],
        *,
        timeout: float = 10.0,
        workers: int | None = None,
        batch_timeout: float | None = None,
        memory_gb: float = 8.0,
        alarm_share: float = 0.1,
        stop_after: int = 3,
    ) -> None:
        _check_settings(timeout, workers, batch_timeout, memory_gb, stop_after)
        if os.environ.get(IN_WORKER):
            remedy = "put what a script does under `if __name__ == '__main__':`"
            raise InputError("RewardPool", "a worker of a pool would start another", remedy)
        self.callees = [load(spec) for spec in named(functions)]
        self.names = [callee.spec.name for callee in self.callees]
        self.timeout = timeout
        self.batch_timeout = 10 * timeout if batch_timeout is None else batch_timeout
        for callee in self.callees:
            callee.check_deadline(self.batch_timeout if callee.spec.batched else timeout)
        self.workers = _default_workers() if workers is None else workers
        self.memory_gb, self.alarm_share, self.stop_after = memory_gb, alarm_share, stop_after
        specs = [callee.spec for callee in self.callees]
        self._specs = pickled(specs)
        self._main = main_script(specs, self._specs)
        self._one_at_a_time = threading.RLock()  # a signal's handler may close it in the midst of a batch
        self._tasks = 0
        self._together = [1] * len(self.callees)
        self._whole_failures: Counter[str] = Counter()
        self._alarmed: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self._processes: Processes | None = None
        self._start()

    def score(
        self,
        completions: Sequence[Completion],
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> RewardBatch:
        """Score a batch.

        Args:
            completions: Texts or chat messages `[B]`.
            log_extra: Gets what functions logged as columns, `[B]` values each, None for samples without one.
            log_metric: Gets the scalars that functions logged.
            **columns: `prompts`, `completion_ids` and the data's columns, lists `[B]`. Anything else, such as TRL's
                `trainer_state`, goes to functions that name it.

        Returns:
            Values, statuses and seconds.

        Raises:
            InputError: A function needs a column that is not there, a column has another length, or a function failed
                on every sample of `stop_after` batches in a row.
        """
        given = _checked_columns({**columns, "completions": completions})
        for callee in self.callees:
            callee.check_columns(set(given))
        rows = len(completions)
        with self._one_at_a_time:
            outcomes = self._outcomes(given, rows) if rows else [[] for _ in self.callees]
        batch = assemble(self.names, outcomes, rows)
        for calls in outcomes:
            _replay(calls, rows, log_extra, log_metric)
        self._tell(batch)
        if rows:
            self._watch(batch)
        return batch

    def close(self) -> None:
        """Kill the workers. A batch that is being scored in another thread ends; another batch would start new ones."""
        processes = self._processes
        if processes is not None and not processes.inherited:
            processes.close()
            with self._one_at_a_time:
                self._stop()

    def _stop(self) -> None:
        if self._processes is not None:
            self._processes.close()
            self._processes = None

    @property
    def _running(self) -> Processes:
        if self._processes is None or self._processes.closed:
            raise closed_meanwhile()
        return self._processes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        """Have workers, if any function needs them; they get ready while something else goes on."""
        if self._processes is not None and not self._processes.healthy:
            self._stop()
        if self._processes is None and any(not callee.spec.in_process for callee in self.callees):
            self._processes = Processes(self._specs, self.workers, self.memory_gb, self._main)

    def _outcomes(self, columns: dict[str, Any], rows: int) -> list[list[Outcome]]:
        """Per function its calls, in the order of the rows."""
        self._start()
        if self._processes is not None:
            self._check_loaded(self._processes.wait_until_ready())
        end = time.monotonic() + self.batch_timeout
        clean = False
        try:
            jobs = self._submit(columns, rows, end)
            here = {
                i: [call(callee, part) for part in _parts(columns, rows, callee.spec.batched)]
                for i, callee in self._numbered(in_process=True)
            }
            found, clean = self._results([job for part in jobs.values() for job in part], end)
            there = {i: [outcome for job in part for outcome in found[job.task]] for i, part in jobs.items()}
        finally:
            if not clean:
                # Nothing of this batch may still run, or wait to run, when the next one comes.
                self._stop()
        self._start()
        self._name_the_slow(there)
        for i, outcomes in there.items():
            self._together[i] = _how_many_together(outcomes)
        return [(here | there)[i] for i in range(len(self.callees))]

    def _name_the_slow(self, outcomes: dict[int, list[Outcome]]) -> None:
        """Say of what had no turn which function had used the time."""
        spent = {i: math.fsum(outcome.seconds for outcome in calls) for i, calls in outcomes.items()}
        total = math.fsum(spent.values())
        for outcome in (outcome for calls in outcomes.values() for outcome in calls if outcome.kind == NOT_BEGUN):
            slow = max(spent, key=spent.__getitem__)
            if total:
                outcome.detail = f"{spent[slow] / total:.0%} of the time went to reward {self.names[slow]}"

    def _check_loaded(self, reasons: list[str]) -> None:
        for name, reason in zip(self.names, reasons, strict=True):
            if reason:
                problem = f"it cannot be loaded in a worker ({reason.strip().splitlines()[-1]})"
                remedy = "let its module be imported anywhere, by any process"
                raise InputError(f"reward {name}", problem, remedy)

    def _numbered(self, *, in_process: bool) -> list[tuple[int, Callee]]:
        return [(i, callee) for i, callee in enumerate(self.callees) if callee.spec.in_process == in_process]

    def _submit(self, columns: dict[str, Any], rows: int, end: float) -> dict[int, list[Job]]:
        """Send the calls of all functions, by turns: one that is stuck is not to use up the time of the others."""
        tasks = {i: self._tasks_of(i, columns, rows) for i, _ in self._numbered(in_process=False)}
        jobs: dict[int, list[Job]] = {i: [] for i in tasks}
        for turn in zip_longest(*tasks.values()):
            for i, parts in zip(tasks, turn, strict=True):
                if parts is not None:
                    self._tasks += 1
                    timeout = self.batch_timeout if self.callees[i].spec.batched else self.timeout
                    jobs[i].append(self._running.submit(self._tasks, i, parts, timeout, end))
        return jobs

    def _tasks_of(self, place: int, columns: dict[str, Any], rows: int) -> list[list[dict[str, Any]]]:
        callee = self.callees[place]
        parts = _parts(callee.relevant(columns), rows, callee.spec.batched)
        # Several quick calls make one task; but enough tasks that all workers have some.
        size = max(1, min(self._together[place], len(parts) // (4 * self.workers)))
        return [parts[start : start + size] for start in range(0, len(parts), size)]

    def _results(self, jobs: list[Job], end: float) -> tuple[dict[int, list[Outcome]], bool]:
        """Wait for jobs until a point in time; calls that come after a slow or stuck one are made alone, elsewhere.

        Returns:
            Task → outcomes of its calls, and whether nothing is left in the workers.
        """
        alone: dict[tuple[int, int], Job] = {}
        waiting = list(jobs)
        while waiting and (left := end - time.monotonic()) > 0:
            wait([job.future for job in waiting], timeout=min(left, _LOOK_SECONDS))
            _ = self._running  # or it ends here
            again = self._again(waiting, alone, end)
            waiting = [job for job in waiting if not job.future.done()] + again
        late = {job.task for job in waiting if not job.future.done()}
        fates = {job.task: self._fate(job, late) for job in [*jobs, *alone.values()]}
        for (task, place), single in alone.items():
            if fates[task][place] is None:
                (fates[task][place],) = fates[single.task]
        clean = not late and not any(job.broken for job in [*jobs, *alone.values()])
        return {
            job.task: [
                failed(rows, "timeout", NOT_BEGUN, "") if outcome is None else outcome
                for outcome, rows in zip(fates[job.task], job.rows, strict=True)
            ]
            for job in jobs
        }, clean

    def _fate(self, job: Job, late: set[int]) -> list[Outcome | None]:
        return list(self._running.late(job) if job.task in late else self._running.outcomes(job))

    def _again(self, jobs: list[Job], alone: dict[tuple[int, int], Job], end: float) -> list[Job]:
        """Send the calls that will not be made otherwise, each alone, once."""
        found = []
        for job in jobs:
            for place in self._running.unmade(job):
                if len(job.calls) > 1 and (job.task, place) not in alone:
                    self._tasks += 1
                    calls, rows = [job.calls[place]], [job.rows[place]]
                    single = self._running.send(self._tasks, job.function, calls, rows, job.timeout, end)
                    alone[job.task, place] = single
                    found.append(single)
        return found

    def _tell(self, batch: RewardBatch) -> None:
        """Log the first failure of each kind, with its traceback."""
        for failure in batch.first_failures():
            if (failure.function, failure.kind) not in self._told:
                self._told.add((failure.function, failure.kind))
                _log.warning("%s", describe(failure))

    def _watch(self, batch: RewardBatch) -> None:
        nothing_ran = all(batch.begun_share(name) == 0 for name in self.names)
        for name in self.names:
            if not nothing_ran and batch.begun_share(name) == 0:
                continue  # others used up the time: no fault of this one
            share = batch.failed_share(name, begun=not nothing_ran)
            if share > self.alarm_share and name not in self._alarmed:
                slow = ", ".join(f"{who}[{row}] {seconds:.1f} s" for who, row, seconds in batch.slowest())
                _log.warning("%s", plain(f"reward {name} failed on {share:.0%} of a batch; slowest: {slow}"))
            (self._alarmed.add if share > self.alarm_share else self._alarmed.discard)(name)
            self._whole_failures[name] = self._whole_failures[name] + 1 if share == 1 else 0
            if self._whole_failures[name] >= self.stop_after:
                first = next(failure for failure in batch.failures if failure.function == name)
                last_line = first.detail.splitlines()[-1] if first.detail else first.kind
                problem = f"it failed on every sample of {self.stop_after} batches in a row ({first.kind}: {last_line})"
                remedy = "test it with `tokencredit reward check`, or raise the deadline"
                raise InputError(f"reward {name}", problem, remedy)


def describe(failure: Failure) -> str:
    """A failure as text that steers no terminal: which function, which sample, what, and where."""
    head = f"reward {failure.function}, sample {failure.row}: {failure.status} ({failure.kind})"
    return plain(f"{head}\n{failure.detail}" if failure.detail else head)


_QUICK = 0.02
_TOGETHER = 16
_LOOK_SECONDS = 0.1


def _how_many_together(outcomes: list[Outcome]) -> int:
    """How many calls are to make one task: sending one costs more than most rewards, and stuck ones are to be alone."""
    if any(status in FAILED for outcome in outcomes for status in outcome.statuses if outcome.kind):
        return 1
    slowest = sorted(outcome.seconds for outcome in outcomes)[-1 - len(outcomes) // 20]
    return max(1, min(_TOGETHER, int(_QUICK / max(slowest, 1e-6))))


def _parts(columns: Mapping[str, Any], rows: int, whole: bool) -> list[dict[str, Any]]:
    """The columns of each call: all rows, or one."""
    if whole:
        return [dict(columns)]
    lists = {name: value for name, value in columns.items() if isinstance(value, list)}
    rest = {name: value for name, value in columns.items() if not isinstance(value, list)}
    return [rest | {name: value[row : row + 1] for name, value in lists.items()} for row in range(rows)]


def _checked_columns(columns: dict[str, Any]) -> dict[str, Any]:
    rows = len(columns["completions"])
    found = {}
    for name, value in columns.items():
        found[name] = _as_list(value)
        if isinstance(found[name], list) and len(value) != rows:
            problem = f"{len(value)} values for {rows} completions"
            raise InputError(f"column {name!r}", problem, "give one per completion")
    return found


def _as_list(value: Any) -> Any:
    """A column as a list, also if it is an array, a tensor or a series; anything else as it is."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return list(value)
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) >= 1:
        return value.tolist()
    return value


def _replay(
    calls: list[Outcome],
    rows: int,
    log_extra: Callable[[str, list[Any]], None] | None,
    log_metric: Callable[[str, float], None] | None,
) -> None:
    """Hand on what one function logged, in the order of the rows."""
    columns: dict[str, list[Any]] = {}
    row = 0
    for outcome in calls:
        for column, values in outcome.logs.extra:
            place = columns.setdefault(column, [None] * rows)
            size = len(outcome.statuses)
            place[row : row + size] = (values + [None] * size)[:size]
        for name, value in outcome.logs.metrics:
            if log_metric is not None:
                log_metric(name, value)
        row += len(outcome.statuses)
    for column, values in columns.items():
        if log_extra is not None:
            log_extra(column, values)


def _default_workers() -> int:
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // ranks))


def _check_settings(
    timeout: float, workers: int | None, batch_timeout: float | None, memory_gb: float, stop_after: int
) -> None:
    amounts = {"timeout": timeout, "batch_timeout": batch_timeout, "memory_gb": memory_gb}
    for name, value in amounts.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(name, f"{value!r} is not a positive number", "give seconds (or GiB) above 0")
    for name, count in {"workers": workers, "stop_after": stop_after}.items():
        if count is not None and count < 1:
            raise InputError(name, f"{count!r} is too few", "give 1 or more")
