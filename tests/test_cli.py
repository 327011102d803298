"""The command line besides training."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.recipes.files import builtin_recipes, load_yaml, read_recipe

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
    for command in (
        "train",
        "check",
        "submit",
        "pairs",
        "recipes",
        "env",
        "merge",
        "import-gguf",
        "eval",
        "report",
        "reward",
        "probe",
        "shift",
        "cross-sample",
    ):
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


# What a user has to make first.
# Data that is not in the package: made by another command, or on the hub.
ELSEWHERE = {
    "spae/dapo-math_r1-distill-qwen-7b": "open-r1/DAPO-Math-17k-Processed",
    "sft/scierc": "runs/scierc",
    "tab_po/scierc": "runs/pairs-scierc",
    "pairs/scierc": "runs/scierc",
    "t_reg/addresses": "runs/pairs-addresses_samples",
    "token_grpo/gsm8k_qwen2.5-0.5b": "openai/gsm8k",
    "t_reg/ultrafeedback_llama3-8b": "trl-lib/ultrafeedback_binarized",
    "t_reg/ultrafeedback_gemma2-9b": "trl-lib/ultrafeedback_binarized",
}


@pytest.mark.parametrize("name", builtin_recipes())
def test_dry_run_writes_nothing_and_prints_a_recipe(
    name: str, tiny_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline and without an accelerator, also where the recipe is for several."""
    monkeypatch.chdir(tmp_path)
    model = [] if "init" in read_recipe(name, []) else [f"model_name_or_path={tiny_chat_model}"]
    command = "pairs" if name.startswith("pairs/") else "train"
    result = CliRunner().invoke(app, [command, name, "--dry-run", "seed=7", *model])
    assert result.exit_code == 0, result.stderr
    assert list(tmp_path.iterdir()) == []
    assert yaml.safe_load(result.stdout)["seed"] == 7
    missing = [line for line in result.stderr.splitlines() if "not available locally: dataset_name" in line]
    if name in ELSEWHERE:
        assert repr(ELSEWHERE[name]) in missing[0]
    else:
        assert missing == []
        assert ("# documents" if command == "pairs" else "# training rows") in result.stdout


@pytest.mark.parametrize("name", [name for name in builtin_recipes() if "init" not in read_recipe(name, [])])
def test_dry_run_without_the_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["pairs" if name.startswith("pairs/") else "train", name, "--dry-run"])
    assert result.exit_code == 0, result.stderr
    model = read_recipe(name, [])["model_name_or_path"]
    assert f"no folder {model!r}, and no model of that name on the hub" in result.stderr


def test_dry_run_plans_for_accelerators_that_are_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tokencredit.cluster.plan.cpu_count", lambda: 2)
    command = ["train", "tab_po/addresses_llama3.1-8b", "--dry-run"]
    for words, count, steps in (([], 1, 16), (["num_processes=8"], 8, 2)):
        result = CliRunner().invoke(app, [*command, *words])
        assert "no accelerator here: planned for a machine that has some (zero3, " in result.stderr
        assert f"# processes        {count} (zero3)" in result.stdout
        resolved = yaml.safe_load(result.stdout)
        assert resolved["gradient_accumulation_steps"] == steps
        assert "use_cpu" not in resolved
    wrong = CliRunner().invoke(app, [*command, "num_processes=3"])
    assert "total_train_batch_size: 16 is not a multiple of" in wrong.stderr, "the rest is checked all the same"


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


def test_check(recipe_text: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe_text))
    result = CliRunner().invoke(app, ["check", "recipe.yaml"])
    assert result.exit_code == 0, result.stderr
    rows = {line.split("  ")[0].strip(): line for line in result.stdout.splitlines()[1:]}
    assert {"launch", "run folder", "settings", "model", "memory", "data"} <= set(rows)
    assert "64 rows" in rows["data"]
    wrong = ["report_to=nowhere", "model_name_or_path=./none", "dataset_name=./none.jsonl"]
    result = CliRunner().invoke(app, ["check", "recipe.yaml", *wrong])
    assert result.exit_code == 2
    errors = [line.split(":")[1].strip() for line in result.stderr.splitlines() if line.startswith("error")]
    assert errors == ["report_to", "model_name_or_path", "dataset_name"], "all that is wrong, not the first"
    result = CliRunner().invoke(app, ["check", "recipe.yaml", "launch=ddp", "num_processes=1000"])
    assert (result.exit_code, "launch.num_processes: 1000 is more" in result.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


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
