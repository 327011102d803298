"""Functions of other toolkits, called as they expect."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.rewards import reward_functions as functions
from tokencredit.errors import InputError
from tokencredit.rewards import RewardFunction, RewardPool

MakePool = Callable[..., RewardPool]


@pytest.mark.parametrize("batched", [False, True])
def test_verl(make_pool: MakePool, batched: bool) -> None:
    """`ground_truth` from verl's own column; what else it returns is logged."""
    spec = RewardFunction(functions.compute_score, adapter="verl", arguments={"bonus": 0.5}, batched=batched)
    extra: dict[str, list[Any]] = {}
    batch = make_pool(spec).score(
        ["4", [{"role": "assistant", "content": "5"}]],
        data_source=["sums", "sums"],
        reward_model=[{"ground_truth": "4", "style": "rule"}, json.dumps({"ground_truth": "4"})],
        extra_info=[{"index": 0}, {"index": 1}],
        bonus=[9.0, 9.0],
        log_extra=lambda column, values: extra.update({column: values}),
    )
    assert batch.values == [[1.5], [0.5]], "a column of the data is no argument"
    assert extra == {"source": ["sums", "sums"], "info": [{"index": 0}, {"index": 1}]}


def test_verl_with_a_column_of_ones_own(make_pool: MakePool) -> None:
    spec = RewardFunction(functions.compute_score, adapter="verl", columns={"ground_truth": "gold"})
    pool = make_pool(spec)
    assert pool.score(["4", "5"], gold=["4", "4"]).values == [[1.0], [0.0]]
    with pytest.raises(InputError, match="the data has no column 'gold'"):
        pool.score(["4"])


@pytest.mark.parametrize("column", ["labels", "label", "answer"])
def test_openrlhf(make_pool: MakePool, column: str) -> None:
    extra: dict[str, list[Any]] = {}
    pool = make_pool(RewardFunction(functions.reward_func, adapter="openrlhf", batched=True))
    batch = pool.score(
        ["4", "5"],
        prompts=["2+2=", [{"role": "user", "content": "2+2="}]],
        **{column: ["4", "4"]},
        log_extra=lambda name, values: extra.update({name: values}),
    )
    assert batch.values == [[1.0], [0.0]]
    assert extra == {"right": [1.0, 0.0]}


def test_arguments_are_those_of_the_adapted_function() -> None:
    spec = RewardFunction(functions.compute_score, adapter="verl", arguments={"bonsu": 1})
    with pytest.raises(InputError, match="takes no 'bonsu'; did you mean 'bonus'"):
        RewardPool([spec])
