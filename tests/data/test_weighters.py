"""Weighters: a token is weighted if and only if it overlaps what was asked for, whatever the text holds."""

import json
import logging
import math
import random
import sys
from collections import Counter
from itertools import groupby
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tokencredit.data import weighters
from tokencredit.data.json_values import json_values, select
from tokencredit.data.negatives import Negative, count_confusion, make_negative, pair
from tokencredit.data.records import ontology
from tokencredit.data.serialise import to_json
from tokencredit.data.spans import token_offsets
from tokencredit.data.tokenizers import build_tokenizer
from tokencredit.data.weighters import TAB_PO_WEIGHTS, Alarms, from_recipe, token_classes
from tokencredit.errors import InputError

TEXTS = ['[{"code":"Street","subcode":"Name","span":"Huer Huero"}]', '"},{"code":"', "the quick Street 🙂"] * 3
FAST = {
    name: PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    for name, tokenizer in {
        "characters": build_tokenizer(TEXTS, kind="characters"),
        "bpe": build_tokenizer(TEXTS, kind="bpe", vocab_size=320),
    }.items()
}
HOSTILE = [
    'she said "Street" and \\ left',
    '","code":"Street',
    '[{"code":"Street"}]',
    "tab\tline\nand\u00a0no-break",
    "\u0000\u001f e\u0301 \u2028 🙂🏽",
    "Street Name Street",
    "",
]
PATHS = {"[].code": 1.1, "[].subcode": 1.2, "[].span": 1.3}

tokenizers = pytest.mark.parametrize("tokenizer", FAST.values(), ids=FAST)


def record(label: str, sublabel: str, span: str = "s") -> dict[str, str]:
    return {"code": label, "subcode": sublabel, "span": span}


def example(side: str = "chosen", **columns) -> dict:
    return {"side": side, "response_ids": []} | columns


def both_sides(tokenizer, row: dict) -> list[tuple]:
    """(example, text, offsets) of each side, as a trainer calls a weighter."""
    encoded = {side: token_offsets(tokenizer, row[side]) for side in ("chosen", "rejected")}
    return [
        (example(side, response_ids=encoded[side][0], other_ids=encoded[other][0]) | row, row[side], encoded[side][1])
        for side, other in (("chosen", "rejected"), ("rejected", "chosen"))
    ]


def pieces(text: str, offsets, weights, weight: float) -> list[str]:
    """The text of each run of tokens that has a weight."""
    runs = groupby(zip(offsets, weights, strict=True), key=lambda token: token[1])
    covered = [[offset for offset, _ in run] for found, run in runs if found == weight]
    return [text[run[0][0] : run[-1][1]] for run in covered]


@pytest.fixture
def alarms() -> Alarms:
    return Alarms()


# json


@tokenizers
@pytest.mark.parametrize("ascii_only", [False, True], ids=["to_json", r"\u escapes"])
def test_values_are_weighted_by_their_place_in_the_json(tokenizer, ascii_only, alarms) -> None:
    records = [record("Street", "Name", span) for span in HOSTILE]
    text = json.dumps(records, indent=1) if ascii_only else to_json(records)
    _, offsets = token_offsets(tokenizer, text)
    weights = weighters.json_values(PATHS, alarms=alarms)(example(), text, offsets)
    assert len(weights) == len(offsets)
    places = [(value, weight) for path, weight in PATHS.items() for value in select(json_values(text), path)]
    assert len(places) == 3 * len(HOSTILE)
    for weight, (start, end) in zip(weights, offsets, strict=True):
        covering = [w for value, w in places if max(value.start, start) < min(value.end, end)]
        assert weight == max(covering, default=1.0)
    assert not alarms.counts


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.sampled_from(HOSTILE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.sampled_from([(",", ":"), (" , ", " :\n")]), st.booleans(), st.sampled_from(sorted(FAST)))
def test_a_token_is_weighted_iff_it_overlaps_a_selected_value(value, separators, ascii_only, name) -> None:
    # The same value stands behind y too, and only the one behind the first x is selected.
    document = {"a": [{"x": value, "y": value}, {"y": HOSTILE[0]}], "x": "Street"}
    text, written = (json.dumps(v, separators=separators, ensure_ascii=ascii_only) for v in (document, value))
    start = text.index('"x"' + separators[1]) + 3 + len(separators[1])
    quotes = int(isinstance(value, str))
    characters = set(range(start + quotes, start + len(written) - quotes))
    _, offsets = token_offsets(FAST[name], text)
    weights = weighters.json_values({"a[].x": 2.0}, alarms=Alarms())(example(), text, offsets)
    assert [weight == 2.0 for weight in weights] == [bool(characters & set(range(*token))) for token in offsets]


