"""Pairs from samples: the best against the worst."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.pairs_runs import COLUMNS, SAMPLES, read, run
from tokencredit.data.loading import load_split
from tokencredit.data.serialise import to_json
from tokencredit.recipes import pairs_build as pairs
from tokencredit.trainers.task_metric import Answer

pytestmark = pytest.mark.usefixtures("working_directory")


def test_samples_are_scored_by_record_f1_and_set_best_against_worst(
    monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]
) -> None:
    rows = list(load_split("us_addresses", "train[:20]"))

    def sampled(model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[list[Answer]]:
        assert options == {
            "num_samples": 3,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 0,
            "max_new_tokens": 16,
            "batch_size": 16,
        }
        gold = [json.dumps(row["results"]) for row in rows]
        found = [[Answer("oops", True), Answer(text, True), Answer("[]", True)] for text in gold]
        found[0] = [Answer("oops", True)] * 3
        found[1] = [Answer(gold[1], False), Answer("[]", True), Answer("oops", True)]
        found[2] = [Answer(gold[2], False), Answer("[]", False), Answer("oops", False)]
        return found

    monkeypatch.setattr(pairs, "sampled", sampled)
    keys = model_keys | {"from": "samples", "num_samples": 3, "temperature": 0.7, "top_p": 0.9}
    code, stdout, stderr = run(keys)
    assert code == 0
    found = read()
    assert [row["prompt"] for row in found] == [row["text"] + "\n" for row in rows[3:]]
    for pair, row in zip(found, rows[3:], strict=True):
        assert pair["chosen"] == to_json(row["results"]), "written by the one serialiser, whatever spaces the model put"
        assert (pair["rejected"], pair["strategy"], list(pair)) == ("oops", "samples", COLUMNS)
        assert len(pair["chosen_spans"]) == 3 * len(row["results"])
    assert "17 pairs: samples 17" in stdout
    assert "not made: 1 (all samples are the same text)" in stdout
    assert "not made: 1 (best and worst sample score the same)" in stdout
    assert "not made: 1 (every sample was cut off at max_new_tokens)" in stdout
    assert "note: 4 of 60 samples were cut off at max_new_tokens: never chosen" in stderr
    assert [path.name for path in Path("out").iterdir()] == ["pairs.jsonl"], "nothing was confused"


def test_a_score_function_that_fails_only_on_samples(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    """What shows only after the model has answered still leaves nothing behind."""
    (tmp_path / "late.py").write_text("def score(p, r):\n    return [1.0] * len(p) if p == r else [None] * len(p)\n")
    code, _, stderr = run(SAMPLES | {"model_name_or_path": str(tiny_model), "score_function": "late:score"})
    assert code == 2
    assert "score_function: late:score failed" in stderr
    assert not Path("out").exists()
