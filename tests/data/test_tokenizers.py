import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tokencredit.data.serialise import to_json
from tokencredit.data.tokenizers import build_tokenizer
from tokencredit.errors import InputError

FOLDER = Path(__file__).parents[2] / "data" / "us_addresses"
TEXTS = [to_json(json.loads(line)) for line in (FOLDER / "validation.jsonl").open()]
PIECES = ['[{"code":"', '","subcode":"', '","span":"', '"},{"code":"', "Street", "Name", " Name", "St", '"}]']
CHARACTERS = build_tokenizer(TEXTS, kind="characters", pieces=PIECES)
BPE = build_tokenizer(TEXTS, kind="bpe", vocab_size=600, pieces=PIECES)
BOTH = pytest.mark.parametrize("tokenizer", [CHARACTERS, BPE], ids=["characters", "bpe"])
FRAGMENTS = st.sampled_from(
    [*PIECES, "<0x41>", "\ufffd", "Ġ", "Ċ", "é", "e\u0301", " ", "\n", "\r\n", "🙂", "\x00", "▁"]
)


@BOTH
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40) | st.lists(FRAGMENTS | st.characters(codec="utf-8"), max_size=15).map("".join))
def test_decoding_gives_back_any_text_and_offsets_cover_it(tokenizer, text):
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids) == text
    assert {i for start, end in encoding.offsets for i in range(start, end)} == set(range(len(text)))
    assert all(start < end for start, end in encoding.offsets)


@BOTH
def test_decoding_gives_back_the_data(tokenizer):
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@BOTH
@pytest.mark.parametrize(
    "text", ["  two leading", "\n\n", "trailing ", "a\u00a0b\u2009c", "👩‍👩‍👧", "<0x41>", "\u202eabc", ""]
)
def test_wrapped_for_transformers_it_stays_exact(tokenizer, text):
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    assert fast.decode(fast(text)["input_ids"]) == text
    assert [fast.convert_ids_to_tokens(i) for i in (fast.eos_token_id, fast.pad_token_id)] == ["<eos>", "<pad>"]


def test_unseen_characters_are_bytes_that_share_their_offsets():
    encoding = CHARACTERS.encode("1🙂\u00e92")
    assert encoding.tokens == ["1", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "<0xC3>", "<0xA9>", "2"]
    assert encoding.offsets == [(0, 1), *[(1, 2)] * 4, *[(2, 3)] * 2, (3, 4)]
    assert [start for start, _ in BPE.encode("1🙂").offsets] == [0, 1, 1, 1, 1]


@BOTH
def test_pieces_are_one_token_wherever_they_occur(tokenizer):
    text = '[{"code":"Street","subcode":"Name","span":"St Name"}]'
    assert [text[start:end] for start, end in tokenizer.encode(text).offsets] == [
        '[{"code":"',
        "Street",
        '","subcode":"',
        "Name",
        '","span":"',
        "St",
        " Name",
        '"}]',
    ]


@pytest.mark.parametrize("order", [["ab", "abc", "abcd", "bcdef"], ["bcdef", "abcd", "abc", "ab"]])
@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_leftmost_then_longest_piece_wins_whatever_the_order(kind, order):
    size = 300 if kind == "bpe" else None
    tokenizer = build_tokenizer(["a b c d e f"], kind=kind, vocab_size=size, pieces=order)
    pieces = [[text[a:b] for a, b in tokenizer.encode(text).offsets] for text in ("abcdef", "abcx", "xabab", "bcdef")]
    assert pieces == [["abcd", "e", "f"], ["abc", "x"], ["x", "ab", "ab"], ["bcdef"]]


def test_special_tokens_are_hidden_unless_asked_for():
    eos = CHARACTERS.token_to_id("<eos>")
    ids = [*CHARACTERS.encode("Main").ids, eos]
    assert CHARACTERS.decode(ids) == "Main"
    assert CHARACTERS.decode(ids, skip_special_tokens=False) == "Main<eos>"


def test_sizes():
    seen = {character for text in TEXTS for character in text}
    assert CHARACTERS.get_vocab_size() == 256 + len(seen) + len(PIECES) + 2
    assert sorted(CHARACTERS.get_vocab().values()) == list(range(CHARACTERS.get_vocab_size()))
    assert BPE.get_vocab_size() == 600
    assert all(len(CHARACTERS.encode(c).ids) == 1 for c in seen)


def test_byte_pairs_are_not_spent_inside_pieces():
    tokenizer = build_tokenizer(["xyxy" * 9] * 9, kind="bpe", vocab_size=400, pieces=["xyxy"], special=[])
    assert tokenizer.get_vocab_size() == 257


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_the_same_texts_give_the_same_tokenizer(kind):
    size = 400 if kind == "bpe" else None
    first, second = (build_tokenizer(iter(TEXTS), kind=kind, vocab_size=size, pieces=PIECES).to_str() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "words"}, "'words' is not a kind"),
        ({"kind": "bpe"}, "give at least 258"),
        ({"kind": "bpe", "vocab_size": 258, "pieces": ["ab"]}, "give at least 259"),
        ({"kind": "characters", "vocab_size": 300}, "leave it out"),
        ({"kind": "characters", "pieces": [""]}, "'' cannot be one token"),
        ({"kind": "characters", "pieces": ["<0x41>"]}, "'<0x41>' cannot be one token"),
        ({"kind": "characters", "pieces": ["<eos>"]}, "'<eos>' cannot be one token"),
        ({"kind": "bpe", "vocab_size": 300, "pieces": ["é"]}, "'é' cannot be one token"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build_tokenizer(["abc"], **options)
