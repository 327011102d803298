"""Where responses reach their answer: what a probe says after each step, and the figures made of it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokencredit.analysis.statistics import Array, percentile_interval, resampled_totals
from tokencredit.errors import InputError
from tokencredit.losses import step_potential

REFLECTION = r"\b(wait|check|recheck|double-check|verify|alternatively|hmm|hold on|let me re)"
"""Begins what a step says when it looks back; our own list [O]."""

FIGURES = {
    "accuracy": "right answers",
    "tokens": "tokens of a response",
    "steps": "steps of a response",
    "solving": "tokens up to the first saturated step of a right response",
    "checking": "the rest of its thinking",
    "right_to_wrong": "responses that were saturated and are wrong",
    "saturated": "responses with a saturated step",
    "reflection": "steps that look back",
    "exit_accuracy": "right answers if cut at the first saturated step",
    "exit_tokens": "tokens then",
    "conf_exit_accuracy": "right answers if cut at the first step with Conf above the same value",
    "conf_exit_tokens": "tokens then",
}
"""Figure → what it is a mean of."""


@dataclass(frozen=True)
class Exit:
    """A response that was cut after a step and asked for its answer.

    Args:
        step: The step after which it was cut.
        tokens: Of the cut response, template and answer.
        right: Whether the answer is right.
    """

    step: int
    tokens: int
    right: bool


@dataclass
class ProbedResponse:
    """A response with what the probe says after each of its steps.

    Args:
        prompt: Text or chat messages.
        answers: The right answer, in each of its spellings.
        answer_tokens: How many tokens the likeliest-to-be-asked first spelling has.
        tokens: Text of each token `[T]`.
        ended: Whether the model ended it itself.
        right: Whether its answer is.
        ends: One past the last token of each step `[K]`.
        thinking: Tokens before the end of the thinking.
        acc: Acc `[K]`.
        conf: Conf at the right answer's positions `[K]`.
        sampled_conf: Conf over sampled answers `[K]`, where they were asked for.
        exit: Cut at the first saturated step; None where there is none.
        conf_exit: Cut at the first step of which Conf alone is as high.
    """

    prompt: Any
    answers: list[str]
    answer_tokens: int
    tokens: list[str]
    ended: bool
    right: bool
    ends: list[int]
    thinking: int
    acc: list[float] = field(default_factory=list)
    conf: list[float] = field(default_factory=list)
    sampled_conf: list[float] | None = None
    exit: Exit | None = None
    conf_exit: Exit | None = None

    @cached_property
    def phi(self) -> list[float]:
        """Φ `[K]`, with the sampled confidence where there is one."""
        return potentials(self.acc, self.conf if self.sampled_conf is None else self.sampled_conf)

    def saturated_step(self, saturation: float) -> int | None:
        """The first step with Φ above it."""
        return next((step for step, value in enumerate(self.phi) if value > saturation), None)

    def texts(self) -> list[str]:
        """The text of each step."""
        begins = [0, *self.ends]
        return ["".join(self.tokens[a:b]) for a, b in zip(begins, self.ends, strict=False)]


def checked_pattern(pattern: str) -> str:
    """The pattern of steps that look back.

    Raises:
        InputError: It is none.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError("--reflection", f"{pattern!r} is no pattern ({error})", "correct it") from None
    return pattern


def potentials(acc: Sequence[float], conf: Sequence[float]) -> list[float]:
    """Φ, of numbers as they are stored."""
    found: list[float] = step_potential(torch.tensor(acc), torch.tensor(conf)).tolist()
    return found


def counts(response: ProbedResponse, saturation: float, reflection: str = REFLECTION) -> NDArray[np.float64]:
    """What adds up over problems: numerator and denominator of each of `FIGURES`, `[F, 2]`.

    Solving and checking tokens are those of right responses, as the released diagnostics count them [C]; the rest of
    the thinking is checking, and of a right response that is never saturated all is solving [O]. An exit that never
    comes is the response itself.

    Args:
        response: With its probe.
        saturation: Φ above it counts as found.
        reflection: A step of whose text this pattern matches a part looks back.
    """
    length, right = len(response.tokens), float(response.right)
    step = response.saturated_step(saturation)
    solving = response.thinking if step is None else response.ends[step]
    pattern = re.compile(reflection, re.IGNORECASE)
    exits = [
        (right, length) if cut is None else (float(cut.right), cut.tokens)
        for cut in (response.exit, response.conf_exit)
    ]
    found = {
        "accuracy": (right, 1),
        "tokens": (length, 1),
        "steps": (len(response.ends), 1),
        "solving": (right * solving, right),
        "checking": (right * (response.thinking - solving), right),
        "right_to_wrong": (float(step is not None and not response.right), 1),
        "saturated": (float(step is not None), 1),
        "reflection": (sum(bool(pattern.search(text)) for text in response.texts()), 1),
        "exit_accuracy": (exits[0][0], 1),
        "exit_tokens": (exits[0][1], 1),
        "conf_exit_accuracy": (exits[1][0], 1),
        "conf_exit_tokens": (exits[1][1], 1),
    }
    return np.array([found[name] for name in FIGURES], dtype=np.float64)