def test_escaped_quotes_do_not_end_a_value() -> None:
    span = 'a "b" c'
    text = to_json([record("X", "Y", span)])
    _, offsets = token_offsets(FAST["characters"], text)
    weights = weighters.json_values({"[].span": 2.0})(example(), text, offsets)
    assert pieces(text, offsets, weights, 2.0) == [json.dumps(span)[1:-1]]


def test_label_words_elsewhere_keep_weight_one() -> None:
    text = to_json([record("Street", "Name", 'Street "code":"Street"'), record("Name", "Street")])
    _, offsets = token_offsets(FAST["characters"], text)
    weights = weighters.json_values({"[].code": 2.0})(example(), text, offsets)
    assert pieces(text, offsets, weights, 2.0) == ["Street", "Name"]
    assert sum(w == 2.0 for w in weights) == len("Street") + len("Name")


def test_a_token_across_two_values_has_the_larger_weight() -> None:
    text = '["a","b"]'
    offsets = [(0, 2), (2, 7), (7, 9)]
    for weights in ({"[0]": 1.1, "[1]": 1.5}, {"[0]": 1.5, "[1]": 1.1}, {"[0]": 1.5, "[]": 0.5}):
        assert weighters.json_values(weights)(example(), text, offsets) == [1.0, 1.5, 1.0]


@pytest.mark.parametrize("text", ["Street", '[{"code":"Street"', "", "[NaN]"])
def test_what_is_not_json_has_ones_and_an_alarm(text, alarms) -> None:
    _, offsets = token_offsets(FAST["bpe"], text)
    assert weighters.json_values(PATHS, alarms=alarms)(example(), text, offsets) == [1.0] * len(offsets)
    assert alarms.counts == {"response is not JSON": 1}


def test_a_pattern_that_matches_nothing_is_named(alarms) -> None:
    weigh = weighters.json_values({"[].code": 1.1, "[].cod": 1.1}, alarms=alarms)
    text = to_json([record("A", "x")])
    for _ in range(3):
        weigh(example(), text, token_offsets(FAST["bpe"], text)[1])
    assert alarms.counts == {"path [].cod matches nothing": 3}


# differing


@tokenizers
def test_differing_tokens_are_found_by_alignment(tokenizer) -> None:
    # By position everything after the inserted record would differ.
    gold = [record("Street", "Name", "Huer Huero"), record("Street", "Name", "Street")]
    more = [record("Street", "Name", "quick"), *gold]
    chosen, rejected = both_sides(tokenizer, {"chosen": to_json(gold), "rejected": to_json(more)})
    assert set(weighters.differing(1.5)(*chosen)) == {1.0}
    weights = weighters.differing(1.5)(*rejected)
    assert Counter(weights)[1.0] == len(chosen[2])
    assert sum(map(len, pieces(rejected[1], rejected[2], weights, 1.5))) < len(to_json(more[0])) + 5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=14), st.lists(st.integers(0, 3), max_size=14))
def test_both_sides_are_read_from_one_alignment(a, b) -> None:
    weigh = weighters.differing(2.0)
    chosen = weigh(example("chosen", response_ids=a, other_ids=b), "", [(0, 1)] * len(a))
    rejected = weigh(example("rejected", response_ids=b, other_ids=a), "", [(0, 1)] * len(b))
    same = [[x for x, w in zip(ids, ws, strict=True) if w == 1.0] for ids, ws in ((a, chosen), (b, rejected))]
    assert same[0] == same[1]


def test_differing_needs_a_pair() -> None:
    with pytest.raises(InputError, match=r"token_weights\.differing: the completion response has no other side"):
        weighters.differing()(example("completion"), "a", [(0, 1)])


