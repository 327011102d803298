"""Models from scratch, and LoRA adapters made into plain models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.errors import InputError
from tokencredit.recipes.build import peft_config
from tokencredit.recipes.init_model import write_initial_model
from tokencredit.recipes.merge import merge_adapter
from tokencredit.recipes.schema import Init, parse_recipe

TEXTS = [{"prompt": "Größe: ", "completion": '[{"a":"ü"}]'}, {"messages": [{"role": "user", "content": "hé"}]}]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_model_from_scratch_loads(architecture: str, tmp_path: Path) -> None:
    init = Init(model_type=architecture, config=SMALL, tokenizer={"pieces": ['[{"a":"']})
    write_initial_model(init, TEXTS, tmp_path / "model", seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.decode(tokenizer("Größe: ☃")["input_ids"]) == "Größe: ☃"
    assert tokenizer.tokenize('[{"a":"ü') == ['[{"a":"', "ü"]
    ids = tokenizer("é")["input_ids"]
    assert len(ids) == 1, "characters of chat messages are in the vocabulary too"


def test_seed_decides_the_weights(tmp_path: Path) -> None:
    init = Init(model_type="llama", config=SMALL)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_initial_model(init, TEXTS, tmp_path / name, seed=seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])


def test_vocabulary_belongs_to_the_tokenizer(tmp_path: Path) -> None:
    init = Init(model_type="llama", config=SMALL | {"vocab_size": 100})
    with pytest.raises(InputError, match=r"init\.config\.vocab_size"):
        write_initial_model(init, TEXTS, tmp_path / "model", seed=0)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_merged_model_equals_base_with_adapter(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    merge_adapter(adapter, tmp_path / "merged")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        adapted = AutoPeftModelForCausalLM.from_pretrained(adapter)(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits
    # float32 products in another order: W + BA against Wx + B(Ax)
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)
    assert (merged - base).abs().max() > 1e-2
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("Ada")["input_ids"]
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_the_recipe_of_the_run_goes_with_the_merged_model(adapter: Path, tmp_path: Path) -> None:
    """`tokencredit eval` asks a model as the recipe in its folder asks."""
    (adapter / "recipe.yaml").write_text("trainer: sft\n")
    shutil.copytree(adapter, adapter / "checkpoint-2", ignore=shutil.ignore_patterns("recipe.yaml"))
    for index, folder in enumerate((adapter, adapter / "checkpoint-2")):
        merge_adapter(folder, tmp_path / f"merged-{index}")
        assert (tmp_path / f"merged-{index}" / "recipe.yaml").read_text() == "trainer: sft\n"


def test_merge_refuses(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="plain model already"):
        merge_adapter(tiny_model, tmp_path / "merged")
    with pytest.raises(InputError, match="exists"):
        merge_adapter(adapter, adapter)
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/nowhere"}))
    with pytest.raises(InputError, match="cannot be merged"):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("given", "kind", "checks"),
    [
        ({"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}, "LoraConfig", {"r": 4}),
        ({"peft_type": "lora", "use_dora": True}, "LoraConfig", {"use_dora": True}),
        ({"peft_type": "IA3"}, "IA3Config", {}),
        ({"peft_type": "VERA", "r": 64}, "VeraConfig", {"r": 64}),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5}, "PromptTuningConfig", {"num_virtual_tokens": 5}),
    ],
)
def test_any_peft_configuration_by_name(given: dict[str, Any], kind: str, checks: dict[str, Any]) -> None:
    config = peft_config(parse_recipe({"trainer": "sft", "output_dir": "/runs/a", "peft": given}))
    assert type(config).__name__ == kind
    assert config.task_type == "CAUSAL_LM"
    assert {name: getattr(config, name) for name in checks} == checks


def test_lora_by_trl_keys() -> None:
    config = peft_config(parse_recipe({"trainer": "sft", "output_dir": "/runs/a", "use_peft": True, "lora_r": 3}))
    assert (type(config).__name__, config.r) == ("LoraConfig", 3)
    assert peft_config(parse_recipe({"trainer": "sft", "output_dir": "/runs/a"})) is None
