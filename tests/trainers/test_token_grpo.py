"""TokenGRPO against TRL's GRPO, in real training steps."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.trainers.grpo_runs import alike, data, settings, shape_of, stock_settings, token_grpo, trusted, watched
from tokencredit.errors import InputError
from tokencredit.trainers import TokenGRPOConfig, TokenGRPOTrainer


@pytest.fixture(scope="module")
def stock(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The gradient of TRL's own first step."""
    return gradient_of_trl(tiny_model, tmp_path_factory.mktemp("stock"))


def gradient_of_trl(model: Path, folder: Path, **changes: Any) -> torch.Tensor:
    args = GRPOConfig(**stock_settings(folder, **changes))
    trainer = watched(GRPOTrainer)(model=str(model), reward_funcs=[shape_of], args=args, train_dataset=data())
    trainer.train()
    return trainer.gradients[0]


@pytest.mark.parametrize(
    "credit",
    [
        None,
        "outcome",
        {"function": "reward_spans", "arguments": {"weight": 0.0}},
        {"function": "entropy_advantage", "arguments": {"alpha": 0.0}},
        {"function": "high_entropy_mask", "arguments": {"share": 1.0}},
        ["outcome", {"function": "high_entropy_mask", "arguments": {"share": 1}}, "reward_spans"],
    ],
)
def test_neutral_credit_gives_the_gradient_of_trl(
    credit: Any, stock: torch.Tensor, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = token_grpo(tiny_model, tmp_path, credit=credit)
    trainer.train()
    assert trainer.seen[0]["advantages"].dim() == 2
    assert stock.norm() > 1e-3
    torch.testing.assert_close(trainer.gradients[0], stock, rtol=0, atol=1e-6)


def test_neutral_token_weight_gives_the_gradient_of_trl(stock: torch.Tensor, tiny_model: Path, tmp_path: Path) -> None:
    weight = {"function": "divergence_weighted", "arguments": {"scale": 0.0}}
    trainer = token_grpo(tiny_model, tmp_path, token_weight=weight)
    trainer.train()
    torch.testing.assert_close(trainer.gradients[0], stock, rtol=0, atol=1e-6)


def test_baseline_without_whitening_is_trl_without_scaling(tiny_model: Path, tmp_path: Path) -> None:
    expected = gradient_of_trl(tiny_model, tmp_path / "stock", scale_rewards="none")
    credit = {"function": "reinforce_pp_baseline", "arguments": {"normalise": False}}
    trainer = token_grpo(tiny_model, tmp_path / "ours", credit=credit)
    trainer.train()
    torch.testing.assert_close(trainer.gradients[0], expected, rtol=0, atol=1e-6)


def sometimes(completions: list[str], **columns: Any) -> list[float | None]:
    """Nothing for some, and for a whole group; large where there is one."""
    return [None if ord((text or " ")[0]) % 3 == 0 else 100.0 * len(set(text)) for text in completions]


@pytest.mark.parametrize("way", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("mask", [True, False])
def test_several_rewards_are_put_together_as_trl_does(way: str, mask: bool, tiny_model: Path, tmp_path: Path) -> None:
    """A group is dead only if every function it is compared by says so; nobody is here, so masking changes nothing."""
    rewards, keys = [shape_of, sometimes], {"multi_objective_aggregation": way, "reward_weights": [1.0, -0.5]}
    trainers = []
    for kind, settings_class, functions, more in (
        (GRPOTrainer, GRPOConfig, rewards, stock_settings(tmp_path / "stock", **keys)),
        (TokenGRPOTrainer, TokenGRPOConfig, [trusted(f) for f in rewards], settings(tmp_path / "ours", **keys)),
    ):
        more |= {"mask_dead_groups": mask} if kind is TokenGRPOTrainer else {}
        args = settings_class(**more)
        trainers.append(watched(kind)(model=str(tiny_model), reward_funcs=functions, args=args, train_dataset=data()))
        trainers[-1].train()
    stock, ours = trainers
    torch.testing.assert_close(ours.gradients[0], stock.gradients[0], rtol=0, atol=1e-6)
    spread = ours.seen[0]["advantages"].std(dim=0)[0]
    assert spread > 0.5


def test_order_of_a_generation_batch_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """The rows of a batch, groups and members of groups in another order: the loss and its gradient stay."""
    weight = {"function": "divergence_weighted", "arguments": {"scale": 0.5, "sharpness": 50.0}}
    credit = ["reinforce_pp_baseline", "entropy_advantage", "high_entropy_mask"]
    changes = {"credit": credit, "token_weight": weight, "num_iterations": 2, "learning_rate": 1e-4}
    trainer = token_grpo(tiny_model, tmp_path, max_steps=2, **changes)
    trainer.train()
    batch = trainer.seen[1]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    moved = {
        name: value[order] if isinstance(value, torch.Tensor) and value.ndim else value for name, value in batch.items()
    }
    found = []
    for inputs in (batch, moved):
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, inputs).backward()
        found.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert found[0].norm() > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)


