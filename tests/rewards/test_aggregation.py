"""Several rewards as one number. Advantages are TRL's own, see `tests/trainers/test_token_grpo.py`."""

import math

import pytest

from tokencredit.rewards import RewardBatch

Values = list[list[float | None]]


def test_sums_that_are_too_large_are_no_signal() -> None:
    values: Values = [[1e308, 1e308], [1.7e308, -1e308], [1.0, 1.0], [1e308, None]]
    batch = RewardBatch(["a", "b"], values=values, status=[["ok", "ok"]] * 4, seconds=[[0.0, 0.0]] * 4)
    assert batch.combined() == [None, pytest.approx(0.7e308), 2.0, 1e308]
    assert batch.combined([10.0, -10.0]) == [None, None, 0.0, None]
    assert batch.combined([math.inf, 1.0])[2] is None
    assert batch.metrics()["rewards/a/mean"] == pytest.approx(1e308 / 4 + 1.7e308 / 4 + 1e308 / 4)
    assert batch.metrics()["rewards/a/std"] > 0