def test_the_serialiser_gives_both_sides_the_same_scaffold() -> None:
    tokenizer = FAST["characters"]
    gold = [record("Street", "Name", 'a "quoted" 🙂'), record("Box", "City")]
    wrong = [record("Box", "Name", 'a "quoted" 🙂'), record("Box", "Name")]
    pairs = pair("", gold, Negative(wrong, "label"))
    scaffold = []
    for case in both_sides(tokenizer, pairs):
        classes = token_classes(*case)
        ids = case[0]["response_ids"]
        scaffold.append([i for i, name in zip(ids, classes, strict=True) if name == "scaffold"])
        weights = weighters.differing(2.0)(*case)
        assert {name for name, w in zip(classes, weights, strict=True) if w == 2.0} <= {"code", "subcode"}
    assert scaffold[0] == scaffold[1]


# spans


def test_spans_carry_weights_or_labels(alarms) -> None:
    given_spans = [
        {"start": 0, "end": 2, "weight": None, "label": "code"},
        {"start": 1, "end": 3, "weight": 3.0, "label": "code"},
        {"start": 4, "end": 5, "weight": 0.0, "label": None},
        {"start": 4, "end": 6, "weight": None, "label": "other"},
    ]
    offsets = [(i, i + 1) for i in range(7)]
    weigh = weighters.spans({"code": 1.5}, alarms=alarms)
    expected = [1.5, 3.0, 3.0, 1.0, 0.0, 1.0, 1.0]
    assert weigh(example("rejected", rejected_spans=given_spans), "abcdefg", offsets) == expected
    named = weighters.spans({"code": 1.5}, column="mine", alarms=alarms)
    assert named(example(mine=given_spans), "abcdefg", offsets) == expected
    assert named(example(mine=None), "abcdefg", offsets) == [1.0] * 7
    assert alarms.counts == {"span label code matches nothing": 1}


@tokenizers
def test_spans_of_a_built_pair_weigh_what_the_paths_do(tokenizer, alarms) -> None:
    gold = [record("Street", "Name", span) for span in HOSTILE[:-1]]
    pairs = pair("", gold, Negative(gold[:2], "missing"))
    labels = {path.removeprefix("[]."): weight for path, weight in PATHS.items()}
    for case in both_sides(tokenizer, pairs):
        assert weighters.spans(labels, alarms=alarms)(*case) == weighters.json_values(PATHS)(*case)
    assert not alarms.counts


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 1), (0, 4), (4, 4), (None, 1), (0, 1.5)])
def test_a_span_outside_the_text_is_refused(start, end) -> None:
    row = example(index=7, chosen_spans=[{"start": start, "end": end, "weight": 2.0}])
    message = rf"chosen_spans: .*'start': {start}, 'end': {end}.* 3 characters of the chosen response of example 7"
    for call in (weighters.spans(), token_classes):
        with pytest.raises(InputError, match=message):
            call(row, "abc", [(0, 1), (1, 2), (2, 3)])


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, "2", True])
def test_impossible_span_weights_are_refused(weight) -> None:
    row = example(chosen_spans=[{"start": 0, "end": 1, "weight": weight}])
    with pytest.raises(InputError, match=f"chosen_spans: .* has weight {weight!r}"):
        weighters.spans()(row, "a", [(0, 1)])


def test_spans_without_a_weight_are_refused() -> None:
    labelled, bare = {"start": 0, "end": 1, "label": "code"}, {"start": 0, "end": 1}
    for labels, span in ((None, labelled), (None, bare), ({"code": 2.0}, bare)):
        with pytest.raises(InputError, match=r"chosen_spans: .* has no weight; .*token_weights\.spans"):
            weighters.spans(labels)(example(chosen_spans=[span]), "a", [(0, 1)])
    with pytest.raises(InputError, match="there is no column 'chosen_spans'"):
        weighters.spans()(example(), "a", [(0, 1)])


def test_a_span_that_maps_to_no_token_is_an_alarm(alarms) -> None:
    # The tokens leave out the space at 1 and the two at the end.
    offsets = [(0, 1), (2, 3), (3, 3)]
    for start, end in ((1, 2), (3, 5), (4, 5), (2, 2)):
        row = example(chosen_spans=[{"start": start, "end": end, "weight": 2.0}])
        assert weighters.spans(alarms=alarms)(row, "a b  ", offsets) == [1.0] * 3
    assert alarms.counts == {"span that maps to no token": 4}
    row = example(chosen_spans=[{"start": 2, "end": 5, "weight": 2.0}])
    assert weighters.spans(alarms=alarms)(row, "a b  ", offsets) == [1.0, 2.0, 1.0]


