"""The command line besides training."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.recipes.files import builtin_recipes, load_yaml
from tokencredit.recipes.schema import parse_recipe

HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "pydantic", "numpy", "yaml")


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\ntry:\n    from tokencredit.cli import app; app(['--help'])\nfinally:\n    print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "typer" in loaded
    assert not loaded & set(HEAVY)
    for command in ("train", "pairs", "recipes", "env", "merge", "eval", "report"):
        assert command in done.stdout


def test_recipes_list_and_show() -> None:
    listed = output("recipes", "list")
    for name, path in builtin_recipes().items():
        assert name in listed
        assert output("recipes", "show", name) == path.read_text()


def test_env_names_versions_and_devices() -> None:
    shown = output("env")
    for name in ("python", "torch", "trl", "accelerators", "cpu cores"):
        assert name in shown


def test_telemetry_of_the_libraries_is_off() -> None:
    program = "import tokencredit, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    environment = {"PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "True", done.stderr
    environment["HF_HUB_DISABLE_TELEMETRY"] = "0"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "False", "a user who asks for it gets it"


@pytest.mark.parametrize("name", [name for name in builtin_recipes() if not name.startswith("pairs/")])
def test_dry_run_writes_nothing_and_prints_a_recipe(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if name.startswith("sft/") else [f"model_name_or_path={tiny_model}"]
    shown = output("train", name, "--dry-run", "seed=7", *model)
    assert list(tmp_path.iterdir()) == []
    resolved = yaml.safe_load(shown)
    assert parse_recipe(resolved).training["seed"] == 7
    assert "# training rows" in shown


def test_dry_run_says_what_is_not_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {"trainer": "dpo", "output_dir": "run", "model_name_or_path": "org/model", "dataset_name": "org/data"}
    Path("recipe.yaml").write_text(yaml.safe_dump(keys))
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--dry-run"])
    assert result.exit_code == 0
    notes = [line for line in result.stderr.splitlines() if "not available locally" in line]
    assert len(notes) == 2
    assert "'org/model'" in notes[0]
    assert "'org/data'" in notes[1]
    wrong = CliRunner().invoke(app, ["train", "recipe.yaml", "--dry-run", "launch=zero9"])
    assert wrong.exit_code == 2, "the rest is checked all the same"


@pytest.mark.slow
def test_run_folder(recipe_text: dict[str, object], tmp_path: Path, run_cli: object) -> None:
    keys = recipe_text | {"report_to": "tensorboard", "save_strategy": "steps", "save_steps": 4}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    run_cli(tmp_path, "train", "recipe.yaml")  # type: ignore[operator]
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names >= {"recipe.yaml", "metrics.jsonl", "environment.json", "checkpoint-4", "model.safetensors"}
    saved = load_yaml(run / "recipe.yaml")
    assert saved["max_steps"] == 4
    assert saved["use_cpu"] is True
    assert list(run.rglob("events.out.tfevents.*")), "what report_to names gets the metrics too"
    assert not list(run.rglob("*.bin.tmp"))
    again = run_cli(tmp_path, "train", "run/recipe.yaml", "output_dir=again")  # type: ignore[operator]
    assert again.returncode == 0, "a saved recipe is a recipe"
    assert (tmp_path / "again" / "metrics.jsonl").is_file()
