"""One call of a reward function, wherever it runs: what came back, what it logged, what went wrong."""

import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokencredit.rewards.contract import Reward, RewardError, Status, read_item
from tokencredit.rewards.functions import Callee
from tokencredit.rewards.processes import IN_WORKER


@dataclass
class Logs:
    """What a function logged: `log_extra(column, values)` and `log_metric(name, value)`, in order."""

    extra: list[tuple[str, list[Any]]] = field(default_factory=list)
    metrics: list[tuple[str, float]] = field(default_factory=list)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Record a column of the completions table."""
        self.extra.append((str(column), list(values)))

    def log_metric(self, name: str, value: float) -> None:
        """Record a scalar."""
        self.metrics.append((str(name), float(value)))


@dataclass
class Outcome:
    """What became of the completions of one call.

    Args:
        status: Of all of them, if the call failed; else of each.
        rewards: One per completion, None without a signal.
        seconds: Wall-clock time of the call.
        logs: What it logged.
        kind: Of failure: the exception's name, `exit code 3`, `signal 11`, `timeout`.
        detail: The traceback, or where it was stuck.
    """

    statuses: list[Status]
    rewards: list[Reward | None]
    seconds: float = 0.0
    logs: Logs = field(default_factory=Logs)
    kind: str = ""
    detail: str = ""
    bad: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Completions whose item alone was no reward: kind and detail."""


def failed(count: int, status: Status, kind: str, detail: str, seconds: float = 0.0) -> Outcome:
    """The outcome of a call that came to nothing."""
    return Outcome([status] * count, [None] * count, seconds, kind=kind, detail=detail)


def call(callee: Callee, columns: Mapping[str, Any]) -> Outcome:
    """Call a function with a part of a batch and read what it gives back.

    Nothing that it raises gets out, but what ends the process does, and out of this process's own an interruption.
    """
    completions: list[Any] = columns["completions"]
    logs = Logs()
    start = time.perf_counter()
    try:
        kwargs = callee.pick(columns, {"log_extra": logs.log_extra, "log_metric": logs.log_metric})
        items = callee(kwargs)
        seconds = time.perf_counter() - start
        items = items.tolist() if hasattr(items, "tolist") else list(items)
        if len(items) != len(completions):
            raise RewardError(f"{len(items)} rewards for {len(completions)} completions")
    except MemoryError:
        raise
    except BaseException as error:  # also what asyncio cancels with, or a library in Rust panics with
        if isinstance(error, KeyboardInterrupt) and IN_WORKER not in os.environ:
            raise
        seconds = time.perf_counter() - start
        outcome = failed(len(completions), "error", type(error).__name__, _traceback(error), seconds)
        outcome.logs = logs
        return outcome
    return _read(items, columns, seconds, logs)


def _read(items: list[Any], columns: Mapping[str, Any], seconds: float, logs: Logs) -> Outcome:
    completions, ids = columns["completions"], columns.get("completion_ids")
    outcome = Outcome([], [], seconds, logs)
    for index, item in enumerate(items):
        try:
            reward = read_item(item, completions[index], None if ids is None else len(ids[index]))
        except Exception as error:  # an object of the user's may fail in any way when it is looked at
            outcome.bad[index] = type(error).__name__, f"{type(error).__name__}: {error}"
            outcome.statuses.append("error")
            outcome.rewards.append(None)
            continue
        outcome.statuses.append("ok" if reward is not None else "abstain")
        outcome.rewards.append(reward)
    return outcome


def _traceback(error: BaseException) -> str:
    """The traceback from the user's function on."""
    ours = error.__traceback__
    while (
        ours is not None
        and ours.tb_next is not None
        and ours.tb_frame.f_globals.get("__name__", "").startswith(
            ("tokencredit.rewards.call", "tokencredit.rewards.functions", "asyncio")
        )
    ):
        ours = ours.tb_next
    return "".join(traceback.format_exception(type(error), error, ours)).rstrip()
