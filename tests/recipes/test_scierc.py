"""The SciERC recipes on the example of recipes/README.md: from the release's format to a tuned model and its scores."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.data.loading import load_split

README = (Path(__file__).parents[2] / "recipes" / "README.md").read_text(encoding="utf-8")

# The example as the release has it: words counted through the document, last word included.
DOCUMENT = {
    "doc_key": "example",
    "sentences": [
        ["We", "parse", "questions", "with", "a", "small", "grammar", "and", "measure", "accuracy", "."],
        ["The", "grammar", "is", "written", "by", "hand", "."],
        ["Nothing", "else", "changes", "."],
    ],
    "ner": [[[1, 2, "Task"], [5, 6, "Method"], [9, 9, "Metric"]], [[12, 12, "Method"]], []],
    "relations": [[[5, 6, 1, 2, "USED-FOR"]], [], []],
}
SHORT = ["max_steps=2", "per_device_train_batch_size=1", "logging_steps=1"]


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def cli(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_script_makes_the_rows_that_are_shown(tmp_path: Path) -> None:
    (tmp_path / "scierc.py").write_text(block("python"))
    command = [sys.executable, "scierc.py"]
    done = subprocess.run(
        command, cwd=tmp_path, input=json.dumps(DOCUMENT) + "\n", capture_output=True, text=True, check=True
    )
    assert done.stdout == block("jsonl")


def test_shown_spans_are_pieces_of_the_text() -> None:
    for row in map(json.loads, block("jsonl").splitlines()):
        assert all(record["span"] in row["text"] for record in row["results"])


@pytest.mark.slow
def test_from_rows_to_a_tuned_model(tiny_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the README with its recipe; only steps and model are smaller."""
    monkeypatch.chdir(tmp_path)
    Path("runs/scierc").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        Path(f"runs/scierc/{split}.jsonl").write_text(block("jsonl"))
    small = ["task_metric.limit=2", "task_metric.max_new_tokens=4", "eval_strategy=steps", "save_strategy=steps"]
    steps = ["eval_steps=2", "save_steps=2"]
    cli("train", "sft/scierc", f"model_name_or_path={tiny_chat_model}", *SHORT, *small, *steps)
    cli("merge", "runs/sft-scierc", "runs/sft-scierc-merged")
    # A model without training writes no records that could be counted.
    made = cli("pairs", "pairs/scierc", "confusion=uniform", "dataset_test_split=null")
    assert "saved" in made
    pairs = list(load_split(str(tmp_path / "runs" / "pairs-scierc"), "train"))
    assert 1 <= len(pairs) <= 3
    for row in pairs:
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        assert row["chosen"] != row["rejected"]
    cli("train", "tab_po/scierc", *SHORT, "total_train_batch_size=1")
    metrics = [json.loads(line) for line in Path("runs/tab_po-scierc/metrics.jsonl").read_text().splitlines()]
    steps_taken = [line for line in metrics if "pref_loss" in line]
    # Policy and reference are the same model; the learning rate of the first step is 0.
    assert [line["pref_loss"] for line in steps_taken] == pytest.approx([0.6931, 0.6931], abs=1e-3)
    figures = {name for line in steps_taken for name in line}
    assert {"gated_fraction/code", "gated_fraction/subcode", "gated_fraction/span"} <= figures
    # Asked as the recipe in the merged model's folder asks, the pairs having no template.
    shown = cli("eval", "runs/sft-scierc-merged", "runs/tab_po-scierc", "runs/scierc", "--max-new-tokens=4")
    assert "3 documents" in shown
    assert "USED-FOR" in shown
