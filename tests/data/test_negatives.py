import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tokencredit.data.alignment import differing_tokens
from tokencredit.data.negatives import (
    STRATEGY_MIX,
    Negative,
    count_confusion,
    make_negative,
    pair,
    uniform_confusion,
)
from tokencredit.data.records import RecordFields, locate, ontology, parse_records
from tokencredit.data.serialise import to_json
from tokencredit.data.spans import token_offsets
from tokencredit.errors import InputError

FOLDER = Path(__file__).parents[2] / "data" / "us_addresses"
ROWS = [json.loads(line) for name in ("train", "test") for line in (FOLDER / f"{name}.jsonl").open()]
ONTOLOGY = ontology([row["results"] for row in ROWS])
UNIFORM = uniform_confusion(ONTOLOGY)


def negatives(seed, rows=ROWS, **options):
    rng = random.Random(seed)
    options = {"ontology": ONTOLOGY, **UNIFORM, **options}
    return [make_negative(row["results"], rng=rng, text=row["text"], **options) for row in rows]


def record(label, sublabel, span="s"):
    return {"code": label, "subcode": sublabel, "span": span}


def multiset(records):
    return Counter(map(to_json, records))


def test_published_mix():
    assert STRATEGY_MIX == {"label": 0.25, "sublabel": 0.35, "both": 0.20, "missing": 0.08, "added": 0.12}
    assert sum(STRATEGY_MIX.values()) == pytest.approx(1)


def test_every_negative_of_the_real_data_is_wrong_valid_and_literal():
    for row, negative in zip(ROWS, negatives(0), strict=True):
        before, after = multiset(row["results"]), multiset(negative.records)
        assert before != after
        assert parse_records(to_json(negative.records)) == negative.records
        for item in negative.records:
            assert list(item) == ["code", "subcode", "span"]
            assert item["subcode"] in ONTOLOGY[item["code"]]
            assert item["span"] in row["text"]
            assert item["span"]
        lost, gained = list((before - after).elements()), list((after - before).elements())
        if negative.strategy == "missing":
            assert (len(lost), gained) == (1, [])
        elif negative.strategy == "added":
            assert (lost, len(gained)) == ([], 1)
            spans = [item["span"] for item in row["results"]]
            rest = [item["span"] for item in negative.records]
            rest.remove(json.loads(gained[0])["span"])
            assert sorted(rest) == sorted(spans)
        else:
            old, new = json.loads(*lost), json.loads(*gained)
            assert old["span"] == new["span"]
            assert (old["code"] == new["code"]) == (negative.strategy == "sublabel")
            if negative.strategy == "label" and old["subcode"] in ONTOLOGY[new["code"]]:
                assert old["subcode"] == new["subcode"]
            if negative.strategy != "label":
                assert old["subcode"] != new["subcode"]


def test_strategy_shares_are_close_to_the_published_mix():
    drawn = Counter(negative.strategy for seed in range(4) for negative in negatives(seed))
    for strategy, share in STRATEGY_MIX.items():
        # 4,424 draws: the standard error is below 0.008
        assert drawn[strategy] / drawn.total() == pytest.approx(share, abs=0.025)


def test_the_same_seed_gives_the_same_negatives():
    assert negatives(3, ROWS[:200]) == negatives(3, ROWS[:200])
    assert negatives(3, ROWS[:200]) != negatives(4, ROWS[:200])


def test_the_gold_records_are_left_alone():
    row = json.loads(json.dumps(ROWS[0]))
    negatives(0, [row] * 50)
    assert row == ROWS[0]


SMALL = {"A": ["x", "y", "z"], "B": ["x", "w"], "C": ["v"]}


def draw(records, strategy, *, text="one two", seed=0, labels=None, sublabels=None, ontology=SMALL):
    return make_negative(
        records,
        ontology=ontology,
        labels=labels or {},
        sublabels=sublabels or {},
        rng=random.Random(seed),
        text=text,
        mix={strategy: 1.0},
    )


