"""Pairs from labelled documents: what is drawn, what is refused, what is counted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tokencredit.data.negatives import STRATEGY_MIX, uniform_confusion
from tokencredit.data.pairs import (
    Document,
    Sample,
    best_against_worst,
    canonical,
    negative_fault,
    negative_pairs,
    record_f1,
    with_span_share,
    within,
)
from tokencredit.data.records import RecordFields, ontology, parse_records
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError

FOLDER = Path(__file__).parents[2] / "data" / "us_addresses"
ROWS = [json.loads(line) for line in (FOLDER / "train.jsonl").open(encoding="utf-8")]
ONTOLOGY = ontology([row["results"] for row in ROWS])
ALL = [Document(i, row["text"], to_json(row["results"]), row["results"], row["text"]) for i, row in enumerate(ROWS)]
UNIFORM = uniform_confusion(ONTOLOGY)


def record(label: str, sublabel: str, span: str) -> dict[str, str]:
    return {"code": label, "subcode": sublabel, "span": span}


def document(records: list[dict[str, str]], text: str = "one two three", row: int = 0) -> Document:
    return Document(row, text, to_json(records), records, text)


def made(documents: list[Document], **options: Any) -> Any:
    return negative_pairs(documents, **({"ontology": ONTOLOGY, "confusion": UNIFORM, "seed": 0} | options))


@pytest.fixture(scope="module")
def everything() -> Any:
    return made(ALL, per_document=3, span_perturbation=0.25)


def test_every_negative_of_the_addresses_is_valid_wrong_and_literal(everything: Any) -> None:
    assert len(ALL) == 877
    assert len(everything.rows) + everything.dropped.total() == 3 * 877
    by_prompt: dict[str, list[str]] = {}
    for row in everything.rows:
        gold = next(item for item in ALL if item.prompt == row["prompt"])
        records = parse_records(row["rejected"])
        assert records is not None
        assert row["chosen"] == gold.gold
        assert row["rejected"] == to_json(records)
        assert Counter(map(to_json, records)) != Counter(map(to_json, gold.records))
        for item in records:
            assert item["subcode"] in ONTOLOGY[item["code"]]
            assert item["span"]
            assert item["span"] in gold.text
        for side in ("chosen", "rejected"):
            parts = [row[side][span["start"] : span["end"]] for span in row[f"{side}_spans"]]
            values = [value for item in json.loads(row[side]) for value in item.values()]
            assert [json.loads(f'"{part}"') for part in parts] == values
        by_prompt.setdefault(row["prompt"], []).append(row["rejected"])
    assert all(len(set(texts)) == len(texts) for texts in by_prompt.values())


def test_span_perturbation_takes_its_share_from_the_others(everything: Any) -> None:
    drawn = Counter(row["strategy"] for row in everything.rows)
    for strategy, share in (with_span_share(STRATEGY_MIX, 0.25)).items():
        # 2,631 draws: the standard error is below 0.009; impossible strategies are redrawn.
        assert drawn[strategy] / drawn.total() == pytest.approx(share, abs=0.03)
    assert sum(with_span_share({"label": 1, "both": 3}, 0.2).values()) == pytest.approx(1)
    assert with_span_share({"label": 1, "both": 3}, 0.2) == pytest.approx({"label": 0.2, "both": 0.6, "span": 0.2})
    assert with_span_share(STRATEGY_MIX, 0.0) is STRATEGY_MIX
    assert "span" not in {row["strategy"] for row in made(ALL).rows}


def test_a_moved_span_is_the_only_difference() -> None:
    for row in made(ALL, span_perturbation=1.0).rows:
        assert row["strategy"] == "span"
        before, after = json.loads(row["chosen"]), json.loads(row["rejected"])
        (changed,) = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert (changed[0]["code"], changed[0]["subcode"]) == (changed[1]["code"], changed[1]["subcode"])
        assert changed[0]["span"] != changed[1]["span"]


def test_draws_depend_on_seed_and_row_alone() -> None:
    rows = made(ALL[:50]).rows
    assert made(ALL[:50]).rows == rows
    assert made(ALL[10:20]).rows == rows[10:20]
    assert made(ALL[:50], seed=1).rows != rows


def test_documents_share_no_negatives_beyond_what_there_is() -> None:
    small = {"A": ["x", "y"]}
    one = document([record("A", "x", "one")], "one")
    found = made([one], ontology=small, confusion=uniform_confusion(small), per_document=9, mix={"sublabel": 1})
    assert [json.loads(row["rejected"]) for row in found.rows] == [[record("A", "y", "one")]]
    assert found.dropped == {"no other negative in 20 draws": 8}


def test_what_cannot_be_made_is_counted() -> None:
    only = {"A": ["x"]}
    documents = [
        document([record("A", "x", "one")], row=0),
        document([record("A", "x", "four")], row=1),
        document([], row=2),
    ]
    found = made(documents, ontology=only, confusion=uniform_confusion(only), mix={"missing": 1})
    assert [row["rejected"] for row in found.rows] == ["[]"]
    assert found.dropped == {"a gold span is not in the text": 1, "no strategy of the mix is possible": 1}


def test_measured_confusions_decide_and_are_counted() -> None:
    confusion = {"labels": {}, "sublabels": {"Name": {"PostType": 3, "Nowhere": 9}}}
    found = made(ALL, confusion=confusion, mix={"sublabel": 1.0})
    with_name = [d for d in ALL if any(r["code"] == "Street" and r["subcode"] == "Name" for r in d.records)]
    changed = Counter()
    for row in found.rows:
        before, after = json.loads(row["chosen"]), json.loads(row["rejected"])
        (pair,) = [(a["subcode"], b["subcode"]) for a, b in zip(before, after, strict=True) if a != b]
        if any((r["code"], r["subcode"]) == ("Street", "Name") for r in before):
            assert pair == ("Name", "PostType")
        changed[pair] += 1
    assert found.measured == changed["Name", "PostType"] == len(with_name) > 500
    assert found.renamed == len(found.rows)


def test_counts_outside_the_ontology_are_left_out() -> None:
    confusion = {"labels": {"A": {"B": 2, "Z": 5}, "Z": {"A": 1}, "B": {"Z": 1}}, "sublabels": {"x": {"x2": 1, "y": 0}}}
    assert within(confusion, {"A": ["x"], "B": ["y"]}) == {"labels": {"A": {"B": 2}}, "sublabels": {}}


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([record("Street", "Name", "one"), record("Number", "Main", "two")], None),
        ([{"code": "Street", "subcode": "Name"}], "the negative is no JSON with records"),
        ([record("Street", "Zip", "one")], "the negative leaves the ontology"),
        ([record("Nowhere", "Name", "one")], "the negative leaves the ontology"),
        ([record("Street", "Name", "four")], "a span of the negative is not in the text"),
        ([record("Number", "Main", "two"), record("Street", "Name", "three")], "the negative is the gold answer"),
    ],
)
def test_faults(records: list[Any], fault: str | None) -> None:
    gold = document([record("Street", "Name", "three"), record("Number", "Main", "two")])
    assert negative_fault(records, gold, ONTOLOGY) == fault


def test_other_field_names() -> None:
    fields = RecordFields("l", "s", "e")
    own = Document(0, "p", "", [{"l": "A", "s": "x", "e": "one"}], "one two")
    allowed = {"A": ["x", "y"]}
    found = made([own], ontology=allowed, confusion=uniform_confusion(allowed), mix={"sublabel": 1}, fields=fields)
    assert json.loads(found.rows[0]["rejected"]) == [{"l": "A", "s": "y", "e": "one"}]
    assert [span["label"] for span in found.rows[0]["rejected_spans"]] == ["l", "s", "e"]


def test_chat_prompts_get_chat_responses() -> None:
    messages = [{"role": "user", "content": "one"}]
    chat = Document(0, messages, "", [record("Street", "Name", "one")], "one")
    (row,) = made([chat]).rows
    assert row["prompt"] == messages
    assert row["chosen"] == [{"role": "assistant", "content": to_json(chat.records)}]
    assert len(row["chosen_spans"]) == 3


def one_pair(*samples: Sample) -> Any:
    return best_against_worst([document([])], [samples])


def test_best_against_worst() -> None:
    found = one_pair(Sample("b", 0.5), Sample("a", 1.0), Sample("c", 0.1), Sample("d", 1.0), Sample("e", 0.1))
    (row,) = found.rows
    assert (row["chosen"], row["rejected"], row["strategy"]) == ("a", "c", "samples")
    assert row["chosen_spans"] == []


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([Sample("a", 1), Sample("b", 1)], "best and worst sample score the same"),
        ([Sample("a", 1), Sample("a", 1)], "all samples are the same text"),
        ([Sample("a", 1), Sample("a", 0), Sample("b", 0.5)], "best and worst sample are the same text"),
        ([Sample("a", 1, False), Sample("b", 0, False)], "every sample was cut off at max_new_tokens"),
        ([Sample("a", 1, False), Sample("b", 0, True)], "best and worst sample score the same"),
    ],
)
def test_ties_and_copies_are_dropped_and_counted(samples: list[Sample], reason: str) -> None:
    found = one_pair(*samples)
    assert found.rows == []
    assert found.dropped == {reason: 1}


def test_a_sample_that_was_cut_off_can_only_be_rejected() -> None:
    (row,) = one_pair(Sample("a", 1.0, False), Sample("b", 0.5), Sample("c", 0.0, False)).rows
    assert (row["chosen"], row["rejected"]) == ("b", "c")


def test_record_f1_by_hand() -> None:
    gold = to_json([record("A", "x", "one"), record("B", "y", "two")])
    half = to_json([record("A", "x", "one"), record("B", "y", "three")])
    # one of two records right on both sides: precision = recall = 1/2
    assert record_f1([gold, half, "[]", "oops", "oops"], [gold, gold, gold, gold, "[]"]) == [1.0, 0.5, 0.0, 0.0, 0.0]
    with pytest.raises(InputError, match=r"references\[1\]: 'oops' is not JSON"):
        record_f1(["[]", "[]"], ["[]", "oops"])


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ('[ {"a": 1.50, "b": "\\u00e9"} ]', '[{"a":1.5,"b":"é"}]'),
        ("3.10", "3.10"),
        (' "text" ', ' "text" '),
        ("not [json]", "not [json]"),
        ("[1e999]", "[1e999]"),
        ('["\\ud800"]', '["\\ud800"]'),
    ],
)
def test_only_json_lists_and_objects_are_rewritten(answer: str, written: str) -> None:
    assert canonical(answer) == written
