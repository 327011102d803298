"""Sampled ids and the characters they wrote: byte-level, SentencePiece and word-level tokenizers."""

import json
import re
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tokencredit.data import pieces
from tokencredit.data.pieces import offsets_within, sampled_offsets, span_values
from tokencredit.data.spans import chars_to_tokens
from tokencredit.data.tokenizers import build_tokenizer
from tokencredit.errors import InputError

TEXTS = ["the quick brown fox\n", '[{"code":"Street","span":"Huer Huero"}]', "  two  spaces ", "½ é"] * 3


def sentencepiece() -> Tokenizer:
    """As in Llama 2: `▁` for a space, one put before the text and taken off again, bytes for what is unknown."""
    characters = sorted({c for text in TEXTS for c in text.replace(" ", "▁")})
    words = ["▁the", "▁qu", "ick", "▁▁", '"code":"', "Hu"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters, *words]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def words() -> Tokenizer:
    """Words, between which decoding puts a space."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "a b c"], trainer)
    return tokenizer


TOKENIZERS = {
    "byte-level": build_tokenizer(TEXTS, kind="bpe", vocab_size=300, special=("</s>",)),
    "bytes for characters": build_tokenizer(TEXTS, kind="characters", special=("</s>",)),
    "sentencepiece": sentencepiece(),
    "words": words(),
}
FAST: dict[str, Any] = {
    name: PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    for name, tokenizer in TOKENIZERS.items()
}
ALPHABET = {character: byte for byte, character in bytes_to_unicode().items()}


def exact(name: str, ids: list[int]) -> list[set[int]]:
    """Which characters each token wrote, from the bytes that it stands for: of valid text."""
    written = [_bytes(name, token) for token in FAST[name].convert_ids_to_tokens(ids)]
    if name == "sentencepiece" and written:
        written[0] = written[0].removeprefix(b" ")
    text = b"".join(written).decode()
    owners = [place for place, character in enumerate(text) for _ in character.encode()]
    ends = list(accumulate(map(len, written), initial=0))
    return [set(owners[start:end]) for start, end in pairwise(ends)]


def _bytes(name: str, token: str) -> bytes:
    if name == "byte-level":
        return bytes(ALPHABET[character] for character in token)
    byte = re.fullmatch("<0x(..)>", token)
    return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()


@pytest.mark.parametrize("name", ["byte-level", "bytes for characters", "sentencepiece"])
@pytest.mark.parametrize("text", ["the quick brown fox", "a b c", "the  two the", "quick"])
def test_plain_words(name: str, text: str) -> None:
    ids = FAST[name](text, add_special_tokens=False)["input_ids"]
    decoded, offsets = sampled_offsets(FAST[name], ids)
    assert decoded == FAST[name].decode(ids)
    assert [set(range(*token)) for token in offsets] == exact(name, ids)
    assert offsets[0][0] == 0
    assert offsets[-1][1] == len(decoded)


def test_by_hand() -> None:
    """What the tokens are, and what they cover."""
    tokenizer = FAST["sentencepiece"]
    names = ["▁the", "▁", "<0xC3>", "<0xA9>", "f", "</s>"]
    text, offsets = sampled_offsets(tokenizer, tokenizer.convert_tokens_to_ids(names))
    assert text == "the éf"
    assert offsets == [(0, 3), (3, 4), (4, 5), (4, 5), (5, 6), (6, 6)]
    tokenizer = FAST["words"]
    text, offsets = sampled_offsets(tokenizer, tokenizer.convert_tokens_to_ids(["the", "quick", "</s>", "fox"]))
    assert text == "the quick fox"
    assert offsets == [(0, 3), (3, 9), (9, 9), (9, 13)], "the space before a word is written with it"


@pytest.mark.parametrize("name", ["byte-level", "bytes for characters", "sentencepiece"])
@pytest.mark.parametrize("text", ["🙂", "a🙂b", "é🙂🏽é", "漢字かな", "½x½", "e\u0301", "\u2028 \t"])
def test_split_characters_belong_to_all_their_tokens(name: str, text: str) -> None:
    tokenizer = FAST[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded, offsets = sampled_offsets(tokenizer, ids)
    assert decoded == text
    assert [set(range(*token)) for token in offsets] == exact(name, ids)
    for place, character in enumerate(text):
        wrote = chars_to_tokens(offsets, place, place + 1)
        shared = len(character.encode()) if name != "byte-level" and len(wrote) > 1 else len(wrote)
        assert len(wrote) == shared >= 1


@pytest.mark.parametrize("name", ["byte-level", "bytes for characters", "sentencepiece"])
@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.sampled_from(["the", " ", "  ", "é", "🙂", '"', "\n", "fox", "漢"]) | st.text(max_size=3)))
def test_any_text(name: str, pieces: list[str]) -> None:
    tokenizer = FAST[name]
    ids = tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]
    text, offsets = sampled_offsets(tokenizer, ids)
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
    if "\ufffd" not in text:
        assert [set(range(*token)) for token in offsets] == exact(name, ids)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_sampled_ids(name: str, data: st.DataObject) -> None:
    """Models also sample what no text becomes: broken characters, other cuts, special tokens in between."""
    size = len(FAST[name])
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=12))
    text, offsets = sampled_offsets(FAST[name], ids)
    assert text == FAST[name].decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert len(offsets) == len(ids)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)
    assert set().union(*(range(*token) for token in offsets)) == set(range(len(text))), "every character was written"


def every_prefix(tokenizer: Any, ids: list[int]) -> list[tuple[int, int]]:
    """By definition: how much of the text each prefix leaves as it stands."""
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    ends = [0]
    for place in range(len(ids)):
        prefix = tokenizer.decode(ids[: place + 1], skip_special_tokens=True)
        shared = next((n for n, (a, b) in enumerate(zip(prefix, whole, strict=False)) if a != b), len(prefix))
        ends.append(max(ends[-1], shared))
    return list(pairwise(ends))


@pytest.mark.parametrize("spoilt", [["<0xC3>", "<0xA9>", "<0xC3>"], ["<0xE6>", "<0xBC>", "<0xA2>", "<0xFF>"] * 9])
def test_bytes_that_spoil_those_before_them(spoilt: list[str]) -> None:
    """In SentencePiece one wrong byte makes the whole run unreadable: the tokens after it keep their places."""
    tokenizer = FAST["sentencepiece"]
    around = tokenizer.convert_tokens_to_ids(["▁the", "▁", "f", "<0xC3>", "<0xA9>", "▁qu"]) * 20
    ids = [*around, *tokenizer.convert_tokens_to_ids(spoilt), *around]
    text, offsets = sampled_offsets(tokenizer, ids)
    assert text == tokenizer.decode(ids, skip_special_tokens=True)
    exact_ones = every_prefix(tokenizer, ids)
    differ = [place for place, (one, other) in enumerate(zip(offsets, exact_ones, strict=True)) if one[0] != other[0]]
    assert set(differ) <= set(range(len(around), len(around) + len(spoilt)))
    assert [text[start:end] for start, end in offsets[-6:]] == [" the", " ", "f", "é", "é", " qu"]


def test_few_prefixes_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """4096 tokens, of which one spoils another: what is decoded is about 100 times as long, not 2048 times."""
    tokenizer = FAST["sentencepiece"]
    decoded = []
    decode = pieces._decode
    monkeypatch.setattr(pieces, "_decode", lambda tokenizer, ids: decoded.append(len(ids)) or decode(tokenizer, ids))
    ids = tokenizer.convert_tokens_to_ids(["f"] * 2046 + ["<0xC3>", "<0xA9>", "<0xC3>"] + ["f"] * 2047)
    assert len(sampled_offsets(tokenizer, ids)[1]) == 4096
    assert sum(decoded) < 200 * 4096


def test_a_span_lands_on_the_tokens_that_wrote_it() -> None:
    for name, tokenizer in FAST.items():
        text = '[{"code":"Street","span":"Huer Huero"}]'
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded, offsets = sampled_offsets(tokenizer, ids)
        start = decoded.index("Street")
        values = span_values(offsets, [{"start": start, "end": start + 6, "value": -1.0}])
        wrote = [ids[i] for i, value in enumerate(values) if value]
        assert "Street" in tokenizer.decode(wrote), name
        assert len(wrote) <= 6
        assert sum(values) == pytest.approx(-1.0, abs=1e-12), "the sum stays what the function gave"


def test_values_add_up_by_hand() -> None:
    offsets = [(0, 2), (2, 2), (2, 4), (4, 6)]
    spans = [{"start": 0, "end": 4, "value": 1.0}, {"start": 3, "end": 5, "value": -0.5}]
    assert span_values(offsets, spans) == [0.5, 0.0, 0.25, -0.25]
    assert span_values(offsets, []) == [0.0] * 4
    with pytest.raises(InputError, match="no token wrote the characters"):
        span_values([(0, 2), (3, 4)], [{"start": 2, "end": 3, "value": 1.0}])
    with pytest.raises(InputError, match="not inside the 6 characters"):
        span_values(offsets, [{"start": 5, "end": 7, "value": 1.0}])


def test_a_part_of_the_text() -> None:
    """A chat template may take the white space off what was sampled."""
    text, offsets = " so\n", [(0, 1), (1, 3), (3, 4)]
    assert offsets_within(text, offsets, "so") == [(0, 0), (0, 2), (2, 2)]
    assert offsets_within(text, offsets, text) == offsets
    assert offsets_within(text, offsets, "no") is None
    assert offsets_within("so so", [(0, 5)], "so") is None, "which of them?"


def test_json_credit_on_a_large_answer_is_quick() -> None:
    """One step a token, not one prefix a token."""
    tokenizer = FAST["byte-level"]
    ids = tokenizer(json.dumps([{"span": "Größe 🙂"}] * 200, ensure_ascii=False))["input_ids"]
    calls = 0

    class Counting:
        def decode(self, part: list[int], **options: Any) -> str:
            nonlocal calls
            calls += len(part)
            return str(tokenizer.decode(part, **options))

    sampled_offsets(Counting(), ids)
    assert calls < 16 * len(ids)
