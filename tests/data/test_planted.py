"""Errors planted in gold records: one, where it is said to be; and data that teaches a model to answer badly."""

import random
from collections import Counter

import pytest

from tokencredit.data.loading import load_split
from tokencredit.data.planted import one_letter, plant_error, word_of, words_in
from tokencredit.data.records import parse_records

ONTOLOGY = {"Street": ["Name", "Type"], "Region": ["City", "Zip"]}
RECORDS = [
    {"code": "Street", "subcode": "Name", "span": "Main"},
    {"code": "Region", "subcode": "Zip", "span": "12345"},
]


def test_one_value_of_one_record_differs() -> None:
    counts: Counter[str] = Counter()
    for seed in range(300):
        planted = plant_error(RECORDS, ontology=ONTOLOGY, rng=random.Random(seed), other=one_letter)
        assert planted is not None
        records, kind = planted
        changed = [(a, b) for a, b in zip(RECORDS, records, strict=True) if a != b]
        assert len(changed) == 1
        ((before, after),) = changed
        key = {"label": "code", "sublabel": "subcode", "span": "span"}[kind]
        assert {name for name in before if before[name] != after[name]} == {key}
        counts[kind] += 1
    # A third each: 100 ± 4 standard deviations of 8.2.
    assert all(67 < counts[kind] < 133 for kind in ("label", "sublabel", "span"))


def test_nothing_to_plant() -> None:
    assert plant_error([], ontology=ONTOLOGY, rng=random.Random(0), other=one_letter) is None
    alone = {"Street": ["Name"]}
    planted = [
        plant_error(RECORDS[:1], ontology=alone, rng=random.Random(seed), other=word_of(["Main"])) for seed in range(30)
    ]
    assert planted == [None] * 30


@pytest.mark.parametrize(("word", "kind"), [("Q", str.isupper), ("x", str.islower), ("7", str.isdigit)])
def test_a_letter_is_replaced_by_one_of_its_kind(word: str, kind: object) -> None:
    found = {one_letter(word, random.Random(seed)) for seed in range(200)}
    assert word not in found
    assert all(kind(letter) for letter in found)  # type: ignore[operator]
    assert len(found) > 5


def test_a_word_is_replaced_by_one_with_as_many_digits() -> None:
    words = words_in(["12 Main St", "34 Elm", "A1"])
    assert words == ["12", "34", "A1", "Elm", "Main", "St"]
    other = word_of(words)
    assert {other("12", random.Random(seed)) for seed in range(20)} == {"34"}
    assert {other("Main", random.Random(seed)) for seed in range(50)} == {"Elm", "St"}
    assert other("123", random.Random(0)) is None


def test_planted_addresses_are_pairs_with_one_error() -> None:
    rows = load_split("us_addresses", "validation", config="planted")
    assert len(rows) > 240
    for row in rows:
        chosen, rejected = parse_records(row["chosen"]), parse_records(row["rejected"])
        assert chosen is not None
        assert rejected is not None
        values = [(a[key], b[key]) for a, b in zip(chosen, rejected, strict=True) for key in a]
        assert sum(a != b for a, b in values) == 1
    assert set(rows["strategy"]) == {"planted label", "planted sublabel", "planted span"}


def test_steerable_addresses_have_errors_after_a_minus_only() -> None:
    gold = {row["text"]: row["results"] for row in load_split("us_addresses", "train")}
    rows = load_split("us_addresses", "train", config="steerable")
    assert len(rows) == 8 * 877
    signs = Counter()
    for row in rows:
        sign = row["text"][0] if row["text"][0] in "+-" and row["text"] not in gold else ""
        signs[sign] += 1
        if sign != "-":
            assert row["results"] == gold[row["text"].removeprefix(sign)]
        elif row["text"][1:] in gold:
            wrong = sum(a != b for a, b in zip(row["results"], gold[row["text"][1:]], strict=True))
            assert wrong in (0, 1, 2)
    assert signs == {"": 4 * 877, "+": 2 * 877, "-": 2 * 877}
    assert (
        load_split("us_addresses", "test", config="steerable").to_dict() == load_split("us_addresses", "test").to_dict()
    )
