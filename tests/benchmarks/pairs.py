"""Alternating repeats of two callables, and the ratio of their medians."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """A figure of ours against a baseline's.

    Args:
        name: What was compared.
        baseline: Median of the baseline.
        ours: Median of ours.
        spread: Smallest and largest ratio of the pairs.
        repeats: How many pairs.
        unit: Of both.
    """

    name: str
    baseline: float
    ours: float
    spread: tuple[float, float]
    repeats: int
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """Ours over baseline; below 1 is better."""
        return self.ours / self.baseline


def alternate(
    name: str, baseline: Callable[[], float], ours: Callable[[], float], *, repeats: int, unit: str = "s"
) -> Ratio:
    """Measure both in turn, after one round of each that does not count; both return a figure."""
    baseline(), ours()
    pairs = [(baseline(), ours()) for _ in range(repeats)]
    ratios = [mine / theirs for theirs, mine in pairs]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Ratio(name, first, second, (min(ratios), max(ratios)), repeats, unit)
