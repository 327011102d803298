"""The SPAE recipes that ship: read, checked and planned as the command does; one of them trains a tiny model."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.trainers.spae_runs import write_model
from tokencredit.cli import app
from tokencredit.recipes.files import builtin_recipes, read_recipe
from tokencredit.recipes.schema import parse_recipe
from tokencredit.trainers.callbacks import read_metrics

PAPER = "spae/dapo-math_r1-distill-qwen-7b"
NAMES = sorted(name for name in builtin_recipes() if name.startswith("spae/"))


def test_they_are_there() -> None:
    assert NAMES == [PAPER, "spae/sums", "spae/sums_grpo", "spae/sums_reinforce_pp", "spae/sums_shuffled"]


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_known(name: str) -> None:
    recipe = parse_recipe(read_recipe(name, []))
    assert recipe.own.trainer == ("token_grpo" if name.endswith(("grpo", "reinforce_pp")) else "spae")


def test_arms_differ_in_nothing_but_their_credit() -> None:
    layers = {name: read_recipe(name, []) for name in NAMES if "sums" in name}
    own = {"trainer", "output_dir", "credit", "probe_template", "shuffle_potentials"}
    rest = [{key: value for key, value in layer.items() if key not in own} for layer in layers.values()]
    assert all(layer == rest[0] for layer in rest)
    assert layers["spae/sums"]["epsilon_high"] == 0.28


def test_every_value_at_the_papers_scale_is_marked() -> None:
    text = builtin_recipes()[PAPER].read_text(encoding="utf-8")
    inside = False
    for line in text.splitlines():
        if not line or line.startswith(("#", "trainer:", "output_dir:")):
            continue
        # A section is marked once, where it begins.
        inside = line.startswith(" ") and inside
        inside = inside or bool(re.search(r"# \[(paper|code|notes|ours)", line))
        assert inside, line
    assert yaml.safe_load(text)["alpha"] == 0.5


@pytest.mark.slow
def test_the_papers_scale_is_planned_for_gpus() -> None:
    result = CliRunner().invoke(app, ["train", PAPER, "--dry-run"])
    assert result.exit_code == 0, result.output
    recipe = yaml.safe_load(result.stdout.partition("\n# ")[0])
    assert recipe["gradient_accumulation_steps"] == 128
    assert recipe["deepspeed"]["zero_optimization"]["stage"] == 3
    assert "SPAETrainer" in result.stdout
    assert "not available locally" in result.stderr


@pytest.mark.slow
def test_the_recipe_trains_and_the_report_shows_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "model")
    small = ["total_train_batch_size=16", "per_device_train_batch_size=16", "max_completion_length=8", "max_steps=1"]
    words = [f"model_name_or_path={model}", "dataset_train_split=train[:16]", "output_dir=run", *small]
    result = CliRunner().invoke(app, ["train", "spae/sums", *words])
    assert result.exit_code == 0, result.output
    line = next(line for line in read_metrics(tmp_path / "run") if "loss" in line)
    # The tiny model solves nothing: all groups are dead, and no response is probed.
    assert line["reward"] == 0
    assert line["live_groups"] == 0
    assert "spae/steps" not in line
    result = CliRunner().invoke(app, ["report", "run"])
    assert result.exit_code == 0, result.output


def test_wrong_keys_are_one_clear_line() -> None:
    for override, said in (("alpha=2", "alpha"), ("probe_mode=guess", "probe_mode"), ("credit=outcome", "credit")):
        result = CliRunner().invoke(app, ["train", "spae/sums", override, "--dry-run", "model_name_or_path=gpt2"])
        assert result.exit_code == 2, result.output
        assert said in result.stderr
