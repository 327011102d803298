"""Every task of reasoning-gym makes questions and accepts its own answers; the ones that do not are refused."""

import json
from typing import Any

import pytest
import reasoning_gym as gym

from tests.rewards import reward_functions
from tokencredit.errors import InputError
from tokencredit.rewards import RewardFunction, RewardPool
from tokencredit.rewards.gym import REFUSED, reasoning_gym, tasks

# They have no answer to compare with: moves are played out on the board.
PLAYED = {"boxnet", "rush_hour"}
# The answer is one of many; an example of one stands in the metadata.
EXAMPLE = {
    "graph_color": lambda metadata: json.dumps(metadata["possible_answer"]),
    "propositional_logic": lambda metadata: metadata["example_answer"],
    "rubiks_cube": lambda metadata: metadata["example_correct_answer"],
}
# A conclusion that merely repeats a premise is worth less.
PARTLY = {"propositional_logic": 0.25}


def entry_of(task: str, seed: int = 1) -> tuple[str, dict[str, list[Any]]]:
    entry = gym.create_dataset(task, size=1, seed=seed)[0]
    metadata = json.loads(json.dumps(entry["metadata"]))  # what a data file keeps of it
    answer = EXAMPLE[task](entry["metadata"]) if task in EXAMPLE else entry["answer"]
    return answer, {"answer": [entry["answer"]], "metadata": [metadata], "question": [entry["question"]]}


def test_all_tasks_are_tried() -> None:
    assert len(tasks()) == 106
    assert set(REFUSED) < set(tasks())


@pytest.mark.parametrize("task", sorted(set(tasks()) - set(REFUSED)))
def test_a_task_accepts_its_own_answer_and_no_nonsense(task: str) -> None:
    answer, columns = entry_of(task)
    assert reasoning_gym(["nonsense"], **columns, task=task)[0] < 0.5
    if task not in PLAYED:
        assert reasoning_gym([str(answer)], **columns, task=task)[0] >= PARTLY.get(task, 0.99)
        assert reasoning_gym([f"so it is <answer>{answer}</answer>."], **columns, task=task)[0] >= PARTLY.get(
            task, 0.99
        )


@pytest.mark.parametrize("task", sorted(REFUSED))
def test_broken_tasks_are_refused_by_name(task: str) -> None:
    with pytest.raises(InputError, match=f"the task '{task}' does not work: {REFUSED[task]}"):
        RewardPool([f"reasoning_gym:{task}"])


def test_what_is_said_of_the_broken_ones_is_true() -> None:
    """When one of these is repaired upstream, it need no longer be refused."""
    for seed in range(1, 4):
        columns = entry_of("game_of_life_halting", seed)[1]
        assert reasoning_gym(["nonsense"], **columns, task="game_of_life_halting") == [1.0]
    with pytest.raises(ValueError, match="invalid literal"):
        reasoning_gym(["nonsense"], **entry_of("prime_factorization")[1], task="prime_factorization")
    with pytest.raises(AssertionError, match="at least one dataset"):
        gym.create_dataset("composite")


def test_unknown_tasks_name_the_nearest() -> None:
    with pytest.raises(InputError, match="no task 'chain_sums'; did you mean 'chain_sum'"):
        RewardPool(["reasoning_gym:chain_sums"])
    with pytest.raises(InputError, match="no task; write reasoning_gym:<task>"):
        RewardPool(["reasoning_gym"])


def test_in_the_pool_and_through_the_adapter(make_pool: Any) -> None:
    """A dataset object of one's own, with other settings, is a reward as well."""
    adapted = RewardFunction("tests.rewards.reward_functions:long_sums", adapter="reasoning_gym", name="sums")
    pool = make_pool("reasoning_gym:chain_sum", adapted, timeout=10)
    entries = list(reward_functions.long_sums)
    batch = pool.score(
        [entries[0]["answer"], "7"],
        answer=[entry["answer"] for entry in entries],
        metadata=[json.dumps(entry["metadata"]) for entry in entries],
    )
    assert batch.values == [[1.0, 1.0], [0.0, 0.0]]
    assert batch.names == ["reasoning_gym:chain_sum", "sums"]