# functions


@pytest.fixture
def module(monkeypatch) -> ModuleType:
    found = ModuleType("weights_of_mine")
    monkeypatch.setitem(sys.modules, found.__name__, found)
    return found


def test_a_function_sees_what_every_weighter_sees(module) -> None:
    module.fn = lambda row, text, offsets: (row["k"] * len(text[start:end]) for start, end in offsets)
    assert weighters.function("weights_of_mine:fn")(example(k=2), "abc", [(0, 1), (1, 3)]) == [2.0, 4.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 weights for the 2 tokens of the chosen response of example 5"),
        ([1.0, math.nan], "returned nan for token 1 of the chosen response of example 5"),
        ([math.inf, 1.0], "returned inf for token 0"),
        ([1.0, -0.5], "returned -0.5 for token 1"),
        (["a", 1.0], r"returned \['a', 1.0\] for the chosen"),
        (None, "returned None for the chosen"),
    ],
)
def test_what_a_function_returns_is_checked(module, returned, message) -> None:
    module.fn = lambda *_: returned
    with pytest.raises(InputError, match=f"token_weights.function weights_of_mine:fn: {message}"):
        weighters.function("weights_of_mine:fn")(example(index=5), "ab", [(0, 1), (1, 2)])


@pytest.mark.parametrize("dotted", ["weights_of_mine:nope", "no_such_module:fn", "math", ".x:y", "", "math:pi", 3])
def test_a_function_that_cannot_be_imported_is_refused(module, dotted) -> None:
    with pytest.raises(InputError, match=rf"token_weights\.function: '?{dotted}'? .*(imported|function)"):
        weighters.function(dotted)


# recipes


def test_compose_is_the_product() -> None:
    offsets = [(0, 1), (1, 2)]
    two, three = (lambda *_: [2.0, 1.0]), (lambda *_: [3.0, 0.5])
    assert weighters.compose([two, three])(example(), "ab", offsets) == [6.0, 0.5]
    assert weighters.compose([])(example(), "ab", offsets) == [1.0, 1.0]


def test_the_published_weights(alarms) -> None:
    # Only the sub-label differs; label and span 1.1, sub-label 1.2 · 1.2, scaffold 1.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(TEXTS, kind="characters", pieces=["Street", "Name", "Type"])
    )
    gold, wrong = (to_json([record("Street", name, "Main")]) for name in ("Name", "Type"))
    weigh = from_recipe(TAB_PO_WEIGHTS, alarms=alarms)
    for case in both_sides(tokenizer, {"chosen": gold, "rejected": wrong}):
        expected = {"scaffold": 1.0, "code": 1.1, "subcode": 1.2 * 1.2, "span": 1.1}
        assert weigh(*case) == [expected[name] for name in token_classes(*case)]
    assert not alarms.counts


def test_a_recipe_multiplies_its_entries(module, alarms) -> None:
    module.fn = lambda row, text, offsets: [4.0] * len(offsets)
    row = example(chosen_spans=[{"start": 1, "end": 2, "label": "x"}], response_ids=[1, 2, 3], other_ids=[1, 2, 4])
    spec = {"spans": {"x": 3.0}, "differing": 1.5, "json": {"[]": 5.0}, "function": "weights_of_mine:fn"}
    assert from_recipe(spec, alarms=alarms)(row, "[7]", [(0, 1), (1, 2), (2, 3)]) == [4.0, 60.0, 6.0]
    row["chosen_spans"] = [{"start": 0, "end": 1, "weight": 2.0}]
    assert from_recipe({"spans": True}, alarms=alarms)(row, "[7]", [(0, 1), (1, 2), (2, 3)]) == [2.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"jsn": {}}, r"token_weights\.jsn: unknown key; did you mean 'json'\?"),
        ({"zzz": 1}, r"token_weights\.zzz: unknown key; use json, differing, spans, function"),
        ({"json": {"[].code": 0}}, r"token_weights\.json\.\[\]\.code: 0 cannot be a weight"),
        ({"json": {"[].code": "1.1"}}, r"token_weights\.json\.\[\]\.code: '1.1' cannot be a weight"),
        ({"json": {"[": 1.1}}, "path pattern: '\\[' cannot be read"),
        ({"json": {0: 1.1}}, r"token_weights\.json: \{0: 1.1\} is not a mapping"),
        ({"json": 1.1}, r"token_weights\.json: 1.1 is not a mapping"),
        ({"differing": -1.2}, r"token_weights\.differing: -1.2 cannot be a weight"),
        ({"differing": math.inf}, r"token_weights\.differing: inf cannot"),
        ({"differing": True}, r"token_weights\.differing: True cannot"),
        ({"spans": {"code": math.nan}}, r"token_weights\.spans\.code: nan cannot"),
        ({"spans": False}, r"token_weights\.spans: False is not a mapping"),
    ],
)
def test_wrong_recipes_are_refused(spec, message) -> None:
    with pytest.raises(InputError, match=message):
        from_recipe(spec)


