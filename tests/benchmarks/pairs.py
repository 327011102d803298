"""Alternating repeats of two callables, and the ratio of their medians."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Seconds of ours against a baseline's.

    Args:
        name: What was compared.
        baseline: Median seconds of the baseline.
        ours: Median seconds of ours.
        spread: Smallest and largest ratio of the pairs.
        repeats: How many pairs.
    """

    name: str
    baseline: float
    ours: float
    spread: tuple[float, float]
    repeats: int

    @property
    def ratio(self) -> float:
        """Ours over baseline; below 1 is faster."""
        return self.ours / self.baseline


def alternate(name: str, baseline: Callable[[], float], ours: Callable[[], float], *, repeats: int) -> Ratio:
    """Measure both in turn, after one unmeasured round of each; both return seconds."""
    baseline(), ours()
    pairs = [(baseline(), ours()) for _ in range(repeats)]
    ratios = [mine / theirs for theirs, mine in pairs]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Ratio(name, first, second, (min(ratios), max(ratios)), repeats)
