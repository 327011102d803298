"""The T-REG recipes that ship: each is read, checked and planned as the command does."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.recipes.files import builtin_recipes, read_recipe
from tokencredit.recipes.schema import parse_recipe

NAMES = sorted(name for name in builtin_recipes() if name.startswith("t_reg/"))


def test_they_are_there() -> None:
    expected = ["addresses", "addresses_smollm2", "ultrafeedback_gemma2-9b", "ultrafeedback_llama3-8b"]
    assert [name.removeprefix("t_reg/") for name in NAMES] == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_known(name: str) -> None:
    recipe = parse_recipe(read_recipe(name, []))
    assert recipe.own.trainer == "t_reg"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "base", "beta"), [("llama3-8b", "dpo", 0.01), ("gemma2-9b", "simpo", 10.0)])
def test_the_published_settings_are_planned_for_gpus(name: str, base: str, beta: float) -> None:
    """128 pairs a step whatever the machine; model and data are on the hub, which is said."""
    arguments = ["train", f"t_reg/ultrafeedback_{name}", "num_processes=8", "--dry-run"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    recipe = yaml.safe_load(result.stdout.partition("\n# ")[0])
    assert (recipe["base"], recipe["beta"], recipe["gradient_accumulation_steps"]) == (base, beta, 16)
    assert recipe["deepspeed"]["zero_optimization"]["stage"] == 3
    assert "not available locally" in result.stderr


def test_own_templates_and_evaluator_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("defaults: t_reg/addresses\ntemplates: own.yaml\nevaluator: ./model\n")
    layer = read_recipe(str(tmp_path / "my.yaml"), [])
    assert layer["templates"] == str(tmp_path / "own.yaml")
    assert layer["evaluator"] == str(tmp_path / "model")
    assert read_recipe(str(tmp_path / "my.yaml"), ["templates=general"])["templates"] == "general"
