"""JSON records: the score, and the characters on which it was lost."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencredit.data.pieces import sampled_offsets, span_values
from tokencredit.errors import InputError
from tokencredit.rewards import RewardFunction, RewardPool
from tokencredit.rewards.contract import read_item
from tokencredit.rewards.json_credit import json_records

GOLD = [{"code": "A", "sub": "x", "span": "3600"}, {"code": "B", "sub": "y", "span": "West"}]


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def scored(text: str, gold: Any = GOLD, **arguments: Any) -> tuple[float, list[tuple[str, str, float]]]:
    """The score, and of each span the characters, the key and the value."""
    (found,) = json_records([text], [gold], **arguments)
    spans = [(text[span["start"] : span["end"]], span["label"], span["value"]) for span in found["spans"]]
    return found["score"], spans


def test_all_right_in_any_order_and_shape() -> None:
    for answer in (GOLD, GOLD[::-1], {"results": GOLD}, [dict(reversed(record.items())) for record in GOLD]):
        assert scored(compact(answer)) == (1.0, [])
        assert scored(json.dumps(answer, indent=2), compact(GOLD)) == (1.0, [])
    assert scored("[]", []) == (1.0, [])


def test_a_wrong_field_by_hand() -> None:
    """5 of 6 fields on both sides: F1 5/6. Five right ones and one place where something was lost: a sixth each."""
    score, spans = scored(compact([GOLD[0], GOLD[1] | {"sub": "z"}]))
    assert score == pytest.approx(0.2 + 0.8 * 5 / 6)
    assert spans == [("z", "sub", pytest.approx(-1 / 6))]


def test_a_missing_field_is_lost_where_the_record_closes() -> None:
    text = compact([{"code": "A", "sub": "x"}, GOLD[1]])
    (found,) = json_records([text], [GOLD])
    (span,) = found["spans"]
    assert (span["start"], span["end"], span["label"]) == (text.index("}"), text.index("}") + 1, "span")
    assert found["score"] == pytest.approx(0.2 + 0.8 * 10 / 11), "5 + 5 of 5 + 6"


def test_a_missing_record_is_lost_where_the_list_closes() -> None:
    score, spans = scored(compact({"results": [GOLD[1]]}))
    assert score == pytest.approx(0.2 + 0.8 * 6 / 9)
    assert spans == [("]", key, pytest.approx(-1 / 6)) for key in ("code", "sub", "span")]


def test_what_is_too_much_is_lost_on_its_values() -> None:
    extra = {"code": "C", "sub": "", "span": "12"}
    _, spans = scored(compact([GOLD[0] | {"more": [1]}, GOLD[1], extra]))
    assert [(text, key) for text, key, _ in spans] == [("[1]", "more"), ("C", "code"), ('""', "sub"), ("12", "span")]
    assert sum(value for *_, value in spans) == pytest.approx(-4 / 10)


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        (compact(GOLD)[:-1], "}"),
        ('[{"code":"A" "sub":"x"}]', '"'),
        ("The records are []", "T"),
        ('{"a":1,"b":2}', "{"),
        ("[1]", "["),
        ("[] and more", "a"),
        ("[NaN]", "N"),
        ('[{"code":-Infinity}]', "-"),
        ('[{"code":"A', "A"),
        ('[{"code":"A","su', "u"),
        ('[{"code":"\\q"}]', "\\"),
        ('[{"code":tru', "u"),
        ('[{"code":trie}]', "t"),
        ('[{"code":1', "1"),
    ],
)
def test_what_is_no_json_with_records_is_worth_nothing(text: str, stops: str) -> None:
    score, spans = scored(text)
    assert score == 0.0
    assert spans == [(stops, "invalid", -1.0)]


def test_empty_and_deep_answers() -> None:
    assert scored("") == (0.0, [])
    assert scored("[" * 100_000)[0] == 0.0


def test_values_are_compared_as_json() -> None:
    gold = [{"a": 1, "b": None, "c": [1, {"d": True}]}]
    assert scored('[{"a":1.0,"c":[1,{"d":true}]}]', gold)[0] == 1.0, "a column without a value is not asked for"
    assert scored('[{"a":true,"c":[1,{"d":true}]}]', gold)[1] == [("true", "a", -0.5)]


def test_a_null_that_is_written_in_the_gold_text_is_asked_for() -> None:
    assert scored('[{"a":1,"b":null}]', '[{"a":1,"b":null}]') == (1.0, [])
    assert scored('[{"a":1}]', '[{"a":1,"b":null}]')[1] == [("}", "b", -0.5)]


def test_true_is_not_1_however_deep() -> None:
    for wrong in ("[1]", '{"b":[1]}'):
        gold = wrong.replace("1", "true")
        assert scored(f'[{{"a":{wrong},"k":1}}]', f'[{{"a":{gold},"k":1}}]')[1] == [(wrong, "a", -0.5)]
        assert scored(f'[{{"a":{gold}}}]', f'[{{"a":{gold}}}]') == (1.0, [])


def test_nothing_is_free() -> None:
    """Records without fields, in the answer or the gold ones, are right or wrong like any other."""
    assert scored("[]", []) == (1.0, [])
    assert scored("[{}]", []) == (0.2, [("{}", "", -1.0)])
    assert scored('[{"a":1},{}]', [{"a": 1}]) == (pytest.approx(0.2 + 0.8 * 2 / 3), [("{}", "", -0.5)])
    assert scored("[]", [{}]) == (0.2, [("]", "", -1.0)])
    assert scored("[{}]", [{"a": None}]) == (1.0, [])


FIELD = st.sampled_from(["A", "B", "", "é🙂", 1, True, None, [1]])
RECORDS = st.lists(st.dictionaries(st.sampled_from(["code", "sub", "span"]), FIELD), max_size=4)


@settings(max_examples=200, deadline=None)
@given(answer=RECORDS, gold=RECORDS, cut=st.integers(0, 200), indent=st.sampled_from([None, 1]))
def test_whatever_is_written(answer: Any, gold: Any, cut: int, indent: int | None) -> None:
    """Score in [0, 1], spans that the contract takes, never more than the penalty; 1 exactly if nothing is lost."""
    text = json.dumps(answer, ensure_ascii=False, indent=indent)[: cut + 1]
    (found,) = json_records([text], [gold])
    reward = read_item(found, text, None)
    assert reward is not None
    assert reward.spans is not None
    assert 0 <= reward.value <= 1
    assert -1 - 1e-9 <= sum(span["value"] for span in reward.spans) <= 0
    assert (reward.value == pytest.approx(1)) == (not reward.spans)


def test_arguments() -> None:
    text = compact([GOLD[0], GOLD[1] | {"sub": "z"}])
    score, spans = scored(text, validity=0.0, penalty=0.5)
    assert score == pytest.approx(5 / 6)
    assert spans[0][2] == pytest.approx(-1 / 12)
    with pytest.raises(InputError, match=r"validity: 2 is not between 0 and 1"):
        RewardPool([RewardFunction("json_records", arguments={"validity": 2})])


def test_spans_reach_the_tokens_that_wrote_them(tiny_model: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = compact([GOLD[0], {"code": "B", "sub": "é🙂"}])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pool = RewardPool([RewardFunction("json_records", columns={"records": "gold"})])
    decoded, offsets = sampled_offsets(tokenizer, [*ids, tokenizer.eos_token_id])
    batch = pool.score([decoded], completion_ids=[[*ids, tokenizer.eos_token_id]], gold=[GOLD])
    reward = batch.rewards[0][0]
    assert reward is not None
    assert reward.spans is not None
    values = span_values(offsets, reward.spans)
    wrong = [place for place, value in enumerate(values) if value]
    assert {decoded[offsets[place][0]] for place in wrong} == {"é", "🙂", "}"}
    assert len(wrong) == len("é🙂".encode()) + 1, "each byte of both characters, and the brace"
    assert sum(values) == pytest.approx(sum(span["value"] for span in reward.spans))
