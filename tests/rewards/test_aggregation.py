"""Several rewards as one number: sums and advantages, against the lines of TRL's trainer that make them."""

import inspect
import math
import random
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

from tokencredit.errors import InputError
from tokencredit.rewards import RewardBatch, advantages

Values = list[list[float | None]]


def trls(values: Values, size: int, weights: list[float], aggregation: str, scale: str) -> list[float]:
    """What TRL's own lines make of them, cut out of the method that also generates."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    begin, end = source.index("        unscorable_mask ="), source.index("        # Slice to keep only the local part")
    trainer = SimpleNamespace(
        multi_objective_aggregation=aggregation,
        scale_rewards=scale,
        reward_weights=torch.tensor(weights, dtype=torch.float64),
        reward_funcs=weights,
    )
    rows = torch.tensor([[math.nan if v is None else v for v in row] for row in values], dtype=torch.float64)
    names: dict[str, Any] = {"torch": torch, "nanstd": nanstd, "self": trainer, "device": "cpu"}
    names |= {"rewards_per_func": rows, "num_generations": size}
    exec(textwrap.dedent(source[begin:end]), names)
    found: list[float] = names["advantages"].tolist()
    return found


def drawn(rows: int, functions: int, missing: float, seed: int) -> Values:
    draw = random.Random(seed)
    return [[None if draw.random() < missing else draw.gauss(0, 2) for _ in range(functions)] for _ in range(rows)]


BATCHES: dict[str, tuple[Values, int]] = {
    "all there": (drawn(12, 3, 0.0, 1), 4),
    "some missing": (drawn(24, 3, 0.4, 2), 4),
    "most missing": (drawn(24, 2, 0.8, 3), 4),
    "one function": (drawn(8, 1, 0.3, 4), 2),
    "groups of one": (drawn(6, 2, 0.3, 5), 1),
    "a single one": ([[1.0, 2.0]], 1),
    "all alike": ([[1.0, 0.0]] * 8, 4),
    "nothing": ([[None, None]] * 4, 2),
    "one of a group": ([[1.0, None], [None, None], [None, 2.0], [0.5, 1.0]], 2),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_advantages_are_trls(batch: str, scale: Any, aggregation: Any) -> None:
    """In float64 on both sides, but for n / (n - 1) in TRL's std, which is a float32: 6e-8 of values below 4."""
    values, size = BATCHES[batch]
    weights = [1.0, -0.5, 2.0][: len(values[0])]
    found = advantages(values, size, weights=weights, aggregation=aggregation, scale_rewards=scale)
    assert found == pytest.approx(trls(values, size, weights, aggregation, scale), abs=1e-6)
    plain = advantages(values, size, aggregation=aggregation, scale_rewards=scale)
    assert plain == advantages(values, size, weights=[1.0] * len(weights), aggregation=aggregation, scale_rewards=scale)


def test_by_hand() -> None:
    """Group std of 0 and 2 is the root of 2; GDPO gives a function with small values the same say."""
    half = 1 / (2**0.5 + 1e-4)
    assert advantages([[0.0], [2.0]], 2) == pytest.approx([-half, half])
    assert advantages([[0.0, 1.0], [100.0, 0.99]], 2, scale_rewards="none") == pytest.approx([-49.995, 49.995])
    first, second = advantages([[0.0, 1.0], [100.0, 0.9]], 2, aggregation="normalize_then_sum")
    assert abs(first) + abs(second) < 2, "0.1 weighs what 100 does, but for 1e-4 beside the std"
    assert advantages([], 4) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 2}, "group_size: 3 completions are no groups of 2"),
        ({"group_size": 0}, "group_size: 3 completions are no groups of 0"),
        ({"weights": [1.0, 2.0]}, "reward_weights: 2 weights for 1 functions"),
        ({"aggregation": "sum"}, "multi_objective_aggregation: unknown way 'sum'; choose one of sum_then_normalize"),
        ({"scale_rewards": "both"}, "scale_rewards: unknown way 'both'; choose one of group, batch, none"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        advantages([[1.0], [2.0], [3.0]], **({"group_size": 3} | settings))
    assert message in str(caught.value)


def test_sums_that_are_too_large_are_no_signal() -> None:
    values: Values = [[1e308, 1e308], [1.7e308, -1e308], [1.0, 1.0], [1e308, None]]
    batch = RewardBatch(["a", "b"], values=values, status=[["ok", "ok"]] * 4, seconds=[[0.0, 0.0]] * 4)
    assert batch.combined() == [None, pytest.approx(0.7e308), 2.0, 1e308]
    assert batch.combined([10.0, -10.0]) == [None, None, 0.0, None]
    assert batch.combined([math.inf, 1.0])[2] is None
    assert batch.metrics()["rewards/a/mean"] == pytest.approx(1e308 / 4 + 1.7e308 / 4 + 1e308 / 4)
    assert batch.metrics()["rewards/a/std"] > 0
    assert all(map(math.isfinite, advantages([[1.0], [2.0], [1e308], [1e308]], 2)))
