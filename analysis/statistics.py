"""Bootstrap over documents: how far a figure would move if other documents of the same kind had been drawn.

Documents are resampled with replacement, as many as there are, and every figure is computed anew from the summed
counts of each resample (Efron 1979). Counts add up over documents, so a resample is one row of multiplicities and
all resamples are one matrix product. The interval is the percentile interval: quantiles of the resampled figures.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95

# Multiplicities held at a time: 32 MB as float64, whatever the number of documents.
_CELLS = 4_000_000

Array = NDArray[np.float64]


def resampled_totals(counts: NDArray[np.generic], *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Sum the counts of resampled documents.

    Args:
        counts: `[N, ...]`, one entry per document along the first axis; numbers that add up over documents.
        resamples: How many times `N` documents are drawn with replacement, `R`.
        seed: Of the draw. Calls with equal `N`, `resamples` and `seed` draw the same documents in the same order,
            so that two models' totals of one resample are paired.

    Returns:
        `[R, ...]`, exact for whole counts that sum to less than 2^53.
    """
    documents = len(counts)
    flat = np.asarray(counts, dtype=np.float64).reshape(documents, -1)
    totals = np.concatenate([drawn @ flat for drawn in _multiplicities(documents, resamples, seed)])
    return totals.reshape(resamples, *counts.shape[1:])


def _multiplicities(documents: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each document was drawn: `[rows, N]` at a time, `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // documents)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(documents, size=(rows, documents)) + documents * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * documents).reshape(rows, documents).astype(np.float64)


def percentile_interval(resampled: Array, *, confidence: float = CONFIDENCE) -> Array:
    """Take the central interval of resampled figures.

    Args:
        resampled: `[R, ...]`, a figure in each resample; for a paired difference, the difference of two figures
            of the same resample.
        confidence: Share of the resamples inside.

    Returns:
        `[2, ...]`: lower and upper bound, the (1 − confidence)/2 quantiles from either end, interpolated linearly.
    """
    tail = (1 - confidence) / 2
    return np.asarray(np.quantile(resampled, [tail, 1 - tail], axis=0), dtype=np.float64)
