import random
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

from tokencredit.data.metrics import (
    COUNTS,
    FIGURES,
    LEVELS,
    count_matrix,
    count_records,
    document_counts,
    figures,
    json_records,
    name_counts,
    names,
    parse_references,
    ratios,
    record_errors,
    scores,
    spans_agree,
)
from tokencredit.data.records import RecordFields, parse_records
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError

ADDRESSES = Path(__file__).parents[2] / "data" / "us_addresses" / "validation.jsonl"


def record(label, sublabel, span):
    return {"code": label, "subcode": sublabel, "span": span}


def level(result, name):
    return tuple(result[f"{name}_{part}"] for part in ("precision", "recall", "f1"))


def test_by_hand():
    references = [
        [record("Street", "Name", "Huer Huero"), record("Region", "City", "Creston"), record("Region", "Zip", "93432")],
        [record("Box", "Type", "PO Box")],
    ]
    predictions = [
        [record("Street", "Name", "Huer"), record("Street", "City", "Creston")],
        [record("Box", "Type", "PO Box"), record("Box", "Type", "PO Box")],
    ]
    result = json_records([to_json(p) for p in predictions], [to_json(r) for r in references])
    # labels: {Street} of {Street, Region}; {Box} of {Box}              tp 2, fp 0, fn 1
    assert level(result, "label") == pytest.approx((1, 2 / 3, 4 / 5))
    # pairs: Street/Name right, Street/City wrong, two Region missed; Box/Type right   tp 2, fp 1, fn 2
    assert level(result, "sublabel") == pytest.approx((2 / 3, 2 / 4, 4 / 7))
    # spans: Creston; one of two PO Box                                 tp 2, fp 2, fn 2
    assert level(result, "span_exact") == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    # and Huer inside Huer Huero                                        tp 3, fp 1, fn 1
    assert level(result, "span_relaxed") == pytest.approx((3 / 4, 3 / 4, 3 / 4))
    # records: one of two PO Box                                        tp 1, fp 3, fn 3
    assert level(result, "record") == pytest.approx((1 / 4, 1 / 4, 1 / 4))
    assert (result["valid_json"], result["exact"]) == (1, 0)
    assert len(result) == 3 * len(LEVELS) + 2


def test_gold_against_itself_is_perfect_and_exact_minds_the_order():
    gold = [record("A", "x", "one"), record("B", "y", "two")]
    assert set(json_records([to_json(gold)], [to_json(gold)]).values()) == {1.0}
    turned = json_records([to_json(gold[::-1])], [to_json({"results": gold})])
    assert turned.pop("exact") == 0.0
    assert set(turned.values()) == {1.0}


def test_an_invalid_prediction_counts_as_no_records():
    gold = to_json([record("A", "x", "one")])
    result = json_records([gold[:-1], gold], [gold, gold])
    assert (result["valid_json"], result["exact"]) == (0.5, 0.5)
    for name in LEVELS:
        assert level(result, name) == pytest.approx((1, 1 / 2, 2 / 3))


def test_ratios_without_denominator():
    empty, one = "[]", to_json([record("A", "x", "one")])
    assert set(json_records([empty], [empty]).values()) == {1.0}
    for name in LEVELS:
        assert level(json_records([empty], [one]), name) == (0, 0, 0)
        assert level(json_records([one], [empty]), name) == (0, 0, 0)
    invalid = json_records(["no"], [empty])
    assert (invalid["valid_json"], invalid["exact"]) == (0, 0)
    assert level(invalid, "record") == (1, 1, 1)


