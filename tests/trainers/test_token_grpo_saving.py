"""Checkpoints of TokenGRPO: where new rollouts begin, whatever asks for them."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.trainers.grpo_runs import PROMPTS, settings, shape_of, trusted
from tokencredit.errors import InputError
from tokencredit.trainers import TokenGRPOConfig, TokenGRPOTrainer
from tokencredit.trainers.checkpoints import checkpoints


def half_dead(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
    """The answers to half of the prompts are all alike."""
    values = shape_of(completions)
    return [0.5 if prompt in PROMPTS[::2] else value for prompt, value in zip(prompts, values, strict=True)]


def run(model: Path, folder: Path, resume: Path | None = None, reward: Any = shape_of, **changes: Any) -> Any:
    rows = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    args = TokenGRPOConfig(**settings(folder, **changes))
    trainer = TokenGRPOTrainer(
        model=str(model), reward_funcs=[trusted(reward)], args=args, train_dataset=rows, eval_dataset=rows
    )
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in checkpoints(folder))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "tokencredit"]


# A generation of 16 answers to 4 prompts is all the data, and takes two batches of 8.
@pytest.mark.parametrize(
    ("changes", "expected", "message"),
    [
        # Three batches a rollout, two a step: the second step of a pass is short, and 3 steps are not 3 batches.
        (
            {"save_strategy": "steps", "save_steps": 3, "max_steps": 5, "gradient_accumulation_steps": 2}
            | {"steps_per_generation": 3, "per_device_train_batch_size": 4, "num_generations": 3},
            [4, 5],
            ["step 3: checkpoints are put off to where new rollouts begin (said once)"],
        ),
        ({"save_strategy": "epoch", "num_iterations": 2, "max_steps": 9}, [4, 8, 9], []),
        (
            {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 3, "max_steps": 4, "num_iterations": 2}
            | {"metric_for_best_model": "reward", "greater_is_better": True, "per_device_eval_batch_size": 16},
            [4],
            ["eval_steps: 3 moved to 4: checkpoints are taken where new rollouts begin, every 4 steps"],
        ),
    ],
    ids=["steps", "epoch", "best"],
)
def test_every_checkpoint_lies_where_rollouts_begin(
    changes: dict[str, Any],
    expected: list[int],
    message: list[str],
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(tiny_model, tmp_path, **({"steps_per_generation": 2} | changes))
    assert steps(tmp_path) == expected
    assert said(caplog) == message


def test_evaluations_that_choose_the_best_are_moved_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"num_iterations": 2, "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3}
    args = TokenGRPOConfig(**settings(tmp_path, **changes, save_strategy="steps", save_steps=6))
    assert (args.eval_steps, args.save_steps) == (4, 8)
    assert len(said(caplog)) == 2
    with pytest.raises(InputError, match=r"save_steps: a share of the steps"):
        TokenGRPOConfig(**settings(tmp_path, num_iterations=2, save_strategy="steps", save_steps=0.5))
    with pytest.raises(InputError, match="enable_jit_checkpoint: it saves wherever a signal falls"):
        TokenGRPOConfig(**settings(tmp_path, enable_jit_checkpoint=True))


@pytest.mark.parametrize("more", [{}, {"reward": half_dead, "refill_dead_groups": 2}], ids=["plain", "refilled"])
def test_resumed_run_takes_the_same_steps(
    more: dict[str, Any], tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"num_iterations": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 5, **more}
    whole = run(tiny_model, tmp_path / "whole", **changes)
    again = run(tiny_model, tmp_path / "whole", resume=tmp_path / "whole" / "checkpoint-2", **changes)
    curves = [
        [(line["step"], line["loss"], line.get("reward")) for line in trainer.state.log_history if "loss" in line]
        for trainer in (whole, again)
    ]
    assert len(curves[0]) == 5
    assert curves[0] == curves[1]
    assert said(caplog) == []
    if more:
        assert [trainer._refill.sampler.taken for trainer in (whole, again)] == [whole._refill.sampler.taken] * 2
        assert whole._refill.sampler.taken > again._refill.sampler.size, "it has begun another order"
        return
    run(tiny_model, tmp_path / "whole", resume=tmp_path / "whole" / "checkpoint-5", **changes | {"max_steps": 6})
    assert said(caplog) == [
        "resumed at step 5, between two generations (every 2 steps): rollouts are made anew, earlier"
    ]