def test_divergence_weights_act_from_the_second_update_on(tiny_model: Path, tmp_path: Path) -> None:
    two = {"num_iterations": 2, "max_steps": 2}
    weight = {"function": "divergence_weighted", "arguments": {"scale": 0.5, "sharpness": 50.0}}
    plain = token_grpo(tiny_model, tmp_path / "plain", **two)
    plain.train()
    weighted = token_grpo(tiny_model, tmp_path / "weighted", token_weight=weight, **two)
    weighted.train()
    torch.testing.assert_close(weighted.gradients[0], plain.gradients[0], rtol=0, atol=1e-7)
    assert (weighted.gradients[1] - plain.gradients[1]).abs().max() > 1e-4
    # The buffered advantages of the second update are still those of the rollouts.
    torch.testing.assert_close(weighted.seen[1]["advantages"], weighted.seen[0]["advantages"])


def test_token_weights_see_the_log_ratio_of_now_to_the_rollouts(tiny_model: Path, tmp_path: Path) -> None:
    """log π_θ − log π_old, computed by hand for the second update of the same rollouts."""
    seen: list[torch.Tensor] = []

    def record(log_ratio: torch.Tensor, entropies: torch.Tensor, mask: torch.Tensor, step: int) -> torch.Tensor:
        seen.append(log_ratio.clone())
        return torch.ones_like(log_ratio)

    trainer = token_grpo(tiny_model, tmp_path, token_weight=record, num_iterations=2, max_steps=2)
    weights = copy.deepcopy(trainer.model.state_dict())
    snapshots: list[dict[str, torch.Tensor]] = []

    class Snapshot(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *given: Any, **kwargs: Any) -> None:
            snapshots.append(copy.deepcopy(trainer.model.state_dict()))

    trainer.add_callback(Snapshot())
    trainer.train()
    inputs = trainer.seen[1]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    found = []
    for state in (weights, snapshots[1]):
        trainer.model.load_state_dict(state)
        with torch.no_grad():
            logits = trainer.model(input_ids=ids, attention_mask=attended).logits[:, :-1].float()
        every = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        found.append(every[:, -inputs["completion_ids"].shape[1] :])
    mask = inputs["completion_mask"].bool()
    assert seen[0][mask].abs().max() < 1e-5, "nothing has moved yet"
    expected = (found[1] - found[0])[mask]
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(seen[1][mask], expected, rtol=0, atol=1e-5)


