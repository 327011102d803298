"""Token weights on TRL's own SFT and DPO losses.

Tolerance 1e-6 where both sides come from one set of float32 log-probabilities, 1e-5 where one side is computed from
full logits instead of TRL's chunked head.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.conftest import SHORT_RUN, answers, preferences
from tokencredit.errors import InputError
from tokencredit.recipes.build import build_trainer
from tokencredit.recipes.data import load_data
from tokencredit.recipes.schema import parse_recipe
from tokencredit.trainers import METHODS
from tokencredit.trainers.weighted import (
    WeightedDPOConfig,
    WeightedDPOTrainer,
    WeightedSFTConfig,
    WeightedSFTTrainer,
)

pytestmark = pytest.mark.slow

COMMON: dict[str, Any] = SHORT_RUN | {"use_cpu": True, "bf16": False, "disable_tqdm": True}
LOSSES = METHODS["dpo"].choices["loss_type"]


def ones(example: Any, text: str, offsets: Any) -> list[float]:
    return [1.0] * len(offsets)


def rising(example: Any, text: str, offsets: Any) -> list[float]:
    """1, 2, 3, … and 1 on the end of turn, which `text_only` sees to."""
    return [float(place + 1) for place in range(len(offsets))]


RISING, ONES = ({"function": f"{__name__}:{name}"} for name in ("rising", "ones"))


def dpo(kind: Any, config: Any, model: Path, run: Path, *, lora: bool = False, **keys: Any) -> Any:
    # exo_pair takes the logarithm of the label smoothing, robust needs it below a half.
    smoothing = {"label_smoothing": 0.1} if keys.get("loss_type") in (["exo_pair"], ["robust"]) else {}
    args = config(output_dir=str(run), beta=0.5, **(COMMON | smoothing | keys))
    peft = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None
    return kind(str(model), args=args, train_dataset=Dataset.from_list(preferences(8)), peft_config=peft)


def only_batch(trainer: Any) -> dict[str, Any]:
    return next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))


def moved(model: Any) -> Any:
    """A policy that is not the reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def token_logps(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """ℓ_t of the response tokens from full logits, 0 elsewhere."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return logps * batch["completion_mask"][:, 1:]


def rising_by_hand(batch: dict[str, Any]) -> torch.Tensor:
    """1, 2, … n, and 1 on the end-of-text token, over their mean, per response."""
    weights = torch.ones(batch["input_ids"][:, 1:].shape)
    for row, mask in zip(weights, batch["completion_mask"][:, 1:].bool(), strict=True):
        count = int(mask.sum())
        raw = torch.tensor([*range(1, count), 1.0])
        row[mask] = raw / raw.mean()
    return weights


class Scored(torch.nn.Module):
    """Stands for a model whose head returns given log-probabilities."""

    def __init__(self, logps: torch.Tensor) -> None:
        super().__init__()
        self.logps = logps

    def forward(self, **kwargs: Any) -> Any:
        from trl.trainer.utils import FusedCausalLMOutput

        zeros = torch.zeros_like(self.logps)
        return FusedCausalLMOutput(
            loss=None, log_probs=self.logps, entropy=zeros, log_sum_sq_probs=None, mean_logits=zeros,
            is_top1=zeros.bool(), label_mask=zeros.bool(), aux_loss=None,
        )  # fmt: skip


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_dpo_loss_sees_weighted_log_probs(loss_type: str, tiny_model: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"loss_type": [loss_type]}
    ours = dpo(WeightedDPOTrainer, WeightedDPOConfig, tiny_model, tmp_path, token_weights=RISING, **keys)
    stock = dpo(DPOTrainer, DPOConfig, tiny_model, tmp_path, **keys)
    batch = only_batch(ours)
    moved(ours.model).eval()
    with torch.no_grad():
        loss = ours.compute_loss(ours.model, dict(batch))
        plain = {name: value for name, value in batch.items() if name != "token_weights"}
        weights = rising_by_hand(batch)
        stock.model.eval()
        stock.ref_model = Scored(weights * token_logps(stock.ref_model, batch))
        expected = stock.compute_loss(Scored(weights * token_logps(ours.model, batch)), plain)
        unweighted = dpo(DPOTrainer, DPOConfig, tiny_model, tmp_path, **keys).compute_loss(ours.model, plain)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert abs(loss - unweighted) > 1e-4, "the weights must matter, or nothing is shown"


@pytest.mark.parametrize("loss_type", LOSSES)
def test_equal_weights_are_the_stock_loss(loss_type: str, tiny_model: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"loss_type": [loss_type]}
    ours = dpo(WeightedDPOTrainer, WeightedDPOConfig, tiny_model, tmp_path, token_weights=ONES, **keys)
    stock = dpo(DPOTrainer, DPOConfig, tiny_model, tmp_path, **keys)
    batch = only_batch(ours)
    plain = {name: value for name, value in batch.items() if name != "token_weights"}
    for trainer in (ours, stock):
        moved(trainer.model).eval()
    with torch.no_grad():
        found, expected = ours.compute_loss(ours.model, dict(batch)), stock.compute_loss(stock.model, plain)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_a_precomputed_reference_is_weighted_too(lora: bool, tiny_model: Path, tmp_path: Path) -> None:
    curves = []
    for precompute in (False, True):
        torch.manual_seed(0)
        keys: dict[str, Any] = {"token_weights": RISING, "precompute_ref_log_probs": precompute, "learning_rate": 1e-2}
        trainer = dpo(WeightedDPOTrainer, WeightedDPOConfig, tiny_model, tmp_path, lora=lora, **keys)
        trainer.train()
        curves.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)
    assert abs(curves[0][0] - curves[0][-1]) > 1e-3


def sft(kind: Any, config: Any, model: Path, run: Path, rows: Any = None, **keys: Any) -> Any:
    args = config(output_dir=str(run), **(COMMON | keys))
    return kind(str(model), args=args, train_dataset=Dataset.from_list(rows or answers(8)))


def test_weighted_sft_is_the_weighted_sum(tiny_model: Path, tmp_path: Path) -> None:
    trainer = sft(WeightedSFTTrainer, WeightedSFTConfig, tiny_model, tmp_path, token_weights=RISING)
    batch = only_batch(trainer)
    batch["completion_mask"] = (batch["labels"] != -100).long()
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        logps, weights = token_logps(model, batch), rising_by_hand(batch)
        expected = -(weights * logps).sum() / batch["completion_mask"].sum()
        plain = -logps.sum() / batch["completion_mask"].sum()
        del batch["completion_mask"]
        found = trainer.compute_loss(trainer.model.eval(), batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert abs(found - plain) > 1e-3, "the weights must matter, or nothing is shown"


@pytest.mark.parametrize("weights", [None, ONES])
def test_equal_weights_are_stock_sft(weights: Any, tiny_model: Path, tmp_path: Path) -> None:
    ours = sft(WeightedSFTTrainer, WeightedSFTConfig, tiny_model, tmp_path, token_weights=weights)
    stock = sft(SFTTrainer, SFTConfig, tiny_model, tmp_path)
    curves = []
    for trainer in (ours, stock):
        trainer.train()
        curves.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_sft_truncation_keeps_weights_with_their_tokens(mode: str, tiny_model: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"token_weights": RISING, "truncation_mode": mode}
    whole = sft(WeightedSFTTrainer, WeightedSFTConfig, tiny_model, tmp_path, max_length=None, **keys).train_dataset
    longest = max(whole, key=lambda row: len(row["input_ids"]))
    cut_at = [label != -100 for label in longest["labels"]].index(True) + 1
    cut = sft(WeightedSFTTrainer, WeightedSFTConfig, tiny_model, tmp_path, max_length=cut_at, **keys).train_dataset
    kept = slice(None, cut_at) if mode == "keep_start" else slice(-cut_at, None)
    rows = [row for row in whole if any(label != -100 for label in row["labels"][kept])]
    assert len(cut) == len(rows) > 0
    assert any(len(row["input_ids"]) > cut_at for row in rows)
    for short, long in zip(cut, rows, strict=True):
        for column in ("input_ids", "labels", "token_weights"):
            assert short[column] == long[column][kept]


@pytest.mark.parametrize("trainer", ["sft", "dpo"])
def test_recipes_take_token_weights(trainer: str, recipe_text: dict[str, Any], dpo_data: Path) -> None:
    data = {} if trainer == "sft" else {"dataset_name": str(dpo_data)}
    curves = []
    for weights in (None, RISING):
        recipe = parse_recipe(recipe_text | data | {"trainer": trainer, "token_weights": weights, "use_cpu": True})
        built = build_trainer(recipe, load_data(recipe))
        built.train()
        curves.append([line["loss"] for line in built.state.log_history if "loss" in line])
    assert abs(curves[0][-1] - curves[1][-1]) > 1e-4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"packing": True}, "packing: True does not go with token_weights"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "dataset_kwargs: .* does not go"),
        ({"loss_type": "dft"}, "loss_type: 'dft' does not go with token_weights"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.1 does not go"),
        ({"assistant_only_loss": True}, "assistant_only_loss: True does not go"),
    ],
)
def test_sft_settings_that_would_drop_the_weights_are_refused(keys: Any, message: str, tmp_path: Path) -> None:
    WeightedSFTConfig(output_dir=str(tmp_path), **(COMMON | keys))
    with pytest.raises(InputError, match=message):
        WeightedSFTConfig(output_dir=str(tmp_path), token_weights=ONES, **(COMMON | keys))


def test_wpo_with_token_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use_weighting"):
        WeightedDPOConfig(output_dir=str(tmp_path), token_weights=ONES, use_weighting=True, **COMMON)


def test_weights_need_prompt_and_completion(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"text": "Ada asks"}]
    with pytest.raises(InputError, match="no prompt and completion"):
        sft(WeightedSFTTrainer, WeightedSFTConfig, tiny_model, tmp_path, rows, token_weights=ONES)


def test_weights_in_sft_data_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    rows = [row | {"token_weights": [1.0]} for row in answers(8)]
    with pytest.raises(InputError, match="the data has a column 'token_weights', which is made here"):
        sft(WeightedSFTTrainer, WeightedSFTConfig, tiny_model, tmp_path, rows, token_weights=ONES)


def test_differing_tokens_need_a_pair(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no other side"):
        sft(WeightedSFTTrainer, WeightedSFTConfig, tiny_model, tmp_path, token_weights={"differing": 1.2})


SFT = sft, WeightedSFTTrainer, WeightedSFTConfig
DPO = dpo, WeightedDPOTrainer, WeightedDPOConfig


@pytest.mark.parametrize(("make", "kind", "config"), [SFT, DPO], ids=["sft", "dpo"])
def test_a_max_length_that_leaves_nothing_is_refused(
    make: Any, kind: Any, config: Any, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="max_length: 2 leaves no"):
        make(kind, config, tiny_model, tmp_path, token_weights=ONES, max_length=2)
