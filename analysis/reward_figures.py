"""What token rewards look like over pairs: do they tell better from worse answers, and right from wrong tokens?"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokencredit.analysis.statistics import RESAMPLES, percentile_interval, resampled_totals
from tokencredit.analysis.token_view import Column, Response, TokenView, Values
from tokencredit.data.alignment import differing_tokens

SIDES = ("chosen", "rejected")
NOT_PLANTED = ("samples", "expert")
"""Strategies of pairs that say nothing about which tokens are wrong."""

COLUMNS = (
    Column("token_rewards", "r̂: above 0 where the token is more at home in a better answer", True),
    Column("wrong", "1 where the rejected answer was made to differ"),
    Column("classes", "what the token belongs to"),
    Column("ids", "token id", coloured=False),
)


def in_text(ids: Sequence[int], special: Collection[int]) -> list[bool]:
    """Which tokens of a response stand before the first special one: what follows is the template's, not the text."""
    end = next((place for place, token in enumerate(ids) if token in special), len(ids))
    return [place < end for place in range(len(ids))]


@dataclass(frozen=True)
class RewardedPair:
    """A pair whose tokens have rewards. Mappings go from side to a list over the response's tokens.

    Args:
        prompt: The question as text.
        strategy: How the pair came about, if the data say so.
        tokens: Text of each token.
        ids: Token ids.
        rewards: r̂.
        classes: What each token belongs to; empty where it is not known.
        inside: Which tokens belong to the text.
    """

    prompt: str
    strategy: str | None
    tokens: Mapping[str, Sequence[str]]
    ids: Mapping[str, Sequence[int]]
    rewards: Mapping[str, Sequence[float]]
    classes: Mapping[str, Sequence[str]]
    inside: Mapping[str, Sequence[bool]]

    def wrong(self) -> list[bool] | None:
        """Which tokens of the rejected answer were planted; None if the data do not say that any were."""
        if self.strategy is None or self.strategy in NOT_PLANTED:
            return None
        return differing_tokens(self.ids["chosen"], self.ids["rejected"])[1]


@dataclass(frozen=True)
class Estimate:
    """A mean over so many pairs, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class ClassFigures:
    """The rewards of a token class, on both sides: their mean size, how many there are, and the mean of each side."""

    size: float
    count: int
    chosen: float | None
    rejected: float | None


@dataclass(frozen=True)
class RewardFigures:
    """Sanity figures of token rewards.

    Args:
        chosen: Mean over pairs of the chosen response's mean r̂.
        rejected: The same of the rejected response.
        difference: Chosen minus rejected, paired.
        preferred: Share of the pairs whose chosen response has the higher mean.
        auc: Strategy → mean over rejected answers of the chance that a planted wrong token has a lower reward than a
            right one of the same answer, ties half; "" is all strategies. Answers without both kinds take no part.
        pooled_auc: The same over the tokens of all these answers together; None without any.
        classes: Token class → figures.
    """

    chosen: Estimate
    rejected: Estimate
    difference: Estimate
    preferred: float
    auc: Mapping[str, Estimate]
    pooled_auc: float | None
    classes: Mapping[str, ClassFigures]


def reward_figures(pairs: Sequence[RewardedPair], *, resamples: int = RESAMPLES, seed: int = 0) -> RewardFigures:
    """Compute the figures.

    Args:
        pairs: At least one.
        resamples: Of the pairs, for the intervals.
        seed: Of the resampling.
    """
    means = np.array([[_inside(pair, side)[0].mean() for side in SIDES] for pair in pairs])
    columns = np.column_stack([means, means[:, 0] - means[:, 1]])
    chosen, rejected, difference = (_estimate(column, resamples, seed) for column in columns.T)
    within: dict[str, list[float]] = defaultdict(list)
    rewards, planted = [], []
    for pair in pairs:
        wrong = pair.wrong()
        if wrong is None:
            continue
        values, keep = _inside(pair, "rejected")
        kind = np.asarray(wrong)[keep]
        if kind.any() and not kind.all():
            rewards.append(values)
            planted.append(kind)
            for name in ("", str(pair.strategy)):
                within[name].append(auc(-values, kind))
    return RewardFigures(
        chosen=chosen,
        rejected=rejected,
        difference=difference,
        preferred=float((means[:, 0] > means[:, 1]).mean()),
        auc={name: _estimate(np.array(found), resamples, seed) for name, found in sorted(within.items())},
        pooled_auc=auc(-np.concatenate(rewards), np.concatenate(planted)) if rewards else None,
        classes=_class_figures(pairs),
    )


def _inside(pair: RewardedPair, side: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The rewards of the tokens of the text, and which those are; of a response without text all."""
    keep = np.asarray(pair.inside[side], dtype=bool)
    keep = keep if keep.any() else ~keep
    return np.asarray(pair.rewards[side], dtype=np.float64)[keep], keep


def auc(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The chance that a positive has a higher value than a negative, ties half: the area under the ROC curve.

    Args:
        values: `[N]`.
        positive: `[N]`, with both kinds.
    """
    negatives = np.sort(values[~positive])
    below, up_to = (np.searchsorted(negatives, values[positive], side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(negatives)))


def _estimate(values: NDArray[np.float64], resamples: int, seed: int) -> Estimate:
    totals = resampled_totals(values, resamples=resamples, seed=seed)
    low, high = percentile_interval(totals / len(values))
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def _class_figures(pairs: Iterable[RewardedPair]) -> dict[str, ClassFigures]:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: {side: [] for side in SIDES})
    for pair in pairs:
        for side in SIDES:
            for name, reward, inside in zip(
                pair.classes.get(side, ()), pair.rewards[side], pair.inside[side], strict=False
            ):
                if inside:
                    found[name][side].append(reward)
    figures = {}
    for name, rewards in found.items():
        both = np.abs(np.concatenate([np.asarray(rewards[side]) for side in SIDES]))
        sides = [float(np.mean(rewards[side])) if rewards[side] else None for side in SIDES]
        figures[name] = ClassFigures(float(both.mean()), len(both), *sides)
    return dict(sorted(figures.items(), key=lambda item: -item[1].size))


def reward_view(pairs: Iterable[RewardedPair]) -> TokenView:
    """Both responses of each pair side by side."""
    responses = []
    for number, pair in enumerate(pairs):
        wrong = pair.wrong()
        for side in SIDES:
            columns: dict[str, Values] = {"token_rewards": list(pair.rewards[side]), "ids": list(pair.ids[side])}
            if pair.classes.get(side):
                columns["classes"] = list(pair.classes[side])
            if wrong is not None and side == "rejected":
                columns["wrong"] = [int(token) for token in wrong]
            title = f"pair {number}"
            responses.append(Response(title, pair.tokens[side], columns, side=side, group=title, prompt=pair.prompt))
    return TokenView(responses, COLUMNS)