def test_the_same_sublabel_under_another_label_is_wrong():
    counts = document_counts([record("Box", "Type", "s")], [record("Occupancy", "Type", "s")])
    assert [counts[f"sublabel_{kind}"] for kind in ("tp", "fp", "fn")] == [0, 1, 1]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("Main", "Main St", True),
        ("Main St", "Main", True),
        ("main", "Main St", False),
        ("a b c", "b c a", True),
        ("a b c d", "a b c e", True),  # 3 of 5 words
        ("a b c d", "d a b e f", False),  # 3 of 6
        ("a b", "b c", False),
        ("b a", "a b c", True),  # 2 of 3
        ("a a b x", "x b a", True),  # sets of words
        ("ain", "Main", True),  # containment is by characters
        ("", "", False),
        ("", "Main", False),
        ("Main", "", False),
        (" ", "\t", False),
        ("a\u00a0b", "b a", True),
        ("é", "e\u0301", False),
        ("a b c", "d c b a e", True),  # 3 of 5: exactly 0.6
        ("a b c d e f", "f e d c b a x y z w", True),  # 6 of 10
        ("a b c d e f g", "a b c d e x y z w", False),  # 5 of 11
        ("a", "a", True),
        ("a  b", "a b", True),  # however far the words are apart
        (" ", "a b", True),  # containment asks no word
    ],
)
def test_relaxed_rule(a, b, expected):
    assert spans_agree(a, b) is expected
    assert spans_agree(b, a) is expected


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        (["Main", "Main"], ["Main St"], (1, 1, 0)),  # one partner only
        (["Main St"], ["Main", "St"], (1, 0, 1)),
        (["Main St", "Main"], ["Main", "Main St W"], (2, 0, 0)),  # equal spans first
        (["a", "b"], ["b", "a"], (2, 0, 0)),
        (["", "x"], ["", "x"], (1, 1, 1)),
        ([], ["x"], (0, 0, 1)),
        (["a b", "a"], ["a b c", "x a b"], (2, 0, 0)),
        (["a", "b a"], ["b a c", "a d"], (1, 1, 1)),  # greedy: "a" takes the partner of "b a"
        (["b a", "a"], ["b a c", "a d"], (2, 0, 0)),  # in the other order both find one
        (["x", "x", "x"], ["x", "x"], (2, 1, 0)),
        (["x", "x"], ["x", "x y"], (2, 0, 0)),  # the second of equal spans goes on to the next partner
        (["x y"], ["x", "x"], (1, 0, 1)),
        (["", ""], ["x"], (0, 2, 1)),
        (["x"], ["", "x z"], (1, 0, 1)),
        (["a b c"], ["d c b a e"], (1, 0, 0)),
    ],
)
def test_relaxed_matching_is_one_to_one(predicted, gold, expected):
    counts = document_counts([record("A", "x", s) for s in predicted], [record("A", "x", s) for s in gold])
    assert tuple(counts[f"span_relaxed_{kind}"] for kind in ("tp", "fp", "fn")) == expected


def test_empty_spans_never_match_but_whole_records_do():
    counts = document_counts([record("A", "x", "")], [record("A", "x", "")])
    assert [counts[f"{name}_tp"] for name in LEVELS] == [1, 1, 0, 0, 1]
    assert counts["exact"] == 1


def test_scores_of_counts_are_the_metric_for_any_choice_of_documents():
    references = [line[line.index('"results": ') + 11 : -1] for line in ADDRESSES.read_text().splitlines()]
    rng = random.Random(0)
    predictions = [rng.choice([gold, rng.choice(references), gold[:-2]]) for gold in references]
    counts = count_records(predictions, references)
    chosen = rng.choices(range(len(references)), k=100)
    expected = json_records([predictions[i] for i in chosen], [references[i] for i in chosen])
    assert scores(counts[i] for i in chosen) == expected
    for c in counts:
        assert c["record_tp"] <= c["span_exact_tp"] <= c["span_relaxed_tp"]
        assert all(c[f"{name}_{kind}"] >= 0 for name in LEVELS for kind in ("tp", "fp", "fn"))
        assert c["documents"] == 1


def addresses(seed):
    """Gold records of the validation addresses, and answers with every kind of error."""
    references = [line[line.index('"results": ') + 11 : -1] for line in ADDRESSES.read_text().splitlines()]
    gold = parse_references(references)
    rng = random.Random(seed)

    def answer(records):
        kind = rng.randrange(5)
        if kind == 0:
            return "not JSON"
        changed = [r | {"code": rng.choice(rng.choice(gold))["code"]} if kind == 1 else r for r in records]
        return to_json(rng.sample(changed, rng.randrange(len(changed))) if kind == 2 else changed)

    return [answer(records) for records in gold], references


@pytest.mark.parametrize("level_name", ["label", "sublabel"])
def test_names_agree_with_scikit_learn(level_name):
    predictions, references = addresses(1)
    sides = [[names(parse_records(text), level_name) for text in side] for side in (predictions, references)]
    binarizer = MultiLabelBinarizer().fit(sides[0] + sides[1])
    predicted, gold = map(binarizer.transform, sides)

    micro = precision_recall_fscore_support(gold, predicted, average="micro")[:3]
    assert level(json_records(predictions, references), level_name) == pytest.approx(micro, rel=1e-12)

    counts = name_counts(*sides, columns=list(binarizer.classes_)).sum(axis=0)
    assert (counts.sum(axis=1) > 0).all(), "scikit-learn counts a name that nobody has otherwise"
    single = precision_recall_fscore_support(gold, predicted, average=None, zero_division=0)
    assert ratios(counts) == pytest.approx(np.stack(single[:3], axis=-1), rel=1e-12)
    assert (counts[:, 0] + counts[:, 2] == single[3]).all()