def test_dead_groups_are_masked_and_not_counted(tiny_model: Path, tmp_path: Path) -> None:
    def first_group_differs(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
        values = shape_of(completions)
        return [value if prompt == prompts[0] else 0.5 for value, prompt in zip(values, prompts, strict=True)]

    trainer = token_grpo(tiny_model, tmp_path, first_group_differs)
    trainer.train()
    (seen,) = trainer.seen
    assert len(seen["completion_ids"]) == 8
    dead = seen["group_ids"] == 1
    assert dead.sum() == 4
    assert seen["tool_mask"][dead].sum() == 0
    assert seen["advantages"][dead].abs().sum() == 0
    assert seen["num_items_in_batch"] == seen["completion_mask"][~dead].sum()
    assert seen["advantages"][~dead].abs().sum() > 0


def test_groups_stay_together_over_micro_batches(tiny_model: Path, tmp_path: Path) -> None:
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    trainer = token_grpo(tiny_model, tmp_path, **changes)
    trainer.train()
    assert len(trainer.seen) == 4
    assert all(len(seen["group_ids"].unique()) == 1 for seen in trainer.seen)
    assert sorted(seen["group_ids"][0].item() for seen in trainer.seen) == [0, 1, 2, 3]


def endless(rollouts: Any, advantages: torch.Tensor) -> torch.Tensor:
    return advantages / 0


def test_steps_that_are_not_finite_are_skipped_saved_and_stop_the_run(tiny_model: Path, tmp_path: Path) -> None:
    trainer = token_grpo(tiny_model, tmp_path, credit=endless, max_skipped_steps=1, max_steps=3)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(InputError, match="2 steps had a loss or an advantage that is not finite"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert [p.name for p in sorted((tmp_path / "non_finite").iterdir())] == [
        "step-00000000-rank-0.safetensors",
        "step-00000001-rank-0.safetensors",
    ]


def endless_at_the_second_step(log_ratio: Any, entropies: Any, mask: torch.Tensor, step: int) -> torch.Tensor:
    return torch.full_like(mask, torch.inf if step == 1 else 1.0, dtype=torch.float32)


def test_a_skipped_step_moves_neither_weights_nor_momentum(tiny_model: Path, tmp_path: Path) -> None:
    """The optimiser is in motion before, decays weights, and goes on afterwards."""
    changes = {"token_weight": endless_at_the_second_step, "weight_decay": 0.1, "gradient_accumulation_steps": 2}
    trainer = token_grpo(tiny_model, tmp_path, max_steps=3, **changes)
    kept: list[list[torch.Tensor]] = []

    class Keep(TrainerCallback):
        def on_step_end(self, *given: Any, **kwargs: Any) -> None:
            moments = [value for state in kwargs["optimizer"].state.values() for value in state.values()]
            kept.append([value.clone() for value in [*trainer.model.parameters(), *moments]])

    trainer.add_callback(Keep())
    trainer.train()
    first, second, third = kept
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(second, third, strict=True) if a.ndim > 1)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert ["skipped_steps" in line for line in lines] == [False, True, False]


def test_all_rewards_alike_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    trainer = token_grpo(tiny_model, tmp_path, alike, credit="reinforce_pp_baseline")
    trainer.train()
    assert trainer.gradients[0].abs().max() == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"loss_type": "vespo"}, "loss_type"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold"),
        ({"credit": "outcom"}, "credit"),
        ({"credit": {"function": "outcome", "arguments": {"scal": 1}}}, "credit"),
        ({"token_weight": "nowhere:function"}, "token_weight"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        TokenGRPOConfig(**settings(tmp_path, **changes))
    assert caught.value.where == field


def test_saving_is_moved_to_where_rollouts_begin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"num_iterations": 2, "steps_per_generation": 2, "save_strategy": "steps", "save_steps": 6}
    args = TokenGRPOConfig(**settings(tmp_path, **changes))
    assert args.steps_per_rollout == 4
    assert args.save_steps == 8
    assert "save_steps: 6 moved to 8" in caplog.text


def test_an_answer_whose_spans_have_no_tokens_does_not_end_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It would end on one process, and leave the others waiting."""

    def on_first_letter(completions: list[str], **columns: Any) -> list[Any]:
        spans = [[{"start": 0, "end": 1, "value": 1.0}] if text else None for text in completions]
        return [value if given is None else given for value, given in zip(shape_of(completions), spans, strict=True)]

    def refuse(*given: Any) -> None:
        raise InputError("span", "no token wrote the characters [0, 1)", "give others")

    monkeypatch.setattr("tokencredit.trainers.token_grpo.token_values", refuse)
    trainer = token_grpo(tiny_model, tmp_path, on_first_letter, credit="reward_spans", max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    assert [record.message for record in caplog.records if "get no values" in record.message] == [
        "span: no token wrote the characters [0, 1); give others: tokens of such answers get no values (logged once)"
    ]
