"""A recipe's objects: what reaches TRL, and LoRA through to a plain model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tokencredit.errors import InputError
from tokencredit.recipes.build import build_trainer, training_arguments
from tokencredit.recipes.data import load_data
from tokencredit.recipes.merge import merge_adapter
from tokencredit.recipes.schema import parse_recipe

LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}


def build(recipe: dict[str, Any]) -> Any:
    parsed = parse_recipe(recipe | {"use_cpu": True, "bf16": False})
    Path(recipe["output_dir"]).mkdir()
    return build_trainer(parsed, load_data(parsed))


def test_model_keywords_reach_the_model(recipe_text: dict[str, Any]) -> None:
    keys = {"attn_implementation": "eager", "dtype": "bfloat16", "model_init_kwargs": {"attention_dropout": 0.25}}
    trainer = build(recipe_text | keys)
    config = trainer.model.config
    assert config._attn_implementation == "eager"
    assert config.attention_dropout == 0.25
    assert next(trainer.model.parameters()).dtype == torch.bfloat16


def test_arguments_that_contradict_name_the_field(recipe_text: dict[str, Any]) -> None:
    from trl import ModelConfig

    recipe = parse_recipe(recipe_text | {"use_cpu": True, "bf16": True, "fp16": True})
    with pytest.raises(InputError, match=r"^(bf16|fp16): True cannot be used; At most one of fp16 and bf16"):
        training_arguments(recipe, ModelConfig())


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_lora_trains_the_adapter_only_and_merges(
    method: str, recipe_text: dict[str, Any], dpo_data: Path, tmp_path: Path
) -> None:
    recipe = recipe_text | {"trainer": method, "peft": LORA, "max_steps": 2, "learning_rate": 0.1}
    if method == "dpo":
        recipe["dataset_name"] = str(dpo_data)
    trainer = build(recipe)
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 2 * 2  # A and B, of two projections, in two layers
    assert all("lora_" in name for name in trainable)
    trainer.train()
    trainer.save_model(recipe["output_dir"])
    merge_adapter(tmp_path / "run", tmp_path / "merged")
    before = AutoModelForCausalLM.from_pretrained(recipe["model_name_or_path"]).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        f"model.layers.{layer}.self_attn.{projection}.weight" for layer in (0, 1) for projection in ("q_proj", "v_proj")
    }