def test_replacements_follow_the_row_normalised_counts():
    sublabels = {"x": {"y": 30, "z": 10, "w": 1000, "x": 1000}}
    drawn = Counter(
        draw([record("A", "x")], "sublabel", seed=s, sublabels=sublabels).records[0]["subcode"] for s in range(800)
    )
    assert set(drawn) == {"y", "z"}
    assert drawn["y"] / 800 == pytest.approx(0.75, abs=0.05)


def test_records_with_measured_confusions_are_changed_first():
    records = [record("C", "v"), record("A", "x")]
    for seed in range(20):
        assert draw(records, "label", seed=seed, labels={"A": {"B": 1}}).records == [record("C", "v"), record("B", "x")]


def test_without_measured_confusions_every_permitted_name_occurs():
    drawn = {draw([record("A", "x")], "label", seed=s).records[0]["code"] for s in range(40)}
    assert drawn == {"B", "C"}


def test_label_confusion_keeps_the_sublabel_where_it_is_allowed():
    for seed in range(20):
        assert draw([record("A", "x")], "label", seed=seed, labels={"A": {"B": 1}}).records == [record("B", "x")]
        assert draw([record("A", "x")], "label", seed=seed, labels={"A": {"C": 1}}).records == [record("C", "v")]
        assert draw([record("A", "x")], "both", seed=seed, labels={"A": {"B": 1}}).records == [record("B", "w")]


def test_names_outside_the_ontology_are_never_written():
    for seed in range(20):
        assert draw([record("A", "x")], "label", seed=seed, labels={"A": {"Z": 9, "B": 1}}).records == [
            record("B", "x")
        ]


def test_an_impossible_strategy_is_redrawn_among_the_others():
    only = {"A": ["x"]}
    rng = random.Random(0)
    options = {"ontology": only, **uniform_confusion(only), "rng": rng}
    drawn = Counter(make_negative([record("A", "x", "one")], text="one two", **options).strategy for _ in range(400))
    assert set(drawn) == {"missing", "added"}
    assert drawn["added"] / 400 == pytest.approx(0.12 / 0.20, abs=0.07)
    assert make_negative([], text="", **options) is None
    assert make_negative([], text="one", **options) == Negative([record("A", "x", "one")], "added")


def test_nothing_else_to_say_gives_none():
    assert draw([record("A", "x")], "sublabel", ontology={"A": ["x"]}) is None
    assert draw([record("A", "x")], "label", ontology={"A": ["x"], "B": []}) is None
    assert draw([record("A", "x")], "both", ontology={"A": ["x"], "B": ["x"]}) is None
    assert draw([record("A", "x", "one")], "added", ontology={"A": ["x"]}, text="one") is None


def test_an_added_record_stands_where_its_span_does():
    records = [record("A", "x", "one"), record("B", "w", "three")]
    seen = {}
    for seed in range(60):
        spans = [item["span"] for item in draw(records, "added", text="one, two: three four", seed=seed).records]
        seen[tuple(spans)] = locate("one, two: three four", dict.fromkeys(spans)) is not None
    assert seen == {
        ("one", "one", "three"): True,
        ("one", "two", "three"): True,
        ("one", "three", "three"): True,
        ("one", "three", "four"): True,
    }


def test_without_a_text_an_added_record_reuses_a_span():
    for seed in range(20):
        added = draw([record("A", "x", "one"), record("B", "w", "two")], "added", text=None, seed=seed).records
        assert [item["span"] for item in added] in (["one", "one", "two"], ["one", "two", "two"])


def test_an_added_record_has_the_keys_of_the_others_in_their_order():
    gold = {"span": "one", "note": 1, "code": "A", "subcode": "x"}
    assert [list(item) for item in draw([gold], "added").records] == [["span", "note", "code", "subcode"]] * 2


def test_wrong_mixes_are_refused():
    for mix in ({"labels": 1.0}, {"label": -0.1, "both": 1.0}):
        with pytest.raises(InputError, match=r"mix: .*label"):
            make_negative([], ontology=SMALL, labels={}, sublabels={}, rng=random.Random(0), mix=mix)