def test_names_sum_to_their_level():
    predictions, references = addresses(2)
    documents = count_records(predictions, references)
    for level_name in ("label", "sublabel"):
        sides = [[names(parse_records(text), level_name) for text in side] for side in (predictions, references)]
        columns = sorted(set().union(*sides[0], *sides[1]))
        counts = name_counts(*sides, columns=columns)
        assert counts.shape == (len(references), len(columns), 3)
        expected = [[document[f"{level_name}_{kind}"] for kind in ("tp", "fp", "fn")] for document in documents]
        assert counts.sum(axis=1).tolist() == expected


def test_names_by_hand():
    predicted = [names([record("A", "x", "one"), record("A", "y", "two"), record("B", "x", "three")], "label"), set()]
    gold = [{("A",)}, {("A",), ("C",)}]
    assert predicted == [{("A",), ("B",)}, set()]
    counts = name_counts(predicted, gold, [("A",), ("B",), ("C",)])
    assert counts.tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 0], [0, 0, 1]]]
    # A: 1 of 1 predicted, 1 of 2 found; B: predicted in vain; C: missed.
    assert ratios(counts.sum(axis=0)) == pytest.approx(np.array([[1, 1 / 2, 2 / 3], [0, 0, 0], [0, 0, 0]]))
    assert names(None, "sublabel") == set()
    assert name_counts([set(), set()], gold, []).shape == (2, 0, 3)


def test_many_sums_at_once_are_the_sums_one_by_one():
    matrix = count_matrix(count_records(*addresses(3)))
    assert matrix.shape == (252, len(COUNTS))
    rows = np.random.default_rng(0).integers(252, size=(2, 3, 20))
    together = figures(matrix[rows].sum(axis=2))
    assert together.shape == (2, 3, len(FIGURES))
    for index in np.ndindex(2, 3):
        single = scores([dict(zip(COUNTS, matrix[row].tolist(), strict=True)) for row in rows[index]])
        assert list(single) == list(FIGURES)
        assert together[index].tolist() == list(single.values())


def test_field_names_are_parameters():
    fields = RecordFields("l", "s", "e")
    text = '[{"l":"A","s":"x","e":"one"}]'
    assert json_records([text], [text], fields=fields)["record_f1"] == 1
    with pytest.raises(InputError, match="list of objects with code, subcode, span"):
        json_records([text], [text])


def test_wrong_input_is_named():
    with pytest.raises(InputError, match=r"references\[1\].*'nope'"):
        json_records(["[]", "[]"], ["[]", "nope"])
    with pytest.raises(InputError, match="1 predictions for 2 references"):
        json_records(["[]"], ["[]", "[]"])
    with pytest.raises(InputError, match="0 predictions"):
        json_records([], [])


def test_what_became_of_each_record() -> None:
    def records(*triples: str) -> list[dict[str, str]]:
        return [{"code": a, "subcode": b, "span": c} for a, b, c in (triple.split("/") for triple in triples)]

    gold = records("A/x/one", "A/x/two", "B/y/three", "C/z/four")
    cases = {
        (4, 0, 0, 0): gold[::-1],
        (0, 0, 0, 4): [],
        (1, 1, 1, 1): records("A/x/twe", "D/d/three", "A/x/one"),
        # One record with the right names serves one gold record only, and an equal record is taken first.
        (1, 0, 0, 3): records("A/x/one"),
        (0, 2, 0, 2): records("A/x/1", "A/x/2", "A/x/3"),
        # Right names go before the right span.
        (0, 1, 0, 3): records("B/y/four"),
    }
    for expected, predicted in cases.items():
        assert tuple(record_errors(predicted, gold).values()) == expected
    predicted = records("A/a/z", "B/b/y")
    for both in permutations(records("A/a/x", "A/a/y")):
        assert tuple(record_errors(predicted, both).values()) == (0, 1, 1, 0), "what has the right span is kept for it"
    assert record_errors(None, gold) == {"right": 0, "span": 0, "names": 0, "missing": 4}
    assert sum(record_errors(gold, []).values()) == 0