@dataclass(frozen=True)
class ArmFigures:
    """The figures of one arm.

    Args:
        values: Name → mean over its runs.
        spread: Name → sample standard deviation over runs; None of a single one.
        intervals: Name → (low, high).
        differences: Other arm → name → (value, low, high) of the difference from it.
    """

    values: dict[str, float]
    spread: dict[str, float] | None
    intervals: dict[str, tuple[float, float]]
    differences: dict[str, dict[str, tuple[float, float, float]]]


def compare(
    arms: Mapping[str, Sequence[NDArray[np.float64]]],
    against: Sequence[str],
    *,
    resamples: int,
    seed: int,
    confidence: float,
) -> dict[str, ArmFigures]:
    """Figures with intervals: paired bootstrap over problems and training seeds.

    Problems are drawn with replacement, the same for all runs; runs of an arm too, the same for all arms of equally
    many. A figure is the mean over drawn runs of the ratio over drawn problems; intervals are percentiles.

    Args:
        arms: Of each arm the counts of each run, `[N, F, 2]`.
        against: The arms that the others are compared with.
        resamples: How many draws.
        seed: Of the draws.
        confidence: Share of the draws inside an interval.
    """
    drawn = {label: _resampled(runs, resamples, seed) for label, runs in arms.items()}
    values = {label: np.stack([_ratio(run.sum(axis=0)) for run in runs]) for label, runs in arms.items()}
    found = {}
    for label, own in values.items():
        low, high = percentile_interval(drawn[label], confidence=confidence)
        differences = {}
        for other in against:
            if other != label:
                gap = own.mean(axis=0) - values[other].mean(axis=0)
                bounds = percentile_interval(drawn[label] - drawn[other], confidence=confidence)
                differences[other] = _named(gap, *bounds)
        spread = own.std(axis=0, ddof=1) if len(own) > 1 else None
        found[label] = ArmFigures(
            values=_by_name(own.mean(axis=0)),
            spread=None if spread is None else _by_name(spread),
            intervals=dict(zip(FIGURES, zip(low.tolist(), high.tolist(), strict=True), strict=True)),
            differences=differences,
        )
    return found


def _by_name(values: Array) -> dict[str, float]:
    return dict(zip(FIGURES, values.tolist(), strict=True))


def _named(*columns: Array) -> dict[str, tuple[float, float, float]]:
    rows: Iterator[Any] = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(FIGURES, rows, strict=True))


def _resampled(runs: Sequence[NDArray[np.float64]], resamples: int, seed: int) -> Array:
    """`[R, F]`."""
    figures = np.stack([_ratio(resampled_totals(run, resamples=resamples, seed=seed)) for run in runs], axis=1)
    chosen = np.random.default_rng([seed, 1]).integers(len(runs), size=(resamples, len(runs)))
    drawn: Array = figures[np.arange(resamples)[:, None], chosen].mean(axis=1)
    return drawn


def _ratio(totals: NDArray[np.float64]) -> Array:
    """Numerator by denominator; 0 where nothing counts."""
    return np.divide(totals[..., 0], totals[..., 1], out=np.zeros_like(totals[..., 0]), where=totals[..., 1] > 0)


def rank_agreement(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's ρ: the correlation of ranks, ties at their mean; None where one side has a single value.

    Args:
        a: Numbers.
        b: As many.
    """
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (a, b)]
    if any(len(side) < 2 or side.std() == 0 for side in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Array) -> Array:
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = sizes.cumsum()
    return np.asarray((last - (sizes - 1) / 2)[inverse], dtype=np.float64)


@dataclass(frozen=True)
class Agreement:
    """How forced and sampled confidence order the steps of responses alike.

    Args:
        answers: Which responses: `all`, `one token`, `several tokens`.
        steps: How many steps.
        potential: ρ of Φ.
        conf: ρ of Conf.
    """

    answers: str
    steps: int
    potential: float | None
    conf: float | None


def agreements(responses: Sequence[ProbedResponse]) -> list[Agreement]:
    """Over the responses with both: all, and by whether the answer is one token, for which forced is exact."""
    both = [response for response in responses if response.sampled_conf is not None]
    kinds = {
        "all": both,
        "one token": [response for response in both if response.answer_tokens == 1],
        "several tokens": [response for response in both if response.answer_tokens > 1],
    }
    found = []
    for name, kind in kinds.items():
        forced = [value for response in kind for value in response.conf]
        sampled = [value for response in kind for value in response.sampled_conf or ()]
        phi = [value for response in kind for value in potentials(response.acc, response.conf)]
        other = [value for response in kind for value in response.phi]
        found.append(Agreement(name, len(forced), rank_agreement(phi, other), rank_agreement(forced, sampled)))
    return found
