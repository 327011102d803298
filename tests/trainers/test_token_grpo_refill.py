"""Dead groups are replaced by other prompts, in the same rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.trainers.grpo_runs import settings, shape_of, trusted, watched
from tokencredit.errors import InputError
from tokencredit.rewards import RewardBatch
from tokencredit.rewards.batch import Failure
from tokencredit.trainers import TokenGRPOConfig, TokenGRPOTrainer
from tokencredit.trainers.grpo_refill import SecondSampler

ROWS = [{"prompt": f"Ada asks {i}: ", "live": i % 3 == 0, "number": i} for i in range(12)]
SEEN: list[dict[str, Any]] = []


def some_dead(completions: list[str], prompts: list[str], live: list[bool], number: list[int], **more: Any) -> Any:
    SEEN.append({"prompts": prompts, "number": number})
    more["log_extra"]("number", number)
    return [value if alive else 0.5 for value, alive in zip(shape_of(completions), live, strict=True)]


def run(model: Path, folder: Path, **changes: Any) -> Any:
    SEEN.clear()
    args = TokenGRPOConfig(**settings(folder, **changes))
    trainer = watched(TokenGRPOTrainer)(
        model=str(model), reward_funcs=[trusted(some_dead)], args=args, train_dataset=Dataset.from_list(ROWS)
    )
    trainer.train()
    return trainer


def test_dead_groups_become_other_prompts(tiny_model: Path, tmp_path: Path) -> None:
    trainer = run(tiny_model, tmp_path, refill_dead_groups=20, per_device_train_batch_size=16)
    (seen,) = trainer.seen
    assert len(seen["completion_ids"]) == 16
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert line["live_groups"] == 1
    # Two thirds of the prompts are dead: what was drawn is what was replaced.
    assert line["refilled_groups"] == trainer._refill.sampler.taken / 4 > 0
    assert line["reward_std"] > 0
    text = trainer.processing_class.batch_decode(seen["prompt_ids"], skip_special_tokens=True)
    live = {row["prompt"] for row in ROWS if row["live"]}
    assert {prompt if prompt in live else prompt + " " for prompt in text} <= live
    # Data columns, the completions table and rewards belong to the prompts that stand there now.
    assert [f"Ada asks {number}: " for number in trainer._logs["extra"]["number"]] == list(trainer._logs["prompt"])
    assert all(row["prompts"] == [f"Ada asks {number}: " for number in row["number"]] for row in SEEN)
    for group in range(4):
        rows = seen["group_ids"] == group
        assert len(seen["prompt_ids"][rows].unique(dim=0)) == 1
        assert seen["advantages"][rows].abs().sum() > 0


def test_what_stays_dead_is_masked(tiny_model: Path, tmp_path: Path) -> None:
    plain = run(tiny_model, tmp_path, per_device_train_batch_size=16)
    once = run(tiny_model, tmp_path, per_device_train_batch_size=16, refill_dead_groups=1)
    shares = [trainer.state.log_history[0]["live_groups"] for trainer in (plain, once)]
    assert shares[0] < 1
    assert once._refill.sampler.taken == 4 * (1 - shares[0])
    for trainer, share in zip((plain, once), shares, strict=True):
        (seen,) = trainer.seen
        assert len(seen["completion_ids"]) == 16
        assert (seen["tool_mask"].sum(1) > 0).float().mean() == share
    with pytest.raises(InputError, match="refill_dead_groups: -1 is negative"):
        TokenGRPOConfig(**settings(tmp_path, refill_dead_groups=-1))


def test_a_stream_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    args = TokenGRPOConfig(**settings(tmp_path, refill_dead_groups=1))
    data = Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(InputError, match="refill_dead_groups: groups cannot be generated again: the data is a stream"):
        TokenGRPOTrainer(model=str(tiny_model), reward_funcs=[trusted(shape_of)], args=args, train_dataset=data)


def test_sampler_gives_each_row_once_in_every_turn() -> None:
    whole = SecondSampler(5, seed=3).draw(15)
    for turn in range(3):
        assert sorted(whole[5 * turn : 5 * turn + 5]) == [0, 1, 2, 3, 4]
    assert whole[:5] != whole[5:10]
    resumed = SecondSampler(5, seed=3)
    resumed.taken = 4
    assert resumed.draw(3) + resumed.draw(8) == whole[4:]


def test_rewards_of_replaced_rows() -> None:
    old = RewardBatch(["f"], [[1.0], [None], [3.0]], [["ok"], ["error"], ["ok"]], [[0.1], [0.2], [0.3]], [[None]] * 3)
    old.failures = [Failure("f", 1, "error", "ValueError", "")]
    new = RewardBatch(["f"], [[5.0], [None]], [["ok"], ["timeout"]], [[0.5], [0.6]], [[None]] * 2)
    new.failures = [Failure("f", 1, "timeout", "deadline", "")]
    found = old.replaced([1, 2], new)
    assert found.values == [[1.0], [5.0], [None]]
    assert found.status == [["ok"], ["ok"], ["timeout"]]
    assert [(failure.row, failure.status) for failure in found.failures] == [(2, "timeout")]
    assert torch.tensor(found.seconds).flatten().tolist() == pytest.approx([0.1, 0.5, 0.6])