def test_tokens_without_text_have_weight_one(alarms) -> None:
    row = example(response_ids=[5, 6, 9], other_ids=[5, 7])
    offsets = [(0, 1), (1, 2), (2, 2)]
    assert weighters.differing(1.5)(row, "ab", offsets) == [1.0, 1.5, 1.5]
    assert from_recipe({"differing": 1.5}, alarms=alarms)(row, "ab", offsets) == [1.0, 1.5, 1.0]
    assert alarms.counts == {"weight on padding or end-of-turn": 1}


def test_a_response_without_weights_is_an_alarm(alarms) -> None:
    row = example(response_ids=[5, 6], other_ids=[5, 6])
    from_recipe({"differing": 1.5}, alarms=alarms)(row, "ab", [(0, 1), (1, 2)])
    assert alarms.counts == {"no weighted token in a response": 1}


def test_an_alarm_is_logged_once(alarms, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="tokencredit"):
        for index in range(3):
            weighters.json_values(PATHS, alarms=alarms)(example(index=index), "x", [(0, 1)])
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("response is not JSON: the chosen response of example 0, Expecting value")
    assert alarms.counts == {"response is not JSON": 3}


# classes


def test_classes_are_the_keys_of_the_innermost_values() -> None:
    text = '{"a":{"code":"X","n":[1,{"deep":null}]},"e":""}'
    offsets = [(i, i + 1) for i in range(len(text))]
    classes = token_classes(example(), text, offsets)
    assert {name: "".join(c for c, k in zip(text, classes, strict=True) if k == name) for name in set(classes)} == {
        "code": "X",
        "n": "1",
        "deep": "null",
        "scaffold": '{"a":{"code":"","n":[,{"deep":}]},"e":""}',
    }


def test_classes_outside_json_are_the_labels_of_the_spans() -> None:
    offsets = [(0, 2), (2, 4), (4, 4)]
    labelled = [{"start": 3, "end": 4, "label": "name"}, {"start": 0, "end": 1, "label": None, "weight": 2.0}]
    assert token_classes(example(chosen_spans=labelled), "ab c", offsets) == ["scaffold", "name", "scaffold"]
    assert token_classes(example(), "ab c", offsets) == ["scaffold"] * 3
    # In JSON the key goes first, and the label covers the rest.
    both = [{"start": 0, "end": 7, "label": "all"}]
    assert token_classes(example(chosen_spans=both), '{"k":1}', [(0, 5), (5, 6), (6, 7)]) == ["all", "k", "all"]


# the confusion table


def test_measured_sublabel_confusions_decide_the_negative() -> None:
    # The table goes from counting to drawing under its own names: nothing is read by a header that could be misspelt.
    gold = [[record("A", "x")], [record("A", "y")], [record("A", "z")], [record("A", "w")]]
    confusion = count_confusion([[record("A", "z")], *gold[1:]], gold)
    assert confusion == {"labels": {}, "sublabels": {"x": {"z": 1}}}
    for seed in range(20):
        negative = make_negative(
            gold[0], ontology=ontology(gold), **confusion, rng=random.Random(seed), mix={"sublabel": 1.0}
        )
        assert negative == Negative([record("A", "z")], "sublabel")
    with pytest.raises(TypeError, match="sub_labels"):
        make_negative(gold[0], ontology={}, labels={}, sub_labels={}, rng=random.Random(0))
