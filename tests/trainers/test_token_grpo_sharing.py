"""Common prefixes of a group computed once: TokenGRPO's loss and gradients stay those of TRL's padded forward.

Tolerance 1e-6: sums of float32 in another order.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MixtralConfig

from tests.trainers.grpo_runs import data, settings, shape_of, token_grpo, trusted, watched
from tests.trainers.test_token_grpo import gradient_of_trl
from tokencredit.errors import InputError
from tokencredit.scoring.tree_batch import batch_trees
from tokencredit.trainers import TokenGRPOConfig, TokenGRPOTrainer

CLOSE = {"rtol": 0, "atol": 1e-6}
# Random, but small: with lora_alpha=8 the step of TRL itself moves by 4e-5 when its rows are padded by more.
LORA = LoraConfig(r=2, lora_alpha=1, target_modules="all-linear", init_lora_weights=False)


def run(model: Any, folder: Path, share: Any, peft: Any = None, tokenizer: Any = None, **changes: Any) -> Any:
    args = TokenGRPOConfig(**settings(folder, share_prefixes=share, **changes))
    rewards = [trusted(shape_of)]
    trainer = watched(TokenGRPOTrainer)(
        model=model, reward_funcs=rewards, args=args, train_dataset=data(), peft_config=peft, processing_class=tokenizer
    )
    trainer.train()
    return trainer


def same(found: Any, expected: Any) -> None:
    """Both took the same steps, and the first went over trees."""
    assert len(found.gradients) == len(expected.gradients)
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        assert theirs.norm() > 1e-3
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert found.seen[0].keys() == expected.seen[0].keys()
    for name in ("completion_ids", "advantages", "old_per_token_logps", "ref_per_token_logps"):
        if name in found.seen[0]:
            torch.testing.assert_close(found.seen[0][name], expected.seen[0][name], rtol=1e-5, atol=1e-6)
    shared, padded = ([line for line in trainer.state.log_history if "loss" in line] for trainer in (found, expected))
    assert all(line["shared_prefix/used"] == 1 for line in shared)
    # Prompts of 12 to 18 characters, answers of 2 to 8, groups of 4: 4 × 22 tokens alone, about 14 + 4 × 8 in a tree.
    assert all(0.25 < line["shared_prefix/token_ratio"] < 0.7 for line in shared)
    assert "shared_prefix/used" not in padded[0]
    for ours, theirs in zip(shared, padded, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
        assert ours["entropy"] == pytest.approx(theirs["entropy"], abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        # Old and reference log-probabilities too; a second update on the same rollouts.
        {"num_iterations": 2, "max_steps": 2, "beta": 0.1, "temperature": 0.7},
        {"credit": ["reinforce_pp_baseline", "entropy_advantage", "high_entropy_mask"], "gradient_checkpointing": True},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        {"peft": LORA, "beta": 0.1},
    ],
    ids=["reference", "entropies", "accumulated", "lora"],
)
def test_trees_change_no_number(changes: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)  # of the adapter
    found = run(str(tiny_model), tmp_path / "on", True, **changes)
    torch.manual_seed(0)
    same(found, run(str(tiny_model), tmp_path / "off", False, **changes))


def test_trees_take_the_step_of_trl(tiny_model: Path, tmp_path: Path) -> None:
    expected = gradient_of_trl(tiny_model, tmp_path / "stock", temperature=0.7)
    found = run(str(tiny_model), tmp_path / "ours", "on", temperature=0.7)
    torch.testing.assert_close(found.gradients[0], expected, **CLOSE)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
ARCHITECTURES = {
    # Windows on depth, not on rows.
    "windows": (MistralConfig, {"sliding_window": 6}),
    # The auxiliary loss counts a token as often as it is used.
    "experts": (
        MixtralConfig,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1},
    ),
}


def given_answers(_trainer: Any, prompt_ids: list[list[int]], *given: Any) -> tuple[list[list[int]], None]:
    """Mixtral cannot generate while it hands out its router's logits, with or without us."""
    return [[5 + (7 * row + place) % 40 for place in range(2 + row % 5)] for row in range(len(prompt_ids))], None


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures(kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "experts":
        monkeypatch.setattr(TokenGRPOTrainer, "_generate_single_turn", given_answers)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config_class, more = ARCHITECTURES[kind]
    torch.manual_seed(0)
    config = config_class(vocab_size=len(tokenizer), num_key_value_heads=2, **SMALL, **more)
    AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path = str(tmp_path / "model")
    found, expected = (run(path, tmp_path / share, share) for share in ("on", "off"))
    same(found, expected)
    if kind == "experts":
        figures = [trainer.state.log_history[0]["aux_loss"] for trainer in (found, expected)]
        assert figures[0] == pytest.approx(figures[1], abs=1e-6) != 0


def test_a_model_that_cannot_is_padded_and_said_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tokencredit.trainers.sharing.refusal", lambda *given: "it cannot")
    trainer = token_grpo(tiny_model, tmp_path)
    trainer.train()
    said = [record.message for record in caplog.records if "share_prefixes" in record.message]
    assert said == ["share_prefixes: every response is computed whole: it cannot"]
    with pytest.raises(InputError, match="share_prefixes: common prefixes cannot be shared: it cannot"):
        token_grpo(tiny_model, tmp_path, share_prefixes="on")
    with pytest.raises(InputError, match="choose one of auto, on, off"):
        TokenGRPOConfig(**settings(tmp_path, share_prefixes="yes"))


def test_padding_before_the_tokens_moves_places_only() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 0], [5, 6, 9, 0, 0], [5, 6, 7, 0, 0]])
    mask = (ids > 0).long()
    scored = mask.clone()
    scored[:, :2] = 0
    shifts = [0, 2, 1]
    rolled = [torch.stack([row.roll(n) for row, n in zip(x, shifts, strict=True)]) for x in (ids, mask, scored)]
    right, left = (
        batch_trees(ids, mask, scored, hidden_size=8, always=True),
        batch_trees(*rolled, hidden_size=8, always=True),
    )
    for name in ("tokens", "heads", "labels", "counts"):
        assert torch.equal(left[name], right[name])
    for row, n in enumerate(shifts):
        assert torch.equal(left["places"][row].roll(-n), right["places"][row])


def test_nothing_to_score_is_padded() -> None:
    """All answers cut off, and masked."""
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
    found = batch_trees(ids, torch.ones_like(ids), torch.zeros_like(ids), hidden_size=8, always=True)
    assert list(found) == ["counts"]
    assert found["counts"][2] == 0
