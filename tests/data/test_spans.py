import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tokencredit.data.json_values import json_values, select
from tokencredit.data.serialise import to_json
from tokencredit.data.spans import chars_to_tokens, spread, token_offsets, tokens_to_chars
from tokencredit.data.tokenizers import build_tokenizer
from tokencredit.errors import InputError

TEXTS = ['[{"code":"Street","subcode":"Name","span":"Huer Huero"}]', "the quick brown fox\n", "½ é 🙂"] * 3
PIECES = ['[{"code":"', '","subcode":"', '","span":"', "Street"]
TOKENIZERS = {
    "characters": build_tokenizer(TEXTS, kind="characters", pieces=PIECES),
    "bpe": build_tokenizer(TEXTS, kind="bpe", vocab_size=300),
    "bpe with pieces": build_tokenizer(TEXTS, kind="bpe", vocab_size=330, pieces=PIECES),
}
FAST = {name: PreTrainedTokenizerFast(tokenizer_object=tokenizer) for name, tokenizer in TOKENIZERS.items()}
HOSTILE = [
    'a "quoted" \\ span',
    "tab\tand\u00a0no-break",
    "🙂 and e\u0301 and \u2028",
    "Street",
    ' "code":"Street" ',
    "\u0000\u001f",
    " leading",
    "",
]


@pytest.mark.parametrize("name", FAST)
def test_the_tokens_of_a_json_value_are_those_that_hold_its_characters(name):
    records = [{"code": "Street", "subcode": "Name", "span": span} for span in HOSTILE]
    text = to_json(records)
    ids, offsets = token_offsets(FAST[name], text)
    assert FAST[name].decode(ids) == text
    for value, span in zip(select(json_values(text), "[].span"), HOSTILE, strict=True):
        tokens = chars_to_tokens(offsets, value.start, value.end)
        assert tokens == [
            i for i, (s, e) in enumerate(offsets) if set(range(s, e)) & set(range(value.start, value.end))
        ]
        if span:
            first, last = tokens_to_chars(offsets, tokens[0], tokens[-1] + 1)
            assert first <= value.start < value.end <= last
        else:
            assert tokens == []


STRINGS = st.lists(
    st.sampled_from([*HOSTILE, *PIECES, "🙂🏽", "\t", "\u00a0", '"', "\\"]) | st.text(max_size=4), max_size=5
).map("".join)
NESTED = st.recursive(
    STRINGS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=2),
    max_leaves=6,
)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=100, deadline=None)
@given(value=NESTED, ascii_only=st.booleans(), indent=st.sampled_from([None, "\t"]))
def test_values_of_hostile_json_go_to_tokens_and_back(name, value, ascii_only, indent):
    # The value repeats: in a list, in an object, and as text inside a string.
    document = [value, {"code": "Street", "span": value}, json.dumps(value)]
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    ids, offsets = token_offsets(FAST[name], text)
    assert FAST[name].decode(ids) == text
    for found in json_values(text):
        tokens = chars_to_tokens(offsets, found.start, found.end)
        characters = set(range(found.start, found.end))
        assert tokens == [i for i, token in enumerate(offsets) if characters & set(range(*token))]
        assert bool(tokens) == bool(characters)
        if tokens:
            assert tokens == list(range(tokens[0], tokens[-1] + 1))
            first, last = tokens_to_chars(offsets, tokens[0], tokens[-1] + 1)
            covered = {i for token in tokens for i in range(*offsets[token])}
            assert covered == set(range(first, last)) >= characters
            assert set(tokens) <= set(chars_to_tokens(offsets, first, last))


@pytest.mark.parametrize("name", ["characters", "bpe with pieces"])
def test_labels_that_are_pieces_are_exactly_one_token(name):
    text = to_json([{"code": "Street", "subcode": "Name", "span": "Street Street"}])
    ids, offsets = token_offsets(FAST[name], text)
    (label,) = select(json_values(text), "[].code")
    (token,) = chars_to_tokens(offsets, label.start, label.end)
    assert FAST[name].convert_ids_to_tokens(ids[token]) == "Street"
    assert tokens_to_chars(offsets, token, token + 1) == (label.start, label.end)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=30))
def test_every_character_is_covered(name, text):
    ids, offsets = token_offsets(FAST[name], text)
    assert len(ids) == len(offsets)
    assert {i for start, end in offsets for i in range(start, end)} == set(range(len(text)))
    assert offsets == sorted(offsets)


def test_the_bytes_of_one_character_share_its_offsets():
    _, offsets = token_offsets(FAST["characters"], "x日y")
    assert offsets == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert chars_to_tokens(offsets, 1, 2) == [1, 2, 3]


def test_repeated_values_keep_apart():
    text = to_json(["Main", "Main"])
    _, offsets = token_offsets(FAST["bpe"], text)
    first, second = ([*chars_to_tokens(offsets, v.start, v.end)] for v in select(json_values(text), "[]"))
    assert first[-1] < second[0]


OFFSETS = [(0, 0), (0, 3), (3, 5), (5, 5), (5, 9)]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 9, [1, 2, 4]), (0, 3, [1]), (2, 4, [1, 2]), (3, 5, [2]), (5, 6, [4]), (4, 4, []), (0, 0, []), (9, 9, [])],
)
def test_chars_to_tokens_is_half_open(start, end, expected):
    assert chars_to_tokens(OFFSETS, start, end) == expected


def test_tokens_to_chars():
    assert tokens_to_chars(OFFSETS, 1, 3) == (0, 5)
    assert tokens_to_chars(OFFSETS, 2, 5) == (3, 9)
    assert tokens_to_chars(OFFSETS, 3, 4) == (0, 0)
    assert tokens_to_chars(OFFSETS, 5, 5) == (0, 0)


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (2, 1), (0, 6)])
def test_runs_outside_the_tokens_are_refused(first, last):
    with pytest.raises(InputError, match="token run"):
        tokens_to_chars(OFFSETS, first, last)


def test_spread_takes_the_largest_covering_weight():
    spans = [(0, 4, 1.2), (3, 9, 1.1), (5, 6, 0.5)]
    assert spread(OFFSETS, spans) == [1.0, 1.2, 1.2, 1.0, 1.1]
    assert spread(OFFSETS, [(5, 6, 0.5)]) == [1.0, 1.0, 1.0, 1.0, 0.5]
    assert spread(OFFSETS, [(5, 6, -1.0), (5, 6, -2.0)], default=0.0) == [0.0, 0.0, 0.0, 0.0, -1.0]
    assert spread(OFFSETS, []) == [1.0] * 5
    assert spread([], []) == []


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (4, 3), (8, 10)])
def test_spans_outside_the_text_are_refused(start, end):
    with pytest.raises(InputError, match="9 characters"):
        spread(OFFSETS, [(start, end, 2.0)])


def test_slow_tokenizers_are_refused_by_name():
    with pytest.raises(InputError, match="SimpleNamespace is not a fast tokenizer"):
        token_offsets(SimpleNamespace(is_fast=False), "x")