def test_confusion_counts_by_hand():
    gold = [[record("A", "x"), record("B", "w")], [record("A", "y")], [record("A", "x")], [record("B", "x")]]
    predicted = [[record("C", "v"), record("B", "x")], [record("A", "z")], None, [record("A", "x")]]
    # 1: A missed, C wrong; A/x and B/w missed, C/v and B/x wrong (x → x is no sub-label confusion)
    # 2: A/y → A/z   3: no answer   4: B → A, and again x → x
    assert count_confusion(predicted, gold) == {
        "labels": {"A": {"C": 1}, "B": {"A": 1}},
        "sublabels": {"w": {"v": 1, "x": 1}, "x": {"v": 1}, "y": {"z": 1}},
    }


def test_uniform_confusion():
    assert uniform_confusion({"A": ["x"], "B": ["x", "y"]}) == {
        "labels": {"A": {"B": 1}, "B": {"A": 1}},
        "sublabels": {"x": {"y": 1}, "y": {"x": 1}},
    }


def test_pair_has_the_schema_and_spans_of_every_value():
    gold = [record("Street", "Name", 'a "Street"\t½\u00a0🙂')]
    result = pair("Label this", gold, Negative([], "missing"))
    assert result == {
        "prompt": "Label this",
        "chosen": '[{"code":"Street","subcode":"Name","span":"a \\"Street\\"\\t½\u00a0🙂"}]',
        "rejected": "[]",
        "strategy": "missing",
        "chosen_spans": [
            {"start": 10, "end": 16, "label": "code"},
            {"start": 29, "end": 33, "label": "subcode"},
            {"start": 43, "end": 60, "label": "span"},
        ],
        "rejected_spans": [],
    }
    assert result["chosen"][43:60] == 'a \\"Street\\"\\t½\u00a0🙂'


def test_pair_with_other_fields_marks_only_them():
    fields = RecordFields("l", "s", "e")
    gold = [{"l": "A", "s": "x", "e": "p", "code": "A"}]
    spans = pair("", gold, Negative([], "missing"), fields=fields)["chosen_spans"]
    assert [span["label"] for span in spans] == ["l", "s", "e"]


def test_label_pairs_differ_in_the_label_and_nothing_else():
    class Characters:
        is_fast = True

        def __call__(self, text, **_):
            return {"input_ids": [*map(ord, text)], "offset_mapping": [(i, i + 1) for i in range(len(text))]}

    gold = [record("Street", "Name", "Street"), record("Region", "City", "X")]
    result = pair("", gold, Negative([record("Box", "Name", "Street"), gold[1]], "label"))
    a, _ = token_offsets(Characters(), result["chosen"])
    b, _ = token_offsets(Characters(), result["rejected"])
    a_mask, b_mask = differing_tokens(a, b)
    (first, *_), (other, *_) = result["chosen_spans"], result["rejected_spans"]
    assert all(first["start"] <= i < first["end"] for i, differs in enumerate(a_mask) if differs)
    assert all(other["start"] <= i < other["end"] for i, differs in enumerate(b_mask) if differs)
    assert (sum(a_mask), sum(b_mask)) == (6, 3)


@pytest.mark.parametrize("which", ["labels", "sublabels"])
def test_a_table_of_other_names_is_refused(which: str) -> None:
    """A table under other names than the ontology's would otherwise never be used, in silence."""
    tables = {"labels": {"Street": {"Number": 1.0}}, "sublabels": {"Name": {"PostType": 1.0}}}
    tables[which] = {"street/name": {"street/posttype": 3.0}}
    ontology = {"Street": ["Name", "PostType"], "Number": ["Main"]}
    records = [{"code": "Street", "subcode": "Name", "span": "Main"}]
    with pytest.raises(InputError, match=f"confusion.{which}: no confusion of street/name"):
        make_negative(records, ontology=ontology, rng=random.Random(0), **tables)
