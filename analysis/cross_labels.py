"""What comes of a flagged position: the answer goes on from either model's token, and the reward compares the ends.

The labels are those of R2R, "Roads to Rome", arXiv 2505.21600, where a verifier compares two continuations; here the
reward does, and both continuations are the primary's, by the same random numbers [O].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tokencredit.analysis.cross_arms import Arm, Direction
from tokencredit.analysis.cross_rewards import Scorer
from tokencredit.analysis.cross_samples import Sampler
from tokencredit.scoring.counter_random import uniforms
from tokencredit.scoring.cross_decode import Row

Outcome = Literal["identical", "neutral", "divergent"]
OUTCOMES: tuple[Outcome, ...] = ("identical", "neutral", "divergent")
Place = tuple[int, int, int]
_EQUAL = 1e-6


@dataclass(frozen=True)
class Label:
    """One flagged position of the primary's own answer.

    Args:
        direction: Which model is the primary.
        problem: Number of the problem.
        sample: Number of the answer.
        position: Of the token in the answer.
        score: Of the rule.
        primary: The primary's token.
        intervention: The other's.
        label: `identical` where both are one token, `neutral` where both lead to the same reward, else `divergent`.
        change: Reward with the other's token minus reward with the primary's.
    """

    direction: Direction
    problem: int
    sample: int
    position: int
    score: float
    primary: int
    intervention: int
    label: Outcome
    change: float


def label_positions(sampler: Sampler, arms: Sequence[Arm], scorer: Scorer, *, limit: int) -> list[Label]:
    """Label flagged positions of the answers that the primary writes alone.

    Which positions are flagged follows from the lowest threshold of the direction's arms. Of more than `limit` of them
    a random part is labelled. The answer with the primary's token is the primary's answer itself, so one continuation a
    position is written. Positions whose answers have no reward are left out.

    Args:
        sampler: Makes the continuations.
        arms: With their rewards.
        scorer: Scores them.
        limit: How many positions of a direction.
    """
    found: list[Label] = []
    for arm in arms:
        thresholds = [
            other.decoding.threshold for other in arms if (other.direction, other.kind) == (arm.direction, "rule")
        ]
        if arm.kind == "primary" and thresholds:
            places = _places(arm, min(thresholds), limit)
            found += _labelled(sampler, arm, scorer, places)
    return found


def _places(arm: Arm, epsilon: float, limit: int) -> list[Place]:
    """Problem, sample and position of flagged tokens."""
    flagged = [
        (problem, sample, position)
        for problem, traces in enumerate(arm.traces)
        for sample, trace in enumerate(traces)
        for position, score in enumerate(trace.scores)
        if score > epsilon
    ]
    if len(flagged) <= limit:
        return flagged
    # Stream 2: the numbers of sampling and of the random rule are 0 and 1.
    order = np.argsort(uniforms(arm.decoding.seed, *np.array(flagged).T, 2), kind="stable")
    return sorted(flagged[place] for place in order[:limit])


def _labelled(sampler: Sampler, arm: Arm, scorer: Scorer, places: Sequence[Place]) -> list[Label]:
    decoding = replace(arm.decoding, epsilon=math.inf)
    answers = [_begun(arm, place) for place in places]
    open_ends = [
        number
        for number, (answer, place) in enumerate(zip(answers, places, strict=True))
        if answer[-1] not in decoding.stop_ids and len(answer) < decoding.max_new_tokens and not _identical(arm, place)
    ]
    rows = [
        Row([*sampler.problems[problem].ids, *answers[number]], problem, sample, start=position + 1)
        for number in open_ends
        for problem, sample, position in [places[number]]
    ]
    traces = sampler.run_rows(rows, decoding, swapped=arm.direction == "reverse", what="continuations")
    for number, trace in zip(open_ends, traces, strict=True):
        answers[number] = answers[number] + trace.tokens
    rewards = scorer.look_up([(place[0], answer) for place, answer in zip(places, answers, strict=True)])
    labels = [_label(arm, place, reward) for place, reward in zip(places, rewards, strict=True)]
    return [label for label in labels if label is not None]


def _begun(arm: Arm, place: Place) -> list[int]:
    """The primary's answer up to a position, with the other model's token there; all of it if that changes nothing."""
    problem, sample, position = place
    trace = arm.traces[problem][sample]
    return trace.tokens if _identical(arm, place) else [*trace.tokens[:position], trace.intervention[position]]


def _identical(arm: Arm, place: Place) -> bool:
    problem, sample, position = place
    trace = arm.traces[problem][sample]
    return trace.primary[position] == trace.intervention[position]


def _label(arm: Arm, place: Place, reward: float | None) -> Label | None:
    problem, sample, position = place
    own = arm.rewards[problem][sample] if arm.rewards is not None else None
    if own is None or reward is None:
        return None
    trace, change = arm.traces[problem][sample], reward - own
    label: Outcome = "neutral" if abs(change) <= _EQUAL else "divergent"
    return Label(
        arm.direction,
        *place,
        trace.scores[position],
        trace.primary[position],
        trace.intervention[position],
        "identical" if _identical(arm, place) else label,
        change,
    )
