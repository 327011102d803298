"""Scores of answers: values, intervals, paired differences, names."""

import json
import random
from dataclasses import replace
from math import sqrt
from typing import Any

import pytest

from tokencredit.analysis.scores import Answers, ArmScores, Estimate, Settings, score
from tokencredit.analysis.statistics import percentile_interval, resampled_totals
from tokencredit.data.metrics import FIGURES, count_matrix, count_records, figures, json_records
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
    (run,) = scored.runs
    assert [d.answer for d in run.documents] == texts
    assert sum(d.counts["record_tp"] for d in run.documents) / 160 == scored.scores["record_recall"].value
    assert run.scores == {name: figure.value for name, figure in scored.scores.items()}


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


RIGHT = [to_json([record(label)]) for label in "ABCD"]


def right_in(places: str, label: str = "a") -> Answers:
    """Answers to `RIGHT` that are right where there is a 1 and empty where there is a 0."""
    return answers(label, [text if right == "1" else "[]" for text, right in zip(RIGHT, places, strict=False)])


def exact(*models: Answers) -> list[tuple[Estimate, Estimate | None]]:
    """The figure `exact` of each arm, and its difference from the first."""
    scored = score(models, RIGHT[: len(models[0].texts)], SETTINGS)
    return [(arm.scores["exact"], arm.differences["exact"] if arm.differences else None) for arm in scored]


def test_one_run_is_the_plain_bootstrap() -> None:
    sides = [documents(40, 7, right)[0] for right in (0.5, 0.8)]
    gold = documents(40, 7, 0.5)[1]
    first, second = score([answers("a", sides[0]), answers("b", sides[1])], gold, SETTINGS)
    counts = [count_matrix(count_records(texts, gold)) for texts in sides]
    value = [figures(found.sum(axis=0)) for found in counts]
    drawn = [figures(resampled_totals(found, resamples=500, seed=0)) for found in counts]

    def plain(values: Any, resampled: Any) -> list[Estimate]:
        return [Estimate(*parts, None) for parts in zip(values, *percentile_interval(resampled), strict=True)]

    assert list(first.scores.values()) == plain(value[0], drawn[0])
    assert second.differences is not None
    assert list(second.differences.values()) == plain(value[1] - value[0], drawn[1] - drawn[0])


def test_mean_and_spread_by_hand() -> None:
    # 3 and 1 of 4 right: mean 1/2, deviations ±1/4, so the variance is 2/16 over S − 1 = 1.
    ((found, difference),) = exact(right_in("1110"), right_in("1000"))
    assert (found.value, found.spread, difference) == (0.5, sqrt(1 / 8), None)
    # Deviations 1/2, 0 and −1/2 of three runs: 1/2 over 2.
    ((found, _),) = exact(right_in("1111"), right_in("1010"), right_in("0000"))
    assert (found.value, found.spread) == (0.5, 0.5)
    (scored,) = score([right_in("1110"), right_in("1000")], RIGHT, SETTINGS)
    assert [run.scores["exact"] for run in scored.runs] == [0.75, 0.25]
    assert [document.answer for document in scored.runs[1].documents] == [RIGHT[0], "[]", "[]", "[]"]


def test_the_interval_is_that_of_the_mean_over_other_documents() -> None:
    # Both runs right in the same one of two documents: the mean of a resample is 0, 1/2 or 1.
    assert exact(right_in("10"), right_in("10")) == [(Estimate(0.5, 0, 1, 0), None)]
    # Each right in another document: one of the two is always right in a drawn document.
    assert exact(right_in("10"), right_in("01")) == [(Estimate(0.5, 0.5, 0.5, 0), None)]
    # One run all right and one all wrong: other documents change nothing, another seed everything.
    assert exact(right_in("11"), right_in("00")) == [(Estimate(0.5, 0.5, 0.5, sqrt(1 / 2)), None)]


def test_a_repeated_run_only_adds_a_spread_of_nothing() -> None:
    texts, gold = documents(30, 8, 0.6)
    (one,) = score([answers("a", texts)], gold, SETTINGS)
    (two,) = score([answers("a", texts)] * 2, gold, SETTINGS)
    assert two.scores == {name: replace(figure, spread=0.0) for name, figure in one.scores.items()}
    assert two.runs == one.runs * 2


def test_differences_pair_the_runs_in_their_order() -> None:
    first = right_in("1110"), right_in("1000")
    low, high = right_in("1100", "b"), right_in("1111", "b")
    # 1 − 3/4 and 1/2 − 1/4: both runs gain a quarter, though the runs of each arm are far apart.
    (_, (found, difference)) = exact(*first, high, low)
    assert found.spread == sqrt(1 / 8)
    assert difference is not None
    assert (difference.value, difference.spread) == (0.25, 0)
    # 1/2 − 3/4 and 1 − 1/4: the mean and its interval are the same, the deviations are ±1/2.
    (_, (_, crossed)) = exact(*first, low, high)
    assert crossed == replace(difference, spread=sqrt(1 / 2))
    # Arms in turns are the same arms.
    assert exact(first[0], high, first[1], low) == exact(*first, high, low)


def test_unequal_numbers_of_runs_have_no_pairs() -> None:
    (_, (alone, difference), (_, of_three)) = exact(
        *[right_in("1110"), right_in("1000"), right_in("1111", "b")],
        *[right_in("0000", "c"), right_in("1000", "c"), right_in("1100", "c")],
    )
    assert alone.spread is None
    assert difference is not None
    assert (difference.value, difference.spread) == (0.5, None)
    assert of_three is not None
    assert (of_three.value, of_three.spread) == (-0.25, None)
    # A difference of means is paired over documents: here the second arm is right in one document more of each draw.
    (_, (_, difference)) = exact(right_in("00"), right_in("10"), right_in("01", "b"))
    assert difference is not None
    assert difference.low == -0.5, "both documents drawn are the first: 0 − 1/2"


def test_names_are_means_over_runs() -> None:
    gold = [to_json([record("A")])]
    runs = [answers("a", gold), answers("a", ["[]"]), answers("b", [to_json([record("Z")])]), answers("b", gold)]
    first, second = score(runs, gold, SETTINGS)

    def table(arm: ArmScores) -> dict[str, tuple[float, ...]]:
        return {n.name[0]: (n.support, n.precision.value, n.recall.value, n.f1.value) for n in arm.names["label"]}

    # A name that is neither there nor predicted counts 1.
    assert table(first) == {"A": (1, 0.5, 0.5, 0.5), "Z": (0, 1, 1, 1)}
    assert table(second) == {"A": (1, 0.5, 0.5, 0.5), "Z": (0, 0.5, 0.5, 0.5)}
    assert second.names["label"][0].f1.spread == sqrt(1 / 2)
    # 0 − 1 and 1 − 0.
    assert second.names["label"][0].f1_difference == Estimate(0, 0, 0, sqrt(2))


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
