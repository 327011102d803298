"""Scores of answers: values, intervals, paired differences, names."""

import json
import random
from typing import Any

import pytest

from tokencredit.analysis.scores import Answers, Estimate, Settings, score
from tokencredit.data.metrics import FIGURES, json_records
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError

SETTINGS = Settings(data="addresses", resamples=500)


def record(label: str, sublabel: str = "x", span: str = "s") -> dict[str, str]:
    return {"code": label, "subcode": sublabel, "span": span}


def answers(label: str, texts: list[str]) -> Answers:
    return Answers(label, f"models/{label}", None, [f"{i}?" for i in range(len(texts))], texts, [True] * len(texts))


def documents(count: int, seed: int, right: float) -> tuple[list[str], list[str]]:
    """Gold records of random names, and answers that have each of them right with a probability."""
    rng = random.Random(seed)
    gold = [[record(rng.choice("ABC"), rng.choice("xyz"), str(i)) for i in range(4)] for _ in range(count)]
    texts = [[r if rng.random() < right else record("D", "w", "none") for r in records] for records in gold]
    return [to_json(records) for records in texts], [to_json(records) for records in gold]


def test_values_are_those_of_the_metric() -> None:
    texts, gold = documents(40, 0, 0.7)
    (scored,) = score([answers("a", texts)], gold, SETTINGS)
    assert {name: figure.value for name, figure in scored.scores.items()} == json_records(texts, gold)
    assert list(scored.scores) == list(FIGURES)
    assert all(0 <= figure.low <= figure.value <= figure.high <= 1 for figure in scored.scores.values())
    assert scored.differences is None
    assert [d.answer for d in scored.documents] == texts
    assert sum(d.counts["record_tp"] for d in scored.documents) / 160 == scored.scores["record_recall"].value


def test_interval_of_exact_answers_by_hand() -> None:
    # One document: every resample is it, so the interval has no width.
    gold = [to_json([record("A")])]
    (scored,) = score([answers("a", gold)], gold, SETTINGS)
    assert set(scored.scores.values()) == {Estimate(1, 1, 1)}
    # Of two documents one is right: resamples have 0, 1 or 2 right with 1/4, 1/2, 1/4, more than 2.5 % each.
    gold = [to_json([record("A")]), to_json([record("B")])]
    (scored,) = score([answers("a", [gold[0], "[]"])], gold, SETTINGS)
    assert scored.scores["exact"] == Estimate(0.5, 0, 1)


def test_equal_models_differ_by_exactly_nothing() -> None:
    texts, gold = documents(50, 1, 0.6)
    first, second = score([answers("a", texts), answers("b", texts)], gold, SETTINGS)
    assert second.differences is not None
    assert set(second.differences.values()) == {Estimate(0, 0, 0)}
    assert second.scores == first.scores
    for level in ("label", "sublabel"):
        assert {name.f1_difference for name in second.names[level]} == {Estimate(0, 0, 0)}
        assert {name.f1_difference for name in first.names[level]} == {None}


def test_differences_are_paired() -> None:
    # The second model has one record wrong in every document, so the difference is -1/4 in every resample, while
    # recall itself varies.
    texts, gold = documents(60, 2, 0.8)
    worse = []
    for found, right in zip(map(json.loads, texts), map(json.loads, gold), strict=True):
        index = next((i for i in range(4) if found[i] == right[i]), None)
        worse.append(to_json([r for i, r in enumerate(found) if i != index]))
    first, second = score([answers("a", texts), answers("b", worse)], gold, SETTINGS)
    assert second.differences is not None
    difference = second.differences["record_recall"]
    assert (difference.low, difference.value, difference.high) == pytest.approx((-0.25, -0.25, -0.25))
    assert first.scores["record_recall"].high - first.scores["record_recall"].low > 0.05
    expected = json_records(worse, gold)["record_f1"] - json_records(texts, gold)["record_f1"]
    assert second.differences["record_f1"].value == pytest.approx(expected)


