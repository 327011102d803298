"""Bootstrap: against distributions that are known in closed form, and against the truth in simulations."""

from math import comb, sqrt
from typing import Any

import numpy as np
import pytest

from tokencredit.analysis import statistics
from tokencredit.analysis.statistics import percentile_interval, resampled_totals
from tokencredit.data.metrics import ratios


def test_totals_are_those_of_documents_drawn_with_replacement() -> None:
    counts = np.eye(5, dtype=np.int64)  # the totals are how often each document was drawn
    totals = resampled_totals(counts, resamples=2000, seed=3)
    assert totals.shape == (2000, 5)
    assert (totals >= 0).all()
    assert (totals == totals.round()).all()
    assert (totals.sum(axis=1) == 5).all()
    # Multiplicities are multinomial: mean 1, variance 4/5, covariance -1/5; 4.5 standard errors of each.
    assert totals.mean(axis=0) == pytest.approx(np.ones(5), abs=4.5 * sqrt(0.8 / 2000))
    covariance = np.cov(totals.T)
    assert covariance == pytest.approx(np.eye(5) - 0.2, abs=0.15)


def test_a_share_has_the_binomial_distribution() -> None:
    # 30 of 100 documents: the resampled number is binomial(100, 0.3), whose quantiles can be summed up.
    answers = np.repeat([1, 0], [30, 70])[:, None]
    shares = resampled_totals(answers, resamples=200_000, seed=0)[:, 0] / 100
    # Standard errors: 0.0458 / sqrt(200,000) = 0.0001 of the mean; 1 / sqrt(400,000) = 0.16 % of the deviation.
    assert shares.mean() == pytest.approx(0.3, abs=0.0005)
    assert shares.std() == pytest.approx(sqrt(0.3 * 0.7 / 100), rel=0.008)
    chances = np.cumsum([comb(100, k) * 0.3**k * 0.7 ** (100 - k) for k in range(101)])
    exact = [int(np.searchsorted(chances, tail)) / 100 for tail in (0.025, 0.975)]
    # P(<= 20) = 0.0165, P(<= 21) = 0.0288; P(<= 38) = 0.9660, P(<= 39) = 0.9790: ten standard errors of a resampled
    # chance (sqrt(0.025 * 0.975 / 200,000) = 0.00035) from either bound, so the quantiles are exactly these.
    assert exact == [0.21, 0.39]
    assert percentile_interval(shares).tolist() == exact


def test_coverage_of_a_ratio() -> None:
    # Micro precision over 80 documents, each with 1 to 5 predictions of which a share of its own is right.
    generator = np.random.default_rng(1)

    def documents(number: int) -> Any:
        predicted = generator.integers(1, 6, size=number)
        right = generator.binomial(predicted, generator.beta(4, 2, size=number))
        return np.stack([right, predicted - right, np.zeros_like(right)], axis=-1)

    truth = 4 / 6  # the mean of beta(4, 2), whatever the number of predictions
    repetitions = 600
    inside = 0
    for seed in range(repetitions):
        resampled = ratios(resampled_totals(documents(80), resamples=400, seed=seed))[:, 0]
        low, high = percentile_interval(resampled)
        inside += low <= truth <= high
    # Standard error of the coverage: sqrt(0.95 * 0.05 / 600) = 0.009. The percentile interval of a mean of n values is
    # too narrow by a factor of about sqrt(1 - 1/n) and takes normal instead of t quantiles: 0.944 here.
    assert inside / repetitions == pytest.approx(0.944, abs=0.03)


def test_a_paired_difference_is_narrower_than_two_single_figures() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 2, size=(200, 1))
    second = np.where(generator.random((200, 1)) < 0.05, 1 - first, first)  # 5 % of the answers differ
    one, other = (resampled_totals(counts, resamples=4000, seed=5)[:, 0] / 200 for counts in (first, second))
    changes = (second - first)[:, 0]
    # The bootstrap variance of a mean is that of the values over n.
    assert (other - one).std() == pytest.approx(changes.std() / sqrt(200), rel=0.05)
    unpaired = resampled_totals(second, resamples=4000, seed=6)[:, 0] / 200
    assert (unpaired - one).std() > 2 * (other - one).std()


def test_the_draw_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.arange(60).reshape(20, 3)
    totals = resampled_totals(counts, resamples=50, seed=7)
    assert (resampled_totals(counts, resamples=50, seed=7) == totals).all()
    assert (resampled_totals(counts, resamples=50, seed=8) != totals).any()
    # Neither the other columns nor the work done at a time change it.
    assert (resampled_totals(counts[:, 1], resamples=50, seed=7) == totals[:, 1]).all()
    monkeypatch.setattr(statistics, "_CELLS", 70)
    assert (resampled_totals(counts, resamples=50, seed=7) == totals).all()


def test_shapes_are_kept() -> None:
    counts = np.ones((4, 2, 3), dtype=np.int64)
    assert (resampled_totals(counts, resamples=5) == np.full((5, 2, 3), 4)).all()
    assert resampled_totals(np.ones((4, 0, 3)), resamples=5).shape == (5, 0, 3)
    assert percentile_interval(np.zeros((5, 2, 3))).shape == (2, 2, 3)


def test_interval_is_of_the_asked_confidence() -> None:
    values = np.arange(1001.0)[:, None] * [1, -1]
    # Quantiles of 0 … 1000 are 1000 times their level.
    assert percentile_interval(values, confidence=0.9) == pytest.approx(np.array([[50, -950], [950, -50]]))
