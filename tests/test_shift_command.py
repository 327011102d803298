"""`tokencredit shift` in this process: models, adapters, stored responses, and what it refuses."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tests.conftest import answers, write_jsonl
from tokencredit.cli import app

SHORT = ("--max-new-tokens", "8", "--num-samples", "2")


def shift(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["shift", *map(str, arguments)])


def listed(output: Path) -> list[tuple[Path, int]]:
    """What is kept in a folder, and since when."""
    return sorted(
        (path, path.stat().st_mtime_ns) for name in ("parts", "responses") for path in (output / name).iterdir()
    )


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": row["prompt"]} for row in answers(5)]
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, every weight of it changed a little."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA folder on the tiny model, without a tokenizer of its own."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model.save_pretrained(folder)
    return folder


def test_prompts_to_table_and_report(
    tiny_model: Path, tuned: Path, adapter: Path, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = (tiny_model, f"full={tuned}", f"lora={adapter}", "--prompts", prompts, "--output", output, *SHORT)
    done = shift(*words, "--lead", "both")
    assert done.exit_code == 0, done.stderr
    assert "full: shift from the base, tuned trajectories" in done.stdout
    assert "Models on one axis" in done.stdout
    table = pq.read_table(output / "shift.parquet")
    assert set(zip(table["model"].to_pylist(), table["led"].to_pylist(), strict=True)) == {
        (model, led) for model in ("full", "lora") for led in ("base", "tuned")
    }
    assert "full, lora against" in (output / "report.html").read_text()
    before = (output / "shift.parquet").read_bytes()
    kept = listed(output)
    assert shift(*words, "--lead", "both", "--format", "md").exit_code == 0
    assert (output / "shift.parquet").read_bytes() == before
    assert listed(output) == kept, "nothing was computed again"
    assert (output / "report.md").read_text().startswith("# full, lora against")


def test_checkpoints_on_the_responses_of_the_last(
    tiny_model: Path, tuned: Path, adapter: Path, prompts: Path, tmp_path: Path
) -> None:
    done = shift(
        tiny_model,
        f"first={adapter}",
        f"last={tuned}",
        "--prompts",
        prompts,
        "--output",
        tmp_path,
        "--same-responses",
        "--format",
        "none",
        *SHORT,
    )
    assert done.exit_code == 0, done.stderr
    table = pq.read_table(tmp_path / "shift.parquet")
    half = len(table) // 2
    assert table["token_id"][:half].to_pylist() == table["token_id"][half:].to_pylist()
    assert not (tmp_path / "report.html").exists()


def test_stored_responses_in_the_paper_s_mode(tiny_model: Path, tuned: Path, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in answers(4)]
    stored = write_jsonl(tmp_path / "stored.jsonl", rows)
    done = shift(tiny_model, tuned, "--trajectories", stored, "--output", tmp_path / "a", "--mode", "top_p")
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "a" / "shift.json").read_text())["about"]["mode"] == "top_p 0.7"
    bounds = shift(tiny_model, tuned, "--trajectories", stored, "--output", tmp_path / "b", "--mode", "top_k")
    assert "JS, upper bound" in bounds.stdout


def test_wrong_input_is_one_line(tiny_model: Path, tuned: Path, prompts: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tuned, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    text = (other / "tokenizer.json").read_text()
    ids = tokenizer.convert_tokens_to_ids(["A", "B"])
    swapped = text.replace(f'"A": {ids[0]}', f'"A": {ids[1]}').replace(f'"B": {ids[1]}', f'"B": {ids[0]}', 1)
    (other / "tokenizer.json").write_text(swapped)
    given = ("--prompts", prompts, "--output", tmp_path / "out")
    long = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "A", "completion": "A" * 128}])
    for words, message in (
        ((tiny_model, other, *given), "have different tokenizers (2 tokens, as 'A')"),
        ((tiny_model, tuned), "--prompts: give either prompts or --trajectories"),
        ((tiny_model, tuned, *given, "--dtype", "int8"), "--dtype: unknown 'int8'"),
        ((tiny_model, tuned, *given, "--mode", "half"), "mode: 'half' is unknown"),
        ((tiny_model, tuned, *given, "--format", "pdf"), "--format: unknown 'pdf'"),
        ((tiny_model, tuned, *given, "--lead", "me"), "--lead: 'me' is unknown"),
        ((tiny_model, f"a={tuned}", f"a={tiny_model}", *given), "TUNED: a name is given twice"),
        ((tiny_model, tmp_path / "none", *given), "no folder"),
        ((tiny_model, tuned, "--trajectories", tmp_path / "none.jsonl"), "there is no such file or folder"),
        ((tiny_model, tuned, *given, "--temperature", "0", "--num-samples", "4"), "num_samples: 4 responses at"),
        ((tiny_model, tuned, *given), "max_new_tokens: 256 is too much"),
        ((tiny_model, tuned, "--trajectories", long, "--output", tmp_path / "out"), f"'{tiny_model}' has 128 pos"),
    ):
        done = shift(*words)
        assert done.exit_code == 2, done.output
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert message in errors[0]


def test_prompts_are_made_as_the_tuned_model_s_recipe_makes_them(tiny_model: Path, tuned: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    (run / "recipe.yaml").write_text("defaults: sft/addresses\noutput_dir: run\n")
    words = ("--prompts", "us_addresses", "--limit", "2", "--max-new-tokens", "2", "--output", tmp_path / "out")
    done = shift(tiny_model, run, *words, "--format", "none")
    assert done.exit_code == 0, done.stderr
    prompts = json.loads((tmp_path / "out" / "shift.json").read_text())["prompts"]
    assert len(prompts) == 2
    assert all(prompt.endswith("\n") for prompt in prompts), "the template of the recipe"


def test_prompts_of_a_recipe_need_no_answers(tiny_model: Path, tuned: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "lines.jsonl", [{"text": "12 Main St"}, {"text": "PO Box 7"}])
    output = tmp_path / "out"
    result = shift(tiny_model, tuned, "--prompts", rows, "--recipe", "sft/addresses", "--output", output, *SHORT)
    assert result.exit_code == 0, result.output
    assert "12 Main St" in json.loads((output / "shift.json").read_text())["prompts"][0]
