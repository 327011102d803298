"""What `tokencredit pairs` refuses: one line each, and nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_jsonl
from tests.recipes.pairs_runs import BASE, SAMPLES, UNIFORM, run
from tokencredit.data.serialise import to_json

pytestmark = pytest.mark.usefixtures("working_directory")

ROW = {"prompt": "p", "text": "one", "completion": [{"code": "A", "subcode": "x", "span": "one"}]}

OWN = {"dataset_name": "rows.jsonl", "prompt_template": None, "dataset_train_split": None}


def rows(*changed: dict[str, Any]) -> dict[str, Any]:
    """Keys for data of one's own whose last rows are these; None removes a column."""
    full = [{**ROW, "prompt": f"p{number}"} for number in range(2)]
    full += [{key: value for key, value in (ROW | row).items() if value is not None} for row in changed]
    write_jsonl(Path("rows.jsonl"), full)
    return UNIFORM | OWN | {"completion_column": "completion"}


def text_rows(*answers: str) -> dict[str, Any]:
    """Keys for data of one's own whose answers are these texts."""
    write_jsonl(Path("rows.jsonl"), [{**ROW, "completion": answer} for answer in answers])
    return UNIFORM | OWN | {"completion_column": None}


def with_file(name: str, text: str, **keys: Any) -> dict[str, Any]:
    Path(name).write_text(text)
    return UNIFORM | keys


