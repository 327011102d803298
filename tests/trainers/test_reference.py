"""Per-token reference log-probabilities: computed once, kept by hash, never taken for another model or data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets import config as datasets_config
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.conftest import SHORT_RUN, preferences
from tokencredit.trainers.preference import PreferenceTrainer
from tokencredit.trainers.tab_po import TABPOConfig, TABPOTrainer

pytestmark = pytest.mark.slow

COMMON: dict[str, Any] = SHORT_RUN | {"use_cpu": True, "bf16": False, "disable_tqdm": True}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "tokencredit"


def build(model: Any, run: Path, rows: int = 12, lora: bool = False, **keys: Any) -> Any:
    peft = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None
    args = TABPOConfig(output_dir=str(run), **(COMMON | {"precompute_ref_log_probs": True} | keys))
    data = Dataset.from_list(preferences(rows))
    return TABPOTrainer(model, args=args, train_dataset=data, eval_dataset=data.select(range(3)), peft_config=peft)


@pytest.mark.parametrize("keys", [{}, {"max_length": 20}, {"max_length": 14, "truncation_mode": "keep_end"}])
def test_the_numbers_are_those_of_a_forward_in_training(
    keys: dict[str, Any], cache: Path, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = build(str(tiny_model), tmp_path / "run", **keys)
    assert trainer.ref_model is None, "the memory of a reference model is saved"
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(5)])
    forward = {name: batch[name] for name in ("input_ids", "attention_mask")}
    forward["labels"] = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    expected = trainer._reference_logps(forward)
    assert (expected != 0).any()
    torch.testing.assert_close(batch["ref_logps"][:, 1:], expected, atol=1e-5, rtol=0)


def test_a_second_run_computes_nothing(
    cache: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(str(tiny_model), tmp_path / "run").train_dataset
    files = sorted(cache.iterdir())
    assert [file.suffix for file in files] == [".parquet"] * 2, "training and evaluation data, nothing half-written"
    monkeypatch.setattr(PreferenceTrainer, "_reference_logps", None)
    second = build(str(tiny_model), tmp_path / "run").train_dataset
    assert first.to_dict() == second.to_dict()
    assert sorted(cache.iterdir()) == files


def test_an_interrupted_computation_leaves_nothing(
    cache: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PreferenceTrainer, "_reference_logps", fail)
        with pytest.raises(KeyboardInterrupt):
            build(str(tiny_model), tmp_path / "run")
    assert not cache.exists()


@pytest.mark.parametrize("change", ["model", "configuration", "precision", "data", "truncation"])
def test_other_numbers_for_another_reference(change: str, cache: Path, tiny_model: Path, tmp_path: Path) -> None:
    build(str(tiny_model), tmp_path / "run")
    known = set(cache.iterdir())
    model: Any = str(tiny_model)
    if change == "model":
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        with torch.no_grad():
            model.get_input_embeddings().weight[3, 3] += 1e-3
    if change == "configuration":
        model = AutoModelForCausalLM.from_pretrained(tiny_model, rms_norm_eps=1e-3)
    build(
        model,
        tmp_path / "run",
        bf16=change == "precision",
        rows=11 if change == "data" else 12,
        max_length=18 if change == "truncation" else 1024,
    )
    new = set(cache.iterdir()) - known
    assert len(new) == (1 if change == "data" else 2), "the evaluation data did not change with the training data"


def test_an_adapter_is_no_part_of_the_reference(cache: Path, tiny_model: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        torch.manual_seed(seed)
        build(str(tiny_model), tmp_path / "run", lora=True)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_a_resumed_run_has_the_first_reference(
    precompute: bool, lora: bool, cache: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Precomputed, full fine-tuning keeps no reference model: a resumed run uses what the first one computed."""
    keys: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "learning_rate": 1e-2}
    keys |= {"precompute_ref_log_probs": precompute, "lora": lora}
    whole = build(str(tiny_model), tmp_path / "run", **keys)
    whole.train()
    resumed = build(str(tiny_model), tmp_path / "run", **keys)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    curves = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (whole, resumed)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)
    assert len(curves[0]) == 4
