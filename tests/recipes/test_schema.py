"""Keys and values of a recipe."""

import inspect
import re
from dataclasses import fields
from typing import Any

import pytest
import yaml
from trl import DPOConfig, DPOTrainer, ModelConfig, ScriptArguments, SFTConfig

from tokencredit.errors import InputError
from tokencredit.recipes.files import builtin_recipes, read_recipe
from tokencredit.recipes.schema import OwnKeys, parse_recipe
from tokencredit.trainers import METHODS

BASE: dict[str, Any] = {"trainer": "dpo", "output_dir": "/runs/a"}


def test_keys_go_to_the_dataclass_that_has_them() -> None:
    recipe = parse_recipe(BASE | {"beta": 0.2, "lora_r": 8, "dataset_name": "x", "total_train_batch_size": 16})
    assert recipe.training == {"output_dir": "/runs/a", "beta": 0.2}
    assert recipe.model == {"lora_r": 8}
    assert recipe.data == {"dataset_name": "x"}
    assert recipe.own.total_train_batch_size == 16


@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, ModelConfig, ScriptArguments])
def test_our_keys_shadow_none_of_theirs(config: type) -> None:
    assert not {item.name for item in fields(config)} & set(OwnKeys.model_fields)


def test_a_field_of_another_trainer_is_unknown() -> None:
    with pytest.raises(InputError, match="packing: unknown key"):
        parse_recipe(BASE | {"packing": True})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("learning_rate", "1e-4", 1e-4),  # YAML reads 1e-4, without a dot, as text
        ("eval_strategy", False, "no"),  # and a bare no as false
        ("loss_type", "ipo", ["ipo"]),
        ("loss_type", ["sigmoid", "sft"], ["sigmoid", "sft"]),
        ("eval_steps", 20, 20),
        ("eval_steps", 0.1, 0.1),
        ("bf16", "yes", True),
        ("max_steps", "10", 10),
        ("resume_from_checkpoint", True, True),
        ("report_to", "tensorboard", "tensorboard"),
        ("lr_scheduler_kwargs", {"num_cycles": 2}, {"num_cycles": 2}),
        ("max_length", None, None),
    ],
)
def test_values_as_the_trainer_takes_them(key: str, value: Any, expected: Any) -> None:
    checked = parse_recipe(BASE | {key: value}).training[key]
    assert checked == expected
    assert type(checked) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_steps", 2.5, "max_steps: 2.5 is not int"),
        ("bf16", "maybe", "bf16: 'maybe' is not bool"),
        ("run_name", 5, "run_name: 5 is not str"),
        ("dtype", "float12", "dtype: unknown value 'float12'; choose one of auto, bfloat16, float16, float32"),
        ("loss_type", {"a": 1}, "loss_type:"),
        ("augment", {"share": 1.5}, "augment.share: 1.5 is wrong"),
        ("init", {"model_type": "llama", "tokenizer": {"kind": "words"}}, "init.tokenizer.kind: 'words' is wrong"),
        ("prompt_template", 3, "prompt_template: 3 is wrong"),
    ],
)
def test_values_the_trainer_could_not_take(key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(BASE | {key: value})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", [name for name in builtin_recipes() if not name.startswith("pairs/")])
def test_flat_reads_back(name: str) -> None:
    recipe = parse_recipe(read_recipe(name, []))
    assert parse_recipe(yaml.safe_load(yaml.safe_dump(recipe.flat()))) == recipe


def test_dpo_losses_are_those_of_trl() -> None:
    """TRL does not declare them: they are read from the message of its own refusal."""
    source = inspect.getsource(DPOTrainer._compute_loss)
    listed = source.partition("Should be one of [")[2].partition("]")[0]
    assert set(re.findall(r"'(\w+)'", listed)) == set(METHODS["dpo"].choices["loss_type"])


def test_secrets_stay_out_of_what_is_written_and_printed() -> None:
    secret = {
        "env": {"WANDB_API_KEY": "sekret", "WANDB_PROJECT": "mine", "MY_PASSWORD": "sekret"},
        "hub_token": "sekret",
    }
    recipe = parse_recipe(BASE | secret)
    assert recipe.own.env["WANDB_API_KEY"] == "sekret"
    assert "sekret" not in str(recipe.flat())
    assert recipe.flat()["env"] == {"WANDB_PROJECT": "mine"}


def test_empty_sections_are_the_default() -> None:
    assert parse_recipe(BASE | {"env": None, "launch": None, "peft": None}) == parse_recipe(BASE)
