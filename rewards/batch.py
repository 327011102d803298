"""The rewards of one batch: values, and what became of every sample."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokencredit.rewards.call import Outcome
from tokencredit.rewards.contract import Reward, Status

NOT_BEGUN = "batch deadline, not begun"
"""Kind of failure of a sample whose call had no turn before the batch's deadline."""

FAILED: tuple[Status, ...] = ("timeout", "error")


@dataclass(frozen=True)
class Failure:
    """A sample that has no reward because its function failed.

    Args:
        function: Name of the function.
        row: Place of the sample in the batch.
        status: `timeout` or `error`.
        kind: The exception's name, `exit code 3`, `signal 11`, or which deadline passed.
        detail: The traceback, or where the function stood when it was stopped.
    """

    function: str
    row: int
    status: Status
    kind: str
    detail: str


@dataclass
class RewardBatch:
    """One row per completion, one entry per function.

    Args:
        names: Names of the functions `[F]`.
        values: `[B][F]`, the scalar of each reward; None where there is no signal.
        status: `[B][F]`, `ok`, `abstain`, `timeout` or `error`.
        seconds: `[B][F]`, wall-clock time of the call; of a batched call the sample's share.
        rewards: `[B][F]`, the rewards with their tokens or spans; None where there is no signal.
        failures: One per `timeout` or `error`, by function and row.
    """

    names: list[str]
    values: list[list[float | None]] = field(default_factory=list)
    status: list[list[Status]] = field(default_factory=list)
    seconds: list[list[float]] = field(default_factory=list)
    rewards: list[list[Reward | None]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def column(self, name: str) -> list[float | None]:
        """The values of one function `[B]`."""
        place = self.names.index(name)
        return [row[place] for row in self.values]

    def combined(self, weights: Sequence[float] | None = None) -> list[float | None]:
        """One number per completion `[B]`: the weighted sum of its values, as TRL's `reward_weights` make it.

        A value that is not there counts for nothing; without any, or where the sum is not finite, there is none.
        """
        factors = [1.0] * len(self.names) if weights is None else weights
        return [_or_none(_weighted(row, factors)) for row in _with_nan(self.values)]

    def failed_share(self, name: str, *, begun: bool = False) -> float:
        """The share of samples, or of those whose call was begun, for which a function failed."""
        place = self.names.index(name)
        skipped = self._not_begun(name) if begun else set()
        return _share([line[place] for row, line in enumerate(self.status) if row not in skipped], FAILED)

    def begun_share(self, name: str) -> float:
        """The share of samples for which a function was called before the batch's deadline."""
        return 1 - len(self._not_begun(name)) / max(1, len(self.status))

    def _not_begun(self, name: str) -> set[int]:
        return {failure.row for failure in self.failures if failure.function == name and failure.kind == NOT_BEGUN}

    def slowest(self, count: int = 3) -> list[tuple[str, int, float]]:
        """Function, row and seconds of the slowest calls, the slowest first."""
        calls = [
            (name, row, seconds)
            for row, line in enumerate(self.seconds)
            for name, seconds in zip(self.names, line, strict=True)
        ]
        return sorted(calls, key=lambda call: -call[2])[:count]

    def first_failures(self) -> list[Failure]:
        """The first failure of each function and kind."""
        first: dict[tuple[str, str], Failure] = {}
        for failure in self.failures:
            first.setdefault((failure.function, failure.kind), failure)
        return list(first.values())

    def replaced(self, rows: Sequence[int], other: "RewardBatch") -> "RewardBatch":
        """This batch with the samples of another one in these rows."""
        place = {row: number for number, row in enumerate(rows)}

        def merge(mine: list[Any], theirs: list[Any]) -> list[Any]:
            return [theirs[place[row]] if row in place else value for row, value in enumerate(mine)]

        kept = [failure for failure in self.failures if failure.row not in place]
        moved = [replace(failure, row=rows[failure.row]) for failure in other.failures]
        order = {name: number for number, name in enumerate(self.names)}
        return RewardBatch(
            names=self.names,
            values=merge(self.values, other.values),
            status=merge(self.status, other.status),
            seconds=merge(self.seconds, other.seconds),
            rewards=merge(self.rewards, other.rewards),
            failures=sorted([*kept, *moved], key=lambda failure: (order[failure.function], failure.row)),
        )

    def metrics(self) -> dict[str, float]:
        """`rewards/<name>/…` of every function.

        `mean` and `std` (n − 1 in the denominator) of the values there are, left out if there are none; the shares
        `timeout`, `error` and `abstain` of the samples; `seconds_p95`, the time within which 95 % of the calls ended.
        """
        found: dict[str, float] = {}
        for place, name in enumerate(self.names):
            values = [value for row in self.values if (value := row[place]) is not None]
            statuses = [row[place] for row in self.status]
            if values:
                found[f"rewards/{name}/mean"] = _mean(values)
                found[f"rewards/{name}/std"] = _std(values) if len(values) > 1 else 0.0
            for status in ("timeout", "error", "abstain"):
                found[f"rewards/{name}/{status}"] = _share(statuses, (status,))
            found[f"rewards/{name}/seconds_p95"] = _percentile([row[place] for row in self.seconds])
        return found


def _with_nan(values: Sequence[Sequence[float | None]]) -> list[list[float]]:
    return [[math.nan if value is None else value for value in row] for row in values]


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _weighted(row: Sequence[float], factors: Sequence[float]) -> float:
    """The weighted sum of the values there are; NaN if it is not finite."""
    terms = _known([value * factor for value, factor in zip(row, factors, strict=True)])
    try:
        return math.fsum(terms) if terms else math.nan
    except (OverflowError, ValueError):
        return math.nan


def _mean(values: Sequence[float]) -> float:
    try:
        return statistics.fmean(values)
    except OverflowError:
        return math.fsum(value / len(values) for value in values)


def _std(values: Sequence[float]) -> float:
    """n − 1 in the denominator; infinite if it is too large for a float."""
    try:
        return statistics.stdev(values)
    except OverflowError:
        return math.inf


def assemble(names: list[str], outcomes: list[list[Outcome]], rows: int) -> RewardBatch:
    """Put a batch together.

    Args:
        names: Of the functions `[F]`.
        outcomes: Per function its calls in the order of the rows: one for all, or one a row.
        rows: `B`.
    """
    batch = RewardBatch(names)
    batch.values, batch.status = [[] for _ in range(rows)], [[] for _ in range(rows)]
    batch.seconds, batch.rewards = [[] for _ in range(rows)], [[] for _ in range(rows)]
    for name, calls in zip(names, outcomes, strict=True):
        row = 0
        for outcome in calls:
            for place, (status, reward) in enumerate(zip(outcome.statuses, outcome.rewards, strict=True)):
                batch.values[row].append(None if reward is None else reward.value)
                batch.status[row].append(status)
                batch.seconds[row].append(outcome.seconds / len(outcome.statuses))
                batch.rewards[row].append(reward)
                if status in FAILED:
                    kind, detail = outcome.bad.get(place, (outcome.kind, outcome.detail))
                    batch.failures.append(Failure(name, row, status, kind, detail))
                row += 1
    return batch


def _share(statuses: list[Status], which: tuple[str, ...]) -> float:
    return sum(status in which for status in statuses) / max(1, len(statuses))


def _percentile(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1] if values else 0.0


def joined(batches: Sequence[RewardBatch]) -> RewardBatch:
    """Several batches of the same functions as one."""
    whole = RewardBatch(batches[0].names)
    for batch in batches:
        before = len(whole.values)
        whole.values += batch.values
        whole.status += batch.status
        whole.seconds += batch.seconds
        whole.rewards += batch.rewards
        whole.failures += [replace(failure, row=before + failure.row) for failure in batch.failures]
    return whole
