"""Alternating repeats of two callables, and the ratio of their medians."""

import statistics
import time
from collections.abc import Callable, Mapping
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


def cpu_seconds(work: Callable[[], object]) -> float:
    """Seconds of processor time of a piece of work: with one thread those of the clock, but for what others take."""
    start = time.process_time()
    work()
    return time.process_time() - start


def alternate(
    name: str, baseline: Callable[[], float], ours: Callable[[], float], *, repeats: int, unit: str = "s"
) -> Ratio:
    """Measure both in turn, after one round of each that does not count; both return a figure."""
    return alternate_all({name: baseline}, ours, repeats=repeats, unit=unit)[0]


def alternate_all(
    baselines: Mapping[str, Callable[[], float]], ours: Callable[[], float], *, repeats: int, unit: str = "s"
) -> list[Ratio]:
    """As `alternate`, ours against several baselines in turn: a ratio for each."""
    measures = [*baselines.values(), ours]
    columns = list(zip(*[[measure() for measure in measures] for _ in range(repeats + 1)][1:], strict=True))
    found = []
    for name, theirs in zip(baselines, columns, strict=False):
        ratios = [mine / other for mine, other in zip(columns[-1], theirs, strict=True)]
        medians = statistics.median(theirs), statistics.median(columns[-1])
        found.append(Ratio(name, *medians, (min(ratios), max(ratios)), repeats, unit))
    return found
