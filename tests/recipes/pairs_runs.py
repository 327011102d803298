"""Recipes of pairs for the tests, the command run in this process, and stand-ins for the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.data.loading import load_split
from tokencredit.data.serialise import to_json

BASE: dict[str, Any] = {
    "from": "confusions",
    "output_file": "out/pairs.jsonl",
    "dataset_name": "us_addresses",
    "dataset_train_split": "train[:20]",
    "dataset_test_split": "validation[:12]",
    "prompt_template": "{text}\n",
    "completion_column": "results",
    "max_new_tokens": 16,
    "seed": 0,
}

UNIFORM = BASE | {"confusion": "uniform"}

SAMPLES = BASE | {"from": "samples", "score_function": "measures:length", "num_samples": 3}

COLUMNS = ["prompt", "chosen", "rejected", "strategy", "chosen_spans", "rejected_spans"]

# Scores without meaning that differ from answer to answer.
MEASURES = """
import json
def length(predictions, references):
    return [len(text) + sum(map(ord, text)) % 7 for text in predictions]
def fails(predictions, references):
    raise KeyError("oops")
def short(predictions, references):
    return [1.0]
def nothing(predictions, references):
    return [float("nan") for _ in predictions]
def words(predictions, references):
    return ["good" for _ in predictions]
number = 3
"""


def run(keys: dict[str, Any], *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of the command, run in this process."""
    Path("recipe.yaml").write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
    result = CliRunner().invoke(app, ["pairs", "recipe.yaml", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def read(path: str | Path = "out/pairs.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def made(keys: dict[str, Any], *words: str) -> list[dict[str, Any]]:
    code, _, stderr = run(keys, *words)
    assert code == 0, stderr
    return read()


def rewritten(change: Callable[[list[dict[str, str]]], Any]) -> Callable[..., list[str]]:
    """A stand-in for the model: the gold answers of the counting split, changed."""
    rows = list(load_split("us_addresses", BASE["dataset_test_split"]))

    def answer(model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[str]:
        assert len(prompts) == len(rows)
        found = [change([dict(record) for record in row["results"]]) for row in rows]
        return [value if isinstance(value, str) else to_json(value) for value in found]

    return answer


def renamed(records: list[dict[str, str]]) -> list[dict[str, str]]:
    return [record | ({"subcode": "PreType"} if record["subcode"] == "PostType" else {}) for record in records]
