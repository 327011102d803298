import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.data.augment import augment, scramble_spans
from tokencredit.data.records import locate
from tokencredit.errors import InputError

FOLDER = Path(__file__).parents[2] / "data" / "us_addresses"
ROWS = [json.loads(line) for line in (FOLDER / "train.jsonl").open()]


def shape(text):
    return ["A" if c.isupper() else "a" if c.islower() else "0" if c.isdecimal() else c for c in text]


def records(*spans):
    return [{"code": "A", "subcode": "x", "span": span} for span in spans]


def test_real_rows_keep_their_shape_and_their_records_stay_literal():
    rng = random.Random(0)
    changed = 0
    for row in ROWS:
        text, result = scramble_spans(row["text"], row["results"], rng)
        assert shape(text) == shape(row["text"])
        assert [(r["code"], r["subcode"]) for r in result] == [(r["code"], r["subcode"]) for r in row["results"]]
        old = locate(row["text"], [r["span"] for r in row["results"]])
        assert [text[start:end] for start, end in old] == [r["span"] for r in result]
        changed += text != row["text"]
    assert changed == len(ROWS)


def test_only_the_spans_change():
    text, result = scramble_spans(
        "Dr. Bo, 12½ O'Neil-St. 日\u00a0x", records("Bo", "12½ O'Neil-St. 日"), random.Random(1)
    )
    assert text[:4] == "Dr. "
    assert text[6:8] == ", "
    assert text[-2:] == "\u00a0x"
    assert text[4:6] == result[0]["span"] != "Bo"
    assert text[8:-2] == result[1]["span"]
    assert shape(result[1]["span"]) == shape("12½ O'Neil-St. 日")
    assert result[1]["span"] != "12½ O'Neil-St. 日"


@given(st.lists(st.text(max_size=8), max_size=5), st.text(max_size=3), st.integers(0, 9))
def test_any_text(spans, gap, seed):
    original = records(*spans)
    text = gap.join(["", *spans, ""])
    new_text, new = scramble_spans(text, original, random.Random(seed))
    assert shape(new_text) == shape(text)
    assert locate(text, spans) is not None
    for before, after in zip(original, new, strict=True):
        assert shape(after["span"]) == shape(before["span"])
        assert after["span"] in new_text
    assert original == records(*spans)


@pytest.mark.parametrize("spans", [["missing"], ["two", "one"], ["one tw", "two"]])
def test_spans_not_found_in_their_turn_change_nothing(spans):
    assert scramble_spans("one two", records(*spans), random.Random(0)) == ("one two", records(*spans))


def test_copies_and_share():
    rows = [{**row, "id": i} for i, row in enumerate(ROWS[:200])]
    result = augment(rows, copies=3, share=0.5, seed=0)
    assert [row["id"] for row in result] == [*range(200)] * 3
    same = sum(row["text"] == rows[row["id"]]["text"] for row in result)
    assert same / 600 == pytest.approx(0.5, abs=0.06)
    assert augment(rows, copies=2, share=0.0, seed=0) == rows * 2
    full = augment(rows, copies=2, share=1.0, seed=0)
    assert all(row["text"] != rows[row["id"]]["text"] for row in full)
    assert [row["text"] for row in full[:200]] != [row["text"] for row in full[200:]]


def test_deterministic_under_the_seed():
    assert augment(ROWS[:20], copies=2, share=0.5, seed=1) == augment(ROWS[:20], copies=2, share=0.5, seed=1)
    assert augment(ROWS[:20], copies=2, share=0.5, seed=1) != augment(ROWS[:20], copies=2, share=0.5, seed=2)


def test_columns_are_parameters():
    row = {"document": "Main", "labels": records("Main"), "text": "Main"}
    (result,) = augment([row], copies=1, share=1.0, seed=0, text_column="document", records_column="labels")
    assert result["document"] == result["labels"][0]["span"] != "Main"
    assert result["text"] == "Main"


def test_wrong_numbers_are_refused():
    with pytest.raises(InputError, match="copies: 0"):
        augment([], copies=0, share=0.5, seed=0)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="share"):
            augment([], copies=1, share=share, seed=0)
