"""Arms of a cross-sampling sweep: thresholds from rates, and figures with bands over problems."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokencredit.analysis.cross_samples import Sampler
from tokencredit.analysis.statistics import percentile_interval, resampled_totals
from tokencredit.scoring.cross_decode import Decoding, Trace

Kind = Literal["primary", "intervention", "rule", "control"]
Direction = Literal["forward", "reverse"]
Interval = tuple[float, float]

_ROUNDS = 3
# Two-sided, 99.9 %: a control that is off by more was not drawn at the rate it was asked for.
_SURE = 3.29


@dataclass
class Arm:
    """Answers of one way to write.

    Args:
        direction: `forward` starts from the first model and takes tokens of the second, `reverse` the other way.
        kind: `primary` and `intervention` write alone; `rule` replaces where the rule says so; `control` at random at
            the rate of the rule.
        decoding: How it wrote.
        traces: By problem.
        asked: The thresholds, rates and budgets that came to these answers.
        rewards: By problem; None where there is no signal.
        of: For a control, the place of its rule's arm.
    """

    direction: Direction
    kind: Kind
    decoding: Decoding
    traces: list[list[Trace]]
    asked: list[str]
    rewards: list[list[float | None]] | None = None
    of: int | None = None

    @property
    def counts(self) -> NDArray[np.float64]:
        """Of each problem: tokens, flagged, used, effective, sum of rewards, answers with a reward: `[N, 6]`."""
        rewards = self.rewards or [[None] * len(traces) for traces in self.traces]
        rows = []
        for traces, values in zip(self.traces, rewards, strict=True):
            there = [value for value in values if value is not None]
            parts = (
                [sum(map(len, (trace.tokens for trace in traces)))]
                + [sum(sum(getattr(trace, name)) for trace in traces) for name in ("flagged", "used", "effective")]
                + [math.fsum(there), len(there)]
            )
            rows.append(parts)
        return np.asarray(rows, dtype=np.float64)

    @property
    def share_used(self) -> float:
        """Share of the tokens that the intervention wrote."""
        totals = self.counts.sum(axis=0)
        return float(totals[2] / totals[0])

    def same_answers(self, other: "Arm") -> bool:
        """Whether it replaced the same tokens, and so is another name for the same thing."""
        return [[(t.tokens, t.used) for t in traces] for traces in self.traces] == [
            [(t.tokens, t.used) for t in traces] for traces in other.traces
        ]


def calibrated(sampler: Sampler, decoding: Decoding, *, rate: float, swapped: bool, pilot: int) -> float:
    """The ε at which a rule flags a share of the tokens, from the first so many problems.

    The scores' quantile on answers of the primary alone, taken anew on answers written with the ε so found, because
    replacing a token changes what follows [O]. Where scores are tied the share stays below.

    Args:
        sampler: Makes the answers.
        decoding: How they are written, apart from ε and a budget.
        rate: The share, in (0, 1).
        swapped: Whether the second model is the primary.
        pilot: How many problems.
    """
    if decoding.rule == "random":
        return 1 - rate
    epsilon = math.inf
    for turn in range(_ROUNDS):
        made = replace(decoding, epsilon=epsilon, budget=None)
        traces = sampler.run(made, swapped=swapped, first=pilot, what=f"pilot for rate {rate:g}, turn {turn + 1}")
        found = quantile([score for answers in traces for trace in answers for score in trace.scores], rate)
        if found == epsilon:
            break
        epsilon = found
    return epsilon


def quantile(scores: Sequence[float], rate: float) -> float:
    """The smallest of the scores above which at most a share of them lies; −∞ for all."""
    ranked = sorted(scores, reverse=True)
    place = math.floor(rate * len(ranked) + 1e-9)
    return ranked[place] if place < len(ranked) else -math.inf


def rate_matches(arm: Arm, rule: Arm) -> bool:
    """Whether a control's share lies where a draw at the rule's share puts it, with 99.9 % certainty."""
    rate, tokens = rule.share_used, arm.counts[:, 0].sum()
    return abs(arm.share_used - rate) <= _SURE * math.sqrt(max(rate * (1 - rate), 1e-12) / tokens)


def figures(arms: Sequence[Arm], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """One row per arm: shares, mean reward, and the share of the gap recovered, with 95 % intervals over problems.

    gap recovered = (r − r_primary) / (r_intervention − r_primary)

    Problems are resampled with replacement, the same ones for all arms; a share of the gap is given only where the
    interval of the gap itself leaves out 0, because otherwise it has no sign.
    """
    totals = [resampled_totals(arm.counts, resamples=resamples, seed=seed) for arm in arms]
    sums = [arm.counts.sum(axis=0) for arm in arms]
    means, values = [mean(total) for total in totals], [mean(total[None])[0] for total in sums]
    ends = {(arm.direction, arm.kind): place for place, arm in enumerate(arms)}
    rows = []
    for place, arm in enumerate(arms):
        tokens, flagged, used, effective, _, _ = sums[place]
        row: dict[str, Any] = {
            "direction": arm.direction,
            "kind": arm.kind,
            "rule": arm.decoding.rule,
            "epsilon": arm.decoding.threshold,
            "budget": arm.decoding.budget,
            "asked": ", ".join(arm.asked),
            "of": arm.of,
            "answers": sum(map(len, arm.traces)),
            "tokens": int(tokens),
            "flagged": flagged / tokens,
            "used": used / tokens,
            "effective": effective / tokens,
            "used_interval": _interval(totals[place][:, 2] / totals[place][:, 0]),
            "rate_matched": rate_matches(arm, arms[arm.of]) if arm.of is not None else None,
        }
        rows.append(row)
        if arm.rewards is None:
            continue
        low, high = (ends[arm.direction, kind] for kind in ("primary", "intervention"))
        row |= {"reward": values[place], "reward_interval": _interval(means[place]), "scored": int(sums[place][5])}
        row |= dict.fromkeys(("gap_recovered", "gap_recovered_interval", "over_control", "over_control_interval"))
        if _leaves_out_zero(means[high] - means[low]):
            row["gap_recovered"] = (values[place] - values[low]) / (values[high] - values[low])
            with np.errstate(divide="ignore", invalid="ignore"):
                row["gap_recovered_interval"] = _interval((means[place] - means[low]) / (means[high] - means[low]))
        control = next((other for other, item in enumerate(arms) if item.of == place), None)
        if control is not None:
            row["over_control"] = values[place] - values[control]
            row["over_control_interval"] = _interval(means[place] - means[control])
    return rows


def mean(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean reward of summed counts `[R, 6]`; NaN where nothing has one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(totals[:, 4] / totals[:, 5])


def settings_of(decoding: Decoding) -> dict[str, Any]:
    """What all arms have in common."""
    return {name: value for name, value in asdict(decoding).items() if name not in ("epsilon", "budget")}


def _interval(resampled: NDArray[np.float64]) -> Interval | None:
    found = resampled[np.isfinite(resampled)]
    if not len(found):
        return None
    low, high = percentile_interval(found)
    return float(low), float(high)


def _leaves_out_zero(resampled: NDArray[np.float64]) -> bool:
    interval = _interval(resampled)
    return interval is not None and (interval[0] > 0 or interval[1] < 0)
