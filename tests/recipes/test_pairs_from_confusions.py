"""Pairs from confusions: what is counted, what is drawn, and with which names."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import write_jsonl
from tests.recipes.pairs_runs import BASE, COLUMNS, UNIFORM, made, read, renamed, rewritten, run
from tokencredit.data.loading import load_split
from tokencredit.data.records import ontology
from tokencredit.data.serialise import to_json
from tokencredit.recipes import pairs_build as pairs

pytestmark = pytest.mark.usefixtures("working_directory")


def test_every_pair_of_all_addresses(monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]) -> None:
    monkeypatch.setattr(pairs, "greedy_answers", rewritten(renamed))
    rows = made(model_keys, "dataset_train_split=train", "negatives_per_example=2", "span_perturbation=0.2")
    gold = {row["text"] + "\n": row for row in load_split("us_addresses", "train")}
    both = [row["results"] for split in ("train", "validation[:12]") for row in load_split("us_addresses", split)]
    allowed = ontology(both)
    assert len(gold) == 877
    assert {row["prompt"] for row in rows} == set(gold)
    for row in rows:
        assert list(row) == COLUMNS
        source = gold[row["prompt"]]
        assert row["chosen"] == to_json(source["results"]) != row["rejected"]
        records = json.loads(row["rejected"])
        assert to_json(records) == row["rejected"]
        assert sorted(map(to_json, records)) != sorted(map(to_json, source["results"]))
        assert all(record["subcode"] in allowed[record["code"]] for record in records)
        assert all(record["span"] in source["text"] for record in records)


def test_the_measured_confusion_is_the_one_that_is_drawn(
    monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]
) -> None:
    monkeypatch.setattr(pairs, "greedy_answers", rewritten(renamed))
    rows = made(model_keys | {"mix": {"sublabel": 1}}, "dataset_train_split=train[:100]")
    seen = 0
    for row in rows:
        before, after = json.loads(row["chosen"]), json.loads(row["rejected"])
        (change,) = [(a["subcode"], b["subcode"]) for a, b in zip(before, after, strict=True) if a != b]
        if any(record["subcode"] == "PostType" for record in before):
            assert change == ("PostType", "PreType")
            seen += 1
    assert seen > 50
    table = json.loads(Path("out/pairs.jsonl.confusion.json").read_text())
    streets = sum(
        any(record["subcode"] == "PostType" for record in row["results"])
        for row in load_split("us_addresses", BASE["dataset_test_split"])
    )
    assert table == {
        "labels": {},
        "sublabels": {"PostType": {"PreType": streets}},
        "model_name_or_path": model_keys["model_name_or_path"],
        "dataset_name": "us_addresses",
        "dataset_config": None,
        "dataset_test_split": "validation[:12]",
        "max_new_tokens": 16,
        "seed": 0,
        "predictions": 12,
        "not_valid_json": 0,
    }


def test_what_the_command_says(monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]) -> None:
    found = rewritten(renamed)
    monkeypatch.setattr(pairs, "greedy_answers", lambda *a, **k: ["oops", "[", *found(*a, **k)[2:]])
    write_jsonl(Path("expert.jsonl"), [{"prompt": "p", "chosen": '[ {"a": 1} ]', "rejected": "no"}])
    code, stdout, stderr = run(model_keys, "expert_pairs=expert.jsonl", "mix={sublabel: 1}")
    assert code == 0
    assert "2 of 12 answers were not valid JSON with records" in stdout
    assert "21 pairs: sublabel 20, expert 1" in stdout
    assert "follow measured confusions" in stdout
    assert "PostType" in stdout
    assert "note: the model confused no labels: labels are confused uniformly" in stderr
    assert read()[-1] == {
        "prompt": "p",
        "chosen": '[{"a":1}]',
        "rejected": "no",
        "strategy": "expert",
        "chosen_spans": [],
        "rejected_spans": [],
    }
    assert json.loads(Path("out/pairs.jsonl.confusion.json").read_text())["not_valid_json"] == 2


def test_names_outside_the_ontology_are_counted_but_never_written(
    monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]
) -> None:
    def invented(records: list[dict[str, str]]) -> list[dict[str, str]]:
        return [record | {"subcode": "Nowhere"} for record in renamed(records)[:1]] + renamed(records)[1:]

    monkeypatch.setattr(pairs, "greedy_answers", rewritten(invented))
    rows = made(model_keys)
    assert "Nowhere" not in Path("out/pairs.jsonl").read_text()
    assert "Nowhere" in Path("out/pairs.jsonl.confusion.json").read_text()
    assert len(rows) == 20


def test_a_model_without_confusions_stops_the_command(
    monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]
) -> None:
    monkeypatch.setattr(pairs, "greedy_answers", rewritten(lambda records: records))
    code, _, stderr = run(model_keys)
    assert code == 2
    assert stderr.startswith("error: confusion: the model confused no names of the ontology in 12 answers, of which 0")
    assert "confusion: uniform" in stderr
    assert not Path("out").exists()


def test_the_only_confusions_of_the_constant_model_are_with_what_it_always_says(model_keys: dict[str, Any]) -> None:
    made(model_keys, "dataset_test_split=validation[:40]")
    table = json.loads(Path("out/pairs.jsonl.confusion.json").read_text())
    assert table["not_valid_json"] == 0
    assert table["labels"]
    assert all(list(row) == ["Street"] for row in table["labels"].values())
    assert all(list(row) == ["Name"] for row in table["sublabels"].values())


def test_uniform_needs_no_model_and_no_second_split() -> None:
    keys = {key: value for key, value in UNIFORM.items() if key != "dataset_test_split"}
    assert len(made(keys)) == 20
    first = Path("out/pairs.jsonl").read_bytes()
    made(keys, "overwrite=true", "seed=1")
    assert Path("out/pairs.jsonl").read_bytes() != first


def test_ontology_from_a_file_or_the_recipe() -> None:
    allowed = ontology(row["results"] for row in load_split("us_addresses", "train"))
    allowed["Street"].append("Alley")
    Path("names.json").write_text(json.dumps(allowed))
    Path("names.yaml").write_text(yaml.safe_dump(allowed))
    written = []
    for given in ("names.json", "names.yaml", allowed):
        made(UNIFORM | {"ontology": given, "overwrite": True, "negatives_per_example": 9, "mix": {"sublabel": 1}})
        written.append(Path("out/pairs.jsonl").read_text())
    assert written[0] == written[1] == written[2]
    assert "Alley" in written[0]


def test_answers_as_text_in_another_form_are_noted() -> None:
    rows = [
        {"prompt": "p", "text": "one two", "completion": '[{"code": "A", "subcode": "x", "span": "one"}]'},
        {"prompt": "q", "text": "two", "completion": '[{"code":"A","subcode":"y","span":"two"}]'},
    ]
    write_jsonl(Path("rows.jsonl"), rows)
    keys = {
        "from": "confusions",
        "confusion": "uniform",
        "output_file": "out/pairs.jsonl",
        "dataset_name": "rows.jsonl",
    }
    code, _, stderr = run(keys)
    assert code == 0
    assert "note: 1 of 2 gold answers are in another form" in stderr
    assert read()[0]["chosen"] == '[{"code":"A","subcode":"x","span":"one"}]'


def test_a_note_about_documents_in_both_splits(model_keys: dict[str, Any]) -> None:
    rows = list(load_split("us_addresses", "train[:30]"))
    write_jsonl(Path("rows.jsonl"), [*rows[:25], *rows[20:]])
    keys = model_keys | {"dataset_name": "rows.jsonl", "dataset_train_split": "train[:25]"}
    code, _, stderr = run(keys | {"dataset_test_split": "train[25:]"}, "--dry-run")
    assert code == 0, stderr
    assert "note: 5 of 10 counting documents are in the training split too" in stderr
    code, _, stderr = run(keys | {"dataset_test_split": "train[25:30]"}, "--dry-run")
    assert code == 2
    assert "dataset_test_split: every document of the counting split is in the training split too" in stderr