WRONG: dict[str, tuple[Callable[[], dict[str, Any]], list[str]]] = {
    "no kind": (lambda: UNIFORM | {"from": None}, ["from", "is missing", "confusions or samples"]),
    "unknown kind": (lambda: UNIFORM | {"from": "thin air"}, ["from", "'thin air' is wrong", "'samples'"]),
    "no output": (lambda: UNIFORM | {"output_file": None}, ["output_file", "missing"]),
    "no data": (lambda: UNIFORM | {"dataset_name": None}, ["dataset_name", "missing"]),
    "unknown key": (lambda: UNIFORM | {"batchsize": 2}, ["batchsize", "unknown key", "'batch_size'"]),
    "unknown nested key": (
        lambda: UNIFORM | {"fields": {"lable": "a"}},
        ["fields.lable", "unknown key", "'label'"],
    ),
    "wrong type": (lambda: UNIFORM | {"batch_size": "many"}, ["batch_size", "'many' is wrong", "integer"]),
    "no batch": (lambda: UNIFORM | {"batch_size": 0}, ["batch_size", "0 is wrong", "greater than or equal to 1"]),
    "no model": (lambda: BASE, ["model_name_or_path", "missing", "confusion: uniform"]),
    "no model for samples": (lambda: SAMPLES, ["model_name_or_path", "missing", "hub model"]),
    "model that is not there": (lambda: BASE | {"model_name_or_path": "./no"}, ["model_name_or_path", "no folder"]),
    "hub model out of reach": (lambda: BASE | {"model_name_or_path": "no/model"}, ["model_name_or_path", "'no/model'"]),
    "no counting split": (
        lambda: BASE | {"model_name_or_path": "m", "dataset_test_split": None},
        ["dataset_test_split", "missing", "validation"],
    ),
    "counting on the training split": (
        lambda: BASE | {"model_name_or_path": "m", "dataset_test_split": "train[:20]"},
        ["dataset_test_split", "'train[:20]' shares rows with the training split", "validation"],
    ),
    "counting on a part of it": (
        lambda: BASE | {"model_name_or_path": "m", "dataset_test_split": "train[2%:]"},
        ["dataset_test_split", "'train[2%:]' shares rows with the training split 'train[:20]'"],
    ),
    "split that cannot be read": (
        lambda: BASE | {"model_name_or_path": "m", "dataset_test_split": "train+test"},
        ["dataset_test_split", "'train+test' is not a split"],
    ),
    "unknown split": (lambda: UNIFORM | {"dataset_train_split": "trian"}, ["dataset_name", "trian"]),
    "empty split": (lambda: UNIFORM | {"dataset_train_split": "train[:0]"}, ["train[:0]"]),
    "empty counting split": (
        lambda: BASE | {"model_name_or_path": "m", "dataset_test_split": "validation[:0]"},
        ["validation[:0]"],
    ),
    "unknown strategy": (lambda: UNIFORM | {"mix": {"labels": 1}}, ["mix", "'labels'", "label, sublabel, both"]),
    "spans in the mix": (lambda: UNIFORM | {"mix": {"span": 1}}, ["mix", "'span'", "span_perturbation"]),
    "negative share": (lambda: UNIFORM | {"mix": {"label": -1, "both": 2}}, ["mix", "-1.0 for label"]),
    "infinite share": (lambda: UNIFORM | {"mix": {"label": float("inf")}}, ["mix", "inf for label"]),
    "no share": (lambda: UNIFORM | {"mix": {"label": 0}}, ["mix", "no strategy has a share"]),
    "share that is none": (lambda: UNIFORM | {"mix": {"label": "much"}}, ["mix.label", "'much' is wrong"]),
    "too much perturbation": (lambda: UNIFORM | {"span_perturbation": 1.5}, ["span_perturbation", "1.5 is wrong"]),
    "one sample": (lambda: SAMPLES | {"num_samples": 1}, ["num_samples", "1 is wrong", "greater than or equal to 2"]),
    "no temperature": (lambda: SAMPLES | {"temperature": 0}, ["temperature", "0 is wrong", "greater than 0"]),
    "keys of the other kind": (lambda: UNIFORM | {"num_samples": 4}, ["num_samples", "no effect", "from: samples"]),
    "and the other way": (lambda: SAMPLES | {"mix": {"label": 1}}, ["mix", "no effect", "from: confusions"]),
    "ontology that is not there": (lambda: UNIFORM | {"ontology": "no.json"}, ["ontology", "no file", "no.json"]),
    "ontology that is no JSON": (lambda: with_file("o.json", "{", ontology="o.json"), ["ontology", "o.json", "cannot"]),
    "ontology that is no YAML": (lambda: with_file("o.yaml", "a: [", ontology="o.yaml"), ["o.yaml line", "YAML"]),
    "ontology that is a list": (lambda: with_file("o.json", "[1]", ontology="o.json"), ["o.json", "no mapping"]),
    "ontology without names": (lambda: with_file("o.json", '{"A": "x"}', ontology="o.json"), ["'x' under 'A'"]),
    "ontology with a bare no": (lambda: with_file("o.yaml", "A: [no]", ontology="o.yaml"), ["under 'A'", "quotes"]),
    "ontology that is a number": (lambda: UNIFORM | {"ontology": 3}, ["ontology", "3 is wrong"]),
    "empty ontology": (lambda: UNIFORM | {"ontology": {}}, ["ontology", "no mapping"]),
    "label that is no text": (lambda: UNIFORM | {"ontology": {True: ["x"]}}, ["ontology", "wrong", "string"]),
    "gold outside the ontology": (
        lambda: rows({"completion": [{"code": "B", "subcode": "x", "span": "one"}]}) | {"ontology": {"A": ["x", "y"]}},
        ["ontology", "no 'B' with 'x'", "row 2 of the training data"],
    ),
    "record without a key": (
        lambda: rows({"completion": [ROW["completion"][0], {"code": "A", "span": "one"}]}),
        ["dataset_name", "record 1 of row 2 of the training data has no text under 'subcode'"],
    ),
    "other keys": (
        lambda: UNIFORM | {"fields": {"label": "label"}},
        ["record 0 of row 0", "under 'label'", "fields"],
    ),
    "answer that is no JSON": (
        lambda: text_rows(to_json(ROW["completion"]), "oops"),
        ["answer of row 1 of the training data is not JSON"],
    ),
    "answer that is no list": (
        lambda: text_rows(to_json(ROW["completion"]), '{"results": []}'),
        ["answer of row 1 of the training data is no list"],
    ),
    "row without text": (lambda: rows({"text": None}), ["text_column", "row 2 of the training data holds None"]),
    "no text column": (lambda: UNIFORM | {"text_column": "body"}, ["text_column", "no 'body'", "text_column"]),
    "no prompt": (lambda: UNIFORM | {"prompt_template": None}, ["dataset_name", "no 'prompt'", "prompt_template"]),
    "no answer": (lambda: UNIFORM | {"completion_column": None}, ["no 'completion'", "completion_column"]),
    "template of another column": (lambda: UNIFORM | {"prompt_template": "{body}"}, ["prompt_template", "'body'"]),
    "unknown score": (lambda: SAMPLES | {"score_function": "bleu"}, ["score_function", "'bleu'", "record_f1"]),
    "score that is not there": (lambda: SAMPLES | {"score_function": "no:where"}, ["score_function", "imported"]),
    "score that is none": (lambda: SAMPLES | {"score_function": "measures:number"}, ["is not a function"]),
    "score that fails": (lambda: SAMPLES | {"score_function": "measures:fails"}, ["failed", "KeyError('oops')"]),
    "too few scores": (lambda: SAMPLES | {"score_function": "measures:short"}, ["1 scores for 20 predictions"]),
    "scores that are none": (lambda: SAMPLES | {"score_function": "measures:nothing"}, ["nan", "finite"]),
    "scores in words": (lambda: SAMPLES | {"score_function": "measures:words"}, ["failed", "'good'"]),
    "expert file that is not there": (lambda: UNIFORM | {"expert_pairs": "no.jsonl"}, ["expert_pairs", "no.jsonl"]),
    "expert file without a side": (
        lambda: with_file("e.jsonl", '{"prompt": "p", "chosen": "c"}\n', expert_pairs="e.jsonl"),
        ["expert_pairs", "no 'rejected'"],
    ),
    "expert chat among text": (
        lambda: with_file(
            "e.jsonl", '{"prompt": [{"a": "b"}], "chosen": "c", "rejected": "d"}', expert_pairs="e.jsonl"
        ),
        ["expert_pairs", "row 0 holds", "as prompt", "give text"],
    ),
    "expert pair of the same": (
        lambda: with_file("e.jsonl", '{"prompt": "p", "chosen": "[ ]", "rejected": "[]"}', expert_pairs="e.jsonl"),
        ["expert_pairs", "row 0 are the same"],
    ),
    "expert line that is no JSON": (lambda: with_file("e.jsonl", "oops\n", expert_pairs="e.jsonl"), ["e.jsonl line 1"]),
    "output that is a folder": (lambda: UNIFORM | {"output_file": "."}, ["output_file", "is a folder"]),
    "output that cannot be written": (lambda: UNIFORM | {"output_file": "/proc/a/b"}, ["output_file", "cannot write"]),
    "nothing to make": (
        lambda: text_rows("[]", "[]") | {"mix": {"missing": 1}},
        ["from", "no pair could be made: no strategy of the mix is possible (2)"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_and_writes_nothing(name: str, tiny_model: Path) -> None:
    prepare, says = WRONG[name]
    keys = prepare()
    if keys.get("model_name_or_path") == "m" or (keys["from"] == "samples" and "for samples" not in name):
        keys = keys | {"model_name_or_path": str(tiny_model)}
    before = set(Path().rglob("*")) | {Path("recipe.yaml")}
    code, _, stderr = run(keys)
    lines = [line for line in stderr.splitlines() if not line.startswith("note: ")]
    assert code == 2, stderr
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    position = 0
    for piece in says:
        position = lines[0].find(piece, position)
        assert position >= 0, f"{piece!r} is not in {lines[0]!r} after the pieces before it"
        position += len(piece)
    assert {path for path in Path().rglob("*") if "__pycache__" not in path.parts} <= before


def test_what_is_missing_for_the_model(tiny_model: Path, tmp_path: Path) -> None:
    keys = BASE | {"model_name_or_path": str(tiny_model)}
    code, _, stderr = run(keys, "max_new_tokens=100")
    assert code == 2
    assert "max_new_tokens: 100 after " in stderr
    assert "more than the model's 128 positions; give" in stderr
    code, _, stderr = run(keys | {"prompt_template": [{"role": "user", "content": "{text}"}]})
    assert code == 2
    assert "model_name_or_path: the prompts are chat messages" in stderr
    (tmp_path / "empty").mkdir()
    code, _, stderr = run(keys | {"model_name_or_path": "./empty"})
    assert code == 2
    assert "model_name_or_path:" in stderr
    assert "config.json" in stderr
