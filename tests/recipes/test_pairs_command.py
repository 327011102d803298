"""`tokencredit pairs`: from a recipe to a file of preference pairs that trains."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tests.conftest import SHORT_RUN
from tests.recipes.pairs_runs import BASE, SAMPLES, UNIFORM, made, read, run
from tokencredit.cli import app
from tokencredit.data.loading import load_split
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError
from tokencredit.recipes import pairs_build as pairs
from tokencredit.recipes.files import builtin_recipes, read_recipe
from tokencredit.recipes.pairs_schema import parse_pairs_recipe

pytestmark = pytest.mark.usefixtures("working_directory")


def test_batch_size_changes_nothing(model_keys: dict[str, Any], brief_model: Path) -> None:
    for keys in (model_keys, SAMPLES | {"model_name_or_path": str(brief_model)}):
        written = []
        for batch_size in (1, 5):
            made(keys, f"batch_size={batch_size}", "overwrite=true")
            written.append({path.name: path.read_bytes() for path in Path("out").iterdir()})
        assert written[0] == written[1]


@pytest.mark.slow
def test_the_command_writes_the_same_bytes_under_any_hash_seed(
    model_keys: dict[str, Any], brief_model: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = {
        "confusions": model_keys | {"negatives_per_example": 2, "span_perturbation": 0.3},
        "samples": SAMPLES | {"model_name_or_path": str(brief_model)},
    }
    for name, keys in recipes.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(keys))
        for seed in (1, 2):
            monkeypatch.setenv("PYTHONHASHSEED", str(seed))
            run_cli(tmp_path, "pairs", f"{name}.yaml", f"output_file={name}{seed}.jsonl", f"batch_size={3 * seed}")
        first, second = (tmp_path / f"{name}{seed}.jsonl" for seed in (1, 2))
        assert first.read_bytes() == second.read_bytes()
        assert len(read(first)) >= 15
    tables = [(tmp_path / f"confusions{seed}.jsonl.confusion.json").read_bytes() for seed in (1, 2)]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_the_file_trains(tiny_model: Path, brief_model: Path, tmp_path: Path, run_cli: Any) -> None:
    model = {"model_name_or_path": str(tiny_model)}
    recipes = {
        "folder/train": UNIFORM,
        "folder/test": UNIFORM | {"dataset_train_split": "validation[:8]"},
        "samples": SAMPLES | {"model_name_or_path": str(brief_model)},
    }
    for name, keys in recipes.items():
        code, _, stderr = run(keys, f"output_file={name}.jsonl")
        assert code == 0, stderr
    short = SHORT_RUN | model | {"max_steps": 2, "per_device_train_batch_size": 4}
    weights = {"json": {"[].code": 1.1, "[].subcode": 1.2}, "spans": {"span": 1.1}, "differing": 1.2}
    runs = {
        "dpo": {"trainer": "dpo", "dataset_name": "samples.jsonl"},
        "tab_po": {"trainer": "tab_po", "dataset_name": "folder", "token_weights": weights, "eval_strategy": "epoch"},
    }
    for name, keys in runs.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(short | keys | {"output_dir": name}))
        run_cli(tmp_path, "train", f"{name}.yaml")
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == 2
        assert any("eval_margins/subcode" in line for line in lines) == (name == "tab_po")


def test_chat_prompts(model_keys: dict[str, Any], one_answer: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(one_answer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    AutoModelForCausalLM.from_pretrained(one_answer).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    messages = [{"role": "user", "content": "{text}\n"}]
    row, *_ = made(model_keys | {"model_name_or_path": "./chat", "prompt_template": messages})
    address = load_split("us_addresses", "train")[0]
    assert row["prompt"] == [{"role": "user", "content": address["text"] + "\n"}]
    assert row["chosen"] == [{"role": "assistant", "content": to_json(address["results"])}]
    place = row["chosen_spans"][0]
    assert row["chosen"][0]["content"][place["start"] : place["end"]] == address["results"][0]["code"]


def test_dry_run_writes_nothing_and_prints_a_recipe(model_keys: dict[str, Any]) -> None:
    code, stdout, _ = run(model_keys, "seed=7", "--dry-run")
    assert code == 0
    assert {path.name for path in Path().iterdir()} == {"recipe.yaml", "measures.py"}
    assert parse_pairs_recipe(yaml.safe_load(stdout)).seed == 7
    assert "# documents        20" in stdout
    assert "# counted on       12 documents" in stdout


def test_dry_run_says_what_is_not_on_this_machine() -> None:
    code, _, stderr = run(BASE | {"model_name_or_path": "nobody/model", "dataset_name": "nobody/data"}, "--dry-run")
    assert code == 0
    assert [line.startswith("note: not available locally: ") for line in stderr.splitlines()] == [True, True]
    code, _, stderr = run(UNIFORM | {"fields": {"label": "label"}}, "--dry-run")
    assert code == 2, "what is on this machine is checked in full"
    assert "record 0 of row 0" in stderr


@pytest.mark.parametrize("name", [name for name in builtin_recipes() if name.startswith("pairs/")])
def test_builtin_recipes(name: str) -> None:
    recipe = parse_pairs_recipe(read_recipe(name, []))
    assert parse_pairs_recipe(yaml.safe_load(yaml.safe_dump(recipe.flat()))) == recipe
    assert (recipe.dataset_test_split or "validation").startswith("validation"), "never the test split"


def test_a_file_inherits_and_its_paths_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    keys = {"defaults": "pairs/addresses", "output_file": "a.jsonl", "ontology": "b.json", "expert_pairs": "c.jsonl"}
    (tmp_path / "conf" / "mine.yaml").write_text(yaml.safe_dump(keys))
    recipe = parse_pairs_recipe(read_recipe("conf/mine.yaml", ["seed=3"]))
    assert recipe.output_file == str(tmp_path / "conf" / "a.jsonl")
    assert recipe.ontology == str(tmp_path / "conf" / "b.json")
    assert recipe.expert_pairs == str(tmp_path / "conf" / "c.jsonl")
    assert (recipe.seed, recipe.dataset_name) == (3, "us_addresses")


def test_training_and_pairs_recipes_point_at_each_other(tmp_path: Path) -> None:
    code, _, stderr = run({"trainer": "sft"})
    assert code == 2
    assert "trainer: this is a recipe for training; run it with `tokencredit train`" in stderr
    result = CliRunner().invoke(app, ["train", "pairs/addresses"])
    assert result.exit_code == 2
    assert "run it with `tokencredit pairs`" in result.stderr


def test_an_existing_file_is_kept(model_keys: dict[str, Any]) -> None:
    Path("out").mkdir()
    for name in ("pairs.jsonl", "pairs.jsonl.confusion.json"):
        Path("out", name).write_text("mine")
        code, _, stderr = run(model_keys)
        assert code == 2
        assert f"{name}' exists; name another file, or set overwrite: true" in stderr
        assert Path("out", name).read_text() == "mine"
        Path("out", name).unlink()


def test_library_use() -> None:
    recipe = parse_pairs_recipe(UNIFORM)
    result = pairs.make(pairs.prepare(recipe))
    assert len(result.pairs.rows) == 20
    assert not Path("out").exists()
    assert pairs.save(recipe, result) == [Path("out/pairs.jsonl")]
    with pytest.raises(InputError, match="exists"):
        pairs.prepare(recipe)