def test_the_order_of_the_others_changes_nothing() -> None:
    sides = [documents(30, 3, right)[0] for right in (0.5, 0.9)]
    gold = documents(30, 3, 0.5)[1]
    a, b, c = answers("a", sides[0]), answers("b", sides[1]), answers("c", gold)
    assert score([a, b, c], gold, SETTINGS)[1:] == score([a, c, b], gold, SETTINGS)[:0:-1]
    assert score([a], gold, SETTINGS) == score([a, b], gold, SETTINGS)[:1]


def test_seed_and_number_of_resamples() -> None:
    texts, gold = documents(30, 4, 0.5)

    def scored(**changes: Any) -> Any:
        return score([answers("a", texts)], gold, Settings(data="d", **({"resamples": 200} | changes)))[0].scores

    assert scored(seed=1) == scored(seed=1)
    assert scored(seed=1) != scored(seed=2)
    assert scored(seed=1, resamples=199) != scored(seed=1)
    wide, narrow = scored(confidence=0.95)["record_f1"], scored(confidence=0.5)["record_f1"]
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    one = scored(resamples=1)["record_f1"]
    assert one.low == one.high


def test_names_by_hand() -> None:
    gold = [to_json([record("A", "x"), record("A", "y")]), to_json([record("B", "x")]), to_json([record("A", "x")])]
    texts = [to_json([record("A", "x")]), to_json([record("A", "x")]), "no JSON"]
    (scored,) = score([answers("a", texts)], gold, SETTINGS)
    table = {tuple(n.name): (n.support, n.precision.value, n.recall.value, n.f1.value) for n in scored.names["label"]}
    assert table == {("A",): (2, 0.5, 0.5, 0.5), ("B",): (1, 0, 0, 0)}
    table = {tuple(n.name): (n.support, n.precision.value, n.recall.value) for n in scored.names["sublabel"]}
    assert table == {("A", "x"): (2, 0.5, 0.5), ("A", "y"): (1, 0, 0), ("B", "x"): (1, 0, 0)}


def test_names_are_those_of_gold_answers_and_of_all_models() -> None:
    gold = [to_json([record("A")])]
    scored = score([answers("a", gold), answers("b", [to_json([record("Z")])])], gold, SETTINGS)
    assert [[name.name for name in model.names["label"]] for model in scored] == [[["A"], ["Z"]]] * 2
    (nothing,) = score([answers("a", ["[]"])], ["[]"], SETTINGS)
    assert nothing.names == {"label": [], "sublabel": []}
    assert nothing.scores["label_f1"] == Estimate(1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"limit": 0}, "limit: 0 is too small; give 1 or more"),
        ({"resamples": 0}, "resamples: 0 is too small; give 1 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is too small"),
        ({"batch_size": -1}, "batch_size: -1 is too small"),
        ({"seed": -1}, "seed: -1 is too small; give 0 or more"),
        ({"confidence": 1.0}, "confidence: 1.0 is no share"),
        ({"confidence": float("nan")}, "confidence: nan is no share"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        Settings(data="d", **changes)
    assert str(caught.value).startswith(says)


def test_answers_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="1 answers of 'a' for 2 references"):
        score([answers("a", ["[]"])], ["[]", "[]"], SETTINGS)
    with pytest.raises(InputError, match="0 answers of 'a' for 0 references"):
        score([answers("a", [])], [], SETTINGS)
    with pytest.raises(InputError, match=r"references\[0\].*'Ada' is not JSON"):
        score([answers("a", ["[]"])], ["Ada"], SETTINGS)


def test_half_a_character_in_a_name_can_be_written() -> None:
    (scored,) = score([answers("a", ['[{"code":"\\ud800","subcode":"x","span":"s"}]'])], ["[]"], SETTINGS)
    assert scored.names["label"][0].name == ["\\ud800"]
